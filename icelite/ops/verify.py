"""Checking a whole repository: every rule of the file format, and every byte that it holds itself.

Each check is named by the table and what about it, stands alone, and never stops at the first fault. Another
process may commit meanwhile: no check holds the file for longer than one query.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from icelite.catalog import invariants
from icelite.catalog.database import Catalog
from icelite.catalog.json_column import read_json, read_json_object
from icelite.catalog.reachability import load_reach
from icelite.errors import FormatError, InvalidInputError
from icelite.keys import check_path
from icelite.metadata import check_document
from icelite.types import Problem

Finding = tuple[str, str]  # subject, and what is wrong with it
Check = Callable[[Catalog], Iterator[Finding]]


def verify(catalog: Catalog) -> list[Problem]:
    """Everything that is wrong with a repository; see `Repository.verify`."""
    problems = []
    for name, check in CHECKS.items():
        try:
            problems += [Problem(name, subject, detail) for subject, detail in check(catalog)]
        except FormatError as error:  # too damaged for this check; the others may still find their way
            problems.append(Problem(name, catalog.storage.name, error.message))
    return problems


def check_file_pages(catalog: Catalog) -> Iterator[Finding]:
    """SQLite finds the pages, indexes and constraints sound."""
    for finding in catalog.find_damage():
        yield catalog.storage.name, finding


def check_snapshot_lineage(catalog: Catalog) -> Iterator[Finding]:
    """A snapshot sees what its parent saw: the parent is in its lineage."""
    with catalog.read() as txn:
        reach = load_reach(txn)
        rows = invariants.list_parents(txn)
    for snapshot_id, seg, seq, parent_id, parent_seg, parent_seq in rows:
        start, stop = reach.interval(parent_seg, parent_seq)
        if not start <= reach.interval(seg, seq)[0] < stop:
            yield f"snapshot {snapshot_id}", f"its parent {parent_id} is not in its lineage"


def check_node_metadata(catalog: Catalog) -> Iterator[Finding]:
    """The metadata of every node is what its Zarr format asks for."""
    for path, seq, zarr_format, metadata in invariants.scan_metadata(catalog):
        try:
            documents = {"zarr.json": metadata} if zarr_format == 3 else read_json_object(metadata, "metadata")
            for name, text in documents.items():
                check_document(path, name, text)
        except (InvalidInputError, FormatError, TypeError) as error:
            yield f"/{path}", f"as of snapshot {seq}: {error}"


def check_node_path(catalog: Catalog) -> Iterator[Finding]:
    """Every node has a path that could be written."""
    for path, seq, _, _ in invariants.scan_metadata(catalog):
        try:
            bare = check_path(path)
        except InvalidInputError as error:
            yield f"/{path}", f"as of snapshot {seq}: {error}"
            continue
        if bare != path:
            yield f"/{path}", f"as of snapshot {seq}: its path has a slash at an end"


def check_change_chunks(catalog: Catalog) -> Iterator[Finding]:
    """Every reference is of a chunk that the change of its snapshot lists."""
    written = invariants.count_refs(catalog)
    for seq, node_id, listed in invariants.scan_changed_chunks(catalog):
        found = written.pop((seq, node_id), 0)
        if listed is None:
            yield f"node {node_id}", f"the list of chunks that snapshot {seq} changed cannot be read"
        elif found > listed:
            yield f"node {node_id}", f"snapshot {seq} wrote {found} chunks, of which it lists {listed}"
    for (seq, node_id), found in written.items():
        yield f"node {node_id}", f"snapshot {seq} wrote {found} chunks, of which it lists none"


def check_payload_crc(catalog: Catalog) -> Iterator[Finding]:
    """The bytes of inline chunks are those that were written."""
    for payload_id in invariants.scan_damaged_payloads(catalog):
        yield f"payload {payload_id}", "its bytes do not have the CRC-32C they were written with"


def _rule(name: str) -> Check:
    def check(catalog: Catalog) -> Iterator[Finding]:
        yield from ((str(subject), str(detail)) for subject, detail in invariants.find_broken(catalog, name))

    return check


def _json(name: str) -> Check:
    def check(catalog: Catalog) -> Iterator[Finding]:
        for subject, text in invariants.list_json(catalog, name):
            try:
                read_json(text, subject) if name == "setting_value" else read_json_object(text, subject)
            except FormatError as error:
                yield subject, error.message

    return check


CHECKS: dict[str, Check] = {
    "file_pages": check_file_pages,
    **{name: _json(name) for name in invariants.SELECT_JSON},
    **{name: _rule(name) for name in invariants.RULES},
    "snapshot_lineage": check_snapshot_lineage,
    "node_metadata": check_node_metadata,
    "node_path": check_node_path,
    "change_chunks": check_change_chunks,
    "payload_crc": check_payload_crc,
}
