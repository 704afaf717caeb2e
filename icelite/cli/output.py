"""What verbs have in common on the way out: JSON for scripts, tables and plain lines for people.

Text from a catalog is printed with its control characters escaped, so that it cannot play with a terminal.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from enum import Enum
from typing import Any

import click


def plain(value: Any) -> Any:
    """A value as JSON can hold it."""
    if isinstance(value, Enum):
        return value.name
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(plain(item) for item in value)
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        return [plain(item) for item in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return str(value)


def print_json(value: Any) -> None:
    """Print a value as JSON."""
    click.echo(json.dumps(plain(value), indent=2))


def line(text: str) -> None:
    """Print one line of text that may come from a catalog."""
    click.echo(printable(text))


def printable(text: str) -> str:
    """The text, its control characters escaped."""
    return "".join(mark if mark.isprintable() else repr(mark)[1:-1] for mark in text)


def table(heads: Sequence[str], rows: Iterable[Sequence[Any]], *, right: Iterable[str] = ()) -> None:
    """Print rows below headings; as wide as the terminal, or as they are where that is none."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console = Console(width=10_000)
    shown = Table(box=None, header_style="bold", pad_edge=False)
    for head in heads:
        numeric = head in set(right)
        shown.add_column(head, justify="right" if numeric else "left", no_wrap=numeric, overflow="fold")
    for row in rows:
        shown.add_row(*(Text(printable(f"{cell:,}" if isinstance(cell, int) else str(cell))) for cell in row))
    console.print(shown)


def size(count: int) -> str:
    """A number of bytes for people."""
    amount = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{count} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"
