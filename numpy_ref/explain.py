"""Explain a prediction: the internals of a model for one prompt, layer by layer.

    python -m numpy_ref.explain "Lily had a ball" --run outputs/quickstart

- attention maps: the weight that each head of each layer gives to each token (`attention.py`); the report names the three
  tokens to which the last token attends most;
- the norm of the residual stream after each layer, which shows how much each block adds. The report names the channels that
  hold a large share of the last token's norm, and the figure names the tokens with an unusual norm;
- the logit lens (nostalgebraist, 2020): norm_f (the last norm) and the output head are applied to the residual stream after
  every layer, as if the later layers did not exist. This shows at which depth the prediction is made;
- the probabilities of the next token.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from numpy_ref.attention import BLOCK_QUERIES, attention_weights
from numpy_ref.block import norm_forward
from numpy_ref.command_line import one_line_errors
from numpy_ref.config import GPTConfig, InputError
from numpy_ref.generate import add_model_options, load_model
from numpy_ref.gpt import forward
from numpy_ref.linear import Array, Params
from numpy_ref.loss import softmax
from numpy_ref.multihead import strip_prefix
from numpy_ref.plots import plot_attention, plot_stream
from numpy_ref.tokenizers import Tokenizer


def visible(text: str) -> str:
    """Return a token's text with visible spaces and newlines; the empty text of a special token becomes `<end>`."""
    return text.replace("\n", "↵").replace(" ", "·") or "<end>"


def residual_stream(trace: dict[str, Array], config: GPTConfig) -> list[tuple[str, Array]]:
    """Return the residual stream after the embedding, every attention and every MLP, as pairs of a name and a stream (T, C).

    `trace` is the trace that `gpt.forward` returns for one sequence.
    """
    stream = [("embedding", trace["blocks.0.norm1.x"][0])]
    for i in range(config.n_layer):
        stream.append((f"attention {i}", trace[f"blocks.{i}.norm2.x"][0]))
        after = f"blocks.{i + 1}.norm1.x" if i + 1 < config.n_layer else "norm_f.x"
        stream.append((f"mlp {i}", trace[after][0]))
    return stream


def logit_lens(params: Params, config: GPTConfig, stream: Array) -> Array:
    """Apply norm_f, the output head and softmax to the residual stream of any layer: (T, C) -> probabilities (T, V)."""
    h, _ = norm_forward(stream, strip_prefix(params, "norm_f."), config)
    return softmax(h @ params["wte.weight" if config.tie_embeddings else "lm_head.weight"].T)


def outlier_channels(x: Array, share: float = 0.2) -> str:
    """Return a text that names the channels of a vector (C,) that hold at least `share` of the vector's squared norm.

    The text is "" if there are no such channels, or if the vector has at most 1 / share channels, where a large share is
    normal.
    """
    shares = x.astype(np.float64) ** 2 / max(float((x.astype(np.float64) ** 2).sum()), 1e-30)
    outliers = [
        f"channel {c} holds {shares[c]:.0%} of it" for c in np.argsort(-shares, kind="stable") if shares[c] >= share
    ]
    return f"   ({', '.join(outliers)})" if outliers and len(x) > 1 / share else ""


def attention_maps(trace: dict[str, Array], config: GPTConfig) -> list[Array]:
    """Return the attention weights (H, T, T) of each layer from the trace that `gpt.forward` returns for one sequence."""
    maps = []
    for i in range(config.n_layer):
        name = f"blocks.{i}.attn.attention"
        n = sum(1 for key in trace if key.startswith(f"{name}.blocks.") and key.endswith(".weights"))
        maps.append(
            attention_weights(
                {
                    "q": trace[f"{name}.q"],
                    "k": trace[f"{name}.k"],
                    "blocks": [_block(trace, f"{name}.blocks.{b}", b) for b in range(n)],
                }
            )[0]
        )
    return maps


def _block(trace: dict[str, Array], name: str, b: int) -> dict[str, Any]:
    weights = trace[f"{name}.weights"]
    return {"weights": weights, "rows": slice(b * BLOCK_QUERIES, b * BLOCK_QUERIES + weights.shape[-2])}


def explain(params: Params, config: GPTConfig, tokenizer: Tokenizer, prompt: str, folder: Path, top: int = 10) -> str:
    """Explain the model's prediction after `prompt`: return a report as text, and draw its figures in `folder`.

    `top`: the number of likeliest next tokens to list. Raises InputError if the prompt does not fit the context.
    """
    ids = [tokenizer.end_of_text, *tokenizer.encode(prompt)]  # the beginning of a document
    if len(ids) > config.context_length:
        raise InputError(
            f"the prompt has {len(ids)} tokens, but this model reads {config.context_length}: give a shorter prompt"
        )
    traced = forward(params, config, np.array([ids]), trace=True)
    assert isinstance(traced, tuple)
    logits, trace = traced
    tokens = [visible(tokenizer.decode([i])) for i in ids]
    stream = residual_stream(trace, config)
    norms = np.array([np.linalg.norm(x, axis=-1) for _, x in stream])  # (1 + 2 L, T)
    lines = [f"{len(ids)} {'token' if len(ids) == 1 else 'tokens'}: {' | '.join(tokens)}", ""]

    lines += ["residual stream at the last token: its norm, and the prediction if the model ended after this layer:"]
    for (name, x), norm in zip(stream, norms[:, -1], strict=True):
        p = logit_lens(params, config, x[-1:])[0]
        guesses = ", ".join(f"{visible(tokenizer.decode([int(i)]))} {p[i]:.0%}" for i in np.argsort(-p)[:4])
        lines.append(f"  {name:<12} norm {norm:8.2f}   {guesses}{outlier_channels(x[-1])}")

    lines += ["", "attention of the last token (the three largest weights of each head):"]
    maps = attention_maps(trace, config)
    for layer, weights in enumerate(maps):
        for head, row in enumerate(weights[:, -1]):
            largest = ", ".join(f"{tokens[t]} ({t}) {row[t]:.0%}" for t in np.argsort(-row, kind="stable")[:3])
            lines.append(f"  layer {layer} head {head}: {largest}")

    p = softmax(logits[0, -1].astype(np.float64))
    lines += ["", f"the {top} likeliest next tokens:"]
    for i in np.argsort(-p)[:top]:
        lines.append(f"  {p[i]:7.2%}  {visible(tokenizer.decode([int(i)]))}")

    for layer, weights in enumerate(maps):
        plot_attention(weights, tokens, layer, folder / f"attention_layer_{layer}.png")
    plot_stream(norms, [name for name, _ in stream], tokens, folder / "residual_stream.png")
    return "\n".join(lines)


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = argparse.ArgumentParser(prog="python -m numpy_ref.explain", description="Show the internals of a model.")
    parser.add_argument("prompt", nargs="?", default="Once upon a time", help="text to read (default: %(default)r)")
    add_model_options(parser)
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("outputs/numpy_ref/explain"),
        help="folder for the figures (default %(default)s)",
    )
    return parser


def main(argv: list[str] | None = None) -> None:
    """Run `python -m numpy_ref.explain`; `argv` holds its arguments (None: those in `sys.argv`)."""
    with one_line_errors():
        options = argument_parser().parse_args(argv)
        params, config, tokenizer, name = load_model(options.run, options.model)
        noun = "layer" if config.n_layer == 1 else "layers"
        print(f"{name}: {sum(p.size for p in params.values()):,} parameters, {config.n_layer} {noun}\n")
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: print(f"warning: {message}")
            print(explain(params, config, tokenizer, options.prompt, options.out))


if __name__ == "__main__":
    main()
