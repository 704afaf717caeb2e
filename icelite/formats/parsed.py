"""What a parser hands over: for each group arrays of references, and variables to copy; how both are built.

A `ParsedGroup` has arrays of references and variables that are copied, because their chunks cannot be referenced.
Copied values are read when they are needed, and only if the file is still the one that was parsed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

from icelite.errors import ErrorKind, IceliteError, InvalidInputError, StorageError
from icelite.formats.attributes import PACKING_KEYS, Named
from icelite.formats.source import SourceFile, describe
from icelite.types import SourceStamp
from icelite.virtual.stamps import describe as describe_stamp
from icelite.virtual.stamps import is_changed

if TYPE_CHECKING:
    from virtualizarr.manifests import ManifestArray
    from zarr.core.metadata.v3 import ArrayV3Metadata


OWN_COORDINATES = "icelite_coordinates"  # key of a dataset's encoding: names of those that its group has itself
INLINED = "__inlined__"  # the path that VirtualiZarr gives a chunk that it holds itself
INSPECTED = "icelite_inspected"  # key of a dataset's encoding: URL to `FileInspection`

_KNOWN = 1024
_known_metadata: dict[tuple[Any, ...], ArrayV3Metadata] = {}


@dataclass(frozen=True, slots=True)
class Copied:
    """A variable that is copied: undecoded, and why its chunks cannot be referenced."""

    variable: xr.Variable
    reason: str


@dataclass(slots=True)
class ParsedGroup:
    """One group of a file.

    Attributes
    ----------
    arrays
        References by variable.
    made
        Variables that the parser worked out, such as the coordinates of a GeoTIFF's pixels.
    coordinates
        Variables that are coordinates though no dimension has their name.
    partly
        Why some chunks of an array are copied, by variable.
    skipped
        Why a variable is left out, by name: no library reads it, or Zarr cannot store its values.
    unfiltered
        Chunks that lack filters, by their first byte in the file.
    inspected
        Whether one of icelite's parsers looked for such chunks.
    packing
        ``scale_factor`` and ``add_offset`` by variable, with the types that JSON does not keep.
    """

    arrays: dict[str, ManifestArray] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)
    copied: dict[str, Copied] = field(default_factory=dict)
    made: dict[str, xr.Variable] = field(default_factory=dict)
    coordinates: tuple[str, ...] = ()
    groups: dict[str, ParsedGroup] = field(default_factory=dict)
    partly: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    unfiltered: dict[int, Gap] = field(default_factory=dict)
    inspected: bool = False
    packing: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def of_store(cls, store: Any) -> ParsedGroup:
        """What a VirtualiZarr parser returned, a ``ManifestStore``."""
        return cls._of_manifests(store._group)  # private, and the same from VirtualiZarr 2.5 to 2.8

    @classmethod
    def _of_manifests(cls, group: Any) -> ParsedGroup:
        attributes = dict(group.metadata.attributes or {})
        names = attributes.pop("coordinates", ())
        return cls(
            dict(group.arrays),
            attributes,
            coordinates=tuple(names.split() if isinstance(names, str) else names),
            groups={name: cls._of_manifests(below) for name, below in group.groups.items()},
        )

    def without(self, names: Iterable[str]) -> ParsedGroup:
        """The same group without these variables."""
        dropped = set(names)
        return replace(
            self,
            arrays={name: array for name, array in self.arrays.items() if name not in dropped},
            copied={name: copied for name, copied in self.copied.items() if name not in dropped},
            made={name: variable for name, variable in self.made.items() if name not in dropped},
            skipped={name: reason for name, reason in self.skipped.items() if name not in dropped},
        )

    @property
    def reasons(self) -> dict[str, str]:
        """Why values are copied, by variable."""
        partly = {name: reason for name, reason in self.partly.items() if name in self.arrays}
        return {name: copied.reason for name, copied in self.copied.items()} | partly

    def packing_of(self, name: str) -> dict[str, Any]:
        """The packing attributes of an array; in double precision where the format has no type for them."""
        attributes = self.arrays[name].metadata.attributes
        plain = {key: attributes[key] for key in PACKING_KEYS if isinstance(attributes.get(key), int | float)}
        return {key: np.float64(value) for key, value in plain.items()} | self.packing.get(name, {})

    def walk(self, path: str = "") -> Iterable[tuple[str, ParsedGroup]]:
        """Yield ``(path, group)`` of this group and all below it."""
        yield path, self
        for name, group in self.groups.items():
            yield from group.walk(f"{path}/{name}".lstrip("/"))


@dataclass(frozen=True, slots=True)
class Gap:
    """A part of a dataset that no reference can express.

    Attributes
    ----------
    dataset
        Its path in the file.
    start, shape
        Elements; not beyond the dataset's end.
    chunk
        The shape that its chunk has in an array: as ``shape``, but for a chunk at the dataset's end.
    problem
        What is wrong with it, to follow its name.
    """

    dataset: str
    start: tuple[int, ...]
    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    dtype: np.dtype[Any]
    problem: str


@dataclass(frozen=True, slots=True)
class FileInspection:
    """One file's contents that no reference shows, as they were when it was parsed.

    Attributes
    ----------
    names
        The paths of all datasets.
    unfiltered
        Chunks that lack filters, by their first byte in the file.
    detached
        Whole datasets whose bytes are not among the file's chunks.
    packed
        The packing attributes of every variable, with their types; none of one that is not packed.
    whole
        Whether every chunk was looked at.
    """

    names: frozenset[str] = frozenset()
    unfiltered: Mapping[int, Gap] = field(default_factory=dict)
    detached: tuple[Gap, ...] = ()
    packed: tuple[Named, ...] = ()
    whole: bool = True


class _LazyCopy(BackendArray):
    """Values that are read from the file when they are needed; pickled by how to read them."""

    def __init__(
        self,
        source: SourceFile,
        stamp: SourceStamp,
        name: str,
        read: Callable[..., np.ndarray[Any, Any]],
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
    ) -> None:
        self._source, self._stamp, self._name, self._read = source, stamp, name, read
        self.shape, self.dtype = shape, dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.BASIC, self._values)

    def _values(self, key: tuple[Any, ...]) -> np.ndarray[Any, Any]:
        check_unchanged(self._source, self._stamp)
        pairs = zip(key, self.shape, strict=True)
        key = tuple(slice(*part.indices(size)) if isinstance(part, slice) else part for part, size in pairs)
        try:
            return np.asarray(self._read(self._source, self._name, key))
        except IceliteError:
            raise
        except Exception as error:  # a library's: whatever it raises, the file cannot be read
            raise unreadable_variable(self._source, self._name, error) from error


def lazy_copy(
    source: SourceFile,
    stamp: SourceStamp,
    name: str,
    read: Callable[..., np.ndarray[Any, Any]],
    dims: Iterable[str],
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    attributes: Mapping[str, Any],
) -> xr.Variable:
    """A variable whose values ``read(source, name, key)`` gives; a module's function, so that it can be pickled.

    The key has integers and slices with both ends.
    """
    values = indexing.LazilyIndexedArray(_LazyCopy(source, stamp, name, read, shape, dtype))
    # no _FillValue unless the file has one: xarray would add NaN
    encoding = {} if "_FillValue" in attributes else {"_FillValue": None}
    return xr.Variable(tuple(dims), values, dict(attributes), encoding, fastpath=True)


def check_unchanged(source: SourceFile, stamp: SourceStamp) -> None:
    """Check that a file is still what it was.

    Raises
    ------
    StorageError
        ``virtual-chunk-modified``, or ``unreadable-source`` when it is gone.
    """
    found = source.stamp()
    if is_changed(found, stamp, resolution=1):
        raise StorageError(
            f"source {source.url!r} changed while it was parsed: first {describe_stamp(stamp)}, now"
            f" {describe_stamp(found)}; try again when nobody writes to it",
            ErrorKind.VIRTUAL_CHUNK_MODIFIED,
        )


def unreadable_variable(source: SourceFile, name: str, error: BaseException | str) -> StorageError:
    """The error for a variable that no installed library can read."""
    return StorageError(
        f"variable {name!r} of {source.url!r} cannot be read: {describe(error)}", ErrorKind.UNREADABLE_SOURCE
    )


def descend(parsed: ParsedGroup, group: str, source: SourceFile) -> ParsedGroup:
    """The group at a path below.

    Raises
    ------
    InvalidInputError
        ``invalid-argument``.
    """
    for name in group.split("/") if group else ():
        if name not in parsed.groups:
            raise no_group(source, group, parsed.groups)
        parsed = parsed.groups[name]
    return parsed


def no_group(source: SourceFile, group: str, present: Iterable[str]) -> InvalidInputError:
    """The error for a group that is not there."""
    return InvalidInputError(
        f"{source.url!r} has no group {group!r}: there is {', '.join(sorted(present)) or 'only the root'}",
        ErrorKind.INVALID_ARGUMENT,
    )


def has_inlined() -> bool:
    """Whether VirtualiZarr's manifests hold chunks themselves, as they do since 2.8."""
    from virtualizarr.manifests import ChunkManifest

    return "_inlined" in ChunkManifest.__annotations__


def grid_of(shape: tuple[int, ...], chunks: tuple[int, ...]) -> tuple[int, ...]:
    """Chunks along each dimension."""
    return tuple(-(-size // chunk) for size, chunk in zip(shape, chunks, strict=True))


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
    chunks = tuple(max(size, 1) for size in chunks)
    grid = grid_of(shape, chunks)
    lengths = np.broadcast_to(lengths.astype(np.uint64), grid).copy()
    offsets = np.where(lengths > 0, np.broadcast_to(offsets.astype(np.uint64), grid), np.uint64(0))
    paths: Any = np.where(
        lengths > 0, np.full(grid, url, np.dtypes.StringDType()), np.full(grid, "", np.dtypes.StringDType())
    )
    for index, data in (inlined or {}).items():
        paths[index], offsets[index], lengths[index] = INLINED, 0, len(data)
    endian = {"endian": "big" if stored.byteorder == ">" else "little"} if stored.itemsize > 1 else {}
    serializer = serializer or {"name": "bytes", "configuration": endian}
    dtype = dtype.newbyteorder("=") if filters or serializer["name"] != "bytes" else stored
    codecs = [*(filters or []), serializer, *(compressors or [])]
    metadata = find_metadata(shape, chunks, dtype, fill_value, codecs, dims)
    return assemble_array(relabelled(metadata, attributes, dims), paths, offsets, lengths, inlined)


def assemble_array(
    metadata: ArrayV3Metadata,
    paths: np.ndarray[Any, Any],
    offsets: np.ndarray[Any, Any],
    lengths: np.ndarray[Any, Any],
    inlined: Mapping[tuple[int, ...], bytes] | None = None,
) -> ManifestArray:
    """An array of references in columns of the shape of the grid; a path of ``""`` is a chunk that is missing."""
    from virtualizarr.manifests import ChunkManifest, ManifestArray

    more: dict[str, Any] = {"inlined": dict(inlined)} if inlined else {}
    manifest = ChunkManifest.from_arrays(paths=paths, offsets=offsets, lengths=lengths, validate_paths=False, **more)
    return ManifestArray(metadata=metadata, chunkmanifest=manifest)


def find_metadata(
    shape: tuple[int, ...],
    chunks: tuple[int, ...],
    dtype: np.dtype[Any],
    fill_value: Any,
    codecs: list[dict[str, Any]],
    dims: tuple[str, ...],
) -> ArrayV3Metadata:
    """Metadata without attributes, which arrays have in common: zarr takes long to make it from types and codecs."""
    from virtualizarr.manifests.utils import create_v3_array_metadata

    key = (shape, chunks, dtype.str if dtype.names is None else str(dtype), repr(fill_value), repr(codecs), dims)
    if key not in _known_metadata:
        if len(_known_metadata) >= _KNOWN:
            _known_metadata.clear()
        _known_metadata[key] = create_v3_array_metadata(
            shape=shape,
            data_type=dtype,
            chunk_shape=chunks,
            fill_value=fill_value,
            codecs=codecs,
            attributes={},
            dimension_names=dims,
        )
    return _known_metadata[key]


def relabelled(
    metadata: ArrayV3Metadata, attributes: dict[str, Any], dims: tuple[str | None, ...] | None
) -> ArrayV3Metadata:
    """The same metadata with other attributes and dimension names, which are neither checked nor copied."""
    found = object.__new__(type(metadata))  # replace() would read types and codecs again
    vars(found).update(vars(metadata), attributes=attributes, dimension_names=dims)
    return found
