"""The report of a run: one HTML file with everything in it, to be read or sent without anything beside it."""

from __future__ import annotations

import base64
import html
import json
import shlex
import sys
from typing import Any

from positron.evaluation.monitor_plots import inside_pictures
from positron.evaluation.plots import learning_rate_curve, loss_curve
from positron.evaluation.summary import quality
from positron.run.facts import Facts
from positron.run.folder import PRETRAIN, Run
from positron.run.metrics import read_metrics
from positron.run.provenance import read_provenance, start_of
from positron.run.samples import read_samples
from positron.system.disk import whole_file, write_text
from positron.system.formatting import counted, took
from positron.system.paths import without_home

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
h1, h2 { line-height: 1.2 } h2 { margin-top: 2.2rem; border-bottom: 1px solid #ddd }
table { border-collapse: collapse } td { padding: .15rem 1.2rem .15rem 0; vertical-align: top }
td:first-child { color: #666 } img { max-width: 100% }
pre { background: #f6f6f4; padding: .8rem; overflow-x: auto; white-space: pre-wrap }
blockquote { border-left: 3px solid #ccc; margin: .5rem 0; padding: .1rem 1rem; white-space: pre-line }
details > summary { cursor: pointer }
"""


def write_report(run: Run) -> None:
    """Write `loss.png` and `report.html` into the run's folder, from its files alone."""
    rows = read_metrics(run.metrics_path)
    facts, config = run.facts(), run.config()
    name = run.folder.name
    picture = loss_curve(rows, facts.floor_bpb, name)
    with whole_file(run.loss_picture) as file:
        file.write(picture)
    sections = [
        f"<h1>{html.escape(name)}</h1>",
        _table(_headline(facts, run.is_chat)),
        f"<h2>Loss</h2>{_image(picture)}{_losses_explained(run, rows, config)}",
        f"<h2>Samples</h2>{_samples(run)}",
        f"<h2>Learning rate and gradient</h2>{_image(learning_rate_curve(rows))}",
        _inside(rows),
        f"<h2>Next</h2><p>Where Positron is installed (<code>source .venv/bin/activate</code>):</p>"
        f"<pre>{_escape(_commands(run, facts))}</pre>",
        f"<h2>Configuration</h2><details><summary>all settings</summary><pre>{_escape(json.dumps(config, indent=2))}"
        "</pre></details>",
        f"<h2>Environment</h2>{_table(_environment(run, facts))}",
    ]
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(name)}</title>'
        f"<style>{_STYLE}</style><body>{''.join(sections)}</body></html>\n"
    )
    write_text(run.report_path, page)


def _headline(facts: Facts, is_chat: bool) -> dict[str, str]:
    lines = {"status": f"{facts.status}" + (f": {facts.error}" if facts.error else "")}
    lines["steps"] = f"{facts.step or 0:,}" + (f" of {facts.resolved.max_steps:,}" if facts.resolved else "")
    lines["tokens"] = f"{facts.tokens or 0:,}"
    lines["time"] = f"{took(facts.time_s or 0.0)} of training"
    if facts.val_bpb is not None and facts.best_bpb is not None:
        lines["result"] = quality(facts.val_bpb, facts.best_bpb, facts.floor_bpb, is_chat)
        lines["validation"] = f"{facts.val_bpb:.4f} bits per byte at the end, {facts.best_bpb:.4f} at best"
    return lines


def _environment(run: Run, facts: Facts) -> dict[str, str]:
    """Of the run's last start, as it noted it itself: the report may be written elsewhere."""
    resolved = run.resolved()
    lines = {
        "device": f"{resolved.accelerator}, {resolved.precision}, {counted(resolved.threads or 0, 'thread')}",
        "batch": f"{counted(resolved.batch_tokens, 'token')}, {counted(resolved.micro_batch_size, 'sequence')} at a time",
    }
    start = start_of(read_provenance(run.folder), sys.maxsize)
    if not start:  # a run that is older than its provenance
        return lines
    hardware, git = start["hardware"], start.get("git")
    lines |= {
        "machine": f"{hardware.get('system')}, {hardware.get('cpu')}, {counted(hardware.get('cores') or 0, 'core')}, "
        f"{hardware.get('memory_gb')} GB",
        "command": str(start.get("command")),
        "seed": str(start.get("seed")),
        "commit": "no git checkout" if git is None else git["commit"] + (" and changes" if git.get("diff") else ""),
    }
    return lines | {name: str(version) for name, version in start["versions"].items()}


def _commands(run: Run, facts: Facts) -> str:
    name = "chat" if run.is_chat else 'generate "Once upon a time"'
    lines = [f"python -m positron.{name} --run {shlex.quote(str(run.folder))}"]
    if facts.status != "finished":
        lines.append(f"python -m positron.train name={facts.name} ...   # the same command as before continues it")
    return "\n".join(lines)


def _losses_explained(run: Run, rows: list[dict[str, Any]], config: dict[str, Any]) -> str:
    """Why training loss lies above validation loss, for a run where it does."""
    last = next((row for row in reversed(rows) if row.get("val/loss") is not None), None)
    if last is None or last["train/loss"] is None or last["train/loss"] <= last["val/loss"] or run.kind != PRETRAIN:
        return ""
    reasons = []
    if config["data"].get("packing", "windows") == "windows":
        reasons.append(
            "training windows are cut anywhere and often begin inside a document, while validation windows begin with one"
        )
    if config["model"].get("dropout"):
        reasons.append("dropout is at work in training alone")
    reasons.append("a training loss is that of one batch, before its step")
    return f"<p>Training loss lies above validation loss here: {'; '.join(reasons)}.</p>"


def _samples(run: Run) -> str:
    return "".join(
        f"<h3>{_escape(sample.head)}</h3><blockquote>{_escape(sample.text)}</blockquote>"
        for sample in read_samples(run)
    )


def _inside(rows: list[dict[str, Any]]) -> str:
    """What `monitor=` measured; nothing where it measured nothing."""
    parts = [f"<h3>{title}</h3><p>{reading}</p>{_image(png)}" for title, reading, png in inside_pictures(rows)]
    return f"<h2>Looking inside</h2>{''.join(parts)}" if parts else ""


def _escape(text: str) -> str:
    """Return text for HTML, without the user's home folder: a report is made to be sent."""
    return html.escape(without_home(text))


def _table(lines: dict[str, str]) -> str:
    rows = "".join(f"<tr><td>{_escape(k)}</td><td>{_escape(v)}</td></tr>" for k, v in lines.items())
    return f"<table>{rows}</table>"


def _image(png: bytes) -> str:
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(png).decode("ascii")}">'
