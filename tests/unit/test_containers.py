"""References of the form vcc://name/path: written in every way, and following their container wherever it goes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import virtualizarr  # noqa: F401  (registers ds.vz)
import xarray as xr
import zarr
from virtualizarr.manifests import ChunkManifest, ManifestArray
from zarr.core.metadata.v3 import ArrayV3Metadata

import icelite
from icelite import LocalFileSystemAccess, Repository, RepositoryConfig, VirtualChunkContainer, VirtualChunkSpec
from icelite.errors import ErrorKind, InvalidInputError
from icelite.virtualizarr import to_icelite

DATA = bytes(range(200))


def config(place: Path | str, name: str | None = "archive") -> RepositoryConfig:
    given = RepositoryConfig()
    prefix = place if isinstance(place, str) else place.as_uri()
    given.set_virtual_chunk_container(VirtualChunkContainer(prefix, name=name))
    return given


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A folder with one file."""
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "a b#%.bin").write_bytes(DATA)
    return tmp_path / "old"


@pytest.fixture
def session(old: Path, tmp_path: Path) -> Any:
    repo = Repository.create(tmp_path / "x.icelite", config(old))
    session = repo.writable_session("main")
    zarr.create_array(session.store, name="x", shape=(200,), chunks=(50,), dtype="u1", compressors=None)
    return session


URL = "vcc://archive/a b#%.bin"


def by_hand(session: Any) -> None:
    for chunk in range(4):
        session.store.set_virtual_ref(f"x/c/{chunk}", URL, offset=50 * chunk, length=50)


def by_specs(session: Any) -> None:
    session.store.set_virtual_refs("x", [VirtualChunkSpec([chunk], URL, 50 * chunk, 50) for chunk in range(4)])


def by_columns(session: Any) -> None:
    offsets = np.arange(4, dtype="u8") * 50
    session.store.set_virtual_refs_arr("x", (4,), [URL] * 4, offsets, np.full(4, 50, "u8"))


def by_virtualizarr(session: Any) -> None:
    metadata = session.store.get_sync("x/zarr.json").to_bytes()
    entries = {str(chunk): {"path": URL, "offset": 50 * chunk, "length": 50} for chunk in range(4)}
    array = ManifestArray(ArrayV3Metadata.from_dict(json.loads(metadata)), ChunkManifest(entries))
    del zarr.open_group(session.store)["x"]
    to_icelite(xr.Dataset({"x": ("i", array)}), session.store)


WAYS = [by_hand, by_specs, by_columns, by_virtualizarr]


def values(repository: Repository) -> bytes:
    return bytes(zarr.open_array(repository.readonly_session("main").store, path="x", mode="r")[:])


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_write_them(session: Any, old: Path, tmp_path: Path, way: Any) -> None:
    way(session)
    session.commit("through the container")
    repo = Repository.open(tmp_path / "x.icelite", authorize_virtual_chunk_access={old.as_uri(): LocalFileSystemAccess})
    assert values(repo) == DATA
    assert repo.required_access() == {old.as_uri() + "/": "icelite.LocalFileSystemAccess"}
    refs = repo.readonly_session("main").chunk_refs("x")
    assert (refs.paths, refs.urls) == ([URL], [old.as_uri() + "/a b#%.bin"])
    (row,) = repo.sources(check=True)
    assert (row.container, row.path, row.state) == ("archive", "a b#%.bin", "ok")
    with pytest.raises(InvalidInputError) as caught:
        values(Repository.open(tmp_path / "x.icelite"))
    assert caught.value.kind == ErrorKind.UNAUTHORIZED_VIRTUAL_CHUNK_CONTAINER


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("vcc://other/a.bin", ErrorKind.NO_CONTAINER_FOR_VIRTUAL_CHUNK),
        ("vcc://archive/../a.bin", ErrorKind.INVALID_VIRTUAL_REF),
        ("vcc://archive/%2e%2e/a.bin", ErrorKind.INVALID_VIRTUAL_REF),
        ("vcc://archive/", ErrorKind.INVALID_VIRTUAL_REF),
    ],
)
def test_what_they_cannot_be(session: Any, monkeypatch: pytest.MonkeyPatch, way: Any, url: str, kind: str) -> None:
    monkeypatch.setitem(globals(), "URL", url)
    with pytest.raises(InvalidInputError) as caught:
        way(session)
    assert caught.value.kind == kind
    assert url.partition("archive")[2] in str(caught.value)


def test_who_opens_may_say_where_the_container_is_now(session: Any, old: Path, tmp_path: Path) -> None:
    by_columns(session)
    session.commit("through the container")
    new = shutil.move(old, tmp_path / "new")
    repo = Repository.open(tmp_path / "x.icelite", config(new))
    assert values(repo) == DATA
    assert list(repo.config.virtual_chunk_containers or {}) == [new.as_uri() + "/"]
    with pytest.raises(icelite.IceliteError):  # for this object only
        values(Repository.open(tmp_path / "x.icelite", config(old)))
    repo.save_config()
    allow = {new.as_uri(): LocalFileSystemAccess}
    assert values(Repository.open(tmp_path / "x.icelite", authorize_virtual_chunk_access=allow)) == DATA
    assert repo.verify() == []


def test_a_name_cannot_take_the_place_of_another_container(session: Any, old: Path, tmp_path: Path) -> None:
    by_columns(session)
    session.commit("through the container")
    repo = Repository.open(tmp_path / "x.icelite", config("s3://bucket/", "bucket"))
    repo.save_config()
    other = Repository.open(tmp_path / "x.icelite", config("s3://bucket/", "archive"))
    with pytest.raises(InvalidInputError) as caught:
        other.save_config()
    assert caught.value.kind == ErrorKind.STORAGE_CONFIG
    assert "relocate('vcc://archive/', 'vcc://bucket/')" in str(caught.value)
    repo.relocate("vcc://archive/", "vcc://bucket/")
    assert repo.readonly_session("main").chunk_refs("x").urls == ["s3://bucket/a b#%.bin"]


def test_of_two_containers_with_one_name_the_later_counts() -> None:
    given = config("s3://one/")
    given.set_virtual_chunk_container(VirtualChunkContainer("s3://two/", name="archive"))
    assert list(given.virtual_chunk_containers or {}) == ["s3://two/"]
    assert list(given.merge(config("s3://three/")).virtual_chunk_containers or {}) == ["s3://three/"]
    given.set_virtual_chunk_container(VirtualChunkContainer("s3://four/"))
    assert len(given.virtual_chunk_containers or {}) == 2


def test_a_fork_writes_them_too(session: Any) -> None:
    fork = session.fork()
    by_columns(fork)
    session.merge(fork)
    assert session.chunk_refs("x").paths == [URL]
    session.commit("from a fork")


def test_a_container_is_removed_unless_references_need_it(session: Any, old: Path, tmp_path: Path) -> None:
    by_columns(session)
    session.commit("through the container")
    path = tmp_path / "x.icelite"
    repo = Repository.open(path, config("s3://bucket/", "bucket"))
    repo.save_config()
    cleared = repo.config
    cleared.clear_virtual_chunk_containers()
    repo = repo.reopen(cleared)
    assert not repo.config.virtual_chunk_containers
    with pytest.raises(InvalidInputError, match="vcc://archive/") as caught:
        repo.save_config()
    assert caught.value.kind == ErrorKind.STORAGE_CONFIG
    assert len((Repository.fetch_config(path) or RepositoryConfig()).virtual_chunk_containers or {}) == 2
    some = repo.reopen(RepositoryConfig()).config
    some.remove_virtual_chunk_container("s3://bucket")
    repo = repo.reopen(some)
    repo.save_config()
    assert list((Repository.fetch_config(path) or some).virtual_chunk_containers or {}) == [old.as_uri() + "/"]
    allow = {old.as_uri(): LocalFileSystemAccess}
    assert values(Repository.open(path, authorize_virtual_chunk_access=allow)) == DATA
    assert repo.verify() == []


def test_containers_of_others_stay_when_ours_are_cleared(tmp_path: Path) -> None:
    path = tmp_path / "x.icelite"
    Repository.create(path, config("s3://bucket/", "bucket"))
    cleared = RepositoryConfig()
    cleared.clear_virtual_chunk_containers()
    repo = Repository.open(path, cleared)
    Repository.open(path, config("s3://others/", "others")).save_config()
    repo.save_config()
    assert list((Repository.fetch_config(path) or cleared).virtual_chunk_containers or {}) == ["s3://others/"]
    repo.reopen().save_config()  # what was cleared is cleared once
    assert list((Repository.fetch_config(path) or cleared).virtual_chunk_containers or {}) == ["s3://others/"]


def test_a_container_gets_another_name(session: Any, old: Path, tmp_path: Path) -> None:
    by_columns(session)
    session.commit("through the container")
    repo = Repository.open(tmp_path / "x.icelite", config(old, "renamed"))
    repo.save_config()
    repo = Repository.open(tmp_path / "x.icelite", config(old, "renamed"))
    assert values(repo) == DATA
    assert repo.readonly_session("main").chunk_refs("x").paths == ["vcc://renamed/a b#%.bin"]
    assert repo.verify() == []


def test_a_removal_travels_with_the_configuration() -> None:
    stored = config("s3://bucket/", "bucket")
    stored.set_virtual_chunk_container(VirtualChunkContainer("s3://more/"))
    given = RepositoryConfig()
    given.remove_virtual_chunk_container("s3://more")
    assert list(stored.merge(given).virtual_chunk_containers or {}) == ["s3://bucket/"]
    given.set_virtual_chunk_container(VirtualChunkContainer("s3://more/", name="again"))
    assert set(stored.merge(given).virtual_chunk_containers or {}) == {"s3://bucket/", "s3://more/"}
    given.clear_virtual_chunk_containers()
    assert stored.merge(given).merge(RepositoryConfig(7)).virtual_chunk_containers == {}


@pytest.mark.parametrize(
    "url",
    [
        "s3:/bucket/key",
        "s3:bucket/key",
        "s3//bucket/key",
        "https:/host/x",
        "HTTPS:/host/x",
        "file:foo",
        "file:/foo",
        "vcc:/name/x",
        "gs:/b/k",
        "az:/b/k",
        "ftp:/host/x",
        "memory:x",
    ],
)
def test_a_url_with_a_slash_missing_is_no_file_name(session: Any, url: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        session.store.set_virtual_ref("x/c/0", url, offset=0, length=50)
    assert caught.value.kind == ErrorKind.INVALID_VIRTUAL_REF
    with pytest.raises(InvalidInputError):
        session.store.set_virtual_refs("x", [VirtualChunkSpec([0], url, 0, 50)])
    assert session.all_virtual_chunk_locations() == []


def test_a_file_whose_name_looks_like_a_url_is_written_with_a_dot(session: Any, tmp_path: Path) -> None:
    for name in ("s3:/bucket/key", "2024-01-01T00:00.bin"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(DATA)
    session.store.set_virtual_ref("x/c/0", "./s3:/bucket/key", offset=0, length=50)
    session.store.set_virtual_ref("x/c/1", "2024-01-01T00:00.bin", offset=50, length=50)
    session.commit("files with colons")
    array = zarr.open_array(Repository.open(tmp_path / "x.icelite").readonly_session("main").store, path="x", mode="r")
    assert bytes(array[:100]) == DATA[:100]
