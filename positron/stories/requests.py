"""Draw requests for built-in stories that the grammar can fulfil, put them into words, and recognise requests in words."""

from __future__ import annotations

import random
import re
from functools import cache

from positron.stories.grammar import GRAMMAR, Bound, Node, Request, Slot, Text, compile_text
from positron.stories.plots import Plot

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
    """Draw a request at random; `seed` and `index` together determine the result.

    The plot, hero, object and place have the probabilities that they have in the grammar.
    """
    rng = random.Random(f"request {seed}/{index}")
    plot = GRAMMAR.plots[GRAMMAR.plot_choice.options[GRAMMAR.plot_choice.draw(rng)]]
    drawn: Bound = {}
    for slot in ("hero", "thing", "place"):
        choice = GRAMMAR.slot_choice(plot, slot, drawn)
        drawn[slot] = choice.options[choice.draw(rng)]
    return Request(drawn["hero"], drawn["thing"], drawn["place"], plot.name)


def ask(request: Request, seed: int, index: int) -> str:
    """Return a user's message that asks for a story that fulfils `request`.

    `seed` and `index` together decide which wording of the request and which of the phrases for the plot (`Plot.asks`) is used.
    An example is `Tell me a story about Jack, who grows a melon by the front door.`
    """
    rng = random.Random(f"ask {seed}/{index}")
    plot = GRAMMAR.plots[request.plot]
    phrase = _in_words(plot, compile_text(plot.asks[int(rng.random() * len(plot.asks))], {}), request.slots)
    phrasing = REQUEST_PHRASINGS[int(rng.random() * len(REQUEST_PHRASINGS))]
    return phrasing.format(name=request.name, what=phrase)


def read_request(text: str) -> Request | None:
    """Return the request from which `ask` made this text, or None if `ask` cannot have made it."""
    for phrasing in _phrasings():
        if match := phrasing.fullmatch(text):
            meaning = _meanings().get(match["what"])
            if meaning is not None and match["name"] in GRAMMAR.kinds[GRAMMAR.plots[meaning[0]].slots["hero"]]:
                plot, thing, place = meaning
                return Request(match["name"], thing, place, plot)
    return None


def _in_words(plot: Plot, wording: tuple[Node, ...], slots: Bound) -> str:
    """Return the text of a phrase about a plot, such as `loses a {thing} {place.in}`, with the slots filled in."""
    words = []
    for node in wording:
        assert isinstance(node, Text | Slot)
        words.append(node.text if isinstance(node, Text) else GRAMMAR.spell(plot, node, slots[node.name]))
    return "".join(words)


@cache
def _phrasings() -> tuple[re.Pattern[str], ...]:
    groups = {"name": r"(?P<name>\w+)", "what": "(?P<what>.+)"}
    return tuple(
        re.compile("".join(groups.get(part, re.escape(part)) for part in re.split(r"\{(\w+)\}", phrasing)))
        for phrasing in REQUEST_PHRASINGS
    )


@cache
def _meanings() -> dict[str, tuple[str, str, str]]:
    """Return a dict from each phrase about a plot to its meaning: the names of the plot, the thing and the place.

    A phrase is, for example, "grows a melon by the front door". The dict has about 8,000 entries: every phrase of every plot
    (`Plot.asks`) with every thing and place that can occur in the plot.
    """
    return {
        _in_words(plot, nodes, {"thing": thing, "place": place}): (plot.name, thing, place)
        for plot in GRAMMAR.plots.values()
        for nodes in (compile_text(phrase, {}) for phrase in plot.asks)
        for thing in GRAMMAR.kinds[plot.slots["thing"]]
        for place in GRAMMAR.kinds[plot.slots["place"]]
    }
