"""What the repository allows: its status and its feature flags, two rows of `setting`.

Checked inside every write transaction, so that they hold for every session of every process from the moment they are
set. The only write that does not ask is the one that sets the status.
"""

from __future__ import annotations

from icelite.catalog.database import Transaction
from icelite.catalog.settings import find_setting, save_setting
from icelite.errors import ErrorKind, FormatError, InvalidInputError, ReadOnlyError, SessionStateError, shown
from icelite.types import FeatureFlag, RepoAvailability, RepoStatus

STATUS = "status"
FEATURE_FLAGS = "feature_flags"

# Names and numbers are Icechunk's.
FLAGS = {
    "move_node": FeatureFlag(3, "move_node", default_enabled=True),
    "create_tag": FeatureFlag(4, "create_tag", default_enabled=True),
    "delete_tag": FeatureFlag(5, "delete_tag", default_enabled=True),
}


def find_status(txn: Transaction) -> RepoStatus:
    """The status of the repository; online since ever where none was set.

    Raises
    ------
    FormatError
        ``corrupt``.
    """
    stored = find_setting(txn, STATUS)
    if stored is None:
        return RepoStatus(RepoAvailability.online)
    try:
        return RepoStatus.from_dict(stored)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise _damaged(STATUS, stored) from error


def _damaged(setting: str, stored: object) -> FormatError:
    return FormatError(f"setting {setting!r} of the catalog is damaged: {shown(stored)}", ErrorKind.CORRUPT)


def save_status(txn: Transaction, status: RepoStatus) -> None:
    """Set the status."""
    save_setting(txn, STATUS, status.to_dict())


def check_online(txn: Transaction) -> None:
    """Refuse to change a repository that was made read-only.

    Raises
    ------
    ReadOnlyError
        ``read-only-repository``.
    """
    status = find_status(txn)
    if status.availability == RepoAvailability.read_only:
        because = status.limited_availability_reason
        since = "" if status.set_at is None else f" since {status.set_at:%Y-%m-%d %H:%M:%S} UTC"
        raise ReadOnlyError(
            f"the repository is read-only{since}{'' if because is None else f' ({because})'}; nothing was changed."
            " set_status(RepoStatus(RepoAvailability.online)) allows changes again",
            ErrorKind.READ_ONLY_REPOSITORY,
        )


def list_flags(txn: Transaction) -> list[FeatureFlag]:
    """Every feature flag, as it is set.

    Raises
    ------
    FormatError
        ``corrupt``.
    """
    stored = find_setting(txn, FEATURE_FLAGS) or {}
    if not isinstance(stored, dict) or not all(isinstance(setting, bool) for setting in stored.values()):
        raise _damaged(FEATURE_FLAGS, stored)
    return [FeatureFlag(f.id, f.name, f.default_enabled, stored.get(f.name)) for f in FLAGS.values()]


def save_flag(txn: Transaction, name: str, setting: bool | None) -> FeatureFlag:
    """Allow a feature, forbid it, or (None) leave it to its default.

    Raises
    ------
    InvalidInputError
        ``invalid-feature-flag``.
    """
    if name not in FLAGS:
        raise InvalidInputError(
            f"there is no feature flag {name!r}; the flags are {', '.join(map(repr, FLAGS))}",
            ErrorKind.INVALID_FEATURE_FLAG,
        )
    if not isinstance(setting, bool | None):
        raise InvalidInputError(
            f"feature flag {name!r} cannot be set to {setting!r}: pass True, False, or None for its default",
            ErrorKind.INVALID_FEATURE_FLAG,
        )
    stored = {flag.name: flag.setting for flag in list_flags(txn) if flag.setting is not None}
    stored.pop(name, None)
    save_setting(txn, FEATURE_FLAGS, stored if setting is None else {**stored, name: setting})
    return next(flag for flag in list_flags(txn) if flag.name == name)


def check_feature(txn: Transaction, name: str) -> None:
    """Refuse what a feature flag forbids.

    Raises
    ------
    SessionStateError
        ``feature-flag-disabled``.
    """
    if not next(flag.enabled for flag in list_flags(txn) if flag.name == name):
        raise SessionStateError(
            f"this repository forbids {name!r}; set_feature_flag({name!r}, True) allows it",
            ErrorKind.FEATURE_FLAG_DISABLED,
        )
