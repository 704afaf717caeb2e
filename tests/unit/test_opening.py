"""Opening whatever lies at a path: each kind of wrong file has its own error, nothing is made and nothing changed.

The last tests write odd values into every column: reading gives what is in the file or an `IceliteError`.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import secrets
import shutil
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import apsw
import numpy as np
import pytest
import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from icelite.catalog.database import Catalog
from icelite.errors import AlreadyExistsError, FormatError, IceliteError, RepositoryNotFoundError
from icelite.repository import Repository
from icelite.storage import as_storage

Damage = Callable[[Path], object]

V2_ARRAY = {
    "old/.zarray": b'{"zarr_format": 2, "shape": [3], "chunks": [1], "dtype": "<f8", "fill_value": 0, "order": "C",'
    b' "compressor": null, "filters": null}',
    "old/.zattrs": b'{"units": "m"}',
    "old/1": bytes(8),
}


def make(path: Path) -> None:
    """A repository with something in every table."""
    source = path.parent / "source.bin"
    source.write_bytes(bytes(range(256)))
    elsewhere = "s3://bucket/data/x.nc"
    repository = Repository.create(path)
    session = repository.writable_session("main")
    root = zarr.create_group(session.store, attributes={"title": "ocean"})
    inline = root.create_array("inline", shape=(6, 2), chunks=(1, 2), dtype="i4", attributes={"units": "K"})
    inline[:] = np.arange(12).reshape(6, 2)
    virtual = root.create_array("g/virtual", shape=(5,), chunks=(1,), dtype="u1", compressors=None)
    for chunk in range(4):
        session.store.set_virtual_ref(f"{virtual.path}/c/{chunk}", source.as_uri(), offset=chunk, length=1)
    session.store.set_virtual_ref("g/virtual/c/4", elsewhere, offset=0, length=1, validate_container=False)
    for key, value in V2_ARRAY.items():
        session.store.set_sync(key, default_buffer_prototype().buffer.from_bytes(value))
    first = session.commit("first", {"author": "someone"})
    repository.create_branch("side", first)
    for branch in ("main", "side"):
        session = repository.writable_session(branch)
        zarr.open_array(session.store, path="inline", mode="r+")[2] = 7
        sync(session.store.delete("g/virtual/c/1"))
        session.commit(f"on {branch}")
    repository.create_tag("v1", first)
    repository.create_tag("gone", first)
    repository.delete_tag("gone")
    repository.close()


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("original") / "a.icelite"
    make(path)
    return path


@pytest.fixture
def path(original: Path, tmp_path: Path) -> Path:
    """A copy of the repository with its source file."""
    shutil.copy(original.parent / "source.bin", tmp_path)
    return Path(shutil.copy(original, tmp_path))


def everything(path: Path) -> dict[str, bytes | str | None]:
    """All that can be read through the public API; a value that may not be read counts as its error's kind."""
    repository = Repository.open(path, check="always")
    found: dict[str, bytes | str | None] = {
        "access": str(repository.required_access()),
        "config": str(repository.config),
    }
    names = [("branch", name) for name in sorted(repository.list_branches())]
    names += [("tag", name) for name in sorted(repository.list_tags())]
    found["log"] = str([str(update) for update in repository.ops_log()])
    found["inspected"] = str(repository.inspect_repo_info())
    snapshots: dict[str, None] = {}
    for kind, name in names:
        for info in repository.ancestry(**{kind: name}):
            found[f"{kind} {name} {info.id}"] = str(repository.lookup_snapshot(info.id))
            snapshots[info.id] = None
    for snapshot_id in snapshots:
        found[f"diff {snapshot_id}"] = str(repository.diff(to_snapshot_id=snapshot_id))
        found[f"inspected {snapshot_id}"] = str(repository.inspect_snapshot(snapshot_id))
        store = repository.readonly_session(snapshot_id=snapshot_id).store

        async def keys(store=store) -> list[str]:
            await store.getsize_prefix("")
            return [key async for key in store.list()]

        for key in sync(keys()):
            try:
                value = store.get_sync(key)
                found[f"{snapshot_id} {key}"] = None if value is None else value.to_bytes()
            except IceliteError as error:
                found[f"{snapshot_id} {key}"] = error.kind
    writable = repository.writable_session("main")
    writable.commit("goes on", allow_empty=True)
    repository.close()
    return found


def state(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def sql(path: Path, *statements: str) -> None:
    """Work on a file as somebody without icelite would."""
    with contextlib.closing(apsw.Connection(str(path))) as connection:
        for statement in statements:
            connection.execute(statement)


def forge(path: Path, *statements: str) -> None:
    """The same for somebody who takes the tables for what they are not: no STRICT, no CHECK, and no trace of it."""
    connection = apsw.Connection(str(path))
    schema = connection.execute("SELECT sql, name FROM sqlite_schema WHERE type = 'table'").fetchall()
    rewrite = "UPDATE sqlite_schema SET sql = ? WHERE name = ?"
    connection.pragma("writable_schema", 1)
    for text, name in schema:
        if text.endswith("STRICT") or "STRICT," in text:
            connection.execute(rewrite, (text.replace("STRICT, ", "").replace("STRICT", ""), name))
    connection.close()
    sql(path, "PRAGMA ignore_check_constraints = 1", *statements)
    connection = apsw.Connection(str(path))
    connection.pragma("writable_schema", 1)
    connection.executemany(rewrite, schema)
    connection.close()


def overwrite(offset: int, data: bytes) -> Damage:
    def damage(path: Path) -> None:
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(data)

    return damage


def truncate(fraction: float) -> Damage:
    return lambda path: os.truncate(path, int(path.stat().st_size * fraction))


def root_page(path: Path, table: str) -> int:
    with contextlib.closing(apsw.Connection(str(path))) as connection:
        return connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", (table,)).get


def wipe_page(path: Path) -> None:
    overwrite((root_page(path, "chunk_ref") - 1) * 4096, secrets.token_bytes(4096))(path)


def point_two_parents_at_one_child(path: Path) -> None:
    """A b-tree that is none: the table of nodes is the table of references too."""
    page = root_page(path, "node")
    forge_schema = f"UPDATE sqlite_schema SET rootpage = {page} WHERE name = 'chunk_ref'"
    sql(path, "PRAGMA writable_schema = 1", forge_schema)


def plant_journal(path: Path) -> None:
    """A journal in the form of https://sqlite.org/fileformat2.html#the_rollback_journal that names a super-journal."""
    victim = path.with_name("precious.txt")
    victim.write_text("do not delete")
    magic = bytes.fromhex("d9d505f920a163d7")
    name = str(victim).encode()
    header = magic + struct.pack(">IIIII", 0, 0, path.stat().st_size // 4096, 512, 4096)
    record = struct.pack(">I", 4096 * 0 + 0x40000000 // 4096 + 1) + name
    record += struct.pack(">II", len(name), sum(name) & 0xFFFFFFFF) + magic
    path.with_name(path.name + "-journal").write_bytes(header.ljust(512, b"\0") + record)


def other_application(path: Path) -> None:
    path.unlink()
    sql(path, "CREATE TABLE notes (text)", "INSERT INTO notes VALUES ('mine')")


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def device(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


WRONG_FILES = {
    "text": (lambda path: path.write_text("time,sst\n" * 1000), "not-a-catalog"),
    "netcdf": (lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(5000)), "not-a-catalog"),
    "a-few-bytes": (lambda path: path.write_bytes(b"SQLite format 3\0"), "not-a-catalog"),
    "empty": (lambda path: path.write_bytes(b""), "empty-file"),
    "directory": (directory, "not-a-file"),
    "fifo": (device, "not-a-file"),
    "other-application": (other_application, "other-application"),
    "newer-format": (lambda path: sql(path, "PRAGMA user_version = 2"), "unsupported-spec-version"),
    "truncated-by-a-byte": (lambda path: os.truncate(path, path.stat().st_size - 1), "truncated-file"),
    "truncated-by-half": (truncate(0.5), "truncated-file"),
    "truncated-to-a-page": (lambda path: os.truncate(path, 4096), "truncated-file"),
    "truncated-in-the-first-page": (lambda path: os.truncate(path, 600), "truncated-file"),
    "extra-table": (lambda path: sql(path, "CREATE TABLE x (y)"), "unexpected-schema"),
    "extra-view": (lambda path: sql(path, "CREATE VIEW x AS SELECT * FROM tag"), "unexpected-schema"),
    "extra-index": (lambda path: sql(path, "CREATE INDEX x ON tag (seq)"), "unexpected-schema"),
    "extra-trigger": (
        lambda path: sql(path, "CREATE TRIGGER x AFTER INSERT ON tag BEGIN DELETE FROM branch; END"),
        "unexpected-schema",
    ),
    "virtual-table": (lambda path: sql(path, "CREATE VIRTUAL TABLE x USING fts5 (y)"), "unexpected-schema"),
    "missing-table": (lambda path: sql(path, "DROP TABLE tag"), "unexpected-schema"),
    "extra-column": (lambda path: sql(path, "ALTER TABLE tag ADD COLUMN x TEXT"), "unexpected-schema"),
    "table-replaced-by-a-view": (
        lambda path: sql(path, "DROP TABLE change", "CREATE VIEW change AS SELECT 1 AS seq"),
        "unexpected-schema",
    ),
    "altered-text": (
        lambda path: sql(
            path,
            "PRAGMA writable_schema = 1",
            "UPDATE sqlite_schema SET sql = replace(sql, 'offset >= 0', 'offset >= -9') WHERE name = 'chunk_ref'",
        ),
        "unexpected-schema",
    ),
    "text-hidden-in-a-quote": (
        lambda path: sql(
            path,
            "PRAGMA writable_schema = 1",
            "UPDATE sqlite_schema SET sql = replace(sql, 'chunk ', '\"--\" TEXT, chunk ') WHERE name = 'chunk_ref'",
        ),
        "unexpected-schema",
    ),
    "trigger-called-statistics": (
        lambda path: forge(
            path,
            "CREATE TRIGGER x AFTER INSERT ON tag BEGIN DELETE FROM branch; END",
            "PRAGMA writable_schema = 1",
            "UPDATE sqlite_schema SET name = 'sqlite_stat9', sql = replace(sql, ' x ', ' sqlite_stat9 ')"
            " WHERE name = 'x'",
        ),
        "unexpected-schema",
    ),
    "forged-text-for-a-number": (
        lambda path: forge(path, "UPDATE chunk_ref SET length = 'long'"),
        "corrupt",
    ),
    "forged-blob-for-a-text": (lambda path: forge(path, "UPDATE node SET metadata = x'00ff'"), "corrupt"),
    "forged-null": (lambda path: forge(path, "UPDATE payload SET crc32c = 1.5"), "corrupt"),
    "forged-against-a-check": (lambda path: forge(path, "UPDATE chunk_ref SET offset = -5"), "corrupt"),
    "forged-endless-lineage": (
        lambda path: forge(path, "UPDATE segment SET parent_seg = seg, fork_seq = seg"),
        "corrupt",
    ),
    "overwritten-page": (wipe_page, "corrupt"),
    "crossed-tree": (point_two_parents_at_one_child, "corrupt"),
    "planted-journal": (plant_journal, "unsafe-sidecar"),
}


@pytest.mark.parametrize("what", WRONG_FILES)
@pytest.mark.parametrize("check", ["always", "auto"])
def test_every_kind_of_wrong_file_has_an_error_of_its_own(path: Path, what: str, check: str) -> None:
    damage, kind = WRONG_FILES[what]
    damage(path)
    before = state(path.parent) if what != "fifo" else None
    with pytest.raises(FormatError) as caught:
        Repository.open(path, check=check)
    assert caught.value.kind == kind, str(caught.value)
    assert str(path) in str(caught.value)
    with pytest.raises(FormatError):
        Repository.exists(path)
    with pytest.raises(FormatError):
        Repository.open_or_create(path)
    with pytest.raises((AlreadyExistsError, FormatError)):
        Repository.create(path)
    if before is not None:
        assert state(path.parent) == before


def test_each_error_says_something_else(path: Path, tmp_path: Path) -> None:
    texts = {}
    for what in ("text", "empty", "directory", "other-application", "newer-format", "truncated-by-half", "extra-view"):
        copy = tmp_path / what / "b.icelite"
        copy.parent.mkdir()
        shutil.copy(path, copy)
        WRONG_FILES[what][0](copy)
        with pytest.raises(FormatError) as caught:
            Repository.open(copy)
        texts[what] = str(caught.value).replace(str(copy), "")
    assert len(set(texts.values())) == len(texts)
    assert "format 2" in texts["newer-format"]
    assert "format 1" in texts["newer-format"]


@pytest.mark.parametrize("missing", ["b.icelite", "nowhere/b.icelite", "a.icelite/b.icelite"])
def test_what_is_not_there_is_not_made_by_opening(path: Path, missing: str) -> None:
    target = path.parent / missing
    before = state(path.parent)
    with pytest.raises(RepositoryNotFoundError) as caught:
        Repository.open(target)
    assert caught.value.kind == "repository-not-found"
    assert str(target) in str(caught.value)
    assert not Repository.exists(target)
    assert state(path.parent) == before


@pytest.mark.parametrize("missing", ["nowhere/b.icelite", "a.icelite/b.icelite"])
def test_creating_makes_no_directories(path: Path, missing: str) -> None:
    before = state(path.parent)
    with pytest.raises(RepositoryNotFoundError, match="does not exist") as caught:
        Repository.create(path.parent / missing)
    assert caught.value.kind == "repository-not-found"
    assert state(path.parent) == before


def test_a_socket_is_not_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the name of a socket must be short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("b.icelite")
        with pytest.raises(FormatError) as caught:
            Repository.open(tmp_path / "b.icelite")
    assert caught.value.kind == "not-a-file"


def test_the_planted_journal_deletes_nothing(path: Path) -> None:
    plant_journal(path)
    with pytest.raises(FormatError):
        Repository.open(path)
    assert path.with_name("precious.txt").read_text() == "do not delete"
    path.with_name(path.name + "-journal").unlink()
    assert everything(path)


def test_a_journal_left_by_a_catalog_that_is_gone_stops_a_new_one(path: Path) -> None:
    """SQLite would play it back into the new file."""
    plant_journal(path)
    path.unlink()
    with pytest.raises(FormatError) as caught:
        Repository.create(path)
    assert caught.value.kind == "unsafe-sidecar"
    assert not path.exists()


# -- what is unusual, and fine ---------------------------------------------------------------------------------


def test_a_file_that_was_switched_to_wal_opens_and_is_switched_back(path: Path, original: Path) -> None:
    sql(path, "PRAGMA journal_mode = wal", "UPDATE snapshot SET message = message")
    assert path.read_bytes()[18:20] == b"\x02\x02"
    found = everything(path)
    assert len(found) == len(everything(Path(shutil.copy(original, path.with_name("b.icelite")))))
    assert path.read_bytes()[18:20] == b"\x01\x01"
    assert not path.with_name(path.name + "-wal").exists()


def test_what_waits_in_a_wal_is_there(path: Path) -> None:
    """Its writer was killed: the newest commits are in a file beside the catalog."""
    writer = apsw.Connection(str(path))
    writer.pragma("journal_mode", "wal")
    writer.pragma("wal_autocheckpoint", 0)
    writer.execute("INSERT INTO tag (name, seq) SELECT 'late', seq FROM branch WHERE name = 'main'")
    copy = path.with_name("b.icelite")
    for suffix in ("", "-wal"):
        shutil.copy(f"{path}{suffix}", f"{copy}{suffix}")
    writer.close()
    assert "late" in Repository.open(copy, check="always").list_tags()
    Repository.open(copy).close()
    assert copy.read_bytes()[18:20] == b"\x01\x01"


def test_an_analysed_and_vacuumed_file_opens(path: Path) -> None:
    before = set(everything(path))
    sql(path, "ANALYZE", "PRAGMA page_size = 16384", "VACUUM")
    assert before <= set(everything(path))


def test_comments_in_the_schema_are_not_part_of_it(path: Path) -> None:
    sql(path, "PRAGMA writable_schema = 1", "UPDATE sqlite_schema SET sql = replace(sql, '-- ', '-- remark: ')")
    assert everything(path)


def test_bytes_after_the_end_are_nobody_s(path: Path) -> None:
    with path.open("ab") as file:
        file.write(bytes(1000))
    assert everything(path)


# -- check= ----------------------------------------------------------------------------------------------------


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that SQLite read from end to end."""
    from icelite.catalog import checks

    seen: list[Path] = []
    check = checks._check_integrity
    monkeypatch.setattr(checks, "_check_integrity", lambda c, path: [seen.append(path), check(c, path)])
    return seen


def test_a_file_is_checked_when_this_machine_first_meets_it(path: Path, checked: list[Path]) -> None:
    for check, times in [("never", 0), ("auto", 1), ("auto", 1), ("always", 2), ("auto", 2)]:
        Repository.open(path, check=check).close()
        assert len(checked) == times


def test_what_this_machine_wrote_it_knows(tmp_path: Path, checked: list[Path]) -> None:
    repository = Repository.create(tmp_path / "b.icelite")
    repository.writable_session("main").commit("x", allow_empty=True)
    Repository.open(tmp_path / "b.icelite").close()
    assert checked == []


@pytest.mark.parametrize("how", ["touched", "moved", "copied"])
def test_a_file_that_may_have_changed_is_checked_again(path: Path, checked: list[Path], how: str) -> None:
    Repository.open(path).close()
    target = path
    if how == "touched":
        os.utime(path, ns=(1, 1))
    elif how == "moved":
        target = path.rename(path.with_name("b.icelite"))
    else:
        os.replace(shutil.copy2(path, path.with_name("b.icelite")), path)
    Repository.open(target).close()
    assert len(checked) == 2


def test_never_believing_is_not_remembered_as_checked(path: Path, checked: list[Path]) -> None:
    repository = Repository.open(path, check="never")
    repository.create_tag("x", repository.lookup_branch("main"))  # our write, but on what nobody checked
    repository.close()
    Repository.open(path).close()
    assert len(checked) == 1


def test_without_a_cache_directory_every_opening_checks(
    path: Path, checked: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/cache")
    for times in (1, 2):
        Repository.open(path).close()
        assert len(checked) == times


def test_other_words_for_check_are_refused(path: Path) -> None:
    with pytest.raises(IceliteError) as caught:
        Repository.open(path, check="sometimes")
    assert caught.value.kind == "invalid-argument"


# -- damage of every sort --------------------------------------------------------------------------------------


@pytest.fixture
def no_hanging() -> Iterator[None]:
    """End the process, with a traceback, rather than wait for ever."""
    faulthandler.dump_traceback_later(300, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


def check_read_or_refused(path: Path, what: str) -> None:
    """Fail on anything but all that a damaged catalog holds, and a clear refusal."""
    try:
        everything(path)
    except IceliteError as error:
        if error.kind == "unknown":
            raise AssertionError(what) from error
    except Exception as error:
        raise AssertionError(what) from error


NASTY = {
    "INTEGER": [-1, 0, 1, 3, 2**31, 2**53, 2**63 - 1, -(2**63), None],
    "TEXT": [
        "",
        "x",
        "[]",
        "{}",
        "null",
        "3",
        '"x"',
        '{"a": 1}',
        '{"zarr.json": 5}',
        "a\nb",
        "0/0/0",
        "[" * 2000,
        None,
    ],
    "BLOB": [b"", b"x", None],
}

EVERYWHERE = [-1, 2**63 - 1, "", "x", b"x"]  # these in all rows of a table too


def columns(path: Path) -> list[tuple[str, str, str]]:
    """Table, column and type of everything that is stored."""
    with contextlib.closing(apsw.Connection(str(path))) as connection:
        return connection.execute(
            "SELECT t.name, c.name, c.type FROM sqlite_schema t JOIN pragma_table_info(t.name) c"
            " WHERE t.type = 'table' AND t.name NOT LIKE 'sqlite_%'"
        ).fetchall()


@pytest.mark.usefixtures("no_hanging")
def test_values_that_make_no_sense_are_read_or_refused(memory: Path, original: Path) -> None:
    """Every column, with each value that its type and its CHECK allow, in one row or in all."""
    path = memory / "a.icelite"
    shutil.copy(original.parent / "source.bin", memory)
    tried = 0
    for table, column, type_ in columns(original):
        one_row = f" WHERE {column} = (SELECT max({column}) FROM {table})"
        for value in NASTY[type_]:
            for where in [one_row, ""] if value in EVERYWHERE else [one_row]:
                shutil.copy(original, path)
                connection = apsw.Connection(str(path))
                try:
                    connection.execute(f"UPDATE {table} SET {column} = ?{where}", (value,))
                except (apsw.ConstraintError, apsw.MismatchError):
                    continue
                finally:
                    connection.close()
                tried += 1
                check_read_or_refused(path, f"{table}.{column} = {value!r}{where}")
    assert tried > 300


def test_the_catalog_itself_refuses_what_checks_would_find(path: Path) -> None:
    """`Catalog` is what every opening goes through, whoever asks."""
    wipe_page(path)
    with pytest.raises(FormatError):
        Catalog(as_storage(path), check="always")


# -- a schema that SQLite reads differently --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (") STRICT", ") --\0\n STRICT"),
        (") STRICT", ")\0 STRICT"),
        (") STRICT", ")\0"),
        (";", "\0;"),
        ("NOT NULL", "NOT NULL --\0\n"),
    ],
)
def test_a_nul_hides_nothing_of_the_schema(path: Path, old: str, new: str) -> None:
    connection = apsw.Connection(str(path))
    rows = connection.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'table' AND sql LIKE '%STRICT'")
    changed = [((sql + ";").replace(old, new, 1).removesuffix(";"), name) for name, sql in rows.fetchall()]
    connection.pragma("writable_schema", 1)
    connection.executemany("UPDATE sqlite_schema SET sql = ? WHERE name = ?", changed)
    connection.close()
    with pytest.raises(FormatError) as caught:
        Repository.open(path, check="never")
    assert caught.value.kind in ("unexpected-schema", "corrupt")
