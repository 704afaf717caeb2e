"""Compaction gives space back and loses nothing, whatever stops it; and what whole histories cost in bytes."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from icelite.config import RepositoryConfig
from icelite.errors import ErrorKind, InternalError, StorageError
from icelite.repository import Repository


@pytest.fixture
def bench(new_workbench: Any, tmp_path: Path) -> Any:
    """A repository in a file, most of which is free pages."""
    bench = new_workbench(tmp_path / "x.icelite")
    bench.commit({"x/zarr.json": bench.array(64)})
    for _ in range(3):
        bench.commit({f"x/c/{number}": random.Random(number).randbytes(10_000) for number in range(40)})
    bench.repository.expire_snapshots(bench.now())
    bench.repository.garbage_collect(bench.now())
    return bench


def test_it_gives_the_space_back_and_changes_nothing_else(bench: Any) -> None:
    before, counts = bench.contents("main"), bench.row_counts()
    size = bench.storage.stat().st_size
    result = bench.repository.compact()
    assert (result.bytes_before, result.bytes_after) == (size, bench.storage.stat().st_size)
    assert result.bytes_after < 0.4 * result.bytes_before
    assert (bench.contents("main"), bench.row_counts()) == (before, counts)
    assert bench.storage.read_bytes()[16:18] == (4096).to_bytes(2, "big")
    assert bench.storage.read_bytes()[18:20] == b"\1\1"  # in rollback mode
    again = Repository.open(bench.storage, check="always")
    assert again.verify() == []
    again.close()
    bench.commit({"x/c/50": b"afterwards"})


def test_a_dry_run_changes_nothing(bench: Any) -> None:
    data = bench.storage.read_bytes()
    told = bench.repository.compact(dry_run=True)
    assert bench.storage.read_bytes() == data
    done = bench.repository.compact()
    assert told.bytes_before == done.bytes_before
    assert done.bytes_after <= told.bytes_after < 1.1 * done.bytes_after


def test_in_memory(workbench: Any) -> None:
    workbench.commit({"x/zarr.json": workbench.array(4), "x/c/0": bytes(100_000)})
    workbench.commit({"x/c/0": b"short"})
    workbench.repository.expire_snapshots(workbench.now())
    workbench.repository.garbage_collect(workbench.now())
    result = workbench.repository.compact()
    assert result.bytes_after < result.bytes_before - 90_000
    assert workbench.contents("main")["x/c/0"] == b"short"


def test_ids_of_payloads_are_not_used_again(bench: Any) -> None:
    highest = bench.rows("SELECT max(id) FROM payload")[0][0]
    bench.commit({"x": None})
    bench.repository.expire_snapshots(bench.now())
    bench.repository.garbage_collect(bench.now())
    bench.repository.compact()
    bench.commit({"y/zarr.json": bench.array(1), "y/c/0": b"new"})
    assert bench.rows("SELECT min(id) FROM payload")[0][0] > highest


def test_sessions_that_are_open_go_on(bench: Any) -> None:
    reader = bench.repository.readonly_session("main")
    writer = bench.repository.writable_session("main")
    before = bench.contents_of(reader)
    bench.write(writer, {"x/c/0": b"mine"})
    bench.repository.compact()
    assert bench.contents_of(reader) == before
    writer.commit("after all")
    assert bench.contents("main") == before | {"x/c/0": b"mine"}


def test_the_doors_are_closed_again(bench: Any) -> None:
    bench.repository.compact()
    with bench.repository._catalog.read() as txn:
        for statement in (
            "PRAGMA page_size",
            "PRAGMA user_version = 7",
            "ATTACH ':memory:' AS other",
            "CREATE TABLE other (a)",
        ):
            with pytest.raises(Exception, match=r"(?i)not authorized|too many attached"):
                txn.rows(statement)
    with bench.repository._catalog.read(), pytest.raises(InternalError):
        bench.repository._catalog.vacuum()


def test_it_waits_for_readers_until_the_deadline(bench: Any) -> None:
    hasty = Repository.open(bench.storage, RepositoryConfig(busy_timeout_seconds=0.05))
    with bench.repository._catalog.read() as txn:
        txn.rows("SELECT * FROM branch")
        with pytest.raises(StorageError) as error:
            hasty.compact()
    assert error.value.kind == ErrorKind.BUSY
    assert hasty.verify() == []
    hasty.compact()


STARVED = """
import resource, signal, sys
import icelite
repo = icelite.Repository.open(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    repo.compact()
except icelite.StorageError as error:
    assert repo.verify() == [], repo.verify()
    print(error.kind)
"""


def test_nothing_is_lost_when_there_is_no_room(bench: Any) -> None:
    """The operating system refuses files larger than a limit, at many different points of the work."""
    size = bench.storage.stat().st_size
    before, content = bench.contents("main"), bench.storage.read_bytes()
    bench.repository.close()
    kinds = []
    for limit in (4096, size // 20, size // 5):
        command = [sys.executable, "-c", STARVED, str(bench.storage), str(limit)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        kinds.append(done.stdout.strip())
    assert set(kinds) <= {ErrorKind.STORAGE_FULL, ErrorKind.IO}
    bench.repository = Repository.open(bench.storage, check="always")
    assert bench.contents("main") == before
    assert bench.storage.read_bytes() == content


# -- what a history costs ----------------------------------------------------------------------------------------

CHUNKS, CHUNK_BYTES, CHANGED = 10_000, 512, 10  # of the array; bytes of one, as icelite keeps inline; of a commit


@pytest.mark.parametrize("commits", [50, pytest.param(1000, marks=pytest.mark.slow)])
def test_what_commits_cost_and_what_is_left_when_they_expire(new_workbench: Any, tmp_path: Path, commits: int) -> None:
    choose = random.Random(1)
    bench = new_workbench(tmp_path / "history.icelite")
    bench.commit(
        {"x/zarr.json": bench.array(CHUNKS)} | {f"x/c/{n}": choose.randbytes(CHUNK_BYTES) for n in range(CHUNKS)}
    )
    size = bench.storage.stat().st_size
    for _ in range(commits):
        bench.commit({f"x/c/{n}": choose.randbytes(CHUNK_BYTES) for n in choose.sample(range(CHUNKS), CHANGED)})
    overhead = bench.storage.stat().st_size - size - commits * CHANGED * CHUNK_BYTES

    assert overhead < 1500 * commits

    content = bench.contents("main")
    bench.repository.expire_snapshots(bench.now())
    bench.repository.garbage_collect(bench.now())
    left = bench.repository.compact().bytes_after
    fresh = new_workbench(tmp_path / "fresh.icelite")
    fresh.commit(content)
    anew = fresh.repository.compact().bytes_after
    assert left < 1.05 * anew
    assert bench.contents("main") == content
    assert bench.repository.verify() == []
    print(f"{commits} commits: {overhead} bytes beyond payloads; left {left}, anew {anew}")
