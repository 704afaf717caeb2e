"""JSON texts in columns of the catalog, read as what may come from a stranger."""

from __future__ import annotations

import json
from typing import Any

from icelite.budget import MAX_DOCUMENT_CHARACTERS, over_budget
from icelite.errors import ErrorKind, FormatError


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
