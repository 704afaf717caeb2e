"""The rows of the comparison, and what icelite is asked to reach in each.

A bar is a ratio to Icechunk in the same round, unless it is absolute: at most so much of a cost (times, sizes), at
least so much of a rate.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

Rounds = list[dict[str, float]]
Results = dict[str, dict[str, Rounds]]  # group, system, one entry a round


@dataclass(frozen=True)
class Bar:
    """One row.

    Attributes
    ----------
    number
        What a workload calls it.
    unit
        One of `UNITS`; those of rates are better when greater.
    bar
        None where a row only informs.
    """

    group: str
    number: str
    label: str
    unit: str
    bar: float | None = None
    absolute: bool = False
    system: str = "icelite"
    base: str = "icechunk"

    @property
    def is_rate(self) -> bool:
        """Whether more is better."""
        return self.unit in ("MB/s", "/s")


UNITS = {"s": 1.0, "ms": 1e3, "us": 1e6, "MB": 1e-6, "kB": 1e-3, "MB/s": 1e-6, "/s": 1.0, "": 1.0}
FAST = "icelite, fast reads"

BARS = [
    Bar("references", "write", "write 1,000,000 virtual references and commit", "s", 0.5),
    Bar("references", "write disk", "... on disk", "MB", 33e6, absolute=True),
    Bar("references", "write rss", "... peak memory of the process", "MB", 0.5),
    Bar("references", "change one", "open that, change 1 reference, commit", "ms", 0.004),
    Bar("references", "change one bytes", "... bytes written", "kB", 64e3, absolute=True),
    Bar("references", "append", "append 365 references, commit", "ms", 0.008, absolute=True),
    Bar("references", "cold", "new process: open that and read one chunk", "ms", 0.012, absolute=True),
    Bar("references", "cold rss", "... memory above imports", "MB", 14e6, absolute=True),
    Bar("importing", "import", "`import icelite`, to `import zarr`", "ms", 1.15, base="MemoryStore"),
    Bar("reading", "one by one", "2,000 random chunks of 1 to 3 KiB, `get` one by one", "/s", 7),
    Bar("reading", "gathered", "... gathered", "/s", 3),
    Bar("reading", "1 MiB", "`array[:]`, virtual, 1 MiB chunks", "MB/s", 1.3),
    Bar("reading", "10 KiB", "... 10 KiB chunks", "MB/s", 1.8),
    Bar("reading", "1 MiB", "the same with `enable_fast_reads()`, 1 MiB", "MB/s", 1.7, system=FAST),
    Bar("reading", "10 KiB", "... 10 KiB", "MB/s", 6, system=FAST),
    Bar("native", "write 1 MiB", "native write, 1 MiB chunks", "MB/s", 0.5),
    Bar("native", "write 10 KiB", "... 10 KiB chunks", "MB/s", 2),
    Bar("native", "read 1 MiB", "native read back, 1 MiB", "MB/s", 2),
    Bar("native", "read 10 KiB", "... 10 KiB", "MB/s", 2.4),
    Bar("native", "read 1 MiB", "the same with `enable_fast_reads()`, 1 MiB", "MB/s", system=FAST),
    Bar("native", "read 10 KiB", "... 10 KiB", "MB/s", system=FAST),
    Bar("metadata", "create arrays", "500 one-chunk arrays in one commit", "s", 0.6),
    Bar("metadata", "list arrays", "... reopen and list them", "ms", 0.75),
    Bar("metadata", "to_zarr", "a dataset of 100 variables: `to_zarr`", "ms", 0.75),
    Bar("metadata", "open_zarr", "... `open_zarr`", "ms", 0.65),
    Bar("history", "commits", "1,000 commits of 10 chunks of 10,000", "s", 0.6),
    Bar("history", "commits disk", "... on disk", "MB", 0.12),
    Bar("history", "commits files", "... files", "", 1, absolute=True),
    Bar("history", "ancestry", "ancestry of that history", "ms", 1),
    Bar("history", "oldest chunk", "a chunk of its oldest snapshot", "ms", 0.5),
    Bar("history", "diff", "diff from oldest to newest", "ms", 0.3),
    Bar("history", "expire", "expire all but 100, collect, compact", "s", 1),
    Bar("history", "expire disk", "... left on disk", "MB", 0.2),
    Bar("writers", "two writers", "two processes, 50 commits each to one branch", "/s", 1),
    Bar("writers", "lost", "... commits lost", "", 0, absolute=True),
]


def value(results: Results, bar: Bar, system: str) -> float | None:
    """The median over the rounds of one system."""
    rounds = [numbers[bar.number] for numbers in results.get(bar.group, {}).get(system, []) if bar.number in numbers]
    return median(rounds) if rounds else None


def ratio(results: Results, bar: Bar) -> float | None:
    """The median of the ratios, round by round, to the system that the bar compares with."""
    group = results.get(bar.group, {})
    pairs = zip(group.get(bar.system, []), group.get(bar.base, []), strict=False)
    found = [a[bar.number] / b[bar.number] for a, b in pairs if bar.number in a and b.get(bar.number)]
    return median(found) if found else None


def is_met(results: Results, bar: Bar) -> bool | None:
    """Whether the bar is reached; None where there is none, or nothing was measured."""
    found = value(results, bar, bar.system) if bar.absolute else ratio(results, bar)
    if bar.bar is None or found is None:
        return None
    return found >= bar.bar if bar.is_rate else found <= bar.bar


def growth(results: Results) -> list[tuple[str, float, float]]:
    """What grows from the smallest repository to the largest: name, how many times, the bar.

    For each size the median of the ratios in each round; of these the greatest.
    """
    rows = []
    numbers = results.get("growth", {}).get("icelite", [])
    for what, bar in (("commit", 2.5), ("lookup", 2.5), ("open", 2.5), ("write", 1.5)):
        powers = sorted({int(name.partition("^")[2]) for name in (numbers[0] if numbers else {}) if "^" in name})
        if powers:
            first = f"{what} 10^{powers[0]}"
            times = max(median(n[f"{what} 10^{power}"] / n[first] for n in numbers) for power in powers)
            rows.append((f"{what}, 10^{powers[0]} to 10^{powers[-1]} references", times, bar))
    return rows
