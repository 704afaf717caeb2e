"""Virtual chunks: bytes that live in somebody else's files and objects.

`access` decides what may be read (containers, authorisations), `refusal` says what would open a gate, `urls` what a
reference may look like; `local` and `remote` read, the latter through `s3`, `web` or fsspec; `stamps` says whether a
source is the one that was referenced. A `Source` exists only after the gates were passed.
"""

from icelite.config import VirtualChunkContainer
from icelite.types import VirtualChunkSpec
from icelite.virtual.access import VirtualAccess
from icelite.virtual.source import Source

__all__ = ["Source", "VirtualAccess", "VirtualChunkContainer", "VirtualChunkSpec"]
