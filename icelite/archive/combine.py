"""Many virtual datasets made one: `combine_files`, in the order that their coordinate says.

`xarray` does the work, told not to compare or to align anything, because `agreement` has compared it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import xarray as xr

from icelite.archive.agreement import Opened, check_agreement, check_chunk_borders, stacked_names
from icelite.archive.inputs import name_of
from icelite.archive.scan import COPIED
from icelite.errors import ErrorKind, InvalidInputError
from icelite.formats.parsed import INSPECTED
from icelite.virtualizarr.arrays import is_virtual
from icelite.virtualizarr.sources import SOURCES_KEY

_STORED_TIMES = (
    "units",
    "dtype",
    "_FillValue",
    "missing_value",
    "fill_value",
)  # how a time is stored, its calendar apart
_REENCODED = ("units", "calendar", "scale_factor", "add_offset", "_FillValue", "missing_value", "dtype")


def combine_files(files: Sequence[Opened], concat_dim: str | None) -> xr.Dataset:
    """One dataset of several files.

    Parameters
    ----------
    files
        URL and dataset of each, in natural order of their names; `order_files` of them if there is a ``concat_dim``.
    concat_dim
        Dimension to join them along, which may be new. None: they must hold different variables.

    Raises
    ------
    InvalidInputError
        ``invalid-dataset``, naming a file that does not fit the first, and where.
    """
    if len(files) == 1 and (concat_dim is None or concat_dim in files[0][1].dims):
        return files[0][1]
    combined = _merge(files) if concat_dim is None else _concatenate(files, concat_dim)
    combined.encoding = dict(files[0][1].encoding)
    combined.encoding[SOURCES_KEY] = {
        u: stamp for _, ds in files for u, stamp in ds.encoding.get(SOURCES_KEY, {}).items()
    }
    combined.encoding[INSPECTED] = {u: i for _, ds in files for u, i in ds.encoding.get(INSPECTED, {}).items()}
    combined.encoding[COPIED] = {n: why for _, ds in files for n, why in (ds.encoding.get(COPIED) or {}).items()}
    return combined


def _concatenate(files: Sequence[Opened], concat_dim: str) -> xr.Dataset:
    check_agreement(files, concat_dim)
    is_new = concat_dim not in files[0][1].dims
    if not is_new:
        check_chunk_borders(files, concat_dim)
    datasets = [ds.set_coords([concat_dim] if concat_dim in ds else []) for _, ds in files]
    combined = xr.concat(
        datasets,
        dim=concat_dim,
        data_vars="all" if is_new else "minimal",
        coords=[name for name in stacked_names(datasets[0], concat_dim) if name in datasets[0].coords] or "minimal",
        compat="override",
        join="override",
        combine_attrs="override",
    )
    for name, variable in combined.variables.items():
        if concat_dim in variable.dims and not is_virtual(variable) and not _is_encoded_alike(name, datasets):
            for key in _STORED_TIMES if variable.dtype.kind in "MmO" else _REENCODED:
                variable.encoding.pop(key, None)
    return combined


def _is_encoded_alike(name: Any, datasets: Sequence[xr.Dataset]) -> bool:
    """Whether a loaded variable is stored alike in all files; if not, the first's way may not hold all values."""
    first, *others = ([str(dataset.variables[name].encoding.get(key)) for key in _REENCODED] for dataset in datasets)
    return all(other == first for other in others)


def _merge(files: Sequence[Opened]) -> xr.Dataset:
    seen: dict[Any, tuple[str, xr.Variable]] = {}
    for url, dataset in files:
        for name, variable in dataset.variables.items():
            if name not in seen:
                seen[name] = url, variable
                continue
            other, first = seen[name]
            if is_virtual(variable) or is_virtual(first) or not variable.equals(first):  # type: ignore[no-untyped-call]
                raise InvalidInputError(
                    f"{url!r} and {name_of(other)!r} both hold {name!r}: pass concat_dim="
                    f"{_likely_dimension([dataset for _, dataset in files])!r} to join files along a dimension",
                    ErrorKind.INVALID_DATASET,
                )
    return xr.merge([dataset for _, dataset in files], compat="override", join="exact", combine_attrs="override")


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
