"""`enable_fast_reads`: chosen, never silent; few statements, few reads; errors that name the chunk."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apsw
import boto3
import numpy as np
import pytest
import zarr
from moto.server import ThreadedMotoServer
from zarr.core.codec_pipeline import BatchedCodecPipeline

import icelite
from icelite.errors import FormatError, StorageError
from icelite.store import pipeline
from icelite.store.loading import LOCAL_BYTES, LOCAL_GAP, Piece, join_runs
from icelite.store.pipeline import PATH, IceliteCodecPipeline, enable_fast_reads
from icelite.virtual.s3 import S3Object

ROWS, WIDTH = 40, 64  # chunks of one row, 256 bytes each


def pipeline_of(array: zarr.Array[Any]) -> type:
    return type(array.async_array.codec_pipeline)


def opened(store: icelite.IceliteStore, path: str = "a") -> zarr.Array[Any]:
    with enable_fast_reads():
        array = zarr.open_array(store, path=path, mode="r")
    assert pipeline_of(array) is IceliteCodecPipeline
    return array


def values() -> Any:
    return np.arange(1, ROWS * WIDTH + 1, dtype="f4").reshape(ROWS, WIDTH)


def create(store: icelite.IceliteStore) -> zarr.Array[Any]:
    return zarr.create_array(
        store, name="a", shape=(ROWS, WIDTH), chunks=(1, WIDTH), dtype="f4", compressors=None, fill_value=-1
    )


@pytest.fixture
def virtual(tmp_path: Path) -> icelite.Session:
    """A committed array whose chunks lie one behind the other in a file beside the catalog."""
    (tmp_path / "data.bin").write_bytes(values().tobytes())
    session = icelite.Repository.create(tmp_path / "v.icelite").writable_session("main")
    create(session.store)
    size = 4 * WIDTH
    for row in range(ROWS):
        session.store.set_virtual_ref(f"a/c/{row}/0", (tmp_path / "data.bin").as_uri(), offset=row * size, length=size)
    session.commit("")
    session.resume()
    return session


@pytest.fixture
def inline() -> icelite.Session:
    """A committed array whose chunks are in the catalog."""
    session = icelite.Repository.create(icelite.in_memory_storage()).writable_session("main")
    create(session.store)[:] = values()
    session.commit("")
    session.resume()
    return session


def statements(session: icelite.Session, act: Callable[[], object]) -> list[str]:
    """The queries on chunks and payloads while something is done."""
    seen: list[str] = []
    connection = session._catalog._connection
    connection.trace_v2(apsw.SQLITE_TRACE_STMT, lambda event: seen.append(event["sql"]))
    try:
        act()
    finally:
        connection.trace_v2(0, None)
    return [sql for sql in seen if "chunk_ref" in sql or "payload" in sql]


# -- choosing it ---------------------------------------------------------------------------------------------------


def test_nothing_changes_unless_it_is_asked_for(inline: icelite.Session) -> None:
    assert pipeline_of(zarr.open_array(inline.store, path="a")) is BatchedCodecPipeline
    with enable_fast_reads():
        assert pipeline_of(zarr.open_array(inline.store, path="a")) is IceliteCodecPipeline
    assert pipeline_of(zarr.open_array(inline.store, path="a")) is BatchedCodecPipeline


def test_it_is_disabled_to_what_was_there_before() -> None:
    before = zarr.config.get("codec_pipeline.path")
    outer = enable_fast_reads()
    inner = enable_fast_reads()
    inner.disable()
    assert zarr.config.get("codec_pipeline.path") == PATH
    outer.disable()
    assert zarr.config.get("codec_pipeline.path") == before


def test_the_configuration_of_zarr_chooses_it_by_name(inline: icelite.Session) -> None:
    with zarr.config.set({"codec_pipeline.path": "icelite.store.pipeline.IceliteCodecPipeline"}):
        assert pipeline_of(zarr.open_array(inline.store, path="a")) is IceliteCodecPipeline


def test_other_stores_are_read_and_written_as_ever() -> None:
    with enable_fast_reads():
        array = zarr.create_array(zarr.storage.MemoryStore(), shape=(9, 9), chunks=(2, 2), shards=(4, 4), dtype="i4")
        array[:7] = 3
        assert array[:].sum() == 3 * 7 * 9
        assert array[5, 5] == 3


# -- what it costs -------------------------------------------------------------------------------------------------


def test_one_statement_resolves_all_chunks_of_a_selection(virtual: icelite.Session) -> None:
    fast = opened(virtual.store)
    fast[0]
    found = statements(virtual, lambda: np.testing.assert_array_equal(fast[3:30], values()[3:30]))
    assert len(found) == 1


def test_inline_chunks_take_one_statement_more(inline: icelite.Session) -> None:
    fast = opened(inline.store)
    fast[0]
    found = statements(inline, lambda: np.testing.assert_array_equal(fast[:], values()))
    assert len(found) == 2


def test_neighbours_in_a_file_are_read_at_once(virtual: icelite.Session, monkeypatch: pytest.MonkeyPatch) -> None:
    fast = opened(virtual.store)
    lengths: list[int] = []
    pread = os.pread

    def counted(number: int, length: int, offset: int) -> bytes:
        lengths.append(length)
        return pread(number, length, offset)

    monkeypatch.setattr(os, "pread", counted)
    np.testing.assert_array_equal(fast[:], values())
    assert lengths == [values().nbytes]


class Local:
    """A source as far as `join_runs` looks at it."""

    is_local = True


def test_runs_end_at_gaps_and_at_a_megabyte() -> None:
    source: Any = Local()
    near = [Piece(0, 10, 0), Piece(10 + LOCAL_GAP, 10, 1)]
    assert [run.pieces for run in join_runs(source, near[::-1])] == [near]
    far = [Piece(0, 10, 0), Piece(11 + LOCAL_GAP, 10, 1)]
    assert [run.pieces for run in join_runs(source, far)] == [far[:1], far[1:]]
    large = [Piece(0, LOCAL_BYTES, 0), Piece(LOCAL_BYTES, 1, 1), Piece(LOCAL_BYTES, 1, 2)]
    assert [(run.start, run.stop) for run in join_runs(source, large)] == [
        (0, LOCAL_BYTES),
        (LOCAL_BYTES, LOCAL_BYTES + 1),
    ]
    inside = [Piece(0, 100, 0), Piece(10, 10, 1), Piece(90, 20, 2)]
    assert [(run.start, run.stop) for run in join_runs(source, inside)] == [(0, 110)]


# -- what the session sees -----------------------------------------------------------------------------------------


def test_uncommitted_changes_win(virtual: icelite.Session) -> None:
    expected = values()
    array = zarr.open_array(virtual.store, path="a")
    array[2] = expected[2] = 7  # waits in memory
    array[3] = expected[3] = 8
    virtual.changes.chunks.flush()  # staged
    array[4] = expected[4] = 9
    array[5] = expected[5] = -1  # deleted, being the fill value
    location = (virtual._catalog.path.parent / "data.bin").as_uri()
    virtual.store.set_virtual_ref("a/c/6/0", location, offset=0, length=4 * WIDTH)
    expected[6] = expected[0]
    fast = opened(virtual.store)
    np.testing.assert_array_equal(fast[:], expected)
    virtual.discard_changes()
    np.testing.assert_array_equal(opened(virtual.store)[:], values())


def test_each_snapshot_of_a_branched_history_is_read_as_it_was(tmp_path: Path) -> None:
    repo = icelite.Repository.create(tmp_path / "h.icelite")
    states = {}
    session = repo.writable_session("main")
    array, expected = create(session.store), np.full((ROWS, WIDTH), -1, "f4")
    for number in range(4):
        branch = "main" if number < 2 else f"b{number}"
        if number >= 2:
            repo.create_branch(branch, next(iter(states)))
            expected = states[next(iter(states))].copy()
        if number:
            session = repo.writable_session(branch)
            array = zarr.open_array(session.store, path="a")
        array[number : number + 3] = expected[number : number + 3] = number + 1
        states[session.commit(branch)] = expected.copy()
    for snapshot_id, state in states.items():
        fast = opened(repo.readonly_session(snapshot_id=snapshot_id).store)
        np.testing.assert_array_equal(fast[:], state)


# -- what goes wrong -----------------------------------------------------------------------------------------------


def test_a_source_that_changed_is_refused(virtual: icelite.Session, tmp_path: Path) -> None:
    fast = opened(virtual.store)
    (tmp_path / "data.bin").write_bytes(b"other")
    with pytest.raises(StorageError, match=r"a/c/0/0.*changed"):
        fast[:]


def test_the_chunk_that_cannot_be_read_is_named(virtual: icelite.Session, tmp_path: Path) -> None:
    location = (tmp_path / "data.bin").as_uri()
    virtual.store.set_virtual_ref("a/c/9/0", location, offset=values().nbytes - 8, length=4 * WIDTH)
    with pytest.raises(StorageError, match="a/c/9/0"):
        opened(virtual.store)[:]


def test_damaged_bytes_are_refused(tmp_path: Path) -> None:
    session = icelite.Repository.create(tmp_path / "d.icelite").writable_session("main")
    create(session.store)[:] = values()
    session.commit("")
    del session
    path = tmp_path / "d.icelite"
    damaged = path.read_bytes().replace(values()[7].tobytes(), values()[8].tobytes()[::-1])
    path.write_bytes(damaged)
    store = icelite.Repository.open(path, check="never").readonly_session("main").store
    with pytest.raises(FormatError, match=r"a/c/7/0.*CRC-32C"):
        opened(store)[:]


# -- over a network ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.mark.s3
@pytest.mark.parametrize("codec", ["plain", "asynchronous"])
def test_neighbours_in_an_object_are_one_request(
    endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str
) -> None:
    client = boto3.client(
        "s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b"
    )
    client.create_bucket(Bucket="bucket")
    client.put_object(Bucket="bucket", Key="data.bin", Body=values().tobytes())
    store = icelite.s3_store(region="us-east-1", endpoint_url=endpoint, allow_http=True, force_path_style=True)
    config = icelite.RepositoryConfig.default()
    config.set_virtual_chunk_container(icelite.VirtualChunkContainer("s3://bucket/", store))
    credentials = icelite.s3_credentials(access_key_id="a", secret_access_key="b")
    repo = icelite.Repository.create(
        tmp_path / "s.icelite", config, authorize_virtual_chunk_access={"s3://bucket/": credentials}
    )
    session = repo.writable_session("main")
    create(session.store)
    size = 4 * WIDTH
    for row in range(ROWS):
        session.store.set_virtual_ref(f"a/c/{row}/0", "s3://bucket/data.bin", offset=row * size, length=size)
    asked: list[str] = []
    ask = S3Object.ask

    async def counted(self: S3Object, *arguments: Any, **options: Any) -> Any:
        asked.append(options.get("Range", ""))
        return await ask(self, *arguments, **options)

    monkeypatch.setattr(S3Object, "ask", counted)
    if codec == "asynchronous":
        monkeypatch.setattr(pipeline, "decodes_here", lambda codecs: False)
    np.testing.assert_array_equal(opened(session.store)[:], values())
    assert asked == [f"bytes=0-{values().nbytes - 1}"]
