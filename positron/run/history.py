"""What a run has written about its training, as it grows and as it is cut back to a checkpoint."""

from __future__ import annotations

import re
from pathlib import Path

from positron.run.metrics import metrics_lines
from positron.run.paths import RunPaths
from positron.system.disk import append_text, read_bytes, refuse_links, whole_file
from positron.system.errors import UserError


def cut_after(run: RunPaths, step: int) -> None:
    """Drop what was written after the checkpoint that training continues from: it will be written again.

    Raises UserError before anything is changed if metrics.jsonl is damaged: its history would be lost.
    """
    lines = metrics_lines(run.metrics_path)
    if lines:
        with whole_file(run.metrics_path) as file:
            file.writelines(line for row, line in lines if row["step"] <= step)
    path = run.samples_page
    if path.exists():
        parts = re.split(rb"(?m)^(?=## Step )", read_bytes(path))
        kept = [part for part in parts if not (m := re.match(rb"## Step (\d{1,15})", part)) or int(m[1]) <= step]
        with whole_file(path) as file:
            file.writelines(kept)
    if run.attention_folder.is_dir():
        refuse_links(run.attention_folder, run.folder)
        for picture in run.attention_folder.iterdir():
            match = re.fullmatch(r"step-(\d{1,15})\.png", picture.name)
            if match and int(match[1]) > step:
                picture.unlink()


def append(path: Path, text: str) -> None:
    try:
        append_text(path, text)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
