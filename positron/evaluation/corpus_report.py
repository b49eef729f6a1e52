"""Describe a tokenized corpus: its sizes, the tokenizer's efficiency, document lengths and examples of windows."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np

from positron.data.shards import TokenFiles
from positron.evaluation.plots import length_histogram
from positron.system.disk import whole_file
from positron.text.tokenizer import END_OF_TEXT, Tokenizer


def sizes(split: str, files: TokenFiles) -> str:
    """Return one line with the numbers of documents, tokens and bytes in the token files of a split, "train" or "val"."""
    noun = "document" if files.n_documents == 1 else "documents"
    return (
        f"  {split:<6} {files.n_documents:>12,} {noun:<9} {files.n_tokens:>14,} tokens {files.n_bytes:>14,} bytes"
        f"   {files.n_bytes / max(1, files.n_tokens):.2f} bytes per token"
    )


def tokenizer_report(files: TokenFiles, tokenizer: Tokenizer, limit: int = 5_000_000) -> str:
    """Describe, as lines of text, how the tokenizer encodes the text of the first `limit` training tokens.

    The lines are: vocabulary, bytes per token, tokens per word, share of unknown tokens, longest and rarest tokens.
    """
    ids = files.read(0, min(limit, files.n_tokens))
    lengths, counts = tokenizer.token_bytes(), np.bincount(ids, minlength=tokenizer.vocab_size)
    documents = np.split(ids, np.flatnonzero(ids == tokenizer.special_id(END_OF_TEXT)))
    words = sum(len(tokenizer.decode(document.tolist()).split()) for document in documents)
    with_text = np.flatnonzero(lengths > 0)  # special tokens have no text
    used = with_text[counts[with_text] > 0]
    by_length = sorted(used, key=lambda i: (-lengths[i], i))[:8]
    by_count = sorted(used, key=lambda i: (counts[i], i))[:8]
    unknown = counts[0] / max(1, len(ids)) if tokenizer.has_unknown else 0.0

    def shown(pieces: list[int]) -> str:
        parts = [tokenizer.bytes_of(int(i)) for i in pieces]
        return "  ".join(repr(part.decode("utf-8")) if _is_text(part) else repr(part) for part in parts)

    return "\n".join(
        [
            f"tokenizer {tokenizer.kind}: {tokenizer.vocab_size:,} tokens, {len(used):,} of them occur in this text",
            f"  bytes per token   {files.token_bytes(tokenizer)[ids].sum() / max(1, len(ids)):.2f}",
            f"  tokens per word   {len(ids) / max(1, words):.2f}",
            f"  unknown           {unknown:.3%}"
            + ("   the tokenizer cannot encode these parts of the text" if unknown > 0.01 else ""),
            f"  longest tokens    {shown(by_length)}",
            f"  rarest tokens     {shown(by_count)}",
        ]
    )


def _is_text(part: bytes) -> bool:
    """Tell whether the bytes are complete UTF-8 characters."""
    return "\ufffd" not in part.decode("utf-8", errors="replace")


def preview(files: TokenFiles, tokenizer: Tokenizer, context: int, folder: Path) -> str:
    """Return lines of text with the document lengths and with three windows of `context` tokens, as a model reads them.

    Windows that would be the same, because the text is hardly longer than the context, occur once. Also
    writes a histogram of the lengths to `folder`/lengths.png, if there is a document.
    """
    end = tokenizer.special_id(END_OF_TEXT)
    positions = files.find_token(end)
    if positions[-1] < files.n_tokens - 1:  # the rest of the last document is in the validation text
        positions = np.append(positions, files.n_tokens)
    lengths = np.diff(positions) - 1
    lines = ["", "document lengths in tokens:"]
    if len(lengths):
        quantiles = np.percentile(lengths, [0, 10, 50, 90, 100])
        lines.append(
            "  shortest {:,.0f} · 10 % {:,.0f} · median {:,.0f} · 90 % {:,.0f} · longest {:,.0f}".format(*quantiles)
        )
        with whole_file(folder / "lengths.png") as file:
            file.write(length_histogram(lengths, context))
        lines.append(f"  histogram: {folder / 'lengths.png'}")
    last = max(0, files.n_tokens - context)
    for start in sorted({int(part * last) for part in (0.1, 0.5, 0.9)}):
        ids = files.read(start, context)
        cuts = [0, *(int(i) for i in np.flatnonzero(ids == end)), len(ids)]
        pieces = [tokenizer.decode(ids[a:b].tolist()) for a, b in pairwise(cuts)]
        lines += ["", f"--- a window of {len(ids)} tokens, from token {start:,} ---", f"{END_OF_TEXT}".join(pieces)]
    return "\n".join(lines)
