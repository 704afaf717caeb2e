"""`ReferenceSet`: what a reference file says, as Zarr documents and as aligned columns of chunk references.

It is checked in itself: every document describes a group or an array, every other key is a chunk of one of the
arrays, inside its grid. URLs are as the file has them, each kept once; nothing was looked at outside the file.
Every error for values that cannot be used is made here; it lists what is wrong, and says that nothing was written.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from numcodecs.registry import codec_registry, entries

from icelite.budget import MAX_KEY_CHARACTERS
from icelite.errors import ErrorKind, IceliteError, InvalidInputError, shown
from icelite.keys import CONSOLIDATED, DOCUMENTS, ChunkKeys, ancestors, check_path, join
from icelite.metadata import ArrayInfo, array_info, check_document, parse_document

Documents: TypeAlias = dict[str, dict[str, str]]  # by node path, by document name
Ints: TypeAlias = npt.NDArray[np.int64]

GROUP_DOCUMENTS = {
    2: (".zgroup", '{"zarr_format":2}'),
    3: ("zarr.json", '{"zarr_format":3,"node_type":"group","attributes":{}}'),
}

BASE64 = "base64:"
SHOWN = 5  # faults that a message lists
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


# -- values of a reference file: metadata, and inline bytes ------------------------------------------------------------


def malformed(origin: str, problem: str) -> InvalidInputError:
    """The error for something that is no reference file."""
    return InvalidInputError(f"{origin} {problem}", ErrorKind.INVALID_REFERENCES)


def rejected(
    origin: str, faults: Sequence[str], count: int | None = None, kind: ErrorKind = ErrorKind.INVALID_REFERENCES
) -> InvalidInputError:
    """The error for references at fault, of which ``count`` there are in all."""
    total = len(faults) if count is None else count
    listed = "; ".join(faults[:SHOWN])
    more = f"; and {total - SHOWN} more" if total > SHOWN else ""
    return InvalidInputError(f"{origin}: {total} faults, nothing was written: {listed}{more}", kind)


def common_kind(errors: Iterable[IceliteError], otherwise: ErrorKind) -> ErrorKind:
    """The kind of all these errors, or ``otherwise`` when they differ."""
    kinds = {error.kind for error in errors}
    return kinds.pop() if len(kinds) == 1 else otherwise


def inline_bytes(value: object) -> bytes:
    """The bytes that a reference file holds itself: text, ``base64:`` text, or a JSON object.

    Raises
    ------
    ValueError
        For another type, or bad base64.
    """
    if isinstance(value, dict):
        return _json(value).encode()
    if not isinstance(value, str | bytes):
        raise ValueError(f"it is a {type(value).__name__}, not text")
    data = value.encode() if isinstance(value, str) else value
    if not data.startswith(BASE64.encode()):
        return data
    try:
        return base64.b64decode(data[len(BASE64) :], validate=True)
    except binascii.Error as error:
        raise ValueError(f"bad base64: {error}") from error


def _json(value: dict[Any, Any]) -> str:
    try:
        return json.dumps(value)
    except (TypeError, RecursionError) as error:  # of a dict that is not from JSON
        raise ValueError(f"no JSON object: {error}") from error


def inline_text(data: bytes) -> str:
    """Bytes as kerchunk writes them into JSON: as text where they are UTF-8, else in base64."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = BASE64
    return BASE64 + base64.b64encode(data).decode() if text.startswith(BASE64) else text


def inline_raw(data: bytes) -> bytes:
    """Bytes as a row holds them; fsspec decodes those that look like base64."""
    return BASE64.encode() + base64.b64encode(data) if data.startswith(BASE64.encode()) else data


# -- metadata ----------------------------------------------------------------------------------------------------


def array_infos(documents: Documents) -> dict[str, ArrayInfo]:
    """The arrays among nodes, by path."""
    infos = {path: array_info(path, texts) for path, texts in documents.items()}
    return {path: info for path, info in infos.items() if info is not None}


def read_documents(references: Mapping[str, Any], origin: str) -> Documents:
    """The metadata documents among the entries, checked as a hierarchy; groups that nobody described are added."""
    documents: Documents = {}
    names = tuple(DOCUMENTS)
    described = {key: references[key] for key in references if key.endswith(names)}
    for key, value in (_consolidated(references, origin) | described).items():
        path, _, name = key.rpartition("/")
        if name in DOCUMENTS:
            documents.setdefault(path, {})[name] = _document(key, value, origin)
    if not documents:
        raise malformed(origin, "describes no Zarr group or array: it has no .zgroup, .zarray or zarr.json")
    try:
        return _with_parents(documents)
    except IceliteError as error:
        raise InvalidInputError(f"{origin}: {error.message}", error.kind) from error


def _consolidated(references: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """The documents that only Zarr v2's copy of all metadata has; those beside it are the original."""
    if CONSOLIDATED not in references:
        return {}
    content = json.loads(_document(CONSOLIDATED, references[CONSOLIDATED], origin))
    metadata = content.get("metadata") if isinstance(content, dict) else None
    if not isinstance(metadata, dict):
        raise malformed(origin, f"has a {CONSOLIDATED} without 'metadata'")
    return {key: value for key, value in metadata.items() if key not in references}


def _document(key: str, value: Any, origin: str) -> str:
    if isinstance(value, list | tuple):
        raise malformed(
            origin, f"refers for the metadata {shown(key)} to another file, {shown(value)}; put the text in its place"
        )
    try:
        text = inline_bytes(value).decode()
        json.loads(text)
    except (ValueError, RecursionError) as error:
        raise malformed(origin, f"has metadata under {shown(key)} that is not JSON: {error}") from error
    return text


def _with_parents(documents: Documents) -> Documents:
    complete: Documents = {}
    for path, texts in documents.items():
        _check_node(path, texts)
    for path, texts in documents.items():
        format_ = DOCUMENTS[next(iter(texts))]
        for above, _ in ancestors(path) if path else ():
            if above in documents and array_info(above, documents[above]) is not None:
                raise malformed(f"/{path}", f"is inside the array /{above}; an array has no nodes below it")
            complete.setdefault(above, _described(documents.get(above, {}), format_))
        complete[path] = _described(texts, format_)
    return complete


def _described(texts: dict[str, str], format_: int) -> dict[str, str]:
    """A node's documents; those of a group when there is none that says what it is."""
    name, text = GROUP_DOCUMENTS[format_]
    return texts if texts.keys() & {".zarray", ".zgroup", "zarr.json"} else {name: text} | texts


def _check_node(path: str, texts: Mapping[str, str]) -> None:
    if check_path(path) != path:
        raise malformed(f"path {path!r}", "begins or ends with a slash")
    if len({DOCUMENTS[name] for name in texts}) > 1:
        raise malformed(f"/{path}", f"has metadata of Zarr v2 and v3: {', '.join(sorted(texts))}")
    if {".zarray", ".zgroup"} <= texts.keys():
        raise malformed(f"/{path}", "is a group and an array: it has .zgroup and .zarray")
    for name, text in texts.items():
        check_document(path, name, text)


def missing_codecs(documents: Documents) -> Iterator[tuple[str, str]]:
    """Array path and codec id of each codec of a Zarr v2 array that numcodecs does not know."""
    for path, texts in documents.items():
        if ".zarray" in texts:
            content = parse_document(path, texts[".zarray"])
            for codec in (*(content.get("filters") or ()), content.get("compressor")):
                name = _codec_id(codec)
                if name is not None and name not in codec_registry and name not in entries:
                    yield path, name


def _codec_id(codec: Any) -> str | None:
    name = codec.get("id") if isinstance(codec, dict) else None
    return name if isinstance(name, str) else None
