"""Chunks of real HDF5 files that a reference would misread: found whatever parsed the file, copied or refused."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import icelite
from icelite.errors import ErrorKind, InvalidInputError, StorageError
from icelite.formats import inspection
from icelite.repository import Repository
from icelite.session import Session
from icelite.virtualizarr import copies, sources, to_icelite

h5py = pytest.importorskip("h5py")
virtualizarr = pytest.importorskip("virtualizarr")

COMBINE: dict[str, Any] = {
    "data_vars": "minimal",
    "coords": "minimal",
    "compat": "override",
    "combine_attrs": "override",
}


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return Repository.create(tmp_path / "catalog.icelite").writable_session("main")


def parsed(file: Path, **options: Any) -> xr.Dataset:
    """As VirtualiZarr has a file, which knows nothing of icelite."""
    from obspec_utils.registry import ObjectStoreRegistry
    from obstore.store import LocalStore
    from virtualizarr.parsers import HDFParser

    registry = ObjectStoreRegistry({"file:///": LocalStore()})
    parser = HDFParser(group=options.pop("group", None))
    options = {"loadable_variables": [], **options}
    dataset: xr.Dataset = virtualizarr.open_virtual_dataset(file.as_uri(), registry, parser, **options)
    return dataset.drop_vars(["time", "x", "y"], errors="ignore")  # scales without values


def stored(session: Session, group: str | None = None) -> xr.Dataset:
    return xr.open_zarr(session.store, group=group, consolidated=False, zarr_format=3, chunks=None).load()


def create(file: Any, name: str, values: np.ndarray, dims: tuple[str, ...], **options: Any) -> Any:
    """A dataset with dimension scales, as netCDF has them."""
    node = file.create_dataset(name, shape=values.shape, dtype=values.dtype, **options)
    if "external" not in options:
        node[...] = values
    for axis, (dim, size) in enumerate(zip(dims, values.shape, strict=True)):
        if dim not in file:
            file.create_dataset(dim, data=np.zeros(size, ">f4"))
            file[dim].make_scale(dim)
        node.dims[axis].attach_scale(file[dim])
    return node


def mask_chunk(node: Any, start: tuple[int, ...], mask: int) -> None:
    """Store a chunk again, without the filters of ``mask``: as HDF5 does where they save nothing."""
    window = tuple(slice(at, at + size) for at, size in zip(start, node.chunks, strict=True))
    values = np.zeros(node.chunks, node.dtype)
    part = node[window]
    values[tuple(map(slice, part.shape))] = part
    assert mask == (1 << node.id.get_create_plist().get_nfilters()) - 1  # or else some would have to be applied
    node.id.write_direct_chunk(start, values.tobytes(), filter_mask=mask)


def masked_file(path: Path, shift: int = 0) -> np.ndarray:
    """A file with two masked chunks, one of them at the edge; its values."""
    values = np.arange(70, dtype=">i4").reshape(7, 10) + shift
    with h5py.File(path, "w") as file:
        node = create(file, "v", values, ("time", "x"), chunks=(2, 4), compression="gzip", shuffle=True)
        for start in ((2, 4), (6, 8)):
            mask_chunk(node, start, 3)
        create(file, "plain", values, ("time", "x"), chunks=(7, 10))
    return values


def external_file(path: Path, shift: int = 0, beside: str = "{}.bin") -> np.ndarray:
    """A file with one dataset whose values are in another file; these values."""
    values = np.arange(6, dtype="<f4").reshape(2, 3) + shift
    raw = beside.format(path.stem)
    (path.parent / raw).write_bytes(values.tobytes())
    with h5py.File(path, "w") as file:
        create(file, "e", values, ("time", "x"), external=[(raw, 0, values.nbytes)])
        create(file, "v", values, ("time", "x"), chunks=(2, 3))
    return values


def refusal(session: Session, vds: Any, error: type[Exception] = InvalidInputError, **options: Any) -> Any:
    before = session.status()
    with pytest.raises(error) as caught:
        to_icelite(vds, session.store, **options)
    assert session.status() == before
    return caught.value


class TestMaskedChunks:
    def test_values_are_those_of_the_file(self, session: Session, tmp_path: Path) -> None:
        values = masked_file(tmp_path / "a.h5")
        summary = to_icelite(parsed(tmp_path / "a.h5"), session.store)
        found = stored(session)
        np.testing.assert_array_equal(found.v, values)
        np.testing.assert_array_equal(found.plain, values)
        assert summary.copied == {"v": 2}
        assert summary.references == 12 - 2 + 1

    def test_the_same_without_copies_would_be_garbage(
        self, session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What these tests are about is there."""
        values = masked_file(tmp_path / "a.h5")
        monkeypatch.setattr(copies.Copier, "run", lambda self: None)
        to_icelite(parsed(tmp_path / "a.h5"), session.store)
        with pytest.raises(Exception, match=r".*"):  # whatever the codec makes of it
            np.testing.assert_array_equal(stored(session).v, values)

    def test_the_copies_are_read_without_the_file(self, session: Session, tmp_path: Path) -> None:
        import zarr

        values = masked_file(tmp_path / "a.h5")
        to_icelite(parsed(tmp_path / "a.h5"), session.store)
        (tmp_path / "a.h5").unlink()
        array = zarr.open_array(session.store, path="v", mode="r")
        np.testing.assert_array_equal(array[2:4, 4:8], values[2:4, 4:8])
        np.testing.assert_array_equal(array[6:, 8:], values[6:, 8:])

    def test_raise_lists_them(self, session: Session, tmp_path: Path) -> None:
        masked_file(tmp_path / "a.h5")
        error = refusal(session, parsed(tmp_path / "a.h5"), on_unreferenceable="raise")
        assert error.kind == ErrorKind.INVALID_VIRTUAL_REF
        assert "2 chunks cannot be referenced (on_unreferenceable='raise')" in str(error)
        for text in ("variable 'v', chunk (1, 1)", "chunk (3, 2)", "a.h5", "without its filters shuffle, deflate"):
            assert text in str(error)

    def test_of_renamed_variables_in_combined_files(self, session: Session, tmp_path: Path) -> None:
        values = [masked_file(tmp_path / f"{n}.h5", 100 * n)[:6] for n in range(3)]
        parts = [parsed(tmp_path / f"{n}.h5") for n in range(3)]
        stacked = xr.concat([part.rename(v="w") for part in parts], dim="run", coords="minimal", compat="override")
        summary = to_icelite(stacked, session.store, group="g")
        assert summary.copied == {"g/w": 6}
        for n, expected in enumerate(values):
            np.testing.assert_array_equal(stored(session, "g").w[n, :6], expected)

    def test_are_appended_and_put_into_regions(self, session: Session, tmp_path: Path) -> None:
        expected = []
        for n in range(2):
            values = np.arange(40, dtype="i4").reshape(4, 10) + 100 * n
            with h5py.File(tmp_path / f"{n}.h5", "w") as file:
                node = create(file, "v", values, ("time", "x"), chunks=(2, 5), compression="gzip")
                mask_chunk(node, (2, 5), 1)
            to_icelite(parsed(tmp_path / f"{n}.h5"), session.store, append_dim="time" if n else None)
            expected.append(values)
        np.testing.assert_array_equal(stored(session).v, np.concatenate(expected))
        to_icelite(parsed(tmp_path / "0.h5"), session.store, region={"time": slice(4, 8)})
        np.testing.assert_array_equal(stored(session).v, np.concatenate(expected[:1] * 2))

    def test_of_a_group_and_behind_a_user_block(self, session: Session, tmp_path: Path) -> None:
        values = np.arange(20, dtype="f8")
        with h5py.File(tmp_path / "a.h5", "w", userblock_size=1024) as file:
            node = create(file.create_group("g"), "v", values, ("x",), chunks=(10,), compression="gzip")
            mask_chunk(node, (10,), 1)
        with (tmp_path / "a.h5").open("r+b") as stream:
            stream.write(b"A user block")
        summary = to_icelite(parsed(tmp_path / "a.h5", group="g"), session.store)
        assert summary.copied == {"v": 1}
        np.testing.assert_array_equal(stored(session).v, values)

    def test_values_equal_to_the_fill_value_are_stored(self, session: Session, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "a.h5", "w") as file:
            node = create(file, "v", np.zeros(4, "i4"), ("x",), chunks=(4,), compression="gzip")
            mask_chunk(node, (0,), 1)
        assert to_icelite(parsed(tmp_path / "a.h5"), session.store).copied == {"v": 1}
        assert stored(session).v.values.tolist() == [0] * 4

    def test_many_go_through_a_file(self, session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(copies, "_IN_MEMORY", 100)
        values = masked_file(tmp_path / "a.h5")
        to_icelite(parsed(tmp_path / "a.h5"), session.store)
        np.testing.assert_array_equal(stored(session).v, values)

    def test_one_that_cannot_be_read_is_named(
        self, session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        masked_file(tmp_path / "a.h5")

        def fail(*_: Any) -> None:
            raise OSError("required filter 'blosc' is not registered")

        monkeypatch.setattr(copies, "read_gap", fail)
        error = refusal(session, parsed(tmp_path / "a.h5"))
        assert error.kind == ErrorKind.INVALID_VIRTUAL_REF
        assert "variable 'v', chunk (1, 1): 'v' in" in str(error)
        assert "required filter 'blosc' is not registered" in str(error)

    def test_a_file_that_changes_meanwhile_is_refused(
        self, session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        masked_file(tmp_path / "a.h5")
        vds = parsed(tmp_path / "a.h5")

        def read(file: Any, piece: Any) -> Any:
            os.utime(tmp_path / "a.h5", ns=(0, 1))
            return inspection.read_gap(file, piece)

        monkeypatch.setattr(copies, "read_gap", read)
        error = refusal(session, vds, StorageError)
        assert error.kind == ErrorKind.VIRTUAL_CHUNK_MODIFIED
        assert "while they were read" in str(error)

    def test_each_file_is_inspected_once(
        self, session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        opened: list[str] = []
        actual: Callable[..., Any] = sources.inspect_source

        def inspect(access: Any, url: str, stamp: Any, *, chunks: bool) -> Any:
            opened.append(url)
            return actual(access, url, stamp, chunks=chunks)

        monkeypatch.setattr(sources, "inspect_source", inspect)
        for n in range(2):
            masked_file(tmp_path / f"{n}.h5")
        vds = xr.concat(
            [parsed(tmp_path / f"{n}.h5") for n in range(2)], dim="run", coords="minimal", compat="override"
        )
        to_icelite(vds, session.store)
        assert sorted(opened) == [(tmp_path / f"{n}.h5").as_uri() for n in range(2)]

    def test_a_file_that_is_not_whole_is_told(self, session: Session, tmp_path: Path) -> None:
        masked_file(tmp_path / "a.h5")
        vds = parsed(tmp_path / "a.h5")
        os.truncate(tmp_path / "a.h5", 2000)
        assert "truncated" in to_icelite(vds, session.store).unchecked[(tmp_path / "a.h5").as_uri()]

    def test_only_a_long_chunk_makes_a_remote_file_suspect(self, session: Session, tmp_path: Path) -> None:
        masked_file(tmp_path / "a.h5")
        with h5py.File(tmp_path / "b.h5", "w") as file:
            create(file, "v", np.zeros((8, 8)), ("y", "x"), chunks=(4, 8), compression="gzip")
            create(file, "plain", np.zeros((8, 8)), ("y", "x"), chunks=(4, 8))
        suspects = {}
        for name in "ab":
            group = planned(session, parsed(tmp_path / f"{name}.h5"))
            suspects[name] = {one.path: bool(copies._Candidate(one, group).suspects) for one in group.virtual()}
        assert suspects == {"a": {"v": True, "plain": False}, "b": {"v": False, "plain": False}}


def planned(session: Session, vds: xr.Dataset) -> Any:
    from icelite.virtualizarr.preparation import prepare_group
    from icelite.virtualizarr.sources import StampedSources
    from icelite.virtualizarr.target import Request

    return prepare_group(session.store, "", vds, Request(), StampedSources(session.access, True, None))


class TestDatasetsInOtherFiles:
    def test_external_storage(self, session: Session, tmp_path: Path) -> None:
        values = external_file(tmp_path / "a.h5")
        vds = parsed(tmp_path / "a.h5")
        assert not vds.e.data.manifest.dict()  # as if nothing were there
        summary = to_icelite(vds, session.store)
        np.testing.assert_array_equal(stored(session).e, values)
        assert summary.copied == {"e": 1}

    def test_external_storage_of_combined_files(self, session: Session, tmp_path: Path) -> None:
        values = [external_file(tmp_path / f"{n}.h5", 10 * n) for n in range(4)]
        parts = [parsed(tmp_path / f"{n}.h5") for n in (2, 0, 3, 1)]
        summary = to_icelite(xr.concat(parts, dim="time", **COMBINE), session.store)
        np.testing.assert_array_equal(stored(session).e, np.concatenate([values[n] for n in (2, 0, 3, 1)]))
        assert summary.copied == {"e": 4}

    def test_a_view_of_other_files(self, session: Session, tmp_path: Path) -> None:
        values = np.arange(4, dtype="f4")
        with h5py.File(tmp_path / "part.h5", "w") as file:
            file["x"] = values
        with h5py.File(tmp_path / "a.h5", "w") as file:
            layout = h5py.VirtualLayout((4,), "f4")
            layout[:] = h5py.VirtualSource("part.h5", "x", (4,))
            file.create_virtual_dataset("view", layout)
            create(file, "v", np.arange(4), ("x",))
        summary = to_icelite(parsed(tmp_path / "a.h5"), session.store)
        assert stored(session)["view"].values.tolist() == values.tolist()
        assert summary.copied == {"view": 1}
        (tmp_path / "part.h5").unlink()
        error = refusal(session, parsed(tmp_path / "a.h5"), group="again")
        assert "'part.h5' is not there" in str(error)

    def test_raise_names_them(self, session: Session, tmp_path: Path) -> None:
        external_file(tmp_path / "a.h5")
        error = refusal(session, parsed(tmp_path / "a.h5"), on_unreferenceable="raise")
        assert "variable 'e', chunk (0, 0): 'e' in" in str(error)
        assert "is stored in other files" in str(error)

    def test_data_outside_the_directory_are_not_read(self, session: Session, tmp_path: Path) -> None:
        (tmp_path / "in").mkdir()
        external_file(tmp_path / "in" / "a.h5", beside="../{}.bin")
        error = refusal(session, parsed(tmp_path / "in" / "a.h5"))
        assert error.kind == ErrorKind.INVALID_VIRTUAL_REF
        assert "'../a.bin' is not under" in str(error)

    def test_a_link_out_of_the_directory_is_not_followed(self, session: Session, tmp_path: Path) -> None:
        (tmp_path / "in").mkdir()
        external_file(tmp_path / "in" / "a.h5")
        (tmp_path / "in" / "a.bin").rename(tmp_path / "secret")
        (tmp_path / "in" / "a.bin").symlink_to(tmp_path / "secret")
        assert "is not under" in str(refusal(session, parsed(tmp_path / "in" / "a.h5")))

    def test_a_renamed_one_is_refused(self, session: Session, tmp_path: Path) -> None:
        external_file(tmp_path / "a.h5")
        error = refusal(session, parsed(tmp_path / "a.h5").rename(e="renamed"))
        assert "variable 'renamed': the dataset 'e'" in str(error)
        assert "it is not certain which chunks it is" in str(error)

    def test_one_that_was_dropped_does_not_matter(self, session: Session, tmp_path: Path) -> None:
        external_file(tmp_path / "a.h5")
        with h5py.File(tmp_path / "a.h5", "r+") as file:
            create(file, "empty", np.zeros((2, 3), "<f4"), ("time", "x"), chunks=(1, 3))
            del file["empty"]
            file.create_dataset("empty", (2, 3), "<f4", fillvalue=5)
        summary = to_icelite(parsed(tmp_path / "a.h5").drop_vars("e"), session.store)
        assert summary.copied == {}
        assert (stored(session)["empty"] == 5).all()

    def test_chunks_that_were_never_written_stay_missing(self, session: Session, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "a.h5", "w") as file:
            create(file, "v", np.arange(4), ("x",))
            node = file.create_dataset("sparse", (4,), "i4", chunks=(2,), fillvalue=-7)
            node[2:] = 1
            node.dims[0].attach_scale(file["x"])
        summary = to_icelite(parsed(tmp_path / "a.h5"), session.store)
        assert (summary.copied, stored(session).sparse.values.tolist()) == ({}, [-7, -7, 1, 1])

    def test_namesakes_in_groups_are_told_apart(self, session: Session, tmp_path: Path) -> None:
        values = external_file(tmp_path / "a.h5")
        with h5py.File(tmp_path / "a.h5", "r+") as file:
            group = file.create_group("g")
            group.create_dataset("e", (2, 3), "<f4", fillvalue=5)
            group.create_dataset("w", data=values)
        tree = xr.DataTree.from_dict({"/": parsed(tmp_path / "a.h5"), "/g": parsed(tmp_path / "a.h5", group="g")})
        assert to_icelite(tree, session.store).copied == {"e": 1}
        np.testing.assert_array_equal(stored(session).e, values)
        assert (stored(session, "g").e == 5).all()


@pytest.mark.parametrize(
    ("target", "chunk", "shape", "expected"),
    [
        ((4, 3), (4, 3), (2, 3), (2, 3)),
        ((1, 4, 3), (4, 3), (2, 3), (1, 2, 3)),
        ((4, 1, 3), (4, 3), (4, 2), (4, 1, 2)),
        ((4, 3), (1, 4, 3), (1, 2, 3), (2, 3)),
        ((1, 4), (1, 4), (1, 2), (1, 2)),
        ((), (), (), ()),
        ((1,), (), (), (1,)),
        ((4, 3), (3, 4), (3, 4), None),
        ((4,), (4, 2), (4, 2), None),
    ],
)
def test_align(target: Any, chunk: Any, shape: Any, expected: Any) -> None:
    assert copies._align(target, chunk, shape) == expected


class TestRemoteFiles:
    @pytest.fixture
    def bucket(self) -> Iterator[Any]:
        """Options of a service on the loopback interface, and a function that puts a file there."""
        boto3 = pytest.importorskip("boto3")
        server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        url = "http://{}:{}".format(*server.get_host_and_port())
        client = boto3.client(
            "s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b"
        )
        client.create_bucket(Bucket="bucket")

        def put(file: Path) -> str:
            client.put_object(Bucket="bucket", Key=file.name, Body=file.read_bytes())
            return f"s3://bucket/{file.name}"

        yield {"endpoint_url": url, "region": "us-east-1", "allow_http": True}, put
        server.stop()

    @staticmethod
    def remote(tmp_path: Path, place: dict[str, Any], *, allowed: bool) -> Session:
        prefix = "s3://bucket/"
        container = icelite.VirtualChunkContainer(prefix, icelite.s3_store(**place))
        config = icelite.RepositoryConfig(virtual_chunk_containers={prefix: container})
        keys = icelite.s3_credentials(access_key_id="a", secret_access_key="b")
        access = {prefix: keys} if allowed else None
        catalog = tmp_path / f"remote-{allowed}.icelite"
        return Repository.create(catalog, config, authorize_virtual_chunk_access=access).writable_session("main")

    def test_masked_chunks_are_copied_if_the_file_may_be_read(self, tmp_path: Path, bucket: Any) -> None:
        place, put = bucket
        values = masked_file(tmp_path / "a.h5")
        url = put(tmp_path / "a.h5")
        vds = parsed(tmp_path / "a.h5").vz.rename_paths(url)
        session = self.remote(tmp_path, place, allowed=True)
        assert to_icelite(vds, session.store).copied == {"v": 2}
        np.testing.assert_array_equal(stored(session).v, values)
        summary = to_icelite(vds, self.remote(tmp_path, place, allowed=False).store)
        assert summary.copied == {}
        assert "may not be read" in summary.unchecked[url]

    def test_data_in_other_files_are_refused(self, tmp_path: Path, bucket: Any) -> None:
        place, put = bucket
        external_file(tmp_path / "a.h5")
        url = put(tmp_path / "a.h5")
        vds = parsed(tmp_path / "a.h5").vz.rename_paths(lambda path: path and url)  # not of a missing chunk
        error = refusal(self.remote(tmp_path, place, allowed=True), vds)
        assert "the file is read as a stream and names 'a.bin'" in str(error)
