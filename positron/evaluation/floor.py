"""Check whether a claimed score on documents of the built-in corpus, whose exact probabilities are known, is possible.

The documents are stories that a grammar generates. Let p be the probability of a document under the grammar, and q the
probability that a model gives it. If q is a distribution that does not depend on the document, then E[q/p] <= 1 over documents
drawn from p. So q/p is an e-value (Vovk and Wang 2021, doi:10.1214/20-AOS2020), and by Markov's inequality it reaches 2^k with
a probability of at most 2^-k. This holds exactly, for any number of documents. It also holds for a model that learns from the
documents that it has already scored, because the bound then holds for each document given the earlier ones.

A mistake in the evaluation may let the model see the tokens that it predicts. This lowers the loss, but the loss of a weak
model may still be above the entropy of the stories, which is low. For this reason, there are also control texts of random
words. No model can predict them, so a loss below their entropy shows the mistake.
"""

from __future__ import annotations

import json
import math
import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, assert_never

import numpy as np

from positron import stories
from positron.evaluation.score import CHANCE_BITS, Score
from positron.evaluation.scoring import interval, total
from positron.evaluation.statistics import t95
from positron.system.console import json_line, one_line
from positron.system.disk import is_number, write_text
from positron.system.errors import UserError, where_not_json, why_unreadable
from positron.system.formatting import counted

CONTROL_WORDS = 100  # length of a control text
SHOWN_DOCUMENTS = 5  # number of documents with the largest gains that a report names
SHOWN_CHARACTERS = 60  # number of characters that a report shows of each of these documents
SHOWN_IDS = 5  # number of documents that a message names
MAX_EXPONENT = 1000  # a smaller chance than 2^-MAX_EXPONENT is written in words


@dataclass(frozen=True)
class Document:
    """Hold a story of the built-in corpus, or a control text of random words; `bits` is -log2 of its probability."""

    id: str
    text: str
    bits: float
    is_control: bool = False

    @property
    def bytes(self) -> int:
        """Return the size of the text in bytes of UTF-8."""
        return len(self.text.encode("utf-8"))


@dataclass(frozen=True)
class Claim:
    """Hold the score that a user's program reports for one document.

    `logprob` is the natural logarithm of the probability that the program gives to the whole document. `bytes` is the number of
    bytes of text that the program scored.
    """

    id: str
    logprob: float
    bytes: int


def documents(seed: int, count: int) -> list[Document]:
    """Generate `count` documents of the built-in corpus that are in no training text.

    The documents are generated with the negative seed -1 - `seed`, while training texts have seeds of 0 or larger.
    """
    return [
        Document(f"{seed}/{index}", story.text, story.bits)
        for index, story in enumerate(stories.documents(-1 - seed, 0, count))
    ]


def control_texts(seed: int, given: Sequence[Document], count: int) -> list[Document]:
    """Return `count` texts of 100 random words (CONTROL_WORDS), which are drawn from the words of the documents `given`.

    Only words in lower-case letters are drawn. All different words are equally likely, however often they occur in the
    documents. `seed` is the seed of the random numbers. The texts contain no new words, so the tokenizer of a model for stories
    can encode them. The expected loss of any model is at least log2(number of different words) bits for each word.

    A text has a full stop only after its last word, so no text is the beginning of a longer one. Therefore the probabilities
    that a model gives to all possible texts have a sum of at most 1. The same holds for the stories.
    """
    words = sorted({word for document in given for word in re.findall(r"\b[a-z]+\b", document.text)})
    bits = CONTROL_WORDS * math.log2(len(words))
    rng = random.Random(f"control {seed}")
    return [
        Document(f"{seed}/control-{index}", " ".join(rng.choices(words, k=CONTROL_WORDS)) + ".", bits, is_control=True)
        for index in range(count)
    ]


def write_documents(path: Path, given: Iterable[Document]) -> None:
    """Write documents as JSON lines with `id` and `text`."""
    lines = (json.dumps({"id": document.id, "text": document.text}, ensure_ascii=False) for document in given)
    write_text(path, "".join(f"{line}\n" for line in lines))


def read_claims(path: Path, called: str | None = None) -> list[Claim]:
    """Read the scores that a user's program wrote: JSON lines with `id`, `logprob` in nats, and `bytes`.

    `called` is the name of the file in messages (default: its path). Raises UserError if the file cannot be read, or if a line
    is invalid; the message then names the line.
    """
    called = called or str(path)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"cannot read {called}: {why_unreadable(error)}") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{called} is not UTF-8 (the byte at offset {error.start} is invalid): write it as UTF-8"
        ) from error
    return [_claim(line, f"{called}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]


def _claim(line: str, place: str) -> Claim:
    example = '{"id": "0/7", "logprob": -131.2, "bytes": 871}'
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = one_line(where_not_json(error) if isinstance(error, ValueError) else str(error), 100)
        raise UserError(f"{place} is not JSON ({reason}): write lines such as {example}") from error
    if not isinstance(record, dict) or not {"id", "logprob", "bytes"} <= record.keys():
        raise UserError(f"{place} must be an object with id, logprob and bytes, such as {example}")
    name, logprob, size = record["id"], record["logprob"], record["bytes"]
    if not isinstance(name, str):
        raise UserError(
            f"{place}: id must be a string, the id of the document that was scored, not {json_line(name, 40)}: "
            f"write lines such as {example}"
        )
    if not is_number(logprob):
        raise UserError(
            f"{place}: logprob must be a finite number, the natural logarithm of the probability of the whole document, not "
            + json_line(logprob, 40)
        )
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise UserError(
            f"{place}: bytes must be a whole number of 0 or more, the number of bytes of text that were scored, not "
            + json_line(size, 40)
        )
    return Claim(name, float(logprob), size)


Verdict = Literal["possible", "impossible", "not comparable"]


@dataclass(frozen=True)
class Gain:
    """Hold a document for which the user's program reported a higher probability than the exact one.

    `bits` is log2(reported probability / exact probability), and `beginning` is the beginning of the document's text.
    """

    id: str
    bits: float
    beginning: str


@dataclass(frozen=True)
class Check:
    """Hold the result of `check`, which compares the scores that a user's program reported with the exact probabilities.

    The program was given stories, and control texts of random words, which no model can predict. A claim is the score that the
    program reported for one of these documents. `verdict`, `problems`, `evidence_bits` and `gains` are about stories and
    control texts. Fields whose names begin with `control` are about the control texts, and all other fields are about the
    stories. The scores, such as `floor` and `claimed`, are in bits per byte.

    If the verdict is "not comparable", `problems` says why, and the fields that need comparable claims have their default
    values. The claims are comparable with the documents if there is exactly one claim, with the right number of bytes, for each
    document.
    """

    verdict: Verdict
    problems: list[str]  # why the claims are not comparable with the documents; empty if they are comparable
    documents: int  # number of stories that the program was given
    scored_documents: int  # number of stories that it scored
    bytes: int
    scored_bytes: int
    floor: float  # -log2 of the exact probability of the stories, per byte
    floor_error: float | None  # standard error of `floor` as an estimate of the entropy of all stories of the corpus
    controls: int = 0
    control_floor: float | None = None
    control_claimed: float | None = None
    claimed: float | None = None
    difference: float | None = None  # claimed - floor
    difference_error: float | None = None  # standard error over documents
    evidence_bits: float | None = None  # log2 of the e-value E; a correct program has P(E >= x) <= 1 / x
    # documents whose reported probability is above the exact one: at most 5 (SHOWN_DOCUMENTS), with the largest quotients
    # reported / exact, in descending order
    gains: list[Gain] = field(default_factory=list)

    @property
    def standard_errors(self) -> float | None:
        """Return `difference` divided by its standard error, `difference_error`.

        The result is negative if the claimed bits per byte are fewer than `floor`, the bits per byte of the exact
        probabilities. Returns None if the claims are not comparable with the documents. Also returns None if the standard error
        is 0 or unknown; it is unknown for a single document.
        """
        if self.difference is None or not self.difference_error:
            return None
        return self.difference / self.difference_error


def check(given: Sequence[Document], claims: Sequence[Claim]) -> Check:
    """Decide whether a model that has not seen the documents can give them the claimed log-probabilities.

    A claim is the score that a user's program reports for one of the documents `given`. The verdict is "not comparable" if a
    document has no claim or several claims, if a claim names an unknown document, or if the number of bytes in a claim is not
    the size of the document.

    Otherwise, an e-value (see `evidence_bits`) compares the claimed probabilities of the stories with the exact probabilities.
    If there are control texts (texts of random words), a second e-value does the same for them. The verdict is "impossible" if
    the mean of the e-values is at least 2^20 (2^CHANCE_BITS), and otherwise "possible".
    """
    story_documents = [document for document in given if not document.is_control]
    controls = [document for document in given if document.is_control]
    names = {document.id for document in controls}
    floor, floor_error = _per_byte(story_documents, {document.id: document.bits for document in story_documents})
    problems = _problems(given, claims)
    facts: dict[str, Any] = {
        "problems": problems,
        "documents": len(story_documents),
        "scored_documents": sum(claim.id not in names for claim in claims),
        "bytes": sum(document.bytes for document in story_documents),
        "scored_bytes": sum(claim.bytes for claim in claims if claim.id not in names),
        "floor": floor,
        "floor_error": floor_error,
        "controls": len(controls),
    }
    if problems:
        return Check(verdict="not comparable", **facts)
    gains = {claim.id: claim.logprob / math.log(2) for claim in claims}
    gains = {document.id: document.bits + gains[document.id] for document in given}
    # the mean of two e-values is an e-value
    evidence = [
        evidence_bits(np.array([gains[document.id] for document in part]))
        for part in (story_documents, controls)
        if part
    ]
    combined = float(np.logaddexp2.reduce(evidence)) - math.log2(len(evidence))
    gain, gain_error = _per_byte(story_documents, gains)
    if controls:
        control_floor, _ = _per_byte(controls, {document.id: document.bits for document in controls})
        facts |= {"control_floor": control_floor, "control_claimed": control_floor - _per_byte(controls, gains)[0]}
    largest = sorted(given, key=lambda document: -gains[document.id])[:SHOWN_DOCUMENTS]
    return Check(
        verdict="impossible" if combined >= CHANCE_BITS else "possible",
        claimed=floor - gain,
        difference=-gain,
        difference_error=gain_error,
        evidence_bits=combined,
        gains=[Gain(each.id, gains[each.id], each.text[:SHOWN_CHARACTERS]) for each in largest if gains[each.id] > 0],
        **facts,
    )


def _per_byte(given: Sequence[Document], bits: dict[str, float]) -> tuple[float, float | None]:
    """Return the sum of `bits` divided by the size of the documents `given` in bytes, and the standard error of this ratio.

    `bits` maps the id of each document to a number of bits. The standard error comes from the differences between documents. It
    is None for a single document.
    """
    scores = [Score(bits[document.id] * math.log(2), document.bytes, 1) for document in given]
    return total(scores).bpb, _error(scores)


def _error(scores: Sequence[Score]) -> float | None:
    half_width = interval(scores)
    return None if half_width is None else half_width / t95(len(scores) - 1)


_WHOLE = " (score each given document as a whole, the control texts too)"


def _problems(given: Sequence[Document], claims: Sequence[Claim]) -> list[str]:
    """Return the reasons why the claims cannot be compared with the documents `given`; an empty list if they can.

    A claim is the score that a user's program reports for one document. Each reason is one line of text about one kind of
    problem, and names the first documents with this problem. The kinds are: documents without a claim, claims for unknown
    documents, documents with several claims, and claims whose number of bytes is not the size of the document.
    """
    sizes = {document.id: document.bytes for document in given}
    lines = Counter(claim.id for claim in claims)
    wrong = (
        ([name for name in sizes if name not in lines], f"has no line{_WHOLE}", f"have no line{_WHOLE}"),
        ([name for name in lines if name not in sizes], "was not given", "were not given"),
        ([name for name in sizes if lines[name] > 1], "has several lines", "have several lines"),
    )
    problems = [_listed(names, one, several) for names, one, several in wrong if names]
    cut = [claim for claim in claims if claim.id in sizes and claim.bytes != sizes[claim.id]]
    if cut:
        first = cut[0]
        problems.append(
            f"{counted(len(cut), 'document')} scored with a wrong number of bytes, such as {one_line(first.id, 40)} with "
            f"{first.bytes:,} of {sizes[first.id]:,} bytes"
        )
    return problems


def _listed(names: list[str], one: str, several: str) -> str:
    """Return a sentence about documents with the same problem, such as "2 documents were not given: 0/7, 0/8".

    `names` are the ids of these documents; the first 5 of them (SHOWN_IDS) are listed. `one` states the problem for a single
    document ("was not given"), and `several` for more than one ("were not given").
    """
    shown = ", ".join(one_line(name, 40) for name in names[:SHOWN_IDS])
    rest = f" and {len(names) - SHOWN_IDS:,} more" if len(names) > SHOWN_IDS else ""
    return f"{counted(len(names), 'document')} {one if len(names) == 1 else several}: {shown}{rest}"


def evidence_bits(gains: np.ndarray) -> float:
    """Return log2 of an e-value against the hypothesis that the claimed probabilities q form a probability distribution.

    An e-value is a nonnegative number whose expectation is at most 1 if the hypothesis is true. `gains` (N,) has log2 q/p for
    each document: q is the probability that the checked program claims, p the exact probability.

    A gambler begins with a capital of 1, bets the share s of the current capital on each document, and keeps the rest. The
    capital at the end is prod(1 - s + s q/p). If q is a distribution, the expectation of this capital is at most 1: the capital
    is a test martingale (Shafer et al. 2011, doi:10.1214/10-STS347).

    The e-value is the mean capital of several gamblers. The first one has the share s = 1. Each further one has half the share
    of the one before, until the share is at most 1/N. There are at least two gamblers. The gambler with s = 1 detects scores
    that are a little too good for every document. A gambler with a small s detects scores that are much too good for a few
    documents.
    """
    shares = 0.5 ** np.arange(math.ceil(math.log2(max(2, len(gains)))) + 1)
    with np.errstate(divide="ignore"):  # 1 - s is 0 for s = 1
        keep, bet = np.log2(1 - shares), np.log2(shares)
    capital = np.logaddexp2(keep[:, None], bet[:, None] + gains[None, :]).sum(axis=1)
    return float(np.logaddexp2.reduce(capital) - math.log2(len(shares)))


def as_text(result: Check, seed: int) -> str:
    """Return the result of `check` as lines of text. `seed` is the seed with which the documents were generated."""
    exact = f"{result.floor:.4f} bits per byte, exact for these documents"
    if result.floor_error is not None:
        exact += f" (as an estimate for all stories: standard error {result.floor_error:.4f})"
    lines = [
        f"given           {counted(result.documents, 'document')} (--seed {seed}), {result.bytes:,} bytes, "
        f"and {counted(result.controls, 'control text')} of random words",
        f"scored          {counted(result.scored_documents, 'document')}, {result.scored_bytes:,} bytes",
        f"known entropy   {exact}",
    ]
    if result.claimed is not None and result.difference is not None:
        side = "below" if result.difference < 0 else "above"
        away = result.standard_errors
        by = f", {abs(away):,.1f} times the standard error of this difference" if away is not None else ""
        lines.append(
            f"claimed         {result.claimed:.4f} bits per byte: {abs(result.difference):.4f} {side} the entropy{by}"
        )
    if result.control_floor is not None and result.control_claimed is not None:
        scores = f"claimed {result.control_claimed:.4f} bits per byte, known entropy {result.control_floor:.4f}"
        lines.append(f"control texts   {counted(result.controls, 'text')} of random words: {scores}")
    if result.evidence_bits is not None:
        lines.append(f"chance          {_chance(result.evidence_bits)}")
    lines.append(f"verdict         {_in_words(result)}")
    for gain in result.gains if result.verdict == "impossible" else ():
        lines.append(
            f"largest gains   {gain.id}: {gain.bits:.1f} bits below the exact value, {one_line(gain.beginning)}..."
        )
    return "\n".join(lines)


def _chance(evidence: float) -> str:
    if evidence <= 0:
        return "no evidence against the score"
    limit = f"2^-{evidence:,.0f}" if evidence > MAX_EXPONENT else f"{2**-evidence:.2g}"
    return f"at most {limit} that a model which is a probability distribution gets this score on documents that are new to it"


def _in_words(result: Check) -> str:
    match result.verdict:
        case "possible":
            return "possible"
        case "impossible":
            return (
                "impossible: the score is below the entropy of the text by more than chance explains. Either the model sees "
                "the tokens that it predicts, or its probabilities do not sum to 1, or the evaluation leaves out tokens, or "
                "the model was trained on these documents"
            )
        case "not comparable":
            return f"not comparable: {'; '.join(result.problems)}"
        case _:
            assert_never(result.verdict)
