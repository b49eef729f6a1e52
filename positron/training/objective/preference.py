"""Define preference tuning: train on pairs of answers, so that the chosen one becomes more probable than the rejected one.

Shapes: N pairs, B = 2 N rows, T tokens, C channels, V vocabulary.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
import torch.distributed
from torch import Tensor
from torch.nn import functional as F

from positron.config import IGNORE, PreferenceConfig
from positron.data.conversations import Conversation
from positron.data.instruct import Row, answer_bytes, to_part, to_rows
from positron.data.preferences import Pair
from positron.data.splits import first_up_to, usable_splits
from positron.data.window_order import order_of_epoch, windows_of_step
from positron.model.gpt import GPT
from positron.model.kernels.loss import linear_token_losses
from positron.model.kernels.precision import widest
from positron.system.formatting import counted
from positron.system.progress import progress
from positron.text import conversation
from positron.text.conversation import Message
from positron.text.tokenizer import END_OF_TEXT, Tokenizer
from positron.training.objective.base import Part, Prompt
from positron.training.objective.preference_losses import is_mean, losses, margins
from positron.training.objective.reference import Reference
from positron.training.objective.tokens import NextToken
from positron.training.objective.validation_text import ANSWERS, ValidationText

logger = logging.getLogger(__name__)

KL_TOKENS = 4096  # maximum number of tokens of chosen answers on which the divergence from the reference is measured
KL_VALUES = 1 << 22  # number of logits that are computed at a time, 16 MB in fp32
SORTED_MICRO_BATCHES = 16  # number of micro-batches of the reference whose pairs are sorted by length together

PairOfRows = tuple[Row, Row]  # (prompt and chosen answer, prompt and rejected answer)
Example = tuple[Pair, PairOfRows]


def usable_pairs(pairs: list[Pair], tokenizer: Tokenizer, context: int) -> tuple[list[Example], list[Example]]:
    """Return the pairs for training and those for validation, each with its two rows of at most `context` tokens.

    A pair is left out if one of its answers does not fit the context; a long prompt only loses its beginning. Raises UserError
    if no pair is left.
    """
    return usable_splits(
        pairs,
        lambda pair: _rows_of(pair, tokenizer, context),
        "pair",
        unusable=f"have an answer that is longer than the context of {context} tokens",
        remedy="give init_from= a run that was trained with a larger model.context_length=, or data with shorter answers",
        instead="the accuracy shows how well they are memorised, and not how well new pairs are ordered",
    )


class PreferenceObjective(NextToken):
    """Train on pairs of answers, in a new random order in each epoch.

    A micro-batch is a tuple (x, y, reference). In the input ids x (B, T) and the target ids y (B, T), row 2i contains the
    prompt and the chosen answer of pair i, and row 2i + 1 contains the same prompt and the rejected answer. Only the tokens of
    an answer and the token that ends it are targets. The tensor `reference` (B,) holds the log-probabilities of the answers
    under the reference model.

    A validation computes the metrics of the validation pairs (see `measures`). It also computes a loss on their chosen answers
    or, after a call of `validate_on_text`, on a text.

    The attribute `reference` must be set before `batch` or `measures` is called.
    """

    kind = "preference"
    keeps_best = False
    patience = 0
    bytes_per_token = None
    document_start = None
    reference: Reference

    def __init__(
        self,
        pairs: list[Pair],
        tokenizer: Tokenizer,
        settings: PreferenceConfig,
        *,
        context: int,
        batch_size: int,
        micro_batch_size: int,
        seed: int,
        val_tokens: int,
        usable: tuple[list[Example], list[Example]] | None = None,
    ) -> None:
        """Convert each pair to two rows of token ids: prompt and chosen answer, and prompt and rejected answer.

        `usable`: the result of `usable_pairs`, if it is known; otherwise it is computed here. `batch_size` and
        `micro_batch_size` count rows, two for each pair. Validation pairs are taken in their order until they have `val_tokens`
        tokens together, and the others are not used. `seed` decides the order of the training pairs. Raises UserError if all
        pairs are left out.
        """
        train, val = usable or usable_pairs(pairs, tokenizer, context)
        self.tokenizer, self.settings, self.context, self.seed = tokenizer, settings, context, seed
        self.pad = tokenizer.special_id(END_OF_TEXT)
        self.batch_pairs, self.micro_pairs = batch_size // 2, max(1, micro_batch_size // 2)
        self.fingerprint = fingerprint_of(pairs)
        self.train = [both for _, both in train]
        validated = first_up_to(val, lambda each: sum(len(x) for x, _ in each[1]), val_tokens)
        # sorted so that rows of similar length share a micro-batch
        self.val = sorted((both for _, both in validated), key=_length, reverse=True)
        self.example = validated[0][0]
        self.chosen_bytes = answer_bytes(
            [(_conversation(pair, pair.chosen), row) for pair, (row, _) in validated], tokenizer
        )
        lengths = [int((y != IGNORE).sum()) for (_, y), _ in self.val]
        # rows kl_bounds[i] .. kl_bounds[i + 1] - 1 of the reference's states belong to pair i
        self.kl_bounds = np.minimum(np.cumsum([0, *lengths]), KL_TOKENS)
        self.val_pairs = [
            self._part(self.val[start : start + self.micro_pairs])
            for start in range(0, len(self.val), self.micro_pairs)
        ]
        self.validate_on_answers()
        logger.info(f"{counted(len(self.train), 'pair')} to learn from, {len(self.val):,} for validation")

    def validate_on_text(self, text: ValidationText) -> None:
        """Let all validations compute their loss on `text`, instead of the chosen answers."""
        self.val_parts = text.parts(2 * self.micro_pairs)
        self.val_bits, self.val_bytes, self.token_bytes = text.bits, text.n_bytes, text.token_bytes
        self.validated_on, self.document_start = text.fingerprint, text.document_start

    def validate_on_answers(self) -> None:
        """Let all validations compute their loss on the chosen answers of the validation pairs.

        This is the default. `validate_on_text` chooses another text.
        """
        self.val_parts = [(x[0::2], y[0::2]) for x, y in self.val_pairs]
        self.val_bits, (self.val_bytes, self.token_bytes) = None, self.chosen_bytes
        self.validated_on, self.document_start = ANSWERS, None

    @property
    def dependencies(self) -> dict[str, str]:
        """Return under the key "validated_on" the hash of the text of the validation, or "answers"."""
        return {"validated_on": self.validated_on}

    def _part(self, pairs: list[PairOfRows]) -> Part:
        return to_part([row for pair in pairs for row in pair], self.context, self.pad)

    def batch(self, step: int, rank: int, world_size: int) -> list[Part]:
        """Return the micro-batches of one rank for optimizer step `step`, counted from 1."""
        _, chosen = windows_of_step(step, seed=self.seed, n_windows=len(self.train), batch_size=self.batch_pairs)
        own_pairs = sorted(chosen[rank::world_size], key=lambda i: _length(self.train[i]), reverse=True)
        parts = []
        for start in range(0, len(own_pairs), self.micro_pairs):
            indices = own_pairs[start : start + self.micro_pairs]
            part = self._part([self.train[i] for i in indices])
            parts.append((*part, torch.from_numpy(self.reference.train[indices].reshape(-1))))
        return parts

    def count(self, part: Part) -> Tensor:
        """Return the number of pairs of a micro-batch."""
        return torch.tensor(len(part[0]) // 2, device=part[0].device)

    def loss(self, model: GPT, part: Part) -> Tensor:
        """Return the sum of the losses of a micro-batch's pairs, in nats (IPO: in nats squared)."""
        x, y, reference = part
        log_probs = answer_log_probs(model, x, y)
        return self._losses(log_probs, reference.to(log_probs.dtype), y)[0].sum()

    def _losses(self, log_probs: Tensor, reference: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the losses and margins of N pairs of answers, (N,) each.

        A margin states by how much the model prefers the chosen answer to the rejected one (see `margins`). `log_probs` and
        `reference` (2 N,): the log-probabilities of whole answers under the model and under the reference model. The chosen and
        the rejected answer of a pair follow each other. `y` (2 N, T): the targets of the answers.
        """
        if is_mean(self.settings):
            counts = (y != IGNORE).sum(1)
            log_probs, reference = log_probs / counts, reference / counts
        margin = margins(self.settings, log_probs[0::2], log_probs[1::2], reference[0::2], reference[1::2])
        return losses(self.settings, margin, log_probs[0::2]), margin

    @torch.no_grad()
    def measures(self, model: GPT, rank: int, world_size: int) -> dict[str, float]:
        """Return the means of the metrics over the validation pairs; `preference/kl` is a mean over tokens.

        `preference/chosen_logp` and `preference/rejected_logp` are log-probabilities of whole answers, summed over tokens.
        `preference/kl` is the KL divergence from the reference model. All three are in nats.
        """
        device = model.wte.weight.device
        wide = widest(device)
        sums = torch.zeros(9, dtype=wide, device=device)
        for i in range(rank, len(self.val_pairs), world_size):
            x, y = (tensor.to(device) for tensor in self.val_pairs[i])
            hidden = model.hidden(x)
            log_probs = _row_log_probs(hidden, model.head_weight, y)
            first = i * self.micro_pairs
            pair_slice = slice(first, first + self.micro_pairs)
            reference = torch.from_numpy(self.reference.val[pair_slice].reshape(-1)).to(log_probs)
            loss, margin = self._losses(log_probs, reference, y)
            tokens = (y != IGNORE).sum(1)
            kl, kl_tokens = self._divergence(first, hidden, model.head_weight, y)
            each = (loss, margin > 0, margin, log_probs[0::2], log_probs[1::2], tokens[0::2], tokens[1::2])
            sums += torch.stack([*(values.to(wide).sum() for values in each), kl.to(wide), kl_tokens.to(wide)])
        if world_size > 1:
            torch.distributed.all_reduce(sums)
        names = ("loss", "accuracy", "margin", "chosen_logp", "rejected_logp", "chosen_tokens", "rejected_tokens")
        means = sums[:7] / len(self.val)
        return {
            **{f"preference/{name}": value for name, value in zip(names, means.tolist(), strict=True)},
            "preference/kl": (sums[7] / sums[8]).item(),
        }

    def _divergence(self, first: int, hidden: Tensor, head: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the KL divergence from the reference model, in nats, summed over n tokens of the chosen answers, and n.

        The divergence at a token is the exact sum of p (log p - log q) over the vocabulary, where p is the distribution of the
        model and q is the distribution of the reference model. Only the first 4,096 tokens (KL_TOKENS) of the chosen answers of
        all validation pairs count; n is the number of those that are in this micro-batch.

        `first`: index of the first validation pair of the micro-batch. `hidden` (B, T, C): the last hidden states. `head`
        (V, C): the output matrix. `y` (B, T): the targets.
        """
        before, after = self.kl_bounds[first], self.kl_bounds[min(first + self.micro_pairs, len(self.val))]
        total = torch.zeros((), dtype=hidden.dtype, device=hidden.device)
        ours = _chosen_states(hidden, y)[: after - before]
        theirs, their_head = self.reference.on(hidden.device)
        theirs = theirs[before:after]
        size = max(1, KL_VALUES // len(head))
        for start in range(0, len(ours), size):
            p = F.log_softmax(ours[start : start + size] @ head.t(), dim=-1)
            q = F.log_softmax(theirs[start : start + size] @ their_head.t(), dim=-1)
            total += F.kl_div(q, p, reduction="sum", log_target=True)
        return total, torch.tensor(len(ours), device=hidden.device)

    def missing(self, reference: Reference | None, n_steps: int) -> list[tuple[str, np.ndarray]]:
        """Return the micro-batches that `reference` lacks for the validation and for the first `n_steps` optimizer steps.

        A micro-batch is a tuple: "train" or "val", and the indices of its pairs. `reference` lacks it if the log-probability of
        one of its answers is NaN. If `reference` is None, all micro-batches are returned.

        The training pairs are taken in the order of the first epoch and divided into groups. A group has the size of 16
        micro-batches (SORTED_MICRO_BATCHES). Within a group, the pairs are sorted by length and divided into micro-batches. If
        a step reads one pair of a group, the reference needs the whole group. Therefore a larger `n_steps` adds groups, and
        does not change the micro-batches of the first groups.
        """
        n_read, size = min(len(self.train), n_steps * self.batch_pairs), SORTED_MICRO_BATCHES * self.micro_pairs
        order = order_of_epoch(0, np.arange(len(self.train)), self.seed, len(self.train))
        blocks = [sorted(order[at : at + size], key=lambda i: -_length(self.train[i])) for at in range(0, n_read, size)]
        needed = [("train", indices) for block in blocks for indices in self._micro_batches(block)]
        needed += [("val", indices) for indices in self._micro_batches(range(len(self.val)))]
        if reference is None:
            return needed
        return [(name, indices) for name, indices in needed if np.isnan(getattr(reference, name)[indices]).any()]

    def _micro_batches(self, pairs: Sequence[int]) -> list[np.ndarray]:
        return [np.array(pairs[at : at + self.micro_pairs]) for at in range(0, len(pairs), self.micro_pairs)]

    @torch.no_grad()
    def describe(
        self,
        model: GPT,
        precision: Callable[[], AbstractContextManager[object]],
        n_steps: int,
        reference: Reference | None = None,
        keep: Callable[[Reference], None] = lambda reference: None,
    ) -> Reference:
        """Return the log-probabilities, under `model`, of the answers that the validation and `n_steps` optimizer steps read.

        `model`: the reference model, which must be in evaluation mode. `reference`: the result of an earlier call, which
        is extended in place and returned; only missing values are computed. `precision` returns an autocast context
        with the precision of the training. Training pairs are scored in this context, and validation pairs outside of
        it, as in `measures`. `keep` is called after each micro-batch with the results so far.
        """
        if reference is None:
            reference = Reference.empty(len(self.train), len(self.val), int(self.kl_bounds[-1]), model.head_weight)
        device = model.wte.weight.device
        for name, indices in progress(self.missing(reference, n_steps), "reference"):
            pairs = self.train if name == "train" else self.val
            x, y = (tensor.to(device) for tensor in self._part([pairs[i] for i in indices]))
            with precision() if name == "train" else nullcontext():
                hidden = model.hidden(x)
                log_probs = _row_log_probs(hidden, model.head_weight, y)
            getattr(reference, name)[indices] = log_probs.float().cpu().numpy().reshape(-1, 2)
            if name == "val":
                before, after = self.kl_bounds[indices[0]], self.kl_bounds[indices[-1] + 1]
                reference.states[before:after] = _chosen_states(hidden, y)[: after - before].float().cpu().numpy()
            keep(reference)
        return reference

    def probe_rows(self) -> list[Part]:
        """Return for each validation pair a row (x, y), each (T,), with the prompt and the chosen answer."""
        return [(x[i], y[i]) for x, y in self.val_pairs for i in range(0, len(x), 2)]

    def target_counts(self, vocab_size: int) -> np.ndarray:
        """Return how often each token id occurs in the chosen answers of the training pairs, as an array (vocab_size,)."""
        return np.bincount(np.concatenate([y[y != IGNORE] for (_, y), _ in self.train]), minlength=vocab_size)

    def sample_prompt(self, asked: str | None) -> Prompt:
        """Return the prompt for samples: `asked` as a user's message or, if it is empty, the first validation prompt."""
        turns = [Message("user", asked)] if asked else list(self.example.prompt)
        ids = conversation.prompt_ids(turns, self.tokenizer)
        shown = turns[-1].content if turns else ""
        return Prompt(f"{shown}\n\n", ids, conversation.stop_ids(self.tokenizer))


def answer_log_probs(model: GPT, x: Tensor, y: Tensor) -> Tensor:
    """Return for each row the sum of the log-probabilities of its targets, in nats: x and y (B, T) -> (B,)."""
    return _row_log_probs(model.hidden(x), model.head_weight, y)


def _row_log_probs(hidden: Tensor, head: Tensor, y: Tensor) -> Tensor:
    """Return for each row the sum of the log-probabilities of its targets, (B,), in nats.

    `hidden` (B, T, C): the last hidden states. `head` (V, C): the output matrix. `y` (B, T): the targets.
    """
    scored = y != IGNORE
    if y.device.type == "cpu":  # on other devices, selecting by `scored` would wait for the device to count the targets
        tokens = hidden.new_zeros(y.shape, dtype=torch.promote_types(hidden.dtype, torch.float32))
        tokens = tokens.masked_scatter(scored, -linear_token_losses(hidden[scored], head, y[scored]).to(tokens.dtype))
    else:
        tokens = -linear_token_losses(hidden.flatten(0, 1), head, y.flatten()).view(y.shape)
    return tokens.sum(1)


def _chosen_states(hidden: Tensor, y: Tensor) -> Tensor:
    """Select from all hidden states (B, T, C) those (n, C) that predict the tokens of the chosen answers.

    `y` (B, T): the targets, -100 where no token is predicted. The rows 0, 2, 4, ... of `hidden` and `y` belong to chosen
    answers, and the other rows to rejected answers.
    """
    return hidden[0::2][y[0::2] != IGNORE]


def _rows_of(pair: Pair, tokenizer: Tokenizer, context: int) -> PairOfRows | None:
    """Return two rows of a pair: the prompt with the chosen answer, and the prompt with the rejected answer.

    A row has input ids (n,) and target ids (n,). Returns None if one of the two rows does not fit the context.
    """
    conversations = [_conversation(pair, answer) for answer in (pair.chosen, pair.rejected)]
    chosen, rejected = to_rows(conversations, tokenizer, context)
    return None if chosen is None or rejected is None else (chosen, rejected)


def _conversation(pair: Pair, answer: tuple[Message, ...]) -> Conversation:
    return Conversation((*pair.prompt, *answer), pair.is_val)


def _length(pair: PairOfRows) -> int:
    return max(len(x) for x, _ in pair)


def fingerprint_of(pairs: list[Pair]) -> str:
    """Return a hash of the pairs and of their division into training and validation."""
    text = repr([(pair.is_val, *map(_facts_of, (pair.prompt, pair.chosen, pair.rejected))) for pair in pairs])
    return hashlib.sha256(text.encode()).hexdigest()


def _facts_of(messages: tuple[Message, ...]) -> list[tuple[str, str, bool]]:
    return [(message.role, message.content, message.learn) for message in messages]
