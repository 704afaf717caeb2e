"""GRIB: fields and their bytes, what is referenced and what is copied, and how they become datasets."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from icelite.errors import ErrorKind, InvalidInputError, StorageError
from icelite.formats import open_virtual, open_virtual_tree
from icelite.formats.source import SourceFile
from icelite.repository import Repository
from icelite.virtualizarr import to_icelite

if importlib.util.find_spec("eccodes") is None:
    pytest.skip("needs eccodes", allow_module_level=True)  # not imported here: see eccodes_program
pytest.importorskip("virtualizarr")

from icelite.formats import eccodes
from icelite.formats.eccodes_program import library
from icelite.formats.grib_messages import read_fields, split_message

try:
    import gribberish  # noqa: F401

    REFERENCED = True
except ImportError:
    REFERENCED = False
VALUES = np.arange(12.0)
GRID = {
    "Ni": 4,
    "Nj": 3,
    "latitudeOfFirstGridPointInDegrees": 20,
    "latitudeOfLastGridPointInDegrees": 0,
    "longitudeOfFirstGridPointInDegrees": 0,
    "longitudeOfLastGridPointInDegrees": 30,
    "iDirectionIncrementInDegrees": 10,
    "jDirectionIncrementInDegrees": 10,
}
TWO_METRES = {"typeOfFirstFixedSurface": 103, "scaledValueOfFirstFixedSurface": 2, "scaleFactorOfFirstFixedSurface": 0}


def handle(values: Any = VALUES, sample: str = "regular_ll_sfc_grib2", **keys: Any) -> Any:
    codes = library()
    found = codes.codes_grib_new_from_samples(sample)
    packing = keys.pop("packingType", None)
    template = {key: keys[key] for key in ("productDefinitionTemplateNumber",) if key in keys}
    for key, value in (GRID | template | keys).items():
        codes.codes_set(found, key, value)
    codes.codes_set_values(found, np.ravel(values).astype(float))
    if packing:
        codes.codes_set(found, "packingType", packing)
    return found


def message(values: Any = VALUES, sample: str = "regular_ll_sfc_grib2", **keys: Any) -> bytes:
    return bytes(library().codes_get_message(handle(values, sample, **keys)))


def write(path: Path, *messages: bytes) -> Path:
    path.write_bytes(b"".join(messages))
    return path


def stored(path: Path) -> xr.DataTree:
    """What the engine reads after a commit."""
    catalog = path.with_name("c.icelite")
    catalog.unlink(missing_ok=True)
    session = Repository.create(catalog).writable_session("main")
    to_icelite(open_virtual_tree(path), session.store)
    session.commit("sample")
    return xr.open_datatree(catalog, engine="icelite").load()


def variables(tree: xr.DataTree) -> dict[str, xr.DataArray]:
    return {f"{node.path}/{name}": node[name] for node in tree.subtree for name in node.data_vars}


# -- the fields of a file --------------------------------------------------------------------------------------------


def grib1(grid: bytes) -> bytes:
    """The sections of a message of edition 1 that say what it is."""
    product = (28).to_bytes(3, "big") + bytes(4) + b"\x80" + bytes(20)
    description = (3 + len(grid)).to_bytes(3, "big") + grid
    body = product + description + b"7777"
    return b"GRIB" + (8 + len(body)).to_bytes(3, "big") + b"\x01" + body


def test_messages_are_found_wherever_they_are(tmp_path: Path) -> None:
    path = write(tmp_path / "a.grib", b"heading", grib1(bytes(29)), b"\0\0", grib1(bytes(26)))
    extents = [extent for extent, _ in read_fields(SourceFile.locate(path))]
    assert [extent.offset for extent in extents] == [7, 81]
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(StorageError, match="message at byte 81 is damaged or cut short") as error:
        open_virtual_tree(path)
    assert error.value.kind == ErrorKind.UNREADABLE_SOURCE


def test_a_damaged_message_costs_itself_alone(tmp_path: Path) -> None:
    damaged = message(VALUES)[:-4] + b"7778"
    path = write(tmp_path / "a.grib", damaged, message(VALUES + 1))
    with pytest.warns(UserWarning, match="the message at byte 0"):
        dataset = open_virtual(path)
    assert list(dataset.encoding["icelite_skipped"]) == ["the message at byte 0"]
    with pytest.warns(UserWarning, match="is left out"):
        np.testing.assert_allclose(next(iter(variables(stored(path)).values())), (VALUES + 1).reshape(3, 4))
    with pytest.raises(InvalidInputError, match="on_unreadable='skip'"):
        open_virtual(path, on_unreadable="raise")


def multi(parts: list[bytes], shared: int) -> bytes:
    """Messages of one field put into one, without the sections up to ``shared`` that they have in common."""
    body = b""
    for number, part in enumerate(parts):
        at = 16
        while part[at : at + 4] != b"7777":
            length = int.from_bytes(part[at : at + 4], "big")
            if number == 0 or part[at + 4] > shared:
                body += part[at : at + length]
            at += length
    return parts[0][:8] + (16 + len(body) + 4).to_bytes(8, "big") + body + b"7777"


@given(count=st.integers(1, 5), shared=st.sampled_from([1, 2, 3]), holes=st.booleans())
@settings(max_examples=20, deadline=None)
def test_each_field_of_a_message_is_a_message_of_its_own(count: int, shared: int, holes: bool) -> None:
    values = [np.where((VALUES % 3 == 0) & holes, 9999, VALUES + number) for number in range(count)]
    parts = [message(each, parameterNumber=n, bitmapPresent=int(holes)) for n, each in enumerate(values)]
    whole = multi(parts, shared)
    assert [each.message for each in split_message(whole)] == (parts if count > 1 else [whole])


def test_a_bitmap_that_is_given_once_holds_for_the_fields_behind_it() -> None:
    holes = np.where(VALUES % 3 == 0, 9999, VALUES)
    first, second = (
        message(np.where(holes == 9999, holes, holes + n), parameterNumber=n, bitmapPresent=1) for n in (0, 1)
    )
    section = sixth(second)
    whole = multi([first, second.replace(section, b"\0\0\0\x06\x06\xfe")], 3)
    assert split_message(whole)[1].message == second


def sixth(data: bytes) -> bytes:
    at = 16
    while data[at + 4] != 6:
        at += int.from_bytes(data[at : at + 4], "big")
    return data[at : at + int.from_bytes(data[at : at + 4], "big")]


def test_all_fields_of_a_message_are_found(tmp_path: Path) -> None:
    winds = [message(VALUES + 100 * n, parameterCategory=2, parameterNumber=2 + n, **TWO_METRES) for n in (0, 1)]
    path = write(tmp_path / "a.grib", multi(winds, 3))
    found = stored(path)["heightAboveGround_2"]
    np.testing.assert_array_equal(found["u"], VALUES.reshape(3, 4))
    np.testing.assert_array_equal(found["v"], VALUES.reshape(3, 4) + 100)
    copied = open_virtual(path).encoding["icelite_copied"]
    assert list(copied) == (["v"] if REFERENCED else ["u", "v"])


# -- values and coordinates ------------------------------------------------------------------------------------------


def points(i_negative: int, j_positive: int, columns_first: int, turning: int) -> np.ndarray:
    """Latitude and longitude of each point in the order of a message, as the flags of the standard say."""
    latitudes = np.arange(3) * 10.0 if j_positive else 20 - np.arange(3) * 10.0
    longitudes = 30 - np.arange(4) * 10.0 if i_negative else np.arange(4) * 10.0
    outer, inner = (longitudes, latitudes) if columns_first else (latitudes, longitudes)
    found = [
        (first, second)
        for number, first in enumerate(outer)
        for second in (inner[::-1] if turning and number % 2 else inner)
    ]
    return np.array(found)[:, ::-1] if columns_first else np.array(found)


flags = st.integers(0, 1)


@given(
    i_negative=flags,
    j_positive=flags,
    columns_first=flags,
    turning=flags,
    edition=st.sampled_from([1, 2]),
    packing=st.sampled_from([None, "grid_ieee", "grid_ccsds", "grid_jpeg", "grid_complex", "grid_second_order"]),
    holes=st.sets(st.integers(0, 11), max_size=12),
    values=st.lists(st.floats(-1e4, 1e4, width=32), min_size=12, max_size=12),
)
@settings(max_examples=25, deadline=None)
def test_each_value_is_where_the_standard_says(
    tmp_path_factory: pytest.TempPathFactory,
    i_negative: int,
    j_positive: int,
    columns_first: int,
    turning: int,
    edition: int,
    packing: str | None,
    holes: set[int],
    values: list[float],
) -> None:
    data = np.array(values)
    data[list(holes)] = 9999
    keys: dict[str, Any] = {
        "iScansNegatively": i_negative,
        "jScansPositively": j_positive,
        "jPointsAreConsecutive": columns_first,
        "latitudeOfFirstGridPointInDegrees": 0 if j_positive else 20,
        "latitudeOfLastGridPointInDegrees": 20 if j_positive else 0,
        "longitudeOfFirstGridPointInDegrees": 30 if i_negative else 0,
        "longitudeOfLastGridPointInDegrees": 0 if i_negative else 30,
        "bitmapPresent": int(bool(holes)),
    }
    if edition == 2:
        keys["alternativeRowScanning"] = turning
    if packing and (edition == 2 or packing in ("grid_ieee", "grid_second_order")) and not holes:
        keys["packingType"] = packing
    path = tmp_path_factory.mktemp("grib") / "a.grib"
    write(path, message(data, f"regular_ll_sfc_grib{edition}", **keys))
    expected = eccodes.read_values(path.read_bytes())
    (found,) = variables(stored(path)).values()
    for (latitude, longitude), value in zip(
        points(i_negative, j_positive, columns_first, keys.get("alternativeRowScanning", 0)), expected, strict=True
    ):
        np.testing.assert_allclose(found.sel(latitude=latitude, longitude=longitude).item(), value, rtol=1e-9)


@pytest.mark.parametrize("packing", ["grid_simple", "grid_ccsds", "grid_jpeg", "grid_complex"])
@pytest.mark.parametrize("sample", ["regular_ll_pl_grib2", "reduced_gg_pl_32_grib2", "polar_stereographic_sfc_grib2"])
@pytest.mark.skipif(not REFERENCED, reason="gribberish needs Python 3.12")
def test_what_gribberish_decodes_is_not_copied(packing: str, sample: str, tmp_path: Path) -> None:
    codes = library()
    found = codes.codes_grib_new_from_samples(sample)
    codes.codes_set_values(found, np.random.default_rng(0).normal(280, 10, codes.codes_get(found, "numberOfPoints")))
    codes.codes_set(found, "packingType", packing)
    path = write(tmp_path / "a.grib", bytes(codes.codes_get_message(found)))
    dataset = open_virtual(path, on_unreferenceable="raise")
    assert dataset.encoding["icelite_copied"] == {}
    (values,) = variables(stored(path)).values()
    np.testing.assert_allclose(values.values.ravel(), codes.codes_get_values(found), rtol=1e-9)


def test_a_constant_field_of_the_first_edition_keeps_its_holes(tmp_path: Path) -> None:
    holes = np.where(VALUES % 3 == 0, 9999, 7)
    path = write(tmp_path / "a.grib", message(holes, "regular_ll_sfc_grib1", bitmapPresent=1))
    (found,) = variables(stored(path)).values()
    np.testing.assert_array_equal(found.values.ravel(), np.where(holes == 9999, np.nan, 7))


def test_a_copy_is_read_in_parts(tmp_path: Path) -> None:
    messages = [message(VALUES + 100 * n, dataTime=n * 100, packingType="grid_ieee") for n in range(3)]
    variable = next(iter(open_virtual(write(tmp_path / "a.grib", *messages)).data_vars.values())).variable
    whole = np.stack([VALUES.reshape(3, 4) + 100 * n for n in range(3)])
    for key in [(1,), (slice(1, 3), 2), (slice(None), slice(1, 2), 3), (-1, slice(None), slice(None, None, 2))]:
        np.testing.assert_array_equal(variable[key].values, whole[key])


# -- datasets --------------------------------------------------------------------------------------------------------


def test_runs_and_steps_are_dimensions_with_holes(tmp_path: Path) -> None:
    messages = [
        message(VALUES + hour + step, dataTime=hour * 100, forecastTime=step, **TWO_METRES)
        for hour in (0, 12)
        for step in (0, 6, 12)
        if (hour, step) != (12, 6)
    ]
    found = stored(write(tmp_path / "a.grib", *messages))["heightAboveGround_2"]
    assert found["t2m"].dims == ("time", "step", "latitude", "longitude")
    assert np.isnan(found["t2m"][1, 1]).all()
    np.testing.assert_array_equal(found["t2m"][1, 2], VALUES.reshape(3, 4) + 24)
    assert found["valid_time"].values[1, 2] == np.datetime64("2007-03-24T00:00")
    assert found["heightAboveGround"].item() == 2


def test_members_are_a_dimension(tmp_path: Path) -> None:
    keys = {"productDefinitionTemplateNumber": 1, "numberOfForecastsInEnsemble": 3}
    messages = [message(VALUES + n, perturbationNumber=n, **keys) for n in (2, 0, 1)]
    found = next(iter(variables(stored(write(tmp_path / "a.grib", *messages))).values()))
    np.testing.assert_array_equal(found["number"], [0, 1, 2])
    np.testing.assert_array_equal(found[2], VALUES.reshape(3, 4) + 2)


def test_of_a_field_that_is_there_twice_the_first_is_taken(tmp_path: Path) -> None:
    path = write(tmp_path / "a.grib", message(VALUES), message(VALUES + 1))
    with pytest.warns(UserWarning, match="twice: the first of each is taken"):
        (found,) = variables(stored(path)).values()
    np.testing.assert_array_equal(found, VALUES.reshape(3, 4))


def test_intervals_that_end_together_are_kept_apart(tmp_path: Path) -> None:
    keys = {"productDefinitionTemplateNumber": 8, "typeOfStatisticalProcessing": 1, "parameterCategory": 1}
    messages = [
        message(VALUES + n, parameterNumber=8, stepRange=interval, **keys)
        for n, interval in enumerate(("0-6", "6-12", "0-12"))
    ]
    found = variables(stored(write(tmp_path / "a.grib", *messages)))
    shorter, longer = sorted(found.values(), key=lambda each: -each.ndim)
    np.testing.assert_array_equal(shorter, [VALUES.reshape(3, 4), VALUES.reshape(3, 4) + 1])
    np.testing.assert_array_equal(longer, VALUES.reshape(3, 4) + 2)
    assert longer["valid_time"].values == np.datetime64("2007-03-24T00:00")


def test_thresholds_are_kept_apart(tmp_path: Path) -> None:
    keys = {"productDefinitionTemplateNumber": 5, "probabilityType": 1, "scaleFactorOfUpperLimit": 0}
    messages = [message(VALUES + n, scaledValueOfUpperLimit=n, **keys) for n in (1, 5, 10)]
    found = variables(stored(write(tmp_path / "a.grib", *messages)))
    assert sorted(float(each[0, 0]) for each in found.values()) == [1, 5, 10]


def test_unknown_parameters_have_their_numbers_for_a_name(tmp_path: Path) -> None:
    messages = [message(VALUES + n, parameterCategory=191, parameterNumber=n) for n in (200, 201)]
    found = stored(write(tmp_path / "a.grib", *messages))["surface"]
    np.testing.assert_array_equal(found["unknown_0_191_200"], VALUES.reshape(3, 4) + 200)
    np.testing.assert_array_equal(found["unknown_0_191_201"], VALUES.reshape(3, 4) + 201)


def test_grids_of_one_size_are_kept_apart(tmp_path: Path) -> None:
    other = {"latitudeOfFirstGridPointInDegrees": 50, "latitudeOfLastGridPointInDegrees": 30}
    path = write(tmp_path / "a.grib", message(VALUES), message(VALUES + 1, dataTime=0, **other))
    found = variables(stored(path))
    assert sorted(float(each["latitude"][0]) for each in found.values()) == [20, 50]


def test_one_level_of_each_variable_fits_into_one_dataset(tmp_path: Path) -> None:
    wind = {"parameterCategory": 2, "parameterNumber": 2, **TWO_METRES, "scaledValueOfFirstFixedSurface": 10}
    path = write(tmp_path / "a.grib", message(VALUES, **TWO_METRES), message(VALUES + 1, **wind))
    dataset = open_virtual(path)
    assert {name: dataset[name].attrs["heightAboveGround"] for name in dataset.data_vars} == {"t2m": 2, "u10": 10}
    assert set(open_virtual_tree(path).children) == {"heightAboveGround_2", "heightAboveGround_10"}
    assert list(open_virtual(path, group="heightAboveGround_10").data_vars) == ["u10"]
    assert list(open_virtual(path, drop_variables=["t2m"]).data_vars) == ["u10"]


def test_what_does_not_fit_into_one_dataset_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.grib", message(VALUES), message(VALUES, parameterNumber=6, forecastTime=6))
    with pytest.raises(InvalidInputError, match="in the groups surface, surface_instant: open it as a tree"):
        open_virtual(path)
    with pytest.raises(InvalidInputError, match="no group 'there'"):
        open_virtual(path, group="there")


def test_a_variable_with_far_more_places_than_fields_is_divided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("icelite.formats.grib_cubes._MOST_CELLS", 3)
    messages = [message(VALUES + n, dataTime=n * 100, forecastTime=n) for n in (0, 6)]
    found = variables(stored(write(tmp_path / "a.grib", *messages)))
    assert sorted(float(each[0, 0]) for each in found.values()) == [0, 6]


# -- the process -----------------------------------------------------------------------------------------------------


def test_a_message_that_ends_the_library_costs_itself_alone(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(280, 10, 12)
    good = message(values, packingType="grid_jpeg")
    section = good.index(b"\0\0\0\x17\x05")  # says how many values there are: fewer than the picture has
    bad = good[: section + 5] + (3).to_bytes(4, "big") + good[section + 9 :]
    assert eccodes.read_values(good).size == 12
    try:
        eccodes.read_values(bad)
    except ValueError as error:
        assert "ecCodes" in str(error)  # noqa: PT017  (it may also decode it, by luck)
    np.testing.assert_allclose(eccodes.read_values(good), values, rtol=1e-3)
    path = write(tmp_path / "a.grib", bad, good)
    with pytest.warns(UserWarning, match="3 values for 12 points"):
        (found,) = variables(stored(path)).values()
    np.testing.assert_allclose(found.values.ravel(), eccodes.read_values(good))


def test_the_library_begins_anew_when_its_process_is_gone() -> None:
    good = message(VALUES)
    eccodes.read_values(good)
    running = eccodes._process._running
    assert running is not None
    running.kill()
    running.wait()
    np.testing.assert_array_equal(eccodes.read_values(good), VALUES)


def test_a_fork_asks_a_process_of_its_own() -> None:
    good = message(VALUES)
    eccodes.read_values(good)
    child = os.fork()
    if child == 0:
        os._exit(0 if (eccodes.read_values(good) == VALUES).all() else 1)
    assert os.waitpid(child, 0)[1] == 0
    np.testing.assert_array_equal(eccodes.read_values(good), VALUES)


PROJ_TOO = """
from icelite.formats import open_virtual
open_virtual({path!r})
import pyproj
assert pyproj.Transformer.from_crs(4326, 32632, always_xy=True).transform(9, 45)[0] == 500000
open_virtual({path!r})
"""


def test_other_libraries_keep_their_own_proj(tmp_path: Path) -> None:
    pytest.importorskip("pyproj")
    path = write(tmp_path / "a.grib", message(VALUES))
    program = PROJ_TOO.format(path=str(path))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
