"""The sources of a snapshot: what the table says, and what is found when somebody looks."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import apsw
import boto3
import numpy as np
import pandas as pd
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from moto.server import ThreadedMotoServer

import icelite
from icelite.errors import ErrorKind, InvalidInputError, RefNotFoundError
from icelite.repository import Repository
from icelite.types import SourceInfo, Sources
from icelite.types.reports import SHOWN
from icelite.virtual.local import LocalSource


def states(repository: Repository, **which: Any) -> dict[str, str]:
    """File name to state."""
    return {row.url.rpartition("/")[2]: row.state for row in repository.sources(check=True, **which)}


# -- the table -----------------------------------------------------------------------------------------------------


def test_a_row_for_each_file(archive: Any) -> None:
    table = archive.repository.sources()
    assert len(table) == 3
    first = table[0]
    status = archive.files[0].stat()
    assert first == SourceInfo(
        url=archive.files[0].as_uri(),
        path="data/0.bin",
        container=None,
        references=2,
        bytes=100,
        end=100,
        size=100,
        etag=None,
        modified_at=status.st_mtime_ns,
    )
    assert first.state == "unchecked"
    assert [row.path for row in table] == [row.path for row in table[:2]] + ["data/2.bin"]


def test_a_snapshot_is_named_as_elsewhere(archive: Any) -> None:
    repo = archive.repository
    repo.create_tag("v1", archive.first)
    session = repo.writable_session("main")
    del zarr.open_group(session.store)["x"]
    session.commit("delete")
    assert len(repo.sources()) == len(repo.sources("main")) == 0
    assert len(repo.sources(tag="v1")) == len(repo.sources(snapshot_id=archive.first)) == 3
    with pytest.raises(RefNotFoundError):
        repo.sources("gone")
    with pytest.raises(InvalidInputError):
        repo.sources("main", tag="v1")


def expected_sources(session: Any) -> dict[str, tuple[int, int, int]]:
    """URL to references, bytes and end, chunk by chunk."""
    found: dict[str, tuple[int, int, int]] = {}
    for _, array in zarr.open_group(session.store, mode="r").members(max_depth=None):
        if isinstance(array, zarr.Array):
            refs = session.chunk_refs(array.path)
            for row in range(len(refs)):
                if refs.source[row] >= 0:
                    url = refs.urls[refs.source[row]]
                    count, size, end = found.get(url, (0, 0, 0))
                    offset, length = int(refs.offsets[row]), int(refs.lengths[row])
                    found[url] = count + 1, size + length, max(end, offset + length)
    return found


@settings(max_examples=12)
@given(seed=st.integers(0, 1 << 32))
def test_every_snapshot_of_a_history_with_forks(new_workbench: Any, seed: int) -> None:
    choose = random.Random(seed)
    bench = new_workbench()
    repo = bench.repository
    bench.commit({"zarr.json": bench.GROUP, **{f"{name}/zarr.json": bench.array(12) for name in "ab"}})
    snapshots = [repo.lookup_branch("main")]
    for number in range(choose.randrange(1, 8)):
        repo.create_branch(f"b{number}", choose.choice(snapshots))
        session = repo.writable_session(f"b{number}")
        root = zarr.open_group(session.store, mode="r+")
        for _ in range(choose.randrange(1, 6)):
            name, chunk = choose.choice("ab"), choose.randrange(12)
            if name not in root or choose.random() < 0.15:
                bench.write(session, {name: None, f"{name}/zarr.json": bench.array(12)})
            if choose.random() < 0.2:
                bench.write(session, {f"{name}/c/{chunk}": choose.choice([None, b"1"])})
            else:
                url, offset = f"file:///nowhere/{choose.randrange(3)}.bin", choose.randrange(9)
                session.store.set_virtual_ref(f"{name}/c/{chunk}", url, offset=offset, length=choose.randrange(1, 9))
        snapshots.append(session.commit("work", allow_empty=True))
    for snapshot_id in snapshots:
        rows = repo.sources(snapshot_id=snapshot_id)
        found = {row.url: (row.references, row.bytes, row.end) for row in rows}
        assert found == expected_sources(repo.readonly_session(snapshot_id=snapshot_id))


def test_one_query_whatever_the_number_of_references(archive: Any) -> None:
    seen: list[str] = []
    connection = archive.repository._catalog._connection
    connection.trace_v2(apsw.SQLITE_TRACE_STMT, lambda event: seen.append(event["sql"]))
    archive.repository.sources()
    connection.trace_v2(0, None)
    assert len([sql for sql in seen if "FROM chunk_ref" in sql]) == 1


def test_a_file_referenced_at_two_times_has_two_rows(archive: Any) -> None:
    os.utime(archive.files[0], ns=(10**18, 10**18))
    session = archive.repository.writable_session("main")
    stamps = session.access.stamps(["data/0.bin"])
    session.store.set_virtual_refs_arr("x", (1,), ["data/0.bin"], np.array([0]), np.array([50]), stamps=stamps)
    session.commit("again, half of it")
    rows = [row for row in archive.repository.sources(check=True) if row.path == "data/0.bin"]
    assert [(row.references, row.state) for row in rows] == [(1, "ok"), (1, "changed")]


def test_it_goes_into_a_frame(archive: Any) -> None:
    frame = pd.DataFrame(archive.repository.sources(check=True).to_dict())
    assert len(frame) == 3
    assert frame.references.sum() == 6
    assert frame.bytes.dtype == np.int64
    assert list(frame.state) == ["ok"] * 3
    assert frame.modified_at[0].value == archive.files[0].stat().st_mtime_ns
    nothing = pd.DataFrame(Sources([]).to_dict())
    assert len(nothing) == 0
    assert pd.isna(Sources([SourceInfo("u", "p", None, 1, 1, 1)]).to_dict()["modified_at"][0])


def test_it_prints(archive: Any) -> None:
    table = archive.repository.sources()
    lines = repr(table).splitlines()
    assert lines[0] == "<icelite.Sources> 3 sources, 6 references"
    assert lines[1].split() == ["url", "references", "bytes", "state"]
    assert lines[2].endswith("data/0.bin           2    100  unchecked")
    assert repr(Sources([])) == "<icelite.Sources> 0 sources, 0 references"
    many = Sources(list(table) * 20)
    assert repr(many).splitlines()[-1] == f"... and {60 - SHOWN} more"
    assert f"... and {60 - SHOWN} more" in many._repr_html_()


def test_what_stands_in_a_catalog_cannot_disturb_a_terminal_or_a_page() -> None:
    evil = "file:///a/<script>alert(1)</script>\x1b[2J\n.nc"
    table = Sources([SourceInfo(evil, evil, None, 1, 1, 1)])
    assert "\x1b" not in repr(table)
    assert len(repr(table).splitlines()) == 3
    assert "<script>" not in table._repr_html_()
    assert "\x1b" not in table._repr_html_()


# -- looking at the sources --------------------------------------------------------------------------------------


def test_all_is_well(archive: Any) -> None:
    assert set(states(archive.repository).values()) == {"ok"}
    assert archive.repository.verify_sources() == []


def make_longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"1")


def make_newer(path: Path) -> None:
    os.utime(path, ns=(10**18, 10**18))


def make_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def make_link_out(path: Path) -> None:
    path.rename(path.parent.parent.parent / "outside.bin")
    path.symlink_to(path.parent.parent.parent / "outside.bin")


@pytest.mark.parametrize(
    ("what", "state", "says"),
    [
        (make_longer, "changed", "recorded size 100"),
        (make_newer, "changed", "2001-09-09T01:46:40.000000000 UTC"),
        (Path.unlink, "missing", "does not exist"),
        (make_directory, "unreadable", "is a directory"),
        (make_link_out, "not authorised", "symbolic link"),
    ],
)
def test_what_is_wrong_is_said_of_the_file_and_no_other(archive: Any, what: Any, state: str, says: str) -> None:
    what(archive.files[1])
    assert states(archive.repository) == {"0.bin": "ok", "1.bin": state, "2.bin": "ok"}
    (problem,) = archive.repository.verify_sources()
    assert problem.check == "source_" + state.replace(" ", "_")
    assert problem.subject == archive.files[1].as_uri()
    assert says in problem.detail


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(archive: Any) -> None:
    archive.files[1].chmod(0)
    assert states(archive.repository)["1.bin"] == "unreadable"


def test_references_past_the_end(archive: Any) -> None:
    session = archive.repository.writable_session("main")
    session.store.set_virtual_ref("x/c/2", "data/1.bin", offset=80, length=50)
    session.store.set_virtual_ref("x/c/3", "data/1.bin", offset=0, length=50)
    session.commit("wrong, and nothing recorded")
    (row,) = (row for row in archive.repository.sources(check=True) if row.path == "data/1.bin")
    assert (row.end, row.size, row.state) == (130, None, "unreadable")
    assert "has 100 bytes, and references to it go up to 130" in row.problem


def test_each_file_is_looked_at_once_and_none_is_read(archive: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []
    check = LocalSource.check
    monkeypatch.setattr(LocalSource, "check", lambda self, chunk: looked.append(self._path) or check(self, chunk))
    monkeypatch.setattr(os, "pread", None)
    calls: list[tuple[int, int]] = []
    assert archive.repository.verify_sources(progress=lambda *step: calls.append(step)) == []
    assert sorted(looked) == sorted(map(str, archive.files))
    assert calls == [(1, 3), (2, 3), (3, 3)]


def test_what_is_not_authorised_is_not_looked_at(
    new_archive: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = new_archive(tmp_path / "home", data=tmp_path / "elsewhere")
    stranger = archive.open()
    with monkeypatch.context() as patch:
        patch.setattr(LocalSource, "check", None)
        table = stranger.sources(check=True)
    assert {row.state for row in table} == {"not authorised"}
    assert "authorize_virtual_chunk_access=" in table[0].problem
    assert len(stranger.verify_sources()) == 3
    allow = {(tmp_path / "elsewhere").as_uri(): icelite.LocalFileSystemAccess}
    assert archive.open(authorize_virtual_chunk_access=allow).verify_sources() == []
    assert archive.repository.verify_sources() == []  # it referenced them itself


def test_a_copied_folder_is_checked_by_size(archive: Any, tmp_path: Path) -> None:
    moved = archive.folder.rename(tmp_path / "moved")
    make_newer(moved / "data" / "0.bin")
    repo = Repository.open(moved / "ocean.icelite")
    assert repo.verify_sources() == []
    make_longer(moved / "data" / "0.bin")
    assert states(repo)["0.bin"] == "changed"


def test_a_container_that_another_process_added_meanwhile(archive: Any, tmp_path: Path) -> None:
    """A repository object that was open before knows it all the same."""
    before = archive.open()
    config = icelite.RepositoryConfig()
    config.set_virtual_chunk_container(icelite.VirtualChunkContainer(tmp_path.as_uri(), name="near"))
    other = archive.open(config=config)
    other.save_config()
    (tmp_path / "near.bin").write_bytes(bytes(50))
    session = other.writable_session("main")
    session.store.set_virtual_ref("x/c/0", "vcc://near/near.bin", offset=0, length=50)
    session.commit("through a container")
    assert [row.url for row in before.sources() if row.container] == [(tmp_path / "near.bin").as_uri()]


async def test_for_event_loops(archive: Any) -> None:
    assert await archive.repository.sources_async() == archive.repository.sources()
    assert await archive.repository.verify_sources_async() == []


@pytest.mark.s3
def test_objects_on_s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        endpoint = "http://{}:{}".format(*server.get_host_and_port())
        place = {"region": "us-east-1", "endpoint_url": endpoint, "allow_http": True}
        client = boto3.client(
            "s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b"
        )
        client.create_bucket(Bucket="bucket")
        for number in range(3):
            client.put_object(Bucket="bucket", Key=f"{number}.bin", Body=bytes(100))
        config = icelite.RepositoryConfig()
        config.set_virtual_chunk_container(icelite.VirtualChunkContainer("s3://bucket/", icelite.s3_store(**place)))
        keys = icelite.s3_credentials(access_key_id="a", secret_access_key="b", **place)
        repo = Repository.create(tmp_path / "x.icelite", config, {"s3://bucket/": keys})
        session = repo.writable_session("main")
        zarr.create_array(session.store, name="x", shape=(300,), chunks=(100,), dtype="u1", compressors=None)
        urls = [f"s3://bucket/{number}.bin" for number in range(3)]
        stamps = session.access.stamps(urls)
        session.store.set_virtual_refs_arr("x", (3,), urls, np.zeros(3, int), np.full(3, 100), stamps=stamps)
        session.commit("objects")
        assert set(states(repo).values()) == {"ok"}
        client.put_object(Bucket="bucket", Key="0.bin", Body=bytes(99) + b"1")
        client.delete_object(Bucket="bucket", Key="1.bin")
        assert states(repo) == {"0.bin": "changed", "1.bin": "missing", "2.bin": "ok"}
        stranger = Repository.open(tmp_path / "x.icelite")
        assert set(states(stranger).values()) == {"not authorised"}
    finally:
        server.stop()


def test_a_location_that_no_reader_would_accept(archive: Any) -> None:
    with archive.repository._catalog.write() as txn:
        txn.run("UPDATE location SET path = '../etc/passwd' WHERE path = 'data/1.bin'")
    (problem,) = archive.repository.verify_sources()
    assert problem.check == "source_unreadable"
    assert "'..'" in problem.detail
    with pytest.raises(InvalidInputError) as caught:
        archive.read(archive.open())
    assert caught.value.kind == ErrorKind.INVALID_VIRTUAL_REF
