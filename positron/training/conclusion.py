"""The end of a run: what its folder keeps, and the last words to the user."""

from __future__ import annotations

from collections.abc import Callable

from positron.config import UserError
from positron.disk import make_folder, whole_file, write_json
from positron.evaluation.metrics import best_bpb, read_metrics
from positron.evaluation.report import write_report
from positron.runs import Run, bare_names
from positron.training.checkpoint import BEST, checkpoint_fault, checkpoints, load_checkpoint, step_of
from positron.training.signals import Signals


def conclude(run: Run, status: str, error: str | None, signals: Signals, say: Callable[[str], None]) -> None:
    """Write run.json, the exported weights, the picture and the report of a run, however it ended."""
    rows = read_metrics(run.folder / "metrics.jsonl")
    val = [row for row in rows if row.get("val/bpb") is not None]  # null where it was NaN
    facts = {"step": rows[-1]["step"], "tokens": rows[-1]["tokens"], "time_s": rows[-1]["time_s"]} if rows else {}
    if val:
        facts |= {"val/bpb": val[-1]["val/bpb"], "val/loss": val[-1]["val/loss"], "best/bpb": best_bpb(rows)}
    try:
        with signals.held():
            run.update(status=status, error=error, **facts)
        if rows:
            say("writing the weights and the report")
            export_weights(run)
            write_report(run)
    except UserError as unwritable:  # a full disk: what ended the run is the news, not this
        say(f"WARNING: {unwritable}")


def say_where_it_continues(run: Run, say: Callable[[str], None]) -> None:
    """The last line of a run that a signal ended."""
    saved = checkpoints(run.checkpoint_folder)
    if saved:
        say(f"saved at step {step_of(saved[-1])}; the same command continues")
    else:
        say("nothing is saved yet; the same command begins again")


def export_weights(run: Run) -> None:
    """The best weights as `model/weights.safetensors` with `model/config.json`: what other programs read."""
    from safetensors.torch import save

    path = run.checkpoint_folder / BEST
    if checkpoint_fault(path) is not None:
        return
    saved = load_checkpoint(path)
    weights = {name: tensor.float().contiguous() for name, tensor in bare_names(saved["state_dict"]).items()}
    folder = make_folder(run.folder / "model")
    with whole_file(folder / "weights.safetensors") as file:
        file.write(save(weights))
    write_json(folder / "config.json", saved["gpt_config"])
