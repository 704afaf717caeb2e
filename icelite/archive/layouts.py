"""How arrays of several files are stored, made the same where that changes no value.

What decides what is read must agree: type, codecs, fill value, chunks. What does not is taken from one file for all:
how hard a chunk was compressed, the layout of a variable that was never written in a file, and the chunks of an array
without codecs, whose bytes can be cut.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from zarr.core.metadata.v3 import ArrayV3Metadata

from icelite.store.references import MISSING
from icelite.virtualizarr.arrays import (
    References,
    chunk_shape,
    describe_codecs,
    is_virtual,
    read_references,
    stored_metadata,
)
from icelite.virtualizarr.preparation import find_chosen_chunks

GROWING_BYTES = 8192  # of chunks that every append writes anew, all coordinates together
FEWEST_STEPS = 16  # in a chunk, or it would not help


def align_layouts(datasets: Sequence[xr.Dataset], concat_dim: str) -> list[xr.Dataset]:
    """The datasets, their virtual variables stored alike where they can be; where not, as they were."""
    changed: list[dict[Any, xr.Variable]] = [{} for _ in datasets]
    for name in datasets[0].variables:
        variables = [dataset.variables.get(name) for dataset in datasets]
        if all(variable is not None and is_virtual(variable) for variable in variables):
            found = _align([variable for variable in variables if variable is not None], concat_dim)
            for changes, before, after in zip(changed, variables, found, strict=True):
                if after is not before:
                    changes[name] = after
    return [
        replace_variables(dataset, changes) if changes else dataset
        for dataset, changes in zip(datasets, changed, strict=True)
    ]


def prepare_growth(dataset: xr.Dataset, concat_dim: str) -> xr.Dataset:
    """The dataset, its loaded values along a dimension stored in chunks that have room for the next years.

    With one chunk for each file that is added, opening would read thousands; with a large one, each append would
    write it anew. Chunks that the caller chose stay, and so do those of values that are large.
    """
    dataset = dataset.copy()
    growing = [
        variable
        for name, variable in dataset.variables.items()
        if concat_dim in variable.dims and not is_virtual(variable) and find_chosen_chunks(name, variable) is None
    ]
    for variable in growing:
        others = [size for dim, size in variable.sizes.items() if dim != concat_dim]
        length = GROWING_BYTES // len(growing) // max(1, math.prod(others) * variable.dtype.itemsize)
        if length >= FEWEST_STEPS:
            chunks = tuple(length if dim == concat_dim else max(1, size) for dim, size in variable.sizes.items())
            variable.encoding = {**variable.encoding, "chunks": chunks, "preferred_chunks": None}
    return dataset


def fit_stored(dataset: xr.Dataset, stored: Mapping[str, ArrayV3Metadata], concat_dim: str) -> xr.Dataset:
    """The dataset, its virtual variables stored as the arrays that they are appended to where they can be."""
    changes = {}
    for name, variable in dataset.variables.items():
        target = stored.get(str(name))
        if target is not None and is_virtual(variable) and variable.dims == target.dimension_names:
            size = None
            if concat_dim in variable.dims:
                size = chunk_shape(target)[variable.dims.index(concat_dim)]
            adapted = _adopt(_cut(variable, concat_dim, size), target)
            if adapted is not variable:
                changes[name] = adapted
    return replace_variables(dataset, changes) if changes else dataset


def fill_missing(dataset: xr.Dataset, models: Mapping[str, xr.Variable], concat_dim: str) -> xr.Dataset:
    """The dataset with virtual variables that it lacks, without a chunk, where what is not stored reads as missing.

    Parameters
    ----------
    models
        By name, virtual variables along the dimension as others have them.
    """
    length = dataset.sizes.get(concat_dim, 1)
    added = {
        name: unwritten_like(model, concat_dim, length)
        for name, model in models.items()
        if name not in dataset.variables and reads_as_missing(model)
    }
    return replace_variables(dataset, added) if added else dataset


def unwritten_like(model: xr.Variable, concat_dim: str, length: int) -> xr.Variable:
    """A virtual variable without any chunk, that is as another one but for its length along a dimension."""
    metadata = model.data.metadata
    shape = tuple(length if dim == concat_dim else size for dim, size in model.sizes.items())
    grid = tuple(-(-size // chunk) for size, chunk in zip(shape, chunk_shape(metadata), strict=True))
    return _with_array(model, dataclasses.replace(metadata, shape=shape), _no_references(grid))


def as_virtual(metadata: ArrayV3Metadata) -> xr.Variable:
    """A virtual variable without any chunk, for an array that is stored."""
    names = metadata.dimension_names or ()
    grid = tuple(-(-size // chunk) for size, chunk in zip(metadata.shape, chunk_shape(metadata), strict=True))
    placeholder = xr.Variable(names, np.empty((0,) * len(names)), dict(metadata.attributes))
    return _with_array(placeholder, metadata, _no_references(grid))


def _no_references(grid: tuple[int, ...]) -> References:
    nothing = np.zeros(math.prod(grid), np.int64)
    return References(grid, [], nothing + MISSING, nothing, nothing, {})


def reads_as_missing(variable: xr.Variable) -> bool:
    """Whether a chunk that is not stored is decoded to missing values."""
    metadata = variable.data.metadata
    attributes = stored_metadata("missing", variable).attributes
    raw = xr.Variable((), np.asarray(metadata.fill_value, metadata.data_type.to_native_dtype()), attributes)
    if isinstance(attributes.get("_FillValue"), str):
        raw.attrs["_FillValue"] = xr.backends.zarr.FillValueCoder.decode(attributes["_FillValue"], raw.dtype)
    return bool(xr.conventions.decode_cf_variable("missing", raw, decode_times=False).isnull().values.all())


def with_fill_value(dataset: xr.Dataset, stored: Mapping[str, ArrayV3Metadata]) -> xr.Dataset:
    """The dataset, its virtual variables with the fill values of stored arrays, if all their chunks are there.

    Then they have no part that would read as one.
    """
    changes = {}
    for name, variable in dataset.variables.items():
        target = stored.get(str(name))
        if target is None or not is_virtual(variable) or read_references(variable.data).missing().any():
            continue
        own = variable.data.metadata
        if own.data_type == target.data_type and json.dumps(own.to_dict()["fill_value"]) != json.dumps(
            target.to_dict()["fill_value"]
        ):
            changes[name] = _with_metadata(variable, dataclasses.replace(own, fill_value=target.fill_value))
    return replace_variables(dataset, changes) if changes else dataset


def replace_variables(dataset: xr.Dataset, changes: Mapping[Any, xr.Variable]) -> xr.Dataset:
    """The dataset with some variables in the place of others, coordinates without an index."""
    encoding = dataset.encoding
    coordinates = {name: variable for name, variable in changes.items() if name in dataset.coords}
    dataset = dataset.assign({name: variable for name, variable in changes.items() if name not in coordinates})
    dataset = dataset.assign_coords(xr.Coordinates(coordinates, indexes={}))
    dataset.encoding = encoding
    return dataset


def _align(variables: Sequence[xr.Variable], concat_dim: str) -> list[xr.Variable]:
    size = _common_size(variables, concat_dim)
    cut = [_cut(variable, concat_dim, size) for variable in variables]
    model = next((variable for variable in cut if not _is_unwritten(variable)), cut[0])
    return [_adopt(variable, model.data.metadata) for variable in cut]


def _common_size(variables: Sequence[xr.Variable], concat_dim: str) -> int | None:
    """The length along a dimension of chunks in which all these arrays can be stored, if that is not so already."""
    written = [variable for variable in variables if concat_dim in variable.dims and not _is_unwritten(variable)]
    axes = [(variable, variable.dims.index(concat_dim)) for variable in written]
    sizes = {chunk_shape(variable.data.metadata)[axis] for variable, axis in axes}
    lengths = [variable.shape[axis] for variable, axis in axes[:-1]]  # the last one's last chunk may be partly filled
    if len(sizes) == 1 and not any(length % min(sizes) for length in lengths):
        return None
    if not axes or not all(_can_be_cut(variable, axis) for variable, axis in axes):
        return None
    return math.gcd(*sizes, *(variable.shape[axis] for variable, axis in axes)) or None


def _can_be_cut(variable: xr.Variable, axis: int) -> bool:
    """Whether parts of each chunk, along an axis, are ranges of its bytes."""
    metadata = variable.data.metadata
    if len(metadata.codecs) != 1 or metadata.to_dict()["codecs"][0]["name"] != "bytes":
        return False
    chunks = chunk_shape(metadata)
    size = int(np.prod(chunks)) * variable.dtype.itemsize
    references = read_references(variable.data)
    whole = bool((references.lengths[references.codes != MISSING] == size).all())
    return math.prod(chunks[:axis]) == 1 and size > 0 and whole and not references.inlined


def _cut(variable: xr.Variable, dim: str, size: int | None) -> xr.Variable:
    """The variable in chunks that are ``size`` long along a dimension, if it can be stored so."""
    if size is None or dim not in variable.dims or _is_unwritten(variable):
        return variable
    axis = variable.dims.index(dim)
    chunks = chunk_shape(variable.data.metadata)
    if chunks[axis] == size or chunks[axis] % size or variable.shape[axis] % size or not _can_be_cut(variable, axis):
        return variable
    parts = chunks[axis] // size
    references = read_references(variable.data)
    step = size * math.prod(chunks[axis + 1 :]) * variable.dtype.itemsize
    grid = references.grid
    within = np.arange(grid[axis] * parts) % parts * step  # of each new chunk in its old one
    within = np.expand_dims(within, tuple(at for at in range(len(grid)) if at != axis))
    kept = tuple(slice(0, variable.shape[axis] // size) if at == axis else slice(None) for at in range(len(grid)))
    codes = np.repeat(references.codes.reshape(grid), parts, axis)[kept]
    offsets = (np.repeat(references.offsets.reshape(grid), parts, axis) + within)[kept]
    shape = (*chunks[:axis], size, *chunks[axis + 1 :])
    new = References(
        codes.shape, references.urls, codes.ravel(), offsets.ravel(), np.full(codes.size, step, np.int64), {}
    )
    return _with_array(variable, _with_chunks(variable.data.metadata, shape), new)


def _with_chunks(metadata: ArrayV3Metadata, chunks: tuple[int, ...]) -> ArrayV3Metadata:
    grid: Any = metadata.chunk_grid
    return dataclasses.replace(metadata, chunk_grid=dataclasses.replace(grid, chunk_shape=chunks))


def _with_array(variable: xr.Variable, metadata: ArrayV3Metadata, references: References) -> xr.Variable:
    from virtualizarr.manifests import ChunkManifest, ManifestArray

    urls: Any = np.array([*references.urls, ""], np.dtypes.StringDType())
    present = references.codes != MISSING
    manifest = ChunkManifest.from_arrays(
        paths=urls[np.where(present, references.codes, len(references.urls))].reshape(references.grid),
        offsets=np.where(present, references.offsets, 0).astype(np.uint64).reshape(references.grid),
        lengths=np.where(present, references.lengths, 0).astype(np.uint64).reshape(references.grid),
        validate_paths=False,
    )
    return xr.Variable(
        variable.dims,
        ManifestArray(metadata=metadata, chunkmanifest=manifest),
        variable.attrs,
        variable.encoding,
        fastpath=True,
    )


def _is_unwritten(variable: xr.Variable) -> bool:
    """Whether a virtual variable has no chunk, so that all of it reads as its fill value."""
    manifest = variable.data.manifest
    return not getattr(manifest, "_inlined", {}) and next(iter(manifest.iter_nonempty_paths()), None) is None


def _adopt(variable: xr.Variable, target: ArrayV3Metadata) -> xr.Variable:
    """The variable with another array's codecs and, if it was never written, chunks, where its values stay."""
    own = variable.data.metadata
    layouts = own.to_dict(), target.to_dict()
    if any(json.dumps(layouts[0].get(key)) != json.dumps(layouts[1].get(key)) for key in ("data_type", "fill_value")):
        return variable
    if own.codecs == target.codecs and own.chunk_grid == target.chunk_grid:
        return variable
    if _is_unwritten(variable) and len(own.shape) == len(target.shape):
        chunks = chunk_shape(target)
        grid = tuple(-(-size // chunk) for size, chunk in zip(own.shape, chunks, strict=True))
        metadata = dataclasses.replace(_with_chunks(own, chunks), codecs=target.codecs)
        return _with_array(variable, metadata, _no_references(grid))
    if describe_codecs(own) != describe_codecs(target):
        return variable
    return _with_metadata(variable, dataclasses.replace(own, codecs=target.codecs))


def _with_metadata(variable: xr.Variable, metadata: ArrayV3Metadata) -> xr.Variable:
    """The same chunks of a virtual variable, with other metadata."""
    from virtualizarr.manifests import ManifestArray

    array = ManifestArray(metadata=metadata, chunkmanifest=variable.data.manifest)
    return xr.Variable(variable.dims, array, variable.attrs, variable.encoding, fastpath=True)
