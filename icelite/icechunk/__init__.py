"""Whole histories to and from Icechunk: `export_icechunk` and `import_icechunk`. Needs the package icechunk >= 2."""

from icelite.icechunk.exporting import export_icechunk
from icelite.icechunk.importing import import_icechunk
from icelite.icechunk.summaries import ExportSummary, ImportSummary

__all__ = ["ExportSummary", "ImportSummary", "export_icechunk", "import_icechunk"]
