"""Expiration: old snapshots are released, so that garbage collection may remove what only they saw.

As in Icechunk: the first snapshot and the tip of ``main`` always stay, and so do other tips and tagged snapshots
unless their branch or tag is to go too. Released ids cannot be read from then on. The first snapshot becomes the
parent of what lost its own, or, where keep rules spare some on the way, the nearest that stays; the notes of what the
released snapshots changed stay, so differences are complete.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress
from datetime import datetime

from icelite.catalog import refs, removal
from icelite.catalog.database import Catalog, Transaction
from icelite.catalog.operations import log_operation, to_microseconds
from icelite.catalog.settings import check_online
from icelite.catalog.snapshots import Ancestor, load_history
from icelite.errors import ErrorKind, InvalidInputError
from icelite.ops.keeping import KeepRules

MAIN = "main"


def expire_snapshots(
    catalog: Catalog,
    older_than: datetime,
    keep: KeepRules,
    *,
    delete_expired_branches: bool = False,
    delete_expired_tags: bool = False,
    dry_run: bool = False,
) -> set[str]:
    """Release the snapshots written before a moment; see `Repository.expire_snapshots`."""
    moment = moment_of(older_than, "older_than")
    released: dict[int, str] = {}
    with suppress(DryRun), catalog.write() as txn:
        check_online(txn)
        if delete_expired_branches:
            _delete_branches(txn, moment)
        if delete_expired_tags:
            _delete_tags(txn, moment)
        released = removal.list_old(txn, moment)
        parents = _spare(txn, released, keep, moment) if keep else None
        removal.release_snapshots(txn, released, parents)
        if dry_run:
            raise DryRun
        log_operation(txn, "ExpirationRan", {"older_than": moment, "snapshots": len(released)})
    return set(released.values())


class DryRun(Exception):
    """Leaves a transaction without a commit: what it counted was done, so the count cannot be wrong."""


def _spare(txn: Transaction, released: dict[int, str], keep: KeepRules, moment: int) -> dict[int, int]:
    """Take what stays out of ``released``; the parents of those whose own goes, so that a branch still reaches all."""
    history = load_history(txn)
    tips = [refs.lookup_branch(txn, name) for name in refs.list_branches(txn)]
    for seq in keep.list_kept(history, tips, moment):
        released.pop(seq, None)
    return _nearest_parents(history, released)


def _nearest_parents(history: Mapping[int, Ancestor], released: Collection[int]) -> dict[int, int]:
    """The nearest ancestor that stays, of each snapshot that stays and loses its parent."""
    nearest: dict[int, int] = {}
    parents: dict[int, int] = {}
    for seq, found in history.items():
        above = None if found.parent_seq is None else nearest[found.parent_seq]
        if seq in released and above is not None:
            nearest[seq] = above
            continue
        nearest[seq] = seq
        if above is not None and above != found.parent_seq:
            parents[seq] = above
    return parents


def moment_of(value: object, name: str) -> int:
    """A point in time given by a user, in microseconds.

    Raises
    ------
    InvalidInputError
        ``invalid-argument`` for what is no datetime with a time zone.
    """
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise InvalidInputError(
            f"{name}={value!r} must be a datetime with a time zone: datetime(2024, 8, 1, tzinfo=UTC)",
            ErrorKind.INVALID_ARGUMENT,
        )
    return to_microseconds(value)


def _delete_branches(txn: Transaction, moment: int) -> None:
    for name, _, snapshot_id in removal.list_old_tips(txn, moment, but=MAIN):
        refs.delete_branch(txn, name)
        log_operation(txn, "BranchDeleted", {"name": name, "previous_snap_id": snapshot_id})


def _delete_tags(txn: Transaction, moment: int) -> None:
    for name, _, snapshot_id in removal.list_old_tags(txn, moment):
        refs.delete_tag(txn, name)
        log_operation(txn, "TagDeleted", {"name": name, "previous_snap_id": snapshot_id})
