"""A month of netCDF files in one bucket, its store in another: every way to bring credentials, at a custom endpoint."""

from __future__ import annotations

import datetime
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from obspec_utils.registry import ObjectStoreRegistry
from obstore.store import S3Store
from oisst import write_days
from virtualizarr import open_virtual_dataset
from virtualizarr.parsers import HDFParser

import icelite
import icelite.virtualizarr
from icelite import IceliteError, IceliteStore, S3Credentials, StorageConfig, StoreConfig, VirtualRefConfig

S3Server = Any  # of conftest.py

pytestmark = [pytest.mark.s3, pytest.mark.usefixtures("no_aws_settings")]

DAYS, MORE, SHAPE = 31, 2, (6, 12)
COMBINE = {"data_vars": "minimal", "coords": "minimal", "compat": "override", "combine_attrs": "override"}
WAYS = ["config", "token", "refreshed", "env", "anonymous"]


@dataclass(frozen=True)
class Month:
    """One bucket with the files of a month and the next days, and a store that refers to them."""

    bucket: str
    prefix: str
    files: list[Path]

    @property
    def urls(self) -> list[str]:
        return [f"s3://{self.bucket}/{self.prefix}/days/{path.name}" for path in self.files]

    @property
    def store(self) -> str:
        """Not above the files' folder: the references are absolute, and need what `VirtualRefConfig` says."""
        return f"{self.prefix}/store"

    def expected(self, days: int) -> xr.Dataset:
        """What xarray reads from the first of the files."""
        opened = xr.open_mfdataset(self.files[:days], combine="nested", concat_dim="time", **COMBINE)
        with opened as dataset:
            loaded: xr.Dataset = dataset.load()
            return loaded


def storage(server: S3Server, prefix: str, **options: Any) -> StorageConfig:
    keys = S3Credentials(**server.keys)
    return StorageConfig.s3_from_config(
        **{"bucket": server.private, "credentials": keys, **server.place, **options}, prefix=prefix
    )


def virtual(server: S3Server, bucket: str, urls: list[str]) -> xr.Dataset:
    keys = {"skip_signature": True} if bucket == server.public else server.keys
    source = S3Store(
        bucket, region=server.region, endpoint=server.endpoint, client_options={"allow_http": True}, **keys
    )
    registry = ObjectStoreRegistry({f"s3://{bucket}": source})
    days = [open_virtual_dataset(url, registry=registry, parser=HDFParser()) for url in urls]
    return xr.concat(days, dim="time", **COMBINE)


def write(server: S3Server, bucket: str, files: list[Path]) -> Month:
    """Upload files; commit and tag all but the last ones, then append these."""
    month = Month(bucket, f"mission-{uuid.uuid4().hex}", files)
    client = server.client()
    for path in files:
        client.upload_file(str(path), bucket, f"{month.prefix}/days/{path.name}")
    place = storage(server, month.store, bucket=bucket)
    keys = VirtualRefConfig.s3_from_config(credentials=S3Credentials(**server.keys), **server.place)
    store = IceliteStore.create(storage=place, config=StoreConfig(virtual_ref_config=keys))
    icelite.virtualizarr.to_icelite(virtual(server, bucket, month.urls[:-MORE]), store)
    icelite.Repository.open(place).create_tag("first", store.commit("August 2024"))
    virtual(server, bucket, month.urls[-MORE:]).icelite.to_icelite(store, append_dim="time")
    store.commit("September 2024")
    return month


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_days(tmp_path_factory.mktemp("oisst"), datetime.date(2024, 8, 1), DAYS + MORE, SHAPE)


@pytest.fixture(scope="module")
def private(no_aws_settings: None, s3_server: S3Server, files: list[Path]) -> Month:
    return write(s3_server, s3_server.private, files)


@pytest.fixture(scope="module")
def public(no_aws_settings: None, s3_server: S3Server, files: list[Path]) -> Month:
    return write(s3_server, s3_server.public, files[: MORE + 2])


@dataclass(frozen=True)
class Access:
    """One way to bring credentials: for the store, for its sources, and for them prefix by prefix."""

    storage: StorageConfig
    refs: VirtualRefConfig
    credentials: Any


def access(server: S3Server, month: Month, way: str, patch: pytest.MonkeyPatch) -> Access:
    here, place = {"bucket": month.bucket, "prefix": month.store}, server.place
    if way == "anonymous":
        unsigned = icelite.s3_credentials(anonymous=True, **place)
        return Access(StorageConfig.s3_anonymous(**here, **place), VirtualRefConfig.s3_anonymous(**place), unsigned)
    if way == "env":
        patch.setenv("AWS_ACCESS_KEY_ID", server.keys["access_key_id"])
        patch.setenv("AWS_SECRET_ACCESS_KEY", server.keys["secret_access_key"])
        patch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        patch.setenv("AWS_REGION", server.region)
        environment = icelite.s3_credentials(from_env=True)
        return Access(StorageConfig.s3_from_env(**here), VirtualRefConfig.s3_from_env(), environment)
    keys = server.temporary_keys() if way == "token" else server.keys
    given: Any = S3Credentials(**keys)
    prefixed = icelite.s3_credentials(**keys, **place)
    if way == "refreshed":
        given = icelite.s3_refreshable_credentials(lambda: icelite.S3StaticCredentials(**keys))
        prefixed = icelite.s3_credentials(get_credentials=given.get_credentials, **place)
    return Access(
        storage(server, month.store, credentials=given),
        VirtualRefConfig.s3_from_config(credentials=given, **place),
        prefixed,
    )


@pytest.mark.parametrize("way", WAYS)
def test_the_store_is_read(
    s3_server: S3Server, request: pytest.FixtureRequest, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    month: Month = request.getfixturevalue("public" if way == "anonymous" else "private")
    given = access(s3_server, month, way, monkeypatch)
    store = IceliteStore.open_existing(storage=given.storage, config=StoreConfig(virtual_ref_config=given.refs))
    expected = month.expected(len(month.files))
    found = xr.open_dataset(store).load()
    xr.testing.assert_equal(found, expected)
    assert {name: v.dtype for name, v in found.items()} == {name: v.dtype for name, v in expected.items()}
    by_zarr = xr.open_zarr(store, consolidated=False, zarr_format=3, chunks={})
    xr.testing.assert_allclose(by_zarr.load(), expected)

    allow = {f"s3://{month.bucket}/{month.prefix}/days/": given.credentials}
    tagged = xr.open_dataset(given.storage, tag="first", authorize_virtual_chunk_access=allow)
    xr.testing.assert_identical(tagged.load(), month.expected(len(month.files) - MORE))


@pytest.mark.parametrize("way", ["token", "anonymous"])
def test_who_may_only_read_cannot_commit(
    s3_server: S3Server, request: pytest.FixtureRequest, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    month: Month = request.getfixturevalue("public" if way == "anonymous" else "private")
    given = access(s3_server, month, way, monkeypatch)
    store = IceliteStore.open_existing(storage=given.storage, config=StoreConfig(virtual_ref_config=given.refs))
    store.set_virtual_ref("sst/c/0/0/0/0", month.urls[0], offset=0, length=8)
    with pytest.raises(IceliteError) as caught:
        store.commit("not mine")
    assert caught.value.kind == "read-only-storage"


def test_the_wrong_keys_read_nothing(s3_server: S3Server, private: Month) -> None:
    wrong = S3Credentials(access_key_id=s3_server.keys["access_key_id"], secret_access_key="a-secret-of-nobody")
    with pytest.raises(IceliteError, match="SignatureDoesNotMatch") as caught:
        IceliteStore.open_existing(storage=storage(s3_server, private.store, credentials=wrong))
    assert "a-secret-of-nobody" not in str(caught.value)
    # The store may be read and the files may not.
    refs = VirtualRefConfig.s3_from_config(credentials=wrong, **s3_server.place)
    config = StoreConfig(virtual_ref_config=refs)
    store = IceliteStore.open_existing(storage=storage(s3_server, private.store), config=config)
    with pytest.raises(IceliteError, match=private.urls[0]) as caught:
        xr.open_dataset(store).sst[0].load()
    assert caught.value.kind == "virtual-chunk-fetch"
    assert "a-secret-of-nobody" not in str(caught.value)


def test_a_reference_by_hand(s3_server: S3Server, public: Month) -> None:
    config = StoreConfig(virtual_ref_config=VirtualRefConfig.s3_anonymous(**s3_server.place))
    place = storage(s3_server, f"{public.prefix}/hand")
    store = IceliteStore.create(storage=place, config=config)
    zarr.create_array(store, shape=(8,), chunks=(4,), dtype="u1", compressors=None)
    store.set_virtual_ref("c/0", public.urls[0], offset=0, length=4)
    store.set_virtual_ref("c/1", public.urls[0], offset=1, length=4)
    store.commit()
    again = IceliteStore.open_existing(storage=place, config=config)
    data = public.files[0].read_bytes()
    assert np.asarray(zarr.open_array(again)[:]).tobytes() == data[:4] + data[1:5]


def test_the_service_may_come_from_the_environment(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {
        "ENDPOINT": s3_server.endpoint,
        "REGION": s3_server.region,
        "PUBLIC_BUCKET": s3_server.public,
        "PRIVATE_BUCKET": s3_server.private,
        "KEY": s3_server.keys["access_key_id"],
        "SECRET": s3_server.keys["secret_access_key"],
        "ROLE": s3_server.role or "",
    }
    for name, value in variables.items():
        monkeypatch.setenv(f"ICELITE_S3_{name}", value)
    given = type(s3_server).from_environment()
    assert (given.endpoint, given.keys, given.place) == (s3_server.endpoint, s3_server.keys, s3_server.place)
    assert given.client().list_objects_v2(Bucket=given.private, MaxKeys=1)["Name"] == given.private
    assert "secret_access_key" not in repr(given)
    monkeypatch.delenv("ICELITE_S3_SECRET")
    with pytest.raises(pytest.fail.Exception, match="ICELITE_S3_SECRET must be set"):
        type(s3_server).from_environment()
