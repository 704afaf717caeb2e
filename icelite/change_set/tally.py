"""What the staged references of one array add up to: for the sum in `change`, and for `usage`.

A commit needs both of every array, by the catalog's numbers of locations, which are known only then. Reading staged
rows again takes a third of the time of writing them, so blocks are added up while they are staged; where rows were
replaced or taken back since, the count does not agree, and they are read again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from icelite.catalog import staging
from icelite.catalog.checksums import MASK, SUM_MASK, Ints, extent_hash, hash_extents, location_factors
from icelite.catalog.database import Row, Transaction

LocationIds: TypeAlias = Sequence[int | None] | npt.NDArray[np.int64]

BLOCK_ROWS = 256  # fewer are read again: that costs less than adding them up here


class Tally:
    """Number of rows and sum of their hashes, by staged location; location 0 stands for deleted chunks."""

    def __init__(self) -> None:
        self.rows = 0
        self._counts = np.zeros(1, np.int64)
        self._sums = np.zeros(1, np.uint64)

    def add(self, chunks: Sequence[str], location_ids: LocationIds, offsets: Ints, lengths: Ints) -> None:
        """Add a block of references, given as aligned columns; location None or 0 deletes a chunk."""
        numbered = location_ids if isinstance(location_ids, np.ndarray) else [number or 0 for number in location_ids]
        ids = np.asarray(numbered, np.int64)
        self._reserve(int(ids.max(initial=0)))
        np.add.at(self._counts, ids, 1)
        np.add.at(self._sums, ids, hash_extents(chunks, offsets, lengths))
        self.rows += len(chunks)

    def _reserve(self, number: int) -> None:
        missing = number + 1 - len(self._counts)
        if missing > 0:
            missing = max(missing, len(self._counts))
            self._counts = np.concatenate((self._counts, np.zeros(missing, np.int64)))
            self._sums = np.concatenate((self._sums, np.zeros(missing, np.uint64)))

    def refs_sum(self, catalog_ids: npt.NDArray[np.int64]) -> int:
        """The sum for ``change.refs_sum``; ``catalog_ids`` has the number in the catalog of each staged location."""
        used = np.flatnonzero(self._counts)
        total = (self._sums[used] * location_factors(catalog_ids[used])).sum(dtype=np.uint64)
        return int(total) & SUM_MASK

    def count_into(self, counts: npt.NDArray[np.int64]) -> None:
        """Add the number of references to each staged location to ``counts``, which has a place for each."""
        used = self._counts[: len(counts)]  # the rest was reserved, and is zero
        counts[: len(used)] += used

    def add_rows(self, rows: Iterable[Row]) -> None:
        """Add a few references, one by one: chunk, staged location or None, offset and length."""
        for chunk, location_id, offset, length in rows:
            number = location_id or 0
            self._reserve(number)
            self._counts[number] += 1
            self._sums[number] = (int(self._sums[number]) + extent_hash(chunk, offset, length)) & MASK
            self.rows += 1


def read_tally(txn: Transaction, node_id: int, rows: int) -> Tally:
    """The tally of the ``rows`` references that are staged of an array, read again."""
    tally = Tally()
    if rows < BLOCK_ROWS:
        tally.add_rows(staging.list_refs(txn, node_id))
    else:
        for block in staging.scan_refs(txn, node_id):
            tally.add(*block)
    return tally
