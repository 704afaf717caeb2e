"""`update` and `replace`: `virtualize` again, with what the group recorded about how it is made."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace as changed_in
from typing import Any, Literal

import xarray as xr

from icelite.archive.findings import Policy, Prefer
from icelite.archive.fit import Fitting
from icelite.archive.ingestion import Ingestion
from icelite.archive.inputs import Source, Sources, list_inputs, record_sources
from icelite.archive.records import Recorded, read_records
from icelite.archive.scan import Parsing
from icelite.archive.summary import VirtualizeSummary
from icelite.archive.virtualize import Access, describe_making, make_fitting, opened
from icelite.config import RepositoryConfig
from icelite.errors import ErrorKind, InvalidInputError
from icelite.keys import check_path
from icelite.repository import Repository
from icelite.storage import StorageConfig
from icelite.types import Progress
from icelite.virtual.urls import is_under

_PARSING: tuple[str, ...] = ("parser", "source_group", "loadable_variables", "drop_variables", "decode_times")
_PARSING += ("on_unreferenceable", "on_unreadable")
_FITTING = ("concat_dim", "compat", "stack")


def update(
    repository: str | os.PathLike[str] | StorageConfig | Repository,
    sources: Sources | None = None,
    *,
    group: str | None = None,
    branch: str = "main",
    message: str | None = None,
    on_late: Literal["raise", "insert", "skip"] = "insert",
    on_changed: Literal["raise", "replace", "skip"] = "replace",
    on_duplicate: Literal["raise", "newest", "skip"] = "newest",
    on_misfit: Literal["raise", "skip"] = "skip",
    on_broken: Literal["raise", "skip"] = "skip",
    on_dropped: Literal["skip", "insert"] = "skip",
    prefer: Prefer | None = None,
    missing: Literal["raise", "fill"] = "raise",
    preprocess: Callable[[xr.Dataset], xr.Dataset] | None = None,
    dry_run: bool = False,
    workers: int | None = None,
    config: RepositoryConfig | None = None,
    authorize_virtual_chunk_access: Access | None = None,
    progress: Progress | None = None,
    registry: Any = None,
    **options: Any,
) -> VirtualizeSummary:
    """Bring a group up to date with its files, in one snapshot; made to run every night and never to get stuck.

    New files are appended, late ones put where they belong, changed ones replaced; of files with the same steps the
    newest is kept. What does not fit or cannot be read is left out, and listed in the summary's ``left_out``.

    >>> icelite.update("ocean.icelite")  # doctest: +SKIP
    <icelite.VirtualizeSummary snapshot_id='T8PCP9VJQ1K65ACGMCC0' added=1, replaced=1, known=29, broken=0, ...>

    Parameters
    ----------
    repository
        The catalog's path, or an open repository; the group must be there.
    sources
        As for `icelite.virtualize`; by default what the last call was given, if that is below the catalog's directory
        or in a bucket: what else a catalog names is not opened unasked.
    group, branch, message, prefer, missing, preprocess, dry_run, workers, config, progress, registry
        As for ``virtualize``; so are ``on_late`` and what follows it, and ``authorize_virtual_chunk_access``.
    options
        The options of ``virtualize`` that say how files are opened and joined, such as ``concat_dim`` or
        ``drop_variables``; by default as the group was made.

    Raises
    ------
    InvalidInputError
        ``invalid-argument``: nothing is recorded, and ``sources`` or ``concat_dim`` is missing; or the group was made
        with an option that a catalog does not hold, such as ``preprocess``. And as ``virtualize``.
    RepositoryNotFoundError, NodeNotFoundError, StorageError, ConflictError
        As ``virtualize``.
    """
    policy = Policy(on_late, on_changed, on_duplicate, on_misfit, on_broken, missing, prefer, on_dropped)
    with opened(repository, config, authorize_virtual_chunk_access, False) as found:
        making = _read_making(found, branch, check_path(group or ""))
        parsing, fitting = _as_made(making, options, preprocess)
        ingestion = Ingestion(
            fitting,
            True,
            check_path(group or ""),
            branch,
            message,
            policy.lenient() if dry_run else policy,
            workers,
            progress,
            registry,
            dry_run=dry_run,
        )
        directory = catalog_directory(found)
        given = record_sources(sources, directory) if sources is not None else list(making.get("sources", ()))
        ingestion = changed_in(ingestion, making=describe_making(parsing, fitting, given))
        return ingestion.run(_recorded_inputs(given, found, branch) if sources is None else sources, found, parsing)


def replace(
    repository: str | os.PathLike[str] | StorageConfig | Repository,
    files: Sources,
    *,
    replaces: Source | None = None,
    group: str | None = None,
    branch: str = "main",
    message: str | None = None,
    preprocess: Callable[[xr.Dataset], xr.Dataset] | None = None,
    dry_run: bool = False,
    workers: int | None = None,
    config: RepositoryConfig | None = None,
    authorize_virtual_chunk_access: Access | None = None,
    progress: Progress | None = None,
    registry: Any = None,
    **options: Any,
) -> VirtualizeSummary:
    """Put files in the place of what a group has, in one snapshot: the same files, reprocessed, or others.

    Coordinates, and variables without the dimension that are in the old file, come from the new one too. It may have
    more or fewer steps; no other source is opened.

    >>> icelite.replace("ocean.icelite", "data/day17_v2.nc")  # doctest: +SKIP
    <icelite.VirtualizeSummary snapshot_id='GA2KEJB5K1JM6XMVAE20' added=0, replaced=1, known=0, broken=0, ...>

    Parameters
    ----------
    files
        A file that the group has takes its own place, another one that of the file with the same steps.
    replaces
        The file whose place a single new one takes, if that has other steps.
    repository, group, branch, message, preprocess, dry_run, workers, config, progress, registry, options
        As for `icelite.update`, and ``authorize_virtual_chunk_access`` too.

    Raises
    ------
    InvalidInputError
        ``invalid-argument``: a file replaces nothing; ``invalid-dataset``: it does not fit; and as ``update``.
    RepositoryNotFoundError, NodeNotFoundError, StorageError, ConflictError
        As ``update``.
    """
    with opened(repository, config, authorize_virtual_chunk_access, False) as found:
        making = _read_making(found, branch, check_path(group or ""))
        parsing, fitting = _as_made(making, options, preprocess)
        urls = _list(files, found, branch)
        if replaces is not None and len(urls) != 1:
            raise InvalidInputError(
                f"replaces= goes with one file, not {len(urls)}: call replace for each", ErrorKind.INVALID_ARGUMENT
            )
        ingestion = Ingestion(
            fitting,
            True,
            check_path(group or ""),
            branch,
            message,
            Policy(changed="replace", duplicate="newest", prefer=lambda url: url in urls),
            workers,
            progress,
            registry,
            making=making,
            dry_run=dry_run,
            replacing=True,
            replaces=None if replaces is None else url_of(replaces),
        )
        return ingestion.run(urls, found, parsing)


def url_of(source: Source) -> str:
    """The URL that references name a file with, which need not be there any more."""
    text = os.fspath(source)
    if "://" in text:
        return text
    return f"file://{os.path.abspath(os.path.expanduser(text))}"


def catalog_directory(repository: Repository) -> str | None:
    """The directory of a local catalog, whose files are relative to it."""
    catalog = repository.storage.path
    return None if catalog is None else os.path.dirname(os.path.abspath(catalog))


def _list(sources: Sources, repository: Repository, branch: str) -> list[str]:
    catalog = repository.storage.path
    session = repository.writable_session(branch)
    return list_inputs(sources, session.access, None if catalog is None else str(catalog))


def _read_making(repository: Repository, branch: str, group: str) -> dict[str, Any]:
    recorded: Recorded = read_records(repository, repository.writable_session(branch), group)
    return recorded.making


def _as_made(
    making: Mapping[str, Any], options: Mapping[str, Any], preprocess: Callable[[xr.Dataset], xr.Dataset] | None
) -> tuple[Parsing, Fitting | None]:
    """How files are opened and joined: as the group was made, but for what the caller gives."""
    unknown = sorted(options.keys() - {*_PARSING, *_FITTING})
    if unknown:
        raise InvalidInputError(
            f"there is no option {', '.join(unknown)}; expected some of {', '.join((*_PARSING, *_FITTING))}",
            ErrorKind.INVALID_ARGUMENT,
        )
    given = {*options, *(["preprocess"] if preprocess is not None else [])}
    lacking = [name for name in making.get("given", ()) if name not in given and name != "group"]
    if lacking:
        raise InvalidInputError(
            f"the group was made with {'=, '.join(lacking)}=, which a catalog does not hold: pass"
            f" {'it' if len(lacking) == 1 else 'them'} again, in Python",
            ErrorKind.INVALID_ARGUMENT,
        )
    recorded = dict(making.get("options", {}))
    known = {"source_group": recorded.pop("group", None), **recorded}
    asked = {name: options.get(name, known.get(name)) for name in _PARSING}
    usual = {"parser": "auto", "on_unreferenceable": "copy", "on_unreadable": "skip"}
    asked = {name: usual.get(name) if value is None else value for name, value in asked.items()}
    for name in ("loadable_variables", "drop_variables"):
        asked[name] = None if asked[name] is None else list(asked[name])
    asked["group"] = asked.pop("source_group")
    joined = {name: options.get(name, making.get(name)) for name in _FITTING}
    if joined["concat_dim"] is None:
        raise InvalidInputError(
            "the group does not say along which dimension its files are joined: pass concat_dim=",
            ErrorKind.INVALID_ARGUMENT,
        )
    fitting = make_fitting(joined["concat_dim"], joined["compat"] or "equals", joined["stack"])
    return Parsing(options=asked, preprocess=preprocess), fitting


def _recorded_inputs(recorded: list[str], repository: Repository, branch: str) -> list[str]:
    """The sources that a catalog names, if they may be opened without being asked for."""
    directory = catalog_directory(repository)
    patterns = []
    for text in recorded:
        inside = directory is not None and not os.path.isabs(text) and is_under(os.path.normpath(f"/{text}"), "/")
        if "://" in text and not text.startswith("file://"):
            patterns.append(text)
        elif inside and ".." not in text.split("/"):
            patterns.append(f"{directory}/{text}")
        else:
            raise _not_asked(text)
    if not patterns:
        raise InvalidInputError(
            "the group does not say which files it is made of: name them (sources=)", ErrorKind.INVALID_ARGUMENT
        )
    urls = _list(patterns, repository, branch)
    for url in urls:
        if url.startswith("file://") and not is_under(
            os.path.realpath(url.removeprefix("file://")), os.path.realpath(str(directory))
        ):
            raise _not_asked(url)
    return urls


def _not_asked(source: str) -> InvalidInputError:
    return InvalidInputError(
        f"the group was made of {source!r}, which is not below the catalog's directory, and a catalog does not decide"
        " what is opened elsewhere: name the files (sources=)",
        ErrorKind.INVALID_ARGUMENT,
    )
