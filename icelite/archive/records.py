"""What `virtualize` writes into the metadata of its snapshots, and reads there again.

References say most of what a group holds. What they do not say is recorded: sources that no chunk is in, files that
were taken out, files with more steps than their references show, and how the group was made, to go on alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from icelite.types import SourceStamp

if TYPE_CHECKING:
    from icelite.repository import Repository
    from icelite.session import Session

METADATA = "virtualize"  # key of a snapshot's metadata
_KEPT = 100  # other sources that every record repeats; of more, each names its own


@dataclass(slots=True)
class Recorded:
    """What earlier calls recorded about one group.

    Attributes
    ----------
    others
        Sources that were added and that no chunk is in: location path to stamp.
    dropped
        Files that were taken out: location path to stamp.
    margins
        Of files whose references do not show all their steps: how many precede the first that is shown, and how many
        there are in all; by location path.
    hashes
        Of variables that all files share, as the first call found them.
    making
        How the group was made: what was given as sources, the dimension and the options.
    certain
        Whether ``margins`` name all files that they should, since the group was begun.
    """

    others: dict[str, SourceStamp] = field(default_factory=dict)
    dropped: dict[str, SourceStamp] = field(default_factory=dict)
    margins: dict[str, tuple[int, int]] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)
    making: dict[str, Any] = field(default_factory=dict)
    certain: bool = False

    def to_json(self, before: Recorded) -> dict[str, Any]:
        """The parts of a snapshot's record that a later call needs, after those that are there ``before``."""
        whole = len(self.others) <= _KEPT
        others = self.others if whole else {p: s for p, s in self.others.items() if before.others.get(p) != s}
        parts: dict[str, Any] = {
            "other_sources": {path: record_of(stamp) for path, stamp in others.items()},
            "dropped": {path: record_of(stamp) for path, stamp in self.dropped.items()},
            "margins": {path: list(margin) for path, margin in self.margins.items()},
            "shared": self.hashes,
            "making": self.making,
        }
        return {"whole": whole, "certain": self.certain, **{name: part for name, part in parts.items() if part}}


def read_records(repository: Repository, session: Session, group: str) -> Recorded:
    """What the snapshots behind a session's recorded about a group, newest first, as far as is needed."""
    found = Recorded()
    is_newest = True
    for info in repository.ancestry(snapshot_id=session.snapshot_id):
        record = info.metadata.get(METADATA)
        if not isinstance(record, dict) or record.get("group") != group:
            continue
        for path, stamp in _mapping(record, "other_sources").items():
            found.others.setdefault(path, SourceStamp(*stamp))
        if is_newest:
            found.dropped = {path: SourceStamp(*stamp) for path, stamp in _mapping(record, "dropped").items()}
            found.margins = {path: (margin[0], margin[1]) for path, margin in _mapping(record, "margins").items()}
            found.making = dict(_mapping(record, "making"))
            found.certain = record.get("certain") is True
        found.hashes.update(_mapping(record, "shared"))  # the oldest one is the last one met
        if record.get("whole"):
            break
        is_newest = False
    return found


def _mapping(record: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    part = record.get(key)
    return part if isinstance(part, dict) else {}


def record_of(stamp: SourceStamp | None) -> list[Any]:
    """A stamp as JSON."""
    return [None, None, None] if stamp is None else [stamp.size, stamp.etag, stamp.modified_at]
