"""Read access: the gates between a catalog's references and anybody's bytes.

A catalog may come from a stranger, so a reference by itself opens nothing. It is read when
(1) it is relative, and stays under the catalog's directory after symbolic links are resolved, or under the prefix of
    a remote catalog, which is then asked with that catalog's own credentials; and there is no dot folder or dot file
    (a home directory has ``.ssh``), unless the caller authorised that folder; or
(2) a container covers it, and the caller authorised a prefix that covers it: by ``authorize_virtual_chunk_access``
    (the longest prefix wins) or, for ``file://``, by passing the container itself in this process; a local file's
    resolved path must lie under an authorised directory too; or
(3) it is a local file that this process referenced itself (`VirtualAccess.allow`).
Endpoint, region and credentials come from what the caller passed, never from what the catalog stores.
"""

from __future__ import annotations

import copy
import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from icelite.config import VirtualChunkContainer, longest_covering, normalize_prefix
from icelite.credentials import AnyCredential, check_credential
from icelite.errors import redact
from icelite.storage import RemoteAddress
from icelite.types import ChunkType, Location, SourceStamp
from icelite.virtual import refusal, remote
from icelite.virtual.local import LocalSource, is_catalog
from icelite.virtual.source import Source, Target, fetch_error
from icelite.virtual.stamps import stamp_of_file
from icelite.virtual.urls import (
    bad_reference,
    check_remote,
    check_segments,
    check_slashes,
    check_unsigned,
    existing_path,
    file_path,
    is_hidden,
    is_under,
    name_and_path,
    relative_path,
    scheme_of,
)

_MAX_SOURCES = 16_384  # a source remembers that the gates were passed; it keeps no file open


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
    address
        The bucket or web server of a remote catalog, from whose prefix relative references start.
    signed
        Whether references with a signature in their URL may be written.

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
        address: RemoteAddress | None = None,
        signed: bool = False,
    ) -> None:
        for prefix, credential in access.items():
            check_credential(prefix, credential)
        self._directory = None if directory is None else os.path.realpath(directory)
        self._at_home = at_home
        self._named = {**containers, **{str(container.name): container for container in declared.values()}}
        self._containers = {container.url_prefix: container for container in self._named.values()}
        self._declared = {container.url_prefix: container for container in declared.values()}
        self._access = {normalize_prefix(prefix): credential for prefix, credential in access.items()}
        self._address = address
        self._signed = signed
        self._catalog = None if catalog is None else os.path.realpath(catalog)
        self._own_files: set[str] = set()
        self._sources: dict[Location, Source] = {}
        self.new_containers: dict[str, VirtualChunkContainer] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_sources": {}}

    # ---- what becomes known later: containers grant nothing, own files and what the caller declared do

    def allow(self, location: Location) -> None:
        """Authorise a local file, or one beside the catalog, that this process referenced itself; for this object."""
        if location.container is None and (location.path.startswith("file://") or "://" not in location.path):
            self._own_files.add(location.path)

    def follow(self, old: Location, new: Location) -> None:
        """Let what this process may do with a file of its own hold where it says that the file is now."""
        if old.container is None and old.path in self._own_files:
            self.allow(new)

    def join(self, other: VirtualAccess) -> None:
        """Take over what another process referenced in a fork of this session: its own files and new containers."""
        self._own_files |= other._own_files
        for name, container in other.new_containers.items():
            if container.url_prefix not in self._containers:
                self._containers[container.url_prefix] = self._named[name] = container
                self.new_containers[name] = container

    def reload(self, containers: Mapping[str, VirtualChunkContainer], moved: Mapping[str, str] | None = None) -> bool:
        """Take over the containers as the catalog has them by now; whether anything changed.

        Parameters
        ----------
        containers
            By name.
        moved
            Prefixes of containers, and where this process itself has just moved them: those that the caller declared
            go along.
        """
        for old, new in (moved or {}).items():
            self.new_containers.pop(old, None)
            container = self._declared.pop(old, None)
            if container is not None:
                self._declared[new] = container.at(new)
        declared = {str(container.name): container for container in self._declared.values()}
        named = {**self.new_containers, **containers, **declared}
        if named == self._named:
            return False
        self._named = named
        self._containers = {container.url_prefix: container for container in named.values()}
        self._sources = {}
        return True

    def with_containers(self, containers: Mapping[str, VirtualChunkContainer], moved: Mapping[str, str]) -> Self:
        """The same rights with other containers; see `reload`."""
        other = copy.copy(self)
        other._declared, other.new_containers = dict(self._declared), dict(self.new_containers)
        other._own_files, other._sources = set(self._own_files), {}
        other.reload(containers, moved)
        return other

    # ---- writing references

    def locate(self, url: str, *, stamp: SourceStamp | None = None, validate_container: bool = True) -> Location:
        """The location that a reference to ``url`` is stored with.

        A local file under the catalog's directory becomes relative; another local file is covered by a new container
        for its directory, if by none yet.

        Parameters
        ----------
        url
            ``file:///...``, ``s3://...`` or another remote URL, ``vcc://name/path``, or a path, absolute or relative
            to the catalog.
        stamp
            What the source looks like now, to be checked when it is read.

        Raises
        ------
        InvalidInputError
            ``invalid-virtual-ref`` for a URL that cannot be used, ``no-container-for-virtual-chunk`` when no
            container covers it (a remote one, if ``validate_container``) or has its name.
        """
        stamp = stamp or SourceStamp()
        container, path = None, url
        scheme = scheme_of(url)
        check_slashes(url)
        if scheme == "vcc":
            container, path = name_and_path(url)
            url = self._prefix_of(container, url) + path
            self._check(url)
            self.check_unsigned(url)
        elif scheme == "" and self._address is not None and not url.startswith("/"):
            path = relative_path(url.removeprefix("./"))
            self.check_unsigned(url)
        elif scheme not in ("", "file"):
            check_remote(url)
            self.check_unsigned(url)
            inside = None if self._address is None else remote.path_inside(self._address, url)
            if inside is not None:
                path = inside
            elif validate_container and longest_covering(self._containers, url) is None:
                raise refusal.no_container(url, self._catalog)
        else:
            path = self._locate_file(url)
        if stamp.etag is not None and (path.startswith("file://") or (self._address is None and "://" not in url)):
            raise bad_reference(url, "has an ETag as its checksum, which local files lack; pass a datetime")
        return Location(ChunkType.virtual, path, container, stamp.size, stamp.etag, stamp.modified_at)

    def check_unsigned(self, url: str) -> None:
        """Refuse a URL with a signature in it where the caller did not ask to store such; see `urls.check_unsigned`."""
        if not self._signed:
            check_unsigned(url)

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

    def stamp(self, url: str) -> SourceStamp:
        """The look of one source now: `stamps` of one.

        Raises
        ------
        InvalidInputError, StorageError
            As `stamps`.
        """
        return self.stamps([url])[url]

    def stamps(self, urls: Iterable[str]) -> dict[str, SourceStamp]:
        """The looks of sources now, by URL; empty stamps for those not there, or remote and not authorised.

        Raises
        ------
        InvalidInputError
            ``invalid-virtual-ref`` for a URL that cannot be used or is no regular file.
        StorageError
            ``virtual-chunk-fetch`` when a source cannot be asked.
        """
        found: dict[str, SourceStamp] = {}
        targets: dict[str, Target] = {}
        for url in dict.fromkeys(urls):
            absolute = self._absolute_url(url)
            target = self.find_target(absolute)
            if target is not None:
                targets[url] = target
            elif scheme_of(absolute) in ("", "file"):
                found[url] = self._stamp_file(absolute)
            else:
                check_remote(absolute)
                found[url] = SourceStamp()
        found.update(zip(targets, remote.stamps_of(list(targets.values())), strict=True))
        return found

    def _absolute_url(self, url: str) -> str:
        """A reference with its container's prefix in place of ``vcc://name/``, or the catalog's if it is relative."""
        scheme = scheme_of(url)
        check_slashes(url)
        if scheme == "" and self._address is not None and not url.startswith("/"):
            return self._address.base + relative_path(url.removeprefix("./"))
        if scheme != "vcc":
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
        return stamp_of_file(status)

    # ---- reading them

    def open(self, location: Location, chunk: str | None, *, native: bool = False) -> Source:
        """The source of a location, if the gates let it through. Nothing is opened or asked before the first read.

        Parameters
        ----------
        chunk
            The chunk's key, for messages; None when it is about the whole source.
        native
            It is an object of icelite's own, whose name was checked: its folder may be hidden.

        Raises
        ------
        InvalidInputError
            ``no-container-for-virtual-chunk`` or ``unauthorized-virtual-chunk-container``, with the line of code that
            would allow it; ``invalid-virtual-ref`` for a location that cannot be used.
        """
        source = self._sources.get(location)
        if source is None:
            source = self._admit(location, chunk, native)
            while len(self._sources) >= _MAX_SOURCES:
                self._sources.pop(next(iter(self._sources)), None)
            self._sources[location] = source
        return source

    def _admit(self, location: Location, chunk: str | None, native: bool) -> Source:
        if location.container is None and scheme_of(location.path) == "":
            return self._open_relative(location, chunk, native)
        url = self.locator(location)
        self._check(url)
        if location.container is None and location.path in self._own_files:
            return self._local(location, os.path.realpath(existing_path(file_path(url))), url, check_time=True)
        if longest_covering(self._containers, url) is None:
            raise refusal.no_container(url, self._catalog, chunk)
        if url.startswith("file://"):
            return self._open_file(location, url, chunk)
        target = self._authorised(url)
        if target is None:
            raise refusal.unauthorised(url, self.suggested_prefix(url), self._catalog, chunk)
        return remote.RemoteSource(location, target, check_time=True)

    def _open_relative(self, location: Location, chunk: str | None, native: bool) -> Source:
        if self._address is not None:
            target = remote.target_beside(self._address, relative_path(location.path))
            asked = native or not is_hidden(location.path) or location.path in self._own_files
            if not asked and self._authorised(self.locator(location)) is None:
                raise refusal.hidden(self.url(location), self._address.url, chunk)
            return remote.RemoteSource(location, target, check_time=self._at_home)
        if self._directory is None:
            raise bad_reference(location.path, "is relative, and a catalog in memory has no directory")
        path = os.path.realpath(existing_path(os.path.join(self._directory, relative_path(location.path))))
        if not is_under(path, self._directory):
            raise refusal.outside(location.path, path, self._directory, chunk)
        if not native and location.path not in self._own_files:
            self._check_hidden(location, path, chunk)
        return self._local(location, path, self.url(location), check_time=self._at_home)

    def _check_hidden(self, location: Location, path: str, chunk: str | None) -> None:
        """Refuse what is in a dot folder below the catalog's directory, unless something authorised covers it."""
        assert self._directory is not None
        inside = os.path.relpath(path, self._directory)
        if not is_hidden(inside) and not is_hidden(location.path):
            return
        if longest_covering(dict.fromkeys(self._authorised_files()), "file://" + path) is None:
            raise refusal.hidden("file://" + path, self._catalog, chunk)

    def _authorised_files(self) -> list[str]:
        return [prefix for prefix in (*self._access, *self._declared) if prefix.startswith("file://")]

    def _open_file(self, location: Location, url: str, chunk: str | None) -> Source:
        authorised = self._authorised_files()
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

    def find_target(self, url: str) -> Target | None:
        """The object at a remote URL, and how it may be reached; None when nothing authorises that, or it is a file.

        Raises
        ------
        InvalidInputError
            ``invalid-virtual-ref`` for a URL that cannot be used.
        """
        if scheme_of(url) in ("", "file"):
            return None
        check_remote(url)
        inside = None if self._address is None else remote.path_inside(self._address, url)
        if self._address is not None and inside is not None:
            return remote.target_beside(self._address, inside)
        return self._authorised(url)

    def lookup_target(self, url: str) -> Target:
        """The object at a remote URL, which the caller must have authorised.

        Raises
        ------
        InvalidInputError
            ``unauthorized-virtual-chunk-container``, ``invalid-virtual-ref``.
        """
        found = self.find_target(url)
        if found is None:
            raise refusal.unauthorised_source(url)
        return found

    def _authorised(self, url: str) -> Target | None:
        prefix = longest_covering(self._access, url)
        if prefix is None:
            return None
        declared = longest_covering(self._declared, url)
        return remote.target_of(
            url, prefix, self._access[prefix], None if declared is None else self._declared[declared].store
        )

    # ---- asking

    def url(self, location: Location) -> str:
        """The absolute URL of a location for display: `locator`, with a signature cut out."""
        return redact(self.locator(location))

    def locator(self, location: Location) -> str:
        """The absolute URL of a location; a relative path as it is when the catalog is in memory.

        Raises
        ------
        InvalidInputError
            ``no-container-for-virtual-chunk`` when the container it names is not known.
        """
        if location.container is not None:
            return self._prefix_of(location.container, f"vcc://{location.container}/{location.path}") + location.path
        if "://" not in location.path and self._address is not None:
            return self._address.base + location.path
        if "://" in location.path or self._directory is None:
            return location.path
        return "file://" + os.path.join(self._directory, location.path)

    @property
    def at_home(self) -> bool:
        """Whether times of files under the catalog's directory count: not where the folder may be a copy."""
        return self._at_home

    def is_local(self, location: Location) -> bool:
        """Whether a location's bytes are in a file of this machine."""
        url = self.locator(location)
        return url.startswith("file://") or "://" not in url

    def required(self, locations: Iterable[Location]) -> dict[str, str]:
        """The ``authorize_virtual_chunk_access`` that reads all of these: prefix to Python expression.

        Relative locations need nothing and are left out.
        """
        urls = (self.locator(location) for location in locations if location.container or "://" in location.path)
        prefixes = {self.suggested_prefix(url) for url in urls}
        return {prefix: refusal.expression(prefix) for prefix in sorted(prefixes)}

    def suggested_prefix(self, url: str) -> str:
        """The prefix to authorise for a URL: its container's, or when that is a whole scheme its bucket or folder."""
        prefix = longest_covering(self._containers, url)
        whole = prefix is None or not prefix.partition("://")[2].strip("/")
        return refusal.narrow_prefix(url) if whole else str(prefix)

    def _prefix_of(self, name: str, url: str) -> str:
        container = self._named.get(name)
        if container is None:
            raise refusal.unknown_container(name, url, sorted(self._named))
        return container.url_prefix

    @staticmethod
    def _check(url: str) -> None:
        scheme = scheme_of(url)
        if scheme == "file":
            file_path(url)
        elif scheme in ("", "vcc"):
            check_segments(url, url, local=True)
            raise bad_reference(url, "is no absolute URL")
        else:
            check_remote(url)
