"""Generate text from prompts: sample tokens, stop at the end of a text, and shorten the context when it is full."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch

from positron.inference.arguments import seed_of, stops_of, whole_number
from positron.inference.decoders import AnyDecoder, decoder_of
from positron.inference.sampling import BALANCED, Sampling, choose
from positron.inference.writing import Progress, Stream, pieces
from positron.model.ensemble import Ensemble
from positron.model.gpt import GPT
from positron.system.errors import UserError
from positron.text.tokenizer import SPECIALS, Tokenizer

logger = logging.getLogger(__name__)


class Written(NamedTuple):
    """Hold a generated text, without its prompt, and the number of its tokens.

    `ended` is true if the text ended at a stop token or a stop string, and false if it reached the maximum number of tokens.
    """

    text: str
    tokens: int
    ended: bool


class Engine:
    """Generate any number of texts at the same time, each with its own cache and random generator.

    All texts share the packed weights. The cache of a text is allocated when its first token is requested, and freed when the
    text ends, its `Stream` is closed, or nothing refers to the `Stream` any more. `dtype`: the number format of weights and
    cache, as in `Decoder`; None keeps the model's format.
    """

    def __init__(
        self,
        model: GPT | Ensemble,
        tokenizer: Tokenizer,
        *,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.decoder, self.tokenizer = decoder_of(model, 0, dtype), tokenizer
        self.context = self.decoder.context_length
        self.specials = [tokenizer.special_id(token) for token in SPECIALS]

    def ids(
        self,
        prompts: list[list[int]],
        sampling: Sampling,
        *,
        max_tokens: int,
        stop_ids: Iterable[int],
        seed: int,
        ended: list[bool] | None = None,
    ) -> Iterator[list[int | None]]:
        """Yield lists with the next token id of each prompt, or None for a prompt whose text has ended.

        The iterator ends when all texts have ended, or after `max_tokens` lists. A text ends at one of the `stop_ids`, which is
        not yielded. Prompt i has its own random generator with the seed `seed + i`, so its text does not depend on the other
        prompts, up to rounding. When the context of a text is full, its last half is read again from position 0, because a
        cache with absolute positions cannot be shifted. `ended`: a list with one bool for each prompt, True if the prompt's
        text has ended; the caller may set a bool to True to end a text.

        Raises UserError for an empty prompt, when the first list is requested.
        """
        if not all(prompts):
            raise UserError("the prompt has no tokens: give at least one token")
        generators = [torch.Generator().manual_seed(seed + i) for i in range(len(prompts))]
        ended = [False] * len(prompts) if ended is None else ended
        seen, stops, rows = [list(p) for p in prompts], set(stop_ids), list(range(len(prompts)))
        decoder = self.decoder.with_empty_cache(len(prompts))
        logits = decoder.prefill(rows, [self.window(s) for s in seen])
        for count in range(max_tokens):
            chosen: list[int | None] = []
            logits = logits.cpu()  # all rows at once, because the host waits for the device at each copy
            for i in rows:
                token = choose(logits[i], sampling, seen[i], generators[i], self.specials)
                ended[i] |= token in stops
                chosen.append(None if ended[i] else token)
                seen[i].append(token)
            if all(ended):
                return
            yield chosen
            if all(ended):
                return
            if count + 1 < max_tokens:
                logits = self._read(decoder, seen, ended)

    def window(self, seen: list[int]) -> list[int]:
        """Return the tokens that the model reads: all of `seen` or, if they exceed the context, the last half of the context.

        `seen`: the token ids of the text so far. The last half is the last context // 2 tokens of `seen`.
        """
        return seen if len(seen) <= self.context else self.last_half(seen)

    def last_half(self, seen: list[int]) -> list[int]:
        """Return the last context // 2 tokens of `seen` (at least one), which are read again when the context is full."""
        return seen[-max(1, self.context // 2) :]

    def _read(self, decoder: AnyDecoder, seen: list[list[int]], ended: list[bool]) -> torch.Tensor:
        """Compute the logits after the newest token of each text, (B, V).

        `seen`: the token ids of each text. `ended`: whether each text has ended; the logits of an ended text have no meaning.
        If a text that has not ended has filled the context, its cache is emptied, and the text's last context // 2 tokens (at
        least one) are read again.
        """
        full_rows = [i for i, length in enumerate(decoder.lengths[: len(seen)]) if length >= self.context]
        active = [i for i in full_rows if not ended[i]]
        if active:
            self._log_full_context()
            decoder.prefill(active, [self.last_half(seen[i]) for i in active])
        # `step` below reads the newest token again, with the same result; rows that ended are not used
        for i in full_rows:
            decoder.lengths[i] = decoder.lengths[i] - 1 if i in active else 0
        return decoder.step(torch.tensor([row[-1] for row in seen], device=decoder.device))

    def _log_full_context(self) -> None:
        logger.debug(f"the context of {self.context} tokens is full: continuing with the last half of these tokens")

    def _stop_ids(self, stop_ids: Iterable[int] | None) -> list[int]:
        return list(self.tokenizer.end_ids if stop_ids is None else stop_ids)

    def stream(
        self,
        ids: list[int],
        sampling: Sampling = BALANCED,
        *,
        max_tokens: int = 200,
        seed: int = 0,
        stop_ids: Iterable[int] | None = None,
        stop: str | Iterable[str] = (),
    ) -> Stream:
        """Return a `Stream`, which generates the continuation of `ids` while the caller iterates over it.

        The text ends at one of the `stop_ids` (None: the tokenizer's ids that end a document), before the first `stop` string,
        or after `max_tokens` tokens. Wrong settings raise UserError in this call, before the iteration begins.
        """
        progress = Progress(self.tokenizer, ids, stops_of(stop))
        limit, first, end = whole_number("max_tokens", max_tokens, minimum=1), seed_of(seed), self._stop_ids(stop_ids)
        rows = self.ids([ids], sampling, max_tokens=limit, stop_ids=end, seed=first)
        return Stream(pieces(rows, progress, limit), progress)

    def written(
        self,
        prompts: list[list[int]],
        sampling: Sampling = BALANCED,
        *,
        max_tokens: int = 200,
        seed: int = 0,
        stop_ids: Iterable[int] | None = None,
        stop: str | Iterable[str] = (),
    ) -> list[Written]:
        """Continue all prompts at once and return the continuations, without the prompts.

        Text i is, up to rounding, the one that `stream` returns for prompt i with the seed `seed + i`. A text ends at one of
        the `stop_ids` (None: the tokenizer's ids that end a document), before the first `stop` string, or after `max_tokens`
        tokens.
        """
        stops, end = stops_of(stop), self._stop_ids(stop_ids)
        limit, first = whole_number("max_tokens", max_tokens, minimum=1), seed_of(seed, max(1, len(prompts)))
        if not prompts:
            return []
        texts, ended = [Progress(self.tokenizer, prompt, stops) for prompt in prompts], [False] * len(prompts)
        shown: list[list[str]] = [[] for _ in prompts]
        for chosen in self.ids(prompts, sampling, max_tokens=limit, stop_ids=end, seed=first, ended=ended):
            for i, token in enumerate(chosen):
                if token is not None:
                    shown[i].append(texts[i].push(token))
                    ended[i] = texts[i].ended
        for text, parts, is_over in zip(texts, shown, ended, strict=True):
            parts.append(text.finish(by_itself=is_over))
        return [Written("".join(parts), text.tokens, text.ended) for text, parts in zip(texts, shown, strict=True)]

    def texts(
        self,
        prompts: list[list[int]],
        sampling: Sampling = BALANCED,
        *,
        max_tokens: int = 200,
        seed: int = 0,
        stop_ids: Iterable[int] | None = None,
        stop: str | Iterable[str] = (),
    ) -> list[str]:
        """Continue all prompts at once, as `written` does, and return only the texts."""
        written = self.written(prompts, sampling, max_tokens=max_tokens, seed=seed, stop_ids=stop_ids, stop=stop)
        return [completion.text for completion in written]
