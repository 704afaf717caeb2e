"""What may lie beside a catalog: only what SQLite wrote is opened, and whatever else stays as it is."""

from __future__ import annotations

import faulthandler
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import apsw
import pytest

from icelite import FormatError, Repository
from icelite.catalog import sidecars

SUFFIXES = ("-journal", "-wal", "-shm")
PRECIOUS = b"precious" * 5_000


@pytest.fixture(autouse=True)
def no_hanging() -> Iterator[None]:
    """End the process, with a traceback, rather than wait for a pipe."""
    faulthandler.dump_traceback_later(120, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    Repository.create(tmp_path / "a.icelite").close()
    (tmp_path / "victim").write_bytes(PRECIOUS)
    return tmp_path / "a.icelite"


def bind(sidecar: Path) -> None:
    here = os.getcwd()
    os.chdir(sidecar.parent)  # the name of a socket must be short
    try:
        socket.socket(socket.AF_UNIX).bind(sidecar.name)
    finally:
        os.chdir(here)


PLANTED: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "link to a device": lambda s: s.symlink_to("/dev/zero"),
    "link to a terminal": lambda s: s.symlink_to("/dev/ptmx"),
    "link to a file": lambda s: s.symlink_to(s.parent / "victim"),
    "dangling link": lambda s: s.symlink_to(s.parent / "made"),
    "link to itself": lambda s: s.symlink_to(s),
    "directory": lambda s: s.mkdir(),
    "socket": bind,
    "hard link": lambda s: os.link(s.parent / "victim", s),
    "notes": lambda s: s.write_bytes(b"notes of mine\n" * 100),
    "a letter": lambda s: s.write_bytes(b"x"),
    "32 KiB of text": lambda s: s.write_bytes(b"x" * (32 << 10)),
    "zeros and text": lambda s: s.write_bytes(bytes(20) + b"x" * 1000),
    "magic and text": lambda s: s.write_bytes(sidecars.JOURNAL_MAGIC + b"x" * 1000),
    "log and text": lambda s: s.write_bytes(sidecars.WAL_MAGICS[0] + b"x" * 1000),
    "another catalog": lambda s: shutil.copy(s.parent / "a.icelite", s),
}


def seen(folder: Path) -> dict[str, object]:
    return {
        p.name: (p.lstat().st_mode, p.readlink() if p.is_symlink() else p.read_bytes() if p.is_file() else None)
        for p in folder.iterdir()
    }


@pytest.mark.parametrize("journal_mode", ["rollback", "wal"])
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("planted", PLANTED)
def test_what_sqlite_did_not_write_is_refused_and_stays(
    path: Path, planted: str, suffix: str, journal_mode: str
) -> None:
    if journal_mode == "wal":
        data = bytearray(path.read_bytes())
        data[18] = data[19] = 2
        path.write_bytes(data)
    PLANTED[planted](Path(f"{path}{suffix}"))
    before = seen(path.parent)
    with pytest.raises(FormatError) as caught:
        Repository.open(path)
    assert caught.value.kind == "unsafe-sidecar"
    assert f"{path}{suffix}" in str(caught.value)
    assert seen(path.parent) == before
    assert (path.parent / "victim").read_bytes() == PRECIOUS


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("planted", [name for name in PLANTED if name not in ("another catalog", "hard link")])
def test_nothing_is_created_beside_it(tmp_path: Path, planted: str, suffix: str) -> None:
    (tmp_path / "victim").write_bytes(PRECIOUS)
    path = tmp_path / "a.icelite"
    PLANTED[planted](Path(f"{path}{suffix}"))
    before = seen(tmp_path)
    with pytest.raises(FormatError) as caught:
        Repository.create(path)
    assert caught.value.kind == "unsafe-sidecar"
    assert seen(tmp_path) == before


@pytest.mark.parametrize("journal_mode", ["delete", "truncate", "persist", "wal"])
@pytest.mark.parametrize("page_size", [512, 4096, 65536])
@pytest.mark.parametrize("when", ["before a commit", "spilled", "after a commit"])
def test_what_sqlite_itself_leaves_is_its_own(tmp_path: Path, journal_mode: str, page_size: int, when: str) -> None:
    """At each moment of a transaction, as a process that was killed then would leave it."""
    path = tmp_path / "b"
    connection = apsw.Connection(str(path))
    connection.pragma("page_size", page_size)
    connection.pragma("journal_mode", journal_mode)
    connection.pragma("cache_size", 2)
    connection.execute("CREATE TABLE t (x); INSERT INTO t VALUES (zeroblob(100000))")
    sidecars.check_sidecars(path)
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("UPDATE t SET x = 'a'" if when != "spilled" else "INSERT INTO t VALUES (randomblob(1000000))")
    sidecars.check_sidecars(path)
    if when == "after a commit":
        connection.execute("COMMIT")
        sidecars.check_sidecars(path)
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in tmp_path.glob("b*"):
        shutil.copy(file, copy)
    sidecars.check_sidecars(copy / "b")
    connection.close()


OTHER = """
import apsw, sys
try:
    apsw.Connection(sys.argv[1]).execute("BEGIN IMMEDIATE")
except apsw.BusyError:
    sys.exit(0)
sys.exit("the lock was dropped")
"""


def test_looking_at_shared_memory_drops_no_lock_of_sqlite(path: Path) -> None:
    """Closing any descriptor of that file would: a second process could then write where a first one does."""
    writer = apsw.Connection(str(path))
    writer.pragma("journal_mode", "wal")
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("INSERT INTO tag (name, seq) VALUES ('x', 1)")
    sidecars.check_sidecars(path)
    other = subprocess.run([sys.executable, "-c", OTHER, str(path)], check=False)
    assert other.returncode == 0
    writer.execute("ROLLBACK")
    writer.close()
