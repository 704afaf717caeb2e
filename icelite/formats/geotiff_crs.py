"""The coordinate reference system (CRS) of a GeoTIFF from its keys: a code, a text, or a projection with parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyproj import CRS

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
