"""`schedule.average_share` keeps a mean of the weights, which validation, samples and checkpoints use in their place."""

import dataclasses

import lightning as L
import numpy as np
import pytest
import torch
from conftest import tiny
from torch import nn
from traces import trace, weights

from numpy_ref.optimizers import average_step
from positron.run.checkpoint import checkpoints, load_checkpoint
from positron.run.folder import Run
from positron.run.kept_weights import kept_weights, read_kept_weights
from positron.run.load import bare_names
from positron.run.metrics import read_metrics
from positron.train import train
from positron.training.averaging import WeightAverage
from positron.training.callbacks.validation import validate
from positron.training.monitors.tokens import TokenLosses

SHARE = 0.1  # of 40 steps: a time constant of 4 steps, and a mean that begins at step 24


class RawWeights(L.Callback):
    """Copy the weights after each optimizer step, and validate NumPy's mean of them after the last one."""

    def __init__(self):
        self.after, self.loss_of_mean = {}, None

    def on_train_batch_end(self, trainer, module, *_):
        state = {name: p.detach().double().numpy().copy() for name, p in module.named_parameters()}
        self.after[trainer.global_step] = state
        if trainer.global_step == 40:
            parameters = dict(module.named_parameters())
            with torch.no_grad():
                for name, mean in mean_of(self.after, 40, 40).items():
                    parameters[name].copy_(torch.from_numpy(mean))
                self.loss_of_mean = validate(trainer, module, module.objective.validation(0, 1)).loss
                for name, value in state.items():
                    parameters[name].copy_(torch.from_numpy(value))


def mean_of(after, step, horizon):
    means = {}
    for earlier in range(1, step + 1):
        average_step(means, after[earlier], earlier, horizon=horizon, share=SHARE)
    return means


@pytest.fixture(scope="module")
def averaged(tmp_path_factory):
    """An uninterrupted run with a mean of the weights, and its weights after each step."""
    folder, raw = tmp_path_factory.mktemp("averaged"), RawWeights()
    train(tiny(folder, schedule__average_share=SHARE, train__keep_history=5), folder / "run", [raw])
    return folder / "run", raw


def test_the_first_steps_of_the_mean_have_equal_weights_and_the_later_ones_decay():
    """With a time constant of 5, of 20 steps that all count: the closed form of the sum."""
    layer, rng = nn.Linear(1, 1, bias=False).double(), np.random.default_rng(0)
    values = rng.standard_normal(20)
    average = WeightAverage(layer, share=0.25, horizon=20)
    for step, value in enumerate(values, start=1):
        layer.weight.data.fill_(value)
        average.update(step)
    shares = np.array([0.2 * 0.8**15] * 5 + [0.2 * 0.8 ** (20 - step) for step in range(6, 21)])
    assert shares.sum() == pytest.approx(1)
    assert average.means["weight"].item() == pytest.approx(shares @ values)


def test_checkpoints_history_and_validation_use_the_mean(averaged):
    folder, after = averaged[0], averaged[1].after
    newest = load_checkpoint(checkpoints(folder / "checkpoints")[-1])
    wanted, raw = mean_of(after, 40, 40), after[40]
    for name, mean in wanted.items():
        np.testing.assert_allclose(newest["state_dict"][name].numpy(), mean, rtol=0, atol=1e-6)
        np.testing.assert_array_equal(newest["weights_without_mean"][name].numpy(), raw[name].astype(np.float32))
    assert max(np.abs(wanted[name] - raw[name]).max() for name in wanted) > 1e-3  # so the test can tell them apart
    history = {kept.step: bare_names(read_kept_weights(kept)) for kept in kept_weights(Run(folder).history_folder)}
    assert 40 in history
    for name, value in history[40].items():
        torch.testing.assert_close(value, newest["state_dict"][f"model.{name}"], rtol=0, atol=0)
    assert "from step 24 on, validation, samples and checkpoints use a mean" in Run(folder).log_path.read_text()
    assert read_metrics(folder / "metrics.jsonl")[-1]["val/loss"] == pytest.approx(averaged[1].loss_of_mean, rel=1e-6)


def test_before_the_mean_begins_a_run_is_one_without_a_mean(averaged, tmp_path):
    config = tiny(tmp_path, train__stop_at=20)
    train(config, tmp_path / "plain")
    assert trace(tmp_path / "plain") == trace(averaged[0])[:20]


def test_the_mean_does_not_change_the_training(averaged, tmp_path):
    train(tiny(tmp_path), tmp_path / "plain")
    losses = [[row[:5] for row in trace(folder)] for folder in (tmp_path / "plain", averaged[0])]
    assert losses[0] == losses[1]
    assert trace(tmp_path / "plain")[-1][5] != trace(averaged[0])[-1][5]


def test_the_monitors_on_fixed_windows_use_the_mean(averaged, tmp_path, monkeypatch):
    seen, measure = {}, TokenLosses.measure

    def recorded(self, model, probe, documents):
        seen.update({name: p.detach().clone() for name, p in model.named_parameters()})
        return measure(self, model, probe, documents)

    monkeypatch.setattr(TokenLosses, "measure", recorded)
    train(tiny(tmp_path, schedule__average_share=SHARE, monitor__every=40, monitor__tokens=True), tmp_path / "run")
    saved = bare_names(weights(averaged[0]))
    assert seen.keys() == saved.keys()
    assert all(torch.equal(seen[name], value) for name, value in saved.items())
    assert same_weights(tmp_path / "run", averaged[0])


@pytest.mark.parametrize("stop", [10, 24, 30])
def test_a_run_stopped_before_or_after_the_mean_began_continues_bit_for_bit(averaged, tmp_path, stop):
    config = tiny(tmp_path, schedule__average_share=SHARE, train__keep_history=5)
    train(dataclasses.replace(config, train=dataclasses.replace(config.train, stop_at=stop)), tmp_path / "run")
    train(config, tmp_path / "run")
    rows = [trace(folder) for folder in (tmp_path / "run", averaged[0])]
    rows[0] = [row if row[0] != stop else rows[1][stop - 1] for row in rows[0]]  # a stop validates additionally
    assert rows[0] == rows[1]
    assert same_weights(tmp_path / "run", averaged[0])


def test_a_longer_run_continues_from_the_weights_and_not_from_the_mean(tmp_path):
    """With 400 steps, the mean begins at step 240, so the mean of the shorter run is dropped."""
    for name, share in (("mean", SHARE), ("plain", 0.0)):
        config = tiny(tmp_path, schedule__average_share=share)
        train(config, tmp_path / name)
        longer = dataclasses.replace(config.train, max_steps=400, stop_at=50, extend=True)
        train(dataclasses.replace(config, train=longer), tmp_path / name)
    losses = [[row[:5] for row in trace(tmp_path / name)] for name in ("mean", "plain")]
    assert losses[0] == losses[1]
    assert same_weights(tmp_path / "mean", tmp_path / "plain")


def same_weights(a, b):
    x, y = weights(a), weights(b)
    return x.keys() == y.keys() and all(torch.equal(x[name], y[name]) for name in x)
