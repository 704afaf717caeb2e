"""The rules of the schema, held row by row while a catalog is read that no integrity check has read before.

STRICT, NOT NULL and CHECK bind only who writes. So a view in front of each table, of its name, holds them for who
reads: SQLite looks for a name among temporary views first, and reads the table through its keys as before.

Invariants
----------
- The views come from the schema's own text, so a rule is written once.
- A row that breaks a rule is an error, never left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache

import apsw

from icelite.catalog import checks
from icelite.errors import ErrorKind, FormatError

SELECT_TABLES = "SELECT name, sql FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite!_%' ESCAPE '!'"
SELECT_COLUMNS = 'SELECT name, lower(type), "notnull" OR pk FROM pragma_table_xinfo(?)'
REFUSE = "icelite_refuse_row"


def guard(connection: apsw.Connection, name: str) -> None:
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
    connection.execute(checks.schema_text())
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
