"""The name of each file in a run folder. No other module spells one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

CONFIG = "config.json"
FACTS = "run.json"
METRICS = "metrics.jsonl"
JOB = "job.json"  # of a job of a sweep
LOG = "train.log"
LOCK = "lock"
CHECKPOINTS = "checkpoints"
PROVENANCE = "provenance.json"


@dataclass(frozen=True)
class RunPaths:
    """Where everything of a run lies."""

    folder: Path

    @property
    def config_path(self) -> Path:
        """The settings of the run: `facts.read_config`."""
        return self.folder / CONFIG

    @property
    def facts_path(self) -> Path:
        """What is known of the run: `facts.read_facts`."""
        return self.folder / FACTS

    @property
    def provenance_path(self) -> Path:
        """What made the run's bits what they are: `provenance.read_provenance`."""
        return self.folder / PROVENANCE

    @property
    def metrics_path(self) -> Path:
        """The numbers of each logged step: `metrics.read_metrics`."""
        return self.folder / METRICS

    @property
    def samples_path(self) -> Path:
        """What the model wrote while it was trained: `samples.read_samples`."""
        return self.folder / "samples.jsonl"

    @property
    def samples_page(self) -> Path:
        """The samples rendered for people; the runs of older versions have nothing else."""
        return self.folder / "samples.md"

    @property
    def chat_path(self) -> Path:
        """The template of the conversations that a run was fine-tuned on; no other run has the file."""
        return self.folder / "chat.json"

    @property
    def log_path(self) -> Path:
        """What the run told the user."""
        return self.folder / LOG

    @property
    def lock_path(self) -> Path:
        """Locked while a process trains the run."""
        return self.folder / LOCK

    @property
    def job_path(self) -> Path:
        """The outcome of the job of a sweep that the run is; no other run has the file."""
        return self.folder / JOB

    @property
    def checkpoint_folder(self) -> Path:
        return self.folder / CHECKPOINTS

    @property
    def tokenizer_folder(self) -> Path:
        return self.folder / "tokenizer"

    @property
    def model_folder(self) -> Path:
        """The best weights in the formats that other programs read."""
        return self.folder / "model"

    @property
    def weights_path(self) -> Path:
        return self.model_folder / "weights.safetensors"

    @property
    def weights_checksum_path(self) -> Path:
        return self.model_folder / "weights.safetensors.sha256"

    @property
    def architecture_path(self) -> Path:
        """The `GPTConfig` of the exported weights."""
        return self.model_folder / CONFIG

    @property
    def attention_folder(self) -> Path:
        return self.folder / "attention"

    def attention_picture(self, step: int) -> Path:
        """Return where the picture of the attention at `step` lies: `attention/step-000040.png`."""
        return self.attention_folder / f"step-{step:06d}.png"

    @property
    def loss_picture(self) -> Path:
        return self.folder / "loss.png"

    @property
    def report_path(self) -> Path:
        return self.folder / "report.html"

    @property
    def wandb_folder(self) -> Path:
        """What wandb itself keeps on this machine."""
        return self.folder / "wandb"

    @property
    def wandb_id_path(self) -> Path:
        """The id under which wandb knows the run."""
        return self.folder / "wandb_id"
