"""Native objects as the references see them: how much of each is needed, and moving what is needed elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from icelite.catalog.changes import add_to_sums
from icelite.catalog.checksums import ref_hash
from icelite.catalog.database import Transaction
from icelite.catalog.values import check_types, types
from icelite.objects import TRAILER_BYTES

_EXTENTS = """
SELECT DISTINCT location_id, offset, length FROM chunk_ref
WHERE location_id IN (SELECT id FROM location WHERE kind = 1)
"""
SELECT_EXTENTS = _EXTENTS + "ORDER BY location_id, offset"
SELECT_PACKS = f"""
SELECT l.id, l.path, coalesce(l.size, 0), coalesce(sum(r.length + {TRAILER_BYTES}), 0)
FROM location l LEFT JOIN ({_EXTENTS}) r ON r.location_id = l.id WHERE l.kind = 1 GROUP BY l.id
"""
SELECT_NATIVE_REFS = """
SELECT node_id, chunk, seq, location_id, offset, length FROM chunk_ref
WHERE location_id IN (SELECT id FROM location WHERE kind = 1)
"""
SELECT_NAMED = "SELECT 1 FROM location WHERE id = ? AND kind = 1"
UPDATE_REF = "UPDATE chunk_ref SET location_id = ?1, offset = ?2 WHERE node_id = ?3 AND chunk = ?4 AND seq = ?5"

PACK = types(int, str, int, int)
EXTENT = types(int, int, int)


@dataclass(frozen=True, slots=True)
class Pack:
    """A native object: its bytes, and how many of them some reference needs, trailers included."""

    location_id: int
    key: str
    size: int
    live: int


def list_packs(txn: Transaction) -> list[Pack]:
    """Every native object that the catalog names."""
    rows = txn.rows(SELECT_PACKS)
    for row in rows:
        check_types(row, PACK, "a native object")
    return [Pack(*row) for row in rows]


def list_extents(txn: Transaction) -> list[tuple[int, int, int]]:
    """Location, offset and length in bytes of every part of an object that a reference names, in this order."""
    rows = txn.rows(SELECT_EXTENTS)
    for row in rows:
        check_types(row, EXTENT, "a reference to a native object")
    return [(location_id, offset, length) for location_id, offset, length in rows]


def is_named(txn: Transaction, location_id: int) -> bool:
    """Whether there is a native object with this number."""
    return txn.row(SELECT_NAMED, (location_id,)) is not None


def move_extents(txn: Transaction, moved: Mapping[tuple[int, int, int], tuple[int, int]]) -> None:
    """Point references at the new location and offset of the same bytes, in whatever snapshot they are."""
    changed: list[tuple[int, int, int, str, int]] = []
    sums: dict[tuple[int, int], int] = {}
    for node_id, chunk, seq, location_id, offset, length in txn.rows(SELECT_NATIVE_REFS):
        place = moved.get((location_id, offset, length))
        if place is not None:
            changed.append((*place, node_id, chunk, seq))
            difference = ref_hash(chunk, *place, length) - ref_hash(chunk, location_id, offset, length)
            sums[seq, node_id] = sums.get((seq, node_id), 0) + difference
    txn.run_many(UPDATE_REF, changed)
    add_to_sums(txn, sums)
