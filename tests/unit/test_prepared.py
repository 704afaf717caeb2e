"""Connections that serve one session after another, and what keeps one from being used again."""

from __future__ import annotations

import gc
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import apsw
import pytest
import zarr

from icelite import ErrorKind, FormatError, Repository
from icelite.catalog import connections


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.icelite"


@pytest.fixture
def repo(path: Path) -> Repository:
    repo = Repository.create(path)
    session = repo.writable_session("main")
    zarr.create_array(session.store, name="a", shape=(4,), chunks=(1,), dtype="i4")
    session.commit("array")
    return repo


def write(repo: Repository, value: int, *, commit: bool = True) -> apsw.Connection:
    """Write through a session of its own; the connection it had."""
    session = repo.writable_session("main")
    zarr.open_array(session.store, path="a")[0] = value
    session.changes.chunks.flush()
    if commit:
        session.commit(str(value))
    return session._catalog._connection


def value(repo: Repository) -> int:
    return int(zarr.open_array(repo.readonly_session("main").store, path="a", mode="r")[0])  # type: ignore[call-overload]


def test_sessions_that_follow_each_other_share_a_connection(repo: Repository) -> None:
    assert write(repo, 1) is write(repo, 2)
    assert value(repo) == 2


def test_sessions_at_once_have_connections_of_their_own(repo: Repository) -> None:
    one, two = repo.writable_session("main"), repo.writable_session("main")
    assert one._catalog._connection is not two._catalog._connection


def test_what_a_session_left_uncommitted_is_in_no_other(repo: Repository) -> None:
    left = write(repo, 7, commit=False)
    session = repo.writable_session("main")
    assert session._catalog._connection is not left
    assert session.changes.is_empty()
    zarr.open_array(session.store, path="a")[1] = 5
    session.commit("other")
    assert value(repo) == 0


def test_a_file_that_was_replaced_is_opened_anew(repo: Repository, path: Path) -> None:
    write(repo, 1)
    other = Repository.create(path.with_name("b.icelite"))
    tip = other.lookup_branch("main")
    other.close()
    path.with_name("b.icelite").replace(path)
    assert repo.writable_session("main").snapshot_id == tip


def test_a_schema_that_was_changed_is_found(repo: Repository, path: Path) -> None:
    write(repo, 1)
    stranger = apsw.Connection(str(path))
    stranger.execute("CREATE TABLE extra (x)")
    stranger.close()
    with pytest.raises(FormatError) as caught:
        repo.writable_session("main")
    assert caught.value.kind == ErrorKind.UNEXPECTED_SCHEMA


def test_few_connections_wait(repo: Repository) -> None:
    sessions = [repo.writable_session("main") for _ in range(5)]
    del sessions
    gc.collect()
    assert repo._spares is not None
    assert len(repo._spares._idle) == connections.SPARE_CONNECTIONS


def test_a_large_change_set_is_not_kept(repo: Repository) -> None:
    session = repo.writable_session("main")
    array = zarr.create_array(session.store, name="b", shape=(100_000,), chunks=(1,), dtype="i1")
    node_id = session.changes.nodes.lookup_array("b")[0].node.node_id
    names = [str(i) for i in range(100_000)]
    with session._catalog.stage() as txn:
        session.changes.chunks.set_refs(node_id, names, [None] * len(names), [0] * len(names), [0] * len(names), txn)
    session.commit("large")
    large = session._catalog._connection
    del session, array
    gc.collect()
    assert repo._spares is not None
    assert large not in [spare.connection for spare in repo._spares._idle]


def test_a_closed_repository_keeps_no_connection_and_no_journal(repo: Repository, path: Path) -> None:
    session = repo.writable_session("main")
    write(repo, 1)
    repo.close()
    del session
    gc.collect()
    assert repo._spares is not None
    assert not repo._spares._idle
    assert list(path.parent.iterdir()) == [path]


def test_threads_take_and_give_back(repo: Repository) -> None:
    def work(_: int) -> str:
        return {repo.writable_session("main").snapshot_id for _ in range(20)}.pop()

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(work, range(8))) == {repo.lookup_branch("main")}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a fork of this process is what is tested")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_takes_no_connection_of_its_parent(repo: Repository) -> None:
    parents = write(repo, 1)
    child = os.fork()
    if child == 0:
        session = repo.writable_session("main")
        os._exit(0 if session._catalog._connection is not parents else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert write(repo, 2) is parents
