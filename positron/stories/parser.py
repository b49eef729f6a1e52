"""Parse built-in stories: find every derivation of a text by the grammar, each with -log2 of its probability."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from positron.stories.grammar import GRAMMAR, Bound, Choice, Choices, Grammar, Node, Pick, Request, Slot, Story, Text
from positron.stories.plots import Plot

_Trail = tuple[()] | tuple["_Trail", tuple[str, str]]


class _Path(NamedTuple):
    """Hold a derivation of `text[:position]`: the choices by which the grammar can generate this beginning of the text.

    A slot is a variable of the story, such as `hero`. `bound` maps the name of each slot that the choices have given a value to
    this value. `bits` is -log2 of the probability of the choices. `trail` is a linked list of the choices: (trail of the
    earlier choices, last choice), or () if there are none.
    """

    position: int
    bound: Bound
    bits: float
    trail: _Trail

    def chose(self, name: str, choice: Choice, i: int) -> _Path:
        return _Path(self.position, self.bound, self.bits + choice.bits[i], (self.trail, (name, choice.options[i])))

    def choices(self) -> Choices:
        backwards: list[tuple[str, str]] = []
        trail = self.trail
        while trail:
            trail, last = trail
            backwards.append(last)
        return tuple(reversed(backwards))


REQUEST_SLOTS = ("hero", "thing", "place")  # the slots that a request names


def parse(text: str, *, grammar: Grammar = GRAMMAR, forgiving: bool = False) -> list[Story]:
    """Find all derivations of the whole text, and return each as a `Story`.

    A derivation is a list of choices by which the grammar generates the text. If `forgiving` is false, a story of this grammar
    has exactly one derivation, and any other text has none.

    If `forgiving` is true, stories that contradict themselves are accepted, too: a red ball may be green later, the name of a
    friend may change, and a balloon may roll. Only the hero, the thing and the place, which a request names, must be the same
    at every mention. The attribute `bits` of the stories that a forgiving call returns has no meaning.

    The parser reads the text from left to right and drops a derivation at its first wrong character. Few sentences begin in the
    same way, so that only few derivations exist at a time.
    """
    stories = []
    for i, name in enumerate(grammar.plot_choice.options):
        reader = _Reader(grammar, grammar.plots[name], " " + text, forgiving)  # every beat begins with a separator
        for path in reader.read_beats(name, _Path(0, {}, 0.0, ()).chose("plot", grammar.plot_choice, i)):
            if path.position == len(reader.text):
                request = Request(path.bound["hero"], path.bound["thing"], path.bound["place"], name)
                stories.append(Story(text, path.bits, request, path.choices()))
    return stories


class _Reader:
    def __init__(self, grammar: Grammar, plot: Plot, text: str, forgiving: bool = False, notes: bool = False) -> None:
        self.grammar, self.plot, self.text, self.forgiving = grammar, plot, text, forgiving
        self.starts = self._starts_and_note if notes else text.startswith  # notes make parsing twice as slow
        self.furthest = 0  # with `notes`: largest number of characters that a derivation has read

    def _starts_and_note(self, word: str, position: int) -> bool:
        """Tell whether the text continues with `word` at `position`, and note how far they agree.

        If they differ, the attribute `furthest` is set to the position of the first different character, unless `furthest` is
        larger already.
        """
        if self.text.startswith(word, position):
            return True
        self.furthest = max(self.furthest, position)
        while self.text.startswith(word[: self.furthest + 1 - position], position) and self.furthest < len(self.text):
            self.furthest += 1
        return False

    def read_beats(self, plot: str, path: _Path) -> list[_Path]:
        """Return every derivation that continues `path` with all beats (the steps of a story) of the plot named `plot`.

        A derivation is a list of choices by which the grammar generates a beginning of the text.
        """
        paths = [path]
        for beat in self.grammar.beats[plot]:
            paths = [end for path in paths for end in self.read((beat,), path)]
        return paths

    def read(self, nodes: tuple[Node, ...], path: _Path) -> Iterator[_Path]:
        """Yield every derivation that continues the derivation `path` with all of `nodes`.

        `path`: a derivation of the beginning of the text. `nodes`: parts of the grammar, one after another.
        """
        for i, node in enumerate(nodes):
            if isinstance(node, Text):
                if not self.starts(node.text, path.position):
                    return
                path = path._replace(position=path.position + len(node.text))
            elif isinstance(node, Slot) and node.name in path.bound and not self.forgiving:
                word = self.grammar.spell(self.plot, node, path.bound[node.name])
                if not self.starts(word, path.position):
                    return
                path = path._replace(position=path.position + len(word))
            else:
                branches = self.draw(node, path) if isinstance(node, Slot) else self.pick(node, path)
                for branch in branches:
                    yield from self.read(nodes[i + 1 :], branch)
                return
        yield path

    def accepted_words(self, slot: Slot, value: str | None) -> set[str]:
        """Return the texts that a forgiving parser accepts in place of `slot`, such as `{hero.his}`, in a sentence.

        `value` is the value of the slot in this story, or None if it is unknown. `slot.form` names the form in which the
        sentence needs the value. The parser accepts:

        - for a known value in the form `a`: the value with either article, "a" or "an";
        - for another form that contains the known value, as `in the park` contains `the park`: only this form of the value;
        - for another form that does not contain it, such as a pronoun: this form of every value that the slot can have;
        - for an unknown value: the form `slot.form` of every value that the slot can have.
        """
        if value is not None:
            word = self.grammar.spell(self.plot, slot, value)
            if slot.form == "a":
                return {f"{article} {value}" for article in (("A", "An") if slot.capital else ("a", "an"))}
            if value.lower() in word.lower():
                return {word}
        return {self.grammar.spell(self.plot, slot, other) for other in self.grammar.kinds[self.plot.slots[slot.name]]}

    def pick(self, pick: Pick, path: _Path) -> Iterator[_Path]:
        for i, option in enumerate(pick.options):
            first = option[0] if option else None
            if isinstance(first, Text) and not self.starts(first.text, path.position):
                continue  # rejects most options before a path is created for them
            yield from self.read(option, path.chose(pick.name, pick.choice, i))

    def draw(self, slot: Slot, path: _Path) -> Iterator[_Path]:
        if self.forgiving and (slot.name in path.bound or slot.name not in REQUEST_SLOTS):
            for word in self.accepted_words(slot, path.bound.get(slot.name)):
                if self.starts(word, path.position):
                    yield path._replace(position=path.position + len(word))
            return
        choice = self.grammar.slot_choice(self.plot, slot.name, path.bound)
        for i, value in enumerate(choice.options):
            exact = (self.grammar.spell(self.plot, slot, value),)
            for word in self.accepted_words(slot, value) if self.forgiving else exact:
                if self.starts(word, path.position):
                    chosen = path.chose(slot.name, choice, i)
                    yield chosen._replace(position=path.position + len(word), bound={**path.bound, slot.name: value})


def bits(text: str) -> float:
    """Return -log2 p(text). Raises ValueError if the text is not a story of the grammar."""
    derivations = parse(text)
    if len(derivations) != 1:
        raise ValueError(f"not a story of the grammar: {len(derivations)} derivations")
    return derivations[0].bits


def follows(text: str, request: Request) -> bool:
    """Tell whether the text is a story with the requested hero, object, place and plot.

    Inconsistencies in other parts of the story are accepted; see `forgiving` of `parse`.
    """
    return _tells(text, request, forgiving=True)


def fulfils(text: str, request: Request) -> bool:
    """Tell whether the text is a story of the grammar, without any inconsistency, that fulfils the request."""
    return _tells(text, request)


def _tells(text: str, request: Request, *, forgiving: bool = False) -> bool:
    """Tell whether a derivation of the whole text has the plot, hero, object and place of the request.

    A derivation is a list of choices by which the grammar generates the text. If `forgiving` is true, inconsistencies in other
    parts of the story are accepted (see `parse`).
    """
    plot = GRAMMAR.plots.get(request.plot)
    if plot is None or any(value not in GRAMMAR.kinds[plot.slots[slot]] for slot, value in request.slots.items()):
        return False  # the grammar has no such story
    reader = _Reader(GRAMMAR, plot, " " + text, forgiving)
    ends = reader.read_beats(request.plot, _Path(0, request.slots, 0.0, ()))
    return any(path.position == len(reader.text) for path in ends)


def first_error(text: str, request: Request, *, grammar: Grammar = GRAMMAR) -> int | None:
    """Return the index of the first wrong character, or None if the text is the beginning of a story that fulfils the request.

    No such story begins with the text up to and including the wrong character. If other text follows a complete story, the
    index is the length of the story.
    """
    reader = _Reader(grammar, grammar.plots[request.plot], " " + text, notes=True)  # every beat begins with a separator
    ends = reader.read_beats(request.plot, _Path(0, request.slots, 0.0, ()))
    furthest = max([reader.furthest, *(path.position for path in ends)])  # of " " + text
    return None if furthest > len(text) else furthest - 1
