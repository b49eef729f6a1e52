"""Build the web application: the routes of OpenAI's API for the served models."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import time
import traceback
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from positron.inference.sessions import Piece, Session
from positron.serving.answers import Answer
from positron.serving.errors import ApiError
from positron.serving.json_answer import JSONAnswer
from positron.serving.models import MAX_ON_DEMAND, Models, Served
from positron.serving.parameters import Call, chat_call, completion_call
from positron.serving.security import Guard
from positron.serving.worker import Job, QueueFull
from positron.system.errors import UserError, where_not_json
from positron.system.exits import describe

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 2**20
# Pause between two events of a stream. The pieces that arrive meanwhile are joined, because sending an event takes as much time
# as computing a token of a small model.
EVENT_SECONDS = 0.02
RETRY_SECONDS = 1  # time after which a refused client should try again
MAX_ROOM_SECONDS = 300.0  # maximum time that a request waits until another model can be loaded
ROOM_SECONDS = 0.5  # time after which a waiting request looks again whether its model can be loaded


def create_app(
    models: Models,
    key: str | None = None,
    routes: Sequence[BaseRoute] = (),
    public: frozenset[str] = frozenset(),
) -> ASGIApp:
    """Create the web application that serves `models`.

    `key`: the API key that requests must contain, or None if no key is needed. /health, files below /static/ and the paths in
    `public` never need a key. `routes`: routes of pages, in addition to the API.
    """

    async def health(_: Request) -> Response:
        is_well = all(model.worker.is_alive for model in models.loaded)
        return JSONAnswer({"status": "ok" if is_well else "failed"}, 200 if is_well else 500)

    async def list_models(_: Request) -> Response:
        return JSONAnswer({"object": "list", "data": await asyncio.to_thread(models.describe)})

    async def one_model(request: Request) -> Response:
        described = {model["id"]: model for model in await asyncio.to_thread(models.describe)}
        name = request.path_params["name"]
        if name not in described:
            raise ApiError(
                404, f"there is no model {name[:60]}: /v1/models lists all models", "model", "model_not_found"
            )
        return JSONAnswer(described[name])

    async def chat(request: Request) -> Response:
        return await _answer(request, models, chat_call, is_chat=True)

    async def complete(request: Request) -> Response:
        return await _answer(request, models, completion_call, is_chat=False)

    api = [
        Route("/health", health),
        Route("/v1/models", list_models),
        Route("/v1/models/{name:path}", one_model),
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/v1/completions", complete, methods=["POST"]),
    ]
    handlers: dict[Any, Callable[[Request, Any], Awaitable[Response]]] = {
        ApiError: _api_error,
        HTTPException: _http_error,
        ClientDisconnect: _gone,
        Exception: _failure,
    }
    app = Starlette(routes=[*api, *routes], exception_handlers=handlers)
    return Guard(app, key, public | {"/health"})


async def _body(request: Request) -> dict[str, Any]:
    """Return the JSON object in the body of a request. Raises ApiError if the body is too long or not a JSON object."""
    _refuse_long(int(request.headers.get("content-length", 0)))
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        _refuse_long(size)
        parts.append(part)
    try:
        values = json.loads(b"".join(parts), parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ApiError(400, "the JSON of the request is nested too deeply", code="invalid_json") from error
    except ValueError as error:  # UnicodeDecodeError, too
        reason = where_not_json(error)[:200]
        raise ApiError(400, f"the request is not JSON ({reason}): correct its body", code="invalid_json") from error
    if not isinstance(values, dict):
        raise ApiError(400, "the request must be a JSON object", code="invalid_json")
    return values


def _refuse_long(size: int) -> None:
    if size > MAX_BODY_BYTES:
        message = f"the request is longer than {MAX_BODY_BYTES} bytes: send a shorter one"
        raise ApiError(413, message, code="request_too_large", headers={"Connection": "close"})


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


async def _answer(
    request: Request, models: Models, read: Callable[[dict[str, Any], Served], Call], *, is_chat: bool
) -> Response:
    values = await _body(request)
    model = await _reserved_model(request, models, values.get("model"))
    try:
        call = await asyncio.to_thread(read, values, model)  # encoding a long text takes a while
        texts = _Texts(call, model)
        answer = Answer(call, model, is_chat)
        texts.submit()
    finally:
        model.worker.release()
    if call.stream:
        return _EventStream(_events(texts, answer), texts)
    try:
        whole = asyncio.ensure_future(texts.all_pieces())
        gone = asyncio.ensure_future(_disconnected(request))
        await asyncio.wait({whole, gone}, return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        if not whole.done():
            whole.cancel()
            raise ClientDisconnect
        if error := whole.exception():
            raise _described_error(error) from error
        return JSONAnswer(answer.whole(texts.sessions, whole.result()))
    finally:
        texts.cancel()


async def _reserved_model(request: Request, models: Models, name: Any) -> Served:
    """Return the model `name`, as `Models.get` does, but wait if there is no room for it at this moment.

    No thread is held while the request waits, so that other requests are answered. Raises ApiError if there is no room after
    five minutes (MAX_ROOM_SECONDS), and ClientDisconnect if the client is gone.
    """
    end = time.monotonic() + MAX_ROOM_SECONDS
    while (model := await asyncio.to_thread(models.get, name)) is None:  # in a thread, because loading takes a while
        if await request.is_disconnected():
            raise ClientDisconnect
        if time.monotonic() >= end:
            raise _overloaded(
                f"no other model can be loaded while {MAX_ON_DEMAND} models are answering: try again in a moment"
            )
        await asyncio.sleep(ROOM_SECONDS)
    return model


def _overloaded(message: str) -> ApiError:
    return ApiError(503, message, code="overloaded", headers={"Retry-After": str(RETRY_SECONDS)})


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class _Texts:
    """Hold the texts that are generated for one HTTP request.

    The model's worker generates the texts in a thread of its own, and delivers each text in pieces. The object also holds the
    pieces that were delivered and not yet read.
    """

    def __init__(self, call: Call, model: Served) -> None:
        self._worker = model.worker
        self._loop = asyncio.get_running_loop()
        self._jobs = [Job(request, self._deliverer(i)) for i, request in enumerate(call.requests)]
        self._arrived: deque[tuple[int, Piece | Exception]] = deque()
        self._is_waiting = False  # the reader waits for a piece
        self._wake = asyncio.Event()

    def _deliverer(self, i: int) -> Callable[[Piece | Exception], None]:
        def deliver(piece: Piece | Exception) -> None:  # in the worker's thread
            self._arrived.append((i, piece))
            if self._is_waiting:  # a reader that does not wait looks for pieces before it waits
                with contextlib.suppress(RuntimeError):  # the loop is closed: the server has stopped
                    self._loop.call_soon_threadsafe(self._wake.set)

        return deliver

    def submit(self) -> None:
        """Queue the texts; raises ApiError if the worker's queue is full, or if the worker was closed."""
        try:
            self._worker.submit(self._jobs)
        except QueueFull:
            raise _overloaded("the server is busy: try again in a moment") from None

    def session(self, i: int) -> Session:
        """Return the state of text i. At least one piece of the text must have arrived."""
        session = self._jobs[i].session
        assert session is not None
        return session

    @property
    def sessions(self) -> list[Session]:
        """Return the states of all texts. At least one piece of each text must have arrived."""
        return [self.session(i) for i in range(len(self._jobs))]

    async def batches(self) -> AsyncIterator[list[tuple[int, Piece]]]:
        """Yield a list of (index of the text, piece) whenever pieces have arrived. Pieces of the same text are joined.

        Raises the error of a text that failed.
        """
        open_texts = len(self._jobs)
        while open_texts:
            batch = []
            for i, piece in _joined(await self._next_arrivals()):
                if isinstance(piece, Exception):
                    raise piece
                batch.append((i, piece))
                open_texts -= piece.finish is not None
            yield batch
            await asyncio.sleep(0)  # let the server notice now, and not after the last piece, if the client is gone

    async def _next_arrivals(self) -> list[tuple[int, Piece | Exception]]:
        """Wait until a piece has arrived, and return all pieces that have arrived since the last call.

        The pieces are returned as (index of the text, piece) pairs. If a text has failed, its last pair has the error in place
        of a piece.
        """
        while not self._arrived:
            self._wake.clear()
            self._is_waiting = True
            if not self._arrived:  # a piece may have arrived just before the worker could see that the reader waits
                await self._wake.wait()
            self._is_waiting = False
        arrived = [self._arrived.popleft() for _ in range(len(self._arrived))]
        for i, _ in arrived:
            self._worker.taken(self._jobs[i])
        return arrived

    async def all_pieces(self) -> list[list[Piece]]:
        """Wait until all texts have ended, and return the pieces of each text."""
        pieces: list[list[Piece]] = [[] for _ in self._jobs]
        async for batch in self.batches():
            for i, piece in batch:
                pieces[i].append(piece)
        return pieces

    def cancel(self) -> None:
        """End the texts that have not ended."""
        for job in self._jobs:
            self._worker.cancel(job)


def _joined(arrived: list[tuple[int, Piece | Exception]]) -> list[tuple[int, Piece | Exception]]:
    """Join the pieces of each text. If a text has failed, its error replaces its pieces.

    `arrived`: (index of the text, piece or error) pairs. The texts keep the order in which their first pieces arrived.
    """
    joined: dict[int, Piece | Exception] = {}
    for i, piece in arrived:
        before = joined.get(i)
        if isinstance(before, Piece) and isinstance(piece, Piece):
            joined[i] = Piece(before.text + piece.text, [*before.tokens, *piece.tokens], piece.finish)
        else:
            joined[i] = piece
    return list(joined.items())


class _EventStream(StreamingResponse):
    """Send server-sent events. When the client disconnects, cancel the texts that are not finished."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[str], texts: _Texts) -> None:
        super().__init__(events)
        self._texts = texts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._texts.cancel()


async def _events(texts: _Texts, answer: Answer) -> AsyncIterator[str]:
    """Yield the server-sent events of a streamed answer, one or several in each string."""
    started: set[int] = set()
    for chunk in answer.first_chunks():
        yield _event(chunk)
    try:
        async for batch in texts.batches():
            chunks = [answer.chunk(i, texts.session(i), piece, is_first=i not in started) for i, piece in batch]
            started.update(i for i, _ in batch)
            events = [_event(chunk) for chunk in chunks if chunk is not None]
            if events:
                yield "".join(events)
                await asyncio.sleep(EVENT_SECONDS)
    except Exception as error:
        yield _event(_described_error(error).body())
    else:
        if answer.call.include_usage:
            yield _event(answer.usage_chunk(texts.sessions))
    yield "data: [DONE]\n\n"


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, allow_nan=False)}\n\n"


def _described_error(error: BaseException) -> ApiError:
    """Convert an error of generation to the error that the client gets. Log an error that the user cannot fix."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, UserError):
        return ApiError(500, str(error))
    logger.error(f"a request failed: {describe(error)[1]}")
    if os.environ.get("POSITRON_DEBUG") == "1":
        traceback.print_exception(error)
    return ApiError(
        500, "the server failed to answer this request: the reason is in the server's output", code="internal_error"
    )


async def _api_error(_: Request, error: ApiError) -> Response:
    return JSONAnswer(error.body(), error.status, error.headers)


async def _http_error(request: Request, error: HTTPException) -> Response:
    path = request.url.path
    headers = dict(error.headers or {})
    message = {
        404: f"this server has no {path}: its API has /v1/models, /v1/chat/completions and /v1/completions",
        405: f"{path} does not accept the method {request.method}: use {headers.get('Allow', 'another one')}",
    }
    return await _api_error(
        request, ApiError(error.status_code, message.get(error.status_code, error.detail), headers=headers)
    )


async def _gone(_: Request, __: ClientDisconnect) -> Response:
    return Response(status_code=499)  # not sent, because the client is gone


async def _failure(request: Request, error: Exception) -> Response:
    return await _api_error(request, _described_error(error))
