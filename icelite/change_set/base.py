"""`BaseSnapshot`: the snapshot under uncommitted changes, and what the nodes and the chunks over it share."""

from __future__ import annotations

import os
import threading
import weakref

from icelite.catalog import snapshots
from icelite.catalog.database import Catalog
from icelite.errors import ErrorKind, SnapshotNotFoundError, StorageError
from icelite.types import View

_alive: weakref.WeakSet[BaseSnapshot] = weakref.WeakSet()


def _renew_locks() -> None:
    """In a child of os.fork(): other threads of the parent may have held them, and are not here to let go."""
    for base in _alive:
        base.lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)


class BaseSnapshot:
    """The snapshot that a change set lies on.

    Attributes
    ----------
    catalog, view
        Where it is, and how queries see it.
    lock
        Held while the change set changes; whoever also opens a door of the catalog takes this lock first.
    writes
        How often something was changed since the change set was made, or loaded.
    """

    def __init__(self, catalog: Catalog, view: View) -> None:
        self.catalog = catalog
        self.lock = threading.RLock()
        self.writes = 0
        _alive.add(self)
        self.stand_on(view)

    def stand_on(self, view: View) -> None:
        """Be another snapshot of the same catalog."""
        self.view = view
        self.seen_version = -1  # of the catalog, when the snapshot was last found in it
        self._id: str | None = None  # when it was last looked for

    def check_kept(self) -> None:
        """Refuse what was just read, if the snapshot was released meanwhile: its rows may have been collected.

        Raises
        ------
        SnapshotNotFoundError, StorageError
            ``snapshot-not-found``; ``catalog-replaced`` when another history has taken the place of this one.
        """
        version = self.catalog.version
        if version == self.seen_version:
            return
        with self.catalog.read() as txn:
            found = snapshots.find_id(txn, self.view.seq)
        if found is None:
            raise SnapshotNotFoundError(
                "the snapshot that this session reads has expired since it was opened; open another session",
                ErrorKind.SNAPSHOT_NOT_FOUND,
            )
        if self._id not in (None, found):
            raise StorageError(
                f"{self.catalog.storage.name} was overwritten with another history while it was open: snapshot"
                f" {self._id} is not in it; open it again",
                ErrorKind.CATALOG_REPLACED,
            )
        self._id = found
        self.seen_version = version
