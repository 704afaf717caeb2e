"""Zarr keys: which key names a metadata document, which a chunk, and back. Pure text, no I/O.

Rules: the Zarr v3 core specification, sections "Node names" and "Chunk key encoding", and the Zarr v2
specification, "Storage". Inside icelite a chunk is named by its grid position joined with slashes, ``12/0/3``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from icelite.budget import MAX_PATH_CHARACTERS, MAX_SEGMENTS
from icelite.errors import ErrorKind, InvalidInputError, shown

DOCUMENTS = {"zarr.json": 3, ".zarray": 2, ".zgroup": 2, ".zattrs": 2}
CONSOLIDATED = ".zmetadata"  # Zarr v2's copy of all metadata: never stored, since it could go stale
_RESERVED = frozenset({*DOCUMENTS, CONSOLIDATED})
_BLANK = re.compile(r"(?:^|/)[. ]*(?:/|$)")  # a segment of nothing but dots and spaces
_POSITION = re.compile(r"(?:0|[1-9][0-9]*)(?:[/.](?:0|[1-9][0-9]*))*")


@lru_cache
def _position_pattern(ndim: int, separator: str) -> re.Pattern[str]:
    number = "(?:0|[1-9][0-9]*)"
    return re.compile(re.escape(separator).join([number] * ndim))


@dataclass(frozen=True, slots=True)
class ChunkKeys:
    """How one array writes its chunk keys: the part of a key behind the array's path and a slash.

    Attributes
    ----------
    prefix
        ``"c"`` for the encoding ``default`` of Zarr v3, ``""`` for ``v2`` and for Zarr v2 itself.
    separator
        ``"/"`` or ``"."``.
    ndim
        Dimensions of the array.
    """

    prefix: str
    separator: str
    ndim: int

    def encode(self, chunk: str) -> str:
        """The key of the chunk at a grid position: ``12/0`` to ``c/12/0`` or ``12.0``."""
        if self.ndim == 0:
            return self.prefix or "0"
        text = chunk if self.separator == "/" else chunk.replace("/", self.separator)
        return f"{self.prefix}{self.separator}{text}" if self.prefix else text

    def decode(self, suffix: str) -> str | None:
        """The grid position that a key names, or None when it is not one of this array's chunk keys."""
        if self.ndim == 0:
            return "" if suffix == (self.prefix or "0") else None
        if self.prefix:
            head = self.prefix + self.separator
            if not suffix.startswith(head):
                return None
            suffix = suffix[len(head) :]
        if _position_pattern(self.ndim, self.separator).fullmatch(suffix) is None:
            return None
        return suffix if self.separator == "/" else suffix.replace(self.separator, "/")

    def same_names(self, other: ChunkKeys) -> bool:
        """Whether both name every chunk alike."""
        chunk = "/".join("0" * self.ndim)
        return self.ndim == other.ndim and self.encode(chunk) == other.encode(chunk)


def join(path: str, name: str) -> str:
    """A key or path below ``path``; the root is ``""``."""
    return f"{path}/{name}" if path else name


def split_document_key(key: str) -> tuple[str, str] | None:
    """Node path and document name of a metadata key such as ``a/b/zarr.json``; None for any other key."""
    path, _, name = key.rpartition("/")
    return (path, name) if name in DOCUMENTS else None


def ancestors(key: str) -> Iterator[tuple[str, str]]:
    """Every way to split a key into a path that a node can have and a rest, shortest path first."""
    yield "", key
    position = key.find("/")
    while 0 <= position <= MAX_PATH_CHARACTERS:
        yield key[:position], key[position + 1 :]
        position = key.find("/", position + 1)


def could_be_chunk(key: str) -> bool:
    """Whether some array, somewhere, could have a chunk under this key."""
    parts = key.split("/")
    while parts and _POSITION.fullmatch(parts[-1]):
        parts.pop()
    return len(parts) < key.count("/") + 1 or parts[-1] == "c" or _is_dotted_chunk(parts[-1])


def _is_dotted_chunk(name: str) -> bool:
    return name.startswith("c.") and _POSITION.fullmatch(name[2:]) is not None


def find_path_fault(path: object) -> str | None:
    """The reason why a node cannot have this path, without slashes at its ends; None where it can.

    Names are not paths of a file system, but exports make such of them: so none may mean another place there, on
    whatever system, and none may be mistaken for a metadata document.
    """
    if not isinstance(path, str):
        return f"is a {type(path).__name__}, not a text"
    if len(path) > MAX_PATH_CHARACTERS:
        return f"has {len(path)} characters, at most {MAX_PATH_CHARACTERS} are allowed"
    if not path:
        return None
    segments = path.split("/")
    if len(segments) > MAX_SEGMENTS:
        return f"has {len(segments)} segments, at most {MAX_SEGMENTS} are allowed"
    if path.isprintable() and "\\" not in path and _RESERVED.isdisjoint(segments) and not _BLANK.search(path):
        return None
    segment = next(name for name in segments if _find_segment_fault(name))
    return f"has the segment {segment!r}, which {_find_segment_fault(segment)}"


def _find_segment_fault(segment: str) -> str | None:
    if not segment.strip(". "):
        return "is empty, or nothing but dots and spaces"
    if not segment.isprintable():
        return "has control characters, or others that cannot be printed"
    if "\\" in segment:
        return "has a backslash, which zarr reads as '/'"
    return "is the name of a metadata document" if segment in _RESERVED else None


def check_path(path: object) -> str:
    """A node path without slashes at its ends, checked.

    Raises
    ------
    InvalidInputError
        ``invalid-path`` when it is too long, or a segment is empty, only dots, the name of a metadata document, or has
        a backslash or control characters.
    """
    bare = path.strip("/") if isinstance(path, str) else path
    fault = find_path_fault(bare)
    if fault is not None:
        raise InvalidInputError(f"path {shown(path)} {fault}; segments are names", ErrorKind.INVALID_PATH)
    return str(bare)


def invalid_key(key: str, reason: str) -> InvalidInputError:
    """The error for a key that is not Zarr's."""
    return InvalidInputError(
        f"key {shown(key)} {reason}; icelite holds Zarr hierarchies only: metadata documents"
        f" ({', '.join(DOCUMENTS)}) and chunks of existing arrays",
        ErrorKind.INVALID_KEY,
    )
