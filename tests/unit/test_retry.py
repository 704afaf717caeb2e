"""icelite.retry: as many tries as were asked for, growing pauses, and an end in time."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icelite import retry
from icelite.retry import Patience


class Clock:
    """Time that passes only where somebody waits."""

    def __init__(self) -> None:
        self.now = 0.0
        self.waits: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(retry, "time", clock)
    return clock


@given(
    attempts=st.integers(1, 50),
    pause=st.floats(0.01, 2),
    factor=st.floats(1, 5),
    jitter=st.floats(0, 1),
    seconds=st.floats(0.1, 100),
)
def test_the_last_try_is_announced_and_nothing_begins_too_late(
    attempts: int, pause: float, factor: float, jitter: float, seconds: float
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        clock = Clock()
        patch.setattr(retry, "time", clock)
        patience = Patience(attempts, pause, factor, longest=10.0, jitter=jitter, seconds=seconds)
        seen = [(clock.now, is_last) for is_last in patience.tries()]
        assert [is_last for _, is_last in seen] == [False] * (len(seen) - 1) + [True]
        assert len(seen) <= attempts
        assert all(moment <= seconds for moment, _ in seen)
        assert len(seen) == attempts or clock.now + min(pause * factor ** len(seen), 10.0) * 2 >= seconds * (1 - jitter)


def test_pauses_grow_up_to_the_longest(clock: Clock) -> None:
    assert len(list(Patience(5, pause=1, factor=3, longest=8).tries())) == 5
    assert [wait for wait in clock.waits if wait] == [1, 3, 8, 8]


def test_a_loop_that_ends_early_waits_no_more(clock: Clock) -> None:
    for _ in Patience(5).tries():
        break
    assert not any(clock.waits)


async def test_an_event_loop_goes_on_meanwhile() -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    ticking = asyncio.create_task(tick())
    seen = [is_last async for is_last in Patience(3, pause=0.01, factor=1).tries_async()]
    ticking.cancel()
    assert seen == [False, False, True]
    assert ticks > 3
