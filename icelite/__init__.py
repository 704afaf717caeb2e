"""icelite: a version-controlled Zarr store whose whole catalog is one SQLite file.

>>> import icelite, zarr
>>> repo = icelite.Repository.create(icelite.in_memory_storage())
>>> session = repo.writable_session("main")
>>> array = zarr.create_array(session.store, name="sst", shape=(4,), dtype="f4")
>>> array[:] = 17.5
>>> snapshot_id = session.commit("first day")
>>> [info.message for info in repo.ancestry(branch="main")]
['first day', 'Repository initialized']
"""

import importlib
from typing import TYPE_CHECKING, Any

from icelite import types
from icelite.accessors import accept_stores
from icelite.config import (
    RepositoryConfig,
    StoreConfig,
    VirtualChunkContainer,
    VirtualRefConfig,
)
from icelite.conflicts import (
    BasicConflictSolver,
    Conflict,
    ConflictDetector,
    ConflictSolver,
    ConflictType,
    VersionSelection,
)
from icelite.credentials import (
    AnyCredential,
    AnyS3Credential,
    HttpAccess,
    LocalFileSystemAccess,
    S3Credentials,
    S3Options,
    S3StaticCredentials,
    containers_credentials,
    filesystem_access,
    http_access,
    s3_anonymous_credentials,
    s3_credentials,
    s3_from_env_credentials,
    s3_refreshable_credentials,
    s3_static_credentials,
)
from icelite.errors import (
    AlreadyExistsError,
    ConflictError,
    ErrorKind,
    FormatError,
    IcechunkError,
    IceliteError,
    InternalError,
    InvalidInputError,
    KeyNotFoundError,
    NodeNotFoundError,
    NotFoundError,
    ReadOnlyError,
    RebaseFailedError,
    RefNotFoundError,
    RepositoryNotFoundError,
    SessionStateError,
    SnapshotNotFoundError,
    StorageError,
)
from icelite.repository import AncestryGraph, Repository
from icelite.session import ForkSession, Session
from icelite.storage import (
    AnyObjectStoreConfig,
    ObjectStoreConfig,
    Storage,
    StorageConfig,
    http_storage,
    in_memory_storage,
    local_filesystem_storage,
    local_filesystem_store,
    s3_storage,
    s3_store,
)
from icelite.store import IcechunkStore, IceliteStore
from icelite.store.pipeline import enable_fast_reads
from icelite.types import (
    ChunkType,
    Diff,
    FeatureFlag,
    RepoAvailability,
    RepoStatus,
    SessionMode,
    SnapshotInfo,
    SourceStamp,
    SpecVersion,
    VirtualChunkSpec,
)

if TYPE_CHECKING:
    from icelite.types import (
        Bundle,
        ChunkRefs,
        ChunkStorageStats,
        Compaction,
        FileChange,
        GCSummary,
        Problem,
        Problems,
        Relocation,
        Repacking,
        SourceInfo,
        Sources,
        Update,
        UpdateType,
        ZarrExport,
    )

__version__ = "0.1.0"

__all__ = [
    "AlreadyExistsError",
    "AncestryGraph",
    "AnyCredential",
    "AnyObjectStoreConfig",
    "AnyS3Credential",
    "BasicConflictSolver",
    "Bundle",
    "ChunkRefs",
    "ChunkStorageStats",
    "ChunkType",
    "Compaction",
    "Conflict",
    "ConflictDetector",
    "ConflictError",
    "ConflictSolver",
    "ConflictType",
    "Diff",
    "ErrorKind",
    "FeatureFlag",
    "FileChange",
    "ForkSession",
    "FormatError",
    "GCSummary",
    "HttpAccess",
    "IcechunkError",
    "IcechunkStore",
    "IceliteError",
    "IceliteStore",
    "InternalError",
    "InvalidInputError",
    "KeyNotFoundError",
    "LocalFileSystemAccess",
    "NodeNotFoundError",
    "NotFoundError",
    "ObjectStoreConfig",
    "Problem",
    "Problems",
    "ReadOnlyError",
    "RebaseFailedError",
    "RefNotFoundError",
    "Relocation",
    "Repacking",
    "RepoAvailability",
    "RepoStatus",
    "Repository",
    "RepositoryConfig",
    "RepositoryNotFoundError",
    "S3Credentials",
    "S3Options",
    "S3StaticCredentials",
    "Session",
    "SessionMode",
    "SessionStateError",
    "SnapshotInfo",
    "SnapshotNotFoundError",
    "SourceInfo",
    "SourceStamp",
    "Sources",
    "SpecVersion",
    "Storage",
    "StorageConfig",
    "StorageError",
    "StoreConfig",
    "Update",
    "UpdateType",
    "VersionSelection",
    "VirtualChunkContainer",
    "VirtualChunkSpec",
    "VirtualRefConfig",
    "ZarrExport",
    "containers_credentials",
    "enable_fast_reads",
    "filesystem_access",
    "http_access",
    "http_storage",
    "in_memory_storage",
    "local_filesystem_storage",
    "local_filesystem_store",
    "open",
    "s3_anonymous_credentials",
    "s3_credentials",
    "s3_from_env_credentials",
    "s3_refreshable_credentials",
    "s3_static_credentials",
    "s3_storage",
    "s3_store",
]

open = Repository.open
accept_stores()

# What imports optional packages, so only when first asked for: its module, and the extra that brings the packages.
_EDGES = {
    "dask": ("icelite.dask", "dask"),
    "drop": ("icelite.archive.dropping", "virtual"),
    "find_format": ("icelite.formats", "virtual"),
    "icechunk": ("icelite.icechunk", "icechunk"),
    "kerchunk": ("icelite.kerchunk", "kerchunk"),
    "make_native": ("icelite.native", "dask"),
    "open_virtual": ("icelite.formats", "virtual"),
    "open_virtual_tree": ("icelite.formats", "virtual"),
    "replace": ("icelite.archive.updating", "virtual"),
    "template": ("icelite.archive.template", "virtual"),
    "update": ("icelite.archive.updating", "virtual"),
    "virtualizarr": ("icelite.virtualizarr", "virtual"),
    "virtualize": ("icelite.archive.virtualize", "virtual"),
    "VirtualizeSummary": ("icelite.archive.summary", "virtual"),
    "xarray": ("icelite.xarray", "xarray"),
}


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(types, name)
    if name not in _EDGES:
        raise AttributeError(f"module 'icelite' has no attribute {name!r}")
    module, extra = _EDGES[name]
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        message = f"icelite.{name} needs {error.name}, which is not installed: pip install 'icelite[{extra}]'"
        raise ModuleNotFoundError(message, name=error.name) from error
    return getattr(found, name, found)  # the function or class of that name, else the module itself


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_EDGES})
