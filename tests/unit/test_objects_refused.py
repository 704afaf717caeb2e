"""Native objects and what is wrong with them: catalogs from strangers, folders that lead elsewhere, disks that fail."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import zarr

from icelite import Repository, RepositoryConfig
from icelite.catalog.database import Catalog
from icelite.errors import FormatError, IceliteError, InvalidInputError, StorageError
from icelite.objects import TRAILER_BYTES, Objects
from icelite.storage import as_storage

VALUES = np.arange(4000, dtype="u1")
SECRET = b"what nobody may read"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A repository with one object, and a file beside its folder that is none of its business."""
    (tmp_path / "secret").write_bytes(SECRET * 1000)
    (tmp_path / "home").mkdir()
    path = tmp_path / "home" / "a.icelite"
    with_one = Repository.create(path, RepositoryConfig(inline_chunk_threshold_bytes=0), objects="chunks")
    write(with_one, "x")
    with_one.close()
    return path


def write(repo: Repository, name: str) -> None:
    session = repo.writable_session("main")
    zarr.create_array(session.store, name=name, data=VALUES, chunks=(1000,), compressors=None)
    session.commit(f"write {name}")


def read(repo: Repository) -> np.ndarray:
    return np.asarray(zarr.open_array(repo.readonly_session("main").store, path="x", mode="r")[...])


def collect(repo: Repository) -> None:
    repo.garbage_collect(datetime.now(UTC))


def change(path: Path, statement: str, *values: object) -> None:
    with closing(Catalog(as_storage(path))) as catalog, catalog.write() as txn:
        txn.run(statement, values)


def the_object(path: Path) -> Path:
    (found,) = (each for each in (path.parent / "chunks").rglob("*") if each.is_file())
    return found


def everything(folder: Path) -> dict[str, int]:
    """Every file with its size."""
    return {str(each.relative_to(folder)): each.stat().st_size for each in folder.rglob("*") if each.is_file()}


# -- where the objects are said to be ----------------------------------------------------------------------------

ROOTS = ["./", "../", "a/../../b/", "/etc/", "chunks\0/", "\ud800/", "..", "%2e%2e/", "a\\b/", "//", "", 5, None, {}]


@pytest.mark.parametrize("root", ROOTS)
def test_a_folder_that_could_be_anywhere_is_refused_on_opening(path: Path, root: object) -> None:
    change(path, "UPDATE setting SET value = ? WHERE name = 'objects'", json.dumps({"root": root}))
    with pytest.raises(FormatError, match="'objects'"):
        Repository.open(path)


@pytest.mark.parametrize("value", ["[]", '"x"', "5", "{}", "not JSON", "[" * 100_000])
def test_a_setting_that_is_no_place_is_refused_on_opening(path: Path, value: str) -> None:
    change(path, "UPDATE setting SET value = ? WHERE name = 'objects'", value)
    with pytest.raises(FormatError):
        Repository.open(path)


@pytest.mark.parametrize("root", ["file:///etc/", "s3://x/", "http://x/", "gopher://x/", "file://", "s3:///"])
def test_a_place_elsewhere_is_neither_read_nor_written_nor_swept(path: Path, root: str) -> None:
    change(path, "UPDATE setting SET value = ? WHERE name = 'objects'", json.dumps({"root": root}))
    repo = Repository.open(path)
    make_sparse = "UPDATE location SET size = 99999 WHERE kind = 1"
    change(path, make_sparse)
    for work in (read, lambda repo: write(repo, "y"), lambda repo: repo.repack(min_live=1.0)):
        with pytest.raises(InvalidInputError) as caught:
            work(repo)
        assert caught.value.kind == "unauthorized-objects"
    collect(repo)
    assert the_object(path).stat().st_size == VALUES.nbytes + 4 * TRAILER_BYTES


@pytest.mark.parametrize("value", ['"x"', "1.5", "true", "[1]"])
def test_a_cutoff_that_is_no_time_is_damage(path: Path, value: str) -> None:
    change(path, "INSERT INTO setting (name, value) VALUES ('collected', ?)", value)
    for work in (lambda repo: write(repo, "y"), collect):
        with pytest.raises(FormatError, match="'collected'"):
            work(Repository.open(path))


# -- what the rows say -------------------------------------------------------------------------------------------

ROWS = [
    "UPDATE location SET size = -5 WHERE kind = 1",
    "UPDATE location SET path = lower(path) WHERE kind = 1",
    "UPDATE location SET path = '' WHERE kind = 1",
    "UPDATE location SET path = path || char(10) WHERE kind = 1",
    "UPDATE location SET path = '../../secret' WHERE kind = 1",
    "UPDATE location SET path = 'file:///etc/passwd' WHERE kind = 1",
    "UPDATE location SET path = '00/ZZZZZZZZZZZZZZZZZZZZZZZZ00' WHERE kind = 1",
    "UPDATE location SET kind = 2, path = '../secret' WHERE kind = 1",
    "UPDATE location SET kind = 3 WHERE kind = 1",
    "UPDATE chunk_ref SET offset = 9223372036854775807",
    "UPDATE chunk_ref SET length = 9223372036854775807",
    "UPDATE chunk_ref SET location_id = 999",
]


@pytest.mark.parametrize("statement", ROWS)
def test_rows_that_cannot_be_are_errors(path: Path, statement: str) -> None:
    change(path, statement)
    with pytest.raises(IceliteError):
        read(Repository.open(path))
    for work in (lambda repo: repo.repack(min_live=1.0), collect, Repository.verify):
        with contextlib.suppress(IceliteError):  # and no other exception
            work(Repository.open(path))


def test_a_container_of_an_object_is_not_asked(path: Path, tmp_path: Path) -> None:
    change(
        path, "INSERT INTO container (id, name, url_prefix, options) VALUES (1, 'x', ?, '{}')", f"file://{tmp_path}/"
    )
    change(path, "UPDATE location SET container_id = 1 WHERE kind = 1")
    assert np.array_equal(read(Repository.open(path)), VALUES)


# -- what is in the folder ---------------------------------------------------------------------------------------


def to_link(found: Path) -> None:
    found.unlink()
    found.symlink_to(found.parents[4] / "secret")


def to_folder(found: Path) -> None:
    found.unlink()
    found.mkdir()


def to_pipe(found: Path) -> None:
    found.unlink()
    os.mkfifo(found)


@pytest.mark.parametrize("become", [to_link, to_folder, to_pipe, lambda found: found.write_bytes(bytes(9000))])
def test_an_object_that_became_something_else_is_an_error(path: Path, become: Callable[[Path], object]) -> None:
    become(the_object(path))
    with pytest.raises((StorageError, InvalidInputError)):
        read(Repository.open(path))
    collect(Repository.open(path))


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_a_folder_that_leads_elsewhere_is_neither_read_nor_written_nor_swept(
    path: Path, tmp_path: Path, depth: int
) -> None:
    """`chunks`, the repository's own folder in it, or all folders that keys begin with."""
    level = [path.parent / "chunks"]
    for _ in range(depth):
        level = [each for folder in level for each in folder.iterdir()]
    (linked,) = level
    away = tmp_path / "away"
    linked.rename(away)
    linked.symlink_to(away)
    (object_away,) = (each for each in away.rglob("*") if each.is_file())
    stray = object_away.with_name("0" * 24 + object_away.name[-2:])
    stray.write_bytes(b"old, but not ours to sweep")
    before = everything(away)
    repo = Repository.open(path)
    with pytest.raises(InvalidInputError):
        read(repo)
    with pytest.raises(InvalidInputError, match="outside"):
        collect(repo)
    if depth < 2:  # else the next key goes into another folder
        with pytest.raises(InvalidInputError, match="outside"):
            write(repo, "y")
    assert everything(away) == before


# -- disks that fail ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "kind"), [(errno.ENOSPC, "storage-full"), (errno.EIO, "io"), (errno.EACCES, "io")])
@pytest.mark.parametrize("call", ["fsync", "replace", "mkdir"])
def test_a_disk_that_fails_fails_the_commit_and_leaves_no_draft(
    path: Path, number: int, kind: str, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = Repository.open(path)
    session = repo.writable_session("main")
    zarr.create_array(session.store, name="y", data=VALUES, chunks=(1000,), compressors=None)

    def fail(*arguments: object, **options: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(StorageError) as caught:
            session.commit("no")
    assert caught.value.kind == kind
    assert str(path.parent / "chunks") in str(caught.value)
    assert not [each for each in (path.parent / "chunks").rglob(".*") if each.is_file()]
    session.commit("yes")
    found = zarr.open_array(repo.readonly_session("main").store, path="y", mode="r")[...]
    assert np.array_equal(found, VALUES)


def test_a_folder_that_may_not_be_read_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(StorageError, match="could not be listed: Permission denied"):
        collect(Repository.open(path))


def test_files_that_come_and_go_while_they_are_listed_hide_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = Objects(f"file://{tmp_path}/", "chunks/")
    keys = objects.put([b"1", b"2"])
    for key in keys:
        (tmp_path / key).with_name("." + "0" * 24 + key[:2]).symlink_to("gone")  # a draft, renamed meanwhile
    assert {found.key for found in objects.scan()} >= set(keys)
