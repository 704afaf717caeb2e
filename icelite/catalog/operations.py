"""The `operation` table: the log of every mutation, whose ids also number the snapshots."""

from __future__ import annotations

import json
import time
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

from icelite import types as values
from icelite.catalog.checksums import row_crc
from icelite.catalog.database import Transaction
from icelite.catalog.values import check_order, check_types, damaged, read_json_object, types
from icelite.errors import shown
from icelite.types import RepoStatus

SELECT_LAST = "SELECT coalesce(max(id), 0) FROM operation"
INSERT_OPERATION = "INSERT INTO operation (id, done_at, kind, detail) VALUES (?, ?, ?, ?)"
SEAL_OPERATION = "INSERT INTO seal (id, operation) VALUES (?, ?)"
SELECT_OPERATION = "SELECT id, done_at, kind, detail FROM operation WHERE id = ?"
SELECT_OPERATIONS = "SELECT id, done_at, kind, detail FROM operation WHERE id < ?1 ORDER BY id DESC LIMIT ?2"

OPERATION = types(int, int, str, str)
END = 1 << 62  # above every id

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def now() -> int:
    """The time as the catalog writes it: microseconds since 1970, UTC."""
    return time.time_ns() // 1000


def to_datetime(microseconds: int) -> datetime:
    """A stored time as a UTC datetime, exact."""
    return _EPOCH + timedelta(0, 0, microseconds)


def to_microseconds(moment: datetime) -> int:
    """A timezone-aware datetime as the catalog writes it, exact."""
    return (moment - _EPOCH) // timedelta(microseconds=1)


def log_operation(
    txn: Transaction, kind: str, detail: dict[str, Any], done_at: int | None = None, *, with_snapshot: bool = False
) -> int:
    """Append one operation; its id, greater than every one before.

    One that comes ``with_snapshot`` is sealed with that, in the one row of `seal` that both have.
    """
    last = txn.row(SELECT_LAST)
    row = (1 if last is None else last[0] + 1, now() if done_at is None else done_at, kind, json.dumps(detail))
    txn.run(INSERT_OPERATION, row)
    if not with_snapshot:
        txn.run(SEAL_OPERATION, (row[0], row_crc(*row)))
    return row[0]


def operation_crc(txn: Transaction, number: int) -> int | None:
    """The checksum of an operation's row; None where there is none."""
    row = txn.row(SELECT_OPERATION, (number,))
    return None if row is None else row_crc(*row)


def list_operations(txn: Transaction, before: int, limit: int) -> tuple[list[values.Update], int]:
    """At most ``limit`` operations with ids below ``before`` (`END` for all), newest first; the last one's id.

    Raises
    ------
    FormatError
        ``corrupt`` for a row that does not say what its kind needs.
    """
    updates: list[values.Update] = []
    last = before
    for row in txn.rows(SELECT_OPERATIONS, (before, limit)):
        check_types(row, OPERATION, "an operation")
        check_order(last, row[0], "the table operation")
        last, done_at, kind, detail = row
        try:
            updates.append(
                values.Update(_kind(kind, read_json_object(detail, f"operation {last}")), to_datetime(done_at))
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise damaged(f"operation {last}", shown(detail)) from error
    return updates, last


def _kind(name: str, detail: dict[str, Any]) -> values.UpdateType:
    if name == "RepoStatusChanged":
        return values.UpdateType.RepoStatusChanged(RepoStatus.from_dict(detail["status"]))
    kind = _kinds().get(name)
    if kind is None:
        return values.UpdateType.OtherUpdate(name, detail)
    return kind(**{field.name: detail[field.name] for field in fields(kind)})  # type: ignore[arg-type]


@cache
def _kinds() -> dict[str, type[values.UpdateType]]:
    kinds = values.UpdateType.__subclasses__()
    return {kind.__name__: kind for kind in kinds if kind is not values.UpdateType.OtherUpdate}
