"""A sample of each kind of file: how to get it, and what its own reader reads; test_formats measures them."""

from __future__ import annotations

import ctypes
import importlib.util
import itertools
import json
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from web_site import Site

from icelite.formats.eccodes_program import library

h5py = pytest.importorskip("h5py")
netCDF4 = pytest.importorskip("netCDF4")
hdf5plugin = pytest.importorskip("hdf5plugin")
tifffile = pytest.importorskip("tifffile")
fits = pytest.importorskip("astropy.io.fits")
pytest.importorskip("virtual_tiff")
if importlib.util.find_spec("eccodes") is None:
    pytest.skip("needs eccodes", allow_module_level=True)  # not imported here: see eccodes_program

hdf5plugin.register(force=True)  # netCDF4 brings a Blosc filter that h5py cannot write with
VALUES = (np.add.outer(np.arange(230) * 7, np.arange(170) * 3) % 60_000).astype("f4")
RGB = np.stack([VALUES % 255, VALUES % 13, VALUES % 77], axis=-1).astype("u1")
PAGES = np.stack([VALUES, VALUES + 1]).astype(">u2")
PLANES = {"planarconfig": "separate", "photometric": "minisblack", "metadata": None}
TILED = {"tile": (64, 64), "compression": "zlib"}
Expected = Mapping[str, Any]


@dataclass(frozen=True)
class Sample:
    """One row: how to get the file, and what its own reader reads.

    Attributes
    ----------
    read
        Names to values, or to variables of which the dimensions and the attributes count too.
    served
        Where the file is read from: itself, or a URL while a server runs.
    parser
        A parser of VirtualiZarr, for a format that is not told from the content.
    copies
        Whether something of it is copied; else the page must say that no byte was.
    """

    format: str
    title: str
    make: Callable[[Path], Path]
    read: Callable[[Path], Expected]
    tree: bool = False
    served: Callable[[Path], AbstractContextManager[Path | str]] = nullcontext
    parser: str | None = None
    copies: bool = False


# -- real files ------------------------------------------------------------------------------------------------------


def of_package(package: str, pattern: str, folder: Path) -> Path:
    """A copy of the first file that matches in an installed package, beside the catalog."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"the samples of {package} are not installed")
    found = sorted(Path(spec.submodule_search_locations[0]).rglob(pattern))
    return Path(shutil.copy(found[0], folder))


def of_cfgrib(name: str, folder: Path) -> Path:
    """A copy of a GRIB file of cfgrib's source distribution, unpacked by scripts/test."""
    found = sorted(Path(sys.prefix, "samples").rglob(name))
    if not found:
        pytest.skip("the samples of cfgrib are not unpacked in the environment's folder samples")
    return Path(shutil.copy(found[0], folder))


# -- files written here ----------------------------------------------------------------------------------------------


def write_hdf5(fill: Callable[[Any, Path], None], folder: Path, **options: Any) -> Path:
    path = folder / "data.h5"
    with h5py.File(path, "w", **options) as file:
        fill(file, folder)
    return path


def put(file: Any, name: str, values: Any = VALUES, chunks: tuple[int, ...] | None = (50, 60), **filters: Any) -> Any:
    return file.create_dataset(name, data=values, chunks=chunks, **filters)


def plain_filters(file: Any, _: Path) -> None:
    put(file, "contiguous", chunks=None)
    put(file, "deflate", compression="gzip")
    put(file, "shuffled", compression="gzip", shuffle=True, fletcher32=True)
    put(file, "checked", fletcher32=True)
    file["deflate"].attrs["scale_factor"] = np.float32(0.1)


def plugin_filters(file: Any, _: Path) -> None:
    put(file, "zstd", **hdf5plugin.Zstd())
    put(file, "blosc", **hdf5plugin.Blosc("zstd", 5, 2))


def foreign_filters(file: Any, _: Path) -> None:
    put(file, "lzf", compression="lzf")
    put(file, "offset", VALUES.astype("i4"), scaleoffset=0)
    settings = {"bzip2": hdf5plugin.BZip2(), "lz4": hdf5plugin.LZ4(), "bitshuffle": hdf5plugin.Bitshuffle()}
    for name, filters in settings.items():
        put(file, name, **filters)


def strings(file: Any, _: Path) -> None:
    file["fixed"] = np.array([b"a", b"bcdef"])
    file["variable"] = ["x", "", "zzz\u00e9"]
    file["one"] = "hello"


def kinds(file: Any, _: Path) -> None:
    file["scalar"] = 3.5
    file.create_dataset("enum", data=np.array([0, 1, 2], "i1"), dtype=h5py.enum_dtype({"A": 0, "B": 1, "C": 2}, "i1"))
    file["compound"] = np.array([(1, 2.5), (3, 4.5)], dtype=[("a", "i4"), ("b", "f8")])
    put(file, "big_endian", VALUES.astype(">f4"), compression="gzip")
    put(file, "half", VALUES[:, :3].astype("f2"), None)
    put(file, "complex", (VALUES + 1j).astype("c8"))
    put(file, "bool", VALUES > 100, None)
    put(file, "integers", np.arange(5), None).attrs["_FillValue"] = np.nan


def unlimited(file: Any, _: Path) -> None:
    rows = np.arange(15.0).reshape(5, 3)
    file.create_dataset("grown", data=rows, maxshape=(None, 3), chunks=(64, 3))
    file.create_dataset("packed", data=rows, maxshape=(None, 3), chunks=(64, 3), compression="gzip")
    file.create_dataset("empty", shape=(0, 3), maxshape=(None, 3), chunks=(4, 3), dtype="i4")
    file.create_dataset("missing", shape=(7, 3), chunks=(4, 3), dtype="i4", fillvalue=9)
    file.create_dataset("unwritten", shape=(7, 3), dtype="i4", fillvalue=9)


def elsewhere(file: Any, folder: Path) -> None:
    with h5py.File(folder / "other.h5", "w") as other:
        other["there"] = np.arange(8)
    file["link"] = h5py.ExternalLink("other.h5", "there")
    file.create_dataset("external", data=np.arange(10), external=[(str(folder / "raw.bin"), 0, 80)])
    layout = h5py.VirtualLayout((8,), "i8")
    layout[:] = h5py.VirtualSource("other.h5", "there", (8,))
    file.create_virtual_dataset("virtual", layout)


def groups(file: Any, _: Path) -> None:
    put(file, "top")
    put(file, "a/b/deep", compression="gzip")
    put(file, "a/b/lzf", compression="lzf")


def unstorable(file: Any, _: Path) -> None:
    """What Zarr has no type for, beside something that it has; attributes as well."""
    file["values"] = np.arange(3)
    file.create_dataset("lists", shape=(3,), dtype=h5py.vlen_dtype("i4"))
    file.create_dataset("references", data=[file["values"].ref], dtype=h5py.ref_dtype)
    file["arrays"] = np.zeros(2, np.dtype([("a", "i4"), ("b", "f4", (3,))]))
    attributes = {"reference": file["values"].ref, "record": np.zeros(1, [("a", "i4")]), "complex": 1j}
    for node in (file, file["values"]):
        node.attrs.update(attributes)


def low(file: Any, name: str, kind: Any, values: Any, *filters: str, chunks: int = 0, compact: bool = False) -> None:
    """A dataset that h5py does not write by itself: of a type, in an order of filters, in the object's header."""
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    if compact:
        plist.set_layout(h5py.h5d.COMPACT)
    if chunks:
        plist.set_chunk((chunks,))
    for each in filters:
        getattr(plist, f"set_{each}")(*((4,) if each == "deflate" else ()))
    space = h5py.h5s.create_simple(values.shape)
    dataset = h5py.h5d.create(file.id, name.encode(), kind, space, plist)
    dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, np.ascontiguousarray(values))


def matlab(file: Any, _: Path) -> None:
    """As ``save -v7.3`` writes: small arrays compact, others chunked; dimensions without scales."""
    low(file, "small", h5py.h5t.IEEE_F64LE, np.arange(1.0, 6.0), compact=True)
    put(file, "large", VALUES, compression="gzip")
    for name in ("small", "large"):
        file[name].attrs["MATLAB_class"] = np.bytes_(b"double")


def odd_types(file: Any, _: Path) -> None:
    short = h5py.h5t.STD_I16LE.copy()
    short.set_precision(12)
    low(file, "bits", short, np.array([-1, 5, -2000], "i2"))
    brain = h5py.h5t.IEEE_F32LE.copy()
    brain.set_fields(15, 7, 8, 0, 7)
    brain.set_size(2)
    brain.set_ebias(127)
    low(file, "bfloat16", brain, np.array([-1, 2, 70144], "f4"))
    blanks = h5py.h5t.C_S1.copy()
    blanks.set_size(5)
    blanks.set_strpad(h5py.h5t.STR_SPACEPAD)
    file["padded"] = np.zeros(2, np.dtype([("x", "i1"), ("y", "f8")], align=True))
    low(file, "blanks", blanks, np.array([b"abc", b"d"], "S5"))


def odd_filters(file: Any, _: Path) -> None:
    numbers, kind = np.arange(1000, dtype="i4"), h5py.h5t.STD_I32LE
    low(file, "backwards", kind, numbers, "deflate", "shuffle", chunks=400)
    low(file, "twice", kind, numbers, "deflate", "deflate", chunks=400)
    low(file, "checked_first", kind, numbers, "fletcher32", "deflate", chunks=400)


def bare_chunks(file: Any, _: Path) -> None:
    """Of three chunks the middle one is stored without filters, as HDF5 does where they save nothing."""
    put(file, "masked", np.arange(1200, dtype="i4"), (400,), compression="gzip", shuffle=True)
    file["masked"].id.write_direct_chunk((400,), np.arange(400, dtype="i4").tobytes(), filter_mask=3)


def array_elements(file: Any, _: Path) -> None:
    dataset = file.create_dataset("arrays", shape=(4,), dtype=np.dtype(("f4", (3,))))
    dataset[...] = np.arange(12, dtype="f4").reshape(4, 3)


def bare_edge(file: Any, _: Path) -> None:
    """The chunk at the edge is stored without filters, by an option of HDF5 (H5Pset_chunk_opts) that h5py lacks."""
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_chunk((400,))
    plist.set_shuffle()
    plist.set_deflate(4)
    option = ctypes.CDLL(h5py.h5p.__file__).H5Pset_chunk_opts
    option.argtypes = [ctypes.c_int64, ctypes.c_uint]
    option(plist.id, 2)
    kind, space = h5py.h5t.STD_I32LE, h5py.h5s.create_simple((1000,))
    dataset = h5py.h5d.create(file.id, b"cut", kind, space, plist)
    dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, np.arange(1000, dtype="i4"))


def no_scales(file: Any, _: Path) -> None:
    for name, shape in {"z": (3, 4), "square": (4, 4), "a": (5,)}.items():
        file[name] = np.arange(np.prod(shape)).reshape(shape)
    file.create_dataset("unlimited", data=np.arange(4), maxshape=(None,), chunks=(2,))


def odd_names(file: Any, _: Path) -> None:
    for number, name in enumerate(ODD_NAMES):
        file[name] = np.full(3, number)


ODD_NAMES = {
    "back\\slash": "back%5Cslash",
    "new\nline": "new%0Aline",
    "tab\t": "tab%09",
    "zarr.json": "zarr%2Ejson",
    "...": "%2E%2E%2E",
    "a b": "a b",
    "caf\u00e9": "caf\u00e9",
}


def write_nul(folder: Path) -> Path:
    """A name of netCDF3 that is longer than the text up to its first NUL."""
    path = write_kind(one_name, folder, "NETCDF3_CLASSIC")
    path.write_bytes(path.read_bytes().replace(b"yyA\0", b"yy\0\0"))
    return path


def one_name(file: Any) -> None:
    file.createDimension("xx", 3)
    file.createVariable("yyA", "i4", ("xx",))[:] = [1, 2, 3]


def write_kind(fill: Callable[[Any], None], folder: Path, form: str = "NETCDF4") -> Path:
    with netCDF4.Dataset(folder / "data.nc", "w", format=form) as file:
        fill(file)
    return folder / "data.nc"


def letters(*words: str) -> np.ndarray:
    return np.array([list(word) for word in words], "S1")


def wide_coordinates(file: Any) -> None:
    """Coordinates of several dimensions that are named like one of them, as FVCOM writes."""
    for name, size in (("station", 3), ("nchar", 5), ("siglay", 2), ("node", 4)):
        file.createDimension(name, size)
    file.createVariable("station", "S1", ("station", "nchar"))[:] = letters("abc  ", "defgh", "z    ")
    file.createVariable("siglay", "f4", ("siglay", "node"))[:] = np.arange(8).reshape(2, 4)
    file.createVariable("t", "f4", ("siglay", "station"))[:] = 1


def unwritten(file: Any) -> None:
    file.createDimension("t", None)
    file.createDimension("x", 3)
    file.createVariable("t", "f8", ("t",))[:] = [1, 2]
    file.createVariable("packed", "i4", ("t", "x"), zlib=True, shuffle=True, fill_value=5)
    file.createVariable("plain", "f4", ("x",), fill_value=-1)


def fill_letters(file: Any) -> None:
    """As in Argo's floats, and two marks for missing values, as in ARM's observations."""
    file.createDimension("n", 3)
    file.createDimension("s", 4)
    file.createVariable("name", "S1", ("n", "s"), fill_value=b" ")[:] = letters("ab  ", "    ", "abcd")
    file.createVariable("flag", "S1", ("n",), fill_value=b" ")[:] = np.array([b"A", b" ", b"1"], "S1")
    twice = file.createVariable("twice", "f8", ("n",), fill_value=np.nan)
    twice.missing_value = -9999.0
    twice[:] = [1, -9999, 3]


def typed(file: Any) -> None:
    file.createDimension("a", 3)
    enum = file.createEnumType(np.int8, "E", {"x": 0, "y": 1})
    file.createVariable("enum", enum, ("a",))[:] = [0, 1, 0]
    file.createVariable("wide", "u8", ("a",), chunksizes=(2,), zlib=True)[:] = [1, 2, 2**63]
    file.createVariable("checked", "f4", ("a",), chunksizes=(2,), fletcher32=True, zlib=True)[:] = [1, 2, 3]
    file.createVariable("eight", "f8", ("a",), chunksizes=(2,), fletcher32=True, zlib=True)[:] = [1, 2, 3]
    file.createVariable("letters", "S1", ("a",))[:] = np.array([b"a", b"b", b"c"], "S1")


def write_netcdf(folder: Path, form: str = "NETCDF4") -> Path:
    """An unlimited dimension along which one variable is shorter than the others, and a projection without values."""
    path = folder / "data.nc"
    with netCDF4.Dataset(path, "w", format=form) as file:
        file.createDimension("time", None)
        file.createDimension("x", 3)
        file.createVariable("time", "f8", ("time",)).units = "days since 2000-01-01"
        packed = file.createVariable("packed", "i2", ("time", "x"), fill_value=-1)
        packed.set_auto_maskandscale(False)
        packed.scale_factor, packed.add_offset = np.float32(0.01), np.float32(5)
        packed[:2] = np.arange(6).reshape(2, 3) - 1
        file.createVariable("crs", "i4").grid_mapping_name = "latitude_longitude"
        file["time"][:] = [0, 1, 2, 3]
    return path


def write_tiff(folder: Path, values: Any = VALUES, **options: Any) -> Path:
    tifffile.imwrite(folder / "image.tif", values, **options)
    return folder / "image.tif"


def write_cog(folder: Path) -> Path:
    path = folder / "cog.tif"
    with tifffile.TiffWriter(path) as writer:
        options = {"tile": (64, 64), "compression": "zlib", "predictor": 2}
        writer.write(VALUES.astype("u2"), subifds=0, **options)
        writer.write(VALUES[::2, ::2].astype("u2"), subfiletype=1, **options)
    return path


def write_grib(folder: Path, sample: str, **keys: Any) -> Path:
    """A file with a message for each combination of keys; in a list, the first value is also the default."""
    codes = library()
    lists = {key: value for key, value in keys.items() if isinstance(value, list)}
    with (folder / "data.grib").open("wb") as file:
        for number, chosen in enumerate(itertools.product(*lists.values())):
            handle = codes.codes_grib_new_from_samples(sample)
            set_keys(codes, handle, {**keys, **dict(zip(lists, chosen, strict=True))}, number)
            codes.codes_write(handle, file)
            codes.codes_release(handle)
    return folder / "data.grib"


def set_keys(codes: Any, handle: Any, keys: dict[str, Any], number: int) -> None:
    """Set keys of a message, its packing last, since ecCodes packs anew what is there."""
    packing = keys.pop("packingType", None)
    codes.codes_set(handle, "hour", number if packing else 12)  # else they would be one field, there several times
    kind = keys.get("gridType", codes.codes_get(handle, "gridType"))
    for key, value in (KEYS_OF.get(kind, dict)(keys) | keys).items():
        codes.codes_set(handle, key, value)
    if kind == "sh":
        return
    size = {"healpix": 192, "unstructured_grid": 100}.get(kind) or codes.codes_get(handle, "numberOfPoints")
    if kind in (*PROJECTED, "regular_ll"):
        size = codes.codes_get(handle, "Nx") * codes.codes_get(handle, "Ny")
    values = np.random.default_rng(number).normal(280, 10, size)
    if keys.get("bitmapPresent"):
        values[::5] = codes.codes_get(handle, "missingValue")
    codes.codes_set_values(handle, values)
    if packing is not None:
        codes.codes_set(handle, "packingType", packing)


def small_grid(keys: dict[str, Any]) -> dict[str, Any]:
    columns = keys.get("Ni", 4)
    latitudes, longitudes = [20, 0], [0, 10 * (columns - 1)]
    if keys.get("jScansPositively"):
        latitudes.reverse()
    if keys.get("iScansNegatively"):
        longitudes.reverse()
    found = {"Ni": columns, "Nj": 3, "iDirectionIncrementInDegrees": 10, "jDirectionIncrementInDegrees": 10}
    for place, latitude, longitude in zip(("First", "Last"), latitudes, longitudes, strict=True):
        found |= {
            f"latitudeOf{place}GridPointInDegrees": latitude,
            f"longitudeOf{place}GridPointInDegrees": longitude,
        }
    if "perturbationNumber" in keys:
        found |= {"productDefinitionTemplateNumber": 1, "numberOfForecastsInEnsemble": 2}
    if "stepRange" in keys:
        found |= {"productDefinitionTemplateNumber": 8, "typeOfStatisticalProcessing": 1}
    return found


def healpix(_: dict[str, Any]) -> dict[str, Any]:
    return {
        "gridType": "healpix",
        "Nside": 4,
        "orderingConvention": "ring",
        "longitudeOfFirstGridPointInDegrees": 45,
    }


PROJECTED: dict[str, dict[str, Any]] = {
    "lambert": {"DxInMetres": 3000, "DyInMetres": 3000, "Latin1InDegrees": 45, "Latin2InDegrees": 50},
    "mercator": {"latitudeOfLastGridPointInDegrees": 40, "longitudeOfLastGridPointInDegrees": 20},
    "polar_stereographic": {"DxInMetres": 3000, "DyInMetres": 3000, "orientationOfTheGridInDegrees": 10},
}
PROJECTED["lambert"] |= {"LoVInDegrees": 10, "LaDInDegrees": 45}
PROJECTED["mercator"] |= {"DiInMetres": 3000, "DjInMetres": 3000, "LaDInDegrees": 30}


def projected(keys: dict[str, Any]) -> dict[str, Any]:
    first = {"latitudeOfFirstGridPointInDegrees": 30, "longitudeOfFirstGridPointInDegrees": 10}
    return {"gridType": keys["gridType"], "Nx": 4, "Ny": 3, **first, **PROJECTED[keys["gridType"]]}


KEYS_OF: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {"regular_ll": small_grid, "healpix": healpix}
KEYS_OF |= dict.fromkeys(PROJECTED, projected)


def write_fits(folder: Path, *parts: Any) -> Path:
    fits.HDUList([fits.PrimaryHDU(), *parts]).writeto(folder / "data.fits")
    return folder / "data.fits"


def write_images(folder: Path) -> Path:
    scaled = fits.ImageHDU(np.arange(100) * 0.1, name="SCALED")
    scaled.scale("int16", "minmax")
    unsigned = fits.ImageHDU(np.arange(60_000, 60_012, dtype="u2"), name="UNSIGNED")
    cube = fits.ImageHDU(np.arange(24.0).reshape(2, 3, 4), name="CUBE")
    return write_fits(folder, fits.ImageHDU(VALUES, name="IMAGE"), scaled, unsigned, cube)


def write_tables(folder: Path) -> Path:
    rows = np.array([(1, 2.5, b"ab"), (3, 4.5, b"c")], dtype=[("a", "i4"), ("b", "f8"), ("s", "S3")])
    return write_fits(folder, fits.BinTableHDU(rows, name="TABLE"), fits.CompImageHDU(VALUES, name="PACKED"))


def write_vectors(folder: Path) -> Path:
    rows = np.empty(3, object)
    rows[:] = [np.arange(2.0), np.arange(0.0), np.arange(5.0)]
    columns = [
        fits.Column("vector", "6E", dim="(3,2)", array=np.arange(18.0).reshape(3, 2, 3)),
        fits.Column("lists", "PD()", array=rows),
    ]
    return write_fits(folder, fits.BinTableHDU.from_columns(columns, name="T"))


def write_groups(folder: Path) -> Path:
    data = np.arange(24, dtype="f4").reshape(4, 2, 3)
    groups = fits.GroupData(data, bitpix=-32, parnames=["UU", "VV"], pardata=[np.arange(4.0), np.arange(4.0) + 10])
    fits.HDUList([fits.GroupsHDU(groups)]).writeto(folder / "data.fits")
    return folder / "data.fits"


def write_scaled(folder: Path) -> Path:
    text = '<GDALMetadata><Item name="SCALE" sample="1" role="scale">0.5</Item></GDALMetadata>'
    return write_tiff(
        folder, np.stack([VALUES, VALUES]).astype("u2"), extratags=[(42112, "s", 0, text, True)], **PLANES
    )


GEO_KEYS = [(1024, 1), (1025, 1), (2048, 4258), (2054, 9102), (3072, 32767), (3074, 32767), (3075, 10), (3076, 9003)]
FOOT = 1200 / 3937  # metres
LAEA = {3082: 4321000 / FOOT, 3083: 3210000 / FOOT, 3088: 10.0, 3089: 52.0}  # of Europe


def write_projected(folder: Path) -> Path:
    """A Lambert azimuthal projection that has no code, in feet of the US."""
    keys = [number for key, value in GEO_KEYS for number in (key, 0, 1, value)]
    keys += [number for at, key in enumerate(LAEA) for number in (key, 34736, 1, at)]
    directory = [1, 1, 0, len(keys) // 4, *keys]
    numbers = {34736: [*LAEA.values()], 33550: [1000.0, 1000.0, 0.0], 33922: [0.0, 0.0, 0.0, 4e6, 3e6, 0.0]}
    tags = [(34735, "H", len(directory), directory, True)]
    return write_tiff(
        folder, extratags=tags + [(tag, "d", len(of), of, True) for tag, of in numbers.items()], metadata=None
    )


POINTS = [(0, 0, 10, 50, 0), (0, 40, 11, 50, 0), (50, 0, 10, 49, 7)]  # column, row, longitude, latitude, height


def write_points(folder: Path) -> Path:
    """Ground control points, of a file that has no grid of coordinates."""
    ties = [float(number) for column, row, *place in POINTS for number in (column, row, 0, *place)]
    directory = [1, 1, 0, 2, 1024, 0, 1, 2, 2048, 0, 1, 4326]
    tags = [(34735, "H", len(directory), directory, True), (33922, "d", len(ties), ties, True)]
    return write_tiff(folder, extratags=tags, metadata=None)


def write_circle(folder: Path) -> Path:
    """Two pages, of which the second says that the first comes next."""
    path = write_tiff(folder, PAGES, metadata=None, photometric="minisblack")
    with tifffile.TiffFile(path) as tiff:
        first, second = (page.offset for page in tiff.pages)
        order = {"<": "little", ">": "big"}[tiff.byteorder]
    data = bytearray(path.read_bytes())
    entries = int.from_bytes(data[second : second + 2], order)
    data[second + 2 + 12 * entries : second + 6 + 12 * entries] = first.to_bytes(4, order)
    path.write_bytes(data)
    return path


def write_damaged_part(folder: Path) -> Path:
    table = fits.BinTableHDU.from_columns([fits.Column("a", "J", array=np.arange(3))], name="TABLE")
    path = write_fits(folder, fits.ImageHDU(VALUES, name="IMAGE"), table)
    path.write_bytes(path.read_bytes().replace(b"TFORM1  = 'J ", b"TFORM1  = '??"))
    return path


DMRPP = """<?xml version="1.0" encoding="ISO-8859-1"?>
<Dataset xmlns="http://xml.opendap.org/ns/DAP/4.0#" xmlns:dmrpp="http://xml.opendap.org/dap/dmrpp/1.0.0#" name="a.bin">
  <Dimension name="x" size="3"/>
  <Int32 name="crs"><dmrpp:chunks byteOrder="LE"><dmrpp:chunk offset="4" nBytes="4"/></dmrpp:chunks></Int32>
  <Int32 name="v"><Dim name="/x"/><dmrpp:chunks byteOrder="LE"><dmrpp:chunkDimensionSizes>3</dmrpp:chunkDimensionSizes>
    <dmrpp:chunk offset="8" nBytes="12" chunkPositionInArray="[0]"/></dmrpp:chunks></Int32>
</Dataset>"""


def write_dmrpp(folder: Path) -> Path:
    (folder / "a.bin").write_bytes(np.array([1, 7, 3, 4, 5], "<i4").tobytes())
    (folder / "a.bin.dmrpp").write_text(DMRPP)
    return folder / "a.bin.dmrpp"


def write_zarr(folder: Path, zarr_format: int, **options: Any) -> Path:
    path = folder / "data.zarr"
    group = zarr.open_group(path, mode="w", zarr_format=zarr_format)
    for parent, name in ((group, "top"), (group.create_group("below"), "deep")):
        names = (
            {"dimension_names": ("y", "x")} if zarr_format == 3 else {"attributes": {"_ARRAY_DIMENSIONS": ["y", "x"]}}
        )
        settings = {"shape": VALUES.shape, "chunks": (50, 60), "dtype": "f4", "fill_value": -1} | names | options
        parent.create_array(name, **settings)[:100] = VALUES[:100]
    return path


def write_kinds(folder: Path, zarr_format: int) -> Path:
    """Arrays without names of dimensions, of text, in columns, of the other byte order, and one that is broken."""
    path = folder / "data.zarr"
    group = zarr.open_group(path, mode="w", zarr_format=zarr_format)
    group.create_array("square", shape=(4, 4), chunks=(2, 3), dtype="f4", fill_value=-1)[:] = VALUES[:4, :4]
    group.create_array("big_endian", shape=(4, 5), chunks=(2, 2), dtype=">i4", fill_value=-1)[:] = VALUES[:4, :5]
    group.create_array("one", shape=(), dtype="f8")[...] = 7
    group.create_array("text", shape=(3,), chunks=(2,), dtype=str)[:] = np.array(["a", "b\u00e9", "c" * 9], object)
    if zarr_format == 2:
        group.create_array("columns", shape=(4, 5), chunks=(2, 2), dtype="f8", order="F", fill_value=-1)[:] = VALUES[
            :4, :5
        ]
        nested = {"chunk_key_encoding": {"name": "v2", "separator": "/"}}
        group.create_array("nested", shape=(4, 5), chunks=(2, 2), dtype="i2", fill_value=-1, **nested)[:] = VALUES[
            :4, :5
        ]
        group.create_array("fixed", shape=(3,), dtype="<U3")[:] = ["a", "bc", "def"]
    return path


def write_root_array(folder: Path, zarr_format: int) -> Path:
    options = {"shape": (4, 5), "chunks": (2, 2), "dtype": "f4", "fill_value": -1, "zarr_format": zarr_format}
    array = zarr.create_array(folder / "data.zarr", **options)
    array[:] = VALUES[:4, :5]
    return folder / "data.zarr"


def write_records(folder: Path) -> Path:
    group = zarr.open_group(folder / "data.zarr", mode="w", zarr_format=2)
    group.create_array("times", shape=(3,), dtype="M8[s]")[:] = np.arange(3).astype("M8[s]")
    records = np.array([(1, 2.5), (3, 4.5)], dtype=[("a", "i4"), ("b", "f8")])
    group.create_array("records", shape=(2,), dtype=records.dtype)[:] = records
    return folder / "data.zarr"


def zipped(method: int, folder: Path) -> Path:
    store = write_zarr(folder, 3)
    with zipfile.ZipFile(folder / "data.zarr.zip", "w", method) as archive:
        for path in sorted(store.rglob("*")):
            archive.write(path, path.relative_to(store))
    return folder / "data.zarr.zip"


# -- servers ---------------------------------------------------------------------------------------------------------


@contextmanager
def web(path: Path, validators: Iterable[str] = (), ranges: bool = True) -> Iterator[str]:
    """The URL of a file while a server gives it."""
    site = Site(path.parent)
    site.ranges, site.validators = ranges, set(validators)
    try:
        yield f"{site.url}/{path.name}"
    finally:
        site.close()


# -- their own readers -----------------------------------------------------------------------------------------------


def by_xarray(path: Path, engine: str | None = None) -> Expected:
    with xr.open_dataset(path, engine=engine) as dataset:
        return {str(name): variable.load() for name, variable in dataset.variables.items()}


def by_odd_names(path: Path) -> Expected:
    return {ODD_NAMES[name]: values for name, values in by_h5py(path).items()}


def by_h5py(path: Path) -> Expected:
    found: dict[str, Any] = {}

    def visit(name: str) -> None:
        node = file[name]
        if isinstance(node, h5py.Dataset):
            text = h5py.check_string_dtype(node.dtype) and h5py.check_vlen_dtype(node.dtype)
            found[name] = np.asarray(node.asstr()[()] if text else node[()])
            if "scale_factor" in node.attrs:
                found[name] = found[name] * node.attrs["scale_factor"]

    with h5py.File(path) as file:
        names: list[str] = []
        file.visit_links(names.append)
        for name in names:
            visit(name)
    return found


def by_tifffile(path: Path) -> Expected:
    with tifffile.TiffFile(path) as tiff:
        values = tiff.series[0].asarray()
        if "GDAL_NODATA" in tiff.pages[0].tags:
            values = np.where(values == tiff.pages[0].nodata, np.float32(np.nan), values.astype("f4"))
        return {"band_data": values}


def by_feet(path: Path) -> Expected:
    place = {"units": "US survey foot"}
    crs = {"grid_mapping_name": "lambert_azimuthal_equal_area", "latitude_of_projection_origin": 52.0}
    return by_tifffile(path) | {
        "x": xr.Variable(("x",), 4e6 + 1000 * (np.arange(170) + 0.5), place),
        "y": xr.Variable(("y",), 3e6 - 1000 * (np.arange(230) + 0.5), place),
        "spatial_ref": xr.Variable((), 0, crs | {"longitude_of_projection_origin": 10.0}),
    }


def by_points(path: Path) -> Expected:
    places = [
        {
            "type": "Feature",
            "properties": {"id": str(number), "info": "", "row": float(row), "col": float(column)},
            "geometry": {"type": "Point", "coordinates": [float(part) for part in place]},
        }
        for number, (column, row, *place) in enumerate(POINTS, 1)
    ]
    gcps = json.dumps({"type": "FeatureCollection", "features": places})
    return by_tifffile(path) | {"spatial_ref": xr.Variable((), 0, {"gcps": gcps})}


def by_pages(_: Path) -> Expected:
    return {"band_data": PAGES}


def by_astropy(path: Path) -> Expected:
    with fits.open(path, memmap=False) as parts:
        return {part.name: part.data for part in parts[1:]}


def by_image(_: Path) -> Expected:
    return {"IMAGE": VALUES}


def by_bytes(_: Path) -> Expected:
    return {"crs": np.array(7, "i4"), "v": xr.Variable(("x",), np.array([3, 4, 5], "i4"))}


def by_columns(path: Path) -> Expected:
    with fits.open(path, memmap=False) as parts:
        lists = np.full((3, 5), np.nan)
        for row, values in zip(lists, parts["T"].data["lists"], strict=True):
            row[: len(values)] = values
        return {"T_vector": parts["T"].data["vector"], "T_lists": lists, "T_lists_length": np.array([2, 0, 5])}


def by_groups(path: Path) -> Expected:
    with fits.open(path, memmap=False) as parts:
        data = parts[0].data
        return {"PRIMARY": data.data, "PRIMARY_UU": data.par("UU"), "PRIMARY_VV": data.par("VV")}


def by_scaling(path: Path) -> Expected:
    return {"band_data": tifffile.imread(path) * np.array([1, 0.5]).reshape(2, 1, 1)}


def by_zarr(path: Path) -> Expected:
    store = zarr.storage.ZipStore(path, mode="r") if path.is_file() else path
    groups = (("", "top"), ("below", "deep"))
    opened = {
        f"{group}/{name}".lstrip("/"): xr.open_zarr(store, group=group, consolidated=False)[name]
        for group, name in groups
    }
    return {name: array.values for name, array in opened.items()}


def by_zarr_alone(path: Path) -> Expected:
    node = zarr.open(path, mode="r")
    arrays = {"data": node} if isinstance(node, zarr.Array) else dict(node.arrays())
    return {name: np.asarray(array[...]) for name, array in arrays.items()}


def by_eccodes(path: Path) -> Expected:
    """All fields, those that share a message too: numbers about each, and where its first point is."""
    codes = library()
    fields = []
    with path.open("rb") as file:
        codes.codes_grib_multi_support_on()
        codes.codes_grib_multi_support_reset_file(file)
        try:
            while (handle := codes.codes_grib_new_from_file(file)) is not None:
                fields.append(describe_field(codes, handle))
                codes.codes_release(handle)
        finally:
            codes.codes_grib_multi_support_off()
    return {"fields": fields}


def describe_field(codes: Any, handle: Any) -> dict[str, Any]:
    codes.codes_set(handle, "missingValue", 1e300)
    values = codes.codes_get_values(handle)
    values = np.where(values == 1e300, np.nan, values)
    found = {"size": values.size, "missing": int(np.isnan(values).sum()), "value": values[0]}
    if codes.codes_get(handle, "gridType") not in ("sh", "unstructured_grid"):
        found |= {f"{axis}itude": codes.codes_get_array(handle, f"{axis}itudes")[0] for axis in ("lat", "long")}
    return found | {"mean": np.nanmean(values), "std": np.nanstd(values)}


NAM = "NAM forecast, 181 fields in 154 messages on a Lambert grid"
TENS = {"First": (2, 0), "Last": (0, 3)}  # of degrees, which the basic angle makes the unit
BASIC_ANGLE = {"basicAngleOfTheInitialProductionDomain": 360, "subdivisionsOfBasicAngle": 36}
for place, (latitude, longitude) in TENS.items():
    BASIC_ANGLE |= {f"latitudeOf{place}GridPoint": latitude, f"longitudeOf{place}GridPoint": longitude}
BASIC_ANGLE |= {"iDirectionIncrement": 1, "jDirectionIncrement": 1}
LOGARITHMS = "grid_simple_log_preprocessing"
CLASSIC = "NETCDF3_CLASSIC"
CMIP6, NEMO = "*historical*20000101-20001231.nc", "nemo_1m_20150101*.nc"


def tiff(title: str, copies: bool = False, **options: Any) -> Sample:
    return Sample("TIFF", title, partial(write_tiff, **options), by_tifffile, copies=copies)


def grib(title: str, sample: str = "regular_ll_sfc_grib2", copies: bool = False, **keys: Any) -> Sample:
    make = partial(write_grib, sample=sample, **keys)
    return Sample(f"GRIB{sample[-1]}", title, make, by_eccodes, tree=True, copies=copies)


SAMPLES = [
    Sample("netCDF4", "CMIP6 temperature, one year", partial(of_package, "esmvaltool_sample_data", CMIP6), by_xarray),
    Sample("netCDF4", "OSTIA sea surface temperature", partial(of_package, "iris_sample_data", "ostia*.nc"), by_xarray),
    Sample("netCDF4", "NEMO ocean model, one month", partial(of_package, "iris_sample_data", NEMO), by_xarray),
    Sample("netCDF4", "strings of ECMWF", partial(of_package, "iris_sample_data", "vlstr*.nc"), by_xarray, copies=True),
    Sample("netCDF4", "NCEP air temperature, packed", partial(of_package, "hvsampledata", "air*.nc"), by_xarray),
    Sample("netCDF4", "unlimited dimension, unequal lengths", write_netcdf, by_xarray),
    Sample("netCDF4", "coordinates of several dimensions", partial(write_kind, wide_coordinates), by_xarray),
    Sample("netCDF4", "unwritten variables with filters", partial(write_kind, unwritten), by_xarray),
    Sample("netCDF4", "letters with a fill value, two marks for missing", partial(write_kind, fill_letters), by_xarray),
    Sample("netCDF4", "enums, letters, Fletcher-32 before shuffle", partial(write_kind, typed), by_xarray, copies=True),
    Sample(
        "netCDF4",
        "from a web server",
        write_netcdf,
        by_xarray,
        served=partial(web, validators=["ETag", "Last-Modified"]),
    ),
    Sample("netCDF4", "from a web server that tells no versions", write_netcdf, by_xarray, served=web),
    Sample(
        "netCDF4",
        "from a web server that gives whole files",
        write_netcdf,
        by_xarray,
        served=partial(web, validators=["Last-Modified"], ranges=False),
    ),
    Sample("HDF5", "contiguous, deflate, shuffle, Fletcher-32", partial(write_hdf5, plain_filters), by_h5py),
    Sample("HDF5", "with a userblock", partial(write_hdf5, plain_filters, userblock_size=1024), by_h5py),
    Sample("HDF5", "Zstandard, Blosc", partial(write_hdf5, plugin_filters), by_h5py),
    Sample("HDF5", "filters without a Zarr codec", partial(write_hdf5, foreign_filters), by_h5py, copies=True),
    Sample("HDF5", "strings", partial(write_hdf5, strings), by_h5py, copies=True),
    Sample("HDF5", "scalar, enum, compound, half, complex, bool", partial(write_hdf5, kinds), by_h5py, copies=True),
    Sample("HDF5", "unlimited, empty, unwritten", partial(write_hdf5, unlimited), by_h5py),
    Sample("HDF5", "values in other files", partial(write_hdf5, elsewhere), by_h5py, copies=True),
    Sample("HDF5", "groups", partial(write_hdf5, groups), by_h5py, tree=True, copies=True),
    Sample("HDF5", "what Zarr cannot store", partial(write_hdf5, unstorable), by_h5py),
    Sample(
        "HDF5", "integers of 12 bits, bfloat16, records, text", partial(write_hdf5, odd_types), by_h5py, copies=True
    ),
    Sample("HDF5", "filters in other orders", partial(write_hdf5, odd_filters), by_h5py, copies=True),
    Sample("HDF5", "a chunk without its filters", partial(write_hdf5, bare_chunks), by_h5py, copies=True),
    Sample("HDF5", "elements that are arrays", partial(write_hdf5, array_elements), by_h5py),
    Sample("HDF5", "MATLAB 7.3", partial(write_hdf5, matlab, userblock_size=512), by_h5py, copies=True),
    Sample(
        "HDF5", "an edge chunk without filters", partial(write_hdf5, bare_edge, libver="latest"), by_h5py, copies=True
    ),
    Sample("HDF5", "axes without scales", partial(write_hdf5, no_scales), partial(by_xarray, engine="netcdf4")),
    Sample("HDF5", "names that Zarr cannot hold", partial(write_hdf5, odd_names), by_odd_names),
    Sample("netCDF3", "cubed-sphere mesh (CDF-1)", partial(of_package, "iris_sample_data", "mesh*.nc"), by_xarray),
    Sample("netCDF3", "space weather (CDF-2)", partial(of_package, "iris_sample_data", "space*.nc"), by_xarray),
    Sample("netCDF3", "records, packed (CDF-1)", partial(write_netcdf, form="NETCDF3_CLASSIC"), by_xarray),
    Sample("netCDF3", "records, packed (CDF-5)", partial(write_netcdf, form="NETCDF3_64BIT_DATA"), by_xarray),
    Sample(
        "netCDF3", "coordinates of several dimensions", partial(write_kind, wide_coordinates, form=CLASSIC), by_xarray
    ),
    Sample("netCDF3", "letters with a fill value", partial(write_kind, fill_letters, form=CLASSIC), by_xarray),
    Sample("netCDF3", "a name with a NUL", write_nul, by_xarray),
    Sample("GRIB2", NAM, partial(of_cfgrib, "nam.t00z*"), by_eccodes, tree=True, copies=True),
    Sample("GRIB2", "polar stereographic grid", partial(of_package, "iris_sample_data", "polar*.grib2"), by_eccodes),
    grib("rotated grid, complex packing", "rotated_ll_sfc_grib2", packingType="grid_complex"),
    grib("reduced Gaussian grid", "reduced_gg_pl_32_grib2"),
    grib("thinned grid", "reduced_ll_sfc_grib2"),
    grib("Lambert, Mercator, polar stereographic grids", gridType=["lambert", "mercator", "polar_stereographic"]),
    grib("HEALPix, unstructured grids", gridType=["healpix", "unstructured_grid"]),
    grib("spherical harmonics", "sh_pl_grib2", copies=True),
    grib("CCSDS, JPEG 2000, complex, constant", packingType=["grid_ccsds", "grid_jpeg", "grid_complex"]),
    grib("IEEE, second order, logarithms", packingType=["grid_ieee", "grid_second_order", LOGARITHMS], copies=True),
    grib("missing values", bitmapPresent=1),
    grib("rows to the south, to the west", jScansPositively=[0, 1], iScansNegatively=[0, 1]),
    grib("rows in turns, columns first", alternativeRowScanning=[0, 1], jPointsAreConsecutive=[0, 1], copies=True),
    grib("basic angle", **BASIC_ANGLE),
    grib("unknown parameters", discipline=0, parameterCategory=191, parameterNumber=[200, 201]),
    grib("runs, steps, members with holes", dataDate=[20200101, 20200102], step=[0, 6, 12], perturbationNumber=[1, 2]),
    grib("intervals that overlap", stepRange=["0-6", "6-12", "0-12"]),
    grib("two grids", Ni=[4, 6]),
    Sample("GRIB2", "increments that do not fit", partial(of_cfgrib, "regular_ll_wrong_increment.grib"), by_eccodes),
    Sample("GRIB2", "rows in turns, of ECMWF", partial(of_cfgrib, "alternate-scanning.grib"), by_eccodes, copies=True),
    Sample("GRIB1", "ERA5 ensemble on levels", partial(of_cfgrib, "era5-levels-members.grib"), by_eccodes),
    Sample("GRIB1", "Gaussian grid", partial(of_cfgrib, "regular_gg_pl.grib"), by_eccodes),
    Sample("GRIB1", "missing values", partial(of_cfgrib, "fields_with_missing_values.grib"), by_eccodes),
    grib("missing increments", "regular_ll_sfc_grib1", ijDirectionIncrementGiven=0),
    Sample("GRIB1", "reduced Gaussian grid", partial(of_cfgrib, "reduced_gg.grib"), by_eccodes, copies=True),
    Sample("GRIB1", "Lambert grid", partial(of_cfgrib, "lambert_grid.grib"), by_eccodes, copies=True),
    Sample("GRIB1", "spherical harmonics", partial(of_cfgrib, "spherical_harmonics.grib"), by_eccodes, copies=True),
    Sample(
        "GRIB1", "levels of soil, five datasets", partial(of_cfgrib, "soil-surface-level-mix.grib"), by_eccodes, True
    ),
    grib(
        "second order, accumulated",
        "regular_ll_sfc_grib1",
        packingType="grid_second_order",
        timeRangeIndicator=4,
        copies=True,
    ),
    Sample("GeoTIFF", "Landsat, RGB, uneven strips", partial(of_package, "hvsampledata", "landsat*.tif"), by_tifffile),
    Sample("COG", "tiles, deflate, predictor 2, overview", write_cog, by_tifffile),
    tiff("uneven strips", rowsperstrip=50),
    tiff("uneven strips, deflate", rowsperstrip=50, compression="zlib", copies=True),
    tiff("strips, LZW, predictor 3", rowsperstrip=23, compression="lzw", predictor=3),
    tiff("tiles, Zstandard", tile=(64, 48), compression="zstd"),
    tiff("RGB, LZW, predictor 2", values=RGB, photometric="rgb", rowsperstrip=46, compression="lzw", predictor=2),
    tiff("RGB in planes", values=np.moveaxis(RGB, -1, 0), photometric="rgb", planarconfig="separate"),
    tiff("pages, big-endian BigTIFF", values=PAGES, byteorder=">", bigtiff=True, photometric="minisblack", **TILED),
    tiff("WebP", values=RGB, photometric="rgb", compression="webp", copies=True),
    tiff("one bit a pixel", values=VALUES > 100, copies=True),
    tiff("integers of 64 bits", values=VALUES.astype("i8") + 2**60, rowsperstrip=23, compression="zlib", predictor=2),
    Sample("GeoTIFF", "bands that differ in scale", write_scaled, by_scaling, copies=True),
    Sample("GeoTIFF", "a projection without a code, in US feet", write_projected, by_feet),
    Sample("GeoTIFF", "ground control points", write_points, by_points),
    Sample("TIFF", "pages in a circle", write_circle, by_pages),
    Sample("COG", "from a web server", write_cog, by_tifffile, served=partial(web, validators=["ETag"])),
    Sample("FITS", "images: plain, scaled, unsigned, cube", write_images, by_astropy),
    Sample("FITS", "table, compressed image", write_tables, by_astropy, copies=True),
    Sample("FITS", "table of vectors and of variable length", write_vectors, by_columns, copies=True),
    Sample("FITS", "random groups", write_groups, by_groups, copies=True),
    Sample("FITS", "a part that cannot be read", write_damaged_part, by_image),
    Sample("DMR++", "arrays and scalars", write_dmrpp, by_bytes, parser="DMRPPParser"),
    Sample("Zarr", "format 2, Blosc", partial(write_zarr, zarr_format=2), by_zarr, tree=True),
    Sample("Zarr", "format 3", partial(write_zarr, zarr_format=3), by_zarr, tree=True),
    Sample("Zarr", "format 3, sharded", partial(write_zarr, zarr_format=3, shards=(100, 120)), by_zarr, tree=True),
    Sample(
        "Zarr",
        "format 2, no names of dimensions, text",
        partial(write_kinds, zarr_format=2),
        by_zarr_alone,
        copies=True,
    ),
    Sample("Zarr", "format 3, no names of dimensions, text", partial(write_kinds, zarr_format=3), by_zarr_alone),
    Sample("Zarr", "format 2, times and records", write_records, by_zarr_alone, copies=True),
    Sample("Zarr", "format 2, an array at the root", partial(write_root_array, zarr_format=2), by_zarr_alone),
    Sample("Zarr", "format 3, an array at the root", partial(write_root_array, zarr_format=3), by_zarr_alone),
    Sample("Zarr", "in a zip file, stored", partial(zipped, zipfile.ZIP_STORED), by_zarr, tree=True),
    Sample("Zarr", "in a zip file, compressed", partial(zipped, zipfile.ZIP_DEFLATED), by_zarr, tree=True, copies=True),
]
