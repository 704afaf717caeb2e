"""`export_kerchunk`: a snapshot as a kerchunk reference file, JSON or Parquet.

References become absolute URLs. Bytes that no URL outside the repository leads to (chunks in the catalog, chunks in
the repository's own objects) are written into the reference file.
"""

from __future__ import annotations

import base64
import contextlib
import json
import math
import os
import struct
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias

import fsspec
import numpy as np
from zarr.core.metadata import ArrayV3Metadata

from icelite import drafts
from icelite.errors import (
    AlreadyExistsError,
    ErrorKind,
    IceliteError,
    InvalidInputError,
    NodeNotFoundError,
    StorageError,
    client_errors,
    disk_kind,
    has_secret,
)
from icelite.kerchunk.parquet import PARQUET_METADATA, ParquetOutput
from icelite.kerchunk.references import ChunkTable, inline_text
from icelite.keys import check_path, join
from icelite.metadata import ArrayInfo, array_info, parse_document
from icelite.repository import Repository
from icelite.session import Session
from icelite.store import IceliteStore
from icelite.types import ChunkType, Location, Node, Progress

INLINE_LIMIT = 256 << 20  # bytes that are written into one reference file unless the caller says otherwise
_NO_URL = -1
_BLOSC_SHUFFLE = {"noshuffle": 0, "shuffle": 1, "bitshuffle": 2}
_COMPRESSORS = {"blosc", "bz2", "gzip", "lz4", "lzma", "zlib", "zstd"}
_KEPT = {"gzip", "zstd", "vlen-utf8", "vlen-bytes"}  # the same in both, but for where their names stand
DIMENSIONS = "_ARRAY_DIMENSIONS"

Source: TypeAlias = Repository | Session | IceliteStore | str | os.PathLike[str]


def export_kerchunk(
    source: Source,
    target: str | os.PathLike[str],
    *,
    branch: str | None = None,
    tag: str | None = None,
    snapshot_id: str | None = None,
    group: str | None = None,
    format: Literal["json", "parquet"] = "json",
    zarr_format: Literal[2] | None = None,
    record_size: int = 10_000,
    inline_threshold: int = 0,
    inline_limit: int = INLINE_LIMIT,
    overwrite: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> int:
    """Write a snapshot as kerchunk references, which fsspec, kerchunk, VirtualiZarr and zarr read.

    The target appears when it is complete; a failure leaves nothing under its name, or what was there.

    Parameters
    ----------
    source
        A repository, open or as a path; or a session or its store.
    target
        Path or URL of the JSON file (``.gz`` compresses it) or of the parquet folder.
    branch, tag, snapshot_id
        Of a repository, at most one of them; the tip of ``main`` by default.
    group
        The group to write, which becomes the root of the references.
    format
        ``json``, or ``parquet`` for fsspec's lazy layout, which holds Zarr v2 only.
    zarr_format
        None: as stored. 2: arrays of Zarr v3 are described in Zarr v2, where it has the same codecs.
    record_size
        References in one parquet file.
    inline_threshold
        Chunks in other files with fewer bytes than this are read and written into the references.
    inline_limit
        Bytes of chunks that may be written into the references.
    overwrite
        Replace the target when it is such a set of references.
    storage_options
        For fsspec to write a remote target.
    progress
        Called with ``(arrays written, arrays in all)``.

    Returns
    -------
    int
        How many references were written.

    Raises
    ------
    AlreadyExistsError
        ``target-already-exists``.
    InvalidInputError
        ``invalid-argument``; ``chunk-too-large`` above ``inline_limit``; ``invalid-array-metadata`` for an array
        that the chosen format cannot describe; ``missing-package``.
    NodeNotFoundError, RefNotFoundError, SnapshotNotFoundError
        There is no such group, branch, tag or snapshot.
    StorageError
        ``io``; or a chunk to be written into the references that cannot be read.
    """
    _check_arguments(format, zarr_format, record_size, inline_threshold)
    with _session(source, branch, tag, snapshot_id) as session:
        nodes = _nodes(session, check_path(group or ""))
        exporter = _Exporter(session, inline_threshold, inline_limit)
        with _replacing(
            target, folder=format == "parquet", overwrite=overwrite, storage_options=storage_options
        ) as path:
            output = JsonOutput(path, os.fspath(target)) if format == "json" else ParquetOutput(path, record_size)
            with output:
                exporter.write(nodes, check_path(group or ""), output, zarr_format == 2, progress or _silent)
    return exporter.count


def _silent(done: int, total: int) -> None:
    """The progress callback of those who gave none."""


def _check_arguments(format: str, zarr_format: object, record_size: int, inline_threshold: int) -> None:
    if format not in ("json", "parquet"):
        raise InvalidInputError(f"format {format!r} is not 'json' or 'parquet'", ErrorKind.INVALID_ARGUMENT)
    if zarr_format not in (None, 2):
        raise InvalidInputError(f"zarr_format {zarr_format!r} is not None (as stored) or 2", ErrorKind.INVALID_ARGUMENT)
    if record_size < 1 or inline_threshold < 0:
        raise InvalidInputError(
            f"record_size={record_size} must be at least 1, inline_threshold={inline_threshold} at least 0",
            ErrorKind.INVALID_ARGUMENT,
        )


@contextlib.contextmanager
def _session(source: Source, branch: str | None, tag: str | None, snapshot_id: str | None) -> Iterator[Session]:
    chosen = (branch, tag, snapshot_id) != (None, None, None)
    if isinstance(source, Session | IceliteStore):
        if chosen:
            raise InvalidInputError(
                "branch, tag and snapshot_id choose a snapshot of a repository; a session has its own",
                ErrorKind.INVALID_ARGUMENT,
            )
        yield source.session if isinstance(source, IceliteStore) else source
        return
    repo = source if isinstance(source, Repository) else Repository.open(source)
    try:
        yield repo.readonly_session(branch if chosen else "main", tag=tag, snapshot_id=snapshot_id)
    finally:
        if repo is not source:
            repo.close()


def _nodes(session: Session, group: str) -> list[Node]:
    nodes = session.changes.nodes.list_below(group)
    if not nodes:
        raise NodeNotFoundError(f"there is nothing at /{group} to export", ErrorKind.NODE_NOT_FOUND)
    return nodes


class _Exporter:
    """Carries one export: what was written so far, and the URLs that it refers to."""

    def __init__(self, session: Session, threshold: int, limit: int) -> None:
        self.count = 0
        self._session = session
        self._threshold = threshold
        self._limit = limit
        self._inlined = 0
        self._urls: list[str] = []
        self._sources: dict[int, int] = {}  # number of a location to the index of its URL, `_NO_URL` if it has none

    def write(
        self, nodes: list[Node], group: str, output: JsonOutput | ParquetOutput, convert: bool, progress: Progress
    ) -> None:
        """Write nodes with the references of their arrays."""
        infos = {node.path: array_info(node.path, node.documents) for node in nodes}
        total = sum(info is not None for info in infos.values())
        done = 0
        progress(done, total)
        for node in nodes:
            path = node.path[len(group) :].lstrip("/")
            documents, info = dict(node.documents), infos[node.path]
            if convert and node.zarr_format == 3:
                documents = as_zarr_v2(node.path, documents, partial(self._is_full, node, info))
                info = array_info(node.path, documents)
            output.write_node(path, documents)
            if info is not None:
                output.write_chunks(path, info, self._tables(node), self._urls)
                done += 1
                progress(done, total)

    def _is_full(self, node: Node, info: ArrayInfo | None) -> bool:
        """Whether every chunk of an array is there."""
        assert info is not None
        chunks = sum(len(block.chunks) for block in self._session.changes.chunks.columns(node.node_id))
        return info.grid is not None and chunks == math.prod(info.grid)

    def _tables(self, node: Node) -> Iterator[ChunkTable]:
        for block in self._session.changes.chunks.columns(node.node_id):
            numbers, inverse = np.unique(block.location_ids, return_inverse=True)
            sources = np.array([self._source(number) for number in numbers.tolist()], dtype=np.int64)[inverse]
            copied = (sources == _NO_URL) | (block.lengths < self._threshold)
            rows = np.flatnonzero(copied).tolist()
            self._count_inlined(node, int(block.lengths[copied].sum()))
            inline = {block.chunks[row]: self._read(node, block.chunks[row]) for row in rows}
            kept = ~copied
            names = block.chunks if not rows else [name for name, keep in zip(block.chunks, kept, strict=True) if keep]
            self.count += len(block.chunks)
            yield ChunkTable(names, sources[kept], block.offsets[kept], block.lengths[kept], inline)

    def _source(self, number: int) -> int:
        if number not in self._sources:
            location = self._session.changes.chunks.location(number)
            self._sources[number] = _NO_URL
            if location is not None and location.kind == ChunkType.virtual:
                self._sources[number] = len(self._urls)
                self._urls.append(self._absolute(location))
        return self._sources[number]

    def _absolute(self, location: Location) -> str:
        url = self._session.access.locator(location)
        self._session.access.check_unsigned(url)
        if "://" not in url:
            raise InvalidInputError(
                f"reference {url!r} is relative, and a catalog in memory has no directory to begin at",
                ErrorKind.INVALID_VIRTUAL_REF,
            )
        return url

    def _count_inlined(self, node: Node, size: int) -> None:
        self._inlined += size
        if self._inlined > self._limit:
            raise InvalidInputError(
                f"array /{node.path} brings the chunks that no URL leads to, because they are in the repository itself,"
                f" to {self._inlined} bytes; at most inline_limit={self._limit} are written into a reference file."
                " Pass a higher limit, or export the values as Zarr",
                ErrorKind.CHUNK_TOO_LARGE,
            )

    def _read(self, node: Node, chunk: str) -> bytes:
        found = self._session.changes.chunks.find(node.node_id, chunk)
        assert found is not None  # the scan that gave its name saw the same snapshot
        return self._session.payloads.read(found, f"{node.path}, chunk {chunk}", None)


class JsonOutput:
    """A JSON file of kerchunk's version 1 that is being written; as a context manager, which completes it.

    Parameters
    ----------
    name
        Of the file to be, which says how it is compressed.
    """

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
        """Write the metadata of a group or array."""
        self._write([f"{json.dumps(join(path, name))}: {json.dumps(text)}" for name, text in documents.items()])

    def write_chunks(self, path: str, info: ArrayInfo, tables: Iterable[ChunkTable], urls: Sequence[str]) -> None:
        """Write the references of an array; ``sources`` of the tables count ``urls``, which may grow meanwhile."""
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


# -- where the references appear --------------------------------------------------------------------------------------


@contextlib.contextmanager
def _replacing(
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
            with drafts.draft(path, partial(_check_path, path, folder, overwrite), replace=overwrite) as draft:
                if folder:
                    draft.mkdir()
                yield draft
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
    with tempfile.TemporaryDirectory(prefix="icelite-") as temporary:
        path = Path(temporary, Path(name).name)
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


# -- a node of Zarr v3 described in Zarr v2, where that has the same types, codecs and chunks --------------------------
# xarray takes the fill value of a Zarr v2 array for missing data, that of a Zarr v3 array not. So the v2 fill value
# is the array's ``_FillValue``; without one it is null, which means zero where chunks are missing.


def as_zarr_v2(path: str, documents: Mapping[str, str], is_full: Callable[[], bool]) -> dict[str, str]:
    """The documents of a Zarr v2 node that reads as a Zarr v3 one.

    Parameters
    ----------
    is_full
        Whether every chunk of the array is there; only asked where it matters.

    Raises
    ------
    InvalidInputError
        ``invalid-array-metadata`` for what Zarr v2 does not have: sharding, irregular chunks, some types and codecs.
    """
    content = parse_document(path, documents["zarr.json"])
    attributes = dict(content.get("attributes") or {})
    if content["node_type"] == "group":
        return {".zgroup": json.dumps({"zarr_format": 2}), ".zattrs": json.dumps(attributes)}
    try:
        return _array(content, attributes, is_full)
    except (KeyError, TypeError, ValueError, AttributeError, struct.error) as error:
        raise InvalidInputError(
            f"array /{path} cannot be described in Zarr v2: {error}; leave zarr_format out",
            ErrorKind.INVALID_ARRAY_METADATA,
        ) from error


def _array(content: Mapping[str, Any], attributes: dict[str, Any], is_full: Callable[[], bool]) -> dict[str, str]:
    metadata = ArrayV3Metadata.from_dict(dict(content))
    grid = content["chunk_grid"]
    if grid["name"] != "regular":
        raise ValueError(f"its chunk grid is {grid['name']!r}")
    dtype: Any = metadata.data_type.to_json(zarr_format=2)["name"]
    order, filters = "C", list[dict[str, Any]]()
    for codec in content["codecs"]:
        name, options = (codec, {}) if isinstance(codec, str) else (codec["name"], codec.get("configuration") or {})
        if name == "transpose":
            order = _order(options["order"], order, filters)
        elif name == "bytes":
            dtype = _big_endian(dtype) if options.get("endian") == "big" else dtype
        else:
            filters.append(_filter(name, options))
    # a chunk that grew when it was compressed is read by GDAL from there, and not from the filters
    compressor = filters.pop() if filters and filters[-1]["id"] in _COMPRESSORS else None
    described = {
        "zarr_format": 2,
        "shape": content["shape"],
        "chunks": grid["configuration"]["chunk_shape"],
        "dtype": dtype,
        "fill_value": _fill_value(metadata, attributes, is_full),
        "order": order,
        "filters": filters or None,
        "compressor": compressor,
        "dimension_separator": ".",
    }
    names = content.get("dimension_names")
    if names is not None and None not in names:
        attributes[DIMENSIONS] = names
    return {".zarray": json.dumps(described), ".zattrs": json.dumps(attributes)}


def _order(axes: list[int], order: str, filters: list[Any]) -> str:
    if filters or order != "C" or axes != list(reversed(range(len(axes)))):
        if axes == sorted(axes):
            return order
        raise ValueError(f"its axes are stored in the order {axes}")
    return "F"


def _big_endian(dtype: Any) -> Any:
    if isinstance(dtype, str):
        return dtype.replace("<", ">")
    return [[name, _big_endian(field), *shape] for name, field, *shape in dtype]


def _filter(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """A codec of Zarr v3 as numcodecs names and configures it."""
    if name in _KEPT:
        return {"id": name, **options}
    if name == "blosc":
        kept = {key: options[key] for key in ("cname", "clevel", "blocksize")}
        return {"id": name, **kept, "shuffle": _BLOSC_SHUFFLE[options["shuffle"]]}
    if name == "crc32c":
        return {"id": name, "location": "end"}
    if name.startswith("numcodecs."):
        return {"id": name.removeprefix("numcodecs."), **options}
    raise ValueError(f"its codec {name!r} is only in Zarr v3")


def _fill_value(metadata: ArrayV3Metadata, attributes: dict[str, Any], is_full: Callable[[], bool]) -> Any:
    """The v2 fill value; takes ``_FillValue`` out of the attributes, because that is where xarray finds it then."""
    stored = metadata.fill_value
    missing = _decoded(attributes.pop("_FillValue", None), metadata.data_type.to_native_dtype().kind)
    kept = stored if missing is None and stored != stored else missing  # NaN is missing for xarray anyway
    if kept is None:
        means_the_same = _is_zero(stored)
    else:
        means_the_same = bool(kept == stored or (kept != kept and stored != stored))
    if not means_the_same and not is_full():
        raise ValueError(f"chunks that are not there read as {stored!r}, which Zarr v2 can only say of missing values")
    if kept is None:
        return None
    return metadata.data_type.to_json_scalar(metadata.data_type.cast_scalar(kept), zarr_format=2)


def _decoded(value: Any, kind: str) -> Any:
    """``_FillValue`` as xarray writes it into the attributes of Zarr v3: doubles as base64."""
    if kind == "f" and isinstance(value, str):
        return float(struct.unpack("<d", base64.b64decode(value))[0]) if value != "NaN" else np.nan
    if kind in "biuf" or value is None:
        return value
    raise ValueError(f"its _FillValue {value!r} is not a number")


def _is_zero(value: Any) -> bool:
    return not value if isinstance(value, str | bytes) else not np.asarray(value).tobytes().strip(b"\0")
