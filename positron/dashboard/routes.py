"""Define the routes of the tab Runs: its page, and the table, curves, samples and reports of a folder of runs."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from positron.dashboard.table import Missing, Outputs
from positron.serving.errors import ApiError
from positron.serving.json_answer import JSONAnswer
from positron.serving.pages import page

_HERE = Path(__file__).parent
# A report has inline styles and images; its scripts are forbidden.
_REPORT_POLICY = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def routes(outputs: Outputs) -> list[BaseRoute]:
    """Return the routes of the tab Runs of the web page, which shows the runs in `outputs`.

    The endpoints are not coroutines, because they read files: Starlette calls ordinary functions in threads.
    """

    def runs(_: Request) -> Any:
        return {"folder": outputs.shown, "runs": outputs.rows()}

    def curve(request: Request) -> Any:
        query = request.query_params
        after = query.get("after", "0")
        if not re.fullmatch("[0-9]{1,18}", after):
            raise Missing(f"after must be a number of bytes, not {after[:60]}")
        return outputs.curve(query.get("run", ""), query.get("key", ""), query.get("file", ""), int(after))

    def samples(request: Request) -> Any:
        return outputs.samples(request.query_params.get("run", ""))

    def differences(request: Request) -> Any:
        return outputs.differences(request.query_params.get("run", ""), request.query_params.get("other", ""))

    def report(request: Request) -> Response:
        try:
            content = outputs.report(request.query_params.get("run", ""))
        except Missing as missing:
            return _not_found(missing)
        return Response(content, media_type="text/html", headers={"Content-Security-Policy": _REPORT_POLICY})

    return [
        Route("/runs", page(_HERE / "runs.html.jinja")),
        Route("/api/runs", _as_json(runs)),
        Route("/api/curve", _as_json(curve)),
        Route("/api/samples", _as_json(samples)),
        Route("/api/differences", _as_json(differences)),
        Route("/report", report),
        Mount("/static/runs", StaticFiles(directory=_HERE / "static")),
    ]


def _as_json(answer: Callable[[Request], Any]) -> Callable[[Request], Response]:
    """Return an endpoint that sends the result of `answer(request)` as JSON, or an error 404 if it raises Missing."""

    def endpoint(request: Request) -> Response:
        try:
            return JSONAnswer(answer(request))
        except Missing as missing:
            return _not_found(missing)

    return endpoint


def _not_found(missing: Missing) -> Response:
    return JSONAnswer(ApiError(404, str(missing)).body(), status_code=404)
