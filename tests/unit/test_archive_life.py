"""The life of an archive: random days that are added, come late, are replaced, doubled, dropped, unfit or broken.

The model is xarray: after each step the dataset must equal, to the last bit, the concatenation of the files that
should be in it. ``ICELITE_CAMPAIGN=1 pytest tests/unit/test_archive_life.py`` runs 300 lives of 20 steps.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

pytest.importorskip("virtualizarr")
netCDF4 = pytest.importorskip("netCDF4")

from icelite.archive.dropping import drop  # noqa: E402
from icelite.archive.summary import VirtualizeSummary  # noqa: E402
from icelite.archive.updating import replace as replace_files  # noqa: E402
from icelite.archive.updating import update  # noqa: E402
from icelite.archive.virtualize import virtualize  # noqa: E402

LIVES, STEPS = 300 if os.environ.get("ICELITE_CAMPAIGN") else int(os.environ.get("LIVES", 15)), 20
SLOTS = 8
PER_FILE = 3

slots = st.integers(0, SLOTS - 1)


@dataclass
class Member:
    """A file of the archive, and which of its labels are in the dataset."""

    path: Path
    labels: list[int]
    kept: list[int] = field(default_factory=list)

    def whole(self) -> Member:
        return replace(self, kept=list(self.labels))


class ArchiveLife(RuleBasedStateMachine):
    """One catalog and its files; ``members`` says which file each slot of three days has in the dataset."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="life"))
        (self.folder / "data").mkdir()
        self.catalog = self.folder / "c.icelite"
        self.members: dict[int, Member] = {}
        self.outside: dict[int, Member] = {}  # slots whose file was dropped, and is there
        self.odd: dict[Path, str] = {}  # files that never fit
        self.clock = 10**18
        self.numbers = 0

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    # ---- files

    def write(self, name: str, labels: list[int], *, units: str = "K", columns: int = 4) -> Path:
        """A file with packed values, bounds and two-dimensional coordinates, newer than all others."""
        path = self.folder / "data" / name
        path.unlink(missing_ok=True)
        self.numbers += 1
        with netCDF4.Dataset(path, "w") as file:
            for dim, size in (("time", None), ("y", 3), ("x", columns), ("nv", 2)):
                file.createDimension(dim, size)
            time = file.createVariable("time", "f8", ("time",))
            first = self.numbers % 3  # files count from dates of their own
            time.setncatts({"units": f"days since 2000-01-0{1 + first}", "bounds": "time_bnds"})
            time[:] = np.array(labels) - first
            bounds = file.createVariable("time_bnds", "f8", ("time", "nv"))
            bounds[:] = np.stack([labels, np.array(labels) + 1], 1) - first
            lat = file.createVariable("lat", "f4", ("y", "x"), zlib=True)
            lat[:] = np.arange(3 * columns).reshape(3, columns)
            values = file.createVariable(
                "v", "i2", ("time", "y", "x"), zlib=True, chunksizes=(self.chunk, 3, columns), fill_value=-999
            )
            values.setncatts({"units": units, "coordinates": "lat"})
            values.scale_factor, values.add_offset = np.float32(0.1), np.float32(3)
            values.set_auto_maskandscale(False)
            random = np.random.default_rng(self.numbers)
            values[:] = random.integers(-999, 999, (len(labels), 3, columns))
        self.touch(path)
        return path

    def touch(self, path: Path, at: int | None = None) -> None:
        self.clock += 10**9
        os.utime(path, ns=(self.clock, self.clock if at is None else at))

    def days(self, slot: int, count: int = PER_FILE) -> list[int]:
        return list(range(PER_FILE * slot, PER_FILE * slot + count))

    def date(self, label: int) -> np.datetime64:
        return np.datetime64("2000-01-01", "ns") + np.timedelta64(label, "D")

    # ---- what must hold

    def update(self) -> VirtualizeSummary:
        summary = update(self.catalog, self.folder / "data" / "*.nc", workers=1)
        assert {Path(url.removeprefix("file://")) for url in summary.left_out} == set(self.odd)
        self.check()
        return summary

    def check(self) -> None:
        parts = []
        for slot in sorted(self.members):
            member = self.members[slot]
            with xr.open_dataset(member.path, engine="netcdf4") as dataset:
                at = [member.labels.index(label) for label in member.kept]
                parts.append(dataset.isel(time=at).load())
        options: Any = {"data_vars": "minimal", "coords": "minimal", "compat": "override", "combine_attrs": "override"}
        expected = xr.concat(parts, "time", **options)
        with xr.open_dataset(self.catalog, engine="icelite") as found:
            found.load()
            xr.testing.assert_equal(found, expected)
            for name, variable in expected.variables.items():
                assert found[name].dtype == variable.dtype
                assert found[name].values.tobytes() == variable.values.tobytes(), name

    def is_last(self, slot: int) -> bool:
        return slot >= max(self.members, default=-1)

    # ---- what happens

    @initialize(several=st.booleans(), first=st.sets(slots, min_size=1, max_size=3))
    def begin(self, several: bool, first: set[int]) -> None:
        """The first files; a chunk holds one step, or all steps of a file."""
        self.chunk = PER_FILE if several else 1
        for slot in first:
            self.members[slot] = Member(self.write(f"day{slot}.nc", self.days(slot)), self.days(slot)).whole()
        virtualize(self.folder / "data" / "*.nc", self.catalog, concat_dim="time", workers=1)
        self.check()

    @rule(slot=slots)
    def add(self, slot: int) -> None:
        """A new day, or one that comes late."""
        if slot in self.members or slot in self.outside or self.is_growing():
            return
        member = Member(self.write(f"day{slot}.nc", self.days(slot)), self.days(slot)).whole()
        is_late = not self.is_last(slot)
        self.members[slot] = member
        summary = self.update()
        assert (len(summary.added), len(summary.inserted)) == (int(not is_late), int(is_late))

    def is_growing(self) -> bool:
        """Whether the last file's last chunk is partly filled, so that nothing can follow it."""
        last = self.members[max(self.members)]
        return self.chunk > 1 and len(last.kept) < PER_FILE

    @rule(count=st.integers(1, PER_FILE))
    def grow(self, count: int) -> None:
        """The last file becomes longer or shorter."""
        slot = max(self.members)
        path = self.write(self.members[slot].path.name, self.days(slot, count))
        self.members[slot] = Member(path, self.days(slot, count)).whole()
        assert len(self.update().replaced) == 1

    @rule(slot=slots)
    def rewrite(self, slot: int) -> None:
        """A file is reprocessed under its name; one that was dropped is back then."""
        if slot in self.outside and not (slot > max(self.members) and self.is_growing()):
            member = self.outside.pop(slot)
            back = True
        elif slot in self.members:
            member, back = self.members[slot], False
        else:
            return
        self.write(member.path.name, member.labels)
        self.members[slot] = member.whole()
        summary = self.update()
        assert len(summary.replaced) == int(not back)

    @rule(slot=slots, newer=st.booleans())
    def duplicate(self, slot: int, newer: bool) -> None:
        """The same days under another name, newer or older."""
        if slot not in self.members or len(self.members[slot].kept) < len(self.members[slot].labels):
            return
        member = self.members[slot]
        path = self.write(f"copy{self.numbers}.nc", member.labels)
        if newer:
            self.members[slot] = replace(member, path=path)
        else:
            os.utime(path, ns=(1, 1))
        summary = self.update()
        assert list(summary.replaced.values()) == ([f"file://{member.path}"] if newer else [])
        if not newer:
            path.unlink()  # or it would come in when the newer one is dropped

    @rule(slot=slots)
    def replace_by_name(self, slot: int) -> None:
        """A file of another name takes the place of one, asked for; whatever is newer."""
        if slot not in self.members:
            return
        member = self.members[slot]
        path = self.write(f"copy{self.numbers}.nc", member.labels)
        replace_files(self.catalog, path, replaces=member.path)
        self.members[slot] = Member(path, member.labels).whole()
        self.check()

    @rule(slot=slots, by_label=st.booleans())
    def drop_file(self, slot: int, by_label: bool) -> None:
        """A file is taken out, and stays out."""
        if slot not in self.members or len(self.members) == 1:
            return
        member = self.members[slot]
        if by_label or (self.chunk > 1 and len(member.kept) < len(member.labels)):
            summary = drop(self.catalog, [self.date(n) for n in member.kept])
        else:
            summary = drop(self.catalog, member.path)
        del self.members[slot]
        self.outside[slot] = member
        assert summary.taken_out == len(member.kept)
        self.check()
        if self.chunk == 1 or len(member.kept) == len(member.labels):
            self.update()

    @precondition(lambda self: self.chunk == 1)
    @rule(slot=slots, which=st.integers(0, PER_FILE - 1))
    def drop_label(self, slot: int, which: int) -> None:
        """One day of a file is taken out."""
        if slot not in self.members or not which < len(self.members[slot].kept) > 1:
            return
        member = self.members[slot]
        label = member.kept.pop(which)
        drop(self.catalog, str(self.date(label))[:10])
        self.check()
        self.update()

    @rule(kind=st.sampled_from(["units", "grid", "broken"]), slot=slots)
    def spoil(self, kind: str, slot: int) -> None:
        """A file that does not fit, or is none."""
        path = self.folder / "data" / f"odd{self.numbers}.nc"
        if kind == "broken":
            path.write_bytes(b"404 not found")
        else:
            self.write(path.name, self.days(slot), **({"units": "degC"} if kind == "units" else {"columns": 5}))
        self.odd[path] = kind
        summary = self.update()
        assert f"file://{path}" in (summary.broken if kind == "broken" else summary.misfit)

    @rule()
    def run_again(self) -> None:
        """Nothing is new."""
        assert self.update().snapshot_id is None


@pytest.mark.slow
class TestArchiveLife(ArchiveLife.TestCase):  # type: ignore[name-defined]
    """Random lives."""

    settings = settings(max_examples=LIVES, stateful_step_count=STEPS, deadline=None)
