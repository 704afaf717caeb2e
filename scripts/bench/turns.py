"""Compare the systems in turns (A B C A B C ...), each in a process of its own, and print medians and ratios.

scripts/bench/run calls this in its environment. Results are added to a JSON file as they come: a run that was broken
off, or one with --only, keeps what other runs measured.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import bars
import picture
import table
from systems import SYSTEMS
from workloads import GROUPS, in_new_process

ROOT = Path(__file__).parents[2]
PACKAGES = ("icelite", "icechunk", "zarr", "numpy", "apsw", "xarray", "h5py", "kerchunk")


def measure(group: str, rounds: int, folder: Path, scale: float) -> dict[str, list[dict[str, float]]]:
    """The numbers of each system in each round of one group."""
    names = importlib.import_module(f"workloads.{group}").SYSTEMS
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        _say(f"{group}: preparing {name}")
        in_new_process("prepare", group, SYSTEMS[name], folder, scale)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    facts: dict[str, Any] = {}
    for number in range(rounds):
        for name in names:
            start = time.perf_counter()
            result = json.loads(in_new_process("measure", group, SYSTEMS[name], folder, scale))
            _compare(group, name, facts, result["facts"])
            found[name].append(result["numbers"])
            _say(f"{group}: round {number + 1} of {rounds}, {name}: {time.perf_counter() - start:.1f} s")
    shutil.rmtree(folder)
    return found


def _compare(group: str, name: str, facts: dict[str, Any], found: dict[str, Any]) -> None:
    """Refuse results that are not equal to those of the systems before."""
    for fact, value in found.items():
        if facts.setdefault(fact, value) != value:
            raise SystemExit(f"{group}: {name} gives {value!r} for {fact!r}, another system {facts[fact]!r}")


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "-"


def _about() -> dict[str, Any]:
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    return {"machine": machine, "versions": {name: _version(name) for name in PACKAGES}}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench/run", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help=f"groups, with commas: {','.join(GROUPS)}")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="times the sizes; the bars are meant for 1")
    parser.add_argument("--json", type=Path, default=ROOT / "build" / "bench.json", help="where results are kept")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "bench", help="where data are written")
    parser.add_argument("--plot", action="store_true", help="draw docs/images/commit-time.svg from the results")
    parser.add_argument("--write-docs", action="store_true", help="write the table into docs/performance.md")
    arguments = parser.parse_args()
    unknown = set(filter(None, arguments.only.split(","))) - set(GROUPS)
    if unknown:
        parser.error(f"no such group: {', '.join(sorted(unknown))}; there are {', '.join(GROUPS)}")
    return arguments


def main() -> None:
    """Measure what was asked for, keep it, show it."""
    arguments = _arguments()
    kept: dict[str, Any] = json.loads(arguments.json.read_text()) if arguments.json.exists() else {"results": {}}
    groups = [name for name in GROUPS if name in arguments.only.split(",")]
    if not groups and not (arguments.plot or arguments.write_docs):
        groups = list(GROUPS)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    for group in groups:
        try:
            found = measure(group, arguments.rounds, arguments.folder / group, arguments.scale)
        except subprocess.CalledProcessError as error:
            raise SystemExit(f"{group}: a worker failed:\n{error.stderr}") from error
        kept.update(_about(), rounds=arguments.rounds, scale=arguments.scale)
        kept["results"][group] = found
        arguments.json.write_text(json.dumps(kept, indent=1))
        sys.stdout.write("\n".join([table.HEAD, *table.rows({group: found}), ""]) + "\n")
    if len(groups) != 1:
        sys.stdout.write(table.render(kept) + "\n")
    missed = [f"{bar.group}: {bar.number}" for bar in bars.BARS if bars.is_met(kept["results"], bar) is False]
    missed += [f"growth: {label}" for label, times, most in bars.growth(kept["results"]) if times > most]
    sys.stdout.write(f"\nmissed: {'; '.join(missed) or 'none'}\n")
    if arguments.plot:
        picture.draw(kept["results"], ROOT / "docs" / "images" / "commit-time.svg")
    if arguments.write_docs:
        table.write_docs(kept, ROOT / "docs" / "performance.md")


if __name__ == "__main__":
    main()
