"""Templates: filled in any order, from many processes, again and again, they are what one call would have made."""

from __future__ import annotations

import multiprocessing
import random
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import oisst
import pandas as pd
import pytest
import xarray as xr

import icelite
from icelite.errors import AlreadyExistsError, ErrorKind, IceliteError, InvalidInputError, NodeNotFoundError

pytest.importorskip("virtualizarr")
DAYS = 8
GRID = (6, 12)
INDEX = pd.date_range("2024-08-01T12", periods=DAYS, freq="D")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("oisst")
    return [str(path) for path in oisst.write_days(folder, date(2024, 8, 1), DAYS, GRID)]


def make(folder: Path, sample: str, **options: Any) -> Path:
    catalog = folder / "a.icelite"
    options = {"concat_dim": "time", "index": INDEX, "authorize_virtual_chunk_access": access(sample), **options}
    icelite.template(catalog, sample, **options)
    return catalog


def access(file: str) -> dict[str, Any]:
    return {Path(file).parent.as_uri() + "/": icelite.LocalFileSystemAccess}


def fill(catalog: Path, files: str | list[str], **options: Any) -> Any:
    first = files if isinstance(files, str) else files[0]
    options = {"concat_dim": "time", "region": "auto", "authorize_virtual_chunk_access": access(first), **options}
    return icelite.virtualize(files, catalog, **options)


def read(catalog: Path, file: str) -> xr.Dataset:
    with xr.open_dataset(catalog, authorize_virtual_chunk_access=access(file)) as found:
        return found.load()


def history(catalog: Path) -> int:
    with icelite.Repository.open(catalog) as repo:
        return sum(1 for _ in repo.ancestry(branch="main"))


def test_any_order_gives_what_one_call_gives(tmp_path: Path, files: list[str]) -> None:
    catalog = make(tmp_path, files[0])
    empty = read(catalog, files[0])
    assert (empty.time.values == INDEX.values).all()
    assert all(bool(empty[name].isnull().all()) for name in ("sst", "anom", "err", "ice"))
    done = fill(catalog, [files[5], files[1], files[2]])
    assert ([Path(url).name for url in done.added], done.references) == (
        [Path(files[at]).name for at in (1, 2, 5)],
        12,
    )
    some = read(catalog, files[0])
    assert some.sst.isnull().all(["zlev", "lat", "lon"]).values.tolist() == [at not in (1, 2, 5) for at in range(DAYS)]
    for file in reversed(files):
        fill(catalog, file)
    icelite.virtualize(
        files, tmp_path / "b.icelite", concat_dim="time", authorize_virtual_chunk_access=access(files[0])
    )
    xr.testing.assert_identical(read(catalog, files[0]), read(tmp_path / "b.icelite", files[0]))
    with icelite.Repository.open(catalog) as repo:
        assert repo.verify() == []


def test_what_is_there_is_not_written_again(tmp_path: Path, files: list[str]) -> None:
    catalog = make(tmp_path, files[3])
    assert len(fill(catalog, files[3]).added) == 1  # the sample itself was not filled
    before = history(catalog)
    again = fill(catalog, files[3])
    assert (again.snapshot_id, again.added, len(again.known)) == (None, [], 1)
    assert history(catalog) == before
    dry = fill(catalog, files[4], dry_run=True)
    assert (dry.snapshot_id, len(dry.added), history(catalog)) == (None, 1, before)


def write_some(catalog: str, files: list[str], seed: int) -> None:
    order = random.Random(seed).sample(files, len(files))
    for file in order:
        fill(Path(catalog), file)


@pytest.mark.slow
def test_writers_at_the_same_time_lose_no_step(tmp_path: Path, files: list[str]) -> None:
    """Each of them writes every file, in an order of its own."""
    catalog = make(tmp_path, files[0])
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=write_some, args=(str(catalog), files, seed)) for seed in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(300)
        assert writer.exitcode == 0
    icelite.virtualize(
        files, tmp_path / "b.icelite", concat_dim="time", authorize_virtual_chunk_access=access(files[0])
    )
    xr.testing.assert_identical(read(catalog, files[0]), read(tmp_path / "b.icelite", files[0]))
    with icelite.Repository.open(catalog) as repo:
        assert repo.verify() == []


# -- what is missing -------------------------------------------------------------------------------------------------


def write_plain(path: Path, day: int, **extra: Any) -> str:
    """A file without fill values: floats, whole numbers and a value a step."""
    data = {
        "t": (("time", "x"), np.full((1, 3), day, "f4")),
        "n": (("time", "x"), np.full((1, 3), day, "i4")),
        "run": (("time",), np.array([day / 2])),
    }
    dataset = xr.Dataset(
        {**data, **extra}, coords={"time": [np.datetime64("2024-08-01", "ns") + np.timedelta64(day, "D")]}
    )
    nothing = {name: {"_FillValue": None} for name in dataset.variables}
    dataset.to_netcdf(path, unlimited_dims=["time"], encoding=nothing)
    return str(path)


PLAIN = {"concat_dim": "time", "loadable_variables": ["time", "run"]}


def test_missing_values_of_what_has_no_fill_value(tmp_path: Path) -> None:
    files = [write_plain(tmp_path / f"{day}.nc", day) for day in range(3)]
    index = pd.date_range("2024-08-01", periods=3, freq="D")
    catalog = tmp_path / "a.icelite"
    with pytest.raises(InvalidInputError, match=r"'n' has no value that means missing.*fill_value=\{'n': \.\.\.\}"):
        icelite.template(catalog, files[0], index=index, **PLAIN)
    assert not catalog.exists()
    icelite.template(catalog, files[0], index=index, fill_value={"n": -1}, **PLAIN)
    icelite.virtualize(files[1], catalog, region="auto", **PLAIN)
    with xr.open_dataset(catalog) as found:
        assert np.isnan(found.t.values).all(axis=1).tolist() == [True, False, True]
        assert found.n.values.tolist() == [[-1] * 3, [1] * 3, [-1] * 3]
        np.testing.assert_array_equal(found.run.values, [np.nan, 0.5, np.nan])
    icelite.virtualize([files[0], files[2]], catalog, region="auto", **PLAIN)
    with xr.open_dataset(catalog) as found:
        assert found.t.values[:, 0].tolist() == [0, 1, 2]
        assert found.run.values.tolist() == [0, 0.5, 1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"fill_value": {"n": "x"}}, "is none of its type"),
        ({"fill_value": {"n": 0, "m": 1}}, "'m', which no variable along 'time' is"),
        ({"index": []}, "one or more, strictly in order"),
        ({"index": pd.to_datetime(["2024-08-02", "2024-08-01", "2024-08-03"])}, "strictly in order"),
        ({"index": [1.0, 2.0]}, "the sample's are datetime64"),
        ({"concat_dim": "tiem"}, "has no dimension 'tiem'"),
        ({"index": pd.to_datetime(["2024-08-01T00:00:00.000000001"])}, "would be stored as"),
    ],
)
def test_bad_templates(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    sample = write_plain(tmp_path / "0.nc", 0)
    given = {"index": pd.date_range("2024-08-01", periods=3), "fill_value": {"n": 0}, **PLAIN, **options}
    with pytest.raises(InvalidInputError, match=words):
        icelite.template(tmp_path / "a.icelite", sample, **given)
    assert not (tmp_path / "a.icelite").exists()


# -- what does not fit -----------------------------------------------------------------------------------------------


def refused(catalog: Path, call: Any, *words: str) -> IceliteError:
    before = history(catalog)
    with pytest.raises(IceliteError) as error:
        call()
    assert all(word in error.value.message for word in words), error.value.message
    assert history(catalog) == before
    return error.value


def test_files_that_do_not_fit(tmp_path: Path, files: list[str]) -> None:
    catalog = make(tmp_path, files[0])
    (late,) = oisst.write_days(tmp_path / "late", date(2024, 8, 30), 1, GRID)
    found = refused(catalog, lambda: fill(catalog, str(late)), "2024-08-30T12:00:00 is not among the 8", "2024-08-01")
    assert found.kind == ErrorKind.INVALID_DATASET
    (other,) = oisst.write_days(tmp_path / "other", date(2024, 8, 2), 1, (6, 13))
    refused(catalog, lambda: fill(catalog, str(other)), "the grids differ: 'lon' has length 13")
    with xr.open_dataset(files[1], decode_cf=False) as dataset:
        dataset.rename({"sst": "sst2"}).to_netcdf(tmp_path / "renamed.nc")
    refused(catalog, lambda: fill(catalog, str(tmp_path / "renamed.nc")), "lacks 'sst'", "only it has 'sst2'")
    kept = fill(catalog, [files[1], files[2]], on_misfit="skip")
    assert len(kept.added) == 2


def test_two_files_of_one_step(tmp_path: Path, files: list[str]) -> None:
    catalog = make(tmp_path, files[0])
    fill(catalog, files[1])
    (again,) = oisst.write_days(tmp_path / "again", date(2024, 8, 2), 1, GRID)
    refused(catalog, lambda: fill(catalog, str(again)), "2024-08-02", "on_duplicate='newest'")
    assert len(fill(catalog, str(again), on_duplicate="newest").added) == 1
    with icelite.Repository.open(catalog) as repo:
        assert [Path(row.url).parent.name for row in repo.sources(branch="main")] == ["again"]


def test_what_is_no_template(tmp_path: Path, files: list[str]) -> None:
    icelite.Repository.create(tmp_path / "a.icelite").close()
    with pytest.raises(NodeNotFoundError, match=r"nothing along 'time' to fill.*icelite\.template"):
        fill(tmp_path / "a.icelite", files[0])
    for options in ({"concat_dim": None}, {"region": {"time": slice(0, 1)}}, {"append": True}):
        with pytest.raises(InvalidInputError, match="region must be 'auto'"):
            fill(tmp_path / "a.icelite", files[0], **options)
    icelite.virtualize(
        files[0], tmp_path / "a.icelite", concat_dim="time", authorize_virtual_chunk_access=access(files[0])
    )
    with pytest.raises(AlreadyExistsError):
        make(tmp_path, files[0])
