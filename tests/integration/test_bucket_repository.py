"""A repository that is an object in a bucket of a real S3 service: written, read, raced for and interrupted."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import pickle
import socket
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr

import icelite
from icelite import (
    ConflictDetector,
    ConflictError,
    IceliteError,
    IceliteStore,
    Repository,
    S3Credentials,
    StorageConfig,
    StoreConfig,
    VirtualRefConfig,
)

S3Server = Any  # of conftest.py

pytestmark = [pytest.mark.s3, pytest.mark.usefixtures("no_aws_settings")]


@pytest.fixture
def key() -> str:
    return f"{uuid.uuid4().hex}/ocean.icelite"


def storage(server: S3Server, key: str, **options: Any) -> StorageConfig:
    return StorageConfig.s3_from_config(
        bucket=options.pop("bucket", server.private),
        prefix=key,
        credentials=options.pop("credentials", S3Credentials(**server.keys)),
        **{**server.place, **options},
    )


def create(place: StorageConfig) -> Repository:
    """A repository with an empty root group, so that writers of different arrays do not all make one."""
    repository = Repository.create(place)
    session = repository.writable_session("main")
    zarr.create_group(session.store)
    session.commit("root")
    return repository


def fill(repository: Repository, name: str = "a", value: int = 7, **commit: Any) -> str:
    session = repository.writable_session("main")
    array = zarr.create_array(session.store, name=name, shape=(20,), chunks=(5,), dtype="i8", dimension_names=["x"])
    array[:] = value
    return session.commit(f"write {name}", **commit)


def read(repository: Repository, name: str = "a") -> list[int]:
    session = repository.readonly_session("main")
    found: Any = zarr.open_array(session.store, path=name, mode="r")[:]
    return [int(number) for number in found]


# ---- one writer


def test_a_repository_in_a_bucket_is_written_and_read(s3_server: S3Server, key: str) -> None:
    place = storage(s3_server, key)
    repository = Repository.create(place)
    snapshot = fill(repository)
    assert read(repository) == [7] * 20
    assert repository.lookup_branch("main") == snapshot
    repository.create_tag("v1", snapshot)
    other = pickle.loads(pickle.dumps(Repository.open(place)))
    assert read(other) == [7] * 20
    assert other.list_tags() == {"v1"}
    found = xr.open_dataset(place, engine="icelite")
    assert found["a"].values.tolist() == [7] * 20
    with pytest.raises(IceliteError) as caught:
        Repository.create(place)
    assert caught.value.kind == "repository-already-exists"
    assert "a-secret" not in repr(place) + repr(repository) + str(caught.value) + repr(place.address)


def test_the_store_first_api_takes_a_folder_as_prefix(s3_server: S3Server, key: str) -> None:
    place = storage(s3_server, key.partition("/")[0])
    config = StoreConfig(virtual_ref_config=VirtualRefConfig.s3_anonymous(**s3_server.place))
    store = IceliteStore.create(storage=place, config=config)
    data = np.arange(10, dtype="i8").tobytes()
    s3_server.client().put_object(Bucket=s3_server.public, Key=f"{key}.bin", Body=data)
    zarr.create_array(store, name="a", shape=(10,), chunks=(10,), dtype="i8", filters=None, compressors=None)
    store.set_virtual_ref("a/c/0", f"s3://{s3_server.public}/{key}.bin", offset=0, length=80)
    store.commit("a reference")
    assert zarr.open_array(store, path="a")[:].tolist() == list(range(10))
    folder = key.partition("/")[0]
    listed = s3_server.client().list_objects_v2(Bucket=s3_server.private, Prefix=folder)["Contents"]
    assert [item["Key"] for item in listed] == [f"{folder}/catalog.icelite"], "and no probe stays"
    again = IceliteStore.open_existing(storage=place, config=config)
    assert zarr.open_array(again, path="a")[:].tolist() == list(range(10))


def test_files_beside_the_catalog_are_relative_and_need_no_authorisation(s3_server: S3Server, key: str) -> None:
    folder = key.partition("/")[0]
    client = s3_server.client()
    client.put_object(Bucket=s3_server.private, Key=f"{folder}/data/x y.bin", Body=bytes(16) + b"\1" + bytes(7))
    repository = Repository.create(storage(s3_server, key))
    session = repository.writable_session("main")
    zarr.create_array(session.store, name="a", shape=(3,), chunks=(1,), dtype="i8", filters=None, compressors=None)
    session.store.set_virtual_ref("a/c/1", f"s3://{s3_server.private}/{folder}/data/x y.bin", offset=8, length=8)
    session.store.set_virtual_ref("a/c/2", "data/x y.bin", offset=16, length=8)
    session.commit("relative")
    assert repository.required_access() == {}
    assert zarr.open_array(repository.readonly_session("main").store, path="a")[:].tolist() == [0, 0, 1]
    for suffix in ("ocean.icelite", "data/x y.bin"):  # moved together
        source = {"Bucket": s3_server.private, "Key": f"{folder}/{suffix}"}
        client.copy_object(Bucket=s3_server.public, Key=f"moved-{folder}/{suffix}", CopySource=source)
    place = StorageConfig.s3_anonymous(
        bucket=s3_server.public, prefix=f"moved-{folder}/ocean.icelite", **s3_server.place
    )
    moved = Repository.open(place)
    assert zarr.open_array(moved.readonly_session("main").store, path="a")[:].tolist() == [0, 0, 1]


def test_reads_by_ranges_and_switches_to_a_copy_to_write(s3_server: S3Server, key: str) -> None:
    repository = Repository.create(
        storage(s3_server, key), icelite.RepositoryConfig(inline_chunk_threshold_bytes=1 << 30)
    )
    session = repository.writable_session("main")
    array = zarr.create_array(
        session.store, name="a", shape=(3_000_000,), chunks=(1_000_000,), dtype="u1", compressors=None
    )
    array[:] = np.random.default_rng(0).integers(0, 255, 3_000_000, dtype="u1")
    session.commit("3 MB")
    ranged = Repository.open(storage(s3_server, key, whole_bytes=1 << 20))
    assert ranged._catalog.path is None
    found = zarr.open_array(ranged.readonly_session("main").store, path="a", mode="r")
    assert np.array_equal(found[:], array[:])
    ranged.create_branch("dev", ranged.lookup_branch("main"))
    assert ranged._catalog.path is not None
    assert Repository.open(storage(s3_server, key)).list_branches() == {"main", "dev"}
    ranged.compact()
    assert read_bytes(ranged) == array[:].tobytes()


def read_bytes(repository: Repository) -> bytes:
    found: Any = zarr.open_array(repository.readonly_session("main").store, path="a", mode="r")[:]
    return bytes(found.tobytes())


@pytest.mark.parametrize("way", ["config", "env", "token", "refreshed"])
def test_every_way_to_bring_credentials(
    s3_server: S3Server, key: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(Repository.create(storage(s3_server, key)))
    keys = s3_server.temporary_keys() if way == "token" else s3_server.keys
    if way == "env":
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", keys["access_key_id"])
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", keys["secret_access_key"])
        monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.endpoint)
        monkeypatch.setenv("AWS_REGION", s3_server.region)
        assert read(Repository.open(f"s3://{s3_server.private}/{key}")) == [7] * 20
        with xr.open_dataset(f"s3://{s3_server.private}/{key}", engine="icelite") as found:
            assert found["a"].values.tolist() == [7] * 20
        place = StorageConfig.s3_from_env(bucket=s3_server.private, prefix=key, **s3_server.place)
    elif way == "refreshed":
        given = icelite.s3_refreshable_credentials(lambda: icelite.S3StaticCredentials(**keys))
        place = storage(s3_server, key, credentials=given)
    else:
        place = storage(s3_server, key, credentials=S3Credentials(**keys))
    repository = Repository.open(place)
    assert read(repository) == [7] * 20
    if way == "token":  # the role may only read
        with pytest.raises(IceliteError) as caught:
            fill(repository, "b")
        assert caught.value.kind == "read-only-storage"
        assert "AccessDenied" in str(caught.value)


def test_who_is_turned_away_is_told_why(s3_server: S3Server, key: str) -> None:
    fill(Repository.create(storage(s3_server, key)))
    cases = {
        "InvalidAccessKeyId": storage(s3_server, key, credentials=S3Credentials("AKIDNOBODY", "a-secret-of-nobody")),
        "SignatureDoesNotMatch": storage(
            s3_server, key, credentials=S3Credentials(s3_server.keys["access_key_id"], "no")
        ),
        "AccessDenied": StorageConfig.s3_anonymous(bucket=s3_server.private, prefix=key, **s3_server.place),
        "NoSuchBucket": storage(s3_server, key, bucket="no-such-bucket"),
        "NoSuchKey": storage(s3_server, "no/such.icelite"),
    }
    for code, place in cases.items():
        with pytest.raises(IceliteError) as caught:
            Repository.open(place)
        assert code in str(caught.value)
        assert "a-secret" not in str(caught.value)
    with pytest.raises(IceliteError) as caught:
        Repository.create(StorageConfig.s3_anonymous(bucket=s3_server.public, prefix=key, **s3_server.place))
    assert caught.value.kind == "read-only-storage"


# ---- several writers


def test_the_loser_of_a_race_gets_a_conflict_and_can_rebase(s3_server: S3Server, key: str) -> None:
    ours = create(storage(s3_server, key))
    session = ours.writable_session("main")
    zarr.create_array(session.store, name="ours", shape=(2,), chunks=(1,), dtype="i8")[:] = 1
    theirs = Repository.open(storage(s3_server, key, max_attempts=4))  # another mirror, as in another process
    fill(theirs, "theirs")
    with pytest.raises(ConflictError):
        session.commit("ours")
    session.rebase(ConflictDetector())
    session.commit("ours")
    assert read(theirs, "ours") == [1, 1]
    assert read(ours, "theirs") == [7] * 20
    tips = [info.message for info in Repository.open(storage(s3_server, key)).ancestry(branch="main")]
    assert tips == ["ours", "write theirs", "root", "Repository initialized"]


def test_a_race_lost_between_look_and_write_loses_nothing(
    s3_server: S3Server, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service's condition decides; what was rolled back here is written again, with its inline bytes."""
    from icelite.vfs.mirror import Mirror

    ours = create(storage(s3_server, key))
    theirs = Repository.open(storage(s3_server, key, max_attempts=4))
    publish, meddled, theirs_made = Mirror.publish, [], []

    def meddle(self: Mirror, data: bytes, expected: str | None) -> None:
        if self is ours._catalog._remote._mirror and len(meddled) < 2:  # type: ignore[union-attr]
            number = len(theirs_made)
            theirs_made.append(fill(theirs, f"theirs{number}", 3, rebase_with=ConflictDetector()))
            meddled.append(number)
        publish(self, data, expected)

    monkeypatch.setattr(Mirror, "publish", meddle)
    with pytest.raises(ConflictError):
        fill(ours, "alone")
    fill(ours, "ours", rebase_with=ConflictDetector())
    assert len(meddled) == 2
    meddled.clear()
    ours.create_tag("v1", ours.lookup_branch("main"))  # others' commits do not matter to it
    assert len(meddled) == 2
    fresh = Repository.open(storage(s3_server, key))
    assert read(fresh, "ours") == read(ours, "ours") == [7] * 20
    assert read(fresh, "theirs0") == read(fresh, "theirs3") == [3] * 20
    assert fresh.list_tags() == {"v1"}
    assert "alone" not in zarr.open_group(fresh.readonly_session("main").store, mode="r")
    assert fresh.verify() == []


WRITER = textwrap.dedent(
    """
    import json, sys
    import zarr
    from icelite import ConflictDetector, Repository, S3Credentials, StorageConfig
    options, name, commits = json.loads(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    options["credentials"] = S3Credentials(**options["credentials"])
    repository = Repository.open(StorageConfig.s3_from_config(**options))
    for number in range(commits):
        session = repository.writable_session("main")
        zarr.create_array(session.store, name=f"{name}-{number}", shape=(4,), chunks=(2,), dtype="i8")[:] = number
        print(session.commit(f"{name}-{number}", rebase_with=ConflictDetector()), flush=True)
    """
)


def writer(server: S3Server, key: str, name: str, commits: int, endpoint: str | None = None) -> subprocess.Popen[str]:
    options = {"bucket": server.private, "prefix": key, "credentials": server.keys, **server.place}
    options["endpoint_url"] = endpoint or server.endpoint
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, json.dumps(options), name, str(commits)], stdout=subprocess.PIPE, text=True
    )


def test_four_processes_with_ten_commits_each_lose_none(s3_server: S3Server, key: str) -> None:
    create(storage(s3_server, key))
    writers = [writer(s3_server, key, f"w{number}", 10) for number in range(4)]
    acknowledged = [line for process in writers for line in process.communicate(timeout=120)[0].split()]
    assert all(process.returncode == 0 for process in writers)
    repository = Repository.open(storage(s3_server, key))
    history = [info.id for info in repository.ancestry(branch="main")]
    assert len(acknowledged) == 40
    assert set(acknowledged) <= set(history)
    assert len(history) == 42
    group = zarr.open_group(repository.readonly_session("main").store, mode="r")
    assert len(list(group.arrays())) == 40
    assert all(array[:].tolist() == [int(name.partition("-")[2])] * 4 for name, array in group.arrays())
    assert repository.verify() == []


# ---- faults


class Proxy:
    """Carries bytes between writers and the service, and breaks a PUT of the catalog where a test wants it."""

    def __init__(self, endpoint: str) -> None:
        host, _, port = endpoint.removeprefix("http://").partition(":")
        self._target = host, int(port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.stall_after: int | None = None  # bytes of a PUT's request
        self.drop_answers = 0  # to that many PUTs
        self.stalled = threading.Event()
        self.puts = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._carry, args=(client,), daemon=True).start()

    def _carry(self, client: socket.socket) -> None:
        """One connection, one request at a time; a request's end is known from its answer's beginning."""
        service = socket.create_connection(self._target)
        state = {"put": False, "sent": 0}

        def up() -> None:
            while data := receive(client):
                if data.startswith((b"GET ", b"PUT ", b"HEAD ", b"DELETE ")):
                    state.update(put=data.startswith(b"PUT ") and b".icelite " in data.split(b"\r\n")[0], sent=0)
                    self.puts += bool(state["put"])
                if state["put"] and self.stall_after is not None:
                    if state["sent"] + len(data) > self.stall_after:
                        service.sendall(data[: self.stall_after - state["sent"]])
                        self.stalled.set()
                        return
                    state["sent"] += len(data)
                service.sendall(data)
            close(service)

        threading.Thread(target=up, daemon=True).start()
        while data := receive(service):
            if state["put"] and self.drop_answers and b" 200 " in data[:20]:
                self.drop_answers -= 1
                close(service)
                break
            client.sendall(data)
        close(client)

    def close(self) -> None:
        close(self._listener)


def receive(connection: socket.socket) -> bytes:
    try:
        return connection.recv(1 << 16)
    except OSError:
        return b""


def close(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()


@pytest.fixture
def proxy(s3_server: S3Server) -> Iterator[Proxy]:
    proxy = Proxy(s3_server.endpoint)
    yield proxy
    proxy.close()


def test_a_writer_killed_in_the_middle_of_a_put_leaves_the_old_catalog(
    s3_server: S3Server, key: str, proxy: Proxy
) -> None:
    repository = create(storage(s3_server, key))
    before = fill(repository)
    etag = s3_server.client().head_object(Bucket=s3_server.private, Key=key)["ETag"]
    proxy.stall_after = 20_000
    process = writer(s3_server, key, "killed", 1, proxy.endpoint)
    try:
        assert proxy.stalled.wait(60)
    finally:
        process.kill()
    assert process.communicate()[0] == "", "nothing was acknowledged"
    time.sleep(0.2)
    assert s3_server.client().head_object(Bucket=s3_server.private, Key=key)["ETag"] == etag
    fresh = Repository.open(storage(s3_server, key))
    assert fresh.lookup_branch("main") == before
    after = fill(fresh, "b")
    assert [info.id for info in fresh.ancestry(branch="main")][:2] == [after, before]


def test_a_commit_whose_answer_was_lost_is_found_and_made_once(s3_server: S3Server, key: str, proxy: Proxy) -> None:
    Repository.create(storage(s3_server, key))
    repository = Repository.open(storage(s3_server, key, endpoint_url=proxy.endpoint))
    proxy.drop_answers = 1
    snapshot = fill(repository)
    assert proxy.drop_answers == 0
    history = [info.id for info in Repository.open(storage(s3_server, key)).ancestry(branch="main")]
    assert history[0] == snapshot
    assert len(history) == 2


class Careless(BaseHTTPRequestHandler):
    """A service that stores objects and heeds no conditions."""

    protocol_version = "HTTP/1.1"
    objects: dict[str, bytes] = {}  # noqa: RUF012
    failing = False
    puts: list[str] = []  # noqa: RUF012
    shown = True  # the ETag in the answer to a PUT

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if "aws-chunked" in self.headers.get("Content-Encoding", ""):
            body = unchunked(body)
        self.puts.append(self.path)
        if self.failing:
            self.answer(503, b"<Error><Code>SlowDown</Code></Error>")
        elif not self.holds():
            self.answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")
        else:
            self.objects[self.path] = body
            self.answer(200, **({"ETag": f'"{hash(body)}"'} if self.shown else {}))

    def holds(self) -> bool:
        """Whether the condition of a PUT does."""
        return True

    def do_GET(self) -> None:
        body = self.objects.get(self.path)
        if body is None:
            self.answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        else:
            self.answer(200, body, ETag=f'"{hash(body)}"')

    def do_DELETE(self) -> None:
        self.objects.pop(self.path, None)
        self.answer(204)

    def log_message(self, *_: Any) -> None:
        """Quiet."""


class Bare(Careless):
    """A service that heeds conditions, but refuses every ETag in quotes, as Ceph RGW 16 does."""

    def holds(self) -> bool:
        found = self.objects.get(self.path)
        if self.headers.get("If-None-Match") == "*":
            return found is None
        expected = self.headers.get("If-Match")
        return expected is None or (found is not None and expected == str(hash(found)))


class Obstinate(Bare):
    """A service that refuses every condition on an object that exists."""

    def holds(self) -> bool:
        return self.headers.get("If-Match") is None and super().holds()


class Late(Bare):
    """A service that refuses conditions from some moment on."""

    refusing = False

    def holds(self) -> bool:
        return not (self.refusing and self.headers.get("If-Match")) and super().holds()


def unchunked(body: bytes) -> bytes:
    parts = []
    while body:
        size, _, body = body.partition(b"\r\n")
        length = int(size.partition(b";")[0], 16)
        if length == 0:
            break
        parts.append(body[:length])
        body = body[length + 2 :]
    return b"".join(parts)


@pytest.fixture
def careless() -> Iterator[dict[str, Any]]:
    """A service that heeds no conditions, as keyword arguments of `StorageConfig.s3_from_config`."""
    yield from serve(Careless)


def serve(service: type[Careless]) -> Iterator[dict[str, Any]]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), service)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    options: dict[str, Any] = {"bucket": "bucket", "prefix": "x.icelite", "credentials": S3Credentials("AKID", "key")}
    yield options | {"endpoint_url": f"http://127.0.0.1:{server.server_port}", "allow_http": True}
    server.shutdown()
    server.server_close()
    Careless.objects.clear()
    Careless.puts.clear()


@pytest.fixture
def bare() -> Iterator[dict[str, Any]]:
    yield from serve(Bare)


@pytest.fixture
def obstinate() -> Iterator[dict[str, Any]]:
    yield from serve(Obstinate)


@pytest.fixture
def late() -> Iterator[dict[str, Any]]:
    yield from serve(Late)


def test_a_service_that_wants_etags_without_quotes_gets_them(bare: dict[str, Any]) -> None:
    place = StorageConfig.s3_from_config(**bare)
    repository = Repository.create(place)
    fill(repository)
    behind = Repository.open(place).writable_session("main")
    repository.create_tag("v1", repository.lookup_branch("main"))
    fill(repository, "b")
    zarr.create_array(behind.store, name="c", shape=(1,), chunks=(1,), dtype="i1")
    with pytest.raises(ConflictError):
        behind.commit("behind")
    behind.commit("behind", rebase_with=ConflictDetector())
    assert set(Bare.objects) == {"/bucket/x.icelite"}, "no probe stays"
    assert [info.message for info in Repository.open(place).ancestry(branch="main")][:2] == ["behind", "write b"]


def test_a_service_that_refuses_what_holds_is_told_at_once(obstinate: dict[str, Any]) -> None:
    with pytest.raises(IceliteError) as caught:
        Repository.create(StorageConfig.s3_from_config(**obstinate))
    assert caught.value.kind == "unsafe-storage"
    assert "although it is" in str(caught.value)
    assert "unsafe=True" in str(caught.value)
    assert Careless.objects == {}
    fill(Repository.create(StorageConfig.s3_from_config(**obstinate, unsafe=True)))


def test_a_refusal_while_nobody_wrote_is_no_conflict_and_not_repeated(
    late: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = Repository.create(StorageConfig.s3_from_config(**late))
    tip = fill(repository)
    monkeypatch.setattr(Late, "refusing", True)
    for write in (
        lambda: fill(repository, "b", rebase_with=ConflictDetector()),
        lambda: repository.create_branch("side", tip),
        lambda: repository.create_tag("v1", tip),
    ):
        Careless.puts.clear()
        with pytest.raises(IceliteError) as caught:
            write()
        assert (caught.value.kind, len(Careless.puts)) == ("unsafe-storage", 1)
        assert "nobody changed it" in str(caught.value)
    monkeypatch.setattr(Late, "refusing", False)
    fill(repository, "b")


def test_an_answer_without_an_etag_is_looked_up(careless: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Careless, "shown", False)
    place = StorageConfig.s3_from_config(**careless, unsafe=True)
    repository = Repository.create(place)
    fill(repository)
    fill(repository, "b")
    assert read(Repository.open(place), "b") == [7] * 20


def test_the_endpoint_of_the_environment_is_asked_too(bare: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", bare.pop("endpoint_url"))
    fill(Repository.create(StorageConfig.s3_from_config(**bare, force_path_style=True)))


def test_a_service_that_heeds_no_conditions_is_refused_unless_told(careless: dict[str, Any]) -> None:
    with pytest.raises(IceliteError) as caught:
        Repository.create(StorageConfig.s3_from_config(**careless))
    assert caught.value.kind == "unsafe-storage"
    assert "unsafe=True" in str(caught.value)
    assert Careless.objects == {}
    fill(Repository.create(StorageConfig.s3_from_config(**careless, unsafe=True)))
    with pytest.raises(IceliteError) as caught:
        Repository.create(StorageConfig.s3_from_config(**careless, unsafe=True))
    assert caught.value.kind == "repository-already-exists"
    assert read(Repository.open(StorageConfig.s3_from_config(**careless))) == [7] * 20
    with pytest.raises(IceliteError) as caught:
        fill(Repository.open(StorageConfig.s3_from_config(**careless)), "b")
    assert caught.value.kind == "unsafe-storage"


def test_an_upload_that_fails_fails_the_commit_and_leaves_the_session(
    careless: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    inline = icelite.RepositoryConfig(inline_chunk_threshold_bytes=1 << 20)
    place = StorageConfig.s3_from_config(**careless, unsafe=True, max_attempts=1)
    repository = Repository.create(place, inline)
    session = repository.writable_session("main")
    zarr.create_array(session.store, name="a", shape=(20,), chunks=(5,), dtype="i8")[:] = 7
    before = repository.lookup_branch("main")
    monkeypatch.setattr(Careless, "failing", True)
    with pytest.raises(IceliteError) as caught:
        session.commit("fails")
    assert caught.value.kind == "io"
    assert "HTTP 503" in str(caught.value)
    assert repository.lookup_branch("main") == before
    monkeypatch.setattr(Careless, "failing", False)
    assert session.has_uncommitted_changes
    after = session.commit("succeeds")
    assert [info.id for info in repository.ancestry(branch="main")] == [after, before]
    assert read(repository) == [7] * 20


def test_threads_of_one_process_share_what_was_fetched_and_lose_nothing(s3_server: S3Server, key: str) -> None:
    repository = create(storage(s3_server, key))

    def work(name: int) -> list[str]:
        return [fill(repository, f"t{name}-{n}", rebase_with=ConflictDetector()) for n in range(3)]

    with ThreadPoolExecutor(4) as pool:
        acknowledged = [snapshot for done in pool.map(work, range(4)) for snapshot in done]
    history = [info.id for info in Repository.open(storage(s3_server, key)).ancestry(branch="main")]
    assert len(history) == 14
    assert set(acknowledged) <= set(history)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_makes_its_own_copy(s3_server: S3Server, key: str) -> None:
    repository = create(storage(s3_server, key))
    child = os.fork()
    if child == 0:
        done = 1
        try:
            fill(repository, "child")
            done = 0
        finally:
            os._exit(done)
    assert os.waitpid(child, 0)[1] == 0
    assert read(repository, "child") == [7] * 20
    fill(repository, "parent")
    assert read(repository, "parent") == [7] * 20


def test_nothing_stays_on_this_machine(
    s3_server: S3Server, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    repository = Repository.create(storage(s3_server, key))
    fill(repository)
    assert list(tmp_path.iterdir())
    repository.close()
    del repository
    gc.collect()
    assert list(tmp_path.iterdir()) == []
