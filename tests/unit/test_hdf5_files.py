"""HDF5 files of every kind, written by the library's own calls: read through icelite as h5py and netCDF4 read them."""

from __future__ import annotations

import ctypes
import itertools
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
from icelite.errors import ErrorKind, InvalidInputError
from icelite.formats import open_virtual, open_virtual_tree
from icelite.repository import Repository
from icelite.virtualizarr import to_icelite

h5py = pytest.importorskip("h5py")
netCDF4 = pytest.importorskip("netCDF4")
hdf5plugin = pytest.importorskip("hdf5plugin")

from h5py import h5d, h5p, h5s, h5t  # noqa: E402

hdf5plugin.register(force=True)  # netCDF4 brings a Blosc filter that h5py cannot write with
FEW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
counter = itertools.count()


def stored(path: Path, **options: Any) -> tuple[xr.Dataset, xr.Dataset]:
    """The virtual dataset of a file, and what the engine reads of it from a catalog."""
    dataset = open_virtual(path, loadable_variables=[], **options)
    session = Repository.create(path.with_name(f"{next(counter)}.icelite")).writable_session("main")
    to_icelite(dataset, session.store)
    return dataset, xr.open_dataset(session.store, engine="icelite", decode_cf=False).load()


def create(file: Any, name: str, kind: Any, shape: tuple[int, ...], plist: Any) -> Any:
    space = h5s.create_simple(shape) if shape else h5s.create(h5s.SCALAR)
    return h5py.Dataset(h5d.create(file.id, name.encode(), kind, space, plist))


def changed(kind: Any, **settings: Any) -> Any:
    kind = kind.copy()
    for name, value in settings.items():
        getattr(kind, f"set_{name}")(*(value if isinstance(value, tuple) else (value,)))
    return kind


def brain_float() -> Any:
    kind = h5t.IEEE_F32LE.copy()
    kind.set_fields(15, 7, 8, 0, 7)
    kind.set_size(2)
    kind.set_ebias(127)
    return kind


def text(size: int, padding: int) -> Any:
    return changed(h5t.C_S1, size=size, strpad=padding)


def record(size: int, **fields: tuple[int, Any]) -> Any:
    kind = h5t.create(h5t.COMPOUND, size)
    for name, (offset, member) in fields.items():
        kind.insert(name.encode(), offset, member)
    return kind


REFERENCED = {
    **{f"{order}{mark}{size}": getattr(h5t, f"STD_{mark.upper()}{8 * size}{'LE' if order == '<' else 'BE'}")
       for order in "<>" for mark in "iu" for size in (1, 2, 4, 8)},
    **{f"{order}f{size}": getattr(h5t, f"IEEE_F{8 * size}{'LE' if order == '<' else 'BE'}")
       for order in "<>" for size in (2, 4, 8)},
    "bits": h5t.STD_B16LE,
    "bool": h5t.py_create(np.dtype(bool)),
    "complex": h5t.py_create(np.dtype("c8")),
    "opaque": h5t.py_create(np.dtype("V5")),
    "letter": text(1, h5t.STR_NULLTERM),
    "text": text(5, h5t.STR_NULLPAD),
    "record": h5t.py_create(np.dtype([("a", "i4"), ("b", "f8")])),
    "imaginary first": record(8, i=(0, h5t.IEEE_F32LE), r=(4, h5t.IEEE_F32LE)),
    "array": h5t.array_create(h5t.IEEE_F32LE, (3,)),
}  # fmt: skip
COPIED = {
    "12 of 16 bits": changed(h5t.STD_I16LE, precision=12),
    "from bit 4": changed(h5t.STD_U16LE, precision=12, offset=4),
    "bfloat16": brain_float(),
    "blanks": text(5, h5t.STR_SPACEPAD),
    "blank": text(1, h5t.STR_SPACEPAD),
    "with a NUL": text(5, h5t.STR_NULLTERM),
    "padded record": record(16, x=(0, h5t.STD_I8LE), y=(8, h5t.IEEE_F64LE)),
    "record out of order": record(8, x=(4, h5t.IEEE_F32LE), y=(0, h5t.IEEE_F32LE)),
    "big-endian record": record(8, x=(0, h5t.STD_I32BE), y=(4, h5t.IEEE_F32BE)),
}
FILTERS: dict[str, Callable[[Any], None]] = {
    "shuffle": lambda plist: plist.set_shuffle(),
    "deflate": lambda plist: plist.set_deflate(4),
    "fletcher32": lambda plist: plist.set_fletcher32(),
    "lzf": lambda plist: plist.set_filter(h5py.h5z.FILTER_LZF, h5py.h5z.FLAG_OPTIONAL, ()),
    "scaleoffset": lambda plist: plist.set_scaleoffset(h5py.h5z.SO_INT, 0),
    "blosc": lambda plist: plist.set_filter(32001, h5py.h5z.FLAG_OPTIONAL, (0, 0, 0, 0, 5, 1, 1)),
    "zstd": lambda plist: plist.set_filter(32015, h5py.h5z.FLAG_OPTIONAL, (3,)),
}


def raw_values(kind: Any, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Bytes that are values of a type whatever they are, but for booleans and text."""
    random = np.random.default_rng(seed)
    size = kind.get_size()
    data = random.integers(0, 100, (*shape, size), dtype="u1")
    if kind.get_class() == h5t.ENUM:
        data %= 2
    if kind.get_class() == h5t.STRING:
        data = np.where(random.random(data.shape) < 0.3, b" \0"[seed % 2], data + 28).astype("u1")
    return data


def write_raw(dataset: Any, kind: Any, data: np.ndarray) -> None:
    """Write bytes as they are: through the type that the dataset itself has."""
    dataset.id.write(h5s.ALL, h5s.ALL, np.ascontiguousarray(data), kind)


def expected_of(path: Path) -> dict[str, np.ndarray]:
    with h5py.File(path) as file:
        return {name: np.asarray(file[name][()]) for name in file}


def assert_same(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    if expected.dtype.names:
        for name in expected.dtype.names:
            assert_same(found[name], expected[name])
    elif expected.dtype.kind in "fc":
        assert found.dtype == expected.dtype.newbyteorder("=")
        np.testing.assert_array_equal(found, expected)
    else:
        assert found.tolist() == expected.tolist()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of zarr, about types and codecs outside its specification
        yield tmp_path


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("name", [*REFERENCED, *COPIED])
def test_every_type_is_referenced_or_copied_right(folder: Path, name: str, chunked: bool) -> None:
    kind = REFERENCED.get(name) or COPIED[name]
    plist = h5p.create(h5p.DATASET_CREATE)
    if chunked:
        plist.set_chunk((4,))
        plist.set_shuffle()
        plist.set_deflate(4)
    with h5py.File(folder / "a.h5", "w") as file:
        for seed in range(2):
            write_raw(create(file, f"v{seed}", kind, (10,), plist), kind, raw_values(kind, (10,), seed))
    dataset, found = stored(folder / "a.h5")
    for variable, values in expected_of(folder / "a.h5").items():
        assert_same(found[variable].values, values)
    copied = dataset.encoding["icelite_copied"]
    assert set(copied) == (set() if name in REFERENCED else {"v0", "v1"}), copied


@pytest.mark.parametrize("reach", [1200, 1000])
@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize(
    ("filters", "referenced"),
    [
        ("shuffle", True),
        ("deflate", True),
        ("fletcher32", True),
        ("shuffle deflate", True),
        ("shuffle deflate fletcher32", True),
        ("fletcher32 deflate", True),
        ("shuffle fletcher32 deflate", True),
        ("blosc", True),
        ("shuffle zstd", True),
        ("deflate shuffle", False),
        ("deflate deflate", False),
        ("shuffle shuffle", False),
        ("fletcher32 shuffle deflate", True),  # as netCDF4 writes them
        ("fletcher32 shuffle deflate fletcher32", False),
        ("deflate zstd", False),
        ("lzf", False),
        ("scaleoffset", False),
        ("shuffle lzf fletcher32", False),
    ],
)
def test_filters_are_undone_in_their_order(
    folder: Path, filters: str, referenced: bool, bare: bool, reach: int
) -> None:
    """Borders without filters are copied; there are none if the chunks fit."""
    plist = h5p.create(h5p.DATASET_CREATE)
    plist.set_chunk((400,))
    for each in filters.split():
        FILTERS[each](plist)
    if bare:
        leave_borders_bare(plist)
    values = np.arange(reach, dtype="i4") * 1000 + 7
    with h5py.File(folder / "a.h5", "w", libver="latest") as file:
        create(file, "v", h5t.STD_I32LE, (reach,), plist)[...] = values
    dataset = open_virtual(folder / "a.h5", loadable_variables=[])
    session = Repository.create(folder / "a.icelite").writable_session("main")
    summary = to_icelite(dataset, session.store)
    assert xr.open_dataset(session.store, engine="icelite").v.values.tolist() == values.tolist()
    assert list(dataset.encoding["icelite_copied"]) == ([] if referenced else ["v"])
    if referenced:
        assert summary.copied == ({"v": 1} if bare and reach == 1000 else {})
        assert summary.references == 3 - sum(summary.copied.values())


@FEW
@given(
    shape=st.lists(st.integers(1, 7), min_size=1, max_size=3),
    cut=st.lists(st.integers(1, 5), min_size=3, max_size=3),
    kind=st.sampled_from([*REFERENCED.values()]),
    filters=st.lists(st.sampled_from([*FILTERS]), max_size=4, unique=True),
    holes=st.booleans(),
    masked=st.booleans(),
    bare=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_random_chunks(
    folder: Path,
    shape: list[int],
    cut: list[int],
    kind: Any,
    filters: list[str],
    holes: bool,
    masked: bool,
    bare: bool,
    seed: int,
) -> None:
    path = folder / "r.h5"
    plist = h5p.create(h5p.DATASET_CREATE)
    chunks = tuple(min(size, part) for size, part in zip(shape, cut, strict=False))
    plist.set_chunk(chunks)
    assume("scaleoffset" not in filters[1:])  # HDF5 may crash on bytes that are no numbers, or repeated Blosc
    assume("scaleoffset" not in filters or kind.get_class() == h5t.INTEGER)
    for each in filters:
        FILTERS[each](plist)
    if bare:
        leave_borders_bare(plist)
    with h5py.File(path, "w", libver="latest" if seed % 2 else None) as file:
        try:
            dataset = create(file, "v", kind, tuple(shape), plist)
        except (ValueError, OSError):
            assume(False)
        data = raw_values(kind, tuple(shape), seed)
        if holes:
            part = tuple(slice(0, size) for size in chunks)
            space = dataset.id.get_space()
            space.select_hyperslab((0,) * len(shape), chunks)
            dataset.id.write(h5s.create_simple(chunks), space, np.ascontiguousarray(data[part]), kind)
        else:
            write_raw(dataset, kind, data)
        if masked and filters:
            size = int(np.prod(chunks)) * kind.get_size()
            dataset.id.write_direct_chunk((0,) * len(shape), bytes(size), filter_mask=(1 << len(filters)) - 1)
    try:
        expected = expected_of(path)["v"]
    except OSError:  # not every order of filters can be undone
        assume(False)
    virtual, found = stored(path)
    assert_same(found.v.values, expected)
    reasons = virtual.encoding["icelite_copied"]
    simple = ([], ["shuffle"], ["deflate"], ["shuffle", "deflate"], ["shuffle", "deflate", "fletcher32"], ["zstd"])
    if filters in simple and not masked:
        assert not reasons


def leave_borders_bare(plist: Any) -> None:
    """H5Pset_chunk_opts, which h5py lacks."""
    library = ctypes.CDLL(h5p.__file__)
    library.H5Pset_chunk_opts.argtypes = [ctypes.c_int64, ctypes.c_uint]
    library.H5Pset_chunk_opts(plist.id, 2)


def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What `h5py.File` is made of from now on: names, streams, or the files of objects that are open."""
    names: list[str] = []
    actual = h5py.File.__init__

    def count(self: Any, name: Any, *args: Any, **options: Any) -> None:
        names.append(str(name))
        actual(self, name, *args, **options)

    monkeypatch.setattr(h5py.File, "__init__", count)
    return names


def test_a_local_file_is_opened_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("v", data=np.arange(100), chunks=(10,), compression="gzip").attrs["scale_factor"] = 0.5
        plist = h5p.create(h5p.DATASET_CREATE)
        plist.set_layout(h5d.COMPACT)
        create(file, "small", h5t.STD_I32LE, (3,), plist)[...] = 7
        file.create_dataset("text", data=["a", "bc"], dtype=h5py.string_dtype())
    names = opened(monkeypatch)
    icelite.virtualize(str(path), str(folder / "a.icelite"))
    assert names == [str(path)]
    with xr.open_dataset(folder / "a.icelite", engine="icelite") as dataset:
        assert dataset["text"].values.tolist() == ["a", "bc"]


@pytest.mark.parametrize("how", [{}, {"locking": False}, {"mode": "r+"}])
def test_a_file_that_is_open_in_this_process_is_searched_too(folder: Path, how: dict[str, Any]) -> None:
    path, values = folder / "a.h5", np.arange(40, dtype="i4")
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("v", data=values, chunks=(10,), shuffle=True)
        dataset.id.write_direct_chunk((10,), values[10:20].tobytes(), filter_mask=1)
    from_other = virtual_of_another_parser(path)
    with h5py.File(path, **how):
        for dataset in (open_virtual(path), from_other):
            session = Repository.create(folder / f"{next(counter)}.icelite").writable_session("main")
            summary = to_icelite(dataset, session.store)
            assert (summary.copied, summary.unchecked) == ({"v": 1}, {})
            assert xr.open_dataset(session.store, engine="icelite").v.values.tolist() == values.tolist()


def virtual_of_another_parser(path: Path) -> xr.Dataset:
    """As VirtualiZarr has a file, which knows nothing of icelite."""
    from obspec_utils.registry import ObjectStoreRegistry
    from obstore.store import LocalStore
    from virtualizarr import open_virtual_dataset
    from virtualizarr.parsers import HDFParser

    registry = ObjectStoreRegistry({"file:///": LocalStore()})
    dataset: xr.Dataset = open_virtual_dataset(path.as_uri(), registry, HDFParser(), loadable_variables=[])
    return dataset


def test_what_other_parsers_misread_is_copied(folder: Path) -> None:
    """Values of types and filters that are not recognised, and compact ones, in datasets of VirtualiZarr."""
    path = folder / "a.h5"
    with h5py.File(path, "w") as file:
        file["plain"] = np.arange(10)
        contiguous, filtered = h5p.create(h5p.DATASET_CREATE), h5p.create(h5p.DATASET_CREATE)
        filtered.set_chunk((4,))
        filtered.set_deflate(4)
        compact = h5p.create(h5p.DATASET_CREATE)
        compact.set_layout(h5d.COMPACT)
        for name in ("12 of 16 bits", "from bit 4"):
            for how, plist in (("contiguous", contiguous), ("filtered", filtered)):
                write_raw(create(file, f"{name} {how}", COPIED[name], (10,), plist), COPIED[name],
                          raw_values(COPIED[name], (10,), 0))  # fmt: skip
        create(file, "compact", h5t.STD_I32LE, (10,), compact)[...] = 7
    session = Repository.create(folder / "a.icelite").writable_session("main")
    to_icelite(virtual_of_another_parser(path), session.store)
    found = xr.open_dataset(session.store, engine="icelite").load()
    for name, values in expected_of(path).items():
        assert_same(found[name].values, values)


def test_what_other_parsers_misread_and_cannot_be_copied_is_refused(folder: Path) -> None:
    """Zarr's codecs cannot write what HDF5 shuffles after compression."""
    path = folder / "a.h5"
    plist = h5p.create(h5p.DATASET_CREATE)
    plist.set_chunk((4,))
    FILTERS["deflate"](plist)
    FILTERS["shuffle"](plist)
    with h5py.File(path, "w") as file:
        create(file, "v", h5t.STD_I32LE, (10,), plist)[...] = np.arange(10)
    session = Repository.create(folder / "a.icelite").writable_session("main")
    with pytest.raises(InvalidInputError, match=r"'v', chunk \(0,\): .* in this order, and cannot be copied"):
        to_icelite(virtual_of_another_parser(path), session.store)
    assert not session.has_uncommitted_changes


NAMES = ["back\\slash", "zarr.json", ".zgroup", "new\nline", "caf\u00e9", "a b", "100%", "...", "\u00a0", "tab\t"]


def test_names_that_zarr_cannot_hold_are_written_as_in_a_url(folder: Path) -> None:
    path = folder / "a.h5"
    with h5py.File(path, "w") as file:
        for number, name in enumerate(NAMES):
            file[name] = np.full(3, number)
            file.create_group(f"g {name}")["v"] = np.full(2, number)
    with pytest.warns(UserWarning, match=r"'zarr\.json' of .* is called 'zarr%2Ejson'"):
        tree = open_virtual_tree(path)
    session = Repository.create(folder / "a.icelite").writable_session("main")
    to_icelite(tree, session.store)
    session.commit("names")
    read = xr.open_datatree(folder / "a.icelite", engine="icelite")
    found = sorted(int(variable.values[0]) for variable in read.dataset.data_vars.values())
    assert found == list(range(len(NAMES)))
    assert sorted(int(below["v"].values[0]) for below in read.children.values()) == found


def test_attributes_without_a_json_form_are_dropped(folder: Path) -> None:
    path = folder / "a.h5"
    with h5py.File(path, "w") as file:
        file["v"] = np.arange(3)
        for node in (file, file["v"]):
            node.attrs["reference"], node.attrs["complex"] = file["v"].ref, 1j
            node.attrs["record"], node.attrs["kept"] = np.zeros(1, [("a", "i4")]), [1, 2]
    with pytest.warns(UserWarning, match="attributes of '/v' .* are dropped: .*reference.*") as caught:
        dataset = open_virtual(path)
    assert len(caught) == 2
    assert np.array_equal(dataset.attrs["kept"], [1, 2])
    assert set(dataset.v.attrs) == set(dataset.attrs) == {"kept"}


def test_a_group_of_two_names_is_read_once(folder: Path) -> None:
    """Links in a circle do not hang, and a chain of double links does not explode."""
    path = folder / "a.h5"
    with h5py.File(path, "w") as file:
        below = file
        for _ in range(40):
            below = below.create_group("a")
            below.parent["b"] = below
        below["up"] = file
        file["gone"] = h5py.SoftLink("/nowhere")
    with pytest.warns(UserWarning, match="it is another name of the group"):
        tree = open_virtual_tree(path)
    assert len(list(tree.subtree)) == 41


def test_coordinates_that_a_group_shares_with_its_parent_are_written(folder: Path) -> None:
    path = folder / "a.nc"
    with netCDF4.Dataset(path, "w") as file:
        for group in (file, file.createGroup("g")):
            group.createDimension("x", 3)
            group.createVariable("x", "f8", ("x",))[:] = [1, 2, 3]
            group.createVariable("v", "f4", ("x",))[:] = 1
    session = Repository.create(folder / "a.icelite").writable_session("main")
    to_icelite(open_virtual_tree(path), session.store)
    session.commit("both")
    for group in (None, "g"):
        with xr.open_dataset(path, group=group) as expected:
            xr.testing.assert_identical(xr.open_dataset(folder / "a.icelite", group=group).load(), expected.load())


def test_groups_that_do_not_fit_into_a_tree_are_named(folder: Path) -> None:
    path = folder / "a.nc"
    with netCDF4.Dataset(path, "w") as file:
        for size, group in ((3, file), (4, file.createGroup("g"))):
            group.createDimension("x", size)
            group.createVariable("v", "f4", ("x",))[:] = 1
    with pytest.raises(InvalidInputError, match=r"a\.nc' has groups that do not fit into one tree: .*group=") as error:
        open_virtual_tree(path)
    assert error.value.kind == ErrorKind.INVALID_ARGUMENT
    assert open_virtual(path, group="g").sizes == {"x": 4}
