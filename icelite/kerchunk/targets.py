"""Files and folders that appear under their name only when they are whole.

What is written goes to a temporary name beside the target, or for a remote target to a folder of this machine, and
is renamed or uploaded when it is complete. A failure leaves nothing under the target's name, or what was there.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import fsspec

from icelite.errors import AlreadyExistsError, ErrorKind, StorageError
from icelite.kerchunk.parquet import PARQUET_METADATA


@contextlib.contextmanager
def replacing(
    target: str | os.PathLike[str], *, folder: bool, overwrite: bool, storage_options: Mapping[str, Any] | None
) -> Iterator[Path]:
    """Yield the path under which to write what becomes the target when the block ends without an error.

    Parameters
    ----------
    folder
        Whether a folder of references is written, or one file.
    overwrite
        Replace what is there: a file, or a folder of references; never a folder of anything else.

    Raises
    ------
    AlreadyExistsError, StorageError
        ``target-already-exists``; ``io``.
    """
    text = os.fspath(target)
    try:
        if "://" in text and not text.startswith("file://"):
            with _uploading(text, folder, overwrite, storage_options or {}) as path:
                yield path
        else:
            with _renaming(Path(text.removeprefix("file://")).expanduser().absolute(), folder, overwrite) as path:
                yield path
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(f"{text!r} cannot be written: {error.strerror or error}", ErrorKind.IO) from error


def _check_free(target: str, exists: bool, replaceable: bool, overwrite: bool) -> None:
    if exists and not overwrite:
        raise AlreadyExistsError(
            f"{target!r} is there already; choose another name, or pass overwrite=True", ErrorKind.TARGET_ALREADY_EXISTS
        )
    if exists and not replaceable:
        raise AlreadyExistsError(
            f"{target!r} is there already and is not such a set of references, so it is not replaced",
            ErrorKind.TARGET_ALREADY_EXISTS,
        )


@contextlib.contextmanager
def _renaming(target: Path, folder: bool, overwrite: bool) -> Iterator[Path]:
    def check() -> None:
        replaceable = (target / PARQUET_METADATA).is_file() if folder else target.is_file()
        _check_free(str(target), os.path.lexists(target), replaceable, overwrite)

    check()
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", suffix=".part", dir=target.parent) as place:
        path = Path(place, target.name)
        if folder:
            path.mkdir()
        yield path
        check()
        if folder and target.exists():
            target.rename(Path(place, "replaced"))
        os.replace(path, target)


@contextlib.contextmanager
def _uploading(target: str, folder: bool, overwrite: bool, storage_options: Mapping[str, Any]) -> Iterator[Path]:
    fs, name = fsspec.core.url_to_fs(target.rstrip("/"), **storage_options)
    metadata = f"{name}/{PARQUET_METADATA}"
    _check_free(target, fs.exists(name), fs.exists(metadata) if folder else fs.isfile(name), overwrite)
    with tempfile.TemporaryDirectory(prefix="icelite-") as place:
        path = Path(place, Path(name).name)
        if folder:
            path.mkdir()
        yield path
        if not folder:
            fs.put_file(str(path), name)
            return
        if fs.exists(name):
            fs.rm(name, recursive=True)
        files = sorted(file for file in path.rglob("*") if file.is_file() and file.name != PARQUET_METADATA)
        try:
            for file in [*files, path / PARQUET_METADATA]:  # no reader takes the folder for one without the last
                fs.put_file(str(file), f"{name}/{file.relative_to(path).as_posix()}")
        except BaseException:
            fs.rm(name, recursive=True)
            raise
