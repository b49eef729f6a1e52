"""Refuse requests that may come from other sites, or that lack the API key.

Without these checks, a page of another site that is open in a browser on this machine could use the server, in two ways. With
DNS rebinding, a host name of the other site resolves to 127.0.0.1; the Host header of the request then contains that name. In
a cross-site request, the Origin header names the other site; a request for an image or a script has no Origin header, but has
the header Sec-Fetch-Site.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
import socket

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from positron.serving.errors import ApiError
from positron.serving.json_answer import JSONAnswer
from positron.system.console import one_line

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}
# A page may load nothing from other hosts, and may run only scripts that are files of this server.
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
FILES = "/static/"  # the files of the pages, which need no key
_OTHER_SITES = (b"cross-site", b"same-site")  # same-site: a server of this machine at another port
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^\[\]:@/\s]+)(?::[0-9]{1,5})?")


class Guard:
    """Check Host, Origin and key of every request before the application sees it, and add headers to every answer."""

    def __init__(self, app: ASGIApp, key: str | None, public: frozenset[str]) -> None:
        """Store the API key and the `public` paths.

        If there is a key, every request must contain it, except requests for `public` paths and for files below /static/. If
        `key` is None, no request needs a key.

        A request is refused if the host in its Host header is not allowed. The hosts 127.0.0.1, localhost and [::1] are always
        allowed. If there is a key, the machine's name and all IP addresses are allowed, too.
        """
        self.app, self.key, self.public = app, key, public
        own_name = socket.gethostname().lower()
        self.names = {*LOOPBACK, *((own_name, f"{own_name}.local") if key else ())}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a refused request with an error, and pass every other request to the application."""
        if scope["type"] != "http":
            raise RuntimeError(f"this server does not speak {scope['type']}")

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        error = self._refusal(scope)
        if error is None:
            await self.app(scope, receive, send_with_headers)
        else:
            headers = {"Connection": "close", **error.headers}  # because the body of the request is not read
            await JSONAnswer(error.body(), error.status, headers)(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope) -> ApiError | None:
        given: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            given.setdefault(name, []).append(value)
        hosts = [value.decode("latin-1").lower() for value in given.get(b"host", [])]
        if len(hosts) != 1 or not self._is_own(hosts[0]):
            names = "127.0.0.1 or localhost" if self.key is None else "this machine's name or one of its IP addresses"
            host = (
                f"the host {one_line(hosts[0], 100)}"
                if len(hosts) == 1
                else "a request that does not have exactly one Host header"
            )
            message = f"this server does not answer to {host}: use {names} in the address"
            return ApiError(403, message, code="wrong_host")
        origins = [value.decode("latin-1").lower() for value in given.get(b"origin", [])]
        if any(origin not in (f"http://{hosts[0]}", f"https://{hosts[0]}") for origin in origins):
            return _other_site()
        if given.get(b"sec-fetch-site", [b"none"])[0] in _OTHER_SITES and not self._is_link_to_page(scope, given):
            return _other_site()
        if self.key is not None and not self._is_public(scope["path"]) and not self._knows_key(given):
            message = (
                "the API key is missing or wrong: send the key of this server in the header 'Authorization: Bearer KEY'"
            )
            return ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        return None

    def _is_own(self, host: str) -> bool:
        match = _HOST.fullmatch(host)
        return match is not None and (match[1] in self.names or (self.key is not None and _is_address(match[1])))

    def _is_link_to_page(self, scope: Scope, given: dict[bytes, list[bytes]]) -> bool:
        return scope["path"] in self.public and given.get(b"sec-fetch-dest") == [b"document"]

    def _is_public(self, path: str) -> bool:
        return path in self.public or path.startswith(FILES)

    def _knows_key(self, given: dict[bytes, list[bytes]]) -> bool:
        assert self.key is not None
        values = given.get(b"authorization", [])
        scheme, _, token = values[0].partition(b" ") if len(values) == 1 else (b"", b"", b"")
        return hmac.compare_digest(token.strip(), self.key.encode()) and scheme.lower() == b"bearer"


def _other_site() -> ApiError:
    return ApiError(
        403,
        "a page of another site sent this request: send it from a program, or from a page of this server",
        code="wrong_origin",
    )


def _is_address(host: str) -> bool:
    """Tell whether a host is an IP address, which is safe from DNS rebinding because no name server is asked for it."""
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True
