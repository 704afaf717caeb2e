"""Where a repository's catalog is (`StorageConfig`), and where virtual chunks come from (`ObjectStoreConfig`).

These are values: making one touches no file and no network. A path is made absolute and its symbolic links are
resolved here, once, because relative references are relative to the directory of the real catalog file.
A catalog in a bucket or on a web server is an `S3Place` or a `WebPlace`, which carries the credentials for it. They
travel in a pickle, as they must to reach a worker; no `repr`, name or message shows them.
"""

from icelite.credentials import S3Options
from icelite.storage.config import (
    StorageConfig,
    as_storage,
    http_storage,
    in_memory_storage,
    local_filesystem_storage,
    s3_storage,
)
from icelite.storage.places import DEFAULT_NAME, EXTENSION, WHOLE_BYTES, RemotePlace, S3Place, WebPlace
from icelite.storage.stores import AnyObjectStoreConfig, ObjectStoreConfig, local_filesystem_store, s3_store

__all__ = [
    "DEFAULT_NAME",
    "EXTENSION",
    "WHOLE_BYTES",
    "AnyObjectStoreConfig",
    "ObjectStoreConfig",
    "RemotePlace",
    "S3Options",
    "S3Place",
    "StorageConfig",
    "WebPlace",
    "as_storage",
    "http_storage",
    "in_memory_storage",
    "local_filesystem_storage",
    "local_filesystem_store",
    "s3_storage",
    "s3_store",
]
