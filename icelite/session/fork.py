"""Forks: sessions that travel to other processes, write there, and come back to be merged.

A fork begins at what its session sees at that moment. What the session has not committed yet becomes a snapshot
that no branch has, which the forks stand on; the session itself goes on as before. A fork's bytes go where the
repository's bytes go, so that what is pickled is metadata and references.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

from icelite.catalog import snapshots
from icelite.catalog.database import Transaction
from icelite.catalog.permissions import check_online
from icelite.catalog.repeating import repeat_write
from icelite.change_set import absorb
from icelite.errors import ErrorKind, SessionStateError
from icelite.session.commits import Base
from icelite.types import View, new_snapshot_id

if TYPE_CHECKING:
    from icelite.session.session import Session


def new_identity() -> str:
    """What tells a session from every other one, in whatever process."""
    return uuid.uuid4().hex


def fork_base(session: Session) -> Base:
    """The snapshot that the forks of a session stand on: its own, or one of its uncommitted changes."""
    if session.changes.is_empty():
        return session._base
    snapshot_id = new_snapshot_id()
    with session.changes.lock:
        session.changes.flush_payloads()

        def write(txn: Transaction) -> View:
            check_online(txn)
            return session._write(txn, "NewDetachedSnapshot", None, snapshot_id, "Base of forks", {})

        view = repeat_write(session._catalog, write)
    return Base(snapshot_id, view)


def _check_bases(session: Session, forks: tuple[Any, ...]) -> None:
    """Refuse forks whose snapshot was collected: what they wrote cannot be told apart from it any more."""
    with session._catalog.read() as txn:
        gone = [fork for fork in forks if snapshots.find_seq(txn, fork.snapshot_id) is None]
    if gone:
        raise SessionStateError(
            f"the snapshot {gone[0].snapshot_id} that {gone[0]!r} stands on has expired and was collected meanwhile;"
            " its changes cannot be merged: write them again, and collect only what is older than every fork",
            ErrorKind.MERGE_FAILED,
        )


def merge_forks(session: Session, forks: tuple[Any, ...]) -> None:
    """Take over the changes of forks, in the order given.

    Raises
    ------
    SessionStateError
        ``merge-not-allowed`` for what is not a fork of this session; ``merge-failed``, also for a fork that was
        merged before.
    """
    for fork in forks:
        if session.identity not in getattr(fork, "origins", ()):
            raise SessionStateError(
                f"{fork!r} is not a fork of {session!r}; merge takes what fork() of the same session gave",
                ErrorKind.MERGE_NOT_ALLOWED,
            )
        if fork.identity in session.merged:
            raise SessionStateError(f"{fork!r} was merged before; each fork is merged once", ErrorKind.MERGE_FAILED)
    _check_bases(session, forks)
    for fork in forks:
        absorb(session.changes, fork.changes)
        session.access.join(fork.access)
        session.merged.add(fork.identity)
