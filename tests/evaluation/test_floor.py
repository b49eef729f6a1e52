"""`positron floor`: honest evaluators pass, broken ones are found, and the error rate is what is promised."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import random
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import PROJECT, Result, tiny

from positron import stories
from positron.evaluation.floor import (
    Claim,
    Document,
    as_text,
    check,
    control_texts,
    documents,
    evidence_bits,
    read_claims,
    write_documents,
)
from positron.evaluation.score import CHANCE_BITS
from positron.evaluation.scoring import score_documents
from positron.run.folder import Run
from positron.run.load import load_model
from positron.stories.plots import PLOTS
from positron.system.errors import UserError
from positron.train import train

ORDER = 6
END = "\x00"


class NGram:
    """Letters with interpolated counts: p(c | context) = (count + a * p of the next shorter context) / (total + a)."""

    def __init__(self, texts: list[str]) -> None:
        self.letters = sorted(set("".join(texts)) | {END})
        self.counts: dict[str, Counter[str]] = defaultdict(Counter)
        for text in texts:
            padded = END + text + END
            for i in range(1, len(padded)):
                for n in range(ORDER + 1):
                    self.counts[padded[max(0, i - n) : i]][padded[i]] += int(n <= i)

    def probability(self, context: str, letter: str) -> float:
        """The probability of a letter: a distribution over all letters for every context."""
        p = 1 / len(self.letters)
        for n in range(ORDER + 1):
            counts = self.counts.get(context[len(context) - n :] if n else "")
            if counts is None or n > len(context):
                break
            p = (counts[letter] + 0.5 * p) / (counts.total() + 0.5)
        return p

    def unnormalized(self, context: str, letter: str) -> float:
        """The sum over all orders instead of their mean, as in a cache whose "distribution" sums to 7."""
        parts = [self.counts.get(context[len(context) - n :] if n else "") for n in range(min(ORDER, len(context)) + 1)]
        return sum(counts[letter] / counts.total() for counts in parts if counts) + 1e-9

    def logprob(self, text: str, probability: Callable[[str, str], float] | None = None) -> float:
        """log p of the text and its end, letter by letter."""
        padded = END + text + END
        given = probability or self.probability
        return sum(math.log(given(padded[max(0, i - ORDER) : i], padded[i])) for i in range(1, len(padded)))


@pytest.fixture(scope="module")
def ngram() -> NGram:
    return NGram([story.text for story in stories.documents(0, 0, 400)])


GIVEN = documents(0, 100)


def claims(logprob: Callable[[Document], float], given: list[Document] = GIVEN) -> list[Claim]:
    return [Claim(document.id, logprob(document), document.bytes) for document in given]


def test_the_documents_are_new_stories_with_their_exact_information() -> None:
    assert len({document.text for document in GIVEN}) == 100
    for document in GIVEN[:5]:
        assert document.bits == pytest.approx(stories.bits(document.text), rel=1e-12)
    trained_on = {story.text for seed in range(3) for story in stories.documents(seed, 0, 300)}
    assert not trained_on & {document.text for document in GIVEN}
    assert documents(1, 1)[0].text != GIVEN[0].text


def test_no_story_is_the_beginning_of_another_so_that_their_ends_need_not_be_scored() -> None:
    texts = sorted(document.text for document in documents(0, 1500))
    assert not [a for a, b in itertools.pairwise(texts) if b.startswith(a)]
    assert all(all(plot.beats[-1]) for plot in PLOTS)


def test_the_grammar_itself_is_possible_and_has_the_score_of_the_floor() -> None:
    result = check(GIVEN, claims(lambda document: -document.bits * math.log(2)))
    assert result.verdict == "possible"
    assert result.claimed == pytest.approx(result.floor, rel=1e-12)
    assert result.evidence_bits == pytest.approx(0, abs=1e-6)
    expected = sum(document.bits for document in GIVEN) / sum(document.bytes for document in GIVEN)
    assert result.floor == pytest.approx(expected, rel=1e-12)


@pytest.mark.slow
def test_an_honest_ngram_is_possible_in_any_order_of_the_lines(ngram: NGram) -> None:
    assert sum(ngram.probability("e litt", letter) for letter in ngram.letters) == pytest.approx(1, rel=1e-9)
    written = claims(lambda document: ngram.logprob(document.text))
    result = check(GIVEN, written)
    assert result.verdict == "possible"
    assert result.claimed is not None
    assert result.claimed > result.floor
    assert check(GIVEN, written[::-1]) == result


def test_an_evaluator_that_does_not_normalize_is_impossible(ngram: NGram) -> None:
    sums = [ngram.unnormalized("e litt", letter) for letter in ngram.letters]
    assert sum(sums) == pytest.approx(7, rel=0.01)
    result = check(GIVEN, claims(lambda document: ngram.logprob(document.text, ngram.unnormalized)))
    assert result.verdict == "impossible"
    assert result.standard_errors is not None
    assert result.standard_errors < -10  # the sign of the difference
    assert len(result.gains) == 5
    assert result.gains[0].bits >= result.gains[-1].bits > 0
    assert "impossible: the score is below the entropy" in as_text(result, 0)
    assert result.gains[0].id in as_text(result, 0)


def test_an_evaluator_that_sees_the_next_letter_is_impossible(ngram: NGram) -> None:
    """The leak of one letter: each letter is predicted from the one after it too, by counts of trained text."""
    follows: dict[str, Counter[str]] = defaultdict(Counter)
    text = END.join(story.text for story in stories.documents(0, 0, 400))
    for i in range(2, len(text) - 1):
        follows[text[i - 2 : i] + text[i]][text[i]] += 1  # the letter itself is part of the context

    def leaking(document: Document) -> float:
        padded = END + END + document.text
        total = 0.0
        for i in range(2, len(padded)):
            counts = follows[padded[i - 2 : i] + padded[i]]
            total += math.log((counts[padded[i]] + 0.001) / (counts.total() + 0.001 * len(ngram.letters)))
        return total

    assert check(GIVEN, claims(leaking)).verdict == "impossible"


def test_control_texts_have_the_information_of_a_uniform_choice_of_words() -> None:
    texts = control_texts(0, GIVEN, 30)
    words = {word for text in texts for word in text.text.removesuffix(".").split(" ")}
    known = {word for document in GIVEN for word in re.findall(r"\b[a-z]+\b", document.text)}
    assert words <= known
    assert len(words) > 0.8 * len(known)
    assert all(
        text.bits == pytest.approx(len(text.text.split(" ")) * math.log2(len(known)), rel=1e-12) for text in texts
    )
    assert control_texts(0, GIVEN, 30) == texts
    assert control_texts(1, GIVEN, 30)[0].text != texts[0].text


def test_a_leak_that_a_weak_model_hides_is_found_by_the_control_texts(ngram: NGram) -> None:
    """0.9 bits per byte is four times the entropy of the stories, but half of what random words need."""
    given = [*GIVEN, *control_texts(0, GIVEN, 10)]

    def leaking(document: Document) -> float:
        return -0.9 * math.log(2) * document.bytes

    assert check(GIVEN, claims(leaking)).verdict == "possible"
    result = check(given, claims(leaking, given))
    assert result.verdict == "impossible"
    assert result.claimed == pytest.approx(0.9, rel=1e-9)
    assert result.control_claimed == pytest.approx(0.9, rel=1e-9)
    assert all("control" in gain.id for gain in result.gains)
    honest = check(given, claims(lambda document: ngram.logprob(document.text), given))
    assert honest.verdict == "possible"
    assert honest.control_claimed is not None
    assert honest.control_floor is not None
    assert honest.control_claimed > honest.control_floor
    assert (honest.documents, honest.controls) == (100, 10)
    assert honest.floor == check(GIVEN, claims(lambda document: -1.0)).floor
    cut = [dataclasses.replace(claim, bytes=1) for claim in claims(leaking, given[-1:])]
    assert check(given, claims(leaking, given[:-1]) + cut).verdict == "not comparable"


def test_an_evaluator_that_scores_fewer_bytes_is_not_comparable_or_impossible(ngram: NGram) -> None:
    """Not comparable if it says so; if it claims all bytes, its score gives it away."""

    def half(document: Document) -> float:
        return ngram.logprob(document.text[: document.bytes // 8])

    honest = [dataclasses.replace(claim, bytes=claim.bytes // 8) for claim in claims(half)]
    result = check(GIVEN, honest)
    assert result.verdict == "not comparable"
    assert result.claimed is None
    first = GIVEN[0]
    assert (
        f"100 documents scored with a wrong number of bytes, such as 0/0 with {first.bytes // 8:,} of"
        in result.problems[0]
    )
    assert result.scored_bytes < result.bytes
    assert check(GIVEN, claims(half)).verdict == "impossible"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda lines: lines[:-1],
            "1 document has no line (score each given document as a whole, the control texts too): 0/99",
        ),
        (lambda lines: [*lines, lines[3]], "1 document has several lines: 0/3"),
        (lambda lines: [*lines, Claim("7/1", -1.0, 3)], "1 document was not given: 7/1"),
        (
            lambda lines: [Claim(f"x{i}", -1.0, 3) for i in range(100)],
            "100 documents have no line (score each given document as a whole, the control texts too): 0/0, 0/1, 0/2",
        ),
    ],
)
def test_other_documents_are_not_comparable(change: Callable[[list[Claim]], list[Claim]], says: str) -> None:
    result = check(GIVEN, change(claims(lambda document: -900.0)))
    assert result.verdict == "not comparable"
    assert any(says in problem for problem in result.problems)


def test_a_few_documents_that_the_model_has_seen_are_found_below_a_score_above_the_floor() -> None:
    """Three of 100 documents at 20 bits, all others 10 % worse than the floor: the mean alone looks honest."""
    result = check(
        GIVEN,
        claims(
            lambda document: -20.0 if document.id in ("0/3", "0/50", "0/98") else -document.bits * math.log(2) * 1.1
        ),
    )
    assert result.difference is not None
    assert result.difference > 0
    assert result.verdict == "impossible"
    assert {gain.id for gain in result.gains} == {"0/3", "0/50", "0/98"}


def test_the_evidence_is_an_e_value() -> None:
    """Its mean is at most 1 for any model: here exact, over all samples of three documents of a small world."""
    p = np.array([0.5, 0.3, 0.15, 0.05])
    rng = np.random.default_rng(0)
    for q in (p, rng.dirichlet(np.ones(4)), np.array([0.05, 0.15, 0.3, 0.5]), np.array([0.2, 0.2, 0.1, 0.1])):
        mean = sum(
            math.prod(p[list(sample)]) * 2 ** evidence_bits(np.log2(q / p)[list(sample)])
            for sample in itertools.product(range(4), repeat=3)
        )
        assert mean <= 1 + 1e-12
        if q.sum() > 1 - 1e-9:
            assert mean == pytest.approx(1, rel=1e-9)


def test_models_that_know_all_but_noise_are_rarely_accused() -> None:
    """p with noise, normalized over a world of 1,000 documents: P(e >= 2^k) <= 2^-k, here for k = 3."""
    rng = np.random.default_rng(1)
    p = rng.dirichlet(np.ones(1000))
    accused = 0
    for _ in range(1000):
        q = p * rng.lognormal(0, 0.5, 1000)
        q /= q.sum()
        sample = rng.choice(1000, size=50, p=p)
        accused += evidence_bits(np.log2(q / p)[sample]) >= 3
    assert accused / 1000 <= 2**-3
    assert CHANCE_BITS == 20


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("nonsense", r"line 2 is not JSON \(Expecting value, column 1\)"),
        ("[1, 2]", "line 2 must be an object with id, logprob and bytes"),
        ('{"id": "0/1", "logprob": -1}', "must be an object with id, logprob and bytes"),
        ('{"id": 1, "logprob": -1, "bytes": 3}', "id must be a string, the id of the document .*, not 1: write lines"),
        ('{"id": "0/1", "logprob": NaN, "bytes": 3}', "logprob must be a finite number.* not NaN"),
        ('{"id": "0/1", "logprob": -Infinity, "bytes": 3}', "not -Infinity"),
        ('{"id": "0/1", "logprob": true, "bytes": 3}', "not true"),
        ('{"id": "0/1", "logprob": -1, "bytes": 3.5}', "bytes must be a whole number"),
        ('{"id": "0/1", "logprob": -1, "bytes": -3}', "bytes must be a whole number"),
    ],
)
def test_a_line_that_is_wrong_is_named(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "scores.jsonl"
    path.write_text(f'{{"id": "0/0", "logprob": -100.5, "bytes": 800}}\n{line}\n')
    with pytest.raises(UserError, match=says):
        read_claims(path)


def test_documents_written_are_read_by_a_program_as_json_lines(tmp_path: Path) -> None:
    write_documents(tmp_path / "d.jsonl", GIVEN)
    read = [json.loads(line) for line in (tmp_path / "d.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(each["id"], each["text"]) for each in read] == [(document.id, document.text) for document in GIVEN]


def test_a_run_of_positron_is_possible(tmp_path: Path) -> None:
    run = Run(tmp_path / "outputs" / "tiny")
    train(tiny(tmp_path, train__max_steps=10), run.folder)
    model, tokenizer, _ = load_model(run)
    given = GIVEN[:20]
    scores = score_documents(model, tokenizer, [document.text for document in given])
    written = [Claim(d.id, -score.nats, score.bytes) for d, score in zip(given, scores, strict=True)]
    assert check(given, written).verdict == "possible"


def python(*words: str) -> str:
    return " ".join([f"'{sys.executable}'", *words])


def test_the_command_runs_a_program_and_tells_its_verdict(run_command: Callable[..., Result], tmp_path: Path) -> None:
    program = tmp_path / "my_eval.py"
    program.write_text(
        "import json, sys\n"
        "print('printed by the program')\n"
        "nats = float(sys.argv[3])\n"
        "with open(sys.argv[2], 'w') as out:\n"
        "    for line in open(sys.argv[1], encoding='utf-8'):\n"
        "        d = json.loads(line)\n"
        "        size = len(d['text'].encode())\n"
        "        out.write(json.dumps({'id': d['id'], 'logprob': -nats * size, 'bytes': size}) + '\\n')\n"
    )
    command = python("my_eval.py", "{text}", "{out}")
    honest = run_command("floor", "--command", f"{command} 1.5", "--documents", "30", "--json")
    assert honest.code == 0, honest.err
    facts = json.loads(honest.out)
    assert facts["claimed"] == pytest.approx(1.5 / math.log(2), rel=1e-12)
    assert "printed by the program" in honest.err
    broken = run_command("floor", "--command", f"{command} 0.1", "--documents", "30")
    assert broken.code == 1, broken.err
    assert "times the standard error of this difference" in broken.out
    assert "verdict         impossible" in broken.out
    written = run_command("floor", "--write", "d.jsonl", "--documents", "30", "--seed", "4")
    assert written.out == "wrote 30 stories and 5 control texts to d.jsonl\n"
    other = run_command("floor", "--command", f"{command} 1.5", "--documents", "30", "--seed", "4")
    assert other.code == 0
    lines = [json.loads(line) for line in (tmp_path / "d.jsonl").read_text(encoding="utf-8").splitlines()]
    sizes = {line["id"]: len(line["text"].encode()) for line in lines}
    rows = [{"id": name, "logprob": -2.0 * size, "bytes": size} for name, size in sizes.items()]
    (tmp_path / "s.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run_command("floor", "--scores", "s.jsonl", "--documents", "30", "--seed", "4").code == 0
    wrong = run_command("floor", "--scores", "s.jsonl", "--documents", "30")
    assert wrong.code == 2
    assert "not comparable: 35 documents have no line" in wrong.out


def test_the_command_refuses_in_one_line(run_command: Callable[..., Result], tmp_path: Path) -> None:
    for arguments, says in (
        ((), "one of the arguments --command --scores --write is required"),
        (("--command", "python x.py {text}"), "--command must contain {text} and {out}"),
        (("--command", "no-such-program {text} {out}"), "cannot run the program no-such-program of --command: "),
        (("--command", python("-c", "'raise SystemExit(3)'", "{text}", "{out}")), "ended with exit code 3"),
        (("--command", "python 'x.py {text} {out}"), "--command cannot be divided into words (No closing quotation)"),
        (("--command", python("-c", "pass", "{text}", "{out}")), "did not write the file {out}"),
        (
            (
                "--command",
                python("-c", "'import sys; open(sys.argv[2], str(chr(119))).write(str(4))'", "{text}", "{out}"),
            ),
            " wrote, line 1 must be an object with id, logprob and bytes",
        ),
        (("--scores", "none.jsonl"), "cannot read none.jsonl"),
        (("--write", "d.jsonl", "--documents", "1"), "--documents must be at least 2"),
        (("--write", "d.jsonl", "--seed", "-1"), "--seed must be at least 0"),
    ):
        result = run_command("floor", *arguments)
        assert result.code == 2, result.err
        assert says in result.err.splitlines()[-1]
    assert not list(tmp_path.glob("*.jsonl"))


@pytest.mark.parametrize("ids", [2, 65, 66, 200])
def test_the_example_scores_each_id_once_from_the_ids_before_it(ids: int) -> None:
    """Against a model that only knows the last id: its score is the same for every cut into windows."""
    import runpy

    import torch

    example = runpy.run_path(str(PROJECT / "docs" / "examples" / "score_documents.py"))
    table = torch.randn(9, 9, generator=torch.Generator().manual_seed(0)).log_softmax(dim=-1)
    text = random.Random(ids).choices(range(9), k=ids)
    expected = sum(float(table[a, b]) for a, b in itertools.pairwise(text))
    assert example["log_probability"](lambda idx: table[idx], text) == pytest.approx(expected, rel=1e-5)


def test_the_example_is_possible_for_the_command(run_command: Callable[..., Result]) -> None:
    script = PROJECT / "docs" / "examples" / "score_documents.py"
    command = python(str(script), "{text}", "{out}", "--steps", "5")
    result = run_command("floor", "--command", command, "--documents", "5", PYTHONPATH=str(PROJECT))
    assert result.code == 0, result.err
    assert "verdict         possible" in result.out
