"""How the pixels of a TIFF page are laid out: its grid of tiles or strips, and the codecs that undo its compression."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

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
    def of_page(cls, page: Any, byteorder: str) -> Layout:
        """The layout of a tifffile page."""
        dtype = np.dtype("u1") if page.dtype is None else np.dtype(page.dtype).newbyteorder(byteorder)
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
