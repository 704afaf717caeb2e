"""Files into the steps of a template, each where its labels are, in any order and from many processes.

Writers at the same time touch different chunks, so their commits follow one another. Who meets another one at the same
chunk begins again, and finds what that one wrote.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd  # type: ignore[import-untyped]

from icelite.archive.extents import Steps, find_extents, growing_arrays
from icelite.archive.findings import Findings, Policy
from icelite.archive.fit import Fitting, align_files, combine_files
from icelite.archive.holdings import SortedSources, StoredVariables, find_holdings, sort_sources
from icelite.archive.inputs import Sources, list_inputs, name_of
from icelite.archive.labels import describe_range, describe_value, find_values
from icelite.archive.layouts import fit_stored, with_fill_value
from icelite.archive.reach import reach_of
from icelite.archive.records import METADATA
from icelite.archive.scan import Parsing, ScannedFile, scan_files
from icelite.archive.summary import VirtualizeSummary, count_files
from icelite.conflicts import ConflictDetector
from icelite.errors import ConflictError, ErrorKind, NodeNotFoundError, RebaseFailedError
from icelite.repository import Repository
from icelite.session import Session
from icelite.store.references import MISSING, SHOWN
from icelite.types import Progress
from icelite.virtualizarr.arrays import is_virtual, read_references
from icelite.virtualizarr.target import find_group
from icelite.virtualizarr.writing import to_icelite

_ATTEMPTS = 100  # of a call that meets others at the same chunks


@dataclass(frozen=True, slots=True)
class Placed:
    """A file with the half-open steps that are its."""

    file: ScannedFile
    steps: Steps


@dataclass(frozen=True, slots=True)
class Filling:
    """One call of `virtualize` with ``region="auto"``; the fields are its parameters."""

    fitting: Fitting
    group: str
    branch: str
    message: str | None
    policy: Policy
    workers: int | None
    progress: Progress | None
    registry: Any
    dry_run: bool = False

    def run(self, sources: Sources, repository: Repository, parsing: Parsing) -> VirtualizeSummary:
        """Do it all; raises as `virtualize`."""
        for attempt in range(_ATTEMPTS):
            try:
                return self._try(sources, repository, parsing)
            except (ConflictError, RebaseFailedError):
                if attempt == _ATTEMPTS - 1:
                    raise
        raise AssertionError

    def _try(self, sources: Sources, repository: Repository, parsing: Parsing) -> VirtualizeSummary:
        dim = self.fitting.concat_dim
        session = repository.writable_session(self.branch)
        catalog = repository.storage.path
        urls = list_inputs(sources, session.access, None if catalog is None else str(catalog))
        reach = reach_of(urls, session.access, self.registry)
        parsing = replace(parsing, reach=reach, concat_dim=dim, hashed=self.fitting.compat != "override")
        group = find_group(session.store, self.group)
        arrays = {} if group is None else group.arrays
        if not growing_arrays(arrays, dim):
            raise NodeNotFoundError(
                f"group {self.group!r} of branch {self.branch!r} has nothing along {dim!r} to fill: make it first"
                " (icelite.template), or leave region out to append",
                ErrorKind.NODE_NOT_FOUND,
            )
        holdings = find_holdings(repository, session, self.group)
        extents = find_extents(session, self.group, arrays, dim)
        # the sample may be referenced for what lacks the dimension, and not be filled in
        holdings = replace(holdings, referenced={p: f for p, f in holdings.referenced.items() if p in extents})
        found = sort_sources(urls, session, holdings)
        findings = Findings(self.policy, "the template")
        files = self._scan([url for url in urls if url not in found.known], found, parsing, findings)
        stored = StoredVariables(session.store, self.group, arrays, holdings.recorded.hashes)
        placed = self._place(self._fit(files, stored, parsing, findings), stored, extents, session, findings)
        findings.refuse()
        if placed and not self.dry_run:
            for run in _runs(placed):
                self._write(session, run, parsing)
        return self._finish(session, holdings.recorded.to_json(holdings.recorded), placed, found, findings)

    def _scan(
        self, urls: Sequence[str], found: SortedSources, parsing: Parsing, findings: Findings
    ) -> list[ScannedFile]:
        files = []
        for url, change in found.changed.items():
            if self.policy.changed != "replace":
                findings.add("changed", url, f"is in the repository already, and changed since it was added: {change}")
        wanted = [url for url in urls if url not in found.changed or self.policy.changed == "replace"]
        for scanned in scan_files(wanted, parsing, workers=self.workers, progress=self.progress) if wanted else ():
            if scanned.problem is not None:
                findings.add("broken", scanned.url, scanned.problem.message, scanned.problem)
            if scanned.file is not None:
                files.append(scanned.file)
        return files

    def _fit(
        self, files: Sequence[ScannedFile], stored: StoredVariables, parsing: Parsing, findings: Findings
    ) -> Iterator[ScannedFile]:
        """The files that are like the sample, as they can be written."""
        fetch, dim = parsing.reach.fetch, self.fitting.concat_dim
        for file in files:
            fitting = replace(self.fitting, stack=self.fitting.stack | stored.find_stacked(file.dataset, dim))
            dataset = combine_files(align_files([file], fitting, fetch), fitting, fetch)
            dataset = with_fill_value(fit_stored(dataset, stored.arrays, dim), stored.arrays)
            ready = replace(file, dataset=dataset)
            if not findings.add_misfits(stored.find_misfits(ready, fitting, fetch)):
                yield ready

    def _place(
        self,
        files: Iterator[ScannedFile],
        stored: StoredVariables,
        extents: Mapping[str, Steps],
        session: Session,
        findings: Findings,
    ) -> list[Placed]:
        """The files with their steps, in the order of these."""
        dim = self.fitting.concat_dim
        labels = pd.Index(stored.find_labels(dim))
        placed: list[Placed] = []
        for file in files:
            steps = self._find_steps(file, labels, findings)
            if steps is None:
                continue
            path = session.access.locate(file.url).path
            others = [other for other, held in extents.items() if other != path and _overlap(held, steps)]
            others += [name_of(one.file.url) for one in placed if _overlap(one.steps, steps)]
            if others and self.policy.duplicate != "newest":
                span = describe_range(labels[steps[0]], labels[steps[1] - 1])
                findings.add("duplicate", file.url, f"has steps along {dim!r} ({span}) that are those of {others[0]!r}")
                continue
            placed = [one for one in placed if not _overlap(one.steps, steps)]
            placed.append(Placed(file, steps))
        return sorted(placed, key=lambda one: one.steps)

    def _find_steps(self, file: ScannedFile, labels: pd.Index, findings: Findings) -> Steps | None:
        dim = self.fitting.concat_dim
        values = find_values(file.dataset, dim)
        problem = None
        if values is None:
            problem = f"its coordinate {dim!r} is not loaded or has no order, so its steps cannot be found; load it"
        else:
            at = labels.get_indexer(values)
            absent = [describe_value(value) for value in np.asarray(values)[at < 0]]
            if absent:
                more = f" and {len(absent) - SHOWN} more" if len(absent) > SHOWN else ""
                span = describe_range(labels[0], labels[-1])
                problem = (
                    f"its {dim!r} {', '.join(absent[:SHOWN])}{more} is not among the {len(labels)} of the template"
                    f" ({span}); leave it out, or make a template that has it"
                )
            elif (np.diff(at) != 1).any():
                problem = f"its steps along {dim!r} do not follow one another in the template; write them apart"
        if problem is None:
            return int(at[0]), int(at[-1]) + 1
        findings.add("misfit", file.url, problem)
        return None

    def _write(self, session: Session, run: Sequence[Placed], parsing: Parsing) -> None:
        dim = self.fitting.concat_dim
        combined = combine_files([one.file for one in run], self.fitting, parsing.reach.fetch)
        along = combined.drop_vars([name for name, found in combined.variables.items() if dim not in found.dims])
        along.encoding = combined.encoding
        region = {dim: slice(run[0].steps[0], run[-1].steps[1])}
        to_icelite(along, session.store, group=self.group or None, region=region)

    def _finish(
        self,
        session: Session,
        recorded: Mapping[str, Any],
        placed: Sequence[Placed],
        found: SortedSources,
        findings: Findings,
    ) -> VirtualizeSummary:
        """Commit what was written, and say what was done."""
        added = [one.file.url for one in placed]
        variables = [found for one in placed for found in one.file.dataset.variables.values() if is_virtual(found)]
        references = sum(int((read_references(v.data).codes != MISSING).sum()) for v in variables)
        snapshot_id = None
        if placed and not self.dry_run:
            names = name_of(added[0]) if len(added) == 1 else f"{name_of(added[0])} … {name_of(added[-1])}"
            message = self.message or f"Fill {count_files(len(added))} into the template ({names})"
            record = {"group": self.group, "concat_dim": self.fitting.concat_dim, "count": len(added), **recorded}
            snapshot_id = session.commit(message, {METADATA: record}, rebase_with=ConflictDetector())
        return VirtualizeSummary(
            snapshot_id,
            added=added,
            known=found.known,
            broken=findings.left_out("broken"),
            references=references,
            changed=findings.left_out("changed"),
            duplicate=findings.left_out("duplicate"),
            misfit=findings.left_out("misfit"),
            dry_run=self.dry_run,
        )


def _overlap(one: Steps, other: Steps) -> bool:
    return one[0] < other[1] and other[0] < one[1]


def _runs(placed: Sequence[Placed]) -> Iterator[list[Placed]]:
    """Files whose steps follow each other, together."""
    run: list[Placed] = []
    for one in placed:
        if run and run[-1].steps[1] != one.steps[0]:
            yield run
            run = []
        run.append(one)
    yield run
