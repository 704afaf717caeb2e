"""The xarray engine on small catalogs: what it claims, which snapshot it opens, and what closing closes."""

from __future__ import annotations

import gc
import os
import pickle
import sqlite3
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from icelite.errors import ErrorKind, InvalidInputError, RefNotFoundError, RepositoryNotFoundError
from icelite.repository import Repository
from icelite.session import Session
from icelite.xarray import IceliteBackendEntrypoint


def dataset(length: int) -> xr.Dataset:
    return xr.Dataset({"v": ("x", np.arange(float(length)), {"units": "K"})}, coords={"x": np.arange(length)})


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    """Three snapshots of a dataset: one tagged, one on a branch, one on main."""
    path = tmp_path / "catalog.icelite"
    repo = Repository.create(path)
    for length in (2, 3):
        session = repo.writable_session("main")
        dataset(length).to_zarr(session.store, mode="w", consolidated=False)
        dataset(length).to_zarr(session.store, group="below/deep", mode="w", consolidated=False)
        snapshot = session.commit(f"length {length}")
        if length == 2:
            repo.create_tag("first", snapshot)
            repo.create_branch("other", snapshot)
    session = repo.writable_session("other")
    dataset(5).to_zarr(session.store, mode="w", consolidated=False)
    session.commit("length 5")
    repo.close()
    del session
    gc.collect()  # a writable session holds a file of its own
    return path


def open_files(path: Path) -> int:
    """How many descriptors of this process are on ``path``."""
    descriptors = Path("/proc/self/fd")
    if not descriptors.is_dir():
        pytest.skip("this system does not list open files in /proc")
    return sum(os.path.realpath(descriptor) == str(path) for descriptor in descriptors.iterdir())


class TestGuess:
    def test_the_extension_is_enough(self) -> None:
        assert IceliteBackendEntrypoint().guess_can_open("no/such/file.icelite")
        assert IceliteBackendEntrypoint().guess_can_open(Path("no/such/file.icelite"))

    def test_a_catalog_under_any_name(self, catalog: Path) -> None:
        renamed = catalog.rename(catalog.with_name("catalog.db"))
        assert IceliteBackendEntrypoint().guess_can_open(renamed)
        xr.testing.assert_identical(xr.open_dataset(renamed).load(), dataset(3))

    def test_other_things_are_left_to_others(self, tmp_path: Path) -> None:
        text, empty, other = tmp_path / "a.txt", tmp_path / "empty", tmp_path / "other.db"
        text.write_text("hello")
        empty.touch()
        with sqlite3.connect(other) as connection:
            connection.execute("CREATE TABLE t (a)")
        connection.close()
        for thing in (text, empty, other, tmp_path, tmp_path / "absent", "s3://bucket/key", "https://a/b", b"abc", 3):
            assert not IceliteBackendEntrypoint().guess_can_open(thing)

    def test_looking_does_not_drop_the_locks_of_a_catalog_in_use(self, catalog: Path) -> None:
        renamed = catalog.rename(catalog.with_name("catalog.db"))
        writer = sqlite3.connect(renamed, isolation_level=None)
        writer.execute("BEGIN IMMEDIATE")
        assert IceliteBackendEntrypoint().guess_can_open(renamed)
        writer.execute("ROLLBACK")
        writer.close()


class TestSnapshot:
    def test_the_tip_of_main_by_default(self, catalog: Path) -> None:
        xr.testing.assert_identical(xr.open_dataset(catalog).load(), dataset(3))
        xr.testing.assert_identical(xr.open_dataset(str(catalog), engine="icelite").load(), dataset(3))

    def test_by_branch_tag_snapshot_and_time(self, catalog: Path) -> None:
        repo = Repository.open(catalog)
        first = repo.lookup_tag("first")
        written = {info.id: info.written_at for info in repo.ancestry(branch="main")}[first]
        repo.close()
        for length, choice in (
            (5, {"branch": "other"}),
            (2, {"tag": "first"}),
            (2, {"snapshot_id": first}),
            (2, {"as_of": written}),
            (2, {"branch": "main", "as_of": written}),
            (3, {"as_of": datetime.now(UTC)}),
        ):
            xr.testing.assert_identical(xr.open_dataset(catalog, **choice).load(), dataset(length))

    def test_an_open_dataset_does_not_change(self, catalog: Path) -> None:
        before = xr.open_dataset(catalog)
        repo = Repository.open(catalog)
        session = repo.writable_session("main")
        dataset(9).to_zarr(session.store, mode="w", consolidated=False)
        session.commit("length 9")
        xr.testing.assert_identical(before.load(), dataset(3))

    def test_absent_names(self, catalog: Path) -> None:
        with pytest.raises(RefNotFoundError) as caught:
            xr.open_dataset(catalog, branch="nothing")
        assert caught.value.kind == ErrorKind.BRANCH_NOT_FOUND
        with pytest.raises(RepositoryNotFoundError):
            xr.open_dataset(catalog.with_name("absent.icelite"))

    def test_decoding_parameters_are_xarrays(self, catalog: Path) -> None:
        assert list(xr.open_dataset(catalog, drop_variables="v").variables) == ["x"]
        with pytest.raises(TypeError, match="no_such_parameter"):
            xr.open_dataset(catalog, no_such_parameter=1)

    def test_a_home_directory_is_expanded(self, catalog: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(catalog.parent))
        xr.testing.assert_identical(xr.open_dataset(f"~/{catalog.name}").load(), dataset(3))


class TestGroups:
    def test_a_group(self, catalog: Path) -> None:
        xr.testing.assert_identical(xr.open_dataset(catalog, group="below/deep").load(), dataset(3))
        xr.testing.assert_identical(xr.open_dataset(catalog, group="/below/deep", tag="first").load(), dataset(2))

    def test_a_tree(self, catalog: Path) -> None:
        tree = xr.open_datatree(catalog)
        assert [node.path for node in tree.subtree] == ["/", "/below", "/below/deep"]
        xr.testing.assert_identical(tree["below/deep"].to_dataset().load(), dataset(3))
        part = xr.open_datatree(catalog, group="below", tag="first")
        xr.testing.assert_identical(part["deep"].to_dataset().load(), dataset(2))

    def test_groups_by_path(self, catalog: Path) -> None:
        groups = xr.open_groups(catalog, branch="main")
        assert sorted(groups) == ["/", "/below", "/below/deep"]

    def test_an_absent_group(self, catalog: Path) -> None:
        for opener in (xr.open_dataset, xr.open_datatree, xr.open_groups):
            with pytest.raises(FileNotFoundError, match="nothing"):
                opener(catalog, group="nothing")
        assert open_files(catalog) == 0

    def test_a_hierarchy_of_zarr_format_2(self, tmp_path: Path) -> None:
        repo = Repository.create(tmp_path / "two.icelite")
        session = repo.writable_session("main")
        dataset(4).to_zarr(session.store, zarr_format=2, consolidated=False)
        dataset(4).to_zarr(session.store, group="g", zarr_format=2, consolidated=False)
        session.commit("format 2")
        xr.testing.assert_identical(xr.open_dataset(tmp_path / "two.icelite").load(), dataset(4))
        tree = xr.open_datatree(tmp_path / "two.icelite")
        xr.testing.assert_identical(tree["g"].to_dataset().load(), dataset(4))


class TestPacking:
    """Arrays that say of which type their packing attributes were."""

    @pytest.fixture
    def session(self, tmp_path: Path) -> Session:
        return Repository.create(tmp_path / "packed.icelite").writable_session("main")

    def write(self, session: Session, dtypes: Any, **options: Any) -> None:
        attributes = {
            "_FillValue": -9,
            "scale_factor": float(np.float32(0.01)),
            "add_offset": 0.0,
            "icelite_packing_dtypes": dtypes,
        }
        packed = xr.Dataset({"v": ("x", np.array([1, 7], "i2"), attributes)})
        packed.to_zarr(session.store, mode="w", consolidated=False, **options)
        packed.to_zarr(session.store, group="a/b", mode="w", consolidated=False, **options)

    @pytest.mark.parametrize("zarr_format", [2, 3])
    def test_every_opener_restores_them(self, session: Session, zarr_format: int) -> None:
        self.write(session, "scale_factor: float32 add_offset: float32", zarr_format=zarr_format)
        expected = np.array([1, 7], "f4") * np.float32(0.01)
        for found in (
            xr.open_dataset(session).v,
            xr.open_dataset(session, group="a/b").v,
            xr.open_datatree(session)["a/b/v"],
            xr.open_groups(session)["/a/b"].v,
        ):
            assert found.dtype == np.float32
            assert found.values.tobytes() == expected.tobytes()
            assert found.attrs == {}
            assert type(found.encoding["scale_factor"]) is type(found.encoding["add_offset"]) is np.float32

    def test_without_decoding(self, session: Session) -> None:
        self.write(session, "scale_factor: float32 add_offset: float32")
        found = xr.open_dataset(session, mask_and_scale=False).v
        assert found.values.tolist() == [1, 7]
        assert found.attrs == {"_FillValue": -9, "scale_factor": np.float32(0.01), "add_offset": 0}
        assert type(found.attrs["scale_factor"]) is np.float32

    def test_a_copy_in_netcdf_is_packed_alike(self, session: Session, tmp_path: Path) -> None:
        pytest.importorskip("netCDF4")
        self.write(session, "scale_factor: float32 add_offset: float32")
        opened = xr.open_dataset(session)
        opened.to_netcdf(tmp_path / "copy.nc")
        with xr.open_dataset(tmp_path / "copy.nc") as copy:
            assert copy.v.dtype == np.float32
            xr.testing.assert_identical(copy.load(), opened.load())

    HINT = "scale_factor: float32 0.009999999776482582 add_offset: float32 0.0"

    def test_the_numbers_are_those_that_the_hint_is_about(self, session: Session) -> None:
        self.write(session, self.HINT)
        assert xr.open_dataset(session).v.dtype == np.float32

    @pytest.mark.parametrize(
        "dtypes",
        [
            3,
            "scale_factor:",
            "scale_factor: red",
            "other: float32",
            "scale_factor: object",
            {"a": "float32"},
            "scale_factor: float32 0.5",
            "scale_factor: int16",
            HINT.replace("0.0", "0.25"),
        ],
    )
    def test_a_hint_that_does_not_fit_is_ignored(self, session: Session, dtypes: Any) -> None:
        self.write(session, dtypes)
        with pytest.warns(UserWarning, match="icelite_packing_dtypes' of 'v' is .* is ignored"):
            found = xr.open_dataset(session).v
        with xr.open_zarr(session.store, consolidated=False) as expected:
            assert found.dtype == expected.v.dtype
            np.testing.assert_array_equal(found.values, expected.v.values)
        assert "icelite_packing_dtypes" not in found.attrs

    def test_a_hint_goes_along_with_what_is_computed(self, session: Session) -> None:
        """Xarray hands on attributes that it does not know, and packs again as it is told."""
        self.write(session, self.HINT)
        opened = xr.open_zarr(session.store, consolidated=False).load()
        for name, encoding in {"plain": {}, "packed": {"v": {"dtype": "int16", "scale_factor": 0.5}}}.items():
            opened.drop_encoding().to_zarr(session.store, group=name, consolidated=False, encoding=encoding)
            with pytest.warns(UserWarning, match="is ignored"):
                found = xr.open_dataset(session, group=name).v
            expected = xr.open_zarr(session.store, group=name, consolidated=False).v
            assert found.dtype == expected.dtype
            np.testing.assert_array_equal(found.values, expected.values)


class TestObjects:
    def test_repository_session_and_store(self, catalog: Path) -> None:
        repo = Repository.open(catalog)
        session = repo.readonly_session("main")
        for source in (repo, session, session.store):
            opened = xr.open_dataset(source)
            xr.testing.assert_identical(opened.load(), dataset(3))
            opened.close()
        xr.testing.assert_identical(xr.open_dataset(repo, tag="first").load(), dataset(2))
        xr.testing.assert_identical(xr.open_datatree(repo, group="below")["deep"].to_dataset().load(), dataset(3))

    def test_what_a_writable_session_holds(self, catalog: Path) -> None:
        session = Repository.open(catalog).writable_session("main")
        dataset(7).to_zarr(session.store, mode="w", consolidated=False)
        for source in (session, session.store):
            with xr.open_dataset(source) as opened:
                xr.testing.assert_identical(opened.load(), dataset(7))
        assert session.has_uncommitted_changes

    @pytest.mark.parametrize(
        ("kind", "parameters"),
        [
            ("session", {"branch": "main"}),
            ("store", {"tag": "first"}),
            ("session", {"authorize_virtual_chunk_access": {}}),
            ("repository", {"authorize_virtual_chunk_access": {}}),
        ],
    )
    def test_parameters_that_the_object_has_already(self, catalog: Path, kind: str, parameters: dict[str, Any]) -> None:
        repo = Repository.open(catalog)
        session = repo.readonly_session("main")
        source = {"repository": repo, "session": session, "store": session.store}[kind]
        with pytest.raises(InvalidInputError, match=next(iter(parameters))) as caught:
            xr.open_dataset(source, **parameters)
        assert caught.value.kind == ErrorKind.INVALID_ARGUMENT


class TestClose:
    def test_closing_a_dataset_closes_the_catalog(self, catalog: Path) -> None:
        opened = xr.open_dataset(catalog)
        assert open_files(catalog) > 0
        opened.close()
        assert open_files(catalog) == 0

    def test_the_last_of_several_closes(self, catalog: Path) -> None:
        groups = xr.open_groups(catalog)
        groups.pop("/").close()
        groups.pop("/below").close()
        last = groups.pop("/below/deep")
        xr.testing.assert_identical(last.load(), dataset(3))
        last.close()
        assert open_files(catalog) == 0

    def test_closing_a_tree_closes_the_catalog(self, catalog: Path) -> None:
        with xr.open_datatree(catalog) as tree:
            assert tree["v"].values.tolist() == [0, 1, 2]
        assert open_files(catalog) == 0

    def test_what_the_caller_opened_stays_open(self, catalog: Path) -> None:
        repo = Repository.open(catalog)
        session = repo.readonly_session("main")
        for source in (repo, session, session.store):
            xr.open_dataset(source).close()
            assert xr.open_dataset(source).sizes["x"] == 3


class TestDask:
    def test_chunks_are_read_by_dask(self, catalog: Path) -> None:
        pytest.importorskip("dask.array")
        opened = xr.open_dataset(catalog, chunks={})
        assert opened.v.chunks == ((3,),)
        xr.testing.assert_identical(opened.compute(), dataset(3))
        assert opened.v.sum().compute(scheduler="processes", num_workers=1) == 3

    def test_a_dataset_is_pickled_with_its_snapshot(self, catalog: Path) -> None:
        with xr.open_dataset(catalog, tag="first") as opened:
            copy = pickle.loads(pickle.dumps(opened))
        xr.testing.assert_identical(copy.load(), dataset(2))
