"""A catalog and its data moved together read as before: renamed, unpacked, in a bucket, on a web server.

Nothing is edited and nothing is authorised, since the references are relative.
"""

from __future__ import annotations

import shutil
import tarfile
import threading
import uuid
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import flask
import numpy as np
import pytest
import quickstart
import xarray as xr
import zarr
from oisst import write_days
from werkzeug.serving import make_server

import icelite
from icelite.errors import ErrorKind, IceliteError
from icelite.virtualizarr import to_icelite

S3Server = Any  # of conftest.py
GRID = (18, 36)
NAME = "ocean #1 100%25.icelite"  # what a URL would have to escape


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with daily files and their catalog: August 2024 tagged, then a day appended."""
    folder = tmp_path_factory.mktemp("moved") / "archive"
    *august, september = write_days(folder / "oisst" / "daily files", date(2024, 8, 26), 7, GRID)
    repo = icelite.Repository.create(folder / NAME)
    session = repo.writable_session("main")
    to_icelite(quickstart.virtual(august), session.store)
    repo.create_tag("2024.08", session.commit("August 2024"))
    session = repo.writable_session("main")
    to_icelite(quickstart.virtual([september]), session.store, append_dim="time")
    session.commit("1 September 2024")
    assert repo.required_access() == {}
    repo.close()
    return folder


@pytest.fixture(scope="module")
def expected(original: Path) -> xr.Dataset:
    """What xarray reads from the files of August."""
    files = sorted((original / "oisst" / "daily files").glob("*.202408*.nc"))
    with xr.open_mfdataset(files, **quickstart.NESTED) as dataset:
        return dataset.load()


@pytest.fixture
def archive(original: Path, tmp_path: Path) -> Path:
    """A copy of it, to be moved."""
    return Path(shutil.copytree(original, tmp_path / "archive"))


def check(place: Any, expected: xr.Dataset, **options: Any) -> None:
    """The same values, to the last bit, from where it is now; by the tag, and by the branch that went on."""
    with xr.open_dataset(place, engine="icelite", tag="2024.08", **options) as found:
        xr.testing.assert_identical(found.load(), expected)
    with xr.open_dataset(place, engine="icelite", **options) as found:
        assert found.sizes["time"] == 7
        assert np.isfinite(found.sst.isel(time=-1)).any()


def test_a_renamed_folder(archive: Path, expected: xr.Dataset) -> None:
    moved = archive.rename(archive.with_name("moved elsewhere #2 100%25"))
    check(moved / NAME, expected)
    check(str(moved / NAME), expected, chunks={})


def test_a_renamed_catalog(archive: Path, expected: xr.Dataset) -> None:
    check((archive / NAME).rename(archive / "other.icelite"), expected)


def test_a_tar_unpacked_elsewhere(archive: Path, expected: xr.Dataset, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "archive.tar.gz", "w:gz") as tar:
        tar.add(archive, "shipped")
    shutil.rmtree(archive)
    with tarfile.open(tmp_path / "archive.tar.gz") as tar:
        tar.extractall(tmp_path / "unpacked", filter="data")
    check(tmp_path / "unpacked" / "shipped" / NAME, expected)


def test_a_folder_reached_through_a_link(archive: Path, expected: xr.Dataset, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(archive)
    check(tmp_path / "link" / NAME, expected)


def test_a_read_only_folder(archive: Path, expected: xr.Dataset) -> None:
    for path in [*archive.rglob("*"), archive]:
        path.chmod(path.stat().st_mode & ~0o222)
    try:
        check(archive / NAME, expected)
    finally:
        for path in [archive, *archive.rglob("*")]:
            path.chmod(path.stat().st_mode | 0o200)


def test_the_catalog_alone_says_what_it_misses(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "alone").mkdir()
    shutil.copy(archive / NAME, tmp_path / "alone" / NAME)
    with pytest.raises(IceliteError, match=r"alone/oisst/daily files/.*\.nc.* does not exist"):
        xr.open_dataset(tmp_path / "alone" / NAME).load()
    repo = icelite.Repository.open(tmp_path / "alone" / NAME)
    assert {row.state for row in repo.sources(check=True)} == {"missing"}
    assert len(repo.verify_sources(tag="2024.08")) == 6


@pytest.mark.parametrize("link", ["file", "folder"])
def test_a_link_out_of_the_moved_folder_is_refused(archive: Path, tmp_path: Path, link: str) -> None:
    """A shipped folder must not lead a reader to files that were never in it."""
    data = archive / "oisst" / "daily files"
    target = sorted(data.iterdir())[3] if link == "file" else data
    outside = target.rename(tmp_path / f"outside {link}")
    target.symlink_to(outside)
    with pytest.raises(IceliteError, match="symbolic link") as caught:
        xr.open_dataset(archive / NAME).load()
    assert caught.value.kind == ErrorKind.UNAUTHORIZED_VIRTUAL_CHUNK_CONTAINER
    states = [row.state for row in icelite.Repository.open(archive / NAME).sources(check=True)]
    assert states.count("not authorised") == (1 if link == "file" else 7)


def test_a_reference_that_climbs_out_is_refused(archive: Path, tmp_path: Path) -> None:
    """Also one that somebody wrote into the catalog with other tools."""
    (tmp_path / "secret.nc").write_bytes(bytes(100_000))
    repo = icelite.Repository.open(archive / NAME)
    with repo._catalog.write() as txn:
        txn.run("UPDATE location SET path = '../secret.nc', size = NULL, modified_at = NULL WHERE kind = 2")
    repo.close()
    with pytest.raises(IceliteError, match=r"'\.\.'") as caught:
        xr.open_dataset(archive / NAME).load()
    assert caught.value.kind == ErrorKind.INVALID_VIRTUAL_REF


# -- not on this machine -----------------------------------------------------------------------------------------------


@pytest.fixture
def web(archive: Path) -> Iterator[tuple[str, list[str]]]:
    """A static web server that knows ranges; its address, and the paths that were asked for."""
    app = flask.Flask(__name__)
    asked: list[str] = []

    @app.get("/data/<path:name>")
    def serve(name: str) -> flask.Response:
        asked.append(name)
        return flask.send_from_directory(archive, name, conditional=True)

    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/data/", asked
    server.shutdown()
    thread.join()


def test_on_a_web_server(archive: Path, web: tuple[str, list[str]], expected: xr.Dataset, tmp_path: Path) -> None:
    address, asked = web
    (archive / NAME).rename(archive / "ocean.icelite")
    check(address + "ocean.icelite", expected)
    assert any("daily files" in name for name in asked)
    repo = icelite.Repository.open(address + "ocean.icelite")
    assert repo.verify_sources() == []
    done = repo.bundle(tmp_path / "bundle.icelite")
    assert done.chunks == 7 * 4
    repo.export_zarr(tmp_path / "out.zarr", tag="2024.08")
    shutil.rmtree(archive)
    check(tmp_path / "bundle.icelite", expected)
    assert zarr.open_array(tmp_path / "out.zarr", path="sst", mode="r").shape == (6, 1, *GRID)


@pytest.mark.s3
@pytest.mark.usefixtures("no_aws_settings")
def test_in_a_bucket(
    archive: Path, s3_server: S3Server, expected: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Uploaded as it is: the credentials for the catalog are those for the files beside it."""
    client, folder = s3_server.client(), uuid.uuid4().hex
    for path in archive.rglob("*"):
        if path.is_file():
            key = "ocean.icelite" if path.name == NAME else str(path.relative_to(archive))
            client.upload_file(str(path), s3_server.private, f"{folder}/{key}")
    storage = icelite.StorageConfig.s3_from_config(
        bucket=s3_server.private,
        prefix=f"{folder}/ocean.icelite",
        credentials=icelite.S3Credentials(**s3_server.keys),
        **s3_server.place,
    )
    check(icelite.Repository.open(storage), expected)
    repo = icelite.Repository.open(storage)
    assert repo.verify_sources() == []
    for name, value in {
        "AWS_ACCESS_KEY_ID": s3_server.keys["access_key_id"],
        "AWS_SECRET_ACCESS_KEY": s3_server.keys["secret_access_key"],
        "AWS_ENDPOINT_URL": s3_server.endpoint,
        "AWS_REGION": s3_server.region,
    }.items():
        monkeypatch.setenv(name, value)
    check(f"s3://{s3_server.private}/{folder}/ocean.icelite", expected)
    assert repo.relocate("oisst/daily files", "oisst/days", dry_run=True).count == 7
    repo.bundle(tmp_path / "bundle.icelite")
    check(tmp_path / "bundle.icelite", expected)
