"""Native objects: which chunks become one, how they share it, what reads, collects and repacks them."""

from __future__ import annotations

import asyncio
import os
import pickle
import shutil
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import fsspec
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from zarr.abc.store import RangeByteRequest

import icelite
from icelite import Repository, RepositoryConfig
from icelite.catalog.database import Catalog
from icelite.errors import ErrorKind, FormatError, InvalidInputError, SessionStateError, StorageError
from icelite.objects import Objects, RemoteObjects, check_key, key_time, new_key, pack
from icelite.objects.keys import FOLDERS
from icelite.store.pipeline import enable_fast_reads
from icelite.types import ChunkType

STORED = 20 * 1004  # bytes of the object of `values`: behind each chunk is its checksum
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks /proc what a descriptor is of")


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def later() -> datetime:
    return datetime.now(UTC) + timedelta(seconds=1)


def write(repo: Repository, values: np.ndarray, name: str = "x", chunk: int = 1000) -> str:
    session = repo.writable_session("main")
    zarr.create_array(session.store, name=name, data=values, chunks=(chunk,), compressors=None, overwrite=True)
    return session.commit(f"write {name}")


def read(repo: Repository, name: str = "x", **ref: str) -> np.ndarray:
    return np.asarray(zarr.open_array(repo.readonly_session(**(ref or {"branch": "main"})).store, path=name)[...])


@pytest.fixture
def values() -> np.ndarray:
    return np.arange(20_000, dtype="u1").astype("u1")


# -- keys and packs ----------------------------------------------------------------------------------------------


@given(st.integers(0, (1 << 48) - 1))
def test_a_key_tells_its_time(milliseconds: int) -> None:
    key = new_key(milliseconds)
    assert key_time(key) == milliseconds
    assert check_key(key) == key


def test_keys_sort_by_time_and_differ() -> None:
    keys = [new_key() for _ in range(1000)]
    assert len(set(keys)) == 1000
    assert abs(key_time(keys[0]) - time.time() * 1000) < 60_000


@pytest.mark.parametrize(
    "key", ["", "../x", "7Q/../../etc/passwd", "AA/" + "0" * 26, "aa/" + "0" * 24 + "aa", "/etc/x"]
)
def test_what_is_no_key_is_refused(key: str) -> None:
    with pytest.raises(FormatError, match="no key"):
        check_key(key)


@given(st.lists(st.binary(max_size=60)), st.integers(0, 100))
def test_packs_hold_every_chunk_once_in_order(chunks: list[bytes], target: int) -> None:
    groups = list(pack(enumerate(chunks), target))
    alone = [group for group in groups if len(group) == 1 and len(group[0][1]) >= target]
    assert sorted(item for group in groups for item in group) == list(enumerate(chunks))
    shared = [group for group in groups if group not in alone]
    assert all(sum(len(data) for _, data in group) >= target for group in shared[:-1])
    assert all(sum(len(data) for _, data in group[:-1]) < max(target, 1) for group in shared)


# -- writing and reading -----------------------------------------------------------------------------------------


def test_chunks_above_the_threshold_become_objects(tmp_path: Path, values: np.ndarray) -> None:
    repo = Repository.create(tmp_path / "a.icelite", objects="./chunks")
    session = repo.writable_session("main")
    array = zarr.create_array(session.store, name="x", data=values, chunks=(1000,), compressors=None)
    small = zarr.create_array(session.store, name="small", shape=4, chunks=2, dtype="u1")
    small[:] = 7
    assert np.array_equal(array[...], values)  # before the commit
    session.commit("both")
    assert session.chunk_type("x", [3]) == ChunkType.native
    assert session.chunk_type("small", [0]) == ChunkType.inline
    assert np.array_equal(read(repo), values)
    (pack_file,) = files(tmp_path / "chunks")  # 20 chunks share one object
    assert pack_file.stat().st_size == STORED
    check_key(str(pack_file.relative_to(next((tmp_path / "chunks").iterdir()))))
    assert repo.chunk_storage_stats().native_bytes == values.nbytes
    assert repo.verify() == []


def test_the_target_decides_how_many_share(tmp_path: Path, values: np.ndarray) -> None:
    one_each = Repository.create(tmp_path / "a.icelite", RepositoryConfig(object_target_bytes=0), objects="a")
    write(one_each, values)
    assert len(files(tmp_path / "a")) == 20
    fives = Repository.create(tmp_path / "b.icelite", RepositoryConfig(object_target_bytes=5000), objects="b")
    write(fives, values)
    assert len(files(tmp_path / "b")) == 4
    assert np.array_equal(read(one_each), read(fives))
    assert Repository.open(tmp_path / "b.icelite").config.object_target_bytes == 5000


def test_a_folder_moves_with_its_objects(tmp_path: Path, values: np.ndarray) -> None:
    (tmp_path / "here").mkdir()
    repo = Repository.create(tmp_path / "here" / "a.icelite", objects=tmp_path / "here" / "chunks")
    write(repo, values)
    repo.close()
    shutil.move(tmp_path / "here", tmp_path / "there")
    assert np.array_equal(read(Repository.open(tmp_path / "there" / "a.icelite")), values)


def test_objects_elsewhere_are_read_only_if_the_caller_says_so(tmp_path: Path, values: np.ndarray) -> None:
    catalog, elsewhere = tmp_path / "home" / "a.icelite", tmp_path / "big" / "chunks"
    catalog.parent.mkdir()
    write(Repository.create(catalog, objects=elsewhere), values)
    with pytest.raises(InvalidInputError, match="objects='file://") as caught:
        read(Repository.open(catalog))
    assert caught.value.kind == ErrorKind.UNAUTHORIZED_OBJECTS
    with pytest.raises(InvalidInputError, match="objects='file://"):
        write(Repository.open(catalog), values, "y")
    assert np.array_equal(read(Repository.open(catalog, objects=elsewhere)), values)
    shutil.move(elsewhere, tmp_path / "moved")
    assert np.array_equal(read(Repository.open(catalog, objects=tmp_path / "moved")), values)


def test_a_session_that_pickles_takes_its_objects_along(tmp_path: Path, values: np.ndarray) -> None:
    repo = Repository.create(tmp_path / "a.icelite", objects="chunks")
    write(repo, values)
    session = pickle.loads(pickle.dumps(repo.readonly_session("main")))
    assert np.array_equal(zarr.open_array(session.store, path="x")[...], values)
    writable = repo.writable_session("main")
    zarr.create_array(writable.store, name="y", shape=values.shape, chunks=(1000,), dtype="u1", compressors=None)
    fork = writable.fork()
    zarr.open_array(fork.store, path="y")[:] = values
    travelled = pickle.dumps(fork)
    assert len(travelled) < 20_000  # references, not bytes
    writable.merge(pickle.loads(travelled))
    writable.commit("merged")
    assert np.array_equal(read(repo, "y"), values)
    assert len(files(tmp_path / "chunks")) == 2
    assert np.array_equal(read(pickle.loads(pickle.dumps(repo))), values)


def test_in_memory_and_through_fsspec(values: np.ndarray) -> None:
    repo = Repository.create(icelite.in_memory_storage(), objects="memory://test-objects/chunks")
    assert isinstance(repo._objects, RemoteObjects)
    write(repo, values)
    assert [found.size for found in repo._objects.scan()] == [STORED]
    write(repo, values[:5000])
    repo.expire_snapshots(later())
    summary = repo.garbage_collect(later())
    assert (summary.objects_deleted, summary.bytes_deleted) == (1, STORED)
    assert len(list(repo._objects.scan())) == 1


@pytest.mark.parametrize(
    "objects", ["", ".", "/", "http://example.org/x", "s3://", "s3://b/../x", "a\\b", "s3://u:p@b/x"]
)
def test_places_that_cannot_be(tmp_path: Path, objects: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        Repository.create(tmp_path / "a.icelite", objects=objects)
    assert "u:p" not in str(caught.value)
    assert not (tmp_path / "a.icelite").exists()


# -- what goes wrong ---------------------------------------------------------------------------------------------


def test_a_failed_upload_fails_the_commit_and_keeps_the_changes(
    tmp_path: Path, values: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = Repository.create(tmp_path / "a.icelite", objects="chunks")
    session = repo.writable_session("main")
    zarr.create_array(session.store, name="x", data=values, chunks=(1000,), compressors=None)
    (tmp_path / "chunks").write_bytes(b"in the way")
    with pytest.raises(StorageError, match="could not be written"):
        session.commit("no")
    assert session.has_uncommitted_changes
    assert len(list(repo.ancestry(branch="main"))) == 1
    (tmp_path / "chunks").unlink()
    session.commit("yes")
    assert np.array_equal(read(repo), values)


def test_a_missing_or_truncated_object_is_an_error(tmp_path: Path, values: np.ndarray) -> None:
    repo = Repository.create(tmp_path / "a.icelite", objects="chunks")
    write(repo, values)
    (only,) = files(tmp_path / "chunks")
    os.truncate(only, 1500)
    with pytest.raises(StorageError, match=only.name):
        read(Repository.open(tmp_path / "a.icelite"))
    only.unlink()
    with pytest.raises(StorageError, match=only.name):
        read(Repository.open(tmp_path / "a.icelite"))


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path, values: np.ndarray) -> None:
    home = tmp_path / "home"
    home.mkdir()
    repo = Repository.create(home / "a.icelite", objects="chunks")
    write(repo, values)
    shutil.move(home / "chunks", tmp_path / "away")
    (home / "chunks").symlink_to(tmp_path / "away")
    with pytest.raises(InvalidInputError):
        read(Repository.open(home / "a.icelite"))


# -- garbage and repacking ---------------------------------------------------------------------------------------


def test_collection_removes_what_nothing_needs(tmp_path: Path, values: np.ndarray) -> None:
    repo = Repository.create(tmp_path / "a.icelite", objects="chunks")
    first = write(repo, values)
    write(repo, values[::-1].copy())
    (tmp_path / "chunks" / "README").write_text("not ours")
    assert repo.garbage_collect(later()).objects_deleted == 0
    repo.create_tag("first", first)
    repo.expire_snapshots(later())
    assert repo.garbage_collect(later()).objects_deleted == 0
    repo.delete_tag("first")
    repo.expire_snapshots(later())
    counted = repo.garbage_collect(later(), dry_run=True)
    assert (counted.objects_deleted, counted.bytes_deleted) == (1, STORED)
    assert len(files(tmp_path / "chunks")) == 3
    assert repo.garbage_collect(later()).objects_deleted == 1
    assert len(files(tmp_path / "chunks")) == 2
    assert np.array_equal(read(repo), values[::-1])
    assert repo.verify() == []


def test_orphans_of_a_crash_are_swept_by_age(tmp_path: Path, values: np.ndarray) -> None:
    repo = Repository.create(tmp_path / "a.icelite", objects="chunks")
    write(repo, values)
    (folder,) = (tmp_path / "chunks").iterdir()
    old, young = new_key(1_000_000), repo._objects.put([b"young"])[0]
    for name in (old, old[:3] + "." + old[3:]):  # an object, and the draft of one
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"old")
    (folder / new_key(1_000_000)).mkdir(parents=True)  # a folder of that name is not ours
    assert repo.garbage_collect(datetime.now(UTC) - timedelta(hours=1)).objects_deleted == 2
    left = {str(path.relative_to(folder)) for path in files(folder)}
    assert young in left
    assert not any(key.endswith(old[3:]) for key in left)


@pytest.mark.parametrize("place", ["chunks", "memory://shared-by-two/chunks"])
def test_two_repositories_in_one_place_leave_each_other_alone(tmp_path: Path, values: np.ndarray, place: str) -> None:
    repos = [Repository.create(tmp_path / name, objects=place) for name in ("a.icelite", "b.icelite")]
    for repo in repos:
        write(repo, values)
    for repo in repos:
        assert repo.garbage_collect(later()).objects_deleted == 0
    for name in ("a.icelite", "b.icelite"):
        assert np.array_equal(read(Repository.open(tmp_path / name, objects=place)), values)
    whole = repos[0]._objects.root  # as an error message would say it
    assert whole is not None
    if "://" in whole:
        assert np.array_equal(read(Repository.open(tmp_path / "a.icelite", objects=whole)), values)


def test_a_session_whose_objects_were_swept_cannot_commit(tmp_path: Path, values: np.ndarray) -> None:
    repo = Repository.create(tmp_path / "a.icelite", objects="chunks")
    session = repo.writable_session("main")
    zarr.create_array(session.store, name="x", data=values, chunks=(1000,), compressors=None)
    session.changes.chunks.flush()
    repo.garbage_collect(later())
    with pytest.raises(SessionStateError) as caught:
        session.commit("too late")
    assert caught.value.kind == ErrorKind.PAYLOAD_COLLECTED
    assert len(list(repo.ancestry(branch="main"))) == 1


def test_a_session_under_way_is_spared_by_an_earlier_cutoff(tmp_path: Path, values: np.ndarray) -> None:
    repo = Repository.create(tmp_path / "a.icelite", objects="chunks")
    before = datetime.now(UTC) - timedelta(seconds=1)
    session = repo.writable_session("main")
    zarr.create_array(session.store, name="x", data=values, chunks=(1000,), compressors=None)
    session.changes.chunks.flush()
    repo.garbage_collect(before)
    session.commit("in time")
    assert np.array_equal(read(repo), values)


def test_mostly_dead_packs_are_written_anew(tmp_path: Path, values: np.ndarray) -> None:
    repo = Repository.create(tmp_path / "a.icelite", objects="chunks")
    write(repo, values)
    session = repo.writable_session("main")
    array = zarr.open_array(session.store, path="x")
    array[:16_000] = 1  # 4 of the 20 chunks of the first pack are left
    tagged = session.commit("most of it")
    repo.create_tag("tagged", tagged)
    repo.expire_snapshots(later())
    repo.garbage_collect(later())
    reader = zarr.open_array(repo.readonly_session(tag="tagged").store, path="x")
    expected = np.asarray(reader[...])
    steps: list[tuple[int, int]] = []
    done = repo.repack(progress=lambda count, total: steps.append((count, total)))
    assert next(iter(repo.ops_log())).kind == icelite.UpdateType.ObjectsRepacked(done.objects)
    assert (done.objects, done.bytes_kept, done.bytes_freed) == (1, 4 * 1004, 16 * 1004)
    assert steps == [(4, 4)]
    assert np.array_equal(reader[...], expected)  # the old object is still there
    assert repo.garbage_collect(later()).objects_deleted == 1
    assert np.array_equal(read(repo, tag="tagged"), expected)
    assert sum(path.stat().st_size for path in files(tmp_path / "chunks")) == STORED
    assert repo.repack().objects == 0
    assert repo.verify() == []


def test_a_forged_key_is_not_followed(tmp_path: Path, values: np.ndarray) -> None:
    repo = Repository.create(tmp_path / "a.icelite", objects="chunks")
    write(repo, values)
    (tmp_path / "secret").write_bytes(bytes(20_000))
    catalog = Catalog(repo.storage)
    with catalog.write() as txn:
        txn.run("UPDATE location SET path = ? WHERE kind = 1", ("../secret",))
    catalog.close()
    with pytest.raises(FormatError, match="no key"):
        read(Repository.open(tmp_path / "a.icelite"))


# -- durable before it is named ----------------------------------------------------------------------------------


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths that were synced, in order."""
    paths: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda number: paths.append(os.readlink(f"/proc/self/fd/{number}")))
    return paths


@linux
def test_objects_and_the_folders_that_lead_to_them_are_synced(tmp_path: Path, synced: list[str]) -> None:
    """Each file as a draft, then each folder that got an entry, then those above that were made for it."""
    root = tmp_path / "deep" / "chunks"
    objects = Objects(f"file://{root}/", "deep/chunks/")
    for above in ({str(tmp_path), str(tmp_path / "deep")}, set()):
        synced.clear()
        keys = objects.put([b"one", b"two", b"three"])
        assert set(synced[:3]) == {f"{root}/{key[:3]}.{key[3:]}" for key in keys}
        assert set(synced[3:]) == {f"{root}/{key[:2]}" for key in keys} | {str(root)} | above


@linux
def test_a_folder_that_another_writer_made_is_synced_too(tmp_path: Path, synced: list[str]) -> None:
    """The one that made it may have been killed before it came to that."""
    for folder in FOLDERS:
        (tmp_path / "chunks" / folder).mkdir(parents=True)
    objects = Objects(f"file://{tmp_path}/chunks/", "chunks/")
    (key,) = objects.put([b"one"])
    assert set(synced[1:]) == {str(tmp_path), str(tmp_path / "chunks"), str(tmp_path / "chunks" / key[:2])}
    assert (tmp_path / "chunks" / key).read_bytes() == b"one"


@pytest.mark.parametrize("place", [0, 999, 1000, 1003, 1004 * 19 + 500])
def test_a_flipped_byte_is_an_error(tmp_path: Path, values: np.ndarray, place: int) -> None:
    repo = Repository.create(tmp_path / "a.icelite", objects="chunks")
    write(repo, values)
    (path,) = files(tmp_path / "chunks")
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(data)
    store = repo.readonly_session("main").store
    damaged = place // 1004
    key = f"x/c/{damaged}"
    with pytest.raises(FormatError, match=rf"{damaged}\b.*damaged"):
        store.get_sync(key)
    with pytest.raises(FormatError, match="damaged"):
        asyncio.run(store.get(key))
    with pytest.raises(FormatError, match="damaged"), enable_fast_reads():
        zarr.open_array(store, path="x", mode="r")[...]
    assert store.get_sync("x/c/7") is not None
    part = store.get_sync(key, byte_range=RangeByteRequest(100, 200))  # nothing tells whether a part is whole
    assert part is not None
    assert part.to_bytes() == values[damaged * 1000 + 100 : damaged * 1000 + 200].tobytes()


def test_a_flipped_byte_far_away_is_an_error(values: np.ndarray) -> None:
    repo = Repository.create(icelite.in_memory_storage(), objects="memory://test-objects/flipped")
    write(repo, values)
    (found,) = repo._objects.scan()
    files = fsspec.filesystem("memory")
    (name,) = [name for name in files.find("/test-objects/flipped") if name.endswith(found.key)]
    files.pipe(name, bytes([*files.cat(name)[:-2], 0, 0]))
    store = repo.readonly_session("main").store
    assert asyncio.run(store.get("x/c/18")) is not None
    for read_it in (lambda: asyncio.run(store.get("x/c/19")), lambda: read(repo)):
        with pytest.raises(FormatError, match="damaged"):
            read_it()


@pytest.mark.parametrize("objects", ["list", "read"])
def test_verify_finds_missing_short_and_damaged_objects(tmp_path: Path, values: np.ndarray, objects: str) -> None:
    repo = Repository.create(tmp_path / "a.icelite", objects="chunks")
    for name in ("x", "y", "z"):
        write(repo, values, name)
    found = repo.verify(objects=objects)
    assert (found, found.objects) == ([], 3)
    gone, short, damaged = files(tmp_path / "chunks")
    gone.unlink()
    short.write_bytes(short.read_bytes()[:-1])
    damaged.write_bytes(bytes([255, *damaged.read_bytes()[1:]]))
    assert repo.verify() == []
    problems = repo.verify(objects=objects)
    named = {problem.subject.rpartition("/")[2] for problem in problems}
    assert named == {gone.name, short.name} | ({damaged.name} if objects == "read" else set())
    assert {problem.check for problem in problems} == {f"objects_{objects}"}


def test_verify_with_objects_asked_for_wrongly(tmp_path: Path) -> None:
    repo = Repository.create(tmp_path / "a.icelite")
    assert repo.verify(objects="read") == []
    with pytest.raises(InvalidInputError, match="'list' or 'read'"):
        repo.verify(objects="all")
