"""Define the name of each file in a run folder; no other module spells one."""

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
    """Name the path of each file and folder of a run."""

    folder: Path

    @property
    def config_path(self) -> Path:
        """Return the file of the run's settings, see `facts.read_config`."""
        return self.folder / CONFIG

    @property
    def facts_path(self) -> Path:
        """Return the file of the run's status and results, see `facts.read_facts`."""
        return self.folder / FACTS

    @property
    def provenance_path(self) -> Path:
        """Return the file of code, versions and hardware of each start, see `provenance.read_provenance`."""
        return self.folder / PROVENANCE

    @property
    def metrics_path(self) -> Path:
        """Return the file of the metrics of each logged step, see `metrics.read_metrics`."""
        return self.folder / METRICS

    @property
    def samples_path(self) -> Path:
        """Return the file of the texts sampled during training, see `samples.read_samples`."""
        return self.folder / "samples.jsonl"

    @property
    def samples_page(self) -> Path:
        """Return the file of the samples rendered for people; runs of older versions have only this one."""
        return self.folder / "samples.md"

    @property
    def chat_path(self) -> Path:
        """Return the file of the chat template, which only runs that were fine-tuned on conversations have."""
        return self.folder / "chat.json"

    @property
    def log_path(self) -> Path:
        """Return the file of the run's log."""
        return self.folder / LOG

    @property
    def lock_path(self) -> Path:
        """Return the file that is locked while a process trains the run."""
        return self.folder / LOCK

    @property
    def job_path(self) -> Path:
        """Return the file of the job's outcome, which only runs of a sweep have."""
        return self.folder / JOB

    @property
    def checkpoint_folder(self) -> Path:
        """Return the folder of the checkpoints."""
        return self.folder / CHECKPOINTS

    @property
    def tokenizer_folder(self) -> Path:
        """Return the folder of the tokenizer's files."""
        return self.folder / "tokenizer"

    @property
    def model_folder(self) -> Path:
        """Return the folder of the best weights in formats that other programs read."""
        return self.folder / "model"

    @property
    def weights_path(self) -> Path:
        """Return the file of the exported weights."""
        return self.model_folder / "weights.safetensors"

    @property
    def weights_checksum_path(self) -> Path:
        """Return the file of the SHA-256 of the exported weights."""
        return self.model_folder / "weights.safetensors.sha256"

    @property
    def architecture_path(self) -> Path:
        """Return the file of the `GPTConfig` of the exported weights."""
        return self.model_folder / CONFIG

    @property
    def attention_folder(self) -> Path:
        """Return the folder of the attention pictures."""
        return self.folder / "attention"

    def attention_picture(self, step: int) -> Path:
        """Return the file of the attention picture at `step`: `attention/step-000040.png`."""
        return self.attention_folder / f"step-{step:06d}.png"

    @property
    def loss_picture(self) -> Path:
        """Return the file of the loss curve."""
        return self.folder / "loss.png"

    @property
    def report_path(self) -> Path:
        """Return the file of the report."""
        return self.folder / "report.html"

    @property
    def wandb_folder(self) -> Path:
        """Return the folder that wandb writes on this machine."""
        return self.folder / "wandb"

    @property
    def wandb_id_path(self) -> Path:
        """Return the file of the run's id in wandb."""
        return self.folder / "wandb_id"
