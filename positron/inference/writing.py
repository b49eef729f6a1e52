"""Turn the tokens of a text into whole characters during generation, and end the text before the first stop string."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence

from positron.text.tokenizer import StreamDecoder, Tokenizer


class Progress:
    """Turn the tokens of one text into characters. Characters that may begin a stop string are held back.

    `prompt`: the ids that the text continues (see `StreamDecoder`).

    `tokens`: the number of tokens of the text, without those of a stop string. `ended`: true if the text ended at a stop token
    or a stop string, false if it has not ended or has reached the maximum number of tokens.
    """

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], stops: tuple[str, ...] = ()) -> None:
        self.tokens = 0
        self.ended = False
        self._stops, self._held = stops, ""
        self._decoder = StreamDecoder(tokenizer, prompt)
        self._lengths: list[int] = []  # characters after each token; stored only if there are stop strings
        self._characters = self._shown = 0

    def push(self, token: int) -> str:
        """Add the next token and return the characters that can be shown now. A complete stop string sets `ended`."""
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
        """End the text and return the characters that `push` has held back, up to the first stop string.

        `push` holds characters back if they may begin a stop string, and bytes whose character is not complete yet.

        `by_itself`: true if the text ended at a stop token, false if it reached the maximum number of tokens. It becomes the
        value of `ended`, unless the text ended at a stop string; `ended` is then true.
        """
        if self.ended:
            return ""
        self.ended = by_itself
        rest, _, stopped = cut_at_stop(self._held + self._decoder.end(), self._stops, at_end=True)
        if stopped:
            self.ended, self.tokens = True, self._tokens_of(self._shown + len(rest))
        return rest

    @property
    def shown_tokens(self) -> int:
        """Return the number of tokens whose characters `push` has returned so far.

        Without stop strings, all tokens are counted, even if the last character is not complete yet.
        """
        return self._tokens_of(self._shown) if self._stops else self.tokens

    def _tokens_of(self, characters: int) -> int:
        """Return the number of tokens to which the first `characters` characters of the text belong."""
        return next((i + 1 for i, length in enumerate(self._lengths) if length >= characters), 0) if characters else 0


class Stream(Iterator[str]):
    """Iterate over a text while it is generated. Each item is the next part, a str, and is generated when it is requested.

    The key/value cache of the text is freed when the text ends, when `close` is called, or when nothing refers to the stream
    any more.
    """

    def __init__(self, text: Generator[str, None, None], progress: Progress) -> None:
        self._text, self._progress = text, progress

    def __next__(self) -> str:
        return next(self._text)

    def close(self) -> None:
        """End the text early and free its cache."""
        self._text.close()

    @property
    def tokens(self) -> int:
        """Return the number of tokens that were generated so far, without those of a stop string."""
        return self._progress.tokens

    @property
    def ended(self) -> bool:
        """Tell whether the text ended at a stop token or a stop string, and not at the maximum number of tokens."""
        return self._progress.ended


def pieces(rows: Iterator[list[int | None]], progress: Progress, max_tokens: int) -> Generator[str, None, None]:
    """Yield a text as strings of whole characters.

    `rows` yields the token ids of the text, each in a list of length 1, which never contains None. `progress` converts the ids
    to characters, and ends the text at a stop string. If `rows` yields fewer than `max_tokens` ids, the text ended at a stop
    token; this is recorded in `progress`.

    This is not a method of `Stream`: a generator that refers to its stream would form a reference cycle with it, and the cache
    of the text would not be freed when the last reference to the stream is gone.
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
    """Cut a text before its first stop string; return the text to show, the text held back, and whether it was cut.

    The end of the text is held back if it may be the beginning of a stop string. With `at_end`, no more text follows, so
    nothing is held back.
    """
    # The stop string that is complete first ends the text, so that the result does not depend on the pieces of the text. If
    # several are complete at the same character, the longest one is used.
    matches = [(start + len(s), start) for s in stop if (start := text.find(s)) >= 0]
    if matches:
        return text[: min(matches)[1]], "", True
    if at_end:
        return text, "", False
    held = max((n for s in stop for n in range(1, min(len(s), len(text) + 1)) if text.endswith(s[:n])), default=0)
    return text[: len(text) - held], text[len(text) - held :], False
