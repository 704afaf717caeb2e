"""Exporting: a snapshot as plain Zarr anywhere, equal to the last byte; all of it, or nothing that opens."""

from __future__ import annotations

import asyncio
import json
import os
import warnings
from pathlib import Path
from typing import Any

import boto3
import fsspec
import numpy as np
import pytest
import xarray as xr
import zarr
from moto.server import ThreadedMotoServer
from zarr.storage import FsspecStore, LocalStore, ZipStore

import icelite
from icelite.errors import AlreadyExistsError, ErrorKind, IceliteError, InvalidInputError, StorageError
from icelite.ops import export_zarr


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def dataset() -> xr.Dataset:
    """Packed values with missing ones, a scalar, text attributes."""
    values = np.where(np.arange(24.0).reshape(4, 6) % 5 == 0, np.nan, np.arange(24.0).reshape(4, 6))
    ds = xr.Dataset(
        {"sst": (("time", "x"), values, {"units": "K"}), "count": ((), np.int32(7))},
        coords={"time": np.arange("2024-08-01", "2024-08-05", dtype="M8[D]").astype("M8[ns]"), "x": np.arange(6.0)},
        attrs={"title": "ocean"},
    )
    ds.sst.encoding = {"dtype": "int16", "scale_factor": 0.5, "_FillValue": -999, "chunks": (2, 4)}
    return ds


def test_virtual_chunks_byte_for_byte(archive: Any, tmp_path: Path) -> None:
    done = archive.repository.export_zarr(tmp_path / "out.zarr")
    assert done.target == str(tmp_path / "out.zarr")
    assert (done.snapshot_id, done.nodes, done.chunks) == (archive.first, 2, 6)
    found = files(tmp_path / "out.zarr")
    assert done.bytes == sum(map(len, found.values()))
    assert {key for key in found if "/c/" in key} == {f"x/c/{n}" for n in range(6)}
    for number in range(6):
        data = archive.files[number // 2].read_bytes()
        assert found[f"x/c/{number}"] == data[50 * (number % 2) :][:50]
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "out.zarr", path="x", mode="r")[:], archive.values)


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("target", ["out.zarr", "out.zip", "memory://export/{}"])
def test_equal_by_xarray(
    tmp_path: Path, dataset: xr.Dataset, zarr_format: int, target: str, request: pytest.FixtureRequest
) -> None:
    repo = icelite.Repository.create(tmp_path / "x.icelite")
    session = repo.writable_session("main")
    dataset.to_zarr(session.store, zarr_format=zarr_format, consolidated=False)
    session.commit("a dataset")
    place = target.format(request.node.name) if "://" in target else str(tmp_path / target)
    done = repo.export_zarr(place)
    store: Any = place
    if place.endswith(".zip"):
        store = ZipStore(place, mode="r")
    elif "://" in place:
        store = FsspecStore.from_url(place, read_only=True)
    with xr.open_zarr(store, consolidated=False) as found:
        xr.testing.assert_identical(found.load(), dataset)
    names = {"zarr.json"} if zarr_format == 3 else {".zgroup", ".zattrs"}
    with xr.open_zarr(repo.readonly_session("main").store, consolidated=False) as expected:
        assert len(expected.variables) + 1 == done.nodes
    if place.endswith(".zarr"):
        assert {path.name for path in Path(place).iterdir() if path.is_file()} == names


def test_a_snapshot_a_tag_and_a_group(archive: Any, tmp_path: Path) -> None:
    repo = archive.repository
    repo.create_tag("v1", archive.first)
    session = repo.writable_session("main")
    zarr.create_array(session.store, name="a/b/y", shape=(3,), chunks=(1,), dtype="i2")[:] = [1, 2, 3]
    zarr.open_array(session.store, path="x")[:50] = 9
    second = session.commit("more")
    repo.export_zarr(tmp_path / "tag.zarr", tag="v1")
    assert "a" not in zarr.open_group(tmp_path / "tag.zarr", mode="r")
    assert repo.export_zarr(tmp_path / "new.zarr", snapshot_id=second).snapshot_id == second
    assert set(zarr.open_array(tmp_path / "new.zarr", path="x", mode="r")[:50]) == {9}
    assert repo.export_zarr(tmp_path / "group.zarr", branch="main", group="/a").nodes == 3
    assert zarr.open_group(tmp_path / "group.zarr", mode="r")["b/y"][:].tolist() == [1, 2, 3]
    assert repo.export_zarr(tmp_path / "array.zarr", group="a/b/y").chunks == 3
    assert zarr.open_array(tmp_path / "array.zarr", mode="r")[:].tolist() == [1, 2, 3]
    with pytest.raises(icelite.NodeNotFoundError):
        repo.export_zarr(tmp_path / "none.zarr", group="gone")
    with pytest.raises(InvalidInputError):
        repo.export_zarr(tmp_path / "none.zarr", branch="main", tag="v1")
    assert not (tmp_path / "none.zarr").exists()


def test_an_existing_target_stays_unless_told(archive: Any, tmp_path: Path) -> None:
    target = tmp_path / "out.zarr"
    target.mkdir()
    archive.repository.export_zarr(target)  # an empty directory is free
    before = files(target)
    (target / "mine").write_text("mine")
    with pytest.raises(AlreadyExistsError) as caught:
        archive.repository.export_zarr(target)
    assert caught.value.kind == ErrorKind.TARGET_ALREADY_EXISTS
    assert (target / "mine").exists()
    archive.repository.export_zarr(target, overwrite=True)
    assert files(target) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "out.zarr"]


def test_an_existing_target_elsewhere(archive: Any) -> None:
    place = "memory://existing/out.zarr"
    archive.repository.export_zarr(place)
    memory = fsspec.filesystem("memory")
    memory.pipe("/existing/out.zarr/mine", b"mine")
    with pytest.raises(AlreadyExistsError):
        archive.repository.export_zarr(place)
    archive.repository.export_zarr(place, overwrite=True)
    assert not memory.exists("/existing/out.zarr/mine")
    assert memory.exists("/existing/out.zarr/zarr.json")


@pytest.mark.parametrize("target", ["out.zarr", "out.zip"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_an_interrupted_export_leaves_what_was_there(
    archive: Any, tmp_path: Path, target: str, overwrite: bool
) -> None:
    if overwrite:
        archive.repository.export_zarr(tmp_path / target)
    archive.files[2].unlink()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(StorageError, match=r"2\.bin"):
        archive.repository.export_zarr(tmp_path / target, overwrite=overwrite)
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert after.keys() == before.keys()
    assert all(after[path] == before[path] for path in before if path.is_file())


def test_elsewhere_nothing_opens_before_the_end(archive: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    place = "memory://interrupted/out.zarr"
    archive.repository.export_zarr(place)
    archive.files[2].unlink()
    with pytest.raises(StorageError):
        archive.repository.export_zarr(place, overwrite=True)
    with pytest.raises(FileNotFoundError):
        zarr.open_group(FsspecStore.from_url(place, read_only=True), mode="r")


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_chunks_first_and_the_root_last(tmp_path: Path, zarr_format: int, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = icelite.Repository.create(tmp_path / "x.icelite")
    session = repo.writable_session("main")
    root = zarr.create_group(session.store, zarr_format=zarr_format, attributes={"a": 1})
    root.create_group("g").create_array("y", shape=(4,), chunks=(1,), dtype="i2")[:] = 1
    session.commit("a group")
    written: list[str] = []
    write = FsspecStore.set

    async def note(self: FsspecStore, key: str, value: Any, *arguments: Any) -> None:
        written.append(key)
        await write(self, key, value, *arguments)

    monkeypatch.setattr(FsspecStore, "set", note)
    repo.export_zarr(f"memory://order{zarr_format}/out.zarr")
    chunks = [key for key in written if key.startswith("g/y/") and "." not in key]
    assert len(chunks) == 4
    assert written[:4] == chunks
    assert written[-1] == ("zarr.json" if zarr_format == 3 else ".zgroup")
    assert len([key for key in written if "/" not in key]) == (1 if zarr_format == 3 else 2)


def test_consolidated_on_request(archive: Any, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.repository.export_zarr(tmp_path / "out.zarr", consolidated=True)
    document = json.loads((tmp_path / "out.zarr" / "zarr.json").read_text())
    assert "x" in document["consolidated_metadata"]["metadata"]
    archive.repository.export_zarr(tmp_path / "plain.zarr")
    assert "consolidated_metadata" not in (tmp_path / "plain.zarr" / "zarr.json").read_text()


def test_values_go_together_but_not_too_many(archive: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_zarr, "VALUES_AT_ONCE", 4)
    running = most = 0
    write = LocalStore.set

    async def note(self: LocalStore, *arguments: Any) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001)
        await write(self, *arguments)
        running -= 1

    monkeypatch.setattr(LocalStore, "set", note)
    calls: list[tuple[int, int]] = []
    archive.repository.export_zarr(tmp_path / "out.zarr", progress=lambda *step: calls.append(step))
    assert most == 4
    assert calls == [(4, 8), (6, 8), (7, 8), (8, 8)]
    monkeypatch.setattr(export_zarr, "BYTES_AT_ONCE", 100)
    most = 0
    archive.repository.export_zarr(tmp_path / "small.zarr")
    assert most == 2


@pytest.mark.parametrize("target", ["", "out\0.zarr", "nonsense://bucket/out.zarr", "s3://bucket/out.zip"])
def test_targets_that_are_none(archive: Any, target: str) -> None:
    with pytest.raises(IceliteError) as caught:
        archive.repository.export_zarr(target)
    assert caught.value.kind in (ErrorKind.INVALID_PATH, ErrorKind.UNSUPPORTED_STORAGE)


def test_a_target_that_cannot_be_written(archive: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError) as caught:
        archive.repository.export_zarr(tmp_path / "file" / "out.zarr")
    assert caught.value.kind == ErrorKind.IO
    assert str(tmp_path / "file" / "out.zarr") in str(caught.value)


def test_an_empty_snapshot(tmp_path: Path) -> None:
    repo = icelite.Repository.create(tmp_path / "x.icelite")
    with pytest.raises(icelite.NodeNotFoundError):
        repo.export_zarr(tmp_path / "out.zarr")


def test_a_relative_target_and_a_file_url(archive: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    archive.repository.export_zarr("out.zarr")
    archive.repository.export_zarr((tmp_path / "two.zarr").as_uri())
    assert files(tmp_path / "out.zarr") == files(tmp_path / "two.zarr")


async def test_for_event_loops(archive: Any, tmp_path: Path) -> None:
    await archive.repository.export_zarr_async(tmp_path / "out.zarr")
    assert (tmp_path / "out.zarr" / "zarr.json").exists()


@pytest.mark.s3
def test_to_a_bucket(archive: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        endpoint = "http://{}:{}".format(*server.get_host_and_port())
        keys = {"aws_access_key_id": "a", "aws_secret_access_key": "b"}
        client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", **keys)
        client.create_bucket(Bucket="bucket")
        options = {"key": "a", "secret": "hush-secret", "endpoint_url": endpoint}
        archive.repository.export_zarr("s3://bucket/out.zarr", storage_options=options)
        store = FsspecStore.from_url("s3://bucket/out.zarr", storage_options=options, read_only=True)
        np.testing.assert_array_equal(zarr.open_array(store, path="x", mode="r")[:], archive.values)
        with pytest.raises(StorageError) as caught:
            archive.repository.export_zarr("s3://gone/out.zarr", storage_options=options)
        assert caught.value.kind == ErrorKind.IO
        assert "hush" not in str(caught.value)
    finally:
        server.stop()


def test_a_target_inside_a_thousand_folders_is_refused(archive: Any, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError) as caught:
        archive.repository.export_zarr(tmp_path / "/".join("d" * 1_000))
    assert caught.value.kind == "invalid-path"
    assert not (tmp_path / "d").exists()
