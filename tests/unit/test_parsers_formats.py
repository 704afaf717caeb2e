"""What the parsers of single formats find: grids of GeoTIFFs, layouts of TIFFs, headers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from icelite.errors import InvalidInputError
from icelite.formats import open_virtual
from icelite.repository import Repository
from icelite.virtualizarr import to_icelite

tifffile = pytest.importorskip("tifffile")
fits = pytest.importorskip("astropy.io.fits")
pytest.importorskip("virtualizarr")
pytest.importorskip("virtual_tiff")

from icelite.formats.manifests import HAS_INLINED, json_attributes  # noqa: E402

VALUES = np.arange(50 * 40, dtype="f4").reshape(50, 40)
UTM, WGS84, POINT = 32632, 4326, 2


def geotiff(
    folder: Path, *, matrix: Any = None, scale: Any = None, tie: Any = None, keys: Any = (), **more: Any
) -> Path:
    """A GeoTIFF with these tags; ``keys`` are its GeoKeys by number."""
    directory = [1, 1, 0, len(keys), *(number for key, value in keys for number in (key, 0, 1, value))]
    tags = [(34735, "H", len(directory), directory, True)]
    for tag, values in ((34264, matrix), (33550, scale), (33922, tie)):
        if values is not None:
            tags.append((tag, "d", len(values), [float(value) for value in values], True))
    tags.extend(more.pop("tags", ()))
    tifffile.imwrite(folder / "image.tif", VALUES, extratags=tags, metadata=None, **more)
    return folder / "image.tif"


def stored(path: Path, **options: Any) -> xr.Dataset:
    """What the engine reads after a commit."""
    catalog = path.with_name("c.icelite")
    session = Repository.create(catalog).writable_session("main")
    to_icelite(open_virtual(path, **options), session.store)
    session.commit("sample")
    return xr.open_dataset(catalog, engine="icelite").load()


def ends(variable: xr.DataArray) -> list[float]:
    return [float(variable.values.flat[0]), float(variable.values.flat[-1])]


# The numbers are those of GDAL 3 (rioxarray) for files that it wrote with the same tags.
NORTH_UP = {"scale": (30, 30, 0), "tie": (0, 0, 0, 500000, 4600000, 0), "keys": [(1024, 1), (3072, UTM)]}
DEGREES = {"scale": (0.1, 0.1, 0), "tie": (0, 0, 0, -10, 60, 0), "keys": [(1024, 2), (1025, 1), (2048, WGS84)]}


def test_coordinates_are_the_centres_of_pixels(tmp_path: Path) -> None:
    dataset = stored(geotiff(tmp_path, **NORTH_UP))
    assert ends(dataset["x"]) == [500015.0, 501185.0]
    assert ends(dataset["y"]) == [4599985.0, 4598515.0]
    assert dataset["spatial_ref"].attrs["GeoTransform"] == "500000.0 30.0 0.0 4600000.0 0.0 -30.0"
    assert dataset["spatial_ref"].attrs["epsg_code"] == "EPSG:32632"
    assert dataset["band_data"].encoding.get("grid_mapping", dataset["band_data"].attrs.get("grid_mapping"))
    assert "spatial_ref" in dataset.coords


def test_degrees_and_values_of_points(tmp_path: Path) -> None:
    area = stored(geotiff(tmp_path, **DEGREES))
    assert ends(area["x"]) == [-9.95, -6.049999999999999]
    assert ends(area["y"]) == [59.95, 55.050000000000004]
    assert area["y"].attrs["units"] == "degrees_north"
    (tmp_path / "point").mkdir()
    keys = [(1024, 2), (1025, POINT), (2048, WGS84)]
    point = stored(geotiff(tmp_path / "point", scale=(0.5, 0.5, 0), tie=(0, 0, 0, -10, 60, 0), keys=keys))
    assert ends(point["x"]) == [-10, 9.5]
    assert point.attrs["AREA_OR_POINT"] == "Point"


def test_a_rotated_grid_has_coordinates_of_two_dimensions(tmp_path: Path) -> None:
    matrix = (30, 5, 0, 500000, 4, -30, 0, 4600000, 0, 0, 0, 0, 0, 0, 0, 1)
    dataset = stored(geotiff(tmp_path, matrix=matrix, keys=[(3072, UTM)]))
    assert ends(dataset["xc"]) == [500017.5, 501432.5]
    assert ends(dataset["yc"]) == [4599987.0, 4598673.0]


def test_no_data_and_scale_of_gdal(tmp_path: Path) -> None:
    xml = '<GDALMetadata><Item name="SCALE" sample="0" role="scale">0.5</Item><Item name="OFFSET" sample="0" '
    xml += 'role="offset">10</Item><Item name="UNITTYPE" sample="0" role="unittype">K</Item></GDALMetadata>'
    tags = [(42113, "s", 0, "3", True), (42112, "s", 0, xml, True)]
    dataset = stored(geotiff(tmp_path, tags=tags))
    expected = np.where(VALUES == 3, np.nan, VALUES * 0.5 + 10)
    np.testing.assert_array_equal(dataset["band_data"].values, expected)
    assert dataset["band_data"].attrs["units"] == "K"


@pytest.mark.skipif(not HAS_INLINED, reason="VirtualiZarr holds chunks of its own from 2.8 (Python 3.12) on")
def test_only_the_short_strip_is_copied(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", VALUES, rowsperstrip=15, compression="zlib", predictor=3)
    dataset = open_virtual(tmp_path / "a.tif")
    assert dataset.encoding["icelite_copied"] == {"band_data": "a last strip is shorter than the others: 1 of 4 chunks"}
    manifest = dataset["band_data"].variable._data.manifest
    assert list(manifest._inlined) == [(3, 0)]
    np.testing.assert_array_equal(stored(tmp_path / "a.tif")["band_data"].values, VALUES)
    with pytest.raises(InvalidInputError, match="a last strip"):
        open_virtual(tmp_path / "a.tif", on_unreferenceable="raise")


def test_uncompressed_strips_need_no_copy(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", VALUES, rowsperstrip=15)
    assert open_virtual(tmp_path / "a.tif", on_unreferenceable="raise")["band_data"].shape == VALUES.shape
    np.testing.assert_array_equal(stored(tmp_path / "a.tif")["band_data"].values, VALUES)


def test_images_of_other_shapes_are_other_variables(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(VALUES)
        writer.write(VALUES[:7].astype("u2"))
    dataset = stored(tmp_path / "a.tif")
    assert dataset["band_data_1"].dims == ("y_1", "x_1")
    np.testing.assert_array_equal(dataset["band_data_1"].values, VALUES[:7].astype("u2"))


def test_a_picture_without_georeference_has_no_coordinates(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", VALUES)
    assert not open_virtual(tmp_path / "a.tif").coords


def test_parts_of_a_fits_file_with_the_same_name(tmp_path: Path) -> None:
    parts = [fits.PrimaryHDU(), *(fits.ImageHDU(VALUES + index, name="SCI") for index in range(2))]
    fits.HDUList(parts).writeto(tmp_path / "a.fits")
    dataset = stored(tmp_path / "a.fits")
    np.testing.assert_array_equal(dataset["SCI"].values, VALUES)
    np.testing.assert_array_equal(dataset["SCI_2"].values, VALUES + 1)


numbers = st.one_of(st.floats(width=32), st.integers(-(2**31), 2**31 - 1), st.just(np.nan))


@given(fill=numbers, name=st.sampled_from(["i1", "i4", "f4", "f8"]))
def test_fill_values_survive_as_attributes(fill: float, name: str) -> None:
    from xarray.backends.zarr import FillValueCoder

    dtype = np.dtype(name)
    attributes = json_attributes({"_FillValue": np.float64(fill)}, dtype)
    limits = None if dtype.kind == "f" else np.iinfo(dtype)
    usable = limits is None or (limits.min <= fill <= limits.max and fill == int(fill))
    assert ("_FillValue" in attributes) == usable
    if usable:
        expected = dtype.type(np.float64(fill))
        np.testing.assert_array_equal(FillValueCoder.decode(attributes["_FillValue"], dtype), expected)
