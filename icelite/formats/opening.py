"""`open_virtual` and `open_virtual_tree`: a file of any format as a dataset whose chunks are references to it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import xarray as xr

from icelite.errors import ErrorKind, IceliteError, InvalidInputError, check_open_files
from icelite.formats.detect import Format, find_format, format_of_name
from icelite.formats.parsed import (
    INSPECTED,
    OWN_COORDINATES,
    FileInspection,
    ParsedGroup,
    check_unchanged,
    descend,
    relabelled,
)
from icelite.formats.source import Registry, SourceFile, describe

if TYPE_CHECKING:
    from obspec_utils.registry import ObjectStoreRegistry
    from virtualizarr.manifests import ManifestArray

    from icelite.types import SourceStamp
    from icelite.virtual.remote import FileReaders

# What each module's ``parse(source, stamp, group, dropped, whole_tree)`` reads; imported when it is needed.
_MODULES = {
    Format.HDF5: "hdf5",
    Format.NETCDF3: "netcdf3",
    Format.GRIB: "grib",
    Format.TIFF: "tiff",
    Format.FITS: "fits",
    Format.ZARR: "zarr",
    Format.ZIPPED_ZARR: "zarr",
}
_CHOICES = {"on_unreferenceable": ("copy", "raise"), "on_unreadable": ("skip", "raise")}
_DMRPP_NAMES = {"dap": "http://xml.opendap.org/ns/DAP/4.0#", "dmrpp": "http://xml.opendap.org/dap/dmrpp/1.0.0#"}
_PACKAGES = {"arro3.core": "arro3-core"}  # by module, where the name differs


def open_virtual(
    url_or_path: str | os.PathLike[str],
    *,
    parser: Any = "auto",
    group: str | None = None,
    drop_variables: Iterable[str] | None = None,
    loadable_variables: Iterable[str] | None = None,
    decode_times: bool | None = None,
    on_unreferenceable: Literal["copy", "raise"] = "copy",
    on_unreadable: Literal["skip", "raise"] = "skip",
    registry: FileReaders | ObjectStoreRegistry[Any] | None = None,
) -> xr.Dataset:
    """One group of a file as a dataset whose variables are references to the file's own chunks.

    What cannot be referenced becomes an ordinary variable, whose values `to_icelite` copies: filters that Zarr has no
    codec for, strings of variable length, strips of a TIFF that differ in height.

    Parameters
    ----------
    parser
        ``"auto"`` to tell the format from the content, the name of a `Format`, or a VirtualiZarr parser object.
    group
        Path of the group; the root by default.
    loadable_variables
        Variables to load instead of referencing them. None for those that have the name of their dimension, which
        xarray needs to combine files; an empty list for none.
    decode_times
        For loaded variables, as in `xarray.open_dataset`; None decodes what can be decoded.
    on_unreferenceable
        What to do about data that cannot be referenced.
    on_unreadable
        What to do about a variable that no library reads, or whose values Zarr has no type for: ``"skip"`` leaves it
        out with a warning, ``"raise"`` refuses the file.
    registry
        Object stores by URL prefix, for files that are not local.

    Returns
    -------
    xr.Dataset
        Its ``encoding`` has ``"icelite_sources"``, what each file looked like (URL to `SourceStamp`), and
        ``"icelite_copied"``, why a variable is copied, and ``"icelite_skipped"``, why one is left out (name to text).

    Raises
    ------
    InvalidInputError
        ``unknown-format``, ``missing-package``, ``unreferenceable-data``, ``invalid-argument``.
    StorageError
        ``unreadable-source``, ``virtual-chunk-modified`` when the file changed while it was parsed.
    """
    choices = {"on_unreferenceable": on_unreferenceable, "on_unreadable": on_unreadable}
    source, stamp, parsed = _parse(url_or_path, parser, group, choices, registry, drop_variables or ())
    with _library_errors(source):
        if loadable_variables is not None:
            loadable_variables = list(loadable_variables)
            _check_names(parsed, source, loadable_variables, "loadable_variables")
        dataset = _build_dataset(parsed, source.stores, loadable_variables, decode_times)
    check_unchanged(source, stamp)
    return _with_record(dataset, source, stamp, parsed.reasons, parsed)


def open_virtual_tree(
    url_or_path: str | os.PathLike[str],
    *,
    parser: Any = "auto",
    group: str | None = None,
    drop_variables: Iterable[str] | None = None,
    loadable_variables: Iterable[str] | None = None,
    decode_times: bool | None = None,
    on_unreferenceable: Literal["copy", "raise"] = "copy",
    on_unreadable: Literal["skip", "raise"] = "skip",
    registry: FileReaders | ObjectStoreRegistry[Any] | None = None,
) -> xr.DataTree:
    """All groups of a file, as `open_virtual` does one.

    Parameters
    ----------
    drop_variables, loadable_variables
        Names of variables, in whichever groups have them.

    Returns
    -------
    xr.DataTree
        The root's dataset has the record of sources and copies; the names of copies are paths.

    Raises
    ------
    InvalidInputError, StorageError
        As `open_virtual`.
    """
    dropped = list(drop_variables or ())
    choices = {"on_unreferenceable": on_unreferenceable, "on_unreadable": on_unreadable}
    source, stamp, parsed = _parse(url_or_path, parser, group, choices, registry, dropped, whole_tree=True)
    wanted = None if loadable_variables is None else set(loadable_variables)
    datasets = {}
    copies: dict[str, str] = {}
    with _library_errors(source):
        for path, node in parsed.walk():
            names = None if wanted is None else wanted & (node.arrays.keys() | node.copied.keys())
            dataset = _build_dataset(node, source.stores, names, decode_times)
            dataset.encoding[OWN_COORDINATES] = [str(name) for name in dataset.coords]  # a tree drops inherited ones
            datasets[path or "/"] = dataset
            copies |= {f"{path}/{name}".lstrip("/"): reason for name, reason in node.reasons.items()}
    check_unchanged(source, stamp)
    datasets["/"] = _with_record(datasets["/"], source, stamp, copies, parsed)
    try:
        return xr.DataTree.from_dict(datasets)
    except ValueError as error:
        raise InvalidInputError(
            f"{source.url!r} has groups that do not fit into one tree: {describe(error)}; open one at a time (group=)",
            ErrorKind.INVALID_ARGUMENT,
        ) from error


def _parse(
    url_or_path: str | os.PathLike[str],
    parser: Any,
    group: str | None,
    choices: Mapping[str, str],
    registry: FileReaders | ObjectStoreRegistry[Any] | None,
    drop_variables: Iterable[str],
    *,
    whole_tree: bool = False,
) -> tuple[SourceFile, SourceStamp, ParsedGroup]:
    for name, choice in choices.items():
        if choice not in _CHOICES[name]:
            raise InvalidInputError(
                f"{name} must be {' or '.join(map(repr, _CHOICES[name]))}, not {choice!r}", ErrorKind.INVALID_ARGUMENT
            )
    source = SourceFile.locate(url_or_path, registry=registry)
    stamp = source.stamp()
    parse = _find_parse(source, parser)
    dropped = frozenset(drop_variables)
    with _library_errors(source):
        parsed = parse(source, stamp, (group or "").strip("/"), dropped, whole_tree)
        parsed.inspected = isinstance(parser, str)
    parsed = _without(parsed, dropped)
    if choices["on_unreferenceable"] == "raise":
        _refuse(source, parsed, "reasons", "cannot be referenced", "on_unreferenceable='copy'")
    if choices["on_unreadable"] == "raise":
        _refuse(source, parsed, "skipped", "cannot be read", "on_unreadable='skip'")
    for path, node in parsed.walk():
        for name, reason in node.skipped.items():
            warnings.warn(f"{f'{path}/{name}'.lstrip('/')!r} of {source.url!r} is left out: {reason}", stacklevel=4)
    return source, stamp, parsed


def _find_parse(source: SourceFile, parser: Any) -> Callable[..., ParsedGroup]:
    if type(parser).__name__ == "DMRPPParser":
        return lambda source, stamp, group, dropped, whole_tree: descend(_parse_dmrpp(source, parser), group, source)
    if not isinstance(parser, str):
        lists = type(parser).__name__ == "ZarrParser"
        return lambda source, stamp, group, dropped, whole_tree: descend(
            ParsedGroup.of_store(parser(source.url, source.directory_stores if lists else source.stores)),
            group,
            source,
        )
    form = find_format(source.url, registry=source.registry) if parser == "auto" else format_of_name(parser)
    if form not in _MODULES:
        raise InvalidInputError(
            f"{source.url!r} holds kerchunk references, not data: import it with icelite.kerchunk, or"
            " `icelite import kerchunk`",
            ErrorKind.INVALID_ARGUMENT,
        )
    module = import_module(f"icelite.formats.{_MODULES[form]}")
    return cast("Callable[..., ParsedGroup]", module.parse)


def _parse_dmrpp(source: SourceFile, parser: Any) -> ParsedGroup:
    """The group that ``parser``, a ``DMRPPParser``, was made for, with the chunks of scalars, which it drops.

    Raises
    ------
    StorageError
        ``unreadable-source`` for a scalar that is in more than one chunk.
    """
    from xml.etree import ElementTree

    parsed = ParsedGroup.of_store(parser(source.url, source.stores))
    element: Any = ElementTree.fromstring(source.read(0, None))
    for name in str(parser.group or "").strip("/").split("/"):
        element = element.find(f"dap:Group[@name='{name}']", _DMRPP_NAMES) if name and element is not None else element
    for variable in element if element is not None else ():
        name = variable.get("name")
        chunks = variable.findall("dmrpp:chunks/dmrpp:chunk", _DMRPP_NAMES)
        if name not in parsed.arrays or parsed.arrays[name].shape or not chunks:
            continue
        if len(chunks) > 1:
            raise source.unreadable(f"its scalar {name!r} has {len(chunks)} chunks")
        parsed.arrays[name] = _with_chunk(source, parsed.arrays[name], chunks[0])
    return parsed


def _with_chunk(source: SourceFile, array: ManifestArray, chunk: Any) -> ManifestArray:
    from virtualizarr.manifests import ChunkManifest, ManifestArray

    path: Any = np.array(chunk.get("href") or source.url.removesuffix(".dmrpp"), np.dtypes.StringDType())
    manifest = ChunkManifest.from_arrays(
        paths=path,
        offsets=np.array(int(chunk.get("offset")), np.uint64),
        lengths=np.array(int(chunk.get("nBytes")), np.uint64),
        validate_paths=False,
    )
    return ManifestArray(metadata=array.metadata, chunkmanifest=manifest)


@contextmanager
def _library_errors(source: SourceFile) -> Iterator[None]:
    """Turn whatever a library raises about the file into an error that names it."""
    try:
        yield
    except IceliteError:
        raise
    except ImportError as error:
        check_open_files(f"reading {source.url!r} needs more files")
        module = (error.name or str(error)).partition(" ")[0]
        package = _PACKAGES.get(module, module.partition(".")[0])
        raise InvalidInputError(
            f"reading {source.url!r} needs the package {package!r}, which is not installed: {describe(error)}",
            ErrorKind.MISSING_PACKAGE,
        ) from error
    except Exception as error:  # a library's: whatever it raises, the file cannot be parsed
        raise source.unreadable(error) from error


def _without(parsed: ParsedGroup, dropped: Collection[str]) -> ParsedGroup:
    parsed = parsed.without(dropped)
    return replace(parsed, groups={name: _without(below, dropped) for name, below in parsed.groups.items()})


def _refuse(source: SourceFile, parsed: ParsedGroup, which: str, problem: str, choice: str) -> None:
    found = [
        f"{f'{path}/{name}'.lstrip('/')!r}: {reason}"
        for path, node in parsed.walk()
        for name, reason in getattr(node, which).items()
    ]
    if found:
        raise InvalidInputError(
            f"{source.url!r} has {len(found)} variables that {problem}: {'; '.join(found)}; drop them"
            f" (drop_variables=), or pass {choice}",
            ErrorKind.UNREFERENCEABLE_DATA,
        )


def _with_record(
    dataset: xr.Dataset, source: SourceFile, stamp: SourceStamp, copies: Mapping[str, str], parsed: ParsedGroup
) -> xr.Dataset:
    nodes = list(parsed.walk())
    dataset.encoding["source"] = source.url
    # the files of a directory are many, and looked at when they are referenced
    dataset.encoding["icelite_sources"] = {source.url: stamp} if stamp.size is not None else {}
    dataset.encoding["icelite_copied"] = dict(copies)
    dataset.encoding["icelite_skipped"] = {
        f"{path}/{name}".lstrip("/"): reason for path, node in nodes for name, reason in node.skipped.items()
    }
    if parsed.inspected:
        gaps = {at: gap for _, node in nodes for at, gap in node.unfiltered.items()}
        packed = tuple((name, node.packing_of(name)) for _, node in nodes for name in node.arrays)
        dataset.encoding[INSPECTED] = {source.url: FileInspection(unfiltered=gaps, packed=packed)}
    return dataset


def _build_dataset(
    group: ParsedGroup,
    registry: Registry,
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
    referenced = {name: _virtual_variable(array) for name, array in group.arrays.items() if name not in wanted}
    for name, variable in referenced.items():
        variable.attrs.update(group.packing.get(name, {}))
    copied = {name: copied.variable for name, copied in group.copied.items() if name not in wanted}
    unloaded = referenced | copied
    listed = set(group.coordinates)
    coordinates: dict[Hashable, xr.Variable] = {
        name: variable for name, variable in unloaded.items() if name in listed or variable.dims == (name,)
    }
    data = {name: variable for name, variable in unloaded.items() if name not in coordinates}
    made = xr.decode_cf(xr.Dataset(coords=group.made), decode_times=decode_times is not False, decode_coords=False)
    loaded = _load(group, wanted, registry, decode_times)
    indexes = {**made.xindexes, **loaded.xindexes}
    coordinates |= dict(made.variables) | {name: loaded.variables[name] for name in loaded.coords}
    return xr.Dataset(
        {**data, **loaded.data_vars}, xr.Coordinates(coordinates, indexes=indexes), attrs=dict(group.attributes)
    )


def _virtual_variable(array: ManifestArray) -> xr.Variable:
    """An array as VirtualiZarr has it in a dataset: the variable has the names and attributes, and the array none."""
    from virtualizarr.manifests import ManifestArray

    metadata = array.metadata
    dims = metadata.dimension_names or ()
    bare = ManifestArray(relabelled(metadata, {}, None), array.manifest)
    return xr.Variable(dims, bare, dict(metadata.attributes), fastpath=True)


def _names_to_load(group: ParsedGroup, names: Iterable[str] | None) -> set[str]:
    if names is None:
        dims: dict[str, tuple[Hashable, ...]] = {
            name: tuple(array.metadata.dimension_names or ()) for name, array in group.arrays.items()
        }
        dims |= {name: copied.variable.dims for name, copied in group.copied.items()}
        return {name for name, along in dims.items() if along == (name,)}
    return set(names) - group.made.keys()


def _load(group: ParsedGroup, wanted: set[str], registry: Registry, decode_times: bool | None) -> xr.Dataset:
    """The variables to load, decoded as xarray does, and read."""
    if not wanted:
        return xr.Dataset()
    loaded = _decode(group, wanted, registry, decode_times)
    for variable in loaded.variables.values():
        if {"_FillValue", "missing_value"} <= variable.encoding.keys():  # both are NaN now, and xarray writes only one
            del variable.encoding["missing_value"]
    return (
        loaded[sorted(wanted)]
        .reset_coords(drop=False)
        .set_coords([name for name in wanted if name in group.coordinates or loaded[name].dims == (name,)])
    )


def _decode(group: ParsedGroup, wanted: set[str], registry: Registry, decode_times: bool | None) -> xr.Dataset:
    from virtualizarr.manifests import ManifestGroup, ManifestStore

    arrays = {name: array for name, array in group.arrays.items() if name in wanted}
    store = ManifestStore(ManifestGroup(arrays=arrays, attributes={}), registry=registry)
    with xr.open_zarr(store, consolidated=False, zarr_format=3, chunks=None, decode_cf=False) as referenced:
        raw = referenced.assign({name: copied.variable for name, copied in group.copied.items() if name in wanted})
        for name in raw.variables:
            raw.variables[name].attrs.update(group.packing.get(str(name), {}))
        try:
            return xr.decode_cf(raw, decode_times=decode_times is not False).load()
        except ValueError:
            if decode_times is not None:
                raise
            return xr.decode_cf(raw, decode_times=False).load()  # a unit of time that only its reader can decode


def _check_names(group: ParsedGroup, source: SourceFile, names: Iterable[str], argument: str) -> None:
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
