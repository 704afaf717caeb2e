"""Writes that begin anew when somebody else publishes a remote catalog first."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from icelite.catalog.database import Catalog, Transaction
from icelite.errors import ConflictError, ErrorKind
from icelite.retry import Patience

T = TypeVar("T")
P = ParamSpec("P")

# Of a write while others publish first; a version that nobody changed is never tried again.
PATIENCE = Patience(100, pause=0.05, factor=1.2, longest=1.0, jitter=0.9, seconds=120.0)


def repeat_write(catalog: Catalog, action: Callable[[Transaction], T]) -> T:
    """Run a write that does not depend on what others wrote; again, when they publish a remote catalog first.

    Raises
    ------
    ConflictError, ReadOnlyError, StorageError
        As `Catalog.write`, when the last try fails.
    """

    def write() -> T:
        with catalog.write() as txn:
            return action(txn)

    return _repeat(catalog, write)


def repeated(method: Callable[P, T]) -> Callable[P, T]:
    """A method that begins anew when others publish its remote ``_catalog`` before its own write is."""

    @functools.wraps(method)
    def call(*arguments: P.args, **options: P.kwargs) -> T:
        owner: Any = arguments[0]
        return _repeat(owner._catalog, lambda: method(*arguments, **options))

    return call


def _repeat(catalog: Catalog, action: Callable[[], T]) -> T:
    for is_last in PATIENCE.tries():
        try:
            return action()
        except ConflictError as error:
            if is_last or catalog.storage.address is None or error.kind != ErrorKind.COMMIT_CONFLICT:
                raise
    raise AssertionError("the last try returns or raises")
