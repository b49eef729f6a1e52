"""Generate the built-in stories and their exact probabilities from a grammar, which is compiled from the plots.

A plot is a list of beats (the steps of a story), a beat is a choice of variants, and a variant is a sentence or two that
contain further choices. Each plot is compiled to a tree with three kinds of nodes (`Text`, `Slot`, `Pick`). `generate` and
`parser.py` use the same tree, so that they always agree. Information is in bits: -log2 of a probability.
"""

from __future__ import annotations

import hashlib
import math
import random
import re
from bisect import bisect
from dataclasses import dataclass, field
from itertools import accumulate
from typing import NamedTuple

from positron.stories.plots import PLOTS, Plot
from positron.stories.words import KINDS, LISTS, WEIGHTS, Forms, with_article

ENGINE_VERSION = 1  # increase it when the same data would give other texts or other bits
GRAMMAR_VERSION = hashlib.sha256(repr((ENGINE_VERSION, PLOTS, KINDS, WEIGHTS, LISTS)).encode("utf-8")).hexdigest()

Choices = tuple[tuple[str, str], ...]
Bound = dict[str, str]


@dataclass(frozen=True)
class Request:
    """Hold a request for a story: the name of its hero, an object and a place, and the name of its plot.

    The values of all fields except `plot` occur literally in the story.
    """

    name: str
    object: str
    place: str
    plot: str

    @property
    def slots(self) -> Bound:
        """Return the values of the slots that the request fixes, as a dict with the keys hero, thing and place."""
        return {"hero": self.name, "thing": self.object, "place": self.place}


@dataclass(frozen=True)
class Story:
    """Hold a story, the request that it fulfils, and the choices that made it.

    `bits` is -log2 of the probability of the story. If the story was generated for a given request, `bits` is -log2 of its
    conditional probability, given this request. `choices` are pairs (name of the choice, option) in the order in which they
    were made.
    """

    text: str
    bits: float
    request: Request
    choices: Choices


class Choice(NamedTuple):
    """Hold options with their probabilities: -log2 p of each option (`bits`), and cumulative probabilities for drawing."""

    options: tuple[str, ...]
    bits: tuple[float, ...]
    cumulative: tuple[float, ...]

    @classmethod
    def of(cls, options: tuple[str, ...], weights: list[float] | None = None) -> Choice:
        """Create a choice with probabilities proportional to `weights`, or equal probabilities if `weights` is None."""
        shares = weights or [1.0] * len(options)
        total = math.fsum(shares)
        bits = tuple(-math.log2(share / total) for share in shares)
        return cls(options, bits, tuple(accumulate(share / total for share in shares)))

    def draw(self, rng: random.Random) -> int:
        """Draw the index of an option."""
        return min(bisect(self.cumulative, rng.random()), len(self.options) - 1)


class Text(NamedTuple):
    """Stand for a fixed text in the sequence of nodes that `compile_text` returns."""

    text: str


class Slot(NamedTuple):
    """Stand for `{name.form}` in a sentence, such as `{hero.his}`: the value of the slot `name` in its form `form`.

    The value is drawn at the first mention of the slot. `capital`: true for a capital first letter, as in `{hero.His}`.
    """

    name: str
    form: str
    capital: bool


class Pick(NamedTuple):
    """Represent a place of the grammar at which one of several sequences of nodes, the `options`, is drawn.

    `choice` has the probabilities of the options. The options are the words of a list, the alternatives in a sentence, or the
    variants of a beat (a step of a story). `name` is the name of the list, "or" for alternatives, and "beat" for variants.
    """

    name: str
    choice: Choice
    options: tuple[tuple[Node, ...], ...]


Node = Text | Slot | Pick
_TOKEN = re.compile(r"\{[^}]+\}|\[[^\]]+\]|[(|)]|[^{\[(|)]+")


@dataclass(frozen=True)
class Grammar:
    """Hold plots, compiled to trees of nodes, and the possible values of their slots.

    `plots` maps the name of each plot to the plot, and `plot_choice` has these names with their probabilities. `beats` maps the
    name of each plot to its compiled beats (the steps of a story). `kinds` maps each kind of slot, such as "toy", to its
    values, and each value to its forms. `weights` maps a kind to the weights of its values; the values of a kind without
    weights have equal probabilities. `_slot_choices` stores the probabilities that `slot_choice` has computed.

    `GRAMMAR` is the grammar of the built-in stories; tests create small grammars.
    """

    plots: dict[str, Plot]
    plot_choice: Choice
    beats: dict[str, tuple[Pick, ...]]
    kinds: dict[str, dict[str, Forms]]
    weights: dict[str, list[float]]
    _slot_choices: dict[tuple[str, str | None], Choice] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        plots: tuple[Plot, ...],
        kinds: dict[str, list[Forms]],
        lists: dict[str, tuple[str, ...]],
        weights: dict[str, list[float]] | None = None,
    ) -> Grammar:
        """Create a grammar from plots.

        `kinds` maps a kind of slot, such as "toy", to its values, each in all its forms. `lists` maps the name of each word
        list to its words; a plot contains `[name]` where a word of the list is drawn. `weights` maps a kind to the weights of
        its values; the values of a kind without weights have equal probabilities.
        """
        compiled = {plot.name: tuple(_beat(variants, lists) for variants in plot.beats) for plot in plots}
        return cls(
            {plot.name: plot for plot in plots},
            Choice.of(tuple(plot.name for plot in plots), [plot.weight for plot in plots]),
            compiled,
            {kind: {forms[""]: forms for forms in options} for kind, options in kinds.items()},
            weights or {},
        )

    def slot_choice(self, plot: Plot, slot: str, bound: Bound) -> Choice:
        """Return the possible values of the slot `slot`, a variable of the plot such as "hero", with their probabilities.

        `bound` maps the slots that have a value already to their values. If one of them draws its values from the same list as
        `slot`, its value is excluded. For example, the friend is never the hero.
        """
        kind = plot.slots[slot]
        excluded_value = next(
            (value for other, value in bound.items() if other != slot and plot.slots[other] == kind), None
        )
        choice = self._slot_choices.get((kind, excluded_value))
        if choice is None:
            weights = self.weights.get(kind, [1.0] * len(self.kinds[kind]))
            pairs = [(v, w) for v, w in zip(self.kinds[kind], weights, strict=True) if v != excluded_value]
            choice = Choice.of(tuple(value for value, _ in pairs), [weight for _, weight in pairs])
            self._slot_choices[kind, excluded_value] = choice
        return choice

    def spell(self, plot: Plot, slot: Slot, value: str) -> str:
        """Return `value` as it is written in place of `slot`, such as `an apple` for the value `apple` and the form `a`.

        The result is the form `slot.form` of the value, or the value itself if `slot.form` is empty. It begins with a capital
        letter if `slot.capital`. `plot`, the plot of the story, says which kind of values the slot has.
        """
        if slot.form:
            value = self.kinds[plot.slots[slot.name]][value][slot.form]
        return value[0].upper() + value[1:] if slot.capital else value


def _beat(variants: tuple[str, ...], lists: dict[str, tuple[str, ...]]) -> Pick:
    """Compile a beat: a choice between `variants`, one of which is written at this step of the story.

    A compiled variant begins with the text that separates it from the beat before: an empty line if the variant begins with a
    pilcrow, otherwise a space. An empty variant writes nothing. `lists` maps the name of each word list to its words.
    """
    options = []
    for variant in variants:
        separator = Text("\n\n" if variant.startswith("¶") else " ")
        options.append((separator, *compile_text(variant.removeprefix("¶"), lists)) if variant else ())
    return Pick("beat", Choice.of(variants), tuple(options))


def compile_text(source: str, lists: dict[str, tuple[str, ...]]) -> tuple[Node, ...]:
    """Compile a text in the notation of `beats.py` to nodes.

    `{slot.form}` stands for the value of a slot in one of its forms, such as `{hero.his}`. `[list]` stands for a random word of
    a list, and `[a list]` for such a word with its indefinite article. `(one|or|another)` stands for one of several texts.
    `lists` maps the name of each list to its words.

    Raises ValueError for a `)` or `|` outside parentheses, IndexError for a missing `)`, and KeyError for an unknown list.
    """
    tokens = _TOKEN.findall(source)
    nodes = _sequence(tokens, lists)
    if tokens:
        raise ValueError(f"unbalanced ')' or '|' in {source!r}")
    return nodes


def _sequence(tokens: list[str], lists: dict[str, tuple[str, ...]]) -> tuple[Node, ...]:
    """Compile the tokens before the first unmatched `|` or `)` to nodes, and remove these tokens from the list `tokens`.

    A token is `{slot.form}`, `[list]`, one of the characters `(`, `|` and `)`, or the fixed text between two of the others.
    `lists` maps the name of each word list to its words.
    """
    nodes: list[Node] = []
    while tokens and tokens[0] not in ("|", ")"):
        token = tokens.pop(0)
        if token == "(":
            nodes.append(_alternatives(tokens, lists))
        elif token[0] == "{":
            name, _, form = token[1:-1].partition(".")
            nodes.append(Slot(name, form.lower(), form[:1].isupper()))
        elif token[0] == "[":
            nodes.append(_list(token[1:-1], lists))
        else:
            nodes.append(Text(token))
    return tuple(nodes)


def _alternatives(tokens: list[str], lists: dict[str, tuple[str, ...]]) -> Pick:
    options = []
    labels = []
    closing = "|"
    while closing == "|":
        before = list(tokens)
        options.append(_sequence(tokens, lists))
        labels.append("".join(before[: len(before) - len(tokens)]))
        closing = tokens.pop(0)  # an IndexError here means that a ")" is missing
    return Pick("or", Choice.of(tuple(labels)), tuple(options))


def _list(token: str, lists: dict[str, tuple[str, ...]]) -> Pick:
    name = token.lower().removeprefix("a ")
    words = lists[name]
    texts = [with_article(word) for word in words] if token.lower().startswith("a ") else list(words)
    if token[0].isupper():
        texts = [text[0].upper() + text[1:] for text in texts]
    return Pick(name, Choice.of(words), tuple((Text(text),) for text in texts))


GRAMMAR = Grammar.of(PLOTS, KINDS, LISTS, WEIGHTS)


class _Writer:
    """Write one story.

    The attribute `parts` is the text so far, in pieces. `choices` are the choices made so far, and `bits` is -log2 of the
    probability of these choices.
    """

    def __init__(self, grammar: Grammar, plot: Plot, rng: random.Random, bound: Bound) -> None:
        self.grammar, self.plot, self.rng, self.bound = grammar, plot, rng, bound
        self.bits = 0.0
        self.parts: list[str] = []
        self.choices: list[tuple[str, str]] = []

    def draw(self, name: str, choice: Choice) -> int:
        i = choice.draw(self.rng)
        self.bits += choice.bits[i]
        self.choices.append((name, choice.options[i]))
        return i

    def write(self, nodes: tuple[Node, ...]) -> None:
        for node in nodes:
            if isinstance(node, Text):
                self.parts.append(node.text)
            elif isinstance(node, Pick):
                self.write(node.options[self.draw(node.name, node.choice)])
            else:
                if node.name not in self.bound:
                    choice = self.grammar.slot_choice(self.plot, node.name, self.bound)
                    self.bound[node.name] = choice.options[self.draw(node.name, choice)]
                self.parts.append(self.grammar.spell(self.plot, node, self.bound[node.name]))


def generate(seed: int, index: int, request: Request | None = None, *, grammar: Grammar = GRAMMAR) -> Story:
    """Write story `index` of the corpus that `seed` generates; a `request` fixes the plot, hero, object and place.

    The story depends on the arguments alone.
    """
    rng = random.Random(f"{seed}/{index}")
    bits, choices = 0.0, []
    if request is None:
        i = grammar.plot_choice.draw(rng)
        name, bits = grammar.plot_choice.options[i], grammar.plot_choice.bits[i]
        choices.append(("plot", name))
    else:
        name = request.plot
    writer = _Writer(grammar, grammar.plots[name], rng, {} if request is None else request.slots)
    writer.write(grammar.beats[name])
    bound = writer.bound
    fulfilled = Request(bound["hero"], bound["thing"], bound["place"], name)
    return Story("".join(writer.parts)[1:], bits + writer.bits, fulfilled, (*choices, *writer.choices))
