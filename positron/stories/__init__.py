"""The built-in corpus: children's stories from a grammar with known probabilities, and therefore with a known entropy.

A story takes one variant of each beat of a plot (`plots.py`) and fills it with words (`words.py`). Each choice has a known
probability, and the text determines every choice, so -log2 p(story) is exactly the information in it, in bits. Over a
corpus this is a lower bound, in bits per byte, for every language model that has not seen the text.

`grammar.py` writes stories; `parser.py` reads them with the same compiled plots and finds *all* derivations of a text. The
tests prove, over the whole grammar, that there is only one.
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
    """Yield the stories start .. stop - 1 of the corpus `seed`."""
    for index in range(start, stop):
        yield generate(seed, index)
