"""From a chunk reference to its bytes: inline ones from the catalog, virtual ones through the gates of `virtual`.

Reads here are blocking; only those of a remote source have an asynchronous form worth awaiting.
"""

from __future__ import annotations

from typing import TypeVar

from icelite.catalog.database import Catalog
from icelite.catalog.locations import INLINE, lookup_location
from icelite.catalog.payloads import lookup_payload, lookup_payload_range
from icelite.change_set import StagedRef
from icelite.types import ChunkRef, Location
from icelite.virtual import Source, VirtualAccess

_K = TypeVar("_K")

KNOWN_SOURCES = 10_000  # sources that passed the gates; each may hold an open descriptor of `virtual`'s cache

Window = tuple[int, int]


class Payloads:
    """Reads the bytes of chunk references for one session."""

    def __init__(self, catalog: Catalog, access: VirtualAccess) -> None:
        self._catalog = catalog
        self._access = access
        self._by_id: dict[int, Source] = {}
        self._by_location: dict[Location, Source] = {}

    def read(self, ref: ChunkRef | StagedRef, chunk: str, window: Window | None) -> bytes:
        """The bytes of a chunk, or those in the half-open ``window`` of it.

        Raises
        ------
        InvalidInputError, StorageError, FormatError
            A reference that may not be read; a source that is missing, changed or short; a damaged payload.
        """
        if isinstance(ref, ChunkRef) and ref.location_id == INLINE:
            return self._inline(ref, chunk, window)
        start, stop = window or (0, ref.length)
        if start >= stop:
            return b""
        return self.source(ref, chunk).read(ref.offset + start, stop - start, chunk)

    async def read_remote(self, ref: ChunkRef | StagedRef, chunk: str, window: Window | None) -> bytes:
        """As `read`, for a reference whose source is not local."""
        start, stop = window or (0, ref.length)
        if start >= stop:
            return b""
        return await self.source(ref, chunk).read_async(ref.offset + start, stop - start, chunk)

    def is_local(self, ref: ChunkRef | StagedRef, chunk: str) -> bool:
        """Whether reading the reference needs no network."""
        if isinstance(ref, ChunkRef) and ref.location_id == INLINE:
            return True
        return self.source(ref, chunk).is_local

    def _inline(self, ref: ChunkRef, chunk: str, window: Window | None) -> bytes:
        if window is None or window == (0, ref.length):
            return lookup_payload(self._catalog, ref.offset, chunk)
        start, stop = window
        if start >= stop:
            return b""
        return lookup_payload_range(self._catalog, ref.offset, start, stop - start)

    def source(self, ref: ChunkRef | StagedRef, chunk: str) -> Source:
        """The opened source of a reference that is not inline."""
        if isinstance(ref, ChunkRef):
            source = self._by_id.get(ref.location_id)
            if source is None:
                location = lookup_location(self._catalog, ref.location_id)
                source = self._access.open(location, chunk)
                _keep(self._by_id, ref.location_id, source)
            return source
        source = self._by_location.get(ref.location)
        if source is None:
            source = self._access.open(ref.location, chunk)
            _keep(self._by_location, ref.location, source)
        return source


def _keep(known: dict[_K, Source], key: _K, source: Source) -> None:
    if len(known) >= KNOWN_SOURCES:
        known.clear()
    known[key] = source
