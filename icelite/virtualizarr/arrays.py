"""A virtual variable: its references in columns, its metadata and attributes as they will be stored, its values.

VirtualiZarr is not imported: whoever holds one of its arrays has imported it.
The private columns of its manifests are read where they exist, because its public entries are 14 times slower.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
import xarray as xr
import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.core.chunk_key_encodings import DefaultChunkKeyEncoding
from zarr.core.metadata.v3 import ArrayV3Metadata
from zarr.storage import MemoryStore

from icelite import cf
from icelite.errors import ErrorKind, InvalidInputError
from icelite.formats.parsed import INLINED, relabelled
from icelite.store.references import MISSING, SHOWN
from icelite.virtual.urls import existing_path, file_path

if TYPE_CHECKING:
    from icelite.virtual import VirtualAccess

# What decoding needs and xarray may have moved from the attributes to the encoding.
_DECODING_KEYS = (*cf.FILLS, *cf.PACKING, *cf.NAMES)
_BLOCK = 65_536  # references turned into Python strings at a time, to bound memory
_LAST_BYTE = 2**63 - 1

# Settings of codecs that only matter to who compresses; of Blosc everything else is in each chunk's header.
_WRITERS_ONLY: Mapping[str, frozenset[str]] = {
    "gzip": frozenset({"level"}),
    "zlib": frozenset({"level"}),
    "zstd": frozenset({"level", "checksum"}),
    "bz2": frozenset({"level"}),
    "lz4": frozenset({"acceleration"}),
    "blosc": frozenset({"cname", "clevel", "shuffle", "blocksize", "typesize"}),
}

_PLAIN = (str, int, bool, float, type(None))  # what JSON gives back as it is
_CHUNK_KEYS = DefaultChunkKeyEncoding(separator="/")
_BY_VALUE = ("shape", "dimension_names")  # of the metadata; arrays of one layout have the same objects in the rest
_NO_ATTRIBUTES = '"attributes": {}'
_KNOWN = 1024
_known_documents: dict[tuple[Any, ...], tuple[Any, ...]] = {}
_WHAT = "values to compare"  # in place of a chunk's key in messages

Column = np.ndarray[Any, np.dtype[Any]]
Fetch: TypeAlias = Callable[[str, int, int], bytes]  # URL, offset, length in bytes


@dataclass(frozen=True, slots=True)
class References:
    """A chunk manifest as columns in C order.

    Attributes
    ----------
    grid
        Chunks (or shards) along each dimension.
    urls
        The different locations.
    codes
        int64, for each chunk the index of its location in ``urls``; `MISSING` where it is missing or inlined.
    offsets, lengths
        int64, bytes; without meaning where a chunk is missing.
    inlined
        Grid position to the encoded bytes of a chunk that the manifest holds itself.
    """

    grid: tuple[int, ...]
    urls: list[str]
    codes: Column
    offsets: Column
    lengths: Column
    inlined: Mapping[tuple[int, ...], bytes]

    def index(self, at: int) -> tuple[int, ...]:
        """Grid position of the chunk number ``at``."""
        return tuple(map(int, np.unravel_index(at, self.grid))) if self.grid else ()

    def missing(self) -> Column:
        """Whether each chunk is neither a reference nor inlined."""
        missing: Column = self.codes == MISSING
        for index in self.inlined:
            missing[_position(index, self.grid)] = False
        return missing

    def first_url(self) -> list[str]:
        """The file that a combined variable has its attributes from, if any."""
        present = self.codes != MISSING
        return [self.urls[self.codes[present.argmax()]]] if present.any() else []

    def without(self, position: Column) -> References:
        """These references but those at the numbers in ``position``."""
        codes = self.codes.copy()
        codes[position] = MISSING
        return dataclasses.replace(self, codes=codes)


def is_virtual(variable: xr.Variable) -> bool:
    """Whether the variable wraps a ``ManifestArray``; a lazy variable is not loaded to find out."""
    manifests = sys.modules.get("virtualizarr.manifests")
    return manifests is not None and isinstance(variable._data, manifests.ManifestArray)


def stored_metadata(path: str, variable: xr.Variable) -> ArrayV3Metadata:
    """The array's own metadata, with the names and attributes that its variable carries."""
    metadata: ArrayV3Metadata = variable.data.metadata
    kept = {key: variable.encoding[key] for key in _DECODING_KEYS if variable.encoding.get(key) is not None}
    attributes = {**variable.attrs, **kept}
    attributes = encode_attributes(attributes, path, variable.dtype if "_FillValue" in attributes else None)
    if metadata.chunk_key_encoding != _CHUNK_KEYS:
        metadata = dataclasses.replace(metadata, chunk_key_encoding=_CHUNK_KEYS)
    return relabelled(metadata, attributes, tuple(map(str, variable.dims)))


def encode_document(metadata: ArrayV3Metadata) -> str:
    """The array's ``zarr.json`` as zarr writes it; what many arrays have in common is encoded once."""
    shared = {key: value for key, value in vars(metadata).items() if key not in ("attributes", *_BY_VALUE)}
    key = (*(getattr(metadata, name) for name in _BY_VALUE), *map(id, shared.values()))
    if key not in _known_documents:
        if len(_known_documents) >= _KNOWN:
            _known_documents.clear()
        bare = relabelled(metadata, {}, metadata.dimension_names)
        _known_documents[key] = bare, *_encode(bare).split(_NO_ATTRIBUTES)  # holds what the ids are of
    _, *parts = _known_documents[key]
    if len(parts) != 2:
        return _encode(metadata)
    indent = zarr.config.get("json_indent")
    encoded = json.dumps(metadata.attributes, indent=indent).replace("\n", "\n" + " " * (indent or 0))
    return f"{parts[0]}{_NO_ATTRIBUTES.removesuffix('{}')}{encoded}{parts[1]}"


def _encode(metadata: ArrayV3Metadata) -> str:
    return metadata.to_buffer_dict(default_buffer_prototype())["zarr.json"].to_bytes().decode()


def chunk_shape(metadata: ArrayV3Metadata) -> tuple[int, ...]:
    """Shape of the unit that one reference stands for: a chunk, or a whole shard."""
    return tuple(cast(Any, metadata.chunk_grid).chunk_shape)


def describe_codecs(metadata: ArrayV3Metadata) -> str:
    """The codecs as text that is the same for codecs that decode alike."""
    return json.dumps([_for_readers(codec) for codec in metadata.to_dict()["codecs"]], sort_keys=True)  # type: ignore[union-attr]


def _for_readers(codec: Any) -> Any:
    """A codec without what only its writer needs; those inside a shard too."""
    if not isinstance(codec, Mapping):
        return codec
    ignored = _WRITERS_ONLY.get(str(codec.get("name")).removeprefix("numcodecs."), frozenset())
    settings = {
        key: [_for_readers(inner) for inner in value] if key in ("codecs", "index_codecs") else value
        for key, value in dict(codec.get("configuration") or {}).items()
        if key not in ignored
    }
    return {"name": codec.get("name"), "configuration": settings}


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
            if type(value) in _PLAIN and key != "_FillValue":
                encoded[key] = value
                continue
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


class _Numbers(dict[str, int]):
    """Numbers the strings that are looked up, in order."""

    def __missing__(self, key: str) -> int:
        number = self[key] = len(self) - 2
        return number


def read_references(array: Any) -> References:
    """The references of a ``ManifestArray``; that of a scalar may be called ``"0"``, as where it has one dimension."""
    manifest = array.manifest
    grid = tuple(map(int, manifest.shape_chunk_grid))
    columns = [getattr(manifest, name, None) for name in ("_paths", "_offsets", "_lengths")]
    if all(isinstance(column, np.ndarray) for column in columns):
        paths, offsets, lengths = (np.ravel(cast(Any, column)) for column in columns)
        offsets, lengths = (np.minimum(column, _LAST_BYTE).astype(np.int64) for column in (offsets, lengths))
        inlined = dict(getattr(manifest, "_inlined", {}))
    else:
        paths, offsets, lengths, inlined = _read_entries(manifest, grid)
    known = _Numbers({"": MISSING, INLINED: MISSING})
    codes = np.empty(len(paths), np.int64)
    for start in range(0, len(paths), _BLOCK):
        block = paths[start : start + _BLOCK].tolist()
        codes[start : start + len(block)] = np.fromiter(map(known.__getitem__, block), np.int64, len(block))
    for index in inlined:
        codes[_position(index, grid)] = MISSING
    if not array.shape and grid == (1,):
        grid, inlined = (), {index[1:]: data for index, data in inlined.items()}
    return References(grid, list(known)[2:], codes, offsets, lengths, inlined)


def _read_entries(manifest: Any, grid: tuple[int, ...]) -> tuple[Any, Any, Any, dict[tuple[int, ...], bytes]]:
    size = int(np.prod(grid, dtype=np.int64))
    paths = np.full(size, "", dtype=object)
    offsets, lengths = np.zeros(size, np.int64), np.zeros(size, np.int64)
    inlined = {}
    for index, entry in manifest.iter_refs():
        if entry["path"] == INLINED:
            inlined[index] = bytes(manifest[".".join(map(str, index)) or "c"]["data"])
            continue
        at = _position(index, grid)
        extent = (min(int(entry[key]), _LAST_BYTE) for key in ("offset", "length"))
        paths[at], (offsets[at], lengths[at]) = str(entry["path"]), extent
    return paths, offsets, lengths, inlined


def _position(index: tuple[int, ...], grid: tuple[int, ...]) -> int:
    return int(np.ravel_multi_index(index, grid)) if grid else 0


def check_references(path: str, metadata: ArrayV3Metadata, references: References) -> References:
    """The references, checked: they fill the array's chunk grid, and each can be a chunk.

    VirtualiZarr gives an array that was never written a manifest with an entry an element; it gets the right grid.

    Raises
    ------
    InvalidInputError
        ``invalid-dataset``, ``zero-length-chunk`` or ``invalid-virtual-ref``.
    """
    expected = tuple(-(-size // chunk) for size, chunk in zip(metadata.shape, chunk_shape(metadata), strict=True))
    if references.grid != expected and not references.urls and not references.inlined:
        size = int(np.prod(expected, dtype=np.int64))
        nothing = np.zeros(size, np.int64)
        return References(expected, [], nothing + MISSING, nothing, nothing, {})
    if references.grid != expected:
        raise InvalidInputError(
            f"variable {path!r} has a manifest of {references.grid} chunks, but its shape {metadata.shape} in chunks of"
            f" {chunk_shape(metadata)} needs {expected}",
            ErrorKind.INVALID_DATASET,
        )
    starts, lengths = references.offsets, references.lengths
    impossible = (lengths <= 0) | (starts < 0) | (starts > _LAST_BYTE - lengths)
    bad = np.flatnonzero(impossible & (references.codes != MISSING))
    if len(bad):
        faults = [
            f"chunk {references.index(at)}: {lengths[at]} bytes at {starts[at]} of"
            f" {references.urls[references.codes[at]]!r}"
            for at in bad[:SHOWN].tolist()
        ]
        raise InvalidInputError(
            f"variable {path!r} has {len(bad)} references that cannot be chunks; one that is not stored has the"
            f" location '': {'; '.join(faults)}",
            ErrorKind.INVALID_VIRTUAL_REF if lengths[bad].all() else ErrorKind.ZERO_LENGTH_CHUNK,
        )
    return references


# -- bytes and values, read from the files that references name --------------------------------------------------------


def fetch_through(access: VirtualAccess) -> Fetch:
    """What reads a range of a file as a chunk of the session is read, with the same gates."""

    def fetch(url: str, offset: int, length: int) -> bytes:
        location = access.locate(url, validate_container=False)
        access.allow(location)  # as writing the reference does
        return access.open(location, _WHAT).read(offset, length, _WHAT)

    return fetch


def fetch_with(registry: Any) -> Fetch:
    """What reads a range of a file that is parsed: from the disk, or with a registry of object stores."""

    def fetch(url: str, offset: int, length: int) -> bytes:
        if url.startswith("file://"):
            with open(existing_path(file_path(url)), "rb") as stream:
                stream.seek(offset)
                return stream.read(length)
        store, path = registry.resolve(url)
        return bytes(store.get_range(path, start=offset, length=length))

    return fetch


def hash_chunks(variable: xr.Variable, fetch: Fetch) -> str:
    """A hash of the stored chunks of a virtual variable; equal ones hold equal values, if their codecs are the same."""
    return hash_bytes(_read_chunks(variable, fetch))


def hash_bytes(chunks: Iterable[tuple[tuple[int, ...], bytes]]) -> str:
    """A hash of chunks, given by grid position in C order."""
    found = hashlib.blake2b(digest_size=16)
    for index, data in chunks:
        found.update(f"{index} {len(data)} ".encode())
        found.update(data)
    return found.hexdigest()


def read_virtual(variable: xr.Variable, fetch: Fetch) -> xr.Variable:
    """The undecoded values of a virtual variable, with its attributes; it fits into memory."""
    prototype = default_buffer_prototype()
    metadata = stored_metadata("values", variable)
    contents = {f"values/{key}": value for key, value in metadata.to_buffer_dict(prototype).items()}
    for index, data in _read_chunks(variable, fetch):
        contents[f"values/{metadata.encode_chunk_key(index)}"] = prototype.buffer.from_bytes(data)
    store = MemoryStore(contents)
    zarr.create_group(store)
    with xr.open_zarr(store, consolidated=False, zarr_format=3, chunks=None, decode_cf=False) as dataset:
        raw: xr.Variable = dataset.variables["values"].load()
    return raw


def read_times(bounds: xr.Variable, time: cf.Time, fetch: Fetch) -> xr.Variable:
    """The bounds of times, virtual or not, as times.

    Parameters
    ----------
    time
        Units and calendar of what they bound.
    """
    raw = read_virtual(bounds, fetch) if is_virtual(bounds) else bounds
    return raw if raw.dtype.kind in "MO" else cf.decode_times(raw, time)


def _read_chunks(variable: xr.Variable, fetch: Fetch) -> Iterator[tuple[tuple[int, ...], bytes]]:
    references = read_references(variable.data)
    for number, code in enumerate(references.codes.tolist()):
        index = references.index(number)
        if index in references.inlined:
            yield index, references.inlined[index]
        elif code != MISSING:
            extent = int(references.offsets[number]), int(references.lengths[number])
            yield index, fetch(references.urls[code], *extent)
