"""The state of a text during generation: whole characters from token ids, cut before the first stop string."""

from __future__ import annotations

from collections.abc import Generator, Iterator

from positron.text.tokenizer import StreamDecoder, Tokenizer


class Progress:
    """Turn the tokens of one text into characters, and hold back what may be the beginning of a stop string.

    `tokens`: the number of tokens of the text, without those that a stop string cuts off. `ended`: whether the text ended
    by itself or at a stop string, before max_tokens.
    """

    def __init__(self, tokenizer: Tokenizer, stops: tuple[str, ...] = ()) -> None:
        self.tokens = 0
        self.ended = False
        self._stops, self._held = stops, ""
        self._decoder = StreamDecoder(tokenizer)
        self._lengths: list[int] = []  # characters after each token; stored only if there are stop strings
        self._characters = self._shown = 0

    def push(self, token: int) -> str:
        """Take the next token and return the characters that may be shown now; a complete stop string sets `ended`."""
        self.tokens += 1
        new = self._decoder.push(token)
        if not self._stops:
            return new
        self._characters += len(new)
        self._lengths.append(self._characters)
        piece, self._held, self.ended = cut_at_stop(self._held + new, self._stops)
        self._shown += len(piece)
        if self.ended:
            self.tokens = self._tokens_of(self._shown)
        return piece

    def finish(self, by_itself: bool) -> str:
        """End the text and return what was held back; `by_itself`: whether the model ended it, before max_tokens."""
        if self.ended:
            return ""
        self.ended = by_itself
        rest, _, stopped = cut_at_stop(self._held + self._decoder.end(), self._stops, at_end=True)
        if stopped:
            self.ended, self.tokens = True, self._tokens_of(self._shown + len(rest))
        return rest

    def _tokens_of(self, characters: int) -> int:
        """Return the number of tokens that the first `characters` characters took."""
        return next((i + 1 for i, length in enumerate(self._lengths) if length >= characters), 0) if characters else 0


class Stream(Iterator[str]):
    """Iterate over a text in pieces of whole characters, each generated when it is requested.

    The memory of a text is freed at its end, by `close`, or when nothing refers to the stream any more.
    """

    def __init__(self, text: Generator[str, None, None], progress: Progress) -> None:
        self._text, self._progress = text, progress

    def __next__(self) -> str:
        return next(self._text)

    def close(self) -> None:
        """End the text early."""
        self._text.close()

    @property
    def tokens(self) -> int:
        """Return the number of tokens of the text so far."""
        return self._progress.tokens

    @property
    def ended(self) -> bool:
        """Tell whether the text ended by itself or at a stop string, and not because of max_tokens."""
        return self._progress.ended


def pieces(rows: Iterator[list[int | None]], progress: Progress, max_tokens: int) -> Generator[str, None, None]:
    """Yield the text of the only row of `rows` in pieces of whole characters.

    The generator does not refer to a `Stream`, so that no reference cycle keeps its cache alive.
    """
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


def cut_at_stop(text: str, stop: tuple[str, ...], at_end: bool = False) -> tuple[str, str, bool]:
    """Cut a text before its first stop string: (text to show, text held back, whether a stop string is complete).

    Held back is an end that may be the beginning of a stop string, unless the text is `at_end`.
    """
    # the stop string that is complete first ends the text, whatever its division into pieces; of several, the longest
    matches = [(start + len(s), start) for s in stop if (start := text.find(s)) >= 0]
    if matches:
        return text[: min(matches)[1]], "", True
    if at_end:
        return text, "", False
    held = max((n for s in stop for n in range(1, len(s)) if text.endswith(s[:n])), default=0)
    return text[: len(text) - held], text[len(text) - held :], False
