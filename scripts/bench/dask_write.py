"""How long dask takes to write an array of 1,000 chunks with 4 processes: one file, objects in a folder, LocalStore.

    python scripts/bench/dask_write.py [--rounds 5] [--chunk 181] [--s3 ENDPOINT --bucket NAME]

The systems take turns; values are compared outside the timed part. With --s3 the objects also go into a bucket, with
the keys of the environment. icelite's times include the commit, which is durable; LocalStore syncs nothing.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array as da
import distributed
import numpy as np
import zarr

import icelite
from icelite.dask import store_dask

CHUNKS = 1000


def create(store: Any, size: int) -> Any:
    """The array to write: 1,000 chunks of 10 rows."""
    return zarr.create_array(
        store, name="x", shape=(CHUNKS * 10, size), chunks=(10, size), dtype="f4", compressors=None
    )


def local_store(folder: Path, source: Any, size: int) -> Any:
    """Write into zarr's own store, as dask does."""
    array = create(zarr.storage.LocalStore(folder / "local.zarr"), size)
    da.store(source, array, lock=False)
    return array


def write(source: Any, size: int, repo: icelite.Repository) -> Any:
    """Write into a repository and commit."""
    session = repo.writable_session("main")
    store_dask(sources=[source], targets=[create(session.store, size)])
    session.commit("written by dask")
    return zarr.open_array(repo.readonly_session("main").store, path="x")


def main() -> None:
    """Let the systems take turns, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--chunk", type=int, default=2500, help="elements of float32 in a row; a chunk has 10 rows")
    parser.add_argument("--s3", help="endpoint of an S3 service")
    parser.add_argument("--bucket", default="bench")
    given = parser.parse_args()
    values = np.random.default_rng(0).normal(size=(CHUNKS * 10, given.chunk)).astype("f4")
    systems: dict[str, Callable[[Path], Any]] = {
        "LocalStore": lambda folder: local_store(folder, source, given.chunk),
        "icelite, one file": lambda folder: write(source, given.chunk, icelite.Repository.create(folder / "a.icelite")),
        "icelite, folder": lambda folder: write(
            source, given.chunk, icelite.Repository.create(folder / "b.icelite", objects="chunks")
        ),
    }
    if given.s3:
        systems["icelite, S3"] = lambda folder: write(
            source,
            given.chunk,
            icelite.Repository.create(
                folder / "c.icelite",
                objects=icelite.StorageConfig.s3_from_env(
                    bucket=given.bucket, prefix=folder.name, endpoint_url=given.s3, allow_http=True
                ),
            ),
        )
    times: dict[str, list[float]] = {name: [] for name in systems}
    cluster = distributed.LocalCluster(n_workers=4, threads_per_worker=1, dashboard_address=None, host="127.0.0.1")
    with cluster, distributed.Client(cluster) as client:
        source = client.persist(da.from_array(values, chunks=(10, given.chunk)))
        distributed.wait(source)
        for _ in range(given.rounds):
            for name, system in systems.items():
                with tempfile.TemporaryDirectory() as folder:
                    start = time.perf_counter()
                    array = system(Path(folder))
                    times[name].append(time.perf_counter() - start)
                    assert np.array_equal(array[...], values), name
    base = times["LocalStore"]
    for name, taken in times.items():
        ratio = statistics.median(a / b for a, b in zip(taken, base, strict=True))
        sys.stdout.write(f"{name:20} {statistics.median(taken):6.2f} s   {ratio:5.2f} x LocalStore\n")


if __name__ == "__main__":
    main()
