"""Each check finds the one thing that breaks its rule; and none finds anything in a sound catalog."""

from __future__ import annotations

import faulthandler
import re
import shutil
import zlib
from pathlib import Path
from typing import Any

import apsw
import pytest

from icelite.catalog import invariants
from icelite.catalog.database import Catalog
from icelite.ops.verify import CHECKS, REF_CHECKS, verify
from icelite.storage import as_storage
from icelite.types import INITIAL_SNAPSHOT_ID, Problem

PACKED = zlib.compress(b"0\n1\n2").hex()
NEW_REF = "INSERT INTO chunk_ref SELECT node_id, '{}', seq, seg, location_id, offset, length FROM chunk_ref LIMIT 1"

TABLES = ["setting", "segment", "operation", "snapshot", "branch", "tag", "container", "location", "node", "change"]
TABLES += ["payload", "chunk_ref", "usage"]

# Check to the statement that breaks its rule, and what the finding must say.
BREAKS = {
    "setting_value": ("UPDATE setting SET value = '{' WHERE name = 'config'", "setting config"),
    "container_options": ("UPDATE container SET options = '[]'", "not an object"),
    "operation_detail": ("UPDATE operation SET detail = 'x' WHERE id = 2", "operation 2"),
    "snapshot_metadata": ("UPDATE snapshot SET metadata = '7' WHERE seq = 2", "not an object"),
    "segment_parent": ("UPDATE segment SET parent_seg = 0, fork_seq = 1 WHERE seg = 1", "segment 0"),
    "segment_order": ("UPDATE segment SET fork_seq = seg WHERE parent_seg IS NOT NULL", "not older"),
    "operation_snapshot": ("DELETE FROM operation WHERE id = 2", "no operation"),
    "snapshot_id": ("UPDATE snapshot SET id = 'UUUUUUUUUUUUUUUUUUUU' WHERE seq = 2", "Crockford"),
    "snapshot_segment": ("UPDATE snapshot SET seg = 0 WHERE seq = 2", "segment 0"),
    "snapshot_parent": ("UPDATE snapshot SET parent_seq = 0 WHERE seq = 2", "parent 0"),
    "snapshot_first": ("UPDATE snapshot SET parent_seq = NULL WHERE seq = 2", "2 snapshots"),
    "snapshot_lineage": (
        "UPDATE snapshot SET parent_seq = 3 WHERE seq = (SELECT seq FROM branch WHERE name = 'fork')",
        "not in its lineage",
    ),
    "branch_main": ("DELETE FROM branch WHERE name = 'main'", "does not exist"),
    "branch_snapshot": ("UPDATE branch SET seq = 99 WHERE name = 'fork'", "branch fork"),
    "tag_snapshot": ("UPDATE tag SET seq = 99 WHERE name = 'v1'", "tag v1"),
    "location_inline": ("UPDATE location SET kind = 2 WHERE id = 1", "location 1"),
    "location_container": ("UPDATE location SET container_id = 99 WHERE id > 1", "container 99"),
    "node_segment": ("UPDATE node SET seg = 2 WHERE path = 'x'", "/x"),
    "node_id": ("UPDATE node SET node_id = 1 WHERE seq = 2", "/y"),
    "node_metadata": ("UPDATE node SET metadata = '{}' WHERE path = 'x'", "node_type"),
    "node_path": ("UPDATE node SET path = 'a//b' WHERE path = 'y'", "'a//b'"),
    "change_segment": ("UPDATE change SET seg = 2", "segment 2"),
    "change_node": ("DELETE FROM change WHERE node_id = 3", "/y"),
    "change_chunks": (f"UPDATE change SET chunks = x'{PACKED}' WHERE seq = 3", "lists"),
    "chunk_ref_segment": ("UPDATE chunk_ref SET seq = 77 WHERE chunk = '0'", "77"),
    "chunk_ref_node": ("UPDATE chunk_ref SET node_id = 99 WHERE chunk = '0'", "node 99"),
    "chunk_ref_chunk": (NEW_REF.format("01"), "chunk 01"),
    "chunk_ref_location": ("UPDATE chunk_ref SET location_id = 99 WHERE location_id = 2", "location 99"),
    "chunk_ref_payload": ("DELETE FROM payload WHERE id = 1", "payload 1"),
    "usage_segment": ("UPDATE usage SET seg = 99", "segment 99"),
    "usage_location": ("UPDATE usage SET location_id = 1", "no virtual file"),
    "change_refs": ("UPDATE chunk_ref SET length = length + 1 WHERE location_id = 2", "not as they were written"),
    "setting_crc": ("UPDATE setting SET value = '[]' WHERE name = 'config'", "setting 'config'"),
    "segment_crc": ("UPDATE segment SET fork_seq = fork_seq + 1 WHERE parent_seg IS NOT NULL", "segment"),
    "operation_crc": ("UPDATE operation SET kind = 'NewCommif' WHERE id = 2", "operation 2"),
    "snapshot_crc": ("UPDATE snapshot SET message = 'works' WHERE seq = 2", "snapshot 2"),
    "branch_crc": ("UPDATE branch SET seq = 2 WHERE name = 'fork'", "branch 'fork'"),
    "tag_crc": ("UPDATE tag SET seq = 2 WHERE name = 'v1'", "tag 'v1'"),
    "container_crc": ("UPDATE container SET name = 'other'", "container 1"),
    "location_crc": ("UPDATE location SET size = 11 WHERE id = 2", "location 2"),
    "node_crc": ("UPDATE node SET metadata = replace(metadata, '9', '8') WHERE path = 'x'", "node 'x'"),
    "change_crc": ("UPDATE change SET node_change = 2 WHERE seq = 3", "change 3"),
    "usage_crc": ("UPDATE usage SET refs = 2", "usage 2"),
    "payload_crc": ("UPDATE payload SET data = CAST(x'00' || substr(data, 2) AS BLOB) WHERE id = 2", "payload 2"),
}


@pytest.fixture(scope="module")
def original(new_workbench: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalog with something in every table."""
    folder = tmp_path_factory.mktemp("verify")
    (folder / "elsewhere").mkdir()
    (folder / "here").mkdir()
    (folder / "elsewhere" / "a.bin").write_bytes(bytes(10))
    bench = new_workbench(folder / "here" / "x.icelite")
    first = bench.commit({"zarr.json": bench.GROUP, "x/zarr.json": bench.array(9, 2), "y/zarr.json": bench.array(9)})
    second = bench.commit({"x/c/3/0": b"12345", "y/c/0": b"1", "y/c/7": b"77"})
    bench.repository.create_branch("fork", first)
    bench.repository.create_tag("v1", second)
    session = bench.repository.writable_session("fork")
    session.store.set_virtual_ref("y/c/1", (folder / "elsewhere" / "a.bin").as_uri(), offset=2, length=3)
    session.commit("refer")
    bench.commit({"y/c/2": b"3"}, branch="fork")
    bench.repository.close()
    return bench.storage


@pytest.fixture
def copy(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(original, tmp_path / "x.icelite"))


def problems_after(path: Path, *statements: str) -> list[Problem]:
    connection = apsw.Connection(str(path))
    connection.pragma("ignore_check_constraints", True)
    for statement in statements:
        connection.execute(statement)
    connection.close()
    catalog = Catalog(as_storage(path), check="never")
    found = verify(catalog)
    catalog.close()
    return found


def test_a_sound_catalog(copy: Path) -> None:
    assert problems_after(copy) == []
    connection = apsw.Connection(str(copy))
    for table in TABLES:
        assert connection.execute(f"SELECT count(*) FROM {table}").get > 0, table


def test_every_check_has_its_test() -> None:
    assert BREAKS.keys() | {"file_pages"} == CHECKS.keys() | set(REF_CHECKS)


@pytest.mark.parametrize("check", BREAKS)
def test_each_check_finds_what_breaks_its_rule(copy: Path, check: str) -> None:
    statement, says = BREAKS[check]
    found = [problem for problem in problems_after(copy, statement) if problem.check == check]
    assert found
    assert any(says in f"{problem.subject} {problem.detail}" for problem in found), found


def test_lists_of_changes_that_cannot_be_read(copy: Path) -> None:
    found = problems_after(copy, "UPDATE change SET chunks = x'00', crc32c = NULL WHERE seq = 3 AND chunks IS NOT NULL")
    assert {problem.check for problem in found} == {"change_chunks"}
    assert len(found) == 2  # one for each array


def test_metadata_of_the_older_format(copy: Path) -> None:
    found = problems_after(copy, "UPDATE node SET zarr_format = 2, crc32c = NULL WHERE path = 'x'")
    assert [(problem.check, problem.subject) for problem in found] == [("node_metadata", "/x")]


def overwrite(path: Path, name: str, place: int, data: bytes) -> None:
    """Write bytes into the root page of a table or index; ``place`` as in a slice."""
    connection = apsw.Connection(str(path))
    page = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", (name,)).get
    connection.close()
    with path.open("r+b") as file:
        file.seek(4096 * (page - 1) + place % 4096)
        file.write(data)


def test_file_pages_finds_an_index_that_is_wrong(copy: Path) -> None:
    overwrite(copy, "node_by_id", -1, b"\x07")
    assert {problem.check for problem in problems_after(copy)} >= {"file_pages"}


def test_a_table_that_cannot_be_read_does_not_stop_the_other_checks(copy: Path) -> None:
    overwrite(copy, "chunk_ref", 0, b"\xff")
    found = {problem.check for problem in problems_after(copy, "DELETE FROM branch WHERE name = 'main'")}
    assert found >= {"file_pages", "chunk_ref_location", "change_chunks", "branch_main"}


def test_several_faults_of_one_kind_are_all_found(copy: Path) -> None:
    found = problems_after(copy, "UPDATE payload SET crc32c = crc32c + 1")
    subjects = [problem.subject for problem in found if problem.check == "payload_crc"]
    assert subjects == ["payload 1", "payload 2", "payload 3", "payload 4"]


def test_long_payloads_are_read_in_pieces(workbench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    workbench.commit({"x/zarr.json": workbench.array(3), "x/c/0": b"0123456789", "x/c/1": b"", "x/c/2": b"1234"})
    for name, value in (("PIECE_BYTES", 4), ("ROWS_AT_ONCE", 1)):
        monkeypatch.setattr(invariants, name, value)
    assert workbench.repository.verify() == []


def test_what_was_looked_at(workbench: Any) -> None:
    ids = [workbench.commit({"x/zarr.json": workbench.array(3)})]
    ids.append(workbench.commit({"x/c/0": b"0"}))
    workbench.repository.create_tag("v1", ids[0])
    found = workbench.repository.verify()
    assert found == []
    assert (found.branches, found.tags) == ({"main": ids[1]}, {"v1": ids[0]})
    assert found.snapshots == [INITIAL_SNAPSHOT_ID, *ids]
    assert found.objects is None


def test_a_row_changed_by_hand_may_say_so(copy: Path) -> None:
    assert (
        problems_after(copy, "UPDATE snapshot SET message = 'better' WHERE seq = 2; DELETE FROM seal WHERE id = 2")
        == []
    )


SWAP = "UPDATE chunk_ref SET offset = (SELECT sum(offset) FROM chunk_ref r WHERE r.node_id = 3 AND r.seq = 3) - offset"


def test_references_that_changed_places_are_found(copy: Path) -> None:
    """Each row by itself could be right."""
    found = problems_after(copy, SWAP + " WHERE node_id = 3 AND seq = 3")
    assert {problem.check for problem in found} == {"chunk_ref_payload", "change_refs"}


def test_references_are_compared_in_blocks(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(invariants, "REFS_AT_ONCE", 1)
    assert problems_after(copy) == []
    found = problems_after(copy, "UPDATE chunk_ref SET location_id = 99 WHERE chunk = '7'")
    assert [problem.check for problem in found] == ["chunk_ref_location", "change_refs"]


KEYS = {
    "node": "PRIMARY KEY (path",
    "chunk_ref": "PRIMARY KEY (node_id",
    "change": "PRIMARY KEY (seq",
    "branch": "name   TEXT NOT NULL PRIMARY KEY",
}


def put_in_disorder(path: Path, table: str) -> None:
    """Write the rows of a table from the greatest key to the least, which its schema does not say."""
    connection = apsw.Connection(str(path))
    connection.pragma("writable_schema", 1)
    text = connection.execute("SELECT sql FROM sqlite_schema WHERE name = ?", (table,)).get
    rows = connection.execute(f"SELECT * FROM {table}").fetchall()
    replace = "UPDATE sqlite_schema SET sql = ? WHERE name = ?"
    connection.execute(replace, (text.replace(KEYS[table], KEYS[table] + " DESC"), table))
    connection.pragma("writable_schema", "RESET")
    connection.execute(f"DELETE FROM {table}")
    connection.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * len(rows[0]))})", rows)
    connection.pragma("writable_schema", 1)
    connection.execute(replace, (text, table))
    connection.close()


@pytest.mark.parametrize("at_once", [1, 2, 1000])
@pytest.mark.parametrize("table", KEYS)
def test_rows_in_disorder_are_found_and_end_the_check(
    copy: Path, monkeypatch: pytest.MonkeyPatch, table: str, at_once: int
) -> None:
    """Reading on behind the last row would come by the same rows for ever."""
    put_in_disorder(copy, table)
    for name in ("ROWS_AT_ONCE", "REFS_AT_ONCE"):
        monkeypatch.setattr(invariants, name, at_once)
    faulthandler.dump_traceback_later(120, exit=True)
    try:
        found = problems_after(copy)
    finally:
        faulthandler.cancel_dump_traceback_later()
    assert "file_pages" in {problem.check for problem in found}


def test_values_of_another_type_are_findings(copy: Path) -> None:
    """Of tables that SQLite took for ones without types."""
    connection = apsw.Connection(str(copy))
    rows = connection.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'table'").fetchall()
    untyped = [(re.sub("NOT NULL|STRICT,?| TEXT| BLOB", "", sql or ""), name) for name, sql in rows]
    connection.pragma("writable_schema", 1)
    connection.executemany("UPDATE sqlite_schema SET sql = ? WHERE name = ?", untyped)
    connection.close()
    connection = apsw.Connection(str(copy))
    connection.execute(
        "UPDATE payload SET data = NULL; UPDATE chunk_ref SET seg = NULL; UPDATE node SET metadata = 5;"
        "UPDATE change SET seq = 'x' || seq || node_id"
    )
    connection.pragma("writable_schema", 1)
    connection.executemany("UPDATE sqlite_schema SET sql = ? WHERE name = ?", [(sql, name) for name, sql in rows])
    connection.close()
    assert {problem.check for problem in problems_after(copy)} >= {"file_pages", "payload_crc", "change_refs"}
