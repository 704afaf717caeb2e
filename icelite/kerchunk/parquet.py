"""kerchunk's references in Parquet ("lazy references"): a folder with all metadata, and each array's chunks by row.

Row ``i`` of ``<array>/refs.<n>.parq`` is the chunk at place ``n * record_size + i`` of the array's grid in C order,
with the columns ``path, offset, size, raw``; where neither ``path`` nor ``raw`` is set, there is no chunk. Offset
and size 0 mean the whole file.
"""

from __future__ import annotations

import importlib
import json
import math
import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np

from icelite.errors import ErrorKind, InvalidInputError
from icelite.kerchunk.documents import array_infos, read_documents
from icelite.kerchunk.faults import malformed, rejected
from icelite.kerchunk.inline import inline_bytes
from icelite.kerchunk.reference_set import WHOLE, ChunkTable, Ints, ReferenceSet, check_extents
from icelite.keys import CONSOLIDATED, join
from icelite.metadata import ArrayInfo

PARQUET_METADATA = CONSOLIDATED
_RECORD = re.compile(r"refs\.(0|[1-9][0-9]{0,17})\.parq")
_REFERENCE_COLUMNS = {"path", "offset", "size"}

Columns: TypeAlias = dict[str, Any]


def pyarrow(module: str) -> ModuleType:
    """A module of pyarrow, which only Parquet needs.

    Raises
    ------
    InvalidInputError
        ``missing-package``.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InvalidInputError(
            "references in Parquet need the package pyarrow: pip install 'icelite[kerchunk]'", ErrorKind.MISSING_PACKAGE
        ) from error


def read_parquet(fs: Any, folder: str, origin: str) -> ReferenceSet:
    """Read a folder of references.

    Parameters
    ----------
    fs
        The fsspec file system that has it.

    Raises
    ------
    InvalidInputError
        ``invalid-references``, ``bad-metadata``; ``missing-package``.
    """
    documents, record_size = _read_metadata(fs, folder, origin)
    found = ReferenceSet(origin, read_documents(documents, origin))
    infos = array_infos(found.documents)
    records: dict[str, dict[int, str]] = {path: {} for path in infos}
    for path in sorted(fs.find(folder)):
        name = path[len(folder) :].lstrip("/")
        array, _, file = name.rpartition("/")
        match = _RECORD.fullmatch(file)
        if match is not None and array in records:
            records[array][int(match[1])] = path
        elif name != PARQUET_METADATA:
            raise malformed(origin, f"has the file {name!r}, which belongs to no array")
    urls: dict[str, int] = {}
    for array, info in infos.items():
        found.arrays[array] = _read_array(fs, array, info, records[array], record_size, urls)
    found.urls = list(urls)
    return found


def _read_metadata(fs: Any, folder: str, origin: str) -> tuple[dict[str, Any], int]:
    try:
        content = json.loads(fs.cat_file(f"{folder}/{PARQUET_METADATA}"))
    except (ValueError, RecursionError) as error:
        raise malformed(origin, f"has a {PARQUET_METADATA} that is not JSON: {error}") from error
    record_size = content.get("record_size") if isinstance(content, dict) else None
    if type(record_size) is not int or record_size < 1 or not isinstance(content.get("metadata"), dict):
        raise malformed(origin, f"has a {PARQUET_METADATA} without 'metadata' and a 'record_size' of at least 1")
    return content["metadata"], record_size


def _read_array(
    fs: Any, array: str, info: ArrayInfo, records: dict[int, str], record_size: int, urls: dict[str, int]
) -> ChunkTable:
    if info.grid is None:
        raise malformed(f"/{array}", "has no regular chunk grid, so the rows of its references say nothing")
    blocks = list(_read_records(fs, array, info, records, record_size, urls))
    inline = {name: data for _, _, more in blocks for name, data in more.items()}
    names = [name for some, _, _ in blocks for name in some]
    sources, offsets, lengths = (
        np.concatenate([np.empty(0, dtype=np.int64), *(columns[i] for _, columns, _ in blocks)]) for i in range(3)
    )
    check_extents(array, names, offsets, lengths)
    lengths[(offsets == 0) & (lengths == 0)] = WHOLE
    return ChunkTable(names, sources, offsets, lengths, inline)


def _read_records(
    fs: Any, array: str, info: ArrayInfo, records: dict[int, str], record_size: int, urls: dict[str, int]
) -> Iterator[tuple[list[str], list[Ints], dict[str, bytes]]]:
    grid = info.grid or ()
    chunks = math.prod(grid)
    for record, path in sorted(records.items()):
        columns = _read_columns(fs, path)
        start = record * record_size
        rows, sources = _sources(columns.get("path"), urls, path)
        raw = _raw(columns.get("raw"), path)
        outside = [start + row for row in (*rows.tolist(), *raw) if row >= record_size or start + row >= chunks]
        if outside:
            raise rejected(repr(path), [f"chunk {place} is outside the grid {grid}" for place in outside])
        rows = rows[~np.isin(rows, list(raw))] if raw else rows  # as fsspec reads it: bytes go before a path
        extents = [_numbers(columns, name, rows, path) for name in ("offset", "size")]
        inline = dict(zip(chunk_names_at(np.array(list(raw), dtype=np.int64) + start, grid), raw.values(), strict=True))
        yield chunk_names_at(rows + start, grid), [sources[rows], *extents], inline


def _read_columns(fs: Any, path: str) -> Columns:
    pa, parquet = pyarrow("pyarrow"), pyarrow("pyarrow.parquet")
    try:
        table = parquet.read_table(pa.BufferReader(fs.cat_file(path)))
    except (pa.ArrowException, OSError) as error:
        raise malformed(repr(path), f"is no Parquet file that can be read: {error}") from error
    columns = {name: table.column(name).combine_chunks() for name in table.column_names}
    if not (columns.keys() >= _REFERENCE_COLUMNS or (columns.keys() & {"path", "raw"}) == {"raw"}):
        raise malformed(repr(path), f"has the columns {sorted(columns)}; expected path, offset, size and raw")
    return columns


def _sources(column: Any, urls: dict[str, int], path: str) -> tuple[Ints, Ints]:
    """The rows that refer to a file, and for every row the index of its URL."""
    pa = pyarrow("pyarrow")
    if column is None or pa.types.is_null(column.type):
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    known = encoded.dictionary.to_pylist()
    if not all(isinstance(url, str) and url for url in known):
        raise malformed(repr(path), "has a column 'path' that is not URLs")
    indices = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    rows = np.flatnonzero(indices >= 0)
    used = np.unique(indices[rows]).tolist()
    ids = np.full(len(known) + 1, -1, dtype=np.int64)  # the last is that of a null
    for index in used:
        ids[index] = urls.setdefault(known[index], len(urls))
    return rows, ids[indices]


def _raw(column: Any, path: str) -> dict[int, bytes]:
    """Row to bytes, for the chunks that the references hold."""
    if column is None or column.null_count == len(column):
        return {}
    rows = np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False))
    try:
        return {row: inline_bytes(column[row].as_py()) for row in rows.tolist()}
    except (TypeError, ValueError) as error:
        raise malformed(repr(path), f"has a column 'raw' that is not bytes: {error}") from error


def _numbers(columns: Columns, name: str, rows: Ints, path: str) -> Ints:
    if not len(rows):
        return np.empty(0, dtype=np.int64)
    column = columns[name]
    pa = pyarrow("pyarrow")
    if not pa.types.is_integer(column.type):
        raise malformed(repr(path), f"has a column {name!r} of {column.type}, not integers")
    values: Ints = column.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)[rows]
    return values


def chunk_names_at(places: Ints, grid: tuple[int, ...]) -> list[str]:
    """The names of the chunks at places of a grid counted in C order."""
    if not grid:
        return [""] * len(places)
    columns = [column.tolist() for column in np.unravel_index(places, grid)]
    return ["/".join(map(str, position)) for position in zip(*columns, strict=True)]


def record_path(array: str, record: int) -> str:
    """The path of one file of an array's references, below the folder."""
    return join(array, f"refs.{record}.parq")
