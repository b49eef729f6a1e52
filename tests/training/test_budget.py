"""`budget=10m` and `model=auto`: the ranking of sizes, the choice, the time that it takes, and that it is made once."""

import dataclasses
import json
import math
import os
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import FAST, FakeClock, tiny
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf

from positron.cli.request import compose, compose_request
from positron.cli.sweeps import run_job
from positron.config import Asked, DataConfig, RunConfig
from positron.data.corpus import prepare
from positron.run.budget_choice import restore_choice
from positron.run.differences import differences
from positron.run.facts import Facts, write_record
from positron.run.folder import Run
from positron.settings import from_dict
from positron.system.errors import UserError
from positron.train import configure, train
from positron.training.budget import choose as budget
from positron.training.budget.choose import (
    Candidate,
    Choice,
    forecast_bpb,
)
from positron.training.budget.course import (
    DROPOUT,
    MEASURING_SHARE,
    RESERVED_SHARE,
    Course,
    batch_for_tokens,
    course_in,
)
from positron.training.budget.speed import Speed, SpeedMeasurement, speed_of
from positron.training.device import choose_machine
from positron.training.optim.groups import MUON_RATE

AUTO = Asked(auto_size=True)  # model=auto


def test_the_forecast_falls_with_weights_and_tokens_and_less_with_repeated_than_with_new_text():
    assert forecast_bpb(1e6, 1e7, math.inf) > forecast_bpb(2e6, 1e7, math.inf) > forecast_bpb(2e6, 2e7, math.inf)
    once, again, new = (forecast_bpb(1e6, d, u) for d, u in ((1e6, 1e6), (4e6, 1e6), (4e6, 4e6)))
    assert once > again > new
    # read over and over, a text is worth at most 1 + R* times its tokens
    assert forecast_bpb(1e6, 1e12, 1e6) == pytest.approx(forecast_bpb(1e6, 1e6 * (1 + budget.R_STAR), math.inf))


@pytest.mark.parametrize("context", [32, 100, 1000])
def test_a_batch_has_whole_sequences_and_grows_with_the_square_root_of_the_tokens(context):
    small, large = (batch_for_tokens(d, context) for d in (4e6, 64e6))
    assert small % context == large % context == 0
    assert large / small == pytest.approx(4, rel=0.1)
    assert batch_for_tokens(1.0, context) == pytest.approx(1024, abs=context)


def test_a_run_reads_as_many_tokens_as_fit_into_its_time():
    speed, config = Speed(token_s=1e-4, update_s=0.05), tiny(Path(), model__context_length=256)
    course = course_in(600.0, speed, config, Asked(), math.inf)
    assert course.batch_tokens == batch_for_tokens(course.tokens, 256)
    assert course.tokens / speed.tokens_per_s(course.batch_tokens) == pytest.approx(600.0, rel=0.02)
    assert (course.dropout, course.reads_all) == (0.0, False)


@pytest.mark.parametrize(
    ("passes", "read", "dropout", "reads_all"),
    [
        (0.5, 0.5, 0.0, False),
        (3.9, 3.9, 0.0, False),
        (7.9, 6.0, 0.0, True),
        (8.1, 7.04, 0.1, False),
        (40, 12.0, 0.1, True),
    ],
)
def test_a_text_is_read_more_than_six_times_only_with_dropout(passes, read, dropout, reads_all):
    speed, config = Speed(token_s=1e-4, update_s=0.0), tiny(Path(), model__context_length=256)
    text_tokens = 600.0 * 1e4 / passes
    course = course_in(600.0, speed, config, Asked(), text_tokens)
    assert course.tokens / text_tokens == pytest.approx(read, rel=0.01)
    assert (course.dropout, course.reads_all) == (dropout, reads_all)


@pytest.mark.parametrize(("dropout", "read"), [(0.0, 6.0), (0.3, 12.0)])
def test_a_given_dropout_limits_the_passes_and_is_kept(dropout, read):
    speed, config = Speed(token_s=1e-4, update_s=0.0), tiny(Path(), model__dropout=dropout)
    course = course_in(600.0, speed, config, Asked(given={"model.dropout": str(dropout)}), 1e5)
    assert (course.tokens, course.dropout, course.reads_all) == (pytest.approx(read * 1e5), dropout, True)


def test_a_given_batch_determines_the_number_of_tokens():
    config = tiny(Path(), model__context_length=256, train__batch_tokens=1000)
    asked = Asked(given={"train.batch_tokens": "1000"})
    speed = Speed(token_s=1e-4, update_s=0.05)
    assert course_in(600.0, speed, config, asked, math.inf) == Course(768, 600.0 * speed.tokens_per_s(768), 0.0, False)


def test_idle_time_in_small_steps_is_not_counted_as_the_time_of_a_token():
    kernels, idle = (9, 9.0), 0.1  # a first step is slow
    cost = [(1000, idle + 1000 * 1e-4), (4000, idle + 4000 * 1e-4)]
    speed = speed_of([kernels, *cost, *cost], [0.5, 0.02, 0.02])
    assert (speed.token_s, speed.update_s) == pytest.approx((1e-4, idle + 0.02))
    assert speed_of([kernels, *cost[1:]], [0.02]) == Speed(
        pytest.approx(0.5 / 4000), 0.02
    )  # a single size has no slope
    flat = speed_of([kernels, (1000, 0.2), (4000, 0.2)], [0.0])
    assert flat.token_s * 4000 + flat.update_s == pytest.approx(0.2)
    assert flat.token_s > 0


def test_steps_of_two_sizes_are_measured_on_a_machine_with_faster_large_steps(tmp_path):
    config = tiny(tmp_path)
    tokenizer, folder = prepare(config.data, config.tokenizer, None)
    measurement = SpeedMeasurement(config, choose_machine(config.device, config.precision), tokenizer, folder)
    measurement.multiple = 4
    with measurement.data() as data, pytest.MonkeyPatch.context() as patch:
        seen: list[int] = []
        clock = FakeClock()

        def gradient(model, rows, *_):
            seen.append(len(rows))
            clock.sleep(0.01)

        patch.setattr("positron.training.budget.speed.time", clock)
        patch.setattr("positron.training.budget.speed.add_gradient", gradient)
        patch.setattr("positron.training.budget.speed.update", lambda *_: None)
        measurement.train(config.model.with_vocab(tokenizer.vocab_size), data, 0.05, 1e-3)
    assert seen[0] == 4 * seen[1] == seen[2]


def candidates_with(forecasts: list[float], tokens: list[float]) -> list[Candidate]:
    """Return candidates of growing size, for a text of 100,000 tokens; a run reads at most 600,000."""
    config = tiny(Path()).model.with_vocab(100)
    sizes = [dataclasses.replace(config, n_layer=n) for n in range(1, len(forecasts) + 1)]
    courses = [Course(1024, count, 0.0, count >= 6e5) for count in tokens]
    return [Candidate(g, Speed(1e-4, 0.0), c, b) for g, b, c in zip(sizes, forecasts, courses, strict=True)]


def test_runs_with_one_budget_validate_on_the_same_text():
    """A slower candidate of a sweep is measured on the same tokens, although it makes fewer steps."""
    config = tiny(Path(), budget="30min", train__val_tokens=200_000)
    choices = [Choice(2, 64, 1, batch, steps, 1e-3, 0.1, 0.0) for batch, steps in [(4096, 10_000), (2048, 90)]]
    assert [choice.applied(config, Asked()).train.val_tokens for choice in choices] == [36_000, 36_000]


def test_the_size_of_rank_1_is_chosen_with_a_reason(logged):
    candidates = candidates_with([2.0, 1.5, 1.7], [3e5, 2e5, 1e5])
    choice = budget._settle(tiny(Path(), budget="120s", optimizer__kind="muon"), Asked(), candidates, 100.0, math.inf)
    assert (choice.n_layer, choice.lr) == (2, MUON_RATE)
    assert choice.max_steps * choice.batch_tokens * 1e-4 == pytest.approx(100.0, rel=0.01)
    assert choice.lr * choice.weight_decay * choice.max_steps == pytest.approx(1.0)
    assert "a smaller model would learn less, and a larger model would read too little text" in logged[-1]


def test_a_small_text_gets_the_smallest_size_that_is_nearly_the_best(logged):
    """The power law alone would choose the largest model for a few kilobytes."""
    candidates = candidates_with([2.0, 1.9, 1.895], [6e5] * 3)
    assert not budget.larger_gains_nothing(candidates[:2])
    assert budget.larger_gains_nothing(candidates)
    assert budget._settle(tiny(Path(), budget="120s"), Asked(), candidates, 70.0, 1e5).n_layer == 2
    assert "a larger model would learn hardly more" in logged[-2]
    assert "10,000 tokens/s" in logged[1]  # of the machine, although the text limits the tokens of the run
    # a small gain counts if the larger model reads less text
    assert not budget.larger_gains_nothing(candidates_with([2.0, 1.9, 1.895], [6e5, 3e5, 2e5]))


def test_the_end_of_a_small_text_names_a_budget_that_is_enough_for_dropout(logged):
    candidates = candidates_with([2.0], [6e5])
    config = tiny(Path(), budget="120s")
    budget._settle(config, Asked(), candidates, 79.0, 1e5)  # less than eight passes, because measurements took long
    assert "the run reads it 6 times" in logged[-1]
    (minutes,) = re.findall(r"; with budget=(\d+)min the run reads it more often, with dropout$", logged[-1])
    assert int(minutes) > 2
    left = int(minutes) * 60 * (1 - RESERVED_SHARE - MEASURING_SHARE)
    assert budget._settle(config, Asked(), candidates, left, 1e5).dropout == DROPOUT
    assert budget._settle(config, Asked(), candidates, 1000.0, 1e5).dropout == DROPOUT
    advice = (
        "reads it 12 times and ends before the budget is used up. Give more text for a better model; more time for this run "
        "does not help, but another run with another seed= and name= does: --run A,B uses both as one model, with a loss "
        "that is 2 to 4 % lower"
    )
    assert logged[-1].endswith(f"{advice}, and the rest of the budget is enough for 3 more")
    for seconds, rest in [(150.0, ""), (300.0, ", and the rest of the budget is enough for 1 more")]:  # a run takes 138
        budget._settle(config, Asked(), candidates, seconds, 1e5)
        assert logged[-1].endswith(advice + rest)


def test_users_see_the_rank_of_each_size_and_no_loss(logged):
    """The power law ranks sizes; a loss that it forecasts is wrong by a factor on other texts."""
    budget._settle(
        tiny(Path(), budget="120s"), Asked(), candidates_with([2.0, 1.5, 1.7], [3e5, 2e5, 1e5]), 100.0, math.inf
    )
    assert [line.rpartition(": rank ")[2] for line in logged[1:4]] == ["3", "1", "2"]
    assert not any(text in line for line in logged for text in ("bits", "bpb", "2.0", "1.5", "1.7"))
    del logged[:]
    budget._settle(tiny(Path(), budget="120s"), Asked(), candidates_with([2.0], [3e5]), 100.0, math.inf)
    assert "rank" not in " ".join(logged)


@pytest.mark.parametrize("fault", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("no such kernel")])
def test_the_search_ends_at_a_size_that_does_not_fit_the_memory(tmp_path, monkeypatch, fault, logged):
    config, usual = asked(tmp_path), SpeedMeasurement.train

    def train_small(self, gpt, *more):
        if gpt.d_model > 64:
            raise fault
        return usual(self, gpt, *more)

    monkeypatch.setattr(SpeedMeasurement, "train", train_small)
    tokenizer, folder = prepare(config.data, config.tokenizer, None)
    machine = choose_machine(config.device, config.precision)
    if isinstance(fault, torch.OutOfMemoryError):
        assert budget.choose(config, AUTO, machine, tokenizer, folder).d_model == 64
        assert any("2 layers of width 128 does not fit" in line for line in logged)
    else:
        with pytest.raises(RuntimeError, match="no such kernel"):
            budget.choose(config, AUTO, machine, tokenizer, folder)


@pytest.mark.parametrize(("asks", "is_expected"), [(AUTO, True), (Asked(), False)])
def test_a_loss_is_expected_only_of_a_model_whose_size_is_chosen(tmp_path, logged, asks, is_expected):
    (tmp_path / "a.txt").write_text("the cat sat on the mat and the dog ran to the hat. " * 800)
    text = DataConfig("text", str(tmp_path / "a.txt"), dir=str(tmp_path / "data"))
    config = dataclasses.replace(asked(tmp_path), data=text)
    tokenizer, folder = prepare(config.data, config.tokenizer, None)
    budget.choose(config, asks, choose_machine(config.device, config.precision), tokenizer, folder)
    assert bool(re.search("^expected: ", logged[-1])) == is_expected


@pytest.mark.parametrize("steps", [1, 3, 29, 1000])
def test_decay_removes_at_most_a_tenth_of_a_weight_in_a_step(steps):
    rate, ratio = MUON_RATE, 3.0
    decay = budget.decay_for(rate, steps, 4.0, ratio)
    assert rate * ratio * decay <= budget.MAX_STEP_DECAY * (1 + 1e-9)


@pytest.mark.parametrize(("passes", "steps_of_the_average"), [(0.3, 1000), (1.0, 1000), (4.0, 250)])
def test_weights_are_an_average_over_one_pass_or_over_a_shorter_run(passes, steps_of_the_average):
    assert 1 / (MUON_RATE * budget.decay_for(MUON_RATE, 1000, passes, 1.0)) == pytest.approx(steps_of_the_average)


def test_given_layers_and_heads_restrict_the_candidates():
    config = tiny(Path(), budget="10m")
    every = [(gpt.n_layer, gpt.d_model) for gpt in budget.sizes(config, AUTO, 50)]
    assert every == list(budget.SIZES)
    deep = dataclasses.replace(config, model=dataclasses.replace(config.model, n_layer=7))
    asked = Asked(auto_size=True, given={"model.n_layer": "7"})
    assert {gpt.n_layer for gpt in budget.sizes(deep, asked, 50)} == {7}
    pairs = dataclasses.replace(config, model=dataclasses.replace(config.model, n_head=2, n_kv_head=2))
    assert [(gpt.n_head, gpt.d_model) for gpt in budget.sizes(pairs, AUTO, 50)] == [(2, 128)]
    with pytest.raises(UserError, match="n_kv_head=3"):
        budget.sizes(
            dataclasses.replace(pairs, model=dataclasses.replace(config.model, n_head=3, n_kv_head=3, d_model=48)),
            AUTO,
            50,
        )


@pytest.fixture(scope="module", autouse=True)
def small_sizes():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(budget, "SIZES", ((1, 64), (2, 64), (2, 128)))
        yield


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """The folder of a run of three seconds."""
    folder = tmp_path_factory.mktemp("budget")
    train(asked(folder), folder / "run", asked=AUTO)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("token_s", "update_s", "allowed"), [(1e-5, 1e-3, 60), (2e-4, 0.3, 600), (1e-3, 1.0, 600)])
def test_measuring_and_training_fill_the_budget_on_fast_and_slow_machines(
    ended, monkeypatch, token_s, update_s, allowed
):
    """A fake clock advances by the time that each operation would take on such a machine."""
    clock = FakeClock()

    def gradient(model, rows, *_):
        clock.sleep(rows[:, 1:].numel() * token_s * model.config.matmul_params() / 1e5)

    monkeypatch.setattr("positron.training.budget.speed.time", clock)
    monkeypatch.setattr("positron.training.budget.choose.time", clock)
    monkeypatch.setattr("positron.training.budget.speed.add_gradient", gradient)
    monkeypatch.setattr("positron.training.budget.speed.update", lambda *_: clock.sleep(update_s))
    config = dataclasses.replace(asked(ended), budget=f"{allowed}s")
    monkeypatch.setattr("positron.training.budget.course.MAX_PASSES", math.inf)
    tokenizer, folder = prepare(config.data, config.tokenizer, None)
    choice = budget.choose(config, AUTO, choose_machine(config.device, config.precision), tokenizer, folder)
    chosen = dataclasses.replace(config.model, n_layer=choice.n_layer, d_model=choice.d_model, n_head=choice.n_head)
    token_s *= chosen.with_vocab(tokenizer.vocab_size).matmul_params() / 1e5
    took = clock.now + choice.max_steps * (update_s + choice.batch_tokens * token_s)
    assert 0.8 * allowed < took <= allowed


def asked(folder, **changes):
    return tiny(folder, budget="3s", train__max_steps="auto", train__batch_tokens="auto", **changes)


def test_the_choice_is_recorded_in_the_runs_configuration(ended):
    folder = ended
    run = Run(folder / "run")
    facts, saved = run.facts(), run.config()
    assert facts.status == "finished"
    assert facts.step == saved["train"]["max_steps"] > 1
    assert (saved["model"]["n_layer"], saved["model"]["d_model"]) in budget.SIZES
    assert facts.resolved.batch_tokens == saved["train"]["batch_tokens"]
    log = (folder / "run" / "train.log").read_text(encoding="utf-8")
    assert "chosen: " in log
    assert "expected: " not in log, "the formula does not hold for the built-in stories"


def test_the_same_command_again_measures_nothing(ended, capsys):
    folder = ended
    before = Run(folder / "run").config()
    train(asked(folder), folder / "run", asked=AUTO)
    said = capsys.readouterr().err
    assert "nothing to do" in said
    assert "measuring" not in said
    assert Run(folder / "run").config() == before


@pytest.mark.parametrize(
    "sizes",
    [
        ("model=auto", "model.n_layer=1"),
        pytest.param(("model=auto",), marks=pytest.mark.slow),
        pytest.param(("model=debug",), marks=pytest.mark.slow),
    ],
)
def test_the_command_of_a_finished_run_with_a_budget_is_accepted_again(ended, tmp_path, monkeypatch, sizes):
    """Before torch is imported, the settings of the command are compared with those of the run."""
    monkeypatch.chdir(tmp_path)
    words = [*(word for word in FAST if not word.startswith("model.")), *sizes, "budget=1s", "name=mine"]
    for _ in range(2):
        request = compose_request("train", words)
        config, folder = request.settle(configure)
        assert train(config, folder, asked=request.asked).status == "finished"
    with pytest.raises(UserError, match=r"optimizer.lr: .* -> 0.5"):
        compose_request("train", [*words, "optimizer.lr=0.5"]).settle(configure)


def test_another_budget_is_another_run(ended):
    folder = ended
    with pytest.raises(UserError, match=r"budget: 3s -> 9s"):
        train(dataclasses.replace(asked(folder), budget="9s"), folder / "run", asked=AUTO)


@pytest.mark.slow
def test_a_given_model_keeps_its_size_and_heads(tmp_path):
    config = tiny(tmp_path, budget="2s", train__max_steps="auto", train__batch_tokens="auto")
    train(config, tmp_path / "run")
    assert Run(tmp_path / "run").config()["model"] == dataclasses.asdict(config.model)


def test_a_restored_choice_equals_the_original(ended):
    folder = ended
    saved = restore_choice(asked(folder), AUTO, Run(folder / "run"))
    choice = Choice(
        saved.model.n_layer,
        saved.model.d_model,
        saved.model.n_head,
        int(saved.train.batch_tokens),
        int(saved.train.max_steps),
        saved.optimizer.lr,
        saved.optimizer.weight_decay,
        saved.model.dropout,
    )
    assert choice.applied(asked(folder), AUTO) == saved


def test_a_run_of_an_earlier_version_keeps_the_momentum_with_which_it_began(ended):
    config = asked(ended)
    now = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, momentum=0.9))
    record = ended / "run" / "config.json"
    whole = record.read_bytes()
    values = json.loads(whole)
    del values["optimizer"]["momentum"], values["checksum"]
    record.write_text(json.dumps(values))
    try:
        assert restore_choice(now, AUTO, Run(ended / "run")).optimizer.momentum == 0.95
        given = dataclasses.replace(AUTO, given={"optimizer.momentum": "0.9"})
        assert restore_choice(now, given, Run(ended / "run")).optimizer.momentum == 0.9
    finally:
        record.write_bytes(whole)


def test_given_values_take_precedence_over_the_choice(tmp_path):
    given = dict.fromkeys(("optimizer.lr", "train.log_every", "train.batch_tokens"), "as the config has it")
    config = asked(tmp_path, optimizer__lr=0.0123, train__log_every=3)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, batch_tokens=96))
    choice = Choice(1, 64, 1, 512, 200, 7e-3, 0.5, 0.1).applied(config, Asked(auto_size=True, given=given))
    assert (choice.optimizer.lr, choice.train.log_every, choice.train.batch_tokens) == (0.0123, 3, 96)
    assert (choice.optimizer.weight_decay, choice.train.max_steps, choice.model.d_model) == (0.5, 200, 64)


def hydra_of(given):
    """What Hydra tells about a command with these settings."""
    runtime = SimpleNamespace(config_sources=[])
    return SimpleNamespace(mode=RunMode.RUN, overrides=OmegaConf.create({"task": given}), runtime=runtime)


def test_values_of_the_command_line_reach_the_choice(monkeypatch):
    given = ["model=auto", "model.n_layer=1", "optimizer.lr=0.0123", "+train.keep_last=3"]
    hydra = hydra_of(given)
    monkeypatch.setattr(HydraConfig, "get", lambda: hydra)
    reached: list[tuple[RunConfig, Asked]] = []

    def train_nothing(config, folder, callbacks, asked):
        reached.append((config, asked))
        raise KeyboardInterrupt

    values = compose("train", ["model=auto", "model.n_layer=1", "optimizer.lr=0.0123", "train.keep_last=3", "name=x"])
    with pytest.raises(KeyboardInterrupt):
        run_job(
            OmegaConf.create({**values, "auto_size": True}), lambda values: from_dict(RunConfig, values), train_nothing
        )
    ((config, asked),) = reached
    assert asked.auto_size
    assert list(asked.given) == ["model", "model.n_layer", "optimizer.lr", "train.keep_last"]
    chosen = Choice(2, 64, 1, 512, 200, 7e-3, 0.5, 0.0).applied(config, asked)
    assert (chosen.model.n_layer, chosen.model.d_model, chosen.optimizer.lr) == (1, 64, 0.0123)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows reports a closed pipe as another error")
def test_the_student_follows_although_nobody_reads_the_output_any_more(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hydra = hydra_of(["model=debug"])
    monkeypatch.setattr(HydraConfig, "get", lambda: hydra)
    values = compose("train", ["model=debug", "name=teacher"])
    trained: list[str] = []

    def train_nothing(config, folder, callbacks, asked):
        trained.append(config.name)
        return Facts(val_bpb=2.0)

    def follow(config, run, make, asked):
        trained.append("student")
        yield Run(tmp_path / "student")

    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", encoding="utf-8") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        run_job(OmegaConf.create(values), lambda values: from_dict(RunConfig, values), train_nothing, follow)
    assert trained == ["teacher", "student"]


def test_auto_size_works_with_any_architecture():
    words = ["name=x", "model=nano", "model.d_model=64", "budget=1m", "auto_size=true"]
    asked = compose_request("train", words).asked
    assert asked.auto_size
    assert asked.given["model.d_model"] == "64"
    with pytest.raises(UserError, match="auto_size=5 is not a possible value"):
        compose_request("train", [*words, "auto_size=5"])


def test_a_run_of_an_older_version_with_given_and_auto_size_continues(ended, tmp_path):
    """Older versions wrote `given` and `auto_size` among the values."""
    shutil.copytree(ended / "run", tmp_path / "run")
    run = Run(tmp_path / "run")
    write_record(run.config_path, {**run.config(), "given": ["model"], "auto_size": True})
    assert differences(run, run.settings()) == []
    assert train(asked(ended), run.folder, asked=AUTO).status == "finished"
    assert {"given", "auto_size"}.isdisjoint(run.config())


@pytest.mark.parametrize(("key", "value"), [("model.d_model", 96), ("optimizer.lr", 0.5), ("train.batch_tokens", 64)])
def test_another_value_for_a_chosen_key_is_refused_on_an_existing_run(ended, key, value):
    folder = ended
    config = asked(folder)
    group, name = key.split(".")
    part = dataclasses.replace(getattr(config, group), **{name: value})
    with pytest.raises(UserError, match=rf"{key}: .* -> {value}"):
        train(
            dataclasses.replace(config, **{group: part}),
            folder / "run",
            asked=Asked(auto_size=True, given={key: str(value)}),
        )


def test_a_run_that_ended_before_its_first_checkpoint_is_measured_again(ended, tmp_path):
    folder = ended
    shutil.copytree(folder / "run", tmp_path / "run", ignore=shutil.ignore_patterns("*.ckpt"))
    config = dataclasses.replace(asked(folder), budget="9s")
    assert restore_choice(config, AUTO, Run(tmp_path / "run")) == config


def test_a_run_with_a_budget_can_be_extended(ended, tmp_path):
    folder = ended
    shutil.copytree(folder / "run", tmp_path / "run")
    steps = Run(folder / "run").facts().step
    config = asked(folder)
    longer = dataclasses.replace(config, train=dataclasses.replace(config.train, max_steps=steps + 5, extend=True))
    assert train(longer, tmp_path / "run", asked=AUTO).step == steps + 5
    assert train(config, tmp_path / "run", asked=AUTO).step == steps + 5  # the first command continues it
    with pytest.raises(UserError, match=r"train.extend=true, but there is no run .*fresh: correct name=, or leave"):
        train(longer, tmp_path / "fresh", asked=AUTO)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("model=auto", "budget=null"), "model=auto needs budget="),
        (("budget=soon",), "budget=soon is not a time"),
        (
            ("budget=1m", "device.devices=2", "device.strategy=ddp"),
            "budget= plans the training of one device, not of 2: train on one device, or choose a model and give",
        ),
        (("budget=1m", "train.max_steps=10"), "give only one of budget= and train.max_steps="),
    ],
)
def test_an_invalid_budget_is_refused_in_one_line(run_command, arguments, reason):
    result = run_command("train", *arguments)
    assert result.code == 2
    assert reason in result.err
    assert result.err.count("\n") == 1


def test_model_auto_selects_muon_a_linear_schedule_and_a_small_vocabulary(run_command):
    result = run_command("train", "model=auto", "budget=10min", "--cfg", "job")
    assert result.code == 0, result.err
    for line in ("kind: muon", "kind: linear", "vocab_size: 4000", "budget: 10min"):
        assert line in result.out


@pytest.mark.parametrize("word", ["optimizer=adamw", "optimizer=muon", "model.window=64", "model.dropout=0.1"])
def test_model_auto_can_be_combined_with_other_choices(run_command, word):
    result = run_command("train", "model=auto", word, "--cfg", "job")
    assert result.code == 0, result.err


def test_given_settings_take_precedence_over_those_of_model_auto(run_command):
    assert run_command("train", "model=auto", "tokenizer=char", *FAST[:1], "--cfg", "job").out.count("kind: char") == 1
