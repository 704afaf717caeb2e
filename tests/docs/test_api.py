"""docs/api.md lists every public name with the first sentence of its docstring; ICELITE_WRITE_API=1 writes it anew."""

from __future__ import annotations

import inspect
import os
import re
from pathlib import Path

import pytest

import icelite

PAGE = Path(__file__).parents[2] / "docs/api.md"
MODULES = {  # names that are asked for only when they are used, since they need optional packages
    "icelite": sorted(
        {
            *icelite.__all__,
            "drop",
            "find_format",
            "make_native",
            "open_virtual",
            "open_virtual_tree",
            "template",
            "replace",
            "update",
            "virtualize",
        }
    ),
    "icelite.dask": ["store_dask"],
    "icelite.icechunk": ["export_icechunk", "import_icechunk"],
    "icelite.kerchunk": ["export_kerchunk", "import_kerchunk", "write_references"],
    "icelite.virtualizarr": ["IceliteAccessor", "WriteSummary", "to_icelite"],
    "icelite.xarray": ["to_icelite"],
}
LARGE = ("Repository", "Session", "IceliteStore")
HEAD = """# Every public name

Each with the first sentence of what `help()` says about it; `help(icelite.Repository)` tells the rest: parameters,
units, errors with their kinds. The guides show them at work.
"""


def sentence(thing: object) -> str:
    text = inspect.getdoc(thing) or ""
    first = re.split(r"(?<=\.)\s|\n\n", text.strip(), maxsplit=1)[0]
    return " ".join(first.split()).replace("|", "\\|").replace("``", "`")


def members(thing: type) -> list[str]:
    """The public methods and properties that icelite itself defines and describes."""
    return [
        f"`{name}`"
        for name, value in inspect.getmembers(thing)
        if not name.startswith("_")
        and inspect.getdoc(value)
        and (getattr(value, "__module__", None) or "icelite").startswith("icelite")
    ]


def describe(name: str, thing: object) -> str:
    if inspect.isclass(thing):
        shown = f" Members: {', '.join(members(thing))}" if name in LARGE else ""
        return f"| `{name}` | {sentence(thing)}{shown} |"
    if inspect.isroutine(thing):
        return f"| `{name}()` | {sentence(thing)} |"
    return f"| `{name}` | |"


def page() -> str:
    import importlib

    pytest.importorskip("icechunk", minversion="2")
    parts = [HEAD]
    for module, names in MODULES.items():
        found = importlib.import_module(module)
        rows = [describe(name, getattr(found, name)) for name in names]
        parts += [f"## `{module}`\n", "| name | what it is |\n|---|---|\n" + "\n".join(rows) + "\n"]
    return "\n".join(parts)


def test_every_public_name_is_in_the_docs() -> None:
    if os.environ.get("ICELITE_WRITE_API"):
        PAGE.write_text(page())
    text = PAGE.read_text()
    missing = [f"{module}.{name}" for module, names in MODULES.items() for name in names if f"`{name}" not in text]
    assert missing == []
    assert text == page()
