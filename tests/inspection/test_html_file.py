"""The one file with a model in it: opened from the disk in real Chromium, and what building it refuses."""

import dataclasses
import itertools
import re

import pytest
from browser import WINDOWS, has_sideways_scroll, opened, serious_findings
from interop.saved_runs import corpus, gpt_config, random_model, sentencepiece

from positron.inference.engine import Engine
from positron.inference.sampling import Sampling
from positron.inspection import html_file
from positron.inspection.html_file import DIGITS, Stored, base85, joined_scripts, write_file
from positron.inspection.look import look, shape_of
from positron.inspection.scores import measure_scores
from positron.inspection.truth import compare_with_truth
from positron.system.errors import UserError

PROMPT = "Once upon a time, there was"
HOSTILE = 'x<img src=x onerror="window.hurt=1"></script><script>window.hurt=1</script>&amp;'


def small_model(seed=0):
    shape = {"norm": "rmsnorm", "position": "rope", "qk_norm": True, "smear": True, "tie_embeddings": False}
    return random_model(gpt_config(sentencepiece().vocab_size, context_length=64, activation="relu2", **shape), seed)


def stored(**changes) -> Stored:
    """What a file holds of a run that was trained on the built-in stories with a history."""
    tokenizer, model = sentencepiece(), small_model()
    truth = compare_with_truth(model, tokenizer, PROMPT, run="tiny", step=20, top=10)
    points = [{"step": step, "rules": truth["rules"]} for step in (10, 20)]
    earlier = look(small_model(1), tokenizer, PROMPT, run="tiny", step=10)
    facts = Stored(
        run="tiny",
        step=20,
        prompt=PROMPT,
        scores=measure_scores(model, tokenizer, corpus()[:2]),
        truth=truth,
        regrets={"run": "tiny", "stories": 2, "tokens": None, "points": points},
        history=[{**earlier, "point": {"step": 10, "tokens": 1000, "val_bpb": 2.5}}],
    )
    return dataclasses.replace(facts, **changes)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_file(small_model(), sentencepiece(), stored(), tmp_path_factory.mktemp("page") / "tiny.html")


def ready(page) -> None:
    page.wait_for_selector(".look-view:not([hidden])")
    page.wait_for_selector(".look-history:not([hidden])")


@pytest.fixture(scope="module")
def shared(browser, written):
    """One page for the tests that leave it as it was; it fails at its end if anything was logged."""
    with opened(browser, written.path.as_uri()) as page:
        page.context.on("request", lambda request: pytest.fail(f"the page asked for {request.url}"))
        ready(page)
        yield page


def first_bar(page) -> str:
    return page.locator(".look-bars >> nth=0").locator("li >> nth=0").locator(".look-number >> nth=0").inner_text()


def slide(page, name: str, value: float) -> None:
    page.locator(f"input[name={name}]").fill(str(value))


def test_the_page_shows_the_difference_of_its_logits_to_those_of_torch(shared, written):
    shown = float(shared.locator("#difference").inner_text())
    assert shown < 1e-2
    assert shown == pytest.approx(written.difference, abs=1e-4)


def test_the_sliders_move_the_bars(shared):
    slide(shared, "temperature", 0)
    assert first_bar(shared) == "100 %"
    slide(shared, "temperature", 2)
    slide(shared, "top_p", 1)
    hot = first_bar(shared)
    assert hot != "100 %"
    slide(shared, "top_k", 1)
    assert first_bar(shared) == "100 %"
    slide(shared, "top_k", 0)
    assert first_bar(shared) == hot


def test_a_head_that_is_switched_off_changes_the_loss_as_in_python(shared):
    shared.get_by_label("Switch off layer 0, head 2").check()
    result = shared.locator(".look-result")
    shared.wait_for_function("() => document.querySelector('.look-result').textContent.includes('→')")
    change = look(small_model(), sentencepiece(), PROMPT, ablations=[{"layer": 0, "part": 2}])["ablation"]
    before, after = re.findall(r"\d+\.\d+", result.inner_text())[:2]
    assert float(before) == pytest.approx(change["before"], abs=0.01)
    assert float(after) == pytest.approx(change["after"], abs=0.01)
    assert before != after
    assert shared.locator(".look-texts dd").count() == 2
    shared.get_by_role("button", name="Switch everything on").click()
    shared.wait_for_function("() => document.querySelector('.look-result').textContent.startsWith('Nothing')")


def test_a_chosen_head_is_enlarged_with_its_strongest_keys(shared):
    shared.get_by_role("button", name="Enlarge layer 1, head 2").click()
    assert shared.locator(".look-row [aria-pressed=true]").inner_text().startswith("1.2")
    assert "Layer 1, head 2" in shared.locator(".look-enlarged p").inner_text()
    seen = look(small_model(), sentencepiece(), PROMPT)
    chosen = int(re.search(r"token (\d+)", shared.locator(".look-enlarged p").inner_text().rpartition("(")[2])[1])
    weights = seen["attention"][1][2][chosen]
    key = max(range(len(weights)), key=weights.__getitem__)
    strongest = shared.locator(".look-enlarged .look-bars li >> nth=0")
    assert strongest.locator(".look-name").inner_text() == seen["tokens"][key]["text"].replace(" ", "·")
    shown = strongest.locator(".look-number").inner_text()
    assert float(shown.removesuffix(" %")) == pytest.approx(100 * weights[key], abs=0.6)


def test_the_page_writes_the_text_of_the_engine(shared):
    slide(shared, "temperature", 0)
    shared.get_by_role("spinbutton", name="At most").fill("20")
    shared.get_by_role("button", name="Generate").click()
    shared.wait_for_function("() => document.querySelector('.look-written ~ p').textContent.includes('tokens/s')")
    tokenizer = sentencepiece()
    ids = [tokenizer.special_id("<|endoftext|>"), *tokenizer.encode(PROMPT)]
    (text,) = Engine(small_model(), tokenizer).texts([ids], Sampling(temperature=0, top_p=None), max_tokens=20)
    assert shared.locator(".look-written").text_content() == PROMPT + text
    shown = shared.locator(".look-written ~ p").inner_text()
    assert shown == f"20 tokens, {shared.locator('#speed').inner_text()} tokens/s"


def test_arrow_keys_move_the_chosen_token(shared):
    shared.locator(".look-token[aria-current]").focus()
    shared.keyboard.press("Home")
    shared.wait_for_function("() => document.querySelector('.look-after').textContent.includes('token 0 ')")
    shared.keyboard.press("End")
    chosen = shared.locator(".look-token[aria-current]")
    assert chosen.evaluate("element => element === document.activeElement")
    said = chosen.locator(".look-unseen").text_content()
    assert said.startswith(f"Token {shared.locator('.look-token').count() - 1},")


def test_the_slider_of_the_history_shows_the_weights_of_that_step(shared):
    slider = shared.locator(".look-history input")
    slider.fill("0")
    shared.wait_for_function("() => document.querySelector('.look > p[role=status]').textContent.includes('step 10')")
    bits = look(small_model(1), sentencepiece(), PROMPT)["tokens"][2]["bits"]
    assert shared.locator(".look-bits >> nth=2").inner_text() == f"{bits:.1f}"
    assert "2.500 bits per byte" in shared.locator(".look-history output").inner_text()
    shared.locator(".look-token >> nth=1").click()
    shared.wait_for_function("() => document.querySelector('.look-after').textContent.includes('token 1 ')")
    best = look(small_model(1), sentencepiece(), PROMPT)["next"][1]["top"][0]
    assert shared.locator(".look-name >> nth=0").inner_text().startswith(best["text"].replace(" ", "·"))
    shared.get_by_role("button", name="Generate").click()
    shared.wait_for_function(
        "() => document.querySelector('.look-written ~ p').textContent.includes('history to its end')"
    )
    slider.fill("1")
    shared.wait_for_function("() => document.querySelector('.look > p[role=status]').textContent.includes('step 20')")


def test_truth_stands_beside_the_model(shared):
    truth = stored().truth
    assert shared.locator(".look-number.true").count() > 0
    assert shared.get_by_role("region", name="Regret per rule of the grammar").locator("tbody tr").count() == len(
        truth["rules"]
    )
    slide(shared, "temperature", 1)
    slide(shared, "top_p", 1)
    shared.locator(".look-token").last.click()
    likely = truth["next"][-1]["top"][0]  # of the grammar; the untrained model has it far down
    name = shared.get_by_text(likely["text"].replace(" ", "·"), exact=True)
    row = shared.locator(".look-bars >> nth=0").locator("li").filter(has=name)
    shown = row.locator(".look-number >> nth=0")
    shown.wait_for()
    assert float(shown.inner_text().strip("< %")) == pytest.approx(100 * likely["model"], abs=0.1)
    shared.get_by_label("Number and colour").select_option("regret")
    regret = truth["tokens"][1]["regret"]
    assert shared.locator(".look-bits >> nth=1").inner_text() == f"{regret:.1f}".replace("-", "−")
    shared.get_by_label("Number and colour").select_option("bits")


def test_without_webassembly_the_page_computes_the_same(browser, written):
    with opened(browser, written.path.as_uri() + "#js") as page:
        ready(page)
        assert float(page.locator("#difference").inner_text()) < 1e-2
        assert "WebAssembly" not in page.locator("#inspector").inner_text()


@pytest.mark.parametrize(("phone", "dark"), WINDOWS)
def test_the_page_is_readable_for_everyone(browser, written, phone, dark):
    with opened(browser, written.path.as_uri(), phone=phone, dark=dark, csp=False) as page:
        ready(page)
        assert not has_sideways_scroll(page)
        assert serious_findings(page) == []
        red = int(re.search(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor"))[0])
        assert (red < 60) == dark


def test_what_a_run_contains_is_never_markup(browser, tmp_path):
    truth = {**stored().truth, "run": HOSTILE}
    facts = stored(run=HOSTILE, prompt=HOSTILE, truth=truth, history=[])
    path = write_file(small_model(), sentencepiece(), facts, tmp_path / "hostile.html").path
    with opened(browser, path.as_uri()) as page:
        page.wait_for_selector(".look-view:not([hidden])")
        assert page.locator("h1").inner_text() == f"Look inside {HOSTILE}"
        assert page.locator("textarea").input_value() == HOSTILE
        assert page.evaluate("window.hurt") is None
        assert page.locator("img").count() == 0


def test_the_file_allows_no_other_script_and_no_request(written):
    text = written.path.read_text(encoding="utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-inline" not in policy
    assert "'unsafe-eval'" not in policy
    assert not re.search(r"""(src|href)=["']?(?!data:)\w""", text.partition('<script type="text/plain"')[0])
    assert len(text.encode()) == written.size


def test_base_85_keeps_every_byte():
    for content in (b"", b"a", bytes(range(256)), b"\xff" * 7):
        text, data = base85(content), b""
        assert set(text) <= set(DIGITS)
        for i in range(0, len(text), 5):
            number = 0
            for digit in text[i : i + 5]:
                number = number * 85 + DIGITS.index(digit)
            data += number.to_bytes(4, "big")
        assert data[4 : 4 + int.from_bytes(data[:4], "big")] == content


def test_the_joined_script_has_no_module_syntax_left():
    assert not re.search(r"^(import|export) ", joined_scripts(), re.MULTILINE)


@pytest.mark.parametrize("n", [0, 1, 12, 13, 21, 400])
def test_a_long_history_is_thinned_evenly(n):
    points = [{"step": step, "tokens": None, "val_bpb": None} for step in range(n)]
    steps = [point["step"] for point in html_file.spread(points, 12)]
    assert len(steps) == min(n, 12)
    assert steps == sorted(set(steps))
    if n:
        assert (steps[0], steps[-1]) == (0, n - 1)
    gaps = [b - a for a, b in itertools.pairwise(steps)]
    assert max(gaps, default=0) - min(gaps, default=0) <= 1


def test_steps_are_left_out_before_the_weights_become_coarse():
    shape = shape_of(small_model())
    tried = list(html_file.attempts(shape, 12))
    assert tried[:6] == [(16, 12), (15, 12), (14, 12), (14, 6), (14, 3), (13, 12)]
    assert tried[-3:] == [(8, 12), (8, 6), (8, 3)]
    assert list(html_file.attempts({**shape, "parameters": html_file.MAX_BYTES * 4 // 5}, 12)) == [
        (8, 12),
        (8, 6),
        (8, 3),
    ]
    assert list(html_file.attempts({**shape, "parameters": html_file.MAX_BYTES}, 12)) == [
        (8, 12)
    ]  # too large without it
    assert [bits for bits, _ in html_file.attempts(shape, 0)] == list(range(16, 7, -1))


def test_a_smaller_limit_gives_fewer_bits(tmp_path, monkeypatch):
    monkeypatch.setattr(html_file, "MAX_BYTES", 400_000)
    facts = Stored("tiny", 20, PROMPT)
    rounded = write_file(small_model(), sentencepiece(), facts, tmp_path / "a.html")
    monkeypatch.setattr(html_file, "MAX_BYTES", 10_000)
    coarse = write_file(small_model(), sentencepiece(), facts, tmp_path / "b.html")
    assert rounded.bits == 16
    assert coarse.bits == 8
    assert coarse.size < rounded.size
    assert coarse.difference > rounded.difference


def test_a_model_that_is_too_large_is_refused_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(html_file, "MAX_PARAMETERS", 1000)
    with pytest.raises(UserError, match=r"tiny has [\d,]+ parameters.*positron[. ]serve"):
        write_file(small_model(), sentencepiece(), Stored("tiny", 20, PROMPT), tmp_path / "a.html")
    assert not (tmp_path / "a.html").exists()
