"""Formats told from content, and what `open_virtual` records, refuses and copies."""

from __future__ import annotations

import gzip
import os
import pickle
import sqlite3
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from icelite.errors import ErrorKind, InvalidInputError, StorageError
from icelite.formats import Format, find_format, open_virtual, open_virtual_tree, parsed
from icelite.repository import Repository
from icelite.types import SourceStamp
from icelite.virtualizarr import to_icelite

h5py = pytest.importorskip("h5py")
manifests = pytest.importorskip("virtualizarr.manifests")

HDF5 = b"\x89HDF\r\n\x1a\n"
VALUES = np.arange(12.0).reshape(4, 3)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """An HDF5 file with a variable to reference, one to copy, a coordinate and a group."""
    path = tmp_path / "data.h5"
    with h5py.File(path, "w") as file:
        file["x"] = np.arange(3)
        file["x"].make_scale("x")
        file.create_dataset("values", data=VALUES, chunks=(2, 3)).dims[1].attach_scale(file["x"])
        file["values"].attrs["scale_factor"] = np.float32(0.1)
        file.create_dataset("copied", data=VALUES, chunks=(2, 3), compression="lzf")
        file["group/below"] = np.arange(5)
        file.create_dataset("lists", shape=(2,), dtype=h5py.vlen_dtype("i4"))
    return path


def is_virtual(array: xr.DataArray) -> bool:
    return isinstance(array.variable._data, manifests.ManifestArray)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (HDF5, Format.HDF5),
        (b"mine".ljust(512) + HDF5, Format.HDF5),
        (b"mine".ljust(4096) + HDF5, Format.HDF5),
        (b"CDF\x01", Format.NETCDF3),
        (b"CDF\x02", Format.NETCDF3),
        (b"CDF\x05", Format.NETCDF3),
        (b"GRIB\0\0\0\x02", Format.GRIB),
        (b"TTAA00 a bulletin's heading \r\r\nGRIB\0\0\0\x01", Format.GRIB),
        (b"II*\0", Format.TIFF),
        (b"MM\0*", Format.TIFF),
        (b"II+\0", Format.TIFF),
        (b"SIMPLE  =                    T", Format.FITS),
        (b'{"version": 1, "refs": {".zgroup": ""}}', Format.KERCHUNK_JSON),
        (b'{"templates": "' + b"u" * 5000 + b'", "refs": {}}', Format.KERCHUNK_JSON),
    ],
)
def test_find_format_of_a_file(tmp_path: Path, content: bytes, expected: Format) -> None:
    (tmp_path / "data.bin").write_bytes(content)
    assert find_format(tmp_path / "data.bin") is expected
    assert find_format((tmp_path / "data.bin").as_uri()) is expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("zarr.json", Format.ZARR),
        (".zgroup", Format.ZARR),
        (".zarray", Format.ZARR),
        (".zmetadata", Format.KERCHUNK_PARQUET),
    ],
)
def test_find_format_of_a_directory(tmp_path: Path, name: str, expected: Format) -> None:
    (tmp_path / name).write_text("{}")
    assert find_format(tmp_path) is expected


def test_find_format_of_a_zip_file(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "data", "w") as archive:
        archive.writestr("zarr.json", "{}")
    assert find_format(tmp_path / "data") is Format.ZIPPED_ZARR


def catalog() -> bytes:
    return b"SQLite format 3\0".ljust(68, b"\0") + b"ICLT"


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "is empty"),
        (b"time,temperature\n1,2\n", "a text file that begins with 'time,temperature"),
        ("caf\u00e9 \u2603".encode(), "a text file"),
        (b"<!DOCTYPE html><title>403</title>", "an HTML page"),
        (gzip.compress(b"CDF\x01", mtime=0), "a gzip file: unpack it"),
        (b"\x0e\x03\x13\x01", "an HDF4 file"),
        (b"PK\x03\x04 not really", "a zip file that is cut short"),
        (catalog(), "an icelite catalog: open it with icelite.Repository.open"),
        (struct.pack("<4d", 1, 2, 3, 4), "a file in an unknown format that begins with the bytes"),
        (b'{"name": "no references"}', "a text file"),
    ],
)
def test_unknown_formats_say_what_was_found(tmp_path: Path, content: bytes, found: str) -> None:
    (tmp_path / "data.nc").write_bytes(content)
    for call in (find_format, open_virtual, open_virtual_tree):
        with pytest.raises(InvalidInputError, match=found) as error:
            call(tmp_path / "data.nc")
        assert error.value.kind == ErrorKind.UNKNOWN_FORMAT
        assert "data.nc" in str(error.value)


def test_other_databases_and_directories_are_unknown(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "some.db") as connection:
        connection.execute("CREATE TABLE t (a)")
    for place in (tmp_path / "some.db", tmp_path):
        with pytest.raises(InvalidInputError, match=r"a SQLite database|a directory without"):
            find_format(place)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="does not exist") as error:
        open_virtual(tmp_path / "absent.nc")
    assert error.value.kind == ErrorKind.UNREADABLE_SOURCE


def test_references_copies_and_their_record(path: Path) -> None:
    dataset = open_virtual(path, drop_variables=["lists"])
    status = path.stat()
    assert [name for name, array in dataset.items() if is_virtual(array)] == ["values"]
    assert not is_virtual(dataset["x"])
    stamp = SourceStamp(size=status.st_size, modified_at=status.st_mtime_ns)
    assert dataset.encoding["icelite_sources"] == {f"file://{path}": stamp}
    assert dataset.encoding["icelite_copied"] == {"copied": "Zarr has no codec for the HDF5 filter lzf (32000)"}
    np.testing.assert_array_equal(dataset["copied"].values, VALUES)
    np.testing.assert_array_equal(dataset["copied"][1:, ::2].values, VALUES[1:, ::2])


def test_packing_attributes_keep_their_type(path: Path) -> None:
    dataset = open_virtual(path, drop_variables=["lists"])
    assert isinstance(dataset["values"].attrs["scale_factor"], np.float32)


def test_loadable_variables(path: Path) -> None:
    def opened(**options: Any) -> xr.Dataset:
        return open_virtual(path, drop_variables=["lists"], **options)

    assert "x" in opened().indexes
    assert is_virtual(opened(loadable_variables=[])["x"])
    loaded = opened(loadable_variables=["values", "copied"])
    assert is_virtual(loaded["x"])
    np.testing.assert_allclose(loaded["values"].values, VALUES * 0.1, rtol=1e-6)
    np.testing.assert_array_equal(loaded["copied"].values, VALUES)
    with pytest.raises(InvalidInputError, match="loadable_variables names absent"):
        opened(loadable_variables=["absent"])


def test_groups(path: Path) -> None:
    tree = open_virtual_tree(path, drop_variables=["lists"])
    assert is_virtual(tree["group/below"])
    assert tree.dataset.encoding["icelite_copied"].keys() == {"copied"}
    below = open_virtual(path, group="/group", loadable_variables=["below"])
    np.testing.assert_array_equal(below["below"], np.arange(5))
    with pytest.raises(InvalidInputError, match="has no group 'absent': there is group"):
        open_virtual(path, group="absent")


def test_data_that_cannot_be_referenced_may_be_refused(path: Path) -> None:
    with pytest.raises(
        InvalidInputError, match="1 variables that cannot be referenced: 'copied': Zarr has no"
    ) as error:
        open_virtual(path, drop_variables=["lists"], on_unreferenceable="raise")
    assert error.value.kind == ErrorKind.UNREFERENCEABLE_DATA
    open_virtual(path, drop_variables=["lists", "copied"], on_unreferenceable="raise")
    with pytest.raises(InvalidInputError, match="must be 'copy' or 'raise'"):
        open_virtual(path, on_unreferenceable="ignore")  # type: ignore[arg-type]


def test_data_that_cannot_be_stored_are_left_out(path: Path) -> None:
    with pytest.warns(UserWarning, match=r"'lists' of .*data\.h5' is left out: it holds lists of variable length"):
        dataset = open_virtual(path)
    assert "lists" not in dataset
    assert list(dataset.encoding["icelite_skipped"]) == ["lists"]
    with pytest.raises(InvalidInputError, match="1 variables that cannot be read: 'lists': it holds lists") as error:
        open_virtual(path, on_unreadable="raise")
    assert error.value.kind == ErrorKind.UNREFERENCEABLE_DATA
    assert not open_virtual(path, drop_variables=["lists"], on_unreadable="raise").encoding["icelite_skipped"]


def test_a_parser_by_name_or_as_an_object(path: Path) -> None:
    from virtualizarr.parsers import HDFParser

    assert is_virtual(open_virtual(path, parser="netcdf4", drop_variables=["lists"])["values"])
    given = open_virtual(path, parser=HDFParser(drop_variables=["lists", "copied", "group"]))
    assert is_virtual(given["values"])
    assert "copied" not in given
    with pytest.raises(InvalidInputError, match="parser='csv' is not one of auto, hdf5"):
        open_virtual(path, parser="csv")
    with pytest.raises(StorageError, match="cannot be read"):
        open_virtual(path, parser="fits")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_truncated_file_is_named(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(StorageError, match=r"data\.h5") as error:
        open_virtual(path)
    assert error.value.kind == ErrorKind.UNREADABLE_SOURCE


def test_a_truncated_netcdf3_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "short.nc"
    xr.Dataset({"a": ("x", np.arange(1000.0))}).to_netcdf(path, format="NETCDF3_64BIT", engine="scipy")
    content = path.read_bytes()
    for length, problem in ((4000, "its variable 'a' ends at byte"), (50, "header is damaged or cut short")):
        path.write_bytes(content[:length])
        with pytest.raises(StorageError, match=problem):
            open_virtual(path)


def test_a_file_that_changes_while_it_is_parsed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def touch(*_: Any) -> xr.Dataset:
        os.utime(path, ns=(1, 1))
        return xr.Dataset()

    monkeypatch.setattr("icelite.formats.opening._build_dataset", touch)
    with pytest.raises(StorageError, match="changed while it was parsed") as error:
        open_virtual(path, drop_variables=["lists"])
    assert error.value.kind == ErrorKind.VIRTUAL_CHUNK_MODIFIED


def test_copies_are_read_from_the_file_that_was_parsed(path: Path) -> None:
    dataset = open_virtual(path, drop_variables=["lists"])
    path.unlink()  # small ones were read while it was open
    np.testing.assert_array_equal(dataset["copied"].values, VALUES)


def test_datasets_are_pickled_with_their_copies_unread(path: Path) -> None:
    dataset = pickle.loads(pickle.dumps(open_virtual(path, drop_variables=["lists"])))
    assert is_virtual(dataset["values"])
    np.testing.assert_array_equal(dataset["copied"].values, VALUES)


def test_a_filter_that_nobody_has_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(h5py.h5z, "filter_avail", lambda number: number < 10)
    with pytest.raises(InvalidInputError, match=r"'copied': .* lzf \(32000\).* 'hdf5plugin'"):
        open_virtual(path, on_unreadable="raise", drop_variables=["lists"])
    with pytest.warns(UserWarning, match=r"'copied' of .* is left out"):
        assert "copied" not in open_virtual(path, drop_variables=["lists"])


def test_a_missing_package_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> parsed.ParsedGroup:
        raise ModuleNotFoundError("No module named 'arro3'", name="arro3.core")

    monkeypatch.setattr("icelite.formats.hdf5.parse", refuse)
    with pytest.raises(InvalidInputError, match=r"data\.h5' needs the package 'arro3-core'") as error:
        open_virtual(path)
    assert error.value.kind == ErrorKind.MISSING_PACKAGE


def test_objects_are_read_through_the_registry(path: Path) -> None:
    from obspec_utils.registry import ObjectStoreRegistry
    from obstore.store import MemoryStore

    store = MemoryStore()
    store.put("data/august.h5", path.read_bytes())
    registry: Any = ObjectStoreRegistry({"s3://archive": store})
    url = "s3://archive/data/august.h5"
    assert find_format(url, registry=registry) is Format.HDF5
    dataset = open_virtual(url, registry=registry, drop_variables=["lists"], loadable_variables=["values"])
    np.testing.assert_allclose(dataset["values"].values, VALUES * 0.1, rtol=1e-6)
    np.testing.assert_array_equal(dataset["copied"].values, VALUES)
    recorded = dataset.encoding["icelite_sources"][url]
    assert recorded.size == path.stat().st_size
    assert recorded.etag
    assert recorded.modified_at
    with pytest.raises(InvalidInputError, match="pass registry="):
        open_virtual(url)
    with pytest.raises(StorageError, match=r"absent\.h5.* does not exist"):
        open_virtual("s3://archive/absent.h5", registry=registry)


@pytest.mark.parametrize("name", ["with space.h5", "a%20b.h5", "caf\u00e9.h5", "a#b?c.h5"])
def test_names_are_kept_as_they_are(path: Path, name: str) -> None:
    path = path.rename(path.with_name(name))
    dataset = open_virtual(path, drop_variables=["lists"], loadable_variables=["x"])
    assert {entry["path"] for _, entry in dataset["values"].variable._data.manifest.iter_refs()} == {f"file://{path}"}
    session = Repository.create(path.with_name("c.icelite")).writable_session("main")
    to_icelite(dataset, session.store)
    session.commit("one file")
    with xr.open_dataset(path.with_name("c.icelite"), engine="icelite") as opened:
        np.testing.assert_array_equal(opened["copied"].values, VALUES)
        np.testing.assert_allclose(opened["values"].values, VALUES * 0.1, rtol=1e-6)
