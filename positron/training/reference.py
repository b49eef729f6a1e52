"""Compute the reference of preference tuning once, store it, and read it again when the run continues."""

from __future__ import annotations

import logging
import time

from positron.config import RunConfig
from positron.model.gpt import GPT
from positron.run.checkpoint import best_or_newest, load_checkpoint
from positron.run.load import bare_names, load_model
from positron.system.errors import UserError
from positron.system.formatting import counted
from positron.training.device import Machine
from positron.training.objective.preference import PreferenceObjective
from positron.training.objective.reference import Reference, hash_of_weights, read_reference, write_reference
from positron.training.resume import Session
from positron.training.tuning import base_run

logger = logging.getLogger(__name__)


def open_reference(session: Session, machine: Machine, objective: PreferenceObjective, model: GPT) -> Reference:
    """Return the reference that is stored in the run; if there is none, compute and store it.

    `model` has the weights with which a new run starts. `machine` has the precision of the training; with precision=auto,
    the session's machine does not have it yet. A run that continues uses its stored reference, even if the base run has
    changed in the meantime. Raises UserError if the base run has changed and the stored reference is missing.
    """
    run, config, start = session.run, session.config, session.start
    if start.is_own:
        known = run.facts().reference
        stored = read_reference(run.reference_path, _identity(known, objective, machine))
        changed = _is_changed(config, known)
        if stored is not None:
            if changed:
                logger.warning(
                    f"the weights of init_from={config.init_from} have changed since this run began: it continues with the "
                    f"reference that it stored, {run.reference_path.name}"
                )
            return stored
        if changed or changed is None:
            why = "was not found" if changed is None else "has changed since this run began"
            raise UserError(
                f"{run.reference_path} is missing or damaged, and it cannot be computed again, because the base run "
                f"init_from={config.init_from} {why}: restore the file from a copy, or give another name="
            )
        model = load_model(base_run(config))[0]
    else:
        assert start.weights is not None
        known = hash_of_weights(bare_names(load_checkpoint(start.weights)["state_dict"]))
    identity = _identity(known, objective, machine)
    reference = read_reference(run.reference_path, identity)
    if reference is None:
        count = counted(len(objective.train) + len(objective.val), "pair")
        logger.info(f"computing the log-probabilities of {count} under the reference, once")
        began = time.monotonic()
        reference = objective.describe(model.to(machine.device).eval(), machine.autocast)
        model.train()
        logger.info(f"computed in {time.monotonic() - began:.0f} s")
        if session.is_first_rank:
            write_reference(run.reference_path, reference, identity)
    if session.is_first_rank:
        run.update(reference=known)
    return reference


def _identity(weights: str | None, objective: PreferenceObjective, machine: Machine) -> str:
    """Return a text that changes whenever the reference must be computed again."""
    sizes = f"{objective.context} {len(objective.train)} {len(objective.val)}"
    return f"{weights} {objective.fingerprint} {sizes} {machine.precision}"


def _is_changed(config: RunConfig, known: str | None) -> bool | None:
    """Tell whether the weights of the base run have changed since this run began; None if they were not found."""
    try:
        weights = best_or_newest(base_run(config).checkpoint_folder)
        saved = None if weights is None else load_checkpoint(weights)["state_dict"]
    except UserError:
        return None
    return None if saved is None else hash_of_weights(bare_names(saved)) != known
