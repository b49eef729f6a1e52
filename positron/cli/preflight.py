"""Check within a second, before torch is imported or a file is written, whether a training can start or continue.

The checks report an error sooner than the training, which locks the run folder and then checks again whether the run may
continue. A new run can start with the weights of another run, its source run, which init_from= or ckpt_path= names. The
argument `asked` holds the settings that the user gave (see `config.Asked`).
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from positron.cli.unused_settings import OWN_FILES
from positron.config import (
    EMPTY_NAME,
    Asked,
    DataConfig,
    LoggerConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    TokenizerConfig,
)
from positron.run.budget_choice import restore_choice
from positron.run.differences import refuse_differences
from positron.run.find import find_run
from positron.run.folder import OUTPUTS, Run
from positron.settings import from_dict
from positron.system.disk import expanded, read_json
from positron.system.errors import UserError
from positron.system.paths import fault_of_name
from positron.system.ranks import refuse_unknown_machines

RESERVED = ("data", "sweeps", "numpy_ref")  # folders of outputs/ that other commands write
RESEARCH = "research"  # the folder of outputs/ in which each research has a folder, with its runs inside
_MAX_NAME_BYTES = 200  # of one folder's name; file systems allow 255, and temporary files beside it have longer names
# Fields of the model that decide the shape or meaning of its weights. The other fields may differ from the source run.
_SHAPE_FIELDS = (
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
_FIELD_OF = {"kv_heads": "n_kv_head", "ff_width": "d_ff", "d_head": "head_dim"}  # property -> the key that sets it


def check(config: RunConfig, folder: Path, asked: Asked) -> RunConfig:
    """Check that a training can start or continue in `folder`, and return its configuration.

    The source run is the run that init_from= or ckpt_path= names. If there is one, the tokenizer in the result is that of the
    source run (see `with_known_tokenizer`). With init_from=, the architecture is also that of the source run, unless the
    command line chooses an architecture (see `with_source_model`). If `folder` already contains a run, this run takes the place
    of the source run, and the settings that budget= chose for it are restored (see `restore_choice`). If the run has a
    checkpoint, its batch size takes the place of the device's default. The commands sft, prefer and reinforce get `config`
    unchanged. Raises UserError if the training cannot start or continue.
    """
    check_name(folder)
    run = Run(folder)
    run.refuse_lost_settings()
    config = with_source(config, folder, asked)
    if not config.is_tuning:
        config = restore_choice(config, asked, run)
    if run.exists and run.has_checkpoint and config.resume != "never":
        config = _with_recorded_batch(config, run, asked.given)
        refuse_differences(run, config, asked.given)
    if not run.exists:
        check_files(config.data, asked.given)
    check_packages(config.logger)
    refuse_unknown_machines(config.device.num_nodes)
    return config


def with_source(config: RunConfig, folder: Path, asked: Asked) -> RunConfig:
    """Return `config` with the tokenizer and the architecture of the source run; see `check`.

    Raises UserError if a new run cannot begin with the weights of the source run.
    """
    config = with_known_tokenizer(config, folder, asked.given)
    config = with_source_model(config, folder, asked)
    run = Run(folder)
    if not (run.exists and run.has_checkpoint):
        check_source_run(config, asked)
    return config


def _with_recorded_batch(config: RunConfig, run: Run, given: Mapping[str, str]) -> RunConfig:
    """Return `config` with the batch size of the run, if the batch size in `config` is only the default of the device.

    Each device has its own default, but a run may continue on another device.
    """
    is_default = config.train.batch_tokens == config.device.batch_tokens
    if not is_default or "train.batch_tokens" in given or "device.batch_tokens" in given:
        return config
    recorded = run.settings().train.batch_tokens
    return dataclasses.replace(config, train=dataclasses.replace(config.train, batch_tokens=recorded))


def check_packages(logger: LoggerConfig) -> None:
    """Raise UserError if the package of a chosen logger is not installed."""
    if logger.tensorboard is not None and importlib.util.find_spec("tensorboard") is None:
        raise UserError("logger=tensorboard needs the package tensorboard: pip install 'positron[tensorboard]'")


def check_name(folder: Path, *, is_sweep: bool = False) -> None:
    """Raise UserError if a new run cannot be saved in `folder`.

    A folder is refused if other files of Positron are kept there, such as outputs/data, if it lies inside the folder of another
    run, or if some operating systems do not allow its name. If the folder already contains a run, which the command may
    continue, none of this is checked. A part of the path with more than 255 bytes (_MAX_NAME_BYTES) is always refused.

    `is_sweep`: true if `folder` is the folder of a sweep, below outputs/sweeps/. The name is then the path below
    outputs/sweeps/. It may be a name that is reserved in outputs/, such as data.
    """
    if long := next((part for part in folder.parts if len(part.encode()) > _MAX_NAME_BYTES), None):
        raise UserError(
            f"name= contains {long[:40]}..., a folder name of {len(long.encode())} bytes, but at most {_MAX_NAME_BYTES} are "
            "possible: give a shorter name="
        )
    if Run(folder).exists:
        return
    try:
        parts = folder.relative_to(OUTPUTS / "sweeps" if is_sweep else OUTPUTS).parts
    except ValueError:
        return
    if not parts:
        raise UserError(EMPTY_NAME)
    name = "/".join(parts)
    is_reserved = parts[0].casefold() in RESERVED or name.casefold() == RESEARCH
    if is_reserved and not is_sweep:
        raise UserError(
            f"name={name} is reserved, because Positron keeps other files in outputs/{parts[0]}: give another name="
        )
    for part in parts:
        if fault := fault_of_name(part):
            of_part = "" if part == name else f": the folder name {part!r}"
            raise UserError(f"name={name!r}{of_part} {fault}: give another name=")
    for parent in folder.parents:
        if parent == OUTPUTS:
            break
        if Run(parent).exists:
            raise UserError(
                f"name={name} would be a folder inside the run {parent}: give a name= that is not inside a run"
            )


def check_source_run(config: RunConfig, asked: Asked) -> None:
    """Raise UserError if the source run does not exist, or if its architecture differs from that of `config`.

    The source run is the run that init_from= or ckpt_path= names. Also raises UserError if `budget=` would choose the size of
    the model, because the weights of the source run have a fixed size, and if ckpt_path= would restore the state of another
    kind of optimizer. For a run that fine-tunes, only the existence of the source run is checked.
    """
    run = _source_run(config)
    if run is None or config.is_tuning:
        return
    if asked.auto_size:
        key = "init_from" if config.init_from else "ckpt_path"
        # with init_from= alone, the architecture is that of the source run; see `with_source_model`
        is_source_enough = config.init_from is not None and "experiment" not in asked.given
        remedy = "leave model=auto out" if is_source_enough else f"give the model= with which {run.folder} was trained"
        raise UserError(
            f"model=auto chooses a size, but the weights of {run.folder} have a fixed size: {remedy}, or leave {key}= out"
        )
    source = run.settings().model
    differences = _different_shape(source, config.model)
    if differences:
        listed = " ".join(f"{key}={_shown(value)}" for key, value in differences.items())
        wrong = [f"{key}={value}" for key, value in asked.given.items() if key == "model" or key in differences]
        # with init_from= alone, the architecture is that of the source run; see `with_source_model`
        can_leave_out = config.init_from is not None and wrong and "experiment" not in asked.given
        raise UserError(
            f"the weights of {'init_from' if config.init_from else 'ckpt_path'}={config.init_from or config.ckpt_path} fit "
            f"only a model with {listed}: " + (f"leave {' '.join(wrong)} out" if can_leave_out else f"give {listed}")
        )
    before, now = (_choice_of_optimizer(settings.optimizer) for settings in (run.settings(), config))
    if config.ckpt_path is not None and before != now:
        raise UserError(
            f"the state of {before} in ckpt_path={config.ckpt_path} does not fit {now}: give {before}, or init_from= instead "
            "of ckpt_path= to take only the weights"
        )


def _choice_of_optimizer(optimizer: OptimizerConfig) -> str:
    """Return the settings that choose the class of an optimizer, such as "optimizer=muon"."""
    return f"optimizer={optimizer.kind}" + (f" optimizer._target_={optimizer._target_}" if optimizer.is_custom else "")


def _different_shape(source: ModelConfig, model: ModelConfig) -> dict[str, Any]:
    """Return the settings of `source` that decide the shape of weights and differ from `model`, such as {"model.n_layer": 6}.

    A value that is only the consequence of another key is left out, such as the default of d_ff, which follows from d_model.
    """
    names = [*_SHAPE_FIELDS]
    if model.has_learned_positions and source.has_learned_positions:
        names.append("context_length")
    differences: dict[str, Any] = {}
    for name in names:
        field = _FIELD_OF.get(name, name)
        if getattr(source, name) != getattr(model, name) and getattr(source, field) != getattr(model, field):
            differences[f"model.{field}"] = getattr(source, name)
    return differences


def with_source_model(config: RunConfig, folder: Path, asked: Asked) -> RunConfig:
    """Return `config` with the architecture of the run that init_from= names.

    If `folder` already contains a run, the architecture of this run is used instead. Single values of the command line, such
    as model.context_length=, are kept.

    `config` is returned unchanged in each of these cases:
        The run fine-tunes a base run.
        init_from= is not given.
        The command line contains model= or experiment=, which may choose an architecture.
        `budget=` chooses the size of the model.
    """
    if config.is_tuning or config.init_from is None or asked.auto_size or {"model", "experiment"} & set(asked.given):
        return config
    run = Run(folder) if Run(folder).exists else _source_run(config)
    if run is None:
        return config
    given = {key.removeprefix("model.") for key in asked.given if key.startswith("model.")}
    values = {name: value for name, value in vars(run.settings().model).items() if name not in given}
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **values))


def _shown(value: Any) -> str:
    """Return a value as the command line spells it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _source_run(config: RunConfig) -> Run | None:
    """Return the run that init_from= or ckpt_path= names.

    Returns None if neither is given, or if ckpt_path= is `latest` or a file outside a run folder. Raises UserError if the run
    or the checkpoint does not exist.
    """
    if config.init_from is not None:
        run = find_run(config.init_from)
        if not run.has_checkpoint:
            raise UserError(
                f"init_from={config.init_from}: the run {run.folder} has no checkpoint: train this run until it saves a "
                "checkpoint, or name another run"
            )
        return run
    if config.ckpt_path is None or config.ckpt_path == "latest":
        return None
    path = expanded(config.ckpt_path)
    if path.suffix != ".ckpt":
        return find_run(config.ckpt_path)
    if not path.is_file():
        raise UserError(
            f"ckpt_path={config.ckpt_path}: there is no such file; give a .ckpt file, the name of a run, or latest"
        )
    other = Run(path.parent.parent)
    return other if other.exists else None


def with_known_tokenizer(config: RunConfig, folder: Path, given: Mapping[str, str]) -> RunConfig:
    """Return `config` with the tokenizer of the run whose weights the training starts from.

    If neither init_from= nor ckpt_path= is given, `config` is returned unchanged. Otherwise, the run is the one in `folder`,
    which the training continues. If `folder` has no run, it is the run that the key names. If the key names no run either,
    `config` is returned unchanged.

    `config` is also returned unchanged for the commands sft, prefer and reinforce, because they take the tokenizer of the base
    run in any case. `given` maps the keys of the command line to their values. Raises UserError if the command line chooses a
    different tokenizer.
    """
    if config.is_tuning or (config.init_from is None and config.ckpt_path is None):
        return config
    own_run = Run(folder)
    run = own_run if own_run.exists else _source_run(config)
    if run is None:
        return config
    known = from_dict(TokenizerConfig, run.config()["tokenizer"], "tokenizer")
    tokenizer_key = next((key for key in given if key == "tokenizer" or key.startswith("tokenizer.")), None)
    kind = config.tokenizer.kind
    if (
        tokenizer_key is not None
        and config.tokenizer != known
        and (kind == known.kind or kind != _saved_kind(run, known))
    ):
        raise UserError(
            f"{tokenizer_key}={given[tokenizer_key]} differs from the tokenizer of {run.folder}, whose weights you start from: "
            f"leave {tokenizer_key}= out"
        )
    return dataclasses.replace(config, tokenizer=known)


def _saved_kind(run: Run, known: TokenizerConfig) -> str:
    """Return the kind of tokenizer that the tokenizer file of a run records, or `known.kind` if there is no such file.

    `known` holds the tokenizer settings in config.json of the run. In the run of an older version of Positron, the kind in
    config.json may differ from the kind in the tokenizer file.
    """
    path = run.tokenizer_folder / "tokenizer.json"
    return str(read_json(path).get("kind", known.kind)) if path.is_file() else known.kind


def check_files(data: DataConfig, given: Mapping[str, str]) -> None:
    """Raise UserError if no text can be read at data.path=, or if data.field= is given but all files are plain text.

    Plain text has no fields, in contrast to JSON, CSV or Parquet. `given` maps the keys of the command line to their values.
    Nothing is checked if the data does not come from files of the user.
    """
    if data.path is None or data.url is not None or data.source not in OWN_FILES:
        return
    from positron.data.decoding import Reading, refuse_unreadable
    from positron.data.listing import format_of, list_files
    from positron.data.records import SUFFIXES

    label = f"data.path={data.path}"
    listing = list_files(data.path, label) if data.source == "text" else list_files(data.path, label, SUFFIXES)
    if data.source == "text" and "data.field" in given and all(format_of(path) == "text" for path in listing.files):
        raise UserError(
            f"data.field= is read only for {', '.join(SUFFIXES[:-1])} and {SUFFIXES[-1]} files, but {label} is read as plain "
            "text: leave data.field= out"
        )
    refuse_unreadable(
        listing.files, label, Reading(data.field, data.on_invalid, is_one_of_several=len(listing.files) > 1)
    )
