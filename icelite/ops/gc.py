"""Garbage collection: remove what no branch or tag can reach, and no snapshot sees.

One write transaction, without any I/O on objects; those are swept after it is durable, by listing them. What it never
touches: anything that a snapshot reached by a branch or tag sees; a younger snapshot, which somebody may be about to
adopt; younger bytes that nothing refers to yet, which a session writes ahead of its commit. A commit whose bytes were
removed all the same, since the cutoff was later than the session's beginning, fails (change_set/chunks.py).
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, replace
from datetime import datetime
from itertools import groupby

from icelite.catalog import removal
from icelite.catalog.database import Catalog, Transaction
from icelite.catalog.locations import COLLECTED, find_collected, list_known_objects
from icelite.catalog.operations import log_operation, now
from icelite.catalog.reachability import load_tree
from icelite.catalog.settings import check_online, save_setting
from icelite.objects import NoObjects, Objects, key_time
from icelite.ops.expire import DryRun, moment_of
from icelite.types import GCSummary


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
