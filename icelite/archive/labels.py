"""The labels of a file's steps along the dimension of concatenation: its coordinate's values, their order and kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import xarray as xr

from icelite import cf
from icelite.archive.inputs import name_of
from icelite.virtualizarr.arrays import is_virtual


@dataclass(frozen=True, slots=True)
class Span:
    """The first and the last value of a file's coordinate."""

    url: str
    first: Any
    last: Any

    def __str__(self) -> str:
        return f"{name_of(self.url)!r} ({describe_value(self.first)} to {describe_value(self.last)})"

    def follows(self, before: Span, *, backwards: bool) -> bool:
        """Whether it begins after another one ends."""
        return bool(self.first < before.last if backwards else self.first > before.last)


def is_placeholder(parts: Sequence[Any]) -> bool:
    """Whether a coordinate is one and the same number everywhere, as some models write it: it says nothing of order."""
    values = np.concatenate(parts)
    return values.dtype.kind in "iuf" and len(values) > 1 and bool((values == values[0]).all())


def find_values(dataset: xr.Dataset, dim: str) -> Any:
    """The loaded values of a dimension's coordinate, one or more; None without them, or where they have no order."""
    variable = dataset.variables.get(dim)
    if variable is None or is_virtual(variable) or variable.ndim > 1 or not variable.size:
        return None
    values = np.atleast_1d(decoded(variable).values)
    is_ordered = values.dtype.kind in "iufMm" or (values.dtype.kind == "O" and hasattr(values[0], "calendar"))
    return values if is_ordered else None


def decoded(variable: xr.Variable) -> xr.Variable:
    """A variable with its numbers as times, if they are times that were left as numbers."""
    time = cf.find_time(variable)
    if time is None or variable.dtype.kind not in "iuf":
        return variable
    try:
        return cf.decode_times(variable, time)
    except (ValueError, KeyError, OverflowError):  # units that only their reader can decode
        return variable


def find_direction(values: Any) -> int | None:
    """1 for increasing, -1 for decreasing, 0 for a single value; None for what has no order."""
    if len(values) == 1:
        return None if values[0] != values[0] else 0  # NaN or NaT
    if bool(np.all(values[1:] > values[:-1])):
        return 1
    return -1 if bool(np.all(values[1:] < values[:-1])) else None


def describe_kind(values: Any) -> str:
    """What kind of value an array holds: numbers may differ in type, but times not in calendar."""
    kind = values.dtype.kind
    if kind == "O" and values.size:
        value = np.ravel(values[(0,) * values.ndim])[0]
        return f"{type(value).__name__} ({getattr(value, 'calendar', 'object')})"
    return "number" if kind in "iufb" else {"M": "datetime64", "m": "timedelta64"}.get(kind, str(kind))


def describe_value(value: Any, unit: Literal["auto", "D", "s"] = "auto") -> str:
    """A coordinate's value for people: times without the parts that are zero or ``unit`` leaves out."""
    if isinstance(value, np.datetime64):
        if unit == "auto":
            unit = "D" if value == value.astype("datetime64[D]") else "s"
        return str(np.datetime_as_string(value, unit=unit))
    if hasattr(value, "isoformat"):
        return str(value.isoformat())[: 10 if unit == "D" else 19]
    return f"{value:g}" if isinstance(value, float | np.floating) else str(value)


def describe_range(first: Any, last: Any) -> str:
    """Two values for people; to the day where that tells them apart."""
    days = describe_value(first, "D"), describe_value(last, "D")
    ends = days if days[0] != days[1] else (describe_value(first), describe_value(last))
    if first == last:
        ends = days
    return ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"
