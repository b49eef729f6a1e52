"""Find and load the runs of an ensemble: `outputs/a,outputs/b` names two runs that are used as one model."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from positron.run.find import find_run, split_names
from positron.run.folder import OUTPUTS, Run
from positron.run.load import load_model
from positron.system.commands import command
from positron.system.console import one_line
from positron.system.errors import UserError

if TYPE_CHECKING:
    from positron.model.ensemble import Ensemble
    from positron.model.gpt import GPT
    from positron.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


def find_runs(name: str | None, outputs: Path = OUTPUTS) -> list[Run]:
    """Return the runs that `name` names: one run (see `find_run`), or several runs whose names are separated by commas.

    Raises UserError if a run does not exist or is named twice, or if a name in the list is empty.
    """
    names = [name] if name is None else split_names(name, outputs)
    if len(names) > 1 and "" in names:
        raise UserError(
            f"the list of runs '{one_line(str(name))}' has an empty name before or after a comma: write the list as in A,B,C"
        )
    return refuse_repeated([find_run(each, outputs) for each in names])


def refuse_repeated(runs: Sequence[Run]) -> list[Run]:
    """Return the runs as a list. Raises UserError if a run occurs twice."""
    folders: set[Path] = set()
    for run in runs:
        folder = run.folder.resolve()
        if folder in folders:
            raise UserError(
                f"{run.folder} is named twice, so it would count twice in the mean of the probabilities: name each run once"
            )
        folders.add(folder)
    return list(runs)


def common_tokenizer(tokenizers: Sequence[tuple[Run, Tokenizer]]) -> Tokenizer:
    """Return the tokenizer that all runs share, from pairs (run, its tokenizer). Raises UserError if two differ."""
    first, tokenizer = tokenizers[0]
    for run, other in tokenizers:
        if other.hash != tokenizer.hash:
            raise UserError(
                f"{first.folder} and {run.folder} have different tokenizers, so they cannot be used together: name runs with "
                "the same tokenizer, or one run"
            )
    return tokenizer


def names_of(runs: Sequence[Run]) -> str:
    """Return the folders of the runs, separated by commas, in the form that `find_runs` reads."""
    return ",".join(str(run.folder) for run in runs)


def all_chat(runs: Sequence[Run]) -> bool:
    """Tell whether all runs answer messages (see `Run.is_chat`). Raises UserError if only some of them do."""
    others = [run for run in runs if not run.is_chat]
    if 0 < len(others) < len(runs):
        raise UserError(
            f"some runs in --run were not fine-tuned on conversations, so they cannot answer together with the others: "
            f"leave {names_of(others)} out, or fine-tune them with {command('sft')}"
        )
    return not others


def load_models(runs: Sequence[Run]) -> tuple[GPT | Ensemble, Tokenizer, list[Path]]:
    """Return the model of one run or the ensemble of several, their tokenizer, and the path of each run's checkpoint.

    Raises the errors of `load_model`, and UserError if two runs have different tokenizers.
    """
    from positron.model.ensemble import Ensemble

    loaded = [load_model(run) for run in runs]
    models, paths = [model for model, _, _ in loaded], [path for _, _, path in loaded]
    tokenizer = common_tokenizer(
        [(run, tokenizer_of_run) for run, (_, tokenizer_of_run, _) in zip(runs, loaded, strict=True)]
    )
    if len(models) == 1:
        return models[0], tokenizer, paths
    for (run, model), (other, other_model) in itertools.combinations(zip(runs, models, strict=True), 2):
        if _have_same_weights(model, other_model):
            logger.warning(
                f"{run.folder} and {other.folder} have the same weights, which therefore count twice: name only one of the two"
            )
    lengths = [model.config.context_length for model in models]
    if min(lengths) < max(lengths):
        shortest = runs[lengths.index(min(lengths))]
        logger.info(
            f"the context is {min(lengths)} tokens, because {shortest.folder} reads no more; another run reads {max(lengths)}"
        )
    return Ensemble(models), tokenizer, paths


def _have_same_weights(a: GPT, b: GPT) -> bool:
    import torch

    weights_a, weights_b = a.state_dict(), b.state_dict()
    return weights_a.keys() == weights_b.keys() and all(
        torch.equal(weights_a[name], weights_b[name]) for name in weights_a
    )
