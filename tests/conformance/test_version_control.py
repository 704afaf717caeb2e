"""Version control against a model: every verb, in any order, and every kept snapshot read back after each step.

The model knows a snapshot as a dict of keys to values. ``ICELITE_EXAMPLES`` sets how many histories are tried.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

import icelite
from icelite import (
    ConflictDetector,
    ForkSession,
    RebaseFailedError,
    Repository,
    RepositoryConfig,
    Session,
    SessionStateError,
)
from icelite.catalog import locations
from icelite.objects import Objects

Keys = dict[str, bytes]

EXAMPLES = int(os.environ.get("ICELITE_EXAMPLES", "12"))
STEPS = int(os.environ.get("ICELITE_STEPS", "30"))
INITIAL = "1CECHNKREP0F1RSTCMT0"
PATHS = ["a", "b", "g/c", "g/d"]
SIZE = 3

paths = st.sampled_from(PATHS)
chunks = st.integers(0, SIZE - 1)
data = st.binary(min_size=1, max_size=3)

WORKER = """
import json, sys
from zarr.core.buffer import default_buffer_prototype
import icelite
for line in sys.stdin:
    path, branch, key, text = json.loads(line)
    repo = icelite.Repository.open(path)
    session = repo.writable_session(branch)
    session.store.set_sync(key, default_buffer_prototype().buffer.from_bytes(text.encode()))
    print(session.commit("another process"), flush=True)
"""


class OtherProcess:
    """A second Python that commits what it is told to; started when first needed, ended by its own number."""

    process: subprocess.Popen[str] | None = None

    @classmethod
    def commit(cls, path: Path, branch: str, key: str, text: str) -> str:
        if cls.process is None:
            environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
            cls.process = subprocess.Popen(
                [sys.executable, "-c", WORKER],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
            )
        stdin, stdout = cls.process.stdin, cls.process.stdout
        assert stdin is not None and stdout is not None
        return cls._ask(stdin, stdout, json.dumps([str(path), branch, key, text]))

    @staticmethod
    def _ask(stdin: IO[str], stdout: IO[str], line: str) -> str:
        stdin.write(line + "\n")
        stdin.flush()
        return stdout.readline().strip()

    @classmethod
    def stop(cls) -> None:
        if cls.process is not None:
            cls.process.communicate(timeout=30)
            cls.process = None


def document(note: int) -> bytes:
    return json.dumps(
        {
            "zarr_format": 3,
            "node_type": "array",
            "shape": [SIZE],
            "data_type": "uint8",
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1]}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": 0,
            "codecs": [{"name": "bytes"}],
            "attributes": {"note": note},
        }
    ).encode()


def put(session: Session, key: str, value: bytes) -> None:
    session.store.set_sync(key, default_buffer_prototype().buffer.from_bytes(value))


def read(session: Session) -> Keys:
    async def keys() -> list[str]:
        return [key async for key in session.store.list()]

    found: Keys = {}
    for key in sync(keys()):
        value = session.store.get_sync(key)
        assert value is not None, key
        found[key] = value.to_bytes()
    return found


@dataclass
class Work:
    """A session under way: what it sees, and what it began with."""

    session: Session
    branch: str
    base: str
    before: Keys
    now: Keys = field(default_factory=dict)

    def edits(self) -> dict[str, bytes | None]:
        keys = self.before.keys() | self.now.keys()
        return {key: self.now.get(key) for key in keys if self.before.get(key) != self.now.get(key)}


class VersionControl(RuleBasedStateMachine):
    """Histories of one repository in a file."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "a.icelite"
        self.repo = self.create()
        self.contents: dict[str, Keys] = {INITIAL: {}}
        self.parents: dict[str, str | None] = {INITIAL: None}
        self.branches = {"main": INITIAL}
        self.tags: dict[str, str] = {}
        self.burnt: set[str] = set()
        self.works: list[Work] = []

    def create(self) -> Repository:
        return Repository.create(self.path)

    def teardown(self) -> None:
        self.works.clear()
        self.repo.close()
        self.folder.cleanup()

    # -- helpers -----------------------------------------------------------------------------------------------

    def pick(self, number: int) -> Work:
        return self.works[number % len(self.works)]

    def has_work(self) -> bool:
        return bool(self.works)

    def record(self, snapshot_id: str, parent: str | None, keys: Keys, branch: str | None) -> None:
        self.contents[snapshot_id] = dict(keys)
        self.parents[snapshot_id] = parent
        if branch is not None:
            self.branches[branch] = snapshot_id

    def end(self, work: Work) -> None:
        self.works.remove(work)

    def line(self, snapshot_id: str | None) -> list[str]:
        found = []
        while snapshot_id is not None:
            found.append(snapshot_id)
            snapshot_id = self.parents[snapshot_id]
        return found

    # -- editing -----------------------------------------------------------------------------------------------

    @initialize()
    def first_arrays(self) -> None:
        self.open_session("main")
        for path in PATHS[:3]:
            self.create_array(0, path, 0)
            self.write_chunk(0, path, 0, b"0")
        self.commit(0)

    @rule(branch=st.sampled_from(["main", "dev", "x"]))
    def open_session(self, branch: str) -> None:
        if branch in self.branches and len(self.works) < 4:
            tip = self.branches[branch]
            session = self.repo.writable_session(branch)
            assert session.snapshot_id == tip
            self.works.append(Work(session, branch, tip, dict(self.contents[tip]), dict(self.contents[tip])))

    @precondition(has_work)
    @rule(number=st.integers(0, 3), path=paths, note=st.integers(0, 3))
    def create_array(self, number: int, path: str, note: int) -> None:
        work = self.pick(number)
        put(work.session, f"{path}/zarr.json", document(note))
        old = work.now.get(f"{path}/zarr.json")
        work.now[f"{path}/zarr.json"] = old if old == document(note) else document(note)

    @precondition(has_work)
    @rule(number=st.integers(0, 3), path=paths, chunk=chunks, value=data)
    def write_chunk(self, number: int, path: str, chunk: int, value: bytes) -> None:
        work = self.pick(number)
        key = f"{path}/c/{chunk}"
        if f"{path}/zarr.json" in work.now:
            put(work.session, key, value)
            work.now[key] = value
        else:
            with pytest.raises(icelite.NodeNotFoundError):
                put(work.session, key, value)

    @precondition(has_work)
    @rule(number=st.integers(0, 3), path=paths, chunk=chunks)
    def delete_chunk(self, number: int, path: str, chunk: int) -> None:
        work = self.pick(number)
        work.session.store.delete_sync(f"{path}/c/{chunk}")
        work.now.pop(f"{path}/c/{chunk}", None)

    @precondition(has_work)
    @rule(number=st.integers(0, 3), path=st.sampled_from([*PATHS, "g"]))
    def delete_node(self, number: int, path: str) -> None:
        work = self.pick(number)
        sync(work.session.store.delete_dir(path))
        work.now = {key: value for key, value in work.now.items() if not key.startswith(path + "/")}

    @precondition(has_work)
    @rule(number=st.integers(0, 3), path=paths, offset=st.integers(-2, 2))
    def shift(self, number: int, path: str, offset: int) -> None:
        work = self.pick(number)
        if f"{path}/zarr.json" in work.now:
            work.session.shift_array(path, [offset])
            old = [work.now.pop(f"{path}/c/{chunk}", None) for chunk in range(SIZE)]
            for chunk, value in enumerate(old):
                if value is not None and 0 <= chunk + offset < SIZE:
                    work.now[f"{path}/c/{chunk + offset}"] = value

    @precondition(has_work)
    @rule(number=st.integers(0, 3))
    def discard(self, number: int) -> None:
        work = self.pick(number)
        work.session.discard_changes()
        assert not work.session.has_uncommitted_changes
        work.now = dict(work.before)

    @precondition(has_work)
    @rule(number=st.integers(0, 3), path=paths, values=st.lists(data, min_size=2, max_size=2))
    def fork_and_merge(self, number: int, path: str, values: list[bytes]) -> None:
        work = self.pick(number)
        if f"{path}/zarr.json" not in work.now:
            return
        began = dict(work.now)
        forks: list[ForkSession] = [pickle.loads(pickle.dumps(work.session.fork())) for _ in values]
        for chunk, (fork, value) in enumerate(zip(forks, values, strict=True)):
            put(fork, f"{path}/c/{chunk}", value)
            assert read(fork) == {**began, f"{path}/c/{chunk}": value}
            work.now[f"{path}/c/{chunk}"] = value
        work.session.merge(*[pickle.loads(pickle.dumps(fork)) for fork in forks])

    # -- snapshots ---------------------------------------------------------------------------------------------

    def succeeds(self, work: Work) -> bool:
        return self.branches.get(work.branch) == work.base

    @precondition(has_work)
    @rule(number=st.integers(0, 3))
    def commit(self, number: int) -> None:
        work = self.pick(number)
        try:
            snapshot_id = work.session.commit("commit")
        except SessionStateError as error:
            assert error.kind == "no-changes-to-commit" and not work.edits()
        except icelite.RefNotFoundError:
            assert work.branch not in self.branches
            self.end(work)
        except icelite.ConflictError as error:
            assert not self.succeeds(work) and error.actual_parent == self.branches[work.branch]
        else:
            assert self.succeeds(work)
            self.record(snapshot_id, work.base, work.now, work.branch)
            assert work.session.read_only
            self.end(work)

    @precondition(has_work)
    @rule(number=st.integers(0, 3))
    def commit_with_rebase(self, number: int) -> None:
        work = self.pick(number)
        if work.branch not in self.branches:
            return
        tip, ours = self.branches[work.branch], work.edits()
        reachable = work.base in self.line(tip)
        try:
            snapshot_id = work.session.commit("rebased", rebase_with=ConflictDetector())
        except SessionStateError as error:
            assert error.kind == "no-changes-to-commit"
        except RebaseFailedError as error:
            assert reachable and error.conflicts
            assert read(work.session) == work.now
        except icelite.ConflictError:
            assert not reachable
        else:
            assert reachable
            theirs = self.contents[tip]
            changed = {key for key in theirs.keys() | work.before.keys() if theirs.get(key) != work.before.get(key)}
            both = changed & {key for key in ours if "/c/" in key}
            assert all(ours[key] is None and key not in theirs for key in both)  # deleted by both
            keys = {key: value for key, value in {**theirs, **ours}.items() if value is not None}
            self.record(snapshot_id, tip, keys, work.branch)
            self.end(work)

    @precondition(has_work)
    @rule(number=st.integers(0, 3))
    def amend(self, number: int) -> None:
        work = self.pick(number)
        try:
            snapshot_id = work.session.amend("amended", allow_empty=True)
        except SessionStateError as error:
            assert error.kind == "no-amend-for-initial-commit" and work.base == INITIAL
        except icelite.RefNotFoundError:
            assert work.branch not in self.branches
            self.end(work)
        except icelite.ConflictError:
            assert not self.succeeds(work)
        else:
            assert self.succeeds(work)
            self.record(snapshot_id, self.parents[work.base], work.now, work.branch)
            self.end(work)

    @precondition(has_work)
    @rule(number=st.integers(0, 3))
    def flush(self, number: int) -> None:
        work = self.pick(number)
        if work.edits():
            self.record(work.session.flush("anonymous"), work.base, work.now, None)
            self.end(work)

    @rule(source=paths, place=st.sampled_from([*PATHS, "moved"]))
    def move(self, source: str, place: str) -> None:
        tip = self.branches["main"]
        keys = self.contents[tip]
        taken = any(key.startswith(place + "/") for key in keys)
        parent = place.rpartition("/")[0]
        if f"{source}/zarr.json" not in keys or taken or (parent and f"{parent}/zarr.json" not in keys):
            return
        if parent == "" and "zarr.json" not in keys:
            return
        session = self.repo.rearrange_session("main")
        session.move("/" + source, "/" + place)
        moved = {
            place + key[len(source) :] if key.startswith(source + "/") else key: value for key, value in keys.items()
        }
        self.record(session.commit("moved"), tip, moved, "main")

    @precondition(has_work)
    @rule(number=st.integers(0, 3), path=st.sampled_from(["", "g"]))
    def create_group(self, number: int, path: str) -> None:
        work = self.pick(number)
        key = f"{path}/zarr.json".lstrip("/")
        if key not in work.now:
            value = b'{"zarr_format": 3, "node_type": "group"}'
            put(work.session, key, value)
            work.now[key] = value

    @rule(branch=st.sampled_from(["main", "dev"]), path=paths, chunk=chunks, letter=st.sampled_from("xyz"))
    def another_process(self, branch: str, path: str, chunk: int, letter: str) -> None:
        if branch in self.branches and f"{path}/zarr.json" in self.contents[self.branches[branch]]:
            key = f"{path}/c/{chunk}"
            tip = self.branches[branch]
            snapshot_id = OtherProcess.commit(self.path, branch, key, letter)
            self.record(snapshot_id, tip, {**self.contents[tip], key: letter.encode()}, branch)

    # -- names -------------------------------------------------------------------------------------------------

    @rule(name=st.sampled_from(["dev", "x"]), number=st.integers(0, 99))
    def create_or_reset_branch(self, name: str, number: int) -> None:
        snapshot_id = list(self.contents)[number % len(self.contents)]
        if name in self.branches:
            self.repo.reset_branch(name, snapshot_id, from_snapshot_id=self.branches[name])
        else:
            self.repo.create_branch(name, snapshot_id)
        self.branches[name] = snapshot_id

    @rule(name=st.sampled_from(["dev", "x"]))
    def delete_branch(self, name: str) -> None:
        if name in self.branches:
            self.repo.delete_branch(name)
            del self.branches[name]

    @rule(name=st.sampled_from(["v1", "v2", "v3"]), number=st.integers(0, 99))
    def create_tag(self, name: str, number: int) -> None:
        snapshot_id = list(self.contents)[number % len(self.contents)]
        if name in self.tags or name in self.burnt:
            with pytest.raises(icelite.AlreadyExistsError):
                self.repo.create_tag(name, snapshot_id)
        else:
            self.repo.create_tag(name, snapshot_id)
            self.tags[name] = snapshot_id

    @rule(name=st.sampled_from(["v1", "v2"]))
    def delete_tag(self, name: str) -> None:
        if name in self.tags:
            self.repo.delete_tag(name)
            del self.tags[name]
            self.burnt.add(name)

    @rule(source=st.sampled_from(["dev", "x"]))
    def merge(self, source: str) -> None:
        if source not in self.branches:
            return
        ours, tip = self.branches[source], self.branches["main"]
        line = self.line(tip)
        base = next(snapshot for snapshot in self.line(ours) if snapshot in line)
        try:
            merged = self.repo.merge(source, "main")
        except (icelite.ConflictError, SessionStateError) as error:
            # commit-conflict: snapshots that would have to be compared have expired
            assert error.kind in ("rebase-failed", "merge-failed", "commit-conflict")
            return
        if merged in self.contents:
            self.branches["main"] = merged
            assert merged in (ours, tip)
            return
        before, after = self.contents[base], self.contents[ours]
        edits = {key: after.get(key) for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
        keys = {key: value for key, value in {**self.contents[tip], **edits}.items() if value is not None}
        self.record(merged, tip, keys, "main")

    # -- upkeep ------------------------------------------------------------------------------------------------

    @rule()
    def reopen(self) -> None:
        self.repo = pickle.loads(pickle.dumps(self.repo))

    @precondition(lambda self: not self.works)
    @rule()
    def expire_and_collect(self) -> None:
        time.sleep(0.000_01)
        moment = datetime.now(UTC)
        released = self.repo.expire_snapshots(moment)
        tips = {INITIAL, *self.branches.values(), *self.tags.values()}
        assert not released & tips
        self.forget(released)
        self.repo.garbage_collect(moment)
        self.forget(self.contents.keys() - {s for tip in tips for s in self.line(tip)})

    def forget(self, released: set[str]) -> None:
        for snapshot_id in released & self.contents.keys():  # others: the snapshots that forks stood on
            del self.contents[snapshot_id]
        for snapshot_id in self.contents:
            if self.parents[snapshot_id] in released:  # as Icechunk does it: the first snapshot takes the place
                self.parents[snapshot_id] = INITIAL
        self.parents = {snapshot_id: self.parents[snapshot_id] for snapshot_id in self.contents}

    # -- what always holds -------------------------------------------------------------------------------------

    @invariant()
    def every_snapshot_is_as_it_was(self) -> None:
        for snapshot_id, keys in self.contents.items():
            assert read(self.repo.readonly_session(snapshot_id=snapshot_id)) == keys, snapshot_id

    @invariant()
    def every_session_sees_its_own(self) -> None:
        for work in self.works:
            assert read(work.session) == work.now

    @invariant()
    def names_are_where_they_were_put(self) -> None:
        assert {name: self.repo.lookup_branch(name) for name in self.repo.list_branches()} == self.branches
        assert {name: self.repo.lookup_tag(name) for name in self.repo.list_tags()} == self.tags
        for tip in self.branches.values():
            assert [info.id for info in self.repo.ancestry(snapshot_id=tip)] == self.line(tip)


class InObjects(VersionControl):
    """The same with every chunk in an object, which up to three share; collection and repacking among all that."""

    def create(self) -> Repository:
        config = RepositoryConfig(inline_chunk_threshold_bytes=0, object_target_bytes=6)
        return Repository.create(self.path, config, objects="chunks")

    def objects(self) -> set[str]:
        return {found.key for found in self.repo._objects.scan()} if isinstance(self.repo._objects, Objects) else set()

    def named(self) -> set[str]:
        """The objects that the catalog names."""
        with self.repo._catalog.read() as txn:
            return {found.key for found in locations.list_packs(txn)}

    @precondition(VersionControl.has_work)
    @rule(number=st.integers(0, 3))
    def upload(self, number: int) -> None:
        """Bytes go ahead of their commit; sessions that are dropped leave orphans."""
        self.pick(number).session.changes.chunks.flush()

    @precondition(VersionControl.has_work)
    @rule(number=st.integers(0, 3))
    def drop(self, number: int) -> None:
        self.works.remove(self.pick(number))

    @rule(min_live=st.sampled_from([0.3, 1.0]))
    def repack(self, min_live: float) -> None:
        """Also while sessions are under way; those see the same bytes before and after."""
        self.repo.repack(min_live=min_live)

    @rule()
    def collect_what_is_older_than_every_session(self) -> None:
        self.repo.garbage_collect(datetime(2020, 1, 1, tzinfo=UTC))

    @precondition(lambda self: not self.works)
    @rule()
    def no_orphan_outlives_a_collection(self) -> None:
        time.sleep(0.002)  # objects tell their milliseconds
        self.expire_and_collect()
        assert self.objects() == self.named()
        assert self.repo.verify() == []

    @invariant()
    def every_object_that_is_named_is_there(self) -> None:
        assert self.named() <= self.objects()


@pytest.mark.parametrize(("machine", "share"), [(VersionControl, 1), (InObjects, 2)])
def test_histories(machine: type[VersionControl], share: int) -> None:
    try:
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=max(1, EXAMPLES // share),
                stateful_step_count=STEPS,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        OtherProcess.stop()
