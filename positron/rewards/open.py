"""Make the reward that is chosen in the settings `reward.*`, and check that the prompts have the form that it needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, assert_never

from positron import stories
from positron.config import RewardConfig, RewardTerm
from positron.rewards.addition import addends, addition
from positron.rewards.checking import checked, excerpt
from positron.rewards.reward import Decided, Reward
from positron.rewards.story_request import story_error, story_request
from positron.rewards.text_shape import length_reward, regex_reward
from positron.system.errors import UserError
from positron.system.imports import load_object

FUNCTION_KEY = "reward.function"


@dataclass(frozen=True)
class Term:
    """Hold one reward of a weighted sum.

    `reward` raises UserError for any error of the user's function (see `checked`).

    `decided` is a function of a prompt and a completion. It returns an integer n if the first n characters of the completion
    already determine the reward, and None if further text could still change the reward. `decided` itself is None if the reward
    always depends on the whole completion.
    """

    name: str
    weight: float
    reward: Reward
    decided: Decided | None = None


@dataclass(frozen=True)
class WeightedSum:
    """Hold the reward of a reinforcement-learning run: a weighted sum of one or several rewards, which is itself a reward."""

    terms: tuple[Term, ...]

    def __call__(self, prompt: str, completion: str) -> float:
        """Return the weighted sum. Raises UserError if one of the rewards fails (see `checked`)."""
        return sum(term.weight * term.reward(prompt, completion) for term in self.terms)

    def decided(self, prompt: str, completion: str) -> int | None:
        """Return the number n such that the first n characters of the completion already determine the weighted sum.

        Returns None if further text could still change the weighted sum.
        """
        characters = []
        for term in self.terms:
            if term.decided is None or (decided := term.decided(prompt, completion)) is None:
                return None
            characters.append(decided)
        return max(characters)


def open_reward(config: RewardConfig, prompts: Iterable[str]) -> WeightedSum:
    """Make the reward that the settings `config` choose, for a run whose prompts are `prompts`.

    Raises UserError if the user's function cannot be imported, or if a built-in reward cannot read one of the prompts.
    """
    terms = tuple(_term(term, config.max_seconds) for term in config.summands)
    readers = [(term.kind, reads) for term in config.summands if (reads := _reader(term)) is not None]
    for prompt in prompts if readers else ():
        for kind, reads in readers:
            if not reads(prompt):
                raise UserError(_unreadable(kind, prompt))
    return WeightedSum(terms)


def _term(term: RewardTerm, max_seconds: float) -> Term:
    name, reward = _named_reward(term)
    return Term(name, term.weight, checked(reward, name, max_seconds), _decided(term))


def _named_reward(term: RewardTerm) -> tuple[str, Callable[[str, str], Any]]:
    match term.kind:
        case "story_request":
            return term.kind, story_request
        case "length":
            assert term.target is not None
            return term.kind, length_reward(term.target)
        case "regex":
            assert term.pattern is not None
            return term.kind, regex_reward(term.pattern)
        case "addition":
            return term.kind, addition
        case "custom":
            assert term.function is not None
            return term.function, _function(term.function)
        case _:
            assert_never(term.kind)


def _decided(term: RewardTerm) -> Decided | None:
    match term.kind:
        case "story_request":
            return story_error
        case "length" | "regex" | "addition" | "custom":
            return None
        case _:
            assert_never(term.kind)


def _function(name: str) -> Callable[[str, str], Any]:
    function = load_object(name, FUNCTION_KEY)
    if not callable(function):
        raise UserError(
            f"{FUNCTION_KEY}={name} is of type {type(function).__name__}: name a function of prompt and completion that "
            "returns a number"
        )
    reward: Callable[[str, str], Any] = function
    return reward


def _reader(term: RewardTerm) -> Callable[[str], object] | None:
    """Return a function that returns a falsy value for prompts that the reward cannot read.

    Returns None if the reward can read every prompt.
    """
    match term.kind:
        case "story_request":
            return stories.read_request
        case "addition":
            return addends
        case "length" | "regex" | "custom":
            return None
        case _:
            assert_never(term.kind)


def _unreadable(kind: str, prompt: str) -> str:
    readable_prompt = {
        "story_request": "a request for a built-in story: give data=story_instruct",
        "addition": "a sum, such as '12+34=' or 'What is 12 + 34?': give data=addition",
    }[kind]
    return f"reward={kind} cannot read the prompt {excerpt(prompt)}, because it is not {readable_prompt}, or another reward="
