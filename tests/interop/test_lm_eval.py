"""lm-evaluation-harness scores an exported folder as Positron does, on tasks that need no network.

`POSITRON_TRANSFORMERS_PYTHON` is the Python of an environment with lm_eval, transformers and torch.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from saved_runs import SHAPES, corpus, gpt_config, random_model, save_run, sentencepiece

from positron.interop.formats import export
from positron.interop.source import open_source
from positron.model.gpt import GPT
from positron.text.tokenizer import END_OF_TEXT

PYTHON = os.environ.get("POSITRON_TRANSFORMERS_PYTHON", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not PYTHON or subprocess.run([PYTHON, "-c", "import lm_eval"], capture_output=True).returncode != 0,
        reason="POSITRON_TRANSFORMERS_PYTHON names no Python with lm_eval",
    ),
]
COMMON = "dataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {data}\ntest_split: test\n"
CHOICE = """task: choose_an_end
{common}output_type: multiple_choice
doc_to_text: "{{{{begin}}}}"
doc_to_choice: "{{{{ends}}}}"
doc_to_target: "{{{{label}}}}"
target_delimiter: ""
metric_list:
  - metric: acc
"""
ROLLING = """task: whole_texts
{common}output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list:
  - metric: bits_per_byte
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[GPT, Path]:
    tokenizer = sentencepiece()
    model = random_model(gpt_config(tokenizer.vocab_size, context_length=128, **SHAPES["llama"]))
    folder = tmp_path_factory.mktemp("lm_eval")
    export(open_source(save_run(folder / "run", model, tokenizer)), "hf", folder / "hf")
    return model, folder


def scored(folder: Path, name: str, task: str, documents: list[dict[str, Any]], *more: str) -> tuple[Any, list[Any]]:
    """Run the harness as its users do; return the scores of the task and what it says of each document."""
    place = folder / name
    place.mkdir()
    data = place / "documents.jsonl"
    data.write_text("".join(json.dumps(document) + "\n" for document in documents), encoding="utf-8")
    (place / f"{name}.yaml").write_text(task.format(common=COMMON.format(data=data)), encoding="utf-8")
    arguments = ",".join((f"pretrained={folder / 'hf'}", "dtype=float32", *more))
    command = [PYTHON, "-m", "lm_eval", "--model", "hf", "--model_args", arguments, "--tasks", name, "--device", "cpu"]
    command += ["--include_path", str(place), "--batch_size", "4", "--output_path", str(place), "--log_samples"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(place / "cache"), "PYTHONPATH": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    (results,) = place.rglob("results_*.json")
    (samples,) = place.rglob("samples_*.jsonl")
    lines = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
    return json.loads(results.read_text(encoding="utf-8"))["results"][name], sorted(
        lines, key=lambda line: line["doc_id"]
    )


@torch.no_grad()
def log_likelihood(model: GPT, ids: list[int], start: int) -> float:
    """Return ln p(ids[start:] | ids[:start])."""
    logs = model(torch.tensor([ids[:-1]]))[0].double().log_softmax(-1)
    return sum(float(logs[i - 1, ids[i]]) for i in range(start, len(ids)))


def test_a_choice_has_the_likelihoods_and_the_accuracy_of_positron(exported):
    model, folder = exported
    tokenizer = sentencepiece()
    documents, expected, right = [], [], 0
    for number, text in enumerate(corpus()[:12]):
        words = text.split(" ")[:20]
        begin, ends = " ".join(words[:8]), [" " + " ".join(words[8:12]), " " + " ".join(words[:-5:-1]), " dog. The"]
        documents.append({"begin": begin, "ends": ends, "label": number % 3})
        before = [tokenizer.special_id(END_OF_TEXT), *tokenizer.encode(begin)]
        whole = [[before[0], *tokenizer.encode(begin + end)] for end in ends]
        expected.append([log_likelihood(model, ids, len(before)) for ids in whole])
        right += max(range(3), key=lambda i, values=expected[-1]: values[i]) == number % 3
    scores, lines = scored(folder, "choose_an_end", CHOICE, documents)
    measured = [[float(answer[0][0]) for answer in line["resps"]] for line in lines]
    assert torch.tensor(measured) == pytest.approx(torch.tensor(expected), abs=1e-3)
    assert scores["acc,none"] == pytest.approx(right / len(documents))


def test_whole_texts_have_the_bits_per_byte_of_positron(exported):
    """The harness itself puts <|endoftext|> before a text, so that it must not ask the tokenizer for one."""
    model, folder = exported
    tokenizer = sentencepiece()
    texts = [text[:200] for text in corpus()[:6]]
    total = 0.0
    for text in texts:
        ids = [tokenizer.special_id(END_OF_TEXT), *tokenizer.encode(text)]
        assert len(ids) <= 128
        total -= log_likelihood(model, ids, 1)
    scores, _ = scored(folder, "whole_texts", ROLLING, [{"text": text} for text in texts], "add_bos_token=False")
    expected = total / math.log(2) / sum(len(text.encode("utf-8")) for text in texts)
    assert scores["bits_per_byte,none"] == pytest.approx(expected, rel=1e-5)
