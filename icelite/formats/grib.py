"""GRIB, editions 1 and 2: each message is a chunk that gribberish decodes; the rest is decoded by ecCodes and copied.

- ecCodes reads the headers; variables and datasets are those of ``cfgrib.open_datasets``.
- A message is referenced only if gribberish is known to decode its edition, grid and packing, and does so for the
  first message of that layout in the file as ecCodes does. It ends the process for some others.
- The second field of a message cannot be referenced: its sections are kept in the repository as a message of its own.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import xarray as xr
from virtualizarr.manifests import ManifestArray

from icelite.errors import ErrorKind, InvalidInputError
from icelite.formats.attributes import json_attributes
from icelite.formats.eccodes import Headers, compare_gribberish, read_values
from icelite.formats.grib_cubes import (
    IDENTITY,
    KEYS,
    Cube,
    GribDataset,
    GribGrid,
    IndexedField,
    arrange,
    collapse,
    describe_grid,
    name_datasets,
)
from icelite.formats.grib_messages import FieldBytes, FieldExtent, read_field, read_fields
from icelite.formats.parsed import Copied, ParsedGroup, build_array, has_inlined, lazy_copy, no_group
from icelite.formats.source import SourceFile
from icelite.types import SourceStamp

_CODEC = {"name": "gribberish", "configuration": {"var": "values"}}  # any name but those of coordinates
_DECODED = {  # what gribberish decodes as ecCodes does, by edition
    1: ("grid_simple",),
    2: (
        "grid_simple",
        "grid_ccsds",
        "grid_jpeg",
        "grid_png",
        "grid_complex",
        "grid_complex_spatial_differencing",
    ),
}
_KEYS = (*KEYS, *IDENTITY[1], *IDENTITY[2], "packingType", "bitmapPresent", "bitsPerValue", "numberOfValues")
_GRIDS_OF_FIRST_EDITION = ("regular_ll", "regular_gg")
_MOST_POINTS = 1 << 28


def parse(
    source: SourceFile, stamp: SourceStamp, group: str, dropped: Collection[str], whole_tree: bool
) -> ParsedGroup:
    """Parse a group for each of cfgrib's datasets, or all of them put into one dataset where they fit.

    Raises
    ------
    InvalidInputError
        ``invalid-argument`` for a file whose variables do not fit into one dataset.
    StorageError
        ``unreadable-source`` for a file that ends within a message, or holds none that can be read.
    """
    fields, skipped = _index(source)
    datasets = arrange(fields)
    for dataset in datasets:
        dataset.cubes = [cube for cube in dataset.cubes if cube.name not in dropped]
    named = name_datasets(dataset for dataset in datasets if dataset.cubes)
    if not named and not dropped:
        problem = "; ".join(f"{name}: {reason}" for name, reason in skipped.items())
        raise source.unreadable(problem or "it holds no whole GRIB message")
    build = partial(_build_group, source, stamp)
    if group and group not in named:
        raise no_group(source, group, named)
    if whole_tree and not group:
        return ParsedGroup(groups={name: build(dataset) for name, dataset in named.items()}, skipped=skipped)
    whole = named[group] if group else _whole(source, named)
    parsed = build(whole) if whole.cubes else ParsedGroup()
    parsed.skipped |= skipped
    return parsed


def _whole(source: SourceFile, named: dict[str, GribDataset]) -> GribDataset:
    whole = collapse(list(named.values())) if named else GribDataset({})
    if whole is None:
        raise InvalidInputError(
            f"{source.url!r} holds variables that do not fit into one dataset, in the groups {', '.join(named)}: open"
            " it as a tree, or name one with group= (source_group= of virtualize)",
            ErrorKind.INVALID_ARGUMENT,
        )
    return whole


# -- the index of a file ---------------------------------------------------------------------------------------------


def _index(source: SourceFile) -> tuple[list[IndexedField], dict[str, str]]:
    """All fields of a file, and why some are left out."""
    found: list[IndexedField] = []
    skipped: dict[str, str] = {}
    layouts = _Layouts()
    for extent, part in read_fields(source):
        headers = Headers(partial(_read_again, source, extent))
        try:
            if isinstance(part, str):
                raise ValueError(part)
            headers.load(_KEYS, part.message)
            grid, problem = layouts.examine(extent, part, headers)
        except ValueError as error:
            which = "" if extent.alone else f"field {extent.number} of "
            skipped[f"{which}the message at byte {extent.offset}"] = str(error)
            continue
        found.append(IndexedField(extent, headers, part.product, grid, problem))
    return found, skipped


def _read_again(source: SourceFile, extent: FieldExtent) -> bytes:
    with source.open() as stream:
        return read_field(stream, extent.offset, extent.length, extent.number)


class _Layouts:
    """Grids and ways of packing that were met in a file; each is examined once."""

    def __init__(self) -> None:
        self._grids: dict[tuple[Any, ...], GribGrid] = {}
        self._problems: dict[tuple[Any, ...], str | None] = {}

    def examine(self, extent: FieldExtent, part: FieldBytes, headers: Headers) -> tuple[GribGrid, str | None]:
        """The grid of a field, and why it cannot be referenced.

        Raises
        ------
        ValueError
            ecCodes does not decode it.
        """
        points = headers.get("numberOfPoints", 0)
        if not isinstance(points, int) or points > _MOST_POINTS:
            raise ValueError(f"it has {points} points, and {_MOST_POINTS} are the most that are read")
        if extent.edition == 2 and not headers.get("bitmapPresent") and headers.get("numberOfValues", points) != points:
            raise ValueError(f"it has {headers['numberOfValues']} values for {points} points")
        where = (extent.edition, part.grid or part.product[:28], headers.get("gridType"), points)
        packing = (headers.get("packingType"), headers.get("bitmapPresent"), headers.get("bitsPerValue") == 0)
        layout = (*where, *packing)
        if layout not in self._problems:
            values = read_values(part.message)
            if where not in self._grids:
                self._grids[where] = self._kept(describe_grid(headers, part.message, values.size))
            grid = self._grids[where]
            if values.size != np.prod(grid.shape):
                raise ValueError(f"it has {values.size} values on a grid of {' x '.join(map(str, grid.shape))}")
            self._problems[layout] = self._find_problem(extent.edition, part.message, headers, grid)
        return self._grids[where], self._problems[layout]

    def _kept(self, grid: GribGrid) -> GribGrid:
        """The first of the grids that are equal, so that they can be told by identity."""
        return next((other for other in self._grids.values() if other.equals(grid)), grid)

    def _find_problem(self, edition: int, message: bytes, headers: Headers, grid: GribGrid) -> str | None:
        packing, kind = headers.get("packingType"), headers.get("gridType")
        if not _has_codec():
            return "gribberish is not installed, which needs Python 3.12"
        if grid.columns_first or grid.turning:
            return "its points are not in rows that all run the same way"
        if packing not in _DECODED[edition]:
            return f"gribberish does not decode {packing}"
        if edition == 1 and (kind not in _GRIDS_OF_FIRST_EDITION or len(message) >= 1 << 23):
            return f"gribberish does not decode edition 1 on a grid of the type {kind}"
        if edition == 1 and headers.get("bitmapPresent") and not headers.get("bitsPerValue"):
            return "gribberish misses that a constant field has holes"
        try:
            return compare_gribberish(message)
        except ValueError:
            return "gribberish does not come back from it"


def _has_codec() -> bool:
    try:
        import gribberish.zarr.codec  # noqa: F401  (found by name when the chunks are read)
    except ImportError:
        return False
    return True


# -- from a dataset to a group ---------------------------------------------------------------------------------------


def _build_group(source: SourceFile, stamp: SourceStamp, dataset: GribDataset) -> ParsedGroup:
    parsed = ParsedGroup(attributes=json_attributes(dataset.attributes))
    parsed.made = {name: _squeezed(variable) for name, variable in dataset.coordinates.items()}
    parsed.coordinates = tuple(parsed.made)
    for cube in dataset.cubes:
        if cube.repeated:
            warnings.warn(
                f"{cube.repeated} fields of {cube.name!r} are in {source.url!r} twice: the first of each is taken",
                stacklevel=2,
            )
        reasons = [each.problem for each in cube.cells.values() if each.problem is not None]
        split = sum(each.extent.number > 0 for each in cube.cells.values())
        if split and not has_inlined():
            reasons.append("its message holds several fields")
        if reasons:
            parsed.copied[cube.name] = Copied(_copy(source, stamp, cube), reasons[0])
            continue
        parsed.arrays[cube.name] = _reference(source, cube)
        if split:
            parsed.partly[cube.name] = f"{split} of {len(cube.cells)} fields are not the first of their message"
    return parsed


def _squeezed(variable: xr.Variable) -> xr.Variable:
    return variable.isel({dim: 0 for dim, size in variable.sizes.items() if size == 1})


@dataclass(frozen=True, slots=True)
class _Layout:
    """Dimensions of a variable without those of length one, as cfgrib leaves them out."""

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    header: tuple[int, ...]  # axes of the cube that stay
    points: tuple[int, ...]  # shape of the grid that stays

    @classmethod
    def of_cube(cls, cube: Cube) -> _Layout:
        sizes = [cube.coordinates[dim].size for dim in cube.dims]
        header = tuple(axis for axis, size in enumerate(sizes) if size > 1)
        points = tuple(size for size in cube.grid.shape if size > 1)
        dims = (
            *(cube.dims[axis] for axis in header),
            *(dim for dim, size in zip(cube.grid.dims, cube.grid.shape, strict=True) if size > 1),
        )
        return cls(dims, (*(sizes[axis] for axis in header), *points), header, points)

    def positions(self, cube: Cube) -> Iterator[tuple[tuple[int, ...], IndexedField]]:
        for position, each in cube.cells.items():
            yield tuple(position[axis] for axis in self.header), each


def _table(layout: _Layout, cube: Cube) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """Offset, length and number of the field at each position; a length of 0 where there is none."""
    table = np.zeros((3, *layout.shape[: len(layout.header)]), np.uint64)
    for position, each in layout.positions(cube):
        extent = each.extent
        for row, value in enumerate((extent.offset, extent.length, extent.number)):
            table[(row, *position)] = value
    return table


def _reference(source: SourceFile, cube: Cube) -> ManifestArray:
    layout = _Layout.of_cube(cube)
    table, trailing = _table(layout, cube), (1,) * len(layout.points)
    inlined = {
        (*position, *(0,) * len(trailing)): _read_again(source, each.extent)
        for position, each in layout.positions(cube)
        if each.extent.number
    }
    grid = (*layout.shape[: len(layout.header)], *trailing)
    dtype = np.dtype("<f8")
    return build_array(
        url=source.url,
        shape=layout.shape,
        chunks=(*(1 for _ in layout.header), *layout.points),
        dtype=dtype,
        stored=dtype,
        offsets=table[0].reshape(grid),
        lengths=table[1].reshape(grid),
        dims=layout.dims,
        attributes=json_attributes(cube.attributes),
        serializer=_CODEC,
        inlined=inlined,
        fill_value=np.nan,
    )


def _copy(source: SourceFile, stamp: SourceStamp, cube: Cube) -> xr.Variable:
    layout = _Layout.of_cube(cube)
    read = partial(_read_cells, _table(layout, cube), cube.grid, layout.points)
    attributes = json_attributes(cube.attributes)
    return lazy_copy(source, stamp, cube.name, read, layout.dims, layout.shape, np.dtype("f8"), attributes)


def _read_cells(
    table: np.ndarray[Any, Any],
    grid: GribGrid,
    points: tuple[int, ...],
    source: SourceFile,
    name: str,
    key: tuple[Any, ...],
) -> np.ndarray[Any, Any]:
    """Values of the fields in a table, decoded by ecCodes; NaN where there is none."""
    header = table.ndim - 1
    wanted = table[(slice(None), *key[:header])]
    values = np.full((*wanted.shape[1:], *points), np.nan)
    with source.open() as stream:
        for position in np.ndindex(wanted.shape[1:]):
            offset, length, number = (int(each) for each in wanted[(slice(None), *position)])
            if length:
                message = read_field(stream, offset, length, number)
                values[position] = grid.arrange(read_values(message)).reshape(points)
    return np.asarray(values[(*(slice(None) for _ in wanted.shape[1:]), *key[header:])])
