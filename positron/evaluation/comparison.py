"""Compare several runs on one text: a table, validation curves, and a text that each run generates from one prompt."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import logging
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from positron.evaluation.eval_texts import Lossy, has_unknown, texts_of_file, texts_of_run, up_to
from positron.evaluation.scoring import interval, sampling_units, score_windows, total
from positron.evaluation.seed_groups import seed_groups
from positron.inference.sampling import BALANCED
from positron.inference.text_model import Writer
from positron.run.base import find_recorded, tokens_seen
from positron.run.differences import TEXT_LOCATION, is_changeable
from positron.run.find import files_below, find_run
from positron.run.folder import Run
from positron.run.load import load_model
from positron.run.metrics import read_metrics
from positron.run.paths import CONFIG
from positron.run.validated import comparable, validation_text
from positron.settings import flat
from positron.system.disk import refuse_links_in
from positron.system.errors import UserError
from positron.system.formatting import aligned, amount
from positron.text import conversation
from positron.text.conversation import Message

logger = logging.getLogger(__name__)

LOST = ("pruned", "diverged", "failed")  # statuses of runs that did not end as planned
GIVE_ANOTHER_TEXT = "give --text FILE to measure all runs on another text"


@dataclass(frozen=True)
class Row:
    """Hold the results of one run. `positron compare` prints them as a row of its table."""

    run: str  # folder of the run
    parameters: int
    tokens: int  # number of training tokens; for a fine-tuned run, those of its base run are included
    bpb: float
    interval: float | None  # half the width of the 95 % confidence interval; None if one window contains the whole text
    perplexity: float  # per token of the run's own tokenizer
    tokenizer: str  # kind and vocabulary size
    sample: str  # text generated from the prompt, without the prompt
    seeds: int = 1  # number of compared runs that differ only in the seed: this run and its repetitions
    seeds_bpb: float | None = None  # mean bits per byte of these runs
    seeds_interval: float | None = None  # half the width of the 95 % interval of this mean; None for one seed


def find_runs(names: Sequence[str], outputs: Path, *, lost_too: bool = False) -> list[Run]:
    """Return the runs with the given names, or all runs in `outputs` if `names` is empty. No run is returned twice.

    A name is a path, or a path relative to `outputs`. It may stand for a run, or for a folder that contains runs. From such a
    folder, only the runs with a checkpoint are returned, and with `lost_too` also the runs that diverged, failed or were pruned
    before their first checkpoint. Raises UserError if a name stands for neither a run nor a folder, or if a folder has no such
    run.
    """
    runs: list[Run] = []
    for name in names or [str(outputs)]:
        folder = Path(name) if Path(name).is_dir() else outputs / name
        if Run(folder).exists:
            runs.append(Run(folder))  # `read_runs` leaves out a damaged run later
            continue
        if not folder.is_dir():
            # without a name, the message is that of the commands that use the last run
            runs.append(find_run(None if Path(name) == outputs else name, outputs))
            continue
        contained = [Run(path.parent) for path in sorted(files_below(folder, CONFIG))]
        contained = [run for run in contained if run.has_checkpoint or (lost_too and run.facts().status in LOST)]
        if not contained:
            raise UserError(
                f"there is no run with a checkpoint in {folder.resolve()}: train one, or name another folder"
            )
        runs += contained
    unique: dict[tuple[int, int], Run] = {}
    for run in runs:  # different paths, links or spellings may name the same folder
        status = run.folder.stat()
        unique.setdefault((status.st_dev, status.st_ino), run)
    return list(unique.values())


T = TypeVar("T")


def read_runs(runs: Sequence[Run], read: Callable[[Run], T]) -> list[tuple[Run, T]]:
    """Return pairs of a run and the result of `read` for it.

    A run for which `read` raises UserError is left out and logged. If no run is left, the first of these errors is raised.
    """
    results, reasons = [], []
    for run in runs:
        try:
            refuse_links_in(run.folder)
            results.append((run, read(run)))
        except UserError as error:
            reasons.append(error)
            if len(runs) > 1:
                logger.info(f"left out: {run.folder}: {error}")
    if not results and reasons:
        raise reasons[0]
    return results


def common_text(
    runs: Sequence[Run], file: str | None, limit: int, *, takes_file: bool = True
) -> tuple[list[Run], list[str]]:
    """Return the runs to compare, and the texts on which they are scored.

    If `file` is not None, the texts are the documents of the file or folder. Otherwise, they are the documents of the
    validation text that all runs share, and a run whose validation text is not available is left out. `limit` is the number of
    bytes to score (0: all). `takes_file`: true if the command has the option --text; error messages then suggest it.

    Raises UserError if the validation texts differ, or if no text is available.
    """
    if file is not None:
        return list(runs), up_to(texts_of_file(file), limit)
    instead = GIVE_ANOTHER_TEXT if takes_file else "name another run"
    available = read_runs(runs, lambda run: texts_of_run(run, "val", limit, instead))
    # a tokenizer with unknown tokens does not decode the text completely, so another run's text is preferred
    first, texts = next((each for each in available if not _is_lossy(each[1])), available[0])
    for run, other in available:
        is_same = text_facts(first)[0] is not None and text_facts(first) == text_facts(run)
        if other != texts and is_same and any(map(has_unknown, texts)):
            raise UserError(
                f"the tokenizers of {first.folder} and {run.folder} know different words, and neither knows all words of the "
                "validation text, so there is no text to compare them on"
                + (f": {GIVE_ANOTHER_TEXT}" if takes_file else ": name another run")
            )
        if other != texts and not (is_same and _is_lossy(other)):
            raise UserError(
                f"{first.folder} and {run.folder} have different validation texts, so their scores cannot be compared: "
                "name runs that were trained on the same text" + (f", or {GIVE_ANOTHER_TEXT}" if takes_file else "")
            )
    return [run for run, _ in available], texts


def _is_lossy(texts: list[str]) -> bool:
    return any(isinstance(text, Lossy) for text in texts)


def text_facts(run: Run) -> tuple[str | None, int, float]:
    """Return what decides which text a run is validated on: the fingerprint of its text (None if unknown), and the split."""
    data = run.settings().data
    return run.facts().data_fingerprint, data.seed, data.val_fraction


def compare(runs: Sequence[Run], texts: list[str], prompt: str, max_tokens: int, seed: int) -> list[Row]:
    """Score each run on `texts` and generate a sample; return the rows sorted by bits per byte, the lowest first.

    Runs that differ only in their seed stay together as a group, and groups are sorted by their mean. The rows are sorted by
    bits per byte because loss and perplexity per token depend on the tokenizer. The sample of a run is the text that it
    generates after `prompt`, with at most `max_tokens` tokens and the given seed. Raises UserError if there is no text, or if
    no run can be loaded.
    """
    if not texts:
        raise UserError("there is no text to measure on: give --text FILE with text")

    def measure(run: Run) -> Row:
        model, tokenizer, path = load_model(run)
        logger.info(f"measuring {run.folder}, {path.name}")
        documents = score_windows(model, tokenizer, texts, title=f"scoring {run.folder.name}")
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

    measured = sorted(read_runs(runs, measure), key=lambda pair: pair[1].bpb)
    groups = seed_groups(
        _with_variants(measured),
        variant=lambda entry: entry[0],
        seed=lambda entry: None,
        score=lambda entry: entry[1].bpb,
    )
    return [
        dataclasses.replace(row, seeds=group.scored, seeds_bpb=group.mean, seeds_interval=group.half)
        for group in groups
        for _, row in group.members
    ]


def _with_variants(measured: Sequence[tuple[Run, Row]]) -> Iterator[tuple[Hashable, Row]]:
    """Yield each row with a key that is equal for runs that differ only in their seed, and different for all other runs.

    Two runs with the same seed always get different keys, even if all their settings are the same.
    """
    repeated: Counter[Hashable] = Counter()
    for run, row in measured:
        variant = _variant(run)
        repeated[variant, run.config().get("seed")] += 1
        yield (variant, repeated[variant, run.config().get("seed")]), row


def _variant(run: Run, later: tuple[Path, ...] = ()) -> str:
    """Return a text that is equal for two runs if they differ only in their seed and in settings that do not affect the result.

    For other pairs of runs, the texts differ. Runs that started from weights or checkpoints of other runs, or have teachers,
    have equal texts only if those runs do, and the checkpoints have the same name. So fine-tuned runs of three base runs that
    differ only in their seed are one variant. `later`: the folders of the runs that were trained from this one, directly or
    not; a damaged file may name one of them as its origin.
    """
    config, facts, folder = run.config(), run.facts(), run.folder.resolve()
    values = {key: value for key, value in flat(config).items() if key not in ("name", "seed")}
    values = {key: value for key, value in values.items() if not is_changeable(key) and key not in TEXT_LOCATION}
    if facts.resolved is not None and facts.resolved.precision is not None:  # runs with precision=auto may differ in it
        values["precision.dtype"] = facts.resolved.precision

    def of_origin(name: str) -> str:
        origin = find_recorded(name, run)
        return name if origin is None or folder in later else _variant(origin, (*later, folder))

    base = None if run.base is None else of_origin(run.base)
    fork = run.fork
    continued = None
    if fork is not None:
        origin = fork.parent.parent
        continued = [of_origin(origin.as_posix()), fork.relative_to(origin).as_posix()]
    teachers = sorted(of_origin(name) for name in (config.get("distill") or {}).get("teachers") or ())
    # the step at which early stopping ends a run is a result, which may differ between seeds
    steps = facts.resolved.max_steps if facts.status == "finished" and facts.resolved is not None else facts.step
    parts = [values, facts.data_fingerprint, steps, run.kind, base, continued, teachers]
    return json.dumps(parts, sort_keys=True, default=str)


def _sample(run: Run, writer: Writer, prompt: str, max_tokens: int, seed: int) -> str:
    """Return the text that a base model generates after the prompt, or a chat model's answer to the prompt.

    If the prompt does not fit the context of the run, logs this and returns an empty text: the scores do not need the prompt.
    """
    try:
        if not run.is_chat:
            return writer.generate(prompt, max_tokens=max_tokens, seed=seed)
        ids, stops = (
            conversation.prompt_ids([Message("user", prompt)], writer.tokenizer),
            conversation.stop_ids(writer.tokenizer),
        )
        return "".join(writer.engine().stream(ids, BALANCED, max_tokens=max_tokens, seed=seed, stop_ids=stops))
    except UserError as error:
        logger.info(f"{run.folder} writes no text: {error} by --prompt")
        return ""


def as_table(rows: Sequence[Row]) -> str:
    """Format the rows as a table of aligned columns for the terminal, without the samples."""
    header = ["run", "parameters", "tokens seen", "bits per byte", "perplexity", "tokenizer"]
    cells = [
        [
            row.run,
            amount(row.parameters),
            amount(row.tokens),
            f"{row.bpb:.4f}" + (f" ± {row.interval:.4f}" if row.interval is not None else ""),
            f"{row.perplexity:.3f}",
            row.tokenizer,
        ]
        for row in rows
    ]
    if any(row.seeds > 1 for row in rows):
        header.append("mean over seeds")
        for line, row in zip(cells, rows, strict=True):
            line.append(_mean_over_seeds(row))
    return aligned([header, *cells], underline=True)


def _mean_over_seeds(row: Row) -> str:
    if row.seeds_bpb is None or row.seeds_interval is None:
        return ""
    return f"{row.seeds_bpb:.4f} ± {row.seeds_interval:.4f} ({row.seeds} seeds)"


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


def are_validated_alike(runs: Sequence[Run]) -> bool:
    """Tell whether all runs were validated on the same beginning of the same text, so that their curves can be compared."""
    return len(set(comparable([validation_text(run.facts(), run.config()) for run in runs]))) <= 1


def curves(runs: Sequence[Run]) -> dict[str, list[tuple[float, float]]]:
    """Return {folder of the run: validation curve}; a curve is a list of (million training tokens, bits per byte).

    If the metrics of a run are damaged, this is logged, and its curve is empty: the scores do not need the metrics.
    """
    points: dict[str, list[tuple[float, float]]] = {}
    for run in runs:
        rows: list[dict[str, Any]] = []
        try:
            rows = read_metrics(run.metrics_path)
        except UserError as error:
            logger.info(f"the picture has no curve of {run.folder}: {error}")
        points[str(run.folder)] = [(r["tokens"] / 1e6, r["val/bpb"]) for r in rows if r.get("val/bpb") is not None]
    return points
