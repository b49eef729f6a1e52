"""The last screen of a run: what it writes, how good it is, what was forgotten, where it lies, how to go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from positron.runs import Run


def show_result(folder: Path) -> None:
    run, samples = Run(folder), folder / "samples.md"
    facts = run.facts()
    if samples.exists():
        print("\n" + samples.read_text(encoding="utf-8").rsplit("\n## ", 1)[-1].split("\n\n", 1)[-1].strip() + "\n")
    line = f"{facts['status']} at step {facts['step']}"
    if "val/bpb" in facts:
        line += f" after {facts['time_s'] / 60:.1f} minutes of training: {_quality(facts, run.is_chat)}"
    print(line)
    if "base/bpb_after" in facts:
        before, after = facts["base/bpb_before"], facts["base/bpb_after"]
        print(f"its pretraining text: {before:.4f} bits per byte before, {after:.4f} after ({after / before - 1:+.1%})")
    print(f"the run: {folder}/  (report.html, loss.png, samples.md, metrics.jsonl, checkpoints/)")
    door = "chat" if run.is_chat else 'generate "Once upon a time"'
    print(f"next:    python -m positron.{door} --run {folder}")
    if facts["status"] == "stopped":
        print("         the same command again goes on")


def _quality(facts: dict[str, Any], is_chat: bool) -> str:
    """Fine-tuning is judged by its best checkpoint, which the chat uses, and by the answers alone."""
    bpb, floor = facts["best/bpb" if is_chat else "val/bpb"], facts.get("floor_bpb")
    text = f"best {bpb:.4f} bits per byte of answers" if is_chat else f"{bpb:.4f} validation bits per byte"
    if floor:
        text += (
            f", {bpb / floor - 1:.1%} above the {floor:.4f} that {'they hold' if is_chat else 'the text itself holds'}"
        )
    return text
