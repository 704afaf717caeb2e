"""Virtualising a file of many variables, against the time that netCDF4 takes to list and read its metadata.

python scripts/bench/wide.py
python scripts/bench/wide.py --count 500 --rounds 5
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import h5py
import netCDF4
import numpy as np
import virtualizarr
import xarray as xr
import zarr

import icelite
from icelite.virtualizarr import to_icelite

KINDS = ("plain", "compressed", "unlimited")


def make_file(path: Path, kind: str, count: int) -> None:
    """A netCDF4 file of small variables: contiguous, in compressed chunks, or along an unlimited dimension too.

    netCDF4 takes a time that grows with the square of the variables to measure such a dimension.
    """
    with netCDF4.Dataset(path, "w") as file:
        file.createDimension("time", None if kind == "unlimited" else 4)
        file.createDimension("x", 10)
        for name in ("time", "x"):
            file.createVariable(name, "f8", (name,))[:] = np.arange(4 if name == "time" else 10)
        options: dict[str, Any] = {} if kind == "plain" else {"zlib": True, "shuffle": True, "chunksizes": (4, 10)}
        for number in range(count):
            variable = file.createVariable(f"v{number:04d}", "f4", ("time", "x"), **options)
            variable.setncatts({"units": "m", "long_name": f"variable {number}", "valid_min": np.float32(0)})
            variable[:] = number


def read_metadata(path: Path) -> list[Any]:
    """All that netCDF4 says of the variables of a file, without their values."""
    with netCDF4.Dataset(path) as file:
        return [
            (
                (name, variable.dimensions, variable.shape, variable.dtype, variable.chunking(), variable.filters()),
                {key: variable.getncattr(key) for key in variable.ncattrs()},
            )
            for name, variable in file.variables.items()
        ]


def virtualise(path: Path, catalog: Path) -> None:
    """The file as one commit of a new catalog."""
    session = icelite.Repository.create(catalog).writable_session("main")
    to_icelite(icelite.open_virtual(path), session.store)
    session.commit("all variables")


def measure(folder: Path, kind: str, count: int, rounds: int) -> str:
    """Both in turns; a row of the table, in seconds of this process's time, which other programs do not lengthen."""
    path = folder / f"{kind}.nc"
    make_file(path, kind, count)
    taken: list[tuple[float, float]] = []
    for number in range(rounds + 1):  # the first one imports
        start = time.process_time()
        read_metadata(path)
        listed = time.process_time()
        virtualise(path, folder / f"{kind}-{number}.icelite")
        taken.append((listed - start, time.process_time() - listed))
    netcdf, ours = (median(column) for column in zip(*taken[1:], strict=True))
    return f"| {kind} | {netcdf:.2f} s | {ours:.2f} s | {ours / netcdf:.1f} |"


def main() -> None:
    """Read the command line, measure, print a Markdown table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=2000, help="variables (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="of both, in turns (%(default)s)")
    parser.add_argument("--folder", type=Path, help="where to make the files, so on which disk; default: temporary")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS[:2], help="of files (%(default)s)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        rows = [measure(Path(folder), kind, arguments.count, arguments.rounds) for kind in arguments.kinds]
    modules = {"icelite": icelite, "h5py": h5py, "netCDF4": netCDF4, "virtualizarr": virtualizarr, "zarr": zarr}
    versions = [f"{name} {module.__version__}" for name, module in {**modules, "xarray": xr}.items()]
    head = [f"| {arguments.count:,} variables | netCDF4 | icelite | ratio |", "|---|---|---|---|"]
    versions.append(f"python {platform.python_version()}")
    sys.stdout.write("\n".join([", ".join(versions), "", *head, *rows]) + "\n")


if __name__ == "__main__":
    main()
