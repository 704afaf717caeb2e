"""Hostile text wherever icelite takes some: keys and paths, locations, metadata documents, kerchunk references.

Whatever it is, the answer is a value or an `IceliteError` with a kind, of bounded length, and nothing is half done.
Where zarr itself looks at metadata first, its own errors may come through. Texts are given to the API, and written into
the rows of a catalog as a stranger would.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import re
import resource
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zarr.abc.store import RangeByteRequest
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from icelite import IceliteError, IceliteStore, Repository, Session, StorageConfig
from icelite.kerchunk import write_references

SECONDS = 900  # for a test's examples without an end; the process stops with a traceback
MEMORY_BYTES = 300 << 20  # that a test may add at its peak
LONGEST_MESSAGE = 20_000
SECRET = b"the secret of the tests"
OF_ZARR = (
    ValueError,
    TypeError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    OverflowError,
    AttributeError,
    IndexError,
)

GROUP = json.dumps({"zarr_format": 3, "node_type": "group", "attributes": {}})
ARRAY: dict[str, Any] = {
    "zarr_format": 3,
    "node_type": "array",
    "shape": [3],
    "data_type": "uint8",
    "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1]}},
    "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
    "fill_value": 0,
    "codecs": [{"name": "bytes"}],
    "attributes": {},
}
OLD_ARRAY: dict[str, Any] = {
    "zarr_format": 2,
    "shape": [3],
    "chunks": [1],
    "dtype": "|u1",
    "fill_value": 0,
    "order": "C",
    "compressor": None,
    "filters": None,
}

fuzzed = settings(
    max_examples=500 if os.environ.get("ICELITE_CAMPAIGN") else 60,
    suppress_health_check=list(HealthCheck),
    deadline=None,
)


@pytest.fixture(autouse=True)
def bounds() -> Iterator[None]:
    """Nothing takes for ever, and nothing takes much memory."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    faulthandler.dump_traceback_later(SECONDS, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown << 10 < MEMORY_BYTES


def answer(call: Callable[[], Any], *of_zarr: type[Exception]) -> Any:
    """What a call gives, or the `IceliteError` that it ends in; others pass through but those that are zarr's own."""
    try:
        return call()
    except (IceliteError, *of_zarr) as caught:
        error = caught
    if isinstance(error, IceliteError):
        assert error.kind != "unknown", error
        assert len(str(error)) < LONGEST_MESSAGE
    return error


def buffer(data: bytes) -> Any:
    return default_buffer_prototype().buffer.from_bytes(data)


def listed(keys: Any) -> list[str]:
    async def take() -> list[str]:
        return [key async for key in keys]

    return sync(take())


# ---- texts

CHARACTERS = st.characters() | st.sampled_from("./\\:%?#@ \0\n\x1b\x7f\u00a0\u202e\u2028\ud800\ufeff~*'\"{}[]|")
SEGMENTS = st.one_of(
    st.sampled_from(["x", "g", "c", "0", "1", "2", "3", "00", "-1", "1.0", "0.0", "zarr.json", ".zarray", ".zgroup"]),
    st.sampled_from([".zattrs", ".zmetadata", "..", ".", "", " ", "...", ". ", "c.0", "C:", "~", "%2e%2e", "\u0663"]),
    st.sampled_from(["9" * 30, "9" * 5_000, "x" * 300, "x" * 5_000, "con", "a\0b", "\ud800", "e\u0301", "\u00e9"]),
    st.text(CHARACTERS, max_size=6),
)
PATHS = st.one_of(
    st.lists(SEGMENTS, max_size=6).map("/".join),
    st.tuples(SEGMENTS, st.sampled_from([1, 2, 300, 5_000])).map(lambda drawn: "/".join([drawn[0]] * drawn[1])),
    st.text(CHARACTERS, max_size=20),
)


def writable() -> Session:
    session = Repository.create(StorageConfig.memory()).writable_session("main")
    for path, document in (("", GROUP), ("g", GROUP), ("x", json.dumps(ARRAY))):
        session.store.set_sync(f"{path}/zarr.json".lstrip("/"), buffer(document.encode()))
    session.store.set_sync("x/c/0", buffer(b"0"))
    return session


@fuzzed
@given(PATHS, st.sampled_from([b"v", b"", GROUP.encode(), json.dumps(ARRAY).encode(), b"\xff"]))
def test_keys(key: str, value: bytes) -> None:
    session = writable()
    store = session.store
    answer(lambda: store.get_sync(key))
    answer(lambda: store.get_sync(key, byte_range=RangeByteRequest(0, 1)))
    for read in (store.exists, store.getsize, store.getsize_prefix):
        answer(lambda read=read: sync(read(key)))
    for listing in (store.list_prefix, store.list_dir):
        answer(lambda listing=listing: listed(listing(key)))
    before = listed(store.list())
    written = answer(lambda: store.set_sync(key, buffer(value)))
    if isinstance(written, IceliteError):
        assert listed(store.list()) == before
    else:
        assert store.get_sync(key).to_bytes() == value
        assert key in listed(store.list())
    answer(lambda: sync(store.set_if_not_exists(key, buffer(value))))
    session.commit("keys", allow_empty=True)
    removal = writable().store
    deleted = answer(lambda: removal.delete_sync(key))
    if not isinstance(deleted, IceliteError):
        assert isinstance(removal.get_sync(key), type(None))
    answer(lambda: sync(removal.delete_dir(key)))
    assert set(listed(removal.list())) <= set(before)


@fuzzed
@given(PATHS, PATHS)
def test_node_paths(path: str, other: str) -> None:
    session = writable()
    for call in (
        lambda: session.chunk_refs(path),
        lambda: session.chunk_type(path, [0]),
        lambda: session.store.set_virtual_ref(f"{path}/c/0", "file:///tmp/x", offset=0, length=1),
    ):
        answer(call)
    few = [text for text in (path, other) if len(text) < 2_000]  # zarr writes all parents, each with its whole path
    for create in (
        lambda: zarr.create_group(session.store, path=path),
        lambda: zarr.create_array(session.store, name=other, shape=(1,), dtype="u1"),
    ):
        if len(few) == 2:
            answer(create, *OF_ZARR)
    paths = {key.rpartition("/")[0] for key in listed(session.store.list()) if key.endswith("zarr.json")}
    assert all(".." not in found.split("/") and found.isprintable() for found in paths)
    answer(lambda: zarr.open_group(session.store, path=path, mode="r"), *OF_ZARR, FileNotFoundError)
    session.commit("paths", allow_empty=True)


def test_moves_are_in_the_same_words(tmp_path: Path) -> None:
    repo = Repository.create(tmp_path / "a.icelite")
    with repo.transaction("main", message="x") as store:
        zarr.create_group(store).create_group("g/h")

    @fuzzed
    @given(PATHS, PATHS)
    def moves(old: str, new: str) -> None:
        session = repo.rearrange_session("main")
        answer(lambda: session.move(old, new))
        answer(lambda: session.move("/g", new))
        paths = listed(session.store.list())
        assert all(".." not in path.split("/") and path.isprintable() for path in paths)

    moves()


# ---- locations

HOSTS = st.one_of(
    st.sampled_from(["", "b", "localhost", "127.0.0.1", "[::1]", "[::1", "169.254.169.254", "a:b@h", "h:99999", "h:0"]),
    st.sampled_from(["u:p@b", "B_b", "x" * 300, "..", "b\r\nHost: x", "\u00fc.de", "xn--", "b%00", "C:", "h@", "@"]),
    st.text(CHARACTERS, max_size=8),
)
HEADS = st.one_of(
    st.sampled_from(["", "/", "//", "./", "~/", "../", "file:", "file:/", "file://", "file:///", "FILE:///", "vcc://"]),
    st.sampled_from(
        ["s3://", "S3://", "s3:/", "s3a://", "http://", "https://", "gs://", "az://", "abfs://", "memory://"]
    ),
    st.sampled_from(["simplecache::file:///", "zip://x::file:///", "reference://", "data:", "ftp://", "ssh://"]),
    st.sampled_from(["C:\\", "C:/", "\\\\server\\share\\", "%2e%2e/", "file://localhost/", "\\\\?\\C:\\", "nul"]),
)
QUERIES = st.sampled_from(
    ["", "?", "?a=b", "#x", "?X-Amz-Signature=abc", "?sig=%41&token=1", "?%53ig=x", "%", "%zz", "%00"]
)
LOCATIONS = st.one_of(
    st.tuples(HEADS, HOSTS, st.lists(SEGMENTS, max_size=4).map("/".join), QUERIES).map(
        lambda parts: f"{parts[0]}{parts[1]}{'/' if parts[1] else ''}{parts[2]}{parts[3]}"
    ),
    st.sampled_from(
        ["victim/secret", "../victim/secret", "folder/secret", "link", "a.icelite", "pipe", "loop", ".netrc", "f.bin"]
    ).flatmap(lambda path: st.sampled_from([path, f"./{path}", f"%2e/{path}", f"g/../{path}", f"{{home}}/{path}"])),
    st.text(CHARACTERS, max_size=30),
    st.sampled_from(["x/" * 5_000 + "y", "x" * 10_000, "%2e" * 3_000, "file:///" + "x/" * 4_000 + "y"]),
)
NUMBERS = st.sampled_from([0, 1, 5, 100, -1, 2**31, 2**62, 2**63 - 1, 2**63, 2**64, -(2**63), 2**70]) | st.integers()


@fuzzed
@given(LOCATIONS, NUMBERS, NUMBERS, st.booleans(), st.none() | st.text(CHARACTERS, max_size=20))
def test_locations_that_are_given(location: str, offset: int, length: int, validate: bool, etag: str | None) -> None:
    store = writable().store

    def refer() -> None:
        store.set_virtual_ref(
            "x/c/1", location, offset=offset, length=length, checksum=etag, validate_container=validate
        )

    if isinstance(answer(refer), IceliteError):
        assert not sync(store.exists("x/c/1"))
    else:
        assert re.match("[a-z]", location) or location.startswith("/")
        answer(lambda: store.session.all_virtual_chunk_locations())
        answer(lambda: store.session.commit("refers"))


class Forged:
    """A catalog of a stranger beside files that are nobody's business, one row of which is written anew."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self.home.mkdir()
        for victim in (folder / "victim", self.home / "victim"):
            victim.mkdir()
        (folder / "victim" / "secret").write_bytes(SECRET)
        (self.home / ".netrc").write_bytes(SECRET)
        (self.home / "f.bin").write_bytes(b"x" * 100)
        (self.home / "link").symlink_to(folder / "victim" / "secret")
        (self.home / "folder").symlink_to(folder / "victim")
        (self.home / "loop").symlink_to(self.home / "loop")
        self.path = self.home / "a.icelite"
        repo = Repository.create(self.path)
        with repo.transaction("main", message="x") as store:
            zarr.create_array(store, name="x", shape=(3,), chunks=(1,), dtype="u1", compressors=None)[:2] = 1
            store.set_virtual_ref("x/c/2", str(self.home / "f.bin"), offset=0, length=1)
        repo.close()
        self.original = self.path.read_bytes()

    @property
    def out(self) -> Path:
        """An empty folder for exports."""
        shutil.rmtree(self.home / "out", ignore_errors=True)
        (self.home / "out").mkdir()
        return self.home / "out"

    @contextlib.contextmanager
    def opened(self, sql: str, *values: object) -> Iterator[Repository | None]:
        """The repository with some rows changed; None where it is not opened."""
        self.path.write_bytes(self.original)
        connection = sqlite3.connect(self.path)
        connection.execute("PRAGMA ignore_check_constraints = 1")
        try:
            connection.execute(sql, values)
            connection.commit()
        except (UnicodeEncodeError, OverflowError):  # no text, no number of SQLite's
            yield None
            return
        finally:
            connection.close()
        repo = answer(lambda: Repository.open(self.path, check="never"))
        if isinstance(repo, IceliteError):
            yield None
        else:
            with contextlib.closing(repo):
                yield repo


@pytest.fixture
def forged(memory: Path) -> Forged:
    return Forged(memory)


def read_whole(repo: Repository, out: Path) -> list[bytes]:
    """All that a catalog gives, one way or another."""
    session = answer(lambda: repo.readonly_session("main"))
    if isinstance(session, IceliteError):
        return []
    answer(repo.required_access)
    answer(lambda: repr(repo.sources("main")))
    answer(repo.verify_sources)
    answer(session.all_virtual_chunk_locations)
    answer(lambda: repr(session.chunk_refs("x")))
    answer(lambda: repo.diff(to_branch="main"))
    answer(repo.chunk_storage_stats)
    answer(repo.verify)
    answer(lambda: listed(session.store.list()))
    answer(lambda: sync(session.store.getsize_prefix("")))
    found = [answer(lambda key=key: session.store.get_sync(key)) for key in ("x/c/0", "x/c/1", "x/c/2", "x/zarr.json")]
    answer(lambda: repo.export_zarr(out / "zarr"))
    answer(lambda: repo.bundle(out / "bundle.icelite"))
    answer(lambda: zarr.open_array(session.store, path="x", mode="r")[:2], *OF_ZARR, FileNotFoundError)
    found += [file.read_bytes() for file in out.rglob("*") if file.is_file()]
    return [
        each if isinstance(each, bytes) else each.to_bytes() for each in found if not isinstance(each, Exception | None)
    ]


@fuzzed
@given(LOCATIONS, st.sampled_from([1, 2, 2, 2, 3, 9]), NUMBERS, NUMBERS)
def test_locations_in_rows(forged: Forged, location: str, kind: int, offset: int, length: int) -> None:
    text = location.replace("{home}", str(forged.home))
    sql = "UPDATE location SET path = ?, kind = ?, size = NULL, modified_at = NULL, crc32c = NULL WHERE id = 2"
    with forged.opened(sql, text, kind) as repo:
        for data in [] if repo is None else read_whole(repo, forged.out):
            assert SECRET not in data
    with forged.opened("UPDATE chunk_ref SET offset = ?, length = ? WHERE chunk = '2'", offset, length) as repo:
        for data in [] if repo is None else read_whole(repo, forged.out):
            assert SECRET not in data


# ---- metadata

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    NUMBERS,
    st.floats(),
    st.text(CHARACTERS, max_size=12),
    st.sampled_from(
        ["uint8", "|u1", "<f8", "|O", "|V8", "|S999999999", "<U999999999", "NaN", "Infinity", "0x7f", "r8"]
    ),
    st.sampled_from(["bytes", "gzip", "zstd", "blosc", "sharding_indexed", "transpose", "vlen-utf8", "numcodecs.zlib"]),
    st.sampled_from(["regular", "rectilinear", "default", "v2", "/", ".", "", "numpy.datetime64", "struct", "pickle"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda some: (
        st.lists(some, max_size=4)
        | st.dictionaries(
            st.sampled_from(["name", "configuration", "chunk_shape", "separator", "id", "codecs", "level", "endian"])
            | st.text(max_size=4),
            some,
            max_size=3,
        )
    ),
    max_leaves=6,
)


def changed(base: dict[str, Any]) -> st.SearchStrategy[str]:
    """The text of a document with some of its fields hostile, gone, or others besides."""
    names = st.sampled_from(sorted({*base, "dimension_names", "storage_transformers", "must_understand"}))
    return st.tuples(st.dictionaries(names, VALUES, max_size=2), st.sets(names, max_size=1)).map(
        lambda drawn: json.dumps({k: v for k, v in {**base, **drawn[0]}.items() if k not in drawn[1]})
    )


DOCUMENTS = st.one_of(
    changed(ARRAY),
    changed(OLD_ARRAY),
    changed(json.loads(GROUP)),
    VALUES.map(json.dumps),
    st.sampled_from(["", "{", "[" * 100_000, '{"a":' * 100_000, "9" * 5_000, '"\\ud800"', "\ufeff{}", "{}\0", "NaN"]),
    st.text(CHARACTERS, max_size=20),
)
NAMES = st.sampled_from(["zarr.json", "zarr.json", ".zarray", ".zgroup", ".zattrs"])


@fuzzed
@given(NAMES, DOCUMENTS, st.sampled_from(["n", "x", "g", ""]))
def test_documents_that_are_given(name: str, text: str, path: str) -> None:
    session = writable()
    store = session.store
    key = f"{path}/{name}".lstrip("/")
    before = {key: store.get_sync(key).to_bytes() for key in listed(store.list())}
    written = answer(lambda: store.set_sync(key, buffer(text.encode(errors="surrogatepass"))))
    if isinstance(written, IceliteError):
        assert {key: store.get_sync(key).to_bytes() for key in listed(store.list())} == before
        return
    assert store.get_sync(key).to_bytes() == text.encode()
    for chunk in ("c/0", "0", "c", "c/0/0", "0.0"):
        answer(lambda chunk=chunk: store.set_sync(f"{path}/{chunk}", buffer(b"1")))
        answer(lambda chunk=chunk: store.get_sync(f"{path}/{chunk}"))
    for call in (lambda: session.chunk_refs(path), lambda: session.chunk_type(path, [0]), lambda: session.status()):
        answer(call)
    answer(lambda: zarr.open(store, path=path, mode="r"), *OF_ZARR, FileNotFoundError)
    session.commit("documents", allow_empty=True)


@fuzzed
@given(DOCUMENTS, st.sampled_from([2, 3, 3]), NAMES)
def test_documents_in_rows(forged: Forged, text: str, zarr_format: int, name: str) -> None:
    sql = "UPDATE node SET metadata = ?, zarr_format = ?, crc32c = NULL WHERE path = 'x'"
    content = text if zarr_format == 3 else json.dumps({name: text})
    with forged.opened(sql, content, zarr_format) as repo:
        if repo is not None:
            read_whole(repo, forged.out)


# ---- kerchunk references


def old_array(**changes: Any) -> str:
    return json.dumps({**OLD_ARRAY, **changes})


OLD_GROUP = '{"zarr_format":2}'
GENERATOR = {"key": "b/{{i}}", "url": "/tmp/x{{i}}", "offset": "0", "length": "1", "dimensions": {"i": {"stop": 2}}}
TEMPLATES = st.sampled_from(
    ["{{u}}", "{{ 'a' * 9 }}", "{{f(c=u)}}", "{{u.__class__}}", "{{ self }}", "{{ range(9) }}", "{{ 'a'|upper }}", "{{"]
)
ENTRIES = st.one_of(
    SCALARS,
    TEMPLATES,
    st.sampled_from(["base64:AA==", "base64:", "base64:%", "file:///x", "s3://b/k", OLD_GROUP]),
    st.sampled_from(
        [old_array(), old_array(shape=[2, 2]), old_array(shape=[10**30], chunks=[1]), old_array(chunks=[0])]
    ),
    st.tuples(LOCATIONS | TEMPLATES, NUMBERS, NUMBERS).map(list),
    VALUES,
)
REFERENCE_KEYS = st.one_of(
    st.sampled_from(
        [".zgroup", ".zattrs", ".zarray", "zarr.json", ".zmetadata", "b/.zarray", "b/.zattrs", "b/0", "b/1"]
    ),
    st.sampled_from(["b/0.0", "b/c/0", "b", "a/b/.zgroup", "../x/.zgroup", "b/00", "b/-1", "b/9" + "9" * 30, "\ud800"]),
    PATHS,
)
GENERATORS = st.builds(
    lambda changes: {**GENERATOR, **changes},
    st.dictionaries(
        st.sampled_from(sorted(GENERATOR)),
        VALUES
        | TEMPLATES
        | st.dictionaries(st.sampled_from("ij"), st.dictionaries(st.sampled_from(["start", "stop", "step"]), SCALARS)),
        max_size=2,
    ),
)
REFERENCES = st.fixed_dictionaries(
    {"version": st.just(1) | SCALARS, "refs": st.dictionaries(REFERENCE_KEYS, ENTRIES, max_size=6) | VALUES},
    optional={
        "templates": st.dictionaries(st.text(max_size=3), ENTRIES) | VALUES,
        "gen": st.lists(GENERATORS, max_size=2) | VALUES,
    },
)


def taken(content: Any, store: IceliteStore) -> None:
    """References are taken whole, or refused and nothing is written."""
    if isinstance(answer(lambda: write_references(content, store, root="/tmp/none")), IceliteError):
        assert not store.session.has_uncommitted_changes
    else:
        store.session.commit("references", allow_empty=True)


@fuzzed
@given(REFERENCES | st.dictionaries(REFERENCE_KEYS, ENTRIES, max_size=5) | VALUES, st.booleans())
def test_kerchunk_references(content: Any, described: bool) -> None:
    if described and isinstance(content, dict) and isinstance(content.get("refs"), dict):
        content = {**content, "refs": {".zgroup": OLD_GROUP, "b/.zarray": old_array(), **content["refs"]}}
    taken(content, Repository.create(StorageConfig.memory()).writable_session("main").store)


@fuzzed
@given(st.data())
def test_kerchunk_files(memory: Path, data: st.DataObject) -> None:
    """The bytes of a file: of one that is sound, some of which are others or missing."""
    sound = {
        "version": 1,
        "templates": {"u": "/tmp/x", "f": "{{c}}/y"},
        "gen": [GENERATOR],
        "refs": {".zgroup": OLD_GROUP, "b/.zarray": old_array(), "b/2": ["{{f(c=u)}}", 0, 1]},
    }
    content = bytearray(json.dumps(sound).encode())
    for place, byte in data.draw(
        st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=4)
    ):
        content[place] = byte
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content))) :]
    file = memory / "refs.json"
    file.write_bytes(content)
    taken(str(file), Repository.create(StorageConfig.memory()).writable_session("main").store)
