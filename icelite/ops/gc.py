"""Garbage collection: remove what no branch or tag can reach, and no snapshot sees.

One write transaction, without any I/O on objects. What it never touches: anything that a snapshot reached by a
branch or tag sees; a younger snapshot, which somebody may be about to adopt; younger bytes that nothing refers to
yet, which a session writes ahead of its commit. A commit whose bytes were removed all the same, since the cutoff
was later than the session's beginning, fails (change_set/chunks.py).
"""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime

from icelite.catalog import removal
from icelite.catalog.database import Catalog, Transaction
from icelite.catalog.operations import log_operation
from icelite.catalog.permissions import check_online
from icelite.catalog.reachability import load_reach
from icelite.ops.expire import moment_of
from icelite.types import GCSummary


class _DryRun(Exception):
    """Leaves the transaction without a commit."""


def garbage_collect(catalog: Catalog, delete_object_older_than: datetime, *, dry_run: bool = False) -> GCSummary:
    """Remove what is not needed and older than a moment; see `Repository.garbage_collect`."""
    moment = moment_of(delete_object_older_than, "delete_object_older_than")
    summary = GCSummary()
    try:
        with catalog.write() as txn:
            check_online(txn)
            summary = _collect(txn, moment)
            if dry_run:
                raise _DryRun
            log_operation(txn, "GCRan", {"older_than": moment, **asdict(summary)})
    except _DryRun:  # it was done, counted, and rolled back: the count cannot be wrong
        pass
    return summary


def _collect(txn: Transaction, moment: int) -> GCSummary:
    unreached = removal.list_unreached(txn, moment)
    removal.release_snapshots(txn, unreached)
    reach = load_reach(txn)
    nodes, alive = removal.remove_nodes(txn, reach)
    chunk_refs = removal.remove_refs(txn, reach, alive)
    changes = removal.remove_changes(txn, reach)
    segments = removal.remove_segments(txn, reach)
    chunks, size = removal.remove_payloads(txn, moment)
    return GCSummary(
        bytes_deleted=size,
        chunks_deleted=chunks,
        snapshots_deleted=len(unreached),
        transaction_logs_deleted=changes,
        chunk_refs_deleted=chunk_refs,
        nodes_deleted=nodes,
        segments_deleted=segments,
        locations_deleted=removal.remove_locations(txn),
    )
