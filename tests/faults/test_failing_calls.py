"""Disks and services that fail: the n-th call of every way to write fails, and everything is as before, or done.

For each n: the call ends with an icelite error of a fitting kind (or succeeds, where it can do without), the catalog
opens and is whole, nothing half-made has a name that is seen, and the same call succeeds once the fault is gone.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import apsw
import numpy as np
import pytest
import zarr
from simulated_disk import Disk, watched_disk
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

import icelite
from icelite.change_set import chunks as pending
from icelite.errors import AlreadyExistsError, ConflictError, ErrorKind, IceliteError
from icelite.repository import Repository

__all__ = ["watched_disk"]

NAME = "a.icelite"
CHUNKS = 4
Amount = Callable[[int, int], int]
FULL = {ErrorKind.STORAGE_FULL}
BROKEN = {ErrorKind.IO, ErrorKind.STORAGE_FULL}
UNREAD = {ErrorKind.VIRTUAL_CHUNK_FETCH}  # of the source of a bundle


@pytest.fixture(autouse=True)
def early_payloads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pending, "PENDING_BYTES", 8)


# -- what is done ----------------------------------------------------------------------------------------------


def prepare(folder: Path, **options: Any) -> None:
    """A history of three, a file that chunks refer to, and a tag."""
    (folder / "data.bin").write_bytes(bytes(range(256)))
    repository = Repository.create(folder / NAME, **options)
    session = repository.writable_session("main")
    for name in ("x", "y"):
        zarr.create_array(session.store, name=name, shape=(CHUNKS,), chunks=(1,), dtype="i4", compressors=None)
    session.commit("two arrays")
    for number in range(2):
        commit(repository, number)
    repository.create_tag("kept", repository.lookup_branch("main"))
    commit(repository, 2)
    repository.close()


def commit(repository: Repository, number: int = 9) -> None:
    session = repository.writable_session("main")
    for chunk in set(range(CHUNKS)) - {number % CHUNKS}:  # what is left of older objects stays needed
        data = default_buffer_prototype().buffer.from_bytes(bytes([number, chunk] * 2))
        session.store.set_sync(f"x/c/{chunk}", data)
    session.commit(f"commit {number}")


def refer(repository: Repository) -> None:
    session = repository.writable_session("main")
    offsets, lengths = np.arange(CHUNKS, dtype=np.uint64) * 4, np.full(CHUNKS, 4, dtype=np.uint64)
    url = repository.storage.path.with_name("data.bin").as_uri()
    session.store.set_virtual_refs_arr("y", (CHUNKS,), [url] * CHUNKS, offsets, lengths)
    session.commit("references")


def amend(repository: Repository) -> None:
    session = repository.writable_session("main")
    session.store.delete_sync("x/c/0")
    session.amend("amended")


def move_refs(repository: Repository) -> None:
    tip = repository.lookup_branch("main")
    if "b" not in repository.list_branches():
        repository.create_branch("b", tip)


def expire(repository: Repository) -> None:
    repository.expire_snapshots(datetime.now(UTC))


def collect(repository: Repository) -> None:
    expire(repository)
    repository.garbage_collect(datetime.now(UTC))


def compact(repository: Repository) -> None:
    repository.compact()


def bundle(repository: Repository) -> None:
    repository.bundle(repository.storage.path.with_name("bundle.icelite"))


def export(repository: Repository) -> None:
    repository.export_zarr(repository.storage.path.with_name("plain.zarr"), overwrite=True)


def create(repository: Repository) -> None:
    Repository.create(repository.storage.path.with_name("new.icelite"))


def repack(repository: Repository) -> None:
    collect(repository)
    repository.repack(min_live=1.0)


LOCAL = [commit, refer, amend, move_refs, expire, collect, compact, bundle, export, create]
WITH_OBJECTS = [commit, amend, collect, repack, bundle]
OBJECTS = {
    "config": icelite.RepositoryConfig(inline_chunk_threshold_bytes=0, object_target_bytes=64),
    "objects": "chunks",
}


# -- what is seen ----------------------------------------------------------------------------------------------


def opened(folder: Path, name: str = NAME) -> Repository:
    return Repository.open(
        folder / name, check="always", **({"objects": "chunks"} if (folder / "chunks").exists() else {})
    )


def look(folder: Path) -> dict[str, Any]:
    """What all catalogs of a folder hold, without what is random; and the other names that there are."""
    seen: dict[str, Any] = {}
    for path in sorted(folder.glob("[!.]*.icelite")):
        repository = opened(folder, path.name)
        refs = {name: repository.lookup_branch(name) for name in repository.list_branches()}
        refs |= {f"tag {name}": repository.lookup_tag(name) for name in repository.list_tags()}
        seen[path.name] = {
            name: [(info.message, contents(repository, info.id)) for info in repository.ancestry(snapshot_id=tip)]
            for name, tip in refs.items()
        }
        assert repository.verify() == []
        repository.close()
    seen["folders"] = sorted(
        str(path.relative_to(folder)) for path in folder.glob("plain.zarr/**/*") if not path.is_dir()
    )
    return seen


def contents(repository: Repository, snapshot_id: str) -> dict[str, bytes]:
    store = repository.readonly_session(snapshot_id=snapshot_id).store

    async def keys() -> list[str]:
        return [key async for key in store.list()]

    values = {key: store.get_sync(key) for key in sync(keys())}
    return {key: value.to_bytes() for key, value in values.items() if value is not None}


# -- how calls fail --------------------------------------------------------------------------------------------


@dataclass
class Fault:
    """Lets the ``number``-th call of some kinds fail, once or with all that follow."""

    kinds: tuple[str, ...]
    error: Callable[[], Exception]
    for_good: bool
    expected: set[ErrorKind]
    number: int = 0
    count: int = 0

    def __call__(self, call: str) -> None:
        if call in self.kinds and self.number:
            self.count += 1
            if self.count == self.number or (self.for_good and self.count > self.number):
                raise self.error()


def os_error(number: int) -> Callable[[], Exception]:
    return lambda: OSError(number, os.strerror(number))


BELOW_SQLITE = {
    "disk-full": lambda: Fault(("write",), lambda: apsw.FullError("injected"), True, FULL),
    "write-error": lambda: Fault(("write", "truncate"), lambda: apsw.IOError("injected"), False, BROKEN),
    "sync-error": lambda: Fault(("sync",), lambda: apsw.IOError("injected"), False, BROKEN),
    "cannot-open": lambda: Fault(("open",), lambda: apsw.CantOpenError("injected"), True, BROKEN),
}
CALLS = ("os.open", "os.link", "os.rename", "os.remove", "os.mkdir", "os.fsync")  # `open` and `os.open` are one
BELOW_PYTHON = {
    "no-space": lambda: Fault(CALLS, os_error(errno.ENOSPC), True, FULL | BROKEN | UNREAD),
    "io-error": lambda: Fault(CALLS, os_error(errno.EIO), False, BROKEN | UNREAD),
    "no-permission": lambda: Fault(
        CALLS, os_error(errno.EACCES), True, BROKEN | UNREAD | {ErrorKind.READ_ONLY_STORAGE}
    ),
    "no-descriptors": lambda: Fault(CALLS, os_error(errno.EMFILE), True, BROKEN | UNREAD),
}


class Hook:
    """Python's audit hook for calls on the files of one folder; a hook can be switched off, not removed."""

    def __init__(self) -> None:
        self.folder: str | None = None
        self.fault: Callable[[str], None] = lambda call: None
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        call = "os.open" if event == "open" else event
        if self.folder is None or call not in CALLS or not isinstance(arguments[0], str | os.PathLike):
            return
        if os.fspath(arguments[0]).startswith(self.folder):
            self.fault(call)


@pytest.fixture(scope="module")
def hook() -> Hook:
    return Hook()


@contextlib.contextmanager
def failing(fault: Fault, folder: Path, disk: Disk, hook: Hook) -> Iterator[None]:
    disk.fail = fault
    hook.folder, hook.fault = str(folder), fault
    try:
        yield
    finally:
        hook.folder = None
        disk.fail = lambda operation: None


def try_all(
    action: Callable[[Repository], None], template: Path, make: Callable[[], Fault], disk: Disk, hook: Hook, step: int
) -> int:
    """Let the n-th call fail, for n = 1, 1 + step, ...; how many faults were met."""
    before = look(template)
    done = fresh(template, disk.root)
    action(opened(done))
    after = look(done)
    for met, number in enumerate(itertools.count(1, step)):
        folder = fresh(template, disk.root)
        repository = opened(folder)
        fault = make()
        fault.number = number
        raised = None
        with failing(fault, folder, disk, hook):
            try:
                action(repository)
            except IceliteError as error:
                raised = error
        if fault.count < number:
            assert raised is None
            return met
        assert raised is None or raised.kind in fault.expected, (number, raised)
        repository.close()
        seen = look(folder)
        assert seen in (before, after), (number, raised)
        if raised is not None:
            with contextlib.suppress(AlreadyExistsError):  # it took place, and only the last sync failed
                action(opened(folder))
            assert look(folder) in (after, {**after, NAME: look(folder)[NAME]})
    raise AssertionError("itertools.count has no end")


_numbers = itertools.count()


def fresh(template: Path, root: Path) -> Path:
    """A copy of a folder; that of the call before goes."""
    for old in root.iterdir():
        shutil.rmtree(old)
    return Path(shutil.copytree(template, root / str(next(_numbers))))


@pytest.fixture(params=["inline", "objects"])
def template(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    prepare(tmp_path, **(OBJECTS if request.param == "objects" else {}))
    return request.param, tmp_path


@pytest.mark.parametrize("fault", [*BELOW_SQLITE, *BELOW_PYTHON])
def test_after_any_failed_call_everything_is_as_before_or_done(
    fault: str,
    template: tuple[str, Path],
    watched_disk: Disk,
    hook: Hook,
    amount: Amount,
    request: pytest.FixtureRequest,
) -> None:
    kind, folder = template
    make = {**BELOW_SQLITE, **BELOW_PYTHON}[fault]
    met = {
        action.__name__: try_all(action, folder, make, watched_disk, hook, amount(15, 1))
        for action in (LOCAL if kind == "inline" else WITH_OBJECTS)
    }
    request.node.counted.append(f"{sum(met.values())} faults: {met}")
    assert sum(met.values()) > 3


def test_a_failed_commit_can_be_tried_again_by_the_same_session(
    tmp_path: Path, watched_disk: Disk, amount: Amount, request: pytest.FixtureRequest
) -> None:
    """The session keeps what it staged; where only the last sync failed, the commit had taken effect and says so."""
    total = 0
    for name, make in BELOW_SQLITE.items():
        in_doubt = 0
        for number in itertools.count(1, amount(5, 1)):
            folder = watched_disk.root / f"{name}{number}"
            folder.mkdir()
            prepare(folder)
            repository = Repository.open(folder / NAME)
            tip = repository.lookup_branch("main")
            session = repository.writable_session("main")
            watched_disk.fail = fault = make()
            fault.number, caught = number, None
            try:
                for chunk in range(CHUNKS):
                    session.store.set_sync(f"x/c/{chunk}", default_buffer_prototype().buffer.from_bytes(b"abcd"))
                session.commit("while the disk fails")
            except IceliteError as raised:
                caught = raised
            watched_disk.fail = lambda operation: None
            if caught is not None and repository.lookup_branch("main") == tip:
                for chunk in range(CHUNKS):
                    session.store.set_sync(f"x/c/{chunk}", default_buffer_prototype().buffer.from_bytes(b"abcd"))
                session.commit("on a disk that is well")
            elif caught is not None:
                in_doubt += 1
                with pytest.raises(ConflictError):
                    session.commit("again")
            newest = Repository.open(folder / NAME, check="always")
            assert contents(newest, newest.lookup_branch("main"))["x/c/3"] == b"abcd"
            shutil.rmtree(folder)
            if fault.count < number:
                break
            total += 1
        assert in_doubt <= (name == "sync-error")
    request.node.counted.append(f"{total} faults")
