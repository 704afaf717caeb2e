"""Virtual chunks of local files: whole arrays, and many small chunks at random."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.core.buffer import default_buffer_prototype

from workloads import Clock, digest

SYSTEMS = ("icechunk", "icelite", "icelite, fast reads", "MemoryStore", "h5py")
SIZES = {"1 MiB": (1 << 20, 192), "10 KiB": (10 << 10, 4000)}  # bytes of a chunk, chunks
SMALL, FILES, RANDOM = 20_000, 20, 2000


def _datasets(scale: float) -> dict[str, tuple[int, int]]:
    return {name: (size // 4, max(4, round(count * scale))) for name, (size, count) in SIZES.items()}


def prepare(system: Any, folder: Path, scale: float) -> None:
    """HDF5 files, and for versioned systems references to their chunks."""
    import h5py

    sources = {name: folder / f"{name.replace(' ', '')}.h5" for name in SIZES}
    for name, (width, count) in _datasets(scale).items():
        if not sources[name].exists():
            with h5py.File(sources[name], "w") as file:
                data = file.create_dataset("a", (count, width), "f4", chunks=(1, width))
                for row in range(count):
                    data[row] = np.random.default_rng(row).random(width, "f4")
    _small_files(folder)
    if system.name in ("icechunk", "icelite"):
        session = system.create(folder / system.name).writable_session("main")
        for name, (width, count) in _datasets(scale).items():
            _refer(session.store, name.replace(" ", ""), sources[name], width, count)
        _refer_small(session.store, folder)
        session.commit("")


def _refer(store: Any, name: str, source: Path, width: int, count: int) -> None:
    import h5py

    with h5py.File(source) as file:
        offsets = [file["a"].id.get_chunk_info(row).byte_offset for row in range(count)]
    zarr.create_array(store, name=name, shape=(count, width), chunks=(1, width), dtype="f4", compressors=None)
    lengths = np.full(count, 4 * width, "u8")
    store.set_virtual_refs_arr(name, (count, 1), [source.as_uri()] * count, np.array(offsets, "u8"), lengths)


def _small_files(folder: Path) -> None:
    for number in range(FILES):
        path = folder / f"small{number}.bin"
        if not path.exists():
            path.write_bytes(np.random.default_rng(number).bytes(3 * 1024 * SMALL // FILES))


def _small_extents() -> tuple[Any, Any]:
    lengths = np.random.default_rng(0).integers(1024, 3 * 1024, SMALL)
    offsets = np.concatenate([np.cumsum(part) - part for part in np.split(lengths, FILES)])
    return offsets.astype("u8"), lengths.astype("u8")


def _refer_small(store: Any, folder: Path) -> None:
    zarr.create_array(store, name="small", shape=(SMALL,), chunks=(1,), dtype="i1", compressors=None)
    urls = [(folder / f"small{number * FILES // SMALL}.bin").as_uri() for number in range(SMALL)]
    store.set_virtual_refs_arr("small", (SMALL,), urls, *_small_extents())


def measure(system: Any, folder: Path, scale: float) -> dict[str, Any]:
    """Read everything."""
    clock = Clock()
    facts: dict[str, str] = {}
    store = _store(system, folder, scale)
    for name, (width, count) in _datasets(scale).items():
        if system.name == "h5py":
            values = _read_hdf5(folder / f"{name.replace(' ', '')}.h5", clock, name)
        else:
            array = zarr.open_array(store, path=name.replace(" ", ""), mode="r")
            array[0]  # opens files and manifests
            with clock(name):
                values = array[:]
        facts[name] = digest(values)
        clock.numbers[name] = 4 * width * count / clock.numbers[name]  # bytes a second
    if system.name in ("icechunk", "icelite"):
        facts["random"] = asyncio.run(_random(store, clock))
        for name in ("one by one", "gathered"):
            clock.numbers[name] = RANDOM / clock.numbers[name]
    return {"numbers": clock.numbers, "facts": facts}


def _store(system: Any, folder: Path, scale: float) -> Any:
    if system.name == "h5py":
        return None
    if system.name == "MemoryStore":
        store = system.create(folder / system.name).store
        for name, (width, count) in _datasets(scale).items():
            array = zarr.create_array(
                store, name=name.replace(" ", ""), shape=(count, width), chunks=(1, width), dtype="f4", compressors=None
            )
            array[:] = _read_hdf5(folder / f"{name.replace(' ', '')}.h5", Clock(), name)
        return store
    place = folder / ("icelite" if system.package == "icelite" else system.name)
    return system.open(place).readonly_session("main").store


def _read_hdf5(path: Path, clock: Clock, name: str) -> Any:
    import h5py

    with h5py.File(path) as file:
        file["a"][0]
        with clock(name):
            values = file["a"][:]
    return values


async def _random(store: Any, clock: Clock) -> str:
    prototype = default_buffer_prototype()
    keys = [f"small/c/{n}" for n in np.random.default_rng(1).integers(0, SMALL, 2 * RANDOM).tolist()]
    for number in range(FILES):
        await store.get(f"small/c/{number * SMALL // FILES}", prototype)
    with clock("one by one"):
        one = [await store.get(key, prototype) for key in keys[:RANDOM]]
    with clock("gathered"):
        other = await asyncio.gather(*(store.get(key, prototype) for key in keys[RANDOM:]))
    return digest(b"".join(buffer.to_bytes() for buffer in (*one, *other)))
