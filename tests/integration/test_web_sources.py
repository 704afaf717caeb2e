"""Archival files on web servers of every kind: few requests, odd servers, logins, and never another file's bytes."""

from __future__ import annotations

import base64
import functools
import http.server
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from web_site import Site, respond

import icelite
from icelite import IceliteError, Repository, StorageConfig
from icelite.virtual import web

pytest.importorskip("virtualizarr")

pytestmark = [pytest.mark.s3, pytest.mark.usefixtures("no_aws_settings")]


def day(path: Path, number: int = 0) -> xr.Dataset:
    """A small netCDF4 file."""
    dataset = xr.Dataset(
        {"t": (("time", "x"), np.arange(4.0).reshape(1, 4) + number)}, {"time": [number], "x": [1, 2, 3, 4]}
    )
    dataset.to_netcdf(path, engine="netcdf4")
    return dataset


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    folder = tmp_path / "site"
    folder.mkdir()
    site = Site(folder)
    yield site
    site.close()
    web.copies.clear()


def virtualize(site: Site, tmp_path: Path, name: str | list[str] = "f.nc", access: Any = icelite.HttpAccess) -> Path:
    names = [name] if isinstance(name, str) else name
    catalog = tmp_path / "c.icelite"
    icelite.virtualize(
        [f"{site.url}/{one}" for one in names],
        catalog,
        concat_dim=None if len(names) == 1 else "time",
        authorize_virtual_chunk_access={site.url + "/": access},
    )
    return catalog


def read(site: Site, catalog: Path, access: Any = icelite.HttpAccess) -> xr.Dataset:
    with xr.open_dataset(catalog, engine="icelite", authorize_virtual_chunk_access={site.url + "/": access}) as dataset:
        return dataset.load()


def refused(call: Any) -> IceliteError:
    with pytest.raises(IceliteError) as caught:
        call()
    return caught.value


# ---- how many requests


def test_a_small_file_costs_four_requests_from_url_to_commit(site: Site, tmp_path: Path) -> None:
    expected = day(site.folder / "f.nc")
    catalog = virtualize(site, tmp_path)
    assert len(site.log) <= 4, list(zip(site.methods, site.log, strict=True))
    site.log.clear()
    xr.testing.assert_equal(read(site, catalog), expected)
    assert len(site.log) == 1, "one chunk is virtual"


def test_known_files_are_not_read_again(site: Site, tmp_path: Path) -> None:
    for number in range(3):
        day(site.folder / f"{number}.nc", number)
    virtualize(site, tmp_path, ["0.nc", "1.nc"])
    site.log.clear()
    virtualize(site, tmp_path, ["0.nc", "1.nc", "2.nc"])
    assert site.log.count("/0.nc") <= 1
    assert sorted(read(site, tmp_path / "c.icelite").time.values) == [0, 1, 2]


# ---- what servers do


@pytest.mark.parametrize(
    "validators",
    [set(), {"ETag"}, {"Last-Modified"}, {"ETag", "Last-Modified"}],
    ids=lambda names: "+".join(sorted(names)),
)
def test_servers_need_not_say_how_old_a_file_is(site: Site, tmp_path: Path, validators: set[str]) -> None:
    expected = day(site.folder / "f.nc")
    site.validators = validators
    catalog = virtualize(site, tmp_path)
    xr.testing.assert_equal(read(site, catalog), expected)
    data = (site.folder / "f.nc").read_bytes()
    (site.folder / "f.nc").write_bytes(data + b"more")
    assert refused(lambda: read(site, catalog)).kind == "virtual-chunk-modified"


def test_a_url_signed_for_get_only_is_read(site: Site, tmp_path: Path) -> None:
    expected = day(site.folder / "f.nc")
    served = site.answer

    def answer(request: BaseHTTPRequestHandler, *, send: bool) -> None:
        if request.command == "HEAD" or "X-Amz-Signature=hush" not in request.path:
            site.log.append("refused")
            respond(request, 403)
        else:
            served(request, send=send)

    site.answer = answer  # type: ignore[method-assign]
    url = f"{site.url}/f.nc?X-Amz-Signature=hush"
    access = {site.url + "/": icelite.HttpAccess}
    config = icelite.RepositoryConfig(store_signed_urls=True)
    catalog = tmp_path / "c.icelite"
    icelite.virtualize(url, catalog, config=config, authorize_virtual_chunk_access=access)
    xr.testing.assert_equal(read(site, catalog), expected)


@pytest.mark.parametrize("name", ["f b.nc", "ü.nc", "f+c.nc", "a%b.nc"])
@pytest.mark.parametrize("encoded", [False, True])
def test_a_url_is_encoded_once(site: Site, tmp_path: Path, name: str, encoded: bool) -> None:
    from urllib.parse import quote, unquote

    if "%" in name and not encoded:
        pytest.skip("a percent sign in a URL begins a code")
    expected = day(tmp_path / "f.nc")
    data = (tmp_path / "f.nc").read_bytes()
    served = site.answer

    def answer(request: BaseHTTPRequestHandler, *, send: bool) -> None:
        assert unquote(request.path) == f"/{name}"
        (site.folder / "plain.nc").write_bytes(data) if not (site.folder / "plain.nc").exists() else None
        request.path = "/plain.nc"
        served(request, send=send)

    site.answer = answer  # type: ignore[method-assign]
    catalog = virtualize(site, tmp_path, quote(name) if encoded else name)
    xr.testing.assert_equal(read(site, catalog), expected)


def test_a_file_that_changes_while_it_is_parsed_is_noticed(site: Site, tmp_path: Path) -> None:
    xr.Dataset({f"v{i}": ("x", np.random.default_rng(i).random(40_000)) for i in range(12)}).to_netcdf(
        site.folder / "f.nc", engine="netcdf4"
    )
    data = (site.folder / "f.nc").read_bytes()
    assert len(data) > 1 << 20
    served, asked = site.answer, []

    def answer(request: BaseHTTPRequestHandler, *, send: bool) -> None:
        asked.append(request.path)
        if len(asked) == 2:
            (site.folder / "f.nc").write_bytes(data[:-1] + b"x")
        served(request, send=send)

    site.answer = answer  # type: ignore[method-assign]
    error = refused(lambda: virtualize(site, tmp_path))
    assert error.kind == "virtual-chunk-modified"
    assert len(asked) > 1


# ---- servers that know no ranges


@pytest.fixture
def plain_server(tmp_path: Path) -> Iterator[Any]:
    """What ``python -m http.server`` runs, and a log of its requests."""
    folder = tmp_path / "served"
    folder.mkdir()
    log: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            log.append(self.command)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}", log
    server.shutdown()
    server.server_close()
    web.copies.clear()


def many(folder: Path) -> xr.Dataset:
    dataset = xr.Dataset({"t": (("y", "x"), np.arange(40_000.0).reshape(200, 200))})
    dataset.to_netcdf(folder / "f.nc", engine="netcdf4", encoding={"t": {"chunksizes": (20, 20)}})
    return dataset


def test_a_plain_server_gives_each_file_once(plain_server: Any) -> None:
    folder, url, log = plain_server
    expected = many(folder)
    icelite.virtualize(folder / "f.nc", folder / "a.icelite")
    with xr.open_dataset(f"{url}/a.icelite", engine="icelite") as found:
        xr.testing.assert_equal(found.load(), expected)
    assert log.count("GET") <= 3, "the catalog, the file"
    with xr.open_dataset(f"{url}/a.icelite", engine="icelite") as found:
        found.load()
    assert log.count("GET") <= 5


def test_files_of_a_plain_server_can_be_virtualized(plain_server: Any, tmp_path: Path) -> None:
    folder, url, _ = plain_server
    expected = many(folder)
    access = {url + "/": icelite.HttpAccess}
    icelite.virtualize(f"{url}/f.nc", tmp_path / "a.icelite", authorize_virtual_chunk_access=access)
    with xr.open_dataset(tmp_path / "a.icelite", engine="icelite", authorize_virtual_chunk_access=access) as found:
        xr.testing.assert_equal(found.load(), expected)


def test_the_copy_of_a_file_has_a_limit(plain_server: Any, tmp_path: Path) -> None:
    folder, url, _ = plain_server
    many(folder)
    icelite.virtualize(f"{url}/f.nc", tmp_path / "a.icelite", authorize_virtual_chunk_access={url + "/": None})
    web.copies.clear()
    small = {url + "/": icelite.http_access(copy_bytes=100_000)}
    with xr.open_dataset(tmp_path / "a.icelite", engine="icelite", authorize_virtual_chunk_access=small) as found:
        error = refused(found.load)
    assert error.kind == "virtual-chunk-fetch"
    assert "copy_bytes" in str(error)


def test_a_copy_is_asked_after(plain_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "FRESH_SECONDS", -1.0)
    folder, url, log = plain_server
    expected = many(folder)
    access = {url + "/": icelite.HttpAccess}
    icelite.virtualize(f"{url}/f.nc", tmp_path / "a.icelite", authorize_virtual_chunk_access=access)
    with xr.open_dataset(tmp_path / "a.icelite", engine="icelite", authorize_virtual_chunk_access=access) as found:
        xr.testing.assert_equal(found.isel(y=slice(0, 20)).load(), expected.isel(y=slice(0, 20)))
        (folder / "f.nc").write_bytes((folder / "f.nc").read_bytes() + b"more")
        assert refused(found.load).kind == "virtual-chunk-modified"
    assert "HEAD" in log


# ---- logins and redirects


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Site]:
    """Another server, where signed URLs or a login are; under another name, so that it is another host."""
    folder = tmp_path / "other"
    folder.mkdir()
    site = Site(folder)
    site.url = site.url.replace("127.0.0.1", "localhost")
    yield site
    site.close()


def to_signed(site: Site, other: Site) -> None:
    """Let a token be exchanged for a signed URL of the other server."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        if request.headers.get("Authorization") != "Bearer hush":
            respond(request, 401)
        else:
            respond(request, 303, Location=f"{other.url}/f.nc?X-Amz-Signature=a%2Fb")

    site.answers["/f.nc"] = answer


def test_a_redirect_to_a_signed_url_is_followed_where_the_host_was_named(
    site: Site, other: Site, tmp_path: Path
) -> None:
    expected = day(other.folder / "f.nc")
    to_signed(site, other)
    token = {"Authorization": "Bearer hush"}
    error = refused(lambda: virtualize(site, tmp_path, access=icelite.http_access(token)))
    assert f"redirects=['{other.url}/']" in str(error)
    assert "Signature" not in str(error)
    assert other.log == []
    access = icelite.http_access(token, redirects=[f"{other.url}/"])
    catalog = virtualize(site, tmp_path, access=access)
    xr.testing.assert_equal(read(site, catalog, access), expected)
    assert other.log
    assert all("Authorization" not in headers for headers in other.headers), "the token stays where it belongs"


def test_a_named_host_is_not_a_beginning_of_another(site: Site, other: Site, tmp_path: Path) -> None:
    for bad in ("https://example.org", "example.org/", "https://me@example.org/", "ftp://example.org/", 3):
        with pytest.raises(IceliteError) as caught:
            icelite.http_access(redirects=[bad])  # type: ignore[list-item]
        assert caught.value.kind == "invalid-credentials"


def test_a_login_of_netrc_is_sent_to_named_hosts_and_its_cookie_kept(
    site: Site, other: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As NASA's Earthdata does: to the login, back with a code, then a cookie opens the files."""
    site.url = site.url.replace("127.0.0.1", "localhost")
    other.url = other.url.replace("localhost", "127.0.0.1")
    expected = day(site.folder / "f.nc")
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    served = site.answer

    def files(request: BaseHTTPRequestHandler, *, send: bool) -> None:
        if request.path.startswith("/login?code=7"):
            respond(request, 302, Location="/f.nc", **{"Set-Cookie": "session=open; Path=/"})
        elif "session=open" in (request.headers.get("Cookie") or ""):
            served(request, send=send)
        else:
            site.log.append("sent to the login")
            respond(request, 302, Location=f"{other.url}/authorize?client=x")

    def login(request: BaseHTTPRequestHandler, *, send: bool) -> None:
        expected_login = "Basic " + base64.b64encode(b"me:secret").decode()
        good = request.headers.get("Authorization") == expected_login
        respond(request, 302 if good else 401, **({"Location": f"{site.url}/login?code=7"} if good else {}))

    site.answer, other.answer = files, login  # type: ignore[method-assign]
    access = icelite.http_access(redirects=[f"{other.url}/"])
    catalog = virtualize(site, tmp_path, access=access)
    xr.testing.assert_equal(read(site, catalog, access), expected)
    assert site.log.count("sent to the login") == 1


def test_a_token_is_renewed_when_it_is_refused(site: Site, tmp_path: Path) -> None:
    for number in range(4):
        day(site.folder / f"{number}.nc", number)
    asked: list[int] = []

    def get_headers() -> dict[str, str]:
        asked.append(1)
        return {"Authorization": f"Bearer {len(asked)}"}

    served = site.answer
    valid = {"token": 1, "left": 3}

    def answer(request: BaseHTTPRequestHandler, *, send: bool) -> None:
        if valid["left"] == 0:
            valid.update(token=valid["token"] + 1, left=3)
        if request.headers.get("Authorization") != f"Bearer {valid['token']}":
            respond(request, 401)
            return
        valid["left"] -= 1
        served(request, send=send)

    site.answer = answer  # type: ignore[method-assign]
    access = icelite.http_access(get_headers=get_headers)
    assert "Bearer" not in repr(access)
    catalog = virtualize(site, tmp_path, [f"{number}.nc" for number in range(4)], access)
    assert sorted(read(site, catalog, access).time.values) == [0, 1, 2, 3]
    assert len(asked) > 1


def test_a_token_does_not_collide_with_a_login_of_netrc(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = day(site.folder / "f.nc")
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    access = icelite.http_access({"Authorization": "Bearer hush"})
    catalog = virtualize(site, tmp_path, access=access)
    xr.testing.assert_equal(read(site, catalog, access), expected)
    assert {headers.get("Authorization") for headers in site.headers} == {"Bearer hush"}


@pytest.mark.parametrize("given", [{"headers": {"a": 3}}, {"get_headers": 3}, {"copy_bytes": -1}, {"copy_bytes": True}])
def test_what_is_no_access_is_refused(given: dict[str, Any]) -> None:
    assert refused(lambda: icelite.http_access(**given)).kind == "invalid-credentials"


def test_a_function_for_headers_that_fails_is_named(site: Site, tmp_path: Path) -> None:
    day(site.folder / "f.nc")

    def get_headers() -> dict[str, str]:
        raise RuntimeError("hush")

    error = refused(lambda: virtualize(site, tmp_path, access=icelite.http_access(get_headers=get_headers)))
    assert error.kind == "invalid-credentials"
    assert "hush" not in str(error)


def test_a_catalog_moved_to_the_web_is_appended_to(site: Site, tmp_path: Path) -> None:
    local = tmp_path / "local"
    local.mkdir()
    for number in range(2):
        day(local / f"{number}.nc", number)
        (site.folder / f"{number}.nc").write_bytes((local / f"{number}.nc").read_bytes())
    day(site.folder / "2.nc", 2)
    catalog = tmp_path / "c.icelite"
    icelite.virtualize(str(local / "*.nc"), catalog, concat_dim="time")
    access = {site.url + "/": icelite.HttpAccess}
    Repository.open(catalog, authorize_virtual_chunk_access=access).relocate(local.as_uri() + "/", site.url + "/")
    summary = icelite.virtualize(
        [f"{site.url}/{number}.nc" for number in range(3)],
        catalog,
        concat_dim="time",
        authorize_virtual_chunk_access=access,
    )
    assert (len(summary.known), len(summary.added)) == (2, 1)
    assert sorted(read(site, catalog).time.values) == [0, 1, 2]


def test_a_catalog_place_takes_headers_too(site: Site, tmp_path: Path) -> None:
    day(site.folder / "f.nc")
    icelite.virtualize(site.folder / "f.nc", site.folder / "c.icelite")
    place = StorageConfig.http(f"{site.url}/c.icelite", headers={"Authorization": "Bearer hush"})
    with xr.open_dataset(place, engine="icelite") as found:
        found.load()
    assert all(headers["Authorization"] == "Bearer hush" for headers in site.headers)
