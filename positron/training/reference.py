"""Compute the log-probabilities of answers under the reference model of preference tuning, and store them in the run folder.

A run that continues reads them from its folder.
"""

from __future__ import annotations

import logging
import time

from positron.model.gpt import GPT
from positron.run.load import load_model
from positron.system.errors import UserError
from positron.system.formatting import counted
from positron.training.objective.preference import PreferenceObjective
from positron.training.objective.reference import Reference, read_reference, write_reference
from positron.training.resolve import Plan
from positron.training.resume import Session
from positron.training.tuning import base_run, is_base_changed

logger = logging.getLogger(__name__)

WRITE_SECONDS = 5.0  # shortest time between two writings of the results so far
WRITE_SHARE = 0.05  # greatest share of the time that is spent on writing them, which takes long for a large vocabulary


def open_reference(
    session: Session, plan: Plan, objective: PreferenceObjective, model: GPT, known: str | None
) -> Reference:
    """Return the log-probabilities of the answers under the reference model, which is the model before this training.

    Log-probabilities that the run folder already contains are read from it. Those that are still missing for the validation and
    for the first `plan.horizon` optimizer steps are computed and stored in the run folder. Training pairs are scored in the
    precision of the training, `plan.machine.precision`, and validation pairs without autocast.

    `known`: the hash of the weights of the base run with which the run began. `model`: the model to train. In a new run, it
    still has the weights of the reference model, and computes the missing values. If values are missing in a run that
    continues, the reference model is loaded from the base run (init_from=). Raises UserError if this base run cannot be read,
    or has changed since this run began. If no values are missing, the base run is not read.
    """
    run, config, start = session.run, session.config, session.start
    identity, earlier = _identities(known, objective, plan)
    reference = read_reference(run.reference_path, identity, earlier)
    is_complete = not objective.missing(reference, plan.horizon)
    if start.is_own:
        changed = is_base_changed(config, known)
        if is_complete and changed:
            logger.warning(
                f"the weights of init_from={config.init_from} have changed since this run began: this run continues with "
                f"the log-probabilities of the old weights, which it stored in {run.reference_path.name}"
            )
        if not is_complete and (changed or changed is None):
            lacks, file = (
                ("is missing or damaged", "this file or ")
                if reference is None
                else ("lacks pairs that the added steps read", "")
            )
            why, other = (
                ("was not found or has no readable checkpoint", "")
                if changed is None
                else ("has changed since this run began", ", or give another name=")
            )
            raise UserError(
                f"{run.reference_path} {lacks}, and the base run init_from={config.init_from}, from which it is computed, "
                f"{why}: restore {file}the base run from a copy{other}"
            )
        if not is_complete:
            model = load_model(base_run(config))[0]
    if reference is None or not is_complete:
        reference = _compute_reference(session, plan, objective, model, reference, identity)
    return reference


def _compute_reference(
    session: Session, plan: Plan, objective: PreferenceObjective, model: GPT, known: Reference | None, identity: str
) -> Reference:
    """Compute with the reference `model` the log-probabilities that are missing in `known`, and return the complete Reference.

    `known` holds the log-probabilities that an earlier start stored, or is None if there are none. `identity` is a string that
    identifies the weights, pairs and settings of the computation (see `_identities`); it is stored with the results.

    Each process computes all missing pairs. The first process stores the results, those of `known` included, at the end and
    every few seconds before, so that a command that is killed loses only the last seconds of work.
    """
    run = session.run
    n_known = 0 if known is None else known.n_pairs
    n_needed = n_known + sum(len(pairs) for _, pairs in objective.missing(known, plan.horizon))
    logger.info(
        f"computing the log-probabilities of {counted(n_needed, 'pair')} with the weights of the base run; this "
        "run stores the results for later starts"
    )
    if known is not None:
        logger.info(f"continuing at {n_known / n_needed:.0%}: an earlier start computed {counted(n_known, 'pair')}")
    elif run.reference_path.exists():
        logger.info(
            f"{run.reference_path.name} is damaged or belongs to other weights, pairs or settings, so it is computed again"
        )
    began = time.monotonic()
    due = began + WRITE_SECONDS

    def keep(reference: Reference) -> None:
        nonlocal due
        now = time.monotonic()
        if session.is_first_rank and now >= due:
            write_reference(run.reference_path, reference, identity)
            written = time.monotonic()
            due = written + max(WRITE_SECONDS, (written - now) / WRITE_SHARE)

    model = model.to(plan.machine.device).eval()
    reference = objective.describe(model, plan.machine.autocast, plan.horizon, known, keep)
    model.train()
    logger.info(f"computed in {time.monotonic() - began:.0f} s")
    if session.is_first_rank:
        write_reference(run.reference_path, reference, identity)
    return reference


def _identities(weights: str | None, objective: PreferenceObjective, plan: Plan) -> tuple[str, str]:
    """Return two strings that identify the data from which the log-probabilities under the reference model were computed.

    The first string identifies weights, pairs, context length, precision and tokenizer. It is stored with the
    log-probabilities. The second string lacks the tokenizer; earlier versions of Positron stored it instead of the first.
    `weights`: the hash of the reference model's weights.
    """
    sizes = f"{objective.context} {len(objective.train)} {len(objective.val)}"
    earlier = f"{weights} {objective.fingerprint} {sizes} {plan.machine.precision}"
    return f"{earlier} {objective.tokenizer.hash}", earlier
