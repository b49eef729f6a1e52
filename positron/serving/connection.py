"""Limit the connections of uvicorn: their number, the size of a request's head, and the time to send or read data.

uvicorn limits the time between two requests. It does not limit the time in which a client sends a request or reads an answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import socket
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from positron.system.errors import UserError

MAX_CONNECTIONS = 128
MAX_HEAD_BYTES = 16 * 1024
RECEIVE_SECONDS = 10.0  # maximum time from the beginning of a connection or request to its last byte
SEND_SECONDS = 30.0  # maximum time without reading while an answer waits for the client
IDLE_SECONDS = 5  # maximum time between two requests of a connection
SHUTDOWN_SECONDS = 1.0  # maximum time to wait for unfinished answers when the server stops

_END_OF_HEAD = re.compile(rb"\n\r?\n")  # the same definition as in h11
_BUSY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nRetry-After: 1\r\nConnection: close\r\n\r\n"
_LATE = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class LimitedConnection(H11Protocol):
    """Represent a connection of the server with a client, and close it if the client is too slow.

    A client is too slow if it needs more than 10 seconds to send a request (RECEIVE_SECONDS) or reads nothing of an answer for
    30 seconds (SEND_SECONDS).

    If the server has more than 128 connections (MAX_CONNECTIONS), the connection that has been sending a request for the
    longest time is closed. If no connection is sending a request, the new connection is closed.
    """

    connections: set[LimitedConnection]  # type: ignore[assignment]
    _receiving: asyncio.TimerHandle | None = None  # closes the connection if a request does not arrive in time
    _sending: asyncio.TimerHandle | None = None  # closes the connection if the client does not read the answer in time

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Limit the time for the first request of the connection.

        If there are too many connections, end the connection that has been sending a request for the longest time, so that slow
        clients cannot keep other clients out. If no connection is sending a request, refuse the new connection.
        """
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            sending = {each: timer.when() for each in self.connections if (timer := each._receiving) is not None}
            if not sending:
                transport.write(_BUSY)
                transport.close()
                return
            min(sending, key=sending.__getitem__)._end_late_request()
        self._expect_request()

    def handle_events(self) -> None:
        """Start a timer at the first byte of a request, and stop the timer after the last byte. Refuse a head that is too long.

        The head of a request is its first line and its headers. h11 applies its limit only to incomplete heads, so h11 would
        accept a head that is too long but arrives in one read.
        """
        if self.conn.their_state is h11.IDLE and _is_head_too_long(self.conn.trailing_data[0]):
            self.send_400_response(f"the headers of this request are longer than {MAX_HEAD_BYTES} bytes: send fewer")
            return
        super().handle_events()
        state = self.conn.their_state
        is_arriving = state is h11.SEND_BODY or (state is h11.IDLE and bool(self.conn.trailing_data[0]))
        if not is_arriving:
            _stop(self._receiving)
            self._receiving = None
        elif self._receiving is None:
            self._expect_request()

    def _expect_request(self) -> None:
        self._receiving = self.loop.call_later(RECEIVE_SECONDS, self._end_late_request)

    def _end_late_request(self) -> None:
        _stop(self._receiving)
        self._receiving = None
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):  # no answer has begun
            self.transport.write(_LATE)
        self.transport.close()

    def pause_writing(self) -> None:
        """Stop writing, because the client has not yet read what was sent. Start a timer that closes the connection.

        The connection is closed after 30 seconds (SEND_SECONDS), unless the client reads enough before, so that asyncio calls
        `resume_writing`.
        """
        super().pause_writing()
        self._sending = self.loop.call_later(SEND_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """Continue writing, and stop the timer that `pause_writing` started."""
        super().resume_writing()
        _stop(self._sending)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timers of the connection."""
        _stop(self._receiving)
        _stop(self._sending)
        super().connection_lost(exc)


def _is_head_too_long(received: bytes) -> bool:
    return len(received) > MAX_HEAD_BYTES and _END_OF_HEAD.search(received, 0, MAX_HEAD_BYTES) is None


def _stop(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


class Server(uvicorn.Server):
    """Run an application on a socket.

    When the server is asked to stop, it closes all connections, even if answers are unfinished, and stops within about a
    second.
    """

    def __init__(self, app: ASGIApp, listener: socket.socket) -> None:
        self.listener = listener
        super().__init__(
            uvicorn.Config(
                app,
                http=LimitedConnection,
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="error",
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=IDLE_SECONDS,
                h11_max_incomplete_event_size=MAX_HEAD_BYTES,
            )
        )

    def run_until_stopped(self) -> None:
        """Answer requests until Ctrl-C, SIGTERM, or until `should_exit` is set to true."""
        with contextlib.suppress(asyncio.CancelledError):  # Ctrl-C before uvicorn handles it
            self.run([self.listener])

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close all connections immediately, also those whose answers are not complete.

        Then wait at most 1 second (SHUTDOWN_SECONDS) until the tasks of these answers have ended. This method replaces
        uvicorn's, which waits until every answer is complete. `sockets` is not used.
        """
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        self.listener.close()
        if tasks := list(self.server_state.tasks):  # each ends when it learns that its client is gone
            await asyncio.wait(tasks, timeout=SHUTDOWN_SECONDS)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on this address and port. Raises UserError if listening there is not possible."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sends small packets at once (TCP_NODELAY) only on sockets that name their protocol
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name == "posix":  # on Windows it would let two servers share a port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(MAX_CONNECTIONS)
    except (OSError, OverflowError) as error:
        listener.close()
        match error:
            case OverflowError():
                reason = "a port is a number from 0 to 65535; choose another port with --port"
            case OSError(errno=errno.EADDRINUSE | errno.EACCES):
                reason = f"{error.strerror}; choose another port with --port"
            case _:
                reason = f"{error.strerror}; choose an address of this machine with --host"
        raise UserError(f"cannot listen on {host}, port {port}: {reason}") from error
    return listener


def url_of(listener: socket.socket) -> str:
    """Return the URL under which a browser on this machine reaches the server."""
    address: tuple[Any, ...] = listener.getsockname()
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address[0], address[0])
    return f"http://[{host}]:{address[1]}" if ":" in host else f"http://{host}:{address[1]}"
