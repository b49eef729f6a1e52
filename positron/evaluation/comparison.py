"""Compare several runs on one text: a table, their validation curves, and a sample of each from the same prompt."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from positron.evaluation.eval_texts import texts_of_file, texts_of_run, up_to
from positron.evaluation.scoring import interval, sampling_units, score_windows, total
from positron.inference.sampling import BALANCED
from positron.inference.text_model import Writer
from positron.run.base import tokens_seen
from positron.run.folder import Run, find_run
from positron.run.load import load_model
from positron.run.metrics import read_metrics
from positron.run.paths import CONFIG
from positron.system.disk import refuse_links_in
from positron.system.errors import UserError
from positron.system.formatting import aligned, amount
from positron.text import conversation
from positron.text.conversation import Message

logger = logging.getLogger(__name__)

MEASURE_ELSEWHERE = "--text FILE measures all on another text"


@dataclass(frozen=True)
class Row:
    """Hold the results of one run: a line of the table of `compare`."""

    run: str  # its folder
    parameters: int
    tokens: int  # seen in training, including the training of the base run
    bpb: float
    interval: float | None  # half of the 95 % interval, see `sampling_units`
    perplexity: float  # per token of the run's own tokenizer
    tokenizer: str  # kind and vocabulary size
    sample: str  # text generated from the prompt, without it


def find_runs(names: Sequence[str], outputs: Path) -> list[Run]:
    """Return the named runs, or all runs in `outputs` that have a checkpoint if `names` is empty; no run twice.

    A name may be a run, or a folder that contains runs. Raises UserError if a name is neither.
    """
    runs: list[Run] = []
    for name in names or [str(outputs)]:
        folder = Path(name) if Path(name).is_dir() else outputs / name
        if Run(folder).exists:
            runs.append(Run(folder))  # a broken one is left out later, where the others are not stopped by it
            continue
        if not folder.is_dir():
            runs.append(find_run(name, outputs))
            continue
        inside = [Run(path.parent) for path in sorted(folder.glob(f"**/{CONFIG}"))]
        inside = [run for run in inside if list(run.checkpoint_folder.glob("*.ckpt"))]
        if not inside:
            raise UserError(
                f"there is no run with a checkpoint in {folder.resolve()}: train one, or name another folder"
            )
        runs += inside
    once: dict[tuple[int, int], Run] = {}
    for run in runs:  # a folder is one run, by whatever path, link or capitals it was reached
        status = run.folder.stat()
        once.setdefault((status.st_dev, status.st_ino), run)
    return list(once.values())


T = TypeVar("T")


def of_sound_runs(runs: Sequence[Run], read: Callable[[Run], T]) -> list[tuple[Run, T]]:
    """Return each run with the result of `read`, leaving out and logging the runs for which it raises UserError.

    Raises the first of these errors if no run is left.
    """
    results, reasons = [], []
    for run in runs:
        try:
            refuse_links_in(run.folder)
            results.append((run, read(run)))
        except UserError as error:
            reasons.append(error)
            if len(runs) > 1:
                logger.info(f"left out: {run.folder} ({error})")
    if not results and reasons:
        raise reasons[0]
    return results


def common_text(runs: Sequence[Run], file: str | None, limit: int) -> tuple[list[Run], list[str]]:
    """Return the runs to compare, and the texts to score: those of `file`, or the validation texts that the runs share.

    `limit` is the number of bytes to score (0: all). Without `file`, runs whose text is not available are left out.
    Raises UserError if the validation texts differ.
    """
    if file is not None:
        return list(runs), up_to(texts_of_file(file), limit)
    known = of_sound_runs(runs, lambda run: texts_of_run(run, "val", limit, MEASURE_ELSEWHERE))
    (first, texts), *others = known
    for run, other in others:
        if other != texts:
            raise UserError(
                f"{first.folder} and {run.folder} have different validation texts, which do not compare: "
                "name runs of one text, or give --text FILE to measure all of them on"
            )
    return [run for run, _ in known], texts


def compare(runs: Sequence[Run], texts: list[str], prompt: str, max_tokens: int, seed: int) -> list[Row]:
    """Score each run on `texts` and generate a sample; return the rows by bits per byte, the lowest first.

    Bits per byte is the only one of these figures that does not depend on the tokenizer. Raises UserError if there is no
    text, or if no run can be loaded.
    """
    if not texts:
        raise UserError("there is no text to measure on")

    def measure(run: Run) -> Row:
        model, tokenizer, path = load_model(run)
        logger.info(f"{run.folder}, {path.name}")
        documents = score_windows(model, tokenizer, texts, what=f"scoring {run.folder.name}")
        whole = total([total(scores) for scores in documents])
        return Row(
            run=str(run.folder),
            parameters=model.config.n_params(),
            tokens=tokens_seen(run),
            bpb=whole.bpb,
            interval=interval(sampling_units(documents)[0]),
            perplexity=whole.perplexity,
            tokenizer=f"{tokenizer.kind} {tokenizer.vocab_size:,}",
            sample=_sample(run, Writer(model, tokenizer), prompt, max_tokens, seed),
        )

    return sorted((row for _, row in of_sound_runs(runs, measure)), key=lambda row: row.bpb)


def _sample(run: Run, writer: Writer, prompt: str, max_tokens: int, seed: int) -> str:
    """Let a base model continue the prompt, or a chat model answer it; return the generated text."""
    if not run.is_chat:
        return writer.generate(prompt, max_tokens=max_tokens, seed=seed)
    ids, stops = (
        conversation.prompt_ids([Message("user", prompt)], writer.tokenizer),
        conversation.stop_ids(writer.tokenizer),
    )
    return "".join(writer.engine().stream(ids, BALANCED, max_tokens=max_tokens, seed=seed, stop_ids=stops))


def as_table(rows: Sequence[Row]) -> str:
    """Format the rows as a table of aligned columns for the terminal, without the samples."""
    header = ("run", "parameters", "tokens seen", "bits per byte", "perplexity", "of tokenizer")
    cells = [
        (
            row.run,
            amount(row.parameters),
            amount(row.tokens),
            f"{row.bpb:.4f}" + (f" ± {row.interval:.4f}" if row.interval is not None else ""),
            f"{row.perplexity:.3f}",
            row.tokenizer,
        )
        for row in rows
    ]
    return aligned([header, *cells], underline=True)


def as_csv(rows: Sequence[Row]) -> str:
    """Format the rows as CSV: a header with the names of the fields, then one line for each run."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(asdict(rows[0])), lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return text.getvalue().rstrip("\n")


def as_json(rows: Sequence[Row]) -> str:
    """Format the rows as a JSON list with one object for each run."""
    return json.dumps([asdict(row) for row in rows], ensure_ascii=False, indent=2)


def curves(runs: Sequence[Run]) -> dict[str, list[tuple[float, float]]]:
    """Return the validation curve of each run folder: pairs of million training tokens and bits per byte."""
    points: dict[str, list[tuple[float, float]]] = {}
    for run in runs:
        rows: list[dict[str, Any]] = read_metrics(run.metrics_path)
        points[str(run.folder)] = [(r["tokens"] / 1e6, r["val/bpb"]) for r in rows if r.get("val/bpb") is not None]
    return points
