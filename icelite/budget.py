"""Limits on what a stranger's file may cost whoever reads it, and the error for a file that asks for more.

A catalog is small, and what it describes need not be: a path of a hundred thousand segments, a chunk of one byte that
unpacks to gigabytes. Each limit is far above what archives have, and holds for writing too, so that what icelite
wrote it also reads. Rows that cost what their own bytes cost need no limit.
"""

from __future__ import annotations

from icelite.errors import ErrorKind, FormatError

MAX_PATH_CHARACTERS = 4_096  # of a node's path; as long as Linux lets a file's be
MAX_SEGMENTS = 256  # groups inside each other
MAX_DIMENSIONS = 255  # numpy has at most 64
MAX_KEY_CHARACTERS = MAX_PATH_CHARACTERS + 21 * (MAX_DIMENSIONS + 1)  # of a path and a grid position behind it
MAX_LOCATION_CHARACTERS = 8_192  # of a URL, or a path relative to the catalog
MAX_NAME_CHARACTERS = 255  # of a branch, tag, container or setting
MAX_ETAG_CHARACTERS = 1_024
MAX_DOCUMENT_CHARACTERS = 16 << 20  # of a metadata document or another JSON text
MAX_POSITIONS_EXPANSION = 64  # of the compressed grid positions of a change; 35 with 32 dimensions, 8 with fewer
MIN_POSITIONS_BYTES = 4 << 10  # that they may have in any case
MAX_SEGMENTS_OF_HISTORY = 100_000  # forks behind one snapshot
MAX_GENERATED = 200_000  # references that the generators of a kerchunk file stand for, unless the caller allows more
MAX_UNPACKED_BYTES = 64 << 20  # of a compressed file, unless it has a hundredth of that itself


def unpacked_limit(size: int) -> int:
    """Bytes that a compressed file of ``size`` bytes may become."""
    return MAX_UNPACKED_BYTES + 100 * size


def over_budget(what: str, found: str, limit: str) -> FormatError:
    """The error for a file that would cost far more to read than it is worth.

    Parameters
    ----------
    what
        What in the file: ``chunk 'x/c/0'``.
    found, limit
        What it asks for, and how much is allowed.
    """
    return FormatError(
        f"{what} has {found}, and at most {limit} is read: the file is damaged, or was made to exhaust whoever opens"
        " it; do not trust it, and get it again from where it should come from",
        ErrorKind.OVER_BUDGET,
    )
