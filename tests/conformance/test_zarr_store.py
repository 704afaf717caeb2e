"""zarr's own contract for stores, `zarr.testing.store.StoreTests`, run on `IceliteStore` four times.

`TestOnDisk` and `TestInMemory` read what a writable session has not committed yet; `TestCommitted` commits after
each write that a test makes, so that the same assertions are answered by the catalog's own tables. `TestInObjects`
does so in a repository whose chunks are all in native objects.

The contract's tests are inherited as they are wherever they use keys that a Zarr hierarchy could have. The others
write keys such as ``foo``, chunks of arrays that do not exist, or metadata that is not JSON: all of that icelite
refuses by design. Each of those is overridden here by the same test with valid keys and values; its docstring says
what stood in the way. Nothing is skipped.
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.buffer import Buffer, cpu, default_buffer_prototype
from zarr.core.sync import _collect_aiterator, sync
from zarr.testing.store import StoreTests
from zarr.testing.utils import assert_bytes_equal

from icelite import IceliteStore, Repository, RepositoryConfig, StorageConfig
from icelite.errors import ErrorKind, IceliteError, InvalidInputError, NodeNotFoundError, SessionStateError
from icelite.keys import split_document_key

GROUP = json.dumps({"zarr_format": 3, "node_type": "group", "attributes": {}})
FOUR_BYTES = b"\x01\x02\x03\x04"


def array_document(ndim: int, encoding: str = "default", separator: str = "/") -> str:
    """The ``zarr.json`` of an array with a grid of 2000 chunks along each dimension."""
    return json.dumps(
        {
            "zarr_format": 3,
            "node_type": "array",
            "shape": [2000] * ndim,
            "data_type": "uint8",
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1] * ndim}},
            "chunk_key_encoding": {"name": encoding, "configuration": {"separator": separator}},
            "fill_value": 0,
            "codecs": [{"name": "bytes"}],
            "attributes": {},
        }
    )


def array_of(key: str) -> tuple[str, str]:
    """Path and ``zarr.json`` of the array that a chunk key of the contract belongs to, such as ``foo/c/0.0``."""
    parts = key.split("/")
    position: list[str] = []
    while parts and parts[-1].replace(".", "").isdigit():
        position.insert(0, parts.pop())
    if parts and parts[-1] == "c" and "." not in position[0]:
        return "/".join(parts[:-1]), array_document(len(position))
    separator = "." if "." in position[0] else "/"
    return "/".join(parts), array_document(len("/".join(position).replace(".", "/").split("/")), "v2", separator)


class TestOnDisk(StoreTests[IceliteStore, cpu.Buffer]):
    store_cls = IceliteStore
    buffer_cls = cpu.Buffer

    # -- how the contract reaches the store --------------------------------------------------------------------

    @pytest.fixture
    def storage(self, tmp_path: Path) -> StorageConfig:
        return StorageConfig.filesystem(tmp_path / "store.icelite")

    @pytest.fixture
    def store_kwargs(self, storage: StorageConfig) -> dict[str, Any]:
        """A store is made from a session; the repository is new for each test."""
        return {"session": Repository.create(storage).writable_session("main")}

    async def set(self, store: IceliteStore, key: str, value: Buffer) -> None:
        """Write below the store, through its change set; a chunk's array comes into being with it."""
        changes = store.session.changes
        if (document := split_document_key(key)) is not None:
            changes.nodes.set_document(*document, value.to_bytes().decode())
        else:
            path, text = array_of(key)
            changes.nodes.set_document(path, "zarr.json", text)
            entry, info = changes.nodes.lookup_array(path)
            chunk = info.keys.decode(key.removeprefix(f"{path}/" if path else ""))
            assert chunk is not None
            changes.chunks.set_bytes(entry.node.node_id, chunk, value.to_bytes())
        self.settle(store)

    async def get(self, store: IceliteStore, key: str) -> Buffer:
        """Read below the store, through its change set and its payloads."""
        session = store.session
        if (document := split_document_key(key)) is not None:
            entry = session.changes.nodes.find(document[0])
            assert entry is not None
            return self.buffer_cls.from_bytes(entry.node.documents[document[1]].encode())
        path, _ = array_of(key)
        entry, info = session.changes.nodes.lookup_array(path)
        chunk = info.keys.decode(key.removeprefix(f"{path}/" if path else ""))
        assert chunk is not None
        found = session.changes.chunks.find(entry.node.node_id, chunk)
        assert found is not None
        return self.buffer_cls.from_bytes(session.payloads.read(found, chunk, None))

    def settle(self, store: IceliteStore) -> None:
        """What happens after each write that a test makes: nothing, here."""

    async def write(self, store: IceliteStore, values: dict[str, bytes]) -> None:
        """Write several values through the store."""
        await store._set_many([(key, self.buffer_cls.from_bytes(value)) for key, value in values.items()])
        self.settle(store)

    async def make_array(self, store: IceliteStore, path: str = "a", ndim: int = 1) -> str:
        """Write an array's metadata through the store; the prefix of its chunk keys."""
        head = f"{path}/" if path else ""
        await self.write(store, {f"{head}zarr.json": array_document(ndim).encode()})
        return f"{head}c/"

    # -- what a store says of itself ---------------------------------------------------------------------------

    def test_store_repr(self, store: IceliteStore) -> None:
        """The contract leaves this one to the store."""
        assert repr(store) == f"IceliteStore({store.session!r}, read_only=False)"
        assert str(store) == str(store.session)

    def test_store_supports_writes(self, store: IceliteStore) -> None:
        """The contract leaves this one to the store."""
        assert store.supports_writes
        assert store.supports_deletes

    def test_store_supports_listing(self, store: IceliteStore) -> None:
        """The contract leaves this one to the store."""
        assert store.supports_listing

    def test_consolidated_metadata_is_not_asked_for(self, store: IceliteStore) -> None:
        """An addition: zarr and xarray write and expect a copy of all metadata unless the store says otherwise."""
        assert not store.supports_consolidated_metadata

    async def test_serializable_store(self, store: IceliteStore, storage: StorageConfig) -> None:
        """A writable store refuses to be pickled (two copies could not both commit); a read-only one travels."""
        await self.make_array(store, "foo")
        await self.write(store, {"foo/c/0": FOUR_BYTES})
        with pytest.raises(SessionStateError) as caught:
            pickle.dumps(store)
        assert caught.value.kind == ErrorKind.NOT_PICKLABLE

        if store.session.has_uncommitted_changes:
            store.commit("for the copy")
        original = Repository.open(storage).readonly_session("main").store
        copy = pickle.loads(pickle.dumps(original))
        assert copy == original
        assert copy.read_only == original.read_only
        assert_bytes_equal(
            await copy.get("foo/c/0", default_buffer_prototype()), self.buffer_cls.from_bytes(FOUR_BYTES)
        )

    # -- read-only stores --------------------------------------------------------------------------------------

    async def test_with_read_only_store(self, open_kwargs: dict[str, Any]) -> None:
        """As inherited, with metadata of a group in place of the key ``foo``."""
        store = await self.store_cls.open(**{**open_kwargs, "read_only": True})
        group = self.buffer_cls.from_bytes(GROUP.encode())
        await self._assert_refuses_writes(store)

        writer = store.with_read_only(read_only=False)
        assert not writer._is_open
        assert not writer.read_only
        await writer.set("foo/zarr.json", group)
        assert await store.exists("foo/zarr.json")
        await writer.delete("foo/zarr.json")

        await self._assert_refuses_writes(store)
        await self._assert_refuses_writes(store.with_read_only(read_only=True))

    async def _assert_refuses_writes(self, store: IceliteStore) -> None:
        assert store.read_only
        message = "store was opened in read-only mode and does not support writing"
        with pytest.raises(ValueError, match=message):
            await store.set("foo/zarr.json", self.buffer_cls.from_bytes(GROUP.encode()))
        with pytest.raises(ValueError, match=message):
            await store.delete("foo/zarr.json")
        with pytest.raises(ValueError, match=message):
            await store.delete_dir("foo")

    # -- reading -----------------------------------------------------------------------------------------------

    async def test_getsize_prefix(self, store: IceliteStore) -> None:
        """The inherited keys would put the node ``cc`` inside an array at the root; here both are arrays below it.

        The sibling that shares the string prefix, which newer releases of zarr test, is here for all of them.
        """
        await self.make_array(store, "a", ndim=2)
        await self.make_array(store, "aa")
        chunks = {f"a/c/{i}/{j}": FOUR_BYTES for i in range(2) for j in range(2)}
        await self.write(store, {**chunks, "aa/c/0": FOUR_BYTES})
        assert await store.getsize_prefix("a/c") == 16
        assert await store.getsize_prefix("a/c/1") == 8
        assert await store.getsize_prefix("a") == 16 + len(array_document(2))

    @pytest.mark.parametrize(
        "key_ranges",
        [
            [],
            [("zarr.json", RangeByteRequest(0, 2))],
            [("c/0", RangeByteRequest(0, 2)), ("zarr.json", None)],
            [("c/0/0", RangeByteRequest(0, 2)), ("c/0/1", SuffixByteRequest(2)), ("c/0/2", OffsetByteRequest(2))],
        ],
    )
    async def test_get_partial_values(self, store: IceliteStore, key_ranges: list[tuple[str, ByteRequest]]) -> None:
        """As inherited, with ``zarr.json`` holding metadata in place of its own name."""
        for key, _ in key_ranges:
            if key != "zarr.json":
                await self.set(store, key, self.buffer_cls.from_bytes(key.encode()))
        if not await store.exists("zarr.json"):
            await self.set(store, "zarr.json", self.buffer_cls.from_bytes(GROUP.encode()))
        prototype = default_buffer_prototype()
        observed = await store.get_partial_values(prototype, (item for item in key_ranges))  # an iterable, once
        expected = [await store.get(key, prototype, byte_range) for key, byte_range in key_ranges]
        assert None not in expected
        assert [buffer.to_bytes() for buffer in observed] == [buffer.to_bytes() for buffer in expected]

    if hasattr(StoreTests, "test_get_bytes"):  # zarr before 3.2

        async def test_get_bytes(self, store: IceliteStore) -> None:
            """As inherited, with metadata as the value, and a valid key that has none."""
            await self.set(store, "zarr.json", self.buffer_cls.from_bytes(GROUP.encode()))
            assert await store._get_bytes("zarr.json", prototype=default_buffer_prototype()) == GROUP.encode()
            with pytest.raises(FileNotFoundError):
                await store._get_bytes("foo/zarr.json", prototype=default_buffer_prototype())

        def test_get_bytes_sync(self, store: IceliteStore) -> None:
            """As inherited, with metadata as the value."""
            sync(self.set(store, "zarr.json", self.buffer_cls.from_bytes(GROUP.encode())))
            assert store._get_bytes_sync("zarr.json", prototype=default_buffer_prototype()) == GROUP.encode()

        async def test_get_json(self, store: IceliteStore) -> None:
            """As inherited, with metadata as the value."""
            await self.set(store, "zarr.json", self.buffer_cls.from_bytes(GROUP.encode()))
            assert await store._get_json("zarr.json", prototype=default_buffer_prototype()) == json.loads(GROUP)

        def test_get_json_sync(self, store: IceliteStore) -> None:
            """As inherited, with metadata as the value."""
            sync(self.set(store, "zarr.json", self.buffer_cls.from_bytes(GROUP.encode())))
            assert store._get_json_sync("zarr.json", prototype=default_buffer_prototype()) == json.loads(GROUP)

    async def test_exists(self, store: IceliteStore) -> None:
        """As inherited, with a key that could exist in place of ``foo``, and metadata as the value."""
        assert not await store.exists("foo/zarr.json")
        assert not await store.exists("foo/c/0")
        await self.write(store, {"foo/zarr.json": array_document(1).encode()})
        assert await store.exists("foo/zarr.json")
        assert not await store.exists("foo/c/0")

    # -- writing -----------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("key", ["zarr.json", "c/0", "foo/c/0.0", "foo/0/0"])
    @pytest.mark.parametrize("data", [FOUR_BYTES, b""])
    async def test_set(self, store: IceliteStore, key: str, data: bytes) -> None:
        """As inherited, after the array that the key belongs to; ``zarr.json`` takes a group's metadata."""
        if key == "zarr.json":
            data = GROUP.encode()
        else:
            path, text = array_of(key)
            await self.write(store, {f"{path}/zarr.json".lstrip("/"): text.encode()})
        await self.write(store, {key: data})
        assert_bytes_equal(await self.get(store, key), self.buffer_cls.from_bytes(data))

    async def test_set_not_open(self, store_not_open: IceliteStore) -> None:
        """As inherited, after the chunk's array."""
        assert not store_not_open._is_open
        await self.make_array(store_not_open, "")
        await self.write(store_not_open, {"c/0": FOUR_BYTES})
        assert_bytes_equal(await self.get(store_not_open, "c/0"), self.buffer_cls.from_bytes(FOUR_BYTES))

    async def test_set_many(self, store: IceliteStore) -> None:
        """As inherited; its keys would put arrays inside an array, so these are of one hierarchy."""
        values = {
            "zarr.json": GROUP.encode(),
            "foo/zarr.json": array_document(2).encode(),
            "foo/c/0/0": b"first",
            "foo/c/0/1": b"second",
            "bar/zarr.json": array_document(2, "v2", ".").encode(),
            "bar/0.0": b"third",
        }
        await self.write(store, values)
        for key, value in values.items():
            assert (await self.get(store, key)).to_bytes() == value

    @pytest.mark.parametrize(
        ("key", "kind"),
        [
            ("foo", "invalid-key"),
            ("foo/bar.txt", "invalid-key"),
            ("a/c/0/0", "invalid-key"),
            ("a/c/00", "invalid-key"),
            ("a/c/-1", "invalid-key"),
            ("a/0", "invalid-key"),
            ("a/c/2000", "invalid-chunk-index"),
            ("b/c/0", "node-not-found"),
            ("zarr.json", "bad-metadata"),
            ("a/b/zarr.json", "invalid-path"),
            ("a//zarr.json", "invalid-key"),
            ("/zarr.json", "invalid-key"),
        ],
    )
    async def test_what_is_not_zarr_is_refused(self, store: IceliteStore, key: str, kind: str) -> None:
        """An addition: the reason for the overrides. The error tells which kind of key it was, and nothing is kept."""
        await self.make_array(store, "a")
        before = await _collect_aiterator(store.list())
        value = GROUP.encode() if key == "a/b/zarr.json" else FOUR_BYTES
        with pytest.raises((InvalidInputError, NodeNotFoundError)) as caught:
            await store.set(key, self.buffer_cls.from_bytes(value))
        assert isinstance(caught.value, IceliteError)
        assert caught.value.kind == kind
        assert await _collect_aiterator(store.list()) == before

    async def test_set_if_not_exists(self, store: IceliteStore) -> None:
        """As inherited, with chunks of an array in place of the keys ``k`` and ``k2``."""
        await self.set(store, "k/c/0", self.buffer_cls.from_bytes(b"0000"))
        new = self.buffer_cls.from_bytes(b"1111")
        await store.set_if_not_exists("k/c/0", new)
        await store.set_if_not_exists("k/c/1", new)
        self.settle(store)
        assert_bytes_equal(await store.get("k/c/0", default_buffer_prototype()), self.buffer_cls.from_bytes(b"0000"))
        assert_bytes_equal(await store.get("k/c/1", default_buffer_prototype()), new)

    # -- deleting ----------------------------------------------------------------------------------------------

    async def test_delete(self, store: IceliteStore) -> None:
        """As inherited, with metadata as the value; also a chunk, and then the array with what it still holds."""
        await self.make_array(store, "foo")
        await self.write(store, {"foo/c/0": FOUR_BYTES, "foo/c/1": FOUR_BYTES})
        await store.delete("foo/c/0")
        assert not await store.exists("foo/c/0")
        assert await store.exists("foo/c/1")
        await store.delete("foo/zarr.json")
        assert not await store.exists("foo/zarr.json")
        assert not await store.exists("foo/c/1")

    async def test_delete_dir(self, store: IceliteStore) -> None:
        """As inherited, with metadata as the values."""
        await self.write(store, {"zarr.json": GROUP.encode(), "foo-bar/zarr.json": GROUP.encode()})
        await self.make_array(store, "foo")
        await self.write(store, {"foo/c/0": b"chunk"})
        await store.delete_dir("foo")
        assert await store.exists("zarr.json")
        assert await store.exists("foo-bar/zarr.json")
        assert not await store.exists("foo/zarr.json")
        assert not await store.exists("foo/c/0")

    async def test_delete_nonexistent_key_does_not_raise(self, store: IceliteStore) -> None:
        """As inherited, with keys that could exist."""
        await store.delete("nonexistent/zarr.json")
        await store.delete("nonexistent/c/0")
        await self.make_array(store, "foo")
        await store.delete("foo/c/0")

    async def test_clear(self, store: IceliteStore) -> None:
        """As inherited, with a chunk in place of the key ``key``."""
        await self.set(store, "foo/c/0", self.buffer_cls.from_bytes(b"something"))
        await store.clear()
        self.settle(store)
        assert await store.is_empty("")

    # -- listing -----------------------------------------------------------------------------------------------

    async def test_is_empty(self, store: IceliteStore) -> None:
        """As inherited, with a group at ``foo/bar`` in place of a value there."""
        assert await store.is_empty("")
        await self.set(store, "foo/bar/zarr.json", self.buffer_cls.from_bytes(GROUP.encode()))
        assert not await store.is_empty("")
        assert await store.is_empty("fo")
        assert not await store.is_empty("foo/")
        assert not await store.is_empty("foo")
        assert await store.is_empty("spam/")

    async def test_list(self, store: IceliteStore) -> None:
        """As inherited, with metadata as the value of ``zarr.json``."""
        assert await _collect_aiterator(store.list()) == ()
        values = {"foo/zarr.json": array_document(1).encode(), **{f"foo/c/{i}": b"" for i in range(10)}}
        await self.write(store, values)
        assert sorted(await _collect_aiterator(store.list())) == sorted(values)

    async def test_list_prefix(self, store: IceliteStore) -> None:
        """As inherited, with metadata as the values; also prefixes that end inside a name or an array."""
        nodes = ("", "a/", "a/b/", "a/b/c/", "ab/")
        values = {f"{node}zarr.json": GROUP.encode() for node in nodes}
        values["a/b/d/zarr.json"] = array_document(2).encode()
        values |= {f"a/b/d/c/{i}/{j}": b"" for i in (0, 1, 10) for j in (0, 1)}
        await self.write(store, values)
        for prefix in (*nodes, "a", "a/b/d", "a/b/d/c/1", "a/b/d/c/1/", "z"):
            observed = await _collect_aiterator(store.list_prefix(prefix))
            assert sorted(observed) == sorted(key for key in values if key.startswith(prefix))

    async def test_list_empty_path(self, store: IceliteStore) -> None:
        """As inherited, with metadata as the values and an array for the chunk of ``foo/baz``."""
        values = {
            "foo/bar/zarr.json": array_document(1).encode(),
            "foo/bar/c/1": b"",
            "foo/baz/zarr.json": array_document(1).encode(),
            "foo/baz/c/0": b"",
        }
        await self.write(store, values)
        for observed in (store.list(), store.list_prefix("")):
            assert sorted(await _collect_aiterator(observed)) == sorted(values)
        observed = await _collect_aiterator(store.list_prefix("foo/bar/"))
        assert sorted(observed) == ["foo/bar/c/1", "foo/bar/zarr.json"]

    async def test_list_dir(self, store: IceliteStore) -> None:
        """As inherited, with metadata as the values, and the deeper keys in a group: an array has no nodes inside."""
        roots: list[tuple[str, dict[str, bytes]]] = [
            ("foo", {"foo/zarr.json": array_document(1).encode(), "foo/c/1": b"\x01"}),
            ("bar/foo", {"bar/foo/zarr.json": GROUP.encode(), "bar/foo/second_child/zarr.json": GROUP.encode()}),
        ]
        assert await _collect_aiterator(store.list_dir("")) == ()
        for root, values in roots:
            assert await _collect_aiterator(store.list_dir(root)) == ()
            await self.write(store, values)
            expected = sorted({key.removeprefix(f"{root}/").split("/")[0] for key in values})
            assert sorted(await _collect_aiterator(store.list_dir(root))) == expected
            assert sorted(await _collect_aiterator(store.list_dir(f"{root}/"))) == expected
        assert sorted(await _collect_aiterator(store.list_dir(""))) == ["bar", "foo"]
        assert sorted(await _collect_aiterator(store.list_dir("foo/c"))) == ["1"]

    async def test_list_dir_keeps_the_order_of_creation(self, store: IceliteStore) -> None:
        """An addition: xarray shows variables in this order."""
        names = ["zeta", "alpha", "mu"]
        for name in names:
            await self.write(store, {f"{name}/zarr.json": GROUP.encode()})
        assert list(await _collect_aiterator(store.list_dir(""))) == names

    # -- the synchronous twin ----------------------------------------------------------------------------------

    def test_get_sync(self, store: IceliteStore) -> None:
        """As inherited, with a chunk in place of the key ``sync_get``."""
        sync(self.set(store, "a/c/0", self.buffer_cls.from_bytes(FOUR_BYTES)))
        assert_bytes_equal(store.get_sync("a/c/0"), self.buffer_cls.from_bytes(FOUR_BYTES))

    def test_get_sync_missing(self, store: IceliteStore) -> None:
        """As inherited, with keys that could exist."""
        assert store.get_sync("nonexistent/zarr.json") is None
        assert store.get_sync("nonexistent/c/0") is None

    def test_set_sync(self, store: IceliteStore) -> None:
        """As inherited, with a chunk in place of the key ``sync_set``."""
        sync(self.make_array(store))
        store.set_sync("a/c/0", self.buffer_cls.from_bytes(FOUR_BYTES))
        self.settle(store)
        assert_bytes_equal(sync(self.get(store, "a/c/0")), self.buffer_cls.from_bytes(FOUR_BYTES))

    def test_delete_sync(self, store: IceliteStore) -> None:
        """As inherited, with a chunk in place of the key ``sync_delete``."""
        sync(self.make_array(store))
        store.set_sync("a/c/0", self.buffer_cls.from_bytes(FOUR_BYTES))
        self.settle(store)
        store.delete_sync("a/c/0")
        self.settle(store)
        assert store.get_sync("a/c/0") is None

    def test_delete_sync_missing(self, store: IceliteStore) -> None:
        """As inherited, with keys that could exist."""
        store.delete_sync("nonexistent/zarr.json")
        store.delete_sync("nonexistent/c/0")

    @pytest.mark.parametrize("direction", ["set_async_get_sync", "set_sync_get_async"])
    async def test_sync_async_set_get_parity(self, store: IceliteStore, direction: str) -> None:
        """As inherited, with a chunk in place of the key ``parity_set_get``."""
        key = f"{await self.make_array(store)}0"
        value = self.buffer_cls.from_bytes(FOUR_BYTES)
        if direction == "set_async_get_sync":
            await store.set(key, value)
            self.settle(store)
            result = store.get_sync(key)
        else:
            store.set_sync(key, value)
            self.settle(store)
            result = await store.get(key, prototype=default_buffer_prototype())
        assert_bytes_equal(result, value)

    async def test_delete_sync_visible_to_async_get(self, store: IceliteStore) -> None:
        """As inherited, with a chunk in place of the key ``parity_delete``."""
        key = f"{await self.make_array(store)}0"
        await self.write(store, {key: FOUR_BYTES})
        store.delete_sync(key)
        assert await store.get(key, prototype=default_buffer_prototype()) is None

    @pytest.mark.parametrize(
        "byte_range",
        [None, RangeByteRequest(1, 4), OffsetByteRequest(1), SuffixByteRequest(1), RangeByteRequest(10, 20)],
        ids=["none", "range", "offset", "suffix", "range-past-eof"],
    )
    async def test_get_sync_byte_range_parity(self, store: IceliteStore, byte_range: ByteRequest | None) -> None:
        """As inherited, with a chunk in place of the key ``parity_byte_range``."""
        key = f"{await self.make_array(store)}0"
        await self.write(store, {key: FOUR_BYTES})
        observed = await store.get(key, prototype=default_buffer_prototype(), byte_range=byte_range)
        assert_bytes_equal(store.get_sync(key, byte_range=byte_range), observed)


class TestInMemory(TestOnDisk):
    """The same on a repository in memory."""

    @pytest.fixture
    def storage(self) -> StorageConfig:
        return StorageConfig.memory()


class TestCommitted(TestOnDisk):
    """The same with a commit after each write, so that values come from the catalog and not from the change set."""

    def settle(self, store: IceliteStore) -> None:
        if store.session.has_uncommitted_changes:
            store.commit("after a write")


class TestInObjects(TestCommitted):
    """Every chunk is in an object that it shares with its neighbours."""

    @pytest.fixture
    def store_kwargs(self, storage: StorageConfig) -> dict[str, Any]:
        config = RepositoryConfig(inline_chunk_threshold_bytes=0, object_target_bytes=16)
        return {"session": Repository.create(storage, config, objects="chunks").writable_session("main")}
