"""Neighbouring ranges of one source, joined into runs that are read at once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from icelite.virtual import Source

LOCAL_GAP = 8 << 10  # bytes: reading so many for nothing costs less than another call
LOCAL_BYTES = 1 << 20  # a run this long gains nothing from being longer, and stays in the processor's cache
REMOTE_GAP = 256 << 10
REMOTE_BYTES = 8 << 20


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
