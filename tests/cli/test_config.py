"""The schema: every choice composes, every mistake is named with the nearest right key, nothing heavy is imported."""

import argparse
import subprocess
import sys
from itertools import zip_longest
from pathlib import Path

import pytest
from composing import composed
from conftest import PATIENCE, PROJECT, tiny

from positron import preview
from positron.cli.sampling_options import chosen_sampling, sampling_options
from positron.cli.unused_settings import TUNING_EXPERIMENTS
from positron.config import GPTConfig, RunConfig, seconds
from positron.settings import BASE_GROUPS, all_keys, from_dict, unknown_key
from positron.system.errors import UserError

CONF = PROJECT / "conf"
GROUPS = (
    "model",
    "tokenizer",
    "data",
    "device",
    "precision",
    "optimizer",
    "schedule",
    "logger",
    "monitor",
    "experiment",
    "reward",
)
CHOICES = {
    group: [
        f"{group}={path.stem}"
        for path in sorted((CONF / group).glob("[a-z]*.yaml"))
        if (group, path.stem) != ("data", "custom")  # which becomes another source when its function was called
    ]
    for group in GROUPS
}
# experiments change other groups, and rewards belong to another recipe; of the other groups, a command takes one choice each
ALONE = ("experiment", "reward")
COMMANDS = [
    *zip_longest(*(choices for group, choices in CHOICES.items() if group not in ALONE)),
    *((choice,) for group in ALONE for choice in CHOICES[group]),
]
NEEDED = {
    "data=text": ["data.path=my.txt"],
    "data=hub": ["data.repo=some/dataset"],
    "data=preferences": ["data.path=my.jsonl"],
    "optimizer=custom": ["optimizer._target_=torch.optim.RAdam"],
    "reward=custom": ["reward.function=mine.reward"],
    "reward=length": ["reward.target=400"],
    "reward=regex": ["reward.pattern=a"],
    "reward=sum": ["reward.terms=[{kind:story_request}]"],
}


@pytest.fixture(scope="module")
def base():
    """The values that every recipe begins with."""
    return {key: value for key, value in composed().items() if key in BASE_GROUPS}


@pytest.mark.parametrize("choices", [[choice for choice in command if choice] for command in COMMANDS], ids=" ".join)
def test_every_file_in_conf_composes_to_a_valid_run(choices, base):
    overrides = [word for choice in choices for word in (choice, *NEEDED.get(choice, ()))]
    recipes = {f"experiment={name}": recipe for recipe, names in TUNING_EXPERIMENTS.items() for name in names}
    recipe = "reinforce" if choices[0].startswith("reward=") else recipes.get(choices[0], "train")
    config = from_dict(RunConfig, {**base, **composed(*overrides, recipe=recipe)})
    assert config.name


def test_the_name_is_model_and_data_unless_given():
    assert composed("model=nano")["name"] == "nano-stories"
    assert composed("model=nano", "name=mine")["name"] == "mine"


def test_device_presets_have_the_batches_of_the_table():
    table = {"m3max": 98_304, "mps": 98_304, "cuda": 131_072, "cpu": 65_536, "auto": "auto"}
    assert {name: composed(f"device={name}")["train"]["batch_tokens"] for name in table} == table


PRESETS = {  # vocabulary, parameters in millions as the names promise
    "tinygpt": (16_000, 15.1),
    "nano": (50_257, 12.5),
    "micro": (50_257, 30.3),
    "small": (50_257, 51.4),
    "gpt2": (50_257, 124.4),
}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_have_the_parameters_that_they_are_known_for(name):
    vocab, millions = PRESETS[name]
    config = from_dict(RunConfig, composed(f"model={name}")).model.with_vocab(vocab)
    assert config.n_params() / 1e6 == pytest.approx(millions, abs=0.06)


def test_presets_have_the_shapes_that_they_are_known_for():
    shapes = {}
    for name in ("tinygpt", "nano", "micro", "small", "fineweb", "fineweb_quick", "gpt2"):
        model = composed(f"model={name}")["model"]
        shapes[name] = tuple(model[key] for key in ("d_model", "n_layer", "n_head", "context_length"))
    assert shapes == {
        "tinygpt": (320, 8, 8, 512),
        "nano": (192, 6, 6, 1024),
        "micro": (384, 6, 6, 1024),
        "small": (512, 8, 8, 1024),
        "fineweb": (256, 6, 4, 1024),
        "fineweb_quick": (128, 4, 4, 512),
        "gpt2": (768, 12, 12, 1024),
    }


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("optimizer.lrr=3",), "did you mean optimizer.lr?"),
        (("+optimizer.lrr=3",), "did you mean optimizer.lr?"),
        (("lr=3",), "did you mean optimizer.lr?"),
        (("+max_step=3",), "did you mean train.max_steps?"),
        (("modell=nano",), "did you mean model?"),
        (("model=nanoo",), "nano"),
        (("optimizer.lr=fast",), "a number"),
        (("train.max_steps=1.5",), "a whole number"),
        (("train.max_steps=0",), "at least 1"),
        (("optimizer.lr=-1",), "must be positive"),
        (("model.n_head=7",), "not divisible"),
        (("schedule.kind=cosinus",), "did you mean cosine?"),
        (("model.dropout=1.5",), "must be at least 0 and below 1"),
        (("precision=fp8",), "fp16"),
        (("data=text",), "data.path=FILE"),
        (("tokenizer.vocab_size=10",), "at least 300"),
        (("device.devices=2",), "device.strategy=ddp"),
        (("train.max_time=soon",), "10m"),
        (("name=../x",), "cannot be a folder below outputs/"),
        (("init_from=a", "ckpt_path=b"), "one of them"),
    ],
)
def test_a_mistake_is_one_line_with_exit_code_2_and_writes_nothing(run_command, tmp_path, overrides, message):
    result = run_command("train", *overrides)
    assert result.code == 2, result.err
    assert message in result.err
    assert result.err.count("\n") == 1
    assert not (tmp_path / "outputs").exists()


def test_a_device_that_is_not_there_is_named_with_the_way_out(run_command):
    result = run_command("train", "device=cuda", *("model=debug",))
    assert result.code == 2
    assert "device=auto" in result.err


def test_from_dict_is_exact_about_types():
    class_ = type(tiny(Path()).optimizer)
    assert from_dict(class_, {"lr": 1}).lr == 1.0
    for value in (True, "1", None, [1]):
        with pytest.raises(UserError, match="lr="):
            from_dict(class_, {"lr": value})
    with pytest.raises(UserError, match="a list"):
        from_dict(class_, {"betas": [0.9]})


def test_unknown_keys_are_matched_by_path_and_by_last_word():
    assert "train.val_every" in unknown_key("train.vall_every")
    assert "model.n_layer" in unknown_key("n_layers")
    assert "--cfg job" in unknown_key("zzzzqqq")
    assert "choose from optimizer.kind, optimizer.lr" in unknown_key(
        "optimizer.wd"
    )  # similar only because of the group
    assert "did you mean schedule.warmup_steps?" in unknown_key("schedule.warm")
    assert "did you mean optimizer.lr?" in unknown_key("model.lr")
    assert "did you mean optimizer.lr?" in unknown_key("sft.lr")
    assert "choose from distill.teachers, distill.alpha" in unknown_key("distill.weights")  # not reinforce.weights
    assert {"optimizer.lr", "logger.wandb.project", "name"} <= set(all_keys())


@pytest.mark.parametrize(("text", "value"), [("90s", 90), ("10m", 600), ("2h", 7200), (5, 5), ("0.5h", 1800)])
def test_times(text, value):
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["", "-1", "soon", "10d", "nan", "inf", 0])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(UserError):
        seconds(text)


@pytest.mark.parametrize("options", [("--cfg", "job", "--resolve"), ("--help",)])
def test_help_needs_neither_torch_nor_lightning(options, tmp_path):
    code = (
        "import sys, positron.train as t\n"
        f"sys.argv = ['train', *{list(options)!r}]\n"
        "try:\n    t.main()\nexcept SystemExit as e:\n    assert not e.code\n"
        "heavy = {'torch', 'lightning', 'datasets', 'wandb', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE
    )
    assert result.returncode == 0, result.stderr
    assert "optimizer" in result.stdout


def test_gpt_config_has_the_options_of_the_model_config():
    config = tiny(Path()).model.with_vocab(100)
    assert isinstance(config, GPTConfig)
    assert config.vocab_size == 100


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ({"n_head": 7}, r"not divisible by model\.n_head=7: try model\.d_model=63$"),
        ({"d_model": 100, "n_head": 3, "position": "rope"}, r"not divisible by .*: try model\.d_model=96$"),
        ({"n_head": 8, "n_kv_head": 3}, r"must divide model\.n_head=8: choose one of 1, 2, 4, 8$"),
        ({"d_model": 36, "n_head": 4, "position": "rope"}, r"gives 9: try model\.d_model=32 or 40$"),
        ({"head_dim": 9, "position": "rope"}, r"even model\.head_dim, not 9: try model\.head_dim=10$"),
        ({"d_model": 9, "n_head": 3, "position": "sinusoidal"}, r"try model\.d_model=12$"),
        ({"d_model": 9, "head_dim": 8, "position": "sinusoidal"}, r"try model\.d_model=10$"),
    ],
)
def test_an_impossible_shape_is_refused_with_a_shape_that_is_possible(shape, says):
    possible = {"vocab_size": 8, "context_length": 8, "d_model": 64, "n_layer": 1, "n_head": 4}
    with pytest.raises(UserError, match=says):
        GPTConfig(**possible | shape)


def test_preview_names_only_the_argument_that_it_needs():
    with pytest.raises(UserError, match=r"arguments are required: PATH; "):
        preview.arguments().parse_intermixed_args([])
    assert preview.arguments().parse_intermixed_args(["my.txt"]).settings == []
    assert preview.arguments().parse_intermixed_args(["my.txt", "data.field=a"]).settings == ["data.field=a"]


def test_a_sampling_option_out_of_range_is_named_as_it_is_typed():
    parser = argparse.ArgumentParser()
    sampling_options(parser)
    for words, says in (
        (["--top-p", "2"], "--top-p must be .*, not 2"),
        (["--repetition-penalty", "0"], "--repetition-penalty must be .*, not 0"),
    ):
        with pytest.raises(UserError, match=f"^{says}"):
            chosen_sampling(parser.parse_args(words))
