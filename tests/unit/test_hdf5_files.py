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

from icelite.formats import open_virtual
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
        ("fletcher32 shuffle deflate", False),
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
