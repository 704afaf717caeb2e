"""The values of a reference file: metadata, checked as one hierarchy of groups and arrays, and inline bytes.

Every error for values that cannot be used is made here; it lists what is wrong, and says that nothing was written.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from numcodecs.registry import codec_registry, entries

from icelite.errors import ErrorKind, IceliteError, InvalidInputError, shown
from icelite.keys import CONSOLIDATED, DOCUMENTS, ancestors, check_path
from icelite.metadata import ArrayInfo, array_info, check_document, parse_document

Documents: TypeAlias = dict[str, dict[str, str]]  # by node path, by document name

GROUP_DOCUMENTS = {
    2: (".zgroup", '{"zarr_format":2}'),
    3: ("zarr.json", '{"zarr_format":3,"node_type":"group","attributes":{}}'),
}

BASE64 = "base64:"
SHOWN = 5  # faults that a message lists


def malformed(origin: str, problem: str) -> InvalidInputError:
    """The error for something that is no reference file."""
    return InvalidInputError(f"{origin} {problem}", ErrorKind.INVALID_REFERENCES)


def rejected(
    origin: str, faults: Sequence[str], count: int | None = None, kind: ErrorKind = ErrorKind.INVALID_REFERENCES
) -> InvalidInputError:
    """The error for references at fault, of which ``count`` there are in all."""
    total = len(faults) if count is None else count
    listed = "; ".join(faults[:SHOWN])
    more = f"; and {total - SHOWN} more" if total > SHOWN else ""
    return InvalidInputError(f"{origin}: {total} faults, nothing was written: {listed}{more}", kind)


def common_kind(errors: Iterable[IceliteError], otherwise: ErrorKind) -> ErrorKind:
    """The kind of all these errors, or ``otherwise`` when they differ."""
    kinds = {error.kind for error in errors}
    return kinds.pop() if len(kinds) == 1 else otherwise


def inline_bytes(value: object) -> bytes:
    """The bytes that a reference file holds itself: text, ``base64:`` text, or a JSON object.

    Raises
    ------
    ValueError
        For another type, or bad base64.
    """
    if isinstance(value, dict):
        return _json(value).encode()
    if not isinstance(value, str | bytes):
        raise ValueError(f"it is a {type(value).__name__}, not text")
    data = value.encode() if isinstance(value, str) else value
    if not data.startswith(BASE64.encode()):
        return data
    try:
        return base64.b64decode(data[len(BASE64) :], validate=True)
    except binascii.Error as error:
        raise ValueError(f"bad base64: {error}") from error


def _json(value: dict[Any, Any]) -> str:
    try:
        return json.dumps(value)
    except (TypeError, RecursionError) as error:  # of a dict that is not from JSON
        raise ValueError(f"no JSON object: {error}") from error


def inline_text(data: bytes) -> str:
    """Bytes as kerchunk writes them into JSON: as text where they are UTF-8, else in base64."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = BASE64
    return BASE64 + base64.b64encode(data).decode() if text.startswith(BASE64) else text


def inline_raw(data: bytes) -> bytes:
    """Bytes as a row holds them; fsspec decodes those that look like base64."""
    return BASE64.encode() + base64.b64encode(data) if data.startswith(BASE64.encode()) else data


# -- metadata ----------------------------------------------------------------------------------------------------


def array_infos(documents: Documents) -> dict[str, ArrayInfo]:
    """The arrays among nodes, by path."""
    infos = {path: array_info(path, texts) for path, texts in documents.items()}
    return {path: info for path, info in infos.items() if info is not None}


def read_documents(references: Mapping[str, Any], origin: str) -> Documents:
    """The metadata documents among the entries, checked as a hierarchy; groups that nobody described are added."""
    documents: Documents = {}
    names = tuple(DOCUMENTS)
    described = {key: references[key] for key in references if key.endswith(names)}
    for key, value in (_consolidated(references, origin) | described).items():
        path, _, name = key.rpartition("/")
        if name in DOCUMENTS:
            documents.setdefault(path, {})[name] = _document(key, value, origin)
    if not documents:
        raise malformed(origin, "describes no Zarr group or array: it has no .zgroup, .zarray or zarr.json")
    try:
        return _with_parents(documents)
    except IceliteError as error:
        raise InvalidInputError(f"{origin}: {error.message}", error.kind) from error


def _consolidated(references: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """The documents that only Zarr v2's copy of all metadata has; those beside it are the original."""
    if CONSOLIDATED not in references:
        return {}
    content = json.loads(_document(CONSOLIDATED, references[CONSOLIDATED], origin))
    metadata = content.get("metadata") if isinstance(content, dict) else None
    if not isinstance(metadata, dict):
        raise malformed(origin, f"has a {CONSOLIDATED} without 'metadata'")
    return {key: value for key, value in metadata.items() if key not in references}


def _document(key: str, value: Any, origin: str) -> str:
    if isinstance(value, list | tuple):
        raise malformed(
            origin, f"refers for the metadata {shown(key)} to another file, {shown(value)}; put the text in its place"
        )
    try:
        text = inline_bytes(value).decode()
        json.loads(text)
    except (ValueError, RecursionError) as error:
        raise malformed(origin, f"has metadata under {shown(key)} that is not JSON: {error}") from error
    return text


def _with_parents(documents: Documents) -> Documents:
    complete: Documents = {}
    for path, texts in documents.items():
        _check_node(path, texts)
    for path, texts in documents.items():
        format_ = DOCUMENTS[next(iter(texts))]
        for above, _ in ancestors(path) if path else ():
            if above in documents and array_info(above, documents[above]) is not None:
                raise malformed(f"/{path}", f"is inside the array /{above}; an array has no nodes below it")
            complete.setdefault(above, _described(documents.get(above, {}), format_))
        complete[path] = _described(texts, format_)
    return complete


def _described(texts: dict[str, str], format_: int) -> dict[str, str]:
    """A node's documents; those of a group when there is none that says what it is."""
    name, text = GROUP_DOCUMENTS[format_]
    return texts if texts.keys() & {".zarray", ".zgroup", "zarr.json"} else {name: text} | texts


def _check_node(path: str, texts: Mapping[str, str]) -> None:
    if check_path(path) != path:
        raise malformed(f"path {path!r}", "begins or ends with a slash")
    if len({DOCUMENTS[name] for name in texts}) > 1:
        raise malformed(f"/{path}", f"has metadata of Zarr v2 and v3: {', '.join(sorted(texts))}")
    if {".zarray", ".zgroup"} <= texts.keys():
        raise malformed(f"/{path}", "is a group and an array: it has .zgroup and .zarray")
    for name, text in texts.items():
        check_document(path, name, text)


def missing_codecs(documents: Documents) -> Iterator[tuple[str, str]]:
    """Array path and codec id of each codec of a Zarr v2 array that numcodecs does not know."""
    for path, texts in documents.items():
        if ".zarray" in texts:
            content = parse_document(path, texts[".zarray"])
            for codec in (*(content.get("filters") or ()), content.get("compressor")):
                name = _codec_id(codec)
                if name is not None and name not in codec_registry and name not in entries:
                    yield path, name


def _codec_id(codec: Any) -> str | None:
    name = codec.get("id") if isinstance(codec, dict) else None
    return name if isinstance(name, str) else None
