"""A text while it is written: whole characters from token ids, cut before the first stop string."""

from __future__ import annotations

from collections.abc import Generator, Iterator

from positron.text.tokenizer import StreamDecoder, Tokenizer


class Progress:
    """What has become of one text so far."""

    def __init__(self, tokenizer: Tokenizer, stops: tuple[str, ...] = ()) -> None:
        self.tokens = 0  # those of the text: what a stop string cuts off does not count
        self.ended = False  # by itself or at a stop string, before max_tokens
        self._stops, self._held = stops, ""
        self._decoder = StreamDecoder(tokenizer)
        self._lengths: list[int] = []  # characters after each token, kept only where a stop string may cut some off
        self._characters = self._shown = 0

    def push(self, token: int) -> str:
        """Take the next token; return what may be shown now. `ended` is True after it if a stop string is complete."""
        self.tokens += 1
        new = self._decoder.push(token)
        if not self._stops:
            return new
        self._characters += len(new)
        self._lengths.append(self._characters)
        piece, self._held, self.ended = cut_at(self._held + new, self._stops)
        self._shown += len(piece)
        if self.ended:
            self.tokens = self._tokens_of(self._shown)
        return piece

    def finish(self, by_itself: bool) -> str:
        """End the text where no stop string did; return what was held back."""
        if self.ended:
            return ""
        self.ended = by_itself
        rest, _, stopped = cut_at(self._held + self._decoder.end(), self._stops, at_end=True)
        if stopped:
            self.ended, self.tokens = True, self._tokens_of(self._shown + len(rest))
        return rest

    def _tokens_of(self, characters: int) -> int:
        """How many tokens it took to write that many characters."""
        return next((i + 1 for i, length in enumerate(self._lengths) if length >= characters), 0) if characters else 0


class Stream(Iterator[str]):
    """One text in pieces of whole characters, each written when it is asked for.

    `tokens` and `ended` tell what became of it. `close` ends it early; its memory is freed then, at its end, or when
    nothing refers to it any more.
    """

    def __init__(self, text: Generator[str, None, None], progress: Progress) -> None:
        self._text, self._progress = text, progress

    def __next__(self) -> str:
        return next(self._text)

    def close(self) -> None:
        self._text.close()

    @property
    def tokens(self) -> int:
        return self._progress.tokens

    @property
    def ended(self) -> bool:
        """Whether the text came to its end by itself or at a stop string, and not because of max_tokens."""
        return self._progress.ended


def pieces(rows: Iterator[list[int | None]], progress: Progress, max_tokens: int) -> Generator[str, None, None]:
    """The text of the only row of `rows`, in pieces. It refers to no `Stream`, so that no cycle keeps a cache alive."""
    count = 0
    for (token,) in rows:
        assert token is not None
        count += 1
        piece = progress.push(token)
        if piece:
            yield piece
        if progress.ended:
            return
    rest = progress.finish(by_itself=count < max_tokens)
    if rest:
        yield rest


def cut_at(text: str, stop: tuple[str, ...], at_end: bool = False) -> tuple[str, str, bool]:
    """(text that may be shown, text held back because a stop string may have begun in it, whether one is complete)."""
    # the one that is complete first ends the text, however it comes in pieces; of those that end together the longest
    found = [(place + len(s), place) for s in stop if (place := text.find(s)) >= 0]
    if found:
        return text[: min(found)[1]], "", True
    if at_end:
        return text, "", False
    held = max((n for s in stop for n in range(1, len(s)) if text.endswith(s[:n])), default=0)
    return text[: len(text) - held], text[len(text) - held :], False
