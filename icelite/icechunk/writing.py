"""One snapshot of icelite's written into an Icechunk session: what it changed against its parent, and no more.

An Icechunk commit either moves nodes or writes. A snapshot that moved nodes and wrote as well (after an amend, or where
snapshots between expired), or that moved to a path without a group, has its moved nodes deleted and created again.
Icechunk forgets chunks that a shrunken array leaves outside its grid; here they come back when it grows again, and
are then written anew.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from operator import lt
from typing import TYPE_CHECKING

from zarr.core.sync import sync

from icelite.catalog.locations import INLINE
from icelite.change_set import Entry
from icelite.errors import ErrorKind, InvalidInputError
from icelite.icechunk.histories import are_independent, collapse
from icelite.icechunk.library import buffer, is_relative, to_their_url, translated
from icelite.metadata import ArrayInfo
from icelite.session import Session
from icelite.types import Chunk, ChunkType, Diff, Location, chunk_name, chunk_position

if TYPE_CHECKING:
    import icechunk

SCAN_FROM = 2_000  # changed chunks of an array from which all its references are read instead of one by one
REFS_AT_ONCE = 50_000
CHUNKS_AT_ONCE = 64
BYTES_AT_ONCE = 64 << 20

Row = tuple[str, Location | None, int, int]  # chunk, None for a payload of the catalog, offset or payload id, length


@dataclass
class SnapshotWriter:
    """Writes snapshots into Icechunk sessions, parents before children.

    Attributes
    ----------
    home
        URL prefix from which relative references start; None for a catalog in memory.
    chunks, copied_moves, rewritten
        As in `ExportSummary`, so far.
    local_urls
        Absolute URLs of local files that references name.
    has_relative
        Whether a reference was relative to the catalog's directory.
    """

    home: str | None
    chunks: int = 0
    copied_moves: int = 0
    rewritten: int = 0
    local_urls: set[str] = field(default_factory=set)
    has_relative: bool = False
    _outside: set[int] = field(default_factory=set)  # arrays with chunks outside their grid

    def as_moves(self, diff: Diff, session: icechunk.Session) -> bool:
        """Move nodes in a rearrange session, where a snapshot did nothing else; whether that could be done."""
        import icechunk

        moves = collapse(diff.moved_nodes)
        if not are_independent(moves):
            return False
        try:
            for source, target in moves:
                session.move(source, target)
        except icechunk.SessionStateError:  # no group at the destination
            return False
        return True

    def write(self, diff: Diff, parent: Session, source: Session, target: icechunk.Session) -> None:
        """Do in ``target``, which stands on the parent, what leads from ``parent`` to ``source``; uses ``diff`` up.

        Raises
        ------
        InvalidInputError, StorageError
            ``invalid-argument``, ``bad-metadata`` for what Icechunk cannot hold; a source that cannot be read.
        """
        gone = {*diff.deleted_arrays, *diff.deleted_groups, *(old for old, _ in diff.moved_nodes)}
        fresh = {*diff.new_arrays, *diff.new_groups, *(new for _, new in diff.moved_nodes)}
        self.copied_moves += len(diff.moved_nodes)
        for path in _tops(gone):
            sync(target.store.delete_dir(path.strip("/")))
            # with a group Icechunk deletes all below it, here it may have been the group alone
            fresh.update("/" + node.path for node in source.changes.nodes.list_below(path.strip("/")))
        changed = fresh | diff.updated_arrays | diff.updated_groups
        partly = {
            path: {chunk_name(at) for at in ats} for path, ats in diff.updated_chunks.items() if path not in fresh
        }
        diff.updated_chunks.clear()  # a million small lists would slow down all that follows
        for path in sorted(changed | partly.keys()):
            entry = source.changes.nodes.find(path.strip("/"))
            if entry is None:  # it came and went between two snapshots that are left
                continue
            array = _Array(self, source, target, entry)
            with translated(f"node {path}"):
                if path in fresh:
                    array.write_all()
                else:
                    before = parent.changes.nodes.find(path.strip("/"))
                    array.write_changes(partly.get(path, set()), before, path in changed)

    def url(self, location: Location) -> str:
        """A location as Icechunk reads it, absolute."""
        if location.container is not None:
            return to_their_url(f"vcc://{location.container}/{location.path}")
        path = location.path
        if is_relative(location):
            if self.home is None:
                raise InvalidInputError(
                    f"virtual reference {path!r} is relative, and a catalog in memory has no directory",
                    ErrorKind.INVALID_VIRTUAL_REF,
                )
            self.has_relative = True
            path = self.home + path
        elif path.startswith("file://"):
            self.local_urls.add(path)
        return to_their_url(path)


@dataclass
class _Array:
    """One group or array on its way into an Icechunk session."""

    writer: SnapshotWriter
    source: Session
    target: icechunk.Session
    entry: Entry

    def write_all(self) -> None:
        """Write it where nothing is yet."""
        self._write_metadata()
        if self.entry.info is not None:
            self._write_chunks(self._inside(self._scan(), self.entry.info))

    def write_changes(self, names: set[str], before: Entry | None, metadata_changed: bool) -> None:
        """Write what changed of it: these chunks, and those that came back with a greater shape."""
        info = self.entry.info
        if info is None:
            self._write_metadata()
            return
        if metadata_changed and before is not None and before.info is not None:
            names = names | self._returning(before.info, info)
        rows, deleted = self._select(names)
        for name in deleted:  # before the shape changes: Icechunk finds no chunk outside it
            sync(self.target.store.delete(self._key(name)))
        if metadata_changed:
            self._write_metadata()
        self._write_chunks(self._inside(rows, info))

    def _returning(self, old: ArrayInfo, new: ArrayInfo) -> set[str]:
        """Chunks that were outside the grid and are inside it now; and remember whether any are outside now."""
        node_id = self.entry.node.node_id
        if old.grid is None or new.grid is None:
            return set()
        if any(size < before for size, before in zip(new.grid, old.grid, strict=True)) and any(
            not _is_inside(row[0], new.grid) for row in self._scan()
        ):
            self.writer._outside.add(node_id)
        if node_id not in self.writer._outside:
            return set()
        names = (row[0] for row in self._scan())
        return {name for name in names if not _is_inside(name, old.grid) and _is_inside(name, new.grid)}

    def _inside(self, rows: Iterable[Row], info: ArrayInfo) -> Iterator[Row]:
        grid = info.grid
        for row in rows:
            if _is_inside(row[0], grid):
                yield row
            else:
                self.writer._outside.add(self.entry.node.node_id)

    def _key(self, name: str) -> str:
        path = self.entry.node.path
        return "/".join(filter(None, (path, "c", name)))

    def _write_metadata(self) -> None:
        node, info = self.entry.node, self.entry.info
        if node.zarr_format != 3:
            raise InvalidInputError(
                f"/{node.path} is Zarr v{node.zarr_format}, and Icechunk holds Zarr v3 only; convert it, or export to"
                " Zarr or kerchunk",
                ErrorKind.INVALID_ARGUMENT,
            )
        if info is not None and (info.keys.prefix != "c" or (info.keys.separator != "/" and info.keys.ndim)):
            raise InvalidInputError(
                f"array /{node.path} names its chunks like {info.keys.encode('/'.join('0' * info.keys.ndim))!r}, and"
                " Icechunk reads the chunk key encoding 'default' with separator '/' only; copy the array to one",
                ErrorKind.INVALID_ARGUMENT,
            )
        key = "/".join(filter(None, (node.path, "zarr.json")))
        text = node.documents["zarr.json"]
        strict = _strict(text)
        self.writer.rewritten += strict != text
        sync(self.target.store.set(key, buffer(strict.encode())))

    # -- references --------------------------------------------------------------------------------------------

    def _scan(self) -> Iterator[Row]:
        changes = self.source.changes
        known: dict[int, Location | None] = {INLINE: None}
        for name, location_id, offset, length in changes.chunks.refs(self.entry.node.node_id):
            if location_id not in known:
                known[location_id] = changes.chunks.locations[location_id - 2]
            yield name, known[location_id], offset, length

    def _select(self, names: set[str]) -> tuple[list[Row], set[str]]:
        """The references of some chunks, and which of these have none."""
        if len(names) >= SCAN_FROM:
            rows = [row for row in self._scan() if row[0] in names]
        else:
            rows = [row for name in sorted(names) if (row := self._find(name)) is not None]
        return rows, names - {row[0] for row in rows}

    def _find(self, name: str) -> Row | None:
        ref = self.source.changes.chunks.find(self.entry.node.node_id, name)
        if ref is None:
            return None
        return name, None if ref.location == INLINE else self.source.payloads.location(ref), ref.offset, ref.length

    def _write_chunks(self, rows: Iterable[Row]) -> None:
        iterator = iter(rows)
        while batch := list(islice(iterator, REFS_AT_ONCE)):
            virtual = [
                (name, at, offset, length)
                for name, at, offset, length in batch
                if at is not None and at.kind == ChunkType.virtual
            ]
            if virtual:
                self._write_virtual(virtual)
            for few in _portions([row for row in batch if row[1] is None or row[1].kind != ChunkType.virtual]):
                self._write_bytes(few)
            self.writer.chunks += len(batch)

    def _write_virtual(self, rows: list[tuple[str, Location, int, int]]) -> None:
        import icechunk

        sources: dict[Location, tuple[str, str | None, datetime | None]] = {}
        specs = []
        for name, at, offset, length in rows:
            source = sources.get(at)
            if source is None:
                self.source.access.check_unsigned(at.path)
                source = sources[at] = self.writer.url(at), at.etag, None if at.etag else _whole_seconds(at)
            specs.append(icechunk.VirtualChunkSpec(chunk_position(name), source[0], offset, length, *source[1:]))
        left = self.target.store.set_virtual_refs("/" + self.entry.node.path, specs, validate_containers=False)
        if left:
            raise InvalidInputError(
                f"Icechunk did not take {len(left)} references, among them that of chunk {left[0]}",
                ErrorKind.INVALID_VIRTUAL_REF,
            )

    def _write_bytes(self, rows: list[Row]) -> None:
        payloads = self.source.payloads
        values = [
            (self._key(name), payloads.read(Chunk(at or INLINE, offset, length), self._key(name), None))
            for name, at, offset, length in rows
        ]

        async def write() -> None:
            writes = (self.target.store.set(key, buffer(data)) for key, data in values)
            for outcome in await asyncio.gather(*writes, return_exceptions=True):
                if isinstance(outcome, BaseException):  # when all have ended: nobody writes to a draft that goes
                    raise outcome

        sync(write())


def _strict(text: str) -> str:
    """A document with ``NaN`` and ``Infinity`` as text, which is how Zarr writes them as fill values; else as it is."""
    bare: list[str] = []

    def as_text(constant: str) -> str:
        bare.append(constant)
        return constant

    content = json.loads(text, parse_constant=as_text)
    return json.dumps(content) if bare else text


def _portions(rows: list[Row]) -> Iterator[list[Row]]:
    """Rows in order, so many at once as memory should hold the bytes of."""
    portion: list[Row] = []
    size = 0
    for row in rows:
        if portion and (len(portion) >= CHUNKS_AT_ONCE or size + row[3] > BYTES_AT_ONCE):
            yield portion
            portion, size = [], 0
        portion.append(row)
        size += row[3]
    if portion:
        yield portion


def _is_inside(name: str, grid: tuple[int, ...] | None) -> bool:
    return grid is None or all(map(lt, map(int, name.split("/") if name else ()), grid))


def _whole_seconds(location: Location) -> datetime | None:
    """The time after which a source must not have changed, which Icechunk keeps in whole seconds: rounded up."""
    if location.modified_at is None:
        return None
    return datetime.fromtimestamp(-(-location.modified_at // 1_000_000_000), UTC)


def _tops(paths: Iterable[str]) -> list[str]:
    """The paths that are below no other one of them."""
    known = set(paths)
    return sorted(path for path in known if known.isdisjoint(_above(path)))


def _above(path: str) -> set[str]:
    """The paths of the groups around a node, the root's included."""
    parts = path.strip("/").split("/") if path != "/" else []
    return {"/" + "/".join(parts[:size]) for size in range(len(parts))}
