"""icelite.virtual on S3: every way to be let in; and one clear error, without a secret, for each failure."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import socket
import subprocess
import sys
import threading
import traceback
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
from moto.server import ThreadedMotoServer

from icelite.config import StoreConfig, VirtualChunkContainer, VirtualRefConfig
from icelite.credentials import AnyCredential, S3Credentials, S3StaticCredentials, s3_credentials
from icelite.errors import IceliteError, InvalidInputError, StorageError
from icelite.storage import s3_store
from icelite.types import ChunkType, Location, SourceStamp
from icelite.virtual import Source, VirtualAccess
from icelite.virtual import s3 as clients

pytestmark = pytest.mark.s3

DATA = bytes(range(256)) * 4
KEY = "data/a b#c%20?.nc"
URL = f"s3://bucket/{KEY}"
CHUNK = "temperature/c/0/1"
SECRETS = ("AKID2EXAMPLE", "hush-secret", "hush-token")


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No credentials but those a test gives."""
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """A server on the loopback interface."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def service(endpoint: str) -> Iterator[Any]:
    """A boto3 client of the server, whose bucket holds one object."""
    client = boto3.client(
        "s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b"
    )
    client.create_bucket(Bucket="bucket")
    client.put_object(Bucket="bucket", Key=KEY, Body=DATA)
    yield client
    urllib.request.urlopen(urllib.request.Request(f"{endpoint}/moto-api/reset", method="POST"))


def make(access: AnyCredential | None = None, *, endpoint: str | None = None) -> VirtualAccess:
    """The access of a repository that declares the bucket, at an endpoint, and authorises it."""
    store = s3_store(endpoint_url=endpoint, allow_http=True)
    return VirtualAccess(
        directory=None,
        at_home=True,
        containers={},
        declared={"s3://bucket/": VirtualChunkContainer("s3://bucket/", store)},
        access={"s3://bucket/": access},
    )


def keys(endpoint: str, **more: Any) -> AnyCredential:
    return s3_credentials(
        access_key_id=SECRETS[0], secret_access_key=SECRETS[1], endpoint_url=endpoint, allow_http=True, **more
    )


def virtual(url: str = URL, *, stamp: SourceStamp | None = None) -> Location:
    stamp = stamp or SourceStamp()
    return Location(ChunkType.virtual, url, None, stamp.size, stamp.etag, stamp.modified_at)


def failure(source: Source, offset: int = 0, length: int = 1) -> IceliteError:
    """The error that both ways of reading give, after a look for secrets everywhere it might show them."""
    with pytest.raises(StorageError) as caught:
        source.read(offset, length, CHUNK)
    error = caught.value
    with pytest.raises(StorageError) as again:
        asyncio.run(source.read_async(offset, length, CHUNK))
    assert str(again.value) == str(error)
    shown = "".join(traceback.format_exception(error)) + repr(error.__cause__) + repr(error.__context__)
    assert not any(secret in shown for secret in SECRETS)
    assert CHUNK in str(error)
    return error


# ---- ways to be let in


async def test_keys_read_a_range_with_the_key_verbatim(service: Any, endpoint: str) -> None:
    access = make(keys(endpoint))
    location = access.locate(URL, stamp=await asyncio.to_thread(access.stamp, URL))
    assert (location.size, bool(location.etag), bool(location.modified_at)) == (len(DATA), True, True)
    assert not access.is_local(location)
    source = access.open(location, CHUNK)
    assert not source.is_local
    assert source.read(10, 20, CHUNK) == DATA[10:30]
    assert await source.read_async(0, len(DATA), CHUNK) == DATA
    many = await asyncio.gather(*(source.read_async(n, 3, CHUNK) for n in range(50)))
    assert many == [DATA[n : n + 3] for n in range(50)]


def test_the_endpoint_may_come_from_a_declared_container(service: Any, endpoint: str) -> None:
    access = make(S3Credentials("a", "b"), endpoint=endpoint)
    assert access.open(virtual(), CHUNK).read(0, 3, CHUNK) == DATA[:3]


def test_the_store_first_configuration(service: Any, endpoint: str) -> None:
    refs = VirtualRefConfig.s3_from_config(credentials=S3Credentials("a", "b"), endpoint_url=endpoint, allow_http=True)
    config = StoreConfig(virtual_ref_config=refs)
    access = VirtualAccess(
        directory=None,
        at_home=True,
        containers={},
        declared=config.repository_config().virtual_chunk_containers or {},
        access=config.authorizations(),
    )
    assert access.open(access.locate(URL), CHUNK).read(0, 3, CHUNK) == DATA[:3]


@pytest.mark.parametrize("credential", [None, s3_credentials(from_env=True)], ids=["none", "from_env"])
def test_the_environment(
    service: Any, endpoint: str, monkeypatch: pytest.MonkeyPatch, credential: AnyCredential | None
) -> None:
    access = make(credential, endpoint=endpoint)
    assert "needs credentials" in str(failure(access.open(virtual(), CHUNK)))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    later = make(credential, endpoint=endpoint)
    assert later.open(virtual(), CHUNK).read(0, 3, CHUNK) == DATA[:3]


def test_refreshable_keys_are_asked_again_when_they_expire(service: Any, endpoint: str) -> None:
    asked: list[datetime] = []

    def fetch() -> S3StaticCredentials:
        asked.append(datetime.now(UTC) + timedelta(seconds=-1 if len(asked) < 2 else 3600))
        return S3StaticCredentials("a", "b", expires_after=asked[-1])

    source = make(s3_credentials(get_credentials=fetch), endpoint=endpoint).open(virtual(), CHUNK)
    assert asked == []
    assert source.read(0, 3, CHUNK) == DATA[:3]
    assert asyncio.run(source.read_async(0, 3, CHUNK)) == DATA[:3]
    assert [source.read(0, 3, CHUNK) for _ in range(3)] == [DATA[:3]] * 3
    assert len(asked) == 3


@pytest.mark.parametrize("answer", ["raise", "other"])
def test_refreshable_keys_that_cannot_be_had(endpoint: str, answer: str) -> None:
    def fetch() -> S3StaticCredentials:
        if answer == "raise":
            raise RuntimeError(SECRETS[1])
        return SECRETS[1]  # type: ignore[return-value]

    source = make(s3_credentials(get_credentials=fetch), endpoint=endpoint).open(virtual(), CHUNK)
    with pytest.raises(InvalidInputError) as caught:
        source.read(0, 1, CHUNK)
    assert caught.value.kind == "invalid-credentials"
    assert SECRETS[1] not in "".join(traceback.format_exception(caught.value))


# ---- and to be turned away


@pytest.fixture
def strict(service: Any, endpoint: str) -> Iterator[dict[str, str]]:
    """The server checks signatures from here on; the keys of its one user, who may do everything."""
    iam = boto3.client(
        "iam", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b"
    )
    iam.create_user(UserName="reader")
    policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}
    iam.put_user_policy(UserName="reader", PolicyName="all", PolicyDocument=json.dumps(policy))
    key = iam.create_access_key(UserName="reader")["AccessKey"]
    _reset_auth(endpoint, b"0")
    yield {"access_key_id": key["AccessKeyId"], "secret_access_key": key["SecretAccessKey"]}
    _reset_auth(endpoint, b"1000000")


def _reset_auth(endpoint: str, requests_without_check: bytes) -> None:
    url, headers = f"{endpoint}/moto-api/reset-auth", {"Content-Type": "text/plain"}
    urllib.request.urlopen(urllib.request.Request(url, requests_without_check, headers, method="POST"))


def test_right_and_wrong_keys(strict: dict[str, str], endpoint: str) -> None:
    right = make(s3_credentials(**strict), endpoint=endpoint)  # type: ignore[arg-type]
    assert right.open(virtual(), CHUNK).read(0, 3, CHUNK) == DATA[:3]
    unknown = failure(make(keys(endpoint)).open(virtual(), CHUNK))
    forged = s3_credentials(access_key_id=strict["access_key_id"], secret_access_key=SECRETS[1])
    for error in (unknown, failure(make(forged, endpoint=endpoint).open(virtual(), CHUNK))):
        assert error.kind == "virtual-chunk-fetch"
        assert "authorize_virtual_chunk_access gives for 's3://bucket/'" in str(error)
        assert strict["access_key_id"] not in str(error)
    assert "InvalidAccessKeyId" in str(unknown)
    assert "SignatureDoesNotMatch" in str(error)


def test_anonymous_reads_what_is_public(service: Any, endpoint: str) -> None:
    service.put_object(Bucket="bucket", Key="public", Body=DATA, ACL="public-read")
    access = make(s3_credentials(anonymous=True), endpoint=endpoint)
    assert access.open(virtual("s3://bucket/public"), CHUNK).read(0, 3, CHUNK) == DATA[:3]
    assert access.stamp("s3://bucket/public").size == len(DATA)
    assert "was refused by S3: HTTP 403" in str(failure(access.open(virtual(), CHUNK)))


def test_missing_credentials_is_one_clear_error(endpoint: str) -> None:
    error = failure(make(s3_credentials(), endpoint=endpoint).open(virtual(), CHUNK))
    assert error.kind == "virtual-chunk-fetch"
    assert "needs credentials, and none were found in the environment" in str(error)
    assert URL in str(error)


def test_no_authorisation_asks_nobody() -> None:
    container = VirtualChunkContainer("s3://bucket/", s3_store(endpoint_url="http://127.0.0.1:1", allow_http=True))
    access = VirtualAccess(directory=None, at_home=True, containers={}, declared={"s3://bucket/": container}, access={})
    with pytest.raises(InvalidInputError) as caught:
        access.open(virtual(), CHUNK)
    assert caught.value.kind == "unauthorized-virtual-chunk-container"
    assert 'authorize_virtual_chunk_access={"s3://bucket/": icelite.s3_credentials(from_env=True)}' in str(caught.value)


def test_nobody_there_is_said_within_bounds() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{taken.getsockname()[1]}"
    error = failure(make(keys(closed)).open(virtual(), CHUNK))
    assert error.kind == "virtual-chunk-fetch"
    assert closed in str(error)
    assert "EndpointConnectionError" in str(error)


# ---- objects that are not as they were


@pytest.mark.parametrize("url", ["s3://bucket/missing", "s3://nobucket/x"])
def test_a_missing_object(service: Any, endpoint: str, url: str) -> None:
    access = VirtualAccess(
        directory=None,
        at_home=True,
        containers={"any": VirtualChunkContainer("s3://")},
        declared={},
        access={"s3://": keys(endpoint)},
    )
    error = failure(access.open(virtual(url), CHUNK))
    assert error.kind == "virtual-chunk-fetch"
    assert "does not exist" in str(error)
    assert url in str(error)
    assert access.stamps([url]) == {url: SourceStamp()}


def test_a_range_past_the_end(service: Any, endpoint: str) -> None:
    source = make(keys(endpoint)).open(virtual(), CHUNK)
    for offset, length, kind in [
        (len(DATA) - 1, 2, "invalid-object-size"),
        (0, 2**40, "invalid-object-size"),
        (len(DATA), 1, "virtual-chunk-fetch"),
        (-1, 1, "virtual-chunk-fetch"),
        (0, 0, "virtual-chunk-fetch"),
    ]:
        assert failure(source, offset, length).kind == kind
    assert f"has {len(DATA)} bytes" in str(failure(source, len(DATA), 1))


@pytest.mark.parametrize("what", ["etag", "size", "modified_at"])
def test_a_changed_object(service: Any, endpoint: str, what: str) -> None:
    access = make(keys(endpoint))
    good = access.stamp(URL)
    assert access.open(virtual(stamp=good), CHUNK).read(0, 3, CHUNK) == DATA[:3]
    assert access.open(virtual(stamp=SourceStamp(etag=f'"{good.etag}"')), CHUNK).read(0, 3, CHUNK) == DATA[:3]
    stale = {
        "etag": SourceStamp(good.size, "stale", good.modified_at),
        "size": SourceStamp(5, None, None),
        "modified_at": SourceStamp(good.size, good.etag, (good.modified_at or 0) - 10**9),
    }[what]
    for offset in (0, len(DATA)):  # there is nothing to send at the end, and the change is said all the same
        error = failure(access.open(virtual(stamp=stale), CHUNK), offset)
        assert error.kind == "virtual-chunk-modified"
        for stamp in (stale, good):
            value = getattr(stamp, what)
            assert (str(np.datetime64(value, "ns")) if what == "modified_at" else str(value)) in str(error)


def test_a_time_without_a_size_is_a_limit(service: Any, endpoint: str) -> None:
    access = make(keys(endpoint))
    now = access.stamp(URL).modified_at or 0
    assert access.open(virtual(stamp=SourceStamp(modified_at=now + 10**9)), CHUNK).read(0, 3, CHUNK) == DATA[:3]
    late = virtual(stamp=SourceStamp(modified_at=now - 10**9))
    assert failure(access.open(late, CHUNK)).kind == "virtual-chunk-modified"


def test_many_stamps_come_together(service: Any, endpoint: str) -> None:
    urls = [f"s3://bucket/{number}" for number in range(40)]
    for url in urls[:20]:
        service.put_object(Bucket="bucket", Key=url.rpartition("/")[2], Body=DATA)
    sizes = [stamp.size for stamp in make(keys(endpoint)).stamps(urls).values()]
    assert sizes == [len(DATA)] * 20 + [None] * 20


# ---- servers that do something else


class Odd(BaseHTTPRequestHandler):
    """Answers each GET with what the test prepared, and remembers the headers it was sent."""

    answers: list[tuple[int, dict[str, str], bytes]]
    seen: list[dict[str, str]]

    def do_GET(self) -> None:
        Odd.seen.append(dict(self.headers))
        status, headers, body = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "ETag": '"e"', **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def odd() -> Iterator[str]:
    """An endpoint that answers with `Odd.answers`."""
    Odd.answers, Odd.seen = [], []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Odd)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_session_token_is_sent(odd: str) -> None:
    Odd.answers = [(206, {"Content-Range": "bytes 0-2/9"}, b"abc")]
    assert make(keys(odd, session_token=SECRETS[2])).open(virtual(), CHUNK).read(0, 3, CHUNK) == b"abc"
    assert Odd.seen[0]["X-Amz-Security-Token"] == SECRETS[2]
    assert Odd.seen[0]["Range"] == "bytes=0-2"


@pytest.mark.parametrize(
    ("status", "headers", "body"),
    [
        (200, {}, b"0123456789"),  # the range was ignored
        (206, {"Content-Range": "bytes 5-7/10"}, b"567"),  # another range
        (206, {"Content-Range": "bytes 2-9/10"}, b"23456789"),  # more than asked for
        (206, {"Content-Range": "bytes 2-4/10"}, b"2345"),  # more than it says
    ],
)
def test_other_bytes_than_asked_for_are_not_taken(odd: str, status: int, headers: dict[str, str], body: bytes) -> None:
    Odd.answers = [(status, headers, body)]
    error = failure(make(keys(odd)).open(virtual(), CHUNK), 2, 3)
    assert error.kind == "virtual-chunk-fetch"
    assert "asked for bytes 2 to 5" in str(error)


def test_a_read_that_breaks_off_is_repeated_and_given_up(odd: str) -> None:
    broken = (206, {"Content-Range": "bytes 0-2/9", "Content-Length": "3"}, b"a")
    Odd.answers = [broken, (206, {"Content-Range": "bytes 0-2/9"}, b"abc")]
    assert make(keys(odd)).open(virtual(), CHUNK).read(0, 3, CHUNK) == b"abc"
    assert len(Odd.seen) == 2
    Odd.answers = [broken]
    error = failure(make(keys(odd)).open(virtual(), CHUNK), 0, 3)
    assert error.kind == "virtual-chunk-fetch"
    assert "broke off" in str(error)


@pytest.mark.parametrize("code", [SECRETS[0], SECRETS[1], "Odd Code", "AccessDenied"])
def test_what_the_server_writes_is_not_repeated_but_for_a_plain_code(odd: str, code: str) -> None:
    body = f"<Error><Code>{code}</Code><Message>{SECRETS[1]} {SECRETS[2]}</Message></Error>"
    Odd.answers = [(403, {}, body.encode())]
    error = failure(make(keys(odd, session_token=SECRETS[2])).open(virtual(), CHUNK))
    assert "HTTP 403" in str(error)
    assert ("AccessDenied" in str(error)) is (code == "AccessDenied")


def test_another_region_is_named(odd: str) -> None:
    Odd.answers = [(301, {}, b"<Error><Code>PermanentRedirect</Code></Error>")]
    assert "pass region=" in str(failure(make(keys(odd)).open(virtual(), CHUNK)))


# ---- the machinery


def test_clients_are_shared_and_few(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first, same = (make(keys(endpoint)).open(virtual(), CHUNK) for _ in range(2))
    assert first._target.client is same._target.client  # type: ignore[attr-defined]
    monkeypatch.setattr(clients, "_MAX_CLIENTS", 3)
    for number in range(6):
        make(S3Credentials("a", str(number)), endpoint=endpoint).open(virtual(), CHUNK)
    assert len(clients._clients._clients) <= 3 + 32


def test_access_pickles_without_its_connections(service: Any, endpoint: str) -> None:
    access = make(keys(endpoint))
    assert access.open(virtual(), CHUNK).read(0, 3, CHUNK) == DATA[:3]
    copy = pickle.loads(pickle.dumps(access))
    assert copy.open(virtual(), CHUNK).read(0, 3, CHUNK) == DATA[:3]


def test_a_forked_process_makes_its_own_connections(service: Any, endpoint: str) -> None:
    code = f"""
import os, sys
from icelite.config import VirtualChunkContainer
from icelite.credentials import s3_credentials
from icelite.types import ChunkType, Location
from icelite.virtual import VirtualAccess
keys = s3_credentials(access_key_id="a", secret_access_key="b", endpoint_url={endpoint!r}, allow_http=True)
access = VirtualAccess(directory=None, at_home=True, containers={{"b": VirtualChunkContainer("s3://bucket/")}},
                       declared={{}}, access={{"s3://bucket/": keys}})
source = access.open(Location(ChunkType.virtual, {URL!r}), "c")
assert source.read(0, 3, "c") == {DATA[:3]!r}
child = os.fork()
if child == 0:
    os._exit(0 if source.read(3, 3, "c") == {DATA[3:6]!r} else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) or (source.read(0, 3, "c") != {DATA[:3]!r}))
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(clients.__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
