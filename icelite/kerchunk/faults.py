"""The error for reference sets that cannot be used: it lists what is wrong, and says that nothing was written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from icelite.errors import ErrorKind, IceliteError, InvalidInputError

SHOWN = 5  # faults that a message lists


def malformed(origin: str, problem: str) -> InvalidInputError:
    """The error for something that is no reference file."""
    return InvalidInputError(f"{origin} {problem}", ErrorKind.INVALID_REFERENCES)


def rejected(
    origin: str, faults: Sequence[str], count: int | None = None, kind: ErrorKind = ErrorKind.INVALID_REFERENCES
) -> InvalidInputError:
    """The error for references at fault, of which ``count`` there are in all."""
    total = len(faults) if count is None else count
    shown = "; ".join(faults[:SHOWN])
    more = f"; and {total - SHOWN} more" if total > SHOWN else ""
    return InvalidInputError(f"{origin}: {total} faults, nothing was written: {shown}{more}", kind)


def common_kind(errors: Iterable[IceliteError], otherwise: ErrorKind) -> ErrorKind:
    """The kind of all these errors, or ``otherwise`` when they differ."""
    kinds = {error.kind for error in errors}
    return kinds.pop() if len(kinds) == 1 else otherwise
