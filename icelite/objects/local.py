"""The objects of a repository in a folder of this machine.

An object is durable, and so are the folders that lead to it, before its key is handed out.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from icelite.errors import ErrorKind, InvalidInputError, StorageError, disk_kind
from icelite.objects.keys import FOLDERS, KEY, check_key, new_key, virtual_location
from icelite.types import Location
from icelite.virtual.urls import is_under

WRITERS = 4  # local files written at once: each waits for its fsync


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
        """Where the bytes of an object are, as a virtual location, which `icelite.virtual` opens.

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
        draft = path.with_name(f".{path.name}")
        try:
            try:
                with draft.open("xb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                draft.replace(path)
            except BaseException:
                draft.unlink(missing_ok=True)
                raise
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
                path.with_name(f".{path.name}").unlink(missing_ok=True)  # the draft of a writer that crashed
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
