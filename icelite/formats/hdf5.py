"""HDF5 and netCDF4: references to the chunks of what is recognised in full, copies by h5py of everything else.

A file is opened and inspected once. What h5py cannot read, or Zarr cannot store, is left out with the reason.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import warnings
from collections.abc import Collection, Iterator
from typing import Any

import h5py
import numpy as np
import xarray as xr
from h5py import h5o

from icelite.errors import InvalidInputError
from icelite.formats.attributes import FILL_TEXT, fill_text, is_fill_value, json_attributes, packing_attributes
from icelite.formats.hdf5_layout import DatasetLayout, Recognition, describe_filter, filters_of
from icelite.formats.hdf5_survey import PREFIX, Attributes, Group, Member, Survey
from icelite.formats.parsed import Copied, ParsedGroup, lazy_copy, no_group
from icelite.formats.source import SourceFile
from icelite.keys import CONSOLIDATED, DOCUMENTS, check_path
from icelite.types import SourceStamp

_RESERVED = {*DOCUMENTS, CONSOLIDATED}
_SHORT = 200  # letters of a name, of which any is allowed
_SMALL_BYTES = 65_536  # of a variable that is copied: no more than HDF5 keeps among the metadata


def parse(
    source: SourceFile, stamp: SourceStamp, group: str, dropped: Collection[str], whole_tree: bool
) -> ParsedGroup:
    """Parse one group, and with ``whole_tree`` all below it.

    Raises
    ------
    InvalidInputError
        ``invalid-argument`` for a group that is not there.
    """
    with open_hdf5(source) as file:
        survey = Survey(file)
        found = survey.root
        for name in group.split("/") if group else ():
            if name not in found.groups:
                raise no_group(source, group, found.groups)
            found = found.groups[name]
        return _Parsing(source, stamp, file, survey, frozenset(dropped)).group(found, whole_tree)


class _Parsing:
    """One pass over the groups of an open file."""

    def __init__(
        self, source: SourceFile, stamp: SourceStamp, file: h5py.File, survey: Survey, dropped: frozenset[str]
    ) -> None:
        self._source, self._stamp, self._file = source, stamp, file
        self._survey, self._dropped = survey, dropped
        self._recognition = Recognition()

    def group(self, group: Group, whole_tree: bool) -> ParsedGroup:
        attributes = self._attributes(group.path or "/", Attributes(group.node.id, group.node.id.get_create_plist()))
        names = attributes.pop("coordinates", "")
        parsed = ParsedGroup(attributes=json_attributes(attributes))
        parsed.coordinates = tuple(names.split()) if isinstance(names, str) else ()
        problems = group.problems if whole_tree else {}
        parsed.skipped = {name: why for name, why in problems.items() if name not in self._dropped}
        taken: set[str] = set()
        for name, member in group.datasets.items():
            if name not in self._dropped and not member.is_dimension_only():
                plain = self._name(name.removeprefix(PREFIX), taken)
                taken.add(plain)
                self._add(parsed, f"{group.path}/{name}", plain, member)
        for name, below in group.groups.items() if whole_tree else ():
            if name not in self._dropped:
                plain = self._name(name, taken)
                taken.add(plain)
                parsed.groups[plain] = self.group(below, whole_tree)
        return parsed

    def _name(self, name: str, taken: Collection[str]) -> str:
        plain = stored_name(name, taken)
        if plain != name:
            warnings.warn(f"{name!r} of {self._source.url!r} is called {plain!r}, as Zarr's names are", stacklevel=6)
        return plain

    def _attributes(self, path: str, attributes: Attributes) -> dict[str, Any]:
        values, dropped = attributes.read()
        if dropped:
            told = "; ".join(f"{name!r}: {why}" for name, why in dropped.items())
            warnings.warn(f"attributes of {path!r} of {self._source.url!r} are dropped: {told}", stacklevel=6)
        return values

    def _add(self, parsed: ParsedGroup, path: str, plain: str, member: Member) -> None:
        attributes = self._attributes(path, member.attributes)
        layout: DatasetLayout | str = "it is in another file (an external link)"
        if member.key[0] == self._survey.fileno:
            layout = self._recognition.find_layout(path.lstrip("/"), member.id, member.shape, member.plist)
        fill = attributes.get("_FillValue")
        if isinstance(layout, DatasetLayout) and fill is not None and not _is_fill(fill, layout.dtype):
            layout = "its _FillValue is no value of its type, which Zarr has no form for"
        shape = self._survey.sizes(member)
        dims = tuple(stored_name(dim, ()) for dim in self._survey.names(member))
        if isinstance(layout, DatasetLayout):
            inner = layout.shape[len(shape) :]
            dims += tuple(f"{plain}_{index}" for index in range(len(inner)))
            plain_attributes = json_attributes(attributes, layout.dtype)
            parsed.arrays[plain] = layout.build(self._source.url, (*shape, *inner), dims, plain_attributes)
            parsed.packing[plain] = packing_attributes(attributes)
            parsed.unfiltered.update(layout.gaps)
            return
        dataset = member.node
        problem = find_unreadable(dataset) or find_problem_elsewhere(self._file, dataset)
        if problem is not None:
            parsed.skipped[plain] = problem
            return
        parsed.copied[plain] = Copied(self._copy(path, member, dims, shape, attributes), layout)

    def _copy(
        self,
        path: str,
        member: Member,
        dims: tuple[str, ...],
        shape: tuple[int, ...],
        attributes: dict[str, Any],
    ) -> xr.Variable:
        dataset = member.node
        dtype = _copied_dtype(dataset)
        inner = dataset.dtype.shape
        dims += tuple(f"{path.rpartition('/')[2]}_{index}" for index in range(len(inner)))
        shape += inner
        if "_FillValue" in attributes and not is_fill_value(attributes["_FillValue"], dtype):
            fill = attributes.pop("_FillValue")
            attributes |= {FILL_TEXT: fill_text(fill)} if dtype.kind == "S" and isinstance(fill, str) else {}
        small = math.prod(shape) * dtype.itemsize <= _SMALL_BYTES
        if small and not _list_files(self._file, dataset):  # at once, rather than open the file once more
            with contextlib.suppress(OSError):  # it is damaged, which whoever needs the values is told
                values = _select(dataset, tuple(slice(0, size) for size in shape)).astype(dtype)  # h5py's mark of text
                encoding = {} if "_FillValue" in attributes else {"_FillValue": None}
                return xr.Variable(dims, values, attributes, encoding)
        return lazy_copy(self._source, self._stamp, path, read_values, dims, shape, dtype, attributes)


def _is_fill(fill: Any, dtype: np.dtype[Any]) -> bool:
    return is_fill_value(fill, dtype) or (dtype.kind == "S" and isinstance(fill, str))


def find_unreadable(dataset: h5py.Dataset) -> str | None:
    """Why h5py cannot read a dataset's values, or Zarr cannot store them, or None."""
    if dataset.shape is None:
        return None
    kind = dataset.id.get_type()
    try:
        dtype = kind.dtype
    except (TypeError, ValueError, NotImplementedError) as error:
        return f"h5py has no type for its values: {error}"
    if h5py.check_vlen_dtype(dtype) in (str, bytes):
        return _find_missing_filter(dataset)
    if h5py.check_vlen_dtype(dtype) is not None:
        return f"it holds lists of variable length of {h5py.check_vlen_dtype(dtype)}, which Zarr cannot store"
    if h5py.check_ref_dtype(dtype) is not None:
        return "it holds references to other objects of the file, which Zarr cannot store"
    return _find_unstorable(dtype.base) or _find_missing_filter(dataset)


def _find_unstorable(dtype: np.dtype[Any]) -> str | None:
    if dtype.hasobject:
        return "it holds records with fields of variable length or references, which Zarr cannot store"
    if dtype.names and any(dtype[name].subdtype or dtype[name].names for name in dtype.names):
        return "it holds records with arrays or records in them, which Zarr cannot store"
    fields = [dtype[name] for name in dtype.names or ()] or [dtype]
    if any(field.kind in "fc" and field.itemsize > (8 if field.kind == "f" else 16) for field in fields):
        return "it holds numbers of more than 64 bits, which Zarr cannot store"
    return None


def _find_missing_filter(dataset: h5py.Dataset) -> str | None:
    numbers = [number for number, _ in filters_of(dataset.id.get_create_plist())]
    missing = [number for number in numbers if not h5py.h5z.filter_avail(number)]
    if not missing or not dataset.id.get_storage_size():
        return None
    return (
        f"it is compressed with the HDF5 filter {', '.join(map(describe_filter, missing))}, which needs the package"
        " 'hdf5plugin' (pip install hdf5plugin) or a plugin of its own"
    )


def _copied_dtype(dataset: h5py.Dataset) -> np.dtype[Any]:
    """The type of copied values: packed, in the machine's byte order."""
    if dataset.shape is not None and h5py.check_vlen_dtype(dataset.dtype) in (str, bytes):
        text: np.dtype[Any] = h5py.string_dtype()
        return text
    dtype: np.dtype[Any] = dataset.dtype.base
    if dtype.names:
        return np.dtype([(name, dtype[name].newbyteorder("=")) for name in dtype.names])
    if dataset.shape is None and dtype.hasobject:
        return np.dtype("f8")
    plain: np.dtype[Any] = np.dtype(dtype.str).newbyteorder("=")
    return plain


def read_values(source: SourceFile, path: str, key: tuple[Any, ...]) -> np.ndarray[Any, Any]:
    """Values of one dataset; where it is shorter than its dimension, its fill value.

    Raises
    ------
    IceliteError
        As `SourceFile.unreadable`, for data of other files that may not be read.
    """
    with open_hdf5(source) as file:
        dataset = reopened(file, path)
        problem = find_problem_elsewhere(file, dataset)
        if problem is not None:
            raise source.unreadable(f"the values of {path!r} are in another file: {problem}")
        return _select(dataset, key)


def _select(dataset: h5py.Dataset, key: tuple[Any, ...]) -> np.ndarray[Any, Any]:
    """The part of a dataset that ``key`` selects, with fill values beyond its end."""
    dtype = _copied_dtype(dataset)
    if dataset.shape is None:
        return np.asarray(np.empty(0, dtype)[key])
    own, inner = key[: dataset.ndim], key[dataset.ndim :]
    strings = dtype.hasobject
    parts = [part if isinstance(part, slice) else slice(int(part), int(part) + 1) for part in own]
    inside = tuple(
        slice(min(part.start, size), min(part.stop, size), part.step)
        for part, size in zip(parts, dataset.shape, strict=True)
    )
    stored = dataset.asstr(errors="surrogateescape") if strings else dataset
    values = np.asarray(stored[inside], dtype=object if strings else None)
    wanted = [len(range(part.start, part.stop, part.step or 1)) for part in parts]
    missing = [(0, want - have) for want, have in zip(wanted, values.shape, strict=False)]
    if any(more for _, more in missing):
        fill = "" if strings else dataset.fillvalue
        values = np.pad(values, missing + [(0, 0)] * (values.ndim - len(missing)), constant_values=fill)
    if not strings:
        values = values.astype(dtype)
    rest = tuple(0 if not isinstance(part, slice) else slice(None) for part in own)
    return np.asarray(values[(*rest, *inner)])


def stored_name(name: str, taken: Collection[str]) -> str:
    """The name, with what Zarr's keys cannot hold written as in a URL: ``zarr.json`` becomes ``zarr%2Ejson``.

    Parameters
    ----------
    taken
        Names that it must not become.
    """
    if name.isascii() and name.isidentifier() and len(name) <= _SHORT and name not in taken:
        return name
    plain = "".join(letter if letter.isprintable() and letter not in "\\/" else _encode(letter) for letter in name)
    if plain in _RESERVED or not plain.strip("."):
        plain = plain.replace(".", "%2E")
    try:
        check_path(plain)
    except InvalidInputError:
        plain = "".join(letter if letter.isascii() and letter.isalnum() else _encode(letter) for letter in name)
    while plain in taken:
        plain += "_"
    return plain


def _encode(letter: str) -> str:
    data = letter.encode("utf-8", "surrogateescape")
    return "".join(f"%{byte:02X}" for byte in data)


# -- files -------------------------------------------------------------------------------------------------------------


def register_filters() -> None:
    """Let HDF5 know the filters of hdf5plugin, if that is installed."""
    if importlib.util.find_spec("hdf5plugin") is not None:
        __import__("hdf5plugin")


@contextlib.contextmanager
def open_hdf5(source: SourceFile) -> Iterator[h5py.File]:
    """A file, by its name or, where it is remote or open in this process with other locks, as a stream.

    By its name HDF5 finds the files that hold external data. A file that someone writes to is refused by a lock.
    """
    register_filters()
    if source.path is not None:
        try:
            file = h5py.File(source.path, "r")
        except OSError as error:
            if "file locking flag" not in str(error):
                raise
        else:
            with file:
                yield file
            return
    with source.open() as stream, h5py.File(stream, "r") as file:
        yield file


def find_problem_elsewhere(file: h5py.File, dataset: h5py.Dataset) -> str | None:
    """Why a dataset whose values are in other files may not be copied, or None.

    Data of other files are copied only from the file's own directory: a stranger's file may name any file.
    """
    others = _list_files(file, dataset)
    if others and file.driver == "fileobj":
        return f"the file is read as a stream and names {others[0]!r}"
    directory = os.path.dirname(os.path.realpath(file.filename))
    for name in others:
        path = os.path.realpath(os.path.join(directory, name))
        if os.path.commonpath([directory, path]) != directory:
            return f"{name!r} is not under {directory!r}"
        if "%" not in name and not os.path.isfile(path):
            return f"{name!r} is not there"
    return None


def _list_files(file: h5py.File, dataset: h5py.Dataset) -> list[str]:
    here = h5o.get_info(dataset.id).fileno == h5o.get_info(file.id).fileno
    linked = [] if here else [os.path.abspath(dataset.file.filename)]
    if dataset.is_virtual:
        return linked + [source.file_name for source in dataset.virtual_sources() if source.file_name != "."]
    return linked + [os.fsdecode(name) for name, *_ in dataset.external or ()]


def reopened(file: h5py.File, path: str) -> h5py.Dataset:
    """A dataset whose external files are looked for beside its own, not in the working directory."""
    access = h5py.h5p.create(h5py.h5p.DATASET_ACCESS)
    access.set_efile_prefix(b"${ORIGIN}")
    name: Any = path.encode("utf-8", "surrogateescape")
    return h5py.Dataset(h5py.h5d.open(file.id, name, access))
