"""Compute the grammar's exact distribution of the next token of a story, given the tokens before it.

A word is white space followed by other characters, including punctuation (see `stories/following.py`). The tokenizer encodes
each word of a story separately, so the tokens of a story are the tokens of its words, one after the other. If only the first
tokens of a word were read, the next token can belong to any word that the grammar allows here and that begins with these
tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from positron.stories import generate
from positron.stories.following import END, Following, Piece, Rule, Word, first_words, next_words
from positron.stories.grammar import GRAMMAR, Grammar
from positron.system.errors import UserError
from positron.text.tokenizer import END_OF_TEXT, UNKNOWN, Tokenizer

STORIES_TESTED = 20


@dataclass(frozen=True)
class _Reading:
    """Hold a word to which the next token may belong: its probability, its tokens, and how many of its tokens were read."""

    p: float
    ids: tuple[int, ...]
    read: int
    pieces: tuple[Piece, ...]  # text of the word, with the grammar rule of each piece; empty at the end of the story
    after: Following | None  # state of the grammar after the word; None after the end of the story


class StoryTokens:
    """Keep the exact distribution of the next token up to date while a story is read token by token.

    It is the distribution in the stories that the grammar generates, given the tokens read so far. `expected` returns it, and
    `read` reads the next token. After the token that ends the document, the distribution is empty.
    """

    def __init__(self, tokenizer: Tokenizer, grammar: Grammar = GRAMMAR) -> None:
        self._tokenizer, self._grammar = tokenizer, grammar
        self._end = tokenizer.special_id(END_OF_TEXT)
        self._ids: dict[str, tuple[int, ...]] = {}
        self._readings = [self._reading(word, 1.0) for word in first_words(grammar)]

    def expected(self) -> dict[int, float]:
        """Return the probability of each possible next token, by id."""
        shares: dict[int, list[float]] = {}
        for reading in self._readings:
            shares.setdefault(reading.ids[reading.read], []).append(reading.p)
        return {i: math.fsum(values) for i, values in shares.items()}

    def read(self, token: int) -> Rule | None:
        """Read the next token, and return the grammar rule that produces it, or the most probable one of several such rules.

        If the grammar does not allow the token, return None and change nothing.
        """
        fitting = [reading for reading in self._readings if reading.ids[reading.read] == token]
        if not fitting:
            return None
        whole = math.fsum(reading.p for reading in fitting)
        rules: dict[Rule, float] = {}
        readings: list[_Reading] = []
        for reading in fitting:
            rule = self._rule(reading)
            rules[rule] = rules.get(rule, 0.0) + reading.p
            p, read = reading.p / whole, reading.read + 1
            if read < len(reading.ids):
                readings.append(_Reading(p, reading.ids, read, reading.pieces, reading.after))
            elif reading.after is not None:
                readings += [self._reading(word, p) for word in next_words(reading.after, self._grammar)]
        self._readings = readings
        return max(rules, key=lambda rule: rules[rule])

    def is_within_word(self, text: str) -> bool:
        """Tell whether a word that begins with `text` may come next, according to the grammar.

        If only the first tokens of a word have been read, tell whether the rest of this word may begin with `text`. Characters
        are compared, not tokens, so `text` may be tokenized differently from the word.
        """
        for reading in self._readings:
            left = b"".join(self._tokenizer.bytes_of(i) for i in reading.ids[reading.read :])
            if left.startswith(text.encode("utf-8")):
                return True
        return False

    def words(self, count: int) -> list[str]:
        """Return at most `count` words to which the next token may belong, the most probable first.

        If only the first tokens of a word have been read, the whole word is returned. "" stands for the end of the story.
        """
        shares: dict[str, float] = {}
        for reading in self._readings:
            text = "".join(piece.text for piece in reading.pieces)
            shares[text] = shares.get(text, 0.0) + reading.p
        return sorted(shares, key=lambda text: -shares[text])[:count]

    def _reading(self, word: Word, p: float) -> _Reading:
        if not word.pieces:
            return _Reading(p * word.p, (self._end,), 0, (), None)
        text = word.text
        ids = self._ids.get(text)
        if ids is None:
            ids = self._ids[text] = tuple(self._tokenizer.encode(text))
        return _Reading(p * word.p, ids, 0, word.pieces, word.after)

    def _rule(self, reading: _Reading) -> Rule:
        """Return the grammar rule that wrote the text of the next token of a word, or END at the end of the story.

        `reading` holds the tokens of the word, and how many of them were read. If several rules wrote parts of the text of the
        token, return the rule of its first character that is not white space.
        """
        if not reading.pieces:
            return END
        token = self._tokenizer.bytes_of(reading.ids[reading.read])
        start = sum(len(self._tokenizer.bytes_of(i)) for i in reading.ids[: reading.read])
        place = start + len(token) - len(token.lstrip())
        if place == start + len(token):
            place = start
        for piece in reading.pieces:
            place -= len(piece.text.encode("utf-8"))
            if place < 0:
                return piece.rule
        return reading.pieces[-1].rule


def refuse_joining(tokenizer: Tokenizer) -> None:
    """Raise UserError for a tokenizer with tokens that contain parts of two words of a story.

    A word is white space followed by other characters. The tokenizer is tested on one story.
    """
    text = generate(0, 0).text
    words: list[str] = []
    for character in text:
        if not words or (character.isspace() and not words[-1][-1].isspace()):
            words.append("")
        words[-1] += character
    if tokenizer.encode(text) != [i for word in words for i in tokenizer.encode(word)]:
        raise UserError(
            f"the exact probabilities of stories cannot be computed for this tokenizer ({tokenizer.kind}), because its "
            "tokens join punctuation with the following white space: name a run that was trained with another tokenizer, "
            "such as tokenizer=spm_4k"
        )


def refuse_unknown(tokenizer: Tokenizer) -> None:
    """Raise UserError for a tokenizer that does not know all words of the stories. It is tested on 20 stories (STORIES_TESTED).

    All unknown words share one token, so each of them would multiply the number of readings of a story.
    """
    # the unknown token of an imported tokenizer can have any id
    if not tokenizer.has_unknown and tokenizer.kind != "huggingface":
        return
    if any(UNKNOWN in tokenizer.decode(tokenizer.encode(generate(0, i).text)) for i in range(STORIES_TESTED)):
        raise UserError(
            f"the exact probabilities of stories cannot be computed for this tokenizer ({tokenizer.kind}), because it does not "
            "know all words of the stories: name a run that was trained with another tokenizer, such as tokenizer=spm_4k"
        )
