"""Files that passed the check, or that icelite wrote: remembered by path, size, modification time and inode.

One small file each in the user's cache directory, so that opening a catalog again costs milliseconds.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import platformdirs

WIDTH = 80  # bytes of a note, padded: it is overwritten in place, since ext4 flushes a file that is truncated first


def _note(path: Path, digest: str | None) -> tuple[str, str]:
    """Where a file is noted, and what the note says of the file as it is now."""
    folder = os.path.join(platformdirs.user_cache_dir("icelite"), "known")
    if digest is not None:
        return os.path.join(folder, digest), digest
    real = os.path.realpath(path)
    status = os.stat(real)
    key = hashlib.sha256(real.encode()).hexdigest()[:32]
    return os.path.join(folder, key), f"{status.st_size} {status.st_mtime_ns} {status.st_ino}"


def is_known(path: Path, digest: str | None) -> bool:
    """Whether the file is as it was when it was last noted; with a digest, whether any file with that one was."""
    try:
        place, stamp = _note(path, digest)
        with open(place, "rb", buffering=0) as file:
            return file.read(WIDTH + 1) == _padded(stamp)
    except OSError:  # not noted, or no cache directory: the file is checked
        return False


def remember(path: Path, digest: str | None = None) -> None:
    """Note that icelite wrote or checked the file as it is now, or any file with this digest, on this machine."""
    try:
        place, stamp = _note(path, digest)
        try:
            _write(place, stamp)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(place), exist_ok=True)
            _write(place, stamp)
    except OSError:  # no writable cache directory: the next opening checks the file again
        return


def _write(place: str, stamp: str) -> None:
    file = os.open(place, os.O_WRONLY | os.O_CREAT, 0o666)
    try:
        os.write(file, _padded(stamp))
    finally:
        os.close(file)


def _padded(stamp: str) -> bytes:
    return stamp.ljust(WIDTH).encode()
