"""In which order files follow each other along a dimension: by its coordinate where that is loaded, else by name."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import xarray as xr

from icelite.archive.agreement import Opened
from icelite.archive.inputs import name_of
from icelite.errors import ErrorKind, InvalidInputError
from icelite.virtualizarr.arrays import is_virtual


@dataclass(frozen=True, slots=True)
class Span:
    """The first and the last value of a file's coordinate."""

    url: str
    first: Any
    last: Any

    def __str__(self) -> str:
        return f"{name_of(self.url)!r} ({describe_value(self.first)} to {describe_value(self.last)})"


def order_files(files: Sequence[Opened], concat_dim: str) -> list[Opened]:
    """The files in the order of their coordinate; as they are where that is not loaded or says nothing of order.

    Files without any element along the dimension are left out.

    Raises
    ------
    InvalidInputError
        ``invalid-dataset``: a coordinate runs both ways, or two files overlap.
    """
    filled = [(url, dataset) for url, dataset in files if dataset.sizes.get(concat_dim, 1)]
    if not filled:
        raise InvalidInputError(
            f"there is nothing along {concat_dim!r} in {name_of(files[0][0])!r}"
            + (f" and {len(files) - 1} more files" if len(files) > 1 else ""),
            ErrorKind.INVALID_DATASET,
        )
    values = [(url, find_values(dataset, concat_dim)) for url, dataset in filled]
    spans = [Span(url, found[0], found[-1]) for url, found in values if found is not None]
    if len(spans) < len(filled) or is_placeholder([found for _, found in values]):
        return filled
    steps = {
        direction for url, found in values if found is not None and (direction := _direction(url, found, concat_dim))
    }
    if len(steps) > 1:
        raise InvalidInputError(
            f"the coordinate {concat_dim!r} increases in some files and decreases in others: sort them alike"
            " (preprocess=)",
            ErrorKind.INVALID_DATASET,
        )
    backwards = steps == {-1}
    order = sorted(range(len(filled)), key=lambda at: spans[at].first, reverse=backwards)
    for before, after in itertools.pairwise(order):
        check_follows(spans[before], spans[after], concat_dim, backwards=backwards)
    return [filled[at] for at in order]


def is_placeholder(parts: Sequence[Any]) -> bool:
    """Whether a coordinate is one and the same number everywhere, as some models write it: it says nothing of order."""
    values = np.concatenate(parts)
    return values.dtype.kind in "iuf" and len(values) > 1 and bool((values == values[0]).all())


def find_values(dataset: xr.Dataset, dim: str) -> Any:
    """The loaded values of a dimension's coordinate, one or more; None without them, or where they have no order."""
    variable = dataset.variables.get(dim)
    if variable is None or is_virtual(variable) or variable.ndim > 1 or not variable.size:
        return None
    values = np.atleast_1d(_decoded(dim, variable).values)
    is_ordered = values.dtype.kind in "iufMm" or (values.dtype.kind == "O" and hasattr(values[0], "calendar"))
    return values if is_ordered else None


def _decoded(name: str, variable: xr.Variable) -> xr.Variable:
    """A variable with its numbers as times, if they are times that were left as numbers."""
    if " since " not in str(variable.attrs.get("units")):
        return variable
    try:
        return xr.conventions.decode_cf_variable(name, variable)
    except ValueError:  # a unit that only its reader can decode
        return variable


def _direction(url: str, values: Any, dim: str) -> int:
    """1 for increasing, -1 for decreasing, 0 for a single value."""
    if len(values) == 1:
        if values[0] != values[0]:  # NaN or NaT
            raise _unordered(url, dim)
        return 0
    if bool(np.all(values[1:] > values[:-1])):
        return 1
    if bool(np.all(values[1:] < values[:-1])):
        return -1
    raise _unordered(url, dim)


def _unordered(url: str, dim: str) -> InvalidInputError:
    return InvalidInputError(
        f"the coordinate {dim!r} of {url!r} is not strictly increasing or decreasing, so it does not say where the"
        " file belongs; correct it (preprocess=), or keep it from being loaded (loadable_variables=[]) to take the"
        " files by name",
        ErrorKind.INVALID_DATASET,
    )


def check_follows(before: Span, after: Span, dim: str, *, backwards: bool) -> None:
    """Check that one file ends before the other begins.

    Raises
    ------
    InvalidInputError
        ``invalid-dataset``.
    """
    if not (after.first < before.last if backwards else after.first > before.last):
        raise InvalidInputError(
            f"the files overlap along {dim!r}: {after} does not come after {before}; leave one of them out",
            ErrorKind.INVALID_DATASET,
        )


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
