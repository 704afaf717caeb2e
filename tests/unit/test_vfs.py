"""icelite.vfs without a network: blocks give the bytes of the file, in few requests, and only of one version."""

from __future__ import annotations

from pathlib import Path

import apsw
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icelite.errors import ErrorKind, StorageError
from icelite.vfs import blocks, open_by_ranges
from icelite.vfs.blocks import BLOCK_BYTES, CACHE_BYTES, BlockFile


class Remote:
    """Bytes that are given out by range, and a log of the ranges."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.log: list[tuple[int, int]] = []

    def read(self, start: int, stop: int) -> bytes:
        assert 0 <= start < stop <= len(self.data)
        self.log.append((start, stop))
        return self.data[start:stop]


@given(
    size=st.integers(1, 5000),
    head=st.integers(0, 500),
    reads=st.lists(st.tuples(st.integers(0, 5000), st.integers(1, 300)), max_size=30),
    small_cache=st.booleans(),
)
def test_blocks_give_the_bytes_of_the_file(
    size: int, head: int, reads: list[tuple[int, int]], small_cache: bool
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK_BYTES", 64)
        patch.setattr(blocks, "CACHE_BYTES", 1024 if small_cache else 1 << 20)
        remote = Remote(bytes(number % 251 for number in range(size)))
        file = BlockFile(remote.read, size, remote.data[:head])
        for offset, amount in reads:
            assert file.xRead(amount, offset) == remote.data[offset : offset + amount]
        assert len(file._blocks) <= (16 if small_cache else 1 << 14)
    assert file.xFileSize() == size


def test_a_file_that_fits_the_cache_is_soon_here_wherever_it_is_read() -> None:
    remote = Remote(bytes(40 * BLOCK_BYTES + 7))
    file = BlockFile(remote.read, len(remote.data), b"")
    for number in (39, 3, 17, 5, 40, 0, 22, 30, 12, 8, 28):
        file.xRead(10, number * BLOCK_BYTES)
    before = len(remote.log)
    assert before <= 8
    assert sum(stop - start for start, stop in remote.log) < 1.2 * len(remote.data)
    for number in range(41):
        file.xRead(7, number * BLOCK_BYTES)
    assert len(remote.log) == before


def test_a_larger_file_is_read_ahead_only_in_sequence() -> None:
    asked: list[int] = []

    def read(start: int, stop: int) -> bytes:
        asked.append((stop - start) // BLOCK_BYTES)
        return bytes(stop - start)

    file = BlockFile(read, 2 * CACHE_BYTES, b"")
    for number in (100, 200, 10):
        file.xRead(1, number * BLOCK_BYTES)
    assert asked == [1, 1, 1]
    file.xRead(8 * BLOCK_BYTES, 11 * BLOCK_BYTES)
    assert asked[3:] == [2, 4, 4]


@pytest.fixture
def catalog(tmp_path: Path) -> bytes:
    """An SQLite file of some megabytes."""
    path = tmp_path / "x.db"
    connection = apsw.Connection(str(path))
    connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, data BLOB)")
    numbers = "WITH n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < 3000)"
    connection.execute(f"{numbers} INSERT INTO t SELECT i, zeroblob(1000) FROM n")
    connection.close()
    return path.read_bytes()


def test_sqlite_reads_through_it_and_cannot_write(catalog: bytes) -> None:
    remote = Remote(catalog)
    connection, vfs = open_by_ranges(remote.read, len(catalog), catalog[:4096])
    assert connection.execute("SELECT count(*), sum(length(data)) FROM t").fetchall() == [(3000, 3_000_000)]
    before = len(remote.log)
    assert connection.execute("SELECT id FROM t ORDER BY data, id LIMIT 1").fetchall() == [(1,)]
    assert len(remote.log) == before, "SQLite trusts its cache: the file is immutable"
    with pytest.raises(apsw.ReadOnlyError):
        connection.execute("DELETE FROM t")
    connection.close()
    del vfs


def test_an_error_of_the_network_comes_through_sqlite(catalog: bytes) -> None:
    def read(start: int, stop: int) -> bytes:
        raise StorageError("gone", ErrorKind.CATALOG_REPLACED)

    connection, vfs = open_by_ranges(read, len(catalog), catalog[:8192])
    with pytest.raises(StorageError) as caught:
        connection.execute("SELECT count(*) FROM t").fetchall()
    assert caught.value.kind == "catalog-replaced"
    connection.close()
    del vfs
