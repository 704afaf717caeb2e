"""What is compared: each system with the same verbs. Its library is imported when it is asked for, not before."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, ClassVar, override


class System:
    """A place for versioned arrays; ``folder`` is its own, and the data it refers to lie in ``folder.parent``."""

    name: ClassVar[str]
    package: ClassVar[str]  # what `import` brings in

    def create(self, folder: Path) -> Any:
        """A new repository, with Icechunk's interface."""
        raise NotImplementedError

    def open(self, folder: Path) -> Any:
        """The repository in a folder, as a new object."""
        raise NotImplementedError

    def specs(self, rows: list[tuple[list[int], str, int, int]]) -> list[Any]:
        """Virtual references for ``set_virtual_refs``: index, URL, offset, length."""
        raise NotImplementedError

    def rebase(self) -> Any:
        """The solver that gives up at a conflict."""
        raise NotImplementedError

    def conflicts(self) -> type[Exception]:
        """What a commit raises that is lost."""
        raise NotImplementedError

    def compact(self, repo: Any) -> None:
        """Give free space back to the file system, where that takes a call."""

    def remove(self, folder: Path) -> None:
        """Remove the repository in a folder, if any."""
        shutil.rmtree(folder, ignore_errors=True)


class Icelite(System):
    """One SQLite file; everything inline."""

    name = package = "icelite"

    @override
    def create(self, folder: Path) -> Any:
        import icelite

        folder.mkdir(parents=True, exist_ok=True)
        self.catalog(folder).unlink(missing_ok=True)
        return icelite.Repository.create(self.catalog(folder), **self._access(folder))

    @override
    def open(self, folder: Path) -> Any:
        import icelite

        return icelite.Repository.open(self.catalog(folder), **self._access(folder))

    @staticmethod
    def _access(folder: Path) -> dict[str, Any]:
        return {"authorize_virtual_chunk_access": {f"{folder.parent.as_uri()}/": None}}

    @staticmethod
    def catalog(folder: Path) -> Path:
        """The one file."""
        return folder / "bench.icelite"

    @override
    def specs(self, rows: list[tuple[list[int], str, int, int]]) -> list[Any]:
        import icelite

        return [icelite.VirtualChunkSpec(*row) for row in rows]

    @override
    def rebase(self) -> Any:
        import icelite

        return icelite.ConflictDetector()

    @override
    def conflicts(self) -> type[Exception]:
        import icelite

        return icelite.IceliteError

    @override
    def compact(self, repo: Any) -> None:
        repo.compact()


class IceliteFast(Icelite):
    """The same, read through icelite's codec pipeline."""

    name = "icelite, fast reads"

    @override
    def open(self, folder: Path) -> Any:
        from icelite.store.pipeline import enable_fast_reads

        enable_fast_reads()
        return super().open(folder)


class Icechunk(System):
    """Icechunk on its local file system, as it comes."""

    name = package = "icechunk"

    def _arguments(self, folder: Path) -> dict[str, Any]:
        import icechunk

        data = folder.parent
        config = icechunk.RepositoryConfig.default()
        store = icechunk.local_filesystem_store(str(data))
        config.set_virtual_chunk_container(icechunk.VirtualChunkContainer(f"{data.as_uri()}/", store))
        access = icechunk.containers_credentials({f"{data.as_uri()}/": icechunk.credentials.LocalFileSystemAccess})
        storage = icechunk.local_filesystem_storage(str(folder / "repo"))
        return {"storage": storage, "config": config, "authorize_virtual_chunk_access": access}

    @override
    def create(self, folder: Path) -> Any:
        import icechunk

        self.remove(folder)
        folder.mkdir(parents=True)
        return icechunk.Repository.create(**self._arguments(folder))

    @override
    def open(self, folder: Path) -> Any:
        import icechunk

        return icechunk.Repository.open(**self._arguments(folder))

    @override
    def specs(self, rows: list[tuple[list[int], str, int, int]]) -> list[Any]:
        import icechunk

        return [icechunk.VirtualChunkSpec(*row) for row in rows]

    @override
    def rebase(self) -> Any:
        import icechunk

        return icechunk.ConflictDetector()

    @override
    def conflicts(self) -> type[Exception]:
        import icechunk

        return icechunk.IcechunkError


class Memory(System):
    """zarr's MemoryStore: what zarr itself costs. Nothing is durable, versioned, or shared with another process."""

    name = "MemoryStore"
    package = "zarr"
    _stores: ClassVar[dict[Path, Any]] = {}

    @override
    def create(self, folder: Path) -> Any:
        import zarr

        self._stores[folder] = zarr.storage.MemoryStore()
        return self.open(folder)

    @override
    def open(self, folder: Path) -> Any:
        return _MemoryRepository(self._stores[folder])

    @override
    def remove(self, folder: Path) -> None:
        self._stores.pop(folder, None)


class _MemoryRepository:
    """Enough of a repository to hold one store."""

    def __init__(self, store: Any) -> None:
        self.store = store

    def writable_session(self, branch: str) -> _MemoryRepository:
        """Itself."""
        return self

    readonly_session = writable_session

    def commit(self, message: str) -> None:
        """Nothing to do."""


class H5py(System):
    """The archival file itself, read by its own library."""

    name = package = "h5py"


class Kerchunk(System):
    """References in one JSON file, as kerchunk writes them."""

    name = "kerchunk-json"
    package = "fsspec"


SYSTEMS: dict[str, System] = {
    system.name: system for system in (Icechunk(), Icelite(), IceliteFast(), Memory(), H5py(), Kerchunk())
}
