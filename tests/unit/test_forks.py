"""Forks: out by pickle, written elsewhere, and back into the session."""

from __future__ import annotations

import pickle
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import zarr

import icelite
from icelite import ForkSession, Repository, Session, SessionStateError


def travel(fork: ForkSession) -> ForkSession:
    copy = pickle.loads(pickle.dumps(fork))
    assert isinstance(copy, ForkSession)
    return copy


@pytest.fixture
def repo(tmp_path: Path) -> Repository:
    repo = Repository.create(tmp_path / "a.icelite")
    session = repo.writable_session("main")
    zarr.create_array(session.store, name="a", shape=(8,), chunks=(1,), dtype="i4", fill_value=-1)
    session.commit("empty array")
    return repo


def write(session: Session, start: int, stop: int) -> None:
    zarr.open_array(session.store, path="a")[start:stop] = np.arange(start, stop)


def read(repo: Repository) -> list[int]:
    values = zarr.open_array(repo.readonly_session("main").store, path="a", mode="r")[:]
    return np.asarray(values).tolist()


def fill(fork: ForkSession, start: int) -> ForkSession:
    write(fork, start, start + 2)
    return fork


def test_processes_write_and_the_session_commits(repo: Repository) -> None:
    session = repo.writable_session("main")
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        forks = list(pool.map(fill, [session.fork() for _ in range(4)], range(0, 8, 2)))
    session.merge(*forks)
    session.commit("filled by four")
    assert read(repo) == list(range(8))


def test_a_fork_sees_what_the_session_has_not_committed(repo: Repository) -> None:
    session = repo.writable_session("main")
    write(session, 0, 2)
    zarr.create_array(session.store, name="new", shape=(4,), chunks=(2,), dtype="i4")
    fork = travel(session.fork())
    assert np.asarray(zarr.open_array(fork.store, path="a")[:3]).tolist() == [0, 1, -1]
    zarr.open_array(fork.store, path="new")[2:] = 5
    write(session, 2, 3)
    session.merge(travel(fork))
    session.commit("both")
    group = zarr.open_group(repo.readonly_session("main").store, mode="r")
    assert np.asarray(group["new"][:]).tolist() == [0, 0, 5, 5]
    assert read(repo)[:4] == [0, 1, 2, -1]
    assert [info.message for info in repo.ancestry(branch="main")][:2] == ["both", "empty array"]


def test_forks_of_forks(repo: Repository) -> None:
    session = repo.writable_session("main")
    fork = session.fork()
    write(fork, 0, 1)
    inner = travel(fork.fork())
    write(inner, 1, 2)
    fork.merge(inner)
    session.merge(travel(fork))
    session.commit("two deep")
    assert read(repo)[:3] == [0, 1, -1]


def test_the_fork_merged_last_wins(repo: Repository) -> None:
    session = repo.writable_session("main")
    first, second = session.fork(), session.fork()
    zarr.open_array(first.store, path="a")[0] = 1
    zarr.open_array(second.store, path="a")[0] = 2
    session.merge(first, second)
    session.commit("x")
    assert read(repo)[0] == 2


def test_nodes_of_forks_are_merged(repo: Repository) -> None:
    session = repo.writable_session("main")
    first, second = session.fork(), session.fork()
    for fork, name in ((first, "one"), (second, "two")):
        zarr.create_array(fork.store, name=name, shape=(1,), dtype="i4")[:] = 3
        zarr.open_group(fork.store).attrs["title"] = "the same in both"
    del zarr.open_group(second.store)["a"]
    session.merge(first, second)
    session.commit("nodes")
    group = zarr.open_group(repo.readonly_session("main").store, mode="r")
    assert sorted(group.keys()) == ["one", "two"]
    assert group.attrs["title"] == "the same in both"


def test_different_metadata_is_refused_and_nothing_taken(repo: Repository) -> None:
    session = repo.writable_session("main")
    first, second = session.fork(), session.fork()
    zarr.open_array(first.store, path="a").attrs["unit"] = "K"
    zarr.open_array(second.store, path="a").attrs["unit"] = "degC"
    write(second, 0, 1)
    session.merge(first)
    before = session.status()
    with pytest.raises(SessionStateError) as raised:
        session.merge(second)
    assert raised.value.kind == "merge-failed"
    assert session.status() == before


def test_chunks_of_a_deleted_array_are_refused(repo: Repository) -> None:
    session = repo.writable_session("main")
    fork = session.fork()
    write(fork, 0, 1)
    del zarr.open_group(session.store)["a"]
    with pytest.raises(SessionStateError) as raised:
        session.merge(fork)
    assert raised.value.kind == "merge-failed"


def test_a_fork_deletes_chunks(repo: Repository) -> None:
    session = repo.writable_session("main")
    write(session, 0, 8)
    session.commit("full")
    session = repo.writable_session("main")
    fork = travel(session.fork())
    fork.store.delete_sync("a/c/3")
    session.merge(travel(fork))
    session.commit("a hole")
    assert read(repo)[2:5] == [2, -1, 4]


def test_what_cannot_be(repo: Repository) -> None:
    session, other = repo.writable_session("main"), repo.writable_session("main")
    fork = session.fork()
    for act, kind in (
        (lambda: fork.commit("no"), "commit-not-allowed"),
        (lambda: fork.flush("no"), "commit-not-allowed"),
        (lambda: fork.amend("no"), "commit-not-allowed"),
        (lambda: other.merge(fork), "merge-not-allowed"),
        (lambda: session.merge(other), "merge-not-allowed"),  # type: ignore[arg-type]
        (lambda: repo.readonly_session("main").fork(), "cannot-fork-read-only-session"),
    ):
        with pytest.raises(SessionStateError) as raised:
            act()
        assert raised.value.kind == kind
    session.merge(fork)
    with pytest.raises(SessionStateError, match="merged before"):
        session.merge(travel(fork))


def test_a_fork_of_a_repository_in_memory_says_that_it_cannot_travel() -> None:
    repo = Repository.create(icelite.in_memory_storage())
    session = repo.writable_session("main")
    fork = travel(session.fork())  # in one process it can
    zarr.create_array(fork.store, name="a", shape=(1,), dtype="i4")
    session.merge(fork)
    assert "/a" in session.status().new_arrays


def test_a_fork_whose_snapshot_was_collected_is_refused(repo: Repository) -> None:
    session = repo.writable_session("main")
    write(session, 0, 1)
    fork = session.fork()  # stands on a snapshot of its own, which no branch has
    write(fork, 1, 2)
    moment = datetime.now(UTC)
    repo.garbage_collect(moment)
    with pytest.raises(SessionStateError, match="collected") as raised:
        session.merge(fork)
    assert raised.value.kind == "merge-failed"
