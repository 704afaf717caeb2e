"""Keep rules: which old snapshots of a line of history stay when the others are released."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from datetime import datetime

from icelite.catalog.operations import to_datetime
from icelite.catalog.snapshots import Ancestor
from icelite.errors import ErrorKind, InvalidInputError

# What the snapshots of one period have in common, by the name of the rule; in UTC.
_PERIODS: Mapping[str, Callable[[datetime], Hashable]] = {
    "daily": lambda moment: moment.date(),
    "weekly": lambda moment: moment.isocalendar()[:2],
    "monthly": lambda moment: (moment.year, moment.month),
    "yearly": lambda moment: moment.year,
}


@dataclass(frozen=True, slots=True)
class KeepRules:
    """How many old snapshots stay: so many of the newest, and the newest one of so many days, weeks, months, years.

    Only periods that have a snapshot count.
    """

    last: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            count: object = getattr(self, field.name)
            if not isinstance(count, int) or isinstance(count, bool) or count < 0:
                raise InvalidInputError(
                    f"keep_{field.name}={count!r} must be a number of snapshots, 0 or more", ErrorKind.INVALID_ARGUMENT
                )

    def __bool__(self) -> bool:
        return self != KeepRules()

    def list_kept(self, history: Mapping[int, Ancestor], tips: Iterable[int], moment: int) -> set[int]:
        """The numbers of the snapshots before ``moment`` (microseconds) that stay, of each tip's line by itself."""
        return {seq for tip in set(tips) for seq in self._spare(_line(history, tip, moment))}

    def _spare(self, line: Iterable[tuple[int, int]]) -> Iterator[int]:
        periods: dict[str, set[Hashable]] = {name: set() for name in _PERIODS if getattr(self, name)}
        for count, (seq, written_at) in enumerate(line, 1):
            is_kept = count <= self.last
            for name, found in periods.items():
                period = _PERIODS[name](to_datetime(written_at))
                if period not in found and len(found) < getattr(self, name):
                    found.add(period)
                    is_kept = True
            if is_kept:
                yield seq
            elif count > self.last and all(len(found) == getattr(self, name) for name, found in periods.items()):
                return


def _line(history: Mapping[int, Ancestor], tip: int, moment: int) -> Iterator[tuple[int, int]]:
    """Number and time of the snapshots from a tip back to the first that are older than a moment, newest first."""
    seq: int | None = tip
    while seq is not None:
        found = history[seq]
        if found.written_at < moment:
            yield seq, found.written_at
        seq = found.parent_seq
