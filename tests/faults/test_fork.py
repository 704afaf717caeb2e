"""A process with a repository open forks: parent and child go on, each with handles of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import os, sys
import zarr
import icelite

path = sys.argv[1]
repo = icelite.Repository.create(path)
session = repo.writable_session("main")
zarr.create_array(session.store, name="a", shape=(4,), chunks=(1,), dtype="i4")[:] = 7
session.commit("parent")
reader, writer = repo.readonly_session("main"), repo.writable_session("main")
assert reader.store.get_sync("a/c/0") is not None
child = os.fork()
if child == 0:
    assert reader.store.get_sync("a/c/1") is not None
    assert [info.message for info in repo.ancestry(branch="main")][0] == "parent"
    try:
        writer.store.get_sync("a/c/0")
    except icelite.SessionStateError as error:
        assert "os.fork" in str(error)
    else:
        raise SystemExit("the child used its parent's change set")
    own = repo.writable_session("main")
    own.store.delete_sync("a/c/0")
    own.commit("child")
    sys.exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
writer.store.delete_sync("a/c/1")
writer.commit("parent again", rebase_with=icelite.ConflictDetector())
assert [info.message for info in repo.ancestry(branch="main")][:3] == ["parent again", "child", "parent"]
assert repo.verify() == []
"""


def test_parent_and_child_go_on(tmp_path: Path) -> None:
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, str(tmp_path / "a.icelite")],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert found.returncode == 0, found.stderr
