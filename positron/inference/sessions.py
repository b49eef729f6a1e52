"""Generate many texts in one batch. A text can join or leave the batch between two steps.

Each text has its own settings, its own random generator and its own row of the key/value cache. In fp32, a text has exactly
the tokens that `Engine.stream` returns, and does not depend on the other texts, for two reasons. First, a step computes only
so many rows together that each row gets the result that it would get alone (see `exact_rows`). Second, a prompt is read in
pieces that end at fixed positions. There is one exception: if a row still holds the earlier turns of a conversation, only the
tokens after these turns are read. The logits of this text then differ from those of `Engine` by rounding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from positron.inference.decoder import piece_end
from positron.inference.decoders import AnyDecoder
from positron.inference.engine import Engine
from positron.inference.sampling import Sampling, choose
from positron.inference.writing import Progress


@dataclasses.dataclass(frozen=True)
class Request:
    """Describe a text to generate.

    `ids`: the token ids of the prompt. `max_tokens` may be 0, for example if only the log-probabilities of the prompt are
    wanted. `logprobs`: the number of likeliest tokens to report with each token. If it is None, no log-probabilities are
    reported. `scores_prompt`: true to report the log-probabilities of the prompt's tokens, too.
    """

    ids: list[int]
    sampling: Sampling
    max_tokens: int
    seed: int
    stop_ids: frozenset[int]
    stops: tuple[str, ...] = ()
    logprobs: int | None = None
    scores_prompt: bool = False


class Token(NamedTuple):
    """Hold a token id, its log-probability, and (id, log-probability) of the likeliest tokens at its position.

    The log-probabilities are in nats. They come from the logits of the model, before temperature and other sampling settings
    are applied.
    """

    id: int
    logprob: float
    likeliest: list[tuple[int, float]]


class Piece(NamedTuple):
    """Hold the characters that a step adds to a text, and their tokens.

    `tokens` is filled only if the request asks for log-probabilities. `finish`: "stop" if the text ended at a stop token or a
    stop string, "length" if it reached the maximum number of tokens, None if it has not ended.
    """

    text: str
    tokens: list[Token]
    finish: Literal["stop", "length"] | None = None  # None: the text has not ended


class Session:
    """Hold the state of one text that is being generated, in one row of the key/value cache."""

    def __init__(self, request: Request, row: int, engine: Engine) -> None:
        self.request, self.row = request, row
        self.window = engine.window(request.ids)  # the tokens that the row must hold before the next token is chosen
        self.seen = list(request.ids)
        self.generator = torch.Generator().manual_seed(request.seed)
        self.progress = Progress(engine.tokenizer, request.ids, request.stops)
        self.reused = 0  # number of the prompt's tokens that were already in the row
        self.prompt: list[Token] = []  # the prompt's tokens from the second on, if the request scores them
        self.count = 0  # tokens generated so far
        self._held_back: list[Token] = []  # generated tokens whose text is not yet shown
        self._shown = 0

    def push(self, token: int, logits: Tensor) -> Piece:
        """Add the next token, which was sampled from `logits` (V,), and return the piece that it adds to the text."""
        if token in self.request.stop_ids:
            return self._finished("", by_itself=True)
        self.seen.append(token)
        self.count += 1
        if self.request.logprobs is not None:
            self._held_back.append(scored(logits[None], [token], self.request.logprobs)[0])
        text = self.progress.push(token)
        if self.progress.ended:
            return Piece(text, self._newly_shown(self.progress.tokens), "stop")
        if self.count >= self.request.max_tokens:
            return self._finished(text, by_itself=False)
        return Piece(text, self._newly_shown(self.progress.shown_tokens))

    def _finished(self, text: str, by_itself: bool) -> Piece:
        text += self.progress.finish(by_itself)
        finish: Literal["stop", "length"] = "stop" if self.progress.ended else "length"
        return Piece(text, self._newly_shown(self.progress.tokens), finish)

    def _newly_shown(self, total: int) -> list[Token]:
        """Return those of the first `total` generated tokens that no earlier call has returned, with their log-probabilities.

        The list is empty if the request does not ask for log-probabilities.
        """
        count = total - self._shown
        shown, self._held_back = self._held_back[:count], self._held_back[count:]
        self._shown += len(shown)
        return shown


class Sessions:
    """Generate up to `slots` texts at the same time, one token per step.

    `join` adds a text. Call `read_piece` until the text is ready (see `is_ready`), then `choose` and `read` in turns: `choose`
    samples the next token of each text, and `read` computes the logits after it. If a text fills its context, `read` makes it
    not ready: call `read_piece` until it is ready again. The class is not thread-safe: call all methods from one thread.
    """

    def __init__(self, engine: Engine, slots: int) -> None:
        self.engine, self.slots = engine, slots
        self.decoder = engine.decoder.with_empty_cache(slots)
        self.active: list[Session] = []
        self.together = exact_rows(self.decoder) if self.decoder.dtype == torch.float32 else slots
        self._free = list(range(slots))  # the row that has been free for the longest time comes first
        self._held: list[list[int]] = [[] for _ in range(slots)]  # the tokens in a free row, from position 0
        self._prompts = [0] * slots  # how many of these tokens belong to the row's last prompt
        self._logits: dict[Session, Tensor] = {}

    @property
    def has_free_row(self) -> bool:
        """Tell whether a row of the cache is free, so that another text can join the batch."""
        return bool(self._free)

    def join(self, request: Request) -> Session:
        """Assign a free row of the cache to a text, and return the new session. A row must be free (see `has_free_row`).

        A row that still holds the earlier turns of the same conversation is preferred. Then only the tokens of the prompt that
        follow these turns are read.
        """
        ids = self.engine.window(request.ids)
        row = max(self._free, key=lambda row: self._known(row, ids, request))
        session = Session(request, row, self.engine)
        session.reused = self.decoder.lengths[row] = self._known(row, ids, request)
        self._held[row], self._prompts[row] = [], 0  # the row holds nothing known until the prompt has been read
        self._free.remove(row)
        self.active.append(session)
        return session

    def is_ready(self, session: Session) -> bool:
        """Tell whether all tokens of a text have been read, so that its next token can be chosen."""
        return session in self._logits

    def read_piece(self, session: Session) -> None:
        """Read the next piece of the prompt of `session`. A piece has at most 128 tokens (see `piece_end`).

        When the text of the session fills the context, the cache is emptied, and the last tokens of the text, half a context,
        must be read again. In this case, the piece is a part of these tokens. The session must not be ready (see `is_ready`).
        """
        row, ids = session.row, session.window
        has_begun = session.count > 0
        if session.request.scores_prompt and not has_begun:
            logits = self._read_scored(session)
        else:
            logits = self.decoder.read_piece(ids, row)
        if logits is None:
            return
        self._logits[session] = logits
        if has_begun:  # as Engine does: a step reads the newest token again
            self.decoder.lengths[row] -= 1
            self._step([session])
        else:
            self._prompts[row] = len(ids) if ids == session.request.ids else 0

    def _known(self, row: int, ids: list[int], request: Request) -> int:
        """Return how many tokens at the start of `ids`, the prompt of `request`, the key/value cache holds in row `row`.

        These tokens need not be read again. The last token of `ids` is never among them, because it must be read for the logits
        after it. The number is 0 unless `ids` consists of the last prompt that was read into this row and further tokens. It is
        also 0 if the request asks for the log-probabilities of the prompt, because these can be computed only while the prompt
        is read.
        """
        held, prompt_length = self._held[row], self._prompts[row]
        if request.scores_prompt or not 0 < prompt_length < len(ids) or held[:prompt_length] != ids[:prompt_length]:
            return 0
        pairs = zip(held, ids[:-1], strict=False)  # the last token is read, for the logits after it
        return next((i for i, (ours, new) in enumerate(pairs) if ours != new), min(len(held), len(ids) - 1))

    def _read_scored(self, session: Session) -> Tensor | None:
        """Read the next piece of a prompt, and append its tokens with their log-probabilities to `session.prompt`.

        The first token of the prompt has no log-probability and is left out. Returns the logits (V,) after the prompt, or
        None if more of the prompt must be read.
        """
        ids, start = session.window, self.decoder.lengths[session.row]
        end = piece_end(start, len(ids))
        logits, following = self.decoder.read(ids[start:end], session.row), ids[start + 1 : end + 1]
        session.prompt += scored(logits[: len(following)], following, session.request.logprobs or 0)
        return logits[-1] if end == len(ids) else None

    def leave(self, session: Session) -> None:
        """End the text of `session`, and free its row for another text."""
        self.active.remove(session)
        self._logits.pop(session, None)
        self._release(session)

    def _release(self, session: Session) -> None:
        row = session.row
        self._held[row] = session.seen[: self.decoder.lengths[row]] if self._prompts[row] else []
        self._free.append(row)

    def choose(self, sessions: Sequence[Session]) -> list[tuple[Session, Piece | Exception]]:
        """Choose the next token of each session's text, and return pairs (session, piece of text that the token adds).

        If choosing a token raised an error, the pair is (session, error). The session of a text that has ended, or for which an
        error was raised, leaves the batch. All sessions must be ready (see `is_ready`).
        """
        pieces: list[tuple[Session, Piece | Exception]] = []
        for session in sessions:
            try:
                piece: Piece | Exception = self._next_piece(session)
            except Exception as error:  # such as logits that are not finite: the other texts continue
                piece = error
            if isinstance(piece, Exception) or piece.finish:
                self.leave(session)
            pieces.append((session, piece))
        return pieces

    def _next_piece(self, session: Session) -> Piece:
        if session.request.max_tokens == 0:
            return Piece("", [], "length")
        logits, sampling = self._logits[session], session.request.sampling
        token = choose(logits, sampling, session.seen, session.generator, self.engine.specials)
        return session.push(token, logits)

    def read(self, sessions: Sequence[Session]) -> None:
        """Compute the logits after the newest token of each session's text.

        A text whose context is full gets no logits: call `read_piece` for it until it is ready again (see `is_ready`).
        """
        for session in sessions:
            if self.decoder.lengths[session.row] >= self.engine.context:
                session.window = self.engine.last_half(session.seen)
                self.decoder.lengths[session.row] = 0
                self._prompts[session.row] = 0  # the row no longer holds the beginning of the text
                del self._logits[session]
        remaining = [session for session in sessions if self.is_ready(session)]
        for start in range(0, len(remaining), self.together):
            self._step(remaining[start : start + self.together])

    def _step(self, sessions: Sequence[Session]) -> None:
        newest = torch.tensor([session.seen[-1] for session in sessions], device=self.decoder.device)
        logits = self.decoder.step_some(newest, [session.row for session in sessions])
        self._logits.update(zip(sessions, logits, strict=True))


def scored(logits: Tensor, tokens: list[int], likeliest: int) -> list[Token]:
    """Compute the log-probability of each of `tokens` (T,) from logits (T, V).

    `likeliest`: the number of likeliest tokens at each position whose log-probabilities are returned, too.
    """
    logprobs = logits.double().log_softmax(dim=-1)
    chosen = logprobs.gather(-1, torch.tensor(tokens, dtype=torch.long, device=logits.device)[:, None])[:, 0].tolist()
    values, ids = (x.tolist() for x in logprobs.topk(min(likeliest, logits.shape[-1])))
    return [
        Token(token, logprob, list(zip(row, row_values, strict=True)))
        for token, logprob, row, row_values in zip(tokens, chosen, ids, values, strict=True)
    ]


def exact_rows(decoder: AnyDecoder) -> int:
    """Return how many rows `step_some` may compute together so that each row gets exactly the logits that it gets alone.

    The decoder's method `step_some` reads one token in each of several rows of the cache.

    With oneDNN's packed weights, the result of a matrix product for one row does not depend on the number of rows. With
    `F.linear`, the result may depend on it. It is not known in advance which of the two this machine uses, or how torch divides
    elementwise operators among threads. Therefore this function computes steps with 2, 3 and more rows, until the logits differ
    from those of each row alone or all rows of the cache are used. In these steps, each row reads one token in the middle of
    the context, in a new cache.
    """
    slots = len(decoder.lengths)
    probe, rows = decoder.with_empty_cache(slots), list(range(slots))
    ids = torch.arange(slots, device=decoder.device) % decoder.vocab_size

    def logits(rows: list[int]) -> Tensor:
        probe.lengths = [decoder.context_length // 2] * slots
        return probe.step_some(ids[rows], rows)

    alone = torch.cat([logits([row]) for row in rows])
    exact = (torch.equal(logits(rows[:count]), alone[:count]) for count in range(2, slots + 1))
    return next((count for count, is_exact in enumerate(exact, 1) if not is_exact), slots)
