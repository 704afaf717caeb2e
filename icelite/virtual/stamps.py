"""Stamps, the looks of sources, compared and described here only: size, ETag and modification time.

A stamp may lack any of the three. What is not recorded says nothing; what was recorded must be found again.
"""

from __future__ import annotations

import os

import numpy as np

from icelite.types import Location, SourceStamp

SECOND = 1_000_000_000  # the resolution of HTTP and S3, in nanoseconds
TIME_TOLERANCE = 1_000  # nanoseconds: Icechunk's checksums and Python's datetimes have microseconds


Stamped = Location | SourceStamp


def stamp_of_file(status: os.stat_result) -> SourceStamp:
    """The look of a local file, by its status."""
    return SourceStamp(size=status.st_size, modified_at=status.st_mtime_ns)


def is_newer(found: int, recorded: Stamped, *, resolution: int) -> bool:
    """Whether a modification time contradicts the recorded one.

    With a recorded size the source was looked at when it was referenced, so the times must be equal, in units of
    ``resolution`` nanoseconds. Without, the time is a limit (Icechunk's ``checksum=datetime``): not modified after it.
    """
    if recorded.modified_at is None:
        return False
    if recorded.size is not None:
        return found // resolution != recorded.modified_at // resolution
    return found > recorded.modified_at + TIME_TOLERANCE


def is_changed(found: SourceStamp, recorded: Stamped, *, check_time: bool = True, resolution: int = SECOND) -> bool:
    """Whether a source is another one than was recorded, as far as anything was.

    Parameters
    ----------
    check_time
        Whether the modification time counts; not after a file was copied.
    resolution
        Of the modification times, in nanoseconds.
    """
    if recorded.size is not None and found.size != recorded.size:
        return True
    if recorded.etag is not None and found.etag != recorded.etag.strip('"'):
        return True
    if not check_time or recorded.modified_at is None:
        return False
    return found.modified_at is None or is_newer(found.modified_at, recorded, resolution=resolution)


def contradicts(one: Stamped, other: Stamped, *, check_time: bool = True, resolution: int = SECOND) -> bool:
    """Whether two looks at a source saw different states of it, by what both of them saw.

    A look by another way may see less: a file has no ETag, and its times on a web server are whole seconds.
    """
    pairs = [(one.size, other.size), (_bare(one.etag), _bare(other.etag))]
    if check_time and one.modified_at is not None and other.modified_at is not None:
        pairs.append((one.modified_at // resolution, other.modified_at // resolution))
    return any(None not in pair and pair[0] != pair[1] for pair in pairs)


def combine(one: SourceStamp, other: SourceStamp) -> SourceStamp:
    """All that two looks at one state of a source saw; where both saw something, what the first did."""
    return SourceStamp(
        size=other.size if one.size is None else one.size,
        etag=other.etag if one.etag is None else one.etag,
        modified_at=other.modified_at if one.modified_at is None else one.modified_at,
    )


def _bare(etag: str | None) -> str | None:
    return None if etag is None else etag.strip('"')


def describe(stamp: Stamped) -> str:
    """A stamp in words, for messages."""
    time = None if stamp.modified_at is None else f"{np.datetime64(stamp.modified_at, 'ns')} UTC"
    parts = {"size": stamp.size, "ETag": stamp.etag, "modified at": time}
    return ", ".join(f"{name} {value}" for name, value in parts.items() if value is not None) or "nothing"
