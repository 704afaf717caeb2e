"""Sessions: what is seen by whom, what becomes of uncommitted changes, and what a commit leaves behind."""

from __future__ import annotations

import asyncio
import json
import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import zarr
from zarr.core.buffer import default_buffer_prototype

import icelite
from icelite.catalog import operations
from icelite.catalog.database import Catalog
from icelite.change_set import chunks as pending
from icelite.config import RepositoryConfig
from icelite.errors import ConflictError, IceliteError, SessionStateError, StorageError
from icelite.repository import Repository
from icelite.session import Session
from icelite.storage import as_storage
from icelite.types import INITIAL_SNAPSHOT_ID, Diff, SessionMode

GROUP = '{"zarr_format": 3, "node_type": "group"}'
ARRAY = json.dumps(
    {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [1],
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1]}},
        "chunk_key_encoding": {"name": "default"},
    }
)


@pytest.fixture
def repo() -> Repository:
    """A repository with an array of four chunks, all 1."""
    repository = Repository.create(icelite.in_memory_storage())
    session = repository.writable_session("main")
    array = zarr.create_array(session.store, name="g/x", shape=(4,), chunks=(1,), dtype="i4", fill_value=0)
    array[:] = 1
    session.commit("ones", {"by": "me"})
    return repository


def values(session: Session, path: str = "g/x") -> list[int]:
    return np.asarray(zarr.open_array(session.store, path=path, mode="r")[:]).tolist()


def set_values(session: Session, where: slice | int, value: int) -> None:
    zarr.open_array(session.store, path="g/x", mode="r+")[where] = value


# -- what is seen ----------------------------------------------------------------------------------------------


def test_changes_are_seen_by_their_session_alone(repo: Repository) -> None:
    session, other = repo.writable_session("main"), repo.writable_session("main")
    set_values(session, 0, 2)
    zarr.create_group(session.store, path="new")
    assert values(session) == [2, 1, 1, 1]
    assert values(other) == values(repo.readonly_session("main")) == [1, 1, 1, 1]
    assert "new" in zarr.open_group(session.store, mode="r")
    assert "new" not in zarr.open_group(other.store, mode="r")


def test_a_read_only_session_never_changes(repo: Repository) -> None:
    before = repo.readonly_session("main")
    session = repo.writable_session("main")
    set_values(session, slice(None), 2)
    session.commit("twos")
    assert values(before) == [1] * 4
    assert values(repo.readonly_session("main")) == [2] * 4


def test_what_a_session_is(repo: Repository) -> None:
    tip = repo.lookup_branch("main")
    session = repo.writable_session("main")
    assert (session.snapshot_id, session.branch, session.read_only, session.mode) == (tip, "main", False, "writable")
    reader = repo.readonly_session("main")
    assert (reader.snapshot_id, reader.branch, reader.read_only, reader.mode) == (tip, None, True, "readonly")
    assert reader.mode is SessionMode.readonly
    assert not reader.has_uncommitted_changes
    assert reader.status() == Diff()
    for text in (repr(session), str(session)):
        assert tip in text


# -- uncommitted changes ---------------------------------------------------------------------------------------


def test_status_tells_each_kind_of_change(repo: Repository) -> None:
    session = repo.writable_session("main")
    assert session.status().is_empty()
    assert not session.has_uncommitted_changes
    set_values(session, slice(1, 3), 5)
    zarr.create_array(session.store, name="h/y", shape=(2, 2), chunks=(1, 1), dtype="i4")[0, 1] = 1
    zarr.open_array(session.store, path="g/x", mode="r+").attrs["units"] = "K"
    zarr.open_group(session.store, path="g", mode="r+").attrs["title"] = "ocean"
    status = session.status()
    assert status.new_arrays == {"/h/y"}
    assert "/h" in status.new_groups
    assert (status.updated_arrays, status.updated_groups) == ({"/g/x"}, {"/g"})
    assert status.updated_chunks == {"/g/x": [[1], [2]], "/h/y": [[0, 1]]}
    assert (status.deleted_arrays, status.deleted_groups) == (set(), set())
    assert session.has_uncommitted_changes


async def test_status_tells_deletions(repo: Repository) -> None:
    session = repo.writable_session("main")
    await session.store.delete("g/x/c/2")
    assert session.status().updated_chunks == {"/g/x": [[2]]}
    await session.store.delete_dir("g")
    status = session.status()
    assert (status.deleted_arrays, status.deleted_groups, status.updated_chunks) == ({"/g/x"}, {"/g"}, {})


async def test_changing_back_is_no_change(repo: Repository) -> None:
    session = repo.writable_session("main")
    group = zarr.open_group(session.store, path="g", mode="r+")
    group.attrs["title"] = "ocean"
    del group.attrs["title"]
    zarr.create_group(session.store, path="new")
    await session.store.delete_dir("new")
    assert session.status().is_empty()
    with pytest.raises(SessionStateError):
        session.commit("nothing")


@pytest.mark.parametrize("limit", [1, 1 << 20], ids=["bytes-already-in-the-catalog", "bytes-in-memory"])
def test_discarding_brings_the_snapshot_back(repo: Repository, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(pending, "PENDING_BYTES", limit)
    session = repo.writable_session("main")
    set_values(session, slice(None), 9)
    zarr.create_group(session.store, path="new")
    session.discard_changes()
    assert values(session) == [1] * 4
    assert not session.has_uncommitted_changes
    assert session.status() == Diff()
    set_values(session, 0, 2)
    session.commit("after all")
    assert values(repo.readonly_session("main")) == [2, 1, 1, 1]
    assert "new" not in zarr.open_group(repo.readonly_session("main").store, mode="r")


def test_bytes_written_ahead_read_as_those_in_memory(repo: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pending, "PENDING_BYTES", 1)
    session = repo.writable_session("main")
    for value in (3, 4):
        set_values(session, slice(0, 2), value)
    set_values(session, 3, 0)  # the fill value: the chunk goes
    assert values(session) == [4, 4, 1, 0]
    assert values(repo.readonly_session("main")) == [1] * 4
    session.commit("x")
    assert values(repo.readonly_session("main")) == [4, 4, 1, 0]


# -- commits ---------------------------------------------------------------------------------------------------


def test_a_commit_ends_on_its_snapshot(repo: Repository) -> None:
    session = repo.writable_session("main")
    parent = session.snapshot_id
    store = session.store
    set_values(session, 0, 2)
    snapshot = session.commit("two", {"n": [1, None]})
    assert session.snapshot_id == snapshot == repo.lookup_branch("main")
    assert session.read_only
    assert session.branch is None
    assert values(session) == [2, 1, 1, 1]
    info = repo.lookup_snapshot(snapshot)
    assert (info.parent_id, info.message, info.metadata) == (parent, "two", {"n": [1, None]})
    with pytest.raises(SessionStateError) as caught:
        session.commit("again")
    assert caught.value.kind == "commit-not-allowed"
    with pytest.raises(IceliteError) as caught_write:
        store.delete_sync("g/x/c/0")
    assert caught_write.value.kind == "read-only-session"


def test_who_comes_second_is_told_both_tips_and_keeps_the_changes(repo: Repository) -> None:
    first, second = repo.writable_session("main"), repo.writable_session("main")
    base = second.snapshot_id
    set_values(first, 0, 2)
    set_values(second, 0, 3)
    tip = first.commit("first")
    with pytest.raises(ConflictError) as caught:
        second.commit("second")
    error = caught.value
    assert (error.kind, error.expected_parent, error.actual_parent) == ("commit-conflict", base, tip)
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.expected_parent, copy.actual_parent) == (base, tip)
    assert values(second) == [3, 1, 1, 1]
    assert second.has_uncommitted_changes
    assert repo.lookup_branch("main") == tip
    repo.reset_branch("main", base)  # and now it is where the second began
    second.commit("second")
    assert values(repo.readonly_session("main")) == [3, 1, 1, 1]


def test_a_branch_that_went_away_takes_no_commit(repo: Repository) -> None:
    repo.create_branch("side", repo.lookup_branch("main"))
    session = repo.writable_session("side")
    set_values(session, 0, 2)
    repo.delete_branch("side")
    with pytest.raises(IceliteError) as caught:
        session.commit("x")
    assert caught.value.kind == "branch-not-found"
    assert values(session) == [2, 1, 1, 1]


def test_a_busy_catalog_leaves_the_session_to_try_again(tmp_path: Path) -> None:
    path = tmp_path / "a.icelite"
    repo = Repository.create(path, RepositoryConfig(busy_timeout_seconds=0.05))
    session = repo.writable_session("main")
    zarr.create_array(session.store, name="x", shape=(2,), chunks=(1,), dtype="i4")[:] = 1
    with Catalog(as_storage(path)).write(), pytest.raises(StorageError) as caught:
        session.commit("x")
    assert caught.value.kind == "busy"
    assert session.has_uncommitted_changes
    assert values(session, "x") == [1, 1]
    session.commit("x")
    assert values(repo.readonly_session("main"), "x") == [1, 1]


def test_a_clock_set_back_does_not_put_a_child_before_its_parent(
    repo: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = repo.lookup_snapshot(repo.lookup_branch("main"))
    monkeypatch.setattr("icelite.session.commits.now", lambda: operations.to_microseconds(parent.written_at) - 10**9)
    child = repo.lookup_snapshot(repo.writable_session("main").commit("x", allow_empty=True))
    assert child.written_at > parent.written_at
    assert repo.readonly_session("main", as_of=parent.written_at).snapshot_id == parent.id


def test_an_empty_commit_is_one_when_asked_for(repo: Repository) -> None:
    session = repo.writable_session("main")
    parent = session.snapshot_id
    snapshot = session.commit("milestone", allow_empty=True)
    assert repo.lookup_snapshot(snapshot).parent_id == parent
    assert values(session) == [1] * 4


def test_nothing_of_a_failed_commit_stays(repo: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    session = repo.writable_session("main")
    set_values(session, slice(None), 2)
    zarr.create_group(session.store, path="new")

    @contextmanager
    def broken(self: Catalog) -> Iterator[object]:
        with original(self) as txn:
            yield txn
            raise StorageError("the disk went away")

    original = Catalog.write
    with monkeypatch.context() as patch:
        patch.setattr(Catalog, "write", broken)
        with pytest.raises(StorageError, match="went away"):
            session.commit("x")
    assert repo.lookup_snapshot(repo.lookup_branch("main")).message == "ones"
    assert values(session) == [2] * 4
    session.commit("x")
    assert values(repo.readonly_session("main")) == [2] * 4
    assert "new" in zarr.open_group(repo.readonly_session("main").store, mode="r")


# -- as a Python object ----------------------------------------------------------------------------------------


def test_read_only_sessions_pickle_and_are_equal_where_their_snapshots_are(repo: Repository) -> None:
    session = repo.readonly_session("main")
    copy = pickle.loads(pickle.dumps(session))
    assert copy == session == repo.readonly_session(snapshot_id=session.snapshot_id)
    assert hash(copy) == hash(session)
    assert values(copy) == [1] * 4
    assert pickle.loads(pickle.dumps(session.store)) == session.store
    assert session != repo.readonly_session(snapshot_id=INITIAL_SNAPSHOT_ID)
    other = Repository.create(icelite.in_memory_storage())
    assert other.readonly_session("main") != repo.readonly_session(snapshot_id=INITIAL_SNAPSHOT_ID)
    assert session != "a session"


def test_a_writable_session_does_not_pickle_and_says_what_does(repo: Repository) -> None:
    session = repo.writable_session("main")
    for thing in (session, session.store):
        with pytest.raises(SessionStateError) as caught:
            pickle.dumps(thing)
        assert caught.value.kind == "not-picklable"
        assert "readonly_session" in str(caught.value)
    assert session == session
    assert session != repo.writable_session("main")
    set_values(session, 0, 2)
    session.commit("x")
    assert values(pickle.loads(pickle.dumps(session))) == [2, 1, 1, 1]


# -- shared by threads and event loops -------------------------------------------------------------------------


def run_together(work: Callable[[int], object], count: int) -> None:
    errors: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            work(number)
        except BaseException as error:  # noqa: BLE001  # raised below, in the thread that can fail the test
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@pytest.mark.parametrize("limit", [50, 1 << 20], ids=["flushing", "in-memory"])
def test_threads_may_write_to_one_session(repo: Repository, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(pending, "PENDING_BYTES", limit)
    session = repo.writable_session("main")
    zarr.create_array(session.store, name="big", shape=(8, 40), chunks=(1, 1), dtype="i4", compressors=None)
    store = session.store
    buffer = default_buffer_prototype().buffer

    def work(row: int) -> None:
        for column in range(40):
            key = f"big/c/{row}/{column}"
            store.set_sync(key, buffer.from_bytes(row.to_bytes(4, "little")))
            value = store.get_sync(key)
            assert value is not None
            assert value.to_bytes() == row.to_bytes(4, "little")
            if column % 10 == 0:
                session.status()
            if column % 13 == 0:
                store.delete_sync(key)

    run_together(work, 8)
    session.commit("by eight")
    expected = [[0 if column % 13 == 0 else row for column in range(40)] for row in range(8)]
    assert values(repo.readonly_session("main"), "big") == expected


def test_threads_may_read_from_one_session(repo: Repository) -> None:
    session = repo.readonly_session("main")

    def work(number: int) -> None:
        for _ in range(20):
            assert values(session) == [1] * 4

    run_together(work, 6)


async def test_coroutines_may_share_one(repo: Repository) -> None:
    session = repo.writable_session("main")
    store = session.store
    document = await store.get("g/zarr.json")
    assert document is not None

    async def work(number: int) -> None:
        await store.set(f"n{number}/zarr.json", document)
        assert await store.exists(f"n{number}/zarr.json")

    await asyncio.gather(*(work(number) for number in range(50)))
    session.commit("fifty")
    assert len(repo.diff(to_branch="main").new_groups) == 50


def test_no_array_is_put_around_uncommitted_nodes(tmp_path: Path) -> None:
    session = Repository.create(tmp_path / "a.icelite").writable_session("main")
    fork = session.fork()
    for writer in (session, fork):
        writer.changes.nodes.set_document("p/q", "zarr.json", GROUP)
    for writer in (session, pickle.loads(pickle.dumps(fork))):
        for path in ("p", ""):
            with pytest.raises(IceliteError, match="around existing nodes"):
                writer.changes.nodes.set_document(path, "zarr.json", ARRAY)
    session.changes.nodes.delete_below("p")
    session.changes.nodes.set_document("p", "zarr.json", ARRAY)


def test_a_chunk_key_is_read_by_the_metadata_of_the_moment(repo: Repository) -> None:
    session = repo.writable_session("main")
    store = session.store
    ones = store.get_sync("g/x/c/0")
    assert ones is not None
    text = session.changes.nodes.find("g/x").node.documents["zarr.json"]  # type: ignore[union-attr]
    dotted = json.loads(text) | {"chunk_key_encoding": {"name": "v2"}}
    session.changes.nodes.set_document("g/x", "zarr.json", json.dumps(dotted))
    with pytest.raises(IceliteError, match="not a chunk key"):
        store.get_sync("g/x/c/0")
    store.set_sync("g/x/0", ones)
    assert store.get_sync("g/x/0") is not None
    session.discard_changes()
    assert store.get_sync("g/x/c/0") is not None
    with pytest.raises(IceliteError, match="not a chunk key"):
        store.get_sync("g/x/0")
    session.changes.nodes.delete("g/x")
    assert store.get_sync("g/x/c/0") is None
