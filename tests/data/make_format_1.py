"""Makes tests/data/format-1.icelite, with what lies beside it: `python tests/data/make_format_1.py FOLDER`.

The file is kept for ever: it was made by the first release, and every later one has to read it. So this runs once for a
format, and is here to say what is in the file.
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import zarr
from zarr.core.buffer import default_buffer_prototype

import icelite
from icelite import BasicConflictSolver, Repository, Session, VirtualChunkContainer

NAME = "format-1"
ZARRAY = {
    "zarr_format": 2,
    "shape": [3],
    "chunks": [2],
    "dtype": "<i4",
    "compressor": None,
    "fill_value": 0,
    "order": "C",
    "filters": None,
}
OLD = {  # of Zarr format 2
    "old/.zgroup": b'{"zarr_format": 2}',
    "old/values/.zarray": json.dumps(ZARRAY).encode(),
    "old/values/.zattrs": b'{"_ARRAY_DIMENSIONS": ["n"]}',
    "old/values/0": np.array([1, 2], "<i4").tobytes(),
    "old/values/1": np.array([3, 0], "<i4").tobytes(),
}


def main(folder: Path) -> None:
    """Make the catalog, its objects and the source that it refers to, in an empty folder."""
    (folder / f"{NAME}.bin").write_bytes(bytes(range(64)))
    config = icelite.RepositoryConfig.default()
    config.set_virtual_chunk_container(VirtualChunkContainer("s3://bucket/archive/", name="archive"))
    config.inline_chunk_threshold_bytes = 100
    repo = Repository.create(folder / f"{NAME}.icelite", config, objects=f"{NAME}.objects")
    first = write_first(repo)
    repo.create_tag("v1", first)
    repo.create_tag("gone", first)
    repo.delete_tag("gone")
    repo.create_branch("work", first)
    write_history(repo)
    repo.set_metadata({"title": "Format 1"})
    repo.set_feature_flag("create_tag", True)
    repo.set_default_commit_metadata({"by": "fixture"})
    cut = datetime.now(UTC)
    write_last(repo)
    repo.expire_snapshots(cut)
    repo.garbage_collect(cut)
    repo.relocate(f"{NAME}.bin", f"{NAME}.source")
    (folder / f"{NAME}.bin").rename(folder / f"{NAME}.source")
    assert repo.verify(objects="read") == []
    repo.close()


def write_first(repo: Repository) -> str:
    """Groups and arrays of both Zarr formats; inline, native, virtual and missing chunks."""
    session = repo.writable_session("main")
    root = zarr.create_group(session.store, attributes={"title": "Größe, 大きさ"})
    root.create_array("inline", data=np.arange(6, dtype="i4").reshape(2, 3), chunks=(1, 3), dimension_names=["y", "x"])
    root.create_array("native", data=np.arange(2000, dtype="u1"), chunks=(500,), compressors=None)
    root.create_array("scalar", data=np.array(2.5))
    root.create_array("sparse", shape=(4,), chunks=(1,), dtype="i2", fill_value=-1)[2] = 7
    root.create_array("doomed", data=np.arange(3), chunks=(1,))
    root.create_array("group/moves", data=np.arange(3, dtype="f8"), chunks=(3,))
    root.create_array("virtual", shape=(4,), chunks=(1,), dtype="u1", compressors=None)
    for chunk in range(3):
        session.store.set_virtual_ref(f"virtual/c/{chunk}", f"{NAME}.bin", offset=10 * chunk, length=1)
    session.store.set_virtual_ref(
        "virtual/c/3", "vcc://archive/far.bin", offset=1 << 40, length=1, checksum='"0123456789abcdef"'
    )
    for key, text in OLD.items():
        session.store.set_sync(key, default_buffer_prototype().buffer.from_bytes(text))
    return session.commit("Everything", {"author": "fixture"})


def write_history(repo: Repository) -> None:
    """A fork, a merge, an amend, a move, a snapshot without a branch."""

    def commit(branch: str, path: str, index: int, value: int) -> None:
        session = repo.writable_session(branch)
        open_array(session, path)[index] = value
        session.commit(f"{path} {index}")

    commit("main", "inline", 0, 10)
    commit("work", "inline", 1, 20)
    commit("main", "sparse", 0, 5)
    repo.merge("work", "main", solver=BasicConflictSolver())
    session = repo.writable_session("main")
    del zarr.open_group(session.store)["doomed"]
    session.store.delete_sync("sparse/c/2")
    session.commit("Delete")
    session = repo.rearrange_session("main")
    session.move("/group/moves", "/group/moved")
    session.commit("Move")
    session = repo.writable_session("main")
    open_array(session, "native")[:500] = 1
    session.amend("Move and write")
    session = repo.writable_session("work")
    open_array(session, "native")[1500:] = 2
    session.flush("On no branch")


def write_last(repo: Repository) -> None:
    """What expiration leaves alone."""
    session = repo.writable_session("main")
    session.store.set_virtual_ref("virtual/c/1", f"{NAME}.bin", offset=63, length=1)
    session.commit("The last byte")


def open_array(session: Session, path: str) -> zarr.Array:
    """An array of a session, to be written to."""
    return zarr.open_array(session.store, path=path, mode="r+")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
