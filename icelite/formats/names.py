"""Names of a file's variables and groups as a Zarr store can hold them: `stored_name`."""

from __future__ import annotations

from collections.abc import Collection

from icelite.errors import InvalidInputError
from icelite.keys import CONSOLIDATED, DOCUMENTS, check_path

_RESERVED = {*DOCUMENTS, CONSOLIDATED}


def stored_name(name: str, taken: Collection[str]) -> str:
    """The name, with what Zarr's keys cannot hold written as in a URL: ``zarr.json`` becomes ``zarr%2Ejson``.

    Parameters
    ----------
    taken
        Names that it must not become.
    """
    plain = "".join(letter if letter.isprintable() and letter not in "\\/" else _encode(letter) for letter in name)
    if plain in _RESERVED or not plain.strip("."):
        plain = plain.replace(".", "%2E")
    try:
        check_path(plain)
    except InvalidInputError:
        plain = "".join(letter if letter.isascii() and letter.isalnum() else _encode(letter) for letter in name)
    while plain in taken:
        plain += "_"
    return plain


def _encode(letter: str) -> str:
    data = letter.encode("utf-8", "surrogateescape")
    return "".join(f"%{byte:02X}" for byte in data)
