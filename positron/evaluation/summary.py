"""The last screen of a run: what it writes, how good it is, what it forgot, where it lies, what to do next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from positron.run.folder import Run
from positron.system.console import printable
from positron.system.disk import read_text
from positron.system.formatting import above_floor, judged_bpb, next_command, percent, took


def show_result(folder: Path) -> None:
    """Print the last screen of the run in `folder`, from its files."""
    run = Run(folder)
    samples = run.samples_page
    facts = run.facts()
    if samples.exists():
        last = read_text(samples).rsplit("\n## ", 1)[-1].split("\n\n", 1)[-1]
        print("\n" + printable(last.strip()) + "\n")
    line = f"{facts['status']} at step {facts['step']}"
    if "val/bpb" in facts:
        line += f" after {took(facts['time_s'])} of training: {quality(facts, run.is_chat)}"
    print(line)
    if "base/bpb_after" in facts:
        before, after = facts["base/bpb_before"], facts["base/bpb_after"]
        print(
            f"its pretraining text: {before:.4f} bits per byte before, {after:.4f} after "
            f"({percent(abs(after / before - 1))} {'worse' if after > before else 'better'})"
        )
    print(f"the run: {folder}/  (report.html, loss.png, samples.md, metrics.jsonl, checkpoints/)")
    name, prompt = ("chat", []) if run.is_chat else ("generate", ["Once upon a time"])
    print(f"next:    {next_command(name, *prompt, '--run', str(folder))}")
    if facts["status"] == "stopped":
        print("         the same command again continues it")


def quality(facts: dict[str, Any], is_chat: bool) -> str:
    """Say how good a run is: bits per byte, and how far they lie above the floor of its text where that is known."""
    bpb, floor = judged_bpb(facts["val/bpb"], facts["best/bpb"], is_chat), facts.get("floor_bpb")
    text = f"{bpb:.4f} validation bits per byte" + (" of the answers at the best checkpoint" if is_chat else "")
    return f"{text}, {above_floor(bpb, floor)} (the text's own bits)" if floor else text
