"""The tokenizer that a configuration asks for, or that a folder holds."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from positron.config import TokenizerConfig
from positron.system.disk import read_bytes, read_json
from positron.system.errors import UserError
from positron.text.char_word import CharTokenizer, WordTokenizer
from positron.text.sentencepiece_bpe import SentencePieceTokenizer
from positron.text.tiktoken_bpe import TiktokenTokenizer, named
from positron.text.tokenizer import Tokenizer


def train_tokenizer(config: TokenizerConfig, texts: Iterable[str]) -> Tokenizer:
    """Made from `texts`; ready-made vocabularies need none."""
    if config.kind == "char":
        return CharTokenizer.train(texts)
    if config.kind == "tiktoken":
        assert config.name is not None
        return named(config.name)
    assert config.vocab_size is not None
    if config.kind == "word":
        return WordTokenizer.train(texts, config.vocab_size)
    return SentencePieceTokenizer.train(texts, config.vocab_size)


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer saved in `folder`. UserError where it is missing, damaged or altered."""
    facts = read_json(folder / "tokenizer.json", folder.parent)
    tokenizer: Tokenizer
    try:
        if facts["kind"] == "char":
            tokenizer = CharTokenizer(facts["characters"])
        elif facts["kind"] == "word":
            tokenizer = WordTokenizer(facts["pieces"])
        elif facts["kind"] == "tiktoken":
            tokenizer = TiktokenTokenizer.load(folder)
        else:
            tokenizer = SentencePieceTokenizer(read_bytes(folder / "spm.model", folder.parent))
        if tokenizer.hash != facts["hash"]:
            raise ValueError("its content does not have the hash that it was saved with")
    except (OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"the tokenizer in {folder} is damaged: {error}") from error
    return tokenizer
