"""Native objects: chunks that icelite writes into a folder or bucket instead of the catalog file.

Invariants
----------
- A key is generated here, never taken unchecked from a catalog: ``XX/<26 characters>``, a ULID whose first 10
  characters are the time of writing in milliseconds, filed under its last two, so that no folder has millions.
- An object is written once, whole, and never changed. It is complete and durable before any reference to it is
  committed; what a crash leaves is an object without references, which garbage collection sweeps.
- Several chunks of one flush may share an object (a pack); references say which bytes are whose.
- Behind each chunk is its checksum (`keys.trailer`), so that reading a whole chunk, or `verify`, notices damage.

Objects are read like virtual chunks, through `icelite.virtual`; here they are written, listed and deleted.
"""

from icelite.objects.keys import (
    TRAILER_BYTES,
    check_key,
    check_trailer,
    key_time,
    new_key,
    pack,
    trailer,
    virtual_location,
)
from icelite.objects.objects import Connect, NoObjects, Objects, ReadOnlyObjects, RemoteObjects, S3Connect, StoredObject

__all__ = [
    "TRAILER_BYTES",
    "Connect",
    "NoObjects",
    "Objects",
    "ReadOnlyObjects",
    "RemoteObjects",
    "S3Connect",
    "StoredObject",
    "check_key",
    "check_trailer",
    "key_time",
    "new_key",
    "pack",
    "trailer",
    "virtual_location",
]
