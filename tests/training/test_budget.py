"""`budget=10m` and `model=auto`: what is expected, what is chosen, that it is kept to, and that it is chosen once."""

import dataclasses
import math
import shutil
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
from positron.config import Asked, RunConfig
from positron.data.corpus import prepare
from positron.run.facts import write_record
from positron.run.folder import Run
from positron.settings import from_dict
from positron.system.disk import read_json
from positron.system.errors import UserError
from positron.train import train
from positron.training.budget import choose as budget
from positron.training.budget.choose import Candidate, Choice, as_begun, expected_bpb, suitable_batch, tokens_in
from positron.training.budget.pilot import Measuring, Speed, speed_of
from positron.training.device import choose_machine
from positron.training.optim.groups import MUON_RATE

AUTO = Asked(auto_size=True)  # model=auto


def test_more_weights_and_more_tokens_promise_less_loss_and_a_text_read_again_less_than_new_text():
    assert expected_bpb(1e6, 1e7, math.inf) > expected_bpb(2e6, 1e7, math.inf) > expected_bpb(2e6, 2e7, math.inf)
    once, again, new = (expected_bpb(1e6, d, u) for d, u in ((1e6, 1e6), (4e6, 1e6), (4e6, 4e6)))
    assert once > again > new
    # read over and over, a text is worth at most 1 + R* times its tokens
    assert expected_bpb(1e6, 1e12, 1e6) == pytest.approx(expected_bpb(1e6, 1e6 * (1 + budget.R_STAR), math.inf))


@pytest.mark.parametrize("context", [32, 100, 1000])
def test_a_batch_is_whole_sequences_and_grows_with_the_root_of_the_tokens(context):
    small, large = (suitable_batch(d, context) for d in (4e6, 64e6))
    assert small % context == large % context == 0
    assert large / small == pytest.approx(4, rel=0.1)
    assert suitable_batch(1.0, context) == pytest.approx(1024, abs=context)


def test_the_tokens_of_a_time_are_those_that_fit_into_it():
    speed, config = Speed(token_s=1e-4, update_s=0.05), tiny(Path(), model__context_length=256)
    batch, tokens = tokens_in(600.0, speed, config, Asked(), math.inf)
    assert batch == suitable_batch(tokens, 256)
    assert tokens / speed.tokens_per_s(batch) == pytest.approx(600.0, rel=0.02)
    assert tokens_in(600.0, speed, config, Asked(), tokens / 10)[1] == pytest.approx(budget.MOST_PASSES * tokens / 10)


def test_a_batch_that_is_given_decides_how_many_tokens_fit():
    config = tiny(Path(), model__context_length=256, train__batch_tokens=1000)
    asked = Asked(given={"train.batch_tokens": "1000"})
    speed = Speed(token_s=1e-4, update_s=0.05)
    assert tokens_in(600.0, speed, config, asked, math.inf) == (768, 600.0 * speed.tokens_per_s(768))


def test_what_small_steps_leave_idle_is_not_taken_for_the_cost_of_a_token():
    kernels, idle = (9, 9.0), 0.1  # a first step is slow
    cost = [(1000, idle + 1000 * 1e-4), (4000, idle + 4000 * 1e-4)]
    found = speed_of([kernels, *cost, *cost], [0.5, 0.02, 0.02])
    assert (found.token_s, found.update_s) == pytest.approx((1e-4, idle + 0.02))
    assert speed_of([kernels, *cost[1:]], [0.02]) == Speed(pytest.approx(0.5 / 4000), 0.02)  # one size tells no more
    flat = speed_of([kernels, (1000, 0.2), (4000, 0.2)], [0.0])
    assert flat.token_s * 4000 + flat.update_s == pytest.approx(0.2)
    assert flat.token_s > 0


def test_steps_of_two_sizes_are_measured_where_large_ones_are_cheaper(tmp_path):
    config = tiny(tmp_path)
    tokenizer, folder = prepare(config.data, config.tokenizer, None)
    measuring = Measuring(config, choose_machine(config.device, config.precision), tokenizer, folder)
    measuring.multiple = 4
    with measuring.data() as data, pytest.MonkeyPatch.context() as patch:
        seen: list[int] = []
        clock = FakeClock()

        def gradient(model, rows, *_):
            seen.append(len(rows))
            clock.sleep(0.01)

        patch.setattr("positron.training.budget.pilot.time", clock)
        patch.setattr("positron.training.budget.pilot.add_gradient", gradient)
        patch.setattr("positron.training.budget.pilot.update", lambda *_: None)
        measuring.train(config.model.with_vocab(tokenizer.vocab_size), data, 0.05, 1e-3)
    assert seen[0] == 4 * seen[1] == seen[2]


def expecting(bits: list[float], tokens: list[float]) -> list[Candidate]:
    """Candidates of growing size, for a text of 100,000 tokens."""
    config = tiny(Path()).model.with_vocab(100)
    sizes = [dataclasses.replace(config, n_layer=n) for n in range(1, len(bits) + 1)]
    return [Candidate(g, Speed(1e-4, 0.0), 1024, d, b) for g, b, d in zip(sizes, bits, tokens, strict=True)]


def test_the_best_expected_size_is_chosen_and_the_reason_said(logged):
    found = expecting([2.0, 1.5, 1.7], [3e5, 2e5, 1e5])
    choice = budget._settle(tiny(Path(), optimizer__kind="muon"), Asked(), found, 100.0, math.inf)
    assert (choice.n_layer, choice.lr) == (2, MUON_RATE)
    assert choice.max_steps * choice.batch_tokens * 1e-4 == pytest.approx(100.0, rel=0.01)
    assert choice.lr * choice.weight_decay * choice.max_steps == pytest.approx(budget.FORGETTING)
    assert "a smaller one holds less, and a larger one would read too little" in logged[-1]


def test_of_models_that_read_a_small_text_as_often_the_smallest_is_taken_that_is_nearly_the_best(logged):
    """The law alone would take the largest model there is for a few kilobytes."""
    found = expecting([2.0, 1.9, 1.895], [4e5] * 3)
    assert not budget.no_larger(found[:2], 1e5)
    assert budget.no_larger(found, 1e5)
    assert budget._settle(tiny(Path()), Asked(), found, 1e4, 1e5).n_layer == 2
    assert "a larger one would learn hardly more" in logged[-2]
    assert "tokens/s" in logged[0] and "10,000 tokens/s" in logged[0]  # the machine's, not those of the text  # noqa: PT018
    # where larger ones read less, a small gain is a gain
    assert not budget.no_larger(expecting([2.0, 1.9, 1.895], [4e5, 3e5, 2e5]), 1e5)


@pytest.mark.parametrize("fault", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("no such kernel")])
def test_sizes_end_where_memory_does(tmp_path, monkeypatch, fault, logged):
    config, usual = asked(tmp_path), Measuring.train

    def train_small(self, gpt, *more):
        if gpt.d_model > 64:
            raise fault
        return usual(self, gpt, *more)

    monkeypatch.setattr(Measuring, "train", train_small)
    tokenizer, folder = prepare(config.data, config.tokenizer, None)
    machine = choose_machine(config.device, config.precision)
    if isinstance(fault, torch.OutOfMemoryError):
        assert budget.choose(config, AUTO, machine, tokenizer, folder).d_model == 64
        assert any("2 x 128 does not fit" in line for line in logged)
    else:
        with pytest.raises(RuntimeError, match="no such kernel"):
            budget.choose(config, AUTO, machine, tokenizer, folder)


@pytest.mark.parametrize("steps", [1, 3, 29, 1000])
def test_decay_never_takes_more_than_a_tenth_of_a_weight_in_a_step(steps):
    rate, ratio = MUON_RATE, 3.0
    decay = budget.decay_for(rate, steps, ratio)
    assert rate * ratio * decay <= budget.MOST_FORGETTING * (1 + 1e-9)
    if steps > 100:
        assert decay == pytest.approx(budget.FORGETTING / (rate * steps))


def test_a_given_size_is_kept_and_the_rest_is_chosen():
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


@pytest.mark.parametrize(("token_s", "update_s", "allowed"), [(1e-5, 1e-3, 60), (2e-4, 0.3, 600), (1e-3, 1.0, 600)])
def test_a_budget_is_kept_to_on_fast_and_slow_machines(ended, monkeypatch, token_s, update_s, allowed):
    """On a clock that passes as such a machine would take for the same work: measuring and training fill the budget."""
    clock = FakeClock()

    def gradient(model, rows, *_):
        clock.sleep(rows[:, 1:].numel() * token_s * model.config.matmul_params() / 1e5)

    monkeypatch.setattr("positron.training.budget.pilot.time", clock)
    monkeypatch.setattr("positron.training.budget.choose.time", clock)
    monkeypatch.setattr("positron.training.budget.pilot.add_gradient", gradient)
    monkeypatch.setattr("positron.training.budget.pilot.update", lambda *_: clock.sleep(update_s))
    monkeypatch.setattr(Measuring, "bpb", lambda *_: 2.0)
    config = dataclasses.replace(asked(ended), budget=f"{allowed}s")
    monkeypatch.setattr(budget, "MOST_PASSES", math.inf)
    tokenizer, folder = prepare(config.data, config.tokenizer, None)
    choice = budget.choose(config, AUTO, choose_machine(config.device, config.precision), tokenizer, folder)
    chosen = dataclasses.replace(config.model, n_layer=choice.n_layer, d_model=choice.d_model, n_head=choice.n_head)
    token_s *= chosen.with_vocab(tokenizer.vocab_size).matmul_params() / 1e5
    took = clock.now + choice.max_steps * (update_s + choice.batch_tokens * token_s)
    assert 0.8 * allowed < took <= allowed


def asked(folder, **changes):
    return tiny(folder, budget="3s", train__max_steps="auto", train__batch_tokens="auto", **changes)


def test_what_a_budget_became_is_the_runs_own_configuration(ended):
    folder = ended
    run = Run(folder / "run")
    facts, saved = run.facts(), run.config()
    assert facts.status == "finished"
    assert facts.step == saved["train"]["max_steps"] > 1
    assert (saved["model"]["n_layer"], saved["model"]["d_model"]) in budget.SIZES
    assert facts.resolved.batch_tokens == saved["train"]["batch_tokens"]
    log = (folder / "run" / "train.log").read_text(encoding="utf-8")
    assert "chosen: " in log
    assert "bits per byte expected" in log


def test_the_same_command_again_chooses_nothing_anew(ended, capsys):
    folder = ended
    before = Run(folder / "run").config()
    train(asked(folder), folder / "run", asked=AUTO)
    said = capsys.readouterr().err
    assert "nothing to do" in said
    assert "measuring" not in said
    assert Run(folder / "run").config() == before


def test_another_budget_is_another_run(ended):
    folder = ended
    with pytest.raises(UserError, match=r"budget: 3s -> 9s"):
        train(dataclasses.replace(asked(folder), budget="9s"), folder / "run", asked=AUTO)


def test_a_given_model_keeps_its_size_and_heads(tmp_path):
    config = tiny(tmp_path, budget="2s", train__max_steps="auto", train__batch_tokens="auto")
    train(config, tmp_path / "run")
    assert Run(tmp_path / "run").config()["model"] == dataclasses.asdict(config.model)


def test_a_choice_survives_the_way_through_a_runs_files(ended):
    folder = ended
    saved = as_begun(asked(folder), AUTO, Run(folder / "run"))
    choice = Choice(
        saved.model.n_layer, saved.model.d_model, saved.model.n_head, int(saved.train.batch_tokens),
        int(saved.train.max_steps), saved.optimizer.lr, saved.optimizer.weight_decay,
    )  # fmt: skip
    assert choice.applied(asked(folder), AUTO) == saved


def test_numbers_that_were_given_win_over_the_budgets(tmp_path):
    given = dict.fromkeys(("optimizer.lr", "train.log_every", "train.batch_tokens"), "as the config has it")
    config = asked(tmp_path, optimizer__lr=0.0123, train__log_every=3)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, batch_tokens=96))
    choice = Choice(1, 64, 1, 512, 200, 7e-3, 0.5).applied(config, Asked(auto_size=True, given=given))
    assert (choice.optimizer.lr, choice.train.log_every, choice.train.batch_tokens) == (0.0123, 3, 96)
    assert (choice.optimizer.weight_decay, choice.train.max_steps, choice.model.d_model) == (0.5, 200, 64)


def test_what_the_command_line_gives_reaches_the_choice(monkeypatch):
    given = ["model=auto", "model.n_layer=1", "optimizer.lr=0.0123", "+train.keep_last=3"]
    hydra = SimpleNamespace(mode=RunMode.RUN, overrides=SimpleNamespace(task=given))
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
    chosen = Choice(2, 64, 1, 512, 200, 7e-3, 0.5).applied(config, asked)
    assert (chosen.model.n_layer, chosen.model.d_model, chosen.optimizer.lr) == (1, 64, 0.0123)


def test_an_architecture_of_ones_own_may_leave_its_size_open():
    words = ["name=x", "model=nano", "model.d_model=64", "budget=1m", "auto_size=true"]
    asked = compose_request("train", words).asked
    assert asked.auto_size
    assert asked.given["model.d_model"] == "64"
    with pytest.raises(UserError, match="auto_size=5 is not possible here"):
        compose_request("train", [*words, "auto_size=5"])


def test_a_run_that_keeps_where_its_values_came_from_continues(ended, tmp_path):
    """Older versions wrote `given` and `auto_size` among the values."""
    shutil.copytree(ended / "run", tmp_path / "run")
    run = Run(tmp_path / "run")
    write_record(run.config_path, {**run.config(), "given": ["model"], "auto_size": True})
    assert run.differences(run.settings()) == []
    train(asked(ended), run.folder, asked=AUTO)
    assert {"given", "auto_size"}.isdisjoint(read_json(run.config_path))


@pytest.mark.parametrize(("key", "value"), [("model.d_model", 96), ("optimizer.lr", 0.5), ("train.batch_tokens", 64)])
def test_another_value_of_what_was_chosen_is_refused_on_a_run_that_exists(ended, key, value):
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


def test_a_run_that_ended_before_its_first_checkpoint_is_measured_anew(ended, tmp_path):
    folder = ended
    shutil.copytree(folder / "run", tmp_path / "run", ignore=shutil.ignore_patterns("*.ckpt"))
    config = dataclasses.replace(asked(folder), budget="9s")
    assert as_begun(config, AUTO, Run(tmp_path / "run")) == config


def test_a_budgets_run_can_be_extended(ended, tmp_path):
    folder = ended
    shutil.copytree(folder / "run", tmp_path / "run")
    steps = Run(folder / "run").facts().step
    config = asked(folder)
    longer = dataclasses.replace(config, train=dataclasses.replace(config.train, max_steps=steps + 5, extend=True))
    assert train(longer, tmp_path / "run", asked=AUTO).step == steps + 5
    assert train(config, tmp_path / "run", asked=AUTO).step == steps + 5  # and the first command goes on with it
    with pytest.raises(UserError, match="the budget chooses its first steps"):
        train(longer, tmp_path / "fresh", asked=AUTO)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("model=auto", "budget=null"), "model=auto needs a time to choose for"),
        (("budget=soon",), "budget=soon is not a time"),
        (("budget=1m", "device.devices=2", "device.strategy=ddp"), "budget= is for pretraining on one device"),
        (("budget=1m", "train.max_steps=10"), "leave train.max_steps out"),
    ],
)
def test_a_budget_that_makes_no_sense_is_refused_in_one_line(run_command, arguments, reason):
    result = run_command("train", *arguments)
    assert result.code == 2
    assert reason in result.err
    assert result.err.count("\n") == 1


def test_model_auto_is_one_word_for_a_modern_recipe(run_command):
    result = run_command("train", "model=auto", "budget=10min", "--cfg", "job")
    assert result.code == 0, result.err
    for line in ("kind: muon", "kind: linear", "vocab_size: 4000", "budget: 10min"):
        assert line in result.out


@pytest.mark.parametrize("word", ["optimizer=adamw", "optimizer=muon", "model.window=64", "model.dropout=0.1"])
def test_model_auto_takes_the_menus_other_words(run_command, word):
    result = run_command("train", "model=auto", word, "--cfg", "job")
    assert result.code == 0, result.err


def test_fast_settings_still_win_over_a_budgets(run_command):
    assert run_command("train", "model=auto", "tokenizer=char", *FAST[:1], "--cfg", "job").out.count("kind: char") == 1
