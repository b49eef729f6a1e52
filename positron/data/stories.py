"""The built-in corpus: children's stories from a grammar whose probabilities are known, so its entropy is too.

A story takes one variant of each beat of a plot, and fills it with words (`story_plots.py`, `story_words.py`). Each
choice has a known probability, and the text tells every choice, so -log2 p(story) is exactly the information in it, in
bits. Over a corpus that is a floor which no honest language model's bits per byte can beat.

One pass over the same compiled plots writes (`generate`), another reads (`parse`); the second finds *all* ways in which
a text could have come about, which is how the tests prove that there is only one.
"""

from __future__ import annotations

import hashlib
import math
import random
import re
from bisect import bisect
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import NamedTuple

from positron.data.story_plots import PLOTS, Plot
from positron.data.story_words import KINDS, LISTS, Forms

GRAMMAR_VERSION = hashlib.sha256(repr((PLOTS, KINDS, LISTS)).encode("utf-8")).hexdigest()


@dataclass(frozen=True)
class Request:
    """What a reader can ask for; all but the plot's name stand in the story word for word."""

    name: str
    object: str
    place: str
    plot: str


@dataclass(frozen=True)
class Story:
    """`bits` is -log2 of its probability (given the request, where there was one); `choices` are (what, option)."""

    text: str
    bits: float
    request: Request
    choices: tuple[tuple[str, str], ...]


class Piece(NamedTuple):
    """A part of a variant: fixed text, a form of a slot's value, or a fresh word of a list."""

    kind: str  # text, slot, list
    name: str  # the text, the slot, the list
    form: str = ""
    capital: bool = False


class Choice(NamedTuple):
    """Options with their probabilities, ready to draw from and to look up."""

    options: tuple[str, ...]
    bits: tuple[float, ...]
    cumulative: tuple[float, ...]

    @classmethod
    def of(cls, options: tuple[str, ...], weights: list[float] | None = None) -> Choice:
        weights = weights or [1.0] * len(options)
        total = sum(weights)
        return cls(
            options, tuple(-math.log2(w / total) for w in weights), tuple(accumulate(w / total for w in weights))
        )

    def draw(self, rng: random.Random) -> int:
        return min(bisect(self.cumulative, rng.random()), len(self.options) - 1)


def weights_of(kind: str) -> list[float]:
    """Common and rarer names and things, as in life. The common ones also teach a small model early that what a story
    has named once comes again, which it then applies to the rarer ones."""
    return [1 / ((2 if kind == "child" else 6) + i) for i in range(len(KINDS[kind]))]


@dataclass(frozen=True)
class Grammar:
    """Compiled plots: for each beat its variants as pieces. Small ones are made by tests."""

    plots: tuple[Plot, ...]
    kinds: dict[str, list[Forms]]
    lists: dict[str, tuple[str, ...]]
    beats: dict[str, tuple[tuple[tuple[Piece, ...], ...], ...]]
    plot_choice: Choice
    list_choices: dict[str, Choice]

    @classmethod
    def of(cls, plots: tuple[Plot, ...], kinds: dict[str, list[Forms]], lists: dict[str, tuple[str, ...]]) -> Grammar:
        beats = {
            plot.name: tuple(tuple(_compile(variant) for variant in beat) for beat in plot.beats) for plot in plots
        }
        plot_choice = Choice.of(tuple(p.name for p in plots), [p.weight for p in plots])
        return cls(plots, kinds, lists, beats, plot_choice, {name: Choice.of(words) for name, words in lists.items()})

    def plot(self, name: str) -> Plot:
        return next(plot for plot in self.plots if plot.name == name)


def _compile(variant: str) -> tuple[Piece, ...]:
    """`|` at the start stands for an empty line; the place after a beat before it is known only when telling."""
    pieces = []
    for token in re.split(r"(\{[^}]+\}|\[[^\]]+\])", variant.removeprefix("|")):
        if token.startswith("{"):
            name, _, form = token[1:-1].partition(".")
            pieces.append(Piece("slot", name, form.lower(), form[:1].isupper()))
        elif token.startswith("["):
            pieces.append(Piece("list", token[1:-1].lower(), "", token[1].isupper()))
        elif token:
            pieces.append(Piece("text", token))
    return (Piece("text", "\n\n" if variant.startswith("|") else " "), *pieces) if pieces else ()


GRAMMAR = Grammar.of(PLOTS, KINDS, LISTS)


@cache
def _slot_choice(kind: str, taken: str | None) -> Choice:
    """Values of a kind by their plain form. A friend is never the hero: `taken` is left out, the rest scaled up."""
    pairs = [(forms[""], w) for forms, w in zip(KINDS[kind], weights_of(kind), strict=True) if forms[""] != taken]
    return Choice.of(tuple(value for value, _ in pairs), [w for _, w in pairs])


def slot_choice(grammar: Grammar, plot: Plot, slot: str, bound: dict[str, str]) -> Choice:
    kind = plot.slots[slot]
    taken = next((value for other, value in bound.items() if plot.slots[other] == kind), None)
    if grammar is GRAMMAR:
        return _slot_choice(kind, taken)
    return Choice.of(tuple(forms[""] for forms in grammar.kinds[kind] if forms[""] != taken))


@cache
def _forms(kind: str, value: str) -> Forms:
    return next(forms for forms in KINDS[kind] if forms[""] == value)


def _spell(grammar: Grammar, plot: Plot, piece: Piece, value: str) -> str:
    kind = plot.slots[piece.name]
    if piece.form:
        forms = _forms(kind, value) if grammar is GRAMMAR else next(f for f in grammar.kinds[kind] if f[""] == value)
        value = forms[piece.form]
    return value[0].upper() + value[1:] if piece.capital else value


def generate(seed: int, index: int, request: Request | None = None, *, grammar: Grammar = GRAMMAR) -> Story:
    """Story `index` of the corpus `seed`: a pure function. With a `request`, its choices are given, not drawn."""
    rng = random.Random(f"{seed}/{index}")
    bits, choices = 0.0, []
    if request is None:
        i = grammar.plot_choice.draw(rng)
        plot, bound = grammar.plots[i], {}
        bits += grammar.plot_choice.bits[i]
        choices.append(("plot", plot.name))
    else:
        plot = grammar.plot(request.plot)
        bound = {"hero": request.name, "thing": request.object, "place": request.place}
    parts: list[str] = []
    for number, variants in enumerate(grammar.beats[plot.name]):
        i = min(int(rng.random() * len(variants)), len(variants) - 1)
        bits += math.log2(len(variants))
        choices.append((f"beat {number}", str(i)))
        for piece in variants[i]:
            if piece.kind == "text":
                parts.append(piece.name)
                continue
            if piece.kind == "slot" and piece.name in bound:
                parts.append(_spell(grammar, plot, piece, bound[piece.name]))
                continue
            choice = (
                slot_choice(grammar, plot, piece.name, bound)
                if piece.kind == "slot"
                else grammar.list_choices[piece.name]
            )
            k = choice.draw(rng)
            word = choice.options[k]
            bits += choice.bits[k]
            choices.append((piece.name, word))
            if piece.kind == "slot":
                bound[piece.name] = word
                word = _spell(grammar, plot, piece, word)
            parts.append(word[0].upper() + word[1:] if piece.capital else word)
    final = Request(bound["hero"], bound["thing"], bound["place"], plot.name)
    return Story("".join(parts).lstrip(), bits, final, tuple(choices))


def documents(seed: int, start: int, stop: int) -> Iterator[Story]:
    """Stories start .. stop - 1 of the corpus `seed`."""
    for index in range(start, stop):
        yield generate(seed, index)
