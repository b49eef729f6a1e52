"""Who is answered, and how much of the server a client can take: hosts, origins, keys, sizes, times and numbers."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import pytest
from conftest import PATIENCE
from serving_models import DECODER, Running, served_of

from positron.inspection import routes as inspection
from positron.serve import chosen_key
from positron.serving import app, connection
from positron.serving.app import create_app
from positron.serving.connection import Server, listen
from positron.serving.models import Models, Served
from positron.serving.worker import MAX_UNREAD
from positron.system.errors import UserError

KEY = "a key that nobody knows".replace(" ", "-")
ROUTES = [
    ("GET", "/health"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/writer"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/chat/completions"),
    ("GET", "/nothing"),
]
ENDLESS = {"prompt": "a", "max_tokens": 30_000, "ignore_eos": True, "stream": True, "temperature": 2}


@pytest.fixture
def serve() -> Iterator[Callable[..., Running]]:
    """Start servers that end with the test."""
    running: list[Running] = []

    def serve(*models: Served, key: str | None = None) -> Running:
        running.append(Running(*models, key=key))
        return running[-1]

    yield serve
    for server in running:
        server.stop()


@pytest.fixture(scope="module")
def site() -> Iterator[Running]:
    running = Running(served_of("writer", True))
    yield running
    running.stop()


@pytest.fixture(scope="module")
def locked() -> Iterator[Running]:
    running = Running(served_of("writer", True), key=KEY)
    yield running
    running.stop()


def ask(server: Running, method: str, path: str, **headers: str) -> tuple[int, Any]:
    """Send these headers, with the right Host unless another is given, and return status and answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
    connection.putrequest(method, path, skip_host=True)
    for name, value in {"Host": f"127.0.0.1:{server.port}", "Content-Length": "0", **headers}.items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read() or b"null")


def eventually(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:80",
        "127.0.0.1.evil.example",
        "localhost@evil",
        "",
        "[::1",
        "192.168.1.2",
        "0.0.0.0",
    ],
)
def test_a_name_that_was_rebound_is_refused_on_every_route(site, method, path, host):
    status, answer = ask(site, method, path, Host=host)
    assert (status, answer["error"]["code"]) == (403, "wrong_host")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:1", "[::1]", "LOCALHOST"])
def test_the_names_of_this_machine_are_answered(site, host):
    assert ask(site, "GET", "/health", Host=host)[0] == 200


@pytest.mark.parametrize(("method", "path"), ROUTES)
@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1", "http://localhost", "file://"])
def test_a_page_of_another_site_is_refused_on_every_route(site, method, path, origin):
    status, answer = ask(site, method, path, Origin=origin)
    assert (status, answer["error"]["code"]) == (403, "wrong_origin")


@pytest.mark.parametrize(("method", "path"), [*ROUTES, ("GET", "/api/truth?run=writer"), ("GET", "/report?run=writer")])
@pytest.mark.parametrize("other", ["cross-site", "same-site"])
@pytest.mark.parametrize("what", ["image", "script", "iframe", "empty"])
def test_a_page_of_another_site_gets_nothing_without_an_origin_either(site, method, path, other, what):
    status, answer = ask(site, method, path, **{"Sec-Fetch-Site": other, "Sec-Fetch-Dest": what})
    assert (status, answer["error"]["code"]) == (403, "wrong_origin")


@pytest.mark.parametrize("path", ["/", "/look?run=writer", "/runs"])
def test_another_site_may_link_to_a_page(site, path):
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert httpx.get(site.url + path, headers=link).status_code == 200
    assert ask(site, "GET", "/api/truth?run=writer", **link)[0] == 403


def test_a_page_of_the_server_itself_is_answered(site):
    own = {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Dest": "empty"}
    assert ask(site, "GET", "/v1/models", Origin=f"http://127.0.0.1:{site.port}", **own)[0] == 200


@pytest.mark.parametrize(("method", "path"), ROUTES[1:])
@pytest.mark.parametrize("given", [None, "", "Bearer", "Bearer ", f"Bearer {KEY}x", f"Basic {KEY}", KEY, "Bearer \xff"])
def test_without_the_key_nothing_but_health_is_answered(locked, method, path, given):
    status, answer = ask(locked, method, path, **({} if given is None else {"Authorization": given}))
    assert (status, answer["error"]["code"]) == (401, "invalid_api_key")
    assert ask(locked, "GET", "/health")[0] == 200


def test_the_key_opens_the_server_at_every_address_of_the_machine_but_to_no_other_name(locked):
    client = openai.OpenAI(base_url=f"{locked.url}/v1", api_key=KEY)
    assert client.completions.create(model="writer", prompt="a", max_tokens=2).choices
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{locked.url}/v1", api_key="another").models.list()
    key = {"Authorization": f"bearer {KEY}"}
    assert ask(locked, "GET", "/v1/models", Host="192.168.1.2:8000", **key)[0] == 200
    assert ask(locked, "GET", "/v1/models", Host=f"{socket.gethostname()}:8000", **key)[0] == 200
    assert ask(locked, "GET", "/v1/models", Host="evil.example", **key)[0] == 403
    assert ask(locked, "GET", "/v1/models", Origin="http://evil.example", **key)[0] == 403


@pytest.mark.parametrize("given", ["short", "sixteen characters", "ß" * 20, ""])
def test_a_weak_key_is_refused(given):
    with pytest.raises(UserError, match="at least 16 characters"):
        chosen_key(given, "127.0.0.1")


def test_another_address_than_loopback_needs_a_key(monkeypatch):
    for host in ("0.0.0.0", "192.168.1.2", "::", "example.org"):
        with pytest.raises(UserError, match="--api-key"):
            chosen_key(None, host)
        assert chosen_key(KEY, host) == KEY
    assert chosen_key(None, "localhost") is None
    monkeypatch.setenv("POSITRON_API_KEY", KEY)
    assert chosen_key(None, "0.0.0.0") == KEY


def test_every_answer_forbids_caching_sniffing_and_embedding(site):
    for method, path in ROUTES:
        answer = httpx.request(method, site.url + path)
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert answer.headers["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'none'"
        assert "server" not in answer.headers


def test_a_body_that_is_too_long_is_refused_before_it_arrives(site):
    head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {app.MAX_BODY_BYTES + 1}\r\n\r\n"
    with raw(site, head.encode()) as client:
        assert b" 413 " in all_of(client)


def test_a_body_of_unknown_length_that_is_too_long_is_refused(site):
    answer = httpx.post(f"{site.url}/v1/completions", content=iter([b" " * app.MAX_BODY_BYTES, b" "]))
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")
    assert answer.headers["Connection"] == "close"


def raw(server: Running, data: bytes) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE)
    client.sendall(data)
    return client


def all_of(client: socket.socket) -> bytes:
    """What the server sends until it closes the connection."""
    answer = b""
    while part := client.recv(65536):
        answer += part
    return answer


def test_a_head_that_is_too_long_is_refused(site):
    head = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n" + b"".join(b"X-%d: y\r\n" % i for i in range(5000))
    with raw(site, head[:20_000]) as client:
        assert b"400 Bad Request" in all_of(client)


@pytest.mark.parametrize("before", [b"", b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"], ids=["first", "second"])
def test_the_limit_of_a_head_holds_if_it_arrives_in_one_read(site, before):
    begin, end = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nX: ", b"\r\n\r\n"
    longest = begin + b"y" * (connection.MAX_HEAD_BYTES - len(begin) - len(end)) + end
    is_second = bool(before)
    with raw(site, before + longest) as client:
        assert all_of(client).count(b" 200 OK") == 1 + is_second
    with raw(site, before + longest.replace(b"X: ", b"X: y")) as client:
        answer = all_of(client)
    assert answer.count(b" 200 OK") == is_second
    assert b" 400 Bad Request" in answer


@pytest.mark.parametrize(
    "begun",
    [
        b"",
        b"GET /health HT",
        b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n\r\n{",
        b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n",
        b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nGET /health HT",
    ],
    ids=["nothing", "half a head", "half a body", "chunks", "half a second head"],
)
def test_a_request_that_does_not_arrive_ends_its_connection(serve, monkeypatch, begun):
    monkeypatch.setattr(connection, "RECEIVE_SECONDS", 0.3)
    server = serve(served_of("writer", False))
    with raw(server, begun) as client:
        for _ in range(3):  # a byte now and then does not help
            time.sleep(0.05)
            client.sendall(b"x")
        answer = all_of(client)
    assert b" 408 " in answer
    eventually(lambda: not server.server.server_state.connections)


def test_a_connection_too_many_is_refused_at_once(serve, monkeypatch):
    monkeypatch.setattr(connection, "MAX_CONNECTIONS", 3)
    server = serve(served_of("writer", False))
    body = json.dumps(ENDLESS).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n" % len(body)
    clients = [raw(server, head + body) for _ in range(3)]
    for client in clients:
        assert b" 200 OK" in client.recv(100)
    with raw(server, b"") as client:
        answer = all_of(client)
    assert b"503 Service Unavailable" in answer
    assert b"Retry-After: 1" in answer
    for client in clients:
        client.close()
    eventually(lambda: not server.server.server_state.connections)
    assert httpx.get(f"{server.url}/health").status_code == 200


def test_slow_clients_do_not_keep_others_out(serve, monkeypatch):
    monkeypatch.setattr(connection, "MAX_CONNECTIONS", 3)
    server = serve(served_of("writer", False))
    clients = []
    for count in range(1, 4):
        clients.append(raw(server, b"GET /hea"))
        eventually(lambda count=count: len(server.server.server_state.connections) == count)
    assert httpx.get(f"{server.url}/health").status_code == 200
    assert b" 408 " in all_of(clients[0])  # the one that has been sending for the longest time
    for client in clients[1:]:
        client.sendall(b"lth HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        assert b" 200 OK" in all_of(client)
    for client in clients:
        client.close()


def test_small_packets_are_sent_at_once(serve):
    """Otherwise the kernel holds a token back until the client has confirmed the one before, 40 ms later."""
    server = serve(served_of("writer", False))
    with raw(server, b"GET"):
        eventually(lambda: len(server.server.server_state.connections) == 1)
        (accepted,) = server.server.server_state.connections
        assert accepted.transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def request_of(body: dict[str, Any]) -> bytes:
    content = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(content)}\r\n\r\n"
    return head.encode() + content


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_rows(serve, stream):
    model = served_of("writer", False)
    server = serve(model)
    with raw(server, request_of({**ENDLESS, "stream": stream, "n": 6})) as client:
        eventually(lambda: model.worker.load == (4, 2))
        if stream:
            assert client.recv(100)
    eventually(lambda: model.worker.load == (0, 0))


def test_a_client_that_does_not_read_stops_nobody_and_is_disconnected(serve, monkeypatch):
    monkeypatch.setattr(connection, "SEND_SECONDS", 1.0)
    model = served_of("writer", False)
    server = serve(model)
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    server.server.listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    client.connect(("127.0.0.1", server.port))
    client.sendall(request_of({**ENDLESS, "logprobs": 20}))
    others = {"prompt": "b", "max_tokens": 30, "ignore_eos": True}
    eventually(lambda: model.worker.load == (1, 0))
    while model.worker.load[0]:  # until the buffers are full, and the time is over
        answer = httpx.post(f"{server.url}/v1/completions", json=others, timeout=PATIENCE)
        assert answer.json()["usage"]["completion_tokens"] == 30
    assert not all_of(client).endswith(b"0\r\n\r\n")  # the last chunk of a complete answer
    client.close()


def test_a_stream_that_is_behind_lets_others_run_between_two_pieces():
    """Otherwise it would write everything that waits, even to a client whose connection was lost meanwhile."""
    model = served_of("writer", False)
    body = json.dumps(ENDLESS).encode()
    arriving = iter([{"type": "http.request", "body": body}])
    written, written_when_lost = 0, None

    async def receive() -> dict[str, Any]:
        for message in arriving:
            return message
        await lost.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        nonlocal written
        written += 1
        if written == 2:  # the first event
            while next(iter(model.worker._running.values())).unread < MAX_UNREAD:
                await asyncio.sleep(0.01)
            asyncio.get_running_loop().call_soon(note_loss)

    def note_loss() -> None:
        nonlocal written_when_lost
        written_when_lost = written
        lost.set()

    async def answer() -> None:
        nonlocal lost
        lost = asyncio.Event()
        headers = [(b"host", b"127.0.0.1"), (b"content-length", str(len(body)).encode())]
        scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": headers, "query_string": b""}
        await app.create_app(Models([model], dict))(scope, receive, send)

    lost: asyncio.Event
    try:
        asyncio.run(answer())
    finally:
        model.worker.close()
    assert written_when_lost is not None
    assert written_when_lost <= 4


def test_a_full_queue_is_told_with_the_time_to_wait(serve):
    model = served_of("writer", False, slots=1, max_waiting=2)
    server = serve(model)
    first = raw(server, request_of(ENDLESS))
    eventually(lambda: model.worker.load == (1, 0))
    with first, raw(server, request_of({**ENDLESS, "n": 2})):
        eventually(lambda: model.worker.load == (1, 2))
        answer = httpx.post(f"{server.url}/v1/completions", json={"prompt": "a"})
        assert (answer.status_code, answer.json()["error"]["type"]) == (503, "server_error")
        assert answer.headers["Retry-After"] == "1"
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0)
        with pytest.raises(openai.InternalServerError, match="busy"):
            client.completions.create(model="writer", prompt="a")
    eventually(lambda: model.worker.load == (0, 0))
    assert httpx.post(f"{server.url}/v1/completions", json={"prompt": "a"}).status_code == 200


@pytest.mark.parametrize("stream", [True, False])
def test_an_error_of_ours_is_told_in_the_format_of_the_api_and_named_in_the_output(serve, monkeypatch, caplog, stream):
    server = serve(served_of("writer", False))
    monkeypatch.setattr(DECODER, "step_some", lambda *_: 1 / 0)
    answer = httpx.post(f"{server.url}/v1/completions", json={"prompt": "a", "stream": stream, "ignore_eos": True})
    assert answer.status_code == (200 if stream else 500)
    *_, said = [line for line in answer.text.removeprefix("data: ").split("\n\ndata: ") if "error" in line]
    assert json.loads(said)["error"]["code"] == "internal_error"
    assert "ZeroDivisionError" not in said
    assert "a request failed: positron: ZeroDivisionError: division by zero" in caplog.text


def test_the_server_stops_quietly_while_it_looks_inside(caplog):
    began, end = threading.Event(), threading.Event()

    def history() -> dict[str, Any]:
        began.set()
        end.wait()
        return {}

    subjects: Any = {"run": SimpleNamespace(history=history)}
    listener = listen("127.0.0.1", 0)
    server = Server(create_app(Models(), routes=inspection.routes(subjects)), listener)
    thread = threading.Thread(target=server.run_until_stopped, daemon=True)
    thread.start()
    with socket.create_connection(listener.getsockname(), timeout=PATIENCE) as client:
        client.sendall(b"GET /api/history HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        began.wait()
        server.should_exit = True
        thread.join(PATIENCE)
        is_alive = thread.is_alive()
        end.set()
    assert (is_alive, caplog.records) == (False, [])


def test_the_server_stops_at_once_while_it_answers(serve):
    model = served_of("writer", False)
    server = serve(model)
    with raw(server, request_of(ENDLESS)) as client:
        assert client.recv(100)
        server.server.should_exit = True
        server.thread.join(PATIENCE)
        assert not server.thread.is_alive()
        eventually(lambda: model.worker.load == (0, 0))
