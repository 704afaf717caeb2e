"""What verbs have in common on the way in: catalogs and references of them as arguments, access, progress bars."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypedDict, TypeVar

import click

from icelite.credentials import HttpAccess, LocalFileSystemAccess, S3Credentials
from icelite.errors import ErrorKind, InvalidInputError, RefNotFoundError
from icelite.repository import Repository
from icelite.repository.names import MAIN
from icelite.storage import EXTENSION
from icelite.types import Progress

Command = TypeVar("Command", bound=Callable[..., Any])


class Names(TypedDict, total=False):
    """Which snapshot, as keyword arguments: one of them."""

    branch: str
    tag: str
    snapshot_id: str


@dataclass(frozen=True, slots=True)
class CatalogArgument:
    """The argument PATH or PATH@REF."""

    path: str
    ref: str | None

    def open(self, access: tuple[str, ...] = (), check: str = "auto") -> Repository:
        """The repository; raises as `Repository.open`."""
        return Repository.open(self.path, authorize_virtual_chunk_access=authorizations(access), check=check)

    def open_whole(self, access: tuple[str, ...] = ()) -> Repository:
        """The repository, for a verb that is not about one snapshot.

        Raises
        ------
        InvalidInputError
            ``invalid-argument`` where a reference was given; and as `Repository.open`.
        """
        if self.ref is not None:
            raise InvalidInputError(
                f"{self.path}@{self.ref}: this is not about one snapshot; leave @{self.ref} out",
                ErrorKind.INVALID_ARGUMENT,
            )
        return self.open(access)

    def names(self, repository: Repository) -> Names:
        """Which of ``branch``, ``tag`` and ``snapshot_id`` the reference is, as keyword arguments.

        Raises
        ------
        RefNotFoundError
            ``branch-not-found``.
        """
        ref = MAIN if self.ref is None else self.ref
        if ref in repository.list_branches():
            return {"branch": ref}
        if ref in repository.list_tags():
            return {"tag": ref}
        if len(ref) == 20 and ref.isalnum() and ref.upper() == ref:
            return {"snapshot_id": ref}
        known = ", ".join(sorted(repository.list_branches() | repository.list_tags()))
        raise RefNotFoundError(
            f"{self.path} has no branch or tag {ref!r}, and that is no snapshot id; it has {known}",
            ErrorKind.BRANCH_NOT_FOUND,
        )

    def snapshot_id(self, repository: Repository) -> str:
        """The id of the snapshot that the reference means; raises as `names`."""
        return repository.readonly_session(**self.names(repository)).snapshot_id


class CatalogType(click.ParamType):  # type: ignore[type-arg]  # no argument before click 8.3
    """Splits ``PATH@REF``; an ``@`` in a folder's name or a URL's host is no reference."""

    name = "catalog"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> CatalogArgument:
        """See `click.ParamType.convert`."""
        if isinstance(value, CatalogArgument):
            return value
        text = str(value)
        if not os.path.isfile(text):
            for mark in re.finditer("@", text):
                path = text[: mark.start()]
                if path.endswith(EXTENSION) or os.path.isfile(path):
                    return CatalogArgument(path, text[mark.end() :])
        return CatalogArgument(text, None)


CATALOG = CatalogType()


def json_option(command: Command) -> Command:
    """Add ``--json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


def access_option(command: Command) -> Command:
    """Add ``--access``."""
    return click.option(
        "--access",
        multiple=True,
        metavar="PREFIX[=HOW]",
        help="Allow reading below a URL prefix, such as file:///data/ or s3://bucket/=anonymous. HOW is env (the "
        "default for s3://, gs:// and az://: credentials of the environment) or anonymous. May be repeated.",
    )(command)


def authorizations(access: tuple[str, ...]) -> Mapping[str, Any] | None:
    """What ``--access`` says, for ``authorize_virtual_chunk_access``.

    Raises
    ------
    InvalidInputError
        ``invalid-argument``.
    """
    found: dict[str, Any] = {}
    for text in access:
        prefix, _, how = text.partition("=")
        scheme = prefix.partition("://")[0]
        if how not in ("", "env", "anonymous") or (how == "anonymous" and scheme not in ("s3", "https", "http")):
            raise InvalidInputError(
                f"--access {text!r} is not PREFIX, PREFIX=env or (for s3) PREFIX=anonymous", ErrorKind.INVALID_ARGUMENT
            )
        if scheme == "s3":
            found[prefix] = S3Credentials.Anonymous() if how == "anonymous" else S3Credentials.FromEnv()
        else:
            found[prefix] = {"file": LocalFileSystemAccess, "https": HttpAccess, "http": HttpAccess}.get(scheme)
    return found or None


@contextmanager
def progress_bar(title: str) -> Iterator[Progress]:
    """A bar on stderr, which shows nothing where that is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bars(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task(title, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)
