"""Train on the built-in stories or on your own text, as `training.py` explains.

    python -m numpy_ref.train                         the built-in stories, by characters, in a minute and a half
    python -m numpy_ref.train my.txt --config improved --tokenizer bpe --epochs 10

If a training is interrupted, give the same command again to continue it; the results are the same as without the interruption.
Ctrl-C saves the training before it ends. `--fresh` starts over.

Writes to the folder `--out` (default outputs/numpy_ref): NAME_config.json, NAME_weights.npz, NAME_tokenizer.json,
training_loss.png, and NAME_training.npz, from which a training continues. NAME is the value of `--name`; without this option,
it is the value of `--config`.
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

from numpy_ref.checkpoint import check_params, read_arrays
from numpy_ref.command_line import one_line_errors
from numpy_ref.config import GPTConfig, InputError
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

STORIES_PATH = Path(__file__).parent / "stories.txt"
LONG_TRAINING_FACTOR = 10  # --long-training multiplies the epochs by this

CONFIGS: dict[str, dict[str, Any]] = {
    # GPT-2's architecture, small enough to learn the stories within two minutes on two cores
    "small": {
        "model": {"context_length": 64, "d_model": 128, "n_layer": 4, "n_head": 4},
        "batch": 12,
        "epochs": 7,
        "lr": 4e-3,
    },
    # common changes since GPT-2: rotary positions, RMSNorm, gated MLP, QK-norm, grouped heads
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


def settings_from(options: argparse.Namespace, text: str) -> Settings:
    """Return the settings of a training from the parsed command line `options`.

    `text` is the content of the text to train on; its sha256 is one of the settings. The defaults of epochs, batch and learning
    rate depend on --config.
    """
    choice = CONFIGS[options.config or "small"]
    return Settings(
        text=options.text or "built-in",
        text_hash=hashlib.sha256(text.encode("utf-8")).hexdigest(),
        config=options.config or "small",
        tokenizer=options.tokenizer or "char",
        vocab_size=options.vocab_size or 1000,
        epochs=options.epochs or choice["epochs"] * (LONG_TRAINING_FACTOR if options.long_training else 1),
        batch=options.batch or choice["batch"],
        lr=choice["lr"] if options.lr is None else options.lr,
        seed=options.seed or 0,
    )


def new_training(options: argparse.Namespace) -> Training:
    """Start a training: train its tokenizer and draw its initial weights."""
    path = options.text or str(STORIES_PATH)
    text = read_text(path)
    settings = settings_from(options, text)
    tokenizer = train_tokenizer(settings.tokenizer, "\n".join(documents(text)), settings.vocab_size)
    config = GPTConfig(vocab_size=tokenizer.vocab_size, **architecture(options))
    train_ids, val_ids = split(encode_documents(tokenizer, text), config.context_length, path)
    params = init_params(config, settings.seed)
    return Training(settings, config, tokenizer, params, adamw_init(params), train_ids, val_ids)


def architecture(options: argparse.Namespace) -> dict[str, Any]:
    """Return the architecture that a command line chooses, as arguments of GPTConfig without `vocab_size`."""
    model: dict[str, Any] = CONFIGS[options.config or "small"]["model"]
    return {**model, **({"context_length": options.context} if options.context else {})}


def continue_training(path: Path, options: argparse.Namespace) -> Training:
    """Load the training that was saved in `path`, if `options` are the settings with which it was started.

    Raises InputError if a setting differs, if the file is damaged, or if the text has changed.
    """
    text_path = options.text or str(STORIES_PATH)
    training = resume_training(path, argparse.Namespace(), text_path)
    given = {**asdict(settings_from(options, read_text(text_path))), "context": architecture(options)["context_length"]}
    saved = {**asdict(training.settings), "context": training.config.context_length}
    differences = [
        f"{key.replace('_', '-')} was {saved[key]} and is now {given[key]}"
        for key in given
        if given[key] != saved[key] and key != "text"  # a path; the content is compared by text_hash
    ]
    if differences:
        raise InputError(
            f"the training in {path} was started with other settings ({'; '.join(differences)}): give the same settings to "
            "continue it, --name for another training, or --fresh to start over"
        )
    return training


def resume_training(path: Path, options: argparse.Namespace, text_path: str | None = None) -> Training:
    """Load the training that was saved in `path`, with the settings that were saved with it.

    `text_path` is the path of the text if it was moved; None: the saved path. Raises InputError if the file is damaged, if a
    value in `options` that is not None differs from the saved setting, or if the text has changed.
    """
    arrays = read_arrays(path)
    try:
        facts = json.loads(str(arrays["facts"]))
        settings, config = Settings(**facts["settings"]), GPTConfig(**facts["config"])
        tokenizer = from_json(facts["tokenizer"], str(path))
        losses = [float(loss) for loss in arrays["losses"]]
        validations = [(int(step), float(loss)) for step, loss in arrays["validations"]]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} is damaged ({error!r}): restore it from a copy, or start over with --fresh, without --resume"
        ) from error
    saved = {**asdict(settings), "context": config.context_length}
    for key, given in vars(options).items():
        if given is not None and saved.get(key, given) != given:
            raise InputError(
                f"the training in {path} was started with {key}={saved[key]}, not {given}: with --resume, leave this option "
                "out; for another training, give another --name and leave --resume out"
            )
    source = text_path or (str(STORIES_PATH) if settings.text == "built-in" else settings.text)
    text = read_text(source)
    if hashlib.sha256(text.encode("utf-8")).hexdigest() != settings.text_hash:
        raise InputError(
            f"{source} has changed since the training in {path} was started: restore the text to continue; otherwise, without "
            "--resume, give --name for another training, or --fresh to start over"
        )
    params, m, v = (
        check_params({k[len(part) :]: a for k, a in arrays.items() if k.startswith(part)}, config, str(path))
        for part in ("params/", "m/", "v/")
    )
    state = {"step": len(losses), "m": m, "v": v}
    train_ids, val_ids = split(encode_documents(tokenizer, text), config.context_length, settings.text)
    return Training(settings, config, tokenizer, params, state, train_ids, val_ids, losses, validations)


def argument_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    parser = argparse.ArgumentParser(prog="python -m numpy_ref.train", description="Train a GPT with NumPy only.")
    parser.add_argument("text", nargs="?", help="UTF-8 text file to train on (default: the built-in stories)")
    parser.add_argument(
        "--config", choices=CONFIGS, help="architecture with its batch, epochs and learning rate (default small)"
    )
    parser.add_argument(
        "--tokenizer",
        choices=get_args(TokenizerKind),
        help="kind of tokens: characters, words or byte pairs (default char)",
    )
    parser.add_argument("--vocab-size", type=int, help="maximum number of tokens of word and bpe (default 1000)")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=int, help="passes over the text")
    length.add_argument(
        "--long-training", action="store_true", help=f"train {LONG_TRAINING_FACTOR} times the default number of epochs"
    )
    parser.add_argument("--context", type=int, help="context length in tokens")
    parser.add_argument("--batch", type=int, help="windows per optimizer step")
    parser.add_argument("--lr", type=float, help="peak learning rate")
    parser.add_argument("--seed", type=int, help="seed of weights, batches and dropout (default 0)")
    parser.add_argument("--name", help="prefix of the saved files (default: the name of the config)")
    parser.add_argument("--out", type=Path, default=OUTPUTS, help="folder for the saved files (default %(default)s)")
    parser.add_argument(
        "--resume", action="store_true", help="continue the training saved under this name with its saved settings"
    )
    parser.add_argument("--fresh", action="store_true", help="start over even if a training is saved under this name")
    return parser


def check_options(options: argparse.Namespace, name: str) -> None:
    """Raise InputError for an option that is out of range or contradicts another; `name` is the prefix of the saved files.

    Raises InputError also for --resume if no training is saved under `name`.
    """
    for key in ("epochs", "context", "batch", "vocab_size"):
        value = getattr(options, key)
        if value is not None and value < 1:
            raise InputError(f"--{key.replace('_', '-')} {value} must be at least 1")
    if options.lr is not None and not 0 < options.lr < math.inf:
        raise InputError(f"--lr {options.lr} must be positive and finite")
    if options.vocab_size is not None and options.tokenizer not in ("word", "bpe"):
        raise InputError(
            "--vocab-size only applies to --tokenizer word and bpe: give one of these, or leave --vocab-size out"
        )
    if options.seed is not None and not 0 <= options.seed < 2**63:
        raise InputError(f"--seed {options.seed} must be at least 0 and less than 2**63")
    if options.name is not None and (Path(options.name).name != options.name or options.name.startswith(".")):
        raise InputError(
            f"--name {options.name} must be a file name without a folder, and must not begin with a dot: give the folder "
            "by --out"
        )
    if options.resume and options.fresh:
        raise InputError("--resume continues and --fresh starts over: give only one of them")
    if options.resume and options.long_training:
        raise InputError("--resume continues with the saved number of epochs: leave --long-training out")
    saved = options.out / f"{name}_training.npz"
    if options.resume and not saved.exists():
        raise InputError(f"cannot resume: {saved} does not exist; check --out and --name, or leave --resume out")


def open_training(options: argparse.Namespace, name: str) -> Training:
    """Continue the training saved under `name`, or start a new training if there is none or --fresh is given.

    If a training is continued with --resume, its settings are the saved ones. If it is continued without --resume, the settings
    of the command line must be equal to the saved ones; otherwise, raises InputError.
    """
    saved = options.out / f"{name}_training.npz"
    if options.resume:
        return resume_training(saved, options)
    if options.fresh or not saved.exists():
        return new_training(options)
    training = continue_training(saved, options)
    n_done, horizon = len(training.losses), training.horizon
    print(
        f"nothing to do: {saved} has finished its {horizon:,} steps"
        if n_done == horizon
        else f"continuing at step {n_done:,}"
    )
    return training


def main(argv: list[str] | None = None) -> None:
    """Run `python -m numpy_ref.train`; `argv` holds its arguments (None: those in `sys.argv`)."""
    with one_line_errors():
        options = argument_parser().parse_args(argv)
        name = options.name or options.config or "small"
        check_options(options, name)
        training = open_training(options, name)
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
