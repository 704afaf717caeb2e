"""Forks: whose fork a session is, what it has taken over, and taking over what another one changed.

A fork travels to another process, is written there, and comes back to be merged. It begins at what its session sees at
that moment: what that has not committed yet becomes a snapshot that no branch has, which the forks stand on, and the
session goes on as before. A fork's bytes go where the repository's bytes go, so what is pickled is metadata and
references.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from icelite.catalog import operations, snapshots
from icelite.catalog.database import Catalog
from icelite.change_set import ChangeSet, absorb, longer
from icelite.conflicts import VersionSelection
from icelite.errors import ErrorKind, SessionStateError
from icelite.virtual import VirtualAccess


@dataclass(frozen=True, slots=True)
class ForkOrigin:
    """Whose fork a session is.

    Attributes
    ----------
    root
        What tells its repository from every other.
    branch
        The branch that its changes are for.
    sessions
        Identities of the sessions that it is a fork of, with the snapshot of each then.
    """

    root: tuple[str, str]
    branch: str | None
    sessions: Mapping[str, str] = field(default_factory=dict)

    def of(self, identity: str, snapshot_id: str) -> ForkOrigin:
        """The origin of a fork of that session."""
        return replace(self, sessions={**self.sessions, identity: snapshot_id})


class Forked(Protocol):
    """What merging reads of a session, of a fork as of what it goes back into."""

    changes: ChangeSet
    access: VirtualAccess

    @property
    def merged(self) -> Merged:
        """What it has taken over, and what tells it from others."""

    @property
    def snapshot_id(self) -> str:
        """Id of the snapshot it stands on."""

    @property
    def origin(self) -> ForkOrigin:
        """Whose fork it is."""


def new_identity() -> str:
    """What tells a session from every other one, in whatever process."""
    return secrets.token_hex(16)


def root_of(catalog: Catalog) -> tuple[str, str]:
    """What tells a repository from every other: where it is, and when it was made, for another may be there later."""
    with catalog.read() as txn:
        first, _ = operations.list_operations(txn, 2, 1)
    return catalog.storage.name, "".join(update.updated_at.isoformat() for update in first)


Growth = tuple[frozenset[str], tuple[int, ...]]


@dataclass(slots=True)
class Merged:
    """What a session has taken over, and what tells the states of a fork apart.

    Copies of a fork that went to several workers come back one by one, each with changes of its own. A state is known
    by who wrote it last: an object, until it is pickled; a fork is given a mark for each merge, which its later
    copies have too.

    Attributes
    ----------
    identity
        What tells the session from every other one, in whatever process.
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

    identity: str = field(default_factory=new_identity)
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
        return self.own if changes.base.writes or self.inherited is None else self.inherited

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
        self.inherited, self.own, changes.base.writes = self.state(changes), new_identity(), 0


def _check_bases(session: Forked, forks: Sequence[Forked]) -> None:
    """Refuse forks whose snapshot was collected: what they wrote cannot be told apart from it any more."""
    with session.changes.catalog.read() as txn:
        gone = [fork for fork in forks if snapshots.find_seq(txn, fork.snapshot_id) is None]
    if gone:
        raise SessionStateError(
            f"the snapshot {gone[0].snapshot_id} that {gone[0]!r} stands on has expired and was collected meanwhile;"
            " its changes cannot be merged: write them again, and collect only what is older than every fork",
            ErrorKind.MERGE_FAILED,
        )


def _check_belongs(session: Forked, fork: Forked) -> None:
    """Refuse what is neither a fork of the session nor one that began where it did: same file, branch and snapshot."""
    theirs = getattr(fork, "origin", None)
    base = None if theirs is None else theirs.sessions.get(session.merged.identity)
    if base == session.snapshot_id:
        return
    if base is not None:
        raise SessionStateError(
            f"{fork!r} was made when {session!r} stood on snapshot {base}; what it wrote was not compared with what was"
            " committed since: merge forks before rebase(), and write these changes again",
            ErrorKind.MERGE_NOT_ALLOWED,
        )
    ours = session.origin
    if theirs is None or not theirs.sessions or theirs.root != ours.root:
        found = "no fork of this repository"
    elif theirs.branch != ours.branch:
        found = f"of branch {theirs.branch!r}, not {ours.branch!r}"
    elif fork.snapshot_id != session.snapshot_id:
        found = f"from snapshot {fork.snapshot_id}, not {session.snapshot_id}"
    else:
        return
    raise SessionStateError(
        f"{fork!r} is {found}: {session!r} takes what fork() of it gave, or of another session of the same repository,"
        " branch and snapshot that had changed nothing yet",
        ErrorKind.MERGE_NOT_ALLOWED,
    )


def _check_new(session: Forked, fork: Forked) -> None:
    known, merged = fork.merged, session.merged
    if fork is session or known.own_marks & merged.marks or known.state(fork.changes) in merged.states:
        raise SessionStateError(f"{fork!r} was merged before; each fork is merged once", ErrorKind.MERGE_FAILED)


def merge_forks(session: Forked, forks: Sequence[Forked], on_append: VersionSelection) -> None:
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


def _take(session: Forked, fork: Forked, on_append: VersionSelection) -> None:
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
