"""Methods that do I/O, for event loops: each ``x_async`` is ``x`` in a thread, with the same arguments and errors."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

from icelite.session.chunks import Chunks
from icelite.session.commits import Commits
from icelite.session.moves import Moves

P = ParamSpec("P")
R = TypeVar("R")


def in_thread(method: Callable[P, R]) -> Callable[P, Coroutine[Any, Any, R]]:
    """The asynchronous twin of a method; a subclass that overrides the method has overridden the twin."""

    @functools.wraps(method)
    async def twin(*args: P.args, **kwargs: P.kwargs) -> R:
        bound: Callable[..., R] = getattr(args[0], method.__name__)
        return await asyncio.to_thread(bound, *args[1:], **kwargs)

    twin.__name__ += "_async"
    twin.__qualname__ += "_async"
    twin.__doc__ = f"See `{method.__name__}`, which runs in a thread."
    return twin


class AsynchronousSession(Commits, Moves, Chunks):
    """The asynchronous twins of `Session`."""

    commit_async = in_thread(Commits.commit)
    amend_async = in_thread(Commits.amend)
    flush_async = in_thread(Commits.flush)
    rebase_async = in_thread(Commits.rebase)
    move_async = in_thread(Moves.move)
    get_node_id_async = in_thread(Chunks.get_node_id)
    chunk_type_async = in_thread(Chunks.chunk_type)
    all_virtual_chunk_locations_async = in_thread(Chunks.all_virtual_chunk_locations)
