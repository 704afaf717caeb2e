"""Grid positions as the catalog joins them, one a line, read as what may come from a stranger."""

from __future__ import annotations

from icelite.catalog.json_column import damaged


def split_positions(text: str, what: str) -> list[str]:
    """The grid positions in a text; ``what`` names its row, for the error.

    Raises
    ------
    FormatError
        ``corrupt`` when one is not numbers with slashes between them.
    """
    bare = not text.encode().translate(None, b"0123456789/\n")  # a regular expression would take 20 times as long
    if not bare or text[:1] == "/" or text[-1:] == "/" or any(fault in text for fault in ("//", "/\n", "\n/")):
        raise damaged(what, "a grid position is not numbers with slashes between them")
    return text.split("\n")
