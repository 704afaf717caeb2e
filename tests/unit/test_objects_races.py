"""Native objects while others are at work: collection and repacking beside sessions, forks, threads and processes."""

from __future__ import annotations

import contextlib
import pickle
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import zarr
from zarr.core.buffer import default_buffer_prototype

from icelite import ConflictDetector, Repository, RepositoryConfig, Session
from icelite.catalog import locations
from icelite.errors import ErrorKind, SessionStateError
from icelite.objects import Objects
from icelite.types import Chunk, Location

CHUNKS = 8
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


def later() -> datetime:
    return datetime.now(UTC) + timedelta(seconds=1)


@pytest.fixture
def repo(tmp_path: Path) -> Repository:
    config = RepositoryConfig(inline_chunk_threshold_bytes=0, object_target_bytes=100)
    repo = Repository.create(tmp_path / "a.icelite", config, objects="chunks")
    session = repo.writable_session("main")
    for name in ("x", "y"):
        zarr.create_array(session.store, name=name, shape=(CHUNKS,), chunks=(1,), dtype="i4", compressors=None)
        fill(session, name, 1)
    session.commit("arrays")
    return repo


def fill(session: Session, name: str, value: int) -> None:
    """Write every chunk of an array, and put the bytes into objects at once."""
    zarr.open_array(session.store, path=name)[:] = np.arange(CHUNKS) + value
    session.changes.chunks.flush()


def values(session: Session, name: str = "x") -> list[int]:
    return np.asarray(zarr.open_array(session.store, path=name, mode="r")[...]).tolist()


def filled(value: int) -> list[int]:
    return list(range(value, value + CHUNKS))


def orphans(repo: Repository) -> int:
    assert isinstance(repo._objects, Objects)
    with repo._catalog.read() as txn:
        named = {found.key for found in locations.list_packs(txn)}
    present = {found.key for found in repo._objects.scan()}
    assert named <= present
    return len(present - named)


# -- collection beside a session ---------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["commit", "amend", "flush", "rebase", "fork"])
@pytest.mark.parametrize("cutoff", ["before", "after"])
def test_what_a_session_wrote_is_spared_or_its_commit_refused(repo: Repository, way: str, cutoff: str) -> None:
    moment = LONG_AGO if cutoff == "before" else None
    session = repo.writable_session("main")
    if way == "fork":
        fork = session.fork()
        fill(fork, "x", 5)
        fork = pickle.loads(pickle.dumps(fork))
    else:
        fill(session, "x", 5)
    if way == "rebase":
        other = repo.writable_session("main")
        fill(other, "y", 7)
        other.commit("other")
    repo.garbage_collect(moment or later())

    def finish() -> str:
        if way == "fork":
            session.merge(fork)
        if way == "rebase":
            session.rebase(ConflictDetector())
        return {"amend": session.amend, "flush": session.flush}.get(way, session.commit)("mine")

    tip = repo.lookup_branch("main")
    if cutoff == "before":
        assert values(repo.readonly_session(snapshot_id=finish())) == filled(5)
    else:
        with pytest.raises(SessionStateError) as caught:
            finish()
        assert caught.value.kind == ErrorKind.PAYLOAD_COLLECTED
        assert repo.lookup_branch("main") == tip
        assert values(repo.readonly_session("main")) == filled(1)
    assert repo.verify() == []


def test_discarded_changes_leave_orphans_only(repo: Repository) -> None:
    session = repo.writable_session("main")
    fill(session, "x", 5)
    session.discard_changes()
    assert values(session) == filled(1)
    assert orphans(repo) == 1
    repo.garbage_collect(later())
    assert orphans(repo) == 0
    fill(session, "y", 6)  # written after the collection, so it can be committed
    session.commit("y")
    assert values(repo.readonly_session("main"), "y") == filled(6)


def test_a_cutoff_in_the_future_does_not_refuse_what_is_written_then(repo: Repository) -> None:
    repo.garbage_collect(datetime.now(UTC) + timedelta(days=1))
    session = repo.writable_session("main")
    fill(session, "x", 5)
    session.commit("after it")
    assert values(repo.readonly_session("main")) == filled(5)


def test_chunks_moved_inside_an_array_keep_their_objects(repo: Repository) -> None:
    session = repo.writable_session("main")
    session.shift_array("x", [1])
    repo.garbage_collect(later())  # the session wrote nothing: its chunks are those of the snapshot
    session.commit("moved")
    assert values(repo.readonly_session("main")) == [0, *filled(1)[:-1]]


# -- repacking ---------------------------------------------------------------------------------------------------


def test_a_collection_between_copying_and_pointing_is_noticed(repo: Repository) -> None:
    with pytest.raises(SessionStateError) as caught:
        make_sparse(repo).repack(min_live=1.0, progress=lambda done, total: collect(repo))
    assert caught.value.kind == ErrorKind.PAYLOAD_COLLECTED
    assert values(repo.readonly_session("main"))[4:] == filled(1)[4:]
    repo.repack(min_live=1.0)
    repo.garbage_collect(later())
    assert orphans(repo) == 0
    assert values(repo.readonly_session("main"))[4:] == filled(1)[4:]


def make_sparse(repo: Repository) -> Repository:
    """Let half of the chunks of the first pack die."""
    session = repo.writable_session("main")
    zarr.open_array(session.store, path="x")[:4] = 0
    session.commit("half")
    repo.expire_snapshots(later())
    collect(repo)
    return repo


def collect(repo: Repository) -> None:
    time.sleep(0.002)
    repo.garbage_collect(later())


def test_a_commit_between_copying_and_pointing_keeps_its_references(repo: Repository) -> None:
    make_sparse(repo)
    session = repo.writable_session("main")
    session.shift_array("x", [1])
    before = values(session)
    repo.repack(min_live=1.0, progress=lambda done, total: session.read_only or session.commit("moved"))
    assert values(repo.readonly_session("main")) == before
    collect(repo)
    assert values(repo.readonly_session("main")) == before
    assert orphans(repo) == 0


def test_a_session_that_moves_chunks_of_a_pack_that_is_rewritten_and_swept_is_told(repo: Repository) -> None:
    make_sparse(repo)
    session = repo.writable_session("main")
    session.shift_array("x", [1])
    repo.repack(min_live=1.0)
    collect(repo)
    with pytest.raises(SessionStateError) as caught:
        session.commit("moved")
    assert caught.value.kind == ErrorKind.PAYLOAD_COLLECTED
    assert values(repo.readonly_session("main"))[4:] == filled(1)[4:]


def test_numbers_of_removed_locations_that_return_are_not_mistaken(repo: Repository, tmp_path: Path) -> None:
    """SQLite gives the greatest id again once it is free; a session that rebases must not go by it."""
    session = repo.writable_session("main")
    for name, value in (("before.bin", 100), ("after.bin", 200)):
        (tmp_path / name).write_bytes(value.to_bytes(4, "little"))
        other = repo.writable_session("main")
        other.store.set_virtual_ref("y/c/0", f"./{name}", offset=0, length=4)
        other.commit(name)
        session.rebase(ConflictDetector())
        assert values(session, "y")[0] == value  # known by its number now
        other = repo.writable_session("main")
        other.store.delete_sync("y/c/0")
        other.commit("gone")
        session.rebase(ConflictDetector())
        repo.expire_snapshots(later())
        collect(repo)


# -- threads and processes ---------------------------------------------------------------------------------------


def test_a_chunk_is_found_at_every_moment_of_its_upload(repo: Repository) -> None:
    session = repo.writable_session("main")
    zarr.open_array(session.store, path="x")[:] = np.arange(CHUNKS) + 5
    seen: list[Chunk | None] = []

    class Watched(dict[tuple[int, str], bytes]):
        def __delitem__(self, name: tuple[int, str]) -> None:
            super().__delitem__(name)
            seen.append(session.changes.chunks.find(*name))

    session.changes.chunks._pending = Watched(session.changes.chunks._pending)
    session.changes.chunks.flush()
    assert [found is not None and type(found.location) for found in seen] == [Location] * CHUNKS


def test_threads_read_what_another_one_uploads(repo: Repository) -> None:
    session = repo.writable_session("main")
    buffer = default_buffer_prototype().buffer
    stop = threading.Event()

    def upload() -> None:
        while not stop.is_set():
            session.changes.chunks.flush()

    def write(thread: int) -> None:
        for number in range(60):
            key = f"x/c/{thread}"
            session.store.set_sync(key, buffer.from_bytes(bytes([thread, number, 0, 0])))
            for _ in range(3):
                found = session.store.get_sync(key)
                assert found is not None
                assert found.to_bytes() == bytes([thread, number, 0, 0])

    with ThreadPoolExecutor(7) as pool:
        uploads = [pool.submit(upload) for _ in range(3)]
        writes = [pool.submit(write, thread) for thread in range(4)]
        try:
            for each in writes:
                each.result()
        finally:
            stop.set()
        for each in uploads:
            each.result()
    session.commit("by all")
    assert values(repo.readonly_session("main"))[:4] == [thread + (59 << 8) for thread in range(4)]


WRITER = """
import sys
import numpy as np, zarr
from icelite import ConflictDetector, Repository, SessionStateError

repo = Repository.open(sys.argv[1])
done = number = 0
while done < 12 and number < 400:
    number += 1
    session = repo.writable_session("main")
    zarr.open_array(session.store, path=sys.argv[2])[:] = np.arange(8) + number
    session.changes.chunks.flush()
    try:
        session.commit(f"{sys.argv[2]} {number}", rebase_with=ConflictDetector())
        done += 1
        print(number, flush=True)
    except SessionStateError as error:
        assert error.kind == "payload-collected", error
"""


def test_two_processes_write_while_a_third_collects_and_repacks(repo: Repository, tmp_path: Path) -> None:
    writers = {
        name: subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path / "a.icelite"), name], stdout=subprocess.PIPE, text=True
        )
        for name in ("x", "y")
    }
    while any(writer.poll() is None for writer in writers.values()):
        repo.expire_snapshots(datetime.now(UTC) - timedelta(seconds=2))
        repo.garbage_collect(datetime.now(UTC) - timedelta(milliseconds=20))  # later than some sessions began
        with contextlib.suppress(SessionStateError):  # slower than that itself
            repo.repack(min_live=1.0)
        time.sleep(0.05)
    last: dict[str, int] = {}
    for name, writer in writers.items():
        output, _ = writer.communicate()
        assert writer.returncode == 0
        last[name] = int(output.split()[-1])
    for name, number in last.items():
        assert values(repo.readonly_session("main"), name) == filled(number)
    for info in repo.ancestry(branch="main"):
        if info.message != "Repository initialized":
            values(repo.readonly_session(snapshot_id=info.id))
    time.sleep(0.002)
    repo.garbage_collect(datetime.now(UTC))
    assert orphans(repo) == 0
    assert repo.verify() == []
