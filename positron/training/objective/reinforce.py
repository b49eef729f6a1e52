"""Define reinforcement learning: the model learns from its own answers to prompts, weighted by their advantages.

Each optimizer step samples K answers to each of P prompts from the policy pi = softmax(logits / temperature) with the current
weights, computes their rewards, and takes one step on

    loss = -1 / (P K L) * sum over answers i of A_i * sum over tokens t of log pi(y_it | prompt, y_i,<t)

with the advantages A_i of RLOO (Ahmadian et al., arXiv:2402.14740) or Dr. GRPO (Liu et al., arXiv:2503.20783). L is a
constant, `reinforce.max_tokens` or the context length, if it is smaller. It is not the length of the answer, so that a long
wrong answer is not punished less than a short one. The token that ends an answer is a target like the others; otherwise the
model would not learn to stop. Once a token has decided the reward (for example, the first error of a story), the tokens after
it are not targets, because the expected value of their gradient is 0. The reference implementation is
numpy_ref/policy_gradient.py.
"""

from __future__ import annotations

import hashlib
import logging
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from positron.config import IGNORE, ReinforceConfig
from positron.data.window_order import windows_of_step
from positron.data.windows import Windows
from positron.inference.decoder import Decoder
from positron.inference.rollouts import Rollout, rollouts
from positron.inference.text_model import DTYPES
from positron.model.gpt import GPT, document_numbers
from positron.model.kernels.precision import wide
from positron.rewards.reward import Decided, Reward
from positron.system.console import printable
from positron.text.tokenizer import Tokenizer
from positron.training.objective.answer_totals import AnswerTotals
from positron.training.objective.base import Part, Prompt
from positron.training.objective.hard_prompts import HardPrompts, of_all_ranks
from positron.training.objective.policy_gradient import advantages, exact_kl
from positron.training.objective.tokens import NextToken
from positron.training.objective.validation_text import ValidationText

logger = logging.getLogger(__name__)

SHOWN_ANSWERS = 3  # number of answers in the log after each validation


@dataclass(frozen=True)
class Question:
    """Hold a prompt: its text for the reward function, its token ids for the model, and the token ids that end an answer."""

    text: str
    ids: list[int]
    stop_ids: tuple[int, ...]


@dataclass(frozen=True)
class RewardRule:
    """Hold a reward function, `reward(prompt, answer)`, and `full`: an answer passes if its reward is at least `full`.

    `decided(prompt, answer)` returns the number n if the first n characters of the answer decide its reward, whatever follows,
    and None if the reward depends on the whole answer. Prompts and answers are texts.
    """

    reward: Reward
    full: float
    decided: Decided


def fingerprint_of(questions: tuple[list[Question], list[Question]]) -> str:
    """Return a hash of the prompts for training and those for validation."""
    known = repr([question.ids for question in (*questions[0], *questions[1])])
    return hashlib.sha256(known.encode()).hexdigest()


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


class ReinforceObjective(NextToken):
    """Train on the model's own answers to prompts, weighted by their advantages (see the docstring of this file).

    The validation loss is the loss on a text, the argument `text` of the constructor. If pretraining text is available, `text`
    is pretraining text, and the loss shows how much the model forgets. Otherwise `text` contains the answers in the data.
    """

    kind = "reinforce"
    keeps_best, patience = False, 0
    document_start = None

    def __init__(
        self,
        questions: tuple[list[Question], list[Question]],
        rule: RewardRule,
        tokenizer: Tokenizer,
        config: ReinforceConfig,
        *,
        micro_batch_size: int,
        seed: int,
        initial: GPT,
        text: ValidationText,
        replay: Windows | None,
        is_exact: bool,
    ) -> None:
        """Prepare the prompts and the validation text.

        `questions`: the prompts for training and those for validation. `initial`: the model before the training, which is
        not changed. `replay`: windows of the pretraining text, or None; their mean loss times `config.replay` is added to
        the loss of each step.

        `is_exact`: training and sampling both compute in fp32, so that both give a token the same probability up to
        rounding. Otherwise each token is weighted by (probability in training) / (probability in sampling), at most
        `config.max_ratio`.
        """
        self.questions, self.val_questions = questions
        self.rule, self.tokenizer, self.config = rule, tokenizer, config
        self.micro_batch_size, self.seed, self.is_exact = micro_batch_size, seed, is_exact
        self.text, self.replay = text, replay
        self.initial = initial.eval().requires_grad_(False)
        # the constant L; one that no answer can reach would weaken the rewards beside the replayed text
        self.max_tokens = min(config.max_tokens, initial.config.context_length)
        self.token_bytes, self.document_start = text.token_bytes, text.document_start
        self.val_bits, self.val_bytes = text.bits, text.n_bytes
        self.val_parts = text.parts(micro_batch_size)
        self.bytes_per_token = None
        self.fingerprint = fingerprint_of(questions)
        self._train_prompts = [
            self.fingerprint,
            len(self.questions),
        ]  # identifies the prompts of which `_hard` has indices
        self._hard = HardPrompts()
        self._last: dict[str, float] = {}  # metrics of the answers of the last step
        self._ratio_gap = torch.zeros(
            2
        )  # sum of |ratio - 1| over the tokens of the last step, and the number of tokens
        self._world_size = 1  # the number of ranks in the last step

    @property
    def dependencies(self) -> dict[str, str]:
        """Return under the key "validated_on" the hash of the text of the validation, or "answers"."""
        return {"validated_on": self.text.fingerprint}

    def batch(self, step: int, rank: int, world_size: int) -> list[Part]:
        """Return one micro-batch for a rank in step `step`: the numbers (n, 1) of n prompts, and targets (n, 1), all -100.

        n is `config.prompts` / `world_size`. The number of a prompt is its index in the list of all training prompts. The
        targets are placeholders: the method `examples` samples the answers later. `examples` also replaces some of the prompts
        by hard prompts, which are prompts that the model has answered badly (see `HardPrompts`).
        """
        numbers = torch.tensor(self._scheduled(step)[rank::world_size])[:, None]
        return [(numbers, torch.full_like(numbers, IGNORE))]

    def _scheduled(self, step: int) -> list[int]:
        """Return the indices of all prompts of step `step`, before some are replaced by prompts that were answered badly."""
        P = self.config.prompts
        _, chosen = windows_of_step(step, seed=self.seed, n_windows=len(self.questions), batch_size=P)
        numbers: list[int] = chosen.tolist()
        return numbers

    def examples(
        self, model: GPT, parts: list[Part], step: int, rank: int, world_size: int, pause: Callable[[], None]
    ) -> list[Part]:
        """Sample answers to the prompts and compute the rewards of the answers; return micro-batches for the loss.

        First, some of the prompts are replaced by prompts that the model answered badly in earlier steps. They are at most the
        fraction `config.hard_share` of all prompts.

        `pause` is called regularly. If the run has to stop, `pause` raises an error, which ends this method.

        With `config.mask_truncated`, the advantage of an answer that was cut off is 0. If the KL divergence is not part of the
        loss, the micro-batches contain only the answers whose advantage is not 0. If all advantages are 0, they contain one
        answer. A micro-batch has six tensors:

        - input ids (B, T)
        - targets (B, T)
        - advantages (B,)
        - log-probabilities (B, T) of the targets when they were sampled
        - a number () that `count` returns: in the first micro-batch of a rank, the rank's number of answers x L; in the
          others, 0
        - indices (N,) of the targets in the flattened rows; `loss` could find them itself, but the CPU would have to wait

        With `config.replay`, the last micro-batches contain pretraining text. Instead of advantages they have a constant, the
        weight of this text in the loss, and instead of log-probabilities an empty tensor (0,), because no token was sampled.
        """
        self._ratio_gap, self._world_size = torch.zeros(2, device=model.wte.weight.device), world_size
        numbers = self._scheduled(step)
        hard = self._hard.draw(step, round(self.config.hard_share * len(numbers)), self.seed)
        numbers[: len(hard)] = hard
        asked = [self.questions[number] for number in numbers[rank::world_size]]
        K = self.config.samples
        seeds = [_seed(self.seed, step, rank + i * world_size) for i in range(len(asked))]
        answers = self._answers(model, asked, K, seeds, pause)
        rewards = torch.tensor(
            [self._reward_of(asked[answer.prompt], answer, pause) for answer in answers], dtype=torch.float64
        )
        weights = advantages(rewards.float().view(-1, K), self.config.advantage).flatten()
        if self.config.mask_truncated:
            weights *= torch.tensor([float(answer.ended) for answer in answers])
        if self.config.hard_share:
            passed = (rewards.view(-1, K) >= self.rule.full).all(dim=1)
            self._hard.record(step, numbers, of_all_ranks(passed, rank, world_size, model.wte.weight.device))
        totals = AnswerTotals.of(answers, rewards, K, self.rule.full)
        totals.silent = float((weights.view(-1, K) == 0).all(dim=1).sum())  # also if all answers were cut off
        self._last = {
            f"train/{name}": value for name, value in totals.over_ranks(model, world_size).measures(K).items()
        }
        if self.config.hard_share:
            self._last["train/hard_prompts"] = len(hard) / len(numbers)
        chosen = [i for i, weight in enumerate(weights.tolist()) if weight or self.config.kl] or [0]
        rows = [
            (asked[answers[i].prompt].ids, self._decisive(asked[answers[i].prompt], answers[i]), float(weights[i]))
            for i in chosen
        ]
        micro_batches = self._parts(rows, model.wte.weight.device)
        micro_batches[0][4].fill_(len(answers) * self.max_tokens)
        return [*micro_batches, *self._replayed(step, rank, world_size, micro_batches[0][0].device)]

    def _replayed(self, step: int, rank: int, world_size: int, device: torch.device) -> list[Part]:
        if self.replay is None:
            return []
        rows = self.replay.batch(step, rank, world_size)
        answers = self.config.prompts * self.config.samples
        weight = self.config.replay * answers * self.max_tokens / (self.replay.batch_size * self.replay.window)
        micro_batches = []
        for part in rows.split(self.micro_batch_size):
            x, y = part[:, :-1], part[:, 1:]
            places = torch.arange(y.numel())
            tensors = (x, y, torch.full((len(x),), weight), torch.zeros(0), torch.zeros(()), places)
            micro_batches.append(tuple(tensor.to(device) for tensor in tensors))
        return micro_batches

    def _answers(
        self, model: GPT, asked: Sequence[Question], copies: int, seeds: list[int], pause: Callable[[], None]
    ) -> list[Rollout]:
        """Sample `copies` answers to each prompt in `asked`, and return them in the order of the prompts.

        `seeds` has one seed for each prompt. `pause` is called before each token, and may raise an error to stop the sampling.
        """
        with torch.no_grad(), torch.autocast(model.wte.weight.device.type, enabled=False):
            decoder = Decoder(model, 0, DTYPES[self.config.weights])
            return rollouts(
                decoder,
                [question.ids for question in asked],
                copies,
                temperature=self.config.temperature,
                max_tokens=self.max_tokens,
                stop_ids=asked[0].stop_ids,
                seeds=seeds,
                pause=pause,
            )

    def _reward_of(self, question: Question, answer: Rollout, pause: Callable[[], None]) -> float:
        pause()
        return self.rule.reward(question.text, self._text(answer))

    def _decisive(self, question: Question, answer: Rollout) -> Rollout:
        """Return the answer without the tokens after the one that decided its reward.

        The advantage does not depend on the tokens that are left out. The expected value of their gradient is therefore 0, and
        they would only add noise. All tokens are kept if the KL divergence from the initial model is part of the loss.
        """
        characters = None if self.config.kl else self.rule.decided(question.text, self._text(answer))
        if characters is None:
            return answer
        n = bisect_left(range(len(answer.ids)), characters, key=lambda n: len(self.tokenizer.decode(answer.ids[:n])))
        return Rollout(answer.prompt, answer.ids[:n], answer.logprobs[:n], answer.entropies[:n])

    def _text(self, answer: Rollout) -> str:
        return self.tokenizer.decode(answer.ids[:-1] if answer.ended else answer.ids)

    def _parts(self, rows: list[tuple[list[int], Rollout, float]], device: torch.device) -> list[Part]:
        """Group answers of similar length into micro-batches, and pad them on the right.

        Each of `rows` holds the ids of the prompt, the answer, and its advantage.
        """
        ordered = sorted(rows, key=lambda row: -len(row[0]) - len(row[1].ids))
        micro_batches: list[Part] = []
        for start in range(0, len(ordered), self.micro_batch_size):
            group = ordered[start : start + self.micro_batch_size]
            width = len(group[0][0]) + len(group[0][1].ids) - 1
            x = torch.zeros(len(group), width, dtype=torch.int64)
            y, sampled = torch.full_like(x, IGNORE), torch.zeros(x.shape)
            for i, (prompt, answer, _) in enumerate(group):
                ids, first, last = [*prompt, *answer.ids], len(prompt) - 1, len(prompt) + len(answer.ids) - 1
                x[i, :last] = torch.tensor(ids[:-1])
                y[i, first:last] = torch.tensor(answer.ids)
                sampled[i, first:last] = torch.tensor(answer.logprobs)
            weights = torch.tensor([weight for _, _, weight in group])
            places = (y != IGNORE).flatten().nonzero()[:, 0]
            micro_batches.append(tuple(t.to(device) for t in (x, y, weights, sampled, torch.zeros(()), places)))
        return micro_batches

    def count(self, part: Part) -> Tensor:
        """Return the micro-batch's contribution to the denominator of the step's loss.

        The contribution of the first micro-batch of a rank is the rank's number of answers x L (see the docstring of this
        file). The contribution of every other micro-batch is 0.
        """
        return part[4]

    def loss(self, model: GPT, part: Part) -> Tensor:
        """Return the sum of -A log pi over answers and tokens, plus `config.kl` times the KL divergence from the initial model.

        A is the answer's advantage, and pi the probability of a token in softmax(logits / temperature). If training and
        sampling do not both compute in fp32 (`self.is_exact` is false), they may give a token different probabilities. Then A
        is multiplied, for each token, by (probability in training) / (probability in sampling), but at most by
        `config.max_ratio`.

        A micro-batch may contain pretraining text instead of answers (`config.replay`). It then has a constant weight instead
        of advantages. For such a micro-batch, return the summed cross-entropy times this weight. In this case, the logits are
        not divided by the temperature, and no KL divergence is added.
        """
        x, y, weights, sampled, _, _ = part
        if sampled.ndim == 1:
            assert self.replay is not None
            nats: Tensor = model(x, y, document_numbers(x, self.replay.document_start))
            return nats * weights[0]
        total, ratio_gap = answer_losses(model, self.initial, part, self.config, is_exact=self.is_exact)
        if ratio_gap is not None:
            self._ratio_gap = self._ratio_gap + ratio_gap
        return total

    def state(self, step: int) -> dict[str, Any]:
        """Return the indices of the prompts that count as hard after step `step`, or {} if there are none.

        Hard prompts are prompts that the model answered badly when they were last asked. The dict also has a hash
        of all prompts and the number of training prompts, so that `restore` notices when the prompts have changed.
        """
        hard = self._hard.after(step)
        return {"hard": hard, "prompts": self._train_prompts} if hard else {}

    def restore(self, state: dict[str, Any]) -> None:
        """Restore the hard prompts, which the model had answered badly, from a dict that the method `state` returned earlier.

        If the training or validation prompts have changed since then, the dict is ignored, and the hard prompts of this object
        do not change.
        """
        if state.get("prompts") == self._train_prompts:
            self._hard = HardPrompts(state["hard"])

    def step_metrics(self) -> dict[str, float]:
        """Return the metrics of the answers of the last step.

        `train/ratio_gap` is the mean of |ratio - 1|, where ratio is a token's probability in training divided by its
        probability when it was sampled. If `is_exact` is true, there are no ratios, and the CPU does not wait for the device.
        """
        if self.is_exact:
            return self._last
        sums = self._ratio_gap
        if self._world_size > 1:
            torch.distributed.all_reduce(sums)
        total, n_tokens = sums.tolist()
        return {**self._last, "train/ratio_gap": total / n_tokens} if n_tokens else self._last

    def progress(self, metrics: dict[str, float], loss: float) -> str:
        """Return metrics of the last step's answers as text, without the loss, which does not show progress."""
        hard = f" ({metrics['train/hard_prompts']:.0%} hard prompts)" if "train/hard_prompts" in metrics else ""
        return (
            f"reward {metrics['train/reward']:.3f}{hard} · {metrics['train/pass_1']:.0%} full reward · "
            f"{metrics['train/truncated']:.0%} cut off · {metrics['train/answer_tokens']:.0f} tokens per answer"
        )

    def measures(self, model: GPT, rank: int, world_size: int) -> dict[str, float]:
        """Sample answers to the validation prompts, with the same random numbers each time, and return their metrics.

        `val/kl` is the KL divergence from the initial model, in nats per token, in one answer to each prompt.
        """
        K = self.config.val_samples
        asked = self.val_questions[: self.config.val_prompts][rank::world_size]
        totals = AnswerTotals()
        if asked:
            seeds = [_seed(self.seed, 0, rank + i * world_size) for i in range(len(asked))]  # training steps begin at 1
            answers = self._answers(model, asked, K, seeds, lambda: None)
            rewards = torch.tensor(
                [self._reward_of(asked[answer.prompt], answer, lambda: None) for answer in answers], dtype=torch.float64
            )
            totals = AnswerTotals.of(answers, rewards, K, self.rule.full)
            # one answer to each prompt: two forward passes over all answers would take most of the time
            first = answers[::K]
            totals.kl, totals.kl_tokens = self._kl(model, asked, first), sum(len(answer.ids) for answer in first)
            if rank == 0:
                self._show(asked, answers, rewards, K)
        totals = totals.over_ranks(model, world_size)
        return {
            **{f"val/{name}": value for name, value in totals.measures(K).items()},
            "val/kl": totals.kl / totals.kl_tokens,
        }

    @torch.no_grad()
    def _kl(self, model: GPT, asked: Sequence[Question], answers: list[Rollout]) -> float:
        """Return KL(model || initial model) over the vocabulary, in nats, summed over all tokens of `answers`.

        The probabilities of both models are those at the sampling temperature. `asked`: the prompts that were answered. Each
        answer has the index of its prompt in `asked`.
        """
        rows = [(asked[answer.prompt].ids, answer, 0.0) for answer in answers]
        total = 0.0
        for x, *_, places in self._parts(rows, model.wte.weight.device):
            logits, initial = (_logits(each, x, places, self.config) for each in (model, self.initial.to(x.device)))
            total += float(exact_kl(logits, initial).sum())
        return total

    def _show(self, asked: Sequence[Question], answers: list[Rollout], rewards: Tensor, copies: int) -> None:
        for i in range(0, min(len(answers), SHOWN_ANSWERS * copies), copies):
            text = printable(" ".join(self._text(answers[i]).split())[:160])
            logger.info(f"reward {float(rewards[i]):.2f} for {asked[answers[i].prompt].text[:60]!r}: {text}")

    def target_counts(self, vocab_size: int) -> np.ndarray:
        """Return how often each token id is a target in the validation text, as an array (vocab_size,)."""
        return np.bincount(self.text.y[self.text.y != IGNORE], minlength=vocab_size)

    def sample_prompt(self, asked: str | None) -> Prompt:
        """Return the first validation prompt; `asked` is not used."""
        first = self.val_questions[0]
        return Prompt(f"{first.text}\n\n", first.ids, list(first.stop_ids))


def answer_losses(
    model: GPT, initial: GPT, part: Part, config: ReinforceConfig, *, is_exact: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the loss of a micro-batch of answers (see `ReinforceObjective.loss`), and two numbers (2,) about their ratios.

    The ratio of a token is (probability in training) / (probability in sampling). The two numbers are the sum of |ratio - 1|
    over all tokens, and the number of tokens. If `is_exact` is true, the ratios are not computed, and None stands in place of
    the numbers. `initial`: the model before the training.
    """
    x, y, weights, sampled, _, places = part
    logits, ratio_gap = _logits(model, x, places, config), None
    nll = F.cross_entropy(logits.to(wide(logits.dtype)), y.flatten()[places], reduction="none")
    advantage = weights.repeat_interleave(x.shape[1])[places]
    if not is_exact:
        ratio = (-nll.detach() - sampled.flatten()[places]).exp()
        ratio_gap = torch.stack([(ratio - 1).abs().sum(), ratio.new_tensor(ratio.numel())])
        advantage = advantage * ratio.clamp(max=config.max_ratio)
    total = (nll * advantage).sum()
    if config.kl:
        with torch.no_grad():
            initial_logits = _logits(initial.to(x.device), x, places, config)
        total = total + config.kl * exact_kl(logits, initial_logits).sum()
    return total, ratio_gap


def _logits(model: GPT, x: Tensor, places: Tensor, config: ReinforceConfig) -> Tensor:
    """Compute the logits (N, V) at N of the positions in `x` (B, T), divided by the sampling temperature.

    `places` (N,): the indices of the positions in the flattened `x`.
    """
    return model.logits(model.hidden(x).flatten(0, 1)[places]) / config.temperature


def trial_loss(model: GPT, idx: Tensor, *, initial: Callable[[], GPT], config: ReinforceConfig) -> Tensor:
    """Return the loss of rows of token ids (B, T) that end with the longest answers, `config.max_tokens` tokens.

    It needs as much memory as the loss of sampled answers. `initial` returns the model before the training, which also is on
    the device from now on, as it is for the validations.
    """
    B, T = idx.shape
    places = torch.arange(idx.numel(), device=idx.device).view(B, T)[:, -config.max_tokens :].flatten()
    weights, sampled = torch.ones(B, device=idx.device), torch.zeros(B, T, device=idx.device)
    part = (idx, idx, weights, sampled, torch.zeros(()), places)
    return answer_losses(model, initial().to(idx.device), part, config, is_exact=False)[0]
