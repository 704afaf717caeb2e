"""Archival files in a bucket of a real S3 service: any key, few requests, and only the keys that were given."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from forwarding import Recorder

import icelite
from icelite import IceliteError
from icelite.archive.inputs import list_inputs
from icelite.virtual import VirtualAccess

pytest.importorskip("virtualizarr")

pytestmark = [pytest.mark.s3, pytest.mark.usefixtures("no_aws_settings")]

S3Server = Any  # of conftest.py


@pytest.fixture(scope="module")
def recorder(s3_server: S3Server) -> Iterator[Recorder]:
    with Recorder(s3_server.endpoint) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def prefix() -> str:
    return uuid.uuid4().hex


def day(number: int = 0) -> xr.Dataset:
    return xr.Dataset(
        {"t": (("time", "x"), np.arange(4.0).reshape(1, 4) + number)}, {"time": [number], "x": [1, 2, 3, 4]}
    )


def put(server: S3Server, key: str, tmp_path: Path, number: int = 0) -> xr.Dataset:
    dataset = day(number)
    dataset.to_netcdf(tmp_path / "file.nc", engine="netcdf4")
    server.client().put_object(Bucket=server.private, Key=key, Body=(tmp_path / "file.nc").read_bytes())
    return dataset


def access_of(server: S3Server, **options: Any) -> dict[str, Any]:
    place = {**server.place, **options}
    return {f"s3://{server.private}/": icelite.s3_credentials(**server.keys, **place)}


def check(catalog: Path, access: Any, expected: xr.Dataset) -> None:
    with xr.open_dataset(catalog, engine="icelite", authorize_virtual_chunk_access=access) as found:
        xr.testing.assert_equal(found.load(), expected)


NAMES = ["a?.nc", "a#b.nc", "a[1].nc", "a*b.nc", "a//b.nc", "..a.nc", "a..b/c.nc", "a b.nc", "a%20b.nc", "ü+.nc", "#"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("in_a_list", [True, False])
def test_any_key_is_a_source(s3_server: S3Server, prefix: str, tmp_path: Path, name: str, in_a_list: bool) -> None:
    expected = put(s3_server, f"{prefix}/{name}", tmp_path)
    for other in ("ab.nc", "a1.nc", "axb.nc"):  # what the names would match as patterns
        put(s3_server, f"{prefix}/{other}", tmp_path, 7)
    url = f"s3://{s3_server.private}/{prefix}/{name}"
    catalog = tmp_path / "c.icelite"
    summary = icelite.virtualize(
        [url] if in_a_list else url, catalog, authorize_virtual_chunk_access=access_of(s3_server)
    )
    assert summary.added == [url]
    check(catalog, access_of(s3_server), expected)


def test_patterns_match_what_is_there(s3_server: S3Server, prefix: str, tmp_path: Path) -> None:
    for name in ("a1.nc", "a2.nc", "b#1.nc", "c.nc"):
        put(s3_server, f"{prefix}/{name}", tmp_path)
    access = VirtualAccess(directory=None, at_home=True, containers={}, declared={}, access=access_of(s3_server))
    base = f"s3://{s3_server.private}/{prefix}"

    def names(sources: Any) -> list[str]:
        return [url.removeprefix(base + "/") for url in list_inputs(sources, access)]

    assert names(f"{base}/a?.nc") == ["a1.nc", "a2.nc"]
    assert names(f"{base}/*1.nc") == ["a1.nc", "b#1.nc"]
    assert names([f"{base}/a*.nc", f"{base}/c.nc"]) == ["a1.nc", "a2.nc", "c.nc"]
    assert names([f"{base}/a?.nc"]) == ["a?.nc"], "a name in a list is a name"


def test_a_small_file_costs_four_requests_from_url_to_commit(
    s3_server: S3Server, recorder: Recorder, prefix: str, tmp_path: Path
) -> None:
    expected = put(s3_server, f"{prefix}/f.nc", tmp_path)
    access = access_of(s3_server, endpoint_url=recorder.endpoint)
    recorder.log.clear()
    catalog = tmp_path / "c.icelite"
    icelite.virtualize(f"s3://{s3_server.private}/{prefix}/f.nc", catalog, authorize_virtual_chunk_access=access)
    assert len(recorder.log) <= 4, recorder.log
    recorder.log.clear()
    check(catalog, access, expected)
    assert [method for method, _ in recorder.log] == ["GET"], "one chunk is virtual"


def test_given_keys_go_without_a_token_of_the_environment(
    s3_server: S3Server, recorder: Recorder, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "another")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "one")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "hush")
    put(s3_server, f"{prefix}/f.nc", tmp_path)
    write_store(s3_server, f"{prefix}/g.zarr")
    access = access_of(s3_server, endpoint_url=recorder.endpoint)
    recorder.headers.clear()
    for name in ("f.nc", "g.zarr"):
        icelite.virtualize(
            f"s3://{s3_server.private}/{prefix}/{name}",
            tmp_path / f"{name}.icelite",
            authorize_virtual_chunk_access=access,
        )
    assert recorder.headers
    assert not any("hush" in value for headers in recorder.headers for value in headers.values())


def write_store(server: S3Server, key: str) -> None:
    store = zarr.storage.FsspecStore.from_url(
        f"s3://{server.private}/{key}",
        storage_options={
            "key": server.access_key_id,
            "secret": server.secret_access_key,
            "client_kwargs": {"endpoint_url": server.endpoint, "region_name": server.region},
        },
    )
    group = zarr.create_group(store)
    group.create_array("v", shape=(4,), chunks=(2,), dtype="i4", dimension_names=["x"])[:] = [1, 2, 3, 4]


@pytest.mark.parametrize("name", ["f.nc", "g.zarr"])
@pytest.mark.parametrize("given", ["keys", "environment"])
def test_the_endpoint_of_the_environment_serves_the_scan(
    s3_server: S3Server, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, given: str
) -> None:
    """A file of that key in a bucket named like its first folder must not be taken for it."""
    put(s3_server, f"{s3_server.public}/{prefix}/f.nc", tmp_path)
    data = day(9)
    data.to_netcdf(tmp_path / "other.nc", engine="netcdf4")
    s3_server.client().put_object(
        Bucket=s3_server.public, Key=f"{prefix}/f.nc", Body=(tmp_path / "other.nc").read_bytes()
    )
    write_store(s3_server, f"{s3_server.public}/{prefix}/g.zarr")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.endpoint)
    monkeypatch.setenv("AWS_REGION", s3_server.region)
    if given == "environment":
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.access_key_id)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_server.secret_access_key)
        credentials = icelite.s3_credentials(from_env=True)
    else:
        credentials = icelite.s3_credentials(**s3_server.keys)
    access = {f"s3://{s3_server.private}/": credentials}
    url = f"s3://{s3_server.private}/{s3_server.public}/{prefix}/{name}"
    icelite.virtualize(url, tmp_path / "c.icelite", authorize_virtual_chunk_access=access)
    with xr.open_dataset(tmp_path / "c.icelite", engine="icelite", authorize_virtual_chunk_access=access) as found:
        first = found["t" if name == "f.nc" else "v"].values.ravel()[0]
    assert first == (0 if name == "f.nc" else 1)


def test_keys_are_renewed_during_a_scan(s3_server: S3Server, prefix: str, tmp_path: Path) -> None:
    from datetime import UTC, datetime, timedelta

    urls = []
    for number in range(4):
        put(s3_server, f"{prefix}/{number}.nc", tmp_path, number)
        urls.append(f"s3://{s3_server.private}/{prefix}/{number}.nc")
    asked: list[int] = []

    def ask() -> icelite.S3StaticCredentials:
        asked.append(1)
        soon = datetime.now(UTC) + timedelta(seconds=30)  # so always about to expire
        return icelite.S3StaticCredentials(**s3_server.keys, expires_after=soon)

    access = {f"s3://{s3_server.private}/": icelite.s3_credentials(get_credentials=ask, **s3_server.place)}
    icelite.virtualize(urls, tmp_path / "c.icelite", concat_dim="time", authorize_virtual_chunk_access=access)
    assert len(asked) > 4


def test_an_object_that_is_not_there_is_named(s3_server: S3Server, prefix: str, tmp_path: Path) -> None:
    url = f"s3://{s3_server.private}/{prefix}/none.nc"
    with pytest.raises(IceliteError) as caught:
        icelite.virtualize(url, tmp_path / "c.icelite", authorize_virtual_chunk_access=access_of(s3_server))
    assert caught.value.kind == "unreadable-source"
    assert "does not exist" in str(caught.value)
