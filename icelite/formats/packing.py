"""The types of packing attributes, which JSON does not keep: recorded in an array's attributes, restored by the engine.

netCDF's ``scale_factor`` and ``add_offset`` have a type, and packed integers are decoded to it: `float32` in many
archives. In Zarr's metadata they are JSON numbers, which every reader takes for `float64`. So that the values read
are those of the files, bit for bit, an array whose packing attributes have another type than JSON gives them names
it in the attribute `PACKING_DTYPES`, as text such as ``"scale_factor: float32 add_offset: float32"``.

VirtualiZarr's parsers hand the numbers on without their types. Of the number alone, only one thing is certain: one
that is no `float32` was a `float64`, and then values are decoded to `float64`, whatever the other attribute's type.
``0.009999999776482582`` may have been either (archives that packed in doubles hold such numbers too), so the file is
asked. When it cannot tell, nothing is recorded, and values are decoded to `float64`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np
import xarray as xr

from icelite.errors import ErrorKind, InvalidInputError

PACKING_DTYPES = "icelite_packing_dtypes"
PACKING_KEYS = ("scale_factor", "add_offset")

Packing: TypeAlias = Mapping[str, Any]  # packing attributes by name
Named: TypeAlias = tuple[str, Packing]  # those of one variable of a file, as NumPy scalars, and its name


def packing_of(variable: xr.Variable) -> Packing:
    """The packing attributes of a variable that are numbers, decoded (in its encoding) or not."""
    merged = {**variable.attrs, **variable.encoding}
    return {key: merged[key] for key in PACKING_KEYS if isinstance(merged.get(key), int | float | np.number)}


def describe_dtypes(packing: Packing) -> str:
    """The types that JSON does not keep, as `PACKING_DTYPES` holds them; '' when it keeps all."""
    lost = {key: value for key, value in packing.items() if isinstance(value, np.number) and not _is_kept(value)}
    return " ".join(f"{key}: {value.dtype.name}" for key, value in lost.items())


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


def find_dtypes(name: str, packing: Packing, originals: Iterable[Named], *, renamed: bool) -> str | None:
    """What `describe_dtypes` says of the variable in its file.

    Parameters
    ----------
    packing
        The attributes without their types.
    originals
        The packed variables of the file.
    renamed
        Whether the variable may have another name in the file; one with the same numbers is then taken for it.

    Returns
    -------
    str or None
        None when there is no such variable, or several that differ.
    """
    alike = [(original, found) for original, found in originals if _plain(found) == packing]
    namesakes = [found for original, found in alike if original == name]
    if not namesakes and renamed:
        namesakes = [found for _, found in alike]
    described = {describe_dtypes(found) for found in namesakes}
    return described.pop() if len(described) == 1 else None


def _plain(packing: Packing) -> Packing:
    return {key: value.item() for key, value in packing.items()}


def restore_dtypes(variable: xr.Variable, name: str) -> xr.Variable:
    """The undecoded variable with its packing attributes as its file had them, and without `PACKING_DTYPES`.

    Raises
    ------
    InvalidInputError
        ``bad-metadata`` when `PACKING_DTYPES` is not as icelite writes it.
    """
    if PACKING_DTYPES not in variable.attrs:
        return variable
    attributes = dict(variable.attrs)
    recorded = attributes.pop(PACKING_DTYPES)
    try:
        words = recorded.split()
        for key, dtype in zip(words[::2], words[1::2], strict=True):
            attributes[key.removesuffix(":")] = _scalar(attributes[key.removesuffix(":")], dtype)
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise InvalidInputError(
            f"attribute {PACKING_DTYPES!r} of {name!r} is {recorded!r}, which does not fit its attributes; expected"
            " text such as 'scale_factor: float32': correct it, or delete it to decode to float64",
            ErrorKind.BAD_METADATA,
        ) from error
    variable = variable.copy(deep=False)
    variable.attrs = attributes
    return variable


def _scalar(value: float, name: str) -> np.number[Any]:
    dtype = np.dtype(name)
    if dtype.kind not in "iuf":
        raise TypeError(f"{name} is no type of numbers")
    scalar: np.number[Any] = dtype.type(value)
    return scalar
