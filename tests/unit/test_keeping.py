"""Keep rules: what they spare of a line of history, and that branches still reach all of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from icelite.catalog.operations import to_datetime, to_microseconds
from icelite.catalog.snapshots import Ancestor
from icelite.errors import ErrorKind, InvalidInputError
from icelite.ops.gc import KeepRules
from icelite.types import INITIAL_SNAPSHOT_ID

START = datetime(2023, 12, 25, 6, tzinfo=UTC)  # a Monday
END = to_microseconds(datetime(2030, 1, 1, tzinfo=UTC))


def nightly(days: int) -> dict[int, Ancestor]:
    """Two snapshots a day, at six and at eighteen o'clock, numbered from 1."""
    moments = [START + timedelta(hours=12 * number) for number in range(2 * days)]
    return {number: Ancestor(number - 1 or None, to_microseconds(at)) for number, at in enumerate(moments, 1)}


def kept(rules: KeepRules, days: int = 70, before: datetime | None = None) -> list[str]:
    history = nightly(days)
    found = rules.list_kept(history, [2 * days], END if before is None else to_microseconds(before))
    return [to_datetime(history[seq].written_at).strftime("%m-%d %H") for seq in sorted(found, reverse=True)]


def test_the_newest_of_each_day_week_month_and_year() -> None:
    assert kept(KeepRules(last=3)) == ["03-03 18", "03-03 06", "03-02 18"]
    assert kept(KeepRules(daily=3)) == ["03-03 18", "03-02 18", "03-01 18"]
    assert kept(KeepRules(weekly=3)) == ["03-03 18", "02-25 18", "02-18 18"]
    assert kept(KeepRules(monthly=9)) == ["03-03 18", "02-29 18", "01-31 18", "12-31 18"]
    assert kept(KeepRules(yearly=9)) == ["03-03 18", "12-31 18"]
    assert kept(KeepRules(last=1, daily=2, monthly=2)) == ["03-03 18", "03-02 18", "02-29 18"]


def test_they_count_among_the_old_ones() -> None:
    assert kept(KeepRules(daily=2), before=datetime(2024, 2, 3, 12, tzinfo=UTC)) == ["02-03 06", "02-02 18"]


def test_days_without_a_snapshot_do_not_count() -> None:
    history = {1: Ancestor(None, 0), 2: Ancestor(1, to_microseconds(START)), 3: Ancestor(2, END - 1)}
    assert KeepRules(daily=2).list_kept(history, [3], END) == {3, 2}


def test_each_branch_has_its_own() -> None:
    history = {1: Ancestor(None, 0), 2: Ancestor(1, 10), 3: Ancestor(2, 20), 4: Ancestor(2, 30), 5: Ancestor(4, 40)}
    assert KeepRules(last=1).list_kept(history, [3, 5], END) == {3, 5}
    assert KeepRules(last=2).list_kept(history, [3, 5], END) == {2, 3, 4, 5}


@pytest.mark.parametrize("count", [-1, 1.5, True, "3", None])
def test_what_is_no_number(workbench: Any, count: Any) -> None:
    with pytest.raises(InvalidInputError, match="keep_daily") as error:
        workbench.repository.expire_snapshots(workbench.now(), keep_daily=count)
    assert error.value.kind == ErrorKind.INVALID_ARGUMENT


@pytest.fixture
def line(workbench: Any) -> list[str]:
    """Six commits to one array, after the first snapshot."""
    ids = [INITIAL_SNAPSHOT_ID, workbench.commit({"x/zarr.json": workbench.array(6), "x/c/0": b"a"})]
    return ids + [workbench.commit({f"x/c/{number % 3}": b"%d" % number}) for number in range(1, 6)]


def test_a_branch_still_reaches_what_was_spared(workbench: Any, line: list[str]) -> None:
    repository = workbench.repository
    contents = {snapshot_id: workbench.contents(snapshot_id=snapshot_id) for snapshot_id in line[2:]}
    repository.create_branch("old", line[3])
    fork = workbench.commit({"x/c/4": b"fork"}, branch="old")
    kept_of_fork = workbench.contents("old")
    assert repository.expire_snapshots(workbench.now(), keep_last=2) == {line[1], line[2], line[4]}
    assert workbench.history(branch="main") == [line[6], line[5], line[3], line[0]]
    assert workbench.history(branch="old") == [fork, line[3], line[0]]
    assert repository.garbage_collect(workbench.now()).snapshots_deleted == 0
    for snapshot_id in (line[3], line[5], line[6]):
        assert workbench.contents(snapshot_id=snapshot_id) == contents[snapshot_id]
    assert workbench.contents("old") == kept_of_fork
    assert repository.diff(from_snapshot_id=line[3], to_snapshot_id=line[5]).updated_chunks == {"/x": [[0], [1]]}
    assert repository.verify() == []
    workbench.commit({"x/c/5": b"next"})
    assert repository.verify() == []


def test_later_rules_go_on_from_there(workbench: Any, line: list[str]) -> None:
    repository = workbench.repository
    repository.expire_snapshots(workbench.now(), keep_last=3)
    assert repository.expire_snapshots(workbench.now(), keep_daily=1) == {line[4], line[5]}
    assert workbench.history(branch="main") == [line[6], line[0]]


def test_a_tag_in_the_line_is_spared_too(workbench: Any, line: list[str]) -> None:
    workbench.repository.create_tag("v1", line[2])
    workbench.repository.expire_snapshots(workbench.now(), keep_last=1)
    assert workbench.history(branch="main") == [line[6], line[2], line[0]]


def test_a_dry_run_changes_nothing(workbench: Any, line: list[str]) -> None:
    repository = workbench.repository
    repository.create_tag("v1", line[2])
    before = workbench.row_counts()
    moment = workbench.now()
    options: dict[str, Any] = {"keep_last": 1, "delete_expired_tags": True}
    told = repository.expire_snapshots(moment, dry_run=True, **options)
    assert workbench.row_counts() == before
    assert repository.list_tags() == {"v1"}
    assert workbench.history(branch="main") == line[::-1]
    assert told == repository.expire_snapshots(moment, **options) == set(line[1:6])
