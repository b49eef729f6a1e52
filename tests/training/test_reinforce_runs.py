"""Runs that learn from their own answers: whole, resumed bit for bit, and with what an interruption leaves."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import own_rewards
import pytest
import torch
from conftest import CommandProcess, tiny
from traces import same
from tuning import assert_keeps_its_division, tuned
from two_processes import assert_learned_the_same, with_one_and_two

from positron.config import LoraConfig, ReinforceConfig, RewardConfig, RunConfig
from positron.evaluation.summary import show_result, without_advantages
from positron.reinforce import reinforce
from positron.run.checkpoint import load_checkpoint
from positron.run.folder import Run
from positron.run.load import load_model, restore
from positron.run.metrics import read_metrics
from positron.sft import sft
from positron.system.errors import Interrupted, UserError
from positron.system.formatting import counted
from positron.text.factory import load_tokenizer
from positron.train import train
from positron.training.tuning import hash_of_checkpoint

MEASURES = ("reward", "reward_se", "pass_1", "pass_4", "truncated", "answer_tokens", "entropy", "kl", "distinct")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pretrained run, a run that chats, and a file of conversations."""
    folder = tmp_path_factory.mktemp("base")
    train(tiny(folder, train__max_steps=20, model__context_length=64, train__batch_tokens=1024), folder / "base")
    records = [
        {"instruction": f"The {thing} {n}?", "output": f"It is {n}."} for n in range(15) for thing in ("hat", "ball")
    ]
    (folder / "conversations.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    sft(tuned(folder), folder / "chat")
    return folder


def reinforced(base: Path, **changes: Any) -> RunConfig:
    settings = {"prompts": 4, "hard_share": 0.5, "samples": 4, "max_tokens": 12, "val_prompts": 4, "val_samples": 4}
    config = tuned(
        base,
        name="reinforced",
        init_from=str(base / "chat"),
        sft=None,
        reinforce=ReinforceConfig(**{**settings, **changes.pop("reinforce", {})}),
        reward=RewardConfig("custom", function=changes.pop("function", "own_rewards.short")),
    )
    train_settings = {
        "max_steps": 6,
        "val_every": 2,
        "save_every": 2,
        "batch_tokens": 16 * 64,
        **changes.pop("train", {}),
    }
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **train_settings), **changes)


@pytest.fixture(scope="module")
def whole(base: Path) -> Path:
    reinforce(reinforced(base), base / "whole")
    return base / "whole"


@pytest.mark.slow
def test_a_run_is_whole_chats_and_leaves_its_base_alone(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in sorted((base / "chat").rglob("*")) if path.is_file()}
    facts = reinforce(reinforced(base), tmp_path / "run")
    assert before == {path: path.read_bytes() for path in sorted((base / "chat").rglob("*")) if path.is_file()}
    run = Run(tmp_path / "run")
    assert (facts.status, facts.kind, facts.best_step, run.is_chat) == ("finished", "reinforce", 6, True)
    rows = read_metrics(run.metrics_path)
    assert [row["step"] for row in rows if "val/reward" in row] == [0, 2, 4, 6]
    assert all(f"val/{name}" in row for name in MEASURES for row in (rows[0], rows[-1]))
    assert rows[0]["val/kl"] == pytest.approx(0, abs=1e-6)  # the model before the training
    assert all("train/reward" in row and 0 <= row["train/silent_prompts"] <= 1 for row in rows[1:])
    assert all(0 <= row["train/hard_prompts"] <= 0.5 for row in rows[1:])
    assert any(row["train/hard_prompts"] == 0.5 for row in rows[1:])
    assert re.search(r"reward 0\.\d+ \(50% hard prompts\) · ", run.log_path.read_text())
    assert run.weights_path.exists()
    assert facts.base_bpb_before is not None
    assert facts.base_bpb_after is not None
    show_result(run.folder)
    said = capsys.readouterr().out
    assert f"reward {rows[-1]['val/reward']:.3f} ± " in said
    assert "on the pretraining text: " in said
    assert (run.folder / "report.html").exists()
    assert load_checkpoint(run.checkpoint_folder / "best.ckpt")["global_step"] == 6
    assert not torch.equal(load_model(run)[0].wte.weight, load_model(Run(base / "chat"))[0].wte.weight)


def test_rewards_that_teach_nothing_are_called_so_at_the_end() -> None:
    rows = [{"step": 0, "val/reward": 0.0}, *({"train/silent_prompts": 1.0, "train/reward": 0.0} for _ in range(3))]
    assert (without_advantages(rows) or "").startswith("every answer had the reward 0, so the model learned nothing")
    different = [*rows, {"train/silent_prompts": 1.0, "train/reward": 1.0}]
    assert (without_advantages(different) or "").startswith("all answers to a prompt had the same reward, so")
    cut = [{"train/silent_prompts": 1.0, "train/reward": float(i), "train/truncated": 1.0} for i in range(3)]
    assert "every answer was cut off" in (without_advantages(cut) or "")
    assert without_advantages([*rows, {"train/silent_prompts": 0.75, "train/reward": 0.0}]) is None
    assert without_advantages([{"step": 1, "val/bpb": 2.0}]) is None


@pytest.mark.slow
def test_a_run_of_an_older_version_keeps_its_division_by_first_questions(base: Path, tmp_path: Path) -> None:
    assert_keeps_its_division(reinforce, reinforced(base), {"completion": "It is red."}, tmp_path)


def test_a_run_in_chunks_is_bit_identical_to_one_in_one_piece(base: Path, whole: Path, tmp_path: Path) -> None:
    for stop in (1, 4, None):
        reinforce(reinforced(base, train={"stop_at": stop}), tmp_path / "parts")
    steps = {row["step"] for row in read_metrics(whole / "metrics.jsonl")}
    assert steps == {0, 1, 2, 3, 4, 5, 6}
    a, b = (load_model(Run(folder))[0].state_dict() for folder in (whole, tmp_path / "parts"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_killed_while_rewards_are_computed_continues_bit_for_bit(
    base: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_third_step = 2 * 16 + 16 + 5  # after two steps and a validation
    monkeypatch.setattr(own_rewards, "calls_until_signal", in_third_step)
    with pytest.raises(Interrupted):
        reinforce(reinforced(base, function="own_rewards.interrupted"), tmp_path / "run")
    facts = Run(tmp_path / "run").facts()
    assert (facts.status, facts.step) == ("stopped", 2)
    reinforce(reinforced(base, function="own_rewards.interrupted"), tmp_path / "run")
    assert same(tmp_path / "run", whole)


def test_a_reward_is_learnt_and_the_divergence_is_reported(base: Path, tmp_path: Path) -> None:
    """Answers get shorter, which they can only do if the end token is a target."""
    config = reinforced(base, train={"max_steps": 20, "val_every": 10}, reinforce={"prompts": 8, "samples": 8})
    reinforce(dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, lr=1e-2)), tmp_path / "run")
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert rows[-1]["val/reward"] > 1.5 * rows[0]["val/reward"]
    assert rows[-1]["val/answer_tokens"] < 0.7 * rows[0]["val/answer_tokens"]
    assert rows[-1]["val/kl"] > 0.01


def test_a_run_does_not_continue_with_another_initial_model(base: Path, tmp_path: Path) -> None:
    shutil.copytree(base / "chat", tmp_path / "chat")
    config = reinforced(base, init_from=str(tmp_path / "chat"), train={"max_steps": 2})
    first = dataclasses.replace(config, train=dataclasses.replace(config.train, stop_at=1))
    facts = reinforce(first, tmp_path / "run")
    assert facts.validated_on == Run(base / "base").facts().data_fingerprint
    weights = tmp_path / "chat" / "checkpoints" / "best.ckpt"
    weights.rename(tmp_path / "kept.ckpt")
    shutil.copy(base / "base" / "checkpoints" / "best.ckpt", weights)
    with pytest.raises(
        UserError, match=r"the weights of init_from=.*chat are not those with which .*run began: restore"
    ):
        reinforce(config, tmp_path / "run")
    assert reinforce(first, tmp_path / "run").step == 1  # there is nothing to train
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps({**record, "reference": None, "checksum": None}))
    shutil.copytree(tmp_path / "run", tmp_path / "old")  # as an older version wrote it
    assert reinforce(config, tmp_path / "old").status == "finished"


def test_a_base_run_that_still_trains_is_read_only_once(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(base / "chat", tmp_path / "chat")
    weights, first_weights = tmp_path / "chat" / "checkpoints" / "best.ckpt", tmp_path / "first.ckpt"
    shutil.copy(weights, first_weights)

    def read_and_replace(*arguments: Any) -> Any:
        read = restore(*arguments)
        weights.unlink()
        shutil.copy(base / "base" / "checkpoints" / "best.ckpt", weights)
        return read

    monkeypatch.setattr("positron.training.tuning.restore", read_and_replace)
    lora = LoraConfig(rank=2)
    config = reinforced(base, init_from=str(tmp_path / "chat"), reinforce={"lora": lora}, train={"max_steps": 1})
    facts = reinforce(config, tmp_path / "run")
    assert facts.reference == hash_of_checkpoint(first_weights)
    assert read_metrics(tmp_path / "run" / "metrics.jsonl")[0]["val/kl"] == pytest.approx(0, abs=1e-6)


def test_low_rank_matrices_learn_too(base: Path, tmp_path: Path) -> None:
    reinforce(reinforced(base, reinforce={"lora": LoraConfig(rank=2)}, train={"max_steps": 2}), tmp_path / "run")
    mine, theirs = load_model(Run(tmp_path / "run"))[0], load_model(Run(base / "chat"))[0]
    assert not torch.equal(mine.blocks[0].attn.q.weight, theirs.blocks[0].attn.q.weight)


def test_a_base_run_that_does_not_chat_continues_its_prompts(base: Path, tmp_path: Path) -> None:
    config = reinforced(base, init_from=str(base / "base"), train={"max_steps": 2})
    assert reinforce(config, tmp_path / "run").status == "finished"
    run = Run(tmp_path / "run")
    assert not run.is_chat
    assert "prompts are continued as plain text" in run.log_path.read_text()


def test_a_faster_number_format_is_corrected_and_learns(base: Path, tmp_path: Path) -> None:
    facts = reinforce(reinforced(base, reinforce={"weights": "int8"}, train={"max_steps": 2}), tmp_path / "run")
    assert facts.status == "finished"
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert 0 < rows[-1]["train/ratio_gap"] < 0.5
    assert rows[-1]["train/ratio_gap"] > 0


def test_the_plan_counts_prompts_and_answers_because_their_rows_are_padded(base: Path, tmp_path: Path) -> None:
    reinforce(reinforced(base, reinforce={"prompts": 2}, train={"stop_at": 1}), tmp_path / "run")
    log = Run(tmp_path / "run").log_path.read_text()
    batch = "2 prompts with 4 answers each and 2 pieces of the pretraining text (training on 4 sequences at a time)"
    assert f"context 64; 6 steps of {batch}; stopping at step 1\n" in log


def test_a_budget_chooses_the_number_of_steps(base: Path, tmp_path: Path) -> None:
    config = reinforced(base, budget="4s", train={"max_steps": "auto"})
    config = dataclasses.replace(config, schedule=dataclasses.replace(config.schedule, warmup_steps=99999))
    facts = reinforce(config, tmp_path / "run")
    assert facts.status == "finished"
    assert facts.resolved is not None
    assert facts.step == facts.resolved.max_steps
    steps = counted(facts.step, "step")
    log = Run(tmp_path / "run").log_path.read_text()
    assert re.findall(r"context 64; (.+) of 4 prompts", log) == [steps]  # the plan is logged when the number is known
    assert f"the warmup (schedule.warmup_steps=99999) is longer than the run ({steps}): " in log
    assert reinforce(config, tmp_path / "run").step == facts.step


def test_prompts_without_room_for_an_answer_are_refused(base: Path, tmp_path: Path) -> None:
    (tmp_path / "long.jsonl").write_text(json.dumps({"instruction": "a" * 99, "output": "b"}))
    config = reinforced(base)
    data = dataclasses.replace(config.data, path=str(tmp_path / "long.jsonl"))
    with pytest.raises(UserError, match="all 1 prompts are empty, begin with an answer or are too long: the context "):
        reinforce(dataclasses.replace(config, data=data), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_prompt_may_leave_as_few_tokens_as_its_longest_answer_has(base: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(Run(base / "base").tokenizer_folder)  # of characters
    lines = [json.dumps({"instruction": "a" * 58 + letter, "output": "b"}) for letter in "bcdefghijk"]
    (tmp_path / "long.jsonl").write_text("\n".join(lines))
    assert len(tokenizer.encode("a" * 59)) + 1 + 4 == 64, "a prompt and four tokens fill the context"
    config = reinforced(base, init_from=str(base / "base"), reinforce={"max_tokens": 4}, train={"max_steps": 1})
    data = dataclasses.replace(config.data, path=str(tmp_path / "long.jsonl"))
    assert reinforce(dataclasses.replace(config, data=data), tmp_path / "run").status == "finished"


@pytest.fixture
def place(base: Path, tmp_path: Path) -> tuple[str, ...]:
    """Copy what the commands need into `tmp_path`, and return their common settings."""
    (tmp_path / "outputs").mkdir()
    shutil.copytree(base / "chat", tmp_path / "outputs" / "chat")
    shutil.copy(base / "conversations.jsonl", tmp_path)
    (tmp_path / "my_rewards.py").write_text(DEADLY_REWARD)
    answers = (f"reinforce.{name}=4" for name in ("prompts", "samples", "val_prompts", "val_samples"))
    return (
        *("init_from=chat", "data=instruct", "data.path=conversations.jsonl", "data.val_fraction=0.2"),
        *("reward=custom", "reward.function=my_rewards.short", *answers, "reinforce.max_tokens=12"),
        "reinforce.hard_share=0.5",
        *("train.max_steps=4", "train.val_every=2", "train.save_every=1", "train.log_every=1", "train.val_tokens=1000"),
        *("train.micro_batch_size=4", "train.sample_tokens=4", "schedule.warmup_steps=1", "optimizer.lr=1e-3"),
    )


# The first process that imports it is killed before a token in the third step, after two steps and two validations.
DEADLY_REWARD = """
import os, signal
from pathlib import Path
from positron.training.objective import reinforce

sample, calls = reinforce.rollouts, 0


def deadly(*arguments, pause, **settings):
    global calls
    calls, tokens = calls + 1, 0

    def before_a_token():
        nonlocal tokens
        tokens += 1
        if calls == 5 and tokens == 3:
            Path("killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        pause()

    return sample(*arguments, pause=before_a_token, **settings)


if not Path("killed").exists():
    reinforce.rollouts = deadly


def short(prompt, completion):
    return 1 / (1 + len(completion))
"""


@pytest.mark.slow
def test_a_command_that_is_killed_between_two_tokens_continues_bit_for_bit(
    place: tuple[str, ...], tmp_path: Path, run_command: Callable[..., Any]
) -> None:
    if sys.platform == "win32":
        pytest.skip("Windows sends no signals to other processes")
    words = (*place, "device=cpu", "precision=fp32")
    killed, folder = run_command("reinforce", *words, "name=run"), tmp_path / "outputs" / "run"
    assert killed.code == -signal.SIGKILL, killed.err
    assert [row["step"] for row in read_metrics(folder / "metrics.jsonl")] == [0, 1, 2]
    for name in ("run", "whole"):
        again = run_command("reinforce", *words, f"name={name}")
        assert again.code == 0, again.err
    whole = tmp_path / "outputs" / "whole"
    assert same(folder, whole)
    for key in ("train/reward", "train/entropy", "val/reward", "val/kl"):
        a, b = ([row.get(key) for row in read_metrics(each / "metrics.jsonl")] for each in (folder, whole))
        assert a == b


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(
    start: Callable[..., CommandProcess], base: Path, place: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "killed").touch()
    one, two = with_one_and_two(start, tmp_path, "reinforce", *place)
    measured = ("train/grad_norm", "train/reward", "train/entropy", "val/bpb", "val/reward", "val/reward_se", "val/kl")
    assert_learned_the_same(one, two, base / "chat", measured)
