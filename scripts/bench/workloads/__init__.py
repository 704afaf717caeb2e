"""The workloads, in groups: each group runs in one process for each system and round.

A group has ``SYSTEMS``, ``prepare(system, folder, scale)``, which runs once, and ``measure(system, folder, scale)``,
which gives ``{"numbers": {name: number}, "facts": {name: value}}``. Facts are results: all systems must give the same.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

GROUPS = ("importing", "references", "reading", "native", "metadata", "history", "writers", "growth")
WORKER = Path(__file__).parent.parent / "worker.py"


class Clock:
    """In a ``with clock("name")`` block, puts its seconds under that name."""

    def __init__(self) -> None:
        self.numbers: dict[str, float] = {}

    def __call__(self, name: str) -> Clock:
        """Say which name is timed next."""
        self._name = name
        return self

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.numbers[self._name] = time.perf_counter() - self._start


def digest(data: Any) -> str:
    """A short name for some bytes, or an array's."""
    return hashlib.sha256(memoryview(data).cast("B") if not isinstance(data, bytes) else data).hexdigest()[:16]


def disk(folder: Path) -> tuple[int, int]:
    """Bytes and files below a folder."""
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return sum(sizes), len(sizes)


def in_new_process(step: str, group: str, system: Any, folder: Path, scale: float, *arguments: str) -> str:
    """The last line that a worker prints."""
    command = [sys.executable, str(WORKER), step, group, system.name, str(folder), str(scale), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
