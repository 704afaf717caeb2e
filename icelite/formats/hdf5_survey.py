"""The groups and datasets of an open HDF5 file with their attributes, and their dimensions as netCDF4 has them.

A dimension is a dimension scale; other axes get one by their length, called ``phony_dim_N``, among those of their
group. Groups are numbered from the innermost outwards, behind all scales of the file. An unlimited dimension is as long
as the longest variable that has it, whichever group that is in.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import h5py
import numpy as np
from h5py import h5a, h5ds, h5o, h5r, h5s, h5t

from icelite.formats.attributes import as_text

_NO_VARIABLE = b"This is a netCDF dimension but not a netCDF variable"
# What HDF5 and netCDF4 keep for themselves.
_HIDDEN = {"CLASS", "NAME", "REFERENCE_LIST", "DIMENSION_LIST", "DIMENSION_LABELS"}
_HIDDEN |= {"_Netcdf4Dimid", "_Netcdf4Coordinates", "_nc3_strict", "_NCProperties"}
_NUMBERS = (h5t.INTEGER, h5t.FLOAT, h5t.BITFIELD, h5t.ENUM)
PREFIX = "_nc4_non_coord_"  # netCDF4 marks so a variable that has a dimension's name and is not its coordinate

Key: TypeAlias = tuple[int, int]  # of a dimension: file and address of its scale, or -1 and the number of a phony one


@dataclass(slots=True)
class Group:
    """One group and what is in it.

    Attributes
    ----------
    problems
        Why a member is left out, by name.
    axes
        The dimension of each axis by dataset; None for one without a scale, until it gets a phony one.
    """

    path: str
    node: h5py.Group
    datasets: dict[str, h5py.Dataset] = field(default_factory=dict)
    groups: dict[str, Group] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    axes: dict[str, list[Key | None]] = field(default_factory=dict)

    def walk(self) -> Iterator[Group]:
        """Yield the groups below, then this one: netCDF4 numbers dimensions in this order."""
        for below in self.groups.values():
            yield from below.walk()
        yield self


@dataclass(slots=True)
class _Dimension:
    name: str
    length: int
    unlimited: bool


class Survey:
    """The groups, datasets and dimensions of one open file."""

    def __init__(self, file: h5py.File) -> None:
        self._seen: dict[Key, str] = {}
        self._dimensions: dict[Key, _Dimension] = {}
        self._numbers: dict[int, Key] = {}  # netCDF4's own numbers of dimensions
        self._owned: dict[str, list[Key]] = {}  # dimensions of each group, by its path
        self.root = self._open(file, "")
        groups = list(self.root.walk())
        for group in groups:
            self._find_scales(group)
        for group in groups:
            group.axes = {name: self._axes(dataset) for name, dataset in group.datasets.items()}
        for group in groups:
            self._add_phony(group)
        for group in groups:
            self._measure(group)

    def names(self, group: Group, name: str) -> tuple[str, ...]:
        """Names of the dimensions of a dataset."""
        return tuple(self._dimensions[key].name for key in self._keys(group, name))

    def sizes(self, group: Group, name: str) -> tuple[int, ...]:
        """Lengths of the dimensions of a dataset, which may be shorter."""
        return tuple(self._dimensions[key].length for key in self._keys(group, name))

    def _keys(self, group: Group, name: str) -> list[Key]:
        return [key for key in group.axes[name] if key is not None]

    def _open(self, node: h5py.Group, path: str) -> Group:
        group = Group(path, node)
        self._seen[_key(node)] = path or "/"
        for name in node:
            full = f"{path}/{name}"
            try:
                member = h5py.Group.__getitem__(node, name)
            except (KeyError, OSError, RuntimeError, ValueError) as error:
                group.problems[name] = f"it cannot be opened: {error}"
                continue
            if isinstance(member, h5py.Dataset):
                group.datasets[name] = member
            elif isinstance(member, h5py.Group):
                known = self._seen.get(_key(member))
                if known is not None:
                    group.problems[name] = f"it is another name of the group {known!r}"
                elif member.file.filename != node.file.filename:
                    group.problems[name] = "it is a group of another file (an external link)"
                else:
                    group.groups[name] = self._open(member, full)
        return group

    def _find_scales(self, group: Group) -> None:
        for name, dataset in group.datasets.items():
            if not h5ds.is_scale(dataset.id) or not dataset.shape:
                continue
            key = _key(dataset)
            if key in self._dimensions:
                continue
            plain = name.removeprefix(PREFIX)
            self._dimensions[key] = _Dimension(plain, dataset.shape[0], dataset.maxshape[0] is None)
            self._owned.setdefault(group.path, []).append(key)
            number = _numbers(dataset, b"_Netcdf4Dimid")
            if len(number) == 1:
                self._numbers[number[0]] = key

    def _axes(self, dataset: h5py.Dataset) -> list[Key | None]:
        shape = (0,) if dataset.shape is None else dataset.shape
        axes: list[Key | None] = [None] * len(shape)
        numbers = _numbers(dataset, b"_Netcdf4Coordinates")
        key = _key(dataset)
        if h5a.exists(dataset.id, b"DIMENSION_LIST"):
            axes = [self._last(dataset, refs) for refs in _references(dataset, len(shape))]
        elif len(numbers) == len(shape) and all(number in self._numbers for number in numbers):
            axes = [self._numbers[number] for number in numbers]
        elif key in self._dimensions:
            axes[0] = key
        return axes

    def _last(self, dataset: h5py.Dataset, references: Any) -> Key | None:
        """The dimension of an axis: netCDF4 takes the last of several scales."""
        for reference in reversed(list(references)):
            try:
                found = h5r.dereference(reference, dataset.id)
            except (ValueError, RuntimeError, TypeError):
                continue
            info = h5o.get_info(found)
            key = (info.fileno, info.addr)
            if key in self._dimensions:
                return key
        return None

    def _add_phony(self, group: Group) -> None:
        for name, axes in group.axes.items():
            dataset = group.datasets[name]
            limits = (0,) if dataset.shape is None else dataset.maxshape
            shape = (0,) if dataset.shape is None else dataset.shape
            for axis, key in enumerate(axes):
                if key is None:
                    axes[axis] = self._phony(group, shape[axis], limits[axis] is None, axes[:axis])

    def _phony(self, group: Group, length: int, unlimited: bool, taken: list[Key | None]) -> Key:
        owned = self._owned.setdefault(group.path, [])
        for key in owned:
            found = self._dimensions[key]
            if found.length == length and found.unlimited == unlimited and key not in taken:
                return key
        number = max([len(self._dimensions), *(number + 1 for number in self._numbers)])
        key = (-1, number)
        self._dimensions[key] = _Dimension(f"phony_dim_{number}", length, unlimited)
        owned.append(key)
        return key

    def _measure(self, group: Group) -> None:
        for name, axes in group.axes.items():
            for key, length in zip(axes, group.datasets[name].shape or (), strict=False):
                if key is not None:
                    found = self._dimensions[key]
                    found.length = max(found.length, length)


def _key(node: h5py.Dataset | h5py.Group) -> Key:
    info = h5o.get_info(node.id)
    return info.fileno, info.addr


def _numbers(dataset: h5py.Dataset, name: bytes) -> list[int]:
    if not h5a.exists(dataset.id, name):
        return []
    attribute = h5a.open(dataset.id, name)
    values = np.empty(attribute.shape, "i8")
    try:
        attribute.read(values)
    except (TypeError, OSError):
        return []
    return [int(value) for value in values.ravel()]


def _references(dataset: h5py.Dataset, count: int) -> list[Any]:
    """The scales of each axis; none where the attribute is not as HDF5 writes it."""
    attribute = h5a.open(dataset.id, b"DIMENSION_LIST")
    if attribute.shape != (count,):
        return [()] * count
    values = np.empty(attribute.shape, attribute.dtype)
    try:
        attribute.read(values)
        return [list(each) for each in values]
    except (TypeError, OSError, RuntimeError):
        return [()] * count


def is_dimension_only(dataset: h5py.Dataset) -> bool:
    """Whether it is netCDF4's stand-in for a dimension that has no coordinate variable."""
    if not h5ds.is_scale(dataset.id) or not h5a.exists(dataset.id, b"NAME"):
        return False
    return as_text(h5ds.get_scale_name(dataset.id)).encode().startswith(_NO_VARIABLE)


# -- attributes --------------------------------------------------------------------------------------------------------


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
