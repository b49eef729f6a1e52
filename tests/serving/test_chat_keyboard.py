"""The chat page with the keyboard alone, in real Chromium against a real server."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from browser import opened
from chat_page import wait_for_end, without_end
from serving_models import Running, served_of

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

TABS = ["link Skip to the message field", "link Chat", "link Look inside", "link Runs"]
HISTORY = ["button New conversation", "button Import", "button hello", "button delete hello"]
BAR = ["checkbox talker", "checkbox writer", "checkbox Token probabilities", "button Export", "button Settings"]
NUMBERS = ["Temperature", "Top-p", "Top-k", "Min-p", "Repetition penalty", "Longest answer", "Seed"]
SETTINGS = ["combobox Preset", *(f"spinbutton {name}" for name in NUMBERS), "textbox System prompt"]
ANSWER = ["button Regenerate", "button Copy"]
VARIANTS = ["button previous answer", "button next answer"]
COMPOSER = ["textbox Message", "button Send"]

# What is wrong with the place of the focus: it must be seen whole, with its outline.
HIDDEN_FOCUS = """async () => {
  await new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn)));  // the page has scrolled then
  const element = document.activeElement, wrong = [];
  const { outlineStyle, outlineWidth, outlineOffset } = getComputedStyle(element);
  if (outlineStyle === "none") wrong.push("no outline");
  const reach = parseFloat(outlineWidth) + parseFloat(outlineOffset);
  const { left, top, right, bottom } = element.getBoundingClientRect();
  const isWithin = (box) =>
    left - reach >= box.left && top - reach >= box.top && right + reach <= box.right && bottom + reach <= box.bottom;
  if (!isWithin(new DOMRect(0, 0, innerWidth, innerHeight))) wrong.push("outside of the window");
  for (let parent = element.parentElement; parent !== document.documentElement; parent = parent.parentElement) {
    const clips = getComputedStyle(parent).overflow !== "visible";
    if (clips && !isWithin(parent.getBoundingClientRect())) wrong.push(`cut off by ${parent.id || parent.className}`);
  }
  const shown = document.elementFromPoint((left + right) / 2, (top + bottom) / 2);
  if (!shown) wrong.push("not in the window");
  else if (!element.contains(shown)) wrong.push(`covered by ${shown.id || shown.className}`);
  return wrong;
}"""


@pytest.fixture(scope="module")
def site() -> Iterator[Running]:
    """A model that chats and one that does not."""
    running = Running(served_of("talker", True), served_of("writer", False))
    yield running
    running.stop()


@pytest.fixture(params=[False, True], ids=["desk", "phone"])
def phone(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def page(browser: Browser, site: Running, phone: bool) -> Iterator[Page]:
    """A page without conversations."""
    with opened(browser, site.url, phone=phone) as page:
        page.route("**/completions", without_end)
        page.wait_for_selector(".welcome")
        yield page


@pytest.fixture
def keys(page: Page) -> Keyboard:
    return Keyboard(page)


class Keyboard:
    """The keyboard of somebody who sees where the focus is, or hears what has it."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.session = page.context.new_cdp_session(page)

    @property
    def focused(self) -> str:
        """The role and the name that a screen reader says for the element with the focus; empty where there is none."""
        element = self.session.send("Runtime.evaluate", {"expression": "document.activeElement"})["result"]["objectId"]
        options = {"objectId": element, "fetchRelatives": False}
        (node,) = self.session.send("Accessibility.getPartialAXTree", options)["nodes"]
        return "" if node["ignored"] else f"{node['role']['value']} {node['name']['value']}"

    def press(self, *keys: str) -> str:
        """Press keys, and return what has the focus then; it must be seen."""
        for key in keys:
            self.page.keyboard.press(key)
        name = self.focused
        assert not name or self.page.evaluate(HIDDEN_FOCUS) == [], name
        return name

    def walk(self, key: str) -> list[str]:
        """Press a key until the focus leaves the page, and return all that had the focus."""
        names = []
        while name := self.press(key):
            names.append(name)
            assert len(names) < 100
        return names

    def go_to(self, name: str, key: str = "Tab") -> None:
        """Press a key until a control has the focus."""
        for _ in range(100):
            if self.press(key) == name:
                return
        raise AssertionError(f"{key} never reaches {name}")

    def write(self, text: str) -> None:
        self.page.keyboard.type(text)


def with_an_answer(keys: Keyboard, tokens: int = 20) -> None:
    """Choose a short answer in the settings, and send a message."""
    keys.go_to("button Settings", "Shift+Tab")
    keys.press("Enter")
    keys.go_to("spinbutton Longest answer")
    keys.write(str(tokens))
    assert keys.press("Escape") == "button Settings"
    keys.go_to("textbox Message")
    keys.write("hello")
    assert keys.press("Enter") == "textbox Message"
    wait_for_end(keys.page)
    keys.page.locator("#conversations .title", has_text="hello").wait_for(state="attached")


def test_tab_reaches_every_control_in_the_order_of_reading(page: Page, keys: Keyboard, phone: bool) -> None:
    with_an_answer(keys)
    keys.go_to("checkbox Token probabilities", "Shift+Tab")
    keys.press("Space")
    keys.go_to("button Settings")
    keys.press("Space")
    keys.walk("Tab")
    text = page.locator(".answer .text").text_content() or ""
    assert text
    first = page.locator(".token").first.get_attribute("aria-label")
    assert first is not None
    assert first.startswith(f"“{text[0]}”, ")
    start = ["button Conversations"] if phone else HISTORY
    expected = [*TABS, *start, *BAR, *SETTINGS, "button Edit", f"button {first}", *ANSWER, *COMPOSER]
    assert keys.walk("Tab") == expected
    assert keys.walk("Shift+Tab") == expected[::-1]


def test_every_function_is_operated_without_losing_the_focus(page: Page, keys: Keyboard) -> None:
    keys.go_to("button Settings", "Shift+Tab")
    keys.press("Enter")
    keys.go_to("combobox Preset")
    keys.write("creative")
    assert page.get_by_label("Temperature").input_value() == "1.1"
    keys.go_to("spinbutton Longest answer")
    keys.write("30000")
    keys.go_to("textbox System prompt")
    keys.write("Be kind.")
    keys.press("Escape")

    keys.go_to("button Tell me a story about Lily, who makes a kite with a friend in the park.")
    with page.expect_request("**/completions") as sent:
        assert keys.press("Enter") == "button Stop"  # the example has gone
    request = sent.value.post_data_json
    assert (request["temperature"], request["max_tokens"]) == (1.1, 30_000)
    assert request["messages"][0] == {"role": "system", "content": "Be kind."}
    page.locator(".answer .text", has_text=re.compile(".{5}")).wait_for()
    keys.press("Space")
    wait_for_end(page)
    assert keys.focused == "textbox Message"
    assert "stopped" in page.locator(".facts").inner_text()

    keys.go_to("button Settings", "Shift+Tab")
    keys.press("Enter")
    keys.go_to("spinbutton Longest answer")
    keys.press("Control+a")
    keys.write("12")
    keys.press("Escape")
    keys.go_to("button Regenerate")
    keys.press("Enter")
    wait_for_end(page)
    assert keys.focused == "button Regenerate"
    assert keys.press("Tab", "Tab") == "button previous answer"
    assert keys.press("Enter") == "button previous answer"
    assert "1 of 2" in page.locator(".answer footer").inner_text()
    assert keys.press("Tab", "Space") == "button next answer"

    keys.go_to("textbox Message")
    assert keys.press("ArrowUp") == "textbox edited message"
    assert keys.press("Escape") == "textbox Message"
    keys.go_to("button Edit", "Shift+Tab")
    assert keys.press("Enter", "Tab") == "button Cancel"
    assert keys.press("Enter") == "button Edit"
    assert keys.press("Enter", "Tab", "Tab") == "button Send again"
    assert keys.press("Enter") == "button Stop"
    wait_for_end(page)
    assert keys.focused == "textbox Message"
    assert page.locator("#conversations li").count() == 2


def test_alternatives_are_opened_chosen_and_left_with_the_keyboard(page: Page, keys: Keyboard) -> None:
    with_an_answer(keys)
    keys.go_to("checkbox Token probabilities", "Shift+Tab")
    keys.press("Space")
    first, second = (page.locator(".token").nth(i).get_attribute("aria-label") for i in (0, 1))
    keys.go_to(f"button {first}")
    assert keys.press("ArrowRight") == f"button {second}"
    assert keys.press("Shift+Tab", "Tab") == f"button {second}"  # the answer's place is kept
    choices = page.locator("#alternatives button:not(:disabled)")

    keys.press("Enter")
    names = choices.evaluate_all("all => all.map((one) => [...one.children].map((part) => part.textContent).join(' '))")
    assert len(names) > 2
    assert keys.press("ArrowUp") == f"button {names[-1]}"
    assert keys.press("ArrowDown") == f"button {names[0]}"
    assert keys.press("Escape") == f"button {second}"
    assert choices.first.is_hidden()

    keys.press("Space")
    assert [keys.press("Tab") for _ in names] == [*(f"button {name}" for name in names[1:]), "button Regenerate"]
    assert choices.first.is_hidden()

    keys.go_to(f"button {second}", "Shift+Tab")
    keys.press("Enter")
    other = choices.and_(page.locator(":not([aria-current])")).first
    name = other.locator("span").first.text_content()
    other_name = f"button {name} {other.locator('span').last.text_content()}"
    while keys.focused != other_name:
        keys.press("ArrowDown")
    keys.press("Enter")
    wait_for_end(page)
    chosen = page.locator(".token").nth(1)
    assert (chosen.text_content() or "").replace(" ", "·").replace("\n", "↵") == name
    assert keys.focused == f"button {chosen.get_attribute('aria-label')}"


def test_conversations_are_opened_and_deleted_with_the_keyboard(page: Page, keys: Keyboard, phone: bool) -> None:
    def go_to_history(name: str) -> None:
        if phone:
            keys.go_to("button Conversations", "Shift+Tab")
            assert keys.press("Enter") == HISTORY[0]
            if name != HISTORY[0]:
                keys.go_to(name)
        else:
            keys.go_to(name, "Shift+Tab")

    with_an_answer(keys)
    go_to_history("button New conversation")
    assert keys.press("Enter") == "textbox Message"
    go_to_history("button hello")
    keys.press("Enter")
    page.wait_for_function("document.activeElement.id === 'thread'")  # after the conversation was read from the store
    assert keys.focused == "region Conversation"
    assert page.locator(".question .text").all_inner_texts() == ["hello"]
    assert keys.press("Tab") == "button Edit"

    page.once("dialog", lambda dialog: dialog.dismiss())
    go_to_history("button delete hello")
    assert keys.press("Enter") == "button delete hello"
    page.once("dialog", lambda dialog: dialog.accept())
    keys.press("Enter")
    page.wait_for_selector("#conversations li", state="detached")
    assert keys.focused == "button New conversation"
    if phone:
        assert keys.press("Escape") == "button Conversations"
        keys.press("Enter")
        assert keys.press("Shift+Tab") == "link Runs"  # the list does not stay open over the page
        assert page.locator("#history").is_hidden()
