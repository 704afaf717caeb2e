"""A workbench for tests about history: a repository, and the shortest way to write it and to read all of it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from icelite.repository import Repository
from icelite.session import Session
from icelite.storage import StorageConfig, in_memory_storage

Keys = dict[str, bytes]  # a whole hierarchy: every key with its value

GROUP = json.dumps({"zarr_format": 3, "node_type": "group", "attributes": {}}).encode()


class Workbench:
    """One repository, in memory unless told otherwise."""

    GROUP = GROUP

    def __init__(self, storage: StorageConfig | Path | None = None) -> None:
        self.storage = in_memory_storage() if storage is None else storage
        self.repository = Repository.create(self.storage)

    @staticmethod
    def array(*shape: int, note: int = 0) -> bytes:
        """The zarr.json of an array of bytes, each a chunk."""
        return json.dumps(
            {
                "zarr_format": 3,
                "node_type": "array",
                "shape": shape,
                "data_type": "uint8",
                "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1] * len(shape)}},
                "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
                "fill_value": 0,
                "codecs": [{"name": "bytes"}],
                "attributes": {"note": note},
            }
        ).encode()

    @staticmethod
    def write(session: Session, keys: Mapping[str, bytes | None]) -> None:
        """Set keys of a session's store, or (None) delete them; a path without document is a node to delete."""
        for key, value in keys.items():
            if value is not None:
                session.store.set_sync(key, default_buffer_prototype().buffer.from_bytes(value))
            elif "/c/" in key or key.endswith("zarr.json"):
                session.store.delete_sync(key)
            else:
                sync(session.store.delete_dir(key))

    def commit(self, keys: Mapping[str, bytes | None], branch: str = "main", **options: Any) -> str:
        """Write keys in a session of their own; the new snapshot's id."""
        session = self.repository.writable_session(branch)
        self.write(session, keys)
        return session.commit("work", **options)

    def contents(self, branch: str | None = None, **which: Any) -> Keys:
        """Everything that a branch, tag or snapshot holds, through zarr's interface."""
        return self.contents_of(self.repository.readonly_session(branch, **which))

    @staticmethod
    def contents_of(session: Session) -> Keys:
        """Everything that a session sees."""

        async def keys() -> list[str]:
            return [key async for key in session.store.list()]

        found = {}
        for key in sync(keys()):
            value = session.store.get_sync(key)
            assert value is not None, key
            found[key] = value.to_bytes()
        return found

    def history(self, **which: Any) -> list[str]:
        """Ids from a branch, tag or snapshot back to the first."""
        return [info.id for info in self.repository.ancestry(**which)]

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """The rows of a query on the catalog."""
        with self.repository._catalog.read() as txn:
            return txn.rows(sql)

    def row_counts(self) -> dict[str, int]:
        """Rows of the tables that garbage collection empties."""
        tables = ["snapshot", "segment", "node", "change", "chunk_ref", "payload", "location"]
        return {table: self.rows(f"SELECT count(*) FROM {table}")[0][0] for table in tables}

    @staticmethod
    def now() -> datetime:
        """A moment after everything that was done, and before everything that will be."""
        time.sleep(0.000_002)
        moment = datetime.now(UTC)
        time.sleep(0.000_002)
        return moment


@pytest.fixture
def workbench() -> Workbench:
    """A new repository in memory."""
    return Workbench()


@pytest.fixture(scope="session")
def new_workbench() -> type[Workbench]:
    """To make more than one, or one in a file."""
    return Workbench


class Archive:
    """A folder with a catalog and ``count`` files beside it: array ``x`` has two chunks of 50 bytes in each file.

    Some tests move the files, so ``values`` says what they hold.
    """

    def __init__(self, folder: Path, count: int = 3, data: Path | None = None, **options: Any) -> None:
        self.folder = folder
        self.data = folder / "data" if data is None else data
        for place in (folder, self.data):
            place.mkdir(parents=True, exist_ok=True)
        self.count = count
        for number in range(count):
            (self.data / f"{number}.bin").write_bytes(np.random.default_rng(number).bytes(100))
        self.values = np.frombuffer(b"".join(path.read_bytes() for path in self.files), "u1")
        self.path = folder / "ocean.icelite"
        self.repository = Repository.create(self.path, **options)
        session = self.repository.writable_session("main")
        zarr.create_group(session.store)
        zarr.create_array(session.store, name="x", shape=(100 * count,), chunks=(50,), dtype="u1", compressors=None)
        self.write(session)
        self.first = session.commit("reference the files")

    @property
    def files(self) -> list[Path]:
        """The files, in the order of the array."""
        return [self.data / f"{number}.bin" for number in range(self.count)]

    def write(self, session: Session, urls: list[str] | None = None) -> None:
        """Reference the files, stamped as they are now."""
        urls = [path.as_uri() for path in self.files] if urls is None else urls
        session.store.set_virtual_refs_arr(
            "x",
            (2 * self.count,),
            [url for url in urls for _ in range(2)],
            np.array([0, 50] * self.count, dtype=np.uint64),
            np.full(2 * self.count, 50, dtype=np.uint64),
            stamps=session.access.stamps(urls),
        )

    def open(self, **options: Any) -> Repository:
        """The catalog opened anew, as in another process."""
        return Repository.open(self.path, **options)

    @staticmethod
    def read(repository: Repository, branch: str | None = "main", **which: Any) -> Any:
        """The array's values."""
        names = {"branch": None if which else branch, **which}
        return zarr.open_array(repository.readonly_session(**names).store, path="x", mode="r")[:]

    def check(self, repository: Repository, **which: Any) -> None:
        """Whether the array reads as it should."""
        np.testing.assert_array_equal(self.read(repository, **which), self.values)

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """The rows of a query on the catalog."""
        with self.repository._catalog.read() as txn:
            return txn.rows(sql)


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    """Files below the catalog's folder, so that references are relative."""
    return Archive(tmp_path / "home")


@pytest.fixture(scope="session")
def new_archive() -> type[Archive]:
    """To make others."""
    return Archive
