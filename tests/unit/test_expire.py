"""Which snapshots expiration releases, what becomes of names and parents, and that nothing else changes."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from icelite.errors import ErrorKind, InvalidInputError, ReadOnlyError, SnapshotNotFoundError
from icelite.repository import Repository
from icelite.types import INITIAL_SNAPSHOT_ID, RepoAvailability, RepoStatus, UpdateType


@pytest.fixture
def line(workbench: Any) -> list[str]:
    """Five commits to one array, after the first snapshot."""
    ids = [INITIAL_SNAPSHOT_ID, workbench.commit({"x/zarr.json": workbench.array(4), "x/c/0": b"a"})]
    return ids + [workbench.commit({f"x/c/{number % 4}": b"%d" % number}) for number in range(1, 5)]


def written_at(workbench: Any, snapshot_id: str) -> datetime:
    return workbench.repository.lookup_snapshot(snapshot_id).written_at


def test_what_is_older_goes_and_the_first_and_the_tip_stay(workbench: Any, line: list[str]) -> None:
    before = workbench.contents("main")
    assert workbench.repository.expire_snapshots(workbench.now()) == set(line[1:-1])
    assert workbench.history(branch="main") == [line[-1], line[0]]
    assert workbench.contents("main") == before
    assert workbench.repository.verify() == []


def test_older_means_strictly_older(workbench: Any, line: list[str]) -> None:
    kept = workbench.contents(snapshot_id=line[3])
    assert workbench.repository.expire_snapshots(written_at(workbench, line[3])) == set(line[1:3])
    assert workbench.history(branch="main") == [line[5], line[4], line[3], line[0]]
    assert workbench.contents(snapshot_id=line[3]) == kept


def test_released_ids_are_unreadable_at_once(workbench: Any, line: list[str]) -> None:
    for snapshot_id in workbench.repository.expire_snapshots(workbench.now()):
        for use in (workbench.repository.lookup_snapshot, lambda i: workbench.contents(snapshot_id=i)):
            with pytest.raises(SnapshotNotFoundError) as error:
                use(snapshot_id)
            assert error.value.kind == ErrorKind.SNAPSHOT_NOT_FOUND


def test_differences_stay_complete(workbench: Any, line: list[str]) -> None:
    wanted = workbench.repository.diff(from_snapshot_id=line[0], to_branch="main")
    assert wanted.updated_chunks == {"/x": [[0], [1], [2], [3]]}
    workbench.repository.expire_snapshots(workbench.now())
    assert workbench.repository.diff(from_snapshot_id=line[0], to_branch="main") == wanted
    workbench.repository.garbage_collect(workbench.now())
    assert workbench.repository.diff(from_snapshot_id=line[0], to_branch="main") == wanted


@pytest.fixture
def names(workbench: Any, line: list[str]) -> dict[str, str]:
    """A branch and a tag on old snapshots, one of each on the first, and a snapshot on no branch."""
    repository = workbench.repository
    repository.create_branch("old", line[2])
    repository.create_tag("v1", line[3])
    repository.create_branch("first", line[0])
    repository.create_tag("v0", line[0])
    session = repository.writable_session("old")
    workbench.write(session, {"x/c/3": b"!"})
    return {"fork": workbench.commit({"x/c/2": b"fork"}, branch="old"), "anonymous": session.flush("on no branch")}


def test_tips_and_tags_stay(workbench: Any, line: list[str], names: dict[str, str]) -> None:
    released = workbench.repository.expire_snapshots(workbench.now())
    assert released == {line[1], line[2], line[4], names["anonymous"]}
    assert workbench.history(branch="old") == [names["fork"], line[0]]
    assert workbench.history(tag="v1") == [line[3], line[0]]
    assert workbench.history(branch="main") == [line[5], line[0]]  # as in Icechunk: not by way of the tag
    assert workbench.repository.verify() == []


def test_unless_their_names_are_to_go_too(workbench: Any, line: list[str], names: dict[str, str]) -> None:
    repository = workbench.repository
    released = repository.expire_snapshots(workbench.now(), delete_expired_branches=True, delete_expired_tags=True)
    assert released == {*line[1:-1], names["fork"], names["anonymous"]}
    assert repository.list_branches() == {"main", "first"}
    assert repository.list_tags() == {"v0"}
    kinds = [update.kind for update in repository.ops_log()][:3]
    assert kinds == [
        UpdateType.ExpirationRan(),
        UpdateType.TagDeleted("v1", line[3]),
        UpdateType.BranchDeleted("old", names["fork"]),
    ]
    with pytest.raises(Exception, match="deleted") as error:
        repository.create_tag("v1", line[-1])
    assert error.value.kind == ErrorKind.TAG_PREVIOUSLY_DELETED  # type: ignore[attr-defined]


def test_a_name_beside_main_goes_and_its_snapshot_stays(workbench: Any, line: list[str]) -> None:
    repository = workbench.repository
    repository.create_branch("same", line[-1])
    repository.create_tag("same", line[-1])
    repository.expire_snapshots(workbench.now(), delete_expired_branches=True)
    assert repository.list_branches() == {"main"}
    assert repository.lookup_tag("same") == line[-1]


def test_a_young_anonymous_snapshot_stays(workbench: Any, line: list[str]) -> None:
    moment = workbench.now()
    session = workbench.repository.writable_session("main")
    workbench.write(session, {"x/c/0": b"new"})
    young = session.flush("candidate")
    workbench.repository.expire_snapshots(moment)
    assert workbench.history(snapshot_id=young) == [young, line[-1], line[0]]


def test_nothing_to_release_is_logged_all_the_same(workbench: Any) -> None:
    assert workbench.repository.expire_snapshots(workbench.now()) == set()
    assert isinstance(next(iter(workbench.repository.ops_log())).kind, UpdateType.ExpirationRan)


def test_a_commit_where_a_released_snapshot_was_does_not_see_its_rows(workbench: Any, line: list[str]) -> None:
    """A branch is set back and what was ahead of it expires: its rows are still there, in the same segment."""
    repository = workbench.repository
    repository.reset_branch("main", line[2])
    before = workbench.contents("main")
    repository.expire_snapshots(workbench.now())
    workbench.commit({"x/c/3": b"other"})
    assert workbench.contents("main") == before | {"x/c/3": b"other"}
    repository.garbage_collect(workbench.now())
    assert workbench.contents("main") == before | {"x/c/3": b"other"}
    assert repository.verify() == []


@pytest.mark.parametrize("moment", [datetime(2024, 8, 1), "2024-08-01", None])  # noqa: DTZ001
def test_a_moment_needs_a_time_zone(workbench: Any, moment: Any) -> None:
    for call in (workbench.repository.expire_snapshots, workbench.repository.garbage_collect):
        with pytest.raises(InvalidInputError, match="time zone") as error:
            call(moment)
        assert error.value.kind == ErrorKind.INVALID_ARGUMENT


def test_a_read_only_repository_is_left_alone(workbench: Any, line: list[str]) -> None:
    repository = workbench.repository
    repository.set_status(RepoStatus(RepoAvailability.read_only))
    for call in (
        lambda: repository.expire_snapshots(workbench.now()),
        lambda: repository.garbage_collect(workbench.now()),
        lambda: repository.garbage_collect(workbench.now(), dry_run=True),
        repository.compact,
    ):
        with pytest.raises(ReadOnlyError) as error:
            call()
        assert error.value.kind == ErrorKind.READ_ONLY_REPOSITORY
    assert workbench.history(branch="main") == line[::-1]


async def test_the_asynchronous_twins(workbench: Any, line: list[str]) -> None:
    assert await workbench.repository.expire_snapshots_async(workbench.now()) == set(line[1:-1])
    assert (await workbench.repository.garbage_collect_async(workbench.now())).chunks_deleted == 1
    assert await workbench.repository.verify_async() == []


def test_a_tip_whose_parent_was_released_can_be_amended(workbench: Any, line: list[str]) -> None:
    """It keeps what it saw of the released snapshots."""
    before = workbench.contents("main")
    workbench.repository.expire_snapshots(workbench.now())
    session = workbench.repository.writable_session("main")
    workbench.write(session, {"x/c/3": b"amended"})
    amended = session.amend("work")
    assert workbench.contents("main") == before | {"x/c/3": b"amended"}
    assert workbench.history(branch="main") == [amended, line[0]]
    workbench.repository.garbage_collect(workbench.now())
    assert workbench.contents("main") == before | {"x/c/3": b"amended"}
    assert workbench.repository.verify() == []


@pytest.mark.parametrize("elsewhere", [False, True], ids=["same-connection", "another-connection"])
def test_an_open_session_does_not_read_what_was_released(new_workbench: Any, tmp_path: Path, elsewhere: bool) -> None:
    """Collection may have taken its rows, so that older versions or nothing would show through."""
    bench = new_workbench(tmp_path / "a.icelite")
    old = bench.commit({"a/zarr.json": bench.array(2), "a/c/0": b"old", "a/c/1": b"old"})
    bench.commit({"a/c/0": b"new"})
    reader, current = bench.repository.readonly_session(snapshot_id=old), bench.repository.readonly_session("main")
    assert reader.store.get_sync("a/c/0") is not None
    keeper = Repository.open(tmp_path / "a.icelite") if elsewhere else bench.repository
    moment = bench.now()
    assert old in keeper.expire_snapshots(moment)
    keeper.garbage_collect(moment)
    for act in (lambda: reader.store.get_sync("a/c/1"), lambda: bench.contents_of(reader)):
        with pytest.raises(SnapshotNotFoundError, match="expired"):
            act()
    assert bench.contents_of(current)["a/c/0"] == b"new"
