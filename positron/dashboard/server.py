"""Serve the dashboard over HTTP: a fixed set of addresses, for browsers on this machine only."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import re
import socketserver
import sys
import threading
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from positron.dashboard.table import Missing, Outputs
from positron.system.errors import UserError

_FOLDER = Path(__file__).parent / "static"
_KINDS = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}
_FILES = (
    "page.js",
    "table.js",
    "chart.js",
    "format.js",
    "page.css",
    "vendor/uPlot.iife.min.js",
    "vendor/uPlot.min.css",
)
_STATIC = {"/": "index.html", **{f"/{name}": name for name in _FILES}}

# The page may load nothing from other hosts and no inline scripts. A report may have inline styles and images, but no scripts.
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
_REPORT_POLICY = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


REQUEST_SECONDS = 5.0  # a connection is closed after this time without a byte from or to the browser
MAX_THREADS = 64  # enough for ten browsers, which open six connections each
_BUSY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nRetry-After: 1\r\nConnection: close\r\n\r\n"


class Handler(http.server.BaseHTTPRequestHandler):
    """Answer the requests of one connection."""

    protocol_version = "HTTP/1.1"
    timeout = REQUEST_SECONDS
    server: Server

    def do_GET(self) -> None:
        """Answer a GET request: a static file, JSON under /api/, or the report of a run."""
        host = self.headers.get("Host", "").rsplit(":", 1)[0]
        if host not in ("127.0.0.1", "localhost"):  # DNS rebinding: another site's name resolves to this machine
            self._send_json(
                {"error": "the address of this page must begin with http://127.0.0.1 or http://localhost"}, 403
            )
            return
        path, _, query = self.path.partition("?")
        parameters = {key: values[0] for key, values in parse_qs(query).items()}
        outputs, run = self.server.outputs, parameters.get("run", "")
        try:
            if path in _STATIC:
                file = _FOLDER / _STATIC[path]
                self._send(file.read_bytes(), _KINDS[file.suffix])
            elif path == "/api/runs":
                self._send_json({"folder": self.server.shown, "runs": outputs.rows()})
            elif path == "/api/curve" and re.fullmatch("[0-9]{1,18}", after := parameters.get("after", "0")):
                self._send_json(outputs.curve(run, parameters.get("key", ""), parameters.get("file", ""), int(after)))
            elif path == "/api/samples":
                self._send_json(outputs.samples(run))
            elif path == "/api/differences":
                self._send_json(outputs.differences(run, parameters.get("other", "")))
            elif path == "/report":
                self._send(outputs.report(run), "text/html", policy=_REPORT_POLICY)
            else:
                raise Missing(f"this server has no page {path}")
        except Missing as missing:
            self._send_json({"error": str(missing)}, 404)

    def _send_json(self, value: Any, status: int = 200) -> None:
        self._send(json.dumps(value, allow_nan=False).encode("ascii"), "application/json", status)

    def _send(self, content: bytes, kind: str, status: int = 200, policy: str = _PAGE_POLICY) -> None:
        self.send_response(status)
        headers = {"Content-Type": f"{kind}; charset=utf-8", "Content-Length": str(len(content)), **_HEADERS}
        for name, value in {**headers, "Content-Security-Policy": policy}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Log nothing: the page sends a request every two seconds."""


class Server(http.server.ThreadingHTTPServer):
    """Serve the runs of the folder `outputs` on 127.0.0.1. Raises UserError if the port is not available."""

    allow_reuse_address = os.name == "posix"  # on Windows, this would let two servers share a port
    allow_reuse_port = False
    daemon_threads = True
    request_queue_size = 1024

    def __init__(self, outputs: Path, port: int) -> None:
        self._slots = threading.BoundedSemaphore(MAX_THREADS)
        self.shown, self.outputs = str(outputs), Outputs(outputs)
        try:
            super().__init__(("127.0.0.1", port), Handler)
        except (OSError, OverflowError) as error:
            reason = error.strerror if isinstance(error, OSError) else "a port is a number from 0 to 65535"
            raise UserError(f"cannot use port {port}: {reason}; choose another port with --port") from error

    def server_bind(self) -> None:
        """Bind the socket, without looking up this machine's name in the network as HTTPServer does, which may take long."""
        socketserver.TCPServer.server_bind(self)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer the request in a new thread. If MAX_THREADS threads are busy, answer with status 503 at once."""
        if self._slots.acquire(timeout=0.01):
            super().process_request(request, client_address)
            return
        with contextlib.suppress(OSError):  # the browser has closed the connection
            request.setblocking(False)
            request.sendall(_BUSY)
        self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer the request in the current thread, and then let another thread start."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print the traceback of an error, unless the browser closed the connection."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)
