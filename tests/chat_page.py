"""The page to chat, answered by models that nobody trained."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Page, Route


def without_end(route: Route) -> None:
    """Let an untrained model write on, which may end its text at any token."""
    body = json.loads(route.request.post_data or "")
    route.continue_(post_data=json.dumps({**body, "ignore_eos": True}))


def wait_for_end(page: Page) -> None:
    page.wait_for_selector("#send:not([hidden])")
