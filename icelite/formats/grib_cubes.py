"""Fields of a GRIB file named and arranged as cfgrib does it: into variables on grids, and those into datasets.

What cfgrib would lose is kept apart: fields of one time, level and member that are not the same (intervals,
thresholds, layers), of unknown parameters, and on grids of one size that differ. cfgrib itself is not used: where it is
installed, xarray imports it whenever it looks for an engine, and with it ecCodes in a way that makes pyproj end the
process.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from math import prod
from typing import Any

import numpy as np
import xarray as xr

from icelite.formats.eccodes import Headers, read_points
from icelite.formats.grib_messages import FieldExtent

_GLOBAL = ("edition", "centre", "centreDescription", "subCentre")
_OF_VARIABLE = (
    *("paramId", "dataType", "numberOfPoints", "typeOfLevel", "stepUnits", "stepType", "gridType"),
    *("uvRelativeToGrid", "shortName", "units", "name", "cfName", "cfVarName", "totalNumber"),
    *("numberOfDirections", "numberOfFrequencies", "NV", "gridDefinitionDescription"),
)
_OF_GRID = (
    *("Nx", "Ny", "Ni", "Nj", "N", "M", "K", "J", "iDirectionIncrementInDegrees", "jDirectionIncrementInDegrees"),
    *("iScansNegatively", "jScansPositively", "jPointsAreConsecutive", "angleOfRotationInDegrees"),
    *("latitudeOfFirstGridPointInDegrees", "latitudeOfLastGridPointInDegrees", "latitudeOfSouthernPoleInDegrees"),
    *("longitudeOfFirstGridPointInDegrees", "longitudeOfLastGridPointInDegrees", "longitudeOfSouthernPoleInDegrees"),
    *("LaDInDegrees", "LoVInDegrees", "Latin1InDegrees", "Latin2InDegrees", "DxInMetres", "DyInMetres"),
)
_OF_TIME = ("dataDate", "dataTime", "second", "endStep:int", "stepUnits:int")
_OF_LABELS = ("number", "level:float", "directionNumber", "frequencyNumber")
KEYS = (*_GLOBAL, *_OF_VARIABLE, *_OF_GRID, *_OF_TIME, *_OF_LABELS)

UNKNOWN = ("unknown", "undef")
IDENTITY: dict[int, tuple[str, ...]] = {
    1: ("table2Version", "indicatorOfParameter"),
    2: ("discipline", "parameterCategory", "parameterNumber"),
}
# Seconds in a unit of a step, by its number in ecCodes' table; months and longer have no fixed length.
_SECONDS = {0: 60, 1: 3600, 2: 86400, 10: 10800, 11: 21600, 12: 43200, 13: 1, 14: 900, 15: 1800}
_SINCE = {"units": "seconds since 1970-01-01T00:00:00", "calendar": "proleptic_gregorian"}
_PRESSURE = {"positive": "down", "standard_name": "air_pressure", "long_name": "pressure"}
_SOIL = {"units": "m", "positive": "down", "long_name": "soil depth", "standard_name": "depth"}
_COORDINATES: dict[str, dict[str, str]] = {
    "number": {"units": "1", "standard_name": "realization", "long_name": "ensemble member numerical id"},
    "time": {**_SINCE, "standard_name": "forecast_reference_time", "long_name": "initial time of forecast"},
    "step": {
        "units": "hours",
        "standard_name": "forecast_period",
        "long_name": "time since forecast_reference_time",
        "dtype": "timedelta64[ns]",
    },
    "valid_time": {**_SINCE, "standard_name": "time", "long_name": "time"},
    "depthBelowLand": _SOIL,
    "depthBelowLandLayer": _SOIL,
    "hybrid": {
        "units": "1",
        "positive": "down",
        "long_name": "hybrid level",
        "standard_name": "atmosphere_hybrid_sigma_pressure_coordinate",
    },
    "heightAboveGround": {
        "units": "m",
        "positive": "up",
        "long_name": "height above the surface",
        "standard_name": "height",
    },
    "isobaricInhPa": {"units": "hPa", **_PRESSURE, "stored_direction": "decreasing"},
    "isobaricInPa": {"units": "Pa", **_PRESSURE, "stored_direction": "decreasing"},
    "isobaricLayer": {"units": "Pa", **_PRESSURE},
}
_SEPARABLE = ("regular_ll", "regular_gg")
_ONE_DIMENSIONAL = ("reduced_ll", "reduced_gg", "reduced_rotated_gg", "unstructured_grid", "healpix", "sh")
_ATTRIBUTES = {
    "latitude": {"units": "degrees_north", "standard_name": "latitude", "long_name": "latitude"},
    "longitude": {"units": "degrees_east", "standard_name": "longitude", "long_name": "longitude"},
}
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
# What a variable is divided by that has positions for far more fields than there are.
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

    extent: FieldExtent
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
    identity = tuple(headers.get(key) for key in IDENTITY[each.extent.edition]) if not parameter else ()
    surface = headers.get("typeOfFirstFixedSurface") if headers.get("typeOfLevel") in UNKNOWN else None
    return parameter, identity, telling, surface, id(each.grid), "number" in headers


def _cubes_of(fields: list[IndexedField]) -> Iterable[tuple[Cube, dict[str, Any]]]:
    """One variable, or several where fields share a position and are not the same."""
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
        for part in _divide(sorted(kept, key=lambda each: (each.extent.offset, each.extent.number)), shared):
            yield from _cubes_of(part)
        return
    first = fields[0].headers
    data = {position: found[0] for position, found in cells.items()}
    yield (
        Cube(name_variable(first), describe_variable(first), dims, coordinates, data, repeated),
        describe_dataset(first),
    )


def _divide(fields: list[IndexedField], shared: list[list[IndexedField]]) -> Iterable[list[IndexedField]]:
    """Parts in which fewer fields share a position: by what tells those apart, or one by one."""
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
    found_labels = [find_labels(each.headers) for each in fields]
    values = {dim: [labels[dim] for labels in found_labels] for dim in found_labels[0]}
    known = {dim: [each for each in found if each is not None] for dim, found in values.items()}
    dims = tuple(dim for dim in values if len(known[dim]) == len(fields))
    coordinates = {dim: build_coordinate(dim, known[dim]) for dim in dims}
    steps = {dim: {value: i for i, value in enumerate(coordinates[dim].values.tolist())} for dim in dims}
    cells: dict[tuple[int, ...], list[IndexedField]] = {}
    for each, labels in zip(fields, found_labels, strict=True):
        cells.setdefault(tuple(steps[dim][labels[dim]] for dim in dims), []).append(each)
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


# -- names, levels and times from the headers --------------------------------------------------------------------------


def name_variable(headers: Mapping[str, Any]) -> str:
    """Name of a field's variable; the numbers of a parameter that has no name, since others have none either."""
    if not headers.get("paramId", 0):
        edition = headers["edition"]
        return "_".join(["unknown", *(str(headers.get(key)) for key in IDENTITY[edition])])
    name = str(headers.get("cfVarName", "unknown"))
    return name if name not in UNKNOWN else str(headers.get("shortName", f"paramId_{headers['paramId']}"))


def describe_variable(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes of a variable, from its first field."""
    found = {f"GRIB_{key}": headers[key] for key in (*_OF_VARIABLE, *_OF_GRID) if key in headers}
    found = {key: value for key, value in found.items() if not isinstance(value, str) or value not in UNKNOWN}
    found |= {"units": "1", "long_name": f"original GRIB paramId: {headers.get('paramId', 'undef')}"}
    for name, key in (("standard_name", "GRIB_cfName"), ("long_name", "GRIB_name"), ("units", "GRIB_units")):
        if key in found:
            found[name] = found[key]
    return {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in found.items()}


def describe_dataset(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes of the dataset that a field is in."""
    found = {f"GRIB_{key}": headers[key] for key in _GLOBAL if headers.get(key, "undef") not in UNKNOWN}
    found["Conventions"] = "CF-1.7"
    if "GRIB_centreDescription" in found:
        found["institution"] = found["GRIB_centreDescription"]
    return found


def find_labels(headers: Mapping[str, Any]) -> dict[str, float | None]:
    """Where a field is along each dimension that fields have; None where it says nothing of one."""
    return {
        "number": headers.get("number"),
        "time": _time(headers),
        "step": _step(headers),
        level_kind(headers): headers.get("level:float"),
        "directionNumber": headers.get("directionNumber"),
        "frequencyNumber": headers.get("frequencyNumber"),
    }


def level_kind(headers: Mapping[str, Any]) -> str:
    """The kind of a field's level, which is the name of its coordinate."""
    kind = str(headers.get("typeOfLevel", "level"))
    return "level" if kind in UNKNOWN else kind


def _time(headers: Mapping[str, Any]) -> int | None:
    """Seconds since 1970 of the reference time."""
    date, clock = headers.get("dataDate", 0), headers.get("dataTime", 0)
    try:
        minute = datetime(date // 10000, date // 100 % 100, date % 100, clock // 100, clock % 100, tzinfo=UTC)
    except (TypeError, ValueError):
        return None
    return int(minute.timestamp()) + int(headers.get("second", 0))


def _step(headers: Mapping[str, Any]) -> float | None:
    """Hours from the reference time to the time, or the end of the interval, that the field is for."""
    seconds, end = _SECONDS.get(headers.get("stepUnits:int", -1)), headers.get("endStep:int")
    return None if seconds is None or end is None else int(end) * seconds / 3600


def build_coordinate(name: str, values: Sequence[float]) -> xr.Variable:
    """The coordinate of a dimension from the labels of its fields, in the order that it is stored in."""
    attributes = dict(_COORDINATES.get(name, {"units": "1", "long_name": f"original GRIB coordinate: {name}"}))
    backwards = attributes.get("stored_direction") == "decreasing"
    return xr.Variable((name,), np.array(sorted(set(values), reverse=backwards)), attributes)


def build_valid_time(time: xr.Variable, step: xr.Variable) -> xr.Variable:
    """The time that fields are for, by ``time`` and ``step``."""
    values = time.values[:, None] + np.round(step.values * 3600).astype(np.int64)
    return xr.Variable(("time", "step"), values, dict(_COORDINATES["valid_time"]))


# -- grids -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class GribGrid:
    """One grid; the same object for all fields that have it.

    Attributes
    ----------
    dims, shape
        ``latitude`` and ``longitude``, ``y`` and ``x``, or ``values`` where the rows differ or there are none.
    columns_first
        Whether a message goes down the columns.
    turning
        Whether every second row (or column) runs backwards.
    """

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    coordinates: dict[str, xr.Variable]
    columns_first: bool = False
    turning: bool = False

    def arrange(self, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Values in the order of a message, in the shape of the grid."""
        return lay_out(values, self.shape, self.columns_first, self.turning)

    def equals(self, other: GribGrid) -> bool:
        """Whether points and their order are the same."""
        mine, its = self.coordinates, other.coordinates
        return (
            (self.dims, self.shape, self.columns_first, self.turning)
            == (other.dims, other.shape, other.columns_first, other.turning)
            and mine.keys() == its.keys()
            and all(mine[name].equals(its[name]) for name in mine)  # type: ignore[no-untyped-call]
        )


def lay_out(
    values: np.ndarray[Any, Any], shape: tuple[int, ...], columns_first: bool, turning: bool
) -> np.ndarray[Any, Any]:
    """Values in the order of a message, in the shape of a grid."""
    if len(shape) == 1:
        return values.reshape(shape)
    runs = values.reshape(shape[::-1] if columns_first else shape)
    if turning:
        runs = runs.copy()
        runs[1::2] = runs[1::2, ::-1]
    return runs.T if columns_first else runs


def describe_grid(headers: Headers, message: bytes, count: int) -> GribGrid:
    """The grid of a field of ``count`` values."""
    kind = headers.get("gridType")
    columns, rows = (_length(headers.get(key)) for key in ("Nx", "Ny"))
    points = None if kind == "sh" else read_points(message)
    if points is not None and any(axis.size != count for axis in points):
        points = None
    if kind in _ONE_DIMENSIONAL or columns * rows != count:
        return GribGrid(("values",), (count,), _coordinates(("values",), points))
    columns_first = bool(headers.get("jPointsAreConsecutive"))
    turning = bool(headers.get("alternativeRowScanning"))
    shape = (rows, columns)
    if points is not None:
        points = tuple(lay_out(axis, shape, columns_first, False) for axis in points)
    if points is not None and kind in _SEPARABLE and _is_separable(*points):
        latitudes, longitudes = points[0][:, 0].copy(), points[1][0].copy()
        coordinates = _coordinates(("latitude",), (latitudes,)) | _coordinates(("longitude",), (None, longitudes))
        if latitudes[0] > latitudes[-1]:
            coordinates["latitude"].attrs["stored_direction"] = "decreasing"
        return GribGrid(("latitude", "longitude"), shape, coordinates, columns_first, turning)
    return GribGrid(("y", "x"), shape, _coordinates(("y", "x"), points), columns_first, turning)


def _length(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _is_separable(latitudes: np.ndarray[Any, Any], longitudes: np.ndarray[Any, Any]) -> bool:
    return bool((latitudes == latitudes[:, :1]).all() and (longitudes == longitudes[:1]).all())


def _coordinates(dims: tuple[str, ...], points: tuple[Any, ...] | None) -> dict[str, xr.Variable]:
    pairs = zip(_ATTRIBUTES, points or (), strict=False)
    return {name: xr.Variable(dims, axis, dict(_ATTRIBUTES[name])) for name, axis in pairs if axis is not None}
