"""Read a SentencePiece model (arXiv:1808.06226) without the SentencePiece library.

The file is a protocol buffer. Each field is a key (number << 3 | kind) and a value. The kind determines the form of the value:

    0   a varint: seven bits per byte, the lowest first; the top bit means that another byte follows
    1   eight bytes
    2   a length, as a varint, and that many bytes
    5   four bytes

Each field with the number 1 holds a piece, that is, a token of the vocabulary. It is a protocol buffer, too: field 1 is the
text of the piece, field 2 its score (float32), field 3 its type.

Encoding: a space is written as U+2581, and each character is a symbol. As long as two neighbouring symbols together are the
text of a piece, the pair whose piece has the highest score is joined, or the leftmost such pair if scores are equal. At the
end, a symbol that is not a piece is replaced by the pieces of its bytes.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable, Iterator
from itertools import pairwise

from numpy_ref.config import InputError
from numpy_ref.tokenizers import END_OF_TEXT

SPACE = "▁"
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6  # types of pieces


def fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield (number, value) for each field of a protocol buffer.

    Raises ValueError or IndexError if the message is truncated or is not a protocol buffer.
    """
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(message):
        key = varint()
        kind = key & 7
        if kind == 0:
            yield key >> 3, varint()
            continue
        if kind not in (1, 2, 5):
            raise ValueError(f"a field has the unknown kind {kind}")
        size = varint() if kind == 2 else {1: 8, 5: 4}[kind]
        if at + size > len(message):
            raise ValueError("the file is cut off")
        yield key >> 3, message[at : at + size]
        at += size


class SentencePieceTokenizer:
    """Encode text with a byte-pair SentencePiece model that has byte fallback and no normalisation.

    `model` is the content of a model file, and `where` names the file in messages. Raises InputError if the file is damaged,
    has no byte fallback, or has no piece `<|endoftext|>`. Models that Positron trains can be read; whether another model uses
    byte pairs is not checked.
    """

    kind = "sentencepiece"

    def __init__(self, model: bytes, source: str = "the model") -> None:
        try:
            pieces = [
                dict(fields(value)) for number, value in fields(model) if number == 1 and isinstance(value, bytes)
            ]
            self.pieces = [bytes(piece[1]).decode("utf-8") for piece in pieces]
            self._type = [int(piece.get(3, NORMAL)) for piece in pieces]
            scores = [struct.unpack("<f", bytes(piece.get(2, bytes(4))))[0] for piece in pieces]
        except (ValueError, KeyError, IndexError, TypeError, struct.error) as error:
            raise InputError(f"{source} is not a SentencePiece model: {error!r}") from error
        if UNKNOWN not in self._type or self._type.count(BYTE) != 256:
            raise InputError(
                f"{source} has no unknown piece or no byte fallback: numpy_ref reads only SentencePiece models that have "
                "both; use a tokenizer that Positron has trained"
            )
        self.vocab_size = len(self.pieces)
        joinable = {piece: i for i, piece in enumerate(self.pieces) if self._type[i] not in (UNKNOWN, CONTROL, BYTE)}
        self._ids = joinable
        self._score = {piece: scores[i] for piece, i in joinable.items()}
        self._byte = {int(self.pieces[i][1:-1], 16): i for i, kind in enumerate(self._type) if kind == BYTE}
        if END_OF_TEXT not in self.pieces:
            raise InputError(f"{source} has no piece {END_OF_TEXT}: use a tokenizer that Positron has trained")
        self.end_of_text = self.pieces.index(END_OF_TEXT)
        # words can be encoded one by one unless a piece contains a space that is not its first character
        self._words = re.compile(f"{SPACE}?[^{SPACE}]*" if all(SPACE not in p[1:] for p in joinable) else "(?s).*")

    def encode(self, text: str) -> list[int]:
        """Convert text to ids.

        Words are encoded one by one, or all together if a piece of the vocabulary contains a space that is not its first
        character. The character U+2581 is encoded as its bytes, because it stands for a space in the vocabulary.
        """
        ids: list[int] = []
        for i, part in enumerate(text.split(SPACE)):
            if i:  # U+2581 in the text would be decoded to a space, so it is written as its bytes
                ids += [self._byte[b] for b in SPACE.encode("utf-8")]
            for word in self._words.findall(part.replace(" ", SPACE)):
                ids += self._join(list(word))
        return ids

    def _join(self, symbols: list[str]) -> list[int]:
        while len(symbols) > 1:
            pairs = [a + b for a, b in pairwise(symbols)]
            best = max(range(len(pairs)), key=lambda i: (self._score.get(pairs[i], float("-inf")), -i))
            if pairs[best] not in self._score:
                break
            symbols = [*symbols[:best], pairs[best], *symbols[best + 2 :]]
        ids: list[int] = []
        for symbol in symbols:
            piece = self._ids.get(symbol)
            ids += [piece] if piece is not None else [self._byte[b] for b in symbol.encode("utf-8")]
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Convert ids to text. Bytes that are not valid UTF-8 become U+FFFD.

        The unknown token becomes U+2047 between two spaces; other special tokens are left out.
        """
        out = b""
        for i in ids:
            if self._type[i] == BYTE:
                out += bytes([int(self.pieces[i][1:-1], 16)])
            elif self._type[i] == UNKNOWN:
                out += " ⁇ ".encode()
            elif self._type[i] != CONTROL:
                out += self.pieces[i].replace(SPACE, " ").encode("utf-8")
        return out.decode("utf-8", errors="replace")
