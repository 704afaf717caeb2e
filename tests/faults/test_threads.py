"""Threads: each with a session of its own, and all in one session."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import zarr
from zarr.core.buffer import default_buffer_prototype

from icelite import ConflictDetector, Repository

THREADS, COMMITS = 6, 10


def make(path: Path) -> Repository:
    repo = Repository.create(path)
    session = repo.writable_session("main")
    for thread in range(THREADS):
        zarr.create_array(session.store, name=f"a{thread}", shape=(COMMITS,), chunks=(1,), dtype="i4")
    session.commit("arrays")
    return repo


def values(repo: Repository, name: str) -> list[int]:
    return np.asarray(zarr.open_array(repo.readonly_session("main").store, path=name, mode="r")[:]).tolist()


def test_threads_commit_to_one_repository(tmp_path: Path) -> None:
    repo = make(tmp_path / "a.icelite")

    def work(thread: int) -> None:
        for number in range(COMMITS):
            session = repo.writable_session("main")
            zarr.open_array(session.store, path=f"a{thread}")[number] = number + 1
            session.commit(f"{thread} {number}", rebase_with=ConflictDetector())
            assert values(repo, f"a{thread}")[number] == number + 1

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(work, range(THREADS)))
    assert len(list(repo.ancestry(branch="main"))) == 2 + THREADS * COMMITS
    assert all(values(repo, f"a{thread}") == list(range(1, COMMITS + 1)) for thread in range(THREADS))
    assert repo.verify() == []


def test_threads_write_to_one_session(tmp_path: Path) -> None:
    repo = make(tmp_path / "a.icelite")
    session = repo.writable_session("main")

    def work(thread: int) -> None:
        zarr.open_array(session.store, path=f"a{thread}")[:] = np.arange(COMMITS) + thread
        session.status()

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(work, range(THREADS)))
    session.commit("by all")
    assert all(values(repo, f"a{t}") == [t + i for i in range(COMMITS)] for t in range(THREADS))


def test_event_loops_share_a_session(tmp_path: Path) -> None:
    repo = make(tmp_path / "a.icelite")
    session = repo.writable_session("main")
    prototype = default_buffer_prototype()

    async def work(thread: int) -> None:
        store = session.store
        for number in range(COMMITS):
            await store.set(f"a{thread}/c/{number}", prototype.buffer.from_bytes(bytes([thread, number])))
        found = await asyncio.gather(*(store.get(f"a{thread}/c/{number}", prototype) for number in range(COMMITS)))
        assert [None if value is None else value.to_bytes() for value in found] == [
            bytes([thread, number]) for number in range(COMMITS)
        ]

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda thread: asyncio.run(work(thread)), range(THREADS)))
    assert len(session.status().updated_chunks) == THREADS
    session.commit("by all loops")


def test_a_thread_asks_for_the_version_while_another_reads(tmp_path: Path) -> None:
    catalog = make(tmp_path / "a.icelite")._catalog
    count = "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 1000000) SELECT count(*) FROM c"
    with ThreadPoolExecutor(1) as pool:
        counted = pool.submit(catalog.row, count)
        while not counted.done():
            assert catalog.version >= 0
    assert counted.result() == (1_000_000,)
