"""An S3 service that fails: the n-th request of a commit, a read or a sweep goes wrong in every way a network knows.

The service is a real one (tests/conftest.py); a forwarder on the loopback interface before it breaks one request, or
that one and all that follow. Whatever the outcome, nothing acknowledged is lost, what is read is right or an icelite
error, and the same call succeeds once the service is well.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from forwarding import Forwarder, Recorder

import icelite
from icelite.errors import IceliteError
from icelite.repository import Repository
from icelite.storage import StorageConfig

pytestmark = [pytest.mark.s3, pytest.mark.usefixtures("no_aws_settings")]
Amount = Callable[[int, int], int]
COUNT = 8  # chunks
REFUSALS = {"error": 500, "later": 503, "refused": 403}


class BrokenService(Recorder):
    """Forwards requests, and breaks the ``number``-th from now of one method, in one way.

    Attributes
    ----------
    way
        ``drop`` (never arrives), ``lost`` (takes place, the answer is lost), ``short`` (half of the answer's body),
        ``error`` (500), ``later`` (503), ``refused`` (403), ``html`` (200 with something else).
    """

    def __init__(self, endpoint: str) -> None:
        super().__init__(endpoint, BreakingForwarder)
        self.heal()

    def heal(self) -> None:
        self.break_("", "", 0, False)

    def break_(self, method: str, way: str, number: int, for_good: bool) -> None:
        with self.lock:
            self.method, self.way, self.number, self.for_good = method, way, number, for_good
            self.seen = self.broken = 0

    def way_for(self, method: str) -> str:
        with self.lock:
            self.seen += method == self.method
            hit = method == self.method and (self.seen == self.number or (self.for_good and self.seen > self.number))
            self.broken += hit
            return self.way if hit else ""


class BreakingForwarder(Forwarder):
    server: BrokenService

    def forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        way = self.server.way_for(self.command)
        if way == "drop":
            self.hang_up()
        elif way in REFUSALS:
            self.answer(REFUSALS[way], {}, b"")
        else:
            self.answer_in(way, *self.ask(body))

    def answer_in(self, way: str, status: int, headers: dict[str, str], data: bytes) -> None:
        """Hand on what the service answered, as far as the way lets it."""
        if way == "html":
            self.answer(200, {}, b"<html>please log in</html>")
        elif way == "short":
            self.send_response_only(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            with contextlib.suppress(ConnectionError):
                self.wfile.write(data[: len(data) // 2])
        elif way != "lost":
            self.answer(status, headers, data)
        if way in ("short", "lost"):
            self.hang_up()

    def hang_up(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)


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
