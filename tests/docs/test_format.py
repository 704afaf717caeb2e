"""docs/format.md is true: it names every table and column, and its SQL runs on a catalog and finds what it says."""

import re
import shutil
import sqlite3
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import quickstart
import xarray as xr
import zarr

import icelite
from icelite.catalog.checks import schema_text
from icelite.catalog.invariants import BLOCK_RULES, RULES
from icelite.errors import ErrorKind
from icelite.types import UpdateType

PAGE = (Path(__file__).parents[2] / "docs" / "format.md").read_text()
BLOCK = re.compile(r"^```sql\n(?P<sql>.*?)^```$(?:\n```text\n(?P<found>.*?)^```$)?", re.MULTILINE | re.DOTALL)
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the quickstart makes, on a coarse grid, with the two further commits of the page's example."""
    folder = tmp_path_factory.mktemp("format") / "quickstart-data"
    quickstart.run(folder, (18, 36))
    repo = icelite.Repository.open(folder / "ocean.icelite")
    session = repo.writable_session("main")
    zarr.open_array(session.store, path="sst", mode="r+")[0] = 1234
    session.commit("Correct 1 August")
    session = repo.writable_session("main")
    zarr.open_group(session.store, mode="r+").attrs["comment"] = "The first day was corrected."
    session.commit("Mention the correction")
    repo.close()
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "quickstart-data"))


@pytest.fixture
def connection(folder: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(folder / "ocean.icelite")
    connection.create_function("writefile", 2, lambda name, data: (folder / name).write_bytes(data))
    yield connection
    connection.close()


def statements(sql: str) -> Iterator[str]:
    statement = ""
    for line in sql.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
    assert not statement.strip()


def run(connection: sqlite3.Connection, sql: str) -> list[tuple[object, ...]]:
    """Run the statements of a block; the rows of the last."""
    rows: list[tuple[object, ...]] = []
    for statement in statements(sql):
        rows = connection.execute(statement).fetchall()
    connection.commit()
    return rows


def shown(rows: list[tuple[object, ...]]) -> str:
    """Rows as the sqlite3 program prints them."""
    return "".join("|".join("" if value is None else str(value) for value in row) + "\n" for row in rows)


def block(connection: sqlite3.Connection, title: str) -> list[tuple[object, ...]]:
    """Run the block behind a bold question."""
    found = BLOCK.search(PAGE, PAGE.index(f"**{title}"))
    assert found is not None
    return run(connection, found["sql"])


def test_every_table_and_column_is_explained() -> None:
    connection = sqlite3.connect(":memory:")
    connection.executescript(schema_text())
    parts = re.split(r"^\*\*(?=`)", SECTIONS["The tables"], flags=re.MULTILINE)
    for (table,) in connection.execute(
        "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite%'"
    ):
        (part,) = [part for part in parts if re.match(rf".*`{table}`.*:", part.splitlines()[0])]
        for (column,) in connection.execute("SELECT name FROM pragma_table_info(?)", (table,)):
            assert re.search(rf"^\|.*`{column}`.*\|.*\|$", part, re.MULTILINE), f"{table}.{column}"


def test_every_block_runs_and_finds_what_the_page_shows(connection: sqlite3.Connection) -> None:
    has_dbstat = bool(connection.execute("SELECT sqlite_compileoption_used('ENABLE_DBSTAT_VTAB')").fetchone()[0])
    blocks = list(BLOCK.finditer(PAGE))
    assert len(blocks) > 15
    for found in blocks:
        if "dbstat" in found["sql"] and not has_dbstat:
            continue
        rows = run(connection, found["sql"])
        if found["found"] is not None:
            assert shown(rows) == found["found"]


def rules() -> dict[str, str]:
    """The query of each rule by the rule's name; a comment above several queries names them in order."""
    found = BLOCK.search(SECTIONS["What always holds"])
    assert found is not None
    queries: dict[str, str] = {}
    names: list[str] = []
    for statement in statements(found["sql"]):
        listed = re.search(r"^-- ([a-z_]+(?:, [a-z_]+)*):", statement, re.MULTILINE)
        if listed is not None:
            assert not names
            names = listed[1].split(", ")
        queries[names.pop(0)] = statement
    assert not names
    return queries


def broken(connection: sqlite3.Connection) -> list[str]:
    return [name for name, query in rules().items() if connection.execute(query).fetchall()]


def test_every_rule_is_explained() -> None:
    assert RULES.keys() | BLOCK_RULES.keys() | {"snapshot_lineage", "change_chunks", "file_pages"} == rules().keys()


def test_every_kind_of_operation_is_listed() -> None:
    kinds = {kind.__name__ for kind in UpdateType.__subclasses__()} - {"OtherUpdate"}
    table = SECTIONS["The tables"].partition("| `operation.kind` |")[2].partition("\n\n")[0]
    assert set(re.findall(r"`([A-Z]\w+)`", table)) == kinds


def test_invariants_hold(connection: sqlite3.Connection, folder: Path) -> None:
    """Also after arrays were replaced and deleted, and chunks overwritten and deleted."""
    repo = icelite.Repository.open(folder / "ocean.icelite")
    session = repo.writable_session("main")
    zarr.create_array(session.store, name="sst", shape=(3, 2), chunks=(1, 2), dtype="i4", overwrite=True)[:2] = 1
    del zarr.open_group(session.store)["ice"]
    session.commit("replace and delete")
    session = repo.writable_session("main")
    zarr.open_array(session.store, path="sst").resize((1, 2))
    session.commit("shrink")
    repo.close()
    assert broken(connection) == []


def a_moment() -> datetime:
    """A time after all that was done, and before all that will be."""
    time.sleep(0.001)
    moment = datetime.now(UTC)
    time.sleep(0.001)
    return moment


def write_first_day(repo: icelite.Repository, branch: str, value: float) -> icelite.Session:
    session = repo.writable_session(branch)
    zarr.open_array(session.store, path="sst", mode="r+")[0] = value
    return session


def test_invariants_hold_when_history_is_cut(connection: sqlite3.Connection, folder: Path) -> None:
    """Branches, amends, a move, a flush, a merge; then expiration, garbage collection, and history that goes on."""
    repo = icelite.Repository.open(folder / "ocean.icelite")
    repo.create_branch("trial", repo.lookup_branch("main"))
    write_first_day(repo, "trial", 1).commit("a trial")
    for value in (2, 2.5):
        write_first_day(repo, "trial", value).amend("a better trial")
    write_first_day(repo, "trial", 3).flush("a checkpoint")
    session = repo.writable_session("main")
    del zarr.open_group(session.store)["err"]
    session.commit("delete")
    repo.merge("trial", "main")
    session = repo.rearrange_session("main")
    session.move("/ice", "/frost")
    session.commit("move")
    moved = connection.execute("SELECT path, metadata IS NULL FROM node WHERE seq = (SELECT max(seq) FROM snapshot)")
    assert sorted(moved) == [("frost", 0), ("ice", 1)]
    repo.delete_branch("september")
    assert broken(connection) == []

    tags = {name: repo.lookup_tag(name) for name in repo.list_tags()}
    rows = connection.execute("SELECT count(*) FROM chunk_ref").fetchone()
    assert repo.expire_snapshots(a_moment())
    assert broken(connection) == []
    assert connection.execute("SELECT count(*) FROM chunk_ref").fetchone() == rows
    orphans = "SELECT count(*) FROM {} WHERE seq NOT IN (SELECT seq FROM snapshot)"
    assert connection.execute(orphans.format("node")).fetchone() > (0,)

    summary = repo.garbage_collect(a_moment())
    assert min(summary.chunk_refs_deleted, summary.nodes_deleted, summary.segments_deleted) > 0
    assert broken(connection) == []
    for table in ("node", "chunk_ref", "change"):  # what stays keeps its number, also without its snapshot
        assert connection.execute(orphans.format(table)).fetchone() > (0,)
    assert {name: repo.lookup_tag(name) for name in repo.list_tags()} == tags

    for branch in ("main", "trial"):
        write_first_day(repo, branch, 4).commit("go on")
        write_first_day(repo, branch, 5).amend("go on better")
    assert broken(connection) == []
    assert repo.verify() == []
    repo.close()


# Rule to the statement that breaks it; the numbers are those of the page's example.
BREAKS = {
    "branch_main": "DELETE FROM branch WHERE name = 'main'",
    "branch_snapshot": "UPDATE branch SET seq = 99 WHERE name = 'september'",
    "tag_snapshot": "UPDATE tag SET seq = 99",
    "snapshot_id": "UPDATE snapshot SET id = 'UUUUUUUUUUUUUUUUUUUU' WHERE seq = 2",
    "operation_snapshot": "DELETE FROM operation WHERE id = 2",
    "snapshot_segment": "UPDATE snapshot SET seg = 0 WHERE seq = 2",
    "snapshot_first": "UPDATE snapshot SET parent_seq = NULL WHERE seq = 2",
    "snapshot_parent": "UPDATE snapshot SET parent_seq = 0 WHERE seq = 2",
    "snapshot_lineage": "UPDATE snapshot SET parent_seq = 5 WHERE seq = 7",
    "segment_parent": "UPDATE segment SET parent_seg = 0, fork_seq = 1 WHERE seg = 6",
    "segment_order": "UPDATE segment SET fork_seq = seg WHERE seg = 6",
    "node_segment": "UPDATE node SET seg = 6 WHERE seq = 2",
    "chunk_ref_segment": "UPDATE chunk_ref SET seq = 77 WHERE seq = 6",
    "change_segment": "UPDATE change SET seg = 2 WHERE seq = 5",
    "usage_segment": "UPDATE usage SET seg = 6",
    "usage_location": "UPDATE usage SET location_id = 1 WHERE seq = 5",
    "node_id": "UPDATE node SET node_id = 1 WHERE seq = 2",
    "change_node": "DELETE FROM change WHERE seq = 7",
    "change_chunks": "UPDATE change SET chunks = NULL WHERE seq = 6",
    "chunk_ref_node": "UPDATE chunk_ref SET node_id = 99 WHERE seq = 6",
    "chunk_ref_chunk": "UPDATE chunk_ref SET chunk = '0/00/0/0' WHERE seq = 6",
    "chunk_ref_location": "UPDATE chunk_ref SET location_id = 999 WHERE seq = 6",
    "chunk_ref_payload": "DELETE FROM payload",
    "location_inline": "DELETE FROM location WHERE id = 1",
    "location_container": "UPDATE location SET container_id = 99 WHERE id > 1",
}


@pytest.mark.parametrize("rule", sorted(rules().keys() - {"file_pages"}))
def test_each_rule_finds_what_breaks_it(connection: sqlite3.Connection, rule: str) -> None:
    connection.execute("PRAGMA ignore_check_constraints = ON")
    assert connection.execute(BREAKS[rule]).rowcount > 0
    assert rule in broken(connection)


def test_header(folder: Path) -> None:
    header = (folder / "ocean.icelite").read_bytes()[:100]
    assert header[:16] == b"SQLite format 3\0"
    assert header[16:20] == b"\x10\0\1\1"
    assert header[60:64] == b"\0\0\0\1"
    assert header[68:72] == b"ICLT"


@pytest.mark.parametrize(("what", "name"), [("branch", "main"), ("branch", "september"), ("tag", "v2024.08")])
def test_the_views_show_what_the_store_has(folder: Path, what: str, name: str) -> None:
    repo = icelite.Repository.open(folder / "ocean.icelite")
    root = zarr.open_group(repo.readonly_session(**{what: name}).store, mode="r")
    arrays = {path: array.nchunks_initialized for path, array in root.arrays()}
    repo.close()

    connection = sqlite3.connect(folder / "ocean.icelite")
    sql = next(BLOCK.finditer(SECTIONS["Questions in SQL"]))["sql"]
    run(connection, sql.replace("branch b", f"{what} b").replace("'main'", f"'{name}'"))
    found = {path: chunks for path, _, chunks, _ in block(connection, "What does the chosen snapshot hold?") if path}
    assert found == arrays


def test_answers_are_right(connection: sqlite3.Connection, folder: Path) -> None:
    blocks = list(BLOCK.finditer(SECTIONS["Questions in SQL"]))
    run(connection, blocks[0]["sql"])
    assert [message for _, _, message in block(connection, "What is the history")] == [
        "1 September 2024",
        "August 2024",
        "Repository initialized",
    ]
    block(connection, "Look at another snapshot")
    ((url, offset, length),) = block(connection, "Where is a chunk")
    assert url == "oisst/oisst-avhrr-v02r01.20240801.nc"
    data = (folder / url).read_bytes()[offset : offset + length]
    repo = icelite.Repository.open(folder / "ocean.icelite")
    buffer = repo.readonly_session(tag="v2024.08").store.get_sync("sst/c/0/0/0/0")
    assert buffer is not None
    assert buffer.to_bytes() == data
    used = block(connection, "Which files")
    sources = [
        (row.path, row.references, row.bytes, row.end, row.size, row.etag, row.modified_at)
        for row in repo.sources(tag="v2024.08")
    ]
    assert used == sources
    assert [row[1] for row in used] == [4] * 31
    columns = repo.readonly_session(tag="v2024.08").chunk_refs("sst").to_dict()
    chunks = zip(*(columns[f"dim_{axis}"] for axis in range(4)), strict=True)
    names = ["/".join(map(str, chunk)) for chunk in chunks]
    urls = [url.removeprefix(folder.as_uri() + "/") for url in columns["url"]]
    rows = zip(names, columns["kind"], urls, columns["offset"].tolist(), columns["length"].tolist(), strict=True)
    assert block(connection, "Where are all chunks of an array") == sorted(rows)
    assert block(connection, "Write an inline chunk") == [((folder / "time.bin").stat().st_size,)]


def test_files_moved_within_the_folder(connection: sqlite3.Connection, folder: Path) -> None:
    expected = xr.open_dataset(folder / "ocean.icelite", branch="september").load()
    block(connection, "The files moved within the folder")
    (folder / "archive").mkdir()
    (folder / "oisst").rename(folder / "archive" / "oisst")
    xr.testing.assert_identical(xr.open_dataset(folder / "ocean.icelite", branch="september").load(), expected)


def test_absolute_files_moved(tmp_path: Path) -> None:
    for name in ("old", "new", "catalog"):
        (tmp_path / name).mkdir()
    source = tmp_path / "old" / "day.bin"
    source.write_bytes(bytes(range(10)))
    catalog = tmp_path / "catalog" / "one.icelite"
    store = icelite.IceliteStore.create(catalog)
    zarr.create_array(store, shape=(10,), chunks=(10,), dtype="u1", compressors=None)
    store.set_virtual_ref("c/0", source.as_uri(), offset=0, length=10, checksum=None)
    store.commit()
    source.rename(tmp_path / "new" / "day.bin")

    found = BLOCK.search(PAGE, PAGE.index("**Files with absolute URLs moved**"))
    assert found is not None
    sql = found["sql"].replace("file:///old/data/", (tmp_path / "old").as_uri() + "/")
    connection = sqlite3.connect(catalog)
    run(connection, sql.replace("file:///new/data/", (tmp_path / "new").as_uri() + "/"))
    connection.close()

    allow = {(tmp_path / "new").as_uri(): icelite.LocalFileSystemAccess}
    repo = icelite.Repository.open(catalog, authorize_virtual_chunk_access=allow)
    assert list(repo.required_access()) == [(tmp_path / "new").as_uri() + "/"]
    array = zarr.open_array(repo.readonly_session("main").store, mode="r")
    assert bytes(array[:]) == bytes(range(10))


def test_a_table_of_ones_own_is_refused(connection: sqlite3.Connection, folder: Path) -> None:
    connection.execute("ANALYZE")
    connection.commit()
    icelite.Repository.open(folder / "ocean.icelite").close()
    connection.execute("CREATE TABLE note (text)")
    connection.commit()
    with pytest.raises(icelite.FormatError) as caught:
        icelite.Repository.open(folder / "ocean.icelite")
    assert caught.value.kind == ErrorKind.UNEXPECTED_SCHEMA
