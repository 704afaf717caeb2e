"""A repository as values: what it allows, its snapshots, and what those see.

A snapshot id is 20 characters of Crockford base-32 (96 random bits, as Icechunk writes them).
A `View` is the whole identity of a snapshot for reading: its segment and its number (docs/format.md).
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import IntEnum, StrEnum
from typing import Any

from icelite.errors import ErrorKind, InvalidInputError, shown

CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
INITIAL_SNAPSHOT_ID = "1CECHNKREP0F1RSTCMT0"  # the same in every repository, as in Icechunk
_SNAPSHOT_ID = re.compile(f"[{CROCKFORD}]{{20}}")


class SpecVersion(IntEnum):
    """Version of the file format: ``user_version`` of the catalog."""

    v1 = 1

    @staticmethod
    def current() -> SpecVersion:
        """The version that this release writes; it opens no other."""
        return SpecVersion.v1


class RepoAvailability(StrEnum):
    """The two answers to whether a repository may be changed."""

    online = "online"
    read_only = "read_only"


@dataclass(frozen=True, slots=True)
class RepoStatus:
    """The status of a repository: whether it may be changed, since when, and why not.

    Attributes
    ----------
    set_at
        When it was set, UTC, microseconds; None: when `Repository.set_status` is called.

    Raises
    ------
    InvalidInputError
        ``invalid-argument`` for a time without zone, or a value of the wrong type.
    """

    availability: RepoAvailability
    set_at: datetime | None = None
    limited_availability_reason: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.availability, RepoAvailability):
            raise InvalidInputError(
                f"availability {self.availability!r} must be RepoAvailability.online or RepoAvailability.read_only",
                ErrorKind.INVALID_ARGUMENT,
            )
        if self.set_at is not None and self.set_at.tzinfo is None:
            raise InvalidInputError(
                f"set_at={self.set_at!r} needs a time zone: datetime(2024, 8, 1, tzinfo=UTC)",
                ErrorKind.INVALID_ARGUMENT,
            )
        if not isinstance(self.limited_availability_reason, str | None):
            raise InvalidInputError(
                f"limited_availability_reason {self.limited_availability_reason!r} is not a str",
                ErrorKind.INVALID_ARGUMENT,
            )

    def to_dict(self) -> dict[str, str | None]:
        """JSON-able: the time as ISO 8601 text in UTC."""
        return {
            "availability": self.availability.value,
            "set_at": None if self.set_at is None else self.set_at.astimezone(UTC).isoformat(),
            "limited_availability_reason": self.limited_availability_reason,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RepoStatus:
        """A status as `to_dict` wrote it.

        Raises
        ------
        KeyError, TypeError, ValueError
            For anything else.
        """
        set_at = values["set_at"]
        return cls(
            RepoAvailability(values["availability"]),
            None if set_at is None else datetime.fromisoformat(set_at),
            values["limited_availability_reason"],
        )


@dataclass(frozen=True, slots=True)
class FeatureFlag:
    """One thing that a repository allows or forbids.

    Attributes
    ----------
    id
        Number of the flag, as in Icechunk.
    setting
        What was set for this repository; None: ``default_enabled`` counts.
    """

    id: int
    name: str
    default_enabled: bool
    setting: bool | None = None

    @property
    def enabled(self) -> bool:
        """Whether it is allowed now."""
        return self.default_enabled if self.setting is None else self.setting


# -- snapshots ---------------------------------------------------------------------------------------------------------


class SessionMode(StrEnum):
    """The kinds of session, by what they may do."""

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
