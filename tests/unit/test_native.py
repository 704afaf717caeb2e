"""`make_native`: the copy equals what the files hold to the last bit, whatever the chunks, and needs them no more."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import oisst
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import icelite
from icelite import native
from icelite.errors import ConflictError, ErrorKind, InvalidInputError, NodeNotFoundError, StorageError

DAYS = 7


@pytest.fixture
def repo(tmp_path: Path) -> icelite.Repository:
    """A virtual dataset of seven days."""
    pytest.importorskip("virtualizarr")
    oisst.write_days(tmp_path / "oisst", date(2024, 8, 30), DAYS, (18, 36))
    icelite.virtualize(str(tmp_path / "oisst/*.nc"), tmp_path / "a.icelite", concat_dim="time")
    return icelite.Repository.open(tmp_path / "a.icelite")


def raw(repo: icelite.Repository, path: str, **which: str) -> Any:
    return zarr.open_array(repo.readonly_session(**(which or {"branch": "main"})).store, path=path, mode="r")


def same_bits(found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> bool:
    return (found.dtype, found.shape, found.tobytes()) == (expected.dtype, expected.shape, expected.tobytes())


@pytest.mark.parametrize("options", [None, {"scheduler": "threads"}, {"scheduler": "processes", "num_workers": 2}])
def test_a_time_series_instead_of_maps(repo: icelite.Repository, tmp_path: Path, options: Any) -> None:
    if options is not None:
        pytest.importorskip("dask.array")
    with xr.open_dataset(tmp_path / "a.icelite") as opened:
        expected = opened.load()
    before = raw(repo, "sst")
    values, attributes = before[...], before.attrs.asdict()
    done = icelite.make_native(
        repo, ["sst", "ice"], chunks={"time": -1, "lat": 5}, message="native", dask_options=options
    )
    after = raw(repo, "sst")
    assert same_bits(after[...], values)
    assert (after.chunks, after.attrs.asdict()) == ((DAYS, 1, 5, 36), attributes)
    assert (after.metadata.dimension_names, after.metadata.fill_value) == (("time", "zlev", "lat", "lon"), -999)
    assert after.metadata.codecs == before.metadata.codecs
    assert done.chunks == {"sst": after.chunks, "ice": after.chunks}
    assert done.bytes == 2 * values.nbytes
    assert repo.lookup_snapshot(done.snapshot_id).message == "native"
    session = repo.readonly_session("main")
    assert session.chunk_type("/sst", [0, 0, 0, 0]) == icelite.ChunkType.inline
    assert session.chunk_type("/anom", [0, 0, 0, 0]) == icelite.ChunkType.virtual
    for path in (tmp_path / "oisst").iterdir():
        path.unlink()
    with xr.open_dataset(tmp_path / "a.icelite") as found:
        assert found.sizes == expected.sizes
        xr.testing.assert_identical(found[["sst", "ice"]].load(), expected[["sst", "ice"]])
        with pytest.raises(StorageError):
            found["anom"].load()
    assert repo.verify() == []


def test_into_objects(tmp_path: Path, repo: icelite.Repository) -> None:
    repo.bundle(tmp_path / "copy.icelite")
    other = icelite.Repository.create(
        tmp_path / "b.icelite", icelite.RepositoryConfig(inline_chunk_threshold_bytes=0), objects="chunks"
    )
    session = other.writable_session("main")
    zarr.create_array(session.store, name="x", shape=(40,), chunks=(4,), dtype="i4")[:] = np.arange(40)
    session.commit("x")
    icelite.make_native(other, "x", chunks={})
    with pytest.raises(InvalidInputError, match="no variable has the dimension"):
        icelite.make_native(other, "x", chunks={"time": 3})
    assert other.readonly_session("main").chunk_type("/x", [0]) == icelite.ChunkType.native


ODD = np.array([0x7FF8000000000001, 0x8000000000000000, 0x0, 0x7FF8000000000000], np.uint64).view("f8")


@pytest.mark.parametrize("dask_options", [None, {"scheduler": "synchronous"}])
@pytest.mark.parametrize("fill", [np.nan, 0.0])
def test_bits_that_equal_the_fill_value_but_are_others(fill: float, dask_options: Any) -> None:
    """A NaN with a payload, and a zero with a sign, which zarr may take for a chunk of fill values."""
    if dask_options is not None:
        pytest.importorskip("dask.array")
    repo = icelite.Repository.create(icelite.in_memory_storage())
    session = repo.writable_session("main")
    kept = {"write_empty_chunks": True}
    array = zarr.create_array(session.store, name="x", shape=4, chunks=1, dtype="f8", fill_value=fill, config=kept)
    array[:] = ODD
    assert same_bits(array[:], ODD)
    session.commit("odd")
    icelite.make_native(repo, "x", dask_options=dask_options)
    assert same_bits(raw(repo, "x")[:], ODD)


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_any_chunks_into_any_others(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(0, 9), max_size=3), label="shape"))
    old, new = (
        tuple(data.draw(st.lists(st.integers(1, 10), min_size=len(shape), max_size=len(shape)), label=label))
        for label in ("old chunks", "new chunks")
    )
    repo = icelite.Repository.create(icelite.in_memory_storage())
    session = repo.writable_session("main")
    names = [f"d{axis}" for axis in range(len(shape))]
    array = zarr.create_array(
        session.store, name="g/x", shape=shape, chunks=old, dtype="i4", dimension_names=names, fill_value=3
    )
    values = np.random.default_rng(0).integers(0, 5, shape).astype("i4")
    array[...] = values
    session.commit("x")
    told: list[tuple[int, int]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "BLOCK_BYTES", data.draw(st.sampled_from([1, 64, 10_000]), label="budget"))
        icelite.make_native(
            repo,
            "x",
            group="g",
            chunks=dict(zip(names, new, strict=True)),
            progress=lambda *steps: told.append(steps),
        )
    after = raw(repo, "g/x")
    assert after.chunks == new
    assert same_bits(np.asarray(after[...]), values)
    assert not told or told[-1][0] == told[-1][1] == len(told)


def test_blocks_grow_where_that_spares_reading(tmp_path: Path) -> None:
    """Maps into time series: whole maps are read once as long as the budget allows."""
    old = zarr.create_array({}, shape=(365, 720, 1440), chunks=(1, 720, 1440), dtype="f4")
    new = zarr.create_array({}, shape=(365, 720, 1440), chunks=(365, 10, 10), dtype="f4")
    block = native._block_shape(old, new)
    assert np.prod(block) * 4 <= native.BLOCK_BYTES
    assert block[0] == 365
    assert native._reads(block[1], 720, 720) * native._reads(block[2], 1440, 1440) < 13
    assert native._block_shape(new, old)[1:] == (720, 1440)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_text_and_both_formats(zarr_format: Any) -> None:
    repo = icelite.Repository.create(icelite.in_memory_storage())
    session = repo.writable_session("main")
    options: dict[str, Any] = {"zarr_format": zarr_format, "chunks": 2}
    zarr.create_group(session.store, zarr_format=zarr_format, attributes={"title": "mine"})
    texts = np.array(["a", "longer", "", "x", "y"], dtype=object)
    names = zarr.create_array(session.store, name="names", shape=5, dtype="str", **options)
    names[:] = texts
    numbers = zarr.create_array(
        session.store, name="n", shape=5, dtype=">i2", attributes={"_ARRAY_DIMENSIONS": ["t"]}, **options
    )
    numbers[:] = [1, 2, 3, -4, 5]
    session.commit("both")
    icelite.make_native(repo, ["names", "n"], chunks={"t": 4} if zarr_format == 2 else None)
    assert raw(repo, "names")[:].tolist() == texts.tolist()
    assert raw(repo, "n")[:].tolist() == [1, 2, 3, -4, 5]
    assert raw(repo, "n").chunks == ((4,) if zarr_format == 2 else (2,))
    assert raw(repo, "n").metadata.zarr_format == zarr_format


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"variables": []}, "no variable was named"),
        ({"chunks": {"tiem": 3}}, "'tiem'"),
        ({"chunks": {"time": 0}}, "{'time': 0} is no length"),
        ({"chunks": {"time": 2.5}}, "2.5"),
    ],
)
def test_bad_input(repo: icelite.Repository, arguments: dict[str, Any], words: str) -> None:
    tip = repo.lookup_branch("main")
    with pytest.raises(InvalidInputError, match=words) as error:
        icelite.make_native(repo, **{"variables": "sst", **arguments})
    assert error.value.kind == ErrorKind.INVALID_ARGUMENT
    assert repo.lookup_branch("main") == tip


def test_what_is_not_there_or_cannot_be_read(repo: icelite.Repository, tmp_path: Path) -> None:
    tip = repo.lookup_branch("main")
    with pytest.raises(NodeNotFoundError, match="nope"):
        icelite.make_native(repo, "nope")
    next((tmp_path / "oisst").iterdir()).unlink()
    with pytest.raises(StorageError):
        icelite.make_native(repo, "sst")
    assert repo.lookup_branch("main") == tip


def test_somebody_else_commits_meanwhile(repo: icelite.Repository) -> None:
    def commit(done: int, total: int) -> None:
        session = repo.writable_session("main")
        zarr.open_group(session.store).attrs["seen"] = done
        session.commit("meanwhile")

    with pytest.raises(ConflictError):
        icelite.make_native(repo, "sst", progress=commit)
    assert raw(repo, "sst").chunks == (1, 1, 18, 36)
