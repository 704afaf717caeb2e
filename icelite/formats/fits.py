"""FITS: astropy reads the headers; images are referenced, tables and compressed images are copied with astropy.

Integers keep their type where astropy keeps it (unsigned ones are stored as signed with ``BZERO``); other scaled
images are packed values, with ``BSCALE`` and ``BZERO`` as ``scale_factor`` and ``add_offset``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
from astropy.io import fits

from icelite.formats.manifests import build_array
from icelite.formats.parsed import Copied, ParsedGroup, lazy_copy, no_group
from icelite.formats.source import SourceFile
from icelite.types import SourceStamp

_STORED = {8: "u1", 16: ">i2", 32: ">i4", 64: ">i8", -32: ">f4", -64: ">f8"}
_TEXT = {"COMMENT", "HISTORY", ""}
_STRUCTURE = {"SIMPLE", "BITPIX", "EXTEND", "XTENSION", "PCOUNT", "GCOUNT", "BSCALE", "BZERO", "BLANK"}


def parse(
    source: SourceFile, stamp: SourceStamp, group: str, dropped: Collection[str], whole_tree: bool
) -> ParsedGroup:
    """Parse all parts (HDUs) of the file that have values, each a variable with the part's name."""
    if group:
        raise no_group(source, group, ())
    parsed = ParsedGroup()
    with source.open() as stream, fits.open(stream, do_not_scale_image_data=True) as parts:
        for index, (name, part) in enumerate(_named(parts)):
            attributes = _attributes(part.header)
            if index == 0:
                parsed.attributes = attributes
            if part.header.get("NAXIS", 0) == 0 or name in dropped:
                continue
            if _is_plain_image(part):
                _add_image(parsed, source, name, part, attributes)
            else:
                parsed.copied[name] = _copy(source, stamp, name, part, attributes)
    return parsed


def _named(parts: Any) -> Iterator[tuple[str, Any]]:
    """The parts by names that differ: their own, or with their number."""
    taken: set[str] = set()
    for index, part in enumerate(parts):
        name = part.name or str(index)
        name = f"{name}_{index}" if name in taken else name
        taken.add(name)
        yield name, part


def _attributes(header: Any) -> dict[str, Any]:
    """The cards that are not about how the values are stored."""
    return {
        key: value if isinstance(value, bool | int | float | str) else str(value)
        for key, value in dict(header).items()
        if key not in _TEXT | _STRUCTURE and not key.startswith("NAXIS")
    }


def _is_plain_image(part: Any) -> bool:
    if not isinstance(part, fits.PrimaryHDU | fits.ImageHDU) or isinstance(part, fits.CompImageHDU):
        return False
    wide = part.header["BITPIX"] == 64 and part.header.get("BZERO")  # unsigned: no float holds the offset exactly
    return not wide and not part.header.get("GROUPS")


def _dims(name: str, ndim: int) -> tuple[str, ...]:
    if ndim <= 3:
        return tuple(f"{name}_{axis}" for axis in "zyx"[3 - ndim :])
    return tuple(f"{name}_axis{ndim - index}" for index in range(ndim))


def _add_image(parsed: ParsedGroup, source: SourceFile, name: str, part: Any, attributes: dict[str, Any]) -> None:
    header = part.header
    shape = tuple(int(header[f"NAXIS{axis}"]) for axis in range(header["NAXIS"], 0, -1))
    stored = np.dtype(_STORED[header["BITPIX"]])
    scale, offset = float(header.get("BSCALE", 1)), float(header.get("BZERO", 0))
    unsigned = _unsigned(stored, scale, offset)
    filters: list[dict[str, Any]] = []
    dtype = stored
    if unsigned is not None:
        dtype = unsigned
        settings = {"offset": offset, "scale": 1, "dtype": dtype.str, "astype": stored.str}
        filters = [{"name": "numcodecs.fixedscaleoffset", "configuration": settings}]
    elif (scale, offset) != (1, 0):
        kind = np.float32 if abs(header["BITPIX"]) <= 16 or header["BITPIX"] == -32 else np.float64  # astropy's choice
        packing = {"scale_factor": kind(scale), "add_offset": kind(offset)}
        parsed.packing[name] = packing
        attributes = attributes | {key: value.item() for key, value in packing.items()}
    if header.get("BLANK") is not None and stored.kind in "iu" and unsigned is None:
        attributes = attributes | {"_FillValue": int(header["BLANK"])}
    parsed.arrays[name] = build_array(
        url=source.url,
        shape=shape,
        chunks=shape,
        dtype=dtype,
        stored=stored,
        offsets=np.array(part.fileinfo()["datLoc"]),
        lengths=np.array(int(np.prod(shape)) * stored.itemsize),
        filters=filters,
        dims=_dims(name, len(shape)),
        attributes=attributes,
    )


def _unsigned(stored: np.dtype[Any], scale: float, offset: float) -> np.dtype[Any] | None:
    """The integer type that the FITS standard expresses with an offset, if that is what it is."""
    offsets = {"i2": 2.0**15, "i4": 2.0**31}
    if scale == 1 and offsets.get(stored.str[1:]) == offset:
        return np.dtype(stored.str.replace("i", "u"))
    return np.dtype("i1") if scale == 1 and stored.kind == "u" and offset == -128 else None


def _copy(source: SourceFile, stamp: SourceStamp, name: str, part: Any, attributes: dict[str, Any]) -> Copied:
    values = _values(part)
    variable = lazy_copy(
        source, stamp, name, read_values, _dims(name, values.ndim), values.shape, values.dtype, attributes
    )
    return Copied(variable, f"Zarr has no codec for how it is stored ({type(part).__name__})")


def _values(part: Any) -> np.ndarray[Any, Any]:
    values = np.asarray(part.data)
    if values.dtype.names:  # Zarr's records are little-endian
        names = values.dtype.names
        fields = [(key, np.asarray(part.data[key])) for key in names]
        plain = np.empty(
            values.shape, [(key, column.dtype.newbyteorder("<"), column.shape[1:]) for key, column in fields]
        )
        for key, column in fields:
            plain[key] = column
        return plain
    return values.astype(values.dtype.newbyteorder("="))


def read_values(source: SourceFile, name: str, key: tuple[Any, ...]) -> np.ndarray[Any, Any]:
    """Values of one part."""
    with source.open() as stream, fits.open(stream) as parts:
        return np.asarray(_values(dict(_named(parts))[name])[key])
