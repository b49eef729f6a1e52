"""Chapter 19. Looking inside: what a model sees in a prompt, layer by layer.

    python -m numpy_ref.explain "Lily had a ball" --run outputs/quickstart

- attention maps: what each head of each layer looked at (chapter 8), and where each head's attention of the last token
  goes;
- the residual stream's length after each layer: how much each block writes into it, with the tokens and channels that
  stand out named;
- the logit lens (nostalgebraist, 2020): norm_f and the output head applied to the stream after every layer, as if the
  layers behind it did not exist: at which depth does the model make up its mind?
- the next token's probabilities.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from numpy_ref.attention import BLOCK, attention_weights
from numpy_ref.block import norm_forward
from numpy_ref.config import GPTConfig, InputError
from numpy_ref.door import one_line_errors
from numpy_ref.generate import load_any, model_options
from numpy_ref.gpt import forward
from numpy_ref.linear import Array
from numpy_ref.loss import softmax
from numpy_ref.multihead import Params, below
from numpy_ref.plots import plot_attention, plot_stream
from numpy_ref.tokenizers import Tokenizer


def shown(text: str) -> str:
    """A token's text with its spaces and newlines visible."""
    return text.replace("\n", "↵").replace(" ", "·") or "<end>"


def residual_stream(trace: dict[str, Array], config: GPTConfig) -> list[tuple[str, Array]]:
    """(name, (T, C)) of the stream at the embedding, after every attention and after every MLP."""
    found = [("embedding", trace["blocks.0.norm1.x"][0])]
    for i in range(config.n_layer):
        found.append((f"attention {i}", trace[f"blocks.{i}.norm2.x"][0]))
        after = f"blocks.{i + 1}.norm1.x" if i + 1 < config.n_layer else "norm_f.x"
        found.append((f"mlp {i}", trace[after][0]))
    return found


def lens(params: Params, config: GPTConfig, stream: Array) -> Array:
    """Probabilities (T, V) that the output head would give to the stream (T, C) as it is."""
    h, _ = norm_forward(stream, below(params, "norm_f."), config.norm)
    return softmax(h @ params["wte.weight" if config.tie_embeddings else "lm_head.weight"].T)


def outlier_channels(x: Array, share: float = 0.2) -> str:
    """Name the channels of a token's vector (C,) that hold a large share of its squared length; empty for none."""
    shares = x.astype(np.float64) ** 2 / max(float((x.astype(np.float64) ** 2).sum()), 1e-30)
    named = [
        f"channel {c} holds {shares[c]:.0%} of it" for c in np.argsort(-shares, kind="stable") if shares[c] >= share
    ]
    return f"   ({', '.join(named)})" if named and len(x) > 1 / share else ""


def attention_maps(trace: dict[str, Array], config: GPTConfig) -> list[Array]:
    """(H, T, T) per layer."""
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
    return {"weights": weights, "rows": slice(b * BLOCK, b * BLOCK + weights.shape[-2])}


def explain(params: Params, config: GPTConfig, tokenizer: Tokenizer, prompt: str, folder: Path, top: int = 10) -> str:
    """The report as text; pictures go to `folder`."""
    ids = [tokenizer.end_of_text, *tokenizer.encode(prompt)]  # the beginning of a document
    if len(ids) > config.context_length:
        raise InputError(f"the prompt has {len(ids)} tokens; this model reads {config.context_length}")
    answer = forward(params, config, np.array([ids]), trace=True)
    assert isinstance(answer, tuple)
    logits, trace = answer
    tokens = [shown(tokenizer.decode([i])) for i in ids]
    stream = residual_stream(trace, config)
    norms = np.array([np.linalg.norm(x, axis=-1) for _, x in stream])  # (1 + 2 L, T)
    lines = [f"{len(ids)} {'token' if len(ids) == 1 else 'tokens'}: {' | '.join(tokens)}", ""]

    lines += ["the residual stream at the last token, and what would be said if the model ended there:"]
    for (name, x), norm in zip(stream, norms[:, -1], strict=True):
        p = lens(params, config, x[-1:])[0]
        guesses = ", ".join(f"{shown(tokenizer.decode([int(i)]))} {p[i]:.0%}" for i in np.argsort(-p)[:4])
        lines.append(f"  {name:<12} length {norm:8.2f}   {guesses}{outlier_channels(x[-1])}")

    lines += ["", "where the last token looks (the three strongest places of each head):"]
    maps = attention_maps(trace, config)
    for layer, weights in enumerate(maps):
        for head, row in enumerate(weights[:, -1]):
            places = ", ".join(f"{tokens[t]} ({t}) {row[t]:.0%}" for t in np.argsort(-row, kind="stable")[:3])
            lines.append(f"  layer {layer} head {head}: {places}")

    p = softmax(logits[0, -1].astype(np.float64))
    lines += ["", f"next token, the {top} likeliest:"]
    for i in np.argsort(-p)[:top]:
        lines.append(f"  {p[i]:7.2%}  {shown(tokenizer.decode([int(i)]))}")

    for layer, weights in enumerate(maps):
        plot_attention(weights, tokens, layer, folder / f"attention_layer_{layer}.png")
    plot_stream(norms, [name for name, _ in stream], tokens, folder / "residual_stream.png")
    return "\n".join(lines)


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m numpy_ref.explain", description="Look inside a model.")
    parser.add_argument("prompt", nargs="?", default="Once upon a time")
    model_options(parser)
    parser.add_argument("--out", type=Path, default=Path("outputs/numpy_ref/explain"), help="folder for the pictures")
    return parser


def main(argv: list[str] | None = None) -> None:
    with one_line_errors():
        options = arguments().parse_args(argv)
        params, config, tokenizer, name = load_any(options.run, options.model)
        noun = "layer" if config.n_layer == 1 else "layers"
        print(f"{name}: {sum(p.size for p in params.values()):,} parameters, {config.n_layer} {noun}\n")
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: print(f"warning: {message}")
            print(explain(params, config, tokenizer, options.prompt, options.out))


if __name__ == "__main__":
    main()
