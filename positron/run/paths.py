"""Define the paths of the files in a run folder; other modules take these paths from here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

CONFIG = "config.json"
FACTS = "run.json"
METRICS = "metrics.jsonl"
JOB = "job.json"  # outcome of a job of a sweep
LOG = "train.log"
LOCK = "lock"
CHECKPOINTS = "checkpoints"
PROVENANCE = "provenance.json"


@dataclass(frozen=True, init=False)
class RunPaths:
    """Hold the folder of a run, given as a path or a text, and return the path of each file and folder in it."""

    folder: Path

    def __init__(self, folder: str | Path) -> None:
        object.__setattr__(self, "folder", Path(folder))  # a frozen dataclass refuses a plain assignment

    @property
    def config_path(self) -> Path:
        """Return the path of the run's settings (see `facts.read_config`)."""
        return self.folder / CONFIG

    @property
    def facts_path(self) -> Path:
        """Return the path of the run's status and results (see `facts.read_facts`)."""
        return self.folder / FACTS

    @property
    def provenance_path(self) -> Path:
        """Return the path of the record of each start: code, versions and hardware (see `provenance.read_provenance`)."""
        return self.folder / PROVENANCE

    @property
    def metrics_path(self) -> Path:
        """Return the path of `metrics.jsonl`, which has one row for each logged step (see `metrics.read_metrics`)."""
        return self.folder / METRICS

    @property
    def samples_path(self) -> Path:
        """Return the path of the texts sampled during training (see `samples.read_samples`)."""
        return self.folder / "samples.jsonl"

    @property
    def samples_page(self) -> Path:
        """Return the path of the samples as Markdown; runs of older versions have only this file of samples."""
        return self.folder / "samples.md"

    @property
    def chat_path(self) -> Path:
        """Return the path of the chat template; the file exists only if the run's model was trained to answer messages."""
        return self.folder / "chat.json"

    @property
    def reference_path(self) -> Path:
        """Return the path of the reference model's log-probabilities, which preference tuning stores.

        See `training/objective/reference.py`.
        """
        return self.folder / "reference.npz"

    @property
    def log_path(self) -> Path:
        """Return the path of the run's log file."""
        return self.folder / LOG

    @property
    def lock_path(self) -> Path:
        """Return the path of the file that is locked while a process trains the run."""
        return self.folder / LOCK

    @property
    def job_path(self) -> Path:
        """Return the path of the file that records how a job of a sweep ended; only the runs of a sweep have this file."""
        return self.folder / JOB

    @property
    def checkpoint_folder(self) -> Path:
        """Return the path of the folder of checkpoints."""
        return self.folder / CHECKPOINTS

    @property
    def history_folder(self) -> Path:
        """Return the folder of the weights that `train.keep_history` keeps (see `kept_weights`)."""
        return self.folder / "history"

    @property
    def tokenizer_folder(self) -> Path:
        """Return the path of the folder of the tokenizer's files."""
        return self.folder / "tokenizer"

    @property
    def model_folder(self) -> Path:
        """Return the path of the folder with the best weights in formats that other programs read."""
        return self.folder / "model"

    @property
    def weights_path(self) -> Path:
        """Return the path of the exported weights (see `training.conclude.export_weights`)."""
        return self.model_folder / "weights.safetensors"

    @property
    def weights_checksum_path(self) -> Path:
        """Return the path of the file with the SHA-256 of the file of exported weights."""
        return self.model_folder / "weights.safetensors.sha256"

    @property
    def architecture_path(self) -> Path:
        """Return the path of the JSON file with the architecture (`GPTConfig`) of the model in `weights_path`."""
        return self.model_folder / CONFIG

    @property
    def attention_folder(self) -> Path:
        """Return the path of the folder of attention pictures."""
        return self.folder / "attention"

    def attention_picture(self, step: int) -> Path:
        """Return the path of the attention picture of `step`: `attention/step-000040.png`."""
        return self.attention_folder / f"step-{step:06d}.png"

    @property
    def loss_picture(self) -> Path:
        """Return the path of the picture of the loss curve."""
        return self.folder / "loss.png"

    @property
    def report_path(self) -> Path:
        """Return the path of the report on the training, an HTML page with curves, samples and settings."""
        return self.folder / "report.html"

    @property
    def wandb_folder(self) -> Path:
        """Return the path of the folder that wandb writes on this machine."""
        return self.folder / "wandb"

    @property
    def wandb_id_path(self) -> Path:
        """Return the path of the file with the run's id in wandb."""
        return self.folder / "wandb_id"
