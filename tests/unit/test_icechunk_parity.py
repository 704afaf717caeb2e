"""Whoever comes from Icechunk finds every name, argument and error kind here, or why not in the guide.

The installed Icechunk is asked what it offers, module by module: names, members of classes, arguments, error kinds.
docs/coming-from-icechunk.md has a table of what is missing, and these tests keep it true in both directions for
Icechunk 2.3; of an older one every name must be here or in the table.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import pytest

import icelite

icechunk = pytest.importorskip("icechunk")

GUIDE = (Path(__file__).parents[2] / "docs" / "coming-from-icechunk.md").read_text()
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", GUIDE, re.MULTILINE | re.DOTALL))
IS_CURRENT = icechunk.__version__.startswith("2.3.")
# Of Icechunk's own use, or for its own tests.
LEFT_OUT = {"testing", "vendor"}
MODULES = [m.name for m in pkgutil.iter_modules(icechunk.__path__) if not m.name.startswith("_")]
# Functions that hand on what they do not name.
HANDED_ON = {"s3_storage()": icelite.StorageConfig.s3_from_config, "http_storage()": icelite.StorageConfig.http}


def public(module: Any) -> list[str]:
    """The names that a module of Icechunk's offers."""
    own = {name for name, thing in vars(module).items() if getattr(thing, "__module__", "") == module.__name__}
    if module is icechunk:  # some functions are not in its list
        own |= {name for name, thing in vars(module).items() if inspect.isroutine(thing)}
    names = {*getattr(module, "__all__", own), *(own if module is icechunk else ())}
    return sorted(
        name for name in names if not name.startswith("_") and not isinstance(vars(module)[name], TypeVar | ParamSpec)
    )


def called(name: str, thing: object) -> str:
    """A name as the tables have it: functions with parentheses."""
    return f"{name}()" if inspect.isroutine(thing) else name


def live() -> dict[str, Any]:
    repository = icelite.Repository.create(icelite.in_memory_storage())
    session = repository.writable_session("main")
    found = {"Repository": repository, "Session": session, "ForkSession": session.fork()}
    return found | {"IcechunkStore": session.store, "RepositoryConfig": icelite.RepositoryConfig.default()}


def missing_names() -> set[str]:
    """Names of modules, and of members of classes that both have."""
    missing = set()
    objects = live()
    for path in ["", *(name for name in MODULES if name not in LEFT_OUT)]:
        theirs = importlib.import_module(f"icechunk.{path}".rstrip("."))
        ours = importlib.import_module(f"icelite.{path}".rstrip("."))
        for name in public(theirs):
            thing, other = getattr(theirs, name), getattr(ours, name, None)
            if other is None:
                missing.add(called(name if not hasattr(icelite, name) else f"{path}.{name}", thing))
            elif inspect.isclass(thing) and not path and name != "ErrorKind":  # which has a table of its own
                missing |= missing_members(name, thing, objects.get(name, other))
    return missing


def missing_members(path: str, theirs: Any, ours: Any, known: frozenset[str] = frozenset()) -> set[str]:
    """Members of a class, but those that are ``known``: each variant of an enumeration repeats those beside it."""
    missing = set()
    variants = known | {name for name in dir(theirs) if inspect.isclass(getattr(theirs, name))}
    for name in dir(theirs):
        if name.startswith("_") or hasattr(BaseException, name) or name in known:
            continue
        if not has(ours, name):
            missing.add(f"{path}.{name}")
        elif inspect.isclass(getattr(theirs, name)):
            missing |= missing_members(f"{path}.{name}", getattr(theirs, name), getattr(ours, name), variants)
    return missing


def has(cls: Any, name: str) -> bool:
    """Whether a class, or an object, has a member of a name, a field of it, or takes it as an argument."""
    if hasattr(cls, name) or (dataclasses.is_dataclass(cls) and name in {f.name for f in dataclasses.fields(cls)}):
        return True
    if not inspect.isclass(cls):
        return False
    if issubclass(cls, icelite.IceliteError):
        return hasattr(cls("message"), name) or name in parameters(cls)
    return name in parameters(cls)


def parameters(thing: Any) -> dict[str, inspect.Parameter]:
    try:
        return dict(inspect.signature(thing).parameters)
    except (TypeError, ValueError):  # of an extension module
        return {}


def routines() -> Iterator[tuple[str, Any, Any]]:
    """The functions and methods that both have, and the classes that are made by hand."""
    for name in public(icechunk):
        theirs, ours = getattr(icechunk, name), getattr(icelite, name, None)
        if ours is None or (inspect.isclass(theirs) and issubclass(theirs, str | Exception)):
            continue
        if inspect.isroutine(theirs):
            yield f"{name}()", theirs, ours
        elif inspect.isclass(theirs):
            if name in {"RepositoryConfig", "S3Options", "VirtualChunkContainer", "VirtualChunkSpec"}:
                yield f"{name}()", theirs, ours
            for member in dir(theirs):
                method, other = getattr(theirs, member), getattr(ours, member, None)
                if not member.startswith("_") and inspect.isroutine(method) and callable(other):
                    yield f"{name}.{member}()", method, other


def missing_arguments() -> set[str]:
    missing = set()
    for path, theirs, ours in routines():
        given = parameters(ours)
        given |= parameters(HANDED_ON.get(path))
        if path not in HANDED_ON and any(p.kind is p.VAR_KEYWORD for p in given.values()):
            continue
        named = [name for name, p in parameters(theirs).items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        missing |= {f"{path[:-1]}{name}=)" for name in named if name not in {"self", "cls", *given}}
    return missing


def without_twins(names: set[str]) -> set[str]:
    """Without those whose method without ``_async`` is among them too."""
    plain = {re.sub(r"_async\b", "", name) for name in names}
    return {name for name in names if "_async" not in name or re.sub(r"_async\b", "", name) not in plain & names}


def listed(section: str) -> list[str]:
    """What the first column of a section's table names."""
    rows = re.findall(r"^\| (`.*?`) \|", SECTIONS[section], re.MULTILINE)
    return [name for row in rows for name in re.findall(r"`(.+?)`", row)]


def check(missing: set[str], section: str) -> None:
    named = set(listed(section))
    if IS_CURRENT:
        assert named == missing
    else:
        assert missing - named - set(listed("What only Icechunk 1 has")) == set()


def test_every_name_is_here_or_in_the_table() -> None:
    check(without_twins(missing_names()), "Names that are not here")


def test_every_argument_is_here_or_in_the_table() -> None:
    check(without_twins(missing_arguments()), "Arguments that are not here")


@pytest.mark.skipif(not hasattr(icechunk, "ErrorKind"), reason="Icechunk has no kinds of errors before 2.3")
def test_every_error_kind_is_here_or_in_the_table() -> None:
    kinds = {kind.value for kind in icechunk.ErrorKind}
    assert len(kinds) > 90
    check(kinds - {kind.value for kind in icelite.ErrorKind}, "Error kinds that are not here")


@pytest.mark.parametrize("section", [name for name in SECTIONS if name.endswith(("not here", "only Icechunk 1 has"))])
def test_every_row_says_why_and_stands_once(section: str) -> None:
    """Of the four tables."""
    names = listed(section)
    assert names
    assert len(names) == len(set(names))
    for row in re.findall(r"^\| `.*$", SECTIONS[section], re.MULTILINE):
        assert len(row.strip("|").split("|")[-1].strip()) > 20, row


@pytest.mark.skipif(not IS_CURRENT, reason="the order is that of Icechunk 2.3")
@pytest.mark.parametrize("path", [path for path, _, _ in routines()])
def test_arguments_stand_in_the_same_order_and_are_given_the_same_way(path: str) -> None:
    theirs, ours = next((theirs, ours) for name, theirs, ours in routines() if name == path)
    given = parameters(ours)
    wanted = {name: p for name, p in parameters(theirs).items() if name in given and name != "self"}
    first = [
        name
        for name, p in wanted.items()
        if not is_class(path) and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    positional = [name for name, p in given.items() if name != "self" and p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional[: len(first)] == first
    assert all(given[name].kind is not inspect.Parameter.POSITIONAL_ONLY for name in wanted)


@pytest.mark.skipif(not IS_CURRENT, reason="the tree is that of Icechunk 2.3")
def test_errors_stand_in_the_same_tree() -> None:
    errors = [name for name in public(icechunk) if name.endswith("Error")]
    assert len(errors) > 10
    for name in errors:
        for base in getattr(icechunk, name).__mro__[:-1]:
            here = getattr(icelite, base.__name__, base)
            assert issubclass(getattr(icelite, name), here), f"{name} is no {here}"


def is_class(path: str) -> bool:
    """Whether it is a constructor, whose many settings are given by name."""
    return path[0].isupper() and "." not in path


def test_numbers_and_texts_that_code_may_compare_are_the_same() -> None:
    repository = icelite.Repository.create(icelite.in_memory_storage())
    assert [int(kind) for kind in icelite.ChunkType] == [0, 1, 2, 3]
    assert {flag.name: flag.id for flag in repository.feature_flags()} == {
        "move_node": 3,
        "create_tag": 4,
        "delete_tag": 5,
    }
    assert [info.id for info in repository.ancestry(branch="main")] == ["1CECHNKREP0F1RSTCMT0"]
