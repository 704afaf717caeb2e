"""Interrupts that Python drops in a callback are raised again; workers end with the process that started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from icelite.interrupts import heard_interrupts


@pytest.fixture(autouse=True)
def raising() -> Iterator[None]:
    """Ctrl-C raises here, whatever the process that started the tests wants of it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Thing:
    pass


def interrupted_in_a_callback() -> None:
    """Ctrl-C while a weak reference's callback runs: Python cannot raise there."""
    thing = Thing()
    reference = weakref.ref(thing, lambda _: signal.raise_signal(signal.SIGINT))
    del thing
    assert reference() is None


def work() -> None:
    for _ in range(3_000):
        time.sleep(0.01)
    raise AssertionError("the interrupt was lost")


def interrupted_twice() -> None:
    interrupted_in_a_callback()
    thing = Thing()
    reference = weakref.ref(thing, lambda _: time.sleep(0.2))  # the second one comes in here
    del thing
    assert reference() is None


def interrupted_in_an_inner_block() -> None:
    with heard_interrupts():
        interrupted_in_a_callback()


def interrupted_and_taken_for_an_error() -> None:
    """As a library does that reports whatever a callback raises as an error of its own."""
    try:
        signal.raise_signal(signal.SIGINT)
    except BaseException as error:
        with pytest.raises(OSError, match="callback"):
            raise OSError("a callback failed") from error


BEGINNINGS = [
    interrupted_in_a_callback,
    interrupted_twice,
    interrupted_in_an_inner_block,
    interrupted_and_taken_for_an_error,
]


@pytest.mark.parametrize("begin", BEGINNINGS)
def test_an_interrupt_that_a_callback_drops_is_raised_again(begin: Callable[[], None]) -> None:
    hook = sys.unraisablehook

    def call() -> None:
        with heard_interrupts():
            begin()
            work()

    with pytest.raises(KeyboardInterrupt):
        call()
    assert sys.unraisablehook == hook
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_it_is_raised_at_the_end_of_short_work() -> None:
    with pytest.raises(KeyboardInterrupt), heard_interrupts():
        interrupted_in_a_callback()


def test_interrupts_that_were_raised_are_left_alone() -> None:
    with pytest.raises(KeyboardInterrupt), heard_interrupts():
        signal.raise_signal(signal.SIGINT)
    time.sleep(0.2)  # nothing comes later


def test_an_error_after_an_interrupt_is_its_consequence() -> None:
    """As h5py raises a SystemError where a callback of its own was interrupted."""

    def call() -> None:
        with heard_interrupts():
            interrupted_in_a_callback()
            raise SystemError("a callback returned with an exception set")

    with pytest.raises(KeyboardInterrupt) as caught:
        call()
    assert isinstance(caught.value.__cause__, SystemError)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_other_errors_in_callbacks_are_reported_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: seen.append(unraisable.exc_type))

    def fail(_: object) -> None:
        raise LookupError

    with heard_interrupts():
        thing = Thing()
        reference = weakref.ref(thing, fail)
        del thing
    assert reference() is None
    assert seen == [LookupError]


def test_cleaning_up_is_not_interrupted_again() -> None:
    cleaned: list[bool] = []

    def call() -> None:
        with heard_interrupts():
            try:
                signal.raise_signal(signal.SIGINT)
            finally:
                time.sleep(1)
                cleaned.append(True)

    with pytest.raises(KeyboardInterrupt):
        call()
    assert cleaned == [True]


def test_a_handler_of_the_caller_s_own_stays() -> None:
    seen: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    with heard_interrupts():
        signal.raise_signal(signal.SIGINT)
    assert seen == [signal.SIGINT]


def test_other_threads_change_nothing() -> None:
    hooks: list[object] = []

    def look() -> None:
        with heard_interrupts():
            hooks.append(sys.unraisablehook)

    before = sys.unraisablehook
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert hooks == [before]


PARENT = """
import multiprocessing, os, sys, time
import loky.backend.context
from icelite.interrupts import end_with_parent

def work(said):
    said.send(os.getpid())
    time.sleep(1)  # its parent ends meanwhile
    end_with_parent()
    time.sleep(600)

if __name__ == "__main__":
    kind = sys.argv[1]
    context = loky.backend.context.get_context("loky") if kind == "loky" else multiprocessing.get_context(kind)
    heard, said = multiprocessing.Pipe(duplex=False)
    context.Process(target=work, args=(said,)).start()
    print(heard.recv(), flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("kind", ["spawn", "forkserver", "fork", "loky"])
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_worker_ends_with_its_parent_also_where_that_ended_first(
    how: signal.Signals, kind: str, tmp_path: Path
) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen([sys.executable, script, kind], stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        parent.send_signal(how)
    deadline = time.monotonic() + 60
    while is_running(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(worker)


def is_running(process: int) -> bool:
    """Whether it is there, and not only waiting for somebody to ask how it ended."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
