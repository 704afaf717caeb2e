"""The SQL itself: every statement compiles, the hot ones use a key, and none is written anywhere else."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

import apsw
import apsw.ext
import pytest

import icelite.catalog
from icelite.catalog.checks import harden, hold_rules, schema_text
from icelite.catalog.creation import CREATE_RANGES
from icelite.catalog.database import Catalog
from icelite.errors import FormatError
from icelite.repository import Repository
from icelite.storage import in_memory_storage

PACKAGE = Path(icelite.catalog.__file__).parent.parent
STATEMENT = re.compile(r"\s*(SELECT|INSERT|UPDATE|DELETE|WITH|PRAGMA|BEGIN|COMMIT|ROLLBACK|ATTACH)\b")
FRAGMENTS = {"LINEAGE"}  # what other statements begin with
BEFORE_THE_DOORS_CLOSE = {
    "SELECT_SCHEMA",
    "CHECK_INTEGRITY",
    "INTEGRITY_CHECK",
    "ATTACH_CHANGE_SET",
    "SELECT_TABLES",  # of a schema in memory
    "SELECT_COLUMNS",
}

# Read the whole of a table on purpose: every snapshot's nodes for a listing of everything, all snapshots or names
# where all were asked for, or (staged.chunk_ref) what this very session wrote.
SCANS = {
    "connections.IS_CHANGE_SET_USED": "staged.chunk_ref",  # stops at the first row
    "remote.SELECT_NEWEST_OPERATION": "operation",  # stops at the first row
    "nodes.SELECT_NODES": "p",  # paths that were found in the index
    "chunks.SELECT_SOURCES": "n",
    "locations.SELECT_NUMBERED_LOCATIONS": "l",
    "locations.SELECT_LOCATIONS": "l",
    "locations.SELECT_REMOTE_CONTAINER": "container",
    "settings.SELECT_CONTAINERS": "container",
    "settings.SELECT_SOME_OF_CONTAINER": "location",  # only where a container is removed
    "refs.SELECT_BRANCHES": "branch",
    "refs.SELECT_TAGS": "tag",
    "refs.SELECT_DELETED_TAGS": "tag",
    "snapshots.SELECT_INFOS": "s",
    "chunks.SELECT_CHUNKS": "k VIRTUAL TABLE INDEX 1:",  # the names that were asked for
    "staging.SELECT_SOME_REFS": "k VIRTUAL TABLE INDEX 1:",
    "chunks.SELECT_PAYLOADS": "json_each VIRTUAL TABLE INDEX 1:",
    "staging.SELECT_CHANGED_NODES": "staged.chunk_ref",
    "changes.SELECT_WRITTEN": "k VIRTUAL TABLE INDEX 1:",
    "changes.COUNT_ALL": "c",  # what the inner query found
    "changes.COUNT_REPLACED": "c",
    "changes.SELECT_OF_SNAPSHOT": "usage",  # only an amend asks
    "changes.SELECT_HISTORY": "k VIRTUAL TABLE INDEX 1:",
    "changes.SELECT_USAGE": "k VIRTUAL TABLE INDEX 1:",
    "staging.SELECT_LOST": "r",
}
# Expiration, garbage collection, verification and statistics look at everything.
MAINTENANCE = {"removal", "reachability", "invariants", "chunks.SELECT_SUMS"}
MAINTENANCE |= {
    "snapshots.SELECT_ANCESTORS",
    "locations.SELECT_EXTENTS",
    "locations.SELECT_PACKS",
    "locations.SELECT_NATIVE_REFS",
}
MAINTENANCE |= {
    "changes.SELECT_ALL_SUMS",
    "changes.SELECT_ARRAY_AFTER",
    "changes.SELECT_USAGE_POINTS",
    "changes.DELETE_USAGE",
}
# These run on a copy of a catalog that nobody else has opened, and use a table of their own.
ON_A_COPY = {"creation"}
# Every one of these runs for each chunk, each node, each location or each commit.
HOT = {
    "chunks.SELECT_CHUNK": "chunk_ref USING PRIMARY KEY (node_id=? AND chunk=? AND seq<?)",
    "chunks.SELECT_WHOLE_CHUNK": "r USING PRIMARY KEY (node_id=? AND chunk=? AND seq<?)",
    "chunks.SELECT_CHUNK_VERSIONS": "chunk_ref USING PRIMARY KEY (node_id=? AND chunk=? AND seq<?)",
    "chunks.SCAN_CHUNKS": "r USING PRIMARY KEY (node_id=? AND chunk>?)",
    "chunks.SELECT_STORED_BYTES": "r USING PRIMARY KEY (node_id=? AND chunk>?)",
    "changes.SELECT_CHANGES": "change USING PRIMARY KEY (seq=?)",
    "changes.SELECT_CHANGES_SINCE": "c USING PRIMARY KEY (seq>? AND seq<?)",
    "nodes.SELECT_NODE": "node USING PRIMARY KEY (path=? AND seq<?)",
    "nodes.SELECT_NODE_POINTS": "node USING PRIMARY KEY (path=? AND seq<?)",
    "nodes.SELECT_NODES": "v USING PRIMARY KEY (path=? AND seq<?)",
    "nodes.SELECT_MAX_ID": "node USING COVERING INDEX node_by_id",
    "locations.SELECT_LOCATION": "l USING INTEGER PRIMARY KEY (rowid=?)",
    "locations.SELECT_LOCATION_ID": "location USING INDEX location_by_path (path=?)",
    "locations.SELECT_REMOTE_LOCATION": "location USING COVERING INDEX location_by_path (path>? AND path<?)",
    "chunks.SELECT_PAYLOAD": "payload USING INTEGER PRIMARY KEY (rowid=?)",
    "snapshots.SELECT_SEQ": "snapshot USING COVERING INDEX sqlite_autoindex_snapshot_1 (id=?)",
    "snapshots.SELECT_INFO": "s USING INTEGER PRIMARY KEY (rowid=?)",
    "snapshots.SELECT_LINEAGE": "s USING INTEGER PRIMARY KEY (rowid=?) LEFT-JOIN",
    "snapshots.SELECT_CONTINUATION": "snapshot USING INTEGER PRIMARY KEY (rowid>?)",
    "staging.SELECT_REF": "staged.chunk_ref USING PRIMARY KEY (node_id=? AND chunk=?)",
    "staging.SELECT_SOME_CHUNKS": "staged.chunk_ref USING PRIMARY KEY (node_id=? AND chunk>?)",
    "staging.COPY_REFS": "r USING PRIMARY KEY (node_id=?)",
}


def statements() -> dict[str, str]:
    """``module.NAME`` to the text of every statement of the package."""
    found = {}
    for info in pkgutil.iter_modules(icelite.catalog.__path__):
        module = importlib.import_module(f"icelite.catalog.{info.name}")
        for name, value in vars(module).items():
            if re.fullmatch("[A-Z][A-Z_]*", name) and isinstance(value, str) and STATEMENT.match(value):
                found[f"{info.name}.{name}"] = value
    return {name: sql for name, sql in found.items() if name.partition(".")[2] not in FRAGMENTS}


STATEMENTS = statements()
QUERIES = {
    name: sql
    for name, sql in STATEMENTS.items()
    if name.partition(".")[2] not in BEFORE_THE_DOORS_CLOSE and name.partition(".")[0] not in ON_A_COPY
}


@pytest.fixture(scope="module")
def connection() -> Iterator[apsw.Connection]:
    storage = in_memory_storage()
    Repository.create(storage)
    catalog = Catalog(storage, change_set=True)
    yield catalog._connection
    catalog.close()


def plan(connection: apsw.Connection, sql: str) -> list[str]:
    """The lines of EXPLAIN QUERY PLAN; preparing the statement is part of it."""

    def lines(step: apsw.ext.QueryPlan) -> Iterator[str]:
        yield step.detail
        for inner in step.sub or ():
            yield from lines(inner)

    found = apsw.ext.query_info(connection, sql, explain_query_plan=True)
    assert found.query_remaining is None, "one statement at a time"
    assert found.query_plan is not None
    return list(lines(found.query_plan))


def test_there_are_statements_to_check() -> None:
    assert set(HOT) | set(SCANS) < set(STATEMENTS)
    assert len(STATEMENTS) > 50


@pytest.mark.parametrize("name", QUERIES)
def test_every_statement_compiles_behind_the_closed_doors(connection: apsw.Connection, name: str) -> None:
    plan(connection, QUERIES[name])


@pytest.mark.parametrize("name", [name for name in STATEMENTS if name.partition(".")[0] in ON_A_COPY])
def test_statements_for_a_copy_compile_and_find_ranges_by_key(name: str) -> None:
    connection = apsw.Connection(":memory:")
    connection.execute(schema_text())
    connection.execute(CREATE_RANGES)
    steps = plan(connection, STATEMENTS[name])
    if name in ("creation.SELECT_RANGES", "creation.UPDATE_RANGE", "creation.UPDATE_REFS"):
        assert any(re.match(r"SEARCH (g|temp\.range|range) USING PRIMARY KEY", step) for step in steps), steps


@pytest.mark.parametrize("name", HOT)
def test_hot_statements_find_their_rows_by_key(connection: apsw.Connection, name: str) -> None:
    steps = plan(connection, STATEMENTS[name])
    assert f"SEARCH {HOT[name]}" in steps
    assert not any("TEMP B-TREE" in step for step in steps)


@pytest.mark.parametrize("name", [name for name in QUERIES if not MAINTENANCE & {name, name.partition(".")[0]}])
def test_no_statement_reads_a_whole_table_that_grows_with_history(connection: apsw.Connection, name: str) -> None:
    """What remains: rows of the lineage, of a VALUES clause, of an inner query, and the scans listed above."""
    harmless = r"CONSTANT ROW|\d+-ROW VALUES CLAUSE|\(subquery-\d+\)|lineage" + (
        "|l" if "lineage" in QUERIES[name] else ""
    )
    for step in plan(connection, QUERIES[name]):
        scanned = re.fullmatch(r"SCAN (.*?)( USING .*)?", step)
        if scanned and not re.fullmatch(harmless, scanned[1]):
            assert SCANS.get(name) == scanned[1], step


# -- catalogs read by ranges -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bare_and_guarded() -> Iterator[tuple[apsw.Connection, apsw.Connection]]:
    bare, guarded = apsw.Connection(":memory:"), apsw.Connection(":memory:")
    for connection in (bare, guarded):
        connection.execute(schema_text())
        harden(connection)
    hold_rules(guarded, "x")
    yield bare, guarded
    bare.close()
    guarded.close()


READING = {
    name: sql
    for name, sql in QUERIES.items()
    if "staged." not in sql
    and "temp." not in sql
    and re.match(r"\s*(SELECT|WITH)\b", sql)
    and not name.startswith("removal.")  # only before a write, on a copy
}


@pytest.mark.parametrize("name", READING)
def test_the_rules_of_the_schema_do_not_change_how_rows_are_found(
    bare_and_guarded: tuple[apsw.Connection, apsw.Connection], name: str
) -> None:
    """But that a covering index does not suffice: the rules look at the whole row."""

    def steps(connection: apsw.Connection) -> list[str]:
        found = (
            re.sub(r" COVERING(?! INDEX \(\w+=\?\))|\(subquery-\d+\)", "", step)
            for step in plan(connection, READING[name])
        )
        return [re.sub(r"^(SCAN|SEARCH) \S+(?= USING|$)", r"\1", step) for step in found]

    bare, guarded = bare_and_guarded
    assert steps(guarded) == steps(bare)


@pytest.mark.parametrize(
    ("table", "values", "fits"),
    [
        ("branch", ("main", 1), True),
        ("branch", ("main", "1x"), False),
        ("branch", (b"main", 1), False),
        ("branch", ("main", None), False),
        ("tag", ("v1", None), True),
        ("tag", ("v1", 1.5), False),
        ("segment", (3, 1, 2), True),
        ("segment", (3, None, None), True),
        ("segment", (3, 3, 3), False),
        ("segment", (3, 1, None), False),
    ],
)
def test_a_row_that_breaks_a_rule_is_an_error(table: str, values: tuple[object, ...], fits: bool) -> None:
    connection = apsw.Connection(":memory:")
    lax = re.sub(r"--[^\n]*|\b(INTEGER(?! PRIMARY)|TEXT)\b|\bNOT NULL\b|\bSTRICT\s*,?", "", schema_text())
    connection.execute(lax)
    connection.pragma("ignore_check_constraints", True)
    columns = {"segment": "seg, parent_seg, fork_seq"}.get(table, "name, seq")
    connection.execute(f"INSERT INTO main.{table} ({columns}) VALUES ({', '.join('?' * len(values))})", values)
    hold_rules(connection, "https://host/x.icelite")
    if fits:
        assert connection.execute(f"SELECT {columns} FROM {table}").fetchall() == [values]
        return
    for question in (f"SELECT * FROM {table}", f"SELECT count(*) FROM {table}"):
        with pytest.raises(FormatError, match=f"'https://host/x.icelite' .* its table {table} breaks") as caught:
            connection.execute(question).fetchall()
        assert caught.value.kind == "corrupt"


# -- where SQL may stand ---------------------------------------------------------------------------------------

SQL = re.compile(
    r"\bSELECT\b.+\bFROM\b|\bINSERT\b.+\bINTO\b|\bUPDATE\b.+\bSET\b|\bDELETE FROM\b|\bCREATE (TABLE|INDEX|VIEW)\b"
    r"|\bPRAGMA \w|^(BEGIN|COMMIT|ROLLBACK|ATTACH|VACUUM)\b",
    re.DOTALL,
)
EXECUTE = {"execute", "executemany", "rows", "row", "run", "run_many", "insert"}
SOURCES = sorted(PACKAGE.rglob("*.py"))


def literals(tree: ast.AST) -> Iterator[str]:
    """Every string of a module but its docstrings."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value


def test_the_check_below_knows_sql_when_it_sees_it() -> None:
    assert all(SQL.search(sql) for sql in STATEMENTS.values())


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: str(source.relative_to(PACKAGE)))
def test_sql_stands_in_the_catalog_package_only(source: Path) -> None:
    if source.is_relative_to(PACKAGE / "catalog"):
        return
    tree = ast.parse(source.read_text())
    assert [text for text in literals(tree) if SQL.search(text)] == []
    if source.parent.name != "vfs":  # SQLite's file system, below SQL
        assert not re.search(r"^\s*(import|from) (apsw|sqlite3)\b", source.read_text(), re.MULTILINE)


@pytest.mark.parametrize("source", sorted((PACKAGE / "catalog").glob("*.py")), ids=lambda source: source.name)
def test_statements_are_constants_and_never_put_together_on_the_way(source: Path) -> None:
    """So every one of them is checked above, and no value can become part of one."""
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in EXECUTE:
            assert not isinstance(node.args[0], ast.Constant | ast.JoinedStr | ast.BinOp), ast.unparse(node)


# -- the schema as a document ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["schema.sql", "staging.sql"])
def test_every_table_and_every_column_has_a_comment(name: str) -> None:
    text = (PACKAGE / "catalog" / name).read_text()
    tables = re.findall(r"^CREATE TABLE (?:staged\.)?(\w+) \(\n(.*?)^\)", text, re.DOTALL | re.MULTILINE)
    assert tables
    for table, body in tables:
        assert re.search(rf"^-- {table}: \S", text, re.MULTILINE), table
        columns = [line for line in body.splitlines() if re.match(r"  [a-z]", line)]
        assert columns
        for column in columns:
            assert re.search(r" -- \S", column), f"{table}: {column}"


def test_the_schema_has_no_quotes() -> None:
    """The comparison on opening relies on it: a quote could hide text from its reading."""
    text = (PACKAGE / "catalog" / "schema.sql").read_text()
    statements = [line for line in re.sub("--.*", "", text).splitlines() if line.strip()]
    assert not re.search(r"""['"`\[]""", "\n".join(statements))


def test_tables_that_are_read_first_come_first() -> None:
    """VACUUM writes tables in the order of the schema; whoever fetches the head of a file gets the small ones."""
    text = (PACKAGE / "catalog" / "schema.sql").read_text()
    tables = re.findall(r"^CREATE TABLE (\w+)", text, re.MULTILINE)
    assert tables[-2:] == ["payload", "chunk_ref"]


def test_all_of_it_is_strict() -> None:
    for name in ("schema.sql", "staging.sql"):
        text = (PACKAGE / "catalog" / name).read_text()
        assert len(re.findall(r"^CREATE TABLE", text, re.MULTILINE)) == len(
            re.findall(r"^\) STRICT", text, re.MULTILINE)
        )
