"""A million virtual references: write and commit them, change one, append some, open in a new process."""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from workloads import Clock, digest, disk, in_new_process

SYSTEMS = ("icechunk", "icelite", "kerchunk-json")
FILES = 1000
LENGTH = 1000  # bytes of a chunk
APPENDED = 365


def prepare(system: Any, folder: Path, scale: float) -> None:
    """The files that references point into."""
    data = folder / "data"
    data.mkdir(exist_ok=True)
    for number in range(FILES):
        path = data / f"{number:04d}.bin"
        if not path.exists():
            path.write_bytes(np.random.default_rng(number).bytes(4 * LENGTH))


def _inputs(folder: Path, scale: float) -> tuple[tuple[int, int, int], list[str], Any, Any]:
    grid = (max(1, round(100 * scale)), 100, 100)
    count = int(np.prod(grid))
    urls = [(folder / "data" / f"{number:04d}.bin").as_uri() for number in range(FILES)]
    locations = [urls[number * FILES // count] for number in range(count)]
    offsets = np.random.default_rng(0).integers(0, 3 * LENGTH, count).astype("u8")
    return grid, locations, offsets, np.full(count, LENGTH, "u8")


def measure(system: Any, folder: Path, scale: float) -> dict[str, Any]:
    """All of it, with a new repository."""
    place = folder / system.name
    system.remove(place)
    grid, locations, offsets, lengths = _inputs(folder, scale)
    if system.name == "kerchunk-json":
        return _kerchunk(folder / "references.json", grid, locations, offsets)
    clock = Clock()
    repo = system.create(place)
    session = repo.writable_session("main")
    shape = tuple(10 * size for size in grid)
    zarr.create_array(session.store, name="a", shape=shape, chunks=(10, 10, 10), dtype="i1", compressors=None)
    with clock("write"):
        session.store.set_virtual_refs_arr("a", grid, locations, offsets, lengths)
        session.commit("many")
    unit = 1 if sys.platform == "darwin" else 1024
    clock.numbers["write rss"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    clock.numbers["write disk"] = disk(place)[0]
    del repo, session
    _change_one(system, place, clock, locations[0], grid)
    _append(system, place, clock, locations[0], grid)
    cold = json.loads(in_new_process("cold", "references", system, folder, scale))
    numbers = {**clock.numbers, "cold": cold["seconds"], "cold rss": cold["rss"]}
    return {"numbers": numbers, "facts": {"chunk": cold["chunk"]}}


def _change_one(system: Any, place: Path, clock: Clock, url: str, grid: tuple[int, ...]) -> None:
    before = _written()
    with clock("change one"):
        session = system.open(place).writable_session("main")
        session.store.set_virtual_ref("a/c/0/5/5", url, offset=17, length=LENGTH)
        session.commit("one")
    clock.numbers["change one bytes"] = _written() - before


def _append(system: Any, place: Path, clock: Clock, url: str, grid: tuple[int, ...]) -> None:
    specs = system.specs([([grid[0], n // 100, n % 100], url, n, LENGTH) for n in range(APPENDED)])
    session = system.open(place).writable_session("main")
    array = zarr.open_array(session.store, path="a")
    with clock("append"):
        array.resize((array.shape[0] + 10, *array.shape[1:]))
        session.store.set_virtual_refs("a", specs)
        session.commit("append")


def _written() -> int:
    """Bytes this process gave to the disk so far, where the system says."""
    path = Path("/proc/self/io")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((int(line.split()[1]) for line in lines if line.startswith("write_bytes")), 0)


def _rss() -> int:
    path = Path("/proc/self/statm")
    return int(path.read_text().split()[1]) * resource.getpagesize() if path.exists() else 0


def cold(system: Any, folder: Path, scale: float) -> dict[str, Any]:
    """Open and read one chunk; imports are not counted."""
    __import__(system.package)
    before, start = _rss(), time.perf_counter()
    store = system.open(folder / system.name).readonly_session("main").store
    chunk = zarr.open_array(store, path="a", mode="r")[0:10, 330:340, 330:340]
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "rss": _rss() - before, "chunk": digest(np.ascontiguousarray(chunk))}


def _kerchunk(place: Path, grid: tuple[int, ...], locations: list[str], offsets: Any) -> dict[str, Any]:
    start = time.perf_counter()
    names = (f"a/{i}.{j}.{k}" for i, j, k in np.ndindex(*grid))
    rows = zip(names, locations, offsets.tolist(), strict=True)
    place.write_text(json.dumps({"version": 1, "refs": {name: [url, offset, LENGTH] for name, url, offset in rows}}))
    numbers = {"write": time.perf_counter() - start, "write disk": place.stat().st_size}
    return {"numbers": numbers, "facts": {}}
