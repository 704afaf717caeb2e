"""The two forms of a kerchunk reference file, written array by array, and the place where they appear when complete."""

from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import fsspec
import numpy as np

from icelite import drafts
from icelite.catalog.positions import as_grid
from icelite.errors import (
    AlreadyExistsError,
    ErrorKind,
    IceliteError,
    InvalidInputError,
    StorageError,
    client_errors,
    disk_kind,
    has_secret,
)
from icelite.kerchunk.documents import inline_raw, inline_text
from icelite.kerchunk.parquet import PARQUET_METADATA, pyarrow, record_path
from icelite.kerchunk.reference_set import ChunkTable, Ints
from icelite.keys import check_path, join
from icelite.metadata import ArrayInfo

MAX_RECORDS = 100_000  # files that one array's references may become


@contextlib.contextmanager
def replacing(
    target: str | os.PathLike[str], *, folder: bool, overwrite: bool, storage_options: Mapping[str, Any] | None
) -> Iterator[Path]:
    """Yield the path under which to write what becomes the target when the block ends without an error.

    Parameters
    ----------
    folder
        Whether a folder of references is written, or one file.
    overwrite
        Replace what is there: a file, or a folder of references; never a folder of anything else.

    Raises
    ------
    AlreadyExistsError, StorageError
        ``target-already-exists``; ``io``, ``storage-full``.
    """
    text = os.fspath(target)
    try:
        if "://" in text and not text.startswith("file://"):
            with _uploading(text, folder, overwrite, storage_options or {}) as path:
                yield path
        else:
            path = Path(os.path.abspath(os.path.expanduser(text.removeprefix("file://"))))
            with drafts.draft(path, partial(_check_path, path, folder, overwrite), replace=overwrite) as place:
                if folder:
                    place.mkdir()
                yield place
    except IceliteError:  # some are OSErrors too
        raise
    except client_errors(ValueError, ImportError) as error:  # the last two are fsspec's
        reason = getattr(error, "strerror", None) or error
        failure = StorageError(f"{text!r} cannot be written: {reason}", disk_kind(error))
        cause = None if has_secret(text) else error
    else:
        return
    raise failure from cause  # out here, an exception that tells the URL is not the context of this one


def _check_path(path: Path, folder: bool, overwrite: bool) -> None:
    replaceable = (path / PARQUET_METADATA).is_file() if folder else path.is_file()
    _check_free(str(path), os.path.lexists(path), replaceable, overwrite)


def _check_free(target: str, exists: bool, replaceable: bool, overwrite: bool) -> None:
    if exists and not overwrite:
        raise AlreadyExistsError(
            f"{target!r} is there already; choose another name, or pass overwrite=True", ErrorKind.TARGET_ALREADY_EXISTS
        )
    if exists and not replaceable:
        raise AlreadyExistsError(
            f"{target!r} is there already and is not such a set of references, so it is not replaced",
            ErrorKind.TARGET_ALREADY_EXISTS,
        )


@contextlib.contextmanager
def _uploading(target: str, folder: bool, overwrite: bool, storage_options: Mapping[str, Any]) -> Iterator[Path]:
    fs, name = fsspec.core.url_to_fs(target.rstrip("/"), **storage_options)
    metadata = f"{name}/{PARQUET_METADATA}"
    _check_free(target, fs.exists(name), fs.exists(metadata) if folder else fs.isfile(name), overwrite)
    with tempfile.TemporaryDirectory(prefix="icelite-") as place:
        path = Path(place, Path(name).name)
        if folder:
            path.mkdir()
        yield path
        if not folder:
            fs.put_file(str(path), name)
            return
        if fs.exists(name):
            fs.rm(name, recursive=True)
        _upload_folder(fs, path, name)


def _upload_folder(fs: Any, path: Path, name: str) -> None:
    """Upload the files of a folder, or after a failure none: what others put there meanwhile stays."""
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.name != PARQUET_METADATA)
    done: list[str] = []
    try:
        for file in [*files, path / PARQUET_METADATA]:  # no reader takes the folder for one without the last
            done.append(f"{name}/{file.relative_to(path).as_posix()}")
            fs.put_file(str(file), done[-1])
    except BaseException:
        for uploaded in done:
            with contextlib.suppress(FileNotFoundError):
                fs.rm_file(uploaded)
        raise


class Output(ABC):
    """A reference file that is being written; as a context manager, which completes it."""

    def __enter__(self) -> Self:
        return self

    @abstractmethod
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Complete the file, unless something failed."""

    @abstractmethod
    def write_node(self, path: str, documents: Mapping[str, str]) -> None:
        """Write the metadata of a group or array."""

    @abstractmethod
    def write_chunks(self, path: str, info: ArrayInfo, tables: Iterable[ChunkTable], urls: Sequence[str]) -> None:
        """Write the references of an array; ``sources`` of the tables count ``urls``, which may grow meanwhile."""


class JsonOutput(Output):
    """One JSON file of kerchunk's version 1, compressed as ``name`` says."""

    def __init__(self, path: Path, name: str) -> None:
        compression = fsspec.utils.infer_compression(name)
        self._open = fsspec.open(str(path), "wt", compression=compression, encoding="utf-8")
        self._separator = "\n"

    def __enter__(self) -> Self:
        self._stream = self._open.open()
        self._stream.write('{"version": 1, "refs": {')
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self._stream.write("\n}}\n")
        self._open.close()

    def write_node(self, path: str, documents: Mapping[str, str]) -> None:
        """See `Output.write_node`."""
        self._write([f"{json.dumps(join(path, name))}: {json.dumps(text)}" for name, text in documents.items()])

    def write_chunks(self, path: str, info: ArrayInfo, tables: Iterable[ChunkTable], urls: Sequence[str]) -> None:
        """See `Output.write_chunks`."""
        head = json.dumps(join(path, ""))[:-1]
        encode = info.keys.encode
        quoted: dict[int, str] = {}
        for table in tables:
            quoted.update({i: json.dumps(urls[i]) for i in set(table.sources.tolist()) - quoted.keys()})
            columns = table.sources.tolist(), table.offsets.tolist(), table.lengths.tolist()
            self._write(
                [
                    f'{head}{encode(name)}": [{quoted[source]}, {offset}, {length}]'
                    for name, source, offset, length in zip(table.names, *columns, strict=True)
                ]
            )
            self._write(
                [f'{head}{encode(name)}": {json.dumps(inline_text(data))}' for name, data in table.inline.items()]
            )

    def _write(self, entries: list[str]) -> None:
        if entries:
            self._stream.write(self._separator + ",\n".join(entries))
            self._separator = ",\n"


class ParquetOutput(Output):
    """A folder in fsspec's lazy layout; see `icelite.kerchunk.parquet`."""

    def __init__(self, path: Path, record_size: int) -> None:
        self._pa, self._parquet = pyarrow("pyarrow"), pyarrow("pyarrow.parquet")
        self._path = path
        self._record_size = record_size
        self._metadata: dict[str, Any] = {}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            content = {"metadata": self._metadata, "record_size": self._record_size}
            (self._path / PARQUET_METADATA).write_text(json.dumps(content), encoding="utf-8")

    def write_node(self, path: str, documents: Mapping[str, str]) -> None:
        """See `Output.write_node`.

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
        """See `Output.write_chunks`.

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
        places = _places(table.names, grid, path)
        order = np.argsort(places)
        inline = dict(zip(_places(list(table.inline), grid, path).tolist(), table.inline.values(), strict=True))
        inline_places = np.array(sorted(inline), dtype=np.int64)
        folder.mkdir(parents=True, exist_ok=True)
        for record in range(records):  # also those without references: fsspec's listings open every one
            bounds = record * self._record_size, min((record + 1) * self._record_size, chunks)
            some = order[slice(*np.searchsorted(places, bounds, sorter=order))]
            raw: list[bytes | None] = [None] * (bounds[1] - bounds[0])
            for place in inline_places[slice(*np.searchsorted(inline_places, bounds))].tolist():
                raw[place - bounds[0]] = inline_raw(inline[place])
            self._write_record(self._path / record_path(path, record), table, some, places[some] - bounds[0], raw, urls)

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


def _places(names: list[str], grid: tuple[int, ...], path: str) -> Ints:
    """The places of chunks in a grid, counted in C order; of a chunk outside the grid, which has none, -1."""
    numbers = as_grid(names, len(grid), f"array /{path}").astype(np.int64)
    if not grid or not names:
        return np.zeros(len(names), dtype=np.int64)
    inside = (numbers < np.array(grid, dtype=np.int64)).all(axis=1)
    places = np.full(len(names), -1, dtype=np.int64)
    places[inside] = np.ravel_multi_index(tuple(numbers[inside].T), grid)
    return places


def _unfit(path: str, problem: str) -> InvalidInputError:
    return InvalidInputError(f"array or group /{path} {problem}", ErrorKind.INVALID_ARRAY_METADATA)
