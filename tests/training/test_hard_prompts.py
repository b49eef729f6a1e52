"""Hard prompts: which ones are asked again, on any number of processes and after any interruption."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from positron.training.objective.hard_prompts import HardPrompts

STEPS = st.lists(st.dictionaries(st.integers(0, 9), st.booleans(), min_size=1, max_size=4), min_size=1, max_size=6)


def recorded(steps: list[dict[int, bool]]) -> HardPrompts:
    prompts = HardPrompts()
    for step, passed in enumerate(steps, 1):
        prompts.record(step, list(passed), list(passed.values()))
    return prompts


@given(STEPS)
def test_a_prompt_is_hard_if_its_answers_did_not_all_pass_when_last_asked(steps: list[dict[int, bool]]) -> None:
    last = {number: passed for each in steps for number, passed in each.items()}
    assert recorded(steps).after(len(steps)) == sorted(number for number, passed in last.items() if not passed)


@given(STEPS, STEPS.map(lambda steps: steps[0]))
def test_a_step_that_was_not_finished_leaves_no_trace(steps: list[dict[int, bool]], broken: dict[int, bool]) -> None:
    whole, interrupted = recorded(steps), recorded([*steps, broken])
    assert interrupted.after(len(steps)) == whole.after(len(steps))
    restored = HardPrompts(whole.after(len(steps)))
    assert restored.draw(len(steps) + 1, 3, 0) == whole.draw(len(steps) + 1, 3, 0)


@given(st.sets(st.integers(0, 99)), st.integers(0, 20), st.integers(1, 99), st.integers(0, 9))
def test_prompts_are_drawn_once_each_and_depend_on_step_and_seed_alone(
    hard: set[int], count: int, step: int, seed: int
) -> None:
    drawn = HardPrompts(hard).draw(step, count, seed)
    assert len(set(drawn)) == len(drawn) == min(count, len(hard))
    assert set(drawn) <= hard
    assert HardPrompts(sorted(hard, reverse=True)).draw(step, count, seed) == drawn


def test_a_prompt_that_fails_once_in_a_step_is_hard_wherever_it_stands() -> None:
    for passed in ([False, True, True], [True, True, False]):
        prompts = HardPrompts()
        prompts.record(1, [5, 7, 5], passed)
        assert prompts.after(1) == [5]
