"""Files into a group that has steps already: compared with what is stored, given their places, written there.

Files behind what is stored are appended. For others the references behind them are renamed, and files that take the
place of others bring along the variables without the dimension that were in those.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import xarray as xr
from zarr.core.metadata.v3 import ArrayV3Metadata

from icelite.archive.extents import Steps, find_sharing
from icelite.archive.findings import Findings, Misfit
from icelite.archive.fit import Fitting, align_files, combine_files
from icelite.archive.holdings import Holdings, StoredVariables
from icelite.archive.inputs import name_of
from icelite.archive.labels import Span, find_values
from icelite.archive.layouts import as_virtual, fill_missing, fit_stored, replace_variables
from icelite.archive.placing import Placement, place_files
from icelite.archive.scan import ScannedFile
from icelite.archive.splice import find_starts, splice_steps
from icelite.archive.steps import GroupSteps, read_steps
from icelite.errors import ErrorKind, IceliteError, InvalidInputError
from icelite.session import Session
from icelite.virtualizarr.arrays import Fetch, chunk_shape, is_virtual, read_virtual
from icelite.virtualizarr.target import find_group
from icelite.virtualizarr.writing import to_icelite


@dataclass(slots=True)
class Written:
    """What one call wrote into its session.

    Attributes
    ----------
    placements
        The files with their places, in their order along the dimension.
    datasets
        What was written, one dataset for files that follow each other.
    cut
        As of `splice_steps`.
    older
        URLs of files that were left out because of others with the same steps.
    """

    placements: list[Placement] = field(default_factory=list)
    datasets: list[xr.Dataset] = field(default_factory=list)
    cut: dict[str, int] = field(default_factory=dict)
    older: set[str] = field(default_factory=set)


@dataclass(slots=True)
class Continuation:
    """One call's files, on their way into a group.

    Attributes
    ----------
    owners
        URL of a file that takes the place of stored steps to the URL of the file that has them.
    """

    session: Session
    group: str
    fitting: Fitting
    holdings: Holdings
    findings: Findings
    fetch: Fetch
    owners: Mapping[str, str] = field(default_factory=dict)
    dry_run: bool = False

    def run(self, scanned: Sequence[ScannedFile]) -> Written:
        """Compare, place and write; nothing is written in a dry run.

        Raises
        ------
        InvalidInputError, StorageError
            As `Findings.refuse`; what stands in the way of writing.
        """
        found = find_group(self.session.store, self.group)
        arrays = found.arrays if found is not None else {}
        self._check_dimension(arrays)
        stored = StoredVariables(self.session.store, self.group, arrays, self.holdings.recorded.hashes)
        files = self._compare(scanned, stored)
        labels = any(find_values(file.dataset, self.fitting.concat_dim) is not None for file in files)
        steps = read_steps(self.session, self.holdings, stored, self.fitting.concat_dim, labels=labels)
        while True:
            mark = len(self.findings.found)
            placed = self._place(files, steps)
            misfits = self._find_uneven(placed, steps)
            written = Written(placed)
            if not misfits:
                self.findings.refuse()
                if not placed or self.dry_run:
                    return written
                misfits = self._try(written, steps)
            if not misfits:
                return written
            del self.findings.found[mark:]
            bad = self.findings.add_misfits(misfits)
            files = [file for file in files if file.url not in bad]

    def _check_dimension(self, arrays: Mapping[str, ArrayV3Metadata]) -> None:
        dims = sorted({str(dim) for array in arrays.values() for dim in array.dimension_names or ()})
        if dims and self.fitting.concat_dim not in dims:
            raise InvalidInputError(
                f"no array of group {self.group!r} has a dimension {self.fitting.concat_dim!r}; they have"
                f" {', '.join(dims)}: pass one of them as concat_dim=, or choose another group=",
                ErrorKind.INVALID_DATASET,
            )

    # -- comparing and placing -------------------------------------------------------------------------------------

    def _compare(self, scanned: Sequence[ScannedFile], stored: StoredVariables) -> list[ScannedFile]:
        """The files that fit what is stored, as they can be written beside it."""
        dim = self.fitting.concat_dim
        files = []
        for file in scanned:
            if file.dataset.sizes.get(dim, 1):
                files.append(file)
            elif file.url in self.owners:
                self.findings.add("misfit", file.url, f"there is nothing along {dim!r} in it")
        for file in files[:1]:
            stacked = stored.find_stacked(file.dataset, dim)
            self.fitting = replace(self.fitting, stack=self.fitting.stack | stacked)
        models = {}
        if self.findings.policy.missing == "fill":
            growing = {name: array for name, array in stored.arrays.items() if dim in (array.dimension_names or ())}
            models = {name: as_virtual(array) for name, array in growing.items() if stored.is_virtual(name)}
        fitting = []
        for file in files:
            dataset = combine_files(align_files([file], self.fitting, self.fetch), self.fitting, self.fetch)
            dataset = fill_missing(fit_stored(dataset, stored.arrays, dim), models, dim)
            ready = replace(file, dataset=self._load_as_stored(dataset, stored))
            misfits = stored.find_misfits(ready, self.fitting, self.fetch)
            if not self.findings.add_misfits(misfits):
                fitting.append(ready)
        return fitting

    def _load_as_stored(self, dataset: xr.Dataset, stored: StoredVariables) -> xr.Dataset:
        """The dataset with the values of variables that are stored as values, in chunks of their own."""
        changes = {}
        for name, variable in dataset.variables.items():
            array = stored.arrays.get(str(name))
            if array is None or self.fitting.concat_dim not in variable.dims or not is_virtual(variable):
                continue
            if chunk_shape(variable.data.metadata) != chunk_shape(array) and not stored.is_virtual(str(name)):
                changes[name] = xr.conventions.decode_cf_variable(name, read_virtual(variable, self.fetch))
        return replace_variables(dataset, changes) if changes else dataset

    def _place(self, files: Sequence[ScannedFile], steps: GroupSteps) -> list[Placement]:
        own: dict[str, Steps] = {}
        placed = []
        for file in files:
            if file.url in self.owners:
                path = self.session.access.locate(self.owners[file.url]).path
                found = steps.find_steps(path, file)
                if found is None:
                    problem = (
                        "it is not certain which of the stored steps are its; take them out by their labels"
                        " (icelite.drop), and add it again"
                    )
                    self.findings.add("misfit", file.url, problem)
                    continue
                own[file.url] = found
            placed.append(file)
        placements = place_files(placed, steps.dim, steps.along(), self.findings, own)
        kept = []
        for placement in placements:
            if placement.role == "late" and self.findings.policy.late != "insert":
                self._note_late(placement, steps)
                continue
            owner = None if placement.replaced is None else self.owners.get(placement.replaced, placement.replaced)
            kept.append(replace(placement, replaced=owner))
        return kept

    def _note_late(self, placement: Placement, steps: GroupSteps) -> None:
        values, held = find_values(placement.file.dataset, steps.dim), steps.labels
        span = Span(placement.file.url, values[0], values[-1])
        problem = (
            f"comes late along {steps.dim!r}: {span} does not come after {Span('what is stored', held[0], held[-1])}"
        )
        self.findings.add("late", placement.file.url, problem)

    def _find_uneven(self, placed: Sequence[Placement], steps: GroupSteps) -> list[Misfit]:
        """Files whose references are no whole chunks where they go."""
        removed, inserted = _edits(placed, steps.dim)
        starts = find_starts(removed, inserted)
        end = steps.length + sum(count for _, count in inserted) - sum(stop - start for start, stop in removed)
        misfits = []
        for placement, start, (_, count) in zip(placed, starts, inserted, strict=True):
            for name, variable in placement.file.dataset.variables.items():
                if steps.dim not in variable.dims or not is_virtual(variable):
                    continue
                chunk = chunk_shape(variable.data.metadata)[variable.dims.index(steps.dim)]
                if not start % chunk and (not count % chunk or start + count == end):
                    continue
                what = (
                    f"it has {count} elements of {str(name)!r} along {steps.dim!r} in chunks of {chunk}, so its last"
                    " chunk is partly filled and nothing can follow it"
                    if not start % chunk
                    else f"its elements of {str(name)!r} come behind {start} that are in chunks of {chunk}, so the last"
                    " chunk before them is partly filled and nothing can follow it"
                )
                load = f"load the variable (loadable_variables=[..., {str(name)!r}]), or rewrite the files"
                misfits.append(Misfit(placement.file.url, f"{what}; {load}"))
        return misfits

    # -- writing ---------------------------------------------------------------------------------------------------

    def _try(self, written: Written, steps: GroupSteps) -> list[Misfit]:
        """Write the files; if that fails, which of them is at fault. Nothing is written then."""
        try:
            self._write(written, steps)
            return []
        except InvalidInputError as error:
            if error.kind != ErrorKind.INVALID_DATASET:
                raise
            self.session.discard_changes()
            misfits = self._find_unwritable(written.placements, steps, error)
            if not misfits:
                raise
            return misfits

    def _find_unwritable(
        self, placed: Sequence[Placement], steps: GroupSteps, failure: InvalidInputError
    ) -> list[Misfit]:
        if len(placed) == 1:
            return [Misfit(placed[0].file.url, failure.message)]
        misfits = []
        for placement in placed:
            try:
                self._write(Written([placement]), steps)
            except InvalidInputError as error:
                misfits.append(Misfit(placement.file.url, error.message))
            finally:
                self.session.discard_changes()
        return misfits

    def _write(self, written: Written, steps: GroupSteps) -> None:
        placed, dim = written.placements, steps.dim
        removed, inserted = _edits(placed, dim)
        is_append = all(placement.role == "new" and placement.at == steps.length for placement in placed)
        if not is_append:
            written.cut.update(splice_steps(self.session, self.group, steps.stored.arrays, dim, removed, inserted))
            self._write_shared(placed, steps)
        starts = find_starts(removed, inserted)
        at = 0
        while at < len(placed):
            end = at + 1
            while end < len(placed) and starts[end] == starts[end - 1] + inserted[end - 1][1]:
                end += 1
            files = [placement.file for placement in placed[at:end]]
            dataset = combine_files(files, self.fitting, self.fetch)
            dataset = fit_stored(dataset, steps.stored.arrays, dim).copy()
            dataset.attrs = {}  # those of the first file stay
            try:
                self._write_run(dataset, dim, None if is_append else starts[at])
            except IceliteError as error:
                error.message += f" (while {'appending' if is_append else 'writing'} {name_of(files[0].url)!r}"
                error.message += " and what follows it)" if len(files) > 1 else ")"
                raise
            written.datasets.append(dataset)
            at = end

    def _write_run(self, dataset: xr.Dataset, dim: str, start: int | None) -> None:
        store, group = self.session.store, self.group or None
        if start is None:
            to_icelite(dataset, store, group=group, append_dim=dim)
            return
        others = [name for name, variable in dataset.variables.items() if dim not in variable.dims]
        along = dataset.drop_vars(others)
        along = along.drop_indexes([name for name in along.indexes if name in along.dims])  # they are written too
        along.encoding = dataset.encoding
        to_icelite(along, store, group=group, region={dim: slice(start, start + dataset.sizes[dim])})

    def _write_shared(self, placed: Sequence[Placement], steps: GroupSteps) -> None:
        """Let variables without the dimension that are in a file that goes be in the one that takes its place."""
        for placement in placed:
            if placement.replaced is None:
                continue
            path = self.session.access.locate(placement.replaced).path
            names = find_sharing(self.session, self.group, steps.stored.arrays, steps.dim, {path})
            found = placement.file.dataset
            shared = found.drop_vars([name for name in found.variables if name not in names])
            if shared.variables:
                shared.encoding, shared.attrs = found.encoding, {}
                to_icelite(shared, self.session.store, group=self.group or None, mode="a")


def _edits(placed: Sequence[Placement], dim: str) -> tuple[list[Steps], list[tuple[int, int]]]:
    """What is removed and inserted, as `splice_steps` takes it."""
    removed = [placement.removed for placement in placed if placement.removed is not None]
    return removed, [(placement.at, placement.file.dataset.sizes[dim]) for placement in placed]
