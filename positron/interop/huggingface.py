"""Write a run as a folder that Hugging Face's transformers load: `AutoModelForCausalLM`, `AutoTokenizer`, `pipeline`.

The folder is read by transformers 4.57 and 5, which differ in what they write; every JSON file here holds what both read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from positron.interop import hf_architectures
from positron.interop.card import model_card
from positron.interop.rules import to_ours, to_theirs
from positron.interop.source import Source, largest_difference
from positron.interop.tokenizer_json import tokenizer_json
from positron.run.paths import CONFIG  # transformers gives this file the same name
from positron.system.disk import write_json, write_text
from positron.text.conversation import END
from positron.text.tokenizer import END_OF_TEXT, SPECIALS

MAX_SHARD_BYTES = 5 * 10**9  # the size at which the hub's tools divide a file of weights

# conversation.TEMPLATE, for programs that render Jinja; no white space between the parts, since it would become tokens
CHAT_TEMPLATE = (
    "{{ '<|endoftext|>' }}{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def write(source: Source, folder: Path) -> float:
    """Write the files into an empty folder, read the weights back, and return the largest difference of the logits.

    Raises UserError, before anything is written, for a model or a tokenizer that transformers cannot express.
    """
    config = source.config
    architecture = hf_architectures.choose(config)
    tokenizer = tokenizer_json(source.tokenizer)
    end_of_text = source.tokenizer.special_id(END_OF_TEXT)
    rules = architecture.rules(config)
    write_shards(to_theirs(rules, source.weights), folder)
    write_json(folder / CONFIG, hf_architectures.config_json(architecture, config, end_of_text))
    write_json(folder / "generation_config.json", _generation(source, end_of_text))
    write_json(folder / "tokenizer.json", tokenizer)
    write_json(folder / "tokenizer_config.json", _tokenizer_config(source))
    if source.is_chat:
        write_text(folder / "chat_template.jinja", CHAT_TEMPLATE)
    write_text(folder / "README.md", model_card(source, architecture.name))
    return largest_difference(source, to_ours(rules, read_shards(folder)))


def _generation(source: Source, end_of_text: int) -> dict[str, Any]:
    stops = [end_of_text, source.tokenizer.special_id(END)] if source.is_chat else end_of_text
    return {"bos_token_id": end_of_text, "eos_token_id": stops, "pad_token_id": end_of_text}


def _tokenizer_config(source: Source) -> dict[str, Any]:
    """Name the class that both major versions know; transformers 5 would write one that 4.57 refuses."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END if source.is_chat else END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "additional_special_tokens": list(SPECIALS[1:]),
        "model_max_length": source.config.context_length,
        "clean_up_tokenization_spaces": False,
        "padding_side": "left",
    }


def write_shards(tensors: dict[str, Tensor], folder: Path, limit: int = MAX_SHARD_BYTES) -> None:
    """Write `model.safetensors`, or numbered files of at most `limit` bytes each with their index."""
    from safetensors.torch import save_file

    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > limit:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    if len(shards) == 1:
        save_file(shards[0], folder / "model.safetensors", metadata={"format": "pt"})
        return
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(shard, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": places})


def read_shards(folder: Path) -> dict[str, Tensor]:
    """Read back what `write_shards` wrote."""
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = {}
    for path in sorted(folder.glob("model*.safetensors")):
        tensors |= load_file(path)
    return tensors
