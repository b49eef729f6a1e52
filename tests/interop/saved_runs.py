"""Tokenizers, models and run folders with random weights, made without training."""

from __future__ import annotations

import base64
import dataclasses
import functools
import json
import random
from pathlib import Path
from typing import Any

import torch
from conftest import tiny

from positron.config import GPTConfig, ModelConfig
from positron.model.gpt import GPT
from positron.run.folder import Run
from positron.run.paths import RunPaths
from positron.stories import documents
from positron.system.disk import write_json
from positron.text.char_word import CharTokenizer, WordTokenizer
from positron.text.conversation import TEMPLATE
from positron.text.library_json import LibraryTokenizer
from positron.text.sentencepiece_bpe import SentencePieceTokenizer
from positron.text.tiktoken_bpe import DEFINITIONS, TiktokenTokenizer
from positron.text.tokenizer import END_OF_TEXT, SPECIALS, Tokenizer

RMS = {"norm": "rmsnorm", "position": "rope"}
# one model for each class of transformers, and each option that changes a tensor
SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": {"bias": True},
    "gpt2_without_biases": {"n_kv_head": 2, "activation": "relu2", "tie_embeddings": False},
    "gpt2_sinusoidal": {"position": "sinusoidal", "activation": "swish", "bias": True},
    "starcoder2": {"position": "rope", "activation": "gelu", "bias": True, "n_kv_head": 2, "window": 5},
    "starcoder2_without_biases": {"position": "rope", "activation": "relu", "n_kv_head": 1},
    "stablelm": {"position": "rope", "activation": "swiglu", "tie_embeddings": False},
    "llama": {**RMS, "activation": "swiglu"},
    "llama_with_biases": {**RMS, "activation": "swiglu", "bias": True, "n_kv_head": 2, "tie_embeddings": False},
    "arcee": {**RMS, "activation": "relu2", "n_kv_head": 2},
    "arcee_gelu": {**RMS, "activation": "gelu", "bias": True},
    "mistral": {**RMS, "activation": "swiglu", "window": 5},
    "mistral_relu2": {**RMS, "activation": "relu2", "window": 5},
    "qwen3": {**RMS, "activation": "swiglu", "qk_norm": True, "n_kv_head": 2},
    "qwen3_window": {**RMS, "activation": "relu2", "qk_norm": True, "window": 5, "tie_embeddings": False},
    "apertus": {**RMS, "activation": "relu2", "qk_norm": True, "tie_embeddings": False},
}

# the pattern by which Qwen2 splits a text; that of Llama 3 allows three digits in a token
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")


@functools.cache
def corpus() -> list[str]:
    return [story.text for story in documents(seed=3, start=0, stop=300)]


@functools.cache
def sentencepiece() -> SentencePieceTokenizer:
    return SentencePieceTokenizer.train(corpus(), 600)


@functools.cache
def char() -> CharTokenizer:
    return CharTokenizer.train(corpus())


@functools.cache
def word() -> WordTokenizer:
    return WordTokenizer.train(corpus(), 500)


@functools.cache
def byte_pairs(name: str) -> TiktokenTokenizer:
    """A vocabulary with the pattern of tiktoken's `name`, and merges learned here: its rank file is on the network."""
    from tokenizers import Regex
    from tokenizers import Tokenizer as Library
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
    from tokenizers.trainers import BpeTrainer

    from positron.interop.tokenizer_json import PATTERNS
    from positron.text.library_json import BYTE_CHARACTERS

    library = Library(BPE())
    library.pre_tokenizer = Sequence(
        [Split(Regex(PATTERNS[name]), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    library.train_from_iterator(corpus(), BpeTrainer(vocab_size=500, initial_alphabet=BYTE_CHARACTERS))
    byte_of = {character: b for b, character in enumerate(BYTE_CHARACTERS)}
    ranks = {bytes(byte_of[c] for c in token): i for token, i in library.get_vocab().items()}
    lines = (f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.items())
    n = len(ranks)
    return TiktokenTokenizer(name, DEFINITIONS[name].pattern, "".join(lines).encode(), n, n + 3)  # two ids without text


@functools.cache
def imported_bytes(name: str) -> LibraryTokenizer:
    """A byte-level vocabulary as imports have it, which splits a text as the models of this name do."""
    from tokenizers import AddedToken, Regex, decoders, normalizers, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Library
    from tokenizers.models import BPE

    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
    steps = {
        "gpt-2": [gpt2],
        "smollm": [pre_tokenizers.Digits(individual_digits=True), gpt2],
        "qwen2": [pre_tokenizers.Split(Regex(QWEN2), "isolated"), plain],
        "llama-bpe": [pre_tokenizers.Split(Regex(LLAMA3), "isolated"), plain],
    }
    library = Library(BPE())
    library.pre_tokenizer = pre_tokenizers.Sequence(steps[name])
    library.decoder = decoders.ByteLevel()
    if name == "qwen2":
        library.normalizer = normalizers.NFC()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    library.train_from_iterator(corpus(), trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet))
    size = library.get_vocab_size()
    library.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    library.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    specials = {token: size + i for i, token in enumerate(SPECIALS)}
    return LibraryTokenizer(library.to_str().encode("utf-8"), specials, size + len(SPECIALS) + 1)


@functools.cache
def pieces() -> dict[str, Any]:
    """A vocabulary as Llama 2 and TinyLlama have it: `<s>` before a text, `</s>` after it, and a space put first."""
    from positron.interop.tokenizer_json import piece_tokenizer, sentencepiece_merges

    parts = {kind: [p.text for p in sentencepiece().pieces() if p.kind == kind] for kind in ("byte", "normal")}
    vocab = {text: i for i, text in enumerate(["<unk>", "<s>", "</s>", *parts["byte"], *parts["normal"]])}
    specials = {0: "<unk>", 1: "<s>", 2: "</s>"}
    return piece_tokenizer(vocab, sentencepiece_merges(sentencepiece()), specials, dummy_prefix=True)


def imported_pieces(**changes: Any) -> LibraryTokenizer:
    """The vocabulary `pieces`, with `changes`, as an import makes it a tokenizer, with our markers after all others."""
    size = len(pieces()["model"]["vocab"])
    specials = {END_OF_TEXT: 1, **{token: size + i for i, token in enumerate(SPECIALS[1:])}}
    content = json.dumps({**pieces(), **changes}).encode()
    return LibraryTokenizer(content, specials, size + len(SPECIALS) - 1, (2, 1))


def gpt_config(vocab_size: int, **shape: Any) -> GPTConfig:
    return GPTConfig(
        **{"vocab_size": vocab_size, "context_length": 16, "d_model": 32, "n_layer": 2, "n_head": 4, **shape}
    )


def random_model(config: GPTConfig, seed: int = 0) -> GPT:
    """A model whose norms differ from one and whose biases differ from zero, unlike a new one's."""
    model = GPT(config, seed=seed).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.add_(0.15 * torch.randn(parameter.shape, generator=generator))
    return model


def save_run(folder: Path, model: GPT, tokenizer: Tokenizer, *, chat: bool = False) -> Run:
    """Write a run folder that the commands which use a run accept."""
    fields = [field.name for field in dataclasses.fields(ModelConfig)]
    config = tiny(folder, model=ModelConfig(**{name: getattr(model.config, name) for name in fields}))
    paths = RunPaths(folder)
    for place in (paths.checkpoint_folder, paths.tokenizer_folder):
        place.mkdir(parents=True)
    write_json(paths.config_path, dataclasses.asdict(config))
    write_json(paths.facts_path, {"name": folder.name, "kind": "sft" if chat else "pretrain", "status": "finished"})
    if chat:
        write_json(paths.chat_path, TEMPLATE)
    tokenizer.save(paths.tokenizer_folder)
    checkpoint = {
        "state_dict": {f"model.{name}": tensor for name, tensor in model.state_dict().items()},
        "bad_steps": 0,
        "global_step": 1,
        "tokenizer_hash": tokenizer.hash,
        "gpt_config": dataclasses.asdict(model.config),
    }
    torch.save(checkpoint, paths.checkpoint_folder / "best.ckpt")
    return Run(folder)


def greedy(model: GPT, ids: list[int], count: int) -> list[int]:
    """The `count` ids that follow, each the likeliest, inside one context."""
    ids = list(ids)
    for _ in range(count):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return ids[-count:]


def odd_lines(count: int) -> list[str]:
    """Stories, random Unicode, control characters, joined emoji, runs of spaces and digits, typed special tokens."""
    draw = random.Random(0)
    pieces = [" ", "  ", "\n", "\r\n", "\t", "\u00a0", "'s", "'LL", "1234567", "<|end|>", "<unk>", "<0x0A>"]
    pieces += ["👨‍👩‍👧", "e\u0301", "ß", "中文", "２", "\x00", "\x7f"]
    planes = [(32, 127), (0x80, 0x2000), (0x2000, 0xD800), (0xE000, 0x10000), (0x10000, 0x110000)]

    def line() -> str:
        parts = [
            draw.choice(pieces) if draw.random() < 0.5 else chr(draw.randrange(*draw.choice(planes))) for _ in range(30)
        ]
        return "".join(parts).replace("▁", "")

    return [draw.choice(corpus()) if i % 2 else line() for i in range(count)]
