"""An S3 service that fails: the n-th request of a commit, a read or a sweep goes wrong in every way a network knows.

The service is a real one (tests/conftest.py); a forwarder on the loopback interface before it breaks one request, or
that one and all that follow. Whatever the outcome, nothing acknowledged is lost, what is read is right or an icelite
error, and the same call succeeds once the service is well.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import zarr

import icelite
from icelite.errors import IceliteError
from icelite.repository import Repository
from icelite.storage import StorageConfig

pytestmark = [pytest.mark.s3, pytest.mark.usefixtures("no_aws_settings")]
Amount = Callable[[int, int], int]
COUNT = 8  # chunks


class BrokenService(ThreadingHTTPServer):
    """Forwards requests, and breaks the ``number``-th from now of one method, in one way.

    Attributes
    ----------
    way
        ``drop`` (never arrives), ``lost`` (takes place, the answer is lost), ``short`` (half of the answer's body),
        ``error`` (500), ``later`` (503), ``refused`` (403), ``html`` (200 with something else).
    """

    daemon_threads = True

    def __init__(self, endpoint: str) -> None:
        super().__init__(("127.0.0.1", 0), Forward)
        self.behind = urlsplit(endpoint).netloc
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"
        self.lock = threading.Lock()
        self.heal()

    def heal(self) -> None:
        self.break_("", "", 0, False)

    def break_(self, method: str, way: str, number: int, for_good: bool) -> None:
        with self.lock:
            self.method, self.way, self.number, self.for_good = method, way, number, for_good
            self.count = self.broken = 0

    def way_for(self, method: str) -> str:
        with self.lock:
            self.count += method == self.method
            hit = method == self.method and (self.count == self.number or (self.for_good and self.count > self.number))
            self.broken += hit
            return self.way if hit else ""


class Forward(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: BrokenService

    def forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        way = self.server.way_for(self.command)
        if way == "drop":
            self.hang_up()
            return
        if way in ("error", "later", "refused"):
            self.answer({"error": 500, "later": 503, "refused": 403}[way], {}, b"")
            return
        connection = http.client.HTTPConnection(self.server.behind, timeout=60)
        try:
            connection.request(self.command, self.path, body, dict(self.headers.items()))
            answer = connection.getresponse()
            data = answer.read()
        finally:
            connection.close()
        if way == "lost":
            self.hang_up()
        elif way == "html":
            self.answer(200, {}, b"<html>please log in</html>")
        else:
            self.answer(answer.status, dict(answer.getheaders()), data, short=way == "short")

    def answer(self, status: int, headers: dict[str, str], data: bytes, *, short: bool = False) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(data))
        self.send_header("Content-Length", length)
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(data[: len(data) // 2] if short else data)
        if short:
            self.hang_up()

    def hang_up(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = forward

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def service(s3_server: Any) -> Iterator[BrokenService]:
    with BrokenService(s3_server.endpoint) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def bucket(s3_server: Any, service: BrokenService, key: str) -> StorageConfig:
    return StorageConfig.s3_from_config(
        bucket=s3_server.private,
        prefix=f"faults/{uuid.uuid4().hex}/{key}",
        region=s3_server.region,
        endpoint_url=service.endpoint,
        allow_http=True,
        credentials=icelite.S3Credentials(**s3_server.keys),
    )


Make = Callable[[], tuple[Repository, Callable[[], Repository]]]


@pytest.fixture(params=["objects in a bucket", "all in a bucket"])
def make(request: pytest.FixtureRequest, tmp_path: Path, s3_server: Any, service: BrokenService) -> Make:
    """Makes a repository with one commit, and gives a way to open it anew."""
    config = icelite.RepositoryConfig(inline_chunk_threshold_bytes=0, object_target_bytes=2000)
    numbers = iter(range(1_000_000))

    def new() -> tuple[Repository, Callable[[], Repository]]:
        if request.param == "all in a bucket":
            storage = bucket(s3_server, service, "a.icelite")
            objects = {}
            place: Any = storage
        else:
            place = tmp_path / f"{next(numbers)}.icelite"
            objects = {"objects": bucket(s3_server, service, "chunks")}
        repository = Repository.create(place, config, **objects)
        session = repository.writable_session("main")
        array = zarr.create_array(
            session.store, name="x", shape=(COUNT * 500,), chunks=(500,), dtype="u1", compressors=None
        )
        array[:] = 1
        session.commit("1")
        return repository, lambda: Repository.open(place, **objects)

    return new


def write(repository: Repository, value: int) -> None:
    session = repository.writable_session("main")
    zarr.open_array(session.store, path="x", mode="r+")[: 500 * (COUNT - 1)] = value
    session.commit(str(value))


def read(repository: Repository) -> np.ndarray[Any, Any]:
    return np.asarray(zarr.open_array(repository.readonly_session("main").store, path="x", mode="r")[:])


def expected(value: int) -> list[int]:
    return [value] * (COUNT - 1) + [1]


def sweep(repository: Repository) -> None:
    repository.expire_snapshots(datetime.now(UTC))
    repository.garbage_collect(datetime.now(UTC))


ACTIONS: dict[str, tuple[str, Callable[[Repository], None]]] = {
    "put": ("PUT", lambda repository: write(repository, 2)),
    "get": ("GET", lambda repository: check_values(repository, (1,))),
    "delete": ("POST", sweep),
}
WAYS = {
    "put": ["drop", "lost", "error", "later", "refused"],
    "get": ["drop", "short", "error", "later", "refused", "html"],
    "delete": ["drop", "lost", "error", "refused"],
}


def check_values(repository: Repository, allowed: tuple[int, ...]) -> int:
    found = read(repository)
    value = int(found[0])
    assert value in allowed
    assert found[::500].tolist() == expected(value)
    return value


@pytest.mark.parametrize("action", ACTIONS)
def test_a_request_that_fails_loses_nothing_and_lies_about_nothing(
    action: str, make: Make, service: BrokenService, amount: Amount, request: pytest.FixtureRequest
) -> None:
    method, act = ACTIONS[action]
    met = refused = 0
    ways = [(way, for_good) for way in WAYS[action] for for_good in (False, True)]
    for way, for_good in ways[:: amount(5, 1)]:
        for number in (1, 2, 4)[: amount(1, 3)]:
            service.heal()
            repository, again = make()
            if action == "delete":
                write(repository, 2)
            service.break_(method, way, number, for_good)
            raised = None
            try:
                act(repository if action != "get" else again())
            except IceliteError as error:
                raised = error
            met += service.broken
            refused += raised is not None
            service.heal()
            fresh = again()
            value = check_values(fresh, (1, 2))
            if raised is None:
                assert value == (1 if action == "get" else 2)
            act(fresh)
            check_values(fresh, (1, 2))
            assert fresh.verify() == []
    request.node.counted.append(f"{met} broken requests, {refused} calls refused, the rest repeated by themselves")
    assert met > 0
