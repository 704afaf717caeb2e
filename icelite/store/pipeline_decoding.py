"""From a chunk's bytes to values in the output array, through the array's own codecs, called synchronously.

The values are those of zarr's own pipeline: the same codecs see the same specifications in the same order. Chunks
that are nothing but numbers in a row, as the first one decoded shows, are taken from their bytes without a call.
What unpacks to more than the array's metadata allows is refused (`icelite.expansion`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from zarr.codecs import BytesCodec, GzipCodec

from icelite.expansion import GZIP, ZLIB, Expansion, inflate

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from zarr.abc.codec import Codec
    from zarr.core.array_spec import ArraySpec

Bytes = bytes | bytearray | memoryview


def decodes_here(codecs: Iterable[Codec]) -> bool:
    """Whether every codec can be called without an event loop."""
    return all(hasattr(codec, "_decode_sync") and getattr(codec, "_sync_capable", True) for codec in codecs)


class Bounded(NamedTuple):
    """What the chunks of a batch may unpack to, and their keys, for messages."""

    expansion: Expansion | None
    keys: Sequence[str]

    def check(self, data: Bytes, place: int, *, tries: bool) -> None:
        """As `Expansion.check`."""
        if self.expansion is not None:
            self.expansion.check(data, self.keys[place], tries=tries)


def _deflated(codec: Any) -> int | None:
    """How `inflate` unpacks what a codec packed; None for one of another kind."""
    if type(codec) is GzipCodec:
        return GZIP
    return {"numcodecs.zlib": ZLIB, "numcodecs.gzip": GZIP}.get(getattr(codec, "codec_name", ""))


class Decoder:
    """Decodes chunks of one specification.

    Parameters
    ----------
    codecs
        The array's codecs, in the order of encoding; all of them satisfy `decodes_here`.
    spec
        Shape, type and fill value of a decoded chunk.
    bounds
        What it may unpack to.
    """

    def __init__(self, codecs: Iterable[Codec], spec: ArraySpec, bounds: Bounded) -> None:
        self._bounds = bounds
        self._steps: list[tuple[Any, ArraySpec]] = []
        self._prototype = spec.prototype
        self._shape = spec.shape
        for codec in codecs:
            self._steps.insert(0, (codec, spec))
            spec = codec.resolve_metadata(spec)
        self._wbits = [None if bounds.expansion is None else _deflated(codec) for codec, _ in self._steps]
        self._tries = self._wbits[0] is None
        self._may_be_plain = len(self._steps) == 1 and type(self._steps[0][0]) is BytesCodec
        self._plain: np.dtype[Any] | None = None
        self._size = -1

    def decode(self, data: Bytes, start: int, length: int, place: int) -> npt.NDArray[Any]:
        """The chunk in ``length`` bytes from ``start`` of ``data``; it may share memory with them.

        Parameters
        ----------
        place
            Of the chunk in its batch.

        Raises
        ------
        FormatError
            ``over-budget``.
        """
        if length == self._size and self._plain is not None:
            return np.ndarray(self._shape, self._plain, data, start)
        raw = np.frombuffer(data, "B", length, start) if length else np.empty(0, "B")
        self._bounds.check(memoryview(raw), place, tries=self._tries)
        value: Any = self._prototype.buffer.from_array_like(raw)
        for (codec, spec), wbits in zip(self._steps, self._wbits, strict=True):
            value = codec._decode_sync(value, spec) if wbits is None else self._inflate(value, wbits, place)
        array: npt.NDArray[Any] = value.as_ndarray_like()
        if self._may_be_plain and np.may_share_memory(array, raw) and array.flags.c_contiguous:
            self._plain, self._size = array.dtype, length
        return array

    def _inflate(self, value: Any, wbits: int, place: int) -> Any:
        assert self._bounds.expansion is not None  # else no codec has wbits
        limit = self._bounds.expansion.limit
        data = inflate(value.as_numpy_array(), wbits, limit, self._bounds.keys[place])
        return self._prototype.buffer.from_bytes(data)
