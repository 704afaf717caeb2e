"""FITS: astropy reads the headers; images are referenced, tables and compressed images are copied with astropy.

A table is one variable of records. If it has columns of vectors or of variable length, each column is a variable, and
so are data and parameters of random groups. A part that astropy does not read is left out.

Integers keep their type where astropy keeps it (unsigned ones are stored as signed with ``BZERO``); other scaled
images are packed values, with ``BSCALE`` and ``BZERO`` as ``scale_factor`` and ``add_offset``.
"""

from __future__ import annotations

import itertools
import re
import warnings
from collections.abc import Collection, Iterator
from functools import partial
from typing import Any

import numpy as np
from astropy.io import fits

from icelite.formats.parsed import Copied, ParsedGroup, build_array, lazy_copy, no_group
from icelite.formats.source import SourceFile, describe
from icelite.types import SourceStamp

_STORED = {8: "u1", 16: ">i2", 32: ">i4", 64: ">i8", -32: ">f4", -64: ">f8"}
_OF_COLUMNS = re.compile(r"(TFIELDS|THEAP|T[A-Z]{3,4}\d+)")
_MOST_BYTES = 1 << 30
_TEXT = {"COMMENT", "HISTORY", ""}
_STRUCTURE = {"SIMPLE", "BITPIX", "EXTEND", "XTENSION", "PCOUNT", "GCOUNT", "BSCALE", "BZERO", "BLANK"}


def parse(
    source: SourceFile, stamp: SourceStamp, group: str, dropped: Collection[str], whole_tree: bool
) -> ParsedGroup:
    """Parse all parts (HDUs) of the file that have values, each a variable with the part's name."""
    if group:
        raise no_group(source, group, ())
    parsed = ParsedGroup()
    with source.open() as stream, fits.open(stream) as parts:
        for index, name, part in _named(parts):
            try:
                if part is None:
                    raise ValueError("its header, and all parts behind it, cannot be read")
                attributes = _attributes(part.header)
                if index == 0:
                    parsed.attributes = attributes
                if part.header.get("NAXIS", 0) and name not in dropped:
                    _add_part(parsed, source, stamp, index, name, part, attributes)
            except Exception as error:  # noqa: BLE001  # of astropy, about this part: it does not cost the others
                parsed.skipped[name] = f"astropy does not read it: {describe(error)}"
    return parsed.without(dropped)


def _named(parts: Any) -> Iterator[tuple[int, str, Any]]:
    """The parts with their numbers, by names that differ: their own, or with their number; None for what is damaged."""
    taken: set[str] = set()
    for index in itertools.count():  # read one after the other: how many there are is known at the end
        part, is_last = _part_at(parts, index)
        if part is None:
            if not is_last:
                yield index, str(index), None
            return
        name = part.name or str(index)
        name = f"{name}_{index}" if name in taken else name
        taken.add(name)
        yield index, name, part


def _part_at(parts: Any, index: int) -> tuple[Any, bool]:
    """A part; None behind the last one and for one with a damaged header, and whether it is the former."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            part = parts[index]
        except IndexError:
            part = None
        except Exception:  # noqa: BLE001  # of astropy, about a header
            return None, False
    damaged = any("Error validating header" in str(warning.message) for warning in caught)
    return part, part is None and not damaged


def _add_part(
    parsed: ParsedGroup,
    source: SourceFile,
    stamp: SourceStamp,
    index: int,
    name: str,
    part: Any,
    attributes: dict[str, Any],
) -> None:
    if _is_plain_image(part):
        _add_image(parsed, source, name, part, attributes)
        return
    reason = f"Zarr has no codec for how it is stored ({type(part).__name__})"
    columns = _columns(part)
    if columns is None:
        values = _values(part)
        described = {"": (_dims(name, values.ndim), values, attributes)}
    else:
        described = {}
        for column, values in columns.items():
            where = f"{name}_{column}" if column else name
            dims = (f"{name}_row", *(f"{where}_{axis}" for axis in range(1, values.ndim)))
            described[column] = dims, values, _column_attributes(part, column, attributes)
    for column, (dims, values, its) in described.items():
        read = partial(read_values, index, column)
        variable = f"{name}_{column}" if column else name
        parsed.copied[variable] = Copied(
            lazy_copy(source, stamp, variable, read, dims, values.shape, values.dtype, its), reason
        )


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


def _columns(part: Any) -> dict[str, np.ndarray[Any, Any]] | None:
    """Values by column, of parts that cannot be one variable: the data of random groups have no name.

    A column of variable length becomes an array of the longest row, filled up with NaN or zeros, with the rows' lengths
    beside it; one of text becomes text.
    """
    if isinstance(part, fits.GroupsHDU):
        named = {key: part.data.par(key) for key in dict.fromkeys(part.data.parnames)}
        return {"": _in_machine_order(part.data.data)} | {
            key: _in_machine_order(values) for key, values in named.items()
        }
    if not isinstance(part, fits.BinTableHDU | fits.TableHDU) or isinstance(part, fits.CompImageHDU):
        return None
    columns = {key: np.asarray(part.data[key]) for key in part.data.names}
    if all(values.ndim == 1 and values.dtype.kind != "O" for values in columns.values()):
        return None
    found: dict[str, np.ndarray[Any, Any]] = {}
    for key, values in columns.items():
        found |= _filled(key, values) if values.dtype.kind == "O" else {key: _in_machine_order(values)}
    return found


def _filled(key: str, rows: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """A column of variable length as an array, and the lengths of its rows."""
    parts = [np.ravel(np.asarray(row)) for row in rows]
    if all(part.dtype.kind in "US" for part in parts):
        return {key: np.array(["".join(part.astype(str)) for part in parts], dtype=str)}
    lengths = np.array([part.size for part in parts], np.int64)
    dtype = np.result_type(*parts).newbyteorder("=")
    shape = (len(parts), int(lengths.max(initial=0)))
    if np.prod(shape) * dtype.itemsize > _MOST_BYTES:
        raise ValueError(f"the rows of its column {key!r} differ too much in length: up to {shape[1]} of {dtype}")
    filled = np.full(shape, np.nan if dtype.kind in "fc" else 0, dtype)
    for target, part in zip(filled, parts, strict=True):
        target[: part.size] = part
    return {key: filled, f"{key}_length": lengths}


def _in_machine_order(values: Any) -> np.ndarray[Any, Any]:
    found: np.ndarray[Any, Any] = np.asarray(values)
    return found.astype(found.dtype.newbyteorder("="))


def _column_attributes(part: Any, key: str, attributes: dict[str, Any]) -> dict[str, Any]:
    """The table's own cards, without those about columns, and the unit and null of this one."""
    found = {card: value for card, value in attributes.items() if not _OF_COLUMNS.fullmatch(card)}
    if key and not isinstance(part, fits.GroupsHDU) and key in part.columns.names:
        column = part.columns[key]
        found |= {"units": str(column.unit)} if column.unit else {}
        found |= {"null": column.null} if isinstance(column.null, int | str) else {}
    return found


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
    return _in_machine_order(values)


def read_values(index: int, column: str, source: SourceFile, name: str, key: tuple[Any, ...]) -> np.ndarray[Any, Any]:
    """Values of one part, or of a column of it."""
    with source.open() as stream, fits.open(stream) as parts:
        columns = _columns(parts[index])
        return np.asarray((_values(parts[index]) if columns is None else columns[column])[key])
