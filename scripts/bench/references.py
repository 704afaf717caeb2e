"""What many virtual references cost: to write and commit them, to commit one more, to open and read one chunk.

python scripts/bench/references.py
python scripts/bench/references.py --count 10000000
"""

from __future__ import annotations

import argparse
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import apsw
import numpy as np
import zarr

import icelite

FILES = 1000
LENGTH = 1000  # bytes of a chunk
ROUNDS = 20

Row = tuple[str, str]

# A process of its own, so that nothing is warm but the disk cache. Imports are not counted.
COLD = """
import sys, time, icelite, zarr
start = time.perf_counter()
repo = icelite.Repository.open(sys.argv[1])
store = repo.readonly_session("main").store
opened = time.perf_counter()
zarr.open_array(store, path="a", mode="r")[0, 555, 555]
print(1e3 * (opened - start), 1e3 * (time.perf_counter() - start))
"""


def measure(folder: Path, count: int) -> list[Row]:
    """All of it, with the catalog and its source files in ``folder``."""
    grid = (count // 10_000, 100, 100)
    urls = make_files(folder)
    repo = icelite.Repository.create(folder / "bench.icelite")
    rows = write_many(repo, grid, urls)
    size = (folder / "bench.icelite").stat().st_size
    rows.append(("size of the catalog", f"{size / 1e6:.1f} MB, {size / count:.1f} bytes a reference"))
    return [*rows, *commit_one(repo, urls), *open_cold(folder / "bench.icelite")]


def make_files(folder: Path) -> list[str]:
    """The source files, in a folder beside the catalog; their URLs."""
    (folder / "data").mkdir()
    paths = [folder / "data" / f"{n:04d}.bin" for n in range(FILES)]
    for path in paths:
        path.write_bytes(bytes(2 * LENGTH))
    return [path.absolute().as_uri() for path in paths]


def write_many(repo: icelite.Repository, grid: tuple[int, int, int], urls: list[str]) -> list[Row]:
    """Write a reference for each chunk of a grid, and commit."""
    count = int(np.prod(grid))
    session = repo.writable_session("main")
    shape = tuple(10 * n for n in grid)
    zarr.create_array(session.store, name="a", shape=shape, chunks=(10, 10, 10), dtype="i1", compressors=None)
    locations = [urls[n * FILES // count] for n in range(count)]
    offsets = np.random.default_rng(0).integers(0, LENGTH, count).astype("u8")
    lengths = np.full(count, LENGTH, dtype="u8")

    start = time.perf_counter()
    session.store.set_virtual_refs_arr("a", grid, locations, offsets, lengths)
    written = time.perf_counter()
    session.commit("many")
    committed = time.perf_counter()
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return [
        (f"write {count:,} references", f"{written - start:.2f} s"),
        ("commit them", f"{committed - written:.2f} s"),
        ("peak memory of the process", f"{peak / 1e6:.0f} MB"),
    ]


def commit_one(repo: icelite.Repository, urls: list[str]) -> list[Row]:
    """Commit one reference, again and again."""
    commits, sessions = [], []
    for n in range(ROUNDS):
        start = time.perf_counter()
        session = repo.writable_session("main")
        opened = time.perf_counter()
        session.store.set_virtual_ref("a/c/0/5/5", urls[n], offset=n, length=LENGTH)
        session.commit("one")
        done = time.perf_counter()
        commits.append(1e3 * (done - opened))
        sessions.append(1e3 * (done - start))
    return [
        ("write and commit one more", f"{median(commits):.1f} ms (median of {ROUNDS}), durable"),
        ("the same with opening the session", f"{median(sessions):.1f} ms"),
    ]


def open_cold(catalog: Path) -> list[Row]:
    """Open the catalog in fresh processes, and read one chunk."""
    found = []
    for _ in range(5):
        command = [sys.executable, "-c", COLD, str(catalog)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        found.append([float(word) for word in output.split()])
    opened, read = zip(*found, strict=True)
    return [
        ("open in a new process, after imports", f"{min(opened):.1f} to {max(opened):.1f} ms"),
        ("open and read one chunk there", f"{min(read):.1f} to {max(read):.1f} ms"),
    ]


def main() -> None:
    """Read the command line, measure, print a Markdown table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=1_000_000, help="references, in ten thousands (%(default)s)")
    parser.add_argument("--folder", type=Path, help="where to make the files, so on which disk; default: temporary")
    arguments = parser.parse_args()
    if arguments.count < 10_000:
        parser.error("--count must be at least 10000")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        rows = measure(Path(folder), arguments.count)
    versions = f"python {platform.python_version()}, zarr {zarr.__version__}, SQLite {apsw.sqlite_lib_version()}"
    lines = [f"icelite {icelite.__version__}, {versions}", "", "| | |", "|---|---|"]
    sys.stdout.write("\n".join([*lines, *(f"| {what} | {value} |" for what, value in rows)]) + "\n")


if __name__ == "__main__":
    main()
