"""Every format, from files to values equal to those of its own reader; the results are the table in docs/formats.md.

The test fails when the page does not say what is measured. To write the page anew, run this file with
ICELITE_WRITE_FORMATS=1, on Python 3.12 or newer and on 3.11: each fills its own columns.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from icelite import HttpAccess, RepositoryConfig, VirtualChunkContainer
from icelite.formats import find_format, open_virtual, open_virtual_tree
from icelite.repository import Repository
from icelite.virtual.remote import FileReaders
from icelite.virtualizarr import to_icelite

parsers = pytest.importorskip("virtualizarr.parsers")

from format_samples import SAMPLES, Expected, Sample  # noqa: E402

PAGE = Path(__file__).parents[2] / "docs" / "formats.md"
OLD = sys.version_info < (3, 12)
PARSERS = {
    "hdf5": "icelite, h5py",
    "netcdf3": "icelite",
    "grib": "ecCodes",
    "tiff": "tifffile",
    "fits": "astropy",
    "zarr": "VirtualiZarr `ZarrParser`",
    "zipped-zarr": "VirtualiZarr `ZippedZarrParser`",
}


# -- measuring -------------------------------------------------------------------------------------------------------


def measure(sample: Sample, folder: Path) -> tuple[str, str, str]:
    """Parser, codecs and result of one sample: from the file, through a commit, to what the engine reads."""
    path = sample.make(folder)
    with sample.served(path) as source:
        return measure_source(sample, path, source, folder / "catalog.icelite")


def measure_source(sample: Sample, path: Path, source: Path | str, catalog: Path) -> tuple[str, str, str]:
    access: dict[str, Any] = {}
    config = RepositoryConfig()
    if isinstance(source, str):
        access = {source.rpartition("/")[0] + "/": HttpAccess}
        config.set_virtual_chunk_container(VirtualChunkContainer(*access))
    session = Repository.create(catalog, config, access).writable_session("main")
    options: dict[str, Any] = {"registry": FileReaders(session.access.lookup_target) if access else None}
    if sample.parser is None:
        parser = PARSERS[find_format(source, **options)]
    else:
        parser = f"VirtualiZarr `{sample.parser}`"
        options["parser"] = getattr(parsers, sample.parser)()
    tree = open_virtual_tree(source, **options) if sample.tree else xr.DataTree(open_virtual(source, **options))
    summary = to_icelite(tree, session.store)
    session.commit("sample")
    skipped = tree.dataset.encoding["icelite_skipped"]
    with xr.open_datatree(catalog, engine="icelite", authorize_virtual_chunk_access=access) as opened:
        expected = {name: values for name, values in sample.read(path).items() if name not in skipped}
        differs = differences(opened, expected)
    copied = tree.dataset.encoding["icelite_copied"]
    result = f"differs: {', '.join(differs)}" if differs else "equal"
    result += f" ({summary.references} references, {copied_bytes(tree, summary.copied)} bytes copied)"
    result += f"; copied, because {reasons(copied)}" if copied else ""
    return parser, codecs_of(tree), result + (f"; left out, because {reasons(skipped)}" if skipped else "")


def copied_bytes(tree: xr.DataTree, chunks: Mapping[str, int]) -> int:
    """Bytes of the variables that are copied, and of single chunks of others; decoded, and text as letters."""
    total = 0
    for path in [*tree.dataset.encoding["icelite_copied"], *chunks]:
        variable = tree[path].variable
        if path in chunks:
            unit = variable._data.metadata.chunk_grid.chunk_shape
            total += chunks[path] * int(np.prod(unit)) * variable.dtype.itemsize
        elif hasattr(variable._data, "manifest"):
            total += sum(len(data) for data in getattr(variable._data.manifest, "_inlined", {}).values())
        elif variable.dtype.hasobject:
            total += sum(len(str(text).encode()) for text in variable.values.ravel())
        else:
            total += variable.nbytes
    return total


def reasons(named: Mapping[str, str]) -> str:
    """Names by reason."""
    found = dict.fromkeys(named.values())
    return "; ".join(f"{reason} ({', '.join(name for name in named if named[name] == reason)})" for reason in found)


def codecs_of(tree: xr.DataTree) -> str:
    from virtualizarr.manifests import ManifestArray

    arrays = [v._data for node in tree.subtree for v in node.variables.values() if isinstance(v._data, ManifestArray)]
    codecs = [codec.to_dict()["name"] for array in arrays for codec in array.metadata.codecs]
    return ", ".join(sorted({name.removeprefix("numcodecs.") for name in codecs} - {"bytes"})) or "none"


def differences(opened: xr.DataTree, expected: Expected) -> list[str]:
    if "fields" in expected:
        return grib_differences(opened, expected)
    return [name for name, values in expected.items() if not is_variable(opened[name].variable, values)]


def is_variable(found: xr.Variable, expected: Any) -> bool:
    """Whether values are equal, and where a variable is expected, its dimensions and attributes."""
    if isinstance(expected, xr.Variable):
        attributes = {name: found.attrs.get(name) for name in expected.attrs}
        if found.dims != expected.dims or not xr.core.utils.dict_equiv(attributes, expected.attrs):
            return False
        expected = expected.values
    return same(found.values, np.asanyarray(expected))


def same(found: np.ndarray, expected: np.ndarray) -> bool:
    if found.shape != expected.shape:
        return False
    if expected.dtype.names:
        return all(same(found[name], expected[name]) for name in expected.dtype.names)
    if expected.dtype.kind in "fc":
        return found.dtype == expected.dtype.newbyteorder("=") and np.array_equal(found, expected, equal_nan=True)
    both_missing = (found != found) & (expected != expected)  # in columns of objects
    return bool(np.all((found == expected) | both_missing))


def grib_differences(opened: xr.DataTree, expected: Expected) -> list[str]:
    """Fields of ecCodes that are not found, to one in a million."""
    fields = list(grib_fields(opened))
    lost = [field for field in expected["fields"] if not any(is_field(field, *found) for found in fields)]
    return [f"field {field}" for field in lost] + ["number of fields"] * (len(fields) != len(expected["fields"]))


def grib_fields(opened: xr.DataTree) -> Iterator[tuple[np.ndarray, np.ndarray | None, np.ndarray | None]]:
    """Fields with the coordinates of their points, without the holes of datasets."""
    for node in opened.subtree:
        dataset = node.to_dataset()
        for variable in dataset.data_vars.values():
            dims = [dim for dim in variable.dims if dim in ("latitude", "longitude", "y", "x", "values")]
            axes = [dataset.coords.get(name) for name in ("latitude", "longitude")]
            points = [axis if axis is None else axis.broadcast_like(one_field(variable, dims)) for axis in axes]
            for field in variable.values.reshape(-1, *(variable.sizes[dim] for dim in dims)):
                if not np.isnan(field).all():
                    yield field, *(axis if axis is None else axis.transpose(*dims).values for axis in points)


def one_field(variable: xr.DataArray, dims: list[Any]) -> xr.DataArray:
    return variable.isel({dim: 0 for dim in variable.dims if dim not in dims}, drop=True)


def is_field(
    expected: Mapping[str, float], field: np.ndarray, latitude: np.ndarray | None, longitude: np.ndarray | None
) -> bool:
    if field.size != expected["size"] or np.isnan(field).sum() != expected["missing"]:
        return False
    found, wanted = [np.nanmean(field), np.nanstd(field)], [expected["mean"], expected["std"]]
    if not np.allclose(found, wanted, rtol=1e-6, atol=1e-6 * expected["std"]):
        return False
    if latitude is None or longitude is None:
        return "latitude" not in expected and bool(np.isclose(field.ravel()[0], expected["value"], rtol=1e-6))
    east = (longitude - expected["longitude"] + 180) % 360 - 180
    at = np.unravel_index(np.argmin(np.abs(latitude - expected["latitude"]) + np.abs(east)), field.shape)
    near = abs(east[at]) < 1e-4 and abs(latitude[at] - expected["latitude"]) < 1e-4
    return bool(near and np.isclose(field[at], expected["value"], rtol=1e-6, equal_nan=True))


# -- the page --------------------------------------------------------------------------------------------------------

HEAD = "| format | file | parser | codecs | result | on Python 3.11 |\n| --- | --- | --- | --- | --- | --- |\n"


def read_page() -> dict[tuple[str, str], list[str]]:
    rows = [line for line in PAGE.read_text().split(HEAD)[-1].splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]
    return {(row[0].strip(), row[1]): row[2:] for row in cells if len(row) == 6}


def update_page(sample: Sample, measured: tuple[str, str, str]) -> None:
    rows = read_page()
    row = rows.get((sample.format, sample.title), ["", "", "", ""])
    if OLD:
        row[3] = "the same" if list(measured) == row[:3] else measured[2]
    else:
        row[:3] = measured
    rows[sample.format, sample.title] = row
    known = [(each.format, each.title) for each in SAMPLES]
    lines = "".join(f"| {' | '.join([*key, *rows[key]])} |\n" for key in known if key in rows)
    before, _, after = PAGE.read_text().partition(HEAD)
    rest = after.split("\n\n", 1)[1] if "\n\n" in after else ""
    PAGE.write_text(f"{before}{HEAD}{lines}\n{rest}")


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: f"{sample.format}: {sample.title}")
def test_the_page_says_what_is_measured(sample: Sample, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries, about codecs outside Zarr's specification
        measured = measure(sample, tmp_path)
    assert "differs" not in measured[2]
    if not sample.copies and not OLD:
        assert ", 0 bytes copied)" in measured[2], "a layout that is recognised is referenced"
    if os.environ.get("ICELITE_WRITE_FORMATS"):
        update_page(sample, measured)
    row = read_page()[sample.format, sample.title]
    if OLD:
        assert row[3] == ("the same" if list(measured) == row[:3] else measured[2])
    else:
        assert tuple(row[:3]) == measured


def test_every_row_of_the_page_is_measured() -> None:
    assert list(read_page()) == [(sample.format, sample.title) for sample in SAMPLES]
