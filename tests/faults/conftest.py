"""How much of a campaign runs: a slice of each in every test run, all of it with ``scripts/test faults``."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

WHOLE = bool(os.environ.get("ICELITE_CAMPAIGN"))


def pytest_addoption(parser: pytest.Parser) -> None:
    """The length of the soak, which the campaign leaves out."""
    parser.addoption("--soak", type=float, default=0.0, metavar="SECONDS", help="how long test_soak.py runs")


@pytest.fixture
def amount() -> Callable[[int, int], int]:
    """How many of something: ``amount(slice, whole)``."""
    return lambda slice_, whole: whole if WHOLE else slice_


@pytest.fixture(autouse=True)
def report(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> None:
    """Let what a test counted be printed at the end: ``request.node.counted.append("...")``."""
    request.node.counted = []


def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """Carry what was counted to the summary, also from a worker process."""
    for text in getattr(item, "counted", []) if call.when == "call" else []:
        item.user_properties.append(("counted", text))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what the campaign counted."""
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    lines = [
        f"{report.nodeid.partition('::')[2]}: {text}"
        for report in reports
        if getattr(report, "when", None) == "call"
        for name, text in report.user_properties
        if name == "counted"
    ]
    if lines:
        terminalreporter.section("counted")
        for line in sorted(lines):
            terminalreporter.write_line(line)
