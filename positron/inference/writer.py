"""A trained model in three lines: `from positron import load; model = load("outputs/x"); print(model.generate("To be"))`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch

from positron.config import UserError
from positron.inference.engine import Engine
from positron.inference.sampling import BALANCED, Sampling
from positron.inference.speculative import SpeculativeEngine
from positron.model.gpt import GPT
from positron.text.tokenizer import END_OF_TEXT, Tokenizer

WEIGHTS = {"fp32": None, "bf16": torch.bfloat16, "int8": torch.int8}  # None: as the model has them


class Writer:
    """A model with its tokenizer. Settings are the fields of `Sampling`, by name; UserError for others."""

    def __init__(
        self,
        model: GPT,
        tokenizer: Tokenizer,
        say: Callable[[str], None] = lambda line: None,
        weights: str = "fp32",
        draft: GPT | None = None,
    ) -> None:
        """`weights`: fp32, or bf16 or int8, of which a token reads half or a quarter of the bytes: now and then other words.

        `draft`: a smaller model with the same tokenizer that proposes tokens; the words are still the model's own.
        """
        if weights not in WEIGHTS:
            raise UserError(f"there are no weights {weights}: choose from {', '.join(WEIGHTS)}")
        self.model, self.tokenizer, self.say, self.dtype = model, tokenizer, say, WEIGHTS[weights]
        self.draft = draft
        self._engines: dict[int, Engine] = {}

    def generate(self, prompt: str, *, max_tokens: int = 200, seed: int = 0, **settings: Any) -> str:
        """The prompt and what the model writes after it."""
        return prompt + "".join(self.stream(prompt, max_tokens=max_tokens, seed=seed, **settings))

    def stream(
        self, prompt: str, *, max_tokens: int = 200, seed: int = 0, stop: tuple[str, ...] = (), **settings: Any
    ) -> Iterator[str]:
        """What the model writes after the prompt, in pieces of whole characters."""
        sampling = sampling_of(settings)
        return self.engine().stream(self.ids(prompt), sampling, max_tokens=max_tokens, seed=seed, stop=stop)

    def samples(self, prompts: list[str], *, max_tokens: int = 200, seed: int = 0, **settings: Any) -> list[str]:
        """Each prompt with its continuation, all at once; text i is that of `generate` with seed + i."""
        new = self.engine(len(prompts)).texts(
            [self.ids(prompt) for prompt in prompts], sampling_of(settings), max_tokens=max_tokens, seed=seed
        )
        return [prompt + text for prompt, text in zip(prompts, new, strict=True)]

    def ids(self, prompt: str) -> list[int]:
        """The prompt as the beginning of a document. UserError where it does not fit the context."""
        ids = [self.tokenizer.special_id(END_OF_TEXT), *self.tokenizer.encode(prompt)]
        limit = self.model.config.context_length
        if len(ids) > limit:
            raise UserError(
                f"the prompt has {len(ids) - 1} tokens, but the model reads {limit - 1}: give a shorter one"
            )
        return ids

    def engine(self, batch: int = 1) -> Engine:
        if self.draft is not None and batch > 1:
            raise UserError(f"a draft helps to write one text at a time, not {batch}: leave it out")
        if batch not in self._engines:
            options: dict[str, Any] = {"dtype": self.dtype, "say": self.say}
            if self.draft is not None:
                self._engines = {batch: SpeculativeEngine(self.model, self.tokenizer, self.draft, **options)}
            else:
                self._engines = {batch: Engine(self.model, self.tokenizer, batch=batch, **options)}
        return self._engines[batch]


def sampling_of(settings: dict[str, Any]) -> Sampling:
    known = [field.name for field in dataclasses.fields(Sampling)]
    for name in settings:
        if name not in known:
            raise UserError(f"there is no setting {name}: choose from {', '.join(known)}")
    return dataclasses.replace(BALANCED, **settings)
