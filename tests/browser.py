"""Pages in real Chromium, through Playwright: what a test needs to open and check one."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from conftest import PATIENCE

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
AXE = Path(__file__).parent / "vendor" / "axe.min.js"
PHONE = {"width": 400, "height": 800}
DESK = {"width": 1400, "height": 900}
WINDOWS = [(False, True), (True, False), (False, False), (True, True)]  # (phone, dark)


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Start Chromium; skip the test where there is none."""
    if CHROMIUM is None:
        pytest.skip("no Chromium here")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextlib.contextmanager
def opened(browser: Browser, url: str, *, phone: bool = False, dark: bool = False, csp: bool = True) -> Iterator[Page]:
    """Open a page; fail if it logs an error or throws one."""
    context = browser.new_context(
        viewport=PHONE if phone else DESK,
        color_scheme="dark" if dark else "light",
        bypass_csp=not csp,
        accept_downloads=True,
    )
    context.set_default_timeout(1000 * PATIENCE)  # on a crowded machine a page takes many seconds
    page, errors = context.new_page(), list[str]()

    def note(message: ConsoleMessage) -> None:
        is_refusal = message.text.startswith("Failed to load resource: the server responded with a status of 4")
        if message.type in ("error", "warning") and not is_refusal:  # a page may ask for what a run does not have
            errors.append(message.text)

    page.on("console", note)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(url)
    yield page
    context.close()
    assert errors == []


def serious_findings(page: Page) -> list[str]:
    """Return what axe-core finds wrong for people with disabilities, if it is serious; the page must bypass its CSP."""
    page.add_script_tag(path=AXE)
    found = page.evaluate("axe.run()")["violations"]
    return [
        f"{rule['id']}: {rule['nodes'][0]['html'][:120]}" for rule in found if rule["impact"] in ("serious", "critical")
    ]


def begins_at_the_right(page: Page, selector: str) -> bool:
    """Show a Hebrew line in an element, and tell whether its first letter is at the right end of the element.

    In a line from the right to the left, the full stop at the end is to the left of the first letter.
    """
    shown = page.locator(selector).first.evaluate(
        """(element) => {
            element.textContent = "שלום, עולם.";
            const [text, style] = [element.firstChild, getComputedStyle(element)];
            const place = (i) => {
                const range = document.createRange();
                range.setStart(text, i);
                range.setEnd(text, i + 1);
                return range.getBoundingClientRect();
            };
            const edge = parseFloat(style.paddingRight) + parseFloat(style.borderRightWidth);
            const right = element.getBoundingClientRect().right - edge;
            return place(10).right < place(0).left && Math.abs(place(0).right - right) < 2;
        }"""
    )
    return bool(shown)


def has_sideways_scroll(page: Page) -> bool:
    """Tell whether the page is wider than its window."""
    return bool(page.evaluate("document.documentElement.scrollWidth > innerWidth"))
