"""Which codecs arrays need, and which of them this machine lacks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from numcodecs.registry import codec_registry, entries  # type: ignore[import-untyped]

from icelite.kerchunk.documents import Documents
from icelite.metadata import parse_document


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
