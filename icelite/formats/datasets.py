"""From a `ParsedGroup` to an xarray dataset: references, except for what is loaded and what is copied."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Any
from urllib.parse import quote, unquote

import xarray as xr
from obspec_utils.registry import ObjectStoreRegistry
from virtualizarr.manifests import ManifestArray, ManifestGroup, ManifestStore

from icelite.errors import ErrorKind, InvalidInputError
from icelite.formats.parsed import ParsedGroup
from icelite.formats.source import SourceFile


def build_dataset(
    group: ParsedGroup,
    registry: ObjectStoreRegistry[Any],
    loadable_variables: Iterable[str] | None,
    decode_times: bool | None,
) -> xr.Dataset:
    """The dataset of one group: references, except for what is loaded and what is copied.

    Parameters
    ----------
    loadable_variables
        Names to load; None for those that have the name of their dimension.

    Raises
    ------
    InvalidInputError
        ``invalid-argument`` for a name to load that is not there.
    """
    wanted = _names_to_load(group, loadable_variables)
    virtual = {name: array for name, array in group.arrays.items() if name not in wanted}
    attributes = {**group.attributes, "coordinates": " ".join(group.coordinates)}
    dataset = ManifestGroup(arrays=virtual, attributes=attributes).to_virtual_dataset()
    for name in virtual:
        dataset.variables[name].attrs.update(group.packing.get(name, {}))
    raw = {name: copied.variable for name, copied in group.copied.items() if name not in wanted}
    coordinates = {
        name: variable for name, variable in raw.items() if name in group.coordinates or variable.dims == (name,)
    }
    dataset = dataset.assign({name: raw[name] for name in raw if name not in coordinates})
    dataset = dataset.assign_coords(xr.Coordinates(coordinates, indexes={}))
    dataset = dataset.assign_coords(group.made)
    loaded = _load(group, wanted, registry, decode_times)
    return dataset.assign(loaded.data_vars).assign_coords(loaded.coords)


def _names_to_load(group: ParsedGroup, names: Iterable[str] | None) -> set[str]:
    if names is None:
        dims: dict[str, tuple[Hashable, ...]] = {
            name: tuple(array.metadata.dimension_names or ()) for name, array in group.arrays.items()
        }
        dims |= {name: copied.variable.dims for name, copied in group.copied.items()}
        return {name for name, along in dims.items() if along == (name,)}
    return set(names) - group.made.keys()


def _load(
    group: ParsedGroup, wanted: set[str], registry: ObjectStoreRegistry[Any], decode_times: bool | None
) -> xr.Dataset:
    """The variables to load, decoded as xarray does, and read."""
    if not wanted:
        return xr.Dataset()
    loaded = _decode(group, wanted, registry, decode_times)
    return (
        loaded[sorted(wanted)]
        .reset_coords(drop=False)
        .set_coords([name for name in wanted if name in group.coordinates or loaded[name].dims == (name,)])
    )


def _decode(
    group: ParsedGroup, wanted: set[str], registry: ObjectStoreRegistry[Any], decode_times: bool | None
) -> xr.Dataset:
    arrays = {name: array for name, array in group.arrays.items() if name in wanted}
    if any(mark in url for url in _urls(arrays) for mark in "#?"):
        arrays = {name: array.rename_paths(_quoted) for name, array in arrays.items()}
        registry = ObjectStoreRegistry({"file://": _QuotedFiles()})
    store = ManifestStore(ManifestGroup(arrays=arrays, attributes={}), registry=registry)
    with xr.open_zarr(store, consolidated=False, zarr_format=3, chunks=None, decode_cf=False) as referenced:
        raw = referenced.assign({name: copied.variable for name, copied in group.copied.items() if name in wanted})
        try:
            return xr.decode_cf(raw, decode_times=decode_times is not False).load()
        except ValueError:
            if decode_times is not None:
                raise
            return xr.decode_cf(raw, decode_times=False).load()  # a unit of time that only its reader can decode


def _urls(arrays: Mapping[str, ManifestArray]) -> set[str]:
    return {url for array in arrays.values() for url in array.manifest.iter_nonempty_paths() if url.startswith("file:")}


def _quoted(url: str) -> str:
    return "file://" + quote(url.removeprefix("file://")) if url.startswith("file://") else url


class _QuotedFiles:
    """Local files by quoted paths: VirtualiZarr takes what follows ``#`` or ``?`` for no part of a name."""

    async def get_range_async(self, path: str, *, start: int, end: int) -> bytes:
        with open("/" + unquote(path).lstrip("/"), "rb") as stream:  # noqa: ASYNC230  # a coordinate's few bytes
            stream.seek(start)
            return stream.read(end - start)


def check_names(group: ParsedGroup, source: SourceFile, names: Iterable[str], argument: str) -> None:
    """Check that every name is a variable of the group.

    Raises
    ------
    InvalidInputError
        ``invalid-argument``.
    """
    present = group.arrays.keys() | group.copied.keys() | group.made.keys()
    absent = sorted(set(names) - present)
    if absent:
        raise InvalidInputError(
            f"{argument} names {', '.join(absent)}, which {source.url!r} does not hold: it has"
            f" {', '.join(sorted(present)) or 'no variables'}",
            ErrorKind.INVALID_ARGUMENT,
        )
