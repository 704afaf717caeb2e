"""Attributes of HDF5 objects as numbers, arrays and text, read with few calls; what JSON has no form for is named."""

from __future__ import annotations

import math
from typing import Any

import h5py
import numpy as np
from h5py import h5a, h5s, h5t

from icelite.formats.manifests import as_text

# What HDF5 and netCDF4 keep for themselves.
_HIDDEN = {"CLASS", "NAME", "REFERENCE_LIST", "DIMENSION_LIST", "DIMENSION_LABELS"}
_HIDDEN |= {"_Netcdf4Dimid", "_Netcdf4Coordinates", "_nc3_strict", "_NCProperties"}
_NUMBERS = (h5t.INTEGER, h5t.FLOAT, h5t.BITFIELD, h5t.ENUM)


class Attributes:
    """The attributes of one object.

    Attributes
    ----------
    values
        NumPy scalars, arrays, text and lists of text, by name.
    dropped
        Why others are left out, by name.
    hidden
        Those that HDF5 and netCDF4 keep for themselves, not read yet, by name.
    """

    def __init__(self, node: h5py.Dataset | h5py.Group) -> None:
        self.values: dict[str, Any] = {}
        self.dropped: dict[str, str] = {}
        self.hidden: dict[str, Any] = {}
        order = h5py.h5.INDEX_CRT_ORDER if _is_ordered(node) else h5py.h5.INDEX_NAME
        for index in range(h5a.get_num_attrs(node.id)):
            attribute = h5a.open(node.id, index=index, index_type=order)
            name = as_text(attribute.name)
            if name in _HIDDEN:
                self.hidden[name] = attribute
                continue
            try:
                self.values[name] = read_attribute(attribute)
            except (TypeError, ValueError, OSError, RuntimeError) as error:
                self.dropped[name] = str(error).partition("\n")[0]


def _is_ordered(node: h5py.Dataset | h5py.Group) -> bool:
    return bool(node.id.get_create_plist().get_attr_creation_order() & h5py.h5p.CRT_ORDER_TRACKED)


def read_attribute(attribute: Any) -> Any:
    """The value of an attribute; a single one is no array.

    Raises
    ------
    TypeError
        JSON has no form for it.
    """
    kind, space = attribute.get_type(), attribute.get_space()
    number = kind.get_class()
    if space.get_simple_extent_type() == h5s.NULL:
        return ""
    if number == h5t.STRING:
        return _read_text(attribute, kind, space)
    if number == h5t.VLEN:
        return _read_lists(attribute, kind, space)
    base = kind.get_super() if number == h5t.ARRAY else kind
    if base.get_class() not in _NUMBERS:
        raise TypeError(f"it is of the HDF5 class {base.get_class()} (a record, a reference or the like)")
    dtype = base.dtype
    values = np.empty(space.get_simple_extent_dims(), kind.dtype)
    attribute.read(values)
    if dtype.kind == "f" and dtype.itemsize > 8:
        values = values.astype("f8")
    return values.ravel()[0] if values.size == 1 else values


def _read_text(attribute: Any, kind: Any, space: Any) -> Any:
    values = np.empty(space.get_simple_extent_dims(), attribute.dtype)
    attribute.read(values)
    texts = [as_text(value) if isinstance(value, bytes) else str(value or "") for value in values.ravel().tolist()]
    return texts[0] if len(texts) == 1 else texts


def _read_lists(attribute: Any, kind: Any, space: Any) -> Any:
    base = kind.get_super()
    if base.get_class() not in _NUMBERS or math.prod(space.get_simple_extent_dims()) != 1:
        raise TypeError("it is a list of lists, or of records or references")
    values = np.empty(space.get_simple_extent_dims(), attribute.dtype)
    attribute.read(values)
    return np.asarray(values.ravel()[0])
