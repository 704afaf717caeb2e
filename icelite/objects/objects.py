"""The objects of a repository: written, listed and deleted: in a folder, in a bucket, or where there are none.

An object is durable, and so are the folders that lead to it, before its key is handed out.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from icelite.credentials import AnyS3Credential, S3Options
from icelite.drafts import unfinished, write_whole
from icelite.errors import ErrorKind, FormatError, InvalidInputError, StorageError, disk_kind
from icelite.objects.keys import FOLDERS, KEY, check_key, new_key, virtual_location
from icelite.types import Location
from icelite.virtual.s3 import client_for, library_errors
from icelite.virtual.urls import is_under

WRITERS = 4  # local files written at once: each waits for its fsync
DELETES_AT_ONCE = 1000  # what S3 takes in one request


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object that a listing found; ``size`` in bytes."""

    key: str
    size: int


class Objects:
    """The objects of one repository: a folder of this machine.

    Parameters
    ----------
    url
        ``file:///.../``, where the keys begin.
    root
        The same as the catalog stores it: relative to its directory, or the URL.
    """

    writes = True
    is_remote = False

    def __init__(self, url: str, root: str) -> None:
        self.url = url
        self.root = root
        self._folder = Path(url.removeprefix("file://"))
        # what the folder must lie in, links resolved: the catalog's directory, or what the caller named
        self._home = str(self._folder) if "://" in root else url.removeprefix("file://").removesuffix(root)
        self._above = list(self._folder.parents)[: 1 if "://" in root else len(Path(root).parts)]  # to sync once

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.url!r}>"

    def location(self, location: Location, chunk: str) -> Location:
        """The location of an object's bytes, as a virtual one, which `icelite.virtual` opens.

        Raises
        ------
        FormatError
            ``corrupt`` when the catalog names something else than an object.
        """
        return virtual_location(location, self.root)

    def put(self, bodies: Sequence[bytes]) -> list[str]:
        """Write objects, several at once, durably; their keys.

        Raises
        ------
        StorageError, InvalidInputError
            ``storage-full``, ``io``; some may have been written, and nothing refers to them. ``unauthorized-objects``
            for a folder that is a link to somewhere else.
        """
        keys = [new_key() for _ in bodies]
        folders = dict.fromkeys(key[:2] for key in keys)
        made = [self._make_folder(folder) for folder in folders]
        with ThreadPoolExecutor(WRITERS) as pool:
            list(pool.map(self._write, keys, bodies))
            # each once, the inner ones first: another process may have made a folder and not synced it yet
            list(pool.map(self._sync_folder, [*(self._folder / folder for folder in folders), self._folder]))
        for folder in dict.fromkeys([*(folder for each in made for folder in each), *self._above]):
            self._sync_folder(folder)
        self._above = []
        return keys

    def _make_folder(self, name: str) -> list[Path]:
        """Make one of the folders that keys begin with; the folders that got a new entry, inner ones first."""
        path = self._folder / name
        try:
            missing = list(itertools.takewhile(lambda folder: not folder.exists(), [path, *path.parents]))
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _local_error(path, "written", error) from error
        self._check_inside(path)
        return [folder.parent for folder in missing]

    def _check_inside(self, folder: Path) -> None:
        """Refuse a folder that is a link to somewhere else, which reading would refuse too.

        Raises
        ------
        InvalidInputError
            ``unauthorized-objects``.
        """
        real = os.path.realpath(folder)
        allowed = os.path.realpath(self._home)
        if not is_under(real, allowed):
            raise InvalidInputError(
                f"the objects folder {folder} leads to {real}, outside {allowed}; put the folder itself there, or open"
                " the repository with objects= and the folder that it leads to",
                ErrorKind.UNAUTHORIZED_OBJECTS,
            )

    def _write(self, key: str, data: bytes) -> None:
        path = self._folder / key
        try:
            write_whole(path, data)
        except OSError as error:
            raise _local_error(path, "written", error) from error

    @staticmethod
    def _sync_folder(folder: Path) -> None:
        """Make new names durable."""
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise _local_error(folder, "written", error) from error

    def scan(self) -> Iterator[StoredObject]:
        """Every object, folder by folder; other files are left out.

        Raises
        ------
        StorageError, InvalidInputError
            ``io``; ``unauthorized-objects`` for a folder that is a link to somewhere else.
        """
        for folder in FOLDERS:
            try:
                with os.scandir(self._folder / folder) as entries:
                    self._check_inside(self._folder / folder)
                    found = [(entry.name.removeprefix("."), _size_of(entry)) for entry in entries]
            except FileNotFoundError:
                continue
            except OSError as error:
                raise _local_error(self._folder / folder, "listed", error) from error
            for name, size in found:
                if size is not None and KEY.fullmatch(f"{folder}/{name}") and name[-2:] == folder:
                    yield StoredObject(f"{folder}/{name}", size)

    def delete(self, keys: Sequence[str]) -> None:
        """Remove objects; no error for one that is gone.

        Raises
        ------
        StorageError, InvalidInputError
            ``io``; ``unauthorized-objects`` as `scan`.
        """
        for key in keys:
            path = self._folder / check_key(key)
            self._check_inside(path.parent)
            try:
                path.unlink(missing_ok=True)
                unfinished(path).unlink(missing_ok=True)  # of a writer that crashed
            except OSError as error:
                raise _local_error(path, "removed", error) from error


def _size_of(entry: os.DirEntry[str]) -> int | None:
    """Bytes of a file; None for a folder, or when it is gone by now: another may sweep, and drafts get their names."""
    try:
        return None if entry.is_dir(follow_symlinks=False) else entry.stat(follow_symlinks=False).st_size
    except FileNotFoundError:
        return None


def _local_error(path: Path, done: str, error: OSError) -> StorageError:
    return StorageError(f"object {path} could not be {done}: {error.strerror}", disk_kind(error))


# -- buckets -----------------------------------------------------------------------------------------------------------


class Connect:
    """Gives an fsspec filesystem; a class, so that it pickles."""

    def __init__(self, protocol: str) -> None:
        self._protocol = protocol

    def __call__(self) -> Any:
        """The fsspec filesystem of the protocol, with what the environment says about credentials."""
        import fsspec

        try:
            return fsspec.filesystem(self._protocol)
        except ImportError as error:
            raise InvalidInputError(
                f"objects under {self._protocol}:// need a package that is not installed: {error}",
                ErrorKind.STORAGE_CONFIG,
            ) from error


class S3Connect(Connect):
    """Gives an s3fs filesystem with the caller's credentials and options."""

    def __init__(self, credentials: AnyS3Credential, options: S3Options) -> None:
        super().__init__("s3")
        self._credentials = credentials
        self._options = options

    def __call__(self) -> Any:
        """See `Connect`; the client is shared with whatever else uses these credentials."""
        return client_for(self._credentials, self._options).filesystem()


class RemoteObjects(Objects):
    """The objects of one repository, in a bucket or wherever else fsspec can write.

    Parameters
    ----------
    connect
        Gives the fsspec filesystem to use now; called for each operation, since keys expire.
    """

    is_remote = True

    def __init__(self, url: str, root: str, connect: Connect) -> None:
        super().__init__(url, root)
        self._connect = connect

    def put(self, bodies: Sequence[bytes]) -> list[str]:
        """See `Objects.put`."""
        keys = [new_key() for _ in bodies]
        self._call("written", "pipe", {self.url + key: data for key, data in zip(keys, bodies, strict=True)})
        return keys

    def scan(self) -> Iterator[StoredObject]:
        """See `Objects.scan`."""
        found: dict[str, dict[str, Any]] = self._call("listed", "find", self.url, detail=True)
        for path, info in found.items():
            key = "/".join(path.rsplit("/", 2)[-2:])
            if KEY.fullmatch(key) and key[:2] == key[-2:]:
                yield StoredObject(key, int(info["size"]))

    def delete(self, keys: Sequence[str]) -> None:
        """See `Objects.delete`."""
        for start in range(0, len(keys), DELETES_AT_ONCE):
            some = keys[start : start + DELETES_AT_ONCE]
            self._call("removed", "rm", [self.url + check_key(key) for key in some])

    def _call(self, done: str, method: str, *arguments: Any, **options: Any) -> Any:
        """One call of the filesystem, its failures translated without a word of the libraries below."""
        filesystem = self._connect()
        failures: tuple[type[Exception], ...] = library_errors() if "botocore" in sys.modules else (OSError, ValueError)
        try:
            filesystem.invalidate_cache()  # others write there too
            return getattr(filesystem, method)(*arguments, **options)
        except FileNotFoundError:
            if method == "find":
                return {}
            if method == "rm":  # somebody else was quicker
                return None
            problem = "the bucket does not exist"
        except PermissionError:
            problem = "access was denied; check the credentials, and that they may write, list and delete there"
        except failures as error:
            problem = f"{type(error).__name__}; check the network, the endpoint and the credentials"
        # out here, the library's exception is not the context of this one
        raise StorageError(f"objects under {self.url} could not be {done}: {problem}", ErrorKind.IO)


# -- none that can be written ------------------------------------------------------------------------------------------


class NoObjects:
    """No objects: of a repository that keeps its chunks in the catalog, or one whose objects were not allowed.

    Parameters
    ----------
    root
        What the catalog says: the URL that the caller would have to allow, or None.
    """

    writes = False
    is_remote = False

    def __init__(self, root: str | None = None) -> None:
        self.root = root

    def location(self, location: Location, chunk: str) -> Location:
        """Refuse to read an object.

        Raises
        ------
        InvalidInputError, FormatError
            ``unauthorized-objects``, with the line that allows it; ``corrupt`` when the catalog does not say where.
        """
        if self.root is None:
            raise FormatError(
                f"chunk {chunk} is in a native object, and the catalog does not say where those are", ErrorKind.CORRUPT
            )
        raise InvalidInputError(
            f"chunk {chunk} is in an object under {self.root}, outside the catalog's folder; to allow it, open the"
            f" repository with objects={self.root!r}, or with a StorageConfig that holds the credentials",
            ErrorKind.UNAUTHORIZED_OBJECTS,
        )

    def put(self, bodies: Sequence[bytes]) -> list[str]:
        """Refuse to write an object; raises as `location`."""
        raise InvalidInputError(
            f"chunks go into objects under {self.root}, outside the catalog's folder; to allow it, open the"
            f" repository with objects={self.root!r}, or with a StorageConfig that holds the credentials",
            ErrorKind.UNAUTHORIZED_OBJECTS,
        )


class ReadOnlyObjects(NoObjects):
    """The objects of a repository on a web server, beside its catalog."""

    is_remote = True

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self._root = root

    def location(self, location: Location, chunk: str) -> Location:
        """See `Objects.location`."""
        return virtual_location(location, self._root)
