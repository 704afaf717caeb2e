"""A target that has no room, or a process that may open no more files: the error says so, and nothing half is left."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import zarr

import icelite
from icelite.errors import ErrorKind

resource = pytest.importorskip("resource")

CHUNK_BYTES = 40_000
ROOM = 20_000  # bytes of the largest file that may be written
CALLS = {
    "bundle": 'repo.bundle(target / "b.icelite")',
    "zarr": 'repo.export_zarr(target / "o.zarr", branch="main")',
    "zip": 'repo.export_zarr(target / "o.zip", branch="main")',
    "icechunk": 'icelite.icechunk.export_icechunk(repo, target / "ic")',
    "kerchunk": 'icelite.kerchunk.export_kerchunk(repo, target / "k.json", inline_limit=1 << 20)',
    "open": "icelite.Repository.open(path)",
    "session": 'repo.writable_session("main")',
    "create": 'icelite.Repository.create(target / "n.icelite")',
}
# Limits itself, makes one call, and says what came of it.
WORKER = """
import os, resource, sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
import icelite

what, number, path, target = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4])
repo = icelite.Repository.open(path)
limit = number if what == "RLIMIT_FSIZE" else number + max(map(int, os.listdir("/proc/self/fd")))
most = resource.getrlimit(getattr(resource, what))[1]
resource.setrlimit(getattr(resource, what), (limit, most))
try:
    CALL
    said = "ok"
except icelite.IceliteError as error:
    said = f"{error.kind} {error.message}"
except BaseException as error:
    said = f"not icelite's: {error!r}"
resource.setrlimit(getattr(resource, what), (most, most))
print(said)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "source").mkdir()
    path = tmp_path / "source" / "a.icelite"
    session = icelite.Repository.create(path).writable_session("main")
    shape, chunks = (4, CHUNK_BYTES), (1, CHUNK_BYTES)
    array = zarr.create_array(session.store, name="x", shape=shape, chunks=chunks, dtype="u1", compressors=None)
    array[:] = 1
    session.commit("start")
    return path


def attempt(call: str, what: str, limit: int, path: Path, target: Path) -> str:
    target.mkdir(exist_ok=True)
    code = WORKER.replace("CALL", CALLS[call])
    command = [sys.executable, "-c", code, what, str(limit), str(path), str(target)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1]


@pytest.mark.parametrize("call", ["bundle", "zarr", "zip", "icechunk", "kerchunk"])
def test_a_target_without_room_is_named_and_nothing_is_left(call: str, path: Path, tmp_path: Path) -> None:
    if call == "icechunk" and importlib.util.find_spec("flatbuffers") is None:
        pytest.skip("Icechunk is not there")
    said = attempt(call, "RLIMIT_FSIZE", ROOM, path, tmp_path / "out")
    assert said.partition(" ")[0] in (ErrorKind.IO, ErrorKind.STORAGE_FULL), said
    assert str(tmp_path / "out") in said
    assert os.listdir(tmp_path / "out") == []


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts the open files of Linux")
@pytest.mark.parametrize("call", ["open", "session", "create", "bundle", "zarr", "zip"])
def test_a_process_that_may_open_no_more_files_is_told_so(call: str, path: Path, tmp_path: Path) -> None:
    outcomes = []
    for more in range(1, 14):
        said = attempt(call, "RLIMIT_NOFILE", more, path, tmp_path / f"out{more}")
        outcomes.append(said)
        if said == "ok":
            break
        assert said.partition(" ")[0] == ErrorKind.IO, said
        assert "oo many open files" in said
        assert os.listdir(tmp_path / f"out{more}") == []
    assert outcomes[-1] == "ok"
    assert len(outcomes) > 1


@pytest.mark.skipif(importlib.util.find_spec("flatbuffers") is None, reason="Icechunk is not there")
def test_a_package_that_cannot_be_loaded_for_want_of_files_is_not_said_to_be_missing(
    path: Path, tmp_path: Path
) -> None:
    said = attempt("icechunk", "RLIMIT_NOFILE", 4, path, tmp_path / "out")
    assert said.startswith("io Icechunk cannot be loaded: this process has too many open files")
