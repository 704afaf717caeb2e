"""Files along an archive: what they mean is compared, together and in turns, and what is read is what xarray reads.

The model is xarray: each file opened by itself and decoded, and all of them concatenated.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from icelite import cf
from icelite.errors import ErrorKind, IceliteError, InvalidInputError
from icelite.repository import Repository

pytest.importorskip("virtualizarr")
netCDF4 = pytest.importorskip("netCDF4")

from icelite.archive.virtualize import virtualize  # noqa: E402
from icelite.formats import open_virtual  # noqa: E402
from icelite.virtualizarr import to_icelite  # noqa: E402

CHUNKS = {"chunksizes": (1, 3)}
Write = Callable[..., Path]
HOWS = ["together", "in turns"]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes files with ``time`` and ``v(time, x)``, numbered as they come."""
    return writer(tmp_path)


def writer(folder: Path) -> Write:
    count = iter(range(10**6))

    def write(
        time: Any,
        *,
        units: str = "days since 2000-01-01",
        calendar: str = "standard",
        attributes: dict[str, Any] | None = None,
        values: Any = None,
        unwritten: bool = False,
        unlimited: bool = True,
        bounds: str | None = None,
        more: Callable[[Any], None] | None = None,
        **storage: Any,
    ) -> Path:
        path = folder / f"f{next(count):03}.nc"
        time = np.asarray(time, "f8")
        with netCDF4.Dataset(path, "w") as file:
            file.createDimension("time", None if unlimited else len(time))
            file.createDimension("x", 3)
            variable = file.createVariable("time", "f8", ("time",))
            variable.units, variable.calendar = units, calendar
            variable[:] = time
            if bounds is not None:
                file.createDimension("nv", 2)
                variable.setncattr(bounds, "time_bnds")
                file.createVariable("time_bnds", "f8", ("time", "nv"))[:] = np.stack([time - 0.25, time + 0.75], 1)
            v = file.createVariable("v", "f4", ("time", "x"), **(storage or CHUNKS if unlimited else storage))
            v.setncatts(attributes or {})
            if not unwritten:
                v[:] = np.arange(3 * len(time)).reshape(-1, 3) + time[:, None] if values is None else values
            if more is not None:
                more(file)
        return path

    return write


def build(files: list[Path], catalog: Path, how: str, **options: Any) -> xr.Dataset:
    """The dataset that `virtualize` makes of files in one call, or in one call each."""
    options.setdefault("concat_dim", "time")
    for end in range(1, len(files)) if how == "in turns" else ():
        virtualize(files[:end], catalog, **options)
    virtualize(files, catalog, **options)
    with xr.open_dataset(catalog, engine="icelite", decode_times=options.get("decode_times", True)) as found:
        return found.load()


def model(files: list[Path], **options: Any) -> xr.Dataset:
    """What xarray makes of the files, each decoded by itself."""
    parts = [xr.open_dataset(file, engine="netcdf4").load() for file in files]
    choices: Any = {"data_vars": "minimal", "coords": "minimal", "compat": "override", "combine_attrs": "override"}
    return xr.concat(parts, "time", **choices | options)


def refused(work: Callable[[], object], *parts: str) -> str:
    with pytest.raises(InvalidInputError) as caught:
        work()
    assert caught.value.kind == ErrorKind.INVALID_DATASET
    for part in parts:
        assert part in caught.value.message
    return caught.value.message


# ---- what numbers mean


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"units": "K"}, {"units": "degC"}),
        ({"scale_factor": 0.1}, {"scale_factor": 0.5}),
        ({"add_offset": 1.0}, {"add_offset": 2.0}),
        ({"scale_factor": 0.1}, {}),
        ({"missing_value": np.float32(-9)}, {"missing_value": np.float32(-8)}),
    ],
)
def test_what_numbers_mean_is_compared(
    write: Write, tmp_path: Path, how: str, first: dict[str, Any], second: dict[str, Any]
) -> None:
    files = [write([0], attributes=first), write([1], attributes=second)]
    message = refused(lambda: build(files, tmp_path / "c.icelite", how), "'v'" if how == "together" else "v", "f001.nc")
    assert "loadable_variables=" in message


@pytest.mark.parametrize("second", [{"scale_factor": 0.5, "add_offset": 10.0}, {"scale_factor": 0.1}, {}])
@pytest.mark.parametrize("other", [False, True])
def test_files_that_a_user_concatenates_are_packed_alike(
    write: Write, tmp_path: Path, second: dict[str, Any], other: bool
) -> None:
    files = [write([0], attributes={"scale_factor": 0.1, "add_offset": 0.0}), write([1], attributes=second)]
    options: Any = {"data_vars": "minimal", "coords": "minimal", "compat": "override", "combine_attrs": "override"}
    combined = xr.concat([open_as(file, other) for file in files], "time", **options)
    session = Repository.create(tmp_path / "c.icelite").writable_session("main")
    refused(lambda: to_icelite(combined, session.store), "'v'", "f000.nc", "f001.nc", "0.1", "loadable_variables=")
    assert not session.has_uncommitted_changes


def open_as(file: Path, other: bool) -> xr.Dataset:
    """A file's virtual dataset, by icelite or by a parser of VirtualiZarr's own."""
    if not other:
        return open_virtual(file)
    from virtualizarr.parsers import HDFParser

    return open_virtual(file, parser=HDFParser())


def test_a_user_may_correct_the_packing_of_all_files(write: Write, tmp_path: Path) -> None:
    files = [write([n], attributes={"scale_factor": 0.1}) for n in range(2)]

    def corrected(dataset: xr.Dataset) -> xr.Dataset:
        dataset["v"].attrs["scale_factor"] = 0.2
        return dataset

    virtualize(files, tmp_path / "c.icelite", concat_dim="time", preprocess=corrected)


@pytest.mark.parametrize("how", HOWS)
def test_two_names_of_a_calendar_are_one(write: Write, tmp_path: Path, how: str) -> None:
    names = ["365_day", "noleap"]
    files = [write([n], calendar=name, bounds="bounds") for n, name in enumerate(names)]
    xr.testing.assert_equal(build(files, tmp_path / "c.icelite", how), model(files))


@pytest.mark.parametrize("how", HOWS)
def test_mixed_calendars_are_refused(write: Write, tmp_path: Path, how: str) -> None:
    files = [write([0]), write([1], calendar="noleap")]
    refused(lambda: build(files, tmp_path / "c.icelite", how), "f001.nc", "'time'", "noleap", "convert_calendar")


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("bounds", [None, "bounds"])
def test_months_since(write: Write, tmp_path: Path, how: str, bounds: str | None) -> None:
    months = ["months since 2000-01-01", "months since 2001-01-01"]
    files = [write([1], units=units, calendar="360_day", bounds=None) for units in months]
    xr.testing.assert_equal(build(files, tmp_path / "c.icelite", how), model(files))


# ---- bounds count as their times do


def appended(files: list[Path], catalog: Path) -> xr.Dataset:
    session = Repository.create(catalog).writable_session("main")
    to_icelite(open_virtual(files[0]), session.store)
    for file in files[1:]:
        to_icelite(open_virtual(file), session.store, append_dim="time")
    session.commit("all")
    with xr.open_dataset(catalog, engine="icelite") as found:
        return found.load()


@pytest.mark.parametrize("how", [*HOWS, "to_icelite"])
def test_bounds_of_files_with_own_dates(write: Write, tmp_path: Path, how: str) -> None:
    dates = ["days since 2000-01-01", "days since 2000-02-01", "hours since 2000-03-01"]
    files = [write([0.5, 1.5], units=units, bounds="bounds") for units in dates]
    catalog = tmp_path / "c.icelite"
    found = appended(files, catalog) if how == "to_icelite" else build(files, catalog, how)
    xr.testing.assert_equal(found, model(files))


@pytest.mark.parametrize("how", [*HOWS, "to_icelite"])
def test_climatology_counts_as_its_times(write: Write, tmp_path: Path, how: str) -> None:
    dates = ["days since 2000-01-01", "days since 2000-02-01"]
    files = [write([0.5, 1.5], units=units, bounds="climatology") for units in dates]
    catalog = tmp_path / "c.icelite"
    found = appended(files, catalog) if how == "to_icelite" else build(files, catalog, how)
    stored = cf.find_time(found["time"].variable)
    assert stored is not None
    wanted = [
        cf.decode_times(part["time_bnds"].variable, (units, "standard"))
        for part, units in zip([xr.open_dataset(file) for file in files], dates, strict=True)
    ]
    times = cf.decode_times(found["time_bnds"].variable, stored)
    np.testing.assert_array_equal(times.values, np.concatenate([part.values for part in wanted]))


def test_bounds_that_would_be_rounded_are_refused(write: Write, tmp_path: Path) -> None:
    first = write([28.5, 29.5, 30.5], units="days since 2000-02-02", bounds="bounds")
    second = write([43_200], units="seconds since 2000-03-05", bounds="bounds")  # and three quarters of a second
    virtualize(first, tmp_path / "c.icelite", concat_dim="time")
    refused(
        lambda: virtualize(second, tmp_path / "c.icelite", concat_dim="time"),
        "'time_bnds'",
        "would be stored as",
        "days",
    )
    files = [first, second]
    xr.testing.assert_equal(build(files, tmp_path / "d.icelite", "together"), model(files))


def test_bounds_that_count_alike_stay_references(write: Write, tmp_path: Path) -> None:
    files = [write([n], bounds="bounds") for n in range(3)]
    summary = virtualize(files, tmp_path / "c.icelite", concat_dim="time")
    assert summary.references == 6


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    parts=st.lists(
        st.tuples(
            st.sampled_from(["days", "hours", "seconds"]),
            st.integers(0, 40),
            st.integers(1, 3),
            st.sampled_from([1, 6]),
        ),
        min_size=2,
        max_size=4,
    ),
    how=st.sampled_from([*HOWS, "to_icelite"]),
)
def test_times_and_bounds_are_those_of_xarray(
    parts: list[tuple[str, int, int, int]], how: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("times")
    write, day, files = writer(folder), 0, []
    for unit, before, count, per_day in parts:
        factor = {"days": 1, "hours": 24, "seconds": 86400}[unit]
        begin = np.datetime64("2000-03-01") + np.timedelta64(day - before, "D")
        steps = (before + 0.5 + np.arange(count) / per_day) * factor
        files.append(write(steps, units=f"{unit} since {begin}", bounds="bounds"))
        day += count + 1
    catalog = folder / "c.icelite"
    try:
        found = appended(files, catalog) if how == "to_icelite" else build(files, catalog, how)
    except InvalidInputError as error:
        if how == "together" or "would be stored as" not in error.message:
            raise
        return  # the stored type or unit cannot hold the new values
    expected = model(files)
    np.testing.assert_array_equal(found["time"].values, expected["time"].values)
    np.testing.assert_array_equal(found["time_bnds"].values, expected["time_bnds"].values)


# ---- what lacks the dimension


def static(number: int, *, level: int = 4) -> Callable[[Any], None]:
    """Adds a field, a mask, and the time of the run, which count up from file to file."""

    def add(file: Any) -> None:
        run = file.createVariable("run", "i4", ())
        run.units = "hours since 2000-01-01"
        run[...] = number
        file.createVariable("depth", "f8", ("x",), zlib=True, complevel=level)[:] = np.arange(3) + number

    return add


@pytest.mark.parametrize("how", HOWS)
def test_values_that_differ_are_refused(write: Write, tmp_path: Path, how: str) -> None:
    files = [write([n], more=static(n)) for n in range(3)]
    message = refused(
        lambda: build(files, tmp_path / "c.icelite", how), "f001.nc", "'run'", "'depth'", "compat='override'"
    )
    assert ("f002.nc" in message) == (how == "together")  # all of them at once


@pytest.mark.parametrize("how", HOWS)
def test_values_that_are_stored_otherwise_and_equal(write: Write, tmp_path: Path, how: str) -> None:
    files = [write([n], more=static(7, level=n + 1)) for n in range(3)]
    xr.testing.assert_equal(build(files, tmp_path / "c.icelite", how), model(files))


@pytest.mark.parametrize("how", HOWS)
def test_override_takes_the_first(write: Write, tmp_path: Path, how: str) -> None:
    files = [write([n], more=static(n)) for n in range(3)]
    xr.testing.assert_equal(build(files, tmp_path / "c.icelite", how, compat="override"), model(files))


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("steps", [1, 2])
def test_stack_keeps_every_file_s(write: Write, tmp_path: Path, how: str, steps: int) -> None:
    files = [write(n * steps + np.arange(steps), more=static(n)) for n in range(3)]
    expected = model(files, data_vars="all")
    xr.testing.assert_equal(build(files, tmp_path / "c.icelite", how, stack=["run", "depth"]), expected)


def test_what_was_stacked_goes_on_being_stacked(write: Write, tmp_path: Path) -> None:
    files, catalog = [write([n], more=static(n)) for n in range(3)], tmp_path / "c.icelite"
    virtualize(files[:2], catalog, concat_dim="time", stack=["run", "depth"])
    virtualize(files, catalog, concat_dim="time")
    with xr.open_dataset(catalog, engine="icelite") as found:
        xr.testing.assert_equal(found.load(), model(files, data_vars="all"))


def test_a_first_file_that_is_gone_holds_nobody_up(write: Write, tmp_path: Path) -> None:
    files, catalog = [write([n], more=static(7)) for n in range(2)], tmp_path / "c.icelite"
    virtualize(files[:1], catalog, concat_dim="time")
    files[0].unlink()
    virtualize(files[1], catalog, concat_dim="time")
    other = write([2], more=static(8))
    refused(lambda: virtualize(other, catalog, concat_dim="time"), "'depth'", "f000.nc", "compat='override'")


def test_identical_compares_attributes_too(write: Write, tmp_path: Path) -> None:
    def described(text: str) -> Callable[[Any], None]:
        def add(file: Any) -> None:
            variable = file.createVariable("mask", "i4", ("x",))
            variable.comment = text
            variable[:] = 1

        return add

    files = [write([n], more=described(f"file {n}")) for n in range(2)]
    virtualize(files, tmp_path / "a.icelite", concat_dim="time")
    refused(
        lambda: virtualize(files, tmp_path / "b.icelite", concat_dim="time", compat="identical"), "'mask'", "attributes"
    )


@pytest.mark.parametrize("options", [{"compat": "no_conflicts"}, {"stack": ["v"], "concat_dim": None}])
def test_choices_that_cannot_be_meant(write: Write, tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match=r"compat|stack") as caught:
        virtualize(write([0]), tmp_path / "c.icelite", **{"concat_dim": "time"} | options)
    assert caught.value.kind == ErrorKind.INVALID_ARGUMENT
    assert not (tmp_path / "c.icelite").exists()


# ---- how it is stored


@pytest.mark.parametrize("how", HOWS)
def test_the_level_of_compression_does_not_matter(write: Write, tmp_path: Path, how: str) -> None:
    files = [write([n], zlib=True, complevel=n + 1, **CHUNKS) for n in range(3)]
    found = build(files, tmp_path / "c.icelite", how)
    xr.testing.assert_equal(found, model(files))


def test_to_icelite_takes_another_level_too(write: Write, tmp_path: Path) -> None:
    files = [write([n], zlib=True, complevel=n + 1, **CHUNKS) for n in range(2)]
    xr.testing.assert_equal(appended(files, tmp_path / "c.icelite"), model(files))


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("at", [1, 2])
def test_a_variable_that_was_not_written_in_a_file(write: Write, tmp_path: Path, how: str, at: int) -> None:
    files = [write([n], unwritten=n == at, zlib=True, **CHUNKS) for n in range(3)]
    found = build(files, tmp_path / "c.icelite", how)
    expected = model(files).fillna(netCDF4.default_fillvals["f4"])
    np.testing.assert_array_equal(found["v"].fillna(netCDF4.default_fillvals["f4"]).values, expected["v"].values)


def test_contiguous_storage_is_cut(write: Write, tmp_path: Path) -> None:
    files = [write(10 * n + np.arange(size), unlimited=False) for n, size in enumerate((4, 6, 3))]
    summary = virtualize(files, tmp_path / "c.icelite", concat_dim="time")
    assert summary.copied == 0
    assert summary.references == 13
    with xr.open_dataset(tmp_path / "c.icelite", engine="icelite") as found:
        xr.testing.assert_equal(found.load(), model(files))


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(1, 6), min_size=2, max_size=4), chunked=st.booleans())
def test_uneven_lengths_without_codecs(
    sizes: list[int], chunked: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("uneven")
    write = writer(folder)
    files = []
    for n, size in enumerate(sizes):
        storage: dict[str, Any] = {"chunksizes": (size, 3)} if chunked else {}
        files.append(write(10 * n + np.arange(size), unlimited=False, **storage))
    virtualize(files, folder / "c.icelite", concat_dim="time")
    with xr.open_dataset(folder / "c.icelite", engine="icelite") as found:
        xr.testing.assert_equal(found.load(), model(files))


# ---- which dimension


def test_a_dimension_that_nobody_has(write: Write, tmp_path: Path) -> None:
    files = [write([n]) for n in range(2)]
    refused(lambda: virtualize(files, tmp_path / "c.icelite", concat_dim="tiem"), "'tiem'", "time, x")


def test_a_group_that_lacks_the_dimension(write: Write, tmp_path: Path) -> None:
    def constants(file: Any) -> None:
        group = file.createGroup("A").createGroup("B")
        group.createDimension("y", 2)
        group.createVariable("w", "f4", ("y",))[:] = 1

    files = [write([n], more=constants) for n in range(2)]
    refused(
        lambda: virtualize(files, tmp_path / "c.icelite", concat_dim="time", source_group="A/B"),
        "f000.nc",
        "'A/B'",
        "'time'",
        "source_group=",
    )


@pytest.mark.parametrize("how", HOWS)
def test_a_scalar_becomes_the_dimension(tmp_path: Path, how: str) -> None:
    files = []
    for n in (2, 0, 1):
        files.append(tmp_path / f"g{n}.nc")
        with netCDF4.Dataset(files[-1], "w") as file:
            file.createDimension("x", 3)
            t = file.createVariable("t", "f8", ())
            t.units = f"seconds since 2000-01-0{n + 1}"
            t[...] = 600.0
            v = file.createVariable("v", "f4", ("x",))
            v.coordinates = "t"
            v[:] = n
    files.sort()
    found = build(files, tmp_path / "c.icelite", how, concat_dim="t")
    expected = xr.concat([xr.open_dataset(file).load() for file in files], "t", data_vars="all")
    xr.testing.assert_equal(found, expected)


# ---- all of it at once


def test_every_misfit_is_listed(write: Write, tmp_path: Path) -> None:
    good = write([0], attributes={"units": "K"}, zlib=True, **CHUNKS)
    bad = [
        write([1], attributes={"units": "degC"}, zlib=True, **CHUNKS),
        write([2], attributes={"units": "K"}, zlib=True, shuffle=False, **CHUNKS),
        write([3], attributes={"units": "K"}, zlib=True, more=static(0), **CHUNKS),
    ]
    catalog = tmp_path / "c.icelite"
    message = refused(
        lambda: virtualize([good, *bad], catalog, concat_dim="time"),
        *("f001.nc", "units", "f002.nc", "codec", "f003.nc", "'run', 'depth'", "drop_variables="),
    )
    assert message.count("\n") == 4  # the last one says how to leave them all out
    assert not catalog.exists()


def test_a_late_file_is_not_said_to_overlap(write: Write, tmp_path: Path) -> None:
    first, late, last = (write([n]) for n in range(3))
    catalog = tmp_path / "c.icelite"
    virtualize([first, last], catalog, concat_dim="time")
    message = refused(lambda: virtualize(late, catalog, concat_dim="time"), "f001.nc", "late", "2000-01-02")
    assert "overlap" not in message


def test_nothing_is_left_of_a_refusal(write: Write, tmp_path: Path) -> None:
    files, catalog = [write([n], more=static(n)) for n in range(2)], tmp_path / "c.icelite"
    virtualize(files[:1], catalog, concat_dim="time")
    before = catalog.read_bytes()
    with pytest.raises(IceliteError):
        virtualize(files, catalog, concat_dim="time")
    assert catalog.read_bytes() == before
