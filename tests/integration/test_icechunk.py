"""Whole histories to Icechunk and back, compared snapshot by snapshot: ids, times, bytes and references."""

from __future__ import annotations

import json
import os
import random
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given
from hypothesis import strategies as st
from zarr.core.buffer import cpu, default_buffer_prototype
from zarr.core.sync import sync

import icelite
from icelite import AlreadyExistsError, FormatError, InvalidInputError, Repository, RepositoryNotFoundError
from icelite.types import SourceStamp, new_snapshot_id

if sys.version_info < (3, 12):
    pytest.skip("Icechunk 2 needs Python 3.12 or newer", allow_module_level=True)
icechunk = pytest.importorskip("icechunk", minversion="2")

from icelite.icechunk import export_icechunk, import_icechunk  # noqa: E402
from icelite.icechunk.files import (  # noqa: E402
    HEADER_BYTES,
    Manifests,
    MetadataFile,
    decode_id,
    encode_id,
)
from icelite.icechunk.histories import are_independent, collapse  # noqa: E402

SNAPSHOTS = 20
CHUNK = 4
LONG = 700  # bytes of a chunk that Icechunk does not keep inline
SOURCE_TIME = datetime(2020, 1, 1, tzinfo=UTC)
GROUP = {"zarr_format": 3, "node_type": "group"}


def listing(folder: Path) -> set[str]:
    """What is in a folder, apart from the journal of a catalog that is open."""
    return {name for name in os.listdir(folder) if not name.endswith("-journal")}


def array(shape: list[int], chunks: list[int], dtype: str = "uint8", **attributes: Any) -> dict[str, Any]:
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": shape,
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunks}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "codecs": [{"name": "bytes"}],
        "attributes": attributes,
    }


def put(store: Any, key: str, value: dict[str, Any] | bytes) -> None:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    sync(store.set(key, cpu.Buffer.from_bytes(data)))


def get(store: Any, key: str) -> bytes:
    return sync(store.get(key, default_buffer_prototype())).to_bytes()


def keys(store: Any) -> list[str]:
    async def listed() -> list[str]:
        return [key async for key in store.list()]

    return sorted(sync(listed()))


def content(repo: Any, snapshot_id: str) -> dict[str, Any]:
    """Every key of a snapshot with its value; documents as JSON."""
    store = repo.readonly_session(snapshot_id=snapshot_id).store
    values = {key: get(store, key) for key in keys(store)}
    documents = {key: json.loads(data) for key, data in values.items() if key.endswith("zarr.json")}
    return {key: documents.get(key, data) for key, data in values.items() if is_inside(key, documents)}


def is_inside(key: str, documents: dict[str, Any]) -> bool:
    """Whether a chunk is in the grid of its array: what a shrunken array left outside, only icelite still has."""
    if key in documents:
        return True
    arrays = {name.removesuffix("zarr.json") + "c": one for name, one in documents.items() if "chunk_grid" in one}
    path, document = next((path, one) for path, one in arrays.items() if f"{key}/".startswith(path + "/"))
    chunk = key[len(path) + 1 :]
    sizes = document["chunk_grid"]["configuration"]["chunk_shape"]
    at = [int(index) for index in chunk.split("/")] if chunk else []
    return all(i * size < length for i, size, length in zip(at, sizes, document["shape"], strict=True))


def references(repo: Any, snapshot_id: str) -> dict[str, Any]:
    """Every virtual chunk of a snapshot with URL, offset and length, and the kind of all others."""

    async def listed(store: Any, path: str) -> dict[str, Any]:
        iterator = getattr(store, "array_chunk_iterator", None) or store.session.array_chunk_iterator
        found = {}
        async for at, kinds, urls, offsets, lengths, _ in iterator(path):
            for row in zip(at.tolist(), kinds.tolist(), urls, offsets.tolist(), lengths.tolist(), strict=True):
                key = "/".join([path.strip("/"), "c", *map(str, row[0])])
                found[key] = (row[2].replace("%20", " "), *row[3:]) if row[1] == 2 else "bytes"
        return found

    store = repo.readonly_session(snapshot_id=snapshot_id).store
    documents = {key: json.loads(get(store, key)) for key in keys(store) if key.endswith("zarr.json")}
    found: dict[str, Any] = {}
    for key, document in documents.items():
        if document["node_type"] == "array":
            path = key.removesuffix("/zarr.json")
            rows = sync(listed(store, "/" + path))
            found |= {chunk: row for chunk, row in rows.items() if is_inside(chunk, documents)}
    return found


def locations(repo: Repository) -> set[tuple[Any, ...]]:
    """The virtual references of every snapshot as the catalog has them, checksums in Icechunk's whole seconds."""
    found: set[tuple[Any, ...]] = set()
    for snapshot_id in history(repo):
        changes = repo.readonly_session(snapshot_id=snapshot_id).changes
        for node in changes.nodes.list_below(""):
            for chunk, location_id, offset, length in changes.chunks.refs(node.node_id):
                if location_id != 1:
                    at = changes.chunks.locations[location_id - 2]
                    seconds = None if at.modified_at is None else -(-at.modified_at // 10**9)
                    found.add((snapshot_id, node.path, chunk, at.path, at.container, at.etag, seconds, offset, length))
    return found


def history(repo: Any) -> dict[str, Any]:
    found = {}
    for tip in [*map(repo.lookup_branch, repo.list_branches()), *map(repo.lookup_tag, repo.list_tags())]:
        for info in repo.ancestry(snapshot_id=tip):
            # Icechunk marks the first snapshot in its metadata
            metadata = {key: value for key, value in info.metadata.items() if info.parent_id or key != "__icechunk"}
            found[info.id] = (info.parent_id, info.written_at, info.message, metadata)
    return found


def names(repo: Any) -> tuple[dict[str, str], dict[str, str], list[str]]:
    branches = {name: repo.lookup_branch(name) for name in repo.list_branches()}
    return (
        branches,
        {name: repo.lookup_tag(name) for name in repo.list_tags()},
        list(repo.inspect_repo_info()["deleted_tags"]),
    )


class Program:
    """A random history, with the words that both libraries have."""

    def __init__(self, repo: Any, seed: int, folder: Path) -> None:
        self.repo = repo
        self.random = random.Random(seed)
        self.folder = folder
        self.count = 0

    def run(self) -> None:
        session = self.repo.writable_session("main")
        for path in ("zarr.json", "g/zarr.json", "g/deep/zarr.json"):
            put(session.store, path, GROUP)
        put(session.store, "long/zarr.json", array([5 * LONG], [LONG]))
        put(session.store, "long/c/0", self.random.randbytes(LONG))
        put(session.store, "g/short/zarr.json", array([CHUNK, 2], [CHUNK, 1]))
        put(session.store, "g/short/c/0/1", self.random.randbytes(CHUNK))
        for _ in range(4):
            self.reference(session.store)
        tip = self.commit(session)
        for branch in ("side", "later"):
            for _ in range(self.random.randint(1, 3)):
                tip = self.snapshot("main")
            self.repo.create_branch(branch, tip)
        for done in range(self.count, SNAPSHOTS - 1):
            tip = self.snapshot(self.random.choice(["main", "side", "later"]))
            if done == 10:
                self.repo.create_tag("v1", tip)
                self.repo.create_tag("mistake", tip)
        self.repo.delete_tag("mistake")
        self.repo.create_tag("v/2", tip)
        self.repo.reset_branch("side", next(iter(self.repo.ancestry(branch="side"))).parent_id)
        self.repo.set_metadata({"title": "random"})

    def commit(self, session: Any) -> str:
        self.count += 1
        metadata = {"n": self.count, "nested": {"a": [1, None, "ü"]}} if self.count % 3 else None
        if session.has_uncommitted_changes and self.count > 4 and self.random.random() < 0.2:
            try:
                return str(session.amend(f"amended {self.count}", metadata=metadata))
            except icechunk.SessionStateError:  # it neither writes on top of moves nor moves on top of what was written
                pass
        return str(session.commit(f"commit {self.count}", metadata, allow_empty=True))

    def snapshot(self, branch: str) -> str:
        if self.random.random() < 0.15 and (tip := self.move(branch)) is not None:
            return tip
        session = self.repo.writable_session(branch)
        for _ in range(self.random.randint(0, 4)):
            self.random.choice(
                [
                    self.create,
                    self.create,
                    self.write,
                    self.write,
                    self.reference,
                    self.resize,
                    self.delete,
                    self.describe,
                ]
            )(session.store)
        return self.commit(session)

    def nodes(self, store: Any, kind: str) -> list[str]:
        documents = {key: json.loads(get(store, key)) for key in keys(store) if key.endswith("zarr.json")}
        return [key.removesuffix("zarr.json").rstrip("/") for key, one in documents.items() if one["node_type"] == kind]

    def array(self, store: Any) -> tuple[str, dict[str, Any]] | None:
        paths = self.nodes(store, "array")
        if not paths:
            return None
        path = self.random.choice(paths)
        return path, json.loads(get(store, f"{path}/zarr.json"))

    def chunk(self, path: str, document: dict[str, Any]) -> str | None:
        sizes = document["chunk_grid"]["configuration"]["chunk_shape"]
        grid = [-(-size // chunk) for size, chunk in zip(document["shape"], sizes, strict=True)]
        if not all(grid):
            return None
        return "/".join([path, "c", *(str(self.random.randrange(size)) for size in grid)])

    def create(self, store: Any) -> None:
        group = self.random.choice(self.nodes(store, "group") or [""])
        name = f"{group}/{self.random.choice(['a', 'b', 'c', 'd', 'd e', 'e'])}".lstrip("/")
        if f"{name}/zarr.json" in keys(store):
            return
        ndim = self.random.choice([0, 1, 2, 2])
        chunks = [self.random.choice([CHUNK, LONG]), 1][:ndim]
        shape = [chunk * self.random.randint(0, 4) for chunk in chunks]
        document = GROUP if self.random.random() < 0.3 else array(shape, chunks, n=self.random.random())
        put(store, f"{name}/zarr.json", document)
        for _ in range(3):
            self.write(store)

    def write(self, store: Any) -> None:
        if (found := self.array(store)) is None or (key := self.chunk(*found)) is None:
            return
        sizes = found[1]["chunk_grid"]["configuration"]["chunk_shape"]
        put(store, key, self.random.randbytes(int(np.prod(sizes, dtype=int))))

    def reference(self, store: Any) -> None:
        if (found := self.array(store)) is None or (key := self.chunk(*found)) is None:
            return
        length = int(np.prod(found[1]["chunk_grid"]["configuration"]["chunk_shape"], dtype=int))
        name = self.random.choice(["one.bin", "two words.bin", "sub/three.bin"])
        prefix = self.random.choice([f"file://{self.folder}/", "vcc://data/"])
        checksum = self.random.choice([None, SOURCE_TIME, SOURCE_TIME + timedelta(seconds=90)])
        at = {"offset": self.random.randrange(999), "length": length}
        store.set_virtual_ref(key, prefix + name, **at, checksum=checksum, validate_container=False)

    def resize(self, store: Any) -> None:
        if (found := self.array(store)) is None:
            return
        path, document = found
        sizes = document["chunk_grid"]["configuration"]["chunk_shape"]
        shape = [chunk * self.random.randint(0, 5) for chunk in sizes]
        if self.random.random() < 0.5:
            zarr.open_array(store, path=path).resize(shape)  # deletes what is outside
        else:
            put(store, f"{path}/zarr.json", {**document, "shape": shape})

    def describe(self, store: Any) -> None:
        path = self.random.choice(self.nodes(store, "array") + self.nodes(store, "group"))
        key = f"{path}/zarr.json".lstrip("/")
        put(store, key, {**json.loads(get(store, key)), "attributes": {"x": self.random.random()}})

    def delete(self, store: Any) -> None:
        roll = self.random.random()
        if roll < 0.4 and (found := self.array(store)) is not None and (key := self.chunk(*found)) is not None:
            sync(store.delete(key))
        elif roll < 0.7 and (found := self.array(store)) is not None:
            sync(store.delete_dir(found[0]))
        elif roll > 0.8:
            groups = [path for path in self.nodes(store, "group") if path]
            if groups:
                sync(store.delete_dir(self.random.choice(groups)))

    def move(self, branch: str) -> str | None:
        session = self.repo.rearrange_session(branch)
        groups = self.nodes(session.store, "group")
        everything = [path for path in groups + self.nodes(session.store, "array") if path]
        for _ in range(self.random.randint(1, 3)):
            if not everything or "" not in groups:
                break
            source = self.random.choice(everything)
            target = f"{self.random.choice(groups)}/{self.random.choice('abcdxyz')}".lstrip("/")
            try:
                session.move("/" + source, "/" + target)
            except (icechunk.IcechunkError, icelite.IceliteError):
                continue
        return self.commit(session) if session.has_uncommitted_changes else None


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files that virtual chunks are in, older than any checksum."""
    folder = tmp_path / "some data"
    (folder / "sub").mkdir(parents=True)
    for name in ("one.bin", "two words.bin", "sub/three.bin"):
        (folder / name).write_bytes(random.Random(name).randbytes(5_000))
        os.utime(folder / name, (SOURCE_TIME.timestamp(), SOURCE_TIME.timestamp()))
    return folder


def open_icechunk(path: Path, folder: Path) -> Any:
    repo = icechunk.Repository.open(icechunk.local_filesystem_storage(str(path)))
    prefixes = repo.config.virtual_chunk_containers or {}
    access = dict.fromkeys(prefixes, icechunk.credentials.LocalFileSystemAccess)
    return repo.reopen(authorize_virtual_chunk_access=access)


def open_icelite(path: Path, folder: Path) -> Repository:
    return Repository.open(path, authorize_virtual_chunk_access={f"file://{folder}/": icelite.LocalFileSystemAccess})


def create_icechunk(path: Path, folder: Path) -> Any:
    config = icechunk.RepositoryConfig.default()
    store = icechunk.local_filesystem_store(str(folder))
    config.set_virtual_chunk_container(icechunk.VirtualChunkContainer(f"file://{folder}/", store, name="data"))
    return icechunk.Repository.create(icechunk.local_filesystem_storage(str(path)), config)


def check_equal(one: Any, other: Any) -> None:
    assert history(one) == history(other)
    assert names(one) == names(other)
    assert one.get_metadata() == other.get_metadata()
    for snapshot_id in history(one):
        assert content(one, snapshot_id) == content(other, snapshot_id), snapshot_id
        assert references(one, snapshot_id) == references(other, snapshot_id), snapshot_id


SEEDS = int(os.environ.get("ICECHUNK_SEEDS", "3"))  # more to search for faults


@pytest.mark.parametrize("seed", range(SEEDS))
def test_icechunk_to_icelite_and_back(tmp_path: Path, folder: Path, seed: int) -> None:
    Program(create_icechunk(tmp_path / "first", folder), seed, folder).run()
    summary = import_icechunk(tmp_path / "first", tmp_path / "there.icelite")
    first = open_icechunk(tmp_path / "first", folder)
    there = open_icelite(tmp_path / "there.icelite", folder)
    assert summary.snapshots == len(history(first))
    assert (summary.branches, summary.tags, summary.has_checksums) == (3, 2, True)
    assert there.verify() == []
    check_equal(first, there)
    export_icechunk(there, tmp_path / "back")
    back = open_icechunk(tmp_path / "back", folder)
    check_equal(first, back)
    import_icechunk(tmp_path / "back", tmp_path / "again.icelite")
    assert locations(open_icelite(tmp_path / "again.icelite", folder)) == locations(there) != set()
    assert set(os.listdir(tmp_path)) == {"first", "there.icelite", "back", "again.icelite", folder.name}


@pytest.mark.parametrize("seed", range(100, 100 + SEEDS))
def test_icelite_to_icechunk_and_back(tmp_path: Path, folder: Path, seed: int) -> None:
    config = icelite.RepositoryConfig()
    config.set_virtual_chunk_container(icelite.VirtualChunkContainer(f"file://{folder}/", name="data"))
    repo = Repository.create(tmp_path / "first.icelite", config)
    Program(repo, seed, folder).run()
    first = open_icelite(tmp_path / "first.icelite", folder)
    summary = export_icechunk(tmp_path / "first.icelite", tmp_path / "there")
    there = open_icechunk(tmp_path / "there", folder)
    assert summary.ids == {snapshot_id: snapshot_id for snapshot_id in history(first)}
    check_equal(first, there)
    import_icechunk(tmp_path / "there", tmp_path / "back.icelite")
    back = open_icelite(tmp_path / "back.icelite", folder)
    assert back.verify() == []
    check_equal(first, back)


# -- what the random histories do not reach --------------------------------------------------------------------------


@pytest.fixture
def repo(tmp_path: Path) -> Repository:
    """One array of three chunks, the first two written."""
    repo = Repository.create(tmp_path / "ocean.icelite")
    session = repo.writable_session("main")
    put(session.store, "zarr.json", GROUP)
    put(session.store, "a/zarr.json", array([3], [1]))
    put(session.store, "a/c/0", b"x")
    put(session.store, "a/c/1", b"y")
    session.commit("base")
    return repo


def commit(repo: Any, **values: dict[str, Any] | bytes) -> str:
    session = repo.writable_session("main")
    for key, value in values.items():
        put(session.store, key.replace("__", "/"), value)
    return str(session.commit("more"))


def test_only_what_changed_is_written(repo: Repository, tmp_path: Path) -> None:
    session = repo.writable_session("main")
    put(session.store, "big/zarr.json", array([500], [1]))
    for i in range(500):
        put(session.store, f"big/c/{i}", b"z")
    session.commit("big")
    for value in (b"1", b"2", b"3"):
        commit(repo, big__c__7=value)
    assert export_icechunk(repo, tmp_path / "out").chunks == 2 + 500 + 3
    assert import_icechunk(tmp_path / "out", tmp_path / "back.icelite").chunks == 2 + 500 + 3


def test_a_storage_object_gets_ids_in_the_metadata(repo: Repository) -> None:
    tip = commit(repo, a__c__2=b"z")
    repo.create_tag("v1", tip)
    storage = icechunk.in_memory_storage()
    summary = export_icechunk(repo, storage)
    there = icechunk.Repository.open(storage)
    assert list(summary.ids) == [info.id for info in repo.ancestry(branch="main")][::-1]
    for info in repo.ancestry(branch="main"):
        found = there.lookup_snapshot(summary.ids[info.id])
        assert content(there, found.id) == content(repo, info.id)
        if info.parent_id is not None:
            assert found.parent_id == summary.ids[info.parent_id]
            kept = {"icelite_snapshot_id": info.id, "icelite_written_at": info.written_at.isoformat()}
            assert found.metadata == kept
    assert there.lookup_tag("v1") == summary.ids[tip] != tip
    assert there.get_metadata() == {}
    with pytest.raises(AlreadyExistsError) as caught:
        export_icechunk(repo, storage)
    assert caught.value.kind == "repository-already-exists"


def test_an_unfinished_export_to_a_storage_object_says_so(repo: Repository) -> None:
    storage = icechunk.in_memory_storage()
    with pytest.raises(KeyboardInterrupt):
        export_icechunk(repo, storage, progress=interrupt)
    assert icechunk.Repository.open(storage).get_metadata() == {"icelite_export_unfinished": True}


def test_an_opened_repository_is_read_without_checksums(tmp_path: Path, folder: Path) -> None:
    first = create_icechunk(tmp_path / "first", folder)
    Program(first, 7, folder).run()
    summary = import_icechunk(first, tmp_path / "there.icelite")
    assert not summary.has_checksums
    there = open_icelite(tmp_path / "there.icelite", folder)
    check_equal(open_icechunk(tmp_path / "first", folder), there)
    assert {(row[4], row[5], row[6]) for row in locations(there)} == {(None, None, None)}


def test_ids_that_icechunk_cannot_hold(repo: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unusual = new_snapshot_id()[:-1] + "Z"
    monkeypatch.setattr("icelite.session.commits.new_snapshot_id", lambda: unusual)
    commit(repo, a__c__2=b"z")
    monkeypatch.undo()
    tip = commit(repo, a__c__2=b"zz")
    summary = export_icechunk(repo, tmp_path / "out")
    assert summary.ids[tip] == tip
    assert summary.ids[unusual] != unusual
    there = open_icechunk(tmp_path / "out", tmp_path)
    assert [info.id for info in there.ancestry(branch="main")][:2] == [tip, summary.ids[unusual]]
    found = there.lookup_snapshot(summary.ids[unusual])
    assert found.metadata["icelite_snapshot_id"] == unusual
    assert found.written_at == repo.lookup_snapshot(unusual).written_at


def test_an_exported_repository_goes_on(repo: Repository, tmp_path: Path) -> None:
    tip = repo.lookup_branch("main")
    export_icechunk(repo, tmp_path / "out")
    there = open_icechunk(tmp_path / "out", tmp_path)
    assert [type(update.kind).__name__ for update in there.ops_log()] == ["NewCommit", "RepoInitialized"]
    new = commit(there, a__c__2=b"new")
    session = there.writable_session("main")
    put(session.store, "a/c/2", b"amended")
    new = session.amend("amended")
    assert there.lookup_snapshot(new).parent_id == tip
    assert there.diff(from_snapshot_id=tip, to_snapshot_id=new).updated_chunks == {"/a": [[2]]}
    there.expire_snapshots(datetime.now(UTC) + timedelta(days=1))
    there.garbage_collect(datetime.now(UTC) + timedelta(days=1))
    assert content(there, new)["a/c/2"] == b"amended"


def test_moves_that_icechunk_has_no_word_for(repo: Repository, tmp_path: Path) -> None:
    session = repo.writable_session("main")
    for name in ("b", "g", "g/deep"):
        put(session.store, f"{name}/zarr.json", GROUP)
    session.commit("groups")
    session = repo.rearrange_session("main")
    for source, target in (("/a", "/t"), ("/b", "/a"), ("/t", "/b"), ("/g/deep", "/deep"), ("/g", "/deep/g")):
        session.move(source, target)
    session.commit("exchanged")
    session = repo.rearrange_session("main")
    session.move("/deep", "/d")
    session.commit("moved")
    session = repo.writable_session("main")
    put(session.store, "b/c/2", b"!")
    session.amend("moved and written")
    summary = export_icechunk(repo, tmp_path / "out")
    there = open_icechunk(tmp_path / "out", tmp_path)
    check_equal(repo, there)
    assert summary.copied_moves == 4 + 2
    import_icechunk(tmp_path / "out", tmp_path / "back.icelite")
    check_equal(there, Repository.open(tmp_path / "back.icelite"))


def test_a_plain_move_stays_one(repo: Repository, tmp_path: Path) -> None:
    session = repo.rearrange_session("main")
    session.move("/a", "/b")
    tip = session.commit("moved")
    assert export_icechunk(repo, tmp_path / "out").copied_moves == 0
    there = open_icechunk(tmp_path / "out", tmp_path)
    parent = there.lookup_snapshot(tip).parent_id
    assert there.diff(from_snapshot_id=parent, to_snapshot_id=tip).moved_nodes == [("/a", "/b")]
    import_icechunk(tmp_path / "out", tmp_path / "back.icelite")
    assert Repository.open(tmp_path / "back.icelite").diff(to_snapshot_id=tip).moved_nodes == [("/a", "/b")]


def test_chunks_come_back_where_icelite_kept_them(repo: Repository, tmp_path: Path) -> None:
    for length in (1, 3, 1, 2):
        commit(repo, **{"a__zarr.json": array([length], [1])})
    export_icechunk(repo, tmp_path / "out")
    there = open_icechunk(tmp_path / "out", tmp_path)
    check_equal(repo, there)
    assert content(there, there.lookup_branch("main"))["a/c/1"] == b"y"


def test_chunks_do_not_come_back_where_icechunk_forgot_them(tmp_path: Path, folder: Path) -> None:
    first = create_icechunk(tmp_path / "first", folder)
    session = first.writable_session("main")
    put(session.store, "a/zarr.json", array([3], [1]))
    for i in range(3):
        put(session.store, f"a/c/{i}", b"x")
    session.commit("three")
    for length in (1, 3):
        commit(first, **{"a__zarr.json": array([length], [1])})
    import_icechunk(tmp_path / "first", tmp_path / "there.icelite")
    there = Repository.open(tmp_path / "there.icelite")
    check_equal(first, there)
    assert [key for key in content(there, there.lookup_branch("main")) if "/c/" in key] == ["a/c/0"]


def test_a_group_that_goes_alone(repo: Repository, tmp_path: Path) -> None:
    commit(repo, **{"g__zarr.json": GROUP, "g__b__zarr.json": array([1], [1]), "g__b__c__0": b"b"})
    session = repo.writable_session("main")
    sync(session.store.delete("g/zarr.json"))
    session.commit("without its group")
    export_icechunk(repo, tmp_path / "out")
    check_equal(repo, open_icechunk(tmp_path / "out", tmp_path))


def test_a_source_is_checked_by_icechunk_too(tmp_path: Path) -> None:
    """A time between two seconds is rounded up: Icechunk must not take the source itself for a changed one."""
    source = tmp_path / "source.bin"
    source.write_bytes(b"0123456789")
    os.utime(source, ns=(10**18 + 1, 10**18 + 1))
    repo = Repository.create(tmp_path / "ocean.icelite")
    session = repo.writable_session("main")
    put(session.store, "a/zarr.json", array([1], [1]))
    stamp = SourceStamp(modified_at=source.stat().st_mtime_ns)
    url = f"file://{source}"
    session.store.set_virtual_refs_arr("a", (1,), [url], np.array([3]), np.array([1]), stamps={url: stamp})
    tip = session.commit("virtual")
    assert export_icechunk(repo, tmp_path / "out").container_prefixes == (f"file://{tmp_path}/",)
    assert content(open_icechunk(tmp_path / "out", tmp_path), tip)["a/c/0"] == b"3"
    os.utime(source, ns=(10**18 + 2 * 10**9, 10**18 + 2 * 10**9))
    with pytest.raises(icechunk.StorageError, match="has changed"):
        content(open_icechunk(tmp_path / "out", tmp_path), tip)


def test_times_in_every_file(repo: Repository, tmp_path: Path) -> None:
    export_icechunk(repo, tmp_path / "out")
    there = open_icechunk(tmp_path / "out", tmp_path)
    for info in repo.ancestry(branch="main"):
        assert datetime.fromisoformat(there.inspect_snapshot(info.id)["flushed_at"]) == info.written_at
        assert there.inspect_snapshot(info.id)["id"] == info.id


@pytest.mark.parametrize("is_expired", [False, True])
def test_the_format_of_icechunk_1(tmp_path: Path, folder: Path, is_expired: bool) -> None:
    first = icechunk.Repository.create(icechunk.local_filesystem_storage(str(tmp_path / "first")), spec_version=1)
    session = first.writable_session("main")
    put(session.store, "a/zarr.json", array([5], [1]))
    put(session.store, "gone/zarr.json", GROUP)
    session.commit("begin")
    for i in range(5):
        commit(first, **{f"a__c__{i}": bytes([65 + i]) * (1 + 900 * i)})
    first.create_tag("v1", first.lookup_branch("main"))
    if is_expired:
        first.expire_snapshots(list(first.ancestry(branch="main"))[1].written_at)
    import_icechunk(tmp_path / "first", tmp_path / "there.icelite")
    there = Repository.open(tmp_path / "there.icelite")
    assert there.verify() == []
    assert history(there) == history(first)
    assert there.lookup_tag("v1") == first.lookup_tag("v1")
    for snapshot_id in history(first):
        assert content(first, snapshot_id) == content(there, snapshot_id)


def test_expired_histories(tmp_path: Path, folder: Path) -> None:
    first = create_icechunk(tmp_path / "first", folder)
    Program(first, 3, folder).run()
    middle = list(first.ancestry(branch="main"))[2].written_at
    assert first.expire_snapshots(middle)
    import_icechunk(tmp_path / "first", tmp_path / "there.icelite")
    there = open_icelite(tmp_path / "there.icelite", folder)
    check_equal(open_icechunk(tmp_path / "first", folder), there)
    there.expire_snapshots(list(there.ancestry(branch="main"))[1].written_at)
    assert there.verify() == []
    export_icechunk(there, tmp_path / "back")
    check_equal(there, open_icechunk(tmp_path / "back", folder))


def test_many_references_with_packed_urls(tmp_path: Path, folder: Path) -> None:
    """Icechunk compresses the URLs of large manifests, with a dictionary of each manifest's own."""
    first = create_icechunk(tmp_path / "first", folder)
    session = first.writable_session("main")
    put(session.store, "a/zarr.json", array([30, 100], [1, 1]))
    specs = [
        icechunk.VirtualChunkSpec([i, j], f"vcc://data/day-{i:03}.bin", j, 1, None, SOURCE_TIME + timedelta(seconds=i))
        for i in range(30)
        for j in range(100)
    ]
    assert session.store.set_virtual_refs("/a", specs, validate_containers=False) is None
    first_id = session.commit("many")
    session = first.writable_session("main")
    session.store.set_virtual_ref("a/c/3/4", "vcc://data/other.bin", offset=1, length=2)
    tip = session.commit("one")
    manifest = first.inspect_manifest(first.list_manifest_files(first_id)[0].id)
    assert manifest["compression"]["num_compressed_refs"] == 3000
    assert import_icechunk(tmp_path / "first", tmp_path / "there.icelite").chunks == 3001
    found = locations(Repository.open(tmp_path / "there.icelite"))
    moment = int(SOURCE_TIME.timestamp())
    wanted = {
        (snapshot_id, "a", f"{i}/{j}", f"day-{i:03}.bin", "data", None, moment + i, j, 1)
        for snapshot_id in (first_id, tip)
        for i in range(30)
        for j in range(100)
    }
    wanted -= {(tip, "a", "3/4", "day-003.bin", "data", None, moment + 3, 4, 1)}
    assert found == wanted | {(tip, "a", "3/4", "other.bin", "data", None, None, 1, 2)}


def test_references_to_s3(tmp_path: Path) -> None:
    store = icelite.s3_store(region="eu-west-3", endpoint_url="http://localhost:1", allow_http=True, s3_compatible=True)
    config = icelite.RepositoryConfig(inline_chunk_threshold_bytes=99)
    config.set_virtual_chunk_container(icelite.VirtualChunkContainer("s3://bucket/some/", store, name="far"))
    repo = Repository.create(tmp_path / "ocean.icelite", config)
    session = repo.writable_session("main")
    put(session.store, "a/zarr.json", array([2], [1]))
    session.store.set_virtual_ref("a/c/0", "s3://bucket/some/100%#?.nc", offset=3, length=4, checksum="abc")
    session.store.set_virtual_ref("a/c/1", "vcc://far/x.nc", offset=5, length=6, checksum=SOURCE_TIME)
    session.commit("far")
    assert export_icechunk(repo, tmp_path / "out").container_prefixes == ("s3://bucket/some/",)
    import_icechunk(tmp_path / "out", tmp_path / "back.icelite")
    back = Repository.open(tmp_path / "back.icelite")
    assert locations(back) == locations(repo)
    assert len(locations(back)) == 2
    containers = back.config.virtual_chunk_containers or {}
    assert containers["s3://bucket/some/"].name == "far"
    assert containers["s3://bucket/some/"].options() == {
        "type": "s3_compatible",
        "region": "eu-west-3",
        "endpoint_url": "http://localhost:1",
        "allow_http": True,
        **{key: value for key, value in containers["s3://bucket/some/"].options().items() if "timeout" in key},
    }
    assert back.config.inline_chunk_threshold_bytes == 99


def test_large_chunks_go_into_objects_if_asked(tmp_path: Path, folder: Path) -> None:
    Program(create_icechunk(tmp_path / "first", folder), 5, folder).run()
    import_icechunk(tmp_path / "first", tmp_path / "there.icelite", objects="chunks")
    assert any((tmp_path / "chunks").rglob("*"))
    there = open_icelite(tmp_path / "there.icelite", folder)
    check_equal(open_icechunk(tmp_path / "first", folder), there)
    export_icechunk(there, tmp_path / "back")
    check_equal(there, open_icechunk(tmp_path / "back", folder))


def test_a_repository_without_commits(tmp_path: Path) -> None:
    repo = Repository.create(icelite.in_memory_storage())
    repo.create_branch("other", repo.lookup_branch("main"))
    assert export_icechunk(repo, tmp_path / "out").snapshots == 1
    import_icechunk(tmp_path / "out", tmp_path / "back.icelite")
    check_equal(repo, Repository.open(tmp_path / "back.icelite"))


def test_into_memory(repo: Repository, tmp_path: Path) -> None:
    export_icechunk(repo, tmp_path / "out")
    storage = icelite.in_memory_storage()
    import_icechunk(tmp_path / "out", storage)
    check_equal(repo, Repository.open(storage))


# -- what must not be left behind, and what is refused ---------------------------------------------------------------


def interrupt(done: int, total: int) -> None:
    if done == 2:
        raise KeyboardInterrupt


def test_progress(repo: Repository, tmp_path: Path) -> None:
    commit(repo, a__c__2=b"z")
    calls: list[tuple[int, int]] = []
    export_icechunk(repo, tmp_path / "out", progress=lambda *call: calls.append(call))
    import_icechunk(tmp_path / "out", tmp_path / "back.icelite", progress=lambda *call: calls.append(call))
    assert calls == [(1, 3), (2, 3), (3, 3)] * 2


def test_an_interrupted_run_leaves_nothing(repo: Repository, tmp_path: Path) -> None:
    before = listing(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        export_icechunk(repo, tmp_path / "out", progress=interrupt)
    assert listing(tmp_path) == before
    export_icechunk(repo, tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        import_icechunk(tmp_path / "out", tmp_path / "back.icelite", progress=interrupt)
    assert listing(tmp_path) == before | {"out"}


def test_targets_that_exist(repo: Repository, tmp_path: Path) -> None:
    export_icechunk(repo, tmp_path / "out")
    (tmp_path / "empty").mkdir()
    for target in ("out", "empty", "ocean.icelite"):
        with pytest.raises(AlreadyExistsError) as caught:
            export_icechunk(repo, tmp_path / target)
        assert caught.value.kind == "repository-already-exists"
        assert target in str(caught.value)
    with pytest.raises(AlreadyExistsError):
        import_icechunk(tmp_path / "out", tmp_path / "ocean.icelite")
    with pytest.raises(RepositoryNotFoundError):
        export_icechunk(repo, tmp_path / "no" / "such")
    with pytest.raises(RepositoryNotFoundError):
        import_icechunk(tmp_path / "out", tmp_path / "no" / "such.icelite")
    assert list((tmp_path / "empty").iterdir()) == []


def test_a_target_that_appears_meanwhile_is_left_alone(repo: Repository, tmp_path: Path) -> None:
    with pytest.raises(AlreadyExistsError):
        export_icechunk(repo, tmp_path / "out", progress=lambda *_: (tmp_path / "out").mkdir(exist_ok=True))
    (tmp_path / "out").rmdir()
    export_icechunk(repo, tmp_path / "out")
    with pytest.raises(AlreadyExistsError):
        import_icechunk(tmp_path / "out", tmp_path / "back", progress=lambda *_: (tmp_path / "back").write_text("mine"))
    assert (tmp_path / "back").read_text() == "mine"
    assert listing(tmp_path) == {"ocean.icelite", "out", "back"}


def test_sources_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("no")
    for source in ("missing", "empty", "file"):
        with pytest.raises(RepositoryNotFoundError) as caught:
            import_icechunk(tmp_path / source, tmp_path / "out.icelite")
        assert source in str(caught.value)
    with pytest.raises(RepositoryNotFoundError):
        export_icechunk(tmp_path / "missing.icelite", tmp_path / "out")
    assert set(os.listdir(tmp_path)) == {"empty", "file"}


@pytest.mark.parametrize(
    ("key", "document", "said"),
    [
        ("v2/.zarray", b'{"zarr_format": 2, "shape": [1], "chunks": [1]}', "Zarr v2"),
        ("n/zarr.json", {**array([1], [1]), "chunk_grid": {"name": "odd"}}, "bad-metadata"),
        ("k/zarr.json", {**array([1], [1]), "chunk_key_encoding": {"name": "v2"}}, "chunk key encoding"),
    ],
)
def test_nodes_that_icechunk_cannot_hold(repo: Repository, tmp_path: Path, key: str, document: Any, said: str) -> None:
    tip = commit(repo, **{key.replace("/", "__"): document})
    with pytest.raises(InvalidInputError, match=said) as caught:
        export_icechunk(repo, tmp_path / "out")
    assert f"/{key.partition('/')[0]}" in str(caught.value)
    assert tip in str(caught.value)
    assert listing(tmp_path) == {"ocean.icelite"}


def test_attributes_that_are_no_numbers_become_text(repo: Repository, tmp_path: Path) -> None:
    """Icechunk takes strict JSON only, and xarray reads a missing value of text like one of a number."""
    session = repo.writable_session("main")
    odd = {"missing_value": float("nan"), "range": [float("-inf"), 1], "said": "NaN"}
    little = {"codecs": [{"name": "bytes", "configuration": {"endian": "little"}}], "dimension_names": ["x"]}
    put(session.store, "odd/n/zarr.json", {**array([2], [2], "float32", **odd), **little})
    put(session.store, "odd/n/c/0", np.array([1, np.nan], "<f4").tobytes())
    put(session.store, "odd/zarr.json", GROUP)
    session.commit("odd numbers")
    summary = export_icechunk(repo, tmp_path / "out")
    assert summary.rewritten == 1
    there = icechunk.Repository.open(icechunk.local_filesystem_storage(str(tmp_path / "out")))
    store = there.readonly_session("main").store
    attributes = json.loads(get(store, "odd/n/zarr.json"))["attributes"]
    assert attributes == {"missing_value": "NaN", "range": ["-Infinity", 1], "said": "NaN"}
    found = xr.open_zarr(store, group="odd", consolidated=False)["n"]
    np.testing.assert_array_equal(found, [1, np.nan])


def test_a_reference_that_icelite_cannot_hold(tmp_path: Path, folder: Path) -> None:
    first = create_icechunk(tmp_path / "first", folder)
    session = first.writable_session("main")
    put(session.store, "g/a/zarr.json", array([1], [1]))
    session.store.set_virtual_ref("g/a/c/0", "gopher://host/x", offset=0, length=1, validate_container=False)
    tip = session.commit("odd")
    with pytest.raises(InvalidInputError, match="gopher") as caught:
        import_icechunk(tmp_path / "first", tmp_path / "out.icelite")
    assert tip in str(caught.value)
    assert "/g/a" in str(caught.value)
    assert not (tmp_path / "out.icelite").exists()


@pytest.mark.parametrize("what", ["manifests", "snapshots", "repo"])
def test_damaged_repositories(repo: Repository, tmp_path: Path, what: str) -> None:
    export_icechunk(repo, tmp_path / "out")
    place = tmp_path / "out" / what
    for file in [place] if place.is_file() else place.iterdir():
        file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(icelite.IceliteError) as caught:
        import_icechunk(tmp_path / "out", tmp_path / "back.icelite")
    assert isinstance(caught.value, FormatError | InvalidInputError | icelite.StorageError)
    assert listing(tmp_path) == {"ocean.icelite", "out"}


def test_without_the_package(repo: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "icechunk", None)
    for call in (lambda: export_icechunk(repo, tmp_path / "o"), lambda: import_icechunk(tmp_path, tmp_path / "o")):
        with pytest.raises(InvalidInputError, match=r"icelite\[icechunk\]") as caught:
            call()
        assert caught.value.kind == "missing-package"


# -- the small parts -------------------------------------------------------------------------------------------------


@given(st.binary(min_size=12, max_size=12))
def test_ids_as_text_and_back(data: bytes) -> None:
    assert decode_id(encode_id(data)) == data


def test_new_ids_fit_icechunk() -> None:
    assert all(decode_id(new_snapshot_id()) is not None for _ in range(100))
    assert encode_id(bytes.fromhex("0b1cc8d6787580f0e33a6534")) == "1CECHNKREP0F1RSTCMT0"
    assert decode_id("1CECHNKREP0F1RSTCMT1") is None


def test_moves_are_collapsed() -> None:
    moved = [("/g", "/h"), ("/g/a", "/h/a"), ("/g/b", "/other"), ("/x", "/h/x")]
    assert collapse(moved) == [("/g", "/h"), ("/g/b", "/other"), ("/x", "/h/x")]
    assert not are_independent([("/a", "/b"), ("/b", "/a")])
    assert not are_independent([("/g", "/h"), ("/g/b", "/c")])
    assert are_independent([("/a", "/x"), ("/b", "/y")])


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A repository in a folder, and what Icechunk says of its only array, whose references are of every kind."""
    folder = tmp_path_factory.mktemp("manifest")
    config = icechunk.RepositoryConfig.default()
    config.set_virtual_chunk_container(
        icechunk.VirtualChunkContainer("s3://bucket/", icechunk.s3_store(region="eu-west-3"))
    )
    repo = icechunk.Repository.create(icechunk.local_filesystem_storage(str(folder / "ice")), config)
    session = repo.writable_session("main")
    put(session.store, "x/zarr.json", array([60, 2], [1, 1], "float64"))
    specs = [
        icechunk.VirtualChunkSpec([i, 0], f"s3://bucket/{i % 7}.nc", i, 8, "etag" if i % 2 else None) for i in range(60)
    ]
    session.store.set_virtual_refs("x", specs, validate_containers=False)
    put(session.store, "x/c/3/1", bytes(8))
    snapshot = session.commit("m")
    (node,) = (node for node in repo.inspect_snapshot(snapshot)["nodes"] if node["path"] == "/x")
    return folder / "ice", node


def test_manifests_are_read_as_icechunk_wrote_them(manifest: tuple[Path, dict[str, Any]]) -> None:
    folder, node = manifest
    found = {row.chunk: row[2:] for row in Manifests(folder).references(node, None)}
    expected = {f"{i}/0": (f"s3://bucket/{i % 7}.nc", i, 8, "etag" if i % 2 else None, None) for i in range(60)}
    assert found == {**expected, "3/1": ("", 0, 0, None, None)}
    assert [row.chunk for row in Manifests(folder).references(node, {"5/0", "9/9"})] == ["5/0"]


@given(changes=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=6))
def test_manifests_with_flipped_bytes_are_read_or_damaged(
    changes: list[tuple[int, int]], manifest: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, node = manifest
    (original,) = (folder / "manifests").iterdir()
    file = MetadataFile(original)
    for place, value in changes:
        file.data[place % len(file.data)] = value
    (tmp_path / "manifests").mkdir(exist_ok=True)
    file.write(tmp_path / "manifests" / original.name)
    try:
        rows = list(Manifests(tmp_path).references(node, None))
    except FormatError as error:
        assert error.kind == "corrupt"  # noqa: PT017
    else:
        assert len(rows) < len(file.data)


@given(body=st.binary(max_size=400), table=st.sampled_from(["Repo", "Manifest", "Snapshot"]))
def test_any_bytes_are_decoded_or_damaged(body: bytes, table: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes("ICE🧊CHUNK".encode().ljust(HEADER_BYTES, b"\0") + body)
    try:
        MetadataFile(path).decode(table)
    except FormatError as error:
        assert error.kind == "corrupt"  # noqa: PT017


def test_a_metadata_file_that_unpacks_to_gigabytes_is_refused(tmp_path: Path) -> None:
    import zstandard

    header = bytearray("ICE🧊CHUNK".encode().ljust(HEADER_BYTES, b"\0"))
    header[38] = 1
    (tmp_path / "file").write_bytes(bytes(header) + zstandard.ZstdCompressor().compress(bytes(200 << 20)))
    with pytest.raises(FormatError) as caught:
        MetadataFile(tmp_path / "file")
    assert caught.value.kind == "over-budget"
