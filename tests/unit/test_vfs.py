"""icelite.vfs without a network: blocks give the bytes of the file, in few requests, and only of one version."""

from __future__ import annotations

import struct
from pathlib import Path

import apsw
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icelite.errors import ErrorKind, FormatError, StorageError
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
    connection, _, vfs = open_by_ranges(remote.read, len(catalog), catalog[:4096], "x")
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

    connection, _, vfs = open_by_ranges(read, len(catalog), catalog[:8192], "x")
    with pytest.raises(StorageError) as caught:
        connection.execute("SELECT count(*) FROM t").fetchall()
    assert caught.value.kind == "catalog-replaced"
    connection.close()
    del vfs


# ---- files that nobody checked


def opened(data: bytes) -> tuple[apsw.Connection, object]:
    connection, _, vfs = open_by_ranges(lambda start, stop: data[start:stop], len(data), data[:4096], "https://x/y")
    return connection, vfs


def test_a_tree_in_which_pages_have_several_parents_is_refused_before_it_costs_anything(tmp_path: Path) -> None:
    """Ten levels of pages that each name the next one a hundred times: 10^20 rows in 12 pages."""
    path = tmp_path / "x.db"
    connection = apsw.Connection(str(path))
    connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, data)")
    connection.execute("INSERT INTO t VALUES (1, 2)")
    connection.execute("CREATE TABLE filling (data)")
    connection.execute("INSERT INTO filling VALUES (zeroblob(50000))")
    connection.close()
    data = bytearray(path.read_bytes())
    leaf = bytes(data[4096:8192])
    for level in range(10):
        start = (1 + level) * 4096
        cells = [100 + 5 * number for number in range(100)]
        cells = [cell + 212 for cell in cells]
        page = bytearray(4096)
        struct.pack_into(">BHHHBI", page, 0, 5, 0, len(cells), cells[0], 0, 3 + level)
        struct.pack_into(f">{len(cells)}H", page, 12, *cells)
        for cell in cells:
            struct.pack_into(">IB", page, cell, 3 + level, 1)
        data[start : start + 4096] = page
    data[11 * 4096 : 12 * 4096] = leaf
    connection, vfs = opened(bytes(data))
    with pytest.raises(FormatError, match="belongs elsewhere") as caught:
        connection.execute("SELECT sum(data) FROM t").fetchall()
    assert caught.value.kind == "corrupt"
    connection.close()
    del vfs


@pytest.mark.parametrize("page_bytes", [512, 4096, 65536])
def test_sound_files_pass(tmp_path: Path, page_bytes: int) -> None:
    path = tmp_path / "x.db"
    connection = apsw.Connection(str(path))
    connection.pragma("page_size", page_bytes)
    connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT, data BLOB)")
    connection.execute("CREATE TABLE u (name TEXT PRIMARY KEY) WITHOUT ROWID")
    connection.execute("CREATE INDEX by_name ON t (name)")
    numbers = "WITH n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n WHERE i < 4000)"
    connection.execute(f"{numbers} INSERT INTO t SELECT i, 'name ' || (i * 7919 % 4001), randomblob(i % 3000) FROM n")
    connection.execute("INSERT INTO u SELECT name FROM t")
    connection.execute("DELETE FROM t WHERE id % 3 = 0")
    question = "SELECT count(*), sum(length(data)), max(name) FROM t JOIN u USING (name)"
    expected = connection.execute(question).fetchall()
    connection.close()
    connection, vfs = opened(path.read_bytes())
    assert connection.execute(question).fetchall() == expected
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()
    del vfs


@pytest.mark.parametrize(
    ("question", "limit"),
    [
        ("WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i FROM n) SELECT count(*) FROM n", ("STEPS", 1_000_000)),
        ("WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i FROM n) SELECT i FROM n", ("ROWS", 1000)),
        ("SELECT a.data FROM t a, t b", ("VALUE_BYTES", 1 << 20)),
    ],
)
def test_a_statement_that_costs_more_than_its_file_can_is_stopped(
    catalog: bytes, monkeypatch: pytest.MonkeyPatch, question: str, limit: tuple[str, int]
) -> None:
    monkeypatch.setattr(blocks, limit[0], limit[1])
    monkeypatch.setattr(blocks, "STEPS_A_BYTE", 1)
    connection, vfs = opened(catalog)
    with pytest.raises(FormatError, match="download it") as caught:
        connection.execute(question).fetchall()
    assert caught.value.kind == "corrupt"
    assert connection.execute("SELECT count(*) FROM t").fetchall() == [(3000,)], "each statement has its own budget"
    connection.close()
    del vfs


def test_what_is_fetched_for_a_statement_has_a_limit(catalog: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "CACHE_BYTES", 1)
    monkeypatch.setattr(blocks, "FETCHED_BYTES", 0)
    monkeypatch.setattr(blocks, "TIMES_FETCHED", 2)
    connection, vfs = opened(catalog)
    connection.pragma("cache_size", 1)
    with pytest.raises(FormatError, match="bytes fetched"):
        connection.execute("SELECT sum(length(b.data)) FROM t a, t b WHERE b.id = 3001 - a.id").fetchall()
    connection.close()
    del vfs
