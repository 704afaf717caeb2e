"""Several processes on one catalog: whatever was acknowledged is there, and who loses a race is told."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import zarr

from icelite.repository import Repository

PROCESSES = 4
COMMITS = 8

# Each process has an array of its own and commits one chunk after another; a lost race is tried again.
WRITER = f"""
    import sys
    import zarr
    from icelite import ConflictError, Repository, RepositoryConfig, StorageError

    path, name = sys.argv[1:]
    print("alive", flush=True)
    sys.stdin.readline()
    repository = Repository.open_or_create(path)
    lost = 0
    for number in range({COMMITS}):
        while True:
            try:
                session = repository.writable_session("main")
                if number == 0:
                    zarr.create_array(session.store, name=name, shape=({COMMITS},), chunks=(1,), dtype="i4")
                zarr.open_array(session.store, path=name, mode="r+")[number] = number + 1
                snapshot = session.commit(f"{{name}} {{number}}")
                break
            except ConflictError as error:
                assert error.actual_parent != error.expected_parent == session.snapshot_id
                lost += 1
            except StorageError as error:
                assert error.kind == "busy", error
                lost += 1
        print(snapshot, flush=True)
    print("lost", lost, flush=True)
"""


def run_together(code: str, arguments: list[list[object]]) -> list[list[str]]:
    """Run a program several times at once, all let go at one moment; the words each printed."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), *map(str, each)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for each in arguments
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "alive\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes)
    return [output.split() for output in outputs]


def test_four_processes_commit_to_one_branch_and_nothing_is_lost(tmp_path: Path) -> None:
    """They make the repository together too: one creates it, the others find it whole."""
    path = tmp_path / "a.icelite"
    names = [f"array{number}" for number in range(PROCESSES)]
    outputs = run_together(WRITER, [[path, name] for name in names])
    acknowledged = {snapshot for output in outputs for snapshot in output[: output.index("lost")]}
    assert len(acknowledged) == PROCESSES * COMMITS
    print("races lost:", [output[-1] for output in outputs])

    repository = Repository.open(path, check="always")
    line = list(repository.ancestry(branch="main"))[::-1]
    assert {info.id for info in line[1:]} == acknowledged
    assert [info.parent_id for info in line[1:]] == [info.id for info in line[:-1]]
    assert [info.written_at for info in line] == sorted(info.written_at for info in line)
    group = zarr.open_group(repository.readonly_session("main").store, mode="r")
    assert sorted(group.array_keys()) == names
    for name in names:
        assert zarr.open_array(group.store, path=name, mode="r")[:].tolist() == list(range(1, COMMITS + 1))
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []  # no draft was left
