"""The asynchronous twins of `Repository`: each ``x_async`` is ``x`` in a thread, with the same arguments and errors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

from icelite.repository.administration import Administration
from icelite.repository.history import AT_ONCE, SnapshotHistory
from icelite.repository.inspection import SnapshotInspection
from icelite.repository.maintenance import Maintenance
from icelite.repository.merging import Merging
from icelite.repository.names import BranchesAndTags
from icelite.repository.sessions import Sessions
from icelite.repository.sources import SourceFiles
from icelite.session.asynchronous import in_thread
from icelite.types import SnapshotInfo

if TYPE_CHECKING:
    from icelite.types import Update

T = TypeVar("T")


class AsynchronousRepository(BranchesAndTags, SourceFiles, SnapshotHistory, SnapshotInspection, Merging, Maintenance):
    """Every part of `Repository`, and their twins."""

    list_branches_async = in_thread(BranchesAndTags.list_branches)
    lookup_branch_async = in_thread(BranchesAndTags.lookup_branch)
    create_branch_async = in_thread(BranchesAndTags.create_branch)
    reset_branch_async = in_thread(BranchesAndTags.reset_branch)
    delete_branch_async = in_thread(BranchesAndTags.delete_branch)
    list_tags_async = in_thread(BranchesAndTags.list_tags)
    lookup_tag_async = in_thread(BranchesAndTags.lookup_tag)
    create_tag_async = in_thread(BranchesAndTags.create_tag)
    delete_tag_async = in_thread(BranchesAndTags.delete_tag)
    merge_async = in_thread(Merging.merge)

    readonly_session_async = in_thread(Sessions.readonly_session)
    writable_session_async = in_thread(Sessions.writable_session)
    rearrange_session_async = in_thread(Sessions.rearrange_session)

    lookup_snapshot_async = in_thread(SnapshotHistory.lookup_snapshot)
    ancestry_graph_async = in_thread(SnapshotHistory.ancestry_graph)
    diff_async = in_thread(SnapshotHistory.diff)
    inspect_snapshot_async = in_thread(SnapshotInspection.inspect_snapshot)
    inspect_repo_info_async = in_thread(SnapshotInspection.inspect_repo_info)
    inspect_transaction_log_async = in_thread(SnapshotInspection.inspect_transaction_log)

    get_metadata_async = in_thread(Administration.get_metadata)
    set_metadata_async = in_thread(Administration.set_metadata)
    update_metadata_async = in_thread(Administration.update_metadata)
    get_status_async = in_thread(Administration.get_status)
    set_status_async = in_thread(Administration.set_status)
    feature_flags_async = in_thread(Administration.feature_flags)
    enabled_feature_flags_async = in_thread(Administration.enabled_feature_flags)
    disabled_feature_flags_async = in_thread(Administration.disabled_feature_flags)
    set_feature_flag_async = in_thread(Administration.set_feature_flag)
    save_config_async = in_thread(Administration.save_config)

    expire_snapshots_async = in_thread(Maintenance.expire_snapshots)
    garbage_collect_async = in_thread(Maintenance.garbage_collect)
    compact_async = in_thread(Maintenance.compact)
    verify_async = in_thread(Maintenance.verify)
    chunk_storage_stats_async = in_thread(Maintenance.chunk_storage_stats)
    total_chunks_storage_async = in_thread(Maintenance.total_chunks_storage)

    sources_async = in_thread(SourceFiles.sources)
    verify_sources_async = in_thread(SourceFiles.verify_sources)
    relocate_async = in_thread(SourceFiles.relocate)
    bundle_async = in_thread(SourceFiles.bundle)
    export_zarr_async = in_thread(SourceFiles.export_zarr)

    async def async_ancestry(
        self, *, branch: str | None = None, tag: str | None = None, snapshot_id: str | None = None
    ) -> AsyncIterator[SnapshotInfo]:
        """See `ancestry`."""
        infos = await asyncio.to_thread(self.ancestry, branch=branch, tag=tag, snapshot_id=snapshot_id)
        async for info in _in_threads(infos):
            yield info

    async def ops_log_async(self) -> AsyncIterator[Update]:
        """See `ops_log`."""
        async for update in _in_threads(self.ops_log()):
            yield update


async def _in_threads(items: Iterator[T]) -> AsyncIterator[T]:
    """The items of an iterator that blocks, a page at a time."""
    while page := await asyncio.to_thread(lambda: list(islice(items, AT_ONCE))):
        for item in page:
            yield item
