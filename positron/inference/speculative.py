"""A small model proposes some tokens, the large one reads them all at once and keeps those that it could have drawn.

By Leviathan et al., arXiv:2211.17192: with p the large model's probabilities and q the small one's, a proposal x, drawn
from q, is kept with probability min(1, p(x) / q(x)), and at the first that is not, one is drawn from max(0, p - q)
instead. Token x then comes out with probability min(q(x), p(x)) + max(0, p(x) - q(x)) = p(x): the text is distributed
as if the large model had written it alone, whatever the small one proposes; only how long it takes depends on that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from positron.inference.decoder import Decoder
from positron.inference.engine import Engine
from positron.inference.sampling import Sampling, draw, probabilities
from positron.model.gpt import GPT
from positron.system.errors import UserError
from positron.text.tokenizer import Tokenizer

PROPOSED = 2  # tokens at a time: a small model's operators cost nearly what a large one's do, so few pay


class Window:
    """What a decoder of one row has read of a text: from `start` on. It moves where that of `Engine` does."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder, self.context, self.start = decoder, decoder.config.context_length, 0

    def room(self, seen: list[int]) -> int:
        """Tokens that fit after these. A window that these alone do not fit goes on with its last half."""
        if len(seen) - self.start > self.context:
            self.start, self.decoder.lengths[0] = len(seen) - max(1, self.context // 2), 0
        return self.context - (len(seen) - self.start)

    def read(self, seen: list[int]) -> Tensor:
        """Logits after each of these tokens that it had not read yet, (T, V)."""
        return self.decoder.read(seen[self.start + self.decoder.lengths[0] :])

    def forget_after(self, length: int) -> None:
        self.decoder.lengths[0] = min(self.decoder.lengths[0], length - self.start)


def kept(proposed: list[int], q: list[Tensor], p: Iterator[Tensor], generator: torch.Generator) -> list[int]:
    """Of k proposals, each drawn from its q (V,), those that its p (V,) lets pass, and one token more of the large model.

    p gives k + 1, of which only those are asked for that are needed.
    """
    for i, (token, small) in enumerate(zip(proposed, q, strict=True)):
        large = next(p)
        if torch.rand((), dtype=torch.float64, generator=generator) * small[token] >= large[token]:
            return [*proposed[:i], draw((large - small).clamp(min=0), generator)]
    return [*proposed, draw(next(p), generator)]


class SpeculativeEngine(Engine):
    """Writes one text at a time as `Engine` does, to the same distribution; another text for the same seed."""

    def __init__(
        self, model: GPT, tokenizer: Tokenizer, draft: GPT, *, dtype: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        super().__init__(model, tokenizer, dtype=dtype)
        self.draft = Decoder(draft, 0, torch.int8)  # the fastest: what it proposes changes no probability

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
        """The next id of the only prompt, as `Engine.ids` gives it."""
        if len(prompts) != 1:
            raise UserError(f"a draft helps to write one text at a time, not {len(prompts)}: leave it out")
        if not prompts[0]:
            raise UserError("the prompt has no tokens: give at least one")
        ended = [False] if ended is None else ended
        seen, stops = list(prompts[0]), set(stop_ids)
        end, generator = len(seen) + max_tokens, torch.Generator().manual_seed(seed)
        windows = Window(self.decoder.fresh(1)), Window(self.draft.fresh(1))
        while len(seen) < end:
            for token in self._round(*windows, seen, end - len(seen), sampling, generator):
                if token in stops:
                    ended[0] = True
                    return
                seen.append(token)
                yield [token]
                if ended[0]:
                    return

    def _round(
        self, large: Window, small: Window, seen: list[int], most: int, sampling: Sampling, generator: torch.Generator
    ) -> list[int]:
        """The next 1 to `most` tokens, by reading them in the large model at once."""
        count = min(PROPOSED, most - 1, large.room(seen), small.room(seen) + 1)  # nobody reads a last proposal alone
        proposed: list[int] = []
        q: list[Tensor] = []
        for _ in range(count):
            logits = small.read(seen + proposed)[-1]
            q.append(probabilities(logits, sampling, seen + proposed, self.specials))
            proposed.append(draw(q[-1], generator))
        after = large.read(seen + proposed)[-1 - count :]
        p = (probabilities(after[i], sampling, seen + proposed[:i], self.specials) for i in range(count + 1))
        new = kept(proposed, q, p, generator)
        for window in (large, small):
            window.forget_after(len(seen) + len(new) - 1)  # the newest is read with the next ones
        return new
