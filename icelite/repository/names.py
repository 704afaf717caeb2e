"""Branches and tags of a repository: the part of `Repository` that gives snapshots names.

Every method is one transaction, and every change is in the operation log. Every change also raises `ReadOnlyError`
``read-only-repository`` or ``read-only-storage`` where nothing may be changed.
"""

from __future__ import annotations

from collections.abc import Sequence

from icelite.catalog import refs, snapshots
from icelite.catalog.database import Catalog, Transaction, repeated
from icelite.catalog.operations import log_operation
from icelite.catalog.settings import check_feature, check_online
from icelite.errors import AlreadyExistsError, ConflictError, ErrorKind, InvalidInputError, SessionStateError, shown
from icelite.types import INITIAL_SNAPSHOT_ID, is_snapshot_id

MAIN = "main"


class BranchesAndTags:
    """What `Repository` knows about names for snapshots."""

    _catalog: Catalog

    # -- branches ----------------------------------------------------------------------------------------------

    def list_branches(self) -> set[str]:
        """Names of all branches."""
        self._catalog.refresh()
        with self._catalog.read() as txn:
            return set(refs.list_branches(txn))

    def lookup_branch(self, branch: str) -> str:
        """Id of a branch's newest snapshot; `RefNotFoundError` ``branch-not-found``."""
        self._catalog.refresh()
        with self._catalog.read() as txn:
            return snapshots.lookup_id(txn, refs.lookup_branch(txn, branch))

    @repeated
    def create_branch(self, branch: str, snapshot_id: str) -> None:
        """Give a snapshot a branch.

        Parameters
        ----------
        snapshot_id
            An id, the beginning of one that no other has, or the name of a branch or tag; so in every method.

        Raises
        ------
        InvalidInputError, AlreadyExistsError, SnapshotNotFoundError
            ``invalid-ref-name``, ``invalid-snapshot-id``; ``branch-already-exists``; ``snapshot-not-found``.
        """
        refs.check_name(branch, "branch")
        with self._catalog.write() as txn:
            check_online(txn)
            seq, snapshot_id = lookup_named(txn, snapshot_id)
            if refs.find_branch(txn, branch) is not None:
                raise AlreadyExistsError(
                    f"branch {branch!r} already exists; reset_branch moves it", ErrorKind.BRANCH_ALREADY_EXISTS
                )
            refs.insert_branch(txn, branch, seq)
            log_operation(txn, "BranchCreated", {"name": branch, "snap_id": snapshot_id})

    @repeated
    def reset_branch(self, branch: str, snapshot_id: str, *, from_snapshot_id: str | None = None) -> None:
        """Point a branch at any snapshot.

        Parameters
        ----------
        snapshot_id
            As in `create_branch`.
        from_snapshot_id
            Only if the branch is still there.

        Raises
        ------
        RefNotFoundError, SnapshotNotFoundError, InvalidInputError, ConflictError
            ``branch-not-found``; ``snapshot-not-found``; ``invalid-snapshot-id``; ``branch-update-conflict``.
        """
        with self._catalog.write() as txn:
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
    def delete_branch(self, branch: str) -> None:
        """Delete a branch; its snapshots stay.

        Raises
        ------
        SessionStateError, RefNotFoundError
            ``cannot-delete-main``; ``branch-not-found``.
        """
        if branch == MAIN:
            raise SessionStateError(
                "branch 'main' cannot be deleted; every repository has it", ErrorKind.CANNOT_DELETE_MAIN
            )
        with self._catalog.write() as txn:
            check_online(txn)
            previous = snapshots.lookup_id(txn, refs.lookup_branch(txn, branch))
            refs.delete_branch(txn, branch)
            log_operation(txn, "BranchDeleted", {"name": branch, "previous_snap_id": previous})

    # -- tags --------------------------------------------------------------------------------------------------

    def list_tags(self) -> set[str]:
        """Names of all tags."""
        self._catalog.refresh()
        with self._catalog.read() as txn:
            return set(refs.list_tags(txn))

    def lookup_tag(self, tag: str) -> str:
        """Id of a tag's snapshot; `RefNotFoundError` ``tag-not-found``."""
        self._catalog.refresh()
        with self._catalog.read() as txn:
            return snapshots.lookup_id(txn, refs.lookup_tag(txn, tag))

    @repeated
    def create_tag(self, tag: str, snapshot_id: str) -> None:
        """Give a snapshot a name that never moves.

        Raises
        ------
        InvalidInputError, AlreadyExistsError, SnapshotNotFoundError, SessionStateError
            ``invalid-ref-name``, ``invalid-snapshot-id``; ``tag-already-exists``, ``tag-previously-deleted``;
            ``snapshot-not-found``; ``feature-flag-disabled``.
        """
        refs.check_name(tag, "tag")
        with self._catalog.write() as txn:
            check_online(txn)
            check_feature(txn, "create_tag")
            seq, snapshot_id = lookup_named(txn, snapshot_id)
            found = refs.find_tag(txn, tag)
            if found is not None and found[0] is not None:
                raise AlreadyExistsError(
                    f"tag {tag!r} already exists, and tags never move", ErrorKind.TAG_ALREADY_EXISTS
                )
            if found is not None:
                raise AlreadyExistsError(
                    f"tag {tag!r} was deleted, and a tag's name is never used again", ErrorKind.TAG_PREVIOUSLY_DELETED
                )
            refs.insert_tag(txn, tag, seq)
            log_operation(txn, "TagCreated", {"name": tag, "snap_id": snapshot_id})

    @repeated
    def delete_tag(self, tag: str) -> None:
        """Delete a tag for ever: its name cannot be used again.

        Raises
        ------
        RefNotFoundError, SessionStateError
            ``tag-not-found``; ``feature-flag-disabled``.
        """
        with self._catalog.write() as txn:
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
