"""Pairs of runs with the same seed: which are compared, which are refused, and what the comparison says."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shlex
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from conftest import Result, tiny

from positron.evaluation.eval_texts import texts_of_run
from positron.evaluation.log_table import table
from positron.evaluation.paired import Documents, as_text, compare_scores, mean_differences
from positron.evaluation.pairing import Member, Pairs, _differences, find_pairs, settings_named
from positron.evaluation.score import Score
from positron.evaluation.scoring import score_documents, total
from positron.run.facts import CHECKSUM
from positron.run.folder import Run
from positron.run.load import load_model
from positron.system.errors import UserError
from positron.train import train

SEEDS = (0, 1, 2)
RATES = (1e-3, 1e-2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two learning rates with three seeds each, as the jobs of a sweep, in the order of the command line."""
    folder = tmp_path_factory.mktemp("paired")
    number = 0
    for rate in RATES:
        for seed in SEEDS:
            run = Run(folder / "outputs" / "sweeps" / "grid" / str(number))
            train(tiny(folder, name="grid", seed=seed, optimizer__lr=rate, **SHORT), run.folder)
            overrides = [f"optimizer.lr={rate}", f"seed={seed}", "name=grid"]
            run.job_path.write_text(json.dumps({"overrides": overrides, "failed": None}))
            number += 1
    return folder


SHORT = {"train__max_steps": 6, "train__val_every": 6, "schedule__warmup_steps": 2}


@pytest.fixture
def grid(folder: Path, tmp_path: Path) -> Path:
    """A copy of the sweep, in which a test may change runs."""
    return Path(shutil.copytree(folder / "outputs" / "sweeps" / "grid", tmp_path / "grid"))


def edit(run: Path, **changes: Any) -> None:
    """Change settings, `optimizer__lr=1`, or facts of a run, without the checksum."""
    facts = {key: value for key, value in changes.items() if key in FACTS}
    _rewrite(run / "run.json", facts)
    _rewrite(run / "config.json", {key: value for key, value in changes.items() if key not in FACTS})


FACTS = ("status", "error", "step", "data_fingerprint", "base", "forked_from")


def _rewrite(path: Path, changes: dict[str, Any]) -> None:
    record = json.loads(path.read_text())
    record.pop(CHECKSUM, None)
    for key, value in changes.items():
        group, _, inner = key.partition("__")
        if inner:
            record[group][inner] = value
        else:
            record[key] = value
    path.write_text(json.dumps(record))


@pytest.mark.slow
def test_a_folder_with_two_groups_gives_their_pairs_by_seed(grid: Path) -> None:
    pairs = find_pairs([str(grid)], Path("outputs"))
    assert pairs.names == (f"{grid}:optimizer.lr=0.001", f"{grid}:optimizer.lr=0.01")
    assert pairs.seeds == [0, 1, 2]
    assert [(a.folder.name, b.folder.name) for a, b in pairs.runs] == [("0", "3"), ("1", "4"), ("2", "5")]
    assert pairs.changes == ["optimizer.lr: 0.001 -> 0.01"]
    assert pairs.share_batches


@pytest.mark.slow
def test_a_group_is_selected_by_a_value_and_a_single_run_by_its_folder(grid: Path) -> None:
    names = [f"{grid}:optimizer.lr=1e-2", f"{grid}:optimizer.lr=1e-3,seed=1"]
    pairs = find_pairs(names, Path("outputs"))
    assert [(a.folder.name, b.folder.name) for a, b in pairs.runs] == [("4", "1")]
    assert pairs.changes == ["optimizer.lr: 0.01 -> 0.001"]
    single = find_pairs([str(grid / "0"), str(grid / "3")], Path("outputs"))
    assert single.seeds == [0]


def test_runs_that_no_sweep_started_are_selected_by_seed_and_by_the_words_of_the_command_line(grid: Path) -> None:
    for job in grid.glob("*/job.json"):
        job.unlink()
    for choice in ("seed=1", "data.document_mask=false,seed=1", "model.n_kv_head=null,seed=1"):
        pairs = find_pairs([f"{grid}:optimizer.lr=1e-3,{choice}", f"{grid}:optimizer.lr=1e-2"], Path("outputs"))
        assert [(a.folder.name, b.folder.name) for a, b in pairs.runs] == [("1", "4")]


def test_seeds_of_one_variant_alone_are_left_out_and_named(grid: Path, logged: list[str]) -> None:
    shutil.rmtree(grid / "4")
    pairs = find_pairs([str(grid)], Path("outputs"))
    assert pairs.seeds == [0, 2]
    assert any("optimizer.lr=0.001 with seed 1" in line for line in logged)
    for job in ("3", "5"):
        edit(grid / job, seed=7 + int(job))
    with pytest.raises(UserError, match=r"no seed in common \(seeds of the first: 0, 1, 2; of the second: 10, 12\)"):
        find_pairs([f"{grid}:optimizer.lr=1e-3", f"{grid}:optimizer.lr=1e-2"], Path("outputs"))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"train__batch_tokens": 1024},
            "read different batches, because train.batch_tokens differs: 512 -> 1024",
        ),
        (
            {"model__context_length": 64},
            "read different batches, because model.context_length differs: 32 -> 64",
        ),
        (
            {"data__packing": "windows"},
            "read different batches, because data.packing differs: documents -> windows",
        ),
        ({"data_fingerprint": "other"}, "read different batches, because data.source differs: text"),
        ({"train__max_steps": 60}, "differ in 2 settings"),
        ({"schedule__final_ratio": 0.5}, "differ in 2 settings"),
        (
            {"step": 5, "status": "stopped"},
            r"differ in 2 settings \(optimizer.lr: 0.001 -> 0.01; steps: 6 -> 5\)",
        ),
        ({"base": "outputs/other"}, r"init_from: None -> outputs/other"),
        (
            {"forked_from": "outputs/other/checkpoints/step-000003.ckpt"},
            r"ckpt_path: None -> outputs/other/checkpoints/step-000003.ckpt",
        ),
    ],
)
def test_a_pair_that_differs_in_more_is_refused_with_the_setting(
    grid: Path, changes: dict[str, Any], says: str
) -> None:
    for job in ("3", "4", "5"):
        edit(grid / job, **changes)
    with pytest.raises(UserError, match=says):
        find_pairs([f"{grid}:optimizer.lr=1e-3", f"{grid}:optimizer.lr=1e-2"], Path("outputs"))


def test_students_of_different_teachers_differ_in_their_teachers(grid: Path) -> None:
    for job in range(6):
        teachers = ["first" if job < 3 else "second"]
        edit(grid / str(job), optimizer__lr=0.1, distill={"teachers": teachers, "alpha": 0.5, "temperature": 1.0})
    pairs = find_pairs([str(grid / "0"), str(grid / "3")], Path("outputs"))
    assert pairs.changes == ["distill.teachers: first -> second"]


@pytest.mark.parametrize(
    ("group", "key", "values"),
    [
        ("sft", "packing", (False, True)),
        ("sft", "replay_ratio", (0.1, 0.5)),
        ("reinforce", "prompts", (8, 16)),
        ("reinforce", "hard_share", (0.0, 0.5)),
    ],
)
def test_settings_of_fine_tuning_that_change_the_batches_must_be_named(
    grid: Path, group: str, key: str, values: tuple[Any, Any]
) -> None:
    for job, value in (("0", values[0]), ("3", values[1])):
        edit(grid / job, optimizer__lr=1e-3, **{group: {key: value}})
    names = [str(grid / "0"), str(grid / "3")]
    says = f"read different batches, because {group}.{key} differs: {values[0]} -> {values[1]}; .* add --differ-in "
    with pytest.raises(UserError, match=says):
        find_pairs(names, Path("outputs"))
    assert not find_pairs(names, Path("outputs"), [f"{group}.{key}"]).share_batches


def test_the_advice_of_a_refusal_names_all_settings_that_differ(grid: Path) -> None:
    names = [f"{grid}:optimizer.lr=1e-3", f"{grid}:optimizer.lr=1e-2"]
    for job in ("3", "4", "5"):
        edit(grid / job, model__context_length=64)
    with pytest.raises(UserError) as refused:
        find_pairs(names, Path("outputs"))
    advice = re.search(r"add --differ-in (\S+) to", str(refused.value))
    assert advice is not None
    assert find_pairs(names, Path("outputs"), settings_named(advice[1])).seeds == [0, 1, 2]


def test_the_name_of_a_group_may_contain_a_list_or_a_mapping(grid: Path) -> None:
    for job in range(6):
        value = "[0.9,0.95]" if job < 3 else "{a:1,b:2}"
        overrides = [f"optimizer.betas={value}", f"seed={job % 3}"]
        (grid / str(job) / "job.json").write_text(json.dumps({"overrides": overrides, "failed": None}))
    names = [f"{grid}:optimizer.betas=[0.9,0.95]", f"{grid}:optimizer.betas={{a:1,b:2}},seed=1"]
    assert find_pairs(names, Path("outputs")).runs == [(Run(grid / "1"), Run(grid / "4"))]


def test_the_advice_to_narrow_a_group_by_a_list_can_be_pasted(grid: Path) -> None:
    for job in range(6):
        beta = 0.95 if job < 3 else 0.99
        edit(grid / str(job), optimizer__lr=1e-3, optimizer__betas=[0.9, beta])
        overrides = [f"optimizer.betas=[0.9,{beta}]", f"seed={job % 3}"]
        (grid / str(job) / "job.json").write_text(json.dumps({"overrides": overrides, "failed": None}))
    with pytest.raises(UserError) as refused:
        find_pairs([str(grid / "3"), str(grid)], Path("outputs"))
    advised = shlex.split(str(refused.value).rpartition(", give ")[2].rpartition(" instead of ")[0])
    assert find_pairs([str(grid / "3"), *advised], Path("outputs")).runs == [(Run(grid / "3"), Run(grid / "0"))]


def test_settings_that_do_not_change_what_is_learned_may_differ(grid: Path) -> None:
    for job in ("3", "4", "5"):
        edit(grid / job, train__keep_last=7, train__micro_batch_size=4, device__threads=2)
    assert find_pairs([str(grid)], Path("outputs")).changes == ["optimizer.lr: 0.001 -> 0.01"]


def test_the_words_of_two_commands_that_train_the_same_do_not_split_a_variant(grid: Path) -> None:
    for number, rate in (("1", "1e-3"), ("4", "1e-2")):
        words = [f"optimizer.lr={rate}", "seed=1", "device.threads=2", "name=grid", "optimizer.weight_decay=0.1"]
        (grid / number / "job.json").write_text(json.dumps({"overrides": words, "failed": None}))
    pairs = find_pairs([str(grid)], Path("outputs"))
    assert (pairs.seeds, pairs.changes) == ([0, 1, 2], ["optimizer.lr: 0.001 -> 0.01"])


def test_jobs_that_a_command_without_init_from_started_are_selected_by_null(grid: Path) -> None:
    for number in "345":
        edit(grid / number, base="outputs/other", init_from="outputs/other", optimizer__lr=1e-3)
        words = ["init_from=outputs/other", f"seed={int(number) - 3}"]
        (grid / number / "job.json").write_text(json.dumps({"overrides": words, "failed": None}))
    names = [f"{grid}:init_from=null", f"{grid}:init_from=outputs/other"]
    assert find_pairs(names, Path("outputs")).changes == ["init_from: None -> outputs/other"]


def test_named_settings_may_differ_together_and_no_others(grid: Path) -> None:
    names = [f"{grid}:optimizer.lr=1e-3", f"{grid}:optimizer.lr=1e-2"]
    for job in ("3", "4", "5"):
        edit(grid / job, optimizer__weight_decay=0.5, model__context_length=64)
    both = settings_named("optimizer, model.context_length")
    pairs = find_pairs(names, Path("outputs"), both)
    assert len(pairs.changes) == 3
    assert not pairs.share_batches
    with pytest.raises(UserError, match=r"because model\.context_length differs"):
        find_pairs(names, Path("outputs"), ["optimizer"])
    edit(grid / "4", train__grad_clip=0.1)
    with pytest.raises(UserError, match=r"not one variant: train\.grad_clip is"):
        find_pairs(names, Path("outputs"), both)
    with pytest.raises(UserError, match=r"did you mean optimizer.lr\?"):
        settings_named("optimizer.lrr")


def test_runs_with_a_time_limit_are_compared_if_their_steps_may_differ(grid: Path) -> None:
    for job, step in zip("012345", (5, 6, 6, 3, 4, 6), strict=True):
        edit(grid / job, step=step, status="stopped")
    pairs = find_pairs([str(grid)], Path("outputs"), ["optimizer.lr", "steps"])
    assert pairs.changes == ["optimizer.lr: 0.001 -> 0.01", "steps: 5 to 6 -> 3 to 6"]
    with pytest.raises(
        UserError, match=r"steps is 5 in \S+ and 6 in \S+; if a limit ended these runs early, name steps"
    ):
        find_pairs([str(grid)], Path("outputs"))


def test_the_step_at_which_early_stopping_ends_a_run_is_no_setting(grid: Path) -> None:
    for job, step in zip("012345", (5, 6, 4, 3, 6, 2), strict=True):
        edit(grid / job, step=step)
    pairs = find_pairs([f"{grid}:optimizer.lr=1e-3", f"{grid}:optimizer.lr=1e-2"], Path("outputs"))
    assert (pairs.seeds, pairs.changes) == ([0, 1, 2], ["optimizer.lr: 0.001 -> 0.01"])


def test_a_run_that_ended_because_of_its_result_is_not_left_out_in_silence(grid: Path, logged: list[str]) -> None:
    edit(grid / "3", status="running")
    assert find_pairs([str(grid)], Path("outputs")).seeds == [1, 2]
    assert any("grid/3, because its training is not finished" in line for line in logged)
    remedies = {
        "diverged": "with lower learning rates",
        "pruned": "without sweep.prune=median",
        "failed": "with the same command",
    }
    for status, has_checkpoint in (("diverged", True), ("pruned", True), ("failed", True), ("diverged", False)):
        edit(grid / "5", status=status)
        if not has_checkpoint:  # most runs that diverge have not saved one
            shutil.rmtree(grid / "5" / "checkpoints")
        with pytest.raises(
            UserError,
            match=f"ended with the status {status}, and without this run, its variant .*: .*{remedies[status]}",
        ):
            find_pairs([str(grid)], Path("outputs"))


def test_what_is_not_two_variants_is_refused(grid: Path) -> None:
    def refuse(names: list[str], says: str) -> None:
        with pytest.raises(UserError, match=says):
            find_pairs(names, Path("outputs"))

    refuse([str(grid / "0"), str(grid / "0")], "have the same settings")
    refuse([str(grid / "0")], r"but only \S+ was found: name a second run or folder, too")
    refuse([str(grid)] * 3, "3 names were given")
    refuse(
        [str(grid), str(grid / "3")],
        r"are not one variant: optimizer.lr is 0.001 in \S+ and 0.01 in \S+; to choose the runs with one",
    )
    refuse(
        [f"{grid}:seed=0", str(grid / "3")],
        rf"to choose the runs with one of these values, give {grid}:seed=0,optimizer.lr=0.001 instead of {grid}:seed=0$",
    )
    for choice, says in {
        "optimizer.lr=5": "selects no run: optimizer.lr is 0.001 or 0.01 in these runs, not 5",
        "optimizer.lr=1e-3,seed=9": "selects no run: seed is 0 or 1 or 2 in these runs, not 9",
        "optimizer.lrr=1": "unknown key optimizer.lrr: did you mean optimizer.lr",
        "device.threads=2": "device.threads does not change what a run learns",
        "=1": "does not name runs: write FOLDER:KEY=VALUE",
        "optimizer.lr=1e-3,seed": "optimizer.lr is 0.001 or 0.01 in these runs, not 1e-3,seed",
        "model=nano": "model is a group: give one of its settings, such as model.",
    }.items():
        refuse([f"{grid}:{choice}", str(grid / "3")], says)
    shutil.copytree(grid / "0", grid / "6")
    refuse(
        [str(grid)], r"must have one run per seed, but \S+ and \S+ both have the seed 0 and the same settings: move one"
    )
    edit(grid / "6", data_fingerprint="other")
    refuse([f"{grid}:optimizer.lr=1e-3", str(grid / "3")], "; name a folder that has only the runs of one variant$")
    edit(grid / "6", data_fingerprint=Run(grid / "0").facts().data_fingerprint, optimizer__lr=0.1)
    with pytest.raises(
        UserError,
        match=rf"different optimizer.lr: .*, give {grid}:optimizer.lr=0.001 instead of {grid}$",
    ):
        find_pairs([str(grid), str(grid / "3")], Path("outputs"), ["optimizer.lr"])
    (grid / "6" / "job.json").write_text(json.dumps({"overrides": ["optimizer.lr=0.1", "seed=0"], "failed": None}))
    refuse([str(grid)], r"form 3 variants .*:optimizer.lr=0.1\), but --paired compares two: name two of these variants")


def test_other_code_and_hardware_are_named(grid: Path) -> None:
    provenance = json.loads((grid / "3" / "provenance.json").read_text())
    provenance.pop(CHECKSUM, None)
    provenance["environments"][0]["versions"]["torch"] = "1.0"
    (grid / "3" / "provenance.json").write_text(json.dumps(provenance))
    pairs = find_pairs([str(grid)], Path("outputs"))
    assert any(text.startswith("versions.torch: ") and text.endswith(" -> 1.0") for text in pairs.surroundings)
    assert len(pairs.surroundings) == 1


def pairs_of(seeds: int) -> Pairs:
    return Pairs(("A", "B"), list(range(seeds)), [], ["x: 1 -> 2"], [], True)


def simulated(rng: np.random.Generator, seeds: int, documents: int, truth: float) -> list[tuple[Documents, Documents]]:
    """Scores whose expected difference is `truth` bits per byte, with noise of seeds, of documents, and of both together."""
    sizes = rng.integers(100, 400, documents)
    level, effect = rng.normal(1, 0.3, documents), rng.normal(truth, 0.02, documents)
    scored = []
    for shift in rng.normal(0, 0.003, seeds):
        sides = []
        for gain in (0.0, 1.0):
            bits = sizes * (level + gain * (effect + shift) + rng.normal(0, 0.01, documents))
            sides.append([[Score(float(b) * math.log(2), int(n), int(n))] for b, n in zip(bits, sizes, strict=True)])
        scored.append((sides[0], sides[1]))
    return scored


def test_the_interval_over_documents_is_that_of_a_bootstrap_of_documents_with_all_their_seeds() -> None:
    rng = np.random.default_rng(5)
    scored = simulated(rng, 4, 200, -0.01)
    result = compare_scores(pairs_of(4), scored)
    units = [total(scores) for scores in mean_differences(scored)]
    bits, sizes = np.array([u.nats / math.log(2) for u in units]), np.array([u.bytes for u in units])
    assert result.difference == pytest.approx(bits.sum() / sizes.sum(), rel=1e-9)
    drawn = np.random.default_rng(0).integers(0, 200, (4000, 200))
    ratios = bits[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    assert result.half_over_documents == pytest.approx((high - low) / 2, rel=0.05)
    assert result.documents == "200 documents"


@pytest.mark.slow
def test_both_intervals_hold_the_truth_19_times_of_20() -> None:
    """Each over what it is about: the documents of the one are drawn anew, with the seeds fixed, and the reverse."""
    rng = np.random.default_rng(6)
    hits = {"documents": 0, "seeds": 0}
    for _ in range(100):
        scored = simulated(rng, 1, 60, -0.01)
        # the truth for this seed: what the documents have in common
        result = compare_scores(pairs_of(1), scored)
        assert result.half_over_documents is not None
        assert result.half_over_seeds is None
        hits["documents"] += abs(result.difference + 0.01) <= math.hypot(result.half_over_documents, 2 * 0.003)
        seeds = compare_scores(pairs_of(5), simulated(rng, 5, 60, -0.01))
        assert seeds.half_over_seeds is not None
        assert seeds.half_over_documents is not None
        hits["seeds"] += abs(seeds.difference + 0.01) <= seeds.half_over_seeds + seeds.half_over_documents
    assert hits["documents"] > 88
    assert hits["seeds"] > 88


def test_the_figures_are_those_of_scipy_and_pairing_sees_what_separate_means_do_not() -> None:
    scored = simulated(np.random.default_rng(7), 6, 100, -0.01)
    result = compare_scores(pairs_of(6), scored)
    a, b = np.array(result.bpb_a), np.array(result.bpb_b)
    expected = scipy.stats.ttest_rel(b, a)
    assert result.p_t_test == pytest.approx(expected.pvalue, rel=1e-9)
    assert result.difference == pytest.approx((b - a).mean(), rel=1e-9)
    assert result.bytes == sum(scores[0].bytes for scores in scored[0][0])
    text = as_text(result)
    assert f"{result.difference:+.5f} bits per byte" in text
    assert "6 pairs cannot give less than 0.031" in text


def test_documents_that_the_variants_cut_differently_have_one_difference_each() -> None:
    """Another tokenizer or context gives other windows; the sums are those of the documents."""
    a: Documents = [[Score(3.0, 10, 4), Score(5.0, 12, 4)], [Score(2.0, 7, 2)]]
    b: Documents = [[Score(7.0, 22, 8)], [Score(1.5, 7, 2)]]
    assert mean_differences([(a, b)]) == [[Score(-1.0, 22, 8)], [Score(-0.5, 7, 2)]]
    same = mean_differences([(a, a), (a, [[Score(4.0, 10, 4), Score(5.0, 12, 4)], [Score(2.0, 7, 2)]])])
    assert same == [[Score(0.5, 10, 4), Score(0.0, 12, 4)], [Score(0.0, 7, 2)]]


def test_the_command_reports_pairs_as_text_json_and_a_row_of_the_log(
    run_command: Callable[..., Result], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("compare", "--paired", "sweeps/grid", "--limit", "3000")
    shown = run_command(*arguments, folder=folder)
    assert shown.code == 0, shown.err
    for word in ("optimizer.lr: 0.001 -> 0.01", "over seeds", "over documents", "paired t-test", "further seeds"):
        assert word in shown.out
    result = json.loads(run_command(*arguments, "--json", folder=folder).out)
    monkeypatch.chdir(folder)  # the runs name their token files relative to it
    run = Run(Path("outputs/sweeps/grid/4"))
    model, tokenizer, _ = load_model(run)
    own = total(score_documents(model, tokenizer, texts_of_run(run, "val", 3000)))
    assert result["bpb_b"][1] == pytest.approx(own.bpb, rel=1e-12)
    differences = [b - a for a, b in zip(result["bpb_a"], result["bpb_b"], strict=True)]
    assert result["difference"] == pytest.approx(statistics.fmean(differences), rel=1e-12)
    row = json.loads(run_command(*arguments, "--log-row", folder=folder).out)
    assert set(row["machine"]) == {"cpu", "cores", "torch"}
    lines = table(row).splitlines()
    assert len(lines) == 3
    assert lines[2].startswith("| optimizer.lr: 0.001 -> 0.01 | 3 | ")
    assert f"{result['difference']:.4f} ± {result['half_over_seeds']:.4f}" in lines[2]


def test_the_command_refuses_in_one_line(run_command: Callable[..., Result], folder: Path) -> None:
    grid = folder / "outputs" / "sweeps" / "grid"
    other = folder / "outputs" / "other"
    if not other.exists():
        config = tiny(folder, name="other", seed=0, **SHORT)
        train(dataclasses.replace(config, data=dataclasses.replace(config.data, seed=3)), other)
    for arguments, says in (
        (("--paired",), "name two runs"),
        (("--paired", "sweeps/grid", "--csv"), "--paired does not use --csv"),
        (("--paired", "sweeps/grid", "--prompt", "x"), "--paired does not use --prompt"),
        (("sweeps/grid", "--log-row"), "add --paired"),
        (("sweeps/grid:optimizer.lr=1e-3",), "which only --paired reads: add --paired"),
        (
            ("--paired", str(grid / "0"), "other"),
            "read different batches, because data.seed differs: 0 -> 3",
        ),
        (
            ("--paired", str(grid / "0"), "other", "--differ-in", "data.seed,optimizer.lr"),
            "have different validation texts",
        ),
    ):
        result = run_command("compare", *arguments, folder=folder)
        assert result.code == 2, result.err
        assert says in result.err.splitlines()[-1]


def test_two_texts_are_named_by_their_files_if_these_differ(tmp_path: Path) -> None:
    def changes(*paths: str | None) -> dict[str, tuple[Any, Any]]:
        first, second = (
            Member(Run(tmp_path / name), 0, {"data.path": path}, {}, name * 20)
            for name, path in zip("ab", paths, strict=True)
        )
        return _differences(first, second, (), in_group=False)

    assert changes("old.txt", "new.txt") == {"data.path": ("old.txt", "new.txt")}
    assert changes("my.txt", "my.txt") == {"data.path": ("text aaaaaaaaaaaa", "text bbbbbbbbbbbb")}
    assert changes(None, None) == {"data.source": ("text aaaaaaaaaaaa", "text bbbbbbbbbbbb")}
