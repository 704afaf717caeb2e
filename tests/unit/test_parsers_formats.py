"""What the parsers of single formats find: grids of GeoTIFFs, layouts of TIFFs, headers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from icelite.errors import InvalidInputError
from icelite.formats import open_virtual
from icelite.repository import Repository
from icelite.virtualizarr import to_icelite

tifffile = pytest.importorskip("tifffile")
fits = pytest.importorskip("astropy.io.fits")
pytest.importorskip("virtualizarr")
pytest.importorskip("virtual_tiff")

from icelite.formats.attributes import json_attributes  # noqa: E402
from icelite.formats.parsed import has_inlined  # noqa: E402

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


def save(path: Path, **options: Any) -> Path:
    """A catalog with a commit of the file."""
    catalog = path.with_name("c.icelite")
    session = Repository.create(catalog).writable_session("main")
    to_icelite(open_virtual(path, **options), session.store)
    session.commit("sample")
    return catalog


def stored(path: Path, **options: Any) -> xr.Dataset:
    """What the engine reads after a commit."""
    return xr.open_dataset(save(path, **options), engine="icelite").load()


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


SCALES = '<GDALMetadata><Item name="OFFSET" sample="1" role="offset">10</Item>'
SCALES += '<Item name="SCALE" sample="1" role="scale">0.5</Item></GDALMetadata>'


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_bands_that_differ_in_scale_are_copied_decoded(planar: str, tmp_path: Path) -> None:
    bands = np.stack([VALUES, VALUES + 1], axis=-1 if planar == "contig" else 0).astype("i2")
    tags = [(42113, "s", 0, "3", True), (42112, "s", 0, SCALES, True)]
    tifffile.imwrite(
        tmp_path / "a.tif", bands, extratags=tags, metadata=None, planarconfig=planar, photometric="minisblack"
    )
    found = stored(tmp_path / "a.tif")["band_data"]
    axis = found.dims.index("band")
    np.testing.assert_array_equal(found.isel(band=0), np.where(VALUES == 3, np.nan, VALUES))
    np.testing.assert_array_equal(found.isel(band=1), np.where(VALUES == 2, np.nan, (VALUES + 1) * 0.5 + 10))
    assert axis == (2 if planar == "contig" else 0)
    copied = open_virtual(tmp_path / "a.tif").encoding["icelite_copied"]
    assert copied == {"band_data": "its bands differ in scale or offset"}


@pytest.mark.parametrize("kind", ["i8", "u8"])
def test_integers_of_64_bits(kind: str, tmp_path: Path) -> None:
    values = np.arange(12, dtype=kind).reshape(3, 4) + np.array(2**62, kind)
    tags = [(42113, "s", 0, str(2**62 + 1), True)]
    tifffile.imwrite(tmp_path / "a.tif", values, extratags=tags, metadata=None)
    dataset = open_virtual(tmp_path / "a.tif", on_unreferenceable="raise")
    assert dataset["band_data"].dtype == kind
    raw = xr.open_dataset(save(tmp_path / "a.tif"), engine="icelite", mask_and_scale=False)
    np.testing.assert_array_equal(raw["band_data"], values)
    assert raw["band_data"].attrs["_FillValue"] == 2**62 + 1


def test_pages_that_refer_to_each_other_in_a_circle(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.stack([VALUES, VALUES + 1]), metadata=None, photometric="minisblack")
    with tifffile.TiffFile(path) as tiff:
        first, second = (page.offset for page in tiff.pages)
    data = bytearray(path.read_bytes())
    entries = int.from_bytes(data[second : second + 2], "little")
    data[second + 2 + 12 * entries : second + 6 + 12 * entries] = first.to_bytes(4, "little")
    path.write_bytes(data)
    np.testing.assert_array_equal(stored(path)["band_data"], [VALUES, VALUES + 1])


# Keys of a Lambert azimuthal projection of Europe, in metres and in feet.
LAEA = [(1024, 1), (1025, 1), (2048, 4258), (2054, 9102), (3072, 32767), (3074, 32767), (3075, 10)]
NUMBERS = {3082: 4321000.0, 3083: 3210000.0, 3088: 10.0, 3089: 52.0}


def projected(folder: Path, unit: int, metres: float) -> xr.Dataset:
    numbers = {key: value / metres if key < 3088 else value for key, value in NUMBERS.items()}
    places = [number for at, key in enumerate(numbers) for number in (key, 34736, 1, at)]
    keys = [number for key, value in [*LAEA, (3076, unit)] for number in (key, 0, 1, value)]
    directory = [1, 1, 0, (len(keys) + len(places)) // 4, *keys, *places]
    tags = [
        (34735, "H", len(directory), directory, True),
        (34736, "d", len(numbers), list(numbers.values()), True),
        (33550, "d", 3, [1000.0, 1000.0, 0.0], True),
        (33922, "d", 6, [0.0, 0.0, 0.0, 4e6, 3e6, 0.0], True),
    ]
    tifffile.imwrite(folder / "a.tif", VALUES, extratags=tags, metadata=None)
    return stored(folder / "a.tif")


@pytest.mark.parametrize(
    ("unit", "metres", "name"), [(9001, 1.0, "metre"), (9002, 0.3048, "foot"), (9003, 1200 / 3937, "US survey foot")]
)
def test_a_projection_that_has_no_code(unit: int, metres: float, name: str, tmp_path: Path) -> None:
    pyproj = pytest.importorskip("pyproj")
    dataset = projected(tmp_path, unit, metres)
    assert dataset["x"].attrs["units"] == name
    found = pyproj.Transformer.from_crs(4258, dataset["spatial_ref"].attrs["crs_wkt"], always_xy=True)
    known = pyproj.Transformer.from_crs(4258, 3035, always_xy=True)
    for place in [(10, 52), (-9, 38), (25, 60)]:
        np.testing.assert_allclose(np.multiply(found.transform(*place), metres), known.transform(*place), rtol=1e-9)


def test_a_projection_that_is_told_in_words(tmp_path: Path) -> None:
    pyproj = pytest.importorskip("pyproj")
    text = "ESRI PE String = " + pyproj.CRS.from_string("+proj=moll +lon_0=10").to_wkt("WKT1_ESRI") + "|"
    directory = [1, 1, 0, 3, 1024, 0, 1, 32767, 1025, 0, 1, 1, 3073, 34737, len(text), 0]
    tags = [(34735, "H", len(directory), directory, True), (34737, "s", 0, text, True)]
    tifffile.imwrite(tmp_path / "a.tif", VALUES, extratags=tags, metadata=None)
    crs = pyproj.CRS.from_wkt(stored(tmp_path / "a.tif")["spatial_ref"].attrs["crs_wkt"])
    assert crs.coordinate_operation.method_name == "Mollweide"


def test_units_of_feet_in_a_crs_with_a_code(tmp_path: Path) -> None:
    pytest.importorskip("pyproj")
    dataset = stored(geotiff(tmp_path, **(NORTH_UP | {"keys": [(1024, 1), (3072, 2263)]})))
    assert dataset["x"].attrs["units"] == dataset["y"].attrs["units"] == "US survey foot"


def test_ground_control_points_are_kept(tmp_path: Path) -> None:
    ties = (0, 0, 0, 10, 50, 0, 0, 40, 0, 11, 50, 0, 50, 0, 0, 10, 49, 7)
    dataset = stored(geotiff(tmp_path, tie=ties, keys=[(1024, 2), (2048, WGS84)]))
    features = json.loads(dataset["spatial_ref"].attrs["gcps"])["features"]
    places = [(each["properties"]["col"], each["properties"]["row"]) for each in features]
    assert places == [(0, 0), (0, 40), (50, 0)]
    assert features[2]["geometry"]["coordinates"] == [10, 49, 7]
    assert "x" not in dataset.coords


@pytest.mark.skipif(not has_inlined(), reason="VirtualiZarr holds chunks of its own from 2.8 (Python 3.12) on")
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


def columns(count: int, lengths: list[int]) -> list[Any]:
    """Columns of vectors, of variable length, and plain ones."""
    rows = np.empty(count, object)
    rows[:] = [np.arange(length, dtype="f8") + 0.5 for length in lengths]
    counts = np.empty(count, object)
    counts[:] = [np.arange(length, dtype="i4") + 1 for length in lengths]
    return [
        fits.Column("plain", "J", array=np.arange(count)),
        fits.Column("vector", "6E", dim="(3,2)", unit="m", array=np.arange(count * 6.0).reshape(count, 2, 3)),
        fits.Column("flags", "3L", array=np.arange(count * 3).reshape(count, 3) % 2 == 0),
        fits.Column("floats", "QD()", array=rows),
        fits.Column("counts", "PJ()", array=counts),
        fits.Column("text", "PA()", array=["x" * length for length in lengths]),
    ]


@given(lengths=st.lists(st.integers(0, 5), min_size=1, max_size=6))
@settings(max_examples=15, deadline=None)
def test_columns_that_are_no_single_values(lengths: list[int], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("fits") / "a.fits"
    table = fits.BinTableHDU.from_columns(columns(len(lengths), lengths), name="T")
    fits.HDUList([fits.PrimaryHDU(VALUES), table]).writeto(path)
    dataset = stored(path)
    assert dataset["PRIMARY"].shape == VALUES.shape
    with fits.open(path) as parts:
        for name in ("plain", "vector", "flags"):
            np.testing.assert_array_equal(dataset[f"T_{name}"], parts["T"].data[name])
        for name in ("floats", "counts"):
            np.testing.assert_array_equal(dataset[f"T_{name}_length"], lengths)
            for row, length in enumerate(lengths):
                found = dataset[f"T_{name}"].values[row]
                np.testing.assert_array_equal(found[:length], parts["T"].data[name][row])
                assert not np.nan_to_num(found[length:]).any()
    assert list(dataset["T_text"].values) == ["x" * length for length in lengths]
    assert dataset["T_vector"].attrs["units"] == "m"


def test_random_groups(tmp_path: Path) -> None:
    data = np.arange(24, dtype="f4").reshape(4, 2, 3)
    groups = fits.GroupData(data, bitpix=-32, parnames=["UU", "VV"], pardata=[np.arange(4.0), np.arange(4.0) + 10])
    fits.HDUList([fits.GroupsHDU(groups)]).writeto(tmp_path / "a.fits")
    dataset = stored(tmp_path / "a.fits")
    np.testing.assert_array_equal(dataset["PRIMARY"], data)
    np.testing.assert_array_equal(dataset["PRIMARY_VV"], np.arange(4) + 10)
    assert dataset["PRIMARY"].dims == ("PRIMARY_row", "PRIMARY_1", "PRIMARY_2")


@pytest.mark.parametrize(
    "damage", [(b"TFORM1  = 'J ", b"TFORM1  = '?? "), (b"BITPIX  =                    8", b"BITPIX  =")]
)
def test_a_part_that_cannot_be_read_costs_itself_alone(damage: tuple[bytes, bytes], tmp_path: Path) -> None:
    table = fits.BinTableHDU.from_columns(columns(2, [1, 2]), name="T")
    fits.HDUList([fits.PrimaryHDU(VALUES), table]).writeto(tmp_path / "a.fits")
    before, after = damage
    data = (tmp_path / "a.fits").read_bytes()
    assert before in data
    (tmp_path / "a.fits").write_bytes(data.replace(before, after.ljust(len(before))))
    with pytest.warns(UserWarning, match="is left out: astropy does not read it"):
        dataset = open_virtual(tmp_path / "a.fits")
    assert list(dataset.data_vars) == ["PRIMARY"]
    with pytest.raises(InvalidInputError, match="cannot be read"):
        open_virtual(tmp_path / "a.fits", on_unreadable="raise")


def test_a_scaled_compressed_image_is_read_as_astropy_does(tmp_path: Path) -> None:
    image = fits.CompImageHDU(np.arange(100, dtype="i2").reshape(10, 10), name="A", compression_type="RICE_1")
    image.header["BSCALE"], image.header["BZERO"] = 0.5, 3
    fits.HDUList([fits.PrimaryHDU(), image]).writeto(tmp_path / "a.fits")
    with fits.open(tmp_path / "a.fits") as parts:
        np.testing.assert_array_equal(stored(tmp_path / "a.fits")["A"], parts["A"].data)


DMRPP = """<?xml version="1.0" encoding="ISO-8859-1"?>
<Dataset xmlns="http://xml.opendap.org/ns/DAP/4.0#" xmlns:dmrpp="http://xml.opendap.org/dap/dmrpp/1.0.0#" name="a.bin">
  <Dimension name="x" size="3"/>
  <Int32 name="crs"><dmrpp:chunks byteOrder="LE"><dmrpp:chunk offset="4" nBytes="4"/></dmrpp:chunks></Int32>
  <Int32 name="v"><Dim name="/x"/><dmrpp:chunks byteOrder="LE"><dmrpp:chunkDimensionSizes>3</dmrpp:chunkDimensionSizes>
    <dmrpp:chunk offset="8" nBytes="12" chunkPositionInArray="[0]"/></dmrpp:chunks></Int32>
</Dataset>"""


def test_scalars_of_dmrpp_keep_their_values(tmp_path: Path) -> None:
    from virtualizarr.parsers import DMRPPParser

    (tmp_path / "a.bin").write_bytes(np.array([1, 7, 3, 4, 5], "<i4").tobytes())
    (tmp_path / "a.bin.dmrpp").write_text(DMRPP)
    dataset = stored(tmp_path / "a.bin.dmrpp", parser=DMRPPParser())
    assert dataset["crs"].item() == 7
    assert list(dataset["v"].values) == [3, 4, 5]


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
