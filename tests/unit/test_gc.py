"""What garbage collection removes and what it must not: directly, beside a writer, and in random histories."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icelite.catalog import reachability, removal
from icelite.catalog.reachability import SnapshotTree, Version, in_preorder, needed, seen
from icelite.change_set import chunks as pending
from icelite.conflicts import ConflictDetector
from icelite.errors import ConflictError, ErrorKind, FormatError, SessionStateError, SnapshotNotFoundError
from icelite.repository import Repository
from icelite.types import INITIAL_SNAPSHOT_ID, GCSummary, UpdateType

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


# -- the pure part -----------------------------------------------------------------------------------------------


def test_intervals_of_a_tree() -> None:
    """Segment 1: 1 2 5; 6 forks at 2 and holds 6 7; 8 forks at 5, which is gone, and holds nothing."""
    tree = SnapshotTree([(1, None, None), (6, 1, 2), (8, 1, 5)], [(1, 1), (2, 1), (6, 6), (7, 6)])
    assert tree.interval(1, 1) == (0, 4)
    assert tree.interval(1, 2) == (1, 4)
    assert tree.interval(6, 6) == (2, 4)
    assert tree.interval(6, 7) == (3, 4)
    start, stop = tree.interval(1, 5)
    assert start == stop
    assert tree.interval(99, 99) == (0, 0)
    assert tree.empty_segments() == [8]


def test_segments_that_form_no_tree() -> None:
    with pytest.raises(FormatError, match="segment 5"):
        SnapshotTree([(5, 7, 6), (7, None, None)], [])
    with pytest.raises(FormatError, match="segment 9"):
        SnapshotTree([(1, None, None)], [(3, 9)])


@given(seed=st.integers(0, 1 << 32))
def test_who_sees_a_version_is_whoever_has_it_as_the_newest(seed: int) -> None:
    """Against a tree of snapshots walked one by one."""
    choose = random.Random(seed)
    parents: dict[int, int | None] = {1: None}
    segs, newest, segments = {1: 1}, {1: 1}, [(1, None, None)]
    for seq in range(2, choose.randrange(3, 30)):
        parent = choose.choice([*parents, max(parents)])
        parents[seq] = parent
        if newest[segs[parent]] == parent:
            segs[seq] = segs[parent]
        else:
            segs[seq] = seq
            segments.append((seq, segs[parent], parent))
        newest[segs[seq]] = seq
    kept = sorted(choose.sample(sorted(parents), choose.randrange(1, len(parents) + 1)))
    tree = SnapshotTree(segments, [(seq, segs[seq]) for seq in kept])
    written = sorted(choose.sample(sorted(parents), choose.randrange(1, len(parents) + 1)))
    deletes = {seq: choose.random() < 0.3 for seq in written}

    def newest_version(seq: int | None) -> int | None:
        while seq is not None and seq not in written:
            seq = parents[seq]
        return seq

    versions = in_preorder(Version(seq, deletes[seq], tree.interval(segs[seq], seq)) for seq in written)
    ranks = {tree.interval(segs[seq], seq)[0]: seq for seq in kept}
    assert sorted(ranks) == list(range(len(kept)))
    winners = {}
    for version, (places, _) in zip(versions, seen(versions), strict=True):
        winners |= {ranks[rank]: version.seq for start, stop in places for rank in range(start, stop)}
    assert winners == {seq: newest_version(seq) for seq in kept if newest_version(seq) is not None}
    stay = needed(versions)
    assert {seq for seq in winners.values() if not deletes[seq]} <= stay
    assert all(deletes[seq] or seq in winners.values() for seq in stay)

    def answer(seq: int | None, among: set[int]) -> int | None:
        while seq is not None and seq not in among:
            seq = parents[seq]
        return None if seq is None or deletes[seq] else seq

    assert all(answer(seq, stay) == answer(seq, set(written)) for seq in kept)
    for seq in stay:  # and none of them could be spared
        assert any(answer(one, stay - {seq}) != answer(one, stay) for one in kept)


# -- what goes, and what stays -----------------------------------------------------------------------------------


def test_versions_that_no_snapshot_sees(workbench: Any) -> None:
    workbench.commit({"x/zarr.json": workbench.array(4), "x/c/0": b"old", "x/c/1": b"kept"})
    workbench.commit({"x/c/0": b"new", "x/zarr.json": workbench.array(5)})
    workbench.commit({"x/c/2": b"deleted again"})
    workbench.commit({"x/c/2": None})
    before = workbench.contents("main")
    workbench.repository.expire_snapshots(workbench.now())
    summary = workbench.repository.garbage_collect(workbench.now())
    assert summary == GCSummary(
        bytes_deleted=len(b"old" + b"deleted again"), chunks_deleted=2, chunk_refs_deleted=3, nodes_deleted=1
    )
    assert workbench.contents("main") == before
    assert workbench.row_counts() | {"change": 0} == {
        "snapshot": 2, "segment": 1, "node": 1, "change": 0, "chunk_ref": 2, "payload": 2, "location": 1
    }  # fmt: skip
    assert workbench.repository.garbage_collect(workbench.now()) == GCSummary()
    assert workbench.repository.verify() == []


def test_nothing_goes_while_every_snapshot_is_there(workbench: Any) -> None:
    for number in range(4):
        workbench.commit({"x/zarr.json": workbench.array(4, note=number), f"x/c/{number % 2}": b"%d" % number})
    before = workbench.row_counts()
    assert workbench.repository.garbage_collect(workbench.now()) == GCSummary()
    assert workbench.row_counts() == before


def test_a_deleted_array_is_forgotten_with_its_chunks(workbench: Any) -> None:
    workbench.commit({"x/zarr.json": workbench.array(4), "x/c/0": b"old", "y/zarr.json": workbench.array(4)})
    workbench.commit({"x": None})
    workbench.commit({"x/zarr.json": workbench.array(4)})
    before = workbench.contents("main")
    workbench.repository.expire_snapshots(workbench.now())
    summary = workbench.repository.garbage_collect(workbench.now())
    assert (summary.nodes_deleted, summary.chunk_refs_deleted, summary.chunks_deleted) == (2, 1, 1)
    assert summary.transaction_logs_deleted == 2  # created, and deleted: nothing could name it any more
    assert workbench.contents("main") == before
    assert workbench.repository.verify() == []


def test_chunks_written_after_the_last_snapshot_that_has_their_array(workbench: Any) -> None:
    """The array is still there for a tag; its later chunks were only ever seen by what is released."""
    tagged = workbench.commit({"x/zarr.json": workbench.array(4), "x/c/0": b"old"})
    workbench.repository.create_tag("v1", tagged)
    workbench.commit({"x/c/0": b"later", "x/c/1": b"later"})
    workbench.commit({"x": None})
    workbench.repository.expire_snapshots(workbench.now())
    summary = workbench.repository.garbage_collect(workbench.now())
    assert summary.chunk_refs_deleted == summary.chunks_deleted == 2
    assert workbench.contents(tag="v1")["x/c/0"] == b"old"
    assert workbench.contents("main") == {}


def test_what_a_fork_has_written_over_goes_though_the_line_is_still_needed(workbench: Any) -> None:
    """An amend forks from the parent of what it replaces: no snapshot sees the chunk at the fork itself."""
    workbench.commit({"x/zarr.json": workbench.array(2), "x/c/0": b"old", "x/c/1": b"seen"})
    workbench.commit({"x/c/0": b"first try"})
    session = workbench.repository.writable_session("main")
    workbench.write(session, {"x/c/0": b"second try"})
    session.amend("work")
    workbench.repository.expire_snapshots(workbench.now())
    summary = workbench.repository.garbage_collect(workbench.now())
    assert summary.chunk_refs_deleted == summary.chunks_deleted == 2
    assert workbench.rows("SELECT count(*) FROM segment") == [(2,)]
    assert workbench.contents("main") == {
        "x/zarr.json": workbench.array(2), "x/c/0": b"second try", "x/c/1": b"seen"
    }  # fmt: skip


def test_snapshots_that_nothing_reaches_go_when_they_are_old(workbench: Any) -> None:
    first = workbench.commit({"x/zarr.json": workbench.array(2), "x/c/0": b"1"})
    gone = workbench.commit({"x/c/0": b"2"})
    workbench.repository.reset_branch("main", first)
    session = workbench.repository.writable_session("main")
    workbench.write(session, {"x/c/1": b"3"})
    anonymous = session.flush("candidate")
    assert workbench.repository.garbage_collect(LONG_AGO) == GCSummary()
    assert workbench.contents(snapshot_id=anonymous)["x/c/1"] == b"3"
    moment = workbench.repository.lookup_snapshot(anonymous).written_at
    summary = workbench.repository.garbage_collect(moment)  # strictly older
    assert (summary.snapshots_deleted, summary.chunks_deleted) == (1, 1)
    assert gone not in [row[0] for row in workbench.rows("SELECT id FROM snapshot")]
    summary = workbench.repository.garbage_collect(moment + timedelta(seconds=1))
    assert (summary.snapshots_deleted, summary.chunks_deleted) == (1, 1)
    assert workbench.history(branch="main") == [first, INITIAL_SNAPSHOT_ID]
    assert workbench.repository.verify() == []


def test_files_stay_named_as_long_as_their_history(workbench: Any, tmp_path: Path) -> None:
    urls = [(tmp_path / name).as_uri() for name in ("a.bin", "b.bin")]
    for url in urls:
        Path(url.removeprefix("file://")).write_bytes(b"0123456789")
    workbench.commit({"x/zarr.json": workbench.array(2)})
    for url in urls:
        session = workbench.repository.writable_session("main")
        session.store.set_virtual_ref("x/c/0", url, offset=2, length=3)
        session.commit("refer")
    session = workbench.repository.writable_session("main")
    session.store.set_virtual_ref("x/c/1", (tmp_path / "a.bin").as_uri(), offset=0, length=3)
    session.flush("nobody adopts it")
    stray = (tmp_path / "c.bin").as_uri()
    (tmp_path / "c.bin").write_bytes(b"0123456789")
    session = workbench.repository.writable_session("main")
    session.store.set_virtual_ref("x/c/1", stray, offset=0, length=3)
    session.flush("nobody adopts it either")
    workbench.repository.expire_snapshots(workbench.now())
    assert workbench.repository.garbage_collect(workbench.now()).locations_deleted == 1
    assert workbench.contents("main")["x/c/0"] == b"234"
    assert workbench.rows("SELECT kind, path FROM location") == [(3, ""), (2, urls[0]), (2, urls[1])]
    assert workbench.repository.verify() == []


def test_a_dry_run_counts_and_changes_nothing(workbench: Any) -> None:
    workbench.commit({"x/zarr.json": workbench.array(2), "x/c/0": b"old"})
    workbench.commit({"x/c/0": b"new"})
    workbench.repository.expire_snapshots(workbench.now())
    before, moment = workbench.row_counts(), workbench.now()
    log = len(list(workbench.repository.ops_log()))
    summary = workbench.repository.garbage_collect(moment, dry_run=True)
    assert workbench.row_counts() == before
    assert len(list(workbench.repository.ops_log())) == log
    assert workbench.repository.garbage_collect(moment) == summary != GCSummary()
    assert next(iter(workbench.repository.ops_log())).kind == UpdateType.GCRan()


def test_icechunk_s_arguments_are_accepted(workbench: Any) -> None:
    summary = workbench.repository.garbage_collect(
        workbench.now(), dry_run=False, max_snapshots_in_memory=1, max_concurrent_deletes=1, max_concurrent_listings=2
    )
    assert summary == GCSummary()


def test_a_node_id_is_not_used_again_while_anything_has_it(workbench: Any) -> None:
    """The newest array is deleted and collected; what is created next is not mistaken for it."""
    first = workbench.commit({"x/zarr.json": workbench.array(2), "x/c/0": b"x"})
    workbench.commit({"y/zarr.json": workbench.array(2), "y/c/0": b"y"})
    workbench.commit({"y": None})
    workbench.repository.expire_snapshots(workbench.now())
    workbench.repository.garbage_collect(workbench.now())
    workbench.commit({"z/zarr.json": workbench.array(2)})
    assert workbench.contents("main").keys() == {"x/zarr.json", "x/c/0", "z/zarr.json"}
    diff = workbench.repository.diff(from_snapshot_id=INITIAL_SNAPSHOT_ID, to_branch="main")
    assert (diff.new_arrays, diff.updated_chunks) == ({"/x", "/z"}, {"/x": [[0]]})
    assert first not in workbench.history(branch="main")
    assert workbench.repository.verify() == []


# -- beside a writer ---------------------------------------------------------------------------------------------


@pytest.fixture
def write_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every chunk's bytes go to the catalog at once."""
    monkeypatch.setattr(pending, "PENDING_BYTES", 0)


@pytest.mark.usefixtures("write_ahead")
def test_bytes_that_a_session_wrote_ahead_are_spared(workbench: Any) -> None:
    workbench.commit({"x/zarr.json": workbench.array(4), "x/c/0": b"old"})
    moment = workbench.now()
    session = workbench.repository.writable_session("main")
    workbench.write(session, {"x/c/0": b"new", "x/c/1": b"more"})
    assert workbench.rows("SELECT count(*) FROM payload") == [(3,)]
    assert workbench.repository.garbage_collect(moment) == GCSummary()
    session.commit("after all")
    assert workbench.contents("main") == {"x/zarr.json": workbench.array(4), "x/c/0": b"new", "x/c/1": b"more"}


@pytest.mark.usefixtures("write_ahead")
def test_a_commit_whose_bytes_are_gone_fails_and_changes_nothing(workbench: Any) -> None:
    workbench.commit({"x/zarr.json": workbench.array(4), "x/c/0": b"old"})
    before = workbench.contents("main")
    session = workbench.repository.writable_session("main")
    workbench.write(session, {"x/c/1": b"lost", "x/c/2": b"lost too"})
    assert workbench.repository.garbage_collect(workbench.now()).chunks_deleted == 2
    for commit in (session.commit, session.amend, session.flush):
        with pytest.raises(SessionStateError, match="2 chunks, among them '1'") as error:
            commit("too late")
        assert error.value.kind == ErrorKind.PAYLOAD_COLLECTED
    assert workbench.contents("main") == before
    workbench.write(session, {"x/c/1": b"again", "x/c/2": b"again"})
    session.commit("written again")
    assert workbench.contents("main")["x/c/2"] == b"again"
    assert workbench.repository.verify() == []


def test_a_session_whose_snapshot_is_gone_commits_nothing(workbench: Any) -> None:
    """Its references may be to bytes that went with the snapshot."""
    workbench.commit({"x/zarr.json": workbench.array(4), "x/c/0": b"old"})
    session = workbench.repository.writable_session("main")
    session.shift_array("x", [1])
    workbench.commit({"x/c/0": b"new"})
    workbench.repository.expire_snapshots(workbench.now())
    workbench.repository.garbage_collect(workbench.now())
    with pytest.raises(ConflictError):
        session.commit("too late")
    with pytest.raises(ConflictError):
        session.commit("too late", rebase_with=ConflictDetector())
    with pytest.raises(SnapshotNotFoundError):
        session.flush("too late, too")
    assert workbench.repository.verify() == []


def test_pending_work_outlives_expiration_and_collection(workbench: Any, tmp_path: Path) -> None:
    """Bytes in memory, locations not yet interned, and a base that is the tip."""
    (tmp_path / "a.bin").write_bytes(b"0123456789")
    workbench.commit({"x/zarr.json": workbench.array(4), "x/c/0": b"old"})
    workbench.commit({"x/c/1": b"older"})
    session = workbench.repository.writable_session("main")
    workbench.write(session, {"x/c/1": b"new", "y/zarr.json": workbench.array(1)})
    session.store.set_virtual_ref("x/c/2", (tmp_path / "a.bin").as_uri(), offset=2, length=3)
    workbench.repository.expire_snapshots(workbench.now())
    workbench.repository.garbage_collect(workbench.now())
    seen_before = workbench.contents_of(session)
    session.commit("after all")
    assert workbench.contents("main") == seen_before
    assert seen_before["x/c/2"] == b"234"
    assert workbench.repository.verify() == []


@pytest.mark.usefixtures("write_ahead")
def test_writers_and_collections_at_the_same_time(new_workbench: Any, tmp_path: Path) -> None:
    """Each thread has connections of its own, as another process would; the cutoff is before what they began at."""
    bench = new_workbench(tmp_path / "x.icelite")
    arrays = ["a", "b"]
    old = bench.commit({f"{name}/zarr.json": bench.array(20) for name in arrays})
    bench.commit({"a/c/0": b"reset away"})
    bench.repository.reset_branch("main", old)
    moment = bench.now()
    bench.commit({f"{name}/c/0": b"first" for name in arrays})

    def write(name: str) -> None:
        repository = Repository.open(bench.storage)
        for number in range(20):
            session = repository.writable_session("main")
            bench.write(session, {f"{name}/c/{number}": b"%d" % number, f"{name}/c/0": b"again %d" % number})
            session.commit("work", rebase_with=ConflictDetector())

    def collect() -> None:
        repository = Repository.open(bench.storage)
        for _ in range(20):
            repository.expire_snapshots(moment)
            repository.garbage_collect(moment)

    with ThreadPoolExecutor() as pool:
        for done in [*(pool.submit(write, name) for name in arrays), pool.submit(collect)]:
            done.result()
    expected = {f"{name}/c/{number}": b"%d" % number for name in arrays for number in range(20)}
    expected |= {f"{name}/c/0": b"again 19" for name in arrays}
    assert {key: value for key, value in bench.contents("main").items() if "/c/" in key} == expected
    assert len(bench.history(branch="main")) == 42
    assert len(bench.rows("SELECT id FROM snapshot")) == 42
    assert bench.repository.verify() == []


def test_a_session_is_not_rebased_over_snapshots_that_expired(workbench: Any) -> None:
    """The first snapshot becomes the parent of the tip: a session on it must not take the tip for all there is."""
    session = workbench.repository.writable_session("main")
    workbench.write(session, {"x/zarr.json": workbench.array(9)})
    workbench.commit({"x/zarr.json": workbench.array(4), "x/c/0": b"theirs"})
    workbench.commit({"y/zarr.json": workbench.array(4)})
    workbench.repository.expire_snapshots(workbench.now())
    with pytest.raises(ConflictError, match="expired"):
        session.commit("not compared with all of theirs", rebase_with=ConflictDetector())
    assert workbench.contents("main")["x/c/0"] == b"theirs"


# -- random histories --------------------------------------------------------------------------------------------

ARRAYS = {"a": (4,), "g/b": (2, 3), "s": ()}
BRANCHES = ["main", "b1", "b2", "b3"]


class Model:
    """Random work on a repository, done to plain dictionaries too; maintenance in between."""

    def __init__(self, workbench: Any, seed: int) -> None:
        self.bench, self.repository, self.random = workbench, workbench.repository, random.Random(seed)
        self.snapshots: dict[str, dict[str, bytes]] = {INITIAL_SNAPSHOT_ID: {}}
        self.parents: dict[str, str | None] = {INITIAL_SNAPSHOT_ID: None}
        self.branches, self.tags = {"main": INITIAL_SNAPSHOT_ID}, {}
        self.tag_count = 0
        self.released: set[str] = set()

    def run(self, steps: int) -> None:
        acts = [self.commit] * 8 + [self.amend, self.amend, self.flush, self.move, self.point, self.point, self.point]
        acts += [self.delete_branch, self.tag, self.delete_tag, self.expire, self.collect, self.collect]
        for _ in range(steps):
            self.random.choice(acts)()

    def _edited(self, branch: str) -> tuple[Any, dict[str, bytes]]:
        session = self.repository.writable_session(branch)
        keys = dict(self.snapshots[session.snapshot_id])
        for _ in range(self.random.randrange(1, 8)):
            edit: dict[str, bytes | None] = {}
            path = self.random.choice(list(ARRAYS))
            document = f"{path}/zarr.json"
            if self.random.random() < 0.1:
                edit["zarr.json"] = self.bench.GROUP
            elif document not in keys or self.random.random() < 0.15:
                edit[document] = self.bench.array(*ARRAYS[path], note=self.random.randrange(3))
            elif self.random.random() < 0.15:
                edit[path] = None
            else:
                chunk = "/".join([path, "c", *(str(self.random.randrange(n)) for n in ARRAYS[path])])
                value = None if self.random.random() < 0.2 else self.random.randbytes(self.random.randrange(1, 5))
                if ARRAYS[path]:  # the one chunk of an array without dimensions has no slash behind its c
                    edit[chunk] = value
                else:
                    edit[chunk] = value or b"s"
            self.bench.write(session, edit)
            for key, value in edit.items():
                for gone in [k for k in keys if value is None and (k == key or k.startswith(key + "/"))]:
                    del keys[gone]
                if value is not None:
                    keys[key] = value
        return session, keys

    def _add(self, new: str, keys: dict[str, bytes], parent: str | None) -> None:
        self.snapshots[new], self.parents[new] = keys, parent

    def commit(self) -> None:
        branch = self.random.choice(sorted(self.branches))
        session, keys = self._edited(branch)
        base = session.snapshot_id
        new = session.commit("work", allow_empty=True)
        self._add(new, keys, base)
        self.branches[branch] = new

    def amend(self) -> None:
        branch = self.random.choice(sorted(self.branches))
        if self.branches[branch] == INITIAL_SNAPSHOT_ID:
            return
        session, keys = self._edited(branch)
        base = session.snapshot_id
        new = session.amend("work", allow_empty=True)
        self._add(new, keys, self.parents[base])
        self.branches[branch] = new

    def flush(self) -> None:
        session, keys = self._edited(self.random.choice(sorted(self.branches)))
        base = session.snapshot_id
        if session.has_uncommitted_changes:
            self._add(session.flush("work"), keys, base)

    def move(self) -> None:
        branch = self.random.choice(sorted(self.branches))
        keys = self.snapshots[self.branches[branch]]
        if {"zarr.json", "a/zarr.json"} <= keys.keys() and "z/zarr.json" not in keys:
            session = self.repository.rearrange_session(branch)
            session.move("/a", "/z")
            base = session.snapshot_id
            new = session.commit("move")
            self._add(new, {("z" + k[1:] if k.startswith("a/") else k): v for k, v in keys.items()}, base)
            self.branches[branch] = new

    def point(self) -> None:
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
        name, target = f"t{self.tag_count}", self.random.choice(list(self.snapshots))
        self.repository.create_tag(name, target)
        self.tags[name] = target
        self.tag_count += 1

    def delete_tag(self) -> None:
        if self.tags:
            name = self.random.choice(sorted(self.tags))
            self.repository.delete_tag(name)
            del self.tags[name]

    # -- maintenance -------------------------------------------------------------------------------------------

    def _moment(self) -> datetime:
        times = [self.repository.lookup_snapshot(i).written_at for i in self.snapshots]
        return self.random.choice([*times, self.bench.now(), self.bench.now()])

    def _older(self, snapshot_id: str, moment: datetime) -> bool:
        return self.parents[snapshot_id] is not None and (
            self.repository.lookup_snapshot(snapshot_id).written_at < moment
        )

    def _release(self, gone: set[str]) -> None:
        self.released |= gone
        for snapshot_id in gone:
            del self.snapshots[snapshot_id], self.parents[snapshot_id]
        for snapshot_id, parent in self.parents.items():
            if parent in gone:
                self.parents[snapshot_id] = INITIAL_SNAPSHOT_ID

    def expire(self) -> None:
        moment, branches, tags = self._moment(), self.random.random() < 0.3, self.random.random() < 0.3
        old = {i for i in self.snapshots if self._older(i, moment)}
        if branches:
            self.branches = {n: i for n, i in self.branches.items() if n == "main" or i not in old}
        if tags:
            self.tags = {n: i for n, i in self.tags.items() if i not in old}
        gone = old - {*self.branches.values(), *self.tags.values()}
        assert gone == self.repository.expire_snapshots(
            moment, delete_expired_branches=branches, delete_expired_tags=tags
        )
        self._release(gone)

    def collect(self) -> None:
        moment = self._moment()
        reached: set[str | None] = {None}
        for tip in [*self.branches.values(), *self.tags.values()]:
            reached.update(self._line(tip))
        gone = {i for i in self.snapshots if i not in reached and self._older(i, moment)}
        assert self.repository.garbage_collect(moment).snapshots_deleted == len(gone)
        self._release(gone)
        self.check()
        self.check_nothing_is_left()

    def _line(self, snapshot_id: str | None) -> list[str]:
        line = []
        while snapshot_id is not None:
            line.append(snapshot_id)
            snapshot_id = self.parents[snapshot_id]
        return line

    # -- checks ------------------------------------------------------------------------------------------------

    def check(self) -> None:
        repository = self.repository
        assert {name: repository.lookup_branch(name) for name in repository.list_branches()} == self.branches
        assert {name: repository.lookup_tag(name) for name in repository.list_tags()} == self.tags
        assert {row[0] for row in self.bench.rows("SELECT id FROM snapshot")} == set(self.snapshots)
        for snapshot_id, keys in self.snapshots.items():
            assert self.bench.contents(snapshot_id=snapshot_id) == keys
            assert self.bench.history(snapshot_id=snapshot_id) == self._line(snapshot_id)
        assert repository.verify() == []

    def check_nothing_is_left(self) -> None:
        """Every row of metadata and every reference, deletions apart, is seen by some snapshot."""
        nodes, refs = set(), set()
        for (snapshot_id,) in self.bench.rows("SELECT id FROM snapshot"):
            view = self.repository.readonly_session(snapshot_id=snapshot_id)._base.view
            bounds = " OR ".join(f"(seg = {seg} AND seq <= {bound})" for seg, bound in view.bounds.items())
            here = self.bench.rows(f"SELECT path, max(seq), node_id, metadata FROM node WHERE {bounds} GROUP BY path")
            alive = {node_id for _, _, node_id, metadata in here if metadata is not None}
            nodes |= {row[:2] for row in here if row[3] is not None}
            for node_id, chunk, seq, location_id in self.bench.rows(
                f"SELECT node_id, chunk, max(seq), location_id FROM chunk_ref WHERE {bounds} GROUP BY node_id, chunk"
            ):
                if node_id in alive and location_id is not None:
                    refs.add((node_id, chunk, seq))
        assert set(self.bench.rows("SELECT path, seq FROM node WHERE metadata IS NOT NULL")) == nodes
        stored = self.bench.rows("SELECT node_id, chunk, seq FROM chunk_ref WHERE location_id IS NOT NULL")
        assert set(stored) == refs


@pytest.mark.parametrize("blocks", ["large", "small"])
@settings(max_examples=20)
@given(seed=st.integers(0, 1 << 32))
def test_what_is_kept_is_what_it_was_and_what_is_not_is_gone(new_workbench: Any, blocks: str, seed: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if blocks == "small":
            patch.setattr(removal, "CHUNKS_AT_ONCE", 2)
            patch.setattr(removal, "PAYLOADS_AT_ONCE", 3)
            patch.setattr(removal, "KNOWN_PATTERNS", 1)
            patch.setattr(reachability, "NODES_AT_ONCE", 2)
            patch.setattr(pending, "PENDING_BYTES", 6)
        model = Model(new_workbench(), seed)
        model.run(60)
        model.collect()
        model.expire()
        model.check()
        model.repository.garbage_collect(model.bench.now())
        assert model.bench.rows(
            "SELECT count(*) FROM payload WHERE id NOT IN (SELECT offset FROM chunk_ref WHERE location_id = 1)"
        ) == [(0,)]
        model.repository.compact()
