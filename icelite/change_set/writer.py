"""Where the bytes of chunks go: into objects, which small ones share, or into the catalog; apart from references."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from icelite.catalog.chunks import check_size, insert_payload
from icelite.catalog.database import Catalog
from icelite.catalog.locations import INLINE
from icelite.catalog.operations import now
from icelite.catalog.settings import check_online
from icelite.objects import TRAILER_BYTES, NoObjects, Objects, pack, trailer
from icelite.types import Chunk, ChunkType, Location, chunk_position

Name = tuple[int, str]  # node id and grid position


@dataclass(frozen=True, slots=True)
class ObjectWriter:
    """Writes chunks into objects, as `icelite.config.RepositoryConfig` and the catalog say.

    Attributes
    ----------
    threshold
        Chunks up to this many bytes stay in the catalog; -1: none.
    target
        Bytes of an object that smaller chunks share.
    """

    objects: Objects | NoObjects = field(default_factory=NoObjects)
    threshold: int = 0
    target: int = 0

    def takes(self, size: int) -> bool:
        """Whether a chunk of ``size`` bytes goes into an object."""
        return self.objects.root is not None and size > self.threshold

    def put(self, chunks: Mapping[Name, bytes]) -> Iterator[tuple[Name, tuple[Location, int, int]]]:
        """Write chunks into objects, neighbours together; where each of them is: location, offset and length in bytes.

        Raises
        ------
        StorageError, InvalidInputError
            As `icelite.objects.Objects.put`; nothing refers to what was written.
        """
        ordered = sorted(chunks.items(), key=lambda item: (item[0][0], chunk_position(item[0][1])))
        groups = list(pack(ordered, self.target))
        keys = self.objects.put([b"".join(_with_trailers(data for _, data in group)) for group in groups])
        return self._places(keys, groups)

    def _places(
        self, keys: list[str], groups: list[list[tuple[Name, bytes]]]
    ) -> Iterator[tuple[Name, tuple[Location, int, int]]]:
        for key, group in zip(keys, groups, strict=True):
            size = sum(len(data) + TRAILER_BYTES for _, data in group)
            location = Location(ChunkType.native, key, None, size, None, None)
            offset = 0
            for name, data in group:
                yield name, (location, offset, len(data))
                offset += len(data) + TRAILER_BYTES


def write_bytes(catalog: Catalog, writer: ObjectWriter, node_id: int, chunks: Mapping[str, bytes]) -> dict[str, Chunk]:
    """Put chunks of an array where the repository's bytes go, durably; nothing refers to them yet.

    Returns
    -------
    dict
        Where the bytes of each grid position are, also for the change set of another process.

    Raises
    ------
    StorageError, InvalidInputError, ReadOnlyError
        As `icelite.objects.Objects.put` and `Catalog.write`; ``chunk-too-large``.
    """
    # A write to a catalog in a bucket sends the whole of it: there, all bytes of workers go into objects.
    every = catalog.storage.address is not None and writer.objects.root is not None
    large = {(node_id, chunk): data for chunk, data in chunks.items() if every or writer.takes(len(data))}
    small = {chunk: data for chunk, data in chunks.items() if (node_id, chunk) not in large}
    written: dict[str, Chunk] = {}
    if large:
        written.update((name[1], Chunk(*extent)) for name, extent in writer.put(large))
    if small:
        for chunk, data in small.items():
            check_size(len(data), chunk)
        written_at = now()
        with catalog.write() as txn:
            check_online(txn)
            for chunk, data in small.items():
                written[chunk] = Chunk(INLINE, insert_payload(txn, data, written_at), len(data))
    return written


def _with_trailers(chunks: Iterable[bytes]) -> Iterator[bytes]:
    for data in chunks:
        yield data
        yield trailer(data)
