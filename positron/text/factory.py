"""Create the tokenizer that a configuration names, or load the one in a folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import assert_never, get_args

from positron.config import TokenizerConfig, TokenizerKind
from positron.system.commands import command
from positron.system.console import one_line
from positron.system.disk import read_bytes, read_json
from positron.system.errors import UserError
from positron.text.char_word import CharTokenizer, WordTokenizer
from positron.text.library_json import LibraryTokenizer
from positron.text.sentencepiece_bpe import SentencePieceTokenizer
from positron.text.tiktoken_bpe import TiktokenTokenizer, published
from positron.text.tokenizer import Tokenizer


def train_tokenizer(config: TokenizerConfig, texts: Iterable[str]) -> Tokenizer:
    """Train the tokenizer of `config` on `texts`, or load it without reading `texts` if its vocabulary is published (tiktoken).

    Raises UserError if the tokenizer can be neither trained nor loaded.
    """
    match config.kind:
        case "char":
            return CharTokenizer.train(texts)
        case "word":
            assert config.vocab_size is not None
            return WordTokenizer.train(texts, config.vocab_size)
        case "sentencepiece":
            assert config.vocab_size is not None
            return SentencePieceTokenizer.train(texts, config.vocab_size)
        case "tiktoken":
            assert config.name is not None
            return published(config.name)
        case "huggingface":
            raise UserError(
                "tokenizer.kind=huggingface cannot be trained: import a model with its tokenizer "
                f"({command('import', 'PATH')}), and give init_from= with the name of the imported run"
            )
        case _:
            assert_never(config.kind)


def load_tokenizer(folder: Path) -> Tokenizer:
    """Load the tokenizer saved in `folder`. Raises UserError if it is missing, damaged or altered."""
    if not (folder / "tokenizer.json").exists():
        raise UserError(
            one_line(f"{folder} has no tokenizer.json: restore this folder from a copy, or name another run")
        )
    facts = read_json(folder / "tokenizer.json", folder.parent)
    tokenizer: Tokenizer
    try:
        kind: TokenizerKind = facts["kind"]
        if kind not in get_args(TokenizerKind):
            raise ValueError(f"unknown kind {kind!r}, must be one of {', '.join(get_args(TokenizerKind))}")
        match kind:
            case "char":
                tokenizer = CharTokenizer(facts["characters"])
            case "word":
                tokenizer = WordTokenizer(facts["pieces"])
            case "sentencepiece":
                tokenizer = SentencePieceTokenizer(read_bytes(folder / "spm.model", folder.parent))
            case "tiktoken":
                tokenizer = TiktokenTokenizer.load(folder)
            case "huggingface":
                tokenizer = LibraryTokenizer.load(folder)
            case _:
                assert_never(kind)
        if tokenizer.hash != facts["hash"]:
            raise ValueError("its content has changed since it was saved (another hash)")
    except (OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        fault = f"tokenizer.json has no {error}" if isinstance(error, KeyError) else error
        raise UserError(
            f"the tokenizer in {folder} is damaged or was edited ({fault}): restore the folder from a copy"
        ) from error
    return tokenizer
