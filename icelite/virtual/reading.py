"""Files of other people read for the first time, before anything is recorded of them: what parsers read.

One request gives the first bytes of a file and says what it looks like; every later one must find it so. Small files
cost that one request.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

from icelite.errors import ErrorKind, StorageError, redact
from icelite.types import SourceStamp
from icelite.virtual.access import VirtualAccess
from icelite.virtual.clients import run
from icelite.virtual.remote import Target
from icelite.virtual.source import AnswerError
from icelite.virtual.stamps import contradicts, describe

HEAD_BYTES = 1 << 19
BLOCK_BYTES = 1 << 18
MOST_AT_ONCE = 32  # blocks in one request
CACHE_BLOCKS = 128
MOST_READERS = 8


class FileReader:
    """The bytes of one remote file, which stays what it was at the first look.

    Pickled, it forgets the bytes but not what the file looked like.

    Parameters
    ----------
    url
        As references to the file will be written.
    access
        Gives the way to it.
    """

    def __init__(self, url: str, access: VirtualAccess) -> None:
        self.url = url
        self._access = access
        self._stamp: SourceStamp | None = None
        self._begin()

    def _begin(self) -> None:
        self._lock = threading.RLock()
        self._target: Target | None = None
        self._head = b""
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._next, self._run = -1, 1

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "_access": self._access, "_stamp": self._stamp}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    def stamp(self) -> SourceStamp:
        """What the file looked like at the first look.

        Raises
        ------
        FileNotFoundError, StorageError
            When it is not there; ``unreadable-source``.
        """
        with self._lock:
            if self._stamp is None:
                self._head = self._fetch(0, HEAD_BYTES)
            assert self._stamp is not None
            return self._stamp

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return int(self.stamp().size or 0)

    def read(self, start: int, stop: int) -> bytes:
        """The bytes ``[start, stop)``, fewer at the end of the file.

        Raises
        ------
        FileNotFoundError, StorageError
            As `stamp`; ``virtual-chunk-modified`` when the file is another one by now.
        """
        with self._lock:
            stop = min(stop, self.size)
            if start >= stop:
                return b""
            if stop <= len(self._head):
                return self._head[start:stop]
            if stop - start > CACHE_BLOCKS // 2 * BLOCK_BYTES:
                return self._fetch(start, stop)
            self._load(start // BLOCK_BYTES, -(-stop // BLOCK_BYTES))
            parts = [self._blocks[number] for number in range(start // BLOCK_BYTES, -(-stop // BLOCK_BYTES))]
            first = start // BLOCK_BYTES * BLOCK_BYTES
            data = b"".join(parts)[start - first : stop - first]
            while len(self._blocks) > CACHE_BLOCKS:
                self._blocks.popitem(last=False)
            return data

    def _load(self, first: int, stop: int) -> None:
        """See to it that these blocks are here; more at once while reads follow each other."""
        self._run = min(self._run * 2, MOST_AT_ONCE) if first == self._next else 1
        self._next = stop
        last = -(-self.size // BLOCK_BYTES)
        number = first
        while number < stop:
            if number in self._blocks:
                self._blocks.move_to_end(number)
                number += 1
                continue
            end = min(max(stop, number + self._run), last)
            end = next((block for block in range(number, end) if block in self._blocks), end)
            data = self._fetch(number * BLOCK_BYTES, min(end * BLOCK_BYTES, self.size))
            for skipped in range(0, len(data), BLOCK_BYTES):
                self._blocks[number + skipped // BLOCK_BYTES] = data[skipped : skipped + BLOCK_BYTES]
            number = end

    def _fetch(self, start: int, stop: int) -> bytes:
        if self._target is None:
            self._target = self._access.lookup_target(self.url)
        try:
            found, data = run(self._target.read_range(self._target.connect(), start, stop))
        except AnswerError as error:
            problem, status = error.problem, error.status
        else:
            return self._checked(found, data, start, stop)
        if status in (404, 410):
            raise FileNotFoundError(self.url)
        if status == 416 and start == 0:  # an empty file
            self._stamp = self._stamp or SourceStamp(size=0)
            return b""
        raise self.unreadable(problem)

    def _checked(self, found: SourceStamp, data: bytes, start: int, stop: int) -> bytes:
        if found.size is None:
            raise self.unreadable("has no length, says its server")
        if self._stamp is None:
            self._stamp = found
        if contradicts(found, self._stamp):
            raise StorageError(
                f"source {redact(self.url)!r} changed while it was parsed: first {describe(self._stamp)}, then"
                f" {describe(found)}; try again when nobody writes to it",
                ErrorKind.VIRTUAL_CHUNK_MODIFIED,
            )
        if len(data) != min(stop, found.size) - start:
            raise self.unreadable(f"gave {len(data)} bytes of {stop - start}")
        return data

    def unreadable(self, problem: str) -> StorageError:
        """The error for a file that cannot be read."""
        return StorageError(f"source {redact(self.url)!r} {problem}", ErrorKind.UNREADABLE_SOURCE)


class FileReaders:
    """The remote files of one scan, each read by one reader; pickles to the processes that scan."""

    def __init__(self, access: VirtualAccess) -> None:
        self._access = access
        self._readers: OrderedDict[str, FileReader] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {"_access": self._access, "_readers": OrderedDict()}

    def lookup(self, url: str) -> FileReader:
        """The reader of a file, which may have read some of it."""
        reader = self._readers.get(url)
        if reader is None:
            reader = self._readers[url] = FileReader(url, self._access)
            while len(self._readers) > MOST_READERS:
                self._readers.popitem(last=False)
        self._readers.move_to_end(url)
        return reader

    def lookup_target(self, url: str) -> Target:
        """The way to an object, for what reads it otherwise; raises as `VirtualAccess.lookup_target`."""
        return self._access.lookup_target(url)
