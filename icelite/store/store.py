"""`IceliteStore`: a session seen through zarr's store interface.

The contract is `zarr.abc.store.Store` with its synchronous twin (`get_sync`, `set_sync`, `delete_sync`). Keys are
those of Zarr hierarchies, v3 or v2; any other key is refused. SQLite answers in microseconds, so local reads run
where they are called; only bytes of a remote source are awaited. A remote catalog may wait for a network, and is asked
in threads.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from zarr.abc.store import (
    ByteRequest,
    OffsetByteRequest,
    RangeByteRequest,
    Store,
    SuffixByteRequest,
)
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype

from icelite.config import StoreConfig
from icelite.errors import ErrorKind, InvalidInputError, KeyNotFoundError, NodeNotFoundError, ReadOnlyError, shown
from icelite.expansion import Expansion
from icelite.keys import CONSOLIDATED, check_path, invalid_key, split_document_key
from icelite.payload import Window
from icelite.store import listing
from icelite.store.references import ReferenceWriter, Urls, as_int64, check_extent, stamp_of
from icelite.types import Chunk, SourceStamp, VirtualChunkSpec

if TYPE_CHECKING:
    from icelite.session import Session

Found = tuple[Chunk, Expansion | None]  # a value, and what it may unpack to
KEYS_AT_ONCE = 10_000  # of a listing, between two turns of the event loop


class Opener(Protocol):
    """How a store opens its repository; `icelite.repository` provides it, being a floor above."""

    def create(self, storage: Any, config: StoreConfig | None) -> Session:
        """A writable session on a new repository."""

    def open(self, storage: Any, config: StoreConfig | None) -> Session:
        """A writable session on an existing repository."""

    def open_or_create(self, storage: Any, config: StoreConfig | None) -> Session:
        """A writable session on a repository that is made where there is none."""


class IceliteStore(Store):
    """The hierarchy of one session as a zarr store.

    Parameters
    ----------
    session
        What is read and written. Usually the store comes from ``session.store``.
    read_only
        Refuse writes although the session would allow them; by default as the session.

    Notes
    -----
    Pickling follows the session: a read-only one travels, a writable one refuses and says what to do.
    """

    supports_writes: bool = True
    supports_deletes: bool = True
    supports_listing: bool = True
    supports_consolidated_metadata = False  # the catalog answers as quickly, and a copy could go stale
    opener: ClassVar[Opener]

    def __init__(self, session: Session, *, read_only: bool | None = None) -> None:
        super().__init__(read_only=session.read_only if read_only is None else read_only)
        self._session = session

    # -- the store-first way: a store that opens its own repository --------------------------------------------

    @classmethod
    def create(cls, storage: Any, config: StoreConfig | None = None) -> IceliteStore:
        """Create a repository and return a writable store on its branch ``main``."""
        return cls(cls.opener.create(storage, config))

    @classmethod
    def open_existing(cls, storage: Any, config: StoreConfig | None = None) -> IceliteStore:
        """Open a repository and return a writable store on its branch ``main``."""
        return cls(cls.opener.open(storage, config))

    @classmethod
    def open_or_create(cls, storage: Any, config: StoreConfig | None = None) -> IceliteStore:
        """Open a repository, creating it where there is none; a writable store on its branch ``main``."""
        return cls(cls.opener.open_or_create(storage, config))

    def commit(self, message: str = "", metadata: dict[str, Any] | None = None) -> str:
        """Commit, and stay writable on the new snapshot; its id."""
        snapshot_id = self._session.commit(message, metadata)
        self._session.resume()
        return snapshot_id

    @property
    def session(self) -> Session:
        """The session behind the store."""
        return self._session

    # -- what zarr asks of every store -------------------------------------------------------------------------

    def __eq__(self, other: object) -> bool:
        return isinstance(other, IceliteStore) and self._session == other._session and self.read_only == other.read_only

    def __hash__(self) -> int:
        return hash((IceliteStore, self._session))

    def __str__(self) -> str:
        return str(self._session)

    def __repr__(self) -> str:
        return f"IceliteStore({self._session!r}, read_only={self.read_only})"

    @property
    def read_only(self) -> bool:
        """Whether writes are refused; true again once the session has committed."""
        return self._read_only or self._session.read_only

    def _check_writable(self) -> None:
        if self._read_only:
            way = "Repository.writable_session(branch)" if self._session.read_only else "with_read_only(False)"
            raise ReadOnlyError(
                f"store was opened in read-only mode and does not support writing: {self}; {way} gives one that does",
                ErrorKind.READ_ONLY_STORE,
            )
        self._session.check_writable()

    def with_read_only(self, read_only: bool = False) -> IceliteStore:
        """A store on the same session.

        Raises
        ------
        ReadOnlyError
            ``read-only-session`` for a writable store on a read-only session.
        """
        if not read_only:
            self._session.check_writable()
        return type(self)(self._session, read_only=read_only)

    @property
    def _supports_sync_io(self) -> bool:
        """Withdrawn (zarr 3.3 and later ask) where chunks may be remote: those are better awaited together."""
        return not self._session.may_read_remote()

    # -- reading -----------------------------------------------------------------------------------------------

    def get_sync(
        self, key: str, *, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """The value under a key, or the part of it in ``byte_range``; None where there is none."""
        self._is_open = True
        prototype = prototype or default_buffer_prototype()
        found = self._find(key, whole=byte_range is None)
        if found is None:
            return None
        chunk, expansion = found
        window = None if byte_range is None else _window(byte_range, chunk.length)
        data = self._session.payloads.read(chunk, key, window)
        return _buffer(prototype, data if expansion is None else _checked(expansion, data, key, window))

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """See `zarr.abc.store.Store.get`; a range is cut at the value's end, as in zarr's own stores."""
        self._is_open = True
        prototype = prototype or default_buffer_prototype()
        found = await self._session.off_loop(self._look, key, byte_range)
        if found is None or isinstance(found, bytes):
            return None if found is None else _buffer(prototype, found)
        (chunk, expansion), window = found
        data = await self._session.payloads.read_remote(chunk, key, window)
        return _buffer(prototype, data if expansion is None else _checked(expansion, data, key, window))

    def _look(self, key: str, byte_range: ByteRequest | None) -> bytes | tuple[Found, Window | None] | None:
        """What is asked for under a key where it is at hand, else where it is, and the window of it to be awaited."""
        found = self._find(key, whole=byte_range is None)
        if found is None:
            return None
        chunk, expansion = found
        window = None if byte_range is None else _window(byte_range, chunk.length)
        data = self._session.payloads.read_local(chunk, key, window)
        if data is None:
            return found, window
        return data if expansion is None else _checked(expansion, data, key, window)

    def _find(self, key: str, *, whole: bool = False) -> Found | None:
        """The value under a key; ``whole`` as for `ChunkChanges.find`."""
        changes = self._session.changes
        place = listing.find_recent_key(changes, key)
        if place is None:
            document = split_document_key(key)
            if document is not None:
                entry = changes.nodes.find(document[0])
                text = None if entry is None else entry.node.documents.get(document[1])
                return None if text is None else (_value(text.encode()), None)
            place = None if key.rpartition("/")[2] == CONSOLIDATED else listing.find_chunk_key(changes, key)
        if place is None:
            return None
        entry, _, name = place
        chunk = changes.chunks.find(entry.node.node_id, name, whole=whole)
        if chunk is None:
            return None
        return chunk, None if chunk.location is None else entry.expansion  # what waits was written here

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Several values or parts of values, in the order asked for."""
        return list(await asyncio.gather(*(self.get(key, prototype, byte_range) for key, byte_range in key_ranges)))

    async def exists(self, key: str) -> bool:
        """Whether there is a value under a key."""
        return await self._session.off_loop(self._find, key) is not None

    async def getsize(self, key: str) -> int:
        """Bytes of the value under a key; nothing is read.

        Raises
        ------
        KeyNotFoundError
            ``key-not-found``; it is a `FileNotFoundError`, as zarr asks.
        """
        found = await self._session.off_loop(self._find, key)
        if found is None:
            raise KeyNotFoundError(f"no value under key {shown(key)} in {self}", ErrorKind.KEY_NOT_FOUND)
        return found[0].length

    async def getsize_prefix(self, prefix: str) -> int:
        """Bytes of all values below a directory; nothing is read."""
        return await self._session.off_loop(listing.stored_bytes, self._session.changes, prefix.rstrip("/"))

    # -- listing -----------------------------------------------------------------------------------------------

    async def list(self) -> AsyncIterator[str]:
        """All keys."""
        async for key in self.list_prefix(""):
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """All keys that begin with ``prefix``."""
        keys, rest = await self._session.off_loop(_begin, listing.iter_keys, self._session.changes, prefix)
        while keys:
            for key in keys:
                yield key
            keys = await asyncio.to_thread(_take, rest)

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Names directly below a directory, in order of creation."""
        for name in await self._session.off_loop(_all, listing.child_names, self._session.changes, prefix.rstrip("/")):
            yield name

    def array_chunk_iterator(self, array_path: str, batch_size: int = 100_000) -> AsyncIterator[Any]:
        """See `Session.array_chunk_iterator`."""
        return self._session.array_chunk_iterator(array_path, batch_size)

    # -- writing -----------------------------------------------------------------------------------------------

    def set_sync(self, key: str, value: Buffer) -> None:
        """Write a value under a metadata or chunk key.

        Raises
        ------
        ReadOnlyError, InvalidInputError, NodeNotFoundError, AlreadyExistsError
            ``read-only-store``, ``read-only-session``; ``invalid-key``, ``bad-metadata``,
            ``invalid-chunk-index``, ``chunk-too-large``; ``node-not-found`` for a chunk without its array;
            ``node-already-exists`` where metadata of another kind of node is in the way.
        """
        self._check_writable()
        self._is_open = True
        if not isinstance(value, Buffer):
            raise TypeError(f"IceliteStore.set(): `value` must be a Buffer instance, got {type(value)} instead")
        changes = self._session.changes
        document = split_document_key(key)
        if document is not None:
            if key.startswith("/") or check_path(document[0]) != document[0]:
                raise invalid_key(key, "has a slash too many")
            changes.nodes.set_document(*document, _text(key, value.to_bytes()))
            return
        node_id, chunk = self._lookup_chunk(key)
        changes.chunks.set_bytes(node_id, chunk, value.to_bytes())

    def _lookup_chunk(self, key: str) -> tuple[int, str]:
        """The array and position that a chunk key names, for writing."""
        if key.rpartition("/")[2] == CONSOLIDATED:
            raise invalid_key(key, "is consolidated metadata, which a catalog does not need")
        place = listing.find_chunk_key(self._session.changes, key)
        if place is None:
            raise NodeNotFoundError(
                f"chunk key {shown(key)} belongs to no array; write the array's metadata first",
                ErrorKind.NODE_NOT_FOUND,
            )
        entry, info, chunk = place
        info.check_position(chunk, entry.node.path)
        return entry.node.node_id, chunk

    async def set(self, key: str, value: Buffer) -> None:
        """See `set_sync`."""
        await self._session.off_loop(self.set_sync, key, value)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Write a value unless there is one; atomic among this session's users."""
        self._check_writable()
        if await self._session.off_loop(self._find, key) is None:
            await self._session.off_loop(self.set_sync, key, value)

    def delete_sync(self, key: str) -> None:
        """Delete the value under a key; no error where there is none."""
        self._check_writable()
        self._is_open = True
        changes = self._session.changes
        document = split_document_key(key)
        if document is not None:
            changes.nodes.delete_document(*document)
            return
        place = None if key.rpartition("/")[2] == CONSOLIDATED else listing.find_chunk_key(changes, key)
        if place is not None:
            changes.chunks.delete(place[0].node.node_id, [place[2]])

    async def delete(self, key: str) -> None:
        """See `delete_sync`."""
        await self._session.off_loop(self.delete_sync, key)

    async def delete_dir(self, prefix: str) -> None:
        """Delete everything below a directory."""
        self._check_writable()
        await self._session.off_loop(listing.delete_below, self._session.changes, prefix.rstrip("/"))

    async def clear(self) -> None:
        """Delete everything."""
        await self.delete_dir("")

    # -- chunks that are bytes of other files, of which zarr does not know; names and signatures are Icechunk's --

    def set_virtual_ref(
        self,
        key: str,
        location: str,
        *,
        offset: int,
        length: int,
        checksum: str | datetime | None = None,
        validate_container: bool = True,
    ) -> None:
        """Let a chunk be bytes of another file.

        Parameters
        ----------
        key
            Chunk key, such as ``temperature/c/0/1``.
        location
            URL (``file://``, ``s3://``, ``vcc://container/path``). A local file under the catalog's directory is
            stored relative to it.
        offset, length
            Bytes: the chunk is ``[offset, offset + length)`` of the file.
        checksum
            ETag the file must have when read, or a time after which it must not have been modified.
        validate_container
            Refuse a location that no virtual chunk container covers.

        Raises
        ------
        InvalidInputError, NodeNotFoundError, ReadOnlyError
            ``invalid-virtual-ref``, ``zero-length-chunk``, ``no-container-for-virtual-chunk``, ``invalid-key``,
            ``invalid-chunk-index``; ``node-not-found``; ``read-only-session``.
        """
        self._check_writable()
        node_id, chunk = self._lookup_chunk(key)
        check_extent(location, offset, length)
        location_id = self._writer(validate_container).intern(location, stamp_of(checksum))
        changes = self._session.changes
        with changes.catalog.stage() as txn:
            changes.chunks.set_refs(node_id, [chunk], [location_id], [offset], [length], txn)

    def set_virtual_refs(
        self, array_path: str, chunks: Sequence[VirtualChunkSpec], *, validate_containers: bool = True
    ) -> None:
        """Set many references of one array; all of them, or with an error none.

        Raises
        ------
        InvalidInputError, NodeNotFoundError, ReadOnlyError
            As `set_virtual_ref`; the message lists the references at fault.
        """
        self._check_writable()
        path = check_path(array_path)
        entry, info = self._session.changes.nodes.lookup_array(path)
        self._writer(validate_containers).write_specs(path, entry.node.node_id, info, chunks)

    def set_virtual_refs_arr(
        self,
        array_path: str,
        chunk_grid_shape: tuple[int, ...],
        locations: Urls,
        offsets: Any,
        lengths: Any,
        *,
        validate_containers: bool = True,
        arr_offset: tuple[int, ...] | None = None,
        checksum: str | datetime | None = None,
        stamps: Mapping[str, SourceStamp] | None = None,
    ) -> None:
        """Set the references of a block of an array's chunk grid, given as aligned columns.

        Parameters
        ----------
        chunk_grid_shape
            Chunks along each dimension of the block; its product is the length of the columns.
        locations
            URLs in C order; ``""`` leaves that chunk as it is.
        offsets, lengths
            uint64 columns, bytes.
        arr_offset
            Grid position of the block's first chunk; the origin by default.
        checksum
            For all of them, as in `set_virtual_ref`.
        stamps
            URL to what that source looks like now, for exact checks on reading; goes before ``checksum``.

        Raises
        ------
        InvalidInputError, NodeNotFoundError, ReadOnlyError
            As `set_virtual_refs`; also ``invalid-argument`` when the columns' lengths differ.
        """
        self._check_writable()
        path = check_path(array_path)
        entry, info = self._session.changes.nodes.lookup_array(path)
        try:
            grid = tuple(int(size) for size in chunk_grid_shape)
        except (TypeError, ValueError, OverflowError) as error:
            raise InvalidInputError(
                f"chunk_grid_shape={chunk_grid_shape!r} is not a tuple of numbers", ErrorKind.INVALID_ARGUMENT
            ) from error
        columns = as_int64(offsets, "offsets"), as_int64(lengths, "lengths")
        count = 1
        for size in grid:
            count *= size
        if not len(locations) == len(columns[0]) == len(columns[1]) == count:
            raise InvalidInputError(
                f"{len(locations)} locations, {len(columns[0])} offsets and {len(columns[1])} lengths do not fill a"
                f" block of {grid} chunks ({count})",
                ErrorKind.INVALID_ARGUMENT,
            )
        start = tuple(arr_offset) if arr_offset is not None else (0,) * len(grid)
        changes, stamp = self._session.changes, stamp_of(checksum)
        with changes.lock, changes.catalog.stage() as txn:
            self._writer(validate_containers).write_arrays(
                txn, path, entry.node.node_id, info, grid, start, locations, *columns, stamps or {}, stamp
            )

    async def set_virtual_ref_async(self, *args: Any, **kwargs: Any) -> None:
        """See `set_virtual_ref`; it needs no network."""
        self.set_virtual_ref(*args, **kwargs)

    async def set_virtual_refs_async(self, *args: Any, **kwargs: Any) -> None:
        """See `set_virtual_refs`, which runs in a thread."""
        await asyncio.to_thread(self.set_virtual_refs, *args, **kwargs)

    async def set_virtual_refs_arr_async(self, *args: Any, **kwargs: Any) -> None:
        """See `set_virtual_refs_arr`, which runs in a thread."""
        await asyncio.to_thread(self.set_virtual_refs_arr, *args, **kwargs)

    def _writer(self, validate: bool) -> ReferenceWriter:
        return ReferenceWriter(self._session.changes, self._session.access, validate)


def _all(listed: Callable[..., Iterable[str]], *arguments: Any) -> list[str]:
    return [*listed(*arguments)]


def _checked(expansion: Expansion, data: bytes, key: str, window: Window | None) -> bytes:
    """A chunk, or the window of it, that unpacks to no more than its metadata allows."""
    if window is None:
        expansion.check(data, key)
    else:
        expansion.check_part(data, key)
    return data


def _begin(listed: Callable[..., Iterator[str]], *arguments: Any) -> tuple[list[str], Iterator[str]]:
    """The first keys of a listing, and the rest of it: an iterator that failed cannot be asked again."""
    keys = listed(*arguments)
    return _take(keys), keys


def _take(keys: Iterator[str]) -> list[str]:
    return [*islice(keys, KEYS_AT_ONCE)]


def _buffer(prototype: BufferPrototype, data: bytes) -> Buffer:
    return prototype.buffer.from_bytes(data)


def _window(byte_range: ByteRequest, size: int) -> tuple[int, int]:
    """The half-open part of ``size`` bytes that zarr's request means, cut at the end."""
    if isinstance(byte_range, RangeByteRequest) and byte_range.start >= 0:
        return min(byte_range.start, size), min(byte_range.end, size)
    if isinstance(byte_range, OffsetByteRequest) and byte_range.offset >= 0:
        return min(byte_range.offset, size), size
    if isinstance(byte_range, SuffixByteRequest) and byte_range.suffix >= 0:
        return max(0, size - byte_range.suffix), size
    raise InvalidInputError(f"Unexpected byte_range, got {byte_range}.", ErrorKind.INVALID_BYTE_RANGE)


def _value(data: bytes) -> Chunk:
    return Chunk(None, 0, len(data), data)


def _text(key: str, data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"metadata {shown(key)} is not UTF-8: {error}", ErrorKind.BAD_METADATA) from error
