"""Texts that join and leave a batch: each is the one that the engine writes alone."""

from __future__ import annotations

import dataclasses
import importlib.util
import random
from typing import Any

import pytest
import torch
from interop.saved_runs import gpt_config, imported_pieces, random_model

from positron.config import GPTConfig
from positron.inference.decoder import Decoder
from positron.inference.engine import Engine
from positron.inference.sampling import Sampling
from positron.inference.sessions import Piece, Request, Session, Sessions, exact_rows
from positron.model.gpt import GPT
from positron.system.errors import UserError
from positron.text.char_word import CharTokenizer
from positron.text.conversation import Message, prompt_ids

CONTEXT = 24
TOKENIZER = CharTokenizer("abcdefghij é😀\n")
OPTIONS: list[dict[str, Any]] = [
    {"position": "learned", "norm": "layernorm", "activation": "gelu", "bias": True},
    {"position": "rope", "norm": "rmsnorm", "activation": "swiglu", "n_kv_head": 2, "qk_norm": True, "smear": True},
    {"position": "rope", "norm": "rmsnorm", "activation": "relu2", "n_kv_head": 1, "window": 5, "d_ff": 70},
    {"position": "sinusoidal", "norm": "layernorm", "activation": "swiglu", "d_ff": 43},
]


def engine_of(**options: Any) -> Engine:
    config = GPTConfig(
        vocab_size=TOKENIZER.vocab_size,
        context_length=CONTEXT,
        d_model=32,
        n_layer=2,
        n_head=4,
        tie_embeddings=False,
        **options,
    )
    model = GPT(config, seed=1).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return Engine(model, TOKENIZER)


def read_in_small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a prompt of CONTEXT tokens be five pieces, which the compiled decoder reads in both of its ways."""
    monkeypatch.setattr("positron.inference.decoder.PIECE", 5)
    if importlib.util.find_spec("numba"):
        monkeypatch.setattr("positron.inference.compiled.DIRECT_PROMPT", 3)


def requests_of(count: int, chance: random.Random) -> list[Request]:
    """Requests with all kinds of settings, some longer than the context, some stopped by strings."""
    return [
        Request(
            ids=[0, *TOKENIZER.encode("".join(chance.choices("abcdefghij é😀\n", k=chance.randrange(CONTEXT - 1))))],
            sampling=Sampling(
                temperature=chance.choice([0, 0.7, 1.3]),
                top_p=chance.choice([None, 0.9]),
                top_k=chance.choice([None, 7]),
                min_p=chance.choice([None, 0.05]),
                repetition_penalty=chance.choice([1.0, 1.3]),
            ),
            max_tokens=chance.choice([1, 5, CONTEXT, 2 * CONTEXT]),
            seed=chance.randrange(2**40),
            stop_ids=frozenset([0]),
            stops=tuple(chance.choice([(), ("ab", "é"), ("😀",)])),
            logprobs=chance.choice([None, 0, 3]),
        )
        for _ in range(count)
    ]


def alone(engine: Engine, request: Request) -> tuple[str, int, bool]:
    """The text that the engine writes, its tokens, and whether it ended before max_tokens."""
    stream = engine.stream(
        request.ids,
        request.sampling,
        max_tokens=request.max_tokens,
        seed=request.seed,
        stop_ids=request.stop_ids,
        stop=request.stops,
    )
    return "".join(stream), stream.tokens, stream.ended


def ready(sessions: Sessions) -> list[Session]:
    """Read a piece for each text that is not ready, and return the texts that are."""
    for session in sessions.active:
        if not sessions.is_ready(session):
            sessions.read_piece(session)
    return [session for session in sessions.active if sessions.is_ready(session)]


def written(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


@pytest.mark.parametrize("without_numba", ["0", pytest.param("1", marks=pytest.mark.slow)])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: f"{options['position']}-{options['activation']}")
def test_eight_texts_that_join_and_leave_at_random_are_those_written_alone(options, without_numba, monkeypatch):
    monkeypatch.setenv("NUMBA_DISABLE_JIT", without_numba)
    read_in_small_pieces(monkeypatch)
    engine, chance = engine_of(**options), random.Random(5)
    sessions, waiting = Sessions(engine, 8), requests_of(24, chance)
    texts: dict[Session, list[Piece]] = {}
    company = []
    while waiting or sessions.active:
        while waiting and sessions.has_free_row and (len(texts) < 8 or chance.random() < 0.7):
            texts[sessions.join(waiting.pop())] = []
        stepped = [session for session in ready(sessions) if not company or chance.random() < 0.8]  # the others wait
        for session, piece in sessions.choose(stepped):
            texts[session].append(piece)
        stepped = [session for session in stepped if session in sessions.active]
        if stepped and chance.random() < 0.02:
            sessions.leave(stepped.pop())
        sessions.read(stepped)
        company.append(len(stepped))
    assert max(company) >= 5
    finished = [session for session, pieces in texts.items() if pieces and pieces[-1].finish]
    assert len(finished) > 15
    for session in finished:
        text, tokens, ended = alone(engine, session.request)
        assert written(texts[session]) == text
        assert session.progress.tokens == tokens
        assert texts[session][-1].finish == ("stop" if ended else "length")
        if session.request.logprobs is not None:
            assert sum(len(piece.tokens) for piece in texts[session]) == tokens


def run(sessions: Sessions, *requests: Request) -> list[tuple[Session, list[Piece]]]:
    """Write these texts together."""
    texts = {sessions.join(request): [] for request in requests}
    while sessions.active:
        for session, piece in sessions.choose(ready(sessions)):
            texts[session].append(piece)
        sessions.read([session for session in sessions.active if sessions.is_ready(session)])
    return list(texts.items())


@pytest.mark.parametrize("without_numba", ["0", "1"])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: f"{options['position']}-{options['activation']}")
def test_rows_computed_together_get_bit_for_bit_what_they_get_alone(options, without_numba, monkeypatch):
    monkeypatch.setenv("NUMBA_DISABLE_JIT", without_numba)
    decoder = engine_of(**options).decoder.with_empty_cache(8)
    prompts = [[0] * (1 + 2 * i) for i in range(8)]
    for row, prompt in enumerate(prompts):
        decoder.prefill([row], [prompt])
    together = exact_rows(decoder)
    single = engine_of(**options).decoder.with_empty_cache(1)
    ids, rows = torch.arange(8), list(range(8))[:together]
    logits = decoder.step_some(ids[:together], rows)
    for row in rows:
        single.prefill([0], [prompts[row]])
        assert torch.equal(single.step(ids[row : row + 1])[0], logits[row])


@pytest.mark.parametrize("without_numba", ["0", "1"])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: f"{options['position']}-{options['activation']}")
def test_a_prompt_read_in_pieces_between_steps_of_another_text_has_the_logits_of_the_model(
    options, without_numba, monkeypatch
):
    """Bit for bit those of `prefill`, and up to rounding those of the model, which reads the whole prompt at once."""
    monkeypatch.setenv("NUMBA_DISABLE_JIT", without_numba)
    read_in_small_pieces(monkeypatch)
    engine = engine_of(**options)
    prompts = [[1 + (3 * i + n) % (TOKENIZER.vocab_size - 1) for i in range(n)] for n in (1, 4, 5, 6, 13, 15, CONTEXT)]
    wanted = torch.stack([engine.decoder.model(torch.tensor([prompt]))[0][-1].detach() for prompt in prompts])
    together = engine.decoder.with_empty_cache(len(prompts))
    assert_close(together.prefill(list(range(len(prompts))), prompts), wanted)
    for prompt, logits in zip(prompts, wanted, strict=True):
        single, company = engine.decoder.with_empty_cache(1), engine.decoder.with_empty_cache(2)
        pieces = [company.read_piece(prompt, 1)]
        while pieces[-1] is None:
            company.step_some(torch.tensor([2]), [0])
            pieces.append(company.read_piece(prompt, 1))
        assert len(pieces) == -(-len(prompt) // 5)
        assert torch.equal(pieces[-1], single.prefill([0], [prompt])[0])
        assert_close(pieces[-1], logits)


def assert_close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max()


def test_rows_are_computed_singly_where_a_product_depends_on_their_number(monkeypatch):
    """`F.linear` rounds differently with several rows; then nothing but single rows is exact."""
    monkeypatch.setattr("positron.inference.packed_linear.can_pack", lambda weight: False)
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")  # no compiled decoder
    engine = engine_of(position="rope", norm="rmsnorm", activation="swiglu", d_ff=96)
    decoder = engine.decoder.with_empty_cache(4)
    original = Decoder.step_some

    def coarse(self, ids, rows):
        return original(self, ids, rows) + (1e-6 if len(rows) > 2 else 0)

    monkeypatch.setattr(Decoder, "step_some", coarse)
    assert exact_rows(decoder) <= 2
    sessions = Sessions(engine, 4)
    requests = requests_of(4, random.Random(1))
    for session, pieces in run(sessions, *requests):
        assert written(pieces) == alone(engine, session.request)[0]


def plain(text: str, **changes: Any) -> Request:
    settings: dict[str, Any] = {"sampling": Sampling(temperature=1.0), "max_tokens": 5, "seed": 1}
    return Request([0, *TOKENIZER.encode(text)], stop_ids=frozenset(), **settings | changes)


def test_the_next_turn_of_a_conversation_reads_only_what_is_new_in_pieces_of_its_own_positions(monkeypatch):
    read_in_small_pieces(monkeypatch)
    engine = engine_of(**OPTIONS[1])
    sessions = Sessions(engine, 2)
    [(first, _)] = run(sessions, plain("abc"))
    read: list[tuple[int, int]] = []
    kind = type(engine.decoder)
    original = kind.read_piece

    def recorded(self, prompt, row):
        start = self.lengths[row]
        logits = original(self, prompt, row)
        read.append((start, self.lengths[row]))
        return logits

    monkeypatch.setattr(kind, "read_piece", recorded)
    second = dataclasses.replace(first.request, ids=[*first.seen, *TOKENIZER.encode("def")])
    [(session, answer)] = run(sessions, second)
    assert session.row == first.row
    assert session.reused == len(first.seen) - 1 == 8  # the newest token was not read
    assert read == [(8, 10), (10, 12)]
    monkeypatch.undo()
    assert written(answer) == alone(engine, second)[0]


def test_the_same_request_again_is_read_as_the_first_time():
    sessions = Sessions(engine_of(**OPTIONS[0]), 2)
    [(_, first)] = run(sessions, plain("abc"))
    [(again, second)] = run(sessions, plain("abc"))
    assert again.reused == 0
    assert written(first) == written(second)


def test_a_text_that_left_its_context_is_not_taken_for_the_beginning_of_another():
    engine = engine_of(**OPTIONS[0])
    sessions = Sessions(engine, 1)
    [(long, _)] = run(sessions, plain("a", max_tokens=2 * CONTEXT))
    following = dataclasses.replace(long.request, ids=long.seen[:10], max_tokens=5)
    [(session, answer)] = run(sessions, following)
    assert session.reused == 0
    assert written(answer) == alone(engine, following)[0]


def test_log_probabilities_are_those_of_the_model_at_each_token():
    engine = engine_of(**OPTIONS[2])
    request = plain("abc", max_tokens=6, logprobs=3, scores_prompt=True)
    [(session, pieces)] = run(Sessions(engine, 1), request)
    tokens = session.prompt + [token for piece in pieces for token in piece.tokens]
    assert [token.id for token in tokens] == session.seen[1:]
    wanted = engine.decoder.model(torch.tensor([session.seen]))[0].detach().double().log_softmax(-1)
    for place, token in enumerate(tokens):
        assert token.logprob == pytest.approx(float(wanted[place, token.id]), abs=1e-4)
        values, ids = wanted[place].topk(3)
        assert [i for i, _ in token.likeliest] == ids.tolist()
        assert [value for _, value in token.likeliest] == pytest.approx(values.tolist(), abs=1e-4)


def test_a_prompt_is_scored_without_generating():
    sessions = Sessions(engine_of(**OPTIONS[0]), 1)
    session = sessions.join(plain("abc", max_tokens=0, logprobs=1, scores_prompt=True))
    assert sessions.choose(ready(sessions)) == [(session, Piece("", [], "length"))]
    assert [token.id for token in session.prompt] == TOKENIZER.encode("abc")
    assert not sessions.active
    assert sessions.has_free_row


def test_tokens_behind_a_stop_string_are_not_reported():
    engine = engine_of(**OPTIONS[0])
    flat: dict[str, Any] = {"sampling": Sampling(temperature=9.0, top_p=None), "max_tokens": 20}
    text = alone(engine, plain("abc", **flat))[0]
    assert text.index(text[3:6]) == 3
    [(_, pieces)] = run(Sessions(engine, 1), plain("abc", **flat, stops=(text[3:6],), logprobs=0))
    assert written(pieces) == text[:3]
    assert TOKENIZER.decode([token.id for piece in pieces for token in piece.tokens]) == text[:3]
    assert pieces[-1].finish == "stop"


def test_an_error_of_one_text_does_not_end_the_others():
    sessions = Sessions(engine_of(**OPTIONS[0]), 2)
    broken, healthy = sessions.join(plain("abc")), sessions.join(plain("abc"))
    assert ready(sessions) == [broken, healthy]
    sessions._logits[broken] = torch.full((TOKENIZER.vocab_size,), torch.nan)
    pieces = dict(sessions.choose([broken, healthy]))
    assert isinstance(pieces[broken], UserError)
    assert isinstance(pieces[healthy], Piece)
    assert sessions.active == [healthy]


def test_an_answer_begins_without_the_space_that_the_tokenizer_puts_first() -> None:
    tokenizer = imported_pieces()
    engine = Engine(random_model(gpt_config(tokenizer.vocab_size, context_length=CONTEXT)), tokenizer)
    question = prompt_ids([Message("user", "Hi")], tokenizer)
    raw: list[str] = []
    for prompt in (question, [*question, *tokenizer.encode("Tom")]):
        for seed in range(10):
            (rows,) = zip(*engine.ids([prompt], Sampling(), max_tokens=4, stop_ids=(), seed=seed), strict=True)
            raw.append(b"".join(map(tokenizer.bytes_of, rows)).decode(errors="replace"))
            expected = raw[-1].removeprefix(" ") if prompt is question else raw[-1]
            assert "".join(engine.stream(prompt, Sampling(), max_tokens=4, stop_ids=(), seed=seed)) == expected
            assert engine.texts([prompt], Sampling(), max_tokens=4, stop_ids=(), seed=seed) == [expected]
            sessions, text = Sessions(engine, 1), ""
            sessions.join(Request(prompt, Sampling(), 4, seed, frozenset()))
            while sessions.active:
                ((_, piece),) = sessions.choose(ready(sessions))
                text += piece.text
                sessions.read(sessions.active)
            assert text == expected
    assert any(text.startswith(" ") for text in raw[:10])
    assert any(text.startswith(" ") for text in raw[10:])
