"""Supervised fine-tuning: the answers of conversations are the targets."""

from __future__ import annotations

import hashlib
import logging
from itertools import takewhile

import numpy as np
import torch

from positron.config import IGNORE
from positron.data.conversations import Conversation
from positron.data.instruct import Instructions, Row, to_parts, to_row
from positron.data.windows import Windows
from positron.system.errors import UserError
from positron.system.formatting import counted
from positron.text import conversation
from positron.text.conversation import Message
from positron.text.tokenizer import END_OF_TEXT, Tokenizer
from positron.training.objective.base import Part, Prompt
from positron.training.objective.tokens import NextToken

logger = logging.getLogger(__name__)


class SFTObjective(NextToken):
    """Conversations, in an order of their own each epoch, and windows of the base run's text for their share."""

    kind = "sft"

    def __init__(
        self,
        talks: list[Conversation],
        tokenizer: Tokenizer,
        *,
        context: int,
        batch_size: int,
        micro_batch_size: int,
        seed: int,
        packing: bool,
        val_tokens: int,
        replay: Windows | None,
        patience: int = 0,
    ) -> None:
        """`replay`, with the batch size of its share, gives pretraining windows, whose every token is scored.

        Raises UserError if no conversation has anything to learn from.
        """
        sides = []
        for is_val in (False, True):
            pairs = [(talk, to_row(talk, tokenizer, context)) for talk in talks if talk.is_val == is_val]
            sides.append([(talk, row) for talk, row in pairs if row is not None])
        kept = len(sides[0]) + len(sides[1])
        _warn_of_losses(len(talks), kept, context)
        if not sides[0] or not sides[1]:
            sides = [sides[0] or sides[1]] * 2
            logger.info(
                "no conversation is left for validation alone (data.val_fraction=0, or too few different questions): "
                f"validation uses the training conversations ({kept:,}), so its loss says how well they are known, "
                "not how well new questions are answered"
            )
        self.tokenizer, self.patience = tokenizer, patience
        self.document_start = tokenizer.special_id(END_OF_TEXT) if packing else None
        text = repr([(t.is_val, *_facts_of(m)) for t in talks for m in t.messages])
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()
        self.train = Instructions(
            [row for _, row in sides[0]],
            tokenizer,
            context=context,
            batch_size=batch_size,
            micro_batch_size=micro_batch_size,
            seed=seed,
            packing=packing,
            replay=replay,
        )
        self.bytes_per_token = self.train.bytes_per_token
        self.token_bytes = tokenizer.token_bytes()
        shown: list[tuple[Conversation, Row]] = []
        for pair in sides[1]:  # at most about `val_tokens`
            if sum(len(row[0]) for _, row in shown) >= val_tokens:
                break
            shown.append(pair)
        self.val_bytes = int(sum(self.token_bytes[row[1][row[1] != IGNORE]].sum() for _, row in shown))
        bits = [talk.bits for talk, _ in shown if talk.bits is not None]
        self.val_bits = sum(bits) if len(bits) == len(shown) else None
        self.example = shown[0][0]
        self.val_parts = to_parts([row for _, row in shown], context, micro_batch_size, self.train.pad)
        logger.info(f"{counted(len(sides[0]), 'conversation')} to learn from, {len(sides[1]):,} for validation")

    def batch(self, step: int, rank: int, world_size: int) -> list[Part]:
        return self.train.batch(step, rank, world_size)

    def validation(self, rank: int, world_size: int) -> list[Part]:
        """Ranks take every world_size-th micro-batch; empty ones (no loss) make their numbers equal."""
        x, y = self.val_parts[-1]
        missing = -len(self.val_parts) % world_size
        return [*self.val_parts, *[(x, torch.full_like(y, IGNORE))] * missing][rank::world_size]

    def probe_rows(self) -> list[Part]:
        return [row for part in self.val_parts for row in zip(*part, strict=True)]

    def target_counts(self, vocab_size: int) -> np.ndarray:
        return np.bincount(np.concatenate([y[y != IGNORE] for _, y in self.train.rows]), minlength=vocab_size)

    def sample_prompt(self, asked: str | None) -> Prompt:
        """`asked` as a user's message, or all of a validation conversation up to its first answer."""
        messages = self.example.messages
        if asked:
            turns = [Message("user", asked)]
        else:
            turns = list(takewhile(lambda message: message.role != "assistant", messages)) or list(messages[:1])
        ids = conversation.prompt_ids(turns, self.tokenizer)
        return Prompt(f"{turns[-1].content}\n\n", ids, conversation.stop_ids(self.tokenizer))

    def close(self) -> None:
        """Nothing works beside the training."""


def _facts_of(message: Message) -> tuple[object, ...]:
    return (message.role, message.content) if message.learn else (message.role, message.content, "not learned from")


def _warn_of_losses(total: int, kept: int, context: int) -> None:
    lost = total - kept
    why = f"have nothing to learn from: no answer, or one that is longer than the context of {context} tokens"
    if not kept:
        raise UserError(f"all {total} conversations {why}")
    if lost:
        logger.log(logging.WARNING if lost > 0.05 * total else logging.INFO, f"{lost} of {total} conversations {why}")
