"""Generation: one token after the other, each appended to the input of the next.

Without a cache, token n costs a forward pass over n tokens. Keys and values of past tokens never change, because a token
attends only to earlier ones. So a cache keeps them, and each new token costs a forward pass over one token. But keys and values
depend on the positions of their tokens. So when the context is full, the cache is emptied, and the most recent tokens, which
fill half of the context, pass through the model again at the positions 0, 1, ... Then generation continues.

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
from numpy_ref.command_line import one_line_errors
from numpy_ref.config import GPTConfig, InputError
from numpy_ref.gpt import forward
from numpy_ref.linear import Params
from numpy_ref.multihead import Past
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
    """Yield up to `max_tokens` new token ids that continue `ids`; stop early at the id `stop`, which is not yielded.

    The keyword arguments `sampling` are passed to the function `sample`, whose repetition penalty applies to the last `last_n`
    tokens. The random numbers start from `seed`. With `cached` False, the same ids are computed without a key/value cache.
    Raises InputError if `ids` is empty.
    """
    if not ids:
        raise InputError("the prompt is empty: give at least one token")
    rng = np.random.default_rng(seed)
    seen, start = list(ids), 0
    past: list[Past] | None = None
    for _ in range(max_tokens):
        if len(seen) - start > config.context_length:
            start, past = len(seen) - max(1, config.context_length // 2), None
        if past is None:
            past, new_ids = new_past(params, config), seen[start:]
        else:
            new_ids = seen[-1:]
        window = new_ids if cached else seen[start:]
        logits = forward(params, config, np.array([window]), past=past if cached else None)
        assert isinstance(logits, np.ndarray)
        token = sample(logits[0, -1], rng, seen[-last_n:], **sampling)
        if token == stop:
            return
        seen.append(token)
        yield token


def new_past(params: Params, config: GPTConfig, batch: int = 1) -> list[Past]:
    """Create an empty key/value cache for each layer; `batch` is the number of sequences."""
    dtype = params["wte.weight"].dtype
    return [Past(batch, config, config.context_length, dtype) for _ in range(config.n_layer)]


def complete(
    params: Params, config: GPTConfig, tokenizer: Tokenizer, prompt: str, max_tokens: int, **options: Any
) -> str:
    """Return the prompt and its continuation, of at most `max_tokens` tokens, as one text.

    The prompt is read as the beginning of a document; generation stops early where the model ends this document. `options`
    are further arguments of `generate_ids`.
    """
    end = tokenizer.end_of_text
    new = generate_ids(params, config, [end, *tokenizer.encode(prompt)], max_tokens, stop=end, exempt=[end], **options)
    return prompt + tokenizer.decode(new)


def load_model(run: str | None, model: str | None) -> tuple[Params, GPTConfig, Tokenizer, str]:
    """Load the model of a Positron run or of `numpy_ref.train`: return its weights, architecture, tokenizer and path.

    `run` is the folder of a Positron run. `model` is FOLDER/NAME, under which `numpy_ref.train` saved a model. If both are
    None, the newest model in the folder outputs/numpy_ref is loaded. Raises InputError if there is no model, or if a file is
    damaged.
    """
    if run is not None:
        return *from_torch_run(run), run
    if model is None:
        by_age = sorted(OUTPUTS.glob("*_weights.npz"), key=lambda path: path.stat().st_mtime)
        if not by_age:
            raise InputError(f"no model in {OUTPUTS.resolve()}: train one with python -m numpy_ref.train")
        model = str(by_age[-1]).removesuffix("_weights.npz")
    params, config = load(f"{model}_config.json", f"{model}_weights.npz")
    tokenizer = from_json(read_json(Path(f"{model}_tokenizer.json")), f"{model}_tokenizer.json")
    if tokenizer.vocab_size != config.vocab_size:
        raise InputError(
            f"{model}: the tokenizer has {tokenizer.vocab_size} tokens, but the model has {config.vocab_size}: the files "
            "of two models are mixed"
        )
    return params, config, tokenizer, model


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add --run and --model, the arguments of `load_model`."""
    parser.add_argument("--run", help="folder of a Positron run")
    parser.add_argument("--model", help="FOLDER/NAME that numpy_ref.train saved (default: the newest)")


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = argparse.ArgumentParser(prog="python -m numpy_ref.generate", description="Generate text with NumPy only.")
    parser.add_argument("prompt", nargs="?", default="Once upon a time", help="text to continue (default: %(default)r)")
    add_model_options(parser)
    parser.add_argument(
        "--max-tokens", type=int, default=300, help="maximum number of new tokens (default %(default)s)"
    )
    parser.add_argument(
        "--temperature", type=float, default=0.8, help="0 always takes the likeliest token (default %(default)s)"
    )
    parser.add_argument("--top-k", type=int, help="sample from the k likeliest tokens only")
    parser.add_argument(
        "--top-p", type=float, help="sample only from the likeliest tokens whose probabilities add up to this value"
    )
    parser.add_argument(
        "--min-p", type=float, help="drop tokens whose probability is below this share of the largest probability"
    )
    parser.add_argument(
        "--repetition-penalty", type=float, default=1.0, help="above 1: make recent tokens less likely (default 1)"
    )
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same text (default %(default)s)")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run `python -m numpy_ref.generate`; `argv` holds its arguments (None: those in `sys.argv`)."""
    with one_line_errors():
        options = argument_parser().parse_args(argv)
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
        params, config, tokenizer, name = load_model(options.run, options.model)
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
