"""One process of the comparison: one system, one group of workloads; its result is one line of JSON.

python scripts/bench/worker.py prepare|measure GROUP SYSTEM FOLDER SCALE
"""

from __future__ import annotations

import importlib
import json
import sys
import warnings
from pathlib import Path

from systems import SYSTEMS


def main() -> None:
    """Run one step and print what it gives."""
    warnings.simplefilter("ignore")
    step, group, system, folder, scale = sys.argv[1:6]
    module = importlib.import_module(f"workloads.{group}")
    result = getattr(module, step)(SYSTEMS[system], Path(folder), float(scale), *sys.argv[6:])
    sys.stdout.write("\n" + json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
