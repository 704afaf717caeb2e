"""Where the pixels of a GeoTIFF are: coordinates of their centres, and the coordinate reference system (CRS)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

if TYPE_CHECKING:
    from pyproj import CRS
    from tifffile import TiffFile

_IS_POINT = 2
_DEGREE = "degree"
_USER_DEFINED = 32767
_PROJECTED, _GEOGRAPHIC = 1, 2
_TEXT = "ESRI PE String = "  # of GDAL and ESRI, before a CRS that the keys have no way to say
_LATITUDE = ("ProjNatOriginLatGeoKey", "ProjFalseOriginLatGeoKey", "ProjCenterLatGeoKey")
_LONGITUDE = (
    "ProjNatOriginLongGeoKey",
    "ProjFalseOriginLongGeoKey",
    "ProjCenterLongGeoKey",
    "ProjStraightVertPoleLongGeoKey",
)
_EASTING = ("ProjFalseEastingGeoKey", "ProjFalseOriginEastingGeoKey", "ProjCenterEastingGeoKey")
_NORTHING = ("ProjFalseNorthingGeoKey", "ProjFalseOriginNorthingGeoKey", "ProjCenterNorthingGeoKey")
_SCALE = ("ProjScaleAtNatOriginGeoKey", "ProjScaleAtCenterGeoKey")
_PARALLELS = {"lat_1": ("ProjStdParallel1GeoKey",), "lat_2": ("ProjStdParallel2GeoKey",)}
# PROJ's name of a projection by its number in GeoTIFF, and the parameters it has beside origin and false origin.
_PROJECTIONS: dict[int, tuple[str, dict[str, tuple[str, ...]]]] = {
    1: ("tmerc", {"lat_0": _LATITUDE, "k_0": _SCALE}),
    7: ("merc", {"lat_ts": ("ProjStdParallel1GeoKey",), "k_0": _SCALE}),
    8: ("lcc", {"lat_0": _LATITUDE, **_PARALLELS}),
    9: ("lcc", {"lat_0": _LATITUDE, "lat_1": _LATITUDE, "k_0": _SCALE}),
    10: ("laea", {"lat_0": _LATITUDE}),
    11: ("aea", {"lat_0": _LATITUDE, **_PARALLELS}),
    12: ("aeqd", {"lat_0": _LATITUDE}),
    13: ("eqdc", {"lat_0": _LATITUDE, **_PARALLELS}),
    14: ("stere", {"lat_0": _LATITUDE, "k_0": _SCALE}),
    15: ("stere", {"lat_ts": _LATITUDE, "k_0": _SCALE}),
    16: ("sterea", {"lat_0": _LATITUDE, "k_0": _SCALE}),
    17: ("eqc", {"lat_0": _LATITUDE, "lat_ts": ("ProjStdParallel1GeoKey",)}),
    18: ("cass", {"lat_0": _LATITUDE}),
    19: ("gnom", {"lat_0": _LATITUDE}),
    20: ("mill", {}),
    21: ("ortho", {"lat_0": _LATITUDE}),
    22: ("poly", {"lat_0": _LATITUDE}),
    23: ("robin", {}),
    24: ("sinu", {}),
    25: ("vandg", {}),
    28: ("cea", {"lat_ts": ("ProjStdParallel1GeoKey",)}),
}
_POLAR_STEREOGRAPHIC = 15
_UNITS = {9001: "m", 9002: "ft", 9003: "us-ft", 9036: "km"}
_METRES = {"m": 1.0, "ft": 0.3048, "us-ft": 1200 / 3937, "km": 1000.0}
_UNIT_NAMES = {9001: "metre", 9002: "foot", 9003: "US survey foot", 9036: "kilometre"}
# Radians of a unit of angles; the keys hold parameters in it.
_ANGLES = {9101: 1.0, 9102: math.pi / 180, 9103: math.pi / 10800, 9104: math.pi / 648000, 9105: math.pi / 200}


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
    """Points whose coordinates are known, as GeoJSON: that is how rioxarray keeps them."""
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


# -- the CRS from the keys: a code, a text, or a projection with parameters ------------------------------------------


def find_code(tags: Mapping[str, Any]) -> int:
    """The EPSG code of the CRS; 0 if it has none."""
    projected, geographic = _number(tags, "ProjectedCSTypeGeoKey"), _number(tags, "GeographicTypeGeoKey")
    code = projected or (0 if _number(tags, "GTModelTypeGeoKey") == _PROJECTED else geographic)
    return 0 if code == _USER_DEFINED or _texts(tags) else code


def find_unit(tags: Mapping[str, Any]) -> str | None:
    """The unit that projected coordinates are in, as far as the keys say."""
    return _UNIT_NAMES.get(_number(tags, "ProjLinearUnitsGeoKey"))


def build_crs(tags: Mapping[str, Any]) -> CRS | None:
    """The CRS that the keys describe; None if they describe none, or one that this does not know."""
    import pyproj

    for text in _texts(tags):
        try:
            return pyproj.CRS.from_wkt(text)
        except pyproj.exceptions.CRSError:
            continue
    code = find_code(tags)
    for authority in ("EPSG", "ESRI") if code else ():
        try:
            return pyproj.CRS.from_authority(authority, code)
        except pyproj.exceptions.CRSError:  # such as a code that is no longer EPSG's
            continue
    try:
        model = _number(tags, "GTModelTypeGeoKey")
        if model == _GEOGRAPHIC:
            return pyproj.CRS.from_dict({"proj": "longlat", **_ellipsoid(tags)})
        return _build_projected(tags) if _number(tags, "ProjCoordTransGeoKey") else None
    except (pyproj.exceptions.CRSError, KeyError):
        return None


def _texts(tags: Mapping[str, Any]) -> list[str]:
    citations = (str(tags.get(key, "")) for key in ("PCSCitationGeoKey", "GTCitationGeoKey", "GeogCitationGeoKey"))
    return [text.removeprefix(_TEXT) for text in citations if text.startswith(_TEXT)]


def _number(tags: Mapping[str, Any], key: str) -> int:
    value = tags.get(key)
    return int(value) if isinstance(value, int | float) else 0


def _build_projected(tags: Mapping[str, Any]) -> CRS | None:
    import pyproj
    from pyproj.crs import ProjectedCRS

    number = _number(tags, "ProjCoordTransGeoKey")
    if number not in _PROJECTIONS:
        return None
    projection, more = _PROJECTIONS[number]
    radians = _ANGLES[_number(tags, "GeogAngularUnitsGeoKey") or 9102]
    unit = _UNITS.get(_number(tags, "ProjLinearUnitsGeoKey"))
    metres = _METRES[unit] if unit else float(tags["ProjLinearUnitSizeGeoKey"])
    keys = {"lon_0": _LONGITUDE, "x_0": _EASTING, "y_0": _NORTHING, **more}
    found = {name: value for name, key in keys.items() if (value := _first(tags, key)) is not None}
    for name in found:
        if name.startswith(("lat", "lon")):
            found[name] = math.degrees(found[name] * radians)
        elif name in ("x_0", "y_0"):
            found[name] *= metres
    if number == _POLAR_STEREOGRAPHIC:
        found["lat_0"] = math.copysign(90, found.get("lat_ts", 90))
        if found.get("k_0", 1) != 1:  # a scale is given at the pole, and the parallel says nothing but which
            del found["lat_ts"]
        else:
            found.pop("k_0", None)
    parameters = {"proj": projection, **found, **({"units": unit} if unit else {"to_meter": metres})}
    crs = pyproj.CRS.from_dict({**parameters, **_ellipsoid(tags)})
    base = _number(tags, "GeographicTypeGeoKey")
    operation = crs.coordinate_operation
    if base in (0, _USER_DEFINED) or operation is None:
        return crs
    return ProjectedCRS(
        operation,
        name=str(tags.get("GTCitationGeoKey", "unknown")),
        cartesian_cs=crs.coordinate_system,
        geodetic_crs=pyproj.CRS.from_epsg(base),
    )


def _first(tags: Mapping[str, Any], keys: tuple[str, ...]) -> float | None:
    return next((float(tags[key]) for key in keys if key in tags), None)


def _ellipsoid(tags: Mapping[str, Any]) -> dict[str, Any]:
    """Axes and prime meridian of a geographic CRS."""
    base, ellipsoid = _number(tags, "GeographicTypeGeoKey"), {}
    if "GeogSemiMajorAxisGeoKey" in tags:
        ellipsoid["a"] = float(tags["GeogSemiMajorAxisGeoKey"])
        if "GeogInvFlatteningGeoKey" in tags:
            ellipsoid["rf"] = float(tags["GeogInvFlatteningGeoKey"])
        else:
            ellipsoid["b"] = float(tags.get("GeogSemiMinorAxisGeoKey", ellipsoid["a"]))
    elif base not in (0, _USER_DEFINED):
        import pyproj

        found = pyproj.CRS.from_epsg(base).ellipsoid
        ellipsoid |= {"a": found.semi_major_metre, "b": found.semi_minor_metre} if found else {}
    meridian = float(tags.get("GeogPrimeMeridianLongGeoKey", 0) or 0)
    return ellipsoid | ({"pm": meridian} if meridian else {})
