"""Values of rows, checked as they are read: they may come from a stranger.

STRICT, CHECK and NOT NULL bind who writes through SQLite, not who writes the bytes of the file, and nobody looks at all
of a catalog that is opened with ``check="never"`` or read by ranges. So every function that reads a row checks its
types here before it uses it, and the texts that are names, paths or JSON besides.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from itertools import product
from types import NoneType
from typing import Any, TypeVar

from icelite.budget import MAX_DOCUMENT_CHARACTERS, MAX_NAME_CHARACTERS, over_budget
from icelite.errors import ErrorKind, FormatError, shown
from icelite.keys import find_path_fault

K = TypeVar("K")
Types = Collection[tuple[type, ...]]

OPTIONAL_INT = (int, NoneType)
OPTIONAL_TEXT = (str, NoneType)


def types(*columns: type | tuple[type, ...]) -> Types:
    """The types that the values of a row may have, column by column, for `check_types`."""
    return frozenset(product(*(column if isinstance(column, tuple) else (column,) for column in columns)))


def check_types(row: tuple[Any, ...], allowed: Types, what: str) -> None:
    """Refuse a row whose values are not of the types of their columns; ``what`` names it, for the error.

    Raises
    ------
    FormatError
        ``corrupt``.
    """
    if tuple(map(type, row)) not in allowed:
        raise damaged(what, f"its values are {', '.join(type(value).__name__ for value in row)}")


def check_number(value: object, what: str, least: int = 0) -> int:
    """The value of an INTEGER column, which is at least ``least``; raises as `check_types`."""
    if type(value) is not int or value < least:
        raise damaged(what, f"{shown(value)} is not a number from {least}")
    return value


def check_order(key: K, last: object, what: str) -> K:
    """The key of the last row that was read so far, which is behind the one where reading went on.

    Where the rows of a damaged file are out of order, paging through them would never end.

    Raises
    ------
    FormatError
        ``corrupt``.
    """
    try:
        is_behind = key > last  # type: ignore[operator]
    except TypeError:  # numbers, then texts
        is_behind = False
    if not is_behind:
        raise damaged(what, f"its rows are out of order at {shown(key)}")
    return key


def check_text(value: object, what: str, limit: int = MAX_DOCUMENT_CHARACTERS) -> str:
    """The value of a TEXT column.

    Raises
    ------
    FormatError
        ``corrupt`` for another type; ``over-budget`` above ``limit`` characters.
    """
    if type(value) is not str:
        raise damaged(what, f"{shown(value)} is a {type(value).__name__}, not a text")
    if len(value) > limit:
        raise over_budget(what, f"a text of {len(value)} characters", f"{limit}")
    return value


def check_name(value: object, what: str) -> str:
    """The name of a branch, tag, container or setting: one line that can be printed.

    Raises
    ------
    FormatError
        ``corrupt``, ``over-budget``.
    """
    name = check_text(value, what, MAX_NAME_CHARACTERS)
    if not name or not name.isprintable():
        raise damaged(what, f"the name {shown(name)} is empty or cannot be printed")
    return name


def check_node_path(value: object) -> str:
    """The path of a node.

    Raises
    ------
    FormatError
        ``corrupt`` for one that `icelite.keys.check_path` would refuse.
    """
    fault = find_path_fault(value)
    if fault is not None:
        raise damaged("a node", f"its path {shown(value)} {fault}")
    return str(value)


def read_json(text: str, what: str) -> Any:
    """The value in a JSON text; ``what`` names its row, for the error.

    Raises
    ------
    FormatError
        ``corrupt``; ``over-budget``.
    """
    if type(text) is not str:
        raise damaged(what, f"a {type(text).__name__}, not a text")
    if len(text) > MAX_DOCUMENT_CHARACTERS:
        raise over_budget(what, f"a text of {len(text)} characters", f"{MAX_DOCUMENT_CHARACTERS}")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise damaged(what, f"not JSON: {error}") from error


def read_json_object(text: str, what: str) -> dict[str, Any]:
    """The JSON object in a text; as `read_json`."""
    value = read_json(text, what)
    if not isinstance(value, dict):
        raise damaged(what, f"a JSON {type(value).__name__}, not an object")
    return value


def damaged(what: str, finding: str) -> FormatError:
    """The error for a row that holds what icelite never wrote."""
    return FormatError(f"{what} of the catalog is damaged: {finding}; restore the file from a copy", ErrorKind.CORRUPT)
