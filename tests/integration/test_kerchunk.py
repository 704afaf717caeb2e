"""kerchunk references of real archival files, made by kerchunk and by VirtualiZarr: in, read, out, and read by others.

The files are shipped by `esmvaltool-sample-data` and `iris-sample-data`; see `test_archives`.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import icelite
from icelite.errors import ErrorKind, IceliteError
from icelite.kerchunk import export_kerchunk, import_kerchunk
from icelite.repository import Repository

fsspec = pytest.importorskip("fsspec")
pytest.importorskip("h5py")
pytest.importorskip("kerchunk")

pytestmark = [
    pytest.mark.filterwarnings("ignore:The 'fastparquet' engine is deprecated"),
    pytest.mark.filterwarnings("ignore:In a future version of xarray"),
]


def shipped(package: str, pattern: str) -> list[Path]:
    """The files of an installed package, without importing it."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        pytest.skip(f"not installed: pip install --no-deps {package.replace('_', '-')}")
    return sorted(Path(found.origin).parent.rglob(pattern))


def copied(package: str, pattern: str, folder: Path) -> list[Path]:
    return [Path(shutil.copy(file, folder / file.name)) for file in shipped(package, pattern)]


def scanned(file: Path) -> dict[str, Any]:
    """What kerchunk says of a netCDF4 file."""
    from kerchunk.hdf import SingleHdf5ToZarr

    found: dict[str, Any] = SingleHdf5ToZarr(str(file), inline_threshold=300).translate()
    return found


def with_urls(refs: dict[str, Any]) -> dict[str, Any]:
    return {key: [f"file://{v[0]}", *v[1:]] if isinstance(v, list) else v for key, v in refs.items()}


def loaded(path: object, **options: Any) -> xr.Dataset:
    with xr.open_dataset(path, **options) as found:  # type: ignore[arg-type]
        return found.load()


def by_kerchunk(path: Path) -> xr.Dataset:
    found: xr.Dataset = xr.open_dataset(str(path), engine="kerchunk")
    return found.load()


def others(path: Path) -> Iterator[tuple[str, xr.Dataset]]:
    """What other readers make of exported references."""
    import zarr

    yield "kerchunk", by_kerchunk(path)
    options: dict[str, Any] = {"zarr_format": 2, "consolidated": False, "chunks": None}
    filesystem = fsspec.filesystem("reference", fo=str(path), remote_protocol="file")
    yield "a mapper", xr.open_zarr(filesystem.get_mapper(), **options).load()
    asynchronous = fsspec.filesystem("reference", fo=str(path), remote_protocol="file", asynchronous=True)
    yield "a zarr store", xr.open_zarr(zarr.storage.FsspecStore(asynchronous), **options).load()


@pytest.fixture
def temperature(tmp_path: Path) -> Path:
    """240 years of air temperature over North America."""
    (file,) = copied("iris_sample_data", "A1B_north_america.nc", tmp_path)
    return file


def test_a_netcdf4_file(temperature: Path, tmp_path: Path) -> None:
    content = scanned(temperature)
    (tmp_path / "in.json").write_text(json.dumps(content))
    import_kerchunk(tmp_path / "in.json", tmp_path / "a.icelite")
    found = loaded(tmp_path / "a.icelite")
    # kerchunk gives a scalar without a fill value its own value as one, which Zarr v2 then takes for missing
    scalar = "latitude_longitude"
    xr.testing.assert_identical(found.drop_vars(scalar), loaded(temperature).drop_vars(scalar))
    xr.testing.assert_identical(found, by_kerchunk(tmp_path / "in.json"))
    export_kerchunk(tmp_path / "a.icelite", tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text())["refs"] == with_urls(content["refs"])


@pytest.mark.parametrize("format", ["json", "parquet"])
def test_other_readers_read_what_goes_out(temperature: Path, tmp_path: Path, format: Any) -> None:
    if format == "parquet":
        pytest.importorskip("pyarrow")
        pytest.importorskip("fastparquet")
    import_kerchunk(scanned(temperature), tmp_path / "a.icelite")
    target = tmp_path / ("refs.json" if format == "json" else "refs.parquet")
    export_kerchunk(tmp_path / "a.icelite", target, format=format, record_size=100)
    expected = loaded(tmp_path / "a.icelite")
    for name, found in others(target):
        assert found.identical(expected), name
    import_kerchunk(target, tmp_path / "b.icelite")
    xr.testing.assert_identical(loaded(tmp_path / "b.icelite"), expected)


@pytest.mark.parametrize("threshold", [1, 10**9], ids=["categories", "text"])
def test_parquet_written_by_kerchunk(temperature: Path, tmp_path: Path, threshold: int) -> None:
    df = pytest.importorskip("kerchunk.df")
    pytest.importorskip("fastparquet")
    (tmp_path / "in.json").write_text(json.dumps(scanned(temperature)))
    parquet = tmp_path / "refs" / "k.parq"
    df.refs_to_dataframe(str(tmp_path / "in.json"), str(parquet), record_size=50, categorical_threshold=threshold)
    import_kerchunk(parquet, tmp_path / "k.icelite")
    import_kerchunk(tmp_path / "in.json", tmp_path / "j.icelite")
    xr.testing.assert_identical(loaded(tmp_path / "k.icelite"), loaded(tmp_path / "j.icelite"))


def test_a_netcdf3_file(tmp_path: Path) -> None:
    netcdf3 = pytest.importorskip("kerchunk.netCDF3")
    (file,) = copied("iris_sample_data", "space_weather.nc", tmp_path)
    import_kerchunk(netcdf3.NetCDF3ToZarr(str(file)).translate(), tmp_path / "a.icelite")
    found, expected = (loaded(path, decode_times=False) for path in (tmp_path / "a.icelite", file))
    for name in expected.variables:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=str(name))


def test_years_that_kerchunk_combined(tmp_path: Path) -> None:
    combine = pytest.importorskip("kerchunk.combine")
    files = copied("esmvaltool_sample_data", "ta_Amon_AWI-CM-1-1-MR_historical_*_195[0-2]*.nc", tmp_path)
    years = [scanned(file) for file in files]
    content = combine.MultiZarrToZarr(
        years, concat_dims=["time"], identical_dims=["lat", "lon", "plev", "lat_bnds", "lon_bnds"]
    ).translate()
    (tmp_path / "in.json").write_text(json.dumps(content))
    import_kerchunk(tmp_path / "in.json", tmp_path / "a.icelite")
    found = loaded(tmp_path / "a.icelite")
    xr.testing.assert_identical(found, by_kerchunk(tmp_path / "in.json"))
    with xr.open_mfdataset(files, combine="nested", concat_dim="time", data_vars="minimal") as expected:
        np.testing.assert_array_equal(found.ta, expected.ta)
        np.testing.assert_array_equal(found.time, expected.time)
    export_kerchunk(tmp_path / "a.icelite", tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text())["refs"] == with_urls(content["refs"])


def virtual_dataset(file: Path) -> xr.Dataset:
    """A file as VirtualiZarr sees it, without the scalars that its kerchunk writer loses."""
    virtualizarr = pytest.importorskip("virtualizarr")
    from obspec_utils.registry import ObjectStoreRegistry
    from obstore.store import LocalStore
    from virtualizarr.parsers import HDFParser

    registry = ObjectStoreRegistry({"file:///": LocalStore()})
    found: xr.Dataset = virtualizarr.open_virtual_dataset(file.as_uri(), registry, HDFParser(), loadable_variables=[])
    return found.drop_vars([name for name, variable in found.variables.items() if not variable.ndim])


@pytest.mark.parametrize("options", [{"format": "json"}, {"format": "parquet"}, {"format": "json", "zarr_format": 3}])
def test_references_written_by_virtualizarr(tmp_path: Path, options: dict[str, Any]) -> None:
    (file,) = copied("iris_sample_data", "ostia_monthly.nc", tmp_path)
    dataset = virtual_dataset(file)
    target = tmp_path / "vz"
    try:
        dataset.vz.to_kerchunk(str(target), **options)
    except TypeError:
        pytest.skip("this VirtualiZarr writes Zarr v2 only")
    except ImportError as error:
        pytest.skip(str(error))
    import_kerchunk(target, tmp_path / "a.icelite")
    expected = loaded(file)
    for name, found in [("icelite", loaded(tmp_path / "a.icelite")), *_as_zarr_v2(tmp_path)]:
        for variable in dataset.variables:
            np.testing.assert_array_equal(found[variable], expected[variable], err_msg=f"{name}: {variable}")


def _as_zarr_v2(folder: Path) -> Iterator[tuple[str, xr.Dataset]]:
    export_kerchunk(folder / "a.icelite", folder / "out.json", zarr_format=2)
    yield from others(folder / "out.json")


def test_grib2_needs_its_codec(tmp_path: Path) -> None:
    """References to GRIB messages are kept whether or not this machine can decode them."""
    (file,) = copied("iris_sample_data", "polar_stereo.grib2", tmp_path)
    described = {
        "zarr_format": 2,
        "shape": [200, 247],
        "chunks": [200, 247],
        "dtype": "<f8",
        "order": "C",
        "fill_value": None,
        "compressor": None,
        "filters": [{"id": "grib", "dtype": "float64", "var": "values"}],
    }
    references = {".zgroup": '{"zarr_format":2}', "t/.zarray": described, "t/0.0": [str(file)]}
    import_kerchunk(references, tmp_path / "a.icelite")
    store = Repository.open(tmp_path / "a.icelite").readonly_session("main").store
    value = store.get_sync("t/0.0")
    assert value is not None
    assert value.to_bytes() == file.read_bytes()


@pytest.mark.s3
def test_objects_on_s3(temperature: Path, tmp_path: Path, s3_server: Any, no_aws_settings: None) -> None:
    s3_server.client().upload_file(str(temperature), s3_server.private, "archive/A1B north #1.nc")
    url = f"s3://{s3_server.private}/archive/A1B north #1.nc"
    refs = {key: [url, *v[1:]] if isinstance(v, list) else v for key, v in scanned(temperature)["refs"].items()}
    repo = Repository.create(tmp_path / "closed.icelite")
    with pytest.raises(IceliteError, match="VirtualChunkContainer") as caught:
        import_kerchunk(refs, repo)
    assert caught.value.kind == ErrorKind.NO_CONTAINER_FOR_VIRTUAL_CHUNK
    container = icelite.VirtualChunkContainer(f"s3://{s3_server.private}/", icelite.s3_store(**s3_server.place))
    config = icelite.RepositoryConfig(virtual_chunk_containers={container.url_prefix: container})
    allowed = {container.url_prefix: icelite.s3_credentials(**s3_server.keys)}
    refs["whole/.zarray"] = json.dumps(
        {
            "zarr_format": 2,
            "shape": [temperature.stat().st_size],
            "chunks": [temperature.stat().st_size],
            "dtype": "|u1",
            "order": "C",
            "fill_value": None,
            "compressor": None,
            "filters": None,
        }
    )
    refs["whole/.zattrs"] = '{"_ARRAY_DIMENSIONS": ["byte"]}'
    refs["whole/0"] = [url]
    with pytest.raises(IceliteError, match="its size is not known"):
        import_kerchunk(refs, Repository.create(tmp_path / "unauthorised.icelite", config))
    repo = Repository.create(tmp_path / "a.icelite", config, allowed)
    import_kerchunk({"version": 1, "refs": refs}, repo)
    with repo._catalog.read() as txn:
        (stamp,) = txn.rows("SELECT size, etag IS NULL FROM location WHERE kind = 2")
    assert stamp == (temperature.stat().st_size, 0)
    found = loaded(repo.readonly_session("main"))
    np.testing.assert_array_equal(found.air_temperature, loaded(temperature).air_temperature)
    assert found.whole.values.tobytes() == temperature.read_bytes()
    export_kerchunk(repo, tmp_path / "out.json")
    exported = json.loads((tmp_path / "out.json").read_text())["refs"]
    assert exported == refs | {"whole/0": [url, 0, temperature.stat().st_size]}
