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
from types import ModuleType

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
    LocalFileSystemAccess,
    S3Credentials,
    S3StaticCredentials,
    containers_credentials,
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
    ObjectStoreConfig,
    S3Options,
    StorageConfig,
    in_memory_storage,
    local_filesystem_storage,
    local_filesystem_store,
    s3_storage,
    s3_store,
)
from icelite.store import IceliteStore
from icelite.types import (
    ChunkStorageStats,
    ChunkType,
    Diff,
    FeatureFlag,
    GCSummary,
    RepoAvailability,
    RepoStatus,
    SessionMode,
    SnapshotInfo,
    SourceStamp,
    SpecVersion,
    Update,
    UpdateType,
    VirtualChunkSpec,
)

__version__ = "0.1.0"

__all__ = [
    "AlreadyExistsError",
    "AncestryGraph",
    "BasicConflictSolver",
    "ChunkStorageStats",
    "ChunkType",
    "Conflict",
    "ConflictDetector",
    "ConflictError",
    "ConflictSolver",
    "ConflictType",
    "Diff",
    "ErrorKind",
    "FeatureFlag",
    "ForkSession",
    "FormatError",
    "GCSummary",
    "IceliteError",
    "IceliteStore",
    "InternalError",
    "InvalidInputError",
    "KeyNotFoundError",
    "LocalFileSystemAccess",
    "NodeNotFoundError",
    "NotFoundError",
    "ObjectStoreConfig",
    "ReadOnlyError",
    "RebaseFailedError",
    "RefNotFoundError",
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
    "SourceStamp",
    "SpecVersion",
    "StorageConfig",
    "StorageError",
    "StoreConfig",
    "Update",
    "UpdateType",
    "VersionSelection",
    "VirtualChunkContainer",
    "VirtualChunkSpec",
    "VirtualRefConfig",
    "containers_credentials",
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

_EDGES = ("virtualizarr", "xarray")  # they import optional packages, so only when first asked for


def __getattr__(name: str) -> ModuleType:
    if name in _EDGES:
        return importlib.import_module(f"icelite.{name}")
    raise AttributeError(f"module 'icelite' has no attribute {name!r}")
