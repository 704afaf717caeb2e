"""Grids of GRIB fields: the order of their points in a message, and the coordinates of those."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from icelite.formats.eccodes import Headers, read_points

_SEPARABLE = ("regular_ll", "regular_gg")
_ONE_DIMENSIONAL = ("reduced_ll", "reduced_gg", "reduced_rotated_gg", "unstructured_grid", "healpix", "sh")
_ATTRIBUTES = {
    "latitude": {"units": "degrees_north", "standard_name": "latitude", "long_name": "latitude"},
    "longitude": {"units": "degrees_east", "standard_name": "longitude", "long_name": "longitude"},
}


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
