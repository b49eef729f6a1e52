"""Turn a model that was trained elsewhere into a run folder, which every command can use.

A model is a folder of Hugging Face transformers (with safetensors files or pytorch_model.bin) or a file of llama2.c.
Code in these files is never executed.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from positron.config import (
    DataConfig,
    DeviceConfig,
    ModelConfig,
    OptimizerConfig,
    PrecisionConfig,
    RunConfig,
    ScheduleConfig,
    TokenizerConfig,
    TrainConfig,
)
from positron.interop.hf_folder import read_folder
from positron.interop.hub_models import fetch_model
from positron.interop.imported import Imported
from positron.interop.llama2c_reading import read_llama2c
from positron.interop.names import files_of, is_repository, place_of, run_name
from positron.run.checkpoint import BEST
from positron.run.facts import write_record
from positron.run.folder import OUTPUTS, PRETRAIN, Run
from positron.run.paths import RunPaths
from positron.system.commands import command
from positron.system.console import one_line, say
from positron.system.disk import expanded, refuse_lfs_pointer, whole_file, whole_folder, write_json
from positron.system.errors import UserError
from positron.text.conversation import TEMPLATE


def import_run(name: str, folder: Path, tokenizer: Path | None = None, revision: str | None = None) -> Imported:
    """Read the model `name` and write it as a run into the new folder `folder`.

    `name` is a folder, a .bin file of llama2.c, or a repository of the Hugging Face hub, tried in this order. `tokenizer` is
    the vocabulary file that belongs to a .bin file (see `read_model`); `revision` is a branch, tag or commit of a repository.
    Raises UserError if `folder` exists, if `name` is a run, if there is no such model, if `tokenizer` or `revision` is given
    for another kind of model, or if a file of the model is missing, damaged, contradictory or not supported. Raises Unreachable
    if the network fails.
    """
    place = expanded(name)
    if RunPaths(place).facts_path.exists():
        raise UserError(one_line(f"{name} is a run of Positron already, so every command can use it without an import"))
    if folder.exists():
        raise UserError(one_line(f"{folder} exists already: give another --name, or delete this folder"))
    if revision is not None and place.exists():
        raise UserError(
            one_line(f"--revision chooses a version of a model on the hub, but {name} is on this machine: leave it out")
        )
    if tokenizer is not None and not place.is_file():
        raise UserError(
            one_line(
                f"--tokenizer is the vocabulary file of a .bin file of llama2.c, which {name} is not: leave it out"
            )
        )
    if not place.exists():
        if not is_repository(name):
            raise UserError(
                one_line(
                    f"there is no folder or file '{name}': correct the path, or give OWNER/NAME of a model on the hub"
                )
            )
        place = fetch_model(name, revision)
    model = dataclasses.replace(read_model(place, tokenizer), origin=name)
    write_run(model, folder)
    return model


def import_source_run(name: str) -> str:
    """Return the run folder of the model that `init_from=name` names, and import the model if this folder does not exist.

    Raises UserError if the folder exists but is not a run, or if it is a run that was not imported from this model or from the
    present state of its files. Raises the errors of `import_run` if the import fails.
    """
    folder = OUTPUTS / run_name(name)
    if Run(folder).exists:
        _refuse_other_model(Run(folder), name)
        return str(folder)
    if folder.exists():
        raise UserError(
            one_line(f"cannot import {name} as {folder}, because this folder exists and is not a run: ")
            + "rename or delete the folder"
        )
    # printed, because a run has no log before it is opened
    say(f"{name} is not a run yet: importing it as {folder}")
    import_run(name, folder)
    return str(folder)


def _refuse_other_model(run: Run, name: str) -> None:
    """Raise UserError if `run` was not imported from the model `name`, or if the files of the model were changed since then."""
    facts = run.facts()
    if facts.imported is None:
        reason = "was not imported"
    elif place_of(facts.imported) != place_of(name):
        reason = f"was imported from {facts.imported}"
    elif facts.imported_files not in (None, files_of(name)):  # None in runs of older versions
        reason = f"was imported before the files in {name} were changed"
    else:
        return
    raise UserError(
        one_line(
            f"cannot import {name} as {run.folder}, because this run {reason}: import the model under another name with "
            f"{command('import', name, '--name', 'NEW')} and give init_from=NEW, or give init_from={run.folder} to begin with "
            "this run"
        )
    )


def read_model(path: Path, vocabulary: Path | None = None) -> Imported:
    """Read a folder of transformers, or a .bin file of llama2.c with its vocabulary file.

    If `vocabulary` is None, the vocabulary file is tokenizer.bin or tok512.bin in the folder of the .bin file. Raises
    UserError if a file is missing, damaged, contradictory or not supported.
    """
    for file in path.iterdir() if path.is_dir() else (path,):
        refuse_lfs_pointer(file)
    if path.is_dir():
        return read_folder(path)
    is_of_folder = path.with_name("config.json").exists() and (
        path.suffix != ".bin" or path.name == "pytorch_model.bin"
    )
    if is_of_folder:
        raise UserError(
            one_line(f"{path} is one of several files of a model: give the folder of the model, {path.parent}, instead")
        )
    if path.suffix == ".bin":
        return read_llama2c(path, vocabulary)
    raise UserError(
        one_line(f"{path} cannot be imported: give a folder with a config.json, or a .bin file of llama2.c")
    )


def write_run(model: Imported, folder: Path) -> Run:
    """Write the model as a run folder, which appears only when it is complete. Raises UserError if `folder` exists."""
    fields = {field.name for field in dataclasses.fields(ModelConfig)}
    known = dataclasses.asdict(model.config)
    config = RunConfig(
        name=folder.name,
        model=ModelConfig(**{name: value for name, value in known.items() if name in fields}),
        tokenizer=TokenizerConfig(kind="huggingface"),
        data=DataConfig(source="imported", document_mask=model.is_masked),
        device=DeviceConfig(),
        precision=PrecisionConfig(),
        optimizer=OptimizerConfig(),
        schedule=ScheduleConfig(),
        train=TrainConfig(),
    )
    with whole_folder(folder) as draft:
        paths = RunPaths(draft)
        for place in (paths.checkpoint_folder, paths.tokenizer_folder):
            place.mkdir()
        write_record(paths.config_path, dataclasses.asdict(config))
        facts = {
            "name": folder.name,
            "kind": PRETRAIN,
            "base": None,
            "status": "finished",
            "step": 0,
            "imported": model.origin,
            "imported_files": files_of(model.origin),
        }
        write_record(paths.facts_path, facts)
        model.tokenizer.save(paths.tokenizer_folder)
        if model.is_chat:
            write_json(paths.chat_path, TEMPLATE)
        checkpoint = {
            "state_dict": {f"model.{name}": tensor for name, tensor in model.weights.items()},
            "bad_steps": 0,
            "global_step": 0,
            "tokenizer_hash": model.tokenizer.hash,
            "gpt_config": known,
        }
        with whole_file(paths.checkpoint_folder / BEST) as file:
            torch.save(checkpoint, file)
    return Run(folder)
