"""Define supervised fine-tuning, in which the answers of conversations are the targets."""

from __future__ import annotations

import hashlib
import logging
from itertools import takewhile

import numpy as np

from positron.config import IGNORE
from positron.data.conversations import Conversation
from positron.data.instruct import Instructions, Row, answer_bytes, to_parts, to_row
from positron.data.splits import first_up_to, usable_splits
from positron.data.windows import Windows
from positron.system.formatting import counted
from positron.text import conversation
from positron.text.conversation import Message
from positron.text.tokenizer import END_OF_TEXT, Tokenizer, contains_unknown
from positron.training.objective.base import Part, Prompt
from positron.training.objective.tokens import NextToken

logger = logging.getLogger(__name__)

Example = tuple[Conversation, Row]


def usable_conversations(
    conversations: list[Conversation], tokenizer: Tokenizer, context: int
) -> tuple[list[Example], list[Example]]:
    """Return the conversations for training and those for validation, each with its row of at most `context` tokens.

    A conversation without an answer that fits the context is left out. Raises UserError if no conversation is left.
    """
    return usable_splits(
        conversations,
        lambda example: to_row(example, tokenizer, context),
        "conversation",
        unusable=f"have no answer to learn from, or only answers that are longer than the context of {context} tokens",
        remedy="give init_from= a run that was trained with a larger model.context_length=, or data with shorter answers",
        instead="the validation loss shows how well they are memorised, and not how well new questions are answered",
    )


class SFTObjective(NextToken):
    """Train on the answers of conversations, in a new random order each epoch, and optionally on pretraining text."""

    kind = "sft"

    def __init__(
        self,
        conversations: list[Conversation],
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
        usable: tuple[list[Example], list[Example]] | None = None,
    ) -> None:
        """Convert all conversations to rows of at most `context` tokens.

        `usable`: the result of `usable_conversations`, if it is known; otherwise it is computed here.

        `replay`: windows of the pretraining text, or None. `batch_size`: the number of conversations and windows together in
        the batch of an optimizer step; `replay.batch_size` of them are windows. All tokens of a window are targets.
        `micro_batch_size`: the largest number of rows in a micro-batch. `packing`: a row may hold several conversations.

        `patience`: the run ends after this number of successive validations without an improvement; 0: no early stopping.
        `val_tokens`: validate on whole conversations that together have at least this number of tokens, or on all if there are
        fewer.

        Raises UserError if no conversation has an answer that fits the context.
        """
        train, val = usable or usable_conversations(conversations, tokenizer, context)
        self.tokenizer, self.patience = tokenizer, patience
        # a row that is not packed is one document, so the mask changes only the windows of the pretraining text
        is_masked = packing or (replay is not None and replay.document_start is not None)
        self.document_start = tokenizer.special_id(END_OF_TEXT) if is_masked else None
        self.fingerprint = fingerprint_of(conversations)
        self.train = Instructions(
            [row for _, row in train],
            tokenizer,
            context=context,
            batch_size=batch_size,
            micro_batch_size=micro_batch_size,
            seed=seed,
            packing=packing,
            replay=replay,
        )
        self.bytes_per_token = answer_bytes(train, tokenizer)[0] / sum(int((y != IGNORE).sum()) for _, (_, y) in train)
        validated = first_up_to(val, lambda pair: len(pair[1][0]), val_tokens)
        self.val_bytes, self.token_bytes = answer_bytes(validated, tokenizer)
        bits = [example.bits for example, _ in validated if example.bits is not None]
        answers = np.concatenate([y[y != IGNORE] for _, (_, y) in validated])
        is_known = len(bits) == len(validated) and not contains_unknown(tokenizer, answers)
        self.val_bits = sum(bits) if is_known else None
        self.example = validated[0][0]
        self.val_parts = to_parts([row for _, row in validated], context, micro_batch_size, self.train.pad)
        logger.info(f"{counted(len(train), 'conversation')} to learn from, {len(val):,} for validation")

    def batch(self, step: int, rank: int, world_size: int) -> list[Part]:
        """Return the micro-batches of one rank for optimizer step `step`, counted from 1."""
        return self.train.batch(step, rank, world_size)

    def target_counts(self, vocab_size: int) -> np.ndarray:
        """Return how often each token id occurs in the answers of the training conversations, as an array (vocab_size,)."""
        return np.bincount(np.concatenate([y[y != IGNORE] for _, y in self.train.rows]), minlength=vocab_size)

    def sample_prompt(self, asked: str | None) -> Prompt:
        """Return the prompt for samples: `asked` as a user's message.

        If `asked` is empty, the prompt consists of the messages before the first answer of the first validation conversation.
        """
        messages = self.example.messages
        if asked:
            turns = [Message("user", asked)]
        else:
            turns = list(takewhile(lambda message: message.role != "assistant", messages)) or list(messages[:1])
        ids = conversation.prompt_ids(turns, self.tokenizer)
        return Prompt(f"{turns[-1].content}\n\n", ids, conversation.stop_ids(self.tokenizer))


def fingerprint_of(conversations: list[Conversation]) -> str:
    """Return a hash of the conversations and of their division into training and validation."""
    text = repr([(example.is_val, *_facts_of(m)) for example in conversations for m in example.messages])
    return hashlib.sha256(text.encode()).hexdigest()


def _facts_of(message: Message) -> tuple[object, ...]:
    return (message.role, message.content) if message.learn else (message.role, message.content, "not learned from")
