"""docs/images/commit-time.svg: what one more commit costs, against the size of the repository."""

from __future__ import annotations

from pathlib import Path
from statistics import median

from bars import Results

STYLE = {"icechunk": ("#d95f02", "s"), "icelite": ("#1b6ca8", "o")}
NAMES = {"icechunk": "Icechunk", "icelite": "icelite"}


def draw(results: Results, place: Path) -> None:
    """Draw it, from the rounds of the group ``growth``."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "icelite"  # the same numbers give the same file
    from matplotlib import pyplot as plt

    if "growth" not in results:
        raise SystemExit("nothing to draw: scripts/bench/run --only growth measures it")
    figure, axes = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
    for system, (color, marker) in STYLE.items():
        rounds = results["growth"].get(system, [])
        powers = sorted(
            int(name.partition("^")[2]) for name in (rounds[0] if rounds else {}) if name.startswith("commit")
        )
        times = [median(numbers[f"commit 10^{power}"] for numbers in rounds) for power in powers]
        axes.loglog([10**p for p in powers], times, color=color, marker=marker, label=NAMES[system])
    axes.set_xlabel("references in the repository")
    axes.set_ylabel("seconds to commit one more")
    axes.grid(True, which="major", color="#dddddd")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    place.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(place, metadata={"Date": None})
