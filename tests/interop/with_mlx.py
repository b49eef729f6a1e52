"""Read exported folders with Apple's mlx-lm: prints what it computes and writes as JSON. Runs where mlx-lm is installed."""

import importlib.metadata
import json
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx_lm import load, stream_generate


def result(folder: Path) -> dict:
    expected = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    model, tokenizer = load(str(folder / "hf"))
    logits = np.array(model(mx.array(expected["ids"])).astype(mx.float32))
    prompts = [tokenizer.encode(prompt) for prompt in expected["prompts"]]
    tokenizer.eos_token_ids = set()  # the end of a text does not end the comparison
    written = [[step.token for step in stream_generate(model, tokenizer, ids, expected["count"])] for ids in prompts]
    return {
        "difference": float(np.abs(logits - np.array(expected["logits"])).max()),
        "prompt_ids": prompts,
        "alone": written,
        "chat_ids": tokenizer.apply_chat_template(expected["messages"], add_generation_prompt=True),
    }


if __name__ == "__main__":
    results = {}
    for name in sys.argv[1:]:
        try:
            results[name] = result(Path(name))
        except (
            ValueError,
            TypeError,
        ) as error:  # mlx-lm lacks the architecture, or asks for other settings than transformers
            results[name] = {"error": str(error)}
    print(json.dumps({"version": importlib.metadata.version("mlx-lm"), "results": results}))
