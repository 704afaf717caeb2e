"""Who may read what: the gates between a catalog's references and anybody's bytes.

A catalog may come from a stranger, so a reference by itself opens nothing. It is read when
(1) it is relative, and stays under the catalog's directory after symbolic links are resolved; or
(2) a container covers it, and the caller authorised a prefix that covers it: by ``authorize_virtual_chunk_access``
    (the longest prefix wins) or, for ``file://``, by passing the container itself in this process; a local file's
    resolved path must lie under an authorised directory too; or
(3) it is a local file that this process referenced itself (`VirtualAccess.allow`).
Endpoint, region and credentials come from what the caller passed, never from what the catalog stores.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from icelite.config import VirtualChunkContainer, longest_covering, normalize_prefix
from icelite.credentials import AnyCredential, AnyS3Credential, S3Credentials, check_credential
from icelite.storage import ObjectStoreConfig, S3Options
from icelite.types import ChunkType, Location, SourceStamp
from icelite.virtual import refusal
from icelite.virtual.clients import client_for, run
from icelite.virtual.local import LocalSource, is_catalog
from icelite.virtual.s3 import S3Object, S3Source
from icelite.virtual.source import Source, fetch_error
from icelite.virtual.urls import (
    bad_reference,
    bucket_and_key,
    check_segments,
    existing_path,
    file_path,
    is_under,
    name_and_path,
    relative_path,
    scheme_of,
)

_MAX_SOURCES = 16_384  # a source remembers that the gates were passed; it keeps no file open
_STAMPS_AT_ONCE = 32
_STAMPS_A_RUN = 1_024  # keys that expire are renewed between runs


class VirtualAccess:
    """The virtual chunks that one repository object may reference and read.

    Parameters
    ----------
    directory
        The catalog's directory; None for a catalog in memory, which has no relative references.
    at_home
        Whether the catalog is where it was written. If not, its folder may be a copy, and copies do not keep times:
        relative references are then checked by size only.
    containers
        Every known container, by name.
    declared
        The containers that the caller passed in this process, by prefix: the only ones whose store options count.
    access
        What the caller authorised, by prefix.
    catalog
        The catalog file, which is never opened as a source, and whose name messages use.

    Attributes
    ----------
    new_containers
        By name: those that `locate` declared, for the session to persist with its commit.

    Raises
    ------
    InvalidInputError
        ``invalid-credentials`` for an authorisation that does not fit its prefix.
    """

    def __init__(
        self,
        *,
        directory: Path | None,
        at_home: bool,
        containers: Mapping[str, VirtualChunkContainer],
        declared: Mapping[str, VirtualChunkContainer],
        access: Mapping[str, AnyCredential | None],
        catalog: Path | None = None,
    ) -> None:
        for prefix, credential in access.items():
            check_credential(prefix, credential)
        self._directory = None if directory is None else os.path.realpath(directory)
        self._at_home = at_home
        self._named = {**containers, **{str(container.name): container for container in declared.values()}}
        self._containers = {container.url_prefix: container for container in self._named.values()}
        self._declared = {container.url_prefix: container for container in declared.values()}
        self._access = {normalize_prefix(prefix): credential for prefix, credential in access.items()}
        self._catalog = None if catalog is None else os.path.realpath(catalog)
        self._own_files: set[str] = set()
        self._sources: dict[Location, Source] = {}
        self.new_containers: dict[str, VirtualChunkContainer] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_sources": {}}

    # ---- writing references

    def locate(self, url: str, *, stamp: SourceStamp | None = None, validate_container: bool = True) -> Location:
        """The location that a reference to ``url`` is stored with.

        A local file under the catalog's directory becomes relative; another local file is covered by a new container
        for its directory, if by none yet.

        Parameters
        ----------
        url
            ``file:///...``, ``s3://...``, ``vcc://name/path``, or a path: absolute, or relative to the catalog.
        stamp
            What the source looks like now, to be checked when it is read.

        Raises
        ------
        InvalidInputError
            ``invalid-virtual-ref`` for a URL that cannot be used, ``no-container-for-virtual-chunk`` when no
            container covers it (``s3://``, if ``validate_container``) or has its name.
        """
        stamp = stamp or SourceStamp()
        container, path = None, url
        scheme = scheme_of(url)
        if scheme == "vcc":
            container, path = name_and_path(url)
            url = self._prefix_of(container, url) + path
            self._check(url)
        elif scheme == "s3":
            bucket_and_key(url)
            if validate_container and longest_covering(self._containers, url) is None:
                raise refusal.no_container(url, self._catalog)
        else:
            path = self._locate_file(url)
        if stamp.etag is not None and not url.startswith("s3://"):
            raise bad_reference(url, "has an ETag as its checksum, which local files lack; pass a datetime")
        return Location(ChunkType.virtual, path, container, stamp.size, stamp.etag, stamp.modified_at)

    def _locate_file(self, url: str) -> str:
        absolute = self._absolute_path(url)
        real = os.path.realpath(absolute)
        if is_catalog(real, self._catalog):
            raise bad_reference(url, "is a catalog, which holds no virtual chunks")
        if self._directory is not None and is_under(real, self._directory):
            inside = absolute if is_under(absolute, self._directory) else real
            return os.path.relpath(inside, self._directory)
        location = url if url.startswith("file://") else "file://" + absolute
        if longest_covering(self._containers, location) is None:
            container = VirtualChunkContainer(location.rpartition("/")[0] + "/")
            self._containers[container.url_prefix] = self._named[container.url_prefix] = container
            self.new_containers[container.url_prefix] = container
        return location

    def _absolute_path(self, url: str) -> str:
        """The path that a ``file://`` URL or a path stands for; `existing_path` of it."""
        if url.startswith("file://"):
            return existing_path(file_path(url))
        if url.startswith("/"):
            return existing_path(file_path("file://" + url))
        if self._directory is None:
            raise bad_reference(url, "is relative, and a catalog in memory has no directory; write 'file:///...'")
        path = url.removeprefix("./")
        return existing_path(os.path.join(self._directory, relative_path(path)))

    def allow(self, location: Location) -> None:
        """Authorise a local file that this process referenced itself, for this object."""
        if location.container is None and location.path.startswith("file://"):
            self._own_files.add(location.path)

    def join(self, other: VirtualAccess) -> None:
        """Take over what another process referenced in a fork of this session: its own files and new containers."""
        self._own_files |= other._own_files
        for name, container in other.new_containers.items():
            if container.url_prefix not in self._containers:
                self._containers[container.url_prefix] = self._named[name] = container
                self.new_containers[name] = container

    def stamp(self, url: str) -> SourceStamp:
        """What a source looks like now: `stamps` of one.

        Raises
        ------
        InvalidInputError, StorageError
            As `stamps`.
        """
        return self.stamps([url])[url]

    def stamps(self, urls: Iterable[str]) -> dict[str, SourceStamp]:
        """What sources look like now, by URL; empty stamps for those not there, or on S3 and not authorised.

        Raises
        ------
        InvalidInputError
            ``invalid-virtual-ref`` for a URL that cannot be used or is no regular file.
        StorageError
            ``virtual-chunk-fetch`` when a source cannot be asked.
        """
        found: dict[str, SourceStamp] = {}
        objects: dict[str, S3Object] = {}
        for url in dict.fromkeys(urls):
            absolute = self._absolute_url(url)
            prefix = longest_covering(self._access, absolute)
            if scheme_of(absolute) != "s3":
                found[url] = self._stamp_file(absolute)
            elif prefix is not None:
                objects[url] = self._object(absolute, prefix, self._access[prefix])
            else:
                bucket_and_key(absolute)
                found[url] = SourceStamp()
        asked = list(objects)
        for start in range(0, len(asked), _STAMPS_A_RUN):
            batch = asked[start : start + _STAMPS_A_RUN]
            # connected here, not on the event loop: the caller's get_credentials may need that loop itself
            connected = [(objects[url], objects[url].client.filesystem()) for url in batch]
            found.update(zip(batch, run(_stamp_objects(connected)), strict=True))
        return found

    def _absolute_url(self, url: str) -> str:
        """A reference with its container's prefix in place of ``vcc://name/``."""
        if scheme_of(url) != "vcc":
            return url
        name, path = name_and_path(url)
        return self._prefix_of(name, url) + path

    def _stamp_file(self, url: str) -> SourceStamp:
        try:
            status = os.stat(self._absolute_path(url))
        except (FileNotFoundError, NotADirectoryError):
            return SourceStamp()  # references may be written before the file is there
        except OSError as error:
            raise fetch_error(None, url, f"cannot be looked at: {error.strerror}") from error
        if not stat.S_ISREG(status.st_mode):
            raise bad_reference(url, "is a directory, a pipe or a device, not a regular file")
        return SourceStamp(size=status.st_size, modified_at=status.st_mtime_ns)

    # ---- reading them

    def open(self, location: Location, chunk: str) -> Source:
        """The source of a location, if the gates let it through. Nothing is opened or asked before the first read.

        Parameters
        ----------
        chunk
            The chunk's key, for messages.

        Raises
        ------
        InvalidInputError
            ``no-container-for-virtual-chunk`` or ``unauthorized-virtual-chunk-container``, with the line of code that
            would allow it; ``invalid-virtual-ref`` for a location that cannot be used.
        """
        source = self._sources.get(location)
        if source is None:
            source = self._admit(location, chunk)
            while len(self._sources) >= _MAX_SOURCES:
                self._sources.pop(next(iter(self._sources)), None)
            self._sources[location] = source
        return source

    def _admit(self, location: Location, chunk: str) -> Source:
        if location.container is None and scheme_of(location.path) == "":
            return self._open_relative(location, chunk)
        url = self.url(location)
        self._check(url)
        if location.container is None and location.path in self._own_files:
            return self._local(location, os.path.realpath(existing_path(file_path(url))), url, check_time=True)
        if longest_covering(self._containers, url) is None:
            raise refusal.no_container(url, self._catalog, chunk)
        prefix = longest_covering(self._access, url)
        if url.startswith("s3://"):
            if prefix is None:
                raise refusal.unauthorised(url, self.suggested_prefix(url), self._catalog, chunk)
            return S3Source(location, self._object(url, prefix, self._access[prefix]), check_time=True)
        return self._open_file(location, url, chunk)

    def _open_relative(self, location: Location, chunk: str) -> Source:
        if self._directory is None:
            raise bad_reference(location.path, "is relative, and a catalog in memory has no directory")
        path = os.path.realpath(existing_path(os.path.join(self._directory, relative_path(location.path))))
        if not is_under(path, self._directory):
            raise refusal.outside(location.path, path, self._directory, chunk)
        return self._local(location, path, self.url(location), check_time=self._at_home)

    def _open_file(self, location: Location, url: str, chunk: str) -> Source:
        authorised = [prefix for prefix in (*self._access, *self._declared) if prefix.startswith("file://")]
        if longest_covering(dict.fromkeys(authorised), url) is None:
            raise refusal.unauthorised(url, self.suggested_prefix(url), self._catalog, chunk)
        path = os.path.realpath(existing_path(file_path(url)))
        if not any(is_under(path, os.path.realpath(prefix.removeprefix("file://") or "/")) for prefix in authorised):
            raise refusal.linked(url, path, self._catalog, chunk)
        return self._local(location, path, url, check_time=True)

    def _local(self, location: Location, path: str, url: str, *, check_time: bool) -> LocalSource:
        if is_catalog(path, self._catalog):
            raise bad_reference(url, "is a catalog, which holds no virtual chunks")
        return LocalSource(location, path, url, check_time=check_time)

    def _object(self, url: str, prefix: str, credential: AnyCredential | None) -> S3Object:
        bucket, key = bucket_and_key(url)
        declared = longest_covering(self._declared, url)
        store = None if declared is None else self._declared[declared].store
        options = (
            S3Options() if store is None or isinstance(store, ObjectStoreConfig.LocalFileSystem) else store.options
        )
        chosen = credential if isinstance(credential, AnyS3Credential) else S3Credentials.FromEnv()
        return S3Object(bucket, key, url, prefix, client_for(chosen, options))

    # ---- asking

    def url(self, location: Location) -> str:
        """The absolute URL of a location, for display; a relative path as it is when the catalog is in memory.

        Raises
        ------
        InvalidInputError
            ``no-container-for-virtual-chunk`` when the container it names is not known.
        """
        if location.container is not None:
            return self._prefix_of(location.container, f"vcc://{location.container}/{location.path}") + location.path
        if "://" in location.path or self._directory is None:
            return location.path
        return "file://" + os.path.join(self._directory, location.path)

    def is_local(self, location: Location) -> bool:
        """Whether a location's bytes are in a file of this machine."""
        url = self.url(location)
        return url.startswith("file://") or "://" not in url

    def required(self, locations: Iterable[Location]) -> dict[str, str]:
        """What to pass as ``authorize_virtual_chunk_access`` to read all of these: prefix to Python expression.

        Relative locations need nothing and are left out.
        """
        urls = (self.url(location) for location in locations if location.container or "://" in location.path)
        prefixes = {self.suggested_prefix(url) for url in urls}
        return {prefix: refusal.expression(prefix) for prefix in sorted(prefixes)}

    def suggested_prefix(self, url: str) -> str:
        """The prefix to authorise for a URL: its container's, or when that is a whole scheme its bucket or folder."""
        prefix = longest_covering(self._containers, url)
        return refusal.narrow_prefix(url) if prefix in (None, "s3://", "file://", "file:///") else str(prefix)

    def _prefix_of(self, name: str, url: str) -> str:
        container = self._named.get(name)
        if container is None:
            raise refusal.unknown_container(name, url, sorted(self._named))
        return container.url_prefix

    @staticmethod
    def _check(url: str) -> None:
        scheme = scheme_of(url)
        if scheme == "s3":
            bucket_and_key(url)
        elif scheme == "file":
            file_path(url)
        else:
            check_segments(url, url, local=True)
            raise bad_reference(url, "is no absolute URL")


async def _stamp_objects(connected: Sequence[tuple[S3Object, Any]]) -> list[SourceStamp]:
    turnstile = asyncio.Semaphore(_STAMPS_AT_ONCE)

    async def ask(target: S3Object, filesystem: Any) -> SourceStamp:
        async with turnstile:
            return await target.stamp(filesystem)

    return await asyncio.gather(*(ask(*pair) for pair in connected))
