"""Checking a whole repository: every rule of the file format, and every byte that it holds itself.

Each check is named by the table and what about it, stands alone, and never stops at the first fault. Others may commit
meanwhile: no check holds the file for long, and what needs several transactions is compared as of its beginning, or
again where collection or repacking came in between. Commits only add rows, whose numbers are greater.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby
from typing import TypeAlias

from icelite.catalog import invariants, locations
from icelite.catalog.changes import RefPosition, WrittenRefs, next_array, scan_versions
from icelite.catalog.checksums import SUM_MASK
from icelite.catalog.chunks import AFTER, FIRST
from icelite.catalog.database import Catalog
from icelite.catalog.invariants import Pace
from icelite.catalog.reachability import load_tree
from icelite.catalog.values import check_order, check_types, read_json, read_json_object
from icelite.errors import ErrorKind, FormatError, IceliteError, InvalidInputError
from icelite.keys import check_path
from icelite.metadata import check_document
from icelite.objects import NoObjects, Objects
from icelite.payload import Payloads
from icelite.types import Chunk, Problem, Problems

Finding = tuple[str, str]  # subject, and what is wrong with it
Native: TypeAlias = Objects | NoObjects | None
Check = Callable[[Pace], Iterator[Finding]]

ATTEMPTS = 3  # to compare references with what is noted of them, before nobody else may write meanwhile
OBJECT_CHECKS = (None, "list", "read")


def verify(
    catalog: Catalog, objects: str | None = None, payloads: Payloads | None = None, native: Native = None
) -> Problems:
    """Everything that is wrong with a repository; see `Repository.verify`."""
    if objects not in OBJECT_CHECKS:
        raise InvalidInputError(f"objects={objects!r} is not None, 'list' or 'read'", ErrorKind.INVALID_ARGUMENT)
    pace = Pace(catalog)
    problems = _begin(pace)
    for name, check in CHECKS.items():
        try:
            problems += [Problem(name, subject, detail) for subject, detail in check(pace)]
        except FormatError as error:  # too damaged for this check; the others may still find their way
            problems.append(Problem(name, catalog.storage.name, error.message))
    for rule, subject, detail in _check_refs(pace):
        problems.append(Problem(rule, subject, detail))
    if objects is not None and payloads is not None:
        problems.objects = 0
        for subject, detail in _check_objects(pace, payloads, native, objects, problems):
            problems.append(Problem(f"objects_{objects}", subject, detail))
    return problems


def _begin(pace: Pace) -> Problems:
    """An empty list that says what is looked at."""
    try:
        with pace.read() as txn:
            names = invariants.list_names(txn)
            snapshots = invariants.list_snapshot_ids(txn)
    except FormatError:  # the checks will say more
        return Problems()
    branches, tags = ({name: found for kind, name, found in names if kind == what} for what in ("branch", "tag"))
    return Problems(branches=branches, tags=tags, snapshots=snapshots)


def check_file_pages(pace: Pace) -> Iterator[Finding]:
    """SQLite finds the pages, indexes and constraints sound."""
    findings = pace.catalog.find_damage()
    pace.rest()
    for finding in findings:
        yield pace.catalog.storage.name, finding


def check_snapshot_lineage(pace: Pace) -> Iterator[Finding]:
    """A snapshot sees what its parent saw: the parent is in its lineage."""
    with pace.read() as txn:
        tree = load_tree(txn)
        rows = invariants.list_parents(txn)
    for snapshot_id, seg, seq, parent_id, parent_seg, parent_seq in rows:
        start, stop = tree.interval(parent_seg, parent_seq)
        if not start <= tree.interval(seg, seq)[0] < stop:
            yield f"snapshot {snapshot_id}", f"its parent {parent_id} is not in its lineage"


def check_node_metadata(pace: Pace) -> Iterator[Finding]:
    """The metadata of every node is what its Zarr format asks for."""
    for path, seq, _, _, zarr_format, metadata, _ in invariants.scan_rows(pace, "node"):
        if metadata is None:
            continue
        try:
            documents = {"zarr.json": metadata} if zarr_format == 3 else read_json_object(metadata, "metadata")
            for name, text in documents.items():
                check_document(path, name, text)
        except (InvalidInputError, FormatError, TypeError) as error:
            yield f"/{path}", f"as of snapshot {seq}: {error}"


def check_node_path(pace: Pace) -> Iterator[Finding]:
    """Every node has a path that could be written."""
    for path, seq, _, _, _, metadata, _ in invariants.scan_rows(pace, "node"):
        if metadata is None:
            continue
        try:
            bare = check_path(path)
        except InvalidInputError as error:
            yield f"/{path}", f"as of snapshot {seq}: {error}"
            continue
        if bare != path:
            yield f"/{path}", f"as of snapshot {seq}: its path has a slash at an end"


def check_payload_crc(pace: Pace) -> Iterator[Finding]:
    """The bytes of inline chunks are those that were written."""
    for payload_id in invariants.scan_damaged_payloads(pace):
        yield f"payload {payload_id}", "its bytes do not have the CRC-32C they were written with"


def _rule(name: str) -> Check:
    def check(pace: Pace) -> Iterator[Finding]:
        with pace.read() as txn:
            found = invariants.find_broken(txn, name)
        yield from ((str(subject), str(detail)) for subject, detail in found)

    return check


def _json(name: str) -> Check:
    def check(pace: Pace) -> Iterator[Finding]:
        with pace.read() as txn:
            rows = invariants.list_json(txn, name)
        for subject, text in rows:
            try:
                read_json(text, subject) if name == "setting_value" else read_json_object(text, subject)
            except FormatError as error:
                yield subject, error.message

    return check


def _crc(table: str) -> Check:
    def check(pace: Pace) -> Iterator[Finding]:
        for row in invariants.scan_rows(pace, table):
            if not invariants.is_sound(row):
                key = ", ".join(repr(value) for value in row[: len(invariants.FIRST_KEYS[table])])
                yield f"{table} {key}", "its row does not have the CRC-32C it was written with"

    return check


# -- references -----------------------------------------------------------------------------------------------------

RefFinding = tuple[str, str, str]  # rule, subject, and what is wrong with it


def _check_refs(pace: Pace) -> list[RefFinding]:
    """References keep the rules, and are those that the change of their snapshot was written with."""
    for _ in range(ATTEMPTS):
        found, is_consistent = _compare_refs(pace)
        if is_consistent or not found:
            return found
    with pace.read():
        return _compare_refs(pace)[0]


def _compare_refs(pace: Pace) -> tuple[list[RefFinding], bool]:
    """What is found, and whether nothing but commits came in between."""
    try:
        with pace.read() as txn:
            horizon, upkeep = invariants.last_operation(txn), invariants.last_upkeep(txn)
        written: dict[tuple[int, int], WrittenRefs] = {}
        found = list(_read_refs(pace, written))
        found += _compare_changes(pace, {key: refs for key, refs in written.items() if key[0] <= horizon}, horizon)
        with pace.read() as txn:
            return found, invariants.last_upkeep(txn) == upkeep
    except FormatError as error:
        return [(name, pace.catalog.storage.name, error.message) for name in REF_CHECKS], True


def _read_refs(pace: Pace, written: dict[tuple[int, int], WrittenRefs]) -> Iterator[RefFinding]:
    """What breaks a rule; ``written`` gets what each snapshot wrote of each array."""
    with pace.read() as txn:
        node_id = next_array(txn, -1)
    while node_id is not None:
        start: str | None = FIRST
        while start is not None:
            with pace.read() as txn:
                broken, end = invariants.find_broken_refs(txn, node_id, start)
            yield from ((rule, str(subject), str(detail)) for rule, (subject, detail) in broken)
            start = None if end is None else check_order(end + AFTER, start, f"array {node_id}")
        place: RefPosition | None = ("", -1)
        while place is not None:
            with pace.read() as txn:
                some, place = scan_versions(txn, node_id, place, invariants.REFS_AT_ONCE)
            for seq, refs in some.items():
                before = written.get((seq, node_id), WrittenRefs(0, 0, frozenset()))
                total = before.total + refs.total & SUM_MASK
                written[seq, node_id] = WrittenRefs(before.rows + refs.rows, total, before.segments | refs.segments)
        with pace.read() as txn:
            node_id = next_array(txn, node_id)


def _compare_changes(pace: Pace, written: dict[tuple[int, int], WrittenRefs], horizon: int) -> Iterator[RefFinding]:
    none = WrittenRefs(0, 0, frozenset())
    for row in invariants.scan_rows(pace, "change"):
        check_types(row, invariants.CHANGE, "a change")
        seq, node_id, seg, _, packed, refs_sum, _ = row
        if seq > horizon:
            continue
        refs = written.pop((seq, node_id), none)
        subject = f"node {node_id}"
        if refs.total != refs_sum:
            yield "change_refs", subject, f"its {refs.rows} references of snapshot {seq} are not as they were written"
        if refs.segments - {seg}:
            yield "change_refs", subject, f"references of snapshot {seq} are in another segment than its change"
        listed = 0 if packed is None else invariants.count_listed(pace, seq, node_id, packed)
        if listed is None:
            yield "change_chunks", subject, f"the list of chunks that snapshot {seq} changed cannot be read"
        elif refs.rows > listed:
            yield "change_chunks", subject, f"snapshot {seq} wrote {refs.rows} chunks, of which it lists {listed}"
    for (seq, node_id), refs in written.items():
        yield "change_chunks", f"node {node_id}", f"snapshot {seq} wrote {refs.rows} chunks, of which it lists none"


# -- objects --------------------------------------------------------------------------------------------------------


def _check_objects(pace: Pace, payloads: Payloads, native: Native, how: str, problems: Problems) -> Iterator[Finding]:
    """Native objects are there and as long as they were; for ``read`` also, every chunk in them has its checksum."""
    with pace.read() as txn:
        stored = locations.list_packs(txn)
        extents = locations.list_extents(txn) if how == "read" else []
    problems.objects = len(stored)
    if not stored:
        return
    if not isinstance(native, Objects):
        yield "objects", f"{len(stored)} are referred to, and where they are is not known; open with objects="
        return
    try:
        sizes = {found.key: found.size for found in native.scan()}
    except IceliteError as error:
        yield "objects", error.message
        return
    missing = set()
    for pack in stored:
        size = sizes.get(pack.key)
        if size != pack.size and _is_needed(pace, pack.location_id):
            missing.add(pack.location_id)
            yield f"object {pack.key}", f"is missing, or has {size} bytes of {pack.size}"
    keys = {pack.location_id: pack.key for pack in stored}
    for location_id, group in groupby(extents, key=lambda extent: extent[0]):
        for _, offset, length in () if location_id in missing else group:
            try:
                payloads.read(Chunk(location_id, offset, length), f"at byte {offset} of {keys[location_id]}", None)
            except IceliteError as error:
                if _is_needed(pace, location_id):
                    yield f"object {keys[location_id]}", error.message


def _is_needed(pace: Pace, location_id: int) -> bool:
    """Whether the catalog still names an object: it may have been collected meanwhile."""
    with pace.read() as txn:
        return locations.is_named(txn, location_id)


CHECKS: dict[str, Check] = {
    "file_pages": check_file_pages,
    **{name: _json(name) for name in invariants.SELECT_JSON},
    **{name: _rule(name) for name in invariants.RULES},
    **{f"{table}_crc": _crc(table) for table in invariants.ROWS},
    "snapshot_lineage": check_snapshot_lineage,
    "node_metadata": check_node_metadata,
    "node_path": check_node_path,
    "payload_crc": check_payload_crc,
}
REF_CHECKS = (*invariants.BLOCK_RULES, "change_refs", "change_chunks")
