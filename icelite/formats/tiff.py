"""TIFF, BigTIFF, GeoTIFF and COG: tifffile reads the layout, and tiles or strips become chunks.

Pixel-interleaved samples are the last dimension, so a strip or tile is a chunk as it is. Overviews and masks are left
out. Images of one shape are stacked along ``page``. What Zarr has no codec for is copied with tifffile.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from tifffile import TiffFile

from icelite.formats.attributes import is_fill_value, json_attributes
from icelite.formats.geotiff import describe_grid
from icelite.formats.parsed import Copied, ParsedGroup, build_array, has_inlined, lazy_copy, no_group
from icelite.formats.source import SourceFile
from icelite.types import SourceStamp

_NONE, _LZW, _DEFLATE, _ADOBE_DEFLATE, _PACKBITS, _LZMA, _ZSTD = 1, 5, 8, 32946, 32773, 34925, 50000
_NO_PREDICTOR, _HORIZONTAL, _FLOATING = 1, 2, 3
_CHUNK_BYTES = 1 << 22
# Zarr codecs by compression; those of imagecodecs are registered by the package virtual-tiff.
_COMPRESSORS: dict[int, list[dict[str, Any]]] = {
    _NONE: [],
    _DEFLATE: [{"name": "numcodecs.zlib", "configuration": {"level": 6}}],
    _ADOBE_DEFLATE: [{"name": "numcodecs.zlib", "configuration": {"level": 6}}],
    _ZSTD: [{"name": "numcodecs.zstd", "configuration": {"level": 9}}],
    _LZW: [{"name": "imagecodecs_lzw"}],
    _PACKBITS: [{"name": "imagecodecs_packbits"}],
}


@dataclass(frozen=True, slots=True)
class Layout:
    """The chunks of one page.

    Attributes
    ----------
    shape, chunks
        Rows, columns, and samples last if they are interleaved, first if they are not.
    offsets, lengths
        Bytes, in the shape of the grid; a length of 0 for a tile that is not there.
    short_rows
        Rows of the last strip if it has fewer than the others, else 0.
    problem
        Why the chunks cannot be referenced, or None.
    """

    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: np.dtype[Any]
    offsets: np.ndarray[Any, np.dtype[np.uint64]]
    lengths: np.ndarray[Any, np.dtype[np.uint64]]
    key: tuple[Any, ...]
    row_axis: int
    short_rows: int = 0
    problem: str | None = None

    @classmethod
    def of_page(cls, page: Any, byteorder: Any) -> Layout:
        """The layout of a tifffile page."""
        dtype = np.dtype("u1") if page.dtype is None else _dtype(page).newbyteorder(byteorder)
        key = (page.compression, page.predictor, page.chunks, page.planarconfig)
        problem = _find_problem(page)
        if problem:
            empty = np.zeros(0, np.uint64)
            return cls(page.shape, page.shape, dtype, empty, empty, key, 0, problem=problem)
        rows, columns = page.imagelength, page.imagewidth
        height, width = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, columns)
        height = height if page.is_tiled else min(height, rows)
        leads = page.axes.startswith("S")
        samples = page.samplesperpixel
        shape: tuple[int, ...] = (rows, columns)
        chunks: tuple[int, ...] = (height, width)
        grid: tuple[int, ...] = (-(-rows // height), -(-columns // width))
        if leads:
            shape, chunks, grid = (samples, *shape), (1, *chunks), (samples, *grid)
        elif page.axes.endswith("S"):
            shape, chunks, grid = (*shape, samples), (*chunks, samples), (*grid, 1)
        offsets, lengths = np.array(page.dataoffsets, np.uint64), np.array(page.databytecounts, np.uint64)
        row_axis = int(leads)
        if offsets.size != np.prod(grid):
            problem = f"it has {offsets.size} strips or tiles where {np.prod(grid)} are expected"
            return cls(shape, chunks, dtype, offsets, lengths, key, row_axis, problem=problem)
        layout = cls(shape, chunks, dtype, offsets.reshape(grid), lengths.reshape(grid), key, row_axis)
        short = 0 if page.is_tiled else rows % height
        if short and page.compression == _NONE and layout._is_contiguous(page):
            return layout._rechunk(page)
        return cls(shape, chunks, dtype, layout.offsets, layout.lengths, key, row_axis, short_rows=short)

    def _is_contiguous(self, page: Any) -> bool:
        """Whether every plane is one piece of the file."""
        planes = self.shape[0] if self.row_axis else 1
        ends = (self.offsets + self.lengths).reshape(planes, -1)
        return bool((self.offsets.reshape(planes, -1)[:, 1:] == ends[:, :-1]).all())

    def _rechunk(self, page: Any) -> Layout:
        """Whole rows of uncompressed pixels in chunks that divide the height, so that no chunk is short."""
        rows = self.shape[self.row_axis]
        plane = self.shape[self.row_axis + 1 :]
        row_bytes = int(np.prod(plane)) * self.dtype.itemsize
        limit = max(_CHUNK_BYTES // max(row_bytes, 1), self.chunks[self.row_axis], 1)
        height = max(size for size in range(1, min(limit, rows) + 1) if rows % size == 0)
        starts = self.offsets[(slice(None),) * self.row_axis + (0,)]
        steps = np.arange(rows // height, dtype=np.uint64) * np.uint64(height * row_bytes)
        trailing = (1,) * len(plane)
        offsets = starts.reshape(-1, 1) + steps
        shape = (*self.shape[: self.row_axis], rows // height, *trailing)
        chunks = (*self.chunks[: self.row_axis], height, *self.chunks[self.row_axis + 1 :])
        lengths = np.full(shape, height * row_bytes, np.uint64)
        key = (*self.key, height)
        return Layout(self.shape, chunks, self.dtype, offsets.reshape(shape), lengths, key, self.row_axis)

    def short_chunks(self) -> Iterator[tuple[int, ...]]:
        """Grid positions of the strips that have fewer rows than a chunk."""
        if self.short_rows:
            last = self.offsets.shape[self.row_axis] - 1
            for position in np.ndindex(self.offsets.shape):
                if position[self.row_axis] == last:
                    yield position


@dataclass(frozen=True, slots=True)
class Codecs:
    """Zarr codecs that undo a page's compression.

    Attributes
    ----------
    predictor
        The codec that undoes differences between pixels, or None.
    """

    compressors: list[dict[str, Any]]
    predictor: dict[str, Any] | None = None
    problem: str | None = None

    def filters(self, stacked: bool) -> list[dict[str, Any]]:
        """The filters of the array; with a leading dimension if its pages are stacked."""
        if self.predictor is None:
            return []
        settings = dict(self.predictor["configuration"])
        if stacked and "shape" in settings:
            settings["shape"] = (1, *settings["shape"])
        return [{"name": self.predictor["name"], "configuration": settings}]


def find_codecs(page: Any, layout: Layout) -> Codecs:
    """The codecs of a page, or why there are none."""
    compression, predictor = int(page.compression), int(page.predictor)
    if compression not in _COMPRESSORS:
        return Codecs([], problem=f"Zarr has no codec for its {_name(page.compression)} compression")
    axis = -2 if page.axes.endswith("S") else -1
    found: dict[str, Any] | None = None
    if predictor == _HORIZONTAL and layout.dtype.kind in "iu":
        found = {"name": "imagecodecs_delta", "configuration": {"axis": axis}}
    elif predictor == _FLOATING and layout.dtype.kind == "f" and axis == -1 and layout.dtype.byteorder != ">":
        settings = {"shape": layout.chunks, "dtype": layout.dtype.str, "axis": axis}
        found = {"name": "imagecodecs_floatpred", "configuration": settings}
    elif predictor != _NO_PREDICTOR:
        return Codecs([], problem=f"Zarr has no codec for its predictor {_name(page.predictor)} of {layout.dtype}")
    codecs = Codecs(_COMPRESSORS[compression], found)
    if any(codec["name"].startswith("imagecodecs") for codec in (*codecs.compressors, found or {"name": ""})):
        try:
            import imagecodecs  # noqa: F401
            import virtual_tiff  # noqa: F401  (its codecs are found by name when the chunks are read)
        except ImportError:
            return Codecs([], problem="its codecs need the packages virtual-tiff and imagecodecs")
    return codecs


def _name(value: Any) -> str:
    return getattr(value, "name", str(value))


def _dtype(page: Any) -> np.dtype[Any]:
    """Type of a page's values; tifffile has another of the same size for 64-bit integers, which Zarr does not know."""
    known: np.dtype[Any] = np.dtype(np.dtype(page.dtype).str)
    return known


def _find_problem(page: Any) -> str | None:
    if page.dtype is None or page.bitspersample not in (8, 16, 32, 64, 128):
        return f"its samples have {page.bitspersample} bits"
    if np.dtype(page.dtype).itemsize * 8 != page.bitspersample:
        return f"its samples have {page.bitspersample} bits"
    if page.fillorder != 1 or page.imagedepth != 1 or page.is_subsampled:
        return "its pixels are stored in an unusual order"
    if page.axes not in ("YX", "YXS", "SYX"):
        return f"its axes are {page.axes}"
    return None


def encode_chunk(page: Any, layout: Layout, position: tuple[int, ...]) -> bytes:
    """A strip with too few rows, filled up with zeros and compressed as the others are."""
    import imagecodecs

    codecs = find_codecs(page, layout)
    stream = page.parent.filehandle
    stream.seek(int(layout.offsets[position]))
    data = stream.read(int(layout.lengths[position]))
    values, _, found = page.decode(data, int(np.ravel_multi_index(position, layout.offsets.shape)))
    part_shape = [*layout.chunks]
    part_shape[layout.row_axis] = layout.short_rows
    part = values[:, : found[1], : found[2]].reshape(part_shape)
    padding = [(0, size - length) for size, length in zip(layout.chunks, part.shape, strict=True)]
    chunk = np.ascontiguousarray(np.pad(part, padding).astype(layout.dtype))
    if codecs.predictor is not None:
        encode = imagecodecs.delta_encode if page.predictor == _HORIZONTAL else imagecodecs.floatpred_encode
        chunk = np.asarray(encode(chunk, axis=codecs.predictor["configuration"]["axis"]))
    data = chunk.tobytes()
    compression = int(page.compression)
    if compression in (_DEFLATE, _ADOBE_DEFLATE):
        return zlib.compress(data)
    encoders = {_ZSTD: "zstd_encode", _LZW: "lzw_encode", _PACKBITS: "packbits_encode"}
    return bytes(getattr(imagecodecs, encoders[compression])(data)) if compression in encoders else data


NAME = "band_data"  # as rioxarray calls it
_GDAL_NAMES = {"UNITTYPE": "units", "DESCRIPTION": "long_name", "SCALE": "scale_factor", "OFFSET": "add_offset"}
_GDAL_ITEM = re.compile(rf'<Item name="({"|".join(_GDAL_NAMES)})" sample="(\d+)"[^>]*>([^<]*)</Item>')
_DIMS = {"Y": "y", "X": "x", "S": "band", "Z": "z"}


def parse(
    source: SourceFile, stamp: SourceStamp, group: str, dropped: Collection[str], whole_tree: bool
) -> ParsedGroup:
    """Parse the images of the file, at their full resolution."""
    if group:
        raise no_group(source, group, ())
    parsed = ParsedGroup()
    with _opened(source) as tiff:
        for index, (name, pages) in enumerate(_images(tiff).items()):
            if name in dropped:
                continue
            attributes = _attributes(pages[0])
            if index == 0:
                grid = describe_grid(tiff, pages[0])
                parsed.coordinates = tuple(grid.variables)
                parsed.made |= grid.variables
                parsed.attributes = grid.attributes
                attributes |= grid.mapping
            dims = tuple(f"{dim}_{index}" if index else dim for dim in _dims(pages))
            _add_image(parsed, source, stamp, name, dims, tiff, pages, attributes)
    return parsed


@contextmanager
def _opened(source: SourceFile) -> Iterator[TiffFile]:
    with source.open() as stream, TiffFile(stream) as tiff:
        yield tiff


def _images(tiff: TiffFile) -> dict[str, list[Any]]:
    """Pages by the variable that they become: those with the same shape and layout belong together."""
    alike: dict[Any, list[Any]] = {}
    for number in range(len(tiff.pages)):  # counted first: pages may refer to each other in a circle
        page = tiff.pages[number].aspage()
        if not page.is_reduced and not page.is_mask and page.size:
            alike.setdefault((page.shape, page.axes, page.dtype), []).append(page)
    return {NAME if not index else f"{NAME}_{index}": pages for index, pages in enumerate(alike.values())}


def _dims(pages: list[Any]) -> tuple[str, ...]:
    names = tuple(_DIMS.get(axis, f"dim_{axis.lower()}") for axis in pages[0].axes)
    return names if len(pages) == 1 else ("page", *names)


def _attributes(page: Any) -> dict[str, Any]:
    """What GDAL says of the values: no data, and what all bands share of scale, offset, unit and name."""
    attributes: dict[str, Any] = {}
    nodata = page.tags.get("GDAL_NODATA")
    if nodata is not None and page.dtype is not None:
        value = _number(str(nodata.value).strip().strip("\0"))
        if value is not None and is_fill_value(value, page.dtype):
            attributes["_FillValue"] = page.dtype.type(value)
    scaling = _scaling(page)
    if _is_uniform(scaling) and (scaling[0] != (1, 0)).any():
        attributes |= {"scale_factor": float(scaling[0, 0]), "add_offset": float(scaling[0, 1])}
    for name, found in _gdal_items(page).items():
        if name in ("units", "long_name") and len(found) == page.samplesperpixel and len(set(found.values())) == 1:
            attributes[name] = next(iter(found.values()))
    return attributes


def _number(text: str) -> float | None:
    for kind in (int, float):  # a float does not hold every integer of 64 bits
        try:
            return kind(text)
        except ValueError:
            continue
    return None


def _gdal_items(page: Any) -> dict[str, dict[int, str]]:
    """Texts by attribute and band from GDAL's XML."""
    metadata = page.tags.get("GDAL_METADATA")
    found: dict[str, dict[int, str]] = {}
    for name, band, text in _GDAL_ITEM.findall(str(metadata.value)) if metadata is not None else ():
        found.setdefault(_GDAL_NAMES[name], {})[int(band)] = text
    return found


def _scaling(page: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Scale and offset of each band."""
    scaling = np.tile([1.0, 0.0], (page.samplesperpixel, 1))
    items = _gdal_items(page)
    for column, name in enumerate(("scale_factor", "add_offset")):
        for band, text in items.get(name, {}).items():
            value = _number(text)
            if band < len(scaling) and value is not None:
                scaling[band, column] = value
    return scaling


def _is_uniform(scaling: np.ndarray[Any, Any]) -> bool:
    rows = scaling.reshape(-1, 2)
    return bool((rows == rows[0]).all())


def _add_image(
    parsed: ParsedGroup,
    source: SourceFile,
    stamp: SourceStamp,
    name: str,
    dims: tuple[str, ...],
    tiff: TiffFile,
    pages: list[Any],
    attributes: dict[str, Any],
) -> None:
    layouts = [Layout.of_page(page, tiff.byteorder) for page in pages]
    is_scaled = not _is_uniform(np.stack([_scaling(page) for page in pages]))
    reason = "its bands differ in scale or offset" if is_scaled else _reason(tiff, pages, layouts)
    if reason is None:
        parsed.arrays[name] = _reference(source, dims, pages, layouts, attributes)
        short = sum(1 for layout in layouts for _ in layout.short_chunks())
        if short:
            chunks = sum(layout.offsets.size for layout in layouts)
            parsed.partly[name] = f"a last strip is shorter than the others: {short} of {chunks} chunks"
        return
    first = pages[0]
    shape = first.shape if len(pages) == 1 else (len(pages), *first.shape)
    if _is_virtual_stack(tiff, pages):
        shape = tiff.series[0].shape
    if first.dtype is None:
        raise source.unreadable(f"no type of numbers has {first.bitspersample} bits a sample")
    dims = (*(f"dim_{axis}" for axis in range(len(shape) - len(dims))), *dims)
    read, dtype = read_values, _dtype(first).newbyteorder("=")
    if is_scaled:
        read, dtype = read_scaled, np.dtype("f8")
        attributes = {k: v for k, v in attributes.items() if k not in ("_FillValue", "scale_factor", "add_offset")}
    parsed.copied[name] = Copied(lazy_copy(source, stamp, name, read, dims, shape, dtype, attributes), reason)


def _reason(tiff: TiffFile, pages: list[Any], layouts: list[Layout]) -> str | None:
    if _is_virtual_stack(tiff, pages):
        return "its images are described by one header"
    for page, layout in zip(pages, layouts, strict=True):
        problem = layout.problem or find_codecs(page, layout).problem
        if problem is not None:
            return problem
        if layout.key != layouts[0].key:
            return "its pages are laid out in different ways"
        if layout.short_rows and not has_inlined():
            return "its last strip is shorter than the others, which VirtualiZarr can hold from 2.8 on"
    return None


def _is_virtual_stack(tiff: TiffFile, pages: list[Any]) -> bool:
    """Whether a description, such as ImageJ's, says that there are more images than pages."""
    series = tiff.series
    return len(series) == 1 and series[0].size > sum(page.size for page in pages)


def _reference(
    source: SourceFile, dims: tuple[str, ...], pages: list[Any], layouts: list[Layout], attributes: dict[str, Any]
) -> Any:
    layout, codecs = layouts[0], find_codecs(pages[0], layouts[0])
    stack = () if len(pages) == 1 else (len(pages),)
    inlined: dict[tuple[int, ...], bytes] = {}
    for number, (page, each) in enumerate(zip(pages, layouts, strict=True)):
        for position in each.short_chunks():
            index = (*((number,) if stack else ()), *position)
            inlined[index] = encode_chunk(page, each, position)
    fill = attributes.get("_FillValue", 0)
    return build_array(
        url=source.url,
        shape=(*stack, *layout.shape),
        chunks=(*((1,) if stack else ()), *layout.chunks),
        dtype=layout.dtype,
        stored=layout.dtype,
        offsets=np.stack([each.offsets for each in layouts]) if stack else layout.offsets,
        lengths=np.stack([each.lengths for each in layouts]) if stack else layout.lengths,
        filters=codecs.filters(bool(stack)),
        compressors=codecs.compressors,
        dims=dims,
        attributes=json_attributes(attributes, layout.dtype),
        inlined=inlined,
        fill_value=fill.item() if isinstance(fill, np.generic) else fill,
    )


def read_values(source: SourceFile, name: str, key: tuple[Any, ...]) -> np.ndarray[Any, Any]:
    """Values of one image, or of a stack of them."""
    with _opened(source) as tiff:
        pages = _images(tiff)[name]
        if _is_virtual_stack(tiff, pages):
            values = tiff.series[0].asarray()
        else:
            values = np.stack([page.asarray() for page in pages]) if len(pages) > 1 else pages[0].asarray()
    return np.asarray(np.asarray(values)[key])


def read_scaled(source: SourceFile, name: str, key: tuple[Any, ...]) -> np.ndarray[Any, Any]:
    """Values of an image whose bands differ in scale or offset, decoded; NaN where there is no data."""
    raw = read_values(source, name, ())
    with _opened(source) as tiff:
        pages = _images(tiff)[name]
        scaling = np.stack([_scaling(page) for page in pages])
        fill = _attributes(pages[0]).get("_FillValue")
        axes = pages[0].axes
    values = raw.astype("f8") if fill is None else np.where(raw == fill, np.nan, raw.astype("f8"))
    shape = [1] * raw.ndim
    if "S" in axes:
        shape[axes.index("S") - len(axes)] = scaling.shape[1]
    if len(pages) > 1:
        shape[0] = len(pages)
    return np.asarray((values * scaling[..., 0].reshape(shape) + scaling[..., 1].reshape(shape))[key])
