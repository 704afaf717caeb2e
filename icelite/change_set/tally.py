"""What the staged references of one array add up to: for the sum in `change`, and for `usage`.

A commit needs both of every array, by the catalog's numbers of locations, which are known only then. Reading staged
rows again takes a third of the time of writing them, so blocks are added up while they are staged; where rows were
replaced or taken back since, the count does not agree, and they are read again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from icelite.catalog.checksums import SUM_MASK, Ints, hash_extents, location_factors
from icelite.catalog.chunks import ChunkColumns

BLOCK_ROWS = 256  # fewer are read again: that costs less than adding them up here


class Tally:
    """Number of rows and sum of their hashes, by staged location; location 0 stands for deleted chunks."""

    def __init__(self) -> None:
        self.rows = 0
        self._counts = np.zeros(1, np.int64)
        self._sums = np.zeros(1, np.uint64)

    def add(self, chunks: Sequence[str], location_ids: Ints, offsets: Ints, lengths: Ints) -> None:
        """Add a block of references, given as aligned columns."""
        ids = np.asarray(location_ids, np.int64)
        missing = int(ids.max(initial=0)) + 1 - len(self._counts)
        if missing > 0:
            missing = max(missing, len(self._counts))
            self._counts = np.concatenate((self._counts, np.zeros(missing, np.int64)))
            self._sums = np.concatenate((self._sums, np.zeros(missing, np.uint64)))
        np.add.at(self._counts, ids, 1)
        np.add.at(self._sums, ids, hash_extents(chunks, offsets, lengths))
        self.rows += len(chunks)

    def refs_sum(self, catalog_ids: npt.NDArray[np.int64]) -> int:
        """The sum for ``change.refs_sum``; ``catalog_ids`` has the number in the catalog of each staged location."""
        used = np.flatnonzero(self._counts)
        total = (self._sums[used] * location_factors(catalog_ids[used])).sum(dtype=np.uint64)
        return int(total) & SUM_MASK

    def count(self, staged_id: int) -> int:
        """The number of references to a staged location."""
        return int(self._counts[staged_id]) if staged_id < len(self._counts) else 0


def tally_of(blocks: Iterable[ChunkColumns]) -> Tally:
    """The tally of references that are read again."""
    tally = Tally()
    for block in blocks:
        tally.add(*block)
    return tally
