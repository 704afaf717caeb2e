"""`icelite.virtualize` on archives: daily OISST files, 65 years of CMIP6, an ocean model, and objects on S3."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import xarray as xr
from oisst import GRID, write_days

import icelite
from icelite.credentials import HttpAccess
from icelite.errors import ErrorKind, IceliteError
from icelite.repository import Repository

pytest.importorskip("virtualizarr")
pytest.importorskip("obstore")

from icelite.archive.virtualize import virtualize

COMBINE: dict[str, Any] = {
    "combine": "nested",
    "data_vars": "minimal",
    "coords": "minimal",
    "compat": "override",
    "combine_attrs": "override",
}


def original(files: Sequence[Path], dim: str = "time", **options: Any) -> xr.Dataset:
    with xr.open_mfdataset(files, concat_dim=dim, **COMBINE, **options) as dataset:
        return dataset.load()


def check_same(found: xr.Dataset, expected: xr.Dataset) -> None:
    """Everything is equal, and every value bit for bit: 0 is not -0."""
    xr.testing.assert_identical(found.load(), expected)
    for name, variable in expected.variables.items():
        if variable.dtype.kind == "O":  # dates of a model's calendar
            continue
        values, others = variable.to_numpy(), found[name].to_numpy()
        assert (values.dtype, values.tobytes()) == (others.dtype, others.tobytes()), name


def shipped(package: str, pattern: str) -> list[Path]:
    """The files of an installed package, without importing it."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        pytest.skip(f"not installed: pip install --no-deps {package.replace('_', '-')}")
    return sorted(Path(found.origin).parent.rglob(pattern))


def copied(files: Sequence[Path], directory: Path) -> list[Path]:
    directory.mkdir(parents=True, exist_ok=True)
    return [Path(shutil.copy(file, directory / file.name)) for file in files]


@pytest.mark.parametrize("shape", [(18, 36), pytest.param(GRID, marks=pytest.mark.slow)], ids=["small", "720x1440"])
def test_a_month_and_then_another(tmp_path: Path, shape: tuple[int, int]) -> None:
    folder = tmp_path / "archive"
    august = write_days(folder / "data", date(2024, 8, 1), 31, shape)
    catalog = folder / "ocean.icelite"
    first = virtualize(folder / "data" / "*.202408*.nc", catalog, concat_dim="time", workers=2)
    assert (len(first.added), first.references) == (31, 4 * 31)
    with xr.open_dataset(catalog) as found:
        check_same(found, original(august))
    repo = Repository.open(catalog)
    repo.create_tag("2024.08", str(first.snapshot_id))
    repo.close()
    september = write_days(folder / "data", date(2024, 9, 1), 30, shape)
    second = virtualize(folder / "data" / "*.nc", catalog, concat_dim="time")
    assert (len(second.added), len(second.known)) == (30, 31)
    with xr.open_dataset(catalog) as found, xr.open_dataset(catalog, tag="2024.08") as before:
        check_same(found, original([*august, *september]))
        check_same(before, original(august))
    moved = folder.rename(tmp_path / "moved")
    with xr.open_dataset(moved / "ocean.icelite") as found:
        assert found.sizes["time"] == 61
        found.sst[-1].load()


def test_65_years_of_a_climate_model(tmp_path: Path) -> None:
    found = shipped("esmvaltool_sample_data", "ta_Amon_AWI-CM-1-1-MR_historical_*.nc")
    assert len(found) == 65
    years = copied(found, tmp_path / "data")
    catalog = tmp_path / "cmip6.icelite"
    virtualize(years[:64], catalog, concat_dim="time")
    summary = virtualize(tmp_path / "data" / "*.nc", catalog, concat_dim="time")
    assert (summary.added, len(summary.known)) == ([f"file://{years[64]}"], 64)
    with xr.open_dataset(catalog) as dataset:
        check_same(dataset, original(years))


def test_months_of_an_ocean_model(tmp_path: Path) -> None:
    months = copied(shipped("iris_sample_data", "nemo_1m_*_grid-T.nc"), tmp_path / "nemo")
    assert len(months) == 3
    catalog = tmp_path / "nemo.icelite"
    for some in (months[:1], months[::-1]):  # by name: time_counter is 0 in each of them
        virtualize(some, catalog, concat_dim="time_counter", group="grid/T")
    with xr.open_dataset(catalog, group="grid/T") as found:
        check_same(found, original(months, "time_counter"))


# ---- S3

SMALL, DAYS = (6, 12), 5


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_days(tmp_path_factory.mktemp("days"), date(2024, 8, 1), DAYS, SMALL)


def put(s3: Any, bucket: str, folder: str, files: Sequence[Path]) -> str:
    """Store files in a folder of a bucket; its URL."""
    for file in files:
        s3.client().put_object(Bucket=bucket, Key=f"{folder}/{file.name}", Body=file.read_bytes())
    return f"s3://{bucket}/{folder}"


def anonymous(s3: Any) -> Any:
    return icelite.s3_credentials(anonymous=True, **s3.place)


@pytest.mark.s3
@pytest.mark.usefixtures("no_aws_settings")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_public_bucket(s3_server: Any, days: list[Path], tmp_path: Path, workers: int) -> None:
    url = put(s3_server, s3_server.public, f"virtualize{workers}", days[:3])
    catalog = tmp_path / "ocean.icelite"
    options: Any = {
        "concat_dim": "time",
        "workers": workers,
        "authorize_virtual_chunk_access": {f"s3://{s3_server.public}/": anonymous(s3_server)},
    }
    assert len(virtualize(f"{url}/*.nc", catalog, **options).added) == 3
    put(s3_server, s3_server.public, f"virtualize{workers}", days[3:])
    again = virtualize(f"{url}/*.nc", catalog, **options)
    assert (len(again.added), len(again.known)) == (2, 3)
    assert virtualize(f"{url}/*.nc", catalog, **options).snapshot_id is None
    access = options["authorize_virtual_chunk_access"]
    with xr.open_dataset(catalog, engine="icelite", authorize_virtual_chunk_access=access) as found:
        check_same(found, original(days))
    put(s3_server, s3_server.public, f"virtualize{workers}", [days[1].rename(days[1])])
    s3_server.client().put_object(
        Bucket=s3_server.public, Key=f"virtualize{workers}/{days[1].name}", Body=days[2].read_bytes()
    )
    with pytest.raises(IceliteError, match=days[1].name) as caught:
        virtualize(f"{url}/*.nc", catalog, **options)
    assert caught.value.kind == ErrorKind.VIRTUAL_CHUNK_MODIFIED


WAYS = ["static", "refreshable", "environment"]


@pytest.mark.s3
@pytest.mark.usefixtures("no_aws_settings")
@pytest.mark.parametrize("way", WAYS)
def test_a_private_bucket(
    s3_server: Any, days: list[Path], tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = put(s3_server, s3_server.private, f"virtualize-{way}", days)
    keys, place = s3_server.keys, s3_server.place
    if way == "environment":
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", keys["access_key_id"])
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", keys["secret_access_key"])
        credentials = icelite.s3_credentials(from_env=True, **place)
    elif way == "refreshable":
        credentials = icelite.s3_credentials(get_credentials=lambda: icelite.S3StaticCredentials(**keys), **place)
    else:
        credentials = icelite.s3_credentials(**keys, **place)
    access = {f"s3://{s3_server.private}/": credentials}
    catalog = tmp_path / "ocean.icelite"
    virtualize(f"{url}/*.nc", catalog, concat_dim="time", workers=2, authorize_virtual_chunk_access=access)
    with xr.open_dataset(catalog, engine="icelite", authorize_virtual_chunk_access=access) as found:
        check_same(found, original(days))


@pytest.mark.s3
@pytest.mark.usefixtures("no_aws_settings")
def test_a_bucket_without_credentials(s3_server: Any, days: list[Path], tmp_path: Path) -> None:
    url = put(s3_server, s3_server.private, "refused", days)
    catalog = tmp_path / "ocean.icelite"
    prefix = f"s3://{s3_server.private}/"
    wrong = icelite.s3_credentials(access_key_id="AKIDTHATNOBODYKNOWS", secret_access_key="a-secret", **s3_server.place)
    for source in (f"{url}/*.nc", f"{url}/{days[0].name}"):
        with pytest.raises(IceliteError, match="authorize_virtual_chunk_access=") as caught:
            virtualize(source, catalog, concat_dim="time")
        assert caught.value.kind == ErrorKind.UNAUTHORIZED_VIRTUAL_CHUNK_CONTAINER
        for credentials in (anonymous(s3_server), wrong, icelite.s3_credentials(from_env=True, **s3_server.place)):
            access = {prefix: credentials}
            with pytest.raises(IceliteError, match=s3_server.private) as caught:
                virtualize(source, catalog, concat_dim="time", authorize_virtual_chunk_access=access)
            assert "AKID" not in str(caught.value)
            assert "a-secret" not in str(caught.value)
    with pytest.raises(IceliteError, match=r"no object matches .*nothing"):
        virtualize(
            f"s3://{s3_server.public}/nothing/*.nc",
            catalog,
            authorize_virtual_chunk_access={f"s3://{s3_server.public}/": anonymous(s3_server)},
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.s3
@pytest.mark.usefixtures("no_aws_settings")
def test_a_web_server(s3_server: Any, days: list[Path], tmp_path: Path) -> None:
    """Anyone may read the objects of the public bucket without S3's protocol."""
    put(s3_server, s3_server.public, "web", days)
    urls = [f"{s3_server.endpoint}/{s3_server.public}/web/{day.name}" for day in days]
    catalog, prefix = tmp_path / "ocean.icelite", f"{s3_server.endpoint}/"
    with pytest.raises(IceliteError, match="HttpAccess"):
        virtualize(urls, catalog, concat_dim="time")
    access = {prefix: HttpAccess}
    with pytest.raises(IceliteError, match="name each file"):
        virtualize(f"{s3_server.endpoint}/{s3_server.public}/web/*.nc", catalog, authorize_virtual_chunk_access=access)
    virtualize(urls[:2], catalog, concat_dim="time", authorize_virtual_chunk_access=access)
    again = virtualize(urls, catalog, concat_dim="time", authorize_virtual_chunk_access=access)
    assert (len(again.added), len(again.known)) == (3, 2)
    with xr.open_dataset(catalog, engine="icelite", authorize_virtual_chunk_access=access) as found:
        check_same(found, original(days))
