"""Changes to VirtualiZarr's arrays of references that its own functions do not make."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from virtualizarr.manifests import ChunkManifest, ManifestArray
from xarray.backends.zarr import FillValueCoder

from icelite.formats.packing import FILL_TEXT, PACKING_KEYS, fill_text

INLINED = "__inlined__"  # the path that VirtualiZarr gives a chunk that it holds itself
HAS_INLINED = "_inlined" in ChunkManifest.__annotations__  # since 2.8


def grid_of(shape: tuple[int, ...], chunks: tuple[int, ...]) -> tuple[int, ...]:
    """Chunks along each dimension."""
    return tuple(-(-size // chunk) for size, chunk in zip(shape, chunks, strict=True))


def packing_attributes(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """``scale_factor`` and ``add_offset`` with their types, which JSON does not keep."""
    found = {key: np.ravel(attributes[key]) for key in PACKING_KEYS if key in attributes}
    return {key: value[0] for key, value in found.items() if value.size == 1 and value.dtype.kind in "iuf"}


def build_array(
    *,
    url: str,
    shape: tuple[int, ...],
    chunks: tuple[int, ...],
    dtype: np.dtype[Any],
    stored: np.dtype[Any],
    offsets: np.ndarray[Any, Any],
    lengths: np.ndarray[Any, Any],
    dims: tuple[str, ...],
    attributes: dict[str, Any],
    filters: list[dict[str, Any]] | None = None,
    compressors: list[dict[str, Any]] | None = None,
    serializer: dict[str, Any] | None = None,
    inlined: Mapping[tuple[int, ...], bytes] | None = None,
    fill_value: Any = 0,
) -> ManifestArray:
    """An array of references to one file.

    Parameters
    ----------
    dtype, stored
        Type of the values, and of what the bytes hold when the compressors are undone.
    offsets, lengths
        Bytes, one for each chunk, in the shape of the grid; a length of 0 is a chunk that is missing.
    filters, compressors, serializer
        Zarr codecs, from the values to the bytes; by default the bytes are ``stored`` as they are.
    inlined
        Bytes of chunks that are not in the file, by grid position; needs VirtualiZarr 2.8.
    """
    from virtualizarr.manifests.utils import create_v3_array_metadata

    chunks = tuple(max(size, 1) for size in chunks)
    grid = grid_of(shape, chunks)
    lengths = np.broadcast_to(lengths.astype(np.uint64), grid).copy()
    offsets = np.where(lengths > 0, np.broadcast_to(offsets.astype(np.uint64), grid), np.uint64(0))
    paths: Any = np.where(
        lengths > 0, np.full(grid, url, np.dtypes.StringDType()), np.full(grid, "", np.dtypes.StringDType())
    )
    more: dict[str, Any] = {}
    if inlined:
        for index, data in inlined.items():
            paths[index], offsets[index], lengths[index] = INLINED, 0, len(data)
        more["inlined"] = dict(inlined)
    endian = {"endian": "big" if stored.byteorder == ">" else "little"} if stored.itemsize > 1 else {}
    serializer = serializer or {"name": "bytes", "configuration": endian}
    metadata = create_v3_array_metadata(
        shape=shape,
        data_type=dtype.newbyteorder("=") if filters or serializer["name"] != "bytes" else stored,
        chunk_shape=chunks,
        fill_value=fill_value,
        codecs=[*(filters or []), serializer, *(compressors or [])],
        attributes=attributes,
        dimension_names=dims,
    )
    manifest = ChunkManifest.from_arrays(paths=paths, offsets=offsets, lengths=lengths, validate_paths=False, **more)
    return ManifestArray(metadata=metadata, chunkmanifest=manifest)


def json_attributes(attributes: Mapping[str, Any], dtype: np.dtype[Any] | None = None) -> dict[str, Any]:
    """Attributes as a Zarr array has them; ``_FillValue`` in the form that xarray reads there, if it can be one.

    Parameters
    ----------
    dtype
        Type of the variable.
    """
    plain = {name: _plain(value) for name, value in attributes.items()}
    if dtype is not None and "_FillValue" in attributes:
        fill = plain.pop("_FillValue")
        if is_fill_value(attributes["_FillValue"], dtype):
            plain["_FillValue"] = FillValueCoder.encode(dtype.type(np.ravel(fill)[0]), dtype)
        elif dtype.kind == "S" and isinstance(attributes["_FillValue"], str | bytes):
            plain[FILL_TEXT] = fill_text(attributes["_FillValue"])
    return plain


def is_fill_value(fill: Any, dtype: np.dtype[Any]) -> bool:
    """Whether xarray can mask this value in a Zarr array: none in text, and no integer is NaN."""
    fill = np.ravel(fill)
    if dtype.kind not in "iufc" or fill.size != 1 or fill.dtype.kind not in "iufc":
        return False
    if dtype.kind in "fc":
        return True
    limits = np.iinfo(dtype)
    return bool(np.isfinite(fill[0])) and limits.min <= fill[0] <= limits.max and int(fill[0]) == fill[0]


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return as_text(value)
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def as_text(value: bytes) -> str:
    """Text as it was most likely encoded."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")
