"""What `import` costs, in a new process each time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

SYSTEMS = ("icechunk", "icelite", "MemoryStore")

TIMED = "import time; start = time.perf_counter(); import {}; print(time.perf_counter() - start)"


def prepare(system: Any, folder: Path, scale: float) -> None:
    """Compile what is not compiled yet."""
    measure(system, folder, scale)


def measure(system: Any, folder: Path, scale: float) -> dict[str, Any]:
    """The best of three."""
    command = [sys.executable, "-c", TIMED.format(system.package)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    runs = (subprocess.run(command, check=True, capture_output=True, text=True, env=environment) for _ in range(3))
    seconds = min(float(run.stdout) for run in runs)
    return {"numbers": {"import": seconds}, "facts": {}}
