"""Chapter 18. Training: batch, loss, gradients, clip, step, a thousand times.

    python -m numpy_ref.train                         the built-in stories, by characters, in a minute and a half
    python -m numpy_ref.train my.txt --config improved --tokenizer bpe --epochs 10

A batch is a pure function of (seed, step): each epoch cuts the text into windows anew, beginning at a random place, and
takes them in random order; dropout draws from a generator of (seed, step). Hence `--resume` after Ctrl-C, or after
`kill -9`, continues bit for bit as if nothing had happened: weights, AdamW's moments and the step are all there is.

Writes to `--out` (default outputs/numpy_ref): NAME_config.json, NAME_weights.npz, NAME_tokenizer.json, training_loss.png,
and NAME_training.npz, from which it resumes.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import math
import re
import signal
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from numpy_ref.checkpoint import check, read_arrays, save, write_arrays, write_json
from numpy_ref.config import GPTConfig, InputError
from numpy_ref.door import one_line_errors
from numpy_ref.generate import OUTPUTS, complete
from numpy_ref.gpt import forward, init_params, loss_and_grads
from numpy_ref.linear import Array
from numpy_ref.loss import cross_entropy_forward
from numpy_ref.multihead import Params
from numpy_ref.optimizers import State, adamw_init, adamw_step, clip_gradients, lr_at
from numpy_ref.plots import plot_loss
from numpy_ref.tokenizers import END_OF_TEXT, OwnTokenizer, Tokenizer, from_json, train_tokenizer

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


@dataclass
class Settings:
    """Everything that decides what is learnt, but the text itself, of which the hash is kept."""

    text: str
    text_hash: str
    config: str
    tokenizer: str
    vocab_size: int
    epochs: int
    batch: int
    lr: float
    seed: int
    warmup_steps: int = 50
    weight_decay: float = 0.1
    grad_clip: float = 1.0


@dataclass
class Training:
    """A run between two steps: save it, load it, go on."""

    settings: Settings
    config: GPTConfig
    tokenizer: OwnTokenizer
    params: Params
    state: State
    train_ids: Array
    val_ids: Array
    losses: list[float] = field(default_factory=list)
    validations: list[tuple[int, float]] = field(default_factory=list)

    @property
    def steps_per_epoch(self) -> int:
        """At least one; the last place where an epoch may begin to cut leaves one window less."""
        windows = (len(self.train_ids) - 1) // self.config.context_length - 1
        return max(1, windows // self.settings.batch)

    @property
    def horizon(self) -> int:
        return self.settings.epochs * self.steps_per_epoch

    def batch(self, step: int) -> tuple[Array, Array]:
        """Inputs and targets (B, T) of `step`, from 1."""
        T, B = self.config.context_length, self.settings.batch
        epoch, place = divmod(step - 1, self.steps_per_epoch)
        rng = np.random.default_rng([self.settings.seed, epoch])
        offset = int(rng.integers(0, min(T, len(self.train_ids) - T)))
        starts = offset + T * rng.permutation((len(self.train_ids) - 1 - offset) // T)
        rows = starts[place * B : (place + 1) * B][:, None] + np.arange(T + 1)
        windows = self.train_ids[rows]
        return windows[:, :-1], windows[:, 1:]

    def step(self) -> float:
        """One optimizer step; its loss in nats per token. InputError where it is no longer a number."""
        s, step = self.settings, len(self.losses) + 1
        x, y = self.batch(step)
        rng = np.random.default_rng([s.seed, step, 1])
        loss, grads = loss_and_grads(self.params, self.config, x, y, rng)
        norm = clip_gradients(grads, s.grad_clip)
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise InputError(
                f"the loss is {loss}, the gradient's norm {norm}, at step {step}: try a lower --lr than {s.lr}; "
                "what was saved before is untouched"
            )
        lr = lr_at(step, self.horizon, peak=s.lr, warmup_steps=s.warmup_steps, final_ratio=0.1)
        adamw_step(self.params, grads, self.state, lr, weight_decay=s.weight_decay)
        self.losses.append(loss)
        return loss

    def validate(self) -> float:
        """Mean loss in nats per token of the text that is never trained on."""
        T = self.config.context_length
        starts = np.arange(0, len(self.val_ids) - T, T)[:64]
        total = 0.0
        for some in np.array_split(starts, -(-len(starts) // self.settings.batch)):
            windows = self.val_ids[some[:, None] + np.arange(T + 1)]
            logits = forward(self.params, self.config, windows[:, :-1])
            assert isinstance(logits, np.ndarray)
            loss, _ = cross_entropy_forward(logits, windows[:, 1:])
            total += float(loss) * len(some)
        return total / len(starts)

    def save(self, folder: Path, name: str) -> None:
        arrays = {f"params/{key}": value for key, value in self.params.items()}
        arrays |= {f"{part}/{key}": value for part in ("m", "v") for key, value in self.state[part].items()}
        arrays["losses"], arrays["validations"] = np.array(self.losses), np.array(self.validations).reshape(-1, 2)
        tokenizer = self.tokenizer.to_json()
        facts = {"settings": asdict(self.settings), "config": asdict(self.config), "tokenizer": tokenizer}
        arrays["facts"] = np.array(json.dumps(facts))
        write_arrays(folder / f"{name}_training.npz", arrays)  # one file, so that what is resumed belongs together
        write_json(folder / f"{name}_tokenizer.json", tokenizer)
        save(self.config, self.params, folder / f"{name}_config.json", folder / f"{name}_weights.npz")


def read_text(path: str) -> str:
    """A UTF-8 file. InputError names the first byte that is none, or an empty file."""
    try:
        text = Path(path).read_bytes().decode("utf-8")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 at byte {error.start}: convert it first") from error
    if not text.strip():
        raise InputError(f"{path} is empty: give a file with some text in it")
    return text


def split(ids: list[int], context_length: int, where: str) -> tuple[Array, Array]:
    """The last tenth, but at least one window of it, is for validation. InputError where there is too little."""
    held = max(context_length + 1, len(ids) // 10)
    if len(ids) < held + context_length + 2:
        raise InputError(
            f"{where} has {len(ids)} tokens; a context of {context_length} needs at least {2 * context_length + 3}: "
            "give more text, or a smaller --context"
        )
    return np.array(ids[:-held]), np.array(ids[-held:])


def start(options: argparse.Namespace) -> Training:
    choice = CONFIGS[options.config or "small"]
    path = options.text or str(BUILT_IN)
    text = read_text(path)
    settings = Settings(
        text=path if options.text else "built-in",
        text_hash=hashlib.sha256(text.encode("utf-8")).hexdigest(),
        config=options.config or "small",
        tokenizer=options.tokenizer or "char",
        vocab_size=options.vocab_size or 1000,
        epochs=options.epochs or choice["epochs"] * (LONG if options.long_training else 1),
        batch=options.batch or choice["batch"],
        lr=choice["lr"] if options.lr is None else options.lr,
        seed=options.seed or 0,
    )
    tokenizer = train_tokenizer(settings.tokenizer, "\n".join(documents(text)), settings.vocab_size)
    model = {**choice["model"], **({"context_length": options.context} if options.context else {})}
    config = GPTConfig(vocab_size=tokenizer.vocab_size, **model)
    train_ids, val_ids = split(encode_documents(tokenizer, text), config.context_length, path)
    params = init_params(config, settings.seed)
    return Training(settings, config, tokenizer, params, adamw_init(params), train_ids, val_ids)


def documents(text: str) -> list[str]:
    """Documents are separated by lines `<|endoftext|>`, as in TinyStories; most texts are one document."""
    return [part for part in re.split(rf"(?:^|\n){re.escape(END_OF_TEXT)}(?:\n|$)", text) if part]


def encode_documents(tokenizer: Tokenizer, text: str) -> list[int]:
    """Each document after an end-of-text token, so that a model knows how to begin."""
    with warnings.catch_warnings():
        # rare words of the training text itself are meant to be unknown: nothing to warn of
        warnings.simplefilter("ignore")
        return [i for document in documents(text) for i in (tokenizer.end_of_text, *tokenizer.encode(document))]


def resume(path: Path, options: argparse.Namespace) -> Training:
    """What was saved in `path`. InputError where it is damaged, or begun with other settings than those given."""
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
    text = read_text(str(BUILT_IN) if settings.text == "built-in" else settings.text)
    if hashlib.sha256(text.encode("utf-8")).hexdigest() != settings.text_hash:
        raise InputError(f"{settings.text} is no longer the text that {path} was begun with")
    params, m, v = (
        check({k[len(part) :]: a for k, a in arrays.items() if k.startswith(part)}, config, str(path))
        for part in ("params/", "m/", "v/")
    )
    state = {"step": len(losses), "m": m, "v": v}
    train_ids, val_ids = split(encode_documents(tokenizer, text), config.context_length, settings.text)
    return Training(settings, config, tokenizer, params, state, train_ids, val_ids, losses, validations)


def run(training: Training, folder: Path, name: str, save_every_s: float = 30.0) -> None:
    """Train to the horizon. Ctrl-C and SIGTERM finish the step, save, say so, and end in KeyboardInterrupt."""
    began, first = time.perf_counter(), len(training.losses)
    shown = saved = began
    tokens = training.settings.batch * training.config.context_length
    with _signals() as caught:
        while len(training.losses) < training.horizon:
            loss, step = training.step(), len(training.losses)
            if step % training.steps_per_epoch == 0:
                training.validations.append((step, training.validate()))
            now = time.perf_counter()
            if now - shown > 2 or step in (1, training.horizon):
                speed = (step - first) / (now - began)
                left = int((training.horizon - step) / speed)
                val = f" · validation {training.validations[-1][1]:.3f}" if training.validations else ""
                print(
                    f"step {step:,}/{training.horizon:,} · loss {loss:.3f}{val} · {speed * tokens:,.0f} tokens/s · "
                    f"{left // 60}:{left % 60:02d} left",
                    flush=True,
                )
                shown = now
            if caught or now - saved > save_every_s:
                training.save(folder, name)
                saved = now
            if caught:
                print(f"saved at step {step:,}: the same command with --resume goes on", flush=True)
                raise KeyboardInterrupt
    training.save(folder, name)


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM, so that none tears a step apart; a second one interrupts at once."""
    caught: list[int] = []

    def note(number: int, _: Any) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m numpy_ref.train", description="Train a GPT with NumPy alone.")
    parser.add_argument("text", nargs="?", help="a UTF-8 file (default: the built-in stories)")
    parser.add_argument("--config", choices=CONFIGS, help="architecture (default small)")
    parser.add_argument("--tokenizer", choices=("char", "word", "bpe"), help="default char")
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
    parser.add_argument("--resume", action="store_true", help="go on with what was saved under this name")
    parser.add_argument("--fresh", action="store_true", help="start over although an unfinished training is saved")
    return parser


def check_options(options: argparse.Namespace, name: str) -> None:
    for key in ("epochs", "context", "batch", "vocab_size"):
        value = getattr(options, key)
        if value is not None and value < 1:
            raise InputError(f"--{key.replace('_', '-')} {value} must be at least 1")
    if options.lr is not None and not 0 < options.lr < math.inf:
        raise InputError(f"--lr {options.lr} must be positive")
    saved = options.out / f"{name}_training.npz"
    if options.resume and not saved.exists():
        raise InputError(f"there is no {saved} to resume from")
    if saved.exists() and not options.resume and not options.fresh:
        before = resume(saved, argparse.Namespace())
        if len(before.losses) < before.horizon:
            raise InputError(
                f"{saved} holds {len(before.losses)} of {before.horizon} steps: --resume goes on, --fresh starts over, "
                "--name keeps both"
            )


def main(argv: list[str] | None = None) -> None:
    with one_line_errors():
        options = arguments().parse_args(argv)
        name = options.name or options.config or "small"
        check_options(options, name)
        training = resume(options.out / f"{name}_training.npz", options) if options.resume else start(options)
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
