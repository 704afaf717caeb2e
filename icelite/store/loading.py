"""Where the chunks of one read are, and how their bytes come: one statement for all, then whole runs of neighbours.

Neighbouring ranges of one source are joined into runs that are read at once. A load is a piece of work of about a
megabyte: a run of a source, some rows of the payload table, or bytes that the session still holds. Loads of what is
local block and suit a thread; those of remote sources are awaited.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from icelite.catalog.locations import INLINE
from icelite.catalog.values import damaged
from icelite.change_set import ChangeSet, Entry
from icelite.errors import StorageError
from icelite.expansion import Expansion
from icelite.objects import TRAILER_BYTES, check_trailer
from icelite.payload import Payloads
from icelite.store.listing import find_chunk_key
from icelite.types import Chunk, Location
from icelite.virtual import Source

LOCAL_GAP = 8 << 10  # bytes: reading so many for nothing costs less than another call
LOCAL_BYTES = 1 << 20  # a run this long gains nothing from being longer, and stays in the processor's cache
REMOTE_GAP = 256 << 10
REMOTE_BYTES = 8 << 20

Bytes = bytes | bytearray | memoryview


class Piece(NamedTuple):
    """One chunk in a source: ``length`` bytes from ``offset``; ``place`` is its number in the batch."""

    offset: int
    length: int
    place: int


class Run(NamedTuple):
    """The half-open range ``[start, stop)`` of a source, and the chunks in it in order of their offsets.

    Behind each chunk are ``trailer`` bytes that are not its own.
    """

    source: Source
    start: int
    stop: int
    pieces: list[Piece]
    trailer: int


def join_runs(source: Source, pieces: Iterable[Piece], trailer: int = 0) -> list[Run]:
    """The fewest ranges worth reading that hold all the pieces."""
    gap, most = (LOCAL_GAP, LOCAL_BYTES) if source.is_local else (REMOTE_GAP, REMOTE_BYTES)
    runs: list[Run] = []
    start = stop = 0
    inside: list[Piece] = []
    for piece in sorted(pieces):
        end = piece.offset + piece.length + trailer
        if inside and piece.offset <= stop + gap and max(end, stop) - start <= most:
            inside.append(piece)
            stop = max(end, stop)
            continue
        if inside:
            runs.append(Run(source, start, stop, inside, trailer))
        start, stop, inside = piece.offset, end, [piece]
    if inside:
        runs.append(Run(source, start, stop, inside, trailer))
    return runs


Loaded = tuple[Bytes, int, Sequence[Piece]]  # bytes, the offset of the first one, the chunks in them


class Load(NamedTuple):
    """Work for a thread: ``read`` gives bytes, about ``size`` of them."""

    size: int
    read: Callable[[], Iterable[Loaded]]


class Places(NamedTuple):
    """Where the chunks of a batch are; numbers are places in the batch."""

    missing: list[int]
    loads: list[Load]
    remote: list[Run]
    expansion: Expansion | None  # what the chunks may unpack to


def find_positions(changes: ChangeSet, keys: Sequence[str]) -> tuple[Entry, list[str]] | None:
    """The array and the grid positions of chunk keys that all belong to it; None where they do not."""
    first = find_chunk_key(changes, keys[0])
    if first is None:
        return None
    entry, info, _ = first
    start = len(entry.node.path) + 1 if entry.node.path else 0
    head, decode = keys[0][:start], info.keys.decode
    positions = [decode(key[start:]) for key in keys if key.startswith(head)]
    found = [position for position in positions if position is not None]
    return (entry, found) if len(found) == len(keys) else None


def locate(changes: ChangeSet, payloads: Payloads, keys: Sequence[str]) -> Places | None:
    """Where the chunks under some keys are; None unless they all belong to one array.

    Raises
    ------
    InvalidInputError
        A reference that may not be read.
    """
    positions = find_positions(changes, keys)
    if positions is None:
        return None
    entry, names = positions
    places = Places([], [], [], entry.expansion)
    inline: list[Piece] = []
    outside: dict[int | Location, tuple[Chunk, list[Piece]]] = {}
    for place, found in enumerate(changes.chunks.find_many(entry.node.node_id, names)):
        if found is None:
            places.missing.append(place)
        elif found.location is None:
            places.loads.append(_held(found.data or b"", place))
        elif found.location == INLINE:
            inline.append(Piece(found.offset, found.length, place))
        elif found.length == 0:
            places.loads.append(_held(b"", place))
        else:
            outside.setdefault(found.location, (found, []))[1].append(Piece(found.offset, found.length, place))
    places.loads.extend(_inline_loads(payloads, inline, keys))
    for ref, pieces in outside.values():
        opened = payloads.source(ref, keys[pieces[0].place])
        for run in join_runs(opened, pieces, TRAILER_BYTES if payloads.is_native(ref) else 0):
            if run.source.is_local:
                places.loads.append(Load(run.stop - run.start, _reader(run, keys)))
            else:
                places.remote.append(run)
    return places


def _held(data: bytes, place: int) -> Load:
    return Load(len(data), lambda: [(data, 0, [Piece(0, len(data), place)])])


def _reader(run: Run, keys: Sequence[str]) -> Callable[[], Iterable[Loaded]]:
    return lambda: read_run(run, keys)


def read_run(run: Run, keys: Sequence[str]) -> Iterator[Loaded]:
    """The bytes of a run; where it cannot be read as a whole, of one chunk after the other, so that errors name it."""
    source = run.source
    try:
        data = source.read(run.start, run.stop - run.start, keys[run.pieces[0].place])
    except StorageError:
        if len(run.pieces) == 1:
            raise
        for piece in run.pieces:
            data = source.read(piece.offset, piece.length + run.trailer, keys[piece.place])
            yield _checked(run, data, piece.offset, [piece], keys)
        return
    yield _checked(run, data, run.start, run.pieces, keys)


async def read_remote_run(run: Run, keys: Sequence[str]) -> list[Loaded]:
    """As `read_run`, awaited."""
    source = run.source
    try:
        data = await source.read_async(run.start, run.stop - run.start, keys[run.pieces[0].place])
    except StorageError:
        if len(run.pieces) == 1:
            raise
        return [
            _checked(run, await source.read_async(p.offset, p.length + run.trailer, keys[p.place]), p.offset, [p], keys)
            for p in run.pieces
        ]
    return [_checked(run, data, run.start, run.pieces, keys)]


def _checked(run: Run, data: bytes, start: int, pieces: Sequence[Piece], keys: Sequence[str]) -> Loaded:
    """Bytes of a run from ``start`` on, with the chunks in them, of which those of native objects are checked."""
    if run.trailer:
        view = memoryview(data)
        for offset, length, place in pieces:
            end = offset - start + length
            check_trailer(view[end - length : end], view[end : end + run.trailer], keys[place])
    return data, start, pieces


def _inline_loads(payloads: Payloads, pieces: list[Piece], keys: Sequence[str]) -> Iterator[Load]:
    """Rows of the payload table in the order of their ids, about a megabyte at once."""
    batch: list[Piece] = []
    size = 0
    for piece in sorted(pieces):
        if batch and size + piece.length > LOCAL_BYTES:
            yield Load(size, _inline_reader(payloads, batch, keys))
            batch, size = [], 0
        batch.append(piece)
        size += piece.length
    if batch:
        yield Load(size, _inline_reader(payloads, batch, keys))


def _inline_reader(payloads: Payloads, pieces: list[Piece], keys: Sequence[str]) -> Callable[[], Iterable[Loaded]]:
    def read() -> Iterator[Loaded]:
        found = payloads.read_inline({piece.offset: keys[piece.place] for piece in pieces})
        for payload_id, length, place in pieces:
            data = found[payload_id]
            if len(data) != length:
                raise damaged(f"chunk {keys[place]}", f"{len(data)} bytes, and its reference says {length}")
            yield data, 0, (Piece(0, len(data), place),)

    return read
