"""GRIB, editions 1 and 2: gribberish's parser for VirtualiZarr. Each message is a chunk.

What gribberish would lose or get wrong without a word is found by walking through the messages: those that it skips,
those of another grid that it puts into one array, and the latitudes of Gaussian grids, which are computed here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from virtualizarr.manifests import ManifestArray

from icelite.errors import ErrorKind, InvalidInputError, StorageError
from icelite.formats.parsed import ParsedGroup, descend
from icelite.formats.source import SourceFile, describe
from icelite.types import SourceStamp

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


_AXES = {"y": "latitude", "x": "longitude"}


def parse(
    source: SourceFile, stamp: SourceStamp, group: str, dropped: Collection[str], whole_tree: bool
) -> ParsedGroup:
    """Parse a group for each kind of level and product, or for one dataset all of them put into one group.

    Raises
    ------
    InvalidInputError
        ``missing-package`` where gribberish has no parser: it needs Python 3.12 or newer. ``invalid-argument`` for a
        file whose variables do not fit into one dataset.
    StorageError
        ``unreadable-source`` for messages or grids that gribberish does not read.
    """
    try:
        from gribberish.virtualizarr import GribberishParser
    except ImportError as error:
        raise InvalidInputError(
            f"reading {source.url!r}, a GRIB file, needs the package 'gribberish' 1.9 or newer, which needs Python 3.12"
            " or newer",
            ErrorKind.MISSING_PACKAGE,
        ) from error
    messages = {message.offset: message for message in read_messages(source)}
    collapse = not whole_tree and not group
    parser = GribberishParser(drop_variables=sorted(dropped) or None, collapse_groups=collapse)
    try:
        parsed = ParsedGroup.of_store(parser(source.url, source.stores))
    except ValueError as error:
        raise _unread(source, messages, sorted(messages), describe(error)) from error
    if not dropped:
        _check_messages(source, parsed, messages)
    for path, node in parsed.walk():
        _mend(source, path, node, messages)
    parsed = descend(parsed, group, source)
    if not whole_tree and not parsed.arrays and parsed.groups:
        paths = [path for path, node in parsed.walk() if node.arrays]
        raise InvalidInputError(
            f"{source.url!r} holds variables that do not fit into one dataset, in the groups {', '.join(paths)}: open"
            " it as a tree, or name one with group=",
            ErrorKind.INVALID_ARGUMENT,
        )
    return parsed


def _offsets(array: Any) -> list[int]:
    return [int(entry["offset"]) for _, entry in array.manifest.iter_refs() if entry["path"] != "__inlined__"]


def _check_messages(source: SourceFile, parsed: ParsedGroup, messages: dict[int, Message]) -> None:
    found = {offset for _, node in parsed.walk() for array in node.arrays.values() for offset in _offsets(array)}
    lost = sorted(messages.keys() - found)
    if lost:
        remedy = "to leave the others out, pass parser=gribberish.virtualizarr.GribberishParser()"
        raise _unread(source, messages, lost, remedy)


def _unread(source: SourceFile, messages: dict[int, Message], lost: list[int], rest: str) -> StorageError:
    kinds = ", ".join(sorted({messages[offset].grid_name for offset in lost})) or "no whole message"
    return source.unreadable(
        f"gribberish reads {len(messages) - len(lost)} of its {len(messages)} messages; the others are on grids of the"
        f" types {kinds}: {rest}"
    )


def _mend(source: SourceFile, path: str, node: ParsedGroup, messages: dict[int, Message]) -> None:
    """Check the grids of a group's variables, and give Gaussian ones their latitudes."""
    for name, array in node.arrays.items():
        used = [messages[offset] for offset in _offsets(array) if offset in messages]
        grids = {message.grid for message in used}
        if len(grids) > 1:
            raise source.unreadable(
                f"the messages of variable {f'{path}/{name}'.lstrip('/')!r} have {len(grids)} different grids, which"
                " gribberish puts into one array: split the file, or leave the variable out (drop_variables=)"
            )
        if any(not message.is_regular for message in used):
            raise source.unreadable(
                f"variable {f'{path}/{name}'.lstrip('/')!r} has a reduced grid, with rows of different lengths, which"
                " gribberish does not read: leave it out (drop_variables=)"
            )
    gaussian = [
        messages[offset]
        for array in node.arrays.values()
        for offset in _offsets(array)[:1]
        if offset in messages and messages[offset].is_gaussian
    ]
    if gaussian and {"y", "x"} <= node.arrays.keys():
        _set_latitudes(source, node, gaussian)


def _set_latitudes(source: SourceFile, node: ParsedGroup, gaussian: Sequence[Message]) -> None:
    """``latitude`` and ``longitude`` as in other grids, in place of evenly spaced ``y`` and of ``x``."""
    rows = node.arrays["y"].shape[0]
    latitudes = gaussian_latitudes(rows)
    first = {message.first_latitude for message in gaussian}
    if len(first) != 1 or abs(latitudes[0] - first.pop()) > 0.001:
        raise source.unreadable(
            f"its Gaussian grid of {rows} rows does not run from pole to pole, north first; gribberish gives such a"
            " grid wrong latitudes"
        )
    manifest: Any = node.arrays["x"].manifest
    longitudes = np.frombuffer(manifest._inlined[(0,)], "<f8")
    for name in ("y", "x", "latitude", "longitude"):
        node.arrays.pop(name, None)
    node.arrays = {name: _renamed(array) for name, array in node.arrays.items()}
    described = {"standard_name": "latitude", "units": "degrees_north", "axis": "Y"}
    node.made["latitude"] = xr.Variable("latitude", latitudes, described)
    described = {"standard_name": "longitude", "units": "degrees_east", "axis": "X"}
    node.made["longitude"] = xr.Variable("longitude", longitudes.copy(), described)


def _renamed(array: Any) -> Any:
    metadata = array.metadata
    dims = tuple(_AXES.get(dim, dim) for dim in metadata.dimension_names or ())
    attributes = {key: value for key, value in metadata.attributes.items() if key != "coordinates"}
    metadata = dataclasses.replace(metadata, dimension_names=dims, attributes=attributes)
    return ManifestArray(metadata=metadata, chunkmanifest=array.manifest)
