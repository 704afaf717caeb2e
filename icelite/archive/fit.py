"""Files of one archive made one dataset: in which order, whether they fit each other, and how they are combined.

References are concatenated without looking at a value, so every file must say the same as the first about types,
scaling, units and the grid. What lacks the dimension is stored once, and must be equal in all files unless the caller
asks for something else. All that does not fit is collected, with what to pass for it, before anything is refused.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import xarray as xr

from icelite import cf
from icelite.archive.findings import Misfit
from icelite.archive.inputs import name_of
from icelite.archive.labels import decoded, describe_kind
from icelite.archive.layouts import align_layouts
from icelite.archive.scan import COPIED, ScannedFile
from icelite.errors import ErrorKind, InvalidInputError
from icelite.formats.parsed import INSPECTED
from icelite.virtualizarr.arrays import Fetch, chunk_shape, describe_codecs, is_virtual, read_times, read_virtual
from icelite.virtualizarr.sources import SOURCES_KEY

Compat: TypeAlias = Literal["equals", "identical", "override"]
COMPATS = ("equals", "identical", "override")

_LAYOUT = ("data_type", "codecs", "fill_value")
# How a loaded variable is stored; where files differ in it, the first one's way may not hold all values.
_STORED = (*cf.TIMES, *cf.PACKING, *cf.FILLS, "dtype")
_STORED_TIMES = ("dtype", *cf.FILLS, "fill_value")  # of times, whose units are chosen and whose calendar stays


@dataclass(frozen=True, slots=True)
class Fitting:
    """How files are combined.

    Attributes
    ----------
    concat_dim
        Dimension along which they follow each other, which may be new.
    compat
        As `xarray.concat`, for what lacks that dimension.
    stack
        Variables that lack it, and get it: every file's value is kept.
    """

    concat_dim: str
    compat: Compat = "equals"
    stack: frozenset[str] = frozenset()

    def stacked(self, dataset: xr.Dataset) -> set[Hashable]:
        """The variables that get the dimension: where it is new all data, and coordinates that are one value."""
        asked: set[Hashable] = {
            name for name in self.stack & dataset.variables.keys() if self.concat_dim not in dataset[name].dims
        }
        if self.concat_dim in dataset.dims:
            return asked
        return asked | {*dataset.data_vars, *(name for name, found in dataset.coords.items() if found.ndim == 0)}

    def shared(self, dataset: xr.Dataset) -> set[Hashable]:
        """The variables that are stored once for all files."""
        stacked = self.stacked(dataset)
        return {name for name, found in dataset.variables.items() if self.concat_dim not in found.dims} - stacked


def combine_files(files: Sequence[ScannedFile], fitting: Fitting | None, fetch: Fetch) -> xr.Dataset:
    """One dataset of files that fit each other.

    Parameters
    ----------
    files
        In the order of concatenation, as `align_files` has them; without a dimension, in natural order of their names.
    fitting
        How to join them along a dimension. None: they must hold different variables.
    fetch
        What reads values that have to be changed.

    Raises
    ------
    InvalidInputError
        ``invalid-dataset``: without a dimension, two files hold the same variable.
    """
    if len(files) == 1 and (fitting is None or not fitting.stacked(files[0].dataset)):
        return files[0].dataset
    combined = _merge(files) if fitting is None else _concatenate(files, fitting, fetch)
    combined.encoding = dict(files[0].dataset.encoding)
    for key in (SOURCES_KEY, COPIED, INSPECTED):
        noted = [file.dataset.encoding.get(key) or {} for file in files]
        combined.encoding[key] = {name: value for found in noted for name, value in found.items()}
    return combined


def align_files(files: Sequence[ScannedFile], fitting: Fitting, fetch: Fetch) -> list[ScannedFile]:
    """The files, stored alike where that changes no value, with what is stacked at every one of their steps."""
    dim = fitting.concat_dim
    datasets = [_stack(file.dataset, fitting, fetch) if dim in file.dataset.dims else file.dataset for file in files]
    return [
        replace(file, dataset=dataset)
        for file, dataset in zip(files, align_layouts(datasets, dim) if datasets else [], strict=True)
    ]


def find_misfits(files: Sequence[ScannedFile], fitting: Fitting, fetch: Fetch) -> tuple[list[Misfit], str]:
    """What does not fit in files that are in the order of concatenation, and the URL of the one they are compared with.

    That is the first; where many do not fit it, the first of those that most are like.
    """
    if not files:
        return [], ""
    model = files[0]
    misfits = _compare_all(files, model, fitting, fetch)
    if len({misfit.url for misfit in misfits}) > 1:
        kinds = [_describe_layout(file.dataset, fitting.concat_dim) for file in files]
        model = files[kinds.index(max(kinds, key=kinds.count))]
        misfits = _compare_all(files, model, fitting, fetch) if model is not files[0] else misfits
    if not misfits and fitting.concat_dim in model.dataset.dims:
        misfits = check_chunk_borders(files, fitting.concat_dim)
    return misfits, model.url


def _compare_all(files: Sequence[ScannedFile], model: ScannedFile, fitting: Fitting, fetch: Fetch) -> list[Misfit]:
    comparison = Comparison(model, fitting, fetch)
    return [misfit for file in files if file is not model for misfit in comparison.find_misfits(file)]


def _describe_layout(dataset: xr.Dataset, dim: str) -> str:
    """What a file's variables are and mean, as text that is the same for files that probably fit each other."""
    parts = []
    for name, variable in sorted(dataset.variables.items(), key=str):
        sizes = {other: size for other, size in variable.sizes.items() if other != dim}
        meaning = [cf.as_text(key, cf.find_meaning(variable, key)) for key in cf.MEANING if not cf.find_time(variable)]
        layout = ""
        if is_virtual(variable):
            metadata = variable.data.metadata
            layout = f"{variable.dtype} {chunk_shape(metadata)} {describe_codecs(metadata)}"
        parts.append(f"{name} {variable.dims} {sizes} {meaning} {layout}")
    return "\n".join(parts)


# -- whether they fit each other ----------------------------------------------------------------------------------


@dataclass(slots=True)
class Comparison:
    """Compares files with one that all others must agree with."""

    model: ScannedFile
    fitting: Fitting
    fetch: Fetch
    _values: dict[Hashable, xr.Variable] = field(default_factory=dict)

    def find_misfits(self, file: ScannedFile) -> list[Misfit]:
        """All that does not fit in a file."""
        problems = [*self._compare_names(file.dataset)]
        if any(problem.startswith("no file has") for problem in problems):
            return [Misfit(file.url, problem) for problem in problems]
        shared = self.fitting.shared(self.model.dataset)
        for name, variable in file.dataset.variables.items():
            if name in self.model.dataset.variables:
                problems += self._compare(name, variable, file, name in shared)
        return [Misfit(file.url, problem) for problem in problems]

    def _compare_names(self, dataset: xr.Dataset) -> Iterator[str]:
        model, dim = self.model.dataset, self.fitting.concat_dim
        missing = [str(name) for name in model.variables if name not in dataset.variables]
        added = [str(name) for name in dataset.variables if name not in model.variables]
        for names, what in ((missing, "it lacks"), (added, "only it has")):
            if names:
                yield f"{what} {', '.join(map(repr, names))}; leave out what differs with drop_variables={names}"
        if (dim in model.dims) != (dim in dataset.dims):
            yield f"only one of them has the dimension {dim!r}; pass a concat_dim= that all or none of them have"
        elif dim not in {*model.dims, *model.variables} and self._continues(dataset):
            yield f"no file has a dimension {dim!r}; they have {', '.join(map(str, dataset.dims))}: pass one of them"
            return
        for name, size in model.sizes.items():
            if name != dim and dataset.sizes.get(name) != size:
                yield (
                    f"the grids differ: {name!r} has length {dataset.sizes.get(name)} instead of {size}; write it to"
                    " another group"
                )

    def _continues(self, dataset: xr.Dataset) -> bool:
        """Whether a file goes on along a dimension that it has, so that a new one is probably a mistake."""
        model = self.model.dataset
        return any(
            dataset.sizes.get(dim) != size
            or (dim in model.indexes and dim in dataset.indexes and not model.indexes[dim].equals(dataset.indexes[dim]))
            for dim, size in model.sizes.items()
        )

    def _compare(self, name: Hashable, found: xr.Variable, file: ScannedFile, shared: bool) -> list[str]:
        model = self.model.dataset.variables[name]
        if shared and self.fitting.compat == "override" and found.dims == model.dims:
            return []  # the model's is taken, whatever this one says
        problems = list(_differing_text(name, "dimensions", found.dims, model.dims, "preprocess="))
        if problems:
            return problems
        virtual = is_virtual(found)
        if virtual != is_virtual(model):
            words = ["loaded or copied", "referenced"]
            return [
                f"variable {str(name)!r} is {words[virtual]} instead of {words[not virtual]}; load it from all of them"
                f" (loadable_variables=[..., {str(name)!r}])"
            ]
        if virtual:
            problems = [*_compare_layouts(name, found, model), *_compare_meanings(name, found, model)]
            if shared and not problems and file.hashes.get(str(name)) != self.model.hashes.get(str(name)):
                problems = self._compare_values(name, self._read(found), self._model_values(name, model))
        elif shared:
            problems = self._compare_values(name, found, model)
        else:
            kinds = describe_kind(found), describe_kind(model)
            problems = list(_differing_text(name, "kind of value", *kinds, "preprocess="))
            problems += _compare_meanings(name, found, model, only_attributes=True)
        if shared and not problems and self.fitting.compat == "identical":
            ours, theirs = (str(sorted(variable.attrs.items(), key=str)) for variable in (found, model))
            problems = list(_differing_text(name, "attributes", ours, theirs, "compat='equals'"))
        return problems

    def _read(self, variable: xr.Variable) -> xr.Variable:
        return read_virtual(variable, self.fetch)

    def _model_values(self, name: Hashable, model: xr.Variable) -> xr.Variable:
        if name not in self._values:
            self._values[name] = self._read(model)
        return self._values[name]

    def _compare_values(self, name: Hashable, found: xr.Variable, model: xr.Variable) -> list[str]:
        if is_equal(found, model):
            return []
        dim, text = self.fitting.concat_dim, str(name)
        if name in self.model.dataset.dims:
            return [
                f"the grids differ: {describe_difference(text, found, model)}; if that does not matter, leave it out"
                f" (drop_variables=[{text!r}]), make it equal (preprocess=), or take the first (compat='override')"
            ]
        return [
            f"the grids differ: {describe_difference(text, found, model)}, and it lacks {dim!r}; keep every file's"
            f" (stack=[{text!r}]), take the first one's (compat='override') or leave it out (drop_variables=[{text!r}])"
        ]


def _compare_layouts(name: Hashable, found: xr.Variable, model: xr.Variable) -> Iterator[str]:
    load = f"load it (loadable_variables=[..., {str(name)!r}]), or write it to another group"
    yield from _differing_text(name, "dtype", str(found.dtype), str(model.dtype), load)
    ours, theirs = found.data.metadata, model.data.metadata
    yield from _differing_text(name, "chunk shape", chunk_shape(ours), chunk_shape(theirs), load)
    layouts = [metadata.to_dict() | {"codecs": describe_codecs(metadata)} for metadata in (ours, theirs)]
    for key in _LAYOUT:
        here, there = (cf.as_text(key, layout.get(key)) for layout in layouts)
        yield from _differing_text(name, "codec" if key == "codecs" else key, here, there, load)


def _compare_meanings(
    name: Hashable, found: xr.Variable, model: xr.Variable, *, only_attributes: bool = False
) -> Iterator[str]:
    """What numbers mean; of decoded values, what was left in the attributes."""
    for key in cf.MEANING:
        ours, theirs = (
            cf.as_text(key, variable.attrs.get(key) if only_attributes else cf.find_meaning(variable, key))
            for variable in (found, model)
        )
        load = "preprocess=" if only_attributes else f"loadable_variables=[..., {str(name)!r}] or preprocess="
        yield from _differing_text(name, key, ours, theirs, load)


def _differing_text(name: Hashable, what: str, found: object, expected: object, remedy: str) -> Iterator[str]:
    if found != expected:
        advice = remedy if " " in remedy and not remedy.startswith("loadable") else f"make it equal ({remedy})"
        yield f"variable {str(name)!r} has the {what} {found} instead of {expected}; {advice}"


def is_equal(found: xr.Variable, model: xr.Variable) -> bool:
    """Whether values are equal; floats of different width if they are as the narrower one."""
    if found.shape != model.shape:
        return False
    if found.dtype.kind == model.dtype.kind == "f" and found.dtype != model.dtype:
        narrow = min(found.dtype, model.dtype, key=lambda dtype: dtype.itemsize)
        found, model = found.astype(narrow), model.astype(narrow)
    return bool(found.equals(model))  # type: ignore[no-untyped-call]


def describe_difference(name: str, found: xr.Variable, model: xr.Variable) -> str:
    """The first element in which two variables differ, for people."""
    if found.shape != model.shape:
        return f"{name!r} has the shape {found.shape} instead of {model.shape}"
    ours, theirs = found.values, model.values
    for index in np.ndindex(found.shape):
        here, there = ours[index], theirs[index]
        if here != there and not (here != here and there != there):  # NaN differs from itself
            return f"{name!r} is {here} instead of {there} at {list(map(int, index))}"
    return f"{name!r} differs"


def check_chunk_borders(files: Sequence[ScannedFile], concat_dim: str) -> list[Misfit]:
    """What ends inside a chunk, in each file but the last, in the order of concatenation."""
    misfits = []
    for file in files[:-1]:
        for name, variable in file.dataset.variables.items():
            if concat_dim not in variable.dims or not is_virtual(variable):
                continue
            axis = variable.dims.index(concat_dim)
            length, chunk = variable.shape[axis], chunk_shape(variable.data.metadata)[axis]
            if length % chunk:
                problem = (
                    f"it has {length} elements of {str(name)!r} along {concat_dim!r} in chunks of {chunk}, so its last"
                    " chunk is partly filled and nothing can follow it; load the variable"
                    f" (loadable_variables=[..., {str(name)!r}]), or rewrite the files"
                )
                misfits.append(Misfit(file.url, problem))
    return misfits


# -- how they are combined ----------------------------------------------------------------------------------------


def _concatenate(files: Sequence[ScannedFile], fitting: Fitting, fetch: Fetch) -> xr.Dataset:
    dim = fitting.concat_dim
    datasets = [file.dataset for file in files]
    stacked = fitting.stacked(datasets[0])
    is_new = dim not in datasets[0].dims
    datasets = _with_common_times([ds.set_coords([dim] if dim in ds else []) for ds in datasets], dim, fetch)
    try:
        combined = xr.concat(
            datasets,
            dim=dim,
            data_vars="all" if is_new else "minimal",
            coords=[name for name in stacked if is_new and name in datasets[0].coords] or "minimal",
            compat="override",
            join="override",
            combine_attrs="override",
        )
    except ValueError as error:
        if "partial chunks" not in str(error):
            raise
        raise InvalidInputError(  # VirtualiZarr before 2.6, the newest for Python 3.11
            f"the last chunk of {name_of(files[-1].url)!r} is partly filled, which this VirtualiZarr does not combine:"
            " add that file in a second call, or use Python 3.12 and VirtualiZarr 2.8",
            ErrorKind.INVALID_DATASET,
        ) from error
    for name, variable in combined.variables.items():
        if dim in variable.dims and not is_virtual(variable):
            for key in _not_shared(name, variable, datasets):
                variable.encoding.pop(key, None)
    return combined


def _not_shared(name: Hashable, variable: xr.Variable, datasets: Sequence[xr.Dataset]) -> tuple[str, ...]:
    """The keys of a loaded variable's encoding that do not hold for the values of all files."""
    first, *others = ([str(ds.variables[name].encoding.get(key)) for key in _STORED] for ds in datasets)
    if all(other == first for other in others):
        return ()
    if variable.dtype.kind not in "MmO":
        return _STORED
    times = {cf.find_time(ds.variables[name]) for ds in datasets}
    return _STORED_TIMES if len(times) == 1 else ("units", *_STORED_TIMES)


def _stack(dataset: xr.Dataset, fitting: Fitting, fetch: Fetch) -> xr.Dataset:
    """A file's dataset, with its value of each variable that is to be stacked at every one of its steps."""
    dim = fitting.concat_dim
    for name in fitting.stacked(dataset):
        variable = dataset.variables[name]
        if is_virtual(variable):
            variable = decoded(read_virtual(variable, fetch))
        values = np.broadcast_to(variable.values, (dataset.sizes[dim], *variable.shape)).copy()
        stacked = xr.Variable((dim, *variable.dims), values, variable.attrs, variable.encoding)
        is_coordinate = name in dataset.coords
        dataset = dataset.drop_vars([name]).assign({name: stacked})
        dataset = dataset.set_coords([name]) if is_coordinate else dataset
    return dataset


def _with_common_times(datasets: Sequence[xr.Dataset], dim: str, fetch: Fetch) -> list[xr.Dataset]:
    """The datasets with bounds that count from one date, where their times are going to."""
    result = list(datasets)
    for name, bounds in cf.find_bounds(datasets[0].variables):
        parents = [ds.variables[name] for ds in result]
        times = [cf.find_time(parent) for parent in parents]
        if dim not in parents[0].dims or dim not in result[0].variables[bounds].dims or len(set(times)) == 1:
            continue
        parts = [read_times(ds.variables[bounds], time, fetch) for ds, time in zip(result, times, strict=True) if time]
        common = cf.choose_time([*parents, *parts])
        for at, (ds, part) in enumerate(zip(result, parts, strict=True)):
            numbers = cf.encode_times(part, common)
            numbers.attrs = {key: value for key, value in ds.variables[bounds].attrs.items() if key not in cf.FILLS}
            parent = ds.variables[name].copy(deep=False)
            kept = {key: value for key, value in parent.encoding.items() if key not in _STORED_TIMES}
            parent.encoding = {**kept, "units": common[0], "calendar": common[1]}
            encoding = ds.encoding
            result[at] = ds.assign({bounds: numbers}).assign_coords({name: parent})
            result[at].encoding = encoding
    return result


def _merge(files: Sequence[ScannedFile]) -> xr.Dataset:
    seen: dict[Any, tuple[str, xr.Variable]] = {}
    for file in files:
        for name, variable in file.dataset.variables.items():
            if name not in seen:
                seen[name] = file.url, variable
                continue
            other, first = seen[name]
            if is_virtual(variable) or is_virtual(first) or not variable.equals(first):  # type: ignore[no-untyped-call]
                raise InvalidInputError(
                    f"{file.url!r} and {name_of(other)!r} both hold {name!r}: pass concat_dim="
                    f"{_likely_dimension([file.dataset for file in files])!r} to join files along a dimension",
                    ErrorKind.INVALID_DATASET,
                )
    return xr.merge([file.dataset for file in files], compat="override", join="exact", combine_attrs="override")


def _likely_dimension(datasets: Sequence[xr.Dataset]) -> str:
    """The dimension that files probably continue along: unlimited, or one whose coordinate or length differs."""
    first, second = datasets[0], datasets[1]
    unlimited = [str(dim) for dim in first.encoding.get("unlimited_dims", ())]
    differing = [
        str(dim)
        for dim in first.dims
        if dim in second.dims
        and (
            first.sizes[dim] != second.sizes[dim]
            or (dim in first.indexes and dim in second.indexes and not first.indexes[dim].equals(second.indexes[dim]))
        )
    ]
    return next(iter([*unlimited, *differing, *(str(d) for d in first.dims if str(d).startswith("time"))]), "time")
