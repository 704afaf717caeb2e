"""The command line: each verb on a real catalog of real files, for people, for scripts, and with bad input."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import oisst
import pytest
import xarray as xr
import zarr

import icelite
from icelite.cli import main

VERBS = ["create", "info", "log", "ls", "diff", "verify", "virtualize", "update", "sources", "refs", "relocate"]
VERBS += ["bundle", "export", "import", "expire", "gc", "compact", "make-native", "template"]


class Shell:
    """Runs ``icelite`` in a folder, in this process: a process for each would take two seconds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        out, err = io.StringIO(), io.StringIO()
        with (
            pytest.MonkeyPatch.context() as patch,
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            patch.chdir(self.folder)
            patch.setattr(sys, "argv", ["icelite", *arguments])
            with pytest.raises(SystemExit) as ended:
                main()
        assert ended.value.code == code, err.getvalue()
        return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())

    def json(self, *arguments: str, code: int = 0) -> Any:
        return json.loads(self.run(*arguments, "--json", code=code).stdout)

    def fails(self, *arguments: str) -> str:
        """The one line on stderr of a command that fails."""
        done = self.run(*arguments, code=1)
        assert done.stderr.startswith("icelite: error: ")
        assert done.stderr.count("\n") == 1
        return done.stderr


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """A folder with four daily files, and a catalog of the first three that has a tag."""
    folder = tmp_path_factory.mktemp("cli")
    oisst.write_days(folder / "oisst", date(2024, 8, 30), 4, (18, 36))
    shell = Shell(folder)
    shell.run("virtualize", "oisst/*2024083*.nc", "oisst/*20240901.nc", "-o", "a.icelite", "--concat-dim", "time")
    repo = icelite.Repository.open(folder / "a.icelite")
    repo.create_tag("august", repo.lookup_branch("main"))
    return shell


def test_every_verb_has_help_with_an_example(shell: Shell) -> None:
    listed = shell.run("--help").stdout
    assert all(f"\n  {verb} " in listed for verb in VERBS)
    from icelite.cli.main import commands

    for verb in VERBS:
        command = commands.commands[verb]
        for leaf in getattr(command, "commands", {"": command}).values():
            assert "icelite " in (leaf.help or ""), f"{verb} {leaf.name}"
            assert any("--json" in option.opts for option in leaf.params), f"{verb} {leaf.name}"
    assert "\n  icelite ls ocean.icelite\n" in shell.run("ls", "--help").stdout
    assert icelite.__version__ in shell.run("--version").stdout


def test_as_a_process_of_its_own(shell: Shell) -> None:
    """Quiet on stderr where that is no terminal, and content with a reader that has seen enough."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "icelite"]
    options: dict[str, Any] = {"cwd": shell.folder, "env": environment, "text": True, "timeout": 120, "check": False}
    done = subprocess.run([*command, "sources", "a.icelite", "--check"], capture_output=True, **options)
    assert (done.returncode, done.stderr) == (0, "")
    failed = subprocess.run([*command, "log", "nope.icelite"], capture_output=True, **options)
    assert failed.returncode == 1
    assert failed.stderr.count("\n") == 1
    piped = subprocess.run(
        f"{sys.executable} -m icelite refs a.icelite sst --json | head -c 1", shell=True, capture_output=True, **options
    )
    assert (piped.stdout, piped.stderr) == ("[", "")


def test_create_and_info(shell: Shell) -> None:
    made = shell.json("create", "new.icelite", "--objects", "chunks")
    assert made["branch"] == "main"
    facts = shell.json("info", "new.icelite")
    assert facts["branches"] == {"main": made["snapshot_id"]}
    assert (facts["snapshots"], facts["tags"], facts["required_access"]) == (1, {}, {})
    assert "branch     main" in shell.run("info", "new.icelite").stdout
    assert "already exists" in shell.fails("create", "new.icelite")


def test_log_ls_and_diff(shell: Shell) -> None:
    newest, first = shell.json("log", "a.icelite@august")
    assert newest["message"].startswith("Add 3 files along time")
    assert newest["parent_id"] == first["id"]
    assert len(shell.json("log", "a.icelite", "-n", "1")) == 1
    assert "august" in shell.run("log", "a.icelite").stdout
    assert shell.json("log", f"a.icelite@{newest['id']}") == shell.json("log", "a.icelite@august")
    nodes = {node["path"]: node for node in shell.json("ls", "a.icelite@august")}
    assert nodes["/sst"]["shape"] == [3, 1, 18, 36]
    assert (nodes["/sst"]["dtype"], nodes["/sst"]["dimensions"]) == ("int16", ["time", "zlev", "lat", "lon"])
    assert [node["path"] for node in shell.json("ls", "a.icelite", "sst")] == ["/sst"]
    assert "/sst" in shell.json("diff", "a.icelite@" + first["id"], "august")["new_arrays"]
    assert "/sst" in shell.run("diff", "a.icelite@" + first["id"]).stdout


def test_the_history_of_a_file(shell: Shell) -> None:
    name = "oisst/oisst-avhrr-v02r01.20240831.nc"
    (added,) = shell.json("log", "a.icelite@august", "--file", name)
    assert (added["change"], added["references"]) == ("added", 4)
    assert added["snapshot_id"] == shell.json("log", "a.icelite@august")[0]["id"]
    url = (shell.folder / name).as_uri()
    shown = shell.run("log", "a.icelite@august", "--file", url).stdout
    assert added["snapshot_id"] in shown
    assert "Add 3 files along time" in shown
    assert shell.json("log", "a.icelite", "--file", url, "-n", "0") == []


def test_sources_refs_and_verify(shell: Shell) -> None:
    files = shell.json("sources", "a.icelite@august", "--check")
    assert [Path(row["path"]).name[-11:-3] for row in files] == ["20240830", "20240831", "20240901"]
    assert {(row["references"], row["state"]) for row in files} == {(4, "ok")}
    rows = shell.json("refs", "a.icelite@august", "sst")
    with xr.open_dataset(shell.folder / "a.icelite", tag="august") as dataset:
        assert len(rows) == dataset.sizes["time"]
    assert {row["kind"] for row in rows} == {"virtual"}
    assert "and 2 more" in shell.run("refs", "a.icelite@august", "sst", "-n", "1").stdout
    assert shell.json("verify", "a.icelite@august", "--sources")["problems"] == []
    assert shell.run("verify", "a.icelite").stdout == "no problems found\n"


def test_a_changed_source_and_a_damaged_file_are_told(shell: Shell, tmp_path: Path) -> None:
    oisst.write_days(tmp_path / "oisst", date(2024, 8, 30), 2, (18, 36))
    here = Shell(tmp_path)
    here.run("virtualize", "oisst/*.nc", "-o", "a.icelite", "--concat-dim", "time")
    changed = min((tmp_path / "oisst").iterdir())
    changed.write_bytes(changed.read_bytes() + b"x")
    assert [row["state"] for row in here.json("sources", "a.icelite", "--check", code=1)] == ["changed", "ok"]
    (problem,) = here.json("verify", "a.icelite", "--sources", code=1)["problems"]
    assert changed.name in problem["subject"] + problem["detail"]
    data = bytearray((tmp_path / "a.icelite").read_bytes())
    data[-200:] = bytes(200)
    (tmp_path / "a.icelite").write_bytes(data)
    assert here.run("verify", "a.icelite", code=1).stdout or "damaged" in here.fails("verify", "a.icelite")


def test_the_rest_of_the_month_is_appended(shell: Shell) -> None:
    done = shell.json("virtualize", "oisst/*.nc", "-o", "a.icelite", "--concat-dim", "time")
    assert [Path(url).name[-11:-3] for url in done["added"]] == ["20240902"]
    again = shell.json("virtualize", "oisst/*.nc", "-o", "a.icelite", "--concat-dim", "time")
    assert again["added"] == []
    assert again["snapshot_id"] is None
    with xr.open_dataset(shell.folder / "a.icelite") as found:
        assert found.sizes["time"] == 4


def test_bundle_export_import_relocate(shell: Shell) -> None:
    with xr.open_dataset(shell.folder / "a.icelite", tag="august") as dataset:
        expected = dataset.load()

    def same(path: str, **options: Any) -> None:
        with xr.open_dataset(shell.folder / path, **options) as found:
            xr.testing.assert_identical(found.load().drop_attrs(), expected.drop_attrs())

    shell.run("bundle", "a.icelite", "whole.icelite")
    same("whole.icelite", tag="august")
    shell.run("export", "zarr", "a.icelite@august", "plain.zarr")
    with xr.open_zarr(shell.folder / "plain.zarr", consolidated=False) as found:  # packed values become float64 there
        xr.testing.assert_allclose(found, expected)
    shell.run("export", "kerchunk", "a.icelite@august", "refs.json")
    shell.run("import", "kerchunk", "refs.json", "back.icelite")
    same("back.icelite")
    shell.run("export", "kerchunk", "a.icelite@august", "refs.parquet", "--parquet", "--zarr-format", "2")
    shell.run("import", "kerchunk", "refs.parquet", "parquet.icelite")
    same("parquet.icelite")
    assert "already" in shell.fails("export", "zarr", "a.icelite", "plain.zarr")
    assert shell.json("relocate", "back.icelite", "oisst/", "moved/", "--dry-run")["count"] == 3
    shell.run("relocate", "back.icelite", "oisst/", "moved/")
    assert {row["state"] for row in shell.json("sources", "back.icelite", "--check", code=1)} == {"missing"}


def test_what_cannot_be_read_is_left_out_or_stops(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["good"] = [1.0, 2.0]
        file.create_dataset("lists", (2,), h5py.vlen_dtype("i4"))
    here = Shell(tmp_path)
    told = here.fails("virtualize", "a.h5", "-o", "raised.icelite", "--on-unreadable", "raise")
    assert "'lists': it holds lists" in told
    assert not (tmp_path / "raised.icelite").exists()
    with pytest.warns(UserWarning, match="'lists' of .* is left out"):
        here.run("virtualize", "a.h5", "-o", "a.icelite")
    with xr.open_dataset(tmp_path / "a.icelite") as found:
        assert list(found.variables) == ["good"]


def test_variables_are_copied(tmp_path: Path) -> None:
    oisst.write_days(tmp_path / "oisst", date(2024, 8, 30), 3, (18, 36))
    here = Shell(tmp_path)
    here.run("virtualize", "oisst/*.nc", "-o", "a.icelite", "--concat-dim", "time")
    chunks = ["--chunks", "time=-1", "--chunks", "lat=9"]
    done = here.json("make-native", "a.icelite", "sst", *chunks, "-m", "native")
    assert done["chunks"] == {"sst": [3, 1, 9, 36]}
    assert here.json("log", "a.icelite", "-n", "1")[0]["message"] == "native"
    assert {row["kind"] for row in here.json("refs", "a.icelite", "sst")} == {"inline"}
    assert "anom in chunks of 3 x 1 x 9 x 36" in here.run("make-native", "a.icelite", "anom", *chunks).stdout


def test_a_template_is_filled(tmp_path: Path) -> None:
    oisst.write_days(tmp_path / "oisst", date(2024, 8, 30), 3, (6, 12))
    here = Shell(tmp_path)
    sample = "oisst/oisst-avhrr-v02r01.20240831.nc"
    times = ["--concat-dim", "time", "--from", "2024-08-30T12", "--to", "2024-09-02T12"]
    done = here.json("template", "a.icelite", sample, *times)
    assert here.json("log", "a.icelite", "-n", "1")[0]["id"] == done["snapshot_id"]
    fill = ["virtualize", "oisst/*.nc", "-o", "a.icelite", "--concat-dim", "time", "--region", "auto"]
    assert len(here.json(*fill)["added"]) == 3
    assert here.json(*fill)["snapshot_id"] is None
    with xr.open_dataset(tmp_path / "a.icelite") as found:
        assert found.sst.isnull().all(["zlev", "lat", "lon"]).values.tolist() == [False, False, False, True]
    assert "a template to be filled" in here.run("template", "b.icelite", sample, *times, "--every", "6h").stdout
    for bad, words in ((["--every", "1z"], "are no times"), (["--fill", "sst"], "'sst' is not NAME=VALUE")):
        assert words in here.fails("template", "c.icelite", sample, *times, *bad)


def test_history_is_cut_and_space_given_back(tmp_path: Path) -> None:
    here = Shell(tmp_path)
    repo = icelite.Repository.create(tmp_path / "a.icelite")
    ids = []
    for number in range(4):
        session = repo.writable_session("main")
        array = zarr.create_array(session.store, name="x", shape=20_000, dtype="u1", compressors=None, overwrite=True)
        array[:] = number + 1
        ids.append(session.commit(f"work {number}"))
    repo.create_tag("v1", ids[0])
    repo.close()
    expire = ["expire", "a.icelite", "--keep-last", "2"]
    told = here.run(*expire, "--dry-run").stdout
    assert "work 1" in told
    assert told.endswith("would release 1 snapshots\n")
    assert here.json(*expire, "--older-than", "35d", "--delete-tags")["released"] == []
    assert here.json(*expire, "--dry-run")["released"] == [ids[1]]
    assert here.run(*expire, "--keep-tags").stdout == "released 1 snapshots\n"
    released = here.json("expire", "a.icelite", "--older-than", "2999-01-01", "--delete-tags")["released"]
    assert released == sorted(ids[:3:2])
    assert [info["id"] for info in here.json("log", "a.icelite")][:-1] == [ids[3]]
    gc = ["gc", "a.icelite", "--older-than", "2999-01-01T00:00Z"]
    planned = here.json(*gc, "--dry-run")
    assert planned["nodes_deleted"] == 3
    assert "would remove 3 chunks" in here.run(*gc, "--dry-run").stdout
    assert here.json(*gc) == {**planned, "dry_run": False}
    assert here.run("gc", "a.icelite").stdout == "removed nothing\n"
    sizes = here.json("compact", "a.icelite", "--dry-run")
    assert "would be left" in here.run("compact", "a.icelite", "--dry-run").stdout
    assert here.json("compact", "a.icelite")["bytes_after"] <= sizes["bytes_after"] < sizes["bytes_before"]
    assert here.run("compact", "a.icelite").stdout.endswith(" now\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["make-native", "a.icelite", "sst", "--chunks", "time"], "'time' is not DIM=N"),
        (["make-native", "a.icelite", "sst", "--chunks", "x=2"], "no variable has the dimension 'x'"),
        (["expire", "a.icelite"], "nothing says what to release"),
        (["expire", "a.icelite", "--older-than", "35"], "'35' is no age such as 35d"),
        (["expire", "a.icelite", "--keep-daily", "-1"], "keep_daily=-1"),
        (["expire", "a.icelite@august", "--keep-daily", "1"], "leave @august out"),
        (["gc", "a.icelite", "--older-than", "9999999w"], "no age"),
        (["gc", "nope.icelite"], "no repository"),
        (["compact", "a.icelite@main"], "leave @main out"),
        (["log", "nope.icelite"], "no repository"),
        (["log", "a.icelite", "--file", "never.nc"], "no reference was ever to 'never.nc'"),
        (["ls", "a.icelite@nope"], "no branch or tag 'nope'"),
        (["ls", "a.icelite", "nope"], "nope"),
        (["refs", "a.icelite", "nope"], "nope"),
        (["virtualize", "nope/*.nc", "-o", "x.icelite", "--concat-dim", "time"], "nope/*.nc"),
        (["sources", "a.icelite", "--access", "gopher://x"], "gopher"),
        (["relocate", "a.icelite", "nope/", "moved/"], "nope/"),
        (["bundle", "a.icelite", "a.icelite"], "already exists"),
        (["import", "kerchunk", "nope.json", "x.icelite"], "nope.json"),
        (["verify", "oisst/oisst-avhrr-v02r01.20240830.nc"], "not"),
    ],
)
def test_bad_input_is_one_line(shell: Shell, arguments: list[str], words: str) -> None:
    assert words in shell.fails(*arguments)
    assert not (shell.folder / "x.icelite").exists()


def test_text_of_a_catalog_cannot_play_with_the_terminal(tmp_path: Path) -> None:
    repo = icelite.Repository.create(tmp_path / "a.icelite")
    session = repo.writable_session("main")
    zarr.create_group(session.store)
    session.commit("\x1b[31mred\nand more")
    shown = Shell(tmp_path).run("log", "a.icelite").stdout
    assert "\x1b" not in shown
    assert r"\x1b[31mred\nand more" in shown


def test_an_at_sign_that_is_no_reference(tmp_path: Path) -> None:
    from icelite.cli.catalogs import CATALOG, CatalogArgument

    (tmp_path / "me@home").mkdir()
    convert: Callable[[str], CatalogArgument] = lambda text: CATALOG.convert(text, None, None)  # noqa: E731
    assert convert(f"{tmp_path}/me@home/a.icelite") == CatalogArgument(f"{tmp_path}/me@home/a.icelite", None)
    assert convert(f"{tmp_path}/me@home/a.icelite@v1") == CatalogArgument(f"{tmp_path}/me@home/a.icelite", "v1")
    assert convert("https://me@host/a.icelite").ref is None
    assert convert("s3://bucket/a.icelite@v1") == CatalogArgument("s3://bucket/a.icelite", "v1")
