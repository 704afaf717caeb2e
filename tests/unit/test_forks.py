"""Forks: out by pickle, written elsewhere, and back into the session."""

from __future__ import annotations

import pickle
import shutil
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import icelite
from icelite import ForkSession, Repository, Session, SessionStateError, VersionSelection


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
    repo.create_branch("dev", repo.lookup_branch("main"))
    session, other = repo.writable_session("main"), repo.writable_session("dev")
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


def refusal(session: Session, *forks: ForkSession, **options: VersionSelection) -> SessionStateError:
    before = session.status()
    with pytest.raises(SessionStateError) as raised:
        session.merge(*forks, **options)
    assert session.status() == before
    return raised.value


def append(session: Session, *values: int) -> None:
    array = zarr.open_array(session.store, path="a")
    start = array.shape[0]
    array.resize((start + len(values),))
    array[start:] = list(values)


def test_copies_of_one_fork_come_back_one_by_one(repo: Repository) -> None:
    session = repo.writable_session("main")
    fork = session.fork()
    write(fork, 0, 1)
    blob = pickle.dumps(fork)
    for start in range(1, 8):
        copy = pickle.loads(blob)
        write(copy, start, start + 1)
        session.merge(travel(copy))
        assert refusal(session, copy).kind == "merge-failed"
    session.merge(pickle.loads(blob))
    assert refusal(session, travel(fork)).kind == "merge-failed"
    session.commit("by eight")
    assert read(repo) == list(range(8))


def test_copies_that_wrote_nothing_are_merged_too(repo: Repository) -> None:
    session = repo.writable_session("main")
    blob = pickle.dumps(session.fork())
    session.merge(pickle.loads(blob), travel(pickle.loads(blob)))
    session.merge(pickle.loads(blob))
    assert not session.has_uncommitted_changes


def test_what_a_fork_writes_after_it_was_copied_is_merged(repo: Repository) -> None:
    session = repo.writable_session("main")
    fork = session.fork()
    write(fork, 0, 1)
    session.merge(travel(fork))
    write(fork, 1, 2)
    session.merge(fork)
    assert refusal(session, fork).kind == "merge-failed"
    session.commit("twice")
    assert read(repo)[:3] == [0, 1, -1]


@pytest.mark.parametrize("uncommitted", [False, True])
def test_forks_are_gathered_in_a_tree(repo: Repository, uncommitted: bool) -> None:
    session = repo.writable_session("main")
    if uncommitted:
        write(session, 7, 8)
    forks = [travel(session.fork()) for _ in range(4)]
    for index, fork in enumerate(forks):
        write(fork, index, index + 1)
    forks[0].merge(travel(forks[1]))
    forks[2].merge(forks[3])
    forks[0].merge(travel(forks[2]))
    session.merge(travel(forks[0]))
    for fork in forks:
        assert refusal(session, fork).kind == "merge-failed"
    session.commit("a tree")
    assert read(repo) == [0, 1, 2, 3, -1, -1, -1, 7 if uncommitted else -1]


def make_fork(path: Path) -> bytes:
    return pickle.dumps(Repository.open(path).writable_session("main").fork())


def fill_pickled(blob: bytes, start: int) -> bytes:
    return pickle.dumps(fill(pickle.loads(blob), start))


def test_a_fresh_session_takes_the_forks_of_processes_that_have_ended(repo: Repository, tmp_path: Path) -> None:
    def in_a_process(function: Any, *arguments: object) -> bytes:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            return bytes(pool.submit(function, *arguments).result())

    blob = in_a_process(make_fork, tmp_path / "a.icelite")
    results = [in_a_process(fill_pickled, blob, start) for start in range(0, 8, 2)]
    session = repo.writable_session("main")
    for result in results:
        session.merge(pickle.loads(result))
        assert refusal(session, pickle.loads(result)).kind == "merge-failed"
    session.commit("the last job")
    assert read(repo) == list(range(8))


def test_forks_from_elsewhere_are_refused(repo: Repository, tmp_path: Path) -> None:
    fork = repo.writable_session("main").fork()
    write(fork, 0, 1)
    blob = pickle.dumps(fork)
    repo.create_branch("dev", repo.lookup_branch("main"))
    assert refusal(repo.writable_session("dev"), pickle.loads(blob)).kind == "merge-not-allowed"
    shutil.copy(tmp_path / "a.icelite", tmp_path / "b.icelite")
    other = Repository.open(tmp_path / "b.icelite")
    assert refusal(other.writable_session("main"), pickle.loads(blob)).kind == "merge-not-allowed"
    changed = repo.writable_session("main")
    write(changed, 3, 4)
    assert refusal(repo.writable_session("main"), changed.fork()).kind == "merge-not-allowed"
    changed.commit("main goes on")
    error = refusal(repo.writable_session("main"), pickle.loads(blob))
    assert error.kind == "merge-not-allowed"
    assert repo.lookup_branch("main") in str(error)


def test_a_fork_of_a_repository_that_was_there_before_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.icelite"
    blob = pickle.dumps(Repository.create(path).writable_session("main").fork())
    path.unlink()
    fresh = Repository.create(path).writable_session("main")  # at the same place, on a snapshot of the same id
    assert refusal(fresh, pickle.loads(blob)).kind == "merge-not-allowed"


def test_a_fork_from_before_a_rebase_is_refused(repo: Repository) -> None:
    session = repo.writable_session("main")
    fork = session.fork()
    write(fork, 0, 1)
    write(session, 1, 2)
    other = repo.writable_session("main")
    zarr.open_array(other.store, path="a")[0] = 50
    other.commit("first")
    session.rebase(icelite.ConflictDetector())
    assert refusal(session, fork).kind == "merge-not-allowed"


@pytest.mark.parametrize("way", ["together", "one by one", "in a tree", "also the session"])
def test_forks_that_append_to_one_array_are_refused_or_follow_each_other(repo: Repository, way: str) -> None:
    def made() -> tuple[Session, list[ForkSession]]:
        session = repo.writable_session("main")
        forks = [travel(session.fork()) for _ in range(3)]
        for index, fork in enumerate(forks):
            append(fork, *range(10 * index + 10, 10 * index + 11 + index))
        if way == "also the session":
            append(session, 90)
        return session, forks

    def merge(session: Session, forks: list[ForkSession], **options: VersionSelection) -> None:
        if way == "one by one":
            for fork in forks:
                session.merge(travel(fork), **options)
        elif way == "in a tree":
            forks[0].merge(forks[1], **options)
            session.merge(forks[0], **options)
            session.merge(forks[2], **options)
        else:
            session.merge(*forks, **options)

    with pytest.raises(SessionStateError, match="on_append=VersionSelection") as raised:
        merge(*made())
    assert raised.value.kind == "merge-failed"
    session, forks = made()
    merge(session, forks, on_append=VersionSelection.UseOurs)
    session.commit("appended")
    first = [90] if way == "also the session" else []
    assert read(repo)[8:] == [*first, 10, 20, 21, 30, 31, 32]
    assert repo.verify() == []


def test_equal_appends_without_a_chunk_are_no_less_appends(repo: Repository) -> None:
    session = repo.writable_session("main")
    one, empty = session.fork(), session.fork()
    append(one, 5)
    append(empty, -1)  # the fill value: nothing is written
    session.merge(one)
    assert refusal(session, empty).kind == "merge-failed"
    session.merge(empty, on_append=VersionSelection.UseOurs)
    session.commit("two rows")
    assert read(repo)[8:] == [5, -1]


def test_copies_of_a_fork_that_made_the_array_longer_fill_it(repo: Repository) -> None:
    session = repo.writable_session("main")
    fork = session.fork()
    zarr.open_array(fork.store, path="a").resize((11,))
    blob = pickle.dumps(fork)
    for index in range(3):
        copy = pickle.loads(blob)
        zarr.open_array(copy.store, path="a")[8 + index] = index
        session.merge(travel(copy))
    further = pickle.loads(blob)
    append(further, 7)
    for options in ({}, {"on_append": VersionSelection.UseOurs}):  # what it shares with them would come twice
        assert refusal(session, further, **options).kind == "merge-failed"
    session.commit("filled")
    assert read(repo)[8:] == [0, 1, 2]


def test_appends_inside_a_chunk_cannot_follow(tmp_path: Path) -> None:
    repo = Repository.create(tmp_path / "b.icelite")
    session = repo.writable_session("main")
    zarr.create_array(session.store, name="a", shape=(3,), chunks=(2,), dtype="i4")
    session.commit("half a chunk")
    session = repo.writable_session("main")
    one, two = session.fork(), session.fork()
    append(one, 1)
    append(two, 2)
    session.merge(one, on_append=VersionSelection.UseOurs)
    assert "whole chunks" in str(refusal(session, two, on_append=VersionSelection.UseOurs))
