"""Writing a snapshot out as a plain Zarr hierarchy: every value as it is stored, nothing decoded.

Whoever looks at the target finds all of it or nothing that opens. A directory or zip file of this machine is written
beside the target and renamed at the end; elsewhere chunks are written before metadata, and the root's metadata last.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import zarr
from zarr.abc.store import Store
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import FsspecStore, LocalStore, ZipStore

from icelite import drafts
from icelite.budget import MAX_SEGMENTS
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
    shown,
)
from icelite.keys import check_path, join
from icelite.metadata import array_info
from icelite.session import Session
from icelite.storage import is_encodable
from icelite.types import Progress, ZarrExport

VALUES_AT_ONCE = 64
BYTES_AT_ONCE = 128 << 20  # of values that are on their way together, unless one is larger

Values = list[tuple[str, int]]  # keys and their sizes in bytes


@dataclass(slots=True)
class Content:
    """The keys to be written, of chunks and of metadata.

    Attributes
    ----------
    root
        The path in the snapshot that becomes the root of the hierarchy.
    """

    root: str
    nodes: int = 0
    chunks: Values = field(default_factory=list)
    documents: Values = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.chunks) + len(self.documents)

    @property
    def bytes(self) -> int:
        """Of all values."""
        return sum(size for _, size in self.chunks) + sum(size for _, size in self.documents)


def list_content(session: Session, root: str) -> Content:
    """The values at and below a node.

    Raises
    ------
    NodeNotFoundError
        ``node-not-found``.
    """
    content = Content(root)
    nodes = session.changes.nodes.list_below(root)
    if not nodes:
        raise NodeNotFoundError(f"no group or array at or below /{root} in {session}", ErrorKind.NODE_NOT_FOUND)
    for node in nodes:
        content.nodes += 1
        for name, text in node.documents.items():
            content.documents.append((join(node.path, name), len(text.encode())))
        info = array_info(node.path, node.documents)
        for chunk, size in () if info is None else session.changes.chunks.sizes(node.node_id):
            content.chunks.append((join(node.path, info.keys.encode(chunk)), size) if info else (chunk, size))
    return content


def export_zarr(
    session: Session,
    target: str | os.PathLike[str],
    *,
    group: str,
    storage_options: Mapping[str, Any] | None,
    overwrite: bool,
    consolidated: bool,
    progress: Progress | None,
) -> ZarrExport:
    """Write what a session sees; see `Repository.export_zarr`."""
    content = list_content(session, check_path(group))
    place = _checked(os.fspath(target) if isinstance(target, os.PathLike) else target)
    with _opened(place, dict(storage_options or {}), overwrite) as store:
        sync(_write(session, content, store, consolidated, progress))
    return ZarrExport(place, session.snapshot_id, content.nodes, len(content.chunks), content.bytes)


async def _write(
    session: Session, content: Content, store: Store, consolidated: bool, progress: Progress | None
) -> None:
    await _copy(session, content, store, progress)
    if consolidated:
        await zarr.api.asynchronous.consolidate_metadata(store)


async def _copy(session: Session, content: Content, store: Store, progress: Progress | None) -> None:
    source, prototype = session.store, default_buffer_prototype()
    start = len(join(content.root, "")) if content.root else 0
    done = 0

    async def copy(key: str) -> None:
        value = await source.get(key, prototype)
        if value is not None:
            await store.set(key[start:], value)

    root = {node for node in content.documents if node[0].rpartition("/")[0] == content.root}
    below = [node for node in content.documents if node not in root]
    for batch in (
        *_batches(content.chunks, VALUES_AT_ONCE),
        *_batches(below, VALUES_AT_ONCE),
        *_batches(sorted(root), 1),  # of Zarr v2, the attributes come first
    ):
        outcomes = await asyncio.gather(*map(copy, batch), return_exceptions=True)
        for outcome in outcomes:  # looked at when all have ended: nobody writes to a draft that is being removed
            if outcome is not None:
                raise outcome
        done += len(batch)
        if progress is not None:
            progress(done, len(content))


def _batches(values: Values, count: int) -> Iterator[list[str]]:
    batch: list[str] = []
    total = 0
    for key, size in values:
        if batch and (len(batch) == count or total + size > BYTES_AT_ONCE):
            yield batch
            batch, total = [], 0
        batch.append(key)
        total += size
    if batch:
        yield batch


def _checked(target: object) -> str:
    """An absolute path, or a URL that is not one of a local file."""
    if not isinstance(target, str) or "\0" in target or not target or not is_encodable(target):
        raise InvalidInputError(f"{shown(target)} is no path or URL to write to", ErrorKind.INVALID_PATH)
    if "://" in target and not target.startswith("file://"):
        return target
    path = Path(target.removeprefix("file://")).expanduser().absolute()
    if len(path.parts) > MAX_SEGMENTS:  # Python makes missing folders one inside the call for the next
        raise InvalidInputError(
            f"{shown(target)} has {len(path.parts)} folders inside each other, and at most {MAX_SEGMENTS} are made",
            ErrorKind.INVALID_PATH,
        )
    return str(path)


# -- targets -----------------------------------------------------------------------------------------------------


@contextmanager
def _opened(target: str, options: dict[str, Any], overwrite: bool) -> Iterator[Store]:
    """A store to write to, which becomes the target when the block ends.

    Raises
    ------
    AlreadyExistsError, InvalidInputError, StorageError
        ``target-already-exists``; ``invalid-path``; ``io``, ``storage-full``, ``unsupported-storage``.
    """
    try:
        if "://" in target:
            yield sync(_open_remote(target, options, overwrite))
        else:
            with _opened_locally(Path(target), overwrite) as store:
                yield store
    except IceliteError:  # some are OSErrors too
        raise
    except client_errors() as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        failure, cause = StorageError(f"{target!r} cannot be written: {reason}", disk_kind(error)), error
    else:
        return
    raise failure from (None if has_secret(target) else cause)


@contextmanager
def _opened_locally(path: Path, overwrite: bool) -> Iterator[Store]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with drafts.draft(path, partial(_check_free, path, overwrite), replace=overwrite) as draft:
        store = sync(ZipStore.open(draft, mode="w") if path.suffix == ".zip" else LocalStore.open(draft))
        with closing(store):
            yield store


def _check_free(path: Path, overwrite: bool) -> None:
    is_empty = path.is_dir() and not path.is_symlink() and not any(path.iterdir())
    if os.path.lexists(path) and not is_empty and not overwrite:
        raise _taken(repr(str(path)))


async def _open_remote(url: str, options: dict[str, Any], overwrite: bool) -> Store:
    if url.rstrip("/").endswith(".zip"):
        raise InvalidInputError(
            f"{url!r}: a zip file is written locally; export to a path, and upload it", ErrorKind.INVALID_PATH
        )
    try:
        store = FsspecStore.from_url(url, storage_options=options)
    except (ValueError, ImportError) as error:
        raise StorageError(
            f"{url!r} cannot be written: fsspec has no file system for it, or one that needs a package ({error})",
            ErrorKind.UNSUPPORTED_STORAGE,
        ) from error
    if not await store.is_empty(""):
        if not overwrite:
            raise _taken(repr(url))
        for name in ("zarr.json", ".zgroup", ".zarray", ".zmetadata"):  # from here on nothing opens there
            await store.delete(name)
        await store.delete_dir("")
    return store


def _taken(target: str) -> AlreadyExistsError:
    return AlreadyExistsError(
        f"{target} already exists; pass overwrite=True to replace it, or choose another target",
        ErrorKind.TARGET_ALREADY_EXISTS,
    )
