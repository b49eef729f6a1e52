"""The user's own callbacks: their state, their metrics, and what is saved if one of them raises an error or ends the run."""

from __future__ import annotations

import collections
import inspect
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from conftest import tiny
from lightning.pytorch import callbacks
from traces import same, trace

from positron.cli.user_callbacks import _NEVER_CALLED, refuse_equal_keys, refuse_unusable
from positron.run.checkpoint import checkpoints, load_checkpoint
from positron.run.metrics import read_metrics
from positron.system.errors import UserError
from positron.train import train
from positron.training.callbacks.checkpoints import WholeCheckpointIO


class Remembers(L.Callback):
    """Has a state, which a checkpoint stores."""

    def __init__(self, state: Any) -> None:
        self.state, self.loaded = state, None

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.loaded = state_dict["best"]


def test_the_state_of_a_callback_may_contain_numbers_of_numpy(tmp_path: Path) -> None:
    state = {"loss": np.float64(3.5), np.int64(7): [np.bool_(True), (np.str_("text"), torch.ones(2))]}
    train(tiny(tmp_path, train__stop_at=5), tmp_path / "run", [Remembers(state)])
    again = Remembers(None)
    train(tiny(tmp_path, train__stop_at=6), tmp_path / "run", [again])
    assert again.loaded is not None
    assert repr(again.loaded) == "{'loss': 3.5, 7: [True, ('text', tensor([1., 1.]))]}"


CONTENTS = {"state_dict": {}, "bad_steps": 0, "global_step": 1, "tokenizer_hash": "", "gpt_config": {}}


@pytest.mark.parametrize("value", [np.zeros(2), Path("a"), np.datetime64(0, "s"), lambda: 0])
def test_a_state_that_could_not_be_loaded_is_refused_with_its_name(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "step-000001.ckpt"
    state = {"optimizer_states": [{}], "callbacks": {"Mine": {"best": [value]}}}
    kind = type(value).__name__
    with pytest.raises(UserError, match=rf"callbacks\.Mine\.best\[0\] is a {kind}, which could not be loaded again"):
        WholeCheckpointIO().save_checkpoint({**CONTENTS, **state}, path)
    assert not list(tmp_path.iterdir())


def test_whatever_torch_loads_without_executing_code_may_be_saved_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "step-000001.ckpt"
    state = {"a": {1, 2}, "b": torch.float32, "c": torch.Size([3]), "d": collections.OrderedDict(x=torch.ones(1))}
    WholeCheckpointIO().save_checkpoint({**CONTENTS, "callbacks": {"Mine": state}}, path)
    assert load_checkpoint(path)["callbacks"] == {"Mine": state}


class AtStep(L.Callback):
    """Calls a function after a step."""

    def __init__(self, step: int, function: Any) -> None:
        self.step, self.function = step, function

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            self.function(trainer)


def fail(trainer: L.Trainer) -> None:
    raise ValueError("a mistake in the callback")


def test_a_step_that_an_error_in_a_callback_cuts_off_is_repeated_and_measured(tmp_path: Path) -> None:
    config = tiny(tmp_path, train__max_steps=4, train__val_every=3, train__save_every=2, train__sample_every=3)
    train(config, tmp_path / "whole")
    with pytest.raises(ValueError, match="a mistake"):
        train(config, tmp_path / "run", [AtStep(3, fail)])
    assert [path.name for path in checkpoints(tmp_path / "run" / "checkpoints")] == ["step-000002.ckpt"]
    train(config, tmp_path / "run")
    assert same(tmp_path / "run", tmp_path / "whole")
    samples = [(tmp_path / name / "samples.jsonl").read_text() for name in ("run", "whole")]
    assert samples[0] == samples[1]


class FailsBefore(L.Callback):
    """Raises an error at the beginning of a step, when the step before it is complete."""

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == 5:
            fail(trainer)


def test_the_last_complete_step_is_saved_and_logged_if_an_error_ends_the_next_step(tmp_path: Path) -> None:
    config = tiny(tmp_path, train__max_steps=10, train__log_every=4)
    with pytest.raises(ValueError, match="a mistake"):
        train(config, tmp_path / "run", [FailsBefore()])
    assert [path.name for path in checkpoints(tmp_path / "run" / "checkpoints")] == ["step-000005.ckpt"]
    assert [row[0] for row in trace(tmp_path / "run")] == [4, 5]


def test_a_checkpoint_that_a_callback_saves_within_a_step_adds_no_second_row(tmp_path: Path) -> None:
    saved = AtStep(2, lambda trainer: trainer.save_checkpoint(tmp_path / "mine.ckpt"))
    train(tiny(tmp_path, train__max_steps=3), tmp_path / "run", [saved])
    assert (tmp_path / "mine.ckpt").exists()
    assert [row["step"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")] == [1, 2, 3]


class Measures(L.Callback):
    """Adds values to the metrics of each step."""

    def __init__(self, **values: Any) -> None:
        self.values = values

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        module.metrics |= {f"my/{name}": value for name, value in self.values.items()}


def test_metrics_may_be_any_single_numbers_and_the_run_continues(tmp_path: Path) -> None:
    values = Measures(flag=True, tensor=torch.tensor(0.5), numpy=np.float32(2), count=3, missing=None)
    for steps in (2, 3):
        train(tiny(tmp_path, train__stop_at=steps), tmp_path / "run", [values])
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    added = [{name: value for name, value in row.items() if name.startswith("my/")} for row in rows]
    assert added == [{"my/flag": 1, "my/tensor": 0.5, "my/numpy": 2, "my/count": 3, "my/missing": None}] * 3


@pytest.mark.parametrize("value", ["a text", torch.ones(2), 1j, pytest.param(10**400, id="too large")])
def test_a_metric_that_is_not_a_number_is_named(tmp_path: Path, value: Any) -> None:
    with pytest.raises(
        UserError, match=f"the metric my/value is not a number, but a value of type {type(value).__name__}"
    ):
        train(tiny(tmp_path, train__stop_at=2), tmp_path / "run", [Measures(value=value)])
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def stop(trainer: L.Trainer) -> None:
    trainer.should_stop = True


def test_a_run_that_a_callback_ends_is_stopped_and_can_be_continued(tmp_path: Path) -> None:
    config = tiny(tmp_path, train__max_steps=4)
    stopped = train(config, tmp_path / "run", [AtStep(3, stop)])
    assert (stopped.status, stopped.step) == ("stopped", 3)
    finished = train(config, tmp_path / "run", [AtStep(4, stop)])
    assert (finished.status, finished.step) == ("finished", 4)


WORKING = {"Callback", "LambdaCallback", "Timer"}


@pytest.mark.parametrize("name", callbacks.__all__)
def test_each_callback_of_lightning_is_accepted_or_refused_with_what_to_do(name: str) -> None:
    """A new version of Lightning may add a callback, which must then be tried."""
    if name in WORKING:
        refuse_unusable(getattr(callbacks, name), "callbacks=: it")
    else:
        with pytest.raises(UserError, match=r"^callbacks=: it cannot be used: .*[;,] "):
            refuse_unusable(getattr(callbacks, name), "callbacks=: it")


class OnlyAfterValidation(L.Callback):
    def on_validation_end(self, *_: Any) -> None:
        raise AssertionError


def test_a_callback_that_would_never_be_called_is_refused() -> None:
    with pytest.raises(
        UserError, match="its class would do nothing, because Positron never calls on_validation_end: put"
    ):
        refuse_unusable(OnlyAfterValidation, "its class")


class KeyOfItsState(Remembers):
    @property
    def state_key(self) -> str:
        return f"remembers {self.state}"


def test_two_callbacks_whose_states_a_checkpoint_could_not_tell_apart_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"same state_key, Remembers, so .*: give their class a property state_key"):
        refuse_equal_keys([Remembers(1), L.Callback(), Remembers(2)])
    apart = [Remembers(1), KeyOfItsState(2), KeyOfItsState(3), callbacks.LambdaCallback(), callbacks.LambdaCallback()]
    refuse_equal_keys(apart)
    train(tiny(tmp_path, train__max_steps=2), tmp_path / "run", apart)


def test_the_accepted_callbacks_of_lightning_work_and_a_run_with_them_continues_exactly(tmp_path: Path) -> None:
    called: collections.Counter[str] = collections.Counter()
    names = [name for name in inspect.signature(callbacks.LambdaCallback.__init__).parameters if name != "self"]
    listening = {name: lambda *_, name=name, **__: called.update([name]) for name in names}
    train(tiny(tmp_path, train__max_steps=6, train__val_every=3), tmp_path / "whole")
    for last in (3, 6):
        config = tiny(tmp_path, train__max_steps=6, train__val_every=3, train__stop_at=last)
        own = [callbacks.Timer("01:00:00:00"), callbacks.LambdaCallback(**listening)]
        train(config, tmp_path / "run", own)
    assert same(tmp_path / "run", tmp_path / "whole")
    in_each_step = {name for name, count in called.items() if count == 6}
    assert in_each_step >= {"on_before_optimizer_step", "on_train_batch_end", "on_train_batch_start"}
    in_each_start = {name for name, count in called.items() if count == 2}
    assert in_each_start >= {"setup", "on_fit_start", "on_train_start", "on_train_end", "on_fit_end", "teardown"}
    assert not [name for name in called if name.startswith(_NEVER_CALLED)]


def test_a_timer_ends_the_run_and_counts_the_time_of_all_starts(tmp_path: Path) -> None:
    config = tiny(tmp_path, train__max_steps=4)
    for _ in range(2):
        facts = train(config, tmp_path / "run", [callbacks.Timer(timedelta(microseconds=1))])
        assert (facts.status, facts.step) == ("stopped", 1)
    assert train(config, tmp_path / "run").status == "finished"
    train(config, tmp_path / "whole")
    assert same(tmp_path / "run", tmp_path / "whole")
