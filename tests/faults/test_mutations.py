"""Damage of every sort, to a catalog and to its objects: nothing is ever read differently without a word.

Each mutant is opened with and without SQLite's check of the file, everything of every branch, tag and snapshot is read,
and it is verified. Each value is as it was, or an `IceliteError`, or `verify` names a fault. What is no icelite error,
or takes a minute, fails.
"""

from __future__ import annotations

import contextlib
import faulthandler
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.core.sync import sync

from icelite import IceliteError, Repository, RepositoryConfig, Session

DATA = Path(__file__).parents[1] / "data"
PAGE = 4096
SECONDS = 60  # for a mutant; the process ends with a traceback rather than wait for ever
PARTS, MUTANTS = 10, 300  # the first part is in every run

Values = dict[str, object]


# ---- the catalogs


def format_1(folder: Path) -> Path:
    """The catalog of the first release: 25 pages, with rows in every table."""
    for name in ("format-1.icelite", "format-1.source"):
        shutil.copy(DATA / name, folder)
    shutil.copytree(DATA / "format-1.objects", folder / "format-1.objects")
    return folder / "format-1.icelite"


def large(folder: Path) -> Path:
    """A catalog whose tables are trees of pages, of three branches; long chunks are in objects."""
    config = RepositoryConfig.default()
    config.inline_chunk_threshold_bytes = 50
    repo = Repository.create(folder / "large.icelite", config, objects="large.objects")
    session = repo.writable_session("main")
    root = zarr.create_group(session.store)
    for number in range(8):
        root.create_array(f"a{number}", data=np.arange(30, dtype="u1") + number, chunks=(1,), compressors=None)
    root.create_array("long", data=np.arange(600) % 251, chunks=(60,), compressors=None)
    first = session.commit("first")
    for branch in ("main", "side", "other"):
        if branch != "main":
            repo.create_branch(branch, first)
        for number in range(3):
            with repo.transaction(branch, message=f"{branch} {number}") as store:
                zarr.open_array(store, path=f"a{number}")[: 10 + number] = 200 + number
                zarr.open_array(store, path="long")[60 * number : 60 * number + 60] = len(branch)
    repo.create_tag("v1", first)
    repo.close()
    return folder / "large.icelite"


ORIGINALS: dict[str, Callable[[Path], Path]] = {"format-1": format_1, "large": large}


# ---- the mutations

Mutation = Callable[[bytearray, random.Random], None]


def flip(data: bytearray, chance: random.Random) -> None:
    """One to three bytes anywhere."""
    for _ in range(chance.randrange(1, 4)):
        data[chance.randrange(len(data))] ^= chance.randrange(1, 256)


def flip_structure(data: bytearray, chance: random.Random) -> None:
    """One to three bytes of what says where rows are, or of the rows at the end of a page, with telling values."""
    for _ in range(chance.randrange(1, 4)):
        page = chance.randrange(max(1, len(data) // PAGE)) * PAGE
        within = chance.choice([chance.randrange(112 if page == 0 else 40), PAGE - 1 - chance.randrange(400)])
        if page + within < len(data):
            data[page + within] = chance.choice([0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)])


def splice(data: bytearray, chance: random.Random) -> None:
    """Some bytes overwritten with others of the same file."""
    length = chance.randrange(1, 200)
    source, target = (chance.randrange(max(1, len(data) - length)) for _ in range(2))
    data[target : target + length] = data[source : source + length]


def insert(data: bytearray, chance: random.Random) -> None:
    """A few bytes too many, or too few."""
    place = chance.randrange(len(data))
    if chance.random() < 0.5:
        data[place:place] = chance.randbytes(chance.randrange(1, 20))
    else:
        del data[place : place + chance.randrange(1, 20)]


def truncate(data: bytearray, chance: random.Random) -> None:
    """Cut at any place, or behind a page."""
    place = chance.randrange(len(data))
    del data[place - place % PAGE if chance.random() < 0.3 else place :]


def overwrite_page(data: bytearray, chance: random.Random) -> None:
    """A page of zeros, of noise, or of another place."""
    target, source = (chance.randrange(max(1, len(data) // PAGE)) * PAGE for _ in range(2))
    size = len(data[target : target + PAGE])
    data[target : target + size] = chance.choice([bytes(size), chance.randbytes(size), data[source : source + size]])


def zero_sector(data: bytearray, chance: random.Random) -> None:
    """A sector of 512 bytes that reads as zeros."""
    place = chance.randrange(len(data) // 512 + 1) * 512
    size = len(data[place : place + 512])
    data[place : place + size] = bytes(size)


def swap_pages(data: bytearray, chance: random.Random) -> None:
    """Two pages in each other's place."""
    one, other = (chance.randrange(max(1, len(data) // PAGE)) * PAGE for _ in range(2))
    data[one : one + PAGE], data[other : other + PAGE] = data[other : other + PAGE], data[one : one + PAGE]


MUTATIONS: list[Mutation] = [
    *(flip, flip, flip_structure, flip_structure, splice),
    *(insert, truncate, overwrite_page, zero_sector, swap_pages),
]


# ---- reading


def value(call: Callable[[], Any], seen: Counter[str]) -> object:
    """What a call gives, or the exception class `IceliteError` for any of those; a foreign error is a value."""
    try:
        return call()
    except IceliteError as error:
        seen[error.kind] += 1
        return IceliteError if error.kind != "unknown" else error
    except Exception as error:  # noqa: BLE001
        return error


def read_all(repo: Repository, snapshots: list[str], keys: list[str], seen: Counter[str]) -> Values:
    """Everything that can be read, each value by itself; ``snapshots`` and ``keys`` are those of the original."""

    def get(name: str, call: Callable[[], Any]) -> None:
        found[name] = value(call, seen)

    found: Values = {}
    folder = str(repo.storage.path.parent)
    get("branches", lambda: {name: repo.lookup_branch(name) for name in sorted(repo.list_branches())})
    get("tags", lambda: {name: repo.lookup_tag(name) for name in sorted(repo.list_tags())})
    get("log", lambda: [str(update) for update in repo.ops_log()])
    get("config", lambda: str(repo.config))
    get("metadata", repo.get_metadata)
    for snapshot in snapshots:
        get(f"ancestry {snapshot}", lambda s=snapshot: [str(info) for info in repo.ancestry(snapshot_id=s)])
        get(f"diff {snapshot}", lambda s=snapshot: str(repo.diff(to_snapshot_id=s)))
        get(f"sources {snapshot}", lambda s=snapshot: str(list(repo.sources(snapshot_id=s))).replace(folder, ""))
        session = value(lambda s=snapshot: repo.readonly_session(snapshot_id=s), seen)
        if not isinstance(session, Session):
            found[f"session {snapshot}"] = session
            continue
        store = session.store

        async def listed(store: Any = store) -> list[str]:
            return sorted([key async for key in store.list()])

        get(f"keys {snapshot}", lambda listed=listed: sync(listed()))
        for key in keys:
            get(f"{snapshot} {key}", lambda store=store, key=key: content(store.get_sync(key)))
    return found


def content(buffer: Any) -> bytes | None:
    return None if buffer is None else buffer.to_bytes()


class Original:
    """A catalog, what lies beside it, and what it holds."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.objects = sorted(p for p in path.parent.rglob("*") if p.is_file() and ".objects" in str(p))
        repo = Repository.open(path)
        assert repo.verify(objects="read") == []
        names = [{"branch": name} for name in repo.list_branches()] + [{"tag": name} for name in repo.list_tags()]
        self.snapshots = list(dict.fromkeys(info.id for name in names for info in repo.ancestry(**name)))
        self.keys: list[str] = []
        for snapshot in self.snapshots:
            store = repo.readonly_session(snapshot_id=snapshot).store

            async def listed(store: Any = store) -> list[str]:
                return [key async for key in store.list()]

            self.keys += sync(listed())
        self.keys = sorted(dict.fromkeys(self.keys))
        self.values = read_all(repo, self.snapshots, self.keys, Counter())
        repo.close()

    def examine(self, folder: Path, check: str, seen: Counter[str]) -> tuple[str, list[str]]:
        """What came of reading a damaged copy, and the values that differ in silence."""
        repo = value(lambda: Repository.open(folder / self.path.name, check=check), seen)
        if repo is IceliteError:
            return "refused on opening", []
        if isinstance(repo, Exception):
            return "a foreign exception", [repr(repo)]
        with contextlib.closing(repo):
            found = read_all(repo, self.snapshots, self.keys, seen)
            named = value(lambda: repo.verify(objects="read"), seen)
        foreign = [f"{key}: {x!r}" for key, x in {**found, "verify": named}.items() if isinstance(x, Exception)]
        if foreign:
            return "a foreign exception", foreign
        differ = [key for key, was in self.values.items() if key in found and found[key] not in (was, IceliteError)]
        if not named:
            return ("read as it was" if not differ else "read differently in silence"), differ
        if differ:
            return "read differently, named by verify", []
        refused = any(content is IceliteError for content in found.values())
        return ("refused on reading" if refused else "read as it was, named by verify"), []


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Original]:
    return {name: Original(make(tmp_path_factory.mktemp(name))) for name, make in ORIGINALS.items()}


def mutate(whole: bytes, chance: random.Random) -> tuple[Mutation, bytes]:
    """What is left of a file that was damaged, and how: never what it was."""
    for _ in range(1000):
        mutation, data = chance.choice(MUTATIONS), bytearray(whole)
        mutation(data, chance)
        if data != whole:
            return mutation, bytes(data)
    raise AssertionError("no mutation changes the file")


@pytest.fixture
def no_hanging() -> Iterator[Callable[[], None]]:
    """End the process, with a traceback, where a mutant takes too long; to be called before each."""
    yield lambda: faulthandler.dump_traceback_later(SECONDS, exit=True)
    faulthandler.cancel_dump_traceback_later()


@pytest.mark.slow
@pytest.mark.parametrize(
    "part", [pytest.param(part, marks=pytest.mark.campaign if part else ()) for part in range(PARTS)]
)
def test_damage_is_refused_named_or_changes_nothing(
    request: pytest.FixtureRequest,
    originals: dict[str, Original],
    memory: Path,
    no_hanging: Callable[[], None],
    part: int,
) -> None:
    chance = random.Random(part)
    seen: Counter[str] = Counter()
    outcomes: Counter[str] = Counter()
    faults = []
    for number in range(MUTANTS):
        no_hanging()
        original = originals["large" if chance.random() < 0.25 else "format-1"]
        folder = Path(shutil.copytree(original.path.parent, memory / "copy"))
        victim = chance.choice(original.objects) if chance.random() < 0.1 else original.path
        target = folder / victim.relative_to(original.path.parent)
        mutation, data = mutate(target.read_bytes(), chance)
        target.write_bytes(data)
        check = chance.choice(["always", "auto", "never"])
        what, differ = original.examine(folder, check, seen)
        outcomes[what] += 1
        if differ:
            faults.append(f"{number}: {mutation.__name__} of {victim.name}, check={check}: {differ[:5]}")
        shutil.rmtree(folder)
    request.node.counted.append(", ".join(f"{count} {what}" for what, count in sorted(outcomes.items())))
    print(seen)
    assert faults == []
    assert outcomes["refused on opening"] > MUTANTS / 10
    assert outcomes["read as it was"] > MUTANTS / 10
