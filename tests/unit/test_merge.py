"""Merging branches."""

from __future__ import annotations

import numpy as np
import pytest
import zarr

import icelite
from icelite import BasicConflictSolver, RebaseFailedError, Repository, SessionStateError, VersionSelection


@pytest.fixture
def repo() -> Repository:
    repo = Repository.create(icelite.in_memory_storage())
    session = repo.writable_session("main")
    for name in ("a", "b"):
        zarr.create_array(session.store, name=name, shape=(6,), chunks=(1,), dtype="i4", fill_value=-1)[:] = 1
    repo.create_branch("dev", session.commit("base"))
    return repo


def write(repo: Repository, branch: str, index: int, value: int) -> str:
    session = repo.writable_session(branch)
    zarr.open_array(session.store, path="a")[index] = value
    return session.commit(f"{branch} {index}")


def read(repo: Repository, path: str = "a") -> list[int]:
    return np.asarray(zarr.open_array(repo.readonly_session("main").store, path=path, mode="r")[:]).tolist()


def test_three_way_merge_is_one_snapshot(repo: Repository) -> None:
    write(repo, "dev", 0, 10)
    session = repo.writable_session("dev")
    zarr.open_array(session.store, path="a")[0] = 11
    zarr.create_array(session.store, name="new", shape=(2,), dtype="i4", attributes={"unit": "K"})[:] = 5
    session.store.delete_sync("a/c/2")
    del zarr.open_group(session.store)["b"]
    tip = session.commit("more")
    main = write(repo, "main", 5, 99)
    merged = repo.merge("dev", "main")
    assert read(repo) == [11, 1, -1, 1, 1, 99]
    assert read(repo, "new") == [5, 5]
    assert sorted(zarr.open_group(repo.readonly_session("main").store, mode="r").keys()) == ["a", "new"]
    info = repo.lookup_snapshot(merged)
    assert (info.parent_id, info.metadata["icelite_merged"]["snapshot_id"]) == (main, tip)
    assert repo.lookup_branch("main") == merged
    assert repo.merge("dev", "main") == merged  # nothing new


def test_fast_forward(repo: Repository) -> None:
    tip = write(repo, "dev", 0, 10)
    assert repo.merge("dev", "main") == tip
    assert repo.lookup_branch("main") == tip


def test_nothing_to_merge(repo: Repository) -> None:
    tip = write(repo, "main", 0, 10)
    assert repo.merge("dev", "main") == tip


def test_conflicts_are_named_or_solved(repo: Repository) -> None:
    write(repo, "dev", 0, 10)
    main = write(repo, "main", 0, 20)
    with pytest.raises(RebaseFailedError) as raised:
        repo.merge("dev", "main")
    assert [conflict.path for conflict in raised.value.conflicts] == ["/a"]
    assert repo.lookup_branch("main") == main
    repo.merge("dev", "main", "theirs", solver=BasicConflictSolver(on_chunk_conflict=VersionSelection.UseTheirs))
    assert read(repo)[0] == 20


def test_a_line_is_merged_once_until_it_is_reset(repo: Repository) -> None:
    write(repo, "dev", 0, 10)
    write(repo, "main", 5, 50)
    merged = repo.merge("dev", "main")
    tip = write(repo, "dev", 1, 11)
    with pytest.raises(SessionStateError, match=merged) as raised:
        repo.merge("dev", "main")
    assert raised.value.kind == "merge-failed"
    repo.reset_branch("dev", merged, from_snapshot_id=tip)
    write(repo, "dev", 1, 12)
    repo.merge("dev", "main")
    assert read(repo)[:2] == [10, 12]


def test_moves_are_not_merged(repo: Repository) -> None:
    session = repo.rearrange_session("dev")
    session.move("/a", "/z")
    session.commit("moved")
    write(repo, "main", 0, 1)
    with pytest.raises(SessionStateError) as raised:
        repo.merge("dev", "main")
    assert raised.value.kind == "merge-failed"
