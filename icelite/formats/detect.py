"""Which format a file is in, told from its content: `find_format`. A name's extension is never looked at."""

from __future__ import annotations

import json
import os
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from icelite.errors import ErrorKind, InvalidInputError
from icelite.formats.source import SourceFile

if TYPE_CHECKING:
    from obspec_utils.registry import ObjectStoreRegistry

    from icelite.virtual.remote import FileReaders

_HEAD_BYTES = 4096
_HDF5 = b"\x89HDF\r\n\x1a\n"
_LARGEST_USERBLOCK = 1 << 20
_GRIB_WITHIN = 1024  # bulletins and padding may come before the first message


class Format(StrEnum):
    """A format that `open_virtual` reads; the values are the names that ``parser=`` takes."""

    HDF5 = "hdf5"  # netCDF4 too
    NETCDF3 = "netcdf3"
    GRIB = "grib"
    TIFF = "tiff"
    FITS = "fits"
    ZARR = "zarr"
    ZIPPED_ZARR = "zipped-zarr"
    KERCHUNK_JSON = "kerchunk-json"
    KERCHUNK_PARQUET = "kerchunk-parquet"


_OTHER_NAMES = {
    "netcdf4": Format.HDF5,
    "grib1": Format.GRIB,
    "grib2": Format.GRIB,
    "geotiff": Format.TIFF,
    "cog": Format.TIFF,
}

# What the first bytes of files that cannot be referenced say.
_UNREADABLE = (
    (b"\x0e\x03\x13\x01", "an HDF4 file"),
    (b"\x1f\x8b", "a gzip file: unpack it, because chunks cannot be read out of it"),
    (b"BZh", "a bzip2 file: unpack it, because chunks cannot be read out of it"),
    (b"\xfd7zXZ", "an xz file: unpack it, because chunks cannot be read out of it"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard file: unpack it, because chunks cannot be read out of it"),
    (b"PAR1", "a Parquet file; kerchunk's references in Parquet are a directory"),
    (b"%PDF", "a PDF document"),
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
)


def format_of_name(name: str) -> Format:
    """The format that ``parser=`` names.

    Raises
    ------
    InvalidInputError
        ``invalid-argument``.
    """
    try:
        return _OTHER_NAMES.get(name) or Format(name)
    except ValueError:
        raise InvalidInputError(
            f"parser={name!r} is not one of auto, {', '.join([*Format, *_OTHER_NAMES])}", ErrorKind.INVALID_ARGUMENT
        ) from None


def find_format(
    url_or_path: str | os.PathLike[str],
    *,
    filesystem: Any = None,
    registry: FileReaders | ObjectStoreRegistry[Any] | None = None,
) -> Format:
    """The format of a file, or of a directory, by its content.

    Parameters
    ----------
    filesystem
        An fsspec filesystem to look with, instead of ``registry``.
    registry
        Where objects that are not local are read from; see `open_virtual`.

    Raises
    ------
    InvalidInputError
        ``unknown-format``, naming the file and what it seems to be.
    StorageError
        ``unreadable-source`` when it is not there or may not be read.
    """
    source = SourceFile.locate(url_or_path, registry=registry, filesystem=filesystem)
    if source.is_directory():
        return _format_of_directory(source)
    head = source.read(0, _HEAD_BYTES)
    found = _format_of_head(head) or _format_of_rest(source, head)
    if found is None:
        raise unknown_format(source.url, _describe(head))
    return found


def unknown_format(url: str, found: str) -> InvalidInputError:
    """The error for content that no parser reads."""
    return InvalidInputError(
        f"{url!r} is {found}; expected netCDF, HDF5, GRIB, TIFF, FITS, Zarr (a directory or a zip file) or kerchunk"
        " references: leave it out, or name its format with parser=",
        ErrorKind.UNKNOWN_FORMAT,
    )


def _format_of_head(head: bytes) -> Format | None:
    if head.startswith(_HDF5):
        return Format.HDF5
    if head[:3] == b"CDF" and head[3:4] in (b"\x01", b"\x02", b"\x05"):
        return Format.NETCDF3
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return Format.TIFF
    if head.startswith(b"SIMPLE  ="):
        return Format.FITS
    return None


def _format_of_rest(source: SourceFile, head: bytes) -> Format | None:
    """Formats whose mark is not at the beginning, or that have none."""
    if head.startswith(b"PK"):
        return _format_of_zip(source)
    if _holds_grib(head):
        return Format.GRIB
    start = 512
    while start <= _LARGEST_USERBLOCK:  # an HDF5 file may begin with a block of its user's
        mark = head[start : start + 8] if start + 8 <= len(head) else source.read(start, 8)
        if len(mark) < 8:
            break
        if mark == _HDF5:
            return Format.HDF5
        start *= 2
    return Format.KERCHUNK_JSON if _is_kerchunk(source, head) else None


def _holds_grib(head: bytes) -> bool:
    at = head.find(b"GRIB", 0, _GRIB_WITHIN)
    return at >= 0 and head[at + 7 : at + 8] in (b"\x01", b"\x02")


def _format_of_zip(source: SourceFile) -> Format | None:
    import zipfile

    try:
        with source.open() as stream, zipfile.ZipFile(stream) as archive:
            names = {name.rpartition("/")[2] for name in archive.namelist()}
    except zipfile.BadZipFile:
        raise unknown_format(source.url, "a zip file that is cut short or damaged") from None
    if names.isdisjoint({"zarr.json", ".zgroup", ".zarray"}):
        raise unknown_format(source.url, "a zip file that holds no Zarr store")
    return Format.ZIPPED_ZARR


def _is_kerchunk(source: SourceFile, head: bytes) -> bool:
    """Whether it is JSON with kerchunk's keys; they come early in every file that kerchunk writes."""
    if not head.lstrip().startswith(b"{"):
        return False
    if any(key in head for key in (b'"refs"', b'".zgroup"', b'/.zarray"', b'"zarr.json"', b'/zarr.json"')):
        return True
    try:
        return "refs" in json.loads(source.read(0, None))
    except ValueError:
        return False


def _format_of_directory(source: SourceFile) -> Format:
    if source.has("zarr.json") or source.has(".zgroup") or source.has(".zarray"):
        return Format.ZARR
    if source.has(".zmetadata"):
        return Format.KERCHUNK_PARQUET
    raise unknown_format(source.url, "a directory without zarr.json, .zgroup or .zarray")


def _describe(head: bytes) -> str:
    if not head:
        return "empty"
    if head.startswith(b"SQLite format 3\0"):
        catalog = head[68:72] == b"ICLT"
        return "an icelite catalog: open it with icelite.Repository.open" if catalog else "a SQLite database"
    for mark, name in _UNREADABLE:
        if head.startswith(mark):
            return name
    try:
        text = head.decode()
    except UnicodeDecodeError as error:  # a character may be cut at the end
        if error.start < len(head) - 4:
            return f"a file in an unknown format that begins with the bytes {head[:8].hex(' ')}"
        text = head[: error.start].decode()
    if "\0" in text:
        return f"a file in an unknown format that begins with the bytes {head[:8].hex(' ')}"
    if text.lstrip()[:9].lower() in ("<!doctype", "<html>") or text.lstrip()[:5].lower() == "<html":
        return "an HTML page (was a download refused?)"
    return f"a text file that begins with {text.strip()[:40]!r}"
