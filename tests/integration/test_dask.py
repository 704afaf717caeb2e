"""dask into a session: threads, processes and a cluster; one file, a folder of objects; xarray on top."""

from __future__ import annotations

import os
import pickle
import signal
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr

import icelite
from icelite.errors import InvalidInputError, ReadOnlyError, StorageError
from icelite.types import ChunkType

da = pytest.importorskip("dask.array")
dask_array = pytest.importorskip("icelite.dask")
OBJECTS = [None, "chunks"]
EVERY_CHUNK = icelite.RepositoryConfig(inline_chunk_threshold_bytes=0)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, host="127.0.0.1"
        ) as local,
        distributed.Client(local) as client,
    ):
        yield client


def target(session: icelite.Session, shape: tuple[int, ...], chunks: tuple[int, ...], **options: Any) -> Any:
    return zarr.create_array(session.store, name="x", shape=shape, chunks=chunks, dtype="f4", **options)


def source(shape: tuple[int, ...], chunks: tuple[int, ...]) -> tuple[Any, np.ndarray]:
    values = np.random.default_rng(0).normal(size=shape).astype("f4")
    return da.from_array(values, chunks=chunks), values


@pytest.mark.parametrize("objects", OBJECTS)
@pytest.mark.parametrize("scheduler", ["threads", "synchronous", "processes"])
def test_schedulers(tmp_path: Path, objects: str | None, scheduler: str) -> None:
    repo = icelite.Repository.create(tmp_path / "a.icelite", objects=objects)
    session = repo.writable_session("main")
    array = target(session, (100, 60), (20, 20))
    lazy, values = source((100, 60), (20, 20))
    assert dask_array.store_dask(sources=[lazy], targets=[array], scheduler=scheduler) is session
    assert np.array_equal(array[...], values)  # before the commit
    session.commit("one commit")
    assert np.array_equal(zarr.open_array(repo.readonly_session("main").store, path="x")[...], values)
    assert next(info.message for info in repo.ancestry(branch="main")) == "one commit"
    expected = ChunkType.native if objects else ChunkType.inline
    assert repo.readonly_session("main").chunk_type("x", [0, 0]) == expected
    assert repo.verify() == []


@pytest.mark.parametrize("objects", OBJECTS)
def test_a_cluster(tmp_path: Path, objects: str | None, cluster: Any) -> None:
    repo = icelite.Repository.create(tmp_path / "a.icelite", objects=objects)
    session = repo.writable_session("main")
    first = target(session, (64, 64), (16, 16))
    second = zarr.create_array(session.store, name="deep/y", shape=(), dtype="f8")
    lazy, values = source((64, 64), (16, 32))
    dask_array.store_dask(sources=[lazy, lazy.sum()], targets=[first, second])
    session.commit("by a cluster")
    store = repo.readonly_session("main").store
    assert np.array_equal(zarr.open_array(store, path="x")[...], values)
    assert zarr.open_array(store, path="deep/y")[...] == pytest.approx(values.sum())
    if objects:  # neighbours share an object, and no task wrote through the scheduler
        assert 1 <= sum(path.is_file() for path in (tmp_path / "chunks").rglob("*")) <= 33


@pytest.mark.s3
@pytest.mark.usefixtures("no_aws_settings")
def test_workers_do_not_send_a_catalog_in_a_bucket_for_small_chunks(s3_server: Any, cluster: Any) -> None:
    place = icelite.StorageConfig.s3_from_config(
        bucket=s3_server.private,
        prefix=f"dask-{uuid.uuid4().hex}",
        credentials=icelite.S3Credentials(**s3_server.keys),
        **s3_server.place,
    )
    repo = icelite.Repository.create(place)
    session = repo.writable_session("main")
    array = target(session, (64, 64), (8, 8))
    lazy, values = source((64, 64), (8, 8))
    dask_array.store_dask(sources=[lazy], targets=[array])
    session.commit("by a cluster")
    reading = repo.readonly_session("main")
    assert np.array_equal(zarr.open_array(reading.store, path="x")[...], values)
    assert reading.chunk_type("x", [0, 0]) == ChunkType.native  # though it has less than 512 bytes


def test_a_fork_is_filled_and_merged_as_with_icechunk(tmp_path: Path) -> None:
    repo = icelite.Repository.create(tmp_path / "a.icelite")
    session = repo.writable_session("main")
    target(session, (40,), (10,))
    session.commit("an array")
    session = repo.writable_session("main")
    fork = session.fork()
    lazy, values = source((40,), (10,))
    merged = dask_array.store_dask(sources=[lazy], targets=[zarr.open_array(fork.store, path="x")])
    session.merge(pickle.loads(pickle.dumps(merged)))
    session.commit("filled")
    assert np.array_equal(zarr.open_array(repo.readonly_session("main").store, path="x")[...], values)


def test_regions_and_partial_chunks_keep_what_is_beside_them(tmp_path: Path) -> None:
    repo = icelite.Repository.create(tmp_path / "a.icelite")
    session = repo.writable_session("main")
    array = target(session, (50,), (10,))
    array[:] = -1
    lazy, values = source((33,), ((5, 20, 8),))
    dask_array.store_dask(sources=[lazy], targets=[array], regions=[(slice(5, 38),)])
    expected = np.full(50, -1, dtype="f4")
    expected[5:38] = values
    assert np.array_equal(array[...], expected)


def test_chunks_of_fill_value_replace_what_was_there(tmp_path: Path) -> None:
    repo = icelite.Repository.create(tmp_path / "a.icelite")
    session = repo.writable_session("main")
    array = target(session, (40,), (10,), fill_value=0)
    array[:] = 5
    dask_array.store_dask(sources=[da.zeros(40, chunks=10, dtype="f4")], targets=[array])
    assert np.array_equal(array[...], np.zeros(40))
    assert session.chunk_type("x", [0]) == ChunkType.uninitialized


def test_shards_are_written_whole(tmp_path: Path) -> None:
    repo = icelite.Repository.create(tmp_path / "a.icelite", objects="chunks")
    session = repo.writable_session("main")
    array = target(session, (40, 40), (5, 5), shards=(20, 20))
    lazy, values = source((40, 40), (20, 40))
    dask_array.store_dask(sources=[lazy], targets=[array], scheduler="threads")
    assert np.array_equal(array[...], values)
    with pytest.raises(InvalidInputError, match="inside a chunk of 20"):
        dask_array.store_dask(sources=[lazy.rechunk(10)], targets=[array])


def test_what_cannot_be_written_changes_nothing(tmp_path: Path) -> None:
    repo = icelite.Repository.create(tmp_path / "a.icelite")
    session = repo.writable_session("main")
    array = target(session, (40,), (10,))
    other = zarr.create_array(repo.writable_session("main").store, name="x", shape=40, dtype="f4")
    lazy, _ = source((40,), (10,))
    for arguments, words in [
        ({"sources": [lazy.rechunk(15)], "targets": [array]}, "ends at element 15"),
        ({"sources": [lazy[:30]], "targets": [array]}, "does not fill"),
        ({"sources": [lazy], "targets": [array], "regions": [(slice(5, 45),)]}, "does not fill"),
        ({"sources": [lazy], "targets": [array, array]}, "do not match"),
        ({"sources": [lazy, lazy], "targets": [array, other]}, "one session"),
        ({"sources": [np.zeros(40)], "targets": [array]}, "not ndarray"),
        ({"sources": [lazy], "targets": [zarr.zeros((40,))]}, "one session"),
        ({"sources": [lazy], "targets": [array], "compute": False}, "compute"),
    ]:
        with pytest.raises(InvalidInputError, match=words):
            dask_array.store_dask(**arguments)
    session.commit("empty")
    with pytest.raises(ReadOnlyError):
        dask_array.store_dask(
            sources=[lazy], targets=[zarr.open_array(repo.readonly_session("main").store, path="x", mode="r")]
        )


def test_a_task_that_fails_leaves_the_session_as_it_was(tmp_path: Path) -> None:
    repo = icelite.Repository.create(tmp_path / "a.icelite", objects="chunks")
    session = repo.writable_session("main")
    array = target(session, (40,), (10,))
    array[:] = 3
    session.changes.chunks.flush()
    lazy, _ = source((40,), (10,))

    def broken(block: np.ndarray, block_info: Any = None) -> np.ndarray:
        raise OSError("the instrument is off")

    with pytest.raises(OSError, match="instrument"):
        dask_array.store_dask(
            sources=[lazy.map_blocks(broken, dtype="f4", meta=np.empty(0, "f4"))], targets=[array], scheduler="threads"
        )
    assert np.array_equal(array[...], np.full(40, 3))
    (tmp_path / "chunks").write_text("in the way")
    zeros = da.arange(40, chunks=10, dtype="f4")
    big = zarr.create_array(session.store, name="big", shape=4000, chunks=1000, dtype="f4")
    with pytest.raises(StorageError):
        dask_array.store_dask(sources=[da.arange(4000, chunks=1000, dtype="f4")], targets=[big], scheduler="threads")
    dask_array.store_dask(sources=[zeros], targets=[array], scheduler="threads")  # small: in the catalog


# -- xarray ------------------------------------------------------------------------------------------------------


def dataset() -> xr.Dataset:
    values = np.random.default_rng(1).normal(size=(12, 6, 8)).round(2)
    return xr.Dataset(
        {"t": (("time", "y", "x"), values, {"units": "K"}), "mask": (("y", "x"), np.eye(6, 8, dtype="i1"))},
        {"time": np.arange(12), "x": np.arange(8.0)},
        {"title": "test"},
    )


@pytest.mark.parametrize("scheduler", ["threads", "processes"])
def test_a_dataset_is_written_appended_and_read_back(tmp_path: Path, scheduler: str) -> None:
    from icelite.xarray import to_icelite

    whole = dataset()
    lazy = whole.chunk(time=4)
    repo = icelite.Repository.create(tmp_path / "a.icelite", objects="chunks")
    options: dict[str, Any] = {"scheduler": scheduler}
    encoding = {"t": {"dtype": "i2", "scale_factor": 0.01, "_FillValue": -32768}}
    session = repo.writable_session("main")
    to_icelite(lazy.isel(time=slice(8)), session, encoding=encoding, chunkmanager_store_kwargs=options)
    session.commit("eight")
    session = repo.writable_session("main")
    to_icelite(
        lazy.isel(time=slice(8, 12)).drop_vars("mask"), session, append_dim="time", chunkmanager_store_kwargs=options
    )
    session.commit("twelve")
    with xr.open_dataset(tmp_path / "a.icelite") as found:
        xr.testing.assert_allclose(found.load(), whole, atol=1e-9)
    session = repo.writable_session("main")
    patch = (lazy[["t"]].isel(time=slice(4, 8)) + 1).drop_vars("x")
    to_icelite(patch, session, region="auto", chunkmanager_store_kwargs=options)
    session.commit("patched")
    with xr.open_dataset(tmp_path / "a.icelite") as found:
        assert np.allclose(found.t[4:8], whole.t[4:8] + 1)
        assert np.allclose(found.t[8:], whole.t[8:])


def test_a_data_array_a_group_and_modes(tmp_path: Path) -> None:
    from icelite.xarray import to_icelite

    repo = icelite.Repository.create(tmp_path / "a.icelite")
    session = repo.writable_session("main")
    to_icelite(dataset().t, session, group="deep/er")
    with pytest.raises(FileExistsError):
        to_icelite(dataset().t, session, group="deep/er", mode="w-")
    to_icelite(dataset().t.chunk(time=3) * 2, session, group="deep/er", mode="w")
    session.commit("twice")
    with xr.open_dataset(tmp_path / "a.icelite", group="deep/er") as found:
        assert np.array_equal(found.t, dataset().t * 2)
    with pytest.raises(InvalidInputError, match="not ndarray"):
        to_icelite(np.zeros(3), repo.writable_session("main"))  # type: ignore[arg-type]
    with pytest.raises(ReadOnlyError):
        to_icelite(dataset(), repo.readonly_session("main"))


# -- arrays of every kind ----------------------------------------------------------------------------------------

RECORD = np.dtype([("a", "i4"), ("b", "f8")])
KINDS = {
    "zero length": (np.zeros((0, 3), "f4"), (5, 3), {}),
    "no dimension": (np.array(5.0), (), {}),
    "structured": (np.array([(1, 2.0), (3, 4.0), (5, 6.0)], RECORD), (2,), {}),
    "Zarr v2": (np.arange(35, dtype="i2").reshape(5, 7), (2, 3), {"zarr_format": 2}),
    "booleans": (np.eye(4, dtype="?"), (2, 2), {}),
}


@pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning")
@pytest.mark.parametrize("name", ["", "deep/x"])
@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_arrays(tmp_path: Path, kind: str, name: str) -> None:
    values, chunks, options = KINDS[kind]
    repo = icelite.Repository.create(tmp_path / "a.icelite", EVERY_CHUNK, objects="chunks")
    session = repo.writable_session("main")
    options = {"shape": values.shape, "chunks": chunks, "dtype": values.dtype, **options}
    array = zarr.create_array(session.store, name=name or None, **options)
    dask_array.store_dask(sources=[da.from_array(values, chunks=chunks)], targets=[array], scheduler="threads")
    session.commit(kind)
    found = zarr.open_array(repo.readonly_session("main").store, path=name, mode="r")
    assert np.array_equal(found[...], values)


@pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning")
def test_text(tmp_path: Path) -> None:
    session = icelite.Repository.create(tmp_path / "a.icelite", EVERY_CHUNK, objects="chunks").writable_session("main")
    array = zarr.create_array(session.store, name="s", shape=4, chunks=2, dtype=str)
    text = np.array(["a", "bb", "", "ccc"], dtype=object)
    dask_array.store_dask(sources=[da.from_array(text, chunks=2)], targets=[array], scheduler="threads")
    assert array[...].tolist() == text.tolist()


def test_sources_may_share_an_array_but_no_chunk(tmp_path: Path) -> None:
    session = icelite.Repository.create(tmp_path / "a.icelite").writable_session("main")
    array = target(session, (10,), (4,))
    lazy, values = source((10,), (10,))
    with pytest.raises(InvalidInputError, match="two sources write to the same chunk"):
        dask_array.store_dask(
            sources=[lazy[:5], lazy[5:]], targets=[array, array], regions=[(slice(0, 5),), (slice(5, 10),)]
        )
    dask_array.store_dask(
        sources=[lazy[:4], lazy[4:]], targets=[array, array], regions=[(slice(0, 4),), (slice(4, 10),)]
    )
    assert np.array_equal(array[...], values)


def test_nothing_stays_open_in_this_process(tmp_path: Path) -> None:
    session = icelite.Repository.create(tmp_path / "a.icelite").writable_session("main")
    array = target(session, (40,), (10,))
    dask_array.store_dask(sources=[source((40,), (10,))[0]], targets=[array], scheduler="threads")
    assert not dask_array._workshops


def conflict(block: np.ndarray) -> np.ndarray:
    raise icelite.ConflictError("in a worker", expected_parent="a", actual_parent="b")


def die_once(block: np.ndarray, place: str) -> np.ndarray:
    """Kill the worker the first time, in the middle of its work."""
    try:
        Path(place).touch(exist_ok=False)
    except FileExistsError:
        return block
    os.kill(os.getpid(), signal.SIGKILL)
    return block


def test_errors_of_workers_arrive_whole(tmp_path: Path) -> None:
    session = icelite.Repository.create(tmp_path / "a.icelite").writable_session("main")
    array = target(session, (40,), (10,))
    broken = da.zeros(40, chunks=10).map_blocks(conflict, dtype="f4", meta=np.empty(0, "f4"))
    with pytest.raises(icelite.ConflictError) as caught:
        dask_array.store_dask(sources=[broken], targets=[array], scheduler="processes", num_workers=1)
    assert (caught.value.expected_parent, caught.value.actual_parent) == ("a", "b")
    assert caught.value.kind == "commit-conflict"


def test_a_task_that_runs_twice_leaves_orphans_only(tmp_path: Path) -> None:
    repo = icelite.Repository.create(tmp_path / "a.icelite", EVERY_CHUNK, objects="chunks")
    session = repo.writable_session("main")
    array = target(session, (4,), (4,), compressors=None)
    workshop = dask_array.Workshop("twice", pickle.dumps(session.fork()))
    values = np.arange(4, dtype="f4")
    written = [
        dask_array._write_blocks(workshop, [block], path="x", spans=[((0, 4),)], write_empty=True)
        for block in (values * 9, values)
    ]
    dask_array._workshops.pop("twice")
    dask_array._take(session, written[1:])
    session.commit("the second one")
    assert np.array_equal(zarr.open_array(repo.readonly_session("main").store, path="x")[...], values)
    assert array.shape == (4,)
    time.sleep(0.002)
    assert repo.garbage_collect(datetime.now(UTC)).objects_deleted == 1
    assert np.array_equal(zarr.open_array(repo.readonly_session("main").store, path="x")[...], values)


def test_a_worker_that_is_killed_is_replaced(tmp_path: Path, cluster: Any) -> None:
    repo = icelite.Repository.create(tmp_path / "a.icelite", EVERY_CHUNK, objects="chunks")
    session = repo.writable_session("main")
    array = target(session, (64,), (1,))
    lazy, values = source((64,), (1,))
    deadly = lazy.map_blocks(die_once, str(tmp_path / "died"), dtype="f4", meta=np.empty(0, "f4"))
    dask_array.store_dask(sources=[deadly], targets=[array])
    session.commit("all the same")
    assert (tmp_path / "died").exists()
    assert np.array_equal(zarr.open_array(repo.readonly_session("main").store, path="x")[...], values)
    assert repo.verify() == []


# -- xarray's own checks -----------------------------------------------------------------------------------------


def test_checks_and_modes_are_those_of_to_zarr(tmp_path: Path) -> None:
    from icelite.xarray import to_icelite

    repo = icelite.Repository.create(tmp_path / "a.icelite", objects="chunks")
    session = repo.writable_session("main")
    whole = dataset().drop_vars("mask")
    with pytest.raises(TypeError, match="Invalid name"):
        to_icelite(whole.rename(t=5), session)
    to_icelite(whole.chunk(time=4), session, encoding={"t": {"chunks": (2, 6, 8), "shards": (4, 6, 8)}})
    assert zarr.open_array(session.store, path="t").shards == (4, 6, 8)
    session.commit("base")
    session = repo.writable_session("main")
    part = (whole.isel(time=slice(1, 3)) + 5).drop_vars(["x", "time"])
    with pytest.raises(ValueError, match="chunk"):
        to_icelite(part.chunk(time=1), session, region={"time": slice(1, 3)})
    with pytest.raises(InvalidInputError, match="inside a chunk of 4"):
        to_icelite(part.chunk(time=1), session, region={"time": slice(1, 3)}, safe_chunks=False)
    to_icelite(part.chunk(time=2), session, region={"time": slice(1, 3)}, safe_chunks=False)
    to_icelite(xr.Dataset({"u": ("x", np.arange(8))}), session, mode="a")
    session.commit("patched")
    with xr.open_dataset(tmp_path / "a.icelite") as found:
        assert np.allclose(found.t[1:3], whole.t[1:3] + 5)
        assert np.allclose(found.t[3:], whole.t[3:])
        assert found.u.sum() == 28


def test_appending_to_nothing_to_zarr_v2_and_without_dask(tmp_path: Path) -> None:
    from icelite.xarray import to_icelite

    session = icelite.Repository.create(tmp_path / "a.icelite").writable_session("main")
    whole = dataset().drop_vars("mask")
    none = whole.isel(time=slice(0, 0))
    to_icelite(none.chunk(time=4), session)
    to_icelite(whole, session, append_dim="time")
    old = icelite.Repository.create(tmp_path / "old.icelite").writable_session("main")
    none.to_zarr(old.store, zarr_format=2, consolidated=False, encoding={"t": {"chunks": (4, 6, 8)}})
    to_icelite(whole.chunk(time=4), old, append_dim="time")
    assert zarr.open_group(old.store).metadata.zarr_format == 2
    for store in (session.store, old.store):
        with xr.open_dataset(store, engine="icelite") as found:
            assert np.array_equal(found.t, whole.t)
    with pytest.raises(FileNotFoundError):
        to_icelite(whole, session, group="nowhere", mode="r+")


def test_blocks_that_a_cluster_holds_already(tmp_path: Path, cluster: Any) -> None:
    repo = icelite.Repository.create(tmp_path / "a.icelite", objects="chunks")
    session = repo.writable_session("main")
    lazy, values = source((64, 64), (16, 32))
    held = cluster.persist(lazy + 1)
    dask_array.store_dask(sources=[held], targets=[target(session, (64, 64), (16, 16))])
    session.commit("from memory")
    assert np.array_equal(zarr.open_array(repo.readonly_session("main").store, path="x")[...], values + 1)
