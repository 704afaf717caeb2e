"""Power cuts and failing disks, simulated below SQLite: what a commit promised is kept, and the rest is as before.

A file system between SQLite and the disk records every write, truncation, sync, creation and removal. `cuts` plays
such a record back up to some point and says what a disk may then hold: what was synced is there; of the rest nothing,
everything, any part, a first part in order, or single sectors. Names are as uncertain as contents until their
directory was synced, which SQLite does for a journal that it made (https://sqlite.org/atomiccommit.html).
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import apsw
import pytest
import zarr
from zarr.core.buffer import default_buffer_prototype

from icelite.catalog import connections
from icelite.change_set import chunks as pending
from icelite.errors import ConflictError, IceliteError
from icelite.repository import Repository
from icelite.session import Session

SECTOR = 512
NAME = "a.icelite"
LOGGED = apsw.SQLITE_OPEN_MAIN_DB | apsw.SQLITE_OPEN_MAIN_JOURNAL | apsw.SQLITE_OPEN_SUPER_JOURNAL


@dataclass
class Disk:
    """What happened to the files, and which call is to fail, and how."""

    log: list[tuple[Any, ...]] = field(default_factory=list)
    fail: Callable[[str], None] = lambda operation: None

    def note(self, operation: str, *details: Any) -> None:
        self.fail(operation)
        self.log.append((operation, *details))


class RecordedFile(apsw.VFSFile):
    """A file whose changes are noted before they are made; temporary files go unnoticed."""

    def __init__(self, disk: Disk, name: Any, flags: list[int]) -> None:
        super().__init__("unix", name, flags)
        self.disk = disk
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        self.name = Path(path).name if path and flags[0] & LOGGED else None
        if self.name:
            disk.note("open", self.name)

    def xWrite(self, data: bytes, offset: int) -> None:
        if self.name:
            self.disk.note("write", self.name, offset, bytes(data))
        super().xWrite(data, offset)

    def xTruncate(self, size: int) -> None:
        if self.name:
            self.disk.note("truncate", self.name, size)
        super().xTruncate(size)

    def xSync(self, flags: int) -> None:
        if self.name:
            self.disk.note("sync", self.name)
        super().xSync(flags)


class RecordingFileSystem(apsw.VFS):
    """SQLite's own file system, with a `Disk` looking on; the default one of the process while it lives."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        super().__init__("recording", base="unix", makedefault=True)

    def xOpen(self, name: Any, flags: list[int]) -> RecordedFile:
        return RecordedFile(self.disk, name, flags)

    def xDelete(self, name: str, sync_directory: bool) -> None:
        self.disk.note("delete", Path(name).name, sync_directory)
        super().xDelete(name, sync_directory)


@pytest.fixture
def disk() -> Iterator[Disk]:
    disk = Disk()
    system = RecordingFileSystem(disk)
    yield disk
    disk.fail = lambda operation: None
    system.unregister()
    apsw.set_default_vfs("unix")


# -- what a disk may hold after a power cut --------------------------------------------------------------------

Files = dict[str, bytes]
SURVIVALS = ["nothing", "everything", "some", "first", "sectors"]


class Replay:
    """The files as the disk surely holds them, and what it may hold besides."""

    def __init__(self, files: Files) -> None:
        self.durable = {number: bytearray(data) for number, data in enumerate(files.values())}
        self.names = {name: number for number, name in enumerate(files)}  # as programs see them
        self.durable_names = dict(self.names)
        self.unsynced: list[tuple[int, tuple[Any, ...]]] = []
        self.unsynced_names: list[tuple[str, int | None]] = []
        self.new: set[int] = set()

    def play(self, operation: tuple[Any, ...]) -> None:
        kind, name = operation[:2]
        if kind == "open":
            if name not in self.names:
                number = self.names[name] = len(self.durable)
                self.durable[number] = bytearray()
                self.unsynced_names.append((name, number))
                self.new.add(number)
        elif kind == "delete":
            if self.names.pop(name, None) is not None:
                self.unsynced_names.append((name, None))
            if operation[2]:
                self.sync_directory()
        elif kind == "sync":
            self.sync(self.names[name])
        else:
            self.unsynced.append((self.names[name], operation))

    def sync(self, number: int) -> None:
        for owner, operation in self.unsynced:
            if owner == number:
                change(self.durable[number], operation)
        self.unsynced = [(owner, operation) for owner, operation in self.unsynced if owner != number]
        if number in self.new:
            self.new.discard(number)
            self.sync_directory()

    def sync_directory(self) -> None:
        rename(self.durable_names, self.unsynced_names)
        self.unsynced_names = []

    def after_the_cut(self, survival: str, chance: random.Random) -> Files:
        """The files of one possible disk."""
        contents = {number: bytearray(data) for number, data in self.durable.items()}
        names = dict(self.durable_names)
        if survival == "everything":
            rename(names, self.unsynced_names)
        elif survival != "nothing":
            rename(names, self.unsynced_names[: chance.randrange(len(self.unsynced_names) + 1)])
        cut = chance.randrange(len(self.unsynced) + 1)
        for index, (number, operation) in enumerate(self.unsynced):
            for part in sectors(operation) if survival == "sectors" else [operation]:
                if self._survives(survival, chance, index < cut):
                    change(contents[number], part)
        return {name: bytes(contents[number]) for name, number in names.items()}

    @staticmethod
    def _survives(survival: str, chance: random.Random, is_first: bool) -> bool:
        odds = {"nothing": 0.0, "everything": 1.0, "some": 0.5, "first": float(is_first), "sectors": 0.7}
        return chance.random() < odds[survival]


def rename(names: dict[str, int], changes: list[tuple[str, int | None]]) -> None:
    for name, number in changes:
        if number is None:
            names.pop(name, None)
        else:
            names[name] = number


def change(data: bytearray, operation: tuple[Any, ...]) -> None:
    if operation[0] == "truncate":
        del data[operation[2] :]
        return
    offset, written = operation[2:]
    data.extend(bytes(max(0, offset - len(data))))
    data[offset : offset + len(written)] = written


def sectors(operation: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    """A write as the sectors that a disk writes at once; a truncation is one already."""
    if operation[0] == "truncate":
        yield operation
        return
    kind, name, offset, data = operation
    while data:
        length = SECTOR - offset % SECTOR
        yield (kind, name, offset, data[:length])
        offset, data = offset + length, data[length:]


def cuts(files: Files, log: list[tuple[Any, ...]], seed: int) -> Iterator[tuple[int, Files]]:
    """Number of operations done and a possible disk, for a cut after every one of them."""
    chance = random.Random(seed)
    replay = Replay(files)
    for done, operation in enumerate(log, start=1):
        replay.play(operation)
        for survival in SURVIVALS:
            yield done, replay.after_the_cut(survival, chance)


# -- what is done meanwhile ------------------------------------------------------------------------------------


KEYS = [f"{array}/c/{chunk}" for array in ("x", "y") for chunk in range(4)]


def write(session: Session, number: int) -> None:
    """Chunks of two arrays; the first ones are too many to wait in memory for the commit."""
    for key in KEYS[number % 2 :: 2]:
        session.store.set_sync(key, default_buffer_prototype().buffer.from_bytes(bytes([number] * 4)))


def start(path: Path) -> Repository:
    repository = Repository.create(path)
    session = repository.writable_session("main")
    for name in ("x", "y"):
        zarr.create_array(session.store, name=name, shape=(4,), chunks=(1,), dtype="i4", compressors=None)
    session.commit("two arrays")
    return repository


def values(session: Session) -> list[bytes | None]:
    found = [session.store.get_sync(key) for key in KEYS]
    return [None if value is None else value.to_bytes() for value in found]


@pytest.fixture(autouse=True)
def early_payloads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pending, "PENDING_BYTES", 8)


@dataclass
class Record:
    """Commits made one after another: the disk before, what happened, and what was promised when."""

    files: Files
    log: list[tuple[Any, ...]]
    promised: list[tuple[int, str]]  # operations done when commit returned, snapshot id
    expected: dict[str, list[bytes | None]]  # by snapshot id


def record(path: Path, disk: Disk, commits: int) -> Record:
    repository = start(path)
    tip = repository.lookup_branch("main")
    before = values(repository.readonly_session("main"))
    files = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    disk.log.clear()
    done = Record(files, disk.log, [(0, tip)], {tip: before})
    for number in range(commits):
        session = repository.writable_session("main")
        write(session, number)
        tip = session.commit(f"commit {number}")
        done.promised.append((len(disk.log), tip))
        done.expected[tip] = values(session)
    return done


def fault(done: Record, operations: int, files: Files, place: Path) -> str | None:
    """What is wrong with a disk, None if nothing: it opens, and has all of what was promised and whole commits only."""
    for old in place.iterdir():
        old.unlink()
    for name, data in files.items():
        (place / name).write_bytes(data)
    ids = [snapshot_id for _, snapshot_id in done.promised]
    promised = sum(at <= operations for at, _ in done.promised)
    try:
        repository = Repository.open(place / NAME, check="always")
        line = [info.id for info in repository.ancestry(branch="main")][-2::-1]
        found = values(repository.readonly_session("main"))
        if operations % 10 == 0:  # and work goes on
            session = repository.writable_session("main")
            write(session, 50)
            session.commit("after the cut")
    except IceliteError as error:
        return f"damaged: {error}"
    if line not in (ids[:promised], ids[: promised + 1]):
        return f"{promised} snapshots were promised, there are {len(line)}"
    return None if found == done.expected[line[-1]] else f"snapshot {line[-1]} is not whole"


@pytest.fixture
def path(memory: Path) -> Path:
    (memory / "before").mkdir()
    return memory / "before" / NAME


@pytest.fixture
def place(memory: Path) -> Path:
    (memory / "after").mkdir()
    return memory / "after"


def look_away(disk: Disk) -> list[tuple[Any, ...]]:
    """What was noted; nothing is from now on."""
    log = list(disk.log)
    disk.note = lambda *details: None  # type: ignore[method-assign]
    return log


def test_a_power_cut_loses_nothing_that_was_promised(path: Path, place: Path, disk: Disk) -> None:
    done = record(path, disk, commits=2)
    faults = [(at, fault(done, at, files, place)) for at, files in cuts(done.files, look_away(disk), seed=1)]
    assert len(faults) > 600
    assert [(at, what) for at, what in faults if what] == []


def test_the_simulator_finds_what_a_missing_sync_would_lose(
    path: Path, place: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without syncs, acknowledged commits are lost and files damaged: the test above would not pass by accident."""
    tuned = connections.set_pragmas

    def careless(connection: apsw.Connection) -> None:
        tuned(connection)
        connection.pragma("synchronous", "off")

    with monkeypatch.context() as patch:
        patch.setattr(connections, "set_pragmas", careless)
        done = record(path, disk, commits=1)
    faults = {fault(done, at, files, place) for at, files in cuts(done.files, look_away(disk), seed=1)}
    assert any(what and "promised" in what for what in faults)
    assert any(what and "damaged" in what for what in faults)


def test_no_journal_ever_names_another_file(path: Path, disk: Disk) -> None:
    """The check on opening refuses such a journal as planted (catalog/checks.py)."""
    done = record(path, disk, commits=2)
    assert {operation[1] for operation in done.log} == {NAME, f"{NAME}-journal"}


def test_a_commit_syncs_the_journal_then_the_catalog_then_lets_the_journal_go(path: Path, disk: Disk) -> None:
    done = record(path, disk, commits=1)
    last = [operation[:2] for operation in done.log if operation[0] in ("sync", "truncate")][-5:]
    journal = f"{NAME}-journal"
    assert last == [("sync", journal)] * 2 + [("sync", NAME), ("truncate", journal), ("sync", journal)]


# -- disks that fail -------------------------------------------------------------------------------------------


@dataclass
class Failure:
    """Lets the ``number``-th operation of some kinds fail, once or with all that follow."""

    kinds: tuple[str, ...]
    number: int
    error: type[Exception]
    for_good: bool
    count: int = 0

    def __call__(self, operation: str) -> None:
        if operation in self.kinds:
            self.count += 1
            if self.count == self.number or (self.for_good and self.count > self.number):
                raise self.error("injected")


CASES = [
    pytest.param(("write",), apsw.FullError, "storage-full", True, id="disk-full"),
    pytest.param(("write", "truncate"), apsw.IOError, "io", False, id="write-error"),
    pytest.param(("sync",), apsw.IOError, "io", False, id="sync-error"),
]


@pytest.mark.parametrize(("kinds", "error", "kind", "for_good"), CASES)
def test_after_any_failed_call_the_repository_is_whole_and_the_session_can_try_again(
    path: Path, disk: Disk, kinds: tuple[str, ...], error: type[Exception], kind: str, for_good: bool
) -> None:
    """The n-th call of a session's work fails, for every n, and then the disk is well again."""
    repository = start(path)
    in_doubt = []
    for number in itertools.count(1):
        tip, before = repository.lookup_branch("main"), values(repository.readonly_session("main"))
        session = repository.writable_session("main")
        disk.fail = failure = Failure(kinds, number, error, for_good)
        caught = None
        try:
            write(session, number)
            session.commit("while the disk fails")
        except IceliteError as raised:
            caught = raised
        disk.fail = lambda operation: None
        if caught is not None:
            assert_kind(caught, kind)
            seen = Repository.open(path, check="always")
            if seen.lookup_branch("main") == tip:
                assert values(seen.readonly_session("main")) == before
                write(session, number)
                session.commit("on a disk that is well")
            else:  # the commit had taken effect, and only the last sync failed
                in_doubt.append(number)
                with pytest.raises(ConflictError):
                    session.commit("again")
        fresh = Repository.open(path, check="always")
        assert values(fresh.readonly_session("main")) == expected_after(before, number)
        if failure.count < number:
            break  # there is no n-th call: all have been tried
    assert number > 5
    assert len(in_doubt) == (kinds == ("sync",))


def assert_kind(error: IceliteError, kind: str) -> None:
    assert error.kind == kind, error


def expected_after(before: list[bytes | None], number: int) -> list[bytes | None]:
    after = list(before)
    after[number % 2 :: 2] = [bytes([number] * 4)] * len(after[number % 2 :: 2])
    return after
