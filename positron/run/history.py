"""What a run has written about its training, as it grows and as it is cut back to a checkpoint."""

from __future__ import annotations

import re
from pathlib import Path

from positron.run.metrics import metrics_lines
from positron.system.disk import append_text, read_bytes, refuse_links, whole_file
from positron.system.errors import UserError

ATTENTION = "attention/step-{}.png"  # in the run's folder, the step with six digits


def cut_after(folder: Path, step: int) -> None:
    """Drop what was written after the checkpoint that training continues from: it will be written again.

    Raises UserError before anything is changed if metrics.jsonl is damaged: its history would be lost.
    """
    lines = metrics_lines(folder / "metrics.jsonl")
    if lines:
        with whole_file(folder / "metrics.jsonl") as file:
            file.writelines(line for row, line in lines if row["step"] <= step)
    path = folder / "samples.md"
    if path.exists():
        parts = re.split(rb"(?m)^(?=## Step )", read_bytes(path))
        kept = [part for part in parts if not (m := re.match(rb"## Step (\d{1,15})", part)) or int(m[1]) <= step]
        with whole_file(path) as file:
            file.writelines(kept)
    if (folder / ATTENTION).parent.is_dir():
        refuse_links((folder / ATTENTION).parent, folder)
    for picture in folder.glob(ATTENTION.format("*")):
        number = picture.stem.removeprefix("step-")
        if re.fullmatch(r"\d{1,15}", number) and int(number) > step:
            picture.unlink()


def append(path: Path, text: str) -> None:
    try:
        append_text(path, text)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
