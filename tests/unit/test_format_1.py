"""The first catalog ever made reads as it did: tests/data/format-1.icelite, which no release may rewrite."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zarr

import icelite
from icelite import Repository
from icelite.catalog.checks import schema_text

DATA = Path(__file__).parents[1] / "data"
NAME = "format-1"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy: opening for writing would leave its traces in the original."""
    for name in (f"{NAME}.icelite", f"{NAME}.source"):
        shutil.copy(DATA / name, tmp_path)
    shutil.copytree(DATA / f"{NAME}.objects", tmp_path / f"{NAME}.objects")
    return tmp_path


@pytest.fixture
def repo(folder: Path) -> Iterator[Repository]:
    repo = Repository.open(folder / f"{NAME}.icelite")
    yield repo
    repo.close()


def read(repo: Repository, path: str, **ref: str) -> list[object]:
    session = repo.readonly_session(**(ref or {"branch": "main"}))
    return list(np.asarray(zarr.open_array(session.store, path=path, mode="r")[...]).tolist())


def test_every_table_has_rows_and_the_schema_is_that_of_this_release(folder: Path) -> None:
    connection = sqlite3.connect(folder / f"{NAME}.icelite")
    fresh = sqlite3.connect(":memory:")
    fresh.executescript(schema_text())
    sql = "SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY name"
    assert connection.execute(sql).fetchall() == fresh.execute(sql).fetchall()
    for (table,) in fresh.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall():
        assert connection.execute(f"SELECT count(*) FROM {table}").fetchone() > (0,), table
    connection.close()
    fresh.close()


def test_it_is_sound(repo: Repository) -> None:
    found = repo.verify(objects="read")
    assert found == []
    assert found.branches.keys() == {"main", "work"}
    assert found.tags.keys() == {"v1"}
    assert found.objects == 2


def test_its_newest_state(repo: Repository) -> None:
    assert read(repo, "inline") == [[10, 10, 10], [20, 20, 20]]
    assert read(repo, "native") == [1] * 500 + [number % 256 for number in range(500, 2000)]
    assert read(repo, "sparse") == [5, -1, -1, -1]
    assert read(repo, "group/moved") == [0, 1, 2]
    assert read(repo, "old/values") == [1, 2, 3]
    root = zarr.open_group(repo.readonly_session("main").store, mode="r")
    assert root.attrs["title"] == "Größe, 大きさ"
    assert root["scalar"][...] == 2.5
    assert "doomed" not in root
    assert np.asarray(root["virtual"][:3]).tolist() == [0, 63, 20]
    with pytest.raises(icelite.InvalidInputError, match="archive"):
        root["virtual"][3]


def test_its_older_states(repo: Repository) -> None:
    assert read(repo, "inline", tag="v1") == [[0, 1, 2], [3, 4, 5]]
    assert read(repo, "doomed", tag="v1") == [0, 1, 2]
    assert read(repo, "sparse", tag="v1") == [-1, -1, 7, -1]
    assert read(repo, "inline", branch="work") == [[0, 1, 2], [20, 20, 20]]
    with pytest.raises(icelite.RefNotFoundError, match="was deleted"):
        repo.readonly_session(tag="gone")


def test_what_else_it_says(repo: Repository) -> None:
    assert repo.get_metadata() == {"title": "Format 1"}
    newest = next(iter(repo.ancestry(branch="main")))
    assert (newest.message, newest.metadata) == ("The last byte", {"by": "fixture"})
    kinds = [type(update.kind).__name__ for update in repo.ops_log()]
    assert {"RepoInitialized", "CommitAmended", "GCRan", "ExpirationRan", "LocationsRelocated"} <= set(kinds)
    history = repo.file_history(f"{NAME}.source")
    assert [entry.change for entry in history] == ["changed", "added"]
    assert "archive" in repo.config.virtual_chunk_containers["s3://bucket/archive/"].name


def test_it_can_be_continued(repo: Repository) -> None:
    session = repo.writable_session("main")
    zarr.open_array(session.store, path="native", mode="r+")[500:1000] = 9
    session.commit("Go on")
    assert read(repo, "native")[499:501] == [1, 9]
    assert repo.verify(objects="read") == []
