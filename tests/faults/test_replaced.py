"""A catalog that is open is copied over, replaced, deleted or cut: it is named, and nothing foreign is returned."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import zarr
from zarr.core.buffer import default_buffer_prototype

from icelite import IceliteError, Repository
from icelite.catalog import locks


def make(path: Path, value: int, tags: int = 0) -> Path:
    repo = Repository.create(path)
    session = repo.writable_session("main")
    array = zarr.create_array(session.store, name="x", shape=(3,), chunks=(1,), dtype="u1", compressors=None)
    array[:] = value
    session.commit(f"all {value}")
    for number in range(tags):
        repo.create_tag(f"t{number}", repo.lookup_branch("main"))
    repo.close()
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return make(tmp_path / "a.icelite", 1)


def kind_of(action: Callable[[], object]) -> tuple[str, str]:
    with pytest.raises(IceliteError) as caught:
        action()
    return caught.value.kind, str(caught.value)


@pytest.mark.skipif(not locks._SET, reason="SQLite cannot tell files with one counter apart")
@pytest.mark.parametrize("tags", [0, 3])  # 0: both files count the same number of changes, and SQLite sees none
def test_another_catalog_that_is_copied_over_is_noticed_before_the_next_read(path: Path, tags: int) -> None:
    other = make(path.with_name("b.icelite"), 2, tags)
    repo = Repository.open(path)
    session = repo.readonly_session("main")
    array = zarr.open_array(session.store, path="x", mode="r")
    assert array[0] == 1
    shutil.copyfile(other, path)
    for action in (
        lambda: array[1],
        lambda: repo.lookup_branch("main"),
        lambda: repo.create_branch("b", session.snapshot_id),
    ):
        kind, text = kind_of(action)
        assert kind == "catalog-replaced"
        assert "overwritten" in text
        assert "open it again" in text
    assert zarr.open_array(Repository.open(path).readonly_session("main").store, path="x", mode="r")[0] == 2


@pytest.mark.skipif(not locks._SET, reason="SQLite cannot tell files with one counter apart")
def test_another_history_of_the_same_repository_is_noticed(path: Path) -> None:
    copy = path.with_name("b.icelite")
    shutil.copyfile(path, copy)
    for file, value in ((path, 5), (copy, 6)):
        session = Repository.open(file).writable_session("main")
        zarr.open_array(session.store, path="x")[:] = value
        session.commit("one more")
    session = Repository.open(path).readonly_session("main")
    array = zarr.open_array(session.store, path="x", mode="r")
    assert array[0] == 5
    shutil.copyfile(copy, path)
    assert kind_of(lambda: array[1])[0] == "catalog-replaced"


def test_an_older_copy_of_the_same_repository_serves_what_it_has(path: Path) -> None:
    copy = path.with_name("b.icelite")
    shutil.copyfile(path, copy)
    session = Repository.open(path).readonly_session("main")
    Repository.open(path).create_tag("later", session.snapshot_id)
    shutil.copyfile(copy, path)
    assert zarr.open_array(session.store, path="x", mode="r")[:].tolist() == [1, 1, 1]


def replace(path: Path) -> None:
    make(path.with_name("b.icelite"), 2).replace(path)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 8192 * 4096)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def garble(path: Path) -> None:
    path.write_bytes(b"not a database" * 10_000)


LOSSES = {
    "deleted": (Path.unlink, "catalog-deleted", "deleted"),
    "replaced": (replace, "catalog-replaced", "replaced"),
    "cut": (cut, "truncated-file", "truncated"),
    "emptied": (empty, "truncated-file", "truncated"),
    "garbled": (garble, "catalog-replaced", "overwritten"),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_a_file_that_is_gone_or_cut_is_named(path: Path, loss: str) -> None:
    lose, kind, word = LOSSES[loss]
    repo = Repository.open(path)
    session = repo.writable_session("main")
    zarr.open_array(session.store, path="x")[0] = 7
    tip = session.snapshot_id
    lose(path)
    for action in (lambda: repo.create_branch("b", tip), lambda: session.commit("into nothing")):
        found, text = kind_of(action)
        assert found == kind, text
        assert word in text
        assert str(path) in text


# -- an event loop ---------------------------------------------------------------------------------------------

STOPPED = """
import os, signal, sys
from icelite.catalog.database import Catalog
from icelite.catalog.chunks import insert_payload
from icelite.storage import as_storage
with Catalog(as_storage(sys.argv[1])).write() as txn:
    for _ in range(24):
        insert_payload(txn, os.urandom(1 << 20), 0)
    os.kill(os.getpid(), signal.SIGSTOP)  # while it overwrites the file, as in COMMIT
"""


def test_a_writer_that_was_stopped_does_not_stop_an_event_loop(path: Path) -> None:
    store = Repository.open(path).readonly_session("main").store
    process = subprocess.Popen([sys.executable, "-c", STOPPED, str(path)])
    os.waitpid(process.pid, os.WUNTRACED)

    async def main() -> None:
        asked = [asyncio.create_task(store.get(f"x/c/{i}", default_buffer_prototype())) for i in range(3)]
        listed = asyncio.create_task(store.exists("x/c/1"))
        longest, end = 0.0, time.monotonic() + 1
        while time.monotonic() < end:
            begun = time.monotonic()
            await asyncio.sleep(0.01)
            longest = max(longest, time.monotonic() - begun)
        assert longest < 0.9
        assert not any(task.done() for task in asked)
        os.kill(process.pid, signal.SIGCONT)
        values = await asyncio.gather(*asked)
        assert [value.to_bytes() for value in values if value is not None] == [b"\1"] * 3
        assert await listed

    asyncio.run(main())
    assert process.wait() == 0


# -- file systems ----------------------------------------------------------------------------------------------


def test_file_systems_of_this_machine_are_none_of_a_network(tmp_path: Path) -> None:
    assert locks.find_network(tmp_path / "a.icelite") is None
    assert locks.find_network(Path("/proc/self/status")) is None


@pytest.mark.parametrize(
    ("kind", "mount", "name"),
    [
        (0x6969, None, "NFS"),
        (0xFF534D42, None, "SMB"),
        (0xFE534D42, None, "SMB"),
        (0x0BD00BD0, None, "Lustre"),
        (0x65735546, "fuse.sshfs", "sshfs"),
        (0x65735546, None, "FUSE"),
        (0x65735546, "fuseblk", None),
        (0x65735546, "fuse.gocryptfs", None),
        (0xEF53, None, None),  # ext
        (0x58465342, None, None),  # XFS
        (0x9123683E, None, None),  # Btrfs
        (0x01021994, None, None),  # tmpfs
        (0x794C7630, None, None),  # overlay
    ],
)
def test_file_systems_are_told_by_their_numbers(kind: int, mount: str | None, name: str | None) -> None:
    found = locks.classify(kind, mount)
    assert (found is None) == (name is None)
    assert name is None or name in str(found)


def test_the_mount_of_a_device_is_found() -> None:
    text = "36 35 98:0 /a /b rw,noatime master:1 - fuse.sshfs host:/a rw\n37 35 0:52 / /c rw - ext4 /dev/x rw\n"
    assert locks.find_type(text, "98:0") == "fuse.sshfs"
    assert locks.find_type(text, "0:52") == "ext4"
    assert locks.find_type(text, "9:9") is None


def test_writing_over_a_network_is_warned_about_once_or_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status = os.statvfs(path.parent)
    assert status.f_bsize > 0
    here = locks._ask(path)
    assert here is not None
    monkeypatch.setitem(locks.NETWORK, here, "NFS")  # what this disk is, taken for another kind
    monkeypatch.setattr(locks, "_found", {})
    repo = Repository.open(path)
    assert repo.readonly_session("main").store.get_sync("x/c/0") is not None
    with pytest.warns(UserWarning, match="NFS"):
        repo.writable_session("main")
    repo.create_branch("b", repo.lookup_branch("main"))  # a second warning would be an error
    from icelite import RepositoryConfig

    strict = Repository.open(path, RepositoryConfig(strict_locking=True))
    assert kind_of(lambda: strict.writable_session("main"))[0] == "unsafe-storage"
    assert kind_of(lambda: strict.delete_branch("b"))[0] == "unsafe-storage"
    new = path.with_name("new.icelite")
    assert kind_of(lambda: Repository.create(new, RepositoryConfig(strict_locking=True)))[0] == "unsafe-storage"
    assert not new.exists()
