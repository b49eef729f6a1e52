"""Monitors: what they measure is what is there, and training does not notice them."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny

from positron.config import IGNORE, GPTConfig, MonitorConfig
from positron.model.gpt import GPT, document_mask, rope_tables
from positron.model.probes import attention_inputs, probabilities, queries_and_keys, visible_keys
from positron.run.metrics import read_metrics
from positron.train import train
from positron.training.monitors.activations import Activations
from positron.training.monitors.attention import COLLAPSED, PATIENCE, AttentionEntropy, head_entropies
from positron.training.monitors.norms import layer_of
from positron.training.monitors.probe import Probe
from positron.training.monitors.tokens import bin_means, frequency_bins, position_edges

ALL = MonitorConfig(every=3, gradients=True, weights=True, attention=True, activations=True, tokens=True)
SMALL = GPTConfig(vocab_size=50, context_length=16, d_model=16, n_layer=2, n_head=4)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same run with all monitors, every third step, and without; with dropout, rows every 4 steps, a checkpoint at 10."""
    folder = tmp_path_factory.mktemp("monitors")
    plain = tiny(folder, train__max_steps=12, train__log_every=4, model__dropout=0.1, optimizer__weight_decay=0.0)
    plain = dataclasses.replace(plain, schedule=dataclasses.replace(plain.schedule, warmup_steps=0))
    train(plain, folder / "plain")
    train(dataclasses.replace(plain, monitor=ALL), folder / "watched")
    return folder / "plain", folder / "watched"


def test_training_does_not_notice(runs: tuple[Path, Path]) -> None:
    plain, watched = ({row["step"]: row for row in read_metrics(run / "metrics.jsonl")} for run in runs)
    assert sorted(plain) == [4, 8, 10, 12]
    assert sorted(watched) == [3, 4, 6, 8, 9, 10, 12]
    for step, row in plain.items():
        for key in ("train/loss", "train/grad_norm", "val/loss"):
            assert row.get(key) == watched[step].get(key)
    a, b = (torch.load(run / "checkpoints" / "step-000012.ckpt", weights_only=True) for run in runs)
    assert all(torch.equal(a["state_dict"][key], b["state_dict"][key]) for key in a["state_dict"])


def test_what_was_measured_is_in_the_rows_and_in_the_report(runs: tuple[Path, Path]) -> None:
    rows = {row["step"]: row for row in read_metrics(runs[1] / "metrics.jsonl")}
    assert not [key for key in rows[4] if key.startswith(("attention/", "grad_norm/", "loss_by"))]
    for step in (3, 6, 9, 12):
        kinds = {key.rpartition("/")[0] for key in rows[step]}
        assert kinds >= {
            "grad_norm",
            "grad_norm_matrix",
            "weight_norm",
            "update_norm",
            "update_ratio",
            "attention/entropy",
            "activation_rms",
            "dead_units",
            "always_on_units",
            "loss_by_frequency",
            "loss_by_position",
        }
        assert len([key for key in rows[step] if key.startswith("attention/entropy/")]) == 2 * 4
    page = (runs[1] / "report.html").read_text()
    assert page.count("<img") > 8
    assert "Attention entropy of each head" in page
    assert "<h2>Monitors</h2>" not in (runs[0] / "report.html").read_text()


def test_norms_of_layers_make_up_the_whole_norm(runs: tuple[Path, Path]) -> None:
    for row in read_metrics(runs[1] / "metrics.jsonl"):
        layers = [value for key, value in row.items() if key.startswith("grad_norm/")]
        if layers:
            assert math.hypot(*layers) == pytest.approx(row["train/grad_norm"], rel=1e-5)
            assert row["update_ratio/wte"] == pytest.approx(row["update_norm/wte"] / row["weight_norm/wte"], rel=1e-5)


def test_the_first_step_of_adamw_moves_every_weight_by_the_learning_rate(tmp_path: Path) -> None:
    config = tiny(tmp_path, train__max_steps=1, optimizer__weight_decay=0.0, optimizer__eps=1e-30)
    watched = dataclasses.replace(config, monitor=MonitorConfig(every=1, weights=True))
    train(watched, tmp_path / "run")
    (row,) = read_metrics(tmp_path / "run" / "metrics.jsonl")
    per_block = 4 * 32 * 32 + 2 * 32 * 128  # all of them have a gradient; moments' bias corrections cancel at step 1
    assert row["update_norm/blocks.0"] == pytest.approx(row["train/lr"] * math.sqrt(per_block), rel=1e-3)


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"n_kv_head": 2, "position": "rope", "qk_norm": True, "smear": True, "window": 3}]
)
def test_probabilities_are_those_of_the_block(options: dict, documents: bool) -> None:
    """Times v and through the output projection they are what the attention itself gives, in float64."""
    model = GPT(dataclasses.replace(SMALL, **options)).double()
    if model.config.position == "rope":
        model.cos, model.sin = rope_tables(16, 4)
    idx = torch.randint(0, 50, (3, 16), generator=torch.Generator().manual_seed(0))
    numbers = (idx < 10).cumsum(dim=1) if documents else None
    for attn, inputs in attention_inputs(model, idx, numbers):
        q, k = queries_and_keys(attn, inputs[0], inputs[1])
        p = probabilities(q, k, visible_keys(attn, inputs)[:, None])
        v = attn.v(inputs[0]).view(3, 16, attn.n_kv_head, 4).transpose(1, 2).repeat_interleave(4 // attn.n_kv_head, 1)
        y = attn.out((p @ v).transpose(1, 2).reshape(3, 16, 16))
        assert torch.allclose(y, attn(*inputs), atol=1e-12, rtol=0)
        if numbers is not None:
            assert not p[~document_mask(numbers, model.config.window).expand_as(p)].any()


def test_entropy_is_one_for_looking_at_all_alike_and_zero_for_looking_at_one() -> None:
    model = GPT(SMALL)
    idx = torch.arange(16)[None]
    with torch.no_grad():
        model.blocks[0].attn.q.weight.zero_()
        model.blocks[1].attn.q.weight.mul_(1e5)
        model.blocks[1].attn.k.weight.mul_(1e5)
    alike, sharp = (
        torch.stack(head_entropies(attn, inputs, torch.ones(1, 16, dtype=torch.bool)))
        for attn, inputs in attention_inputs(model, idx)
    )
    assert torch.allclose(alike, torch.ones(4), atol=1e-6)
    assert (sharp < 0.02).all()


def test_a_collapsed_head_is_named_once_and_only_when_it_stays_so(logged: list[str]) -> None:
    probe = Probe(torch.zeros(1, 2, dtype=torch.long), torch.zeros(1, 2, dtype=torch.long))
    monitor = AttentionEntropy(1, probe)
    low, high = COLLAPSED / 2, 0.5
    for entropy in (low, low, high, *[low] * (PATIENCE - 1)):
        monitor._warn({"attention/entropy/1.3": entropy})
    assert not logged
    for _ in range(3):
        monitor._warn({"attention/entropy/1.3": low})
    assert len(logged) == 1
    assert "head 3 of layer 1 has collapsed" in logged[0]


def test_units_that_never_answer_and_units_that_always_do_are_counted() -> None:
    model = GPT(dataclasses.replace(SMALL, activation="relu", bias=True))
    up = model.blocks[1].mlp.up
    with torch.no_grad():
        up.bias.zero_()
        up.bias[:16] = -1e3  # of 64
        up.bias[16:48] = 1e3
    probe = Probe(torch.arange(32).view(2, 16), torch.ones(2, 16, dtype=torch.long))
    values = Activations(1, probe).measure(model.eval(), probe, None)
    assert values["dead_units/blocks.1"] == 16 / 64
    assert values["always_on_units/blocks.1"] == 32 / 64
    residual = model.wte(probe.x) + model.wpe.weight[:16]
    assert values["activation_rms/embedding"] == pytest.approx(residual.square().mean().sqrt().item(), rel=1e-5)


def test_frequency_bins_have_equal_shares_of_the_text() -> None:
    rng = np.random.default_rng(0)
    counts = np.sort(rng.integers(0, 1000, 400))
    rng.shuffle(counts)
    bins = frequency_bins(counts)
    shares = np.bincount(bins, weights=counts) / counts.sum()
    assert np.abs(shares - 0.2).max() < counts.max() / counts.sum() + 1e-9
    for i in range(4):
        assert counts[bins == i].min() >= counts[bins == i + 1].max()
    assert (bins[counts == 0] == 4).all()


def test_tokens_are_counted_as_they_are_in_training(tmp_path: Path) -> None:
    from positron.training.objective.pretrain import PretrainObjective

    class Tokens:
        n_tokens = 200_000
        ids = np.random.default_rng(1).integers(0, 9, n_tokens)

        def read(self, start: int, count: int) -> np.ndarray:
            return self.ids[start : start + count]

    data = PretrainObjective.__new__(PretrainObjective)
    data.train = type("Train", (), {"tokens": Tokens()})()
    assert data.target_counts(12).tolist() == [*(int((Tokens.ids == i).sum()) for i in range(9)), 0, 0, 0]


def test_bins_of_positions_cover_the_context_once() -> None:
    for context in (1, 7, 32, 1000):
        edges = position_edges(context)
        assert edges[0] == 0
        assert edges[-1] == context
        assert edges == sorted(set(edges))
        assert len(edges) <= 9


def test_the_means_of_bins_weigh_up_to_the_loss(runs: tuple[Path, Path]) -> None:
    values, bins = np.arange(10.0), np.array([0, 0, 1, 1, 1, 3, 3, 3, 3, 3])
    assert bin_means(values, bins, ["a", "b", "c", "d"]) == {"a": 0.5, "b": 3.0, "d": 7.0}
    last = read_metrics(runs[1] / "metrics.jsonl")[-1]
    means = [last[f"loss_by_position/{name}"] for name in ("0", "1", "2-3", "4-7", "8-15", "16-31")]
    assert np.average(means, weights=[1, 1, 2, 4, 8, 16]) == pytest.approx(last["val/loss"], rel=0.05)


def test_padding_is_not_looked_at() -> None:
    y = torch.tensor([[1, 2, IGNORE, IGNORE], [IGNORE, IGNORE, 3, IGNORE]])
    assert Probe(y, y).real.tolist() == [[True, True, False, False], [True, True, True, False]]


def test_layers_are_blocks_and_what_stands_outside() -> None:
    assert layer_of("blocks.3.attn.q.weight") == "blocks.3"
    assert layer_of("wte.weight") == "wte"


@pytest.mark.slow
def test_fine_tuning_is_watched_too(run_command, tmp_path: Path) -> None:
    folder = tmp_path / "outputs" / "base"
    train(tiny(tmp_path, train__max_steps=2, model__context_length=128), folder)
    conversations = [{"instruction": f"who is {n}", "output": f"tom {n}"} for n in range(20)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(record) + "\n" for record in conversations))
    options = ("sft.lora.rank=2", "sft.packing=true", "sft.replay_ratio=0", "train.max_steps=2", "train.log_every=1")
    made = run_command(
        "sft",
        "init_from=base",
        "data=instruct",
        "data.path=t.jsonl",
        "data.val_fraction=0.3",
        *options,
        "monitor=all",
        "monitor.every=2",
        "precision=fp32",
        "train.batch_tokens=512",
        "train.sample_tokens=4",
        "name=tuned",
    )
    assert made.code == 0, made.err
    row = read_metrics(tmp_path / "outputs" / "tuned" / "metrics.jsonl")[-1]
    assert any(key.startswith("attention/entropy/") for key in row)
    assert row["update_norm/blocks.0"] > 0


def test_an_interval_that_makes_no_sense_is_refused(run_command) -> None:
    made = run_command("train", "model=debug", "monitor=attention", "monitor.every=0")
    assert made.code == 2
    assert made.err == "positron: monitor.every=0 must be at least 1\n"
