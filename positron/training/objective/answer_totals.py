"""Add up the rewards and other measures of sampled answers, and compute their metrics."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from positron.inference.rollouts import Rollout
from positron.model.gpt import GPT


@dataclass
class AnswerTotals:
    """Hold sums over answers and over prompts, from which the metrics are computed. The sums of several ranks can be added.

    `answers` and `prompts` are the numbers of answers and prompts. An answer passes if its reward is at least a given number,
    the argument `full_reward` of the method `of`. `passed` is the number of answers that pass. `reward` and `tokens` are sums
    over the answers. Comments explain the other fields.
    """

    answers: float = 0.0
    reward: float = 0.0
    squares: float = 0.0  # sum of the squared mean rewards of the prompts
    passed: float = 0.0
    truncated: float = 0.0  # number of answers that the limit of tokens cut off
    tokens: float = 0.0
    entropy: float = 0.0  # sum over all tokens, in nats
    kl: float = 0.0  # KL divergence in nats, summed over the tokens of one answer to each prompt; only in validations
    kl_tokens: float = 0.0  # number of these tokens
    prompts: float = 0.0
    passed_prompts: float = 0.0  # number of prompts for which at least one answer passed
    distinct: float = 0.0  # sum over the prompts of (number of different answers / number of answers)
    silent: float = 0.0  # number of prompts whose answers all have the same reward or, in training, no advantage

    @classmethod
    def of(cls, answers: list[Rollout], rewards: Tensor, copies: int, full_reward: float) -> AnswerTotals:
        """Compute the sums for N answers and their rewards (N,), which should be float64.

        In fp32, the variance of rewards such as 1000.1 and 999.9 would be lost in the sum of their squares.

        `copies`: the number of answers to each prompt. The answers to a prompt follow each other in `answers`. `full_reward`:
        an answer with at least this reward has passed. The fields `kl` and `kl_tokens` of the result are 0; in a validation,
        the caller sets them afterwards, because the KL divergence needs forward passes of the model.
        """
        passed = (rewards >= full_reward).view(-1, copies)
        by_prompt = rewards.view(-1, copies)
        groups = [answers[i : i + copies] for i in range(0, len(answers), copies)]
        return cls(
            answers=len(answers),
            reward=float(rewards.sum()),
            squares=float((by_prompt.mean(dim=1) ** 2).sum()),
            passed=float(passed.sum()),
            truncated=sum(not answer.ended for answer in answers),
            tokens=sum(len(answer.ids) for answer in answers),
            entropy=sum(sum(answer.entropies) for answer in answers),
            prompts=len(groups),
            passed_prompts=float(passed.any(dim=1).sum()),
            distinct=sum(len({tuple(answer.ids) for answer in group}) / copies for group in groups),
            silent=float((by_prompt == by_prompt[:, :1]).all(dim=1).sum()),
        )

    def over_ranks(self, model: GPT, world_size: int) -> AnswerTotals:
        """Return the sums over the answers of all `world_size` ranks, which are exchanged on the device of `model`."""
        if world_size == 1:  # the calling program may have connected processes that train other runs
            return self
        values = torch.tensor(list(vars(self).values()), dtype=torch.float64, device=model.wte.weight.device)
        torch.distributed.all_reduce(values)
        return AnswerTotals(*values.tolist())

    def measures(self, copies: int) -> dict[str, float]:
        """Return the mean reward, its standard error, the tokens per answer, the entropy in nats per token, and five shares.

        The shares, from 0 to 1: answers that passed (`pass_1`), prompts with at least one answer that passed (`pass_8` if each
        prompt has `copies` = 8 answers), answers that the limit of tokens cut off (`truncated`), different answers among all
        answers to a prompt (`distinct`), and prompts from whose answers nothing can be learned (`silent_prompts`).
        """
        mean = self.reward / self.answers
        variance = max(0.0, self.squares / self.prompts - mean**2)
        return {
            "reward": mean,
            # over the prompts, because the answers to one prompt are not independent; the variance was divided by n
            "reward_se": math.sqrt(variance / max(1.0, self.prompts - 1)),
            "pass_1": self.passed / self.answers,
            f"pass_{copies}": self.passed_prompts / self.prompts,
            "truncated": self.truncated / self.answers,
            "answer_tokens": self.tokens / self.answers,
            "entropy": self.entropy / self.tokens,
            "distinct": self.distinct / self.prompts,
            "silent_prompts": self.silent / self.prompts,
        }
