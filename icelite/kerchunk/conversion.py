"""A Zarr v3 node described in Zarr v2, where that has the same types, codecs and chunks; no byte of a chunk changes.

xarray takes the fill value of a Zarr v2 array for missing data, that of a Zarr v3 array not. So the v2 fill value
is the array's ``_FillValue``; without one it is null, which means zero where chunks are missing.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from zarr.core.metadata import ArrayV3Metadata

from icelite.errors import ErrorKind, InvalidInputError
from icelite.metadata import parse_document

_BLOSC_SHUFFLE = {"noshuffle": 0, "shuffle": 1, "bitshuffle": 2}
_KEPT = {"gzip", "zstd", "vlen-utf8", "vlen-bytes"}  # the same in both, but for where their names stand
DIMENSIONS = "_ARRAY_DIMENSIONS"


def as_zarr_v2(path: str, documents: Mapping[str, str], is_full: Callable[[], bool]) -> dict[str, str]:
    """The documents of a Zarr v2 node that reads as a Zarr v3 one.

    Parameters
    ----------
    is_full
        Whether every chunk of the array is there; only asked where it matters.

    Raises
    ------
    InvalidInputError
        ``invalid-array-metadata`` for what Zarr v2 does not have: sharding, irregular chunks, some types and codecs.
    """
    content = parse_document(path, documents["zarr.json"])
    attributes = dict(content.get("attributes") or {})
    if content["node_type"] == "group":
        return {".zgroup": json.dumps({"zarr_format": 2}), ".zattrs": json.dumps(attributes)}
    try:
        return _array(content, attributes, is_full)
    except (KeyError, TypeError, ValueError, AttributeError, struct.error) as error:
        raise InvalidInputError(
            f"array /{path} cannot be described in Zarr v2: {error}; leave zarr_format out",
            ErrorKind.INVALID_ARRAY_METADATA,
        ) from error


def _array(content: Mapping[str, Any], attributes: dict[str, Any], is_full: Callable[[], bool]) -> dict[str, str]:
    metadata = ArrayV3Metadata.from_dict(dict(content))
    grid = content["chunk_grid"]
    if grid["name"] != "regular":
        raise ValueError(f"its chunk grid is {grid['name']!r}")
    dtype: Any = metadata.data_type.to_json(zarr_format=2)["name"]
    order, filters = "C", list[dict[str, Any]]()
    for codec in content["codecs"]:
        name, options = (codec, {}) if isinstance(codec, str) else (codec["name"], codec.get("configuration") or {})
        if name == "transpose":
            order = _order(options["order"], order, filters)
        elif name == "bytes":
            dtype = _big_endian(dtype) if options.get("endian") == "big" else dtype
        else:
            filters.append(_filter(name, options))
    described = {
        "zarr_format": 2,
        "shape": content["shape"],
        "chunks": grid["configuration"]["chunk_shape"],
        "dtype": dtype,
        "fill_value": _fill_value(metadata, attributes, is_full),
        "order": order,
        "filters": filters or None,
        "compressor": None,
        "dimension_separator": ".",
    }
    names = content.get("dimension_names")
    if names is not None and None not in names:
        attributes[DIMENSIONS] = names
    return {".zarray": json.dumps(described), ".zattrs": json.dumps(attributes)}


def _order(axes: list[int], order: str, filters: list[Any]) -> str:
    if filters or order != "C" or axes != list(reversed(range(len(axes)))):
        if axes == sorted(axes):
            return order
        raise ValueError(f"its axes are stored in the order {axes}")
    return "F"


def _big_endian(dtype: Any) -> Any:
    if isinstance(dtype, str):
        return dtype.replace("<", ">")
    return [[name, _big_endian(field), *shape] for name, field, *shape in dtype]


def _filter(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """A codec of Zarr v3 as numcodecs names and configures it."""
    if name in _KEPT:
        return {"id": name, **options}
    if name == "blosc":
        kept = {key: options[key] for key in ("cname", "clevel", "blocksize")}
        return {"id": name, **kept, "shuffle": _BLOSC_SHUFFLE[options["shuffle"]]}
    if name == "crc32c":
        return {"id": name, "location": "end"}
    if name.startswith("numcodecs."):
        return {"id": name.removeprefix("numcodecs."), **options}
    raise ValueError(f"its codec {name!r} is only in Zarr v3")


def _fill_value(metadata: ArrayV3Metadata, attributes: dict[str, Any], is_full: Callable[[], bool]) -> Any:
    """The v2 fill value; takes ``_FillValue`` out of the attributes, because that is where xarray finds it then."""
    stored = metadata.fill_value
    missing = _decoded(attributes.pop("_FillValue", None), metadata.data_type.to_native_dtype().kind)
    kept = stored if missing is None and stored != stored else missing  # NaN is missing for xarray anyway
    if kept is None:
        means_the_same = _is_zero(stored)
    else:
        means_the_same = bool(kept == stored or (kept != kept and stored != stored))
    if not means_the_same and not is_full():
        raise ValueError(f"chunks that are not there read as {stored!r}, which Zarr v2 can only say of missing values")
    if kept is None:
        return None
    return metadata.data_type.to_json_scalar(metadata.data_type.cast_scalar(kept), zarr_format=2)


def _decoded(value: Any, kind: str) -> Any:
    """``_FillValue`` as xarray writes it into the attributes of Zarr v3: doubles as base64."""
    if kind == "f" and isinstance(value, str):
        return float(struct.unpack("<d", base64.b64decode(value))[0]) if value != "NaN" else np.nan
    if kind in "biuf" or value is None:
        return value
    raise ValueError(f"its _FillValue {value!r} is not a number")


def _is_zero(value: Any) -> bool:
    return not value if isinstance(value, str | bytes) else not np.asarray(value).tobytes().strip(b"\0")
