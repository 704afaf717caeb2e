"""docs/format.md is true: it names every table and column, and its SQL runs on a catalog and finds what it says."""

import re
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
import quickstart
import xarray as xr
import zarr

import icelite
from icelite.catalog.checks import schema_text
from icelite.errors import ErrorKind

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
    found = BLOCK.search(SECTIONS["What always holds"])
    assert found is not None
    for statement in statements(found["sql"]):
        assert connection.execute(statement).fetchall() == [], statement


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
    assert [chunks for _, chunks, _ in used] == [4] * 31
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
