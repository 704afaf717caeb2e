"""Bytes that a reference file holds itself, as text or ``base64:`` text."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any

BASE64 = "base64:"


def inline_bytes(value: Any) -> bytes:
    """The bytes that a reference file holds itself: text, ``base64:`` text, or a JSON object.

    Raises
    ------
    ValueError
        For bad base64.
    """
    if isinstance(value, dict):
        return json.dumps(value).encode()
    data = value.encode() if isinstance(value, str) else bytes(value)
    if not data.startswith(BASE64.encode()):
        return data
    try:
        return base64.b64decode(data[len(BASE64) :], validate=True)
    except binascii.Error as error:
        raise ValueError(f"bad base64: {error}") from error


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
