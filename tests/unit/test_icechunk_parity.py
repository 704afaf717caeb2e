"""Whoever comes from Icechunk 2.3 finds every name, argument and error kind here, or why not in the guide.

The lists are of what Icechunk 2.3.0 offers for repositories, sessions, results and errors, written out: it need not be
installed. docs/coming-from-icechunk.md has a table of what is missing, and these tests keep it true in both directions.
"""

from __future__ import annotations

import builtins
import enum
import inspect
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

import icelite

GUIDE = (Path(__file__).parents[2] / "docs" / "coming-from-icechunk.md").read_text()
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", GUIDE, re.MULTILINE | re.DOTALL))

# Methods that also exist as ..._async; positional arguments before the star.
REPOSITORY = """
ancestry_graph(*, branch, tag, snapshot_id, plain)
chunk_storage_stats(*, max_snapshots_in_memory, max_compressed_manifest_mem_bytes, max_decoded_manifest_mem_bytes,
  max_concurrent_manifest_fetches)
create(storage, config, authorize_virtual_chunk_access, spec_version, check_clean_root, attribution)
create_branch(branch, snapshot_id)
create_tag(tag, snapshot_id)
delete_branch(branch)
delete_tag(tag)
diff(*, from_branch, from_tag, from_snapshot_id, to_branch, to_tag, to_snapshot_id)
disabled_feature_flags()
enabled_feature_flags()
exists(storage, storage_settings)
expire_snapshots(older_than, *, delete_expired_branches, delete_expired_tags)
feature_flags()
fetch_config(storage)
fetch_spec_version(storage, storage_settings)
garbage_collect(delete_object_older_than, *, dry_run, max_snapshots_in_memory, max_compressed_manifest_mem_bytes,
  max_decoded_manifest_mem_bytes, max_concurrent_manifest_fetches, max_concurrent_deletes,
  max_consecutive_delete_failures, max_concurrent_listings)
get_metadata()
get_status()
inspect_manifest(manifest_id)
inspect_repo_info()
inspect_snapshot(snapshot_id)
inspect_transaction_log(snapshot_id)
list_branches()
list_manifest_files(snapshot_id)
list_tags()
lookup_branch(branch)
lookup_snapshot(snapshot_id)
lookup_tag(tag)
open(storage, config, authorize_virtual_chunk_access, attribution)
open_or_create(storage, config, authorize_virtual_chunk_access, create_version, check_clean_root, attribution)
ops_log()
readonly_session(branch, *, tag, snapshot_id, as_of)
rearrange_session(branch)
reopen(config, authorize_virtual_chunk_access)
reset_branch(branch, snapshot_id, *, from_snapshot_id)
rewrite_manifests(message, *, branch, metadata, commit_method)
save_config()
set_feature_flag(name, setting)
set_metadata(metadata)
set_status(status)
total_chunks_storage(*, max_snapshots_in_memory, max_compressed_manifest_mem_bytes, max_decoded_manifest_mem_bytes,
  max_concurrent_manifest_fetches)
update_metadata(metadata)
writable_session(branch)
"""
REPOSITORY_SYNC_ONLY = """
ancestry(*, branch, tag, snapshot_id)
async_ancestry(*, branch, tag, snapshot_id)
default_commit_metadata()
set_default_commit_metadata(metadata)
transaction(branch, *, message, metadata, rebase_with, rebase_tries)
"""
SESSION = """
all_virtual_chunk_locations()
amend(message, *, metadata, allow_empty)
chunk_type(array_path, chunk_coordinates)
commit(message, metadata, *, rebase_with, rebase_tries, allow_empty)
flush(message, *, metadata)
get_node_id(path)
merge()
move(from_path, to_path)
rebase(solver)
"""
SESSION_SYNC_ONLY = """
chunk_coordinates(array_path, batch_size)
discard_changes()
fork()
reindex_array(array_path, forward, backward)
shift_array(array_path, chunk_offset)
status()
"""
PROPERTIES = {
    "Repository": "attribution authorized_virtual_container_prefixes config metadata spec_version status storage",
    "Session": "branch config has_uncommitted_changes mode read_only snapshot_id store",
    "ForkSession": "branch config has_uncommitted_changes mode read_only snapshot_id store",
}
# Classes of results and arguments, with their fields, members or constructor's arguments.
VALUES = {
    "SnapshotInfo": "id parent_id written_at message metadata",
    "Diff": "new_groups new_arrays deleted_groups deleted_arrays updated_groups updated_arrays updated_chunks"
    " moved_nodes is_empty",
    "GCSummary": "bytes_deleted chunks_deleted manifests_deleted snapshots_deleted attributes_deleted"
    " transaction_logs_deleted objects_failed_to_delete throttled_batches delete_errors skipped_phases",
    "ChunkStorageStats": "native_bytes virtual_bytes inlined_bytes non_virtual_bytes total_bytes __add__",
    "ManifestFileInfo": "id size_bytes num_chunk_refs",
    "AncestryGraph": "_repr_svg_",
    "Update": "kind updated_at backup_path",
    "RepoStatus": "availability set_at limited_availability_reason",
    "RepoAvailability": "online read_only",
    "FeatureFlag": "id name default_enabled setting enabled",
    "SpecVersion": "current v1 v2",
    "SessionMode": "readonly writable rearrange",
    "ChunkType": "uninitialized native virtual inline",
    "VersionSelection": "Fail UseOurs UseTheirs",
    "Conflict": "conflict_type path conflicted_chunks",
    "ConflictSolver": "",
    "ConflictDetector": "",
    "BasicConflictSolver": "on_chunk_conflict fail_on_delete_of_updated_array fail_on_delete_of_updated_group",
    "ConflictType": "NewNodeConflictsWithExistingNode NewNodeInInvalidGroup ZarrMetadataDoubleUpdate"
    " ZarrMetadataUpdateOfDeletedArray ZarrMetadataUpdateOfDeletedGroup ChunkDoubleUpdate ChunksUpdatedInDeletedArray"
    " ChunksUpdatedInUpdatedArray DeleteOfUpdatedArray DeleteOfUpdatedGroup MoveOperationCannotBeRebased",
    "UpdateType": "RepoInitialized RepoMigrated ConfigChanged MetadataChanged RepoStatusChanged FeatureFlagChanged"
    " TagCreated TagDeleted BranchCreated BranchDeleted BranchReset NewCommit CommitAmended NewDetachedSnapshot GCRan"
    " ExpirationRan",
    "UpdateType.RepoStatusChanged": "status",
    "UpdateType.FeatureFlagChanged": "id new_value",
    "UpdateType.TagCreated": "name",
    "UpdateType.TagDeleted": "name previous_snap_id",
    "UpdateType.BranchCreated": "name",
    "UpdateType.BranchDeleted": "name previous_snap_id",
    "UpdateType.BranchReset": "name previous_snap_id",
    "UpdateType.NewCommit": "branch new_snap_id",
    "UpdateType.CommitAmended": "branch previous_snap_id new_snap_id",
    "UpdateType.NewDetachedSnapshot": "new_snap_id",
}
FUNCTIONS = """
upgrade_icechunk_repository supported_spec_versions spec_version user_agent print_debug_info set_logs_filter
initialize_logs shutdown_telemetry
"""
# Every error with its bases.
ERRORS = {
    "IcechunkError": ["Exception"],
    "ConflictError": ["IceliteError"],
    "RebaseFailedError": ["ConflictError"],
    "NotFoundError": ["IceliteError", "KeyError"],
    "NodeNotFoundError": ["NotFoundError"],
    "SnapshotNotFoundError": ["NotFoundError"],
    "RefNotFoundError": ["NotFoundError"],
    "RepositoryNotFoundError": ["NotFoundError"],
    "AlreadyExistsError": ["IceliteError"],
    "ReadOnlyError": ["IceliteError"],
    "InvalidInputError": ["IceliteError", "ValueError"],
    "SessionStateError": ["IceliteError"],
    "StorageError": ["IceliteError"],
    "FormatError": ["IceliteError"],
    "InternalError": ["IceliteError"],
}
KINDS = """
commit-conflict branch-update-conflict rebase-failed config-updated repo-info-updated update-attempts-exhausted
gc-deletes-failing node-not-found ancestor-node-not-found chunk-not-found key-not-found snapshot-not-found
no-snapshot-at-time ref-not-found branch-not-found tag-not-found repository-not-found manifest-info-not-found
node-already-exists branch-already-exists tag-already-exists tag-previously-deleted move-wont-overwrite
read-only-session read-only-store read-only-storage read-only-repository invalid-key invalid-chunk-index
zero-length-chunk invalid-manifest-split-index invalid-ref-type invalid-ref-name invalid-snapshot-id invalid-path
bad-key-prefix bad-metadata bad-prefix not-an-array not-a-group invalid-byte-range invalid-commit-configuration
invalid-array-metadata invalid-feature-flag invalid-virtual-ref invalid-credentials no-container-for-virtual-chunk
unauthorized-virtual-chunk-container empty-prefix-creation parent-directory-not-clean bad-snapshot-chain-for-diff
commit-not-allowed merge-not-allowed cannot-fork-read-only-session rearrange-session-only non-rearrange-session
move-into-self-or-descendant move-destination-parent-missing move-destination-parent-not-group no-changes-to-commit
no-amend-for-initial-commit not-on-branch no-snapshot cannot-delete-main uncommitted-changes merge-failed not-allowed
unimplemented rebase-tx-log-pruned feature-flag-disabled tag-error invalid-repository-migration object-not-found
object-store io storage-config cannot-parse-url bad-redirect semaphore-acquire throttled storage-other
virtual-chunk-fetch virtual-chunk-modified invalid-object-size serialization deserialization config-deserialization
invalid-file-format unsupported-spec-version unsupported-operation-for-version snapshot-timestamp duplicate-snapshot-id
concurrency flush partial-values-panic conflicting-path-not-found inconsistent-manifests poison-lock pickle unknown
"""


def methods() -> Iterator[tuple[str, str, list[str]]]:
    """Class, method and its arguments, in order, with the star that begins those given by name."""
    for cls, text, has_twins in [
        ("Repository", REPOSITORY, True),
        ("Repository", REPOSITORY_SYNC_ONLY, False),
        *((cls, SESSION, True) for cls in ("Session", "ForkSession")),
        *((cls, SESSION_SYNC_ONLY, False) for cls in ("Session", "ForkSession")),
    ]:
        for name, arguments in re.findall(r"^(\w+)\((.*?)\)$", text, re.MULTILINE | re.DOTALL):
            split = [argument for argument in re.split(r",\s*", arguments) if argument]
            yield cls, name, split
            if has_twins:
                yield cls, f"{name}_async", split


def listed(section: str) -> list[str]:
    """What the first column of a section's table names."""
    rows = re.findall(r"^\| (`.*?`) \|", SECTIONS[section], re.MULTILINE)
    return [name for row in rows for name in re.findall(r"`(.+?)`", row)]


def excused(name: str) -> list[str]:
    """A method and its asynchronous twin stand in one row."""
    return [name, re.sub(r"_async\b", "", name)]


def objects() -> dict[str, object]:
    repository = icelite.Repository.create(icelite.in_memory_storage())
    session = repository.writable_session("main")
    return {"Repository": repository, "Session": session, "ForkSession": session.fork()}


def missing_names() -> set[str]:
    live = objects()
    missing = {f"{cls}.{name}" for cls, name, _ in methods() if not hasattr(live[cls], name)}
    for cls, names in PROPERTIES.items():
        missing |= {f"{cls}.{name}" for name in names.split() if not hasattr(live[cls], name)}
    for path, names in VALUES.items():
        found: object = icelite
        for part in path.split("."):
            found = getattr(found, part, None)
        if found is None:
            missing.add(path)
        else:
            missing |= {f"{path}.{name}" for name in names.split() if not has(found, name)}
    missing |= {f"{name}()" for name in FUNCTIONS.split() if not hasattr(icelite, name)}
    return missing | {name for name in ERRORS if not hasattr(icelite, name)}


def has(cls: object, name: str) -> bool:
    """Whether a class has a field, member or method of a name, or takes it as an argument."""
    if hasattr(cls, name) or (is_dataclass(cls) and name in {field.name for field in fields(cls)}):
        return True
    is_plain = isinstance(cls, type) and not issubclass(cls, enum.Enum)
    return is_plain and name in inspect.signature(cls).parameters


def missing_arguments() -> set[str]:
    missing = set()
    for cls, name, arguments in methods():
        method = getattr(getattr(icelite, cls), name, None)
        if method is not None:
            parameters = inspect.signature(method).parameters
            missing |= {f"{cls}.{name}({argument}=)" for argument in arguments if argument not in {"*", *parameters}}
    return missing


def without_twins(names: set[str]) -> set[str]:
    """Without those whose method without ``_async`` is among them too."""
    return {
        name for name in names if re.sub(r"_async\b", "", name) == name or re.sub(r"_async\b", "", name) not in names
    }


def test_every_name_is_here_or_in_the_table() -> None:
    assert without_twins(missing_names()) == set(listed("Names that are not here"))


def test_every_argument_is_here_or_in_the_table() -> None:
    assert without_twins(missing_arguments()) == set(listed("Arguments that are not here"))


def test_every_error_kind_is_here_or_in_the_table() -> None:
    kinds = KINDS.split()
    assert len(kinds) == len(set(kinds)) > 90
    assert set(kinds) - {kind.value for kind in icelite.ErrorKind} == set(listed("Error kinds that are not here"))


@pytest.mark.parametrize("section", [name for name in SECTIONS if name.endswith("not here")])
def test_every_row_says_why_and_stands_once(section: str) -> None:
    """Of the three tables."""
    names = listed(section)
    assert names
    assert len(names) == len(set(names))
    for row in re.findall(r"^\| `.*$", SECTIONS[section], re.MULTILINE):
        assert len(row.strip("|").split("|")[-1].strip()) > 20, row


@pytest.mark.parametrize(("cls", "name", "arguments"), list(methods()))
def test_arguments_stand_in_the_same_order_and_are_given_the_same_way(
    cls: str, name: str, arguments: list[str]
) -> None:
    method = getattr(getattr(icelite, cls), name, None)
    if method is None:
        return
    star = arguments.index("*") if "*" in arguments else len(arguments)
    parameters = inspect.signature(method).parameters
    positional = [n for n, p in parameters.items() if n != "self" and p.kind is p.POSITIONAL_OR_KEYWORD]
    by_name = {n for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
    assert positional[:star] == [argument for argument in arguments[:star] if argument in parameters]
    assert {argument for argument in arguments[star + 1 :] if argument in parameters} <= by_name


@pytest.mark.parametrize("name", [name for name in ERRORS if hasattr(icelite, name)])
def test_errors_stand_in_the_same_tree(name: str) -> None:
    error = getattr(icelite, name)
    for base in ERRORS[name]:
        assert issubclass(error, getattr(icelite, base, None) or getattr(builtins, base))


def test_numbers_and_texts_that_code_may_compare_are_the_same() -> None:
    assert [int(kind) for kind in icelite.ChunkType] == [0, 1, 2, 3]
    assert {flag.name: flag.id for flag in objects()["Repository"].feature_flags()} == {  # type: ignore[attr-defined]
        "move_node": 3,
        "create_tag": 4,
        "delete_tag": 5,
    }
    assert [info.id for info in objects()["Repository"].ancestry(branch="main")] == [  # type: ignore[attr-defined]
        "1CECHNKREP0F1RSTCMT0"
    ]
