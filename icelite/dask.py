"""`store_dask`: dask arrays into the arrays of a session, computed by threads, processes or a cluster.

Invariants
----------
- Bytes never pass through the scheduler: each task writes its chunks where the repository's bytes go, into objects or
  into the catalog, and returns where they are. The session takes these references over when all tasks are done.
- A chunk is written by one task only; blocks that share a chunk are refused before anything is computed.
- The caller's session is not changed until every task has succeeded, and it commits nothing.
"""

from __future__ import annotations

import math
import os
import pickle
import threading
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain, pairwise, product
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from dask import config, multiprocessing
from dask._task_spec import List, Task, TaskRef
from dask.base import compute, get_scheduler, optimize
from dask.delayed import Delayed, delayed
from dask.highlevelgraph import HighLevelGraph
from dask.system import CPU_COUNT
from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.storage import MemoryStore

from icelite.distributed import extract_session, merge_sessions
from icelite.errors import ErrorKind, InvalidInputError
from icelite.interrupts import end_with_parent, heard_interrupts
from icelite.keys import check_path
from icelite.metadata import ArrayInfo
from icelite.session import ForkSession, Session
from icelite.store import IceliteStore
from icelite.types import Chunk, chunk_name

if TYPE_CHECKING:
    from dask.array import Array

TASK_BYTES = 8 << 20  # small blocks are written together, up to this much, so that they share an object
LEAST_TASKS = 32  # but not so many that workers have nothing to do
KNOWN_WORKSHOPS = 8  # forks that a process keeps open
_UNSUPPORTED = ("compute", "return_stored", "load_stored", "lock")

Span = tuple[int, int]  # first element and the one after the last, along one dimension
Region = tuple[slice, ...] | None


@heard_interrupts()
def store_dask(
    *,
    sources: Sequence[Array],
    targets: Sequence[zarr.Array[Any]],
    regions: Sequence[Region] | None = None,
    split_every: int | None = None,
    **store_kwargs: Any,
) -> Session:
    """Compute dask arrays into Zarr arrays of one session; nothing is committed.

    Parameters
    ----------
    sources
        The dask arrays.
    targets
        For each of them the Zarr array to write to, opened from ``session.store`` or ``session.fork().store``. Every
        chunk (or shard) of it must lie in one block of the source.
    regions
        For each of them the half-open slices of the target to write to, without steps; None: all of it.
    split_every
        For code written for Icechunk; references are merged all at once.
    **store_kwargs
        Passed to `dask.compute`, such as ``scheduler="processes"``.

    Returns
    -------
    Session
        The session of the targets, with the chunks written. If that is a fork, merge it.

    Raises
    ------
    InvalidInputError
        ``invalid-argument``: shapes that do not fit, blocks that share a chunk, targets of different sessions.
    ReadOnlyError, StorageError
        ``read-only-session``; ``io``, ``busy``, ``storage-full``. The session is as it was.
    """
    places = list(regions) if regions is not None else [None] * len(sources)
    session = _check_arguments(sources, targets, places, store_kwargs)
    lazy = optimize(*sources)  # type: ignore[no-untyped-call]
    plans = [_plan(*work) for work in zip(lazy, targets, places, strict=True)]
    _check_apart(plans)
    fork = session.fork()
    token = uuid.uuid4().hex
    workshop = delayed(Workshop(token, pickle.dumps(fork)), pure=True)
    written = [_delay(workshop, plan, f"icelite-{token}-{number}") for number, plan in enumerate(plans)]
    try:
        with _stoppable(store_kwargs) as options:
            results: tuple[list[_Written], ...] = compute(*written, **options)  # type: ignore[no-untyped-call]
    finally:
        with _lock:
            _workshops.pop(token, None)  # that of this process; others forget theirs when newer ones come
    _take(session, chain.from_iterable(results))
    return session


def session_merge_reduction(
    arrays: Array | Sequence[Array], *, split_every: int | None = None, **store_kwargs: Any
) -> ForkSession:
    """One fork with everything that dask's own `dask.array.store` wrote into arrays of a fork.

    Parameters
    ----------
    arrays
        What it returned, with ``compute=False, return_stored=True, load_stored=False``.
    split_every
        For code written for Icechunk; forks are merged all at once.
    **store_kwargs
        Passed to `dask.compute`, such as ``scheduler="processes"``.

    Returns
    -------
    ForkSession
        To be merged into the session that the fork began in.

    Raises
    ------
    SessionStateError, InvalidInputError
        ``merge-not-allowed`` for arrays of no fork; ``invalid-argument`` for arrays of another store.
    """
    several = arrays if isinstance(arrays, Sequence) else [arrays]
    blocks = [block for array in several for block in array.to_delayed().ravel()]  # type: ignore[no-untyped-call]
    forks = compute(*(delayed(extract_session)(block) for block in blocks), **store_kwargs)  # type: ignore[no-untyped-call]
    return merge_sessions(*forks)


@contextmanager
def _stoppable(options: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The options of `dask.compute`, with worker processes that end with the call: dask's own finish their tasks."""
    chosen = get_scheduler(scheduler=options.get("scheduler"))  # type: ignore[no-untyped-call]
    if chosen is not multiprocessing.get or options.get("pool") or config.get("pool", None):
        yield dict(options)
        return
    os.environ.setdefault("PYTHONHASHSEED", "6640")  # as dask sets it, so that all workers hash alike
    pool = ProcessPoolExecutor(
        options.get("num_workers") or config.get("num_workers", None) or CPU_COUNT,
        mp_context=multiprocessing.get_context(),  # type: ignore[no-untyped-call]
        initializer=_begin,
        initargs=(options.get("initializer") or config.get("multiprocessing.initializer", None),),
    )
    try:
        yield {**{name: value for name, value in options.items() if name != "initializer"}, "pool": pool}
    except BaseException:
        for process in list(pool._processes.values()):
            process.kill()
        raise
    finally:
        pool.shutdown()


def _begin(initializer: Callable[[], object] | None) -> None:
    end_with_parent()
    multiprocessing.initialize_worker_process(initializer)  # type: ignore[no-untyped-call]


def _delay(workshop: Delayed, plan: _Plan, name: str) -> Delayed:
    """What writes one source: a graph made at once, since one of `delayed` calls costs tasks times blocks."""
    # References are explicit: a key in a nested list is not seen as one when its block is held by a cluster already.
    tasks: dict[Any, Task] = {}
    for number, (spans, blocks) in enumerate(plan.tasks()):
        write = partial(_write_blocks, path=plan.path, spans=spans, write_empty=plan.write_empty)
        tasks[name, number] = Task((name, number), write, TaskRef(workshop.key), List(*map(TaskRef, blocks)))
    tasks[name] = Task(name, list, List(*map(TaskRef, list(tasks))))
    parts: list[Any] = [plan.source, workshop]
    return Delayed(name, HighLevelGraph.from_collections(name, tasks, parts))  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True)
class _Written:
    """What one task wrote: where the chunks of an array are now, and which ones are empty."""

    path: str
    chunks: Mapping[str, Chunk]
    empty: Sequence[str]


@dataclass(frozen=True, slots=True)
class _Plan:
    """One source and where its blocks go: along each dimension the half-open spans in the target."""

    path: str
    source: Array
    spans: tuple[tuple[Span, ...], ...]
    chunks: tuple[int, ...]
    write_empty: bool  # chunks that hold nothing but the fill value

    def grid(self) -> tuple[Span, ...]:
        """The chunks that are written, half-open along each dimension."""
        return tuple(
            (axis[0][0] // max(size, 1), -(-axis[-1][1] // max(size, 1)))
            for axis, size in zip(self.spans, self.chunks, strict=True)
        )

    def tasks(self) -> Iterator[tuple[list[tuple[Span, ...]], list[Any]]]:
        """The places and the keys of neighbouring blocks that one task writes."""
        blocks = [(self.source.name, *block) for block in np.ndindex(self.source.numblocks)]
        spans = list(product(*self.spans))
        size = math.prod(max(stop - start for start, stop in axis) for axis in self.spans) * self.source.itemsize
        together = max(1, min(TASK_BYTES // max(1, size), len(blocks) // LEAST_TASKS))
        for first in range(0, len(blocks), together):
            yield spans[first : first + together], blocks[first : first + together]


class Workshop:
    """A fork that travels to the workers as bytes, and is opened once by each process.

    Attributes
    ----------
    token
        What tells it from every other one.
    """

    def __init__(self, token: str, packed: bytes) -> None:
        self.token = token
        self._packed = packed

    def __dask_tokenize__(self) -> str:
        return self.token

    def open(self) -> ForkSession:
        """The fork, shared by the tasks of this process."""
        with _lock:
            fork = _workshops.get(self.token)
            if fork is None:
                fork = _workshops[self.token] = pickle.loads(self._packed)
                while len(_workshops) > KNOWN_WORKSHOPS:
                    _workshops.popitem(last=False)
            return fork


_lock = threading.Lock()
_workshops: OrderedDict[str, ForkSession] = OrderedDict()


class _BlockStore(MemoryStore):
    """Keeps what is written, and reads everything else from the fork: a chunk that a block covers in part."""

    def __init__(self, base: IceliteStore) -> None:
        super().__init__()
        self._base = base

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """What was written under a key, else what the fork has."""
        if key in self._store_dict:
            return await super().get(key, prototype or default_buffer_prototype(), byte_range)
        return await self._base.get(key, prototype, byte_range)

    def get_sync(
        self, key: str, *, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """As `get`, for zarr's synchronous pipeline."""
        if key in self._store_dict:
            found: Buffer | None = super().get_sync(key, prototype=prototype, byte_range=byte_range)
            return found
        return self._base.get_sync(key, prototype=prototype, byte_range=byte_range)

    def chunks(self) -> dict[str, bytes]:
        """Key to encoded bytes of everything written."""
        return {key: value.to_bytes() for key, value in self._store_dict.items()}


def _write_blocks(
    workshop: Workshop,
    blocks: Sequence[np.ndarray[Any, Any]],
    *,
    path: str,
    spans: Sequence[tuple[Span, ...]],
    write_empty: bool,
) -> _Written:
    """One task: encode some blocks of an array, and put the bytes where the repository's bytes go."""
    fork = workshop.open()
    entry, info = fork.changes.nodes.lookup_array(path)
    store = _BlockStore(fork.store)
    array = zarr.open_array(store, path=path, mode="r+", zarr_format=entry.node.zarr_format)  # type: ignore[arg-type]
    array = array.with_config({"write_empty_chunks": write_empty})
    covered: set[str] = set()
    for span, block in zip(spans, blocks, strict=True):
        array[tuple(slice(start, stop) for start, stop in span) or ...] = block
        covered.update(_chunk_names(span, info))
    written: dict[str, bytes] = {}
    for key, data in store.chunks().items():
        chunk = info.keys.decode(key.removeprefix(f"{path}/"))
        if chunk is not None:
            written[chunk] = data
    return _Written(
        path, fork.changes.chunks.write_ahead(entry.node.node_id, written), sorted(covered - written.keys())
    )


def _take(session: Session, results: Iterable[_Written]) -> None:
    """Let a session refer to what the tasks wrote."""
    for written in results:
        node_id = session.changes.nodes.lookup_array(written.path)[0].node.node_id
        session.changes.chunks.set_many(node_id, written.chunks)
        if written.empty:
            session.changes.chunks.delete(node_id, written.empty)


def _chunk_names(span: tuple[Span, ...], info: ArrayInfo) -> Iterator[str]:
    """The chunks that a block covers."""
    chunks = info.chunks or ()
    axes = [
        range(start // size, -(-stop // size)) if size else range(0)
        for (start, stop), size in zip(span, chunks, strict=True)
    ]
    return map(chunk_name, product(*axes))


# -- what can be written -----------------------------------------------------------------------------------------


def _check_arguments(
    sources: Sequence[Any], targets: Sequence[Any], regions: Sequence[Any], options: Mapping[str, Any]
) -> Session:
    refused = [name for name in _UNSUPPORTED if name in options]
    if refused:
        raise _invalid(f"{', '.join(refused)} cannot be given: store_dask computes everything before it returns")
    if not sources or not len(sources) == len(targets) == len(regions):
        raise _invalid(f"{len(sources)} sources, {len(targets)} targets and {len(regions)} regions do not match")
    for source in sources:
        if not hasattr(source, "to_delayed") or not hasattr(source, "chunks"):
            raise _invalid(f"store_dask writes dask arrays, not {type(source).__name__}")
    stores = [getattr(target, "store", None) for target in targets]
    sessions = {id(store.session): store.session for store in stores if isinstance(store, IceliteStore)}
    if len(sessions) != 1 or not all(isinstance(store, IceliteStore) for store in stores):
        raise _invalid("the targets must be zarr arrays that were all opened from the store of one session")
    session: Session = next(iter(sessions.values()))
    session.check_writable()
    return session


def _plan(source: Array, target: zarr.Array[Any], region: Region) -> _Plan:
    """Where the blocks of a source go, checked."""
    path = check_path(target.path)
    session: Session = target.store.session  # type: ignore[attr-defined]
    info = session.changes.nodes.lookup_array(path)[1]
    if info.chunks is None:
        raise _invalid(f"array /{path} has no regular chunk grid")
    starts = _starts(path, source, info, region)
    spans = []
    for axis, (lengths, start, size, whole) in enumerate(
        zip(source.chunks, starts, info.chunks, info.shape, strict=True)
    ):
        edges = np.cumsum([start, *lengths]).tolist()
        inside = [edge for edge in edges[1:-1] if edge % max(size, 1)]
        if inside:
            raise _invalid(
                f"along dimension {axis} a block ends at element {inside[0]} of array /{path}, inside a chunk of"
                f" {size}: two tasks would write that chunk. Rechunk the source to multiples of {size}"
                + (f", the first block shorter by {start % size}" if start % size else "")
            )
        if edges[-1] > whole:
            raise _invalid(f"along dimension {axis} the source ends at {edges[-1]}, array /{path} at {whole}")
        spans.append(tuple(pairwise(edges)))
    return _Plan(path, source, tuple(spans), tuple(info.chunks), target.config.write_empty_chunks)


def _check_apart(plans: Sequence[_Plan]) -> None:
    """Refuse sources that write a chunk of the same array: one of them would be lost."""
    by_path: dict[str, list[tuple[Span, ...]]] = {}
    for plan in plans:
        grid = plan.grid()
        others = by_path.setdefault(plan.path, [])
        for other in others:
            if all(a < d and c < b for (a, b), (c, d) in zip(grid, other, strict=True)):
                raise _invalid(
                    f"two sources write to the same chunk of array /{plan.path}: chunks {other} and {grid} along each"
                    " dimension; give regions that begin and end between chunks, or write one after the other"
                )
        others.append(grid)


def _starts(path: str, source: Array, info: ArrayInfo, region: Region) -> list[int]:
    """The first element of the target along each dimension."""
    slices = (slice(None),) * len(info.shape) if region is None else region
    if source.ndim != len(info.shape) or len(slices) != len(info.shape) or any(map(math.isnan, source.shape)):
        raise _invalid(
            f"a source of shape {source.shape} in region {region} does not fit array /{path} of shape {info.shape}"
        )
    bounds = [part.indices(size) for part, size in zip(slices, info.shape, strict=True)]
    if any(step != 1 for _, _, step in bounds) or [stop - start for start, stop, _ in bounds] != list(source.shape):
        raise _invalid(
            f"a source of shape {source.shape} does not fill region {region} of array /{path} of shape {info.shape}"
        )
    return [start for start, _, _ in bounds]


def _invalid(message: str) -> InvalidInputError:
    return InvalidInputError(message, ErrorKind.INVALID_ARGUMENT)
