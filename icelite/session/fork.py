"""Forks: sessions that travel to other processes, write there, and come back to be merged.

A fork begins at what its session sees at that moment. What the session has not committed yet becomes a snapshot
that no branch has, which the forks stand on; the session itself goes on as before. A fork's bytes go where the
repository's bytes go, so that what is pickled is metadata and references.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from icelite.catalog import operations, snapshots
from icelite.catalog.database import Transaction
from icelite.catalog.permissions import check_online
from icelite.catalog.repeating import repeat_write
from icelite.change_set import ChangeSet, absorb, longer
from icelite.conflicts import VersionSelection
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
        known = session.fork_base
        if known is not None and known[:2] == (session._base, session.changes.writes) and _is_there(session, known[2]):
            return known[2]
        session.changes.flush_payloads()

        def write(txn: Transaction) -> View:
            check_online(txn)
            return session._write(txn, "NewDetachedSnapshot", None, snapshot_id, "Base of forks", {})

        view = repeat_write(session._catalog, write)
        session.fork_base = session._base, session.changes.writes, Base(snapshot_id, view)
    return Base(snapshot_id, view)


def _is_there(session: Session, base: Base) -> bool:
    with session._catalog.read() as txn:
        return snapshots.find_seq(txn, base.id) is not None


def root_of(session: Session) -> tuple[str, str]:
    """What tells a repository from every other: where it is, and when it was made, for another may be there later."""
    with session._catalog.read() as txn:
        first, _ = operations.list_operations(txn, 2, 1)
    return session._catalog.storage.name, "".join(update.updated_at.isoformat() for update in first)


Growth = tuple[frozenset[str], tuple[int, ...]]


@dataclass(slots=True)
class Merged:
    """What a session has taken over, and what tells the states of a fork apart.

    Copies of a fork that went to several workers come back one by one, each with changes of its own. A state is known
    by who wrote it last: an object, until it is pickled; a fork is given a mark for each merge, which its later
    copies have too.

    Attributes
    ----------
    states, marks
        States and marks of the forks taken over.
    inherited
        The state in which the changes came, if they came by a pickle.
    own
        What the state is called once something is written here.
    own_marks
        The merges that this session's changes went into.
    grown
        Path of the arrays made longer: the states that did it, and their shape then.
    """

    states: set[str] = field(default_factory=set)
    marks: set[str] = field(default_factory=set)
    inherited: str | None = None
    own: str = field(default_factory=new_identity)
    own_marks: set[str] = field(default_factory=set)
    grown: dict[str, Growth] = field(default_factory=dict)

    def state(self, changes: ChangeSet) -> str | None:
        """The name of the state; None where nothing was changed."""
        if changes.is_empty():
            return None
        return self.own if changes.writes or self.inherited is None else self.inherited

    def growth(self, changes: ChangeSet) -> dict[str, Growth]:
        """The arrays that are longer than in the snapshot: who made them so, and their shape."""
        found: dict[str, Growth] = {}
        for path, shape in longer(changes).items():
            states, known = self.grown.get(path, (frozenset(), None))
            found[path] = (states, shape) if known == shape else (states | {self.own}, shape)
        return found

    def freeze(self, changes: ChangeSet) -> None:
        """Give the state its name for ever, before a copy is made: what is written later is another."""
        self.grown = self.growth(changes)
        self.inherited, self.own, changes.writes = self.state(changes), new_identity(), 0


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


def _check_belongs(session: Session, fork: Any) -> None:
    """Refuse what is neither a fork of the session nor one that began where it did: same file, branch and snapshot."""
    base = getattr(fork, "origins", {}).get(session.identity)
    if base == session.snapshot_id:
        return
    if base is not None:
        raise SessionStateError(
            f"{fork!r} was made when {session!r} stood on snapshot {base}; what it wrote was not compared with what was"
            " committed since: merge forks before rebase(), and write these changes again",
            ErrorKind.MERGE_NOT_ALLOWED,
        )
    if not getattr(fork, "origins", {}) or fork.root != session.root:
        found = "no fork of this repository"
    elif fork.root_branch != session.root_branch:
        found = f"of branch {fork.root_branch!r}, not {session.root_branch!r}"
    elif fork.snapshot_id != session.snapshot_id:
        found = f"from snapshot {fork.snapshot_id}, not {session.snapshot_id}"
    else:
        return
    raise SessionStateError(
        f"{fork!r} is {found}: {session!r} takes what fork() of it gave, or of another session of the same repository,"
        " branch and snapshot that had changed nothing yet",
        ErrorKind.MERGE_NOT_ALLOWED,
    )


def _check_new(session: Session, fork: Any) -> None:
    known, merged = fork.merged, session.merged
    if fork is session or known.own_marks & merged.marks or known.state(fork.changes) in merged.states:
        raise SessionStateError(f"{fork!r} was merged before; each fork is merged once", ErrorKind.MERGE_FAILED)


def merge_forks(session: Session, forks: tuple[Any, ...], on_append: VersionSelection) -> None:
    """Take over the changes of forks, in the order given.

    Raises
    ------
    SessionStateError
        ``merge-not-allowed`` for what did not begin where this session did; ``merge-failed``, also for a fork that was
        merged before.
    """
    for fork in forks:
        _check_belongs(session, fork)
        _check_new(session, fork)
    _check_bases(session, forks)
    for fork in forks:
        _check_new(session, fork)  # one may be given twice
        _take(session, fork, on_append)


def _take(session: Session, fork: Any, on_append: VersionSelection) -> None:
    merged, mark = session.merged, new_identity()
    theirs, ours = fork.merged.growth(fork.changes), merged.growth(session.changes)
    both = {path: (ours[path], growth) for path, growth in theirs.items() if path in ours}
    shared = {path for path, (here, there) in both.items() if here == there}
    tangled = {path for path, (here, there) in both.items() if here[0] & there[0]} - shared
    absorb(session.changes, fork.changes, shared=shared, tangled=tangled, on_append=on_append)
    session.access.join(fork.access)
    now = longer(session.changes)
    nobody: Growth = (frozenset(), ())
    merged.grown = {p: (ours.get(p, nobody)[0] | theirs.get(p, nobody)[0], shape) for p, shape in now.items()}
    state = fork.merged.state(fork.changes)
    merged.states |= fork.merged.states | ({state} if state is not None else set())
    merged.marks |= fork.merged.marks | {mark}
    fork.merged.own_marks.add(mark)
