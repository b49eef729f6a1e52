"""The proof for your own run: its weights, through the torch model and through NumPy, side by side in float64.

    python scripts/verify_run.py outputs/quickstart

Logits, loss, and every gradient tensor are compared on a batch of what the model itself writes and of random tokens, a
quarter of the targets without loss; then the greedy continuation of a prompt, in float32, from text to text. Two
implementations that share no code can hardly be wrong in the same way. Exit code 1 where they differ.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys

import numpy as np
import torch

import numpy_ref
from numpy_ref.generate import complete as write
from positron.config import GPTConfig
from positron.inference.decoder import Decoder
from positron.inference.text_model import Writer
from positron.model.gpt import GPT, rope_tables, sinusoidal_table
from positron.run.folder import find_run
from positron.system.errors import UserError
from positron.system.exits import errors_as_one_line
from positron.text.factory import load_tokenizer

TOLERANCE = 1e-8  # of the largest number of a tensor; float64 rounds at 1e-16


def in_float64(config: GPTConfig, params: dict[str, np.ndarray]) -> GPT:
    """The torch model with its constant tables computed anew, not rounded to float32 on the way."""
    model = GPT(config).double()
    model.load_state_dict({name: torch.from_numpy(p) for name, p in params.items()})
    if config.position == "sinusoidal":
        model.positions = sinusoidal_table(config.context_length, config.d_model)
    elif config.position == "rope":
        model.cos, model.sin = rope_tables(config.context_length, config.d_head, config.rope_base)
    return model.eval()


def batch(model: GPT, rows: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """idx and targets (rows, length): half written by the model, half random; a quarter of the targets -100."""
    rng = np.random.default_rng(0)
    V, decoder = model.config.vocab_size, Decoder(model)
    windows = rng.integers(0, V, (rows, length + 1))
    for row in range(rows // 2):
        generator, windows[row, 0] = torch.Generator().manual_seed(row), 1
        for i in range(length):
            logits = decoder.step(torch.from_numpy(windows[row, i, None])) if i else decoder.prefill([0], [[1]])
            windows[row, i + 1] = int(torch.multinomial(logits[0].softmax(-1), 1, generator=generator))
    targets = np.where(rng.random((rows, length)) < 0.25, -100, windows[:, 1:])
    return windows[:, :-1].copy(), targets


def error(got: np.ndarray, wanted: torch.Tensor, least: float = 0.0) -> float:
    """Largest difference, relative to the largest number of the tensor, or to `least` where that is more."""
    target = wanted.detach().numpy()
    return float(np.abs(got - target).max() / max(float(np.abs(target).max()), least))


def compare(config: GPTConfig, params: dict[str, np.ndarray]) -> dict[str, float]:
    """Largest relative error of logits, loss and each gradient. params in float64."""
    model = in_float64(config, params)
    idx, targets = batch(model, 4, min(64, config.context_length))
    twin = numpy_ref.GPTConfig(**dataclasses.asdict(config))
    logits = numpy_ref.forward(params, twin, idx)
    assert isinstance(logits, np.ndarray)  # without a cache
    loss, grads = numpy_ref.loss_and_grads(params, twin, idx, targets)
    errors = {"logits": error(logits, model(torch.from_numpy(idx)))}
    wanted = model(torch.from_numpy(idx), torch.from_numpy(targets)) / int((targets != -100).sum())
    wanted.backward()
    errors["loss"] = error(np.array(loss), wanted)
    # a gradient that is mathematically 0, like that of a key's bias, is rounding noise on both sides
    least = 1e-6 * max(float(np.abs(grad).max()) for grad in grads.values())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        errors[f"gradient of {name}"] = error(grads[name], parameter.grad, least)
    return errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", nargs="?", help="run folder, or name below outputs/ (default: the one trained last)")
    parser.add_argument("--prompt", default="Once upon a time")
    parser.add_argument("--max-tokens", type=int, default=100, help="of the greedy continuation")
    with errors_as_one_line():
        options = parser.parse_args()
        run = find_run(options.run)
        try:
            params, config, tokenizer = numpy_ref.from_torch_run(run.folder)
        except numpy_ref.InputError as reason:
            raise UserError(str(reason)) from reason
        torch_config = GPTConfig(**vars(config))
        errors = compare(torch_config, {name: p.astype(np.float64) for name, p in params.items()})
        print(f"{run.folder}: {sum(p.size for p in params.values()):,} parameters, float64\n")
        print(f"{'':<44}largest relative error, NumPy against torch")
        for name, value in errors.items():
            print(f"{name:<44}{value:.1e}{'' if value < TOLERANCE else '   DIFFERENT'}")

        model = GPT(torch_config)
        model.load_state_dict({name: torch.from_numpy(p) for name, p in params.items()})
        n, torch_tokenizer = options.max_tokens, load_tokenizer(run.tokenizer_folder)
        wanted = Writer(model.eval(), torch_tokenizer).generate(options.prompt, max_tokens=n, temperature=0)
        got = write(params, config, tokenizer, options.prompt, max_tokens=n, temperature=0.0)
        same = got == wanted
        print(f"{'greedy continuation':<44}{'the same text' if same else f'DIFFERENT: {got!r} against {wanted!r}'}")
        print(f"\n{got}")
        worst = max(errors.values())
        print(f"\nworst of {len(errors)} tensors: {worst:.1e}")
        if worst >= TOLERANCE or not same:
            sys.exit(1)


if __name__ == "__main__":
    main()
