"""Catalogs from strangers: a table of forgeries, each read through every read API, exported, and committed to.

Each is opened on this machine with ``check="always"`` and ``"never"``, and by ranges from a server, in a process with
2 s of CPU and 200 MB of memory for each call (`read_hostile.py`): there is a value, or an `IceliteError`. Whatever it
says, nothing outside the target of an export is written, and no file is read that the caller did not allow.
"""

from __future__ import annotations

import bz2
import functools
import gzip
import http.server
import json
import lzma
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
import zarr
from numcodecs import LZ4, Blosc, Zstd
from zarr.core.buffer import default_buffer_prototype

from icelite import Repository, VirtualChunkContainer

READER = Path(__file__).with_name("read_hostile.py")
SECRET = b"the secret of the tests"
GROUP = {"zarr_format": 3, "node_type": "group", "attributes": {}}

Forge = Callable[[sqlite3.Connection], None]
FORGERIES: dict[str, Forge] = {}


def array(shape: list[int], chunks: list[int], codecs: list[Any] | None = None, **more: Any) -> str:
    """The zarr.json of an array of bytes."""
    content = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": shape,
        "data_type": "uint8",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunks}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "codecs": codecs
        if codecs and codecs[0]["name"] == "sharding_indexed"
        else [{"name": "bytes"}, *(codecs or [])],
        "attributes": {},
    }
    return json.dumps({**content, **more})


def make(path: Path) -> None:
    """The honest catalog that all forgeries begin with."""
    (path.parent / "f.bin").write_bytes(b"x" * 100)
    repository = Repository.create(path)
    session = repository.writable_session("main")
    zarr.create_group(session.store).create_group("g").create_array(
        "deep", shape=(2, 2), chunks=(1, 2), dtype="u1", compressors=None
    )[...] = 7
    for name in ("x", "v"):
        zarr.create_array(session.store, name=name, shape=(3,), chunks=(1,), dtype="u1", compressors=None)[:] = 5
    session.store.set_virtual_ref("v/c/0", str(path.parent / "f.bin"), offset=0, length=1)
    buffer = default_buffer_prototype().buffer
    old = {"zarr_format": 2, "shape": [3], "chunks": [1], "dtype": "<f8", "fill_value": 0, "order": "C"}
    session.store.set_sync(
        "z/.zarray", buffer.from_bytes(json.dumps({**old, "compressor": None, "filters": None}).encode())
    )
    session.store.set_sync("z/0", buffer.from_bytes(bytes(8)))
    first = session.commit("one")
    repository.create_branch("other", first)
    repository.create_tag("v1", first)
    config = repository.config
    config.set_virtual_chunk_container(VirtualChunkContainer("s3://nobody/", name="far"))
    repository.reopen(config).save_config()
    session = repository.writable_session("main")
    session.store.set_sync("x/c/1", buffer.from_bytes(b"\x09"))
    session.commit("two")
    repository.close()


def forgery(name: str) -> Callable[[Forge], Forge]:
    def put(forge: Forge) -> Forge:
        assert name not in FORGERIES
        FORGERIES[name] = forge
        return forge

    return put


def sql(name: str, statement: str, *values: Any) -> None:
    forgery(name)(lambda connection: connection.execute(statement, values) and None)


def codec(name: str, codecs: list[Any], make: Callable[[], bytes], chunks: list[int] | None = None) -> None:
    """Array ``x`` with chunks of a byte each, all of which are these."""

    def forge(c: sqlite3.Connection) -> None:
        data = make()
        c.execute("UPDATE node SET metadata = ? WHERE path = 'x'", (array([3], chunks or [1], codecs),))
        c.execute("UPDATE payload SET data = ?, crc32c = ?", (data, google_crc32c.value(data)))
        c.execute("UPDATE chunk_ref SET length = ? WHERE location_id = 1", (len(data),))

    forgery(name)(forge)


# ---- names that are paths

BAD_PATHS = {
    "up": "../../victim/x",
    "up and in": "g/../../victim",
    "dot": "./x",
    "absolute": "/{home}/victim",
    "double": "g//x",
    "trailing": "x/",
    "nul": "x\0y",
    "escape": "\x1b[31mx",
    "newline": "x\ny",
    "backslashes": "..\\..\\victim",
    "drive": "C:\\victim",
    "dots": "...",
    "dots and a space": ".. ",
    "space": " ",
    "line separator": "x\u2028y",
    "right to left": "x\u202ey",
    "no-break space": "x\u00a0y",
    "document": "x/zarr.json",
    "old document": ".zarray",
    "consolidated": ".zmetadata",
    "long": "x" * 10_000_000,
    "long segment": "x" * 5_000,
    "segments": "/".join(["d"] * 100_000),
    "some segments": "/".join(["d"] * 3_000),
}
for title, text in BAD_PATHS.items():
    sql(f"path: {title}", "UPDATE node SET path = ? WHERE path = 'x'", text)
for title in ("up", "absolute", "nul"):
    sql(f"path of a group: {title}", "UPDATE node SET path = ? WHERE path = 'g'", BAD_PATHS[title])
    sql(f"path of Zarr v2: {title}", "UPDATE node SET path = ? WHERE path = 'z'", BAD_PATHS[title])

for title, document in {
    "up": "../../victim",
    "absolute": "/tmp/victim",
    "other": "x",
    "v3": "zarr.json",
    "empty": "",
    "long": "x" * 1_000_000,
}.items():
    sql(
        f"document: {title}",
        "UPDATE node SET metadata = ? WHERE path = 'z'",
        json.dumps({document: "{}", ".zgroup": '{"zarr_format": 2}'}),
    )

BAD_NAMES = {"up": "../../victim", "nul": "a\0b", "escape": "\x1b]0;x\x07", "empty": "", "long": "n" * 10_000_000}
for title, text in BAD_NAMES.items():
    sql(f"branch: {title}", "UPDATE branch SET name = ? WHERE name = 'other'", text)
    sql(f"tag: {title}", "UPDATE tag SET name = ?", text)
    sql(f"container: {title}", "UPDATE container SET name = ?", text)
    sql(f"prefix: {title}", "UPDATE container SET url_prefix = ?", text)
    sql(f"snapshot id: {title}", "UPDATE snapshot SET id = ? WHERE message = 'two'", text)
    sql(f"message: {title}", "UPDATE snapshot SET message = ? WHERE message = 'two'", text)
    sql(f"etag: {title}", "UPDATE location SET etag = ? WHERE id = 2", text)
    sql(f"setting: {title}", "INSERT INTO setting (name, value) VALUES (?, 'null')", text)
    sql(f"operation: {title}", "UPDATE operation SET kind = ?", text)
sql("no main", "DELETE FROM branch WHERE name = 'main'")

for title, text in {
    "short": "5",
    "long": "1/2/3",
    "up": "../../victim",
    "letters": "a",
    "empty": "",
    "newline": "0\n1",
    "slashes": "//",
    "negative": "-1",
    "zeros": "00",
    "2^32": "4294967297",
    "2^63": "9223372036854775808",
    "30 digits": "9" * 30,
    "6000 digits": "9" * 6_000,
    "10 million digits": "9" * 10_000_000,
    "nul": "0\0",
    "other digits": "\u0663",
}.items():
    sql(f"chunk: {title}", "UPDATE chunk_ref SET chunk = ? WHERE chunk = '2'", text)

# ---- places that nobody allowed

for title, text in {
    "file": "file:///{home}/victim/secret",
    "relative": "../victim/secret",
    "relative inside": "./f.bin",
    "encoded": "%2e%2e/victim/secret",
    "encoded file": "file:///{home}/%76ictim/secret",
    "double": "..//victim/secret",
    "absolute": "/{home}/victim/secret",
    "home": "~/secret",
    "nul": "f.bin\0",
    "nul and more": "../victim/secret\0f.bin",
    "backslash": "..\\victim\\secret",
    "localhost": "file://localhost/{home}/victim/secret",
    "dot folder": ".ssh/id_rsa",
    "dot file": ".netrc",
    "itself": "a.icelite",
    "its journal": "a.icelite-journal",
    "device": "file:///dev/zero",
    "process": "file:///proc/self/environ",
    "memory": "memory://x",
    "chain": "simplecache::file:///{home}/victim/secret",
    "zip": "zip://x::file:///{home}/victim/secret",
    "reference": "reference://x",
    "ssh": "ssh://localhost/etc/passwd",
    "metadata service": "http://169.254.169.254/latest/meta-data/",
    "loopback": "http://127.0.0.1:1/x",
    "userinfo": "https://user:pw@127.0.0.1:1/x",
    "bucket": "s3://nobody/x",
    "arn": "s3://arn:aws:s3:us-east-1:1:accesspoint/x/y",
    "container": "vcc://far/../x",
    "unknown container": "vcc://gone/x",
    "line break": "https://127.0.0.1:1/x\r\nHost: y",
    "empty": "",
    "directory": "g/",
    "200,000 segments": "x/" * 200_000 + "y",
    "2,000 segments": "x/" * 2_000 + "y",
    "1,000,000 segments": "x/" * 1_000_000 + "y",
    "link": "link",
    "link to a folder": "folder/secret",
    "loop": "loop",
    "pipe": "pipe",
}.items():
    sql(f"place: {title}", "UPDATE location SET path = ?, size = NULL, modified_at = NULL WHERE id = 2", text)
    if title in ("file", "relative", "up"):
        sql(f"native: {title}", "UPDATE location SET kind = 1, path = ? WHERE id = 2", text)
sql("objects up", "INSERT INTO setting (name, value) VALUES ('objects', ?)", json.dumps("../../victim/"))
sql("objects away", "INSERT INTO setting (name, value) VALUES ('objects', ?)", json.dumps("file:///etc/"))
sql("objects no text", "INSERT INTO setting (name, value) VALUES ('objects', '[1]')")
sql("length 2^62", "UPDATE chunk_ref SET length = 1 << 62 WHERE location_id > 1")
sql("offset and length", "UPDATE chunk_ref SET offset = 9223372036854775807, length = 9223372036854775807")
sql("inline length 2^62", "UPDATE chunk_ref SET length = 1 << 62 WHERE location_id = 1")
sql("no payload", "DELETE FROM payload")
sql("short payload", "UPDATE payload SET data = x'01', crc32c = ?", google_crc32c.value(b"\1"))
sql("location -5", "UPDATE chunk_ref SET location_id = -5")
sql("location 0", "UPDATE chunk_ref SET location_id = 0")
sql("location 99", "UPDATE chunk_ref SET location_id = 99")

# ---- what does not fit a type or a rule; SQLite itself refuses these files when it checks them

for title, statement in {
    "segment is its own parent": "UPDATE segment SET parent_seg = seg, fork_seq = seg",
    "segment before the first": "UPDATE segment SET parent_seg = -1, fork_seq = 1",
    "segment of the future": "UPDATE segment SET parent_seg = 99, fork_seq = 99",
    "segments in a circle": "INSERT INTO segment (seg, parent_seg, fork_seq) SELECT 77, seg, 77 FROM segment;"
    " UPDATE segment SET parent_seg = 77,"
    " fork_seq = 77 WHERE seg <> 77",
    "no segments": "DELETE FROM segment",
    "snapshot is its own parent": "UPDATE snapshot SET parent_seq = seq",
    "snapshots in a circle": "UPDATE snapshot SET parent_seq = (SELECT max(seq) FROM snapshot)",
    "snapshot of another segment": "UPDATE snapshot SET seg = 99",
    "no snapshots": "DELETE FROM snapshot",
    "time is text": "UPDATE snapshot SET written_at = 'yesterday'",
    "time is real": "UPDATE snapshot SET written_at = 1.5e300",
    "time is huge": "UPDATE snapshot SET written_at = 9223372036854775807",
    "message is a blob": "UPDATE snapshot SET message = x'00ff'",
    "message is a number": "UPDATE snapshot SET message = 5",
    "message is not UTF-8": "UPDATE snapshot SET message = CAST(x'ff' AS TEXT)",
    "metadata is null": "UPDATE snapshot SET metadata = NULL",
    "metadata is no object": "UPDATE snapshot SET metadata = '[]'",
    "id is a number": "UPDATE snapshot SET id = 5 WHERE message = 'two'",
    "branch leads nowhere": "UPDATE branch SET seq = 999",
    "branch leads to text": "UPDATE branch SET seq = 'x'",
    "branch name is a blob": "UPDATE branch SET name = x'ff' WHERE name = 'other'",
    "tag leads to text": "UPDATE tag SET seq = 'x'",
    "container is a number": "UPDATE container SET name = 5, url_prefix = 6",
    "options are a blob": "UPDATE container SET options = x'00'",
    "kind is 9": "UPDATE location SET kind = 9 WHERE id = 2",
    "kind is text": "UPDATE location SET kind = 'x' WHERE id = 2",
    "location path is a number": "UPDATE location SET path = 5 WHERE id = 2",
    "location path is a blob": "UPDATE location SET path = x'00' WHERE id = 2",
    "size is text": "UPDATE location SET size = 'x' WHERE id = 2",
    "size is negative": "UPDATE location SET size = -1 WHERE id = 2",
    "modified_at is text": "UPDATE location SET modified_at = 'x' WHERE id = 2",
    "modified_at is huge": "UPDATE location SET modified_at = 9223372036854775807 WHERE id = 2",
    "etag is a number": "UPDATE location SET etag = 5 WHERE id = 2",
    "node path is a number": "UPDATE node SET path = 5 WHERE path = 'x'",
    "node path is a blob": "UPDATE node SET path = x'2e2e' WHERE path = 'x'",
    "node seq is text": "UPDATE node SET seq = 'x' WHERE path = 'x'",
    "node seg is text": "UPDATE node SET seg = 'x' WHERE path = 'x'",
    "node id is text": "UPDATE node SET node_id = 'x' WHERE path = 'x'",
    "node id is negative": "UPDATE node SET node_id = -1 WHERE path = 'x'",
    "node ids are one": "UPDATE node SET node_id = 1",
    "format is 9": "UPDATE node SET zarr_format = 9",
    "format is text": "UPDATE node SET zarr_format = 'x'",
    "node metadata is a number": "UPDATE node SET metadata = 5",
    "node metadata is a blob": "UPDATE node SET metadata = x'7b7d'",
    "node metadata is no JSON": "UPDATE node SET metadata = '{'",
    "change is text": "UPDATE change SET chunks = 'x'",
    "change is a number": "UPDATE change SET chunks = 5",
    "change is no zlib": "UPDATE change SET chunks = x'00'",
    "node change is 9": "UPDATE change SET node_change = 9",
    "node change is text": "UPDATE change SET node_change = 'x'",
    "payload is text": "UPDATE payload SET data = 'abc'",
    "payload is a number": "UPDATE payload SET data = 5",
    "checksum is text": "UPDATE payload SET crc32c = 'none'",
    "chunk is a number": "UPDATE chunk_ref SET chunk = 5 WHERE chunk = '2'",
    "chunk is a blob": "UPDATE chunk_ref SET chunk = x'30' WHERE chunk = '2'",
    "location is text": "UPDATE chunk_ref SET location_id = 'x'",
    "location is real": "UPDATE chunk_ref SET location_id = 1.5",
    "offset is text": "UPDATE chunk_ref SET offset = '1,2'",
    "offset is a blob": "UPDATE chunk_ref SET offset = x'00'",
    "offset is negative": "UPDATE chunk_ref SET offset = -1",
    "length is text": "UPDATE chunk_ref SET length = 'x'",
    "length is negative": "UPDATE chunk_ref SET length = -1",
    "length is null": "UPDATE chunk_ref SET length = NULL",
    "reference seq is text": "UPDATE chunk_ref SET seq = 'x' WHERE chunk = '2'",
    "reference seg is text": "UPDATE chunk_ref SET seg = 'x'",
    "operation time is text": "UPDATE operation SET done_at = 'x'",
    "operation detail is a blob": "UPDATE operation SET detail = x'00'",
    "operation detail is a list": "UPDATE operation SET detail = '[1]'",
    "operation detail is nested": "UPDATE operation SET detail = replace(hex(zeroblob(50000)), '00', '[')",
    "setting is a number": "UPDATE setting SET value = 5",
    "setting is no JSON": "UPDATE setting SET value = '{'",
    "settings are lists": "UPDATE setting SET value = '[1]'",
    "settings are texts": "UPDATE setting SET value = '\"x\"'",
    "status is odd": "INSERT INTO setting (name, value)"
    " VALUES ('status', '{\"availability\": [1], \"set_at\": 1e999}')",
    "flags are odd": "INSERT INTO setting (name, value) VALUES ('feature_flags', '{\"move_node\": 3}')",
    "collected is odd": "INSERT INTO setting (name, value) VALUES ('collected', '1.5')",
    "metadata setting is odd": "INSERT INTO setting (name, value) VALUES ('metadata', '5')",
}.items():
    forgery(f"value: {title}")(lambda connection, text=statement: connection.executescript(text) and None)

# ---- rows in another order than their keys, which paging would read for ever

KEYS = {
    "node": "PRIMARY KEY (path",
    "chunk_ref": "PRIMARY KEY (node_id",
    "change": "PRIMARY KEY (seq",
    "branch": "name   TEXT NOT NULL PRIMARY KEY",
}


def disordered(table: str, key: str) -> None:
    def forge(c: sqlite3.Connection) -> None:
        text = c.execute("SELECT sql FROM sqlite_schema WHERE name = ?", (table,)).fetchone()[0]
        rows = c.execute(f"SELECT * FROM {table}").fetchall()
        for sql in (text.replace(key, f"{key} DESC"), text):
            c.execute("PRAGMA writable_schema = 1")
            c.execute("UPDATE sqlite_schema SET sql = ? WHERE name = ?", (sql, table))
            c.commit()
            c.execute("PRAGMA writable_schema = RESET")
            if sql != text:
                c.execute(f"DELETE FROM {table}")
                c.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * len(rows[0]))})", rows)
                c.commit()

    forgery(f"order: {table}")(forge)


for table, key in KEYS.items():
    disordered(table, key)

# ---- small files that cost much

ZEROS = bytes(1 << 20)


@functools.cache
def repeated(compressor: Callable[[], Any], count: int) -> bytes:
    """So many megabytes of zeros, compressed piece by piece."""
    made = compressor()
    return b"".join([*(made.compress(ZEROS) for _ in range(count)), made.flush()])


GZIPPED = functools.partial(zlib.compressobj, wbits=31)


@functools.cache
def zstd_of(size: int) -> bytes:
    """A frame of zeros, by hand: each block says that one byte is repeated 128 KiB times."""
    blocks = -(-size // (128 << 10))
    header = bytes.fromhex("28b52ffd") + bytes([0b11_1_00000]) + size.to_bytes(8, "little")
    body = b"".join(
        ((min(size - i * (128 << 10), 128 << 10) << 3) | (1 << 1) | (i == blocks - 1)).to_bytes(3, "little") + b"\0"
        for i in range(blocks)
    )
    return header + body


@functools.cache
def zstd_without_size(size: int) -> bytes:
    """The same without the size in its header."""
    return bytes.fromhex("28b52ffd") + bytes([0b00_0_00000, 0x58]) + zstd_of(size)[13:]


for mb in (1, 5, 60):
    sql(
        f"bomb: changes of {mb} MB",
        "UPDATE change SET chunks = ? WHERE chunks IS NOT NULL",
        zlib.compress(b"10\n" * (mb * 350_000) + b"1", 1),
    )
sql(
    "bomb: changes of long positions",
    "UPDATE change SET chunks = ? WHERE chunks IS NOT NULL",
    zlib.compress(b"\n".join(b"1" * 4_000 + b"%06d" % i for i in range(40_000)), 9),
)
GZIP = {"name": "gzip", "configuration": {"level": 5}}
ZSTD = {"name": "zstd", "configuration": {"level": 0, "checksum": False}}
BLOSC = {
    "name": "blosc",
    "configuration": {"cname": "zstd", "clevel": 5, "shuffle": "noshuffle", "typesize": 1, "blocksize": 0},
}


def other(name: str, **options: Any) -> dict[str, Any]:
    return {"name": f"numcodecs.{name}", "configuration": options}


codec("bomb: zstd of 3 GB", [ZSTD], lambda: zstd_of(3 << 30))
codec("bomb: zstd of 3 GB without its size", [ZSTD], lambda: zstd_without_size(3 << 30))
codec("bomb: zstd frames", [ZSTD], lambda: zstd_without_size(300 << 20) * 8)
codec("bomb: numcodecs.zstd", [other("zstd", level=1)], lambda: zstd_of(3 << 30))
codec("bomb: zstd that says so", [ZSTD], lambda: Zstd(1).encode(bytes(600 << 20)))
codec("bomb: gzip", [GZIP], lambda: repeated(GZIPPED, 1_000))
codec("bomb: gzip members", [GZIP], lambda: gzip.compress(ZEROS * 40) * 25)
codec("bomb: zlib", [other("zlib", level=1)], lambda: repeated(zlib.compressobj, 1_000))
codec("bomb: zlib in a greater chunk", [other("zlib", level=1)], lambda: repeated(zlib.compressobj, 1_000), [1 << 20])
codec("bomb: bz2", [other("bz2", level=1)], lambda: repeated(bz2.BZ2Compressor, 400))
codec("bomb: lzma", [other("lzma")], lambda: repeated(lzma.LZMACompressor, 500))
codec("bomb: lz4", [other("lz4")], lambda: (2**31 - 1).to_bytes(4, "little") + bytes(100))
codec("bomb: lz4 of zeros", [other("lz4")], lambda: LZ4().encode(bytes(600 << 20)))
codec("bomb: blosc", [BLOSC], lambda: Blosc("zstd", shuffle=0).encode(bytes(800 << 20)))
codec(
    "bomb: blosc header", [BLOSC], lambda: bytes([2, 1, 0x13, 1]) + (2**31 - 16).to_bytes(4, "little") * 2 + bytes(100)
)
codec("bomb: zstd in gzip", [ZSTD, GZIP], lambda: gzip.compress(zstd_of(3 << 30)))
codec("bomb: zstd in zstd", [ZSTD, ZSTD], lambda: Zstd(1).encode(zstd_of(3 << 30)))
codec("bomb: zstd behind a shuffle", [other("shuffle", elementsize=1), ZSTD], lambda: zstd_of(3 << 30))
codec(
    "bomb: crc32c around zstd",
    [ZSTD, {"name": "crc32c"}],
    lambda: zstd_of(3 << 30) + google_crc32c.value(zstd_of(3 << 30)).to_bytes(4, "little"),
)
SHARDING = {
    "name": "sharding_indexed",
    "configuration": {
        "chunk_shape": [1],
        "codecs": [{"name": "bytes"}, ZSTD],
        "index_codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
        "index_location": "end",
    },
}


def shard(inner: bytes, count: int) -> bytes:
    index = np.array([[0, len(inner)]] * count, "<u8").tobytes()
    return inner + index + google_crc32c.value(index).to_bytes(4, "little")


codec("bomb: in a shard", [SHARDING], lambda: shard(zstd_of(3 << 30), 2), [2])
codec("bomb: around a shard", [SHARDING, ZSTD], lambda: zstd_of(3 << 30), [2])
OLD = {"zarr_format": 2, "shape": [3], "chunks": [1], "dtype": "<f8", "fill_value": 0, "order": "C", "filters": None}


def old(name: str, compressor: dict[str, Any], make: Callable[[], bytes]) -> None:
    def forge(c: sqlite3.Connection) -> None:
        data = make()
        text = json.dumps({".zarray": json.dumps({**OLD, "compressor": compressor})})
        c.execute("UPDATE node SET metadata = ? WHERE path = 'z'", (text,))
        c.execute("UPDATE payload SET data = ?, crc32c = ?", (data, google_crc32c.value(data)))
        c.execute("UPDATE chunk_ref SET length = ? WHERE location_id = 1", (len(data),))

    forgery(name)(forge)


old("bomb: Zarr v2 zlib", {"id": "zlib", "level": 1}, lambda: repeated(zlib.compressobj, 1_000))
old("bomb: Zarr v2 gzip", {"id": "gzip", "level": 1}, lambda: repeated(GZIPPED, 1_000))
old("bomb: Zarr v2 zstd", {"id": "zstd", "level": 1}, lambda: zstd_of(3 << 30))
old(
    "bomb: Zarr v2 blosc",
    {"id": "blosc", "cname": "lz4", "clevel": 1, "shuffle": 1},
    lambda: bytes([2, 1, 0x21, 8]) + (2**31 - 16).to_bytes(4, "little") * 2 + bytes(99),
)
old("bomb: Zarr v2 lz4", {"id": "lz4", "acceleration": 1}, lambda: (2**31 - 1).to_bytes(4, "little") + bytes(100))
old("bomb: Zarr v2 bz2", {"id": "bz2", "level": 1}, lambda: repeated(bz2.BZ2Compressor, 400))

for count in (100, 3_000, 30_000, 100_000):
    sql(f"bomb: {count} dimensions", "UPDATE node SET metadata = ? WHERE path = 'x'", array([1] * count, [1] * count))
sql("bomb: huge chunk shape", "UPDATE node SET metadata = ? WHERE path = 'x'", array([10**15], [10**15]))
sql("bomb: huge shape", "UPDATE node SET metadata = ? WHERE path = 'x'", array([2**63 - 1] * 3, [1] * 3))
sql(
    "bomb: shape of many digits",
    "UPDATE node SET metadata = ? WHERE path = 'x'",
    array([3], [1]).replace("[3]", f"[{'9' * 5_000}]"),
)
sql(
    "bomb: shape of more digits",
    "UPDATE node SET metadata = ? WHERE path = 'x'",
    array([3], [1]).replace("[3]", f"[{'9' * 4_000}]"),
)
sql(
    "bomb: nested attributes",
    "UPDATE node SET metadata = ? WHERE path = 'x'",
    array([3], [1]).replace('"attributes": {}', '"attributes": ' + "[" * 100_000 + "]" * 100_000),
)
sql(
    "bomb: 10 MB of attributes",
    "UPDATE node SET metadata = ? WHERE path = 'x'",
    array([3], [1], attributes={"a": "x" * 10_000_000}),
)
sql(
    "bomb: 20 MB of attributes",
    "UPDATE node SET metadata = ? WHERE path = 'x'",
    array([3], [1], attributes={"a": "x" * 20_000_000}),
)
sql("bomb: 10 MB of snapshot metadata", "UPDATE snapshot SET metadata = ?", json.dumps({"a": "x" * 10_000_000}))


@forgery("bomb: 20,000 segments")
def _segments(c: sqlite3.Connection, count: int = 20_000) -> None:
    seq = c.execute("SELECT max(id) FROM operation").fetchone()[0]
    last, segment = c.execute(
        "SELECT s.seq, s.seg FROM branch b JOIN snapshot s USING (seq) WHERE b.name = 'main'"
    ).fetchone()
    for i in range(seq + 1, seq + 1 + count):
        c.execute("INSERT INTO segment (seg, parent_seg, fork_seq) VALUES (?, ?, ?)", (i, segment, last))
        c.execute(
            "INSERT INTO operation (id, done_at, kind, detail) VALUES (?, ?, 'NewCommit', '{}')",
            (i, 1_700_000_000_000_000 + i),
        )
        c.execute(
            "INSERT INTO snapshot (seq, seg, id, parent_seq, written_at, message, metadata)"
            " VALUES (?, ?, ?, ?, ?, 'm', '{}')",
            (i, i, f"{i:020d}", last, 1_700_000_000_000_000 + i),
        )
        segment = last = i
    c.execute("UPDATE branch SET seq = ? WHERE name = 'main'", (last,))


# ---- what SQLite would do for the file

for title, statement in {
    "view": "CREATE VIEW evil AS SELECT 1",
    "trigger": "CREATE TRIGGER evil AFTER INSERT ON branch BEGIN DELETE FROM snapshot; END",
    "table": "CREATE TABLE evil (x)",
    "index": "CREATE INDEX evil ON snapshot (message)",
    "virtual table": "CREATE VIRTUAL TABLE evil USING fts5(x)",
    "column": "ALTER TABLE snapshot ADD COLUMN evil TEXT",
    "generated column": "ALTER TABLE branch ADD COLUMN evil TEXT AS (hex(zeroblob(900000000)))",
    "dropped index": "DROP INDEX node_by_id",
    "application": "PRAGMA application_id = 5",
    "version": "PRAGMA user_version = 9",
}.items():
    sql(f"schema: {title}", statement)


def schema(name: str, change: Callable[[str], str]) -> None:
    def forge(c: sqlite3.Connection) -> None:
        rows = c.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'table' AND sql LIKE '%STRICT%'").fetchall()
        c.execute("PRAGMA writable_schema = 1")
        for table, text in rows:
            c.execute("UPDATE sqlite_schema SET sql = ? WHERE name = ?", (change(text), table))

    forgery(name)(forge)


schema("schema: NUL in a comment", lambda text: text.replace(") STRICT", ") --\0\n STRICT"))
schema("schema: NUL", lambda text: text.replace(") STRICT", ")\0 STRICT"))
schema("schema: NUL behind", lambda text: text + "\0, x")
schema("schema: comment", lambda text: text.replace(") STRICT", ") /* STRICT */"))
schema("schema: quoted comment", lambda text: text.replace("NOT NULL", 'NOT NULL DEFAULT "--"', 1))
schema("schema: no STRICT", lambda text: text.replace("STRICT, ", "").replace("STRICT", ""))
schema("schema: no-break space", lambda text: text.replace("PRIMARY KEY", "PRIMARY\u00a0KEY", 1))

UNTYPED = {name for name in FORGERIES if name.startswith("value: ")}


def forge(folder: Path, original: Path, name: str) -> Path:
    """The forged catalog in a folder of its own, beside links, pipes and files that are nobody's business."""
    folder.mkdir()
    for victim in (folder.parent / "victim", folder / ".ssh"):
        victim.mkdir(exist_ok=True)
        (victim / "secret").write_bytes(SECRET)
        (victim / "id_rsa").write_bytes(SECRET)
    (folder / ".netrc").write_bytes(SECRET)
    (folder / "link").symlink_to(folder.parent / "victim" / "secret")
    (folder / "folder").symlink_to(folder.parent / "victim")
    (folder / "loop").symlink_to(folder / "loop")
    os.mkfifo(folder / "pipe")
    shutil.copy(original.parent / "f.bin", folder)
    path = Path(shutil.copy(original, folder))
    if name in UNTYPED:
        as_text(sqlite3.connect(path, isolation_level=None))
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA ignore_check_constraints = 1")
    FORGERIES[name](connection)
    if name.startswith(("path", "place", "native")):
        home = str(folder.parent).lstrip("/")
        for table in ("node", "location"):
            connection.execute(
                f"UPDATE {table} SET path = replace(path, '{{home}}', ?) WHERE path LIKE '%{{home}}%'", (home,)
            )
    if not name.startswith("schema"):
        for table in CHECKSUMMED:  # a stranger would give a row its checksum too, or none
            connection.execute(f"UPDATE {table} SET crc32c = NULL")
        connection.execute("DELETE FROM seal")
    connection.commit()
    connection.close()
    if name in UNTYPED:
        restore(path, original)
    return path


def as_text(connection: sqlite3.Connection) -> None:
    """Let SQLite take every table for one without types."""
    rows = connection.execute(
        "SELECT name, sql FROM sqlite_schema WHERE type = 'table' AND sql LIKE '%STRICT%'"
    ).fetchall()
    connection.execute("PRAGMA writable_schema = 1")
    for name, text in rows:
        for word, instead in (("STRICT, ", ""), ("STRICT", ""), ("NOT NULL", ""), (" TEXT", " BLOB")):
            text = text.replace(word, instead)
        connection.execute("UPDATE sqlite_schema SET sql = ? WHERE name = ?", (text, name))
    connection.close()


def restore(path: Path, original: Path) -> None:
    """Give the forged file the honest schema again."""
    honest = sqlite3.connect(original)
    rows = honest.execute("SELECT sql, name FROM sqlite_schema WHERE type = 'table'").fetchall()
    honest.close()
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA writable_schema = 1")
    connection.executemany("UPDATE sqlite_schema SET sql = ? WHERE name = ?", rows)
    connection.close()


# ---- reading them


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("original") / "a.icelite"
    make(path)
    return path


class Ranges(http.server.SimpleHTTPRequestHandler):
    """A server of files that answers requests for ranges."""

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        whole = path.read_bytes()
        start, _, end = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        first, last = int(start), min(int(end or len(whole) - 1), len(whole) - 1)
        data = whole[first : last + 1]
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{path.stat().st_mtime_ns}"')
        if "Range" in self.headers:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(whole)}")
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    folder = tmp_path_factory.mktemp("served")
    listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Ranges, directory=str(folder)))
    thread = threading.Thread(target=listening.serve_forever, daemon=True)
    thread.start()
    yield folder, f"http://127.0.0.1:{listening.server_port}"
    listening.shutdown()
    listening.server_close()
    thread.join()


class Reader:
    """The program that reads catalogs in children of its own."""

    def __init__(self, check: str) -> None:
        environment = {**os.environ, "HOSTILE_CHECK": check, "PYTHONWARNINGS": "ignore"}
        self._process = subprocess.Popen(
            [sys.executable, str(READER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def read(self, name: str, place: str, folder: Path) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([name, place, str(folder)]), file=self._process.stdin, flush=True)
        found: dict[str, Any] = json.loads(self._process.stdout.readline())
        return found

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


@pytest.fixture(scope="module")
def readers() -> Iterator[dict[str, Reader]]:
    made = {check: Reader(check) for check in ("always", "never")}
    yield made
    for reader in made.values():
        reader.close()


def files(folder: Path) -> dict[str, bytes | None]:
    return {str(p): p.read_bytes() if p.is_file() else None for p in folder.rglob("*") if not p.is_fifo()}


def check_reading(reader: Reader, name: str, path: Path, place: str) -> list[str]:
    """What is wrong with how a forged catalog is read."""
    beside = path.parent
    before = files(beside.parent)
    found = reader.read(name, place, beside)
    faults = [f"{name}: {fault}" for fault in found["faults"]]
    target = beside / "out"
    for file, content in files(beside.parent).items():
        inside = Path(file).is_relative_to(target)
        if inside and content is not None and SECRET in content:
            faults.append(f"{name}: the secret is in {file}")
        if not inside and not file.startswith(str(path)) and before.get(file, b"-") != content:
            faults.append(f"{name}: {file} was written")
    return faults


def check_forgery(
    name: str, original: Path, folder: Path, readers: dict[str, Reader], server: tuple[Path, str]
) -> list[str]:
    """As `check_reading`, in each way of opening."""
    faults: list[str] = []
    for check, reader in readers.items():
        path = forge(folder / check, original, name)
        faults += [f"check={check}: {fault}" for fault in check_reading(reader, name, path, str(path))]
        shutil.rmtree(path.parent)
    served, url = server
    path = forge(folder / "ranges", original, name)
    shutil.copy(path, served / "a.icelite")
    faults += [f"by ranges: {fault}" for fault in check_reading(readers["always"], name, path, f"{url}/a.icelite")]
    shutil.rmtree(folder)
    return faults


CHECKSUMMED = (
    "setting",
    "branch",
    "tag",
    "container",
    "location",
    "node",
    "change",
)
EVERY = 24  # of the forgeries is in the run that is always made


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if number % EVERY == 0 else pytest.mark.campaign)
        for number, name in enumerate(sorted(FORGERIES))
    ],
)
def test_a_forged_catalog_is_read_within_its_budget_or_refused(
    name: str, original: Path, memory: Path, readers: dict[str, Reader], server: tuple[Path, str]
) -> None:
    home = memory / "home"
    home.mkdir()
    assert check_forgery(name, original, home, readers, server) == []


def test_there_are_enough_forgeries() -> None:
    assert len(FORGERIES) >= 150


def test_the_honest_catalog_is_read_whole(original: Path, tmp_path: Path, readers: dict[str, Reader]) -> None:
    """The reader makes its calls, and finds nothing to complain of."""
    path = Path(shutil.copy(original, tmp_path))
    shutil.copy(original.parent / "f.bin", tmp_path)
    found = readers["always"].read("honest", str(path), tmp_path)
    assert found["opened"]
    assert found["calls"] > 100
    assert found["faults"] == []
    assert (tmp_path / "out" / "folder" / "zarr.json").exists()
