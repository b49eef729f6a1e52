"""The page's server: a few known routes, for this machine's own browser only."""

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

# Nothing from elsewhere, nothing inline. A report has its style and pictures inside it, and may do nothing at all.
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


REQUEST_SECONDS = 5.0  # without a byte from the browser, or without it taking one
MOST_THREADS = 64  # a browser has six connections open
_BUSY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nRetry-After: 1\r\nConnection: close\r\n\r\n"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = REQUEST_SECONDS
    server: Server

    def do_GET(self) -> None:
        host = self.headers.get("Host", "").rsplit(":", 1)[0]
        if host not in ("127.0.0.1", "localhost"):  # another site's name that was made to lead here (DNS rebinding)
            self._send_json({"error": "this page answers to 127.0.0.1 and localhost only"}, 403)
            return
        path, _, query = self.path.partition("?")
        asked = {key: values[0] for key, values in parse_qs(query).items()}
        outputs, run = self.server.outputs, asked.get("run", "")
        try:
            if path in _STATIC:
                file = _FOLDER / _STATIC[path]
                self._send(file.read_bytes(), _KINDS[file.suffix])
            elif path == "/api/runs":
                self._send_json({"folder": self.server.shown, "runs": outputs.rows()})
            elif path == "/api/curve" and re.fullmatch("[0-9]{1,18}", after := asked.get("after", "0")):
                self._send_json(outputs.curve(run, asked.get("key", ""), asked.get("file", ""), int(after)))
            elif path == "/api/samples":
                self._send_json(outputs.samples(run))
            elif path == "/api/differences":
                self._send_json(outputs.differences(run, asked.get("other", "")))
            elif path == "/report":
                self._send(outputs.report(run), "text/html", policy=_REPORT_POLICY)
            else:
                raise Missing(f"there is no {path}")
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
        pass  # a request every two seconds is no news


class Server(http.server.ThreadingHTTPServer):
    """`outputs` on 127.0.0.1, where no other machine gets in. UserError where the port is not to be had."""

    allow_reuse_address = os.name == "posix"  # on Windows it would let two servers share a port
    allow_reuse_port = False
    daemon_threads = True
    request_queue_size = 1024

    def __init__(self, outputs: Path, port: int) -> None:
        self._slots = threading.BoundedSemaphore(MOST_THREADS)
        self.shown, self.outputs = str(outputs), Outputs(outputs)
        try:
            super().__init__(("127.0.0.1", port), Handler)
        except (OSError, OverflowError) as error:
            reason = error.strerror if isinstance(error, OSError) else "ports are numbers up to 65535"
            raise UserError(f"cannot listen on port {port}: {reason}; choose another one by --port") from error

    def server_bind(self) -> None:
        """Without HTTPServer's question to the network for this machine's name, which may take long."""
        socketserver.TCPServer.server_bind(self)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread of its own; with MOST_THREADS at work, refuse at once instead of waiting for ever."""
        if self._slots.acquire(timeout=0.01):
            super().process_request(request, client_address)
            return
        with contextlib.suppress(OSError):  # it has gone already
            request.setblocking(False)
            request.sendall(_BUSY)
        self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):  # a browser that has lost interest
            super().handle_error(request, client_address)
