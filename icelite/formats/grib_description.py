"""What cfgrib calls the parameters, levels and times of a GRIB field, from the keys that ecCodes computes.

cfgrib itself is not used: where it is installed, xarray imports it whenever it looks for an engine, and with it ecCodes
in a way that makes pyproj end the process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import xarray as xr

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
_OF_PLACE = ("number", "level:float", "directionNumber", "frequencyNumber")
KEYS = (*_GLOBAL, *_OF_VARIABLE, *_OF_GRID, *_OF_TIME, *_OF_PLACE)

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


def find_place(headers: Mapping[str, Any]) -> dict[str, float | None]:
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
    """The coordinate of a dimension from the places of its fields, in the order that it is stored in."""
    attributes = dict(_COORDINATES.get(name, {"units": "1", "long_name": f"original GRIB coordinate: {name}"}))
    backwards = attributes.get("stored_direction") == "decreasing"
    return xr.Variable((name,), np.array(sorted(set(values), reverse=backwards)), attributes)


def build_valid_time(time: xr.Variable, step: xr.Variable) -> xr.Variable:
    """The time that fields are for, by ``time`` and ``step``."""
    values = time.values[:, None] + np.round(step.values * 3600).astype(np.int64)
    return xr.Variable(("time", "step"), values, dict(_COORDINATES["valid_time"]))
