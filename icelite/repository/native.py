"""Where a repository's objects are: what the caller said, what the catalog says, and who may use it.

The catalog stores the root of the objects in the setting ``objects``: a folder under its own directory is relative
and moves with it, everything else is a URL. A relative root needs no authorisation, as relative references do not;
a URL is used only when the caller gives it, with credentials that are never stored.

Each repository has a folder of its own below what the caller names: two that were given the same place must not
collect each other's objects.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import unquote

from icelite.budget import MAX_SEGMENTS
from icelite.catalog.database import Transaction
from icelite.catalog.settings import find_setting, save_setting
from icelite.catalog.values import damaged
from icelite.config import RepositoryConfig, VirtualChunkContainer
from icelite.credentials import AnyCredential, AnyS3Credential, LocalFileSystemAccess, S3Credentials, S3Options
from icelite.errors import ErrorKind, InvalidInputError, has_secret, shown
from icelite.objects import Connect, NoObjects, Objects, ReadOnlyObjects, RemoteObjects, S3Connect
from icelite.storage import (
    EXTENSION,
    AnyObjectStoreConfig,
    ObjectStoreConfig,
    RemoteAddress,
    S3Address,
    StorageConfig,
    is_encodable,
)
from icelite.types import CROCKFORD, new_snapshot_id
from icelite.virtual import VirtualAccess
from icelite.virtual.urls import relative_path

SETTING = "objects"
SCHEMES = ("s3", "gs", "az", "abfs", "memory")

OWN_FOLDER = re.compile(f"[{CROCKFORD}]{{20}}")

Storage = str | os.PathLike[str] | StorageConfig
ObjectStorage = str | os.PathLike[str] | StorageConfig
Access = Mapping[str, AnyCredential | None]


@dataclass(frozen=True, slots=True)
class ObjectsFolder:
    """Where objects are and how to get there.

    Attributes
    ----------
    root
        As the catalog stores it; it ends in ``/``.
    url
        The same, absolute.
    """

    root: str
    url: str
    credentials: AnyS3Credential | None = None
    options: S3Options | None = None

    @property
    def scheme(self) -> str:
        """What the URL begins with."""
        return self.url.partition("://")[0]

    def objects(self) -> Objects | NoObjects:
        """What writes there."""
        if self.scheme in ("http", "https"):
            return ReadOnlyObjects(self.root)
        if self.scheme == "file":
            return Objects(self.url, self.root)
        if self.scheme == "s3":
            connect: Connect = S3Connect(self.credentials or S3Credentials.FromEnv(), self.options or S3Options())
        else:
            connect = Connect(self.scheme)
        return RemoteObjects(self.url, self.root, connect)

    def container(self) -> VirtualChunkContainer:
        """The place as `icelite.virtual` reads it."""
        store: AnyObjectStoreConfig | None = None
        if self.scheme == "s3" and self.options is not None:
            store = ObjectStoreConfig.S3(self.options)
        return VirtualChunkContainer(self.url, store)

    def authorization(self) -> AnyCredential | None:
        """What reading there needs."""
        return LocalFileSystemAccess if self.scheme == "file" else self.credentials


def locate_objects(given: ObjectStorage, storage: StorageConfig) -> ObjectsFolder:
    """The place that a caller named.

    Parameters
    ----------
    given
        A folder: relative to the catalog's directory, or absolute; a URL; or a `StorageConfig` in S3.
    storage
        Where the catalog is.

    Raises
    ------
    InvalidInputError
        ``invalid-path``, ``storage-config``, ``invalid-argument``.
    """
    if isinstance(given, StorageConfig):
        return _locate_storage(given, storage)
    text: object = os.fspath(given)
    if not isinstance(text, str) or not text.strip("/") or not is_encodable(text) or not _is_plain(text):
        raise InvalidInputError(
            f"objects={shown(given)} is not a folder or URL such as './chunks' or 's3://bucket/chunks'",
            ErrorKind.INVALID_PATH,
        )
    scheme, mark, rest = text.partition("://")
    if mark and scheme != "file":
        if scheme not in SCHEMES or not rest.strip("/") or ".." in rest.split("/") or has_secret(text):
            raise InvalidInputError(
                f"objects={text!r} is not a URL that objects can be written to; expected"
                f" one of {', '.join(SCHEMES)}:// with a bucket, and credentials in a StorageConfig",
                ErrorKind.STORAGE_CONFIG,
            )
        return ObjectsFolder(_closed(text), _closed(text))
    if mark and not rest.startswith("/"):
        raise InvalidInputError(
            f"objects={text!r} names a host; expected 'file:///...' or a folder", ErrorKind.INVALID_PATH
        )
    return _locate_folder(rest if mark else text, storage)


def _is_plain(text: str) -> bool:
    """Whether the names of folders mean what they say, also as parts of the URLs by which objects are read."""
    decoded = unquote(text)
    dots = {".", ".."}.isdisjoint
    if "\0" in decoded or "\\" in decoded or text.count("/") > MAX_SEGMENTS:
        return False
    return dots(decoded.split("/")) or not dots(text.split("/"))


def own_folder(place: ObjectsFolder) -> ObjectsFolder:
    """The folder of a new repository in a place that others may have been given too."""
    return _below(place, new_snapshot_id())


def _below(place: ObjectsFolder, name: str) -> ObjectsFolder:
    return replace(place, root=f"{place.root}{name}/", url=f"{place.url}{name}/")


def default_objects(storage: StorageConfig) -> str | None:
    """Where objects of a new repository go unless the caller says otherwise; None: nowhere, all is in the catalog.

    A commit to a catalog in a bucket sends the whole catalog, so chunks are better kept beside it.
    """
    if not isinstance(storage.address, S3Address):
        return None
    return storage.address.key.rpartition("/")[2].removesuffix(EXTENSION) + ".chunks"


def _locate_folder(path: str, storage: StorageConfig) -> ObjectsFolder:
    if storage.address is not None:
        return _locate_beside(path, storage.address)
    directory = storage.directory
    if directory is None and not os.path.isabs(path):
        raise InvalidInputError(
            f"objects={path!r} is relative, and {storage.name} has no directory; give an absolute path",
            ErrorKind.INVALID_PATH,
        )
    absolute = os.path.realpath(os.path.join(directory or "/", os.path.expanduser(path)))
    url = _closed("file://" + absolute)
    if directory is None:
        return ObjectsFolder(url, url)
    inside = os.path.relpath(absolute, os.path.realpath(directory))
    if inside == "." or absolute == "/" or absolute == str(storage.path):
        raise InvalidInputError(
            f"objects={path!r} is the catalog or its own folder; give them one of their own, such as './chunks'",
            ErrorKind.INVALID_PATH,
        )
    # ".." first is a folder above, "..x" is a name
    return ObjectsFolder(url if inside == ".." or inside.startswith("../") else _closed(inside), url)


def _locate_beside(path: str, remote: RemoteAddress) -> ObjectsFolder:
    """A folder beside a catalog that is not on this machine, reached as the catalog is."""
    root = _closed(path.removeprefix("./"))
    if root.startswith("/") or not {"", ".", ".."}.isdisjoint(root[:-1].split("/")):
        raise InvalidInputError(
            f"objects={path!r} is no folder beside {remote.url}; expected one such as 'chunks', or a URL",
            ErrorKind.INVALID_PATH,
        )
    if isinstance(remote, S3Address):
        return ObjectsFolder(root, remote.base + root, remote.credentials, remote.options)
    return ObjectsFolder(root, remote.base + root)  # on a web server: only read, as relative references are


def _locate_storage(given: StorageConfig, storage: StorageConfig) -> ObjectsFolder:
    if given.path is not None:
        return _locate_folder(str(given.path), storage)
    if isinstance(given.address, S3Address):
        return ObjectsFolder(given.address.base, given.address.base, given.address.credentials, given.address.options)
    raise InvalidInputError(
        f"objects cannot be in {given!r}; expected a folder or a StorageConfig in S3", ErrorKind.STORAGE_CONFIG
    )


def _closed(url: str) -> str:
    return url if url.endswith("/") else url + "/"


def save_place(txn: Transaction, place: ObjectsFolder) -> None:
    """Let the catalog say where its objects are."""
    save_setting(txn, SETTING, {"root": place.root})


def find_root(txn: Transaction) -> str | None:
    """Where the catalog says that its objects are, or None when it has none.

    Raises
    ------
    FormatError
        ``corrupt``.
    """
    stored: Any = find_setting(txn, SETTING)
    if stored is None:
        return None
    root = stored.get("root") if isinstance(stored, dict) else None
    if not isinstance(root, str) or not root.endswith("/") or ".." in root.split("/"):
        raise damaged(f"setting {SETTING!r}", f"{root!r} is no place for objects")
    if "://" not in root:
        try:
            relative_path(root)
        except InvalidInputError as error:
            raise damaged(f"setting {SETTING!r}", f"{root!r} is no folder for objects") from error
    return root


def find_place(root: str | None, given: ObjectStorage | None, storage: StorageConfig) -> ObjectsFolder | None:
    """The place to use: the caller's, or the stored one where that is relative; None where neither is.

    Raises
    ------
    InvalidInputError
        As `locate_objects`.
    """
    if given is not None:
        place = locate_objects(given, storage)
        if root is None:
            return None
        # What the caller says counts, also when the objects are somewhere else today; with the repository's own folder
        # or without.
        name = root.rstrip("/").rpartition("/")[2]
        is_own = OWN_FOLDER.fullmatch(name) and not place.url.endswith(f"/{name}/")
        return _below(place, name) if is_own else place
    if root is None or "://" in root:
        return None
    if storage.directory is None:
        return None if storage.address is None else _locate_beside(root, storage.address)
    # Not resolved: a folder that is a link out of the directory is refused like any other relative reference.
    return ObjectsFolder(root, f"file://{storage.directory}/{root}")


def open_objects(place: ObjectsFolder | None, root: str | None) -> Objects | NoObjects:
    """What reads and writes the objects of a repository."""
    return NoObjects(root) if place is None else place.objects()


def open_access(
    storage: StorageConfig,
    containers: Mapping[str, VirtualChunkContainer],
    config: RepositoryConfig | None,
    access: Access | None,
    place: ObjectsFolder | None,
    at_home: bool,
    in_force: RepositoryConfig,
) -> VirtualAccess:
    """What a repository may read: the caller's containers and credentials, and the place of its objects."""
    given = (config.virtual_chunk_containers if config is not None else None) or {}
    declared = {prefix: container for prefix, container in given.items() if not container.from_catalog}
    allowed = dict(access or {})
    if place is not None and "://" in place.root:  # not under the catalog's directory: the caller allowed it
        declared[place.url] = place.container()
        allowed[place.url] = place.authorization()
    return VirtualAccess(
        directory=storage.directory,
        at_home=at_home,
        containers=containers,
        declared=declared,
        access=allowed,
        catalog=storage.path,
        address=storage.address,
        signed=in_force.store_signed_urls,
    )
