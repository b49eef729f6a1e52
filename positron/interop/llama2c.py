"""Write and read the files of llama2.c (weights and vocabulary), whose `run.c` runs a language model in one C file.

`run.c` supports only RMSNorm, RoPE over the pairs (2 i, 2 i + 1), SwiGLU, and no biases. In its vocabulary, some ids have a
fixed meaning: 1 begins and ends a text, and 3 to 258 are the 256 bytes. Therefore an export reorders the vocabulary and the
rows of the embedding.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from positron.config import GPTConfig
from positron.interop.rules import Rule, consecutive_pairs, expected_shapes, same, to_ours, to_theirs
from positron.interop.source import Source, largest_difference
from positron.interop.tokenizer_json import piece_tokenizer, ranked_merges
from positron.model.gpt import rope_tables
from positron.system.disk import read_bytes, whole_file
from positron.system.errors import UserError
from positron.text.sentencepiece_bpe import Piece, SentencePieceTokenizer
from positron.text.tokenizer import END_OF_TEXT, SPECIALS, Tokenizer

MODEL, VOCABULARY = "model.bin", "tokenizer.bin"
HEADER = struct.Struct("<7i")  # width, MLP width, layers, heads, key/value heads, vocabulary (< 0: untied), context
_FIRST_BYTE = 3  # the id of the byte 0 in run.c
BEGIN = 1  # the id that begins and ends a text


def check_model(config: GPTConfig) -> None:
    """Raise UserError, which names the option, if llama2.c does not support an option of the model."""
    options = {"norm": "rmsnorm", "position": "rope", "activation": "swiglu", "bias": False, "qk_norm": False}
    options |= {"smear": False, "rope_base": 10_000.0, "norm_eps": 1e-5, "d_head": config.d_model // config.n_head}
    for key, value in options.items():
        actual = getattr(config, key)
        if actual != value:
            name = "head_dim" if key == "d_head" else key
            shown, only = (str(v).lower() if isinstance(v, bool) else v for v in (actual, value))
            raise UserError(
                f"llama2.c does not support model.{name}={shown}, only {name}={only}: train a run with "
                "model=quickstart_portable tokenizer=spm_2k"
            )
    if config.window is not None and config.window < config.context_length:
        raise UserError(
            f"llama2.c does not support a sliding window (model.window={config.window}): train a run with model.window=null"
        )


def check_tokenizer(tokenizer: Tokenizer) -> SentencePieceTokenizer:
    """Return the tokenizer if it is SentencePiece, the only kind that llama2.c reads. Otherwise raises UserError."""
    if not isinstance(tokenizer, SentencePieceTokenizer):
        raise UserError(
            f"llama2.c does not support tokenizer.kind={tokenizer.kind}, only sentencepiece: train a run with tokenizer=spm_2k"
        )
    return tokenizer


def rules(config: GPTConfig) -> list[Rule]:
    """Return the rules that convert the tensors, in the order of the file.

    The file contains first one kind of tensor for all layers, then the next kind for all layers, and so on. An output head that
    is not tied to the embedding has no rule: `write` appends it to the end of the file, after the RoPE tables.
    """
    blocks = range(config.n_layer)

    def each(part: str) -> list[Rule]:
        return [same(f"{part}.{i}", f"blocks.{i}.{part}.weight") for i in blocks]

    def turned(part: str) -> list[Rule]:
        return [consecutive_pairs(f"{part}.{i}", f"blocks.{i}.{part}.weight", config.d_head) for i in blocks]

    ordered = [same("wte", "wte.weight"), *each("norm1"), *turned("attn.q"), *turned("attn.k"), *each("attn.v")]
    ordered += [*each("attn.out"), *each("norm2"), *each("mlp.gate"), *each("mlp.down"), *each("mlp.up")]
    return [*ordered, same("norm_f", "norm_f.weight")]


def id_order(tokenizer: SentencePieceTokenizer) -> list[int]:
    """Return a list whose item i is Positron's id of the token that gets the id i in the files for `run.c`.

    `run.c` expects the bytes at the ids 3 to 258. The order is: the unknown token (0), <|endoftext|> (1), the first of the
    other special tokens (2), the 256 bytes (3 to 258), and then all other tokens.
    """
    pieces = tokenizer.pieces()
    begin = tokenizer.special_id(END_OF_TEXT)
    bytes_ = [i for i, piece in enumerate(pieces) if piece.kind == "byte"]
    others = [i for i, piece in enumerate(pieces) if piece.kind != "byte" and i not in (0, begin)]
    markers = [i for i in others if pieces[i].kind == "control"]
    return [0, begin, markers[0], *bytes_, *(i for i in others if i != markers[0])]


def write(source: Source, folder: Path) -> float:
    """Write `model.bin` and `tokenizer.bin` into a folder, and read the weights back.

    Returns the largest absolute difference between the logits of the run's model and those of the same model with the weights
    that were read back. Raises UserError, before anything is written, if llama2.c does not support the model or the tokenizer.
    """
    config = source.config
    check_model(config)
    tokenizer = check_tokenizer(source.tokenizer)
    order = id_order(tokenizer)
    tensors = to_theirs(rules(config), source.weights)
    tensors["wte"] = tensors["wte"][order]
    cos, sin = rope_tables(config.context_length, config.d_head, config.rope_base)
    parts = [*tensors.values(), cos, sin]
    if not config.tie_embeddings:
        parts.append(source.weights["lm_head.weight"][order])
    vocabulary = config.vocab_size if config.tie_embeddings else -config.vocab_size
    header = (config.d_model, config.ff_width, config.n_layer, config.n_head, config.kv_heads, vocabulary)
    with whole_file(folder / MODEL) as file:
        file.write(HEADER.pack(*header, config.context_length))
        for part in parts:
            file.write(part.to(torch.float32).contiguous().numpy().astype("<f4").tobytes())
    pieces = tokenizer.pieces()
    with whole_file(folder / VOCABULARY) as file:
        file.write(vocabulary_file([pieces[i] for i in order]))
    return largest_difference(source, _read_back(config, folder / MODEL, order))


def vocabulary_file(pieces: list[Piece]) -> bytes:
    """Return the content of tokenizer.bin: the length of the longest piece in bytes, then each piece.

    A piece is written as its score, its length in bytes, and its text.
    """
    texts = [_text_of(piece) for piece in pieces]
    content = struct.pack("<i", max(map(len, texts)))
    for piece, text in zip(pieces, texts, strict=True):
        content += struct.pack("<fi", piece.score, len(text)) + text
    return content


def library_json(path: Path, vocab_size: int) -> bytes:
    """Return the vocabulary in tokenizer.bin as a tokenizer.json that encodes texts as run.c does.

    run.c puts a space before a text. If a character has no piece, run.c encodes its bytes instead. Then it repeatedly
    joins the two neighbouring pieces that form the piece with the highest score. A piece with the name of one of
    Positron's special tokens is this token: Positron wrote the file. Raises UserError if the file is damaged or does
    not have `vocab_size` pieces.
    """
    content, place = read_bytes(path.resolve()), 4
    pieces: list[tuple[str, float]] = []
    try:
        while place < len(content):
            score, length = struct.unpack_from("<fi", content, place)
            text = content[place + 8 : place + 8 + length]
            if length < 0 or len(text) != length:
                raise ValueError("the last piece is incomplete")
            pieces.append((text.decode("utf-8").replace(" ", "▁"), score))
            place += 8 + length
    except (struct.error, ValueError) as error:
        raise UserError(
            f"{path} is incomplete or is not a vocabulary file of llama2.c: download it again, or give another file by "
            "--tokenizer"
        ) from error
    if len(pieces) != vocab_size:
        raise UserError(
            f"{path} has {len(pieces):,} tokens, but the model has {vocab_size:,}: give the vocabulary file of this model by "
            "--tokenizer"
        )
    specials = {0: "<unk>", 1: "<s>", 2: "</s>"}
    specials |= {i: text for i, (text, _) in enumerate(pieces) if text in SPECIALS}
    texts = {specials.get(i, text): i for i, (text, _) in enumerate(pieces)}
    normal = [
        (text, score, i) for i, (text, score) in enumerate(pieces) if i >= _FIRST_BYTE + 256 and i not in specials
    ]
    return json.dumps(piece_tokenizer(texts, ranked_merges(normal), specials, dummy_prefix=True)).encode("utf-8")


def _text_of(piece: Piece) -> bytes:
    """Return the text of a piece with spaces instead of U+2581, as run.c expects. A byte piece (`<0x0A>`) does not change."""
    return (piece.text if piece.kind == "byte" else piece.text.replace("▁", " ")).encode("utf-8")


def count_numbers(config: GPTConfig) -> int:
    """Return how many numbers follow the header in a model file of llama2.c.

    These are the numbers of the tensors, of two RoPE tables, and of the output head if it is not tied to the embedding.
    """
    numbers = sum(shape.numel() for shape in expected_shapes(rules(config), config).values())
    numbers += config.context_length * config.d_head
    return numbers + (0 if config.tie_embeddings else config.vocab_size * config.d_model)


def read_weights(config: GPTConfig, numbers: Tensor) -> dict[str, Tensor]:
    """Return Positron's tensors from `numbers`, all numbers after the header of a model file of llama2.c.

    Row i of the embedding and of the output head belongs to token i of the file's vocabulary. If Positron wrote the file, the
    run's own tokenizer may give this token another id (see `id_order`).
    """
    tensors: dict[str, Tensor] = {}
    start = 0
    for name, shape in expected_shapes(rules(config), config).items():
        tensors[name] = numbers[start : start + shape.numel()].view(shape)
        start += shape.numel()
    weights = to_ours(rules(config), tensors)
    if not config.tie_embeddings:
        weights["lm_head.weight"] = numbers[-config.vocab_size * config.d_model :].view(-1, config.d_model)
    return weights


def _read_back(config: GPTConfig, path: Path, order: list[int]) -> dict[str, Tensor]:
    """Read the weights from an exported file, with the rows of embedding and output head in Positron's order of ids.

    `order`: the result of `id_order`.
    """
    numbers = torch.from_numpy(np.frombuffer(read_bytes(path), dtype="<f4", offset=HEADER.size).copy())
    ours = torch.argsort(torch.tensor(order))
    by_id = ("wte.weight", "lm_head.weight")
    return {name: rows[ours] if name in by_id else rows for name, rows in read_weights(config, numbers).items()}
