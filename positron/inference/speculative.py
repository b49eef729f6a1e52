"""Decode speculatively: a small model proposes tokens, and the large model checks several proposals in one pass.

The method is from Leviathan et al., arXiv:2211.17192. Let p be the probabilities of the large model and q those of the small
model. A proposed token x, drawn from q, is accepted with the probability min(1, p(x) / q(x)). The first proposal that is not
accepted is replaced by a token drawn with probabilities proportional to max(0, p - q), and the later proposals are discarded. A
token x then has the probability min(q(x), p(x)) + max(0, p(x) - q(x)) = p(x), so the text has the same distribution as a text
by the large model alone. The proposals affect only the speed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from positron.inference.decoders import AnyDecoder, make_decoder
from positron.inference.engine import Engine
from positron.inference.sampling import Sampling, draw, probabilities
from positron.model.ensemble import Ensemble
from positron.model.gpt import GPT
from positron.system.errors import UserError
from positron.text.tokenizer import Tokenizer

PROPOSALS_PER_ROUND = 2  # a small number, because a step of a small model takes nearly as long as one of a large model


class Window:
    """Track which part of a text is in the cache of a decoder with one row; the part starts at token `start`.

    When the context is full, `start` moves forward, and the last half of the context is read again, as in `Engine`.
    """

    def __init__(self, decoder: AnyDecoder) -> None:
        self.decoder, self.context, self.start = decoder, decoder.context_length, 0

    def free_tokens(self, seen: list[int]) -> int:
        """Return the number of tokens that fit the context after `seen`, the tokens of the text so far.

        The context contains the tokens of `seen` from the index `self.start` on. If these tokens do not fit, the cache is
        emptied, and `self.start` is moved forward, so that only the last context // 2 tokens of `seen`, but at least one,
        remain in the context. The next call of `read` reads these tokens into the cache again.
        """
        if len(seen) - self.start > self.context:
            self.start, self.decoder.lengths[0] = len(seen) - max(1, self.context // 2), 0
        return self.context - (len(seen) - self.start)

    def read(self, seen: list[int]) -> Tensor:
        """Read the tokens that are not in the cache yet, and return the logits (T, V) after each of these T tokens.

        `seen`: all tokens of the text so far. `free_tokens` must be called first, so that the new tokens fit the context.
        """
        return self.decoder.read(seen[self.start + self.decoder.lengths[0] :])

    def forget_after(self, length: int) -> None:
        """Remove from the cache all tokens that come after the first `length` tokens of the text."""
        self.decoder.lengths[0] = min(self.decoder.lengths[0], length - self.start)


def accept(proposed: list[int], q: list[np.ndarray], p: Iterator[np.ndarray], generator: torch.Generator) -> list[int]:
    """Return the accepted proposals and one more token.

    The additional token replaces the first proposal that is not accepted. If all proposals are accepted, the additional token
    is drawn from the last distribution of `p`. `q`: the distributions (V,) from which the k proposals were drawn. `p`: an
    iterator that computes the k + 1 distributions (V,) of the large model one by one, on request.
    """
    for i, (token, small) in enumerate(zip(proposed, q, strict=True)):
        large = next(p)
        number = torch.rand((), dtype=torch.float64, device=generator.device, generator=generator)
        if float(number) * small[token] >= large[token]:
            return [*proposed[:i], draw((large - small).clip(min=0), generator)]
    return [*proposed, draw(next(p), generator)]


class SpeculativeEngine(Engine):
    """Generate one text at a time, with the help of a small draft model.

    The texts have the same distribution as those of `Engine`, but with the same seed a text can be different. `dtype` is the
    number format of the large model's weights, as in `Decoder`; the weights of the draft model are int8.
    """

    def __init__(
        self, model: GPT | Ensemble, tokenizer: Tokenizer, draft: GPT, *, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__(model, tokenizer, dtype=dtype)
        self.draft = make_decoder(
            draft, 0, torch.int8
        )  # the fastest format, since proposals do not change the distribution

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
        """Yield lists with one token id, which together continue the prompt; `prompts` must contain a single one.

        The iterator ends after `max_tokens` ids, or at one of the `stop_ids`, which is not yielded. `Engine.ids`, which
        generates several texts at the same time, has the same types, but an item of its lists may be None. `ended`: a list with
        one bool, which is set to True at a stop id; the caller may set it to True to end the text.

        Raises UserError if there are several prompts, or if the prompt has no tokens.
        """
        if len(prompts) != 1:
            raise UserError(
                f"with a draft model, only one text can be generated at a time, not {len(prompts)}: leave the draft model out"
            )
        if not prompts[0]:
            raise UserError("the prompt has no tokens: give at least one token")
        ended = [False] if ended is None else ended
        seen, stops = list(prompts[0]), set(stop_ids)
        end, generator = len(seen) + max_tokens, torch.Generator().manual_seed(seed)
        windows = Window(self.decoder.with_empty_cache(1)), Window(self.draft.with_empty_cache(1))
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
        self, large: Window, small: Window, seen: list[int], limit: int, sampling: Sampling, generator: torch.Generator
    ) -> list[int]:
        """Let the small model propose tokens, check them with the large model, and return the next 1 to `limit` tokens.

        `large` and `small`: the two models, each with the part of the text that is in its cache. `seen`: the token ids of the
        text so far.
        """
        has_begun, start = large.decoder.lengths[0] > 0, large.start
        # + 1, because the small model does not have to read the last proposal
        count = min(PROPOSALS_PER_ROUND, limit - 1, large.free_tokens(seen), small.free_tokens(seen) + 1)
        if has_begun and large.start > start:
            self._log_full_context()
        proposed: list[int] = []
        q: list[np.ndarray] = []
        for _ in range(count):
            logits = small.read(seen + proposed)[-1]
            q.append(probabilities(logits, sampling, seen + proposed, self.specials))
            proposed.append(draw(q[-1], generator))
        after = large.read(seen + proposed)[-1 - count :].cpu()  # at once, because the host waits at each copy
        p = (probabilities(after[i], sampling, seen + proposed[:i], self.specials) for i in range(count + 1))
        new = accept(proposed, q, p, generator)
        for window in (large, small):
            window.forget_after(len(seen) + len(new) - 1)  # the newest token is read in the next round
        return new
