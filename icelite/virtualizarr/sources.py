"""The files that one call of `to_icelite` references: each is checked, stamped and asked for its types once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

import xarray as xr

from icelite.errors import ErrorKind, InvalidInputError, StorageError
from icelite.formats.attributes import (
    PACKING_DTYPES,
    Named,
    describe_dtypes,
    find_dtypes,
    is_certain,
    packing_of,
)
from icelite.formats.inspection import inspect_source
from icelite.formats.parsed import INSPECTED, FileInspection
from icelite.store.references import SHOWN
from icelite.types import SourceStamp
from icelite.virtual.stamps import combine, contradicts, is_changed

if TYPE_CHECKING:
    from icelite.virtual import VirtualAccess


SOURCES_KEY = "icelite_sources"  # in a dataset's encoding: URL to what it looked like when it was parsed


def parsed_stamps(datasets: Iterable[xr.Dataset]) -> dict[str, SourceStamp]:
    """What icelite's own parsers noted of the files they parsed.

    Raises
    ------
    InvalidInputError
        ``invalid-dataset`` when ``encoding["icelite_sources"]`` is not as they write it.
    StorageError
        ``virtual-chunk-modified`` when two parts of the data saw different states of a file.
    """
    stamps: dict[str, SourceStamp] = {}
    for dataset in datasets:
        noted = dataset.encoding.get(SOURCES_KEY, {})
        try:
            found = {str(url): _stamp_of(stamp) for url, stamp in noted.items()}
        except (AttributeError, TypeError, ValueError) as error:
            raise InvalidInputError(
                f"encoding {SOURCES_KEY!r} is {noted!r}; expected URL to a SourceStamp or (size, mtime in ns, ETag)",
                ErrorKind.INVALID_DATASET,
            ) from error
        changed = [url for url, stamp in found.items() if contradicts(stamps.get(url, stamp), stamp, resolution=1)]
        if changed:
            raise _changed(changed, "while its parts were parsed")
        stamps |= {url: combine(stamp, stamps.get(url, stamp)) for url, stamp in found.items()}
    return stamps


def _stamp_of(noted: Any) -> SourceStamp:
    if isinstance(noted, SourceStamp):
        return noted
    size, modified_at, etag = noted
    return SourceStamp(size=size, modified_at=modified_at, etag=etag)


def _changed(urls: list[str], when: str) -> StorageError:
    return StorageError(
        f"{len(urls)} files changed {when}, so their references may be wrong: {', '.join(urls[:SHOWN])};"
        " open them again; nothing was written",
        ErrorKind.VIRTUAL_CHUNK_MODIFIED,
    )


@dataclass(slots=True)
class StampedSources:
    """The files that one call references.

    Attributes
    ----------
    last_updated_at
        Given instead of stamps: no source may be modified after it.
    parsed
        What files looked like when they were parsed, as far as that is known.
    stamps
        What is recorded of each file: as it was parsed, or as it is now.
    unread
        Why a file could not be asked for the types of packing attributes, by URL.
    """

    access: VirtualAccess
    validate_containers: bool
    last_updated_at: datetime | None
    parsed: Mapping[str, SourceStamp] = field(default_factory=dict)
    stamps: dict[str, SourceStamp] = field(default_factory=dict)
    unread: dict[str, str] = field(default_factory=dict)
    _admitted: set[str] = field(default_factory=set)
    _local: set[str] = field(default_factory=set)
    _inspections: dict[str, FileInspection] = field(default_factory=dict)
    _packings: dict[str, dict[str, str]] = field(default_factory=dict)

    def admit(self, urls: Iterable[str], path: str) -> None:
        """Check the files that the array at ``path`` names.

        Raises
        ------
        InvalidInputError
            As `VirtualAccess.locate` and `VirtualAccess.stamps`, naming the array and every file that cannot be
            referenced.
        StorageError
            ``virtual-chunk-modified`` for files that changed since they were parsed.
        """
        new = sorted(set(urls) - self._admitted)
        faults: list[InvalidInputError] = []
        for url in new:
            try:
                location = self.access.locate(url, validate_container=self.validate_containers)
                if self.access.is_local(location):
                    self._local.add(url)
            except InvalidInputError as error:
                faults.append(error)
        if faults:
            shown = "; ".join(error.message for error in faults[:SHOWN])
            count = f"{len(faults)} files cannot be referenced: " if len(faults) > 1 else ""
            raise InvalidInputError(f"variable {path!r}: {count}{shown}", faults[0].kind)
        if self.last_updated_at is None:
            self._stamp(new, path)
        self._admitted.update(new)

    def _stamp(self, urls: list[str], path: str) -> None:
        try:
            self.stamps.update(self.access.stamps(urls))
        except InvalidInputError as error:
            raise InvalidInputError(f"variable {path!r}: {error.message}", error.kind) from error
        parsed = {url: self.parsed[url] for url in urls if url in self.parsed}
        changed = [url for url, stamp in parsed.items() if not self._agree(url, stamp)]
        if changed:
            raise _changed(changed, "since they were parsed")
        self.stamps |= {url: combine(stamp, self.stamps[url]) for url, stamp in parsed.items()}

    def _agree(self, url: str, parsed: SourceStamp) -> bool:
        """Whether a file still looks as it did; one on S3 that may not be asked is taken to."""
        now = self.stamps[url]
        if url in self._local and now.size is None:  # it is not there any more
            return parsed.size is None
        return not contradicts(now, parsed, resolution=1)

    def is_local(self, url: str) -> bool:
        """Whether an admitted file is on this machine."""
        return url in self._local

    def check_unchanged(self, urls: Iterable[str]) -> None:
        """Check that local files, from which values were read, look as they did before.

        Raises
        ------
        StorageError
            ``virtual-chunk-modified``.
        """
        read = [url for url in urls if url in self._local and url in self.stamps]
        now = self.access.stamps(read)
        changed = [url for url in read if is_changed(now[url], self.stamps[url], resolution=1)]
        if changed:
            raise _changed(changed, "while they were read")

    def find_packing_dtypes(
        self, name: str, variable: xr.Variable, urls: Iterable[str], *, renamed: bool
    ) -> str | None:
        """What `PACKING_DTYPES` has to say of a variable from these files.

        Parameters
        ----------
        renamed
            As for `find_dtypes`.

        Returns
        -------
        str or None
            '' when there is nothing to record, None when that is unknown.
        """
        if PACKING_DTYPES in variable.attrs:
            return str(variable.attrs[PACKING_DTYPES])
        packing = packing_of(variable)
        if is_certain(packing):
            return describe_dtypes(packing)
        packed = [named for url in urls for named in self._lookup_packed(url)]
        return find_dtypes(name, packing, packed, renamed=renamed)

    def _lookup_packed(self, url: str) -> Iterable[Named]:
        """The packed variables of a file; none, and noted in ``unread``, when it cannot be read."""
        if url in self.unread:
            return ()
        try:
            return self.inspect(url, chunks=False).packed
        except (InvalidInputError, StorageError, ImportError) as error:
            if not isinstance(error, StorageError) or error.kind != ErrorKind.UNREADABLE_SOURCE:
                self.unread[url] = str(error)  # else of another format, or not whole; what its parser read stays
            return ()

    def inspect(self, url: str, *, chunks: bool) -> FileInspection:
        """What a file holds that references do not say: as its parser found, or looked at once.

        Parameters
        ----------
        chunks
            Whether every chunk must have been looked at.

        Raises
        ------
        InvalidInputError, StorageError, ImportError
            As `inspect_source`.
        """
        found = self._inspections.get(url)
        if found is None or (chunks and not found.whole):
            stamp = self.stamps.get(url) or self.access.stamp(url)
            found = self._inspections[url] = inspect_source(self.access, url, stamp, chunks=chunks)
        return found

    def check_packing(self, path: str, urls: Iterable[str]) -> None:
        """Check that files that were inspected pack the variable of an array alike; attributes are one file's.

        Raises
        ------
        InvalidInputError
            ``invalid-dataset``, naming two files and how each packs it.
        """
        name = path.rpartition("/")[2]
        seen: dict[str, str] = {}
        for url in urls:
            text = self._describe_packings(url).get(name)
            if text is not None:
                seen.setdefault(text, url)
        if len(seen) > 1:
            (one, first), (other, second) = list(seen.items())[:2]
            raise InvalidInputError(
                f"variable {path!r} has {one} in {first!r} and {other} in {second!r}, so its numbers mean different"
                f" things; load it from all of them (loadable_variables=[..., {name!r}])",
                ErrorKind.INVALID_DATASET,
            )

    def _describe_packings(self, url: str) -> dict[str, str]:
        """How each variable of an inspected file is packed, by its name without groups."""
        if url not in self._packings:
            found: dict[str, set[str]] = {}
            for name, packing in self._inspections[url].packed if url in self._inspections else ():
                text = ", ".join(f"{key} {value}" for key, value in packing.items())
                found.setdefault(name, set()).add(text or "no packing")
            self._packings[url] = {name: " or ".join(sorted(texts)) for name, texts in found.items()}
        return self._packings[url]

    def note(self, datasets: Iterable[xr.Dataset]) -> None:
        """Take over what icelite's own parsers found in the files of some datasets."""
        for dataset in datasets:
            noted: object = dataset.encoding.get(INSPECTED, {})
            if isinstance(noted, Mapping):
                self._inspections |= {url: found for url, found in noted.items() if isinstance(found, FileInspection)}
