"""Dimensions of the datasets of an HDF5 file, as netCDF4 has them: `Survey`.

A dimension is a dimension scale; other axes get one by their length, called ``phony_dim_N``, among those of their
group. Groups are numbered from the innermost outwards, behind all scales of the file. An unlimited dimension is as long
as the longest variable that has it, whichever group that is in.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import h5py
import numpy as np
from h5py import h5a, h5ds, h5o, h5r

from icelite.formats.manifests import as_text

_NO_VARIABLE = b"This is a netCDF dimension but not a netCDF variable"
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
