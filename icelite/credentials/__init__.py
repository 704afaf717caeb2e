"""What a caller shows to be let in: credentials, how to reach the service (`S3Options`), words for what needs none.

Invariants: no secret, key id or token is in any `repr`, `str` or error; nothing here is ever stored in a catalog
(pickling does carry secrets, as it must to reach a worker). The classes and functions have Icechunk's names; the
keywords ``region``, ``endpoint_url``, ``allow_http``, ``force_path_style`` and ``max_attempts`` are additions, because
a catalog is never asked where credentials should be sent.
"""

from icelite.credentials.access import (
    AnyCredential,
    FilesystemAccess,
    HttpAccess,
    LocalAccess,
    LocalFileSystemAccess,
    WebAccess,
    check_credential,
    containers_credentials,
    filesystem_access,
    http_access,
)
from icelite.credentials.options import S3Options, check_attempts
from icelite.credentials.s3 import (
    AnyS3Credential,
    S3Credentials,
    S3StaticCredentials,
    s3_anonymous_credentials,
    s3_credentials,
    s3_from_env_credentials,
    s3_refreshable_credentials,
    s3_static_credentials,
)

__all__ = [
    "AnyCredential",
    "AnyS3Credential",
    "FilesystemAccess",
    "HttpAccess",
    "LocalAccess",
    "LocalFileSystemAccess",
    "S3Credentials",
    "S3Options",
    "S3StaticCredentials",
    "WebAccess",
    "check_attempts",
    "check_credential",
    "containers_credentials",
    "filesystem_access",
    "http_access",
    "s3_anonymous_credentials",
    "s3_credentials",
    "s3_from_env_credentials",
    "s3_refreshable_credentials",
    "s3_static_credentials",
]
