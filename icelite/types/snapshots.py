"""Snapshots as values: their ids, what they say of themselves, and what they see.

A snapshot id is 20 characters of Crockford base-32 (96 random bits, as Icechunk writes them).
A `View` is the whole identity of a snapshot for reading: its segment and its number (docs/format.md).
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from icelite.errors import ErrorKind, InvalidInputError, shown

CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
INITIAL_SNAPSHOT_ID = "1CECHNKREP0F1RSTCMT0"  # the same in every repository, as in Icechunk
_SNAPSHOT_ID = re.compile(f"[{CROCKFORD}]{{20}}")


class SessionMode(StrEnum):
    """What a session may do."""

    readonly = "readonly"
    writable = "writable"
    rearrange = "rearrange"


@dataclass(frozen=True, slots=True)
class View:
    """A snapshot as the queries see it.

    Attributes
    ----------
    bounds
        Its lineage: for each segment it sees, the greatest ``seq`` it sees of it; ``seg`` itself included.
    """

    seg: int
    seq: int
    bounds: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class SnapshotInfo:
    """One snapshot of the history.

    Attributes
    ----------
    id, parent_id
        20-character ids; the initial snapshot has no parent.
    written_at
        When it was committed, UTC, microseconds.
    """

    id: str
    parent_id: str | None
    written_at: datetime
    message: str
    metadata: dict[str, Any]


def new_snapshot_id() -> str:
    """A fresh random snapshot id; as text 96 bits end in a character with one of them and four zeros."""
    random = secrets.token_bytes(20)
    return "".join(CROCKFORD[byte % 32] for byte in random[:19]) + "0G"[random[19] % 2]


def is_snapshot_id(text: object) -> bool:
    """Whether it is a text of 20 characters of Crockford base-32."""
    return isinstance(text, str) and _SNAPSHOT_ID.fullmatch(text) is not None


def parse_snapshot_id(text: object) -> str:
    """Check the form of a snapshot id and return it.

    Raises
    ------
    InvalidInputError
        ``invalid-snapshot-id`` when it is not 20 characters of Crockford base-32.
    """
    if not isinstance(text, str) or not is_snapshot_id(text):
        raise InvalidInputError(
            f"snapshot id {shown(text)} is not 20 characters of Crockford base-32, such as {INITIAL_SNAPSHOT_ID};"
            " ids come from commit(), ancestry() and lookup_branch()",
            ErrorKind.INVALID_SNAPSHOT_ID,
        )
    return text
