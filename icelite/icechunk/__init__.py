"""Whole histories to and from Icechunk: `export_icechunk` and `import_icechunk`. Needs the package icechunk >= 2."""

from icelite.icechunk.exporting import ExportSummary, export_icechunk
from icelite.icechunk.importing import ImportSummary, import_icechunk

__all__ = ["ExportSummary", "ImportSummary", "export_icechunk", "import_icechunk"]
