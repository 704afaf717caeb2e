"""A month of netCDF files as one versioned dataset, step by step; everything goes into ``quickstart-data/``.

``scripts/quickstart`` makes an environment and runs this; ``--grid 90 180`` makes a coarser ocean, quicker.
"""

from __future__ import annotations

import argparse
import shutil
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from math import prod
from pathlib import Path

import numpy as np
import world_map
import xarray as xr
from obspec_utils.registry import ObjectStoreRegistry
from obstore.store import LocalStore
from ocean import GRID
from oisst import write_days
from virtualizarr import open_virtual_dataset, open_virtual_mfdataset
from virtualizarr.parsers import HDFParser

import icelite
from icelite.virtualizarr import to_icelite

FIRST, DAYS = date(2024, 8, 1), 31
# How xarray combines days: what has no time is taken from the first file.
COMBINE = {"data_vars": "minimal", "coords": "minimal", "compat": "override", "combine_attrs": "override"}
NESTED = {"combine": "nested", "concat_dim": "time", **COMBINE}


@contextmanager
def step(what: str) -> Iterator[None]:
    """Print what is being done and how long it took."""
    print(f"{what:<62}", end="", flush=True)
    start = time.perf_counter()
    yield
    print(f"{time.perf_counter() - start:6.2f} s", flush=True)


def virtual(paths: list[Path]) -> xr.Dataset:
    """The files as one virtual dataset: coordinates are loaded, the rest is references into the files."""
    registry = ObjectStoreRegistry({"file://": LocalStore()})
    urls = [f"file://{path.absolute()}" for path in paths]
    loadable = ["time", "zlev", "lat", "lon"]
    if len(urls) == 1:
        return open_virtual_dataset(urls[0], registry, HDFParser(), loadable_variables=loadable)
    return open_virtual_mfdataset(urls, registry, HDFParser(), loadable_variables=loadable, **NESTED)


def check(dataset: xr.Dataset, paths: list[Path]) -> None:
    """Compare every value, bit for bit, with the files as xarray opens them."""
    with xr.open_mfdataset(paths, **NESTED) as files:
        if set(files.variables) != set(dataset.variables):
            raise SystemExit(f"\nvariables differ: {sorted(files.variables)} and {sorted(dataset.variables)}")
        for name in files.variables:
            expected, found = files[name].to_numpy(), dataset[name].to_numpy()
            bits = f"u{expected.itemsize}"  # NaN equals NaN, and 0 is not -0
            if expected.dtype != found.dtype or not np.array_equal(expected.view(bits), found.view(bits)):
                raise SystemExit(f"\n{name} differs from the files")


def run(folder: Path, grid: tuple[int, int]) -> None:
    """Make the files; write, commit and tag; append on a branch; open and compare; draw."""
    if folder.exists():
        shutil.rmtree(folder)
    catalog, chart = folder / "ocean.icelite", folder / "sst.png"

    with step(f"make {DAYS + 1} daily netCDF4 files of {grid[0]} x {grid[1]} cells"):
        *august, september = write_days(folder / "oisst", FIRST, DAYS + 1, grid)
    with step(f"find the chunks in {DAYS} files, concatenate along time"):
        dataset = virtual(august)
        references = sum(prod(v.data.manifest.shape_chunk_grid) for v in dataset.data_vars.values())
    with step("create the catalog, write the references, commit, tag"):
        repo = icelite.Repository.create(catalog)
        session = repo.writable_session("main")
        to_icelite(dataset, session.store)
        snapshot = session.commit("August 2024")
        repo.create_tag("v2024.08", snapshot)
    with step("append the next day on a branch, commit"):
        repo.create_branch("september", snapshot)
        session = repo.writable_session("september")
        to_icelite(virtual([september]), session.store, append_dim="time")
        session.commit("1 September 2024")

    with step(f"open the tag, compare with the {DAYS} files bit for bit"):
        check(xr.open_dataset(catalog, tag="v2024.08"), august)
    with step(f"open the branch, compare with all {DAYS + 1} bit for bit"):
        check(xr.open_dataset(catalog, branch="september"), [*august, september])
    with step("open the catalog, draw the last day"):
        last = xr.open_dataset(catalog)["sst"].isel(time=-1, zlev=0)
        title = f"Sea surface temperature, {last.time.dt.strftime('%d %B %Y').item()}"
        world_map.draw(last, chart, title, f"invented ocean · {DAYS} netCDF files, one icelite catalog")
    report(repo, catalog, [*august, september], references)
    print(f"\nThe map is {chart}. Look around in {catalog}:\n")
    print(f'  import xarray as xr\n  xr.open_dataset("{catalog}", branch="september")')


def report(repo: icelite.Repository, catalog: Path, files: list[Path], references: int) -> None:
    """Print the sizes and the history."""
    data = sum(path.stat().st_size for path in files)
    size = catalog.stat().st_size
    print(f"\n{len(files)} files: {data / 1e6:.1f} MB")
    print(f"{catalog.name}: {size / 1e3:.0f} kB, {references} references, no data copied")
    print("The branch september, newest first:")
    for info in repo.ancestry(branch="september"):
        print(f"  {info.id}  {info.written_at:%Y-%m-%d %H:%M:%S}  {info.message}")


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("quickstart-data"), help="emptied first (%(default)s)")
    parser.add_argument("--grid", type=int, nargs=2, default=GRID, metavar=("LAT", "LON"), help="cells (%(default)s)")
    arguments = parser.parse_args()
    # Of zarr on Python 3.11: netCDF's shuffle and zlib filters are such codecs, and every reader here knows them.
    warnings.filterwarnings("ignore", message="Numcodecs codecs are not in the Zarr version 3 specification")
    run(arguments.folder, tuple(arguments.grid))


if __name__ == "__main__":
    main()
