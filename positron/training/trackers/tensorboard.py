"""Write the metrics and samples of a run to files that TensorBoard displays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from positron.config import TensorboardConfig
from positron.run.paths import RunPaths
from positron.run.samples import Sample
from positron.system.disk import refuse_links
from positron.system.errors import UserError


class TensorBoard:
    """Write metrics, samples and attention maps for TensorBoard below the run folder.

    `first_step`: the first step that this process trains; what an earlier process wrote for this and later steps is hidden.
    Raises UserError if the package tensorboard is missing.
    """

    def __init__(self, config: TensorboardConfig, folder: Path, first_step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError(
                "logger=tensorboard needs the package tensorboard: pip install 'positron[tensorboard]'"
            ) from error
        # purge_step hides values that an earlier process wrote after the checkpoint from which this process continues
        refuse_links(folder / config.subdir, folder)
        self.writer = SummaryWriter(str(folder / config.subdir), purge_step=first_step)
        self.folder = folder

    def log(self, row: dict[str, Any], step: int) -> None:
        """Write a row of metrics as scalars."""
        for key, value in row.items():
            if key != "step":
                self.writer.add_scalar(key, value, step)

    def sample(self, sample: Sample) -> None:
        """Write a sample's text and its attention map."""
        from matplotlib.image import imread

        self.writer.add_text("sample", sample.text, sample.step)
        picture = RunPaths(self.folder).attention_picture(sample.step)
        self.writer.add_image("attention", imread(picture)[..., :3], sample.step, dataformats="HWC")

    def finish(self, exit_code: int) -> None:
        """Close the event file."""
        self.writer.close()
