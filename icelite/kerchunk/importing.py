"""`import_kerchunk` and `write_references`: references read, checked together with their sources, staged in columns.

Everything is checked before the first write: bad references leave a session as it was, and a repository that the
call made is removed again.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from icelite.budget import MAX_GENERATED
from icelite.catalog.drafts import remove_unused
from icelite.errors import AlreadyExistsError, ErrorKind, InvalidInputError, ReadOnlyError, RepositoryNotFoundError
from icelite.kerchunk.plan import Plan, plan_references
from icelite.kerchunk.reading import ReferenceFile, References, read_references
from icelite.keys import check_path
from icelite.repository import Repository
from icelite.store import IceliteStore
from icelite.types import Progress

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


def _name(place: str) -> str:
    """The last part of a path or URL, without what may be a signature."""
    return Path(place.partition("?")[0] if "://" in place else place).name


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


@contextlib.contextmanager
def _opened(repository: Repository | str | os.PathLike[str]) -> Iterator[Repository]:
    """The repository; one that had to be made is removed again when the block fails and nobody else wrote to it."""
    if isinstance(repository, Repository):
        yield repository
        return
    made = False
    try:
        repo = Repository.open(repository)
    except RepositoryNotFoundError:
        try:
            repo, made = Repository.create(repository), True
        except AlreadyExistsError:  # another process was quicker
            repo = Repository.open(repository)
    try:
        yield repo
    except BaseException:
        repo.close()
        if made:
            remove_unused(repo.storage)
        raise
    repo.close()


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
    plan = plan_references(
        found, session, check_path(group or ""), overwrite=overwrite, validate_containers=validate_containers
    )
    with session.changes.lock:
        _write_nodes(plan, store)
        _write_chunks(plan, store, progress or (lambda done, total: None))


def _write_nodes(plan: Plan, store: IceliteStore) -> None:
    changes = store.session.changes
    if plan.overwrite:
        changes.delete_nodes(plan.group)
    for path, texts in plan.documents.items():
        for name in sorted(texts, key=".zattrs".__eq__):  # what the node is before what is said about it
            changes.set_document(path, name, texts[name])


def _write_chunks(plan: Plan, store: IceliteStore, progress: Progress) -> None:
    changes = store.session.changes
    total = sum(len(array.names) + len(array.inline) for array in plan.arrays)
    ids = plan.intern(store.session)
    done = 0
    progress(done, total)
    for array in plan.arrays:
        entry, _ = changes.lookup_array(array.path)
        node_id = entry.node.node_id
        for chunk, data in array.inline.items():
            changes.set_payload(node_id, chunk, data)
        done += len(array.inline)
        for batch in array.batches(ROWS_AT_ONCE):
            chunks, sources, offsets, lengths = batch
            with changes.catalog.stage() as txn:
                changes.set_refs(node_id, chunks, ids[sources].tolist(), offsets.tolist(), lengths.tolist(), txn)
            done += len(chunks)
            progress(done, total)
    progress(total, total)
