"""`icelite.virtualize` on small real files: what it finds, how it orders and combines, what it refuses and how."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
import textwrap
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from icelite.errors import (
    AlreadyExistsError,
    ConflictError,
    ErrorKind,
    IceliteError,
    InvalidInputError,
    NodeNotFoundError,
    RepositoryNotFoundError,
    StorageError,
)
from icelite.repository import Repository
from icelite.types import SourceStamp

pytest.importorskip("virtualizarr")
netCDF4 = pytest.importorskip("netCDF4")

from icelite.archive.inputs import natural_key  # noqa: E402
from icelite.archive.labels import describe_range  # noqa: E402
from icelite.archive.scan import check_whole  # noqa: E402
from icelite.archive.virtualize import VirtualizeSummary, virtualize  # noqa: E402
from icelite.formats import open_virtual  # noqa: E402

UNITS = "days since 2000-01-01"


def write(
    path: Path,
    start: int,
    count: int = 1,
    *,
    dtype: str = "f4",
    chunk: int = 1,
    units: str = UNITS,
    lat: float = 0.0,
    level: int = 4,
    shuffle: bool = True,
    name: str = "t",
    scale: float | None = None,
    values: Any = None,
    time: Any = None,
) -> Path:
    """A file with ``count`` days of a 3 x 4 grid, from day ``start``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with netCDF4.Dataset(path, "w") as file:
        file.history = f"written for day {start}"
        for dim, size in (("time", None), ("lat", 3), ("lon", 4)):
            file.createDimension(dim, size)
        days = np.arange(start, start + count) if time is None else np.asarray(time)
        coordinates = (
            ("time", "f8", days, {"units": units}),
            ("lat", "f4", lat + np.arange(3), {"units": "degrees_north"}),
            ("lon", "f4", np.arange(4), {"units": "degrees_east"}),
        )
        for dim, kind, numbers, attributes in coordinates:
            variable = file.createVariable(dim, kind, (dim,))
            variable.setncatts(attributes)
            variable[:] = numbers
        options = {"zlib": True, "complevel": level, "shuffle": shuffle, "chunksizes": (chunk, 3, 4)}
        variable = file.createVariable(name, dtype, ("time", "lat", "lon"), **options)
        variable.units = "K"
        if scale is not None:
            variable.scale_factor = scale
        variable.set_auto_maskandscale(False)
        default = 100 * start + np.arange(len(days) * 12).reshape(len(days), 3, 4)
        variable[:] = default if values is None else values
    return path


@pytest.fixture
def days(tmp_path: Path) -> list[Path]:
    """Twenty days, a file each; file 17 can be written anew."""
    return [write(tmp_path / "data" / f"day{n}.nc", n) for n in range(20)]


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    return tmp_path / "days.icelite"


def original(files: list[Path]) -> xr.Dataset:
    options: Any = {"data_vars": "minimal", "coords": "minimal", "compat": "override", "combine_attrs": "override"}
    with xr.open_mfdataset(files, combine="nested", concat_dim="time", **options) as dataset:
        return dataset.load()


def check_equal(catalog: Path, files: list[Path], **ref: Any) -> None:
    with xr.open_dataset(catalog, engine="icelite", **ref) as found:
        xr.testing.assert_identical(found.load(), original(files))


def messages(catalog: Path) -> list[str]:
    repo = Repository.open(catalog)
    try:
        return [info.message for info in repo.ancestry(branch="main")][:-1]
    finally:
        repo.close()


def refused(work: Callable[[], object], kind: ErrorKind, *parts: str) -> str:
    """The message of the error, which names all these."""
    with pytest.raises(IceliteError) as caught:
        work()
    assert caught.value.kind == kind, caught.value
    assert not [part for part in parts if part not in caught.value.message], caught.value.message
    return caught.value.message


# ---- finding


def test_numbers_in_names_are_numbers() -> None:
    assert sorted(["b1", "a10", "a9", "a", "10", "9"], key=natural_key) == ["9", "10", "a", "a9", "a10", "b1"]


def test_a_glob_becomes_one_snapshot(days: list[Path], catalog: Path) -> None:
    summary = virtualize(days[0].parent / "*.nc", catalog, concat_dim="time")
    assert summary.added == [f"file://{day}" for day in days]  # day9 before day10
    assert (summary.known, summary.broken, summary.references, summary.copied) == ([], {}, 20, 0)
    check_equal(catalog, days)
    assert messages(catalog) == ["Add 20 files along time: 2000-01-01 to 2000-01-20 (day0.nc … day19.nc)"]
    repo = Repository.open(catalog)
    info = repo.lookup_snapshot(str(summary.snapshot_id))
    record = info.metadata["virtualize"]
    assert (record["count"], record["first"], record["last"]) == (20, "day0.nc", "day19.nc")
    assert record["along"] == "2000-01-01 to 2000-01-20"
    assert record["versions"].keys() >= {"virtualizarr", "xarray", "zarr"}
    assert repo.required_access() == {}  # all relative


def test_each_file_counts_once(days: list[Path], catalog: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(days[0].parent)
    given = ["day1.nc", days[1], f"file://{days[1]}", "./day1.nc", "day[12].nc"]
    summary = virtualize(given, catalog, concat_dim="time")
    assert summary.added == [f"file://{days[1]}", f"file://{days[2]}"]
    check_equal(catalog, days[1:3])


def test_a_name_with_a_bracket_is_a_name(tmp_path: Path, catalog: Path) -> None:
    odd = write(tmp_path / "data" / "day [1] 100%25.nc", 1)
    assert virtualize(odd, catalog).added == [f"file://{odd}"]
    check_equal(catalog, [odd])


def test_the_catalog_is_not_one_of_its_sources(days: list[Path]) -> None:
    catalog = days[0].parent / "days.icelite"
    virtualize(days[0].parent / "*", catalog, concat_dim="time")
    assert virtualize(days[0].parent / "*", catalog, concat_dim="time").snapshot_id is None
    check_equal(catalog, days)


def test_nothing_matches(tmp_path: Path, catalog: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for pattern in ("nothing/*.nc", "nothing.nc"):
        refused(lambda at=pattern: virtualize(at, catalog), ErrorKind.INVALID_ARGUMENT, pattern, str(tmp_path))
    refused(lambda: virtualize([], catalog), ErrorKind.INVALID_ARGUMENT)
    assert not list(tmp_path.iterdir())


def test_a_directory_is_a_source_only_if_it_is_a_store(days: list[Path], tmp_path: Path, catalog: Path) -> None:
    message = refused(lambda: virtualize(days[0].parent, catalog), ErrorKind.INVALID_ARGUMENT, str(days[0].parent))
    assert "*.nc" in message


# ---- order


def test_the_coordinate_decides_the_order(tmp_path: Path, catalog: Path) -> None:
    files = [write(tmp_path / name, start, 2) for name, start in (("c.nc", 0), ("a.nc", 2), ("b.nc", 4))]
    assert virtualize(files, catalog, concat_dim="time").added == [f"file://{file}" for file in files]
    check_equal(catalog, files)


def test_units_may_differ_where_times_are_loaded(tmp_path: Path, catalog: Path) -> None:
    first = write(tmp_path / "2000.nc", 0, 2)
    second = write(tmp_path / "1999.nc", 0, 2, units="hours since 2000-01-03 06:30:00")
    virtualize([second, first], catalog, concat_dim="time")
    with xr.open_dataset(catalog, engine="icelite") as found:
        assert list(found.time.values) == list(original([first, second]).time.values)


def test_packing_may_differ_where_values_are_loaded(tmp_path: Path, catalog: Path) -> None:
    """What is loaded is not packed as in the first file, which may be coarser."""
    packed: Any = {"dtype": "i2", "values": np.full((1, 3, 4), 7)}
    files = [write(tmp_path / "a.nc", 0, scale=1.0, **packed), write(tmp_path / "b.nc", 1, scale=0.001, **packed)]
    virtualize(files, catalog, concat_dim="time", loadable_variables=["time", "lat", "lon", "t"])
    check_equal(catalog, files)


def test_units_may_not_differ_where_times_are_not_loaded(tmp_path: Path, catalog: Path) -> None:
    files = [write(tmp_path / "a.nc", 0, 1), write(tmp_path / "b.nc", 1, 1, units="hours since 2000-01-01")]
    for options in ({"loadable_variables": []}, {"decode_times": False}):
        refused(
            lambda given=options: virtualize(files, catalog, concat_dim="time", **given),
            ErrorKind.INVALID_DATASET,
            "b.nc",
            "'time'",
            UNITS,
            "hours since 2000-01-01",
        )
    assert not catalog.exists()


def test_without_a_coordinate_names_decide(tmp_path: Path, catalog: Path) -> None:
    files = [write(tmp_path / f"part{n}.nc", 20 - n, chunk=1) for n in (2, 10, 1)]
    virtualize(files, catalog, concat_dim="time", drop_variables=["time"])
    with xr.open_dataset(catalog, engine="icelite") as found:
        assert found.t[:, 0, 0].values.tolist() == [1900, 1800, 1000]


@pytest.mark.parametrize("second", [[1.0, 2.0], [0.5, 3.0], [-1.0, 0.0]])
def test_files_that_overlap(tmp_path: Path, catalog: Path, second: list[float]) -> None:
    files = [write(tmp_path / "a.nc", 0, 2), write(tmp_path / "b.nc", 0, time=second)]
    refused(lambda: virtualize(files, catalog, concat_dim="time"), ErrorKind.INVALID_DATASET, "a.nc", "b.nc", "'time'")


def test_a_coordinate_that_runs_both_ways(tmp_path: Path, catalog: Path) -> None:
    files = [write(tmp_path / "a.nc", 0, time=[0, 2, 1]), write(tmp_path / "b.nc", 3)]
    refused(lambda: virtualize(files, catalog, concat_dim="time"), ErrorKind.INVALID_DATASET, "a.nc", "increasing")


def test_decreasing_coordinates_stay_so(tmp_path: Path, catalog: Path) -> None:
    files = [write(tmp_path / "a.nc", 0, time=[1, 0]), write(tmp_path / "b.nc", 0, time=[3, 2])]
    virtualize(files, catalog, concat_dim="time")
    check_equal(catalog, files[::-1])
    later = write(tmp_path / "c.nc", 0, time=[-1, -2])
    virtualize(later, catalog, concat_dim="time")
    check_equal(catalog, [*files[::-1], later])


def test_a_file_without_records_adds_nothing(tmp_path: Path, catalog: Path) -> None:
    files = [write(tmp_path / "a.nc", 0), write(tmp_path / "b.nc", 0, time=[]), write(tmp_path / "c.nc", 1)]
    summary = virtualize(files, catalog, concat_dim="time")
    assert len(summary.added) == 2
    check_equal(catalog, [files[0], files[2]])
    assert virtualize(files, catalog, concat_dim="time").snapshot_id is None


def test_ranges_for_people() -> None:
    at = np.datetime64
    assert describe_range(at("2024-08-01T12"), at("2024-08-31T12")) == "2024-08-01 to 2024-08-31"
    assert describe_range(at("2024-08-01T12"), at("2024-08-01T18")) == "2024-08-01T12:00:00 to 2024-08-01T18:00:00"
    assert describe_range(at("2024-08-01T12"), at("2024-08-01T12")) == "2024-08-01"
    assert describe_range(1, 5) == "1 to 5"


# ---- combining


def test_a_dimension_that_is_new(tmp_path: Path, catalog: Path) -> None:
    files = [write(tmp_path / f"member{n}.nc", 0, 2, values=np.full((2, 3, 4), n)) for n in range(3)]
    virtualize(files, catalog, concat_dim="member")
    virtualize(write(tmp_path / "member3.nc", 0, 2, values=np.full((2, 3, 4), 3)), catalog, concat_dim="member")
    with xr.open_dataset(catalog, engine="icelite") as found:
        assert found.t.dims == ("member", "time", "lat", "lon")
        assert found.t[:, 0, 0, 0].values.tolist() == [0, 1, 2, 3]


def test_a_dimension_that_each_file_has_one_value_of(tmp_path: Path, catalog: Path) -> None:
    for n in range(3):
        with netCDF4.Dataset(tmp_path / f"{'bca'[n]}.nc", "w") as file:
            file.createDimension("x", 2)
            file.createVariable("time", "f8", ()).units = UNITS
            file["time"][...] = n
            file.createVariable("step", "f8", ())[...] = 10 * n
            file.createVariable("t", "f4", ("x",))[:] = [n, n + 0.5]
            file["t"].coordinates = "time step"
    virtualize(tmp_path / "*.nc", catalog, concat_dim="time", loadable_variables=["time", "step"])
    with xr.open_dataset(catalog, engine="icelite") as found:
        assert found.t.values.tolist() == [[0, 0.5], [1, 1.5], [2, 2.5]]
        assert found.time.values.astype("M8[D]").astype(str).tolist() == ["2000-01-01", "2000-01-02", "2000-01-03"]
        assert found.step.values.tolist() == [0, 10, 20]


def test_different_variables_of_one_grid(tmp_path: Path, catalog: Path) -> None:
    files = [write(tmp_path / "t.nc", 0, 2), write(tmp_path / "s.nc", 0, 2, name="s")]
    virtualize(files, catalog)
    with xr.open_dataset(catalog, engine="icelite") as found:
        assert set(found.data_vars) == {"s", "t"}
        assert found.s.equals(found.t.rename("s"))


def test_one_variable_twice_needs_a_dimension(days: list[Path], catalog: Path) -> None:
    refused(lambda: virtualize(days[:2], catalog), ErrorKind.INVALID_DATASET, "day0.nc", "day1.nc", "concat_dim='time'")


def test_preprocess_sees_each_file(days: list[Path], catalog: Path) -> None:
    def number(dataset: xr.Dataset) -> xr.Dataset:
        url = dataset.encoding["source"]
        return dataset.assign_coords(file=("time", [int(url.rpartition("day")[2].removesuffix(".nc"))]))

    virtualize(days[:3], catalog, concat_dim="time", preprocess=number)
    with xr.open_dataset(catalog, engine="icelite") as found:
        assert found.file.values.tolist() == [0, 1, 2]
    message = refused(
        lambda: virtualize(days[3], catalog, concat_dim="time", preprocess=lambda dataset: 1 / 0),
        ErrorKind.INVALID_ARGUMENT,
        "day3.nc",
    )
    assert "ZeroDivisionError" in message


def test_a_group_of_the_repository(days: list[Path], catalog: Path) -> None:
    virtualize(days[:2], catalog, concat_dim="time", group="raw/daily")
    virtualize(days[:3], catalog, concat_dim="time", group="raw/daily")
    virtualize(days[:2], catalog, concat_dim="time", group="other")
    check_equal(catalog, days[:3], group="raw/daily")
    check_equal(catalog, days[:2], group="other")
    assert messages(catalog)[1] == "Add 1 file to raw/daily along time: 2000-01-03 (day2.nc)"


# ---- files that do not fit


MISFITS = {
    "dtype": ({"dtype": "f8"}, ["'t'", "dtype", "float64", "float32"]),
    "chunks": ({"chunk": 2}, ["'t'", "chunk shape", "(2, 3, 4)", "(1, 3, 4)"]),
    "codec": ({"shuffle": False}, ["'t'", "codec", "shuffle"]),
    "scale": ({"scale": 2.0}, ["'t'", "scale_factor", "2.0"]),
    "grid": ({"lat": 0.5}, ["grids differ", "'lat'", "0.5", "0.0"]),
    "name": ({"name": "u"}, ["lacks 't'"]),
}


@pytest.mark.parametrize("what", MISFITS)
def test_file_17_does_not_fit(days: list[Path], catalog: Path, what: str) -> None:
    changes, parts = MISFITS[what]
    write(days[17], 17, **changes)
    work = lambda: virtualize(days, catalog, concat_dim="time")  # noqa: E731
    refused(work, ErrorKind.INVALID_DATASET, "day17.nc", "day0.nc", *parts)
    assert not list(catalog.parent.glob("days*"))  # and a new catalog is gone


@pytest.mark.parametrize("what", [what for what in MISFITS if what != "name"])
def test_a_later_file_does_not_fit_what_is_stored(days: list[Path], catalog: Path, what: str) -> None:
    virtualize(days[:17], catalog, concat_dim="time")
    write(days[17], 17, **MISFITS[what][0])
    refused(lambda: virtualize(days[:18], catalog, concat_dim="time"), ErrorKind.INVALID_DATASET, "day17.nc")
    check_equal(catalog, days[:17])
    assert len(messages(catalog)) == 1


def test_a_grid_of_another_shape(tmp_path: Path, catalog: Path) -> None:
    files = [write(tmp_path / "a.nc", 0), tmp_path / "b.nc"]
    original([files[0]]).isel(lat=slice(2)).assign_coords(time=[np.datetime64("2000-01-02", "ns")]).to_netcdf(files[1])
    refused(
        lambda: virtualize(files, catalog, concat_dim="time"), ErrorKind.INVALID_DATASET, "b.nc", "grids", "'lat'", "2"
    )


def test_a_last_chunk_that_is_partly_filled(tmp_path: Path, catalog: Path) -> None:
    files = [write(tmp_path / "a.nc", 0, 3, chunk=2), write(tmp_path / "b.nc", 3, 3, chunk=2)]
    refused(lambda: virtualize(files, catalog, concat_dim="time"), ErrorKind.INVALID_DATASET, "a.nc", "'t'", "3", "2")
    virtualize(files, catalog, concat_dim="time", loadable_variables=["time", "lat", "lon", "t"])
    check_equal(catalog, files)


# ---- broken files


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def test_a_truncated_file_stops_the_run(days: list[Path], catalog: Path) -> None:
    truncate(days[7])
    refused(lambda: virtualize(days, catalog, concat_dim="time"), ErrorKind.UNREADABLE_SOURCE, "day7.nc")
    assert not list(catalog.parent.glob("days*"))


def test_a_truncated_netcdf3_file_is_found_though_its_header_is_whole(days: list[Path], catalog: Path) -> None:
    pytest.importorskip("scipy")
    dataset = original(days)
    for n, part in enumerate((dataset.isel(time=slice(10)), dataset.isel(time=slice(10, 20)))):
        part.to_netcdf(catalog.parent / f"part{n}.nc", format="NETCDF3_64BIT", engine="scipy", unlimited_dims=["time"])
    truncate(catalog.parent / "part1.nc")
    work = lambda: virtualize(catalog.parent / "part*.nc", catalog, concat_dim="time")  # noqa: E731
    refused(work, ErrorKind.UNREADABLE_SOURCE, "part1.nc")


def test_references_past_the_end_are_found_whatever_the_parser(days: list[Path]) -> None:
    dataset, size = open_virtual(days[0]), days[0].stat().st_size
    check_whole(dataset, {f"file://{days[0]}": SourceStamp(size)})
    cut = {f"file://{days[0]}": SourceStamp(size // 2)}
    refused(lambda: check_whole(dataset, cut), ErrorKind.UNREADABLE_SOURCE, "day0.nc", "cut short")


def test_a_text_file_named_nc(days: list[Path], catalog: Path) -> None:
    days[7].write_text("404 not found")
    refused(lambda: virtualize(days, catalog, concat_dim="time"), ErrorKind.UNKNOWN_FORMAT, "day7.nc", "404 not found")


def test_broken_files_are_left_out_on_request(days: list[Path], catalog: Path) -> None:
    truncate(days[7])
    days[9].write_text("404 not found")
    summary = virtualize(days, catalog, concat_dim="time", skip_broken=True)
    assert list(summary.broken) == [f"file://{days[7]}", f"file://{days[9]}"]
    assert "404 not found" in summary.broken[f"file://{days[9]}"]
    assert "day7.nc" in str(summary)
    check_equal(catalog, [day for n, day in enumerate(days) if n not in (7, 9)])
    repo = Repository.open(catalog)
    assert repo.lookup_snapshot(str(summary.snapshot_id)).metadata["virtualize"]["left_out"] == ["day7.nc", "day9.nc"]


def test_all_files_broken(days: list[Path], catalog: Path) -> None:
    for day in days:
        day.write_text("404 not found")
    for skip in (False, True):
        refused(
            lambda given=skip: virtualize(days, catalog, concat_dim="time", skip_broken=given),
            ErrorKind.UNKNOWN_FORMAT,
            "day0.nc",
        )
    assert not catalog.exists()


# ---- again


def test_only_new_files_are_scanned_and_appended(days: list[Path], catalog: Path) -> None:
    first = virtualize(days[:10], catalog, concat_dim="time")
    repo = Repository.open(catalog)
    repo.create_tag("first", str(first.snapshot_id))
    repo.close()
    counted: list[tuple[int, int]] = []
    second = virtualize(days, catalog, concat_dim="time", progress=lambda *now: counted.append(now))
    assert counted == [(n, 10) for n in range(1, 11)]
    assert (second.added, second.known) == ([f"file://{d}" for d in days[10:]], [f"file://{d}" for d in days[:10]])
    check_equal(catalog, days)  # the attributes are the first file's
    check_equal(catalog, days[:10], tag="first")
    before = catalog.read_bytes()
    third = virtualize(days, catalog, concat_dim="time")
    assert (third.snapshot_id, third.added, len(third.known)) == (None, [], 20)
    assert catalog.read_bytes() == before
    assert str(third) == "nothing new: 20 files known"


def test_files_elsewhere_are_known_too(days: list[Path], tmp_path: Path) -> None:
    catalog = tmp_path / "catalogs" / "days.icelite"
    catalog.parent.mkdir()
    virtualize(days[:2], catalog, concat_dim="time")
    summary = virtualize(days[:3], catalog, concat_dim="time")
    assert (len(summary.known), len(summary.added)) == (2, 1)
    repo = Repository.open(catalog)
    assert list(repo.required_access()) == [f"file://{days[0].parent}/"]


def test_what_another_branch_knows_is_new(days: list[Path], catalog: Path) -> None:
    first = virtualize(days[:2], catalog, concat_dim="time")
    repo = Repository.open(catalog)
    repo.create_branch("work", str(first.snapshot_id))
    assert len(virtualize(days[:3], repo, concat_dim="time", branch="work").added) == 1
    assert len(virtualize(days[:4], repo, concat_dim="time").added) == 2
    check_equal(catalog, days[:3], branch="work")
    check_equal(catalog, days[:4])


def test_a_known_file_that_changed(days: list[Path], catalog: Path) -> None:
    virtualize(days[:3], catalog, concat_dim="time")
    before = days[1].stat()
    os.utime(days[1], ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    refused(
        lambda: virtualize(days, catalog, concat_dim="time"), ErrorKind.VIRTUAL_CHUNK_MODIFIED, "day1.nc", "modified"
    )
    os.utime(days[1], ns=(before.st_atime_ns, before.st_mtime_ns))
    virtualize(days, catalog, concat_dim="time")
    check_equal(catalog, days)


def test_a_copied_folder_keeps_what_it_knows(days: list[Path], tmp_path: Path) -> None:
    """Copies do not keep times, so that there only sizes count."""
    virtualize(days[:3], days[0].parent / "days.icelite", concat_dim="time")
    copy = shutil.copytree(days[0].parent, tmp_path / "copy", copy_function=shutil.copyfile)
    assert len(virtualize(copy / "*.nc", copy / "days.icelite", concat_dim="time").known) == 3


def test_new_files_come_after_the_stored_ones(days: list[Path], catalog: Path) -> None:
    virtualize(days[5:10], catalog, concat_dim="time")
    refused(lambda: virtualize(days, catalog, concat_dim="time"), ErrorKind.INVALID_DATASET, "day0.nc", "2000-01-10")
    check_equal(catalog, days[5:10])


def test_a_coordinate_that_cannot_hold_the_new_values(tmp_path: Path, catalog: Path) -> None:
    """Appended times are stored in the units and type of the first ones, and would be rounded."""
    first = write(tmp_path / "a.nc", 0)
    virtualize(first, catalog, concat_dim="time", preprocess=_as_single)
    second = write(tmp_path / "b.nc", 0, time=[10**15 + 1], units="nanoseconds since 2000-01-01")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of xarray, about the encoding
        refused(lambda: virtualize(second, catalog, concat_dim="time"), ErrorKind.INVALID_DATASET, "'time'", "float32")
    refused(
        lambda: virtualize(second, catalog, concat_dim="time", decode_times=False),
        ErrorKind.INVALID_DATASET,
        "b.nc",
        "'nanoseconds since 2000-01-01'",
        f"'{UNITS}'",
    )
    assert len(messages(catalog)) == 1


def _as_single(dataset: xr.Dataset) -> xr.Dataset:
    dataset.time.encoding["dtype"] = np.dtype("f4")
    return dataset


def test_append_says_whether_the_group_must_exist(days: list[Path], catalog: Path) -> None:
    with pytest.raises(RepositoryNotFoundError):
        virtualize(days[:1], catalog, concat_dim="time", append=True)
    Repository.create(catalog).close()
    with pytest.raises(NodeNotFoundError, match="append=True"):
        virtualize(days[:1], catalog, concat_dim="time", append=True)
    assert catalog.exists()  # it was there before
    virtualize(days[:1], catalog, concat_dim="time", append=False)
    with pytest.raises(AlreadyExistsError, match="append=False"):
        virtualize(days[:2], catalog, concat_dim="time", append=False)
    with pytest.raises(AlreadyExistsError, match="concat_dim="):
        virtualize(days[:2], catalog)
    virtualize(days[:2], catalog, concat_dim="time", append=True)
    check_equal(catalog, days[:2])


def test_a_source_that_no_reference_names_is_known(tmp_path: Path, catalog: Path) -> None:
    """A Zarr store's chunks are files of their own."""
    dataset = original([write(tmp_path / "a.nc", 0, 2)])
    dataset.to_zarr(tmp_path / "a.zarr", zarr_format=3, consolidated=False)
    assert virtualize(tmp_path / "*.zarr", catalog, concat_dim="time").added == [f"file://{tmp_path / 'a.zarr'}"]
    assert virtualize(tmp_path / "*.zarr", catalog, concat_dim="time").snapshot_id is None


def test_a_file_that_is_all_copied_is_known(tmp_path: Path, catalog: Path) -> None:
    file = write(tmp_path / "a.nc", 0)
    options: Any = {"concat_dim": "time", "loadable_variables": ["time", "lat", "lon", "t"]}
    assert virtualize(file, catalog, **options).references == 0
    assert virtualize(file, catalog, **options).snapshot_id is None
    check_equal(catalog, [file])
    os.utime(file, ns=(0, 0))
    refused(lambda: virtualize(file, catalog, **options), ErrorKind.VIRTUAL_CHUNK_MODIFIED, "a.nc")


# ---- all or nothing


def test_somebody_else_appends_meanwhile(days: list[Path], catalog: Path) -> None:
    virtualize(days[:1], catalog, concat_dim="time")

    def meanwhile(done: int, total: int) -> None:
        if (done, total) == (2, 2):
            virtualize(days[1], catalog, concat_dim="time")

    with pytest.raises(ConflictError, match="run it again"):
        virtualize(days[:3], catalog, concat_dim="time", progress=meanwhile)
    check_equal(catalog, days[:2])
    assert len(virtualize(days[:3], catalog, concat_dim="time").added) == 1
    check_equal(catalog, days[:3])


def test_somebody_else_writes_elsewhere_meanwhile(days: list[Path], catalog: Path) -> None:
    virtualize(days[:1], catalog, group="mine", concat_dim="time")
    work = lambda done, total: virtualize(days[1], catalog, group="other", concat_dim="time")  # noqa: E731
    virtualize(days[:2], catalog, group="mine", concat_dim="time", progress=work)
    check_equal(catalog, days[:2], group="mine")
    check_equal(catalog, days[1:2], group="other")


class Stop(Exception):
    """Raised by a test's callback."""


def test_an_error_on_the_way_leaves_no_trace(days: list[Path], catalog: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise Stop

    with pytest.raises(Stop):
        virtualize(days, catalog, concat_dim="time", progress=stop)
    assert not list(catalog.parent.glob("days*"))
    virtualize(days[:2], catalog, concat_dim="time")
    before = catalog.read_bytes()
    with pytest.raises(Stop):
        virtualize(days, catalog, concat_dim="time", progress=stop)
    assert catalog.read_bytes() == before


def test_a_file_that_changes_after_it_was_scanned(days: list[Path], catalog: Path) -> None:
    """What is recorded is what the file looked like when it was parsed."""
    touch = lambda done, total: os.utime(days[0], ns=(0, 0)) if done == total else None  # noqa: E731
    work = lambda: virtualize(days[:2], catalog, concat_dim="time", progress=touch)  # noqa: E731
    refused(work, ErrorKind.VIRTUAL_CHUNK_MODIFIED, "day0.nc")
    assert not catalog.exists()


def test_a_catalog_that_somebody_used_meanwhile_stays(days: list[Path], catalog: Path) -> None:
    def use(done: int, total: int) -> None:
        repo = Repository.open(catalog)
        repo.create_tag("mine", repo.lookup_branch("main"))
        repo.close()
        raise Stop

    with pytest.raises(Stop):
        virtualize(days, catalog, concat_dim="time", progress=use)
    assert Repository.open(catalog).list_tags() == {"mine"}


def test_arguments_that_belong_to_a_path(days: list[Path], catalog: Path) -> None:
    repo = Repository.create(catalog)
    with pytest.raises(InvalidInputError, match="reopen"):
        virtualize(days, repo, concat_dim="time", authorize_virtual_chunk_access={})
    with pytest.raises(InvalidInputError, match="workers=0"):
        virtualize(days, repo, concat_dim="time", workers=0)


def test_the_summary_is_a_value() -> None:
    summary = VirtualizeSummary("ABC", ["a", "b"], ["c"], {"d": "no"}, 8, 1)
    assert pickle.loads(pickle.dumps(summary)) == summary
    assert str(summary).splitlines() == [
        "ABC: 2 files added, 8 references",
        "1 variable copied",
        "1 file known before",
        "left out d: no",
    ]
    assert "added=2" in repr(summary)


# ---- processes


def test_processes_give_the_same(days: list[Path], catalog: Path) -> None:
    days[7].write_text("404 not found")
    counted: list[tuple[int, int]] = []
    shift = lambda dataset: dataset.assign_attrs(seen=dataset.encoding["source"])  # noqa: E731
    summary = virtualize(
        days,
        catalog,
        concat_dim="time",
        workers=2,
        skip_broken=True,
        preprocess=shift,
        progress=lambda *now: counted.append(now),
    )
    assert counted == [(n, 20) for n in range(1, 21)]
    assert list(summary.broken) == [f"file://{days[7]}"]
    with xr.open_dataset(catalog, engine="icelite") as found:
        assert found.attrs.pop("seen") == f"file://{days[0]}"
        xr.testing.assert_identical(found.load(), original(days[:7] + days[8:]))


SCRIPT = """
    import os, signal, sys, threading
    from pathlib import Path
    import icelite.archive.virtualize as module
    with open("runs", "a") as runs:
        runs.write("x")
    def interrupt(done, total):
        if "--interrupt" in sys.argv and done == 3:
            os.kill(os.getpid(), signal.SIGINT)
    module.virtualize("data/*.nc", "days.icelite", concat_dim="time", workers=2, progress=interrupt)
"""


def run_script(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    script = folder / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.run(
        [sys.executable, script, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )


def test_a_plain_script_needs_no_main_guard(days: list[Path], catalog: Path) -> None:
    done = run_script(catalog.parent)
    assert done.returncode == 0, done.stderr
    assert (catalog.parent / "runs").read_text() == "x"
    check_equal(catalog, days)


def test_control_c_leaves_nothing_behind(days: list[Path], catalog: Path) -> None:
    stopped = run_script(catalog.parent, "--interrupt")
    assert stopped.returncode != 0
    assert stopped.stderr.rstrip().endswith("KeyboardInterrupt"), stopped.stderr
    assert not list(catalog.parent.glob("days*"))
    assert not _running_with(catalog.parent)


def _running_with(folder: Path) -> list[str]:
    """Processes that still work in a folder, a moment later."""
    for _ in range(50):
        found = list(_working_in(folder))
        if not found:
            break
        time.sleep(0.1)
    return found


def _working_in(folder: Path) -> Iterator[str]:
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                if Path(os.readlink(process / "cwd")) == folder:
                    yield (process / "cmdline").read_text()
            except OSError:
                continue


def test_a_worker_that_dies_is_an_error(days: list[Path], catalog: Path) -> None:
    with pytest.raises(StorageError, match="workers=1"):
        virtualize(days, catalog, concat_dim="time", workers=2, preprocess=lambda dataset: os._exit(1))
    assert not catalog.exists()
