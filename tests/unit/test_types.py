"""The values: snapshot ids and their form, and what a `Diff` calls empty."""

import dataclasses

import pytest

from icelite.errors import InvalidInputError
from icelite.types import CROCKFORD, INITIAL_SNAPSHOT_ID, Chunk, ChunkType, Diff, new_snapshot_id, parse_snapshot_id


def test_new_ids_differ_and_parse() -> None:
    ids = {new_snapshot_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(parse_snapshot_id(id_) == id_ for id_ in ids)
    assert set("".join(ids)) == set(CROCKFORD)


def test_initial_id_parses() -> None:
    assert parse_snapshot_id(INITIAL_SNAPSHOT_ID) == INITIAL_SNAPSHOT_ID


NOT_IDS = ["", "main", "A" * 19, "A" * 21, "A" * 19 + "U", "a" * 20, "A" * 20 + "\n", 20 * b"A", None]


@pytest.mark.parametrize("text", NOT_IDS)
def test_other_text_is_refused_and_named(text: object) -> None:
    with pytest.raises(InvalidInputError) as caught:
        parse_snapshot_id(text)  # type: ignore[arg-type]
    assert caught.value.kind == "invalid-snapshot-id"
    assert repr(text) in str(caught.value)


def test_chunk_types_are_icechunk_numbers() -> None:
    assert {t.name: t.value for t in ChunkType} == {"uninitialized": 0, "native": 1, "virtual": 2, "inline": 3}


def test_values_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Chunk(1, 0, 8).length = 9  # type: ignore[misc]


def test_diff_is_empty_until_anything_is_in_it() -> None:
    assert Diff().is_empty()
    for field in dataclasses.fields(Diff):
        content = {"/a": [[0]]} if field.name == "updated_chunks" else {"/a"}
        assert not Diff(**{field.name: content}).is_empty()
