"""Read pairs of answers for preference tuning from files in several formats, or generate pairs of built-in stories."""

from __future__ import annotations

import dataclasses
import logging
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, assert_never, get_args

from positron.config import DataConfig
from positron.data.conversations import first_question, text_of
from positron.data.parsed_rows import RowSummary, name_of, parsed_rows, path_of
from positron.data.preference_shapes import ParsedPair, is_pair, parse_pair
from positron.data.sources import is_validation
from positron.data.splits import divide
from positron.stories import GRAMMAR, Request, ask, generate, requests
from positron.system.errors import UserError
from positron.text.conversation import Message

logger = logging.getLogger(__name__)

Violation = Literal["name", "thing", "place", "plot"]


@dataclass(frozen=True)
class Pair:
    """Hold a prompt with two answers. `chosen` is preferred to `rejected`. `is_val` is true if the pair is for validation."""

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    is_val: bool


def read_pairs(config: DataConfig, began_with: Callable[[list[Pair]], bool] = lambda _: False) -> list[Pair]:
    """Read all pairs in the order of the file, or make the built-in pairs.

    In a file, a hash of a pair's first question decides whether it is used for training or for validation, or a hash of the
    whole pair if too many begin with the same question (see `divide`, also for `began_with`). Malformed rows are skipped,
    counted and logged with their positions. Raises UserError if more than half of the rows are malformed, if no pair
    is left, or if `config.source` contains no pairs. Raises Unreachable if the rows cannot be downloaded.
    """
    match config.source:
        case "story_preference":
            return list(story_pairs(config.seed, 0, config.examples, config.val_fraction))
        case "preferences":
            return _pairs_of_files(config, began_with)
        case "stories" | "addition" | "text" | "hub" | "instruct" | "story_instruct" | "imported":
            raise UserError(
                f"data={config.source} contains no pairs of answers: give data=preferences data.path=FILE, or "
                "data=story_preference"
            )
        case _:
            assert_never(config.source)


def _pairs_of_files(config: DataConfig, began_with: Callable[[list[Pair]], bool]) -> list[Pair]:
    path = path_of(config, default="")
    summary = RowSummary("pair")
    pairs = [parsed for _, parsed in parsed_rows(path, config, summary, is_pair, parse_pair)]
    summary.refuse_malformed(name_of(config), len(pairs))
    logger.info(summary.line())

    def texts_of(pair: ParsedPair) -> tuple[str, str]:
        return first_question(pair.prompt), "".join(map(text_of, (pair.prompt, pair.chosen, pair.rejected)))

    def build(pair: ParsedPair, is_val: bool) -> Pair:
        return Pair(pair.prompt, pair.chosen, pair.rejected, is_val)

    return divide(pairs, texts_of, build, config, "pair", began_with)


def story_pairs(seed: int, start: int, stop: int, val_fraction: float) -> Iterator[Pair]:
    """Yield pairs start .. stop - 1: a request, a story that fulfils it, and a story that violates it in one point.

    The second story fulfils the changed request that `violated` returns. Both stories are generated with the same random
    numbers, so that they differ only because of this change. A combination of name, object and place in a validation request
    does not occur in training requests.
    """
    for index in range(start, stop):
        request = requests(seed, index)
        stories = [generate(seed, index, variant).text for variant in (request, violated(request, seed, index)[0])]
        chosen, rejected = ((Message("assistant", text),) for text in stories)
        prompt = (Message("user", ask(request, seed, index)),)
        combination = f"{request.name}|{request.object}|{request.place}"
        yield Pair(prompt, chosen, rejected, is_validation(combination, seed, val_fraction))


def violated(request: Request, seed: int, index: int) -> tuple[Request, Violation]:
    """Return a copy of `request` with one value changed, and the kind of this value: "name", "thing", "place" or "plot".

    Both the kind and the new value are drawn at random; `seed` and `index` determine the result. The plot can be changed only
    if the name, thing and place of the request can also occur in another plot. This is rarely so.
    """
    rng = random.Random(f"violation {seed}/{index}")
    plots = _other_plots(request)
    kinds: list[Violation] = [kind for kind in get_args(Violation) if kind != "plot" or plots]
    kind = kinds[int(rng.random() * len(kinds))]
    match kind:
        case "name":
            return dataclasses.replace(request, name=_other(request, "hero", rng)), kind
        case "thing":
            return dataclasses.replace(request, object=_other(request, "thing", rng)), kind
        case "place":
            return dataclasses.replace(request, place=_other(request, "place", rng)), kind
        case "plot":
            return dataclasses.replace(request, plot=plots[int(rng.random() * len(plots))]), kind
        case _:
            assert_never(kind)


def _other(request: Request, slot: str, rng: random.Random) -> str:
    """Draw another value for the request's hero, thing or place (`slot`). All other values have the same probability."""
    plot = GRAMMAR.plots[request.plot]
    values = [value for value in GRAMMAR.kinds[plot.slots[slot]] if value != request.slots[slot]]
    return values[int(rng.random() * len(values))]


def _other_plots(request: Request) -> list[str]:
    """Return the names of the other plots in which the request's hero, thing and place can occur."""
    return [
        name
        for name, plot in GRAMMAR.plots.items()
        if name != request.plot
        and all(value in GRAMMAR.kinds[plot.slots[slot]] for slot, value in request.slots.items())
    ]
