"""Zarr v3 hierarchies written as Zarr v2 references: fsspec and zarr read the same values from them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import xarray as xr
import zarr
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, TransposeCodec, ZstdCodec

import icelite
from icelite.errors import ErrorKind, InvalidInputError
from icelite.kerchunk import export_kerchunk
from icelite.repository import Repository
from icelite.session import Session
from icelite.storage import in_memory_storage

VALUES = np.arange(-20, 22).reshape(6, 7)

ARRAYS: dict[str, tuple[Any, dict[str, Any]]] = {
    "plain": (VALUES.astype("i4"), {"compressors": None}),
    "big-endian": (VALUES.astype("f8"), {"serializer": BytesCodec(endian="big"), "compressors": None}),
    "zstd": (VALUES.astype("i2"), {"compressors": ZstdCodec(level=3, checksum=True)}),
    "gzip": (VALUES.astype("i2"), {"compressors": GzipCodec(level=2)}),
    "blosc": (VALUES.astype("f4"), {"compressors": BloscCodec(cname="lz4", shuffle="bitshuffle")}),
    "crc32c": (VALUES.astype("u2"), {"compressors": Crc32cCodec()}),
    "transposed": (VALUES.astype("i4"), {"filters": TransposeCodec(order=(1, 0))}),
    "not transposed": (VALUES.astype("i4"), {"filters": TransposeCodec(order=(0, 1))}),
    "bool": (VALUES > 3, {}),
    "complex": (VALUES.astype("c8"), {}),
    "bytes": (VALUES.astype("S4"), {}),
    "time": (VALUES.astype("M8[s]"), {}),
    "bare text": (VALUES.astype(str).astype(np.dtypes.StringDType()), {"compressors": None}),
    "text": (VALUES.astype(str).astype(np.dtypes.StringDType()), {}),
    "scalar": (np.array(7, dtype="i8"), {"chunks": ()}),
}


@pytest.fixture
def session() -> Session:
    return Repository.create(in_memory_storage()).writable_session("main")


@pytest.fixture(autouse=True)
def quiet() -> Any:
    """Some of these types and codecs are not in the specification of Zarr v3, which zarr says."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def reopened(session: Session, tmp_path: Path) -> Any:
    """The exported references as a mapping, read by fsspec."""
    export_kerchunk(session, tmp_path / "o.json", zarr_format=2, overwrite=True)
    filesystem = fsspec.filesystem("reference", fo=str(tmp_path / "o.json"), skip_instance_cache=True)
    return filesystem.get_mapper()


def array_of(mapper: Any, path: str) -> Any:
    return zarr.open_group(mapper, mode="r", zarr_format=2, use_consolidated=False)[path]


def refusal(session: Session, tmp_path: Path) -> str:
    with pytest.raises(InvalidInputError) as caught:
        export_kerchunk(session, tmp_path / "o.json", zarr_format=2)
    assert caught.value.kind == ErrorKind.INVALID_ARRAY_METADATA
    assert not list(tmp_path.iterdir())
    export_kerchunk(session, tmp_path / "o.json", overwrite=True)  # as stored it goes
    return caught.value.message


@pytest.mark.parametrize("name", ARRAYS)
def test_values_are_the_same(name: str, session: Session, tmp_path: Path) -> None:
    values, options = ARRAYS[name]
    zarr.create_group(session.store)
    zarr.create_array(session.store, name="g/a", data=values, **{"chunks": (4, 3), **options})
    found = array_of(reopened(session, tmp_path), "g/a")
    np.testing.assert_array_equal(found[...], values)
    assert found[...].dtype.kind in (values.dtype.kind, "O")


def dataset() -> xr.Dataset:
    return xr.Dataset(
        {
            "packed": (("t", "x"), np.array([[0, 1.5], [np.nan, 3]]), {"units": "K"}),
            "counts": (("t", "x"), np.array([[0, 1], [2, 3]], dtype="i4")),
            "gaps": (("t", "x"), np.array([[0, 1], [np.nan, 3]], dtype="f4")),
        },
        coords={"t": np.array(["2024-08-01", "2024-08-02"], dtype="M8[ns]"), "x": [0.0, 1.0]},
        attrs={"title": "a title"},
    )


def test_zeros_stay_zeros_and_gaps_gaps(session: Session, tmp_path: Path) -> None:
    packing = {"dtype": "i2", "scale_factor": 0.5, "_FillValue": -9}
    dataset().to_zarr(session.store, zarr_format=3, consolidated=False, encoding={"packed": packing})
    found = xr.open_zarr(reopened(session, tmp_path), zarr_format=2, consolidated=False, chunks=None).load()
    xr.testing.assert_identical(found, dataset())
    assert found.counts.dtype == "i4"


def test_zarr_v3_goes_out_as_it_is(session: Session, tmp_path: Path) -> None:
    dataset().to_zarr(session.store, zarr_format=3, consolidated=False)
    export_kerchunk(session, tmp_path / "o.json")
    filesystem = fsspec.filesystem("reference", fo=str(tmp_path / "o.json"))
    found = xr.open_zarr(filesystem.get_mapper(), zarr_format=3, consolidated=False, chunks=None)
    xr.testing.assert_identical(found.load(), dataset())


def test_missing_chunks_read_as_before(session: Session, tmp_path: Path) -> None:
    zarr.create_group(session.store)
    for name, fill in (("zero", 0), ("nan", np.nan), ("marked", -9)):
        attributes = {"_FillValue": fill} if name == "marked" else {}
        array = zarr.create_array(
            session.store, name=name, shape=(4,), chunks=(2,), dtype="f4", fill_value=fill, attributes=attributes
        )
        array[:2] = [1, 2]
    mapper = reopened(session, tmp_path)
    for name, fill in (("zero", 0), ("nan", np.nan), ("marked", -9)):
        found = array_of(mapper, name)
        np.testing.assert_array_equal(found[:], np.array([1, 2, fill, fill], dtype="f4"))


def test_a_fill_value_that_would_become_missing_is_refused(session: Session, tmp_path: Path) -> None:
    zarr.create_group(session.store)
    array = zarr.create_array(session.store, name="a", shape=(4,), chunks=(2,), dtype="i4", fill_value=5)
    array[:2] = [1, 2]
    assert "read as" in refusal(session, tmp_path)
    array[2:] = [3, 4]  # with all chunks there, it does not matter
    found = array_of(reopened(session, tmp_path), "a")
    assert found.fill_value is None
    assert found[:].tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"chunks": (2, 1), "shards": (4, 7)}, "'sharding_indexed'"),
        ({"chunks": (2, 1, 1), "filters": TransposeCodec(order=(0, 2, 1))}, r"\[0, 2, 1\]"),
    ],
)
def test_what_zarr_v2_does_not_have_is_refused(
    options: dict[str, Any], told: str, session: Session, tmp_path: Path
) -> None:
    values = np.ones((4, 7) if "shards" in options else (4, 7, 2), dtype="u1")
    zarr.create_array(session.store, name="a", data=values, **options)
    assert told.replace("\\", "") in refusal(session, tmp_path)


GRID = np.random.default_rng(0).normal(scale=100, size=(3, 6, 7))

STORED: dict[str, tuple[Any, dict[str, Any]]] = {
    "contiguous": ("f4", {}),
    "deflated": ("f4", {"zlib": True, "shuffle": True, "chunksizes": (1, 4, 3)}),
    "doubles": ("f8", {"zlib": True, "chunksizes": (2, 6, 7)}),
    "packed": ("f8", {"dtype": "i2", "scale_factor": 0.5, "add_offset": 3.0, "_FillValue": -99, "zlib": True}),
    "bytes": ("u1", {"zlib": True}),
    "wide": ("i8", {"zlib": True}),
}


@pytest.mark.parametrize("kind", ["netCDF4", "netCDF3", "copied"])
def test_gdal_reads_the_same_bits(kind: str, tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio", "1.5")  # GDAL reads such references since 3.11
    grids = {name: (("t", "y", "x"), GRID.astype(dtype)) for name, (dtype, _) in STORED.items()}
    dataset = xr.Dataset(grids, coords={"t": np.arange(3), "y": np.arange(6.0), "x": np.arange(7.0)})
    dataset = dataset.drop_vars(["bytes", "wide"]) if kind == "netCDF3" else dataset
    encoding = {name: STORED[name][1] for name in dataset.data_vars}
    if kind == "netCDF4":
        dataset.to_netcdf(tmp_path / "a.nc", engine="h5netcdf", encoding=encoding)
    else:
        packing = {"packed": {k: v for k, v in encoding["packed"].items() if k != "zlib"}}
        dataset.to_netcdf(tmp_path / "a.nc", engine="scipy" if kind == "netCDF3" else "h5netcdf", encoding=packing)
    repository = tmp_path / "a.icelite"
    icelite.virtualize(tmp_path / "a.nc", repository, loadable_variables=list(dataset) if kind == "copied" else None)
    export_kerchunk(repository, tmp_path / "a.json", zarr_format=2)
    with xr.open_dataset(tmp_path / "a.nc", mask_and_scale=False) as expected:
        for name in dataset.data_vars:
            found = [read_by_gdal(rasterio, tmp_path / "a.json", f"{name}:{i}") for i in range(3)]
            np.testing.assert_array_equal(np.stack(found), expected[name].values, err_msg=str(name))
            assert found[0].dtype == expected[name].dtype.newbyteorder("=")
    with rasterio.open(f'ZARR:"{tmp_path / "a.json"}":/packed:0') as packed:
        assert (packed.scales, packed.offsets, packed.nodata) == ((0.5,), (3.0,), -99)


def read_by_gdal(rasterio: Any, path: Path, layer: str) -> Any:
    with rasterio.open(f'ZARR:"{path}":/{layer}') as found:
        return found.read(1)
