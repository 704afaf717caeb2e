"""zarr's own strategies for arrays and their metadata, in both Zarr formats.

``ICELITE_EXAMPLES`` sets the number of examples, 25 by default.
"""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import hypothesis
import numpy as np
import pytest
import zarr
from hypothesis import strategies as st
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import _collect_aiterator, sync
from zarr.storage import MemoryStore
from zarr.testing.strategies import array_metadata, arrays

from icelite import Repository
from icelite.keys import join
from icelite.metadata import array_info, check_document

# zarr's strategies draw data types that Zarr v3 has no specification for.
pytestmark = pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning")


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_any_array_survives_commit_and_reopening(zarr_format: int, examples: hypothesis.settings) -> None:
    """Every key and value that zarr writes to a `MemoryStore` comes back from another `Repository` object."""

    @examples
    @hypothesis.given(st.data())
    def check(data: st.DataObject) -> None:
        memory = MemoryStore()
        with zarr.config.set({"array.rectilinear_chunks": True}):  # an unknown setting before zarr 3.2
            expected = data.draw(arrays(stores=st.just(memory), zarr_formats=st.just(zarr_format)))
            with TemporaryDirectory() as directory:
                place = Path(directory) / "store.icelite"
                session = Repository.create(place).writable_session("main")
                for key, value in memory._store_dict.items():
                    sync(session.store.set(key, value))
                session.commit("any array")

                store = Repository.open(place).readonly_session("main").store
                assert set(sync(_collect_aiterator(store.list()))) == set(memory._store_dict)
                for key, value in memory._store_dict.items():
                    assert sync(store.get(key, default_buffer_prototype())).to_bytes() == value.to_bytes()
                actual = zarr.open_array(store, path=expected.path, mode="r")
                below = f"{expected.path}/" if expected.path else ""  # a MemoryStore counts siblings such as /zz too
                stored = sum(len(value) for key, value in memory._store_dict.items() if key.startswith(below))
                assert actual.nbytes_stored() == stored
                np.testing.assert_array_equal(actual[...], expected[...])

    check()


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_chunk_keys_are_those_that_zarr_writes(zarr_format: int, examples: hypothesis.settings) -> None:
    """Any array metadata is accepted, and its chunk keys are read as zarr writes them."""

    @examples
    @hypothesis.given(array_metadata(zarr_formats=st.just(zarr_format)), st.data())
    def check(metadata: zarr.core.metadata.ArrayMetadata, data: st.DataObject) -> None:
        for name, buffer in metadata.to_buffer_dict(default_buffer_prototype()).items():
            text = buffer.to_bytes().decode()
            check_document("a", name, text)
            info = array_info("a", {name: text})
            if info is None:  # .zattrs
                assert json.loads(text) == dict(metadata.attributes)
                continue
            assert info.shape == metadata.shape
            position = tuple(data.draw(st.integers(0, 10**9)) for _ in metadata.shape)
            chunk = "/".join(map(str, position))
            assert join("a", info.keys.encode(chunk)) == f"a/{metadata.encode_chunk_key(position)}"
            assert info.keys.decode(metadata.encode_chunk_key(position)) == chunk

    check()
