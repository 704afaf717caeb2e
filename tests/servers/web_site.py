"""A web server on the loopback interface that serves a folder, well or badly."""

from __future__ import annotations

import threading
from collections.abc import Callable
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class Site:
    """A folder served with ranges and ETags, a log of the requests, and ways to misbehave.

    Attributes
    ----------
    ranges
        Whether ranges are given.
    validators
        The headers by which versions can be told apart: some of ``ETag`` and ``Last-Modified``.
    log, methods, headers
        The path, the method and the headers of each request.
    answers
        By path: what to send instead of the file; gets the handler.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ranges = True
        self.validators = {"ETag"}
        self.log: list[str] = []
        self.methods: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.answers: dict[str, Callable[[BaseHTTPRequestHandler], None]] = {}
        site = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                site.answer(self, send=True)

            def do_HEAD(self) -> None:
                site.answer(self, send=False)

            def log_message(self, *_: Any) -> None:
                """Quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def close(self) -> None:
        """Stop serving."""
        self.server.shutdown()
        self.server.server_close()

    def answer(self, request: BaseHTTPRequestHandler, *, send: bool) -> None:
        path = request.path.partition("?")[0]
        self.log.append(path)
        self.methods.append(request.command)
        self.headers.append(dict(request.headers))
        if path in self.answers:
            self.answers[path](request)
            return
        file = self.folder / path.lstrip("/").replace("%20", " ")
        if not file.is_file():
            respond(request, 404)
            return
        data = file.read_bytes()
        etag = f'"{file.stat().st_mtime_ns:x}-{len(data):x}"'
        stamps = {"ETag": etag, "Last-Modified": formatdate(file.stat().st_mtime, usegmt=True)}
        stamps = {name: value for name, value in stamps.items() if name in self.validators}
        if "ETag" in stamps and request.headers.get("If-None-Match") == etag:
            respond(request, 304, **stamps)
            return
        given = request.headers.get("Range", "")
        if self.ranges and given:
            start, stop = (int(number) for number in given.removeprefix("bytes=").split("-"))
            if start >= len(data):
                respond(request, 416)
                return
            stop = min(stop + 1, len(data))
            span = f"bytes {start}-{stop - 1}/{len(data)}"
            respond(request, 206, data[start:stop], **stamps, **{"Content-Range": span})
            return
        known = {"Accept-Ranges": "bytes"} if self.ranges else {}
        respond(request, 200, data, send=send, **stamps, **known)


def respond(
    request: BaseHTTPRequestHandler, status: int, body: bytes = b"", *, send: bool = True, **headers: str
) -> None:
    request.send_response(status)
    for name, value in {**headers, "Content-Length": str(len(body))}.items():
        request.send_header(name, value)
    request.end_headers()
    if send:
        try:
            request.wfile.write(body)
        except (ConnectionError, BrokenPipeError):
            request.close_connection = True
