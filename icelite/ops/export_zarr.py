"""Writing a snapshot out as a plain Zarr hierarchy: every value as it is stored, nothing decoded.

Whoever looks at the target finds all of it or nothing that opens. A directory or zip file of this machine is written
beside the target and renamed at the end; elsewhere chunks are written before metadata, and the root's metadata last.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zarr
from zarr.abc.store import Store
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import FsspecStore, LocalStore, ZipStore

from icelite.errors import (
    AlreadyExistsError,
    ErrorKind,
    IceliteError,
    InvalidInputError,
    NodeNotFoundError,
    StorageError,
)
from icelite.keys import check_path, join
from icelite.metadata import array_info
from icelite.session import Session
from icelite.types import Progress, ZarrExport

VALUES_AT_ONCE = 64
BYTES_AT_ONCE = 128 << 20  # of values that are on their way together, unless one is larger

Values = list[tuple[str, int]]  # keys and their sizes in bytes


@dataclass(slots=True)
class Content:
    """What is to be written: the keys of chunks, and of metadata.

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
    nodes = session.changes.list_nodes(root)
    if not nodes:
        raise NodeNotFoundError(f"no group or array at or below /{root} in {session}", ErrorKind.NODE_NOT_FOUND)
    for node in nodes:
        content.nodes += 1
        for name, text in node.documents.items():
            content.documents.append((join(node.path, name), len(text.encode())))
        info = array_info(node.path, node.documents)
        for chunk, size in () if info is None else session.changes.chunk_sizes(node.node_id):
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
    place = _checked(os.fspath(target))
    sync(_export(session, content, place, dict(storage_options or {}), overwrite, consolidated, progress))
    return ZarrExport(place, session.snapshot_id, content.nodes, len(content.chunks), content.bytes)


async def _export(
    session: Session,
    content: Content,
    target: str,
    options: dict[str, Any],
    overwrite: bool,
    consolidated: bool,
    progress: Progress | None,
) -> None:
    async with _open_target(target, options, overwrite) as store:
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


def _checked(target: str) -> str:
    """An absolute path, or a URL that is not one of a local file."""
    if "\0" in target or not target:
        raise InvalidInputError(f"{target!r} is no path or URL to write to", ErrorKind.INVALID_PATH)
    if "://" in target and not target.startswith("file://"):
        return target
    return str(Path(target.removeprefix("file://")).expanduser().absolute())


# -- targets -----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def _open_target(target: str, options: dict[str, Any], overwrite: bool) -> AsyncIterator[Store]:
    """A store to write to, which becomes the target when the block ends.

    Raises
    ------
    AlreadyExistsError, InvalidInputError, StorageError
        ``target-already-exists``; ``invalid-path``; ``io``, ``unsupported-storage``.
    """
    try:
        if "://" in target:
            yield await _open_remote(target, options, overwrite)
        else:
            async with _open_local(Path(target), overwrite) as store:
                yield store
    except IceliteError:  # some are OSErrors too
        raise
    except _failures(target) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise StorageError(f"{_shown(target)} cannot be written: {reason}", ErrorKind.IO) from error


@asynccontextmanager
async def _open_local(path: Path, overwrite: bool) -> AsyncIterator[Store]:
    if not overwrite:
        await asyncio.to_thread(_check_free, path)
    draft = path.with_name(f".icelite-{secrets.token_hex(8)}")
    is_zip = path.suffix == ".zip"
    try:
        store = await (ZipStore.open(draft, mode="w") if is_zip else LocalStore.open(draft))
        try:
            yield store
        finally:
            store.close()
        await asyncio.to_thread(_put_in_place, draft, path)
    finally:
        await asyncio.to_thread(_remove, draft)


def _check_free(path: Path) -> None:
    is_empty = path.is_dir() and not path.is_symlink() and not any(path.iterdir())
    if os.path.lexists(path) and not is_empty:
        raise _taken(str(path))


def _put_in_place(draft: Path, path: Path) -> None:
    """Give a finished draft its name; what had it goes."""
    old = path.with_name(f".icelite-{secrets.token_hex(8)}")
    if os.path.lexists(path):
        path.rename(old)
    try:
        draft.rename(path)
    except OSError:
        if os.path.lexists(old):
            old.rename(path)
        raise
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


async def _open_remote(url: str, options: dict[str, Any], overwrite: bool) -> Store:
    if url.rstrip("/").endswith(".zip"):
        raise InvalidInputError(
            f"{_shown(url)}: a zip file is written locally; export to a path, and upload it", ErrorKind.INVALID_PATH
        )
    try:
        store = FsspecStore.from_url(url, storage_options=options)
    except (ValueError, ImportError) as error:
        raise StorageError(
            f"{_shown(url)} cannot be written: fsspec has no file system for it, or one that needs a package ({error})",
            ErrorKind.UNSUPPORTED_STORAGE,
        ) from error
    if not await store.is_empty(""):
        if not overwrite:
            raise _taken(_shown(url))
        for name in ("zarr.json", ".zgroup", ".zarray", ".zmetadata"):  # from here on nothing opens there
            await store.delete(name)
        await store.delete_dir("")
    return store


def _failures(target: str) -> tuple[type[Exception], ...]:
    """What a target raises when it cannot be written."""
    if not target.startswith("s3://"):
        return (OSError,)
    from botocore.exceptions import BotoCoreError, ClientError  # type: ignore[import-untyped]

    return OSError, BotoCoreError, ClientError


def _taken(target: str) -> AlreadyExistsError:
    return AlreadyExistsError(
        f"{target} already exists; pass overwrite=True to replace it, or choose another target",
        ErrorKind.TARGET_ALREADY_EXISTS,
    )


def _shown(url: str) -> str:
    """A URL without what may be a password or a signature."""
    scheme, _, rest = url.partition("?")[0].partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"
