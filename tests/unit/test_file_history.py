"""The history of files, and the sums of references, through everything that writes or removes references."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import icelite
from icelite import BasicConflictSolver, ConflictError, FileChange, RebaseFailedError, Repository, Session
from icelite.catalog import snapshots
from icelite.catalog.changes import SELECT_USAGE
from icelite.catalog.chunks import list_uses
from icelite.errors import AlreadyExistsError, ErrorKind, NotFoundError, SessionStateError

FILES = 3
CHUNKS = 4


@pytest.fixture
def repo(tmp_path: Path) -> Iterator[Repository]:
    for number in range(FILES):
        (tmp_path / f"{number}.bin").write_bytes(bytes(range(8)))
    repo = Repository.create(tmp_path / "a.icelite")
    yield repo
    repo.close()


def refer(session: Session, file: int, chunk: int = 0, name: str = "x", offset: int = 0) -> None:
    if name not in zarr.open_group(session.store):
        zarr.create_array(session.store, name=name, shape=(CHUNKS,), chunks=(1,), dtype="u1", compressors=None)
    session.store.set_virtual_ref(f"{name}/c/{chunk}", f"{file}.bin", offset=offset, length=1)


def commit(repo: Repository, file: int, chunk: int = 0, branch: str = "main", **more: int | str) -> str:
    session = repo.writable_session(branch)
    refer(session, file, chunk, **more)  # type: ignore[arg-type]
    return session.commit(f"file {file}")


def told(history: list[FileChange]) -> list[tuple[str, str, int]]:
    return [(entry.change, entry.snapshot_id, entry.references) for entry in history]


def soon() -> datetime:
    time.sleep(0.001)
    return datetime.now(UTC)


def test_added_changed_and_dropped(repo: Repository) -> None:
    ids = [commit(repo, 0), commit(repo, 0, 1), commit(repo, 1), commit(repo, 1, 1)]
    assert told(repo.file_history("0.bin")) == [
        ("dropped", ids[3], 0),
        ("changed", ids[2], 1),
        ("changed", ids[1], 2),
        ("added", ids[0], 1),
    ]
    newest = repo.file_history("1.bin")[0]
    assert (newest.change, newest.message) == ("changed", "file 1")
    assert newest.written_at == repo.lookup_snapshot(ids[3]).written_at
    assert told(repo.file_history("0.bin", snapshot_id=ids[0])) == [("added", ids[0], 1)]


def test_a_deleted_array_drops_its_files(repo: Repository) -> None:
    first = commit(repo, 0)
    session = repo.writable_session("main")
    session.store.delete_sync("x/zarr.json")
    second = session.commit("delete")
    assert told(repo.file_history("0.bin")) == [("dropped", second, 0), ("added", first, 1)]


def test_a_file_that_was_written_anew_is_the_same_file(repo: Repository) -> None:
    first = commit(repo, 0)
    moment = datetime(2024, 8, 1, tzinfo=UTC)
    session = repo.writable_session("main")
    session.store.set_virtual_ref("x/c/0", "0.bin", offset=0, length=1, checksum=moment)
    second = session.commit("another state of it")
    history = repo.file_history("0.bin")
    assert told(history) == [("changed", second, 1), ("added", first, 1)]
    assert [entry.modified_at for entry in history] == [int(moment.timestamp()) * 10**9, None]


def test_history_outlives_its_snapshots_and_their_rows(repo: Repository) -> None:
    ids = [commit(repo, 0), commit(repo, 1), commit(repo, 2)]
    repo.expire_snapshots(soon())
    repo.garbage_collect(soon())
    history = repo.file_history("0.bin")
    assert told(history) == [("dropped", ids[1], 0), ("added", ids[0], 1)]
    assert [entry.message for entry in history] == [None, None]
    assert repo.verify() == []


def test_an_amend_counts_once(repo: Repository) -> None:
    commit(repo, 1)
    commit(repo, 0, 1)
    session = repo.writable_session("main")
    refer(session, 0, 2)
    amended = session.amend("both")
    assert told(repo.file_history("0.bin")) == [("added", amended, 2)]


def test_a_file_that_moved_keeps_its_history(repo: Repository, tmp_path: Path) -> None:
    first = commit(repo, 0)
    (tmp_path / "sub").mkdir()
    (tmp_path / "0.bin").rename(tmp_path / "sub" / "0.bin")
    repo.relocate("0.bin", "sub/0.bin")
    for url in ("sub/0.bin", (tmp_path / "sub" / "0.bin").as_uri()):
        assert told(repo.file_history(url)) == [("added", first, 1)]
    assert repo.verify() == []


def test_files_elsewhere_and_in_containers(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "near").mkdir()
    (tmp_path / "far" / "a.bin").write_bytes(bytes(8))
    prefix = (tmp_path / "far").as_uri() + "/"
    config = icelite.RepositoryConfig.default()
    config.set_virtual_chunk_container(icelite.VirtualChunkContainer(prefix, name="far"))
    repo = Repository.create(tmp_path / "near" / "a.icelite", config)
    session = repo.writable_session("main")
    zarr.create_array(session.store, name="x", shape=(2,), chunks=(1,), dtype="u1", compressors=None)
    session.store.set_virtual_ref("x/c/0", "vcc://far/a.bin", offset=0, length=1)
    session.store.set_virtual_ref("x/c/1", prefix + "a.bin", offset=0, length=1)
    first = session.commit("both ways")
    for url in ("vcc://far/a.bin", prefix + "a.bin"):
        assert told(repo.file_history(url)) == [("added", first, 2)]


def test_a_file_that_was_never_there(repo: Repository) -> None:
    commit(repo, 0)
    with pytest.raises(NotFoundError) as caught:
        repo.file_history("never.bin")
    assert caught.value.kind == ErrorKind.LOCATION_NOT_FOUND


# -- whatever is done ------------------------------------------------------------------------------------------------

REFUSED = ConflictError, RebaseFailedError, SessionStateError, NotFoundError, AlreadyExistsError
WHERE = st.tuples(st.sampled_from("xy"), st.integers(0, CHUNKS - 1))
STEPS = st.one_of(
    st.tuples(st.sampled_from(["commit", "amend", "other", "bulk"]), WHERE, st.integers(0, FILES - 1)),
    st.tuples(st.sampled_from(["delete chunk", "delete array", "inline"]), WHERE, st.just(0)),
    st.tuples(st.sampled_from(["expire", "collect", "merge", "move", "rebase"]), WHERE, st.integers(0, FILES - 1)),
)


def write(session: Session, what: str, where: tuple[str, int], file: int) -> None:
    name, chunk = where
    if what == "delete chunk":
        session.store.delete_sync(f"{name}/c/{chunk}")
    elif what == "delete array":
        session.store.delete_sync(f"{name}/zarr.json")
    elif what == "inline":
        refer(session, file, chunk, name)
        zarr.open_array(session.store, path=name)[chunk] = 7
    elif what == "bulk":
        for number in range(CHUNKS):
            refer(session, (file + number) % FILES, number, name, offset=number)
    else:
        refer(session, file, chunk, name, offset=chunk)


def do(repo: Repository, what: str, where: tuple[str, int], file: int) -> None:
    if what == "expire":
        repo.expire_snapshots(soon())
    elif what == "collect":
        repo.garbage_collect(soon())
    elif what == "merge":
        repo.merge("other", "main", solver=BasicConflictSolver())
    elif what == "move":
        session = repo.rearrange_session("main")
        session.move(f"/{where[0]}", f"/moved_{where[0]}")
        session.commit("move")
    elif what == "rebase":
        session = repo.writable_session("main")
        refer(session, file, where[1], where[0])
        write(later := repo.writable_session("main"), "commit", ("y", 0), file)
        later.commit("theirs", allow_empty=True)
        session.commit("ours", rebase_with=BasicConflictSolver())
    else:
        session = repo.writable_session("other" if what == "other" else "main")
        write(session, what, where, file)
        if what == "amend":
            session.amend("amend", allow_empty=True)
        else:
            session.commit(what, allow_empty=True)


@pytest.mark.parametrize("in_blocks", [False, True])
@settings(deadline=None, max_examples=10)
@given(steps=st.lists(STEPS, max_size=10))
def test_sums_and_history_follow_whatever_is_done(
    tmp_path_factory: pytest.TempPathFactory, in_blocks: bool, steps: list[tuple[str, tuple[str, int], int]]
) -> None:
    folder = tmp_path_factory.mktemp("history")
    for number in range(FILES):
        (folder / f"{number}.bin").write_bytes(bytes(8))
    with pytest.MonkeyPatch.context() as patch:
        if in_blocks:
            patch.setattr("icelite.change_set.chunks.BLOCK_ROWS", 1)
        repo = Repository.create(folder / "a.icelite")
        session = repo.writable_session("main")
        zarr.create_group(session.store)
        repo.create_branch("other", session.commit("start"))
        for step in steps:
            with contextlib.suppress(*REFUSED):
                do(repo, *step)
            check_usage(repo)
        assert repo.verify() == []
        repo.close()


def check_usage(repo: Repository) -> None:
    """What `usage` says of each branch is what its references say."""
    with repo._catalog.read() as txn:
        numbers = [number for (number,) in txn.rows("SELECT id FROM location WHERE kind = 2")]
        for branch in ("main", "other"):
            (seq,) = txn.row("SELECT seq FROM branch WHERE name = ?", (branch,)) or (0,)
            view = snapshots.view_snapshot(txn, seq)
            counted = {use.location_id: use.references for use in list_uses(txn, view) if use.location_id in numbers}
            noted = {row[0]: row[2] for row in txn.rows(SELECT_USAGE, (view.seg, view.seq, str(numbers)))}
            assert {number: refs for number, refs in noted.items() if refs} == counted
