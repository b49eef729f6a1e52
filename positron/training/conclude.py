"""Write the results of a run to its folder when it ends, and tell the user how to continue."""

from __future__ import annotations

import hashlib
import logging

from positron.evaluation.report import write_report
from positron.run.checkpoint import BEST, checkpoint_fault, checkpoints, load_checkpoint, step_of
from positron.run.folder import Run
from positron.run.kept_weights import write_weights
from positron.run.load import bare_names
from positron.run.metrics import best_so_far, read_metrics
from positron.system.disk import make_folder, write_json, write_text
from positron.system.errors import UserError
from positron.training.signals import Signals

logger = logging.getLogger(__name__)


def conclude(run: Run, status: str, error: str | None, signals: Signals, *, keeps_best: bool, is_new: bool) -> None:
    """Write run.json and, if the run has metrics, the exported weights, the loss curve and the report when a run ends.

    `status` and `error` are recorded in run.json; `error` is the message of the error that ended the run, or None. `signals`
    delays a signal while run.json is written. `keeps_best`: True if run.json records the validation with the lowest bits per
    byte as the best one, False if it records the last validation as the best one. `is_new`: False if nothing was trained; the
    files are then written without saying so, because they usually stay the same.

    If the metrics are damaged or a file cannot be written, a warning is logged and no error is raised.
    """
    try:
        rows = read_metrics(run.metrics_path)
    except UserError as damaged:  # another process or the disk damaged it during the run
        logger.warning(f"the weights and the report are not written: {damaged}")
        rows = []
    val = [row for row in rows if row.get("val/bpb") is not None]  # NaN is stored as null
    facts = {"step": rows[-1]["step"], "tokens": rows[-1]["tokens"], "time_s": rows[-1]["time_s"]} if rows else {}
    if val:
        last = (val[-1]["val/bpb"], val[-1]["step"])
        best, step = best_so_far(rows, run.facts(), rows[-1]["step"]) if keeps_best else last
        facts |= {"val_bpb": val[-1]["val/bpb"], "val_loss": val[-1]["val/loss"], "best_bpb": best, "best_step": step}
    try:
        with signals.held():
            run.update(status=status, error=error, **facts)
        if rows:
            if is_new:
                logger.info("writing the weights and the report")
            export_weights(run)
            write_report(run)
    except UserError as unwritable:  # such as a full disk; it must not hide the error that ended the run
        logger.warning(str(unwritable))


def log_how_to_continue(run: Run) -> None:
    """Log the last saved step of a run that a signal has ended, and how to continue the run."""
    saved = checkpoints(run.checkpoint_folder)
    if saved:
        logger.info(f"saved at step {step_of(saved[-1])}; the same command continues the run")
    else:
        logger.info("nothing was saved yet; the same command starts the run again")


def export_weights(run: Run) -> None:
    """Write the best weights to `model/weights.safetensors`, with `model/config.json` and a checksum.

    These files are for other programs. Does nothing if the best checkpoint is missing or damaged.
    """
    path = run.checkpoint_folder / BEST
    if checkpoint_fault(path) is not None:
        return
    saved = load_checkpoint(path)
    make_folder(run.model_folder, run.folder)
    checksum = run.weights_checksum_path
    # so that no wrong checksum is left if this process ends before it writes the new one
    checksum.unlink(missing_ok=True)
    content = write_weights(run.weights_path, bare_names(saved["state_dict"]), run.folder)
    write_json(run.architecture_path, saved["gpt_config"], run.folder)
    line = f"{hashlib.sha256(content).hexdigest()}  {run.weights_path.name}\n"
    write_text(checksum, line, run.folder)
