"""DMR++, OPeNDAP's list of a file's chunks: VirtualiZarr's parser, with the chunks of scalars, which it drops."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import numpy as np
from virtualizarr.manifests import ChunkManifest, ManifestArray

from icelite.formats.parsed import ParsedGroup
from icelite.formats.source import SourceFile

_NAMES = {"dap": "http://xml.opendap.org/ns/DAP/4.0#", "dmrpp": "http://xml.opendap.org/dap/dmrpp/1.0.0#"}


def parse(source: SourceFile, parser: Any) -> ParsedGroup:
    """Parse the group that ``parser``, a ``DMRPPParser``, was made for.

    Raises
    ------
    StorageError
        ``unreadable-source`` for a scalar that is in more than one chunk.
    """
    parsed = ParsedGroup.of_store(parser(source.url, source.stores))
    element: Any = ElementTree.fromstring(source.read(0, None))
    for name in str(parser.group or "").strip("/").split("/"):
        element = element.find(f"dap:Group[@name='{name}']", _NAMES) if name and element is not None else element
    for variable in element if element is not None else ():
        name = variable.get("name")
        chunks = variable.findall("dmrpp:chunks/dmrpp:chunk", _NAMES)
        if name not in parsed.arrays or parsed.arrays[name].shape or not chunks:
            continue
        if len(chunks) > 1:
            raise source.unreadable(f"its scalar {name!r} has {len(chunks)} chunks")
        parsed.arrays[name] = _with_chunk(source, parsed.arrays[name], chunks[0])
    return parsed


def _with_chunk(source: SourceFile, array: ManifestArray, chunk: Any) -> ManifestArray:
    path: Any = np.array(chunk.get("href") or source.url.removesuffix(".dmrpp"), np.dtypes.StringDType())
    manifest = ChunkManifest.from_arrays(
        paths=path,
        offsets=np.array(int(chunk.get("offset")), np.uint64),
        lengths=np.array(int(chunk.get("nBytes")), np.uint64),
        validate_paths=False,
    )
    return ManifestArray(metadata=array.metadata, chunkmanifest=manifest)
