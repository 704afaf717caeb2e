"""A thousand commits that each overwrite a few chunks, questions about that history, and its end."""

from __future__ import annotations

import gc
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from workloads import Clock, digest, disk

SYSTEMS = ("icechunk", "icelite")
COMMITS, CHUNKS, CHUNK, EACH, KEPT = 1000, 10_000, 1024, 10, 100


def prepare(system: Any, folder: Path, scale: float) -> None:
    """Nothing to prepare."""


def measure(system: Any, folder: Path, scale: float) -> dict[str, Any]:
    """Write the history, ask, expire, collect."""
    clock = Clock()
    place = folder / system.name
    system.remove(place)
    commits = max(10, round(COMMITS * scale))
    repo = system.create(place)
    oldest = _first(repo)
    rng = np.random.default_rng(0)
    with clock("commits"):
        for number in range(commits):
            session = repo.writable_session("main")
            array = zarr.open_array(session.store, path="a")
            for chunk in rng.choice(CHUNKS, EACH, replace=False).tolist():
                array[chunk * CHUNK : (chunk + 1) * CHUNK] = np.frombuffer(rng.bytes(CHUNK), "u1")
            session.commit(str(number))
    del repo, session, array  # SQLite removes its journal with the last connection
    gc.collect()
    clock.numbers["commits disk"], clock.numbers["commits files"] = disk(place)
    facts = _ask(system.open(place), clock, oldest)
    facts["kept"] = _end(system, place, clock, max(2, round(KEPT * scale)))
    system.remove(place)
    return {"numbers": clock.numbers, "facts": facts}


def _first(repo: Any) -> str:
    session = repo.writable_session("main")
    array = zarr.create_array(
        session.store, name="a", shape=(CHUNKS * CHUNK,), chunks=(CHUNK,), dtype="u1", compressors=None
    )
    array[:] = np.frombuffer(np.random.default_rng(1).bytes(CHUNKS * CHUNK), "u1")
    return str(session.commit("first"))


def _ask(repo: Any, clock: Clock, oldest: str) -> dict[str, Any]:
    with clock("ancestry"):
        snapshots = list(repo.ancestry(branch="main"))
    with clock("oldest chunk"):
        store = repo.readonly_session(snapshot_id=oldest).store
        chunk = zarr.open_array(store, path="a", mode="r")[5 * CHUNK : 6 * CHUNK]
    with clock("diff"):
        diff = repo.diff(from_snapshot_id=oldest, to_branch="main")
        changed = sum(len(chunks) for chunks in diff.updated_chunks.values())
    return {"snapshots": len(snapshots), "chunk": digest(np.ascontiguousarray(chunk)), "changed": changed}


def _end(system: Any, place: Path, clock: Clock, kept: int) -> str:
    repo = system.open(place)
    limit = list(repo.ancestry(branch="main"))[kept - 1].written_at
    with clock("expire"):
        repo.expire_snapshots(limit)
        repo.garbage_collect(datetime.now(UTC))
        system.compact(repo)
    del repo
    gc.collect()
    clock.numbers["expire disk"], _ = disk(place)
    array = zarr.open_array(system.open(place).readonly_session("main").store, path="a", mode="r")
    return digest(np.ascontiguousarray(array[:]))
