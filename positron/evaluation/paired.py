"""Measure the difference of two variants from pairs of runs with the same seed: confidence intervals and p-values.

If the number of pairs is too small for a clear result, the report also says how many further seeds would be enough.

A variant is a set of settings; its runs differ only in their seed. One run of each variant forms a pair.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from positron.evaluation.log_table import origin
from positron.evaluation.pairing import Pairs
from positron.evaluation.score import Score
from positron.evaluation.scoring import interval, sampling_units, score_windows, total
from positron.evaluation.statistics import (
    SignFlips,
    half_interval,
    paired_t_test,
    pairs_needed,
    sign_flip_test,
)
from positron.run.load import load_model
from positron.run.provenance import command, read_provenance, start_of
from positron.system.errors import UserError
from positron.system.formatting import aligned, counted

logger = logging.getLogger(__name__)

LEVEL, POWER = 0.01, 0.8  # a change is adopted at p < LEVEL; POWER is the probability to find a true difference
Documents = list[list[Score]]  # the scores of each document's windows


@dataclass(frozen=True)
class Difference:
    """Hold the difference of the scores of two variants, B - A in bits per byte, which is negative if B is better.

    Both variants were trained with the same seeds. `half_over_seeds` and `half_over_documents` are half the widths of two 95 %
    confidence intervals of the difference. The first interval treats the seeds as independent samples. The second one treats
    the documents as independent samples or, if there are few documents, blocks of their text.

    `p_t_test` is the two-sided p-value of the paired t-test over the seeds, and `sign_flips` is the result of the sign-flip
    test. Both are None for one seed. `seeds_needed` is the number of seeds with which the t-test gives p < 0.01 (LEVEL) with a
    probability of 0.8 (POWER). It is None if it is unknown or too large.
    """

    a: str  # name of variant A
    b: str
    changes: list[str]  # `key: value of A -> value of B`
    surroundings: list[str]  # code, versions and hardware that differ, in the same form
    share_batches: bool  # whether both runs of a pair read the same batches
    seeds: list[int]
    bpb_a: list[float]  # for each seed
    bpb_b: list[float]
    difference: float  # the mean over the seeds
    half_over_seeds: float | None  # None for one seed
    half_over_documents: float | None  # None for a single document or block
    documents: str  # number of these documents or blocks, such as "464 documents"
    bytes: int  # size of the scored text
    p_t_test: float | None
    sign_flips: SignFlips | None
    seeds_needed: int | None

    @property
    def further_seeds(self) -> int | None:
        """Return how many further seeds the t-test needs to give p < 0.01 (LEVEL) with a probability of 0.8 (POWER).

        The result is 0 if the t-test gives p < 0.01 already. It is None if the number of seeds is unknown or too large (see
        `pairs_needed`).
        """
        if self.p_t_test is not None and self.p_t_test < LEVEL:
            return 0
        return None if self.seeds_needed is None else max(1, self.seeds_needed - len(self.seeds))


def measure(pairs: Pairs, texts: list[str]) -> Difference:
    """Score all runs of `pairs` on `texts`, and compare the two variants.

    Raises UserError if a run cannot be loaded, or if its loss is NaN or infinite.
    """
    scored: list[tuple[Documents, Documents]] = []
    for seed, runs in zip(pairs.seeds, pairs.runs, strict=True):
        both = []
        for run in runs:
            model, tokenizer, path = load_model(run)
            logger.info(f"seed {seed}: measuring {run.folder}, {path.name}")
            documents = score_windows(model, tokenizer, texts, title=f"scoring {run.folder.name}")
            if not math.isfinite(sum(score.nats for scores in documents for score in scores)):
                raise UserError(
                    f"the loss of {path} is NaN or infinite, because its training diverged or the file was changed: restore "
                    "the file, or train both variants again under another name= with a lower optimizer.lr="
                )
            both.append(documents)
        scored.append((both[0], both[1]))
    return compare_scores(pairs, scored)


def compare_scores(pairs: Pairs, scored: Sequence[tuple[Documents, Documents]]) -> Difference:
    """Compare the two variants of `pairs`, A and B, by their scores on the same documents.

    `scored` has a tuple (scores of A's run, scores of B's run) for each seed. The scores of a run are a list with one item for
    each document. The item is the list of the scores of the document's windows, the parts of a document that the model reads
    one at a time.
    """
    bpb_a, bpb_b = ([_whole(both[side]).bpb for both in scored] for side in (0, 1))
    differences = [b - a for a, b in zip(bpb_a, bpb_b, strict=True)]
    units, kind = sampling_units(mean_differences(scored))
    return Difference(
        a=pairs.names[0],
        b=pairs.names[1],
        changes=pairs.changes,
        surroundings=pairs.surroundings,
        share_batches=pairs.share_batches,
        seeds=pairs.seeds,
        bpb_a=bpb_a,
        bpb_b=bpb_b,
        difference=statistics.fmean(differences),
        half_over_seeds=half_interval(differences),
        half_over_documents=interval(units),
        documents=counted(len(units), kind.removesuffix("s"), kind)
        if kind == "documents"
        else f"{len(units):,} {kind}",
        bytes=_whole(scored[0][0]).bytes,
        p_t_test=paired_t_test(differences),
        sign_flips=sign_flip_test(differences),
        seeds_needed=pairs_needed(differences, LEVEL, POWER),
    )


def _whole(documents: Documents) -> Score:
    return total([total(scores) for scores in documents])


def mean_differences(scored: Sequence[tuple[Documents, Documents]]) -> Documents:
    """Return the loss of B minus the loss of A for each window of each document, averaged over the seeds.

    A and B are the two variants that are compared, trained with the same seeds. Each item of `scored` holds, for one seed, the
    scores of the run of A and those of the run of B. A difference is a `Score` whose `nats` may be negative. The losses of one
    document with several seeds are not independent, so they are averaged before an interval over documents is computed. If the
    runs divide a document into different windows, the result has one difference for the whole document.
    """
    sides = [documents for both in scored for documents in both]
    differences: Documents = []
    for place, first in enumerate(sides[0]):
        cuts = {tuple(score.bytes for score in documents[place]) for documents in sides}
        per_side = [documents[place] if len(cuts) == 1 else [total(documents[place])] for documents in sides]
        a, b = per_side[::2], per_side[1::2]
        windows = zip(zip(*a, strict=True), zip(*b, strict=True), strict=True)
        nats = [
            statistics.fmean(s.nats for s in scores_b) - statistics.fmean(s.nats for s in scores_a)
            for scores_a, scores_b in windows
        ]
        shares = first if len(cuts) == 1 else [total(first)]
        differences.append([Score(nat, s.bytes, s.tokens) for nat, s in zip(nats, shares, strict=True)])
    return differences


def as_text(result: Difference) -> str:
    """Return the comparison as lines of text for the terminal."""
    rows = [["seed", "A", "B", "B - A"]]
    for seed, a, b in zip(result.seeds, result.bpb_a, result.bpb_b, strict=True):
        rows.append([str(seed), f"{a:.4f}", f"{b:.4f}", f"{b - a:+.4f}"])
    if len(result.seeds) > 1:
        means = statistics.fmean(result.bpb_a), statistics.fmean(result.bpb_b)
        rows.append(["mean", *(f"{mean:.4f}" for mean in means), f"{result.difference:+.4f}"])
    lines = [f"A  {result.a}", f"B  {result.b}", *(f"   {change}" for change in result.changes), "", aligned(rows), ""]
    verdict = "equal" if result.difference == 0 else "B is better" if result.difference < 0 else "A is better"
    lines.append(f"B - A           {result.difference:+.5f} bits per byte on {result.bytes:,} bytes ({verdict})")
    lines.append(f"over seeds      {_interval(result.difference, result.half_over_seeds, _pairs_of(result))}")
    lines.append(f"over documents  {_interval(result.difference, result.half_over_documents, result.documents)}")
    lines += _tests(result)
    if not result.share_batches:
        lines.append(
            "note            the runs of a pair do not read the same batches, so the difference between them has more noise"
        )
    if not result.changes:
        lines.append("note            the runs of a pair have the same settings")
    lines += [f"note            the runs also differ in {text}" for text in result.surroundings]
    return "\n".join(lines)


def _pairs_of(result: Difference) -> str:
    return counted(len(result.seeds), "pair")


def _interval(difference: float, half_width: float | None, units: str) -> str:
    if half_width is None:
        return f"none: an interval needs more than {units}"
    digits = max(5, 1 - math.floor(math.log10(half_width))) if half_width > 0 else 5  # at least two significant digits
    low, high = (f"{edge:+.{digits}f}" for edge in (difference - half_width, difference + half_width))
    return f"{low} to {high} (± {half_width:.{digits}f}, 95% interval over {units})"


def _tests(result: Difference) -> list[str]:
    if result.p_t_test is None or result.sign_flips is None:
        return ["p-values        none: one pair does not show how much the difference varies; train more seeds"]
    flips = result.sign_flips
    patterns = f"all {flips.patterns:,} sign patterns" if flips.is_exact else f"{flips.patterns:,} random sign patterns"
    limit = f"; {_pairs_of(result)} cannot give less than {flips.smallest_p:.2g}" if flips.smallest_p >= LEVEL else ""
    return [
        f"paired t-test   p = {result.p_t_test:.2g}",
        f"sign flips      p = {flips.p:.2g} ({patterns}{limit})",
        f"further seeds   {_further(result)}",
    ]


def _further(result: Difference) -> str:
    match result.further_seeds:
        case 0:
            return f"none needed: the t-test already gives p < {LEVEL}"
        case None:
            return f"unknown: the difference is too small, compared with its variation between seeds, to expect p < {LEVEL}"
        case further:
            return (
                f"{further:,} (with {result.seeds_needed:,} pairs, the t-test gives p < {LEVEL} with a probability of "
                f"{POWER:.0%}, if the true difference and its variation are those observed)"
            )


def as_json(result: Difference) -> str:
    """Return the comparison as the text of a JSON object."""
    record = dataclasses.asdict(result) | {"further_seeds": result.further_seeds, "level": LEVEL, "power": POWER}
    return json.dumps(record, ensure_ascii=False, indent=2)


COLUMNS: list[dict[str, str]] = [
    {"key": "change", "title": "change"},
    {"key": "seeds", "title": "paired seeds", "format": "d"},
    {"key": "bpb_a", "title": "bits per byte without", "format": ".4f"},
    {"key": "bpb_b", "title": "with", "format": ".4f"},
    {"key": "difference", "title": "difference ± 95 % over seeds", "format": ".4f", "pair": "±"},
    {"key": "half_over_documents", "title": "± 95 % over documents", "format": ".4f"},
    {"key": "p_t_test", "title": "p, paired t-test", "format": ".2g"},
    {"key": "p_sign_flips", "title": "p, sign flips", "format": ".2g"},
]


def as_log_row(pairs: Pairs, result: Difference) -> str:
    """Return the comparison as JSON for a file in docs/results/, from which scripts/render_log.py renders a table of one row.

    The commit and the machine are those of one of the compared runs: the first run of the second variant in `pairs`. They are
    null if that run does not record them. The value of `command` is the command that trained that run, followed by the command
    of the current process.
    """
    run = pairs.runs[0][1]
    start = start_of(read_provenance(run.folder), run.facts().step or 0)
    commands = [text for text in (start.get("command"), command()) if text]
    row: dict[str, Any] = {
        "change": "; ".join(result.changes) or "the code",
        "seeds": len(result.seeds),
        "bpb_a": round(statistics.fmean(result.bpb_a), 6),
        "bpb_b": round(statistics.fmean(result.bpb_b), 6),
        "difference": [round(result.difference, 6), round(result.half_over_seeds, 6)]
        if result.half_over_seeds is not None
        else round(result.difference, 6),
        "half_over_documents": result.half_over_documents and round(result.half_over_documents, 6),
        "p_t_test": result.p_t_test,
        "p_sign_flips": result.sign_flips and result.sign_flips.p,
    }
    record = {
        "date": time.strftime("%Y-%m-%d"),
        **origin(run),
        "command": "; ".join(commands),
        "seeds": len(result.seeds),
        "columns": COLUMNS,
        "rows": [row],
    }
    return json.dumps(record, ensure_ascii=False, indent=2)
