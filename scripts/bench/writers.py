"""Many processes commit to one catalog at once: what was acknowledged is there, and each gets its turn.

python scripts/bench/writers.py                      # 8 processes x 50 commits, 10 runs
python scripts/bench/writers.py --seconds 8          # as many commits as fit: who gets how many
python scripts/bench/writers.py --kill               # some writers are killed on the way
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import zarr

from icelite import Repository

WRITER = """
import sys, time
import zarr
import icelite
path, name, commits, seconds = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
repo = icelite.Repository.open(path)
solver = icelite.ConflictDetector()
session = repo.writable_session("main")
zarr.create_array(session.store, name=name, shape=(100_000,), chunks=(1,), dtype="i4", compressors=None)
session.commit(name, rebase_with=solver)
print("ready", flush=True)
sys.stdin.readline()
end, number = time.monotonic() + seconds, 0
while number < commits if not seconds else time.monotonic() < end:
    session = repo.writable_session("main")
    zarr.open_array(session.store, path=name)[number] = number + 1
    session.commit(f"{name} {number}", rebase_with=solver)
    print(time.monotonic(), flush=True)
    number += 1
"""


def one_run(processes: int, commits: int, seconds: float, kill: bool) -> list[list[float]]:
    """Let the writers go; check the catalog; the moments of each writer's acknowledged commits."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "writers.icelite"
        session = Repository.create(path).writable_session("main")
        zarr.create_group(session.store)  # once: two sessions that both create it would conflict
        session.commit("the root group")
        started = [
            subprocess.Popen(
                [sys.executable, "-W", "ignore", "-c", WRITER, str(path), f"a{number}", str(commits), str(seconds)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            )
            for number in range(processes)
        ]
        for process in started:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in started:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        if kill:
            for process in started[::2]:
                time.sleep(random.uniform(0.05, 0.3))
                process.kill()
        moments = [[float(line) for line in process.communicate()[0].split()] for process in started]
        check(path, moments)
    return moments


def check(path: Path, moments: list[list[float]]) -> None:
    """Every acknowledged commit is there, and the file is sound."""
    repo = Repository.open(path, check="always")
    problems = repo.verify()
    group = zarr.open_group(repo.readonly_session("main").store, mode="r")
    for number, acknowledged in enumerate(moments):
        values = group[f"a{number}"][: len(acknowledged)].tolist()
        if values != list(range(1, len(acknowledged) + 1)):
            raise SystemExit(f"writer {number}: an acknowledged commit is missing")
    if problems:
        raise SystemExit(f"verify: {problems[:3]}")


def least_share(moments: list[list[float]], window: float = 4.0) -> float:
    """The least, over all windows of some seconds, of the slowest writer's commits by the fastest's."""
    begin, end = min(m[0] for m in moments), min(m[-1] for m in moments)
    shares = []
    while begin + window <= end:
        counts = [sum(begin <= t < begin + window for t in m) for m in moments]
        shares.append(min(counts) / max(counts))
        begin += 0.25
    return min(shares, default=float("nan"))


def main() -> None:
    """Run, check, print one line a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--commits", type=int, default=50)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--kill", action="store_true")
    options = parser.parse_args()
    for run in range(1, options.runs + 1):
        begin = time.perf_counter()
        moments = one_run(options.processes, options.commits, options.seconds, options.kill)
        counts = [len(m) for m in moments]
        share = f", least share over 4 s {least_share(moments):.3f}" if options.seconds else ""
        sys.stdout.write(
            f"run {run}: {sum(counts)} acknowledged, all present ({min(counts)} to {max(counts)} a writer)"
            f" in {time.perf_counter() - begin:.1f} s{share}\n"
        )


if __name__ == "__main__":
    main()
