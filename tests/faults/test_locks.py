"""Other code in the process closes the catalog file, and SQLite's locks are gone: icelite's processes stay apart."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest
import xarray as xr
import zarr

from icelite import ConflictDetector, Repository, RepositoryConfig, StorageError
from icelite.catalog import door
from icelite.catalog import locks as guard
from icelite.catalog.chunks import insert_payload
from icelite.catalog.database import Catalog
from icelite.catalog.settings import find_setting, save_setting
from icelite.storage import as_storage

pytestmark = pytest.mark.skipif(not guard._SET, reason="there are no locks of open file descriptions")

SECONDS = float(os.environ.get("ICELITE_LOCK_SECONDS", "3"))  # of each campaign: 60 for the figures in the documents
PROCESSES = int(os.environ.get("ICELITE_LOCK_PROCESSES", "2"))


def by_open(path: Path) -> None:
    path.open("rb").close()


def by_copy(path: Path) -> None:
    shutil.copy(path, path.with_name("copy"))


def by_sqlite3(path: Path) -> None:
    connection = sqlite3.connect(path, timeout=0.1)
    with contextlib.suppress(sqlite3.OperationalError):  # "database is locked", while the file is overwritten
        connection.execute("SELECT count(*) FROM snapshot").fetchone()
    connection.close()


def by_xarray(path: Path) -> None:
    """What `xarray.open_dataset` without ``engine`` does before it comes to icelite."""
    for name, engine in xr.backends.list_engines().items():
        if name != "icelite":
            engine.guess_can_open(path)


def close_by_all_means(path: Path) -> None:
    for close in (by_open, by_copy, by_sqlite3, by_xarray):
        close(path)


# Another process: prints what it got, or the kind of the error.
OTHER = """
import sys, icelite
path, what = sys.argv[1:]
config = icelite.RepositoryConfig(busy_timeout_seconds=0.3)
try:
    repo = icelite.Repository.open(path, config)
    tip = repo.lookup_branch("main")
    if what == "write":
        repo.create_branch("other", tip)
    print("done")
except icelite.IceliteError as error:
    print(error.kind)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "a.icelite"
    repo = Repository.create(path)
    session = repo.writable_session("main")
    zarr.create_array(session.store, name="x", shape=(4,), chunks=(1,), dtype="i4", dimension_names=["y"])[:] = 1
    session.commit("start")
    repo.close()
    return path


@pytest.fixture
def catalog(path: Path) -> Iterator[Catalog]:
    catalog = Catalog(as_storage(path), change_set=True, busy_timeout=0.3)
    yield catalog
    catalog.close()


def other(path: Path, what: str) -> str:
    found = subprocess.run([sys.executable, "-c", OTHER, str(path), what], capture_output=True, text=True, timeout=60)
    assert found.returncode == 0, found.stderr
    return found.stdout.strip()


def locks(path: Path) -> list[list[str]]:
    """The kernel's list of locks on a file: kind, mode and range of each."""
    status = path.stat()
    mark = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    lines = (line.split() for line in Path("/proc/locks").read_text().splitlines() if "->" not in line)
    return [[line[1], line[3], *line[6:8]] for line in lines if line[5] == mark]


def is_guarded(path: Path) -> bool:
    return any(kind == "OFDLCK" for kind, *_ in locks(path))


def check_sound(path: Path) -> None:
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()


# -- what is kept though SQLite's locks are gone ---------------------------------------------------------------


def test_a_writer_stays_the_only_one(catalog: Catalog, path: Path) -> None:
    with catalog.write() as txn:
        save_setting(txn, "a", 1)
        close_by_all_means(path)
        assert other(path, "write") == "busy"
        assert other(path, "read") == "done"  # a reader goes on beside a writer that has overwritten nothing
    assert other(path, "write") == "done"
    with catalog.read() as txn:
        assert find_setting(txn, "a") == 1


def test_a_reader_keeps_a_commit_waiting(catalog: Catalog, path: Path) -> None:
    with catalog.read() as txn:
        before = txn.rows("SELECT name FROM branch")
        close_by_all_means(path)
        assert other(path, "write") == "busy"
        assert txn.rows("SELECT name FROM branch") == before
    assert other(path, "write") == "done"


def test_nobody_plays_back_the_journal_of_a_large_write(catalog: Catalog, path: Path) -> None:
    """Once SQLite's cache is full it overwrites the file, and its journal looks as if it were left by a crash."""
    with catalog.write() as txn:
        ids = [insert_payload(txn, os.urandom(1 << 20), 0) for _ in range(24)]
        assert path.with_name(path.name + "-journal").read_bytes()[:8] != bytes(8)
        close_by_all_means(path)
        assert other(path, "read") == "busy"
        assert other(path, "write") == "busy"
    assert other(path, "read") == "done"
    with catalog.read() as txn:
        assert len(txn.rows("SELECT id FROM payload WHERE id >= ?", (ids[0],))) == 24
    check_sound(path)


def test_readers_go_on_until_a_commit_overwrites_the_file(catalog: Catalog, path: Path) -> None:
    """A guard keeps readers out no longer than SQLite does: during a large write from when its cache is full."""
    with catalog.write() as txn:
        insert_payload(txn, bytes(1 << 20), 0)
        assert not [lock for lock in locks(path) if lock[:2] == ["OFDLCK", "WRITE"] and lock[2] == str(guard.READERS)]
        for _ in range(24):
            insert_payload(txn, bytes(1 << 20), 0)
        assert [lock for lock in locks(path) if lock[:2] == ["OFDLCK", "WRITE"] and lock[2] == str(guard.READERS)]
    assert locks(path) == []


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_all_names_of_a_file_have_one_guard(path: Path, tmp_path: Path, link: Callable[[Path, Path], None]) -> None:
    name = tmp_path / "sub" / "b.icelite"
    name.parent.mkdir()
    link(path, name)
    with Catalog(as_storage(path)).write():
        assert other(name, "write") == "busy"


# -- every statement -------------------------------------------------------------------------------------------


class Audit:
    """Looks, at each event of each connection to a file, whether the kernel has a guard where SQLite has a lock."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.guarded = 0
        self.bare: list[str] = []

    def watch(self, connection: apsw.Connection) -> None:
        def note(event: dict[str, Any]) -> None:
            if connection.txn_state("main") != apsw.SQLITE_TXN_NONE:
                if is_guarded(self._path):
                    self.guarded += 1
                else:
                    self.bare.append(str(event.get("sql", event["code"])))

        if connection.filename == str(self._path):
            kinds = apsw.SQLITE_TRACE_STMT | apsw.SQLITE_TRACE_ROW | apsw.SQLITE_TRACE_PROFILE
            connection.trace_v2(kinds, note)


def work(path: Path) -> None:
    """Something of everything: opening, reading, committing, administration, upkeep."""
    repo = Repository.open(path, check="always")
    session = repo.writable_session("main")
    zarr.create_array(session.store, name="y", shape=(100,), chunks=(1,), dtype="i4")[:] = 2
    session.changes.chunks.flush()
    fork = session.fork()
    zarr.open_array(fork.store, path="x")[1] = 5
    session.merge(fork)
    session.commit("more")
    store = repo.readonly_session("main").store
    assert zarr.open_array(store, path="y", mode="r")[:].sum() == 200
    store.get_sync("x/c/0")
    repo.create_branch("b", repo.lookup_branch("main"))
    repo.create_tag("t", repo.lookup_branch("main"))
    repo.delete_branch("b")
    assert len(list(repo.ancestry(branch="main"))) == 3
    assert repo.verify() == []
    repo.compact()
    repo.bundle(path.with_name("bundle.icelite"))
    repo.close()


def audit(path: Path) -> Audit:
    found = Audit(path)
    apsw.connection_hooks.append(found.watch)
    try:
        work(path)
    finally:
        apsw.connection_hooks.remove(found.watch)
    return found


def test_every_statement_on_the_file_runs_under_a_guard(path: Path) -> None:
    found = audit(path)
    assert found.bare == []
    assert found.guarded > 500
    assert locks(path) == []


def test_the_audit_would_find_a_statement_without_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard.Guard, "share", lambda self: True)
    assert audit(path).bare != []


# -- descriptors -----------------------------------------------------------------------------------------------


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_descriptors_are_handed_on_and_closed_with_the_last_connection(path: Path) -> None:
    before = open_descriptors()
    repo = Repository.open(path)
    for _ in range(20):
        session = repo.writable_session("main")
        zarr.open_array(session.store, path="x")[0] = 3
        session.commit("again", allow_empty=True)
        repo.readonly_session("main").store.get_sync("x/c/0")
        most = open_descriptors()
    assert most - before <= 2 * 5  # SQLite's and the guard's, of the repository, two spares and what is in use
    del session
    repo.close()
    assert open_descriptors() == before


# -- waiting ---------------------------------------------------------------------------------------------------


READER = """
import sys, time, icelite
store = icelite.Repository.open(sys.argv[1]).readonly_session("main").store
reads, end = 0, time.monotonic() + float(sys.argv[2])
print("alive", flush=True)
while time.monotonic() < end:
    assert store.get_sync("x/c/0") is not None
    reads += 1
print(reads)
"""


def test_neither_a_writer_nor_readers_that_never_pause_starve(path: Path) -> None:
    command = [sys.executable, "-c", READER, str(path), str(SECONDS)]
    readers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    for reader in readers:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "alive\n"
    repo = Repository.open(path)
    tip = repo.lookup_branch("main")
    commits, longest, end = 0, 0.0, time.monotonic() + SECONDS * 0.8
    while time.monotonic() < end:
        begun = time.monotonic()
        repo.create_branch(f"b{commits}", tip)
        longest = max(longest, time.monotonic() - begun)
        commits += 1
    counts = [int(reader.communicate()[0]) for reader in readers]
    print("commits", commits, "longest", longest, "reads", counts)
    assert commits >= 10 * SECONDS
    assert min(counts) >= 20 * SECONDS


# -- for long --------------------------------------------------------------------------------------------------

WRITER = """
import sys, threading, time, warnings
import icelite, numpy as np, shutil, sqlite3, xarray as xr, zarr
warnings.simplefilter("ignore")
path, name, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
end = time.time() + seconds
def close():
    n = 0
    while time.time() < end:
        n += 1
        try:
            if n % 3 == 0:
                xr.open_dataset(path).close()
            elif n % 3 == 1:
                open(path, "rb").close()
            else:
                connection = sqlite3.connect(path)
                connection.execute("SELECT count(*) FROM snapshot").fetchone()
                connection.close()
        except sqlite3.OperationalError as error:  # a reader without a guard waits for no writer in its own process
            assert "locked" in str(error), error
        time.sleep(0.001)
threading.Thread(target=close, daemon=True).start()
n = 0
while time.time() < end:
    session = icelite.Repository.open(path).writable_session("main")
    zarr.create_array(session.store, name=f"{name}{n}", shape=(4000,), chunks=(1000,), dtype="f8", compressors=None,
        dimension_names=["x"])[:] = np.random.rand(4000)
    session.commit(f"{name}{n}", rebase_with=icelite.ConflictDetector())
    print(f"ACK {name}{n}", flush=True)
    n += 1
"""


def test_what_was_acknowledged_is_there_whatever_else_closes_the_file(path: Path) -> None:
    """`ICELITE_LOCK_SECONDS=60 ICELITE_LOCK_PROCESSES=4` for the long form."""
    run = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), f"p{number}_", str(SECONDS)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(PROCESSES)
    ]
    outputs = [process.communicate() for process in run]
    assert [(process.returncode, stderr) for process, (_, stderr) in zip(run, outputs, strict=True)] == [
        (0, "") for _ in run
    ]
    lines = [line for stdout, _ in outputs for line in stdout.splitlines()]
    acknowledged = [line.removeprefix("ACK ") for line in lines if line.startswith("ACK ")]
    print("acknowledged", len(acknowledged), "by process", [text.count("ACK") for text, _ in outputs])
    check_sound(path)
    repo = Repository.open(path, check="always")
    messages = [info.message for info in repo.ancestry(branch="main")]
    assert sorted(set(messages) - {"start", "Repository initialized"}) == sorted(acknowledged)
    assert all(f"p{number}_0" in acknowledged for number in range(PROCESSES))
    assert repo.verify() == []


def test_one_deadline_and_one_error(path: Path) -> None:
    with Catalog(as_storage(path)).write():
        repo = Repository.open(path, RepositoryConfig(busy_timeout_seconds=0.1))
        with pytest.raises(StorageError) as caught:
            repo.create_branch("b", repo.lookup_branch("main"))
    assert caught.value.kind == "busy"
    assert "busy_timeout_seconds" in str(caught.value)


def test_a_journal_left_by_a_crash_is_played_back_beside_readers(path: Path, catalog: Catalog) -> None:
    crash = """
import os, sys, signal
from icelite.catalog.database import Catalog
from icelite.catalog.chunks import insert_payload
from icelite.storage import as_storage
with Catalog(as_storage(sys.argv[1])).write() as txn:
    txn.run("DELETE FROM branch")
    for _ in range(24):
        insert_payload(txn, os.urandom(1 << 20), 0)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", crash, str(path)]).returncode == -9
    assert path.with_name(path.name + "-journal").read_bytes()[:8] != bytes(8)
    waiting = Catalog(as_storage(path), busy_timeout=0)  # opening plays it back, without waiting for anybody
    assert waiting.row("SELECT name FROM branch") == ("main",)
    with catalog.read() as txn:
        assert txn.rows("SELECT name FROM branch") == [("main",)]
    assert locks(path) == []
    check_sound(path)


def test_a_commit_that_waits_for_readers_is_made_when_they_are_gone(path: Path) -> None:
    assert door.SHORT_PAUSES > 0
    repo = Repository.open(path)
    session = repo.writable_session("main")
    zarr.open_array(session.store, path="x")[0] = 9
    process = subprocess.Popen([sys.executable, "-c", READER, str(path), "0.5"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "alive\n"
    session.commit("among readers", rebase_with=ConflictDetector())
    assert int(process.communicate()[0]) > 0
