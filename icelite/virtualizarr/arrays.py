"""A virtual variable as it will be stored: its references in columns, its Zarr metadata, its attributes as JSON.

VirtualiZarr is not imported: whoever holds one of its arrays has imported it.
The private columns of its manifests are read where they exist, because its public entries are 14 times slower.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import xarray as xr
from zarr.core.chunk_key_encodings import DefaultChunkKeyEncoding
from zarr.core.metadata.v3 import ArrayV3Metadata

from icelite.errors import ErrorKind, InvalidInputError

# What decoding needs and xarray may have moved from the attributes to the encoding.
_DECODING_KEYS = ("_FillValue", "missing_value", "scale_factor", "add_offset", "coordinates", "grid_mapping")
_BLOCK = 65_536  # references turned into Python strings at a time, to bound memory
_LAST_BYTE = np.uint64(2**63 - 1)
_INLINED = "__inlined__"  # VirtualiZarr's path of a chunk that it holds in memory


@dataclass(frozen=True, slots=True)
class References:
    """A chunk manifest as columns in C order.

    Attributes
    ----------
    grid
        Chunks (or shards) along each dimension.
    locations, offsets, lengths
        One item a chunk, bytes; a chunk that is missing or inlined has the location ``''``.
    urls
        The different locations.
    inlined
        Grid position to the encoded bytes of a chunk that the manifest holds itself.
    """

    grid: tuple[int, ...]
    locations: list[str]
    urls: set[str]
    offsets: np.ndarray[Any, np.dtype[np.uint64]]
    lengths: np.ndarray[Any, np.dtype[np.uint64]]
    inlined: Mapping[tuple[int, ...], bytes]


def is_virtual(variable: xr.Variable) -> bool:
    """Whether the variable wraps a ``ManifestArray``; a lazy variable is not loaded to find out."""
    manifests = sys.modules.get("virtualizarr.manifests")
    return manifests is not None and isinstance(variable._data, manifests.ManifestArray)


def stored_metadata(path: str, variable: xr.Variable) -> ArrayV3Metadata:
    """The array's own metadata, with the names and attributes that its variable carries."""
    metadata: ArrayV3Metadata = variable.data.metadata
    kept = {key: variable.encoding[key] for key in _DECODING_KEYS if variable.encoding.get(key) is not None}
    attributes = encode_attributes({**variable.attrs, **kept}, path, variable.dtype)
    return dataclasses.replace(
        metadata,
        attributes=attributes,
        dimension_names=tuple(map(str, variable.dims)),
        chunk_key_encoding=DefaultChunkKeyEncoding(separator="/"),
    )


def chunk_shape(metadata: ArrayV3Metadata) -> tuple[int, ...]:
    """Shape of the unit that one reference stands for: a chunk, or a whole shard."""
    return tuple(cast(Any, metadata.chunk_grid).chunk_shape)


def encode_attributes(attributes: Mapping[Any, Any], path: str, dtype: np.dtype[Any] | None = None) -> dict[str, Any]:
    """Attributes as JSON holds them; NaN and infinity stay, as zarr-python writes them.

    Raises
    ------
    InvalidInputError
        ``bad-metadata``, naming the attribute and ``path``.
    """
    encoded = {}
    for key, value in attributes.items():
        try:
            if not isinstance(key, str):
                raise TypeError("the name is not a string")
            if key == "_FillValue" and dtype is not None:
                value = _encode_fill_value(value, dtype)
            encoded[key] = json.loads(json.dumps(value, default=_plain))
        except (TypeError, ValueError) as error:
            raise InvalidInputError(
                f"attribute {key!r} of {path or 'the root group'!r} cannot be stored as JSON: {error}; found"
                f" {type(value).__name__}: convert or drop it",
                ErrorKind.BAD_METADATA,
            ) from error
    return encoded


def _encode_fill_value(value: Any, dtype: np.dtype[Any]) -> Any:
    """``_FillValue`` as xarray decodes it from Zarr v3; a parser may have encoded it already."""
    from xarray.backends.zarr import FillValueCoder

    value = _plain(value) if isinstance(value, np.ndarray | np.generic) else value
    if isinstance(value, list) and len(value) == 1:  # netCDF attributes may come as arrays of one
        value = value[0]
    if isinstance(value, str | list):
        return value
    # float32 data is compared with the fill value as float32 has it
    return FillValueCoder.encode(dtype.type(value) if dtype.kind == "f" else value, dtype)


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} has no JSON form")


def read_references(manifest: Any) -> References:
    """The references of a ``ChunkManifest``."""
    grid = tuple(map(int, manifest.shape_chunk_grid))
    columns = [getattr(manifest, name, None) for name in ("_paths", "_offsets", "_lengths")]
    if all(isinstance(column, np.ndarray) for column in columns):
        paths, offsets, lengths = (np.ravel(cast(Any, column)) for column in columns)
        inlined = dict(getattr(manifest, "_inlined", {}))
    else:
        paths, offsets, lengths, inlined = _read_entries(manifest, grid)
    known: dict[str, str] = {"": ""}  # so that there is one string object a file instead of one a chunk
    locations: list[str] = []
    for start in range(0, len(paths), _BLOCK):
        block = paths[start : start + _BLOCK].tolist()
        locations.extend(map(known.setdefault, block, block))
    for index in inlined:
        locations[_position(index, grid)] = ""
    return References(grid, locations, known.keys() - {"", _INLINED}, offsets, lengths, inlined)


def _read_entries(manifest: Any, grid: tuple[int, ...]) -> tuple[Any, Any, Any, dict[tuple[int, ...], bytes]]:
    size = int(np.prod(grid, dtype=np.int64))
    paths = np.full(size, "", dtype=object)
    offsets, lengths = np.zeros(size, np.uint64), np.zeros(size, np.uint64)
    inlined = {}
    for index, entry in manifest.iter_refs():
        if entry["path"] == _INLINED:
            inlined[index] = bytes(manifest[".".join(map(str, index)) or "c"]["data"])
            continue
        at = _position(index, grid)
        paths[at], offsets[at], lengths[at] = str(entry["path"]), int(entry["offset"]), int(entry["length"])
    return paths, offsets, lengths, inlined


def _position(index: tuple[int, ...], grid: tuple[int, ...]) -> int:
    return int(np.ravel_multi_index(index, grid)) if grid else 0


def check_references(path: str, metadata: ArrayV3Metadata, references: References) -> None:
    """Check that the references fill the array's chunk grid and that each can be a chunk.

    Raises
    ------
    InvalidInputError
        ``invalid-dataset``, ``zero-length-chunk`` or ``invalid-virtual-ref``.
    """
    expected = tuple(-(-size // chunk) for size, chunk in zip(metadata.shape, chunk_shape(metadata), strict=True))
    if references.grid != expected:
        raise InvalidInputError(
            f"variable {path!r} has a manifest of {references.grid} chunks, but its shape {metadata.shape} in chunks of"
            f" {chunk_shape(metadata)} needs {expected}",
            ErrorKind.INVALID_DATASET,
        )
    lengths = np.minimum(references.lengths, _LAST_BYTE)
    for at in np.flatnonzero((lengths == 0) | (references.offsets > _LAST_BYTE - lengths)):
        if references.locations[at]:
            index = tuple(map(int, np.unravel_index(at, references.grid))) if references.grid else ()
            raise InvalidInputError(
                f"variable {path!r}, chunk {index}: {references.lengths[at]} bytes at {references.offsets[at]} of"
                f" {references.locations[at]!r} cannot be a chunk; one that is not stored has the location ''",
                ErrorKind.INVALID_VIRTUAL_REF if lengths[at] else ErrorKind.ZERO_LENGTH_CHUNK,
            )
