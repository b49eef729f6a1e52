"""Preference tuning: the losses, the reference, and runs that resume bit for bit."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CommandProcess, tiny
from torch.nn import functional as F
from tuning import assert_keeps_its_division, pairs_of
from two_processes import assert_learned_the_same, with_one_and_two

from numpy_ref.preference import (
    dpo_backward,
    dpo_forward,
    ipo_backward,
    ipo_forward,
    orpo_backward,
    orpo_forward,
    simpo_backward,
    simpo_forward,
)
from positron.config import GPTConfig, LoraConfig, PreferenceConfig, PreferenceLoss, RunConfig
from positron.data.preferences import Pair
from positron.model.gpt import GPT
from positron.model.kernels.loss import linear_token_losses
from positron.prefer import prefer
from positron.run.checkpoint import BEST, load_checkpoint
from positron.run.folder import Run
from positron.run.load import load_model
from positron.run.metrics import read_metrics
from positron.system.errors import UserError
from positron.text.char_word import CharTokenizer
from positron.text.conversation import Message
from positron.text.tokenizer import SPECIALS
from positron.train import train
from positron.training.objective import preference
from positron.training.objective.preference import PreferenceObjective, answer_log_probs
from positron.training.objective.preference_losses import losses, margins

TOKENIZER = CharTokenizer("abcdefghijklmnopqrstuvwxyz ?.\n")
END = TOKENIZER.special_id(SPECIALS[-1])
GPT_CONFIG = GPTConfig(vocab_size=TOKENIZER.vocab_size, context_length=64, d_model=16, n_layer=2, n_head=2)
LOSSES: tuple[PreferenceLoss, ...] = ("dpo", "ipo", "simpo", "orpo")
LN_2 = float(np.float32(math.log(2)))


def pair(question: str, chosen: str, rejected: str, *, is_val: bool = False) -> Pair:
    answers = ((Message("assistant", text),) for text in (chosen, rejected))
    return Pair((Message("user", question),), *answers, is_val)


PAIRS = [pair("a" * n + "?", "b" * (n % 5 + 1), "c" * (n % 3 + 2), is_val=n % 3 == 0) for n in range(1, 12)]


def objective(pairs: list[Pair] = PAIRS, loss: PreferenceLoss = "dpo", micro: int = 4) -> PreferenceObjective:
    return PreferenceObjective(
        pairs,
        TOKENIZER,
        PreferenceConfig(loss),
        context=64,
        batch_size=12,
        micro_batch_size=micro,
        seed=0,
        val_tokens=1000,
    )


def with_reference(task: PreferenceObjective, model: GPT) -> PreferenceObjective:
    task.reference = task.describe(model, torch.no_grad, n_steps=100)
    return task


def test_losses_of_tokens_and_their_gradients_are_the_librarys() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight, upstream = (torch.randn(*s, generator=generator).double() for s in ((7, 5), (11, 5), (7,)))
    targets = torch.tensor([3, -100, 0, 10, 4, -100, 4])
    inputs = [tensor.clone().requires_grad_() for tensor in (x, weight)]
    ours = linear_token_losses(*inputs, targets)
    got = torch.autograd.grad(ours, inputs, upstream)
    plain = F.cross_entropy(F.linear(*inputs), targets, reduction="none", ignore_index=-100)
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)
    for a, b in zip(got, torch.autograd.grad(plain, inputs, upstream), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_a_log_probability_counts_the_answer_and_its_end_and_nothing_else() -> None:
    task, model = with_reference(objective(), GPT(GPT_CONFIG)), GPT(GPT_CONFIG).double()
    for x, y, _ in task.batch(1, 0, 1):
        every = model(x).log_softmax(-1)  # (B, T, V)
        wanted = [sum(every[b, t, y[b, t]] for t in range(y.shape[1]) if y[b, t] != -100) for b in range(len(x))]
        torch.testing.assert_close(answer_log_probs(model, x, y), torch.stack(wanted), rtol=1e-12, atol=1e-12)
        for row in y:
            answer = row[row != -100].tolist()
            assert answer[-1] == END
            assert len(set(TOKENIZER.decode(answer[:-1]))) == 1  # only b or only c: not a letter of the question


def test_rows_of_a_micro_batch_are_chosen_and_rejected_in_turn() -> None:
    task = with_reference(objective(), GPT(GPT_CONFIG))
    parts = task.batch(1, 0, 1)
    for _, y, reference in parts:
        letters = [TOKENIZER.decode(row[row != -100][:1].tolist()) for row in y]
        assert letters == ["b", "c"] * (len(y) // 2)
        assert reference.shape == (len(y),)
    assert [int(task.count(part)) for part in parts] == [2, 2, 2]


@pytest.mark.parametrize("loss", LOSSES)
def test_one_large_micro_batch_and_many_small_ones_have_the_same_gradient(loss: PreferenceLoss) -> None:
    gradients = []
    for micro in (12, 1):
        model = GPT(GPT_CONFIG, seed=1).double()
        task = with_reference(objective(loss=loss, micro=micro), GPT(GPT_CONFIG))
        for part in task.batch(1, 0, 1):
            (task.loss(model, part) / 6).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, whole in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], whole, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("world_size", [2, 3])
def test_the_ranks_share_the_pairs_of_a_step(world_size: int) -> None:
    task = with_reference(objective(), GPT(GPT_CONFIG))

    def rows(parts: list[Any]) -> list[Any]:
        return sorted((x[y != -100].tolist(), float(r)) for part in parts for x, y, r in zip(*part, strict=True))

    shared = [part for rank in range(world_size) for part in task.batch(2, rank, world_size)]
    assert rows(shared) == rows(task.batch(2, 0, 1))


def test_the_loss_of_a_model_that_is_its_own_reference_is_log_2_exactly() -> None:
    model = GPT(dataclasses.replace(GPT_CONFIG, dropout=0.5)).eval()
    task = with_reference(objective(), model)
    assert task.measures(model, 0, 1)["preference/loss"] == LN_2
    half = dataclasses.replace(task.settings, label_smoothing=0.4)
    zero = torch.zeros(3)
    assert losses(half, margins(half, zero - 5, zero - 7, zero - 5, zero - 7), zero).tolist() == [LN_2] * 3


def test_margins_and_losses_are_those_of_the_papers() -> None:
    w, rejected = (torch.tensor(v, dtype=torch.float64) for v in ([-2.0, -9.0], [-3.0, -4.0]))
    rw, rl = (torch.tensor(v, dtype=torch.float64) for v in ([-2.5, -8.0], [-2.0, -5.0]))

    def loss_of(**settings: Any) -> list[float]:
        chosen = PreferenceConfig(**settings)
        return losses(chosen, margins(chosen, w, rejected, rw, rl), w).tolist()

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    h = [(-2.0 + 2.5) - (-3.0 + 2.0), (-9.0 + 8.0) - (-4.0 + 5.0)]
    smooth = [-0.8 * math.log(sigmoid(0.5 * x)) - 0.2 * math.log(sigmoid(-0.5 * x)) for x in h]
    assert loss_of(beta=0.5, label_smoothing=0.2) == pytest.approx(smooth, rel=1e-12)
    assert loss_of(loss="ipo", beta=0.2) == pytest.approx([(x - 2.5) ** 2 for x in h], rel=1e-12)
    simpo = [-math.log(sigmoid(3 * (a - b) - 0.4)) for a, b in ((-2, -3), (-9, -4))]
    assert loss_of(loss="simpo", beta=3.0, gamma=0.4) == pytest.approx(simpo, rel=1e-12)

    def odds(log_p: float) -> float:
        return math.exp(log_p) / (1 - math.exp(log_p))

    orpo = [-a - 0.3 * math.log(sigmoid(math.log(odds(a) / odds(b)))) for a, b in ((-2, -3), (-9, -4))]
    assert loss_of(loss="orpo", weight=0.3) == pytest.approx(orpo, rel=1e-9)


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_and_gradients_are_those_of_the_numpy_reference(loss: PreferenceLoss) -> None:
    generator = np.random.default_rng(0)
    w, rejected, rw, rl = (-generator.exponential(3.0, 6) - 0.1 for _ in range(4))
    settings = PreferenceConfig(loss, label_smoothing=0.2 if loss == "dpo" else 0.0, gamma=0.7, weight=0.3)
    forward, backward, values, options = {
        "dpo": (dpo_forward, dpo_backward, (w, rejected, rw, rl), {"beta": 0.1, "label_smoothing": 0.2}),
        "ipo": (ipo_forward, ipo_backward, (w, rejected, rw, rl), {"tau": 0.1}),
        "simpo": (simpo_forward, simpo_backward, (w, rejected), {"beta": 2.0, "gamma": 0.7}),
        "orpo": (orpo_forward, orpo_backward, (w, rejected), {"weight": 0.3}),
    }[loss]
    wanted, cache = forward(*values, **options)
    chosen, other = (torch.tensor(values, requires_grad=True) for values in (w, rejected))
    margin = margins(settings, chosen, other, torch.tensor(rw), torch.tensor(rl))
    total = losses(settings, margin, chosen).mean()
    assert total.item() == pytest.approx(float(wanted), rel=1e-12)
    for got, exact in zip(torch.autograd.grad(total, (chosen, other)), backward(1.0, cache)[:2], strict=True):
        np.testing.assert_allclose(got.numpy(), exact, rtol=1e-10, atol=1e-14)


def test_the_measures_are_those_of_two_whole_models() -> None:
    before, after = GPT(GPT_CONFIG, seed=0).eval(), GPT(GPT_CONFIG, seed=3).eval()
    task = with_reference(objective(), before)
    sums: dict[str, list[float]] = {name: [] for name in ("kl", "margin", "chosen_logp", "rejected_logp")}
    with torch.no_grad():
        for x, y in task.val_pairs:
            w, rw = answer_log_probs(after, x, y), answer_log_probs(before, x, y)
            sums["chosen_logp"] += w[0::2].tolist()
            sums["rejected_logp"] += w[1::2].tolist()
            sums["margin"] += (0.1 * ((w - rw)[0::2] - (w - rw)[1::2])).tolist()
            p, q = (model(x[0::2]).log_softmax(-1) for model in (after, before))
            sums["kl"] += (p.exp() * (p - q)).sum(-1)[y[0::2] != -100].tolist()
    measured = task.measures(after, 0, 1)
    for name, values in sums.items():
        assert measured[f"preference/{name}"] == pytest.approx(np.mean(values), rel=1e-5), name
    assert measured["preference/accuracy"] == np.mean([m > 0 for m in sums["margin"]])
    assert measured["preference/kl"] > 0
    assert task.measures(before, 0, 1)["preference/kl"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("length", [20, 40, 60])  # no row, one row, and both rows are longer than the context
def test_both_answers_of_a_long_pair_have_the_same_prompt(length: int) -> None:
    prompt, context = (Message("user", "abcdefghij" * (length // 10) + "z" * (length % 10)),), 50
    pair = Pair(prompt, (Message("assistant", "yes"),), (Message("assistant", "no we do not"),), is_val=False)
    rows = preference._rows_of(pair, TOKENIZER, context)
    assert rows is not None
    prompts = [x[: int(np.argmax(y != -100)) + 1].tolist() for x, y in rows]
    assert prompts[0] == prompts[1]
    assert max(len(x) for x, _ in rows) <= context
    assert [TOKENIZER.decode(y[y != -100]) for _, y in rows] == ["yes", "no we do not"]


def test_pairs_that_do_not_fit_are_counted_and_all_of_them_refused(logged: list[str]) -> None:
    long = pair("a", "b" * 100, "c")
    objective([*PAIRS, long])
    assert any("1 of 12 pairs have an answer that is longer than the context of 64 tokens" in line for line in logged)
    with pytest.raises(UserError, match="all 1 pairs have an answer"):
        objective([long])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pretrained run and a file of pairs."""
    folder = tmp_path_factory.mktemp("base")
    train(tiny(folder, train__max_steps=20, model__context_length=64, train__batch_tokens=1024), folder / "base")
    rows = [
        {"prompt": f"The {thing} {n}?", "chosen": "It is red.", "rejected": f"It is {'big' * (n % 3)} blue."}
        for n in range(12)
        for thing in ("hat", "ball", "boat", "kite")
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def preferred(base: Path, preference: PreferenceConfig | None = None, **changes: Any) -> RunConfig:
    """A preference tuning that takes a second."""
    values = tiny(base, model__context_length=64)
    config = dataclasses.replace(
        values,
        name="preferred",
        data=pairs_of(base),
        init_from=str(base / "base"),
        preference=preference or PreferenceConfig(),
    )
    settings = {
        "max_steps": 12,
        "batch_tokens": 512,
        "micro_batch_size": 4,
        "val_every": 4,
        "sample_every": 6,
        "sample_prompt": None,
        "save_every": 3,
        **changes,
    }
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **settings))


def test_a_run_learns_the_order_and_is_whole_and_leaves_the_base_alone(base: Path, tmp_path: Path) -> None:
    before = {p: p.read_bytes() for p in sorted((base / "base").rglob("*")) if p.is_file()}
    facts = prefer(preferred(base), tmp_path / "run")
    assert before == {p: p.read_bytes() for p in sorted((base / "base").rglob("*")) if p.is_file()}
    run = Run(tmp_path / "run")
    assert (facts.status, run.kind, run.is_chat) == ("finished", "preference", True)
    rows = read_metrics(run.metrics_path)
    first, last = rows[0], rows[-1]
    assert (first["step"], first["preference/loss"], first["preference/accuracy"]) == (0, LN_2, 0)
    assert rows[1]["train/loss"] == pytest.approx(LN_2, abs=1e-5)
    assert last["preference/accuracy"] == 1
    assert last["preference/margin"] > 0.1
    assert last["preference/kl"] > first["preference/kl"]
    assert first["val/bpb"] == pytest.approx(facts.base_bpb_before, rel=0.05)
    assert facts.best_step == 12
    best, newest = (load_checkpoint(run.checkpoint_folder / name)["state_dict"] for name in (BEST, "step-000012.ckpt"))
    assert all(torch.equal(best[name], newest[name]) for name in newest)
    assert run.report_path.exists()
    assert load_model(run)[0].config.context_length == 64


def test_dropout_does_not_change_what_is_measured_before_the_first_step(base: Path, tmp_path: Path) -> None:
    sizes = {"model__context_length": 64, "train__batch_tokens": 1024, "model__dropout": 0.3}
    train(tiny(base, train__max_steps=4, **sizes), tmp_path / "dropped")
    config = preferred(base, max_steps=1)
    model = dataclasses.replace(config.model, dropout=0.3)
    config = dataclasses.replace(config, model=model, init_from=str(tmp_path / "dropped"))
    prefer(config, tmp_path / "run")
    first = read_metrics(Run(tmp_path / "run").metrics_path)[0]
    measured = first["preference/loss"], first["preference/margin"], first["preference/kl"]
    assert first["step"] == 0
    assert measured == pytest.approx((LN_2, 0, 0), abs=1e-6)


def test_a_run_counts_the_tokens_that_it_reads_and_continues_to_count(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = [0]

    def counted(model: GPT, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled():
            read[0] += x.numel()
        return answer_log_probs(model, x, y)

    monkeypatch.setattr(preference, "answer_log_probs", counted)
    for stop in (5, None):
        prefer(preferred(base, stop_at=stop), tmp_path / "run")
    rows = read_metrics(Run(tmp_path / "run").metrics_path)
    assert rows[-1]["step"] == 12
    assert rows[-1]["tokens"] == Run(tmp_path / "run").facts().tokens == read[0]
    assert read[0] < 12 * 512  # the rows are as long as the longest answer, not as the context


@pytest.mark.slow
def test_a_run_of_an_older_version_keeps_its_division_by_first_questions(base: Path, tmp_path: Path) -> None:
    answers = {"chosen": "It is red.", "rejected": "It is big."}
    assert_keeps_its_division(prefer, preferred(base), answers, tmp_path)


@pytest.mark.parametrize("loss", ["dpo", pytest.param("ipo", marks=pytest.mark.slow)])
def test_a_run_in_chunks_is_bit_identical_to_one_in_one_piece(loss: PreferenceLoss, base: Path, tmp_path: Path) -> None:
    settings = PreferenceConfig(loss, lora=LoraConfig(rank=2 if loss == "ipo" else 0))
    prefer(preferred(base, settings), tmp_path / "whole")
    for stop in (5, None):
        prefer(preferred(base, settings, stop_at=stop), tmp_path / "parts")
        if stop:
            (tmp_path / "parts" / "reference.npz").write_bytes(b"PK damaged")  # it is computed again
    rows = [
        [
            {**row, "time_s": 0, "speed/tokens_per_s": 0, "speed/mfu": 0, "memory/peak_gb": 0}
            for row in rows
            if row["step"] != 5
        ]
        for rows in (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "parts"))
    ]
    assert rows[0] == rows[1]
    a, b = (load_model(Run(tmp_path / name))[0].state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
def test_a_base_run_that_has_changed_is_named_and_the_stored_reference_is_kept(base: Path, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "moved")
    moved = tmp_path / "moved"
    part, whole = preferred(moved, stop_at=6), preferred(moved)
    prefer(part, tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    longer = tiny(moved, train__max_steps=24, model__context_length=64, train__batch_tokens=1024)
    train(dataclasses.replace(longer, train=dataclasses.replace(longer.train, extend=True)), moved / "base")
    (tmp_path / "other" / "reference.npz").unlink()
    with pytest.raises(UserError, match=r"reference.npz is missing or damaged, .* has changed since this run began"):
        prefer(whole, tmp_path / "other")
    assert prefer(whole, tmp_path / "run").status == "finished"
    log = (tmp_path / "run" / "train.log").read_text()
    assert "have changed since this run began: this run continues with the log-probabilities of the old weights" in log


def test_without_the_text_of_the_base_run_the_answers_are_validated(base: Path, tmp_path: Path) -> None:
    shutil.copytree(base / "base", tmp_path / "base")
    record = json.loads((tmp_path / "base" / "config.json").read_text())
    del record["checksum"]
    record["data"] |= {"source": "imported", "dir": str(tmp_path / "nowhere")}
    (tmp_path / "base" / "config.json").write_text(json.dumps(record))
    config = dataclasses.replace(preferred(base, max_steps=4), init_from=str(tmp_path / "base"))
    facts = prefer(config, tmp_path / "run")
    assert facts.status == "finished"
    log = (tmp_path / "run" / "train.log").read_text()
    assert "the text of the base run cannot be used for validation" in log
    assert "was not fine-tuned on conversations" in log
    assert read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]["val/bpb"] > 0


@pytest.mark.slow
def test_a_run_that_continues_is_validated_on_the_same_text_as_before(base: Path, tmp_path: Path) -> None:
    shutil.copytree(base / "base", tmp_path / "base")
    stored = tmp_path / "base" / "config.json"
    available = json.loads(stored.read_text())
    gone = {**available, "checksum": None, "data": {**available["data"], "source": "imported"}}
    config = dataclasses.replace(preferred(base, max_steps=2), init_from=str(tmp_path / "base"))
    first = dataclasses.replace(config, train=dataclasses.replace(config.train, stop_at=1))
    runs = {name: Run(tmp_path / name) for name in ("text", "answers", "old")}
    prefer(first, runs["text"].folder)
    shutil.copytree(runs["text"].folder, runs["old"].folder)
    runs["old"].update(validated_on=None)
    stored.write_text(json.dumps(gone))
    prefer(first, runs["answers"].folder)
    assert runs["answers"].facts().validated_on == "answers"
    with pytest.raises(UserError, match=r"imported, .* give another name= .*text is validated on the text of its base"):
        prefer(config, runs["text"].folder)
    assert prefer(first, runs["text"].folder).step == 1  # there is nothing to train
    assert prefer(config, runs["old"].folder).validated_on == "answers"
    stored.write_text(json.dumps(available))
    for name, same_text in (("text", True), ("answers", False)):
        known = runs[name].facts().validated_on
        assert prefer(config, runs[name].folder).validated_on == known
        steps = [row["val/bpb"] for row in read_metrics(runs[name].metrics_path) if "val/bpb" in row]
        begin = read_metrics(runs["text"].metrics_path)[0]["val/bpb"]
        assert (steps[-1] == pytest.approx(begin, rel=0.05)) == same_text


def test_a_run_is_not_validated_on_another_text_or_on_a_text_instead_of_answers(base: Path, tmp_path: Path) -> None:
    config = preferred(base, max_steps=2)
    prefer(dataclasses.replace(config, train=dataclasses.replace(config.train, stop_at=1)), tmp_path / "run")
    Run(tmp_path / "run").update(validated_on="the hash of another text")
    with pytest.raises(UserError, match=r"base was trained on another text: give another name="):
        prefer(config, tmp_path / "run")
    Run(tmp_path / "run").update(validated_on="answers")
    assert prefer(config, tmp_path / "run").validated_on == "answers"


@pytest.mark.parametrize(
    ("micro_batch_size", "at_once"),
    [(4, "2 pairs"), (1, "1 pair")],  # the two answers of a pair are always computed together
)
def test_the_plan_counts_pairs_because_their_rows_are_padded(
    base: Path, tmp_path: Path, micro_batch_size: int, at_once: str
) -> None:
    # 576 tokens are 9 sequences of 64, of which one has no second answer
    prefer(preferred(base, batch_tokens=576, micro_batch_size=micro_batch_size, stop_at=1), tmp_path / "run")
    log = (tmp_path / "run" / "train.log").read_text()
    assert f"context 64; 12 steps of 4 pairs of answers ({at_once} at a time); stopping at step 1\n" in log


def test_the_default_steps_do_not_count_pairs_that_are_too_long(base: Path, tmp_path: Path) -> None:
    long = "".join(json.dumps({"prompt": f"{n}?", "chosen": "no " * 30, "rejected": "a"}) + "\n" for n in range(200))
    (tmp_path / "mixed.jsonl").write_text((base / "pairs.jsonl").read_text() + long)
    config = preferred(base, PreferenceConfig(epochs=2), max_steps="auto", stop_at=1)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, path=str(tmp_path / "mixed.jsonl")))
    prefer(config, tmp_path / "run")
    log = (tmp_path / "run" / "train.log").read_text()
    learned = int(re.findall(r"(\d+) pairs to learn from", log)[0])
    assert learned < 48
    assert f"{math.ceil(2 * learned / 4)} steps of 4 pairs of answers" in log


def test_a_batch_without_room_for_a_pair_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"too small for a pair of answers: give train\.batch_tokens=128"):
        prefer(preferred(base, batch_tokens=64), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_numbers_of_a_loss_are_recorded_and_checked() -> None:
    assert [PreferenceConfig(loss).beta for loss in LOSSES] == [0.1, 0.1, 2.0, None]
    for wrong, said in (
        ({"beta": 0.0}, "preference.beta=0.0 must be positive"),
        ({"label_smoothing": 0.5}, "preference.label_smoothing=0.5 must be at least 0 and below 0.5"),
        ({"lora": LoraConfig(rank=-1)}, "preference.lora.rank=-1 must not be negative"),
    ):
        with pytest.raises(UserError) as error:
            PreferenceConfig(**wrong)
        assert said in str(error.value)


def test_the_prefer_command_and_its_mistakes(base: Path, tmp_path: Path, run_command: Callable[..., Any]) -> None:
    folder = tmp_path / "outputs" / "b"
    folder.parent.mkdir()
    shutil.copytree(base / "base", folder)
    shutil.copy(base / "pairs.jsonl", tmp_path)
    data = ("data=preferences", "data.path=pairs.jsonl", "data.val_fraction=0.2")
    sizes = ("train.max_steps=2", "train.batch_tokens=512", "train.log_every=1", "train.sample_tokens=4")
    fast = (*sizes, *data, "device=cpu", "precision=fp32", "name=p")
    made = run_command("prefer", *fast)
    assert made.code == 0, made.err
    assert "before the first step: loss 0.6931" in made.err
    assert "-m positron.chat --run outputs/p" in made.out
    assert "on the pretraining text:" in made.out
    again = run_command("reproduce", "p", "--whole")
    assert again.code == 0, again.err
    assert "identical: logged steps 0 to 2" in again.out
    for wrong, said in (
        (("data.path=nowhere.jsonl",), "cannot read data.path=nowhere.jsonl"),
        (("preference.gamma=1",), "preference.gamma= is read by preference.loss=simpo, not by preference.loss=dpo"),
        (("preference.losss=dpo",), "did you mean preference.loss?"),
        (("data=story_instruct",), "preference tuning learns from pairs"),
        (("preference.epochs=2",), "train.max_steps=auto"),
        (("sft.epochs=2",), "read by python -m positron.sft"),
        (("device.compile=true",), "device.compile=true is not supported by python -m positron.prefer"),
        (("device.strategy=fsdp", "device.devices=2"), "positron.prefer: give device.strategy=ddp"),
    ):
        failed = run_command("prefer", *fast[:-1], *wrong, "name=w")
        assert failed.code == 2, failed.err
        assert said in failed.err.splitlines()[-1]


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(start: Callable[..., CommandProcess], base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "outputs" / "b"
    folder.parent.mkdir()
    shutil.copytree(base / "base", folder)
    shutil.copy(base / "pairs.jsonl", tmp_path)
    sizes = ("train.max_steps=3", "train.batch_tokens=512", "train.micro_batch_size=2", "train.log_every=1")
    data = ("data=preferences", "data.path=pairs.jsonl", "data.val_fraction=0.2", "train.sample_tokens=4")
    one, two = with_one_and_two(start, tmp_path, "prefer", "init_from=b", *sizes, *data)
    measured = ("train/loss", "train/grad_norm", "val/bpb", "preference/margin", "preference/accuracy")
    assert_learned_the_same(one, two, base / "base", measured)
    assert [row["step"] for row in read_metrics(two / "metrics.jsonl")] == [0, 1, 2, 3]
