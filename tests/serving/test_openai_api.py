"""The API as the openai client sees it: the texts of the engine, OpenAI's objects, and errors that name the parameter."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
import torch
from conftest import PROJECT
from interop.saved_runs import imported_pieces
from serving_models import CONTEXT, TOKENIZER, Running, engine_of, served_of

from positron.inference.sampling import BALANCED, PRESETS, Sampling
from positron.inference.sessions import Piece, Token
from positron.serving.answers import Answer
from positron.serving.parameters import chat_call, completion_call
from positron.text import conversation
from positron.text.char_word import CharTokenizer, WordTokenizer
from positron.text.conversation import Message
from positron.text.tokenizer import END_OF_TEXT

ENGINE = engine_of()
END = TOKENIZER.special_id(END_OF_TEXT)
MESSAGES: list[Any] = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello é"}]


@pytest.fixture(scope="module")
def site() -> Iterator[Running]:
    """A model that chats and one that does not."""
    running = Running(served_of("talker", True), served_of("writer", False))
    yield running
    running.stop()


@pytest.fixture(scope="module")
def client(site: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{site.url}/v1", api_key="any", max_retries=0)


def text_ids(text: str) -> list[int]:
    return [END, *TOKENIZER.encode(text)]


def chat_ids(messages: list[dict[str, str]]) -> list[int]:
    return conversation.prompt_ids([Message(m["role"], m["content"]) for m in messages], TOKENIZER)


def written(
    ids: list[int], sampling: Sampling = BALANCED, is_chat: bool = False, **settings: Any
) -> tuple[str, int, str]:
    """What the engine writes alone: text, tokens, and why it ended."""
    stop_ids = conversation.stop_ids(TOKENIZER) if is_chat else [END]
    stream = ENGINE.stream(ids, sampling, **{"stop_ids": stop_ids, **settings})
    return "".join(stream), stream.tokens, "stop" if stream.ended else "length"


@pytest.mark.parametrize("seed", range(4))
def test_a_completion_is_what_the_engine_writes(client, seed):
    given = {"temperature": 0.9, "top_p": 0.8}
    answer = client.completions.create(model="writer", prompt="once", max_tokens=40, seed=seed, **given)
    text, tokens, finish = written(text_ids("once"), Sampling(**given), max_tokens=40, seed=seed)
    (choice,) = answer.choices
    assert (choice.text, choice.finish_reason) == (text, finish)
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5, tokens)
    assert answer.usage.total_tokens == 5 + tokens


@pytest.mark.parametrize("seed", range(4))
def test_an_answer_in_a_chat_is_what_the_engine_writes(client, seed):
    answer = client.chat.completions.create(model="talker", messages=MESSAGES, seed=seed)
    ids = chat_ids(MESSAGES)
    text, tokens, finish = written(ids, PRESETS["precise"], True, max_tokens=CONTEXT - len(ids), seed=seed)
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", text, finish)
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(ids), tokens)


def test_the_program_of_the_guide_runs(site, capsys):
    page = (PROJECT / "docs" / "guides" / "serve.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"```py\n(.*?)```", page, re.DOTALL)
    exec(program.replace("http://127.0.0.1:8000", site.url).replace("quickstart", "writer"), {})
    begun = written(text_ids("Once upon a time"), max_tokens=50, seed=1)[0]
    assert capsys.readouterr().out.startswith(begun + "\n")


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "top_k": {"top_k": 3, "temperature": 2.0},
    "off": {"top_k": -1, "min_p": 0, "top_p": 1},
    "min_p": {"min_p": 0.2, "temperature": 1.5},
    "penalty": {"repetition_penalty": 1.5, "temperature": 0},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_each_sampling_setting_arrives(client, name):
    settings = SETTINGS[name]
    answer = client.completions.create(model="writer", prompt="a", max_tokens=30, seed=3, extra_body=settings)
    meant = {key: value for key, value in settings.items() if (key, value) not in (("top_k", -1), ("min_p", 0))}
    sampling = Sampling(**{"temperature": BALANCED.temperature, "top_p": BALANCED.top_p, **meant})
    assert answer.choices[0].text == written(text_ids("a"), sampling, max_tokens=30, seed=3)[0]


def test_a_stream_is_the_whole_answer_in_pieces(client):
    given: dict[str, Any] = {"model": "talker", "messages": MESSAGES, "seed": 5, "max_tokens": 30, "temperature": 1}
    whole = client.chat.completions.create(**given)
    chunks = list(client.chat.completions.create(**given, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks[:-1]][-1] == whole.choices[0].finish_reason
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert all(c.usage is None for c in chunks[:-1])
    assert len({c.id for c in chunks}) == 1
    texts = client.completions.create(model="writer", prompt="b", seed=5, max_tokens=30, stream=True)
    assert "".join(c.choices[0].text for c in texts) == written(text_ids("b"), max_tokens=30, seed=5)[0]


def test_tokens_that_arrive_soon_after_an_event_are_sent_together(client, monkeypatch):
    monkeypatch.setattr("positron.serving.app.EVENT_SECONDS", 0.5)  # in which even a busy machine generates all tokens
    given = {"model": "writer", "prompt": "b", "seed": 5, "max_tokens": 30, "logprobs": 2}
    whole = client.completions.create(**given).choices[0]
    chunks = [chunk.choices[0] for chunk in client.completions.create(**given, stream=True)]
    assert len(chunks) <= 5
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert [token for chunk in chunks for token in chunk.logprobs.tokens] == whole.logprobs.tokens
    assert [x for chunk in chunks for x in chunk.logprobs.token_logprobs] == whole.logprobs.token_logprobs


def test_a_stream_has_pieces_of_whole_characters(site):
    """Of OpenAI's events on the wire: each a line of JSON, then [DONE]."""
    body = {"model": "writer", "prompt": "é", "max_tokens": 20, "seed": 1, "stream": True, "temperature": 5}
    answer = httpx.post(f"{site.url}/v1/completions", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    *events, done, rest = answer.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    assert all(event.startswith('data: {"id": "cmpl-') for event in events)


def test_several_answers_have_consecutive_seeds(client):
    answer = client.completions.create(model="writer", prompt=["a", "bc"], n=3, seed=9, max_tokens=10)
    expected = [
        written(text_ids(prompt), max_tokens=10, seed=9 + 3 * i + j)[0]
        for i, prompt in enumerate(["a", "bc"])
        for j in range(3)
    ]
    assert [choice.index for choice in answer.choices] == list(range(6))
    assert [choice.text for choice in answer.choices] == expected
    chunks = client.completions.create(model="writer", prompt=["a", "bc"], n=3, seed=9, max_tokens=10, stream=True)
    texts = [""] * 6
    for chunk in chunks:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == expected


def test_without_a_seed_answers_differ(client):
    given: dict[str, Any] = {"model": "writer", "prompt": "a", "max_tokens": 30, "extra_body": {"ignore_eos": True}}
    texts = {client.completions.create(**given).choices[0].text for _ in range(3)}
    assert len(texts) == 3


def test_a_text_ends_before_a_stop_string(client):
    text, *_ = written(text_ids("ab"), max_tokens=40, seed=2)
    stop = text[10:12]
    answer = client.completions.create(model="writer", prompt="ab", max_tokens=40, seed=2, stop=["😀😀😀", stop])
    assert answer.choices[0].text == text[: text.index(stop)]
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens == text.index(stop)


def test_the_assistants_text_is_continued(client):
    begun = [*MESSAGES, {"role": "assistant", "content": "well"}]
    answer = client.chat.completions.create(
        model="talker", messages=begun, seed=1, max_completion_tokens=12, extra_body={"continue_final_message": True}
    )
    ids = [*chat_ids(MESSAGES), *TOKENIZER.encode("well")]
    expected = written(ids, PRESETS["precise"], True, max_tokens=12, seed=1)[0]
    assert answer.choices[0].message.content == expected


def test_ignore_eos_writes_on_after_the_end_of_a_text(client):
    given: dict[str, Any] = {"model": "writer", "prompt": "a", "max_tokens": 400, "seed": 1, "temperature": 2}
    short = client.completions.create(**given)
    long = client.completions.create(**given, extra_body={"ignore_eos": True})
    assert short.usage.completion_tokens < 400
    assert long.usage.completion_tokens == 400
    assert long.choices[0].text.startswith(short.choices[0].text)


def test_parts_of_a_message_are_joined(client):
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo é"}]
    ways = [MESSAGES, [{"role": "developer", "content": "be brief"}, {"role": "user", "content": parts}]]
    first, second = (client.chat.completions.create(model="talker", messages=way, seed=1, max_tokens=9) for way in ways)
    assert first.choices[0].message.content == second.choices[0].message.content


def likelihoods(ids: list[int]) -> torch.Tensor:
    """Log-probabilities of the token after each of `ids`, without a cache."""
    return ENGINE.decoder.model(torch.tensor([ids]))[0].detach().double().log_softmax(-1)


def test_log_probabilities_of_a_chat_are_the_models(client):
    given: dict[str, Any] = {"model": "talker", "messages": MESSAGES, "seed": 4, "max_tokens": 12, "logprobs": True}
    choice = client.chat.completions.create(**given, top_logprobs=3).choices[0]
    tokens = choice.logprobs.content
    assert b"".join(bytes(token.bytes) for token in tokens).decode() == choice.message.content
    prompt = chat_ids(MESSAGES)
    ids = prompt + TOKENIZER.encode(choice.message.content)
    wanted = likelihoods(ids)
    for place, token in enumerate(tokens, len(prompt) - 1):
        assert token.logprob == pytest.approx(float(wanted[place, ids[place + 1]]), abs=1e-4)
        values = wanted[place].topk(3).values.tolist()
        assert [other.logprob for other in token.top_logprobs] == pytest.approx(values, abs=1e-4)
    streamed = client.chat.completions.create(**given, stream=True)
    names = [
        token.token for c in streamed for token in (c.choices[0].logprobs.content if c.choices[0].logprobs else [])
    ]
    assert names == [token.token for token in tokens]


@pytest.mark.parametrize("kind", ["text", "ids", "list of texts", "list of ids"])
def test_a_prompt_is_scored_as_evaluation_programs_ask_for_it(client, kind):
    """`echo`, `logprobs` and max_tokens=0: the sum is the log-likelihood of the text."""
    text = "the cat, é"
    ids = text_ids(text)
    prompt: Any = {"text": text, "ids": ids, "list of texts": [text], "list of ids": [ids]}[kind]
    answer = client.completions.create(model="writer", prompt=prompt, echo=True, logprobs=1, max_tokens=0)
    choice, wanted = answer.choices[0], likelihoods(ids)
    expected = [float(wanted[i, ids[i + 1]]) for i in range(len(ids) - 1)]
    logprobs = choice.logprobs.token_logprobs
    if "ids" in kind:  # nothing comes before the first id that is sent
        assert choice.logprobs.tokens[0] == "<|endoftext|>"
        assert logprobs.pop(0) is None
    assert logprobs == pytest.approx(expected, abs=1e-4)
    assert choice.text == text
    assert choice.finish_reason == "length"
    assert answer.usage.completion_tokens == 0
    for top, place in zip(choice.logprobs.top_logprobs[-len(expected) :], range(len(expected)), strict=True):
        assert max(top.values()) == pytest.approx(float(wanted[place].max()), abs=1e-4)


def test_a_prompt_that_is_scored_is_continued_too(client):
    given: dict[str, Any] = {"model": "writer", "prompt": "ab", "max_tokens": 3, "seed": 1}
    given["extra_body"] = {"ignore_eos": True, "temperature": 0}
    choice = client.completions.create(**given, echo=True, logprobs=0).choices[0]
    assert choice.text == "ab" + client.completions.create(**given).choices[0].text
    assert choice.text == "".join(choice.logprobs.tokens)
    assert choice.logprobs.text_offset == list(range(5))
    assert choice.logprobs.top_logprobs is None


def test_the_models_are_listed(client, site):
    assert [model.id for model in client.models.list()] == ["talker", "writer"]
    assert client.models.retrieve("writer").owned_by == "positron"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")
    assert httpx.get(f"{site.url}/health").json() == {"status": "ok"}


COMPLETION: dict[str, Any] = {"model": "writer", "prompt": "a"}
CHAT: dict[str, Any] = {"model": "talker", "messages": MESSAGES}
WRONG: list[tuple[dict[str, Any], int, str | None]] = [
    ({**COMPLETION, "model": "other"}, 404, "model"),
    ({**COMPLETION, "model": 5}, 404, "model"),
    ({**COMPLETION, "model": "\ud800"}, 404, "model"),
    ({**COMPLETION, "\ud800": 1}, 400, "\\ud800"),
    ({"model": "writer"}, 400, "prompt"),
    ({**COMPLETION, "prompt": []}, 400, "prompt"),
    ({**COMPLETION, "prompt": [[]]}, 400, "prompt"),
    ({**COMPLETION, "prompt": [1, "a"]}, 400, "prompt"),
    ({**COMPLETION, "prompt": [1, TOKENIZER.vocab_size]}, 400, "prompt"),
    ({**COMPLETION, "prompt": "a" * CONTEXT}, 400, "prompt"),
    ({**COMPLETION, "prompt": ["a"] * 65}, 400, "n"),
    ({**COMPLETION, "prompt": {"a": 1}}, 400, "prompt"),
    ({**COMPLETION, "max_tokens": 0}, 400, "max_tokens"),
    ({**COMPLETION, "max_tokens": 10**6}, 400, "max_tokens"),
    ({**COMPLETION, "max_tokens": 1.5}, 400, "max_tokens"),
    ({**COMPLETION, "temperature": -1}, 400, "temperature"),
    ({**COMPLETION, "temperature": "hot"}, 400, "temperature"),
    ({**COMPLETION, "temperature": 1e999}, 400, None),
    ({**COMPLETION, "top_p": 2}, 400, "top_p"),
    ({**COMPLETION, "top_k": -5}, 400, "top_k"),
    ({**COMPLETION, "min_p": 2}, 400, "min_p"),
    ({**COMPLETION, "repetition_penalty": 0}, 400, "repetition_penalty"),
    ({**COMPLETION, "seed": 2**64}, 400, "seed"),
    ({**COMPLETION, "seed": True}, 400, "seed"),
    ({**COMPLETION, "n": 0}, 400, "n"),
    ({**COMPLETION, "stop": [""]}, 400, "stop"),
    ({**COMPLETION, "stop": ["a"] * 17}, 400, "stop"),
    ({**COMPLETION, "stop": 5}, 400, "stop"),
    ({**COMPLETION, "stop": "a" * 1001}, 400, "stop"),
    ({**COMPLETION, "logprobs": 21}, 400, "logprobs"),
    ({**COMPLETION, "logprobs": True}, 400, "logprobs"),
    ({**COMPLETION, "stream": "yes"}, 400, "stream"),
    ({**COMPLETION, "stream_options": {"include_usage": True}}, 400, "stream_options"),
    ({**COMPLETION, "stream": True, "stream_options": {"x": 1}}, 400, "stream_options"),
    ({**COMPLETION, "suffix": "end"}, 400, "suffix"),
    ({**COMPLETION, "best_of": 4}, 400, "best_of"),
    ({**COMPLETION, "frequency_penalty": 0.5}, 400, "frequency_penalty"),
    ({**COMPLETION, "logit_bias": {"5": 1}}, 400, "logit_bias"),
    ({**COMPLETION, "temprature": 1}, 400, "temprature"),
    ({**COMPLETION, "messages": MESSAGES}, 400, "messages"),
    ({**CHAT, "model": "writer"}, 400, "model"),
    ({"model": "talker"}, 400, "messages"),
    ({**CHAT, "messages": None}, 400, "messages"),
    ({**CHAT, "messages": []}, 400, "messages"),
    ({**CHAT, "messages": ["hello"]}, 400, "messages"),
    ({**CHAT, "messages": [{"role": "tool", "content": "a"}]}, 400, "messages"),
    ({**CHAT, "messages": [{"role": [], "content": "a"}]}, 400, "messages"),
    ({**CHAT, "messages": [{"role": "user", "content": None}]}, 400, "messages"),
    ({**CHAT, "messages": [{"role": "user", "content": "\ud800"}]}, 400, "messages"),
    ({**CHAT, "messages": [MESSAGES[1], MESSAGES[0]]}, 400, "messages"),
    ({**CHAT, "messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "messages"),
    ({**CHAT, "messages": [{"role": "user", "content": "a" * CONTEXT}]}, 400, "messages"),
    ({**CHAT, "continue_final_message": True}, 400, "continue_final_message"),
    ({**CHAT, "top_logprobs": 2}, 400, "top_logprobs"),
    ({**CHAT, "logprobs": 1}, 400, "logprobs"),
    ({**CHAT, "tools": [{"type": "function"}]}, 400, "tools"),
    ({**CHAT, "response_format": {"type": "json_object"}}, 400, "response_format"),
]


def short(value: Any) -> str:
    return str(value)[-40:]


@pytest.mark.parametrize(("body", "status", "parameter"), WRONG, ids=short)
def test_a_wrong_request_gets_an_error_that_names_the_parameter(site, body, status, parameter):

    route = (
        "chat/completions"
        if ("messages" in body and "prompt" not in body) or body == {"model": "talker"}
        else "completions"
    )
    answer = httpx.post(f"{site.url}/v1/{route}", content=json.dumps(body))
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", parameter)
    assert error["message"]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b'{"n": ' + b"9" * 5000 + b"}", b'{"a": NaN}']
)
def test_a_body_that_is_no_json_object_is_refused(site, content):
    answer = httpx.post(f"{site.url}/v1/completions", content=content)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_json")


def test_the_client_raises_its_own_errors(client):
    with pytest.raises(openai.BadRequestError, match=r"temperature must be .*, not -1") as error:
        client.completions.create(**COMPLETION, temperature=-1)
    assert error.value.param == "temperature"
    with pytest.raises(openai.NotFoundError, match="there is no model other"):
        client.completions.create(model="other", prompt="a")


def test_parameters_that_change_nothing_are_ignored(client):
    given: dict[str, Any] = {**COMPLETION, "max_tokens": 5, "seed": 1}
    harmless = {"presence_penalty": 0, "frequency_penalty": 0.0, "best_of": 1, "suffix": None, "logit_bias": {}}
    plain = client.completions.create(**given)
    assert client.completions.create(**given, user="me", **harmless).choices[0].text == plain.choices[0].text
    extra: dict[str, Any] = {"tools": [], "response_format": {"type": "text"}, "store": False, "metadata": {"a": "b"}}
    client.chat.completions.create(**CHAT, **extra)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/v1/completions", 405),
        ("POST", "/v1/models", 405),
        ("GET", "/../etc/passwd", 404),
    ],
)
def test_other_paths_and_methods_are_refused_in_the_same_format(site, method, path, status):
    answer = httpx.request(method, site.url + path)
    assert answer.status_code == status
    said = ": use " if status == 405 else "its API has /v1/models, /v1/chat/completions and /v1/completions"
    assert said in answer.json()["error"]["message"]


def test_a_token_id_of_a_larger_vocabulary_is_named_with_the_last_id(client):
    last = TOKENIZER.vocab_size - 1
    with pytest.raises(
        openai.BadRequestError, match=rf"prompt\[1\] is 50256, but the token ids of the model end at {last}:"
    ):
        client.completions.create(model="writer", prompt=[0, 50256])


def test_a_conversation_that_is_too_long_loses_its_oldest_turns_if_the_client_wants_that(client):
    turns = [{"role": role, "content": "a long text " * 3} for _ in range(3) for role in ("user", "assistant")]
    messages: list[Any] = [*turns, {"role": "user", "content": "hello"}]
    with pytest.raises(openai.BadRequestError, match="or give truncation=auto to drop"):
        client.chat.completions.create(model="talker", messages=messages)
    extra = {"truncation": "auto"}
    answer = client.chat.completions.create(model="talker", messages=messages, seed=1, max_tokens=30, extra_body=extra)
    read, dropped = conversation.fit([Message(**m) for m in messages], TOKENIZER, CONTEXT, 30)
    assert answer.dropped_turns == dropped > 0
    assert answer.usage.prompt_tokens == len(conversation.prompt_ids(read, TOKENIZER))
    with pytest.raises(openai.BadRequestError, match="must be auto or disabled"):
        client.chat.completions.create(model="talker", messages=messages, extra_body={"truncation": "middle"})


@pytest.mark.parametrize(
    ("system", "question", "left_out"),
    [
        ("be brief", "hello", set()),
        ("be brief", "a long question " * 20, {"cut_message"}),
        ("a long order " * 20, "hello", {"dropped_system"}),
        ("a long order " * 20, "a long question " * 20, {"dropped_system", "cut_message"}),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_cut_message_and_a_dropped_system_prompt_are_told(client, system, question, left_out, stream):
    messages: list[Any] = [{"role": "system", "content": system}, {"role": "user", "content": question}]
    answer = client.chat.completions.create(
        model="talker", messages=messages, max_tokens=3, stream=stream, extra_body={"truncation": "auto"}
    )
    if stream:
        answer = next(iter(answer))
    fields = {"dropped_turns", "dropped_system", "cut_message"}
    assert {name for name in fields if getattr(answer, name, False)} == left_out


@pytest.mark.parametrize("stream", [False, True])
def test_of_a_prompt_that_is_too_long_the_end_is_read_if_the_client_wants_that(client, stream):
    def complete(prompt: Any, **extra: Any) -> Any:
        answer = client.completions.create(
            model="writer", prompt=prompt, seed=1, max_tokens=20, stream=stream, extra_body=extra
        )
        return list(answer) if stream else [answer]

    def text(answer: list[Any]) -> str:
        return "".join(part.choices[0].text for part in answer)

    long = "many words " * 20
    with pytest.raises(openai.BadRequestError, match="or truncation=auto to read only its end"):
        complete(long)
    cut, end = complete(long, truncation="auto"), complete(TOKENIZER.encode(long)[-CONTEXT:])
    assert text(cut) == text(end)
    assert all(part.cut_prompt for part in cut)
    assert not any(hasattr(part, "cut_prompt") for part in complete("a text", truncation="auto"))
    with pytest.raises(openai.BadRequestError, match="echo repeats the whole prompt"):
        complete(long, truncation="auto", echo=True)


def test_the_cached_tokens_of_a_prompt_are_counted_once_for_all_its_texts(client):
    def ask(*messages: str) -> Any:
        roles = ("user", "assistant", "user")
        conversation = [{"role": role, "content": text} for role, text in zip(roles, messages, strict=False)]
        return client.chat.completions.create(model="talker", messages=conversation, n=3, seed=4, max_tokens=6)

    first = ask("say the alphabet")
    second = ask("say the alphabet", first.choices[0].message.content, "again")
    cached = second.usage.prompt_tokens_details.cached_tokens
    assert first.usage.prompt_tokens <= cached <= second.usage.prompt_tokens


@pytest.mark.parametrize("max_tokens", [None, 8])
def test_dropping_the_oldest_turns_leaves_room_for_the_message_that_is_continued(client, max_tokens):
    turns = [{"role": role, "content": "text "} for _ in range(9) for role in ("user", "assistant")]
    messages: list[Any] = [*turns, {"role": "user", "content": "hello"}, {"role": "assistant", "content": "ab" * 20}]
    extra = {"truncation": "auto", "continue_final_message": True}
    answer = client.chat.completions.create(
        model="talker", messages=messages, seed=1, max_tokens=max_tokens or openai.omit, extra_body=extra
    )
    assert answer.dropped_turns > 0
    kept = messages[2 * answer.dropped_turns :]
    assert answer.usage.prompt_tokens == len(chat_ids(kept[:-1])) + 40
    assert answer.usage.prompt_tokens + (max_tokens or 8) <= CONTEXT


def test_an_answer_that_has_filled_the_context_is_continued_from_its_end(client):
    """An answer may be longer than the context; the client cannot shorten it."""
    messages: list[Any] = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "ab" * CONTEXT}]
    extra = {"truncation": "auto", "continue_final_message": True}
    answer = client.chat.completions.create(model="talker", messages=messages, seed=1, max_tokens=6, extra_body=extra)
    assert answer.usage.prompt_tokens == CONTEXT // 2
    assert answer.cut_message
    end = TOKENIZER.encode(messages[1]["content"])[-CONTEXT // 2 :]
    assert answer.choices[0].message.content == written(end, PRESETS["precise"], True, max_tokens=6, seed=1)[0]


def test_text_offsets_do_not_count_the_space_that_the_tokenizer_puts_first(site):
    tokenizer = imported_pieces()
    served = dataclasses.replace(site.models.get("writer"), tokenizer=tokenizer)
    call = completion_call({"prompt": "Tom saw the ball.", "echo": True, "logprobs": 0, "max_tokens": 0}, served)
    ids = call.requests[0].ids[call.hidden :]
    facts = Answer(call, served, False)._completion_logprobs(0, ids)
    for token, offset in zip(facts["tokens"], facts["text_offset"], strict=True):
        assert call.echoed[0][offset:].startswith(token)


def test_the_tokens_of_an_echoed_text_are_this_text_if_the_tokenizer_puts_a_space_first(site):
    tokenizer = imported_pieces()
    served = dataclasses.replace(site.models.get("writer"), tokenizer=tokenizer)
    call = completion_call({"prompt": "Tom saw the ball.", "echo": True, "logprobs": 2, "max_tokens": 0}, served)
    first, *others = call.requests[0].ids[call.hidden :]
    likeliest = [(first, -0.5), (others[0], -1.5)]
    facts = Answer(call, served, False)._completion_logprobs(0, [Token(first, -0.5, likeliest), *others])
    assert "".join(facts["tokens"]) == call.echoed[0] == "Tom saw the ball."
    assert facts["top_logprobs"][0] == {facts["tokens"][0]: -0.5, tokenizer.bytes_of(others[0]).decode().lstrip(): -1.5}


@pytest.mark.parametrize("name", ["word", "char"])
def test_text_offsets_are_places_in_the_echoed_text_also_if_the_tokenizer_changes_the_prompt(site, name):
    tokenizer = {"word": WordTokenizer(["Tom", "saw", " ", "."]), "char": CharTokenizer("Tomsaw .")}[name]
    served = dataclasses.replace(site.models.get("writer"), tokenizer=tokenizer)
    body = {"prompt": "xyzzy saw Tom.", "echo": True, "max_tokens": 0}
    assert completion_call(body, served).echoed == ["xyzzy saw Tom."]
    call = completion_call({**body, "logprobs": 0}, served)
    facts = Answer(call, served, False)._completion_logprobs(0, call.requests[0].ids[call.hidden :])
    assert call.echoed == ["".join(facts["tokens"])]
    assert call.echoed[0].endswith("\ufffd saw Tom.")
    for token, offset in zip(facts["tokens"], facts["text_offset"], strict=True):
        assert call.echoed[0].startswith(token, offset)


def test_the_text_offset_of_a_token_is_that_of_its_own_first_character(site):
    tokenizer = imported_pieces()
    pieces = [b"a", b"\xc3", b"J", b"\xc3", b"\xa9", b"\xe2", b"\x82", b"\xac", b"t"]
    ids = [next(i for i in range(tokenizer.vocab_size) if tokenizer.bytes_of(i) == piece) for piece in pieces]
    served = dataclasses.replace(site.models.get("writer"), tokenizer=tokenizer)
    call = completion_call({"prompt": ids, "echo": True, "logprobs": 0, "max_tokens": 0}, served)
    assert call.echoed == ["a\ufffdJé€t"]
    facts = Answer(call, served, False)._completion_logprobs(0, ids)
    assert facts["text_offset"] == [0, 1, 2, 3, 3, 4, 4, 4, 5]


@pytest.mark.parametrize("begun", ["", "Tom"], ids=["an answer", "a continued answer"])
def test_the_tokens_of_an_answer_are_its_text_if_the_tokenizer_puts_a_space_first(site, begun):
    tokenizer = imported_pieces()
    served = dataclasses.replace(site.models.get("talker"), tokenizer=tokenizer)
    messages = [*MESSAGES, *([{"role": "assistant", "content": begun}] if begun else [])]
    body = {"messages": messages, "continue_final_message": bool(begun), "logprobs": True, "top_logprobs": 1}
    ids = tokenizer.encode("Tom saw the ball.")[len(tokenizer.encode(begun)) :]
    answer = Answer(chat_call(body, served), served, True)
    tokens = []
    for i in ids:  # streamed: a chunk for each token
        piece = Piece("", [Token(i, -1.0, [(i, -1.0)])], None)
        tokens += answer.chunk(0, None, piece, is_first=False)["choices"][0]["logprobs"]["content"]
    text = "Tom saw the ball."[len(begun) :]
    assert "".join(token["token"] for token in tokens) == text
    assert b"".join(bytes(token["bytes"]) for token in tokens).decode() == text
    for token in tokens:
        assert token["top_logprobs"] == [{key: token[key] for key in ("token", "logprob", "bytes")}]
