"""Reading a built-in story back: every way in which the grammar could have written a text, and so its exact bits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from positron.stories.grammar import GRAMMAR, Bound, Choice, Choices, Grammar, Node, Pick, Request, Slot, Story, Text
from positron.stories.plots import Plot


class _Path(NamedTuple):
    """A derivation so far: it has read `text[:place]`. `trail` nests its choices in pairs, the last outermost."""

    place: int
    bound: Bound
    bits: float
    trail: tuple[object, ...]

    def chose(self, name: str, choice: Choice, i: int) -> _Path:
        return _Path(self.place, self.bound, self.bits + choice.bits[i], (self.trail, (name, choice.options[i])))

    def choices(self) -> Choices:
        found = []
        trail = self.trail
        while trail:
            trail, last = trail  # type: ignore[assignment]
            found.append(last)
        return tuple(reversed(found))  # type: ignore[arg-type]


ASKED = ("hero", "thing", "place")  # what a request names


def parse(text: str, *, grammar: Grammar = GRAMMAR, forgiving: bool = False) -> list[Story]:
    """All derivations of the whole text: exactly one for a story of this grammar, none for anything else.

    `forgiving`: what no request names may slip, so that a ball which was red is green later, a friend has another name,
    or a balloon rolls away; hero, thing and place have to be the same wherever they are named. The bits then mean nothing.

    A derivation is dropped at its first wrong letter, and few sentences begin alike, so few are ever alive at a time.
    """
    found = []
    for i, name in enumerate(grammar.plot_choice.options):
        reader = _Reader(grammar, grammar.plots[name], " " + text, forgiving)  # every beat begins with a separator
        paths = [_Path(0, {}, 0.0, ()).chose("plot", grammar.plot_choice, i)]
        for beat in grammar.beats[name]:
            paths = [end for path in paths for end in reader.read((beat,), path)]
        for path in paths:
            if path.place == len(text) + 1:
                request = Request(path.bound["hero"], path.bound["thing"], path.bound["place"], name)
                found.append(Story(text, path.bits, request, path.choices()))
    return found


class _Reader:
    def __init__(self, grammar: Grammar, plot: Plot, text: str, forgiving: bool) -> None:
        self.grammar, self.plot, self.text, self.forgiving = grammar, plot, text, forgiving

    def read(self, nodes: tuple[Node, ...], path: _Path) -> Iterator[_Path]:
        """The paths on which `nodes` can be read from `path` on."""
        for i, node in enumerate(nodes):
            if isinstance(node, Text):
                if not self.text.startswith(node.text, path.place):
                    return
                path = path._replace(place=path.place + len(node.text))
            elif isinstance(node, Slot) and node.name in path.bound and not self.forgiving:
                word = self.grammar.spell(self.plot, node, path.bound[node.name])
                if not self.text.startswith(word, path.place):
                    return
                path = path._replace(place=path.place + len(word))
            else:
                branches = self.draw(node, path) if isinstance(node, Slot) else self.pick(node, path)
                for branch in branches:
                    yield from self.read(nodes[i + 1 :], branch)
                return
        yield path

    def forgiven(self, slot: Slot, value: str | None) -> set[str]:
        """All that may stand for the slot: its value where that is named, whatever the article; else any of its kind."""
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
            if isinstance(first, Text) and not self.text.startswith(first.text, path.place):
                continue  # most options end here, before anything is made for them
            yield from self.read(option, path.chose(pick.name, pick.choice, i))

    def draw(self, slot: Slot, path: _Path) -> Iterator[_Path]:
        if self.forgiving and (slot.name in path.bound or slot.name not in ASKED):
            for word in self.forgiven(slot, path.bound.get(slot.name)):
                if self.text.startswith(word, path.place):
                    yield path._replace(place=path.place + len(word))
            return
        choice = self.grammar.slot_choice(self.plot, slot.name, path.bound)
        for i, value in enumerate(choice.options):
            words = self.forgiven(slot, value) if self.forgiving else (self.grammar.spell(self.plot, slot, value),)
            for word in words:
                if self.text.startswith(word, path.place):
                    chosen = path.chose(slot.name, choice, i)
                    yield chosen._replace(place=path.place + len(word), bound={**path.bound, slot.name: value})


def bits(text: str) -> float:
    """-log2 p(text). ValueError for a text that is not a story of the grammar."""
    derivations = parse(text)
    if len(derivations) != 1:
        raise ValueError(f"not a story of the grammar: {len(derivations)} derivations")
    return derivations[0].bits


def follows(text: str, request: Request) -> bool:
    """Whether hero, object, place and plot are those asked for, in a text that reads as a story of the grammar to a
    forgiving reader."""
    return any(story.request == request for story in parse(text, forgiving=True))
