"""icelite.virtual on local files: what the gates let through, what a changed source gives, how descriptors are kept."""

from __future__ import annotations

import ast
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

from icelite.config import VirtualChunkContainer
from icelite.credentials import AnyCredential, LocalFileSystemAccess, s3_credentials
from icelite.errors import IceliteError, InvalidInputError, StorageError
from icelite.storage import RemoteAddress, StorageConfig, s3_store
from icelite.types import ChunkType, Location, SourceStamp
from icelite.virtual import VirtualAccess, local
from icelite.virtual.local import Descriptor, DescriptorCache
from icelite.virtual.s3 import S3Object
from icelite.virtual.web import WebObject

DATA = bytes(range(256)) * 4
CHUNK = "temperature/c/0/1"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The catalog's directory, with one source in it."""
    home = tmp_path.resolve() / "home"
    home.mkdir()
    (home / "ocean.icelite").write_bytes(b"SQLite format 3\0")
    (home / "x.nc").write_bytes(DATA)
    return home


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A directory beside the catalog's, with one source in it."""
    elsewhere = tmp_path.resolve() / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "y.nc").write_bytes(DATA)
    return elsewhere


def make(
    directory: Path | None,
    *prefixes: str,
    access: Mapping[str, AnyCredential | None] | None = None,
    declared: Mapping[str, VirtualChunkContainer] | None = None,
    at_home: bool = True,
) -> VirtualAccess:
    """The access of a repository whose catalog stores containers for these prefixes."""
    return VirtualAccess(
        directory=directory,
        at_home=at_home,
        containers={prefix: VirtualChunkContainer(prefix) for prefix in prefixes},
        declared=declared or {},
        access=access or {},
        catalog=None if directory is None else directory / "ocean.icelite",
    )


def virtual(path: str, *, container: str | None = None, stamp: SourceStamp | None = None) -> Location:
    """A location as a stranger's catalog may hold it."""
    stamp = stamp or SourceStamp()
    return Location(ChunkType.virtual, path, container, stamp.size, stamp.etag, stamp.modified_at)


def refused(access: VirtualAccess, location: Location) -> IceliteError:
    with pytest.raises(IceliteError) as caught:
        access.open(location, CHUNK).read(0, 1, CHUNK)
    return caught.value


# ---- relative references


def test_a_relative_reference_needs_no_authorisation(home: Path) -> None:
    access = make(home)
    location = access.locate(f"file://{home}/x.nc", stamp=access.stamp("x.nc"))
    assert location.path == "x.nc"
    assert location.size == len(DATA)
    assert access.open(location, CHUNK).read(10, 20, CHUNK) == DATA[10:30]
    assert access.url(location) == f"file://{home}/x.nc"
    assert access.is_local(location)
    assert access.required([location]) == {}
    assert access.new_containers == {}


async def test_reading_asynchronously_gives_the_same(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make(home).open(virtual("x.nc"), CHUNK)
    assert await source.read_async(1, 5, CHUNK) == DATA[1:6]
    monkeypatch.setattr(local, "_BLOCKING_BYTES", 0)
    assert await source.read_async(1, 5, CHUNK) == DATA[1:6]


@pytest.mark.parametrize("url", ["x.nc", "./x.nc", "{home}/x.nc", "file://{home}/x.nc", "file://{home}/sub/link.nc"])
def test_every_spelling_of_a_file_beside_the_catalog_becomes_relative(home: Path, url: str) -> None:
    (home / "sub").mkdir()
    (home / "sub" / "link.nc").symlink_to(home / "x.nc")
    location = make(home).locate(url.format(home=home))
    assert location.path == ("sub/link.nc" if "link" in url else "x.nc")
    assert make(home).open(location, CHUNK).read(0, 3, CHUNK) == DATA[:3]


def test_a_catalog_reached_through_a_link_is_the_same(home: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(home)
    access = make(tmp_path / "link")
    assert access.locate(f"file://{tmp_path.resolve()}/link/x.nc").path == "x.nc"
    assert access.locate(f"file://{home}/x.nc").path == "x.nc"


def test_a_moved_folder_still_reads(home: Path) -> None:
    location = make(home).locate("x.nc", stamp=make(home).stamp("x.nc"))
    moved = home.rename(home.parent / "moved")
    assert make(moved, at_home=False).open(location, CHUNK).read(0, 3, CHUNK) == DATA[:3]


def test_the_time_counts_at_home_and_only_the_size_in_a_copy(home: Path) -> None:
    location = make(home).locate("x.nc", stamp=make(home).stamp("x.nc"))
    os.utime(home / "x.nc", (1, 1))
    assert refused(make(home), location).kind == "virtual-chunk-modified"
    assert make(home, at_home=False).open(location, CHUNK).read(0, 3, CHUNK) == DATA[:3]
    (home / "x.nc").write_bytes(DATA + b"!")
    assert refused(make(home, at_home=False), location).kind == "virtual-chunk-modified"


@pytest.mark.parametrize(
    "path",
    [
        "../elsewhere/y.nc",
        "sub/../../elsewhere/y.nc",
        "%2e%2e/elsewhere/y.nc",
        "%2E./elsewhere/y.nc",
        "./x.nc",
        "/etc/passwd",
        "x.nc\0",
        "x%00.nc",
        "..\\elsewhere\\y.nc",
        "..%5celsewhere%5cy.nc",
        "",
        "\ud800.nc",
    ],
)
def test_a_relative_reference_cannot_leave(home: Path, elsewhere: Path, path: str) -> None:
    (home / "sub").mkdir()
    everything = make(home, "file:///", access={"file:///": LocalFileSystemAccess})
    assert refused(everything, virtual(path)).kind == "invalid-virtual-ref"


@pytest.mark.parametrize("link", ["file", "directory"])
def test_a_link_out_of_the_directory_is_refused(home: Path, elsewhere: Path, link: str) -> None:
    (home / "out").symlink_to(elsewhere / "y.nc" if link == "file" else elsewhere)
    error = refused(make(home), virtual("out" if link == "file" else "out/y.nc"))
    assert error.kind == "unauthorized-virtual-chunk-container"
    assert str(elsewhere / "y.nc") in str(error)
    written = make(home)
    assert written.locate(f"file://{home}/{'out' if link == 'file' else 'out/y.nc'}").path.startswith("file://")


def test_a_catalog_in_memory_has_no_relative_references(home: Path) -> None:
    access = make(None)
    assert refused(access, virtual("x.nc")).kind == "invalid-virtual-ref"
    with pytest.raises(InvalidInputError):
        access.locate("x.nc")
    location = access.locate(f"file://{home}/x.nc")
    assert location.path == f"file://{home}/x.nc"
    access.allow(location)
    assert access.open(location, CHUNK).read(0, 3, CHUNK) == DATA[:3]


@pytest.mark.parametrize("name", ["ocean.icelite", "ocean.icelite-journal", "other.icelite", "hard.nc"])
def test_a_catalog_is_never_opened_as_a_source(home: Path, name: str) -> None:
    if not (home / name).exists():
        os.link(home / "ocean.icelite", home / name)
    assert "is a catalog" in str(refused(make(home), virtual(name)))
    with pytest.raises(InvalidInputError):
        make(home).locate(name)


# ---- absolute local references


def test_a_local_file_elsewhere_declares_a_container(home: Path, elsewhere: Path) -> None:
    access = make(home)
    location = access.locate(f"file://{elsewhere}/y.nc", stamp=access.stamp(f"file://{elsewhere}/y.nc"))
    assert location.path == f"file://{elsewhere}/y.nc"
    assert list(access.new_containers) == [f"file://{elsewhere}/"]
    access.locate(f"{elsewhere}/z.nc")
    assert len(access.new_containers) == 1
    access.allow(location)
    assert access.open(location, CHUNK).read(0, 3, CHUNK) == DATA[:3]
    assert refused(access, virtual(f"file://{elsewhere}/z.nc")).kind == "unauthorized-virtual-chunk-container"


def test_another_process_must_authorise(home: Path, elsewhere: Path) -> None:
    prefix, location = f"file://{elsewhere}/", virtual(f"file://{elsewhere}/y.nc")
    error = refused(make(home, prefix), location)
    assert error.kind == "unauthorized-virtual-chunk-container"
    line = f'authorize_virtual_chunk_access={{"{prefix}": icelite.LocalFileSystemAccess}}'
    assert f'icelite.Repository.open("{home}/ocean.icelite", {line})' in str(error)
    assert CHUNK in str(error)
    assert "xarray.open_dataset" in str(error)
    access = make(home, prefix, access={prefix: LocalFileSystemAccess})
    assert access.open(location, CHUNK).read(0, 3, CHUNK) == DATA[:3]
    assert access.required([location, location]) == {prefix: "icelite.LocalFileSystemAccess"}


@pytest.mark.parametrize("authorised", ["file:///", "file://{elsewhere}", "file://{elsewhere}/y.nc", "file://"])
def test_any_covering_prefix_authorises(home: Path, elsewhere: Path, authorised: str) -> None:
    location = virtual(f"file://{elsewhere}/y.nc")
    grant = authorised.format(elsewhere=elsewhere)
    for credential in (LocalFileSystemAccess, None):
        access = make(home, f"file://{elsewhere}/", access={grant: credential})
        assert access.open(location, CHUNK).read(0, 3, CHUNK) == DATA[:3]


def test_a_prefix_covers_whole_segments_only(home: Path, elsewhere: Path) -> None:
    shorter = f"file://{str(elsewhere)[:-1]}"
    location = virtual(f"file://{elsewhere}/y.nc")
    error = refused(make(home, "file:///", access={shorter: LocalFileSystemAccess}), location)
    assert error.kind == "unauthorized-virtual-chunk-container"
    assert refused(make(home, shorter), location).kind == "no-container-for-virtual-chunk"


def test_authorised_without_a_container_is_refused(home: Path, elsewhere: Path) -> None:
    location = virtual(f"file://{elsewhere}/y.nc")
    error = refused(make(home, access={"file:///": LocalFileSystemAccess}), location)
    assert error.kind == "no-container-for-virtual-chunk"
    assert f'icelite.VirtualChunkContainer("file://{elsewhere}/")' in str(error)


def test_a_container_that_this_process_declares_authorises_its_files(home: Path, elsewhere: Path) -> None:
    declared = {f"file://{elsewhere}/": VirtualChunkContainer(f"file://{elsewhere}/")}
    access = make(home, declared=declared)
    assert access.open(virtual(f"file://{elsewhere}/y.nc"), CHUNK).read(0, 3, CHUNK) == DATA[:3]


def test_a_link_out_of_what_was_authorised_is_refused(home: Path, elsewhere: Path, tmp_path: Path) -> None:
    secret = tmp_path.resolve() / "secret"
    secret.mkdir()
    (secret / "key").write_bytes(DATA)
    (elsewhere / "link").symlink_to(secret / "key")
    prefix, location = f"file://{elsewhere}/", virtual(f"file://{elsewhere}/link")
    error = refused(make(home, prefix, access={prefix: LocalFileSystemAccess}), location)
    assert error.kind == "unauthorized-virtual-chunk-container"
    assert f'"file://{secret}/"' in str(error)
    both = {prefix: LocalFileSystemAccess, f"file://{secret}/": LocalFileSystemAccess}
    assert make(home, prefix, access=both).open(location, CHUNK).read(0, 3, CHUNK) == DATA[:3]


@pytest.mark.parametrize(
    "url",
    [
        "file://{elsewhere}/../secret/key",
        "file://{elsewhere}/%2e%2e/secret/key",
        "file://host/{elsewhere}/y.nc",
        "file://{elsewhere}/",
        "file://{elsewhere}/y.nc\0",
        "file://",
        "FILE://{elsewhere}/y.nc",
        "http://localhost/",
        "https://",
        "https://host",
        "https://user@host/x",
        "https://host\\@evil/x",
        "https://host/a/../x",
        "https://host/a/%2e%2E/x",
        "https://host/a\nb",
        "gs://bucket",
        "az://bucket/../x",
        "simplecache::https://host/x",
        "ssh://host/x",
        "reference://x",
        "s3a://bucket/x",
        "vcc://name",
        "vcc:///x",
        "s3://bucket",
        "s3:///key",
        "s3://bucket/",
        "s3://b ucket/key",
        "s3://arn:aws:s3:eu-west-1:1:accesspoint/x/key",
        "s3://bucket/a/../b",
        "s3://bucket/a/%2e%2e/b",
        "s3://bucket/a\0",
    ],
)
def test_urls_that_might_mean_another_place_are_refused_on_both_sides(home: Path, elsewhere: Path, url: str) -> None:
    url = url.format(elsewhere=elsewhere)
    everything = {
        "file:///": LocalFileSystemAccess,
        "s3://": s3_credentials(anonymous=True),
        "gs://": None,
        "az://": None,
    }
    access = make(home, *everything, access=everything)
    assert refused(access, virtual(url)).kind == "invalid-virtual-ref"
    with pytest.raises(InvalidInputError) as caught:
        access.locate(url, validate_container=False)
    assert caught.value.kind == "invalid-virtual-ref"


def test_an_absolute_path_does_not_open_as_a_relative_location(home: Path) -> None:
    assert refused(make(home), virtual(str(home / "x.nc"))).kind == "invalid-virtual-ref"


def test_urls_are_verbatim_and_percent_encoding_is_a_second_guess(home: Path, elsewhere: Path) -> None:
    prefix = f"file://{elsewhere}/"
    access = make(home, prefix, access={prefix: LocalFileSystemAccess})
    (elsewhere / "a b#c?.nc").write_bytes(b"decoded")
    assert access.open(virtual(f"{prefix}a%20b%23c%3F.nc"), CHUNK).read(0, 7, CHUNK) == b"decoded"
    assert access.open(virtual(f"{prefix}a b#c?.nc"), CHUNK).read(0, 7, CHUNK) == b"decoded"
    (elsewhere / "a%20b.nc").write_bytes(b"written")
    (elsewhere / "a b.nc").write_bytes(b"decoded")
    assert access.open(virtual(f"{prefix}a%20b.nc"), CHUNK).read(0, 7, CHUNK) == b"written"
    (home / "100%.nc").write_bytes(b"percent")
    assert access.locate(f"file://{home}/100%.nc").path == "100%.nc"
    assert access.open(virtual("100%.nc"), CHUNK).read(0, 7, CHUNK) == b"percent"


# ---- named containers, and those nobody named


def test_a_named_container_stands_for_its_prefix(home: Path, elsewhere: Path) -> None:
    named = VirtualChunkContainer(f"file://{elsewhere}", None, "archive")
    access = make(home, declared={named.url_prefix: named})
    location = access.locate("vcc://archive/y.nc", stamp=access.stamp("vcc://archive/y.nc"))
    assert (location.container, location.path, location.size) == ("archive", "y.nc", len(DATA))
    assert access.url(location) == f"file://{elsewhere}/y.nc"
    assert access.is_local(location)
    assert access.open(location, CHUNK).read(0, 3, CHUNK) == DATA[:3]
    assert access.required([location]) == {f"file://{elsewhere}/": "icelite.LocalFileSystemAccess"}
    assert refused(access, virtual("../home/x.nc", container="archive")).kind == "invalid-virtual-ref"


def test_an_unknown_container_is_named_with_the_known_ones(home: Path) -> None:
    access = make(home, "s3://known/")
    for attempt in (lambda: access.locate("vcc://archive/y.nc"), lambda: access.url(virtual("y", container="archive"))):
        with pytest.raises(InvalidInputError) as caught:
            attempt()
        assert caught.value.kind == "no-container-for-virtual-chunk"
        assert "archive" in str(caught.value)
        assert "s3://known/" in str(caught.value)


def test_an_object_needs_a_container_unless_told_otherwise(home: Path) -> None:
    with pytest.raises(InvalidInputError) as caught:
        make(home, "s3://bucket/pre").locate("s3://bucket/prefix2/x")
    assert caught.value.kind == "no-container-for-virtual-chunk"
    assert make(home).locate("s3://bucket/a b#c%20.nc", validate_container=False).path == "s3://bucket/a b#c%20.nc"
    assert make(home, "s3://bucket/pre").locate("s3://bucket/pre/x").path == "s3://bucket/pre/x"


def test_what_the_error_proposes_is_narrow_and_safe_to_paste(home: Path) -> None:
    hostile = "s3://bucket/\"}) or __import__('os').system('boom') #/x\u202e"
    access = make(home, "s3://")
    location = virtual(hostile)
    assert access.required([location]) == {"s3://bucket/": "icelite.s3_credentials(from_env=True)"}
    assert '{"s3://bucket/": icelite.s3_credentials(from_env=True)}' in str(refused(access, location))
    message = str(refused(make(home, hostile), location))
    line = message[message.index("icelite.Repository.open(") : message.index(" (xarray")]
    call = ast.parse(line, mode="eval").body
    assert isinstance(call, ast.Call)
    assert isinstance(grant := call.keywords[0].value, ast.Dict)
    assert ast.literal_eval(grant.keys[0] or "") == hostile + "/"
    assert "\u202e" not in line


# ---- sources that are not as they were


@pytest.mark.parametrize("kind", ["directory", "fifo", "device", "missing", "secret", "below a file"])
def test_what_is_no_readable_regular_file_is_refused_at_once(
    home: Path, elsewhere: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deny(path: str, flags: int) -> int:
        raise PermissionError(13, "Permission denied")

    path = elsewhere / "odd"
    prefix = f"file://{elsewhere}/"
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path, prefix = Path("/dev/zero"), "file:///dev/"
    elif kind == "secret":
        path.write_bytes(DATA)
        monkeypatch.setattr(os, "open", deny)  # for root every file is readable
    elif kind == "below a file":
        path = elsewhere / "y.nc" / "odd"
    error = refused(make(home, prefix, access={prefix: LocalFileSystemAccess}), virtual(f"file://{path}"))
    assert error.kind == "virtual-chunk-fetch"
    assert CHUNK in str(error)
    assert str(path) in str(error)


def test_a_range_past_the_end(home: Path) -> None:
    source = make(home).open(virtual("x.nc"), CHUNK)
    assert source.read(len(DATA) - 1, 1, CHUNK) == DATA[-1:]
    for offset, length, kind in [
        (len(DATA) - 1, 2, "invalid-object-size"),
        (0, 2**62, "invalid-object-size"),
        (len(DATA), 1, "virtual-chunk-fetch"),
        (-1, 1, "virtual-chunk-fetch"),
        (2**62, 2**62, "virtual-chunk-fetch"),
    ]:
        with pytest.raises(StorageError) as caught:
            source.read(offset, length, CHUNK)
        assert caught.value.kind == kind
        assert "x.nc" in str(caught.value)
        assert str(len(DATA)) in str(caught.value)


@pytest.mark.parametrize("change", ["append", "touch", "replace", "truncate"])
def test_a_change_is_noticed_while_the_source_is_open(home: Path, change: str) -> None:
    access = make(home)
    source = access.open(access.locate("x.nc", stamp=access.stamp("x.nc")), CHUNK)
    assert source.read(0, 3, CHUNK) == DATA[:3]
    path = home / "x.nc"
    if change == "append":
        with path.open("ab") as file:
            file.write(b"!")
    elif change == "touch":
        os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    elif change == "truncate":
        os.truncate(path, 5)
    else:
        path.unlink()
        path.write_bytes(b"another file")
    with pytest.raises(StorageError) as caught:
        source.read(0, 3, CHUNK)
    assert caught.value.kind == "virtual-chunk-modified"
    assert f"size {len(DATA)}" in str(caught.value)
    assert f"size {path.stat().st_size}" in str(caught.value)
    assert CHUNK in str(caught.value)


def test_a_replaced_file_reads_again_once_it_is_referenced_again(home: Path) -> None:
    access = make(home)
    assert access.open(access.locate("x.nc", stamp=access.stamp("x.nc")), CHUNK).read(0, 3, CHUNK) == DATA[:3]
    (home / "new").write_bytes(b"new" * 50)
    (home / "new").rename(home / "x.nc")
    assert access.open(access.locate("x.nc", stamp=access.stamp("x.nc")), CHUNK).read(0, 3, CHUNK) == b"new"


def test_a_replaced_file_without_a_stamp_gives_the_new_bytes_and_a_removed_one_an_error(home: Path) -> None:
    source = make(home).open(virtual("x.nc"), CHUNK)
    assert source.read(0, 3, CHUNK) == DATA[:3]
    (home / "new").write_bytes(b"new" * 50)
    (home / "new").rename(home / "x.nc")
    assert source.read(0, 3, CHUNK) == b"new"
    (home / "x.nc").unlink()
    with pytest.raises(StorageError) as caught:
        source.read(0, 3, CHUNK)
    assert caught.value.kind == "virtual-chunk-fetch"


def test_a_time_without_a_size_is_a_limit(home: Path) -> None:
    now = (home / "x.nc").stat().st_mtime_ns
    for limit, good in [(now, True), (now + 10**9, True), (now - 900, True), (now - 10**6, False)]:
        location = virtual("x.nc", stamp=SourceStamp(modified_at=limit))
        if good:
            assert make(home).open(location, CHUNK).read(0, 3, CHUNK) == DATA[:3]
        else:
            assert refused(make(home), location).kind == "virtual-chunk-modified"


def test_a_local_file_has_no_etag(home: Path) -> None:
    with pytest.raises(InvalidInputError) as caught:
        make(home).locate("x.nc", stamp=SourceStamp(etag="abc"))
    assert caught.value.kind == "invalid-virtual-ref"


def test_stamps_are_exact_and_empty_for_what_is_not_there(home: Path) -> None:
    status = (home / "x.nc").stat()
    access = make(home, "s3://bucket/")
    assert access.stamps(["x.nc", "later.nc", "s3://bucket/x"]) == {
        "x.nc": SourceStamp(size=len(DATA), modified_at=status.st_mtime_ns),
        "later.nc": SourceStamp(),
        "s3://bucket/x": SourceStamp(),
    }
    with pytest.raises(InvalidInputError):
        access.stamp(f"file://{home}")
    with pytest.raises(InvalidInputError):
        access.stamp("gs://bucket")


# ---- the machinery


def test_descriptors_are_few_and_those_in_use_survive_eviction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = DescriptorCache(limit=2)
    monkeypatch.setattr(local, "descriptors", cache)
    for number in range(5):
        (tmp_path / f"{number}.nc").write_bytes(bytes([number]) * 10)
    access = make(tmp_path)
    sources = [access.open(virtual(f"{number}.nc"), CHUNK) for number in range(5)]
    assert sources[0].read(0, 1, CHUNK) == b"\0"
    held = cache.find(str(tmp_path.resolve() / "0.nc"))
    assert held is not None
    for _ in range(3):
        assert [source.read(0, 1, CHUNK)[0] for source in sources] == [0, 1, 2, 3, 4]
    assert len(cache) == 2
    assert os.pread(held.number, 1, 0) == b"\0"
    number = held.number
    del held
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)


def test_the_descriptor_that_was_used_longest_ago_goes_first(tmp_path: Path) -> None:
    cache = DescriptorCache(limit=4)
    path = tmp_path / "x.nc"
    path.write_bytes(DATA)
    for name in "abcd":
        cache.put(name, Descriptor(os.open(path, os.O_RDONLY)))
    assert cache.find("a") is not None
    cache.put("e", Descriptor(os.open(path, os.O_RDONLY)))
    assert [name for name in "abcde" if cache.find(name) is None] == ["b"]


def test_many_threads_read_many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "descriptors", DescriptorCache(limit=3))
    for number in range(8):
        (tmp_path / f"{number}.nc").write_bytes(bytes([number]) * 100)
    access = make(tmp_path)
    wrong: list[object] = []

    def work(seed: int) -> None:
        for step in range(300):
            number = (seed + step * 5) % 8
            try:
                data = access.open(virtual(f"{number}.nc"), CHUNK).read(step % 50, 10, CHUNK)
            except IceliteError as error:
                wrong.append(error)
                continue
            if data != bytes([number]) * 10:
                wrong.append((number, data))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_access_pickles_and_keeps_what_it_was_allowed(home: Path, elsewhere: Path) -> None:
    access = make(home)
    location = access.locate(f"file://{elsewhere}/y.nc")
    access.allow(location)
    assert access.open(location, CHUNK).read(0, 3, CHUNK) == DATA[:3]
    copy = pickle.loads(pickle.dumps(access))
    assert copy.open(location, CHUNK).read(0, 3, CHUNK) == DATA[:3]
    assert list(copy.new_containers) == list(access.new_containers)


def test_what_is_remembered_is_bounded(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("icelite.virtual.access._MAX_SOURCES", 2)
    access = make(home)
    for number in range(5):
        access.open(virtual("x.nc", stamp=SourceStamp(size=number)), CHUNK)
    assert len(access._sources) == 2


def test_an_authorisation_must_fit_its_prefix(home: Path) -> None:
    with pytest.raises(InvalidInputError) as caught:
        make(home, access={"s3://bucket/": LocalFileSystemAccess})
    assert caught.value.kind == "invalid-credentials"


def test_the_network_libraries_come_late(home: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from icelite.virtual import VirtualAccess\n"
        "a = VirtualAccess(directory=Path(sys.argv[1]), at_home=True, containers={}, declared={}, access={})\n"
        "a.open(a.locate('x.nc', stamp=a.stamp('x.nc')), 'c').read(0, 3, 'c')\n"
        "late = {'s3fs', 'botocore', 'aiobotocore', 'aiohttp', 'xarray', 'virtualizarr', 'icechunk'}\n"
        "sys.exit(', '.join(late & set(sys.modules)) or 0)"
    )
    root = Path(local.__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(home)], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_store_options_of_a_stored_container_are_never_used(home: Path) -> None:
    stored = VirtualChunkContainer("s3://bucket/", s3_store(endpoint_url="http://evil:1", allow_http=True))
    access = VirtualAccess(
        directory=home,
        at_home=True,
        containers={"bucket": stored},
        declared={},
        access={"s3://bucket/": s3_credentials(anonymous=True)},
    )
    source = access.open(virtual("s3://bucket/x"), CHUNK)
    assert source._target.client.options.endpoint_url is None  # type: ignore[attr-defined]


# ---- a catalog that is not on this machine


WEB = StorageConfig.http("https://host/data/ocean.icelite?signature=hush", headers={"Authorization": "hush"}).address
BUCKET = StorageConfig.s3_anonymous(bucket="bucket", prefix="data/ocean.icelite", region="r").address


def elsewhere_of(address: RemoteAddress | None, *prefixes: str) -> VirtualAccess:
    containers = {prefix: VirtualChunkContainer(prefix) for prefix in prefixes}
    return VirtualAccess(directory=None, at_home=False, containers=containers, declared={}, access={}, address=address)


def test_relative_references_of_a_remote_catalog_start_at_its_own_url() -> None:
    web = elsewhere_of(WEB).find_target("https://host/data/a b.nc")
    assert isinstance(web, WebObject)
    assert (web.root, web.target) == ("https://host/data/", "https://host/data/a%20b.nc")
    assert web.access.headers == (("Authorization", "hush"),)
    assert elsewhere_of(WEB).url(virtual("x/a b.nc")) == "https://host/data/x/a b.nc"
    bucket = elsewhere_of(BUCKET).find_target("s3://bucket/data/a b%20.nc")
    assert isinstance(bucket, S3Object)
    assert (bucket.bucket, bucket.key) == ("bucket", "data/a b%20.nc")
    assert elsewhere_of(BUCKET).required([virtual("a.nc")]) == {}


@pytest.mark.parametrize("path", ["../x.nc", "a/../../x.nc", "%2e%2e/x.nc", "/x.nc", "a\\..\\x.nc", "./x.nc", "a\0"])
@pytest.mark.parametrize("place", [WEB, BUCKET], ids=["web", "bucket"])
def test_relative_references_of_a_remote_catalog_cannot_leave(place: RemoteAddress, path: str) -> None:
    assert refused(elsewhere_of(place), virtual(path)).kind == "invalid-virtual-ref"


def test_the_url_of_a_file_beside_a_remote_catalog_becomes_relative() -> None:
    assert elsewhere_of(BUCKET).locate("s3://bucket/data/deep/x.nc").path == "deep/x.nc"
    assert elsewhere_of(BUCKET).locate("./x.nc").path == "x.nc"
    assert elsewhere_of(BUCKET).locate("x.nc", stamp=SourceStamp(etag="e")).etag == "e"
    outside = elsewhere_of(BUCKET, "s3://bucket/").locate("s3://bucket/database/x.nc")
    assert outside.path == "s3://bucket/database/x.nc"


@pytest.mark.parametrize("url", ["https://host/x.nc", "http://host/x.nc", "gs://bucket/x.nc", "az://bucket/x.nc"])
def test_other_schemes_pass_the_same_gates(url: str) -> None:
    access = elsewhere_of(None)
    assert refused(access, virtual(url)).kind == "no-container-for-virtual-chunk"
    prefix = url.rpartition("/")[0] + "/"
    error = refused(elsewhere_of(None, prefix), virtual(url))
    assert error.kind == "unauthorized-virtual-chunk-container"
    assert f'{{"{prefix}": icelite.' in str(error)


def test_a_package_that_is_missing_is_named() -> None:
    access = make(None, "gs://bucket/", access={"gs://bucket/": None})
    assert "pip install gcsfs" in str(refused(access, virtual("gs://bucket/x.nc")))


def test_any_filesystem_is_read_by_range_and_checked() -> None:
    import fsspec

    fsspec.filesystem("memory").pipe_file("/bucket/x.bin", DATA)
    access = make(None, "memory://bucket/", access={"memory://bucket/": None})
    stamp = access.stamp("memory://bucket/x.bin")
    assert stamp.size == len(DATA)
    location = access.locate("memory://bucket/x.bin", stamp=stamp)
    assert access.open(location, CHUNK).read(2, 4, CHUNK) == DATA[2:6]
    assert refused(access, virtual("memory://bucket/none.bin")).kind == "virtual-chunk-fetch"
    with pytest.raises(IceliteError) as caught:
        access.open(location, CHUNK).read(len(DATA) - 1, 2, CHUNK)
    assert caught.value.kind == "invalid-object-size"
    fsspec.filesystem("memory").pipe_file("/bucket/x.bin", DATA + b"more")
    assert access.open(location, CHUNK).read(2, 4, CHUNK) == DATA[2:6], "one look for each source"
    again = make(None, "memory://bucket/", access={"memory://bucket/": None})
    assert refused(again, location).kind == "virtual-chunk-modified"
