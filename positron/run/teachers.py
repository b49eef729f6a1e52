"""Find the teachers of a distillation: trained runs with the same tokenizer, whose context is long enough."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from positron.run.folder import Run, find_run
from positron.system.disk import expanded
from positron.system.errors import UserError

if TYPE_CHECKING:
    from positron.text.tokenizer import Tokenizer


def find_teachers(names: Sequence[str]) -> list[Run]:
    """Return the runs with these names or folders. Raises UserError if one does not exist or has no checkpoint."""
    teachers = [find_run(str(expanded(name))) for name in names]
    for run in teachers:
        if not any(run.checkpoint_folder.glob("*.ckpt")):
            raise UserError(
                f"the teacher {run.folder} has no checkpoint yet: train it first, or name another run in teachers="
            )
    return teachers


def tokenizer_of(teachers: Sequence[Run], context: int) -> Tokenizer:
    """Return the tokenizer of the teachers of a run that learns from windows of `context` tokens.

    Raises UserError if two teachers have different tokenizers, or if one of them reads fewer than `context` tokens.
    """
    from positron.text.factory import load_tokenizer

    first = teachers[0]
    tokenizer = load_tokenizer(first.tokenizer_folder)
    for run in teachers:
        other = load_tokenizer(run.tokenizer_folder)
        if other.hash != tokenizer.hash:
            raise UserError(
                f"the teachers {first.folder} ({tokenizer.vocab_size:,} tokens) and {run.folder} ({other.vocab_size:,} tokens) "
                "have different tokenizers: name runs with the same tokenizer"
            )
        longest = run.settings().model.context_length
        if longest < context:
            raise UserError(
                f"model.context_length={context} is longer than the {longest} tokens that the teacher {run.folder} reads: "
                f"give model.context_length={longest}"
            )
    return tokenizer
