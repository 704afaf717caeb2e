"""Which files one call means: paths, globs and URLs made into a list of URLs, each once, in natural order.

A URL names a file as references to it will: ``file://`` and the absolute path, verbatim, or ``s3://``.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeAlias

from icelite.errors import ErrorKind, InvalidInputError, StorageError, has_secret
from icelite.types import SourceStamp
from icelite.virtual.s3 import S3Object

if TYPE_CHECKING:
    from icelite.virtual import VirtualAccess

Source: TypeAlias = str | os.PathLike[str]
Sources: TypeAlias = Source | Iterable[Source]

_MAGIC = re.compile(r"[*?\[]")
_STORE_MARKS = ("zarr.json", ".zgroup", ".zarray", ".zmetadata")  # what makes a directory one source
_NAMES = 100  # of single sources that a catalog records
_NUMBER = re.compile(r"(\d+)")


def list_inputs(sources: Sources, access: VirtualAccess, catalog: str | None = None) -> list[str]:
    """The URLs of all files that are meant.

    Parameters
    ----------
    sources
        A path, a glob (``**`` crosses directories), a URL or several of them. A directory that is a Zarr store is
        one source. What exists under a name as it is written is that file; in a list of several URLs only ``*`` makes
        a pattern.
    access
        How buckets may be listed.
    catalog
        The catalog file, which a glob does not mean.

    Raises
    ------
    InvalidInputError
        ``invalid-argument``: nothing matches, or a directory is no store; ``unauthorized-virtual-chunk-container``.
    StorageError
        ``virtual-chunk-fetch`` when a bucket cannot be listed.
    """
    single = isinstance(sources, str | os.PathLike)
    listed = [sources] if isinstance(sources, str | os.PathLike) else list(sources)
    given = [os.fspath(source) for source in listed]
    found: dict[str, None] = {}
    for text in given:
        scheme, mark, rest = text.partition("://")
        if not mark or scheme == "file":
            paths = _list_files(rest if mark else text, catalog)
            found.update((f"file://{path}", None) for path in paths)
        elif _is_pattern(text, access, single=single):
            found.update((url, None) for url in _list_objects(text, access))
        else:
            found[text] = None
    if not found:
        raise InvalidInputError("there is no source: sources is empty", ErrorKind.INVALID_ARGUMENT)
    return sorted(found, key=natural_key)


def record_sources(sources: Sources, directory: str | None) -> list[str]:
    """Sources as a catalog records them: those below its directory relative to it, and none with a signature in it."""
    listed = [sources] if isinstance(sources, str | os.PathLike) else list(sources)
    recorded = []
    for text in [os.fspath(source) for source in listed]:
        scheme, mark, rest = text.partition("://")
        if mark and scheme != "file":
            recorded += [] if has_secret(text) else [text]
            continue
        path = os.path.abspath(os.path.expanduser(rest if mark else text))
        inside = directory is not None and os.path.commonpath([path, directory]) == directory
        recorded.append(os.path.relpath(path, directory) if inside else path)
    return recorded


def keep_sources(recorded: Iterable[str], new: Iterable[str]) -> list[str]:
    """The recorded sources of a group with those of one more call; beside patterns, single names are left out."""
    together = list(dict.fromkeys([*recorded, *new]))
    patterns = [text for text in together if _MAGIC.search(text)]
    return patterns or (together if len(together) <= _NAMES else [])


def natural_key(name: str) -> list[str | int]:
    """A sort key that reads numbers as numbers: ``day9.nc`` before ``day10.nc``."""
    return [int(part) if at % 2 else part for at, part in enumerate(_NUMBER.split(name))]


def name_of(url: str) -> str:
    """The last part of a URL, for people."""
    return url.rstrip("/").rpartition("/")[2]


def _is_pattern(url: str, access: VirtualAccess, *, single: bool) -> bool:
    """Whether a remote URL stands for others: it has a mark of a pattern, and there is no object of that very name."""
    scheme, _, rest = url.partition("://")
    marks = _MAGIC.search(rest) if single and scheme == "s3" else "*" in rest
    if not marks or scheme != "s3":
        return bool(marks)
    return access.stamp(url) == SourceStamp()


def _list_files(pattern: str, catalog: str | None) -> list[str]:
    path = os.path.abspath(os.path.expanduser(pattern))
    if os.path.lexists(path):  # goes before its reading as a glob: a name may have brackets in it
        if os.path.isdir(path) and not _is_store(path):
            raise InvalidInputError(
                f"source {pattern!r} is a directory and no Zarr store; for the files in it write"
                f" {os.path.join(pattern, '*.nc')!r}",
                ErrorKind.INVALID_ARGUMENT,
            )
        return [path]
    matches = glob.glob(path, recursive=True) if _MAGIC.search(pattern) else []
    found = [match.rstrip("/") for match in matches if not os.path.isdir(match) or _is_store(match)]
    found = [match for match in found if catalog is None or os.path.realpath(match) not in _files_of(catalog)]
    if not found:
        raise InvalidInputError(
            f"no file matches {pattern!r} (the working directory is {os.getcwd()!r})", ErrorKind.INVALID_ARGUMENT
        )
    return found


def _files_of(catalog: str) -> set[str]:
    """A catalog with the files that SQLite puts beside it."""
    return {catalog, *(f"{catalog}-{suffix}" for suffix in ("journal", "wal", "shm"))}


def _is_store(path: str) -> bool:
    return any(os.path.exists(os.path.join(path, mark)) for mark in _STORE_MARKS)


def _list_objects(pattern: str, access: VirtualAccess) -> list[str]:
    target = access.lookup_target(pattern)
    if not isinstance(target, S3Object):
        raise InvalidInputError(
            f"{pattern!r} cannot be listed: only folders and S3 buckets can; name each file", ErrorKind.INVALID_ARGUMENT
        )
    problem = None
    try:
        filesystem = target.client.filesystem()
        filesystem.invalidate_cache()  # objects may have come since it last listed the bucket
        matches = filesystem.glob(pattern.removeprefix("s3://"), detail=True)
        marks = {key: [f"{key}/{mark}" for mark in _STORE_MARKS] for key in matches}
        found = [
            f"s3://{key}"
            for key, about in matches.items()
            if about["type"] == "file" or any(filesystem.exists(mark) for mark in marks[key])
        ]
    except Exception as error:  # noqa: BLE001  # of s3fs, aiohttp or botocore; what the server wrote is not repeated
        problem = target.problem(error.__cause__ or error)
    if problem is not None:
        raise StorageError(
            f"the objects {pattern!r} cannot be listed: the bucket {problem}", ErrorKind.VIRTUAL_CHUNK_FETCH
        )
    if not found:
        raise InvalidInputError(f"no object matches {pattern!r}", ErrorKind.INVALID_ARGUMENT)
    return found
