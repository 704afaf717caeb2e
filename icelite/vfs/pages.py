"""The pages of an SQLite file as they come: each belongs to one tree, once.

Invariants
----------
- No page has two parents and no page lists a cell twice, so a file gives no more rows than it has room for: a forged
  tree can neither be endless nor repeat itself (https://sqlite.org/fileformat2.html, section 1.6).
- An overflow page begins with the number of the next one, so its first byte is 0 in a file of fewer than
  `MOST_PAGES` pages; larger ones are not checked, because there the two kinds cannot be told apart.
"""

from __future__ import annotations

import struct

from icelite.errors import ErrorKind, FormatError

_INTERIOR, _LEAF = (2, 5), (10, 13)  # the first byte of a page of a tree
_FIRST_PAGE_HEADER = 100
MOST_PAGES = 1 << 25


class PageTree:
    """The pages that were claimed by a parent so far.

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
