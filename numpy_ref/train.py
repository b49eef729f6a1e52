"""The command for chapter 18: train on the built-in stories or on a text of yours.

    python -m numpy_ref.train                         the built-in stories, by characters, in a minute and a half
    python -m numpy_ref.train my.txt --config improved --tokenizer bpe --epochs 10

The same command again continues, bit for bit; Ctrl-C saves first. `--fresh` starts over.

Writes to `--out` (default outputs/numpy_ref): NAME_config.json, NAME_weights.npz, NAME_tokenizer.json, training_loss.png,
and NAME_training.npz, from which it continues.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import numpy as np

from numpy_ref.checkpoint import check, read_arrays
from numpy_ref.config import GPTConfig, InputError
from numpy_ref.door import one_line_errors
from numpy_ref.generate import OUTPUTS, complete
from numpy_ref.gpt import init_params
from numpy_ref.optimizers import adamw_init
from numpy_ref.plots import plot_loss
from numpy_ref.tokenizers import TokenizerKind, from_json, train_tokenizer
from numpy_ref.training import (
    Settings,
    Training,
    documents,
    encode_documents,
    read_text,
    run,
    split,
)

BUILT_IN = Path(__file__).parent / "stories.txt"
LONG = 10  # times as many epochs with --long-training

CONFIGS: dict[str, dict[str, Any]] = {
    # GPT-2's architecture, small enough to learn to write within two minutes on two cores
    "small": {
        "model": {"context_length": 64, "d_model": 128, "n_layer": 4, "n_head": 4},
        "batch": 12,
        "epochs": 7,
        "lr": 4e-3,
    },
    # what the field has changed since: rotary positions, RMSNorm, gated MLP, normalised and shared keys
    "improved": {
        "model": {
            "context_length": 128,
            "d_model": 192,
            "n_layer": 4,
            "n_head": 6,
            "n_kv_head": 2,
            "norm": "rmsnorm",
            "position": "rope",
            "activation": "swiglu",
            "qk_norm": True,
            "dropout": 0.05,
        },
        "batch": 12,
        "epochs": 10,
        "lr": 2e-3,
    },
}


def chosen_settings(options: argparse.Namespace, text: str) -> Settings:
    """The settings that a command asks for, its defaults included."""
    choice = CONFIGS[options.config or "small"]
    return Settings(
        text=options.text or "built-in",
        text_hash=hashlib.sha256(text.encode("utf-8")).hexdigest(),
        config=options.config or "small",
        tokenizer=options.tokenizer or "char",
        vocab_size=options.vocab_size or 1000,
        epochs=options.epochs or choice["epochs"] * (LONG if options.long_training else 1),
        batch=options.batch or choice["batch"],
        lr=choice["lr"] if options.lr is None else options.lr,
        seed=options.seed or 0,
    )


def start(options: argparse.Namespace) -> Training:
    """A training from its first step."""
    path = options.text or str(BUILT_IN)
    text = read_text(path)
    settings = chosen_settings(options, text)
    tokenizer = train_tokenizer(settings.tokenizer, "\n".join(documents(text)), settings.vocab_size)
    config = GPTConfig(vocab_size=tokenizer.vocab_size, **architecture(options))
    train_ids, val_ids = split(encode_documents(tokenizer, text), config.context_length, path)
    params = init_params(config, settings.seed)
    return Training(settings, config, tokenizer, params, adamw_init(params), train_ids, val_ids)


def architecture(options: argparse.Namespace) -> dict[str, Any]:
    model: dict[str, Any] = CONFIGS[options.config or "small"]["model"]
    return {**model, **({"context_length": options.context} if options.context else {})}


def continued(path: Path, options: argparse.Namespace) -> Training:
    """What was saved in `path` by the same command. InputError where this command asks for something else."""
    where = options.text or str(BUILT_IN)
    training = resume(path, argparse.Namespace(), where)
    wanted = {**asdict(chosen_settings(options, read_text(where))), "context": architecture(options)["context_length"]}
    saved = {**asdict(training.settings), "context": training.config.context_length}
    different = [
        f"{key.replace('_', '-')}: {saved[key]} -> {wanted[key]}"
        for key in wanted
        if wanted[key] != saved[key] and key != "text"  # whose content is compared
    ]
    if different:
        raise InputError(
            f"{path} was begun with other settings ({'; '.join(different)}): give the same ones to continue, "
            "--name for another training, or --fresh to start over"
        )
    return training


def resume(path: Path, options: argparse.Namespace, text_path: str | None = None) -> Training:
    """What was saved in `path`. InputError where it is damaged, or begun with other settings than those given.

    `text_path` is where the text lies now, if it was moved.
    """
    arrays = read_arrays(path)
    try:
        facts = json.loads(str(arrays["facts"]))
        settings, config = Settings(**facts["settings"]), GPTConfig(**facts["config"])
        tokenizer = from_json(facts["tokenizer"], str(path))
        losses = [float(loss) for loss in arrays["losses"]]
        validations = [(int(step), float(loss)) for step, loss in arrays["validations"]]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is damaged: {error!r}") from error
    for key, given in vars(options).items():
        if given is not None and getattr(settings, key, given) != given:
            raise InputError(f"{path} was begun with {key}={getattr(settings, key)}, not {given}: use another --name")
    where = text_path or (str(BUILT_IN) if settings.text == "built-in" else settings.text)
    text = read_text(where)
    if hashlib.sha256(text.encode("utf-8")).hexdigest() != settings.text_hash:
        raise InputError(
            f"{where} is no longer the text that {path} was begun with: --name is for another training, "
            "--fresh starts over"
        )
    params, m, v = (
        check({k[len(part) :]: a for k, a in arrays.items() if k.startswith(part)}, config, str(path))
        for part in ("params/", "m/", "v/")
    )
    state = {"step": len(losses), "m": m, "v": v}
    train_ids, val_ids = split(encode_documents(tokenizer, text), config.context_length, settings.text)
    return Training(settings, config, tokenizer, params, state, train_ids, val_ids, losses, validations)


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m numpy_ref.train", description="Train a GPT with NumPy alone.")
    parser.add_argument("text", nargs="?", help="a UTF-8 file (default: the built-in stories)")
    parser.add_argument("--config", choices=CONFIGS, help="architecture (default small)")
    parser.add_argument("--tokenizer", choices=get_args(TokenizerKind), help="default char")
    parser.add_argument("--vocab-size", type=int, help="most tokens of word and bpe (default 1000)")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=int, help="times through the text")
    length.add_argument("--long-training", action="store_true", help=f"{LONG} times the usual number of epochs")
    parser.add_argument("--context", type=int, help="tokens of context")
    parser.add_argument("--batch", type=int, help="windows per step")
    parser.add_argument("--lr", type=float, help="highest learning rate")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--name", help="of the saved files (default: that of the config)")
    parser.add_argument("--out", type=Path, default=OUTPUTS, help="folder (default %(default)s)")
    parser.add_argument(
        "--resume", action="store_true", help="continue what was saved under this name, whatever its settings"
    )
    parser.add_argument("--fresh", action="store_true", help="start over although a training is saved under this name")
    return parser


def check_options(options: argparse.Namespace, name: str) -> None:
    for key in ("epochs", "context", "batch", "vocab_size"):
        value = getattr(options, key)
        if value is not None and value < 1:
            raise InputError(f"--{key.replace('_', '-')} {value} must be at least 1")
    if options.lr is not None and not 0 < options.lr < math.inf:
        raise InputError(f"--lr {options.lr} must be positive")
    if options.vocab_size is not None and options.tokenizer not in ("word", "bpe"):
        raise InputError("--vocab-size is read by --tokenizer word and bpe: add one of them, or leave it out")
    if options.seed is not None and not 0 <= options.seed < 2**63:
        raise InputError(f"--seed {options.seed} must be at least 0 and less than 2**63")
    if options.name is not None and (Path(options.name).name != options.name or options.name.startswith(".")):
        raise InputError(f"--name {options.name} must be the beginning of a file's name: --out is for the folder")
    if options.resume and options.fresh:
        raise InputError("--resume continues and --fresh starts over: give one of them")
    saved = options.out / f"{name}_training.npz"
    if options.resume and not saved.exists():
        raise InputError(f"there is no {saved} to resume from")


def begin(options: argparse.Namespace, name: str) -> Training:
    """A new training, or the one that was saved under this name: the same command again continues."""
    saved = options.out / f"{name}_training.npz"
    if options.resume:
        return resume(saved, options)
    if options.fresh or not saved.exists():
        return start(options)
    training = continued(saved, options)
    done, horizon = len(training.losses), training.horizon
    print(
        f"nothing to do: {saved} has all its {horizon:,} steps" if done == horizon else f"continuing at step {done:,}"
    )
    return training


def main(argv: list[str] | None = None) -> None:
    with one_line_errors():
        options = arguments().parse_args(argv)
        name = options.name or options.config or "small"
        check_options(options, name)
        training = begin(options, name)
        n_params = sum(p.size for p in training.params.values())
        print(
            f"{n_params:,} parameters, vocabulary {training.config.vocab_size}, {len(training.train_ids):,} tokens of "
            f"text, {training.horizon:,} steps of {training.settings.batch * training.config.context_length:,} tokens"
        )
        run(training, options.out, name)
        plot_loss(training.losses, training.validations, options.out / "training_loss.png")
        first, last = training.losses[0], float(np.mean(training.losses[-20:]))
        print(f"loss {first:.3f} -> {last:.3f} nats per token ({1 - last / first:.0%} less)\n")
        prompt = "Once upon a time" if training.settings.text == "built-in" else ""
        print(complete(training.params, training.config, training.tokenizer, prompt, 300, temperature=0.7))
        print(f'\nsaved as {options.out / name}_*; next: python -m numpy_ref.generate "Once upon a time"')


if __name__ == "__main__":
    main()
