"""Write a run as a folder for Hugging Face transformers: `AutoModelForCausalLM`, `AutoTokenizer` and `pipeline` load it.

transformers 4.57 and 5 use different keys in their JSON files. The files written here contain the keys of both versions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from positron.interop import hf_architectures
from positron.interop.card import model_card
from positron.interop.hf_reading import DOCUMENT_MASK
from positron.interop.rules import to_ours, to_theirs
from positron.interop.safetensors_file import write_tensors
from positron.interop.source import Source, largest_difference
from positron.interop.tokenizer_json import spelled, tokenizer_json
from positron.run.base import pretrained_run
from positron.run.folder import Run
from positron.run.paths import CONFIG  # transformers gives this file the same name
from positron.system.disk import write_json, write_text
from positron.system.errors import UserError
from positron.text.conversation import END
from positron.text.tokenizer import END_OF_TEXT, SPECIALS, Tokenizer

MAX_SHARD_BYTES = 5 * 10**9  # the tools of the Hugging Face hub divide weights into files of this size, too

# conversation.TEMPLATE in the Jinja language; white space between the parts would become tokens
_CHAT_TEMPLATE = (
    "{{ '<|endoftext|>' }}{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def write(source: Source, folder: Path) -> float:
    """Write weights, tokenizer and settings for transformers into an empty folder, and read the weights back.

    Returns the largest absolute difference between the logits of the run's model and those of the same model with the weights
    that were read back. Raises UserError, before anything is written, if transformers cannot express the model or the
    tokenizer.
    """
    config = source.config
    architecture = hf_architectures.choose(config)
    tokenizer = tokenizer_json(source.tokenizer, is_chat=source.is_chat)
    rules = architecture.rules(config)
    write_shards(to_theirs(rules, source.weights), folder)
    described = hf_architectures.config_json(architecture, config, source.tokenizer)
    if _is_masked(source.run):  # decides how the model reads several documents as a teacher or in fine-tuning
        described["positron"][DOCUMENT_MASK] = True
    write_json(folder / CONFIG, described)
    write_json(folder / "generation_config.json", _generation(source))
    write_json(folder / "tokenizer.json", tokenizer)
    write_json(folder / "tokenizer_config.json", _tokenizer_config(source))
    if source.is_chat:
        write_text(folder / "chat_template.jinja", chat_template(source.tokenizer))
    write_text(folder / "README.md", model_card(source, architecture.name))
    return largest_difference(source, to_ours(rules, read_shards(folder)))


def chat_template(tokenizer: Tokenizer) -> str:
    """Return the chat template in Jinja. It spells the token that begins a text as `tokenizer` does, for example `<s>`."""
    return _CHAT_TEMPLATE.replace(END_OF_TEXT, spelled(tokenizer, tokenizer.special_id(END_OF_TEXT)))


def _is_masked(run: Run) -> bool:
    """Tell whether the model of `run` was pretrained with data.document_mask; False if the pretrained run is missing."""
    try:
        return pretrained_run(run).settings().data.document_mask
    except UserError:
        return False


def _generation(source: Source) -> dict[str, Any]:
    tokenizer = source.tokenizer
    stops = list(tokenizer.end_ids)
    if source.is_chat and tokenizer.special_id(END) not in stops:
        stops.append(tokenizer.special_id(END))
    ends = stops if len(stops) > 1 else stops[0]
    return {"bos_token_id": tokenizer.special_id(END_OF_TEXT), "eos_token_id": ends, "pad_token_id": stops[0]}


def _tokenizer_config(source: Source) -> dict[str, Any]:
    """Return the content of tokenizer_config.json. transformers 4.57 and 5 both know the `tokenizer_class` in it."""
    tokenizer = source.tokenizer
    begin, end = spelled(tokenizer, tokenizer.special_id(END_OF_TEXT)), spelled(tokenizer, tokenizer.end_ids[0])
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": begin,
        "eos_token": END if source.is_chat else end,
        "pad_token": end,
        "additional_special_tokens": list(SPECIALS[1:]),
        "model_max_length": source.config.context_length,
        "clean_up_tokenization_spaces": False,
        "padding_side": "left",
    }


def write_shards(tensors: dict[str, Tensor], folder: Path, limit: int = MAX_SHARD_BYTES) -> None:
    """Write `model.safetensors`, or several numbered files and their index if the tensors exceed `limit` bytes.

    A single tensor that is larger than `limit` gets a file of its own.
    """
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > limit:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    if len(shards) == 1:
        write_tensors(folder / "model.safetensors", shards[0])
        return
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_tensors(folder / file, shard)
        places |= dict.fromkeys(shard, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": places})


def read_shards(folder: Path) -> dict[str, Tensor]:
    """Read the tensors that `write_shards` wrote."""
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = {}
    for path in sorted(folder.glob("model*.safetensors")):
        tensors |= load_file(path)
    return tensors
