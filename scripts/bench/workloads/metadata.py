"""Many small arrays: zarr's own, and a dataset of xarray's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr

from workloads import Clock

SYSTEMS = ("icechunk", "icelite", "MemoryStore")
ARRAYS, VARIABLES = 500, 100


def prepare(system: Any, folder: Path, scale: float) -> None:
    """Nothing to prepare."""


def measure(system: Any, folder: Path, scale: float) -> dict[str, Any]:
    """Write, commit, open again, list."""
    clock = Clock()
    place = folder / system.name
    system.remove(place)
    session = system.create(place).writable_session("main")
    with clock("create arrays"):
        group = zarr.create_group(session.store)
        for number in range(max(5, round(ARRAYS * scale))):
            group.create_array(f"a{number}", shape=(4,), dtype="f4")[:] = number
        session.commit("")
    with clock("list arrays"):
        names = sorted(
            name for name, _ in zarr.open_group(system.open(place).readonly_session("main").store, mode="r").members()
        )
    system.remove(place)
    found = _dataset(system, place, clock, max(2, round(VARIABLES * scale)))
    system.remove(place)
    return {"numbers": clock.numbers, "facts": {"names": names, "dataset": found}}


def _dataset(system: Any, place: Path, clock: Clock, count: int) -> float:
    variables = {f"v{n}": (("y", "x"), np.full((10, 10), n, "f4"), {"units": "m"}) for n in range(count)}
    dataset = xr.Dataset(variables, coords={"x": np.arange(10)})
    session = system.create(place).writable_session("main")
    with clock("to_zarr"):
        dataset.to_zarr(session.store, mode="w", consolidated=False, zarr_format=3)
        session.commit("")
    store = system.open(place).readonly_session("main").store
    with clock("open_zarr"):
        opened = xr.open_zarr(store, consolidated=False, zarr_format=3, chunks=None)
    return float(sum(opened[name].sum() for name in opened))
