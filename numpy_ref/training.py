"""Chapter 18. Training: batch, loss, gradients, clip, step, a thousand times.

A batch is a pure function of (seed, step): each epoch cuts the text into windows anew, beginning at a random place, and
takes them in random order; dropout draws from a generator of (seed, step). Hence a training that was stopped by Ctrl-C,
or killed, continues bit for bit as if nothing had happened: weights, AdamW's moments and the step are all there is.
"""

from __future__ import annotations

import contextlib
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

from numpy_ref.checkpoint import save, write_arrays, write_json
from numpy_ref.config import GPTConfig, InputError
from numpy_ref.gpt import forward, loss_and_grads
from numpy_ref.linear import Array
from numpy_ref.loss import cross_entropy_forward
from numpy_ref.multihead import Params
from numpy_ref.optimizers import State, adamw_step, clip_gradients, lr_at
from numpy_ref.tokenizers import END_OF_TEXT, OwnTokenizer, Tokenizer, TokenizerKind


@dataclass
class Settings:
    """Everything that decides what is learnt, but the text itself, of which the hash is kept."""

    text: str
    text_hash: str
    config: str
    tokenizer: TokenizerKind
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


def documents(text: str) -> list[str]:
    """Documents are separated by lines `<|endoftext|>`, as in TinyStories; most texts are one document."""
    return [part for part in re.split(rf"(?:^|\n){re.escape(END_OF_TEXT)}(?:\n|$)", text) if part]


def encode_documents(tokenizer: Tokenizer, text: str) -> list[int]:
    """Each document after an end-of-text token, so that a model knows how to begin."""
    with warnings.catch_warnings():
        # rare words of the training text itself are meant to be unknown: nothing to warn of
        warnings.simplefilter("ignore")
        return [i for document in documents(text) for i in (tokenizer.end_of_text, *tokenizer.encode(document))]


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
                print(f"saved at step {step:,}: the same command continues", flush=True)
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
