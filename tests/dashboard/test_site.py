"""The web application over a folder of runs: runs are loaded when they are first used, and every tab shows them."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import torch
from browser import begins_at_the_right, has_sideways_scroll, opened, serious_findings
from conftest import PATIENCE
from serving_models import Running

from positron import load
from positron.dashboard.table import Outputs
from positron.inspection.subject import Subject
from positron.run.checkpoint import BEST, load_checkpoint
from positron.run.folder import Run
from positron.serving.models import MAX_ON_DEMAND, Models
from positron.system import disk
from positron.text.conversation import TEMPLATE

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Route

COPIES = MAX_ON_DEMAND + 1


@pytest.fixture(scope="module")
def folder(kept_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("outputs")
    for i in range(COPIES):
        shutil.copytree(kept_run.folder, folder / f"sweep/{i}")
    (folder / "empty").mkdir()
    (folder / "empty" / "run.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def site(folder: Path) -> Iterator[Running]:
    running = Running(folder=folder)
    yield running
    running.stop()


def complete(site: Running, model: str) -> httpx.Response:
    body = {"model": model, "prompt": "Tom", "max_tokens": 8, "seed": 3}
    return httpx.post(f"{site.url}/v1/completions", json=body, timeout=PATIENCE)


def test_every_run_with_a_checkpoint_is_a_model(site: Running) -> None:
    models = httpx.get(f"{site.url}/v1/models", timeout=PATIENCE).json()["data"]
    assert sorted(model["id"] for model in models) == [f"sweep/{i}" for i in range(COPIES)]
    one = httpx.get(f"{site.url}/v1/models/sweep/1", timeout=PATIENCE).json()
    assert (one["id"], one["chats"]) == ("sweep/1", False)
    assert httpx.get(f"{site.url}/v1/models/empty", timeout=PATIENCE).status_code == 404


def test_an_unchanged_run_is_not_read_again_for_the_list_of_models(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folder / "sweep/0", tmp_path / "one")
    opened_files = list[Path]()

    def note(path: Path, *args: Any, **options: Any) -> int:
        opened_files.append(path)
        return open_descriptor(path, *args, **options)

    open_descriptor = disk.open_descriptor
    monkeypatch.setattr(disk, "open_descriptor", note)
    models, run = Models(runs=Outputs(tmp_path).trained), Run(tmp_path / "one")
    first = models.describe()
    assert run.config_path in opened_files
    opened_files.clear()
    assert models.describe() == first
    assert opened_files == []
    run.chat_path.write_text(json.dumps(TEMPLATE))
    assert [model["chats"] for model in [*first, *models.describe()]] == [False, True]


def test_a_run_is_loaded_when_it_is_asked_and_only_the_last_ones_stay(site: Running, folder: Path) -> None:
    text = "".join(load(folder / "sweep/0").stream("Tom", max_tokens=8, seed=3))
    for i in range(COPIES):
        assert complete(site, f"sweep/{i}").json()["choices"][0]["text"] == text
    assert [model.name for model in site.models.loaded] == [f"sweep/{i}" for i in range(1, COPIES)]


def test_a_run_that_cannot_be_loaded_is_an_error_of_one_request(site: Running, folder: Path) -> None:
    shutil.copytree(folder / "sweep/0", folder / "damaged")
    for checkpoint in (folder / "damaged" / "checkpoints").glob("*.ckpt"):
        checkpoint.write_bytes(b"nothing")
    answer = complete(site, "damaged")
    shutil.rmtree(folder / "damaged")
    assert answer.status_code == 500
    assert "damaged" in answer.json()["error"]["message"]
    assert complete(site, "sweep/0").status_code == 200
    assert complete(site, "../sweep/0").status_code == 404


def train_further(run: Run) -> None:
    """Replace the best checkpoint by one with other weights."""
    path = run.checkpoint_folder / BEST
    checkpoint = load_checkpoint(path)
    torch.manual_seed(0)
    for weights in checkpoint["state_dict"].values():
        weights.add_(torch.randn_like(weights))
    torch.save(checkpoint, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


def test_a_run_that_was_trained_further_is_loaded_again_when_it_answers_nothing(site: Running, folder: Path) -> None:
    run = Run(shutil.copytree(folder / "sweep/0", folder / "again"))
    prompt = {"run": "again", "prompt": "Tom"}

    def written() -> list[str]:
        answers = [
            complete(site, "again").json()["choices"][0]["text"],
            httpx.post(f"{site.url}/api/look", json=prompt).text,
        ]
        assert answers[0] == "".join(load(run.folder).stream("Tom", max_tokens=8, seed=3))
        return answers

    before = written()
    body = {"model": "again", "prompt": "Tom", "max_tokens": 30_000, "n": 8, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{site.url}/v1/completions", json=body, timeout=PATIENCE) as stream:
        lines = stream.iter_lines()  # without a reference to it, httpx closes the stream
        next(lines)
        train_further(run)
        assert complete(site, "again").json()["choices"][0]["text"] == before[0]
    while sum(sum(model.worker.load) for model in site.models.loaded):
        time.sleep(0.01)
    after = written()
    assert (before[0] != after[0], before[1] != after[1]) == (True, True)
    shutil.rmtree(run.folder)
    assert complete(site, "again").status_code == 404
    assert httpx.post(f"{site.url}/api/look", json=prompt).status_code == 404


@pytest.mark.parametrize("phone", [False, True])
def test_the_inspector_shows_a_run_and_its_history(browser: Browser, site: Running, phone: bool) -> None:
    with opened(browser, f"{site.url}/look?run=sweep/1", phone=phone, csp=False) as page:
        page.locator(".look-token").first.wait_for()
        assert page.get_by_label("Run").input_value() == "sweep/1"
        page.locator(".look-history input[type=range]").wait_for()
        assert serious_findings(page) == []
        assert not has_sideways_scroll(page)


def test_what_is_typed_during_a_look_belongs_to_the_next_one(browser: Browser, site: Running) -> None:
    with opened(browser, f"{site.url}/look?run=sweep/1") as page:
        page.locator(".look-history input[type=range]").wait_for()
        held: list[Route] = []
        page.route("**/api/look", lambda route: held.append(route))
        page.fill("#look-prompt", "Tom saw")
        page.press("#look-prompt", "Enter")
        while not held:
            page.wait_for_timeout(5)
        page.fill("#look-prompt", "Tom saw a cat")
        with page.expect_request("**/api/truth") as asked:
            held[0].continue_()
        assert asked.value.post_data_json["prompt"] == "Tom saw"


def test_a_part_is_switched_off_after_the_prompt_was_shortened(browser: Browser, site: Running) -> None:
    with opened(browser, f"{site.url}/look?run=sweep/1") as page:
        page.locator(".look-history input[type=range]").wait_for()
        page.fill("#look-prompt", "Tom")
        page.get_by_label("Switch off layer 0, head 1").check()
        page.locator(".look-result, .look-trouble", has_text=re.compile("→|position")).wait_for()
        assert page.locator(".look-trouble").inner_text() == ""


@pytest.mark.parametrize("phone", [False, True])
def test_a_report_fits_its_window(browser: Browser, kept_run: Run, phone: bool) -> None:
    with opened(browser, kept_run.report_path.as_uri(), phone=phone) as page:
        page.locator("summary").click()
        assert not has_sideways_scroll(page)


def first_answer(run: Run) -> tuple[int, str]:
    """Return the first seed with which the run answers "Hi" with several characters, and that answer.

    A run of so few steps often ends its answer at once, and with which seeds depends on the kind of CPU that trained it.
    """
    subject = Subject(run)
    for seed in range(100):
        settings = {"temperature": 0.8, "top_p": 0.95, "seed": seed, "max_tokens": 200}
        answer = subject.look("Hi", continuation=settings)["continuation"]
        if answer is not None and len(answer) > 1:
            return seed, answer
    raise AssertionError("the run ends each answer at once")


def test_the_inspector_shows_the_template_around_a_message(browser: Browser, chat_run: Run) -> None:
    running = Running(folder=chat_run.folder.parent)
    try:
        with opened(browser, f"{running.url}/look") as page:
            page.get_by_label("Message").fill("Hi")
            page.get_by_label("Message").press("Enter")
            page.locator("li:nth-child(6):last-child .look-token").wait_for()
            names = page.locator(".look-token .look-text").all_inner_texts()
            assert names == ["<|endoftext|>", "<|user|>", "H", "i", "<|end|>", "<|assistant|>"]
            seed, answer = first_answer(chat_run)
            page.get_by_role("spinbutton", name="Seed").fill(str(seed))
            page.get_by_role("button", name="Generate").click()
            page.locator(".look-written ~ p:not(:empty)").wait_for()
            facts = page.locator(".look-written ~ p").inner_text()
            assert re.match(r"\d+ tokens", facts)  # no speed if all came at once
            assert page.locator(".look-written").text_content() == f"Hi\n\n{answer}"
    finally:
        running.stop()


def test_a_text_in_a_right_to_left_script_begins_at_the_right(browser: Browser, site: Running, kept_run: Run) -> None:
    with opened(browser, site.url) as page:
        page.wait_for_selector(".welcome")
        assert page.locator("#question").evaluate("(field) => getComputedStyle(field).unicodeBidi") == "plaintext"
        page.fill("#question", "hello")
        page.press("#question", "Enter")
        page.locator("#stop").wait_for(state="hidden")
        assert all(begins_at_the_right(page, one) for one in (".question .text", ".answer .text", ".title"))
        page.goto(f"{site.url}/look?run=sweep/1")
        page.locator(".look-written").wait_for()
        assert begins_at_the_right(page, ".look-written")
        page.goto(f"{site.url}/runs")
        page.locator("#sample-text:not(:empty)").wait_for()
        assert begins_at_the_right(page, "#sample-text")
        page.goto(kept_run.report_path.as_uri())
        assert begins_at_the_right(page, "blockquote")


def test_the_chat_continues_a_text_with_a_run_of_the_folder(browser: Browser, site: Running) -> None:
    with opened(browser, site.url) as page:
        page.wait_for_selector(".welcome")
        page.fill("#question", "Tom")
        page.press("#question", "Enter")
        page.locator(".answer .facts:not(:empty)").wait_for()
        assert page.locator(".answer .error").all_inner_texts() == [""]


def test_a_name_of_a_run_is_shown_as_text(browser: Browser, folder: Path) -> None:
    name = "<img src=x onerror=alert(1)>"
    shutil.copytree(folder / "sweep/0", folder / "odd" / name)
    running = Running(folder=folder / "odd")
    try:
        for tab in ("/", "/look", "/runs"):
            with opened(browser, running.url + tab) as page:
                page.get_by_text(name).first.wait_for(state="attached")
                assert page.locator("img").count() == 0
    finally:
        running.stop()
        shutil.rmtree(folder / "odd")
