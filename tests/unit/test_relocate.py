"""Relocation: references follow files that moved, in all of history, one row for each file."""

from __future__ import annotations

import os
import pickle
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

import icelite
from icelite.config import VirtualChunkContainer
from icelite.errors import (
    ErrorKind,
    IceliteError,
    InvalidInputError,
    NotFoundError,
    ReadOnlyError,
    StorageError,
)
from icelite.ops.prefixes import parse_prefix
from icelite.ops.relocate import make_plan
from icelite.repository import Repository
from icelite.storage import StorageConfig, in_memory_storage
from icelite.store.pipeline import enable_fast_reads
from icelite.types import ChunkType, Location, RepoAvailability, RepoStatus, UpdateType
from icelite.virtual.local import descriptors

LOCAL = icelite.LocalFileSystemAccess


@pytest.fixture
def far(new_archive: Any, tmp_path: Path) -> Any:
    """An archive whose files are outside of the catalog's folder: absolute references."""
    return new_archive(tmp_path / "far", data=tmp_path / "old")


def paths(archive: Any) -> list[str]:
    """The virtual locations as stored."""
    return [path for (path,) in archive.rows("SELECT path FROM location WHERE kind = 2 ORDER BY id")]


def stamps(archive: Any) -> list[tuple[Any, ...]]:
    return archive.rows("SELECT size, etag, modified_at FROM location WHERE kind = 2 ORDER BY id")


def containers(archive: Any) -> dict[str, str]:
    return dict(archive.rows("SELECT name, url_prefix FROM container"))


def failure(repository: Repository, *prefixes: str, **options: Any) -> IceliteError:
    """The error of a relocation that changes nothing."""

    def state() -> list[Any]:
        with repository._catalog.read() as txn:
            return txn.rows("SELECT * FROM location") + txn.rows("SELECT * FROM container, operation")

    before = state()
    with pytest.raises(IceliteError) as caught:
        repository.relocate(*prefixes, **options)
    assert state() == before
    return caught.value


# -- relative ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("old", "new"), [("data/", "archive/d/"), ("data", "archive/d"), ("./data", "./archive/d/")])
def test_a_folder_within_the_catalogs_own(archive: Any, old: str, new: str) -> None:
    (archive.folder / "archive").mkdir()
    archive.data.rename(archive.folder / "archive" / "d")
    done = archive.repository.relocate(old, new)
    assert (done.count, done.old_prefix, done.new_prefix, done.containers) == (3, "data/", "archive/d/", ())
    assert paths(archive) == [f"archive/d/{number}.bin" for number in range(3)]
    archive.check(archive.repository)
    archive.check(archive.open())
    assert archive.repository.verify() == archive.repository.verify_sources() == []


def test_all_of_history_and_every_branch(archive: Any) -> None:
    repo = archive.repository
    repo.create_branch("other", archive.first)
    repo.create_tag("v1", archive.first)
    session = repo.writable_session("other")
    session.store.set_virtual_ref("x/c/0", "data/2.bin", offset=50, length=50)
    session.commit("without a stamp: a location of its own")
    archive.data.rename(archive.folder / "moved")
    assert repo.relocate("data", "moved").count == 4
    archive.check(repo, tag="v1")
    assert archive.read(repo, "other")[:50].tolist() == archive.values[250:].tolist()


def test_whole_segments_only(archive: Any) -> None:
    """And of names that look like patterns only what they say."""
    session = archive.repository.writable_session("main")
    for chunk, name in enumerate(["data2/0.bin", "da_a/0.bin", "data", "DATA/0.bin", "data/sub/0.bin"]):
        session.store.set_virtual_ref(f"x/c/{chunk}", name, offset=0, length=50)
    session.commit("neighbours")
    assert archive.repository.relocate("data", "moved").count == 5
    assert sorted(paths(archive)) == sorted(
        [*(f"moved/{n}.bin" for n in range(3)), "data2/0.bin", "da_a/0.bin", "moved", "DATA/0.bin", "moved/sub/0.bin"]
    )
    assert archive.repository.relocate("da_a", "percent%").count == 1


def test_everything_and_back(archive: Any) -> None:
    (archive.folder / "deep").mkdir()
    archive.data.rename(archive.folder / "deep" / "data")
    assert archive.repository.relocate(".", "deep").new_prefix == "deep/"
    archive.check(archive.repository)
    (archive.folder / "deep" / "data").rename(archive.data)
    assert archive.repository.relocate("deep/", "./").count == 3
    assert paths(archive) == ["data/0.bin", "data/1.bin", "data/2.bin"]
    archive.check(archive.repository)


def test_one_file(archive: Any) -> None:
    archive.files[1].rename(archive.folder / "one.bin")
    assert archive.repository.relocate("data/1.bin", "one.bin").count == 1
    assert paths(archive) == ["data/0.bin", "one.bin", "data/2.bin"]
    archive.check(archive.repository)


def test_an_absolute_name_of_a_place_in_the_catalogs_folder_is_relative(archive: Any) -> None:
    archive.data.rename(archive.folder / "moved")
    done = archive.repository.relocate(archive.data.as_uri(), str(archive.folder / "moved"))
    assert (done.old_prefix, done.new_prefix) == ("data/", "moved/")
    archive.check(archive.open())


# -- absolute --------------------------------------------------------------------------------------------------------


def test_absolute_to_absolute(far: Any, tmp_path: Path) -> None:
    far.data.rename(tmp_path / "new")
    old, new = far.data.as_uri() + "/", (tmp_path / "new").as_uri() + "/"
    before = stamps(far)
    done = far.repository.relocate(old, new)
    assert (done.count, done.containers) == (3, (new,))
    assert containers(far) == {new: new}
    assert stamps(far) == before
    assert far.repository.required_access() == {new: "icelite.LocalFileSystemAccess"}
    far.check(far.repository)  # it referenced the files itself
    with pytest.raises(InvalidInputError) as caught:
        far.check(far.open())
    assert caught.value.kind == ErrorKind.UNAUTHORIZED_VIRTUAL_CHUNK_CONTAINER
    far.check(far.open(authorize_virtual_chunk_access={new: LOCAL}))
    assert far.repository.verify() == []


def test_absolute_to_relative_and_back(far: Any, tmp_path: Path) -> None:
    shutil.move(far.data, far.folder / "data")
    assert far.repository.relocate(far.data.as_uri(), "data").count == 3
    assert paths(far) == [f"data/{number}.bin" for number in range(3)]
    far.check(far.open())  # no authorisation
    shutil.move(far.folder / "data", tmp_path / "back")
    done = far.repository.relocate("data", (tmp_path / "back").as_uri())
    new = (tmp_path / "back").as_uri() + "/"
    assert done.containers == (new,)
    far.check(far.open(authorize_virtual_chunk_access={new: LOCAL}))


def test_a_part_of_what_a_container_covers(far: Any, tmp_path: Path) -> None:
    (far.data / "sub").mkdir()
    far.files[1].rename(far.data / "sub" / "1.bin")
    far.repository.relocate(far.files[1].as_uri(), (far.data / "sub" / "1.bin").as_uri())
    assert len(containers(far)) == 1
    shutil.move(far.data / "sub", tmp_path / "new")
    done = far.repository.relocate(str(far.data / "sub"), str(tmp_path / "new"))
    assert done.count == 1
    assert set(containers(far)) == {far.data.as_uri() + "/", (tmp_path / "new").as_uri() + "/"}
    access = dict.fromkeys(containers(far).values(), LOCAL)
    far.check(far.open(authorize_virtual_chunk_access=access))


def test_to_a_bucket_the_size_stays_and_what_copies_do_not_keep_goes(far: Any) -> None:
    done = far.repository.relocate(far.data.as_uri(), "s3://bucket/oisst")
    assert (done.count, done.containers) == (3, ("s3://bucket/oisst/",))
    assert paths(far)[0] == "s3://bucket/oisst/0.bin"
    assert stamps(far) == [(100, None, None)] * 3
    assert list(far.repository.required_access()) == ["s3://bucket/oisst/"]
    assert far.repository.relocate("s3://bucket", "s3://other/x").count == 3
    assert paths(far)[0] == "s3://other/x/oisst/0.bin"
    assert containers(far) == {"s3://other/x/oisst/": "s3://other/x/oisst/"}
    assert far.repository.verify() == []


def test_into_itself_and_out_again(far: Any) -> None:
    """Prefixes of containers are unique: the order in which they change matters."""
    old = far.data.as_uri()
    session = far.repository.writable_session("main")
    deep = far.data / "sub" / "sub"
    deep.mkdir(parents=True)
    config = icelite.RepositoryConfig()
    for prefix in (f"{old}/sub/", f"{old}/sub/sub/"):
        config.set_virtual_chunk_container(VirtualChunkContainer(prefix))
    repo = far.open(config=config)
    repo.save_config()
    session = repo.writable_session("main")
    session.store.set_virtual_ref("x/c/0", deep.as_uri() + "/9.bin", offset=0, length=50)
    session.commit("deep")
    before = containers(far), paths(far)
    assert repo.relocate(old, f"{old}/sub").count == 4
    assert set(containers(far)) == {f"{old}/sub/", f"{old}/sub/sub/", f"{old}/sub/sub/sub/"}
    assert repo.relocate(f"{old}/sub", old).count == 4
    assert (containers(far), paths(far)) == before
    assert repo.verify() == []


def test_where_another_container_is_already(far: Any, tmp_path: Path) -> None:
    """The two prefixes cannot be the same row; references are in the one that is there."""
    new = (tmp_path / "new").as_uri() + "/"
    config = icelite.RepositoryConfig()
    config.set_virtual_chunk_container(VirtualChunkContainer(new, name="taken"))
    repo = far.open(config=config)
    repo.save_config()
    far.data.rename(tmp_path / "new")
    assert repo.relocate(str(far.data), str(tmp_path / "new")).count == 3
    assert containers(far)["taken"] == new
    far.check(far.open(authorize_virtual_chunk_access={new: LOCAL}))


# -- containers ----------------------------------------------------------------------------------------------------


@pytest.fixture
def contained(new_archive: Any, tmp_path: Path) -> Any:
    """References through a container with a name."""
    config = icelite.RepositoryConfig()
    config.set_virtual_chunk_container(VirtualChunkContainer((tmp_path / "old").as_uri(), name="archive"))

    class Contained(new_archive):  # type: ignore[misc]
        def write(self, session: Any, urls: list[str] | None = None) -> None:
            super().write(session, [f"vcc://archive/{path.name}" for path in self.files])

    return Contained(tmp_path / "home", data=tmp_path / "old", config=config)


def test_a_whole_container_keeps_its_name(contained: Any, tmp_path: Path) -> None:
    new = (tmp_path / "new").as_uri() + "/"
    contained.data.rename(tmp_path / "new")
    done = contained.repository.relocate("vcc://archive/", new)
    assert (done.count, done.containers) == (3, (new,))
    assert containers(contained) == {"archive": new}
    assert paths(contained) == ["0.bin", "1.bin", "2.bin"]
    contained.check(contained.repository)  # which declared the container in this process
    contained.check(pickle.loads(pickle.dumps(contained.repository)))
    contained.check(contained.repository.reopen())
    contained.check(contained.open(authorize_virtual_chunk_access={new: LOCAL}))
    assert contained.repository.config.get_virtual_chunk_container(new) is not None
    contained.repository.save_config()
    assert containers(contained) == {"archive": new}


@pytest.mark.parametrize("below", ["", "a/", "a/b/"])
def test_an_absolute_prefix_moves_the_containers_below_it(contained: Any, tmp_path: Path, below: str) -> None:
    (tmp_path / "new" / below).mkdir(parents=True)
    (contained.data).rename(tmp_path / "new" / below / "old")
    done = contained.repository.relocate(tmp_path.as_uri(), (tmp_path / "new" / below).as_uri())
    assert done.count == 3
    new = (tmp_path / "new" / below / "old").as_uri() + "/"
    assert containers(contained) == {"archive": new}
    contained.check(contained.open(authorize_virtual_chunk_access={new: LOCAL}))


def test_to_a_bucket_with_its_container(contained: Any) -> None:
    assert contained.repository.relocate("vcc://archive", "s3://bucket/oisst/").count == 3
    assert containers(contained) == {"archive": "s3://bucket/oisst/"}
    assert stamps(contained) == [(100, None, None)] * 3
    assert contained.open().required_access() == {"s3://bucket/oisst/": "icelite.s3_credentials(from_env=True)"}


def test_within_out_of_and_into_a_container(contained: Any) -> None:
    repo = contained.repository
    (contained.data / "sub").mkdir()
    contained.files[1].rename(contained.data / "sub" / "one.bin")
    assert repo.relocate("vcc://archive/1.bin", "vcc://archive/sub/one.bin").count == 1
    assert paths(contained) == ["0.bin", "sub/one.bin", "2.bin"]
    contained.check(repo)
    shutil.move(contained.data / "sub", contained.folder / "sub")
    assert repo.relocate("vcc://archive/sub", "sub").count == 1
    assert contained.rows("SELECT path, container_id FROM location WHERE id = 3") == [("sub/one.bin", None)]
    contained.check(repo)
    shutil.move(contained.folder / "sub", contained.data / "back")
    assert repo.relocate("sub", "vcc://archive/back").count == 1
    contained.check(repo)
    (contained.data / "back").rename(contained.data / "again")
    assert repo.relocate((contained.data / "back").as_uri(), (contained.data / "again").as_uri()).count == 1
    assert contained.rows("SELECT path, container_id FROM location WHERE id = 3") == [("again/one.bin", 1)]
    contained.check(repo)
    assert repo.verify() == []


# -- what does not work ------------------------------------------------------------------------------------------------


def test_nothing_is_there(archive: Any, far: Any) -> None:
    error = failure(archive.repository, "dat", "moved")
    assert isinstance(error, NotFoundError)
    assert error.kind == ErrorKind.LOCATION_NOT_FOUND
    assert "no reference is below 'dat/'" in str(error)
    assert "'data/'" in str(error)
    assert far.data.as_uri() + "/" in str(failure(far.repository, "data", "moved"))


@pytest.mark.parametrize(
    "prefix",
    [
        *("../data", "data/../x", "file:///data/%2e%2e/x", "s3://bucket/../x", "data\0", "data\\x"),
        *("", "ftp://example.org/", "s3://", "file://host/data", "vcc:///x", 7),
    ],
)
def test_prefixes_that_are_none(archive: Any, prefix: Any) -> None:
    for pair in (("data", prefix), (prefix, "data")):
        error = failure(archive.repository, *pair)
        assert error.kind == ErrorKind.INVALID_VIRTUAL_REF, pair


def test_a_container_that_is_not_there(archive: Any) -> None:
    error = failure(archive.repository, "data", "vcc://archive/")
    assert error.kind == ErrorKind.NO_CONTAINER_FOR_VIRTUAL_CHUNK
    assert "'archive'" in str(error)


def test_a_catalog_in_memory_has_no_relative_references(tmp_path: Path) -> None:
    repo = Repository.create(in_memory_storage())
    session = repo.writable_session("main")
    zarr.create_array(session.store, name="x", shape=(1,), chunks=(1,), dtype="u1")
    session.store.set_virtual_ref("x/c/0", "file:///old/x.bin", offset=0, length=1)
    session.commit("x")
    assert failure(repo, "file:///old/", "new/").kind == ErrorKind.INVALID_VIRTUAL_REF
    assert repo.relocate("file:///old/", "s3://bucket/new").count == 1


def test_a_name_that_its_new_place_cannot_have(archive: Any) -> None:
    """What an object may be called, a file may not; all or nothing."""
    config = icelite.RepositoryConfig()
    config.set_virtual_chunk_container(VirtualChunkContainer("s3://bucket/"))
    repo = archive.open(config=config)
    session = repo.writable_session("main")
    for chunk, key in enumerate(["plain.bin", "back\\slash.bin"]):
        session.store.set_virtual_ref(f"x/c/{chunk}", f"s3://bucket/{key}", offset=0, length=50)
    session.commit("objects")
    error = failure(repo, "s3://bucket/", "data")
    assert error.kind == ErrorKind.INVALID_VIRTUAL_REF
    assert "backslash" in str(error)


def test_a_read_only_repository(archive: Any, tmp_path: Path) -> None:
    archive.repository.set_status(RepoStatus(RepoAvailability.read_only))
    error = failure(archive.repository, "data", "moved")
    assert isinstance(error, ReadOnlyError)
    assert error.kind == ErrorKind.READ_ONLY_REPOSITORY
    assert archive.repository.relocate("data", "moved", dry_run=True).count == 3


# -- looking first -----------------------------------------------------------------------------------------------------


def test_a_dry_run_says_what_would_be_done(far: Any, tmp_path: Path) -> None:
    new = (tmp_path / "new").as_uri() + "/"
    before = paths(far), containers(far), len(list(far.repository.ops_log()))
    plan = far.repository.relocate(str(far.data), new, dry_run=True)
    assert plan.examples[0] == (far.files[0].as_uri(), new + "0.bin")
    assert (paths(far), containers(far), len(list(far.repository.ops_log()))) == before
    far.check(far.repository)
    assert far.repository.relocate(str(far.data), new) == plan


def test_checked_files_are_there_with_their_size(archive: Any) -> None:
    shutil.copytree(archive.data, archive.folder / "copy")
    (archive.folder / "copy" / "1.bin").unlink()
    error = failure(archive.repository, "data", "copy", check=True)
    assert isinstance(error, StorageError)
    assert "1 of 3 sources" in str(error)
    assert "copy/1.bin" in str(error)
    (archive.folder / "copy" / "1.bin").write_bytes(b"another size")
    assert failure(archive.repository, "data", "copy", check=True).kind == ErrorKind.VIRTUAL_CHUNK_MODIFIED
    assert archive.repository.relocate("data", "copy").count == 3  # unchecked, it goes through


def test_checked_copies_get_a_new_time(archive: Any) -> None:
    new = archive.folder / "copy"
    new.mkdir()
    for path in archive.files:
        (new / path.name).write_bytes(path.read_bytes())
        os.utime(new / path.name, ns=(10**18, 10**18))
    shutil.rmtree(archive.data)
    archive.repository.relocate("data", "copy", check=True)
    assert stamps(archive) == [(100, None, 10**18)] * 3
    archive.check(archive.open())


def test_a_check_needs_the_authorisation_for_the_new_place(far: Any, tmp_path: Path) -> None:
    shutil.copytree(far.data, tmp_path / "new")
    new = (tmp_path / "new").as_uri()
    stranger = far.open()
    error = failure(stranger, str(far.data), new, check=True)
    assert isinstance(error, InvalidInputError)
    assert error.kind == ErrorKind.UNAUTHORIZED_VIRTUAL_CHUNK_CONTAINER
    allowed = far.open(authorize_virtual_chunk_access={new: LOCAL})
    assert allowed.relocate(str(far.data), new, check=True).count == 3
    far.check(allowed)


# -- what else sees it -----------------------------------------------------------------------------------------------


def test_it_is_in_the_log(archive: Any) -> None:
    archive.repository.relocate("data", "moved")
    update = next(iter(archive.repository.ops_log()))
    assert update.kind == UpdateType.LocationsRelocated("data/", "moved/")
    assert archive.rows("SELECT detail ->> '$.locations' FROM operation ORDER BY id DESC LIMIT 1") == [(3,)]


def test_nothing_to_do_is_not_in_the_log(archive: Any) -> None:
    before = len(list(archive.repository.ops_log()))
    assert archive.repository.relocate("data", "data/").count == 0
    assert len(list(archive.repository.ops_log())) == before


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("same_process", [True, False])
def test_open_sessions_find_the_files(archive: Any, same_process: bool, fast: bool) -> None:
    """A source that they have open goes on being read; once it is closed it is looked for in its new place."""
    with enable_fast_reads() if fast else nullcontext():
        find_the_files(archive, same_process)


def find_the_files(archive: Any, same_process: bool) -> None:
    repo = archive.repository
    session = repo.readonly_session("main")
    array = zarr.open_array(session.store, path="x", mode="r")
    copy = pickle.loads(pickle.dumps(session))
    np.testing.assert_array_equal(array[:], archive.values)
    other = repo if same_process else archive.open()
    archive.data.rename(archive.folder / "moved")
    other.relocate("data", "moved")
    np.testing.assert_array_equal(array[:], archive.values)
    descriptors.clear()
    np.testing.assert_array_equal(array[:], archive.values)
    np.testing.assert_array_equal(zarr.open_array(copy.store, path="x", mode="r")[:], archive.values)


@pytest.mark.parametrize("same_process", [True, False])
def test_open_sessions_learn_of_containers(contained: Any, tmp_path: Path, same_process: bool) -> None:
    access = {tmp_path.as_uri(): LOCAL}
    reader = contained.open(authorize_virtual_chunk_access=access)
    session = reader.readonly_session("main")
    array = zarr.open_array(session.store, path="x", mode="r")
    np.testing.assert_array_equal(array[:], contained.values)
    contained.data.rename(tmp_path / "new")
    (reader if same_process else contained.open()).relocate("vcc://archive/", (tmp_path / "new").as_uri())
    np.testing.assert_array_equal(array[:], contained.values)
    descriptors.clear()
    np.testing.assert_array_equal(array[:], contained.values)
    contained.check(reader)


def test_a_file_that_is_gone_is_still_an_error(archive: Any) -> None:
    session = archive.repository.readonly_session("main")
    array = zarr.open_array(session.store, path="x", mode="r")
    np.testing.assert_array_equal(array[:], archive.values)
    shutil.rmtree(archive.data)
    with pytest.raises(StorageError, match=r"data/0\.bin.*does not exist"):
        array[:]
    archive.repository.relocate("data", "moved")
    with pytest.raises(StorageError, match=r"moved/0\.bin.*does not exist"):
        array[:]


def test_what_a_session_has_staged_stays(archive: Any) -> None:
    """It said where its files are, before or after; only what is committed moves."""
    session = archive.repository.writable_session("main")
    archive.write(session)
    archive.repository.relocate("data", "moved")
    session.commit("the old place")
    assert sorted(set(paths(archive))) == sorted(
        [*(f"data/{n}.bin" for n in range(3)), *(f"moved/{n}.bin" for n in range(3))]
    )
    archive.check(archive.repository)


def test_a_writable_session_commits_on_top(archive: Any) -> None:
    session = archive.repository.writable_session("main")
    archive.data.rename(archive.folder / "moved")
    archive.repository.relocate("data", "moved")
    array = zarr.open_array(session.store, path="x", mode="r+")
    array[:50] = 7
    assert array[50:].tolist() == archive.values[50:].tolist()
    session.commit("one chunk")
    assert paths(archive) == [f"moved/{n}.bin" for n in range(3)]


def test_two_locations_that_become_the_same(archive: Any) -> None:
    """Two names of one file become one: both rows stay, and mean the same."""
    session = archive.repository.writable_session("main")
    (archive.folder / "link").symlink_to(archive.data)
    archive.write(session, [f"link/{number}.bin" for number in range(3)])
    session.commit("through a link")
    assert archive.repository.relocate("link", "data").count == 3
    assert len(set(paths(archive))) == 3
    archive.check(archive.repository)
    archive.check(archive.repository, snapshot_id=archive.first)
    assert archive.repository.verify() == []
    assert archive.repository.chunk_storage_stats().virtual_bytes == 300
    again = archive.repository.writable_session("main")
    archive.write(again)
    again.commit("and again")
    assert len(paths(archive)) == 6


def test_one_row_for_each_file(new_archive: Any, memory: Path) -> None:
    """A thousand files, a million references or six thousand: as many rows are written."""
    archive = new_archive(memory, 100)
    connection = archive.repository._catalog._connection
    before = connection.total_changes()
    assert archive.repository.relocate("data", "moved").count == 100
    assert connection.total_changes() - before == 100 + 2  # and the log, with its seal


async def test_for_event_loops(archive: Any) -> None:
    assert (await archive.repository.relocate_async("data", "moved", dry_run=True)).count == 3


# -- there and back, for every form ------------------------------------------------------------------------------------

HOME = "/archive/home"
STORAGE = StorageConfig(Path(f"{HOME}/ocean.icelite"), f"{HOME}/ocean.icelite")
KNOWN = {
    "named": VirtualChunkContainer("file:///somewhere/named/", name="named"),
    "bucket": VirtualChunkContainer("s3://bucket/named/", name="bucket"),
    "file:///": VirtualChunkContainer("file:///"),
    "s3://": VirtualChunkContainer("s3://", name="s3://"),
}
segments = st.lists(st.text("ab %#~é_", min_size=1, max_size=3), min_size=1, max_size=3).map("/".join)
prefixes = st.one_of(
    segments,
    st.just("./"),
    segments.map("file:///other/{}".format),
    segments.map("s3://bucket/other/{}".format),
    segments.map("https://example.org/{}".format),
    segments.map("vcc://named/{}".format),
)


@given(old=prefixes, new=prefixes, rests=st.lists(segments, min_size=1, max_size=4, unique=True))
def test_there_and_back(old: str, new: str, rests: list[str]) -> None:
    """Whatever the forms: every location is below the new prefix, with its size; and the way back leads home."""
    first, second = parse_prefix(old, STORAGE), parse_prefix(new, STORAGE)
    like = Location(ChunkType.virtual, "", None, 100, None, 10**18)
    before = {number: first.put(rest, like) for number, rest in enumerate(rests, start=2)}
    there = make_plan(before, dict(KNOWN), first, second, STORAGE)
    after = {**before, **there.after}
    for number, rest in enumerate(rests, start=2):
        assert after[number].size == 100
        assert after[number].path.endswith(rest)
        assert (after[number].modified_at is None) == (
            "://" in there.urls.get(number, ("", "file://"))[1]
            and not there.urls.get(number, ("", "file://"))[1].startswith("file://")
        ) or not there.urls[number][0].startswith("file://")
    back = make_plan(after, there.containers(dict(KNOWN)), second, first, STORAGE)
    home = {**after, **back.after}
    assert [(place.path, place.container) for place in home.values()] == [
        (place.path, place.container) for place in before.values()
    ]
