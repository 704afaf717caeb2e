"""Zarr keys: every chunk key decodes to the position it was made of, and nothing else decodes to anything."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from icelite.errors import InvalidInputError
from icelite.keys import DOCUMENTS, ChunkKeys, ancestors, check_path, could_be_chunk, join, split_document_key

ENCODINGS = [(prefix, separator) for prefix in ("c", "") for separator in ("/", ".")]

RESERVED = {*DOCUMENTS, ".zmetadata"}

encodings = st.builds(lambda e, ndim: ChunkKeys(*e, ndim), st.sampled_from(ENCODINGS), st.integers(0, 5))
names = st.text(st.characters(exclude_characters="/\\", exclude_categories=["C", "Z"]), min_size=1, max_size=8).filter(
    lambda name: name.strip(".") and name not in RESERVED
)
paths = st.lists(names, max_size=4).map("/".join)


def positions(ndim: int) -> st.SearchStrategy[str]:
    return st.lists(st.integers(0, 10**19), min_size=ndim, max_size=ndim).map(lambda p: "/".join(map(str, p)))


@given(encodings.flatmap(lambda keys: st.tuples(st.just(keys), positions(keys.ndim))))
def test_decoding_undoes_encoding(case: tuple[ChunkKeys, str]) -> None:
    keys, chunk = case
    assert keys.decode(keys.encode(chunk)) == chunk


@given(encodings, st.text("0123456789c/.-+ _٣", max_size=12))
def test_what_decodes_is_the_key_that_encodes(keys: ChunkKeys, suffix: str) -> None:
    """No second spelling of a position: ``c/01``, ``c/+1`` and other digits are not keys."""
    chunk = keys.decode(suffix)
    assert chunk is None or keys.encode(chunk) == suffix


@given(paths, encodings.flatmap(lambda keys: st.tuples(st.just(keys), positions(keys.ndim))))
def test_every_chunk_key_looks_like_one(path: str, case: tuple[ChunkKeys, str]) -> None:
    keys, chunk = case
    assert could_be_chunk(join(path, keys.encode(chunk)))


@pytest.mark.parametrize(
    ("keys", "chunk", "key"),
    [
        (ChunkKeys("c", "/", 2), "12/0", "c/12/0"),
        (ChunkKeys("c", ".", 2), "12/0", "c.12.0"),
        (ChunkKeys("", "/", 2), "12/0", "12/0"),
        (ChunkKeys("", ".", 2), "12/0", "12.0"),
        (ChunkKeys("c", "/", 0), "", "c"),
        (ChunkKeys("", ".", 0), "", "0"),
    ],
)
def test_keys_are_those_of_the_specifications(keys: ChunkKeys, chunk: str, key: str) -> None:
    assert keys.encode(chunk) == key
    assert keys.decode(key) == chunk


@pytest.mark.parametrize(
    "suffix", ["", "c", "c/", "c/0", "c/0/0/0", "c/0/", "c//0", "c/00/0", "c/-1/0", "c.0.0", "0/0"]
)
def test_other_names_are_no_chunk_of_the_array(suffix: str) -> None:
    assert ChunkKeys("c", "/", 2).decode(suffix) is None


@pytest.mark.parametrize("key", ["", "foo", "a/foo.txt", "c.x", "a/c0", "a/.zmetadata", "1a", "a/0."])
def test_other_names_do_not_look_like_chunks(key: str) -> None:
    assert not could_be_chunk(key)


@given(paths, st.sampled_from(sorted(DOCUMENTS)))
def test_document_keys_split_into_what_they_were_joined_of(path: str, name: str) -> None:
    assert split_document_key(join(path, name)) == (path, name)


def test_other_keys_are_no_documents() -> None:
    assert split_document_key("a/zarr.json/c/0") is None
    assert split_document_key("azarr.json") is None


@given(paths.filter(bool))
def test_ancestors_split_a_key_at_every_slash(key: str) -> None:
    splits = list(ancestors(key))
    assert [join(path, rest) for path, rest in splits] == [key] * (key.count("/") + 1)
    assert [path for path, _ in splits] == sorted({path for path, _ in splits}, key=len)


@given(paths)
def test_paths_lose_the_slashes_at_their_ends(path: str) -> None:
    assert check_path(f"/{path}/") == path == check_path(path)


@pytest.mark.parametrize(
    "path",
    [
        "a//b",
        "a/../b",
        ".",
        "..",
        "a/./b",
        "a/...",
        ".. /a",
        " ",
        "a/\n",
        "a/\x00b",
        "\x1b[31m",
        "a\u2028b",
        "a\u202eb",
        "a/\ud800",
        "a\\b",
        "..\\a",
        "C:\\a",
        "zarr.json",
        "a/.zarray/b",
        ".zmetadata",
        "/".join("d" * 257),
    ],
)
def test_paths_that_could_mislead_are_refused(path: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        check_path(path)
    assert caught.value.kind == "invalid-path"
    assert repr(path[:300]) in str(caught.value)
