"""Chunks written through zarr, and read back from a new repository object."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import zarr

from workloads import Clock, digest

SYSTEMS = ("icechunk", "icelite", "icelite, fast reads", "MemoryStore")
SIZES = {"1 MiB": (1 << 20, 128), "10 KiB": (10 << 10, 3000)}


def prepare(system: Any, folder: Path, scale: float) -> None:
    """Nothing to prepare."""


def measure(system: Any, folder: Path, scale: float) -> dict[str, Any]:
    """Write with a durable commit where there is one, then read."""
    clock = Clock()
    facts: dict[str, str] = {}
    place = folder / system.name
    for name, (size, full) in SIZES.items():
        system.remove(place)
        width, count = size // 4, max(4, round(full * scale))
        values = np.random.default_rng(0).random((count, width), "f4")
        session = system.create(place).writable_session("main")
        array = zarr.create_array(
            session.store, name="a", shape=values.shape, chunks=(1, width), dtype="f4", compressors=None
        )
        with clock(f"write {name}"):
            array[:] = values
            session.commit("")
        array = zarr.open_array(system.open(place).readonly_session("main").store, path="a", mode="r")
        array[0]
        with clock(f"read {name}"):
            found = array[:]
        facts[name] = digest(found)
        for what in (f"write {name}", f"read {name}"):
            clock.numbers[what] = values.nbytes / clock.numbers[what]  # bytes a second
    system.remove(place)
    return {"numbers": clock.numbers, "facts": facts}
