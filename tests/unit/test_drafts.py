"""What appears only when it is whole: files, folders and catalogs, and what killed writers leave of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import zarr

from icelite import AlreadyExistsError, Repository, StorageError
from icelite.drafts import ABANDONED_SECONDS, draft, sweep
from icelite.kerchunk import export_kerchunk, import_kerchunk

NAME = ".icelite-0123456789abcdef"
GROUP = '{"zarr_format":2}'


class Taken(Exception):
    """The error of the caller for a name that is taken."""


def free(target: Path) -> Callable[[], None]:
    def check() -> None:
        if os.path.lexists(target):
            raise Taken

    return check


def write(path: Path, kind: str, text: str = "new") -> None:
    if kind == "folder":
        path.mkdir()
        path = path / "file"
    path.write_text(text)


def read(path: Path) -> str:
    return (path / "file" if path.is_dir() else path).read_text()


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


KINDS = pytest.mark.parametrize("kind", ["file", "folder"])


@KINDS
def test_it_appears_when_the_block_ends(kind: str, tmp_path: Path) -> None:
    target = tmp_path / "target"
    with draft(target, free(target)) as path:
        assert path.parent == tmp_path
        assert not path.exists()
        write(path, kind)
        assert not target.exists()
    assert read(target) == "new"
    assert names(tmp_path) == ["target"]


@KINDS
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_failure_leaves_nothing(kind: str, error: type[BaseException], tmp_path: Path) -> None:
    target = tmp_path / "target"

    def act() -> None:
        with draft(target, free(target)) as path:
            write(path, kind)
            path.with_name(path.name + "-journal").touch()
            raise error

    with pytest.raises(error):
        act()
    assert names(tmp_path) == []


@KINDS
@pytest.mark.parametrize("there", ["file", "folder"])
def test_what_came_meanwhile_stays(kind: str, there: str, tmp_path: Path) -> None:
    target = tmp_path / "target"

    def act() -> None:
        with draft(target, free(target)) as path:
            write(path, kind)
            write(target, there, "of another")

    with pytest.raises(Taken):
        act()
    assert read(target) == "of another"
    assert names(tmp_path) == ["target"]


@KINDS
@pytest.mark.parametrize("there", ["file", "folder"])
def test_what_came_in_the_last_moment_stays(kind: str, there: str, tmp_path: Path) -> None:
    target = tmp_path / "target"
    asked: list[int] = []

    def check() -> None:  # the second time it is still free, and a moment later it is not
        asked.append(1)
        if len(asked) == 2:
            write(target, there, "of another")
        elif len(asked) > 2:
            raise Taken

    with pytest.raises(Taken), draft(target, check) as path:
        write(path, kind)
    assert read(target) == "of another"
    assert names(tmp_path) == ["target"]


@KINDS
@pytest.mark.parametrize("there", ["file", "folder", "link", "nothing"])
def test_what_is_there_is_replaced_on_request(kind: str, there: str, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("kept")
    target = tmp_path / "target"
    if there == "link":
        target.symlink_to(tmp_path / "kept")
    elif there != "nothing":
        write(target, there, "old")
    with draft(target, lambda: None, replace=True) as path:
        write(path, kind)
        assert there == "nothing" or read(target) in ("old", "kept")
    assert read(target) == "new"
    assert names(tmp_path) == ["kept", "target"]
    assert (tmp_path / "kept").read_text() == "kept"


@KINDS
def test_a_replacement_that_fails_leaves_what_was_there(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "target"
    write(target, "folder", "old")
    rename = Path.rename

    def fail(self: Path, other: Path) -> Path:
        if other == target and not self.name.endswith("-replaced"):
            raise OSError(5, "Input/output error")
        return rename(self, other)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="Input/output"), draft(target, lambda: None, replace=True) as path:
        write(path, kind)
    assert read(target) == "old"
    assert names(tmp_path) == ["target"]


@KINDS
def test_an_error_never_comes_when_the_target_is_there(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = os.open

    def fail(path: Any, flags: int, *more: int, **options: Any) -> int:
        if Path(path) == tmp_path:
            raise OSError(24, "Too many open files")
        return opened(path, flags, *more, **options)

    target = tmp_path / "target"
    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(OSError, match="Too many"), draft(target, free(target)) as path:
        write(path, kind)
    assert names(tmp_path) == []


@KINDS
def test_an_empty_folder_may_be_taken(kind: str, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    with draft(target, lambda: None) as path:
        write(path, kind)
    assert read(target) == "new"


# -- what killed writers left


def old(*paths: Path) -> None:
    then = time.time() - ABANDONED_SECONDS - 60
    for path in paths:
        os.utime(path, (then, then), follow_symlinks=False)


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that writes a draft in the folder, until it is killed."""
    code = """
        import sys, time
        from pathlib import Path
        from icelite.drafts import draft
        target = Path(sys.argv[1], "target")
        with draft(target, lambda: None) as path:
            path.write_text("half")
            print(path, flush=True)
            time.sleep(600)
    """
    arguments = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def test_a_draft_goes_when_its_writer_was_killed_an_hour_ago(writer: subprocess.Popen[str], tmp_path: Path) -> None:
    assert writer.stdout is not None
    path = Path(writer.stdout.readline().strip())
    old(path, path.with_name(path.name + ".lock"))
    sweep(tmp_path)
    assert path.read_text() == "half"  # it is alive, however long it takes
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    os.utime(path)
    sweep(tmp_path)
    assert path.exists()  # not an hour old
    old(path)
    sweep(tmp_path)
    assert names(tmp_path) == []


@pytest.mark.filterwarnings("ignore:This process.*multi-threaded")
def test_a_fork_of_the_writer_keeps_its_draft(tmp_path: Path) -> None:
    with draft(tmp_path / "target", lambda: None) as path:
        path.touch()
        old(path)
        child = os.fork()
        if child == 0:
            sweep(tmp_path)
            os._exit(0 if path.exists() else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        sweep(tmp_path)
        assert path.exists()


@pytest.mark.parametrize(
    "parts",
    [
        [NAME],
        [NAME, f"{NAME}.lock"],
        [NAME, f"{NAME}-journal", f"{NAME}-wal", f"{NAME}-shm", f"{NAME}.lock"],
        [f"{NAME}-journal"],
        [f"{NAME}.lock"],
        [f"{NAME}/"],
        [f"{NAME}/", f"{NAME}.lock"],
    ],
    ids=" ".join,
)
def test_all_parts_of_an_old_draft_go(parts: list[str], tmp_path: Path) -> None:
    for part in parts:
        if part.endswith("/"):
            write(tmp_path / part, "folder")
        else:
            (tmp_path / part).touch()
        old(tmp_path / part)
    sweep(tmp_path)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "name",
    [
        *["ocean.icelite", ".icelite-0123", f"{NAME}0", f"{NAME}-replaced", f"{NAME}.nc", ".icelite-0123456789ABCDEF"],
        *[f"x{NAME}", "icelite-0123456789abcdef", ".k.json.part", NAME.replace("-", "_")],
    ],
)
def test_what_is_not_ours_stays(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("kept")
    old(tmp_path / name)
    sweep(tmp_path)
    assert (tmp_path / name).read_text() == "kept"


def test_links_and_pipes_stay_and_are_not_opened(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("kept")
    (tmp_path / NAME).symlink_to(tmp_path / "kept")
    os.mkfifo(tmp_path / NAME.replace("0", "1"))
    held = tmp_path / NAME.replace("0", "2")
    held.touch()
    held.with_name(held.name + ".lock").symlink_to(tmp_path / "kept")
    old(*tmp_path.iterdir())
    before = names(tmp_path)
    sweep(tmp_path)
    assert names(tmp_path) == before
    assert (tmp_path / "kept").read_text() == "kept"


def test_a_folder_that_is_not_there_is_nobodys_fault(tmp_path: Path) -> None:
    sweep(tmp_path / "nowhere")


# -- who writes drafts


def filled(path: Path) -> Repository:
    repo = Repository.create(path)
    with repo.transaction("main", message="m") as store:
        zarr.create_array(store, name="x", shape=(2,), chunks=(1,), dtype="u1")[:] = 7
    return repo


def import_icechunk(path: Path) -> Any:
    pytest.importorskip("icechunk", "2.0")
    from icelite.icechunk import export_icechunk, import_icechunk

    export_icechunk(filled(path.with_name("other.icelite")), path.with_name("ice"))
    return import_icechunk(path.with_name("ice"), path)


def export_icechunk(path: Path) -> Any:
    pytest.importorskip("icechunk", "2.0")
    from icelite.icechunk import export_icechunk

    return export_icechunk(filled(path.with_name("other.icelite")), path)


WRITERS: dict[str, Callable[[Path], Any]] = {
    "create": lambda path: Repository.create(path),
    "bundle": lambda path: filled(path.with_name("other.icelite")).bundle(path),
    "export_zarr": lambda path: filled(path.with_name("other.icelite")).export_zarr(path),
    "export_zarr, zip": lambda path: filled(path.with_name("other.icelite")).export_zarr(path.with_name("z.zip")),
    "export_kerchunk": lambda path: export_kerchunk(filled(path.with_name("other.icelite")), path),
    "import_kerchunk": lambda path: import_kerchunk({".zgroup": GROUP}, path),
    "export_icechunk": export_icechunk,
    "import_icechunk": import_icechunk,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_writer_leaves_no_draft_and_sweeps_those_of_others(name: str, tmp_path: Path) -> None:
    (tmp_path / NAME).touch()
    old(tmp_path / NAME)
    WRITERS[name](tmp_path / "target")
    assert [entry for entry in names(tmp_path) if entry.startswith(".")] == []


@contextmanager
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The naming of a draft fails, as the last step may."""

    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("icelite.drafts._give_name", fail)
        yield


@pytest.mark.parametrize("name", ["create", "bundle", "export_zarr", "export_kerchunk", "export_icechunk"])
def test_no_writer_leaves_anything_of_what_could_not_get_its_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = None if name == "create" else filled(tmp_path / "given.icelite")
    acts: dict[str, Callable[[Path], Any]] = {
        "create": Repository.create,
        "bundle": lambda path: other and other.bundle(path),
        "export_zarr": lambda path: other and other.export_zarr(path),
        "export_kerchunk": lambda path: export_kerchunk(other, path),  # type: ignore[arg-type]
        "export_icechunk": lambda path: _export(other, path),
    }
    before = names(tmp_path)
    with full_disk(monkeypatch), pytest.raises(StorageError) as caught:
        acts[name](tmp_path / "target")
    assert caught.value.kind == "storage-full"
    assert names(tmp_path) == before


def _export(repo: Any, path: Path) -> Any:
    pytest.importorskip("icechunk", "2.0")
    from icelite.icechunk import export_icechunk

    return export_icechunk(repo, path)


@pytest.mark.parametrize("name", WRITERS)
def test_no_writer_takes_a_name_that_is_taken(name: str, tmp_path: Path) -> None:
    if name == "import_kerchunk":
        return  # it opens what is there
    for target in ("target", "z.zip"):
        (tmp_path / target).write_text("kept")
    with pytest.raises(AlreadyExistsError):
        WRITERS[name](tmp_path / "target")
    assert (tmp_path / "target").read_text() == (tmp_path / "z.zip").read_text() == "kept"
    assert [entry for entry in names(tmp_path) if entry.startswith(".")] == []
