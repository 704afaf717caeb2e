"""Opening sessions and what they refuse: times without zone, commits twice or on nothing, metadata that is no JSON."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
import zarr
from zarr.core.buffer import default_buffer_prototype

import icelite
from icelite.errors import ConflictError, InvalidInputError, ReadOnlyError, SessionStateError, SnapshotNotFoundError
from icelite.repository import Repository
from icelite.session import Session
from icelite.types import INITIAL_SNAPSHOT_ID, SessionMode

MICROSECOND = timedelta(microseconds=1)


@pytest.fixture
def repo() -> Repository:
    return Repository.create(icelite.in_memory_storage())


def changed(repo: Repository) -> Session:
    session = repo.writable_session("main")
    zarr.create_group(session.store, path=f"g{len(list(repo.ops_log()))}")
    return session


# -- reading ---------------------------------------------------------------------------------------------------


def test_as_of_finds_what_the_branch_was(repo: Repository) -> None:
    ids = [INITIAL_SNAPSHOT_ID, changed(repo).commit("1"), changed(repo).commit("2")]
    times = [repo.lookup_snapshot(id_).written_at for id_ in ids]
    for id_, written_at in zip(ids, times, strict=True):
        assert repo.readonly_session("main", as_of=written_at).snapshot_id == id_
        east = written_at.astimezone(timezone(timedelta(hours=5)))
        assert repo.readonly_session(branch="main", as_of=east).snapshot_id == id_
    assert repo.readonly_session("main", as_of=times[2] - MICROSECOND).snapshot_id == ids[1]
    assert repo.readonly_session("main", as_of=datetime(2999, 1, 1, tzinfo=UTC)).snapshot_id == ids[2]
    with pytest.raises(SnapshotNotFoundError) as caught:
        repo.readonly_session("main", as_of=times[0] - MICROSECOND)
    assert caught.value.kind == "no-snapshot-at-time"


@pytest.mark.parametrize("as_of", [datetime(2024, 8, 1), "2024-08-01", 1722470400], ids=repr)  # noqa: DTZ001
def test_a_moment_needs_a_zone(repo: Repository, as_of: Any) -> None:
    with pytest.raises(InvalidInputError) as caught:
        repo.readonly_session("main", as_of=as_of)
    assert caught.value.kind == "invalid-argument"
    assert repr(as_of) in str(caught.value)


@pytest.mark.parametrize("where", [{"tag": "v1"}, {"snapshot_id": INITIAL_SNAPSHOT_ID}])
def test_a_moment_needs_a_branch(repo: Repository, where: dict[str, str]) -> None:
    repo.create_tag("v1", INITIAL_SNAPSHOT_ID)
    with pytest.raises(InvalidInputError) as caught:
        repo.readonly_session(**where, as_of=datetime.now(UTC))  # type: ignore[arg-type]
    assert caught.value.kind == "invalid-argument"


# -- writing ---------------------------------------------------------------------------------------------------

VERBS = ["commit", "amend", "flush"]


def read_only(repo: Repository) -> Session:
    return repo.readonly_session("main")


def used(repo: Repository) -> Session:
    session = changed(repo)
    session.commit("first")
    assert session.mode == SessionMode.readonly
    return session


def flushed(repo: Repository) -> Session:
    session = changed(repo)
    session.flush("first")
    return session


@pytest.mark.parametrize("session", [read_only, used, flushed])
@pytest.mark.parametrize("verb", VERBS)
def test_no_commit_from_a_session_that_cannot(
    repo: Repository, verb: str, session: Callable[[Repository], Session]
) -> None:
    opened = session(repo)
    before = len(list(repo.ops_log()))
    with pytest.raises(SessionStateError) as caught:
        getattr(opened, verb)("second")
    assert caught.value.kind == "commit-not-allowed"
    assert "writable_session" in str(caught.value)
    assert len(list(repo.ops_log())) == before


@pytest.mark.parametrize("session", [read_only, used])
def test_no_write_to_a_session_that_cannot(repo: Repository, session: Callable[[Repository], Session]) -> None:
    opened = session(repo)
    with pytest.raises(ReadOnlyError) as caught:
        opened.discard_changes()
    assert caught.value.kind == "read-only-session"
    with pytest.raises(ReadOnlyError) as late:
        opened.store.set_sync("zarr.json", default_buffer_prototype().buffer.from_bytes(b"{}"))
    assert late.value.kind == "read-only-store"


@pytest.mark.parametrize("verb", VERBS)
def test_no_commit_of_nothing(repo: Repository, verb: str) -> None:
    changed(repo).commit("first")
    with pytest.raises(SessionStateError) as caught:
        getattr(repo.writable_session("main"), verb)("nothing")
    assert caught.value.kind == "no-changes-to-commit"


def test_the_first_snapshot_cannot_be_amended(repo: Repository) -> None:
    session = changed(repo)
    with pytest.raises(SessionStateError) as caught:
        session.amend("first")
    assert caught.value.kind == "no-amend-for-initial-commit"
    session.commit("then commit it")


@pytest.mark.parametrize("verb", ["commit", "amend"])
def test_no_commit_on_a_branch_that_moved(repo: Repository, verb: str) -> None:
    base = changed(repo).commit("base")
    session = changed(repo)
    tip = changed(repo).commit("quicker")
    with pytest.raises(ConflictError) as caught:
        getattr(session, verb)("slower")
    assert caught.value.kind == "commit-conflict"
    assert (caught.value.expected_parent, caught.value.actual_parent) == (base, tip)
    assert session.has_uncommitted_changes


BAD_METADATA = [{"x": range(3)}, {"x": {1, 2}}, {"x": b"bytes"}, {(1, 2): 3}, ["list"], "text"]


@pytest.mark.parametrize("metadata", BAD_METADATA, ids=repr)
@pytest.mark.parametrize("verb", VERBS)
def test_metadata_that_is_no_json_object_is_refused(repo: Repository, verb: str, metadata: Any) -> None:
    changed(repo).commit("first")
    session = changed(repo)
    with pytest.raises(InvalidInputError) as caught:
        getattr(session, verb)("x", metadata=metadata)
    assert caught.value.kind == "invalid-argument"
    assert session.has_uncommitted_changes


@pytest.mark.parametrize("message", [None, 3, b"bytes"], ids=repr)
def test_a_message_is_text(repo: Repository, message: Any) -> None:
    with pytest.raises(InvalidInputError) as caught:
        changed(repo).commit(message)
    assert caught.value.kind == "invalid-argument"
