"""netCDF files, virtualised: identical to what xarray's engine netcdf4 reads of them."""

from __future__ import annotations

import string
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import icelite
from icelite.formats import open_virtual_tree

netCDF4 = pytest.importorskip("netCDF4")
h5py = pytest.importorskip("h5py")
pytest.importorskip("virtualizarr")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of xarray and zarr, about names and types outside their specifications
        yield tmp_path


def letters(*words: str) -> np.ndarray:
    return np.array([list(word) for word in words], "S1")


def fill_of_text(file: Any) -> None:
    """As in Argo's floats."""
    file.createDimension("N", 3)
    file.createDimension("S", 4)
    file.createVariable("name", "S1", ("N", "S"), fill_value=b" ")[:] = letters("ab  ", "    ", "abcd")
    file.createVariable("flag", "S1", ("N",), fill_value=b" ")[:] = np.array([b"A", b" ", b"1"], "S1")
    file.createVariable("plain", "S1", ("N", "S"))[:] = letters("ab  ", "    ", "abcd")


def two_missing_values(file: Any) -> None:
    """As in ARM's observations."""
    file.createDimension("x", 3)
    for name in "xy":
        variable = file.createVariable(name, "f8", ("x",), fill_value=np.nan)
        variable.missing_value = -9999.0
        variable[:] = [1, -9999 if name == "y" else 2, 3]


def coordinates_of_the_file(file: Any) -> None:
    file.createDimension("t", 2)
    for name in ("v", "bounds", "crs"):
        file.createVariable(name, "f4", ("t",))[:] = [1, 2]
    file.coordinates = "bounds crs absent"
    file["v"].coordinates = "bounds"


def coordinates_of_several_dimensions(file: Any) -> None:
    for name, size in (("station", 3), ("nchar", 5), ("siglay", 2), ("node", 4)):
        file.createDimension(name, size)
    file.createVariable("station", "S1", ("station", "nchar"))[:] = letters("abc  ", "defgh", "z    ")
    file.createVariable("siglay", "f4", ("siglay", "node"))[:] = np.arange(8).reshape(2, 4)
    file.createVariable("t", "f4", ("siglay", "station"))[:] = 1
    file.createVariable("node", "f4", ("station",))[:] = 1


def packed(file: Any) -> None:
    file.createDimension("x", 3)
    for name, dtype in (("x", "i2"), ("packed", "i2"), ("bytes", "i1")):
        variable = file.createVariable(name, dtype, ("x",), fill_value=None if name == "x" else -1)
        variable.set_auto_maskandscale(False)
        variable.scale_factor, variable.add_offset = np.float32(0.1), np.float32(5)
        variable[:] = [1, 2, 3] if name == "x" else [1, -1, 3]
    times = file.createVariable("times", "i4", ("x",))
    times.units = "hours since 2000-01-01"
    times[:] = [1, 2, 3]


def groups(file: Any) -> None:
    """The unlimited dimension is longest in a group, another one is a group's own."""
    file.createDimension("t", None)
    file.createDimension("x", 3)
    file.createVariable("t", "f8", ("t",))[:2] = [5, 6]
    file.createVariable("w", "f4", ("t",))[:2] = 1
    file.createVariable("unwritten", "i4", ("t", "x"), zlib=True, fill_value=5)
    below = file.createGroup("g")
    below.createVariable("v", "f4", ("t", "x"))[:] = np.arange(12).reshape(4, 3)
    deep = below.createGroup("h")
    deep.createDimension("x", 7)
    deep.createVariable("q", "f4", ("t", "x"), zlib=True)[:] = np.ones((6, 7))


def kinds(file: Any) -> None:
    file.createDimension("a", 3)
    enum = file.createEnumType(np.int8, "E", {"x": 0, "y": 1})
    file.createVariable("enum", enum, ("a",))[:] = [0, 1, 0]
    file.createVariable("text", str, ("a",))[:] = np.array(["a", "b\u00e9", ""], object)
    variable = file.createVariable("v", "u8", ("a",), chunksizes=(2,), fletcher32=True, shuffle=True, zlib=True)
    variable[:] = [1, 2, 2**63]
    variable.setncattr("list", np.array([1, 2], "i8"))
    variable.setncattr_string("words", ["a", "b"])
    variable.empty, variable.number, file.title = "", np.float32(1.5), "t"


BOTH: list[Callable[[Any], None]] = [
    fill_of_text,
    two_missing_values,
    coordinates_of_the_file,
    coordinates_of_several_dimensions,
    packed,
]


def assert_identical(path: Path, group: str | None = None) -> None:
    catalog = path.with_name(f"{path.stem}-{(group or '').replace('/', '-')}.icelite")
    icelite.virtualize(str(path), str(catalog), **({"source_group": group} if group else {}))
    with xr.open_dataset(path, group=group, engine="netcdf4") as expected, xr.open_dataset(catalog) as found:
        xr.testing.assert_identical(found.load(), expected.load())
        for name, variable in expected.variables.items():
            assert found[name].dtype == variable.dtype or variable.dtype.kind in "UO"


@pytest.mark.parametrize("form", ["NETCDF3_CLASSIC", "NETCDF3_64BIT_DATA", "NETCDF4"])
@pytest.mark.parametrize("write", BOTH)
def test_every_kind_in_every_form(folder: Path, write: Callable[[Any], None], form: str) -> None:
    with netCDF4.Dataset(folder / "a.nc", "w", format=form) as file:
        write(file)
    assert_identical(folder / "a.nc")


def test_kinds_of_netcdf4(folder: Path) -> None:
    with netCDF4.Dataset(folder / "a.nc", "w") as file:
        kinds(file)
    assert_identical(folder / "a.nc")


@pytest.mark.parametrize("group", [None, "g", "g/h"])
def test_groups_of_netcdf4(folder: Path, group: str | None) -> None:
    with netCDF4.Dataset(folder / "a.nc", "w") as file:
        groups(file)
    assert_identical(folder / "a.nc", group)


def test_a_name_of_netcdf3_ends_at_its_first_nul(folder: Path) -> None:
    path = folder / "a.nc"
    with netCDF4.Dataset(path, "w", format="NETCDF3_CLASSIC") as file:
        file.createDimension("xx", 3)
        file.createVariable("yyA", "i4", ("xx",))[:] = [1, 2, 3]
    path.write_bytes(path.read_bytes().replace(b"yyA\0", b"yy\0\0"))
    assert_identical(path)


def names_of(group: Any, path: str = "") -> dict[str, tuple[str, ...]]:
    found = {f"{path}/{name}": variable.dimensions for name, variable in group.variables.items()}
    for name, below in group.groups.items():
        found |= names_of(below, f"{path}/{name}")
    return found


def assert_dimensions(path: Path) -> None:
    with netCDF4.Dataset(path) as file:
        expected = names_of(file)
    tree = open_virtual_tree(path, loadable_variables=[])
    found = {
        f"{node.path.rstrip('/')}/{name}": variable.dims
        for node in tree.subtree
        for name, variable in node.to_dataset(inherit=False).variables.items()
    }
    assert found == expected


def test_axes_without_a_scale_are_numbered_as_by_netcdf4(folder: Path) -> None:
    path = folder / "a.h5"
    with h5py.File(path, "w") as file:
        for name, shape in {"z": (3, 4), "b": (4, 4), "a": (5,), "g2/x": (3, 7), "g1/x": (8, 3, 8)}.items():
            file[name] = np.zeros(shape)
        file["g1/s/y"] = np.zeros((3, 9))
        file.create_dataset("u", shape=(4,), maxshape=(None,), chunks=(2,), dtype="i4")
    assert_dimensions(path)


def test_the_last_of_two_scales_counts(folder: Path) -> None:
    path = folder / "a.h5"
    with h5py.File(path, "w") as file:
        for name, size in {"time": 3, "lat": 4, "lat2": 4}.items():
            file[name] = np.zeros(size)
            file[name].make_scale(name)
        for name, shape in {"v": (3, 4), "w": (3, 6), "w2": (6, 4), "g/q": (3, 4)}.items():
            file[name] = np.zeros(shape)
        file["v"].dims[0].attach_scale(file["time"])
        for name in ("lat", "lat2"):
            file["v"].dims[1].attach_scale(file[name])
    assert_dimensions(path)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_files(folder: Path, data: st.DataObject) -> None:
    """Dimensions of any kind, variables named like them or not, filters, fill values, groups below groups."""
    path = folder / "random.nc"
    for old in folder.glob("*.icelite"):
        old.unlink()
    draw = data.draw
    paths = ["", "g", "g/h"][: draw(st.integers(1, 3))]
    with netCDF4.Dataset(path, "w") as file:
        for at in paths:
            group = file.createGroup(at) if at else file
            names = draw(st.lists(st.sampled_from(string.ascii_lowercase[:6]), max_size=3, unique=True))
            for name in names:
                group.createDimension(name, draw(st.sampled_from([None, 1, 3])))
            for name in draw(st.lists(st.sampled_from("abcdefxy"), max_size=4, unique=True)):
                seen = visible(group)
                dims = draw(st.lists(st.sampled_from(sorted(seen)), max_size=2, unique=True)) if seen else []
                options = draw(st.sampled_from([{}, {"zlib": True}, {"fill_value": 7}, {"fletcher32": True}]))
                kind = draw(st.sampled_from(["i2", "f4", ">f8", "u1"]))
                variable = group.createVariable(name, kind, dims, **(options if dims else {}))
                lengths = [2 if seen[dim].isunlimited() else len(seen[dim]) for dim in dims]
                if draw(st.booleans()):
                    variable[tuple(map(slice, lengths))] = np.arange(np.prod(lengths, dtype=int)).reshape(lengths)
    for at in paths:
        try:
            xr.open_dataset(path, group=at, engine="netcdf4").close()
        except ValueError:  # xarray has no variable without dimensions that has the name of one
            assume(False)
        assert_identical(path, at or None)


def visible(group: Any) -> dict[str, Any]:
    """The dimensions that a group may use: its own and those above."""
    found: dict[str, Any] = {} if group.parent is None else visible(group.parent)
    return found | dict(group.dimensions)
