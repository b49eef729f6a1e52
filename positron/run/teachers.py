"""Find the teachers of a distillation: trained runs whose context is at least as long as that of the new model."""

from __future__ import annotations

from collections.abc import Sequence

from positron.run.ensemble import refuse_repeated
from positron.run.find import find_run
from positron.run.folder import DISTILL, OUTPUTS, Run
from positron.system.disk import expanded
from positron.system.errors import UserError


def find_teachers(names: Sequence[str]) -> list[Run]:
    """Return the runs with these names or folders.

    Raises UserError if a run does not exist, is named twice or has no checkpoint.
    """
    teachers = refuse_repeated([find_run(str(expanded(name))) for name in names])
    for run in teachers:
        if not run.has_checkpoint:
            raise UserError(
                f"the teacher {run.folder} has no checkpoint yet: train it first, or name another run in teachers="
            )
    return teachers


def is_finished_student(run: Run, names: Sequence[str]) -> bool:
    """Tell whether the run is a finished distillation from the teachers `names`, in any order.

    Only the names are compared, because a finished run no longer needs its teachers: they may have been moved or trained
    further after the distillation.
    """
    if not run.exists or run.facts().status != "finished" or run.kind != DISTILL:
        return False
    recorded = run.settings().distill
    assert recorded is not None
    given = [{name, expanded(name).as_posix(), (OUTPUTS / name).as_posix()} for name in names]
    return len(given) == len(recorded.teachers) and all(
        any(known in forms for forms in given) for known in recorded.teachers
    )


def refuse_shorter_context(teachers: Sequence[Run], context: int) -> None:
    """Raise UserError if the context of a teacher is shorter than `context`, the context length of the new run."""
    contexts = {run.folder: run.settings().model.context_length for run in teachers}
    folder, longest = min(contexts.items(), key=lambda item: item[1])
    if longest < context:
        raise UserError(
            f"model.context_length={context} is longer than the {longest} tokens that the teacher {folder} reads: "
            f"give model.context_length={longest}"
        )
