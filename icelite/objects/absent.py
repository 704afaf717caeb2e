"""What stands in for objects that cannot be written: there are none, they are not allowed, or only read."""

from __future__ import annotations

from collections.abc import Sequence

from icelite.errors import ErrorKind, FormatError, InvalidInputError
from icelite.objects.keys import virtual_location
from icelite.types import Location


class NoObjects:
    """Of a repository that keeps its chunks in the catalog, or one whose objects the caller has not allowed.

    Parameters
    ----------
    root
        What the catalog says: the URL that the caller would have to allow, or None.
    """

    writes = False
    is_remote = False

    def __init__(self, root: str | None = None) -> None:
        self.root = root

    def location(self, location: Location, chunk: str) -> Location:
        """Refuse to read an object.

        Raises
        ------
        InvalidInputError, FormatError
            ``unauthorized-objects``, with the line that allows it; ``corrupt`` when the catalog does not say where.
        """
        if self.root is None:
            raise FormatError(
                f"chunk {chunk} is in a native object, and the catalog does not say where those are", ErrorKind.CORRUPT
            )
        raise InvalidInputError(
            f"chunk {chunk} is in an object under {self.root}, outside the catalog's folder; to allow it, open the"
            f" repository with objects={self.root!r}, or with a StorageConfig that holds the credentials",
            ErrorKind.UNAUTHORIZED_OBJECTS,
        )

    def put(self, bodies: Sequence[bytes]) -> list[str]:
        """Refuse to write an object; raises as `location`."""
        raise InvalidInputError(
            f"chunks go into objects under {self.root}, outside the catalog's folder; to allow it, open the"
            f" repository with objects={self.root!r}, or with a StorageConfig that holds the credentials",
            ErrorKind.UNAUTHORIZED_OBJECTS,
        )


class ReadOnlyObjects(NoObjects):
    """The objects of a repository on a web server, beside its catalog."""

    is_remote = True

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self._root = root

    def location(self, location: Location, chunk: str) -> Location:
        """See `Objects.location`."""
        return virtual_location(location, self._root)
