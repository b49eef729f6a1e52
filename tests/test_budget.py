"""`budget=10m` and `model=auto`: what is expected, what is chosen, that it is kept to, and that it is chosen once."""

import dataclasses
import math
import time
from pathlib import Path

import pytest
from conftest import FAST, tiny

from positron.config import UserError
from positron.runs import Run
from positron.train import train
from positron.training import budget
from positron.training.budget import Candidate, Choice, Speed, as_begun, expected_bpb, suitable_batch


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
    speed = Speed(token_s=1e-4, update_s=0.05)
    batch, tokens = speed.tokens_in(600.0, 256, math.inf)
    assert batch == suitable_batch(tokens, 256)
    assert tokens / batch * (speed.update_s + batch * speed.token_s) == pytest.approx(600.0, rel=0.02)
    assert speed.tokens_in(600.0, 256, tokens / 10)[1] == pytest.approx(budget.MOST_PASSES * tokens / 10)


def test_the_best_expected_size_is_chosen_and_the_reason_said():
    config = tiny(Path()).model.with_vocab(100)
    sizes = [dataclasses.replace(config, n_layer=n) for n in (1, 2, 3)]
    found = [Candidate(gpt, Speed(1e-4, 0.0), 1024, 1e5, bpb) for gpt, bpb in zip(sizes, (2.0, 1.5, 1.7), strict=True)]
    said: list[str] = []
    choice = budget._settle(found, 100.0, math.inf, "muon", said.append)
    assert (choice.n_layer, choice.lr) == (2, budget.RATE)
    assert choice.max_steps * choice.batch_tokens * 1e-4 == pytest.approx(100.0, rel=0.01)
    assert choice.lr * choice.weight_decay * choice.max_steps == pytest.approx(budget.FORGETTING)
    assert "a smaller one holds less, and a larger one would read too little" in said[-1]


@pytest.fixture(scope="module", autouse=True)
def small_sizes():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(budget, "SIZES", ((1, 64), (2, 64), (2, 128)))
        yield


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """A run of six seconds, and how long it took."""
    folder = tmp_path_factory.mktemp("budget")
    config = asked(folder)
    train(dataclasses.replace(config, train=dataclasses.replace(config.train, stop_at=1)), folder / "warm")
    begun = time.monotonic()
    train(config, folder / "run")
    return folder, time.monotonic() - begun


def asked(folder, **changes):
    return tiny(folder, budget="6s", auto_size=True, train__max_steps="auto", train__batch_tokens="auto", **changes)


def test_a_budget_is_kept_to_and_what_it_became_is_the_runs_own_configuration(ended):
    folder, took = ended
    run = Run(folder / "run")
    facts, saved = run.facts(), run.config()
    assert facts["status"] == "finished"
    assert facts["step"] == saved["train"]["max_steps"] > 1
    assert (saved["model"]["n_layer"], saved["model"]["d_model"]) in budget.SIZES
    assert facts["resolved"]["batch_tokens"] == saved["train"]["batch_tokens"]
    assert took < 12  # a machine that other programs want is slower than it was when measured
    log = (folder / "run" / "train.log").read_text(encoding="utf-8")
    assert "chosen: " in log
    assert "bits per byte expected" in log


def test_the_same_command_again_chooses_nothing_anew(ended, capsys):
    folder, _ = ended
    before = Run(folder / "run").config()
    train(asked(folder), folder / "run")
    said = capsys.readouterr().err
    assert "nothing to do" in said
    assert "measuring" not in said
    assert Run(folder / "run").config() == before


def test_another_budget_is_another_run(ended):
    folder, _ = ended
    with pytest.raises(UserError, match=r"budget: 6s -> 9s"):
        train(dataclasses.replace(asked(folder), budget="9s"), folder / "run")


def test_a_given_model_keeps_its_size_and_heads(tmp_path):
    config = tiny(tmp_path, budget="3s", train__max_steps="auto", train__batch_tokens="auto")
    train(config, tmp_path / "run")
    assert Run(tmp_path / "run").config()["model"] == dataclasses.asdict(config.model)


def test_a_choice_survives_the_way_through_a_runs_files(ended):
    folder, _ = ended
    saved = as_begun(asked(folder), Run(folder / "run"))
    choice = Choice(
        saved.model.n_layer, saved.model.d_model, saved.model.n_head, int(saved.train.batch_tokens),
        int(saved.train.max_steps), saved.optimizer.lr, saved.optimizer.weight_decay,
    )  # fmt: skip
    assert choice.applied(asked(folder)) == saved


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("model=auto", "budget=null"), "model=auto needs a time to choose for"),
        (("budget=soon",), "budget=soon is not a time"),
        (("budget=1m", "device.devices=2", "device.strategy=ddp"), "budget= is for pretraining on one device"),
        (("budget=1m", "train.max_steps=10"), "leave train.max_steps out"),
    ],
)
def test_a_budget_that_makes_no_sense_is_refused_in_one_line(door, arguments, reason):
    result = door("train", *arguments)
    assert result.code == 2
    assert reason in result.err
    assert result.err.count("\n") == 1


def test_model_auto_is_one_word_for_a_modern_recipe(door):
    result = door("train", "model=auto", "budget=10min", "--cfg", "job")
    assert result.code == 0, result.err
    for line in ("kind: muon", "kind: linear", "vocab_size: 4000", "budget: 10min"):
        assert line in result.out


def test_fast_settings_still_win_over_a_budgets(door):
    assert door("train", "model=auto", "tokenizer=char", *FAST[:1], "--cfg", "job").out.count("kind: char") == 1
