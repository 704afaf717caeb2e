"""Histories with branches, forks and resets, against a model that copies everything; and what a commit costs."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from icelite.catalog import chunks as chunk_table
from icelite.catalog import nodes as node_table
from icelite.catalog import refs, snapshots
from icelite.change_set import chunks as pending
from icelite.errors import ConflictError
from icelite.repository import Repository
from icelite.session import Session
from icelite.storage import in_memory_storage
from icelite.store import IceliteStore
from icelite.types import INITIAL_SNAPSHOT_ID, Chunk

Keys = dict[str, bytes]  # a whole hierarchy: every key with its value

SOURCE_BYTES = random.Random(1).randbytes(4096)
ARRAYS = {"a": (4,), "g/b": (2, 3), "g/h/c": (), "g/h/d": (12,)}  # path to shape, in chunks of one element
GROUPS = ["", "g", "g/h", "g-2"]
BRANCHES = ["main", "b1", "b2", "b3"]


def group_document(note: int) -> str:
    return json.dumps({"zarr_format": 3, "node_type": "group", "attributes": {"note": note}})


def array_document(shape: tuple[int, ...], note: int = 0, separator: str = "/") -> str:
    return json.dumps(
        {
            "zarr_format": 3,
            "node_type": "array",
            "shape": shape,
            "data_type": "uint8",
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1] * len(shape)}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": separator}},
            "fill_value": 0,
            "codecs": [{"name": "bytes"}],
            "attributes": {"note": note},
        }
    )


def put(store: IceliteStore, key: str, value: bytes) -> None:
    store.set_sync(key, default_buffer_prototype().buffer.from_bytes(value))


def contents(session: Session) -> Keys:
    """Everything a session sees, through zarr's interface."""

    async def keys() -> list[str]:
        return [key async for key in session.store.list()]

    found = {}
    for key in sync(keys()):
        value = session.store.get_sync(key)
        assert value is not None, key
        assert key not in found, key
        found[key] = value.to_bytes()
    return found


def below(keys: Keys, path: str) -> list[str]:
    return [key for key in keys if key.startswith(path + "/") or path == ""]


class History:
    """Random work on one repository, done to the model too."""

    def __init__(self, seed: int, source: Path) -> None:
        self.random = random.Random(seed)
        self.url = source.as_uri()
        self.storage = in_memory_storage()
        self.repository = Repository.create(self.storage)
        self.snapshots: dict[str, Keys] = {INITIAL_SNAPSHOT_ID: {}}
        self.parents: dict[str, str | None] = {INITIAL_SNAPSHOT_ID: None}
        self.branches = {"main": INITIAL_SNAPSHOT_ID}
        self.tags: dict[str, str] = {}

    def run(self, steps: int) -> None:
        acts = [self.work] * 6 + [self.work_in_vain, self.point_branch, self.point_branch, self.delete_branch, self.tag]
        for _ in range(steps):
            self.random.choice(acts)()

    # -- history -----------------------------------------------------------------------------------------------

    def work(self) -> None:
        """One session on some branch: edits, and a commit where they left anything to commit."""
        branch = self.random.choice(sorted(self.branches))
        session = self.repository.writable_session(branch)
        keys = self.edited(session)
        base = session.snapshot_id
        empty = self.random.random() < 0.1
        if not (empty or session.has_uncommitted_changes):
            assert keys == self.snapshots[base]
            return
        new = session.commit("work", allow_empty=empty)
        assert contents(session) == keys  # read-only now, on what it committed
        self.snapshots[new], self.parents[new], self.branches[branch] = keys, base, new

    def work_in_vain(self) -> None:
        """A session whose branch moves away under it."""
        branch = self.random.choice(sorted(self.branches))
        session = self.repository.writable_session(branch)
        self.edited(session)
        self.work()
        if self.branches[branch] != session.snapshot_id:
            with pytest.raises(ConflictError):
                session.commit("too late", allow_empty=True)

    def point_branch(self) -> None:
        """Fork from, or reset to, any snapshot there ever was."""
        name, target = self.random.choice(BRANCHES), self.random.choice(list(self.snapshots))
        if name in self.branches:
            self.repository.reset_branch(name, target)
        else:
            self.repository.create_branch(name, target)
        self.branches[name] = target

    def delete_branch(self) -> None:
        name = self.random.choice(BRANCHES[1:])
        if name in self.branches:
            self.repository.delete_branch(name)
            del self.branches[name]

    def tag(self) -> None:
        name, target = f"t{len(self.tags)}", self.random.choice(list(self.snapshots))
        self.repository.create_tag(name, target)
        self.tags[name] = target

    # -- edits -------------------------------------------------------------------------------------------------

    def edited(self, session: Session) -> Keys:
        """Make some random changes; what the session must see then."""
        keys = dict(self.snapshots[session.snapshot_id])
        for _ in range(self.random.randrange(1, 12)):
            edit = self.random.choice(
                [self.write_array] * 2 + [self.write_chunk] * 5 + [self.refer] * 3
                + [self.write_group, self.refer_to_many, self.delete_chunk, self.delete_node, self.discard]
            )  # fmt: skip
            edit(session, keys)
            assert contents(session) == keys
        return keys

    def write_group(self, session: Session, keys: Keys) -> None:
        path = self.random.choice(GROUPS)
        self._put(session, keys, f"{path}/zarr.json".lstrip("/"), group_document(self.random.randrange(3)).encode())

    def write_array(self, session: Session, keys: Keys) -> None:
        path = self.random.choice(list(ARRAYS))
        self._put(session, keys, f"{path}/zarr.json", array_document(ARRAYS[path], self.random.randrange(3)).encode())

    def write_chunk(self, session: Session, keys: Keys) -> None:
        for key in self._some_chunk(keys):
            self._put(session, keys, key, self.random.randbytes(self.random.randrange(5)))

    def refer(self, session: Session, keys: Keys) -> None:
        for key in self._some_chunk(keys):
            offset, length = self.random.randrange(4000), self.random.randrange(1, 90)
            session.store.set_virtual_ref(key, self.url, offset=offset, length=length)
            keys[key] = SOURCE_BYTES[offset : offset + length]

    def refer_to_many(self, session: Session, keys: Keys) -> None:
        """Most chunks of a whole array, in one call."""
        for path in self._some_array(keys):
            grid = ARRAYS[path]
            count = int(np.prod(grid, dtype=int))
            offsets, lengths = ([self.random.randrange(1, 99) for _ in range(count)] for _ in range(2))
            urls = [self.random.choice([self.url, self.url, ""]) for _ in range(count)]
            session.store.set_virtual_refs_arr(path, grid, urls, offsets, lengths)
            for url, position, offset, length in zip(urls, np.ndindex(*grid), offsets, lengths, strict=True):
                if url:
                    keys["/".join([path, "c", *map(str, position)])] = SOURCE_BYTES[offset : offset + length]

    def delete_chunk(self, session: Session, keys: Keys) -> None:
        for key in self._some_chunk(keys):
            session.store.delete_sync(key)
            keys.pop(key, None)

    def delete_node(self, session: Session, keys: Keys) -> None:
        path = self.random.choice([*ARRAYS, *GROUPS, "nowhere"])
        sync(session.store.delete_dir(path))
        for key in below(keys, path):
            del keys[key]

    def discard(self, session: Session, keys: Keys) -> None:
        session.discard_changes()
        keys.clear()
        keys.update(self.snapshots[session.snapshot_id])

    def _some_array(self, keys: Keys) -> list[str]:
        arrays = [path for path in ARRAYS if f"{path}/zarr.json" in keys]
        return [self.random.choice(arrays)] if arrays else []

    def _some_chunk(self, keys: Keys) -> list[str]:
        return [
            "/".join([path, "c", *(str(self.random.randrange(n)) for n in ARRAYS[path])])
            for path in self._some_array(keys)
        ]

    def _put(self, session: Session, keys: Keys, key: str, value: bytes) -> None:
        put(session.store, key, value)
        keys[key] = value

    # -- checks ------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Names, contents and ancestry of everything, as another `Repository` object finds them."""
        repository = Repository.open(self.storage)
        assert {name: repository.lookup_branch(name) for name in repository.list_branches()} == self.branches
        assert {name: repository.lookup_tag(name) for name in repository.list_tags()} == self.tags
        for snapshot_id, keys in self.snapshots.items():
            assert contents(self.repository.readonly_session(snapshot_id=snapshot_id)) == keys
            check_catalog(repository, snapshot_id, keys)
            assert [info.id for info in repository.ancestry(snapshot_id=snapshot_id)] == list(self._line(snapshot_id))

    def _line(self, snapshot_id: str | None) -> Iterator[str]:
        while snapshot_id is not None:
            yield snapshot_id
            snapshot_id = self.parents[snapshot_id]


def check_catalog(repository: Repository, snapshot_id: str, keys: Keys) -> None:
    """The same contents through the functions of the catalog: each node and each chunk looked up, and all listed."""
    catalog = repository._catalog
    with catalog.read() as txn:
        view = snapshots.view_snapshot(txn, snapshots.lookup_seq(txn, snapshot_id))
    listed = {node.path: node for node in node_table.list_nodes(catalog, view, "")}
    assert {f"{path}/zarr.json".lstrip("/") for path in listed} == {key for key in keys if key.endswith("zarr.json")}
    for path in [*ARRAYS, *GROUPS]:
        assert node_table.find_node(catalog, view, path) == listed.get(path)
        expected = {n.node_id for p, n in listed.items() if p == path or p.startswith(path + "/") or path == ""}
        assert {n.node_id for n in node_table.list_nodes(catalog, view, path)} == expected
    for path, node in listed.items():
        if path not in ARRAYS:
            continue
        lengths = {key: len(keys[key]) for key in below(keys, path) if not key.endswith("zarr.json")}
        found = {
            "/".join(filter(None, [path, "c", chunk])): Chunk(*map(int, row))
            for block in chunk_table.scan_chunks(catalog, view, node.node_id)
            for chunk, *row in zip(*block, strict=True)
        }
        assert {key: ref.length for key, ref in found.items()} == lengths
        assert chunk_table.stored_bytes(catalog, view, node.node_id) == sum(lengths.values())
        for position in np.ndindex(*ARRAYS[path]):
            chunk = "/".join(map(str, position))
            key = "/".join(filter(None, [path, "c", chunk]))
            assert chunk_table.find_chunk(catalog, view, node.node_id, chunk) == found.get(key)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Listings of several blocks, and payloads written long before their commit."""
    monkeypatch.setattr(chunk_table, "SCAN_ROWS", 3)
    monkeypatch.setattr(pending, "PENDING_BYTES", 6)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that virtual chunks are part of."""
    path = tmp_path_factory.mktemp("source") / "source.bin"
    path.write_bytes(SOURCE_BYTES)
    return path


@settings(max_examples=25)
@given(seed=st.integers(0, 1 << 32))
def test_every_snapshot_of_every_history_is_what_the_model_says(source: Path, seed: int) -> None:
    history = History(seed, source)
    history.run(40)
    history.check()


@pytest.mark.usefixtures("small_blocks")
@settings(max_examples=25)
@given(seed=st.integers(0, 1 << 32))
def test_and_so_it_is_when_blocks_are_small_and_payloads_early(source: Path, seed: int) -> None:
    history = History(seed, source)
    history.run(40)
    history.check()


# -- what a commit costs ---------------------------------------------------------------------------------------

TABLES = ["segment", "operation", "snapshot", "branch", "tag", "container", "location", "node", "change"]
TABLES += ["payload", "chunk_ref", "setting"]


def row_counts(connection: apsw.Connection) -> dict[str, int]:
    return {table: connection.execute(f"SELECT count(*) FROM {table}").get for table in TABLES}


def commit_cost(repository: Repository, branch: str, edit: Any) -> tuple[dict[str, int], int, int]:
    """New rows by table, rows changed in all, and pages written, of one commit."""
    session = repository.writable_session(branch)
    edit(session.store)
    connection = session._catalog._connection
    before, changes, pages = row_counts(connection), connection.total_changes(), pages_written(connection)
    session.commit("one change")
    changes, pages = connection.total_changes() - changes, pages_written(connection) - pages
    after = row_counts(connection)
    return {table: after[table] - before[table] for table in TABLES if after[table] != before[table]}, changes, pages


def pages_written(connection: apsw.Connection) -> int:
    return connection.status(apsw.SQLITE_DBSTATUS_CACHE_WRITE)[0]


def repository_with(references: int, snapshot_count: int) -> Repository:
    """One array of so many chunks, all virtual, and a history of so many commits to it."""
    repository = Repository.create(in_memory_storage())
    session = repository.writable_session("main")
    put(session.store, "x/zarr.json", array_document((references,)).encode())
    numbers = np.arange(references, dtype=np.uint64)
    urls = ["file:///nowhere/x.nc"] * references
    session.store.set_virtual_refs_arr("x", (references,), urls, numbers, numbers + np.uint64(1))
    session.commit("all of it")
    for number in range(snapshot_count - 1):
        session = repository.writable_session("main")
        put(session.store, f"x/c/{number % references}", b"new")
        session.commit(f"commit {number}")
    return repository


@pytest.mark.parametrize(("references", "snapshot_count"), [(100, 1), (100_000, 1), (100, 1000)])
def test_a_commit_writes_what_changed_and_no_more(references: int, snapshot_count: int) -> None:
    """Whatever the size of the array and the length of its history."""
    repository = repository_with(references, snapshot_count)
    tip = repository.lookup_branch("main")
    always = {"operation": 1, "snapshot": 1}

    rows, changes, pages = commit_cost(repository, "main", lambda store: put(store, "x/c/7", b"new"))
    assert rows == always | {"change": 1, "payload": 1, "chunk_ref": 1}
    assert changes <= 12  # with the branch moved, and the change set's own rows
    assert pages <= 24  # leaves and the path to each, 4 KiB a page

    rows, _, _ = commit_cost(repository, "main", lambda store: store.delete_sync("x/c/7"))
    assert rows == always | {"change": 1, "chunk_ref": 1}

    document = array_document((references,), note=1).encode()
    rows, changes, pages = commit_cost(repository, "main", lambda store: put(store, "x/zarr.json", document))
    assert {table: count for table, count in rows.items() if table != "change"} == always | {"node": 1}

    repository.create_branch("fork", tip)
    rows, _, pages = commit_cost(repository, "fork", lambda store: put(store, "x/c/7", b"other"))
    assert rows == always | {"segment": 1, "change": 1, "payload": 1, "chunk_ref": 1}
    assert pages <= 24


def test_names_cost_a_row_of_the_log_each() -> None:
    repository = repository_with(100, 3)
    connection = repository._catalog._connection
    old = [info.id for info in repository.ancestry(branch="main")][-1]
    for act, expected in [
        (lambda: repository.create_branch("b", old), {"branch": 1, "operation": 1}),
        (lambda: repository.reset_branch("main", old), {"operation": 1}),
        (lambda: repository.create_tag("t", old), {"tag": 1, "operation": 1}),
        (lambda: repository.delete_tag("t"), {"operation": 1}),
        (lambda: repository.delete_branch("b"), {"branch": -1, "operation": 1}),
    ]:
        before = row_counts(connection)
        act()
        after = row_counts(connection)
        assert {table: after[table] - before[table] for table in TABLES if after[table] != before[table]} == expected


def test_a_lineage_has_one_entry_for_each_fork_behind_it() -> None:
    repository = Repository.create(in_memory_storage())
    for number in range(5):
        for _ in range(3):
            session = repository.writable_session("main")
            session.commit("straight on", allow_empty=True)
        parent = list(repository.ancestry(branch="main"))[1].id
        repository.create_branch(f"b{number}", repository.lookup_branch("main"))
        repository.reset_branch("main", parent)
    with repository._catalog.read() as txn:
        tip = snapshots.view_snapshot(txn, refs.lookup_branch(txn, "main"))
        first = snapshots.view_snapshot(txn, snapshots.lookup_seq(txn, INITIAL_SNAPSHOT_ID))
    assert len(first.bounds) == 1
    assert len(tip.bounds) == 5
    assert tip.bounds[tip.seg] == tip.seq
