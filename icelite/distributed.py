"""`merge_sessions` and `extract_session`: forks that workers wrote in, brought together by any framework."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import zarr

from icelite.errors import ErrorKind, InvalidInputError, SessionStateError
from icelite.session import ForkSession, Session
from icelite.store import IceliteStore

__all__ = ["extract_session", "merge_sessions"]


def extract_session(zarray: zarr.Array[Any], axis: Any = None, keepdims: Any = None) -> Session:
    """The session that a Zarr array is written in.

    Parameters
    ----------
    axis, keepdims
        For frameworks that pass them; they mean nothing.

    Raises
    ------
    InvalidInputError
        ``invalid-argument`` for an array of another store.
    """
    if not isinstance(zarray.store, IceliteStore):
        raise InvalidInputError(
            f"extract_session takes an array of an IceliteStore, not of a {type(zarray.store).__name__}",
            ErrorKind.INVALID_ARGUMENT,
        )
    return zarray.store.session


def merge_sessions(*sessions: ForkSession | list[Any]) -> ForkSession:
    """The first of several forks, with the changes of all of them; merge it into the session that they began in.

    Parameters
    ----------
    sessions
        Forks, and lists of forks or of lists; one that is there several times counts once.

    Raises
    ------
    SessionStateError
        ``merge-not-allowed`` for what is no fork, or began elsewhere; ``merge-failed`` as for `Session.merge`.
    InvalidInputError
        ``invalid-argument`` where there is none.
    """
    forks = list({id(session): session for session in _flat(sessions)}.values())
    if not forks:
        raise InvalidInputError("merge_sessions needs at least one fork", ErrorKind.INVALID_ARGUMENT)
    for fork in forks:
        if not isinstance(fork, ForkSession):
            raise SessionStateError(
                f"merge_sessions takes forks, not a {type(fork).__name__}; session.merge(*forks) takes them into a"
                " session",
                ErrorKind.MERGE_NOT_ALLOWED,
            )
    first: ForkSession = forks[0]
    first.merge(*forks[1:])
    return first


def _flat(sessions: Iterable[Any]) -> Iterator[Any]:
    for session in sessions:
        if isinstance(session, list | tuple):
            yield from _flat(session)
        else:
            yield session
