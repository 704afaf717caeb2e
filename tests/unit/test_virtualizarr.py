"""`to_icelite` on small arrays whose chunks are laid out in files by hand, so that every reference is known."""

from __future__ import annotations

import math
import os
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import icelite.virtualizarr
from icelite.errors import (
    AlreadyExistsError,
    ErrorKind,
    InvalidInputError,
    NodeNotFoundError,
    ReadOnlyError,
    StorageError,
)
from icelite.formats.parsed import FileInspection
from icelite.repository import Repository
from icelite.session import Session
from icelite.types import SourceStamp
from icelite.virtualizarr import arrays, sources, to_icelite, writing

manifests = pytest.importorskip("virtualizarr.manifests")
create_v3_array_metadata = pytest.importorskip("virtualizarr.manifests.utils").create_v3_array_metadata

HAS_INLINED = hasattr(manifests.ChunkManifest, "_inlined") or "_inlined" in manifests.ChunkManifest.__annotations__


@pytest.fixture
def repo(tmp_path: Path) -> Repository:
    return Repository.create(tmp_path / "catalog.icelite")


@pytest.fixture
def session(repo: Repository) -> Session:
    return repo.writable_session("main")


def blocks(values: np.ndarray, chunks: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], bytes]]:
    """Yield ``(grid position, bytes)`` of every chunk; those at the edge are padded, as Zarr has them."""
    grid = tuple(-(-size // chunk) for size, chunk in zip(values.shape, chunks, strict=True))
    padding = [(0, n * c - s) for n, c, s in zip(grid, chunks, values.shape, strict=True)]
    padded = np.pad(values, padding) if padding else values
    for index in np.ndindex(grid):
        window = tuple(slice(i * c, (i + 1) * c) for i, c in zip(index, chunks, strict=True))
        yield index, np.ascontiguousarray(padded[window]).tobytes()


def virtual(
    file: Path,
    dims: tuple[str, ...],
    values: Any,
    chunks: tuple[int, ...] | None = None,
    *,
    missing: tuple[tuple[int, ...], ...] = (),
    inlined: tuple[tuple[int, ...], ...] = (),
    attrs: dict[str, Any] | None = None,
    encoding: dict[str, Any] | None = None,
    fill_value: Any = 0,
) -> xr.Variable:
    """Append the chunks of ``values`` to a file and return the variable that references them there."""
    values = np.asarray(values)
    chunks = values.shape if chunks is None else chunks
    entries: dict[str, dict[str, Any]] = {}
    with file.open("ab") as stream:
        stream.write(b"header")
        for index, data in blocks(values, chunks):
            key = ".".join(map(str, index)) or "c"
            if index in inlined:
                entries[key] = {"path": "", "offset": 0, "length": len(data), "data": data}
            elif index not in missing:
                entries[key] = {"path": file.as_uri(), "offset": stream.tell(), "length": len(data)}
                stream.write(data)
    grid = tuple(-(-size // chunk) for size, chunk in zip(values.shape, chunks, strict=True))
    metadata = create_v3_array_metadata(
        shape=values.shape, data_type=values.dtype, chunk_shape=chunks, fill_value=fill_value
    )
    array = manifests.ManifestArray(metadata, manifests.ChunkManifest(entries, shape=grid))
    return xr.Variable(dims, array, attrs or {}, encoding or {})


def stored(session: Session, group: str | None = None, **options: Any) -> xr.Dataset:
    return xr.open_zarr(session.store, group=group, consolidated=False, zarr_format=3, chunks=None, **options).load()


def series(file: Path, start: int, stop: int, chunk: int = 2, **options: Any) -> xr.Dataset:
    """A dataset of ``[start, stop)`` along time, with a loadable coordinate."""
    values = np.arange(start * 3, stop * 3, dtype="f4").reshape(-1, 3)
    return xr.Dataset(
        {"t": virtual(file, ("time", "x"), values, (chunk, 3), **options)},
        coords={"time": np.arange(start, stop)},
    )


def refusal(error: type[Exception], session: Session, vds: Any, **options: Any) -> Any:
    """The error that `to_icelite` raises, having left the session as it was."""
    before = session.status()
    with pytest.raises(error) as caught:
        to_icelite(vds, session.store, **options)
    assert session.status() == before
    return caught.value


class TestWrite:
    def test_values_attributes_and_coordinates_come_back(self, session: Session, tmp_path: Path) -> None:
        values = np.arange(35, dtype=">i2").reshape(5, 7)
        vds = xr.Dataset(
            {
                "t": virtual(tmp_path / "a", ("y", "x"), values, (2, 3), attrs={"units": "K", "n": np.int16(3)}),
                "loaded": ("x", np.arange(7.0)),
            },
            coords={
                "y": [10, 20, 30, 40, 50],
                "depth": virtual(tmp_path / "b", (), np.float64(2.5)),
                "name": ("x", np.arange(7)),
            },
            attrs={"title": "a title", "levels": np.array([1, 2])},
        )
        to_icelite(vds, session.store)
        found = stored(session)
        expected = xr.Dataset(
            {"t": (("y", "x"), values, {"units": "K", "n": 3}), "loaded": ("x", np.arange(7.0))},
            coords={"y": [10, 20, 30, 40, 50], "depth": 2.5, "name": ("x", np.arange(7))},
            attrs={"title": "a title", "levels": [1, 2]},
        )
        xr.testing.assert_identical(found, expected)
        assert found.t.dtype == values.dtype.newbyteorder("=")

    def test_a_missing_chunk_reads_as_the_fill_value(self, session: Session, tmp_path: Path) -> None:
        variable = virtual(tmp_path / "a", ("x",), np.arange(6), (2,), missing=((1,),), fill_value=-1)
        to_icelite(xr.Dataset({"v": variable}), session.store)
        assert stored(session).v.values.tolist() == [0, 1, -1, -1, 4, 5]

    def test_a_scalar_whose_chunk_is_called_0(self, session: Session, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(np.array([1.5, 2.5]).tobytes())
        metadata = create_v3_array_metadata(shape=(), data_type=np.dtype("f8"), chunk_shape=())
        entry = {"path": (tmp_path / "a").as_uri(), "offset": 8, "length": 8}
        array = manifests.ManifestArray(metadata, manifests.ChunkManifest({"0": entry}))
        to_icelite(xr.Dataset({"v": ((), array)}), session.store)
        assert stored(session).v.item() == 2.5

    def test_an_array_without_elements(self, session: Session) -> None:
        metadata = create_v3_array_metadata(shape=(0, 3), data_type=np.dtype("f4"), chunk_shape=(1, 3))
        array = manifests.ManifestArray(metadata, manifests.ChunkManifest({}, shape=(0, 1)))
        to_icelite(xr.Dataset({"v": (("time", "x"), array)}), session.store)
        assert stored(session).v.shape == (0, 3)

    @pytest.mark.skipif(not HAS_INLINED, reason="VirtualiZarr holds inlined chunks since 2.8")
    def test_inlined_chunks_are_written_as_chunks(self, session: Session, tmp_path: Path) -> None:
        values = np.arange(12).reshape(4, 3)
        grid = virtual(tmp_path / "a", ("y", "x"), values, (2, 3), inlined=((1, 0),))
        scalar = virtual(tmp_path / "a", (), np.int64(7), inlined=((),))
        to_icelite(xr.Dataset({"grid": grid, "scalar": scalar}), session.store)
        (tmp_path / "a").unlink()
        assert stored(session, drop_variables="grid").scalar == 7
        assert zarr.open_array(session.store, path="grid", mode="r")[2:].tolist() == values[2:].tolist()

    def test_nan_and_infinity_in_attributes_survive(self, session: Session, tmp_path: Path) -> None:
        attrs = {"missing": math.nan, "range": np.array([-np.inf, np.inf])}
        vds = xr.Dataset({"v": virtual(tmp_path / "a", ("x",), np.arange(3), attrs=attrs)}, attrs={"gap": math.nan})
        to_icelite(vds, session.store)
        found = stored(session)
        assert math.isnan(found.attrs["gap"])
        assert math.isnan(found.v.attrs["missing"])
        assert found.v.attrs["range"] == [-math.inf, math.inf]

    def test_packed_values_are_unpacked(self, session: Session, tmp_path: Path) -> None:
        packing = {"_FillValue": np.int16(-9), "scale_factor": np.float64(0.5), "add_offset": np.float32(10)}
        in_encoding = virtual(tmp_path / "a", ("x",), np.array([-9, 0, 2], "i2"), encoding=packing)
        in_attributes = virtual(tmp_path / "a", ("x",), np.array([-9, 0, 2], "i2"), attrs=packing)
        to_icelite(xr.Dataset({"a": in_encoding, "b": in_attributes}), session.store)
        found = stored(session)
        np.testing.assert_array_equal(found.a.values, [np.nan, 10, 11])
        np.testing.assert_array_equal(found.b.values, [np.nan, 10, 11])

    @pytest.mark.parametrize("fill", [np.float32(1e20), np.array([1e20]), 1e20])
    def test_a_plain_fill_value_of_floats_is_encoded_as_xarray_wants_it(
        self, session: Session, tmp_path: Path, fill: Any
    ) -> None:
        variable = virtual(tmp_path / "a", ("x",), np.array([1e20, 1], "f4"), attrs={"_FillValue": fill})
        to_icelite(xr.Dataset({"v": variable}), session.store)
        np.testing.assert_array_equal(stored(session).v.values, [np.nan, 1])

    def test_a_loadable_coordinate_has_one_chunk_whatever_its_source_had(self, session: Session) -> None:
        time = xr.Variable("time", np.arange(100), encoding={"chunks": (1,), "preferred_chunks": {"time": 1}})
        to_icelite(xr.Dataset(coords={"time": time}), session.store)
        assert zarr.open_array(session.store, path="time", mode="r").chunks == (100,)

    def test_a_lazy_dask_variable_is_written(self, session: Session) -> None:
        pytest.importorskip("dask")
        to_icelite(xr.Dataset({"v": ("x", np.arange(10))}).chunk(x=5), session.store)
        assert stored(session).v.values.tolist() == list(range(10))

    def test_variables_are_stored_in_the_order_of_the_dataset(self, session: Session, tmp_path: Path) -> None:
        names = ["z", "loaded", "a", "x"]
        variables = {name: virtual(tmp_path / "a", ("x",), np.arange(3)) for name in names}
        vds = xr.Dataset({**variables, "loaded": ("x", [1, 2, 3]), "x": ("x", [1, 2, 3])})
        to_icelite(vds, session.store)
        assert list(zarr.open_group(session.store, mode="r").array_keys()) == names

    def test_loadable_variables_are_stored_as_xarray_stores_them(self, session: Session) -> None:
        time = xr.Variable("time", np.arange("2000-01-01", 3, dtype="M8[D]").astype("M8[ns]"), {"bounds": "edges"})
        edges = xr.Variable(("time", "side"), np.stack([time.values, time.values], axis=1))
        plain = {"text": ("time", ["a", "bb", "ccc"]), "height": ("time", [0.5, 1.5, np.nan]), "flag": True}
        vds = xr.Dataset({"edges": edges, **plain}, coords={"time": time})
        to_icelite(vds, session.store, group="ours")
        vds.to_zarr(session.store, group="xarray", consolidated=False)
        xr.testing.assert_identical(stored(session, "ours"), stored(session, "xarray"))
        ours, theirs = (zarr.open_group(session.store, path=path, mode="r") for path in ("ours", "xarray"))
        assert [ours[name].metadata.to_dict() for name in vds.variables] == [
            theirs[name].metadata.to_dict() for name in vds.variables
        ]

    def test_groups_and_their_parents_are_made(self, session: Session, tmp_path: Path) -> None:
        to_icelite(series(tmp_path / "a", 0, 4), session.store, group="/model/run/")
        assert stored(session, "model/run").t.shape == (4, 3)
        assert [path for path, _ in zarr.open_group(session.store, mode="r").members(max_depth=None)][:2] == [
            "model",
            "model/run",
        ]

    def test_a_tree_is_written_node_by_node(self, session: Session, tmp_path: Path) -> None:
        tree = xr.DataTree.from_dict(
            {
                "/": xr.Dataset(coords={"x": [1, 2, 3]}, attrs={"title": "root"}),
                "/a": xr.Dataset({"v": virtual(tmp_path / "a", ("x",), np.arange(3))}),
                "/a/b": xr.Dataset({"w": virtual(tmp_path / "a", ("x",), np.arange(3, 6))}),
            }
        )
        tree.icelite.to_icelite(session.store, group="top")
        found = xr.open_datatree(session.store, group="top", engine="zarr", consolidated=False, zarr_format=3)
        assert found.attrs == {"title": "root"}
        assert found["a/b/w"].values.tolist() == [3, 4, 5]
        assert set(zarr.open_group(session.store, path="top/a", mode="r").array_keys()) == {"v"}

    def test_part_of_a_tree_keeps_what_it_inherited(self, session: Session, tmp_path: Path) -> None:
        tree = xr.DataTree.from_dict(
            {
                "/": xr.Dataset(coords={"x": [1, 2, 3]}),
                "/a": xr.Dataset({"v": virtual(tmp_path / "a", ("x",), np.arange(3))}),
            }
        )
        to_icelite(tree["a"], session.store)
        assert stored(session).x.values.tolist() == [1, 2, 3]

    def test_the_dataset_accessor(self, session: Session, tmp_path: Path) -> None:
        series(tmp_path / "a", 0, 4).icelite.to_icelite(session.store, group="g")
        assert stored(session, "g").t.shape == (4, 3)

    def test_a_coordinate_with_a_space_in_its_name_is_told(self, session: Session) -> None:
        with pytest.warns(UserWarning, match="has a space in its name"):
            to_icelite(xr.Dataset(coords={"a b": ("x", [1, 2])}), session.store)

    def test_public_entries_give_the_same_references(self, tmp_path: Path) -> None:
        inlined = ((1, 1),) if HAS_INLINED else ()
        variable = virtual(
            tmp_path / "a", ("y", "x"), np.arange(24).reshape(4, 6), (2, 2), missing=((0, 1),), inlined=inlined
        )

        class Public:
            """A manifest of some later release, without the private columns."""

            shape_chunk_grid = variable.data.manifest.shape_chunk_grid
            iter_refs = variable.data.manifest.iter_refs
            __getitem__ = staticmethod(variable.data.manifest.__getitem__)

        public = SimpleNamespace(manifest=Public(), shape=variable.shape)
        fast, slow = arrays.read_references(variable.data), arrays.read_references(public)
        assert (fast.grid, fast.codes.tolist(), fast.urls, fast.inlined) == (
            slow.grid,
            slow.codes.tolist(),
            slow.urls,
            slow.inlined,
        )
        present = fast.codes >= 0
        assert present.sum() == len(present) - 1 - len(inlined)
        assert fast.offsets[present].tolist() == slow.offsets[present].tolist()
        assert fast.lengths[present].tolist() == slow.lengths[present].tolist()

    def test_a_location_is_kept_once_a_file(self, tmp_path: Path) -> None:
        variable = virtual(tmp_path / "a", ("x",), np.arange(10), (1,), missing=((3,),))
        found = arrays.read_references(variable.data)
        assert found.urls == [(tmp_path / "a").as_uri()]
        assert found.codes.tolist() == [0, 0, 0, -1, 0, 0, 0, 0, 0, 0]


class TestSources:
    def test_each_file_is_stamped_once(self, session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        stamped: list[str] = []
        stamps = session.access.stamps
        monkeypatch.setattr(session.access, "stamps", lambda urls: stamped.extend(urls) or stamps(urls))
        first, second = tmp_path / "a", tmp_path / "b"
        vds = xr.Dataset(
            {
                "v": virtual(first, ("x",), np.arange(4), (1,)),
                "w": virtual(first, ("x",), np.arange(4), (1,)),
                "z": virtual(second, ("x",), np.arange(4), (1,)),
            }
        )
        to_icelite(vds, session.store)
        assert sorted(stamped) == [first.as_uri(), second.as_uri()]

    def test_a_source_changed_since_is_refused(self, repo: Repository, tmp_path: Path) -> None:
        file = tmp_path / "a"
        session = repo.writable_session("main")
        to_icelite(xr.Dataset({"v": virtual(file, ("x",), np.arange(4))}), session.store)
        session.commit("one")
        os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))
        with pytest.raises(StorageError, match="a") as caught:
            stored(repo.readonly_session("main"))
        assert caught.value.kind == ErrorKind.VIRTUAL_CHUNK_MODIFIED

    def test_last_updated_at_replaces_the_stamp(self, repo: Repository, tmp_path: Path) -> None:
        file = tmp_path / "a"
        vds = xr.Dataset({"v": virtual(file, ("x",), np.arange(4))})
        modified = datetime.fromtimestamp(file.stat().st_mtime, UTC)
        session = repo.writable_session("main")
        to_icelite(vds, session.store, last_updated_at=modified + timedelta(seconds=10))
        session.commit("one")
        os.utime(file, ns=(0, file.stat().st_mtime_ns + 5 * 10**9))
        assert stored(repo.readonly_session("main")).v.values.tolist() == [0, 1, 2, 3]
        os.utime(file, ns=(0, file.stat().st_mtime_ns + 10 * 10**9))
        with pytest.raises(StorageError) as caught:
            stored(repo.readonly_session("main"))
        assert caught.value.kind == ErrorKind.VIRTUAL_CHUNK_MODIFIED


class TestRefusals:
    @pytest.mark.parametrize(
        ("vds", "options", "kind", "text"),
        [
            ("text", {}, ErrorKind.INVALID_ARGUMENT, "Dataset or DataTree, not str"),
            (xr.Dataset(), {"append_dim": "time"}, ErrorKind.INVALID_ARGUMENT, "append_dim 'time'"),
            (
                xr.Dataset(),
                {"last_updated_at": datetime(2020, 1, 1)},  # noqa: DTZ001  (the fault under test)
                ErrorKind.INVALID_ARGUMENT,
                "time zone",
            ),
            (xr.Dataset(), {"group": 5}, ErrorKind.INVALID_ARGUMENT, "group must be a path"),
            (xr.Dataset(), {"group": "a/../b"}, ErrorKind.INVALID_PATH, "a/../b"),
            (xr.Dataset({"..": ("x", [1])}), {}, ErrorKind.INVALID_PATH, "'..'"),
            (xr.Dataset({3: ("x", [1])}), {}, ErrorKind.INVALID_PATH, "variable 3"),
            (xr.Dataset({"v": ((7,), [1])}), {}, ErrorKind.INVALID_PATH, "variable 'v'"),
            (xr.Dataset(attrs={"raw": b"\xff"}), {}, ErrorKind.BAD_METADATA, "attribute 'raw' of 'the root group'"),
            (xr.Dataset(attrs={5: 1}), {}, ErrorKind.BAD_METADATA, "attribute 5"),
        ],
    )
    def test_arguments(self, session: Session, vds: Any, options: dict[str, Any], kind: ErrorKind, text: str) -> None:
        error = refusal(InvalidInputError, session, vds, **options)
        assert error.kind == kind
        assert text in str(error)

    def test_another_kind_of_store(self) -> None:
        with pytest.raises(InvalidInputError, match=r"session\.store"):
            to_icelite(xr.Dataset(), zarr.storage.MemoryStore())  # type: ignore[arg-type]

    def test_a_read_only_store(self, repo: Repository) -> None:
        with pytest.raises(ReadOnlyError) as caught:
            to_icelite(xr.Dataset(), repo.readonly_session("main").store)
        assert caught.value.kind == ErrorKind.READ_ONLY_STORE

    def test_a_variable_attribute_that_json_cannot_hold(self, session: Session, tmp_path: Path) -> None:
        good = virtual(tmp_path / "a", ("x",), np.arange(3))
        bad = virtual(tmp_path / "a", ("x",), np.arange(3), attrs={"when": np.datetime64("2020-01-01")})
        error = refusal(InvalidInputError, session, xr.Dataset({"good": good, "bad": bad}), group="g")
        assert error.kind == ErrorKind.BAD_METADATA
        assert "'when' of 'g/bad'" in str(error)

    def test_a_loadable_variable_that_xarray_cannot_store(self, session: Session, tmp_path: Path) -> None:
        mixed = np.array([1, "a", None], dtype=object)
        vds = series(tmp_path / "a", 0, 2).assign(good=("y", [1.0]), bad=("z", mixed))
        error = refusal(InvalidInputError, session, vds, group="g")
        assert error.kind == ErrorKind.INVALID_DATASET
        assert "variable 'g/bad' cannot be stored" in str(error)

    def test_a_dask_variable_that_xarray_cannot_store(self, session: Session) -> None:
        pytest.importorskip("dask")
        lazy = xr.Dataset({"v": ("x", np.arange(4), {"when": b"no JSON"})}).chunk(x=2)
        error = refusal(InvalidInputError, session, lazy)
        assert error.kind == ErrorKind.INVALID_DATASET
        assert "variable 'v'" in str(error)

    def test_a_location_that_cannot_be_referenced(self, session: Session, tmp_path: Path) -> None:
        good = virtual(tmp_path / "a", ("x",), np.arange(3))
        bad = xr.Variable("x", good.data.rename_paths("s3://bucket/key.nc"))
        error = refusal(InvalidInputError, session, xr.Dataset({"good": good, "bad": bad}))
        assert error.kind == ErrorKind.NO_CONTAINER_FOR_VIRTUAL_CHUNK
        assert "variable 'bad'" in str(error)
        assert "s3://bucket/key.nc" in str(error)

    def test_a_manifest_that_does_not_fill_the_array(self, session: Session, tmp_path: Path) -> None:
        whole, part = (virtual(tmp_path / "a", ("x",), np.arange(n), (1,)) for n in (4, 3))
        array = manifests.ManifestArray(whole.data.metadata, part.data.manifest)
        error = refusal(InvalidInputError, session, xr.Dataset({"v": ("x", array)}))
        assert error.kind == ErrorKind.INVALID_DATASET
        assert "(3,) chunks" in str(error)

    def test_a_reference_without_bytes(self, session: Session, tmp_path: Path) -> None:
        array = virtual(tmp_path / "a", ("x",), np.arange(4), (1,)).data
        array.manifest._lengths[2] = 0
        error = refusal(InvalidInputError, session, xr.Dataset({"v": ("x", array)}))
        assert error.kind == ErrorKind.ZERO_LENGTH_CHUNK
        assert "variable 'v' has 1 references that cannot be chunks" in str(error)
        assert "chunk (2,): 0 bytes" in str(error)

    def test_a_group_that_holds_arrays(self, session: Session, tmp_path: Path) -> None:
        to_icelite(series(tmp_path / "a", 0, 4), session.store)
        error = refusal(AlreadyExistsError, session, series(tmp_path / "a", 4, 8))
        assert error.kind == ErrorKind.NODE_ALREADY_EXISTS
        assert "append_dim=" in str(error)

    @pytest.mark.parametrize("group", ["v", "v/below"])
    def test_an_array_where_the_group_should_be(self, session: Session, tmp_path: Path, group: str) -> None:
        to_icelite(xr.Dataset({"v": ("x", [1, 2])}), session.store)
        error = refusal(AlreadyExistsError, session, series(tmp_path / "a", 0, 2), group=group)
        assert error.kind == ErrorKind.NODE_ALREADY_EXISTS
        assert "'v' is an array" in str(error)

    def test_a_group_where_a_variable_should_be(self, session: Session, tmp_path: Path) -> None:
        to_icelite(xr.Dataset({"v": ("x", [1, 2])}), session.store, group="t")
        error = refusal(AlreadyExistsError, session, series(tmp_path / "a", 0, 2))
        assert error.kind == ErrorKind.NODE_ALREADY_EXISTS

    def test_a_group_of_zarr_format_2(self, session: Session) -> None:
        zarr.open_group(session.store, mode="a", zarr_format=2)
        error = refusal(InvalidInputError, session, xr.Dataset({"v": ("x", [1, 2])}), group="below")
        assert error.kind == ErrorKind.INVALID_ARGUMENT
        assert "format 2" in str(error)


class TestAppend:
    def test_virtual_and_loadable_variables_grow(self, session: Session, tmp_path: Path) -> None:
        first = series(tmp_path / "a", 0, 4).assign_coords(x=[1, 2, 3]).assign_attrs(title="one", kept=1)
        to_icelite(first, session.store)
        second = series(tmp_path / "b", 4, 7).assign_coords(x=[1, 2, 3]).assign_attrs(title="two")
        to_icelite(second, session.store, append_dim="time")
        expected = xr.Dataset(
            {"t": (("time", "x"), np.arange(21, dtype="f4").reshape(7, 3))},
            coords={"time": np.arange(7), "x": [1, 2, 3]},
            attrs={"title": "two", "kept": 1},
        )
        xr.testing.assert_identical(stored(session), expected)

    def test_variables_without_the_dimension_stay_as_they_are(self, session: Session, tmp_path: Path) -> None:
        def part(start: int, mask: list[int]) -> xr.Dataset:
            dataset = series(tmp_path / str(start), start, start + 2)
            dataset["mask"] = virtual(tmp_path / f"mask-{start}", ("x",), np.array(mask))
            dataset["loaded"] = ("x", mask)
            return dataset

        to_icelite(part(0, [1, 1, 1]), session.store)
        to_icelite(part(2, [9, 9, 9]), session.store, append_dim="time")
        found = stored(session)
        assert found.mask.values.tolist() == found.loaded.values.tolist() == [1, 1, 1]
        assert found.sizes["time"] == 4

    def test_a_new_variable_without_the_dimension_is_added(self, session: Session, tmp_path: Path) -> None:
        to_icelite(series(tmp_path / "a", 0, 2), session.store)
        more = series(tmp_path / "b", 2, 4).assign_coords(name=("x", [7, 8, 9]))
        to_icelite(more, session.store, append_dim="time")
        assert stored(session).coords["name"].values.tolist() == [7, 8, 9]

    def test_time_is_encoded_as_the_stored_time(self, session: Session) -> None:
        def days(start: str) -> xr.Dataset:
            return xr.Dataset(coords={"time": np.arange(start, 3, dtype="M8[D]").astype("M8[ns]")})

        to_icelite(days("2020-01-01"), session.store)
        to_icelite(days("2020-01-04"), session.store, append_dim="time")
        assert (
            stored(session).time.values.tolist() == np.arange("2020-01-01", 6, dtype="M8[D]").astype("M8[ns]").tolist()
        )

    @pytest.mark.skipif(not HAS_INLINED, reason="VirtualiZarr holds inlined chunks since 2.8")
    def test_inlined_chunks_are_moved_behind_the_stored_ones(self, session: Session, tmp_path: Path) -> None:
        for start in (0, 4):
            part = series(tmp_path / str(start), start, start + 4, inlined=((1, 0),))
            to_icelite(part, session.store, append_dim="time" if start else None)
        assert stored(session).t.values.ravel().tolist() == list(range(24))

    def test_along_the_second_dimension(self, session: Session, tmp_path: Path) -> None:
        values = np.arange(24).reshape(3, 8)
        for columns in (slice(0, 4), slice(4, 8)):
            variable = virtual(tmp_path / str(columns.start), ("y", "x"), values[:, columns], (2, 2))
            to_icelite(xr.Dataset({"v": variable}), session.store, append_dim="x" if columns.start else None)
        np.testing.assert_array_equal(stored(session).v.values, values)

    def test_to_an_array_without_elements(self, session: Session, tmp_path: Path) -> None:
        metadata = create_v3_array_metadata(shape=(0, 3), data_type=np.dtype("f4"), chunk_shape=(2, 3), fill_value=0)
        array = manifests.ManifestArray(metadata, manifests.ChunkManifest({}, shape=(0, 1)))
        empty = xr.Dataset({"t": (("time", "x"), array)}, coords={"time": np.arange(0)})
        to_icelite(empty, session.store)
        to_icelite(series(tmp_path / "a", 0, 3), session.store, append_dim="time")
        assert stored(session).t.values.ravel().tolist() == list(range(9))

    def test_a_tree_grows_where_it_has_the_dimension(self, session: Session, tmp_path: Path) -> None:
        def tree(start: int) -> xr.DataTree:
            constants = xr.Dataset({"mask": virtual(tmp_path / f"mask-{start}", ("x",), np.arange(3))})
            return xr.DataTree.from_dict({"/": constants, "/run": series(tmp_path / str(start), start, start + 2)})

        to_icelite(tree(0), session.store)
        to_icelite(tree(2), session.store, append_dim="time")
        assert stored(session, "run").t.values.ravel().tolist() == list(range(12))

    def test_after_a_partly_filled_chunk_is_refused(self, session: Session, tmp_path: Path) -> None:
        to_icelite(series(tmp_path / "a", 0, 3), session.store)
        error = refusal(InvalidInputError, session, series(tmp_path / "a", 3, 5), append_dim="time")
        assert error.kind == ErrorKind.INVALID_DATASET
        assert "'t'" in str(error)
        assert "3 elements in chunks of 2" in str(error)

    @pytest.mark.parametrize(
        ("change", "text"),
        [
            ({"values": np.zeros((2, 3), "f8")}, "data_type is float64, the stored array's is float32"),
            ({"values": np.zeros((2, 3), ">f4")}, "codecs"),
            ({"chunks": (1, 3)}, "chunk_grid"),
            ({"dims": ("time", "z")}, "dimension_names"),
            ({"fill_value": 5}, "fill_value"),
            ({"encoding": {"scale_factor": 0.1}}, "scale_factor"),
            ({"attrs": {"_FillValue": np.float32(-9)}}, "_FillValue"),
            ({"attrs": {"units": "days since 1951-01-01"}}, "units"),
        ],
    )
    def test_chunks_that_would_read_differently_are_refused(
        self, session: Session, tmp_path: Path, change: dict[str, Any], text: str
    ) -> None:
        plain: dict[str, Any] = {"dims": ("time", "x"), "values": np.zeros((2, 3), "f4"), "chunks": (2, 3)}
        to_icelite(xr.Dataset({"v": virtual(tmp_path / "a", **plain)}), session.store)
        vds = xr.Dataset({"v": virtual(tmp_path / "a", **{**plain, **change})})
        error = refusal(InvalidInputError, session, vds, append_dim="time")
        assert error.kind == ErrorKind.INVALID_DATASET
        assert "variable 'v'" in str(error)
        assert text in str(error)

    def test_nan_as_fill_value_equals_itself(self, session: Session, tmp_path: Path) -> None:
        for append_dim in (None, "time"):
            vds = series(tmp_path / str(append_dim), 0, 2, fill_value=np.nan, attrs={"missing_value": np.nan})
            to_icelite(vds, session.store, append_dim=append_dim)
        assert stored(session).sizes["time"] == 4

    def test_another_length_of_another_dimension_is_refused(self, session: Session, tmp_path: Path) -> None:
        to_icelite(series(tmp_path / "a", 0, 2).drop_vars("time"), session.store)
        wider = xr.Dataset({"t": virtual(tmp_path / "a", ("time", "x"), np.zeros((2, 4), "f4"), (2, 3))})
        error = refusal(InvalidInputError, session, wider, append_dim="time")
        assert error.kind == ErrorKind.INVALID_DATASET
        assert "length 3 along 'x'" in str(error)

    def test_an_absent_group_is_refused(self, session: Session, tmp_path: Path) -> None:
        error = refusal(NodeNotFoundError, session, series(tmp_path / "a", 0, 2), append_dim="time", group="g")
        assert error.kind == ErrorKind.NODE_NOT_FOUND
        assert "'g'" in str(error)

    def test_a_new_variable_along_the_dimension_is_refused(self, session: Session, tmp_path: Path) -> None:
        to_icelite(series(tmp_path / "a", 0, 2), session.store)
        more = series(tmp_path / "b", 2, 4).assign(extra=("time", [1, 2]))
        error = refusal(NodeNotFoundError, session, more, append_dim="time")
        assert "extra" in str(error)

    def test_a_stored_variable_left_behind_is_refused(self, session: Session, tmp_path: Path) -> None:
        to_icelite(series(tmp_path / "a", 0, 2).assign(extra=("time", [1, 2])), session.store)
        error = refusal(InvalidInputError, session, series(tmp_path / "a", 2, 4), append_dim="time")
        assert error.kind == ErrorKind.INVALID_DATASET
        assert "extra" in str(error)

    def test_stored_lengths_that_differ_are_refused(self, session: Session, tmp_path: Path) -> None:
        to_icelite(series(tmp_path / "a", 0, 2), session.store)
        zarr.open_array(session.store, path="time", mode="r+").resize((5,))
        error = refusal(InvalidInputError, session, series(tmp_path / "a", 2, 4), append_dim="time")
        assert "[2, 5]" in str(error)

    def test_a_missing_chunk_is_deleted_where_another_was(self, session: Session, tmp_path: Path) -> None:
        """As after an array was made shorter by its metadata alone, which leaves chunks beyond its end."""
        to_icelite(series(tmp_path / "a", 0, 4, fill_value=-1), session.store)
        for name in ("t", "time"):
            metadata = zarr.open_array(session.store, path=name).metadata
            shorter = metadata.update_shape((2, *metadata.shape[1:]))
            (value,) = shorter.to_buffer_dict(zarr.core.buffer.default_buffer_prototype()).values()
            session.store.set_sync(f"{name}/zarr.json", value)
        assert session.store.get_sync("t/c/1/0") is not None
        to_icelite(series(tmp_path / "b", 2, 4, fill_value=-1, missing=((0, 0),)), session.store, append_dim="time")
        assert stored(session).t.values[2:].tolist() == [[-1] * 3] * 2

    @pytest.mark.parametrize(
        ("first", "second", "text"),
        [
            (["2020-01-01"], ["2020-01-02T12:00"], "2020-01-02T12:00:00"),
            (np.array([1], "i2"), np.array([70_000]), "70000 would be stored as 4464"),
            (np.array([1], "i2"), np.array([1.5]), "1.5 would be stored as 2"),
            (np.array([1.0]), np.array(["text"]), "'time'"),
        ],
    )
    def test_values_that_do_not_fit_are_refused(self, session: Session, first: Any, second: Any, text: str) -> None:
        def coordinate(values: Any) -> xr.Dataset:
            values = np.array(values, "M8[ns]") if isinstance(values, list) else values
            return xr.Dataset(coords={"time": values})

        to_icelite(coordinate(first), session.store)
        error = refusal(InvalidInputError, session, coordinate(second), append_dim="time")
        assert error.kind == ErrorKind.INVALID_DATASET
        assert "variable 'time' cannot be written into the stored array" in str(error)
        assert text in str(error)

    def test_packed_values_are_rounded_as_the_stored_ones(self, session: Session) -> None:
        packed = {"dtype": "i2", "scale_factor": 0.1, "add_offset": 20.0, "_FillValue": -99}
        first = xr.Variable("time", [20.0, np.nan], encoding=packed)
        to_icelite(xr.Dataset({"v": first}), session.store)
        to_icelite(xr.Dataset({"v": ("time", [21.04, np.nan])}), session.store, append_dim="time")
        np.testing.assert_allclose(stored(session).v.values, [20, np.nan, 21.0, np.nan])
        error = refusal(InvalidInputError, session, xr.Dataset({"v": ("time", [1e6])}), append_dim="time")
        assert "scale_factor 0.1" in str(error)

    def test_times_of_another_calendar_are_refused(self, session: Session) -> None:
        pytest.importorskip("cftime")

        def days(calendar: str, start: str) -> xr.Dataset:
            times = xr.date_range(start, periods=3, freq="D", calendar=calendar, use_cftime=True)
            return xr.Dataset(coords={"time": times})

        to_icelite(days("noleap", "2020-01-01"), session.store)
        to_icelite(days("noleap", "2020-01-04"), session.store, append_dim="time")
        assert stored(session).sizes["time"] == 6
        error = refusal(InvalidInputError, session, days("360_day", "2020-01-07"), append_dim="time")
        assert "'time'" in str(error)


class TestMode:
    def test_w_replaces_the_group_and_all_below(self, session: Session, tmp_path: Path) -> None:
        to_icelite(series(tmp_path / "a", 0, 4).assign_attrs(old=1), session.store, group="g")
        to_icelite(xr.Dataset({"gone": ("x", [1])}), session.store, group="g/below")
        to_icelite(xr.Dataset({"kept": ("x", [1])}), session.store, group="other")
        to_icelite(series(tmp_path / "b", 4, 6), session.store, group="g", mode="w")
        found = stored(session, "g")
        assert (found.t.values.ravel().tolist(), found.attrs) == (list(range(12, 18)), {})
        assert set(zarr.open_group(session.store, mode="r")) == {"g", "other"}
        assert set(zarr.open_group(session.store, path="g", mode="r")) == {"t", "time"}

    def test_w_of_a_tree_and_of_the_root(self, session: Session, tmp_path: Path) -> None:
        to_icelite(xr.Dataset({"gone": ("x", [1])}), session.store)
        tree = xr.DataTree.from_dict({"/": xr.Dataset(coords={"x": [1, 2, 3]}), "/run": series(tmp_path / "a", 0, 2)})
        for _ in range(2):
            to_icelite(tree, session.store, mode="w")
        assert sorted(p for p, _ in zarr.open_group(session.store, mode="r").members(max_depth=None)) == [
            "run",
            "run/t",
            "run/time",
            "x",
        ]

    def test_w_leaves_what_is_there_when_something_is_wrong(self, session: Session, tmp_path: Path) -> None:
        to_icelite(series(tmp_path / "a", 0, 4), session.store)
        bad = series(tmp_path / "b", 0, 2).assign_attrs(raw=b"no JSON")
        refusal(InvalidInputError, session, bad, mode="w")
        assert stored(session).t.values.ravel().tolist() == list(range(12))

    def test_w_below_an_array_is_refused(self, session: Session, tmp_path: Path) -> None:
        to_icelite(xr.Dataset({"v": ("x", [1, 2])}), session.store)
        refusal(AlreadyExistsError, session, series(tmp_path / "a", 0, 2), mode="w", group="v/below")

    def test_w_dash_needs_a_new_group(self, session: Session, tmp_path: Path) -> None:
        to_icelite(series(tmp_path / "a", 0, 2), session.store, group="g", mode="w-")
        error = refusal(AlreadyExistsError, session, xr.Dataset({"v": ("x", [1])}), group="g", mode="w-")
        assert "mode='w'" in str(error)
        zarr.open_group(session.store, path="empty", mode="a")
        refusal(AlreadyExistsError, session, xr.Dataset({"v": ("x", [1])}), group="empty", mode="w-")
        to_icelite(xr.Dataset({"v": ("x", [1])}), session.store, group="empty")

    def test_a_adds_arrays_and_writes_over_those_of_the_same_name(self, session: Session, tmp_path: Path) -> None:
        first = series(tmp_path / "a", 0, 4, fill_value=-1).assign(kept=("x", [1, 2, 3]), loaded=("time", range(4)))
        to_icelite(first.assign_attrs(title="one", kept=1), session.store)
        second = series(tmp_path / "b", 4, 8, fill_value=-1, missing=((1, 0),), attrs={"units": "m"})
        second = second.assign(new=("x", [7, 8, 9]), loaded=("time", [9, 8, 7, 6]))
        to_icelite(second.assign_attrs(title="two"), session.store, mode="a")
        found = stored(session)
        assert found.t.values.ravel().tolist() == [*range(12, 18), *[-1] * 6]
        assert (found.t.attrs, found.attrs) == ({"units": "m"}, {"title": "two", "kept": 1})
        assert (found.kept.values.tolist(), found.new.values.tolist()) == ([1, 2, 3], [7, 8, 9])
        assert (found.loaded.values.tolist(), found.time.values.tolist()) == ([9, 8, 7, 6], [4, 5, 6, 7])

    @pytest.mark.parametrize(
        ("values", "chunks", "text"),
        [
            (np.zeros((4, 3), "f8"), (2, 3), "data_type is float64, the stored array's is float32"),
            (np.zeros((4, 3), "f4"), (1, 3), "chunk_grid"),
            (np.zeros((2, 3), "f4"), (2, 3), "length 4 along 'time', the dataset has 2"),
        ],
    )
    def test_a_refuses_another_layout(
        self, session: Session, tmp_path: Path, values: Any, chunks: Any, text: str
    ) -> None:
        to_icelite(series(tmp_path / "a", 0, 4), session.store)
        vds = xr.Dataset({"t": virtual(tmp_path / "b", ("time", "x"), values, chunks)})
        error = refusal(InvalidInputError, session, vds, mode="a")
        assert error.kind == ErrorKind.INVALID_DATASET
        assert text in str(error)

    def test_a_variable_with_the_name_of_a_group_is_refused(self, session: Session, tmp_path: Path) -> None:
        to_icelite(series(tmp_path / "a", 0, 2), session.store)
        to_icelite(xr.Dataset({"v": ("x", [1, 2])}), session.store, group="new")
        more = series(tmp_path / "b", 2, 4).assign(new=("z", [1]))
        refusal(AlreadyExistsError, session, more, append_dim="time")

    @pytest.mark.parametrize(
        ("options", "text"),
        [
            ({"mode": "r+"}, "mode must be None or one of"),
            ({"mode": np.array(["w", "a"])}, "mode must be None or one of"),
            ({"append_dim": {}}, "append_dim must be the name of a dimension"),
            ({"append_dim": ["time"]}, "append_dim must be the name of a dimension"),
            ({"append_dim": ("time", [])}, "append_dim must be the name of a dimension"),
            ({"append_dim": 0}, "append_dim must be the name of a dimension"),
            ({"region": np.array(["auto", "auto"])}, "region must be 'auto' or a mapping"),
            ({"region": {"time": np.array([0, 1])}}, "must be a slice or 'auto'"),
            ({"mode": "w", "append_dim": "time"}, "drop one of them"),
            ({"mode": "w-", "region": "auto"}, "drop one of them"),
            ({"append_dim": "time", "region": "auto"}, "exclude each other"),
            ({"region": {"y": slice(0, 2)}}, "region 'y' is not a dimension"),
            ({"region": {"time": 3}}, "must be a slice or 'auto', not 3"),
            ({"region": {}}, "region must be"),
            ({"region": "all"}, "region must be"),
            ({"on_unreferenceable": "skip"}, "on_unreferenceable must be"),
        ],
    )
    def test_arguments(self, session: Session, tmp_path: Path, options: dict[str, Any], text: str) -> None:
        error = refusal(InvalidInputError, session, series(tmp_path / "a", 0, 2), **options)
        assert error.kind == ErrorKind.INVALID_ARGUMENT
        assert text in str(error)


class TestRegion:
    @pytest.fixture
    def written(self, session: Session, tmp_path: Path) -> Session:
        """Seven times in chunks of two, the last partly filled; with coordinates."""
        vds = series(tmp_path / "whole", 0, 7, fill_value=-1).assign_coords(x=[1, 2, 3])
        to_icelite(vds.assign(loaded=("time", np.arange(7.0))).assign_attrs(title="whole"), session.store)
        return session

    @staticmethod
    def part(file: Path, start: int, stop: int, **options: Any) -> xr.Dataset:
        """Other values for these times."""
        values = np.arange(start * 3, stop * 3, dtype="f4").reshape(-1, 3) + 100
        variable = virtual(file, ("time", "x"), values, (2, 3), **{"fill_value": -1, **options})
        return xr.Dataset({"t": variable}, {"time": np.arange(start, stop)}, {"title": "part"})

    @pytest.mark.parametrize(
        ("start", "stop", "region"),
        [
            (2, 4, {"time": slice(2, 4)}),
            (0, 4, {"time": slice(None, 4)}),
            (4, 7, {"time": slice(4, None)}),
            (4, 7, {"time": slice(-3, 7)}),
            (2, 6, "auto"),
            (2, 6, {"time": "auto"}),
            (4, 7, {"time": "auto", "x": slice(0, 3)}),
            (0, 7, {"time": slice(None)}),
        ],
    )
    def test_chunks_are_replaced_there_and_nowhere_else(
        self, written: Session, tmp_path: Path, start: int, stop: int, region: Any
    ) -> None:
        vds = self.part(tmp_path / "part", start, stop).assign(loaded=("time", np.full(stop - start, 50.0)))
        to_icelite(vds, written.store, region=region)
        t, loaded = np.arange(21, dtype="f4").reshape(7, 3), np.arange(7.0)
        t[start:stop] += 100
        loaded[start:stop] = 50
        expected = xr.Dataset(
            {"t": (("time", "x"), t), "loaded": ("time", loaded)},
            {"time": np.arange(7), "x": [1, 2, 3]},
            {"title": "whole"},
        )
        xr.testing.assert_identical(stored(written), expected)

    @pytest.mark.parametrize("looked_up", [0, 10_000], ids=["listed", "looked up"])
    @pytest.mark.parametrize("committed", [True, False])
    def test_a_missing_chunk_becomes_missing(
        self, repo: Repository, tmp_path: Path, committed: bool, looked_up: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(writing, "_LOOKED_UP", looked_up)
        session = repo.writable_session("main")
        to_icelite(series(tmp_path / "a", 0, 7, fill_value=-1), session.store)
        if committed:
            session.commit("whole")
            session = repo.writable_session("main")
        to_icelite(self.part(tmp_path / "b", 2, 6, missing=((1, 0),)), session.store, region="auto")
        expected = [*range(6), *range(106, 112), *[-1] * 6, 18, 19, 20]
        assert stored(session).t.values.ravel().tolist() == expected
        session.commit("part")
        assert stored(repo.readonly_session("main")).t.values.ravel().tolist() == expected

    @pytest.mark.skipif(not HAS_INLINED, reason="VirtualiZarr holds inlined chunks since 2.8")
    def test_inlined_chunks_go_there_too(self, written: Session, tmp_path: Path) -> None:
        summary = to_icelite(self.part(tmp_path / "b", 2, 6, inlined=((1, 0),)), written.store, region="auto")
        assert stored(written).t.values[2:6].ravel().tolist() == list(range(106, 118))
        assert (summary.references, summary.inlined) == (1, 1)

    @pytest.mark.parametrize(
        ("start", "stop", "region", "text"),
        [
            (2, 6, slice(2, 4), "[2, 4), 2 elements of the 7 stored; the data have 4"),
            (2, 4, slice(2, 6), "[2, 6), 4 elements of the 7 stored; the data have 2"),
            (6, 8, slice(6, 8), "[6, 8), 2 elements of the 7 stored"),
            (1, 3, slice(1, 3), "does not begin and end on the borders of its chunks of 2 elements"),
            (2, 5, slice(2, 5), "does not begin and end on the borders of its chunks of 2 elements"),
            (2, 4, slice(4, 6), "coordinate 'time' of group '' differs"),
            (2, 4, slice(2, 6, 2), "a slice without a step"),
            (8, 10, "auto", "cannot be found by the coordinate"),
        ],
    )
    def test_what_does_not_fit_is_refused(
        self, written: Session, tmp_path: Path, start: int, stop: int, region: Any, text: str
    ) -> None:
        error = refusal(InvalidInputError, written, self.part(tmp_path / "b", start, stop), region={"time": region})
        assert text in str(error)

    def test_another_dtype_is_refused(self, written: Session, tmp_path: Path) -> None:
        vds = xr.Dataset({"t": virtual(tmp_path / "b", ("time", "x"), np.zeros((2, 3)), (2, 3), fill_value=-1)})
        error = refusal(InvalidInputError, written, vds, region={"time": slice(0, 2)})
        assert "data_type is float64, the stored array's is float32" in str(error)

    def test_another_length_of_another_dimension_is_refused(self, written: Session, tmp_path: Path) -> None:
        vds = xr.Dataset({"t": virtual(tmp_path / "b", ("time", "x"), np.zeros((2, 2), "f4"), (2, 3), fill_value=-1)})
        error = refusal(InvalidInputError, written, vds, region={"time": slice(0, 2)})
        assert "length 3 along 'x'" in str(error)

    def test_a_coordinate_beside_the_region_must_be_the_stored_one(self, written: Session, tmp_path: Path) -> None:
        vds = self.part(tmp_path / "b", 2, 4)
        error = refusal(InvalidInputError, written, vds.assign_coords(x=[7, 8, 9]), region={"time": slice(2, 4)})
        assert "coordinate 'x'" in str(error)
        to_icelite(vds.assign_coords(x=[1, 2, 3]), written.store, region={"time": slice(2, 4)})

    def test_a_variable_outside_of_the_region_is_refused(self, written: Session, tmp_path: Path) -> None:
        to_icelite(xr.Dataset({"mask": ("x", [1, 1, 1])}), written.store, mode="a")
        vds = self.part(tmp_path / "b", 2, 4).assign(mask=("x", [1, 2, 3]))
        error = refusal(InvalidInputError, written, vds, region={"time": slice(2, 4)})
        assert "'mask'" in str(error)
        assert "vds.drop_vars" in str(error)

    def test_a_new_variable_is_refused(self, written: Session, tmp_path: Path) -> None:
        vds = self.part(tmp_path / "b", 2, 4).assign(new=("time", [1, 2]))
        error = refusal(NodeNotFoundError, written, vds, region={"time": slice(2, 4)})
        assert "new" in str(error)

    def test_auto_without_a_coordinate_needs_the_whole_dimension(self, written: Session, tmp_path: Path) -> None:
        bare = self.part(tmp_path / "b", 2, 4).drop_vars("time")
        error = refusal(InvalidInputError, written, bare, region="auto")
        assert "no loaded coordinate 'time'" in str(error)

    def test_values_that_do_not_fit_are_refused(self, session: Session) -> None:
        to_icelite(xr.Dataset({"v": ("x", np.arange(4, dtype="i2"))}), session.store)
        vds = xr.Dataset({"v": ("x", np.array([1, 70_000]))})
        error = refusal(InvalidInputError, session, vds, region={"x": slice(1, 3)})
        assert "70000 would be stored as 4464" in str(error)

    def test_a_tree_is_written_where_it_has_variables(self, session: Session, tmp_path: Path) -> None:
        def tree(dataset: xr.Dataset) -> xr.DataTree:
            return xr.DataTree.from_dict({"/": xr.Dataset(), "/run": dataset})

        to_icelite(tree(series(tmp_path / "a", 0, 4, fill_value=-1)), session.store)
        to_icelite(tree(self.part(tmp_path / "b", 2, 4)), session.store, region={"time": slice(2, 4)})
        assert stored(session, "run").t.values.ravel().tolist() == [*range(6), *range(106, 112)]

    @given(data=st.data())
    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_any_region_equals_an_assignment(self, tmp_path: Path, data: st.DataObject) -> None:
        length, chunk = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 4))
        start, stop = sorted(data.draw(st.lists(st.integers(0, length), min_size=2, max_size=2)))
        missing = data.draw(st.sets(st.integers(0, max(0, -(-(stop - start) // chunk) - 1))))
        session = Repository.create(tmp_path / f"{uuid.uuid4()}.icelite").writable_session("main")
        before, after = np.arange(length), np.arange(stop - start) + 100
        to_icelite(xr.Dataset({"v": virtual(tmp_path / "a", ("x",), before, (chunk,), fill_value=-1)}), session.store)
        holes = tuple((at,) for at in missing)
        part = xr.Dataset({"v": virtual(tmp_path / "b", ("x",), after, (chunk,), missing=holes, fill_value=-1)})
        expected = before.copy()
        expected[start:stop] = np.where(np.isin(np.arange(stop - start) // chunk, list(missing)), -1, after)
        if start % chunk or (stop % chunk and stop != length):
            refusal(InvalidInputError, session, part, region={"x": slice(start, stop)})
            expected = before
        else:
            to_icelite(part, session.store, region={"x": slice(start, stop)})
        assert stored(session).v.values.tolist() == expected.tolist()


class TestSummary:
    def test_it_counts_what_was_written(self, session: Session, tmp_path: Path) -> None:
        vds = series(tmp_path / "a", 0, 7, missing=((1, 0),)).assign_coords(x=[1, 2, 3])
        summary = vds.icelite.to_icelite(session.store, group="g")
        assert (summary.references, summary.inlined, summary.copied, summary.unchecked) == (3, 0, {}, {})
        assert sorted(summary.loaded) == ["g/time", "g/x"]

    def test_coordinates_that_a_tree_inherits_are_repeated_if_wanted(self, session: Session, tmp_path: Path) -> None:
        below = xr.Dataset({"v": virtual(tmp_path / "a", ("x",), np.arange(3))})
        tree = xr.DataTree.from_dict({"/": xr.Dataset(coords={"x": [1, 2, 3]}), "/a": below})
        to_icelite(tree, session.store, write_inherited_coords=True)
        assert stored(session, "a").x.values.tolist() == [1, 2, 3]


class TestParsedSources:
    def test_the_stamp_is_that_of_parsing(self, session: Session, tmp_path: Path) -> None:
        file = tmp_path / "a"
        vds = series(file, 0, 2)
        status = file.stat()
        vds.encoding["icelite_sources"] = {file.as_uri(): (status.st_size, status.st_mtime_ns, None)}
        to_icelite(vds, session.store)
        (location,) = session.changes.chunks.locations
        assert (location.size, location.modified_at) == (status.st_size, status.st_mtime_ns)

    @pytest.mark.parametrize("change", ["time", "size", "gone"])
    def test_a_file_that_changed_since_is_refused(self, session: Session, tmp_path: Path, change: str) -> None:
        file = tmp_path / "a"
        vds = series(file, 0, 2)
        status = file.stat()
        stamp = SourceStamp(size=status.st_size, modified_at=status.st_mtime_ns)
        vds.encoding["icelite_sources"] = {file.as_uri(): stamp}
        if change == "time":
            os.utime(file, ns=(0, status.st_mtime_ns + 1))
        elif change == "size":
            file.write_bytes(file.read_bytes() + b"more")
            os.utime(file, ns=(0, status.st_mtime_ns))
        else:
            file.unlink()
        error = refusal(StorageError, session, vds)
        assert error.kind == ErrorKind.VIRTUAL_CHUNK_MODIFIED
        assert file.as_uri() in str(error)

    def test_two_states_of_a_file_are_refused(self, session: Session, tmp_path: Path) -> None:
        url = (tmp_path / "a").as_uri()
        nodes = {name: series(tmp_path / "a", 0, 2) for name in "ab"}
        for mtime, node in enumerate(nodes.values()):
            node.encoding["icelite_sources"] = {url: (10, mtime, None)}
        assert "while its parts were parsed" in str(refusal(StorageError, session, xr.DataTree.from_dict(nodes)))

    def test_looks_of_which_one_saw_less_agree(self, session: Session, tmp_path: Path) -> None:
        url = (tmp_path / "a").as_uri()
        nodes = {name: series(tmp_path / "a", 0, 2) for name in "ab"}
        status = (tmp_path / "a").stat()
        for seen, node in zip((status.st_mtime_ns, None), nodes.values(), strict=True):
            node.encoding["icelite_sources"] = {url: (status.st_size, seen, None)}
        to_icelite(xr.DataTree.from_dict(nodes), session.store)
        assert {location.modified_at for location in session.changes.chunks.locations} == {status.st_mtime_ns}

    def test_what_one_look_saw_is_not_forgotten_for_another(self, session: Session, tmp_path: Path) -> None:
        url = (tmp_path / "a").as_uri()
        nodes = {name: series(tmp_path / "a", 0, 2) for name in "ab"}
        size = (tmp_path / "a").stat().st_size
        for seen, node in zip((1, None), nodes.values(), strict=True):
            node.encoding["icelite_sources"] = {url: (size, seen, None)}
        assert "since they were parsed" in str(refusal(StorageError, session, xr.DataTree.from_dict(nodes)))

    @pytest.mark.parametrize("noted", [5, {"a": 1}, {"a": (1, 2)}])
    def test_notes_of_another_form_are_refused(self, session: Session, noted: Any) -> None:
        vds = xr.Dataset({"v": ("x", [1])})
        vds.encoding["icelite_sources"] = noted
        assert refusal(InvalidInputError, session, vds).kind == ErrorKind.INVALID_DATASET


class TestFaultsAreListed:
    def test_every_location_that_cannot_be_referenced(self, session: Session, tmp_path: Path) -> None:
        array = virtual(tmp_path / "a", ("x",), np.arange(3), (1,)).data
        names = iter(["gopher://a/b", "s3://bucket/key", "file:///a/../b"])
        array = array.rename_paths(lambda _: next(names))
        error = refusal(InvalidInputError, session, xr.Dataset({"v": ("x", array)}))
        assert "variable 'v': 3 files cannot be referenced" in str(error)
        assert all(text in str(error) for text in ("gopher", "s3://bucket/key", "/../b"))

    def test_every_extent_that_cannot_be_one(self, session: Session, tmp_path: Path) -> None:
        array = virtual(tmp_path / "a", ("x",), np.arange(9), (1,)).data
        array.manifest._lengths[2] = 0
        array.manifest._offsets[4] = 2**64 - 1
        error = refusal(InvalidInputError, session, xr.Dataset({"v": ("x", array)}))
        assert "has 2 references that cannot be chunks" in str(error)
        assert "chunk (2,)" in str(error)
        assert "chunk (4,)" in str(error)


PACKINGS: dict[str, dict[str, Any]] = {
    "single": {"scale_factor": np.float32(0.01), "add_offset": np.float32(0)},
    "single_short": {"scale_factor": np.float32(0.5), "add_offset": np.float32(1)},
    "double": {"scale_factor": np.float64(0.01), "add_offset": np.float64(0)},
    "double_short": {"scale_factor": np.float64(0.5), "add_offset": np.float64(1)},
    "double_from_single": {"scale_factor": np.float64(np.float32(0.01)), "add_offset": np.float64(0)},
    "mixed": {"scale_factor": np.float32(0.01), "add_offset": np.float64(0.5)},
    "mixed_other": {"scale_factor": np.float64(0.25), "add_offset": np.float32(273.15)},
    "scale": {"scale_factor": np.float32(0.1)},
    "offset": {"add_offset": np.float32(-32)},
    "integer": {"scale_factor": np.int16(2)},
}
SINGLE = "scale_factor: float32 add_offset: float32"


def packed_file(path: Path, packings: dict[str, dict[str, Any]], file_format: str = "NETCDF4", **options: Any) -> Path:
    """A netCDF file with an array of int16 for each packing."""
    netcdf = pytest.importorskip("netCDF4")
    with netcdf.Dataset(path, "w", format=file_format) as file:
        place = file.createGroup(options["group"]) if "group" in options else file
        place.createDimension("x", 3)
        for name, packing in packings.items():
            variable = place.createVariable(name, options.get("dtype", "i2"), ("x",), fill_value=-9)
            variable.setncatts({"units": "K", **packing})
            variable.set_auto_maskandscale(False)
            variable[:] = [-9, 1, 123]
    return path


def untyped(packing: dict[str, Any]) -> dict[str, Any]:
    """As VirtualiZarr's parsers have it."""
    return {key: value.item() for key, value in packing.items()}


def attribute_dtypes(variable: xr.DataArray) -> dict[str, np.dtype[Any]]:
    found = {**variable.attrs, **variable.encoding}
    return {key: np.dtype(type(found[key])) for key in ("scale_factor", "add_offset") if key in found}


def recorded(session: Session, name: str) -> Any:
    """The recorded types, without the numbers that they are of."""
    hint = zarr.open_array(session.store, path=name, mode="r").attrs.get("icelite_packing_dtypes")
    return hint and " ".join(word for word in str(hint).split() if word[-1] == ":" or word[0].isalpha())


def parsed(file: Path, **options: Any) -> xr.Dataset:
    hdf = pytest.importorskip("virtualizarr.parsers").HDFParser
    registry = pytest.importorskip("obspec_utils.registry").ObjectStoreRegistry
    local = pytest.importorskip("obstore.store").LocalStore
    dataset: xr.Dataset = pytest.importorskip("virtualizarr").open_virtual_dataset(
        file.as_uri(), registry({"file:///": local()}), hdf(), **options
    )
    return dataset


class TestPacking:
    @pytest.mark.parametrize("dtype", ["i1", "i2", "i4", "f4"])
    @pytest.mark.parametrize("mask_and_scale", [True, False])
    def test_values_are_those_of_the_file(
        self, session: Session, tmp_path: Path, dtype: str, mask_and_scale: bool
    ) -> None:
        floats = {name: packing for name, packing in PACKINGS.items() if name != "integer"}
        file = packed_file(tmp_path / "a.nc", floats, dtype=dtype)
        to_icelite(parsed(file, loadable_variables=[]), session.store)
        found = xr.open_dataset(session, engine="icelite", mask_and_scale=mask_and_scale).load()
        with xr.open_dataset(file, mask_and_scale=mask_and_scale) as expected:
            xr.testing.assert_identical(found, expected.load())
            for name in floats:
                assert found[name].dtype == expected[name].dtype
                assert found[name].values.tobytes() == expected[name].values.tobytes()
                assert attribute_dtypes(found[name]) == attribute_dtypes(expected[name])

    @pytest.mark.parametrize("name", PACKINGS)
    def test_types_are_recorded_only_where_json_loses_them(self, session: Session, tmp_path: Path, name: str) -> None:
        packing, values = PACKINGS[name], np.array([1, 2], "i2")
        expected = {
            "single": SINGLE,
            "single_short": SINGLE,
            "mixed": "scale_factor: float32",
            "mixed_other": "add_offset: float32",
            "scale": "scale_factor: float32",
            "offset": "add_offset: float32",
            "integer": "scale_factor: int16",
        }.get(name)
        file = packed_file(tmp_path / "a.nc", {"read": packing})
        typed = virtual(tmp_path / "b", ("x",), values, attrs=packing)
        read = virtual(file, ("x",), values, attrs=untyped(packing))
        to_icelite(xr.Dataset({"typed": typed, "read": read}), session.store)
        assert recorded(session, "typed") == recorded(session, "read") == expected

    @pytest.mark.parametrize("file_format", ["NETCDF3_CLASSIC", "NETCDF3_64BIT_OFFSET", "NETCDF3_64BIT_DATA"])
    def test_of_netcdf3(self, session: Session, tmp_path: Path, file_format: str) -> None:
        packings = {name: PACKINGS[name] for name in ("single_short", "double_short", "integer")}
        file = packed_file(tmp_path / "a.nc", packings, file_format)
        vds = {name: virtual(file, ("x",), np.zeros(3, ">i2"), attrs=untyped(p)) for name, p in packings.items()}
        to_icelite(xr.Dataset(vds), session.store)
        assert [recorded(session, name) for name in packings] == [SINGLE, None, "scale_factor: int16"]

    def test_in_a_group_and_under_another_name(self, session: Session, tmp_path: Path) -> None:
        file = packed_file(tmp_path / "a.nc", {"sst": PACKINGS["single"], "other": PACKINGS["double"]}, group="g/h")
        renamed = virtual(file, ("x",), np.zeros(3, "i2"), attrs=untyped(PACKINGS["single"]))
        to_icelite(xr.Dataset({"temperature": renamed}), session.store)
        assert recorded(session, "temperature") == SINGLE

    def test_namesakes_that_differ_tell_nothing(self, session: Session, tmp_path: Path) -> None:
        file = packed_file(tmp_path / "a.nc", {"a": PACKINGS["single_short"], "b": PACKINGS["double_short"]})
        variables = {
            name: virtual(file, ("x",), np.zeros(3, "i2"), attrs=untyped(PACKINGS["single_short"]))
            for name in ("a", "b", "c")
        }
        to_icelite(xr.Dataset(variables), session.store)
        assert [recorded(session, name) for name in "abc"] == [SINGLE, None, None]

    def test_a_loadable_coordinate(self, session: Session, tmp_path: Path) -> None:
        """As the x and y of a weather satellite, which VirtualiZarr loads by default."""
        packing = {"scale_factor": np.float32(-2.8e-5), "add_offset": np.float32(0.151858)}
        file = packed_file(tmp_path / "a.nc", {"x": packing, "v": PACKINGS["single"]})
        mine = xr.Variable(
            "x", [1.5, 2.5, 3.5], encoding={"dtype": "i2", "_FillValue": -9, **untyped(PACKINGS["single"])}
        )
        to_icelite(parsed(file, loadable_variables=["x"]).assign(mine=mine), session.store)
        found = xr.open_dataset(session, engine="icelite").load()
        with xr.open_dataset(file) as expected:
            assert found.x.dtype == expected.x.dtype == np.float32
            xr.testing.assert_identical(found.drop_vars("mine"), expected.load())
        assert found.mine.dtype == np.float64

    def test_only_a_file_that_may_tell_is_read(
        self, session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        read: list[str] = []

        def inspect(access: Any, url: str, stamp: Any, *, chunks: bool) -> FileInspection:
            if not chunks:  # asked for types only
                read.append(url)
            return FileInspection()

        monkeypatch.setattr(sources, "inspect_source", inspect)
        some = [{}, {"scale_factor": 0.01, "add_offset": 0.0}, PACKINGS["scale"]]
        for n, attrs in enumerate(some):
            variable = virtual(tmp_path / str(n), ("x",), np.zeros(3, "i2"), attrs=attrs)
            to_icelite(xr.Dataset({"v": variable}), session.store, group=str(n))
        assert read == []
        attrs = untyped(PACKINGS["scale"])
        vds = {name: virtual(tmp_path / "a", ("x",), np.zeros(3, "i2"), attrs=attrs) for name in "ab"}
        to_icelite(xr.Dataset(vds), session.store)
        assert read == [(tmp_path / "a").as_uri()]

    def test_a_file_that_is_not_there_gives_a_warning(self, session: Session, tmp_path: Path) -> None:
        variable = virtual(tmp_path / "a", ("x",), np.zeros(3, "i2"), attrs=untyped(PACKINGS["scale"]))
        (tmp_path / "a").unlink()
        with pytest.warns(UserWarning, match=r"/a' may be decoded to float64 instead of float32: .* not there"):
            to_icelite(xr.Dataset({"v": variable}), session.store)
        assert recorded(session, "v") is None

    def test_a_file_that_cannot_be_read_is_noted(self, tmp_path: Path) -> None:
        file = packed_file(tmp_path / "a.nc", {"v": PACKINGS["scale"]})
        session = Repository.create(tmp_path / "catalog.icelite").writable_session("main")
        variable = virtual(file, ("x",), np.zeros(3, "i2"), attrs=untyped(PACKINGS["scale"]))
        before = SourceStamp(size=file.stat().st_size, modified_at=1)
        found = sources.StampedSources(session.access, True, None, stamps={file.as_uri(): before})
        assert found.find_packing_dtypes("v", variable, [file.as_uri()], renamed=True) is None
        assert "changed since it was referenced" in found.unread[file.as_uri()]

    @pytest.mark.parametrize("start", [b"\x89HDF\r\n\x1a\n", b"CDF", b"CDF\x01", b"CDF\x05\xff" + bytes(99), b"GRIB"])
    def test_a_file_that_is_not_whole_or_of_another_format_tells_nothing(
        self, session: Session, tmp_path: Path, start: bytes
    ) -> None:
        (tmp_path / "a").write_bytes(start)
        variable = virtual(tmp_path / "a", ("x",), np.zeros(3, "i2"), attrs=untyped(PACKINGS["scale"]))
        to_icelite(xr.Dataset({"v": variable}), session.store)
        assert recorded(session, "v") is None

    def test_append(self, session: Session, tmp_path: Path) -> None:
        def part(name: str, packing: str) -> xr.Dataset:
            file = packed_file(tmp_path / name, {"v": PACKINGS[packing]})
            attrs = untyped(PACKINGS[packing])
            return xr.Dataset({"v": virtual(file, ("time",), np.array([1, 2], "i2"), attrs=attrs)})

        to_icelite(part("a", "single_short"), session.store)
        to_icelite(part("b", "single_short"), session.store, append_dim="time")
        error = refusal(InvalidInputError, session, part("c", "double_short"), append_dim="time")
        assert error.kind == ErrorKind.INVALID_DATASET
        assert "icelite_packing_dtypes is None, the stored array's is scale_factor: float32 0.5 add_offset: " in str(
            error
        )
        unknown = xr.Dataset({"v": part("d", "single_short").v.variable})
        (tmp_path / "d").write_bytes(bytes((tmp_path / "d").stat().st_size))
        to_icelite(unknown, session.store, append_dim="time")
        found = xr.open_dataset(session, engine="icelite").v
        assert (found.dtype, found.sizes["time"]) == (np.float32, 6)


def test_the_module_is_an_attribute_of_the_package() -> None:
    assert icelite.virtualizarr.to_icelite is to_icelite
