"""The page computes the LookData that Python computes."""

import base64
import json
import math
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from interop.saved_runs import char, gpt_config, random_model, sentencepiece
from starlette.applications import Starlette
from starlette.testclient import TestClient

from positron.inference.engine import Engine
from positron.inference.sampling import Sampling
from positron.inspection.ablation import ablated
from positron.inspection.look import look
from positron.inspection.packed_weights import engine_config, pack
from positron.inspection.page_tokenizer import page_tokenizer
from positron.inspection.routes import MAX_PROMPT, routes
from positron.inspection.tokens import Vocabulary
from positron.text.conversation import stop_ids

STATIC = Path(__file__).parents[2] / "positron" / "inspection" / "static"
NODE = shutil.which("node")
PROMPT = "Once upon a time,\n é"
CASES: dict[str, dict[str, Any]] = {
    "whole": {},
    "focus": {"focus": 3},
    "chat": {"chats": True},
    "ablated": {"ablations": [{"layer": 0, "part": 1}, {"layer": 1, "part": "mlp"}]},
}
TOKENIZERS = {"char": char, "sentencepiece": sentencepiece}
SAMPLING: dict[str, Any] = {"temperature": 0.9, "top_p": 0.9, "top_k": 30}


def model_of(tokenizer):
    return random_model(gpt_config(tokenizer.vocab_size, context_length=40, position="rope", window=9, smear=True))


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What the page answers, and the speed that it shows, in one process of node."""
    folder = tmp_path_factory.mktemp("look")
    cases: dict[tuple[str, str], dict[str, Any]] = {}
    for name, create in TOKENIZERS.items():
        tokenizer = create()
        model = model_of(tokenizer)
        weights = pack(model, "fp32")
        for case, changes in CASES.items():
            request: dict[str, Any] = {"prompt": PROMPT, "continuation": {"max_tokens": 12, "seed": 5, **SAMPLING}}
            cases[name, case] = {
                "config": engine_config(model.config),
                "tensors": weights.tensors,
                "content": base64.b64encode(weights.content).decode(),
                "tokenizer": page_tokenizer(tokenizer),
                "stored": {
                    "run": "r",
                    "step": 3,
                    "shape": look(model, tokenizer, "")["shape"],
                    "history": [],
                    "chats": "chats" in changes,
                    "ends": Vocabulary(tokenizer, "chats" in changes).ends,
                },
                "request": {**request, **changes},
            }
    (folder / "cases.json").write_text(json.dumps(list(cases.values())))
    script = Path(__file__).with_name("look_cases.mjs")
    command = [NODE, script, STATIC, folder / "cases.json", folder / "out.json"]
    subprocess.run(list(map(str, command)), check=True, timeout=300)
    return dict(zip(cases, json.loads((folder / "out.json").read_text()), strict=True))


def assert_equal(ours, theirs, place="") -> None:
    """Compare JSON: numbers to five digits, everything else exactly."""
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys(), place
        for key in theirs:
            assert_equal(ours[key], theirs[key], f"{place}.{key}")
    elif isinstance(theirs, list):
        assert len(ours) == len(theirs), place
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            assert_equal(a, b, f"{place}[{i}]")
    elif isinstance(theirs, float):
        assert math.isclose(ours, theirs, rel_tol=2e-4, abs_tol=1e-5), place
    else:
        assert ours == theirs, place


@pytest.mark.skipif(NODE is None, reason="node is not installed")
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_page_sees_what_python_sees(answers, name, case):
    tokenizer = TOKENIZERS[name]()
    model, answer = model_of(tokenizer), dict(answers[name, case]["data"])
    expected: dict[str, Any] = dict(look(model, tokenizer, PROMPT, run="r", step=3, **CASES[case]))
    # logits may differ by a constant, which no probability depends on
    ours, theirs = answer.pop("focus"), expected.pop("focus")
    assert_equal([z - ours["logits"][0] for z in ours["logits"]], [z - theirs["logits"][0] for z in theirs["logits"]])
    assert_equal({**ours, "logits": []}, {**theirs, "logits": []}, "focus")
    subject = ablated(model, CASES[case].get("ablations", ()))
    ids = [token["id"] for token in expected["tokens"]]
    stops = stop_ids(tokenizer) if expected["chats"] else None
    (text,) = Engine(subject, tokenizer).texts([ids], Sampling(**SAMPLING), max_tokens=12, seed=5, stop_ids=stops)
    assert answer.pop("continuation") == text
    expected.pop("continuation")
    assert_equal(answer, expected)


@pytest.mark.skipif(NODE is None, reason="node is not installed")
def test_a_prompt_of_too_many_characters_is_refused_before_it_is_encoded():
    script = f"""
        const {{ promptIds }} = await import({json.dumps((STATIC / "look.js").as_uri())});
        const tokenizer = {{ prompt: () => {{ throw new Error("encoded"); }} }};
        const prompt = "é".repeat({MAX_PROMPT + 1});
        try {{ promptIds({{}}, tokenizer, prompt, false); }} catch (error) {{ console.log(error.message); }}
    """
    command = [str(NODE), "--input-type=module", "-e", script]
    shown = subprocess.run(command, check=True, capture_output=True, encoding="utf-8", timeout=300).stdout.strip()
    body = {"prompt": "é" * (MAX_PROMPT + 1)}
    subject: Any = SimpleNamespace(look=None)
    answer = TestClient(Starlette(routes=routes({"run": subject}))).post("/api/look", json=body)
    assert shown == answer.json()["error"]["message"].capitalize() + "."


@pytest.mark.skipif(NODE is None, reason="node is not installed")
@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_shown_speed_is_that_of_writing_without_the_time_of_the_prompt(answers, name):
    assert answers[name, "whole"]["speed"] == pytest.approx(1 / 0.020)
