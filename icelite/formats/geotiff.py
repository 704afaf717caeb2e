"""Where the pixels of a GeoTIFF are: coordinates of their centres, and the coordinate reference system (CRS)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

if TYPE_CHECKING:
    from tifffile import TiffFile

_USER_DEFINED = 32767
_IS_POINT = 2


@dataclass(frozen=True, slots=True)
class Grid:
    """What a GeoTIFF says of its grid.

    Attributes
    ----------
    variables
        Coordinates: ``x`` and ``y``, or ``xc`` and ``yc`` of two dimensions for a grid that is rotated, and
        ``spatial_ref``.
    attributes, mapping
        Of the dataset, and of the image.
    """

    variables: dict[str, xr.Variable] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)
    mapping: dict[str, Any] = field(default_factory=dict)


def describe_grid(tiff: TiffFile, page: Any) -> Grid:
    """The grid of a page; empty for a TIFF that is no GeoTIFF."""
    tags = page.geotiff_tags if page.is_geotiff else {}
    transform = _find_transform(page, tags)
    crs = _describe_crs(tags)
    if transform is None and not crs:
        return Grid()
    attributes = {"AREA_OR_POINT": "Point"} if _is_point(tags) else {"AREA_OR_POINT": "Area"}
    variables: dict[str, xr.Variable] = {}
    if transform is not None:
        variables |= _coordinates(transform, page.imagewidth, page.imagelength, bool(crs.get("is_geographic")))
        a, b, c, d, e, f = transform
        crs["GeoTransform"] = " ".join(map(repr, (c, a, b, f, d, e)))  # GDAL's order
    crs.pop("is_geographic", None)
    variables["spatial_ref"] = xr.Variable((), np.int64(0), crs)
    return Grid(variables, attributes, {"grid_mapping": "spatial_ref"})


def _is_point(tags: dict[str, Any]) -> bool:
    return int(tags.get("GTRasterTypeGeoKey", 0) or 0) == _IS_POINT


def _find_transform(page: Any, tags: dict[str, Any]) -> tuple[float, ...] | None:
    """``(a, b, c, d, e, f)``: column and row of a pixel's corner to ``x = a column + b row + c``, ``y = d ... f``."""
    matrix = page.tags.get("ModelTransformationTag")
    scale, tie = page.tags.get("ModelPixelScaleTag"), page.tags.get("ModelTiepointTag")
    if matrix is not None:
        values = [float(value) for value in matrix.value]
        a, b, c, d, e, f = values[0], values[1], values[3], values[4], values[5], values[7]
    elif scale is not None and tie is not None:
        width, height = float(scale.value[0]), float(scale.value[1])
        column, row, _, x, y, *_ = (float(value) for value in tie.value)
        a, b, c, d, e, f = width, 0.0, x - column * width, 0.0, -height, y + row * height
    else:
        return None
    if _is_point(tags):  # it is the centre of the first pixel that is given
        c, f = c - 0.5 * (a + b), f - 0.5 * (d + e)
    return a, b, c, d, e, f


def _coordinates(transform: tuple[float, ...], width: int, height: int, geographic: bool) -> dict[str, xr.Variable]:
    a, b, c, d, e, f = transform
    columns, rows = np.arange(width), np.arange(height)
    first_x, first_y = a * 0.5 + b * 0.5 + c, d * 0.5 + e * 0.5 + f
    kinds = ("longitude", "latitude") if geographic else ("projection_x_coordinate", "projection_y_coordinate")
    units = ("degrees_east", "degrees_north") if geographic else ("metre", "metre")
    described = [
        {"axis": axis, "standard_name": kind, "units": unit}
        for axis, kind, unit in zip("XY", kinds, units, strict=True)
    ]
    if b == 0 and d == 0:
        x, y = columns * a + first_x, rows * e + first_y
        return {"x": xr.Variable("x", x, described[0]), "y": xr.Variable("y", y, described[1])}
    across, down = np.meshgrid(columns, rows)
    return {
        "xc": xr.Variable(("y", "x"), a * across + b * down + first_x, described[0]),
        "yc": xr.Variable(("y", "x"), d * across + e * down + first_y, described[1]),
    }


def _describe_crs(tags: dict[str, Any]) -> dict[str, Any]:
    """Attributes of the grid mapping, as CF has them if pyproj is there; else the code alone."""
    codes = [int(tags.get(key) or 0) for key in ("ProjectedCSTypeGeoKey", "GeographicTypeGeoKey")]
    projected, geographic = (code if 0 < code < _USER_DEFINED else 0 for code in codes)
    user_defined = codes[0] == _USER_DEFINED
    code = projected or (0 if user_defined else geographic)
    found: dict[str, Any] = {key: str(tags[key]) for key in ("GTCitationGeoKey", "PCSCitationGeoKey") if key in tags}
    if not code:
        return {name.removesuffix("GeoKey"): text for name, text in found.items()}
    attributes: dict[str, Any] = {"epsg_code": f"EPSG:{code}", "is_geographic": not projected}
    try:
        import pyproj
    except ImportError:
        return attributes
    try:
        crs = pyproj.CRS.from_epsg(code)
    except pyproj.exceptions.CRSError:  # a code of GeoTIFF's that is no longer EPSG's
        return attributes
    described = {key: list(value) if isinstance(value, tuple) else value for key, value in crs.to_cf().items()}
    wkt = crs.to_wkt()
    return attributes | described | {"crs_wkt": wkt, "spatial_ref": wkt, "is_geographic": crs.is_geographic}
