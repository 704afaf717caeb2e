"""HDF5 files, opened: with the filters that are installed, and other files only where they may be read."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import h5py

from icelite.formats.source import SourceFile


def register_filters() -> None:
    """Let HDF5 know the filters of hdf5plugin, if that is installed."""
    if importlib.util.find_spec("hdf5plugin") is not None:
        __import__("hdf5plugin")


@contextmanager
def open_hdf5(source: SourceFile) -> Iterator[h5py.File]:
    """A file, by its name or, where it is remote or open in this process with other locks, as a stream.

    By its name HDF5 finds the files that hold external data. A file that someone writes to is refused by a lock.
    """
    register_filters()
    if source.path is not None:
        try:
            file = h5py.File(source.path, "r")
        except OSError as error:
            if "file locking flag" not in str(error):
                raise
        else:
            with file:
                yield file
            return
    with source.open() as stream, h5py.File(stream, "r") as file:
        yield file


def find_problem_elsewhere(file: h5py.File, dataset: h5py.Dataset) -> str | None:
    """Why a dataset whose values are in other files may not be copied, or None.

    Data of other files are copied only from the file's own directory: a stranger's file may name any file.
    """
    others = _list_files(file, dataset)
    if others and file.driver == "fileobj":
        return f"the file is read as a stream and names {others[0]!r}"
    directory = os.path.dirname(os.path.realpath(file.filename))
    for name in others:
        path = os.path.realpath(os.path.join(directory, name))
        if os.path.commonpath([directory, path]) != directory:
            return f"{name!r} is not under {directory!r}"
        if "%" not in name and not os.path.isfile(path):
            return f"{name!r} is not there"
    return None


def _list_files(file: h5py.File, dataset: h5py.Dataset) -> list[str]:
    linked = [] if dataset.file.filename == file.filename else [os.path.abspath(dataset.file.filename)]
    if dataset.is_virtual:
        return linked + [source.file_name for source in dataset.virtual_sources() if source.file_name != "."]
    return linked + [os.fsdecode(name) for name, *_ in dataset.external or ()]


def reopened(file: h5py.File, path: str) -> h5py.Dataset:
    """A dataset whose external files are looked for beside its own, not in the working directory."""
    access = h5py.h5p.create(h5py.h5p.DATASET_ACCESS)
    access.set_efile_prefix(b"${ORIGIN}")
    name: Any = path.encode("utf-8", "surrogateescape")
    return h5py.Dataset(h5py.h5d.open(file.id, name, access))
