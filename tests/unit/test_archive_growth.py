"""What `virtualize`, `update`, `replace` and `drop` do with files that are not simply new."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from icelite.errors import ErrorKind, IceliteError, InvalidInputError, NotFoundError
from icelite.repository import Repository

pytest.importorskip("virtualizarr")
netCDF4 = pytest.importorskip("netCDF4")

from icelite.archive.dropping import drop  # noqa: E402
from icelite.archive.splice import KeptSteps, cut_pieces, find_starts  # noqa: E402
from icelite.archive.updating import replace, update  # noqa: E402
from icelite.archive.virtualize import virtualize  # noqa: E402


def write(
    path: Path,
    days: list[int],
    *,
    chunk: int = 1,
    units: str = "K",
    columns: int = 4,
    name: str = "v",
    written: int | None = None,
    level: int = 4,
    more: Callable[[Any], None] | None = None,
) -> Path:
    """A file with two-dimensional coordinates; of its steps only the first ``written`` have a chunk."""
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    with netCDF4.Dataset(path, "w") as file:
        for dim, size in (("time", None), ("y", 3), ("x", columns)):
            file.createDimension(dim, size)
        time = file.createVariable("time", "f8", ("time",))
        time.units = "days since 2000-01-01"
        time[:] = days
        file.createVariable("lat", "f4", ("y", "x"), zlib=True)[:] = np.arange(3 * columns).reshape(3, columns)
        options: Any = {"zlib": True, "complevel": level, "chunksizes": (chunk, 3, columns), "fill_value": -1}
        values = file.createVariable(name, "f4", ("time", "y", "x"), **options)
        values.setncatts({"units": units, "coordinates": "lat"})
        steps = np.random.default_rng(days[0] + 100 * level).random((len(days), 3, columns))
        values[:written] = steps[:written]
        if more is not None:
            more(file)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    return tmp_path / "c.icelite"


@pytest.fixture
def days(folder: Path) -> list[Path]:
    return [write(folder / f"day{n}.nc", [n]) for n in range(5)]


def check(catalog: Path, files: list[Path]) -> None:
    parts = [xr.open_dataset(file, engine="netcdf4").load() for file in files]
    options: Any = {"data_vars": "minimal", "coords": "minimal", "compat": "override", "combine_attrs": "override"}
    with xr.open_dataset(catalog, engine="icelite") as found:
        xr.testing.assert_equal(found.load(), xr.concat(parts, "time", **options))


def refused(catalog: Path, work: Callable[[], object], kind: ErrorKind, *parts: str) -> str:
    """The message of the error, which names all these; the catalog is as before."""
    before = catalog.read_bytes()
    with pytest.raises(IceliteError) as caught:
        work()
    assert caught.value.kind == kind, caught.value
    assert not [part for part in parts if part not in caught.value.message], caught.value.message
    assert catalog.read_bytes() == before
    return caught.value.message


def names(urls: Any) -> list[str]:
    return [Path(url).name for url in urls]


def test_everything_is_told_at_once(days: list[Path], folder: Path, catalog: Path) -> None:
    write(folder / "day9.nc", [9])
    virtualize(folder / "day[0249].nc", catalog, concat_dim="time")
    os.utime(days[2], ns=(1, 1))
    write(folder / "copy.nc", [4])
    write(folder / "odd.nc", [11], units="degC")
    (folder / "bad.nc").write_text("404")
    virtualize_all = lambda **how: virtualize(folder / "*.nc", catalog, concat_dim="time", **how)  # noqa: E731
    message = refused(
        catalog,
        virtualize_all,
        ErrorKind.INVALID_DATASET,
        *("day1.nc", "day3.nc", "on_late='insert'", "day2.nc", "on_changed='replace'", "copy.nc"),
        *("on_duplicate='newest'", "odd.nc", "degC", "on_misfit='skip'", "bad.nc", "404", "on_broken='skip'"),
    )
    assert "day0.nc" not in message
    before = catalog.read_bytes()
    plan = virtualize_all(dry_run=True)
    kinds = plan.late, plan.changed, plan.duplicate, plan.misfit, plan.broken
    expected = [["day1.nc", "day3.nc"], ["day2.nc"], ["copy.nc"], ["odd.nc"], ["bad.nc"]]
    assert [names(kind) for kind in kinds] == expected
    assert (plan.snapshot_id, catalog.read_bytes()) == (None, before)
    summary = update(catalog, folder / "*.nc")
    assert (names(summary.inserted), names(summary.left_out)) == (["day1.nc", "day3.nc"], ["odd.nc", "bad.nc"])
    assert names(summary.replaced) == ["day2.nc", "copy.nc"]
    check(catalog, [*days[:4], folder / "copy.nc", folder / "day9.nc"])
    assert names(update(catalog).left_out) == ["odd.nc", "bad.nc"]  # of all patterns that were ever given


def test_skip_leaves_all_as_it_is(days: list[Path], folder: Path, catalog: Path) -> None:
    virtualize([days[0], days[2]], catalog, concat_dim="time")
    write(folder / "copy.nc", [2])
    how: Any = {f"on_{kind}": "skip" for kind in ("late", "changed", "duplicate", "misfit", "broken")}
    summary = virtualize(folder / "*.nc", catalog, concat_dim="time", **how)
    assert (names(summary.added), names(summary.late), names(summary.duplicate)) == (
        ["day3.nc", "day4.nc"],
        ["day1.nc"],
        ["copy.nc"],
    )
    check(catalog, [days[0], *days[2:]])


def test_a_dry_run_makes_no_catalog(days: list[Path], catalog: Path) -> None:
    assert len(virtualize(days, catalog, concat_dim="time", dry_run=True).added) == 5
    assert not catalog.exists()


def test_the_odd_one_out_is_named_also_if_it_is_the_first(folder: Path, days: list[Path], catalog: Path) -> None:
    write(days[0], [0], units="degC")
    summary = virtualize(days, catalog, concat_dim="time", on_misfit="skip")
    assert names(summary.misfit) == ["day0.nc"]
    check(catalog, days[1:])


@pytest.mark.parametrize("prefer", [None, "*_v1.nc", lambda url: "_v1" in url])
def test_the_newest_of_two_is_kept(folder: Path, catalog: Path, prefer: Any) -> None:
    files = [write(folder / f"day{n}.nc", [n]) for n in (0, 2)]
    versions = [write(folder / f"day1_v{v}.nc", [1], level=v) for v in (1, 2)]
    for at, path in enumerate(versions):
        os.utime(path, ns=(0, 10**18 + at))
    virtualize(folder / "*.nc", catalog, concat_dim="time", on_duplicate="newest", prefer=prefer)
    check(catalog, [files[0], versions[1] if prefer is None else versions[0], files[1]])


def test_what_the_first_file_holds_for_all_comes_from_the_new_one(days: list[Path], catalog: Path) -> None:
    """The coordinates without the dimension were references to the file as it was."""
    virtualize(days, catalog, concat_dim="time")
    write(days[0], [0], level=5)
    assert names(update(catalog).replaced) == ["day0.nc"]
    check(catalog, days)
    drop(catalog, days[0])
    days[0].unlink()
    check(catalog, days[1:])


def test_no_other_source_is_opened(days: list[Path], catalog: Path) -> None:
    virtualize(days, catalog, concat_dim="time")
    for day in days[3:]:
        day.rename(day.with_suffix(".away"))
    write(days[1], [1], level=5)
    size = catalog.stat().st_size
    replace(catalog, days[1])
    drop(catalog, days[2])
    update(catalog, [days[1].with_name("day7.nc"), write(days[1].with_name("day7.nc"), [7])])
    for day in days[3:]:
        day.with_suffix(".away").rename(day)
    check(catalog, [days[0], days[1], days[3], days[4], days[1].with_name("day7.nc")])
    assert catalog.stat().st_size < size + 60_000


def test_a_file_grows(folder: Path, catalog: Path) -> None:
    """Its last chunk is partly filled, and it is the last file."""
    files = [write(folder / "a.nc", [0, 1, 2], chunk=3), write(folder / "b.nc", [3], chunk=3)]
    for found in (files[:1], files):  # at once it takes VirtualiZarr 2.8
        virtualize(found, catalog, concat_dim="time")
    for days in ([3, 4], [3, 4, 5], [3, 4]):
        write(files[1], days, chunk=3)
        assert names(update(catalog, folder / "*.nc").replaced) == ["b.nc"]
        check(catalog, files)
    later = write(folder / "c.nc", [6, 7, 8], chunk=3)
    assert "partly filled" in next(iter(update(catalog, folder / "*.nc").misfit.values()))
    write(files[1], [3, 4, 5], chunk=3)
    update(catalog, folder / "*.nc")
    check(catalog, [*files, later])


def test_a_step_is_cut_out_of_a_chunk(folder: Path, catalog: Path) -> None:
    files = [write(folder / f"{n}.nc", [3 * n, 3 * n + 1, 3 * n + 2], chunk=3) for n in range(3)]
    virtualize(files, catalog, concat_dim="time")
    summary = drop(catalog, "2000-01-05")
    assert summary.cut == {"v": 4}
    assert "4 steps of v copied" in str(summary)
    parts = [xr.open_dataset(file).load() for file in files]
    with xr.open_dataset(catalog, engine="icelite") as found:
        expected = xr.concat(parts, "time", data_vars="minimal", coords="minimal", compat="override")
        xr.testing.assert_equal(found.load(), expected.isel(time=[0, 1, 2, 3, 5, 6, 7, 8]))
    assert update(catalog, folder / "*.nc").snapshot_id is None
    write(files[1], [3, 4, 5], chunk=3, level=5)
    assert names(update(catalog, folder / "*.nc").replaced) == ["1.nc"]
    check(catalog, files)


def test_steps_without_a_chunk_belong_to_their_file(folder: Path, catalog: Path) -> None:
    """A file's references do not show how many steps it has."""
    files = [write(folder / "a.nc", [0, 1, 2], written=1), write(folder / "b.nc", [3])]
    virtualize(files, catalog, concat_dim="time")
    drop(catalog, files[0])
    check(catalog, files[1:])
    update(catalog, folder / "*.nc", on_dropped="insert")
    check(catalog, files)
    write(files[0], [1, 2], written=1)
    update(catalog, folder / "*.nc")
    check(catalog, files)


def test_what_was_dropped_stays_out_until_it_changes(days: list[Path], catalog: Path) -> None:
    virtualize(days, catalog, concat_dim="time")
    drop(catalog, ["2000-01-02", days[3]])
    assert names(update(catalog).dropped) == ["day1.nc", "day3.nc"]
    repository = Repository.open(catalog)
    repository.expire_snapshots(repository.lookup_snapshot(repository.lookup_branch("main")).written_at)
    repository.close()
    assert names(update(catalog).dropped) == ["day1.nc", "day3.nc"]  # also without the snapshot that says so
    write(days[3], [3], level=5)
    assert names(update(catalog).inserted) == ["day3.nc"]
    check(catalog, [days[0], *days[2:]])


def test_months_are_dropped_by_a_prefix_and_by_a_slice(folder: Path, catalog: Path) -> None:
    files = [write(folder / f"{n}.nc", [10 * n]) for n in range(9)]
    virtualize(folder / "*.nc", catalog, concat_dim="time")
    drop(catalog, "2000-02")
    check(catalog, [*files[:4], *files[6:]])
    drop(catalog, slice("2000-01-11", "2000-01-21"))
    check(catalog, [files[0], files[3], *files[6:]])


def test_bad_input_is_one_clear_error(days: list[Path], folder: Path, catalog: Path, tmp_path: Path) -> None:
    virtualize(days[:4], catalog, concat_dim="time")
    invalid, argument = ErrorKind.INVALID_DATASET, ErrorKind.INVALID_ARGUMENT
    refused(catalog, lambda: drop(catalog, "2001-01-01"), argument, "2001-01-01", "2000-01-01 to 2000-01-04")
    refused(catalog, lambda: drop(catalog, folder / "none.nc"), ErrorKind.LOCATION_NOT_FOUND, "none.nc")
    refused(catalog, lambda: drop(catalog, days[:4]), argument, "nothing")
    refused(catalog, lambda: drop(catalog, []), argument)
    refused(catalog, lambda: drop(catalog, "2000-01-01", concat_dim="tiem"), argument, "tiem", "time", "x, y")
    refused(catalog, lambda: replace(catalog, days[4]), argument, "day4.nc", "replaces")
    with pytest.raises(NotFoundError, match=r"day4\.nc"):
        replace(catalog, write(tmp_path / "new.nc", [9]), replaces=days[4])
    other = write(folder / "grid.nc", [1], columns=5)
    refused(catalog, lambda: replace(catalog, other, replaces=days[1]), invalid, "grid.nc", "'x'")
    refused(catalog, lambda: virtualize(days, catalog, concat_dim="tiem"), invalid, "tiem", "time, x, y")
    with pytest.raises(InvalidInputError, match="'time' is like it"):
        virtualize(days[0], tmp_path / "other.icelite", concat_dim="tiem")
    with pytest.raises(InvalidInputError, match="on_late"):
        virtualize(days, catalog, concat_dim="time", on_late="add")  # type: ignore[arg-type]


def test_an_insert_between_the_steps_of_a_file(folder: Path, catalog: Path) -> None:
    virtualize([write(folder / "a.nc", [0, 1, 5]), write(folder / "b.nc", [7])], catalog, concat_dim="time")
    inside, across = write(folder / "in.nc", [2, 3]), write(folder / "over.nc", [5, 6])
    for file in (inside, across):
        work = lambda file=file: virtualize(file, catalog, concat_dim="time", on_late="insert", on_duplicate="newest")  # noqa: E731
        refused(catalog, work, ErrorKind.INVALID_DATASET, file.name, "a.nc", "overlap")


def test_a_variable_that_is_missing_is_filled(folder: Path, catalog: Path) -> None:
    def second(file: Any) -> None:
        options: Any = {"zlib": True, "chunksizes": (1, 3, 4), "fill_value": -1}
        file.createVariable("w", "f4", ("time", "y", "x"), **options)[:] = 7

    files = [write(folder / "a.nc", [0], more=second), write(folder / "b.nc", [1]), write(folder / "c.nc", [2])]
    how: Any = {"concat_dim": "time", "missing": "fill"}
    virtualize(files[:2], catalog, **how)
    virtualize(files, catalog, **how)
    with xr.open_dataset(catalog, engine="icelite") as found:
        assert found.w.isnull().mean(("y", "x")).values.tolist() == [0, 1, 1]
        assert not found.v.isnull().any()


def test_a_catalog_does_not_say_what_is_opened_elsewhere(days: list[Path], tmp_path: Path) -> None:
    catalog = tmp_path / "catalogs" / "c.icelite"
    catalog.parent.mkdir()
    virtualize(days[:3], catalog, concat_dim="time")
    refused(catalog, lambda: update(catalog), ErrorKind.INVALID_ARGUMENT, str(days[0].parent), "sources=")
    assert len(update(catalog, days).added) == 2
    inside = tmp_path / "inside.icelite"
    virtualize(str(days[0].parent / "*.nc"), inside, concat_dim="time")
    secret = write(tmp_path.parent / f"{tmp_path.name}-elsewhere.nc", [9])
    (days[0].parent / "link.nc").symlink_to(secret)
    refused(inside, lambda: update(inside), ErrorKind.INVALID_ARGUMENT, "link.nc")


def test_a_group_is_continued_as_it_was_made(days: list[Path], folder: Path, catalog: Path) -> None:
    virtualize(str(folder / "*.nc"), catalog, concat_dim="time", drop_variables=["lat"], group="g")
    write(folder / "day5.nc", [5])
    assert len(update(catalog, group="g").added) == 1
    with xr.open_dataset(catalog, engine="icelite", group="g") as found:
        assert found.sizes["time"] == 6
        assert "lat" not in found.variables
    virtualize(str(folder / "*.nc"), catalog, concat_dim="time", group="h", preprocess=lambda ds: ds)
    refused(catalog, lambda: update(catalog, group="h"), ErrorKind.INVALID_ARGUMENT, "preprocess=")


def test_pieces() -> None:
    pieces, length = cut_pieces(10, [(2, 4)], [(2, 3), (10, 1)])
    assert (pieces, length) == ([KeptSteps(0, 2, 0), KeptSteps(4, 10, 5)], 12)
    assert find_starts([(2, 4)], [(2, 3), (10, 1)]) == [2, 11]
    assert cut_pieces(4, [], []) == ([KeptSteps(0, 4, 0)], 4)
