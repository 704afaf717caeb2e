"""The metadata documents of a reference file, checked as one hierarchy of groups and arrays."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeAlias

from icelite.errors import IceliteError, InvalidInputError
from icelite.kerchunk.faults import malformed
from icelite.kerchunk.inline import inline_bytes
from icelite.keys import CONSOLIDATED, DOCUMENTS, ancestors, check_path
from icelite.metadata import ArrayInfo, array_info, check_document

Documents: TypeAlias = dict[str, dict[str, str]]  # by node path, by document name

GROUP_DOCUMENTS = {
    2: (".zgroup", '{"zarr_format":2}'),
    3: ("zarr.json", '{"zarr_format":3,"node_type":"group","attributes":{}}'),
}


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
    if isinstance(value, dict):
        return json.dumps(value)
    if isinstance(value, list):
        raise malformed(
            origin, f"refers for the metadata {key!r} to another file, {value!r}; put the text in its place"
        )
    try:
        text = inline_bytes(value).decode()
        json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise malformed(origin, f"has metadata under {key!r} that is not JSON: {error}") from error
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
