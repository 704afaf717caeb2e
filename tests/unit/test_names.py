"""Branches and tags: what they are for, and every name, id or moment that is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zarr

import icelite
from icelite.errors import AlreadyExistsError, ConflictError, InvalidInputError, RefNotFoundError, SessionStateError
from icelite.repository import Repository
from icelite.types import INITIAL_SNAPSHOT_ID

UNKNOWN = "A" * 20


@pytest.fixture
def repo() -> Repository:
    return Repository.create(icelite.in_memory_storage())


def commit(repo: Repository, branch: str = "main") -> str:
    return repo.writable_session(branch).commit("x", allow_empty=True)


def test_branches_come_move_and_go(repo: Repository) -> None:
    first = commit(repo)
    repo.create_branch("feature/a b", INITIAL_SNAPSHOT_ID)
    assert repo.list_branches() == {"main", "feature/a b"}
    repo.reset_branch("feature/a b", first)
    assert repo.lookup_branch("feature/a b") == first
    repo.reset_branch("feature/a b", INITIAL_SNAPSHOT_ID, from_snapshot_id=first)
    repo.delete_branch("feature/a b")
    assert repo.list_branches() == {"main"}
    repo.create_branch("feature/a b", first)  # a branch's name is free again


def test_a_branch_may_take_up_a_snapshot_that_none_had(repo: Repository) -> None:
    session = repo.writable_session("main")
    zarr.create_group(session.store)
    detached = session.flush("candidate")
    assert repo.lookup_branch("main") == INITIAL_SNAPSHOT_ID
    repo.reset_branch("main", detached)
    assert [info.message for info in repo.ancestry(branch="main")] == ["candidate", "Repository initialized"]


def test_tags_stay_where_they_are(repo: Repository) -> None:
    first = commit(repo)
    repo.create_tag("v1", first)
    commit(repo)
    assert repo.lookup_tag("v1") == first
    assert repo.list_tags() == {"v1"}
    repo.create_branch("v1", first)  # a branch may have the same name
    with pytest.raises(AlreadyExistsError) as caught:
        repo.create_tag("v1", INITIAL_SNAPSHOT_ID)
    assert caught.value.kind == "tag-already-exists"


def test_the_name_of_a_deleted_tag_is_burnt(repo: Repository) -> None:
    repo.create_tag("v1", INITIAL_SNAPSHOT_ID)
    repo.delete_tag("v1")
    assert repo.list_tags() == set()
    with pytest.raises(AlreadyExistsError) as caught:
        repo.create_tag("v1", INITIAL_SNAPSHOT_ID)
    assert caught.value.kind == "tag-previously-deleted"
    for use in (repo.lookup_tag, repo.delete_tag):
        with pytest.raises(RefNotFoundError) as missing:
            use("v1")
        assert missing.value.kind == "tag-not-found"


def test_main_cannot_be_deleted(repo: Repository) -> None:
    with pytest.raises(SessionStateError) as caught:
        repo.delete_branch("main")
    assert caught.value.kind == "cannot-delete-main"
    assert repo.list_branches() == {"main"}


def test_a_branch_is_not_made_twice(repo: Repository) -> None:
    with pytest.raises(AlreadyExistsError) as caught:
        repo.create_branch("main", INITIAL_SNAPSHOT_ID)
    assert caught.value.kind == "branch-already-exists"


def test_a_branch_that_has_moved_is_not_reset(repo: Repository) -> None:
    first = commit(repo)
    with pytest.raises(ConflictError) as caught:
        repo.reset_branch("main", first, from_snapshot_id=INITIAL_SNAPSHOT_ID)
    assert caught.value.kind == "branch-update-conflict"
    assert (caught.value.expected_parent, caught.value.actual_parent) == (INITIAL_SNAPSHOT_ID, first)
    assert repo.lookup_branch("main") == first


BAD_NAMES = ["", " ", "a\n", "\x00", "a\x1b[31m", " a", "a ", "x" * 256, "\u200e", None, 7, b"main"]


@pytest.mark.parametrize("name", BAD_NAMES, ids=repr)
@pytest.mark.parametrize("method", ["create_branch", "create_tag"])
def test_a_name_that_cannot_be_told_is_refused(repo: Repository, method: str, name: Any) -> None:
    with pytest.raises(InvalidInputError) as caught:
        getattr(repo, method)(name, INITIAL_SNAPSHOT_ID)
    assert caught.value.kind == "invalid-ref-name"
    assert repr(name) in str(caught.value)
    assert (repo.list_branches(), repo.list_tags()) == ({"main"}, set())


Use = Callable[[Repository, str], Any]
USES_OF_A_BRANCH: dict[str, Use] = {
    "lookup_branch": lambda repo, name: repo.lookup_branch(name),
    "delete_branch": lambda repo, name: repo.delete_branch(name),
    "reset_branch": lambda repo, name: repo.reset_branch(name, INITIAL_SNAPSHOT_ID),
    "readonly_session": lambda repo, name: repo.readonly_session(name),
    "writable_session": lambda repo, name: repo.writable_session(name),
    "rearrange_session": lambda repo, name: repo.rearrange_session(name),
    "transaction": lambda repo, name: repo.transaction(name, message="x").__enter__(),
    "ancestry": lambda repo, name: repo.ancestry(branch=name),
    "ancestry_graph": lambda repo, name: repo.ancestry_graph(branch=name),
    "diff": lambda repo, name: repo.diff(to_branch=name),
    "merge from": lambda repo, name: repo.merge(name, "main"),
    "merge into": lambda repo, name: repo.merge("main", name),
}
USES_OF_A_TAG: dict[str, Use] = {
    "lookup_tag": lambda repo, name: repo.lookup_tag(name),
    "delete_tag": lambda repo, name: repo.delete_tag(name),
    "readonly_session": lambda repo, name: repo.readonly_session(tag=name),
    "ancestry": lambda repo, name: repo.ancestry(tag=name),
    "ancestry_graph": lambda repo, name: repo.ancestry_graph(tag=name),
    "diff": lambda repo, name: repo.diff(to_tag=name),
}
USES_OF_A_SNAPSHOT: dict[str, Use] = {
    "create_branch": lambda repo, id_: repo.create_branch("b", id_),
    "create_tag": lambda repo, id_: repo.create_tag("t", id_),
    "reset_branch": lambda repo, id_: repo.reset_branch("main", id_),
    "lookup_snapshot": lambda repo, id_: repo.lookup_snapshot(id_),
    "readonly_session": lambda repo, id_: repo.readonly_session(snapshot_id=id_),
    "ancestry": lambda repo, id_: repo.ancestry(snapshot_id=id_),
    "ancestry_graph": lambda repo, id_: repo.ancestry_graph(snapshot_id=id_),
    "diff to": lambda repo, id_: repo.diff(to_snapshot_id=id_),
    "diff from": lambda repo, id_: repo.diff(from_snapshot_id=id_, to_branch="main"),
    "inspect_snapshot": lambda repo, id_: repo.inspect_snapshot(id_),
    "inspect_transaction_log": lambda repo, id_: repo.inspect_transaction_log(id_),
}


@pytest.mark.parametrize("name", ["nowhere", "", "Main"])
@pytest.mark.parametrize("use", USES_OF_A_BRANCH)
def test_an_unknown_branch_is_named_with_those_there_are(repo: Repository, use: str, name: str) -> None:
    with pytest.raises(RefNotFoundError) as caught:
        USES_OF_A_BRANCH[use](repo, name)
    assert caught.value.kind == "branch-not-found"
    assert repr(name) in str(caught.value)
    assert "'main'" in str(caught.value)
    assert isinstance(caught.value, KeyError)


@pytest.mark.parametrize("use", USES_OF_A_TAG)
def test_an_unknown_tag_is_named_with_those_there_are(repo: Repository, use: str) -> None:
    repo.create_tag("v1", INITIAL_SNAPSHOT_ID)
    with pytest.raises(RefNotFoundError) as caught:
        USES_OF_A_TAG[use](repo, "v2")
    assert caught.value.kind == "tag-not-found"
    assert "'v2'" in str(caught.value)
    assert "'v1'" in str(caught.value)


@pytest.mark.parametrize("use", USES_OF_A_SNAPSHOT)
def test_an_unknown_snapshot_is_named(repo: Repository, use: str) -> None:
    with pytest.raises(icelite.SnapshotNotFoundError) as caught:
        USES_OF_A_SNAPSHOT[use](repo, UNKNOWN)
    assert caught.value.kind == "snapshot-not-found"
    assert UNKNOWN in str(caught.value)


@pytest.mark.parametrize("id_", ["mainly", "", "a" * 20, "A" * 21])
@pytest.mark.parametrize("use", [*USES_OF_A_SNAPSHOT, "reset_branch from"])
def test_an_id_that_is_none_is_told_from_an_unknown_one(repo: Repository, use: str, id_: str) -> None:
    uses = USES_OF_A_SNAPSHOT | {
        "reset_branch from": lambda repo, id_: repo.reset_branch("main", INITIAL_SNAPSHOT_ID, from_snapshot_id=id_)
    }
    with pytest.raises(InvalidInputError) as caught:
        uses[use](repo, id_)
    assert caught.value.kind == "invalid-snapshot-id"
    assert repr(id_) in str(caught.value)


TOO_FEW_OR_MANY: list[dict[str, str]] = [
    {},
    {"branch": "main", "tag": "v1"},
    {"branch": "main", "snapshot_id": INITIAL_SNAPSHOT_ID},
    {"tag": "v1", "snapshot_id": INITIAL_SNAPSHOT_ID},
    {"branch": "main", "tag": "v1", "snapshot_id": INITIAL_SNAPSHOT_ID},
]


@pytest.mark.parametrize("names", TOO_FEW_OR_MANY, ids=lambda names: "+".join(names) or "none")
@pytest.mark.parametrize("method", ["readonly_session", "ancestry", "ancestry_graph"])
def test_exactly_one_of_branch_tag_and_snapshot_is_asked_for(
    repo: Repository, method: str, names: dict[str, str]
) -> None:
    if method == "ancestry_graph" and not names:
        return  # all branches
    repo.create_tag("v1", INITIAL_SNAPSHOT_ID)
    with pytest.raises(ValueError, match="exactly one") as caught:
        getattr(repo, method)(**names)
    assert isinstance(caught.value, InvalidInputError)
    assert caught.value.kind == "invalid-argument"


@pytest.mark.parametrize("use", [*USES_OF_A_SNAPSHOT, "reset_branch from"])
def test_a_snapshot_is_named_by_a_branch_a_tag_or_the_beginning_of_its_id(repo: Repository, use: str) -> None:
    uses = USES_OF_A_SNAPSHOT | {
        "reset_branch from": lambda repo, id_: repo.reset_branch("main", INITIAL_SNAPSHOT_ID, from_snapshot_id=id_)
    }
    tip = commit(repo)
    repo.create_tag("v0", tip)
    names = ["v0", tip, tip[:12], tip[:12].lower()] if "from" not in use else [INITIAL_SNAPSHOT_ID[:7], "start"]
    repo.create_branch("start", INITIAL_SNAPSHOT_ID)
    for name in names if use != "create_tag" else names[:1]:
        if "from" in use:
            repo.reset_branch("main", INITIAL_SNAPSHOT_ID)
        uses[use](repo, name)
        for branch in repo.list_branches() - {"main", "start"}:
            repo.delete_branch(branch)


def test_names_come_before_beginnings_and_what_could_be_two_is_refused(repo: Repository) -> None:
    first, second = commit(repo), commit(repo)
    beginning = first[:3]
    repo.create_branch(beginning, second)
    assert repo.lookup_snapshot(beginning).id == second
    repo.create_tag(beginning, first)
    with pytest.raises(InvalidInputError, match="a branch and a tag") as caught:
        repo.lookup_snapshot(beginning)
    assert caught.value.kind == "invalid-snapshot-id"
    ids = [INITIAL_SNAPSHOT_ID, *(commit(repo) for _ in range(33))]  # two of them begin with the same character
    letter = next(id_[0] for id_ in ids if sum(other[0] == id_[0] for other in ids) > 1)
    with pytest.raises(InvalidInputError, match="several ids"):
        repo.lookup_snapshot(letter)


def test_the_log_has_the_id_and_not_the_name(repo: Repository) -> None:
    tip = commit(repo)
    repo.create_branch("dev", "main")
    repo.reset_branch("dev", INITIAL_SNAPSHOT_ID[:5])
    assert repo.lookup_branch("dev") == INITIAL_SNAPSHOT_ID
    assert repo.lookup_branch("main") == tip


def test_a_repository_closes_at_the_end_of_a_with_block(tmp_path: Path) -> None:
    with Repository.create(tmp_path / "a.icelite") as repo:
        commit(repo)
    with pytest.raises(FileNotFoundError), Repository.open(tmp_path / "none.icelite"):
        pass
    with Repository.open(tmp_path / "a.icelite") as repo:
        assert repo.list_branches() == {"main"}
    assert not list(tmp_path.glob("a.icelite-*"))
