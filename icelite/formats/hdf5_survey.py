"""The groups and datasets of an open HDF5 file with their attributes, and their dimensions as netCDF4 has them.

A dimension is a dimension scale; other axes get one by their length, called ``phony_dim_N``, among those of their
group. Groups are numbered from the innermost outwards, behind all scales of the file. An unlimited dimension is as long
as the longest variable that has it, whichever group that is in.

Files of thousands of variables are common, so h5py's low-level calls are used, each once an object.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

import h5py
import numpy as np
from h5py import h5a, h5d, h5g, h5l, h5o, h5r, h5s, h5t

from icelite.formats.attributes import as_text

_NO_VARIABLE = b"This is a netCDF dimension but not a netCDF variable"
# What HDF5 and netCDF4 keep for themselves.
_HIDDEN = {b"CLASS", b"NAME", b"REFERENCE_LIST", b"DIMENSION_LIST", b"DIMENSION_LABELS"}
_HIDDEN |= {b"_Netcdf4Dimid", b"_Netcdf4Coordinates", b"_nc3_strict", b"_NCProperties"}
_NUMBERS = (h5t.INTEGER, h5t.FLOAT, h5t.BITFIELD, h5t.ENUM)
PREFIX = "_nc4_non_coord_"  # netCDF4 marks so a variable that has a dimension's name and is not its coordinate

_KNOWN = 256
_known_types: dict[bytes, tuple[np.dtype[Any], Any]] = {}  # in memory, by HDF5's own description: slow to work out

Key: TypeAlias = tuple[int, int]  # of an object: file and address; of a phony dimension: -1 and its number


class Member:
    """One dataset, with what is asked of it several times.

    Attributes
    ----------
    shape, limits
        Elements it has, and may have (None for any number); None for a null dataspace.
    axes
        The dimension of each axis; None for one without a scale, until it gets a phony one.
    """

    def __init__(self, name: str, id_: h5d.DatasetID, key: Key) -> None:
        self.name, self.id, self.key = name, id_, key
        self.axes: list[Key | None] = []
        space = id_.get_space()
        self.shape: tuple[int, ...] | None = None
        self.limits: tuple[int | None, ...] = (0,)
        if space.get_simple_extent_type() != h5s.NULL:
            self.shape = space.get_simple_extent_dims()
            limits = space.get_simple_extent_dims(True)
            self.limits = tuple(None if limit == h5s.UNLIMITED else limit for limit in limits)

    @cached_property
    def plist(self) -> Any:
        """Its creation properties."""
        return self.id.get_create_plist()

    @cached_property
    def attributes(self) -> Attributes:
        """Its attributes."""
        return Attributes(self.id, self.plist)

    @cached_property
    def node(self) -> h5py.Dataset:
        """The dataset in the form that reads values."""
        return h5py.Dataset(self.id)

    @cached_property
    def is_scale(self) -> bool:
        """Whether it is a dimension scale."""
        return self.attributes.has(b"CLASS") and bool(h5py.h5ds.is_scale(self.id))

    def is_dimension_only(self) -> bool:
        """Whether it is netCDF4's stand-in for a dimension that has no coordinate variable."""
        if not self.is_scale or not self.attributes.has(b"NAME"):
            return False
        return as_text(h5py.h5ds.get_scale_name(self.id)).encode().startswith(_NO_VARIABLE)


@dataclass(slots=True)
class Group:
    """One group and what is in it.

    Attributes
    ----------
    problems
        Why a member is left out, by name.
    """

    path: str
    node: h5py.Group
    datasets: dict[str, Member] = field(default_factory=dict)
    groups: dict[str, Group] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)

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
    """The groups, datasets and dimensions of one open file.

    Attributes
    ----------
    fileno
        HDF5's number of the file; objects of other files have another one in their key.
    """

    def __init__(self, file: h5py.File) -> None:
        self._seen: dict[Key, str] = {}
        self._dimensions: dict[Key, _Dimension] = {}
        self._numbers: dict[int, Key | None] = {}  # netCDF4's own numbers of dimensions
        self._owned: dict[str, list[Key]] = {}  # dimensions of each group, by its path
        key = _key(file.id)
        self.fileno = key[0]
        self.root = self._open(file, "", key)
        groups = list(self.root.walk())
        for group in groups:
            self._find_scales(group)
        for group in groups:
            for member in group.datasets.values():
                member.axes = self._axes(member)
        for group in groups:
            self._add_phony(group)
        for group in groups:
            self._measure(group)

    def names(self, member: Member) -> tuple[str, ...]:
        """Names of the dimensions of a dataset."""
        return tuple(self._dimensions[key].name for key in member.axes if key is not None)

    def sizes(self, member: Member) -> tuple[int, ...]:
        """Lengths of the dimensions of a dataset, which may be shorter."""
        return tuple(self._dimensions[key].length for key in member.axes if key is not None)

    def _open(self, node: h5py.Group, path: str, key: Key) -> Group:
        group = Group(path, node)
        self._seen[key] = path or "/"
        for raw in node.id:
            name = raw.decode("utf-8", "surrogateescape")
            try:
                member, key = self._open_member(node, raw)
            except (KeyError, OSError, RuntimeError, ValueError) as error:
                group.problems[name] = f"it cannot be opened: {error}"
                continue
            if isinstance(member, h5d.DatasetID):
                group.datasets[name] = Member(name, member, key)
            elif isinstance(member, h5g.GroupID):
                known = self._seen.get(key)
                if known is not None:
                    group.problems[name] = f"it is another name of the group {known!r}"
                elif key[0] != self.fileno:
                    group.problems[name] = "it is a group of another file (an external link)"
                else:
                    group.groups[name] = self._open(h5py.Group(member), f"{path}/{name}", key)
        return group

    def _open_member(self, node: h5py.Group, raw: bytes) -> tuple[Any, Key]:
        link = node.id.links.get_info(raw)
        if link.type == h5l.TYPE_HARD:
            return h5o.open(node.id, raw), (self.fileno, link.u)
        found: Any = h5py.Group.__getitem__(node, raw)
        return found.id, _key(found.id)

    def _find_scales(self, group: Group) -> None:
        for name, member in group.datasets.items():
            if not member.shape or member.key in self._dimensions or not member.is_scale:
                continue
            plain = name.removeprefix(PREFIX)
            self._dimensions[member.key] = _Dimension(plain, member.shape[0], member.limits[0] is None)
            self._owned.setdefault(group.path, []).append(member.key)
            number = member.attributes.numbers(b"_Netcdf4Dimid")
            if len(number) == 1:  # two with one number are told by their scales
                self._numbers[number[0]] = None if number[0] in self._numbers else member.key

    def _axes(self, member: Member) -> list[Key | None]:
        shape = (0,) if member.shape is None else member.shape
        axes: list[Key | None] = [None] * len(shape)
        numbered = self._numbered(member, shape)
        if numbered is not None:
            axes = numbered
        elif member.attributes.has(b"DIMENSION_LIST"):
            axes = [self._last(member, refs) for refs in self._references(member, len(shape))]
        elif member.key in self._dimensions:
            axes[0] = member.key
        return axes

    def _numbered(self, member: Member, shape: tuple[int, ...]) -> list[Key | None] | None:
        """The axes by netCDF4's numbers of dimensions, which it believes before anything else, if they fit."""
        numbers = member.attributes.numbers(b"_Netcdf4Coordinates")
        keys = [self._numbers.get(number) for number in numbers]
        if not keys or len(keys) != len(shape):
            return None
        for key, length in zip(keys, shape, strict=True):
            if key is None or not (self._dimensions[key].unlimited or self._dimensions[key].length == length):
                return None
        return keys

    def _references(self, member: Member, count: int) -> list[Any]:
        """The scales of each axis; none where the attribute is not as HDF5 writes it."""
        attribute = member.attributes.open(b"DIMENSION_LIST")
        if attribute.shape != (count,):
            return [()] * count
        try:
            return [list(each) for each in _read(attribute, attribute.get_type(), (count,))]
        except (TypeError, OSError, RuntimeError):
            return [()] * count

    def _last(self, member: Member, references: Any) -> Key | None:
        """The dimension of an axis: netCDF4 takes the last of several scales."""
        for reference in reversed(references):
            try:
                found = h5r.dereference(reference, member.id)
            except (ValueError, RuntimeError, TypeError):
                continue
            key = _key(found)
            if key in self._dimensions:
                return key
        return None

    def _add_phony(self, group: Group) -> None:
        for member in group.datasets.values():
            shape = (0,) if member.shape is None else member.shape
            for axis, key in enumerate(member.axes):
                if key is None:
                    unlimited = member.limits[axis] is None
                    member.axes[axis] = self._phony(group, shape[axis], unlimited, member.axes[:axis])

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
        for member in group.datasets.values():
            for key, length in zip(member.axes, member.shape or (), strict=False):
                if key is not None:
                    found = self._dimensions[key]
                    found.length = max(found.length, length)


def _key(id_: Any) -> Key:
    info = h5o.get_info(id_)
    return info.fileno, info.addr


# -- attributes --------------------------------------------------------------------------------------------------------


class Attributes:
    """The attributes of one object: their names, and values when they are asked for.

    Parameters
    ----------
    plist
        The object's creation properties.
    """

    def __init__(self, id_: Any, plist: Any) -> None:
        self._id = id_
        self._names: list[bytes] = []
        ordered = plist.get_attr_creation_order() & h5py.h5p.CRT_ORDER_TRACKED
        order = h5py.h5.INDEX_CRT_ORDER if ordered else h5py.h5.INDEX_NAME
        h5a.iterate(id_, self._names.append, index_type=order)

    def has(self, name: bytes) -> bool:
        """Whether there is an attribute of that name."""
        return name in self._names

    def open(self, name: bytes) -> Any:
        """One attribute, not read yet."""
        return h5a.open(self._id, name)

    def numbers(self, name: bytes) -> list[int]:
        """The integers that an attribute holds; none if it is not there or holds other things."""
        if not self.has(name):
            return []
        attribute = self.open(name)
        values = np.empty(attribute.shape, "i8")
        try:
            attribute.read(values)
        except (TypeError, OSError):
            return []
        return [int(value) for value in values.ravel()]

    def read(self) -> tuple[dict[str, Any], dict[str, str]]:
        """NumPy scalars, arrays, text and lists of text by name, and why others are left out."""
        values: dict[str, Any] = {}
        dropped: dict[str, str] = {}
        for raw in self._names:
            if raw in _HIDDEN:
                continue
            name = as_text(raw)
            try:
                values[name] = read_attribute(self.open(raw))
            except (TypeError, ValueError, OSError, RuntimeError, KeyError) as error:
                dropped[name] = str(error).partition("\n")[0]
        return values, dropped


def read_attribute(attribute: Any) -> Any:
    """The value of an attribute; a single one is no array.

    Raises
    ------
    TypeError
        JSON has no form for it.
    """
    kind, shape = attribute.get_type(), attribute.shape
    number = kind.get_class()
    if not attribute.get_storage_size() and attribute.get_space().get_simple_extent_type() == h5s.NULL:
        return ""
    if number == h5t.STRING:
        return _read_text(attribute, kind, shape)
    if number == h5t.VLEN:
        return _read_lists(attribute, kind, shape)
    base = kind.get_super() if number == h5t.ARRAY else kind
    if base.get_class() not in _NUMBERS:
        raise TypeError(f"it is of the HDF5 class {base.get_class()} (a record, a reference or the like)")
    values = _read(attribute, kind, shape)
    if values.dtype.kind == "f" and values.dtype.itemsize > 8:
        values = values.astype("f8")
    return values.ravel()[0] if values.size == 1 else values


def _read_text(attribute: Any, kind: Any, shape: tuple[int, ...]) -> Any:
    values = _read(attribute, kind, shape).ravel().tolist()
    texts = [as_text(value) if isinstance(value, bytes) else str(value or "") for value in values]
    return texts[0] if len(texts) == 1 else texts


def _read_lists(attribute: Any, kind: Any, shape: tuple[int, ...]) -> Any:
    base = kind.get_super()
    if base.get_class() not in _NUMBERS or math.prod(shape) != 1:
        raise TypeError("it is a list of lists, or of records or references")
    return np.asarray(_read(attribute, kind, shape).ravel()[0])


def _read(attribute: Any, kind: Any, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    described = kind.encode()
    if described not in _known_types:
        if len(_known_types) >= _KNOWN:
            _known_types.clear()
        dtype = kind.dtype
        _known_types[described] = dtype, h5t.py_create(dtype)
    dtype, in_memory = _known_types[described]
    values = np.empty(shape, dtype)
    attribute.read(values, in_memory)
    return values
