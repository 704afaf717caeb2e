"""A proxy in front of an S3 service on the loopback interface that counts requests, and may lose some of them."""

from __future__ import annotations

import http.client
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit


class Recorder(ThreadingHTTPServer):
    """Stands before the S3 service: notes every request, and may fail some.

    Attributes
    ----------
    log
        Method and path of each request.
    failures
        How many of the next PUTs are answered with 503, or (``drop``) with a closed connection.
    """

    daemon_threads = True

    def __init__(self, endpoint: str, handler: type[BaseHTTPRequestHandler] | None = None) -> None:
        super().__init__(("127.0.0.1", 0), handler or Forwarder)
        self.behind = urlsplit(endpoint).netloc
        self.log: list[tuple[str, str]] = []
        self.headers: list[dict[str, str]] = []
        self.failures = 0
        self.drop = False
        self.lock = threading.Lock()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def count(self, method: str) -> int:
        return sum(called == method for called, _ in self.log)


class Forwarder(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Recorder

    def forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with self.server.lock:
            self.server.log.append((self.command, self.path))
            self.server.headers.append(dict(self.headers.items()))
            fails = self.command == "PUT" and self.server.failures > 0
            self.server.failures -= fails
        if fails and self.server.drop:
            self.close_connection = True
            return
        if fails:
            self.answer(503, {}, b"")
            return
        self.answer(*self.ask(body))

    def ask(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """What the service answers."""
        connection = http.client.HTTPConnection(self.server.behind, timeout=60)
        try:
            connection.request(self.command, self.path, body, dict(self.headers.items()))
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def answer(self, status: int, headers: dict[str, str], data: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        length = headers.get("Content-Length", str(len(data))) if self.command == "HEAD" else str(len(data))
        self.send_header("Content-Length", length)
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        self.forward()

    do_PUT = do_HEAD = do_POST = do_DELETE = do_GET

    def log_message(self, *_: Any) -> None:
        pass
