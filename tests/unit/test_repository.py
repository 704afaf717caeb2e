"""How a repository comes into being, is opened, shared and sent to others; and the store-first API on top of it."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.core.buffer import default_buffer_prototype

import icelite
from icelite import IceliteStore, StorageConfig, StoreConfig, VirtualRefConfig
from icelite.errors import (
    AlreadyExistsError,
    IceliteError,
    InvalidInputError,
    ReadOnlyError,
    RepositoryNotFoundError,
    StorageError,
)
from icelite.repository import Repository
from icelite.types import INITIAL_SNAPSHOT_ID


def fill(repository: Repository, value: int = 7) -> str:
    session = repository.writable_session("main")
    array = zarr.create_array(session.store, name="x", shape=(4,), chunks=(2,), dtype="i4", overwrite=True)
    array[:] = value
    return session.commit(f"all {value}")


def read(repository: Repository) -> list[int]:
    return np.asarray(zarr.open_array(repository.readonly_session("main").store, path="x", mode="r")[:]).tolist()


# -- coming into being -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [str, Path, StorageConfig.filesystem, icelite.local_filesystem_storage])
def test_a_path_is_given_in_any_form(tmp_path: Path, form: Callable[[str], Any]) -> None:
    place = form(str(tmp_path / "a.icelite"))
    assert not Repository.exists(place)
    fill(Repository.create(place))
    assert Repository.exists(place)
    assert read(Repository.open(place)) == [7] * 4
    assert read(icelite.open(place)) == [7] * 4
    assert read(Repository.open_or_create(place)) == [7] * 4


def test_a_new_repository_has_one_branch_with_one_snapshot(tmp_path: Path) -> None:
    repository = Repository.create(tmp_path / "a.icelite")
    assert repository.list_branches() == {"main"}
    assert repository.list_tags() == set()
    (info,) = repository.ancestry(branch="main")
    assert (info.id, info.parent_id, info.metadata) == (INITIAL_SNAPSHOT_ID, None, {})
    assert info.written_at.tzinfo is not None
    assert repository.lookup_branch("main") == INITIAL_SNAPSHOT_ID


def test_a_repository_is_one_file(tmp_path: Path) -> None:
    repository = Repository.create(tmp_path / "a.icelite")
    fill(repository)
    repository.close()
    assert os.listdir(tmp_path) == ["a.icelite"]


@pytest.mark.parametrize("name", ["a b.icelite", "ä?#%41.icelite", "a'\"b", "no-extension", ".hidden", "x" * 247])
def test_names_of_files_are_free(tmp_path: Path, name: str) -> None:
    fill(Repository.create(tmp_path / name))
    assert read(Repository.open(tmp_path / name)) == [7] * 4
    assert (tmp_path / name).is_file()


def test_a_name_too_long_for_a_journal_makes_nothing(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="too long") as caught:
        Repository.create(tmp_path / ("x" * 255))
    assert caught.value.kind == "io"
    assert os.listdir(tmp_path) == []


def test_what_exists_is_not_created_again(tmp_path: Path) -> None:
    path = tmp_path / "a.icelite"
    fill(Repository.create(path))
    before = path.read_bytes()
    with pytest.raises(AlreadyExistsError) as caught:
        Repository.create(path)
    assert caught.value.kind == "repository-already-exists"
    assert str(path) in str(caught.value)
    assert path.read_bytes() == before


@pytest.mark.parametrize("target", ["somebody's data", None], ids=["file", "dangling-link"])
def test_whatever_has_the_name_is_left_alone(tmp_path: Path, target: str | None) -> None:
    path = tmp_path / "a.icelite"
    if target is None:
        path.symlink_to(tmp_path)
    else:
        path.write_text(target)
    with pytest.raises(AlreadyExistsError):
        Repository.create(path)
    assert path.is_symlink() if target is None else path.read_text() == target


def test_a_creation_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)  # that of the directory may fail
    Repository.create(tmp_path / "a.icelite")
    monkeypatch.setattr("icelite.repository.administration.initialize", fail)
    with pytest.raises(StorageError, match="No space left") as caught:
        Repository.create(tmp_path / "b.icelite")
    assert caught.value.kind == "storage-full"
    assert sorted(os.listdir(tmp_path)) == ["a.icelite"]


def test_file_systems_without_hard_links_are_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    fill(Repository.create(tmp_path / "a.icelite"))
    assert read(Repository.open(tmp_path / "a.icelite")) == [7] * 4
    with pytest.raises(AlreadyExistsError):
        Repository.create(tmp_path / "a.icelite")
    Repository.open(tmp_path / "a.icelite").close()
    assert [name for name in os.listdir(tmp_path) if name.startswith(".")] == []


def test_a_link_to_a_catalog_is_the_catalog(tmp_path: Path) -> None:
    path = tmp_path / "data" / "a.icelite"
    path.parent.mkdir()
    fill(Repository.create(path))
    link = tmp_path / "link.icelite"
    link.symlink_to(path)
    repository = Repository.open(link)
    assert read(repository) == [7] * 4
    assert repository.storage == Repository.open(path).storage


def test_a_relative_path_stays_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    repository = Repository.create("a.icelite")
    other = tmp_path / "elsewhere"
    other.mkdir()
    monkeypatch.chdir(other)
    fill(repository)
    assert read(repository) == [7] * 4
    assert os.listdir(other) == []


@pytest.mark.parametrize("url", ["ftp://example.org/a.icelite", "gs://b/a"])
def test_urls_are_not_taken_for_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.chdir(tmp_path)
    for method in (Repository.create, Repository.open, Repository.open_or_create, Repository.exists):
        with pytest.raises(StorageError) as caught:
            method(url)
        assert caught.value.kind == "unsupported-storage"
    assert os.listdir(tmp_path) == []


def test_many_threads_may_create_one_and_all_get_it(tmp_path: Path) -> None:
    errors: list[Exception] = []
    barrier = threading.Barrier(6)

    def work() -> None:
        barrier.wait()
        try:
            repository = Repository.open_or_create(tmp_path / "a.icelite")
            assert repository.lookup_branch("main") == INITIAL_SNAPSHOT_ID
        except Exception as error:  # noqa: BLE001  # looked at below, in the thread that can fail the test
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


# -- in memory -------------------------------------------------------------------------------------------------


def test_memory_lasts_as_long_as_the_process() -> None:
    storage = StorageConfig.memory()
    fill(Repository.create(storage))  # and nobody holds on to it
    assert Repository.exists(storage)
    assert read(Repository.open(storage)) == [7] * 4
    with pytest.raises(AlreadyExistsError):
        Repository.create(storage)


def test_each_memory_is_one_of_its_own() -> None:
    one, two = StorageConfig.memory(), StorageConfig.memory()
    Repository.create(one)
    assert not Repository.exists(two)
    with pytest.raises(RepositoryNotFoundError) as caught:
        Repository.open(two)
    assert caught.value.kind == "repository-not-found"
    Repository.open_or_create(two)
    assert Repository.exists(two)


# -- as an object ----------------------------------------------------------------------------------------------


def test_objects_see_what_others_did(tmp_path: Path) -> None:
    one = Repository.create(tmp_path / "a.icelite")
    two = Repository.open(tmp_path / "a.icelite")
    snapshot = fill(one)
    assert two.lookup_branch("main") == snapshot
    two.create_tag("v1", snapshot)
    assert one.lookup_tag("v1") == snapshot
    assert read(two) == read(one) == [7] * 4


def test_sessions_outlive_the_object_that_opened_them(tmp_path: Path) -> None:
    repository = Repository.create(tmp_path / "a.icelite")
    session = repository.writable_session("main")
    repository.close()
    zarr.create_group(session.store)
    session.commit("still here")


def test_it_prints_its_place_and_pickles_by_it(tmp_path: Path) -> None:
    repository = Repository.create(tmp_path / "a.icelite", icelite.RepositoryConfig(busy_timeout_seconds=5.0))
    fill(repository)
    assert "a.icelite" in repr(repository)
    copy = pickle.loads(pickle.dumps(repository))
    assert read(copy) == [7] * 4
    assert copy.config.busy_timeout_seconds == 5.0
    fill(copy, 8)
    assert read(repository) == [8] * 4


def test_a_pickle_travels_to_another_process(tmp_path: Path) -> None:
    repository = Repository.create(tmp_path / "a.icelite")
    fill(repository)
    session = repository.readonly_session("main")
    code = "import pickle, sys, zarr; r, s = pickle.load(sys.stdin.buffer)\n"
    code += "print(r.lookup_branch('main'), s.snapshot_id, zarr.open_array(s.store, path='x', mode='r')[:].tolist())"
    output = subprocess.run(
        [sys.executable, "-c", code], input=pickle.dumps((repository, session)), capture_output=True, check=True
    ).stdout.decode()
    assert output.split(maxsplit=2) == [session.snapshot_id, session.snapshot_id, "[7, 7, 7, 7]\n"]


# -- errors ----------------------------------------------------------------------------------------------------

REFUSALS: dict[str, Callable[[Repository], object]] = {
    "branch-not-found": lambda r: r.writable_session("nope"),
    "tag-not-found": lambda r: r.lookup_tag("nope"),
    "snapshot-not-found": lambda r: r.lookup_snapshot("0" * 20),
    "invalid-snapshot-id": lambda r: r.create_branch("b", "nope"),
    "invalid-ref-name": lambda r: r.create_tag("\n", INITIAL_SNAPSHOT_ID),
    "branch-already-exists": lambda r: r.create_branch("main", INITIAL_SNAPSHOT_ID),
    "branch-update-conflict": lambda r: r.reset_branch("main", INITIAL_SNAPSHOT_ID, from_snapshot_id="0" * 20),
    "cannot-delete-main": lambda r: r.delete_branch("main"),
    "invalid-argument": lambda r: r.readonly_session("main", tag="v1"),
    "no-changes-to-commit": lambda r: r.writable_session("main").commit("x"),
    "commit-not-allowed": lambda r: r.readonly_session("main").commit("x"),
    "read-only-session": lambda r: r.readonly_session("main").discard_changes(),
    "not-picklable": lambda r: pickle.dumps(r.writable_session("main")),
    "repository-not-found": lambda r: Repository.open("nowhere/a.icelite"),
    "repository-already-exists": lambda r: Repository.create(r.storage),
    "unsupported-storage": lambda r: Repository.open("ftp://host/a.icelite"),
}


@pytest.mark.parametrize("kind", REFUSALS)
def test_every_refusal_has_its_kind_and_pickles(kind: str) -> None:
    repository = Repository.create(icelite.in_memory_storage())
    with pytest.raises(IceliteError) as caught:
        REFUSALS[kind](repository)
    error = caught.value
    assert error.kind == kind
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), copy.kind) == (type(error), str(error), error.kind)
    assert vars(copy) == vars(error)
    assert repository.lookup_branch("main") == INITIAL_SNAPSHOT_ID


# -- the store-first API ---------------------------------------------------------------------------------------


@pytest.fixture(params=["filesystem", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> StorageConfig:
    return StorageConfig.memory() if request.param == "memory" else StorageConfig.filesystem(tmp_path / "a.icelite")


def test_a_store_makes_its_own_repository_and_stays_writable(storage: StorageConfig) -> None:
    store = IceliteStore.create(storage=storage)
    array = zarr.create_array(store, name="x", shape=(3,), chunks=(1,), dtype="i4")
    first = store.commit()
    array[:] = 5
    assert not store.read_only
    second = store.commit("five")
    assert first != second
    repository = Repository.open(storage)
    assert [info.id for info in repository.ancestry(branch="main")][:2] == [second, first]
    assert [info.message for info in repository.ancestry(branch="main")][:2] == ["five", ""]
    assert zarr.open_array(IceliteStore.open_existing(storage), path="x")[:].tolist() == [5] * 3
    assert zarr.open_array(IceliteStore.open_or_create(storage), path="x")[:].tolist() == [5] * 3


def test_open_or_create_of_a_store_creates(storage: StorageConfig) -> None:
    with pytest.raises(RepositoryNotFoundError):
        IceliteStore.open_existing(storage)
    store = IceliteStore.open_or_create(storage=storage)
    zarr.create_group(store)
    store.commit("first")
    assert IceliteStore.open_existing(storage).session.snapshot_id == store.session.snapshot_id
    with pytest.raises(AlreadyExistsError):
        IceliteStore.create(storage)


def test_the_walk_through_of_the_older_api(tmp_path: Path) -> None:
    """A virtual reference to a file, declared by the process that sets it, read before and after the commit."""
    source = tmp_path / "my" / "file.nc"
    source.parent.mkdir()
    source.write_bytes(bytes(range(200)))
    storage = StorageConfig.filesystem(tmp_path / "icelite")
    config = StoreConfig(virtual_ref_config=VirtualRefConfig.s3_anonymous(region="us-east-1"))
    store = IceliteStore.create(storage=storage, config=config)
    zarr.create_array(store, shape=(100,), chunks=(100,), dtype="u1", compressors=None, filters=None)
    store.set_virtual_ref("c/0", f"file://{source}", offset=20, length=100)
    assert zarr.open_array(store, mode="r")[:].tolist() == list(range(20, 120))
    snapshot = store.commit()
    assert len(snapshot) == 20
    assert zarr.open_array(store, mode="r")[:].tolist() == list(range(20, 120))
    again = IceliteStore.open_existing(storage=storage, config=config)
    assert zarr.open_array(again, mode="r")[:].tolist() == list(range(20, 120))
    again.set_virtual_ref("c/0", "s3://mybucket/my/data/file.nc", offset=1000, length=200)
    again.commit()
    assert again.session.snapshot_id != snapshot


def test_a_store_of_a_session_ends_with_its_commit() -> None:
    """Unlike one that opened its repository itself and commits by itself."""
    session = Repository.create(StorageConfig.memory()).writable_session("main")
    store = session.store
    zarr.create_group(store)
    session.commit("x")
    assert store.read_only
    with pytest.raises(ReadOnlyError):
        store.set_sync("zarr.json", default_buffer_prototype().buffer.from_bytes(b"{}"))


def test_a_store_commits_nothing_twice(storage: StorageConfig) -> None:
    store = IceliteStore.create(storage)
    zarr.create_group(store)
    store.commit()
    with pytest.raises(IceliteError) as caught:
        store.commit()
    assert caught.value.kind == "no-changes-to-commit"
    with pytest.raises(InvalidInputError):
        store.commit("x", {"a": object()})
    assert not store.read_only
