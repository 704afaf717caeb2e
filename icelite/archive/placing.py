"""Where files belong along a dimension: behind what is stored, between its steps, or in the place of some of them.

The labels of the steps decide. Files with the same labels are duplicates; files that otherwise overlap, or would come
between the steps of another file, fit nowhere. Where labels say nothing of order, files follow in the order of names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import numpy as np

from icelite.archive.extents import Steps
from icelite.archive.findings import Findings, Misfit
from icelite.archive.inputs import name_of, natural_key
from icelite.archive.labels import Span, describe_kind, describe_range, find_direction, find_values, is_placeholder
from icelite.archive.scan import ScannedFile
from icelite.errors import ErrorKind, InvalidInputError
from icelite.virtualizarr.sources import SOURCES_KEY

Role: TypeAlias = Literal["new", "late", "changed", "duplicate"]


@dataclass(frozen=True, slots=True)
class HeldFile:
    """A file that has steps already."""

    url: str
    steps: Steps
    modified_at: int | None = None


@dataclass(frozen=True, slots=True)
class StoredSteps:
    """The steps that are stored along the dimension.

    Attributes
    ----------
    labels
        The coordinate's values; None where there are none, or they have no order.
    files
        Those that have steps, in order.
    """

    length: int = 0
    labels: Any = None
    files: Sequence[HeldFile] = ()


@dataclass(frozen=True, slots=True)
class Placement:
    """One file with its place.

    Attributes
    ----------
    at
        The stored step that it comes before; the length for the end.
    removed
        The stored steps that it takes the place of.
    replaced
        URL of the file that had them.
    """

    file: ScannedFile
    role: Role
    at: int
    removed: Steps | None = None
    replaced: str | None = None


@dataclass(slots=True)
class _Candidate:
    """A file with its labels in increasing order."""

    file: ScannedFile
    labels: Any
    own: Steps | None
    owner: str
    duplicate: HeldFile | None = None

    @property
    def url(self) -> str:
        return self.file.url

    @property
    def span(self) -> Span:
        return Span(self.url, self.labels[0], self.labels[-1])

    @property
    def modified_at(self) -> int | None:
        stamp = self.file.dataset.encoding.get(SOURCES_KEY, {}).get(self.url)
        return getattr(stamp, "modified_at", None)


def drop_empty(files: Sequence[ScannedFile], dim: str) -> list[ScannedFile]:
    """The files that have any step.

    Raises
    ------
    InvalidInputError
        ``invalid-dataset``: none has.
    """
    filled = [file for file in files if file.dataset.sizes.get(dim, 1)]
    if files and not filled:
        more = f" and {len(files) - 1} more files" if len(files) > 1 else ""
        raise InvalidInputError(
            f"there is nothing along {dim!r} in {name_of(files[0].url)!r}{more}", ErrorKind.INVALID_DATASET
        )
    return filled


def place_files(
    files: Sequence[ScannedFile],
    dim: str,
    stored: StoredSteps,
    findings: Findings,
    changed: Mapping[str, Steps] | None = None,
) -> list[Placement]:
    """Where each file goes, in the order of their steps; what stands in the way of others is noted.

    Parameters
    ----------
    changed
        By URL, the stored steps of files that are added anew.
    """
    own, noted = dict(changed or {}), len(findings.found)
    while True:
        placed = _place(files, dim, stored, findings, own)
        # The steps of a changed file that has no place stay, which the others have to know.
        lost = own.keys() - {placement.replaced for placement in placed}
        if not lost:
            return placed
        findings.found[noted:] = [finding for finding in findings.found[noted:] if finding.url in lost]
        noted, files = len(findings.found), [file for file in files if file.url not in lost]
        own = {url: steps for url, steps in own.items() if url not in lost}


def _place(
    files: Sequence[ScannedFile], dim: str, stored: StoredSteps, findings: Findings, own: Mapping[str, Steps]
) -> list[Placement]:
    values = [find_values(file.dataset, dim) for file in files]
    known = [found for found in values if found is not None]
    if stored.length and stored.labels is not None:
        known.insert(0, stored.labels)
    if len(known) < len(files) + bool(stored.length) or not known or _is_unordered(known):
        return _place_by_name(files, stored, own)
    return _Placer(dim, stored, findings, own).place(list(zip(files, values, strict=True)))


def _is_unordered(known: Sequence[Any]) -> bool:
    return len({describe_kind(found) for found in known}) == 1 and is_placeholder(known)


def _place_by_name(files: Sequence[ScannedFile], stored: StoredSteps, own: Mapping[str, Steps]) -> list[Placement]:
    again = [Placement(f, "changed", own[f.url][0], own[f.url], f.url) for f in files if f.url in own]
    return [
        *sorted(again, key=lambda placement: placement.at),
        *(Placement(file, "new", stored.length) for file in files if file.url not in own),
    ]


@dataclass(slots=True)
class _Placer:
    """Places files that have labels; positions count as if the labels increased."""

    dim: str
    stored: StoredSteps
    findings: Findings
    own: Mapping[str, Steps]
    backwards: bool = False
    labels: Any = None  # of the stored steps that stay
    steps: Any = None  # their positions
    files: list[HeldFile] = field(default_factory=list)  # that stay

    def place(self, found: Sequence[tuple[ScannedFile, Any]]) -> list[Placement]:
        found = self._of_one_kind(found)
        found = self._of_one_direction(found)
        candidates = [
            _Candidate(file, values[::-1] if self.backwards else values, self.own.get(file.url), file.url)
            for file, values in found
        ]
        candidates.sort(key=lambda candidate: candidate.labels[0])
        if self.stored.length and find_direction(self.stored.labels) is None:
            return self._behind_disorder(candidates)
        self._take_stored(candidates)
        candidates = self._among_themselves(candidates)
        return self._placements([candidate for candidate in candidates if self._fits_stored(candidate)])

    def _of_one_kind(self, found: Sequence[tuple[ScannedFile, Any]]) -> list[tuple[ScannedFile, Any]]:
        if self.stored.length:
            model, where = describe_kind(self.stored.labels), "what is stored"
        else:
            kinds = [describe_kind(values) for _, values in found]
            model = max(kinds, key=kinds.count)
            where = repr(name_of(found[kinds.index(model)][0].url))
        misfits = [
            Misfit(
                file.url,
                f"the coordinate {self.dim!r} is of the kind {describe_kind(values)}, and {model} in {where}; make it"
                " one kind in all of them (preprocess=, such as lambda ds: ds.convert_calendar(...)), or write it to"
                " another group",
            )
            for file, values in found
            if describe_kind(values) != model
        ]
        bad = self.findings.add_misfits(misfits)
        return [(file, values) for file, values in found if file.url not in bad]

    def _of_one_direction(self, found: Sequence[tuple[ScannedFile, Any]]) -> list[tuple[ScannedFile, Any]]:
        ways = {file.url: find_direction(values) for file, values in found}
        known = [way for way in ways.values() if way]
        stored = find_direction(self.stored.labels) if self.stored.length else 0
        self.backwards = (stored or max(known, key=known.count, default=1)) == -1
        misfits = []
        for url, way in ways.items():
            if way is None:
                misfits.append(
                    Misfit(
                        url,
                        f"the coordinate {self.dim!r} is not strictly increasing or decreasing, so it does not say"
                        " where the file belongs; correct it (preprocess=), or keep it from being loaded"
                        " (loadable_variables=[]) to take the files by name",
                    )
                )
            elif way == (1 if self.backwards else -1):
                words = ("increases", "decreases") if self.backwards else ("decreases", "increases")
                misfits.append(
                    Misfit(
                        url,
                        f"the coordinate {self.dim!r} {words[0]} here and {words[1]} in the others: sort them alike"
                        " (preprocess=)",
                    )
                )
        bad = self.findings.add_misfits(misfits)
        return [(file, values) for file, values in found if file.url not in bad]

    def _behind_disorder(self, candidates: Sequence[_Candidate]) -> list[Placement]:
        """Files behind steps that are stored in no order: what is not behind all of them has no place."""
        greatest = max(self.stored.labels)
        placements = []
        for candidate in self._among_themselves(list(candidates)):
            if candidate.own is not None:
                own = candidate.own
                placements.append(Placement(candidate.file, "changed", own[0], own, candidate.owner))
            elif candidate.labels[0] > greatest:
                placements.append(Placement(candidate.file, "new", self.stored.length))
            else:
                problem = (
                    f"{candidate.span} does not come after {greatest}, and what is stored along {self.dim!r} is in no"
                    " order, so the file has no place; write it to another group"
                )
                self.findings.add("misfit", candidate.url, problem)
        return placements

    def _take_stored(self, candidates: Sequence[_Candidate]) -> None:
        """Look at the stored steps that stay beside the candidates."""
        length, own = self.stored.length, {candidate.own for candidate in candidates}
        self.files = [file for file in self.stored.files if file.steps not in own]
        stays = np.ones(length, bool)
        for steps in own - {None}:
            stays[slice(*steps)] = False  # type: ignore[misc]
        labels: Any = self.stored.labels if length else candidates[0].labels[:0] if candidates else np.empty(0)
        if self.backwards:
            labels, stays = labels[::-1], stays[::-1]
            self.files = [replace(f, steps=(length - f.steps[1], length - f.steps[0])) for f in self.files]
        self.labels, self.steps = labels[stays], np.flatnonzero(stays)

    def _among_themselves(self, candidates: list[_Candidate]) -> list[_Candidate]:
        """The candidates, in order, of which none overlaps another."""
        kept: list[_Candidate] = []
        for candidate in candidates:
            while kept and not candidate.labels[0] > kept[-1].labels[-1]:
                before = kept.pop()
                if not (_contains(candidate, before.labels) or _contains(before, candidate.labels)):
                    self._note_overlap(candidate.span, before.span)
                    candidate = before
                    break
                candidate = self._choose(before, candidate)
            kept.append(candidate)
        return kept

    def _choose(self, one: _Candidate, other: _Candidate) -> _Candidate:
        """The better of two files with the same steps; the other one is noted."""
        ranked = sorted((one, other), key=lambda candidate: natural_key(candidate.url))
        winner, loser = ranked
        if self.findings.policy.duplicate == "newest":
            loser, winner = sorted(ranked, key=lambda c: self.findings.policy.rank(c.url, c.modified_at))
            if not _contains(winner, loser.labels):
                self._note_overlap(loser.span, winner.span)
                return winner
        if loser.own is not None and winner.own is not None:
            self._note_overlap(loser.span, winner.span)
            return winner
        if loser.own is not None:
            winner.own, winner.owner = loser.own, loser.url
        self._note_duplicate(loser, winner.url)
        return winner

    def _fits_stored(self, candidate: _Candidate) -> bool:
        """Whether a file has a place among the stored steps; notes why not."""
        low = np.searchsorted(self.labels, candidate.labels[0], "left")
        high = np.searchsorted(self.labels, candidate.labels[-1], "right")
        if low == high:
            return self._is_between_files(candidate, int(low))
        touched = self.steps[low:high]
        file = next((f for f in self.files if f.steps[0] <= touched[0] and touched[-1] < f.steps[1]), None)
        held = self.labels[low:high]
        partly = file is not None and len(touched) < file.steps[1] - file.steps[0]
        if partly or candidate.own is not None or not _contains(candidate, held):
            self._note_overlap(candidate.span, Span(file.url if file else "what is stored", held[0], held[-1]))
            return False
        policy = self.findings.policy
        newer = file is not None and policy.rank(candidate.url, candidate.modified_at) > policy.rank(
            file.url, file.modified_at
        )
        if policy.duplicate == "newest" and newer:
            candidate.duplicate = file
            return True
        self._note_duplicate(candidate, file.url if file is not None else None)
        return False

    def _is_between_files(self, candidate: _Candidate, at: int) -> bool:
        step = self._step(at)
        file = next((f for f in self.files if f.steps[0] < step < f.steps[1]), None)
        if file is None:
            return True
        span = Span(file.url, *self._ends(file.steps))
        self.findings.add(
            "misfit",
            candidate.url,
            f"the files overlap along {self.dim!r}: {candidate.span} comes between the steps of {span}; leave it out,"
            " or write it to another group",
        )
        return False

    def _ends(self, steps: Steps) -> tuple[Any, Any]:
        inside = self.labels[(self.steps >= steps[0]) & (self.steps < steps[1])]
        return inside[0], inside[-1]

    def _step(self, at: int) -> int:
        """The position before which something with ``at`` of the remaining steps before it goes."""
        return 0 if at == 0 else int(self.steps[at - 1]) + 1

    def _note_overlap(self, span: Span, other: Span) -> None:
        problem = f"the files overlap along {self.dim!r}: {span} does not come after {other}; leave one of them out"
        self.findings.add("misfit", span.url, problem)

    def _note_duplicate(self, candidate: _Candidate, other: str | None) -> None:
        where = "stored" if other is None else f"those of {name_of(other)!r}"
        span = describe_range(candidate.labels[0], candidate.labels[-1])
        problem = f"overlaps what is there: its steps along {self.dim!r} ({span}) are {where}"
        self.findings.add("duplicate", candidate.url, problem)

    def _placements(self, candidates: Sequence[_Candidate]) -> list[Placement]:
        placed = [self._place(candidate) for candidate in candidates]
        return placed[::-1] if self.backwards else placed

    def _place(self, candidate: _Candidate) -> Placement:
        length, file = self.stored.length, candidate.duplicate
        count = int(np.searchsorted(self.labels, candidate.labels[0], "left"))
        at = self._step(count)
        removed = None if file is None else file.steps
        if self.backwards:
            at = length - at
            removed = None if removed is None else (length - removed[1], length - removed[0])
        if file is not None:
            return Placement(candidate.file, "duplicate", at, removed, file.url)
        if candidate.own is not None:
            return Placement(candidate.file, "changed", at, candidate.own, candidate.owner)
        is_last = count == (0 if self.backwards else len(self.labels))
        return Placement(candidate.file, "new" if is_last else "late", at)


def _contains(candidate: _Candidate, labels: Any) -> bool:
    """Whether a file has all these labels."""
    at = np.searchsorted(candidate.labels, labels)
    return bool((at < len(candidate.labels)).all() and (candidate.labels[at] == labels).all())
