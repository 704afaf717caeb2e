"""icelite.storage: locations are values; making one touches nothing."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from icelite.credentials import S3Credentials
from icelite.errors import InvalidInputError, StorageError
from icelite.storage import (
    ObjectStoreConfig,
    S3Address,
    S3Options,
    StorageConfig,
    as_storage,
    http_storage,
    in_memory_storage,
    local_filesystem_storage,
    local_filesystem_store,
    s3_storage,
    s3_store,
)


def test_a_path_becomes_absolute_and_nothing_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    storage = StorageConfig.filesystem("deep/ocean.icelite")
    assert storage.path == tmp_path.resolve() / "deep" / "ocean.icelite"
    assert storage.directory == tmp_path.resolve() / "deep"
    assert storage.name == str(storage.path)
    assert list(tmp_path.iterdir()) == []


def test_links_are_resolved_so_that_relative_references_start_at_the_real_file(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "x.icelite").touch()
    (tmp_path / "link.icelite").symlink_to(tmp_path / "real" / "x.icelite")
    assert local_filesystem_storage(tmp_path / "link.icelite").directory == tmp_path.resolve() / "real"


def test_home_is_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert as_storage("~/x.icelite").path == tmp_path.resolve() / "x.icelite"


def test_every_memory_is_another_one() -> None:
    first, second = in_memory_storage(), StorageConfig.memory("ocean")
    assert first.path is None
    assert first.directory is None
    assert first.name != in_memory_storage().name
    assert second.name.startswith("ocean-")


@pytest.mark.parametrize(
    "storage", [StorageConfig.memory(), StorageConfig.filesystem("/data/x.icelite")], ids=["memory", "file"]
)
def test_storage_pickles_and_is_taken_as_it_is(storage: StorageConfig) -> None:
    assert pickle.loads(pickle.dumps(storage)) == storage
    assert as_storage(storage) is storage


def test_repr_shows_the_place() -> None:
    assert repr(StorageConfig.filesystem("/data/x.icelite")) == "StorageConfig.filesystem('/data/x.icelite')"


@pytest.mark.parametrize("given", ["x.icelite", Path("x.icelite")])
def test_text_and_paths_are_places(given: str | Path) -> None:
    assert as_storage(given).path == Path(os.path.realpath("x.icelite"))


def test_a_file_url_is_a_path(tmp_path: Path) -> None:
    (tmp_path / "a b.icelite").touch()
    assert as_storage(f"file://{tmp_path}/a%20b.icelite").path == tmp_path.resolve() / "a b.icelite"
    (tmp_path / "a%20b.icelite").touch()
    assert as_storage(f"file://{tmp_path}/a%20b.icelite").path == tmp_path.resolve() / "a%20b.icelite"


@pytest.mark.parametrize(("given", "kind"), [("", "invalid-path"), ("a\0b", "invalid-path"), (7, "invalid-argument")])
def test_what_is_no_place_is_refused(given: str, kind: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        as_storage(given)
    assert caught.value.kind == kind


@pytest.mark.parametrize(
    ("prefix", "key"),
    [
        (None, "catalog.icelite"),
        ("", "catalog.icelite"),
        ("archive/", "archive/catalog.icelite"),
        ("archive/2024", "archive/2024/catalog.icelite"),
        ("archive/ocean.icelite", "archive/ocean.icelite"),
    ],
)
def test_a_prefix_in_a_bucket_is_the_catalog_or_a_folder_for_it(prefix: str | None, key: str) -> None:
    storage = StorageConfig.s3_from_env(bucket="bucket", prefix=prefix, region="r")
    assert storage.name == f"s3://bucket/{key}"
    assert isinstance(storage.address, S3Address)
    assert storage.address.key == key
    assert storage.home == storage.name.rpartition("/")[0] + "/"
    assert storage.path is None
    assert as_storage(storage.name).address == replace(storage.address, options=S3Options())


def test_credentials_of_a_place_travel_and_are_never_shown() -> None:
    keys = {"access_key_id": "AKID", "secret_access_key": "hush", "session_token": "mum"}
    web = StorageConfig.http("https://host/x.icelite?X-Signature=hush", headers={"Authorization": "mum"})
    for storage in (
        StorageConfig.s3_from_config(bucket="bucket", prefix="x", credentials=S3Credentials(**keys)),
        s3_storage(bucket="bucket", prefix="x", **keys),
        s3_storage(bucket="bucket", anonymous=True, region="r"),
        web,
        http_storage("https://host/x.icelite", headers={"Authorization": "mum"}),
    ):
        assert pickle.loads(pickle.dumps(storage)) == storage
        shown = repr(storage) + str(storage) + repr(storage.address) + storage.name
        assert not any(secret in shown for secret in ("AKID", "hush", "mum"))
    assert web.name == "https://host/x.icelite"


@pytest.mark.parametrize(
    "url", ["http://localhost:80/x.icelite", "http://127.0.0.1/x", "http://[::1]:8/x", "https://h/x"]
)
def test_a_web_server_is_reached_encrypted_or_on_this_machine(url: str) -> None:
    assert as_storage(url).name == url


def test_plain_http_is_there_on_request() -> None:
    url = "http://example.org/x.icelite"
    with pytest.raises(InvalidInputError) as caught:
        as_storage(url)
    assert caught.value.kind == "storage-config"
    assert "allow_http=True" in str(caught.value)
    assert StorageConfig.http(url, allow_http=True).name == url
    with pytest.raises(InvalidInputError):
        as_storage("http://localhost.example.org/x.icelite")


@pytest.mark.parametrize(
    "make",
    [
        lambda: as_storage("https://user:pw@host/x.icelite?X-Amz-Signature=hush"),
        lambda: as_storage("https://host"),
        lambda: as_storage("https://host/a/../x.icelite"),
        lambda: as_storage("https://host/a/%2e%2e/x.icelite"),
        lambda: as_storage("https://host\\@evil/x.icelite"),
        lambda: as_storage("s3://b"),
        lambda: as_storage("s3://bucket/a/../x.icelite"),
        lambda: StorageConfig.s3_from_config(bucket="arn:aws:s3:::x"),
        lambda: StorageConfig.s3_from_config(bucket="bucket", prefix="x", credentials="hush"),
        lambda: StorageConfig.s3_from_config(bucket="bucket", endpoint_url="http://host"),
        lambda: StorageConfig.s3_from_config(bucket="bucket", max_attempts=0),
        lambda: StorageConfig.http("https://host/x", headers={"A": "hush\nB: c"}),
        lambda: StorageConfig.http("https://host/x", max_attempts=True),
        lambda: s3_storage(bucket="bucket", secret_access_key="hush"),
        lambda: s3_storage(bucket="bucket", anonymous=True, from_env=True),
    ],
)
def test_unusable_places_are_refused_without_repeating_a_secret(make: Callable[[], StorageConfig]) -> None:
    with pytest.raises(InvalidInputError) as caught:
        make()
    assert caught.value.kind in ("storage-config", "invalid-path", "invalid-credentials")
    assert "hush" not in str(caught.value)
    assert "pw" not in str(caught.value)


@pytest.mark.parametrize("url", ["file://host/x", "ftp://user:pw@host/x?hush", "gs://b/a", "S3://b/x"])
def test_other_schemes_are_refused_clearly(url: str) -> None:
    with pytest.raises(StorageError) as caught:
        as_storage(url)
    assert caught.value.kind == "unsupported-storage"
    assert "s3://" in str(caught.value)
    assert "hush" not in str(caught.value)
    assert "pw" not in str(caught.value)


def test_stores_of_containers() -> None:
    assert local_filesystem_store("/data") == ObjectStoreConfig.LocalFileSystem("/data")
    store = s3_store(region="r", endpoint_url="https://h", s3_compatible=True)
    assert store == ObjectStoreConfig.S3Compatible(S3Options("r", "https://h", network_stream_timeout_seconds=60))


def test_options_lie_over_options() -> None:
    below = S3Options("r", "http://localhost:1", allow_http=True)
    assert below.merge(S3Options("other")) == S3Options("other", "http://localhost:1", allow_http=True)
    assert below.merge(S3Options()) == below
    assert S3Options().merge(below) == below
