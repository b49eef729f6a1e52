"""Generate and parse the built-in corpus: children's stories from a grammar whose probabilities are known exactly.

A plot (`plots.py`) is a list of *beats*, the steps of a story. A beat has several variants, which are sentences with gaps. A
story takes one variant of each beat and fills the gaps with words (`words.py`). Each choice has a known probability, and the
text determines every choice, so the information in a story is exactly -log2 p(story) bits. The average over a corpus, in bits
per byte, is a lower bound for the expected loss of every language model that has not seen the text.

`grammar.py` writes stories. `parser.py` reads them with the same compiled plots and finds *all* derivations of a text. The
tests prove, over the whole grammar, that a story has only one derivation.
"""

from __future__ import annotations

from collections.abc import Iterator

from positron.stories.grammar import GRAMMAR, GRAMMAR_VERSION, Grammar, Request, Story, generate
from positron.stories.parser import bits, first_error, follows, fulfils, parse
from positron.stories.requests import REQUEST_PHRASINGS, ask, read_request, requests

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
    "first_error",
    "follows",
    "fulfils",
    "generate",
    "parse",
    "read_request",
    "requests",
]


def documents(seed: int, start: int, stop: int) -> Iterator[Story]:
    """Yield the stories with the indices `start` to `stop` - 1 of the corpus that `seed` generates."""
    for index in range(start, stop):
        yield generate(seed, index)
