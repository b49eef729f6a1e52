"""Exported folders in both major versions of transformers: this environment's, and one named by a variable.

`POSITRON_TRANSFORMERS_PYTHON` is the Python of an environment with transformers 4.57 and torch.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import PROJECT
from saved_runs import SHAPES, byte_pairs, corpus, gpt_config, greedy, random_model, save_run, sentencepiece

from positron.interop import hf_architectures
from positron.interop.formats import export
from positron.interop.source import open_source
from positron.model.gpt import GPT
from positron.text import conversation
from positron.text.conversation import Message
from positron.text.tokenizer import END_OF_TEXT

pytest.importorskip("transformers")
pytestmark = pytest.mark.slow
OTHER = os.environ.get("POSITRON_TRANSFORMERS_PYTHON")
PYTHONS = [
    pytest.param(sys.executable, id="this_environment"),
    pytest.param(
        OTHER,
        id="other_environment",
        marks=pytest.mark.skipif(
            not OTHER, reason="POSITRON_TRANSFORMERS_PYTHON names no Python with transformers 4.57"
        ),
    ),
]
CONTEXT, COUNT, SHORT = 256, 200, 40
MESSAGES = [("system", "Be  brief.\n"), ("user", "A {{x}} <b> 😀?"), ("assistant", "No."), ("user", " Why?")]


def until(ids: list[int], stops: list[int]) -> list[int]:
    """Return the ids before the first that ends a text."""
    return ids[: next((i for i, token in enumerate(ids) if token in stops), len(ids))]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, GPT]:
    """A folder with the export of each shape, and what Positron itself computes."""
    place = tmp_path_factory.mktemp("versions")
    made: dict[str, Any] = {}
    for number, (name, shape) in enumerate(SHAPES.items()):
        tokenizer = byte_pairs("r50k_base") if number % 2 else sentencepiece()
        begin = tokenizer.special_id(END_OF_TEXT)
        model = random_model(gpt_config(tokenizer.vocab_size, **{"context_length": CONTEXT, **shape}))
        folder = place / name
        export(open_source(save_run(folder / "run", model, tokenizer, chat=True)), "hf", folder / "hf")
        ids = torch.randint(tokenizer.vocab_size, (3, CONTEXT), generator=torch.Generator().manual_seed(1))
        prompts = [corpus()[0][:60], "Once"]
        prompt_ids = [[begin, *tokenizer.encode(prompt)] for prompt in prompts]
        said = [Message(*turn) for turn in MESSAGES]
        chat_ids = conversation.prompt_ids(said, tokenizer)
        stops = [begin, tokenizer.special_id(conversation.END)]
        written = [greedy(model, prompt, COUNT) for prompt in prompt_ids]
        answer = until(greedy(model, chat_ids, SHORT), stops)
        expected = {
            "ids": ids.tolist(),
            "logits": model(ids).tolist(),
            "prompts": prompts,
            "prompt_ids": prompt_ids,
            "count": COUNT,
            "alone": written,
            "messages": [{"role": turn.role, "content": turn.content} for turn in said],
            "chat_ids": chat_ids,
            "pipeline": prompts[0] + tokenizer.decode(until(written[0][:SHORT], stops)),
            "answer": tokenizer.decode(answer),
        }
        (folder / "expected.json").write_text(json.dumps(expected), encoding="utf-8")
        made[str(folder)] = {**expected, "class": hf_architectures.choose(model.config).name, "kind": tokenizer.kind}
    return made


@pytest.mark.parametrize("python", PYTHONS)
def test_exported_folders_compute_and_write_what_positron_does(python, models, capsys):
    program = Path(__file__).with_name("with_transformers.py")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    done = subprocess.run(
        [python, str(program), *models], capture_output=True, text=True, env=environment, cwd=PROJECT, timeout=900
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads(done.stdout.splitlines()[-1])
    with capsys.disabled():
        print(f"\ntransformers {answer['version']}")
    for folder, expected in models.items():
        result, name = answer["results"][folder], Path(folder).name
        same = sum(a == b for a, b in zip(result["alone"][0], expected["alone"][0], strict=True))
        with capsys.disabled():
            print(f"{name:26} {result['class']:22} {result['difference']:.1e} {same}/{COUNT}")
        assert result["class"] == expected["class"]
        assert result["difference"] < 1e-4
        texts = (
            () if expected["kind"] == "sentencepiece" else ("pipeline", "answer")
        )  # bytes of random ids decode otherwise
        for key in ("prompt_ids", "alone", "chat_ids", *texts):
            assert result[key] == expected[key], (name, key)
        assert result["padding_side"] == "left"
        assert result["together"] == [ids[: len(result["together"][0])] for ids in expected["alone"]], name
