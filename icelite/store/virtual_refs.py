"""The part of `IceliteStore` that zarr does not know: chunks that are bytes of other files."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from icelite.errors import ErrorKind, InvalidInputError
from icelite.keys import check_path
from icelite.store.references import ReferenceWriter, Urls, as_int64, check_extent, stamp_of
from icelite.types import SourceStamp, VirtualChunkSpec

if TYPE_CHECKING:
    from icelite.session import Session


class VirtualReferences(ABC):
    """Writes virtual references for a store; the names and signatures are Icechunk's."""

    _session: Session

    @abstractmethod
    def _check_writable(self) -> None:
        """Refuse where the store may not be written."""

    @abstractmethod
    def _lookup_chunk(self, key: str) -> tuple[int, str]:
        """The array and position that a chunk key names, for writing."""

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
            changes.set_refs(node_id, [chunk], [location_id], [offset], [length], txn)

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
        entry, info = self._session.changes.lookup_array(path)
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
        entry, info = self._session.changes.lookup_array(path)
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
        self._writer(validate_containers).write_arrays(
            path, entry.node.node_id, info, grid, start, locations, *columns, stamps or {}, stamp_of(checksum)
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
