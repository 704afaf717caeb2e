"""The main job on real archival files: virtualise, write, commit, open with xarray, and compare with the files.

The files are shipped by two packages, `esmvaltool-sample-data` and `iris-sample-data`, which are installed with
``pip install --no-deps``: their code, which is not used, has requirements of its own.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import xarray as xr

from icelite.credentials import LocalFileSystemAccess
from icelite.errors import ErrorKind, IceliteError
from icelite.repository import Repository
from icelite.virtualizarr import to_icelite

virtualizarr = pytest.importorskip("virtualizarr")
pytest.importorskip("h5py")
pytest.importorskip("dask")

COMBINE: dict[str, Any] = {
    "combine": "nested",
    "data_vars": "minimal",
    "coords": "minimal",
    "compat": "override",
    "combine_attrs": "override",
}


def shipped(package: str, pattern: str) -> list[Path]:
    """The files of an installed package, without importing it."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        pytest.skip(f"not installed: pip install --no-deps {package.replace('_', '-')}")
    return sorted(Path(found.origin).parent.rglob(pattern))


def copied(files: Sequence[Path], directory: Path) -> list[Path]:
    directory.mkdir(parents=True, exist_ok=True)
    return [Path(shutil.copy(file, directory / file.name)) for file in files]


def registry() -> Any:
    from obspec_utils.registry import ObjectStoreRegistry
    from obstore.store import LocalStore

    return ObjectStoreRegistry({"file:///": LocalStore()})


def virtual(files: Sequence[Path], dim: str, **options: Any) -> xr.Dataset:
    from virtualizarr.parsers import HDFParser

    dataset: xr.Dataset = virtualizarr.open_virtual_mfdataset(
        [file.as_uri() for file in files], registry(), HDFParser(), concat_dim=dim, **COMBINE, **options
    )
    return dataset


def original(files: Sequence[Path], dim: str) -> xr.Dataset:
    with xr.open_mfdataset(files, concat_dim=dim, **COMBINE) as dataset:
        return dataset.load()


def write(repo: Repository, vds: xr.Dataset, message: str, **options: Any) -> str:
    session = repo.writable_session("main")
    to_icelite(vds, session.store, **options)
    return session.commit(message)


@pytest.fixture(scope="module")
def years() -> list[Path]:
    """65 years of one model, a file a year, where they are installed."""
    found = shipped("esmvaltool_sample_data", "ta_Amon_AWI-CM-1-1-MR_historical_*.nc")
    assert len(found) == 65
    return found


@pytest.fixture(scope="module")
def expected(years: list[Path]) -> xr.Dataset:
    """What xarray reads from the 65 files."""
    return original(years, "time")


@pytest.fixture
def cmip6(years: list[Path], tmp_path: Path) -> list[Path]:
    """The 65 files in a folder of their own."""
    return copied(years, tmp_path / "archive" / "data")


@pytest.fixture
def catalog(cmip6: list[Path]) -> Path:
    """Where the catalog goes: beside the folder that holds the files."""
    return cmip6[0].parent.parent / "cmip6.icelite"


def first_years(dataset: xr.Dataset, count: int) -> xr.Dataset:
    return dataset.isel(time=slice(0, 12 * count))


@pytest.mark.parametrize("loadable", [None, [], ["time", "lat", "lon"]], ids=["default", "nothing", "named"])
def test_65_years_equal_the_files(
    cmip6: list[Path], catalog: Path, expected: xr.Dataset, loadable: list[str] | None
) -> None:
    repo = Repository.create(catalog)
    write(repo, virtual(cmip6, "time", loadable_variables=loadable), "1950 to 2014")
    repo.close()
    with xr.open_dataset(catalog) as found:
        xr.testing.assert_identical(found.load(), expected)


def test_a_year_is_appended_and_the_tag_keeps_what_it_named(
    cmip6: list[Path], catalog: Path, expected: xr.Dataset
) -> None:
    repo = Repository.create(catalog)
    repo.create_tag("to-2013", write(repo, virtual(cmip6[:-1], "time"), "1950 to 2013"))
    write(repo, virtual(cmip6[-1:], "time"), "2014", append_dim="time")
    repo.close()
    with xr.open_dataset(catalog) as found, xr.open_dataset(catalog, tag="to-2013") as before:
        xr.testing.assert_identical(before.load(), first_years(expected, 64))
        # the attributes of the dataset are those of what was appended last, as with xarray's own append_dim
        with xr.open_dataset(cmip6[-1]) as last:
            xr.testing.assert_identical(found.load(), expected.assign_attrs(last.attrs))


def test_a_renamed_folder_opens_without_any_authorisation(
    cmip6: list[Path], catalog: Path, expected: xr.Dataset
) -> None:
    repo = Repository.create(catalog)
    write(repo, virtual(cmip6[:5], "time"), "1950 to 1954")
    repo.close()
    moved = catalog.parent.rename(catalog.parent.with_name("moved elsewhere #1 100%25"))
    with xr.open_dataset(moved / catalog.name) as found:
        xr.testing.assert_identical(found.load(), first_years(expected, 5))


def test_a_copied_folder_opens_without_any_authorisation(
    cmip6: list[Path], catalog: Path, expected: xr.Dataset
) -> None:
    repo = Repository.create(catalog)
    write(repo, virtual(cmip6[:5], "time"), "1950 to 1954")
    repo.close()
    copy = shutil.copytree(catalog.parent, catalog.parent.with_name("copy"), copy_function=shutil.copyfile)
    shutil.rmtree(catalog.parent)
    with xr.open_dataset(copy / catalog.name) as found:
        xr.testing.assert_identical(found.load(), first_years(expected, 5))


def test_files_outside_the_folder_need_to_be_allowed(cmip6: list[Path], tmp_path: Path, expected: xr.Dataset) -> None:
    catalog = tmp_path / "elsewhere" / "cmip6.icelite"
    catalog.parent.mkdir()
    repo = Repository.create(catalog)
    write(repo, virtual(cmip6[:3], "time"), "1950 to 1952")
    repo.close()
    with pytest.raises(IceliteError) as caught:
        xr.open_dataset(catalog).load()
    assert caught.value.kind == ErrorKind.UNAUTHORIZED_VIRTUAL_CHUNK_CONTAINER
    prefix = f"{cmip6[0].parent.as_uri()}/"
    assert f'authorize_virtual_chunk_access={{"{prefix}": icelite.LocalFileSystemAccess}}' in str(caught.value)
    with xr.open_dataset(catalog, authorize_virtual_chunk_access={prefix: LocalFileSystemAccess}) as found:
        xr.testing.assert_identical(found.load(), first_years(expected, 3))


def test_a_changed_file_is_named(cmip6: list[Path], catalog: Path) -> None:
    repo = Repository.create(catalog)
    write(repo, virtual(cmip6[:3], "time"), "1950 to 1952")
    repo.close()
    with cmip6[1].open("ab") as stream:
        stream.write(b"more")
    with pytest.raises(IceliteError, match=cmip6[1].name) as caught:
        xr.open_dataset(catalog).load()
    assert caught.value.kind == ErrorKind.VIRTUAL_CHUNK_MODIFIED


def test_nemo_ocean_model(tmp_path: Path) -> None:
    months = copied(shipped("iris_sample_data", "nemo_1m_*_grid-T.nc"), tmp_path / "nemo")
    assert len(months) == 3
    catalog = tmp_path / "nemo" / "nemo.icelite"
    repo = Repository.create(catalog)
    write(repo, virtual(months, "time_counter"), "three months", group="grid/T")
    repo.close()
    with xr.open_dataset(catalog, group="grid/T") as found:
        xr.testing.assert_identical(found.load(), original(months, "time_counter"))
    with xr.open_datatree(catalog) as tree:
        xr.testing.assert_identical(tree["grid/T"].to_dataset().load(), original(months, "time_counter"))


@pytest.mark.parametrize("loadable", [None, []], ids=["default", "nothing"])
@pytest.mark.parametrize("name", ["A1B_north_america.nc", "ostia_monthly.nc"])
def test_one_file(tmp_path: Path, name: str, loadable: list[str] | None) -> None:
    from virtualizarr.parsers import HDFParser

    (file,) = copied(shipped("iris_sample_data", name), tmp_path)
    catalog = tmp_path / "one.icelite"
    repo = Repository.create(catalog)
    vds = virtualizarr.open_virtual_dataset(file.as_uri(), registry(), HDFParser(), loadable_variables=loadable)
    write(repo, vds, name)
    repo.close()
    with xr.open_dataset(catalog) as found, xr.open_dataset(file) as expected:
        xr.testing.assert_identical(found.load(), expected.load())
