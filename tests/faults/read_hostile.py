"""Read catalogs from strangers, each in a child process with a budget of time and memory, through every read API.

A program: each line of its input is a JSON list, name, path or URL of a catalog, and a folder to write to; each line
of its output a JSON object: what was read or refused, call by call, and how the child ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import zarr
from zarr.abc.store import RangeByteRequest, SuffixByteRequest
from zarr.core.sync import sync

import icelite
import icelite.dask  # what is imported late would count as memory of the catalog's
import icelite.kerchunk
import icelite.ops.bundle
import icelite.ops.export_zarr
import icelite.store.pipeline
from icelite import IceliteError, Repository

with contextlib.suppress(ModuleNotFoundError):  # on Python 3.11
    import icelite.icechunk

CPU_SECONDS = int(os.environ.get("HOSTILE_CPU_SECONDS", "2"))  # for each call
MEMORY_BYTES = 200 << 20  # above what the libraries have taken
ADDRESS_SPACE = 4 << 30  # above which an allocation fails at once
SOME = 40  # nodes and snapshots looked at one by one


def calls(repository: Repository, folder: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """Every read API, the exports, and a commit."""
    yield "branches", repository.list_branches
    yield "tags", repository.list_tags
    yield "containers", lambda: repository.config.virtual_chunk_containers
    yield "access", repository.required_access
    yield "log", lambda: [str(update) for update in repository.ops_log()]
    yield "info", repository.inspect_repo_info
    yield "metadata", repository.get_metadata
    yield "status", repository.get_status
    yield "flags", repository.feature_flags
    yield "graph", lambda: str(repository.ancestry_graph())
    yield "stats", repository.chunk_storage_stats
    yield "ancestry", lambda: [str(info) for info in repository.ancestry(branch="main")]
    yield "diff", lambda: repr(repository.diff(to_branch="main"))
    yield "snapshot", lambda: repository.inspect_snapshot(repository.lookup_branch("main"))
    yield "sources", lambda: repr(repository.sources(branch="main"))
    session = repository.readonly_session("main")
    store = session.store

    async def keys() -> list[str]:
        return [key async for key in store.list()]

    yield "keys", lambda: sync(keys())
    yield "size", lambda: sync(store.getsize_prefix(""))
    yield "members", lambda: list(zarr.open_group(store, mode="r").members(max_depth=None))
    paths = ["x", "v", "z", "g/deep"]
    with contextlib.suppress(IceliteError):
        paths = list(dict.fromkeys([*paths, *(node.path for node in session.changes.nodes.list_below("")[:SOME])]))
    for path in paths[:SOME]:
        for key in (f"{path}/c/0", f"{path}/c", f"{path}/0", f"{path}/c/0/0", f"{path}/zarr.json", f"{path}/.zarray"):
            yield f"get {key[:60]}", lambda key=key: store.get_sync(key)
            yield f"range {key[:60]}", lambda key=key: store.get_sync(key, byte_range=RangeByteRequest(1, 3))
        yield f"suffix {path[:60]}", lambda path=path: store.get_sync(f"{path}/c/0", byte_range=SuffixByteRequest(2))
        yield f"refs {path[:60]}", lambda path=path: repr(session.chunk_refs(path))
        yield f"iterate {path[:60]}", lambda path=path: sync(iterated(session, path))
        yield f"type {path[:60]}", lambda path=path: session.chunk_type(path, [0])
        yield f"values {path[:60]}", lambda path=path: opened(store, path)
        yield f"fast {path[:60]}", lambda path=path: fast(store, path)
    yield "locations", session.all_virtual_chunk_locations
    yield "verify", repository.verify
    yield "verify sources", repository.verify_sources
    yield "export folder", lambda: repository.export_zarr(folder / "out" / "folder")
    yield "export zip", lambda: repository.export_zarr(folder / "out" / "all.zip")
    yield "kerchunk", lambda: icelite.kerchunk.export_kerchunk(repository, folder / "out" / "k.json")
    yield (
        "parquet",
        lambda: icelite.kerchunk.export_kerchunk(
            repository, folder / "out" / "k.parq", format="parquet", zarr_format=2
        ),
    )
    yield "bundle", lambda: repository.bundle(folder / "out" / "b.icelite")
    if repository.storage.address is None:
        yield "commit", lambda: repository.writable_session("main").commit("goes on", allow_empty=True)
        yield "collect", lambda: repository.garbage_collect(EVER)


EVER = datetime(1980, 1, 1, tzinfo=UTC)


async def iterated(session: Any, path: str) -> int:
    return len([batch async for batch in session.array_chunk_iterator(path)])


def opened(store: Any, path: str) -> object:
    array = zarr.open_array(store, path=path, mode="r")
    return array[tuple(slice(0, 2) for _ in array.shape)]


def fast(store: Any, path: str) -> object:
    with icelite.enable_fast_reads():
        return opened(store, path)


ZARR = ("values", "fast", "members")  # zarr's own exceptions may come through its own functions


def outcome(name: str, call: Callable[[], object]) -> str | None:
    """What came of a call, if that was no value and no clear refusal."""
    forget_peak()
    before = resource.getrusage(resource.RUSAGE_SELF)
    with contextlib.suppress(OSError, ValueError):
        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        resource.setrlimit(resource.RLIMIT_CPU, (int(before.ru_utime + before.ru_stime) + CPU_SECONDS + 1, hard))
    fault = None
    try:
        call()
    except IceliteError as error:
        if error.kind == "unknown" or len(str(error)) > 20_000:
            fault = f"{error.kind} {error}"[:300]
    except (ValueError, TypeError, KeyError, RuntimeError, OverflowError, OSError, NotImplementedError) as error:
        foreign = f"{type(error).__module__}.{type(error).__name__}: {error}"
        if not name.startswith(ZARR):
            fault = foreign[:300]
    except (Exception, SystemExit, KeyboardInterrupt) as error:  # noqa: BLE001
        fault = f"{type(error).__name__}: {error}"[:300]
    after = resource.getrusage(resource.RUSAGE_SELF)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    grown = (after.ru_maxrss - before.ru_maxrss) << 10
    if fault is None and (seconds > CPU_SECONDS or grown > MEMORY_BYTES):
        fault = f"{seconds:.1f} s of CPU, {grown >> 20} MB"
    return None if fault is None else f"{name}: {fault}"


def forget_peak() -> None:
    """Let the peak of memory count from here."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def read(place: str, folder: Path) -> dict[str, Any]:
    """Open a catalog and make every call; those that ended badly."""
    if "://" not in place:
        Path(place).parent.joinpath("out").mkdir(exist_ok=True)
    kept: list[Repository] = []
    storage: Any = place if "://" not in place else icelite.StorageConfig.http(place, whole_bytes=0)
    check = os.environ.get("HOSTILE_CHECK", "always")
    faults = [
        outcome("open", lambda: kept.append(Repository.open(storage, check=check if "://" not in place else "auto")))
    ]
    made = 0
    if kept:
        steps = calls(kept[0], folder)
        while True:
            step: list[tuple[str, Callable[[], object]]] = []
            faults.append(outcome("next", lambda step=step: step.extend([next(steps, ("", int))])))  # opens sessions
            if not step or not step[0][0]:
                break
            made += 1
            faults.append(outcome(*step[0]))
    return {"opened": bool(kept), "calls": made, "faults": [fault for fault in faults if fault]}


def child(place: str, folder: Path, say: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + ADDRESS_SPACE, taken + ADDRESS_SPACE))
    os.write(say, json.dumps(read(place, folder)).encode())


def main() -> None:
    warnings.simplefilter("ignore")
    warm()
    for line in sys.stdin:
        name, place, folder = json.loads(line)
        receive, say = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(receive)
            signal.alarm(120)  # of waiting, which costs no CPU
            try:
                child(place, Path(folder), say)
            finally:
                os._exit(0)
        os.close(say)
        said = b""
        while piece := os.read(receive, 1 << 16):
            said += piece
        os.close(receive)
        _, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        result = (
            json.loads(said) if said else {"opened": None, "calls": 0, "faults": [f"the process ended with {code}"]}
        )
        print(json.dumps({"name": name, **result}), flush=True)


def warm() -> None:
    """Import in a child what is imported late; threads do not survive the fork, modules do."""
    import zarr.codecs
    import zarr.storage  # noqa: F401

    with tempfile.TemporaryDirectory() as folder:
        repository = Repository.create(Path(folder) / "a.icelite")
        repository.list_branches()
        repository.close()


if __name__ == "__main__":
    main()
