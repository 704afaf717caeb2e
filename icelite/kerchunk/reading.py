"""From a dict, a JSON file or a parquet folder to a `ReferenceSet`; the only module that opens reference files.

Reference files are opened where the caller says, with fsspec; what they refer to is not opened.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import fsspec

from icelite.budget import unpacked_limit
from icelite.errors import ErrorKind, IceliteError, InvalidInputError, client_errors, has_secret, shown
from icelite.kerchunk.documents import malformed
from icelite.kerchunk.parquet import PARQUET_METADATA, read_parquet
from icelite.kerchunk.reference_set import ReferenceSet, collect_references
from icelite.kerchunk.templates import Allowance, Template, generate, read_templates

References: TypeAlias = Mapping[str, Any] | str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class ReferenceFile:
    """A set of references with what its surroundings say.

    Attributes
    ----------
    root
        The folder (an absolute path or URL) that relative paths in it are relative to; None when there is none.
    own
        Whether the caller made the references in this process, so that the local files they name are its own.
    """

    references: ReferenceSet
    root: str | None
    own: bool


def read_references(
    references: References,
    root: str | os.PathLike[str] | None,
    storage_options: Mapping[str, Any] | None,
    max_generated: int,
) -> ReferenceFile:
    """Read and check references; nothing that they refer to is looked at.

    Parameters
    ----------
    max_generated
        References that generators may stand for.

    Raises
    ------
    InvalidInputError
        ``invalid-references``, ``bad-metadata``, ``invalid-path`` for what the references say;
        ``invalid-argument`` where there are none.
    """
    if type(max_generated) is not int or max_generated < 0:
        raise InvalidInputError(
            f"max_generated={shown(max_generated)} must be a number of references", ErrorKind.INVALID_ARGUMENT
        )
    folder = None if root is None else _absolute(os.fspath(root))
    if isinstance(references, Mapping):
        return ReferenceFile(_parse(references, "the references", max_generated), folder, own=True)
    if not isinstance(references, str | os.PathLike):
        raise InvalidInputError(
            f"references are a dict, a JSON file or a parquet folder, not {type(references).__name__}",
            ErrorKind.INVALID_ARGUMENT,
        )
    url = _absolute(os.fspath(references))
    if url.startswith(("http://", "https://")) and "@" in url.split("/")[2]:
        raise InvalidInputError(
            f"reference file {url!r} has a user or password in its URL: pass them in storage_options,"
            " as fsspec's file system of web servers takes them",
            ErrorKind.INVALID_ARGUMENT,
        )
    found = _read(url, storage_options or {}, max_generated)
    return ReferenceFile(found, folder or url.rpartition("/")[0] or "/", own=False)


def _absolute(url: str) -> str:
    if "://" in url:
        return url.rstrip("/") if not url.startswith("file:///") else url.removeprefix("file://")
    return os.path.abspath(os.path.expanduser(url))


def _read(url: str, storage_options: Mapping[str, Any], max_generated: int) -> ReferenceSet:
    origin = repr(url)
    try:
        fs, path = fsspec.core.url_to_fs(url, **storage_options)
        if fs.exists(f"{path}/{PARQUET_METADATA}"):
            return read_parquet(fs, path, origin)
        if fs.isdir(path):
            raise malformed(origin, f"is a folder without {PARQUET_METADATA}, so it holds no references in parquet")
        data = _unpacked(fs.cat_file(path), path, origin)
    except IceliteError:
        raise
    except client_errors(ValueError, ImportError) as error:  # the last two are fsspec's
        failure = _failure(error, origin)
        cause = None if has_secret(url) else error
    else:
        return _parse(_json(data, origin), origin, max_generated)
    raise failure from cause  # out here, an exception that tells the URL is not the context of this one


def _failure(error: Exception, origin: str) -> InvalidInputError:
    if isinstance(error, FileNotFoundError):
        return InvalidInputError(f"there is no reference file {origin}", ErrorKind.INVALID_ARGUMENT)
    return malformed(origin, f"cannot be read: {getattr(error, 'strerror', None) or error}")


def _json(data: bytes, origin: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:  # also of a number with too many digits
        raise malformed(origin, f"is not JSON: {error}") from error


def _unpacked(data: bytes, path: str, origin: str) -> bytes:
    """The content of a file, unpacked if its name says that it is compressed."""
    compression = fsspec.utils.infer_compression(path)
    if compression is None:
        return data
    limit = unpacked_limit(len(data))
    with fsspec.compression.compr[compression](io.BytesIO(data), mode="rb") as stream:
        unpacked: bytes = stream.read(limit + 1)
    if len(unpacked) > limit:
        raise malformed(
            origin,
            f"has {len(data)} bytes and unpacks to more than {limit}, as if it was made to fill memory; unpack it"
            " yourself if you trust it, and pass that file",
        )
    return unpacked


def _parse(content: Any, origin: str, max_generated: int) -> ReferenceSet:
    if not isinstance(content, Mapping):
        raise malformed(origin, f"holds a JSON {type(content).__name__}; expected an object of references")
    if "version" not in content:
        if isinstance(content.get("refs"), Mapping):
            raise malformed(origin, "has 'refs' but no 'version'; write \"version\": 1 beside it")
        return collect_references(content, origin, str)
    if type(content["version"]) is not int or content["version"] not in (0, 1):
        raise malformed(origin, f"has version {shown(content['version'])}; icelite reads versions 0 and 1")
    references = content.get("refs", {})
    if not isinstance(references, Mapping):
        raise malformed(origin, f"has 'refs' that are a {type(references).__name__}, not an object")
    templates = read_templates(content.get("templates") or {}, origin)
    allowance = Allowance()
    generated = dict(generate(content.get("gen") or [], templates, origin, allowance, max_generated))

    def expand(url: str) -> str:
        return Template(url, origin).render(templates, allowance)

    return collect_references({**references, **generated}, origin, expand)
