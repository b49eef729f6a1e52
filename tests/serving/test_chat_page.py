"""The page to chat with models, in real Chromium against a real server."""

from __future__ import annotations

import itertools
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from string import ascii_lowercase
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from browser import WINDOWS, has_sideways_scroll, opened, serious_findings
from chat_page import wait_for_end, without_end
from conftest import PATIENCE
from serving_models import CONTEXT, Running, served_of

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


@pytest.fixture(scope="module")
def site() -> Iterator[Running]:
    """A model that chats and one that does not."""
    running = Running(served_of("talker", True), served_of("writer", False))
    yield running
    running.stop()


@pytest.fixture(scope="module")
def window(browser: Browser, site: Running) -> Iterator[Page]:
    """One window for all tests, which compiles the scripts once; it fails at its end if anything was logged."""
    with opened(browser, site.url) as page:
        page.route("**/completions", without_end)
        yield page


@pytest.fixture
def page(window: Page, site: Running) -> Page:
    """The page as a browser shows it that has no conversations."""
    window.goto("about:blank")
    storage = {"origin": site.url, "storageTypes": "all"}
    window.context.new_cdp_session(window).send("Storage.clearDataForOrigin", storage)
    window.goto(site.url)
    window.wait_for_selector(".welcome")
    return window


def send(page: Page, text: str) -> None:
    page.fill("#question", text)
    page.press("#question", "Enter")


def limit(page: Page, tokens: int) -> None:
    page.click("#show-settings")
    page.get_by_label("Longest answer").fill(str(tokens))
    page.get_by_label("Longest answer").press("Tab")
    page.click("#show-settings")


def texts(page: Page) -> list[str]:
    return page.locator(".answer .text").all_inner_texts()


def wait_for_some_text(page: Page) -> None:
    until = time.monotonic() + PATIENCE
    while len(page.locator(".answer .text").text_content() or "") < 4:
        assert time.monotonic() < until
        page.wait_for_timeout(5)


def test_an_answer_is_streamed_and_is_there_after_a_reload(page: Page) -> None:
    limit(page, 12)
    send(page, "hello")
    wait_for_end(page)
    (answer,) = texts(page)
    assert answer
    assert "12 tokens" in page.locator(".facts").inner_text()
    page.reload()
    page.locator("#conversations .title", has_text="hello").click()
    assert texts(page) == [answer]


def test_another_tab_and_a_reload_keep_the_open_conversation_and_the_message_that_is_being_written(page: Page) -> None:
    limit(page, 12)
    send(page, "hello")
    wait_for_end(page)
    shown = texts(page)
    page.fill("#question", "not sent yet")
    page.get_by_role("link", name="Runs").click()
    page.go_back()
    page.wait_for_selector(".answer")
    assert texts(page) == shown
    assert page.input_value("#question") == "not sent yet"
    page.press("#question", "Enter")
    wait_for_end(page)
    page.reload()
    page.locator(".answer").nth(1).wait_for()
    assert page.input_value("#question") == ""
    page.click("#new")
    page.reload()
    page.wait_for_selector(".welcome")


def question_without_answer(site: Running) -> str:
    """Return a question to which the likeliest answer ends before its first token."""
    for question in map("".join, itertools.product(ascii_lowercase, repeat=2)):
        body = {
            "model": "talker",
            "messages": [{"role": "user", "content": question}],
            "temperature": 0,
            "max_tokens": 1,
        }
        answer = httpx.post(f"{site.url}/v1/chat/completions", json=body, timeout=PATIENCE).json()
        if answer["choices"][0]["finish_reason"] == "stop":
            return question
    raise AssertionError("the model never ends its answer at once")


def test_an_answer_without_text_says_so(browser: Browser, site: Running) -> None:
    with opened(browser, site.url) as page:
        page.wait_for_selector(".welcome")
        page.click("#show-settings")
        page.get_by_label("Temperature").fill("0")
        page.get_by_label("Temperature").press("Tab")
        page.click("#show-settings")
        send(page, question_without_answer(site))
        wait_for_end(page)
        assert texts(page) == [""]
        assert page.locator(".answer .facts").inner_text() == "no text: the model ended its answer at once"


def choose_models(page: Page, *names: str) -> None:
    for name in names:
        page.get_by_label(name).check()
    for name in {"talker", "writer"} - set(names):
        page.get_by_label(name).uncheck()


def test_a_continued_text_has_its_beginning_and_ends_with_the_context(page: Page) -> None:
    choose_models(page, "writer")
    send(page, "hello")
    wait_for_end(page)
    assert texts(page)[0].startswith("hello")
    assert f"{CONTEXT} tokens" in page.locator(".facts").inner_text()
    page.check("#show-tokens")
    assert texts(page)[0].startswith("hello")
    first = page.locator(".token").first
    first.focus()
    first.press("ArrowLeft")  # before the first token there is only the beginning
    assert page.evaluate("document.activeElement.className") == "token"


@pytest.mark.parametrize("path", ["", "/look"])
def test_without_a_run_the_page_says_so(browser: Browser, tmp_path: Path, path: str) -> None:
    server = Running(folder=tmp_path)
    try:
        with opened(browser, server.url + path) as page:
            message = page.get_by_text("There is no trained run yet")
            message.wait_for()
            if path == "/look":  # in the colour of errors
                assert message.evaluate("element => getComputedStyle(element).color") == "rgb(179, 38, 30)"
            else:
                assert page.locator("#question").is_disabled()
    finally:
        server.stop()


def test_a_model_may_have_any_name(browser: Browser) -> None:
    names = ["__proto__", "constructor", "<b>ü 日本</b>"]
    server = Running(*(served_of(name, True) for name in names))
    try:
        with opened(browser, server.url) as page:
            page.wait_for_selector(".welcome")
            for name in names:
                page.get_by_label(name).check()
            limit(page, 5)
            send(page, "hello")
            wait_for_end(page)
            assert page.locator(".answer h3").all_inner_texts() == names
    finally:
        server.stop()


def test_stop_ends_an_answer_and_keeps_what_was_written(page: Page) -> None:
    limit(page, 30_000)
    send(page, "hello")
    page.locator(".answer .text", has_text=re.compile(".{5}")).wait_for()
    page.keyboard.press("Escape")
    wait_for_end(page)
    assert "stopped" in page.locator(".facts").inner_text()
    assert texts(page)[0]


def test_a_selected_alternative_is_where_the_next_answer_continues(page: Page) -> None:
    limit(page, 8)
    send(page, "hello")
    wait_for_end(page)
    before = page.locator(".answer .text").inner_text()
    page.check("#show-tokens")
    page.locator(".token").nth(1).click()
    other = page.locator("#alternatives button:not(:disabled):not([aria-current])").first
    letter = other.locator("span").first.inner_text().replace("·", " ").replace("↵", "\n")
    other.click()
    wait_for_end(page)
    page.uncheck("#show-tokens")
    after = page.locator(".answer .text").text_content() or ""
    assert after[0] == before[0]
    assert after[1] == letter != before[1]
    assert len(after) > 2
    assert "2 of 2" in page.locator(".answer footer").inner_text()


def test_an_alternative_at_the_end_of_a_text_that_has_filled_the_context_continues_it(page: Page) -> None:
    choose_models(page, "writer")
    send(page, "a beginning that takes some of the context")
    wait_for_end(page)
    page.get_by_label("Token probabilities").check()
    page.locator(".token").nth(CONTEXT - 2).click()
    page.locator("#alternatives button:not(:disabled)").first.click()
    wait_for_end(page)
    assert page.locator(".answer .error").is_hidden()
    assert page.locator(".token").count() > CONTEXT - 2


def test_an_alternative_after_parts_of_a_character_continues_after_the_character(page: Page) -> None:
    join = "async (tokens) => (await import('./static/chat/tokens.js')).textOf(tokens)"
    tokens = [
        ["a"],
        ["bytes:\\xc3"],
        ["bytes:\\xa9"],
        ["\U0001f600"],
        ["bytes:\\xe4\\xb8"],
        ["bytes:\\xad"],
        ["bytes:"],
    ]
    assert page.evaluate(join, tokens) == "aé😀中bytes:"


def test_a_character_of_several_tokens_is_shown_at_the_last_of_them(page: Page) -> None:
    make = """async (names) => {
        const { reader, tokenElement } = await import('./static/chat/tokens.js');
        const added = reader();
        const elements = names.map((name) => tokenElement([name, -1], added(name), () => {}));
        return elements.map((made) => [made.textContent, made.title]);
    }"""
    made = page.evaluate(make, ["a", "bytes:\\xc3", "bytes:\\xa9", "bytes:"])
    assert [text for text, _ in made] == ["a", "", "é", "bytes:"]
    assert made[1][1] == "part of a character (c3): 37 %"


def test_an_answer_that_another_conversation_interrupts_is_kept(page: Page) -> None:
    limit(page, 4)
    send(page, "first")
    wait_for_end(page)
    page.click("#new")
    limit(page, 90)
    send(page, "second")
    wait_for_some_text(page)
    page.locator("#conversations .title", has_text="first").click()
    page.wait_for_selector("#conversations li.open .title:has-text('first')")
    page.locator("#conversations .title", has_text="second").click()
    page.wait_for_selector("#conversations li.open .title:has-text('second')")
    (kept,) = texts(page)
    assert len(kept) > 3


def test_the_part_of_an_answer_that_was_written_is_there_after_a_reload(page: Page) -> None:
    limit(page, 20_000)
    send(page, "hello")
    stored = page.wait_for_function("""async () => {
        const { openStore } = await import("/static/chat/store.js");
        const [conversation] = await (await openStore()).all();
        return conversation?.turns[0].answers.talker.variants[0].text;
    }""").json_value()
    assert page.locator("#stop").is_visible()  # the answer is still being written
    page.reload()
    page.locator("#conversations .title").click()
    page.wait_for_selector(".answer .text")
    assert texts(page)[0].startswith(stored)
    assert "stopped" in page.locator(".answer .facts").inner_text()


def test_a_conversation_that_is_deleted_while_it_answers_stays_deleted(page: Page) -> None:
    send(page, "secret")
    wait_for_some_text(page)
    page.once("dialog", lambda dialog: dialog.accept())
    page.get_by_label("delete secret").click()
    page.wait_for_selector(".welcome")
    page.wait_for_selector("#stop", state="hidden")
    page.reload()
    page.wait_for_selector(".welcome")
    limit(page, 4)
    send(page, "hello")
    wait_for_end(page)
    assert page.locator("#conversations .title").all_inner_texts() == ["hello"]


def test_a_page_with_an_older_state_of_a_conversation_saves_a_copy_and_keeps_the_turns_of_another_page(
    page: Page, site: Running
) -> None:
    def opened_again() -> list[str]:
        other.goto(site.url)
        other.locator("#conversations").get_by_text("hello", exact=True).click()
        other.locator(".question").first.wait_for()
        return other.locator(".question .text").all_inner_texts()

    limit(page, 4)
    send(page, "hello")
    wait_for_end(page)
    other = page.context.new_page()
    other.route("**/completions", without_end)
    assert opened_again() == ["hello"]
    send(other, "and again")
    wait_for_end(other)
    for tokens in (5, 6):  # each change of a setting is saved; the second one belongs to the copy
        limit(page, tokens)
        page.locator("#conversations .open", has_text="hello (copy)").wait_for()
    assert page.locator("#trouble").inner_text().endswith("so this tab has saved it as “hello (copy)”.")
    assert opened_again() == ["hello", "and again"]
    assert other.locator("#conversations .title").all_inner_texts() == ["hello (copy)", "hello"]
    other.close()


def test_two_savings_at_the_same_time_make_no_copy(page: Page) -> None:
    copies = page.evaluate("""async () => {
        const { openStore } = await import("/static/chat/store.js");
        const store = await openStore();
        const conversation = { id: "a", title: "hello", updated: 0, turns: [] };
        let time = 0;
        Date.now = () => ++time;
        return Promise.all([1, 2, 3].map(() => store.put(conversation)));
    }""")
    assert copies == [False, False, False]


def test_a_conversation_that_no_longer_fits_the_storage_of_the_browser_is_reported(page: Page, site: Running) -> None:
    quota = {"origin": site.url, "quotaSize": 1}
    devtools = page.context.new_cdp_session(page)
    devtools.send("Storage.overrideQuotaForOrigin", quota)
    send(page, "hello")
    page.locator("#trouble", has_text="cannot be saved in this browser").wait_for()
    wait_for_end(page)
    devtools.send("Storage.overrideQuotaForOrigin", {"origin": site.url})


def test_regenerated_answers_are_kept_beside_the_first(page: Page) -> None:
    limit(page, 10)
    page.click("#show-settings")
    page.get_by_label("Preset").select_option("creative")
    page.click("#show-settings")
    send(page, "hello")
    wait_for_end(page)
    (first,) = texts(page)
    page.get_by_text("Regenerate").click()
    wait_for_end(page)
    assert texts(page) != [first]
    page.get_by_label("previous answer").click()
    assert texts(page) == [first]


def test_an_edited_message_begins_another_conversation(page: Page) -> None:
    limit(page, 5)
    send(page, "one")
    wait_for_end(page)
    page.press("#question", "ArrowUp")
    page.get_by_label("edited message").fill("two")
    page.get_by_text("Send again").click()
    wait_for_end(page)
    assert page.locator(".question .text").all_inner_texts() == ["two"]
    assert sorted(page.locator("#conversations .title").all_inner_texts()) == ["one", "two"]


def test_models_answer_beside_each_other(page: Page) -> None:
    limit(page, 5)
    page.get_by_label("writer").check()
    send(page, "hello")
    wait_for_end(page)
    assert page.locator(".answer h3").all_inner_texts() == ["talker", "writer"]
    assert page.locator(".answer .beginning").all_inner_texts() == ["hello"]  # what the second one continues


def test_markup_in_a_message_stays_text(page: Page) -> None:
    text = "<img src=x onerror=\"document.title='gotcha'\"><b>bold</b>"
    limit(page, 5)
    send(page, text)
    wait_for_end(page)
    assert page.locator(".question .text").inner_text() == text
    assert page.locator("#conversations .title").inner_text() == text[:60]
    assert page.locator("main img, main b, aside img").count() == 0
    assert page.title() == "Positron · Chat"


def test_a_preset_fills_the_fields_and_a_changed_field_is_custom(page: Page) -> None:
    page.click("#show-settings")
    page.get_by_label("Preset").select_option("creative")
    assert page.get_by_label("Temperature").input_value() == "1.1"
    page.get_by_label("Temperature").fill("0.7")
    page.get_by_label("Temperature").press("Tab")
    assert page.get_by_label("Preset").input_value() == "custom"
    with page.expect_request("**/completions") as sent:
        send(page, "hello")
    assert sent.value.post_data_json["temperature"] == 0.7
    wait_for_end(page)


@pytest.mark.parametrize(("label", "largest"), [("Seed", 2**52), ("Top-k", 2**52), ("Longest answer", 32768)])
def test_a_setting_that_the_server_or_an_exported_file_cannot_hold_is_refused_at_its_field(
    page: Page, label: str, largest: int
) -> None:
    page.click("#show-settings")
    field = page.get_by_label(label)
    for value in (str(largest), str(10 * largest), "1e30"):
        field.fill(value)
        field.press("Tab")
        assert field.evaluate("(field) => field.validity.valid") == (value == str(largest))
    if label != "Longest answer":  # the model would write for long
        with page.expect_request("**/completions") as sent:
            send(page, "hello")
        assert sent.value.post_data_json[label.lower().replace("-", "_")] == largest
        page.keyboard.press("Escape")
        wait_for_end(page)
        assert page.locator(".answer .error").is_hidden()


def test_the_exported_file_holds_the_conversation(page: Page) -> None:
    limit(page, 5)
    send(page, "hello")
    wait_for_end(page)
    saved = exported(page)
    assert saved["version"] == 1
    (turn,) = saved["conversation"]["turns"]
    assert turn["user"] == "hello"
    assert turn["answers"]["talker"]["variants"][0]["text"] == page.locator(".answer .text").text_content()


def exported(page: Page) -> dict[str, Any]:
    with page.expect_download() as download:
        page.click("#export")
    content: dict[str, Any] = json.loads(download.value.path().read_text(encoding="utf-8"))
    return content


def choose_file(page: Page, folder: Path, content: bytes) -> None:
    path = folder / "chat.json"
    path.write_bytes(content)
    with page.expect_file_chooser() as chooser:
        page.click("#import")
    chooser.value.set_files(path)


def test_an_exported_conversation_continues_where_it_is_imported(
    page: Page, browser: Browser, site: Running, tmp_path: Path
) -> None:
    limit(page, 5)
    page.get_by_label("writer").check()
    send(page, "hello")
    wait_for_end(page)
    page.get_by_text("Regenerate").first.click()
    wait_for_end(page)
    saved = exported(page)
    with opened(browser, site.url) as other:  # a browser with its own conversations
        other.wait_for_selector(".welcome")
        choose_file(other, tmp_path, json.dumps(saved).encode())
        other.wait_for_selector(".answer")
        assert texts(other) == texts(page)
        again = exported(other)
        for file in (saved, again):
            del file["conversation"]["updated"]
        assert again["conversation"].pop("id") != saved["conversation"].pop("id")  # it replaces no conversation
        assert again == saved
        send(other, "more")
        wait_for_end(other)
        other.reload()
        other.locator("#conversations .title", has_text="hello").click()
        assert other.locator(".question .text").all_inner_texts() == ["hello", "more"]


def a_file(**changes: Any) -> bytes:
    """Return an exported file; each change names a field by its path, with two underscores between the parts."""
    answer = {"text": "b", "prefix": "", "tokens": [["b", -0.5, [["b", -0.5], ["c", -1.0]]]], "continues": False}
    variant = {**answer, "finish": "length", "count": 1, "seconds": 0.2, "first": 0.1}
    sampling = {"temperature": 1, "top_p": None, "top_k": 5, "min_p": None, "repetition_penalty": 1}
    conversation: Any = {
        "title": "imported",
        "models": ["talker"],
        "settings": {**sampling, "max_tokens": None, "seed": 0, "system": ""},
        "turns": [{"user": "a", "answers": {"talker": {"shown": 0, "variants": [variant]}}}],
    }
    content = {"version": 1, "conversation": conversation}
    for path, value in changes.items():
        *parents, last = [int(part) if part.isdigit() else part for part in path.split("__")]
        place: Any = content
        for part in parents:
            place = place[part]
        place[last] = value
    return json.dumps(content).encode()


VARIANT = "conversation__turns__0__answers__talker__variants__0"
BAD_FILES = [
    (b"{", "it is not JSON"),
    (b"null", "not a conversation that this page has exported"),
    (a_file(version=2), "not a conversation that this page has exported"),
    (a_file(conversation=[]), "conversation must be an object"),
    (a_file(conversation__title=" "), "conversation.title must be a text that is not empty"),
    (a_file(conversation__turns=[]), "its conversation is empty"),
    (a_file(conversation__turns=[{}]), "conversation.turns[0].user must be a text"),
    (a_file(conversation__settings__temperature=6), "conversation.settings.temperature must be a number from 0 to 5"),
    (a_file(conversation__settings__seed=0.5), "conversation.settings.seed must be a whole number from 0 to "),
    (a_file(conversation__turns__0__answers__talker__shown=1), "answers.talker.shown must be the number of a variant"),
    (a_file(**{f"{VARIANT}__tokens": [["b", None, []]]}), "variants[0].tokens[0][1] must be a number of at most 0"),
    (a_file(**{f"{VARIANT}__text": {"toString": 1}}), "variants[0].text must be a text"),
    (b"x" * (32 * 2**20 + 1), "it has 33554433 bytes and may have at most 33554432"),
]


def test_a_file_that_holds_no_conversation_changes_nothing(page: Page, tmp_path: Path) -> None:
    limit(page, 5)
    send(page, "hello")
    wait_for_end(page)
    before = exported(page)
    for content, reason in BAD_FILES:
        choose_file(page, tmp_path, content)
        page.locator("#trouble", has_text=reason).wait_for()
        message = page.inner_text("#trouble")
        assert message.startswith("chat.json cannot be imported: ")
        assert "\n" not in message
    assert exported(page) == before
    assert page.locator("#conversations .title").all_inner_texts() == ["hello"]
    choose_file(page, tmp_path, a_file())
    page.locator(".question .text", has_text="a").wait_for()
    assert page.locator("#trouble").is_hidden()


def test_an_error_of_the_server_is_shown_at_the_answer(page: Page) -> None:
    refusal = {"error": {"message": "there are too many requests: send it again later", "type": "error"}}
    page.route("**/v1/chat/completions", lambda route: route.fulfill(status=429, json=refusal), times=1)
    send(page, "hello")
    wait_for_end(page)
    assert "there are too many requests: send it again later" in page.locator(".answer .error").inner_text()


def test_a_message_that_is_cut_and_a_system_prompt_that_is_not_read_are_told(page: Page) -> None:
    page.click("#show-settings")
    page.get_by_label("System prompt").fill("a long order " * 20)
    page.get_by_label("System prompt").press("Tab")
    page.click("#show-settings")
    send(page, "a long question " * 20)
    wait_for_end(page)
    note = page.locator(".answer > p.faint").inner_text()
    assert "did not read it" in note
    assert "read only its end" in note
    send(page, "hello")
    page.locator(".answer > p.faint").nth(1).get_by_text("did not read the oldest turn").wait_for()


def test_a_server_with_a_key_asks_for_it(browser: Browser) -> None:
    server = Running(served_of("talker", True), key="0123456789abcdef")
    try:
        context = browser.new_context()
        page = context.new_page()
        page.goto(server.url)
        page.get_by_label("API key").fill("0123456789abcdef")
        page.get_by_text("Use this key").click()
        page.wait_for_selector(".welcome")
        context.close()
    finally:
        server.stop()


def test_a_key_that_cannot_be_sent_is_refused_and_asked_for_again(browser: Browser) -> None:
    server = Running(served_of("talker", True), key="0123456789abcdef")
    try:
        with opened(browser, server.url) as page:
            page.get_by_label("API key").fill("0123456789abcdef\N{ZERO WIDTH SPACE}")
            page.get_by_text("Use this key").click()
            page.locator("#trouble", has_text="copy or type the key again").wait_for()
            page.evaluate("sessionStorage.setItem('api-key', '0123456789abcdef\\u200b')")  # an earlier version kept it
            page.reload()
            page.get_by_label("API key").fill("0123456789abcdef ")
            page.get_by_text("Use this key").click()
            page.wait_for_selector(".welcome")
    finally:
        server.stop()


def test_the_page_works_on_another_machine_by_http(browser: Browser) -> None:
    server = Running(served_of("talker", True), key="0123456789abcdef")
    try:
        with opened(browser, f"http://0.0.0.0:{server.port}") as page:  # not a loopback address for the browser
            assert not page.evaluate("isSecureContext")
            page.get_by_label("API key").fill("0123456789abcdef")
            page.get_by_label("API key").press("Enter")
            page.wait_for_selector(".welcome")
            limit(page, 5)
            send(page, "hello")
            wait_for_end(page)
            assert texts(page) != [""]
            assert page.get_by_text("Copy").is_hidden()
            page.locator("#conversations .title", has_text="hello").wait_for()
    finally:
        server.stop()


@pytest.mark.parametrize(("phone", "dark"), WINDOWS)
def test_the_page_fits_a_phone_and_can_be_used_without_sight(
    browser: Browser, site: Running, phone: bool, dark: bool
) -> None:
    with opened(browser, site.url, phone=phone, dark=dark, csp=False) as page:
        page.wait_for_selector(".welcome")
        limit(page, 20)
        send(page, "hello")
        wait_for_end(page)
        page.check("#show-tokens")
        page.click("#show-settings")
        assert serious_findings(page) == []
        assert not has_sideways_scroll(page)
