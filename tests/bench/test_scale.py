"""How cost grows: where a line is said to end, what fits, and docs/SCALE.md against the script that computes its tables."""

import dataclasses
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.testing._internal.distributed.fake_pg
from composing import composed
from conftest import PROJECT, apart
from torch import distributed
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from positron.config import GPTConfig, RunConfig
from positron.model.gpt import GPT
from positron.settings import from_dict
from positron.training.sharded_tensors import own_part
from positron.training.sharding import shard
from scripts.bench import scale
from scripts.bench import scale_on_paper as paper
from scripts.bench import scale_report as report
from scripts.bench import scale_sharded as sharded

DOCUMENT = (PROJECT / "docs" / "SCALE.md").read_text(encoding="utf-8")


def rows(times, costs=(1, 2, 4, 8, 16, 32), series=""):
    return [
        {
            "label": str(c),
            "series": series,
            "x": c,
            "tokens": 10,
            "flops_per_token": c,
            "seconds": 10 * t,
            "bytes": t,
            "computed_bytes": c,
        }
        for c, t in zip(costs, times, strict=True)
    ]


@pytest.mark.parametrize(("a", "b"), [(0, 3), (5, 2), (4, 0)])
def test_a_line_is_found_and_nothing_leaves_it(a, b):
    x = [1, 3, 9, 81, 1000]
    assert report.off_the_line(x, [a + b * value for value in x]) == pytest.approx([1] * 5)


def test_a_line_never_falls():
    """Noise among the small points must not predict that the large ones are free."""
    ratios = report.off_the_line([1, 2, 3, 100], [1.0, 0.95, 0.9, 1.0])
    assert ratios[-1] == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize(("factor", "says"), [(2.0, "leaves the line at 8, 2.00"), (0.5, "leaves the line at 8, 0.50")])
def test_the_first_point_that_leaves_the_line_is_named(factor, says):
    times = np.array([1.0, 2, 4, 8, 16, 32])
    times[3:] *= factor
    found = rows(times)
    time, memory = report.verdict_lines("parameters", found)
    assert says in time
    assert says in memory
    assert [row["time_ratio"] for row in found] == pytest.approx([1, 1, 1, factor, factor, factor])


def test_what_was_skipped_is_said_and_has_no_ratio():
    found = rows([1.0, 2, 4, 8, 16, 32])
    for key in ("seconds", "bytes"):
        del found[-1][key]
    found[-1]["skipped"] = "needs about 9.0 GB, 1.0 GB are free"
    skipped, time, _ = report.verdict_lines("parameters", found)
    assert skipped == "32  skipped: needs about 9.0 GB, 1.0 GB are free"
    assert "up to 16" in time


def test_the_axes_reach_as_far_as_they_say(monkeypatch):
    reach = {axis: [point.x for point in scale.points(axis, quick=False)] for axis in scale.AXES}
    assert (min(reach["parameters"]), max(reach["parameters"])) == pytest.approx((1e6, 124e6), rel=0.05)
    assert (min(reach["context"]), max(reach["context"])) == (128, 8192)
    assert (min(reach["vocabulary"]), max(reach["vocabulary"])) == (256, 100_277)
    assert (min(reach["data"]), max(reach["data"])) == (10**6, 10**10)
    assert set(reach["processes"]) == {1, 2}
    context = scale.points("context", quick=False)
    assert len({point.tokens for point in context}) == 1
    plain, again = context[: len(context) // 2], context[len(context) // 2 :]
    for a, b in zip(plain, again, strict=True):
        assert dataclasses.replace(a, series="", checkpoint=True) == dataclasses.replace(b, series="")
        assert b.computed_bytes() < a.computed_bytes()
    monkeypatch.setattr(scale, "free_memory", lambda device: 1_000_000_000)
    largest = scale.row_of(scale.points("parameters", quick=False)[-1], 1)
    assert largest["skipped"].endswith("1.0 GB are free")
    assert "seconds" not in largest


@pytest.mark.slow
def test_the_benchmark_measures_and_draws(tmp_path):
    command = [sys.executable, "-m", "scripts.bench.scale", "--quick", "--out", str(tmp_path)]
    done = subprocess.run(
        [*command, "--axis", "data", "processes"], cwd=PROJECT, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr
    assert "with two processes each takes" in done.stdout
    assert (tmp_path / "scale.png").read_bytes().startswith(b"\x89PNG")
    assert len((tmp_path / "scale.csv").read_text().splitlines()) == 1 + 3 + 2


@pytest.mark.parametrize("name", paper.MODELS)
def test_the_document_has_the_tables_that_the_script_prints(name):
    assert paper.table(name) in DOCUMENT
    assert paper.caption(name) in DOCUMENT


def found(name, gpus, strategy, checkpoint=False):
    return next(s for s in paper.setups(name) if (s.gpus, s.strategy, s.checkpoint) == (gpus, strategy, checkpoint))


def test_the_paper_s_sums_by_hand():
    """124,439,808 parameters are those of GPT-2 small; the rest with a pencil."""
    n = 124_439_808
    alone, ddp, fsdp = (found("124M", *which) for which in ((1, "none"), (8, "ddp"), (64, "fsdp")))
    assert alone.gpt.n_params() == n
    assert found("1.5B", 1, "none").gpt.n_params() == 1_557_611_200
    assert ddp.traffic() == pytest.approx(2 * 7 / 8 * 4 * n)
    assert ddp.travel_seconds() == pytest.approx(7 * n / 450e9)
    assert fsdp.micro_batches == 1
    blocks = 12 * 12 * 768**2
    sent = 63 / 64 * 4 * (2 * n + blocks)
    assert fsdp.traffic() == pytest.approx(sent)
    assert fsdp.travel_seconds() == pytest.approx(sent / 400e9)
    assert fsdp.travel_seconds(ports=1) == pytest.approx(sent / 50e9)
    assert (alone.state_bytes(), ddp.state_bytes()) == (18 * n, 22 * n)
    assert fsdp.state_bytes() == pytest.approx(n * (16 / 64 + 4) + 6 * (n - 10 / 12 * blocks))
    # 6 N D and a bit for attention, at 40 % of the peak
    assert alone.hours() == pytest.approx(6 * n * 20 * n / (0.4 * 989e12) / 3600, rel=0.1)
    assert ddp.hours() == pytest.approx(alone.hours() / 8)
    assert found("124M", 1, "none", True).compute_seconds() == pytest.approx(alone.compute_seconds() * 4 / 3)


class Sent(TorchDispatchMode):
    """Count the bytes of the collective operations of a step, as they are before each process leaves out its own part."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._schema.name in ("c10d::_allgather_base_", "c10d::_reduce_scatter_base_"):
            self.bytes += max(x.numel() * x.element_size() for x in args if isinstance(x, torch.Tensor))
        return func(*args, **(kwargs or {}))


def one_of_eight():
    distributed.init_process_group("fake", rank=3, world_size=8)
    config = GPTConfig(vocab_size=512, context_length=64, d_model=64, n_layer=3, n_head=4)
    model = GPT(config)
    shard(model, "cpu", 8)
    x = torch.zeros(1, 64, dtype=torch.int64)
    with Sent() as sent:
        model(x, x).backward()
    setup = paper.Setup(config, 64 * 8, 8, "fsdp", False)
    assert setup.micro_batches == 1
    norms = (
        2 * 3 * 64
    )  # the formula counts the norms of the blocks as outside of them, and so sends them once too seldom
    assert 7 / 8 * sent.bytes == setup.traffic() + 7 / 8 * 4 * norms
    held = sum(own_part(p.detach()).nbytes + own_part(p.grad).nbytes for p in model.parameters())
    assert held == 8 * config.n_params() / 8


@pytest.mark.slow
def test_a_step_of_fsdp_sends_and_holds_what_the_formula_says():
    apart(one_of_eight)


def memory_of_one_of_eight():
    distributed.init_process_group("fake", rank=0, world_size=8)
    gpt = sharded.SHAPES[0]
    model, optimizer = sharded.build(gpt, 8)
    sharded.step(model, optimizer)
    held, tensors = sharded.computed(gpt, 8)
    assert held + sharded.largest_sum_of_step(model, optimizer) == pytest.approx(tensors, rel=0.1)


@pytest.mark.slow  # positron/training/sharding.py has fast tests of its own
def test_the_tensors_of_a_step_of_fsdp_take_what_the_formula_says():
    apart(memory_of_one_of_eight)


def test_the_largest_sum_counts_what_lives_at_the_same_time():
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        for _ in range(2):
            a = torch.ones(1_000_000)
            b = a[:500_000].clone()
            del a, b
    assert sharded.largest_sum(record) == pytest.approx(6_000_000, rel=0.01)


@pytest.mark.parametrize("name", paper.MODELS)
def test_what_does_not_hide_is_waited_for_and_all_fits(name):
    for s in paper.setups(name):
        assert s.bytes() <= paper.USABLE * paper.MEMORY
        assert 0 <= s.exposed_seconds() <= s.travel_seconds()
        assert s.exposed_seconds(ports=1) >= s.exposed_seconds()
        less, more = (dataclasses.replace(s, checkpoint=flag).activation_bytes(8) for flag in (True, False))
        assert less < more / 5


@pytest.mark.slow
def test_the_document_s_commands_are_valid_runs_of_whole_batches():
    blocks = re.findall(r"```bash\n(.*?)```", DOCUMENT.replace("positron train ", "positron.train "), re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if "positron.train" in line]
    assert len(lines) >= 5
    for line in lines:
        words = shlex.split(line)
        config = from_dict(RunConfig, composed(*words[words.index("positron.train") + 1 :]))
        gpt = config.model.with_vocab(50_257)
        name = next(name for name, (model, _) in paper.MODELS.items() if model == gpt)
        assert config.train.batch_tokens == paper.MODELS[name][1]
        world = config.device.devices * config.device.num_nodes
        rows = config.train.batch_tokens // gpt.context_length
        assert rows % world == 0
        assert (rows // world) % config.train.micro_batch_size == 0
        strategy = "none" if world == 1 else config.device.strategy
        s = found(name, world, strategy, config.device.checkpoint_activations)
        assert config.train.micro_batch_size == s.micro_batch(), line
