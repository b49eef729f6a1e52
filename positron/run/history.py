"""Remove metrics, samples, pictures and weights of later steps before training continues from the checkpoint of a step."""

from __future__ import annotations

import re

from positron.run.kept_weights import kept_weights
from positron.run.lines import read_lines, write_lines
from positron.run.metrics import check_row
from positron.run.paths import RunPaths
from positron.run.samples import cut_samples, read_samples
from positron.system.disk import refuse_links


def cut_after(run: RunPaths, step: int) -> None:
    """Remove the metrics, samples, attention pictures and kept weights of steps after `step`.

    Training that continues from `step` will write them again.

    Raises UserError, before anything is changed, if a line of the metrics or the samples is damaged.
    """
    rows = read_lines(run.metrics_path, check_row)
    read_samples(run)
    if run.metrics_path.exists():  # also without rows: the file may contain a part of one
        write_lines(run.metrics_path, (row for row in rows if row.values["step"] <= step))
    cut_samples(run, step)
    if run.history_folder.is_dir():
        refuse_links(run.history_folder, run.folder)
        for entry in kept_weights(run.history_folder):
            if entry.step > step:
                entry.path.unlink()
    if run.attention_folder.is_dir():
        refuse_links(run.attention_folder, run.folder)
        for picture in run.attention_folder.iterdir():
            match = re.fullmatch(r"step-(\d{1,15})\.png", picture.name)
            if match and int(match[1]) > step:
                picture.unlink()
