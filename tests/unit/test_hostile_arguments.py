"""Texts and numbers that no caller should pass: every public function answers with a value or an `IceliteError`."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zarr

from icelite import IceliteError, IceliteStore, Repository, Session

TEXTS = [
    "\ud800",
    "x/\ud800",
    "\0",
    "",
    "../x",
    "a" * 5_000,
    "/".join("d" * 1_000),
    "c://[",
    "file://\ud800",
    "\u202e",
    "x",
]
NUMBERS = [-1, 2**70, -(2**70), 0, True]
GIVEN: dict[str, Any] = {
    "array_path": "x",
    "branch": "main",
    "chunk_coordinates": [0],
    "from_branch": "main",
    "into_branch": "main",
    "key": "x/c/0",
    "message": "m",
    "path": "x",
    "url": "file:///tmp/x",
    "location": "file:///tmp/x",
    "offset": 0,
    "length": 1,
}
NUMBERED = {"offset", "length", "batch_size", "rebase_tries", "limit"}
OF_PYTHON = {"get_ranges", "get_partial_values"}  # zarr's own, for lists of requests


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    repository = Repository.create(tmp_path / "a.icelite")
    with repository.transaction("main", message="x") as store:
        zarr.create_array(store, name="x", shape=(3,), chunks=(1,), dtype="u1")[:] = 1
    repository.close()
    return tmp_path / "a.icelite"


def owner(cls: type, path: Path) -> Any:
    repository = Repository.open(path)
    if cls is Repository:
        return repository
    session = repository.writable_session("main")
    return session if cls is Session else session.store


def cases() -> Iterator[tuple[type, str, str]]:
    """Every parameter of every public method that is annotated as a text, or is one of the numbers."""
    for cls in (Repository, Session, IceliteStore):
        for name, method in inspect.getmembers(cls, callable):
            if name.startswith("_") or name.endswith("_async") or name in OF_PYTHON:
                continue
            for parameter in inspect.signature(method).parameters.values():
                annotation = str(parameter.annotation)
                if parameter.name in NUMBERED or annotation.split(" ")[0] in ("str", "Storage", "ObjectStorage"):
                    yield cls, name, parameter.name


async def call(method: Callable[..., Any], arguments: dict[str, Any]) -> None:
    result = method(**arguments)
    if inspect.isawaitable(result):
        await result
    elif inspect.isasyncgen(result):
        async for _ in result:
            pass
    elif inspect.isgenerator(result):
        list(result)


@pytest.mark.parametrize(("cls", "name", "parameter"), list(cases()))
async def test_a_hostile_argument_ends_in_a_value_or_a_clear_error(
    path: Path, cls: type, name: str, parameter: str
) -> None:
    for value in NUMBERS if parameter in NUMBERED else TEXTS:
        subject = owner(cls, path)
        method = getattr(subject, name)
        needed = {p.name for p in inspect.signature(method).parameters.values() if p.default is p.empty}
        if not needed - {parameter} <= GIVEN.keys():
            pytest.skip("needs an object of its own")
        arguments = {**{other: GIVEN[other] for other in needed - {parameter}}, parameter: value}
        assert await kind_of(call(method, arguments)) != "unknown", value


async def kind_of(calling: Awaitable[None]) -> str | None:
    """The kind of the error that a call ends in; None where it gives a value. Others pass through."""
    try:
        await calling
    except IceliteError as error:
        return error.kind
    return None


def test_there_are_many_such_parameters() -> None:
    assert len(list(cases())) > 60
