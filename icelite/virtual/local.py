"""Reading local files by position, through descriptors that stay open a while.

The descriptors are the process's, least recently used first to go. One in use survives its eviction: it is closed
when the last reader drops it. A file is opened only after `stat` said that it is a regular one (opening a FIFO would
wait, a device may act). A catalog must never be opened here (`is_catalog`): closing any descriptor of a SQLite
database drops the locks that SQLite holds on it in this process.
"""

from __future__ import annotations

import asyncio
import os
import stat
import threading
from collections import OrderedDict

from icelite.errors import StorageError
from icelite.types import Location, SourceStamp
from icelite.virtual.source import fetch_error, modified_error, range_error
from icelite.virtual.stamps import is_newer, stamp_of_file

MAX_DESCRIPTORS = 128
_BLOCKING_BYTES = 1 << 20  # above, a read would hold an event loop for long: it goes to a thread


class Descriptor:
    """An open file descriptor, closed when nobody refers to it any more."""

    __slots__ = ("__weakref__", "number")

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.close(self.number)


class DescriptorCache:
    """The most recently used descriptors by path; safe between threads and after a fork."""

    def __init__(self, limit: int = MAX_DESCRIPTORS) -> None:
        self.limit = limit
        self.clear()

    def clear(self) -> None:
        """Forget every descriptor."""
        self._lock = threading.Lock()
        self._open: OrderedDict[str, Descriptor] = OrderedDict()

    def find(self, path: str) -> Descriptor | None:
        """The open descriptor of a path, or None."""
        descriptor = self._open.get(path)
        if descriptor is not None and len(self._open) > self.limit // 2:  # else none has to go soon
            with self._lock:
                if path in self._open:
                    self._open.move_to_end(path)
        return descriptor

    def put(self, path: str, descriptor: Descriptor) -> None:
        """Keep a descriptor, instead of an older one of the same path."""
        with self._lock:
            self._open[path] = descriptor
            self._open.move_to_end(path)
            evicted = self._open.popitem(last=False)[1] if len(self._open) > self.limit else None
        del evicted  # closed outside the lock

    def __len__(self) -> int:
        return len(self._open)


descriptors = DescriptorCache()
os.register_at_fork(after_in_child=descriptors.clear)  # another thread may have held the lock


def is_catalog(path: str, catalog: str | None) -> bool:
    """Whether a resolved path is the catalog (by any of its names), a file that SQLite keeps beside it, or another one.

    Other catalogs may be open in this process too; they are known by their extension.
    """
    for suffix in ("-journal", "-wal", "-shm"):
        path = path.removesuffix(suffix)
    if path == catalog or path.endswith(".icelite"):
        return True
    try:
        return catalog is not None and os.path.samefile(path, catalog)
    except OSError:
        return False  # one of them does not exist: then they are not the same


class LocalSource:
    """One local file.

    Parameters
    ----------
    path
        Absolute, symbolic links resolved.
    url
        How messages call it.
    check_time
        Whether the modification time counts; not after the file was copied together with its catalog.
    """

    is_local = True

    def __init__(self, location: Location, path: str, url: str, *, check_time: bool) -> None:
        self._location = location
        self._path = path
        self._url = url
        self._size = location.size
        self._modified_at = location.modified_at
        self._check_time = check_time and location.modified_at is not None

    def read(self, offset: int, length: int, chunk: str) -> bytes:
        """See `Source.read`."""
        try:
            descriptor, found = descriptors.find(self._path), None
            if descriptor is not None:
                try:
                    found = os.fstat(descriptor.number)
                except OSError:  # a network file system may call it stale; opening the file again shows why
                    found = None
            if descriptor is None or found is None or found.st_nlink == 0 or not self._is_current(found):
                descriptor, found = self._open_current(chunk)  # first, or again: another file may have its name now
            if offset < 0 or length < 0 or offset + length > found.st_size:
                raise range_error(chunk, self._url, offset, length, found.st_size)
            data = os.pread(descriptor.number, length, offset)
            if len(data) != length:
                data = self._read_rest(descriptor, data, offset, length, chunk)
            return data
        except OSError as error:
            raise self._translate(error, chunk) from error

    async def read_async(self, offset: int, length: int, chunk: str) -> bytes:
        """See `Source.read_async`; a small read costs less than handing it to a thread."""
        if length <= _BLOCKING_BYTES:
            return self.read(offset, length, chunk)
        return await asyncio.to_thread(self.read, offset, length, chunk)

    def check(self, chunk: str | None) -> SourceStamp | None:
        """See `Source.check`; the file is opened, since a directory entry does not say whether it can be."""
        try:
            _, found = self._open_current(chunk)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise self._translate(error, chunk) from error
        return stamp_of_file(found)

    def _is_current(self, found: os.stat_result) -> bool:
        if self._size is not None:
            if found.st_size != self._size:
                return False
            if found.st_mtime_ns == self._modified_at:
                return True
        return not (self._check_time and is_newer(found.st_mtime_ns, self._location, resolution=1))

    def _open_current(self, chunk: str | None) -> tuple[Descriptor, os.stat_result]:
        """The file, opened anew and found to be the one that was referenced."""
        descriptor = self._open(chunk)
        found = os.fstat(descriptor.number)
        if not self._is_current(found):
            raise modified_error(chunk, self._url, self._location, stamp_of_file(found))
        return descriptor, found

    def _open(self, chunk: str | None) -> Descriptor:
        self._check_kind(os.stat(self._path), chunk)
        # what these flags refuse can only have appeared since the check: a link, a pipe that would block
        descriptor = Descriptor(os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK))
        self._check_kind(os.fstat(descriptor.number), chunk)
        descriptors.put(self._path, descriptor)
        return descriptor

    def _check_kind(self, found: os.stat_result, chunk: str | None) -> None:
        if not stat.S_ISREG(found.st_mode):
            raise fetch_error(chunk, self._url, "is a directory, a pipe or a device, not a regular file")

    def _read_rest(self, descriptor: Descriptor, data: bytes, offset: int, length: int, chunk: str) -> bytes:
        parts, done = [data], len(data)  # Linux reads at most 2 GiB at once
        while done < length:
            data = os.pread(descriptor.number, length - done, offset + done)
            if not data:
                raise range_error(chunk, self._url, offset, length, offset + done)
            parts.append(data)
            done += len(data)
        return b"".join(parts)

    def _translate(self, error: OSError, chunk: str | None) -> StorageError:
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            recorded = "" if self._size is None else f" (recorded: {self._size} bytes)"
            problem = f"does not exist{recorded}; put the file back, or correct the reference"
        elif isinstance(error, PermissionError):
            problem = "may not be read by this user: permission denied"
        else:
            problem = f"cannot be read: {error.strerror or type(error).__name__}"
        return fetch_error(chunk, self._url, problem)
