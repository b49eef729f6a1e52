"""Asking for a built-in story: requests that the grammar can fulfil, in several phrasings."""

from __future__ import annotations

import random

from positron.data.stories import GRAMMAR, Piece, Request, _compile, _spell, slot_choice

PHRASINGS = (
    "Tell me a story about {name}, who {what}.",
    "Write a story about {name}, who {what}.",
    "Please tell me about {name}, who {what}.",
    "Can you write a story in which {name} {what}?",
    "I want to read about {name}, who {what}.",
    "Write a short story in which {name} {what}.",
    "Tell a story: {name} {what}.",
    "Make up a story for children. In it, {name} {what}.",
)


def requests(seed: int, index: int) -> Request:
    """Request `index`, with the probability that the grammar gives to its plot, hero, object and place."""
    rng = random.Random(f"request {seed}/{index}")
    plot = GRAMMAR.plots[GRAMMAR.plot_choice.draw(rng)]
    drawn: dict[str, str] = {}
    for slot in ("hero", "thing", "place"):
        choice = slot_choice(GRAMMAR, plot, slot, drawn)
        drawn[slot] = choice.options[choice.draw(rng)]
    return Request(drawn["hero"], drawn["thing"], drawn["place"], plot.name)


def ask(request: Request, seed: int, index: int) -> str:
    """The request in words: a phrasing and a wording of the plot, drawn by (seed, index)."""
    rng = random.Random(f"ask {seed}/{index}")
    plot = GRAMMAR.plot(request.plot)
    values = {"thing": request.object, "place": request.place}
    pieces: tuple[Piece, ...] = _compile(rng.choice(plot.asks))
    what = "".join(
        piece.name if piece.kind == "text" else _spell(GRAMMAR, plot, piece, values[piece.name]) for piece in pieces
    )
    return rng.choice(PHRASINGS).format(name=request.name, what=what.strip())
