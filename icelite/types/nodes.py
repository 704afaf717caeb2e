"""Groups, arrays and chunks as values: what changed about them, and where the bytes of chunks are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from enum import IntEnum
from typing import NamedTuple

from icelite.errors import redact

SHOWN = 10  # chunks of one array that a printed Diff lists


class NodeChange(IntEnum):
    """The ways a snapshot can change a node, its chunks apart; the numbers of ``change.node_change``."""

    none = 0
    created = 1
    updated = 2
    deleted = 3
    moved = 4


@dataclass(frozen=True, slots=True)
class Node:
    """A group or an array as one snapshot (or session) sees it.

    Attributes
    ----------
    documents
        Metadata file name to its text as written: ``zarr.json``, or ``.zarray``, ``.zgroup``, ``.zattrs``.
    """

    path: str
    node_id: int
    zarr_format: int
    documents: Mapping[str, str]


@dataclass(frozen=True, slots=True, repr=False)
class Diff:
    """The changes between two states; paths start with ``/``."""

    new_groups: set[str] = field(default_factory=set)
    new_arrays: set[str] = field(default_factory=set)
    deleted_groups: set[str] = field(default_factory=set)
    deleted_arrays: set[str] = field(default_factory=set)
    updated_groups: set[str] = field(default_factory=set)
    updated_arrays: set[str] = field(default_factory=set)
    updated_chunks: dict[str, list[list[int]]] = field(default_factory=dict)
    moved_nodes: list[tuple[str, str]] = field(default_factory=list)

    def is_empty(self) -> bool:
        """Whether nothing changed."""
        return not any(getattr(self, name) for name in self.__dataclass_fields__)

    def __repr__(self) -> str:
        """A heading for each kind of change there is, and below it what changed, sorted."""
        lines = ["<icelite.Diff>" if not self.is_empty() else "<icelite.Diff> nothing changed"]
        for name in self.__dataclass_fields__:
            changed = getattr(self, name)
            if changed:
                lines += [name.replace("_", " ") + ":", *("    " + line for line in _lines(changed))]
        return "\n".join(lines)


def _lines(changed: set[str] | dict[str, list[list[int]]] | list[tuple[str, str]]) -> list[str]:
    if isinstance(changed, set):
        return [_printable(path) for path in sorted(changed)]
    if isinstance(changed, list):
        return [f"{_printable(old)} -> {_printable(new)}" for old, new in changed]
    lines = []
    for path, chunks in sorted(changed.items()):
        more = f" and {len(chunks) - SHOWN} more" if len(chunks) > SHOWN else ""
        lines.append(f"{_printable(path)}: {' '.join(map(str, chunks[:SHOWN]))}{more}")
    return lines


def _printable(path: str) -> str:
    return path if path.isprintable() else repr(path)


# -- chunks ------------------------------------------------------------------------------------------------------------


class ChunkType(IntEnum):
    """The kinds of location of a chunk's bytes; numbers as in Icechunk and in ``location.kind``."""

    uninitialized = 0
    native = 1
    virtual = 2
    inline = 3


@dataclass(frozen=True, slots=True)
class Location:
    """One file or object that holds chunks: a row of ``location`` without its id.

    Attributes
    ----------
    path
        An absolute URL, kept verbatim; or, with a ``container``, the path behind its prefix; or,
        without a scheme, a path relative to the catalog's directory.
    container
        Name of the container that a ``vcc://name/path`` reference names, else None.
    size
        Bytes of the whole source when it was referenced; None when not recorded.
    etag
        The source's ETag when it was referenced, without quotes; None when not recorded.
    modified_at
        The source's modification time in nanoseconds since the epoch, UTC; None when not recorded.
    """

    kind: ChunkType
    path: str
    container: str | None = None
    size: int | None = None
    etag: str | None = None
    modified_at: int | None = None

    def __repr__(self) -> str:
        return _shown(self)


@dataclass(frozen=True, slots=True)
class SourceStamp:
    """The look of a source file when it was referenced; see `Location` for the units."""

    size: int | None = None
    etag: str | None = None
    modified_at: int | None = None


class Chunk(NamedTuple):
    """The location of one chunk's bytes, ``length`` of them from ``offset`` of a location; or the bytes themselves.

    Attributes
    ----------
    location
        The number of a location of the catalog, of which `icelite.catalog.locations.INLINE` is the payload table and
        ``offset`` then a payload's id; a `Location` that no commit has numbered yet; None for bytes not yet written.
    data
        The bytes, where they came with the rest; those of an inline chunk are checked against their CRC.
    """

    location: int | Location | None
    offset: int
    length: int
    data: bytes | None = None


@dataclass(frozen=True, slots=True)
class VirtualChunkSpec:
    """One reference for `IceliteStore.set_virtual_refs`, as Icechunk's class of the same name.

    Attributes
    ----------
    index
        Grid position of the chunk.
    offset, length
        Bytes: the chunk is ``[offset, offset + length)`` of ``location``.
    etag_checksum, last_updated_at_checksum
        The source must still have this ETag, or must not have been modified after this time.
    """

    index: list[int]
    location: str
    offset: int
    length: int
    etag_checksum: str | None = None
    last_updated_at_checksum: datetime | None = None

    def __repr__(self) -> str:
        return _shown(self)


def _shown(value: Location | VirtualChunkSpec) -> str:
    """A dataclass's repr, with the signatures of URLs cut out."""
    pairs = (f"{field.name}={getattr(value, field.name)!r}" for field in fields(value))
    return redact(f"{type(value).__name__}({', '.join(pairs)})")


def chunk_name(position: Iterable[int]) -> str:
    """The name of the chunk at a grid position: ``[12, 0]`` to ``"12/0"``."""
    return "/".join(map(str, position))


def chunk_position(chunk: str) -> list[int]:
    """The grid position that a chunk's name says: ``"12/0"`` to ``[12, 0]``."""
    return [int(index) for index in chunk.split("/")] if chunk else []
