"""kerchunk's references in Parquet ("lazy references"): a folder with all metadata, and each array's chunks by row.

Row ``i`` of ``<array>/refs.<n>.parq`` is chunk number ``n * record_size + i`` of the array's grid in C order,
with the columns ``path, offset, size, raw``; where neither ``path`` nor ``raw`` is set, there is no chunk. Offset
and size 0 mean the whole file.
"""

from __future__ import annotations

import importlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Self, TypeAlias

import numpy as np

from icelite.budget import unpacked_limit
from icelite.catalog.chunks import as_grid
from icelite.errors import ErrorKind, InvalidInputError, check_open_files, shown
from icelite.kerchunk.references import (
    WHOLE,
    ChunkTable,
    Ints,
    ReferenceSet,
    array_infos,
    check_extents,
    inline_bytes,
    inline_raw,
    malformed,
    read_documents,
    rejected,
)
from icelite.keys import CONSOLIDATED, check_path, join
from icelite.metadata import ArrayInfo

PARQUET_METADATA = CONSOLIDATED
MAX_RECORDS = 100_000  # files that one array's references may become
_RECORD = re.compile(r"refs\.(0|[1-9][0-9]{0,17})\.parq")
_ROW_BYTES = 32  # of memory, for a row of nulls
_MOST = 1 << 62  # chunks of a grid
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
    except (ImportError, OSError) as error:
        check_open_files("pyarrow cannot be loaded")
        raise InvalidInputError(
            "references in Parquet need the package pyarrow: pip install 'icelite[kerchunk]'", ErrorKind.MISSING_PACKAGE
        ) from error


# -- reading --------------------------------------------------------------------------------------------------------


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
    if chunks > _MOST:
        raise malformed(f"/{array}", f"has a grid of {chunks} chunks, whose rows cannot be counted")
    for record, path in sorted(records.items()):
        start = record * record_size
        if record and start >= chunks:
            raise malformed(shown(path), f"begins with chunk {start}, outside the grid {grid}")
        columns, limit = _read_columns(fs, path)
        rows, sources = _sources(columns.get("path"), urls, path)
        raw = _raw(columns.get("raw"), path, limit)
        outside = [start + row for row in (*rows.tolist(), *raw) if row >= record_size or start + row >= chunks]
        if outside:
            raise rejected(shown(path), [f"chunk {number} is outside the grid {grid}" for number in outside])
        rows = rows[~np.isin(rows, list(raw))] if raw else rows  # as fsspec reads it: bytes go before a path
        extents = [_numbers(columns, name, rows, path) for name in ("offset", "size")]
        inline = dict(zip(chunk_names_at(np.array(list(raw), dtype=np.int64) + start, grid), raw.values(), strict=True))
        yield chunk_names_at(rows + start, grid), [sources[rows], *extents], inline


def _read_columns(fs: Any, path: str) -> tuple[Columns, int]:
    """The columns of a file, and how many bytes may come out of it."""
    pa, parquet = pyarrow("pyarrow"), pyarrow("pyarrow.parquet")
    data = fs.cat_file(path)
    limit = unpacked_limit(len(data))
    try:
        metadata = parquet.read_metadata(pa.BufferReader(data))
        groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
        if max(metadata.num_rows * _ROW_BYTES, sum(group.total_byte_size for group in groups)) > limit:
            raise malformed(
                shown(path),
                f"has {len(data)} bytes and {metadata.num_rows} rows, as if it was made to fill memory; write it"
                " again with a smaller record_size",
            )
        leaves = {metadata.schema.column(i).path for i in range(metadata.num_columns)}
        # kept as a dictionary, a text that all rows repeat is there once
        table = parquet.read_table(pa.BufferReader(data), read_dictionary=sorted(leaves & {"path", "raw"}))
    except (pa.ArrowException, OSError) as error:
        raise malformed(shown(path), f"is no Parquet file that can be read: {error}") from error
    columns = {name: table.column(name).combine_chunks() for name in table.column_names}
    if not (columns.keys() >= _REFERENCE_COLUMNS or (columns.keys() & {"path", "raw"}) == {"raw"}):
        raise malformed(shown(path), f"has the columns {sorted(columns)}; expected path, offset, size and raw")
    return columns, limit


def _sources(column: Any, urls: dict[str, int], path: str) -> tuple[Ints, Ints]:
    """The rows that refer to a file, and for every row the index of its URL."""
    if column is None or column.null_count == len(column):
        return np.empty(0, dtype=np.int64), np.full(0 if column is None else len(column), -1, dtype=np.int64)
    known, indices = _encoded(column, path)
    if not all(isinstance(url, str) and url for url in known):
        raise malformed(shown(path), "has a column 'path' that is not URLs")
    rows = np.flatnonzero(indices >= 0)
    used = np.unique(indices[rows]).tolist()
    ids = np.full(len(known) + 1, -1, dtype=np.int64)  # the last is that of a null
    for index in used:
        ids[index] = urls.setdefault(known[index], len(urls))
    return rows, ids[indices]


def _raw(column: Any, path: str, limit: int) -> dict[int, bytes]:
    """Row to bytes, for the chunks that the references hold."""
    if column is None or column.null_count == len(column):
        return {}
    known, indices = _encoded(column, path)
    rows = np.flatnonzero(indices >= 0)
    try:
        values = [inline_bytes(value) for value in known]
    except ValueError as error:
        raise malformed(shown(path), f"has a column 'raw' that is not bytes: {error}") from error
    sizes = np.array([len(value) for value in values], dtype=np.int64)
    if sizes[indices[rows]].sum() > limit:
        raise malformed(shown(path), f"stands for more than {limit} bytes of chunks, as if it was made to fill memory")
    return {row: values[indices[row]] for row in rows.tolist()}


def _encoded(column: Any, path: str) -> tuple[list[Any], Ints]:
    """The values of a column, each once, and for every row the index of its own; -1 for a null."""
    pa = pyarrow("pyarrow")
    try:
        encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
        known = encoded.dictionary.to_pylist()
        return known, encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    except (pa.ArrowException, ValueError) as error:
        raise malformed(shown(path), f"has a column of {column.type}, which is neither text nor bytes") from error


def _numbers(columns: Columns, name: str, rows: Ints, path: str) -> Ints:
    if not len(rows):
        return np.empty(0, dtype=np.int64)
    column = columns[name]
    pa = pyarrow("pyarrow")
    if not pa.types.is_integer(column.type):
        raise malformed(shown(path), f"has a column {name!r} of {column.type}, not integers")
    try:
        values: Ints = column.cast(pa.int64()).fill_null(-1).to_numpy(zero_copy_only=False)[rows]
    except pa.ArrowException as error:
        raise malformed(shown(path), f"has a column {name!r} with a number that is too large") from error
    return values


def chunk_names_at(numbers: Ints, grid: tuple[int, ...]) -> list[str]:
    """The names of the chunks with these numbers, counted in C order."""
    if not grid:
        return [""] * len(numbers)
    columns = [column.tolist() for column in np.unravel_index(numbers, grid)]
    return ["/".join(map(str, position)) for position in zip(*columns, strict=True)]


def record_path(array: str, record: int) -> str:
    """The path of one file of an array's references, below the folder."""
    return join(array, f"refs.{record}.parq")


# -- writing --------------------------------------------------------------------------------------------------------


class ParquetOutput:
    """A folder of references that is being written; as a context manager, which completes it."""

    def __init__(self, path: Path, record_size: int) -> None:
        self._pa, self._parquet = pyarrow("pyarrow"), pyarrow("pyarrow.parquet")
        self._path = path
        self._record_size = record_size
        self._metadata: dict[str, Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            content = {"metadata": self._metadata, "record_size": self._record_size}
            (self._path / PARQUET_METADATA).write_text(json.dumps(content), encoding="utf-8")

    def write_node(self, path: str, documents: Mapping[str, str]) -> None:
        """Write the metadata of a group or array.

        Raises
        ------
        InvalidInputError
            ``invalid-array-metadata`` for what fsspec's lazy layout cannot hold.
        """
        if "zarr.json" in documents:
            raise _unfit(
                path, "is Zarr v3, which references in Parquet cannot be; pass zarr_format=2, or format='json'"
            )
        if ".zarray" in documents and not path:
            raise _unfit(path, "is the root, and references in Parquet need a group around it; pass format='json'")
        for name, text in documents.items():
            content = json.loads(text)
            if name == ".zarray" and "dimension_separator" in content:
                content["dimension_separator"] = "."  # keys are made from rows, always with dots
            self._metadata[join(path, name)] = content

    def write_chunks(self, path: str, info: ArrayInfo, tables: Iterable[ChunkTable], urls: Sequence[str]) -> None:
        """Write the references of an array; ``sources`` of the tables count ``urls``, which may grow meanwhile.

        Raises
        ------
        InvalidInputError
            ``invalid-argument`` when the array would become too many files.
        """
        folder = self._path / check_path(path)
        grid = info.grid or ()
        chunks = math.prod(grid)
        records = -(-chunks // self._record_size)
        if records > MAX_RECORDS:
            raise InvalidInputError(
                f"array /{path} has a grid of {chunks} chunks: {records} files with record_size={self._record_size};"
                f" pass at least {-(-chunks // MAX_RECORDS)}",
                ErrorKind.INVALID_ARGUMENT,
            )
        table = _merged(list(tables))
        numbers = _numbers_of(table.names, grid, path)
        order = np.argsort(numbers)
        inline = dict(zip(_numbers_of(list(table.inline), grid, path).tolist(), table.inline.values(), strict=True))
        inline_numbers = np.array(sorted(inline), dtype=np.int64)
        folder.mkdir(parents=True, exist_ok=True)
        for record in range(records):  # also those without references: fsspec's listings open every one
            bounds = record * self._record_size, min((record + 1) * self._record_size, chunks)
            some = order[slice(*np.searchsorted(numbers, bounds, sorter=order))]
            raw: list[bytes | None] = [None] * (bounds[1] - bounds[0])
            for number in inline_numbers[slice(*np.searchsorted(inline_numbers, bounds))].tolist():
                raw[number - bounds[0]] = inline_raw(inline[number])
            self._write_record(
                self._path / record_path(path, record), table, some, numbers[some] - bounds[0], raw, urls
            )

    def _write_record(
        self, file: Path, table: ChunkTable, some: Ints, rows: Ints, raw: list[bytes | None], urls: Sequence[str]
    ) -> None:
        used, indices = np.unique(table.sources[some], return_inverse=True)
        sources, offsets, sizes = (np.full(len(raw), value, dtype=np.int64) for value in (-1, 0, 0))
        sources[rows], offsets[rows], sizes[rows] = indices, table.offsets[some], table.lengths[some]
        pa = self._pa
        names = pa.array([urls[i] for i in used.tolist()], pa.string())
        columns = {
            "path": names.take(pa.array(sources, mask=sources < 0)),
            "offset": pa.array(offsets),
            "size": pa.array(sizes),
            "raw": pa.array(raw, pa.binary()),
        }
        # without the statistics, fastparquet makes floats of integers, because any might be null
        statistics = ["offset", "size"]
        self._parquet.write_table(pa.table(columns), file, compression="zstd", write_statistics=statistics)


def _merged(tables: list[ChunkTable]) -> ChunkTable:
    empty = np.empty(0, dtype=np.int64)
    return ChunkTable(
        [name for table in tables for name in table.names],
        np.concatenate([empty, *(table.sources for table in tables)]),
        np.concatenate([empty, *(table.offsets for table in tables)]),
        np.concatenate([empty, *(table.lengths for table in tables)]),
        {name: data for table in tables for name, data in table.inline.items()},
    )


def _numbers_of(names: list[str], grid: tuple[int, ...], path: str) -> Ints:
    """The numbers of chunks in a grid, counted in C order; of a chunk outside the grid, which has none, -1."""
    positions = as_grid(names, len(grid), f"array /{path}").astype(np.int64)
    if not grid or not names:
        return np.zeros(len(names), dtype=np.int64)
    inside = (positions < np.array(grid, dtype=np.int64)).all(axis=1)
    numbers = np.full(len(names), -1, dtype=np.int64)
    numbers[inside] = np.ravel_multi_index(tuple(positions[inside].T), grid)
    return numbers


def _unfit(path: str, problem: str) -> InvalidInputError:
    return InvalidInputError(f"array or group /{path} {problem}", ErrorKind.INVALID_ARRAY_METADATA)
