"""`IceliteStore` as a mapping of keys to bytes, compared with a dict that knows the rules of a Zarr hierarchy.

Every node may be a group or an array of either Zarr format, arrays with 0 to 2 dimensions and every chunk key
encoding. The rules that are icelite's own, and that `Model` states again in its own words:

- a key is a metadata document or a chunk of an existing array; anything else is refused, reading or writing;
- no node lies inside an array, and no array around nodes;
- a node has one format and one kind; deleting what makes it an array deletes its chunks, and so does metadata that
  names or numbers its chunks in another way;
- equal JSON over what is there changes nothing.

On top come commits, discarding, forks and reading old snapshots. ``ICELITE_EXAMPLES`` sets the number of examples.
"""

from __future__ import annotations

import itertools
import json
import math
import pickle
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.buffer import cpu, default_buffer_prototype
from zarr.core.sync import _collect_aiterator, sync

from icelite import IceliteStore, Repository, RepositoryConfig
from icelite.errors import AlreadyExistsError, IceliteError, InvalidInputError, SessionStateError

# Names that could be mistaken for chunk keys or for each other's prefix: "-" sorts before "/", "0" right after it.
PATHS = ("", "a", "a/b", "a/c", "a/0", "a/c/0", "a-b", "a0", "ab", "c")
SHAPES = ((), (3,), (12,), (2, 11))
DOCUMENTS = ("zarr.json", ".zarray", ".zgroup", ".zattrs")
SOURCE = bytes(range(256))  # the file that virtual references point to


@dataclass(frozen=True)
class Kind:
    """What a node is: its document, and for an array the form of its chunk keys."""

    document: str
    shape: tuple[int, ...] | None = None  # None: a group, or attributes
    encoding: str = "default"
    separator: str = "/"

    def text(self, version: int, indent: int | None) -> str:
        """The document; ``version`` is an attribute, ``indent`` only spacing."""
        return json.dumps(self._content(version), indent=indent)

    def _content(self, version: int) -> dict[str, Any]:
        if self.document == ".zattrs":
            return {"version": version}
        if self.document == ".zgroup":
            return {"zarr_format": 2}
        if self.document == ".zarray":
            assert self.shape is not None
            return {
                "zarr_format": 2,
                "shape": self.shape,
                "chunks": [1] * len(self.shape),
                "dtype": "|u1",
                "fill_value": version,
                "dimension_separator": self.separator,
                "order": "C",
                "filters": None,
                "compressor": None,
            }
        content = {"zarr_format": 3, "node_type": "group", "attributes": {"version": version}}
        if self.shape is not None:
            content |= {
                "node_type": "array",
                "shape": self.shape,
                "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1] * len(self.shape)}},
                "chunk_key_encoding": {"name": self.encoding, "configuration": {"separator": self.separator}},
                "data_type": "uint8",
                "fill_value": 0,
                "codecs": [{"name": "bytes"}],
            }
        return content

    def chunk_name(self, position: tuple[int, ...]) -> str:
        """The part of a chunk's key behind the array's path."""
        if self.document == "zarr.json" and self.encoding == "default":
            return self.separator.join(["c", *map(str, position)])
        return self.separator.join(map(str, position)) or "0"

    def same_names(self, other: Kind) -> bool:
        """Whether both name their chunks in the same way."""
        zeros = (0,) * len(self.shape or ())
        return len(other.shape or ()) == len(zeros) and self.chunk_name(zeros) == other.chunk_name(zeros)


def all_kinds() -> Iterator[Kind]:
    yield from (Kind("zarr.json"), Kind(".zgroup"), Kind(".zattrs"))
    for shape, separator in itertools.product(SHAPES, "/."):
        yield Kind(".zarray", shape, separator=separator)
        yield Kind("zarr.json", shape, "default", separator)
        yield Kind("zarr.json", shape, "v2", separator)


KINDS = tuple(all_kinds())
GROUP, OLD_GROUP, OLD_ATTRIBUTES = KINDS[:3]
# Where an example begins; what it does from there on may turn any node into any other kind.
LAYOUTS: dict[str, dict[str, Kind]] = {
    "nothing": {},
    "array at the root": {"": Kind("zarr.json", (2, 11))},
    "Zarr v2 array at the root": {"": Kind(".zarray", (12,), separator=".")},
    "Zarr v3": {
        "": GROUP,
        "a": GROUP,
        "a/b": Kind("zarr.json", (2, 11), "default", "/"),
        "a/c": Kind("zarr.json", (), "default", "/"),
        "a-b": Kind("zarr.json", (2, 11), "v2", "."),
        "a0": Kind("zarr.json", (12,), "v2", "/"),
        "c": Kind("zarr.json", (12,), "default", "."),
    },
    "Zarr v2": {
        "": OLD_GROUP,
        "a": OLD_ATTRIBUTES,
        "a/b": Kind(".zarray", (2, 11), separator="/"),
        "a/c": Kind(".zarray", (2, 11), separator="."),
        "a/0": Kind(".zarray", ()),
        "a0": OLD_ATTRIBUTES,
    },
}


@dataclass
class Model:
    """What the store should hold: values by key, and the arrays among the nodes."""

    values: dict[str, bytes] = field(default_factory=dict)
    arrays: dict[str, Kind] = field(default_factory=dict)

    def copy(self) -> Model:
        return Model(dict(self.values), dict(self.arrays))

    def documents(self, path: str) -> set[str]:
        return {name for name in DOCUMENTS if key_of(path, name) in self.values}

    def array_around(self, path: str) -> str | None:
        """The array that a path lies inside of."""
        return next((array for array in self.arrays if path != array and path.startswith(key_of(array, ""))), None)

    def refuses(self, path: str, kind: Kind) -> bool:
        """Whether a document may not be written."""
        present = self.documents(path)
        if not present and self.array_around(path) is not None:
            return True
        nodes_below = any(key.startswith(key_of(path, "")) and document_of(key) for key in self.below(path))
        if kind.shape is not None and path not in self.arrays and nodes_below:
            return True
        if "zarr.json" in present | {kind.document} and present - {kind.document}:
            return True
        if kind.document == "zarr.json":
            return bool(present) and (path in self.arrays) != (kind.shape is not None)
        return {".zarray", ".zgroup"} <= present | {kind.document}

    def below(self, directory: str) -> list[str]:
        """Keys below a directory, without the documents of a node there."""
        return [
            key
            for key in self.values
            if key.startswith(key_of(directory, "")) and key.removeprefix(key_of(directory, "")) not in DOCUMENTS
        ]

    def write_document(self, path: str, kind: Kind, text: str) -> None:
        key = key_of(path, kind.document)
        if key in self.values and json.loads(self.values[key]) == json.loads(text):
            return
        self.values[key] = text.encode()
        if kind.shape is not None:
            if path in self.arrays and not self.arrays[path].same_names(kind):
                self.drop_chunks(path)
            self.arrays[path] = kind

    def drop_chunks(self, path: str) -> None:
        for key in [key for key in self.below(path) if document_of(key) is None]:
            del self.values[key]

    def delete(self, key: str) -> None:
        if self.values.pop(key, None) is not None and (document := document_of(key)) is not None:
            path, name = document
            if path in self.arrays and name != ".zattrs":
                self.drop_chunks(path)
                del self.arrays[path]

    def delete_dir(self, directory: str) -> None:
        for key in [key for key in self.values if key.startswith(key_of(directory, ""))]:
            self.delete(key)

    def chunk_keys(self, path: str) -> list[str]:
        """The keys of all chunks of an array's grid."""
        kind = self.arrays[path]
        return [
            key_of(path, kind.chunk_name(position)) for position in itertools.product(*map(range, kind.shape or ()))
        ]


def key_of(path: str, name: str) -> str:
    return f"{path}/{name}" if path else name


def document_of(key: str) -> tuple[str, str] | None:
    path, _, name = key.rpartition("/")
    return (path, name) if name in DOCUMENTS else None


def part(value: bytes, byte_range: ByteRequest | None) -> bytes:
    """What a byte range means, as Python slices say it."""
    if isinstance(byte_range, RangeByteRequest):
        return value[byte_range.start : byte_range.end]
    if isinstance(byte_range, OffsetByteRequest):
        return value[byte_range.offset :]
    if isinstance(byte_range, SuffixByteRequest):
        return value[max(0, len(value) - byte_range.suffix) :]
    return value


sizes = st.integers(0, 40)
byte_ranges = st.one_of(
    st.none(),
    st.builds(RangeByteRequest, sizes, sizes),
    st.builds(OffsetByteRequest, sizes),
    st.builds(SuffixByteRequest, sizes),
)
versions = st.integers(0, 2)
payloads = st.binary(max_size=32)
has_arrays = precondition(lambda self: bool(self.model.arrays))
has_commits = precondition(lambda self: bool(self.commits))


class KeyValueMachine(RuleBasedStateMachine):
    """The store, its model, and the committed states of both."""

    def __init__(self, directory: Path, objects: str | None = None) -> None:
        super().__init__()
        directory.mkdir()
        self.source = directory / "source.bin"
        self.source.write_bytes(SOURCE)
        tiny = RepositoryConfig(inline_chunk_threshold_bytes=0, object_target_bytes=40)
        self.repo = Repository.create(directory / "store.icelite", tiny if objects else None, objects=objects)
        self.branch = "main"
        self.store = self.repo.writable_session(self.branch).store
        self.model = Model()
        self.base = Model()
        self.commits: dict[str, Model] = {}

    @initialize(layout=st.sampled_from(list(LAYOUTS)), committed=st.booleans())
    def write_layout(self, layout: str, committed: bool) -> None:
        for path, kind in LAYOUTS[layout].items():
            self.write_document(path, kind, 0, None, False)
        for path in self.model.arrays:
            for key in self.some_chunks(path):
                self.put(key, b"first", False)
                self.model.values[key] = b"first"
        if committed:
            self.commit("session")

    # -- writing -----------------------------------------------------------------------------------------------

    @rule(
        path=st.sampled_from(PATHS),
        kind=st.sampled_from(KINDS),
        version=versions,
        indent=st.sampled_from([None, 1]),
        if_missing=st.booleans(),
    )
    def write_document(self, path: str, kind: Kind, version: int, indent: int | None, if_missing: bool) -> None:
        key, text = key_of(path, kind.document), kind.text(version, indent)
        if if_missing and key in self.model.values:
            self.put(key, text.encode(), if_missing)
        elif self.model.refuses(path, kind):
            with pytest.raises((AlreadyExistsError, InvalidInputError)):
                self.put(key, text.encode(), if_missing)
        else:
            self.put(key, text.encode(), if_missing)
            self.model.write_document(path, kind, text)

    def put(self, key: str, value: bytes, if_missing: bool) -> None:
        write = self.store.set_if_not_exists if if_missing else self.store.set
        sync(write(key, cpu.Buffer.from_bytes(value)))

    @has_arrays
    @rule(data=st.data(), value=payloads, if_missing=st.booleans())
    def write_chunk(self, data: st.DataObject, value: bytes, if_missing: bool) -> None:
        key = self.draw_chunk(data)
        self.put(key, value, if_missing)
        if not (if_missing and key in self.model.values):
            self.model.values[key] = value

    def draw_array(self, data: st.DataObject) -> str:
        return data.draw(st.sampled_from(sorted(self.model.arrays)), label="array")

    def draw_chunk(self, data: st.DataObject) -> str:
        return data.draw(st.sampled_from(self.some_chunks(self.draw_array(data))), label="chunk")

    def some_chunks(self, path: str) -> list[str]:
        """A few chunks of an array, always the same ones, so that rules meet in them."""
        keys = self.model.chunk_keys(path)
        return list(dict.fromkeys([*keys[:2], *keys[-2:]]))

    @has_arrays
    @rule(data=st.data(), offset=st.integers(0, 200), length=st.integers(1, 56))
    def write_virtual_chunk(self, data: st.DataObject, offset: int, length: int) -> None:
        key = self.draw_chunk(data)
        self.store.set_virtual_ref(key, self.source.as_uri(), offset=offset, length=length)
        self.model.values[key] = SOURCE[offset : offset + length]

    @has_arrays
    @rule(data=st.data())
    def write_virtual_block(self, data: st.DataObject) -> None:
        path = self.draw_array(data)
        shape = self.model.arrays[path].shape or ()
        start = tuple(data.draw(st.integers(0, size - 1)) for size in shape)
        grid = tuple(data.draw(st.integers(1, size - first)) for size, first in zip(shape, start, strict=True))
        count = math.prod(grid)
        present = data.draw(st.lists(st.booleans(), min_size=count, max_size=count))
        urls = [self.source.as_uri() if there else "" for there in present]
        self.store.set_virtual_refs_arr(path, grid, urls, list(range(count)), [3] * count, arr_offset=start)
        positions = itertools.product(*(range(first, first + size) for first, size in zip(start, grid, strict=True)))
        for number, (position, there) in enumerate(zip(positions, present, strict=True)):
            if there:
                key = key_of(path, self.model.arrays[path].chunk_name(position))
                self.model.values[key] = SOURCE[number : number + 3]

    @has_arrays
    @rule(data=st.data())
    def write_outside_the_grid(self, data: st.DataObject) -> None:
        path = self.draw_array(data)
        kind = self.model.arrays[path]
        if kind.shape:
            key = key_of(path, kind.chunk_name((*kind.shape[:-1], kind.shape[-1])))
            with pytest.raises(InvalidInputError) as caught:
                self.put(key, b"outside", False)
            assert caught.value.kind == "invalid-chunk-index"

    @rule(path=st.sampled_from(PATHS), name=st.sampled_from(["x", "x.json", "c/01", "c/-1", "1/", "c.1/0", "0.0/0"]))
    def use_another_key(self, path: str, name: str) -> None:
        """No array has such a chunk; ``c.1/0`` and ``0.0/0`` are well formed, but belong to no encoding."""
        key = key_of(path, name)
        with pytest.raises(IceliteError) as caught:
            self.put(key, b"not Zarr", False)
        assert caught.value.kind in ("invalid-key", "node-not-found")

    # -- deleting ----------------------------------------------------------------------------------------------

    @precondition(lambda self: bool(self.model.values))
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.model.values)))
        sync(self.store.delete(key))
        self.model.delete(key)

    @has_arrays
    @rule(data=st.data())
    def delete_a_chunk_that_may_be_missing(self, data: st.DataObject) -> None:
        key = self.draw_chunk(data)
        self.store.delete_sync(key)
        self.model.delete(key)

    @rule(data=st.data(), slash=st.booleans())
    def delete_dir(self, data: st.DataObject, slash: bool) -> None:
        directory = self.draw_directory(data)
        note(f"deleting {directory!r}")
        sync(self.store.delete_dir(directory + "/" * slash))
        self.model.delete_dir(directory)

    @precondition(lambda self: any("/" in key for key in self.model.values if document_of(key) is None))
    @rule(data=st.data())
    def delete_dir_inside_an_array(self, data: st.DataObject) -> None:
        chunks = [key for key in self.model.values if document_of(key) is None and "/" in key]
        directory = data.draw(st.sampled_from(sorted({key.rpartition("/")[0] for key in chunks})), label="directory")
        sync(self.store.delete_dir(directory))
        self.model.delete_dir(directory)

    def draw_directory(self, data: st.DataObject) -> str:
        """A directory of the hierarchy, at any depth, or one that may not exist."""
        known = {key.rpartition("/")[0] for key in self.model.values} | set(PATHS[1:])
        known |= {path.rpartition("/")[0] for path in known}
        return data.draw(st.sampled_from(sorted(known)), label="directory")

    # -- reading -----------------------------------------------------------------------------------------------

    @precondition(lambda self: bool(self.model.values))
    @rule(data=st.data(), requests=st.lists(byte_ranges, min_size=1, max_size=4))
    def read(self, data: st.DataObject, requests: list[ByteRequest | None]) -> None:
        prototype = default_buffer_prototype()
        key = data.draw(st.sampled_from(sorted(self.model.values)))
        value = self.model.values[key]
        expected = [part(value, request) for request in requests]
        partial = sync(self.store.get_partial_values(prototype, ((key, request) for request in requests)))
        assert [buffer.to_bytes() for buffer in partial if buffer is not None] == expected
        assert self.store.get_sync(key, byte_range=requests[0]).to_bytes() == expected[0]
        assert sync(self.store.get(key, prototype, requests[0])).to_bytes() == expected[0]
        assert sync(self.store.getsize(key)) == len(value)
        assert sync(self.store.exists(key))

    @rule(path=st.sampled_from(PATHS), name=st.sampled_from([*DOCUMENTS, "c/0", "c.1", "c", "0", "1", "0/1", "1.0"]))
    def read_what_may_be_missing(self, path: str, name: str) -> None:
        key = key_of(path, name)
        array = next((array for array in self.model.arrays if key.startswith(key_of(array, ""))), None)
        if name not in DOCUMENTS and array is not None and key not in self.model.chunk_keys(array):
            with pytest.raises(InvalidInputError) as caught:
                self.store.get_sync(key)
            assert caught.value.kind == "invalid-key"
        elif key in self.model.values:
            assert self.store.get_sync(key).to_bytes() == self.model.values[key]
        else:
            assert self.store.get_sync(key) is None
            assert not sync(self.store.exists(key))
            with pytest.raises(FileNotFoundError):
                sync(self.store.getsize(key))
            self.store.delete_sync(key)

    @rule(data=st.data(), slash=st.booleans())
    def list_a_directory(self, data: st.DataObject, slash: bool) -> None:
        directory = self.draw_directory(data)
        below = [key for key in self.model.values if key.startswith(key_of(directory, ""))]
        names = {key.removeprefix(key_of(directory, "")).partition("/")[0] for key in below}
        listed = sync(_collect_aiterator(self.store.list_dir(directory + "/" * slash)))
        assert len(listed) == len(names)
        assert set(listed) == names
        size = sync(self.store.getsize_prefix(directory + "/" * slash))
        assert size == sum(len(self.model.values[key]) for key in below)
        assert sync(self.store.is_empty(directory)) == (not below)

    @rule(data=st.data())
    def list_a_prefix(self, data: st.DataObject) -> None:
        whole = data.draw(st.sampled_from([*sorted(self.model.values), *PATHS]), label="key or path")
        prefix = whole[: data.draw(st.integers(0, len(whole)), label="characters")]
        listed = sync(_collect_aiterator(self.store.list_prefix(prefix)))
        assert sorted(listed) == sorted(key for key in self.model.values if key.startswith(prefix))

    @invariant()
    def has_exactly_these_keys(self) -> None:
        listed = sync(_collect_aiterator(self.store.list()))
        assert sorted(listed) == sorted(self.model.values)
        if self.model.values != self.base.values:
            assert self.store.session.has_uncommitted_changes

    # -- versions ----------------------------------------------------------------------------------------------

    @rule(how=st.sampled_from(["store", "session", "reopened"]))
    def commit(self, how: str) -> None:
        """Commit, and go on with the same store, with a new session, or with another object for the file."""
        if not self.store.session.has_uncommitted_changes:
            with pytest.raises(SessionStateError) as caught:
                self.store.session.commit("nothing")
            assert caught.value.kind == "no-changes-to-commit"
            return
        if how == "store":
            snapshot_id = self.store.commit("from the machine")
        else:
            snapshot_id = self.store.session.commit("from the machine")
            self.repo = Repository.open(self.repo.storage) if how == "reopened" else self.repo
            self.store = self.repo.writable_session(self.branch).store
        self.base = self.commits[snapshot_id] = self.model.copy()
        self.assert_holds(self.store, self.model)

    @rule()
    def discard(self) -> None:
        self.store.session.discard_changes()
        self.model = self.base.copy()
        assert not self.store.session.has_uncommitted_changes
        self.assert_holds(self.store, self.model)

    @has_commits
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        """Commit, and go on from any snapshot, on a branch of its own that has a snapshot of its own."""
        self.commit("session")
        snapshot_id = data.draw(st.sampled_from(list(self.commits)), label="snapshot")
        self.branch = f"branch-{len(self.repo.list_branches())}"
        self.repo.create_branch(self.branch, snapshot_id)
        self.store = self.repo.writable_session(self.branch).store
        self.model = self.commits[snapshot_id].copy()
        self.assert_holds(self.store, self.model)
        first = self.store.session.commit("first of the branch", allow_empty=True)
        self.store = self.repo.writable_session(self.branch).store
        self.base = self.commits[first] = self.model.copy()
        self.assert_holds(self.store, self.model)

    @has_commits
    @rule(data=st.data())
    def read_an_old_snapshot(self, data: st.DataObject) -> None:
        snapshot_id = data.draw(st.sampled_from(list(self.commits)), label="snapshot")
        store = self.repo.readonly_session(snapshot_id=snapshot_id).store
        self.assert_holds(store, self.commits[snapshot_id])
        copy = pickle.loads(pickle.dumps(store))
        assert copy == store
        self.assert_holds(copy, self.commits[snapshot_id])

    def assert_holds(self, store: IceliteStore, model: Model) -> None:
        keys = sync(_collect_aiterator(store.list()))
        assert sorted(keys) == sorted(model.values)
        assert {key: store.get_sync(key).to_bytes() for key in keys} == model.values


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pending_bytes", "objects"),
    [(64, None), (32 << 20, None), (64, "chunks")],
    ids=["bytes-spill", "bytes-wait-in-memory", "objects"],
)
def test_key_value_model(
    pending_bytes: int,
    objects: str | None,
    tmp_path: Path,
    examples: hypothesis.settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("icelite.change_set.chunks.PENDING_BYTES", pending_bytes)
    directories = (tmp_path / str(number) for number in itertools.count())
    few = hypothesis.settings(examples, max_examples=max(1, examples.max_examples // (4 if objects else 1)))
    run_state_machine_as_test(lambda: KeyValueMachine(next(directories), objects), settings=few)


# What the machine found, each as the shortest way there.


def write(machine: KeyValueMachine, path: str, kind: Kind) -> None:
    machine.write_document(path, kind, 0, None, False)
    machine.has_exactly_these_keys()


@pytest.mark.parametrize("committed", [False, True])
def test_metadata_that_names_chunks_otherwise_leaves_none_behind(committed: bool, tmp_path: Path) -> None:
    machine = KeyValueMachine(tmp_path / "1")
    write(machine, "a", Kind("zarr.json", (3,)))
    machine.put("a/c/1", b"one dimension", False)
    machine.model.values["a/c/1"] = b"one dimension"
    if committed:
        machine.commit("session")
    write(machine, "a", Kind("zarr.json", (2, 11)))
    assert machine.store.get_sync("a/c/0/1") is None
    write(machine, "a", Kind("zarr.json", (3,)))
    assert machine.store.get_sync("a/c/1") is None
    machine.commit("session")


@pytest.mark.parametrize("committed", [False, True])
def test_chunks_do_not_come_back_with_metadata_that_was_deleted(committed: bool, tmp_path: Path) -> None:
    machine = KeyValueMachine(tmp_path / "1")
    array = Kind(".zarray", (3,))
    write(machine, "a", OLD_ATTRIBUTES)
    write(machine, "a", array)
    machine.put("a/1", b"value", False)
    machine.model.values["a/1"] = b"value"
    if committed:
        machine.commit("session")
    machine.store.delete_sync("a/.zarray")
    machine.model.delete("a/.zarray")
    write(machine, "a", array)
    assert machine.store.get_sync("a/1") is None
    machine.commit("session")


def test_attributes_written_first_do_not_make_room_for_an_array_around_nodes(tmp_path: Path) -> None:
    machine = KeyValueMachine(tmp_path / "1")
    write(machine, "a", OLD_ATTRIBUTES)
    write(machine, "a/b", Kind(".zarray", (3,)))
    assert machine.model.refuses("a", Kind(".zarray", (3,)))
    write(machine, "a", Kind(".zarray", (3,)))
