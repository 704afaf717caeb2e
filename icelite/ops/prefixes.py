"""Prefixes of locations, as people write them and as the catalog stores what is below them. Pure text.

A prefix covers whole path segments. It names a directory, or exactly one file. There are three forms, those of
locations: relative to the catalog's directory, an absolute URL, and a path in a container.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from icelite.config import covers
from icelite.storage import StorageConfig
from icelite.types import ChunkType, Location
from icelite.virtual.urls import (
    bad_reference,
    check_remote,
    check_segments,
    check_slashes,
    file_path,
    relative_path,
    scheme_of,
)


@dataclass(frozen=True, slots=True)
class Prefix:
    """A directory (or one file) that locations are below.

    Attributes
    ----------
    text
        With a ``/`` at its end: a URL, or relative to the catalog's directory ("" is all of it), or with a
        ``container`` relative to that.
    container
        Name of a container, or None.
    alias
        The absolute URL that was given for what is relative here; else "".
    """

    text: str
    container: str | None = None
    alias: str = ""

    @property
    def is_absolute(self) -> bool:
        """Whether it is a URL."""
        return "://" in self.text

    def __str__(self) -> str:
        if self.container is not None:
            return f"vcc://{self.container}/{self.text}"
        return self.text or "./"

    def find_rest(self, place: Location) -> str | None:
        """What a stored location has behind this prefix; None when it is not below it."""
        if place.container != self.container:
            return None
        if "://" in place.path and not self.is_absolute and place.container is None:
            return _rest(self.alias, place.path) if self.alias else None
        return _rest(self.text, place.path)

    def put(self, rest: str, like: Location) -> Location:
        """The location with ``rest`` behind this prefix, and everything else as in ``like``."""
        return replace(like, kind=ChunkType.virtual, path=join(self.text, rest), container=self.container)


def _rest(prefix: str, path: str) -> str | None:
    if prefix and path == prefix[:-1]:
        return ""
    return path[len(prefix) :] if covers(prefix, path) else None


def join(prefix: str, rest: str) -> str:
    """A path below a prefix; the prefix as a file when nothing is behind it."""
    return prefix + rest if rest else prefix[:-1]


def parse_prefix(text: str, storage: StorageConfig) -> Prefix:
    """A prefix as somebody wrote it, for a catalog at ``storage``.

    Raises
    ------
    InvalidInputError
        ``invalid-virtual-ref`` for an unknown scheme, ``..``, NUL, or a relative one where nothing is relative.
    """
    scheme = scheme_of(text)
    check_slashes(text)
    if scheme == "vcc":
        name, _, path = text.removeprefix("vcc://").partition("/")
        check_segments(text, path, local=True)
        if not name:
            raise bad_reference(text, "does not name a container, as in 'vcc://name/'")
        return Prefix(_slashed(path), name)
    if scheme in ("", "file"):
        return _parse_path(text, text.removeprefix("file://"), scheme, storage)
    check_remote(_slashed(text) + "file")
    base = storage.home
    if base is not None and "://" in base and _rest(base, text) is not None:
        return Prefix(_slashed(_rest(base, text) or ""), None, _slashed(text))
    return Prefix(_slashed(text))


def _parse_path(text: str, path: str, scheme: str, storage: StorageConfig) -> Prefix:
    bare = path if scheme else path.removeprefix("./")
    bare = "" if bare == "." and not scheme else bare
    check_segments(text, bare, local=True)
    if not path.startswith("/"):
        if scheme:
            raise bad_reference(text, "names no absolute directory; write 'file:///...'")
        if storage.home is None:
            raise bad_reference(text, "is relative, and a catalog in memory has no directory; write 'file:///...'")
        return Prefix(_slashed(bare))
    url = _slashed("file://" + path)
    if storage.directory is not None:
        inside = _inside(path.rstrip("/") or "/", str(storage.directory))
        if inside is not None:
            return Prefix(_slashed(inside), None, url)
    return Prefix(url)


def _inside(path: str, directory: str) -> str | None:
    for spelling in (path, os.path.realpath(path)):
        if covers(directory.rstrip("/") + "/", spelling):
            relative = os.path.relpath(spelling, directory)
            return "" if relative == "." else relative
    return None


def _slashed(text: str) -> str:
    return text if not text or text.endswith("/") else text + "/"


def check_location(path: str) -> None:
    """Refuse a URL or relative path that no reference may have.

    Raises
    ------
    InvalidInputError
        ``invalid-virtual-ref``.
    """
    scheme = scheme_of(path)
    if scheme == "":
        relative_path(path)
    elif scheme == "file":
        file_path(path)
    else:
        check_remote(path)


def parent(path: str) -> str:
    """The directory of a location, as a prefix."""
    folder, slash, _ = path.rpartition("/")
    return folder + slash
