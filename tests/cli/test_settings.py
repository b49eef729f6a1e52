"""The command line: what is read, what is refused and with which advice, what help shows."""

import dataclasses
import functools
import importlib.util
import json
import math
import operator
import re
import sys
from pathlib import Path
from typing import get_args

import pytest
from conftest import FAST, PROJECT, tiny
from hypothesis import example, given, settings
from hypothesis import strategies as st

from positron import __version__
from positron.cli import COMMANDS, summary
from positron.cli import main as list_commands
from positron.cli.command_line import read_command_line
from positron.cli.help_text import field_comments, first_comment, help_text
from positron.cli.overrides import groups_of, read_settings
from positron.cli.preflight import check, check_files, check_name, check_packages, with_known_tokenizer
from positron.cli.python_arguments import as_word
from positron.cli.request import compose, expand_paths
from positron.cli.sweeps import claim_folder
from positron.cli.unused_settings import READ_BY, refuse_unread
from positron.config import (
    Asked,
    DataConfig,
    LoggerConfig,
    OptimizerConfig,
    PreferenceConfig,
    RewardConfig,
    RewardTerm,
    RunConfig,
    ScheduleConfig,
    SFTConfig,
    TensorboardConfig,
    TrainConfig,
)
from positron.run.differences import differences, refuse_differences
from positron.run.folder import Run
from positron.settings import BESIDE_VALUES, NOT_READ_BY, all_keys, check_value, from_dict, type_of
from positron.system.disk import write_json
from positron.system.errors import UserError
from positron.train import configure

CONF = PROJECT / "conf"


def refused(*words: str, recipe: str = "train") -> str:
    """The message with which the words are refused: read, composed, and held against what is read."""
    with pytest.raises(UserError) as error:
        composed(*words, recipe=recipe)
    return str(error.value)


def composed(*words: str, recipe: str = "train") -> dict:
    """What the words ask for, as the commands read them."""
    return compose(recipe, ["name=x", *read_command_line(words, recipe, CONF).overrides])


# What nothing reads


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("data.path=my.txt",),
            "data.path= is read by data=text, not by data=stories: add data=text, or leave data.path= out",
        ),
        (("+data.path=my.txt",), "add data=text"),
        (("data=stories", "data.max_mb=0.01"), "data.max_mb= is read by data=text, data=hub, not by data=stories"),
        (("data=text", "data.path=a.txt", "data.repo=a/b"), "leave data.repo= out, or give data=hub"),
        (("data=hub", "data.repo=a/b", "data.size_mb=3"), "data.size_mb= is read by data=stories"),
        (("data=shakespeare", "data.path=a.txt"), "give data=text data.path=a.txt, or leave data.path= out"),
        (("data=text", "data.path=a.txt", "data.sha256=00"), "data.url="),
        (("tokenizer=char", "tokenizer.vocab_size=10"), "tokenizer.vocab_size= is read by tokenizer=word"),
        (("tokenizer=gpt2", "tokenizer.vocab_size=500"), "not by tokenizer=gpt2"),
        (("optimizer.embedding_ratio=2",), "optimizer=muon"),
        (("optimizer.momentum=0.9",), "optimizer=muon"),
        (("schedule.decay_share=0.5",), "schedule=trapezoid"),
        (("schedule=constant", "schedule.final_ratio=0.5"), "not by schedule=constant"),
        (("sweep.prune=median",), "add -m"),
        (("sweep.startup_jobs=3",), "add -m"),
        (("monitor.every=5",), "add monitor=all"),
        (("logger.wandb.project=x",), "add logger=wandb"),
        (("logger=wandb", "logger.tensorboard.subdir=x"), "give 'logger=[wandb,tensorboard]'"),
        (("sft.epochs=2",), "positron.sft"),
        (("+sft.lora.rank=2",), "positron.sft"),
        (("experiment=quickstart", "device.batch_tokens=512"), "give train.batch_tokens=512 instead"),
        (
            ("train.batch_tokens=1024", "device.batch_tokens=512"),
            "which is 1024 in this run: leave device.batch_tokens= out",
        ),
        (("monitor=gradients,weights",), "give 'monitor=[gradients,weights]' to use all of them in one run"),
        (("data=instruct",), "positron.sft"),
        (("data=story_instruct",), "positron.sft"),
    ],
)
def test_a_given_key_that_nothing_reads_is_refused_with_the_way_out(words, said):
    assert said in refused(*words)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("+tokenizer=char",), "takes the architecture and tokenizer of the base run"),
        (("+model.context_length=256",), "takes the architecture and tokenizer of the base run"),
        (("++model.n_layer=3",), "takes the architecture and tokenizer of the base run"),
        (("budget=10m",), "train.max_time="),
        (("data.examples=5", "data=instruct"), "data.examples= is read by data=story_instruct"),
        (("data=instruct", "data.packing=windows"), "sft.packing=true"),
        (("sft.epochs=2", "train.max_steps=9"), "train.max_steps=auto"),
        (("experiment=story_instruct", "sft.epochs=2"), "train.max_steps=auto"),
        (("data=text", "data.path=a.txt"), "data=story_instruct"),
        (("data=my.jsonl",), "give data=instruct data.path=my.jsonl"),
    ],
)
def test_sft_refuses_what_the_base_run_decides_and_what_it_does_not_read(words, said):
    assert said in refused("init_from=x", "name=x", *words, recipe="sft")


@pytest.mark.parametrize(
    "words",
    [
        ("data=text", "data.path=a.txt", "data.max_mb=2", "data.field=body"),
        ("data.max_mb=null", "data.tokens_per_epoch=null"),
        ("experiment=fineweb", "data.tokens_per_epoch=null", "data.max_mb=10"),
        ("experiment=ten_minutes", "data=text", "data.path=a.txt"),
        ("optimizer=muon", "optimizer.embedding_ratio=2"),
        ("schedule=trapezoid", "schedule.decay_share=0.2"),
        ("monitor.gradients=true", "monitor.every=5"),
        ("'monitor=[gradients,attention]'".strip("'"), "monitor.every=5"),
        ("logger=wandb", "logger.wandb.project=x"),
        ("tokenizer.kind=word", "tokenizer.vocab_size=100"),
        ("device.batch_tokens=512",),
    ],
)
def test_what_is_read_and_what_a_group_brings_by_default_is_accepted(words):
    assert compose("train", ["name=x", *read_command_line(words, "train", CONF).overrides])


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (("data=text", "data.path=a.txt"), "data.tokens_per_epoch=null"),
        (("data.max_mb=5",), "data.tokens_per_epoch=null"),
        (("budget=1m",), "train.max_steps=auto"),
    ],
)
def test_advice_about_a_key_that_the_experiment_set_can_be_followed(words, advice):
    words = ("experiment=fineweb_quick", *words)
    with pytest.raises(UserError, match=re.escape(advice)):
        configure(composed(*words))
    assert configure(composed(*words, advice))


def test_every_key_of_the_table_exists_and_every_choice_is_one():
    for choice in READ_BY:
        for keys in choice.choices.values():
            assert {f"{choice.group}.{key}" for key in keys} <= set(all_keys())
        for select in choice.select.values():
            chosen, *needed = select.split(" ")
            selector, _, name = chosen.partition("=")  # a group of conf/, or a key
            assert name in (groups_of(CONF).get(selector) or get_args(type_of(selector)))
            assert {setting.partition("=")[0] for setting in needed} <= set(all_keys())


def test_a_sum_of_rewards_is_read_from_the_command_line():
    terms = "reward.terms=[{kind:story_request},{kind:length,target:400,weight:0.2}]"
    values = composed("init_from=x", "reward=sum", terms, recipe="reinforce")["reward"]
    summands = (RewardTerm("story_request"), RewardTerm("length", 0.2, target=400))
    assert from_dict(RewardConfig, values, "reward").summands == summands
    values["terms"][1]["taget"] = 400
    with pytest.raises(UserError, match=r"^unknown key reward\.terms\[1\]\.taget: choose from kind, weight, "):
        from_dict(RewardConfig, values, "reward")
    said = refused("init_from=x", "reward=length", "reward.target=9", "reward.pattern=a", recipe="reinforce")
    assert said.startswith("reward.pattern= is read by reward=regex, not by reward=length")


def test_what_only_some_jobs_of_a_sweep_read_is_not_refused():
    values = compose("train", ["name=x"])
    refuse_unread(values, {"data": "stories,text", "data.path": "a.txt"}, is_sweep=True, swept=["data"])
    refuse_unread(values, {"tokenizer.vocab_size": "100"}, is_sweep=True, swept=["tokenizer"])
    refuse_unread(values, {"sweep.prune": "median"}, is_sweep=True, swept=["seed"])
    with pytest.raises(UserError, match="add data=text"):
        refuse_unread(values, {"data.path": "a.txt"}, is_sweep=True, swept=["seed"])


def test_no_experiment_may_be_given_as_null():
    assert compose("train", ["name=x", "experiment=null"]) == compose("train", ["name=x"])


def test_model_and_data_may_be_given_as_null_only_if_they_come_from_a_teacher():
    line = read_command_line(["teachers=a", "model=null", "data=null"], "distill", CONF)
    assert line.overrides == ["distill.teachers=['a']"]
    assert "every run needs a choice of model=" in refused("model=null")
    assert "teachers needs a value: give teachers=VALUE" in refused("teachers", recipe="distill")


# Names, choices and other tools' words


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("model=quikstart",), "did you mean model=quickstart?"),
        (("data=storys",), "did you mean data=stories?"),
        (("optimizer=adam",), "did you mean optimizer=adamw?"),
        (("data=my.txt",), "data=text data.path=my.txt"),
        (("data=[text,stories]",), "is a list: give one choice, such as data=stories"),
        (("model=[1]",), "is a list: give one choice, one of auto, debug"),
        (("train=[1]",), "train is a group of settings: give its keys one by one, as train.NAME=VALUE"),
        (("model=_defaults",), "choose from auto, debug"),
        (("experiment=0",), "size_sweep, ten_minutes"),  # without the experiments of other commands
        (("logger=null",), "logger=files"),
        (("data=null",), "every run needs a choice of data="),
        (("~schedule",), "~schedule would delete the group schedule, which is not possible: leave ~schedule out"),
        (("~experiment",), "leave ~experiment out, or choose another experiment="),
        (("~train.stop_at",), "leave ~train.stop_at out, or give train.stop_at=null"),
        (("~optimizer.lr",), "~optimizer.lr would delete a key that every run has: leave ~optimizer.lr out"),
        (("~monitor",), "monitor=none"),
        (("quickstart",), "did you mean experiment=quickstart?"),
        (("model:debug",), "did you mean model=debug?"),
        (("seed",), "seed needs a value"),
        (("experimant=quickstart",), "did you mean experiment?"),
        (("given=[a]",), "unknown key given"),
        (("schedule=cosine,linear",), "add -m"),
        (("optimizer.lr=1e-3,3e-3",), "add -m"),
        (
            ("optimizer.lr=interval(1e-4,1e-3)",),
            "an interval, from which only a search takes values: add -m hydra/sweeper=optuna",
        ),
        (("name=a,b",), "add -m"),
        (("optimizer.betas=0.9,0.99",), "'optimizer.betas=[0.9,0.99]'"),
        (("optimizer.lr=1e-3;",), "give a number"),
        (("train=[x",), "train is a group of settings: give its keys one by one, as train.NAME=VALUE"),
        (("--max_iters=2000",), "train.max_steps=2000"),
        (("--max-iters", "2000"), "train.max_steps=2000"),
        (("--learning_rate", "1e-3"), "optimizer.lr=1e-3"),
        (("--learning-rate=1e-3",), "optimizer.lr=1e-3"),
        (("--lr=1e-3",), "optimizer.lr=1e-3"),
        (("--batch_size=12",), "train.batch_tokens="),
        (("--epochs", "3"), "train.max_steps="),
        (("--num_train_epochs=3",), "train.max_steps="),
        (("--config", "x.yaml"), "--config-dir . experiment=x"),
        (("--block_size=128",), "model.context_length=128"),
        (("--train.max_steps=3",), "train.max_steps=3"),
        (("--seed=3",), "seed=3"),
        (("--multirum",), "did you mean --multirun?"),
        (("--cfg", "jobs"), "--cfg cannot print jobs: choose from job, hydra, all"),
        (("device.nothing=1",), "choose from device.accelerator, device.devices"),
        (("--frobnicate",), "--help"),
        (("lr=3",), "did you mean optimizer.lr?"),
        (("max_iters=3",), "did you mean train.max_steps?"),
        (("n_embd=64",), "model.d_model=64"),
        (("per_device_train_batch_size=4",), "train.micro_batch_size=4"),
        (("model.num_hidden_layers=2",), "model.n_layer=2"),
    ],
)
def test_a_word_that_is_not_ours_is_answered_with_what_to_type(words, said):
    message = refused(*words)
    assert said in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("recipe", "word", "said"),
    [
        ("prefer", "beta=0.2", "did you mean preference.beta? (preference.beta=0.2)"),
        ("reinforce", "beta=0.04", "did you mean reinforce.kl? (reinforce.kl=0.04)"),
        ("prefer", "loss_type=sigmoid", "preference.loss"),
        ("reinforce", "loss_type=grpo", "reinforce.advantage? (rloo or dr_grpo"),
        ("reinforce", "num_generations=8", "reinforce.samples=8"),
        ("reinforce", "--max_completion_length=200", "reinforce.max_tokens=200"),
        ("reinforce", "actor_rollout_ref.rollout.n=8", "reinforce.samples=8"),
        ("reinforce", "--temperature=0.6", "reinforce.temperature=0.6"),
        ("reinforce", "reward_funcs=my.reward", "reward=custom"),
        ("prefer", "num_train_epochs=2", "preference.epochs"),
        ("sft", "num_train_epochs=2", "sft.epochs"),
        ("prefer", "lora_r=8", "preference.lora.rank"),
        ("reinforce", "lora_r=8", "reinforce.lora.rank"),
        ("prefer", "model_name_or_path=mine", "init_from"),
        ("train", "num_generations=8", "reinforce.samples= is read by"),
        (
            "sft",
            "ckpt_path=x.ckpt",
            "starts with the weights of the run that init_from= names, and the same command continues",
        ),
        ("reinforce", "train.sample_prompt=Hi", "train.sample_prompt= is not read by"),
        (
            "sft",
            "sft=null",
            "sft=null is not possible: sft is a group of settings: give its keys one by one, as sft.NAME=",
        ),
        ("prefer", "preference=null", "preference=null is not possible: "),
        ("reinforce", "reinforce=null", "reinforce=null is not possible: "),
        ("distill", "distill=null", "distill=null is not possible: "),
        ("train", "epochs=3", "give train.max_steps=, the number of optimizer steps, instead"),
        ("train", "rank=8", "sft.lora.rank= is read by"),
        ("sft", "vocab_size=8000", "of the base run, which init_from= names: leave vocab_size= out"),
        ("distill", "alpha=0.3", "did you mean distill.alpha? (read by"),
        ("distill", "--temperature=2", "distill.temperature=2"),
        ("distill", "teacher_model=x", "did you mean distill.teachers? (read by"),
        ("train", "teacher=x", "distill.teachers= is read by"),
    ],
)
def test_a_name_of_another_tool_has_the_meaning_of_the_command(recipe, word, said):
    message = refused(word, recipe=recipe)
    assert said in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("recipe", "word", "said"),
    [
        ("train", "base", "did you mean name=base, to continue this run, or init_from=base"),
        ("train", "elsewhere", "did you mean init_from=elsewhere?"),
        ("sft", "outputs/base", "did you mean init_from=outputs/base?"),
        ("distill", "base", "did you mean teachers=base?"),
        ("train", "my.txt", "did you mean data=text data.path=my.txt?"),
        ("sft", "my.txt", "did you mean data=instruct data.path=my.txt?"),
        ("train", "x" * 300, "settings are given as key=value"),
    ],
)
def test_a_run_or_a_file_without_its_key_is_answered_with_the_key(tmp_path, monkeypatch, recipe, word, said):
    monkeypatch.chdir(tmp_path)
    for file in ("outputs/base/config.json", "elsewhere/config.json", "my.txt"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("{}")
    assert said in refused(word, recipe=recipe)


@pytest.mark.parametrize(
    "words",
    [
        ["teachers=a,outputs/b"],
        ["--teachers", "a,outputs/b"],
        ["--teachers=a,outputs/b"],
        ["distill.teachers=[a,outputs/b]"],
        ["teachers=['a', 'outputs/b']"],
        ["+teachers=a, outputs/b,"],
    ],
)
def test_a_list_of_runs_is_written_with_or_without_brackets_and_is_never_a_sweep(words):
    for option in ([], ["-m"]):
        line = read_command_line([*option, *words], "distill", CONF)
        assert line.overrides == ["distill.teachers=['a','outputs/b']"]
    assert "distill.teachers= is read by" in refused(*words, recipe="train")


def test_a_distillation_refuses_the_tokenizer_and_data_that_are_no_text():
    assert "takes the tokenizer of the runs that teachers= names: leave tokenizer= out" in refused(
        "teachers=a", "tokenizer=char", recipe="distill"
    )
    assert "--teachers" in refused("--teachers", recipe="distill")


@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_options_may_stand_anywhere_among_the_settings(place):
    words = ["model=debug", "seed=0,1", "name=x"]
    words.insert(place, "-m")
    line = read_command_line(words, "train", CONF)
    assert line.words == ["-m", "model=debug", "seed=0,1", "name=x"]
    cfg = read_command_line(["model=debug", "--cfg", "job", "seed=1", "--resolve"], "train", CONF)
    assert cfg.words == ["--cfg", "job", "--resolve", "model=debug", "seed=1"]


@pytest.mark.parametrize(
    "text",
    [
        "/tmp/héé漢.txt",
        "it's.txt",
        "paren (1).txt",
        "eq=1.txt",
        "hash#1.txt",
        "a[1]",
        "[1].txt",
        "{a}.txt",
        "a~b",
        "1e3",
        "2024",
        "true",
        "a, b",
        'say "no"',
        "back\\slash's",
        "ends\\",
        r"\[\d+\]",
        r"\\server\share\a (1).txt",
        "  blanks ",
        "two\nlines",
        "glob(*)",
        "a:b",
        "50%;&!",
    ],
)
def test_texts_outside_of_hydras_grammar_arrive_as_they_were_typed(text):
    line = read_command_line(["data=text", f"data.path={text}", f"train.sample_prompt={text}"], "train", CONF)
    values = compose("train", ["name=x", *line.overrides])
    assert (values["data"]["path"], values["train"]["sample_prompt"]) == (text, text)


@pytest.mark.parametrize("texts", [("C:\\texts\\a.txt", "D:\\b.txt"), (r"\\server\a.txt", r"x\y"), ("a.txt", "b.txt")])
def test_each_text_of_a_sweep_arrives_as_it_was_typed(texts):
    from hydra.core.override_parser.overrides_parser import OverridesParser

    line = read_command_line(["-m", "data=text", f"data.path={','.join(texts)}"], "train", CONF)
    swept = OverridesParser.create().parse_override(line.words[-1])
    jobs = [compose("train", ["name=x", "data=text", f"data.path={value}"]) for value in swept.sweep_string_iterator()]
    assert [job["data"]["path"] for job in jobs] == list(texts)


@given(text=st.text() | st.text(alphabet="ab1.0 '\"\\$[](){},:=~#\n", max_size=8))
@example(text=r"\[\d+\]")
@example(text="1.10")
@example(text="null")
@example(text="my file, v2.txt")
@example(text="")
@example(text="'a'")
@example(text="^(yes|no)$")
@settings(max_examples=20, deadline=None)
def test_a_text_from_python_arrives_unchanged_alone_and_in_a_list_and_a_dict(text):
    from hydra.core.override_parser.overrides_parser import OverridesParser

    values = {
        "train.sample_prompt": text,
        "data.options": {"a": text, "b": [text, {"c": text}], "d": "1e3"},
        "data.options.e": text,
        "reward.terms": [{"kind": "regex", "pattern": text, "weight": 0.5}],
    }
    for key, value in values.items():
        recipe = "reinforce" if key == "reward.terms" else "train"
        [word] = read_settings([f"{key}={as_word(key, value)}"], recipe, CONF)
        assert OverridesParser.create().parse_override(word).value() == value
    names = [text, "a, b", text]  # empty names, and blanks around a name, have no meaning
    [word] = read_settings([f"teachers={as_word('teachers', names)}"], "distill", CONF)
    assert OverridesParser.create().parse_override(word).value() == [name for name in names if name]


def test_a_dict_key_that_hydra_reads_as_another_key_is_refused():
    for name in ("42", "true", "a b", "it's"):
        with pytest.raises(UserError, match="cannot hold a dict with the key"):
            as_word("data.options", {name: 1})


def test_names_in_a_list_may_be_quoted_and_contain_commas():
    from hydra.core.override_parser.overrides_parser import OverridesParser

    for typed, names in [
        ("a,b", ["a", "b"]),
        ("[a, 'b, c',\"d\"]", ["a", "b, c", "d"]),
        ("it's,1.10,", ["it's", "1.10"]),
        (r"C:\a[1],'it\'s'", [r"C:\a[1]", "it's"]),
    ]:
        [word] = read_settings([f"teachers={typed}"], "distill", CONF)
        assert OverridesParser.create().parse_override(word).value() == names


def test_a_file_of_config_dir_that_a_file_of_positron_hides_is_refused(tmp_path):
    own = tmp_path / "experiment" / "quickstart.yaml"
    own.parent.mkdir()
    own.write_text((CONF / "experiment" / "quickstart.yaml").read_text())
    words = ["--config-dir", str(tmp_path), "experiment=quickstart"]
    assert read_command_line(words, "train", CONF).overrides == ["experiment=quickstart"]  # the same file
    own.write_text(own.read_text() + "seed: 3\n")
    with pytest.raises(
        UserError, match=r"quickstart\.yaml would not be read, .* experiment=quickstart .* rename your file"
    ):
        read_command_line(words, "train", CONF)


@pytest.mark.parametrize(("value", "typed"), [(None, "null"), (True, "true"), ("x", "'x'")])
def test_a_value_of_the_wrong_type_is_named_as_it_was_typed(value, typed):
    with pytest.raises(UserError, match=f"^seed={typed} is not a possible value: give a whole number$"):
        check_value("seed", value)


def test_info_takes_a_value_or_none():
    assert read_command_line(["--info", "searchpath"], "train", CONF).words == ["--info", "searchpath"]
    assert read_command_line(["--info", "seed=1"], "train", CONF).words == ["--info", "all", "seed=1"]


def test_a_list_or_dict_that_would_lose_a_backslash_is_refused():
    for key, typed, better in [
        ("reward.terms", r"[{kind:regex,pattern:\[\d+\]}]", r"[{kind:regex,pattern:'\[\d+\]'}]"),
        ("data.options.path", r"a\ b", r"'a\ b'"),
    ]:
        with pytest.raises(UserError, match="would lose a backslash") as error:
            read_settings([f"{key}={typed}"], "reinforce", CONF)
        assert str(error.value).endswith(f'as in "{key}={better}"')
        assert read_settings([f"{key}={better}"], "reinforce", CONF)[0].endswith(f"{key}={better}")
    for kept in (r"[{kind:regex,pattern:\d+}]", r"[{kind:regex,pattern:'\(a\)'}]"):
        assert read_settings([f"reward.terms={kept}"], "reinforce", CONF) == [f"reward.terms={kept}"]


def test_what_is_quoted_for_hydra_already_stays_so_and_null_is_null():
    words = ["data=text", "data.path='a (1).txt'", "train.sample_prompt=null", "ckpt_path=null"]
    values = compose("train", ["name=x", *read_command_line(words, "train", CONF).overrides])
    assert values["data"]["path"] == "a (1).txt"
    assert values["train"]["sample_prompt"] is None
    assert values["ckpt_path"] is None


def test_home_is_expanded_in_paths(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    line = read_command_line(["data=text", "data.path=~/x.txt", "init_from=~/runs/a", "data.dir=~/d"], "train", CONF)
    values = compose("train", ["name=x", *line.overrides])
    assert (values["data"]["path"], values["init_from"], values["data"]["dir"]) == (
        "/home/me/x.txt",
        "/home/me/runs/a",
        "/home/me/d",
    )
    values["data"]["path"] = "a~b"
    expand_paths(values)
    assert values["data"]["path"] == "a~b"


# Numbers


@pytest.mark.parametrize(
    ("cls", "name", "value", "said"),
    [
        (OptimizerConfig, "lr", math.nan, "optimizer.lr=nan must be a finite number"),
        (OptimizerConfig, "lr", math.inf, "finite"),
        (OptimizerConfig, "eps", -1.0, "optimizer.eps=-1.0 must be positive"),
        (OptimizerConfig, "weight_decay", math.nan, "finite"),
        (OptimizerConfig, "betas", (0.9, math.nan), "finite"),
        (OptimizerConfig, "betas", (0.9, 1.0), "at least 0 and below 1"),
        (TrainConfig, "grad_clip", math.nan, "train.grad_clip=nan"),
        (TrainConfig, "max_steps", 10**20, "train.max_steps=100000000000000000000 must be at most"),
        (TrainConfig, "val_tokens", 0, "at least 1"),
        (ScheduleConfig, "warmup_steps", -1, "must not be negative"),
        (ScheduleConfig, "final_ratio", math.nan, "finite"),
    ],
)
def test_a_number_out_of_range_is_refused_with_its_key(cls, name, value, said):
    with pytest.raises(UserError, match=re.escape(said)):
        cls(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_mb", math.nan),
        ("max_mb", math.inf),
        ("size_mb", math.nan),
        ("seed", -1),
        ("seed", 10**20),
        ("examples", 0),
    ],
)
def test_numbers_of_a_corpus_are_refused_with_their_key(name, value):
    with pytest.raises(UserError, match=f"data.{name}="):
        DataConfig(source="stories", **{name: value})


def test_every_number_of_a_run_refuses_nan_and_infinity():
    values = json.loads(json.dumps(dataclasses.asdict(tiny(Path()))))
    values["sft"] = {"lora": {}}
    values["reinforce"] = {"lora": {}}
    values["reward"] = {"kind": "story_request"}
    values["preference"] = {"lora": {}}
    values["distill"] = {"teachers": ["a"]}
    values["logger"] = {"wandb": {}, "tensorboard": {}}
    for key in set(all_keys()) - set(BESIDE_VALUES):
        for bad in (math.nan, math.inf, -(10**30)):
            changed = json.loads(json.dumps(values))
            *path, last = key.split(".")
            group = functools.reduce(operator.getitem, path, changed)
            if not isinstance(group.get(last), dict):
                group[last] = bad
                with pytest.raises(UserError, match=re.escape(key)):
                    from_dict(RunConfig, changed)


def test_a_number_too_large_for_a_float_is_refused():
    with pytest.raises(UserError, match="lr=1000"):
        from_dict(OptimizerConfig, {"lr": 10**400}, "optimizer")


# Before any work


def made_run(folder: Path, config: RunConfig, **facts: object) -> Run:
    run = Run(folder)
    write_json(folder / "config.json", dataclasses.asdict(config))
    write_json(
        folder / "run.json", {"resolved": {"max_steps": 40, "batch_tokens": 512, "micro_batch_size": 16}, **facts}
    )
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "step-000001.ckpt").write_bytes(b"")
    return run


def test_an_empty_name_is_said_to_be_empty(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for refuse in (
        lambda: check_name(Path("outputs/")),
        lambda: check_name(Path("outputs/sweeps/"), is_sweep=True),
        lambda: tiny(tmp_path, name=""),
    ):
        with pytest.raises(UserError, match=r"^name= is empty: "):
            refuse()


def test_a_name_that_another_system_cannot_have_is_refused_on_every_system(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError,
        match=r"^name='a/nul\.txt': the folder name 'nul\.txt' is the name of a device on Windows: give another name=$",
    ):
        check_name(Path("outputs/a/nul.txt"))
    (tmp_path / "outputs/nul").mkdir(parents=True)
    made_run(Path("outputs/nul"), tiny(tmp_path))
    check_name(Path("outputs/nul"))  # a run of an earlier version


@pytest.mark.parametrize(
    "name", ["data", "sweeps", "research", "Data/x", "sweeps/a/0", "made/checkpoints", "made/x/y", "a ", "x" * 300]
)
def test_a_name_that_is_taken_by_other_things_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs/made").mkdir(parents=True)
    made_run(Path("outputs/made"), tiny(tmp_path))
    with pytest.raises(UserError, match="name="):
        check_name(Path("outputs") / name)
    check_name(Path("outputs/made"))
    check_name(Path("outputs/dataset"))
    check_name(Path("outputs/research/mine/base/seed-0"))
    check_name(Path("outputs/sweeps/data"), is_sweep=True)


@pytest.mark.slow
def test_a_changed_setting_a_wrong_path_and_an_unknown_run_are_refused_before_torch_is_imported(start, tmp_path):
    assert not {"torch"} & set(imported_by("train", "data=text", "data.path=nope.txt", folder=tmp_path))
    assert not (tmp_path / "outputs").exists()
    assert not {"torch"} & set(imported_by("train", "init_from=nobody", folder=tmp_path))


def imported_by(command: str, *words: str, folder: Path) -> list[str]:
    import os
    import subprocess

    code = (
        f"import sys, positron.{command} as c\nsys.argv = ['{command}', *{list(words)!r}]\n"
        "try:\n    c.main()\nexcept SystemExit as e:\n    assert e.code == 2, e.code\n"
        "print(' '.join(m for m in sys.modules if '.' not in m))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_a_changed_setting_is_refused_with_the_difference_and_the_text_may_move(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs/made").mkdir(parents=True)
    config = tiny(tmp_path, data=DataConfig(source="text", path="/data/m/p.txt"))
    run = made_run(Path("outputs/made"), config, data_fingerprint="f")
    moved = dataclasses.replace(config, data=dataclasses.replace(config.data, path="../m/p.txt", dir="elsewhere"))
    assert differences(run, moved) == []
    check(moved, run.folder, Asked())
    with pytest.raises(UserError, match=r"optimizer.lr: 0.003 -> 0.1"):
        check(dataclasses.replace(config, optimizer=OptimizerConfig(lr=0.1)), run.folder, Asked())
    with pytest.raises(
        UserError,
        match=r"outputs/made contains a run that was trained with name=.* with init_from=outputs/made and another name=$",
    ):
        check(dataclasses.replace(config, name="made"), run.folder, Asked())
    with pytest.raises(UserError, match=r"other settings \(optimizer\.kind: adamw -> muon\): give the same"):
        check(dataclasses.replace(config, optimizer=OptimizerConfig("muon", lr=0.1)), run.folder, Asked())
    many = OptimizerConfig("adamw", lr=0.1, eps=1e-5, betas=(0.5, 0.6), weight_decay=0.2)
    with pytest.raises(
        UserError, match=r"other settings \(.*; .*; .*; and \d more\): give the same .*, or another name=$"
    ):
        check(dataclasses.replace(config, optimizer=many), run.folder, Asked())
    with pytest.raises(
        UserError,
        match=r"is a run of .*train, and this command is .*sft: give another name=, or continue the run by .*train$",
    ):
        refuse_differences(run, dataclasses.replace(config, sft=SFTConfig()))
    write_json(
        run.folder / "run.json", {"resolved": {"max_steps": 40, "batch_tokens": 512, "micro_batch_size": 16}}
    )  # no fingerprint is known
    assert any(difference.startswith("data.path") for difference in differences(run, moved))


def test_a_batch_size_that_the_command_leaves_out_is_shown_as_auto(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "made").mkdir()
    config = tiny(tmp_path, train__batch_tokens=10)  # a step trains on one sequence of 32 tokens
    resolved = {"max_steps": 40, "batch_tokens": 32, "micro_batch_size": 1}
    run = made_run(tmp_path / "made", config, resolved=resolved)
    left_out = dataclasses.replace(config, train=dataclasses.replace(config.train, batch_tokens="auto"))
    assert differences(run, left_out) == ["train.batch_tokens: 10 -> auto"]


def test_changed_settings_that_the_command_line_gives_are_named_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "made").mkdir()
    config = dataclasses.replace(tiny(tmp_path), budget="10m")
    run = made_run(tmp_path / "made", config)
    model = dataclasses.replace(config.model, d_model=64, n_layer=4, n_head=8, n_kv_head=2)
    changed = dataclasses.replace(config, model=model, optimizer=OptimizerConfig(lr=0.1), budget="20m")
    with pytest.raises(UserError, match=r"\(budget: 10m -> 20m; model\.n_head: .*; optimizer\.lr: .*; and \d more\)"):
        check(changed, run.folder, Asked(given={"optimizer.lr": "0.1", "model.n_head": "8"}))
    with pytest.raises(UserError, match=r"\(budget: .*; model\.\w+: .*; model\.\w+: .*; and \d more\)"):
        check(changed, run.folder, Asked(given={"model": "small"}))


def test_data_field_is_refused_where_no_file_has_fields(tmp_path):
    (tmp_path / "a.txt").write_text("Once upon a time")
    (tmp_path / "b.jsonl").write_text('{"body": "Once"}')
    for name in ("a.txt", "*.txt"):
        with pytest.raises(UserError, match=r"data\.field= is read only for"):
            check_files(DataConfig(source="text", path=str(tmp_path / name)), {"data.field": "body"})
    for name in ("b.jsonl", ".", "*"):
        check_files(DataConfig(source="text", path=str(tmp_path / name)), {"data.field": "body"})
    check_files(DataConfig(source="text", path=str(tmp_path / "a.txt")), {})
    with pytest.raises(UserError, match=r"cannot read data\.path="):
        check_files(DataConfig(source="instruct", path=str(tmp_path / "c.jsonl")), {})


@pytest.mark.parametrize("data", ["text", "instruct"])
@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "data.path=.* is empty"),
        (b'{"text": "caf\xe9 au lait"}', r"is not UTF-8 \(byte 13 is 0xe9\)"),
        (b"PK\x03\x04", "a zip archive"),
        ("Once".encode("utf-16"), "and use the new file instead"),
        (None, "no file"),
    ],
)
def test_a_text_that_cannot_be_read_is_refused_before_anything_is_loaded(tmp_path, data, content, says):
    path = tmp_path / "a.jsonl"
    if content is None:
        path.mkdir()
        (path / "picture.png").write_bytes(b"png")
    else:
        path.write_bytes(content)
    with pytest.raises(UserError, match=says):
        check_files(DataConfig(source=data, path=str(path)), {})


def test_an_address_is_not_looked_for_among_the_files():
    with pytest.raises(UserError, match=r"is an address, not a file: .* give data.url= instead of data.path="):
        check_files(DataConfig(source="text", path="https://example.org/a.txt"), {})


def test_a_folder_of_empty_files_is_not_called_empty(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=r"contains only empty files: give a file with text"):
        check_files(DataConfig(source="text", path=str(tmp_path)), {})


def test_a_logger_without_its_package_is_refused(monkeypatch):
    logger = LoggerConfig(tensorboard=TensorboardConfig())
    monkeypatch.setitem(sys.modules, "tensorboard", None)  # as if it were not installed
    with pytest.raises(UserError, match=r"pip install 'positron\[tensorboard\]'"):
        check_packages(logger)
    check_packages(LoggerConfig())


def test_another_runs_weights_keep_its_tokenizer_and_its_architecture(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs/base").mkdir(parents=True)
    base = tiny(tmp_path)
    made_run(Path("outputs/base"), base)
    asked = dataclasses.replace(base, name="new", init_from="base")
    spm = dataclasses.replace(
        asked, tokenizer=dataclasses.replace(base.tokenizer, kind="sentencepiece", vocab_size=400)
    )
    assert check(spm, Path("outputs/new"), Asked()).tokenizer == base.tokenizer
    with pytest.raises(UserError, match="tokenizer=spm_2k differs from the tokenizer of outputs/base"):
        check(spm, Path("outputs/new"), Asked(given={"tokenizer": "spm_2k"}))
    assert with_known_tokenizer(asked, Path("outputs/new"), {"tokenizer": "char"}).tokenizer == base.tokenizer
    wide = dataclasses.replace(asked, model=dataclasses.replace(base.model, d_model=64, norm="rmsnorm"))
    assert check(wide, Path("outputs/new"), Asked()).model == base.model
    for chosen in ({"model": "nano"}, {"experiment": "positron_modern"}):
        with pytest.raises(
            UserError,
            match=r"^the weights of init_from=base fit only a model with model.d_model=32 model.norm=layernorm: ",
        ):
            check(wide, Path("outputs/new"), Asked(given=chosen))
    narrow = dataclasses.replace(asked, model=dataclasses.replace(base.model, d_model=64))
    with pytest.raises(
        UserError,
        match=r"^the weights of init_from=base fit only .* with model.d_model=32: leave model.d_model=64 out$",
    ):
        check(narrow, Path("outputs/new"), Asked(given={"model.d_model": "64"}))
    with pytest.raises(UserError, match=r"leave model=nano model.d_model=64 out$"):
        check(narrow, Path("outputs/new"), Asked(given={"model": "nano", "model.d_model": "64"}))
    with pytest.raises(UserError, match=r"give model.d_model=32$"):
        check(narrow, Path("outputs/new"), Asked(given={"experiment": "positron_modern", "model.d_model": "64"}))
    long_heads = dataclasses.replace(asked, model=dataclasses.replace(base.model, head_dim=32))
    with pytest.raises(UserError, match=rf"init_from=base fit only a model with model.head_dim={base.model.d_head}: "):
        check(long_heads, Path("outputs/new"), Asked(given={"model.head_dim": "32"}))
    short = dataclasses.replace(asked, model=dataclasses.replace(base.model, dropout=0.5))
    assert check(short, Path("outputs/new"), Asked(given={"model.dropout": "0.5"})).model == short.model
    with pytest.raises(UserError, match="no run nobody"):
        check(dataclasses.replace(asked, init_from="nobody"), Path("outputs/new"), Asked())
    with pytest.raises(UserError, match=r"ckpt_path=x\.ckpt: there is no such file"):
        check(dataclasses.replace(asked, init_from=None, ckpt_path="x.ckpt"), Path("outputs/new"), Asked())


@pytest.mark.parametrize("began_on", ["cpu", "auto"])
def test_a_run_keeps_its_batch_on_another_device_unless_the_command_gives_another(tmp_path, monkeypatch, began_on):
    monkeypatch.chdir(tmp_path)
    folder = Path("outputs/run")
    folder.mkdir(parents=True)
    began = from_dict(RunConfig, compose("train", ["name=run", "model=debug", f"device={began_on}"]))
    made_run(folder, began)
    for device in ("mps", "cuda"):
        config = from_dict(RunConfig, compose("train", ["name=run", "model=debug", f"device={device}"]))
        assert config.train.batch_tokens != began.train.batch_tokens
        assert check(config, folder, Asked(given={"device": device})).train.batch_tokens == began.train.batch_tokens
        for key in ("train.batch_tokens", "device.batch_tokens"):
            with pytest.raises(UserError, match=r"\(train\.batch_tokens: \d+ -> \d+\)"):
                check(config, folder, Asked(given={"device": device, key: str(config.train.batch_tokens)}))


OPTIMIZERS = {
    "optimizer=adamw": OptimizerConfig(),
    "optimizer=muon": OptimizerConfig(kind="muon"),
    "optimizer=custom optimizer._target_=torch.optim.SGD": OptimizerConfig(kind="custom", _target_="torch.optim.SGD"),
    "optimizer=custom optimizer._target_=torch.optim.Adagrad": OptimizerConfig(
        kind="custom", _target_="torch.optim.Adagrad"
    ),
}


@pytest.mark.parametrize("before", OPTIMIZERS)
def test_the_state_of_an_optimizer_is_refused_by_another_optimizer(tmp_path, monkeypatch, before):
    monkeypatch.chdir(tmp_path)
    base, new = Path("outputs/base"), Path("outputs/new")
    base.mkdir(parents=True)
    made_run(base, tiny(tmp_path, optimizer=OPTIMIZERS[before]))
    for now, optimizer in OPTIMIZERS.items():
        config = tiny(tmp_path, optimizer=dataclasses.replace(optimizer, lr=0.5, weight_decay=0.0))
        check(dataclasses.replace(config, init_from="base"), new, Asked())
        fork = dataclasses.replace(config, ckpt_path="base")
        if now == before:
            check(fork, new, Asked())
        else:
            remedy = f"give {before}, or init_from= instead of ckpt_path= to take only the weights"
            message = f"the state of {before} in ckpt_path=base does not fit {now}: {remedy}"
            with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
                check(fork, new, Asked())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--model", "debug"), "there is no option --model; settings are given as key=value: write model=debug"),
        (("callbacks=mine",), "write FOLDER/callbacks/mine.yaml and add --config-dir FOLDER"),
        (
            ("train=4",),
            "train=4 is not possible: train is a group of settings: give its keys one by one, as train.NAME=",
        ),
        (
            ("experiment=addition_reward",),
            "is an experiment of python -m positron.reinforce, not of python -m positron.train",
        ),
        (("-m", "optimizer.lr=1e-3,x"), "optimizer.lr='x' is not a possible value: give a number"),
        (("optimizer=sgd",), "; optimizer=custom optimizer._target_=torch.optim.SGD uses any other optimizer of torch"),
        (("device=gpu",), "give device=cuda, or device=mps on a Mac"),
        (("--resume",), "to continue a run, give the command with which it was started again"),
        (("--config", "cfg/x.yaml"), "move it to cfg/experiment/x.yaml, and add --config-dir cfg experiment=x"),
        (("experiment=cfg/experiment/tab.yaml",), "a file of your own is chosen by --config-dir cfg experiment=tab"),
        (("optimizer.beta2=0.99",), "did you mean optimizer.betas=[0.9,0.99]?"),
        (("beta1=0.8",), "did you mean optimizer.betas=[0.8,0.95]?"),
        (("beta2=high",), "did you mean optimizer.betas? (both numbers as a list, such as [0.9,0.95])"),
        (("--compile",), "write device.compile= (true or false)"),
        (("--precision=bf16-true",), "write precision= (bf16, fp16, fp32 or auto)"),
        (("--precision=bf16",), "write precision=bf16"),
        (("--data=TextFiles",), "write data= (data=text data.path=FILE for text of your own)"),
        (("--lr", "7e-3"), "write optimizer.lr=7e-3"),
        (("always_save_checkpoint=False",), "unknown key always_save_checkpoint: did you mean train.save_every?"),
        (("eval.max_iters=5",), "did you mean train.val_tokens? (the number of tokens used for validation)"),
        (("--train.max_iters=5",), "write train.max_steps=5"),
        (("--eval.interval=5",), "write train.val_every=5"),
        (("--init_from=resume",), "to continue a run, give the command with which it was started again"),
        (("--eval_only=True",), "because python -m positron.evaluate --run NAME evaluates a run: leave it out"),
        (("load_best_model_at_end=true",), "because every command uses the checkpoint with the lowest validation loss"),
        (("lora_alpha=16",), "unknown key lora_alpha: there is no setting for it, because the factor of the LoRA"),
        (("config/train_shakespeare_char.py",), "chosen by name, such as experiment=shakespeare_char"),
        (
            ("-m", "train.max_steps=1e3,2e3"),
            "train.max_steps=1000.0 is not written as a whole number: give train.max_steps=1000",
        ),
        (("-m", "optimizer.lr=1e-3,-1"), "optimizer.lr=-1 must be positive"),
        (("-m", "train.max_steps=auto,0"), "train.max_steps=0 must be at least 1"),
        (("-m", "seed=0,1.5"), "seed=1.5 is not a possible value: give a whole number"),
    ],
)
def test_a_choice_is_answered_with_the_way_to_give_it(words, said):
    assert said in refused(*words)


@pytest.mark.parametrize(
    ("recipe", "word", "said"),
    [
        ("reinforce", "epsilon=0.2", "because each batch of answers is used for one optimizer step"),
        ("reinforce", "num_iterations=2", "because each batch of answers is used for one optimizer step"),
        ("reinforce", "--actor.clip_ratio=0.2", "because each batch of answers is used for one optimizer step"),
        ("train", "epsilon=1e-6", "did you mean optimizer.eps? (optimizer.eps=1e-6)"),
        ("train", "num_iterations=20", "did you mean train.max_steps? (train.max_steps=20)"),
        ("prefer", "precompute_ref_log_probs=true", "are always computed once and stored: leave it out"),
        ("reinforce", "foo=1", "unknown key foo: python -m positron.reinforce --cfg job lists all keys"),
        ("sft", "quickstart", "settings are given as key=value, such as init_from=quickstart"),
        ("sft", "story_instruct", "did you mean experiment=story_instruct?"),
    ],
)
def test_a_choice_is_answered_as_the_command_reads_it(recipe, word, said):
    assert said in refused(word, recipe=recipe)


def test_a_choice_that_is_hardly_similar_to_the_possible_ones_is_answered_with_all_of_them():
    for loss in ("sigmoid", "cpo"):  # names of trl
        with pytest.raises(UserError, match=f"loss='{loss}' is not a possible value: give dpo or ipo or simpo or orpo"):
            from_dict(PreferenceConfig, {"loss": loss})
    with pytest.raises(UserError, match=r"did you mean orpo\? \(dpo, ipo, simpo, orpo\)"):
        from_dict(PreferenceConfig, {"loss": "orppo"})


def test_a_word_that_names_a_run_is_answered_with_the_setting_for_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs/quickstart").mkdir(parents=True)
    made_run(tmp_path / "outputs/quickstart", tiny(tmp_path))
    assert refused("quickstart", recipe="sft").endswith("did you mean init_from=quickstart?")
    assert "did you mean name=quickstart, to continue this run, or init_from=quickstart" in refused("quickstart")


def test_the_folder_of_own_choices_is_a_folder_and_its_names_are_compared(run_command, tmp_path):
    (tmp_path / "own/experiment").mkdir(parents=True)
    (tmp_path / "own/experiment/mine.yaml").write_text("# @package _global_\n")
    file = run_command("train", "--config-dir", "own/experiment/mine.yaml")
    assert (file.code, "is a file: give the folder that contains experiment/" in file.err) == (2, True)
    misspelt = run_command("train", "--config-dir", "own", "experiment=mien")
    assert (misspelt.code, "did you mean experiment=mine? Choices: addition, " in misspelt.err) == (2, True)


def test_own_choices_in_a_folder_of_the_group_have_its_name(run_command, tmp_path):
    (tmp_path / "own/model/wide").mkdir(parents=True)
    (tmp_path / "own/model/wide/one.yaml").write_text("defaults: [nano]\nd_model: 96\n")
    shown = run_command("train", "--config-dir", "own", "model=wide/one", "--cfg", "job")
    assert (shown.code, "d_model: 96" in shown.out) == (0, True), shown.err


def test_an_own_experiment_that_asks_for_an_unknown_choice_is_answered_with_similar_ones(run_command, tmp_path):
    (tmp_path / "own/experiment").mkdir(parents=True)
    text = "# @package _global_\ndefaults:\n  - override /model: quikstart\n"
    (tmp_path / "own/experiment/mine.yaml").write_text(text)
    result = run_command("train", "--config-dir", "own", "experiment=mine")
    assert (result.code, "there is no model=quikstart: did you mean model=quickstart?" in result.err) == (2, True)


@pytest.mark.parametrize("share", ["0", "1", "-0.1", "nan"])
def test_a_text_needs_a_share_for_validation_and_one_for_training(share):
    with pytest.raises(UserError, match=r"data\.val_fraction=\S+ must be above 0 and below 1"):
        DataConfig("stories", val_fraction=float(share))


def test_an_experiment_of_another_command_is_refused():
    message = refused("experiment=quickstart", recipe="sft")
    assert "is an experiment of python -m positron.train" in message
    assert message.endswith("choose from story_instruct")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "# @package _global_\ntrain: {max_steps: 3\n",
            r"mine\.yaml, line 3 is not valid YAML: expected .*; correct the file",
        ),
        (
            "# @package _global_\nmodel: debug\n",
            r"in own\Sexperiment\Smine\.yaml, line 2: `model: debug` does not choose a file of conf/model: write the line `- o",
        ),
        (
            "# @package _global_\nseed: 1\ndata: text\n",
            r"mine\.yaml, line 3: `data: text` does not choose a file of conf/data: write the line `- override /data: text` be",
        ),
        (
            "# @package _global_\ndata:\n",
            "mine.yaml, line 2: `data: null` does not choose a file of conf/data: write the",
        ),
        (
            "train: {max_steps: 3}\n",
            "the file of experiment=mine does not begin with the line `# @package _global_`: add",
        ),
        (
            "# @package _global_\ntrain: {max_stepz: 3}\n",
            r"in own\Sexperiment\Smine\.yaml, line 2: unknown key train\.max_stepz: did you",
        ),
        (
            "# @package _global_\ntrain:\n  max_steps: many\n",
            r"in own\Sexperiment\Smine\.yaml, line 3: train\.max_steps='many' is not a possible value: give",
        ),
    ],
)
def test_a_fault_in_the_users_experiment_is_reported_with_its_file(run_command, tmp_path, text, said):
    (tmp_path / "own/experiment").mkdir(parents=True)
    (tmp_path / "own/experiment/mine.yaml").write_text(text)
    result = run_command("train", "--config-dir", "own", "experiment=mine")
    assert result.code == 2
    assert re.search(said, result.err), result.err
    assert "Traceback" not in result.err


def test_a_misspelt_key_of_an_own_choice_is_reported_with_the_file_that_has_it(run_command, tmp_path):
    (tmp_path / "own/model").mkdir(parents=True)
    (tmp_path / "own/model/base.yaml").write_text("defaults: [nano]\nn_layers: 2\n")
    (tmp_path / "own/model/mine.yaml").write_text("defaults: [base]\nn_head: 2\n")
    result = run_command("train", "--config-dir", "own", "model=mine")
    assert re.search(
        r"in own.model.base\.yaml, line 2: unknown key model\.n_layers: did you mean model\.n_layer\?", result.err
    )
    assert result.code == 2


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        (
            "[/model: nano]",
            "choose model: nano, although model has a choice already: write `- override /model: nano` at",
        ),
        (
            "[model: nano]",
            "in the `defaults:` of experiment/mine.yaml: .* needs a slash: write `- override /model: nano`",
        ),
        ("[override model: nano]", "the entry of model needs a slash: write `- override /model: NAME` at the end"),
        ("[override /modle: nano]", "of experiment/mine.yaml: there is no group modle: did you mean model?"),
        ("[override /reward: sum]", "this command has no choice of reward: remove the entry, or use"),
        ("[absent]", "there is no file experiment/absent.yaml in conf/ or in the folder of --config-dir: correct"),
        ("[mine]", "name this file itself, or a file that leads back to it: remove this entry"),
        ("{override /model: nano}", "'experiment/mine', defaults must be a list .*: write each entry as a line such"),
        (None, "model.context_length is missing: give model.context_length=VALUE, or add it to the file"),
    ],
)
def test_a_wrong_entry_in_the_defaults_of_an_own_experiment_is_answered_with_the_right_one(
    run_command, tmp_path, entries, said
):
    (tmp_path / "own/experiment").mkdir(parents=True)
    (tmp_path / "own/model").mkdir()
    (tmp_path / "own/model/half.yaml").write_text("d_model: 8\n")
    text = f"# @package _global_\ndefaults: {'[override /model: half]' if entries is None else entries}\n"
    (tmp_path / "own/experiment/mine.yaml").write_text(text)
    result = run_command("train", "--config-dir", "own", "experiment=mine", "data.size_mb=0.5")
    assert result.code == 2
    assert re.search(said, result.err), result.err
    assert "Traceback" not in result.err


def test_an_own_experiment_without_its_first_line_that_overrides_a_choice_is_told_the_line(run_command, tmp_path):
    (tmp_path / "own/experiment").mkdir(parents=True)
    (tmp_path / "own/experiment/mine.yaml").write_text("defaults: [override /model: nano]\n")
    result = run_command("train", "--config-dir", "own", "experiment=mine")
    assert result.code == 2
    assert "experiment/mine.yaml does not begin with the line `# @package _global_`: add this line" in result.err


@pytest.mark.parametrize("name", ["experiment/mine", "model/latin"])
def test_an_own_file_in_another_encoding_is_named_with_what_to_do(run_command, tmp_path, name):
    for group in ("experiment", "model"):
        (tmp_path / "own" / group).mkdir(parents=True)
    (tmp_path / "own" / f"{name}.yaml").write_text("# @package _global_\n# größer\nseed: 3\n", encoding="latin-1")
    group, _, choice = name.partition("/")
    result = run_command("train", "--config-dir", "own", f"{group}={choice}")
    assert result.code == 2
    assert re.search(
        rf"own\S{group}\S{choice}\.yaml is not UTF-8: save it as UTF-8 without a byte order mark$", result.err.strip()
    )


def test_a_byte_order_mark_is_refused_in_a_chosen_experiment_only(tmp_path):
    (tmp_path / "experiment").mkdir()
    for name, encoding in (("mine", "utf-8-sig"), ("latin", "latin-1"), ("good", "utf-8")):
        (tmp_path / "experiment" / f"{name}.yaml").write_text("# @package _global_\n# ö\nseed: 3\n", encoding=encoding)
    with pytest.raises(
        UserError, match=r"mine\.yaml begins with a byte order mark: save it as UTF-8 without a byte order m"
    ):
        read_command_line(["--config-dir", str(tmp_path), "-m", "experiment=good,mine"], "train", CONF)
    read_command_line(["--config-dir", str(tmp_path), "experiment=good"], "train", CONF)


# Sweeps


def test_a_job_is_found_by_its_overrides_whatever_its_number(tmp_path):
    jobs = [["seed=1", f"optimizer.lr={lr}"] for lr in ("0.001", "0.003")]
    folders = [claim_folder(tmp_path, number, job, None) for number, job in enumerate(jobs)]
    assert [folder.name for folder in folders] == ["0", "1"]
    more = claim_folder(tmp_path, 0, ["seed=1", "optimizer.lr=0.0005"], None)
    assert more.name == "2"
    assert claim_folder(tmp_path, 1, jobs[0], None) == folders[0]
    assert (
        claim_folder(tmp_path, 0, [*jobs[1], "++monitor.every=3", "device=cpu"], None) == folders[1]
    )  # shown elsewhere
    assert claim_folder(tmp_path, 0, ["seed=1", "optimizer.lr=0.003", "data.size_mb=1"], None).name == "3"


def test_jobs_of_older_versions_are_found_by_their_job_json_or_their_config(tmp_path):
    (tmp_path / "0").mkdir()
    write_json(tmp_path / "0/job.json", {"overrides": ["seed=1"], "failed": None})
    (tmp_path / "1").mkdir()
    made_run(tmp_path / "1", tiny(tmp_path))  # killed before its job.json
    assert claim_folder(tmp_path, 4, ["seed=1"], None).name == "0"
    assert claim_folder(tmp_path, 4, ["seed=7"], tiny(tmp_path)).name == "1"


SWEEP = (
    "model=debug",
    "device=cpu",
    *FAST,
    "name=s",
    "train.max_steps=3",
    "schedule.warmup_steps=1",
    "train.val_every=3",
)


@pytest.mark.slow
def test_a_sweep_grown_and_reordered_keeps_what_is_done_and_choices_may_be_a_pattern(run_command, tmp_path):
    first = run_command("train", *SWEEP, "-m", "schedule=glob(co*)")  # constant, cosine
    assert first.code == 0, first.err
    folder = tmp_path / "outputs/sweeps/s"
    before = {name: (folder / name / "metrics.jsonl").read_bytes() for name in ("0", "1")}
    jobs = {name: (folder / name / "job.json").read_bytes() for name in ("0", "1")}
    more = run_command("train", *SWEEP, "schedule=linear,cosine,constant", "-m")
    assert more.code == 0, more.err
    assert more.err.count("nothing to do") == 2
    assert before == {name: (folder / name / "metrics.jsonl").read_bytes() for name in ("0", "1")}
    assert {json.loads(text)["failed"] for text in jobs.values()} == {None}
    assert len(more.out.strip().splitlines()) == 6
    assert "schedule=linear" in json.loads((folder / "2" / "job.json").read_text())["overrides"]


def test_a_sweep_that_cannot_be_listed_or_that_no_job_reads_is_refused_before_its_first_job(run_command, tmp_path):
    refusal = run_command("train", *SWEEP, "-m", "optimizer.lr=interval(1e-3,1e-2)")
    assert refusal.code == 2
    assert "hydra/sweeper=optuna" in refusal.err
    wrong = run_command("train", *SWEEP, "-m", "seed=1,2", "tokenizer.vocab_size=100")
    assert wrong.code == 2
    assert "tokenizer.vocab_size= is read by" in wrong.err
    assert not (tmp_path / "outputs").exists()


# Help


@pytest.mark.parametrize("recipe", ["train", "sft"])
def test_help_shows_usage_every_choice_and_every_key_with_its_meaning(recipe):
    text = help_text(recipe, CONF)
    assert text.startswith(f"usage: python -m positron.{recipe}")
    assert "_defaults" not in text
    assert "_recipe" not in text
    assert "Hydra." not in text.splitlines()[0]
    for key, meaning in field_comments().items():
        if key.split(".")[0] not in NOT_READ_BY[recipe]:
            assert f"  {key}  " in text
            assert meaning, f"{key} has no comment in config.py"
            assert meaning.split()[0] in text
    if recipe == "train":
        for word in ("smear", "auto_size", "device.share", "spm_4k", "muon_embeddings"):
            assert word in text


def test_every_choice_is_described_by_the_first_comment_of_its_file():
    for group, choices in groups_of(CONF).items():
        for choice in choices:
            assert first_comment(CONF / group / f"{choice}.yaml"), f"conf/{group}/{choice}.yaml has no comment"


def test_positron_alone_lists_every_command_with_a_line_each(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["positron"])
    list_commands()
    lines = capsys.readouterr().out
    for command in COMMANDS:
        assert re.search(rf"^  {command} +\S", lines, re.MULTILINE)
        assert summary(command)
    monkeypatch.setattr(sys, "argv", ["positron", "trian"])
    with pytest.raises(SystemExit, match="2"):
        list_commands()
    assert "python -m positron.train" in capsys.readouterr().err


_PROPOSED = {
    "trian": "train",
    "import_": "import_",
    "improt": "import_",
    "sample": "generate",
    "finetune": "sft",
    "resume": "train",
}


@pytest.mark.parametrize(("typed", "module"), _PROPOSED.items())
def test_the_command_proposed_for_a_misspelt_one_or_one_of_another_tool_exists(typed, module, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["positron", typed, "--help"])
    with pytest.raises(SystemExit, match="2"):
        list_commands()
    proposed = re.search(r"did you mean .* -m (\S+) --help\?", capsys.readouterr().err)
    assert proposed is not None
    assert proposed[1] == f"positron.{module}"
    assert importlib.util.find_spec(proposed[1]) is not None


@pytest.mark.parametrize("command", ["train", "sft"])
def test_version_is_positrons(run_command, command):
    assert run_command(command, "--version").out == f"Positron {__version__}\n"
