"""Measuring: against models and texts whose true figures are known."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Result, tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from positron import compare as compare_command
from positron import stories
from positron.config import IGNORE, DataConfig, GPTConfig, TokenizerConfig
from positron.evaluation.comparison import common_text, compare, find_runs
from positron.evaluation.eval_texts import (
    Beginning,
    Lossy,
    floor_of,
    floor_of_run,
    texts_of_file,
    texts_of_run,
    token_files,
    up_to,
)
from positron.evaluation.score import Score
from positron.evaluation.scoring import (
    interval,
    sampling_units,
    score,
    score_documents,
    score_windows,
    sliding_windows,
    total,
)
from positron.evaluation.story_quality import copied, distinct, following, quality
from positron.inference.engine import Written
from positron.inspection.scores import _documents
from positron.model.gpt import GPT
from positron.run.folder import Run
from positron.system.errors import UserError
from positron.system.formatting import side_by_side
from positron.text.char_word import CharTokenizer
from positron.text.factory import load_tokenizer
from positron.text.tokenizer import END_OF_TEXT
from positron.train import train

TOKENIZER = CharTokenizer("abcd ")


def silent(config: GPTConfig) -> GPT:
    """A model whose blocks add nothing: the embedding goes to the head as it is."""
    model = GPT(config).double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("attn.out.weight", "mlp.down.weight")):
                parameter.zero_()
    return model


def bigram(table: torch.Tensor, context: int) -> GPT:
    """The model that knows p(next | last) = table[last, next], (V, V), and nothing else."""
    V = len(table)
    model = silent(
        GPTConfig(
            vocab_size=V,
            context_length=context,
            d_model=V + V % 2,
            n_layer=1,
            n_head=1,
            norm="rmsnorm",
            position="sinusoidal",
            bias=False,
            tie_embeddings=False,
        )
    )
    with torch.no_grad():
        model.positions.zero_()
        model.wte.weight.copy_(torch.eye(V, V + V % 2))
        # a one-hot row leaves RMSNorm (eps 1e-5) as a multiple of itself
        scale = 1 / math.sqrt(1 / (V + V % 2) + 1e-5)
        model.lm_head.weight[:, :V] = table.log().T / scale
    return model


def test_a_uniform_model_of_bytes_scores_eight_bits() -> None:
    model = silent(GPTConfig(vocab_size=256, context_length=8, d_model=8, n_layer=1, n_head=1, tie_embeddings=False))
    with torch.no_grad():
        model.lm_head.weight.zero_()
    x = torch.randint(0, 256, (5, 8), generator=torch.Generator().manual_seed(0))
    found = score(model, x, x.roll(-1, 1), torch.ones(256, dtype=torch.int64))
    assert found.bpb == pytest.approx(8.0, rel=1e-12)
    assert found.perplexity == pytest.approx(256.0, rel=1e-12)


@settings(max_examples=30, deadline=None)
@given(
    texts=st.lists(st.text("abcd ", min_size=1, max_size=40), min_size=1, max_size=6),
    context=st.integers(2, 12),
    stride=st.integers(1, 12),
    seed=st.integers(0, 9),
)
def test_a_bigram_model_scores_what_its_table_says(texts: list[str], context: int, stride: int, seed: int) -> None:
    """However the windows lie: each token, and the end of each document, counts once, after the one before it."""
    rng = np.random.default_rng(seed)
    V = TOKENIZER.vocab_size
    table = torch.from_numpy(rng.dirichlet(np.ones(V), size=V)).clamp(min=1e-9)
    table /= table.sum(dim=1, keepdim=True)
    end = TOKENIZER.special_id(END_OF_TEXT)
    wanted = 0.0
    for text in texts:
        ids = [end, *TOKENIZER.encode(text), end]
        wanted -= sum(math.log(table[a, b]) for a, b in pairwise(ids))
    scores = score_documents(bigram(table, context), TOKENIZER, texts, stride=min(stride, context))
    whole = total(scores)
    assert whole.nats == pytest.approx(wanted, rel=1e-9)
    assert whole.bytes == sum(map(len, texts))
    assert whole.tokens == sum(len(text) + 1 for text in texts)


@given(st.integers(2, 60), st.integers(1, 12), st.integers(1, 12))
def test_sliding_windows_score_each_token_once_with_what_came_before(n: int, context: int, stride: int) -> None:
    stride = min(stride, context)
    ids = list(range(n))
    x, y = sliding_windows(ids, context, stride)
    assert x.shape == y.shape == (len(x), context)
    assert sorted(y[y != IGNORE].tolist()) == ids[1:]
    for row_x, row_y in zip(x.tolist(), y.tolist(), strict=True):
        for place, target in enumerate(row_y):
            if target != IGNORE:
                assert row_x[: place + 1] == ids[target - place - 1 : target]
                assert place + 1 >= min(target, context - stride + 1)


def test_a_stride_of_one_gives_each_token_the_whole_context() -> None:
    model = (
        GPT(GPTConfig(vocab_size=TOKENIZER.vocab_size, context_length=6, d_model=8, n_layer=2, n_head=2))
        .double()
        .eval()
    )
    end = TOKENIZER.special_id(END_OF_TEXT)
    text = "abcad dcab aab"
    ids = [end, *TOKENIZER.encode(text), end]
    wanted = 0.0
    with torch.no_grad():
        for i in range(1, len(ids)):
            logits = model(torch.tensor([ids[max(0, i - 6) : i]]))[0, -1]
            wanted -= float(logits.log_softmax(-1)[ids[i]])
    (found,) = score_documents(model, TOKENIZER, [text], stride=1)
    assert found.nats == pytest.approx(wanted, rel=1e-12)
    with pytest.raises(UserError, match="--stride must be between 1 and the context length 6, not 7"):
        score_documents(model, TOKENIZER, [text], stride=7)


def test_the_interval_holds_the_truth_19_times_of_20() -> None:
    """Documents of unequal length and difficulty: 400 samples of 60 from a population whose ratio is known."""
    rng = random.Random(0)

    def document() -> Score:
        size = rng.randint(20, 400)
        return Score(size * rng.lognormvariate(0.0, 0.5) * math.log(2), size, size)

    truth = math.exp(0.125)  # the mean of that lognormal, independent of the size
    hits = 0
    for _ in range(400):
        scores = [document() for _ in range(60)]
        half = interval(scores)
        assert half is not None
        hits += abs(total(scores).bpb - truth) <= half
    assert 0.91 < hits / 400 < 0.98
    assert interval(scores[:1]) is None


def test_the_corpus_own_probabilities_score_exactly_the_floor(runs: Path) -> None:
    run = Run(runs / "outputs" / "chars")
    files = token_files(run, "val")
    texts = texts_of_run(run, "val", 0)
    assert len(texts) == files.n_documents
    assert sum(len(text.encode()) for text in texts) == files.n_bytes
    own = [Score(stories.bits(text) * math.log(2), len(text.encode()), 1) for text in texts]
    assert total(own).bpb == pytest.approx(files.floor_bpb, rel=1e-12)
    assert floor_of(texts) == pytest.approx(files.floor_bpb, rel=1e-12)
    assert not total(own).is_below(files.bits or 0)
    with pytest.raises(UserError, match="--stories needs built-in stories as the text"):
        floor_of([*texts, "The end."])
    with pytest.raises(UserError, match="give a larger --limit"):
        floor_of(up_to(texts, 20))


def test_the_floor_of_a_part_is_that_of_the_stories_in_it(runs: Path) -> None:
    run = Run(runs / "outputs" / "chars")
    whole = texts_of_run(run, "val", 0)
    assert floor_of_run(run, "val", whole) == token_files(run, "val").floor_bpb
    assert floor_of_run(run, "val", whole[:2]) == pytest.approx(
        sum(map(stories.bits, whole[:2])) / sum(len(text.encode()) for text in whole[:2]), rel=1e-12
    )
    assert floor_of_run(run, "val", up_to(whole, 50)) is None  # a story that is cut
    cats = Run(runs / "other" / "cats")
    assert floor_of_run(cats, "val", texts_of_run(cats, "val", 0)) is None


@pytest.mark.slow
def test_copied_runs_are_those_that_stand_in_the_training_text(runs: Path) -> None:
    run = Run(runs / "outputs" / "chars")
    training = token_files(run, "train")
    tokenizer = load_tokenizer(run.tokenizer_folder)
    known = texts_of_run(run, "train", 20_000)
    new = [story.text for story in stories.documents(-1, 0, 10)]
    assert copied(known[:5], tokenizer, training) == 1.0
    text = "\n".join(texts_of_run(run, "train", 0))
    for n in (10, 50):
        grams = [t[i : i + n] for t in new for i in range(len(t) - n + 1)]
        wanted = sum(gram in text for gram in grams) / len(grams)
        assert copied(new, tokenizer, training, n) == pytest.approx(wanted, abs=1e-12)
    assert copied(["too short"], tokenizer, training) is None


def test_the_chunks_in_which_training_text_is_searched_overlap(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from positron.evaluation import story_quality

    run = Run(runs / "outputs" / "chars")
    training, tokenizer = token_files(run, "train"), load_tokenizer(run.tokenizer_folder)
    monkeypatch.setattr(story_quality, "CHUNK", 777)
    assert copied(texts_of_run(run, "train", 5_000), tokenizer, training) == 1.0


def test_an_empty_story_counts_as_one_that_the_grammar_does_not_accept(runs: Path) -> None:
    run = Run(runs / "outputs" / "chars")
    training, tokenizer = token_files(run, "train"), load_tokenizer(run.tokenizer_folder)
    told = [story.text for story in stories.documents(-1, 0, 2)]
    assert quality([*told, ""], tokenizer, training).accepted == pytest.approx(2 / 3)
    assert dataclasses.astuple(quality([""], tokenizer, training)) == (0.0, 0.0, 0.0, None)


def test_distinct_counts_different_runs_of_words() -> None:
    assert distinct(["a b a b", "a b"], 2) == 2 / 4
    assert distinct(["one"], 2) == 0


def test_a_request_is_followed_by_its_own_story_alone() -> None:
    requests = [stories.requests(0, i) for i in range(6)]
    texts = [stories.generate(0, i, request).text for i, request in enumerate(requests)]
    told = [Written(text, 100, True) for text in texts]
    assert following(told, requests) == following(told[:3], requests[:3])
    assert dataclasses.astuple(following(told, requests)) == (1.0, 1.0, 1.0)
    other = following(told, requests[1:] + requests[:1])
    assert (other.followed, other.accepted) == (0.0, 1.0)
    broken = [one._replace(text=one.text[:-9], ended=False) for one in told]
    assert dataclasses.astuple(following(broken, requests)) == (0.0, 0.0, 0.0)


def test_limits_count_whole_documents() -> None:
    assert up_to(["", "ab", "cd", "e"], 3) == ["ab", "cd"]
    assert up_to(["ab", "", "c"], 0) == ["ab", "c"]


@pytest.mark.parametrize("limit", [4, 5, 6, 7])
def test_only_a_document_longer_than_the_limit_is_cut_and_never_within_a_letter(limit: int) -> None:
    (taken,) = up_to(["aéé漢漢漢"], limit)
    assert isinstance(taken, Beginning)
    assert len(taken.encode()) <= limit
    assert "aéé漢漢漢".startswith(taken)
    assert up_to(["aé", "b" * 99], limit)[-1] == "b" * (limit - 3)


@pytest.mark.parametrize("copies", [1, 5, 30])
def test_an_interval_does_not_change_the_score_that_it_describes(copies: int) -> None:
    """One long text, a few, and many: each is scored from its beginning to its end, however the interval is found."""
    table = torch.full((TOKENIZER.vocab_size, TOKENIZER.vocab_size), 1 / TOKENIZER.vocab_size)
    model, rng = bigram(table.double(), 8), random.Random(1)
    torch.nn.init.normal_(model.lm_head.weight, std=0.5, generator=torch.Generator().manual_seed(0))
    texts = ["".join(rng.choices("abcd ", k=rng.randint(300, 900))) for _ in range(copies)]
    documents = score_windows(model, TOKENIZER, texts)
    units, kind = sampling_units(documents)
    assert kind == ("documents" if copies == 30 else "blocks of the text")
    whole, once = total(units), total(score_documents(model, TOKENIZER, texts))
    assert (
        (whole.bytes, whole.tokens)
        == (once.bytes, once.tokens)
        == (sum(map(len, texts)), sum(map(len, texts)) + copies)
    )
    assert whole.nats == pytest.approx(once.nats, rel=1e-12)
    assert interval(units)


def test_the_beginning_of_a_text_is_scored_without_its_end() -> None:
    table = torch.full((TOKENIZER.vocab_size, TOKENIZER.vocab_size), 1 / TOKENIZER.vocab_size)
    whole, cut = score_documents(bigram(table.double(), 8), TOKENIZER, ["abca" * 9, Beginning("abca" * 9)])
    assert (cut.tokens, cut.bytes) == (whole.tokens - 1, whole.bytes)


def test_a_decoded_text_is_scored_as_the_text_with_its_unknown_characters() -> None:
    tokenizer = CharTokenizer("ab\ufffd")
    table = torch.rand(tokenizer.vocab_size, tokenizer.vocab_size, generator=torch.Generator().manual_seed(0))
    model, original = bigram((table / table.sum(1, keepdim=True)).double(), 8), "abza\ufffdyba" * 3
    text = Lossy(tokenizer.decode(tokenizer.encode(original)))
    text.ids, text.n_bytes = tokenizer.encode(original), len(original.encode())
    scored = [score_documents(model, tokenizer, [one])[0] for one in (text, original)]
    assert scored[0].nats != pytest.approx(scored[1].nats, rel=1e-3), "the ids are those of another tokenizer"
    text.tokenizer_hash = tokenizer.hash
    assert score_documents(model, tokenizer, [text])[0] == scored[1]
    assert _documents([text], tokenizer, 99) == _documents([original], tokenizer, 99)


def test_the_interval_of_one_long_text_holds_the_truth_19_times_of_20() -> None:
    """Windows of one text whose difficulty wanders, as that of a book does: 150 texts of which the true mean is known."""
    rng = random.Random(0)
    hits = 0
    for _ in range(150):
        level, windows = 0.0, []
        for _ in range(2000):
            level = 0.8 * level + rng.gauss(0.0, 0.2)
            windows.append(Score(100 * (1 + level) * math.log(2), 100, 100))
        units, kind = sampling_units([windows])
        assert (len(units), kind) == (100, "blocks of the text")
        half = interval(units)
        assert half is not None
        hits += abs(total(units).bpb - 1) <= half
    assert 0.89 < hits / 150 < 0.99


def test_a_long_text_stays_whole(tmp_path: Path) -> None:
    text = "".join(f"Line {i} of a book.\n" + ("\n" if i % 7 == 0 else "") for i in range(500))
    (tmp_path / "book.txt").write_text(text)
    assert texts_of_file(str(tmp_path / "book.txt")) == [text]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_texts_side_by_side_lose_no_word(count: int) -> None:
    texts = [(f"run{i}", f"a{i} b{i}\n\nc{i} " * 9) for i in range(count)]
    shown = side_by_side(texts, 80)
    assert max(map(len, shown.splitlines())) <= 80
    for title, text in texts:
        assert title in shown
        for word in set(text.split()):
            assert shown.count(word) == text.count(word)


@pytest.mark.parametrize("width", [1, 2, 3, 4, 10])
def test_texts_side_by_side_in_a_very_narrow_terminal_lose_no_character(width: int) -> None:
    shown = side_by_side([("a long name", "some text")], width)
    assert "".join(shown.split()).endswith("sometext")
    assert max(map(len, shown.splitlines())) <= max(1, width - 2)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of two tokenizers on one corpus, and one of another corpus."""
    folder = tmp_path_factory.mktemp("runs")
    train(tiny(folder, name="chars"), folder / "outputs" / "chars")
    pieces = tiny(
        folder, name="pieces", tokenizer=TokenizerConfig("sentencepiece", vocab_size=600), train__max_steps=20
    )
    train(pieces, folder / "outputs" / "pieces")
    (folder / "my.txt").write_text("The cat sat on the mat.\n" * 400)
    cats = DataConfig("text", str(folder / "my.txt"), val_fraction=0.2, dir=str(folder / "data"))
    other = tiny(folder, name="cats", data=cats)
    train(dataclasses.replace(other, train=dataclasses.replace(other.train, max_steps=3)), folder / "other" / "cats")
    return folder


def test_a_tokenizer_that_does_not_know_all_words_has_the_same_text_as_others(tmp_path: Path) -> None:
    path = tmp_path / "my.txt"
    path.write_text("".join(f"word{n} and word{n * n}\n" for n in range(800)))  # the last words are in no vocabulary
    data = DataConfig("text", str(path), val_fraction=0.2, dir=str(tmp_path / "data"))
    for kind in ("word", "char"):
        tokenizer = TokenizerConfig(kind, vocab_size=100 if kind == "word" else None)
        train(tiny(tmp_path, name=kind, data=data, tokenizer=tokenizer, train__max_steps=1), tmp_path / kind)
    word, char = Run(tmp_path / "word"), Run(tmp_path / "char")
    assert any(isinstance(text, Lossy) for text in texts_of_run(word, "val", 0))
    for runs in ([word, char], [char, word]):
        assert common_text(runs, None, 0) == (runs, texts_of_run(char, "val", 0))


def test_two_runs_that_know_different_words_are_not_compared_on_what_one_of_them_knows(tmp_path: Path) -> None:
    path = tmp_path / "my.txt"
    path.write_text("".join(f"often often word{n % 150} rare{n}\n" for n in range(1500)))
    data = DataConfig("text", str(path), val_fraction=0.2, dir=str(tmp_path / "data"))
    for size in (50, 200):
        tokenizer = TokenizerConfig("word", vocab_size=size)
        name = f"word{size}"
        train(tiny(tmp_path, name=name, data=data, tokenizer=tokenizer, train__max_steps=1), tmp_path / name)
    runs = [Run(tmp_path / "word50"), Run(tmp_path / "word200")]
    for pair in (runs, runs[::-1]):
        with pytest.raises(UserError, match=r"know different words, and neither knows all words .*give --text FILE"):
            common_text(pair, None, 0)


def test_evaluate_prints_what_a_run_is_worth(run_command: Callable[..., Result], runs: Path) -> None:
    shown = run_command("evaluate", "--run", "chars", folder=runs)
    assert shown.code == 0, shown.err
    for what in (
        "bits per byte",
        "±",
        "perplexity",
        "32 tokens, the last 16 of them scored at a time",
        "in training",
        "tokens/s",
    ):
        assert what in shown.out
    facts = json.loads(run_command("evaluate", "--run", "chars", "--json", folder=runs).out)
    files = token_files(Run(runs / "outputs" / "chars"), "val")
    assert facts["bytes"] == files.n_bytes
    assert facts["documents"] == files.n_documents
    trained = Run(runs / "outputs" / "chars").facts().best_bpb
    assert facts["bpb"] == pytest.approx(trained, rel=0.1)  # there on windows, here on whole documents
    assert f"times the floor of {files.floor_bpb:.4f}, the entropy of the text" in shown.out


def test_evaluate_has_stories_checked(run_command: Callable[..., Result], runs: Path) -> None:
    shown = run_command("evaluate", "--run", "chars", "--stories", "--count", "3", folder=runs)
    assert shown.code == 0, shown.err
    for what in ("floor", "accepted by the parser", "100.0%", "copied from training", "distinct pairs"):
        assert what in shown.out


def test_evaluate_measures_any_text(run_command: Callable[..., Result], runs: Path) -> None:
    facts = json.loads(run_command("evaluate", "--run", "chars", "--text", "my.txt", "--json", folder=runs).out)
    assert facts["bytes"] == len((runs / "my.txt").read_bytes())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--run", "nobody"), "no run nobody"),
        (("--run", "chars", "--text", "none.txt"), "none.txt"),
        (("--run", "chars", "--stride", "99"), "--stride must be between"),
        (("--run", "chars", "--instruct"), "was not fine-tuned"),
        (("--run", "other/cats", "--stories"), "built-in stories"),
        (("--run", "chars", "--temperature", "-1"), "temperature"),
        (("--run", "chars", "--count", "0"), "--count must be at least 1, not 0"),
        (("--run", "chars", "--stories", "--seed", "-1"), "--seed must be at least 0 with --stories, not -1"),
    ],
)
def test_evaluate_refuses_in_one_line(
    run_command: Callable[..., Result], runs: Path, arguments: tuple[str, ...], says: str
) -> None:
    result = run_command("evaluate", *arguments, folder=runs)
    assert result.code == 2, result.err
    assert says in result.err.splitlines()[-1]
    assert "Traceback" not in result.err
    if "--instruct" in arguments:  # before the text is scored, which may take minutes
        assert ".ckpt" not in result.err


@pytest.mark.slow
def test_compare_puts_runs_of_two_tokenizers_beside_each_other(run_command: Callable[..., Result], runs: Path) -> None:
    shown = run_command("compare", folder=runs)
    assert shown.code == 0, shown.err
    assert {"outputs/chars", "outputs/pieces"} <= set(shown.out.split())
    assert "char" in shown.out
    assert "sentencepiece 600" in shown.out
    assert shown.out.count("Once upon a time") == 2
    assert (runs / "outputs" / "compare.png").read_bytes().startswith(b"\x89PNG")
    short = ("--limit", "5000")
    rows = json.loads(run_command("compare", "chars", "pieces", "--json", "--png", "two.png", *short, folder=runs).out)
    assert [row["bpb"] for row in rows] == sorted(row["bpb"] for row in rows)
    assert (runs / "two.png").exists()
    again = list(
        csv.DictReader(io.StringIO(run_command("compare", "outputs/chars", "pieces", "--csv", *short, folder=runs).out))
    )
    assert [float(row["bpb"]) for row in again] == [row["bpb"] for row in rows]


def test_a_folder_without_any_run_is_not_taken_for_the_name_of_one(tmp_path: Path) -> None:
    for names in ([], [str(tmp_path / "outputs")]):
        with pytest.raises(UserError, match=r"^there is no run in .*outputs: train one with "):
            find_runs(names, tmp_path / "outputs")


def test_a_file_that_cannot_be_written_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("positron.evaluation.comparison.find_runs", lambda *_: pytest.fail("the runs were read"))
    for name, says in (("nowhere/two.png", "there is no folder"), (".", "it is a folder")):
        monkeypatch.setattr("sys.argv", ["compare", "a", "b", "--png", str(tmp_path / name)])
        options = compare_command.arguments().parse_args()
        with pytest.raises(UserError, match=says):
            compare_command._compare_runs(options, "Once", 0)


def test_compare_refuses_different_texts_but_takes_one_for_all(run_command: Callable[..., Result], runs: Path) -> None:
    refused = run_command("compare", "chars", "other/cats", folder=runs)
    assert refused.code == 2
    assert "have different validation texts" in refused.err
    taken = run_command("compare", "chars", "other/cats", "--text", "my.txt", "--limit", "5000", folder=runs)
    assert taken.code == 0, taken.err
    for wrong, says in ((("nobody",), "no run nobody"), (("data",), "there is no run with a checkpoint")):
        result = run_command("compare", *wrong, folder=runs)
        assert (result.code, result.err.count("\n")) == (2, 1), result.err
        assert says in result.err


def test_a_prompt_that_is_too_long_for_a_run_does_not_prevent_its_comparison(runs: Path, logged: list[str]) -> None:
    run = Run(runs / "outputs" / "chars")
    (row,) = compare([run], ["Tom had a red ball."], "x" * 99, 5, 0)
    assert row.bpb > 0
    assert row.sample == ""
    says = "writes no text: the prompt has 99 tokens, but the model reads at most 31: give a shorter prompt by --prompt"
    assert any(line.endswith(says) for line in logged)
