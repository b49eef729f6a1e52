"""Runs as points of a scaling law: how large, how many tokens, how good."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from positron.config import UserError
from positron.evaluation.comparison import common_text
from positron.runs import Run, gpt_config
from positron.text.choose import load_tokenizer

FEWEST = 3


@dataclass(frozen=True)
class Size:
    run: str
    parameters: int  # in matrix products, output head included: training needs 6 operations for each and token
    all_parameters: int
    tokens: int
    bpb: float  # of the last validation


def read_sizes(runs: Sequence[Run], say: Callable[[str], None]) -> tuple[list[Size], float | None]:
    """The finished pretraining runs, smallest first, and the entropy of their text where it is known.

    Only the end of a run counts: losses on the way depend on the learning rate's schedule. UserError for fewer than
    three, or for runs of different texts.
    """
    finished = []
    for run in runs:
        reason = _unfit(run)
        if reason:
            say(f"left out: {run.folder} ({reason})")
        else:
            finished.append(run)
    if len(finished) < FEWEST:
        raise UserError(f"a scaling law needs at least {FEWEST} finished runs, and here are {len(finished)}")
    _refuse_different_texts(finished, say)
    floors = {run.facts().get("floor_bpb") for run in finished}
    sizes = sorted((_size(run) for run in finished), key=lambda size: (size.parameters, size.tokens))
    return sizes, floors.pop() if len(floors) == 1 else None


def _unfit(run: Run) -> str | None:
    facts, config = run.facts(), run.config()
    if config.get("sft") is not None or config.get("init_from"):
        return "it began with the weights of another run"
    if facts.get("status") != "finished":
        return f"{facts.get('status', 'never started')} at step {facts.get('step', 0)}"
    return None if facts.get("val/bpb") is not None else "it was never validated"


def _refuse_different_texts(runs: Sequence[Run], say: Callable[[str], None]) -> None:
    """One corpus split in one way is one text; of others the validation sides are compared as `compare` does."""

    def text(run: Run) -> tuple[object, ...]:
        data = run.config()["data"]
        return run.facts().get("data_fingerprint"), data["seed"], data["val_fraction"]

    if len({text(run) for run in runs}) > 1 or text(runs[0])[0] is None:
        common_text(runs, None, 200_000, say)


def _size(run: Run) -> Size:
    facts = run.facts()
    gpt = gpt_config(run.config(), load_tokenizer(run.tokenizer_folder).vocab_size)
    return Size(str(run.folder), gpt.matmul_params(), gpt.n_params(), int(facts["tokens"]), float(facts["val/bpb"]))


def million(value: float) -> str:
    """12,345,678 as 12.3M."""
    for factor, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g}{unit}"
    return f"{value:.3g}"
