"""Distillation: the objective, its teachers, and runs that are pretraining runs in everything but their loss."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import CommandProcess, tiny
from traces import assert_same_trace, same, weights
from two_processes import assert_learned_the_same, with_one_and_two

import positron
from positron.config import DistillConfig, GPTConfig, RunConfig
from positron.data.corpus import prepare
from positron.distill import distill
from positron.model.gpt import GPT, document_numbers
from positron.run.base import base_of, tokens_seen
from positron.run.checkpoint import checkpoints, load_checkpoint
from positron.run.folder import Run
from positron.run.load import load_model
from positron.run.metrics import read_metrics
from positron.run.provenance import read_provenance, start_of
from positron.system.errors import UserError
from positron.text.char_word import CharTokenizer
from positron.text.tokenizer import END_OF_TEXT
from positron.train import train
from positron.training import teachers
from positron.training.budget.speed import SpeedMeasurement
from positron.training.device import choose_machine
from positron.training.objective.distill import DistillObjective, Teachers
from positron.training.objective.reference import hash_of_weights
from positron.training.resume import Start
from positron.training.teachers import is_masked

STEPS = 20


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two teachers, which differ in their initial weights and the order of the text."""
    folder = tmp_path_factory.mktemp("teachers")
    for seed, name in enumerate(("a", "b")):
        train(tiny(folder, train__max_steps=STEPS, seed=seed), folder / name)
    return folder


@pytest.fixture
def command_folder(place: Path, tmp_path: Path) -> Path:
    """The current folder of commands, with both teachers in its outputs/."""
    for name in ("a", "b"):
        shutil.copytree(place / name, tmp_path / "outputs" / name)
    return tmp_path


def student(place: Path, *names: str, alpha: float = 0.5, temperature: float = 1.0, **changes: Any) -> RunConfig:
    """A run of 20 steps that learns from the teachers `names`, by default from `a`."""
    teachers = tuple(str(place / name) for name in names or ("a",))
    settings = DistillConfig(teachers, alpha, temperature)
    return tiny(place, train__max_steps=STEPS, seed=7, distill=settings, **changes)


def objective_of(
    place: Path, *teachers: GPT, alpha: float, temperature: float = 1.0, mask: bool = False
) -> DistillObjective:
    masks = [mask] * len(teachers)
    config = tiny(place)
    tokenizer, tokens = prepare(config.data, config.tokenizer, None)
    sizes = {"context": 32, "batch_size": 16, "micro_batch_size": 8, "seed": 1, "val_tokens": 1000}
    settings = DistillConfig(("a",), alpha, temperature)
    return DistillObjective(
        config.data, tokens, tokenizer, settings=settings, teachers=Teachers(teachers, [], masks), **sizes
    )


@pytest.mark.slow
def test_without_weight_of_the_teachers_a_run_is_pretraining_bit_for_bit(place: Path, tmp_path: Path) -> None:
    changes = {"model__dropout": 0.1, "train__micro_batch_size": 5}
    train(dataclasses.replace(student(place, **changes), distill=None), tmp_path / "trained")
    distill(student(place, "a", "b", alpha=0, temperature=3, **changes), tmp_path / "distilled")
    assert same(tmp_path / "distilled", tmp_path / "trained")
    last = read_metrics(tmp_path / "distilled" / "metrics.jsonl")[-1]
    assert last["train/ce"] == pytest.approx(last["train/loss"], rel=1e-6)
    assert last["train/kl"] > 0


def test_a_student_that_equals_its_teacher_has_no_divergence_and_gets_no_gradient(place: Path) -> None:
    model, twin = (load_model(Run(place / "a"))[0] for _ in range(2))
    objective = objective_of(place, twin, alpha=1.0, temperature=2.0)
    part = objective.examples(model, objective.batch(1, 0, 1), 1, 0, 1, lambda: None)[0]
    loss = objective.loss(model.train(), part)
    loss.backward()
    assert loss.item() == 0
    assert objective.loss_terms()["train/kl"] == 0
    assert all((parameter.grad == 0).all() for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in twin.parameters())


def test_teachers_compute_in_the_precision_of_the_training(place: Path) -> None:
    """In bf16 the kernels with and without gradients round differently, but hardly: in fp32 the teacher would differ more."""
    model, twin = (load_model(Run(place / "a"))[0] for _ in range(2))
    objective = objective_of(place, twin, alpha=1.0)
    part = objective.batch(1, 0, 1)[0]
    exact = model.hidden(part[0])
    with torch.autocast("cpu", torch.bfloat16):
        states, _ = objective._states(part[0], None)[0]
        assert objective.loss(model, part).item() / part[1].numel() < 1e-6
    assert not torch.equal(states, exact.flatten(0, 1))


def test_a_teacher_that_was_trained_inside_documents_reads_inside_them_for_every_student(
    place: Path, tmp_path: Path
) -> None:
    teacher = load_model(Run(place / "a"))[0]
    objective = objective_of(place, teacher, alpha=1.0, mask=True)
    x, _ = objective.batch(1, 0, 1)[0]
    x[:, 10] = objective.tokenizer.special_id(END_OF_TEXT)  # a document begins in the middle of each window
    inside = document_numbers(x, objective.tokenizer.special_id(END_OF_TEXT))
    states, _ = objective._states(x, None)[0]
    assert torch.equal(states, teacher.hidden(x, inside).flatten(0, 1))
    assert not torch.equal(states, teacher.hidden(x).flatten(0, 1))
    shutil.copytree(place / "a", tmp_path / "masked")
    config = tmp_path / "masked" / "config.json"
    config.write_text(config.read_text().replace('"document_mask": false', '"document_mask": true'))
    assert [is_masked(Run(folder)) for folder in (place / "a", tmp_path / "masked")] == [False, True]


def test_the_loss_is_the_sum_of_its_terms_and_falls(place: Path, tmp_path: Path) -> None:
    facts = distill(student(place, "a", "b", alpha=0.7, temperature=2.0), tmp_path / "run")
    assert (facts.kind, facts.status, facts.base) == ("distillation", "finished", None)
    hashes = [hash_of_weights(load_model(Run(place / name))[0].state_dict()) for name in ("a", "b")]
    assert facts.teachers == start_of(read_provenance(tmp_path / "run"), 1)["teachers"] == " ".join(hashes)
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    for row in rows:
        assert row["train/loss"] == pytest.approx(0.3 * row["train/ce"] + 0.7 * 4 * row["train/kl"], rel=1e-5)
    for term in ("train/ce", "train/kl"):
        assert rows[-1][term] < rows[0][term]
    assert facts.val_bpb is not None
    assert facts.floor_bpb is not None
    assert facts.val_bpb > facts.floor_bpb


def test_learning_from_a_teacher_alone_approaches_the_teacher(place: Path, tmp_path: Path) -> None:
    """Without any target of the text, the validation loss approaches that of the teacher."""
    distill(student(place, alpha=1.0), tmp_path / "run")
    rows = [row for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if "val/loss" in row]
    teacher = Run(place / "a").facts().val_loss
    assert teacher is not None
    assert abs(rows[-1]["val/loss"] - teacher) < 0.05
    assert rows[-1]["train/kl"] < 0.05


@pytest.mark.slow
def test_micro_batches_change_nothing_but_rounding(place: Path, tmp_path: Path) -> None:
    for size in (16, 3):
        distill(student(place, "a", "b", train__micro_batch_size=size), tmp_path / str(size))
    assert_same_trace(tmp_path / "3", tmp_path / "16")
    for ours, theirs in zip(*(read_metrics(tmp_path / name / "metrics.jsonl") for name in ("3", "16")), strict=True):
        for term in ("train/ce", "train/kl"):
            assert ours[term] == pytest.approx(theirs[term], rel=1e-3)


@pytest.mark.slow
def test_a_run_in_chunks_is_bit_identical_to_one_in_one_piece(place: Path, tmp_path: Path) -> None:
    config = student(place, "a", "b", temperature=2.0, model__dropout=0.1, train__micro_batch_size=5)
    distill(config, tmp_path / "whole")
    for stop in (6, 10, None):
        train_config = dataclasses.replace(config.train, stop_at=stop)
        distill(dataclasses.replace(config, train=train_config), tmp_path / "parts")
    timing = {"time_s": 0, "speed/tokens_per_s": 0, "speed/mfu": 0, "memory/peak_gb": 0}
    whole, parts = (
        [{**row, **timing} for row in read_metrics(tmp_path / name / "metrics.jsonl") if row["step"] not in (6, 10)]
        for name in ("whole", "parts")
    )  # a run that stops also validates
    assert len(whole) == STEPS - 2
    assert whole == parts
    a, b = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_teachers_are_neither_changed_nor_saved(place: Path, tmp_path: Path) -> None:
    def contents() -> dict[Path, str]:
        files = [path for name in ("a", "b") for path in (place / name).rglob("*") if path.is_file()]
        return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    before = contents()
    config = student(place, "a", "b", model__d_model=16, model__n_layer=1)
    distill(config, tmp_path / "run")
    assert contents() == before
    saved = load_checkpoint(checkpoints(tmp_path / "run" / "checkpoints")[-1])
    model, tokenizer, _ = load_model(Run(tmp_path / "run"))
    names = [name.removeprefix("model.") for name in saved["state_dict"]]
    assert sorted(names) == sorted(model.state_dict())
    assert len(saved["optimizer_states"][0]["state"]) == len(list(model.parameters()))
    assert tokenizer.hash == load_model(Run(place / "a"))[1].hash


def test_a_teacher_that_still_trains_is_read_only_once(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(place / "a", tmp_path / "a")
    weights = tmp_path / "a" / "checkpoints" / "best.ckpt"

    def build_and_replace(config: GPTConfig) -> GPT:
        weights.unlink(missing_ok=True)
        shutil.copy(place / "b" / "checkpoints" / "best.ckpt", weights)
        return GPT(config)

    config = student(tmp_path, data=tiny(place).data)
    machine = choose_machine(config.device, config.precision)
    session: Any = SimpleNamespace(config=config, start=Start(), run=Run(tmp_path / "run"), machine=machine)
    monkeypatch.setattr("positron.model.gpt.GPT", build_and_replace)
    read, _ = teachers.open_teachers(session)
    assert read.hashes == [hash_of_weights(read.models[0].state_dict())]
    assert not torch.equal(read.models[0].wte.weight, load_model(Run(place / "b"))[0].wte.weight)


@pytest.mark.slow
def test_a_teacher_that_has_changed_is_refused_when_the_run_continues(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "a", tmp_path / "a")
    config = student(tmp_path, data=tiny(place).data)
    distill(dataclasses.replace(config, train=dataclasses.replace(config.train, stop_at=5)), tmp_path / "run")
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    kept = tmp_path / "kept"
    (tmp_path / "a").rename(kept)
    with pytest.raises(UserError, match="there is no run"):
        distill(config, tmp_path / "run")
    shutil.copytree(place / "b", tmp_path / "a")
    with pytest.raises(
        UserError, match=r"the weights of the teacher .*a have changed since .*run began: restore the teacher"
    ):
        distill(config, tmp_path / "run")
    other = dataclasses.replace(config, distill=DistillConfig((str(place / "b"),)))
    with pytest.raises(UserError, match=r"run did not begin with the teacher .*b: give teachers=.*a, or another name="):
        distill(other, tmp_path / "run")
    two = dataclasses.replace(config, distill=DistillConfig((str(kept), str(place / "b"))))
    with pytest.raises(UserError, match=r"began with 1 teacher, not 2: give teachers=.*a, or another name="):
        distill(two, tmp_path / "run")
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    moved = dataclasses.replace(config, distill=DistillConfig((str(kept),)))
    assert distill(moved, tmp_path / "run").status == "finished"  # the weights count, not the path


@pytest.mark.slow
def test_teachers_in_another_order_continue_the_run_bit_for_bit(place: Path, tmp_path: Path) -> None:
    config = student(place, "a", "b")
    distill(config, tmp_path / "whole")
    distill(dataclasses.replace(config, train=dataclasses.replace(config.train, stop_at=8)), tmp_path / "turned")
    distill(student(place, "b", "a"), tmp_path / "turned")
    turned, whole = weights(tmp_path / "turned"), weights(tmp_path / "whole")
    assert all(torch.equal(turned[name], whole[name]) for name in whole)


@pytest.mark.slow
def test_a_finished_student_does_not_need_its_teachers_until_it_is_extended(
    command_folder: Path, run_command: Callable[..., Any]
) -> None:
    words = ("distill", "teachers=a,b", *SMALL, "name=s", "model.n_layer=1")
    assert run_command(*words).code == 0
    outputs = command_folder / "outputs"
    hashes = Run(outputs / "s").facts().teachers
    shutil.rmtree(outputs / "a")
    shutil.copytree(outputs / "b", outputs / "a")  # other weights, as after more training
    again = run_command(*words)
    assert (again.code, "nothing to do: outputs/s is at step 4 of 4" in again.err) == (0, True), again.err
    shutil.rmtree(outputs / "a")
    again = run_command(*words)
    assert (again.code, "nothing to do: outputs/s is at step 4 of 4" in again.err) == (0, True), again.err
    assert Run(outputs / "s").facts().teachers == hashes
    for more in (("train.max_steps=6", "train.extend=true"), ("name=t",), ("teachers=a",)):
        refused = run_command(*words, *more)
        assert refused.code == 2
        assert "there is no run a" in refused.err.replace("outputs/", "")


def test_a_teacher_whose_training_has_not_ended_is_named(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "a", tmp_path / "a")
    Run(tmp_path / "a").update(status="stopped")
    shutil.copytree(place / "b", tmp_path / "b")
    distill(student(tmp_path, "a", "b", data=tiny(place).data), tmp_path / "run")
    log = (tmp_path / "run" / "train.log").read_text()
    assert f"the training of the teacher {tmp_path / 'a'} has not ended" in log
    assert f"the training of the teacher {tmp_path / 'b'} has not ended" not in log


def test_teachers_that_do_not_fit_are_refused_before_the_run_begins(place: Path, tmp_path: Path) -> None:
    other = tiny(
        tmp_path, train__max_steps=2, tokenizer=dataclasses.replace(tiny(place).tokenizer, kind="word", vocab_size=50)
    )
    train(other, tmp_path / "words")
    shutil.copytree(place / "a", tmp_path / "a")
    (tmp_path / "new" / "checkpoints").mkdir(parents=True)
    for name in ("config.json", "run.json"):
        shutil.copy(place / "a" / name, tmp_path / "new")
    for config, said in (
        (student(tmp_path, "a", "words"), r"a and .*words have different tokenizers, so"),
        (
            student(tmp_path, model__context_length=64),
            r"model.context_length=64 is longer than the 32 tokens that .*a reads",
        ),
        (student(tmp_path, "new"), "new has no checkpoint yet: train it first"),
    ):
        with pytest.raises(UserError, match=said) as error:
            distill(config, tmp_path / "run")
        assert "\n" not in str(error.value)
        assert not (tmp_path / "run").exists()


def test_a_run_that_starts_from_weights_of_another_tokenizer_is_refused(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "a", tmp_path / "a")
    CharTokenizer("abc").save(tmp_path / "a" / "tokenizer")
    config = dataclasses.replace(student(place), init_from=str(tmp_path / "a"))
    with pytest.raises(UserError, match="have different tokenizers, so"):
        distill(config, tmp_path / "run")


def test_the_settings_of_distillation_are_checked() -> None:
    for wrong, said in (
        ({"alpha": -0.1}, "distill.alpha=-0.1 must be at least 0 and at most 1"),
        ({"alpha": 1.1}, "distill.alpha=1.1 must be at least 0 and at most 1"),
        ({"temperature": 0.0}, "distill.temperature=0.0 must be positive"),
        ({"teachers": ()}, "needs teachers=RUN"),
    ):
        with pytest.raises(UserError) as error:
            DistillConfig(**{"teachers": ("a",), **wrong})
        assert said in str(error.value)


def test_a_time_budget_is_measured_with_the_teachers(place: Path) -> None:
    calls = []

    class Counted(GPT):
        def hidden(self, *arguments: Any) -> torch.Tensor:
            calls.append(1)
            return super().hidden(*arguments)

    config = tiny(place)
    tokenizer, tokens = prepare(config.data, config.tokenizer, None)
    gpt: GPTConfig = config.model.with_vocab(tokenizer.vocab_size)
    teachers = Teachers([Counted(gpt).eval()], [], [False])
    learning = functools.partial(DistillObjective, settings=DistillConfig(("a",)), teachers=teachers)
    machine = choose_machine(config.device, config.precision)
    measurement = SpeedMeasurement(config, machine, tokenizer, tokens, learning)
    with measurement.data() as data:
        measurement.train(gpt, data, 0.0, 1e-3)
    assert calls


FAST = (
    "train.max_steps=4",
    "train.batch_tokens=512",
    "train.log_every=1",
    "train.val_every=2",
    "train.val_tokens=2000",
)
SMALL = (*FAST, "train.sample_tokens=4", "device=cpu", "precision=fp32")


def test_the_distill_command_takes_model_and_text_of_the_first_teacher(
    command_folder: Path, run_command: Callable[..., Any]
) -> None:
    made = run_command("distill", "teachers=b,a", *SMALL, "name=s", "model.n_layer=1", whole=True)
    assert made.code == 0, made.err
    assert "teacher outputs/b: " in made.err
    assert "KL divergence" in (command_folder / "outputs" / "s" / "report.html").read_text()
    run, teacher = Run(command_folder / "outputs" / "s"), Run(command_folder / "outputs" / "b")
    assert (run.kind, run.base, base_of(run), tokens_seen(run)) == ("distillation", None, None, 4 * 512)
    config, of_teacher = run.settings(), teacher.settings()
    assert config.distill == DistillConfig(("outputs/b", "outputs/a"))
    assert config.model == dataclasses.replace(of_teacher.model, n_layer=1)
    assert (config.data, config.tokenizer) == (of_teacher.data, of_teacher.tokenizer)
    again = run_command("distill", "--teachers", "b,a", *SMALL, "name=s", "model.n_layer=1")
    assert again.code == 0, again.err
    assert "nothing to do: outputs/s is at step 4 of 4" in again.err
    for command, arguments, said in (
        ("reproduce", ("s", "--whole"), "identical: logged steps 1 to 4"),
        ("evaluate", ("--run", "s", "--limit", "2000"), "bits per byte"),
        ("compare", ("s", "b", "--limit", "2000"), "outputs/s"),
        ("generate", ("Tom", "--run", "s", "--max-tokens", "3"), "Tom"),
        ("export", ("s", "--to", "safetensors"), "outputs/s"),
    ):
        result = run_command(command, *arguments)
        assert result.code == 0, (command, result.err)
        assert said in result.out + result.err, command


def test_the_mistakes_of_a_distill_command_are_named(command_folder: Path, run_command: Callable[..., Any]) -> None:
    for words, said in (
        (("name=w",), "needs teachers=RUN"),
        (("teachers=a,nobody",), "there is no run nobody"),
        (
            ("teachers=a,outputs/a",),
            "outputs/a is named twice, so it would count twice in the mean",
        ),
        (("teachers=a", "name=a"), "outputs/a is a teacher, which is never changed: give the new run another name="),
        (
            ("teachers=a", "tokenizer=word"),
            "takes the tokenizer of the runs that teachers= names: leave tokenizer= out",
        ),
        (
            ("teachers=a", "model=debug"),
            "model.context_length=64 is longer than the 32 tokens that the teacher outputs/a",
        ),
        (("teachers=a", "data=story_instruct"), "distillation learns from text and teachers"),
        (("teachers=a", "alpha=0.3"), "did you mean distill.alpha?"),
        (("teachers=a", "--temperature=2"), "distill.temperature="),
        (("teachers=a", "teacher=b"), "did you mean distill.teachers?"),
        (("teachers=a", "sft.epochs=2"), "sft.epochs= is read by"),
        (("teachers=a", "device.compile=true"), "device.compile=true is not supported by"),
        (("teachers=a", "budget=1m", "train.max_steps=5"), "give only one of budget= and train.max_steps="),
    ):
        failed = run_command("distill", *words)
        assert failed.code == 2, failed.err
        assert said in failed.err.splitlines()[-1]
        assert failed.err.count("\n") == 1, failed.err
    elsewhere = run_command("train", "teachers=a")
    assert (elsewhere.code, "distill.teachers= is read by" in elsewhere.err) == (2, True)


def test_a_tuned_teacher_lends_the_text_of_its_base_and_an_unknown_address_is_not_opened(
    command_folder: Path, run_command: Callable[..., Any]
) -> None:
    tuned = command_folder / "outputs" / "tuned"
    shutil.copytree(command_folder / "outputs" / "a", tuned)
    facts, config = (json.loads((tuned / name).read_text()) for name in ("run.json", "config.json"))
    for record in (facts, config):
        del record["checksum"]
    (tuned / "run.json").write_text(json.dumps({**facts, "kind": "sft", "base": "outputs/a"}))
    (tuned / "config.json").write_text(json.dumps({**config, "data": {"source": "story_instruct"}}))
    made = run_command("distill", "teachers=tuned", *SMALL, "train.max_steps=1", "name=s")
    assert made.code == 0, made.err
    base = Run(command_folder / "outputs" / "a").settings()
    assert Run(command_folder / "outputs" / "s").settings().data == base.data

    strange = command_folder / "outputs" / "a" / "config.json"
    record = {**config, "data": {"source": "text", "url": "https://example.org/secret.txt"}}
    strange.write_text(json.dumps(record))
    refused = run_command("distill", "teachers=a", *SMALL, "name=t")
    assert refused.code == 2
    assert "does not download this text automatically" in refused.err


@pytest.fixture
def in_folder(command_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(command_folder)
    return command_folder


def test_python_distills_from_runs_names_and_lists(in_folder: Path) -> None:
    settings = {"max_steps": 2, "batch_tokens": 512, "val_tokens": 1000, "device": "cpu", "precision": "fp32"}
    run = positron.distill([Run(in_folder / "outputs" / "a"), "b"], alpha=0.9, name="s", **settings)
    assert run.facts().status == "finished"
    assert run.settings().distill == DistillConfig(("outputs/a", "outputs/b"), alpha=0.9)
    texts = [f"The cat number {i} sat on the mat and looked at the moon." for i in range(200)]
    small = positron.distill("a", model="debug", data=texts, name="t", context_length=32, **settings)
    assert small.settings().data.source == "text"
    assert small.settings().model.d_model != run.settings().model.d_model
    for wrong, says in (([], "the list of runs is empty"), (None, "None is of type NoneType, not a run")):
        with pytest.raises(UserError, match=says):
            positron.distill(wrong)


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(
    start: Callable[..., CommandProcess], command_folder: Path, place: Path
) -> None:
    settings = ("teachers=a,b", "distill.temperature=2", "train.micro_batch_size=4", "train.sample_tokens=4", *FAST)
    one, two = with_one_and_two(start, command_folder, "distill", *settings)
    measured = ("train/loss", "train/ce", "train/kl", "train/grad_norm", "val/bpb")
    assert_learned_the_same(one, two, place / "a", measured)


@pytest.mark.parametrize(
    ("step", "horizon", "is_done"), [(4, "auto", True), (3, "auto", False), (4, 6, False), (4, 4, True)]
)
def test_a_finished_student_needs_its_teachers_if_steps_are_left(step, horizon, is_done, monkeypatch):
    monkeypatch.setattr(teachers, "is_finished_student", lambda *_: True)
    session = SimpleNamespace(
        config=SimpleNamespace(distill=SimpleNamespace(teachers=("a",)), train=SimpleNamespace(max_steps=horizon)),
        run=SimpleNamespace(resolved=lambda: SimpleNamespace(max_steps=4)),
        start=SimpleNamespace(is_own=True, step=step),
    )
    assert teachers._nothing_is_left(session) == is_done
