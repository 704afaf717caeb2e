"""A month of daily files on a real S3 service: referenced there, committed, opened again, equal to the files.

Every way to bring credentials, through every way to open; each way to be turned away; objects that changed.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pytest
import xarray as xr
import zarr
from oisst import write_days
from zarr.core.buffer import default_buffer_prototype

import icelite
from icelite import IceliteError, IceliteStore, Repository, StorageConfig, StoreConfig, VirtualRefConfig
from icelite.virtualizarr import to_icelite

pytest.importorskip("virtualizarr")
pytest.importorskip("obstore")

pytestmark = [
    pytest.mark.s3,
    pytest.mark.usefixtures("no_aws_settings", "no_forgotten_errors"),
]

T = TypeVar("T")
GRID, FIRST, DAYS = (72, 144), date(2024, 8, 1), 31
COMBINE: dict[str, Any] = {
    "combine": "nested",
    "concat_dim": "time",
    "data_vars": "minimal",
    "coords": "minimal",
    "compat": "override",
    "combine_attrs": "override",
}
SECRETS = ("AKID", "ASIA", "a-secret", "eyJ")  # how the key ids, secrets and tokens of these tests begin
UNKNOWN = {"access_key_id": "AKIDTHATNOBODYKNOWS", "secret_access_key": "a-secret-of-nobody"}
IN_BOUNDS = 60  # seconds, after which something is held to be stuck


def original(files: Sequence[Path], **options: Any) -> xr.Dataset:
    with xr.open_mfdataset(files, **COMBINE, **options) as dataset:
        return dataset.load()


def check_same(found: xr.Dataset, expected: xr.Dataset) -> None:
    """Everything is equal, and every value bit for bit: 0 is not -0."""
    xr.testing.assert_identical(found.load(), expected)
    check_bits(found, expected)


def check_bits(found: xr.Dataset, expected: xr.Dataset) -> None:
    for name, variable in expected.variables.items():
        values, others = variable.to_numpy(), found[name].to_numpy()
        assert (values.dtype, values.tobytes()) == (others.dtype, others.tobytes()), name


def virtual(s3: Any, urls: Sequence[str], *, loadable: list[str] | None = None, **signing: Any) -> xr.Dataset:
    """The objects as one virtual dataset, read where they are, with dimension coordinates loaded unless told."""
    from obspec_utils.registry import ObjectStoreRegistry
    from obstore.store import S3Store
    from virtualizarr import open_virtual_mfdataset
    from virtualizarr.parsers import HDFParser

    bucket = urls[0].split("/")[2]
    place = {"endpoint": s3.endpoint, "region": s3.region, "client_options": {"allow_http": True}}
    registry = ObjectStoreRegistry({f"s3://{bucket}": S3Store(bucket, **place, **signing)})
    dataset: xr.Dataset = open_virtual_mfdataset(urls, registry, HDFParser(), loadable_variables=loadable, **COMBINE)
    return dataset


def within_bounds(work: Callable[[], T]) -> T:
    """Do something that must not get stuck, in a thread of its own."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001  # raised by the caller's thread
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future.result(IN_BOUNDS)


def refusal(work: Callable[[], object], caplog: pytest.LogCaptureFixture) -> IceliteError:
    """The one error, after a look for secrets everywhere it might show them, and for other errors around it."""
    with pytest.raises(IceliteError) as caught:
        within_bounds(work)
    error = caught.value
    shown = "".join(traceback.format_exception(error)) + repr(error) + repr(vars(error)) + caplog.text
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if Path(icelite.__file__).parent in Path(frame.f_code.co_filename).parents:
            shown += repr(frame.f_locals)
    assert not [secret for secret in SECRETS if secret in shown]
    chain: BaseException | None = error
    while chain is not None:
        assert isinstance(chain, IceliteError)
        chain = chain.__cause__ or chain.__context__
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    return error


@dataclass(frozen=True)
class Month:
    """A month in a bucket: the objects, references to them, and a catalog with those references."""

    prefix: str
    urls: list[str]
    dataset: xr.Dataset
    catalog: Path


def declared(s3: Any, prefix: str) -> icelite.RepositoryConfig:
    """The caller's own configuration, which says where the service is."""
    container = icelite.VirtualChunkContainer(prefix, icelite.s3_store(**s3.place))
    return icelite.RepositoryConfig(virtual_chunk_containers={prefix: container})


def write_month(s3: Any, prefix: str, catalog: Path, dataset: xr.Dataset, credentials: Any) -> None:
    with_place = declared(s3, prefix)
    repo = Repository.create(catalog, config=with_place, authorize_virtual_chunk_access={prefix: credentials})
    session = repo.writable_session("main")
    to_icelite(dataset, session.store)
    session.commit("August 2024")
    repo.close()


class Remembered(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(self.format(record))


@pytest.fixture(scope="module")
def no_forgotten_errors() -> Iterator[None]:
    """No task of an event loop ended with an error that nobody looked at."""
    remembered, logger = Remembered(), logging.getLogger("asyncio")
    logger.addHandler(remembered)
    yield
    gc.collect()  # that is when tasks complain
    logger.removeHandler(remembered)
    assert remembered.messages == []


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A month of files and the day after."""
    return write_days(tmp_path_factory.mktemp("oisst"), FIRST, DAYS + 1, GRID)


@pytest.fixture(scope="module")
def expected(days: list[Path]) -> xr.Dataset:
    """What xarray reads from the month's files."""
    return original(days[:DAYS])


@pytest.fixture(scope="module")
def packed(days: list[Path]) -> xr.Dataset:
    """The integers that the month's files hold."""
    return original(days[:DAYS], mask_and_scale=False)


@pytest.fixture(scope="module")
def archive(no_aws_settings: None, s3_server: Any) -> Any:
    """The service as s3fs shows it to the one who may do everything."""
    from s3fs import S3FileSystem

    keys = {"key": s3_server.keys["access_key_id"], "secret": s3_server.keys["secret_access_key"]}
    return S3FileSystem(endpoint_url=s3_server.endpoint, client_kwargs={"region_name": s3_server.region}, **keys)


@pytest.fixture(scope="module")
def private(s3_server: Any, archive: Any, days: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Month:
    """The month in the bucket that needs keys, and the day after it."""
    archive.put([str(day) for day in days], f"{s3_server.private}/v2.1/")
    urls = [f"s3://{s3_server.private}/v2.1/{day.name}" for day in days]
    prefix, catalog = f"s3://{s3_server.private}/", tmp_path_factory.mktemp("private") / "august.icelite"
    dataset = virtual(s3_server, urls[:DAYS], **s3_server.keys)
    write_month(s3_server, prefix, catalog, dataset, icelite.S3Credentials(**s3_server.keys))
    return Month(prefix, urls, dataset, catalog)


@pytest.fixture(scope="module")
def public(s3_server: Any, archive: Any, days: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Month:
    """The month in the bucket that anyone may read, found and referenced without keys."""
    from s3fs import S3FileSystem

    archive.put([str(day) for day in days[:DAYS]], f"{s3_server.public}/v2.1/")
    anyone = S3FileSystem(anon=True, endpoint_url=s3_server.endpoint)
    urls = sorted("s3://" + path for path in anyone.glob(f"{s3_server.public}/v2.1/*.nc"))
    prefix, catalog = f"s3://{s3_server.public}/", tmp_path_factory.mktemp("public") / "august.icelite"
    dataset = virtual(s3_server, urls, skip_signature=True)
    write_month(s3_server, prefix, catalog, dataset, icelite.s3_anonymous_credentials())
    return Month(prefix, urls, dataset, catalog)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, s3_server: Any) -> None:
    """Keys in the environment."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.keys["access_key_id"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_server.keys["secret_access_key"])


# ---- ways to be let in

# name: the credentials given the service; whether they say where the service is, instead of a declared container
WAYS: dict[str, tuple[Callable[[Any], Any], bool]] = {
    "keys and place": (lambda s3: icelite.s3_credentials(**s3.keys, **s3.place), True),
    "keys": (lambda s3: icelite.S3Credentials(**s3.keys), False),
    "static keys": (lambda s3: icelite.s3_static_credentials(**s3.keys), False),
    "temporary keys": (lambda s3: icelite.s3_credentials(**s3.temporary_keys(), **s3.place), True),
    "keys asked for": (
        lambda s3: icelite.s3_refreshable_credentials(lambda: icelite.S3StaticCredentials(**s3.temporary_keys())),
        False,
    ),
    "environment": (lambda s3: icelite.s3_credentials(from_env=True), False),
    "environment and place": (lambda s3: icelite.s3_credentials(**s3.place), True),
    "nothing, so the environment": (lambda s3: None, False),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_month_equals_the_files(
    s3_server: Any, private: Month, expected: xr.Dataset, environment: None, way: str
) -> None:
    credentials, with_place = WAYS[way]
    access = {private.prefix: credentials(s3_server)}
    config = None if with_place else declared(s3_server, private.prefix)
    repo = Repository.open(private.catalog, config=config, authorize_virtual_chunk_access=access)
    assert repo.lookup_snapshot(repo.lookup_branch("main")).message == "August 2024"
    check_same(xr.open_dataset(repo.readonly_session("main").store)[["ice"]], expected[["ice"]])
    with xr.open_dataset(
        private.catalog, engine="icelite", authorize_virtual_chunk_access=access, config=config
    ) as found:
        check_same(found, expected)


@pytest.mark.parametrize("with_place", [True, False])
def test_the_public_month_needs_no_keys(s3_server: Any, public: Month, expected: xr.Dataset, with_place: bool) -> None:
    place = s3_server.place if with_place else {}
    access = {public.prefix: icelite.s3_credentials(anonymous=True, **place)}
    config = None if with_place else declared(s3_server, public.prefix)
    repo = Repository.open(public.catalog, config=config, authorize_virtual_chunk_access=access)
    check_same(xr.open_dataset(repo), expected)
    with xr.open_dataset(public.catalog, authorize_virtual_chunk_access=access, config=config) as found:
        check_same(found, expected)


@pytest.mark.parametrize("way", ["config", "env", "anonymous"])
def test_store_first(
    s3_server: Any,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    expected: xr.Dataset,
    packed: xr.Dataset,
    tmp_path: Path,
    way: str,
) -> None:
    month: Month = request.getfixturevalue("public" if way == "anonymous" else "private")
    if way == "config":
        keys = icelite.S3Credentials(**s3_server.keys)
        refs = VirtualRefConfig.s3_from_config(credentials=keys, **s3_server.place)
    elif way == "env":
        request.getfixturevalue("environment")
        monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.endpoint)
        monkeypatch.setenv("AWS_REGION", s3_server.region)
        refs = VirtualRefConfig.s3_from_env()
    else:
        refs = VirtualRefConfig.s3_anonymous(**s3_server.place)
    storage, config = StorageConfig.filesystem(tmp_path / "august.icelite"), StoreConfig(virtual_ref_config=refs)
    store = IceliteStore.create(storage=storage, config=config)
    to_icelite(month.dataset, store)
    store.commit("August 2024")
    check_same(xr.open_dataset(store), expected)
    again = IceliteStore.open_existing(storage=storage, config=config)
    check_same(xr.open_dataset(again), expected)
    check_bits(xr.open_zarr(again, mask_and_scale=False), packed)
    assert all(secret.encode() not in (tmp_path / "august.icelite").read_bytes() for secret in s3_server.keys.values())


def test_another_process_brings_its_own_environment(
    s3_server: Any, private: Month, expected: xr.Dataset, environment: None, tmp_path: Path
) -> None:
    script = f"""
import icelite, xarray
store = icelite.s3_store({s3_server.region!r}, {s3_server.endpoint!r}, allow_http=True)
container = icelite.VirtualChunkContainer({private.prefix!r}, store)
dataset = xarray.open_dataset(
    {str(private.catalog)!r},
    config=icelite.RepositoryConfig(virtual_chunk_containers={{container.url_prefix: container}}),
    authorize_virtual_chunk_access={{{private.prefix!r}: icelite.s3_from_env_credentials()}},
)
dataset.sst.values.tofile({str(tmp_path / "sst")!r})
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=IN_BOUNDS, env=dict(os.environ), cwd=tmp_path)
    assert (tmp_path / "sst").read_bytes() == expected.sst.values.tobytes()


def test_what_to_pass_is_listed(private: Month) -> None:
    assert list(Repository.open(private.catalog).required_access()) == [private.prefix]


def test_a_day_is_appended(
    s3_server: Any, private: Month, days: list[Path], expected: xr.Dataset, tmp_path: Path
) -> None:
    catalog, access = tmp_path / "ocean.icelite", {private.prefix: icelite.S3Credentials(**s3_server.keys)}
    write_month(s3_server, private.prefix, catalog, private.dataset, access[private.prefix])
    config = declared(s3_server, private.prefix)
    repo = Repository.open(catalog, config=config, authorize_virtual_chunk_access=access)
    repo.create_tag("august", repo.lookup_branch("main"))
    session = repo.writable_session("main")
    to_icelite(virtual(s3_server, private.urls[DAYS:], **s3_server.keys), session.store, append_dim="time")
    session.commit("1 September 2024")
    with xr.open_dataset(days[DAYS]) as last:
        attributes = last.attrs  # as with xarray's own append_dim
    opened = {"config": config, "authorize_virtual_chunk_access": access}
    with xr.open_dataset(catalog, **opened) as found:
        check_same(found, original(days).assign_attrs(attributes))
    with xr.open_dataset(catalog, tag="august", **opened) as found:
        check_same(found, expected)


class Recorder(BaseHTTPRequestHandler):
    """Answers nothing but remembers how requests were signed, since SeaweedFS takes any region."""

    signed: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.signed.append(self.headers["Authorization"])
        self.send_error(404)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.mark.parametrize("given", ["with the keys", "with the container", "in the environment", "nowhere"])
def test_the_region_is_the_callers(private: Month, monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    Recorder.signed.clear()
    with HTTPServer(("127.0.0.1", 0), Recorder) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        place = {"endpoint_url": f"http://127.0.0.1:{server.server_address[1]}", "allow_http": True}
        region = {"region": "eu-west-3"}
        if given == "in the environment":
            monkeypatch.setenv("AWS_REGION", "eu-west-3")
        container = icelite.s3_store(**place, **(region if given == "with the container" else {}))
        declared = {private.prefix: icelite.VirtualChunkContainer(private.prefix, container)}
        credentials = icelite.s3_credentials(**UNKNOWN, **(region if given == "with the keys" else {}))
        repo = Repository.open(
            private.catalog,
            config=icelite.RepositoryConfig(virtual_chunk_containers=declared),
            authorize_virtual_chunk_access={private.prefix: credentials},
        )
        with pytest.raises(IceliteError, match="does not exist, says S3"):
            repo.readonly_session("main").store.get_sync("sst/c/0/0/0/0")
        server.shutdown()
    expected = "us-east-1" if given == "nowhere" else "eu-west-3"
    assert f"/{expected}/s3/aws4_request" in Recorder.signed[0]


def test_keys_may_be_asked_of_s3_itself(
    s3_server: Any, private: Month, archive: Any, expected: xr.Dataset, tmp_path: Path
) -> None:
    """Through the same library, whose event loop must not be the one that waits for the answer."""
    archive.pipe_file(f"{s3_server.private}/keys.json", json.dumps(s3_server.temporary_keys()).encode())

    def ask() -> icelite.S3StaticCredentials:
        return icelite.S3StaticCredentials(**json.loads(archive.cat_file(f"{s3_server.private}/keys.json")))

    catalog, first = tmp_path / "asked.icelite", icelite.s3_credentials(get_credentials=ask)
    write_month(s3_server, private.prefix, catalog, private.dataset, first)
    access = {private.prefix: icelite.s3_credentials(get_credentials=ask, **s3_server.place)}
    with xr.open_dataset(catalog, authorize_virtual_chunk_access=access) as found:
        check_same(within_bounds(found[["sst"]].load), expected[["sst"]])


def test_coordinates_may_be_references_too(
    s3_server: Any, public: Month, days: list[Path], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """Then opening the dataset reads them, so it is opening that fails."""
    catalog, anyone = tmp_path / "two.icelite", icelite.s3_credentials(anonymous=True, **s3_server.place)
    dataset = virtual(s3_server, public.urls[:2], loadable=[], skip_signature=True)
    write_month(s3_server, public.prefix, catalog, dataset, anyone)
    with xr.open_dataset(catalog, authorize_virtual_chunk_access={public.prefix: anyone}) as found:
        check_same(found, original(days[:2]))
    error = refusal(lambda: xr.open_dataset(catalog), caplog)
    assert error.kind == "unauthorized-virtual-chunk-container"


@pytest.mark.parametrize("key", ["a b", "a#b", "a%20b", "a+b", "a?b=c&d", "a~b'(c)!*", "æøå/日本", "a:b@c=d;e,f"])
def test_a_key_is_taken_as_it_stands(s3_server: Any, archive: Any, key: str) -> None:
    s3_server.client().put_object(Bucket=s3_server.public, Key=f"odd/{key}.bin", Body=bytes(range(200)))
    refs = VirtualRefConfig.s3_anonymous(**s3_server.place)
    store = IceliteStore.create(StorageConfig.memory(), StoreConfig(virtual_ref_config=refs))
    array = zarr.create_array(store, shape=(100,), chunks=(50,), dtype="u1", compressors=None)
    store.set_virtual_ref("c/1", f"s3://{s3_server.public}/odd/{key}.bin", offset=150, length=50)
    store.commit()
    assert array[:].tobytes() == bytes(50) + bytes(range(150, 200))


# ---- many readers


@pytest.fixture
def access(s3_server: Any, private: Month) -> dict[str, Any]:
    return {private.prefix: icelite.s3_credentials(**s3_server.keys, **s3_server.place)}


def test_dask_threads(private: Month, expected: xr.Dataset, access: dict[str, Any]) -> None:
    pytest.importorskip("dask")
    with xr.open_dataset(private.catalog, chunks={}, authorize_virtual_chunk_access=access) as found:
        assert found.chunksizes["time"] == (1,) * DAYS
        check_same(within_bounds(lambda: found.compute(scheduler="threads", num_workers=8)), expected)


def test_dask_processes(private: Month, expected: xr.Dataset, access: dict[str, Any]) -> None:
    pytest.importorskip("dask")
    with xr.open_dataset(private.catalog, chunks={}, authorize_virtual_chunk_access=access) as found:
        days = found[["err"]].isel(time=slice(4))
        computed = within_bounds(lambda: days.compute(scheduler="processes", num_workers=1))
    check_same(computed, expected[["err"]].isel(time=slice(4)))


def test_threads_with_repositories_of_their_own(private: Month, expected: xr.Dataset, access: dict[str, Any]) -> None:
    def read(_: int) -> xr.Dataset:
        with xr.open_dataset(private.catalog, authorize_virtual_chunk_access=access) as found:
            return found[["sst"]].load()

    with ThreadPoolExecutor(8) as pool:
        for found in within_bounds(lambda: list(pool.map(read, range(8)))):
            check_same(found, expected[["sst"]])


def test_inside_a_running_event_loop(private: Month, expected: xr.Dataset, access: dict[str, Any]) -> None:
    """As in a notebook: the code is not asynchronous, the thread that runs it has a loop all the same."""

    async def main() -> xr.Dataset:
        return xr.open_dataset(private.catalog, authorize_virtual_chunk_access=access).load()

    check_same(within_bounds(lambda: asyncio.run(main())), expected)


def test_writing_inside_a_running_event_loop(
    s3_server: Any, private: Month, expected: xr.Dataset, tmp_path: Path, access: dict[str, Any]
) -> None:
    async def main() -> None:
        write_month(s3_server, private.prefix, tmp_path / "a.icelite", private.dataset, access[private.prefix])

    within_bounds(lambda: asyncio.run(main()))
    with xr.open_dataset(tmp_path / "a.icelite", authorize_virtual_chunk_access=access) as found:
        check_same(found, expected)


def test_a_store_is_awaited_on_any_loop(private: Month, access: dict[str, Any]) -> None:
    repo = Repository.open(private.catalog, authorize_virtual_chunk_access=access)
    store = repo.readonly_session("main").store
    keys = [f"sst/c/{day}/0/0/0" for day in range(DAYS)]
    prototype = default_buffer_prototype()

    async def main() -> list[bytes]:
        found = await asyncio.gather(*(store.get(key, prototype) for key in keys))
        return [value.to_bytes() for value in found if value is not None]

    first, second = (within_bounds(lambda: asyncio.run(main())) for _ in range(2))
    assert len(first) == len(keys)
    assert first == second == [store.get_sync(key).to_bytes() for key in keys]  # type: ignore[union-attr]


@pytest.mark.parametrize("pipeline", ["BatchedCodecPipeline", "FusedCodecPipeline"])
def test_with_either_way_of_zarr_to_read(
    private: Month, expected: xr.Dataset, access: dict[str, Any], pipeline: str
) -> None:
    from zarr.core import codec_pipeline

    if not hasattr(codec_pipeline, pipeline):
        pytest.skip("came with zarr 3.3")
    settings = {"path": f"zarr.core.codec_pipeline.{pipeline}", "batch_size": 100}
    changed = zarr.config.set({"codec_pipeline": settings, "async.concurrency": 64})
    with changed, xr.open_dataset(private.catalog, authorize_virtual_chunk_access=access) as found:
        check_same(within_bounds(found.load), expected)


# ---- and to be turned away


def forged(s3: Any) -> dict[str, str]:
    return {**s3.keys, "secret_access_key": UNKNOWN["secret_access_key"]}


def half(s3: Any) -> dict[str, str]:
    temporary = s3.temporary_keys()
    return {name: temporary[name] for name in ("access_key_id", "secret_access_key")}


# name: the keys; what the service says
WRONG: dict[str, tuple[Callable[[Any], dict[str, str]], str]] = {
    "wrong secret": (forged, "SignatureDoesNotMatch"),
    "unknown key": (lambda s3: UNKNOWN, "InvalidAccessKeyId"),
    "temporary keys without their token": (half, "InvalidAccessKeyId"),
    "made-up token": (lambda s3: {**s3.temporary_keys(), "session_token": "eyJ-made-up"}, "InvalidAccessKeyId"),
}


def readers(s3: Any, month: Month, credentials: Any) -> list[Callable[[], object]]:
    """The three ways to open and read, none of which may be let in."""
    access = {month.prefix: credentials}
    opened: dict[str, Any] = {"config": declared(s3, month.prefix), "authorize_virtual_chunk_access": access}
    config = StoreConfig(virtual_ref_config=in_store_first(s3, credentials))

    def session_first() -> object:
        store = Repository.open(month.catalog, **opened).readonly_session("main").store
        return zarr.open_group(store, mode="r")["sst"][3]

    return [
        session_first,
        lambda: xr.open_dataset(month.catalog, engine="icelite", **opened).load(),
        lambda: xr.open_zarr(IceliteStore.open_existing(month.catalog, config)).load(),
    ]


def in_store_first(s3: Any, credentials: Any) -> VirtualRefConfig:
    if isinstance(credentials, icelite.S3Credentials.Anonymous):
        return VirtualRefConfig.s3_anonymous(**s3.place)
    if isinstance(credentials, icelite.S3Credentials.FromEnv):
        return VirtualRefConfig.s3_from_env()
    return VirtualRefConfig.s3_from_config(credentials=credentials, **s3.place)


@pytest.mark.parametrize("way", WRONG)
def test_wrong_keys(s3_server: Any, private: Month, caplog: pytest.LogCaptureFixture, way: str) -> None:
    keys, answer = WRONG[way]
    for read in readers(s3_server, private, icelite.S3Credentials(**keys(s3_server))):
        error = refusal(read, caplog)
        assert error.kind == "virtual-chunk-fetch"
        assert f"was refused by S3: {answer}" in str(error)
        assert private.prefix + "v2.1/oisst" in str(error)
        assert "check what authorize_virtual_chunk_access gives for 's3://" in str(error)


def test_wrong_keys_in_the_environment(
    s3_server: Any, private: Month, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.keys["access_key_id"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", UNKNOWN["secret_access_key"])
    for read in readers(s3_server, private, icelite.s3_from_env_credentials()):
        assert "was refused by S3: SignatureDoesNotMatch" in str(refusal(read, caplog))


def test_no_keys_anywhere(
    s3_server: Any, private: Month, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.endpoint)
    for read in readers(s3_server, private, icelite.s3_from_env_credentials()):
        error = refusal(read, caplog)
        assert error.kind == "virtual-chunk-fetch"
        assert "needs credentials, and none were found in the environment" in str(error)
        assert "check what authorize_virtual_chunk_access gives for 's3://" in str(error)


def test_anonymous_where_keys_are_needed(s3_server: Any, private: Month, caplog: pytest.LogCaptureFixture) -> None:
    for read in readers(s3_server, private, icelite.s3_anonymous_credentials()):
        error = refusal(read, caplog)
        assert error.kind == "virtual-chunk-fetch"
        assert "was refused by S3: AccessDenied" in str(error)


def test_nothing_was_authorised(s3_server: Any, private: Month, caplog: pytest.LogCaptureFixture) -> None:
    bucket = f"s3://{s3_server.private}/"
    grant = f'authorize_virtual_chunk_access={{"{bucket}": icelite.s3_credentials(from_env=True)}}'
    repo = Repository.open(private.catalog)
    opened = [
        lambda: xr.open_dataset(private.catalog).load(),
        lambda: xr.open_dataset(private.catalog, config=declared(s3_server, private.prefix)).load(),
        lambda: xr.open_zarr(repo.readonly_session("main").store).load(),
        lambda: xr.open_zarr(IceliteStore.open_existing(private.catalog)).load(),
    ]
    for read in opened:
        error = refusal(read, caplog)
        assert error.kind == "unauthorized-virtual-chunk-container"
        assert f'icelite.Repository.open("{private.catalog}", {grant})' in str(error)


def test_another_prefix_was_authorised(s3_server: Any, private: Month, caplog: pytest.LogCaptureFixture) -> None:
    bucket = f"s3://{s3_server.private}"
    for prefix in (f"{bucket[:-1]}/", f"{bucket}/v2/", f"{bucket}/v2.1/oisst"):
        access = {prefix: icelite.s3_credentials(**s3_server.keys, **s3_server.place)}
        repo = Repository.open(private.catalog, authorize_virtual_chunk_access=access)
        error = refusal(lambda repo=repo: xr.open_dataset(repo).load(), caplog)  # type: ignore[misc]
        assert error.kind == "unauthorized-virtual-chunk-container"


@pytest.mark.parametrize("way", WRONG)
def test_references_are_not_written_with_wrong_keys(
    s3_server: Any, private: Month, caplog: pytest.LogCaptureFixture, way: str
) -> None:
    keys, _ = WRONG[way]
    repo = Repository.create(
        StorageConfig.memory(),
        config=declared(s3_server, private.prefix),
        authorize_virtual_chunk_access={private.prefix: icelite.S3Credentials(**keys(s3_server))},
    )
    session = repo.writable_session("main")
    error = refusal(lambda: to_icelite(private.dataset, session.store), caplog)
    assert error.kind == "virtual-chunk-fetch"
    assert not session.has_uncommitted_changes


def test_references_need_a_container(s3_server: Any, private: Month, caplog: pytest.LogCaptureFixture) -> None:
    session = Repository.create(StorageConfig.memory()).writable_session("main")
    error = refusal(lambda: to_icelite(private.dataset, session.store), caplog)
    assert error.kind == "no-container-for-virtual-chunk"
    assert f'icelite.VirtualChunkContainer("s3://{s3_server.private}/")' in str(error)
    assert not session.has_uncommitted_changes


# ---- objects that are not as they were


@pytest.fixture
def changing(s3_server: Any, private: Month, archive: Any, days: list[Path], tmp_path: Path) -> tuple[str, xr.Dataset]:
    """An object of its own, referenced by an opened dataset."""
    url = f"s3://{s3_server.private}/changing/{tmp_path.name}.nc"
    archive.put(str(days[0]), url)
    credentials = icelite.s3_credentials(**s3_server.keys, **s3_server.place)
    dataset = virtual(s3_server, [url], **s3_server.keys)
    write_month(s3_server, private.prefix, tmp_path / "one.icelite", dataset, credentials)
    found = xr.open_dataset(tmp_path / "one.icelite", authorize_virtual_chunk_access={private.prefix: credentials})
    check_same(found.copy(), original(days[:1]))
    return url, xr.open_dataset(tmp_path / "one.icelite", authorize_virtual_chunk_access={private.prefix: credentials})


@pytest.mark.parametrize("how", ["another file", "one byte", "cut short", "empty"])
def test_an_overwritten_object_is_named(
    changing: tuple[str, xr.Dataset], archive: Any, days: list[Path], caplog: pytest.LogCaptureFixture, how: str
) -> None:
    url, dataset = changing
    before = days[0].read_bytes()
    flipped = before[:-1] + bytes([before[-1] ^ 1])  # of the same size, perhaps within the same second
    content = {"another file": days[1].read_bytes(), "one byte": flipped, "cut short": before[:3000], "empty": b""}
    archive.pipe_file(url, content[how])
    error = refusal(dataset.load, caplog)
    assert error.kind == "virtual-chunk-modified"
    assert repr(url) in str(error)
    assert "write its references again" in str(error)


def test_a_deleted_object_is_named(
    changing: tuple[str, xr.Dataset], archive: Any, caplog: pytest.LogCaptureFixture
) -> None:
    url, dataset = changing
    archive.rm_file(url)
    error = refusal(dataset.load, caplog)
    assert error.kind == "virtual-chunk-fetch"
    assert f"{url!r} does not exist, says S3: NoSuchKey (HTTP 404)" in str(error)
