"""Virtual chunks: bytes that live in somebody else's files and objects.

`access` decides what may be read (containers, authorisations), `urls` what a reference may look like, `local` and
`s3` read. A `Source` exists only after the gates were passed.
"""

from icelite.virtual.access import VirtualAccess
from icelite.virtual.source import Source

__all__ = ["Source", "VirtualAccess"]
