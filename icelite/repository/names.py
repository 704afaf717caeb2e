"""Names of snapshots: branches and tags, and what names a snapshot where one is asked for.

Every function that changes something is one transaction, and is in the operation log. Raises as the method of
`Repository` that has its name.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from icelite.catalog import refs, snapshots
from icelite.catalog.database import Catalog, Transaction, repeated
from icelite.catalog.operations import log_operation, to_microseconds
from icelite.catalog.settings import check_feature, check_online
from icelite.errors import (
    AlreadyExistsError,
    ConflictError,
    ErrorKind,
    InvalidInputError,
    SessionStateError,
    SnapshotNotFoundError,
    shown,
)
from icelite.session import OpenedSnapshot
from icelite.types import INITIAL_SNAPSHOT_ID, View, is_snapshot_id

MAIN = "main"


def list_branches(catalog: Catalog) -> set[str]:
    """Names of all branches."""
    catalog.refresh()
    with catalog.read() as txn:
        return set(refs.list_branches(txn))


def lookup_branch(catalog: Catalog, branch: str) -> str:
    """Id of a branch's newest snapshot."""
    catalog.refresh()
    with catalog.read() as txn:
        return snapshots.lookup_id(txn, refs.lookup_branch(txn, branch))


@repeated
def create_branch(catalog: Catalog, branch: str, snapshot_id: str) -> None:
    """Give a snapshot a branch."""
    refs.check_name(branch, "branch")
    with catalog.write() as txn:
        check_online(txn)
        seq, snapshot_id = lookup_named(txn, snapshot_id)
        if refs.find_branch(txn, branch) is not None:
            raise AlreadyExistsError(
                f"branch {branch!r} already exists; reset_branch moves it", ErrorKind.BRANCH_ALREADY_EXISTS
            )
        refs.insert_branch(txn, branch, seq)
        log_operation(txn, "BranchCreated", {"name": branch, "snap_id": snapshot_id})


@repeated
def reset_branch(catalog: Catalog, branch: str, snapshot_id: str, from_snapshot_id: str | None) -> None:
    """Point a branch at any snapshot; with ``from_snapshot_id`` only if it is still there."""
    with catalog.write() as txn:
        check_online(txn)
        expected = None if from_snapshot_id is None else _expected_id(txn, from_snapshot_id)
        tip = refs.lookup_branch(txn, branch)
        previous = snapshots.lookup_id(txn, tip)
        if expected not in (None, previous):
            raise ConflictError(
                f"branch {branch!r} is at {previous}, not at {expected}; it was not moved",
                ErrorKind.BRANCH_UPDATE_CONFLICT,
                expected_parent=expected,
                actual_parent=previous,
            )
        refs.move_branch(txn, branch, tip, lookup_named(txn, snapshot_id)[0])
        log_operation(txn, "BranchReset", {"name": branch, "previous_snap_id": previous})


@repeated
def delete_branch(catalog: Catalog, branch: str) -> None:
    """Delete a branch; its snapshots stay."""
    if branch == MAIN:
        raise SessionStateError(
            "branch 'main' cannot be deleted; every repository has it", ErrorKind.CANNOT_DELETE_MAIN
        )
    with catalog.write() as txn:
        check_online(txn)
        previous = snapshots.lookup_id(txn, refs.lookup_branch(txn, branch))
        refs.delete_branch(txn, branch)
        log_operation(txn, "BranchDeleted", {"name": branch, "previous_snap_id": previous})


def list_tags(catalog: Catalog) -> set[str]:
    """Names of all tags."""
    catalog.refresh()
    with catalog.read() as txn:
        return set(refs.list_tags(txn))


def lookup_tag(catalog: Catalog, tag: str) -> str:
    """Id of a tag's snapshot."""
    catalog.refresh()
    with catalog.read() as txn:
        return snapshots.lookup_id(txn, refs.lookup_tag(txn, tag))


@repeated
def create_tag(catalog: Catalog, tag: str, snapshot_id: str) -> None:
    """Give a snapshot a name that never moves."""
    refs.check_name(tag, "tag")
    with catalog.write() as txn:
        check_online(txn)
        check_feature(txn, "create_tag")
        seq, snapshot_id = lookup_named(txn, snapshot_id)
        found = refs.find_tag(txn, tag)
        if found is not None and found[0] is not None:
            raise AlreadyExistsError(f"tag {tag!r} already exists, and tags never move", ErrorKind.TAG_ALREADY_EXISTS)
        if found is not None:
            raise AlreadyExistsError(
                f"tag {tag!r} was deleted, and a tag's name is never used again", ErrorKind.TAG_PREVIOUSLY_DELETED
            )
        refs.insert_tag(txn, tag, seq)
        log_operation(txn, "TagCreated", {"name": tag, "snap_id": snapshot_id})


@repeated
def delete_tag(catalog: Catalog, tag: str) -> None:
    """Delete a tag for ever."""
    with catalog.write() as txn:
        check_online(txn)
        check_feature(txn, "delete_tag")
        previous = snapshots.lookup_id(txn, refs.lookup_tag(txn, tag))
        refs.delete_tag(txn, tag)
        log_operation(txn, "TagDeleted", {"name": tag, "previous_snap_id": previous})


def resolve(txn: Transaction, branch: str | None, tag: str | None, snapshot_id: str | None) -> int:
    """The number of the snapshot that exactly one of the three names.

    Raises
    ------
    InvalidInputError, RefNotFoundError, SnapshotNotFoundError
        ``invalid-argument``, ``invalid-snapshot-id``; ``branch-not-found``, ``tag-not-found``; ``snapshot-not-found``.
    """
    given = [value for value in (branch, tag, snapshot_id) if value is not None]
    if len(given) != 1:
        raise InvalidInputError(
            f"pass exactly one of branch, tag and snapshot_id (got branch={branch!r}, tag={tag!r},"
            f" snapshot_id={snapshot_id!r})",
            ErrorKind.INVALID_ARGUMENT,
        )
    if branch is not None:
        return refs.lookup_branch(txn, branch)
    if tag is not None:
        return refs.lookup_tag(txn, tag)
    return lookup_named(txn, given[0])[0]


def lookup_named(txn: Transaction, name: object) -> tuple[int, str]:
    """Number and id of a snapshot: by its id, else by a branch or tag, else by the beginning of an id.

    Raises
    ------
    InvalidInputError, SnapshotNotFoundError
        ``invalid-snapshot-id`` for what is none of these, or could be two; ``snapshot-not-found``.
    """
    if not isinstance(name, str):
        raise _no_name(name)
    if is_snapshot_id(name):
        seq = snapshots.find_seq(txn, name)
        if seq is not None:
            return seq, name
    found = {refs.find_branch(txn, name), (refs.find_tag(txn, name) or (None,))[0]} - {None}
    if found:
        infos = {seq: snapshots.lookup_id(txn, seq) for seq in found if seq is not None}
        if len(infos) > 1:
            raise _ambiguous(name, "a branch and a tag, at different snapshots", sorted(infos.values()))
        return infos.popitem()
    if is_snapshot_id(name):
        return snapshots.lookup_seq(txn, name), name  # raises
    begun = snapshots.list_begun(txn, name)
    if len(begun) > 1:
        raise _ambiguous(name, "the beginning of several ids", [snapshot_id for _, snapshot_id in begun])
    if not begun:
        raise _no_name(name)
    return begun[0]


def _expected_id(txn: Transaction, name: object) -> str:
    """The id where a branch is expected to be, which may be of a snapshot that is gone."""
    return name if isinstance(name, str) and is_snapshot_id(name) else lookup_named(txn, name)[1]


def _no_name(name: object) -> InvalidInputError:
    return InvalidInputError(
        f"{shown(name)} is no branch, no tag, and no snapshot's id or its beginning; ids are 20 characters of"
        f" Crockford base-32, such as {INITIAL_SNAPSHOT_ID}, and come from commit(), ancestry() and lookup_branch()",
        ErrorKind.INVALID_SNAPSHOT_ID,
    )


def _ambiguous(name: str, what: str, ids: Sequence[str]) -> InvalidInputError:
    return InvalidInputError(
        f"{shown(name)} is {what}: {', '.join(ids)}; pass the id that is meant", ErrorKind.INVALID_SNAPSHOT_ID
    )


def resolve_now(catalog: Catalog, branch: str | None, tag: str | None, snapshot_id: str | None) -> int:
    """The number of the snapshot that exactly one of the three names, as things are now."""
    catalog.refresh()
    with catalog.read() as txn:
        return resolve(txn, branch, tag, snapshot_id)


def view_named(catalog: Catalog, branch: str | None, tag: str | None, snapshot_id: str | None) -> View:
    """The snapshot that one of the three names; the tip of ``main`` where none does."""
    if branch is None and tag is None and snapshot_id is None:
        branch = MAIN
    with catalog.read() as txn:
        return snapshots.view_snapshot(txn, resolve(txn, branch, tag, snapshot_id))


def open_snapshot(
    catalog: Catalog, branch: str | None, tag: str | None, snapshot_id: str | None, as_of: datetime | None
) -> OpenedSnapshot:
    """The snapshot that one of the first three names, or the newest one of a branch at a time, for a session."""
    catalog.refresh()
    with catalog.read() as txn:
        seq = resolve(txn, branch, tag, snapshot_id)
        if as_of is not None:
            seq = _at_time(txn, seq, branch, as_of)
        return OpenedSnapshot(snapshots.lookup_id(txn, seq), snapshots.view_snapshot(txn, seq))


def check_session(catalog: Catalog, rearrange: bool) -> None:
    """Refuse a session that writes, or that moves nodes, where that is not allowed."""
    with catalog.read() as txn:
        _check_allowed(txn, rearrange)


def open_tip(catalog: Catalog, branch: str, rearrange: bool) -> OpenedSnapshot:
    """The newest snapshot of a branch, for a session that writes, or that moves nodes."""
    with catalog.read() as txn:
        _check_allowed(txn, rearrange)  # not only with the commit
        seq = refs.lookup_branch(txn, branch)
        return OpenedSnapshot(snapshots.lookup_id(txn, seq), snapshots.view_snapshot(txn, seq))


def _at_time(txn: Transaction, seq: int, branch: str | None, as_of: datetime) -> int:
    if branch is None or getattr(as_of, "tzinfo", None) is None:
        raise InvalidInputError(
            f"as_of={as_of!r} goes with a branch, and needs a time zone: datetime(2024, 8, 1, tzinfo=UTC)",
            ErrorKind.INVALID_ARGUMENT,
        )
    found = snapshots.find_as_of(txn, seq, to_microseconds(as_of))
    if found is None:
        raise SnapshotNotFoundError(
            f"branch {branch!r} had no snapshot at {as_of.isoformat()} yet", ErrorKind.NO_SNAPSHOT_AT_TIME
        )
    return found


def _check_allowed(txn: Transaction, rearrange: bool) -> None:
    check_online(txn)
    if rearrange:
        check_feature(txn, "move_node")
