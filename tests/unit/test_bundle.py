"""Bundling: one file that needs no other, with all of history in it, or nothing."""

from __future__ import annotations

import shutil
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import icelite
from icelite.catalog import creation
from icelite.errors import AlreadyExistsError, ErrorKind, IceliteError, InvalidInputError, StorageError
from icelite.payload import Payloads
from icelite.repository import Repository
from icelite.virtual.local import LocalSource


def history(repository: Repository) -> dict[str, Any]:
    """Everything that has a name, and the log."""
    return {
        "branches": {name: repository.lookup_branch(name) for name in repository.list_branches()},
        "tags": {name: repository.lookup_tag(name) for name in repository.list_tags()},
        "ancestry": {name: list(repository.ancestry(branch=name)) for name in repository.list_branches()},
        "log": list(repository.ops_log()),
        "metadata": repository.get_metadata(),
        "config": repository.config,
    }


@pytest.fixture
def old(archive: Any) -> Any:
    """An archive with a fork, a tag, an overwritten chunk, a deleted array and inline chunks."""
    repo = archive.repository
    repo.create_tag("v1", archive.first)
    repo.create_branch("other", archive.first)
    session = repo.writable_session("other")
    session.store.set_virtual_ref("x/c/0", "data/2.bin", offset=10, length=50)
    zarr.create_array(session.store, name="inline", shape=(4,), chunks=(2,), dtype="i4")[:] = [1, 2, 3, 4]
    session.commit("another start")
    session = repo.writable_session("main")
    del zarr.open_group(session.store)["x"]
    session.commit("delete")
    repo.set_metadata({"title": "ocean"})
    return archive


def test_all_of_history_is_in_it(old: Any, tmp_path: Path) -> None:
    expected = {name: old.read(old.repository, **name_of(name)) for name in ("v1", "other")}
    before = history(old.repository)
    done = old.repository.bundle(tmp_path / "bundle.icelite")
    assert (done.chunks, done.bytes, done.sources) == (7, 350, 4)  # data/2.bin without a stamp is another source
    assert done.size == (tmp_path / "bundle.icelite").stat().st_size
    old.repository.close()
    shutil.rmtree(old.folder)
    bundle = Repository.open(done.path, check="always")
    assert history(bundle) == before
    for name, values in expected.items():
        np.testing.assert_array_equal(old.read(bundle, **name_of(name)), values)
    assert zarr.open_array(bundle.readonly_session("other").store, path="inline")[:].tolist() == [1, 2, 3, 4]
    assert bundle.verify() == []
    assert bundle.required_access() == {}
    assert len(bundle.sources("other")) == 0
    stats = bundle.chunk_storage_stats()
    assert (stats.virtual_bytes, stats.native_bytes) == (0, 0)


def name_of(name: str) -> dict[str, str]:
    return {"tag": name} if name == "v1" else {"branch": name}


def test_it_goes_on_as_a_repository_of_its_own(old: Any, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    done = old.repository.bundle(tmp_path / "there" / "bundle.icelite")
    (tmp_path / "there" / "new.bin").write_bytes(bytes(50))
    bundle = Repository.open(done.path)
    session = bundle.writable_session("other")
    session.store.set_virtual_refs_arr(
        "x", (1,), ["new.bin"], np.array([0]), np.array([50]), stamps=session.access.stamps(["new.bin"])
    )
    session.commit("go on")
    (tmp_path / "there" / "new.bin").touch()
    with pytest.raises(StorageError) as caught:  # the bundle is at home where it was written: times count
        old.read(Repository.open(done.path), "other")
    assert caught.value.kind == ErrorKind.VIRTUAL_CHUNK_MODIFIED
    assert type(next(iter(old.repository.ops_log())).kind).__name__ == "MetadataChanged"  # the original is as it was


def test_each_range_is_read_once_and_in_the_order_of_the_file(old: Any, tmp_path: Path, monkeypatch: Any) -> None:
    session = old.repository.writable_session("other")
    zarr.create_array(session.store, name="y", shape=(300,), chunks=(50,), dtype="u1", compressors=None)
    stamps = session.access.stamps([path.as_uri() for path in old.files])
    urls = [path.as_uri() for path in old.files for _ in range(2)][::-1]
    offsets = np.array([50, 0] * 3)
    session.store.set_virtual_refs_arr("y", (6,), urls, offsets, np.full(6, 50), stamps=stamps)
    session.commit("the same backwards")
    reads: list[tuple[str, int]] = []
    read = LocalSource.read

    def note(self: LocalSource, offset: int, length: int, chunk: str) -> bytes:
        reads.append((Path(self._path).name, offset))
        return read(self, offset, length, chunk)

    monkeypatch.setattr("icelite.ops.bundle.AT_ONCE", 1)
    monkeypatch.setattr(LocalSource, "read", note)
    old.repository.bundle(tmp_path / "bundle.icelite")
    assert reads == [(f"{n}.bin", offset) for n in range(3) for offset in (0, 50)] + [("2.bin", 10)]
    rows = Repository.open(tmp_path / "bundle.icelite")._catalog
    with rows.read() as txn:
        assert txn.rows("SELECT count(*), count(DISTINCT offset) FROM chunk_ref WHERE length = 50") == [(13, 7)]
        assert txn.rows("SELECT id FROM location") == [(1,)]


@pytest.mark.parametrize("limit", ["RANGES_AT_ONCE", "BYTES_AT_ONCE"])
def test_memory_is_bounded_by_batches(old: Any, tmp_path: Path, monkeypatch: Any, limit: str) -> None:
    monkeypatch.setattr(creation, limit, {"RANGES_AT_ONCE": 2, "BYTES_AT_ONCE": 100}[limit])
    batches: list[int] = []
    scan = creation.scan_ranges

    def note(txn: Any) -> Any:
        for batch in scan(txn):
            batches.append(len(batch))
            yield batch

    monkeypatch.setattr(creation, "scan_ranges", note)
    calls: list[tuple[int, int]] = []
    old.repository.bundle(tmp_path / "bundle.icelite", progress=lambda *step: calls.append(step))
    assert batches == [2, 2, 2, 1]
    assert calls == [(2, 7), (4, 7), (6, 7), (7, 7)]
    old.check(Repository.open(tmp_path / "bundle.icelite"), tag="v1")


@pytest.mark.parametrize("change", ["longer", "gone", "unauthorised", "damaged"])
def test_a_source_that_is_not_as_it_was_is_named_and_nothing_is_left(
    new_archive: Any, tmp_path: Path, change: str
) -> None:
    archive = new_archive(tmp_path / "home", data=tmp_path / "elsewhere")
    repo = archive.repository
    if change == "longer":
        archive.files[1].write_bytes(bytes(101))
    elif change == "gone":
        archive.files[1].unlink()
    elif change == "unauthorised":
        repo = archive.open()
    else:
        with repo._catalog.write() as txn:
            txn.run("UPDATE location SET path = 'file:///../1.bin' WHERE path LIKE '%1.bin'")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(IceliteError) as caught:
        repo.bundle(tmp_path / "bundle.icelite")
    assert ("0.bin" if change == "unauthorised" else "1.bin") in str(caught.value)
    assert "'x/" in str(caught.value) or change == "damaged"
    assert "expire_snapshots" in caught.value.__notes__[0]
    assert sorted(tmp_path.rglob("*")) == before


def test_what_only_expired_snapshots_had_can_be_left_out(old: Any, tmp_path: Path) -> None:
    old.files[1].unlink()
    repo = old.repository
    session = repo.writable_session("other")
    zarr.open_array(session.store, path="x")[100:200] = 7
    session.commit("without the file that is gone")
    repo.delete_tag("v1")
    with pytest.raises(StorageError, match=r"1\.bin"):
        repo.bundle(tmp_path / "bundle.icelite")
    repo.expire_snapshots(datetime.now(UTC))
    repo.garbage_collect(datetime.now(UTC))
    repo.bundle(tmp_path / "bundle.icelite")
    assert Repository.open(tmp_path / "bundle.icelite").verify() == []


def test_an_existing_target_stays(old: Any, tmp_path: Path) -> None:
    target = tmp_path / "bundle.icelite"
    target.write_bytes(b"mine")
    with pytest.raises(AlreadyExistsError) as caught:
        old.repository.bundle(target)
    assert caught.value.kind == ErrorKind.REPOSITORY_ALREADY_EXISTS
    assert target.read_bytes() == b"mine"
    with pytest.raises(AlreadyExistsError):
        old.repository.bundle(old.path)
    with pytest.raises(icelite.RepositoryNotFoundError):
        old.repository.bundle(tmp_path / "gone" / "bundle.icelite")
    with pytest.raises(InvalidInputError):
        old.repository.bundle(icelite.in_memory_storage())


def test_somebody_commits_meanwhile(old: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """The original is not held while sources are read, and what comes later is not in the bundle."""
    other = old.open()
    read = Payloads.read
    once = threading.Lock()

    def commit_first(self: Payloads, *arguments: Any) -> bytes:
        if once.acquire(blocking=False):
            other.set_metadata({"title": "changed meanwhile"})
        return read(self, *arguments)

    monkeypatch.setattr(Payloads, "read", commit_first)
    old.repository.bundle(tmp_path / "bundle.icelite")
    assert other.get_metadata() == {"title": "changed meanwhile"}
    assert Repository.open(tmp_path / "bundle.icelite").get_metadata() == {"title": "ocean"}


def test_from_memory_and_without_virtual_chunks(workbench: Any, tmp_path: Path) -> None:
    workbench.commit({"zarr.json": workbench.GROUP, "x/zarr.json": workbench.array(3), "x/c/0": b"1"})
    done = workbench.repository.bundle(tmp_path / "bundle.icelite")
    assert (done.chunks, done.bytes, done.sources) == (0, 0, 0)
    assert workbench.contents_of(Repository.open(done.path).readonly_session("main")) == workbench.contents("main")


def test_native_chunks_too(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    repo = Repository.create(
        tmp_path / "home" / "x.icelite", icelite.RepositoryConfig(inline_chunk_threshold_bytes=10), objects="chunks"
    )
    session = repo.writable_session("main")
    array = zarr.create_array(session.store, name="x", shape=(8, 100), chunks=(1, 100), dtype="u1", compressors=None)
    array[:] = np.arange(800).reshape(8, 100) % 251
    session.commit("objects")
    assert repo.chunk_storage_stats().native_bytes == 800
    done = repo.bundle(tmp_path / "bundle.icelite")
    assert done.chunks == 8
    shutil.rmtree(tmp_path / "home")
    bundle = Repository.open(done.path)
    np.testing.assert_array_equal(
        zarr.open_array(bundle.readonly_session("main").store, path="x")[:], np.arange(800).reshape(8, 100) % 251
    )
    assert bundle.verify() == []
    session = bundle.writable_session("main")
    zarr.open_array(session.store, path="x")[0] = 1
    session.commit("goes into the file")
    assert bundle.chunk_storage_stats().native_bytes == 0


async def test_for_event_loops(old: Any, tmp_path: Path) -> None:
    assert (await old.repository.bundle_async(tmp_path / "bundle.icelite")).chunks == 7
