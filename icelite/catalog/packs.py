"""Native objects as the references see them: how much of each is needed, and moving what is needed elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from icelite.catalog.database import Transaction

_EXTENTS = """
SELECT DISTINCT location_id, offset, length FROM chunk_ref
WHERE location_id IN (SELECT id FROM location WHERE kind = 1)
"""
SELECT_EXTENTS = _EXTENTS + "ORDER BY location_id, offset"
SELECT_PACKS = f"""
SELECT l.id, l.path, coalesce(l.size, 0), coalesce(sum(r.length), 0)
FROM location l LEFT JOIN ({_EXTENTS}) r ON r.location_id = l.id WHERE l.kind = 1 GROUP BY l.id
"""
SELECT_NATIVE_REFS = """
SELECT node_id, chunk, seq, location_id, offset, length FROM chunk_ref
WHERE location_id IN (SELECT id FROM location WHERE kind = 1)
"""
UPDATE_REF = "UPDATE chunk_ref SET location_id = ?1, offset = ?2 WHERE node_id = ?3 AND chunk = ?4 AND seq = ?5"


@dataclass(frozen=True, slots=True)
class Pack:
    """A native object: its bytes, and how many of them some reference needs."""

    location_id: int
    key: str
    size: int
    live: int


def list_packs(txn: Transaction) -> list[Pack]:
    """Every native object that the catalog names."""
    return [Pack(*row) for row in txn.rows(SELECT_PACKS)]


def list_extents(txn: Transaction) -> list[tuple[int, int, int]]:
    """Location, offset and length in bytes of every part of an object that a reference names, in this order."""
    return [(location_id, offset, length) for location_id, offset, length in txn.rows(SELECT_EXTENTS)]


def move_extents(txn: Transaction, moved: Mapping[tuple[int, int, int], tuple[int, int]]) -> None:
    """Point references at the new location and offset of the same bytes, in whatever snapshot they are."""
    changed = [
        (*moved[location_id, offset, length], node_id, chunk, seq)
        for node_id, chunk, seq, location_id, offset, length in txn.rows(SELECT_NATIVE_REFS)
        if (location_id, offset, length) in moved
    ]
    txn.run_many(UPDATE_REF, changed)
