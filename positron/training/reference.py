"""Compute the log-probabilities of the reference model of preference tuning once, and read them again on resuming."""

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
    """Return the log-probabilities of the reference model, which is the model before this training.

    If they are stored in the run, they are read, even if the base run has changed in the meantime; otherwise they are
    computed and stored. `model`: the model to train; in a new run it still has the weights of the reference model.
    `machine`: the machine of the run's plan, because with precision=auto `session.machine` does not have the final precision.
    Raises UserError if a run that continues has lost its stored reference and the base run has changed or cannot be read.
    """
    run, config, start = session.run, session.config, session.start
    if start.is_own:
        known = run.facts().reference
        stored = read_reference(run.reference_path, _identity(known, objective, machine))
        changed = _is_changed(config, known)
        if stored is not None:
            if changed:
                logger.warning(
                    f"the weights of init_from={config.init_from} have changed since this run began: this run continues with "
                    f"the log-probabilities of the old weights, which it stored in {run.reference_path.name}"
                )
            return stored
        if changed or changed is None:
            why = (
                "was not found or has no readable checkpoint" if changed is None else "has changed since this run began"
            )
            raise UserError(
                f"{run.reference_path} is missing or damaged, and it cannot be computed again, because the base run "
                f"init_from={config.init_from} {why}: restore this file or the base run from a copy, or give another name="
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
    """Return a string that changes whenever the log-probabilities of the reference must be computed again."""
    sizes = f"{objective.context} {len(objective.train)} {len(objective.val)}"
    return f"{weights} {objective.fingerprint} {sizes} {machine.precision}"


def _is_changed(config: RunConfig, known: str | None) -> bool | None:
    """Return True if the weights of the base run have changed, False if they have not, and None if they cannot be read.

    `known`: the hash of the weights when this run began.
    """
    try:
        weights = best_or_newest(base_run(config).checkpoint_folder)
        saved = None if weights is None else load_checkpoint(weights)["state_dict"]
    except UserError:
        return None
    return None if saved is None else hash_of_weights(bare_names(saved)) != known
