"""The bytes and the values of a virtual variable, read from the files that it refers to."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeAlias

import xarray as xr
import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from icelite import cf
from icelite.store.references import MISSING
from icelite.virtual.urls import existing_path, file_path
from icelite.virtualizarr.arrays import is_virtual, read_references, stored_metadata

if TYPE_CHECKING:
    from icelite.virtual import VirtualAccess

Fetch: TypeAlias = Callable[[str, int, int], bytes]  # URL, offset, length in bytes

_WHAT = "values to compare"  # in place of a chunk's key in messages


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
    references = read_references(variable.data.manifest)
    for number, code in enumerate(references.codes.tolist()):
        index = references.index(number)
        if index in references.inlined:
            yield index, references.inlined[index]
        elif code != MISSING:
            extent = int(references.offsets[number]), int(references.lengths[number])
            yield index, fetch(references.urls[code], *extent)
