"""What icelite must know of a node's metadata: is it an array, how large is its grid, how are its chunks named.

Documents are otherwise opaque: they are kept as written and zarr reads them. JSON may hold ``NaN`` and
``Infinity``, as zarr-python writes them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from icelite.budget import MAX_DIMENSIONS
from icelite.errors import ErrorKind, InvalidInputError, shown
from icelite.keys import ChunkKeys, join

MAX_SIZE = 2**63  # along a dimension


@dataclass(frozen=True, slots=True)
class ArrayInfo:
    """The part of an array's metadata that decides about its chunks.

    Attributes
    ----------
    chunks
        Shape of a chunk; None where the grid is not regular, and positions go unchecked.
    keys
        How its chunk keys are written.
    """

    shape: tuple[int, ...]
    chunks: tuple[int, ...] | None
    keys: ChunkKeys

    @property
    def grid(self) -> tuple[int, ...] | None:
        """Chunks along each dimension; None where the grid is not regular."""
        if self.chunks is None:
            return None
        pairs = zip(self.shape, self.chunks, strict=True)
        return tuple(0 if size == 0 else -(-size // max(chunk, 1)) for size, chunk in pairs)

    def check_position(self, chunk: str, path: str) -> None:
        """Refuse a position outside the grid.

        Raises
        ------
        InvalidInputError
            ``invalid-chunk-index``.
        """
        grid = self.grid
        if not grid:
            return
        position = tuple(map(int, chunk.split("/")))
        if any(index >= size for index, size in zip(position, grid, strict=True)):
            raise InvalidInputError(
                f"chunk {position} is outside the grid {grid} of array /{path} with shape {self.shape};"
                " resize the array first",
                ErrorKind.INVALID_CHUNK_INDEX,
            )


def parse_document(key: str, text: str) -> dict[str, Any]:
    """The JSON object in a metadata document.

    Raises
    ------
    InvalidInputError
        ``bad-metadata``.
    """
    try:
        content = json.loads(text)
    except ValueError as error:
        raise _bad(key, f"is not JSON: {error}") from error
    except RecursionError as error:
        raise _bad(key, "is nested too deeply") from error
    if not isinstance(content, dict):
        raise _bad(key, f"holds a JSON {type(content).__name__}, not an object")
    return content


def _bad(key: str, fault: str) -> InvalidInputError:
    return InvalidInputError(f"metadata {shown(key)} {fault}", ErrorKind.BAD_METADATA)


def check_document(path: str, name: str, text: str) -> ArrayInfo | None:
    """Check a document before it is stored: JSON, of the node's kind, and for arrays with a usable grid.

    Returns
    -------
    ArrayInfo or None
        As `array_info` of this document alone.

    Raises
    ------
    InvalidInputError
        ``bad-metadata``.
    """
    key = join(path, name)
    content = parse_document(key, text)
    if name == "zarr.json":
        kind = content.get("node_type")
        if kind not in ("array", "group"):
            raise _bad(key, f"has node_type {kind!r}; expected 'array' or 'group'")
        if content.get("zarr_format") != 3:
            raise _bad(key, f"has zarr_format {content.get('zarr_format')!r}; expected 3")
    if name in (".zarray", ".zgroup") and content.get("zarr_format") != 2:
        raise _bad(key, f"has zarr_format {content.get('zarr_format')!r}; expected 2")
    return _described(key, name, content)


def array_info(path: str, documents: Mapping[str, str]) -> ArrayInfo | None:
    """What decides about an array's chunks; None for a group.

    Raises
    ------
    InvalidInputError
        ``bad-metadata``.
    """
    name = ".zarray" if ".zarray" in documents else "zarr.json"
    if name not in documents:
        return None
    key = join(path, name)
    return _described(key, name, parse_document(key, documents[name]))


def _described(key: str, name: str, content: dict[str, Any]) -> ArrayInfo | None:
    try:
        if name == ".zarray":
            return _v2_array(content)
        return _v3_array(content) if name == "zarr.json" and content["node_type"] == "array" else None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _bad(key, f"does not describe an array: {type(error).__name__}: {error}") from error


def _v2_array(content: dict[str, Any]) -> ArrayInfo:
    shape = _sizes(content["shape"])
    separator = content.get("dimension_separator", ".")
    return ArrayInfo(shape, _chunk_shape(shape, content["chunks"]), _keys("", separator, len(shape)))


def _v3_array(content: dict[str, Any]) -> ArrayInfo:
    shape = _sizes(content["shape"])
    encoding = content["chunk_key_encoding"]
    name = encoding if isinstance(encoding, str) else encoding["name"]
    options = {} if isinstance(encoding, str) else encoding.get("configuration") or {}
    if name == "default":
        keys = _keys("c", options.get("separator", "/"), len(shape))
    elif name == "v2":
        keys = _keys("", options.get("separator", "."), len(shape))
    else:
        raise ValueError(f"chunk_key_encoding {name!r} is not 'default' or 'v2'")
    grid = content["chunk_grid"]
    if grid["name"] == "regular":
        return ArrayInfo(shape, _chunk_shape(shape, grid["configuration"]["chunk_shape"]), keys)
    return ArrayInfo(shape, None, keys)


def _keys(prefix: str, separator: str, ndim: int) -> ChunkKeys:
    if separator not in ("/", "."):
        raise ValueError(f"separator {separator!r} is not '/' or '.'")
    return ChunkKeys(prefix, separator, ndim)


def _sizes(values: Any) -> tuple[int, ...]:
    sizes = tuple(values) if isinstance(values, list) else (None,)
    if len(sizes) > MAX_DIMENSIONS:
        raise ValueError(f"{len(sizes)} dimensions are more than {MAX_DIMENSIONS}")
    if not all(type(size) is int and 0 <= size < MAX_SIZE for size in sizes):  # not bool
        raise ValueError(f"shape {shown(str(values))} is not a list of sizes")
    return sizes


def _chunk_shape(shape: tuple[int, ...], chunk_shape: Any) -> tuple[int, ...]:
    chunks = _sizes(chunk_shape)
    if len(chunks) != len(shape):
        raise ValueError(f"chunk shape {chunks} does not fit shape {shape}")
    return chunks


def same_document(one: str, other: str) -> bool:
    """Whether two documents hold equal JSON, however they are written."""
    if one == other:
        return True
    # Compared as canonical text: NaN is not equal to itself as a value.
    return json.dumps(json.loads(one), sort_keys=True) == json.dumps(json.loads(other), sort_keys=True)


def find_growth(before: Mapping[str, str], after: Mapping[str, str]) -> tuple[int, int] | None:
    """The dimension along which an array grew, and by how much, where nothing else about it changed; else None."""
    name = ".zarray" if ".zarray" in before else "zarr.json"
    if before.keys() != after.keys() or any(
        not same_document(before[other], after[other]) for other in before if other != name
    ):
        return None
    old, new = json.loads(before[name]), json.loads(after[name])
    shapes = old.pop("shape", None), new.pop("shape", None)
    if shapes[0] is None or shapes[1] is None or len(shapes[0]) != len(shapes[1]):
        return None
    if json.dumps(old, sort_keys=True) != json.dumps(new, sort_keys=True):
        return None
    grown = [(axis, b - a) for axis, (a, b) in enumerate(zip(*shapes, strict=True)) if a != b]
    return grown[0] if len(grown) == 1 and grown[0][1] > 0 else None


def with_growth(documents: Mapping[str, str], axis: int, length: int) -> dict[str, str]:
    """An array's documents with ``length`` more along a dimension."""
    name = ".zarray" if ".zarray" in documents else "zarr.json"
    content = json.loads(documents[name])
    content["shape"][axis] += length
    return {**documents, name: json.dumps(content)}


def dimension_sizes(documents: Mapping[str, str]) -> dict[str, int]:
    """The length of each named dimension of an array; nothing for a group, and for dimensions without a name."""
    info = array_info("", documents)
    if info is None:
        return {}
    if ".zarray" in documents:
        names = json.loads(documents.get(".zattrs", "{}")).get("_ARRAY_DIMENSIONS")
    else:
        names = json.loads(documents["zarr.json"]).get("dimension_names")
    if not isinstance(names, list) or len(names) != len(info.shape):
        return {}
    return {name: size for name, size in zip(names, info.shape, strict=True) if isinstance(name, str)}
