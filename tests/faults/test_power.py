"""Power cuts, simulated below SQLite and Python: what a call promised is kept, and the rest is as before.

Every way to write is recorded (`simulated_disk`), cut after every operation in five ways, and what the disk then holds
is opened and looked at whole. ``scripts/test faults`` cuts after each operation, other runs after some of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import apsw
import numpy as np
import pytest
import zarr
from simulated_disk import Disk, Files, cuts, files_of, lay, watched_disk
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

import icelite
from icelite.catalog import connections
from icelite.change_set import chunks as pending
from icelite.errors import IceliteError
from icelite.repository import Repository
from icelite.session import Session

__all__ = ["watched_disk"]

NAME = "a.icelite"
CHUNKS = 4
KEYS = [f"{array}/c/{chunk}" for array in ("x", "y") for chunk in range(CHUNKS)]
SOURCE = bytes(range(256))

Amount = Callable[[int, int], int]
Steps = Iterator[None]


@pytest.fixture(autouse=True)
def early_payloads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most payloads go to the catalog before the commit."""
    monkeypatch.setattr(pending, "PENDING_BYTES", 8)


def write(session: Session, number: int) -> None:
    """Chunks of two arrays; the first ones are too many to wait in memory for the commit."""
    for key in KEYS[number % 2 :: 2]:
        session.store.set_sync(key, default_buffer_prototype().buffer.from_bytes(bytes([number] * 4)))


def start(folder: Path, **options: Any) -> Repository:
    repository = Repository.create(folder / NAME, **options)
    session = repository.writable_session("main")
    for name in ("x", "y"):
        zarr.create_array(session.store, name=name, shape=(CHUNKS,), chunks=(1,), dtype="i4", compressors=None)
    session.commit("two arrays")
    return repository


def commit(repository: Repository, number: int, branch: str = "main") -> str:
    session = repository.writable_session(branch)
    write(session, number)
    return session.commit(f"commit {number}")


# -- every way to write: what is there first, and calls that each end with a yield once they returned -----------------


def create(folder: Path) -> Steps:
    yield
    Repository.create(folder / "new.icelite")
    yield
    Repository.create(folder / "newer.icelite")
    yield


def payloads(folder: Path) -> Steps:
    repository = start(folder)
    yield
    for number in range(3):
        commit(repository, number)
        yield


def references(folder: Path) -> Steps:
    (folder / "data.bin").write_bytes(SOURCE)
    repository = start(folder)
    yield
    for number in range(3):
        session = repository.writable_session("main")
        offsets = np.arange(CHUNKS, dtype=np.uint64) * 4 + 16 * number
        lengths = np.full(CHUNKS, 4, dtype=np.uint64)
        url = (folder / "data.bin").as_uri()
        session.store.set_virtual_refs_arr("x", (CHUNKS,), [url] * CHUNKS, offsets, lengths)
        session.commit(f"references {number}")
        yield


def branches(folder: Path) -> Steps:
    repository = start(folder)
    yield
    first = commit(repository, 1)
    yield
    repository.create_branch("other", first)
    yield
    commit(repository, 2, "other")
    yield
    repository.create_tag("v1", first)
    yield
    repository.reset_branch("other", first)
    yield
    commit(repository, 3)
    yield
    repository.delete_tag("v1")
    yield
    repository.delete_branch("other")
    yield


def amend(folder: Path) -> Steps:
    repository = start(folder)
    commit(repository, 0)
    yield
    for number in (1, 2):
        session = repository.writable_session("main")
        write(session, number)
        session.amend(f"amended {number}")
        yield


def sweep(folder: Path) -> Steps:
    """Expiration, collection and compaction of a history of five."""
    repository = start(folder)
    for number in range(5):
        commit(repository, number)
    repository.create_tag("kept", list(repository.ancestry(branch="main"))[2].id)
    yield
    repository.expire_snapshots(datetime.now(UTC))
    yield
    repository.garbage_collect(datetime.now(UTC))
    yield
    repository.compact()
    yield


def relocate(folder: Path) -> Steps:
    repository = Repository.create(folder / NAME)
    session = repository.writable_session("main")
    zarr.create_array(session.store, name="x", shape=(CHUNKS,), chunks=(1,), dtype="i4", compressors=None)
    for chunk in range(CHUNKS):
        session.store.set_virtual_ref(
            f"x/c/{chunk}", f"s3://old/{chunk}.bin", offset=0, length=4, validate_container=False
        )
    session.commit("elsewhere")
    yield
    repository.relocate("s3://old/", "s3://new/")
    yield
    repository.relocate("s3://new/", "s3://newest/")
    yield


def bundle(folder: Path) -> Steps:
    (folder / "data.bin").write_bytes(SOURCE)
    for _ in references_once(folder):
        pass
    yield
    Repository.open(folder / NAME).bundle(folder / "bundle.icelite")
    yield


def references_once(folder: Path) -> Steps:
    steps = references(folder)
    next(steps)
    next(steps)
    steps.close()
    yield


def objects(folder: Path) -> Steps:
    config = icelite.RepositoryConfig(inline_chunk_threshold_bytes=0, object_target_bytes=8)
    repository = start(folder, config=config, objects="chunks")
    yield
    for number in range(2):
        commit(repository, number)
        yield
    repository.expire_snapshots(datetime.now(UTC))
    yield
    repository.garbage_collect(datetime.now(UTC))
    yield
    repository.repack(min_live=1.0)
    yield


def virtualize(folder: Path) -> Steps:
    xr = pytest.importorskip("xarray")
    pytest.importorskip("netCDF4")
    for day in range(3):
        values = {"sst": (("time", "x"), np.full((1, 4), float(day)))}
        xr.Dataset(values, {"time": [day]}).to_netcdf(folder / f"d{day}.nc", format="NETCDF3_CLASSIC")
    start(folder)
    yield
    for day in range(3):
        icelite.virtualize([str(folder / f"d{day}.nc")], folder / NAME, group="days", concat_dim="time")
        yield


SCENARIOS = {
    function.__name__: function
    for function in (create, payloads, references, branches, amend, sweep, relocate, bundle, objects, virtualize)
}


# -- what can be seen -------------------------------------------------------------------------------------------


def contents(session: Session) -> dict[str, bytes]:
    async def keys() -> list[str]:
        return [key async for key in session.store.list()]

    found = {}
    for key in sync(keys()):
        try:
            value = session.store.get_sync(key)
        except IceliteError as error:  # a reference to elsewhere that nobody allowed here, or bytes that are gone
            found[key] = str(error.kind).encode()
            continue
        assert value is not None
        found[key] = value.to_bytes()
    return found


def look(folder: Path) -> dict[str, Any]:
    """Everything that the catalogs of a folder say: refs, histories, sources and every value of every snapshot."""
    seen: dict[str, Any] = {}
    for path in sorted(folder.glob("*.icelite")):
        if path.name.startswith("."):
            continue  # a draft
        with_objects = {"objects": "chunks"} if (folder / "chunks").exists() else {}
        repository = Repository.open(path, check="always", **with_objects)
        refs = {f"branch {name}": repository.lookup_branch(name) for name in repository.list_branches()}
        refs |= {f"tag {name}": repository.lookup_tag(name) for name in repository.list_tags()}
        line = {
            info.id: (info.parent_id, info.message)
            for at in refs.values()
            for info in repository.ancestry(snapshot_id=at)
        }
        values = {at: contents(repository.readonly_session(snapshot_id=at)) for at in line}
        sources = sorted(row.url for row in repository.sources() if not row.url.startswith("file:"))
        seen[path.name] = refs, line, values, sources
        repository.close()
    return seen


@dataclass
class Record:
    """Calls made one after another: the disk before, what happened, and what was promised when."""

    files: Files
    log: list[tuple[Any, ...]]
    promised: list[int]  # operations done when each call returned
    expected: list[dict[str, Any]]  # what is seen after each


def record(scenario: Callable[[Path], Steps], disk: Disk) -> Record:
    steps = scenario(disk.root)
    next(steps)
    files = files_of(disk.root)
    disk.log.clear()
    done = Record(files, [], [0], [look(disk.root)])
    disk.log.clear()
    for _ in steps:
        log = list(disk.log)
        done.promised.append(len(log))
        done.expected.append(look(disk.root))
        disk.log[:] = log  # looking may have removed an empty journal
    done.log = list(disk.log)
    disk.note = lambda *details: None  # type: ignore[method-assign]
    return done


def fault(done: Record, operations: int, files: Files, place: Path) -> str | None:
    """What is wrong with a disk, None if nothing: all of what was promised is seen, and whole calls only."""
    for old in sorted(place.rglob("*"), reverse=True):
        old.rmdir() if old.is_dir() else old.unlink()
    lay(files, place)
    last = sum(at <= operations for at in done.promised) - 1
    try:
        seen = look(place)
        if operations % 10 == 0 and NAME in seen:  # and work goes on
            Repository.open(place / NAME).writable_session("main").commit("after the cut", allow_empty=True)
    except IceliteError as error:
        return f"damaged: {error}"
    return None if seen in done.expected[last : last + 2] else f"not as after call {last}, nor the next"


@pytest.fixture
def place(memory: Path) -> Path:
    (memory / "after").mkdir()
    return memory / "after"


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_power_cut_loses_nothing_that_was_promised(
    name: str, watched_disk: Disk, place: Path, amount: Amount, request: pytest.FixtureRequest
) -> None:
    done = record(SCENARIOS[name], watched_disk)
    assert len(done.log) > 10
    stride = amount(max(1, len(done.log) // 12), 1)
    faults = [(at, fault(done, at, files, place)) for at, files in cuts(done.files, done.log, 1, stride)]
    lost = [(at, what) for at, what in faults if what]
    request.node.counted.append(f"{len(faults)} power cuts over {len(done.log)} operations, {len(lost)} lost")
    assert lost == []


def test_the_simulator_finds_what_a_missing_sync_would_lose(
    watched_disk: Disk, place: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Without syncs, acknowledged commits are lost and files damaged: the test above would not pass by accident."""
    tuned = connections.set_pragmas

    def careless(connection: apsw.Connection) -> None:
        tuned(connection)
        connection.pragma("synchronous", "off")

    with monkeypatch.context() as patch:
        patch.setattr(connections, "set_pragmas", careless)
        done = record(payloads, watched_disk)
    faults = [fault(done, at, files, place) for at, files in cuts(done.files, done.log, 1)]
    request.node.counted.append(f"{sum(map(bool, faults))} of {len(faults)} power cuts lose something without syncs")
    assert any(what and "not as after" in what for what in faults)
    assert any(what and "damaged" in what for what in faults)


def test_the_simulator_finds_an_object_that_was_not_synced(
    watched_disk: Disk, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same for what Python writes."""
    monkeypatch.setattr("icelite.objects.objects.os.fsync", lambda descriptor: None)
    done = record(objects, watched_disk)
    assert any(fault(done, at, files, place) for at, files in cuts(done.files, done.log, 1))


def test_no_journal_ever_names_another_file(watched_disk: Disk) -> None:
    """The check on opening refuses such a journal as planted (catalog/checks.py)."""
    done = record(payloads, watched_disk)
    assert {operation[1] for operation in done.log} == {NAME, f"{NAME}-journal"}


def test_a_commit_syncs_the_journal_then_the_catalog_then_lets_the_journal_go(watched_disk: Disk) -> None:
    done = record(payloads, watched_disk)
    log = done.log[: done.promised[1]]
    last = [operation[:2] for operation in log if operation[0] in ("sync", "truncate")][-5:]
    journal = f"{NAME}-journal"
    assert last == [("sync", journal)] * 2 + [("sync", NAME), ("truncate", journal), ("sync", journal)]
