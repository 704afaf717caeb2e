"""Texts and numbers that no caller should pass: every public function answers with a value or an `IceliteError`."""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import xarray as xr
import zarr
from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.buffer import default_buffer_prototype

import icelite
import icelite.kerchunk
import icelite.virtualizarr
from icelite import IceliteError, IceliteStore, Repository, Session, VirtualChunkSpec

TEXTS = [
    "\ud800",
    "x/\ud800",
    "\0",
    "",
    "../x",
    "a" * 5_000,
    "/".join("d" * 1_000),
    "c://[",
    "file://\ud800",
    "\u202e",
    "x",
]
NUMBERS = [-1, 2**70, -(2**70), 0, True]
FLOATS = [float("nan"), float("inf"), -1.0, 1e308, 5e-324]
TIMES = [
    datetime(2020, 1, 1),  # noqa: DTZ001
    datetime.min.replace(tzinfo=UTC),
    datetime.max.replace(tzinfo=timezone(timedelta(hours=-23))),
    datetime.min.replace(tzinfo=timezone(timedelta(hours=23))),
]
NESTED: dict[str, Any] = {}
for _ in range(5_000):
    NESTED = {"a": NESTED}
OBJECTS = [{"a": float("nan")}, {"a": "\ud800"}, {"\ud800": 1}, {"a": {1, 2}}, {"a": 10**5_000}, {"a": b"x"}, NESTED]
POSITIONS = [(), (-1,), (2**70,), (0, 0), (0,) * 1_000, (2**63,), (True,)]
RANGES = [
    RangeByteRequest(-1, 5),
    RangeByteRequest(5, 1),
    RangeByteRequest(2**70, 2**71),
    OffsetByteRequest(-1),
    OffsetByteRequest(2**70),
    SuffixByteRequest(-1),
    SuffixByteRequest(2**70),
]
BUFFERS = [default_buffer_prototype().buffer.from_bytes(data) for data in (b"", b"\xff", b"{}", b"[" * 100_000)]
SPECS = [
    [VirtualChunkSpec((0,), text, number, 1), VirtualChunkSpec((number,), "file:///tmp/x", 0, number)]
    for text in TEXTS
    for number in NUMBERS
]
# By the beginning of a parameter's annotation: what nobody should pass.
HOSTILE: dict[str, list[Any]] = {
    "str": TEXTS,
    "Storage": TEXTS,
    "ObjectStorage": TEXTS,
    "int": NUMBERS,
    "float": FLOATS,
    "datetime": TIMES,
    "dict[str, Any]": OBJECTS,
    "Sequence[int]": POSITIONS,
    "Iterable[int]": POSITIONS,
    "tuple[int, ...]": POSITIONS,
    "ByteRequest": RANGES,
    "Buffer": BUFFERS,
    "Sequence[VirtualChunkSpec]": SPECS,
    "Access": [{text: None} for text in TEXTS],
    "Mapping[str, Any]": [{text: text} for text in TEXTS],
}
MOMENT = datetime(2020, 1, 1, tzinfo=UTC)
GIVEN: dict[str, Any] = {
    "array_path": "x",
    "branch": "main",
    "chunk_coordinates": [0],
    "chunk_grid_shape": (1,),
    "chunk_offset": (1,),
    "chunks": [VirtualChunkSpec((0,), "file:///tmp/x", 0, 1)],
    "delete_object_older_than": MOMENT,
    "older_than": MOMENT,
    "from_branch": "main",
    "into_branch": "main",
    "key": "x/c/0",
    "lengths": [1],
    "locations": ["file:///tmp/x"],
    "message": "m",
    "metadata": {},
    "name": "move_node",
    "offsets": [0],
    "path": "x",
    "prefix": "x",
    "setting": True,
    "storage": "other.icelite",
    "url": "file:///tmp/x",
    "location": "file:///tmp/x",
    "value": BUFFERS[0],
    "offset": 0,
    "length": 1,
    "old_prefix": "a/",
    "new_prefix": "b/",
    "from_path": "/x",
    "to_path": "/y",
    "snapshot_id": "main",
    "tag": "t",
    "target": "out",
}
# Internal, zarr's own, or without a parameter of such a type.
LEFT_OUT = {"get_ranges", "get_ranges_sync", "get_partial_values", "off_loop", "record", "stand_on", "open"}


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    repository = Repository.create(tmp_path / "a.icelite")
    with repository.transaction("main", message="x") as store:
        zarr.create_group(store)
        zarr.create_array(store, name="x", shape=(3,), chunks=(1,), dtype="u1", dimension_names=["t"])[:] = 1
    repository.close()
    return tmp_path / "a.icelite"


def owner(cls: type, path: Path) -> Any:
    repository = Repository.open(path)
    if cls is Repository:
        return repository
    session = repository.writable_session("main")
    return session if cls is Session else session.store


def hostile(annotation: object) -> list[Any]:
    text = str(annotation)
    return next((values for kind, values in HOSTILE.items() if re.match(re.escape(kind) + r"(?!\w|\[)", text)), [])


def cases() -> Iterator[tuple[type, str, str]]:
    """Every parameter of every public method for which there are values that nobody should pass."""
    for cls in (Repository, Session, IceliteStore):
        for name, method in inspect.getmembers(cls, callable):
            if name.startswith("_") or name.endswith("_async") or (name in LEFT_OUT and cls is not Repository):
                continue
            for parameter in inspect.signature(method).parameters.values():
                if hostile(parameter.annotation):
                    yield cls, name, parameter.name


async def call(method: Callable[..., Any], arguments: dict[str, Any]) -> None:
    result = method(**arguments)
    if inspect.isawaitable(result):
        await result
    elif inspect.isasyncgen(result):
        async for _ in result:
            pass
    elif inspect.isgenerator(result):
        list(result)


@pytest.mark.parametrize(("cls", "name", "parameter"), list(cases()))
async def test_a_hostile_argument_ends_in_a_value_or_a_clear_error(
    path: Path, cls: type, name: str, parameter: str
) -> None:
    annotation = inspect.signature(getattr(cls, name)).parameters[parameter].annotation
    for value in hostile(annotation):
        subject = owner(cls, path)
        method = getattr(subject, name)
        needed = {p.name for p in inspect.signature(method).parameters.values() if p.default is p.empty}
        if not needed - {parameter} <= GIVEN.keys():
            pytest.skip("needs an object of its own")
        arguments = {**{other: GIVEN[other] for other in needed - {parameter}}, parameter: value}
        assert await kind_of(call(method, arguments)) != "unknown", value


async def kind_of(calling: Awaitable[None]) -> str | None:
    """The kind of the error that a call ends in; None where it gives a value. Others pass through."""
    try:
        await calling
    except IceliteError as error:
        return error.kind
    return None


# ---- functions and constructors

CONFIGURATIONS = (icelite.StorageConfig, icelite.RepositoryConfig, icelite.VirtualRefConfig, icelite.ObjectStoreConfig)
FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{name: getattr(icelite, name) for name in icelite.__all__ if inspect.isfunction(getattr(icelite, name))},
    **{
        name: getattr(icelite, name)
        for name in icelite.__all__
        if name in ("VirtualChunkContainer", "RepositoryConfig", "StoreConfig", "SourceStamp", "S3Options")
        or name in ("S3Credentials", "S3StaticCredentials", "VirtualChunkSpec", "RepoStatus")
    },
    **{
        f"{cls.__name__}.{name}": method
        for cls in (
            icelite.StorageConfig,
            icelite.RepositoryConfig,
            icelite.VirtualRefConfig,
            icelite.ObjectStoreConfig,
        )
        for name, method in inspect.getmembers(cls, inspect.ismethod)
        if not name.startswith("_")
    },
    "export_kerchunk": icelite.kerchunk.export_kerchunk,
    "import_kerchunk": icelite.kerchunk.import_kerchunk,
    "write_references": icelite.kerchunk.write_references,
    "virtualize": icelite.virtualize,
}
NEEDED: dict[str, Callable[[Path], Any]] = {
    "source": str,
    "repository": str,
    "references": lambda _: {"version": 1, "refs": {".zgroup": '{"zarr_format":2}'}},
    "store": lambda path: Repository.open(path).writable_session("main").store,
    "target": lambda path: path.parent / "out.json",
    "bucket": lambda _: "bucket",
    "url": lambda _: "https://example.org/x.icelite",
    "url_prefix": lambda _: "s3://bucket/x/",
    "path": lambda path: path,
    "access_key_id": lambda _: "x",
    "secret_access_key": lambda _: "x",
    "availability": lambda _: icelite.RepoAvailability.online,
    "index": lambda _: [0],
    "location": lambda _: "file:///tmp/x",
    "offset": lambda _: 0,
    "length": lambda _: 1,
    "values": lambda _: {},
    "credentials": lambda _: icelite.s3_anonymous_credentials(),
    "sources": lambda path: [path.parent / "none.nc"],
}


def given_to(name: str) -> list[tuple[str, str]]:
    parameters = inspect.signature(FUNCTIONS[name]).parameters.values()
    return [(name, parameter.name) for parameter in parameters if hostile(parameter.annotation)]


@pytest.mark.parametrize(("name", "parameter"), [case for name in FUNCTIONS for case in given_to(name)])
def test_a_function_ends_in_a_value_or_a_clear_error(path: Path, name: str, parameter: str) -> None:
    function = FUNCTIONS[name]
    parameters = inspect.signature(function).parameters
    needed = [p.name for p in parameters.values() if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    for value in hostile(parameters[parameter].annotation):
        arguments = {**{other: NEEDED[other](path) for other in needed if other != parameter}, parameter: value}
        with contextlib.suppress(IceliteError):
            function(**arguments)


@pytest.mark.parametrize("parameter", ["group", "branch", "tag", "snapshot_id", "as_of", "authorize"])
def test_xarray_ends_in_a_value_or_a_clear_error(path: Path, parameter: str) -> None:
    """What xarray or zarr says of a name that they look at themselves may be a `ValueError` or another of theirs."""
    values: list[Any] = TIMES if parameter == "as_of" else TEXTS
    for value in values:
        name = "authorize_virtual_chunk_access" if parameter == "authorize" else parameter
        with contextlib.suppress(IceliteError, ValueError, FileNotFoundError):
            xr.open_dataset(path, engine="icelite", **{name: {value: None} if parameter == "authorize" else value})


@pytest.mark.parametrize("parameter", ["group", "append_dim", "region", "last_updated_at"])
def test_writing_a_dataset_ends_in_a_value_or_a_clear_error(path: Path, parameter: str) -> None:
    dataset = xr.Dataset({"x": ("t", [1, 2, 3])})
    values: list[Any] = TIMES if parameter == "last_updated_at" else TEXTS
    if parameter == "region":
        values = [{text: slice(0, 3)} for text in TEXTS]
        values += [{"t": slice(*pair)} for pair in [(-1, 2), (0, 2**70), (2**70, 2**71), (3, 0), (None, None)]]
    for value in values:
        store = Repository.open(path).writable_session("main").store
        with contextlib.suppress(IceliteError):
            icelite.virtualizarr.to_icelite(dataset, store, **{parameter: value})


def test_there_are_many_such_parameters() -> None:
    assert len(list(cases())) > 150
