"""Ctrl-C at random moments, as real signals: the lock is free, the objects go on, what was acknowledged is there."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import zarr

from icelite import Repository

Amount = Callable[[int, int], int]

# Does one thing over and over. A signal becomes a KeyboardInterrupt only inside `work`, so that the program itself goes
# on; after each it says so, and waits until it was looked at from outside.
PROGRAM = """
    import itertools, signal, sys
    from datetime import UTC, datetime
    import icelite
    from zarr.core.buffer import default_buffer_prototype

    inside = False

    def interrupt(*_):
        if inside:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    buffer = default_buffer_prototype().buffer
    repo = icelite.Repository.open(sys.argv[1], icelite.RepositoryConfig(busy_timeout_seconds=5))
    kept = repo.writable_session("main")

    def commit(number):
        session = repo.writable_session("main")
        session.store.set_sync(f"x/c/{number % 4}", buffer.from_bytes(number.to_bytes(4, "little")))
        print("ack", session.commit(str(number)), flush=True)

    def flush(number):
        session = repo.writable_session("main")
        session.store.set_sync("x/c/0", buffer.from_bytes(number.to_bytes(4, "little")))
        session.flush(str(number))

    def refs(number):
        repo.create_branch(f"b{number}", repo.lookup_branch("main"))
        repo.delete_branch(f"b{number}")

    def read(number):
        session = repo.readonly_session("main")
        session.store.get_sync("x/c/0")
        list(repo.ancestry(branch="main"))

    def stage(number):
        kept.store.set_sync("x/c/1", buffer.from_bytes(number.to_bytes(4, "little")))
        kept.status()
        kept.discard_changes()

    def sweep(number):
        if number % 8 == 0:
            repo.expire_snapshots(datetime.now(UTC))
        repo.garbage_collect(datetime.now(UTC), dry_run=number % 2 == 0)

    def compact(number):
        repo.compact()

    def open_again(number):
        icelite.Repository.open(sys.argv[1]).close()

    work = {name: value for name, value in globals().items() if callable(value)}[sys.argv[2]]
    print("alive", flush=True)
    for number in itertools.count(int(sys.argv[3])):
        try:
            inside = True
            work(number)
            inside = False
        except KeyboardInterrupt:
            inside = False
            repo.list_branches()
            repo.create_branch(f"after{number}", repo.lookup_branch("main"))
            repo.delete_branch(f"after{number}")
            session = repo.writable_session("main")
            session.store.set_sync("x/c/2", buffer.from_bytes(b"next"))
            print("ack", session.commit("after"), flush=True)
            print("interrupted", flush=True)
            if sys.stdin.readline() != "go\\n":
                sys.exit(0)
"""
WORKS = ["commit", "flush", "refs", "read", "stage", "sweep", "compact", "open_again"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "a.icelite"
    session = Repository.create(path).writable_session("main")
    zarr.create_array(session.store, name="x", shape=(4,), chunks=(1,), dtype="i4", compressors=None)
    session.commit("an array")
    return path


@pytest.mark.parametrize("work", WORKS)
def test_an_interrupt_leaves_the_lock_free_and_the_objects_usable(
    work: str, path: Path, amount: Amount, request: pytest.FixtureRequest
) -> None:
    wanted = amount(4, 60)
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(PROGRAM), str(path), work, "1000"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    lines = iter(process.stdout.readline, "")
    acknowledged = []
    try:
        assert next(lines) == "alive\n"
        for number in range(wanted):
            time.sleep(random.uniform(0, 0.03))
            interrupted = False
            while not interrupted:  # one that fell between two calls is not one
                process.send_signal(signal.SIGINT)
                deadline = time.monotonic() + 60
                for line in lines:
                    interrupted = line == "interrupted\n"
                    if line.startswith("ack "):
                        acknowledged.append(line.split()[1])
                    if interrupted or time.monotonic() > deadline:
                        break
                assert interrupted, process.poll()
            other = Repository.open(path)  # another process can write at once
            other.create_tag(f"{work}{number}", other.lookup_branch("main"))
            other.close()
            process.stdin.write("go\n")
            process.stdin.flush()
    finally:
        process.kill()
        process.communicate()
    repository = Repository.open(path, check="always")
    history = {info.id for info in repository.ancestry(branch="main")}
    if work != "sweep":  # which releases them
        assert set(acknowledged) <= history
    assert repository.verify() == []
    request.node.counted.append(f"{wanted} interrupts")
