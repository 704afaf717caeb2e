"""The form of virtual references. Pure text, except `existing_path`.

References come from strangers, so everything is refused that a file system or a server could read in another way
than it is written here: ``.`` and ``..`` segments (also percent-encoded), NUL, and in local paths the backslash.
Otherwise URLs are verbatim: spaces, ``#``, ``?`` and ``%`` in a key are part of the key.
"""

from __future__ import annotations

import os
import re
from urllib.parse import unquote

from icelite.budget import MAX_LOCATION_CHARACTERS
from icelite.errors import ErrorKind, InvalidInputError, has_secret, shown
from icelite.storage import BUCKET

BUCKETS = ("s3", "gs", "gcs", "az", "abfs", "memory")  # schemes whose URLs are a bucket and a key
WEB = ("https", "http")
SCHEMES = ("file", "vcc", *BUCKETS, *WEB)
# A name of 253 characters at most, and a port.
_HOST = re.compile(r"(?!.{261})(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(?::\d{1,5})?")
_SLASH_MISSING = re.compile(rf"(?P<scheme>(?:{'|'.join(SCHEMES)})(?=:|//)|[a-z][a-z0-9+.-]+(?=:/)):?", re.IGNORECASE)
_DOTS = {".", ".."}
_KNOWN = ", ".join(f"{scheme}://" for scheme in ("file", "s3", "https", "http", "gs", "az", "abfs"))


def scheme_of(url: str) -> str:
    """The scheme of a reference; '' for a path.

    Raises
    ------
    InvalidInputError
        ``invalid-virtual-ref`` for a scheme that this release does not read, or for something that is no text.
    """
    scheme, mark, _ = url.partition("://") if _is_text(url) else ("", "", "")
    if not mark:
        if not url:
            raise bad_reference(url, "is empty")
        return ""
    if scheme not in SCHEMES:
        raise bad_reference(url, f"has the scheme {scheme!r}; this release reads {_KNOWN}")
    return scheme


def check_slashes(url: str) -> None:
    """Refuse what was meant as a URL and lacks a slash or the colon, such as ``s3:/bucket/key``.

    A file with such a name is written ``./s3:/bucket/key``.

    Raises
    ------
    InvalidInputError
        ``invalid-virtual-ref``.
    """
    found = None if "://" in url else _SLASH_MISSING.match(url)
    if found is not None:
        scheme, rest = found["scheme"].lower(), url[found.end() :].lstrip("/")
        rest = "/" + rest if scheme == "file" else rest
        raise bad_reference(
            url, f"is not complete: write {shown(f'{scheme}://{rest}')}, or {shown('./' + url)} for a file of that name"
        )


def _is_text(url: object) -> bool:
    if not isinstance(url, str):
        raise bad_reference(url, "is not text")
    if len(url) > MAX_LOCATION_CHARACTERS:
        raise bad_reference(url, f"is too long; at most {MAX_LOCATION_CHARACTERS} characters are read")
    return True


def check_segments(url: str, path: str, *, local: bool) -> None:
    """Refuse a path that could mean another file than it says.

    Raises
    ------
    InvalidInputError
        ``invalid-virtual-ref``.
    """
    decoded = unquote(path) if "%" in path else path
    if "\0" in decoded:
        raise bad_reference(url, "holds a NUL")
    if local and "\\" in decoded:
        raise bad_reference(url, "holds a backslash; separate directories with '/'")
    if "." in decoded and not (_DOTS.isdisjoint(path.split("/")) and _DOTS.isdisjoint(decoded.split("/"))):
        raise bad_reference(url, "has a '.' or '..' between its slashes; write where the file really is")
    if local:
        try:
            os.fsencode(path)
        except UnicodeEncodeError:
            raise bad_reference(url, "cannot be the name of a file on this system") from None


def relative_path(path: str) -> str:
    """Check a reference that is relative to the catalog's directory, and return it.

    Raises
    ------
    InvalidInputError
        ``invalid-virtual-ref`` when it is absolute or might leave the directory.
    """
    check_segments(path, path, local=True)
    if not path or path.startswith("/"):
        raise bad_reference(path, "is not relative; an absolute one is written 'file:///...'")
    return path


def file_path(url: str) -> str:
    """The absolute path of a ``file://`` URL, as written.

    Raises
    ------
    InvalidInputError
        ``invalid-virtual-ref`` when it names a host, no file, or might mean another one.
    """
    path = url.removeprefix("file://")
    check_segments(url, path, local=True)
    if not path.startswith("/") or path.endswith("/"):
        raise bad_reference(url, "is not the URL of a local file, such as 'file:///data/august.nc'")
    return path


def bucket_and_key(url: str) -> tuple[str, str]:
    """The two halves of a URL such as ``s3://bucket/key``, the key verbatim.

    Raises
    ------
    InvalidInputError
        ``invalid-virtual-ref`` when one is missing or might mean another one.
    """
    scheme, _, rest = url.partition("://")
    bucket, _, key = rest.partition("/")
    check_segments(url, key, local=False)
    if not BUCKET.fullmatch(bucket) or not key:
        raise bad_reference(url, f"is not the URL of an object, such as '{scheme}://bucket/august.nc'")
    return bucket, key


def check_remote(url: str) -> None:
    """Refuse an absolute URL of a bucket or web server that is incomplete or might mean another one.

    Raises
    ------
    InvalidInputError
        ``invalid-virtual-ref``.
    """
    scheme, _, rest = url.partition("://")
    if scheme in BUCKETS:
        bucket_and_key(url)
        return
    host, _, path = rest.partition("/")
    check_segments(url, path.partition("?")[0], local=True)
    if not _HOST.fullmatch(host) or not path or path.endswith("/") or not path.isprintable():
        raise bad_reference(url, f"is not the URL of a file, such as '{scheme}://example.org/data/august.nc'")


def name_and_path(url: str) -> tuple[str, str]:
    """Container name and path of a ``vcc://name/path`` reference.

    Raises
    ------
    InvalidInputError
        ``invalid-virtual-ref`` when one is missing.
    """
    name, _, path = url.removeprefix("vcc://").partition("/")
    if not name or not path:
        raise bad_reference(url, "does not name a container and a path, as in 'vcc://name/august.nc'")
    return name, path


def existing_path(path: str) -> str:
    """The path as written, or percent-decoded when only that exists: some writers encode their file URLs."""
    if "%" not in path or os.path.lexists(path):
        return path
    decoded = unquote(path)
    return decoded if os.path.lexists(decoded) else path


def is_under(path: str, directory: str) -> bool:
    """Whether an absolute path is a directory or lies below it; both without links or dots."""
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def check_unsigned(url: str) -> None:
    """Refuse a URL with a signature in it, which would stay in the catalog for everybody to use.

    Raises
    ------
    InvalidInputError
        ``invalid-virtual-ref``.
    """
    if has_secret(url):
        raise bad_reference(
            url,
            "carries a signature or a password, which everybody who has the catalog could use: refer to the URL without"
            " it and pass credentials or headers on opening; or, if it is meant to be stored, open the repository with"
            " config=icelite.RepositoryConfig(store_signed_urls=True)",
        )


def is_hidden(path: str) -> bool:
    """Whether a relative path leads to a dot file, or through a dot folder; also if only its decoded form does."""
    return any(("/" + text).find("/.") >= 0 for text in (path, unquote(path)))


def bad_reference(url: object, problem: str) -> InvalidInputError:
    """The error for a reference that cannot be used."""
    return InvalidInputError(f"virtual reference {shown(url)} {problem}", ErrorKind.INVALID_VIRTUAL_REF)
