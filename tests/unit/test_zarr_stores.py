"""Zarr stores of other people: what is referenced, what is copied, and what a broken array costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from icelite.errors import InvalidInputError
from icelite.formats import open_virtual, open_virtual_tree
from icelite.repository import Repository
from icelite.virtualizarr import to_icelite

pytest.importorskip("virtualizarr")

from icelite.formats.zarr import _HAS_ZIP

VALUES = np.arange(20.0).reshape(4, 5)


def stored(path: Path) -> xr.Dataset:
    """What the engine reads after a commit, undecoded."""
    catalog = path.with_suffix(".icelite")
    session = Repository.create(catalog).writable_session("main")
    to_icelite(open_virtual(path), session.store)
    session.commit("sample")
    return xr.open_dataset(catalog, engine="icelite", mask_and_scale=False).load()


NUMBERS = ["i1", "<i2", ">i4", "u8", "f2", "<f4", ">f8", "c16", "bool"]


@given(
    zarr_format=st.sampled_from([2, 3]),
    dtype=st.sampled_from(NUMBERS),
    shape=st.lists(st.integers(1, 5), max_size=3),
    chunk=st.integers(1, 3),
    order=st.sampled_from("CF"),
    separator=st.sampled_from("./"),
    names=st.sampled_from(["default", "v2"]),
    filled=st.booleans(),
)
@settings(max_examples=30, deadline=None)
def test_numbers_are_read_as_zarr_does(
    tmp_path_factory: pytest.TempPathFactory,
    zarr_format: int,
    dtype: str,
    shape: list[int],
    chunk: int,
    order: str,
    separator: str,
    names: str,
    filled: bool,
) -> None:
    path = tmp_path_factory.mktemp("zarr") / "a.zarr"
    options: dict[str, Any] = {
        "shape": shape,
        "chunks": tuple(min(chunk, size) for size in shape),
        "dtype": dtype,
        "chunk_key_encoding": {"name": "v2" if zarr_format == 2 else names, "separator": separator},
    }
    if zarr_format == 2:
        options["order"] = order
    array = zarr.open_group(path, mode="w", zarr_format=zarr_format).create_array("a", **options)
    if filled:
        array[...] = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    np.testing.assert_array_equal(stored(path)["a"], array[...])


@pytest.mark.skipif(not _HAS_ZIP, reason="VirtualiZarr 2.5 refers to less")
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_numbers_are_not_copied(zarr_format: int, tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=zarr_format)
    for number, dtype in enumerate(NUMBERS):
        group.create_array(f"a{number}", shape=(4, 5), chunks=(2, 2), dtype=dtype)[:] = VALUES.astype(dtype)
    assert open_virtual(tmp_path / "a.zarr", on_unreferenceable="raise").encoding["icelite_copied"] == {}


def test_text_of_format_2_is_copied(tmp_path: Path) -> None:
    texts = ["a", "b\u00e9", "c" * 9]
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=2)
    group.create_array("text", shape=(3,), chunks=(2,), dtype=str)[:] = np.array(texts, object)
    assert list(stored(tmp_path / "a.zarr")["text"].values) == texts
    with pytest.raises(InvalidInputError, match="'text': format 3 of Zarr has another form"):
        open_virtual(tmp_path / "a.zarr", on_unreferenceable="raise")


def test_dimensions_without_names_have_one_for_each_length(tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path / "a.zarr", mode="w")
    group.create_array("a", shape=(4, 5), dtype="f8")
    group.create_array("b", shape=(4, 4), dtype="f8")
    group.create_array("c", shape=(5, 4), dtype="f8", dimension_names=["phony_dim_0", None])
    dataset = open_virtual(tmp_path / "a.zarr")
    assert dataset["a"].dims == ("phony_dim_1", "phony_dim_2")
    assert dataset["b"].dims == ("phony_dim_1", "phony_dim_3")
    assert dataset["c"].dims == ("phony_dim_0", "phony_dim_1")


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_an_array_at_the_root(zarr_format: int, tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "a.zarr", data=VALUES, chunks=(2, 2), zarr_format=zarr_format)
    np.testing.assert_array_equal(stored(tmp_path / "a.zarr")["data"], VALUES)


def test_an_array_named_as_the_group(tmp_path: Path) -> None:
    zarr.open_group(tmp_path / "a.zarr", mode="w").create_array("inside", data=VALUES)
    np.testing.assert_array_equal(open_virtual(tmp_path / "a.zarr", group="inside")["data"].shape, VALUES.shape)
    with pytest.raises(InvalidInputError, match="no group 'there': there is inside"):
        open_virtual(tmp_path / "a.zarr", group="there")


def test_a_broken_array_costs_itself_alone(tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path / "a.zarr", mode="w")
    for name in ("good", "bad"):
        group.create_array(name, data=VALUES)
    document = tmp_path / "a.zarr" / "bad" / "zarr.json"
    document.write_text(document.read_text().replace("zstd", "nonsuch"))
    with pytest.warns(UserWarning, match="'bad' of .* is left out: zarr does not read it: .*nonsuch"):
        assert list(open_virtual(tmp_path / "a.zarr").data_vars) == ["good"]
    with pytest.raises(InvalidInputError, match="nonsuch"):
        open_virtual(tmp_path / "a.zarr", on_unreadable="raise")


def test_groups_below_are_read_as_a_tree(tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", attributes={"coordinates": "where", "title": "x"})
    group.create_array("where", data=VALUES[0], dimension_names=["y"])
    group.create_group("below/deep").create_array("a", data=VALUES)
    tree = open_virtual_tree(tmp_path / "a.zarr")
    assert tree["below/deep/a"].shape == VALUES.shape
    assert list(tree.coords) == ["where"]
    assert tree.attrs == {"title": "x"}
    assert list(open_virtual(tmp_path / "a.zarr", drop_variables=["where"]).variables) == []


def test_names_that_urls_would_cut(tmp_path: Path) -> None:
    zarr.open_group(tmp_path / "plain.zarr", mode="w").create_array("a", data=VALUES)
    odd = (tmp_path / "plain.zarr").rename(tmp_path / "a #1%20? \u00e9.zarr")
    np.testing.assert_array_equal(stored(odd)["a"], VALUES)
