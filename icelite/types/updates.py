"""The operation log as values: what was done to a repository, and when.

Each kind of update is a dataclass of its own, named as in Icechunk and reached as there: ``UpdateType.NewCommit``.
The fields are what `operation.detail` of the catalog holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar

from icelite.types.repository import RepoStatus


class UpdateType:
    """The kind of thing that was done: ``isinstance(update.kind, UpdateType.NewCommit)``."""

    RepoInitialized: ClassVar[type[RepoInitialized]]
    ConfigChanged: ClassVar[type[ConfigChanged]]
    MetadataChanged: ClassVar[type[MetadataChanged]]
    RepoStatusChanged: ClassVar[type[RepoStatusChanged]]
    FeatureFlagChanged: ClassVar[type[FeatureFlagChanged]]
    TagCreated: ClassVar[type[TagCreated]]
    TagDeleted: ClassVar[type[TagDeleted]]
    BranchCreated: ClassVar[type[BranchCreated]]
    BranchDeleted: ClassVar[type[BranchDeleted]]
    BranchReset: ClassVar[type[BranchReset]]
    NewCommit: ClassVar[type[NewCommit]]
    CommitAmended: ClassVar[type[CommitAmended]]
    NewDetachedSnapshot: ClassVar[type[NewDetachedSnapshot]]
    GCRan: ClassVar[type[GCRan]]
    ExpirationRan: ClassVar[type[ExpirationRan]]
    LocationsRelocated: ClassVar[type[LocationsRelocated]]
    ObjectsRepacked: ClassVar[type[ObjectsRepacked]]
    OtherUpdate: ClassVar[type[OtherUpdate]]

    def __init_subclass__(cls) -> None:
        setattr(UpdateType, cls.__name__, cls)


@dataclass(frozen=True)
class RepoInitialized(UpdateType):
    """The repository was made."""


@dataclass(frozen=True)
class ConfigChanged(UpdateType):
    """The persisted configuration was saved."""


@dataclass(frozen=True)
class MetadataChanged(UpdateType):
    """The metadata of the repository changed."""


@dataclass(frozen=True)
class RepoStatusChanged(UpdateType):
    """The repository was made read-only, or writable again."""

    status: RepoStatus


@dataclass(frozen=True)
class FeatureFlagChanged(UpdateType):
    """A feature was allowed, forbidden, or (None) left to its default."""

    id: int
    new_value: bool | None


@dataclass(frozen=True)
class TagCreated(UpdateType):
    """A snapshot got a tag."""

    name: str


@dataclass(frozen=True)
class TagDeleted(UpdateType):
    """A tag was deleted for ever."""

    name: str
    previous_snap_id: str


@dataclass(frozen=True)
class BranchCreated(UpdateType):
    """A snapshot got a branch."""

    name: str


@dataclass(frozen=True)
class BranchDeleted(UpdateType):
    """A branch was deleted; its snapshots stayed."""

    name: str
    previous_snap_id: str


@dataclass(frozen=True)
class BranchReset(UpdateType):
    """A branch was pointed at another snapshot."""

    name: str
    previous_snap_id: str


@dataclass(frozen=True)
class NewCommit(UpdateType):
    """A session was committed to a branch."""

    branch: str
    new_snap_id: str


@dataclass(frozen=True)
class CommitAmended(UpdateType):
    """The tip of a branch was replaced."""

    branch: str
    previous_snap_id: str
    new_snap_id: str


@dataclass(frozen=True)
class NewDetachedSnapshot(UpdateType):
    """A session was written as a snapshot of no branch."""

    new_snap_id: str


@dataclass(frozen=True)
class GCRan(UpdateType):
    """Rows and bytes that no snapshot sees were removed."""


@dataclass(frozen=True)
class ExpirationRan(UpdateType):
    """Old snapshots were released."""


@dataclass(frozen=True)
class LocationsRelocated(UpdateType):
    """The files and objects below a prefix got another one; Icechunk has no such kind."""

    old_prefix: str
    new_prefix: str


@dataclass(frozen=True)
class ObjectsRepacked(UpdateType):
    """The live bytes of mostly dead objects were written into new ones; Icechunk has no such kind.

    Attributes
    ----------
    objects
        How many were given up.
    """

    objects: int


@dataclass(frozen=True)
class OtherUpdate(UpdateType):
    """Something that Icechunk has no kind for, or that a newer release of icelite did."""

    name: str
    detail: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Update:
    """One entry of the operation log.

    Attributes
    ----------
    updated_at
        When it was done, UTC, microseconds.
    backup_path
        Always None: the log is a table, and nothing of the catalog is copied when it changes.
    """

    kind: UpdateType
    updated_at: datetime
    backup_path: str | None = None
