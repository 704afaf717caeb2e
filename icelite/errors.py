"""The exceptions icelite raises, and the codes (`kind`) that tell them apart.

The tree and the codes are Icechunk 2.3's where the meaning is the same, so handlers port unchanged.
Every message names the id or path at fault, what was expected, what was found and what to do.
`ErrorKind` is append-only: a released code keeps its meaning for ever.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import reprlib
import sys
from collections.abc import Sequence
from enum import StrEnum
from typing import Any
from urllib.parse import unquote

SHOWN_CHARACTERS = 300  # of a text that may come from a stranger, as an error repeats it


def shown(text: object) -> str:
    """A value as an error may repeat it: quoted, and cut where it is long."""
    if isinstance(text, str | bytes) and len(text) > SHOWN_CHARACTERS:
        return f"{text[:SHOWN_CHARACTERS]!r}... ({len(text)} in all)"
    if isinstance(text, list | tuple | dict):
        return _short.repr(text)
    return repr(text)


_short = reprlib.Repr()
_short.maxstring = _short.maxother = SHOWN_CHARACTERS


class ErrorKind(StrEnum):
    """Machine-readable cause of an `IceliteError`; compares equal to its string."""

    # ConflictError
    COMMIT_CONFLICT = "commit-conflict"
    BRANCH_UPDATE_CONFLICT = "branch-update-conflict"
    REBASE_FAILED = "rebase-failed"
    CONFIG_UPDATED = "config-updated"
    # NotFoundError
    NODE_NOT_FOUND = "node-not-found"
    KEY_NOT_FOUND = "key-not-found"
    SNAPSHOT_NOT_FOUND = "snapshot-not-found"
    NO_SNAPSHOT_AT_TIME = "no-snapshot-at-time"
    BRANCH_NOT_FOUND = "branch-not-found"
    TAG_NOT_FOUND = "tag-not-found"
    REPOSITORY_NOT_FOUND = "repository-not-found"
    LOCATION_NOT_FOUND = "location-not-found"
    # AlreadyExistsError
    NODE_ALREADY_EXISTS = "node-already-exists"
    BRANCH_ALREADY_EXISTS = "branch-already-exists"
    TAG_ALREADY_EXISTS = "tag-already-exists"
    TAG_PREVIOUSLY_DELETED = "tag-previously-deleted"
    MOVE_WONT_OVERWRITE = "move-wont-overwrite"
    REPOSITORY_ALREADY_EXISTS = "repository-already-exists"
    TARGET_ALREADY_EXISTS = "target-already-exists"
    # ReadOnlyError
    READ_ONLY_SESSION = "read-only-session"
    READ_ONLY_STORE = "read-only-store"
    READ_ONLY_STORAGE = "read-only-storage"
    READ_ONLY_REPOSITORY = "read-only-repository"
    # InvalidInputError
    INVALID_KEY = "invalid-key"
    INVALID_CHUNK_INDEX = "invalid-chunk-index"
    ZERO_LENGTH_CHUNK = "zero-length-chunk"
    CHUNK_TOO_LARGE = "chunk-too-large"
    INVALID_REF_NAME = "invalid-ref-name"
    INVALID_SNAPSHOT_ID = "invalid-snapshot-id"
    INVALID_PATH = "invalid-path"
    INVALID_ARGUMENT = "invalid-argument"
    BAD_METADATA = "bad-metadata"
    NOT_AN_ARRAY = "not-an-array"
    INVALID_ARRAY_METADATA = "invalid-array-metadata"
    INVALID_BYTE_RANGE = "invalid-byte-range"
    INVALID_VIRTUAL_REF = "invalid-virtual-ref"
    INVALID_CREDENTIALS = "invalid-credentials"
    NO_CONTAINER_FOR_VIRTUAL_CHUNK = "no-container-for-virtual-chunk"
    UNAUTHORIZED_VIRTUAL_CHUNK_CONTAINER = "unauthorized-virtual-chunk-container"
    UNAUTHORIZED_OBJECTS = "unauthorized-objects"
    INVALID_DATASET = "invalid-dataset"
    UNKNOWN_FORMAT = "unknown-format"
    UNREFERENCEABLE_DATA = "unreferenceable-data"
    MISSING_PACKAGE = "missing-package"
    INVALID_FEATURE_FLAG = "invalid-feature-flag"
    BAD_SNAPSHOT_CHAIN_FOR_DIFF = "bad-snapshot-chain-for-diff"
    INVALID_REFERENCES = "invalid-references"
    # SessionStateError
    COMMIT_NOT_ALLOWED = "commit-not-allowed"
    NO_CHANGES_TO_COMMIT = "no-changes-to-commit"
    NO_AMEND_FOR_INITIAL_COMMIT = "no-amend-for-initial-commit"
    REARRANGE_SESSION_ONLY = "rearrange-session-only"
    NON_REARRANGE_SESSION = "non-rearrange-session"
    MOVE_INTO_SELF_OR_DESCENDANT = "move-into-self-or-descendant"
    MOVE_DESTINATION_PARENT_MISSING = "move-destination-parent-missing"
    MOVE_DESTINATION_PARENT_NOT_GROUP = "move-destination-parent-not-group"
    MERGE_NOT_ALLOWED = "merge-not-allowed"
    MERGE_FAILED = "merge-failed"
    CANNOT_FORK_READ_ONLY_SESSION = "cannot-fork-read-only-session"
    CANNOT_DELETE_MAIN = "cannot-delete-main"
    NOT_PICKLABLE = "not-picklable"
    FORKED_IN_USE = "forked-in-use"
    FEATURE_FLAG_DISABLED = "feature-flag-disabled"
    PAYLOAD_COLLECTED = "payload-collected"
    # StorageError
    IO = "io"
    BUSY = "busy"
    STORAGE_FULL = "storage-full"
    STORAGE_CONFIG = "storage-config"
    UNSUPPORTED_STORAGE = "unsupported-storage"
    VIRTUAL_CHUNK_FETCH = "virtual-chunk-fetch"
    VIRTUAL_CHUNK_MODIFIED = "virtual-chunk-modified"
    INVALID_OBJECT_SIZE = "invalid-object-size"
    CATALOG_REPLACED = "catalog-replaced"
    CATALOG_DELETED = "catalog-deleted"
    UNSAFE_STORAGE = "unsafe-storage"
    UNREADABLE_SOURCE = "unreadable-source"
    # FormatError
    NOT_A_CATALOG = "not-a-catalog"
    EMPTY_FILE = "empty-file"
    NOT_A_FILE = "not-a-file"
    OTHER_APPLICATION = "other-application"
    TRUNCATED_FILE = "truncated-file"
    UNSUPPORTED_SPEC_VERSION = "unsupported-spec-version"
    UNEXPECTED_SCHEMA = "unexpected-schema"
    UNSAFE_SIDECAR = "unsafe-sidecar"
    CORRUPT = "corrupt"
    OVER_BUDGET = "over-budget"
    # InternalError
    UNKNOWN = "unknown"


_CLIENT_ERRORS = (
    ("zlib", "error"),
    ("lzma", "LZMAError"),
    ("zstandard", "ZstdError"),
    ("zipfile", "BadZipFile"),
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("aiohttp", "ClientError"),
)


def client_errors(*more: type[Exception]) -> tuple[type[Exception], ...]:
    """The exceptions of disks, decompressors and clients of services, as far as those are imported, and ``more``."""
    found: list[type[Exception]] = [OSError, EOFError, *more]
    for module, name in _CLIENT_ERRORS:
        kind = getattr(sys.modules.get(module), name, None)
        if isinstance(kind, type) and issubclass(kind, Exception):
            found.append(kind)
    return tuple(found)


def disk_kind(error: Exception) -> ErrorKind:
    """The kind of an error of a disk: ``storage-full``, or ``io``."""
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    return ErrorKind.STORAGE_FULL if full else ErrorKind.IO


FILES_OF_A_PACKAGE = 16  # that loading one has open at the same time, and its event loop afterwards


def check_open_files(what: str, count: int = FILES_OF_A_PACKAGE) -> None:
    """Refuse where this process may not open ``count`` more files; ``what`` cannot be done then.

    A package that is loaded there fails as if it were not installed, or worse.

    Raises
    ------
    StorageError
        ``io``.
    """
    with contextlib.ExitStack() as opened:
        try:
            for _ in range(count):
                opened.callback(os.close, os.open(os.devnull, os.O_RDONLY))
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise StorageError(
                    f"{what}: this process has too many open files; close some, or raise its limit (ulimit -n)",
                    ErrorKind.IO,
                ) from error
            raise


_USERINFO = re.compile(r"(?<=://)[^/\s]*@")
_PARAMETER = re.compile(r"((?:[?&;#]|%3F|%26)([^=&;#\s]+?)(?:=|%3D))([^&;#\s'\"]+)", re.IGNORECASE)
_SECRET_NAME = re.compile(
    r".*(?:sig|signature|token|secret|password|passwd|pwd|auth|authorization|credentials?|api-?_?key"
    r"|access-?_?key(?:-?_?id)?|hmac|jwt|hdnts|hdnea)",
    re.IGNORECASE | re.DOTALL,
)
CUT = "***"


def redact(text: str) -> str:
    """Text with the passwords and signatures of all URLs in it cut out: the one rule for what is shown of a URL."""
    if "://" not in text and "=" not in text and "%3" not in text:
        return text
    return _PARAMETER.sub(_cut, _USERINFO.sub(f"{CUT}@", text))


def _cut(match: re.Match[str]) -> str:
    return match[1] + CUT if _SECRET_NAME.fullmatch(unquote(match[2])) else match[0]


def has_secret(url: str) -> bool:
    """Whether a URL carries a password or a signature."""
    return redact(url) != url


class IceliteError(Exception):
    """Base of everything icelite raises.

    Attributes
    ----------
    message : str
        What happened, to what, and what to do about it.
    kind : ErrorKind
        The cause as a code; equal to a plain string such as ``"branch-not-found"``.
    """

    def __init__(self, message: str, kind: ErrorKind = ErrorKind.UNKNOWN) -> None:
        message = redact(message)
        super().__init__(message)
        self.message = message
        self.kind = kind

    def __str__(self) -> str:  # a KeyError would print its message in quotes
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self.kind, self.__dict__)


IcechunkError = IceliteError  # the name that code for Icechunk catches


def _rebuild(cls: type[IceliteError], message: str, kind: ErrorKind, state: dict[str, Any]) -> IceliteError:
    error = cls(message, kind)
    error.__dict__.update(state)
    return error


class ConflictError(IceliteError):
    """Somebody else moved the branch first.

    Attributes
    ----------
    expected_parent, actual_parent : str or None
        Snapshot ids: the tip this session started from, and the tip it found.
    """

    def __init__(
        self,
        message: str,
        kind: ErrorKind = ErrorKind.COMMIT_CONFLICT,
        *,
        expected_parent: str | None = None,
        actual_parent: str | None = None,
    ) -> None:
        super().__init__(message, kind)
        self.expected_parent = expected_parent
        self.actual_parent = actual_parent


class RebaseFailedError(ConflictError):
    """The changes of a session and of a snapshot committed before it exclude each other.

    Attributes
    ----------
    snapshot
        Id of that snapshot.
    conflicts
        `icelite.conflicts.Conflict`, one for each change of ours that cannot stay.
    """

    def __init__(
        self,
        message: str,
        kind: ErrorKind = ErrorKind.REBASE_FAILED,
        *,
        snapshot: str = "",
        conflicts: Sequence[Any] = (),
    ) -> None:
        super().__init__(message, kind)
        self.snapshot = snapshot
        self.conflicts = list(conflicts)


class NotFoundError(IceliteError, KeyError):
    """Something named does not exist."""


class NodeNotFoundError(NotFoundError):
    """No group or array at that path."""


class SnapshotNotFoundError(NotFoundError):
    """No snapshot with that id, or none that early."""


class RefNotFoundError(NotFoundError):
    """No branch or tag of that name."""


class RepositoryNotFoundError(NotFoundError, FileNotFoundError):
    """No repository at that path or URL; a `FileNotFoundError`, as opening any other file raises."""


class KeyNotFoundError(NotFoundError, FileNotFoundError):
    """No value under that Zarr key; a `FileNotFoundError`, as `zarr.abc.store.Store.getsize` asks."""


class AlreadyExistsError(IceliteError):
    """The name or path is taken."""


class ReadOnlyError(IceliteError, ValueError):
    """A write on something read-only; a `ValueError`, as zarr's own stores raise."""


class InvalidInputError(IceliteError, ValueError):
    """An argument that cannot be used; nothing was changed."""


class SessionStateError(IceliteError):
    """The session is not in a state for this call."""


class StorageError(IceliteError):
    """Bytes could not be read or written: I/O, a busy file, credentials, a changed source."""


class FormatError(IceliteError):
    """The file is not a catalog that this release can trust and read."""


class InternalError(IceliteError):
    """A fault of icelite itself: please report it."""
