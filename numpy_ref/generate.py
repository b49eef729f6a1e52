"""Chapter 17. Generation: one token after the other, each appended to what is read for the next.

Without a cache, token n costs a forward pass over n tokens. Keys and values of past tokens never change (they look only
backwards), so they are kept, and each new token is one row through the model. Positions are absolute in the cache, so
once the context is full, the last half of it is read anew as a fresh beginning, and writing goes on.

    python -m numpy_ref.generate "Once upon a time" --temperature 0.5 --top-k 50 --top-p 0.9
    python -m numpy_ref.generate "Once upon a time" --run outputs/quickstart
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from numpy_ref.checkpoint import from_torch_run, load, read_json
from numpy_ref.config import GPTConfig, InputError
from numpy_ref.door import one_line_errors
from numpy_ref.gpt import forward
from numpy_ref.multihead import Params, Past
from numpy_ref.sampling import sample
from numpy_ref.tokenizers import Tokenizer, from_json

OUTPUTS = Path("outputs/numpy_ref")


def generate_ids(
    params: Params,
    config: GPTConfig,
    ids: list[int],
    max_tokens: int,
    *,
    seed: int = 0,
    stop: int | None = None,
    cached: bool = True,
    last_n: int = 64,
    **sampling: Any,
) -> Iterator[int]:
    """Yields new token ids after `ids` (at least one) until `stop` or `max_tokens`.

    `sampling`: the arguments of `sampling.filtered`; its penalty looks at the last `last_n` tokens.
    """
    if not ids:
        raise InputError("there is nothing to go on from: the prompt is empty")
    rng = np.random.default_rng(seed)
    seen, start = list(ids), 0
    past: list[Past] | None = None
    for _ in range(max_tokens):
        if len(seen) - start > config.context_length:
            start, past = len(seen) - max(1, config.context_length // 2), None
        if past is None:
            past, fresh = new_past(params, config), seen[start:]
        else:
            fresh = seen[-1:]
        window = fresh if cached else seen[start:]
        logits = forward(params, config, np.array([window]), past=past if cached else None)
        assert isinstance(logits, np.ndarray)
        token = sample(logits[0, -1], rng, seen[-last_n:], **sampling)
        if token == stop:
            return
        seen.append(token)
        yield token


def new_past(params: Params, config: GPTConfig, batch: int = 1) -> list[Past]:
    dtype = params["wte.weight"].dtype
    return [Past(batch, config, config.context_length, dtype) for _ in range(config.n_layer)]


def complete(
    params: Params, config: GPTConfig, tokenizer: Tokenizer, prompt: str, max_tokens: int, **options: Any
) -> str:
    """The prompt, as a document's beginning, and what the model writes after it up to the document's end."""
    end = tokenizer.end_of_text
    new = generate_ids(params, config, [end, *tokenizer.encode(prompt)], max_tokens, stop=end, exempt=[end], **options)
    return prompt + tokenizer.decode(new)


def load_any(run: str | None, model: str | None) -> tuple[Params, GPTConfig, Tokenizer, str]:
    """A Positron run by its folder, or what `numpy_ref.train` saved as FOLDER/NAME (the newest by default)."""
    if run is not None:
        return *from_torch_run(run), run
    if model is None:
        found = sorted(OUTPUTS.glob("*_weights.npz"), key=lambda path: path.stat().st_mtime)
        if not found:
            raise InputError(f"no model in {OUTPUTS.resolve()}: train one with python -m numpy_ref.train")
        model = str(found[-1]).removesuffix("_weights.npz")
    params, config = load(f"{model}_config.json", f"{model}_weights.npz")
    tokenizer = from_json(read_json(Path(f"{model}_tokenizer.json")), f"{model}_tokenizer.json")
    if tokenizer.vocab_size != config.vocab_size:
        raise InputError(f"{model}: tokenizer and weights do not belong together")
    return params, config, tokenizer, model


def model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", help="folder of a Positron run")
    parser.add_argument("--model", help="FOLDER/NAME that numpy_ref.train saved (default: the newest)")


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m numpy_ref.generate", description="Write with NumPy alone.")
    parser.add_argument("prompt", nargs="?", default="Once upon a time")
    model_options(parser)
    parser.add_argument("--max-tokens", type=int, default=300)
    parser.add_argument("--temperature", type=float, default=0.8, help="0: always the likeliest (default %(default)s)")
    parser.add_argument("--top-k", type=int)
    parser.add_argument("--top-p", type=float)
    parser.add_argument("--min-p", type=float)
    parser.add_argument("--repetition-penalty", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    return parser


def main(argv: list[str] | None = None) -> None:
    with one_line_errors():
        options = arguments().parse_args(argv)
        rules = (
            (options.max_tokens >= 1, "--max-tokens must be at least 1"),
            (options.temperature >= 0, "--temperature must not be negative"),
            (options.top_k is None or options.top_k >= 1, "--top-k must be at least 1"),
            (options.top_p is None or 0 < options.top_p <= 1, "--top-p must be above 0 and at most 1"),
            (options.min_p is None or 0 <= options.min_p <= 1, "--min-p must be between 0 and 1"),
            (options.repetition_penalty > 0, "--repetition-penalty must be positive"),
        )
        for holds, rule in rules:
            if not holds:
                raise InputError(rule)
        params, config, tokenizer, name = load_any(options.run, options.model)
        print(name, file=sys.stderr)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            text = complete(
                params,
                config,
                tokenizer,
                options.prompt,
                options.max_tokens,
                seed=options.seed,
                temperature=options.temperature,
                top_k=options.top_k,
                top_p=options.top_p,
                min_p=options.min_p,
                repetition_penalty=options.repetition_penalty,
            )
        for warning in caught:
            print(f"warning: {warning.message}", file=sys.stderr)
        print(text)


if __name__ == "__main__":
    main()
