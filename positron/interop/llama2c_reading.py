"""Read a model file of llama2.c with its vocabulary file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from positron.config import GPTConfig
from positron.interop import llama2c
from positron.interop.imported import Imported, refuse_non_finite, special_ids, with_rows
from positron.model.memory import check_memory
from positron.system.disk import read_bytes
from positron.system.errors import UserError
from positron.text.library_json import LibraryTokenizer

MAGIC = 0x616B3432  # the first number of a file in version 1 or later of the format; the second number is the version


def read_llama2c(path: Path, vocabulary: Path | None) -> Imported:
    """Read a model file of llama2.c (version 0), which consists of a header with seven numbers and the tensors in fp32.

    `vocabulary`: the file with the texts of the model's tokens (None: tokenizer.bin or tok512.bin in the same folder). Raises
    the errors of `importing.read_model`.
    """
    content = read_bytes(path.resolve())  # the user's own link, which is followed
    if len(content) < llama2c.HEADER.size:
        raise UserError(
            f"{path} is not a model file of llama2.c, because it has only {len(content)} bytes: download it again"
        )
    width, hidden, layers, heads, kv_heads, size, context = llama2c.HEADER.unpack_from(content)
    if width == MAGIC:
        raise UserError(
            f"{path} has version {hidden} of llama2.c's file format, but Positron reads only version 0: write the file again "
            "with --version 0 of llama2.c's export.py"
        )
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
        raise UserError(
            f"{path} is not a model file of llama2.c, because the sizes in its header do not fit together (dim={width}, "
            f"n_heads={heads}, n_kv_heads={kv_heads}, n_layers={layers}, seq_len={context}): choose another file"
        ) from error
    check_memory(config, copies=2)
    numbers = (
        torch.from_numpy(np.frombuffer(content, dtype="<f4", offset=llama2c.HEADER.size).copy())
        if len(content) % 4 == 0
        else torch.empty(0)
    )
    needed = llama2c.count_numbers(config)
    if len(numbers) != needed:
        raise UserError(
            f"{path} has {len(content):,} bytes, but its header requires {llama2c.HEADER.size + 4 * needed:,} bytes, so the "
            "file is incomplete, damaged or not a model file of llama2.c: download it again"
        )
    weights = llama2c.read_weights(config, numbers)
    refuse_non_finite(weights, path)
    library = llama2c.library_json(_beside(path, vocabulary), config.vocab_size)
    known = {token["content"]: token["id"] for token in json.loads(library)["added_tokens"]}
    specials, size = special_ids(known, llama2c.BEGIN, config.vocab_size)
    tokenizer = LibraryTokenizer(library, specials, size)
    config, weights = with_rows(config, weights, tokenizer.vocab_size)
    return Imported(config, weights, tokenizer, False, str(path))


def _beside(path: Path, vocabulary: Path | None) -> Path:
    """Return the vocabulary file for the model file `path`.

    This is `vocabulary` if it is given; otherwise tokenizer.bin or, if there is none, tok512.bin in the folder of the model.
    Raises UserError if `vocabulary` is None and the folder has neither file.
    """
    if vocabulary is not None:
        return vocabulary
    beside = [path.with_name(name) for name in (llama2c.VOCABULARY, "tok512.bin") if path.with_name(name).exists()]
    if not beside:
        raise UserError(
            f"{path} needs its vocabulary file: give --tokenizer FILE, or put the tokenizer.bin of this model into the same "
            "folder"
        )
    return beside[0]
