"""zarr's state machine of a hierarchy, `ZarrHierarchyStateMachine`, run on a repository that is also versioned.

zarr's own rules create groups and arrays, write, resize and delete, and compare with a `MemoryStore`. Added here:
committing, opening the repository again, discarding changes, going on from an older snapshot on a new branch, and
reading every snapshot later, also through a pickled copy, exactly as it was committed.

``ICELITE_EXAMPLES=200 pytest tests/conformance/test_zarr_stateful.py`` runs 200 examples in place of 25.
"""

from __future__ import annotations

import itertools
import pickle
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule, run_state_machine_as_test
from zarr.core.buffer import Buffer, default_buffer_prototype
from zarr.testing.stateful import ZarrHierarchyStateMachine

from icelite import IceliteStore, Repository, RepositoryConfig, StorageConfig

TINY: dict[str, Any] = {"inline_chunk_threshold_bytes": 0, "object_target_bytes": 64}  # every chunk in an object


@dataclass(frozen=True)
class Commit:
    """One snapshot, and what the machine knew when it was made."""

    id: str
    values: dict[str, bytes]
    model: dict[str, Buffer]
    groups: frozenset[str]
    arrays: frozenset[str]


class VersionedHierarchy(ZarrHierarchyStateMachine):
    """zarr's machine with rules for what a repository adds to a store."""

    def __init__(self, storage: StorageConfig, objects: str | None = None) -> None:
        self.repo = Repository.create(storage, RepositoryConfig(**TINY) if objects else None, objects=objects)
        self.branch = "main"
        super().__init__(self.repo.writable_session(self.branch).store)
        self.commits: list[Commit] = []

    # -- zarr's rules that need another form -------------------------------------------------------------------

    @precondition(lambda self: bool(self.all_arrays) or bool(self.all_groups))
    @rule(data=st.data())
    def delete_dir(self, data: st.DataObject) -> None:
        """As inherited; but zarr 3.1.6 forgets the node ``foobar`` when it deletes ``foo``, and creates it twice."""
        path = self.draw_directory(data)
        note(f"delete_dir with {path=!r}")
        self._sync(self.model.delete_dir(path))
        self._sync(self.store.delete_dir(path))
        gone = {node for node in self.all_groups | self.all_arrays if f"{node}/".startswith(f"{path.rstrip('/')}/")}
        self.all_groups -= gone
        self.all_arrays -= gone

    # -- what a repository adds --------------------------------------------------------------------------------

    @property
    def icelite_store(self) -> IceliteStore:
        assert isinstance(self.store, IceliteStore)
        return self.store

    @rule()
    def commit(self) -> None:
        """Commit, and go on in a new session; nothing to commit is an empty commit."""
        session = self.icelite_store.session
        values = self.values_of(self.icelite_store)
        snapshot_id = session.commit("from the machine", allow_empty=True)
        note(f"committed {snapshot_id} to {self.branch}")
        assert self.values_of(session.store) == values  # the old session is read-only at the new snapshot
        self.store = self.repo.writable_session(self.branch).store
        self.commits.append(
            Commit(
                snapshot_id,
                values,
                dict(self.model._store_dict),
                frozenset(self.all_groups),
                frozenset(self.all_arrays),
            )
        )
        assert self.values_of(self.icelite_store) == values

    @precondition(lambda self: bool(self.commits))
    @rule()
    def reopen(self) -> None:
        """Commit, and go on with another object for the same file."""
        self.commit()
        self.repo = Repository.open(self.repo.storage)
        self.store = self.repo.writable_session(self.branch).store

    @precondition(lambda self: bool(self.commits))
    @rule()
    def discard(self) -> None:
        """Forget what was not committed."""
        self.icelite_store.session.discard_changes()
        assert not self.icelite_store.session.has_uncommitted_changes
        tip = self.repo.lookup_branch(self.branch)
        self.forget_since(next(commit for commit in self.commits if commit.id == tip))

    @precondition(lambda self: bool(self.commits))
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        """Go on from any snapshot, on a branch of its own."""
        commit = data.draw(st.sampled_from(self.commits), label="snapshot")
        self.branch = f"branch-{len(self.repo.list_branches())}"
        self.repo.create_branch(self.branch, commit.id)
        self.store = self.repo.writable_session(self.branch).store
        self.forget_since(commit)

    def forget_since(self, commit: Commit) -> None:
        """Put the model back to a snapshot, and see that the store is there too."""
        self.model._store_dict.clear()
        self.model._store_dict.update(deepcopy(commit.model))
        self.all_groups, self.all_arrays = set(commit.groups), set(commit.arrays)
        assert self.values_of(self.icelite_store) == commit.values

    @precondition(lambda self: bool(self.commits))
    @rule(data=st.data())
    def check_history(self, data: st.DataObject) -> None:
        """Every snapshot reads as it was committed, here and in a pickled copy."""
        commit = data.draw(st.sampled_from(self.commits), label="snapshot")
        store = self.repo.readonly_session(snapshot_id=commit.id).store
        assert self.values_of(store) == commit.values
        copy = pickle.loads(pickle.dumps(store))
        assert copy == store
        assert self.values_of(copy) == commit.values

    def values_of(self, store: IceliteStore) -> dict[str, bytes]:
        """Everything that a store holds."""
        prototype = default_buffer_prototype()
        values = {}
        for key in self._sync_iter(store.list()):
            value = self._sync(store.get(key, prototype))
            assert value is not None
            values[key] = value.to_bytes()
        return values


# zarr's strategies draw data types that Zarr v3 has no specification for.
@pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning")
@pytest.mark.slow
@pytest.mark.parametrize("objects", [None, "chunks"])
def test_versioned_hierarchy(objects: str | None, tmp_path: Path, examples: hypothesis.settings) -> None:
    files = (tmp_path / f"{number}.icelite" for number in itertools.count())
    few = hypothesis.settings(examples, max_examples=max(1, examples.max_examples // (4 if objects else 1)))
    run_state_machine_as_test(lambda: VersionedHierarchy(StorageConfig.filesystem(next(files)), objects), settings=few)
