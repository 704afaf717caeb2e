"""SQLite reading a remote catalog by ranges: an apsw VFS of aligned blocks with a head, read-ahead and a bounded cache.

The VFS says that the file is immutable, so SQLite takes no locks, looks for no journal and keeps its page cache from
one transaction to the next (https://sqlite.org/c3ref/c_iocap_atomic.html). That holds because every block belongs to
one version of the object; when it is replaced, the next block cannot be read and says so.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import apsw

from icelite.vfs.pages import PageTree
from icelite.vfs.watchdog import Watchdog

HEAD_BYTES = 1 << 20
BLOCK_BYTES = 1 << 18
MOST_AHEAD = 4  # blocks in one request while reads follow each other
MOST_AT_ONCE = 16  # blocks in one request for a file that fits the cache
CACHE_BYTES = 64 << 20

Read = Callable[[int, int], bytes]

_numbers = itertools.count()


class BlockFile:
    """A read-only file of which SQLite asks for pages and the service is asked for blocks.

    Parameters
    ----------
    read
        Gives exactly the bytes ``[start, stop)``.
    size
        Bytes of the file.
    head
        Its first bytes, which stay.
    pages
        Checks each page before SQLite sees it.

    Attributes
    ----------
    last_read
        The half-open range of bytes that SQLite read last.
    """

    def __init__(self, read: Read, size: int, head: bytes, pages: PageTree | None = None) -> None:
        self.last_read = (0, 0)
        self._pages = pages
        self._read = read
        self._size = size
        self._head = head
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._next, self._run = -1, 1

    def _block(self, number: int) -> bytes:
        found = self._blocks.get(number)
        if found is not None:
            self._blocks.move_to_end(number)
            return found
        first, stop = self._plan(number)
        data = self._read(first * BLOCK_BYTES, min(stop * BLOCK_BYTES, self._size))
        for position in range(0, len(data), BLOCK_BYTES):
            self._blocks[first + position // BLOCK_BYTES] = data[position : position + BLOCK_BYTES]
        self._next = stop
        found = self._blocks[number]
        while len(self._blocks) > CACHE_BYTES // BLOCK_BYTES:
            self._blocks.popitem(last=False)
        return found

    def _plan(self, number: int) -> tuple[int, int]:
        """The half-open range of blocks to fetch for one that is missing.

        What follows the last one is read ahead. A file that fits the cache is fetched in ever larger parts wherever
        it is read, since a request costs more than a megabyte and all of them together are no more than the file.
        """
        if self._size <= CACHE_BYTES:
            first = number // self._run * self._run
            stop = min(first + self._run, -(-self._size // BLOCK_BYTES))
            self._run = min(self._run * 2, MOST_AT_ONCE)
            while first in self._blocks:
                first += 1
            while stop - 1 in self._blocks:
                stop -= 1
            return first, stop
        self._run = min(self._run * 2, MOST_AHEAD) if number == self._next else 1
        return number, number + self._run

    def xRead(self, amount: int, offset: int) -> bytes:  # the names are SQLite's
        """``amount`` bytes from ``offset``; fewer at the end of the file."""
        data = self._bytes(offset, min(offset + amount, self._size))
        self.last_read = offset, offset + len(data)
        if self._pages is not None and len(data) == self._pages.page_bytes:
            self._pages.check(offset // len(data) + 1, data)
        return data

    def _bytes(self, offset: int, stop: int) -> bytes:
        if stop <= len(self._head):
            return self._head[offset:stop]
        parts = []
        while offset < stop:
            number, skipped = divmod(offset, BLOCK_BYTES)
            part = self._block(number)[skipped : skipped + stop - offset]
            parts.append(part)
            offset += len(part)
        return b"".join(parts)

    def xFileSize(self) -> int:
        """Bytes of the file."""
        return self._size

    def xDeviceCharacteristics(self) -> int:
        """That nobody changes the file."""
        return apsw.SQLITE_IOCAP_IMMUTABLE

    def xSectorSize(self) -> int:
        """Without meaning here."""
        return 4096

    def xFileControl(self, op: int, pointer: int) -> bool:
        """Nothing is understood."""
        return False

    def xCheckReservedLock(self) -> bool:
        """Nobody writes."""
        return False

    def xLock(self, level: int) -> None:
        """No lock is needed."""

    def xUnlock(self, level: int) -> None:
        """No lock was taken."""

    def xSync(self, flags: int) -> None:
        """Nothing was written."""

    def xClose(self) -> None:
        """Forget the blocks."""
        self._blocks.clear()

    def xWrite(self, data: bytes, offset: int) -> None:
        """Refuse."""
        raise apsw.ReadOnlyError("a catalog read by ranges is not written")

    def xTruncate(self, size: int) -> None:
        """Refuse."""
        raise apsw.ReadOnlyError("a catalog read by ranges is not written")


class _RangeVFS(apsw.VFS):
    """A file system with one file; temporary files go to SQLite's own."""

    def __init__(self, name: str, file: BlockFile) -> None:
        self.name = name
        self._file = file
        super().__init__(name, base="")

    def xOpen(self, name: Any, flags: list[int]) -> Any:
        """The one file, or a temporary one."""
        if flags[0] & apsw.SQLITE_OPEN_MAIN_DB:
            flags[1] = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_MAIN_DB
            return self._file
        return apsw.VFSFile("", name, flags)

    def xFullPathname(self, name: str) -> str:
        """The name as it is."""
        return name

    def xAccess(self, path: str, flags: int) -> bool:
        """There is no journal."""
        return False

    def xDelete(self, path: str, sync: bool) -> None:
        """Refuse."""
        raise apsw.ReadOnlyError("a catalog read by ranges is not written")


def open_by_ranges(read: Read, size: int, head: bytes, name: str) -> tuple[apsw.Connection, BlockFile, Any]:
    """A read-only connection to a remote file, its blocks, and the VFS, which must live as long.

    Parameters
    ----------
    read, size, head
        As for `BlockFile`; the head is that of an SQLite file.
    name
        How messages call the file.
    """
    watchdog = Watchdog(size, name)

    def counted(start: int, stop: int) -> bytes:
        watchdog.count_fetched(stop - start)
        return read(start, stop)

    page_bytes = int.from_bytes(head[16:18], "big")
    file = BlockFile(counted, size, head, PageTree(size, 65536 if page_bytes == 1 else page_bytes or 4096, name))
    vfs = _RangeVFS(f"icelite-{next(_numbers)}", file)
    connection = apsw.Connection("catalog", flags=apsw.SQLITE_OPEN_READONLY, vfs=vfs.name)
    watchdog.watch(connection)
    return connection, file, vfs
