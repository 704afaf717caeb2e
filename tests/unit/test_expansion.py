"""What chunks may unpack to: honest ones are never refused, others are before anything of their size is allocated."""

from __future__ import annotations

import gzip
import json
import zlib
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numcodecs import BZ2, LZ4, LZMA, Blosc, GZip, Zlib, Zstd

import icelite
from icelite.errors import FormatError
from icelite.expansion import GZIP, ZLIB, find_expansion, inflate

CODECS = {
    "zlib": Zlib(6),
    "gzip": GZip(6),
    "zstd": Zstd(3),
    "lz4": LZ4(),
    "bz2": BZ2(1),
    "lzma": LZMA(preset=1),
    "blosc": Blosc("zstd"),
}
FILTERS = [
    [],
    [{"id": "shuffle", "elementsize": 4}],
    [{"id": "delta", "dtype": "<i4"}],
    [{"id": "fixedscaleoffset", "offset": 0, "scale": 10, "dtype": "<f8", "astype": "<i2"}],
]


def old(compressor: Any, shape: list[int], dtype: str = "<i4", filters: list[Any] | None = None) -> dict[str, str]:
    content = {"zarr_format": 2, "shape": shape, "chunks": shape, "dtype": dtype, "compressor": compressor}
    return {".zarray": json.dumps({**content, "filters": filters, "fill_value": 0, "order": "C"})}


@settings(max_examples=20)
@given(st.sampled_from(sorted(CODECS)), st.integers(1, 200_000), st.integers(0, 3), st.randoms())
def test_whatever_an_honest_codec_made_is_let_through(name: str, size: int, kind: int, chance: Any) -> None:
    """Of values that compress well, or badly, or not at all."""
    seed = np.random.default_rng(chance.getrandbits(32))
    high = (1, 4, 2**16, 2**31)[kind]
    data = seed.integers(0, high, size, dtype="<i4").tobytes()
    codec = CODECS[name]
    for filters in FILTERS[:2]:
        expansion = find_expansion(old(codec.get_config(), [size], filters=filters))
        assert expansion is not None
        expansion.check(bytes(codec.encode(data)), "x/0")
        expansion.check(memoryview(bytes(codec.encode(data))), "x/0", tries=False)


@pytest.mark.parametrize("name", CODECS)
def test_what_unpacks_to_more_is_refused(name: str) -> None:
    """Also where it is compressed well enough to be short, and where the chunk is larger than what it takes."""
    codec = CODECS[name]
    for size in (1, 100_000):
        expansion = find_expansion(old(codec.get_config(), [size]))
        assert expansion is not None
        with pytest.raises(FormatError) as caught:
            expansion.check(bytes(codec.encode(bytes(100 << 20))), "x/0")
        assert caught.value.kind == "over-budget"
        assert "x/0" in str(caught.value)


@pytest.mark.parametrize("filters", FILTERS)
def test_filters_change_what_is_packed(filters: list[Any]) -> None:
    dtype = "<f8" if filters and filters[0]["id"] == "fixedscaleoffset" else "<i4"
    array = zarr.create_array(
        {}, shape=(100_000,), chunks=(100_000,), dtype=dtype, zarr_format=2, compressors=Zlib(1), filters=None
    )
    array[:] = np.arange(100_000)
    expansion = find_expansion(old(Zlib(1).get_config(), [100_000], dtype, filters))
    assert expansion is not None
    expansion.check(array.store_path.store._store_dict["0"].to_bytes(), "x/0")


@given(st.lists(st.binary(max_size=2_000), min_size=1, max_size=4))
def test_inflating_undoes_deflating(parts: list[bytes]) -> None:
    whole = b"".join(parts)
    assert inflate(zlib.compress(whole), ZLIB, len(whole), "x") == whole
    assert inflate(b"".join(map(gzip.compress, parts)), GZIP, len(whole), "x") == whole
    if whole:
        for packed, wbits in ((zlib.compress(whole), ZLIB), (b"".join(map(gzip.compress, parts)), GZIP)):
            with pytest.raises(FormatError) as caught:
                inflate(packed, wbits, len(whole) - 1, "x")
            assert caught.value.kind == "over-budget"
            with pytest.raises((EOFError, zlib.error)):
                inflate(packed[:-5], wbits, len(whole), "x")


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("compressor", ["gzip", "zstd", "blosc"])
def test_a_bomb_ends_in_the_error_through_zarr(compressor: str, fast: bool) -> None:
    session = icelite.Repository.create(icelite.in_memory_storage()).writable_session("main")
    encoded = {"gzip": GZip(9), "zstd": Zstd(1), "blosc": Blosc("zstd")}[compressor].encode(bytes(100 << 20))
    codec = {
        "gzip": zarr.codecs.GzipCodec(),
        "zstd": zarr.codecs.ZstdCodec(),
        "blosc": zarr.codecs.BloscCodec(typesize=1, shuffle="noshuffle"),
    }[compressor]
    array = zarr.create_array(session.store, name="x", shape=(4,), chunks=(2,), dtype="u1", compressors=codec)
    array[:] = 5
    session.store.set_sync("x/c/1", zarr.core.buffer.default_buffer_prototype().buffer.from_bytes(bytes(encoded)))
    session.commit("a bomb")
    store = session.store
    if fast:
        with icelite.enable_fast_reads():
            array = zarr.open_array(store, path="x", mode="r")
    else:
        array = zarr.open_array(store, path="x", mode="r")
    assert array[:2].tolist() == [5, 5]
    with pytest.raises(FormatError) as caught:
        array[:]
    assert caught.value.kind == "over-budget"
    assert "x/c/1" in str(caught.value)


def test_shards_are_looked_into() -> None:
    array = zarr.create_array(
        {}, shape=(8, 8), chunks=(2, 2), shards=(4, 4), dtype="u1", compressors=zarr.codecs.ZstdCodec()
    )
    array[:] = np.arange(64).reshape(8, 8)
    store = array.store_path.store._store_dict
    expansion = find_expansion({"zarr.json": store["zarr.json"].to_bytes().decode()})
    assert expansion is not None
    whole = store["c/0/0"].to_bytes()
    expansion.check(whole, "x/c/0/0")
    bomb = bytes(Zstd(1).encode(bytes(100 << 20)))
    index = np.frombuffer(whole[-16 * 4 - 4 : -4], "<u8").copy()
    index[2:4] = 0, len(bomb)
    with pytest.raises(FormatError):
        expansion.check(bomb + whole + index.tobytes() + b"crc.", "x/c/0/0")
    with pytest.raises(FormatError):
        expansion.check_part(bomb, "x/c/0/0")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"node_type": "array"}', '{"node_type": "array", "codecs": 5}'])
def test_metadata_that_zarr_will_refuse_is_left_to_it(text: str) -> None:
    assert find_expansion({"zarr.json": text}) is None
    assert find_expansion({".zarray": text}) is None
