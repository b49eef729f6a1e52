"""Store a conversation with a model, and the settings with which the model generates its answers.

If the conversation is longer than the context, the model does not read the oldest turns.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Generator
from typing import Any

from positron.inference.arguments import LARGEST_SEED, seed_of, shown, text_of, unknown, whole_number
from positron.inference.sampling import PRESETS, Sampling, preset
from positron.inference.text_model import Writer
from positron.system.commands import command
from positron.system.errors import UserError
from positron.text import conversation
from positron.text.conversation import Message
from positron.text.tokenizer import END_OF_TEXT

logger = logging.getLogger(__name__)

VERSION = 1  # the version of the format of saved conversations
SETTINGS = ("preset", *(field.name for field in dataclasses.fields(Sampling)), "max_tokens", "seed")
_WHOLE = ("top_k", "last_n", "seed", "max_tokens")
_OPTIONAL = ("top_k", "top_p", "min_p", "max_tokens")


@dataclasses.dataclass
class Dialogue:
    """Hold a conversation and continue it.

    `chats`: true if the model was fine-tuned on conversations. If it is false, each question is the beginning of a text that
    the model continues, without reading the earlier messages. `max_tokens`: the largest number of tokens in an answer. If it is
    None, an answer continues until it ends by itself or the context is full. `saved`: the messages when they were last saved or
    loaded. `cut`: why the last answer stopped before it ended by itself, or None.
    """

    writer: Writer
    chats: bool
    sampling: Sampling = PRESETS["precise"]
    max_tokens: int | None = None
    seed: int = 0
    messages: list[Message] = dataclasses.field(default_factory=list)
    saved: list[Message] = dataclasses.field(default_factory=list)  # the messages when they were last saved or loaded
    cut: str | None = None  # why the last answer stopped before it ended by itself; None if it was not cut

    def __post_init__(self) -> None:
        seed_of(self.seed)
        if self.max_tokens is not None:
            whole_number("max_tokens", self.max_tokens, minimum=1)

    def ask(self, text: str) -> Generator[str, None, None]:
        """Yield the answer to `text` while it is generated, and append question and answer to the messages.

        After Ctrl-C or an error, the part of the answer that was already yielded is appended. But if an error occurs before the
        first part, the question is removed, so that it can be asked again. All messages stay in the conversation; if some do
        not fit the context, a log line says which of them the model does not read.
        """
        question = Message("user", text_of("the question", text))
        engine, tokenizer = self.writer.engine(), self.writer.tokenizer
        if self.chats:
            ids, stops = self._prompt([*self.messages, question]), conversation.stop_ids(tokenizer)
        else:
            stops = list(tokenizer.end_ids)
            ids = [tokenizer.special_id(END_OF_TEXT), *tokenizer.encode(text)]
            if len(ids) > engine.context - 1:
                ids = ids[-max(1, engine.context * 3 // 4) :]
                logger.info(
                    f"the text is longer than the context: the model reads only the last {len(ids)} tokens of the text"
                )
        max_tokens = max(1, engine.context - len(ids)) if self.max_tokens is None else self.max_tokens
        turn = 1 + sum(message.role != "system" for message in self.messages)
        self.messages.append(question)
        pieces: list[str] = []
        self.cut = None
        failed = True
        try:
            answer = engine.stream(ids, self.sampling, max_tokens=max_tokens, seed=self._seed(turn), stop_ids=stops)
            for piece in answer:
                pieces.append(piece)
                yield piece
            failed = False
            if not answer.ended:
                is_full = self.max_tokens is None
                self.cut = (
                    f"the context of {engine.context} tokens is full" if is_full else f"cut after {max_tokens} tokens"
                )
        except (KeyboardInterrupt, GeneratorExit):
            failed = False
            raise
        finally:
            if failed and not pieces:  # an error before the answer began: the user can ask the question again
                self.messages.pop()
            else:
                self.messages.append(Message("assistant", "".join(pieces)))

    def _seed(self, turn: int) -> int:
        seed = self.seed + turn
        return seed if seed <= LARGEST_SEED else seed - LARGEST_SEED - 1

    def _prompt(self, messages: list[Message]) -> list[int]:
        """Return the ids of the conversation, without its oldest turns if it does not fit the context.

        If the last question alone is too long, only its end is kept. A log line says what was left out.
        """
        tokenizer, context = self.writer.tokenizer, self.writer.context
        read, dropped = conversation.fit(messages, tokenizer, context, self.max_tokens)
        if dropped:
            turns = "turn no longer fits" if dropped == 1 else f"{dropped} turns no longer fit"
            logger.info(f"the oldest {turns} the context: the model does not read {'it' if dropped == 1 else 'them'}")
        if read[-1] != messages[-1]:
            logger.info("the question is too long for the context: the model reads only its end")
        if messages[0].role == "system" and read[0].role != "system":
            logger.info("the system prompt is too long for the context: the model does not read it")
        return conversation.prompt_ids(read, tokenizer)

    @property
    def is_saved(self) -> bool:
        """Tell whether all messages were saved. The result is also True if there is no message except a system prompt."""
        return self.messages == self.saved or all(message.role == "system" for message in self.messages)

    @property
    def system(self) -> str | None:
        """Return the system prompt, or None. Setting it raises UserError if the model was not fine-tuned on conversations."""
        first = self.messages[:1]
        return first[0].content if first and first[0].role == "system" else None

    @system.setter
    def system(self, text: str | None) -> None:
        if not self.chats:
            raise UserError(
                "a system prompt needs a run that was fine-tuned on conversations: leave the system prompt out, or chat with a "
                f"run that {command('sft')} made"
            )
        rest = [message for message in self.messages if message.role != "system"]
        self.messages = [Message("system", text_of("the system prompt", text)), *rest] if text else rest

    def reset(self) -> None:
        """Remove all messages except the system prompt."""
        self.messages = [message for message in self.messages if message.role == "system"]

    def change(self, name: str, value: str) -> None:
        """Set the setting `name` to the value that a user typed.

        Raises UserError for an unknown name or an invalid value.
        """
        if name not in SETTINGS:
            raise unknown("setting", name, SETTINGS)
        if name == "preset":
            self.sampling = preset(value)
            return
        number: float | None
        if value.lower() in ("none", "off") and name in _OPTIONAL:
            number = None
        else:
            kind = int if name in _WHOLE else float
            try:
                number = kind(value)
            except ValueError:
                noun = "a whole number" if kind is int else "a number"
                or_none = " or none" if name in _OPTIONAL else ""
                raise UserError(f"{name} must be {noun}{or_none}, not {shown(value)[1:-1]}") from None
        self._set(name, number)

    def _set(self, name: str, number: float | None) -> None:
        if name == "max_tokens":
            self.max_tokens = None if number is None else whole_number(name, number, minimum=1)
        elif name == "seed":
            self.seed = seed_of(number)
        else:
            self.sampling = dataclasses.replace(self.sampling, **{name: number})  # type: ignore[arg-type]

    def settings(self) -> dict[str, Any]:
        """Return the values of all settings by their names, for display."""
        name = next((name for name, sampling in PRESETS.items() if sampling == self.sampling), "your own")
        limit = "none (until the context is full)" if self.max_tokens is None else self.max_tokens
        # `none` is also what a user types to turn a setting off
        values = {key: "none" if value is None else value for key, value in dataclasses.asdict(self.sampling).items()}
        return {"preset": name, **values, "max_tokens": limit, "seed": self.seed}

    def state(self) -> dict[str, Any]:
        """Return settings and messages in a form that can be written to a JSON file and read by `restore`."""
        settings = {**dataclasses.asdict(self.sampling), "max_tokens": self.max_tokens, "seed": self.seed}
        messages = [dataclasses.asdict(message) for message in self.messages]
        return {"version": VERSION, "settings": settings, "messages": messages}

    def restore(self, state: Any, source: str) -> None:
        """Restore settings and messages from `state`, the content of the file `source`.

        Raises UserError if the content is not valid (the message names the first wrong field), or if it has a system prompt and
        the model was not fine-tuned on conversations. In both cases the dialogue does not change.
        """
        version = state.get("version") if isinstance(state, dict) else None
        if type(version) is int and version > VERSION:
            raise UserError(
                f"cannot load {source}: a newer Positron saved it (its version is {version}, but this Positron reads only "
                f"version {VERSION}); update Positron"
            )
        try:
            settings = _group(state, "the file", ("version", "settings", "messages"))["settings"]
            if type(state["version"]) is not int or state["version"] != VERSION:
                raise UserError(
                    f"its version is {shown(state['version'])}, but this Positron reads only version {VERSION}"
                )
            _group(settings, "settings", ("max_tokens",))
            for name, value in settings.items():
                if name not in SETTINGS or name == "preset":
                    raise UserError(f"settings has the unknown key {shown(name)} (known: {', '.join(SETTINGS[1:])})")
                if value is None and name not in _OPTIONAL:
                    raise UserError(f"settings: {name} must not be null")
            values = dict(settings)
            max_tokens, seed = values.pop("max_tokens"), seed_of(values.pop("seed", self.seed))
            if max_tokens is not None:
                max_tokens = whole_number("max_tokens", max_tokens, minimum=1)
            sampling, messages = Sampling(**values), _messages(state["messages"])
        except UserError as error:
            raise UserError(
                f"cannot load {source}: {error}; correct the file, or load another file that /save wrote"
            ) from error
        if not self.chats and any(message.role == "system" for message in messages):
            raise UserError(
                f"cannot load {source}: the file has a system prompt, and this run was not fine-tuned on conversations; load "
                f"the file in a chat with a run that {command('sft')} made"
            )
        self.sampling, self.max_tokens, self.seed = sampling, max_tokens, seed
        self.messages, self.saved = messages, list(messages)


def _group(value: Any, label: str, keys: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{label} must be a JSON object, not {shown(value)}")
    for key in keys:
        if key not in value:
            raise UserError(f"{label} has no {key}")
    return value


def _messages(values: Any) -> list[Message]:
    if not isinstance(values, list):
        raise UserError(f"messages must be a list, not {shown(values)}")
    messages = []
    for i, value in enumerate(values):
        fields = _group(value, f"messages[{i}]", ("role", "content"))
        role = fields["role"]
        if not isinstance(role, str) or role not in conversation.ROLES:
            raise UserError(f"messages[{i}]: role must be one of {', '.join(conversation.ROLES)}, not {shown(role)}")
        if role == "system" and i:
            raise UserError(f"messages[{i}]: a system message must be the first one")
        messages.append(Message(role, text_of(f"messages[{i}]: content", fields["content"])))
    return messages
