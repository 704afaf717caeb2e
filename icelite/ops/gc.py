"""Expiration and garbage collection: old snapshots are released, then what no snapshot sees is removed.

Expiration is as in Icechunk: the first snapshot and the tip of ``main`` always stay, and so do other tips and tagged
snapshots unless their branch or tag is to go too. Released ids cannot be read from then on. The first snapshot becomes
the parent of what lost its own, or, where keep rules spare some on the way, the nearest that stays; the notes of what
the released snapshots changed stay, so differences are complete.

Collection is one write transaction, without any I/O on objects; those are swept after it is durable, by listing them.
What it never touches: anything that a snapshot reached by a branch or tag sees; a younger snapshot, which somebody may
be about to adopt; younger bytes that nothing refers to yet, which a session writes ahead of its commit. A commit whose
bytes were removed all the same, since the cutoff was later than the session's beginning, fails.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime
from itertools import groupby

from icelite.catalog import refs, removal
from icelite.catalog.database import Catalog, Transaction
from icelite.catalog.locations import COLLECTED, find_collected, list_known_objects
from icelite.catalog.operations import log_operation, now, to_datetime, to_microseconds
from icelite.catalog.reachability import load_tree
from icelite.catalog.settings import check_online, save_setting
from icelite.catalog.snapshots import Ancestor, load_history
from icelite.errors import ErrorKind, InvalidInputError
from icelite.objects import NoObjects, Objects, key_time
from icelite.types import GCSummary

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


# -- what stays all the same ---------------------------------------------------------------------------------------

# What the snapshots of one period have in common, by the name of the rule; in UTC.
_PERIODS: Mapping[str, Callable[[datetime], Hashable]] = {
    "daily": lambda moment: moment.date(),
    "weekly": lambda moment: moment.isocalendar()[:2],
    "monthly": lambda moment: (moment.year, moment.month),
    "yearly": lambda moment: moment.year,
}


@dataclass(frozen=True, slots=True)
class KeepRules:
    """How many old snapshots stay: so many of the newest, and the newest one of so many days, weeks, months, years.

    Only periods that have a snapshot count.
    """

    last: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            count: object = getattr(self, field.name)
            if not isinstance(count, int) or isinstance(count, bool) or count < 0:
                raise InvalidInputError(
                    f"keep_{field.name}={count!r} must be a number of snapshots, 0 or more", ErrorKind.INVALID_ARGUMENT
                )

    def __bool__(self) -> bool:
        return self != KeepRules()

    def list_kept(self, history: Mapping[int, Ancestor], tips: Iterable[int], moment: int) -> set[int]:
        """The numbers of the snapshots before ``moment`` (microseconds) that stay, of each tip's line by itself."""
        return {seq for tip in set(tips) for seq in self._spare(_line(history, tip, moment))}

    def _spare(self, line: Iterable[tuple[int, int]]) -> Iterator[int]:
        periods: dict[str, set[Hashable]] = {name: set() for name in _PERIODS if getattr(self, name)}
        for count, (seq, written_at) in enumerate(line, 1):
            is_kept = count <= self.last
            for name, found in periods.items():
                period = _PERIODS[name](to_datetime(written_at))
                if period not in found and len(found) < getattr(self, name):
                    found.add(period)
                    is_kept = True
            if is_kept:
                yield seq
            elif count > self.last and all(len(found) == getattr(self, name) for name, found in periods.items()):
                return


def _line(history: Mapping[int, Ancestor], tip: int, moment: int) -> Iterator[tuple[int, int]]:
    """Number and time of the snapshots from a tip back to the first that are older than a moment, newest first."""
    seq: int | None = tip
    while seq is not None:
        found = history[seq]
        if found.written_at < moment:
            yield seq, found.written_at
        seq = found.parent_seq


# -- collecting ----------------------------------------------------------------------------------------------------


def garbage_collect(
    catalog: Catalog, objects: Objects | NoObjects, delete_object_older_than: datetime, *, dry_run: bool = False
) -> GCSummary:
    """Remove what is not needed and older than a moment; see `Repository.garbage_collect`."""
    moment = moment_of(delete_object_older_than, "delete_object_older_than")
    swept = min(moment, now())  # objects written from now on are spared, so that they can be committed
    summary, unused = GCSummary(), set[str]()
    with suppress(DryRun), catalog.write() as txn:
        check_online(txn)
        summary = _collect(txn, moment)
        unused = removal.list_unused_objects(txn) if dry_run else unused
        summary = replace(summary, locations_deleted=removal.remove_locations(txn))
        if dry_run:
            raise DryRun
        if objects.writes:
            save_setting(txn, COLLECTED, max(swept, find_collected(txn)))
        log_operation(txn, "GCRan", {"older_than": moment, **asdict(summary)})
    if isinstance(objects, Objects):
        count, size = _sweep(catalog, objects, swept, unused, dry_run)
        summary = replace(summary, objects_deleted=count, bytes_deleted=summary.bytes_deleted + size)
    return summary


def _sweep(catalog: Catalog, objects: Objects, moment: int, unused: set[str], dry_run: bool) -> tuple[int, int]:
    """Remove the objects written before ``moment`` that no reference names; their number and bytes.

    A session that wrote one of them ahead of its commit cannot commit it any more (catalog/locations.py).
    """
    count = size = 0
    for folder, group in groupby(objects.scan(), key=lambda found: found.key[:2]):
        old = [found for found in group if key_time(found.key) * 1000 < moment]
        if not old:
            continue
        with catalog.read() as txn:
            known = list_known_objects(txn, folder) - unused
        dead = [found for found in old if found.key not in known]
        if not dry_run:
            objects.delete([found.key for found in dead])
        count, size = count + len(dead), size + sum(found.size for found in dead)
    return count, size


def _collect(txn: Transaction, moment: int) -> GCSummary:
    unreached = removal.list_unreached(txn, moment)
    removal.release_snapshots(txn, unreached)
    tree = load_tree(txn)
    nodes, alive = removal.remove_nodes(txn, tree)
    chunk_refs = removal.remove_refs(txn, tree, alive)
    changes = removal.remove_changes(txn, tree)
    segments = removal.remove_segments(txn, tree)
    chunks, size = removal.remove_payloads(txn, moment)
    return GCSummary(
        bytes_deleted=size,
        chunks_deleted=chunks,
        snapshots_deleted=len(unreached),
        transaction_logs_deleted=changes,
        chunk_refs_deleted=chunk_refs,
        nodes_deleted=nodes,
        segments_deleted=segments,
    )
