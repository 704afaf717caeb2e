"""`virtualize`: archival files into a repository, in one call.

The files are found, scanned, combined, written and committed. Everything is in one session and one snapshot: an error
on the way leaves the repository as it was, and a catalog that was made for the call is removed again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal, TypeAlias, cast

import xarray as xr

from icelite.archive.filling import Filling
from icelite.archive.findings import Policy, Prefer
from icelite.archive.fit import COMPATS, Compat, Fitting
from icelite.archive.ingestion import Ingestion
from icelite.archive.inputs import Sources, record_sources
from icelite.archive.scan import Parsing
from icelite.archive.summary import VirtualizeSummary
from icelite.config import RepositoryConfig, VirtualChunkContainer, longest_covering, normalize_prefix
from icelite.credentials import AnyCredential
from icelite.errors import ErrorKind, InvalidInputError
from icelite.interrupts import heard_interrupts
from icelite.keys import check_path
from icelite.repository import Repository
from icelite.repository.opening import open_or_make
from icelite.storage import StorageConfig, as_storage
from icelite.types import Progress

__all__ = ["VirtualizeSummary", "virtualize"]

Access: TypeAlias = Mapping[str, AnyCredential | None]


def virtualize(
    sources: Sources,
    repository: str | os.PathLike[str] | StorageConfig | Repository,
    *,
    concat_dim: str | None = None,
    parser: Any = "auto",
    append: bool | None = None,
    group: str | None = None,
    branch: str = "main",
    message: str | None = None,
    source_group: str | None = None,
    loadable_variables: Iterable[str] | None = None,
    drop_variables: Iterable[str] | None = None,
    decode_times: bool | None = None,
    compat: Compat = "equals",
    stack: Iterable[str] | None = None,
    preprocess: Callable[[xr.Dataset], xr.Dataset] | None = None,
    on_late: Literal["raise", "insert", "skip"] = "raise",
    on_changed: Literal["raise", "replace", "skip"] = "raise",
    on_duplicate: Literal["raise", "newest", "skip"] = "raise",
    on_misfit: Literal["raise", "skip"] = "raise",
    on_broken: Literal["raise", "skip"] = "raise",
    on_dropped: Literal["skip", "insert"] = "skip",
    skip_broken: bool = False,
    prefer: Prefer | None = None,
    missing: Literal["raise", "fill"] = "raise",
    dry_run: bool = False,
    region: Literal["auto"] | None = None,
    workers: int | None = None,
    on_unreferenceable: Literal["copy", "raise"] = "copy",
    on_unreadable: Literal["skip", "raise"] = "skip",
    config: RepositoryConfig | None = None,
    authorize_virtual_chunk_access: Access | None = None,
    progress: Progress | None = None,
    registry: Any = None,
) -> VirtualizeSummary:
    """Reference files from a repository, as one dataset, and commit that as one snapshot.

    Run it again with more files, such as the same glob a month later, and only the new ones are scanned and appended.
    What is wrong with any file is found before anything is written, and told of all files at once; ``on_late`` and what
    follows it say what to do instead. `icelite.update` is this call as it may run every night.

    >>> icelite.virtualize("data/*.nc", "ocean.icelite", concat_dim="time")  # doctest: +SKIP
    <icelite.VirtualizeSummary snapshot_id='B5MB4D12XBG5PXQZBPGG' added=31, known=0, broken=0, references=124, copied=0>

    Parameters
    ----------
    sources
        Paths, globs, ``s3://`` URLs (also with ``*``), one or several. A directory that is a Zarr store is one source.
    repository
        The catalog's path, made if there is none; or an open repository.
    concat_dim
        Dimension along which the files follow each other, which may be new. Their order is that of its coordinate, or
        that of their names where it is not loaded. None: one file, or files with different variables.
    parser
        ``"auto"``: by each file's content; or as for `icelite.formats.open_virtual`.
    append
        True: the group must exist; False: it must not; None: append if it exists.
    group
        Path of the group to write; the root by default.
    message
        Of the commit; by default it says what was added.
    source_group
        The group to read in each file.
    loadable_variables, drop_variables, decode_times, on_unreferenceable, on_unreadable
        As for ``open_virtual``. By default coordinates of dimensions are loaded and compared.
    compat
        As `xarray.concat` has it, for variables without ``concat_dim``, which are stored once: ``"equals"`` compares
        their values in all files and with what is stored, ``"identical"`` their attributes too, ``"override"`` takes
        those of the first file.
    stack
        Variables without ``concat_dim`` that get it, such as the time of each model run: every file's value is kept.
    preprocess
        Called with each file's dataset before they are combined; its ``encoding["source"]`` is the URL.
    on_late
        Of files that belong before or between others: ``"insert"`` puts them there; references behind them get other
        grid positions, and no data is written.
    on_changed
        Of files that are not as they were when they were added: ``"replace"`` takes their new state, also if they grew.
    on_duplicate
        Of files with the same steps as another: ``"newest"`` keeps the newest, ``"skip"`` the one that is there.
    on_misfit
        Of files that do not fit the others, or overlap them: ``"skip"`` leaves them out.
    on_broken
        Of files that cannot be parsed: ``"skip"`` leaves them out; ``skip_broken=True`` is the same.
    on_dropped
        Of files that `icelite.drop` took out, and that did not change since: ``"insert"`` has them again.
    prefer
        Which of files with the same steps is the newest: patterns of names, the best first, or a function that gives
        the greatest value for the URL of the best one. By default the modification time says it, then the name.
    missing
        ``"fill"`` adds files that lack a referenced variable which has a fill value; it is missing there.
    dry_run
        Write nothing, and raise nothing that is about a single file: the summary says what would be done.
    region
        ``"auto"``: write the files to the steps of the group that have their labels, in any order, as many processes as
        like at once; `icelite.template` makes such a group.
    workers
        Processes that scan; 1 for this one only. By default one for each CPU, from 64 files on.
    config, authorize_virtual_chunk_access
        As for `Repository.open`, when a path is given. A bucket that is authorised needs no container in ``config``.
    progress
        Called with the number of files that were scanned and of all that are new.
    registry
        An obstore registry to read sources with, instead of one made from what is authorised.

    Raises
    ------
    InvalidInputError
        ``invalid-argument``: nothing matches; ``unknown-format`` and others of ``open_virtual`` for a broken file;
        ``invalid-dataset``: files that do not fit each other or what is stored, or come late, or overlap, naming all;
        ``unauthorized-virtual-chunk-container``: a bucket without credentials.
    StorageError
        ``unreadable-source``; ``virtual-chunk-modified`` for a file of the repository that changed since it was added.
    NodeNotFoundError, AlreadyExistsError
        ``node-not-found`` with ``append=True``; ``node-already-exists`` with ``append=False`` or no ``concat_dim``.
    ConflictError, RebaseFailedError
        Somebody else wrote to the same group meanwhile: run it again.
    """
    on_broken = "skip" if skip_broken else on_broken
    policy = Policy(on_late, on_changed, on_duplicate, on_misfit, on_broken, missing, prefer, on_dropped)
    parsing = Parsing(
        options={
            "parser": parser,
            "group": source_group,
            "loadable_variables": None if loadable_variables is None else list(loadable_variables),
            "drop_variables": None if drop_variables is None else list(drop_variables),
            "decode_times": decode_times,
            "on_unreferenceable": on_unreferenceable,
            "on_unreadable": on_unreadable,
        },
        preprocess=preprocess,
    )
    fitting = make_fitting(concat_dim, compat, stack)
    policy = policy.lenient() if dry_run else policy
    path = check_path(group or "")
    if region is not None:
        given: object = region
        if given != "auto" or fitting is None or append is not None:
            raise InvalidInputError(
                f"region must be 'auto', not {region!r}, with a concat_dim= and without append=",
                ErrorKind.INVALID_ARGUMENT,
            )
        filling = Filling(fitting, path, branch, message, policy, workers, progress, registry, dry_run)
        with opened(repository, config, authorize_virtual_chunk_access, False, dry_run) as found:
            return filling.run(sources, found, parsing)
    ingestion = Ingestion(
        fitting,
        append,
        path,
        branch,
        message,
        policy,
        workers,
        progress,
        registry,
        dry_run=dry_run,
    )
    with opened(repository, config, authorize_virtual_chunk_access, append is not True, dry_run) as found:
        catalog = found.storage.path
        directory = None if catalog is None else os.path.dirname(os.path.abspath(catalog))
        making = describe_making(parsing, ingestion.fitting, record_sources(sources, directory))
        return replace(ingestion, making=making).run(sources, found, parsing)


@contextmanager
def opened(
    repository: str | os.PathLike[str] | StorageConfig | Repository,
    config: RepositoryConfig | None,
    access: Access | None,
    create: bool,
    dry_run: bool = False,
) -> Iterator[Repository]:
    """The repository that a call is about, made if there is none; in a dry run none is made.

    Raises
    ------
    InvalidInputError
        ``invalid-argument``: ``config`` or ``access`` beside an open repository.
    RepositoryNotFoundError, FormatError, StorageError
        As `Repository.open`.
    """
    if isinstance(repository, Repository):
        if config is not None or access is not None:
            raise InvalidInputError(
                "config and authorize_virtual_chunk_access go with a path: an open repository has its own"
                " (Repository.reopen gives one with others)",
                ErrorKind.INVALID_ARGUMENT,
            )
        with heard_interrupts():
            yield repository
        return
    storage = as_storage(repository)
    config = _with_containers(config, access)
    if dry_run and create and not Repository.exists(storage):
        storage = StorageConfig.memory()
    with heard_interrupts(), open_or_make(storage, config, access, create=create) as found:
        yield found


def describe_making(parsing: Parsing, fitting: Fitting | None, sources: list[str]) -> dict[str, Any]:
    """How a group is made, as its snapshots record it for `icelite.update`."""
    usual = {"parser": "auto", "on_unreferenceable": "copy", "on_unreadable": "skip"}
    options = {name: value for name, value in parsing.options.items() if value is not None and usual.get(name) != value}
    making: dict[str, Any] = {"sources": sources, "options": {n: v for n, v in options.items() if _is_plain(v)}}
    given = [name for name, value in options.items() if not _is_plain(value)]
    given += ["preprocess"] if parsing.preprocess is not None else []
    if fitting is not None:
        making |= {"concat_dim": fitting.concat_dim, "compat": fitting.compat, "stack": sorted(fitting.stack)}
    return {**making, "given": given} if given else making


def _is_plain(value: object) -> bool:
    return isinstance(value, str | bool) or (isinstance(value, list) and all(isinstance(item, str) for item in value))


def make_fitting(concat_dim: str | None, compat: str, stack: Iterable[str] | None) -> Fitting | None:
    """How files are to be combined.

    Raises
    ------
    InvalidInputError
        ``invalid-argument``.
    """
    stacked = frozenset((stack,) if isinstance(stack, str) else stack or ())
    if compat not in COMPATS:
        raise InvalidInputError(
            f"compat must be one of {', '.join(map(repr, COMPATS))}, not {compat!r}", ErrorKind.INVALID_ARGUMENT
        )
    if concat_dim is None:
        if stacked:
            raise InvalidInputError(
                f"stack={sorted(stacked)} needs concat_dim=, the dimension to stack along", ErrorKind.INVALID_ARGUMENT
            )
        return None
    return Fitting(concat_dim, cast(Compat, compat), stacked)


def _with_containers(config: RepositoryConfig | None, access: Access | None) -> RepositoryConfig | None:
    """The configuration with a container for whatever the caller authorised: who does that means to refer to it."""
    declared = (config.virtual_chunk_containers if config is not None else None) or {}
    prefixes = [normalize_prefix(prefix) for prefix in access or {} if not prefix.startswith("file://")]
    missing = [prefix for prefix in prefixes if longest_covering(declared, prefix) is None]
    if not missing:
        return config
    extended = RepositoryConfig(virtual_chunk_containers=declared)
    for prefix in missing:
        extended.set_virtual_chunk_container(VirtualChunkContainer(prefix))
    return extended if config is None else extended.merge(config)
