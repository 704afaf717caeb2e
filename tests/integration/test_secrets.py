"""Passwords and signatures, planted wherever a URL or credential goes in, and looked for wherever they could come out.

That is: messages, reprs, chains of exceptions, logs, warnings, the command line, and the files that were written.
"""

from __future__ import annotations

import logging
import pickle
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import xarray as xr
import zarr
from click.testing import CliRunner

import icelite
from icelite import (
    HttpAccess,
    IceliteError,
    InvalidInputError,
    Repository,
    RepositoryConfig,
    S3Credentials,
    Session,
    StorageConfig,
    VirtualChunkContainer,
)
from icelite.cli.main import commands
from icelite.errors import CUT, ErrorKind, has_secret, redact
from icelite.kerchunk import export_kerchunk, import_kerchunk

SECRET = "-".join(("PLANTED", "SECRET"))  # not in one piece here: a traceback shows lines of this file
USER = f"https://reader:{SECRET}@127.0.0.1:9/data"
SIGNED = f"https://127.0.0.1:9/data/f.nc?X-Amz-Expires=60&X-Amz-Signature={SECRET}"
GROUP = '{"zarr_format":2}'
ARRAY = (
    '{"zarr_format":2,"shape":[1],"chunks":[1],"dtype":"|u1","fill_value":0,"order":"C",'
    '"compressor":null,"filters":null}'
)


class Refusing(BaseHTTPRequestHandler):
    """Answers every request with 403, and a body that repeats what was asked for."""

    def do_GET(self) -> None:
        self.send_response(403)
        body = self.path.encode()
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body if self.command == "GET" else b"")

    do_HEAD = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The URL of a server that refuses everything."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}/"
        httpd.shutdown()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ocean.icelite"


def writable(path: Path, **options: Any) -> Session:
    """A session of a new repository with one array, whose containers cover the hosts of this module."""
    config = RepositoryConfig(**options)
    for prefix in ("https://127.0.0.1:9/", "s3://bucket/"):
        config.set_virtual_chunk_container(VirtualChunkContainer(prefix))
    session = Repository.create(path, config).writable_session("main")
    zarr.create_array(session.store, name="x", shape=(1,), chunks=(1,), dtype="u1")
    return session


def seen(act: Callable[[], Any], caplog: pytest.LogCaptureFixture) -> str:
    """Everything that a call gives away: its result or its error with all behind it, log and warnings.

    At DEBUG, fsspec itself logs the names of the files that it was told to open.
    """
    with caplog.at_level(logging.DEBUG), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = act()
        except IceliteError as error:
            shown = [str(error), repr(error), repr(error.args), *traceback.format_exception(error)]
            shown.append(pickle.dumps(error).decode("latin-1"))
        else:
            shown = [repr(result), str(result)]
    logged = [record.getMessage() for record in caplog.records if not record.name.startswith("fsspec")]
    return "\n".join([*shown, *logged, *(str(warning.message) for warning in caught)])


def set_ref(path: Path, url: str, **options: Any) -> Any:
    session = writable(path)
    session.store.set_virtual_ref("x/c/0", url, offset=0, length=1, **options)
    return session.commit("m")


REFUSED: dict[str, Callable[[Path], Any]] = {
    "container, user": lambda path: VirtualChunkContainer(f"{USER}/"),
    "container, user only": lambda path: VirtualChunkContainer(f"https://{SECRET}@h.org/"),
    "container, user in a bucket": lambda path: VirtualChunkContainer(f"s3://reader:{SECRET}@bucket/"),
    "container, signature": lambda path: VirtualChunkContainer(f"https://h.org/x?sig={SECRET}"),
    "container, token": lambda path: VirtualChunkContainer(f"https://h.org/x?a=1&access_token={SECRET}/"),
    "authorised prefix": lambda path: Repository.create(path, None, {f"{USER}/": HttpAccess}),
    "authorised signature": lambda path: Repository.create(path, None, {f"https://h.org/?token={SECRET}": None}),
    "authorised, no scheme": lambda path: Repository.create(path, None, {f"reader://u:{SECRET}@h.org/": None}),
    "reference, user": lambda path: set_ref(path, f"{USER}/f.nc"),
    "reference, user in a bucket": lambda path: set_ref(path, f"s3://u:{SECRET}@bucket/f.nc"),
    "reference, presigned": lambda path: set_ref(path, SIGNED),
    "reference, presigned s3": lambda path: set_ref(path, f"s3://bucket/f.nc?X-Amz-Security-Token={SECRET}"),
    "reference, shared access": lambda path: set_ref(path, f"https://127.0.0.1:9/f.nc?sv=1&sig={SECRET}&se=2"),
    "reference, encoded": lambda path: set_ref(path, f"https://127.0.0.1:9/f.nc?%73ig={SECRET}"),
    "reference, upper case": lambda path: set_ref(path, f"https://127.0.0.1:9/f.nc?TOKEN={SECRET}"),
    "reference, fragment": lambda path: set_ref(path, f"https://127.0.0.1:9/f.nc#access_token={SECRET}"),
    "reference, unknown scheme": lambda path: set_ref(path, f"ftp://u:{SECRET}@h.org/f.nc"),
    "reference, no container": lambda path: set_ref(path, f"https://h.org/f.nc?sig={SECRET}"),
    "reference, dots": lambda path: set_ref(path, f"https://u:{SECRET}@127.0.0.1:9/../f.nc"),
    "reference, length": lambda path: set_ref(path, SIGNED, checksum=3),
    "references": lambda path: writable(path).store.set_virtual_refs(
        "x", [icelite.VirtualChunkSpec([0], SIGNED, 0, 1), icelite.VirtualChunkSpec([1], f"{USER}/f", 0, 0)]
    ),
    "references in columns": lambda path: writable(path).store.set_virtual_refs_arr("x", (1,), [SIGNED], [0], [1]),
    "relocate to a user": lambda path: writable(path) and Repository.open(path).relocate("./", f"{USER}/"),
    "relocate to a signature": lambda path: writable(path) and Repository.open(path).relocate("./f.nc", SIGNED),
    "relocate from a user": lambda path: writable(path) and Repository.open(path).relocate(f"{USER}/", "./"),
    "storage, user in a bucket": lambda path: Repository.open(f"s3://u:{SECRET}@bucket/o.icelite"),
    "storage, web user": lambda path: Repository.open(f"{USER}/o.icelite"),
    "storage, web dots": lambda path: Repository.open(f"https://h.org/../o.icelite?sig={SECRET}"),
    "storage, other": lambda path: Repository.open(f"ftp://u:{SECRET}@h.org/o.icelite"),
    "storage, other query": lambda path: Repository.exists(f"gs://b/o.icelite?token={SECRET}"),
    "endpoint, query": lambda path: StorageConfig.s3_from_config(bucket="b", endpoint_url=f"https://h?sig={SECRET}"),
    "endpoint, user": lambda path: StorageConfig.s3_from_config(bucket="b", endpoint_url=f"https://u:{SECRET}@h"),
    "endpoint, other query": lambda path: icelite.S3Options(endpoint_url=f"https://h/?apikey={SECRET}"),
    "endpoint, no scheme": lambda path: icelite.S3Options(endpoint_url=f"u:{SECRET}@h"),
    "objects, web": lambda path: Repository.create(path, objects=f"{USER}/chunks"),
    "objects, signature": lambda path: Repository.create(path, objects=f"https://h.org/chunks?sig={SECRET}"),
    "objects, bucket": lambda path: Repository.create(path, objects=f"s3://u:{SECRET}@bucket/chunks"),
    "objects, bucket signature": lambda path: Repository.create(path, objects=f"s3://bucket/chunks?sig={SECRET}"),
    "virtualize": lambda path: icelite.virtualize(f"{USER}/f.nc?sig={SECRET}", path),
    "virtualize a list": lambda path: icelite.virtualize([SIGNED, f"{USER}/g.nc"], path, concat_dim="t"),
    "virtualize a bucket": lambda path: icelite.virtualize(f"s3://u:{SECRET}@bucket/*.nc", path),
    "open_virtual": lambda path: icelite.open_virtual(SIGNED),
    "open_virtual with a user": lambda path: icelite.open_virtual(f"{USER}/f.nc"),
    "import of kerchunk": lambda path: import_kerchunk(f"{USER}/refs.json?sig={SECRET}", path),
    "import of presigned kerchunk": lambda path: import_kerchunk(f"file:///nowhere/r.json?sig={SECRET}", path),
    "import of kerchunk from a bucket": lambda path: import_kerchunk(f"nothing://u:{SECRET}@h/refs.json", path),
    "kerchunk, presigned": lambda path: import_kerchunk(
        {".zgroup": GROUP, "x/.zarray": ARRAY, "x/0": [SIGNED, 0, 1]}, path, validate_containers=False
    ),
    "kerchunk, user": lambda path: import_kerchunk(
        {".zgroup": GROUP, "x/.zarray": ARRAY, "x/0": [f"{USER}/f", 0, 1]}, path, validate_containers=False
    ),
    "kerchunk, template": lambda path: import_kerchunk(
        {
            "version": 1,
            "templates": {"u": f"{USER}/f?sig={SECRET}"},
            "refs": {".zgroup": GROUP, "x/.zarray": ARRAY, "x/0": ["{{u}}", 0, 1]},
        },
        path,
        validate_containers=False,
    ),
    "kerchunk, malformed": lambda path: import_kerchunk(
        {".zgroup": GROUP, "x/.zarray": ARRAY, "x/0": [SIGNED, 0], ".zattrs": [f"{USER}/f", 0, 1]}, path
    ),
    "export of kerchunk": lambda path: writable(path) and export_kerchunk(path, f"nothing://u:{SECRET}@h/refs.json"),
    "export of zarr": lambda path: writable(path) and Repository.open(path).export_zarr(f"nothing://u:{SECRET}@h/z"),
    "export of zarr, zip": lambda path: writable(path) and Repository.open(path).export_zarr(f"{USER}/z.zip"),
    "bundle": lambda path: writable(path) and Repository.open(path).bundle(f"{USER}/b.icelite"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_tells_no_secret(name: str, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    said: list[str] = []

    def act() -> None:
        try:
            REFUSED[name](path)
        except IceliteError as error:
            said.append(error.kind)
            raise

    found = seen(act, caplog)
    assert SECRET not in found
    assert said, "it was taken"
    assert said[0] != ErrorKind.UNKNOWN
    assert all(SECRET.encode() not in file.read_bytes() for file in path.parent.rglob("*") if file.is_file())


CREDENTIALS = S3Credentials(access_key_id="AKID", secret_access_key=SECRET, session_token=SECRET)
SHOWN: dict[str, Callable[[], Any]] = {
    "credentials": lambda: CREDENTIALS,
    "storage": lambda: StorageConfig.s3_from_config(bucket="b", prefix="o.icelite", credentials=CREDENTIALS),
    "presigned storage": lambda: StorageConfig.http(f"https://h.org/o.icelite?X-Amz-Signature={SECRET}"),
    "headers": lambda: StorageConfig.http("https://h.org/o.icelite", headers={"Authorization": f"Bearer {SECRET}"}),
    "location": lambda: icelite.types.Location(icelite.types.ChunkType.virtual, SIGNED),
    "location with a user": lambda: icelite.types.Location(icelite.types.ChunkType.virtual, f"{USER}/f.nc"),
    "spec": lambda: icelite.VirtualChunkSpec([0], SIGNED, 0, 1),
    "reference config": lambda: icelite.VirtualRefConfig.s3_from_config(credentials=CREDENTIALS),
}


@pytest.mark.parametrize("name", SHOWN)
def test_a_repr_tells_no_secret(name: str, caplog: pytest.LogCaptureFixture) -> None:
    assert SECRET not in seen(SHOWN[name], caplog)


@pytest.fixture
def stored(path: Path, server: str) -> Path:
    """A catalog with a reference whose presigned URL was stored on request, on a server that refuses it."""
    config = RepositoryConfig(store_signed_urls=True)
    config.set_virtual_chunk_container(VirtualChunkContainer(server, name="host"))
    with closing(Repository.create(path, config)) as repo:
        session = repo.writable_session("main")
        zarr.create_array(session.store, name="x", shape=(2,), chunks=(1,), dtype="u1", dimension_names=["i"])
        session.store.set_virtual_ref("x/c/0", f"{server}f.nc?X-Amz-Signature={SECRET}", offset=0, length=1)
        session.store.set_virtual_ref("x/c/1", f"vcc://host/g.nc?sig={SECRET}", offset=0, length=1)
        session.commit("signed on request")
    return path


async def batches(session: Session) -> list[Any]:
    return [batch async for batch in session.array_chunk_iterator("x")]


def opened(path: Path, server: str | None = None) -> Repository:
    return Repository.open(path, None, None if server is None else {server: HttpAccess})


LISTED: dict[str, Callable[[Path, str], Any]] = {
    "sources": lambda path, server: list(opened(path).sources()),
    "sources as columns": lambda path, server: opened(path).sources().to_dict(),
    "sources checked": lambda path, server: list(opened(path, server).sources(check=True)),
    "verify_sources": lambda path, server: opened(path, server).verify_sources(),
    "verify": lambda path, server: list(opened(path).verify()),
    "required_access": lambda path, server: opened(path).required_access(),
    "all_virtual_chunk_locations": lambda path, server: (
        opened(path).readonly_session("main").all_virtual_chunk_locations()
    ),
    "chunk_refs": lambda path, server: opened(path).readonly_session("main").chunk_refs("x").to_dict(),
    "array_chunk_iterator": lambda path, server: zarr.core.sync.sync(batches(opened(path).readonly_session("main"))),
    "read, not authorised": lambda path, server: opened(path).readonly_session("main").store.get_sync("x/c/0"),
    "read, refused": lambda path, server: zarr.open_array(
        opened(path, server).readonly_session("main").store, path="x"
    )[:],
    "read by xarray": lambda path, server: xr.open_dataset(
        path, engine="icelite", authorize_virtual_chunk_access={server: HttpAccess}
    ),
    "relocate, dry": lambda path, server: opened(path).relocate(server, "https://other.org/", dry_run=True),
    "relocate, checked": lambda path, server: opened(path, server).relocate(
        server, server.replace("http:", "https:"), check=True
    ),
    "export of kerchunk": lambda path, server: export_kerchunk(path, path.with_name("refs.json")),
    "export of kerchunk with the bytes": lambda path, server: export_kerchunk(
        opened(path, server), path.with_name("refs.json"), inline_threshold=10
    ),
    "export of zarr": lambda path, server: opened(path, server).export_zarr(path.with_name("z")),
    "bundle": lambda path, server: opened(path, server).bundle(path.with_name("b.icelite")),
    "config": lambda path, server: opened(path).config,
    "ops_log": lambda path, server: list(opened(path).ops_log()),
    "repository": lambda path, server: opened(path, server),
    "store": lambda path, server: opened(path, server).readonly_session("main").store,
}


@pytest.mark.parametrize("name", LISTED)
def test_what_was_stored_on_request_is_shown_without_its_signature(
    name: str, stored: Path, server: str, caplog: pytest.LogCaptureFixture
) -> None:
    found = seen(lambda: LISTED[name](stored, server), caplog)
    assert SECRET not in found
    written = [file for file in stored.parent.rglob("*") if file.is_file() and not file.name.startswith("ocean")]
    assert all(SECRET.encode() not in file.read_bytes() for file in written)
    if name in ("sources", "chunk_refs", "all_virtual_chunk_locations", "array_chunk_iterator"):
        assert CUT in found


@pytest.mark.parametrize(
    "arguments",
    [
        *[["sources"], ["sources", "--json"], ["sources", "--check"], ["refs"], ["refs", "--json"], ["verify"]],
        *[["verify", "--sources"], ["info"], ["log"], ["ls"], ["relocate", "http://", "https://h.org/"]],
    ],
    ids=" ".join,
)
def test_the_command_line_shows_no_signature(arguments: list[str], stored: Path) -> None:
    verb, *options = arguments
    more = ["x"] if verb == "refs" else []
    result = CliRunner().invoke(commands, [verb, str(stored), *more, *options])
    assert SECRET not in result.output + repr(result.exception)
    assert result.output or result.exception


@pytest.mark.parametrize(
    "arguments",
    [
        ["info", f"{USER}/o.icelite"],
        ["log", f"https://127.0.0.1:9/o.icelite?sig={SECRET}"],
        ["ls", f"s3://u:{SECRET}@bucket/o.icelite"],
        ["verify", f"{USER}/o.icelite"],
        ["virtualize", SIGNED, "-o", "{path}"],
        ["virtualize", SIGNED, "-o", "{path}", "--access", f"{USER}/"],
        ["virtualize", "x.nc", "-o", f"s3://u:{SECRET}@bucket/o.icelite"],
        ["import", "kerchunk", SIGNED, "{path}"],
        ["import", "kerchunk", f"{USER}/refs.json", "{path}"],
        ["export", "kerchunk", "{stored}", f"nothing://u:{SECRET}@h/refs.json"],
        ["export", "zarr", "{stored}", f"nothing://u:{SECRET}@h/z"],
        ["bundle", "{stored}", f"{USER}/b.icelite"],
        ["relocate", "{stored}", f"{USER}/", "https://h.org/"],
        ["relocate", "{stored}", "http://", f"{USER}/"],
        ["create", "{path}", "--objects", f"{USER}/chunks"],
    ],
    ids=lambda arguments: " ".join(arguments[:2]).partition("://")[0],
)
def test_the_command_line_repeats_no_secret(arguments: list[str], stored: Path) -> None:
    paths = {"path": str(stored.with_name("new.icelite")), "stored": str(stored)}
    result = CliRunner().invoke(commands, [argument.format_map(paths) for argument in arguments])
    assert result.exit_code != 0
    told = result.output + "".join(traceback.format_exception(result.exception))
    assert SECRET not in told


def test_signed_urls_are_stored_only_for_who_asks_in_this_process(path: Path, stored: Path, server: str) -> None:
    assert SECRET.encode() in stored.read_bytes()
    session = Repository.open(stored).writable_session("main")
    with pytest.raises(InvalidInputError, match=r"config=icelite\.RepositoryConfig\(store_signed_urls=True\)"):
        session.store.set_virtual_ref("x/c/0", f"{server}f.nc?X-Amz-Signature={SECRET}", offset=0, length=1)
    again = Repository.open(stored, RepositoryConfig(store_signed_urls=True)).writable_session("main")
    again.store.set_virtual_ref("x/c/0", f"{server}h.nc?X-Amz-Signature={SECRET}", offset=0, length=1)
    fork = pickle.loads(pickle.dumps(again.fork()))
    fork.store.set_virtual_ref("x/c/1", f"{server}i.nc?X-Amz-Signature={SECRET}", offset=0, length=1)
    again.merge(fork)
    again.commit("two more")


def test_a_signed_reference_is_sent_as_it_was_stored(path: Path) -> None:
    asked: list[str] = []

    class Serving(Refusing):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(206)
            self.send_header("Content-Range", "bytes 0-0/1")
            self.send_header("Content-Length", "1")
            self.end_headers()
            self.wfile.write(b"\7")

    with ThreadingHTTPServer(("127.0.0.1", 0), Serving) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        prefix = f"http://127.0.0.1:{httpd.server_port}/"
        config = RepositoryConfig(store_signed_urls=True)
        config.set_virtual_chunk_container(VirtualChunkContainer(prefix))
        session = Repository.create(path, config, {prefix: HttpAccess}).writable_session("main")
        array = zarr.create_array(session.store, name="x", shape=(1,), chunks=(1,), dtype="u1", compressors=None)
        session.store.set_virtual_ref("x/c/0", f"{prefix}f.nc?a=b&sig={SECRET}", offset=0, length=1)
        assert array[:].tolist() == [7]
        httpd.shutdown()
    assert asked[-1] == f"/f.nc?a=b&sig={SECRET}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s3://bucket/a@b/c=d", "s3://bucket/a@b/c=d"),
        ("https://h.org/get?path=/data/&design=2&n=1", "https://h.org/get?path=/data/&design=2&n=1"),
        ("a = b, c@d.org", "a = b, c@d.org"),
        ("'https://u:p@h.org/x' and 's3://k@b/y'", f"'https://{CUT}@h.org/x' and 's3://{CUT}@b/y'"),
        ("https://h/x?a=1&Signature=ab%2Fc&b=2 fails", f"https://h/x?a=1&Signature={CUT}&b=2 fails"),
        ("'https://h/x?X-Goog-Signature=abc'", f"'https://h/x?X-Goog-Signature={CUT}'"),
        ("https://h/x?%73ig=abc&t%6Fken=a", f"https://h/x?%73ig={CUT}&t%6Fken={CUT}"),
        ("https%3A%2F%2Fh%2Fx%3Fsig%3Dabc%26n", f"https%3A%2F%2Fh%2Fx%3Fsig%3D{CUT}"),
    ],
)
def test_what_is_cut(text: str, expected: str) -> None:
    assert redact(text) == expected
    assert redact(expected) == expected
    assert has_secret(text) == (text != expected)
