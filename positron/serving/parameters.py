"""Convert the JSON object of an API request to token ids and settings. Every error names the parameter at fault."""

from __future__ import annotations

import dataclasses
import difflib
import secrets
from collections.abc import Callable
from typing import Any

from positron.inference.arguments import real_number, seed_of, shown, stops_of, text_of, whole_number
from positron.inference.sampling import BALANCED, PRESETS, Sampling
from positron.inference.sessions import Request
from positron.serving.errors import ApiError
from positron.serving.models import Served
from positron.system.commands import command
from positron.system.errors import UserError
from positron.text import conversation
from positron.text.conversation import Message
from positron.text.tokenizer import END_OF_TEXT

MAX_TEXTS = 64  # number of texts of one request: prompts times n
MAX_NEW_TOKENS = 32_768
MAX_LOGPROBS = 20
MAX_STOPS = 16
# Maximum length of one stop string. After each token, the end of the text is compared with all beginnings of the stop strings.
MAX_STOP_CHARACTERS = 1000
COMPLETION_TOKENS = 16  # OpenAI's default of max_tokens for completions

# These parameters are ignored. They concern the user, billing, storage and caching, and tools, which this server does not have.
_IGNORED = {
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "parallel_tool_calls",
}
# Parameters that this server does not implement, and the values that it accepts because they have no effect.
_WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
    "logit_bias": (None, {}),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "best_of": (None, 1),
    "suffix": (None, ""),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "prediction": (None,),
    "reasoning_effort": (None, "none"),
    "web_search_options": (None,),
    "verbosity": (None,),
}


@dataclasses.dataclass(frozen=True)
class Call:
    """Hold a call of the API and, in `requests`, one request to the model for each text to generate.

    `n`: the number of texts for each prompt. The texts for the first prompt come first, then those for the second prompt, and
    so on. `prompt_tokens`: the number of tokens of all prompts. `echoed`: for each text, the prompt that the answer repeats
    before the text, or "". `hidden`: the number of tokens that the server put before each prompt. `left_out`: what the model
    does not read of a conversation or a prompt that did not fit the context, as fields of the answer.
    """

    requests: list[Request]
    n: int  # number of texts for each prompt
    prompt_tokens: int
    echoed: list[str]  # for each text, the prompt that is repeated before it, or ""
    hidden: int  # number of tokens that the server put before each prompt
    stream: bool
    include_usage: bool
    left_out: dict[str, Any] = dataclasses.field(default_factory=dict)


class _Body:
    """Hold the parameters of a request.

    `take` returns a parameter. After all calls of `take`, call `refuse_others`. It raises ApiError if the client gave a
    parameter that no call of `take` has read, unless the server ignores this parameter.
    """

    def __init__(self, values: dict[str, Any]) -> None:
        self.values, self.known = values, {"model", *_IGNORED, *_WITHOUT_EFFECT}

    def take(self, name: str, read: Callable[[Any], Any], default: Any = None) -> Any:
        """Return a parameter, converted by `read`, or `default` if it is missing or null.

        Raises ApiError with the name of the parameter if `read` raises UserError.
        """
        self.known.add(name)
        value = self.values.get(name)
        if value is None:
            return default
        with_name = _naming(name, read)
        return with_name(value)

    def refuse_others(self) -> None:
        """Raise ApiError for a parameter that is unknown, or that this server does not implement and cannot ignore."""
        for name, allowed in _WITHOUT_EFFECT.items():
            if name in self.values and self.values[name] not in allowed:
                raise ApiError(
                    400,
                    f"the parameter {name} is not supported by this server: leave it out",
                    name,
                    "unsupported_parameter",
                )
        for name in self.values:
            if name not in self.known:
                similar = difflib.get_close_matches(name, self.known, 1, 0.6)
                hint = f"did you mean {similar[0]}?" if similar else "leave it out"
                raise ApiError(400, f"there is no parameter {shown(name)}: {hint}", name[:60], "unknown_parameter")


def _naming(name: str, read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a function that calls `read` and turns a UserError into an ApiError with the name of the parameter."""

    def with_name(value: Any) -> Any:
        try:
            return read(value)
        except UserError as error:
            raise ApiError(400, str(error), name) from error

    return with_name


def _flag(name: str) -> Callable[[Any], bool]:
    def read(value: Any) -> bool:
        if not isinstance(value, bool):
            raise UserError(f"{name} must be true or false, not {shown(value)}")
        return value

    return read


def _number(name: str, minimum: int, maximum: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        number = whole_number(name, value, minimum)
        if number > maximum:
            raise UserError(f"{name} must be at most {maximum}, not {shown(number)}")
        return number

    return read


def _stops(value: Any) -> tuple[str, ...]:
    stops = stops_of(value)
    if len(stops) > MAX_STOPS:
        raise UserError(f"stop has {len(stops)} texts, but at most {MAX_STOPS} are allowed")
    longest = max(map(len, stops), default=0)
    if longest > MAX_STOP_CHARACTERS:
        raise UserError(
            f"stop has a text of {longest} characters, but at most {MAX_STOP_CHARACTERS} are allowed in each text"
        )
    return stops


def _sampling(body: _Body, default: Sampling) -> Sampling:
    """Read the sampling settings; missing settings are taken from `default`."""
    sampling = default
    for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty"):

        def read(value: Any, name: str = name, before: Sampling = sampling) -> Sampling:
            if (name == "top_k" and value in (0, -1)) or (name == "min_p" and real_number(name, value) == 0):
                value = None  # as other servers call it
            return dataclasses.replace(before, **{name: value})

        sampling = body.take(name, read, sampling)
    return sampling


def _stream_options(value: Any) -> bool:
    if not isinstance(value, dict) or set(value) - {"include_usage"}:
        raise UserError(f"stream_options must be a JSON object whose only key is include_usage, not {shown(value)}")
    return _flag("stream_options.include_usage")(value.get("include_usage", False))


def _truncation(value: Any) -> bool:
    """Tell whether a prompt that is too long is cut, and not refused: "auto" means yes, "disabled" means no.

    In a conversation, the oldest turns are left out first.
    """
    if value not in ("auto", "disabled"):
        raise UserError(f"truncation must be auto or disabled, not {shown(value)}")
    return bool(value == "auto")


def _messages(value: Any) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise UserError(f"messages must be a list of at least one message, not {shown(value)}")
    messages = []
    for i, fields in enumerate(value):
        label = f"messages[{i}]"
        if not isinstance(fields, dict) or "role" not in fields or "content" not in fields:
            raise UserError(f"{label} must be an object with role and content")
        role = "system" if fields["role"] == "developer" else fields["role"]
        if role not in conversation.ROLES:
            raise UserError(f"{label}.role must be one of {', '.join(conversation.ROLES)}, not {shown(role)}")
        if role == "system" and i:
            raise UserError(f"{label}: a system message must be the first one")
        messages.append(Message(role, _content(f"{label}.content", fields["content"])))
    return messages


def _content(label: str, value: Any) -> str:
    """Return the text of a message from its content `value`, a text or a list of parts.

    `label` is the name of the content in error messages. Raises UserError if a part is not a text.
    """
    if not isinstance(value, list):
        return text_of(label, value)
    for i, part in enumerate(value):
        if not isinstance(part, dict) or part.get("type") != "text":
            raise UserError(f"{label}[{i}] must have the type text, because the model reads only text")
    return "".join(text_of(label, part.get("text")) for part in value)


def _chat_ids(served: Served, messages: list[Message], continues: bool) -> list[int]:
    if not continues:
        return conversation.prompt_ids(messages, served.tokenizer)
    return conversation.encode(messages, served.tokenizer)[0][:-1]  # without <|end|>: the last message is not over


def _refuse_longer(ids: list[int], served: Served, parameter: str, advice: str, label: str = "the prompt") -> None:
    if len(ids) > served.context:
        raise ApiError(
            400,
            f"{label} has {len(ids)} tokens, but the model reads at most {served.context}: {advice}",
            parameter,
            "context_length_exceeded",
        )


def _max_tokens(body: _Body, minimum: int, names: tuple[str, ...]) -> int | None:
    given = [
        number for name in names if (number := body.take(name, _number(name, minimum, MAX_NEW_TOKENS))) is not None
    ]
    return min(given) if given else None


def chat_call(values: dict[str, Any], served: Served) -> Call:
    """Convert the body of a request to /v1/chat/completions to a `Call` of the model `served`.

    Raises ApiError for wrong parameters, and if the model was not fine-tuned on conversations.
    """
    if not served.chats:
        raise ApiError(
            400,
            f"the run {served.name} was not fine-tuned on conversations, so it cannot chat: use /v1/completions, or fine-tune "
            f"it with {command('sft')}",
            "model",
            "model_cannot_chat",
        )
    body = _Body(values)
    if "messages" not in values:
        raise ApiError(400, "messages is missing: give the conversation", "messages", "missing_parameter")
    messages = body.take("messages", _messages, [])
    if not messages:
        raise ApiError(400, "messages must be a list of at least one message", "messages")
    continues = body.take("continue_final_message", _flag("continue_final_message"), False)
    if continues and messages[-1].role != "assistant":
        raise ApiError(
            400,
            "continue_final_message=true needs a last message with the role assistant",
            "continue_final_message",
        )
    max_tokens = _max_tokens(body, 1, ("max_tokens", "max_completion_tokens"))
    left_out: dict[str, Any] = {}
    advice = "shorten the conversation, or give truncation=auto to drop the oldest turns"
    cuts = body.take("truncation", _truncation, False)
    if cuts:
        advice = "shorten the last message"
        last = messages[-1:] if continues else []
        room = served.context - sum(len(served.tokenizer.encode(message.content)) for message in last)
        messages = messages[: len(messages) - len(last)]
        read, dropped = conversation.fit(messages, served.tokenizer, room, max_tokens)
        left_out = {
            "dropped_turns": dropped,
            "dropped_system": messages[:1] != read[:1] and messages[0].role == "system",
            "cut_message": bool(read) and read[-1] != messages[-1],
        }
        messages = read + last
    ids = _chat_ids(served, messages, continues)
    if cuts and continues and len(ids) > served.context:  # an answer may be longer than the context
        ids = ids[-(served.context // 2) :]  # as the decoder does when it has filled the context
        left_out["cut_message"] = True
    _refuse_longer(ids, served, "messages", advice, "the conversation")
    max_tokens = max_tokens or max(1, served.context - len(ids))
    wants, likeliest = (
        body.take("logprobs", _flag("logprobs"), False),
        body.take("top_logprobs", _number("top_logprobs", 0, MAX_LOGPROBS)),
    )
    if likeliest is not None and not wants:
        raise ApiError(400, "top_logprobs needs logprobs=true", "top_logprobs")
    call = _call(
        body,
        served,
        [ids],
        PRESETS["precise"],
        max_tokens=max_tokens,
        stop_ids=conversation.stop_ids(served.tokenizer),
        logprobs=(likeliest or 0) if wants else None,
        echoed=None,
        hidden=0,
    )
    return _with_left_out(call, left_out)


def _with_left_out(call: Call, left_out: dict[str, Any]) -> Call:
    """Return `call` with those fields of `left_out` that are not 0 or false."""
    return dataclasses.replace(call, left_out={name: value for name, value in left_out.items() if value})


def completion_call(values: dict[str, Any], served: Served) -> Call:
    """Convert the body of a request to /v1/completions to a `Call`. Raises ApiError for wrong parameters."""
    body = _Body(values)
    if values.get("prompt") is None:
        raise ApiError(400, "prompt is missing: give the text to continue", "prompt", "missing_parameter")
    begin = served.tokenizer.special_id(END_OF_TEXT)
    prompts: list[str | list[int]] = body.take("prompt", lambda value: _prompts(value, served))
    # a text gets the token that begins a document; a list of ids is used unchanged
    ids = [[begin, *served.tokenizer.encode(p)] if isinstance(p, str) else p for p in prompts]
    logprobs = body.take("logprobs", _number("logprobs", 0, MAX_LOGPROBS))
    echo = body.take("echo", _flag("echo"), False)
    left_out: dict[str, Any] = {}
    if body.take("truncation", _truncation, False):
        if echo:
            raise ApiError(
                400, "echo repeats the whole prompt: leave truncation=auto out, which may cut it", "truncation"
            )
        left_out["cut_prompt"] = max(map(len, ids)) > served.context
        ids = [prompt[-served.context :] for prompt in ids]
    advice = "give a shorter prompt" if echo else "give a shorter prompt, or truncation=auto to read only its end"
    for prompt in ids:
        _refuse_longer(prompt, served, "prompt", advice)
    echoed = None
    if echo:
        # with log-probabilities, the text of the tokens, to which text_offset refers: the tokenizer may change a prompt
        echoed = [
            prompt if isinstance(prompt, str) and logprobs is None else served.tokenizer.decode(read)
            for prompt, read in zip(prompts, ids, strict=True)
        ]
    max_tokens = _max_tokens(body, 0 if echo else 1, ("max_tokens",))
    call = _call(
        body,
        served,
        ids,
        BALANCED,
        max_tokens=COMPLETION_TOKENS if max_tokens is None else max_tokens,
        stop_ids=list(served.tokenizer.end_ids),
        logprobs=logprobs,
        echoed=echoed,
        hidden=int(isinstance(prompts[0], str)),
    )
    return _with_left_out(call, left_out)


def _prompts(value: Any, served: Served) -> list[str | list[int]]:
    """Return the list of prompts. `value`: one text, a list of texts, one list of token ids, or a list of lists of ids."""
    if isinstance(value, str):
        return [text_of("prompt", value)]
    if not isinstance(value, list) or not value:
        raise UserError(
            f"prompt must be a text, a list of texts, a list of token ids, or a list of lists of token ids, not {shown(value)}"
        )
    if all(isinstance(part, str) for part in value):
        return [text_of(f"prompt[{i}]", part) for i, part in enumerate(value)]
    if all(isinstance(part, list) for part in value):
        return [_ids(f"prompt[{i}]", part, served) for i, part in enumerate(value)]
    return [_ids("prompt", value, served)]


def _ids(label: str, value: list[Any], served: Served) -> list[int]:
    if not value:
        raise UserError(f"{label} is empty: give at least one token id")
    ids = [whole_number(f"{label}[{i}]", part, 0) for i, part in enumerate(value)]
    last = served.tokenizer.vocab_size - 1
    for i, token_id in enumerate(ids):
        if token_id > last:
            raise UserError(
                f"{label}[{i}] is {shown(token_id)}, but the token ids of the model end at {last}: give ids of its tokenizer, "
                "or a text"
            )
    return ids


def _call(
    body: _Body,
    served: Served,
    prompts: list[list[int]],
    default: Sampling,
    *,
    max_tokens: int,
    stop_ids: list[int],
    logprobs: int | None,
    echoed: list[str] | None,
    hidden: int,
) -> Call:
    """Read the parameters that chats and completions have in common, and return the call.

    `prompts`: the token ids of each prompt. `default`: the values of missing sampling settings. `stop_ids`: the token ids that
    end a text, unless the client asks to ignore them. `logprobs`: the number of likeliest tokens to report with each token, or
    None to report no log-probabilities. `echoed`: the text of each prompt if the answer repeats the prompts, else None.
    `hidden`: the number of tokens that the server put before each prompt.
    """
    n = body.take("n", _number("n", 1, MAX_TEXTS), 1)
    texts = n * len(prompts)
    if texts > MAX_TEXTS:
        raise ApiError(
            400, f"the request asks for {texts} texts (prompts times n), but at most {MAX_TEXTS} are allowed", "n"
        )
    sampling = _sampling(body, default)
    stops = body.take("stop", _stops, ())
    seed = body.take("seed", lambda value: seed_of(value, texts), None)
    first = secrets.randbelow(2**31) if seed is None else seed
    ignores_end = body.take("ignore_eos", _flag("ignore_eos"), False)
    stream = body.take("stream", _flag("stream"), False)
    include_usage = body.take("stream_options", _stream_options)
    if include_usage is not None and not stream:
        raise ApiError(400, "stream_options needs stream=true", "stream_options")
    body.refuse_others()
    requests = [
        Request(
            ids=ids,
            sampling=sampling,
            max_tokens=max_tokens,
            seed=first + i * n + j,
            stop_ids=frozenset(() if ignores_end else stop_ids),
            stops=stops,
            logprobs=logprobs,
            scores_prompt=echoed is not None and logprobs is not None,
        )
        for i, ids in enumerate(prompts)
        for j in range(n)
    ]
    return Call(
        requests,
        n=n,
        prompt_tokens=sum(map(len, prompts)),
        echoed=[text for text in echoed or [""] * len(prompts) for _ in range(n)],
        hidden=hidden,
        stream=stream,
        include_usage=bool(include_usage),
    )
