"""Generate text with a trained model: `from positron import load; print(load("outputs/x").generate("To be"))`."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterable
from typing import Any

import torch

from positron.inference.arguments import shown, text_of, texts_of, unknown, weights_of
from positron.inference.engine import Engine
from positron.inference.sampling import BALANCED, Sampling
from positron.inference.speculative import SpeculativeEngine
from positron.inference.writing import Stream
from positron.model.ensemble import Ensemble, context_of
from positron.model.gpt import GPT
from positron.system.errors import UserError
from positron.text.tokenizer import END_OF_TEXT, Tokenizer

DTYPES = {"fp32": None, "bf16": torch.bfloat16, "int8": torch.int8}  # None: the number format of the model
OWN_SETTINGS = ("max_tokens", "seed", "stop")  # settings of `generate` that are not fields of `Sampling`


class Writer:
    """Generate text with a model, or an ensemble of models, and its tokenizer.

    `**settings` of the methods are fields of `Sampling`; other names raise UserError. Any number of texts can be generated at
    the same time, in one or several threads; with a draft model, however, each call can generate only one text. Each text is
    the same as if it were generated alone, up to rounding of the logits, which seldom changes a token.
    """

    def __init__(
        self,
        model: GPT | Ensemble,
        tokenizer: Tokenizer,
        weights: str = "fp32",
        draft: GPT | None = None,
    ) -> None:
        """Keep the model; its weights are packed for fast decoding when the first text is generated.

        `weights`: the number format of the packed weights. With "fp32", they have the format of the model's weights. bf16 and
        int8 are faster on a CPU than fp32 and may change some tokens. `draft`: a smaller model with the same tokenizer for
        speculative decoding, in which it proposes tokens that the model checks; it does not change the distribution of the
        text. Raises UserError for an unknown number format.
        """
        self.model, self.tokenizer, self.dtype = model, tokenizer, DTYPES[weights_of(weights)]
        self.draft = draft
        self._engine: Engine | None = None
        self._packing = threading.Lock()

    @property
    def context(self) -> int:
        """Return the context length: the maximum number of tokens that the model reads at once."""
        return context_of(self.model)

    def generate(
        self,
        prompt: str,
        *,
        max_tokens: int = 200,
        seed: int = 0,
        stop: str | Iterable[str] = (),
        **settings: Any,
    ) -> str:
        """Return the prompt and its continuation; the continuation is the text that `stream` yields."""
        return prompt + "".join(self.stream(prompt, max_tokens=max_tokens, seed=seed, stop=stop, **settings))

    def stream(
        self,
        prompt: str,
        *,
        max_tokens: int = 200,
        seed: int = 0,
        stop: str | Iterable[str] = (),
        **settings: Any,
    ) -> Stream:
        """Return an iterator over the continuation of the prompt, which yields strings while the text is generated.

        The prompt is not part of the continuation. The text ends at the end of a document, after `max_tokens` tokens, or before
        the first of the `stop` strings. `stop` is one string or a list of strings.
        """
        sampling, ids = sampling_from(settings), self.ids(prompt)
        return self.engine().stream(ids, sampling, max_tokens=max_tokens, seed=seed, stop=stop)

    def samples(
        self,
        prompts: Iterable[str],
        *,
        max_tokens: int = 200,
        seed: int = 0,
        stop: str | Iterable[str] = (),
        **settings: Any,
    ) -> list[str]:
        """Return each prompt with its continuation; all texts are generated at the same time.

        Text i is the one that `generate` returns for prompt i with the seed `seed + i`, up to rounding (see `Writer`). Raises
        UserError if there are several prompts and the writer has a draft model.
        """
        beginnings, sampling = texts_of("prompts", prompts), sampling_from(settings)
        ids = [self.ids(prompt, f"prompts[{i}]") for i, prompt in enumerate(beginnings)]
        new = self.engine().texts(ids, sampling, max_tokens=max_tokens, seed=seed, stop=stop)
        return [prompt + text for prompt, text in zip(beginnings, new, strict=True)]

    def ids(self, prompt: str, name: str = "the prompt") -> list[int]:
        """Return the token ids of the prompt, preceded by the id of the end-of-text token, which begins each document.

        `name` is the name of the prompt in error messages. Raises UserError if the ids do not fit the context, or if the prompt
        is not a str that can be encoded as UTF-8.
        """
        ids = [self.tokenizer.special_id(END_OF_TEXT), *self.tokenizer.encode(text_of("prompt", prompt))]
        limit = self.context
        if len(ids) > limit:
            raise UserError(
                f"{name} has {len(ids) - 1} tokens, but the model reads at most {limit - 1}: give a shorter prompt"
            )
        return ids

    def engine(self) -> Engine:
        """Return the engine that generates the texts; the first call creates it and packs the weights."""
        with self._packing:
            if self._engine is None:
                if self.draft is not None:
                    self._engine = SpeculativeEngine(self.model, self.tokenizer, self.draft, dtype=self.dtype)
                else:
                    self._engine = Engine(self.model, self.tokenizer, dtype=self.dtype)
            return self._engine


def sampling_from(settings: dict[str, Any]) -> Sampling:
    """Return the preset `balanced`, changed by `settings`; raises UserError for an unknown name or an invalid value."""
    known = [field.name for field in dataclasses.fields(Sampling)]
    for name in settings:
        if name not in known:
            raise unknown("setting", shown(name)[1:-1], [*known, *OWN_SETTINGS])
    return dataclasses.replace(BALANCED, **settings)
