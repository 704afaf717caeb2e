"""The comparison as Markdown: on the terminal, and in docs/performance.md between two comments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bars import BARS, FAST, UNITS, Bar, Results, growth, is_met, ratio, value

BEGIN, END = "<!-- table of scripts/bench/run -->", "<!-- end of the table -->"
HEAD = "| | Icechunk | icelite | ratio | bar | other |\n|---|---:|---:|---:|---:|---|"
MARKS = {True: "", False: " **missed**", None: ""}
OTHERS = ("MemoryStore", "h5py", "kerchunk-json")


def _number(number: float | None, unit: str) -> str:
    if number is None:
        return "-"
    scaled = number * UNITS[unit]
    return f"{scaled:,.0f} {unit}".strip() if scaled >= 100 or scaled == int(scaled) else f"{scaled:.3g} {unit}".strip()


def _bar(bar: Bar) -> str:
    if bar.bar is None:
        return ""
    sign = "≥" if bar.is_rate else "≤"
    return f"{sign} {_number(bar.bar, bar.unit)}" if bar.absolute else f"{sign} {bar.bar:g} x"


def _others(results: Results, bar: Bar) -> str:
    if bar.system == FAST:
        return ""
    found = ((name, value(results, bar, name)) for name in OTHERS)
    return ", ".join(f"{name} {_number(number, bar.unit)}" for name, number in found if number is not None)


def rows(results: Results) -> list[str]:
    """One line for each bar that something was measured for."""
    lines = []
    for bar in BARS:
        if value(results, bar, bar.system) is None:
            continue
        times = ratio(results, bar)
        found = "-" if times is None else f"{times:.3g} x"
        cells = [
            bar.label,
            _number(value(results, bar, "icechunk"), bar.unit),
            _number(value(results, bar, bar.system), bar.unit),
            found,
            _bar(bar) + MARKS[is_met(results, bar)],
            _others(results, bar),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    for label, times, most in growth(results):
        mark = MARKS[times <= most]
        lines.append(f"| growth of a {label} | | | {times:.2f} x | ≤ {most:g} x{mark} | |")
    return lines


def render(document: dict[str, Any]) -> str:
    """Where, with what, and the table."""
    versions = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    about = f"{document['machine']}; {versions}; {document['rounds']} rounds, scale {document['scale']:g}."
    return "\n".join([about, "", HEAD, *rows(document["results"])])


def write_docs(document: dict[str, Any], page: Path) -> None:
    """Put the table into the page, in place of the one that is there."""
    text = page.read_text()
    before, _, rest = text.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise SystemExit(f"{page} lacks the lines {BEGIN!r} and {END!r}")
    page.write_text(f"{before}{BEGIN}\n\n{render(document)}\n\n{END}{after}")
