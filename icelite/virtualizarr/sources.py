"""The files that one call of `to_icelite` references: each is checked, stamped and asked for its types once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

import xarray as xr

from icelite.errors import InvalidInputError, StorageError
from icelite.virtualizarr.originals import read_originals
from icelite.virtualizarr.packing import (
    PACKING_DTYPES,
    Named,
    describe_dtypes,
    find_dtypes,
    is_certain,
    packing_of,
)

if TYPE_CHECKING:
    from icelite.types import SourceStamp
    from icelite.virtual import VirtualAccess


@dataclass(slots=True)
class Sources:
    """The files that one call references.

    Attributes
    ----------
    last_updated_at
        Given instead of stamps: no source may be modified after it.
    unread
        Why a file could not be asked for the types of packing attributes, by URL.
    """

    access: VirtualAccess
    validate_containers: bool
    last_updated_at: datetime | None
    stamps: dict[str, SourceStamp] = field(default_factory=dict)
    unread: dict[str, str] = field(default_factory=dict)
    _admitted: set[str] = field(default_factory=set)
    _originals: dict[str, list[Named]] = field(default_factory=dict)

    def admit(self, urls: set[str], path: str) -> None:
        """Check the files that the array at ``path`` names.

        Raises
        ------
        InvalidInputError
            As `VirtualAccess.locate` and `VirtualAccess.stamps`, naming the array too.
        """
        new = sorted(urls - self._admitted)
        try:
            for url in new:
                self.access.locate(url, validate_container=self.validate_containers)
            if self.last_updated_at is None:
                self.stamps.update(self.access.stamps(new))
        except InvalidInputError as error:
            raise InvalidInputError(f"variable {path!r}: {error.message}", error.kind) from error
        self._admitted.update(new)

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
        originals = [named for url in urls for named in self._lookup_originals(url)]
        return find_dtypes(name, packing, originals, renamed=renamed)

    def _lookup_originals(self, url: str) -> list[Named]:
        """The packed variables of a file; none, and noted in ``unread``, when it cannot be read."""
        if url not in self._originals:
            self._originals[url] = []
            try:
                self._originals[url] = read_originals(self.access, url, self.stamps.get(url))
            except (InvalidInputError, StorageError, ImportError) as error:
                self.unread[url] = str(error)
        return self._originals[url]
