"""Reading a built-in story back: every way in which the grammar could have written a text, and what it was asked for."""

from __future__ import annotations

import math
from collections.abc import Iterator

from positron.data.stories import GRAMMAR, Grammar, Piece, Request, Story, _spell, slot_choice
from positron.data.story_plots import Plot

Path = tuple[int, dict[str, str], float, tuple[tuple[str, str], ...]]  # place in the text, bound slots, bits, choices


def parse(text: str, *, grammar: Grammar = GRAMMAR) -> list[Story]:
    """All derivations of the whole text: exactly one for a story of this grammar, none for anything else."""
    found = []
    padded = " " + text  # every beat begins with a separator
    for plot, plot_bits in zip(grammar.plots, grammar.plot_choice.bits, strict=True):
        paths: list[Path] = [(0, {}, plot_bits, (("plot", plot.name),))]
        for number, variants in enumerate(grammar.beats[plot.name]):
            paths = [
                end
                for path in paths
                for i, variant in enumerate(variants)
                for end in _read(grammar, plot, padded, variant, _entered(path, number, i, len(variants)))
            ]
        for place, bound, bits, choices in paths:
            if place == len(padded):
                request = Request(bound["hero"], bound["thing"], bound["place"], plot.name)
                found.append(Story(text, bits, request, choices))
    return found


def _entered(path: Path, number: int, i: int, n: int) -> Path:
    place, bound, bits, choices = path
    return place, bound, bits + math.log2(n), (*choices, (f"beat {number}", str(i)))


def _read(grammar: Grammar, plot: Plot, text: str, pieces: tuple[Piece, ...], path: Path) -> Iterator[Path]:
    """The paths on which `pieces` can be read from `path` on. Wrong text is left at its first wrong word."""
    if not pieces:
        yield path
        return
    place, bound, bits, choices = path
    piece, rest = pieces[0], pieces[1:]
    if piece.kind == "text":
        if text.startswith(piece.name, place):
            yield from _read(grammar, plot, text, rest, (place + len(piece.name), bound, bits, choices))
        return
    if piece.kind == "slot" and piece.name in bound:
        word = _spell(grammar, plot, piece, bound[piece.name])
        if text.startswith(word, place):
            yield from _read(grammar, plot, text, rest, (place + len(word), bound, bits, choices))
        return
    is_slot = piece.kind == "slot"
    choice = slot_choice(grammar, plot, piece.name, bound) if is_slot else grammar.list_choices[piece.name]
    for option, cost in zip(choice.options, choice.bits, strict=True):
        word = _spell(grammar, plot, piece, option) if is_slot else option
        word = word[0].upper() + word[1:] if piece.capital else word
        if text.startswith(word, place):
            known = {**bound, piece.name: option} if is_slot else bound
            taken = (place + len(word), known, bits + cost, (*choices, (piece.name, option)))
            yield from _read(grammar, plot, text, rest, taken)


def bits(text: str) -> float:
    """-log2 p(text). ValueError for a text that is not a story of the grammar."""
    derivations = parse(text)
    if len(derivations) != 1:
        raise ValueError(f"not a story of the grammar: {len(derivations)} derivations")
    return derivations[0].bits


def follows(text: str, request: Request) -> bool:
    """Whether the text is a story of the grammar with the hero, object, place and plot that were asked for."""
    return any(story.request == request for story in parse(text))
