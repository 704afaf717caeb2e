"""`export_kerchunk`: a snapshot as a kerchunk reference file, JSON or Parquet.

References become absolute URLs. Bytes that no URL outside the repository leads to (chunks in the catalog, chunks in
the repository's own objects) are written into the reference file.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Literal, TypeAlias

import numpy as np

from icelite.errors import ErrorKind, InvalidInputError, NodeNotFoundError
from icelite.kerchunk.conversion import as_zarr_v2
from icelite.kerchunk.output import JsonOutput, Output, ParquetOutput, replacing
from icelite.kerchunk.reference_set import ChunkTable
from icelite.keys import check_path
from icelite.metadata import ArrayInfo, array_info
from icelite.repository import Repository
from icelite.session import Session
from icelite.store import IceliteStore
from icelite.types import ChunkType, Location, Node, Progress

INLINE_LIMIT = 256 << 20  # bytes that are written into one reference file unless the caller says otherwise
_NO_URL = -1

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
        with replacing(
            target, folder=format == "parquet", overwrite=overwrite, storage_options=storage_options
        ) as path:
            output: Output = (
                JsonOutput(path, os.fspath(target)) if format == "json" else ParquetOutput(path, record_size)
            )
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
    nodes = session.changes.list_nodes(group)
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

    def write(self, nodes: list[Node], group: str, output: Output, convert: bool, progress: Progress) -> None:
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
        chunks = sum(len(block.chunks) for block in self._session.changes.columns(node.node_id))
        return info.grid is not None and chunks == math.prod(info.grid)

    def _tables(self, node: Node) -> Iterator[ChunkTable]:
        for block in self._session.changes.columns(node.node_id):
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
            location = self._session.changes.location(number)
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
        found = self._session.changes.find_chunk(node.node_id, chunk)
        if isinstance(found, bytes):
            return found
        assert found is not None  # the scan that gave its name saw the same snapshot
        return self._session.payloads.read(found, f"{node.path}, chunk {chunk}", None)
