"""The containers that one repository object knows, and how it learns of others.

A container grants nothing by itself, so learning of one opens no gate; but those that the caller declared in this
process count for what they say of a store, and of local files, and go along when the same caller moves them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Self

from icelite.config import VirtualChunkContainer
from icelite.types import Location
from icelite.virtual.source import Source


class KnownContainers:
    """The part of `VirtualAccess` about containers, and the files of this process's own."""

    _named: dict[str, VirtualChunkContainer]
    _containers: dict[str, VirtualChunkContainer]  # by prefix
    _declared: dict[str, VirtualChunkContainer]  # by prefix
    _own_files: set[str]
    _sources: dict[Location, Source]
    new_containers: dict[str, VirtualChunkContainer]

    def allow(self, location: Location) -> None:
        """Authorise a local file, or one beside the catalog, that this process referenced itself; for this object."""
        if location.container is None and (location.path.startswith("file://") or "://" not in location.path):
            self._own_files.add(location.path)

    def follow(self, old: Location, new: Location) -> None:
        """Let what this process may do with a file of its own hold where it says that the file is now."""
        if old.container is None and old.path in self._own_files:
            self.allow(new)

    def join(self, other: KnownContainers) -> None:
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
