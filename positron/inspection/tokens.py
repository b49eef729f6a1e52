"""Describe tokens and distributions as the dicts of `lookdata.py`."""

from __future__ import annotations

import math
from functools import cached_property

from torch import Tensor

from positron.inspection.lookdata import Candidate
from positron.system.errors import UserError
from positron.text.conversation import Message, prompt_ids, stop_ids
from positron.text.tokenizer import END_OF_TEXT, SPECIALS, Tokenizer


class Vocabulary:
    """Convert between token ids and the text that the inspector, the page *Look inside*, shows.

    The attribute `chats` says whether prompts are messages to a chat model.
    """

    def __init__(self, tokenizer: Tokenizer, chats: bool = False) -> None:
        self.tokenizer, self.chats = tokenizer, chats

    @cached_property
    def specials(self) -> dict[int, str]:
        """Return the name of each special token by its id."""
        return {self.tokenizer.special_id(name): name for name in SPECIALS}

    def text(self, i: int) -> str:
        """Return the text of an id or, for a special token, its name; bytes that are only part of a character become U+FFFD."""
        return self.specials.get(i) or self.tokenizer.bytes_of(i).decode("utf-8", errors="replace")

    def candidates(self, logp: Tensor, count: int) -> list[list[Candidate]]:
        """Return the `count` most probable ids of each row of `logp` (T, V), log probabilities in nats; the likeliest first."""
        values, ids = logp.topk(min(count, logp.shape[-1]), dim=-1)
        return [
            [self._candidate(i, x) for i, x in zip(row_ids, row, strict=True)]
            for row_ids, row in zip(ids.tolist(), values.exp().tolist(), strict=True)
        ]

    def _candidate(self, i: int, p: float) -> Candidate:
        return {"id": i, "text": self.text(i), "special": i in self.specials, "p": digits(p)}

    def ids(self, prompt: str, limit: int) -> list[int]:
        """Encode a prompt as the beginning of a document or, if `chats`, as a message in the chat template.

        A document begins with the end-of-text token. The ids of a message end where the answer begins. Raises UserError if
        there are more than `limit` ids.
        """
        text = self.tokenizer.encode(prompt)
        if self.chats:
            ids = prompt_ids([Message("user", prompt)], self.tokenizer)
        else:
            ids = [self.tokenizer.special_id(END_OF_TEXT), *text]
        if len(ids) > limit:
            max_tokens = limit - len(ids) + len(text)
            raise UserError(
                f"the prompt has {len(text)} tokens and may have at most {max_tokens}: give a shorter prompt"
            )
        return ids

    @property
    def ends(self) -> list[int]:
        """Return the ids that end a text or, for a chat model, an answer."""
        return stop_ids(self.tokenizer) if self.chats else list(self.tokenizer.end_ids)


def digits(value: float, count: int = 6) -> float:
    """Round to `count` significant digits, which keeps JSON short."""
    return float(f"{value:.{count}g}")


def entropy(logp: Tensor) -> Tensor:
    """Compute the entropy in bits of finite log probabilities in nats: (..., V) -> (...)."""
    bits: Tensor = -logp.exp().mul_(logp).sum(dim=-1) / math.log(2)
    return bits
