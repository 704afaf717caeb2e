"""How many bytes a chunk may unpack to: as many as its array's metadata says, whatever the chunk says of itself.

The codecs of zarr and numcodecs allocate what a frame's header asks for, or go on as long as there is input, and have
no limit. So what they are given is looked at first. A zstd, blosc or lz4 frame says how much it holds, or how much it
can hold at most; bz2 and lzma are unpacked on trial, up to the limit. DEFLATE (zlib, gzip) says nothing, and a trial
would cost as much as the reading itself: there a stream that is longer than its chunk is refused, and one that could
unpack to very much is tried as far as is needed to know better. icelite's own codec pipeline unpacks DEFLATE itself,
and stops at the limit.

What codecs of other packages allocate is theirs to limit.
"""

from __future__ import annotations

import bz2
import json
import lzma
import re
import secrets
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numcodecs
import numpy as np

from icelite.budget import over_budget
from icelite.errors import FormatError

SLACK_BYTES = 64 << 10  # that an encoded chunk may be longer than its values, besides an eighth of them
HARMLESS_BYTES = 64 << 20  # more than a chunk has, if nothing cheaper than unpacking tells
VARIABLE_BYTES = 128 << 20  # of a chunk whose values have no fixed length ...
VALUE_BYTES = 256  # ... and for each of them
DEFLATE_RATIO = 1032  # at most, and only of a stream that repeats itself
DENSE_RATIO = 150  # at most of one that looks random: a match of 258 bytes then takes 15 bits
TRIAL_BYTES = 64 << 10
LZMA_MEMORY_BYTES = 192 << 20  # of a dictionary
ZSTD_BLOCK_BYTES = 128 << 10

Bytes = bytes | bytearray | memoryview
ZLIB, GZIP = 15, 31  # zlib's wbits

_ZSTD_MAGIC = bytes.fromhex("28b52ffd")
_KINDS = {"zstd", "gzip", "zlib", "blosc", "lz4", "bz2", "lzma"}
_NUMBER = re.compile(r"(?:int|uint|float|complex|r)(\d{1,6})")


@dataclass(frozen=True, slots=True)
class Expansion:
    """What the chunks of one array may unpack to.

    Attributes
    ----------
    limit
        Bytes of an unpacked chunk, at most.
    steps
        The codecs of bytes in the order of decoding, up to the last that compresses, each as numcodecs describes it.
    inner
        Of the chunks in a shard, and how many of them it has; None where there are no shards.
    is_zstd
        Whether zstd is the only one of the steps, as by default in Zarr v3.
    """

    limit: int
    steps: tuple[Mapping[str, Any], ...]
    inner: tuple[Expansion, int] | None = None
    is_zstd: bool = False

    def check(self, data: Bytes, key: str, *, tries: bool = True) -> None:
        """Refuse an encoded chunk that would unpack to more than the metadata allows.

        Parameters
        ----------
        tries
            Whether DEFLATE is unpacked on trial; not where `inflate` unpacks it.

        Raises
        ------
        FormatError
            ``over-budget``.
        """
        if self.is_zstd and len(data) <= self.limit and _says_small(data, self.limit):
            return
        if self.inner is not None and not self.steps:
            self._check_shard(data, key)
        last = len(self.steps) - 1
        for place, step in enumerate(self.steps):
            self._check_step(step, data, key, tries)
            if place < last:
                unpacked = _unpacked(step, data, self.limit, key)
                if unpacked is None:  # zarr will say what is wrong with it
                    return
                data = unpacked

    def check_part(self, data: Bytes, key: str) -> None:
        """The same for a part of a shard that was read by its range: a chunk of it, or its index."""
        if self.inner is not None and not self.steps and bytes(data[:4]) != b"\0\0\0\0":
            self.inner[0].check(data, key)

    def _check_step(self, step: Mapping[str, Any], data: Bytes, key: str, tries: bool) -> None:
        kind = step["id"]
        if kind not in _KINDS:
            return
        if len(data) > self.limit:
            raise self._refusal(key, f"{len(data)} encoded bytes")
        if kind in ("zlib", "gzip"):
            if not tries:
                return
            self._check_deflate(data, key, ZLIB if kind == "zlib" else GZIP)
        elif kind in ("bz2", "lzma"):
            self._check_slow(step, data, key)
        else:
            size, limit = _SIZES[kind](data, self.limit)
            if size > limit:
                raise self._refusal(key, f"at least {size} bytes")

    def _check_slow(self, step: Mapping[str, Any], data: Bytes, key: str) -> None:
        def goes_on(unpacked: int, rest: int) -> bool:
            if unpacked > self.limit:
                raise self._refusal(key, f"more than {unpacked} bytes")
            return rest > 0 or unpacked == 0

        try:
            _try(bz2.BZ2Decompressor if step["id"] == "bz2" else _lzma(step), data, goes_on)
        except lzma.LZMAError as error:
            if _needs_memory(step, error):
                raise self._refusal(key, f"a dictionary of more than {LZMA_MEMORY_BYTES} bytes") from error
        except (OSError, EOFError, ValueError, TypeError):  # the codec will say what is wrong with it
            return

    def _check_deflate(self, data: Bytes, key: str, wbits: int) -> None:
        allowed = self.limit + HARMLESS_BYTES
        ratio = DEFLATE_RATIO
        if len(data) * ratio > allowed and _looks_random(data):
            ratio, allowed = DENSE_RATIO, allowed + 50 * self.limit

        def goes_on(unpacked: int, rest: int) -> bool:
            if unpacked > self.limit:
                raise self._refusal(key, f"more than {unpacked} bytes")
            return rest * ratio + unpacked > allowed

        try:
            _try(lambda: zlib.decompressobj(wbits), data, goes_on)
        except zlib.error:  # the codec will say what is wrong with it
            return

    def _check_shard(self, data: Bytes, key: str) -> None:
        assert self.inner is not None
        inner, count = self.inner
        view = memoryview(data)
        for index in (view[-16 * count - 4 : -4], view[-16 * count :], view[: 16 * count]):  # with its checksum, or not
            if len(index) != 16 * count:
                continue
            for offset, length in set(map(tuple, np.frombuffer(index, "<u8").reshape(-1, 2).tolist())):
                if offset + length <= len(view):
                    inner.check(view[offset : offset + length], key)

    def _refusal(self, key: str, found: str) -> FormatError:
        return over_budget(f"chunk {key!r}", f"{found} for a chunk", f"{self.limit} bytes, which its metadata allows,")


def inflate(data: Bytes, wbits: int, limit: int, key: str) -> bytes:
    """The content of a zlib (`ZLIB`) or gzip (`GZIP`) stream, all members of it.

    Raises
    ------
    FormatError
        ``over-budget`` when it is more than ``limit`` bytes.
    zlib.error, EOFError
        What is wrong with the stream.
    """
    parts: list[bytes] = []
    room, rest = limit + 1, bytes(data)
    while rest:
        inflater = zlib.decompressobj(wbits)
        parts.append(inflater.decompress(rest, room))
        room -= len(parts[-1])
        if room <= 0:
            raise over_budget(f"chunk {key!r}", f"more than {limit} bytes", "that, which its metadata allows,")
        if not inflater.eof:
            raise EOFError("compressed data ended before the end of the stream")
        rest = inflater.unused_data.lstrip(b"\0") if wbits == GZIP else b""
    return parts[0] if len(parts) == 1 else b"".join(parts)


def find_expansion(documents: Mapping[str, str]) -> Expansion | None:
    """What the chunks of an array with this metadata may unpack to; None where nothing is compressed, or no array."""
    try:
        if ".zarray" in documents:
            return _old(json.loads(documents[".zarray"]))
        return _new(json.loads(documents.get("zarr.json", "{}")))
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):  # zarr will refuse it
        return None


def _new(content: Mapping[str, Any]) -> Expansion | None:
    if content.get("node_type") != "array":
        return None
    grid = content["chunk_grid"]
    shape = grid["configuration"]["chunk_shape"] if grid["name"] == "regular" else content["shape"]
    return _chain(content["codecs"], prod(shape), shape, _itemsize(content["data_type"]))


def _chain(codecs: list[Any], count: int, shape: list[int], itemsize: int | None) -> Expansion | None:
    described = [codec if isinstance(codec, dict) else {"name": codec} for codec in codecs]
    names = [codec["name"] for codec in described]
    if itemsize is not None and not {*names} <= {"bytes", "transpose", "sharding_indexed", "crc32c", *_KINDS}:
        itemsize = max(itemsize, 16)  # a filter may change the type
    limit = _limit(count, itemsize)
    steps = [
        {**(codec.get("configuration") or {}), "id": codec["name"].removeprefix("numcodecs.")}
        for codec in reversed(described)
    ]
    inner = None
    if "sharding_indexed" in names:
        options = described[names.index("sharding_indexed")]["configuration"]
        inside = options["chunk_shape"]
        chunks = prod(-(-size // part) for size, part in zip(shape, inside, strict=True))
        found = _chain(options["codecs"], prod(inside), inside, itemsize)
        inner = None if found is None else (found, chunks)
        limit += 16 * chunks
    return _expansion(limit, steps, inner)


def _old(content: Mapping[str, Any]) -> Expansion | None:
    filters = content.get("filters") or []
    dtype = np.dtype(content["dtype"] if isinstance(content["dtype"], str) else [tuple(f) for f in content["dtype"]])
    itemsize = None if dtype.hasobject else max(dtype.itemsize, 16 if filters else 1)
    compressor = content.get("compressor")
    steps = [*([compressor] if compressor else []), *reversed(filters)]
    return _expansion(_limit(prod(content["chunks"]), itemsize), steps, None)


def _limit(count: int, itemsize: int | None) -> int:
    size = VARIABLE_BYTES + count * VALUE_BYTES if itemsize is None else count * itemsize
    return size + size // 8 + SLACK_BYTES


def _expansion(limit: int, steps: Iterable[Mapping[str, Any]], inner: tuple[Expansion, int] | None) -> Expansion | None:
    listed = list(steps)
    while listed and listed[-1]["id"] not in _KINDS:
        listed.pop()
    is_zstd = [step["id"] for step in listed] == ["zstd"]
    return Expansion(limit, tuple(listed), inner, is_zstd) if listed or inner is not None else None


def _itemsize(data_type: Any) -> int | None:
    """Bytes of a value of a Zarr v3 data type; None where they differ, or it is not known."""
    if isinstance(data_type, dict):
        name, options = data_type["name"], data_type.get("configuration") or {}
        if "length_bytes" in options:
            return int(options["length_bytes"])
        return 8 if name in ("numpy.datetime64", "numpy.timedelta64") else None
    if data_type == "bool":
        return 1
    found = _NUMBER.fullmatch(data_type)
    return None if found is None else -(-int(found[1]) // 8)


# ---- what frames say of themselves


def _says_small(data: Bytes, limit: int) -> bool:
    """Whether a zstd frame begins as numcodecs writes it, without a window, and its size is in the limit."""
    if data[:4] != _ZSTD_MAGIC or len(data) < 14:
        return False
    flags = data[4]
    if flags & 0b100011 != 0b100000:
        return False
    kind = flags >> 6
    size = int.from_bytes(data[5 : 5 + (1, 2, 4, 8)[kind]], "little")
    return size + (256 if kind == 1 else 0) <= limit


def _zstd_size(data: Bytes, limit: int) -> tuple[int, int]:
    """Bytes in the first frame if it says so; else what the blocks of all frames can have at most."""
    place = total = 0
    while place + 5 <= len(data) and total <= limit + HARMLESS_BYTES:
        magic = int.from_bytes(data[place : place + 4], "little")
        if magic & 0xFFFFFFF0 == 0x184D2A50:  # a frame to be skipped
            place += 8 + int.from_bytes(data[place + 4 : place + 8], "little")
            continue
        if magic != 0xFD2FB528:
            break
        flags = data[place + 4]
        single = flags >> 5 & 1
        width = (single, 2, 4, 8)[flags >> 6]
        start = place + 5 + (1 - single) + (0, 1, 2, 4)[flags & 3]
        if width:
            size = int.from_bytes(data[start : start + width], "little") + (256 if width == 2 else 0)
            return (size, limit) if total == 0 else (total + size, limit + HARMLESS_BYTES)
        place, blocks = _zstd_blocks(data, start, limit + HARMLESS_BYTES - total)
        total += blocks
        place += 4 * (flags >> 2 & 1)
    return total, limit + HARMLESS_BYTES


def _zstd_blocks(data: Bytes, place: int, limit: int) -> tuple[int, int]:
    """Where the blocks of a frame end, and what they can have at most; counted until that is more than ``limit``."""
    total = 0
    while place + 3 <= len(data) and total <= limit:
        header = int.from_bytes(data[place : place + 3], "little")
        kind, size = header >> 1 & 3, header >> 3
        total += ZSTD_BLOCK_BYTES if kind == 2 else size
        place += 3 + (1 if kind == 1 else size)
        if header & 1:
            break
    return place, total


def _blosc_size(data: Bytes, limit: int) -> tuple[int, int]:
    return int.from_bytes(data[4:8], "little"), limit


def _lz4_size(data: Bytes, limit: int) -> tuple[int, int]:
    return int.from_bytes(data[:4], "little"), limit


_SIZES: dict[str, Callable[[Bytes, int], tuple[int, int]]] = {
    "zstd": _zstd_size,
    "blosc": _blosc_size,
    "lz4": _lz4_size,
}


# ---- unpacking


def _looks_random(data: Bytes) -> bool:
    """Whether a stream has few repetitions: of any 256 bytes, as many values as random ones would have."""
    view = np.frombuffer(data, "u1")
    for _ in range(16):
        start = secrets.randbelow(len(view) - 256)
        if len(np.unique(view[start : start + 256])) < 130:  # of random bytes, 162 on average
            return False
    return True


def _lzma(step: Mapping[str, Any]) -> Callable[[], Any]:
    """What makes an unpacker for the codec that numcodecs describes like this."""
    form, filters = step.get("format", lzma.FORMAT_XZ), step.get("filters")
    if form == lzma.FORMAT_RAW:  # without a header: the dictionary is in the metadata
        return lambda: lzma.LZMADecompressor(form, filters=filters)
    return lambda: lzma.LZMADecompressor(form, memlimit=LZMA_MEMORY_BYTES)


def _needs_memory(step: Mapping[str, Any], error: lzma.LZMAError) -> bool:
    wanted = [part.get("dict_size", 0) for part in step.get("filters") or []]
    return "emory" in str(error) or max(wanted, default=0) > LZMA_MEMORY_BYTES


def _try(make: Callable[[], Any], data: Bytes, goes_on: Callable[[int, int], bool]) -> None:
    """Unpack piece by piece, and keep nothing, as long as ``goes_on(bytes unpacked, bytes left)``."""
    view, unpacked, unpacker = memoryview(data), 0, make()
    while goes_on(unpacked, len(view)):
        piece: Bytes = view[:TRIAL_BYTES]
        view = view[TRIAL_BYTES:]
        while True:
            made = len(unpacker.decompress(piece, 8 * TRIAL_BYTES))
            unpacked += made
            if unpacker.eof:  # of one member; others may follow
                piece, unpacker = unpacker.unused_data.lstrip(b"\0"), make()
            else:
                piece = getattr(unpacker, "unconsumed_tail", b"")  # what zlib's leaves; others keep it themselves
            if not goes_on(unpacked, len(view) + len(piece)):
                return
            if not piece and not made:
                break


def _unpacked(step: Mapping[str, Any], data: Bytes, limit: int, key: str) -> bytes | None:
    """What one codec makes of bytes that it was checked for; None where it fails, or is not known."""
    try:
        if step["id"] in ("zlib", "gzip"):
            return inflate(data, ZLIB if step["id"] == "zlib" else GZIP, limit, key)
        if step["id"] in ("crc32c", "crc32", "adler32", "fletcher32", "jenkins_lookup3"):
            return bytes(data[:-4])
        return bytes(numcodecs.get_codec(dict(step)).decode(bytes(data)))
    except (zlib.error, EOFError, ValueError, TypeError, RuntimeError, OSError, lzma.LZMAError):
        return None
