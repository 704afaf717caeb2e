"""From names of files to a snapshot: what `icelite.virtualize` does, step by step.

`inputs` finds the files, `scan` parses them, `agreement` and `order` say whether and how they fit together, `combine`
makes one dataset of them, `additions` knows what the repository has already, and `steps` puts these in a row.
"""

from icelite.virtualizarr.ingestion.opened import Access, opened
from icelite.virtualizarr.ingestion.scan import Parsing
from icelite.virtualizarr.ingestion.steps import Ingestion, VirtualizeSummary

__all__ = ["Access", "Ingestion", "Parsing", "VirtualizeSummary", "opened"]
