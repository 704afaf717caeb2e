"""What a repository allows, as values: its status, its feature flags, and the version of its format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import IntEnum, StrEnum
from typing import Any

from icelite.errors import ErrorKind, InvalidInputError


class SpecVersion(IntEnum):
    """Version of the file format: ``user_version`` of the catalog."""

    v1 = 1

    @staticmethod
    def current() -> SpecVersion:
        """The version that this release writes; it opens no other."""
        return SpecVersion.v1


class RepoAvailability(StrEnum):
    """Whether a repository may be changed."""

    online = "online"
    read_only = "read_only"


@dataclass(frozen=True, slots=True)
class RepoStatus:
    """Whether a repository may be changed, since when, and why not.

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
