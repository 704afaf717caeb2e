"""From a chunk reference to its bytes: inline ones from the catalog, others through the gates of `virtual`.

Reads here are blocking; only those of a remote source have an asynchronous form worth awaiting.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

from icelite.catalog.chunks import lookup_payload, lookup_payload_range, lookup_payloads
from icelite.catalog.database import Catalog
from icelite.catalog.locations import INLINE, has_remote_locations, lookup_location
from icelite.catalog.settings import list_containers
from icelite.catalog.values import damaged
from icelite.errors import ErrorKind, InvalidInputError, StorageError
from icelite.objects import TRAILER_BYTES, NoObjects, Objects, check_trailer, virtual_location
from icelite.types import Chunk, ChunkType, Location, SourceStamp
from icelite.virtual import Source, VirtualAccess

ALLOCATED_BYTES = 31 << 20  # glibc learns from blocks of less than 32 MiB
KNOWN_SOURCES = 10_000  # sources that passed the gates; each may hold an open descriptor of `virtual`'s cache

Window = tuple[int, int]


@cache
def _keep_freed_memory() -> None:
    """Let the C library reuse what one chunk leaves for the next; once in a process.

    glibc gives a freed block of more than 128 KiB back to the system, and getting it again costs a page fault for each
    4 KiB, up to four times as long as reading into it. It stops at the size of the largest block freed so far
    (mallopt(3), M_MMAP_THRESHOLD). This one is never written to, so it takes no memory.
    """
    bytes(ALLOCATED_BYTES)


class Payloads:
    """Reads the bytes of chunk references for one session."""

    def __init__(self, catalog: Catalog, access: VirtualAccess, objects: Objects | NoObjects | None = None) -> None:
        _keep_freed_memory()
        self._catalog = catalog
        self._access = access
        self._objects = objects or NoObjects()
        self._sources: dict[int | Location | None, Source] = {}  # by location, as chunks name it
        self._natives: set[int] = set()  # ids of the locations among them that are native objects
        self._stored_remote: bool | None = None  # whether the catalog has locations that are not local
        self._known_local = 0  # how many uncommitted locations were found to be local

    def read(self, ref: Chunk, chunk: str, window: Window | None) -> bytes:
        """The bytes of a chunk, or those in the half-open ``window`` of it.

        Raises
        ------
        InvalidInputError, StorageError, FormatError
            A reference that may not be read; a source that is missing, changed or short; a damaged payload.
        """
        source = self._sources.get(ref.location)
        if source is None:
            if ref.location == INLINE or ref.data is not None:
                return self._inline(ref, chunk, window)
            source = self.source(ref, chunk)
        if window is None and ref.length and not self.is_native(ref):
            return source.read(ref.offset, ref.length, chunk)
        return _read(source, ref, chunk, window, self.is_native(ref))

    def read_local(self, ref: Chunk, chunk: str, window: Window | None) -> bytes | None:
        """As `read`; None where the bytes have to come over a network, which is better awaited (`read_remote`)."""
        if ref.location == INLINE or ref.data is not None:
            return self._inline(ref, chunk, window)
        source = self.source(ref, chunk)
        if not source.is_local:
            return None
        return _read(source, ref, chunk, window, self.is_native(ref))

    async def read_remote(self, ref: Chunk, chunk: str, window: Window | None) -> bytes:
        """As `read`, for a reference whose source is not local."""
        start, stop = window or (0, ref.length)
        if start >= stop:
            return b""
        source = self.source(ref, chunk)
        if stop - start < ref.length or not self.is_native(ref):
            return await source.read_async(ref.offset + start, stop - start, chunk)
        data = await source.read_async(ref.offset, ref.length + TRAILER_BYTES, chunk)
        data, found = data[:-TRAILER_BYTES], data[-TRAILER_BYTES:]
        check_trailer(data, found, chunk)
        return data

    def is_local(self, ref: Chunk, chunk: str) -> bool:
        """Whether reading the reference needs no network."""
        return ref.location == INLINE or ref.data is not None or self.source(ref, chunk).is_local

    def may_be_remote(self, uncommitted: Sequence[Location]) -> bool:
        """Whether reading anything may need a network; ``uncommitted`` only grows, and each is looked at once."""
        if self._stored_remote is None:
            elsewhere = self._objects.is_remote or self._catalog.storage.address is not None
            self._stored_remote = elsewhere or has_remote_locations(self._catalog)
        if self._stored_remote:
            return True
        while self._known_local < len(uncommitted):
            if not self._access.is_local(uncommitted[self._known_local]):
                return True
            self._known_local += 1
        return False

    def read_inline(self, chunks: Mapping[int, str]) -> dict[int, bytes]:
        """The bytes of many inline chunks, by payload id; see `icelite.catalog.chunks.lookup_payloads`."""
        return lookup_payloads(self._catalog, chunks)

    def _inline(self, ref: Chunk, chunk: str, window: Window | None) -> bytes:
        data = ref.data
        if data is None and (window is None or window == (0, ref.length)):
            data = lookup_payload(self._catalog, ref.offset, chunk)
        start, stop = window or (0, ref.length)
        if data is not None:
            if len(data) != ref.length:
                raise damaged(f"chunk {chunk}", f"{len(data)} bytes, and its reference says {ref.length}")
            return data if window is None else data[start:stop]
        return b"" if start >= stop else lookup_payload_range(self._catalog, ref.offset, start, stop - start)

    def source(self, ref: Chunk, chunk: str) -> Source:
        """The opened source of a chunk whose bytes are not in the catalog."""
        location = ref.location
        source = self._sources.get(location)
        if source is None:
            if len(self._sources) >= KNOWN_SOURCES:
                self._sources.clear()
            if isinstance(location, Location):
                source = self._open(location, chunk)
            else:
                assert location is not None  # bytes that wait are read from the chunk itself
                source = FollowedSource(self, location, chunk)
            self._sources[location] = source
        return source

    def is_native(self, ref: Chunk) -> bool:
        """Whether a chunk, whose `source` was asked for before, is in a native object."""
        location = ref.location
        return location.kind == ChunkType.native if isinstance(location, Location) else location in self._natives

    def location(self, ref: Chunk) -> Location:
        """The location of a chunk that is not inline."""
        if isinstance(ref.location, Location):
            return ref.location
        assert ref.location is not None  # bytes that wait have none
        return lookup_location(self._catalog, ref.location)

    def url(self, location: Location) -> str:
        """The absolute URL of a location, for display; of an object whose place is not known its key."""
        if location.kind != ChunkType.native:
            return self._access.url(location)
        root = self._objects.root
        return location.path if root is None else self._access.url(virtual_location(location, root))

    def _open(self, location: Location, chunk: str) -> Source:
        native = location.kind == ChunkType.native
        if native:
            location = self._objects.location(location, chunk)
        try:
            return self._access.open(location, chunk, native=native)
        except InvalidInputError as error:  # a container may have been added since the repository was opened
            if error.kind != ErrorKind.NO_CONTAINER_FOR_VIRTUAL_CHUNK or not self._reload():
                raise
        return self._access.open(location, chunk, native=native)

    def open_numbered(self, location_id: int, chunk: str, *, again: bool = False) -> Source:
        """The source of a location of the catalog, by its number; ``again``: as things are by now. Raises as `read`."""
        if again:
            self._reload()
        location = lookup_location(self._catalog, location_id)
        if location.kind == ChunkType.native:
            self._natives.add(location_id)
        return self._open(location, chunk)

    def forget(self) -> None:
        """Look up locations again: the session stands on another snapshot, and numbers of removed ones return."""
        self._sources = {place: source for place, source in self._sources.items() if isinstance(place, Location)}
        self._natives.clear()

    def _reload(self) -> bool:
        with self._catalog.read() as txn:
            return self._access.reload(list_containers(txn))


class FollowedSource:
    """A source of the catalog that is looked for in its new place when it cannot be read where it was.

    `Repository.relocate` may have moved it since it was opened; as long as it can be read, nobody asks.
    """

    def __init__(self, payloads: Payloads, location_id: int, chunk: str) -> None:
        self._payloads = payloads
        self._location_id = location_id
        self._source = payloads.open_numbered(location_id, chunk)
        self.is_local = self._source.is_local

    def read(self, offset: int, length: int, chunk: str) -> bytes:
        """See `Source.read`."""
        try:
            return self._source.read(offset, length, chunk)
        except StorageError:
            if not self._has_moved(chunk):
                raise
        return self._source.read(offset, length, chunk)

    async def read_async(self, offset: int, length: int, chunk: str) -> bytes:
        """See `Source.read_async`."""
        try:
            return await self._source.read_async(offset, length, chunk)
        except StorageError:
            if not self._has_moved(chunk):
                raise
        return await self._source.read_async(offset, length, chunk)

    def check(self, chunk: str | None) -> SourceStamp | None:
        """See `Source.check`."""
        return self._source.check(chunk)

    def _has_moved(self, chunk: str) -> bool:
        before = self._source
        self._source = self._payloads.open_numbered(self._location_id, chunk, again=True)
        self.is_local = self._source.is_local
        return self._source is not before


def _read(source: Source, ref: Chunk, chunk: str, window: Window | None, is_native: bool) -> bytes:
    """The bytes of a chunk, checked where it is a whole one of a native object."""
    start, stop = window or (0, ref.length)
    if start >= stop:
        return b""
    if not is_native or stop - start < ref.length:
        return source.read(ref.offset + start, stop - start, chunk)
    if source.is_local:  # two calls cost less than cutting off the end, which copies all
        data = source.read(ref.offset, ref.length, chunk)
        found = source.read(ref.offset + ref.length, TRAILER_BYTES, chunk)
    else:
        data = source.read(ref.offset, ref.length + TRAILER_BYTES, chunk)
        data, found = data[:-TRAILER_BYTES], data[-TRAILER_BYTES:]
    check_trailer(data, found, chunk)
    return data
