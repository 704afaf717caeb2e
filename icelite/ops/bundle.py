"""Bundling: a copy of a catalog that holds the bytes of every chunk of its history.

The copy is made first, and quickly; then the sources are read, each range of a file once and in the order of the
file, while nobody is kept from committing to the original. A source that changed, or cannot be read, is an error as it
is when its chunks are read, and leaves nothing under the target's name.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from icelite.catalog import creation, settings
from icelite.catalog.creation import Range
from icelite.catalog.database import Catalog, Transaction
from icelite.catalog.operations import now
from icelite.errors import ErrorKind, IceliteError, InvalidInputError
from icelite.payload import Payloads
from icelite.storage import StorageConfig, as_storage
from icelite.types import Bundle, Chunk, Progress

AT_ONCE = 16  # ranges that are read together
OF_OBJECTS = ("objects", "collected")  # settings that only a repository with objects has

HINT = (
    "a bundle holds the chunks of all snapshots: what only old ones need goes with expire_snapshots and garbage_collect"
)


def bundle(
    catalog: Catalog, payloads: Payloads, target: str | os.PathLike[str], progress: Progress | None = None
) -> Bundle:
    """Write a self-contained copy; see `Repository.bundle`."""
    storage = as_storage(target)
    if storage.path is None:
        raise InvalidInputError(
            f"a bundle is written to a local file such as 'shipped.icelite', not to {storage.name!r}; copy it there"
            " when it is done",
            ErrorKind.INVALID_PATH,
        )
    copy = _Copy(payloads, storage, progress)
    creation.create_copy(catalog, storage.path, copy.finish)
    return Bundle(str(storage.path), copy.chunks, copy.size, copy.sources, _size(storage.path))


def _size(path: Path) -> int:
    return path.stat().st_size


@dataclass(slots=True)
class _Copy:
    """The work on one copy."""

    payloads: Payloads
    storage: StorageConfig
    progress: Progress | None
    chunks: int = 0
    size: int = 0
    sources: int = 0
    paths: dict[int, str] = field(default_factory=dict)  # by node
    local: dict[int, bool] = field(default_factory=dict)  # by location

    def finish(self, txn: Transaction) -> None:
        """Read what is elsewhere, and forget that it was."""
        self.chunks, self.size, self.sources = creation.collect_ranges(txn)
        self.paths = creation.list_paths(txn)
        done = 0
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for batch in creation.scan_ranges(txn):
                written_at = now()
                with _hinted():
                    is_local = all(map(self._is_local, batch))  # then threads would cost more than they bring
                    values = list((map if is_local else pool.map)(self._read, batch))
                creation.insert_ranges(txn, batch, values, written_at)
                done += len(batch)
                if self.progress is not None:
                    self.progress(done, self.chunks)
        creation.make_inline(txn)
        for name in OF_OBJECTS:
            settings.drop_setting(txn, name)
        settings.save_setting(txn, "home", settings.home_of(self.storage))

    def _is_local(self, place: Range) -> bool:
        known = self.local.get(place.location_id)
        if known is None:
            known = self.payloads.is_local(Chunk(*place[:3]), self._name(place))
            self.local[place.location_id] = known
        return known

    def _read(self, place: Range) -> bytes:
        return self.payloads.read(Chunk(*place[:3]), self._name(place), None)

    def _name(self, place: Range) -> str:
        return f"{self.paths.get(place.node_id, '')}/{place.chunk}".strip("/")


@contextmanager
def _hinted() -> Iterator[None]:
    try:
        yield
    except IceliteError as error:
        error.add_note(HINT)
        raise
