"""A training that fails by its own numbers says so every time, and leaves nothing behind that looks like a success."""

import dataclasses
import functools
import importlib
import json
from types import SimpleNamespace

import pytest
import torch
from conftest import FAST, tiny
from two_processes import TWO, as_torchrun

from positron.config import PrecisionConfig
from positron.evaluation.score import Score
from positron.run.checkpoint import checkpoints, load_checkpoint
from positron.run.folder import Run
from positron.run.load import load_model
from positron.run.metrics import read_metrics
from positron.system.errors import Diverged, UserError
from positron.system.exits import describe
from positron.train import train
from positron.training.callbacks import divergence, validation
from positron.training.callbacks.overfitting import Overfitting
from positron.training.module import TrainingModule


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """Where the token files of all these runs lie."""
    return tmp_path_factory.mktemp("shared")


def short(shared, **changes):
    return tiny(shared, **{"train__max_steps": 12, "train__sample_tokens": 2, "schedule__warmup_steps": 1, **changes})


def poisoned(steps, monkeypatch):
    """The gradients of these steps are NaN."""
    original = TrainingModule._accumulate

    def accumulate(self, parts):
        loss = original(self, parts)
        if self.global_step + 1 in steps:
            for p in self.parameters():
                p.grad.fill_(float("nan"))
        return loss

    monkeypatch.setattr(TrainingModule, "_accumulate", accumulate)


DIVERGING = {
    "a streak of bad steps": {"optimizer__lr": 1e30},
    "weights that are not finite": {"optimizer__lr": 1e300, "train__save_every": 1},
    "a streak that the end cuts short": {"optimizer__lr": 1e30, "train__max_steps": 4},
    "a loss that stays finite": {"optimizer__lr": 10.0, "train__max_steps": 6},
    "a loss that stays finite, without clipping": {
        "optimizer__lr": 30.0,
        "train__max_steps": 3,
        "train__grad_clip": 0.0,
    },
}


@pytest.mark.parametrize("case", DIVERGING)
def test_a_diverged_run_started_five_times_fails_five_times_in_the_same_words(case, tmp_path, shared):
    config, lines = short(shared, **DIVERGING[case]), set()
    for attempt in range(5):
        if attempt == 3:  # killed between the last words and run.json
            Run(tmp_path / "run").update(status="running")
        with pytest.raises(Diverged) as told:
            train(config, tmp_path / "run")
        code, line = describe(told.value)
        assert code == 1
        lines.add(line)
        facts = Run(tmp_path / "run").facts()
        assert facts.status == "diverged"
        assert facts.error in line
        for path in checkpoints(tmp_path / "run" / "checkpoints"):
            assert all(tensor.isfinite().all() for tensor in load_checkpoint(path)["state_dict"].values())
        assert not (tmp_path / "run" / "checkpoints" / "best.ckpt").exists()
    assert len(lines) <= 2  # after the kill it is found again, perhaps one step later
    assert "lower optimizer.lr" in lines.pop()


def test_the_command_of_a_diverged_run_exits_with_1_and_again_when_repeated(tmp_path, run_command):
    arguments = (
        "model=debug",
        "name=wild",
        *FAST,
        "optimizer.lr=1e30",
        "train.max_steps=12",
        "schedule.warmup_steps=0",
    )
    results = [run_command("train", *arguments) for _ in range(2)]
    assert [result.code for result in results] == [1, 1]
    last = [result.err.splitlines()[-1] for result in results]
    assert set(last) == {last[0]}
    assert last[0].startswith("positron: the training diverged: 5 steps in a row")
    assert "Traceback" not in (tmp_path / "outputs" / "wild" / "train.log").read_text()


BAD_ON_ONE_RANK = """
import lightning


class Bad(lightning.Callback):
    def on_train_start(self, trainer, module):
        if trainer.global_rank == 1:
            original = module.objective.loss
            module.objective.loss = lambda model, part: original(model, part) + float("nan")
"""


@pytest.mark.slow
def test_a_loss_that_is_not_finite_on_one_rank_is_counted_on_all(tmp_path, start):
    """In fp16 the loss is checked, and here the gradient stays finite."""
    (tmp_path / "bad.py").write_text(BAD_ON_ONE_RANK)
    small = (word for word in FAST if word != "precision=fp32")
    settings = (*small, *TWO, "model=debug", "name=run", "precision=fp16", "callbacks.bad._target_=bad.Bad")
    results = as_torchrun(start, "train", *settings, "train.max_steps=12", code=1)
    assert "the training diverged: 5 steps in a row had" in results[0].err
    run = Run(tmp_path / "outputs" / "run")
    assert run.facts().status == "diverged"
    assert [path.name for path in checkpoints(run.checkpoint_folder)] == ["step-000005.ckpt"]


def test_in_fp16_a_gradient_that_no_loss_scale_makes_finite_is_divergence(tmp_path, shared, monkeypatch):
    """The scaler skips the steps 3 to 5 and halves its scale from 8 to 1; from step 6 on, the skipped steps count."""
    first = functools.partialmethod(torch.amp.GradScaler.__init__, init_scale=8.0)
    monkeypatch.setattr(torch.amp.GradScaler, "__init__", first)
    poisoned(range(3, 30), monkeypatch)
    config = dataclasses.replace(short(shared), precision=PrecisionConfig("fp16"))
    with pytest.raises(Diverged, match=r"5 steps in a row had .* up to step 10.*precision=fp32"):
        train(config, tmp_path / "run")


def test_a_streak_of_bad_steps_is_counted_across_stops(tmp_path, shared, monkeypatch):
    poisoned({7, 8, 9, 10, 11}, monkeypatch)
    for stop in (8, 10):
        assert train(short(shared, train__stop_at=stop), tmp_path / "run").status == "stopped"
    assert load_checkpoint(checkpoints(tmp_path / "run" / "checkpoints")[-1])["bad_in_a_row"] == 4
    with pytest.raises(Diverged, match=r"5 steps in a row.* up to step 11"):
        train(short(shared), tmp_path / "run")


def test_a_streak_that_ended_between_two_checks_of_a_gpu_is_divergence(tmp_path, shared, monkeypatch):
    monkeypatch.setattr(divergence, "check_interval", lambda device: 10)
    poisoned({2, 3, 4, 5, 6}, monkeypatch)
    with pytest.raises(Diverged, match=r"5 steps in a row had .* before step 10"):
        train(short(shared), tmp_path / "run")


def test_a_streak_that_ended_before_the_last_step_is_survived(tmp_path, shared, monkeypatch):
    poisoned({7, 8, 9, 10}, monkeypatch)
    assert train(short(shared, train__stop_at=9), tmp_path / "run").status == "stopped"
    assert train(short(shared), tmp_path / "run").status == "finished"


@pytest.mark.parametrize("last", [{12}, {11, 12}, {9, 10, 11, 12}])
def test_a_run_that_ends_in_a_streak_of_bad_steps_has_diverged(tmp_path, shared, monkeypatch, last):
    poisoned(last, monkeypatch)
    with pytest.raises(Diverged, match="the run ended with"):
        train(short(shared), tmp_path / "run")
    assert [path.name for path in checkpoints(tmp_path / "run" / "checkpoints")] == ["step-000010.ckpt"]


def test_weights_that_are_not_finite_are_never_saved(tmp_path, shared, monkeypatch):
    original = TrainingModule.training_step

    def overflow(self, batch, batch_idx):
        original(self, batch, batch_idx)
        if self.global_step == 10:
            with torch.no_grad():
                self.model.wte.weight[3, 3] = float("inf")

    monkeypatch.setattr(TrainingModule, "training_step", overflow)
    config = short(shared, train__save_every=5)
    with pytest.raises(Diverged, match="weights are NaN or infinite after step 10"):
        train(config, tmp_path / "run")
    assert [path.name for path in checkpoints(tmp_path / "run" / "checkpoints")] == ["step-000005.ckpt"]


@pytest.mark.parametrize("nats", [float("nan"), float("inf")])
def test_a_validation_that_is_not_finite_is_divergence(tmp_path, shared, monkeypatch, nats):
    monkeypatch.setattr(validation, "validate", lambda *_: Score(nats=nats, bytes=10, tokens=10))
    with pytest.raises(Diverged, match="validation loss of step 6 is NaN or infinite"):
        train(short(shared, train__val_every=6), tmp_path / "run")
    assert read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]["val/bpb"] is None
    assert not (tmp_path / "run" / "checkpoints" / "best.ckpt").exists()


def test_a_model_that_only_overfits_has_not_diverged(tmp_path, shared, monkeypatch):
    """Its loss on other text may be far above guessing; on its own it is not."""
    monkeypatch.setattr(validation, "validate", lambda *_: Score(nats=300.0, bytes=30, tokens=30))
    assert train(short(shared), tmp_path / "run").status == "finished"
    assert (
        "WARNING: the validation loss of step 12 is 10 nats per token, more than 2 times the loss of random guessing"
        in (tmp_path / "run/train.log").read_text()
    )


def measured_as(first, last, val, monkeypatch):
    """The training loss is `first` at the first step and `last` afterwards, and the validation loss is `val`."""
    original = TrainingModule.training_step

    def step(self, batch, batch_idx):
        original(self, batch, batch_idx)
        self.loss = torch.tensor(first if self.global_step == 1 else last)

    monkeypatch.setattr(TrainingModule, "training_step", step)
    monkeypatch.setattr(validation, "validate", lambda *_: Score(nats=val * 30, bytes=30, tokens=30))


@pytest.mark.parametrize("stops", [[], [8]])
def test_a_model_that_found_its_text_as_improbable_at_the_first_step_has_not_diverged(
    stops, tmp_path, shared, monkeypatch
):
    """As a model that is fine-tuned for a few steps on a language that it has never seen."""
    measured_as(20.0, 19.0, 21.0, monkeypatch)
    for stop in stops:
        assert train(short(shared, train__stop_at=stop), tmp_path / "run").status == "stopped"
    assert train(short(shared), tmp_path / "run").status == "finished"
    assert "lower optimizer.lr" not in (tmp_path / "run/train.log").read_text()


@pytest.mark.parametrize("first", [4.0, 20.0, float("inf"), float("nan")])
def test_a_loss_that_has_risen_far_above_guessing_and_the_first_step_is_divergence(
    first, tmp_path, shared, monkeypatch
):
    measured_as(first, 21.0, 41.0, monkeypatch)
    with pytest.raises(Diverged, match="the validation loss of step 12 is 41 nats per token"):
        train(short(shared), tmp_path / "run")


def test_weights_before_a_streak_are_kept_only_where_they_validate(tmp_path, shared, monkeypatch):
    poisoned(set(range(4, 20)), monkeypatch)
    with pytest.raises(Diverged):
        train(short(shared), tmp_path / "good")
    with pytest.raises(UserError, match="give the same settings as before, or another name="):
        train(short(shared, optimizer__lr=1e-4), tmp_path / "good")
    assert [path.name for path in checkpoints(tmp_path / "good" / "checkpoints")] == ["step-000008.ckpt"]
    monkeypatch.setattr(divergence, "validate", lambda *_: Score(nats=300.0, bytes=30, tokens=30))
    with pytest.raises(Diverged):
        train(short(shared), tmp_path / "bad")
    assert checkpoints(tmp_path / "bad" / "checkpoints") == []


def test_a_checkpoint_of_an_older_version_with_nan_weights_is_refused_everywhere(tmp_path, shared, run_command):
    config = short(shared, train__max_steps=4)
    train(config, tmp_path / "outputs" / "old")
    run = Run(tmp_path / "outputs" / "old")
    for path in (*checkpoints(run.checkpoint_folder), run.checkpoint_folder / "best.ckpt"):
        saved = torch.load(path, weights_only=True)
        saved["state_dict"]["model.wte.weight"][0] = float("nan")
        path.unlink()
        torch.save(saved, path)
    for again in (config, short(shared, train__max_steps=8, train__extend=True)):
        with pytest.raises(UserError, match="NaN or infinite"):
            train(again, run.folder)
    for key in ("init_from", "ckpt_path"):
        with pytest.raises(UserError, match="NaN or infinite"):
            train(dataclasses.replace(config, **{key: str(run.folder)}), tmp_path / "outputs" / key)
        assert not (tmp_path / "outputs" / key).exists()
    with pytest.raises(UserError, match="NaN or infinite"):
        load_model(run)
    for command in (("evaluate", "--json"), ("generate", "Once")):
        result = run_command(command[0], *command[1:], "--run", "old")
        assert (result.code, result.out) == (2, "")
        assert "the training diverged" in result.err


def test_a_run_that_diverged_before_its_first_checkpoint_can_begin_again_with_other_settings(tmp_path, shared):
    with pytest.raises(Diverged):
        train(short(shared, optimizer__lr=1e300), tmp_path / "run")
    assert checkpoints(tmp_path / "run" / "checkpoints") == []
    assert train(short(shared), tmp_path / "run").status == "finished"


def validated(step, bpb, loss, overfitting):
    module = SimpleNamespace(metrics={"val/bpb": bpb}, loss=torch.tensor(loss))
    overfitting.on_train_batch_end(SimpleNamespace(global_step=step), module)


def test_overfitting_is_told_once_with_the_checkpoint_that_is_kept(logged):
    overfitting = Overfitting([{"step": 10, "val/bpb": 2.3, "train/loss": 1.7}])
    for step, bpb, loss in ((20, 2.25, 1.6), (30, 2.26, 1.5), (40, 2.27, 1.4)):
        validated(step, bpb, loss, overfitting)
    assert logged == []
    for step in (50, 60):
        validated(step, 2.28, 1.3, overfitting)
    assert len(logged) == 1
    assert "overfits: 2.2800 validation bits per byte, up from 2.2500 at step 20" in logged[0]
    assert "use step 20, which is kept as best.ckpt" in logged[0]


@pytest.mark.parametrize(
    "later",
    [
        ((30, 2.251, 1.5), (40, 2.252, 1.4), (50, 2.2515, 1.3)),  # a plateau
        ((30, 2.4, 1.7), (40, 2.6, 2.0), (50, 3.0, 2.4)),  # training gets worse as well
        ((30, 2.4, 1.5), (40, 2.2, 1.4), (50, 2.3, 1.3)),  # one bad validation between better ones
    ],
)
def test_what_is_not_overfitting_is_not_called_so(later, logged):
    overfitting = Overfitting([{"step": 20, "val/bpb": 2.25, "train/loss": 1.6}])
    for step, bpb, loss in later:
        validated(step, bpb, loss, overfitting)
    assert logged == []


def test_a_resumed_run_does_not_tell_its_overfitting_again(logged):
    rows = [{"step": s, "val/bpb": b, "train/loss": 1 / s} for s, b in ((1, 2.0), (2, 2.1), (3, 2.2), (4, 2.3))]
    validated(5, 2.4, 0.1, Overfitting(rows))
    assert logged == []


def test_evaluate_refuses_a_loss_that_is_not_finite_and_its_json_has_no_infinity(tmp_path, shared, monkeypatch, capsys):
    from positron import evaluate

    train(short(shared, train__max_steps=2), tmp_path / "run")
    facts = {"text": "my.txt", "loss": 800.0, "perplexity": float("inf"), "bpb_interval": (1.0, float("nan"))}
    monkeypatch.setattr(evaluate, "text_facts", lambda *_: facts)
    monkeypatch.setattr("sys.argv", ["evaluate", "--run", str(tmp_path / "run"), "--json"])
    importlib.import_module("positron.evaluate").main()
    shown = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert (shown["perplexity"], shown["bpb_interval"], shown["loss"]) == (None, [1.0, None], 800.0)
    for loss in (float("nan"), float("inf")):
        facts["loss"] = loss
        with pytest.raises(SystemExit) as exit_:
            importlib.import_module("positron.evaluate").main()
        assert exit_.value.code == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "is NaN or infinite, because the training diverged or the weights are damaged" in captured.err
