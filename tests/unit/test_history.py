"""What `Repository` says about the past: differences, the operation log, the graph, plain values for a close look."""

from __future__ import annotations

import itertools
import json
import random
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.core.sync import sync

import icelite
from icelite.catalog import snapshots
from icelite.errors import FormatError, InvalidInputError, RefNotFoundError, SnapshotNotFoundError
from icelite.repository import Repository
from icelite.repository import history as history_module
from icelite.store import IceliteStore
from icelite.types import INITIAL_SNAPSHOT_ID, Diff, SnapshotInfo, UpdateType

Edit = Callable[[IceliteStore], Any]


@pytest.fixture
def repo() -> Repository:
    return Repository.create(icelite.in_memory_storage())


def commit(repo: Repository, edit: Edit = lambda store: None, branch: str = "main", message: str = "x") -> str:
    session = repo.writable_session(branch)
    edit(session.store)
    return session.commit(message, allow_empty=True)


def move(repo: Repository, source: str, target: str) -> str:
    session = repo.rearrange_session("main")
    session.move(source, target)
    return session.commit("move")


def array(path: str, size: int = 4) -> Edit:
    def create(store: IceliteStore) -> None:
        zarr.create_array(store, name=path, shape=(size,), chunks=(1,), dtype="i4", overwrite=True)[:] = 1

    return create


def write(path: str, *positions: int) -> Edit:
    def assign(store: IceliteStore) -> None:
        target = zarr.open_array(store, path=path)
        for position in positions:
            target[position] = 7

    return assign


def attribute(path: str, value: int) -> Edit:
    return lambda store: zarr.open(store, path=path).attrs.update(note=value)


def delete(path: str) -> Edit:
    return lambda store: sync(store.delete_dir(path))


# -- diff ------------------------------------------------------------------------------------------------------


def test_each_kind_of_change_is_in_its_set(repo: Repository) -> None:
    first = commit(repo, lambda store: [array(f"g/{name}")(store) for name in "abc"])
    assert repo.diff(to_snapshot_id=first) == Diff(
        new_groups={"/", "/g"},
        new_arrays={"/g/a", "/g/b", "/g/c"},
        updated_chunks={f"/g/{name}": [[0], [1], [2], [3]] for name in "abc"},
    )
    commit(repo, write("g/a", 2, 0))
    commit(repo, attribute("g/a", 1))
    commit(repo, attribute("g", 1))
    commit(repo, delete("g/b"))
    last = commit(repo, array("g/c"))  # deletes it and makes another
    expected = Diff(
        new_arrays={"/g/c"},
        deleted_arrays={"/g/b", "/g/c"},
        updated_groups={"/g"},
        updated_arrays={"/g/a"},
        updated_chunks={"/g/a": [[0], [2]], "/g/c": [[0], [1], [2], [3]]},
    )
    assert repo.diff(from_snapshot_id=first, to_snapshot_id=last) == expected
    repo.create_tag("v1", first)
    assert repo.diff(from_tag="v1", to_branch="main") == expected


def test_ends_may_be_equal_or_one_snapshot_alone(repo: Repository) -> None:
    commit(repo, array("a"))
    second = commit(repo, write("a", 1))
    assert repo.diff(from_branch="main", to_snapshot_id=second).is_empty()
    assert repo.diff(to_branch="main") == Diff(updated_chunks={"/a": [[1]]})
    assert repo.diff(to_snapshot_id=INITIAL_SNAPSHOT_ID).is_empty()


def test_what_came_and_went_is_nowhere(repo: Repository) -> None:
    start = commit(repo, lambda store: zarr.create_group(store))
    commit(repo, array("a"))
    commit(repo, delete("a"))
    assert repo.diff(from_snapshot_id=start, to_branch="main").is_empty()


def test_written_over_with_the_same_counts_as_changed(repo: Repository) -> None:
    start = commit(repo, array("a"))
    commit(repo, attribute("a", 1))
    commit(repo, attribute("a", 0))
    assert repo.diff(from_snapshot_id=start, to_branch="main") == Diff(updated_arrays={"/a"})


def test_moves_are_told_from_where_to_where(repo: Repository) -> None:
    start = commit(repo, array("g/a"))
    move(repo, "/g", "/h")
    commit(repo, write("h/a", 3))
    moved = move(repo, "/h/a", "/b")
    assert repo.diff(to_snapshot_id=moved) == Diff(moved_nodes=[("/h/a", "/b")])
    assert repo.diff(from_snapshot_id=start, to_branch="main") == Diff(
        updated_chunks={"/b": [[3]]}, moved_nodes=[("/g", "/h"), ("/g/a", "/b")]
    )
    move(repo, "/b", "/h/a")
    move(repo, "/h", "/g")
    assert repo.diff(from_snapshot_id=start, to_branch="main") == Diff(updated_chunks={"/g/a": [[3]]})
    commit(repo, delete("g/a"))
    assert repo.diff(from_snapshot_id=start, to_branch="main") == Diff(deleted_arrays={"/g/a"})


def test_only_the_way_between_the_two_counts(repo: Repository) -> None:
    fork = commit(repo, array("a"))
    repo.create_branch("other", fork)
    commit(repo, write("a", 0))
    commit(repo, write("a", 1), "other")
    assert repo.diff(from_snapshot_id=fork, to_branch="other") == Diff(updated_chunks={"/a": [[1]]})


def test_an_amend_is_one_change(repo: Repository) -> None:
    start = commit(repo, array("a"))
    commit(repo, write("a", 0))
    session = repo.writable_session("main")
    write("a", 1)(session.store)
    amended = session.amend("both")
    expected = Diff(updated_chunks={"/a": [[0], [1]]})
    assert repo.diff(to_snapshot_id=amended) == repo.diff(from_snapshot_id=start, to_branch="main") == expected


def test_an_amend_of_metadata_by_a_move_keeps_both(repo: Repository) -> None:
    commit(repo, array("a"))
    commit(repo, attribute("a", 1))
    session = repo.rearrange_session("main")
    session.move("/a", "/b")
    amended = session.amend("both")
    assert repo.diff(to_snapshot_id=amended) == Diff(updated_arrays={"/b"}, moved_nodes=[("/a", "/b")])


def test_expired_snapshots_still_count(repo: Repository) -> None:
    start = commit(repo, lambda store: (array("a")(store), array("b")(store)))
    repo.create_tag("start", start)
    commit(repo, write("a", 0))
    commit(repo, lambda store: (delete("b")(store), array("c")(store)))
    commit(repo, lambda store: (write("a", 1)(store), delete("c")(store)))
    last = commit(repo, attribute("a", 1))
    expected = Diff(deleted_arrays={"/b"}, updated_arrays={"/a"}, updated_chunks={"/a": [[0], [1]]})
    assert repo.diff(from_tag="start", to_branch="main") == expected
    later = datetime.now(UTC) + timedelta(days=1)
    assert len(repo.expire_snapshots(later)) == 3
    repo.garbage_collect(later)
    assert repo.diff(from_tag="start", to_branch="main") == expected
    assert repo.lookup_snapshot(last).parent_id == INITIAL_SNAPSHOT_ID
    assert repo.diff(to_branch="main").new_arrays == {"/a"}
    log = repo.inspect_transaction_log(last)
    assert log["synthetic_composite"]
    assert log["new_arrays"] == ["/a"]


@pytest.mark.parametrize("ends", [("last", "first"), ("side", "last"), ("last", "side")])
def test_an_end_that_is_not_behind_the_other_is_refused(repo: Repository, ends: tuple[str, str]) -> None:
    ids = {"first": commit(repo)}
    repo.create_branch("side", ids["first"])
    ids["last"], ids["side"] = commit(repo), commit(repo, branch="side")
    with pytest.raises(InvalidInputError) as caught:
        repo.diff(from_snapshot_id=ids[ends[0]], to_snapshot_id=ids[ends[1]])
    assert caught.value.kind == "bad-snapshot-chain-for-diff"
    assert all(ids[end] in str(caught.value) for end in ends)


BAD_ENDS: list[tuple[dict[str, str], type[Exception], str]] = [
    ({}, InvalidInputError, "invalid-argument"),
    ({"from_branch": "main"}, InvalidInputError, "invalid-argument"),
    ({"to_branch": "main", "to_tag": "v1"}, InvalidInputError, "invalid-argument"),
    ({"to_branch": "main", "from_branch": "main", "from_tag": "v1"}, InvalidInputError, "invalid-argument"),
    ({"to_branch": "main", "from_snapshot_id": "nonsense"}, InvalidInputError, "invalid-snapshot-id"),
    ({"to_snapshot_id": "A" * 20}, SnapshotNotFoundError, "snapshot-not-found"),
    ({"to_branch": "nowhere"}, RefNotFoundError, "branch-not-found"),
    ({"to_branch": "main", "from_tag": "nowhere"}, RefNotFoundError, "tag-not-found"),
]


@pytest.mark.parametrize(("ends", "error", "kind"), BAD_ENDS)
def test_ends_that_name_nothing_are_refused(
    repo: Repository, ends: dict[str, str], error: type[icelite.IceliteError], kind: str
) -> None:
    repo.create_tag("v1", INITIAL_SNAPSHOT_ID)
    with pytest.raises(error) as caught:
        repo.diff(**ends)
    assert caught.value.kind == kind


@settings(max_examples=30)
@given(seed=st.integers(0, 1 << 32))
def test_a_diff_over_many_commits_is_what_the_two_ends_differ_in(seed: int) -> None:
    """Random histories of edits; only chunks and metadata written twice may be in the diff and not in the ends."""
    choice = random.Random(seed)
    repo = Repository.create(icelite.in_memory_storage())
    commit(repo, lambda store: zarr.create_group(store))
    ids = [repo.lookup_branch("main")]
    for _ in range(8):
        present = [name for name in "abc" if (name, "a") in states(repo, ids[-1])]
        edits = [array(choice.choice("abc"))]
        if present:
            name = choice.choice(present)
            edits += [write(name, choice.randrange(4)), attribute(name, choice.randrange(9)), delete(name)]
        ids.append(commit(repo, choice.choice(edits)))
    start, stop = sorted(choice.sample(range(len(ids)), 2))
    diff = repo.diff(from_snapshot_id=ids[start], to_snapshot_id=ids[stop])
    before, after = states(repo, ids[start]), states(repo, ids[stop])
    came = {path for path, kind in after if before.get((path, kind), (None,))[0] != after[path, kind][0]}
    went = {path for path, kind in before if after.get((path, kind), (None,))[0] != before[path, kind][0]}
    assert diff.new_arrays == {f"/{path}" for path in came}
    assert diff.deleted_arrays == {f"/{path}" for path in went}
    for (path, kind), (node_id, document, data) in after.items():
        old_id, old_document, old_data = before.get((path, kind), (None, "", b""))
        if old_id == node_id and old_document != document:
            assert f"/{path}" in diff.updated_arrays
        if old_id == node_id and old_data != data:
            assert f"/{path}" in diff.updated_chunks


def states(repo: Repository, snapshot_id: str) -> dict[tuple[str, str], tuple[str, str, bytes]]:
    session = repo.readonly_session(snapshot_id=snapshot_id)
    group = zarr.open_group(session.store, mode="r")
    return {
        (name, "a"): (session.get_node_id("/" + name), str(member.metadata), np.asarray(member[:]).tobytes())
        for name, member in group.arrays()
    }


def test_a_diff_prints_what_is_in_it() -> None:
    assert repr(Diff()) == "<icelite.Diff> nothing changed"
    diff = Diff({"/"}, {"/b", "/a"}, updated_chunks={"/a": [[n, 0] for n in range(12)]}, moved_nodes=[("/x\n", "/y")])
    assert str(diff) == repr(diff)
    assert repr(diff).splitlines() == [
        "<icelite.Diff>",
        "new groups:",
        "    /",
        "new arrays:",
        "    /a",
        "    /b",
        "updated chunks:",
        "    /a: " + " ".join(f"[{n}, 0]" for n in range(10)) + " and 2 more",
        "moved nodes:",
        r"    '/x\n' -> /y",
    ]


# -- the operation log -----------------------------------------------------------------------------------------


def test_every_kind_of_update_is_logged_newest_first(repo: Repository) -> None:
    first = commit(repo, array("a"))
    session = repo.writable_session("main")
    write("a", 0)(session.store)
    amended = session.amend("again")
    session = repo.writable_session("main")
    write("a", 1)(session.store)
    detached = session.flush("candidate")
    repo.create_branch("b", first)
    repo.reset_branch("b", amended)
    repo.delete_branch("b")
    repo.create_tag("t", first)
    repo.delete_tag("t")
    repo.set_metadata({"title": "sea"})
    repo.update_metadata({"title": "see"})
    repo.set_feature_flag("create_tag", False)
    repo.save_config()
    read_only = icelite.RepoStatus(icelite.RepoAvailability.read_only, datetime(2024, 8, 1, tzinfo=UTC), "archive")
    online = icelite.RepoStatus(icelite.RepoAvailability.online, datetime(2024, 8, 2, tzinfo=UTC))
    repo.set_status(read_only)
    repo.set_status(online)
    repo.expire_snapshots(datetime(2020, 1, 1, tzinfo=UTC))
    repo.garbage_collect(datetime(2020, 1, 1, tzinfo=UTC))
    updates = list(repo.ops_log())
    assert [update.kind for update in updates][::-1] == [
        UpdateType.RepoInitialized(),
        UpdateType.NewCommit("main", first),
        UpdateType.CommitAmended("main", first, amended),
        UpdateType.NewDetachedSnapshot(detached),
        UpdateType.BranchCreated("b"),
        UpdateType.BranchReset("b", first),
        UpdateType.BranchDeleted("b", amended),
        UpdateType.TagCreated("t"),
        UpdateType.TagDeleted("t", first),
        UpdateType.MetadataChanged(),
        UpdateType.MetadataChanged(),
        UpdateType.FeatureFlagChanged(4, False),
        UpdateType.ConfigChanged(),
        UpdateType.RepoStatusChanged(read_only),
        UpdateType.RepoStatusChanged(online),
        UpdateType.ExpirationRan(),
        UpdateType.GCRan(),
    ]
    assert all(isinstance(update.kind, UpdateType) and update.backup_path is None for update in updates)
    assert all(a.updated_at >= b.updated_at for a, b in itertools.pairwise(updates))
    assert updates[-2].updated_at == repo.lookup_snapshot(first).written_at


def test_a_long_log_comes_in_pages(repo: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history_module, "AT_ONCE", 3)
    ids = [commit(repo) for _ in range(7)]
    kinds = [update.kind for update in repo.ops_log()]
    assert [kind.new_snap_id for kind in kinds if isinstance(kind, UpdateType.NewCommit)] == ids[::-1]
    assert [info.id for info in repo.ancestry(branch="main")] == [*ids[::-1], INITIAL_SNAPSHOT_ID]


INSERT_BY_HAND = "INSERT INTO operation (done_at, kind, detail) VALUES (?, ?, ?)"


def test_a_kind_of_a_later_release_is_told_as_it_is(repo: Repository) -> None:
    with repo._catalog.write() as txn:
        txn.run(INSERT_BY_HAND, (5, "Painted", '{"colour": "blue"}'))
    newest = next(repo.ops_log())
    assert newest.kind == UpdateType.OtherUpdate("Painted", {"colour": "blue"})
    assert newest.updated_at == datetime(1970, 1, 1, 0, 0, 0, 5, tzinfo=UTC)


@pytest.mark.parametrize("detail", ["{}", "[]", "not JSON", '{"status": 3}'])
@pytest.mark.parametrize("kind", ["NewCommit", "RepoStatusChanged"])
def test_a_damaged_entry_is_an_error(repo: Repository, kind: str, detail: str) -> None:
    with repo._catalog.write() as txn:
        txn.run(INSERT_BY_HAND, (5, kind, detail))
    with pytest.raises(FormatError) as caught:
        list(repo.ops_log())
    assert caught.value.kind == "corrupt"


# -- the graph -------------------------------------------------------------------------------------------------


@pytest.fixture
def forked(repo: Repository) -> tuple[Repository, dict[str, str]]:
    """Three branches: ``dev`` forks from main, ``late`` from ``dev``."""
    ids = {"base": commit(repo, message="base")}
    repo.create_branch("dev", ids["base"])
    repo.create_tag("v1", ids["base"])
    ids["main"] = commit(repo, message="more on main\nwith a second line")
    ids["dev"] = commit(repo, branch="dev", message="on dev")
    repo.create_branch("late", ids["dev"])
    ids["late"] = commit(repo, branch="late", message="on late")
    ids["tip"] = commit(repo, branch="dev", message="tip of dev")
    return repo, ids


def drawn(graph: object) -> list[str]:
    """Its lines without times."""
    return [re.sub(r" \d{4}-\d\d-\d\d \d\d:\d\d", "", line) for line in str(graph).splitlines()]


def test_the_graph_of_all_branches(forked: tuple[Repository, dict[str, str]]) -> None:
    repo, ids = forked
    graph = repo.ancestry_graph(plain=True)
    assert drawn(graph) == [
        f"  ●   {ids['tip']} (dev) tip of dev",
        f"  │ ● {ids['late']} (late) on late",
        f"  ●─╯ {ids['dev']} on dev",
        f"● │   {ids['main']} (main) more on main",
        f"●─╯   {ids['base']} (tag v1) base",
        f"●     {INITIAL_SNAPSHOT_ID} Repository initialized",
    ]
    assert repr(graph) == str(graph)


def test_lines_that_meet_in_one_snapshot(repo: Repository) -> None:
    base = commit(repo, message="base")
    for name in ("a", "b", "c"):
        repo.create_branch(name, base)
        commit(repo, branch=name, message=name)
    for name in ("b", "main"):
        commit(repo, branch=name, message=name)
    marks = [line[:8].rstrip() for line in drawn(repo.ancestry_graph(plain=True))]
    assert marks == ["●", "│ ●", "│ │ ●", "│ ● │", "│ │ │ ●", "●─┴─┴─╯", "●"]


def test_a_line_that_passes_behind_another(repo: Repository) -> None:
    base = commit(repo)
    repo.create_branch("a", base)
    early = commit(repo)
    repo.create_branch("b", early)
    commit(repo, branch="b")
    commit(repo, branch="a")
    commit(repo)
    repo.reset_branch("a", repo.lookup_branch("a"))
    marks = [line[:6].rstrip() for line in drawn(repo.ancestry_graph(plain=True))]
    assert marks == ["●", "│ ●", "│ │ ●", "●─┼─╯", "●─╯", "●"]


@pytest.mark.parametrize("where", [{"branch": "dev"}, {"tag": "v1"}, {"snapshot_id": "late"}])
def test_the_graph_of_one_line(forked: tuple[Repository, dict[str, str]], where: dict[str, str]) -> None:
    repo, ids = forked
    if "snapshot_id" in where:
        where = {"snapshot_id": ids["late"]}
    lines = drawn(repo.ancestry_graph(plain=True, **where))
    assert [line.split()[1] for line in lines] == [info.id for info in repo.ancestry(**where)]
    assert all(line.startswith("● ") for line in lines)


def test_colours_only_where_wanted(forked: tuple[Repository, dict[str, str]]) -> None:
    repo, _ = forked
    colored, plain = str(repo.ancestry_graph()), str(repo.ancestry_graph(plain=True))
    assert re.sub(r"\x1b\[\d+m", "", colored) == plain
    assert "\x1b[" in colored
    assert "\x1b" not in plain


def test_the_picture_has_a_circle_a_snapshot_and_an_edge_a_parent(forked: tuple[Repository, dict[str, str]]) -> None:
    repo, ids = forked
    svg = repo.ancestry_graph()._repr_svg_()
    picture = ET.fromstring(svg)
    kinds = [element.tag.partition("}")[2] for element in picture]
    assert kinds.count("circle") == kinds.count("text") == 6
    assert kinds.count("path") == 5
    text = "".join(picture.itertext())
    assert all(id_ in text for id_ in ids.values())
    assert repo.ancestry_graph()._repr_html_() == f'<div style="overflow-x: auto">{svg}</div>'


def test_what_a_stranger_wrote_reaches_neither_terminal_nor_page(repo: Repository) -> None:
    commit(repo, message="\x1b[2J<script>alert(1)</script>\r&" + "x" * 100)
    repo.create_branch("<b>", repo.lookup_branch("main"))
    graph = repo.ancestry_graph(plain=True)
    assert "\x1b" not in str(graph)
    assert "\r" not in str(graph)
    assert "<script" not in graph._repr_html_()
    assert "<b>" not in graph._repr_html_()
    assert "…" in str(graph)
    assert ET.fromstring(graph._repr_svg_()) is not None


def test_a_graph_of_nothing_is_refused(repo: Repository) -> None:
    with pytest.raises(RefNotFoundError):
        repo.ancestry_graph(branch="nowhere")
    with pytest.raises(InvalidInputError):
        repo.ancestry_graph(branch="main", tag="v1")


# -- a close look ----------------------------------------------------------------------------------------------


def test_a_snapshot_as_plain_values(repo: Repository) -> None:
    session = repo.writable_session("main")
    zarr.create_array(session.store, name="g/a", shape=(4, 3), chunks=(2, 2), dtype="i4")
    snapshot_id = session.commit("first", {"who": "me"})
    plain = repo.inspect_snapshot(snapshot_id)
    info = repo.lookup_snapshot(snapshot_id)
    assert json.loads(json.dumps(plain)) == plain
    assert plain["id"] == snapshot_id
    assert (
        SnapshotInfo(
            plain["id"],
            plain["parent_id"],
            datetime.fromisoformat(plain["written_at"]),
            plain["message"],
            plain["metadata"],
        )
        == info
    )
    session = repo.readonly_session("main")
    assert plain["nodes"] == [
        {"id": session.get_node_id("/"), "path": "/", "zarr_format": 3, "node_type": "group"},
        {"id": session.get_node_id("/g"), "path": "/g", "zarr_format": 3, "node_type": "group"},
        {
            "id": session.get_node_id("/g/a"),
            "path": "/g/a",
            "zarr_format": 3,
            "node_type": "array",
            "shape": [4, 3],
            "chunk_grid": [2, 2],
        },
    ]
    assert plain["header"]["spec_version"] == 1


def test_the_repository_as_plain_values(forked: tuple[Repository, dict[str, str]]) -> None:
    repo, ids = forked
    repo.create_tag("gone", ids["base"])
    repo.delete_tag("gone")
    repo.set_metadata({"title": "sea"})
    plain = repo.inspect_repo_info()
    assert json.loads(json.dumps(plain)) == plain
    assert plain["branches"] == {"main": ids["main"], "dev": ids["tip"], "late": ids["late"]}
    assert plain["tags"] == {"v1": ids["base"]}
    assert plain["deleted_tags"] == ["gone"]
    assert [info["id"] for info in plain["snapshots"]] == [
        *(ids[name] for name in ("tip", "late", "dev", "main", "base")),
        INITIAL_SNAPSHOT_ID,
    ]
    assert plain["metadata"] == {"title": "sea"}
    assert plain["status"]["availability"] == "online"
    assert plain["latest_updates"][0]["kind"] == "MetadataChanged()"


def test_what_a_snapshot_did_as_plain_values(repo: Repository) -> None:
    commit(repo, array("a"))
    second = commit(repo, lambda store: (write("a", 1)(store), array("b", 1)(store)))
    log = repo.inspect_transaction_log(second)
    assert json.loads(json.dumps(log)) == log
    assert log["new_arrays"] == ["/b"]
    assert log["updated_chunks"] == [{"path": "/a", "chunks": [[1]]}, {"path": "/b", "chunks": [[0]]}]
    assert not log["synthetic_composite"]
    assert repo.inspect_transaction_log(INITIAL_SNAPSHOT_ID)["new_groups"] == []


@pytest.mark.parametrize("inspect", ["inspect_snapshot", "inspect_transaction_log", "lookup_snapshot"])
def test_no_close_look_at_what_is_not_there(repo: Repository, inspect: str) -> None:
    with pytest.raises(SnapshotNotFoundError) as missing:
        getattr(repo, inspect)("A" * 20)
    assert missing.value.kind == "snapshot-not-found"
    with pytest.raises(InvalidInputError) as malformed:
        getattr(repo, inspect)("mainly")
    assert malformed.value.kind == "invalid-snapshot-id"


def test_ancestry_among_branches_that_grow_at_once(tmp_path: Path) -> None:
    """Snapshots are read in blocks of neighbouring numbers, of which many belong to others here."""
    repo = Repository.create(tmp_path / "a.icelite")
    written = {"main": [repo.lookup_branch("main")]}
    for number in range(120):
        name = ("main", "even", "rare")[2 if number % 40 == 0 else number % 2]
        if name not in written:
            written[name] = list(written["main"])
            repo.create_branch(name, written["main"][-1])
        written[name].append(repo.writable_session(name).commit(str(number), allow_empty=True))
    for name, ids in written.items():
        infos = list(repo.ancestry(branch=name))
        assert [info.id for info in infos] == ids[::-1]
        assert [info.parent_id for info in infos] == [*ids[-2::-1], None]
        assert infos == [repo.lookup_snapshot(snapshot_id) for snapshot_id in ids[::-1]]
        with repo._catalog.read() as txn:  # in pages that end anywhere
            seq: int | None = snapshots.lookup_seq(txn, ids[-1])
            paged: list[SnapshotInfo] = []
            while seq is not None:
                page, seq = snapshots.list_ancestors(txn, seq, 7)
                assert len(page) <= 7
                paged += page
        assert paged == infos
