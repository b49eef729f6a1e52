"""A conversation with a model: its messages, its settings, and what is left out when it grows too long."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from positron.config import UserError
from positron.inference.sampling import PRESETS, Sampling, preset
from positron.inference.writer import Writer, sampling_of
from positron.text import conversation
from positron.text.conversation import Message
from positron.text.tokenizer import END_OF_TEXT

SHORTEST_ANSWER = 4  # of the context, a quarter is kept free for the answer at least


@dataclasses.dataclass
class Dialogue:
    """`chats`: fine-tuned on conversations; otherwise each line is the beginning of a text that is gone on with."""

    writer: Writer
    chats: bool
    sampling: Sampling = PRESETS["precise"]
    max_tokens: int = 200
    seed: int = 0
    messages: list[Message] = dataclasses.field(default_factory=list)

    def ask(self, text: str, say: Callable[[str], None]) -> Iterator[str]:
        """The answer in pieces of whole characters. What was said up to a Ctrl-C (or to the last piece taken) stays."""
        engine, tokenizer = self.writer.engine(), self.writer.tokenizer
        self.messages.append(Message("user", text))
        if self.chats:
            room = engine.context - min(self.max_tokens, engine.context * (SHORTEST_ANSWER - 1) // SHORTEST_ANSWER)
            self.messages, lost = conversation.fit(self.messages, tokenizer, max(8, room))
            if lost:
                turns = "turn no longer fits" if lost == 1 else f"{lost} turns no longer fit"
                say(f"the oldest {turns} the context, and this answer is given without")
            ids, stops = conversation.prompt(self.messages, tokenizer), conversation.stop_ids(tokenizer)
        else:
            stops = [tokenizer.special_id(END_OF_TEXT)]
            ids = [*stops, *tokenizer.encode(text)][-engine.context :]
        said: list[str] = []
        try:
            seed = self.seed + len(self.messages)
            for piece in engine.stream(ids, self.sampling, max_tokens=self.max_tokens, seed=seed, stop_ids=stops):
                said.append(piece)
                yield piece
        finally:
            self.messages.append(Message("assistant", "".join(said)))

    @property
    def system(self) -> str | None:
        first = self.messages[:1]
        return first[0].content if first and first[0].role == "system" else None

    @system.setter
    def system(self, text: str | None) -> None:
        rest = [message for message in self.messages if message.role != "system"]
        self.messages = [Message("system", text), *rest] if text else rest

    def reset(self) -> None:
        self.messages = [message for message in self.messages if message.role == "system"]

    def change(self, name: str, value: str) -> None:
        """One setting, from what a user typed. UserError where there is none of that name, or the value is none for it."""
        if name == "preset":
            self.sampling = preset(value)
            return
        kinds: dict[str, Any] = {"max_tokens": int, "seed": int, "top_k": int, "last_n": int}
        if value.lower() in ("none", "off") and name in ("top_k", "top_p", "min_p"):
            number = None
        else:
            try:
                number = kinds.get(name, float)(value)
            except ValueError as error:
                raise UserError(f"{name} {value} is no number") from error
        if name == "max_tokens":
            if number is None or number < 1:
                raise UserError(f"max_tokens {value} must be at least 1")
            self.max_tokens = int(number)
        elif name == "seed":
            self.seed = int(number or 0)
        else:
            settings = dataclasses.asdict(self.sampling)
            sampling_of({name: number})  # says which names there are
            self.sampling = Sampling(**{**settings, name: number})

    def settings(self) -> dict[str, Any]:
        name = next((name for name, sampling in PRESETS.items() if sampling == self.sampling), "your own")
        return {"preset": name, **dataclasses.asdict(self.sampling), "max_tokens": self.max_tokens, "seed": self.seed}

    def state(self) -> dict[str, Any]:
        """What `save` writes."""
        messages = [dataclasses.asdict(message) for message in self.messages]
        return {
            "version": 1,
            "settings": {**dataclasses.asdict(self.sampling), "max_tokens": self.max_tokens},
            "messages": messages,
        }

    def restore(self, state: Any, where: str) -> None:
        """From what `save` wrote. UserError for anything else; nothing is changed then."""
        try:
            settings = dict(state["settings"])
            max_tokens = int(settings.pop("max_tokens"))
            sampling = Sampling(**settings)
            messages = [Message(str(m["role"]), str(m["content"])) for m in state["messages"]]
            if any(m.role not in conversation.ROLES for m in messages):
                raise ValueError("a message has no known role")
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{where} is no saved chat: {error}") from error
        self.sampling, self.max_tokens, self.messages = sampling, max_tokens, messages
