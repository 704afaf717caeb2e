"""Ctrl-C at random moments of `virtualize`, `to_icelite` and `store_dask` ends them; no worker outlives a scan."""

from __future__ import annotations

import contextlib
import os
import random
import select
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("virtualizarr")
pytest.importorskip("dask.array")
netCDF4 = pytest.importorskip("netCDF4")

FILES = 40
PATIENCE = 60  # seconds: an interrupt that is lost would be waited for in vain

# Works without end, and says when an interrupt ended a call.
WORKER = """
    import itertools, signal, sys
    from pathlib import Path

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
    import dask.array, numpy, xarray, zarr
    import icelite, icelite.xarray
    from icelite.dask import store_dask
    from icelite.formats import open_virtual
    from icelite.virtualizarr import to_icelite

    kind, folder = sys.argv[1], Path(sys.argv[2])
    files = sorted(folder.glob("*.nc"))
    options = dict(data_vars="minimal", coords="minimal", compat="override", combine_attrs="override")
    virtual = xarray.concat([open_virtual(file) for file in files], dim="time", **options)
    numbers = dask.array.ones((400, 50), chunks=(10, 50))

    def virtualize(path, workers):
        icelite.virtualize(files, path, concat_dim="time", workers=workers)

    session = icelite.Repository.create(folder / "one.icelite").writable_session("main")
    array = zarr.create_array(session.store, name="g/a", shape=numbers.shape, chunks=(10, 50), dtype="f8")

    def write(path):
        to_icelite(virtual, session.store, group="virtual", mode="w")

    def store(path, **how):
        store_dask(sources=[numbers], targets=[array], **how)

    def save(path):
        dataset = xarray.Dataset({"a": (("x", "y"), numbers)})
        icelite.xarray.to_icelite(dataset, session, group="native", mode="w")

    calls = {
        "one process": lambda path: virtualize(path, 1),
        "two processes": lambda path: virtualize(path, 2),
        "to_icelite": write,
        "store_dask": store,
        "store_dask in processes": lambda path: store(path, scheduler="processes", num_workers=2),
        "xarray": save,
    }
    work, count = calls[kind], itertools.count()

    def forever():
        while True:
            work(folder / f"catalog{next(count)}.icelite")

    work(folder / "first.icelite")
    while True:
        try:
            print("working", flush=True)
            forever()
        except KeyboardInterrupt:
            print("interrupted", flush=True)
"""


@pytest.fixture
def folder(memory: Path) -> Path:
    """Forty small files; each call leaves a catalog beside them."""
    for day in range(FILES):
        with netCDF4.Dataset(memory / f"day{day:02}.nc", "w") as file:
            file.createDimension("time", None)
            file.createDimension("x", 4)
            time = file.createVariable("time", "f8", ("time",))
            time.units = "days since 2000-01-01"
            time[:] = [day]
            file.createVariable("v", "f4", ("time", "x"), zlib=True, chunksizes=(1, 4))[:] = day
    return memory


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts Python in the folder, and ends what is left of it."""
    started: list[subprocess.Popen[bytes]] = []

    def start(script: str, *arguments: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script), *arguments],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            stdout=subprocess.PIPE,
            bufsize=0,  # `select` does not see what Python has read ahead
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def said(process: subprocess.Popen[bytes]) -> str:
    """The next line of a process; '' if it says nothing for long."""
    assert process.stdout is not None
    return process.stdout.readline().decode().strip() if select.select([process.stdout], [], [], PATIENCE)[0] else ""


KINDS = ["one process", "two processes", "to_icelite", "store_dask", "store_dask in processes", "xarray"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_interrupt_ends_the_call(
    kind: str,
    folder: Path,
    start: Callable[..., subprocess.Popen[bytes]],
    amount: Callable[[int, int], int],
    request: pytest.FixtureRequest,
) -> None:
    count = amount(2 if "processes" in kind else 6, 20 if "processes" in kind else 60)
    draw = random.Random(kind)
    process = start(WORKER, kind, str(folder))
    slowest = 0.0
    for number in range(count):
        assert said(process) == "working"
        time.sleep(draw.uniform(0, 2.0 if "processes" in kind else 0.6))
        sent = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert said(process) == "interrupted", f"interrupt {number} was lost"
        slowest = max(slowest, time.monotonic() - sent)
    request.node.counted.append(f"{count} interrupts, the slowest heard after {slowest:.1f} s")


SCAN = """
    import sys, time
    from pathlib import Path
    import icelite

    def slow(dataset):
        Path(sys.argv[1], "begun").touch()
        time.sleep(0.2)
        return dataset

    icelite.virtualize("*.nc", "scanned.icelite", concat_dim="time", workers=2, preprocess=slow)
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_no_worker_outlives_a_scan(
    how: signal.Signals, folder: Path, start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    process = start(SCAN, str(folder))
    wait_until(lambda: (folder / "begun").exists())
    assert len(working_in(folder)) > 1
    process.send_signal(how)
    assert process.wait(PATIENCE) == -how
    wait_until(lambda: not working_in(folder))
    assert not working_in(folder)


def wait_until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not done() and time.monotonic() < deadline:
        time.sleep(0.05)


def working_in(folder: Path) -> list[str]:
    """The command lines of the processes that work in a folder."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and Path(os.readlink(process / "cwd")) == folder:
                found.append((process / "cmdline").read_text())
        except OSError:
            continue
    return found
