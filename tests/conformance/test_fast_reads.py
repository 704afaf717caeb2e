"""The values of `IceliteCodecPipeline` are those of zarr's own pipeline, whatever zarr's strategies produce.

``ICELITE_EXAMPLES`` sets the number of examples, 25 by default.
"""

from __future__ import annotations

from typing import Any

import hypothesis
import numpy as np
import pytest
import zarr
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, ShardingCodec, TransposeCodec, ZstdCodec
from zarr.testing import strategies as zst

import icelite
from icelite.store import pipeline
from icelite.store.pipeline import IceliteCodecPipeline, enable_fast_reads


@st.composite
def arrays(draw: st.DrawFn) -> zarr.Array[Any]:
    """One of zarr's arrays: some of its chunks committed, some overwritten or deleted since, or all committed."""
    session = icelite.Repository.create(icelite.in_memory_storage()).writable_session("main")
    array = draw(zst.arrays(stores=st.just(session.store)), label="array")
    state = draw(st.sampled_from(["staged", "committed", "changed"]), label="state")
    hypothesis.event(state)
    if state == "staged":
        return array
    session.commit("all of it")
    if state == "committed":
        return zarr.open_array(session.store, path=array.path, mode="r")
    session.resume()
    array = zarr.open_array(session.store, path=array.path)
    if array.size:
        where = draw(zst.basic_indices(shape=array.shape), label="overwritten")
        deleted = draw(st.booleans(), label="deleted") and array.fill_value is not None
        array[where] = array.fill_value if deleted else array[(0,) * array.ndim]
    return array


def assert_same(one: Any, other: Any) -> None:
    """Same type, same shape, same bytes."""
    one, other = np.asanyarray(one), np.asanyarray(other)
    assert (one.dtype, one.shape) == (other.dtype, other.shape)
    if one.dtype.hasobject or one.dtype.kind == "T":
        assert one.tolist() == other.tolist()
    else:
        assert one.tobytes() == other.tobytes()


def opened_fast(array: zarr.Array[Any]) -> zarr.Array[Any]:
    """The same array, read by our pipeline."""
    with enable_fast_reads():
        fast = zarr.open_array(array.store, path=array.path, mode="r")
    assert type(fast.async_array.codec_pipeline) is IceliteCodecPipeline
    return fast


@pytest.mark.filterwarnings("ignore")  # zarr warns of types and codecs without a specification
def test_any_selection_of_any_array_has_the_same_values(examples: hypothesis.settings) -> None:
    @examples
    @hypothesis.given(st.data())
    def check(data: st.DataObject) -> None:
        with zarr.config.set({"array.rectilinear_chunks": True}):  # an unknown setting before zarr 3.2
            array = data.draw(arrays())
            fast = opened_fast(array)
            assert_same(fast[...], array[...])
            basic = data.draw(zst.basic_indices(shape=array.shape), label="basic")
            assert_same(fast[basic], array[basic])
            if array.ndim and array.size:
                compare_points(data, fast, array)

    check()


def compare_points(data: st.DataObject, fast: zarr.Array[Any], array: zarr.Array[Any]) -> None:
    """The ways to select by lists of positions."""
    orthogonal = data.draw(zst.orthogonal_indices(shape=array.shape), label="orthogonal")[0]
    assert_same(fast.oindex[orthogonal], array.oindex[orthogonal])
    points = tuple(data.draw(st.lists(st.integers(0, n - 1), min_size=3, max_size=3)) for n in array.shape)
    assert_same(fast.vindex[points], array.vindex[points])
    mask = np.resize(np.array(data.draw(st.lists(st.booleans(), min_size=1, max_size=9))), array.shape)
    assert_same(fast.vindex[mask], array.vindex[mask])


CODECS: dict[str, dict[str, Any]] = {
    "plain": {"compressors": None},
    "big endian": {"serializer": BytesCodec(endian="big"), "compressors": None},
    "zstd": {"compressors": ZstdCodec()},
    "blosc": {"compressors": BloscCodec(typesize=4)},
    "gzip and crc32c": {"compressors": [GzipCodec(), Crc32cCodec()]},
    "transposed": {"filters": TransposeCodec(order=(2, 0, 1)), "compressors": None},
    "transposed, zstd": {"filters": TransposeCodec(order=(1, 2, 0)), "compressors": ZstdCodec()},
    "sharded": {"shards": (4, 6, 8), "compressors": ZstdCodec()},
    "sharded, then compressed": {
        "serializer": ShardingCodec(chunk_shape=(1, 3, 2), codecs=[BytesCodec()]),
        "compressors": GzipCodec(),
    },
    "numcodecs": {"filters": "delta", "compressors": None},
    "v2": {"zarr_format": 2, "filters": "delta v2", "order": "F"},
}


def make(store: Any, *, dtype: str = "i4", zarr_format: int = 3, **options: Any) -> zarr.Array[Any]:
    """A three-dimensional array whose last chunks are partial, with two of its chunks missing."""
    if options.get("filters") == "delta":
        from zarr.codecs import numcodecs

        options["filters"] = numcodecs.Delta(dtype=dtype)
    if options.get("filters") == "delta v2":
        import numcodecs as original

        options["filters"] = [original.Delta(dtype=dtype)]
    array = zarr.create_array(
        store,
        name="a",
        shape=(9, 13, 11),
        chunks=(2, 3, 4),
        dtype=dtype,
        fill_value=7,
        zarr_format=zarr_format,
        **options,
    )
    array[...] = np.random.default_rng(0).integers(-1000, 1000, array.shape)
    array[:4, :6, :8] = 7
    return array


SELECTIONS = [
    ...,
    (0, 0, 0),
    (8, 12, 10),
    (slice(2, 7, 3), 5),
    (slice(None), slice(3, 4), slice(1, 9, 2)),
    (slice(0, 4), slice(0, 6), slice(0, 8)),
    (slice(9, 9),),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("in_threads", [False, True])
def test_every_kind_of_codec_gives_the_same_values(
    name: str, in_threads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if in_threads:
        monkeypatch.setattr(pipeline, "_AT_ONCE", -1)
        monkeypatch.setattr(pipeline, "_TASK_BYTES", 500)
    session = icelite.Repository.create(icelite.in_memory_storage()).writable_session("main")
    array = make(session.store, **CODECS[name])
    fast = opened_fast(array)
    for selection in SELECTIONS:
        assert_same(fast[selection], array[selection])
    assert_same(fast.oindex[[8, 0, 3], :, 2], array.oindex[[8, 0, 3], :, 2])
    assert_same(fast.blocks[1:3], array.blocks[1:3])
    session.commit("")
    assert_same(opened_fast(array)[...], array[...])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", [str, "S3", "U3", "datetime64[s]", "bool", "complex64", [("x", "i4"), ("y", "f8")]])
def test_every_kind_of_type_gives_the_same_values(dtype: Any) -> None:
    session = icelite.Repository.create(icelite.in_memory_storage()).writable_session("main")
    array = zarr.create_array(session.store, name="a", shape=(7,), chunks=(2,), dtype=dtype)
    values = np.arange(1, 6)
    array[:5] = values.astype(str) if dtype is str else values.astype(array.dtype)
    fast = opened_fast(array)
    for selection in (..., 0, 6, slice(1, 6, 2)):
        assert_same(fast[selection], array[selection])
