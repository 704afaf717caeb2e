"""Which chunks of a session go into objects, and how they share them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from icelite.objects import TRAILER_BYTES, NoObjects, Objects, pack, trailer
from icelite.types import ChunkType, Location, chunk_position

Name = tuple[int, str]  # node id and grid position


@dataclass(frozen=True, slots=True)
class Native:
    """What `icelite.config.RepositoryConfig` and the catalog say about objects.

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


def _with_trailers(chunks: Iterable[bytes]) -> Iterator[bytes]:
    for data in chunks:
        yield data
        yield trailer(data)
