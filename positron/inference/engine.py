"""From prompts to text: which token is next, when to stop, what to read anew when the context is full."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch

from positron.config import UserError
from positron.inference.decoder import Decoder
from positron.inference.sampling import BALANCED, Sampling, choose
from positron.model.gpt import GPT
from positron.text.tokenizer import END_OF_TEXT, SPECIALS, StreamDecoder, Tokenizer


class Written(NamedTuple):
    text: str
    tokens: int
    ended: bool  # by itself, before max_tokens


class Engine:
    """Writes with a model. One at a time: a second call of a generator of it begins afresh."""

    def __init__(
        self,
        model: GPT,
        tokenizer: Tokenizer,
        *,
        batch: int = 1,
        dtype: torch.dtype | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.decoder, self.tokenizer, self.say = Decoder(model, batch, dtype), tokenizer, say
        self.context = model.config.context_length
        self.was_cut = False  # whether the last text came to its max_tokens before it ended by itself
        self.specials = [tokenizer.special_id(token) for token in SPECIALS]

    def ids(
        self, prompts: list[list[int]], sampling: Sampling, *, max_tokens: int, stop_ids: Iterable[int], seed: int
    ) -> Iterator[list[int | None]]:
        """The next id of every prompt, None for one that has ended, until all have: at a stop id or after `max_tokens`.

        Row i draws from a generator of its own, of seed + i: what it writes does not depend on the rows beside it. A
        context that is full goes on with its last half, read anew (positions are absolute, so a cache cannot slide).
        """
        if not all(prompts):
            raise UserError("there is nothing to go on from: the prompt is empty")
        generators = [torch.Generator().manual_seed(seed + i) for i in range(len(prompts))]
        seen, ended, stops = [list(p) for p in prompts], [False] * len(prompts), set(stop_ids)
        rows, self.was_cut = list(range(len(prompts))), False
        logits = self.decoder.prefill(rows, [self._window(s) for s in seen])
        for count in range(max_tokens):
            chosen: list[int | None] = []
            for i in rows:
                token = choose(logits[i], sampling, seen[i], generators[i], self.specials)
                ended[i] |= token in stops
                chosen.append(None if ended[i] else token)
                seen[i].append(token)
            if all(ended):
                return
            yield chosen
            if count + 1 < max_tokens:
                logits = self._read(seen, ended)
        self.was_cut = True

    def _window(self, seen: list[int]) -> list[int]:
        return seen if len(seen) <= self.context else seen[-max(1, self.context // 2) :]

    def _read(self, seen: list[list[int]], ended: list[bool]) -> torch.Tensor:
        """Logits after the newest token of each row, (B, V)."""
        full = [i for i, length in enumerate(self.decoder.lengths[: len(seen)]) if length >= self.context]
        alive = [i for i in full if not ended[i]]
        if alive:
            self.say(f"the context of {self.context} tokens is full: going on with its last half")
            self.decoder.prefill(alive, [seen[i][-max(1, self.context // 2) :] for i in alive])
        for i in full:  # the step below reads the newest token once more, to the same effect; nobody reads ended rows
            self.decoder.lengths[i] = self.decoder.lengths[i] - 1 if i in alive else 0
        return self.decoder.step(torch.tensor([row[-1] for row in seen], device=self.decoder.device))

    def stream(
        self,
        ids: list[int],
        sampling: Sampling = BALANCED,
        *,
        max_tokens: int = 200,
        seed: int = 0,
        stop_ids: Iterable[int] | None = None,
        stop: tuple[str, ...] = (),
    ) -> Iterator[str]:
        """The text after `ids`, in pieces of whole characters, up to a stop id (that of the end of a text unless
        given) or to the first of the `stop` strings, which is not part of it."""
        end = [self.tokenizer.special_id(END_OF_TEXT)] if stop_ids is None else stop_ids
        decoder, held = StreamDecoder(self.tokenizer), ""
        for chosen in self.ids([ids], sampling, max_tokens=max_tokens, stop_ids=end, seed=seed):
            assert chosen[0] is not None
            piece, held, over = cut_at(held + decoder.push(chosen[0]), stop)
            if piece:
                yield piece
            if over:
                return
        rest, _, _ = cut_at(held + decoder.end(), stop, at_end=True)
        if rest:
            yield rest

    def written(
        self, prompts: list[list[int]], sampling: Sampling = BALANCED, *, max_tokens: int = 200, seed: int = 0,
        stop_ids: Iterable[int] | None = None,
    ) -> list[Written]:  # fmt: skip
        """What follows each of the prompts; text i is that of `stream` with seed + i."""
        end = [self.tokenizer.special_id(END_OF_TEXT)] if stop_ids is None else stop_ids
        rows: list[list[int]] = [[] for _ in prompts]
        for chosen in self.ids(prompts, sampling, max_tokens=max_tokens, stop_ids=end, seed=seed):
            for row, token in zip(rows, chosen, strict=True):
                if token is not None:
                    row.append(token)
        return [Written(self.tokenizer.decode(row), len(row), len(row) < max_tokens) for row in rows]

    def texts(
        self, prompts: list[list[int]], sampling: Sampling = BALANCED, *, max_tokens: int = 200, seed: int = 0,
        stop_ids: Iterable[int] | None = None,
    ) -> list[str]:  # fmt: skip
        """The texts of `written`."""
        written = self.written(prompts, sampling, max_tokens=max_tokens, seed=seed, stop_ids=stop_ids)
        return [one.text for one in written]


def cut_at(text: str, stop: tuple[str, ...], at_end: bool = False) -> tuple[str, str, bool]:
    """(text that may be shown, text held back because a stop string may have begun in it, whether one is complete)."""
    # the one that is complete first ends the text, however it comes in pieces; of those that end together the longest
    found = [(place + len(s), place) for s in stop if (place := text.find(s)) >= 0]
    if found:
        return text[: min(found)[1]], "", True
    if at_end:
        return text, "", False
    held = max((n for s in stop for n in range(1, len(s)) if text.endswith(s[:n])), default=0)
    return text[: len(text) - held], text[len(text) - held :], False
