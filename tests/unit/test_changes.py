"""What an amend makes of the notes about the snapshot it replaces."""

from __future__ import annotations

from typing import Any


def amend(workbench: Any, keys: dict[str, bytes | None]) -> str:
    session = workbench.repository.writable_session("main")
    workbench.write(session, keys)
    return session.amend("work", allow_empty=True)


def test_an_amend_that_deletes_what_it_amends_leaves_the_amended_snapshot_alone(workbench: Any) -> None:
    workbench.commit({"zarr.json": workbench.GROUP})
    amended = workbench.commit({"x/zarr.json": workbench.array(4), "x/c/0": b"a"})
    before = workbench.contents(snapshot_id=amended)
    amend(workbench, {"x": None})
    assert workbench.contents("main").keys() == {"zarr.json"}
    assert workbench.contents(snapshot_id=amended) == before
    assert workbench.repository.verify() == []


def test_what_was_replaced_does_not_come_back_with_the_second_amend(workbench: Any) -> None:
    """One commit puts an array in another's place, an amend deletes it, the next amend copies that."""
    workbench.commit({"x/zarr.json": workbench.array(4), "x/c/0": b"a"})
    session = workbench.repository.writable_session("main")
    workbench.write(session, {"x": None})
    workbench.write(session, {"x/zarr.json": workbench.array(2)})
    session.commit("replace")
    amend(workbench, {"x": None})
    assert workbench.contents("main") == {}
    amend(workbench, {"y/zarr.json": workbench.array(1)})
    assert workbench.contents("main").keys() == {"y/zarr.json"}
    assert workbench.repository.diff(
        to_branch="main", from_snapshot_id=workbench.history(branch="main")[1]
    ).new_arrays == {"/y"}
    assert workbench.repository.verify() == []
