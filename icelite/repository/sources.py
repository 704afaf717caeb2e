"""Source files: the part of `Repository` about the files and objects that chunks are in.

They are listed and checked, moved elsewhere, taken into the catalog, and written out as plain Zarr.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from icelite.catalog import snapshots
from icelite.catalog.settings import list_containers, load_config
from icelite.config import RepositoryConfig
from icelite.ops import bundle, export_zarr, relocate, sources
from icelite.repository.administration import Administration
from icelite.repository.names import MAIN, resolve
from icelite.repository.sessions import Sessions
from icelite.types import View

if TYPE_CHECKING:
    from icelite.types import Bundle, FileChange, Problem, Progress, Relocation, Sources, ZarrExport


class SourceFiles(Sessions, Administration):
    """What `Repository` does with the files behind its references.

    Where a snapshot may be named (by one of ``branch``, ``tag`` and ``snapshot_id``), it is the tip of ``main`` unless
    one is.
    """

    def sources(
        self,
        branch: str | None = None,
        *,
        tag: str | None = None,
        snapshot_id: str | None = None,
        check: bool = False,
        progress: Progress | None = None,
    ) -> Sources:
        """The files and objects that the virtual chunks of a snapshot are in, one row each.

        Parameters
        ----------
        check
            Look at each one: ``state`` is then ``ok``, ``changed``, ``missing``, ``unreadable`` or ``not authorised``,
            and ``problem`` says more. Nothing is read but sizes, times and ETags.
        progress
            Called with how many were looked at, and of how many.

        Raises
        ------
        InvalidInputError, RefNotFoundError, SnapshotNotFoundError
            ``invalid-argument``, ``invalid-snapshot-id``; ``branch-not-found``, ``tag-not-found``;
            ``snapshot-not-found``.
        """
        view = self._view(branch, tag, snapshot_id)
        return sources.list_sources(self._catalog, self._access, view, check=check, progress=progress)

    def verify_sources(
        self,
        branch: str | None = None,
        *,
        tag: str | None = None,
        snapshot_id: str | None = None,
        progress: Progress | None = None,
    ) -> list[Problem]:
        """Check that every source of a snapshot is there, is as it was referenced, and is long enough.

        A source that this object may not read is a problem too. Raises as `sources`.
        """
        found = self.sources(branch, tag=tag, snapshot_id=snapshot_id, check=True, progress=progress)
        return sources.find_problems(found)

    def file_history(
        self, url: str, branch: str | None = None, *, tag: str | None = None, snapshot_id: str | None = None
    ) -> list[FileChange]:
        """Which snapshots added, changed and dropped a file, newest first: one query, however long the history.

        Only what is behind the snapshot counts, as in `ancestry`. Released snapshots are told too, by the ids that they
        had; moved files are known by where they are now.

        Parameters
        ----------
        url
            An absolute URL, a path relative to the catalog, or ``vcc://name/path``.

        Raises
        ------
        NotFoundError, InvalidInputError, RefNotFoundError, SnapshotNotFoundError
            ``location-not-found`` when no reference ever was to the file; ``invalid-virtual-ref``; as `sources`.
        """
        return sources.list_file_history(self._catalog, self._view(branch, tag, snapshot_id), url)

    def relocate(self, old_prefix: str, new_prefix: str, *, dry_run: bool = False, check: bool = False) -> Relocation:
        """Say that files and objects have moved: in every snapshot, references below one prefix go to another.

        One row is rewritten for each file, whatever the number of references, in one transaction. The files
        themselves are not touched.

        Parameters
        ----------
        old_prefix, new_prefix
            A directory, or a single file: relative to the catalog's folder, such as ``"oisst/"`` (``"./"`` is all of
            it); a URL, such as ``"file:///data/"`` or ``"s3://bucket/oisst/"``; an absolute path; or
            ``"vcc://name/"``. A whole container that moves to a URL keeps its name.
        dry_run
            Change nothing, only say what would be.
        check
            Look at every file in its new place first, with the authorisation of this object, and note its time or
            ETag there; one that is missing or has another size is an error, and nothing is changed.

        Notes
        -----
        The recorded size goes on being checked. A time is kept only where files move between local directories, and an
        ETag never: copies do not have them. A container for the new place is added where none covers it. Sessions that
        are open find the files in their new place; references that a session has not yet committed stay as they are.

        Raises
        ------
        InvalidInputError, NotFoundError, ReadOnlyError, StorageError
            ``invalid-virtual-ref``, ``no-container-for-virtual-chunk`` for a prefix that cannot be used;
            ``location-not-found`` when nothing is below ``old_prefix``; ``read-only-repository``,
            ``read-only-storage``; with ``check``, ``virtual-chunk-fetch``, ``virtual-chunk-modified``,
            ``unauthorized-virtual-chunk-container``.
        """
        done, moved = relocate.relocate(
            self._catalog, self._access, old_prefix, new_prefix, dry_run=dry_run, check=check
        )
        if not dry_run:
            self._take_over(moved)
        return done

    def bundle(self, target: str | os.PathLike[str], *, progress: Progress | None = None) -> Bundle:
        """Write a new catalog that needs no other file: the chunks of all history are in it.

        Snapshots, ids, branches, tags and the log are the same. Chunks that are one range of one file are copied once.
        The file appears under its name when it is complete.

        Parameters
        ----------
        target
            A path where nothing is yet, such as ``"shipped.icelite"``.
        progress
            Called with how many chunks were copied, and of how many.

        Raises
        ------
        AlreadyExistsError, RepositoryNotFoundError, StorageError, InvalidInputError
            ``repository-already-exists``; ``repository-not-found`` when the directory does not exist; ``io``,
            ``storage-full``; for a source that changed, is missing or may not be read, as when reading its chunks.
        """
        session = self.readonly_session(MAIN)
        return bundle.bundle(self._catalog, session.payloads, target, progress)

    def export_zarr(
        self,
        target: str | os.PathLike[str],
        *,
        branch: str | None = None,
        tag: str | None = None,
        snapshot_id: str | None = None,
        group: str | None = None,
        storage_options: Mapping[str, Any] | None = None,
        overwrite: bool = False,
        consolidated: bool = False,
        progress: Progress | None = None,
    ) -> ZarrExport:
        """Write a snapshot as a plain Zarr hierarchy, as it is stored: v3 or v2, its chunks byte for byte.

        Parameters
        ----------
        target
            A directory, a file ``.zip``, or a URL for fsspec such as ``"s3://bucket/ocean.zarr"``. A local one appears
            under its name when it is complete. Elsewhere metadata comes last, that of the root at the very end: until
            then nothing opens there.
        group
            Write only what is below this path, as the root.
        storage_options
            For fsspec: credentials, endpoint.
        overwrite
            Replace what is there.
        consolidated
            Add consolidated metadata.
        progress
            Called with how many values were written, and of how many.

        Raises
        ------
        AlreadyExistsError, NodeNotFoundError, InvalidInputError, StorageError
            ``target-already-exists``; ``node-not-found``; ``invalid-path``; ``io``, ``unsupported-storage``; as when
            reading chunks; and as `sources`.
        """
        names = {"branch": branch, "tag": tag, "snapshot_id": snapshot_id}
        session = self.readonly_session(**({"branch": MAIN} if set(names.values()) == {None} else names))
        return export_zarr.export_zarr(
            session,
            target,
            group=group or "",
            storage_options=storage_options,
            overwrite=overwrite,
            consolidated=consolidated,
            progress=progress,
        )

    def _take_over(self, moved: Mapping[str, str]) -> None:
        """Go on with the containers as they are in the catalog now; those that the caller declared have moved too."""
        with self._catalog.read() as txn:
            self._stored = load_config(txn)
            self._access.reload(list_containers(txn), moved)
        given = self._given[0]
        if given is not None:
            given = _with_moved(given, moved)
            self._given = (given, *self._given[1:])
        self._config = self._stored if given is None else self._stored.merge(given)

    def _view(self, branch: str | None, tag: str | None, snapshot_id: str | None) -> View:
        if branch is None and tag is None and snapshot_id is None:
            branch = MAIN
        with self._catalog.read() as txn:
            return snapshots.view_snapshot(txn, resolve(txn, branch, tag, snapshot_id))


def _with_moved(config: RepositoryConfig, moved: Mapping[str, str]) -> RepositoryConfig:
    if not moved:
        return config
    after = config.merge(RepositoryConfig.default())
    after.clear_virtual_chunk_containers()
    for prefix, container in (config.virtual_chunk_containers or {}).items():
        after.set_virtual_chunk_container(container.at(moved[prefix]) if prefix in moved else container)
    return after
