"""The messages of a GRIB file, editions 1 and 2: where each is and on which grid. Only headers are decoded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from icelite.formats.source import SourceFile

_END = b"7777"
_HAS_GRID = 0x80  # flag of a GRIB1 message that describes its grid
_GAUSSIAN = {1: 4, 2: 40}  # number of the grid template by edition
_NAMES = {
    1: {0: "regular_ll", 1: "mercator", 3: "lambert", 4: "gaussian", 5: "polar_stereographic", 10: "rotated_ll"},
    2: {0: "regular_ll", 1: "rotated_ll", 10: "mercator", 20: "polar_stereographic", 30: "lambert", 40: "gaussian"},
}
_NAMES[1] |= {50: "spherical_harmonics"}
_NAMES[2] |= {50: "spherical_harmonics"}


@dataclass(frozen=True, slots=True)
class Message:
    """One message.

    Attributes
    ----------
    offset
        Of its first byte in the file.
    grid
        The section that describes its grid, as it is; empty if it has none.
    """

    offset: int
    edition: int
    grid: bytes

    @property
    def template(self) -> int | None:
        """Number of the grid's type, which differs between editions."""
        if not self.grid:
            return None
        return self.grid[5] if self.edition == 1 else int.from_bytes(self.grid[12:14], "big")

    @property
    def grid_name(self) -> str:
        """The grid's type as ecCodes calls it, or its number."""
        template = self.template
        return "none" if template is None else _NAMES[self.edition].get(template, f"type {template}")

    @property
    def is_gaussian(self) -> bool:
        """Whether it is a Gaussian grid, of latitudes that are not evenly spaced."""
        return self.template == _GAUSSIAN[self.edition]

    @property
    def is_regular(self) -> bool:
        """Whether all rows have the same number of points."""
        if self.template not in (0, _GAUSSIAN[self.edition]):
            return True
        columns = self.grid[6:8] if self.edition == 1 else self.grid[30:34]
        return columns.strip(b"\xff") != b""

    @property
    def first_latitude(self) -> float:
        """Latitude of the first point of a Gaussian or regular grid, degrees."""
        if self.edition == 1:
            return _signed(self.grid[10:13]) / 1_000
        return _signed(self.grid[46:50]) / 1_000_000


def _signed(data: bytes) -> int:
    """A number whose first bit is its sign, as GRIB has them."""
    value = int.from_bytes(data, "big")
    sign = 1 << (8 * len(data) - 1)
    return -(value - sign) if value & sign else value


def read_messages(source: SourceFile) -> Iterator[Message]:
    """The messages of a file; what is between them is passed over.

    Raises
    ------
    StorageError
        ``unreadable-source`` for a message that is damaged or cut short.
    """
    data = source.read(0, None)
    at = 0
    while (at := data.find(b"GRIB", at)) >= 0:
        edition = data[at + 7] if at + 16 <= len(data) else 0
        length = int.from_bytes(data[at + 8 : at + 16] if edition == 2 else data[at + 4 : at + 7], "big")
        if edition in _NAMES and data[at + length - 4 : at + length] == _END:
            yield Message(at, edition, _grid(data, at, at + length, edition))
            at += length
        elif edition in _NAMES:
            raise source.unreadable(f"its GRIB message at byte {at} is damaged or cut short")
        else:
            at += 4


def _grid(data: bytes, start: int, end: int, edition: int) -> bytes:
    if edition == 1:
        product = start + 8
        grid = product + int.from_bytes(data[product : product + 3], "big")
        length = int.from_bytes(data[grid : grid + 3], "big") if data[product + 7] & _HAS_GRID else 0
        return data[grid : grid + length]
    at = start + 16
    while at + 5 <= end - 4:
        length = int.from_bytes(data[at : at + 4], "big")
        if data[at + 4] == 3 or length < 5:
            return data[at : at + length]
        at += length
    return b""


def gaussian_latitudes(rows: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Latitudes of a Gaussian grid in degrees, from north to south: the zeros of the Legendre polynomial."""
    zeros, _ = np.polynomial.legendre.leggauss(rows)
    latitudes: np.ndarray[tuple[int], np.dtype[np.float64]] = np.degrees(np.arcsin(zeros[::-1]))
    return latitudes
