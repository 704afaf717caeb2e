"""The arguments of `to_icelite`: of the right type, and not at odds with each other."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import cast

import xarray as xr

from icelite.errors import ErrorKind, InvalidInputError, ReadOnlyError
from icelite.store import IceliteStore
from icelite.virtualizarr.place import Request

_MODES = ("w", "w-", "a")


def check_arguments(
    vds: object, store: object, group: object, request: Request, last_updated_at: object, on_unreferenceable: object
) -> None:
    """Refuse arguments that cannot be meant.

    Raises
    ------
    InvalidInputError
        ``invalid-argument``.
    ReadOnlyError
        ``read-only-store``.
    """
    if not isinstance(vds, xr.Dataset | xr.DataTree):
        raise _invalid(f"to_icelite writes an xarray Dataset or DataTree, not {type(vds).__name__}")
    if not isinstance(store, IceliteStore):
        raise _invalid(f"to_icelite writes to an IceliteStore, not {type(store).__name__}: pass session.store")
    if store.read_only:
        raise ReadOnlyError(
            f"{store} is read-only: write to the store of repo.writable_session(branch)", ErrorKind.READ_ONLY_STORE
        )
    if group is not None and not isinstance(group, str):
        raise _invalid(f"group must be a path, not {group!r}")
    if last_updated_at is not None and (not isinstance(last_updated_at, datetime) or last_updated_at.tzinfo is None):
        raise _invalid(f"last_updated_at must be a datetime with a time zone, not {last_updated_at!r}")
    if on_unreferenceable not in ("copy", "raise"):
        raise _invalid(f"on_unreferenceable must be 'copy' or 'raise', not {on_unreferenceable!r}")
    _check_request(vds, request)


def _check_request(vds: xr.Dataset | xr.DataTree, request: Request) -> None:
    mode, region = cast(object, request.mode), cast(object, request.region)
    append_dim = cast(object, request.append_dim)
    if mode is not None and (not isinstance(mode, str) or mode not in _MODES):
        raise _invalid(f"mode must be None or one of {_MODES}, not {mode!r}")
    if append_dim is not None and region is not None:
        raise _invalid("append_dim and region exclude each other: append first, then write the region")
    if (append_dim is not None or region is not None) and mode in ("w", "w-"):
        given = f"append_dim={append_dim!r}" if append_dim is not None else f"region={region!r}"
        raise _invalid(f"mode {mode!r} makes a new group, {given} writes into one that exists: drop one of them")
    if append_dim is not None and not isinstance(append_dim, str):
        raise _invalid(f"append_dim must be the name of a dimension, not {append_dim!r}")
    nodes = [vds] if isinstance(vds, xr.Dataset) else vds.subtree
    known = {dim for node in nodes for dim in node.dims}
    if append_dim is not None and append_dim not in known:
        raise _invalid(
            f"append_dim {append_dim!r} is not a dimension of the dataset, which has {sorted(map(str, known))}"
        )
    if region is None or (isinstance(region, str) and region == "auto"):
        return
    if not isinstance(region, Mapping) or not region:
        raise _invalid(f"region must be 'auto' or a mapping from dimensions to slices or 'auto', not {region!r}")
    for dim, part in region.items():
        if dim not in known:
            raise _invalid(f"region {dim!r} is not a dimension of the dataset, which has {sorted(map(str, known))}")
        if not isinstance(part, slice) and not (isinstance(part, str) and part == "auto"):
            raise _invalid(f"region {dim!r} must be a slice or 'auto', not {part!r}")


def _invalid(message: str) -> InvalidInputError:
    return InvalidInputError(message, ErrorKind.INVALID_ARGUMENT)
