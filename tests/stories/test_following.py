"""The words that may follow the beginning of a story, with their exact probabilities."""

import math
import re
from collections import defaultdict

import pytest

from positron.stories import Grammar, generate, parse
from positron.stories.beats import Plot
from positron.stories.following import first_words, next_words
from positron.stories.grammar import GRAMMAR

KINDS = {
    "child": [{"": "Ann", "he": "she"}, {"": "Bo", "he": "he"}, {"": "Cy", "he": "he"}],
    "toy": [{"": "ball", "a": "a ball"}, {"": "red balloon", "a": "a red balloon"}],
    "spot": [{"": "here"}],
}
SLOTS = {"hero": "child", "friend": "child", "thing": "toy", "place": "spot"}
SMALL = Grammar.of(
    (
        Plot(
            "one",
            2.0,
            SLOTS,
            (),
            (
                ("", "Hear this(: a story|)."),
                ("{hero} saw {thing.a} {place}.", "Then {friend} and {hero} [ran] {place} with {thing.a}."),
                ("", "¶But {hero.he} had (the {thing}|[a big] {thing}|)!"),
            ),
        ),
        Plot("two", 1.0, SLOTS, (), (("{hero} had {thing.a} {place}.",), ("", "[Ran] {hero.he}?"))),
    ),
    KINDS,
    {"ran": ("ran off", "hid"), "big": ("big", "old")},
    {"child": [3.0, 2.0, 2.0]},
)


def words_of(text: str) -> list[str]:
    return re.findall(r"\s*\S+", text)


def distributions(text: str, grammar: Grammar = GRAMMAR):
    """Yield, for each word of a story and its end (""), the probabilities of all words at this place, and the word."""
    states = None
    for word in [*words_of(text), ""]:
        after, shares = [], defaultdict(float)
        sources = [(1.0, first_words(grammar))] if states is None else [(p, next_words(s, grammar)) for p, s in states]
        for share, words in sources:
            for candidate in words:
                shares[candidate.text] += share * candidate.p
                if candidate.text == word:
                    after.append((share * candidate.p, candidate.after))
        yield dict(shares), word
        states = [(p / shares[word], state) for p, state in after]


def test_the_words_of_a_story_have_exactly_the_storys_probability():
    for index in range(40):
        story = generate(11, index)
        bits = 0.0
        for shares, word in distributions(story.text):
            assert math.fsum(shares.values()) == pytest.approx(1, abs=1e-12)
            bits -= math.log2(shares[word])
        assert bits == pytest.approx(story.bits, abs=1e-9)


@pytest.mark.slow
def test_a_small_grammar_has_the_distributions_of_all_its_stories():
    """The independent oracle: all stories, each with the probability of its derivation, counted by their beginnings."""
    texts = {generate(0, i, grammar=SMALL).text for i in range(40_000)}
    probability = {text: math.fsum(2**-story.bits for story in parse(text, grammar=SMALL)) for text in texts}
    assert math.fsum(probability.values()) == pytest.approx(1, abs=1e-12)  # so no story is missing
    beginnings = defaultdict(lambda: defaultdict(float))
    for text, p in probability.items():
        words = words_of(text)
        for i, word in enumerate([*words, ""]):
            beginnings[tuple(words[:i])][word] += p
    for text in sorted(texts):
        for i, (shares, _) in enumerate(distributions(text, SMALL)):
            expected = beginnings[tuple(words_of(text)[:i])]
            whole = math.fsum(expected.values())
            assert shares == pytest.approx({word: p / whole for word, p in expected.items()}, abs=1e-12)


def test_each_piece_of_a_word_names_its_rule():
    rules = {(piece.text, *piece.rule) for _, _, pieces in walk(SMALL) for piece in pieces}
    assert ("Ann", "first mention", "hero") in rules
    assert (" and", "sentence", "sentence") in rules
    assert ("hid", "list word", "ran") in rules
    assert ("she", "pronoun", "hero") in rules
    assert (" balloon", "later mention", "thing") in rules
    assert (" story", "alternative", "alternative") in rules
    assert not {
        rule for rule in rules if rule[1:] == ("first mention", "thing") and rule[0] == "ball"
    }  # after its article


def walk(grammar: Grammar):
    """Yield every state, word and pieces that the grammar can reach; states repeat."""
    todo = list(first_words(grammar))
    while todo:
        word = todo.pop()
        yield word.after, word.text, word.pieces
        if word.after is not None and word.pieces:
            todo += next_words(word.after, grammar)
