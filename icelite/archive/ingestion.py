"""One call of `virtualize`, step by step: from names of files to a snapshot.

Files are found, those that the group holds already are set apart, the new ones scanned, compared with each other or
with what is stored, written and committed. All that stands in the way is collected before anything is written.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import xarray as xr

from icelite.archive.continuation import Continuation, Written
from icelite.archive.extents import find_extents
from icelite.archive.findings import Findings, Misfit, Policy, refuse
from icelite.archive.fit import Fitting, align_files, combine_files, find_misfits
from icelite.archive.holdings import Holdings, SortedSources, find_holdings, sort_sources
from icelite.archive.inputs import Sources, keep_sources, list_inputs, name_of
from icelite.archive.labels import describe_range, find_values
from icelite.archive.layouts import fill_missing, prepare_growth
from icelite.archive.placing import Placement, StoredSteps, drop_empty, place_files
from icelite.archive.reach import reach_of
from icelite.archive.records import METADATA, Recorded
from icelite.archive.scan import COPIED, Parsing, ScannedFile, scan_files
from icelite.archive.splice import find_starts
from icelite.archive.summary import VirtualizeSummary, count_files
from icelite.conflicts import ConflictDetector
from icelite.errors import (
    AlreadyExistsError,
    ConflictError,
    ErrorKind,
    IceliteError,
    InvalidInputError,
    NodeNotFoundError,
    NotFoundError,
)
from icelite.repository import Repository
from icelite.session import Session
from icelite.types import Progress, SourceStamp
from icelite.virtualizarr.arrays import is_virtual
from icelite.virtualizarr.sources import SOURCES_KEY
from icelite.virtualizarr.target import find_group
from icelite.virtualizarr.writing import to_icelite

_VERSIONS = ("icelite", "virtualizarr", "xarray", "zarr")


@dataclass(frozen=True, slots=True)
class Ingestion:
    """One call of `virtualize`; the fields are its parameters.

    Attributes
    ----------
    making
        How the group is made, to be recorded.
    replacing
        Whether all files are to take the place of what is there.
    replaces
        The URL of the file that the only one is to replace, if it has another name.
    """

    fitting: Fitting | None
    append: bool | None
    group: str
    branch: str
    message: str | None
    policy: Policy
    workers: int | None
    progress: Progress | None
    registry: Any
    making: Mapping[str, Any] = field(default_factory=dict)
    dry_run: bool = False
    replacing: bool = False
    replaces: str | None = None

    def run(self, sources: Sources, repository: Repository, parsing: Parsing) -> VirtualizeSummary:
        """Do it all; raises as `virtualize`."""
        session = repository.writable_session(self.branch)
        catalog = repository.storage.path
        urls = list_inputs(sources, session.access, None if catalog is None else str(catalog))
        reach = reach_of(urls, session.access, self.registry)
        holdings = find_holdings(repository, session, self.group)
        self._check_group(holdings)
        findings = Findings(self.policy)
        found = sort_sources(urls, session, holdings)
        if self.policy.dropped == "insert":
            found = replace(found, new=[*found.new, *found.dropped], dropped=[])
        owners = self._find_owners(found, session, holdings, findings)
        wanted = [url for url in urls if url in owners or url in found.new]
        if holdings.arrays and self.fitting is None and set(wanted) - owners.keys():
            new = next(url for url in wanted if url not in owners)
            raise AlreadyExistsError(
                f"group {self.group!r} already holds {', '.join(holdings.arrays)}: pass concat_dim= to append"
                f" {name_of(new)!r} along a dimension, or choose another group=",
                ErrorKind.NODE_ALREADY_EXISTS,
            )
        parsing = replace(parsing, reach=reach, **self._wanted())
        files = self._scan(wanted, parsing, findings)
        if not files:
            findings.refuse()
            if findings.found and not holdings.arrays:
                raise _all_broken(findings)
            return self._summarise(None, found, findings, Written())
        if holdings.arrays and self.fitting is not None:
            fetch, dry = parsing.reach.fetch, self.dry_run
            written = Continuation(session, self.group, self.fitting, holdings, findings, fetch, owners, dry).run(files)
        else:
            written = self._begin(session, files, parsing, findings, again=bool(holdings.arrays))
        written.older = set(findings.left_out("duplicate"))
        if self.replacing:
            _check_replaced(files, written, findings)
        if self.dry_run or not written.placements:
            return self._summarise(None, found, findings, written)
        return self._commit(session, holdings, files, self._summarise("", found, findings, written), written)

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

    def _find_owners(
        self, found: SortedSources, session: Session, holdings: Holdings, findings: Findings
    ) -> dict[str, str]:
        """The files that take the place of stored steps, each with the URL of the file that has them."""
        if self.replacing:
            owners = {url: url for url in (*found.known, *found.changed)}
            if self.replaces is not None:
                path = session.access.locate(self.replaces).path
                if path not in holdings.referenced and path not in holdings.recorded.others:
                    raise NotFoundError(
                        f"group {self.group!r} holds nothing of {self.replaces!r}, which is to be replaced",
                        ErrorKind.LOCATION_NOT_FOUND,
                    )
                owners |= dict.fromkeys(found.new, self.replaces)
            found.known.clear()
            return owners
        if self.policy.changed == "replace":
            return {url: url for url in found.changed}
        for url, change in found.changed.items():
            findings.add("changed", url, f"is in the repository already, and changed since it was added: {change}")
        return {}

    def _scan(self, urls: Sequence[str], parsing: Parsing, findings: Findings) -> list[ScannedFile]:
        files = []
        for scanned in scan_files(urls, parsing, workers=self.workers, progress=self.progress) if urls else ():
            if scanned.problem is not None:
                findings.add("broken", scanned.url, scanned.problem.message, scanned.problem)
            if scanned.file is not None:
                files.append(scanned.file)
        return files

    # -- a group that holds nothing yet ----------------------------------------------------------------------------

    def _begin(
        self, session: Session, files: list[ScannedFile], parsing: Parsing, findings: Findings, *, again: bool
    ) -> Written:
        """Write the first files of a group; ``again`` writes over the only ones of a group without a dimension."""
        fetch = parsing.reach.fetch
        if self.fitting is None:
            findings.refuse()
            placed = [
                Placement(file, "changed" if again else "new", 0, None, file.url if again else None) for file in files
            ]
        else:
            _check_dimension(files[0], self.fitting.concat_dim)
            _check_source_group(files[0], self.fitting, parsing)
            files = drop_empty(files, self.fitting.concat_dim)
            findings.against = "the others"
            placed = place_files(files, self.fitting.concat_dim, StoredSteps(), findings)
            placed = self._fit(placed, self.fitting, parsing, findings)
            findings.refuse()
            if not placed:
                raise InvalidInputError("no file is left to begin with", ErrorKind.INVALID_DATASET)
        combined = combine_files([placement.file for placement in placed], self.fitting, fetch)
        combined = combined if self.fitting is None else prepare_growth(combined, self.fitting.concat_dim)
        if not self.dry_run:
            to_icelite(combined, session.store, group=self.group or None, mode="a" if again else None)
        return Written(placed, [combined])

    def _fit(self, placed: list[Placement], fitting: Fitting, parsing: Parsing, findings: Findings) -> list[Placement]:
        """The files that fit each other, as they can be written."""
        fetch, dim = parsing.reach.fetch, fitting.concat_dim
        while placed:
            files = [placement.file for placement in placed]
            if self.policy.missing == "fill":
                models = {str(n): v for f in files[::-1] for n, v in f.dataset.variables.items() if is_virtual(v)}
                models = {name: model for name, model in models.items() if dim in model.dims}
                files = [replace(file, dataset=fill_missing(file.dataset, models, dim)) for file in files]
            files = align_files(files, fitting, fetch)
            misfits, model = find_misfits(files, fitting, fetch)
            if not misfits:
                return [replace(placement, file=file) for placement, file in zip(placed, files, strict=True)]
            findings.against = repr(name_of(model))
            bad = findings.add_misfits(misfits)
            placed = [placement for placement in placed if placement.file.url not in bad]
        return placed

    # -- the outcome -----------------------------------------------------------------------------------------------

    def _summarise(
        self, snapshot_id: str | None, found: SortedSources, findings: Findings, written: Written
    ) -> VirtualizeSummary:
        placed = written.placements
        datasets = written.datasets or [one.file.dataset for one in placed]  # of a dry run
        return VirtualizeSummary(
            snapshot_id,
            added=[one.file.url for one in placed if one.role == "new"],
            known=found.known,
            broken=findings.left_out("broken"),
            references=sum(_count_references(v) for ds in datasets for v in ds.variables.values()),
            copied=len({name for dataset in datasets for name in dataset.encoding.get(COPIED) or {}}),
            inserted=[one.file.url for one in placed if one.role == "late"],
            replaced={one.file.url: one.replaced for one in placed if one.replaced is not None},
            late=findings.left_out("late"),
            changed=findings.left_out("changed"),
            duplicate=findings.left_out("duplicate"),
            misfit=findings.left_out("misfit"),
            dropped=found.dropped,
            cut=written.cut,
            dry_run=self.dry_run,
        )

    def _commit(
        self,
        session: Session,
        holdings: Holdings,
        files: Sequence[ScannedFile],
        summary: VirtualizeSummary,
        written: Written,
    ) -> VirtualizeSummary:
        placed = [placement.file.url for placement in written.placements]
        dim = None if self.fitting is None else self.fitting.concat_dim
        new = [placement for placement in written.placements if placement.role == "new"] or written.placements
        span = "" if dim is None else _describe_span([placement.file for placement in new], dim)
        recorded = self._record(session, holdings, files, written)
        record = {
            "group": self.group,
            "count": len(placed),
            "first": name_of(placed[0]),
            "last": name_of(placed[-1]),
            "references": summary.references,
            "copied": summary.copied,
            "versions": {name: importlib.metadata.version(name) for name in _VERSIONS if _is_installed(name)},
            **recorded.to_json(holdings.recorded),
        }
        record |= {"concat_dim": dim, "along": span} if dim is not None else {}
        record |= {"left_out": [name_of(url) for url in summary.left_out]} if summary.left_out else {}
        record |= {"inserted": [name_of(url) for url in summary.inserted]} if summary.inserted else {}
        record |= {"replaced": [name_of(url) for url in summary.replaced]} if summary.replaced else {}
        message = self.message or self._describe(summary, dim, span)
        snapshot_id = commit_record(session, message, record, self.group, count_files(len(placed)))
        return replace(summary, snapshot_id=snapshot_id)

    def _record(self, session: Session, holdings: Holdings, files: Sequence[ScannedFile], written: Written) -> Recorded:
        """What a later call has to know, and references do not say."""
        before = holdings.recorded
        paths = {file.url: session.access.locate(file.url).path for file in files}
        gone = {session.access.locate(one.replaced).path for one in written.placements if one.replaced is not None}
        shown, margins = self._find_margins(session, written, paths)
        stamps = {file.url: file.dataset.encoding.get(SOURCES_KEY, {}).get(file.url) for file in files}
        taken = {one.file.url for one in written.placements}
        empty = {file.url for file in files if self.fitting and not file.dataset.sizes.get(self.fitting.concat_dim, 1)}
        others = {
            paths[url]: stamps[url] or SourceStamp()
            for url in paths
            if url in taken | empty and paths[url] not in shown
        }
        sources = keep_sources(before.making.get("sources", ()), self.making.get("sources", ()))
        hashes = before.hashes or (files[0].hashes if not holdings.arrays else {})
        return Recorded(
            others={**{path: stamp for path, stamp in before.others.items() if path not in gone}, **others},
            dropped={
                **{path: stamp for path, stamp in before.dropped.items() if path not in paths.values()},
                **self._superseded(session, holdings, files, written),
            },
            margins={**{path: margin for path, margin in before.margins.items() if path not in gone}, **margins},
            hashes=hashes,
            making={**before.making, **self.making, "sources": sources},
            certain=before.certain or not holdings.arrays,
        )

    def _superseded(
        self, session: Session, holdings: Holdings, files: Sequence[ScannedFile], written: Written
    ) -> dict[str, SourceStamp]:
        """Files of whose steps there is something newer, which need not be looked at again: path to stamp."""
        taken = {placement.file.url for placement in written.placements}
        found: dict[str, SourceStamp] = {}
        for placement in written.placements:
            if placement.replaced is not None and placement.replaced not in taken:
                path = session.access.locate(placement.replaced).path
                found.update((path, stamp) for stamp in holdings.stamps(path)[:1])
        older = written.older if self.policy.duplicate == "newest" and self.policy.prefer is None else set()
        for file in files:
            stamp = file.dataset.encoding.get(SOURCES_KEY, {}).get(file.url)
            if file.url in older and stamp is not None:
                found[session.access.locate(file.url).path] = stamp
        return found

    def _find_margins(
        self, session: Session, written: Written, paths: Mapping[str, str]
    ) -> tuple[set[str], dict[str, tuple[int, int]]]:
        """The paths of files that any chunk is in; how those lie whose references do not show all their steps."""
        if self.fitting is None:
            named = {path for dataset in written.datasets for path in _named_paths(dataset)}
            return {path for url, path in paths.items() if url in named}, {}
        dim, group = self.fitting.concat_dim, find_group(session.store, self.group)
        shown = find_extents(session, self.group, group.arrays if group is not None else {}, dim)
        removed = [one.removed for one in written.placements if one.removed is not None]
        inserted = [(one.at, one.file.dataset.sizes.get(dim, 1)) for one in written.placements]
        margins = {}
        for placement, start, (_, count) in zip(
            written.placements, find_starts(removed, inserted), inserted, strict=True
        ):
            path = paths[placement.file.url]
            if path in shown and shown[path] != (start, start + count):
                margins[path] = shown[path][0] - start, count
        return set(shown), margins

    def _describe(self, summary: VirtualizeSummary, dim: str | None, span: str) -> str:
        """The commit message."""
        parts: list[str] = []
        for verb, urls in (
            ("add", summary.added),
            ("insert", summary.inserted),
            ("replace", list(summary.replaced)),
        ):
            if urls:
                names = name_of(urls[0]) if len(urls) == 1 else f"{name_of(urls[0])} … {name_of(urls[-1])}"
                where = f" to {self.group}" if self.group and not parts else ""
                along = "" if dim is None or parts else f" along {dim}" + (f": {span}" if span else "")
                parts.append(f"{verb} {count_files(len(urls))}{where}{along} ({names})")
        text = "; ".join(parts)
        return text[:1].upper() + text[1:]


def commit_record(session: Session, message: str, record: Mapping[str, Any], group: str, what: str) -> str:
    """Commit what one call did to a group; the id of the snapshot.

    Raises
    ------
    ConflictError
        ``commit-conflict``, ``rebase-failed``: somebody else wrote to the same group.
    """
    try:
        return session.commit(message, {METADATA: dict(record)}, rebase_with=ConflictDetector())
    except ConflictError as error:
        error.message = (
            f"somebody else committed to group {group!r} of branch {session.branch!r} while {what} were scanned, so"
            f" nothing was added: run it again, and what they added is known ({error.message})"
        )
        raise


def _describe_span(files: Sequence[ScannedFile], dim: str) -> str:
    first, last = (find_values(files[at].dataset, dim) for at in (0, -1))
    return "" if first is None or last is None else describe_range(first[0], last[-1])


def _all_broken(findings: Findings) -> IceliteError:
    problems = [finding.error for finding in findings.found if finding.error is not None]
    if len(problems) == 1:
        return problems[0]
    return InvalidInputError(
        f"none of the {len(problems)} files can be used; the first: {problems[0].message}", problems[0].kind
    )


def _check_replaced(files: Sequence[ScannedFile], written: Written, findings: Findings) -> None:
    """Check that each file took the place of something."""
    replaced = {one.file.url for one in written.placements if one.replaced is not None}
    for file in files:
        if file.url not in replaced:
            raise InvalidInputError(
                f"{file.url!r} replaces nothing: its steps are not those of a file that is there, and it has another"
                " name; name the file that it replaces (replaces=), or add it (icelite.virtualize)",
                ErrorKind.INVALID_ARGUMENT,
            )


def _count_references(variable: xr.Variable) -> int:
    return sum(1 for _ in variable.data.manifest.iter_nonempty_paths()) if is_virtual(variable) else 0


def _named_paths(dataset: xr.Dataset) -> set[str]:
    named: set[str] = set()
    for variable in dataset.variables.values():
        if is_virtual(variable):
            named.update(variable.data.manifest.iter_nonempty_paths())
    return named


def _check_dimension(file: ScannedFile, dim: str) -> None:
    """Refuse a new dimension that has the letters of one that is there."""
    meant = [str(other) for other in file.dataset.dims if sorted(str(other).lower()) == sorted(dim.lower())]
    if meant and dim not in {*file.dataset.dims, *file.dataset.variables}:
        dims = ", ".join(map(str, file.dataset.dims))
        problem = (
            f"it has no dimension {dim!r}, and {meant[0]!r} is like it; its dimensions are {dims}: pass one of them"
        )
        refuse([Misfit(file.url, problem)], f"concat_dim={dim!r}")


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


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
