"""Define the page Chat of the web site, and the files that all pages of the site share. Other packages define other pages."""

from __future__ import annotations

import dataclasses
import mimetypes
from collections.abc import Callable
from pathlib import Path

import jinja2
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from positron.inference.sampling import PRESETS
from positron.serving.json_answer import JSONAnswer
from positron.serving.security import PAGE_POLICY

_HERE = Path(__file__).parent
_OF_THE_API = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")  # settings that the page can change

for _kind, _suffix in (("text/javascript", ".js"), ("text/css", ".css"), ("application/wasm", ".wasm")):
    mimetypes.add_type(_kind, _suffix)  # Windows may have other entries, with which a browser refuses the file


def page(template: Path) -> Callable[[Request], Response]:
    """Render a page, and return the function that answers a request for it.

    `template`: a Jinja template that extends `page.html.jinja`. It is rendered once, without variables.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, _HERE]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    content = environment.get_template(template.name).render()

    def endpoint(_: Request) -> Response:
        return HTMLResponse(content, headers={"Content-Security-Policy": PAGE_POLICY})

    return endpoint


def routes() -> list[BaseRoute]:
    """Return the routes of the page Chat, of the presets that it offers, and of the files that all pages share.

    Put these routes at the end of the site's list of routes, because one of them matches every path below /static.
    """

    def presets(_: Request) -> Response:
        values = {name: dataclasses.asdict(sampling) for name, sampling in PRESETS.items()}
        return JSONAnswer({name: {key: value[key] for key in _OF_THE_API} for name, value in values.items()})

    return [
        Route("/", page(_HERE / "chat.html.jinja")),
        Route("/api/presets", presets),
        Mount("/static", StaticFiles(directory=_HERE / "static")),
    ]
