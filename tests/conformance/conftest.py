"""What the conformance suites share: how many examples hypothesis tries, and a mark of xarray's own suite."""

from __future__ import annotations

import os

import hypothesis
import pytest


@pytest.fixture(scope="session")
def examples() -> hypothesis.settings:
    """Settings of the state machines: ``ICELITE_EXAMPLES`` runs of up to 50 steps, 25 by default.

    Examples differ from run to run; hypothesis prints what reproduces a failure.
    """
    return hypothesis.settings(
        max_examples=int(os.environ.get("ICELITE_EXAMPLES", "25")),
        deadline=None,
        print_blob=True,
        suppress_health_check=list(hypothesis.HealthCheck),
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "skip_if_param: set by xarray's own suite; skips some values of a fixture")
    config.addinivalue_line("markers", "skip_with_dask_array: set by xarray's own suite")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Honour xarray's mark `skip_if_param`, whose code is not part of its wheel.

    ``@pytest.mark.skip_if_param(fixture=value, reason=..., condition=True)`` skips a test where the parametrised
    fixture has that value. Without it, tests that xarray means for one Zarr format run, and fail, in both.
    """
    for item in items:
        params = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        for mark in item.iter_markers("skip_if_param"):
            unwanted = {name: value for name, value in mark.kwargs.items() if name not in ("reason", "condition")}
            if mark.kwargs.get("condition", True) and any(
                name in params and params[name] == value for name, value in unwanted.items()
            ):
                item.add_marker(pytest.mark.skip(reason=mark.kwargs["reason"]))
