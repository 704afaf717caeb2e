"""Where the pixels of a GeoTIFF are: coordinates of their centres, and the coordinate reference system (CRS)."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from icelite.formats.geotiff_crs import build_crs, find_code, find_unit

if TYPE_CHECKING:
    from tifffile import TiffFile

_IS_POINT = 2
_GEOGRAPHIC = 2
_DEGREE = "degree"


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
    if transform is None and set(crs) <= {"unit"}:
        return Grid()
    attributes = {"AREA_OR_POINT": "Point"} if _is_point(tags) else {"AREA_OR_POINT": "Area"}
    variables: dict[str, xr.Variable] = {}
    if transform is not None:
        variables |= _coordinates(transform, page.imagewidth, page.imagelength, crs.pop("unit", None))
        a, b, c, d, e, f = transform
        crs["GeoTransform"] = " ".join(map(repr, (c, a, b, f, d, e)))  # GDAL's order
    elif points := _ground_control_points(page):
        crs["gcps"] = points
    crs.pop("unit", None)
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


def _ground_control_points(page: Any) -> str | None:
    """Points whose places are known, as GeoJSON: that is how rioxarray keeps them."""
    tie = page.tags.get("ModelTiepointTag")
    if tie is None or len(tie.value) < 12 or page.tags.get("ModelPixelScaleTag") is not None:
        return None
    numbers = np.asarray(tie.value, float)
    features = [
        {
            "type": "Feature",
            "properties": {"id": str(number), "info": "", "row": row, "col": column},
            "geometry": {"type": "Point", "coordinates": [x, y, z]},
        }
        for number, (column, row, _, x, y, z) in enumerate(numbers[: numbers.size // 6 * 6].reshape(-1, 6).tolist(), 1)
    ]
    return json.dumps({"type": "FeatureCollection", "features": features})


def _coordinates(transform: tuple[float, ...], width: int, height: int, unit: str | None) -> dict[str, xr.Variable]:
    a, b, c, d, e, f = transform
    columns, rows = np.arange(width), np.arange(height)
    first_x, first_y = a * 0.5 + b * 0.5 + c, d * 0.5 + e * 0.5 + f
    geographic = unit == _DEGREE
    kinds = ("longitude", "latitude") if geographic else ("projection_x_coordinate", "projection_y_coordinate")
    units = ("degrees_east", "degrees_north") if geographic else (unit, unit)
    described = [
        {"axis": axis, "standard_name": kind} | ({} if each is None else {"units": each})
        for axis, kind, each in zip("XY", kinds, units, strict=True)
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
    """Attributes of the grid mapping, as CF has them if pyproj is there, and the unit of the coordinates."""
    code = find_code(tags)
    keys = ("GTCitationGeoKey", "PCSCitationGeoKey")
    attributes: dict[str, Any] = {"epsg_code": f"EPSG:{code}"} if code else {}
    is_geographic = int(tags.get("GTModelTypeGeoKey") or 0) == _GEOGRAPHIC
    attributes["unit"] = _DEGREE if is_geographic else find_unit(tags)
    try:
        crs = build_crs(tags)
    except ImportError:
        crs = None
    if crs is None:
        cited = {key.removesuffix("GeoKey"): str(tags[key]) for key in keys if key in tags}
        return (attributes if code else cited | attributes) if code or cited else {}
    described = {key: list(value) if isinstance(value, tuple) else value for key, value in crs.to_cf().items()}
    wkt = crs.to_wkt()
    if not crs.is_geographic and crs.axis_info:
        attributes["unit"] = crs.axis_info[0].unit_name
    elif crs.is_geographic:
        attributes["unit"] = _DEGREE
    return attributes | described | {"crs_wkt": wkt, "spatial_ref": wkt}
