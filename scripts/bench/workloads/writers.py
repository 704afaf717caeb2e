"""Two processes commit to one branch at once, each to an array of its own; afterwards every commit is looked for."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import zarr

from workloads import WORKER

SYSTEMS = ("icechunk", "icelite")
COMMITS = 50


def prepare(system: Any, folder: Path, scale: float) -> None:
    """Nothing to prepare."""


def measure(system: Any, folder: Path, scale: float) -> dict[str, Any]:
    """Let them go together; look for every acknowledged commit."""
    place = folder / system.name
    system.remove(place)
    commits = max(5, round(COMMITS * scale))
    session = system.create(place).writable_session("main")
    for name in "ab":
        zarr.create_array(session.store, name=name, shape=(commits,), chunks=(1,), dtype="i4", fill_value=-1)
    session.commit("")
    command = [sys.executable, str(WORKER), "write", "writers", system.name, str(folder), str(scale)]
    writers = [
        subprocess.Popen([*command, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for name in "ab"
    ]
    for writer in writers:
        while writer.stdout is not None and writer.stdout.readline() != "ready\n":
            pass
    start = time.perf_counter()
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    acknowledged = sum(int(writer.communicate()[0].splitlines()[-1]) for writer in writers)
    seconds = time.perf_counter() - start
    group = zarr.open_group(system.open(place).readonly_session("main").store, mode="r")
    found = sum(int((group[name][:] >= 0).sum()) for name in "ab")
    system.remove(place)
    return {"numbers": {"two writers": acknowledged / seconds, "lost": 2 * commits - found}, "facts": {}}


def write(system: Any, folder: Path, scale: float, name: str) -> int:
    """One of the two: commits that were acknowledged."""
    repo = system.open(folder / system.name)
    commits = max(5, round(COMMITS * scale))
    solver = system.rebase()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    acknowledged = 0
    for number in range(commits):
        session = repo.writable_session("main")
        zarr.open_array(session.store, path=name)[number] = number
        try:
            session.commit(f"{name} {number}", rebase_with=solver)
        except system.conflicts() as error:  # this commit is lost, and counted as such
            sys.stderr.write(f"{type(error).__name__}\n")
            continue
        acknowledged += 1
    return acknowledged
