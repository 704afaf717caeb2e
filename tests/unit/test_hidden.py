"""Relative references stay out of dot folders and dot files beside the catalog, unless the caller allows them."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import zarr

import icelite
from icelite import IceliteError, LocalFileSystemAccess, Repository

PLACES = [".ssh/id_rsa", ".netrc", "a/.aws/credentials", "a/b/.hidden", ".config/x/y"]


def make(folder: Path, place: str) -> Path:
    """A catalog with a chunk that is in a file beside it."""
    (folder / place).parent.mkdir(parents=True, exist_ok=True)
    (folder / place).write_bytes(b"secret")
    repository = Repository.create(folder / "a.icelite")
    session = repository.writable_session("main")
    zarr.create_array(session.store, name="x", shape=(1,), chunks=(1,), dtype="S6", compressors=None)
    session.store.set_virtual_ref("x/c/0", place, offset=0, length=6)
    assert get(session) == b"secret"  # who references a file may read it
    assert get(pickle.loads(pickle.dumps(session.fork()))) == b"secret"
    session.commit("x")
    repository.close()
    return folder / "a.icelite"


def get(session: icelite.Session) -> bytes | None:
    value = session.store.get_sync("x/c/0")
    return None if value is None else value.to_bytes()


@pytest.mark.parametrize("place", PLACES)
def test_hidden_files_are_read_only_where_the_caller_says_so(tmp_path: Path, place: str) -> None:
    path = make(tmp_path, place)
    repository = Repository.open(path)
    with pytest.raises(IceliteError) as caught:
        get(repository.readonly_session("main"))
    assert caught.value.kind == "unauthorized-virtual-chunk-container"
    assert [row.state for row in repository.sources(branch="main", check=True)] == ["not authorised"]
    with pytest.raises(IceliteError) as refused:
        repository.bundle(tmp_path / "b.icelite")
    assert refused.value.kind == "unauthorized-virtual-chunk-container"
    assert not (tmp_path / "b.icelite").exists()

    line = str(caught.value).partition("with it: ")[2].partition(" (xarray")[0]
    allowed = eval(line, {"icelite": icelite})  # what the error says is what to type
    assert get(allowed.readonly_session("main")) == b"secret"
    allowed.bundle(tmp_path / "b.icelite")
    whole = Repository.open(path, authorize_virtual_chunk_access={f"file://{tmp_path}/": LocalFileSystemAccess})
    assert get(whole.readonly_session("main")) == b"secret"
    other = Repository.open(path, authorize_virtual_chunk_access={f"file://{tmp_path}/other/": LocalFileSystemAccess})
    with pytest.raises(IceliteError):
        get(other.readonly_session("main"))


def test_a_link_into_a_hidden_folder_is_one(tmp_path: Path) -> None:
    path = make(tmp_path, "plain.bin")
    (tmp_path / ".ssh").mkdir()
    os.rename(tmp_path / "plain.bin", tmp_path / ".ssh" / "plain.bin")
    (tmp_path / "plain.bin").symlink_to(tmp_path / ".ssh" / "plain.bin")
    with pytest.raises(IceliteError) as caught:
        get(Repository.open(path).readonly_session("main"))
    assert caught.value.kind == "unauthorized-virtual-chunk-container"


def test_a_catalog_in_a_hidden_folder_reads_what_is_beside_it(tmp_path: Path) -> None:
    (tmp_path / ".cache").mkdir()
    path = make(tmp_path / ".cache", "a..b/c.bin")
    assert get(Repository.open(path).readonly_session("main")) == b"secret"


def test_objects_of_icelite_may_be_in_a_hidden_folder(tmp_path: Path) -> None:
    config = icelite.RepositoryConfig(inline_chunk_threshold_bytes=0)
    repository = Repository.create(tmp_path / "a.icelite", config, objects="./.chunks")
    with repository.transaction("main", message="x") as store:
        zarr.create_array(store, name="x", shape=(6,), chunks=(6,), dtype="u1", compressors=None)[:] = 7
    repository.close()
    assert get(Repository.open(tmp_path / "a.icelite").readonly_session("main")) == bytes([7] * 6)
