"""One model for several callers: texts written at the same time, what may be passed, where stop strings end a text."""

from __future__ import annotations

import gc
import itertools
import threading
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from conftest import PATIENCE

from positron import load
from positron.config import GPTConfig
from positron.inference import engine as engine_module
from positron.inference.arguments import LARGEST_SEED, SMALLEST_SEED
from positron.inference.decoder import Decoder
from positron.inference.engine import Engine
from positron.inference.sampling import Sampling
from positron.inference.text_model import Writer
from positron.model.gpt import GPT
from positron.system.errors import UserError
from positron.text.char_word import CharTokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyzTO é\n"


def writer_of(draft: bool = False, weights: str = "fp32") -> Writer:
    tokenizer = CharTokenizer(LETTERS)

    def model(seed: int) -> GPT:
        config = GPTConfig(vocab_size=tokenizer.vocab_size, context_length=16, d_model=32, n_layer=2, n_head=2)
        made = GPT(config, seed=seed).eval()
        with torch.no_grad():
            made.wte.weight.mul_(5)
        return made

    return Writer(model(1), tokenizer, weights=weights, draft=model(2) if draft else None)


@pytest.fixture(scope="module")
def writer() -> Writer:
    return writer_of()


PROMPTS = ("Tom had a", "Once upon", "a")


def alone(writer: Writer) -> list[str]:
    return ["".join(writer.stream(prompt, max_tokens=40, seed=i)) for i, prompt in enumerate(PROMPTS)]


@pytest.mark.parametrize(("draft", "weights"), [(False, "fp32"), (False, "int8"), (True, "fp32")])
def test_streams_taken_in_turns_write_what_each_writes_alone(draft: bool, weights: str) -> None:
    """Longer than the context, so that windows move, too."""
    writer = writer_of(draft, weights)
    wanted = alone(writer)
    assert len(set(wanted)) == len(PROMPTS)
    streams = [writer.stream(prompt, max_tokens=40, seed=i) for i, prompt in enumerate(PROMPTS)]
    found = ["", "", ""]
    for pieces in itertools.zip_longest(*streams, fillvalue=""):
        found = [text + piece for text, piece in zip(found, pieces, strict=True)]
    assert found == wanted


def test_a_text_written_inside_a_loop_over_a_stream_changes_neither(writer: Writer) -> None:
    wanted = alone(writer)
    found = ""
    for place, piece in enumerate(writer.stream(PROMPTS[0], max_tokens=40, seed=0)):
        found += piece
        if place % 8:
            continue
        assert writer.generate(PROMPTS[1], max_tokens=40, seed=1) == PROMPTS[1] + wanted[1]
    assert writer.samples(list(PROMPTS), max_tokens=40) == [p + text for p, text in zip(PROMPTS, wanted, strict=True)]
    assert found == wanted[0]


def test_threads_write_what_each_writes_alone() -> None:
    writer = writer_of()  # whose weights are packed by whichever thread comes first
    wanted, found = alone(writer_of()), {}

    def write(number: int) -> None:
        i = number % len(PROMPTS)
        found[number] = "".join(writer.stream(PROMPTS[i], max_tokens=40, seed=i))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert [found[number] for number in range(6)] == wanted * 2


@pytest.mark.parametrize("end", ["finished", "stopped", "closed", "forgotten"])
def test_the_cache_of_a_stream_is_freed_when_it_ends(writer: Writer, end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[torch.Tensor]] = []
    original = Decoder.with_empty_cache

    def noted(decoder: Decoder, batch: int) -> Decoder:
        other = original(decoder, batch)
        made.append(weakref.ref(other.k))
        return other

    monkeypatch.setattr(Decoder, "with_empty_cache", noted)
    gc.disable()  # no cycle may keep a cache alive until the collector comes
    try:
        text = writer.generate("Tom", max_tokens=20)
        stream = writer.stream("Tom", max_tokens=20, stop=text[6:10] if end == "stopped" else ())
        next(stream)
        assert made[-1]() is not None
        if end in ("finished", "stopped"):
            list(stream)
        elif end == "closed":
            stream.close()
        else:
            del stream
        assert [cache() for cache in made] == [None, None]
    finally:
        gc.enable()


def test_a_stream_says_how_many_tokens_it_wrote_and_whether_it_ended(writer: Writer) -> None:
    stream = writer.stream("Tom", max_tokens=7)
    text = "".join(stream)
    assert (stream.tokens, stream.ended) == (len(text), False)
    stopped = writer.stream("Tom", max_tokens=7, stop=text[2:4])
    assert "".join(stopped) == text[: text.index(text[2:4])]
    assert (stopped.tokens, stopped.ended) == (text.index(text[2:4]), True)


@pytest.mark.parametrize("stop", ["e", "Tom", "ab", "\n"])
def test_one_stop_text_is_not_a_list_of_letters(writer: Writer, stop: str) -> None:
    for seed in range(4):
        text = writer.generate("T", max_tokens=60, seed=seed)[1:]
        wanted = text[: text.index(stop)] if stop in text else text
        assert writer.generate("T", max_tokens=60, seed=seed, stop=stop) == "T" + wanted
        assert writer.generate("T", max_tokens=60, seed=seed, stop=[stop]) == "T" + wanted


def test_stop_texts_end_each_row_of_a_batch_and_the_work(writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, stops = ["Tom", "a", "Once"], ("e", "th", "q")
    wanted = [writer.generate(row, max_tokens=50, seed=3 + i, stop=stops) for i, row in enumerate(rows)]
    assert writer.samples(rows, max_tokens=50, seed=3, stop=stops) == wanted
    prompts = [writer.ids(row) for row in rows]
    written = writer.engine().written(prompts, Sampling(), max_tokens=50, seed=3, stop=stops)
    for i, one in enumerate(written):
        new = [row[0] for row in writer.engine().ids([prompts[i]], Sampling(), max_tokens=50, stop_ids=(), seed=3 + i)]
        assert writer.tokenizer.decode(new[: one.tokens]) == one.text
        assert writer.tokenizer.decode(new[: max(0, one.tokens - 1)]) != one.text or not one.text
    steps: list[int] = []
    kind = type(writer.engine().decoder)
    step = kind.step
    monkeypatch.setattr(kind, "step", lambda decoder, ids: (steps.append(len(ids)), step(decoder, ids))[1])
    assert writer.samples(rows, max_tokens=50, seed=3, stop=list(LETTERS)) == rows
    assert len(steps) < 15


@pytest.mark.parametrize("draft", [False, True])
def test_an_empty_batch_is_an_empty_list(draft: bool) -> None:
    assert writer_of(draft).samples([]) == []
    assert writer_of(draft).samples(()) == []
    assert writer_of(draft).engine().texts([]) == []


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"top_k": 0}, r"top_k must be at least 1, not 0 \(for no limit, leave it out\)"),
    ({"top_k": 40.0}, "top_k must be a whole number, not 40.0"),
    ({"top_k": "40"}, "top_k must be a whole number, not '40'"),
    ({"top_k": True}, "top_k must be .*, not True"),
    ({"last_n": 1.5}, "last_n must be .*, not 1.5"),
    ({"last_n": None}, "last_n must be .*, not None"),
    ({"seed": 1.5}, "seed must be .*, not 1.5"),
    ({"seed": "7"}, "seed must be .*, not '7'"),
    ({"seed": False}, "seed must be .*, not False"),
    ({"seed": LARGEST_SEED + 1}, f"seed must be between .*, not {LARGEST_SEED + 1}"),
    ({"seed": SMALLEST_SEED - 1}, "seed must be between .*, not -"),
    ({"temperature": "0.5"}, "temperature must be a number, not '0.5'"),
    ({"temperature": None}, "temperature must be .*, not None"),
    ({"temperature": True}, "temperature must be .*, not True"),
    ({"temperature": float("inf")}, "temperature must be .*, not inf"),
    ({"temperature": 5e-324}, "temperature"),
    ({"temperature": 10**400}, "temperature must be at most 1e308, not 1000.*"),
    ({"temperature": 1e-200}, "temperature=1e-200 is too small: give 0"),
    ({"top_p": "all"}, "top_p must be .*, not 'all'"),
    ({"min_p": [0.1]}, "min_p"),
    ({"repetition_penalty": float("nan")}, "repetition_penalty must be .*, not nan"),
    ({"stop": None}, "stop must be .*, not None"),
    ({"stop": ["a", 3]}, r"stop\[1\] must be a text \(str\), not 3"),
    ({"stop": b"a"}, "stop must be .*, not b'a'"),
    ({"stop": ""}, "an empty stop string"),
    ({"max_tokens": 1.5}, "max_tokens must be .*, not 1.5"),
    ({"max_tokens": None}, "max_tokens must be .*, not None"),
    ({"max_tokens": 0}, "max_tokens must be at least 1, not 0"),
    ({"temprature": 0.5}, "there is no setting temprature: did you mean temperature?"),
    ({"max_token": 5}, "did you mean max_tokens?"),
]


@pytest.mark.parametrize(("settings", "says"), WRONG, ids=[says for _, says in WRONG])
def test_a_wrong_setting_is_named_before_anything_is_written(
    writer: Writer, settings: dict[str, Any], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module.Engine, "ids", None)
    for call in (writer.generate, writer.stream, lambda prompt, **options: writer.samples([prompt], **options)):
        with pytest.raises(UserError, match=says):
            call("Tom", **settings)


@pytest.mark.parametrize("prompt", [None, b"Tom", ["Tom"], 3, "a\ud83d", "\udcff bad"])
def test_a_prompt_that_is_no_text_is_named(writer: Writer, prompt: Any) -> None:
    for call in (writer.generate, writer.stream, lambda value: writer.samples(["Tom", value])):
        with pytest.raises(UserError, match="prompt"):
            call(prompt)


@pytest.mark.parametrize("prompts", ["Tom", None, 3, b"Tom"])
def test_prompts_that_are_no_list_are_named(writer: Writer, prompts: Any) -> None:
    with pytest.raises(UserError, match=r"prompts must be a list of texts, not "):
        writer.samples(prompts)


def test_numbers_of_numpy_are_numbers(writer: Writer) -> None:
    found = writer.generate(
        "Tom",
        max_tokens=np.int64(5),
        seed=np.uint8(3),
        temperature=np.float32(0.5),
        top_k=np.int32(4),
        top_p=np.float64(1),
    )
    assert found == writer.generate("Tom", max_tokens=5, seed=3, temperature=0.5, top_k=4, top_p=1)


def test_the_smallest_and_the_largest_seed_write_and_those_of_a_batch_are_counted(writer: Writer) -> None:
    for seed in (SMALLEST_SEED, LARGEST_SEED):
        assert len(writer.generate("Tom", max_tokens=3, seed=seed)) == 6
    assert len(writer.samples(["a", "b"], max_tokens=2, seed=LARGEST_SEED - 1)) == 2
    with pytest.raises(UserError, match=r"the 2 texts use the seeds from seed to seed \+ 1"):
        writer.samples(["a", "b"], seed=LARGEST_SEED)


def test_an_extreme_setting_that_is_allowed_still_writes(writer: Writer) -> None:
    for settings in (
        {"temperature": 1e-100},
        {"temperature": 1e300},
        {"repetition_penalty": 1e-6},
        {"repetition_penalty": 1e6},
        {"top_k": 10**30},
        {"last_n": 10**30},
        {"min_p": 5e-324},
        {"top_p": 5e-324},
    ):
        assert len(writer.generate("Tom", max_tokens=20, **settings)) > 3, settings


@pytest.mark.parametrize(("run", "weights"), [(3, "fp32"), (b"r", "fp32"), (None, None), ("r", ["int8"])])
def test_load_names_a_wrong_argument(run: Any, weights: Any) -> None:
    with pytest.raises(UserError, match="run" if weights == "fp32" else "weights"):
        load(run, weights)


def test_generate_and_stream_write_the_same_text_after_the_prompt(writer: Writer) -> None:
    for settings in ({}, {"temperature": 0.8, "top_k": 4}, {"stop": "e", "seed": 5}):
        text = writer.generate("Tom", max_tokens=30, **settings)
        assert text == "Tom" + "".join(writer.stream("Tom", max_tokens=30, **settings))


def test_the_engine_of_one_model_packs_its_weights_once(writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = writer.engine()
    monkeypatch.setattr(Decoder, "_pack", None)
    writer.samples(["a", "b"], max_tokens=2)
    writer.generate("a", max_tokens=2)
    assert writer.engine() is engine
    assert isinstance(engine, Engine)
