"""Trying again: how often, for how long, and with what pauses, in one place."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

ATTEMPTS = 3  # of a request to a service, unless the caller says another number


@dataclass(frozen=True, slots=True)
class Patience:
    """How often something is tried, and how long is waited between.

    Attributes
    ----------
    attempts
        In all.
    pause, factor, longest
        Seconds before the second attempt, by what they grow with each further one, and where that ends.
    jitter
        The part of a pause that is random, so that several who wait do not keep meeting.
    seconds
        The first attempt that would begin later is the last.
    """

    attempts: int
    pause: float = 0.4
    factor: float = 4.0
    longest: float = 10.0
    jitter: float = 0.0
    seconds: float = float("inf")

    def tries(self) -> Iterator[bool]:
        """Whether it is the last attempt, once for each; waits between them."""
        for wait, is_last in self._waits():
            if wait:  # sleeping no time at all still gives the processor away
                time.sleep(wait)
            yield is_last

    async def tries_async(self) -> AsyncIterator[bool]:
        """`tries` for an event loop, which is not held up."""
        for wait, is_last in self._waits():
            await asyncio.sleep(wait)
            yield is_last

    def _waits(self) -> Iterator[tuple[float, bool]]:
        deadline = time.monotonic() + self.seconds
        wait = 0.0
        for attempt in range(1, self.attempts + 1):
            following = min(self.pause * self.factor ** (attempt - 1), self.longest)
            following *= 1 - self.jitter * random.random()
            is_last = attempt == self.attempts or time.monotonic() + wait + following > deadline
            yield wait, is_last
            if is_last:
                return
            wait = following
