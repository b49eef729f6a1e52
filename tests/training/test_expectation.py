"""The loss that `model=auto` expects, checked with counts by hand and with the runs of the log."""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
from conftest import PROJECT
from hypothesis import given
from hypothesis import strategies as st

from positron.config import DataConfig, TokenizerConfig
from positron.data.corpus import prepare
from positron.training.budget.expectation import DISCOUNT, counting_losses, expected_loss, log_expectation
from positron.training.objective.pretrain import PretrainObjective

TRAIN = st.lists(st.integers(0, 3), min_size=4, max_size=60)
VAL = st.lists(st.integers(0, 3), min_size=4, max_size=20)


def probability(train: list[int], context: tuple[int, ...], token: int) -> float:
    """Return the probability of `token` after `context`, computed with lists."""
    if not context:
        return (train.count(token) + 1) / (len(train) + 4)
    n = len(context)
    after = Counter(train[i + n] for i in range(len(train) - n) if tuple(train[i : i + n]) == context)
    shorter = probability(train, context[1:], token)
    if not after:
        return shorter
    return (max(0.0, after[token] - DISCOUNT) + DISCOUNT * len(after) * shorter) / after.total()


@given(TRAIN, VAL)
def test_the_losses_are_those_of_counts_in_lists(train: list[int], val: list[int]) -> None:
    wanted = [
        -sum(math.log(probability(train, tuple(val[i - n : i]), val[i])) for i in range(2, len(val))) / (len(val) - 2)
        for n in range(3)
    ]
    assert counting_losses(np.array(train), np.array(val), 4) == pytest.approx(wanted)


@given(TRAIN, st.lists(st.integers(0, 3), min_size=2, max_size=2))
def test_the_probabilities_of_all_next_tokens_sum_to_one(train: list[int], context: list[int]) -> None:
    losses = [counting_losses(np.array(train), np.array([*context, token]), 4) for token in range(4)]
    assert np.exp(-np.array(losses)).sum(axis=0) == pytest.approx([1.0] * 3)


def test_the_expected_loss_falls_with_more_tokens_and_more_so_if_a_text_repeats_itself() -> None:
    base, repetitive = (expected_loss([6.0, 4.0, h3], 1e6) for h3 in (4.0, 3.0))
    assert base.low < base.loss < base.high
    later, repetitive_later = (expected_loss([6.0, 4.0, h3], 4e6) for h3 in (4.0, 3.0))
    assert repetitive_later.loss / repetitive.loss < later.loss / base.loss < 1
    assert repetitive.high / repetitive.low > base.high / base.low
    assert expected_loss([6.0, 3.8, 3.8], 1e6).loss < base.loss


def test_nine_of_ten_runs_of_the_log_are_in_the_range() -> None:
    rows = json.loads((PROJECT / "docs" / "results" / "2026-11-30-expected.json").read_text(encoding="utf-8"))["rows"]
    ranges = [expected_loss([math.nan, row["bigram"], row["trigram"]], row["tokens"] * 1e6) for row in rows]
    inside = [range_.low <= row["loss"] <= range_.high for range_, row in zip(ranges, rows, strict=True)]
    assert len(rows) >= 40
    assert sum(inside) >= 0.9 * len(inside)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PretrainObjective]:
    """A text of 40,000 characters."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "a.txt").write_text("the cat sat on the mat and the dog ran to the hat. " * 800)
    config = DataConfig("text", str(folder / "a.txt"), dir=str(folder), val_fraction=0.1)
    tokenizer, tokens = prepare(config, TokenizerConfig("char"), None)
    objective = PretrainObjective(
        config, tokens, tokenizer, context=32, batch_size=4, micro_batch_size=4, seed=0, val_tokens=1
    )
    yield objective
    objective.close()


def test_the_logged_range_is_in_bits_per_byte(data: PretrainObjective, logged: list[str]) -> None:
    log_expectation(data, 1000, 1e6, 8e6)
    numbers = [float(number) for number in re.findall(r"\d+\.\d+", logged[-1])]
    assert re.sub(r"\d+\.\d+", "N", logged[-1]) == (
        "expected: N validation bits per byte, in nine of ten cases N to N; with an hour more about N"
    )
    losses = counting_losses(data.train.tokens.read(0, 10**6), data.val.read(0, 1001), len(data.token_bytes))
    wanted, later = expected_loss(losses, 1e6), expected_loss(losses, 8e6).loss  # a character is a byte
    assert numbers == [round(nats / math.log(2), 2) for nats in (wanted.loss, wanted.low, wanted.high, later)]


@pytest.mark.parametrize(
    ("tokens", "longer", "end"), [(1e6, 1.1e6, r"to \d+\.\d+"), (2e7, 9e7, r"to \d+\.\d+"), (4e7, 9e7, None)]
)
def test_nothing_is_expected_of_runs_longer_than_those_of_the_fit(
    data: PretrainObjective, logged: list[str], tokens: float, longer: float, end: str | None
) -> None:
    log_expectation(data, 1000, tokens, longer)
    if end is None:
        assert not logged
    else:
        assert re.search(f"{end}$", logged[-1])
