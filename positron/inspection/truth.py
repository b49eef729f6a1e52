"""Compare a model with the grammar of the built-in stories, token by token (see `lookdata.TruthData`).

The *regret* of a token is log2(exact probability / probability by the model), in bits. Its expectation under the exact
distribution is the Kullback-Leibler divergence, which is never negative.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from positron.inspection.inside import log_probabilities, look_inside
from positron.inspection.look import MAX_TOKENS, MAX_TOP, TOP
from positron.inspection.lookdata import Departure, RuleRegret, TruthData, TruthPrediction, TruthToken
from positron.inspection.story_tokens import StoryTokens
from positron.inspection.tokens import Vocabulary, digits
from positron.model.gpt import GPT
from positron.stories.following import Rule
from positron.system.errors import UserError
from positron.text.tokenizer import Tokenizer

SHOWN_WORDS = 8  # maximum number of allowed words that are shown where a prompt leaves the grammar


@dataclass(frozen=True)
class TrueToken:
    """Hold the exact probability of a token, given the tokens before it, and the grammar rule that produced it."""

    p: float
    rule: Rule


@dataclass(frozen=True)
class StoryTruth:
    """Hold the exact distribution of the next token at each position of a text, up to the first token that cannot occur.

    A token cannot occur if the grammar does not allow it after the tokens before it. `tokens[t]` describes the token at
    position t + 1, because the token at position 0 begins the document and is given. `expected[t]` maps each possible token
    after position t to its probability. Its last entry is the distribution after the last of `tokens`. `story` is in the state
    after reading the last of `tokens`.
    """

    tokens: list[TrueToken]
    expected: list[dict[int, float]]
    story: StoryTokens


def story_truth(tokenizer: Tokenizer, ids: Sequence[int]) -> StoryTruth:
    """Compute the exact distribution of the next token at each position of a story, from the grammar of the stories.

    `ids` are the tokens of the story; the first one must be the token that begins a document. The result ends before the first
    token that the grammar does not allow.
    """
    story = StoryTokens(tokenizer)
    tokens: list[TrueToken] = []
    expected = [story.expected()]
    for i in ids[1:]:
        p = expected[-1].get(i)
        rule = story.read(i)
        if p is None or rule is None:
            break
        tokens.append(TrueToken(p, rule))
        expected.append(story.expected())
    return StoryTruth(tokens, expected, story)


def compare_with_truth(
    model: GPT, tokenizer: Tokenizer, prompt: str, *, run: str = "", step: int = 0, top: int = TOP
) -> TruthData:
    """Compare the model's probability of each token of a prompt with the exact probability by the story grammar.

    The result also lists, at each position, the `top` next tokens that are likeliest by the grammar. `run` and `step` are
    copied into the result. Raises UserError if the prompt has more than 512 tokens (MAX_TOKENS) or does not fit the model's
    context, or if `top` is not between 1 and 50 (MAX_TOP).
    """
    vocabulary = Vocabulary(tokenizer)
    ids = vocabulary.ids(prompt, min(MAX_TOKENS, model.config.context_length))
    if not 1 <= top <= MAX_TOP:
        raise UserError(f"top must be between 1 and {MAX_TOP}, not {top}")
    truth = story_truth(tokenizer, ids)
    logp = model_log_probabilities(model, ids)
    known = 1 + len(truth.tokens)  # number of tokens before the prompt leaves the grammar
    predictions = [_prediction(vocabulary, truth.expected[t], logp[t], top) for t in range(known) if truth.expected[t]]
    return {
        "version": 1,
        "run": run,
        "step": step,
        "prompt": prompt,
        "tokens": _tokens(vocabulary, truth, logp, ids),
        "next": [*predictions, *[None] * (len(ids) - len(predictions))],
        "departure": _departure(tokenizer, truth, ids) if known < len(ids) else None,
        "rules": regret_by_rule([truth], [logp], [ids]),
    }


def model_log_probabilities(model: GPT, ids: Sequence[int]) -> Tensor:
    """Return the log probabilities (T, V) in nats of the token after each of `ids`."""
    idx = torch.tensor([list(ids)], device=model.wte.weight.device)
    return log_probabilities(model, look_inside(model, idx, ()).stream[-1][0]).cpu()


def regret_by_rule(
    truths: Sequence[StoryTruth], logps: Sequence[Tensor], rows: Sequence[Sequence[int]]
) -> list[RuleRegret]:
    """Add up the regrets of the tokens of several stories by grammar rule, and return the rules by descending regret.

    The regret of a token is log2(exact probability / probability by the model), in bits. It is added to the sum of the grammar
    rule that wrote the token.

    Each story has an entry in `truths`, in `logps` (the model's log probabilities (T, V), in nats) and in `rows` (its T ids).
    """
    sums: dict[Rule, list[tuple[float, float]]] = {}
    for truth, logp, ids in zip(truths, logps, rows, strict=True):
        for t, token in enumerate(truth.tokens):
            model_bits = float(-logp[t, ids[t + 1]]) / math.log(2)
            sums.setdefault(token.rule, []).append((-math.log2(token.p), model_bits))
    rules: list[RuleRegret] = []
    for rule, pairs in sums.items():
        true_bits, model_bits = (math.fsum(column) for column in zip(*pairs, strict=True))
        rules.append(
            {
                "group": rule.group,
                "rule": rule.name,
                "tokens": len(pairs),
                "true_bits": digits(true_bits),
                "model_bits": digits(model_bits),
                "regret": digits(model_bits - true_bits),
            }
        )
    return sorted(rules, key=lambda row: -row["regret"])


def _tokens(vocabulary: Vocabulary, truth: StoryTruth, logp: Tensor, ids: list[int]) -> list[TruthToken]:
    tokens: list[TruthToken] = []
    for t, i in enumerate(ids):
        true = truth.tokens[t - 1] if 0 < t <= len(truth.tokens) else None
        model = None if t == 0 else float(logp[t - 1, i])
        tokens.append(
            {
                "id": i,
                "text": vocabulary.text(i),
                "special": i in vocabulary.specials,
                "model": None if model is None else digits(math.exp(model)),
                "true": None if true is None else digits(true.p),
                "regret": None if true is None or model is None else digits(math.log2(true.p) - model / math.log(2)),
                "group": None if true is None else true.rule.group,
                "rule": None if true is None else true.rule.name,
            }
        )
    return tokens


def _prediction(vocabulary: Vocabulary, expected: dict[int, float], logp: Tensor, top: int) -> TruthPrediction:
    ids = sorted(expected, key=lambda i: (-expected[i], i))
    model = logp[ids].tolist()
    pairs = list(zip(ids, model, strict=True))
    regret = math.fsum(expected[i] * (math.log2(expected[i]) - nats / math.log(2)) for i, nats in pairs)
    inside = math.fsum(math.exp(nats) for nats in model)
    return {
        "top": [
            {
                "id": i,
                "text": vocabulary.text(i),
                "special": i in vocabulary.specials,
                "model": digits(math.exp(nats)),
                "true": digits(expected[i]),
            }
            for i, nats in pairs[:top]
        ],
        "allowed": len(ids),
        "entropy": digits(-math.fsum(p * math.log2(p) for p in expected.values()) + 0.0),
        "regret": digits(regret),
        "outside": digits(max(0.0, 1 - inside)),
    }


def _departure(tokenizer: Tokenizer, truth: StoryTruth, ids: list[int]) -> Departure:
    """Describe the first token of `ids` that the grammar does not allow; there must be one.

    `truth` is the result of `story_truth` for `ids`.
    """
    place = 1 + len(truth.tokens)
    character = len(tokenizer.decode(ids[1:place]))
    rest = tokenizer.decode(ids[1:])[character:]
    words = [word.strip() for word in truth.story.words(SHOWN_WORDS) if word]
    is_cut = truth.story.is_within_word(rest)
    if is_cut:
        message = "the exact probabilities are not known here, because the prompt ends within a word or with a space"
    elif words:
        shown = tokenizer.bytes_of(ids[place]).decode("utf-8", errors="replace").strip() or "a space"
        options = ", ".join(f'"{word}"' for word in words)
        message = f'no story continues with "{shown}" here; possible words: {options}'
    else:
        message = "the story has ended here"
    return {
        "token": place,
        "character": character,
        "reason": "tokens" if is_cut else "text",
        "message": message,
        "expected": words,
    }
