"""Catalogs read by ranges, where no integrity check comes first: forged ones, and ones that are replaced."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import sqlite3
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import zarr
from web_site import Site

import icelite
from icelite import IceliteError, Repository, StorageConfig
from icelite.catalog.checks import schema_text

pytestmark = [pytest.mark.s3, pytest.mark.usefixtures("no_aws_settings")]

STEPS = 40
CHUNK = 4000


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalog with rows in every table, larger than what is fetched of one first."""
    folder = tmp_path_factory.mktemp("original")
    (folder / "f.bin").write_bytes(bytes(range(100)))
    prefix = folder.as_uri() + "/elsewhere/"
    containers = {prefix: icelite.VirtualChunkContainer(prefix)}
    repository = Repository.create(folder / "x.icelite", icelite.RepositoryConfig(virtual_chunk_containers=containers))
    session = repository.writable_session("main")
    root = zarr.create_group(session.store)
    array = root.create_array("a", shape=(STEPS, CHUNK), chunks=(1, CHUNK), dtype="u1", compressors=None, filters=None)
    array[:] = 1
    root.create_array("v", shape=(4,), chunks=(1,), dtype="u1", compressors=None, filters=None)
    session.store.set_virtual_ref("v/c/1", str(folder / "f.bin"), offset=1, length=1)
    session.commit("first")
    repository.create_tag("t", repository.lookup_branch("main"))
    repository.create_branch("side", repository.lookup_branch("main"))
    for branch in ("main", "side"):
        session = repository.writable_session(branch)
        zarr.open_array(session.store, path="a", mode="r+")[0] = 2
        session.commit("second")
    repository.close()
    return folder


@pytest.fixture
def site(original: Path, tmp_path: Path) -> Iterator[Site]:
    shutil.copytree(original, tmp_path, dirs_exist_ok=True)
    site = Site(tmp_path)
    yield site
    site.close()


@pytest.fixture(autouse=True, scope="module")
def _small_blocks() -> Iterator[None]:
    """So that a small catalog is read as a large one is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("icelite.vfs.mirror.HEAD_BYTES", 4096)
        patch.setattr("icelite.vfs.blocks.BLOCK_BYTES", 1 << 14)
        yield


def storage(site: Site, name: str = "x.icelite") -> StorageConfig:
    return StorageConfig.http(f"{site.url}/{name}", whole_bytes=1)


def questions(place: StorageConfig) -> dict[str, object]:
    """The answer to every reading question, or the kind of the error; any other exception fails the test."""

    def ask(question: Callable[[], object]) -> object:
        try:
            return question()
        except IceliteError as error:
            if error.kind == "unknown":
                raise
            return error.kind

    try:
        repository = Repository.open(place)
    except IceliteError as error:
        return {"open": error.kind}
    assert repository._catalog.path is None, "read by ranges"

    def look(path: str, index: int) -> Callable[[], object]:
        def read() -> object:
            store = repository.readonly_session("main").store
            return store.get_sync(f"{path}/{index}") and store.get_sync(f"{path}/{index}").to_bytes()  # type: ignore[union-attr]

        return read

    def nodes() -> object:
        try:
            group = zarr.open_group(repository.readonly_session("side").store, mode="r")
            return sorted((name, type(node).__name__) for name, node in group.members(max_depth=None))
        except FileNotFoundError:
            return "no root"
        except ValueError:  # of zarr, on metadata that is none
            return "bad metadata"

    asked: dict[str, Callable[[], object]] = {
        "branches": lambda: sorted(repository.list_branches()),
        "tags": lambda: sorted(repository.list_tags()),
        "ancestry": lambda: [
            (info.id, info.message) for info in itertools.islice(repository.ancestry(branch="side"), 50)
        ],
        "operations": lambda: [str(entry) for entry in itertools.islice(repository.ops_log(), 100)],
        "diff": lambda: str(repository.diff(from_tag="t", to_branch="main")),
        "nodes": nodes,
        "a": look("a/c", 0),
        "a again": look("a/c/3", 0),
        "v": look("v/c", 1),
        "sources": lambda: [str(source) for source in repository.sources(branch="main")],
        "config": lambda: str(repository.config),
        "access": lambda: str(repository.required_access()),
        "verify": lambda: len(repository.verify()),
    }
    return {name: ask(question) for name, question in asked.items()}


COLUMNS = [
    (table, line.split()[0])
    for table, body in re.findall(r"^CREATE TABLE (\w+) \(\n(.*?)^\)", schema_text(), re.DOTALL | re.MULTILINE)
    for line in body.splitlines()
    if re.match(r"  [a-z]", line)
]


def forge(path: Path, *statements: str) -> None:
    """Change rows of a catalog in ways that its schema forbids."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA writable_schema = ON")
    texts = connection.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'table'").fetchall()
    for name, sql in texts:
        if not name.startswith("sqlite_"):
            lax = re.sub(r"--[^\n]*", "", sql)
            lax = re.sub(r"\b(INTEGER(?! PRIMARY)|TEXT|BLOB)\b|\bNOT NULL\b|\bSTRICT\s*,?", "", lax)
            connection.execute("UPDATE sqlite_schema SET sql = ? WHERE name = ?", (lax, name))
    connection.close()
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA ignore_check_constraints = ON")
    connection.execute("PRAGMA writable_schema = ON")
    for statement in statements:
        connection.execute(statement)
    for name, sql in texts:
        connection.execute("UPDATE sqlite_schema SET sql = ? WHERE name = ?", (sql, name))
    connection.close()


FORGED = [
    (table, column, value)
    for table, column in COLUMNS
    for value in ("'no'", "x'ff00'", "1.5", "NULL", "-9223372036854775808")
]
SOME = FORGED[::7]


def ask_forged(site: Site, path: Path, table: str, column: str, value: str) -> dict[str, object]:
    which = f"{column} IS (SELECT max({column}) FROM {table})"
    try:
        forge(path, f"UPDATE {table} SET {column} = {value} WHERE {which}")
    except sqlite3.IntegrityError:  # of a rowid
        pytest.skip("SQLite itself keeps this out")
    return questions(storage(site))


@pytest.mark.parametrize(("table", "column", "value"), SOME)
def test_a_value_that_the_schema_forbids_is_at_most_an_error(
    site: Site, tmp_path: Path, table: str, column: str, value: str
) -> None:
    ask_forged(site, tmp_path / "x.icelite", table, column, value)


@pytest.mark.campaign
@pytest.mark.parametrize(("table", "column", "value"), sorted({*FORGED} - {*SOME}))
def test_any_value_that_the_schema_forbids_is_at_most_an_error(
    site: Site, tmp_path: Path, table: str, column: str, value: str
) -> None:
    ask_forged(site, tmp_path / "x.icelite", table, column, value)


TYPES = [("chunk_ref", "offset"), ("branch", "seq"), ("snapshot", "message"), ("operation", "done_at"), ("node", "seg")]


@pytest.mark.parametrize(("table", "column"), TYPES)
def test_a_value_of_another_type_is_never_an_answer(site: Site, tmp_path: Path, table: str, column: str) -> None:
    found = ask_forged(site, tmp_path / "x.icelite", table, column, "x'ff00'")
    assert "corrupt" in found.values()


ENDLESS = {
    "a segment is its own parent": "UPDATE segment SET parent_seg = seg, fork_seq = seg",
    "segments in a circle": "UPDATE segment SET parent_seg = (SELECT max(seg) FROM segment), fork_seq = 1 << 40",
    "a snapshot is its own parent": "UPDATE snapshot SET parent_seq = seq",
    "snapshots in a circle": "UPDATE snapshot SET parent_seq = (SELECT max(seq) FROM snapshot)",
}


@pytest.mark.parametrize("name", ENDLESS)
def test_what_would_be_endless_is_an_error(site: Site, tmp_path: Path, name: str) -> None:
    forge(tmp_path / "x.icelite", ENDLESS[name])
    found = questions(storage(site))
    assert (found.get("open") or found["ancestry" if "snapshot" in name else "nodes"]) == "corrupt"


def pages_of(path: Path, table: str) -> tuple[int, int]:
    """The root page of a table, and the size of a page."""
    connection = sqlite3.connect(path)
    ((root,),) = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", (table,)).fetchall()
    ((size,),) = connection.execute("PRAGMA page_size").fetchall()
    connection.close()
    return int(root), int(size)


def test_a_page_that_repeats_a_cell_is_an_error(site: Site, tmp_path: Path) -> None:
    path = tmp_path / "x.icelite"
    root, size = pages_of(path, "branch")
    data = bytearray(path.read_bytes())
    start = (root - 1) * size
    assert data[start] == 10
    first = data[start + 8 : start + 10]
    data[start + 3 : start + 5] = struct.pack(">H", 100)
    data[start + 8 : start + 208] = first * 100
    path.write_bytes(data)
    assert questions(storage(site))["branches"] == "corrupt"


# ---- a catalog that is replaced while it is read


def fresh(path: Path, value: int) -> None:
    """A catalog that differs from another such one in its values and its times only."""
    repository = Repository.create(path)
    session = repository.writable_session("main")
    array = zarr.create_array(
        session.store, name="a", shape=(STEPS, CHUNK), chunks=(1, CHUNK), dtype="u1", compressors=None, filters=None
    )
    array[:] = value
    session.commit("c")
    repository.close()


def replace(path: Path, other: Path) -> None:
    """Put a file in the place of another, with the times of that one."""
    status = path.stat()
    os.replace(other, path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("validators", [set(), {"Last-Modified"}, {"ETag"}], ids=str)
@pytest.mark.parametrize("change", ["another repository", "a commit"])
def test_a_version_is_never_mixed_with_another(site: Site, tmp_path: Path, validators: set[str], change: str) -> None:
    path, other = tmp_path / "r.icelite", tmp_path / "n.icelite"
    fresh(path, 1)
    if change == "a commit":
        shutil.copyfile(path, other)
        repository = Repository.open(other)
        session = repository.writable_session("main")
        zarr.open_array(session.store, path="a", mode="r+")[:] = 2
        session.commit("two")
        repository.close()
    else:
        fresh(other, 2)
        assert path.stat().st_size == other.stat().st_size
        assert path.read_bytes()[:4096] == other.read_bytes()[:4096], "the first page alone would not do"
    site.validators = validators
    place = storage(site, "r.icelite")
    repository = Repository.open(place)
    array = zarr.open_array(repository.readonly_session("main").store, path="a", mode="r")
    assert array[0, 0] == 1
    if validators == {"ETag"}:
        os.replace(other, path)
    else:
        replace(path, other)
    found = set()
    for step in range(0, STEPS, 5):
        try:
            found.add(int(array[step, 0]))
        except IceliteError as error:
            found.add(str(error.kind))
    assert found == {1, "catalog-replaced"}
    repository.close()
    del repository, array
    again = zarr.open_array(Repository.open(place).readonly_session("main").store, path="a", mode="r")
    assert (np.asarray(again[:]) == 2).all()


def test_a_server_that_names_versions_is_asked_nothing_more(site: Site) -> None:
    def requests() -> int:
        site.log.clear()
        array = zarr.open_array(Repository.open(storage(site)).readonly_session("main").store, path="a", mode="r")
        assert array[3, 0] == 1
        return site.log.count("/x.icelite")

    sure = requests()
    site.validators = set()
    assert sure < requests() <= 3 * sure
