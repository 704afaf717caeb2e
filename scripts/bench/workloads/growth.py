"""Whether the cost of a commit, a lookup and an open follows what exists: repositories of 10^4 to 10^7 references."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import zarr

SYSTEMS = ("icechunk", "icelite")
LARGEST = {"icechunk": 6, "icelite": 7}  # powers of ten
LENGTH = 1000
LOOKUPS = 500


def _powers(system: Any, scale: float) -> range:
    return range(4, LARGEST[system.name] + 1 + round(np.log10(scale)))


def prepare(system: Any, folder: Path, scale: float) -> None:
    """Build them, and note what a reference cost."""
    data = folder / "data.bin"
    data.write_bytes(bytes(LENGTH))
    costs = {}
    for power in _powers(system, scale):
        count = 10**power
        session = system.create(folder / f"{system.name}-{power}").writable_session("main")
        zarr.create_array(session.store, name="a", shape=(count // 100, 100), chunks=(1, 1), dtype="i1")
        inputs = [data.as_uri()] * count, np.zeros(count, "u8"), np.full(count, LENGTH, "u8")
        start = time.perf_counter()
        session.store.set_virtual_refs_arr("a", (count // 100, 100), *inputs)
        session.commit("")
        costs[f"write 10^{power}"] = (time.perf_counter() - start) / count
    (folder / f"{system.name}.json").write_text(json.dumps(costs))


def measure(system: Any, folder: Path, scale: float) -> dict[str, Any]:
    """Open, look up, commit one chunk, at each size."""
    numbers: dict[str, float] = json.loads((folder / f"{system.name}.json").read_text())
    for power in _powers(system, scale):
        place = folder / f"{system.name}-{power}"
        repeats = 5 if system.name == "icelite" else 1
        opens, commits = [], []
        for number in range(repeats):
            start = time.perf_counter()
            repo = system.open(place)
            zarr.open_array(repo.readonly_session("main").store, path="a", mode="r")
            opened = time.perf_counter()
            session = repo.writable_session("main")
            session.store.set_virtual_ref(f"a/c/{number}/5", (folder / "data.bin").as_uri(), offset=0, length=LENGTH)
            session.commit("one")
            opens.append(opened - start)
            commits.append(time.perf_counter() - opened)
        numbers[f"open 10^{power}"] = median(opens)
        numbers[f"commit 10^{power}"] = median(commits)
        numbers[f"lookup 10^{power}"] = asyncio.run(_lookups(repo.readonly_session("main").store, 10**power // 100))
    return {"numbers": numbers, "facts": {}}


async def _lookups(store: Any, rows: int) -> float:
    places = np.random.default_rng(0).integers(0, (rows, 100), (LOOKUPS, 2)).tolist()
    await store.exists("a/c/0/0")
    start = time.perf_counter()
    found = [await store.exists(f"a/c/{row}/{column}") for row, column in places]
    seconds = time.perf_counter() - start
    assert all(found)
    return seconds / LOOKUPS
