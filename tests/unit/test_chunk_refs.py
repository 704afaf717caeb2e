"""session.chunk_refs: the references of an array in columns, the same as one by one, uncommitted ones included."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import icelite
from icelite.catalog import chunks as chunk_table
from icelite.catalog.chunks import as_grid
from icelite.errors import FormatError, IceliteError
from icelite.types import ChunkType
from icelite.types.reports import SHOWN

Row = tuple[tuple[int, ...], str, str, int, int]


def listed(session: Any, path: str) -> list[Row]:
    """Position, kind, URL, offset and length of every chunk, from the columns."""
    refs = session.chunk_refs(path)
    frame = refs.to_dict()
    rows = zip(refs.positions.tolist(), frame["kind"], frame["url"], frame["offset"], frame["length"], strict=True)
    return [(tuple(at), kind, url, int(offset), int(length)) for at, kind, url, offset, length in rows]


def iterated(session: Any, path: str) -> list[Row]:
    """The same, sorted, from the iterator of batches."""

    async def batches() -> list[Any]:
        return [batch async for batch in session.array_chunk_iterator(path, 3)]

    found = []
    for positions, kinds, urls, offsets, lengths, _ in asyncio.run(batches()):
        names = [ChunkType(int(kind)).name for kind in kinds]
        rows = zip(positions.tolist(), names, urls, offsets, lengths, strict=True)
        found += [(tuple(at), kind, url, int(offset), int(length)) for at, kind, url, offset, length in rows]
    return sorted(found)


def test_columns_of_virtual_chunks(archive: Any) -> None:
    refs = archive.repository.readonly_session("main").chunk_refs("/x")
    assert (refs.path, len(refs)) == ("x", 6)
    assert refs.positions.tolist() == [[0], [1], [2], [3], [4], [5]]
    assert refs.positions.dtype == np.uint32
    assert set(refs.kinds.tolist()) == {ChunkType.virtual}
    assert [refs.urls[at] for at in refs.source] == [path.as_uri() for path in archive.files for _ in range(2)]
    assert sorted(refs.paths) == ["data/0.bin", "data/1.bin", "data/2.bin"]
    assert refs.offsets.tolist() == [0, 50] * 3
    assert refs.lengths.tolist() == [50] * 6
    assert refs.offsets.dtype == refs.lengths.dtype == np.uint64


@settings(max_examples=25)
@given(seed=st.integers(0, 1 << 32))
def test_the_same_as_one_by_one(new_workbench: Any, seed: int) -> None:
    """Whatever was committed, forked, overwritten, deleted, and is not committed yet."""
    choose = random.Random(seed)
    bench = new_workbench()
    shape = choose.choice([(), (20,), (11, 12), (3, 11, 2)])
    bench.commit({"zarr.json": bench.GROUP, "a/zarr.json": bench.array(*shape)})
    bench.repository.create_branch("other", bench.repository.lookup_branch("main"))

    def change(session: Any) -> None:
        for _ in range(choose.randrange(1, 30)):
            key = "/".join(["a", "c", *(str(choose.randrange(size)) for size in shape)])
            if choose.random() < 0.5:
                url = f"file:///nowhere/{choose.randrange(3)}.bin"
                session.store.set_virtual_ref(key, url, offset=choose.randrange(9), length=choose.randrange(1, 9))
            else:
                bench.write(session, {key: choose.choice([None, b"123"])})

    for branch in ("main", "other", "other"):
        session = bench.repository.writable_session(branch)
        change(session)
        assert listed(session, "a") == iterated(session, "a")
        session.commit("work", allow_empty=True)
        assert listed(session, "a") == iterated(session, "a")
    session = bench.repository.writable_session("main")
    change(session)
    found = listed(session, "a")  # before the iterator, which stages what waits in memory
    assert found == iterated(session, "a") == listed(session, "a")
    assert [row[0] for row in found] == sorted(row[0] for row in found)


def test_a_new_array_and_bytes_that_wait(workbench: Any) -> None:
    session = workbench.repository.writable_session("main")
    workbench.write(session, {"a/zarr.json": workbench.array(3), "a/c/1": b"12"})
    session.store.set_virtual_ref("a/c/0", "file:///nowhere/1.bin", offset=7, length=8)
    assert listed(session, "a") == [
        ((0,), "virtual", "file:///nowhere/1.bin", 7, 8),
        ((1,), "inline", "", 0, 2),
    ]
    assert workbench.row_counts()["payload"] == 0  # asking wrote nothing
    assert session.chunk_refs("a").source.tolist() == [0, -1]


def test_asking_does_not_add_to_the_commit(archive: Any) -> None:
    """The locations of the snapshot are not those of the session: they may be elsewhere when it commits."""
    session = archive.repository.writable_session("main")
    session.chunk_refs("x")
    assert list(session.changes.chunks.locations) == []


def test_blocks(archive: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = listed(archive.repository.readonly_session("main"), "x")
    monkeypatch.setattr(chunk_table, "SCAN_ROWS", 2)
    monkeypatch.setattr("icelite.catalog.staging.SCAN_ROWS", 2)
    assert listed(archive.repository.readonly_session("main"), "x") == expected
    session = archive.repository.writable_session("main")
    archive.write(session)
    assert listed(session, "x") == expected


def test_in_a_container(archive: Any, tmp_path: Path) -> None:
    config = icelite.RepositoryConfig()
    config.set_virtual_chunk_container(icelite.VirtualChunkContainer(tmp_path.as_uri(), name="near"))
    session = archive.open(config=config).writable_session("main")
    session.store.set_virtual_ref("x/c/0", "vcc://near/sub/1.bin", offset=0, length=50)
    refs = session.chunk_refs("x")
    assert "vcc://near/sub/1.bin" in refs.paths
    assert (tmp_path / "sub" / "1.bin").as_uri() in refs.urls


def test_an_array_without_chunks_and_what_is_none(archive: Any) -> None:
    session = archive.repository.writable_session("main")
    zarr.create_array(session.store, name="empty", shape=(4, 4), chunks=(2, 2), dtype="u1")
    refs = session.chunk_refs("empty")
    assert len(refs) == 0
    assert refs.positions.shape == (0, 2)
    assert repr(refs) == "<icelite.ChunkRefs> /empty: 0 chunks, 0 sources, 0 bytes"
    assert len(pd.DataFrame(refs.to_dict())) == 0
    for path in ("", "gone"):
        with pytest.raises(IceliteError) as caught:
            session.chunk_refs(path)
        assert caught.value.kind in ("not-an-array", "node-not-found")


def test_it_prints_and_goes_into_a_frame(archive: Any, new_archive: Any, tmp_path: Path) -> None:
    refs = archive.repository.readonly_session("main").chunk_refs("x")
    assert repr(refs).splitlines()[0] == "<icelite.ChunkRefs> /x: 6 chunks, 3 sources, 300 bytes"
    assert repr(refs).splitlines()[2].split()[:2] == ["0", "virtual"]
    frame = pd.DataFrame(refs.to_dict())
    assert list(frame.columns) == ["dim_0", "kind", "url", "offset", "length"]
    assert frame.groupby("url").length.sum().tolist() == [100] * 3
    many = new_archive(tmp_path / "many", 30).repository.readonly_session("main").chunk_refs("x")
    assert repr(many).splitlines()[-1] == f"... and {60 - SHOWN} more"
    assert many._repr_html_().count("<tr>") == SHOWN + 1


@given(
    st.integers(0, 4).flatmap(
        lambda ndim: st.tuples(
            st.just(ndim), st.lists(st.lists(st.integers(0, 2**32 - 1), min_size=ndim, max_size=ndim))
        )
    )
)
def test_positions_there_and_back(case: tuple[int, list[list[int]]]) -> None:
    ndim, positions = case
    grid = as_grid(["/".join(map(str, position)) for position in positions], ndim, "array")
    assert grid.shape == (len(positions), ndim)
    assert grid.tolist() == positions


@pytest.mark.parametrize("chunks", [["1/2", "3"], ["1", "2/3"], ["1/2/3", "4"], ["1/2", "3/4/5"], ["1"]])
def test_positions_of_another_array(chunks: list[str]) -> None:
    with pytest.raises(FormatError, match="does not have 2 numbers"):
        as_grid(chunks, 2, "array 7")


async def test_positions_beyond_32_bits_are_right() -> None:
    session = icelite.Repository.create(icelite.in_memory_storage()).writable_session("main")
    array = zarr.create_array(session.store, name="x", shape=(2**33, 2), chunks=(1, 1), dtype="u1")
    array[2**32 + 3, 1] = array[7, 0] = 9
    session.commit("far out")
    assert session.chunk_refs("x").positions.tolist() == [[7, 0], [2**32 + 3, 1]]
    assert session.chunk_refs("x").positions.dtype == np.uint64
    batches = [batch[0].tolist() async for batch in session.array_chunk_iterator("x")]
    assert sorted(row for batch in batches for row in batch) == [[7, 0], [2**32 + 3, 1]]
