"""Draw requests for built-in stories that the grammar can fulfil, and put them into words in several phrasings."""

from __future__ import annotations

import random

from positron.stories.grammar import GRAMMAR, Bound, Request, Slot, Text, compile_text

REQUEST_PHRASINGS = (
    "Tell me a story about {name}, who {what}.",
    "Write a story about {name}, who {what}.",
    "Please tell me about {name}, who {what}.",
    "Can you write a story in which {name} {what}?",
    "I want to read about {name}, who {what}.",
    "Write a short story in which {name} {what}.",
    "Tell a story: {name} {what}.",
    "Make up a story for children. In it, {name} {what}.",
    "I would like a bedtime story in which {name} {what}.",
    "Could you tell a story about {name}, who {what}?",
)


def requests(seed: int, index: int) -> Request:
    """Draw request `index`, with the grammar's probabilities of plot, hero, object and place."""
    rng = random.Random(f"request {seed}/{index}")
    plot = GRAMMAR.plots[GRAMMAR.plot_choice.options[GRAMMAR.plot_choice.draw(rng)]]
    drawn: Bound = {}
    for slot in ("hero", "thing", "place"):
        choice = GRAMMAR.slot_choice(plot, slot, drawn)
        drawn[slot] = choice.options[choice.draw(rng)]
    return Request(drawn["hero"], drawn["thing"], drawn["place"], plot.name)


def ask(request: Request, seed: int, index: int) -> str:
    """Put a request into words: a phrasing and a wording of the plot, drawn by (seed, index)."""
    rng = random.Random(f"ask {seed}/{index}")
    plot = GRAMMAR.plots[request.plot]
    what = plot.asks[int(rng.random() * len(plot.asks))]
    words = []
    for node in compile_text(what, {}):
        assert isinstance(node, Text | Slot)
        words.append(node.text if isinstance(node, Text) else GRAMMAR.spell(plot, node, request.slots[node.name]))
    phrasing = REQUEST_PHRASINGS[int(rng.random() * len(REQUEST_PHRASINGS))]
    return phrasing.format(name=request.name, what="".join(words))
