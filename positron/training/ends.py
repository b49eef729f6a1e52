"""Decide what ends a run before its last step: a time limit, a signal, early stopping, or the pruning of a sweep.

Pruning ends those runs of a sweep early that are worse than most others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from positron.config import seconds
from positron.run.metrics import read_metrics
from positron.training.callbacks.patience import Patience
from positron.training.callbacks.pruning import Pruning, open_pruning
from positron.training.callbacks.stopping import Stopping
from positron.training.objective.base import Objective
from positron.training.resolve import Plan
from positron.training.resume import Session
from positron.training.signals import Signals


@dataclass(frozen=True)
class Ends:
    """Hold the callbacks that can end the run.

    `stopping` ends the run at its last step, at a time limit, or after a signal. `patience` is the early stopping, or None if
    the run has none. `pruning` is None if sweep.prune= is not set.
    """

    stopping: Stopping
    patience: Patience | None
    pruning: Pruning | None

    @property
    def is_out_of_patience(self) -> bool:
        """Tell whether early stopping has ended the run."""
        return self.patience is not None and self.patience.is_over


def open_ends(session: Session, plan: Plan, objective: Objective, rows: list[dict[str, Any]], signals: Signals) -> Ends:
    """Create the callbacks that can end the run; `rows` are the rows of metrics.jsonl so far."""
    limit, every = session.config.train.max_time, session.config.train.val_every
    return Ends(
        Stopping(
            last_step=plan.last_step,
            max_seconds=None if limit is None else seconds(limit),
            started=session.started,
            signals=signals,
        ),
        Patience(objective.patience, every, rows) if objective.patience else None,
        open_pruning(session.config.sweep, session.run, every, plan.last_step, rows),
    )


def is_pruned(session: Session, plan: Plan) -> bool:
    """Tell whether an earlier process has ended the run by pruning, and the command still asks for pruning.

    If this process was killed before it recorded this, the run is compared with the other runs of the sweep again.
    """
    run, start, sweep = session.run, session.start, session.config.sweep
    if not start.is_own or sweep.prune is None:
        return False
    if run.facts().status == "pruned":
        return True
    rows = [row for row in read_metrics(run.metrics_path) if row["step"] <= start.step]
    pruning = open_pruning(sweep, run, session.config.train.val_every, plan.last_step, rows)
    return pruning is not None and pruning.is_hopeless_at(start.step)


def why_it_is_over(session: Session, plan: Plan, objective: Objective) -> str | None:
    """Return a message that says why there is nothing to train, or None if the run is to be trained.

    Call this function before a file of the run is changed: a run that is not trained keeps its settings and its facts.
    """
    run, step = session.run, session.start.step
    if not session.start.is_own:
        return None
    if objective.patience:
        # rows after `step` are from steps that no checkpoint has; they are trained again
        rows = [row for row in read_metrics(run.metrics_path) if row["step"] <= step]
        patience = Patience(objective.patience, session.config.train.val_every, rows)
        if patience.is_over:
            reason = f"nothing to do: early stopping ended {run.folder} at step {step}, {patience.why}"
            return f"{reason}; give another name= to train again"
    if is_pruned(session, plan):
        return (
            f"nothing to do: sweep.prune=median ended {run.folder} at step {step}; give another name= to train with these "
            "settings to the end"
        )
    if step >= plan.last_step:
        until, remedy = "", "to train longer, give train.extend=true and a larger train.max_steps="
        if step < plan.horizon:
            until = f" up to step {plan.last_step}"
            remedy = "to continue, leave train.stop_at= out, or give a larger step"
        return f"nothing to do{until}: {run.folder} is at step {step} of {plan.horizon}; {remedy}"
    return None


def status_at_end(plan: Plan, ends: Ends, step: int) -> str:
    """Return "pruned", "stopped" or "finished" for a run that is at step `step` and whose training ended without an error.

    - "pruned": the run was ended early, because it was worse than the median of the finished runs of its sweep.
    - "stopped": the run ended at train.stop_at=, at its time limit or by a callback of the user, and can be continued.
    - "finished": the run reached its planned last step, or early stopping ended it.

    `ends` holds the callbacks that can end a run.
    """
    if ends.pruning is not None and ends.pruning.pruned:
        return "pruned"
    return "stopped" if step < plan.horizon and not ends.is_out_of_patience else "finished"
