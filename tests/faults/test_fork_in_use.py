"""os.fork() beside threads that read and write, and what the child may do then."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import zarr

from icelite import Repository
from icelite.catalog import locks as guard

pytestmark = pytest.mark.skipif(not guard._SET, reason="the guard is Linux's")

BESIDE_THREADS = """
import collections, os, signal, sys, threading, warnings
warnings.simplefilter("ignore")
import icelite, zarr
path, config = sys.argv[1], icelite.RepositoryConfig(busy_timeout_seconds=5)
repo = icelite.Repository.open(path, config)
first = repo.lookup_branch("main")
kept = repo.readonly_session("main")
zarr.open_array(kept.store, path="x", mode="r")[:]  # zarr's loop runs: a fork while it starts hangs in zarr's own lock
stop, failures = threading.Event(), []

def read():
    while not stop.is_set():
        kept.store.get_sync("x/c/0")
        list(kept.changes.chunks.columns(kept.changes.nodes.find("x").node.node_id))

def write():
    number = 0
    while not stop.is_set():
        session = repo.writable_session("main")
        zarr.open_array(session.store, path="x")[1] = number
        session.commit("parent", rebase_with=icelite.BasicConflictSolver())
        number += 1

def run(work):
    try:
        work()
    except BaseException as error:
        failures.append(repr(error))

def child():
    signal.alarm(20)
    try:
        assert kept.store.get_sync("x/c/0") is not None
        list(kept.changes.chunks.columns(kept.changes.nodes.find("x").node.node_id))
        mine = icelite.Repository.open(path, config)
        values = zarr.open_array(mine.readonly_session(snapshot_id=first).store, path="x", mode="r")[:].tolist()
        assert values == [1, 1, 1, 1], values
        session = mine.writable_session("main")
        zarr.open_array(session.store, path="x")[2] = os.getpid()
        session.commit("child", rebase_with=icelite.BasicConflictSolver())
        os._exit(0)
    except BaseException as error:
        os.write(2, repr(error).encode())
        os._exit(1)

threads = [threading.Thread(target=run, args=(work,)) for work in (read, read, write)]
for thread in threads:
    thread.start()
ends = collections.Counter()
for _ in range(int(sys.argv[2])):
    pid = os.fork()
    if pid == 0:
        child()
    ends[os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])] += 1
stop.set()
for thread in threads:
    thread.join()
assert set(ends) == {0}, ends
assert not failures, failures
assert repo.verify() == []
messages = [info.message for info in repo.ancestry(branch="main")]
assert messages.count("child") == int(sys.argv[2])
"""

KEEPS_OUT = """
import os, subprocess, sys, threading
import icelite
from icelite.catalog.database import Catalog
from icelite.storage import as_storage
path = sys.argv[1]
catalog = Catalog(as_storage(path))
stop = threading.Event()
def read():
    while not stop.is_set():
        catalog.row("SELECT 1 FROM snapshot")
thread = threading.Thread(target=read)
thread.start()
other = '''
import sys, icelite
repo = icelite.Repository.open(sys.argv[1], icelite.RepositoryConfig(busy_timeout_seconds=0.2))
try:
    repo.create_branch("b", repo.lookup_branch("main"))
    print("wrote")
except icelite.StorageError as error:
    print(error.kind)
'''
pid = os.fork()
if pid == 0:
    with catalog.read() as txn:
        txn.row("SELECT 1 FROM snapshot")
        open(path, "rb").close()
        found = subprocess.run([sys.executable, "-c", other, path], capture_output=True, text=True)
    os._exit(0 if found.stdout == "busy\\n" else 1)
code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
stop.set()
thread.join()
sys.exit(code)
"""

POOL = """
import multiprocessing, sys, warnings
warnings.simplefilter("ignore")
import icelite, zarr
path = sys.argv[1]
repo = icelite.Repository.open(path)
def work(number):
    session = repo.writable_session("main")
    zarr.open_array(session.store, path="x")[number % 4] = number
    return session.commit(f"worker {number}", rebase_with=icelite.BasicConflictSolver())
if __name__ == "__main__":
    repo.readonly_session("main").store.get_sync("x/c/0")
    with multiprocessing.get_context("fork").Pool(3) as pool:
        made = pool.map(work, range(9))
    assert set(made) <= {info.id for info in repo.ancestry(branch="main")}
    assert repo.verify() == []
"""

INSIDE = """
import os, sys, icelite
from icelite.catalog import forks
from icelite.catalog.database import Catalog
from icelite.catalog.settings import save_setting
from icelite.storage import as_storage
forks.WAIT_SECONDS = 0.2
catalog = Catalog(as_storage(sys.argv[1]))
pid = 1
try:
    with catalog.write() as txn:
        save_setting(txn, "x", 1)
        pid = os.fork()
        if pid == 0:
            raise KeyError  # leaves the door that is its parent's
except KeyError:
    try:
        icelite.Repository.open(sys.argv[1])
    except icelite.SessionStateError as error:
        os._exit(0 if error.kind == "forked-in-use" and "spawn" in str(error) else 2)
    os._exit(3)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
with catalog.read() as txn:
    assert txn.row("SELECT value FROM setting WHERE name = 'x'") == ("1",)
catalog.close()
assert icelite.Repository.open(sys.argv[1], check="always").verify() == []
"""


@pytest.mark.parametrize("program", [BESIDE_THREADS, KEEPS_OUT, POOL, INSIDE], ids=["beside", "out", "pool", "inside"])
def test_a_child_has_locks_of_its_own_or_a_clear_error(tmp_path: Path, program: str) -> None:
    path = tmp_path / "a.icelite"
    repo = Repository.create(path)
    session = repo.writable_session("main")
    zarr.create_array(session.store, name="x", shape=(4,), chunks=(1,), dtype="i4", compressors=None)[:] = 1
    session.commit("start")
    repo.close()
    count = "60" if os.environ.get("ICELITE_CAMPAIGN") else "8"
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, str(path), count], capture_output=True, text=True, timeout=300
    )
    assert (found.returncode, found.stderr) == (0, "")
