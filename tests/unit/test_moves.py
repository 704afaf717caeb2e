"""Moving nodes, and moving the chunks of an array inside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr

import icelite
from icelite import ChunkType, IceliteError, Repository


@pytest.fixture
def repo() -> Repository:
    repo = Repository.create(icelite.in_memory_storage())
    session = repo.writable_session("main")
    array = zarr.create_array(session.store, name="g/h/a", shape=(6,), chunks=(1,), dtype="i4", fill_value=-1)
    array[:4] = np.arange(4)
    zarr.create_group(session.store, path="target")
    session.commit("base")
    return repo


def values(repo: Repository, path: str) -> list[int]:
    return np.asarray(zarr.open_array(repo.readonly_session("main").store, path=path, mode="r")[:]).tolist()


def test_a_move_takes_everything_below_along(repo: Repository) -> None:
    session = repo.rearrange_session("main")
    node_id = session.get_node_id("/g/h/a")
    session.move("/g/h", "/target/h2")
    assert sorted(session.status().moved_nodes) == [("/g/h", "/target/h2"), ("/g/h/a", "/target/h2/a")]
    session.commit("moved")
    assert values(repo, "target/h2/a") == [0, 1, 2, 3, -1, -1]
    reader = repo.readonly_session("main")
    assert reader.get_node_id("target/h2/a") == node_id
    assert sorted(zarr.open_group(reader.store, mode="r")["g"].keys()) == []
    before = list(repo.ancestry(branch="main"))[1].id
    old = repo.readonly_session(snapshot_id=before)
    assert np.asarray(zarr.open_array(old.store, path="g/h/a", mode="r")[:2]).tolist() == [0, 1]


def test_moves_in_a_row_are_one(repo: Repository) -> None:
    session = repo.rearrange_session("main")
    session.move("/g", "/x")
    session.move("/x/h", "/target/h")
    session.move("/x", "/g")
    assert sorted(session.status().moved_nodes) == [("/g/h", "/target/h"), ("/g/h/a", "/target/h/a")]
    session.commit("moved")
    assert values(repo, "target/h/a")[:2] == [0, 1]


def test_a_moved_array_can_be_written_and_its_place_taken(repo: Repository) -> None:
    session = repo.rearrange_session("main")
    session.move("/g/h/a", "/target/a")
    session.commit("moved")
    writer = repo.writable_session("main")
    zarr.open_array(writer.store, path="target/a")[5] = 55
    zarr.create_array(writer.store, name="g/h/a", shape=(1,), dtype="i4")[:] = 9
    writer.commit("written")
    assert values(repo, "target/a") == [0, 1, 2, 3, -1, 55]
    assert values(repo, "g/h/a") == [9]


@pytest.mark.parametrize(
    ("source", "target", "kind"),
    [
        ("/nothing", "/x", "node-not-found"),
        ("/g", "/target", "move-wont-overwrite"),
        ("/g", "/g/h/deeper", "move-into-self-or-descendant"),
        ("/g", "/g", "move-into-self-or-descendant"),
        ("/", "/x", "move-into-self-or-descendant"),
        ("/g", "/absent/x", "move-destination-parent-missing"),
        ("/target", "/g/h/a/x", "move-destination-parent-not-group"),
        ("/g", "/../x", "invalid-path"),
    ],
)
def test_what_cannot_be_moved(repo: Repository, source: str, target: str, kind: str) -> None:
    session = repo.rearrange_session("main")
    with pytest.raises(IceliteError) as raised:
        session.move(source, target)
    assert raised.value.kind == kind
    assert session.status().is_empty()


def test_each_kind_of_session_does_its_own(repo: Repository) -> None:
    with pytest.raises(IceliteError) as raised:
        repo.writable_session("main").move("/g", "/x")
    assert raised.value.kind == "non-rearrange-session"
    session = repo.rearrange_session("main")
    with pytest.raises(IceliteError) as raised:
        session.store.delete_sync("g/h/a/c/0")
    assert raised.value.kind == "rearrange-session-only"
    assert session.mode == "rearrange"


@pytest.mark.parametrize("offset", [-7, -2, -1, 0, 1, 3, 6])
def test_shift(repo: Repository, offset: int) -> None:
    session = repo.writable_session("main")
    zarr.open_array(session.store, path="g/h/a")[5] = 55  # not yet written
    session.shift_array("/g/h/a", [offset])
    model = [-1] * 6
    for index, value in enumerate([0, 1, 2, 3, -1, 55]):
        if 0 <= index + offset < 6:
            model[index + offset] = value
    assert np.asarray(zarr.open_array(session.store, path="g/h/a")[:]).tolist() == model
    session.commit("shifted")
    assert values(repo, "g/h/a") == model


def test_shift_moves_virtual_references_too(tmp_path: Path) -> None:
    source = tmp_path / "data.bin"
    source.write_bytes(bytes(range(4)))
    repo = Repository.create(tmp_path / "a.icelite")
    session = repo.writable_session("main")
    zarr.create_array(session.store, name="v", shape=(4,), chunks=(1,), dtype="u1", compressors=None, fill_value=9)
    for chunk in range(4):
        session.store.set_virtual_ref(f"v/c/{chunk}", f"file://{source}", offset=chunk, length=1)
    session.commit("references")
    session = repo.writable_session("main")
    session.shift_array("v", [1])
    session.commit("shifted")
    assert values(repo, "v") == [9, 0, 1, 2]
    reader = repo.readonly_session("main")
    assert reader.all_virtual_chunk_locations() == [f"file://{source}"] * 3
    assert (reader.chunk_type("v", [0]), reader.chunk_type("v", [1])) == (ChunkType.uninitialized, ChunkType.virtual)


def test_reindex(repo: Repository) -> None:
    session = repo.writable_session("main")
    session.reindex_array("g/h/a", lambda index: [5 - index[0]])
    assert np.asarray(zarr.open_array(session.store, path="g/h/a")[:]).tolist() == [0, 1, 3, 2, 1, 0]
    session.discard_changes()
    session.reindex_array("g/h/a", lambda index: [5 - index[0]], lambda index: [5 - index[0]])
    assert np.asarray(zarr.open_array(session.store, path="g/h/a")[:]).tolist() == [-1, -1, 3, 2, 1, 0]
    session.discard_changes()
    session.reindex_array("g/h/a", lambda index: None if index[0] else [4])
    assert np.asarray(zarr.open_array(session.store, path="g/h/a")[:]).tolist() == [0, 1, 2, 3, 0, -1]


def test_reindex_and_shift_refuse_what_does_not_fit(repo: Repository) -> None:
    session = repo.writable_session("main")
    with pytest.raises(IceliteError) as raised:
        session.reindex_array("g/h/a", lambda index: [index[0] + 3])
    assert raised.value.kind == "invalid-chunk-index"
    assert session.status().is_empty()
    for path, offset, kind in (
        ("g/h/a", [1, 1], "invalid-chunk-index"),
        ("g", [1], "not-an-array"),
        ("q", [1], "node-not-found"),
    ):
        with pytest.raises(IceliteError) as raised:
            session.shift_array(path, offset)
        assert raised.value.kind == kind


async def test_chunks_can_be_asked_for(repo: Repository) -> None:
    session = repo.writable_session("main")
    session.store.delete_sync("g/h/a/c/1")
    zarr.open_array(session.store, path="g/h/a")[5] = 1
    found = [position async for position in session.chunk_coordinates("/g/h/a")]
    assert sorted(found) == [(0,), (2,), (3,), (5,)]
    types = [session.chunk_type("g/h/a", [index]) for index in (0, 1, 5, 99)]
    assert types == [ChunkType.inline, ChunkType.uninitialized, ChunkType.inline, ChunkType.uninitialized]


@pytest.mark.parametrize("committed", [False, True])
async def test_references_come_in_columns(tmp_path: Path, committed: bool) -> None:
    source = tmp_path / "data.bin"
    source.write_bytes(bytes(range(8)))
    repo = Repository.create(tmp_path / "a.icelite")
    session = repo.writable_session("main")
    array = zarr.create_array(session.store, name="v", shape=(2, 4), chunks=(1, 1), dtype="u1", compressors=None)
    for column in range(3):
        await session.store.set_virtual_ref_async(f"v/c/1/{column}", f"file://{source}", offset=column, length=1)
    array[0, 3] = 77
    if committed:
        session.commit("references")
        session = repo.readonly_session("main")
    rows = {}
    batches = [batch async for batch in session.store.array_chunk_iterator("/v", batch_size=3)]
    for coordinates, kinds, urls, offsets, lengths, inlined in batches:
        assert (coordinates.dtype, kinds.dtype, offsets.dtype, lengths.dtype) == ("u4", "u1", "u8", "u8")
        for row, position in enumerate(coordinates.tolist()):
            rows[tuple(position)] = (kinds[row], urls[row], offsets[row], lengths[row], inlined.get(row))
    assert [len(batch[2]) for batch in batches] == [3, 1]
    virtual = {(1, column): (ChunkType.virtual, f"file://{source}", column, 1, None) for column in range(3)}
    assert rows == {(0, 3): (ChunkType.inline, "", 0, 1, bytes([77])), **virtual}
