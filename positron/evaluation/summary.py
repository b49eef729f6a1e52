"""Print the result of a run when it ends: a sample, the scores (also on the pretraining text), and the next command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from positron.run.folder import Run
from positron.run.metrics import read_metrics
from positron.run.samples import read_samples
from positron.system.commands import next_command
from positron.system.console import printable
from positron.system.formatting import above_floor, percent, representative_bpb, took


def show_result(folder: Path) -> None:
    """Print the result of the run in `folder`, from its files."""
    run = Run(folder)
    samples = read_samples(run)
    facts = run.facts()
    if samples:
        print("\n" + printable(samples[-1].text) + "\n")
    line = f"{facts.status} at step {facts.step}"
    if facts.val_bpb is not None and facts.best_bpb is not None:
        result = quality(facts.val_bpb, facts.best_bpb, facts.floor_bpb, run.is_measured_on_answers)
        line += f" after {took(facts.time_s or 0.0)} of training: {result}"
    print(line)
    rows = read_metrics(run.metrics_path)
    if learnt := own_measure(rows):
        print(learnt)
    if warning := without_advantages(rows):
        print(f"WARNING: {warning}")
    before, after = facts.base_bpb_before, facts.base_bpb_after
    if before is not None and after is not None:
        print(
            f"on the pretraining text: {before:.4f} bits per byte before this training, {after:.4f} after "
            f"({percent(abs(after / before - 1))} {'worse' if after > before else 'better'})"
        )
    print(f"the run: {folder}/  (report.html, loss.png, samples.md, metrics.jsonl, checkpoints/)")
    print(f"next:    {next_command(*next_words(run))}")
    if facts.status == "stopped":
        stop_at = run.config()["train"].get("stop_at")
        reached = " without train.stop_at=" if stop_at is not None and (facts.step or 0) >= stop_at else ""
        print(f"         give the same command again{reached} to continue the run")


def next_words(run: Run) -> list[str]:
    """Return the command that tries the model of a run, with its arguments: `chat` for a chat model, otherwise `generate`."""
    words = ["chat"] if run.is_chat else ["generate", "Once upon a time"]
    return [*words, "--run", str(run.folder)]


def own_measure(rows: list[dict[str, Any]]) -> str | None:
    """Return as text the reward or the accuracy at the last validation, from `rows`, the rows of metrics.jsonl.

    Reinforcement learning measures the reward, and preference tuning the accuracy: how often the model prefers the chosen
    answer of a pair. Returns None for a run that measures only the loss on a validation text.
    """
    for row in reversed(rows):
        if row.get("val/reward") is not None:
            return (
                f"reward {row['val/reward']:.3f} ± {row['val/reward_se']:.3f} for new prompts: {percent(row['val/pass_1'])} "
                f"of the answers have the full reward, {percent(row['val/truncated'])} were cut off"
            )
        if row.get("preference/accuracy") is not None:
            return (
                f"the model prefers the chosen answer in {percent(row['preference/accuracy'])} of the validation pairs"
            )
    return None


def without_advantages(rows: list[dict[str, Any]]) -> str | None:
    """Return a warning if the rewards of a run could not teach it anything, otherwise None.

    This is so if all answers to a prompt had the same reward, or if they were cut off and therefore left out
    (reinforce.mask_truncated), for all prompts of all steps in `rows`, the rows of metrics.jsonl. Returns None for a run
    without rewards.
    """
    steps = [row for row in rows if row.get("train/silent_prompts") is not None]
    if not steps or any(row["train/silent_prompts"] < 1 for row in steps):
        return None
    if all(row.get("train/truncated") == 1 for row in steps):
        return (
            "every answer was cut off, so the model learned nothing from the rewards: give a larger reinforce.max_tokens=, or "
            "first fine-tune it on answers that end"
        )
    rewards = {row["train/reward"] for row in steps}
    cause = (
        f"every answer had the reward {rewards.pop():g}"
        if len(rewards) == 1
        else "all answers to a prompt had the same reward"
    )
    return (
        f"{cause}, so the model learned nothing from the rewards: give prompts that are neither too hard nor too easy for it, "
        "or a reward with more than two values, or first fine-tune it on good answers"
    )


def quality(last: float, best: float, floor: float | None, on_answers: bool) -> str:
    """Describe the score of a run: bits per byte and, if the entropy of its text is known, the distance to the entropy.

    `last` and `best` are the bits per byte of the validation text at the end and at the best checkpoint. `on_answers`: true if
    validation scores only the answers of conversations; `best` is then described, otherwise `last`. `floor` is the entropy in
    bits per byte, None if it is unknown.
    """
    bpb = representative_bpb(last, best, on_answers)
    text = f"{bpb:.4f} validation bits per byte" + (" of the answers at the best checkpoint" if on_answers else "")
    return f"{text}, {above_floor(bpb, floor)} (the entropy of the text)" if floor else text
