"""What `to_icelite` adds to writing references: a virtual dataset, against the bare references of the same.

python scripts/bench/to_icelite.py
python scripts/bench/to_icelite.py --count 100000 --rounds 5
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import apsw
import numpy as np
import virtualizarr
import xarray as xr
import zarr
from virtualizarr.manifests import ChunkManifest, ManifestArray
from virtualizarr.manifests.utils import create_v3_array_metadata

import icelite
from icelite.virtualizarr import to_icelite

FILES = 1000
LENGTH = 1000  # bytes of a chunk

Columns = tuple[Any, Any, Any]  # locations, offsets, lengths


def make_files(folder: Path) -> list[str]:
    """Small local files, in a folder beside the catalogs; their URLs."""
    (folder / "data").mkdir()
    paths = [folder / "data" / f"{n:04d}.bin" for n in range(FILES)]
    for path in paths:
        path.write_bytes(bytes(2 * LENGTH))
    return [path.absolute().as_uri() for path in paths]


def make_columns(urls: list[str], count: int) -> Columns:
    """References to the files, one file after another, in C order."""
    offsets = np.random.default_rng(0).integers(0, LENGTH, count).astype("u8")
    return [urls[n * FILES // count] for n in range(count)], offsets, np.full(count, LENGTH, dtype="u8")


def make_dataset(columns: Columns, grid: tuple[int, int, int]) -> xr.Dataset:
    """The same references as VirtualiZarr has them."""
    locations, offsets, lengths = columns
    paths = np.array(locations, dtype=np.dtypes.StringDType()).reshape(grid)
    manifest = ChunkManifest.from_arrays(paths=paths, offsets=offsets.reshape(grid), lengths=lengths.reshape(grid))
    metadata = create_v3_array_metadata(
        shape=tuple(10 * n for n in grid), data_type=np.dtype("i1"), chunk_shape=(10, 10, 10), fill_value=0
    )
    array = ManifestArray(metadata, manifest)
    return xr.Dataset({"a": (("time", "y", "x"), array)})


def write_bare(session: icelite.Session, columns: Columns, grid: tuple[int, int, int]) -> None:
    """The references with `IceliteStore.set_virtual_refs_arr`, and the least that is needed around it."""
    shape = tuple(10 * n for n in grid)
    zarr.create_array(session.store, name="a", shape=shape, chunks=(10, 10, 10), dtype="i1", compressors=None)
    session.store.set_virtual_refs_arr("a", grid, *columns)


def measure(folder: Path, name: str, write: Callable[[icelite.Session], object]) -> tuple[float, float]:
    """Seconds to write, and to write and commit, in a repository of its own."""
    session = icelite.Repository.create(folder / f"{name}.icelite").writable_session("main")
    start = time.perf_counter()
    write(session)
    written = time.perf_counter()
    session.commit(name)
    return written - start, time.perf_counter() - start


def compare(folder: Path, count: int, rounds: int) -> list[str]:
    """Measure both in turns; the rows of a table."""
    grid = (count // 10_000, 100, 100)
    columns = make_columns(make_files(folder), count)
    vds = make_dataset(columns, grid)
    taken: dict[str, list[tuple[float, float]]] = {"set_virtual_refs_arr": [], "to_icelite": []}
    for n in range(rounds):
        write = {
            "set_virtual_refs_arr": lambda session: write_bare(session, columns, grid),
            "to_icelite": lambda session: to_icelite(vds, session.store),
        }
        for name, writer in write.items():
            taken[name].append(measure(folder, f"{name}-{n}", writer))
    rows = []
    for name, pairs in taken.items():
        alone, whole = (median(column) for column in zip(*pairs, strict=True))
        rows.append(f"| `{name}` | {alone:.2f} s | {whole:.2f} s |")
    ratios = [ours[1] / bare[1] for bare, ours in zip(*taken.values(), strict=True)]
    rows.append(f"| ratio, {min(ratios):.2f} to {max(ratios):.2f} | | {median(ratios):.2f} |")
    return rows


def main() -> None:
    """Read the command line, measure, print a Markdown table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=1_000_000, help="references, in ten thousands (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="of both, in turns (%(default)s)")
    parser.add_argument("--folder", type=Path, help="where to make the files, so on which disk; default: temporary")
    arguments = parser.parse_args()
    if arguments.count < 10_000:
        parser.error("--count must be at least 10000")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        rows = compare(Path(folder), arguments.count, arguments.rounds)
    versions = [
        f"icelite {icelite.__version__}",
        f"python {platform.python_version()}",
        f"virtualizarr {virtualizarr.__version__}",
        f"SQLite {apsw.sqlite_lib_version()}",
    ]
    head = [f"| {arguments.count:,} references, {FILES} files | write | and commit |", "|---|---|---|"]
    sys.stdout.write("\n".join([", ".join(versions), "", *head, *rows]) + "\n")


if __name__ == "__main__":
    main()
