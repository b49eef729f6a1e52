"""Define the routes that an application mounts for the inspector, the page *Look inside*.

They are /api/look, /api/truth and /api/history.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import json
import threading
from collections.abc import Callable, Mapping
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from positron.inspection.look import TOP
from positron.inspection.lookdata import Ablation, Continuation
from positron.inspection.subject import Subject
from positron.system.console import json_line
from positron.system.errors import UserError
from positron.system.exits import ABANDONED

MAX_BODY = 200_000  # maximum size of a request in bytes
MAX_PROMPT = 20_000  # maximum number of characters; a longer prompt has too many tokens in any case
MAX_ABLATIONS = 1000
SHOWN_RUNS = 8  # number of runs that the error for an unknown run lists


def routes(subjects: Mapping[str, Subject]) -> list[Route]:
    """Return the routes of the inspector. `subjects` maps the name of each run to its `Subject`.

    If there is only one run, a request may leave out the name of the run. The answer to a wrong request has the status 400, and
    the answer to a request for an unknown run has the status 404; both answers contain `{"error": {"message": ...}}`.
    """

    async def look(request: Request) -> Response:
        return await _answer(request, lambda body: _look(subjects, body))

    async def truth(request: Request) -> Response:
        return await _answer(request, lambda body: _truth(subjects, body))

    async def regrets(request: Request) -> Response:
        return await _answer(request, lambda query: _subject(subjects, query).regrets())

    async def history(request: Request) -> Response:
        return await _answer(request, lambda query: _subject(subjects, query).history())

    return [
        Route("/api/look", look, methods=["POST"]),
        Route("/api/truth", truth, methods=["POST"]),
        Route("/api/truth", regrets, methods=["GET"]),
        Route("/api/history", history, methods=["GET"]),
    ]


class _UnknownRun(UserError):
    """Report that a request names no run, or a run that the server does not have."""


async def _answer(request: Request, compute: Callable[[dict[str, Any]], Any]) -> Response:
    """Return the result of `compute` as JSON, or an error as `routes` describes it.

    `compute` gets the JSON body of a POST request, or the query parameters of a GET request. It runs in a thread, so that other
    requests do not wait. Raises ClientDisconnect if the client leaves, or the server stops, before the result is there.
    """
    try:
        values = await _body(request) if request.method == "POST" else dict(request.query_params)
        data = await _result(request, lambda: compute(values))
    except _UnknownRun as error:
        return _error(404, error)
    except UserError as error:
        return _error(400, error)
    return _json(data)


async def _result(request: Request, compute: Callable[[], Any]) -> Any:
    """Return what `compute` returns in a thread for which the end of the process does not wait."""
    result: concurrent.futures.Future[Any] = concurrent.futures.Future()
    result.set_running_or_notify_cancel()

    def run() -> None:
        try:
            result.set_result(compute())
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=run, name=ABANDONED, daemon=True).start()
    computed, gone = asyncio.wrap_future(result), asyncio.ensure_future(_disconnected(request))
    await asyncio.wait({computed, gone}, return_when=asyncio.FIRST_COMPLETED)
    gone.cancel()
    if not computed.done():
        computed.cancel()
        raise ClientDisconnect
    return computed.result()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _error(status: int, error: UserError) -> Response:
    return _json({"error": {"message": str(error), "type": "invalid_request_error"}}, status)


def _json(data: Any, status: int = 200) -> Response:
    # ASCII, so that a name that is not UTF-8 does no harm
    content = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return Response(content, status, media_type="application/json")


async def _body(request: Request) -> dict[str, Any]:
    content = b""
    async for part in request.stream():
        content += part
        if len(content) > MAX_BODY:
            raise UserError(f"the request has more than {MAX_BODY:,} bytes: send a shorter prompt")
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError('the request is not JSON: send an object such as {"prompt": "Once upon a time"}') from error
    if not isinstance(values, dict):
        raise UserError('the request must be a JSON object, such as {"prompt": "Once upon a time"}')
    return values


def _subject(subjects: Mapping[str, Subject], values: dict[str, Any]) -> Subject:
    name = values.get("run")
    if name is None and len(subjects) == 1:
        return next(iter(subjects.values()))
    if not isinstance(name, str) or name not in subjects:
        known = ", ".join(itertools.islice(subjects, SHOWN_RUNS)) + (" ..." if len(subjects) > SHOWN_RUNS else "")
        raise _UnknownRun(f"run must be one of {known}")
    return subjects[name]


def _look(subjects: Mapping[str, Subject], values: dict[str, Any]) -> Any:
    known = {"run", "prompt", "step", "ablations", "top", "focus", "attention", "scores", "continuation"}
    _refuse_unknown(values, known)
    attention = values.get("attention")
    if attention is not None and not (isinstance(attention, list) and all(map(_is_whole, attention))):
        raise UserError(f"attention must be a list of layer numbers, such as [0, 1], not {json_line(attention)}")
    scores = values.get("scores", False)
    if not isinstance(scores, bool):
        raise UserError(f"scores must be true or false, not {json_line(scores)}")
    return _subject(subjects, values).look(
        _prompt(values),
        step=_whole(values, "step", None),
        ablations=_ablations(values.get("ablations")),
        top=_whole(values, "top", TOP) or 0,
        focus=_whole(values, "focus", None),
        attention=attention,
        scores=scores,
        continuation=_continuation(values.get("continuation")),
    )


def _truth(subjects: Mapping[str, Subject], values: dict[str, Any]) -> Any:
    _refuse_unknown(values, {"run", "prompt", "step", "top"})
    step, top = _whole(values, "step", None), _whole(values, "top", TOP) or 0
    return _subject(subjects, values).truth(_prompt(values), step=step, top=top)


def _refuse_unknown(values: dict[str, Any], known: set[str], label: str = "the request") -> None:
    unknown = sorted(set(values) - known)
    if unknown:
        raise UserError(
            f"{label} has the unknown field {json_line(unknown[0])}: choose from {', '.join(sorted(known))}"
        )


def _prompt(values: dict[str, Any]) -> str:
    prompt = values.get("prompt")
    if not isinstance(prompt, str):
        raise UserError("prompt is missing or is not a text: give it as a JSON string")
    if len(prompt) > MAX_PROMPT:
        raise UserError(
            f"the prompt has {len(prompt):,} characters and may have at most {MAX_PROMPT:,}: give a shorter prompt"
        )
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"character {error.start} of prompt (counted from 0) is half of a surrogate pair, which is not a character: "
            "remove it"
        ) from error
    return prompt


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**12


def _whole(values: dict[str, Any], name: str, default: int | None) -> int | None:
    value = values.get(name)
    if value is None:
        return default
    if not _is_whole(value):
        raise UserError(f"{name} must be a whole number of at most 12 digits, not {json_line(value)}")
    return int(value)


def _ablations(value: Any) -> list[Ablation]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise UserError(f'ablations must be a list, such as [{{"layer": 0, "part": 3}}], not {json_line(value)}')
    if len(value) > MAX_ABLATIONS:
        raise UserError(f"ablations has {len(value):,} entries and may have at most {MAX_ABLATIONS:,}: leave some out")
    ablations: list[Ablation] = []
    for i, entry in enumerate(value):
        if not isinstance(entry, dict) or set(entry) != {"layer", "part"} or not _is_whole(entry["layer"]):
            raise UserError(
                f'ablations[{i}] must be an object such as {{"layer": 0, "part": 3}}, where part is the number of a head, '
                f'"attn" or "mlp", not {json_line(entry)}'
            )
        match entry["part"]:
            case "attn" | "mlp" as part:
                ablations.append({"layer": entry["layer"], "part": part})
            case part if _is_whole(part):
                ablations.append({"layer": entry["layer"], "part": part})
            case _:
                raise UserError(
                    f'part of ablations[{i}] must be the number of a head, "attn" or "mlp", not {json_line(entry["part"])}'
                )
    return ablations


def _continuation(value: Any) -> Continuation | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise UserError(
            f'continuation must be an object of sampling settings, such as {{"temperature": 0.5}}, not {json_line(value)}'
        )
    known = Continuation.__annotations__
    _refuse_unknown(value, set(known), "continuation")
    return Continuation(**{key: setting for key, setting in value.items() if setting is not None})  # type: ignore[typeddict-item]
