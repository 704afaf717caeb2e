"""`drop`: files or single steps taken out of a group; the references behind them are renamed, no data is written."""

from __future__ import annotations

import datetime
import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
import xarray as xr
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from icelite.archive.extents import Steps, find_extents, find_sharing, join_path
from icelite.archive.holdings import StoredVariables, find_holdings
from icelite.archive.ingestion import commit_record
from icelite.archive.inputs import name_of
from icelite.archive.labels import describe_range
from icelite.archive.records import Recorded
from icelite.archive.splice import splice_steps
from icelite.archive.steps import GroupSteps, read_steps
from icelite.archive.summary import VirtualizeSummary, count_files
from icelite.archive.updating import url_of
from icelite.archive.virtualize import Access, opened
from icelite.config import RepositoryConfig
from icelite.errors import ErrorKind, InvalidInputError, NodeNotFoundError, NotFoundError, StorageError
from icelite.keys import check_path
from icelite.repository import Repository
from icelite.session import Session
from icelite.storage import StorageConfig
from icelite.types import SourceStamp
from icelite.virtualizarr.target import find_group

Droppable: TypeAlias = Any  # a path or URL, a label, or a slice of labels


def drop(
    repository: str | os.PathLike[str] | StorageConfig | Repository,
    files_or_labels: Droppable | Iterable[Droppable],
    *,
    concat_dim: str | None = None,
    group: str | None = None,
    branch: str = "main",
    message: str | None = None,
    dry_run: bool = False,
    config: RepositoryConfig | None = None,
    authorize_virtual_chunk_access: Access | None = None,
) -> VirtualizeSummary:
    """Take files or steps out of a group, in one snapshot.

    A file that was taken out stays out when `icelite.virtualize` or `icelite.update` meets it again, until it changes
    or ``on_dropped="insert"`` asks for it. It need not be there any more. What all files share and the group has in
    that file, such as coordinates without the dimension, is copied into the catalog.

    >>> icelite.drop("ocean.icelite", "2024-08-17")  # doctest: +SKIP
    <icelite.VirtualizeSummary snapshot_id='7BYJR5ABEH9QZ7TPN8KG' added=0, known=0, broken=0, references=0, copied=0>

    Parameters
    ----------
    files_or_labels
        One or several: a path or URL of a file that the group has; a value of the dimension's coordinate, of times
        also as text (``"2024-08-17"``, or ``"2024-08"`` for all of a month); a slice of values, both ends included.
    concat_dim
        The dimension; by default the one that the group was made with.
    repository, group, branch, message, dry_run, config
        As for `icelite.update`, and ``authorize_virtual_chunk_access`` too.

    Raises
    ------
    NotFoundError
        ``location-not-found``, ``label-not-found``: the group has no such file, or no such label.
    InvalidInputError
        ``invalid-argument``: the dimension is not known, or nothing would be left; ``invalid-dataset``: it is not
        certain which steps are those of a file, or too much would have to be copied.
    NodeNotFoundError, RepositoryNotFoundError, StorageError, ConflictError
        ``node-not-found``: the group holds nothing; and as ``update``.
    """
    with opened(repository, config, authorize_virtual_chunk_access, False) as found:
        dropping = _Dropping(found, found.writable_session(branch), check_path(group or ""), dry_run)
        return dropping.run(_listed(files_or_labels), concat_dim, message)


def _listed(given: Any) -> list[Any]:
    is_several = isinstance(given, list | tuple | set | frozenset | np.ndarray) or hasattr(given, "__next__")
    listed = list(given) if is_several else [given]
    if not listed:
        raise InvalidInputError("there is nothing to drop: files_or_labels is empty", ErrorKind.INVALID_ARGUMENT)
    return listed


@dataclass(slots=True)
class _Dropping:
    """One call of `drop`."""

    repository: Repository
    session: Session
    group: str
    dry_run: bool
    dim: str = ""
    steps: GroupSteps = field(init=False)
    index: Any = None  # the labels, as pandas or xarray looks them up

    def run(self, asked: Sequence[Any], concat_dim: str | None, message: str | None) -> VirtualizeSummary:
        holdings = find_holdings(self.repository, self.session, self.group)
        found = find_group(self.session.store, self.group)
        if found is None or not found.arrays:
            raise NodeNotFoundError(f"group {self.group!r} holds no array", ErrorKind.NODE_NOT_FOUND)
        self.dim = concat_dim or holdings.recorded.making.get("concat_dim") or ""
        if not any(self.dim in (array.dimension_names or ()) for array in found.arrays.values()):
            dims = sorted({name for array in found.arrays.values() for name in array.dimension_names or () if name})
            raise InvalidInputError(
                f"group {self.group!r} has no dimension {self.dim!r}; pass one of {', '.join(dims)} as concat_dim=",
                ErrorKind.INVALID_ARGUMENT,
            )
        stored = StoredVariables(self.session.store, self.group, found.arrays)
        self.steps = read_steps(self.session, holdings, stored, self.dim, labels=False)
        kept = np.ones(self.steps.length, bool)
        for item in asked:
            kept[self._find(item)] = False
        if not kept.any():
            raise InvalidInputError(
                f"nothing of group {self.group!r} would be left along {self.dim!r}: delete the group instead",
                ErrorKind.INVALID_ARGUMENT,
            )
        return self._write(kept, message)

    # -- what is meant ---------------------------------------------------------------------------------------------

    def _find(self, item: Any) -> slice | Any:
        """The steps that one thing to drop means: a slice, or positions."""
        if isinstance(item, os.PathLike):
            steps = self._find_file(os.fspath(item))
            if steps is None:
                raise NotFoundError(
                    f"group {self.group!r} holds nothing of {os.fspath(item)!r}", ErrorKind.LOCATION_NOT_FOUND
                )
            return slice(*steps)
        if isinstance(item, str):
            steps = self._find_file(item)
            if steps is not None:
                return slice(*steps)
        return self._find_label(item)

    def _find_file(self, text: str) -> Steps | None:
        """The steps of a file; None where the group does not have it."""
        url = url_of(text)
        try:
            path = self.session.access.locate(url, validate_container=False).path
        except InvalidInputError:  # a label that is no path
            return None
        holdings = self.steps.holdings
        if path not in holdings.referenced and path not in holdings.recorded.others:
            return None
        if path not in self.steps.extents or not self.steps.is_certain(path):
            raise InvalidInputError(
                f"it is not certain which steps along {self.dim!r} are those of {name_of(url)!r}: take them out by"
                " their labels",
                ErrorKind.INVALID_DATASET,
            )
        return self.steps.extents[path]

    def _find_label(self, label: Any) -> Any:
        if self.index is None:
            variable = self.steps.stored.open(self.dim) if self.dim in self.steps.stored.arrays else None
            if variable is None:
                raise self._no_such(label, f"there is no coordinate {self.dim!r}")
            self.index = xr.Dataset(coords={self.dim: variable.load()}).indexes[self.dim]
        try:
            if isinstance(label, slice):
                return self.index.slice_indexer(self._as_label(label.start), self._as_label(label.stop), label.step)
            found = self.index.get_loc(self._as_label(label))
        except (KeyError, TypeError, ValueError) as error:
            raise self._no_such(label, f"they are {self._described()}") from error
        found = slice(found, found + 1) if isinstance(found, int | np.integer) else found
        if isinstance(found, slice) and found.start == found.stop:
            raise self._no_such(label, f"they are {self._described()}")
        return found

    def _as_label(self, label: Any) -> Any:
        """A label as the index looks it up: a date as text, and text as a number among numbers."""
        if isinstance(label, datetime.date) and not isinstance(label, datetime.datetime):
            return label.isoformat()
        return float(label) if isinstance(label, str) and self.index.dtype.kind in "iuf" else label

    def _described(self) -> str:
        return describe_range(*self.index.values[[0, -1]]) if len(self.index) else "none"

    def _no_such(self, label: Any, why: str) -> InvalidInputError:
        return InvalidInputError(
            f"{label!r} is neither a file of group {self.group!r} nor one of its labels along {self.dim!r}: {why}",
            ErrorKind.INVALID_ARGUMENT,
        )

    # -- taking it out ---------------------------------------------------------------------------------------------

    def _write(self, kept: Any, message: str | None) -> VirtualizeSummary:
        extents, holdings = self.steps.extents, self.steps.holdings
        gone = [path for path, (start, stop) in extents.items() if not kept[start:stop].any()]
        gone.sort(key=lambda path: extents[path])
        edges = np.flatnonzero(np.diff(np.concatenate([[True], kept, [True]]).astype(np.int8))).tolist()
        removed = list(zip(edges[::2], edges[1::2], strict=True))
        count = int((~kept).sum())
        urls = [self.session.access.url(holdings.referenced[path][0]) for path in gone]
        summary = VirtualizeSummary(None, dropped=urls, taken_out=count, dry_run=self.dry_run)
        if self.dry_run:
            return summary
        copied = self._copy_shared(set(gone))
        arrays = self.steps.stored.arrays
        cut = splice_steps(self.session, self.group, arrays, self.dim, removed, [])
        recorded = self._record(kept, set(gone))
        record = {
            "group": self.group,
            "concat_dim": self.dim,
            "taken_out": {"files": [name_of(url) for url in urls], "steps": count},
            **recorded.to_json(holdings.recorded),
        }
        snapshot_id = commit_record(
            self.session, message or self._describe(urls, count), record, self.group, "steps were taken out"
        )
        return replace(summary, snapshot_id=snapshot_id, cut=cut, copied=copied)

    def _describe(self, urls: Sequence[str], count: int) -> str:
        """The commit message."""
        where = f" of {self.group}" if self.group else ""
        if not urls:
            return f"Drop {count} {'step' if count == 1 else 'steps'}{where} along {self.dim}"
        names = name_of(urls[0]) if len(urls) == 1 else f"{name_of(urls[0])} … {name_of(urls[-1])}"
        return f"Drop {count_files(len(urls))}{where} along {self.dim} ({names})"

    def _copy_shared(self, gone: set[str]) -> int:
        """Copy what the group has for all files in one that goes; the number of variables."""
        session, arrays = self.session, self.steps.stored.arrays
        copied = 0
        for name in find_sharing(session, self.group, arrays, self.dim, gone):
            path = join_path(self.group, name)
            entry, _ = session.changes.nodes.lookup_array(path)
            chunks = [chunk for block in session.changes.chunks.columns(entry.node.node_id) for chunk in block.chunks]
            try:
                for chunk in chunks:
                    position = tuple(map(int, chunk.split("/"))) if chunk else ()
                    key = f"{path}/{arrays[name].encode_chunk_key(position)}"
                    data = sync(session.store.get(key, default_buffer_prototype()))
                    if data is not None:
                        sync(session.store.set(key, data))
                copied += 1
            except StorageError as error:
                warnings.warn(
                    f"variable {path!r} is in a file that is taken out, and could not be copied: {error.message}",
                    stacklevel=5,
                )
        return copied

    def _record(self, kept: Any, gone: set[str]) -> Recorded:
        """What a later call has to know, with the steps of each file as they are now."""
        before, arrays = self.steps.holdings.recorded, find_group(self.session.store, self.group)
        shown = find_extents(self.session, self.group, arrays.arrays if arrays is not None else {}, self.dim)
        ends = np.concatenate([[0], np.cumsum(kept)])
        margins, others = {}, {}
        for path, (start, stop) in self.steps.extents.items():
            now = int(ends[start]), int(ends[stop])
            if path in gone or shown.get(path) == now:
                continue
            if path in shown:
                margins[path] = shown[path][0] - now[0], now[1] - now[0]
            else:  # what is left of it was copied
                others[path] = self._stamp(path)
        dropped = {path: self._stamp(path) for path in gone}
        return replace(
            before, others={**before.others, **others}, dropped={**before.dropped, **dropped}, margins=margins
        )

    def _stamp(self, path: str) -> SourceStamp:
        return self.steps.holdings.stamps(path)[0]
