"""From names of files to a snapshot: what `icelite.virtualize` does, step by step.

`inputs` finds the files, `scan` parses them, `agreement` and `order` say whether and how they fit together, `combine`
makes one dataset of them, `additions` knows what the repository has already, and `steps` puts these in a row.
"""

from icelite.archive.opened import Access, opened
from icelite.archive.scan import Parsing
from icelite.archive.steps import Ingestion, VirtualizeSummary

__all__ = ["Access", "Ingestion", "Parsing", "VirtualizeSummary", "opened"]
