"""Chunks of loaded values: the caller's stay, the source's do not, and what grows every night has room for years."""

from __future__ import annotations

from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import oisst
import pytest
import xarray as xr
import zarr

import icelite

pytest.importorskip("virtualizarr")
GRID = (6, 12)
FIRST = date(2024, 8, 30)


def stored(catalog: Path, name: str) -> Any:
    return zarr.open_array(icelite.Repository.open(catalog).readonly_session("main").store, path=name, mode="r")


def add_nightly(folder: Path, count: int, **options: Any) -> Path:
    catalog = folder / "a.icelite"
    for number in range(count):
        (file,) = oisst.write_days(folder / "oisst", FIRST + timedelta(days=number), 1, GRID)
        icelite.virtualize(str(file), catalog, concat_dim="time", **options)
    return catalog


def test_a_coordinate_that_grows_every_night_is_one_chunk_for_years(tmp_path: Path) -> None:
    catalog = add_nightly(tmp_path, 4)
    assert stored(catalog, "time").chunks == (1024,)
    assert stored(catalog, "lat").chunks == (GRID[0],)
    repo = icelite.Repository.open(catalog)
    assert len(repo.readonly_session("main").chunk_refs("time")) == 1
    with xr.open_dataset(catalog) as found:
        expected = np.datetime64(FIRST.isoformat()) + np.arange(4) * np.timedelta64(1, "D") + np.timedelta64(12, "h")
        assert (found.time.values == expected).all()
    assert repo.verify() == []


def test_what_a_night_adds_is_little(tmp_path: Path) -> None:
    """All coordinates together are at most 8 kB a night, however many there are and however they compress."""
    catalog = tmp_path / "a.icelite"
    for number in range(3):
        with xr.Dataset(
            {"x": (("time", "cell"), np.ones((1, 4)))},
            coords={
                "time": ("time", [np.datetime64("2024-01-01", "ns") + np.timedelta64(number, "D")]),
                "run": ("time", np.random.default_rng(number).random(1)),
                "edges": (("time", "pair"), np.random.default_rng(9 + number).random((1, 2))),
            },
        ) as dataset:
            dataset.to_netcdf(tmp_path / f"{number}.nc", unlimited_dims=["time"])
        names = ["time", "run", "edges"]
        icelite.virtualize(str(tmp_path / f"{number}.nc"), catalog, concat_dim="time", loadable_variables=names)
    chunks = {name: stored(catalog, name).chunks for name in names}
    assert chunks == {"time": (341,), "run": (341,), "edges": (170, 2)}
    with xr.open_dataset(catalog) as found:
        assert found.run.values.tolist() == [np.random.default_rng(number).random() for number in range(3)]


def test_values_that_are_large_keep_their_own_chunks(tmp_path: Path) -> None:
    add_nightly(tmp_path, 2, loadable_variables=["time", "zlev", "lat", "lon", "sst"])
    assert stored(tmp_path / "a.icelite", "time").chunks[0] >= 16
    big = tmp_path / "big"
    big.mkdir()
    file = oisst.write_day(big / "a.nc", FIRST, (36, 72))
    icelite.virtualize(str(file), big / "a.icelite", concat_dim="time", loadable_variables=["sst"])
    assert stored(big / "a.icelite", "sst").shape == stored(big / "a.icelite", "sst").chunks == (1, 1, 36, 72)


def test_chunks_that_the_caller_chose_stay(tmp_path: Path) -> None:
    def choose(dataset: xr.Dataset) -> xr.Dataset:
        dataset["time"].encoding["chunks"] = (7,)
        return dataset

    assert stored(add_nightly(tmp_path, 2, preprocess=choose, workers=1), "time").chunks == (7,)
    day = icelite.open_virtual(str(next((tmp_path / "oisst").iterdir())))
    day["time"].encoding["chunks"] = (4096,)
    repo = icelite.Repository.create(tmp_path / "b.icelite")
    session = repo.writable_session("main")
    icelite.virtualizarr.to_icelite(day, session.store)
    session.commit("a day")
    assert stored(tmp_path / "b.icelite", "time").chunks == (4096,)
    assert stored(tmp_path / "b.icelite", "lat").chunks == (GRID[0],)


@pytest.mark.parametrize("chunks", [(3, 3), (0,), (2.5,), -1])
def test_chunks_that_do_not_fit_are_refused(tmp_path: Path, chunks: Any) -> None:
    day = icelite.open_virtual(str(oisst.write_day(tmp_path / "a.nc", FIRST, GRID)))
    day["time"].encoding["chunks"] = chunks
    session = icelite.Repository.create(tmp_path / "b.icelite").writable_session("main")
    with pytest.raises(icelite.InvalidInputError, match="'time' cannot be stored in chunks"):
        icelite.virtualizarr.to_icelite(day, session.store)
    assert not session.has_uncommitted_changes


def test_an_older_catalog_gets_such_chunks_and_goes_on(tmp_path: Path) -> None:
    def one_a_day(dataset: xr.Dataset) -> xr.Dataset:
        dataset["time"].encoding.update(chunks=(1,), preferred_chunks=None)
        return dataset

    catalog = add_nightly(tmp_path, 3, preprocess=one_a_day, workers=1)
    assert stored(catalog, "time").chunks == (1,)
    with icelite.Repository.open(catalog) as repo:
        icelite.make_native(repo, "time", chunks={"time": 1024})
    (file,) = oisst.write_days(tmp_path / "oisst", FIRST + timedelta(days=3), 1, GRID)
    icelite.virtualize(str(file), catalog, concat_dim="time")
    assert stored(catalog, "time").chunks == (1024,)
    with xr.open_dataset(catalog) as found:
        assert len(np.unique(found.time.values)) == 4
        found.load()
