"""From a chunk's bytes to values in the output array, through the array's own codecs, called synchronously.

The values are those of zarr's own pipeline: the same codecs see the same specifications in the same order. Chunks
that are nothing but numbers in a row, as the first one decoded shows, are taken from their bytes without a call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from zarr.codecs import BytesCodec

if TYPE_CHECKING:
    from collections.abc import Iterable

    from zarr.abc.codec import Codec
    from zarr.core.array_spec import ArraySpec

Bytes = bytes | bytearray | memoryview


def decodes_here(codecs: Iterable[Codec]) -> bool:
    """Whether every codec can be called without an event loop."""
    return all(hasattr(codec, "_decode_sync") and getattr(codec, "_sync_capable", True) for codec in codecs)


class Decoder:
    """Decodes chunks of one specification.

    Parameters
    ----------
    codecs
        The array's codecs, in the order of encoding; all of them satisfy `decodes_here`.
    spec
        Shape, type and fill value of a decoded chunk.
    """

    def __init__(self, codecs: Iterable[Codec], spec: ArraySpec) -> None:
        self._steps: list[tuple[Any, ArraySpec]] = []
        self._prototype = spec.prototype
        self._shape = spec.shape
        for codec in codecs:
            self._steps.insert(0, (codec, spec))
            spec = codec.resolve_metadata(spec)
        self._may_be_plain = len(self._steps) == 1 and type(self._steps[0][0]) is BytesCodec
        self._plain: np.dtype[Any] | None = None
        self._size = -1

    def decode(self, data: Bytes, start: int, length: int) -> npt.NDArray[Any]:
        """The chunk in ``length`` bytes from ``start`` of ``data``; it may share memory with them."""
        if length == self._size and self._plain is not None:
            return np.ndarray(self._shape, self._plain, data, start)
        raw = np.frombuffer(data, "B", length, start) if length else np.empty(0, "B")
        value: Any = self._prototype.buffer.from_array_like(raw)
        for codec, spec in self._steps:
            value = codec._decode_sync(value, spec)
        array: npt.NDArray[Any] = value.as_ndarray_like()
        if self._may_be_plain and np.may_share_memory(array, raw) and array.flags.c_contiguous:
            self._plain, self._size = array.dtype, length
        return array
