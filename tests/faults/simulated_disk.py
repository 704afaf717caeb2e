"""A disk that loses power: everything that changes files is noted, and played back up to any point.

SQLite's calls are noted by a file system below it, Python's (links, renames, removals, syncs) where they are made.
`cuts` says what a disk may hold after a power cut: what was synced is there; of the rest nothing, everything, any part,
a first part in order, or single sectors. Names are as uncertain as contents until their directory was synced. SQLite
syncs that of a journal that it made (https://sqlite.org/atomiccommit.html); Python syncs what the program asks for.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import apsw
import pytest

SECTOR = 512
LOGGED = apsw.SQLITE_OPEN_MAIN_DB | apsw.SQLITE_OPEN_MAIN_JOURNAL | apsw.SQLITE_OPEN_SUPER_JOURNAL
SURVIVALS = ["nothing", "everything", "some", "first", "sectors"]

Files = dict[str, bytes]  # by name, below the folder that is looked at
Operation = tuple[Any, ...]


@dataclass
class Disk:
    """What happened to the files of one folder, and which call is to fail, and how."""

    root: Path
    log: list[Operation] = field(default_factory=list)
    fail: Callable[[str], None] = lambda operation: None
    known: Files = field(default_factory=dict)  # what Python wrote, as noted last

    def note(self, operation: str, *details: Any, call: str = "") -> None:
        self.fail(call or operation)
        self.log.append((operation, *details))

    def name_of(self, path: Any) -> str | None:
        """The name below the folder; None for what lies elsewhere."""
        path = Path(os.path.abspath(os.fspath(path)))
        return str(path.relative_to(self.root)) if path.is_relative_to(self.root) else None

    def note_content(self, name: str) -> None:
        """What a program wrote into a file by itself is noted when the file is next heard of."""
        path = self.root / name
        if not path.is_file() or (
            any(operation[:2] == ("open", name) for operation in self.log) and name not in self.known
        ):
            return  # SQLite wrote it, and that was noted
        data = path.read_bytes()
        if self.known.get(name) != data:
            self.known[name] = data
            self.log += [("open", name), ("truncate", name, 0), ("write", name, 0, data)]


class RecordedFile(apsw.VFSFile):
    """A file of SQLite whose changes are noted before they are made; temporary files go unnoticed."""

    def __init__(self, disk: Disk, name: Any, flags: list[int]) -> None:
        super().__init__("unix", name, flags)
        self.disk = disk
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        self.name = disk.name_of(path) if path and flags[0] & LOGGED else None
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
            self.disk.note("sync", self.name, True)
        super().xSync(flags)


class RecordingFileSystem(apsw.VFS):
    """SQLite's own file system, with a `Disk` looking on; the default one of the process while it lives."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        super().__init__("recording", base="unix", makedefault=True)

    def xOpen(self, name: Any, flags: list[int]) -> RecordedFile:
        return RecordedFile(self.disk, name, flags)

    def xDelete(self, name: str, sync_directory: bool) -> None:
        if (below := self.disk.name_of(name)) is not None:
            self.disk.note("delete", below, sync_directory)
        super().xDelete(name, sync_directory)


def watch_python(disk: Disk, patch: pytest.MonkeyPatch) -> None:
    """Note what Python does to names and syncs; every call is then made."""

    def watched(name: str, note: Callable[..., None]) -> None:
        real = getattr(os, name)

        def call(*arguments: Any, **options: Any) -> Any:
            if not options.get("dir_fd") and not options.get("src_dir_fd"):
                note(*arguments)
            return real(*arguments, **options)

        patch.setattr(os, name, call)

    def moved(operation: str, source: Any, target: Any) -> None:
        old, new = disk.name_of(source), disk.name_of(target)
        if old is not None and new is not None:
            disk.note_content(old)
            disk.note(operation, old, new)

    def removed(path: Any) -> None:
        if (name := disk.name_of(path)) is not None:
            disk.note("delete", name, False)

    def synced(descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        name = disk.name_of(path)
        if name is not None and os.path.isdir(path):
            disk.note("sync folder", name, call="os.fsync")
        elif name is not None:
            disk.note_content(name)
            disk.note("sync", name, False, call="os.fsync")

    watched("link", lambda source, target: moved("link", source, target))
    watched("rename", lambda source, target: moved("rename", source, target))
    watched("replace", lambda source, target: moved("rename", source, target))
    watched("unlink", removed)
    watched("remove", removed)
    watched("fsync", synced)


@pytest.fixture
def watched_disk(memory: Path) -> Iterator[Disk]:
    """A folder called ``before``, in memory, and what happens there."""
    (memory / "before").mkdir()
    disk = Disk(memory / "before")
    system = RecordingFileSystem(disk)
    with pytest.MonkeyPatch.context() as patch:
        watch_python(disk, patch)
        yield disk
    disk.fail = lambda operation: None
    system.unregister()
    apsw.set_default_vfs("unix")


# -- what a disk may hold after a power cut --------------------------------------------------------------------


class Replay:
    """The files as the disk surely holds them, and what it may hold besides."""

    def __init__(self, files: Files) -> None:
        self.durable = {number: bytearray(data) for number, data in enumerate(files.values())}
        self.names = {name: number for number, name in enumerate(files)}  # as programs see them
        self.durable_names = dict(self.names)
        self.unsynced: list[tuple[int, Operation]] = []
        self.unsynced_names: list[list[tuple[str, int | None]]] = []  # each list becomes true at once
        self.new: set[int] = set()

    def play(self, operation: Operation) -> None:
        kind, name = operation[:2]
        if kind == "open":
            self.create(name)
        elif kind == "delete":
            if self.names.pop(name, None) is not None:
                self.unsynced_names.append([(name, None)])
            if operation[2]:
                self.sync_folder(os.path.dirname(name))
        elif kind in ("link", "rename"):
            self.move(name, operation[2], keep=kind == "link")
        elif kind == "sync folder":
            self.sync_folder("" if name == "." else name)
        elif kind == "sync":
            self.sync(name, by_sqlite=operation[2])
        else:
            self.unsynced.append((self.names[name], operation))

    def create(self, name: str) -> None:
        if name not in self.names:
            number = self.names[name] = len(self.durable)
            self.durable[number] = bytearray()
            self.unsynced_names.append([(name, number)])
            self.new.add(number)

    def move(self, old: str, new: str, *, keep: bool) -> None:
        """Give a file, or all that is in a folder, another name; at once, as a file system's journal does."""
        changes: list[tuple[str, int | None]] = []
        for name in [name for name in self.names if name == old or name.startswith(f"{old}/")]:
            number = self.names[name] if keep else self.names.pop(name)
            changes += [] if keep else [(name, None)]
            changes.append((new + name.removeprefix(old), number))
        self.names.update({name: number for name, number in changes if number is not None})
        self.unsynced_names.append(changes)

    def sync(self, name: str, *, by_sqlite: bool) -> None:
        number = self.names[name]
        for owner, operation in self.unsynced:
            if owner == number:
                change(self.durable[number], operation)
        self.unsynced = [(owner, operation) for owner, operation in self.unsynced if owner != number]
        if by_sqlite and number in self.new:
            self.sync_folder(os.path.dirname(name))
        self.new.discard(number)

    def sync_folder(self, folder: str) -> None:
        """Names in one folder are durable; a change that concerns two folders is, with either of them."""
        done = [changes for changes in self.unsynced_names if any(os.path.dirname(n) == folder for n, _ in changes)]
        for changes in done:
            rename(self.durable_names, changes)
        self.unsynced_names = [changes for changes in self.unsynced_names if changes not in done]

    def after_the_cut(self, survival: str, chance: random.Random) -> Files:
        """The files of one possible disk."""
        contents = {number: bytearray(data) for number, data in self.durable.items()}
        names = dict(self.durable_names)
        count = {"nothing": 0, "everything": len(self.unsynced_names)}.get(survival)
        for changes in self.unsynced_names[
            : chance.randrange(len(self.unsynced_names) + 1) if count is None else count
        ]:
            rename(names, changes)
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


def change(data: bytearray, operation: Operation) -> None:
    if operation[0] == "truncate":
        del data[operation[2] :]
        return
    offset, written = operation[2:]
    data.extend(bytes(max(0, offset - len(data))))
    data[offset : offset + len(written)] = written


def sectors(operation: Operation) -> Iterator[Operation]:
    """A write as the sectors that a disk writes at once; a truncation is one already."""
    if operation[0] == "truncate":
        yield operation
        return
    kind, name, offset, data = operation
    while data:
        length = SECTOR - offset % SECTOR
        yield (kind, name, offset, data[:length])
        offset, data = offset + length, data[length:]


def cuts(files: Files, log: list[Operation], seed: int, stride: int = 1) -> Iterator[tuple[int, Files]]:
    """Number of operations done and a possible disk, for a cut after every ``stride``-th of them."""
    chance = random.Random(seed)
    replay = Replay(files)
    for done, operation in enumerate(log, start=1):
        replay.play(operation)
        if done % stride == 0:
            for survival in SURVIVALS:
                yield done, replay.after_the_cut(survival, chance)


def files_of(folder: Path) -> Files:
    """Everything in a folder, by name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def lay(files: Files, folder: Path) -> None:
    """Put files into an empty folder."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
