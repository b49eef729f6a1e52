"""Turn a model that was trained elsewhere into a run folder, which every command can use.

A model is a folder of Hugging Face transformers (with safetensors files or pytorch_model.bin) or a file of llama2.c.
Code in these files is never executed.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from positron.config import (
    DataConfig,
    DeviceConfig,
    GPTConfig,
    ModelConfig,
    OptimizerConfig,
    PrecisionConfig,
    RunConfig,
    ScheduleConfig,
    TokenizerConfig,
    TrainConfig,
)
from positron.interop import hf_reading, llama2c
from positron.interop.hub_models import fetch_model
from positron.interop.names import is_repository, run_name
from positron.interop.rules import Contradiction, Rule, expected_shapes, to_ours
from positron.model.memory import check_memory
from positron.run.facts import write_record
from positron.run.folder import OUTPUTS, PRETRAIN, Run
from positron.run.paths import RunPaths
from positron.system.console import one_line
from positron.system.disk import expanded, read_bytes, read_json, whole_file, whole_folder, write_json
from positron.system.errors import UserError
from positron.text.conversation import TEMPLATE
from positron.text.library_json import LibraryTokenizer, ends_of_text, first_token
from positron.text.tokenizer import END_OF_TEXT, SPECIALS, Tokenizer

Weights = dict[str, Tensor]
NEW_ROW_NOISE = 0.01  # standard deviation of the noise in added rows, relative to that of the embedding


@dataclass(frozen=True)
class Imported:
    """Hold a model that was read from the files of another program, or of a Positron export.

    `is_chat`: true if the model was fine-tuned with Positron's chat template. `origin`: the path or repository of the model.
    """

    config: GPTConfig
    weights: Weights
    tokenizer: LibraryTokenizer
    is_chat: bool
    origin: str


def import_run(name: str, folder: Path, tokenizer: Path | None = None, revision: str | None = None) -> Imported:
    """Read the model `name` and write it as the run `folder`.

    `name` is a folder, a .bin file of llama2.c, or a repository of the Hugging Face hub, tried in this order. `tokenizer` is
    the vocabulary of a .bin file; `revision` is a branch, tag or commit of a repository. Raises UserError if `folder` exists,
    or if a file of the model is missing, damaged, contradictory or not supported. Raises Unreachable if the network fails.
    """
    if folder.exists():
        raise UserError(one_line(f"{folder} exists already: give another --name, or delete this folder"))
    place = expanded(name)
    if not place.exists():
        if not is_repository(name):
            raise UserError(
                one_line(
                    f"there is no folder or file {name}: correct the path, or give OWNER/NAME of a model on the hub"
                )
            )
        place = fetch_model(name, revision)
    model = dataclasses.replace(read_model(place, tokenizer), origin=name)
    write_run(model, folder)
    return model


def import_source_run(name: str) -> str:
    """Import the model that `init_from=name` names, unless it is imported already, and return the folder of the run."""
    folder = OUTPUTS / run_name(name)
    if not Run(folder).exists:
        if folder.exists():
            raise UserError(
                one_line(f"cannot import {name} as {folder}: this folder exists, but is not a run: rename or delete it")
            )
        # printed, because a run has no log before it is opened
        print(f"{name} is not a run yet: importing it as {folder}", file=sys.stderr, flush=True)
        import_run(name, folder)
    return str(folder)


def read_model(path: Path, vocabulary: Path | None = None) -> Imported:
    """Read a folder of transformers, or a .bin file of llama2.c with the file `vocabulary`.

    Raises UserError if a file is missing, damaged, contradictory or not supported.
    """
    if path.is_dir():
        return _read_folder(path)
    if path.suffix == ".bin":
        return _read_llama2c(path, vocabulary)
    raise UserError(f"{path} cannot be imported: give a folder with a config.json, or a .bin file of llama2.c")


def write_run(model: Imported, folder: Path) -> Run:
    """Write the model as a run folder, which appears only when it is complete. Raises UserError if `folder` exists."""
    fields = {field.name for field in dataclasses.fields(ModelConfig)}
    known = dataclasses.asdict(model.config)
    config = RunConfig(
        name=folder.name,
        model=ModelConfig(**{name: value for name, value in known.items() if name in fields}),
        tokenizer=TokenizerConfig(kind="huggingface"),
        data=DataConfig(source="imported"),
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
        with whole_file(paths.checkpoint_folder / "best.ckpt") as file:
            torch.save(checkpoint, file)
    return Run(folder)


def _read_folder(folder: Path) -> Imported:
    path = folder / "config.json"
    described = read_json(path)
    if not isinstance(described, dict):
        raise UserError(f"{path} must contain a JSON object: download the model again")
    exported = hf_reading.own_config(described)
    config, rules = exported or hf_reading.read_config(described, str(path))
    check_memory(config, copies=2)
    tensors = dict(_tensors(folder))
    weights = None if exported is None else _unchanged(rules, tensors)
    if weights is None:
        config, rules = hf_reading.read_config(described, str(path))
        weights = _converted(folder, tensors, config, rules)
    tokenizer, has_chat_tokens = _library_tokenizer(folder, described, config.vocab_size)
    config, weights = _with_rows(config, weights, tokenizer.vocab_size)
    template = folder / "chat_template.jinja"
    is_chat = has_chat_tokens and template.exists() and _is_ours(template, tokenizer)
    return Imported(config, weights, tokenizer, is_chat, str(folder))


def _is_ours(template: Path, tokenizer: Tokenizer) -> bool:
    from positron.interop.huggingface import chat_template

    return read_bytes(template) == chat_template(tokenizer).encode("utf-8")


def _unchanged(rules: list[Rule], tensors: Weights) -> Weights | None:
    """Convert the tensors by the rules of Positron's own export, or return None if they contradict these rules.

    Training in another program can make the tensors contradict Positron's architecture. For example, the keys that an export
    repeated for several query heads are then no longer equal.
    """
    try:
        return to_ours(rules, tensors) if {rule.theirs for rule in rules} == set(tensors) else None
    except (Contradiction, RuntimeError):
        return None


def _converted(folder: Path, tensors: Weights, config: GPTConfig, rules: list[Rule]) -> Weights:
    """Return the weights of the model that config.json describes. Raises UserError for unexpected names, shapes or values."""
    tensors = _without_prefix(tensors, rules)
    _refuse_other_shapes(tensors, rules, config, folder)
    try:
        return to_ours(rules, tensors)
    except Contradiction as error:
        raise UserError(f"{folder} cannot be imported, because {error}: choose another model") from error


def _without_prefix(tensors: Weights, rules: list[Rule]) -> Weights:
    """Return the tensors under the names that the rules use, without tensors that are not weights.

    Old files of GPT-2 leave out the prefix `transformer.` of the names. Some old files contain attention masks or RoPE
    frequencies, which are left out.
    """
    wanted = {rule.theirs for rule in rules}
    named: Weights = {}
    for name, tensor in tensors.items():
        if name.endswith((".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")):
            continue
        named[name if name in wanted or f"transformer.{name}" not in wanted else f"transformer.{name}"] = tensor
    if "lm_head.weight" in named and "lm_head.weight" not in wanted:
        del named["lm_head.weight"]  # a tied head is the embedding under a second name
    return named


def _refuse_other_shapes(tensors: Weights, rules: list[Rule], config: GPTConfig, folder: Path) -> None:
    shapes = expected_shapes(rules, config)
    missing = [name for name in shapes if name not in tensors]
    if missing:
        raise UserError(
            f"{folder} has no tensor {missing[0]}"
            + (f", and {len(missing) - 1} more are missing" if missing[1:] else "")
            + ": download the model again, or use the config.json that belongs to the weights"
        )
    for name, shape in shapes.items():
        if tensors[name].shape != shape:
            raise UserError(
                f"{folder}: the tensor {name} has the shape {tuple(tensors[name].shape)}, but config.json requires "
                f"{tuple(shape)}: use the config.json that belongs to the weights"
            )
    surplus = [name for name in tensors if name not in shapes]
    if surplus:
        raise UserError(
            one_line(f"{folder}: the weights contain the tensor {surplus[0]}", 400)
            + ", which the architecture in config.json does not have: Positron cannot import this model; check that "
            "config.json and the weights belong together"
        )


def _tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield the names and tensors of a folder, in fp32. Raises UserError if a file is missing or damaged."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        places = read_json(index).get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
            raise UserError(f"{index} has no weight_map, which maps tensors to files: download the model again")
        for name in sorted(set(places.values())):
            if Path(name).name != name:
                raise UserError(
                    f"{index} names a file outside of its folder, {one_line(name, 200)}, which is not read: "
                    "put all weight files into one folder and correct the index"
                )
            yield from _safetensors(folder / name)
    elif (folder / "model.safetensors").exists():
        yield from _safetensors(folder / "model.safetensors")
    elif (folder / "pytorch_model.bin").exists():
        yield from _pickled(folder / "pytorch_model.bin")
    else:
        raise UserError(
            f"{folder} has no weights (model.safetensors, model.safetensors.index.json or pytorch_model.bin): "
            "download the model again"
        )


def _safetensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        raise UserError(f"{path} is missing, but model.safetensors.index.json lists it: download the model again")
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                yield name, file.get_tensor(name).float()
    except (SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} is damaged or incomplete ({reason}): download it again") from error


def _pickled(path: Path) -> Iterator[tuple[str, Tensor]]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types of errors, whose texts advise to execute the file
        raise UserError(
            f"{path} contains something other than tensors, or is damaged; nothing in it was executed: "
            "use a copy of the model with model.safetensors"
        ) from error
    if not isinstance(content, dict):
        raise UserError(
            f"{path} contains a {type(content).__name__} instead of named tensors: save the model's state_dict"
        )
    for name, tensor in content.items():
        if isinstance(tensor, Tensor):
            yield str(name), tensor.float()


def _library_tokenizer(folder: Path, model: dict[str, Any], rows: int) -> tuple[LibraryTokenizer, bool]:
    """Return the tokenizer of a folder, and whether its vocabulary contains all special tokens of Positron's chat template.

    `model`: the content of config.json. `rows`: the number of rows of the embedding.
    """
    path = folder / "tokenizer.json"
    if not path.exists():
        raise UserError(
            f"{folder} has no tokenizer.json: download it, or create it with "
            "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) of transformers"
        )
    content = read_bytes(path)
    try:
        described = json.loads(content)
        added = {token["content"]: int(token["id"]) for token in described.get("added_tokens") or ()}
        vocabulary = described["model"]["vocab"]
        size = max(rows, *(i + 1 for i in added.values()), len(vocabulary))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be read as a file of Hugging Face's tokenizers library ({error}): download it again"
        ) from error
    if max(len(vocabulary), *(i + 1 for i in added.values()), 0) > rows:
        raise UserError(
            f"{path} has {size:,} tokens, and the embedding has {rows:,} rows, so this tokenizer does not belong to the "
            "model: use the tokenizer.json of the same model"
        )
    first = first_token(described, config=model)
    if first is None:
        raise UserError(
            f"{folder} does not say which token begins a text: set bos_token_id in config.json to an id below {rows}"
        )
    if not 0 <= first < rows:
        if END_OF_TEXT in added:  # takes precedence over config.json
            raise UserError(
                f"{path}: the token {END_OF_TEXT} in added_tokens has the impossible id {first}: download the file again"
            )
        raise UserError(
            f"{folder}: the token that begins a text has the id {first}, but the model has only {rows} tokens: set "
            f"bos_token_id in config.json to an id from 0 to {rows - 1}"
        )
    path_of_ends = folder / "generation_config.json"
    generation = read_json(path_of_ends) if path_of_ends.exists() else {}
    if not isinstance(generation, dict):
        raise UserError(f"{path_of_ends} must contain a JSON object: download the model again")
    # the default id of an architecture may lie outside of a small vocabulary
    ends = tuple(i for i in ends_of_text(first, config=model, generation=generation) if 0 <= i < rows)
    missing = [token for token in SPECIALS[1:] if token not in added]
    specials = {END_OF_TEXT: first, **{token: added[token] for token in SPECIALS[1:] if token in added}}
    specials |= {token: rows + i for i, token in enumerate(missing)}
    try:
        return LibraryTokenizer(content, specials, rows + len(missing), ends), not missing
    except ValueError as error:
        raise UserError(f"{path} cannot be imported: {error}; choose another model") from error


def _with_rows(config: GPTConfig, weights: Weights, vocab_size: int) -> tuple[GPTConfig, Weights]:
    """Enlarge embedding and output head to `vocab_size` rows. A new row is the mean of the old rows plus a little noise.

    A row of zeros would give its token the logit 0. In GPT-2, whose other logits are far below 0, this token would be the
    likeliest one.
    """
    if vocab_size == config.vocab_size:
        return config, weights
    generator = torch.Generator().manual_seed(0)
    for name in ("wte.weight", "lm_head.weight"):
        if name in weights:
            old = weights[name]
            noise = torch.randn(vocab_size - len(old), old.shape[1], generator=generator)
            new = old.mean(dim=0) + NEW_ROW_NOISE * old.std() * noise
            weights = {**weights, name: torch.cat((old, new))}
    return dataclasses.replace(config, vocab_size=vocab_size), weights


def _read_llama2c(path: Path, vocabulary: Path | None) -> Imported:
    """Read a model file of llama2.c, which consists of a header with seven numbers and the tensors in fp32."""
    content = read_bytes(path)
    if len(content) < llama2c.HEADER.size:
        raise UserError(
            f"{path} is not a model file of llama2.c, because it has only {len(content)} bytes: download it again"
        )
    width, hidden, layers, heads, kv_heads, size, context = llama2c.HEADER.unpack_from(content)
    if (
        min(width, hidden, layers, heads, kv_heads, abs(size), context) < 1
        or max(width, hidden, layers, context) > 10**7
    ):
        raise UserError(
            f"{path} is not a model file of llama2.c, because its header has impossible sizes: choose another file"
        )
    try:
        config = GPTConfig(
            vocab_size=abs(size),
            context_length=context,
            d_model=width,
            n_layer=layers,
            n_head=heads,
            n_kv_head=kv_heads,
            d_ff=hidden,
            norm="rmsnorm",
            position="rope",
            activation="swiglu",
            tie_embeddings=size > 0,
        )
    except UserError as error:
        raise UserError(f"{path} is not a model file of llama2.c: {error}") from error
    check_memory(config, copies=2)
    numbers = (
        torch.from_numpy(np.frombuffer(content, dtype="<f4", offset=llama2c.HEADER.size).copy())
        if len(content) % 4 == 0
        else torch.empty(0)
    )
    needed = llama2c.count_numbers(config)
    if len(numbers) != needed:
        raise UserError(
            f"{path} has {len(content):,} bytes, but its header requires {llama2c.HEADER.size + 4 * needed:,}: it is "
            "incomplete, or not in version 0 of llama2.c's format, the only one that Positron reads: download it again"
        )
    weights = llama2c.read_weights(config, numbers)
    library = llama2c.library_json(_beside(path, vocabulary), config.vocab_size)
    specials = {END_OF_TEXT: llama2c.BEGIN, **{token: config.vocab_size + i for i, token in enumerate(SPECIALS[1:])}}
    tokenizer = LibraryTokenizer(library, specials, config.vocab_size + len(SPECIALS) - 1)
    config, weights = _with_rows(config, weights, tokenizer.vocab_size)
    return Imported(config, weights, tokenizer, False, str(path))


def _beside(path: Path, vocabulary: Path | None) -> Path:
    """Return the vocabulary file for the model file `path`: `vocabulary` if it is given, else a file in the model's folder.

    Raises UserError if there is neither.
    """
    if vocabulary is not None:
        return vocabulary
    beside = [path.with_name(name) for name in (llama2c.VOCABULARY, "tok512.bin") if path.with_name(name).exists()]
    if not beside:
        raise UserError(
            f"{path} needs its vocabulary file: give --tokenizer FILE, or put tokenizer.bin into the same folder"
        )
    return beside[0]
