"""SQLite reading a remote catalog by ranges: an apsw VFS of aligned blocks with a head, read-ahead and a bounded cache.

The VFS says that the file is immutable, so SQLite takes no locks, looks for no journal and keeps its page cache from
one transaction to the next (https://sqlite.org/c3ref/c_iocap_atomic.html). That holds because every block belongs to
one version of the object; when it is replaced, the next block cannot be read and says so.
Nobody has checked the file as a whole, so each page is looked at as it comes (`PageTree`), and what one statement may
cost is in proportion to the size of the file (`Watchdog`): an honest catalog stays far below.
"""

from __future__ import annotations

import itertools
import struct
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import apsw

from icelite.errors import ErrorKind, FormatError

HEAD_BYTES = 1 << 20
BLOCK_BYTES = 1 << 18
MOST_AHEAD = 4  # blocks in one request while reads follow each other
MOST_AT_ONCE = 16  # blocks in one request for a file that fits the cache
CACHE_BYTES = 64 << 20
MOST_PAGES = 1 << 25  # of a file whose pages are checked
_INTERIOR, _LEAF = (2, 5), (10, 13)  # the first byte of a page of a tree
_FIRST_PAGE_HEADER = 100

STEPS, STEPS_A_BYTE = 50_000_000, 20  # of SQLite's machine; a scan of all references needs 7 a byte
ROWS, BYTES_A_ROW = 1000, 8  # no row of a catalog is smaller in its file
VALUE_BYTES = 64 << 20  # of one value; and of all values of a result, besides four times the file
FETCHED_BYTES, TIMES_FETCHED = 64 << 20, 8  # a block may be fetched again once it left the cache
_STEPS_A_LOOK = 100_000

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


# -- what looks over what is read --------------------------------------------------------------------------------------


class PageTree:
    """The pages of an SQLite file as they come: each belongs to one tree, once.

    No page has two parents and no page lists a cell twice, so a file gives no more rows than it has room for: a forged
    tree can neither be endless nor repeat itself (https://sqlite.org/fileformat2.html, section 1.6).
    An overflow page begins with the number of the next one, so its first byte is 0 in a file of fewer than
    `MOST_PAGES` pages; larger ones are not checked, because there the two kinds cannot be told apart.

    Parameters
    ----------
    size
        Bytes of the file.
    page_bytes
        Of one page.
    name
        How messages call the file.
    """

    def __init__(self, size: int, page_bytes: int, name: str) -> None:
        self.page_bytes = page_bytes
        self._name = name
        self._pages = -(-size // page_bytes)
        self._claimed = bytearray(self._pages // 8 + 1)
        self._parents: set[int] = set()

    def check(self, number: int, page: bytes) -> None:
        """Look at a page before SQLite does.

        Parameters
        ----------
        number
            Of the page, from 1.

        Raises
        ------
        FormatError
            ``corrupt``.
        """
        start = _FIRST_PAGE_HEADER if number == 1 else 0
        if self._pages >= MOST_PAGES or page[start] not in _INTERIOR + _LEAF:
            return
        first = start + (12 if page[start] in _INTERIOR else 8)
        count = int.from_bytes(page[start + 3 : start + 5], "big")
        if first + 2 * count > len(page):
            raise self._damaged(number, f"claims {count} cells")
        cells = struct.unpack_from(f">{count}H", page, first)
        if len(set(cells)) != count:
            raise self._damaged(number, "lists a cell twice")
        if page[start] in _INTERIOR and number not in self._parents:
            self._parents.add(number)
            self._claim(number, page, start, cells)

    def _claim(self, number: int, page: bytes, start: int, cells: tuple[int, ...]) -> None:
        for offset in (*cells, start + 8):
            child = int.from_bytes(page[offset : offset + 4], "big")
            if not 0 < child <= self._pages or child == number or self._claimed[child >> 3] >> (child & 7) & 1:
                raise self._damaged(number, f"names page {child}, which does not exist or belongs elsewhere,")
            self._claimed[child >> 3] |= 1 << (child & 7)

    def _damaged(self, number: int, finding: str) -> FormatError:
        return FormatError(
            f"{self._name!r} is damaged or was tampered with: its page {number} {finding}; restore it from a copy",
            ErrorKind.CORRUPT,
        )


class Watchdog:
    """The counts of the statement that a connection runs.

    Parameters
    ----------
    size
        Bytes of the file.
    name
        How messages call the file.
    """

    def __init__(self, size: int, name: str) -> None:
        self._size = size
        self._name = name
        self._steps = self._rows = self._bytes = self._fetched = 0

    def watch(self, connection: apsw.Connection) -> None:
        """Count what the statements of a connection cost from now on."""
        connection.limit(apsw.SQLITE_LIMIT_LENGTH, VALUE_BYTES + 2 * self._size)
        connection.exec_trace = self._start_statement
        connection.row_trace = self._count_row
        connection.set_progress_handler(self._count_steps, _STEPS_A_LOOK)

    def count_fetched(self, amount: int) -> None:
        """Count bytes that are about to be fetched for the statement.

        Raises
        ------
        FormatError
            ``corrupt``.
        """
        self._fetched += amount
        if self._fetched > FETCHED_BYTES + TIMES_FETCHED * self._size:
            raise self._too_much(f"{self._fetched} bytes fetched")

    def _start_statement(self, cursor: apsw.Cursor, sql: str, bindings: object) -> bool:
        self._steps = self._rows = self._bytes = self._fetched = 0
        return True

    def _count_row(self, cursor: apsw.Cursor, row: tuple[Any, ...]) -> tuple[Any, ...]:
        self._rows += 1
        for value in row:
            if value.__class__ is bytes or value.__class__ is str:
                self._bytes += len(value)
        if self._rows > ROWS + self._size // BYTES_A_ROW:
            raise self._too_much(f"{self._rows} rows")
        if self._bytes > VALUE_BYTES + 4 * self._size:
            raise self._too_much(f"{self._bytes} bytes of values")
        return row

    def _count_steps(self) -> bool:
        self._steps += _STEPS_A_LOOK
        if self._steps > STEPS + STEPS_A_BYTE * self._size:
            raise self._too_much(f"{self._steps} steps")
        return False

    def _too_much(self, cost: str) -> FormatError:
        return FormatError(
            f"{self._name!r} is damaged or was tampered with: a question to it cost {cost}, more than a catalog of"
            f" {self._size} bytes can; download it and open the copy, which is checked as a whole first",
            ErrorKind.CORRUPT,
        )
