"""An interrupt at every line of the doors: nothing stays locked, and the object goes on working."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import apsw
import pytest
import zarr

from icelite import Repository, RepositoryConfig
from icelite.catalog import checks, connections, database, door, forks
from icelite.catalog import locks as guard

FILES = {module.__file__ for module in (checks, connections, contextlib, database, door, forks, guard)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "a.icelite"
    repo = Repository.create(path)
    session = repo.writable_session("main")
    zarr.create_array(session.store, name="x", shape=(4,), chunks=(1,), dtype="i4")[:] = 1
    session.commit("start")
    repo.close()
    return path


def interrupted_at(line: int, action: Callable[[], object], then: Callable[[], None]) -> bool:
    """Run with a KeyboardInterrupt at the n-th line of the doors; False once there are no more lines.

    ``then`` is called while the traceback is alive, and with it every frame that the interrupt ended.
    """
    left = line

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal left
        if frame.f_code.co_filename not in FILES:
            return None
        if event == "line":
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        action()
        return False
    except KeyboardInterrupt:
        sys.settrace(None)
        then()
        return True
    finally:
        sys.settrace(None)


def find_locks(path: Path) -> list[str]:
    inode = f":{path.stat().st_ino} "
    return [line for line in Path("/proc/locks").read_text().splitlines() if inode in line]


def commit(repo: Repository) -> None:
    session = repo.writable_session("main")
    zarr.open_array(session.store, path="x")[0] = random.randrange(1000)
    session.commit("more", allow_empty=True)


ACTIONS: dict[str, Callable[[Repository], object]] = {
    "read": lambda repo: repo.list_branches(),
    "row": lambda repo: repo.readonly_session("main").store.get_sync("x/c/0"),
    "write": lambda repo: repo.create_tag(f"t{random.getrandbits(60)}", repo.lookup_branch("main")),
    "commit": commit,
    "compact": lambda repo: repo.compact(),
}


@pytest.mark.skipif(not guard._SET, reason="/proc/locks is Linux's")
@pytest.mark.parametrize("name", ACTIONS)
def test_an_interrupt_at_any_line_leaves_nothing_locked(path: Path, name: str) -> None:
    config = RepositoryConfig(busy_timeout_seconds=0)
    repo, other = Repository.open(path, config), Repository.open(path, config)
    action, line = ACTIONS[name], 1
    step = 1 if os.environ.get("ICELITE_CAMPAIGN") else 11  # a prime, so that lines of loops are met in turn
    action(repo)

    def check() -> None:
        assert find_locks(path) == [], line
        with pytest.raises(apsw.AuthError):
            repo._catalog._connection.execute("PRAGMA cache_size")
        other.create_tag(f"o{line}", other.lookup_branch("main"))  # without waiting
        repo.create_tag(f"t{line}", repo.lookup_branch("main"))

    while interrupted_at(line, lambda: action(repo), check):
        line += step
    assert line > 30
    assert action(repo) is not False
    assert other.verify() == []


LOOP = """
import os, signal, sys, icelite
signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever the shell that started the tests did to it
path, count = sys.argv[1], int(sys.argv[2])
config = icelite.RepositoryConfig(busy_timeout_seconds=1)
repo, other = icelite.Repository.open(path, config), icelite.Repository.open(path, config)
tip, number = repo.lookup_branch("main"), 0
print("alive", flush=True)
for turn in range(count):
    try:
        while True:
            number += 1
            repo.create_branch(f"b{number}", tip)
            repo.delete_branch(f"b{number}")
            if number % 50 == 0:
                repo.compact()
    except KeyboardInterrupt:  # and the traceback is alive
        other.create_branch(f"o{turn}", tip)
        repo.create_branch(f"r{turn}", tip)
    print("ok", flush=True)
"""


def test_real_interrupts_leave_nothing_locked(path: Path) -> None:
    count = 300 if os.environ.get("ICELITE_CAMPAIGN") else 30
    command = [sys.executable, "-c", LOOP, str(path), str(count)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "alive\n"
        pause = random.Random(1)
        for turn in range(count):
            try:
                process.wait(pause.uniform(0.005, 0.03))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGINT)
            assert process.stdout.readline() == "ok\n", (turn, process.stderr and process.stderr.read())
    assert process.returncode == 0
    assert Repository.open(path, check="always").verify() == []
