"""Catalogs on a real web server: opened whole or by ranges, with the files beside them; every way it can go wrong."""

from __future__ import annotations

import asyncio
import pickle
import shutil
from collections.abc import Iterator
from datetime import date
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from oisst import write_days
from web_site import Site, respond

import icelite
from icelite import IceliteError, Repository, StorageConfig
from icelite.virtualizarr import to_icelite

pytest.importorskip("virtualizarr")

pytestmark = [pytest.mark.s3, pytest.mark.usefixtures("no_aws_settings")]

GRID = (36, 72)
REFERENCES = 1_000_000


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site.server.shutdown()
    site.server.server_close()


@pytest.fixture
def archive(tmp_path: Path) -> xr.Dataset:
    """A folder ``data`` with three files and the catalog that references them, and what they hold."""
    from obspec_utils.registry import ObjectStoreRegistry
    from obstore.store import LocalStore
    from virtualizarr import open_virtual_mfdataset
    from virtualizarr.parsers import HDFParser

    folder = tmp_path / "data"
    folder.mkdir()
    files = write_days(folder, date(2024, 8, 1), 3, GRID)
    files = [file.rename(folder / file.name.replace("oisst", "sea surface")) for file in files]
    registry = ObjectStoreRegistry({"file://": LocalStore()})
    repository = Repository.create(folder / "ocean.icelite")
    session = repository.writable_session("main")
    combine: dict[str, Any] = {"combine": "nested", "concat_dim": "time", "data_vars": "minimal", "coords": "minimal"}
    combine |= {"compat": "override", "combine_attrs": "override"}
    with open_virtual_mfdataset(
        [f"file://{file}" for file in files], registry=registry, parser=HDFParser(), **combine
    ) as vds:
        to_icelite(vds, session.store)
    session.commit("August")
    repository.close()
    with xr.open_mfdataset(files, **combine) as dataset:
        return dataset.load()


def plain(folder: Path, name: str = "plain.icelite", **attributes: Any) -> list[int]:
    """A catalog with one array of numbers; the numbers."""
    repository = Repository.create(folder / name)
    session = repository.writable_session("main")
    array = zarr.create_array(session.store, name="a", shape=(20,), chunks=(5,), dtype="i8", attributes=attributes)
    array[:] = np.arange(20)
    session.commit("numbers")
    repository.close()
    return list(range(20))


def numbers(repository: Repository, **which: Any) -> list[int]:
    session = repository.readonly_session(**(which or {"branch": "main"}))
    found: Any = zarr.open_array(session.store, path="a", mode="r")[:]
    return [int(number) for number in found]


# ---- reading


def test_an_archive_on_a_web_server_reads_as_at_home_with_one_request_for_its_catalog(
    site: Site, archive: xr.Dataset
) -> None:
    with xr.open_dataset(f"{site.url}/data/ocean.icelite", engine="icelite") as found:
        xr.testing.assert_identical(found.load(), archive)
    assert site.log.count("/data/ocean.icelite") == 1
    assert any("%20" in path for path in site.log), "files with spaces were read"


def test_a_moved_archive_needs_no_edit(site: Site, archive: xr.Dataset, tmp_path: Path) -> None:
    shutil.copytree(tmp_path / "data", tmp_path / "else where")
    with xr.open_dataset(tmp_path / "else where" / "ocean.icelite", engine="icelite") as found:
        xr.testing.assert_identical(found.load(), archive)
    place = StorageConfig.http(f"{site.url}/else%20where/ocean.icelite", headers={"Authorization": "Bearer hush"})
    with xr.open_dataset(place, engine="icelite") as found:
        xr.testing.assert_identical(found.load(), archive)
    assert all(headers["Authorization"] == "Bearer hush" for headers in site.headers)
    assert "hush" not in repr(place)
    assert "hush" not in repr(place.address)


def test_history_and_tags_are_there_and_a_copy_in_another_process_reads_too(site: Site, tmp_path: Path) -> None:
    values = plain(tmp_path)
    repository = icelite.open(f"{site.url}/plain.icelite")
    assert [info.message for info in repository.ancestry(branch="main")] == ["numbers", "Repository initialized"]
    assert numbers(repository, snapshot_id=repository.lookup_branch("main")) == values
    session = pickle.loads(pickle.dumps(repository.readonly_session("main")))
    assert zarr.open_array(session.store, path="a", mode="r")[3] == 3


def test_a_session_sees_what_was_published_since(site: Site, tmp_path: Path) -> None:
    plain(tmp_path)
    repository = icelite.open(f"{site.url}/plain.icelite")
    before = repository.readonly_session("main")
    own = Repository.open(tmp_path / "plain.icelite")
    session = own.writable_session("main")
    zarr.open_array(session.store, path="a", mode="r+")[0] = 99
    session.commit("changed")
    assert numbers(repository)[0] == 99
    assert zarr.open_array(before.store, path="a", mode="r")[0] == 0


def test_another_repository_under_the_same_url_is_refused(site: Site, tmp_path: Path) -> None:
    plain(tmp_path)
    repository = icelite.open(f"{site.url}/plain.icelite")
    plain(tmp_path, "other.icelite")
    repository.readonly_session("main")
    (tmp_path / "other.icelite").replace(tmp_path / "plain.icelite")
    with pytest.raises(IceliteError) as caught:
        repository.readonly_session("main")
    assert caught.value.kind == "catalog-replaced"


async def test_an_event_loop_never_waits_for_the_server(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain(tmp_path)
    monkeypatch.setattr("icelite.vfs.mirror.HEAD_BYTES", 4096)
    storage = StorageConfig.http(f"{site.url}/plain.icelite", whole_bytes=1)
    repository = await Repository.open_async(storage)
    session = await repository.readonly_session_async("main")
    store = session.store
    keys = [key async for key in store.list()]
    from zarr.core.buffer import default_buffer_prototype

    found = await asyncio.gather(*(store.get(key, default_buffer_prototype()) for key in keys))
    assert sum(value is not None for value in found) == len(keys) == 6
    assert not store._supports_sync_io


def test_everything_works_on_fsspec_s_own_loop(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waited for that loop on that loop would wait for ever."""
    from fsspec.asyn import get_loop

    plain(tmp_path)
    monkeypatch.setattr("icelite.vfs.mirror.HEAD_BYTES", 4096)
    repository = icelite.open(StorageConfig.http(f"{site.url}/plain.icelite", whole_bytes=1))
    assert repository._catalog.path is None, "it is read by ranges"
    session = repository.readonly_session("main")

    async def work() -> tuple[int, int, list[str]]:
        names = [name async for name in session.store.list_dir("")]
        positions = [position async for position in session.chunk_coordinates("/a")]
        rows = sum([len(batch[0]) async for batch in session.array_chunk_iterator("/a")])
        assert await session.store.exists("a/zarr.json")
        return len(positions), rows, sorted(names)

    found = asyncio.run_coroutine_threadsafe(work(), get_loop()).result(60)
    assert found == (4, 4, ["a", "zarr.json"])


# ---- by ranges


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalog of a million references, 200 MB of it in the folder's only file, which holds zeros."""
    folder = tmp_path_factory.mktemp("large")
    with (folder / "zeros.bin").open("wb") as file:
        file.truncate(8 * REFERENCES)
    repository = Repository.create(folder / "large.icelite")
    session = repository.writable_session("main")
    zarr.create_array(
        session.store, name="a", shape=(REFERENCES,), chunks=(1,), dtype="i8", filters=None, compressors=None
    )
    session.store.set_virtual_refs_arr(
        "a",
        chunk_grid_shape=[REFERENCES],
        locations=["zeros.bin"] * REFERENCES,
        offsets=np.arange(REFERENCES, dtype=np.uint64) * 8,
        lengths=np.full(REFERENCES, 8, dtype=np.uint64),
    )
    session.commit("a million")
    repository.close()
    return folder


@pytest.fixture
def large_site(large: Path) -> Iterator[Site]:
    site = Site(large)
    site.answers["/zeros.bin"] = lambda request: respond(
        request, 206, bytes(8), **{"Content-Range": request.headers["Range"].replace("=", " ") + f"/{8 * REFERENCES}"}
    )
    yield site
    site.server.shutdown()
    site.server.server_close()


def test_a_million_references_need_few_requests(large_site: Site, large: Path) -> None:
    size = (large / "large.icelite").stat().st_size
    assert size > 20 << 20
    catalog = "/large.icelite"
    storage = StorageConfig.http(large_site.url + catalog, whole_bytes=1 << 20)
    session = icelite.open(storage).readonly_session("main")
    array = zarr.open_array(session.store, path="a", mode="r")
    assert array[REFERENCES // 2] == 0
    first = large_site.log.count(catalog)
    assert first <= 4
    for position in np.random.default_rng(0).integers(0, REFERENCES, 100):
        assert array[int(position)] == 0
    assert large_site.log.count(catalog) - first <= 15
    print(f"{size} bytes: {first} requests, then {large_site.log.count(catalog) - first} for 100 chunks")


def test_a_million_references_whole_need_one(large_site: Site) -> None:
    session = icelite.open(StorageConfig.http(f"{large_site.url}/large.icelite", whole_bytes=1 << 30))
    array = zarr.open_array(session.readonly_session("main").store, path="a", mode="r")
    assert array[7] == 0
    assert large_site.log.count("/large.icelite") == 1


def test_a_catalog_replaced_while_it_is_read_by_ranges_says_so(large_site: Site, large: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.icelite"
    shutil.copyfile(large / "large.icelite", copy)
    site = Site(tmp_path)
    storage = StorageConfig.http(f"{site.url}/copy.icelite", whole_bytes=1 << 20)
    repository = icelite.open(storage)
    session = repository.readonly_session("main")
    copy.touch()  # another ETag
    with pytest.raises(IceliteError) as caught:
        session.store.get_sync("a/c/999999")
    assert caught.value.kind == "catalog-replaced"
    assert "open it again" in str(caught.value)
    assert icelite.open(storage).readonly_session("main").snapshot_id == session.snapshot_id
    site.server.shutdown()
    site.server.server_close()


def test_a_server_without_ranges_gives_a_large_catalog_whole_up_to_a_limit(
    large_site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    large_site.ranges = False
    storage = StorageConfig.http(f"{large_site.url}/large.icelite", whole_bytes=1 << 20)
    session = icelite.open(storage).readonly_session("main")
    assert zarr.open_array(session.store, path="a", mode="r")[9] == 0
    del session
    monkeypatch.setattr("icelite.vfs.mirror.NO_RANGES_BYTES", 1 << 20)
    with pytest.raises(IceliteError, match="ignores range requests"):
        icelite.open(StorageConfig.http(f"{large_site.url}/large.icelite", whole_bytes=2 << 20))


# ---- refusals


def refused(url: str | StorageConfig) -> IceliteError:
    with pytest.raises(IceliteError) as caught:
        icelite.open(url)
    return caught.value


def test_what_is_no_catalog_is_named(site: Site, tmp_path: Path) -> None:
    plain(tmp_path)
    url = f"{site.url}/plain.icelite"
    assert refused(url + "x").kind == "repository-not-found"
    site.answers["/plain.icelite"] = lambda request: respond(request, 200, b"<!DOCTYPE html><p>Please log in")
    error = refused(url)
    assert (error.kind, "HTML page" in str(error)) == ("not-a-catalog", True)
    site.answers["/plain.icelite"] = lambda request: respond(request, 403)
    assert "HTTP 403" in str(refused(url + "?X-Signature=hush"))
    assert "hush" not in str(refused(url + "?X-Signature=hush"))
    cut = (tmp_path / "plain.icelite").read_bytes()[:-4096]
    site.answers["/plain.icelite"] = lambda request: respond(request, 200, cut)
    assert refused(url).kind == "truncated-file"


def test_a_damaged_catalog_is_refused_with_its_url(site: Site, tmp_path: Path) -> None:
    plain(tmp_path)
    data = bytearray((tmp_path / "plain.icelite").read_bytes())
    data[-4096:] = b"\xff" * 4096
    site.answers["/plain.icelite"] = lambda request: respond(request, 200, bytes(data))
    error = refused(f"{site.url}/plain.icelite")
    assert error.kind == "corrupt"
    assert f"{site.url}/plain.icelite" in str(error)
    assert "/tmp" not in str(error)


def test_a_redirect_is_followed_only_below_the_prefix(site: Site, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    values = plain(tmp_path / "a", "real.icelite")
    site.answers["/a/plain.icelite"] = lambda request: respond(request, 302, Location="/a/real.icelite")
    assert numbers(icelite.open(f"{site.url}/a/plain.icelite")) == values
    site.answers["/a/plain.icelite"] = lambda request: respond(request, 302, Location="/b/real.icelite?key=hush")
    error = refused(f"{site.url}/a/plain.icelite")
    assert "redirects to" in str(error)
    assert "hush" not in str(error)


def test_a_server_that_fails_is_asked_again_a_few_times(site: Site, tmp_path: Path) -> None:
    values = plain(tmp_path)
    failures = [503, 500]

    def answer(request: BaseHTTPRequestHandler) -> None:
        if failures:
            respond(request, failures.pop())
        else:
            respond(request, 200, (tmp_path / "plain.icelite").read_bytes())

    site.answers["/plain.icelite"] = answer
    assert numbers(icelite.open(f"{site.url}/plain.icelite")) == values
    site.answers["/plain.icelite"] = lambda request: respond(request, 503)
    site.log.clear()
    assert "HTTP 503" in str(refused(StorageConfig.http(f"{site.url}/plain.icelite", max_attempts=2)))
    assert len(site.log) == 2


def test_a_catalog_on_a_web_server_is_read_only(site: Site, tmp_path: Path) -> None:
    plain(tmp_path)
    repository = icelite.open(f"{site.url}/plain.icelite")
    tip = repository.lookup_branch("main")
    for write in (
        lambda: repository.writable_session("main"),
        lambda: repository.create_tag("v1", tip),
        lambda: Repository.create(f"{site.url}/new.icelite"),
    ):
        with pytest.raises(IceliteError) as caught:
            write()
        assert caught.value.kind == "read-only-storage"
        assert "download it" in str(caught.value)


# ---- sources beside the catalog, and elsewhere on the web


@pytest.mark.parametrize("problem", ["missing", "changed", "short", "redirect", "forbidden"])
def test_a_source_that_cannot_be_read_is_named(site: Site, archive: xr.Dataset, tmp_path: Path, problem: str) -> None:
    file = sorted((tmp_path / "data").glob("*.nc"))[1]
    path = f"/data/{file.name.replace(' ', '%20')}"
    data = file.read_bytes()
    if problem == "missing":
        file.unlink()
    elif problem == "changed":
        file.write_bytes(data + b"more")
    elif problem == "short":
        file.write_bytes(data[:100])
    elif problem == "redirect":
        site.answers[path] = lambda request: respond(request, 301, Location="http://127.0.0.2/secret")
    else:
        site.answers[path] = lambda request: respond(request, 403)
    with (
        xr.open_dataset(f"{site.url}/data/ocean.icelite", engine="icelite") as found,
        pytest.raises(IceliteError) as caught,
    ):
        found.load()
    assert ".nc" in str(caught.value)
    assert caught.value.kind == ("virtual-chunk-modified" if problem in ("changed", "short") else "virtual-chunk-fetch")


def test_references_to_other_web_servers_need_a_container_and_an_authorisation(site: Site, tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(np.arange(4, dtype="i8").tobytes())
    prefix = site.url + "/"
    repository = Repository.create(
        tmp_path / "web.icelite",
        icelite.RepositoryConfig(virtual_chunk_containers={prefix: icelite.VirtualChunkContainer(prefix)}),
        {prefix: None},
    )
    session = repository.writable_session("main")
    array: dict[str, Any] = {"name": "a", "shape": (4,), "chunks": (4,), "dtype": "i8"}
    zarr.create_array(session.store, filters=None, compressors=None, **array)
    etag = f"{(tmp_path / 'x.bin').stat().st_mtime_ns:x}-20"
    session.store.set_virtual_ref("a/c/0", f"{prefix}x.bin", offset=0, length=32, checksum=etag)
    session.commit("a reference")
    assert numbers(repository) == [0, 1, 2, 3]
    stranger = Repository.open(tmp_path / "web.icelite")
    with pytest.raises(IceliteError) as caught:
        numbers(stranger)
    assert caught.value.kind == "unauthorized-virtual-chunk-container"
    assert "icelite.HttpAccess" in str(caught.value)
    (tmp_path / "x.bin").write_bytes(bytes(40))
    with pytest.raises(IceliteError) as caught:
        numbers(repository)
    assert caught.value.kind == "virtual-chunk-modified"
