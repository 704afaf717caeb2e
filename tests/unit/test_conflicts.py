"""The conflict matrix, cell by cell: what `theirs` did first, what `ours` does, and what a rebase makes of both."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import numpy as np
import pytest
import zarr

import icelite
from icelite import ConflictError, RebaseFailedError, Repository, Session
from icelite.conflicts import (
    BasicConflictSolver,
    Conflict,
    ConflictDetector,
    ConflictSolver,
    ConflictType,
    VersionSelection,
)

Edit = Callable[[Session], None]


def chunk(index: int, value: int = 7) -> Edit:
    def edit(session: Session) -> None:
        zarr.open_array(session.store, path="g/a")[index] = value

    return edit


def delete_chunk(index: int) -> Edit:
    return lambda session: session.store.delete_sync(f"g/a/c/{index}")


def attributes(session: Session) -> None:
    zarr.open_array(session.store, path="g/a").attrs["unit"] = session.snapshot_id + repr(id(session))


def resize(session: Session) -> None:
    zarr.open_array(session.store, path="g/a").resize((12,))


def group_attributes(session: Session) -> None:
    zarr.open_group(session.store, path="g").attrs["title"] = repr(id(session))


def delete_array(session: Session) -> None:
    del zarr.open_group(session.store)["g/a"]


def delete_group(session: Session) -> None:
    del zarr.open_group(session.store)["g"]


def new_array(session: Session) -> None:
    zarr.create_array(session.store, name="g/new", shape=(1,), dtype="i4")


def new_array_elsewhere(session: Session) -> None:
    zarr.create_array(session.store, name="other", shape=(1,), dtype="i4")


def new_array_over_their_path(session: Session) -> None:
    zarr.create_array(session.store, name="g/new/below", shape=(1,), dtype="i4")


MERGES = None
C = ConflictType
MATRIX: list[tuple[Edit, Edit, set[ConflictType] | None]] = [
    (chunk(0), chunk(0), {C.ChunkDoubleUpdate}),
    (chunk(0), chunk(1), MERGES),
    (chunk(0), delete_chunk(0), {C.ChunkDoubleUpdate}),
    (delete_chunk(0), chunk(0), {C.ChunkDoubleUpdate}),
    (delete_chunk(0), delete_chunk(1), MERGES),
    (chunk(0), attributes, MERGES),
    (chunk(0), resize, MERGES),
    (chunk(0), new_array, MERGES),
    (chunk(0), group_attributes, MERGES),
    (chunk(0), delete_array, {C.DeleteOfUpdatedArray}),
    (attributes, chunk(0), {C.ChunksUpdatedInUpdatedArray}),
    (resize, chunk(0), {C.ChunksUpdatedInUpdatedArray}),
    (attributes, attributes, {C.ZarrMetadataDoubleUpdate}),
    (attributes, resize, {C.ZarrMetadataDoubleUpdate}),
    (resize, resize, {C.ZarrMetadataDoubleUpdate}),  # equal changes are changes too
    (attributes, delete_array, {C.DeleteOfUpdatedArray}),
    (attributes, group_attributes, MERGES),
    (group_attributes, group_attributes, {C.ZarrMetadataDoubleUpdate}),
    (group_attributes, delete_group, {C.DeleteOfUpdatedGroup}),
    (delete_array, chunk(0), {C.ChunksUpdatedInDeletedArray}),
    (delete_array, attributes, {C.ZarrMetadataUpdateOfDeletedArray}),
    (delete_array, delete_array, MERGES),
    (delete_group, group_attributes, {C.ZarrMetadataUpdateOfDeletedGroup}),
    (delete_group, new_array, {C.NewNodeInInvalidGroup}),
    (delete_group, delete_group, MERGES),
    (new_array, new_array, {C.NewNodeConflictsWithExistingNode}),
    (new_array, new_array_elsewhere, MERGES),
    (new_array, new_array_over_their_path, {C.NewNodeInInvalidGroup}),
    (new_array, delete_group, {C.DeleteOfUpdatedGroup}),
    (new_array_elsewhere, new_array_elsewhere, {C.NewNodeConflictsWithExistingNode}),
]


def name(edit: Edit | set[ConflictType] | None) -> str:
    if edit is None or isinstance(edit, set):
        return "merges" if edit is None else "+".join(sorted(kind.name for kind in edit))
    return edit.__qualname__.replace(".<locals>.edit", "").replace(".<locals>.<lambda>", "")


@pytest.fixture
def repo() -> Repository:
    repo = Repository.create(icelite.in_memory_storage())
    session = repo.writable_session("main")
    array = zarr.create_array(session.store, name="g/a", shape=(10,), chunks=(1,), dtype="i4", fill_value=-1)
    array[:] = np.arange(10)
    session.commit("base")
    return repo


@pytest.mark.parametrize(("theirs", "ours", "expected"), MATRIX, ids=name)
def test_matrix(repo: Repository, theirs: Edit, ours: Edit, expected: set[ConflictType] | None) -> None:
    first, second = repo.writable_session("main"), repo.writable_session("main")
    theirs(first)
    ours(second)
    status = second.status()
    committed = first.commit("theirs")
    if expected is None:
        second.commit("ours", rebase_with=ConflictDetector())
        assert [info.message for info in repo.ancestry(branch="main")][:2] == ["ours", "theirs"]
        return
    with pytest.raises(RebaseFailedError) as raised:
        second.commit("ours", rebase_with=ConflictDetector())
    assert raised.value.kind == "rebase-failed"
    assert raised.value.snapshot == committed
    assert {conflict.conflict_type for conflict in raised.value.conflicts} >= expected
    assert repo.lookup_branch("main") == committed
    assert not second.read_only
    assert second.status() == status


def test_without_solver_a_moved_tip_is_a_conflict_even_without_overlap(repo: Repository) -> None:
    first, second = repo.writable_session("main"), repo.writable_session("main")
    chunk(0)(first)
    chunk(1)(second)
    tip = first.commit("theirs")
    with pytest.raises(ConflictError) as raised:
        second.commit("ours")
    assert (raised.value.kind, raised.value.actual_parent) == ("commit-conflict", tip)


@pytest.mark.parametrize(
    ("selection", "value"), [(VersionSelection.UseOurs, 20), (VersionSelection.UseTheirs, 10)], ids=["ours", "theirs"]
)
def test_chunk_conflicts_can_be_solved(repo: Repository, selection: VersionSelection, value: int) -> None:
    first, second = repo.writable_session("main"), repo.writable_session("main")
    chunk(0, 10)(first)
    chunk(0, 20)(second)
    chunk(1, 21)(second)
    first.commit("theirs")
    second.commit("ours", rebase_with=BasicConflictSolver(on_chunk_conflict=selection))
    array = zarr.open_array(repo.readonly_session("main").store, path="g/a", mode="r")
    assert array[:3].tolist() == [value, 21, 2]


def test_deletion_of_what_they_changed_can_be_solved_or_refused(repo: Repository) -> None:
    first, second, third = (repo.writable_session("main") for _ in range(3))
    chunk(0)(first)
    new_array(first)
    delete_group(second)
    delete_array(third)
    first.commit("theirs")
    refusing = BasicConflictSolver(fail_on_delete_of_updated_array=True)
    with pytest.raises(RebaseFailedError):
        third.commit("ours", rebase_with=refusing)
    second.commit("ours", rebase_with=BasicConflictSolver())
    group = zarr.open_group(repo.readonly_session("main").store, mode="r")
    assert list(group.keys()) == []


def test_rebase_stands_the_session_on_the_tip(repo: Repository) -> None:
    sessions = [repo.writable_session("main") for _ in range(4)]
    for index, session in enumerate(sessions):
        chunk(index, 100 + index)(session)
    for session in sessions[:3]:
        session.commit("theirs", rebase_with=ConflictDetector())
    sessions[3].rebase(ConflictDetector())
    assert sessions[3].snapshot_id == repo.lookup_branch("main")
    array = zarr.open_array(sessions[3].store, path="g/a")
    assert array[:5].tolist() == [100, 101, 102, 103, 4]
    sessions[3].commit("ours")


def test_a_reset_branch_cannot_be_rebased_over(repo: Repository) -> None:
    session = repo.writable_session("main")
    chunk(0)(session)
    initial = list(repo.ancestry(branch="main"))[-1].id
    repo.reset_branch("main", initial)
    with pytest.raises(ConflictError, match="was reset"):
        session.commit("ours", rebase_with=ConflictDetector())


def test_moves_are_never_rebased(repo: Repository) -> None:
    session, moving = repo.writable_session("main"), repo.rearrange_session("main")
    chunk(0)(session)
    moving.move("/g/a", "/g/b")
    moving.commit("moved")
    with pytest.raises(RebaseFailedError) as raised:
        session.commit("ours", rebase_with=BasicConflictSolver())
    assert [c.conflict_type for c in raised.value.conflicts] == [ConflictType.MoveOperationCannotBeRebased]


def grow(session: Session, rows: int, value: int) -> None:
    array = zarr.open_array(session.store, path="g/a")
    before = array.shape[0]
    array.resize((before + rows,))
    array[before:] = value


def test_appends_follow_one_another_when_asked_to(repo: Repository) -> None:
    sessions = [repo.writable_session("main") for _ in range(3)]
    for number, session in enumerate(sessions, start=1):
        grow(session, number, number * 10)
    solver = BasicConflictSolver(on_append=VersionSelection.UseOurs)
    for session in sessions:
        session.commit("append", rebase_with=solver)
    array = zarr.open_array(repo.readonly_session("main").store, path="g/a", mode="r")
    assert array[:].tolist() == [*range(10), 10, 20, 20, 30, 30, 30]


def test_appends_conflict_by_default(repo: Repository) -> None:
    first, second = repo.writable_session("main"), repo.writable_session("main")
    grow(first, 1, 10)
    grow(second, 1, 20)
    first.commit("append")
    with pytest.raises(RebaseFailedError):
        second.commit("append", rebase_with=BasicConflictSolver())


def test_an_append_into_a_partial_chunk_stays_a_conflict() -> None:
    repo = Repository.create(icelite.in_memory_storage())
    session = repo.writable_session("main")
    zarr.create_array(session.store, name="g/a", shape=(10,), chunks=(4,), dtype="i4")[:] = 1
    session.commit("base")
    first, second = repo.writable_session("main"), repo.writable_session("main")
    grow(first, 2, 10)
    grow(second, 2, 20)
    first.commit("append")
    with pytest.raises(RebaseFailedError):
        second.commit("append", rebase_with=BasicConflictSolver(on_append=VersionSelection.UseOurs))


def test_the_error_pickles_with_its_conflicts() -> None:
    conflict = Conflict(ConflictType.ChunkDoubleUpdate, "/a", [[0, 1]])
    error = pickle.loads(pickle.dumps(RebaseFailedError("no", snapshot="S", conflicts=[conflict])))
    assert (error.snapshot, error.conflicts) == ("S", [conflict])


# -- dimensions ------------------------------------------------------------------------------------------------------


def dataset(path: str, sizes: dict[str, dict[str, int]], zarr_format: int = 3) -> Edit:
    """Write arrays (resize those that are there), each with its named dimensions."""

    def edit(session: Session) -> None:
        root = zarr.open_group(session.store, path=path, zarr_format=zarr_format)
        for name, dims in sizes.items():
            if name in root:
                root[name].resize(tuple(dims.values()))
            elif zarr_format == 3:
                root.create_array(name, shape=tuple(dims.values()), dtype="i4", dimension_names=list(dims))
            else:
                root.create_array(name, shape=tuple(dims.values()), dtype="i4").attrs["_ARRAY_DIMENSIONS"] = list(dims)

    return edit


START = {"time": {"time": 4}, "sst": {"time": 4, "lat": 3}}
LONGER = {"time": {"time": 5}, "sst": {"time": 5, "lat": 3}}
NEW = {"ice": {"time": 4, "lat": 3}}
FITTING = {"ice": {"time": 5, "lat": 3}}
DEPTH_2, DEPTH_3 = {"u": {"depth": 2}}, {"v": {"depth": 3}}
CASES = {
    "append, then a variable of the old length": ((("d", LONGER), ("d", NEW)), "/d/ice"),
    "a variable, then an append": ((("d", NEW), ("d", LONGER)), "/d/time"),
    "two new variables with a new dimension": ((("d", DEPTH_2), ("d", DEPTH_3)), "/d/v"),
    "a subgroup inherits the coordinate": ((("d", LONGER), ("d/low", NEW)), "/d/low/ice"),
    "a coordinate above a new variable": ((("d/low/er", NEW), ("d", LONGER)), "/d/time"),
    "one array alone": ((("d", {"time": {"time": 5}}), ("d", NEW)), "/d/ice"),
    "another group": ((("d", LONGER), ("other", NEW)), None),
    "a sibling group": ((("d/high", DEPTH_2), ("d/low", DEPTH_3)), None),
    "only coordinates are inherited": ((("d", DEPTH_2), ("d/low", DEPTH_3)), None),
    "another dimension": ((("d", LONGER), ("d", {"mask": {"lat": 3}})), None),
    "a length that was wrong before": ((("d", LONGER), ("d", {"ice": {"time": 9}})), None),
    "a length that fits only together": ((("d", LONGER), ("d", FITTING)), None),
    "the same new length": ((("d", DEPTH_2), ("d", {"w": {"depth": 2}})), None),
}


@pytest.mark.parametrize("zarr_format", [3, 2])
@pytest.mark.parametrize("by_merge", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_lengths_that_do_not_fit_together(case: str, by_merge: bool, zarr_format: int) -> None:
    (theirs, ours), path = CASES[case]
    repo = Repository.create(icelite.in_memory_storage())
    session = repo.writable_session("main")
    dataset("d", START, zarr_format)(session)
    repo.create_branch("ours", session.commit("start"))
    branch = "ours" if by_merge else "main"
    session, other = repo.writable_session(branch), repo.writable_session("main")
    dataset(*theirs, zarr_format)(other)
    dataset(*ours, zarr_format)(session)
    other.commit("theirs")

    def bring_together(solver: ConflictSolver) -> None:
        if by_merge:
            repo.merge("ours", "main", solver=solver)
        else:
            session.commit("ours", rebase_with=solver)

    if by_merge:
        session.commit("ours")
    if path is None:
        bring_together(ConflictDetector())
        return
    with pytest.raises(RebaseFailedError, match=r"dimension '(time|depth)' is") as caught:
        bring_together(BasicConflictSolver())
    assert path in {conflict.path for conflict in caught.value.conflicts}
    assert {conflict.conflict_type for conflict in caught.value.conflicts} == {ConflictType.DimensionSizesDiffer}
    bring_together(BasicConflictSolver(fail_on_different_dimension_sizes=False))


def test_an_append_that_follows_theirs_is_looked_at_as_it_will_be(repo: Repository) -> None:
    session = repo.writable_session("main")
    root = zarr.open_group(session.store, path="d")
    root.create_array("sst", data=np.arange(4), chunks=(1,), dimension_names=["time"])
    session.commit("start")
    first, second = repo.writable_session("main"), repo.writable_session("main")
    for each, values in ((first, [4]), (second, [5, 6])):
        zarr.open_array(each.store, path="d/sst").append(np.array(values))
    zarr.open_group(first.store, path="d").create_array("ice", shape=(5,), dtype="i4", dimension_names=["time"])
    first.commit("an append and a variable")
    with pytest.raises(RebaseFailedError, match="7 long, and 5 in /d/ice"):
        second.commit("another append", rebase_with=BasicConflictSolver(on_append=VersionSelection.UseOurs))


def test_the_kinds_of_conflict_in_words() -> None:
    assert str(icelite.ConflictType.ChunkDoubleUpdate) == "Chunk double update"
    assert f"{icelite.ConflictType.MoveOperationCannotBeRebased}" == "Move operation cannot be rebased"
