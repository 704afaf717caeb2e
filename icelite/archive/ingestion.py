"""One call of `virtualize`, step by step: from names of files to a snapshot.

Files are found, those that the group holds already are set apart, the new ones scanned, compared with each other and
with what is stored, combined, written and committed.
"""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass, field, replace
from typing import Any

import xarray as xr

from icelite.archive.fit import (
    Fitting,
    Misfit,
    combine_files,
    describe_range,
    find_values,
    order_files,
    refuse,
)
from icelite.archive.holdings import (
    METADATA,
    Holdings,
    StoredVariables,
    find_holdings,
    open_stored,
    record_of,
    split_known,
)
from icelite.archive.inputs import Sources, list_inputs, name_of
from icelite.archive.layouts import fit_stored
from icelite.archive.reach import reach_of
from icelite.archive.scan import COPIED, Parsing, ScannedFile, scan_files
from icelite.conflicts import ConflictDetector
from icelite.errors import (
    AlreadyExistsError,
    ConflictError,
    ErrorKind,
    IceliteError,
    InvalidInputError,
    NodeNotFoundError,
)
from icelite.repository import Repository
from icelite.session import Session
from icelite.types import Progress
from icelite.virtualizarr.arrays import is_virtual
from icelite.virtualizarr.sources import SOURCES_KEY
from icelite.virtualizarr.target import find_group
from icelite.virtualizarr.writing import to_icelite

_VERSIONS = ("icelite", "virtualizarr", "xarray", "zarr")


@dataclass(frozen=True, slots=True)
class VirtualizeSummary:
    """What a call of `virtualize` did.

    Attributes
    ----------
    snapshot_id
        The new snapshot; None when nothing was new.
    added
        URLs of the files that the snapshot adds, in their order along the dimension.
    known
        URLs of those that the repository held already.
    broken
        URLs of those that were left out, each with the reason.
    references, copied
        Chunks that the snapshot refers to; variables that it holds copies of, because they cannot be referred to.
    """

    snapshot_id: str | None
    added: list[str] = field(default_factory=list)
    known: list[str] = field(default_factory=list)
    broken: dict[str, str] = field(default_factory=dict)
    references: int = 0
    copied: int = 0

    def __str__(self) -> str:
        if self.snapshot_id is None:
            lines = [f"nothing new: {_files(len(self.known))} known"]
        else:
            lines = [f"{self.snapshot_id}: {_files(len(self.added))} added, {self.references} references"]
            lines += [f"{_count(self.copied, 'variable')} copied"] if self.copied else []
            lines += [f"{_files(len(self.known))} known before"] if self.known else []
        lines += [f"left out {url}: {problem}" for url, problem in self.broken.items()]
        return "\n".join(lines)

    def __repr__(self) -> str:
        counts = f"added={len(self.added)}, known={len(self.known)}, broken={len(self.broken)}"
        return (
            f"<icelite.VirtualizeSummary snapshot_id={self.snapshot_id!r} {counts}, references={self.references},"
            f" copied={self.copied}>"
        )


@dataclass(frozen=True, slots=True)
class Ingestion:
    """One call of `virtualize`; the fields are its parameters."""

    fitting: Fitting | None
    append: bool | None
    group: str
    branch: str
    message: str | None
    skip_broken: bool
    workers: int | None
    progress: Progress | None
    registry: Any

    def run(self, sources: Sources, repository: Repository, parsing: Parsing) -> VirtualizeSummary:
        """Do it all; raises as `virtualize`."""
        session = repository.writable_session(self.branch)
        catalog = repository.storage.path
        urls = list_inputs(sources, session.access, None if catalog is None else str(catalog))
        reach = reach_of(urls, session.access, self.registry)
        holdings = find_holdings(repository, session, self.group)
        self._check_group(holdings)
        new, known = split_known(urls, session, holdings)
        if not new:
            return VirtualizeSummary(None, known=known)
        if holdings.arrays and self.fitting is None:
            raise AlreadyExistsError(
                f"group {self.group!r} already holds {', '.join(holdings.arrays)}: pass concat_dim= to append"
                f" {name_of(new[0])!r} along a dimension, or choose another group=",
                ErrorKind.NODE_ALREADY_EXISTS,
            )
        parsing = replace(parsing, reach=reach, **self._wanted())
        files, broken = self._scan(new, parsing)
        if not files:
            return VirtualizeSummary(None, known=known, broken=broken)
        ordered, combined = self._combine(session, holdings, files, parsing)
        self._write(session, holdings, ordered, combined)
        references = sum(_count_references(variable) for variable in combined.variables.values())
        added = [file.url for file in ordered]
        copied = len(combined.encoding.get(COPIED) or {})
        summary = VirtualizeSummary(None, added, known, broken, references, copied)
        return self._commit(session, files, combined, summary)

    def _wanted(self) -> dict[str, Any]:
        """What scanning has to find out, besides what is in each file."""
        if self.fitting is None:
            return {}
        return {"concat_dim": self.fitting.concat_dim, "hashed": self.fitting.compat != "override"}

    def _check_group(self, holdings: Holdings) -> None:
        if self.append is True and not holdings.arrays:
            raise NodeNotFoundError(
                f"append=True, but group {self.group!r} of branch {self.branch!r} holds no array: leave append out to"
                " write the first part",
                ErrorKind.NODE_NOT_FOUND,
            )
        if self.append is False and holdings.arrays:
            raise AlreadyExistsError(
                f"append=False, but group {self.group!r} of branch {self.branch!r} already holds"
                f" {', '.join(holdings.arrays)}: choose another group=, or leave append out",
                ErrorKind.NODE_ALREADY_EXISTS,
            )

    def _scan(self, urls: list[str], parsing: Parsing) -> tuple[list[ScannedFile], dict[str, str]]:
        scanned = scan_files(urls, parsing, workers=self.workers, skip_broken=self.skip_broken, progress=self.progress)
        problems = [found.problem for found in scanned if found.problem is not None]
        if len(problems) == len(scanned):
            raise problems[0] if len(problems) == 1 else _all_broken(problems)
        broken = {found.url: found.problem.message for found in scanned if found.problem is not None}
        return [found.file for found in scanned if found.file is not None], broken

    def _combine(
        self, session: Session, holdings: Holdings, files: list[ScannedFile], parsing: Parsing
    ) -> tuple[list[ScannedFile], xr.Dataset]:
        """The files in order, and one dataset of them, as it can be written."""
        fetch = parsing.reach.fetch
        if self.fitting is None:
            return files, combine_files(files, None, fetch)
        _check_source_group(files[0], self.fitting, parsing)
        ordered, misfits = order_files(files, self.fitting.concat_dim)
        if not holdings.arrays:
            refuse(misfits, "the others")
            return ordered, combine_files(ordered, self.fitting, fetch)
        stored = self._open_stored(session, holdings, self.fitting.concat_dim)
        stacked = stored.find_stacked(ordered[0].dataset, self.fitting.concat_dim)
        fitting = replace(self.fitting, stack=self.fitting.stack | stacked)
        misfits += [misfit for file in ordered for misfit in stored.find_misfits(file, fitting, fetch)]
        misfits += [] if misfits else stored.find_disorder(ordered, self.fitting.concat_dim)
        refuse(misfits, "what is stored")
        combined = combine_files(ordered, fitting, fetch)
        combined = fit_stored(combined, stored.arrays, self.fitting.concat_dim).copy()
        combined.attrs = {}  # those of the first file stay
        return ordered, combined

    def _open_stored(self, session: Session, holdings: Holdings, dim: str) -> StoredVariables:
        found = find_group(session.store, self.group)
        arrays = found.arrays if found is not None else {}
        along = {name for name, array in arrays.items() if dim in (array.dimension_names or ())}
        dataset = open_stored(session.store, self.group, along | {dim}, arrays)
        return StoredVariables(session.store, self.group, dataset, arrays, holdings.hashes)

    def _write(self, session: Session, holdings: Holdings, files: list[ScannedFile], combined: xr.Dataset) -> None:
        appending = bool(holdings.arrays)
        try:
            to_icelite(
                combined,
                session.store,
                group=self.group or None,
                append_dim=self.fitting.concat_dim if appending and self.fitting is not None else None,
            )
        except IceliteError as error:
            if appending:
                error.message += f" (while appending {name_of(files[0].url)!r} and what follows it)"
            raise

    def _commit(
        self, session: Session, files: list[ScannedFile], combined: xr.Dataset, summary: VirtualizeSummary
    ) -> VirtualizeSummary:
        dim = None if self.fitting is None else self.fitting.concat_dim
        values = None if dim is None else find_values(combined, dim)
        span = "" if values is None else describe_range(values[0], values[-1])
        record = {
            "group": self.group,
            "count": len(summary.added),
            "first": name_of(summary.added[0]),
            "last": name_of(summary.added[-1]),
            "references": summary.references,
            "copied": summary.copied,
            "versions": {name: importlib.metadata.version(name) for name in _VERSIONS if _is_installed(name)},
        }
        record |= {"concat_dim": dim, "along": span} if dim is not None else {}
        record |= {"shared": files[0].hashes} if files[0].hashes else {}
        record |= {"left_out": [name_of(url) for url in summary.broken]} if summary.broken else {}
        record |= {"other_sources": others} if (others := _other_sources(session, files, combined)) else {}
        message = self.message or self._describe(summary.added, dim, span)
        try:
            snapshot_id = session.commit(message, {METADATA: record}, rebase_with=ConflictDetector())
        except ConflictError as error:
            error.message = (
                f"somebody else committed to group {self.group!r} of branch {self.branch!r} while"
                f" {_files(len(summary.added))} were scanned, so nothing was added: run it again, and what they added"
                f" is known ({error.message})"
            )
            raise
        return VirtualizeSummary(
            snapshot_id, summary.added, summary.known, summary.broken, summary.references, summary.copied
        )

    def _describe(self, urls: list[str], dim: str | None, span: str) -> str:
        """The commit message."""
        names = name_of(urls[0]) if len(urls) == 1 else f"{name_of(urls[0])} … {name_of(urls[-1])}"
        where = f" to {self.group}" if self.group else ""
        along = "" if dim is None else f" along {dim}" + (f": {span}" if span else "")
        return f"Add {_files(len(urls))}{where}{along} ({names})"


def _files(count: int) -> str:
    return _count(count, "file")


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _all_broken(problems: list[IceliteError]) -> IceliteError:
    return InvalidInputError(
        f"none of the {len(problems)} files can be used; the first: {problems[0].message}", problems[0].kind
    )


def _count_references(variable: xr.Variable) -> int:
    return sum(1 for _ in variable.data.manifest.iter_nonempty_paths()) if is_virtual(variable) else 0


def _check_source_group(file: ScannedFile, fitting: Fitting, parsing: Parsing) -> None:
    """Refuse to make a dimension new for a group that lacks it, when a group above it in the file has it."""
    group, dim = str(parsing.options.get("group") or "").strip("/"), fitting.concat_dim
    while group and dim not in file.dataset.dims and dim not in file.dataset.variables:
        from icelite.formats import open_virtual

        group = group.rpartition("/")[0]
        options = {**parsing.options, "group": group, "loadable_variables": [], "drop_variables": None}
        if dim in open_virtual(file.url, registry=parsing.reach.registry, **options).dims:
            problem = (
                f"its group {parsing.options['group']!r} has no dimension {dim!r}, and its group '/{group}' has; pass"
                " the source_group= that is to be joined along it, or another concat_dim="
            )
            refuse([Misfit(file.url, problem)], f"concat_dim={dim!r}")


def _other_sources(session: Session, files: list[ScannedFile], combined: xr.Dataset) -> dict[str, list[Any]]:
    """The sources that no reference names, so that they are known another time: location path to stamp."""
    named: set[str] = set()
    for variable in combined.variables.values():
        if is_virtual(variable):
            named.update(variable.data.manifest.iter_nonempty_paths())
    return {
        session.access.locate(file.url).path: record_of(file.dataset.encoding.get(SOURCES_KEY, {}).get(file.url))
        for file in files
        if file.url not in named
    }


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
