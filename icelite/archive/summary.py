"""`VirtualizeSummary`: every file of a call by its kind, and what was done."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class VirtualizeSummary:
    """What a call of `virtualize`, `update`, `replace` or `drop` did.

    Attributes
    ----------
    snapshot_id
        The new snapshot; None when nothing was new, or in a dry run.
    added, inserted
        URLs of the files that the snapshot adds at the end, and of late ones that it puts between or before others, in
        their order along the dimension.
    replaced
        URLs of those that the snapshot has in the place of others, each with the URL of the file that it replaces: its
        own if it changed.
    known
        URLs of those that the repository held already.
    late, changed, duplicate, misfit, broken
        URLs of those that were left out, each with the reason. A duplicate's steps are those of a file that is there.
    dropped
        URLs of those that were taken out: by this call, or before and left out again.
    references, copied
        Chunks that the snapshot refers to; variables that it holds copies of, because they cannot be referred to.
    taken_out
        Number of steps that `drop` took out.
    cut
        By the name of a variable: how many of its steps were copied, because they were in chunks with others.
    dry_run
        Whether nothing was written, and this is what would be.
    """

    snapshot_id: str | None
    added: list[str] = field(default_factory=list)
    known: list[str] = field(default_factory=list)
    broken: dict[str, str] = field(default_factory=dict)
    references: int = 0
    copied: int = 0
    inserted: list[str] = field(default_factory=list)
    replaced: dict[str, str] = field(default_factory=dict)
    late: dict[str, str] = field(default_factory=dict)
    changed: dict[str, str] = field(default_factory=dict)
    duplicate: dict[str, str] = field(default_factory=dict)
    misfit: dict[str, str] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    taken_out: int = 0
    cut: dict[str, int] = field(default_factory=dict)
    dry_run: bool = False

    @property
    def left_out(self) -> dict[str, str]:
        """The files whose steps are not there, or not as they are now: URL to the reason."""
        return {**self.late, **self.changed, **self.misfit, **self.broken}

    def __str__(self) -> str:
        done = [
            f"{count_files(len(files))} {word}"
            for files, word in ((self.added, "added"), (self.inserted, "inserted"), (self.replaced, "replaced"))
            if files
        ]
        if self.taken_out:
            files = f", {count_files(len(self.dropped))} whole" if self.dropped else ""
            done = [f"{_count(self.taken_out, 'step')} dropped{files}"]
        if done:
            begin = "dry run" if self.snapshot_id is None else self.snapshot_id
            references = "" if self.taken_out else f", {self.references} references"
            lines = [f"{begin}: {', '.join(done)}{references}"]
            lines += [f"{_count(self.copied, 'variable')} copied"] if self.copied else []
            lines += [f"{_count(steps, 'step')} of {name} copied from cut chunks" for name, steps in self.cut.items()]
            lines += [f"{count_files(len(self.known))} known before"] if self.known else []
        else:
            lines = [f"nothing new: {count_files(len(self.known))} known"]
        if self.dropped and not self.taken_out:
            lines += [f"{count_files(len(self.dropped))} taken out before"]
        lines += [f"replaced {old} by {new}" for new, old in self.replaced.items() if old != new]
        for kind in ("late", "changed", "duplicate", "misfit", "broken"):
            lines += [f"left out {url}: {problem}" for url, problem in getattr(self, kind).items()]
        return "\n".join(lines)

    def __repr__(self) -> str:
        counts = {name: len(getattr(self, name)) for name in ("added", "inserted", "replaced", "known")}
        counts |= {name: len(getattr(self, name)) for name in ("late", "changed", "duplicate", "misfit", "broken")}
        shown = "".join(
            f", {name}={count}" for name, count in counts.items() if count or name in ("added", "known", "broken")
        )
        return (
            f"<icelite.VirtualizeSummary snapshot_id={self.snapshot_id!r}{shown}, references={self.references},"
            f" copied={self.copied}>"
        )


def count_files(count: int) -> str:
    """A number of files in words."""
    return _count(count, "file")


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
