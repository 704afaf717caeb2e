"""Metadata documents: what of them decides about chunks, and which ones are refused."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from zarr.storage import MemoryStore

from icelite.errors import InvalidInputError
from icelite.keys import ChunkKeys
from icelite.metadata import array_info, check_document, parse_document, same_document

V3: dict[str, Any] = {
    "zarr_format": 3,
    "node_type": "array",
    "shape": [10, 7],
    "data_type": "float32",
    "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [4, 7]}},
    "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
    "fill_value": 0.0,
    "codecs": [{"name": "bytes"}],
}
V2: dict[str, Any] = {"zarr_format": 2, "shape": [10, 7], "chunks": [4, 7], "dtype": "<f4"}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


def v3(**changes: Any) -> str:
    return json.dumps({**V3, **changes})


def v2(**changes: Any) -> str:
    return json.dumps({**V2, **changes})


def encoding(name: str, **configuration: str) -> dict[str, Any]:
    return {"name": name, "configuration": configuration}


@pytest.mark.parametrize(
    ("document", "keys"),
    [
        (v3(), ChunkKeys("c", "/", 2)),
        (v3(chunk_key_encoding=encoding("default", separator=".")), ChunkKeys("c", ".", 2)),
        (v3(chunk_key_encoding={"name": "default"}), ChunkKeys("c", "/", 2)),
        (v3(chunk_key_encoding="default"), ChunkKeys("c", "/", 2)),
        (v3(chunk_key_encoding=encoding("v2", separator="/")), ChunkKeys("", "/", 2)),
        (v3(chunk_key_encoding={"name": "v2"}), ChunkKeys("", ".", 2)),
    ],
)
def test_chunk_keys_follow_the_declared_encoding(document: str, keys: ChunkKeys) -> None:
    info = array_info("a", {"zarr.json": document})
    assert info is not None
    assert (info.shape, info.grid, info.keys) == ((10, 7), (3, 1), keys)


@pytest.mark.parametrize(("separator", "expected"), [({}, "."), ({"dimension_separator": "/"}, "/")])
def test_v2_arrays_name_their_separator_or_have_a_dot(separator: dict[str, str], expected: str) -> None:
    info = array_info("a", {".zarray": v2(**separator), ".zattrs": "{}"})
    assert info is not None
    assert (info.grid, info.keys) == ((3, 1), ChunkKeys("", expected, 2))


def test_groups_have_no_chunks() -> None:
    assert array_info("", {"zarr.json": '{"zarr_format": 3, "node_type": "group"}'}) is None
    assert array_info("", {".zgroup": '{"zarr_format": 2}'}) is None
    assert array_info("", {".zattrs": "{}"}) is None


def test_an_unknown_grid_leaves_positions_unchecked() -> None:
    info = array_info("a", {"zarr.json": v3(chunk_grid={"name": "rectilinear", "configuration": {}})})
    assert info is not None
    assert info.grid is None
    info.check_position("999/999", "a")


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 9)), max_size=4))
def test_the_grid_is_the_shape_in_chunks_rounded_up(sizes: list[tuple[int, int]]) -> None:
    shape, chunks = [s for s, _ in sizes], [c for _, c in sizes]
    grid = {"name": "regular", "configuration": {"chunk_shape": chunks}}
    info = array_info("a", {"zarr.json": v3(shape=shape, chunk_grid=grid)})
    assert info is not None
    assert info.grid == tuple(int(np.ceil(s / c)) for s, c in sizes)


@pytest.mark.parametrize("chunk", ["0/0", "2/0"])
def test_positions_inside_the_grid_pass(chunk: str) -> None:
    info = array_info("a", {"zarr.json": v3()})
    assert info is not None
    info.check_position(chunk, "a")


@pytest.mark.parametrize("chunk", ["3/0", "0/1", "99999999999999999999/0"])
def test_positions_outside_the_grid_are_refused(chunk: str) -> None:
    info = array_info("a", {"zarr.json": v3()})
    assert info is not None
    with pytest.raises(InvalidInputError) as caught:
        info.check_position(chunk, "a")
    assert caught.value.kind == "invalid-chunk-index"
    assert "(3, 1)" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("zarr.json", "{"),
        ("zarr.json", ""),
        ("zarr.json", "[]"),
        ("zarr.json", "3"),
        ("zarr.json", "[" * 100_000),
        ("zarr.json", '{"zarr_format": 3}'),
        ("zarr.json", '{"zarr_format": 2, "node_type": "group"}'),
        ("zarr.json", '{"zarr_format": 3, "node_type": "table"}'),
        ("zarr.json", v3(shape=None)),
        ("zarr.json", v3(shape=[-1, 7])),
        ("zarr.json", v3(shape=[1.5, 7])),
        ("zarr.json", v3(shape={})),
        ("zarr.json", v3(shape=[True, 7])),
        ("zarr.json", v3(shape=[10])),
        ("zarr.json", v3(chunk_grid="regular")),
        ("zarr.json", v3(chunk_grid={"name": "regular"})),
        ("zarr.json", v3(chunk_key_encoding={"name": "morton"})),
        ("zarr.json", v3(chunk_key_encoding=encoding("default", separator="-"))),
        ("zarr.json", v3(chunk_key_encoding={"name": "default", "configuration": "/"})),
        ("zarr.json", v3(chunk_key_encoding={"name": "default", "configuration": ["/"]})),
        (".zarray", v2(zarr_format=3)),
        (".zarray", v2(chunks=None)),
        (".zarray", v2(dimension_separator="")),
        (".zarray", '{"zarr_format": 2}'),
        (".zgroup", "{}"),
        (".zattrs", "null"),
    ],
)
def test_unusable_documents_are_refused_and_named(name: str, text: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        check_document("ocean/sst", name, text)
    assert caught.value.kind == "bad-metadata"
    assert f"'ocean/sst/{name}'" in str(caught.value)


@given(st.sampled_from(["zarr.json", ".zarray"]), st.sampled_from([*V3, *V2, "dimension_separator"]), json_values)
def test_any_value_in_any_member_is_accepted_or_refused(name: str, member: str, value: Any) -> None:
    document = v3(**{member: value}) if name == "zarr.json" else v2(**{member: value})
    with contextlib.suppress(InvalidInputError):
        check_document("a", name, document)


@given(st.sampled_from(["chunk_grid", "chunk_key_encoding"]), st.sampled_from(["name", "configuration"]), json_values)
def test_any_value_one_level_down_is_accepted_or_refused(member: str, inner: str, value: Any) -> None:
    with contextlib.suppress(InvalidInputError):
        check_document("a", "zarr.json", v3(**{member: {**V3[member], inner: value}}))


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("shape", [(), (5,), (0, 3), (7, 8, 9)])
def test_what_zarr_writes_is_understood(zarr_format: Any, shape: tuple[int, ...]) -> None:
    store = MemoryStore()
    array = zarr.create_array(
        store, shape=shape, chunks=tuple(max(1, n // 2) for n in shape), dtype="f8", zarr_format=zarr_format
    )
    array[...] = np.ones(shape)
    name = "zarr.json" if zarr_format == 3 else ".zarray"
    documents = {key: value.to_bytes().decode() for key, value in store._store_dict.items() if key[0] in ".z"}
    check_document("", name, documents[name])
    info = array_info("", documents)
    assert info is not None
    chunks = [info.keys.decode(key) for key in store._store_dict if key not in documents]
    assert len(chunks) == np.prod(info.grid or ())
    for chunk in chunks:
        assert chunk is not None
        info.check_position(chunk, "")


def test_documents_may_hold_nan_and_infinity() -> None:
    check_document("a", "zarr.json", v3(attributes={"missing": float("nan"), "top": float("inf")}))


def test_equal_documents_are_those_with_equal_json() -> None:
    assert same_document('{"a": 1, "b": NaN}', '{ "b":NaN,"a":1 }')
    assert not same_document('{"a": 1}', '{"a": 1.0}')
    assert not same_document('{"a": 1}', '{"a": true}')
    assert not same_document("{}", '{"a": null}')


def test_parsing_names_the_key() -> None:
    with pytest.raises(InvalidInputError, match=r"'a/\.zattrs' holds a JSON list"):
        parse_document("a/.zattrs", "[]")
