"""What opening a session costs, in steps of SQLite: the forks behind a snapshot count, its history does not."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import apsw
import pytest
import zarr

from icelite import Repository
from icelite.catalog.nodes import find_node, list_nodes


def steps(repo: Repository, act: Callable[[], object]) -> int:
    """Steps of all statements on the repository's connection while something is done."""
    connection = repo._catalog._connection
    seen: list[int] = []

    def note(event: dict[str, Any]) -> None:
        seen.append(event["stmt_status"]["SQLITE_STMTSTATUS_VM_STEP"])

    connection.trace_v2(apsw.SQLITE_TRACE_PROFILE, note)
    try:
        act()
    finally:
        connection.trace_v2(0, None)
    assert seen
    return sum(seen)


def commit(repo: Repository, branch: str, count: int) -> str:
    snapshot_id = ""
    for number in range(count):
        session = repo.writable_session(branch)
        zarr.open_array(session.store, path="a")[number % 10] = number + 1
        snapshot_id = session.commit(f"{branch} {number}")
    return snapshot_id


def make(path: Path) -> Repository:
    repo = Repository.create(path)
    session = repo.writable_session("main")
    zarr.create_array(session.store, name="a", shape=(10,), chunks=(1,), dtype="i4")
    session.commit("array")
    return repo


def test_opening_a_session_does_not_read_the_history(tmp_path: Path) -> None:
    repo = make(tmp_path / "a.icelite")
    commit(repo, "main", 1)
    short = steps(repo, lambda: repo.readonly_session("main"))
    commit(repo, "main", 300)
    assert steps(repo, lambda: repo.readonly_session("main")) == short


def test_opening_a_session_reads_the_forks_behind_it(tmp_path: Path) -> None:
    repo = make(tmp_path / "a.icelite")
    costs = []
    for fork in range(6):
        base = repo.lookup_branch("main")
        repo.create_branch(f"side{fork}", base)
        commit(repo, f"side{fork}", 1)
        commit(repo, "main", 2)  # main is the one that opens a segment
        costs.append(steps(repo, lambda: repo.readonly_session("main")))
    differences = {later - earlier for earlier, later in pairwise(costs)}
    assert len(differences) == 1  # so much more for each fork
    assert 0 < differences.pop() < 100


def test_a_chunk_is_found_without_reading_others(tmp_path: Path) -> None:
    repo = make(tmp_path / "a.icelite")
    commit(repo, "main", 12)
    store = repo.readonly_session("main").store
    store.get_sync("a/c/0")
    few = steps(repo, lambda: store.get_sync("a/c/1"))
    commit(repo, "main", 200)  # twenty versions of each chunk
    store = repo.readonly_session("main").store
    store.get_sync("a/c/0")
    assert steps(repo, lambda: store.get_sync("a/c/1")) == few


def test_nodes_are_found_and_listed_without_reading_their_older_versions(tmp_path: Path) -> None:
    """As when a catalog has grown every night: the shape of each array changed thousands of times."""
    repo = make(tmp_path / "a.icelite")

    def cost() -> tuple[int, int]:
        changes = repo.readonly_session("main").changes
        found = lambda: find_node(changes.catalog, changes.view, "a")  # noqa: E731
        assert found() is not None
        return steps(repo, found), steps(repo, lambda: list_nodes(changes.catalog, changes.view, ""))

    few = cost()
    for number in range(50):
        session = repo.writable_session("main")
        zarr.open_array(session.store, path="a").attrs["night"] = number
        session.commit(f"night {number}")
    assert cost() == few


FAULTS = """
import resource, sys, numpy, zarr
from icelite import Repository
session = Repository.create(sys.argv[1]).writable_session("main")
shape, chunks = (48, 1 << 20), (1, 1 << 20)
array = zarr.create_array(session.store, name="a", shape=shape, chunks=chunks, dtype="u1", compressors=None)
array[:] = numpy.random.default_rng(0).integers(0, 255, array.shape, "u1")
session.commit("")
store = Repository.open(sys.argv[1]).readonly_session("main").store
store.get_sync("a/c/0/0")
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for number in range(48):
    store.get_sync(f"a/c/{number}/0")
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc learns which blocks to keep")
def test_reading_large_chunks_uses_the_same_memory_again(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FAULTS, str(tmp_path / "a.icelite")]
    # A cluster of dask's sets MALLOC_TRIM_THRESHOLD_ for its workers, which keeps glibc from learning.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    faults = int(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)
    assert faults < 48 * 64  # a chunk has 256 pages, in each of two copies
