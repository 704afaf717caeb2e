"""Fields of a GRIB file arranged as cfgrib arranges them: into variables, and those into datasets.

What cfgrib would lose is kept apart: fields of one place that are not the same (intervals, thresholds, layers), of
unknown parameters, and on grids of one size that differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import xarray as xr

from icelite.formats.eccodes import Headers
from icelite.formats.grib_description import (
    IDENTITY,
    UNKNOWN,
    build_coordinate,
    build_valid_time,
    describe_dataset,
    describe_variable,
    find_place,
    level_kind,
    name_variable,
)
from icelite.formats.grib_grids import GribGrid
from icelite.formats.grib_messages import GribField

# One variable has one value of each, as in cfgrib, which goes through them in this order.
_TELLING = (
    *("dataType", "numberOfPoints", "typeOfLevel", "stepType", "gridType", "uvRelativeToGrid", "edition"),
    *("centre", "centreDescription", "subCentre"),
)
# What may tell fields apart that have the same time, level and member.
_FURTHER = (
    *("typeOfStatisticalProcessing", "lengthOfTimeRange", "stepRange", "topLevel", "bottomLevel"),
    *("percentileValue", "probabilityType", "lowerThreshold", "upperThreshold", "derivedForecast"),
    *("constituentType", "aerosolType", "scaledValueOfFirstSize", "scaledValueOfFirstWavelength"),
    *("scaledValueOfCentralWaveNumber", "satelliteNumber", "instrumentType", "waveDirectionNumber"),
    *("typeOfFirstFixedSurface", "typeOfSecondFixedSurface", "scaledValueOfSecondFixedSurface"),
    *("typeOfGeneratingProcess", "generatingProcessIdentifier", "class", "stream", "type", "expver"),
)
# What a variable is divided by that has places for far more fields than there are.
_THINNING = ("dataDate", "dataTime", "number", "endStep:int", "level:float")
_MOST_CELLS = 1 << 24


@dataclass(frozen=True, slots=True)
class IndexedField:
    """One field: where it is, and what its headers say.

    Attributes
    ----------
    product
        The sections that describe it, as they are.
    problem
        Why its chunk cannot be referenced, or None.
    """

    place: GribField
    headers: Headers
    product: bytes
    grid: GribGrid
    problem: str | None


@dataclass(slots=True)
class Cube:
    """One variable: fields of one parameter by their times, levels and members.

    Attributes
    ----------
    coordinates
        Those of ``dims``, of length one too, and ``valid_time``.
    cells
        Fields by position along ``dims``.
    repeated
        Fields that are there twice, and were left out.
    """

    name: str
    attributes: dict[str, Any]
    dims: tuple[str, ...]
    coordinates: dict[str, xr.Variable]
    cells: dict[tuple[int, ...], IndexedField]
    repeated: int

    @property
    def grid(self) -> GribGrid:
        """The grid of all its fields."""
        return next(iter(self.cells.values())).grid

    @property
    def level_kind(self) -> str:
        """The kind of its levels, which is the name of their coordinate."""
        return level_kind(next(iter(self.cells.values())).headers)


@dataclass(slots=True)
class GribDataset:
    """Variables that have their coordinates in common."""

    attributes: dict[str, Any]
    cubes: list[Cube] = field(default_factory=list)

    @property
    def coordinates(self) -> dict[str, xr.Variable]:
        """Of all variables, with those of the grid."""
        found: dict[str, xr.Variable] = {}
        for cube in self.cubes:
            found |= cube.coordinates | cube.grid.coordinates
        return found

    def takes(self, cube: Cube, attributes: Mapping[str, Any]) -> bool:
        """Whether a variable fits the others."""
        mine, its = self.coordinates, cube.coordinates | cube.grid.coordinates
        return (
            dict(attributes) == self.attributes
            and all(cube.name != other.name for other in self.cubes)
            and all(cube.grid is other.grid or not set(cube.grid.dims) & set(other.grid.dims) for other in self.cubes)
            and all(mine[name].equals(variable) for name, variable in its.items() if name in mine)  # type: ignore[no-untyped-call]
        )


def arrange(fields: Sequence[IndexedField]) -> list[GribDataset]:
    """The datasets of a file, in cfgrib's order."""
    groups: dict[tuple[Any, ...], list[IndexedField]] = {}
    for each in fields:
        groups.setdefault(_group_of(each), []).append(each)
    ordered = sorted(groups.items(), key=lambda item: int(item[0][0]))
    cubes = [cube for _, group in ordered for cube in _cubes_of(group)]
    datasets: list[GribDataset] = []
    for kind in sorted({cube.level_kind for cube, _ in cubes}):
        alike: list[GribDataset] = []
        for cube, attributes in cubes:
            if cube.level_kind == kind:
                taking = next((dataset for dataset in alike if dataset.takes(cube, attributes)), None)
                if taking is None:
                    taking = GribDataset(attributes)
                    alike.append(taking)
                taking.cubes.append(cube)
        datasets += alike
    return datasets


def _group_of(each: IndexedField) -> tuple[Any, ...]:
    headers = each.headers
    parameter = headers.get("paramId", 0)
    telling = tuple(_of(each, key) for key in _TELLING)
    identity = tuple(headers.get(key) for key in IDENTITY[each.place.edition]) if not parameter else ()
    surface = headers.get("typeOfFirstFixedSurface") if headers.get("typeOfLevel") in UNKNOWN else None
    return parameter, identity, telling, surface, id(each.grid), "number" in headers


def _cubes_of(fields: list[IndexedField]) -> Iterable[tuple[Cube, dict[str, Any]]]:
    """One variable, or several where fields share a place and are not the same."""
    dims, coordinates, cells = _arranged(fields)
    if prod(coordinates[dim].size for dim in dims) > _MOST_CELLS:
        for part in _parts(fields, next(key for key in _THINNING if len({_of(each, key) for each in fields}) > 1)):
            yield from _cubes_of(part)
        return
    repeated = 0
    for position, found in cells.items():
        different = list({each.product: each for each in reversed(found)}.values())[::-1]
        repeated += len(found) - len(different)
        cells[position] = different
    shared = [found for found in cells.values() if len(found) > 1]
    if shared:
        kept = [each for found in cells.values() for each in found]
        for part in _divide(sorted(kept, key=lambda each: (each.place.offset, each.place.number)), shared):
            yield from _cubes_of(part)
        return
    first = fields[0].headers
    data = {position: found[0] for position, found in cells.items()}
    yield (
        Cube(name_variable(first), describe_variable(first), dims, coordinates, data, repeated),
        describe_dataset(first),
    )


def _divide(fields: list[IndexedField], shared: list[list[IndexedField]]) -> Iterable[list[IndexedField]]:
    """Parts in which fewer fields share a place: by what tells those apart, or one by one."""
    for key in _FURTHER:
        if any(len({_of(each, key) for each in found}) > 1 for found in shared):
            return _parts(fields, key)
    later = {id(each) for found in shared for each in found[1:]}
    return [each for each in fields if id(each) not in later], [each for each in fields if id(each) in later]


def _parts(fields: list[IndexedField], key: str) -> Iterable[list[IndexedField]]:
    parts: dict[Any, list[IndexedField]] = {}
    for each in fields:
        parts.setdefault(_of(each, key), []).append(each)
    return parts.values()


def _of(each: IndexedField, key: str) -> Any:
    value = each.headers.get(key)
    return tuple(value.tolist()) if isinstance(value, np.ndarray) else value


def _arranged(
    fields: list[IndexedField],
) -> tuple[tuple[str, ...], dict[str, xr.Variable], dict[tuple[int, ...], list[IndexedField]]]:
    """Dimensions, coordinates, and the fields at each position."""
    places = [find_place(each.headers) for each in fields]
    values = {dim: [place[dim] for place in places] for dim in places[0]}
    known = {dim: [each for each in found if each is not None] for dim, found in values.items()}
    dims = tuple(dim for dim in values if len(known[dim]) == len(fields))
    coordinates = {dim: build_coordinate(dim, known[dim]) for dim in dims}
    steps = {dim: {value: i for i, value in enumerate(coordinates[dim].values.tolist())} for dim in dims}
    cells: dict[tuple[int, ...], list[IndexedField]] = {}
    for each, place in zip(fields, places, strict=True):
        cells.setdefault(tuple(steps[dim][place[dim]] for dim in dims), []).append(each)
    if "time" in dims and "step" in dims:
        coordinates["valid_time"] = build_valid_time(coordinates["time"], coordinates["step"])
    return dims, coordinates, cells


def name_datasets(datasets: Iterable[GribDataset]) -> dict[str, GribDataset]:
    """Datasets by names for their groups: the kind of level, the level if it is one, and what else it takes.

    >>> name_datasets([])
    {}
    """
    named: dict[str, GribDataset] = {}
    for dataset in datasets:
        first = dataset.cubes[0]
        level = first.coordinates.get(first.level_kind)
        base = first.level_kind
        if level is not None and level.size == 1 and level.values.ravel()[0] != 0:
            base = f"{base}_{level.values.ravel()[0]:g}"
        steps = {str(cube.attributes.get("GRIB_stepType")) for cube in dataset.cubes}
        choices = [base, *(f"{base}_{step}" for step in steps if len(steps) == 1)]
        choices += [f"{base}_{number}" for number in range(2, len(named) + 3)]
        named[next(name for name in choices if name not in named)] = dataset
    return named


def collapse(datasets: Sequence[GribDataset]) -> GribDataset | None:
    """All variables in one dataset, or None where they do not fit.

    A single level that other variables do not share becomes an attribute of its variable.
    """
    levels: dict[str, list[xr.Variable]] = {}
    for dataset in datasets:
        for cube in dataset.cubes:
            if cube.level_kind in cube.coordinates:
                levels.setdefault(cube.level_kind, []).append(cube.coordinates[cube.level_kind])
    differing = {kind for kind, found in levels.items() if not all(found[0].equals(each) for each in found)}  # type: ignore[no-untyped-call]
    common = dict(datasets[0].attributes)
    for dataset in datasets:
        common = {key: value for key, value in common.items() if dataset.attributes.get(key) == value}
    whole = GribDataset(common)
    for dataset in datasets:
        for cube in dataset.cubes:
            kind = cube.level_kind
            if kind in differing and cube.coordinates[kind].size == 1:
                cube = _without_level(cube)
            if not whole.takes(cube, common):
                return None
            whole.cubes.append(cube)
    return whole


def _without_level(cube: Cube) -> Cube:
    kind = cube.level_kind
    axis = cube.dims.index(kind)
    cells = {(*position[:axis], *position[axis + 1 :]): each for position, each in cube.cells.items()}
    attributes = cube.attributes | {kind: cube.coordinates[kind].values.ravel()[0].item()}
    coordinates = {name: variable for name, variable in cube.coordinates.items() if name != kind}
    return Cube(cube.name, attributes, tuple(d for d in cube.dims if d != kind), coordinates, cells, cube.repeated)
