"""The attributes by which CF says what stored numbers mean, in one table, and how bounds share those of their parent.

A key may be in a variable's attributes or, once xarray has decoded the variable, in its encoding.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
import xarray as xr

FILLS = ("_FillValue", "missing_value")
PACKING = ("scale_factor", "add_offset")
TIMES = ("units", "calendar")
MEANING = (*FILLS, *PACKING, "_Unsigned", *TIMES)  # what decides how a stored number is read
NAMES = ("coordinates", "grid_mapping")  # of other variables
BOUNDS = ("bounds", "climatology")  # names of variables that have the units and the calendar of the one that names them
COORDINATES = NAMES[0]

_CALENDARS = {"gregorian": "standard", "365_day": "noleap", "366_day": "all_leap"}  # two names for one thing

Time: TypeAlias = tuple[str, str]  # units and calendar of times that are stored as numbers


def find_meaning(variable: xr.Variable, key: str) -> Any:
    """A key's value, wherever it is now; None without it."""
    return variable.attrs.get(key, variable.encoding.get(key))


def as_text(key: str, value: Any) -> str:
    """A key's value as text that is the same for equal values: NaN differs from itself, calendars have two names."""
    if key == "calendar" and isinstance(value, str):
        value = _CALENDARS.get(value.lower(), value.lower())
    return json.dumps(
        value, default=lambda other: np.asarray(other).tolist() if hasattr(other, "dtype") else str(other)
    )


def is_time(attributes: Mapping[Any, Any]) -> bool:
    """Whether numbers with these attributes count from a date."""
    return " since " in str(attributes.get("units"))


def find_time(variable: xr.Variable) -> Time | None:
    """The units and the calendar in which a variable's times are or were stored; None for other variables."""
    return time_of({key: find_meaning(variable, key) for key in TIMES})


def time_of(attributes: Mapping[str, Any]) -> Time | None:
    """The units and the calendar of numbers with these attributes; None if they are no times."""
    if not is_time(attributes):
        return None
    calendar = str(attributes.get("calendar") or "standard").lower()
    return str(attributes["units"]), _CALENDARS.get(calendar, calendar)


def find_bounds(variables: Mapping[Any, xr.Variable]) -> Iterator[tuple[Hashable, Hashable]]:
    """Yield the names of times and of those bounds of theirs that have no units of their own."""
    for name, variable in variables.items():
        for key in BOUNDS if find_time(variable) is not None else ():
            bounds = find_meaning(variable, key)
            if bounds in variables and bounds != name and "units" not in variables[bounds].attrs:
                yield name, bounds


def decode_times(numbers: xr.Variable, time: Time) -> xr.Variable:
    """Numbers that count from a date, as times.

    Raises
    ------
    ValueError, KeyError, OverflowError
        xarray's and cftime's, for units or numbers that they cannot read.
    """
    kept = {key: value for key, value in numbers.attrs.items() if key in FILLS}
    undecoded = xr.Variable(numbers.dims, numbers.values, {**kept, "units": time[0], "calendar": time[1]})
    return xr.conventions.decode_cf_variable("times", undecoded)


def encode_times(times: xr.Variable, time: Time) -> xr.Variable:
    """Times as numbers that count from a date, whole where all of them are.

    Raises
    ------
    ValueError, KeyError, OverflowError
        xarray's and cftime's, for units that they do not write.
    """
    encoding = {"units": time[0], "calendar": time[1], "dtype": np.dtype("f8")}
    numbers = xr.conventions.encode_cf_variable(
        xr.Variable(times.dims, times.values, {}, encoding), name="times"
    ).values
    finite = numbers[np.isfinite(numbers)]
    whole = finite.size == numbers.size and bool((np.abs(finite) < 2**53).all() and (finite % 1 == 0).all())
    return xr.Variable(times.dims, numbers.astype("i8") if whole else numbers)


def can_encode(times: xr.Variable, time: Time) -> bool:
    """Whether times can be stored as such numbers: xarray reads ``months since`` and does not write it."""
    try:
        encode_times(times, time)
    except (KeyError, ValueError, OverflowError):
        return False
    return True


def choose_time(parts: Iterable[xr.Variable]) -> Time:
    """The units and the calendar in which all these times are whole numbers."""
    together = np.concatenate([np.ravel(part.values) for part in parts])
    attributes = xr.conventions.encode_cf_variable(xr.Variable("n", together), name="times").attrs
    return str(attributes["units"]), str(attributes["calendar"])
