"""TIFF, BigTIFF, GeoTIFF and COG: tifffile reads the layout, and tiles or strips become chunks.

Pixel-interleaved samples are the last dimension, so a strip or tile is a chunk as it is. Overviews and masks are left
out. Images of one shape are stacked along ``page``. What Zarr has no codec for is copied with tifffile.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from tifffile import TiffFile

from icelite.formats.geotiff import describe_grid
from icelite.formats.manifests import HAS_INLINED, build_array, is_fill_value, json_attributes
from icelite.formats.parsed import Copied, ParsedGroup, lazy_copy, no_group
from icelite.formats.source import SourceFile
from icelite.formats.tiff_layout import Layout, encode_chunk, find_codecs
from icelite.types import SourceStamp

NAME = "band_data"  # as rioxarray calls it
_GDAL_NAMES = {"SCALE": "scale_factor", "OFFSET": "add_offset", "UNITTYPE": "units", "DESCRIPTION": "long_name"}
_GDAL_ITEM = re.compile(rf'<Item name="({"|".join(_GDAL_NAMES)})" sample="\d+"[^>]*>([^<]*)</Item>')
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
    for page in tiff.pages:
        page = page.aspage()
        if not page.is_reduced and not page.is_mask and page.size:
            alike.setdefault((page.shape, page.axes, page.dtype), []).append(page)
    return {NAME if not index else f"{NAME}_{index}": pages for index, pages in enumerate(alike.values())}


def _dims(pages: list[Any]) -> tuple[str, ...]:
    names = tuple(_DIMS.get(axis, f"dim_{axis.lower()}") for axis in pages[0].axes)
    return names if len(pages) == 1 else ("page", *names)


def _attributes(page: Any) -> dict[str, Any]:
    """What GDAL says of the values: no data, scale, offset, unit, name."""
    attributes: dict[str, Any] = {}
    nodata = page.tags.get("GDAL_NODATA")
    if nodata is not None and page.dtype is not None:
        try:
            value = float(str(nodata.value).strip().strip("\0"))
        except ValueError:
            value = None
        if value is not None and is_fill_value(value, page.dtype):
            attributes["_FillValue"] = page.dtype.type(value)
    metadata = page.tags.get("GDAL_METADATA")
    return attributes | (_gdal_attributes(str(metadata.value), page.samplesperpixel) if metadata is not None else {})


def _gdal_attributes(text: str, bands: int) -> dict[str, Any]:
    """Attributes from GDAL's XML that all bands share."""
    values: dict[str, list[str]] = {}
    for name, value in _GDAL_ITEM.findall(text):
        values.setdefault(name, []).append(value)
    attributes: dict[str, Any] = {}
    for name, found in values.items():
        if len(found) == bands and len(set(found)) == 1:
            attributes[_GDAL_NAMES[name]] = float(found[0]) if name in ("SCALE", "OFFSET") else found[0]
    return attributes


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
    reason = _reason(tiff, pages, layouts)
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
    dtype = np.dtype(first.dtype).newbyteorder("=")
    parsed.copied[name] = Copied(lazy_copy(source, stamp, name, read_values, dims, shape, dtype, attributes), reason)


def _reason(tiff: TiffFile, pages: list[Any], layouts: list[Layout]) -> str | None:
    if _is_virtual_stack(tiff, pages):
        return "its images are described by one header"
    for page, layout in zip(pages, layouts, strict=True):
        problem = layout.problem or find_codecs(page, layout).problem
        if problem is not None:
            return problem
        if layout.key != layouts[0].key:
            return "its pages are laid out in different ways"
        if layout.short_rows and not HAS_INLINED:
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
