"""Build the web application: the API of the models, and one page for each tab."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

import positron.inspection
from positron.dashboard import routes as runs_tab
from positron.dashboard.table import Outputs
from positron.inspection import routes as inspection
from positron.inspection.subjects import Subjects
from positron.run.folder import Run
from positron.serving import pages
from positron.serving.app import create_app
from positron.serving.models import Models

_INSPECTOR = Path(positron.inspection.__file__).parent
_PUBLIC = frozenset({"/", "/look", "/runs", "/api/presets"})


class _Runs(Mapping[str, Run]):
    """Map names to runs. Each access searches the folder of runs again."""

    def __init__(self, find: Callable[[], dict[str, Run]]) -> None:
        self._find = find

    def __getitem__(self, name: str) -> Run:
        return self._find()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._find())

    def __len__(self) -> int:
        return len(self._find())


def site(models: Models, outputs: Outputs, key: str | None = None) -> ASGIApp:
    """Create the web application, an ASGI app.

    `models`: the models for the tabs Chat and Look inside. `outputs`: the runs for the tab Runs. `key`: the API key that
    every request must contain, except requests for the pages themselves.
    """
    look: list[BaseRoute] = [
        Route("/look", pages.page(_INSPECTOR / "look.html.jinja")),
        Mount("/static/look", StaticFiles(directory=_INSPECTOR / "static")),
        *inspection.routes(Subjects(_Runs(models.runs))),
    ]
    return create_app(models, key, [*look, *runs_tab.routes(outputs), *pages.routes()], _PUBLIC)
