"""Writers, readers and sweepers on one catalog for as long as ``--soak SECONDS`` says, 5 without it.

In every process a thread opens the file by other routes all the time, as xarray does when it guesses an engine: that
drops the process's POSIX locks (https://sqlite.org/howtocorrupt.html, section 2.2).
"""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zarr

from icelite import Repository

WRITERS, READERS = 4, 4
SIZE = 2000

COMMON = """
    import json, os, resource, shutil, sqlite3, sys, threading, time
    from datetime import UTC, datetime, timedelta
    import icelite
    from zarr.core.buffer import default_buffer_prototype

    path, name, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
    until = time.monotonic() + seconds
    buffer = default_buffer_prototype().buffer
    repo = icelite.Repository.open(path, icelite.RepositoryConfig(busy_timeout_seconds=30))

    def meddle():
        number = 0
        while time.monotonic() < until:
            number += 1
            with open(path, "rb") as file:
                file.read(100)
            if number % 5 == 0:
                try:
                    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
                    connection.execute("SELECT count(*) FROM snapshot").fetchall()
                    connection.close()
                except sqlite3.OperationalError:
                    pass  # busy
            time.sleep(0.005)

    threading.Thread(target=meddle, daemon=True).start()

    def usage():
        with open("/proc/self/statm") as file:
            resident = int(file.read().split()[1]) * resource.getpagesize()
        return resident, len(os.listdir("/proc/self/fd"))

    early = None
    def watch():
        global early
        if early is None and time.monotonic() > until - seconds * 2 / 3:
            early = usage()

    print("alive", flush=True)
    sys.stdin.readline()
    until = time.monotonic() + seconds
"""
WRITER = (
    COMMON
    + f"""
    done, number = [], 0
    while time.monotonic() < until:
        number += 1
        session = repo.writable_session("main")
        value = number.to_bytes(4, "big") * {SIZE // 4}
        for chunk in range(8):
            session.store.set_sync(f"{{name}}/c/{{chunk}}", buffer.from_bytes(value))
        done.append(session.commit(f"{{name}} {{number}}", rebase_with=icelite.ConflictDetector()))
        watch()
    print(json.dumps({{"done": done, "usage": [early, usage()]}}), flush=True)
"""
)
READER = (
    COMMON
    + """
    reads, last = 0, {}
    while time.monotonic() < until:
        session = repo.readonly_session("main")
        try:
            for writer in range(4):
                values = [session.store.get_sync(f"w{writer}/c/{chunk}") for chunk in range(8)]
                found = {None if value is None else value.to_bytes() for value in values}
                assert len(found) == 1, f"torn: {len(found)} versions in one snapshot"
                number = int.from_bytes((found.pop() or bytes(4))[:4], "big")
                assert number >= last.get(writer, 0), "backwards"
                last[writer] = number
        except icelite.SnapshotNotFoundError:
            continue  # expired under a reader
        reads += 1
        watch()
    print(json.dumps({"reads": reads, "usage": [early, usage()]}), flush=True)
"""
)
SWEEPER = (
    COMMON
    + """
    rounds, problems = 0, []
    while time.monotonic() < until:
        old = datetime.now(UTC) - timedelta(seconds=3)
        repo.expire_snapshots(old)
        repo.garbage_collect(old)
        if rounds % 4 == 3:
            repo.compact()
        problems += [str(problem) for problem in repo.verify()]
        rounds += 1
        watch()
        time.sleep(0.2)
    print(json.dumps({"rounds": rounds, "problems": problems, "usage": [early, usage()]}), flush=True)
"""
)


def run(code: str, path: Path, name: str, seconds: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code), str(path), name, str(seconds)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def processes(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[list[subprocess.Popen[str]]]:
    path = tmp_path / "a.icelite"
    session = Repository.create(path).writable_session("main")
    for writer in range(WRITERS):
        zarr.create_array(
            session.store, name=f"w{writer}", shape=(8 * SIZE,), chunks=(SIZE,), dtype="u1", compressors=None
        )
    session.commit("arrays")
    seconds = request.config.getoption("--soak") or 5.0
    running = [run(WRITER, path, f"w{number}", seconds) for number in range(WRITERS)]
    running += [run(READER, path, f"r{number}", seconds) for number in range(READERS)]
    running.append(run(SWEEPER, path, "sweeper", seconds))
    yield running
    for process in running:
        process.kill()
        process.communicate()


def test_nothing_is_lost_torn_or_starved(
    processes: list[subprocess.Popen[str]], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "alive\n"
    began = time.monotonic()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes)
    found = [json.loads(output.splitlines()[-1]) for output in outputs]
    commits = [len(each["done"]) for each in found[:WRITERS]]
    reads = [each["reads"] for each in found[WRITERS:-1]]

    repository = Repository.open(tmp_path / "a.icelite", check="always")
    tip = repository.readonly_session("main")
    for writer in range(WRITERS):  # the newest value is that of the last acknowledged commit
        value = tip.store.get_sync(f"w{writer}/c/0")
        assert value is not None
        assert int.from_bytes(value.to_bytes()[:4], "big") == commits[writer]
    assert repository.verify() == []
    assert found[-1]["problems"] == []
    assert min(commits) > 0
    assert min(reads) > 0
    for each in found:  # flat: a third into the run and at its end
        (early, few), (late, many) = each["usage"][0] or each["usage"][1], each["usage"][1]
        assert late < early + 32e6, each["usage"]
        assert many <= few + 4, each["usage"]
    memory = max(each["usage"][1][0] for each in found) / 1e6
    lasted, rounds = time.monotonic() - began, found[-1]["rounds"]
    request.node.counted.append(
        f"{lasted:.0f} s: commits {commits}, reads {reads}, {rounds} sweeps, 0 lost, 0 torn, {memory:.0f} MB"
    )
