"""`kill -9` at random moments of writing: the file opens, what was acknowledged is whole, nothing else is seen.

How many times each: ``ICELITE_KILLS``; 10 where it is not set, 40 in a campaign.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
import zarr
from zarr.core.sync import sync

from icelite import RepositoryConfig
from icelite.catalog import locations
from icelite.objects import Objects
from icelite.repository import Repository
from icelite.session import Session
from icelite.types import INITIAL_SNAPSHOT_ID

KILLS = int(os.environ.get("ICELITE_KILLS", "40" if os.environ.get("ICELITE_CAMPAIGN") else "10"))
MOST_SECONDS = 0.5  # from the first sign of life to the kill
CHUNKS = 64
SIZE = 4096

# Commit n sets every chunk of the array `inline` to n, and every chunk of `virtual` to byte n of a file. The bytes
# are more than wait in memory: some go to the catalog long before the commit.
WRITER = f"""
    import sys
    import numpy as np
    from icelite.change_set import chunks as pending
    from icelite.repository import Repository
    from zarr.core.buffer import default_buffer_prototype

    pending.PENDING_BYTES = {SIZE * CHUNKS // 5}
    buffer = default_buffer_prototype().buffer
    repository = Repository.open(sys.argv[1])
    number = len(list(repository.ancestry(branch="main"))) - 2
    print("alive", flush=True)
    while True:
        number += 1
        session = repository.writable_session("main")
        for chunk in range({CHUNKS}):
            session.store.set_sync(f"inline/c/{{chunk}}", buffer.from_bytes(number.to_bytes(4, "big") * {SIZE // 4}))
        offsets = np.full({CHUNKS}, number % 256, dtype=np.uint64)
        lengths = np.ones({CHUNKS}, dtype=np.uint64)
        session.store.set_virtual_refs_arr("virtual", ({CHUNKS},), [sys.argv[2]] * {CHUNKS}, offsets, lengths)
        print(session.commit(str(number)), flush=True)
"""
CREATOR = """
    import itertools, sys
    from icelite.repository import Repository

    print("alive", flush=True)
    for number in itertools.count():
        Repository.create(f"{sys.argv[1]}/{number}.icelite")
        print(f"{number}.icelite", flush=True)
"""


def run_and_kill(code: str, *arguments: object) -> list[str]:
    """Run a program, kill it at a random moment of its work; the lines it printed."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"alive\n"
    time.sleep(random.uniform(0, MOST_SECONDS))
    process.kill()
    output, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL, "it ended by itself"
    return output[: output.rfind(b"\n") + 1].decode().split()


def start(path: Path) -> str:
    session = Repository.create(path).writable_session("main")
    zarr.create_array(session.store, name="inline", shape=(CHUNKS,), chunks=(1,), dtype="u1", compressors=None)
    zarr.create_array(session.store, name="virtual", shape=(CHUNKS,), chunks=(1,), dtype="u1", compressors=None)
    return session.commit("two arrays")


def contents(session: Session) -> dict[str, bytes]:
    async def keys() -> list[str]:
        return [key async for key in session.store.list() if not key.endswith("zarr.json")]

    values = {key: session.store.get_sync(key) for key in sync(keys())}
    return {key: value.to_bytes() for key, value in values.items() if value is not None}


def expected(number: int) -> dict[str, bytes]:
    inline = {f"inline/c/{chunk}": number.to_bytes(4, "big") * (SIZE // 4) for chunk in range(CHUNKS)}
    return inline | {f"virtual/c/{chunk}": bytes([number % 256]) for chunk in range(CHUNKS)}


def test_killed_while_writing(tmp_path: Path) -> None:
    """Kill after kill on one file, so that each writer also takes up what the one before left."""
    path, source = tmp_path / "a.icelite", tmp_path / "source.bin"
    source.write_bytes(bytes(range(256)))
    line = [INITIAL_SNAPSHOT_ID, start(path)]
    unacknowledged = 0
    for _ in range(KILLS):
        acknowledged = run_and_kill(WRITER, path, source.as_uri())
        repository = Repository.open(path, check="always")
        found = [info.id for info in repository.ancestry(branch="main")][::-1]
        before = len(line)
        line += acknowledged
        assert found[: len(line)] == line
        assert len(found) <= len(line) + 1  # the commit that was under way may have made it
        unacknowledged += len(found) - len(line)
        line = found
        for number in range(before, len(line)):
            assert contents(repository.readonly_session(snapshot_id=line[number])) == expected(number - 1)
        assert repository.list_branches() == {"main"}
        assert repository.lookup_branch("main") == line[-1]
        repository.close()
    print(f"{KILLS} kills, {len(line) - 2} commits, {unacknowledged} of them killed before they could be announced")
    assert len(line) > 2


def test_killed_while_creating(tmp_path: Path) -> None:
    """A repository is there with all that makes one, or it is not there."""
    for kill in range(KILLS):
        folder = tmp_path / str(kill)
        folder.mkdir()
        created = run_and_kill(CREATOR, folder)
        names = sorted(name.name for name in folder.glob("*.icelite"))
        assert set(created) <= set(names)
        assert len(names) <= len(created) + 1
        for name in names[-3:]:
            repository = Repository.open(folder / name, check="always")
            assert repository.lookup_branch("main") == INITIAL_SNAPSHOT_ID
            repository.writable_session("main").commit("first", allow_empty=True)
        drafts = [name for name in folder.glob(".icelite-*") if name.suffix != ".lock"]
        assert len(drafts) <= 1  # which nobody opens


# -- with objects ----------------------------------------------------------------------------------------------

FEW, SMALL = 32, 512  # chunks and their bytes

# Commit n sets every chunk to n, most of them long before the commit. Every third time old snapshots are let go,
# packs are rewritten, and what is old is swept: kills fall into all of that.
OBJECT_WRITER = f"""
    import sys
    from datetime import UTC, datetime
    from icelite.change_set import chunks as pending
    from icelite.repository import Repository
    from zarr.core.buffer import default_buffer_prototype

    pending.PENDING_BYTES = {SMALL * FEW // 5}
    buffer = default_buffer_prototype().buffer
    repository = Repository.open(sys.argv[1])
    number = int(next(iter(repository.ancestry(branch="main"))).message)
    print("alive", flush=True)
    while True:
        number += 1
        session = repository.writable_session("main")
        for chunk in range({FEW}):
            if chunk % 4 != number % 4:
                session.store.set_sync(f"x/c/{{chunk}}", buffer.from_bytes(number.to_bytes(4, "big") * {SMALL // 4}))
        session.commit(str(number))
        print(number, flush=True)
        if number % 3 == 0:
            now = datetime.now(UTC)
            repository.expire_snapshots(now)
            repository.garbage_collect(now)
            repository.repack(min_live=1.0)
            repository.garbage_collect(datetime.now(UTC))
"""


def start_with_objects(path: Path) -> None:
    config = RepositoryConfig(inline_chunk_threshold_bytes=0, object_target_bytes=4 * SMALL)
    session = Repository.create(path, config, objects="deep/chunks").writable_session("main")
    zarr.create_array(session.store, name="x", shape=(FEW,), chunks=(1,), dtype="u1", compressors=None)
    session.commit("0")


def expected_of_objects(number: int) -> dict[str, bytes]:
    newest = {chunk: max((n for n in range(number + 1) if chunk % 4 != n % 4), default=0) for chunk in range(FEW)}
    return {f"x/c/{chunk}": n.to_bytes(4, "big") * (SMALL // 4) for chunk, n in newest.items() if n > 0}


def test_killed_while_writing_sweeping_and_repacking(tmp_path: Path) -> None:
    path = tmp_path / "a.icelite"
    start_with_objects(path)
    kills = max(1, KILLS // 3)
    orphans = commits = 0
    for _ in range(kills):
        acknowledged = [int(line) for line in run_and_kill(OBJECT_WRITER, path)]
        repository = Repository.open(path, check="always")
        line = list(repository.ancestry(branch="main"))[:-1]  # all but the first one, which has nothing
        assert int(line[0].message) - (acknowledged[-1] if acknowledged else commits) in (0, 1)
        commits = int(line[0].message)
        for info in line:
            found = contents(repository.readonly_session(snapshot_id=info.id))
            assert found == (expected_of_objects(int(info.message)) if info.message != "0" else {})
        assert repository.verify() == []
        orphans += sweep(repository)
        assert contents(repository.readonly_session("main")) == (expected_of_objects(commits) if commits else {})
        repository.close()
    print(f"{kills} kills, {commits} commits, {orphans} orphans")
    assert commits > 0


def sweep(repository: Repository) -> int:
    """Collect: what is left is exactly what the catalog names; how much had to go."""
    time.sleep(0.002)  # objects tell their milliseconds
    removed = repository.garbage_collect(datetime.now(UTC)).objects_deleted
    assert isinstance(repository._objects, Objects)
    with repository._catalog.read() as txn:
        named = {found.key for found in locations.list_packs(txn)}
    assert {found.key for found in repository._objects.scan()} == named
    return removed


# -- every other way to write ----------------------------------------------------------------------------------

# Does one thing over and over on a repository whose array `x` every commit sets to its number.
OTHERS = """
    import itertools, os, sys
    from datetime import UTC, datetime
    import icelite
    from zarr.core.buffer import default_buffer_prototype

    folder, work = sys.argv[1:]
    buffer = default_buffer_prototype().buffer
    repo = icelite.Repository.open(f"{folder}/a.icelite")
    number = int(next(iter(repo.ancestry(branch="main"))).message)

    def write(way):
        global number
        number += 1
        session = repo.writable_session("main")
        for chunk in range(8):
            session.store.set_sync(f"x/c/{chunk}", buffer.from_bytes(number.to_bytes(4, "big") * 1024))
        way(session)(str(number))
        print(number, flush=True)

    def amend():
        write(lambda session: session.amend)

    def sweep():
        write(lambda session: session.commit)
        repo.expire_snapshots(datetime.now(UTC))
        repo.garbage_collect(datetime.now(UTC))

    def compact():
        write(lambda session: session.commit)
        repo.garbage_collect(datetime.now(UTC))
        repo.compact()

    def bundle():
        repo.bundle(f"{folder}/bundle-{os.getpid()}-{next(numbers)}.icelite")

    def export():
        repo.export_zarr(f"{folder}/plain-{os.getpid()}-{next(numbers)}.zarr")

    def virtualize():
        which = next(numbers)
        target = f"{folder}/virtual-{os.getpid()}-{which}.icelite"
        icelite.virtualize(f"{folder}/d0.nc", target, concat_dim="time")
        icelite.virtualize(f"{folder}/d1.nc", target, concat_dim="time")

    def relocate():
        now = next(iter(repo.sources())).url.split("/")[2]
        repo.relocate(f"s3://{now}/", f"s3://{'new' if now == 'old' else 'old'}/")

    numbers = itertools.count()
    print("alive", flush=True)
    while True:
        globals()[work]()
"""
WORKS = ["amend", "sweep", "compact", "bundle", "export", "virtualize", "relocate"]


def start_others(folder: Path, work: str) -> Path:
    """A repository with one array, and what the work needs: two files to virtualize, or a virtual chunk to relocate."""
    xr = pytest.importorskip("xarray")
    pytest.importorskip("h5py")
    for day in range(2):
        values = {"sst": (("time", "y"), [[float(day)] * 4])}
        xr.Dataset(values, {"time": [day]}).to_netcdf(folder / f"d{day}.nc", format="NETCDF3_CLASSIC", engine="scipy")
    session = Repository.create(folder / "a.icelite").writable_session("main")
    zarr.create_array(session.store, name="x", shape=(8 * 4096,), chunks=(4096,), dtype="u1", compressors=None)
    if work == "relocate":
        zarr.create_array(session.store, name="far", shape=(4,), chunks=(4,), dtype="u1", compressors=None)
        session.store.set_virtual_ref("far/c/0", "s3://old/data.bin", offset=0, length=4, validate_container=False)
    session.commit("0")
    return folder / "a.icelite"


@pytest.mark.parametrize("work", WORKS)
def test_killed_in_every_other_way_to_write(work: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    path = start_others(tmp_path, work)
    kills = max(1, KILLS // 5)
    last = 0
    for _ in range(kills):
        acknowledged = run_and_kill(OTHERS, tmp_path, work)
        last = max([last, *map(int, acknowledged)])
        repository = Repository.open(path, check="always")
        newest = next(iter(repository.ancestry(branch="main")))
        assert int(newest.message) - last in (0, 1)
        last = int(newest.message)
        found = contents_at_hand(repository)
        assert found == ({f"x/c/{chunk}": last.to_bytes(4, "big") * 1024 for chunk in range(8)} if last else {})
        assert repository.verify() == []
        urls = [row.url for row in repository.sources()]
        assert urls in ([["s3://old/data.bin"], ["s3://new/data.bin"]] if work == "relocate" else [[]])
        repository.close()
        check_made(tmp_path)
    request.node.counted.append(f"{kills} kills")


def contents_at_hand(repository: Repository) -> dict[str, bytes]:
    store = repository.readonly_session("main").store
    values = {f"x/c/{chunk}": store.get_sync(f"x/c/{chunk}") for chunk in range(8)}
    return {key: value.to_bytes() for key, value in values.items() if value is not None}


def check_made(folder: Path) -> None:
    """Whatever has a final name is whole."""
    for made in folder.glob("virtual-*.icelite"):
        repository = Repository.open(made, check="always")
        depth = len(list(repository.ancestry(branch="main")))
        if depth > 1:
            days = zarr.open_array(repository.readonly_session("main").store, path="time", mode="r")
            assert days[:].tolist() == list(range(depth - 1))
        repository.close()
        made.unlink()
    for made in folder.glob("plain-*.zarr"):
        assert zarr.open_array(made, path="x", mode="r").shape == (8 * 4096,)
