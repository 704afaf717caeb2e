"""One Icechunk snapshot written into an icelite session: what it changed against its parent, and no more.

A snapshot whose parent is the first one is read whole: that is the same where nothing expired, and does not depend on
transaction logs where something did, since Icechunk makes the first snapshot the parent of those that lose theirs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from operator import lt
from typing import TYPE_CHECKING

from zarr.core.sync import sync

from icelite.change_set import ChangeSet, Entry
from icelite.errors import ErrorKind, InvalidInputError
from icelite.icechunk.histories import collapse
from icelite.icechunk.library import from_their_url, naming, read_key, translated
from icelite.icechunk.manifests import Manifests, Reference, list_references
from icelite.session import Session
from icelite.types import ChunkType, Diff, SourceStamp, chunk_name

if TYPE_CHECKING:
    import icechunk

REFS_AT_ONCE = 50_000
CHUNKS_AT_ONCE = 64
MOVING = ".icelite-moving"  # first part of paths that no node keeps


@dataclass
class SnapshotReader:
    """Reads snapshots of one Icechunk repository into sessions, parents before children.

    Attributes
    ----------
    manifests
        Where it is in a local folder: its manifests, which say more than the API.
    chunks, dropped_checksums
        As in `ImportSummary`, so far.
    """

    source: icechunk.Repository
    manifests: Manifests | None
    chunks: int = 0
    dropped_checksums: int = 0
    _stamps: dict[tuple[str, str | None, int | None], tuple[str, SourceStamp]] = field(default_factory=dict)

    def read(self, snapshot_id: str, parent_id: str, *, whole: bool, target: Session) -> None:
        """Do in ``target``, which stands on the parent, what leads to a snapshot.

        Raises
        ------
        InvalidInputError, StorageError, FormatError
            What icelite cannot hold, such as a reference with a scheme it does not read; what Icechunk says.
        """
        session = self.source.readonly_session(snapshot_id=snapshot_id)
        details = _Details(self.source, snapshot_id)
        if whole:
            diff = Diff(new_arrays={"/" + path for path in details.nodes()})
        else:
            diff = self._changes(snapshot_id, parent_id)
        changes = target.changes
        for path in sorted({*diff.deleted_arrays, *diff.deleted_groups}):
            changes.delete_node(path.strip("/"))
        _move(changes, diff.moved_nodes)  # after an amend, of groups from which something was deleted
        fresh = {*diff.new_arrays, *diff.new_groups}
        changed = fresh | diff.updated_arrays | diff.updated_groups
        partly = {
            path: {chunk_name(at) for at in ats} for path, ats in diff.updated_chunks.items() if path not in fresh
        }
        for path in sorted(changed | partly.keys()):
            array = _Array(self, session, target, path.strip("/"), details)
            with naming(f"node {path}"):
                replaced = array.read_metadata() if path in changed else False
                array.read_chunks(None if replaced or path in fresh else partly.get(path, set()))

    def _changes(self, snapshot_id: str, parent_id: str) -> Diff:
        found = self.source.diff(from_snapshot_id=parent_id, to_snapshot_id=snapshot_id)
        return Diff(**{name: getattr(found, name) for name in Diff.__dataclass_fields__})

    def locate(self, reference: Reference) -> tuple[str, SourceStamp]:
        """URL and stamp of a virtual reference in icelite's words."""
        key = reference.url, reference.etag, reference.seconds
        found = self._stamps.get(key)
        if found is None:
            url, etag = from_their_url(reference.url), reference.etag
            if etag is not None and not url.startswith(("s3://", "vcc://")):
                etag = None
                self.dropped_checksums += 1
            modified_at = None if reference.seconds is None else reference.seconds * 1_000_000_000
            found = self._stamps[key] = url, SourceStamp(etag=etag, modified_at=modified_at)
        return found


class _Details:
    """The answer of `inspect_snapshot` about the nodes of a snapshot, asked when it is first needed."""

    def __init__(self, source: icechunk.Repository, snapshot_id: str) -> None:
        self._source = source
        self._snapshot_id = snapshot_id
        self._nodes: dict[str, dict[str, object]] | None = None

    def nodes(self) -> dict[str, dict[str, object]]:
        """Path to what is told of it."""
        if self._nodes is None:
            listed = self._source.inspect_snapshot(self._snapshot_id)["nodes"]
            self._nodes = {node["path"].strip("/"): node for node in listed}
        return self._nodes


def _move(changes: ChangeSet, moved: Iterable[tuple[str, str]]) -> None:
    """Move nodes, by way of paths that nothing else has: paths may be exchanged."""
    moves = [(source.strip("/"), target.strip("/")) for source, target in collapse(moved)]
    by_depth = sorted(moves, key=lambda move: move[0].count("/"), reverse=True)
    for i, (source, _) in enumerate(by_depth):
        changes.move_nodes(source, f"{MOVING}/{i}")
    for i, (_, target) in sorted(enumerate(by_depth), key=lambda item: item[1][1].count("/")):
        changes.move_nodes(f"{MOVING}/{i}", target)


@dataclass
class _Array:
    """One group or array on its way out of an Icechunk snapshot."""

    reader: SnapshotReader
    source: icechunk.Session
    target: Session
    path: str
    details: _Details

    def _key(self, *parts: str) -> str:
        return "/".join(filter(None, (self.path, *parts)))

    def read_metadata(self) -> bool:
        """Take over its document; whether it is another node than before."""
        data = sync(read_key(self.source.store, self._key("zarr.json")))
        if data is None:  # it came and went between two snapshots that are left
            return False
        changes = self.target.changes
        before = changes.find(self.path)
        changes.set_document(self.path, "zarr.json", data.decode())
        after = changes.find(self.path)
        if before is None or after is None or before.node.node_id != after.node.node_id:
            return True
        self._forget_outside(before, after)
        return False

    def _forget_outside(self, before: Entry, after: Entry) -> None:
        """Delete the chunks that a smaller shape leaves outside, as Icechunk does: they do not come back there."""
        old, new = before.info, after.info
        if old is None or new is None or old.grid is None or new.grid is None:
            return
        if any(size < former for size, former in zip(new.grid, old.grid, strict=True)):
            node_id = after.node.node_id
            names = [
                name for name, *_ in self.target.changes.refs(node_id) if not _is_inside(name, new.keys.ndim, new.grid)
            ]
            self.target.changes.delete_chunks(node_id, names)

    def read_chunks(self, wanted: set[str] | None) -> None:
        """Take over chunks: these, or all for None."""
        entry = self.target.changes.find(self.path)
        if entry is None or entry.info is None or wanted == set():
            return
        ndim, grid = entry.info.keys.ndim, entry.info.grid
        found: set[str] = set()
        references = (row for row in self._references(wanted) if _is_inside(row.chunk, ndim, grid))
        while batch := list(islice(references, REFS_AT_ONCE)):
            self._write_virtual(entry, [row for row in batch if row.kind == ChunkType.virtual])
            self._write_bytes(entry, [row.chunk for row in batch if row.kind != ChunkType.virtual])
            self.reader.chunks += len(batch)
            if wanted is not None:
                found.update(row.chunk for row in batch)
        if wanted is not None:
            self.target.changes.delete_chunks(entry.node.node_id, sorted(wanted - found))

    def _references(self, wanted: set[str] | None) -> Iterator[Reference]:
        if self.reader.manifests is not None:
            return self.reader.manifests.references(self.details.nodes()[self.path], wanted)
        return list_references(self.source, "/" + self.path, wanted)

    def _write_virtual(self, entry: Entry, rows: list[Reference]) -> None:
        if not rows:
            return
        changes, access = self.target.changes, self.target.access
        ids: dict[tuple[str, SourceStamp], int] = {}
        for source in {self.reader.locate(row) for row in rows}:
            ids[source] = changes.intern(access.locate(source[0], stamp=source[1], validate_container=False))
        with changes.catalog.stage() as txn:
            changes.set_refs(
                entry.node.node_id,
                [row.chunk for row in rows],
                [ids[self.reader.locate(row)] for row in rows],
                [row.offset for row in rows],
                [row.length for row in rows],
                txn,
            )

    def _write_bytes(self, entry: Entry, names: list[str]) -> None:
        for start in range(0, len(names), CHUNKS_AT_ONCE):
            some = names[start : start + CHUNKS_AT_ONCE]
            with translated(f"chunk {some[0]} and {len(some) - 1} more"):
                values = sync(self._fetch(some))
            for name, data in zip(some, values, strict=True):
                if data is None:
                    raise InvalidInputError(f"Icechunk lists chunk {name} and does not have it", ErrorKind.INVALID_KEY)
                self.target.changes.set_payload(entry.node.node_id, name, data)

    async def _fetch(self, names: list[str]) -> list[bytes | None]:
        return await asyncio.gather(*(read_key(self.source.store, self._key("c", name)) for name in names))


def _is_inside(name: str, ndim: int, grid: tuple[int, ...] | None) -> bool:
    position = name.split("/") if name else []
    return len(position) == ndim and (grid is None or all(map(lt, map(int, position), grid)))
