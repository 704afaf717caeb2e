"""`import_kerchunk` and `write_references`: references read, checked together with their sources, staged in columns.

Everything is checked before the first write: bad references leave a session as it was, and a repository that the
call made is removed again.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from icelite.budget import MAX_GENERATED
from icelite.errors import (
    AlreadyExistsError,
    ErrorKind,
    IceliteError,
    InvalidInputError,
    ReadOnlyError,
)
from icelite.kerchunk.reading import ReferenceFile, References, read_references
from icelite.kerchunk.references import (
    GROUP_DOCUMENTS,
    WHOLE,
    ChunkTable,
    Documents,
    Ints,
    common_kind,
    missing_codecs,
    positions,
    rejected,
)
from icelite.keys import DOCUMENTS, ancestors, check_path, join
from icelite.metadata import array_info
from icelite.repository import Repository
from icelite.repository.opening import open_or_make
from icelite.session import Session
from icelite.storage import as_storage
from icelite.store import IceliteStore
from icelite.types import Location, Progress, SourceStamp

ROWS_AT_ONCE = 100_000  # references turned into Python objects at a time


def import_kerchunk(
    references: References,
    repository: Repository | str | os.PathLike[str],
    *,
    group: str | None = None,
    branch: str = "main",
    message: str | None = None,
    metadata: dict[str, Any] | None = None,
    root: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    validate_containers: bool = True,
    storage_options: Mapping[str, Any] | None = None,
    max_generated: int = MAX_GENERATED,
    progress: Progress | None = None,
) -> str:
    """Commit what a kerchunk reference file describes: all of it, or with an error nothing.

    The references become the keys of a Zarr hierarchy as they stand, v2 or v3: metadata is kept as text, chunks are
    references to the same bytes. Size and modification time (or ETag) of every file referred to are recorded, once
    a file, and checked when it is read.

    Parameters
    ----------
    references
        A dict, the path or URL of a JSON file (``.gz`` or ``.zst`` too), or that of a parquet folder.
    repository
        An open repository, or the path of one, which is made where there is none.
    group
        Path of the group to write; the root by default.
    message
        Of the commit; by default it says what was imported.
    metadata
        Of the commit.
    root
        Folder or URL that relative paths in the references are relative to; by default the folder in which the
        JSON file or parquet folder is.
    overwrite
        Delete what the group holds first; else it must hold no arrays.
    validate_containers
        Whether every remote location must be covered by a virtual chunk container of the repository.
    storage_options
        For fsspec to open a remote reference file. What it refers to is read with the repository's credentials.
    max_generated
        References that the generators (``gen``) of the file may stand for: a line of text can stand for billions.
    progress
        Called with ``(references written, references in all)``.

    Returns
    -------
    str
        Id of the new snapshot.

    Raises
    ------
    InvalidInputError
        ``invalid-references``, ``bad-metadata``, ``invalid-path``, ``missing-package`` for the references;
        ``invalid-virtual-ref``, ``no-container-for-virtual-chunk``, ``zero-length-chunk`` for what they refer to.
    AlreadyExistsError
        ``node-already-exists``: the group holds arrays, and ``overwrite`` is not given.
    ConflictError, RefNotFoundError, ReadOnlyError, StorageError
        As `Repository.writable_session` and `Session.commit`.
    """
    found = read_references(references, root, storage_options, max_generated)
    with _opened(repository) as repo:
        session = repo.writable_session(branch)
        _write(found, session.store, group, overwrite, validate_containers, progress)
        origin = "kerchunk references" if isinstance(references, Mapping) else _name(os.fspath(references))
        return session.commit(message or f"Import {found.references.count} chunks from {origin}", metadata)


def _opened(repository: Repository | str | os.PathLike[str]) -> contextlib.AbstractContextManager[Repository]:
    if isinstance(repository, Repository):
        return contextlib.nullcontext(repository)
    return open_or_make(as_storage(repository))


def _name(url: str) -> str:
    """The last part of a path or URL, without what may be a signature."""
    return Path(url.partition("?")[0] if "://" in url else url).name


def write_references(
    references: References,
    store: IceliteStore,
    *,
    group: str | None = None,
    root: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    validate_containers: bool = True,
    storage_options: Mapping[str, Any] | None = None,
    max_generated: int = MAX_GENERATED,
    progress: Progress | None = None,
) -> int:
    """Write what a kerchunk reference file describes into the store of a writable session; commit it afterwards.

    Parameters
    ----------
    references, group, root, overwrite, validate_containers, storage_options, max_generated, progress
        As `import_kerchunk`.
    store
        ``session.store`` of a writable session.

    Returns
    -------
    int
        How many chunks were written.

    Raises
    ------
    InvalidInputError, AlreadyExistsError, ReadOnlyError
        As `import_kerchunk`; nothing was written.
    """
    if not isinstance(store, IceliteStore):
        raise InvalidInputError(
            f"write_references writes to an IceliteStore, not {type(store).__name__}: pass session.store",
            ErrorKind.INVALID_ARGUMENT,
        )
    if store.read_only:
        raise ReadOnlyError(
            f"{store} is read-only: write to the store of repo.writable_session(branch)", ErrorKind.READ_ONLY_STORE
        )
    found = read_references(references, root, storage_options, max_generated)
    _write(found, store, group, overwrite, validate_containers, progress)
    return found.references.count


def _write(
    found: ReferenceFile,
    store: IceliteStore,
    group: str | None,
    overwrite: bool,
    validate_containers: bool,
    progress: Progress | None,
) -> None:
    session = store.session
    session.check_writable()
    plan = _plan_references(
        found, session, check_path(group or ""), overwrite=overwrite, validate_containers=validate_containers
    )
    with session.changes.lock:
        _write_nodes(plan, store)
        _write_chunks(plan, store, progress or (lambda done, total: None))


def _write_nodes(plan: ImportPlan, store: IceliteStore) -> None:
    changes = store.session.changes
    if plan.overwrite:
        changes.nodes.delete_below(plan.group)
    for path, texts in plan.documents.items():
        for name in sorted(texts, key=".zattrs".__eq__):  # what the node is before what is said about it
            changes.nodes.set_document(path, name, texts[name])


def _write_chunks(plan: ImportPlan, store: IceliteStore, progress: Progress) -> None:
    changes = store.session.changes
    total = sum(len(array.names) + len(array.inline) for array in plan.arrays)
    ids = plan.intern(store.session)
    done = 0
    progress(done, total)
    for array in plan.arrays:
        entry, _ = changes.nodes.lookup_array(array.path)
        node_id = entry.node.node_id
        for chunk, data in array.inline.items():
            changes.chunks.set_bytes(node_id, chunk, data)
        done += len(array.inline)
        for batch in array.batches(ROWS_AT_ONCE):
            chunks, sources, offsets, lengths = batch
            with changes.catalog.stage() as txn:
                changes.chunks.set_refs(node_id, chunks, ids[sources].tolist(), offsets.tolist(), lengths.tolist(), txn)
            done += len(chunks)
            progress(done, total)
    progress(total, total)


# -- what is going to be written: checked against the store and against the files that the references name ----------


@dataclass(slots=True)
class PlannedArray:
    """The chunks of one array, with known lengths."""

    path: str
    names: list[str]
    sources: Ints
    offsets: Ints
    lengths: Ints
    inline: Mapping[str, bytes]

    def batches(self, size: int) -> Iterator[tuple[list[str], Ints, Ints, Ints]]:
        """The references in the order of the catalog's table, in batches of aligned columns."""
        order = _key_order(self.names)
        for start in range(0, len(order), size):
            some = order[start : start + size]
            names = [self.names[i] for i in some.tolist()]
            yield names, self.sources[some], self.offsets[some], self.lengths[some]


@dataclass(slots=True)
class ImportPlan:
    """Everything that one import writes, in the order in which it does.

    Attributes
    ----------
    documents
        By node path in the store.
    locations
        What the columns ``sources`` of the arrays count.
    allowed
        Whether this process may read local files among them without being asked.
    """

    group: str
    overwrite: bool
    documents: Documents
    arrays: list[PlannedArray]
    locations: list[Location]
    allowed: bool

    def intern(self, session: Session) -> Ints:
        """The staged ids of the locations."""
        if self.allowed:
            for location in self.locations:
                session.access.allow(location)
        return np.array([session.changes.chunks.intern(location) for location in self.locations], dtype=np.int64)


def _plan_references(
    found: ReferenceFile, session: Session, group: str, *, overwrite: bool, validate_containers: bool
) -> ImportPlan:
    """Check references against the store that they go to and the files that they name.

    Raises
    ------
    InvalidInputError, AlreadyExistsError
        As `icelite.kerchunk.import_kerchunk`.
    """
    references = found.references
    _check_group(session, group, overwrite)
    documents = _placed(references.documents, session, group)
    if not overwrite:
        _check_kinds(documents, session)
    urls = _absolute(references.urls, found.root, references.origin)
    stamps = _look(session, urls, references.origin, validate_containers)
    sizes = np.array([-1 if stamps[url].size is None else stamps[url].size for url in urls], dtype=np.int64)
    arrays = [_plan_array(join(group, path), table, urls, sizes) for path, table in references.arrays.items()]
    locations = [session.access.locate(url, stamp=stamps[url], validate_container=validate_containers) for url in urls]
    for path, codec in missing_codecs(documents):
        warnings.warn(
            f"array /{path} needs the codec {codec!r}, which is not installed here: its values cannot be read until"
            " it is",
            stacklevel=4,
        )
    return ImportPlan(group, overwrite, documents, arrays, locations, found.own)


def _check_group(session: Session, group: str, overwrite: bool) -> None:
    changes = session.changes
    for above, _ in ancestors(group) if group else ():
        entry = changes.nodes.find(above)
        if entry is not None and entry.info is not None:
            raise InvalidInputError(
                f"/{group} is inside the array /{above}; an array has no nodes below it", ErrorKind.INVALID_PATH
            )
    there = [] if overwrite else changes.nodes.list_below(group)
    arrays = [node.path for node in there if array_info(node.path, node.documents) is not None]
    if arrays:
        raise AlreadyExistsError(
            f"group /{group} already holds {len(arrays)} arrays such as /{arrays[0]}; choose another group, or pass"
            " overwrite=True to replace all that it holds",
            ErrorKind.NODE_ALREADY_EXISTS,
        )


def _placed(documents: Documents, session: Session, group: str) -> Documents:
    """The documents by their path in the store, and the groups above that are not there yet."""
    format_ = DOCUMENTS[next(iter(next(iter(documents.values()))))]
    name, text = GROUP_DOCUMENTS[format_]
    above = [path for path, _ in ancestors(group)] if group else []
    placed: Documents = {path: {name: text} for path in above if session.changes.nodes.find(path) is None}
    placed.update({join(group, path) if path else group: texts for path, texts in documents.items()})
    return placed


def _check_kinds(documents: Documents, session: Session) -> None:
    """Refuse metadata for a group that is there in the other format, or that would become an array."""
    for path, texts in documents.items():
        entry = session.changes.nodes.find(path)
        if entry is not None and (".zarray" in texts or DOCUMENTS[next(iter(texts))] != entry.node.zarr_format):
            raise AlreadyExistsError(
                f"/{path} already is a group of Zarr v{entry.node.zarr_format}, which the references do not fit;"
                " choose another group, or pass overwrite=True to replace it",
                ErrorKind.NODE_ALREADY_EXISTS,
            )


def _absolute(urls: list[str], root: str | None, origin: str) -> list[str]:
    """URLs with what relative ones are relative to."""
    relative = [url for url in urls if not url.startswith("/") and "://" not in url]
    if relative and root is None:
        faults = [f"{url!r} is relative" for url in relative]
        raise rejected(f"{origin}, without root= to say where relative paths begin", faults)
    base = "" if root is None else (root if "://" in root else f"file://{os.path.realpath(root)}").rstrip("/")
    known = set(relative)
    return [_joined(base, url) if url in known else "file://" + url if url.startswith("/") else url for url in urls]


def _joined(base: str, url: str) -> str:
    return f"{base}/{url.removeprefix('./')}"


def _look(session: Session, urls: list[str], origin: str, validate_containers: bool) -> dict[str, SourceStamp]:
    """The stamps of the files now, when all of them may be referred to."""
    faults: dict[str, IceliteError] = {}
    for url in dict.fromkeys(urls):
        try:
            session.access.locate(url, validate_container=validate_containers)
        except IceliteError as error:
            faults[error.message] = error
    if faults:
        kind = common_kind(faults.values(), ErrorKind.INVALID_VIRTUAL_REF)
        raise rejected(origin, list(faults), kind=kind)
    return session.access.stamps(urls)


def _plan_array(path: str, table: ChunkTable, urls: list[str], sizes: Ints) -> PlannedArray:
    of_file = sizes[table.sources]
    whole = table.lengths == WHOLE
    unknown = np.unique(table.sources[whole & (of_file < 0)]).tolist()
    if unknown:
        faults = [
            f"{urls[i]!r} is referred to as a whole, and its size is not known: it is not there, or may not be read"
            " without authorize_virtual_chunk_access"
            for i in unknown
        ]
        raise rejected(f"/{path}", faults, kind=ErrorKind.INVALID_VIRTUAL_REF)
    lengths = np.where(whole, of_file, table.lengths)
    _refuse(path, table, urls, lengths == 0, "has length 0", ErrorKind.ZERO_LENGTH_CHUNK)
    beyond = (of_file >= 0) & (table.offsets > of_file - lengths)
    _refuse(path, table, urls, beyond, "reaches past the end of the file", ErrorKind.INVALID_VIRTUAL_REF)
    return PlannedArray(path, table.names, table.sources, table.offsets, lengths, table.inline)


def _refuse(path: str, table: ChunkTable, urls: list[str], bad: np.ndarray, problem: str, kind: ErrorKind) -> None:
    where = np.flatnonzero(bad)
    if len(where):
        faults = [
            f"chunk {table.names[i]!r} ({urls[table.sources[i]]!r}, offset {table.offsets[i]},"
            f" length {table.lengths[i]}) {problem}"
            for i in where[:10].tolist()
        ]
        raise rejected(f"/{path}", faults, len(where), kind)


def _key_order(names: list[str]) -> Ints:
    """The order of chunk names as text, which is that of the catalog's table, without comparing texts.

    Numbers sort as text when they are filled with zeros behind to one width, the shorter of two equal ones first; a
    slash sorts before every digit, so dimensions compare one by one.
    """
    if len(names) < 2:
        return np.arange(len(names))
    numbers = positions(names, names[0].count("/") + 1)
    digits = np.ones_like(numbers)
    for power in range(1, len(str(numbers.max()))):
        digits += numbers >= 10**power
    filled = numbers * 10 ** (int(digits.max()) - digits)
    keys = [column for axis in reversed(range(numbers.shape[1])) for column in (digits[:, axis], filled[:, axis])]
    return np.lexsort(keys)
