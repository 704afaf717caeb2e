"""Ids and times of snapshots, put into an Icechunk repository that nobody uses yet.

Icechunk gives every commit a new id and the time of day, and its API has no way to say otherwise. Its files however
are specified: an id is the name of a snapshot's two files and a field of fixed size in both, a time is another field;
the file ``repo`` lists all snapshots in the order of their ids. So nothing but these fields and that list is written
here, and Icechunk reads the result back before anybody else does.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from icelite.catalog.operations import to_microseconds
from icelite.errors import ErrorKind, InternalError
from icelite.icechunk.files import UPDATES, MetadataFile, decode_id, encode, encode_id

UPDATES_KEPT = 1000  # as many as Icechunk keeps in one file

_NUMBERS = {name: number for number, name in UPDATES.items()}


@dataclass(frozen=True, slots=True)
class Identity:
    """The id and time that a snapshot is to have.

    Attributes
    ----------
    branch
        The branch it was committed to, for the operation log; None when not known.
    """

    id: str
    written_at: datetime
    branch: str | None

    @property
    def moment(self) -> int:
        """The time in microseconds."""
        return to_microseconds(self.written_at)


def can_keep(snapshot_id: str) -> bool:
    """Whether Icechunk, whose ids have 96 bits, can hold a snapshot id: its last character must be 0 or G."""
    return decode_id(snapshot_id) is not None


def restore_identities(directory: Path, identities: Mapping[str, Identity]) -> None:
    """Give the snapshots of a local Icechunk repository other ids and times; others than those named are removed.

    Parameters
    ----------
    identities
        By the id that a snapshot has now.

    Raises
    ------
    FormatError, InternalError
        ``corrupt`` for a file that is not as specified; ``unknown`` when the result does not read as intended.
    """
    for old, new in identities.items():
        for folder, table in (("snapshots", "Snapshot"), ("transactions", "TransactionLog")):
            file = MetadataFile(directory / folder / old)
            file.put(table, "id", _bytes(new.id))
            if table == "Snapshot":
                file.put(table, "flushed_at", new.moment)
            file.path.unlink()
            file.write(directory / folder / f"{new.id}.new")
    for folder in ("snapshots", "transactions"):
        for path in (directory / folder).iterdir():
            if path.suffix == ".new":
                path.rename(path.with_suffix(""))
            else:
                path.unlink()
    repo = MetadataFile(directory / "repo")
    repo.write(repo.path, encode("Repo", _renumbered(repo.decode("Repo"), identities)))
    shutil.rmtree(directory / "overwritten", ignore_errors=True)  # earlier states of that file, with the old ids
    _check(directory, identities)


def _bytes(snapshot_id: str) -> bytes:
    data = decode_id(snapshot_id)
    if data is None:
        raise InternalError(f"Icechunk cannot hold the snapshot id {snapshot_id}")
    return data


def _renumbered(repo: dict[str, Any], identities: Mapping[str, Identity]) -> dict[str, Any]:
    """The content of the file ``repo`` with other ids and times, in the order it asks for."""
    old = repo["snapshots"]
    kept = {i: identities[encode_id(info["id"])] for i, info in enumerate(old) if encode_id(info["id"]) in identities}
    order = sorted(kept, key=lambda i: _bytes(kept[i].id))
    index = {i: new for new, i in enumerate(order)} | {-1: -1}
    snapshots = [
        {
            **old[i],
            "id": _bytes(kept[i].id),
            "flushed_at": kept[i].moment,
            "parent_offset": index[old[i].get("parent_offset", 0)],
        }
        for i in order
    ]
    named = {
        kind: [{"name": ref["name"], "snapshot_index": index[ref.get("snapshot_index", 0)]} for ref in repo[kind]]
        for kind in ("branches", "tags")
    }
    return {
        **repo,
        **named,
        "snapshots": snapshots,
        "latest_updates": _updates(list(kept.values()), snapshots),
        "repo_before_updates": None,
    }


def _updates(identities: list[Identity], snapshots: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The operation log: each commit at its time, newest first."""
    first = {info["id"] for info in snapshots if info["parent_offset"] == -1}
    updates = []
    for identity in sorted(identities, key=lambda identity: identity.moment, reverse=True):
        kind, detail = "NewDetachedSnapshotUpdate", {"new_snap_id": _bytes(identity.id)}
        if detail["new_snap_id"] in first:
            kind, detail = "RepoInitializedUpdate", {}
        elif identity.branch is not None:
            kind, detail = "NewCommitUpdate", {**detail, "branch": identity.branch}  # type: ignore[dict-item]
        updates.append({"update_type_type": _NUMBERS[kind], "update_type": detail, "updated_at": identity.moment})
    return updates[:UPDATES_KEPT]


def _check(directory: Path, identities: Mapping[str, Identity]) -> None:
    """Let Icechunk read the repository, and compare."""
    import icechunk

    repository = icechunk.Repository.open(icechunk.local_filesystem_storage(str(directory)))
    wanted = {new.id: new.written_at for new in identities.values()}
    found: dict[str, datetime] = {}
    tips = [repository.lookup_branch(name) for name in repository.list_branches()]
    tips += [repository.lookup_tag(name) for name in repository.list_tags()]
    for tip in tips:
        for info in repository.ancestry(snapshot_id=tip):
            if info.id in found:
                break
            found[info.id] = info.written_at
    if found != wanted:
        raise InternalError(
            f"Icechunk {icechunk.__version__} does not read the ids and times that were written for it; please report"
            " it",
            ErrorKind.UNKNOWN,
        )
