"""A codec pipeline for zarr that reads the chunks of one selection together instead of one by one.

It is zarr's own extension point: `enable_fast_reads`, or ``codec_pipeline.path`` in zarr's configuration. One statement
resolves all chunks, neighbouring ranges are read at once, the array's own codecs decode in threads, and values
land in the output array. Writing, other stores, parts of shards and whatever else is unusual go to zarr's pipeline,
which this class extends.

The values are those of zarr's own pipeline: the same codecs see the same specifications in the same order. Chunks
that are nothing but numbers in a row, as the first one decoded shows, are taken from their bytes without a call.
What unpacks to more than the array's metadata allows is refused (`icelite.expansion`).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import BytesCodec, GzipCodec
from zarr.core.buffer import cpu
from zarr.core.codec_pipeline import BatchedCodecPipeline
from zarr.registry import register_pipeline
from zarr.storage import StorePath

from icelite.expansion import GZIP, ZLIB, Expansion, inflate
from icelite.store.loading import Bytes, Load, Loaded, Piece, Places, Run, locate, read_remote_run
from icelite.store.store import IceliteStore

if TYPE_CHECKING:
    from zarr.abc.codec import Codec
    from zarr.abc.store import ByteGetter
    from zarr.core.array_spec import ArraySpec
    from zarr.core.buffer import NDBuffer
    from zarr.core.indexing import SelectorTuple

    Item = tuple[ByteGetter, ArraySpec, SelectorTuple, SelectorTuple, bool]

_SETTING = "codec_pipeline.path"
_AT_ONCE = 256 << 10  # bytes: less is read and decoded where it is asked for; a thread would take longer
_VALUES_AT_ONCE = 1 << 20  # ... unless they decode to more values than this
_TASK_BYTES = 2 << 20  # at most: what one thread reads and decodes before it looks for more
_TASKS = 4  # at least so many for each processor, so that none is idle at the end


class IceliteCodecPipeline(BatchedCodecPipeline):
    """zarr's default pipeline, with a faster way to read numpy arrays from an `IceliteStore`."""

    async def read(self, batch_info: Iterable[Item], out: NDBuffer, drop_axes: tuple[int, ...] = ()) -> Any:
        """See `zarr.abc.codec.CodecPipeline.read`; what it returns is nothing before zarr 3.3."""
        batch = list(batch_info)
        pass_on: Any = super().read
        store = _common_store(batch)
        if store is None or not self._suits(batch, out):
            return await pass_on(batch, out, drop_axes)
        keys = [item[0].path for item in batch]  # type: ignore[attr-defined]  # a StorePath, says _common_store
        session = store.session
        places = await session.off_loop(locate, session.changes, session.payloads, keys)
        if places is None:
            return await pass_on(batch, out, drop_axes)
        is_slow = session.is_remote or len(batch) * prod(batch[0][1].shape) > _VALUES_AT_ONCE
        expansion = Bounded(places.expansion, keys)
        values = _Values(batch, out.as_ndarray_like(), drop_axes, self, expansion, 0 if is_slow else _AT_ONCE)
        values.fill(places.missing)
        await self._load(values, places, keys)
        missing = set(places.missing)
        return tuple({"status": "missing" if place in missing else "present"} for place in range(len(batch)))

    def _suits(self, batch: Sequence[Item], out: NDBuffer) -> bool:
        """Whether the values go into a numpy array, and no chunk can be read in part."""
        if type(out) is not cpu.NDBuffer or batch[0][1].prototype.buffer is not cpu.Buffer:
            return False
        return not self.supports_partial_decode or all(item[4] for item in batch)

    async def _load(self, values: _Values, places: Places, keys: Sequence[str]) -> None:
        """Read and decode everything; runs of remote sources are awaited together."""
        decodes = decodes_here(self)
        slots = asyncio.Semaphore(zarr.config.get("async.concurrency"))

        async def take(loads: list[Load]) -> None:
            await (_in_threads(values, loads) if decodes else _decoded_by_zarr(self, values, loads))

        async def fetch(run: Run) -> None:
            async with slots:
                loaded = await read_remote_run(run, keys)
                await take([Load(run.stop - run.start, lambda: loaded)])

        await asyncio.gather(take(places.loads), *map(fetch, places.remote))


async def _in_threads(values: _Values, loads: list[Load]) -> None:
    if sum(load.size for load in loads) <= values.at_once:
        values.take(loads)
        return
    loop = asyncio.get_running_loop()
    await asyncio.gather(*(loop.run_in_executor(_pool(), values.take, task) for task in _tasks(loads)))


async def _decoded_by_zarr(pipeline: IceliteCodecPipeline, values: _Values, loads: list[Load]) -> None:
    """For codecs that only have an asynchronous form: zarr decodes the chunks of a few loads at once."""
    for task in _tasks(loads):
        loaded = await asyncio.to_thread(_read, task)
        chunks = [(piece, data[piece.offset - start :][: piece.length]) for data, start, ps in loaded for piece in ps]
        for piece, data in chunks:
            values.bounds.check(data, piece.place, tries=True)
        specs = [values.batch[piece.place][1] for piece, _ in chunks]
        buffers = [spec.prototype.buffer.from_bytes(data) for spec, (_, data) in zip(specs, chunks, strict=True)]
        arrays = await pipeline.decode_batch(zip(buffers, specs, strict=True))
        for (piece, _), array in zip(chunks, arrays, strict=True):
            if array is not None:
                values.put(piece.place, array.as_ndarray_like())


def _read(loads: list[Load]) -> list[Loaded]:
    return [part for load in loads for part in load.read()]


def _tasks(loads: list[Load]) -> Iterator[list[Load]]:
    enough = min(_TASK_BYTES, sum(load.size for load in loads) // (_TASKS * (os.cpu_count() or 1)))
    task: list[Load] = []
    size = 0
    for load in loads:
        task.append(load)
        size += load.size
        if size >= enough:
            yield task
            task, size = [], 0
    if task:
        yield task


class _Values:
    """The output of one read, and how chunks get there; threads share it, since no two write the same values."""

    def __init__(
        self,
        batch: list[Item],
        out: Any,
        drop_axes: tuple[int, ...],
        pipeline: IceliteCodecPipeline,
        bounds: Bounded,
        at_once: int,
    ) -> None:
        self.batch = batch
        self.bounds = bounds
        self.at_once = at_once
        self._out = out
        self._drop_axes = drop_axes
        self._pipeline = pipeline
        self._decoder: tuple[ArraySpec, Decoder] | None = None

    def fill(self, places: Iterable[int]) -> None:
        """Put the fill value where there is no chunk."""
        for place in places:
            _, spec, _, out_selection, _ = self.batch[place]
            # only Zarr v2 may have none
            self._out[out_selection] = spec.dtype.default_scalar() if spec.fill_value is None else spec.fill_value

    def take(self, loads: Iterable[Load]) -> None:
        """Read and decode."""
        for load in loads:
            for data, start, pieces in load.read():
                self._decode(data, start, pieces)

    def _decode(self, data: Bytes, start: int, pieces: Sequence[Piece]) -> None:
        batch, out, drop_axes = self.batch, self._out, self._drop_axes
        for offset, length, place in pieces:
            _, spec, chunk_selection, out_selection, _ = batch[place]
            array = self._decoder_of(spec).decode(data, offset - start, length, place)
            if drop_axes:
                self.put(place, array)
            else:
                out[out_selection] = array[chunk_selection]

    def _decoder_of(self, spec: ArraySpec) -> Decoder:
        known = self._decoder  # of a regular grid, every chunk has an equal one
        if known is None or (known[0] is not spec and known[0] != spec):
            known = self._decoder = spec, Decoder(self._pipeline, spec, self.bounds)
        return known[1]

    def put(self, place: int, array: Any) -> None:
        """Put what is selected of a decoded chunk where it belongs."""
        _, _, chunk_selection, out_selection, _ = self.batch[place]
        selected = np.asanyarray(array[chunk_selection])
        if self._drop_axes:
            kept = tuple(size for axis, size in enumerate(selected.shape) if axis not in self._drop_axes)
            selected = selected.reshape(kept)
        self._out[out_selection] = selected


# -- decoding ------------------------------------------------------------------------------------------------------


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


# -- choosing it ---------------------------------------------------------------------------------------------------


def _common_store(batch: Sequence[Item]) -> IceliteStore | None:
    """The store that all chunks of a read come from, if it is ours."""
    store = getattr(batch[0][0], "store", None) if batch else None
    if not isinstance(store, IceliteStore):
        return None
    same = all(type(item[0]) is StorePath and item[0].store is store for item in batch)
    return store if same else None


_threads: list[ThreadPoolExecutor] = []
os.register_at_fork(after_in_child=_threads.clear)  # threads do not survive it


def _pool() -> ThreadPoolExecutor:
    if not _threads:
        _threads.append(ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="icelite"))
    return _threads[0]


register_pipeline(IceliteCodecPipeline)
PATH = f"{IceliteCodecPipeline.__module__}.{IceliteCodecPipeline.__qualname__}"


class FastReads:
    """What `enable_fast_reads` did; a context manager that undoes it."""

    def __init__(self) -> None:
        self._before = zarr.config.get(_SETTING)
        zarr.config.set({_SETTING: PATH})

    def disable(self) -> None:
        """Let arrays that are opened from now on read as before."""
        zarr.config.set({_SETTING: self._before})

    def __enter__(self) -> FastReads:
        return self

    def __exit__(self, *_: object) -> None:
        self.disable()


def enable_fast_reads() -> FastReads:
    """Let arrays that are opened from now on, in this process, read icelite's chunks together.

    It sets ``codec_pipeline.path`` in zarr's configuration, so any other codec pipeline chosen there gives way. Values
    are those of zarr's default pipeline, which also goes on serving all other stores and all writes.

    Returns
    -------
    FastReads
        Its ``disable()`` sets what was there before; so does the end of a ``with`` block.
    """
    return FastReads()
