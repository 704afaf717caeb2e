"""The objects of a repository in a bucket, or wherever else fsspec can write."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

from icelite.credentials import AnyS3Credential, S3Options
from icelite.errors import ErrorKind, InvalidInputError, StorageError
from icelite.objects.keys import KEY, check_key, new_key
from icelite.objects.local import Objects, StoredObject
from icelite.virtual.clients import client_for

DELETES_AT_ONCE = 1000  # what S3 takes in one request


class Connect:
    """Gives an fsspec filesystem; a class, so that it pickles."""

    def __init__(self, protocol: str) -> None:
        self._protocol = protocol

    def __call__(self) -> Any:
        """The fsspec filesystem of the protocol, with what the environment says about credentials."""
        import fsspec

        try:
            return fsspec.filesystem(self._protocol)
        except ImportError as error:
            raise InvalidInputError(
                f"objects under {self._protocol}:// need a package that is not installed: {error}",
                ErrorKind.STORAGE_CONFIG,
            ) from error


class S3Connect(Connect):
    """Gives an s3fs filesystem with the caller's credentials and options."""

    def __init__(self, credentials: AnyS3Credential, options: S3Options) -> None:
        super().__init__("s3")
        self._credentials = credentials
        self._options = options

    def __call__(self) -> Any:
        """See `Connect`; the client is shared with whatever else uses these credentials."""
        return client_for(self._credentials, self._options).filesystem()


class RemoteObjects(Objects):
    """The objects of one repository, in a bucket or wherever else fsspec can write.

    Parameters
    ----------
    connect
        Gives the fsspec filesystem to use now; called for each operation, since keys expire.
    """

    is_remote = True

    def __init__(self, url: str, root: str, connect: Connect) -> None:
        super().__init__(url, root)
        self._connect = connect

    def put(self, bodies: Sequence[bytes]) -> list[str]:
        """See `Objects.put`."""
        keys = [new_key() for _ in bodies]
        self._call("written", "pipe", {self.url + key: data for key, data in zip(keys, bodies, strict=True)})
        return keys

    def scan(self) -> Iterator[StoredObject]:
        """See `Objects.scan`."""
        found: dict[str, dict[str, Any]] = self._call("listed", "find", self.url, detail=True)
        for path, info in found.items():
            key = "/".join(path.rsplit("/", 2)[-2:])
            if KEY.fullmatch(key) and key[:2] == key[-2:]:
                yield StoredObject(key, int(info["size"]))

    def delete(self, keys: Sequence[str]) -> None:
        """See `Objects.delete`."""
        for start in range(0, len(keys), DELETES_AT_ONCE):
            some = keys[start : start + DELETES_AT_ONCE]
            self._call("removed", "rm", [self.url + check_key(key) for key in some])

    def _call(self, done: str, method: str, *arguments: Any, **options: Any) -> Any:
        """One call of the filesystem, its failures translated without a word of the libraries below."""
        filesystem = self._connect()
        failures: tuple[type[Exception], ...] = (OSError, ValueError, *_library_errors())
        try:
            filesystem.invalidate_cache()  # others write there too
            return getattr(filesystem, method)(*arguments, **options)
        except FileNotFoundError:
            if method == "find":
                return {}
            if method == "rm":  # somebody else was quicker
                return None
            problem = "the bucket does not exist"
        except PermissionError:
            problem = "access was denied; check the credentials, and that they may write, list and delete there"
        except failures as error:
            problem = f"{type(error).__name__}; check the network, the endpoint and the credentials"
        # out here, the library's exception is not the context of this one
        raise StorageError(f"objects under {self.url} could not be {done}: {problem}", ErrorKind.IO)


def _library_errors() -> tuple[type[Exception], ...]:
    """What s3fs and the libraries under it raise besides OSError."""
    if "botocore" not in sys.modules:
        return ()
    from aiohttp import ClientError as HttpError
    from botocore.exceptions import BotoCoreError, ClientError  # type: ignore[import-untyped]

    return (BotoCoreError, ClientError, HttpError, TimeoutError)
