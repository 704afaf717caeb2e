"""`ReferenceSet`: what a reference file says, as Zarr documents and as aligned columns of chunk references.

It is checked in itself: every document describes a group or an array, every other key is a chunk of one of the
arrays, inside its grid. URLs are as the file has them, each kept once; nothing was looked at outside the file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from icelite.budget import MAX_KEY_CHARACTERS
from icelite.errors import InvalidInputError, shown
from icelite.kerchunk.documents import (
    Documents,
    array_infos,
    inline_bytes,
    malformed,
    read_documents,
    rejected,
)
from icelite.keys import CONSOLIDATED, DOCUMENTS, ChunkKeys, ancestors, join
from icelite.metadata import ArrayInfo

Ints: TypeAlias = npt.NDArray[np.int64]

WHOLE = -1  # the length of a reference to a whole file
_METADATA = {*DOCUMENTS, CONSOLIDATED}
_MOST = np.iinfo(np.int64).max


@dataclass(slots=True)
class ChunkTable:
    """The chunks of one array.

    Attributes
    ----------
    names
        Grid positions of the virtual chunks, such as ``12/0``.
    sources
        Of each, the index of its file in `ReferenceSet.urls`.
    offsets, lengths
        Bytes; the length `WHOLE` means all of the file.
    inline
        Grid position to bytes, for the chunks that the references hold.
    """

    names: list[str]
    sources: Ints
    offsets: Ints
    lengths: Ints
    inline: dict[str, bytes]


@dataclass(slots=True)
class ReferenceSet:
    """A hierarchy whose chunks are bytes of other files.

    Attributes
    ----------
    origin
        Where it was read from, for messages.
    documents
        Metadata text by node path and document name, in the order of the file, parents first.
    arrays
        Chunks by array path.
    urls
        What the chunks refer to.
    """

    origin: str
    documents: Documents
    arrays: dict[str, ChunkTable] = field(default_factory=dict)
    urls: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        """The number of chunks."""
        return sum(len(table.names) + len(table.inline) for table in self.arrays.values())


@dataclass(slots=True)
class _Rows:
    """The chunk keys of one array as they stand in the file, behind the array's path."""

    names: list[str] = field(default_factory=list)
    ranges: list[tuple[Any, Any, Any]] = field(default_factory=list)
    whole: list[int] = field(default_factory=list)
    inline_names: list[str] = field(default_factory=list)
    inline: list[Any] = field(default_factory=list)


def collect_references(references: Mapping[str, Any], origin: str, expand: Callable[[str], str]) -> ReferenceSet:
    """Sort the entries of a reference file by node.

    Parameters
    ----------
    references
        Key to text, bytes, a JSON object, ``[url]`` or ``[url, offset, length]``.
    expand
        Replaces the templates in a URL.

    Raises
    ------
    InvalidInputError
        ``invalid-references``, ``bad-metadata``, ``invalid-path``; the message lists the entries at fault.
    """
    if set(map(type, references)) - {str}:
        raise malformed(origin, "has keys that are not text")
    found = ReferenceSet(origin, read_documents(references, origin))
    infos = array_infos(found.documents)
    rows: dict[str, _Rows] = {path: _Rows() for path in infos}
    faults = _distribute(references, rows)
    if faults:
        raise rejected(origin, faults)
    urls: dict[str, int] = {}
    for path, info in infos.items():
        try:
            found.arrays[path] = _tabulate(path, info, rows.pop(path), urls)
        except InvalidInputError as error:
            raise InvalidInputError(f"{origin}: {error.message}", error.kind) from error
    found.urls = _expand_all(list(urls), expand, origin)
    return found


# -- chunks ------------------------------------------------------------------------------------------------------


def _distribute(references: Mapping[str, Any], rows: Mapping[str, _Rows]) -> list[str]:
    """Give each chunk key to its array; what is wrong with those that cannot be given. A million keys come by here."""
    faults: list[str] = []
    arrays: dict[str, tuple[_Rows, str] | None] = {}
    for key, value in references.items():
        directory, _, name = key.rpartition("/")
        if name in _METADATA:
            continue
        if directory not in arrays:
            arrays[directory] = _find_array(directory, rows) if len(key) <= MAX_KEY_CHARACTERS else None
        array = arrays[directory]
        if array is None:
            faults.append(f"key {shown(key)} belongs to no array")
            continue
        mine, prefix = array
        if type(value) is list or type(value) is tuple:
            if len(value) == 3:
                mine.names.append(prefix + name)
                mine.ranges.append(value)  # type: ignore[arg-type]
            elif len(value) == 1:
                mine.whole.append(len(mine.names))
                mine.names.append(prefix + name)
                mine.ranges.append((value[0], 0, 0))
            else:
                faults.append(f"{shown(key)} has {len(value)} parts; expected [url] or [url, offset, length]")
        elif isinstance(value, str | bytes | dict):
            mine.inline_names.append(prefix + name)
            mine.inline.append(value)
        else:
            faults.append(f"{shown(key)} is {shown(value)}; expected text or a list")
    return faults


def _find_array(directory: str, rows: Mapping[str, _Rows]) -> tuple[_Rows, str] | None:
    """The array that keys in a directory belong to, and what they have between its path and their last segment."""
    if directory in rows:
        return rows[directory], ""
    for path, rest in ancestors(directory) if directory else ():
        if path in rows:
            return rows[path], rest + "/"
    return None


def _tabulate(path: str, info: ArrayInfo, rows: _Rows, urls: dict[str, int]) -> ChunkTable:
    names = chunk_names(path, info, rows.names)
    inline_names = chunk_names(path, info, rows.inline_names)
    locations, offsets, lengths = zip(*rows.ranges, strict=True) if rows.ranges else ((), (), ())
    columns = [_integers(path, what, values, names) for what, values in (("offset", offsets), ("length", lengths))]
    check_extents(path, names, *columns)
    columns[1][rows.whole] = WHOLE
    unusable = [url for url in locations if not isinstance(url, str) or not url]
    if unusable:
        raise rejected(f"/{path}", [f"{shown(url)} is no URL" for url in unusable])
    for url in dict.fromkeys(locations):
        urls.setdefault(url, len(urls))
    sources = np.fromiter(map(urls.__getitem__, locations), dtype=np.int64, count=len(names))
    inline = zip(
        inline_names, (_decode(path, n, v) for n, v in zip(inline_names, rows.inline, strict=True)), strict=True
    )
    return ChunkTable(names, sources, columns[0], columns[1], dict(inline))


def _integers(path: str, what: str, values: Iterable[Any], names: list[str]) -> Ints:
    values = list(values)
    if set(map(type, values)) <= {int}:
        try:
            return np.array(values, dtype=np.int64)
        except OverflowError:
            pass
    bad = [
        f"{shown(name)}: {what} {shown(value)} is no integer of bytes"
        for name, value in zip(names, values, strict=True)
        if not isinstance(value, int | np.integer) or isinstance(value, bool) or not -_MOST <= value <= _MOST
    ]
    if bad:
        raise rejected(f"/{path}", bad)
    return np.array(values, dtype=np.int64)


def check_extents(path: str, names: list[str], offsets: Ints, lengths: Ints) -> None:
    """Refuse extents that cannot be; raises ``invalid-references``."""
    bad = np.flatnonzero((offsets < 0) | (lengths < 0) | (offsets > _MOST - np.maximum(lengths, 0)))
    if len(bad):
        raise rejected(f"/{path}", [f"{names[i]!r}: offset {offsets[i]}, length {lengths[i]}" for i in bad.tolist()])


def chunk_names(path: str, info: ArrayInfo, suffixes: list[str]) -> list[str]:
    """The grid positions that chunk keys name, given behind the array's path.

    Raises
    ------
    InvalidInputError
        ``invalid-references`` for a suffix that is no chunk's of the array, or outside its grid.
    """
    names = _decode_all(info.keys, suffixes)
    bad = (
        [shown(join(path, s)) for s, name in zip(suffixes, names, strict=True) if name is None] if None in names else []
    )
    if bad:
        raise rejected(f"/{path}", [f"key {key} is no chunk key of {info.keys.ndim} dimensions" for key in bad])
    known = [name for name in names if name is not None]
    if known and info.grid:
        outside = np.flatnonzero((positions(known, len(info.grid)) >= info.grid).any(axis=1))
        if len(outside):
            faults = [f"chunk {known[i]!r} is outside the grid {info.grid}" for i in outside.tolist()]
            raise rejected(f"/{path}", faults)
    return known


def _decode_all(keys: ChunkKeys, suffixes: list[str]) -> list[str | None]:
    """`ChunkKeys.decode` of each; all at once, at a fraction of the cost, where none is wrong."""
    head = keys.prefix + keys.separator if keys.prefix else ""
    line = re.escape(head) + re.escape(keys.separator).join(["(?:0|[1-9][0-9]*+)"] * keys.ndim)
    text = "\n".join(suffixes)
    if keys.ndim and text.count("\n") == len(suffixes) - 1 and re.fullmatch(f"(?:{line}\n)*+{line}", text):
        bare = text if not head else "\n".join(suffix[len(head) :] for suffix in suffixes)
        return list(bare.replace(keys.separator, "/").split("\n"))
    return [keys.decode(suffix) for suffix in suffixes]


def positions(names: list[str], ndim: int) -> Ints:
    """Grid positions as numbers, n x dimensions."""
    numbers: Ints = np.fromstring("/".join(names), dtype=np.int64, sep="/")
    return numbers.reshape(len(names), ndim)


def _decode(path: str, name: str, value: Any) -> bytes:
    try:
        return inline_bytes(value)
    except ValueError as error:
        raise malformed(f"/{path}", f"has data for the chunk {shown(name)} that cannot be decoded: {error}") from error


def _expand_all(urls: list[str], expand: Callable[[str], str], origin: str) -> list[str]:
    """The URLs with their templates replaced; several may become the same, which costs nothing."""
    expanded = [expand(url) if "{{" in url else url for url in urls]
    empty = [url for url, text in zip(urls, expanded, strict=True) if not text]
    if empty:
        raise rejected(origin, [f"{shown(url)} stands for no URL" for url in empty])
    return expanded
