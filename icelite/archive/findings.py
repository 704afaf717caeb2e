"""What stands in the way of a file, of which kind, and what the caller wants done about each kind.

All that is found is collected first. Then either everything is refused at once, with what to pass for it, or what was
asked for is done and the rest is left out by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from typing import Any, Literal, TypeAlias

from icelite.archive.inputs import name_of, natural_key
from icelite.errors import ErrorKind, IceliteError, InvalidInputError, StorageError

Kind: TypeAlias = Literal["late", "changed", "duplicate", "misfit", "broken"]
Prefer: TypeAlias = Callable[[str], Any] | str | Sequence[str]

_SHOWN = 100  # problems in one message
_CHOICES: dict[Kind, tuple[str, ...]] = {
    "late": ("raise", "insert", "skip"),
    "changed": ("raise", "replace", "skip"),
    "duplicate": ("raise", "newest", "skip"),
    "misfit": ("raise", "skip"),
    "broken": ("raise", "skip"),
}
_REMEDIES: dict[Kind, str] = {
    "late": "pass on_late='insert' to put late files where they belong, or 'skip' to leave them out",
    "changed": "pass on_changed='replace' to take the new state, 'skip' to leave it as it was added, or restore it",
    "duplicate": "pass on_duplicate='newest' to keep the newest (prefer= says which that is), or 'skip' to keep the"
    " first, or leave one of them out",
    "misfit": "correct it as it says, or pass on_misfit='skip' to leave it out",
    "broken": "fetch it again, or pass on_broken='skip' to leave it out",
}


@dataclass(frozen=True, slots=True)
class Misfit:
    """One thing in which a file does not fit, with what to do about it."""

    url: str
    problem: str


def refuse(misfits: Sequence[Misfit], against: str) -> None:
    """Refuse files that do not fit, if there are any, naming all.

    Raises
    ------
    InvalidInputError
        ``invalid-dataset``.
    """
    if misfits:
        raise InvalidInputError(_describe_misfits(misfits, against), ErrorKind.INVALID_DATASET)


def _describe_misfits(misfits: Sequence[Misfit], against: str) -> str:
    if len(misfits) == 1:
        return f"{misfits[0].url!r} does not fit {against}: {misfits[0].problem}"
    files = len({misfit.url for misfit in misfits})
    verb = "file does" if files == 1 else "files do"
    return f"{files} {verb} not fit {against}:{_listed([(misfit.url, misfit.problem) for misfit in misfits])}"


def _listed(problems: Sequence[tuple[str, str]]) -> str:
    shown = [f"\n  {url!r}: {problem}" for url, problem in problems[:_SHOWN]]
    more = f"\n  and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    return f"{''.join(shown)}{more}"


@dataclass(frozen=True, slots=True)
class Finding:
    """One reason why a file is not simply added.

    Attributes
    ----------
    error
        What a broken file raised.
    """

    kind: Kind
    url: str
    problem: str
    error: IceliteError | None = None


@dataclass(frozen=True, slots=True)
class Policy:
    """What to do with files that are not simply new; the fields are parameters of `virtualize`."""

    late: str = "raise"
    changed: str = "raise"
    duplicate: str = "raise"
    misfit: str = "raise"
    broken: str = "raise"
    missing: str = "raise"
    prefer: Prefer | None = None
    dropped: str = "skip"

    def __post_init__(self) -> None:
        asked = [(f"on_{kind}", getattr(self, kind), choices) for kind, choices in _CHOICES.items()]
        for name, given, choices in [
            *asked,
            ("missing", self.missing, ("raise", "fill")),
            ("on_dropped", self.dropped, ("skip", "insert")),
        ]:
            if given not in choices:
                raise InvalidInputError(
                    f"{name} must be one of {', '.join(map(repr, choices))}, not {given!r}", ErrorKind.INVALID_ARGUMENT
                )

    def lenient(self) -> Policy:
        """The same without refusals: what would be refused is left out."""
        names = ("late", "changed", "duplicate", "misfit", "broken")
        return replace(self, **{name: "skip" for name in names if getattr(self, name) == "raise"})

    def rank(self, url: str, modified_at: int | None) -> tuple[Any, ...]:
        """A key by which the greatest of files with the same steps is the newest.

        Where ``prefer`` does not tell, the time of modification does, and then the name.
        """
        preferred: Any = 0
        if callable(self.prefer):
            preferred = self.prefer(url)
        elif self.prefer:
            patterns = (self.prefer,) if isinstance(self.prefer, str) else tuple(self.prefer)
            matches = [at for at, pattern in enumerate(patterns) if fnmatch(name_of(url), pattern)]
            preferred = -min(matches, default=len(patterns))
        return preferred, modified_at or 0, natural_key(url)


@dataclass(slots=True)
class Findings:
    """All that was found in one call.

    Attributes
    ----------
    against
        What misfits were compared with, for messages.
    """

    policy: Policy
    against: str = "what is stored"
    found: list[Finding] = field(default_factory=list)

    def add(self, kind: Kind, url: str, problem: str, error: IceliteError | None = None) -> None:
        """Note one."""
        self.found.append(Finding(kind, url, problem, error))

    def add_misfits(self, misfits: Sequence[Misfit]) -> set[str]:
        """Note misfits; the URLs of the files."""
        for misfit in misfits:
            self.add("misfit", misfit.url, misfit.problem)
        return {misfit.url for misfit in misfits}

    def left_out(self, kind: Kind) -> dict[str, str]:
        """The files of one kind with what was found, several findings of a file in one text."""
        texts: dict[str, list[str]] = {}
        for finding in self.found:
            if finding.kind == kind:
                texts.setdefault(finding.url, []).append(finding.problem)
        return {url: "; ".join(problems) for url, problems in texts.items()}

    def refuse(self) -> None:
        """Refuse all at once, unless the caller has said of each kind what to do.

        Raises
        ------
        InvalidInputError, StorageError
            As what was found, if it is of one kind; else ``invalid-dataset``.
        """
        refused = [finding for finding in self.found if getattr(self.policy, finding.kind) == "raise"]
        if not refused:
            return
        if len(refused) == 1 and refused[0].error is not None:
            raise refused[0].error
        parts = []
        for kind in _CHOICES:
            some = [finding for finding in refused if finding.kind == kind]
            if some:
                parts.append(self._describe(kind, some))
        codes = {_code(finding) for finding in refused}
        code = codes.pop() if len(codes) == 1 else ErrorKind.INVALID_DATASET
        storage = code in (ErrorKind.VIRTUAL_CHUNK_MODIFIED, ErrorKind.UNREADABLE_SOURCE)
        raise (StorageError if storage else InvalidInputError)("\n".join(parts), code)

    def _describe(self, kind: Kind, some: Sequence[Finding]) -> str:
        if kind == "misfit":
            text = _describe_misfits([Misfit(finding.url, finding.problem) for finding in some], self.against)
        elif len(some) == 1:
            text = f"source {some[0].url!r} {some[0].problem}"
        else:
            words = {"late": "come late", "changed": "changed since they were added", "duplicate": "are duplicates"}
            what = words.get(kind, "cannot be used")
            text = f"{len(some)} files {what}:{_listed([(finding.url, finding.problem) for finding in some])}"
        return f"{text}; {_REMEDIES[kind]}" if len(some) == 1 else f"{text}\n  ({_REMEDIES[kind]})"


def _code(finding: Finding) -> ErrorKind:
    if finding.error is not None:
        return finding.error.kind
    return ErrorKind.VIRTUAL_CHUNK_MODIFIED if finding.kind == "changed" else ErrorKind.INVALID_DATASET
