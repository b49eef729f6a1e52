"""Measure how much lower the loss of an ensemble is than the losses of its members.

An ensemble predicts with the mean of the probabilities of its members, which are models. All of them must have scored the same
windows of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from positron.evaluation.score import Score
from positron.evaluation.scoring import interval, sampling_units, total


def ensemble_facts(
    names: Sequence[str], documents: list[list[Score]], by_member: Sequence[list[list[Score]]]
) -> dict[str, Any]:
    """Return the scores of the members, and the gain of the ensemble over their mean score and over the best member.

    `names` are the names of the members. `documents` and `by_member` are the two results of `score_ensemble`. For the gains,
    see `gain`.
    """
    scores = [total([total(windows) for windows in member]) for member in by_member]
    best = min(range(len(scores)), key=lambda i: scores[i].nats)
    return {
        "members": [
            {"run": name, "loss": score.loss, "bpb": score.bpb} for name, score in zip(names, scores, strict=True)
        ],
        "best_member": names[best],
        "gain_over_mean": gain(documents, by_member),
        "gain_over_best": gain(documents, [by_member[best]]),
    }


def gain(documents: list[list[Score]], by_member: Sequence[list[list[Score]]]) -> dict[str, float | None]:
    """Return by how many bits per byte the score of an ensemble is lower than the mean score of the given members.

    `documents` has the ensemble's scores of each document's windows, and `by_member` has such a list for each member. In the
    result, `bpb` is the gain, and `interval` is half the width of its 95 % interval (None if the text is too short). The
    interval is computed from the differences on the same documents, so it is narrower than the intervals of the scores.
    """
    differences = [
        [
            Score(sum(other.nats for other in others) / len(others) - ours.nats, ours.bytes, ours.tokens)
            for ours, *others in zip(*windows, strict=True)
        ]
        for windows in zip(documents, *by_member, strict=True)
    ]
    units, _ = sampling_units(differences)
    return {"bpb": total(units).bpb, "interval": interval(units)}


def as_lines(facts: dict[str, Any]) -> list[str]:
    """Return the results of `ensemble_facts` as lines of text."""
    head, *others = [f"{member['bpb']:.4f} bits per byte: {member['run']}" for member in facts["members"]]
    lines = [f"runs            {head}", *(f"{'':<16}{line}" for line in others)]
    names = {"gain_over_mean": "the mean of the runs", "gain_over_best": f"the best run, {facts['best_member']}"}
    for key, name in names.items():
        half_width = facts[key]["interval"]
        interval_text = f" ± {half_width:.4f}" if half_width is not None else ""
        lines.append(f"gain            {facts[key]['bpb']:.4f}{interval_text} bits per byte over {name}")
    return lines
