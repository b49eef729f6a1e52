"""GPT-2 and SmolLM2 in their real sizes, with random weights: imported, compared, fine-tuned and continued."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_import import byte_level_json

from positron.interop.importing import read_model
from positron.model.gpt import GPT

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.slow
SMOLLM2 = {
    "vocab_size": 49_152,
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "max_position_embeddings": 8192,
    "rope_theta": 100_000.0,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", {"bos_token_id": 0, "eos_token_id": 0}),
    "smollm2_135m": ("LlamaForCausalLM", "LlamaConfig", SMOLLM2),
}


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """An empty folder whose gigabytes do not stay after the test."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@torch.no_grad()
def difference(theirs: Any, path: Path) -> float:
    """Return max |difference of the logits| between a model of transformers and its import."""
    theirs.eval()
    read = read_model(path)
    ours = GPT(read.config).eval()
    ours.load_state_dict(read.weights)
    rows = theirs.config.vocab_size
    ids = torch.randint(rows, (2, 128), generator=torch.Generator().manual_seed(1))
    return float((ours(ids)[..., :rows] - theirs(ids).logits).abs().max())


@pytest.mark.parametrize("name", MODELS)
def test_a_model_in_its_real_size_is_imported_tuned_and_continued(name, folder, run_command, capsys):
    kind, config, options = MODELS[name]
    torch.manual_seed(0)
    model = getattr(transformers, kind)(getattr(transformers, config)(**options))
    model.save_pretrained(folder / "model")
    (folder / "model" / "tokenizer.json").write_text(byte_level_json())
    largest = difference(model, folder / "model")
    with capsys.disabled():
        print(f"\n{name}: {model.num_parameters():,} parameters, logits differ by at most {largest:.1e}")
    context = model.config.max_position_embeddings
    del model
    assert largest < 1e-4
    talk = '{"messages": [{"role": "user", "content": "Hi %d"}, {"role": "assistant", "content": "Yes."}]}\n'
    (folder / "talk.jsonl").write_text("".join(talk % i for i in range(40)))
    assert run_command("import_", "model", "--name", "base").code == 0
    tune = ("sft", "init_from=base", "data=instruct", "data.path=talk.jsonl", "name=chat", "device=cpu")
    tune += ("schedule.warmup_steps=1", f"train.batch_tokens={context}", "train.micro_batch_size=1")  # one conversation
    tune += ("train.val_tokens=64", "train.sample_tokens=2", "train.max_steps=2")
    first = run_command(*tune, "train.stop_at=1")
    assert first.code == 0, first.err
    again = run_command(*tune)
    assert again.code == 0, again.err
    assert "resuming" in again.err
    facts = json.loads((folder / "outputs" / "chat" / "run.json").read_text())
    assert (facts["step"], facts["status"]) == (2, "finished")
