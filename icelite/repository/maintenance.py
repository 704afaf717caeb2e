"""Maintenance of a repository: the part of `Repository` that releases history, frees space and checks the file."""

from __future__ import annotations

import warnings
from datetime import datetime
from typing import TYPE_CHECKING

from icelite.catalog.database import Catalog
from icelite.change_set import ObjectWriter
from icelite.config import RepositoryConfig
from icelite.objects import NoObjects, Objects
from icelite.ops import expire, gc, space, verify
from icelite.ops.expire import KeepRules
from icelite.payload import Payloads
from icelite.virtual import VirtualAccess

if TYPE_CHECKING:
    from icelite.types import ChunkStorageStats, Compaction, GCSummary, Problems, Progress, Repacking


class Maintenance:
    """What `Repository` does to its history and its file as a whole.

    Arguments of Icechunk's that bound memory or concurrency are accepted, and mean nothing here: memory is bounded
    whatever they are, and there are no manifests to fetch.
    """

    _catalog: Catalog
    _objects: Objects | NoObjects
    _access: VirtualAccess
    _config: RepositoryConfig

    def expire_snapshots(
        self,
        older_than: datetime,
        *,
        delete_expired_branches: bool = False,
        delete_expired_tags: bool = False,
        keep_last: int = 0,
        keep_daily: int = 0,
        keep_weekly: int = 0,
        keep_monthly: int = 0,
        keep_yearly: int = 0,
        dry_run: bool = False,
    ) -> set[str]:
        """Release old snapshots; `garbage_collect` then removes what only they saw.

        Released ids cannot be read from now on. What comes after a released snapshot gets the first one as parent, or
        with keep rules the nearest that stays. The first snapshot and the tip of ``main`` always stay.

        Parameters
        ----------
        older_than
            Snapshots written before this are released; with a time zone.
        delete_expired_branches, delete_expired_tags
            Delete the branches and tags whose snapshot is that old; without, those snapshots stay.
        keep_last
            Of the snapshots of each branch that are that old, so many of the newest stay.
        keep_daily, keep_weekly, keep_monthly, keep_yearly
            Of the snapshots of each branch that are that old, the newest one of each of the last so many days, ISO
            weeks, months and years stays, in UTC; those without a snapshot do not count.
        dry_run
            Change nothing, only say what would go.

        Returns
        -------
        set
            The released ids, those of snapshots on no branch included.

        Raises
        ------
        InvalidInputError, ReadOnlyError, StorageError
            ``invalid-argument``; ``read-only-storage``, ``read-only-repository``; ``busy``, ``storage-full``, ``io``.
        """
        return expire.expire_snapshots(
            self._catalog,
            older_than,
            KeepRules(keep_last, keep_daily, keep_weekly, keep_monthly, keep_yearly),
            delete_expired_branches=delete_expired_branches,
            delete_expired_tags=delete_expired_tags,
            dry_run=dry_run,
        )

    def garbage_collect(
        self,
        delete_object_older_than: datetime,
        *,
        dry_run: bool = False,
        max_snapshots_in_memory: int = 50,
        max_compressed_manifest_mem_bytes: int = 512 << 20,
        max_decoded_manifest_mem_bytes: int = 4 << 30,
        max_concurrent_manifest_fetches: int = 500,
        max_concurrent_deletes: int = 10,
        max_consecutive_delete_failures: int = 50,
        max_concurrent_listings: int | None = None,
    ) -> GCSummary:
        """Remove the snapshots that no branch or tag reaches, and all rows and bytes that no snapshot sees.

        The file keeps its size, and later commits fill the space; `compact` gives it back. Objects are removed after
        the rows are, durably; if that fails on the way, running it again removes the rest.

        Parameters
        ----------
        delete_object_older_than
            Snapshots, and bytes of sessions that have not committed, are removed only if they were written before this;
            with a time zone. Choose it before the beginning of the oldest open session.
        dry_run
            Change nothing, only say what would go. It takes as long, and holds off other writers as long.

        Raises
        ------
        InvalidInputError, ReadOnlyError, StorageError
            As `expire_snapshots`.
        """
        return gc.garbage_collect(self._catalog, self._objects, delete_object_older_than, dry_run=dry_run)

    def compact(self, *, dry_run: bool = False) -> Compaction:
        """Give the space of removed rows back to the file system.

        Writes the file anew beside itself, in SQLite's temporary directory, so it needs that much space for a while.
        Nobody else can write meanwhile. When it fails, nothing has changed.

        Parameters
        ----------
        dry_run
            Change nothing; the size afterwards is then what is left without free pages, and it may become smaller.

        Raises
        ------
        ReadOnlyError, StorageError
            ``read-only-storage``, ``read-only-repository``; ``busy``, ``storage-full``, ``io``.
        """
        return space.compact(self._catalog, dry_run=dry_run)

    def repack(self, *, min_live: float = 0.5, progress: Progress | None = None) -> Repacking:
        """Write the needed part of mostly dead objects into new ones; `garbage_collect` then removes the old ones.

        Run it after `garbage_collect`, which tells what is needed. Reading goes on meanwhile.

        Parameters
        ----------
        min_live
            Objects of which less than this share is needed are rewritten.

        Raises
        ------
        InvalidInputError, ReadOnlyError, StorageError
            ``invalid-argument``, ``unauthorized-objects``; ``read-only-storage``, ``read-only-repository``; ``io``,
            ``virtual-chunk-fetch``, ``busy``.
        """
        writer = ObjectWriter(self._objects, -1, self._config.object_target_bytes)
        payloads = Payloads(self._catalog, self._access, self._objects)
        return space.repack(self._catalog, payloads, writer, min_live, progress)

    def verify(self, *, objects: str | None = None) -> Problems:
        """Check every rule of the file format; what is wrong, and nothing when all is well.

        It reads the whole file, and lets others write meanwhile. Virtual sources are not looked at
        (`verify_sources`).

        Parameters
        ----------
        objects
            ``"list"``: native objects are there and as long as they were. ``"read"``: besides, every chunk in them is
            read and has its checksum. By default they are not looked at.

        Returns
        -------
        Problems
            A list, empty when all is well, that also says which branches, tags and snapshots were looked at.

        Raises
        ------
        InvalidInputError
            ``invalid-argument``.
        """
        payloads = Payloads(self._catalog, self._access, self._objects)
        return verify.verify(self._catalog, objects, payloads, self._objects)

    def chunk_storage_stats(
        self,
        *,
        max_snapshots_in_memory: int = 50,
        max_compressed_manifest_mem_bytes: int = 512 << 20,
        max_decoded_manifest_mem_bytes: int = 4 << 30,
        max_concurrent_manifest_fetches: int = 500,
    ) -> ChunkStorageStats:
        """Bytes of the chunks of all snapshots, by where they are; what several share counts once.

        Until they are collected, chunks of released snapshots count too.
        """
        return space.chunk_storage_stats(self._catalog)

    def total_chunks_storage(
        self,
        *,
        max_snapshots_in_memory: int = 50,
        max_compressed_manifest_mem_bytes: int = 512 << 20,
        max_decoded_manifest_mem_bytes: int = 4 << 30,
        max_concurrent_manifest_fetches: int = 500,
    ) -> int:
        """Bytes in objects that icelite wrote; deprecated in favour of `chunk_storage_stats`."""
        warnings.warn(
            "total_chunks_storage counts native chunks only; use chunk_storage_stats", DeprecationWarning, stacklevel=2
        )
        return self.chunk_storage_stats().native_bytes
