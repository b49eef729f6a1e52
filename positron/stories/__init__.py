"""The built-in corpus: children's stories from a grammar whose probabilities are known, so its entropy is too.

A story takes one variant of each beat of a plot (`plots.py`) and fills it with words (`words.py`). Each
choice has a known probability, and the text tells every choice, so -log2 p(story) is exactly the information in it, in
bits. Over a corpus that is a floor which no honest language model's bits per byte can beat.

One engine writes (`grammar.py`), another pass over the same compiled plots reads (`parser.py`): it finds
*all* ways in which a text could have come about. The tests prove, over the whole grammar, that there is only one.
"""

from __future__ import annotations

from collections.abc import Iterator

from positron.stories.grammar import GRAMMAR, GRAMMAR_VERSION, Grammar, Request, Story, generate
from positron.stories.parser import bits, follows, parse
from positron.stories.requests import REQUEST_PHRASINGS, ask, requests

__all__ = [
    "GRAMMAR",
    "GRAMMAR_VERSION",
    "REQUEST_PHRASINGS",
    "Grammar",
    "Request",
    "Story",
    "ask",
    "bits",
    "documents",
    "follows",
    "generate",
    "parse",
    "requests",
]


def documents(seed: int, start: int, stop: int) -> Iterator[Story]:
    """Stories start .. stop - 1 of the corpus `seed`."""
    for index in range(start, stop):
        yield generate(seed, index)
