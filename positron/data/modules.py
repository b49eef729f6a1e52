"""What Lightning iterates over: one item is a whole optimizer step."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import lightning as L
import torch
from torch import Tensor

from positron.config import IGNORE, DataConfig
from positron.data.conversations import Conversation
from positron.data.instruct import Answers, Instructions, Part, Row, to_parts, to_row
from positron.data.shards import TokenFiles
from positron.data.stream_windows import StreamWindows
from positron.data.windows import Windows, validation_windows
from positron.system.errors import UserError
from positron.system.formatting import counted
from positron.text.conversation import Message
from positron.text.tokenizer import END_OF_TEXT, Tokenizer


class PretrainData(L.LightningDataModule):
    """What Lightning iterates over: one item is a whole optimizer step's batch (this rank's rows of it)."""

    def __init__(
        self,
        config: DataConfig,
        folder: Path,
        tokenizer: Tokenizer,
        *,
        context: int,
        batch_size: int,
        micro_batch_size: int,
        seed: int,
        val_tokens: int,
        say: Callable[[str], None],
    ) -> None:
        """`folder` is what `prepare` returned for `config`."""
        super().__init__()
        end_id = tokenizer.special_id(END_OF_TEXT)
        self.train: Windows | StreamWindows
        if config.tokens_per_epoch is not None:
            self.train = StreamWindows(config, folder, context=context, batch_size=batch_size, seed=seed, say=say)
            self.val = TokenFiles(folder / "validation", "val", tokenizer)
        else:
            self.train = Windows(
                TokenFiles(folder, "train", tokenizer),
                context=context,
                batch_size=batch_size,
                seed=seed,
                end_id=end_id if config.packing == "documents" else None,
            )
            self.val = TokenFiles(folder, "val", tokenizer)
        if self.val.n_tokens < 2:
            n = getattr(self.train, "tokens", self.val).n_documents
            raise UserError(
                f"no text is left for validation: none of the {n:,} documents was drawn for it at data.val_fraction="
                f"{config.val_fraction:g}; give more text, a larger data.val_fraction or another data.seed"
            )
        self.token_bytes = self.val.token_bytes(tokenizer)  # what bits per byte of the validation text are counted by
        self.val_x, self.val_y = validation_windows(self.val, context=context, end_id=end_id, limit=val_tokens)
        self.micro_batch_size = micro_batch_size

    def train_dataloader(self) -> _Steps:
        trainer = self.trainer
        assert trainer is not None
        to_cuda = trainer.strategy.root_device.type == "cuda"
        return _Steps(self.train, lambda: trainer.global_step, trainer.global_rank, trainer.world_size, to_cuda)

    def val_dataloader(self) -> list[tuple[Tensor, Tensor]]:
        """Batches of constant shape; rows beyond the text carry no loss. Ranks take every world_size-th batch."""
        assert self.trainer is not None
        size, rank, world = self.micro_batch_size, self.trainer.global_rank, self.trainer.world_size
        rows = -(-len(self.val_x) // (size * world)) * size * world
        x = torch.zeros(rows, self.val_x.shape[1], dtype=torch.int64)
        y = torch.full_like(x, -100)
        x[: len(self.val_x)], y[: len(self.val_y)] = self.val_x, self.val_y
        batches = list(zip(x.split(size), y.split(size), strict=True))
        return batches[rank::world]


class _Steps:
    """An endless iterator whose place is the trainer's own step counter: nothing to save, nothing to skip."""

    def __init__(
        self,
        windows: Windows | StreamWindows,
        steps_done: Callable[[], int],
        rank: int,
        world_size: int,
        to_cuda: bool,
    ) -> None:
        self.windows, self.steps_done, self.rank, self.world_size = windows, steps_done, rank, world_size
        self.to_cuda = to_cuda

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        step = self.steps_done()
        while True:
            step += 1
            rows = self.windows.batch(step, self.rank, self.world_size)
            if self.to_cuda:
                rows = rows.pin_memory()  # then Lightning's copy to the GPU does not wait
            yield rows[:, :-1], rows[:, 1:]


class InstructData(L.LightningDataModule):
    """What Lightning iterates over: one item is the list of micro-batches of a whole optimizer step."""

    def __init__(
        self,
        talks: list[Conversation],
        tokenizer: Tokenizer, *, context: int, batch_size: int,
        micro_batch_size: int, seed: int, packing: bool, val_tokens: int, replay: Windows | None, say: Callable[[str], None],
    ) -> None:  # fmt: skip
        super().__init__()
        sides = []
        for is_val in (False, True):
            pairs = [(talk, to_row(talk, tokenizer, context)) for talk in talks if talk.is_val == is_val]
            sides.append([(talk, row) for talk, row in pairs if row is not None])
        kept = len(sides[0]) + len(sides[1])
        _warn_of_losses(len(talks), kept, context, say)
        if not sides[0] or not sides[1]:
            sides = [sides[0] or sides[1]] * 2
            say(
                "no conversation is left for validation alone (data.val_fraction=0, or too few different questions): "
                f"validation uses the training conversations ({kept:,}), so its loss says how well they are known, "
                "not how well new questions are answered"
            )
        text = repr([(t.is_val, *_facts_of(m)) for t in talks for m in t.messages])
        self.train = Instructions(
            [row for _, row in sides[0]], tokenizer, context=context, batch_size=batch_size,
            micro_batch_size=micro_batch_size, seed=seed, packing=packing, replay=replay,
            fingerprint=hashlib.sha256(text.encode()).hexdigest(),
        )  # fmt: skip
        shown: list[tuple[Conversation, Row]] = []
        for pair in sides[1]:  # at most about `val_tokens`
            if sum(len(row[0]) for _, row in shown) >= val_tokens:
                break
            shown.append(pair)
        lengths = tokenizer.token_bytes()
        bits = [talk.bits for talk, _ in shown if talk.bits is not None]
        self.val = Answers(
            n_bytes=int(sum(lengths[row[1][row[1] != IGNORE]].sum() for _, row in shown)),
            bits=sum(bits) if len(bits) == len(shown) else None,
        )
        self.example = shown[0][0]
        self.val_parts = to_parts([row for _, row in shown], context, micro_batch_size, self.train.pad)
        say(f"{counted(len(sides[0]), 'conversation')} to learn from, {len(sides[1]):,} for validation")

    def train_dataloader(self) -> Iterator[list[Part]]:
        trainer = self.trainer
        assert trainer is not None
        step = trainer.global_step

        def steps() -> Iterator[list[Part]]:
            nonlocal step
            while True:
                step += 1
                yield self.train.batch(step, trainer.global_rank, trainer.world_size)

        return steps()

    def val_dataloader(self) -> list[Part]:
        """Ranks take every world_size-th batch; empty ones (no loss) make their numbers equal."""
        assert self.trainer is not None
        rank, world = self.trainer.global_rank, self.trainer.world_size
        x, y = self.val_parts[-1]
        missing = -len(self.val_parts) % world
        return [*self.val_parts, *[(x, torch.full_like(y, IGNORE))] * missing][rank::world]


def _facts_of(message: Message) -> tuple[object, ...]:
    return (message.role, message.content) if message.learn else (message.role, message.content, "not learned from")


def _warn_of_losses(total: int, kept: int, context: int, say: Callable[[str], None]) -> None:
    lost = total - kept
    why = f"have nothing to learn from: no answer, or one that is longer than the context of {context} tokens"
    if not kept:
        raise UserError(f"all {total} conversations {why}")
    if lost:
        say(f"{'WARNING: ' if lost > 0.05 * total else ''}{lost} of {total} conversations {why}")
