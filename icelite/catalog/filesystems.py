"""File systems on which locks may not reach other machines, or not hold at all.

SQLite and the guard need locks that every process sees that writes. Over a network they may be kept by each machine for
itself, come late, or be granted twice (https://sqlite.org/faq.html#q5).
"""

from __future__ import annotations

import ctypes
import os
import sys
import warnings
from pathlib import Path

from icelite.errors import ErrorKind, StorageError

# statfs(2) and linux/magic.h, and what the out-of-tree ones say of themselves.
NETWORK = {
    0x6969: "NFS",
    0x517B: "SMB",
    0xFE534D42: "SMB",
    0xFF534D42: "SMB (CIFS)",
    0x0BD00BD0: "Lustre",
    0x00C36400: "Ceph",
    0x47504653: "GPFS",
    0x19830326: "BeeGFS",
    0x20030528: "OrangeFS",
    0xAAD7AAEA: "PanFS",
    0x5346414F: "AFS",
    0x6B414653: "AFS",
    0x73757245: "Coda",
    0x564C: "NCP",
    0x01021997: "9P",
    0x786F4256: "a VirtualBox shared folder",
    0xBACBACBC: "a VMware shared folder",
}
FUSE = 0x65735546
# Programs behind FUSE that keep their files on this machine; any other one is taken for a network.
LOCAL_FUSE = {
    "fuseblk",
    *(
        f"fuse.{name}"
        for name in (
            "bindfs",
            "encfs",
            "exfat",
            "exfat-fuse",
            "ext2",
            "fuse-ext2",
            "fuse-overlayfs",
            "gocryptfs",
            "mergerfs",
            "ntfs",
            "ntfs-3g",
            "ntfs3g",
            "unionfs",
            "unionfs-fuse",
            "zfs-fuse",
        )
    ),
}
MOUNTS = "/proc/self/mountinfo"

_found: dict[str, str | None] = {}  # by path: asked and warned about once in a process


def check_locks(path: Path, *, strict: bool) -> None:
    """Warn, once for each file, where locks may not be enough for several writers; ``strict``: refuse.

    Raises
    ------
    StorageError
        ``unsafe-storage``.
    """
    name = str(path)
    is_new = name not in _found
    if is_new:
        _found[name] = find_network(path)
    network = _found[name]
    if network is None:
        return
    what = f"{path} is on {network}, whose locks other machines may not see"
    if strict:
        raise StorageError(
            f"{what}, and strict_locking is set: write to a copy on a local disk, then put that in its place",
            ErrorKind.UNSAFE_STORAGE,
        )
    if is_new:
        warnings.warn(
            f"{what}: let one machine write, or work on a copy on a local disk (strict_locking=True refuses it)",
            stacklevel=3,
        )


def find_network(path: Path) -> str | None:
    """What the network file system is called that a file or its directory is on; None on a local one."""
    for place in (path, path.parent):
        kind = _ask(place)
        if kind is not None:
            return classify(kind, _find_mount(place) if kind == FUSE else None)
    return None


def classify(kind: int, mount: str | None) -> str | None:
    """What a network file system is called.

    Parameters
    ----------
    kind
        ``f_type`` of statfs(2).
    mount
        For FUSE the type of the mount, such as ``fuse.sshfs``, if it is known.
    """
    if kind == FUSE:
        return None if mount in LOCAL_FUSE else f"FUSE ({(mount or 'of unknown type').removeprefix('fuse.')})"
    return NETWORK.get(kind)


def _ask(place: Path) -> int | None:
    """``f_type`` of statfs(2); None where there is no such call or no such file."""
    if sys.platform != "linux":
        return None
    answer = (ctypes.c_long * 64)()  # more than the structure has on any machine
    if ctypes.CDLL(None).statfs(os.fsencode(place), answer) != 0:
        return None
    return int(answer[0]) & 0xFFFFFFFF


def _find_mount(place: Path) -> str | None:
    """The type of the mount that a file is on (proc(5), mountinfo)."""
    try:
        device = os.stat(place).st_dev
        with open(MOUNTS, encoding="utf-8", errors="replace") as lines:
            return find_type(lines.read(), f"{os.major(device)}:{os.minor(device)}")
    except OSError:
        return None


def find_type(mounts: str, device: str) -> str | None:
    """The type of the file system on a device, in the text of a mountinfo file."""
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        if before.split()[2:3] == [device] and after:
            return after.split()[0]
    return None
