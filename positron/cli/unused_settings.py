"""Refuse settings that the user gives but the run would not read, and say what to give instead.

The table `READ_BY` says, for groups of settings such as `optimizer`, which choice (adamw, muon, ...) reads which keys. A few
functions refuse other settings without effect. For example, device.batch_tokens= has no effect if train.batch_tokens= is given,
too. Only keys from the command line or an experiment's file are refused, never defaults. `fits` says which choices a command
can use. The module is imported before torch and Hydra, so it must not import them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from positron.config import OPTIMIZER_READS, REWARD_READS
from positron.settings import COMMANDS_FROM_TEXT, NOT_READ_BY, OWN_GROUPS, Recipe
from positron.system.commands import command
from positron.system.errors import UserError


@dataclass(frozen=True)
class Choice:
    """Describe a group of settings in which one key decides which of the other keys are used.

    The deciding key is `decided_by`, such as `kind` of the group `optimizer`. `choices` maps each value of this key to the keys
    that are used with the value. `select` maps each value to the settings that select it, such as `optimizer=muon`, or
    `data=text data.path=FILE` for a value that requires another setting.
    """

    group: str
    decided_by: str
    choices: Mapping[str, tuple[str, ...]]
    select: Mapping[str, str]

    @property
    def selector(self) -> str:
        """Return the key that a user sets to select one of `choices`, such as `optimizer` (in optimizer=muon) or `data`."""
        return next(iter(self.select.values())).partition("=")[0]

    def readers(self, key: str) -> list[str]:
        """Return the values of the key `decided_by` with which a run reads the key `key` of the same group.

        Both keys are without the name of the group. For example, `decided_by` is "kind" in the group `optimizer`. The key
        optimizer.betas is read if optimizer.kind is adamw or muon, so `readers("betas")` returns ["adamw", "muon"].
        """
        return [choice for choice, keys in self.choices.items() if key in keys]


READ_BY = (
    Choice(
        "data",
        "source",
        {
            "stories": ("size_mb",),
            "addition": (),
            "text": ("path", "url", "sha256", "field", "on_invalid", "max_mb"),
            "hub": ("repo", "files", "revision", "config_name", "field", "on_invalid", "max_mb", "tokens_per_epoch"),
            "instruct": ("path", "repo", "files", "revision", "config_name", "on_invalid"),
            "story_instruct": ("examples",),
            "preferences": ("path", "repo", "files", "revision", "config_name", "on_invalid"),
            "story_preference": ("examples",),
            "imported": (),
        },
        {
            "stories": "data=stories",
            "text": "data=text data.path=FILE",
            "hub": "data=hub data.repo=OWNER/NAME",
            "instruct": "data=instruct data.path=FILE",
            "story_instruct": "data=story_instruct",
            "preferences": "data=preferences data.path=FILE",
            "story_preference": "data=story_preference",
        },
    ),
    Choice(
        "tokenizer",
        "kind",
        {
            "char": (),
            "word": ("vocab_size",),
            "sentencepiece": ("vocab_size",),
            "tiktoken": ("name",),
            "huggingface": (),
        },
        {"word": "tokenizer=word", "sentencepiece": "tokenizer=spm_4k", "tiktoken": "tokenizer=gpt2"},
    ),
    Choice(
        "optimizer",
        "kind",
        OPTIMIZER_READS,
        {kind: f"optimizer={kind}" for kind in OPTIMIZER_READS},
    ),
    Choice(
        "reward",
        "kind",
        REWARD_READS,
        {kind: f"reward={kind}" for kind in REWARD_READS},
    ),
    Choice(
        "schedule",
        "kind",
        {
            "cosine": ("final_ratio",),
            "linear": ("final_ratio",),
            "constant": (),
            "trapezoid": ("final_ratio", "decay_share"),
        },
        {name: f"schedule={name}" for name in ("cosine", "linear", "trapezoid")},
    ),
    Choice(
        "preference",
        "loss",
        {"dpo": ("beta", "label_smoothing"), "ipo": ("beta",), "simpo": ("beta", "gamma"), "orpo": ("weight",)},
        {name: f"preference.loss={name}" for name in ("dpo", "ipo", "simpo", "orpo")},
    ),
)
OWN_FILES = ("text", "instruct", "preferences")  # sources that read the user's own files
_TEXTS = ("stories", "addition", "text", "hub")
SOURCES_OF: dict[Recipe, tuple[str, ...]] = {
    "train": _TEXTS,
    "distill": _TEXTS,
    "sft": ("instruct", "story_instruct"),
    "prefer": ("preferences", "story_preference"),
    "reinforce": ("instruct", "story_instruct", "addition"),
}
TUNING_EXPERIMENTS: dict[Recipe, tuple[str, ...]] = {  # the others are for pretraining
    "sft": ("story_instruct",),
    "prefer": ("story_preference",),
    "reinforce": ("story_reward", "addition_reward"),
}
_DATA_ADVICE: dict[Recipe, str] = {
    "train": "pretraining learns from text: give data=text data.path=FILE, or data=stories",
    "distill": "distillation learns from text and teachers: give data=text data.path=FILE, or data=stories",
    "sft": "SFT learns from conversations: give data=story_instruct, or data=instruct data.path=my.jsonl",
    "prefer": "preference tuning learns from pairs: give data=story_preference, or data=preferences data.path=my.jsonl",
    "reinforce": "prompts come from conversations: give data=story_instruct, data=addition, or data=instruct data.path=FILE",
}
MONITORS = ("gradients", "weights", "attention", "activations", "tokens")
_EMPTY_VALUES = ("null", "false", "None", "False")


def refuse_unread(
    values: Mapping[str, Any],
    given: Mapping[str, str],
    *,
    experiment: Mapping[str, str] | None = None,
    recipe: Recipe = "train",
    is_sweep: bool = False,
    swept: Iterable[str] = (),
) -> None:
    """Raise UserError if the user gave a setting that this run would not read; the message names the first such setting.

    `values` is the composed configuration. `given` maps the keys of the command line to their values as text, and `experiment`
    maps the keys of the experiment's file to their values. In a sweep, `swept` contains the keys with several values: a group
    of settings is not checked if one of these keys decides which settings of the group are read.
    """
    varied = set(swept)
    if "experiment" in varied:
        return
    read = {key: text for key, text in given.items() if text not in _EMPTY_VALUES}
    if not varied & {"data", "data.source"}:
        refuse_other_source(values["data"]["source"], recipe)
    for choice in READ_BY:
        if (
            not varied & {choice.group, f"{choice.group}.{choice.decided_by}"}
            and choice.group not in NOT_READ_BY[recipe]
        ):
            _refuse_of_choice(choice, values[choice.group], {**(experiment or {}), **read}, recipe)
    for rule in (_text_by_url, _pretraining_data, _samples, _length, _monitors, _sweep, _batch):
        rule(values, read, recipe, is_sweep)


def refuse_other_source(source: str, recipe: Recipe) -> None:
    """Raise UserError if the command `recipe` does not learn from data of the kind `source`."""
    if source not in SOURCES_OF[recipe]:
        readers = [command(other) for other, sources in SOURCES_OF.items() if source in sources]
        remark = f" (only {' and '.join(readers)} can)" if readers else ""
        if source == "imported":  # a distillation takes data= from its teacher
            raise UserError(f"the training text of an imported model is not known; {_DATA_ADVICE[recipe]}")
        raise UserError(f"{command(recipe)} cannot learn from data.source={source}{remark}; {_DATA_ADVICE[recipe]}")


def _refuse_of_choice(choice: Choice, group: Mapping[str, Any], given: Mapping[str, str], recipe: Recipe) -> None:
    chosen = group[choice.decided_by]
    for key in given:
        name = key.removeprefix(f"{choice.group}.")
        readers = [reader for reader in choice.readers(name) if _possible(reader, choice, recipe)]
        if name == key or not choice.readers(name) or chosen in choice.readers(name):
            continue
        selector = choice.selector
        now = f"{selector}={given.get(selector, chosen)}"
        if not readers:
            raise UserError(f"{key}= is not read by {now}: leave {key}= out")
        others = ", ".join(dict.fromkeys(choice.select[reader].partition(" ")[0] for reader in readers))
        add = " or ".join(dict.fromkeys(_missing(choice.select[reader], given) for reader in readers))
        # without a choice of the user, the key says which one is meant
        remedy = f"leave {key}= out, or give {add}" if selector in given else f"add {add}, or leave {key}= out"
        raise UserError(f"{key}= is read by {others}, not by {now}: {remedy}")


def _missing(settings: str, given: Mapping[str, str]) -> str:
    """Return the part of `settings` that the user must still type, for the advice in an error message.

    `settings` is a text such as "data=text data.path=FILE", and `given` maps the keys that the user gave to their values. The
    first setting is always kept; the others are left out if their keys are in `given`.
    """
    first, *needed = settings.split(" ")
    return " ".join([first, *(setting for setting in needed if setting.partition("=")[0] not in given)])


def _possible(reader: str, choice: Choice, recipe: Recipe) -> bool:
    return choice.group != "data" or reader in SOURCES_OF[recipe]


def _text_by_url(values: Mapping[str, Any], given: Mapping[str, str], recipe: Recipe, is_sweep: bool) -> None:
    data = values["data"]
    if data["source"] != "text":
        return
    if "data.path" in given and data.get("url") and "data.url" not in given:
        chosen = next((f"{key}={given[key]}" for key in ("data", "experiment") if key in given), "this configuration")
        raise UserError(
            f"{chosen} downloads the text and does not read data.path=: give data=text data.path={given['data.path']}, or "
            "leave data.path= out"
        )
    if "data.path" in given and "data.url" in given:
        raise UserError("data.path= and data.url= both say where the text is: give one of them")
    if "data.sha256" in given and not data.get("url"):
        raise UserError(
            "data.sha256= is the checksum of a download, but data.url= is not given: add data.url=, or leave data.sha256= out"
        )


def _pretraining_data(values: Mapping[str, Any], given: Mapping[str, str], recipe: Recipe, is_sweep: bool) -> None:
    if recipe in COMMANDS_FROM_TEXT:
        return
    for key in ("packing", "document_mask", "window_tokens", "dir"):
        if f"data.{key}" in given:
            remark = " (sft.packing=true packs conversations)" if (key, recipe) == ("packing", "sft") else ""
            readers = " and ".join(map(command, COMMANDS_FROM_TEXT))
            raise UserError(
                f"data.{key}= is read by {readers}, not by {command(recipe)}: leave data.{key}= out{remark}"
            )


def _samples(values: Mapping[str, Any], given: Mapping[str, str], recipe: Recipe, is_sweep: bool) -> None:
    if recipe == "reinforce" and "train.sample_prompt" in given:
        raise UserError(
            f"train.sample_prompt= is not read by {command(recipe)}, whose samples answer the first validation prompt: leave "
            "train.sample_prompt= out"
        )


def _length(values: Mapping[str, Any], given: Mapping[str, str], recipe: Recipe, is_sweep: bool) -> None:
    steps = values["train"]["max_steps"]
    for key in (f"{group}.epochs" for group in OWN_GROUPS[recipe]):
        if key in given and steps != "auto":
            raise UserError(
                f"{key}= has an effect only with train.max_steps=auto, not with train.max_steps={steps}: "
                f"give train.max_steps=auto, or leave {key}= out"
            )


def _monitors(values: Mapping[str, Any], given: Mapping[str, str], recipe: Recipe, is_sweep: bool) -> None:
    if "monitor.every" in given and not any((values.get("monitor") or {}).get(name) for name in MONITORS):
        raise UserError(
            f"monitor.every= has no effect without measurements: add monitor=all, or monitor= with one of {', '.join(MONITORS)}"
        )


def _sweep(values: Mapping[str, Any], given: Mapping[str, str], recipe: Recipe, is_sweep: bool) -> None:
    keys = [key for key in given if key.startswith("sweep.")]
    if keys and not is_sweep:
        raise UserError(
            f"{keys[0]}= has no effect without a sweep: add -m and several values for a key, or leave {keys[0]}= out"
        )
    if "sweep.startup_jobs" in given and (values.get("sweep") or {}).get("prune") is None:
        raise UserError(
            "sweep.startup_jobs= has no effect without sweep.prune=median: add sweep.prune=median, or leave "
            "sweep.startup_jobs= out"
        )


def _batch(values: Mapping[str, Any], given: Mapping[str, str], recipe: Recipe, is_sweep: bool) -> None:
    """Raise UserError if device.batch_tokens= or device.micro_batch_size= is given but has no effect.

    These two keys are only the defaults of train.batch_tokens= and train.micro_batch_size=. So they have no effect if the keys
    of train are set. In addition, device.batch_tokens= never has an effect in reinforcement learning.
    """
    if recipe == "reinforce" and "device.batch_tokens" in given:
        raise UserError(no_batch_tokens("device.batch_tokens"))
    for key in ("batch_tokens", "micro_batch_size"):
        default, used = values["device"].get(key), values["train"].get(key)
        if f"device.{key}" in given and (default != used or f"train.{key}" in given):
            is_set = f"train.{key}" in given
            remedy = f"leave device.{key}= out" if is_set else f"give train.{key}={default} instead"
            raise UserError(
                f"device.{key}={default} has no effect, because it is only the default of train.{key}, which is {used} in this "
                f"run: {remedy}"
            )


def no_batch_tokens(key: str) -> str:
    """Return the message that reinforcement learning does not read `key`, which sets the tokens of a batch."""
    return (
        f"{key}= has no effect in reinforcement learning, because a batch has reinforce.prompts= times reinforce.samples= "
        f"answers: give these two keys instead of {key}="
    )


def fits(recipe: Recipe, group: str, name: str, conf: Path) -> bool:
    """Tell whether the command `recipe` can use the setting `group`=`name`.

    For example, the command "sft" cannot use data=shakespeare, because `positron sft` learns from conversations and not from a
    text. A choice without a file in `conf`, such as one in the folder of --config-dir, is taken to be usable.
    """
    if not (conf / group / f"{name}.yaml").is_file():
        return True
    match group:
        case "data":
            import yaml

            source = yaml.safe_load((conf / "data" / f"{name}.yaml").read_text(encoding="utf-8"))["source"]
            return source in ("custom", *SOURCES_OF[recipe])
        case "experiment":
            return name in TUNING_EXPERIMENTS.get(recipe, ()) or (
                recipe in COMMANDS_FROM_TEXT and not _is_of_tuning(name)
            )
        case _:
            return True


def _is_of_tuning(experiment: str) -> bool:
    return any(experiment in names for names in TUNING_EXPERIMENTS.values())
