"""Code as it is written for Icechunk and VirtualiZarr, with the import changed: aliases, paths, accessors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr

import icelite as icechunk

SCRIPT = """
import {first}
import {second}
import numpy as np, xarray as xr
import icelite as icechunk
from icelite.formats import open_virtual

xr.Dataset({{"sst": ("x", np.arange(4.0))}}).to_netcdf("day.nc", engine="h5netcdf")
session = icechunk.Repository.create("ocean.icelite").writable_session("main")
open_virtual("day.nc").vz.to_icechunk(session.store)
tree = xr.DataTree.from_dict({{"/below": open_virtual("day.nc")}})
session.commit("a day")
other = icechunk.Repository.create("tree.icelite").writable_session("main")
tree.vz.to_icechunk(other.store, write_inherited_coords=True)
assert xr.open_dataset("ocean.icelite").sst.values.tolist() == [0, 1, 2, 3]
assert xr.open_dataset(other.store, engine="icelite", group="below").sst.values.tolist() == [0, 1, 2, 3]
assert [source.references for source in icechunk.Repository.open("ocean.icelite").sources()] == [1]
"""


@pytest.mark.parametrize(
    ("first", "second"),
    [("icelite", "virtualizarr"), ("virtualizarr", "icelite"), ("icelite", "virtualizarr.writers.icechunk")],
)
def test_virtualizarrs_accessor_writes_to_a_store(first: str, second: str, tmp_path: Path) -> None:
    pytest.importorskip("virtualizarr")
    pytest.importorskip("h5netcdf")
    script = SCRIPT.format(first=first, second=second)
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_virtualizarrs_older_accessor_and_other_stores(tmp_path: Path) -> None:
    pytest.importorskip("virtualizarr")
    pytest.importorskip("h5netcdf")
    from icelite.formats import open_virtual

    xr.Dataset({"sst": (("t", "x"), np.arange(4.0)[None])}).to_netcdf(tmp_path / "day.nc", engine="h5netcdf")
    store = icechunk.IceliteStore.create(storage=icechunk.local_filesystem_storage(str(tmp_path / "a.icelite")))
    dataset = open_virtual(tmp_path / "day.nc")
    with pytest.warns(DeprecationWarning, match="renamed"):
        dataset.virtualize.to_icechunk(store, group="g")
    dataset.vz.to_icechunk(store, group="g", append_dim="t")
    assert zarr.open_array(store, path="g/sst")[:].tolist() == [[0, 1, 2, 3]] * 2
    with pytest.raises((TypeError, ImportError)):
        dataset.vz.to_icechunk(zarr.storage.MemoryStore())


def test_names_of_icechunk() -> None:
    assert icechunk.IcechunkError is icechunk.IceliteError
    assert icechunk.IcechunkStore is icechunk.IceliteStore
    with pytest.raises(icechunk.IcechunkError):
        icechunk.Repository.create(icechunk.in_memory_storage()).lookup_branch("absent")


def test_a_dataset_is_written_under_icechunks_name() -> None:
    from icelite.xarray import to_icechunk

    session = icechunk.Repository.create(icechunk.in_memory_storage()).writable_session("main")
    to_icechunk(xr.Dataset({"a": ("x", np.arange(3))}), session)
    assert xr.open_zarr(session.store, consolidated=False).a.values.tolist() == [0, 1, 2]


@pytest.mark.parametrize("scheduler", ["threads", "processes"])
def test_arrays_that_dask_stored_itself_are_merged(scheduler: str, tmp_path: Path) -> None:
    dask_array = pytest.importorskip("dask.array")
    from icelite.dask import session_merge_reduction

    session = icechunk.Repository.create(tmp_path / "a.icelite").writable_session("main")
    for name in ("a", "b"):
        zarr.create_array(session.store, name=name, shape=(8, 6), chunks=(2, 3), dtype="f8")
    session.commit("arrays")
    session = reopened(tmp_path)
    fork = session.fork()
    values = np.arange(48.0).reshape(8, 6)
    stored = dask_array.store(
        [dask_array.from_array(values + number, chunks=(2, 3)) for number in range(2)],
        [zarr.open_array(fork.store, path=name) for name in ("a", "b")],
        compute=False,
        return_stored=True,
        load_stored=False,
        lock=False,
    )
    session.merge(session_merge_reduction(stored, split_every=None, scheduler=scheduler))
    for number, name in enumerate(("a", "b")):
        np.testing.assert_array_equal(zarr.open_array(session.store, path=name)[:], values + number)


def reopened(folder: Path) -> Any:
    return icechunk.Repository.open(folder / "a.icelite").writable_session("main")


def test_forks_in_lists_are_merged(tmp_path: Path) -> None:
    from icelite.distributed import extract_session, merge_sessions

    session = icechunk.Repository.create(tmp_path / "a.icelite").writable_session("main")
    zarr.create_array(session.store, name="a", shape=(3,), chunks=(1,), dtype="i4")
    session.commit("array")
    session = reopened(tmp_path)
    forks = [session.fork() for _ in range(3)]
    for number, fork in enumerate(forks):
        array = zarr.open_array(fork.store, path="a")
        array[number] = number + 1
        assert extract_session(array) is fork
    session.merge(merge_sessions(forks[0], [[forks[1]], forks[2], forks[0]]))
    assert zarr.open_array(session.store, path="a")[:].tolist() == [1, 2, 3]
    with pytest.raises(icechunk.SessionStateError, match=r"session\.merge"):
        merge_sessions(session)
    with pytest.raises(icechunk.InvalidInputError, match="at least one"):
        merge_sessions([])
    with pytest.raises(icechunk.InvalidInputError, match="MemoryStore"):
        extract_session(zarr.create_array(zarr.storage.MemoryStore(), shape=(1,), dtype="i4"))
