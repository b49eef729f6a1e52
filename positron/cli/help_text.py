"""Write the help of a command that starts runs: all groups of settings with their choices, all keys with type and default.

A group is a folder in conf/, such as conf/model, and its choices are the files in it. No description is written twice: a choice
is described by the first comment of its file, a key by the comment of its field in config.py.
"""

from __future__ import annotations

import ast
import dataclasses
import re
import textwrap
import typing
from pathlib import Path
from typing import Any, Literal

from positron import config as settings
from positron.cli.defaults import default_configs, register_defaults
from positron.cli.overrides import groups_of
from positron.cli.unused_settings import fits
from positron.config import RunConfig
from positron.settings import BESIDE_VALUES, MISSING, NOT_READ_BY, Recipe, all_keys, flat, is_group, type_of
from positron.system.commands import command

_WIDTH = 110
_USAGE: dict[Recipe, tuple[str, tuple[str, ...]]] = {
    "train": (
        "Train a GPT. To continue a run, give the same command again.",
        (
            "model=debug data=text data.path=my.txt tokenizer=char",
            "experiment=quickstart",
            "-m model=debug optimizer.lr=3e-4,1e-3 name=grid",
        ),
    ),
    "distill": (
        "Train a new model on a text and on the probabilities that trained models, its teachers, predict for this text.\n"
        "Without model=, the new model has the architecture of the first teacher; without data=, the text is the training\n"
        "text of the first teacher. The tokenizer is always that of the teachers.",
        (
            "teachers=quickstart experiment=quickstart name=student",
            "teachers=RUN,RUN model=debug distill.alpha=0.9 distill.temperature=2",
        ),
    ),
    "sft": (
        "Fine-tune a run on conversations. Model and tokenizer come from init_from=RUN (default: the run pretrained last).",
        ("init_from=quickstart experiment=story_instruct", "init_from=quickstart data=instruct data.path=my.jsonl"),
    ),
    "prefer": (
        "Teach a run which of two answers is better. Model and tokenizer come from init_from=RUN (default: of the runs\n"
        "that are not results of prefer, the one trained last).",
        (
            "init_from=sft-story_instruct experiment=story_preference",
            "init_from=sft-instruct data=preferences data.path=pairs.jsonl",
        ),
    ),
    "reinforce": (
        "Train a run on its own answers, weighted by a reward. Model and tokenizer come from init_from=RUN (default: of\n"
        "the runs that can chat, the one trained last).",
        (
            "init_from=sft-story_instruct experiment=story_reward",
            "init_from=RUN reward=custom reward.function=mine.reward",
        ),
    ),
}
_OPTIONS = (
    ("-m, --multirun", "sweep: one run for each value of key=a,b,c (or Hydra's choice(), range(), glob(), interval())"),
    (
        "--cfg job",
        "print all settings that the command would use, and exit; add --resolve to replace each ${...} by its value",
    ),
    (
        "--config-dir FOLDER",
        "look for further choices in FOLDER, such as FOLDER/experiment/mine.yaml for experiment=mine",
    ),
    ("--help, --version", "show this text, or the version of Positron"),
    ("--hydra-help", "show the options of Hydra, the library that composes the settings"),
)


def help_text(recipe: Recipe, conf: Path) -> str:
    """Return the help of the command `recipe`; `conf` is the folder of configuration files."""
    purpose, examples = _USAGE[recipe]
    lines = [f"usage: {command(recipe)} [-m] [GROUP=CHOICE ...] [KEY=VALUE ...]", "", purpose, ""]
    lines += [f"  {command(recipe)} {example}" for example in examples]
    lines += ["", "options:", *_columns(_OPTIONS, 24), "", "groups, one choice each:"]
    chosen = default_choices(conf / f"{recipe}.yaml")
    for group, choices in groups_of(conf).items():
        if group not in chosen or group in NOT_READ_BY[recipe]:
            continue
        default = f" (default {chosen[group] or 'null'})"
        rows = [
            (name, first_comment(conf / group / f"{name}.yaml")) for name in choices if fits(recipe, group, name, conf)
        ]
        lines += ["", f"  {group}={default}", *_columns(rows, 24, indent=4)]
    lines += ["", "keys, with type and default:"]
    defaults, comments = default_values(recipe, conf), field_comments()
    section = ""
    for key in all_keys():
        hint, top = type_of(key), key.partition(".")[0]
        if top in NOT_READ_BY[recipe] or is_group(key):
            continue
        if section != (section := top if "." in key else ""):
            lines.append("")
        default = "" if defaults[key] == MISSING else f" = {shown(defaults[key])}"
        lines += _columns([(f"{key}  {type_in_words(hint)}{default}", comments[key])], 60)
    return "\n".join(lines)


def default_choices(recipe: Path) -> dict[str, str | None]:
    """Return the default choice of each group of settings, such as {"model": "tinygpt", "data": "stories"}.

    Reads Hydra's defaults list in the file `recipe`, such as conf/train.yaml, and in the files beside it that this list names.
    """
    import yaml

    choices: dict[str, str | None] = {}
    for entry in yaml.safe_load(recipe.read_text(encoding="utf-8"))["defaults"]:
        if isinstance(entry, dict):
            group, choice = next(iter(entry.items()))
            choices |= {} if group.startswith("override") else {group: choice}
        elif entry != "_self_" and not entry.startswith("/"):
            choices |= default_choices(recipe.with_name(f"{entry}.yaml"))
    return choices


def default_values(recipe: Recipe, conf: Path) -> dict[str, Any]:
    """Return the default value of each key, such as optimizer.lr, of the command `recipe`; `conf` is the folder conf/."""
    import hydra
    from omegaconf import OmegaConf

    register_defaults()
    with hydra.initialize_config_dir(str(conf), version_base="1.3"):
        composed: Any = OmegaConf.to_container(hydra.compose(recipe, []), resolve=False)
    optional = default_configs()  # keys of a logger are composed only if it is chosen
    values = flat(composed) | flat(optional["wandb"]) | flat(optional["tensorboard"])
    values["name"] = re.sub(r"\$\{hydra:runtime\.choices\.(\w+)\}", lambda match: match[1].upper(), str(values["name"]))
    return values


def first_comment(path: Path) -> str:
    """Return the first sentence of the comment at the top of `path`, a file in conf/."""
    lines = path.read_text(encoding="utf-8").splitlines()
    words = []
    for line in lines:
        if line.startswith("# @package"):
            continue
        if not line.startswith("#") or line.startswith("#   "):  # an indented line is a command to copy
            break
        words.append(line.lstrip("# "))
    text = " ".join(words).rstrip(":")
    return re.split(r"(?<! al)[.:](?= [A-Z]|$)|: (?=data=|model=)", text)[0]


def field_comments() -> dict[str, str]:
    """Return the comment of each key, such as train.max_steps, as a dict from keys to comments.

    The comment of a key is the one after its field in config.py, or else the lines above the field.
    """
    source = Path(settings.__file__).read_text(encoding="utf-8")
    lines = source.splitlines()
    of_class: dict[str, dict[str, str]] = {}
    for node in ast.parse(source).body:
        if not isinstance(node, ast.ClassDef):
            continue
        comments = of_class.setdefault(node.name, {})
        for item in node.body:
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                # the formatter may break a long field into several lines
                field = lines[item.lineno - 1 : item.end_lineno]
                comment_text = " ".join(comment for line in field if (comment := line.partition("  # ")[2]))
                comments[item.target.id] = comment_text or _comment_above(lines, item.lineno)
    return _comments_of(RunConfig, "", of_class) | {key: of_class["Asked"][key] for key in BESIDE_VALUES}


def _comment_above(lines: list[str], line: int) -> str:
    """Return the comment that ends directly above the line with the number `line` (counted from 1), as one text."""
    first = line - 1
    while first > 0 and lines[first - 1].strip().startswith("#"):
        first -= 1
    return " ".join(text.strip().lstrip("# ") for text in lines[first : line - 1])


def _comments_of(cls: type, prefix: str, of_class: dict[str, dict[str, str]]) -> dict[str, str]:
    comments: dict[str, str] = {}
    for name, hint in typing.get_type_hints(cls).items():
        inner = _group_class(hint)
        if inner is not None:
            comments |= _comments_of(inner, f"{prefix}{name}.", of_class)
        else:
            comments[prefix + name] = next(filter(None, (of_class[c.__name__].get(name) for c in cls.__mro__[:-1])), "")
    return comments


def _group_class(hint: Any) -> type | None:
    if typing.get_origin(hint) is tuple:  # a list of groups is one value
        return None
    parts = [part for part in (hint, *typing.get_args(hint)) if isinstance(part, type)]
    return next((part for part in parts if dataclasses.is_dataclass(part)), None)


def type_in_words(hint: Any) -> str:
    """Describe a type for users, such as int, text, list or true|false; a Literal is described by its values."""
    if hint is type(None):
        return "null"
    origin = typing.get_origin(hint)
    if origin is Literal:
        return "|".join(map(str, typing.get_args(hint)))
    if origin is tuple:
        return "list"
    if origin is dict:
        return "mapping"
    if typing.get_args(hint):
        return "|".join(map(type_in_words, typing.get_args(hint)))
    return str({bool: "true|false", str: "text"}.get(hint, hint.__name__))


def shown(value: Any) -> str:
    """Return a value as a user would type it; a reference `${key}` becomes `key`."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(str, value))}]"
    return re.sub(r"\$\{([\w.]+)\}", r"\1", str(value))


def _columns(rows: typing.Iterable[tuple[str, str]], left: int, indent: int = 2) -> list[str]:
    lines = []
    for name, text in rows:
        start = " " * indent + name
        wrapped = textwrap.wrap(text, _WIDTH - left - indent) or [""]
        if len(start) > left + indent - 2:
            lines.append(start)
            start = ""
        lines.append(f"{start:<{left + indent}}{wrapped[0]}".rstrip())
        lines += [" " * (left + indent) + line for line in wrapped[1:]]
    return [line for line in lines if line]
