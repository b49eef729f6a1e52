"""Read a folder of Hugging Face transformers: config.json, the weights (safetensors or pytorch_model.bin) and tokenizer.json.

Code in these files is never executed. Symbolic links are followed, because each file of a model in the cache of the
Hugging Face hub is a link.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from positron.config import GPTConfig
from positron.interop import hf_reading
from positron.interop.imported import Imported, Weights, refuse_non_finite, special_ids, with_rows
from positron.interop.rules import Contradiction, Rule, expected_shapes, to_ours
from positron.model.memory import check_memory
from positron.system.console import one_line
from positron.system.disk import read_bytes, read_json
from positron.system.errors import UserError, why_not_json
from positron.text.library_json import LibraryTokenizer, ends_of_text, first_token
from positron.text.tokenizer import END_OF_TEXT, Tokenizer

logger = logging.getLogger(__name__)


def read_folder(folder: Path) -> Imported:
    """Read a model that transformers saved, or that Positron exported. Raises the errors of `importing.read_model`."""
    path = folder / "config.json"
    if not path.exists():
        raise UserError(
            f"{folder} has no config.json: give a folder with config.json, the weights and tokenizer.json, as transformers "
            "saves a model"
        )
    described = read_json(path.resolve())
    if not isinstance(described, dict):
        raise UserError(f"{path} must contain a JSON object: correct the file, or download it again")
    exported = hf_reading.own_config(described)
    is_masked = exported is not None and described["positron"].get(hf_reading.DOCUMENT_MASK) is True
    config, rules = exported or hf_reading.read_config(described, str(path))
    check_memory(config, copies=2)
    tensors = dict(_tensors(folder))
    refuse_non_finite(tensors, folder)
    weights = None if exported is None else _unchanged(rules, tensors, config)
    if weights is None:
        config, rules = hf_reading.read_config(described, str(path))
        if config.tie_embeddings and _has_own_head(tensors):
            logger.info(
                f"config.json ties the output head to the embedding, but the head in {folder} has other values: using the "
                "head, as transformers does"
            )
            config, rules = hf_reading.read_config({**described, "tie_word_embeddings": False}, str(path))
        weights = _converted(folder, tensors, config, rules)
    tokenizer, has_chat_tokens = _library_tokenizer(folder, described, config.vocab_size)
    config, weights = with_rows(config, weights, tokenizer.vocab_size)
    template = folder / "chat_template.jinja"
    is_chat = has_chat_tokens and template.exists() and _is_ours(template, tokenizer)
    return Imported(config, weights, tokenizer, is_chat, str(folder), is_masked)


def _is_ours(template: Path, tokenizer: Tokenizer) -> bool:
    from positron.interop.huggingface import chat_template

    return read_bytes(template.resolve()) == chat_template(tokenizer).encode("utf-8")


def _unchanged(rules: list[Rule], tensors: Weights, config: GPTConfig) -> Weights | None:
    """Convert the tensors by the rules of Positron's own export, or return None if they do not fit these rules.

    Training in another program can give the tensors values that Positron's architecture cannot represent. For example, an
    export to GPT-2 writes the rows of a key head once for each query head; after training, these copies are no longer equal.
    """
    if expected_shapes(rules, config) != {name: tensor.shape for name, tensor in tensors.items()}:
        return None
    try:
        return to_ours(rules, tensors)
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


def _has_own_head(tensors: Weights) -> bool:
    """Tell whether the output head differs from the embedding."""
    names = ("model.embed_tokens.weight", "transformer.wte.weight", "wte.weight")
    embedding = next((tensors[name] for name in names if name in tensors), None)
    head = tensors.get("lm_head.weight")
    return embedding is not None and head is not None and not torch.equal(head, embedding)


def _without_prefix(tensors: Weights, rules: list[Rule]) -> Weights:
    """Return the tensors under the names that the rules use, without tensors that are not weights.

    In old files of GPT-2, the names lack the prefix `transformer.`, which is added. Attention masks and RoPE frequencies, which
    some old files contain, are removed. If the rules have no output head, because it is equal to the embedding (see
    `_has_own_head`), the copy of the embedding under the name of the output head is removed, too.
    """
    rule_names = {rule.theirs for rule in rules}
    named: Weights = {}
    for name, tensor in tensors.items():
        if name.endswith((".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")):
            continue
        named[name if name in rule_names or f"transformer.{name}" not in rule_names else f"transformer.{name}"] = tensor
    if "lm_head.weight" in named and "lm_head.weight" not in rule_names:
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
            one_line(f"the weights in {folder} contain the tensor {surplus[0]}", 400)
            + ", which the architecture in config.json does not have: use the config.json that belongs to the weights, or "
            "choose another model"
        )


def _tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield the names and tensors of a folder, in fp32. Raises UserError if a file is missing or damaged.

    If the folder has both model.safetensors and an index of several files, the index is ignored, as transformers does.
    """
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").exists():
        yield from _safetensors(folder / "model.safetensors")
    elif index.exists():
        content = read_json(index.resolve())
        places = content.get("weight_map") if isinstance(content, dict) else None
        if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
            raise UserError(
                f"{index} has no valid weight_map, an object that maps the names of tensors to files: download this file again"
            )
        for name in sorted(set(places.values())):
            if Path(name).name != name:
                raise UserError(
                    f"{index} lists the file {one_line(name, 200)!r}, but Positron reads files only from the folder of the "
                    "index: put all files with weights into this folder, and list them without a path"
                )
            yield from _safetensors(folder / name)
    elif (folder / "pytorch_model.bin").exists():
        yield from _pickled(folder / "pytorch_model.bin")
    else:
        raise UserError(
            f"{folder} has no weights that Positron can read (model.safetensors, model.safetensors.index.json or "
            "pytorch_model.bin): download one of these files, or choose another model"
        )


def _safetensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        raise UserError(f"{path} is missing, but model.safetensors.index.json lists it: download this file, too")
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                yield name, file.get_tensor(name).float()
    except PermissionError as error:
        raise UserError(f"{path} cannot be read (permission denied): change its permissions") from error
    except (SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} is damaged or incomplete ({reason}): download it again") from error


def _pickled(path: Path) -> Iterator[tuple[str, Tensor]]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types of errors, whose texts advise to execute the file
        raise UserError(
            f"{path} contains something other than tensors, or is damaged; nothing in it was executed: "
            "use a copy of the model that contains model.safetensors"
        ) from error
    if not isinstance(content, dict) or not any(isinstance(tensor, Tensor) for tensor in content.values()):
        raise UserError(
            f"{path} contains a {type(content).__name__} without named tensors: save the model's state_dict itself in this file"
        )
    for name, tensor in content.items():
        if isinstance(tensor, Tensor):
            yield str(name), tensor.float()


def _library_tokenizer(folder: Path, model: dict[str, Any], rows: int) -> tuple[LibraryTokenizer, bool]:
    """Return the tokenizer of a folder, and whether its vocabulary contains all special tokens of Positron's chat template.

    `model`: the content of config.json. `rows`: the number of rows of the embedding. A special token that the vocabulary lacks
    gets a new id, which is `rows` or larger. Raises UserError if tokenizer.json is missing or damaged, or does not fit the
    model.
    """
    path = folder / "tokenizer.json"
    if not path.exists():
        raise UserError(
            f"{folder} has no tokenizer.json: download it, or create it with "
            "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) of transformers"
        )
    content, described = read_bytes(path.resolve()), None
    try:
        described = json.loads(content)
        added = {token["content"]: int(token["id"]) for token in described.get("added_tokens") or ()}
        vocabulary = described["model"]["vocab"]
        ids = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
        largest = max((*ids, *added.values()), default=0)
        is_too_large = largest >= rows
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        match error:
            case KeyError():
                reason = f"the key {error} is missing"
            case ValueError() if not described:  # raised by json.loads
                reason = f"not JSON: {why_not_json(error)}"
            case _:
                reason = "a value has the wrong type"
        raise UserError(
            f"{path} is not a file of Hugging Face's tokenizers library ({reason}): download it again"
        ) from error
    if is_too_large:
        raise UserError(
            f"{path} has a token with the id {largest:,}, and the embedding has only {rows:,} rows, so this tokenizer does not "
            "belong to the model: use the tokenizer.json of the same model"
        )
    first = first_token(described, config=model)
    if first is None:
        raise UserError(
            f"{folder} does not say which token begins a text: set bos_token_id in config.json to an id below {rows}"
        )
    if not 0 <= first < rows:
        if END_OF_TEXT in added:  # takes precedence over config.json
            raise UserError(
                f"{path}: the token {END_OF_TEXT} in added_tokens has the impossible id {first}, not one from 0 to {rows - 1}; "
                "correct the id, or download the file again"
            )
        raise UserError(
            f"{folder}: the token that begins a text has the id {first}, but the model has only {rows} tokens: set "
            f"bos_token_id in config.json to an id from 0 to {rows - 1}"
        )
    path_of_ends = folder / "generation_config.json"
    generation = read_json(path_of_ends.resolve()) if path_of_ends.exists() else {}
    if not isinstance(generation, dict):
        raise UserError(f"{path_of_ends} must contain a JSON object: correct the file, or download it again")
    # the default id of an architecture may lie outside of a small vocabulary
    ends = tuple(i for i in ends_of_text(first, config=model, generation=generation) if 0 <= i < rows)
    specials, size = special_ids(added, first, rows)
    try:
        tokenizer = LibraryTokenizer(content, specials, size, ends)
        if not tokenizer.keeps_spaces:
            raise ValueError(
                "a vocabulary that removes the spaces of a text is not supported, because its tokens do not contain the spaces "
                "between words"
            )
        return tokenizer, size == rows
    except ValueError as error:
        raise UserError(f"{path} cannot be imported: {error}; choose another model") from error
