"""What a file must pass before a catalog is read from it: it may come from a stranger.

The order matters: the place, what lies beside it, the 100-byte header, the exact schema, then (for a file that this
machine does not know) SQLite's own ``integrity_check``. STRICT and CHECK do not protect a reader; this check
does, and unlike ``quick_check`` it compares indexes with their tables (https://sqlite.org/security.html,
"Untrusted SQLite Database Files").

A file that passed, or that icelite wrote, is remembered by path, size, modification time and inode: one small file each
in the user's cache directory, so that opening a catalog again costs milliseconds.

A catalog that is read by ranges is not checked as a whole. There the rules of the schema are held row by row: a view in
front of each table, of its name, holds them for who reads, since SQLite looks for a name among temporary views first,
and reads the table through its keys as before. The views come from the schema's own text, so a rule is written once; a
row that breaks one is an error, never left out (`hold_rules`).
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import struct
import threading
from collections.abc import Iterator
from functools import cache, lru_cache
from importlib.resources import files
from pathlib import Path

import apsw
import platformdirs

from icelite.catalog.sidecars import check_sidecars
from icelite.errors import (
    ErrorKind,
    FormatError,
    InvalidInputError,
    RepositoryNotFoundError,
    StorageError,
)

APPLICATION_ID = 0x49434C54  # "ICLT"
FORMAT_VERSION = 1
HEADER_BYTES = 100
SQLITE_MAGIC = b"SQLite format 3\0"
CHECK_BYTES_PER_SECOND = 20 << 20  # a slow disk; integrity_check reads 140 MB/s on an ordinary one

# Read now: a catalog is opened also where no more files can be.
_SCHEMA = (files("icelite.catalog") / "schema.sql").read_text()

SELECT_SCHEMA = "SELECT type, name, tbl_name, coalesce(sql, '') FROM sqlite_schema"
CHECK_INTEGRITY = "PRAGMA integrity_check(1)"
ATTACHED_BY_VACUUM = 2  # its own, beside a change set
BEGIN = "BEGIN"
ROLLBACK = "ROLLBACK"

# https://sqlite.org/c3ref/c_dbconfig_defensive.html; triggers and views do not occur in the schema.
_CONFIG = {
    "DEFENSIVE": 1,
    "TRUSTED_SCHEMA": 0,
    "ENABLE_TRIGGER": 0,
    "ENABLE_VIEW": 0,
    "ENABLE_LOAD_EXTENSION": 0,
    "WRITABLE_SCHEMA": 0,
    "DQS_DDL": 0,
    "DQS_DML": 0,
    # Plans do not depend on bound values. Without it SQLite prepares a statement with ORDER BY anew for each execution,
    # which doubles the cost of finding a chunk (https://sqlite.org/queryplanner-ng.html#qpstab).
    "ENABLE_QPSG": 1,
}
_LIMITS = {"SQL_LENGTH": 100_000, "COLUMN": 100, "EXPR_DEPTH": 50, "FUNCTION_ARG": 8, "VARIABLE_NUMBER": 2000}
_PRAGMAS = {"trusted_schema": 0, "cell_size_check": 1, "mmap_size": 0}
_STATISTICS = {  # what ANALYZE leaves
    ("table", "sqlite_stat1", "CREATE TABLE sqlite_stat1(tbl,idx,stat)"),
    ("table", "sqlite_stat4", "CREATE TABLE sqlite_stat4(tbl,idx,neq,nlt,ndlt,sample)"),
}
_READS = {apsw.SQLITE_SELECT, apsw.SQLITE_READ, apsw.SQLITE_FUNCTION, apsw.SQLITE_RECURSIVE, apsw.SQLITE_TRANSACTION}
_WRITES = {apsw.SQLITE_INSERT, apsw.SQLITE_UPDATE, apsw.SQLITE_DELETE}


def schema_text() -> str:
    """The DDL of the current format."""
    return _SCHEMA


def check_place(path: Path) -> os.stat_result:
    """Refuse what is not a non-empty regular file; what the file system says of it.

    Raises
    ------
    RepositoryNotFoundError, FormatError
        ``repository-not-found``; ``not-a-file``, ``empty-file``, ``unsafe-sidecar``.
    """
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RepositoryNotFoundError(
            f"no repository at {path}: the file does not exist; Repository.create makes one",
            ErrorKind.REPOSITORY_NOT_FOUND,
        ) from error
    except OSError as error:
        raise StorageError(f"{path} cannot be looked at: {error.strerror}", ErrorKind.IO) from error
    if not stat.S_ISREG(status.st_mode):
        what = "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file"
        raise FormatError(
            f"{path} is {what}; an icelite repository is one file, such as {path.name}.icelite", ErrorKind.NOT_A_FILE
        )
    if status.st_size == 0:
        raise FormatError(
            f"{path} is an empty file, not an icelite catalog; delete it, then Repository.create it",
            ErrorKind.EMPTY_FILE,
        )
    check_sidecars(path)
    return status


def is_icelite(header: bytes) -> bool:
    """Whether a file's first bytes are those of a catalog, of whatever format."""
    return len(header) >= 72 and header[:16] == SQLITE_MAGIC and _u32(header, 68) == APPLICATION_ID


def is_catalog(path: str | Path) -> bool:
    """Whether the file at ``path`` says that it is an icelite catalog; its content is not checked."""
    place = Path(path)
    if not place.is_file():
        return False
    try:
        connection = apsw.Connection(str(place), flags=apsw.SQLITE_OPEN_READONLY)
    except apsw.Error:
        return False
    try:
        return is_icelite(connection.read("main", 0, 0, HEADER_BYTES)[1])
    finally:
        connection.close()


def _u32(data: bytes, offset: int) -> int:
    return int(struct.unpack_from(">I", data, offset)[0])


def harden(connection: apsw.Connection) -> None:
    """Switch off what a catalog never needs; before any statement."""
    for name, value in _CONFIG.items():
        connection.config(getattr(apsw, f"SQLITE_DBCONFIG_{name}"), value)
    for name, value in _LIMITS.items():
        connection.limit(getattr(apsw, f"SQLITE_LIMIT_{name}"), value)


def check_header(connection: apsw.Connection, path: Path | None) -> None:
    """Check the first 100 bytes, read through SQLite's own file handle.

    Raises
    ------
    FormatError
        ``not-a-catalog``, ``other-application``, ``unsupported-spec-version``.
    """
    complete, header = connection.read("main", 0, 0, HEADER_BYTES)
    if header[:16] != SQLITE_MAGIC or not complete:
        raise FormatError(f"{path} is not an SQLite file, so not an icelite catalog", ErrorKind.NOT_A_CATALOG)
    found = _u32(header, 68)
    if found != APPLICATION_ID:
        raise FormatError(
            f"{path} is an SQLite file of another application (application_id 0x{found:08X}, a catalog has"
            f" 0x{APPLICATION_ID:08X})",
            ErrorKind.OTHER_APPLICATION,
        )
    version = _u32(header, 60)
    if version != FORMAT_VERSION:
        raise FormatError(
            f"{path} has catalog format {version}, this release reads format {FORMAT_VERSION};"
            " install a newer icelite to read it",
            ErrorKind.UNSUPPORTED_SPEC_VERSION,
        )


def check_content(connection: apsw.Connection, path: Path | None, check: str, digest: str | None = None) -> None:
    """Check length and schema, and everything else with ``integrity_check`` where ``check`` asks for it.

    Without a path (in memory, or read over a network by ranges) only the schema can be checked. A digest of its bytes
    is what a copy of a remote catalog is remembered by.

    Raises
    ------
    FormatError, InvalidInputError
        ``truncated-file``, ``unexpected-schema``, ``corrupt``; ``invalid-argument``.
    """
    if check not in ("always", "auto", "never"):
        raise InvalidInputError(f"check={check!r} is not 'always', 'auto' or 'never'", ErrorKind.INVALID_ARGUMENT)
    for name, value in _PRAGMAS.items():
        connection.pragma(name, value)
    connection.execute(BEGIN)
    try:
        found = _schema(connection)  # the first read: takes the lock, and rolls back a crashed writer's journal
        if path is not None:
            check_length(connection, path)
        unexpected = sorted(name for _, name, _, _ in found ^ _expected_schema())
        if unexpected:
            raise FormatError(
                f"{path} does not have the schema of catalog format {FORMAT_VERSION}: {', '.join(unexpected[:5])}"
                " differ; it was changed by something else and is not trusted",
                ErrorKind.UNEXPECTED_SCHEMA,
            )
        news = path is not None and (check == "always" or (check == "auto" and not is_known(path, digest)))
        if path is not None and news:
            _check_integrity(connection, path)
    finally:
        connection.execute(ROLLBACK)
    if path is not None and news:
        remember(path, digest)


def check_length(connection: apsw.Connection, path: Path) -> None:
    """Check that the file is as long as its header says; under a lock, or while a writer could be half way.

    Raises
    ------
    FormatError
        ``truncated-file``.
    """
    header = connection.read("main", 0, 0, HEADER_BYTES)[1]
    page_size = struct.unpack_from(">H", header, 16)[0]
    expected = (65536 if page_size == 1 else page_size) * _u32(header, 28)
    actual = path.stat().st_size
    if actual < expected:
        raise FormatError(
            f"{path} is truncated: {actual} bytes of {expected}; copy it again from the original",
            ErrorKind.TRUNCATED_FILE,
        )


def _schema(connection: apsw.Connection) -> set[tuple[str, str, str, str]]:
    """The schema without comments and spacing, and without the tables that ANALYZE leaves.

    A quote could hide text from this reading, so a statement with one is kept as it is, and then differs. So is one
    with a NUL, where SQLite stops reading, or another character that it does not take for what Python does.
    """
    found = set()
    for row in connection.execute(SELECT_SCHEMA).fetchall():
        kind, name, table, sql = map(str, row)
        sql = _bare(sql)
        if (kind, name, sql) not in _STATISTICS:
            found.add((kind, name, table, sql))
    return found


_HIDES = re.compile(r"""['"`\[]|[^\t\n\f\r -~]""")


@lru_cache(maxsize=32)  # every session that opens sees the same texts
def _bare(sql: str) -> str:
    bare = re.sub(r"--[^\n]*", "", sql)
    return sql if _HIDES.search(bare) or "\0" in sql else " ".join(bare.split())


@cache
def _expected_schema() -> frozenset[tuple[str, str, str, str]]:
    connection = apsw.Connection(":memory:")
    connection.execute(schema_text())
    return frozenset(_schema(connection))


def _check_integrity(connection: apsw.Connection, path: Path) -> None:
    """Let SQLite read the whole file, under a watchdog: a crafted b-tree can be endless."""
    seconds = 30.0 + path.stat().st_size / CHECK_BYTES_PER_SECOND
    watchdog = threading.Timer(seconds, connection.interrupt)
    watchdog.daemon = True
    watchdog.start()
    try:
        rows = connection.execute(CHECK_INTEGRITY).fetchall()
    except (apsw.InterruptError, apsw.CorruptError, UnicodeDecodeError) as error:
        raise _corrupt(path, str(error)) from error
    finally:
        watchdog.cancel()
    if rows != [("ok",)]:
        raise _corrupt(path, str(rows[0][0]))


def _corrupt(path: Path, finding: str) -> FormatError:
    return FormatError(f"{path} is damaged or was tampered with: {finding}; restore it from a copy", ErrorKind.CORRUPT)


def close_doors(connection: apsw.Connection, change_set: bool) -> None:
    """Install the authorizer: from here on only rows of the known tables can be read or written."""
    connection.limit(apsw.SQLITE_LIMIT_ATTACHED, 0)
    tables = {name for kind, name, _, _ in _expected_schema() if kind == "table"} | {""}
    schemas = {"main", "staged"} if change_set else {"main"}
    readable = tables | {"json_each"}  # a function in FROM: the values of a JSON text that we bind
    allowed = _READS | _WRITES

    def authorize(op: int, first: str | None, second: str | None, schema: str | None, _: str | None) -> int:
        if op not in allowed:  # the number of pages is asked for between two sessions
            is_harmless = op == apsw.SQLITE_PRAGMA and first == "page_count" and second is None
            return apsw.SQLITE_OK if is_harmless else apsw.SQLITE_DENY
        if op in _WRITES or (op == apsw.SQLITE_READ and schema in ("main", "staged")):
            known = tables if op in _WRITES else readable
            return apsw.SQLITE_OK if first in known and schema in schemas else apsw.SQLITE_DENY
        return apsw.SQLITE_OK

    connection.authorizer = authorize


class OpenDoors:
    """A block for one statement about the file as a whole: VACUUM attaches a database, and pragmas are refused else.

    Whatever an interrupt falls into, the doors are closed when the block is gone.
    """

    _connection: apsw.Connection | None = None  # where an interrupt comes into `__init__`

    def __init__(self, connection: apsw.Connection) -> None:
        self._authorizer = connection.authorizer
        self._limit = connection.limit(apsw.SQLITE_LIMIT_ATTACHED)
        self._connection = connection

    def __enter__(self) -> None:
        assert self._connection is not None  # one block an object
        try:
            self._connection.limit(apsw.SQLITE_LIMIT_ATTACHED, ATTACHED_BY_VACUUM)
            self._connection.authorizer = None
        except BaseException:
            self._close()
            raise

    def __exit__(self, *_: object) -> None:
        try:
            self._close()
        finally:
            self._close()  # again, should an interrupt have come before the first or into it

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.authorizer = self._authorizer
            self._connection.limit(apsw.SQLITE_LIMIT_ATTACHED, self._limit)
            self._connection = None

    def __del__(self) -> None:
        self._close()


# -- files that passed ---------------------------------------------------------------------------------------------

WIDTH = 80  # bytes of a note, padded: it is overwritten in place, since ext4 flushes a file that is truncated first


def _note(path: Path, digest: str | None) -> tuple[str, str]:
    """Where a file is noted, and what the note says of the file as it is now."""
    folder = os.path.join(platformdirs.user_cache_dir("icelite"), "known")
    if digest is not None:
        return os.path.join(folder, digest), digest
    real = os.path.realpath(path)
    status = os.stat(real)
    key = hashlib.sha256(real.encode()).hexdigest()[:32]
    return os.path.join(folder, key), f"{status.st_size} {status.st_mtime_ns} {status.st_ino}"


def is_known(path: Path, digest: str | None) -> bool:
    """Whether the file is as it was when it was last noted; with a digest, whether any file with that one was."""
    try:
        place, stamp = _note(path, digest)
        with open(place, "rb", buffering=0) as file:
            return file.read(WIDTH + 1) == _padded(stamp)
    except OSError:  # not noted, or no cache directory: the file is checked
        return False


def remember(path: Path, digest: str | None = None) -> None:
    """Note that icelite wrote or checked the file as it is now, or any file with this digest, on this machine."""
    try:
        place, stamp = _note(path, digest)
        try:
            _write(place, stamp)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(place), exist_ok=True)
            _write(place, stamp)
    except OSError:  # no writable cache directory: the next opening checks the file again
        return


def _write(place: str, stamp: str) -> None:
    file = os.open(place, os.O_WRONLY | os.O_CREAT, 0o666)
    try:
        os.write(file, _padded(stamp))
    finally:
        os.close(file)


def _padded(stamp: str) -> bytes:
    return stamp.ljust(WIDTH).encode()


# -- reading what was not checked ----------------------------------------------------------------------------------

SELECT_TABLES = "SELECT name, sql FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite!_%' ESCAPE '!'"
SELECT_COLUMNS = 'SELECT name, lower(type), "notnull" OR pk FROM pragma_table_xinfo(?)'
REFUSE = "icelite_refuse_row"


def hold_rules(connection: apsw.Connection, name: str) -> None:
    """Let a connection read tables through the rules of the schema.

    Parameters
    ----------
    connection
        Hardened; its schema may still be unchecked, since nothing is read here.
    name
        How messages call the catalog.
    """

    def refuse(*table: object) -> None:
        raise FormatError(
            f"{name!r} is damaged or was tampered with: a row of its table {table[0]} breaks the rules of the format;"
            " restore it from a copy",
            ErrorKind.CORRUPT,
        )

    connection.create_scalar_function(REFUSE, refuse, 1)
    for view in _views():
        connection.execute(view)


@cache
def _views() -> tuple[str, ...]:
    connection = apsw.Connection(":memory:")
    connection.execute(schema_text())
    found = []
    for table, sql in connection.execute(SELECT_TABLES).fetchall():
        columns, rules = [], []
        for column, kind, required in connection.execute(SELECT_COLUMNS, (table,)).fetchall():
            columns.append(str(column))
            rule = f"typeof({column}) = '{kind}'"
            rules.append(rule if required else f"({column} IS NULL OR {rule})")
        rules += [f"coalesce({rule}, 1)" for rule in _checks(str(sql))]  # NULL passes, as in a CHECK
        found.append(
            f"CREATE TEMP VIEW {table} AS SELECT {', '.join(columns)} FROM main.{table}"
            f" WHERE CASE WHEN {' AND '.join(rules)} THEN 1 ELSE {REFUSE}('{table}') END"
        )
    connection.close()
    return tuple(found)


def _checks(sql: str) -> Iterator[str]:
    """The conditions of a table's CHECK clauses, in their parentheses; a schema has no quotes that could hide one."""
    bare = re.sub(r"--[^\n]*", "", sql)
    for clause in re.finditer(r"\bCHECK\s*(?=\()", bare):
        depth = 0
        for stop in range(clause.end(), len(bare)):
            depth += (bare[stop] == "(") - (bare[stop] == ")")
            if depth == 0:
                yield bare[clause.end() : stop + 1]
                break
