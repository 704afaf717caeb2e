"""The steps that a group has along a dimension: their labels, and which file has which."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd  # type: ignore[import-untyped]

from icelite.archive.extents import Steps, count_steps, find_extents, is_covered
from icelite.archive.holdings import Holdings, StoredVariables
from icelite.archive.labels import find_values
from icelite.archive.placing import HeldFile, StoredSteps
from icelite.archive.scan import ScannedFile

if TYPE_CHECKING:
    from icelite.session import Session


@dataclass(slots=True)
class GroupSteps:
    """The steps of a group that a session sees.

    Attributes
    ----------
    extents
        The steps of each file, by location path.
    labels
        Of the steps; None where there are none, or they have no order.
    """

    session: Session
    holdings: Holdings
    stored: StoredVariables
    dim: str
    extents: dict[str, Steps]
    labels: Any = None

    @property
    def length(self) -> int:
        """The number of steps."""
        return count_steps(self.stored.arrays, self.dim)

    def along(self) -> StoredSteps:
        """The steps as files are placed among them."""
        files = []
        for path, steps in sorted(self.extents.items(), key=lambda item: item[1]):
            places = self.holdings.referenced.get(path)
            if places:
                newest = max((place.modified_at or 0 for place in places), default=0)
                files.append(HeldFile(self.session.access.url(places[0]), steps, newest or None))
        return StoredSteps(self.length, self.labels, files)

    def is_certain(self, path: str) -> bool:
        """Whether a file's steps are known: steps beside them that no file has could be its too, unwritten ones."""
        if path in self.holdings.recorded.margins:
            return True
        start, stop = self.extents[path]
        covered = all(is_covered(step, self.extents.values()) for step in (start - 1, stop) if 0 <= step < self.length)
        return covered or (self.holdings.recorded.certain and bool(self.holdings.recorded.others))

    def find_steps(self, path: str, file: ScannedFile) -> Steps | None:
        """The stored steps of a file that is added anew; None where that is not certain."""
        known = self.extents.get(path)
        if known is not None and self.is_certain(path):
            return known
        labels = find_values(file.dataset, self.dim)
        if labels is None or self.labels is None:
            return None
        at = np.sort(pd.Index(self.labels).get_indexer(labels)) if pd.Index(self.labels).is_unique else np.empty(0)
        at = at[at >= 0]
        if not len(at) or (np.diff(at) != 1).any():
            return None
        found = int(at[0]), int(at[-1]) + 1
        return found if known is None or (found[0] <= known[0] and known[1] <= found[1]) else None


def read_steps(session: Session, holdings: Holdings, stored: StoredVariables, dim: str, *, labels: bool) -> GroupSteps:
    """The steps of a group.

    Parameters
    ----------
    labels
        Whether to read the labels too.

    Raises
    ------
    StorageError
        The labels are in a file that cannot be read.
    """
    extents = find_extents(session, stored.path, stored.arrays, dim)
    for path, (before, count) in holdings.recorded.margins.items():
        if path in extents:
            start = extents[path][0] - before
            extents[path] = start, start + count
    return GroupSteps(session, holdings, stored, dim, extents, stored.find_labels(dim) if labels else None)
