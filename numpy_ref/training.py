"""Training: repeat batch, loss, gradients, clipping and optimizer step a thousand times.

A batch is a pure function of (seed, step): each epoch cuts the text into windows, starting at a random offset, and takes
them in random order; dropout draws from a generator that is seeded with (seed, step). The state of a training is therefore
only the weights, AdamW's moments and the step, and a training that was stopped by Ctrl-C or killed continues with the same
results as if it had not been interrupted.
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
from numpy_ref.linear import Array, Params
from numpy_ref.loss import cross_entropy_forward
from numpy_ref.optimizers import State, adamw_step, clip_gradients, lr_at
from numpy_ref.tokenizers import END_OF_TEXT, OwnTokenizer, Tokenizer, TokenizerKind


@dataclass
class Settings:
    """Hold every setting of a training except the architecture.

    `text` is the path of the text, or "built-in" for the stories of this package, and `text_hash` its sha256. `config` is the
    name of the architecture in `train.CONFIGS`. `vocab_size` is the maximum number of tokens of a word or bpe tokenizer.
    `batch` is the number of windows per optimizer step, `warmup_steps` counts optimizer steps, and `lr` is the peak learning
    rate.
    """

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
    """Hold the state of a training between two optimizer steps.

    `state`: the state of AdamW. `train_ids` and `val_ids`: the tokens of the text for training and for validation. `losses`:
    the training loss of each step so far. `validations`: the step and the loss of each validation so far. All losses are in
    nats per token.
    """

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
        """Return the number of batches in an epoch, at least 1.

        An epoch cuts the training tokens into windows of `context_length` tokens, from a random offset on. With some
        offsets, one window less fits than without an offset. Therefore the smaller number is counted for every epoch. Windows
        left over after the last full batch are not used.
        """
        windows = (len(self.train_ids) - 1) // self.config.context_length - 1
        return max(1, windows // self.settings.batch)

    @property
    def horizon(self) -> int:
        """Return the number of the last step, at which the decay of the learning rate ends."""
        return self.settings.epochs * self.steps_per_epoch

    def batch(self, step: int) -> tuple[Array, Array]:
        """Return the inputs and targets (B, T) of `step`, counted from 1."""
        T, B = self.config.context_length, self.settings.batch
        epoch, index = divmod(step - 1, self.steps_per_epoch)
        rng = np.random.default_rng([self.settings.seed, epoch])
        offset = int(rng.integers(0, min(T, len(self.train_ids) - T)))
        starts = offset + T * rng.permutation((len(self.train_ids) - 1 - offset) // T)
        rows = starts[index * B : (index + 1) * B][:, None] + np.arange(T + 1)  # (B, T + 1)
        windows = self.train_ids[rows]  # (B, T + 1)
        return windows[:, :-1], windows[:, 1:]

    def step(self) -> float:
        """Take one optimizer step and return its loss in nats per token.

        Raises InputError if the loss or the norm of the gradient is not finite; the weights are then unchanged.
        """
        s, step = self.settings, len(self.losses) + 1
        x, y = self.batch(step)
        rng = np.random.default_rng([s.seed, step, 1])
        loss, grads = loss_and_grads(self.params, self.config, x, y, rng)
        norm = clip_gradients(grads, s.grad_clip)
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise InputError(
                f"training diverged at step {step}: loss {loss}, gradient norm {norm}. Try a lower --lr than {s.lr}; "
                "files that were saved before are unchanged"
            )
        lr = lr_at(step, self.horizon, peak=s.lr, warmup_steps=s.warmup_steps, final_ratio=0.1)
        adamw_step(self.params, grads, self.state, lr, weight_decay=s.weight_decay)
        self.losses.append(loss)
        return loss

    def validate(self) -> float:
        """Compute the mean loss, in nats per token, of up to 64 windows of the validation text."""
        T = self.config.context_length
        starts = np.arange(0, len(self.val_ids) - T, T)[:64]
        total = 0.0
        for batch_starts in np.array_split(starts, -(-len(starts) // self.settings.batch)):
            windows = self.val_ids[batch_starts[:, None] + np.arange(T + 1)]  # (B, T + 1)
            logits = forward(self.params, self.config, windows[:, :-1])
            assert isinstance(logits, np.ndarray)
            loss, _ = cross_entropy_forward(logits, windows[:, 1:])
            total += float(loss) * len(batch_starts)
        return total / len(starts)

    def save(self, folder: Path, name: str) -> None:
        """Write the files of the model and its tokenizer, and `name`_training.npz, from which the training can be continued."""
        arrays = {f"params/{key}": value for key, value in self.params.items()}
        arrays |= {f"{part}/{key}": value for part in ("m", "v") for key, value in self.state[part].items()}
        arrays["losses"], arrays["validations"] = np.array(self.losses), np.array(self.validations).reshape(-1, 2)
        tokenizer = self.tokenizer.to_json()
        facts = {"settings": asdict(self.settings), "config": asdict(self.config), "tokenizer": tokenizer}
        arrays["facts"] = np.array(json.dumps(facts))
        write_arrays(folder / f"{name}_training.npz", arrays)  # one file, so that weights and step belong together
        write_json(folder / f"{name}_tokenizer.json", tokenizer)
        save(self.config, self.params, folder / f"{name}_config.json", folder / f"{name}_weights.npz")


def read_text(path: str) -> str:
    """Read a UTF-8 text file. Raises InputError if it cannot be read, is not UTF-8, or contains only white space."""
    try:
        text = Path(path).read_bytes().decode("utf-8")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}; give a text file that can be read") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 at byte {error.start}: convert it to UTF-8 first") from error
    if not text.strip():
        raise InputError(f"{path} is empty or contains only white space: give a file that contains text")
    return text


def split(ids: list[int], context_length: int, source: str) -> tuple[Array, Array]:
    """Split `ids` into training and validation tokens; `source` names the text in the error message.

    The last tenth of the tokens, but at least one window of `context_length` + 1 tokens, is for validation. Raises InputError
    if there are too few tokens for one window of each.
    """
    held = max(context_length + 1, len(ids) // 10)
    if len(ids) < held + context_length + 2:
        raise InputError(
            f"{source} has {len(ids)} tokens; a context of {context_length} needs at least {2 * context_length + 3}: "
            "give more text, or a smaller --context"
        )
    return np.array(ids[:-held]), np.array(ids[-held:])


def documents(text: str) -> list[str]:
    """Split a text into documents at the lines `<|endoftext|>`, as in TinyStories; a text without them is one document."""
    return [part for part in re.split(rf"(?:^|\n){re.escape(END_OF_TEXT)}(?:\n|$)", text) if part]


def encode_documents(tokenizer: Tokenizer, text: str) -> list[int]:
    """Encode each document of a text, with an end-of-text token before it, so that the model learns how documents begin."""
    with warnings.catch_warnings():
        # the rare words of the training text are unknown by design
        warnings.simplefilter("ignore")
        return [i for document in documents(text) for i in (tokenizer.end_of_text, *tokenizer.encode(document))]


def run(training: Training, folder: Path, name: str, save_every_s: float = 30.0) -> None:
    """Train up to the last step; save the training under `folder`/`name` every `save_every_s` seconds and at the end.

    The validation loss is computed after each epoch. After Ctrl-C or SIGTERM, the current step is completed, the training is
    saved, and KeyboardInterrupt is raised.
    """
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
                print(f"saved at step {step:,}: run the same command again to continue", flush=True)
                raise KeyboardInterrupt
    training.save(folder, name)


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Yield a list to which the first SIGINT or SIGTERM is appended; a second signal raises KeyboardInterrupt."""
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
