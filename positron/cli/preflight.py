"""What is refused before anything costs time: within a second, before torch is imported or a file is written.

The same is tested again where it matters, under the run's lock; this only says it sooner.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from positron.config import Asked, DataConfig, LoggerConfig, RunConfig, TokenizerConfig
from positron.run.folder import OUTPUTS, Run, find_run, refuse_differences
from positron.settings import from_dict
from positron.system.disk import expanded, read_json
from positron.system.errors import UserError

RESERVED = ("data", "sweeps", "numpy_ref")  # folders of outputs/ that other commands write
_LONGEST_NAME = 200  # bytes of one folder's name; file systems allow 255, and files are written beside it
# What the weights of another run are made for; the rest may differ.
_SHAPE = (
    "d_model",
    "n_layer",
    "n_head",
    "kv_heads",
    "ff_width",
    "norm",
    "position",
    "activation",
    "bias",
    "tie_embeddings",
    "d_head",
    "qk_norm",
    "qk_scale",
    "smear",
)


def check(config: RunConfig, folder: Path, asked: Asked) -> RunConfig:
    """Refuse what this start cannot do; returns the config with the tokenizer of the run that it continues or begins from."""
    check_name(folder)
    config = with_known_tokenizer(config, folder, asked.given)
    config = with_source_model(config, folder, asked)
    run = Run(folder)
    if run.exists and any(run.checkpoint_folder.glob("*.ckpt")):
        if config.resume != "never":
            refuse_differences(run, config)
    else:
        check_source_run(config, asked)
    if not run.exists:
        check_files(config.data, asked.given)
    check_packages(config.logger)
    return config


def check_packages(logger: LoggerConfig) -> None:
    """Refuse a logger whose package is not installed."""
    if logger.tensorboard is not None and importlib.util.find_spec("tensorboard") is None:
        raise UserError("logger=tensorboard needs the package tensorboard: pip install tensorboard")


def check_name(folder: Path, *, is_sweep: bool = False) -> None:
    """Refuse a folder that others write to, that lies inside another run, or that some systems cannot make."""
    if any(len(part.encode()) > _LONGEST_NAME for part in folder.parts):
        raise UserError(f"name={folder.name[:40]}...: a folder's name may have {_LONGEST_NAME} bytes at most")
    if Run(folder).exists:
        return
    try:
        parts = folder.relative_to(OUTPUTS / "sweeps" if is_sweep else OUTPUTS).parts
    except ValueError:
        return
    name = "/".join(parts)
    if parts[0].casefold() in RESERVED and not is_sweep:
        raise UserError(f"name={name}: outputs/{parts[0]} is where Positron keeps other things: give another name=")
    for part in parts:
        if part != part.strip() or part.endswith(".") or not part.isprintable():
            raise UserError(
                f"name={name!r} begins or ends with a blank or a dot, or cannot be shown: give another name="
            )
    for parent in folder.parents:
        if parent == OUTPUTS:
            break
        if Run(parent).exists:
            raise UserError(f"name={name} lies inside the run {parent}: give a name= outside of it")


def check_source_run(config: RunConfig, asked: Asked) -> None:
    """Refuse init_from= and ckpt_path= where there is no such run or checkpoint, or where its model is another one."""
    run = _source_run(config)
    if run is None or config.sft is not None:
        return
    if asked.auto_size:
        raise UserError(
            f"model=auto chooses a size, and the weights of {run.folder} have one: give its architecture, "
            "or leave init_from= and ckpt_path= out"
        )
    theirs = run.settings().model
    different = {
        name: (getattr(theirs, name), getattr(config.model, name))
        for name in _SHAPE
        if getattr(theirs, name) != getattr(config.model, name)
    }
    learned = config.model.has_learned_positions and theirs.has_learned_positions
    if learned and theirs.context_length != config.model.context_length:
        different["context_length"] = (theirs.context_length, config.model.context_length)
    if different:
        key = "init_from" if config.init_from else "ckpt_path"
        words = {"kv_heads": "n_kv_head", "ff_width": "d_ff"}
        listed = " ".join(f"model.{words.get(name, name)}={_shown(theirs)}" for name, (theirs, _) in different.items())
        raise UserError(
            f"{key}={config.init_from or config.ckpt_path}: the weights are of another architecture than this command "
            f"asks for: add {listed}"
        )


def with_source_model(config: RunConfig, folder: Path, asked: Asked) -> RunConfig:
    """Return the config with the architecture of the run named by init_from=, where neither model= nor
    experiment= chooses one.

    Single values that the command gives, such as model.context_length=, stay as they are given.
    """
    if (
        config.sft is not None
        or config.init_from is None
        or asked.auto_size
        or {"model", "experiment"} & set(asked.given)
    ):
        return config
    run = Run(folder) if Run(folder).exists else _source_run(config)
    if run is None:
        return config
    given = {key.removeprefix("model.") for key in asked.given if key.startswith("model.")}
    values = {name: value for name, value in vars(run.settings().model).items() if name not in given}
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **values))


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _source_run(config: RunConfig) -> Run | None:
    """The other run whose weights this one begins with."""
    if config.init_from is not None:
        run = find_run(config.init_from)
        if not any(run.checkpoint_folder.glob("*.ckpt")):
            raise UserError(f"init_from={config.init_from}: {run.folder} has no checkpoint")
        return run
    if config.ckpt_path is None or config.ckpt_path == "latest":
        return None
    path = expanded(config.ckpt_path)
    if path.suffix != ".ckpt":
        return find_run(config.ckpt_path)
    if not path.is_file():
        raise UserError(f"ckpt_path={config.ckpt_path}: there is no such file")
    other = Run(path.parent.parent)
    return other if other.exists else None


def with_known_tokenizer(config: RunConfig, folder: Path, given: Mapping[str, str]) -> RunConfig:
    """A run keeps the tokenizer of the weights that it begins with; UserError where another one was asked for."""
    if config.sft is not None or (config.init_from is None and config.ckpt_path is None):
        return config
    own = Run(folder)
    run = own if own.exists else _source_run(config)
    if run is None:
        return config
    known = from_dict(TokenizerConfig, run.config()["tokenizer"], "tokenizer")
    asked = next((key for key in given if key == "tokenizer" or key.startswith("tokenizer.")), None)
    if asked is not None and config.tokenizer != known and config.tokenizer.kind != _saved_kind(run, known):
        raise UserError(
            f"{asked}={given[asked]} is another tokenizer than that of {run.folder}, which its weights are made for: "
            "leave it out"
        )
    if asked is not None and config.tokenizer != known and known.kind == config.tokenizer.kind:
        raise UserError(
            f"{asked}={given[asked]} is another vocabulary than that of {run.folder}, which its weights are made for: "
            "leave it out"
        )
    return dataclasses.replace(config, tokenizer=known)


def _saved_kind(run: Run, known: TokenizerConfig) -> str:
    """Older versions wrote into config.json what was asked for; the tokenizer's own file knows what was kept."""
    path = run.tokenizer_folder / "tokenizer.json"
    return str(read_json(path).get("kind", known.kind)) if path.is_file() else known.kind


def check_files(data: DataConfig, given: Mapping[str, str]) -> None:
    """Refuse a data.path= where no text can be read, and data.field= where no file has fields."""
    if data.path is None or data.url is not None or data.source not in ("text", "instruct"):
        return
    from positron.data.decoding import Reading, refuse_unreadable
    from positron.data.listing import format_of, list_files
    from positron.data.records import SUFFIXES

    called = f"data.path={data.path}"
    listing = list_files(data.path, called, SUFFIXES) if data.source == "instruct" else list_files(data.path, called)
    if data.source == "text" and "data.field" in given and all(format_of(path) == "text" for path in listing.files):
        raise UserError(
            f"data.field= is read from .jsonl, .json, .csv, .parquet and .arrow, and {called} is plain text: leave it out"
        )
    refuse_unreadable(listing.files, called, Reading(data.field, data.on_invalid))
