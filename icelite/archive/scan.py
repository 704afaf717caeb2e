"""Files opened as virtual datasets, in parallel: `scan_files`.

A file is parsed in one step by one process, and comes back as a pickled dataset of references (a few kB). Workers are
started without running the caller's main module again, so a plain script needs no ``if __name__ == "__main__"``; what
they are given may be a lambda or a function of that script.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import xarray as xr

from icelite.archive.reach import Reach
from icelite.errors import ErrorKind, IceliteError, InvalidInputError, StorageError
from icelite.interrupts import end_with_parent
from icelite.types import Progress, SourceStamp
from icelite.virtualizarr.arrays import hash_chunks, is_virtual, read_references, read_virtual
from icelite.virtualizarr.sources import SOURCES_KEY

COPIED = "icelite_copied"  # key of a dataset's encoding: variables that had to be copied, with the reason

_FEW = 64  # files that are scanned before other processes would have imported their libraries
_WAITING = 4  # files handed out for each worker, so that a stop is near and memory bounded


@dataclass(frozen=True, slots=True)
class Parsing:
    """How each file is opened; it goes to every worker once."""

    reach: Reach = field(default_factory=Reach)
    options: dict[str, Any] = field(default_factory=dict)  # of `open_virtual`
    preprocess: Callable[[xr.Dataset], xr.Dataset] | None = None
    concat_dim: str | None = None
    hashed: bool = False  # whether what lacks the dimension will be compared

    def open(self, url: str) -> Scanned:
        """Open one file; what is wrong with it is part of the answer."""
        from icelite.formats import open_virtual

        with warnings.catch_warnings(record=True) as caught:
            try:
                dataset = open_virtual(url, registry=self.reach.registry, **self.options)
                sources = dict(dataset.encoding.get(SOURCES_KEY, {}))
                record = {key: found for key, found in dataset.encoding.items() if str(key).startswith("icelite_")}
                if self.preprocess is not None:
                    dataset = _preprocess(self.preprocess, url, dataset)
                check_whole(dataset, sources)
                dataset = self._load_along(dataset)
                hashes = self._hash(dataset)
            except IceliteError as error:
                return Scanned(url, problem=error)
            except Exception as error:  # noqa: BLE001  # a parser's, or an object store's: it is about this file
                return Scanned(url, problem=_unreadable(url, error))
        dataset.encoding = {**dataset.encoding, **record}
        warned = [(str(w.message), w.category) for w in caught]
        return Scanned(url, ScannedFile(url, dataset, hashes), warned=warned)

    def _load_along(self, dataset: xr.Dataset) -> xr.Dataset:
        """The dataset with the single value that places the file along a new dimension."""
        variable = dataset.variables.get(self.concat_dim)
        if self.concat_dim is None or variable is None or variable.ndim or not is_virtual(variable):
            return dataset
        raw = read_virtual(variable, self.reach.fetch)
        try:
            loaded = xr.conventions.decode_cf_variable(self.concat_dim, raw)
        except (ValueError, KeyError, OverflowError):  # a unit of time that only its reader can decode
            loaded = raw
        changed = dataset.drop_vars(self.concat_dim).assign_coords({self.concat_dim: loaded})
        changed.encoding = dataset.encoding
        return changed

    def _hash(self, dataset: xr.Dataset) -> dict[str, str]:
        if self.concat_dim is None or not self.hashed:
            return {}
        fetch = self.reach.fetch
        lacking = {
            str(name): variable
            for name, variable in dataset.variables.items()
            if self.concat_dim not in variable.dims and is_virtual(variable)
        }
        if self.concat_dim not in dataset.dims:  # it is added to data
            lacking = {name: variable for name, variable in lacking.items() if name in dataset.coords and variable.ndim}
        return {name: hash_chunks(variable, fetch) for name, variable in lacking.items()}


@dataclass(frozen=True, slots=True)
class ScannedFile:
    """One file that was opened.

    Attributes
    ----------
    dataset
        Its virtual dataset.
    hashes
        By the name of a virtual variable without the dimension of concatenation, the hash of its chunks.
    """

    url: str
    dataset: xr.Dataset
    hashes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Scanned:
    """What came of one file: its dataset, or a problem."""

    url: str
    file: ScannedFile | None = None
    problem: IceliteError | None = None
    warned: list[tuple[str, type[Warning]]] = field(default_factory=list)


def _unreadable(url: str, error: Exception) -> StorageError:
    problem = f"cannot be read: {str(error).strip().partition(chr(10))[0]} ({type(error).__name__})"
    if type(error).__name__ in ("PermissionDeniedError", "UnauthenticatedError"):  # of obstore
        problem = "may not be read: permission denied; check what authorize_virtual_chunk_access gives"
    return StorageError(f"source {url!r} {problem}", ErrorKind.UNREADABLE_SOURCE)


def _preprocess(function: Callable[[xr.Dataset], xr.Dataset], url: str, dataset: xr.Dataset) -> xr.Dataset:
    dataset.encoding.setdefault("source", url)
    try:
        changed: object = function(dataset)
    except Exception as error:  # the caller's function may raise anything
        raise InvalidInputError(
            f"preprocess failed for {url!r}: {type(error).__name__}: {error}", ErrorKind.INVALID_ARGUMENT
        ) from error
    if not isinstance(changed, xr.Dataset):
        raise InvalidInputError(
            f"preprocess returned a {type(changed).__name__} for {url!r}, not a Dataset", ErrorKind.INVALID_ARGUMENT
        )
    return changed.copy()


def check_whole(dataset: xr.Dataset, sources: dict[str, SourceStamp]) -> None:
    """Check that no reference reaches past the end of its file, as in one that was cut short.

    Raises
    ------
    StorageError
        ``unreadable-source``, naming the file.
    """
    sizes = {url: stamp.size for url, stamp in sources.items() if stamp.size is not None}
    for name, variable in dataset.variables.items() if sizes else ():
        if not is_virtual(variable):
            continue
        references = read_references(variable.data)
        ends = references.offsets + references.lengths
        for code, url in enumerate(references.urls):
            end = max(ends[references.codes == code], default=0)
            if end > sizes.get(url, end):
                raise StorageError(
                    f"source {url!r} is cut short: it has {sizes[url]} bytes, and its variable {name!r} has a chunk"
                    f" that ends at {end}; fetch it again",
                    ErrorKind.UNREADABLE_SOURCE,
                )


def scan_files(
    urls: Sequence[str],
    parsing: Parsing,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
) -> list[Scanned]:
    """Open files as virtual datasets.

    Parameters
    ----------
    workers
        Processes; 1 for this one only. By default one for each CPU that this process may use, if there are enough
        files to be worth it.
    progress
        Called with the number of files that are done and of all.

    Returns
    -------
    list
        In the order of ``urls``.

    Raises
    ------
    InvalidInputError, StorageError
        ``invalid-argument`` for ``workers``; ``unreadable-source``: a process ended unexpectedly.
    """
    count = _worker_count(workers, len(urls))
    done: dict[str, Scanned] = {}
    with _results(urls, parsing, count) as results:
        for scanned in results:
            done[scanned.url] = scanned
            if progress is not None:
                progress(len(done), len(urls))
    for message, category in dict.fromkeys(item for scanned in done.values() for item in scanned.warned):
        warnings.warn(message, category, stacklevel=5)  # of who called virtualize
    return [done[url] for url in urls]


def _worker_count(workers: int | None, files: int) -> int:
    given: object = workers
    if given is not None and (type(given) is not int or given < 1):
        raise InvalidInputError(f"workers={workers!r} is not a number of processes", ErrorKind.INVALID_ARGUMENT)
    if workers is None and files >= _FEW:
        from loky import cpu_count  # type: ignore[import-untyped]

        workers = cpu_count()  # that this process may use, in a container too
    return min(workers or 1, files)


@contextmanager
def _results(urls: Sequence[str], parsing: Parsing, workers: int) -> Iterator[Iterable[Scanned]]:
    """The results as they come; leaving early stops what still runs."""
    if workers <= 1:
        yield map(parsing.open, urls)
        return
    from loky import ProcessPoolExecutor

    executor = ProcessPoolExecutor(workers, initializer=_begin, initargs=(parsing,))
    finished = False
    try:
        yield _in_processes(executor, urls, workers * _WAITING)
        finished = True
    finally:
        executor.shutdown(wait=True, kill_workers=not finished)


def _in_processes(executor: Any, urls: Sequence[str], limit: int) -> Iterator[Scanned]:
    from concurrent.futures import FIRST_COMPLETED, wait
    from concurrent.futures.process import BrokenProcessPool

    waiting = iter(urls)
    running = {executor.submit(_open, url): url for _, url in zip(range(limit), waiting, strict=False)}
    while running:
        done, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in done:
            url = running.pop(future)
            try:
                yield future.result()
            except BrokenProcessPool as error:
                raise StorageError(
                    f"a process that scanned files ended unexpectedly, perhaps at {url!r}: {error}; pass workers=1 to"
                    " see where",
                    ErrorKind.UNREADABLE_SOURCE,
                ) from error
            following = next(waiting, None)
            if following is not None:
                running[executor.submit(_open, following)] = following


_parsing: Parsing | None = None  # of a worker process


def _begin(parsing: Parsing) -> None:
    global _parsing  # once, when the process starts
    _parsing = parsing
    end_with_parent()


def _open(url: str) -> Scanned:
    assert _parsing is not None
    return _parsing.open(url)
