"""Compute the log-probabilities of the reference model of preference tuning once, and read them again on resuming."""

from __future__ import annotations

import logging
import math
import time

from positron.config import RunConfig
from positron.model.gpt import GPT
from positron.run.checkpoint import best_or_newest, load_checkpoint
from positron.run.load import bare_names, load_model
from positron.system.errors import UserError
from positron.system.formatting import counted
from positron.training.device import Machine
from positron.training.objective.preference import PreferenceObjective
from positron.training.objective.reference import (
    Reference,
    ReferencePart,
    hash_of_weights,
    read_reference,
    read_reference_part,
    write_reference,
    write_reference_part,
)
from positron.training.resume import Session
from positron.training.tuning import base_run

logger = logging.getLogger(__name__)

PART_SECONDS = 5.0  # time between two writings of the results so far, which is at most what a killed command loses


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
        identity = _identity(known, objective, machine)
        reference = read_reference(run.reference_path, identity)
        changed = _is_changed(config, known)
        if reference is not None and changed:
            logger.warning(
                f"the weights of init_from={config.init_from} have changed since this run began: this run continues with "
                f"the log-probabilities of the old weights, which it stored in {run.reference_path.name}"
            )
        if reference is None and (changed or changed is None):
            why = (
                "was not found or has no readable checkpoint" if changed is None else "has changed since this run began"
            )
            raise UserError(
                f"{run.reference_path} is missing or damaged, and it cannot be computed again, because the base run "
                f"init_from={config.init_from} {why}: restore this file or the base run from a copy, or give another name="
            )
        if reference is None:
            model = load_model(base_run(config))[0]
    else:
        assert start.weights is not None
        known = hash_of_weights(bare_names(load_checkpoint(start.weights)["state_dict"]))
        identity = _identity(known, objective, machine)
        reference = read_reference(run.reference_path, identity)
    if reference is None:
        reference = _compute_reference(session, machine, objective, model, identity)
    if session.is_first_rank:
        run.reference_part_path.unlink(missing_ok=True)
        run.update(reference=known)
    return reference


def _compute_reference(
    session: Session, machine: Machine, objective: PreferenceObjective, model: GPT, identity: str
) -> Reference:
    """Compute the log-probabilities of the reference `model`, from where an interrupted command stopped, and store them.

    Each process computes all pairs, and the first one stores them. The results so far are stored as well, so that a command
    that is killed loses only the last seconds.
    """
    run = session.run
    logger.info(f"computing the log-probabilities of {counted(objective.n_pairs, 'pair')} under the reference, once")
    part = read_reference_part(run.reference_part_path, identity)
    if part is not None:
        logger.info(
            f"continuing at {part.n_pairs / objective.n_pairs:.0%}: an earlier start computed {counted(part.n_pairs, 'pair')}"
        )
    elif run.reference_part_path.exists():
        logger.info(
            f"{run.reference_part_path.name} is damaged or belongs to another reference, other pairs or another precision: "
            "it is discarded, and all pairs are computed"
        )
    began = time.monotonic()
    written = -math.inf

    def keep(part: ReferencePart) -> None:
        nonlocal written
        if session.is_first_rank and time.monotonic() - written >= PART_SECONDS:
            write_reference_part(run.reference_part_path, part, identity)
            written = time.monotonic()

    reference = objective.describe(model.to(machine.device).eval(), machine.autocast, part, keep)
    model.train()
    logger.info(f"computed in {time.monotonic() - began:.0f} s")
    if session.is_first_rank:
        write_reference(run.reference_path, reference, identity)
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
