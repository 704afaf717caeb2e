"""Event loops beside what blocks: methods in threads (each ``x_async`` is ``x`` in one), iterators, and calls."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from itertools import islice
from typing import Any, ParamSpec, TypeVar

from icelite.catalog.database import Catalog
from icelite.errors import ErrorKind, StorageError

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


def in_thread(method: Callable[P, R]) -> Callable[P, Coroutine[Any, Any, R]]:
    """The asynchronous twin of a method; a subclass that overrides the method has overridden the twin.

    Those of class and static methods are to be made such again, by `classmethod` and `staticmethod`.
    """
    plain: Callable[P, R] = getattr(method, "__func__", method)
    is_static = isinstance(method, staticmethod)

    @functools.wraps(plain)
    async def twin(*args: P.args, **kwargs: P.kwargs) -> R:
        if is_static:
            return await asyncio.to_thread(plain, *args, **kwargs)
        bound: Callable[..., R] = getattr(args[0], plain.__name__)
        return await asyncio.to_thread(bound, *args[1:], **kwargs)

    twin.__name__ += "_async"
    twin.__qualname__ += "_async"
    twin.__doc__ = f"See `{plain.__name__}`, which runs in a thread."
    return twin


async def pages(items: Iterable[T], at_once: int) -> AsyncIterator[list[T]]:
    """The items of an iterable that blocks, so many at once."""
    iterator = iter(items)
    while page := await asyncio.to_thread(lambda: list(islice(iterator, at_once))):
        yield page


async def in_pages(items: Iterable[T], at_once: int) -> AsyncIterator[T]:
    """The items of an iterable that blocks, one by one; so many at once come from a thread."""
    async for page in pages(items, at_once):
        for item in page:
            yield item


async def call_off_loop(catalog: Catalog, function: Callable[..., T], *arguments: Any) -> T:
    """Call from an event loop what uses a catalog: there if it need not wait, else once more in a thread.

    A remote catalog may always wait, for a network.
    """
    if catalog.storage.address is None:
        try:
            return catalog.try_now(function, *arguments)
        except StorageError as error:
            if error.kind != ErrorKind.BUSY:
                raise
    return await asyncio.to_thread(function, *arguments)
