"""kerchunk references in and out, on reference sets whose every byte is known."""

from __future__ import annotations

import base64
import gzip
import json
import os
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import apsw
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.core.sync import sync

from icelite.config import RepositoryConfig, VirtualChunkContainer
from icelite.credentials import LocalFileSystemAccess
from icelite.errors import (
    AlreadyExistsError,
    ErrorKind,
    IceliteError,
    InvalidInputError,
    NodeNotFoundError,
    ReadOnlyError,
)
from icelite.kerchunk import export_kerchunk, import_kerchunk, write_references
from icelite.repository import Repository
from icelite.session import Session
from icelite.storage import in_memory_storage
from icelite.types import ChunkType
from icelite.virtual import VirtualAccess

fsspec = pytest.importorskip("fsspec")

SIZE = 4096
DATA = bytes(i * 7 % 251 for i in range(SIZE))
GROUP = '{"zarr_format":2}'
Refs = dict[str, Any]


def zarray(shape: tuple[int, ...], chunks: tuple[int, ...], **other: Any) -> str:
    """The .zarray of bytes without codecs."""
    described = {"zarr_format": 2, "shape": shape, "chunks": chunks, "dtype": "|u1", "order": "C", "fill_value": 0}
    return json.dumps({**described, "compressor": None, "filters": None, **other})


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file to refer to."""
    path = tmp_path_factory.mktemp("data") / "source.bin"
    path.write_bytes(DATA)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder for a catalog, with a file to refer to in it."""
    (tmp_path / "a b#1.bin").write_bytes(DATA)
    return tmp_path


@pytest.fixture
def repo(folder: Path) -> Repository:
    return Repository.create(folder / "catalog.icelite")


@pytest.fixture
def session(repo: Repository) -> Session:
    return repo.writable_session("main")


def small(file: object) -> Refs:
    """A group with one array of three chunks, the middle one missing."""
    return {
        ".zgroup": GROUP,
        ".zattrs": '{"title": "t"}',
        "x/.zarray": zarray((6,), (2,)),
        "x/.zattrs": '{"_ARRAY_DIMENSIONS": ["x"]}',
        "x/0": [str(file), 10, 2],
        "x/2": "AB",
    }


def contents(session: Session) -> dict[str, bytes]:
    """Every key of a session's store with its value."""

    async def keys() -> list[str]:
        return [key async for key in session.store.list()]

    values = {key: session.store.get_sync(key) for key in sync(keys())}
    return {key: value.to_bytes() for key, value in values.items() if value is not None}


def exported(source: Any, target: Path, **options: Any) -> Refs:
    """The references of an exported JSON file."""
    export_kerchunk(source, target, **options)
    content: dict[str, Any] = json.loads(target.read_text())
    assert content.keys() == {"version", "refs"}
    assert content["version"] == 1
    refs: Refs = content["refs"]
    return refs


def normal(refs: Mapping[str, Any]) -> Refs:
    """References in the one form that `export_kerchunk` writes."""
    return {key: normal_value(value) for key, value in refs.items()}


def normal_value(value: Any) -> Any:
    if isinstance(value, list):
        url = value[0] if "://" in value[0] else f"file://{value[0]}"
        return [url, 0, SIZE] if len(value) == 1 else [url, *value[1:]]
    if isinstance(value, dict):
        return json.dumps(value)
    data = base64.b64decode(value[7:]) if value.startswith("base64:") else value.encode()
    encoded = "base64:" + base64.b64encode(data).decode()
    try:
        return encoded if data.startswith(b"base64:") else data.decode()
    except UnicodeDecodeError:
        return encoded


def refusal(store: Any, references: Any, kind: str = "invalid-references", **options: Any) -> str:
    """The message with which references are refused, leaving the session as it was."""
    before = store.session.status()
    with pytest.raises(IceliteError) as caught:
        write_references(references, store, **options)
    assert caught.value.kind == kind, caught.value
    assert store.session.status() == before
    return caught.value.message


# -- any set of references


@st.composite
def reference_sets(draw: st.DrawFn) -> Refs:
    """References to ``SOURCE``, which stands for a file: nested groups, scalars, missing and inline chunks."""
    refs: Refs = {".zgroup": GROUP}
    groups = [""]
    for name in draw(st.lists(st.sampled_from("gh"), max_size=2)):
        groups.append(f"{groups[-1]}{name}/")
        refs[f"{groups[-1]}.zgroup"] = GROUP
    for number in range(draw(st.integers(0, 3))):
        path = f"{draw(st.sampled_from(groups))}v{number}"
        shape = tuple(draw(st.lists(st.integers(0, 12), max_size=3)))
        chunks = tuple(draw(st.integers(1, 5)) for _ in shape)
        separator = draw(st.sampled_from([None, ".", "/"]))
        refs[f"{path}/.zarray"] = zarray(
            shape, chunks, **({} if separator is None else {"dimension_separator": separator})
        )
        if draw(st.booleans()):
            refs[f"{path}/.zattrs"] = json.dumps({"note": draw(st.text(max_size=3))})
        grid = tuple(-(-size // chunk) for size, chunk in zip(shape, chunks, strict=True))
        for position in np.ndindex(grid):
            value = draw(values())
            if value is not None:
                refs[f"{path}/{(separator or '.').join(map(str, position)) or '0'}"] = value
    return refs


def values() -> st.SearchStrategy[Any]:
    extents = st.integers(0, SIZE - 1).flatmap(lambda at: st.tuples(st.just(at), st.integers(1, SIZE - at)))
    data = st.binary(min_size=1, max_size=6)
    return st.one_of(
        st.none(),
        extents.map(lambda extent: ["SOURCE", *extent]),
        st.just(["SOURCE"]),
        st.text(min_size=1, max_size=4).filter(lambda text: not text.startswith("base64:")),
        data.map(lambda raw: "base64:" + base64.b64encode(raw).decode()),
        st.just("base64:" + base64.b64encode(b"base64:trap").decode()),
    )


def pointed_at(refs: Refs, url: str) -> Refs:
    return {key: [url, *value[1:]] if isinstance(value, list) else value for key, value in refs.items()}


@settings(max_examples=30)
@given(refs=reference_sets(), templated=st.booleans(), version=st.sampled_from([0, 1]))
def test_any_references_come_back_as_they_were(
    refs: Refs, templated: bool, version: int, source: Path, tmp_path: Path
) -> None:
    plain = pointed_at(refs, str(source))
    given_: Any = plain if version == 0 else {"version": 1, "refs": plain}
    if templated:
        templates = {"d": str(source.parent), "f": "{{folder}}/source.bin"}
        written = pointed_at(refs, "{{f(folder=d)}}")
        given_ = {"version": 1, "templates": templates, "refs": written}
    repo = Repository.create(in_memory_storage())
    import_kerchunk(given_, repo)
    found = exported(repo, tmp_path / "out.json", overwrite=True)
    assert found == normal(plain)
    assert next(iter(found)) == ".zgroup"
    reader = fsspec.filesystem(
        "reference", fo=str(tmp_path / "out.json"), remote_protocol="file", skip_instance_cache=True
    )
    assert {key: reader.cat_file(key) for key in found} == contents_of_files(repo, source)


def contents_of_files(repo: Repository, source: Path) -> dict[str, bytes]:
    allowed = repo.reopen(authorize_virtual_chunk_access={f"file://{source.parent}/": LocalFileSystemAccess})
    return contents(allowed.readonly_session("main"))


@settings(max_examples=20)
@given(refs=reference_sets(), record_size=st.integers(1, 7))
def test_any_references_come_back_from_parquet(refs: Refs, record_size: int, source: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    repo, again = (Repository.create(in_memory_storage()) for _ in range(2))
    import_kerchunk(pointed_at(refs, str(source)), repo)
    export_kerchunk(repo, tmp_path / "p.parq", format="parquet", record_size=record_size, overwrite=True)
    import_kerchunk(tmp_path / "p.parq", again)
    assert with_dots(exported(again, tmp_path / "out.json", overwrite=True)) == with_dots(
        exported(repo, tmp_path / "out.json", overwrite=True)
    )


def with_dots(refs: Refs) -> Refs:
    """References with the separator that parquet's rows stand for, and documents as values."""
    found: Refs = {}
    for key, value in refs.items():
        if "/.z" in key or key.startswith(".z"):
            found[key] = {name: item for name, item in json.loads(value).items() if name != "dimension_separator"}
        else:
            array = next(name for name in key.split("/") if name.startswith("v"))
            path, _, chunk = key.partition(f"{array}/")
            found[f"{path}{array}/{chunk.replace('/', '.')}"] = value
    return found


@pytest.mark.filterwarnings("ignore:The 'fastparquet' engine")
def test_parquet_is_read_by_fsspec_as_it_comes(folder: Path, repo: Repository) -> None:
    for engine in ("pyarrow", "fastparquet"):
        pytest.importorskip(engine)
    refs = small(folder / "a b#1.bin") | {
        "s/.zarray": zarray((), ()),
        "s/0": [str(folder / "a b#1.bin"), 7, 1],
        "e/.zarray": zarray((3,), (1,), fill_value=9),
        "g/.zgroup": GROUP,
        "g/y/.zarray": zarray((2, 2), (1, 1), dimension_separator="/", fill_value=9),
        "g/y/0/1": [str(folder / "a b#1.bin"), 5, 1],
    }
    import_kerchunk(refs, repo)
    export_kerchunk(repo, folder / "out.parq", format="parquet", record_size=2)
    reader = fsspec.filesystem("reference", fo=str(folder / "out.parq"), remote_protocol="file")
    group = zarr.open_group(reader.get_mapper(), mode="r", zarr_format=2, use_consolidated=False)
    expected = zarr.open_group(repo.readonly_session("main").store, mode="r", zarr_format=2)
    for name in ("x", "s", "e", "g/y"):
        np.testing.assert_array_equal(group[name][...], expected[name][...])
    assert expected["g/y"][0, 1] == DATA[5]
    assert expected["x"][...].tolist() == [*DATA[10:12], 0, 0, 65, 66]


# -- what is stored


class TestImport:
    def test_documents_are_kept_as_text_and_missing_groups_made(self, folder: Path, session: Session) -> None:
        refs = {f"deep/er/{key}": value for key, value in small(folder / "a b#1.bin").items() if key[0] == "x"}
        refs["deep/er/x/.zarray"] = json.dumps(json.loads(zarray((6,), (2,))), indent=1)
        assert write_references(refs, session.store, group="top/most") == 2
        found = contents(session)
        assert found["top/most/deep/er/x/.zarray"].decode() == refs["deep/er/x/.zarray"]
        groups = {key for key in found if key.endswith(".zgroup")}
        assert groups == {f"{at}.zgroup" for at in ("", "top/", "top/most/", "top/most/deep/", "top/most/deep/er/")}
        assert found["top/most/deep/er/x/0"] == DATA[10:12]

    def test_zarr_v3_keys(self, folder: Path, session: Session) -> None:
        described = {
            "zarr_format": 3,
            "node_type": "array",
            "shape": [2, 2],
            "data_type": "uint8",
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1, 2]}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": 0,
            "codecs": [{"name": "bytes"}],
        }
        refs = {"g/x/zarr.json": described, "g/x/c/1/0": [str(folder / "a b#1.bin"), 3, 2]}
        write_references(refs, session.store)
        group = zarr.open_group(session.store, mode="r")
        assert group["g/x"][:].tolist() == [[0, 0], [*DATA[3:5]]]

    def test_files_under_the_catalog_are_relative_and_stamped(self, folder: Path, repo: Repository) -> None:
        import_kerchunk(small("a b#1.bin"), repo, root=folder)
        status = (folder / "a b#1.bin").stat()
        with repo._catalog.read() as txn:
            rows = txn.rows("SELECT path, size, modified_at FROM location WHERE kind = 2")
        assert rows == [("a b#1.bin", SIZE, status.st_mtime_ns)]
        moved = folder.rename(folder.with_name("moved"))
        found = Repository.open(moved / "catalog.icelite").readonly_session("main")
        assert contents(found)["x/0"] == DATA[10:12]
        assert found.chunk_type("x", [2]) == ChunkType.inline

    @pytest.mark.parametrize("name", ["refs.json", "refs.json.gz"])
    def test_relative_paths_begin_where_the_file_is(self, folder: Path, repo: Repository, name: str) -> None:
        text = json.dumps(small("./a b#1.bin")).encode()
        (folder / name).write_bytes(gzip.compress(text) if name.endswith("gz") else text)
        snapshot = import_kerchunk(folder / name, repo)
        assert contents(repo.readonly_session(snapshot_id=snapshot))["x/0"] == DATA[10:12]
        info = next(iter(repo.ancestry(branch="main")))
        assert (info.id, info.message) == (snapshot, f"Import 2 chunks from {name}")

    def test_a_path_is_opened_or_made(self, folder: Path) -> None:
        target = folder / "new.icelite"
        import_kerchunk(small(folder / "a b#1.bin"), target, group="one", message="first", metadata={"by": "me"})
        import_kerchunk(small(folder / "a b#1.bin"), os.fspath(target), group="two", message="second")
        log = list(Repository.open(target).ancestry(branch="main"))
        assert [info.message for info in log][:2] == ["second", "first"]
        assert log[1].metadata == {"by": "me"}

    def test_a_path_that_had_to_be_made_is_gone_after_a_failure(self, folder: Path) -> None:
        for url in (folder / "nowhere.bin", "s3://bucket/key"):
            with pytest.raises(InvalidInputError):
                import_kerchunk(small(folder) | {"x/0": [str(url)]}, folder / "new.icelite")
        assert not list(folder.glob("new.icelite*"))

    @pytest.mark.parametrize("act", ["commit", "create_branch", "set_metadata"])
    def test_what_another_did_in_a_repository_that_had_to_be_made_stays(self, folder: Path, act: str) -> None:
        target = folder / "new.icelite"

        def progress(done: int, total: int) -> None:
            if not done:
                with closing(Repository.open(target)) as other:
                    if act == "commit":
                        session = other.writable_session("main")
                        zarr.create_group(session.store, path="mine")
                        acknowledged.append(session.commit("work of somebody else"))
                    elif act == "create_branch":
                        other.create_branch("mine", other.lookup_branch("main"))
                    else:
                        other.set_metadata({"mine": 1})
                raise KeyboardInterrupt

        acknowledged: list[str] = []
        with pytest.raises(KeyboardInterrupt):
            import_kerchunk(small(folder / "a b#1.bin"), target, progress=progress)
        with closing(Repository.open(target)) as found:
            assert all(found.lookup_snapshot(snapshot) for snapshot in acknowledged)
            assert (found.lookup_branch("main") in acknowledged) == (act == "commit")

    def test_consolidated_metadata_fills_gaps_and_is_not_stored(self, folder: Path, session: Session) -> None:
        refs = small(folder / "a b#1.bin")
        documents = {key: json.loads(refs.pop(key)) for key in [".zgroup", "x/.zarray"]}
        refs[".zmetadata"] = {"zarr_consolidated_format": 1, "metadata": {**documents, ".zattrs": {"title": "stale"}}}
        write_references(refs, session.store)
        found = contents(session)
        assert ".zmetadata" not in found
        assert json.loads(found[".zattrs"]) == {"title": "t"}
        assert zarr.open_array(session.store, path="x", mode="r", zarr_format=2)[:2].tolist() == [*DATA[10:12]]

    def test_generators_and_references_together(self, folder: Path, session: Session) -> None:
        generator = {"key": "x/{{i}}", "url": "{{u}}", "offset": "{{i * 100}}", "length": "2"}
        content = {
            "version": 1,
            "templates": {"u": str(folder / "a b#1.bin")},
            "gen": [{**generator, "dimensions": {"i": {"stop": 3}}}],
            "refs": {key: value for key, value in small("{{u}}").items() if key != "x/2"},
        }
        assert write_references(content, session.store) == 3
        values = zarr.open_array(session.store, path="x", mode="r", zarr_format=2)[:]
        assert bytes(values) == b"".join(DATA[at : at + 2] for at in (0, 100, 200))

    def test_a_group_that_holds_arrays_is_replaced_only_on_request(self, folder: Path, session: Session) -> None:
        refs = small(folder / "a b#1.bin")
        write_references({**refs, "old/.zarray": zarray((1,), (1,))}, session.store, group="g")
        with pytest.raises(AlreadyExistsError, match="overwrite=True"):
            write_references(refs, session.store)  # the root holds g
        before = contents(session)
        with pytest.raises(AlreadyExistsError, match="/g already holds 2 arrays such as /g/x"):
            write_references(refs, session.store, group="g")
        assert contents(session) == before
        write_references(refs, session.store, group="g", overwrite=True)
        assert contents(session).keys() == {".zgroup", *(f"g/{key}" for key in refs)}

    def test_a_group_of_the_other_format_is_in_the_way(self, folder: Path, session: Session) -> None:
        document = json.dumps({"zarr_format": 3, "node_type": "group", "attributes": {}}).encode()
        session.store.set_sync("g/y/zarr.json", zarr.core.buffer.cpu.Buffer.from_bytes(document))
        message = refusal(session.store, {"b/.zgroup": GROUP, "g/y/.zgroup": GROUP}, "node-already-exists")
        assert "Zarr v3" in message
        write_references(small(folder / "a b#1.bin"), session.store, group="g/y/z")  # below it there is room
        assert zarr.open_group(session.store, path="g/y/z", mode="r", zarr_format=2)["x"][0] == DATA[10]

    def test_nothing_goes_inside_an_array(self, folder: Path, session: Session) -> None:
        write_references(small(folder / "a b#1.bin"), session.store)
        assert "inside the array /x" in refusal(session.store, small("x"), "invalid-path", group="x/y", overwrite=True)

    def test_whole_files_have_the_length_they_have(self, folder: Path, repo: Repository) -> None:
        refs = {".zgroup": GROUP, "x/.zarray": zarray((SIZE,), (SIZE,)), "x/0": [str(folder / "a b#1.bin")]}
        import_kerchunk(refs, repo)
        assert contents(repo.readonly_session("main"))["x/0"] == DATA
        assert exported(repo, folder / "o.json")["x/0"] == [f"file://{folder}/a b#1.bin", 0, SIZE]

    def test_a_file_that_is_not_there_yet_may_be_referred_to_in_parts(self, folder: Path, session: Session) -> None:
        write_references(small(folder / "later.bin"), session.store)
        (folder / "later.bin").write_bytes(DATA)
        assert contents(session)["x/0"] == DATA[10:12]

    def test_the_references_of_a_stranger_open_no_file_of_mine(
        self, source: Path, folder: Path, repo: Repository
    ) -> None:
        (folder / "refs.json").write_text(json.dumps(small(source)))
        session = repo.writable_session("main")
        write_references(folder / "refs.json", session.store)
        with pytest.raises(InvalidInputError) as caught:
            session.store.get_sync("x/0")
        assert caught.value.kind == ErrorKind.UNAUTHORIZED_VIRTUAL_CHUNK_CONTAINER
        own = repo.writable_session("main")
        write_references(small(source), own.store)  # a dict was made in this process
        assert contents(own)["x/0"] == DATA[10:12]

    def test_progress_ends_with_all(self, folder: Path, session: Session) -> None:
        seen: list[tuple[int, int]] = []
        write_references(small(folder / "a b#1.bin"), session.store, progress=lambda *step: seen.append(step))
        assert seen[0] == (0, 2)
        assert seen[-1] == (2, 2)

    def test_references_go_in_by_the_hundred_and_files_are_looked_at_once(
        self, folder: Path, repo: Repository, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        looks: list[str] = []
        look = VirtualAccess._stamp_file
        monkeypatch.setattr(VirtualAccess, "_stamp_file", lambda self, url: looks.append(url) or look(self, url))
        files = [f"{folder}/{n}.bin" for n in range(5)]
        refs: Refs = {".zgroup": GROUP, "x/.zarray": zarray((100, 100), (1, 1)), "y/.zarray": zarray((5,), (1,))}
        refs |= {f"x/{i}.{j}": [files[i % 5], j, 1] for i in range(100) for j in range(100)}
        refs |= {f"y/{i}": [files[i], 0, 1] for i in range(5)}
        session = repo.writable_session("main")
        statements: list[str] = []
        connection = session.changes.catalog._connection
        connection.trace_v2(apsw.SQLITE_TRACE_STMT, lambda event: statements.append(event["sql"]))
        try:
            assert write_references(refs, session.store) == 10_005
        finally:
            connection.trace_v2(0, None)
        assert len(statements) < 10_005 / 100 + 50
        assert len(looks) == 5

    def test_references_are_staged_in_the_order_of_their_table(self, session: Session, folder: Path) -> None:
        from icelite.kerchunk.importing import _key_order

        for names in (["10/2", "9/11", "9/2", "100/0", "1/0", "0/5", "10/10"], ["5"], [str(i) for i in range(1200)]):
            assert [names[i] for i in _key_order(names).tolist()] == sorted(names)


# -- what is refused

BAD: dict[str, tuple[Any, str]] = {
    "no hierarchy": ({}, "describes no Zarr group or array"),
    "version 2": ({"version": 2, "refs": {}}, "has version 2; icelite reads versions 0 and 1"),
    "version as text": ({"version": "1", "refs": {}}, "has version '1'"),
    "no version": ({"refs": {".zgroup": GROUP}}, "has 'refs' but no 'version'"),
    "refs as a list": ({"version": 1, "refs": []}, "'refs' that are a list"),
    "templates as a list": ({"version": 1, "templates": ["u"], "refs": {".zgroup": GROUP}}, "'templates'"),
    "gen as an object": ({"version": 1, "gen": {"i": 1}, "refs": {".zgroup": GROUP}}, "'gen' that is a dict"),
    "metadata elsewhere": ({".zgroup": ["file:///x", 0, 2]}, "for the metadata '.zgroup' to another file"),
    "metadata is no JSON": ({".zgroup": "{"}, "'.zgroup' that is not JSON"),
    "group and array": ({".zgroup": GROUP, ".zarray": zarray((1,), (1,))}, "is a group and an array"),
    "two formats": ({".zgroup": GROUP, "zarr.json": '{"zarr_format":3,"node_type":"group"}'}, "Zarr v2 and v3"),
    "array in array": ({"x/.zarray": zarray((1,), (1,)), "x/y/.zgroup": GROUP}, "inside the array /x"),
    "keys that are numbers": ({1: "a", ".zgroup": GROUP}, "keys that are not text"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_set_of_references_is_refused(name: str, session: Session) -> None:
    references, told = BAD[name]
    assert told in refusal(session.store, references)


BAD_ENTRIES: dict[str, tuple[Any, str]] = {
    "two parts": (["SOURCE", 1], "'x/0' has 2 parts"),
    "no parts": ([], "'x/0' has 0 parts"),
    "a number": (3, "'x/0' is 3"),
    "null": (None, "'x/0' is None"),
    "negative offset": (["SOURCE", -1, 2], "'0': offset -1, length 2"),
    "negative length": (["SOURCE", 1, -1], "'0': offset 1, length -1"),
    "offset as text": (["SOURCE", "1", 2], "'0': offset '1' is no integer"),
    "offset as a fraction": (["SOURCE", 1.5, 2], "offset 1.5 is no integer"),
    "a huge offset": (["SOURCE", 1 << 70, 2], "no integer of bytes"),
    "an overflow": (["SOURCE", (1 << 63) - 2, 9], "length 9"),
    "no URL": ([None, 1, 2], "None is no URL"),
    "an empty URL": (["", 1, 2], "'' is no URL"),
    "bad base64": ("base64:!", "cannot be decoded"),
}


@pytest.mark.parametrize("name", BAD_ENTRIES)
def test_malformed_entries_are_named(name: str, session: Session, source: Path) -> None:
    value, told = BAD_ENTRIES[name]
    entry = (
        pointed_at({"x/0": value}, str(source))
        if isinstance(value, list) and value[:1] == ["SOURCE"]
        else {"x/0": value}
    )
    assert told in refusal(session.store, small(source) | entry)


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("readme.txt", "'readme.txt' belongs to no array"),
        ("y/0", "'y/0' belongs to no array"),
        ("x/0.0", "no chunk key of 1 dimensions"),
        ("x/01", "no chunk key"),
        ("x/1\n2", "no chunk key"),
        ("x/a/0", "no chunk key"),
        ("x/3", "chunk '3' is outside the grid (3,)"),
        ("x/99999999999999999999", "is outside the grid"),
    ],
)
def test_keys_that_are_no_chunks_are_named(key: str, told: str, session: Session, source: Path) -> None:
    assert told in refusal(session.store, small(source) | {key: [str(source), 0, 1]})
    assert told in refusal(session.store, small(source) | {key: "text"})


def test_an_error_lists_five_faults_and_counts_the_rest(session: Session, source: Path) -> None:
    stray = {f"y/{i}": "a" for i in range(9)}
    message = refusal(session.store, small(source) | stray)
    assert "9 faults, nothing was written: key 'y/0'" in message
    assert message.endswith("; and 4 more")


@pytest.mark.parametrize(
    ("value", "kind", "told"),
    [
        (["SOURCE", 1, 0], "zero-length-chunk", "has length 0"),
        (["SOURCE", SIZE - 1, 2], "invalid-virtual-ref", "reaches past the end of the file"),
        (["/nowhere/at/all.bin"], "invalid-virtual-ref", "its size is not known"),
        (["/data/../etc/passwd", 0, 1], "invalid-virtual-ref", "'..'"),
        (["../data.bin", 0, 1], "invalid-virtual-ref", "'..'"),
        (["ftp://host/data.bin", 0, 1], "invalid-virtual-ref", "scheme 'ftp'"),
        (["s3://bucket/data.bin", 0, 1], "no-container-for-virtual-chunk", "VirtualChunkContainer"),
        (["vcc://nobody/data.bin", 0, 1], "no-container-for-virtual-chunk", "nobody"),
    ],
)
def test_what_cannot_be_referred_to_is_refused(
    value: list[Any], kind: str, told: str, session: Session, source: Path
) -> None:
    references = small(source) | {"x/0": [str(source) if value[0] == "SOURCE" else value[0], *value[1:]]}
    assert told in refusal(session.store, references, kind, root=source.parent)


def test_relative_paths_need_to_be_relative_to_something(session: Session) -> None:
    assert "root=" in refusal(session.store, small("a.bin"))


def test_an_unknown_template_is_named(session: Session) -> None:
    content = {"version": 1, "templates": {"u": "/data"}, "refs": small("{{v}}/a.bin")}
    assert "'v', which stands for nothing here; known are: 'u'" in refusal(session.store, content)


@pytest.mark.parametrize("data", [b"CDF\x01\xff\xfe", b"[1, 2]", b'{"version": 1, ', b"[" * 100_000])
def test_a_file_that_is_no_reference_file_is_named(data: bytes, folder: Path, session: Session) -> None:
    (folder / "refs.json").write_bytes(data)
    assert "refs.json" in refusal(session.store, folder / "refs.json")


def test_a_damaged_compressed_file_is_named(folder: Path, session: Session) -> None:
    (folder / "refs.json.gz").write_bytes(gzip.compress(json.dumps(small("a")).encode())[:-12])
    assert "refs.json.gz" in refusal(session.store, folder / "refs.json.gz")


def test_places_without_references_are_refused(folder: Path, session: Session) -> None:
    assert "no reference file" in refusal(session.store, folder / "nothing.json", "invalid-argument")
    assert ".zmetadata" in refusal(session.store, folder)
    assert "not int" in refusal(session.store, 3, "invalid-argument")


def test_stores_that_cannot_be_written_are_refused(repo: Repository) -> None:
    with pytest.raises(InvalidInputError, match=r"session\.store"):
        write_references({".zgroup": GROUP}, repo)  # type: ignore[arg-type]
    with pytest.raises(ReadOnlyError):
        write_references({".zgroup": GROUP}, repo.readonly_session("main").store)


def test_a_codec_that_is_not_installed_is_named_twice(source: Path, session: Session) -> None:
    references = small(source) | {"x/.zarray": zarray((6,), (2,), filters=[{"id": "grib-of-tests"}])}
    with pytest.warns(UserWarning, match="array /x needs the codec 'grib-of-tests'"):
        write_references(references, session.store)
    with pytest.raises(Exception, match="grib-of-tests"):
        zarr.open_array(session.store, path="x", mode="r", zarr_format=2)[:]


# -- parquet


@pytest.fixture
def parquet(folder: Path, repo: Repository) -> Path:
    """A folder of references."""
    pytest.importorskip("pyarrow")
    import_kerchunk(small(folder / "a b#1.bin"), repo)
    export_kerchunk(repo, folder / "refs.parq", format="parquet", record_size=2)
    return folder / "refs.parq"


def rewrite(file: Path, **columns: Any) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table(columns), file)


class TestParquet:
    def test_the_layout(self, parquet: Path) -> None:
        import pyarrow.parquet

        assert sorted(p.relative_to(parquet).as_posix() for p in parquet.rglob("*")) == [
            ".zmetadata",
            "x",
            "x/refs.0.parq",
            "x/refs.1.parq",
        ]
        rows = pyarrow.parquet.read_table(parquet / "x/refs.0.parq").to_pylist()
        url = f"file://{parquet.parent}/a b#1.bin"
        assert rows == [
            {"path": url, "offset": 10, "size": 2, "raw": None},
            {"path": None, "offset": 0, "size": 0, "raw": None},
        ]

    def test_columns_that_are_missing(self, parquet: Path, repo: Repository) -> None:
        rewrite(parquet / "x/refs.0.parq", path=["a"], offset=[1])
        store = repo.writable_session("main").store
        assert "refs.0.parq" in refusal(store, parquet, group="g")
        rewrite(parquet / "x/refs.0.parq", raw=[b"AB", None])
        write_references(parquet, store, group="g")
        assert contents(store.session)["g/x/0"] == b"AB"

    @pytest.mark.parametrize(
        ("columns", "told"),
        [
            ({"path": ["a"], "offset": ["1"], "size": [1]}, "not integers"),
            ({"path": ["a"], "offset": [1.0], "size": [1]}, "not integers"),
            ({"path": ["a"], "offset": [None], "size": [1]}, "not integers"),
            ({"path": [1], "offset": [1], "size": [1]}, "not URLs"),
            ({"path": [""], "offset": [1], "size": [1]}, "not URLs"),
            ({"path": ["a"], "offset": [-1], "size": [1]}, "offset -1"),
            ({"path": ["a"], "offset": [1], "size": [-1]}, "length -1"),
            ({"path": ["a"] * 3, "offset": [1] * 3, "size": [1] * 3}, "outside the grid"),
            ({"raw": [1.5]}, "not bytes"),
        ],
    )
    def test_columns_that_are_wrong(
        self, parquet: Path, repo: Repository, columns: dict[str, list[Any]], told: str
    ) -> None:
        rewrite(parquet / "x/refs.0.parq", **columns)
        assert told in refusal(repo.writable_session("main").store, parquet, group="g")

    def test_files_that_are_wrong(self, parquet: Path, repo: Repository) -> None:
        store = repo.writable_session("main").store
        (parquet / "x/refs.7.parq").write_bytes((parquet / "x/refs.0.parq").read_bytes())
        assert "outside the grid" in refusal(store, parquet, group="g")
        (parquet / "x/refs.7.parq").rename(parquet / "x/other.parq")
        assert "'x/other.parq', which belongs to no array" in refusal(store, parquet, group="g")
        (parquet / "x/other.parq").unlink()
        (parquet / "x/refs.0.parq").write_bytes(b"PAR1")
        assert "no Parquet file" in refusal(store, parquet, group="g")
        (parquet / ".zmetadata").write_text('{"metadata": {}}')
        assert "record_size" in refusal(store, parquet, group="g")

    def test_offset_and_size_0_are_a_whole_file(self, parquet: Path, repo: Repository) -> None:
        rewrite(parquet / "x/refs.0.parq", path=[str(parquet.parent / "a b#1.bin")], offset=[0], size=[0])
        store = repo.writable_session("main").store
        write_references(parquet, store, group="g")
        assert contents(store.session)["g/x/0"] == DATA

    def test_what_the_layout_cannot_hold(self, folder: Path, repo: Repository) -> None:
        pytest.importorskip("pyarrow")
        session = repo.writable_session("main")
        zarr.create_array(session.store, name="a", shape=(3,), chunks=(1,), dtype="u1")
        with pytest.raises(InvalidInputError, match="zarr_format=2"):
            export_kerchunk(session, folder / "o.parq", format="parquet")
        write_references({".zarray": zarray((1,), (1,))}, session.store, overwrite=True)
        with pytest.raises(InvalidInputError, match="root"):
            export_kerchunk(session, folder / "o.parq", format="parquet")
        write_references({"x/.zarray": zarray((10**9,), (1,))}, session.store, overwrite=True)
        with pytest.raises(InvalidInputError, match="pass at least 10000"):
            export_kerchunk(session, folder / "o.parq", format="parquet", record_size=10)
        assert not list(folder.glob("*.parq*"))
        assert not list(folder.glob(".*"))


# -- out


def others(folder: Path) -> list[str]:
    """What is in a folder beside the catalog and the file that it refers to."""
    return sorted(p.name for p in folder.iterdir() if not p.name.startswith(("catalog.icelite", "a b#1.bin")))


class TestExport:
    def test_snapshots_and_groups_are_chosen(self, folder: Path, repo: Repository) -> None:
        first = import_kerchunk(small(folder / "a b#1.bin"), repo, group="g")
        repo.create_tag("v1", first)
        import_kerchunk({"y/.zarray": zarray((1,), (1,))}, repo, group="h")
        expected = normal(small(folder / "a b#1.bin"))
        assert exported(repo, folder / "1.json", tag="v1", group="/g/") == expected
        assert exported(repo, folder / "2.json", snapshot_id=first, group="g") == expected
        assert exported(folder / "catalog.icelite", folder / "3.json", group="h").keys() == {".zgroup", "y/.zarray"}
        assert exported(repo.readonly_session(tag="v1").store, folder / "4.json", group="g") == expected
        with pytest.raises(NodeNotFoundError):
            export_kerchunk(repo, folder / "5.json", group="nobody")
        with pytest.raises(InvalidInputError, match="session has its own"):
            export_kerchunk(repo.readonly_session("main"), folder / "5.json", branch="main")

    def test_what_is_not_committed_yet_is_exported_too(self, folder: Path, session: Session) -> None:
        write_references(small(folder / "a b#1.bin"), session.store)
        array = zarr.open_array(session.store, path="x", mode="r+", zarr_format=2)
        array[2:4] = [67, 68]
        found = exported(session, folder / "o.json")
        assert found == normal(small(folder / "a b#1.bin")) | {"x/1": "CD"}

    def test_the_answer_counts_and_progress_is_told(self, folder: Path, repo: Repository) -> None:
        import_kerchunk(small(folder / "a b#1.bin"), repo)
        seen: list[tuple[int, int]] = []
        assert export_kerchunk(repo, folder / "o.json.gz", progress=lambda *step: seen.append(step)) == 2
        assert seen == [(0, 1), (1, 1)]
        assert json.loads(gzip.decompress((folder / "o.json.gz").read_bytes()))["version"] == 1

    def test_small_chunks_are_copied_on_request(self, folder: Path, repo: Repository) -> None:
        import_kerchunk(small(folder / "a b#1.bin"), repo)
        assert exported(repo, folder / "1.json", inline_threshold=2)["x/0"][1:] == [10, 2]
        assert exported(repo, folder / "2.json", inline_threshold=3)["x/0"] == normal_value(
            "base64:" + base64.b64encode(DATA[10:12]).decode()
        )

    def test_bytes_of_the_repository_are_written_up_to_a_limit(self, folder: Path, repo: Repository) -> None:
        session = repo.writable_session("main")
        zarr.create_array(session.store, name="a", data=np.arange(100, dtype="u1"), chunks=(10,), compressors=None)
        session.commit("values")
        with pytest.raises(InvalidInputError, match="inline_limit=99") as caught:
            export_kerchunk(repo, folder / "o.json", inline_limit=99)
        assert caught.value.kind == ErrorKind.CHUNK_TOO_LARGE
        assert others(folder) == []
        found = exported(repo, folder / "o.json", inline_limit=100)
        assert normal_value(found["a/c/1"]) == bytes(range(10, 20)).decode()

    def test_chunks_in_objects_of_the_repository_are_written(self, folder: Path) -> None:
        config = RepositoryConfig(inline_chunk_threshold_bytes=4)
        repo = Repository.create(folder / "n.icelite", config, objects=folder / "objects")
        session = repo.writable_session("main")
        zarr.create_array(session.store, name="a", data=np.arange(100, dtype="u1"), chunks=(10,), compressors=None)
        session.commit("values")
        assert repo.readonly_session("main").chunk_type("a", [1]) == ChunkType.native
        assert exported(repo, folder / "o.json")["a/c/1"] == bytes(range(10, 20)).decode()

    @pytest.mark.parametrize("format", ["json", "parquet"])
    def test_a_target_is_replaced_only_on_request_and_only_by_its_like(
        self, folder: Path, repo: Repository, format: Any
    ) -> None:
        if format == "parquet":
            pytest.importorskip("pyarrow")
        import_kerchunk(small(folder / "a b#1.bin"), repo)
        target = folder / "out"
        export_kerchunk(repo, target, format=format)
        with pytest.raises(AlreadyExistsError) as caught:
            export_kerchunk(repo, target, format=format)
        assert caught.value.kind == ErrorKind.TARGET_ALREADY_EXISTS
        export_kerchunk(repo, target, format=format, overwrite=True)
        other = folder / "precious"
        other.mkdir()
        (other / "thesis.txt").write_text("years of work")
        with pytest.raises(AlreadyExistsError, match="not replaced"):
            export_kerchunk(repo, other, format=format, overwrite=True)
        assert others(folder) == ["out", "precious"]
        assert [p.name for p in other.iterdir()] == ["thesis.txt"]

    @pytest.mark.parametrize("format", ["json", "parquet"])
    def test_a_failure_leaves_what_was_there(self, folder: Path, repo: Repository, format: Any) -> None:
        if format == "parquet":
            pytest.importorskip("pyarrow")
        import_kerchunk(small(folder / "a b#1.bin"), repo)
        target = folder / "out"
        export_kerchunk(repo, target, format=format)
        before = {p: p.read_bytes() for p in [target, *target.rglob("*")] if p.is_file()}

        def interrupt(done: int, total: int) -> None:
            if done == total:
                raise KeyboardInterrupt

        for name in ("out", "new"):
            with pytest.raises(KeyboardInterrupt):
                export_kerchunk(repo, folder / name, format=format, overwrite=True, progress=interrupt)
        assert before == {p: p.read_bytes() for p in [target, *target.rglob("*")] if p.is_file()}
        assert others(folder) == ["out"]

    def test_remote_targets(self, folder: Path, repo: Repository) -> None:
        pytest.importorskip("pyarrow")
        import_kerchunk(small(folder / "a b#1.bin"), repo)
        export_kerchunk(repo, "memory://out/refs.json")
        export_kerchunk(repo, "memory://out/refs.parq", format="parquet", overwrite=True)
        again = Repository.create(in_memory_storage())
        for name in ("refs.json", "refs.parq"):
            import_kerchunk(f"memory://out/{name}", again, overwrite=True)
            assert json.loads(contents_of_files(again, folder / "a")["x/.zattrs"]) == {"_ARRAY_DIMENSIONS": ["x"]}
            with pytest.raises(AlreadyExistsError):
                export_kerchunk(repo, f"memory://out/{name}", format="json")
        fsspec.filesystem("memory").rm("/out", recursive=True)

    def test_targets_that_cannot_be_written(self, folder: Path, repo: Repository) -> None:
        import_kerchunk(small(folder / "a b#1.bin"), repo)
        with pytest.raises(IceliteError) as caught:
            export_kerchunk(repo, folder / "no" / "such" / "folder.json")
        assert caught.value.kind == ErrorKind.IO

    @pytest.mark.parametrize(
        "options", [{"format": "csv"}, {"zarr_format": 3}, {"record_size": 0}, {"inline_threshold": -1}]
    )
    def test_arguments_that_mean_nothing(self, folder: Path, repo: Repository, options: dict[str, Any]) -> None:
        with pytest.raises(InvalidInputError) as caught:
            export_kerchunk(repo, folder / "o.json", **options)
        assert caught.value.kind == ErrorKind.INVALID_ARGUMENT

    def test_containers_by_name_become_urls(self, folder: Path, source: Path) -> None:
        container = VirtualChunkContainer(f"file://{source.parent}/", name="archive")
        config = RepositoryConfig(virtual_chunk_containers={container.url_prefix: container})
        repo = Repository.create(folder / "c.icelite", config)
        import_kerchunk(small("vcc://archive/source.bin"), repo)
        assert exported(repo, folder / "o.json")["x/0"] == [f"file://{source}", 10, 2]


def test_the_top_level_package_does_not_import_pyarrow() -> None:
    import subprocess
    import sys

    code = (
        "import sys, icelite, icelite.kerchunk; print([m for m in ('pyarrow', 'jinja2', 'pandas') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
