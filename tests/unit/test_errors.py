"""The exceptions: their place in Python's tree, their text, and that they survive pickling."""

import pickle

import pytest

from icelite import errors
from icelite.errors import (
    ConflictError,
    ErrorKind,
    IceliteError,
    InvalidInputError,
    KeyNotFoundError,
    NotFoundError,
    ReadOnlyError,
)

TREE = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, IceliteError)]


def test_kind_equals_its_string() -> None:
    error = NotFoundError("no branch 'x'", ErrorKind.BRANCH_NOT_FOUND)
    assert error.kind == "branch-not-found"
    assert f"{error.kind}" == "branch-not-found"


def test_kinds_are_distinct_and_kebab_case() -> None:
    kinds = [kind.value for kind in ErrorKind]
    assert len(set(kinds)) == len(kinds)
    assert all(kind == kind.lower().replace("_", "-") for kind in kinds)


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (NotFoundError, KeyError),
        (KeyNotFoundError, FileNotFoundError),
        (ReadOnlyError, ValueError),
        (InvalidInputError, ValueError),
    ],
)
def test_is_the_builtin_that_callers_of_zarr_catch(error: type[IceliteError], builtin: type[Exception]) -> None:
    assert issubclass(error, builtin)


@pytest.mark.parametrize("cls", TREE)
def test_text_is_the_message_alone(cls: type[IceliteError]) -> None:
    """A bare `KeyError` would quote it, a `FileNotFoundError` would look for an errno."""
    error = cls("no group at '/a'; list_dir('') tells what there is", ErrorKind.NODE_NOT_FOUND)
    assert str(error) == error.message == "no group at '/a'; list_dir('') tells what there is"


@pytest.mark.parametrize("cls", TREE)
def test_pickles_with_everything(cls: type[IceliteError]) -> None:
    """Errors come back from worker processes."""
    error = cls("who moved my tip?", ErrorKind.COMMIT_CONFLICT)
    error.__dict__["seen"] = 1
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is cls
    assert (str(copy), copy.kind, copy.__dict__["seen"]) == (str(error), error.kind, 1)


def test_conflict_keeps_both_tips_through_pickling() -> None:
    error = ConflictError("main moved", expected_parent="A" * 20, actual_parent="B" * 20)
    copy = pickle.loads(pickle.dumps(error))
    assert copy.kind == "commit-conflict"
    assert (copy.expected_parent, copy.actual_parent) == ("A" * 20, "B" * 20)
