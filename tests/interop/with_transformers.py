"""A program for another environment's Python: what its transformers does with exported folders, as JSON on stdout.

usage: python with_transformers.py FOLDER ...

Each FOLDER holds `hf`, an exported model, and `expected.json`. The program imports neither Positron nor pytest.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers


def measured(folder: Path) -> dict[str, Any]:
    """Load a model as any user does, and compare it with what Positron computed."""
    expected = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "hf").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "hf")
    with torch.no_grad():
        logits = model(torch.tensor(expected["ids"])).logits
        difference = (logits - torch.tensor(expected["logits"])).abs().max().item()
    generate: dict[str, Any] = {"do_sample": False, "eos_token_id": None}
    prompts = expected["prompts"]
    alone = []
    for prompt in prompts:
        batch = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        start = batch.input_ids.shape[1]
        alone.append(model.generate(**batch, max_new_tokens=expected["count"], **generate)[0, start:].tolist())
    batch = tokenizer(prompts, return_tensors="pt", padding=True, return_token_type_ids=False)
    start = batch.input_ids.shape[1]
    count = expected["count"] - 20  # the padding takes places of the context
    together = model.generate(**batch, max_new_tokens=count, **generate)[:, start:].tolist()
    pipe = transformers.pipeline("text-generation", model=str(folder / "hf"))
    text = pipe(prompts[0], max_new_tokens=40, do_sample=False)[0]["generated_text"]
    messages = expected["messages"]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    answer = pipe(messages, max_new_tokens=40, do_sample=False)[0]["generated_text"][-1]["content"]
    return {
        "class": type(model).__name__,
        "difference": difference,
        "prompt_ids": [tokenizer(prompt).input_ids for prompt in prompts],
        "alone": alone,
        "together": together,
        "padding_side": tokenizer.padding_side,
        "pipeline": text,
        "chat_ids": ids,
        "answer": answer,
    }


if __name__ == "__main__":
    results = {name: measured(Path(name)) for name in sys.argv[1:]}
    print(json.dumps({"version": transformers.__version__, "results": results}))
