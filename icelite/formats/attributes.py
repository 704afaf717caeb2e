"""Attributes of variables as JSON holds them, and the types of packing attributes, which it does not keep.

netCDF's ``scale_factor`` and ``add_offset`` have a type, and packed integers are decoded to it: `float32` in many
archives. In Zarr's metadata they are JSON numbers, which every reader takes for `float64`. So that the values read
are those of the files, bit for bit, an array whose packing attributes have another type than JSON gives them names
it in the attribute `PACKING_DTYPES`, as text such as ``"scale_factor: float32 0.5 add_offset: float32 5.0"``. The
numbers say what the hint is about: xarray hands unknown attributes on to what is computed from a variable, which may
be packed otherwise. A hint about other numbers is ignored with a warning.

VirtualiZarr's parsers hand the numbers on without their types. Of the number alone, only one thing is certain: one
that is no `float32` was a `float64`, and then values are decoded to `float64`, whatever the other attribute's type.
``0.009999999776482582`` may have been either (archives that packed in doubles hold such numbers too), so the file is
asked. When it cannot tell, nothing is recorded, and values are decoded to `float64`.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np
import xarray as xr
from xarray.backends.zarr import FillValueCoder

PACKING_DTYPES = "icelite_packing_dtypes"
FILL_TEXT = "icelite_fill_text"  # the _FillValue of text, which xarray cannot read from Zarr's metadata
PACKING_KEYS = ("scale_factor", "add_offset")

_ITEM = re.compile(
    r"(scale_factor|add_offset): (float32|float64|u?int(?:8|16|32|64))(?: (-?[0-9.]+(?:e[+-]?[0-9]+)?))?"
)
_HINT = re.compile(rf"(?:{_ITEM.pattern})(?: {_ITEM.pattern})*")

Packing: TypeAlias = Mapping[str, Any]  # packing attributes by name
Named: TypeAlias = tuple[str, Packing]  # those of one variable of a file, as NumPy scalars, and its name


def packing_of(variable: xr.Variable) -> Packing:
    """The packing attributes of a variable that are numbers, decoded (in its encoding) or not."""
    merged = {**variable.attrs, **variable.encoding}
    return {key: merged[key] for key in PACKING_KEYS if isinstance(merged.get(key), int | float | np.number)}


def describe_dtypes(packing: Packing) -> str:
    """The types that JSON does not keep, as `PACKING_DTYPES` holds them; '' when it keeps all."""
    lost = {key: value for key, value in packing.items() if isinstance(value, np.number) and not _is_kept(value)}
    return " ".join(f"{key}: {value.dtype.name} {value.item()!r}" for key, value in lost.items())


def _is_kept(value: np.number[Any]) -> bool:
    return np.dtype(type(value.item())) == value.dtype


def is_certain(packing: Packing) -> bool:
    """Whether no file need be asked: types are there, or not needed."""
    if not packing or any(isinstance(value, np.number) for value in packing.values()):
        return True
    return any(isinstance(value, float) and not _may_be_single(value) for value in packing.values())


def _may_be_single(value: float) -> bool:
    with np.errstate(over="ignore"):
        return float(np.float32(value)) == value


def find_dtypes(name: str, packing: Packing, packed: Iterable[Named], *, renamed: bool) -> str | None:
    """What `describe_dtypes` says of the variable in its file.

    Parameters
    ----------
    packing
        The attributes without their types.
    packed
        The packed variables of the file.
    renamed
        Whether the variable may have another name in the file; one with the same numbers is then taken for it.

    Returns
    -------
    str or None
        None when there is no such variable, or several that differ.
    """
    alike = [
        (other, found) for other, found in packed if {key: value.item() for key, value in found.items()} == packing
    ]
    namesakes = [found for other, found in alike if other == name]
    if not namesakes and renamed:
        namesakes = [found for _, found in alike]
    described = {describe_dtypes(found) for found in namesakes}
    return described.pop() if len(described) == 1 else None


def restore_dtypes(variable: xr.Variable, name: str) -> xr.Variable:
    """The undecoded variable with its packing attributes and fill text as its file had them, without the hints.

    A hint that is not about the variable's numbers, or not as icelite writes it, is ignored with a warning.
    """
    if FILL_TEXT in variable.attrs:
        variable = _with_fill(variable)
    if PACKING_DTYPES not in variable.attrs:
        return variable
    attributes = dict(variable.attrs)
    recorded = attributes.pop(PACKING_DTYPES)
    typed = _typed(recorded, attributes)
    if typed is None:
        warnings.warn(
            f"attribute {PACKING_DTYPES!r} of {name!r} is {recorded!r}, which does not fit its packing attributes, and"
            " is ignored; delete it, as it was copied from another variable",
            stacklevel=2,
        )
    variable = variable.copy(deep=False)
    variable.attrs = attributes | (typed or {})
    return variable


def fill_text(value: str | bytes) -> str:
    """A ``_FillValue`` of text as `FILL_TEXT` holds it."""
    return (value.encode() if isinstance(value, str) else bytes(value)).decode("latin-1")


def _with_fill(variable: xr.Variable) -> xr.Variable:
    attributes = dict(variable.attrs)
    text = attributes.pop(FILL_TEXT)
    if variable.dtype.kind == "S" and isinstance(text, str) and "_FillValue" not in attributes:
        attributes["_FillValue"] = text.encode("latin-1", "replace")
    variable = variable.copy(deep=False)
    variable.attrs = attributes
    return variable


def _typed(recorded: object, attributes: Packing) -> dict[str, np.number[Any]] | None:
    """The packing attributes with the types that a hint names, or None if it is not about them."""
    if not isinstance(recorded, str) or _HINT.fullmatch(recorded) is None:
        return None
    typed: dict[str, np.number[Any]] = {}
    for key, dtype, number in _ITEM.findall(recorded):
        value = attributes.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        with np.errstate(over="ignore", invalid="ignore"):
            try:
                scalar = np.dtype(dtype).type(value)
            except (OverflowError, ValueError):
                return None
        if scalar != value or (number and float(number) != value):
            return None
        typed[key] = scalar
    return typed


def packing_attributes(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """``scale_factor`` and ``add_offset`` with their types, which JSON does not keep."""
    found = {key: np.ravel(attributes[key]) for key in PACKING_KEYS if key in attributes}
    return {key: value[0] for key, value in found.items() if value.size == 1 and value.dtype.kind in "iuf"}


# -- attributes as JSON holds them -------------------------------------------------------------------------------------


def json_attributes(attributes: Mapping[str, Any], dtype: np.dtype[Any] | None = None) -> dict[str, Any]:
    """Attributes as a Zarr array has them; ``_FillValue`` in the form that xarray reads there, if it can be one.

    Parameters
    ----------
    dtype
        Type of the variable.
    """
    plain = {name: _plain(value) for name, value in attributes.items()}
    if dtype is not None and "_FillValue" in attributes:
        fill = plain.pop("_FillValue")
        if is_fill_value(attributes["_FillValue"], dtype):
            plain["_FillValue"] = FillValueCoder.encode(dtype.type(np.ravel(fill)[0]), dtype)
        elif dtype.kind == "S" and isinstance(attributes["_FillValue"], str | bytes):
            plain[FILL_TEXT] = fill_text(attributes["_FillValue"])
    return plain


def is_fill_value(fill: Any, dtype: np.dtype[Any]) -> bool:
    """Whether xarray can mask this value in a Zarr array: none in text, and no integer is NaN."""
    fill = np.ravel(fill)
    if dtype.kind not in "iufc" or fill.size != 1 or fill.dtype.kind not in "iufc":
        return False
    if dtype.kind in "fc":
        return True
    limits = np.iinfo(dtype)
    return bool(np.isfinite(fill[0])) and limits.min <= fill[0] <= limits.max and int(fill[0]) == fill[0]


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return as_text(value)
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def as_text(value: bytes) -> str:
    """Text as it was most likely encoded."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")
