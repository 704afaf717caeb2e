"""How the sources of one call are reached: with what the caller authorised, or object stores of the caller's own.

A `Reach` is a value: it pickles to the processes that scan, and each opens its own connections.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from icelite.virtual import VirtualAccess
from icelite.virtual.remote import FileReaders
from icelite.virtualizarr.arrays import Fetch, fetch_through, fetch_with


@dataclass(frozen=True)
class Reach:
    """The way to the sources of one call.

    Attributes
    ----------
    access
        What the caller authorised; None for local files only.
    given
        A registry of the caller's own, used instead.
    """

    access: VirtualAccess | None = None
    given: Any = None

    @cached_property
    def registry(self) -> Any:
        """What `open_virtual` reads remote files with."""
        return self.given if self.given is not None or self.access is None else FileReaders(self.access.lookup_target)

    @property
    def fetch(self) -> Fetch:
        """What reads ranges of the sources."""
        if self.given is not None or self.access is None:
            return fetch_with(self.given)
        return fetch_through(self.access)

    def __getstate__(self) -> dict[str, Any]:
        return {"access": self.access, "given": self.given}


def reach_of(urls: list[str], access: VirtualAccess, registry: Any) -> Reach:
    """The way to these sources.

    Raises
    ------
    InvalidInputError
        ``unauthorized-virtual-chunk-container``: nothing that the caller passed covers one; ``invalid-virtual-ref``.
    """
    for url in urls if registry is None else ():
        if not url.startswith("file://"):
            access.lookup_target(url)
    return Reach(access, registry)
