"""Sample several answers to each of many prompts for reinforcement learning, with the log-probability of each token.

The answers are drawn from softmax(logits / temperature). No token is excluded (no top-k or top-p), because training
computes the gradient of this distribution.

On a CPU, the operators of a step are so short that threads which share each operator often wait for each other. Therefore the
prompts are divided among the threads, and each thread samples the answers to its own prompts. This takes 15 % less time on two
cores (docs/LOG.md, 2026-11-29).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from positron.inference.decoder import Decoder
from positron.inference.parallel import in_threads

CACHE_BYTES = 1 << 30  # maximum memory for keys and values; it limits the number of answers that are sampled together
SHRINK = 0.75  # rows of ended answers are removed when at most this share of the rows still generates
MIN_ROWS = 16  # a thread with fewer answers would take longer to read the weights than to multiply them


@dataclass
class Rollout:
    """Hold a sampled answer: its token ids, with the stop token, and for each id a log-probability and an entropy, in nats.

    `prompt`: the index of the prompt. `ended`: true if the answer ended at a stop token, and not at a limit of its length.
    """

    prompt: int  # index of the prompt
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)  # log-probability of each token when it was drawn
    entropies: list[float] = field(default_factory=list)  # entropy of the distribution from which each token was drawn
    ended: bool = False  # True if the answer ended at a stop token, False if it reached a limit of its length


def rollouts(
    decoder: Decoder,
    prompts: Sequence[list[int]],
    copies: int,
    *,
    temperature: float,
    max_tokens: int,
    stop_ids: Iterable[int],
    seeds: Sequence[int],
    pause: Callable[[], None] = lambda: None,
) -> list[Rollout]:
    """Sample `copies` answers to each prompt, and return them in the order of the prompts.

    An answer ends at a stop token, after `max_tokens` tokens, or when the context is full. `seeds` has one seed for each
    prompt. Therefore, up to rounding, the answers to a prompt do not depend on the other prompts. `pause` is called before each
    token, perhaps in several threads at once, and may raise an error to stop the sampling. Raises ValueError for a prompt that
    fills the context.
    """
    together = max(1, CACHE_BYTES // decoder.row_bytes // copies)
    sample = partial(
        _sample, decoder, copies=copies, temperature=temperature, max_tokens=max_tokens, stops=frozenset(stop_ids)
    )
    answers: list[Rollout] = []
    for start in range(0, len(prompts), together):
        part, part_seeds = prompts[start : start + together], seeds[start : start + together]
        new = [Rollout(start + i) for i in range(len(part)) for _ in range(copies)]
        is_cpu = decoder.device.type == "cpu"
        shares = max(1, min(torch.get_num_threads(), len(part), len(new) // MIN_ROWS)) if is_cpu else 1
        ends = [len(part) * i // shares for i in range(shares + 1)]
        in_threads(
            [
                partial(sample, part[first:end], new[first * copies : end * copies], part_seeds[first:end])
                for first, end in pairwise(ends)
            ],
            pause,
        )
        answers += new
    return answers


@torch.inference_mode()
def _sample(
    decoder: Decoder,
    prompts: Sequence[list[int]],
    answers: list[Rollout],
    seeds: Sequence[int],
    pause: Callable[[], None],
    *,
    copies: int,
    temperature: float,
    max_tokens: int,
    stops: frozenset[int],
) -> None:
    """Add sampled tokens to the answers until all have ended. Answer i belongs to prompt i // copies.

    An answer ends at a token in `stops`, after `max_tokens` tokens, or when the context is full. `seeds` has one seed for each
    prompt. `pause` is called before each token, and may raise an error to stop the sampling. Raises ValueError for a prompt
    that fills the context.
    """
    pause()
    limits = [min(max_tokens, decoder.context_length - len(prompts[i // copies])) for i in range(len(answers))]
    if min(limits) < 1:
        raise ValueError(
            f"a prompt of {max(map(len, prompts))} tokens fills the context, so no answer can follow it: give a shorter prompt"
        )
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    first = decoder.with_empty_cache(len(prompts))
    logits = first.prefill(list(range(len(prompts))), list(prompts)).repeat_interleave(copies, dim=0)  # (B, V)
    rows = list(range(len(answers)))  # index of the answer that each row of the cache generates
    cache = first.with_rows([row // copies for row in rows])
    active = set(rows)
    while True:
        numbers = torch.cat(
            [torch.rand(copies, generator=generator) for generator in generators]
        )  # also for ended answers, so that an answer's numbers do not depend on the others
        tokens, logprobs, entropies = draw(logits, temperature, numbers[rows].to(decoder.device))
        drawn = torch.stack((tokens.to(logprobs.dtype), logprobs, entropies))  # fp32 is exact up to 2^24 tokens
        for row, token, logprob, entropy in zip(rows, *drawn.tolist(), strict=True):  # the only wait for the device
            if row not in active:
                continue
            answer = answers[row]
            answer.ids.append(int(token))
            answer.logprobs.append(logprob)
            answer.entropies.append(entropy)
            answer.ended = int(token) in stops
            if answer.ended or len(answer.ids) == limits[row]:
                active.remove(row)
        if not active:
            return
        pause()
        if len(active) <= SHRINK * len(rows) or any(length >= decoder.context_length for length in cache.lengths):
            kept_rows = [i for i, row in enumerate(rows) if row in active]
            cache, tokens, rows = (
                cache.with_rows(kept_rows),
                tokens[torch.tensor(kept_rows)],
                [rows[i] for i in kept_rows],
            )
        logits = cache.step(tokens)


def draw(logits: Tensor, temperature: float, numbers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Draw a token from softmax(logits / temperature) for each row of logits (B, V).

    `numbers` (B,): one random number in [0, 1) for each row, at which the row's cumulative distribution is inverted. Returns
    the tokens (B,), their log-probabilities (B,) and the entropies (B,) of the distributions, in nats.
    """
    scaled = logits.float() / temperature  # (B, V)
    scaled -= scaled.amax(dim=-1, keepdim=True)
    scaled.clamp_(min=-200)  # exp(-200) is 0 in fp32, and so is 0 times -200; 0 times -inf would be NaN
    p = scaled.exp()
    total = p.sum(dim=-1)  # (B,)
    entropies = total.log() - torch.linalg.vecdot(p, scaled) / total
    reached = p.cumsum_(dim=-1)
    tokens = torch.searchsorted(reached, (numbers * reached[:, -1])[:, None], right=True)
    tokens = tokens.clamp(max=logits.shape[-1] - 1)  # rounding can make a number reach the sum
    return tokens[:, 0], scaled.gather(1, tokens)[:, 0] - total.log(), entropies
