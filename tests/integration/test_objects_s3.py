"""Native objects in a bucket of a real S3 service: how many requests, what failures do, who may read them."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from forwarding import Recorder

import icelite
from icelite import Repository, StorageConfig
from icelite.errors import InvalidInputError, StorageError

pytestmark = [pytest.mark.s3, pytest.mark.usefixtures("no_aws_settings")]


@pytest.fixture(scope="module")
def recorder(s3_server: Any) -> Iterator[Recorder]:
    with Recorder(s3_server.endpoint) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def place(s3_server: Any, recorder: Recorder) -> StorageConfig:
    """A prefix of its own in the private bucket, behind the recorder."""
    recorder.log.clear()
    recorder.failures, recorder.drop = 0, False
    return StorageConfig.s3_from_config(
        bucket=s3_server.private,
        prefix=f"objects/{uuid.uuid4().hex}",
        region=s3_server.region,
        endpoint_url=recorder.endpoint,
        allow_http=True,
        credentials=icelite.S3Credentials(**s3_server.keys),
    )


def write(repo: Repository, values: np.ndarray, chunk: int, name: str = "x") -> str:
    session = repo.writable_session("main")
    zarr.create_array(session.store, name=name, data=values, chunks=(chunk,), compressors=None, overwrite=True)
    return session.commit(f"write {name}")


def read(repo: Repository, name: str = "x") -> np.ndarray:
    return np.asarray(zarr.open_array(repo.readonly_session("main").store, path=name)[...])


def test_ten_thousand_small_chunks_need_few_requests(tmp_path: Path, place: StorageConfig, recorder: Recorder) -> None:
    values = np.random.default_rng(0).integers(0, 255, 10_000 * 10_240, dtype="u1")
    repo = Repository.create(tmp_path / "a.icelite", objects=place)
    write(repo, values, 10_240)
    puts = recorder.count("PUT") + recorder.count("POST")
    print(f"{puts} uploads for 10,000 chunks of 10 KiB")
    assert puts <= 200
    recorder.log.clear()
    with icelite.enable_fast_reads():  # neighbouring chunks of a pack come with one request
        assert np.array_equal(read(Repository.open(tmp_path / "a.icelite", objects=place)), values)
    print(f"{recorder.count('GET')} downloads")
    assert recorder.count("GET") <= 200


def test_objects_in_a_bucket_need_the_caller(tmp_path: Path, place: StorageConfig) -> None:
    values = np.arange(50_000, dtype="u1")
    write(Repository.create(tmp_path / "a.icelite", objects=place), values, 5000)
    with pytest.raises(InvalidInputError, match="objects='s3://"):
        read(Repository.open(tmp_path / "a.icelite"))
    assert np.array_equal(read(Repository.open(tmp_path / "a.icelite", objects=place)), values)
    text = (tmp_path / "a.icelite").read_bytes()
    assert b"a-secret-of-the-tests" not in text
    assert b"AKIDOFTHETESTS" not in text
    assert "secret" not in repr(Repository.open(tmp_path / "a.icelite", objects=place))


def test_a_service_that_stumbles_is_asked_again(tmp_path: Path, place: StorageConfig, recorder: Recorder) -> None:
    values = np.arange(50_000, dtype="u1")
    repo = Repository.create(tmp_path / "a.icelite", objects=place)
    for drop in (False, True):
        recorder.failures, recorder.drop = 2, drop
        write(repo, values, 5000)
        assert recorder.failures == 0
        assert np.array_equal(read(repo), values)


def test_an_upload_that_fails_for_good_fails_the_commit(
    tmp_path: Path, place: StorageConfig, recorder: Recorder
) -> None:
    values = np.arange(50_000, dtype="u1")
    repo = Repository.create(tmp_path / "a.icelite", objects=place)
    session = repo.writable_session("main")
    zarr.create_array(session.store, name="x", data=values, chunks=(5000,), compressors=None)
    recorder.failures = 10_000
    with pytest.raises(StorageError, match="could not be written") as caught:
        session.commit("no")
    assert "secret" not in str(caught.value)
    assert recorder.count("PUT") <= 60  # bounded
    assert len(list(repo.ancestry(branch="main"))) == 1
    recorder.failures = 0
    session.commit("yes")
    assert np.array_equal(read(repo), values)


def test_wrong_keys_and_missing_buckets_are_told(tmp_path: Path, s3_server: Any) -> None:
    values = np.arange(50_000, dtype="u1")
    options = {**s3_server.place, "prefix": "objects/x"}
    bad = icelite.S3Credentials(access_key_id="AKIDWRONG", secret_access_key="wrong-secret")
    for number, place in enumerate(
        [
            StorageConfig.s3_from_config(bucket=s3_server.private, credentials=bad, **options),
            StorageConfig.s3_from_config(
                bucket="no-such-bucket", credentials=icelite.S3Credentials(**s3_server.keys), **options
            ),
            StorageConfig.s3_anonymous(bucket=s3_server.public, **options),
        ]
    ):
        repo = Repository.create(tmp_path / f"{number}.icelite", objects=place)
        if number == 1:  # the service may make a bucket on writing
            continue
        with pytest.raises(StorageError, match="could not be written") as caught:
            write(repo, values, 5000)
        assert "wrong-secret" not in str(caught.value) + repr(caught.value.__context__)


def test_collecting_and_repacking(tmp_path: Path, place: StorageConfig, recorder: Recorder) -> None:
    values = np.arange(50_000, dtype="u1")
    repo = Repository.create(tmp_path / "a.icelite", objects=place)
    write(repo, values, 5000)
    session = repo.writable_session("main")
    zarr.open_array(session.store, path="x")[:40_000] = 1
    session.commit("most of it")
    expected = read(repo)
    later = datetime.now(UTC) + timedelta(seconds=1)
    repo.expire_snapshots(later)
    assert repo.garbage_collect(later).objects_deleted == 0
    assert repo.repack().objects == 1
    assert repo.garbage_collect(datetime.now(UTC) + timedelta(seconds=1)).objects_deleted == 1
    assert np.array_equal(read(repo), expected)
    assert repo.verify() == []


def test_a_repository_in_a_bucket_keeps_its_chunks_beside_it(place: StorageConfig, recorder: Recorder) -> None:
    values = np.random.default_rng(0).integers(0, 255, 300_000, dtype="u1")
    repo = Repository.create(place)
    write(repo, values, 30_000)
    keys = [path for method, path in recorder.log if method == "PUT"]
    assert any(".chunks/" in path for path in keys)
    assert np.array_equal(read(Repository.open(place)), values)
    assert repo.readonly_session("main").chunk_type("x", [0]) == icelite.ChunkType.native


def test_dask_writes_a_thousand_chunks_with_four_processes(tmp_path: Path, place: StorageConfig) -> None:
    da = pytest.importorskip("dask.array")
    from icelite.dask import store_dask

    values = np.random.default_rng(0).integers(0, 255, (1000, 1000), dtype="u1")
    repo = Repository.create(tmp_path / "a.icelite", objects=place)
    session = repo.writable_session("main")
    array = zarr.create_array(
        session.store, name="x", shape=values.shape, chunks=(1, 1000), dtype="u1", compressors=None
    )
    store_dask(sources=[da.from_array(values, chunks=(1, 1000))], targets=[array], scheduler="processes", num_workers=4)
    session.commit("one commit")
    with icelite.enable_fast_reads():
        assert np.array_equal(read(Repository.open(tmp_path / "a.icelite", objects=place)), values)
    assert len(list(repo.ancestry(branch="main"))) == 2
    assert repo.readonly_session("main").chunk_type("x", [7, 0]) == icelite.ChunkType.native
