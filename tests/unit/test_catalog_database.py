"""The doors of a catalog: what commits, what is refused, what is rolled back, and who waits for whom."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import apsw
import apsw.bestpractice
import pytest

from icelite.catalog.checks import is_catalog
from icelite.catalog.database import Catalog, Transaction
from icelite.catalog.settings import find_setting, save_setting
from icelite.errors import FormatError, IceliteError, InternalError, ReadOnlyError, StorageError
from icelite.repository import Repository
from icelite.storage import as_storage, in_memory_storage

HOLD_THE_LOCK = """
import sys, apsw
connection = apsw.Connection(sys.argv[1])
connection.execute("BEGIN " + sys.argv[2])
if sys.argv[2] == "DEFERRED":
    connection.execute("SELECT * FROM setting").fetchall()
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "a.icelite"
    Repository.create(path).close()
    return path


@pytest.fixture
def catalog(path: Path) -> Iterator[Catalog]:
    catalog = Catalog(as_storage(path), change_set=True, busy_timeout=0.05)
    yield catalog
    catalog.close()


def setting(catalog: Catalog, name: str = "x") -> object:
    with catalog.read() as txn:
        return find_setting(txn, name)


def write_setting(catalog: Catalog, value: object) -> None:
    with catalog.write() as txn:
        save_setting(txn, "x", value)


def write_and_fail(catalog: Catalog, write: Callable[[Transaction], object]) -> None:
    with catalog.write() as txn:
        write(txn)
        raise ZeroDivisionError


# -- doors -----------------------------------------------------------------------------------------------------


def test_a_write_is_seen_by_other_connections(catalog: Catalog, path: Path) -> None:
    write_setting(catalog, 1)
    assert setting(Catalog(as_storage(path))) == 1


def test_an_exception_rolls_everything_back(catalog: Catalog) -> None:
    write_setting(catalog, "before")
    with pytest.raises(ZeroDivisionError):
        write_and_fail(catalog, lambda txn: [save_setting(txn, name, "after") for name in ("x", "y")])
    assert (setting(catalog), setting(catalog, "y")) == ("before", None)
    write_setting(catalog, "again")
    assert setting(catalog) == "again"


@pytest.mark.parametrize("begin", ["BEGIN IMMEDIATE", None])
def test_nothing_commits_outside_the_doors(catalog: Catalog, begin: str | None) -> None:
    connection = catalog._connection
    statement = "INSERT INTO setting (name, value) VALUES ('x', '1')"
    if begin:
        connection.execute(begin)
        connection.execute(statement)
        statement = "COMMIT"
    with pytest.raises(apsw.ConstraintError):
        connection.execute(statement)
    assert not connection.in_transaction
    assert setting(catalog) is None


def test_nothing_is_written_through_the_door_for_reading(catalog: Catalog) -> None:
    with pytest.raises(IceliteError), catalog.read() as txn:
        save_setting(txn, "x", 1)
    assert setting(catalog) is None


def test_reading_inside_any_door_sees_what_that_door_sees(catalog: Catalog) -> None:
    with catalog.write() as txn:
        save_setting(txn, "x", 1)
        with catalog.read() as inner:
            assert find_setting(inner, "x") == 1
    with catalog.read(), catalog.read() as inner:
        assert find_setting(inner, "x") == 1
    with catalog.stage(), catalog.read() as inner:
        assert find_setting(inner, "x") == 1


@pytest.mark.parametrize("outer", ["read", "write", "stage"])
@pytest.mark.parametrize("inner", ["write", "stage"])
def test_no_door_for_writing_opens_inside_another(catalog: Catalog, outer: str, inner: str) -> None:
    write_setting(catalog, 0)
    with getattr(catalog, outer)() as txn:
        with pytest.raises(InternalError, match=f"{inner}.. was opened inside {outer}"), getattr(catalog, inner)():
            pass
        assert find_setting(txn, "x") == 0  # the outer door is still open, and its transaction alive
    write_setting(catalog, 1)
    assert setting(catalog) == 1


def test_a_read_is_one_view_however_often_it_looks(catalog: Catalog, path: Path) -> None:
    write_setting(catalog, 1)
    other = Catalog(as_storage(path), busy_timeout=0.05)
    with catalog.read() as txn:
        assert find_setting(txn, "x") == 1
        with pytest.raises(StorageError) as caught:
            write_setting(other, 2)  # in rollback mode a reader holds a writer's COMMIT up
        assert caught.value.kind == "busy"
        assert find_setting(txn, "x") == 1
    write_setting(other, 2)
    assert setting(catalog) == 2


def test_what_is_queued_runs_after_the_commit_and_only_then(catalog: Catalog) -> None:
    seen: list[object] = []
    with catalog.write() as txn:
        save_setting(txn, "x", 1)
        txn.after_commit.append(lambda: seen.append(setting(catalog)))
        assert seen == []
    assert seen == [1]
    with pytest.raises(ZeroDivisionError):
        write_and_fail(catalog, lambda txn: txn.after_commit.append(lambda: seen.append(2)))
    write_setting(catalog, 3)
    assert seen == [1]


def test_threads_take_turns(catalog: Catalog) -> None:
    write_setting(catalog, 0)

    def add(times: int) -> None:
        for _ in range(times):
            with catalog.write() as txn:
                save_setting(txn, "x", find_setting(txn, "x") + 1)
            setting(catalog)

    threads = [threading.Thread(target=add, args=(25,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert setting(catalog) == 100


# -- the change set --------------------------------------------------------------------------------------------


def staged(catalog: Catalog) -> int:
    row = catalog.row("SELECT count(*) FROM staged.chunk_ref")
    assert row is not None
    return int(row[0])


def stage_one(txn: Transaction) -> None:
    txn.run("INSERT INTO staged.chunk_ref VALUES (1, '0', NULL, 0, 0)")


def test_staging_neither_waits_for_the_catalog_nor_locks_it(catalog: Catalog, path: Path) -> None:
    other = Catalog(as_storage(path), busy_timeout=0.05)
    with other.write() as txn:
        save_setting(txn, "x", 1)
        with catalog.stage() as staging:
            stage_one(staging)
    assert staged(catalog) == 1
    with catalog.stage() as staging:
        staging.run("DELETE FROM staged.chunk_ref")
        write_setting(other, 2)
    assert staged(catalog) == 0


def test_a_failed_write_rolls_back_what_it_staged(catalog: Catalog) -> None:
    with pytest.raises(ZeroDivisionError):
        write_and_fail(catalog, stage_one)
    assert staged(catalog) == 0


def test_each_session_has_a_change_set_of_its_own(catalog: Catalog, path: Path) -> None:
    other = Catalog(as_storage(path), change_set=True)
    with catalog.stage() as txn:
        stage_one(txn)
    assert (staged(catalog), staged(other)) == (1, 0)


def test_a_catalog_for_reading_has_none(path: Path) -> None:
    with pytest.raises(InternalError, match="staged"):
        staged(Catalog(as_storage(path)))


# -- what statements may do ------------------------------------------------------------------------------------

FORBIDDEN = [
    "PRAGMA journal_mode = wal",
    "PRAGMA user_version = 2",
    "ATTACH ':memory:' AS other",
    "DETACH staged",
    "CREATE TABLE x (y)",
    "CREATE TEMP TABLE x (y)",
    "DROP TABLE setting",
    "ALTER TABLE setting RENAME TO settings",
    "SELECT * FROM sqlite_schema",
    "INSERT INTO sqlite_schema VALUES ('table', 'x', 'x', 9, '')",
    "CREATE INDEX i ON setting (value)",
    "ANALYZE",
    "REINDEX",
]


@pytest.mark.parametrize("sql", FORBIDDEN)
def test_only_rows_of_the_known_tables_can_be_touched(catalog: Catalog, sql: str) -> None:
    with pytest.raises(IceliteError), catalog.write() as txn:
        txn.run(sql)


def test_vacuum_is_refused_too(catalog: Catalog, tmp_path: Path) -> None:
    with pytest.raises(apsw.Error):
        catalog._connection.execute("VACUUM INTO ?", (str(tmp_path / "copy"),))
    assert not (tmp_path / "copy").exists()


# -- waiting ---------------------------------------------------------------------------------------------------


@pytest.fixture
def hold(path: Path) -> Iterator[object]:
    """A function that makes another process hold a lock; calling what it returns lets go."""
    processes: list[subprocess.Popen[str]] = []

    def begin(how: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD_THE_LOCK, str(path), how],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield begin
    for process in processes:
        process.communicate()


def check_busy(error: IceliteError, path: Path) -> None:
    assert error.kind == "busy"
    assert path.name in str(error)
    assert "busy_timeout_seconds" in str(error)


def test_a_write_past_the_deadline_is_one_clear_error(catalog: Catalog, path: Path, hold) -> None:
    process = hold("IMMEDIATE")
    assert setting(catalog) is None  # reading goes on beside a writer
    with pytest.raises(StorageError) as caught:
        write_setting(catalog, 1)
    check_busy(caught.value, path)
    process.communicate()
    write_setting(catalog, 2)
    assert setting(catalog) == 2


def test_a_reader_holds_a_commit_up_until_the_deadline(catalog: Catalog, path: Path, hold) -> None:
    process = hold("DEFERRED")
    with pytest.raises(StorageError) as caught:
        write_setting(catalog, 1)
    check_busy(caught.value, path)
    assert setting(catalog) is None
    process.communicate()
    write_setting(catalog, 2)


def test_reading_and_opening_wait_for_an_exclusive_lock_until_the_deadline(catalog: Catalog, path: Path, hold) -> None:
    process = hold("EXCLUSIVE")
    for attempt in (lambda: setting(catalog), lambda: Catalog(as_storage(path), busy_timeout=0.05)):
        with pytest.raises(StorageError) as caught:
            attempt()
        check_busy(caught.value, path)
    process.communicate()
    assert setting(catalog) is None


def test_a_writer_waits_for_another_and_then_goes_on(path: Path, hold) -> None:
    process = hold("IMMEDIATE")
    catalog = Catalog(as_storage(path), busy_timeout=60)
    writer = threading.Thread(target=write_setting, args=(catalog, 1))
    writer.start()
    process.communicate()
    writer.join()
    assert setting(catalog) == 1


# -- how the file is opened ------------------------------------------------------------------------------------


def pragma(catalog: Catalog, name: str) -> object:
    catalog._connection.authorizer = None
    return catalog._connection.pragma(name)


EXPECTED_PRAGMAS = {
    "journal_mode": "truncate",
    "synchronous": 2,
    "cell_size_check": 1,
    "trusted_schema": 0,
    "mmap_size": 0,
    "page_size": 4096,
    "application_id": 0x49434C54,
    "user_version": 1,
}


@pytest.mark.parametrize("create", [False, True])
@pytest.mark.parametrize("hooked", [False, True])
def test_pragmas_hold_whatever_else_the_process_asked_of_sqlite(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, create: bool, hooked: bool
) -> None:
    """`apsw.bestpractice` would put every connection of the process in WAL mode, and analyse its tables."""
    monkeypatch.setattr(apsw, "connection_hooks", list(apsw.connection_hooks))
    if hooked:
        logging = apsw.bestpractice.library_logging  # left out: it could not be undone for the tests that follow
        apsw.bestpractice.apply(tuple(each for each in apsw.bestpractice.recommended if each is not logging))
    if create:
        Repository.create(tmp_path / "b.icelite").close()
    catalog = Catalog(as_storage(tmp_path / "b.icelite" if create else path), change_set=True)
    write_setting(catalog, 1)
    assert {name: pragma(catalog, name) for name in EXPECTED_PRAGMAS} == EXPECTED_PRAGMAS
    catalog.close()
    reopened = Catalog(as_storage(tmp_path / "b.icelite" if create else path), check="always")
    assert setting(reopened) == 1
    assert reopened._connection.read("main", 0, 18, 2)[1] == b"\x01\x01"  # at rest in rollback mode


def test_a_file_at_rest_is_the_catalog_alone_and_complete(catalog: Catalog, path: Path, tmp_path: Path) -> None:
    """Copied as it is, with connections open, it opens elsewhere."""
    write_setting(catalog, 1)
    copy = tmp_path / "copy.icelite"
    copy.write_bytes(path.read_bytes())
    assert setting(Catalog(as_storage(copy), check="always")) == 1
    journal = path.with_name(path.name + "-journal")
    assert not journal.exists() or journal.stat().st_size == 0


def test_memory_is_shared_by_connections_of_one_name() -> None:
    storage = in_memory_storage()
    Repository.create(storage)
    one, two = Catalog(storage), Catalog(storage, change_set=True)
    write_setting(one, 1)
    assert setting(two) == 1
    Repository.create(in_memory_storage())
    assert setting(two) == 1


def test_is_catalog_looks_at_the_header_only(path: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.icelite"
    text.write_text("not an SQLite file" * 100)
    assert is_catalog(path)
    assert is_catalog(str(path))
    for other in (text, tmp_path, tmp_path / "missing", Path("/dev/null")):
        assert not is_catalog(other)
    assert not (tmp_path / "missing").exists()


# -- read-only places ------------------------------------------------------------------------------------------


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """A folder that everybody may enter; pytest's own are for its user alone, and other runs share their parents."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


@pytest.fixture
def without_privileges() -> Iterator[None]:
    """Root may write anywhere: be somebody else meanwhile."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def freeze(path: Path, *, file: bool) -> None:
    path.chmod(0o444 if file else 0o666)
    path.parent.chmod(0o555)


@pytest.mark.parametrize("file", [True, False], ids=["file-and-directory", "directory"])
def test_a_read_only_place_is_read_and_not_written(
    public_folder: Path, request: pytest.FixtureRequest, file: bool
) -> None:
    path = public_folder / "a.icelite"
    repository = Repository.create(path)
    repository.create_tag("v1", repository.lookup_branch("main"))
    repository.close()
    path.with_name(path.name + "-journal").unlink(missing_ok=True)
    before = path.read_bytes()
    freeze(path, file=file)
    request.getfixturevalue("without_privileges")
    repository = Repository.open(path, check="always")
    assert repository.list_tags() == {"v1"}
    assert list(repository.readonly_session(tag="v1").changes.nodes.list_below("")) == []
    with pytest.raises(IceliteError) as caught:
        repository.create_tag("v2", repository.lookup_branch("main"))
    assert isinstance(caught.value, ReadOnlyError | StorageError)
    assert caught.value.kind == "read-only-storage"
    assert repository.list_tags() == {"v1"}
    repository.close()
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_nothing_can_be_created_in_a_read_only_directory(public_folder: Path, request: pytest.FixtureRequest) -> None:
    public_folder.chmod(0o555)
    request.getfixturevalue("without_privileges")
    with pytest.raises(StorageError) as caught:
        Repository.create(public_folder / "a.icelite")
    assert caught.value.kind == "io"
    assert "Permission denied" in str(caught.value)


def test_a_file_that_may_not_be_read_says_so(public_folder: Path, request: pytest.FixtureRequest) -> None:
    path = public_folder / "a.icelite"
    Repository.create(path).close()
    path.chmod(0)
    request.getfixturevalue("without_privileges")
    with pytest.raises(IceliteError) as caught:
        Repository.open(path)
    assert not isinstance(caught.value, FormatError)
    assert caught.value.kind == "io"
    assert str(path) in str(caught.value)
