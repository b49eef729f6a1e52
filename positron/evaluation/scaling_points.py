"""Read runs as points of a scaling law: their parameters, training tokens and bits per byte."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from positron.evaluation.comparison import common_text, read_runs, text_facts
from positron.evaluation.eval_texts import token_files
from positron.run.folder import PRETRAIN, Run
from positron.run.load import gpt_config
from positron.run.validated import ValidationText, comparable, validation_text
from positron.system.errors import UserError
from positron.text.factory import load_tokenizer

logger = logging.getLogger(__name__)

MIN_RUNS = 3  # two runs for the two numbers of the simplest law, and one for its error


@dataclass(frozen=True)
class Size:
    """Hold the numbers of one run to which a scaling law is fitted: its size and its loss."""

    run: str  # folder of the run
    parameters: int  # weights in matrix products; training takes 6 operations per token for each of them
    all_parameters: int  # including embeddings, biases and norms
    tokens: int  # training tokens
    bpb: float  # bits per byte at the last validation


def read_sizes(runs: Sequence[Run]) -> tuple[list[Size], float | None]:
    """Return the finished pretraining runs, smallest first, and the entropy of their text in bits per byte (None: unknown).

    Only the last loss of a run is used, because earlier losses depend on the schedule of the learning rate. Raises UserError if
    fewer than 3 runs (MIN_RUNS) can be used, if the runs were trained on different texts, or if the loss of a run is not above
    the entropy of the text.
    """
    finished = []
    for run, (reason, size) in read_runs(runs, _size_or_reason):
        if size is None:
            logger.info(f"left out: {run.folder}, because {reason}")
        else:
            finished.append((run, size))
    if len(finished) < MIN_RUNS:
        raise UserError(
            f"a scaling law needs at least {MIN_RUNS} finished pretraining runs, not {len(finished)}: "
            "name more runs, or train some of other sizes on the same text"
        )
    comparable = _refuse_different_texts([run for run, _ in finished])
    floors = [run.facts().floor_bpb for run in comparable]
    sizes = sorted((size for run, size in finished if run in comparable), key=lambda s: (s.parameters, s.tokens))
    # they may differ a little, because the validation of runs with other tokenizers ends at other bytes
    known_floors = [floor for floor in floors if floor is not None]
    floor = min(known_floors) if len(known_floors) == len(floors) else None
    for size in sizes:
        if floor is not None and size.bpb <= floor:
            raise UserError(
                f"{size.run} has {size.bpb:.4f} bits per byte, but no model can be below {floor:.4f}, the entropy of the text: "
                "the model has seen the validation text (a leak); delete this run, or name the other runs instead of a folder"
            )
    return sizes, floor


def _size_or_reason(run: Run) -> tuple[str, Size | None]:
    """Return ("", the `Size` of a run), or (the reason why the run cannot be used, None)."""
    facts = run.facts()
    if run.base is not None:
        return "it started from the weights of another run", None
    if run.kind != PRETRAIN:
        return f"it was not pretrained, but trained with the objective {run.kind}", None
    if facts.status != "finished":
        return f"it is not finished: {facts.status or 'not started'} at step {facts.step or 0}", None
    if facts.val_bpb is None or facts.tokens is None:
        return "it was never validated", None
    return "", _size(run, facts.tokens, facts.val_bpb)


def _refuse_different_texts(runs: Sequence[Run]) -> list[Run]:
    """Return the runs that can be compared; raise UserError if the runs were not trained on the same text.

    If all runs record the same fingerprint (hash) of the text and the same split into training and validation text, all runs
    are returned. Otherwise, the first 200,000 bytes of the validation texts are compared, and runs whose text is not available
    are left out. Raises UserError also if fewer than 3 runs (MIN_RUNS) remain.
    """
    if len({text_facts(run) for run in runs}) > 1 or text_facts(runs[0])[0] is None:
        runs, _ = common_text(runs, None, 200_000, takes_file=False)
        if len(runs) < MIN_RUNS:
            raise UserError(
                f"a scaling law needs at least {MIN_RUNS} runs of the same text, not {len(runs)}: "
                "name more runs, or train some of other sizes on the same text"
            )
    _refuse_different_beginnings(runs)
    return list(runs)


def _refuse_different_beginnings(runs: Sequence[Run]) -> None:
    """Raise UserError if the runs were validated on beginnings of different length of their common validation text.

    The length depends on `train.val_tokens` and the tokenizer; `model=auto` and `budget=` choose `train.val_tokens`.
    """
    # the text is the same, although its fingerprints may differ
    texts = [dataclasses.replace(validation_text(run.facts(), run.config()), text="") for run in runs]
    if len(set(comparable(texts))) > 1:
        texts = [_with_length(run, each) for run, each in zip(runs, texts, strict=True)]
    first, *others = comparable(texts)
    other = next((run for run, each in zip(runs[1:], others, strict=True) if each != first), None)
    if other is not None:
        limits = [run.settings().train.val_tokens for run in (runs[0], other)]
        raise UserError(
            f"{runs[0].folder} and {other.folder} were validated on beginnings of different length of the validation text "
            f"(train.val_tokens={limits[0]} and {limits[1]}, or other tokenizers), so their losses cannot be compared: train "
            "them with the same tokenizer and train.val_tokens="
        )


def _with_length(run: Run, text: ValidationText) -> ValidationText:
    """Return `text` with its length, also for a run of an older version that does not record it but read the whole text."""
    if text.n_bytes is not None:
        return text
    files = token_files(run, "val", "name other runs")
    is_whole = files.n_tokens <= run.settings().train.val_tokens + 1
    return dataclasses.replace(text, n_bytes=files.n_bytes if is_whole else None)


def _size(run: Run, tokens: int, bpb: float) -> Size:
    gpt = gpt_config(run.config(), load_tokenizer(run.tokenizer_folder).vocab_size)
    return Size(str(run.folder), gpt.matmul_params(), gpt.n_params(), tokens, bpb)
