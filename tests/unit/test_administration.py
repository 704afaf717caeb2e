"""What holds for a repository as a whole: metadata, status, flags, configuration; and the asynchronous twins."""

from __future__ import annotations

import ast
import inspect
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import zarr

import icelite
from icelite.catalog.settings import save_setting
from icelite.change_set import chunks as pending
from icelite.errors import ConflictError, FormatError, InvalidInputError, ReadOnlyError, SessionStateError
from icelite.repository import Repository
from icelite.session import Session
from icelite.types import INITIAL_SNAPSHOT_ID, FeatureFlag, RepoAvailability, RepoStatus, SpecVersion, UpdateType

PACKAGE = Path(icelite.__file__).parent
ONLINE = RepoStatus(RepoAvailability.online)
READ_ONLY = RepoStatus(RepoAvailability.read_only, limited_availability_reason="moving house")
NOT_JSON = [range(3), {1, 2}, datetime(2024, 8, 1, tzinfo=UTC)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "r.icelite"


@pytest.fixture
def repo(path: Path) -> Repository:
    return Repository.create(path)


def changed(repo: Repository, branch: str = "main") -> Session:
    """A session with something to commit."""
    session = repo.writable_session(branch)
    zarr.create_group(session.store, path=f"g{len(list(repo.ops_log()))}")
    return session


# -- metadata --------------------------------------------------------------------------------------------------


def test_metadata_is_set_merged_and_seen_by_others(repo: Repository, path: Path) -> None:
    assert repo.metadata == repo.get_metadata() == {}
    repo.set_metadata({"title": "sea", "by": {"name": "me", "year": 2024}})
    assert repo.update_metadata({"by": {"name": "you"}, "x": None}) == {
        "title": "sea",
        "by": {"name": "you"},
        "x": None,
    }
    assert Repository.open(path).metadata == {"title": "sea", "by": {"name": "you"}, "x": None}
    repo.set_metadata({"a": 1})
    assert repo.metadata == {"a": 1}


@pytest.mark.parametrize("value", [*({"key": value} for value in NOT_JSON), [], None, "text"], ids=repr)
@pytest.mark.parametrize("method", ["set_metadata", "update_metadata", "set_default_commit_metadata"])
def test_metadata_that_is_no_json_object_is_refused(repo: Repository, method: str, value: Any) -> None:
    with pytest.raises(InvalidInputError) as caught:
        getattr(repo, method)(value)
    assert caught.value.kind == "invalid-argument"
    assert repo.metadata == repo.default_commit_metadata() == {}


def test_default_commit_metadata_lies_under_that_of_the_commit(repo: Repository) -> None:
    repo.set_default_commit_metadata({"who": "me", "where": "here"})
    before = changed(repo)
    repo.set_default_commit_metadata({"who": "you"})
    first = before.commit("opened before", {"where": "there"})
    assert repo.lookup_snapshot(first).metadata == {"who": "me", "where": "there"}
    copy = pickle.loads(pickle.dumps(repo))
    assert copy.default_commit_metadata() == repo.reopen().default_commit_metadata() == {"who": "you"}
    for verb in ("commit", "amend", "flush"):
        session = changed(copy)
        snapshot_id = getattr(session, verb)(verb, metadata={"verb": verb})
        assert repo.lookup_snapshot(snapshot_id).metadata == {"who": "you", "verb": verb}
    copy.default_commit_metadata()["who"] = "nobody"
    assert copy.default_commit_metadata() == {"who": "you"}
    assert Repository.open(repo.storage).default_commit_metadata() == {}


# -- status ----------------------------------------------------------------------------------------------------


def test_the_status_is_kept_with_time_and_reason(repo: Repository, path: Path) -> None:
    assert repo.get_status() == ONLINE
    start = datetime.now(UTC)
    repo.set_status(READ_ONLY)
    status = Repository.open(path).status
    assert (status.availability, status.limited_availability_reason) == (RepoAvailability.read_only, "moving house")
    assert status.set_at is not None
    assert start <= status.set_at <= datetime.now(UTC)
    at = datetime(2024, 8, 1, 12, 30, 0, 123456, tzinfo=UTC)
    repo.set_status(RepoStatus(RepoAvailability.online, at))
    assert repo.status == RepoStatus(RepoAvailability.online, at)


LATER = datetime.now(UTC) + timedelta(days=1)
# Every public method that changes something.
MUTATIONS: dict[str, Callable[[Repository], Any]] = {
    "create_branch": lambda repo: repo.create_branch("c", INITIAL_SNAPSHOT_ID),
    "reset_branch": lambda repo: repo.reset_branch("b", repo.lookup_branch("main")),
    "delete_branch": lambda repo: repo.delete_branch("b"),
    "create_tag": lambda repo: repo.create_tag("u", INITIAL_SNAPSHOT_ID),
    "delete_tag": lambda repo: repo.delete_tag("t"),
    "set_metadata": lambda repo: repo.set_metadata({}),
    "update_metadata": lambda repo: repo.update_metadata({}),
    "set_feature_flag": lambda repo: repo.set_feature_flag("create_tag", None),
    "save_config": lambda repo: repo.save_config(),
    "writable_session": lambda repo: repo.writable_session("main"),
    "rearrange_session": lambda repo: repo.rearrange_session("main"),
    "transaction": lambda repo: repo.transaction("main", message="x").__enter__(),
    "merge": lambda repo: repo.merge("main", "b"),
    "expire_snapshots": lambda repo: repo.expire_snapshots(LATER),
    "garbage_collect": lambda repo: repo.garbage_collect(LATER),
    "compact": lambda repo: repo.compact(),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_read_only_repository_refuses_every_change(repo: Repository, path: Path, mutation: str) -> None:
    changed(repo).commit("something")
    repo.create_branch("b", INITIAL_SNAPSHOT_ID)
    repo.create_tag("t", INITIAL_SNAPSHOT_ID)
    Repository.open(path).set_status(READ_ONLY)
    before = path.read_bytes()
    with pytest.raises(ReadOnlyError) as caught:
        MUTATIONS[mutation](repo)
    assert caught.value.kind == "read-only-repository"
    assert "moving house" in str(caught.value)
    assert path.read_bytes() == before
    repo.set_status(ONLINE)
    MUTATIONS[mutation](repo)


@pytest.mark.parametrize("verb", ["commit", "amend", "flush", "fork"])
def test_sessions_opened_before_are_stopped_and_keep_their_changes(repo: Repository, path: Path, verb: str) -> None:
    changed(repo).commit("something")
    session = changed(repo)
    status = session.status()
    Repository.open(path).set_status(READ_ONLY)
    arguments = () if verb == "fork" else ("too late",)
    with pytest.raises(ReadOnlyError) as caught:
        getattr(session, verb)(*arguments)
    assert caught.value.kind == "read-only-repository"
    assert session.status() == status
    repo.set_status(ONLINE)
    getattr(session, verb)(*arguments)


def test_no_bytes_are_written_ahead_either(repo: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pending, "PENDING_BYTES", 6)
    session = repo.writable_session("main")
    array = zarr.create_array(session.store, name="a", shape=(4,), chunks=(1,), dtype="i4")
    repo.set_status(READ_ONLY)
    with pytest.raises(ReadOnlyError):
        array[:] = 1


def test_it_holds_in_another_process(repo: Repository, path: Path) -> None:
    session = changed(repo)
    code = (
        "import sys, icelite; repo = icelite.Repository.open(sys.argv[1]);"
        "repo.set_status(icelite.RepoStatus(icelite.RepoAvailability.read_only))"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)
    with pytest.raises(ReadOnlyError) as caught:
        session.commit("too late")
    assert caught.value.kind == "read-only-repository"


def test_reading_goes_on(repo: Repository) -> None:
    snapshot_id = changed(repo).commit("something")
    repo.set_status(READ_ONLY)
    assert repo.readonly_session("main").snapshot_id == snapshot_id
    assert len(list(repo.ops_log())) == 3
    assert repo.diff(to_branch="main").new_groups
    assert repo.verify() == []


# Write transactions that do not ask: how a repository comes online again; the door itself, whose action asks; and one
# that removes a file in which nothing ever happened, and one that begins a repository: neither can have been made
# read-only.
UNASKED = {
    "administration.set_status",
    "database.repeat_write",
    "database.write",
    "creation.remove_unused",
    "importing.run",
}


def test_every_write_transaction_asks_first() -> None:
    """`check_online` is the first thing in each block of ``catalog.write()``."""
    unasked = {
        f"{source.stem}.{function.name}"
        for source in PACKAGE.rglob("*.py")
        for function in ast.walk(ast.parse(source.read_text()))
        if isinstance(function, ast.FunctionDef)
        for block in ast.walk(function)
        if isinstance(block, ast.With) and any(".write() as txn" in ast.unparse(item) for item in block.items)
        if not ast.unparse(block.body[0]).startswith("check_online(")
    }
    assert unasked == UNASKED


@pytest.mark.parametrize(
    "arguments",
    [("online",), (None,), (RepoAvailability.online, datetime(2024, 8, 1)), (RepoAvailability.online, None, 3)],  # noqa: DTZ001
)
def test_a_status_that_is_none_is_refused(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(InvalidInputError) as caught:
        RepoStatus(*arguments)
    assert caught.value.kind == "invalid-argument"


@pytest.mark.parametrize("value", [3, [], {}, {"availability": "asleep", "set_at": None}, "x"])
@pytest.mark.parametrize("setting", ["status", "feature_flags"])
def test_a_damaged_setting_is_an_error_and_allows_nothing(repo: Repository, setting: str, value: Any) -> None:
    if setting == "feature_flags" and value in ([], {}):
        return  # nothing set
    with repo._catalog.write() as txn:
        save_setting(txn, setting, value)
    with pytest.raises(FormatError) as caught:
        repo.create_tag("t", INITIAL_SNAPSHOT_ID)
    assert caught.value.kind == "corrupt"


# -- feature flags ---------------------------------------------------------------------------------------------


def test_flags_are_as_they_were_set(repo: Repository, path: Path) -> None:
    assert repo.feature_flags() == repo.enabled_feature_flags()
    assert {flag.name: flag.id for flag in repo.feature_flags()} == {"move_node": 3, "create_tag": 4, "delete_tag": 5}
    repo.set_feature_flag("create_tag", False)
    repo.set_feature_flag("move_node", True)
    other = Repository.open(path)
    assert other.disabled_feature_flags() == [FeatureFlag(4, "create_tag", True, False)]
    assert {flag.name: flag.setting for flag in other.enabled_feature_flags()} == {
        "move_node": True,
        "delete_tag": None,
    }
    repo.set_feature_flag("create_tag", None)
    assert other.disabled_feature_flags() == []


FORBIDDEN: dict[str, Callable[[Repository], Any]] = {
    "create_tag": lambda repo: repo.create_tag("u", INITIAL_SNAPSHOT_ID),
    "delete_tag": lambda repo: repo.delete_tag("t"),
    "move_node": lambda repo: repo.rearrange_session("main"),
}


@pytest.mark.parametrize("name", FORBIDDEN)
def test_what_is_forbidden_is_refused(repo: Repository, name: str) -> None:
    repo.create_tag("t", INITIAL_SNAPSHOT_ID)
    repo.set_feature_flag(name, False)
    with pytest.raises(SessionStateError) as caught:
        FORBIDDEN[name](repo)
    assert caught.value.kind == "feature-flag-disabled"
    assert name in str(caught.value)
    repo.set_feature_flag(name, None)
    FORBIDDEN[name](repo)


def test_a_move_begun_before_is_refused_too(repo: Repository) -> None:
    session = repo.writable_session("main")
    zarr.create_group(session.store, path="a")
    session.commit("a group")
    session = repo.rearrange_session("main")
    session.move("/a", "/b")
    repo.set_feature_flag("move_node", False)
    with pytest.raises(SessionStateError) as caught:
        session.commit("moved")
    assert caught.value.kind == "feature-flag-disabled"
    repo.set_feature_flag("move_node", True)
    session.commit("moved")


@pytest.mark.parametrize(("name", "setting"), [("nope", True), ("create_tag", "yes"), ("create_tag", 1)])
def test_a_flag_that_is_none_is_refused(repo: Repository, name: str, setting: Any) -> None:
    with pytest.raises(InvalidInputError) as caught:
        repo.set_feature_flag(name, setting)
    assert caught.value.kind == "invalid-feature-flag"
    assert repo.disabled_feature_flags() == []


# -- configuration ---------------------------------------------------------------------------------------------


def container(name: str, region: str = "us-east-1") -> icelite.VirtualChunkContainer:
    return icelite.VirtualChunkContainer(f"s3://{name}/", icelite.s3_store(region=region), name)


def with_container(*containers: icelite.VirtualChunkContainer) -> icelite.RepositoryConfig:
    config = icelite.RepositoryConfig()
    for one in containers:
        config.set_virtual_chunk_container(one)
    return config


def test_config_counts_here_until_it_is_saved(repo: Repository, path: Path) -> None:
    config = repo.config
    config.inline_chunk_threshold_bytes = 7
    config.set_virtual_chunk_container(container("bucket"))
    assert repo.config != config
    other = repo.reopen(config)
    assert other.config == config
    assert Repository.open(path).config == repo.config == Repository.fetch_config(path) == icelite.RepositoryConfig()
    other.save_config()
    assert Repository.fetch_config(path) == Repository.open(path).config == config
    assert repo.config == icelite.RepositoryConfig()  # as it was opened


def test_a_configuration_saved_by_another_meanwhile_is_not_overwritten(repo: Repository, path: Path) -> None:
    one, two = (Repository.open(path, icelite.RepositoryConfig(number)) for number in (1, 2))
    one.save_config()
    with pytest.raises(ConflictError) as caught:
        two.save_config()
    assert caught.value.kind == "config-updated"
    assert "inline_chunk_threshold_bytes" in str(caught.value)
    stored = Repository.fetch_config(path)
    assert stored is not None
    assert stored.inline_chunk_threshold_bytes == 1
    one.save_config()  # its own is no conflict
    two.reopen().save_config()
    assert Repository.open(path).config.inline_chunk_threshold_bytes == 2


def test_containers_of_two_are_joined_unless_they_differ(repo: Repository, path: Path) -> None:
    one, two, three = (
        Repository.open(path, with_container(*containers))
        for containers in ([container("a")], [container("b")], [container("a", "eu-west-1")])
    )
    one.save_config()
    two.save_config()
    assert set(Repository.open(path).config.virtual_chunk_containers or {}) == {"s3://a/", "s3://b/"}
    with pytest.raises(ConflictError) as caught:
        three.save_config()
    assert "s3://a/" in str(caught.value)


def test_what_a_catalog_says_of_containers_is_no_declaration(path: Path, tmp_path: Path) -> None:
    """Handing a fetched configuration back vouches for nothing: a stranger's file:/// would open every file."""
    secret = tmp_path / "elsewhere" / "secret.bin"
    secret.parent.mkdir()
    secret.write_bytes(b"secret")
    folder = tmp_path / "catalog"
    folder.mkdir()
    prefix = f"file://{secret.parent}/"
    stranger = Repository.create(
        folder / "r.icelite", with_container(icelite.VirtualChunkContainer(prefix, icelite.local_filesystem_store("/")))
    )
    session = stranger.writable_session("main")
    zarr.create_array(session.store, name="a", shape=(6,), chunks=(6,), dtype="u1", compressors=None, filters=None)
    session.store.set_virtual_ref("a/c/0", secret.as_uri(), offset=0, length=6)
    session.commit("mine")
    opened = Repository.open(folder / "r.icelite")
    assert set(opened.config.virtual_chunk_containers or {}) == {prefix}
    for careless in (
        opened.reopen(opened.config),
        Repository.open(folder / "r.icelite", Repository.fetch_config(folder / "r.icelite")),
        pickle.loads(pickle.dumps(opened.reopen(opened.config))),
    ):
        with pytest.raises(InvalidInputError) as caught:
            zarr.open_array(careless.readonly_session("main").store, path="a", mode="r")[:]
        assert caught.value.kind == "unauthorized-virtual-chunk-container"
    declared = opened.reopen(with_container(icelite.VirtualChunkContainer(prefix)))
    assert bytes(zarr.open_array(declared.readonly_session("main").store, path="a", mode="r")[:]) == b"secret"


def test_reopening_keeps_what_it_is_not_given(repo: Repository) -> None:
    access = icelite.containers_credentials({"s3://bucket": icelite.s3_anonymous_credentials()})
    other = repo.reopen(icelite.RepositoryConfig(5), access)
    assert other is not repo
    assert other.authorized_virtual_container_prefixes == {"s3://bucket/"}
    assert repo.authorized_virtual_container_prefixes == set()
    third = other.reopen()
    assert third.config == other.config
    assert third.authorized_virtual_container_prefixes == {"s3://bucket/"}
    assert other.reopen(authorize_virtual_chunk_access={}).authorized_virtual_container_prefixes == set()


def test_the_version_of_the_format(repo: Repository, path: Path, tmp_path: Path) -> None:
    assert repo.spec_version is Repository.fetch_spec_version(path) is SpecVersion.v1
    assert Repository.fetch_spec_version(tmp_path / "none.icelite") is None
    with pytest.raises(icelite.RepositoryNotFoundError):
        Repository.fetch_config(tmp_path / "none.icelite")
    junk = tmp_path / "junk.icelite"
    junk.write_bytes(b"x" * 5000)
    with pytest.raises(FormatError):
        Repository.fetch_spec_version(junk)


# -- transaction -----------------------------------------------------------------------------------------------


def test_a_transaction_commits_what_its_block_did(repo: Repository) -> None:
    repo.set_default_commit_metadata({"by": "me"})
    with repo.transaction("main", message="a group", metadata={"n": 1}) as store:
        assert isinstance(store, icelite.IceliteStore)
        zarr.create_group(store, path="g")
    info = repo.lookup_snapshot(repo.lookup_branch("main"))
    assert (info.message, info.metadata) == ("a group", {"by": "me", "n": 1})
    assert repo.diff(to_branch="main").new_groups == {"/", "/g"}
    assert store.read_only


def test_a_transaction_that_raises_commits_nothing(repo: Repository) -> None:
    def give_up() -> None:
        with repo.transaction("main", message="x") as store:
            zarr.create_group(store, path="g")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        give_up()
    assert repo.lookup_branch("main") == INITIAL_SNAPSHOT_ID


def test_a_transaction_without_a_change_is_an_error(repo: Repository) -> None:
    with pytest.raises(SessionStateError) as caught, repo.transaction("main", message="x"):
        pass
    assert caught.value.kind == "no-changes-to-commit"


def test_a_transaction_may_rebase(repo: Repository) -> None:
    def overtaken(path: str, **options: Any) -> None:
        with repo.transaction("main", message="x", **options) as store:
            zarr.create_group(store, path=path)
            with repo.transaction("main", message="y") as other:
                zarr.create_group(other, path=f"before-{path}")

    with pytest.raises(ConflictError):
        overtaken("a")
    overtaken("b", rebase_with=icelite.ConflictDetector())
    groups = set(zarr.open_group(repo.readonly_session("main").store, mode="r"))
    assert groups == {"before-a", "before-b", "b"}


# -- the asynchronous twins ------------------------------------------------------------------------------------


def twins(cls: type) -> list[tuple[str, str]]:
    return [(name.removesuffix("_async"), name) for name in dir(cls) if name.endswith("_async")]


@pytest.mark.parametrize("cls", [Repository, Session, icelite.ForkSession])
def test_a_twin_takes_what_its_method_takes(cls: type) -> None:
    assert len(twins(cls)) > 8
    for name, twin in twins(cls):
        assert inspect.signature(getattr(cls, twin)).parameters == inspect.signature(getattr(cls, name)).parameters, (
            name
        )
        assert inspect.iscoroutinefunction(getattr(cls, twin)) or inspect.isasyncgenfunction(getattr(cls, twin))
        assert getattr(cls, twin).__name__ == twin
        assert name in (getattr(cls, twin).__doc__ or "")


async def test_the_twins_do_what_the_methods_do(path: Path) -> None:
    assert not await Repository.exists_async(path)
    assert await Repository.fetch_spec_version_async(path) is None
    repo = await Repository.create_async(path)
    assert await Repository.exists_async(path)
    repo = await Repository.open_async(path, check="always")
    repo = await Repository.open_or_create_async(path)
    repo = await repo.reopen_async(icelite.RepositoryConfig(3))
    await repo.save_config_async()
    assert await Repository.fetch_config_async(path) == icelite.RepositoryConfig(3)
    session = await repo.writable_session_async("main")
    await zarr.api.asynchronous.create_group(store=session.store, path="g")
    fork = session.fork()
    await session.merge_async(fork)
    first = await session.commit_async("first", {"a": 1})
    await repo.create_branch_async("b", first)
    await repo.create_tag_async("t", snapshot_id=first)
    assert await repo.list_branches_async() == {"main", "b"}
    session = await repo.rearrange_session_async("main")
    await session.move_async("/g", "/h")
    assert await session.get_node_id_async("/h")
    second = await session.commit_async("second")
    assert await repo.diff_async(from_tag="t", to_branch="main") == icelite.Diff(moved_nodes=[("/g", "/h")])
    assert [info.id async for info in repo.async_ancestry(branch="main")] == [second, first, INITIAL_SNAPSHOT_ID]
    assert [update async for update in repo.ops_log_async()] == list(repo.ops_log())
    kinds = [type(update.kind) async for update in repo.ops_log_async()]
    assert kinds[:2] == [UpdateType.NewCommit, UpdateType.TagCreated]
    await repo.set_metadata_async({"a": 1})
    assert await repo.update_metadata_async({"b": 2}) == await repo.get_metadata_async() == {"a": 1, "b": 2}
    assert json.dumps(await repo.inspect_repo_info_async())


async def test_a_twin_raises_what_its_method_raises(repo: Repository) -> None:
    with pytest.raises(icelite.RefNotFoundError):
        await repo.lookup_branch_async("nowhere")
    with pytest.raises(InvalidInputError):
        async for _ in repo.async_ancestry():
            pass
    session = await repo.readonly_session_async("main")
    with pytest.raises(SessionStateError):
        await session.commit_async("x")
    with pytest.raises(SessionStateError):  # as overridden
        await changed(repo).fork().commit_async("x")
