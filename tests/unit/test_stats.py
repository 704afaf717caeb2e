"""Bytes by where they are, each once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from icelite.types import ChunkStorageStats


def test_nothing(workbench: Any) -> None:
    assert workbench.repository.chunk_storage_stats() == ChunkStorageStats(0, 0, 0)


def test_what_several_snapshots_share_counts_once(workbench: Any) -> None:
    workbench.commit({"x/zarr.json": workbench.array(4), "x/c/0": b"12345", "x/c/1": b"1"})
    workbench.commit({"x/c/1": b"22"})
    workbench.commit({"x/c/0": None})
    session = workbench.repository.writable_session("main")
    workbench.write(session, {"x/c/2": b"333"})
    session.amend("copies the references of what it replaces", allow_empty=True)
    assert workbench.repository.chunk_storage_stats() == ChunkStorageStats(0, 0, 5 + 1 + 2 + 3)
    workbench.repository.expire_snapshots(workbench.now())
    workbench.repository.garbage_collect(workbench.now())
    assert workbench.repository.chunk_storage_stats() == ChunkStorageStats(0, 0, 2 + 3)


def test_a_range_of_a_file_counts_once_whatever_stamps_it_has(workbench: Any, tmp_path: Path) -> None:
    source = tmp_path / "a.bin"
    workbench.commit({"x/zarr.json": workbench.array(4)})
    for size in (10, 20):
        source.write_bytes(bytes(size))
        session = workbench.repository.writable_session("main")
        for chunk, offset in (("0", 0), ("1", 0), ("2", 4)):
            session.store.set_virtual_ref(f"x/c/{chunk}", source.as_uri(), offset=offset, length=4)
        session.commit("refer")
    assert workbench.repository.chunk_storage_stats() == ChunkStorageStats(0, 8, 0)


def test_sums() -> None:
    one, other = ChunkStorageStats(1, 20, 300), ChunkStorageStats(4000, 50_000, 600_000)
    assert one + other == ChunkStorageStats(4001, 50_020, 600_300)
    assert (one.non_virtual_bytes(), one.total_bytes()) == (301, 321)


def test_the_deprecated_total_is_of_native_chunks(workbench: Any) -> None:
    workbench.commit({"x/zarr.json": workbench.array(4), "x/c/0": b"12345"})
    with pytest.deprecated_call(match="chunk_storage_stats"):
        assert workbench.repository.total_chunks_storage(max_snapshots_in_memory=3) == 0
