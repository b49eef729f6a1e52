"""Spend the rest of a budget on a small text: train a second run, and then a student of both runs.

With more than a dozen passes over a small text, a model memorises the text instead of learning from it. So a run of `positron
train model=auto budget=` may end long before its budget. The rest of the budget trains the same model with another seed. The
two runs, the teachers, are wrong in different places. A student, a model of the same size, then learns from the text and from
the probabilities of both. It has a lower loss than its teachers (docs/LOG.md), and is used and exported like any other run. If
the time is not enough for a second run, the student has one teacher.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence

from lightning import Callback

from positron.config import Asked, DistillConfig, RunConfig, seconds
from positron.run.base import portable
from positron.run.budget_choice import restore_choice
from positron.run.common_precision import with_common_precision
from positron.run.differences import differences
from positron.run.folder import Run
from positron.system.console import say
from positron.training.budget.course import MAX_MEASURING_S, MEASURING_SHARE, RESERVED_SHARE
from positron.training.budget.rest import may_train_generations, teachers_within
from positron.training.from_text import Lesson, train_on_text
from positron.training.teachers import lesson_of_teachers

UNCOUNTED_TIME = 1.05  # the whole time of a run, divided by the time of its training steps, which run.json records
ALPHA = 0.9  # weight of the teachers in the loss of the student; 0.7 is worse (docs/LOG.md)


def train_generations(
    config: RunConfig, run: Run, make_callbacks: Callable[[], Sequence[Callback]], asked: Asked
) -> Iterator[Run]:
    """Train a second run and a student in the rest of the budget of `run`, and yield each of them at its end.

    If the name of `run` is NAME, the second run is NAME-2, and the student of both is NAME-student. If the time is not enough
    for a second run, the student learns from `run` alone. What is trained depends only on the budget and on the recorded
    training time of `run`. So after an interruption, the same call continues where it was interrupted, and does not train
    finished runs again.

    `config` and `asked` are the settings of the command that trained `run`. `make_callbacks` builds the user's Lightning
    callbacks; each run gets its own.

    Nothing is trained if the command does not train generations (see `may_train_generations`), if `run` is not finished, or if
    the rest of the budget is too short for a student. If the second run is stopped before its end, the student is not trained.
    If one of the two folders contains a run that another command trained, nothing is trained, and a message says so.
    """
    facts = run.facts()
    if config.budget is None or not may_train_generations(config, asked):
        return
    if facts.status != "finished" or facts.time_s is None:
        return
    budget = seconds(config.budget, "budget")
    usable = budget * (1 - RESERVED_SHARE) - min(MAX_MEASURING_S, MEASURING_SHARE * budget)
    n_teachers = teachers_within(usable, UNCOUNTED_TIME * facts.time_s)
    if not n_teachers:
        return
    second, student = (run.folder.with_name(f"{run.folder.name}-{suffix}") for suffix in ("2", "student"))
    teachers = [run.folder, second][:n_teachers]
    # resume=must is meant for the first run
    common = dataclasses.replace(restore_choice(config, asked, run), budget=None, resume="auto")
    lesson = DistillConfig(tuple(portable(teacher) for teacher in teachers), alpha=ALPHA)
    of_second = dataclasses.replace(common, name=second.name, seed=config.seed + 1)
    of_student = dataclasses.replace(common, name=student.name, seed=config.seed + 2, distill=lesson)
    configs = {second: of_second, student: of_student} if second in teachers else {student: of_student}
    configs = {folder: with_common_precision(own, Run(folder), [run]) for folder, own in configs.items()}
    taken = next(
        (folder for folder, own in configs.items() if Run(folder).exists and differences(Run(folder), own)), None
    )
    if taken is not None:
        say(
            f"\nthe rest of budget={config.budget} is not used, because {taken} contains a run that another command trained: "
            f"to train {' and '.join(map(str, configs))}, rename this folder, and give the same command again"
        )
        return
    first_then = f"{second}, which differs from {run.folder} in its seed, and then " if second in teachers else ""
    say(
        f"\nthe rest of budget={config.budget} trains {first_then}{student}, which learns from "
        f"{' and '.join(map(str, teachers))}"
    )
    if second in configs:
        ended = train_on_text(configs[second], second, make_callbacks(), Asked(), time.monotonic(), lambda _: Lesson())
        yield Run(second)
        # the weights of an unfinished run will change, but the student must have the same teachers to its end
        if ended.status != "finished":
            say(f"\n{second} is not finished, so {student} is not trained yet: give the same command again")
            return
    train_on_text(configs[student], student, make_callbacks(), Asked(), time.monotonic(), lesson_of_teachers)
    yield Run(student)
