"""Reading much of a catalog while others write to it.

A reader keeps writers from committing as long as it holds its lock. So who reads all of a catalog does it in many short
transactions, and rests between them while somebody else is writing.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from icelite.catalog.database import Catalog, Transaction

REST = 5  # times as long as it was at work: writers keep five parts of six
SHORTEST_REST = 0.01  # seconds: who waited for the lock sleeps up to 2 ms before he looks again
LONGEST_REST = 10.0
QUIET_SECONDS = 0.5  # without a commit of others, nobody is thought to be writing


class Pace:
    """Read transactions on a catalog, with rests between them where others commit to it."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self._depth = 0
        self._version = catalog.version
        self._busy_until = 0.0
        self._since = time.monotonic()

    @contextmanager
    def read(self) -> Iterator[Transaction]:
        """A consistent view over several statements, which should be few and short; inside another one the same."""
        self._depth += 1
        try:
            with self.catalog.read() as txn:
                yield txn
        finally:
            self._depth -= 1
        if self._depth == 0:
            self.rest()

    def rest(self) -> None:
        """Let others write, if they do."""
        now = time.monotonic()
        version = self.catalog.version
        if version != self._version:
            self._version = version
            self._busy_until = now + QUIET_SECONDS
        if now < self._busy_until:
            pause = min(max(REST * (now - self._since), SHORTEST_REST), LONGEST_REST)
            time.sleep(pause)
        self._since = time.monotonic()
