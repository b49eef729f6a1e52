"""Build the JSON objects of OpenAI's API: answers, chunks of a stream, usage and log-probabilities."""

from __future__ import annotations

import codecs
import secrets
import time
from collections.abc import Iterable
from typing import Any

from positron.inference.sessions import Piece, Session, Token
from positron.serving.models import Served
from positron.serving.parameters import Call
from positron.text.tokenizer import SPECIALS, StreamDecoder, Tokenizer

MIN_LOGPROB = -9999.0  # OpenAI's value for a probability of 0, whose logarithm JSON cannot express


class _Vocabulary:
    """Convert token ids to texts. An answer with log-probabilities shows these texts in place of the ids."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.specials = {tokenizer.special_id(name): name for name in SPECIALS}

    def name(self, i: int, skips_space: bool = False) -> str:
        r"""Return a token's text, or the name of a special token. With `skips_space`, a space at its beginning is left out.

        A token that is not valid UTF-8, such as the first byte of é, is returned as `bytes:\xc3`.
        """
        if i in self.specials:
            return self.specials[i]
        data = self.bytes_of(i, skips_space)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    def bytes_of(self, i: int, skips_space: bool) -> bytes:
        """Return the UTF-8 bytes of a token. With `skips_space`, a space at its beginning is left out."""
        data = self.tokenizer.bytes_of(i)
        return data.removeprefix(b" ") if skips_space else data


class Answer:
    """Build the JSON objects that answer one request."""

    def __init__(self, call: Call, served: Served, is_chat: bool) -> None:
        self.call, self.served, self.is_chat = call, served, is_chat
        self.vocabulary = _Vocabulary(served.tokenizer)
        kind = ("chatcmpl", "chat.completion") if is_chat else ("cmpl", "text_completion")
        self.id, self.object, self.created = f"{kind[0]}-{secrets.token_hex(12)}", kind[1], int(time.time())
        self.offsets = [0] * len(call.requests)  # for each text, the number of characters before its next token
        self.decoders = [
            StreamDecoder(served.tokenizer, () if request.scores_prompt else request.ids) for request in call.requests
        ]

    def whole(self, sessions: list[Session], pieces: list[list[Piece]]) -> dict[str, Any]:
        """Return the complete answer to a request that is not streamed. `pieces`: for each text, all its pieces."""
        choices = []
        for i, (session, parts) in enumerate(zip(sessions, pieces, strict=True)):
            text = self.call.echoed[i] + "".join(part.text for part in parts)
            prompt = self._prompt_logprobs(i, session)
            logprobs = self._joined(i, prompt, [token for part in parts for token in part.tokens])
            content = (
                {"message": {"role": "assistant", "content": text, "refusal": None}} if self.is_chat else {"text": text}
            )
            choices.append({"index": i, **content, "logprobs": logprobs, "finish_reason": parts[-1].finish})
        return {**self._head(self.object), "choices": choices, "usage": self.usage(sessions)}

    def first_chunks(self) -> list[dict[str, Any]]:
        """Return the first chunks of a stream: for a chat, one chunk with the role for each text; for a completion, none."""
        if not self.is_chat:
            return []
        return [
            self._chunk(i, {"delta": {"role": "assistant", "content": ""}}, None, None)
            for i in range(len(self.call.requests))
        ]

    def chunk(self, i: int, session: Session, piece: Piece, is_first: bool) -> dict[str, Any] | None:
        """Return the chunk that sends `piece`, a part of the text with index i, or None if the chunk would be empty.

        `is_first`: true for the first piece of the text. If the client asked for the prompt, the chunk of the first piece also
        contains the prompt.
        """
        prompt = self._prompt_logprobs(i, session) if is_first else []
        text = self.call.echoed[i] + piece.text if is_first else piece.text
        if not (text or piece.tokens or prompt or piece.finish):
            return None
        logprobs = self._joined(i, prompt, piece.tokens)
        content = {"delta": {"content": text} if text else {}} if self.is_chat else {"text": text}
        return self._chunk(i, content, logprobs, piece.finish)

    def usage_chunk(self, sessions: list[Session]) -> dict[str, Any]:
        """Return the last chunk of a stream, which contains the usage; it is sent only if the client asked for the usage."""
        return {**self._head(self._chunk_object()), "choices": [], "usage": self.usage(sessions)}

    def usage(self, sessions: list[Session]) -> dict[str, Any]:
        """Return the numbers of tokens in the prompts and in the generated texts, as OpenAI's object `usage`.

        `cached_tokens` is the number of the prompts' tokens that were already in the key/value cache. If several texts continue
        one prompt, its tokens are counted once, and its cached tokens are those of the first text.
        """
        new, prompt = sum(session.progress.tokens for session in sessions), self.call.prompt_tokens
        cached = sum(session.reused for session in sessions[:: self.call.n])
        return {
            "prompt_tokens": prompt,
            "completion_tokens": new,
            "total_tokens": prompt + new,
            "prompt_tokens_details": {"cached_tokens": cached},
        }

    def _chunk_object(self) -> str:
        return f"{self.object}.chunk" if self.is_chat else self.object

    def _head(self, kind: str) -> dict[str, Any]:
        head = {"id": self.id, "object": kind, "created": self.created, "model": self.served.name}
        return {**head, **self.call.left_out}

    def _chunk(self, i: int, content: dict[str, Any], logprobs: Any, finish: str | None) -> dict[str, Any]:
        choice = {"index": i, **content, "logprobs": logprobs, "finish_reason": finish}
        usage = {"usage": None} if self.call.include_usage else {}
        return {**self._head(self._chunk_object()), "choices": [choice], **usage}

    def _prompt_logprobs(self, i: int, session: Session) -> list[Token | int]:
        """Return the tokens of a prompt of the client with their log-probabilities, or [] if the client did not ask for them.

        `i` is the index of the generated text, and `session` is the session that reads its prompt and generates it.

        The first token of the sequence has no log-probability, because no token precedes it. If the client gave this token,
        only its id is returned. If the server put this token before the client's prompt, it is left out, and all returned
        tokens have a log-probability.
        """
        request = self.call.requests[i]
        if not request.scores_prompt:
            return []
        return [*request.ids[self.call.hidden : 1], *session.prompt]

    def _joined(self, i: int, prompt: Iterable[Token | int], tokens: list[Token]) -> dict[str, Any] | None:
        if self.call.requests[i].logprobs is None:
            return None
        if self.is_chat:
            return {"content": [self._chat_logprob(i, token) for token in tokens], "refusal": None}
        return self._completion_logprobs(i, [*prompt, *tokens])

    def _chat_logprob(self, i: int, token: Token) -> dict[str, Any]:
        # without the space that the tokenizer puts before an answer, so that the names of all tokens are the answer's text
        skips_space = self.decoders[i].skips_space
        self.decoders[i].push(token.id)
        return {
            **self._named(token.id, token.logprob, skips_space),
            "top_logprobs": [self._named(*other, skips_space) for other in token.likeliest],
        }

    def _named(self, token_id: int, logprob: float, skips_space: bool) -> dict[str, Any]:
        return {
            "token": self.vocabulary.name(token_id, skips_space),
            "logprob": max(logprob, MIN_LOGPROB),
            "bytes": list(self.vocabulary.bytes_of(token_id, skips_space)),
        }

    def _completion_logprobs(self, i: int, tokens: list[Token | int]) -> dict[str, Any]:
        wants = self.call.requests[i].logprobs
        names, offsets = [], []
        logprobs: list[float | None] = []
        likeliest: list[dict[str, float] | None] = []
        for token in tokens:
            number = token if isinstance(token, int) else token.id
            skips_space = self.decoders[i].skips_space  # so that the names are the text, as in `_chat_logprob`
            names.append(self.vocabulary.name(number, skips_space))
            before = self.offsets[i]
            self.offsets[i] += len(self.decoders[i].push(number))
            # if the bytes before this token are no complete character, the text that it adds begins with a � of their own
            own, _ = codecs.utf_8_decode(self.vocabulary.bytes_of(number, skips_space), "replace", False)
            offsets.append(max(before, self.offsets[i] - len(own)))
            if isinstance(token, int):
                logprobs.append(None)
                likeliest.append(None)
            else:
                logprobs.append(max(token.logprob, MIN_LOGPROB))
                named: dict[str, float] = {}
                for other, value in [*token.likeliest, (token.id, token.logprob)]:
                    name = self.vocabulary.name(other, skips_space)
                    named.setdefault(name, max(value, MIN_LOGPROB))  # names may occur twice
                likeliest.append(named)
        return {
            "tokens": names,
            "token_logprobs": logprobs,
            "top_logprobs": likeliest if wants else None,
            "text_offset": offsets,
        }
