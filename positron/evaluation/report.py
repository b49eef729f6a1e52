"""Write the report of a run: a single HTML file that contains all figures."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path
from typing import Any

from positron.evaluation.monitor_plots import inside_pictures
from positron.evaluation.plots import learning_rate_curve, loss_curve
from positron.evaluation.summary import own_measure, quality
from positron.evaluation.tuning_plots import tuning_pictures
from positron.run.facts import Facts
from positron.run.folder import PREFERENCE, PRETRAIN, REINFORCE, TUNED, Run
from positron.run.metrics import read_metrics
from positron.run.provenance import read_provenance, start_of
from positron.run.samples import read_samples
from positron.system.commands import command
from positron.system.disk import whole_file, write_text
from positron.system.formatting import counted, took
from positron.system.paths import without_home

_TEMPLATE = Path(__file__).parent / "report.html.jinja"


def write_report(run: Run) -> None:
    """Write `loss.png` and `report.html` into the run's folder, using only the files of the run."""
    rows = read_metrics(run.metrics_path)
    facts, config = run.facts(), run.config()
    name = run.folder.name
    picture = loss_curve(rows, facts.floor_bpb, name, _measure(run))
    with whole_file(run.loss_picture) as file:
        file.write(picture)
    page = _render(
        name=name,
        headline=_headline(facts, run.is_measured_on_answers, own_measure(rows)),
        learned=tuning_pictures(rows),
        progress=picture,
        reasons=reasons_for_a_higher_training_loss(run, rows, config),
        samples=[(sample.head, sample.text) for sample in read_samples(run)],
        learning_rate=learning_rate_curve(rows),
        inside=inside_pictures(rows),
        commands=_commands(run, facts),
        config=json.dumps(config, indent=2),
        environment=_environment(run, facts),
    )
    write_text(run.report_path, page)


def _render(**values: Any) -> str:
    """Return the HTML of the report: the template with `values`, whose text is escaped.

    The path of the user's home folder is removed from the values, because reports are sent to others.
    """
    import jinja2  # imported here, because a run needs it only at its end

    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["base64"] = lambda content: base64.b64encode(content).decode("ascii")
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(without_home(values))


def _measure(run: Run) -> str:
    """Return the name of the validation metric that shows the progress of the run."""
    return {PREFERENCE: "preference/loss", REINFORCE: "val/reward"}.get(run.kind, "val/loss")


def _headline(facts: Facts, on_answers: bool, learnt: str | None) -> dict[str, str]:
    lines = {"status": f"{facts.status}" + (f": {facts.error}" if facts.error else "")}
    lines["steps"] = f"{facts.step or 0:,}" + (f" of {facts.resolved.max_steps:,}" if facts.resolved else "")
    lines["tokens"] = f"{facts.tokens or 0:,}"
    lines["time"] = f"{took(facts.time_s or 0.0)} of training"
    if learnt is not None:
        lines["learnt"] = learnt
    if facts.val_bpb is not None and facts.best_bpb is not None:
        lines["result"] = quality(facts.val_bpb, facts.best_bpb, facts.floor_bpb, on_answers)
        lines["validation"] = f"{facts.val_bpb:.4f} bits per byte at the end, {facts.best_bpb:.4f} at best"
    return lines


def _environment(run: Run, facts: Facts) -> dict[str, str]:
    """Return the device, the batch size, the machine, the command, the seed, the commit and the versions, as {label: text}.

    The run itself recorded these values. The process that writes the report cannot determine them, because it may run on
    another machine or with other versions. An old run records only the device and the batch size.
    """
    resolved = run.resolved()
    # in fine-tuning, batch_tokens is the number of sequences times the context, although most sequences are shorter
    batch = (
        counted(resolved.batch_tokens // run.config()["model"]["context_length"], "sequence")
        if run.kind in TUNED
        else counted(resolved.batch_tokens, "token")
    )
    lines = {
        "device": f"{resolved.accelerator}, {resolved.precision}, {counted(resolved.threads or 0, 'thread')}",
        "batch": f"{batch}, {counted(resolved.micro_batch_size, 'sequence')} at a time",
    }
    start = start_of(read_provenance(run.folder), sys.maxsize)
    if not start:  # an old run, which has no provenance.json
        return lines
    hardware, git = start["hardware"], start.get("git")
    lines |= {
        "machine": f"{hardware.get('system')}, {hardware.get('cpu')}, {counted(hardware.get('cores') or 0, 'core')}, "
        f"{hardware.get('memory_gb')} GB",
        "command": str(start.get("command")),
        "seed": str(start.get("seed")),
        "commit": "not a git repository"
        if git is None
        else git["commit"] + (" with uncommitted changes" if git.get("diff") else ""),
    }
    return lines | {name: str(version) for name, version in start["versions"].items()}


def _commands(run: Run, facts: Facts) -> str:
    words = ("chat",) if run.is_chat else ("generate", "Once upon a time")
    lines = [command(*words, "--run", str(run.folder))]
    if facts.status != "finished":
        lines.append("# to continue the training, give the same command as before")
    return "\n".join(lines)


def reasons_for_a_higher_training_loss(run: Run, rows: list[dict[str, Any]], config: dict[str, Any]) -> list[str]:
    """Return the reasons why the training loss of a pretraining run is above the validation loss.

    `rows` are the rows of metrics.jsonl, and `config` are the settings in config.json. The two losses at the last validation
    are compared. Returns an empty list if the training loss is not higher, or if the run is not a pretraining run.
    """
    last = next((row for row in reversed(rows) if row.get("val/loss") is not None), None)
    if last is None or last["train/loss"] is None or last["train/loss"] <= last["val/loss"] or run.kind != PRETRAIN:
        return []
    reasons = []
    if config["data"].get("packing", "windows") == "windows":
        reasons.append(
            "training windows are cut anywhere and often begin inside a document, while validation windows begin with a "
            "document where possible"
        )
    if config["model"].get("dropout"):
        reasons.append("dropout is only applied in training")
    reasons.append("the training loss is measured on one batch, before the optimizer step on this batch")
    return reasons
