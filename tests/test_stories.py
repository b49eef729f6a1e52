"""The built-in corpus: its probabilities are exact, its text tells its choices, and it reads like stories."""

import itertools
import math
import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from positron.data.stories import GRAMMAR, GRAMMAR_VERSION, Grammar, Request, documents, generate, slot_choice
from positron.data.story_parser import bits, follows, parse
from positron.data.story_plots import Plot
from positron.data.story_requests import ask, requests
from positron.data.story_words import KINDS, LISTS

SAMPLE = list(documents(3, 0, 1500))


@given(st.integers(0, 2**31), st.integers(0, 10**9))
@settings(max_examples=200, deadline=None)
def test_a_text_tells_the_only_way_in_which_it_came_about(seed, index):
    story = generate(seed, index)
    (read,) = parse(story.text)
    assert read.choices == story.choices
    assert read.bits == pytest.approx(story.bits, abs=1e-9)
    assert read.request == story.request


TINY = Grammar.of(
    (
        Plot(
            "one",
            2.0,
            {"hero": "child", "friend": "child", "thing": "toy", "place": "spot"},
            ("has {thing.a}",),
            (("{hero} met {friend}.", "{hero} sat."), ("", "[Big] {thing} {place}."), ("|{thing} {place}!",)),
        ),
        Plot("two", 1.0, {"hero": "child", "thing": "toy", "place": "spot"}, (), (("{hero} [big] {thing} {place}",),)),
    ),
    {"child": [{"": "Ann"}, {"": "Bo"}, {"": "Cy"}], "toy": [{"": "ball"}, {"": "balloon"}], "spot": [{"": "here"}]},
    {"big": ("big", "small", "tiny")},
)


def test_probabilities_of_all_texts_of_a_small_grammar_add_up_to_1():
    """The independent oracle: every text that can be written, each with 2^-bits as parsed, sums to one."""
    texts = {generate(0, i, grammar=TINY).text for i in range(20_000)}
    by_hand = 3 * 2 * (2 + 2 * 3) + 3 * 1 * (2 + 2 * 3) + 3 * 3 * 2  # friends, beats, words; then plot two
    assert len(texts) == by_hand
    total = 0.0
    for text in texts:
        (story,) = parse(text, grammar=TINY)
        total += 2**-story.bits
    assert total == pytest.approx(1, abs=1e-9)


def test_frequencies_are_the_probabilities():
    n = len(SAMPLE)
    plots = Counter(story.request.plot for story in SAMPLE)
    for name, cost in zip(GRAMMAR.plot_choice.options, GRAMMAR.plot_choice.bits, strict=True):
        p = 2**-cost
        assert abs(plots[name] - n * p) < 5 * math.sqrt(n * p)
    heroes = Counter(story.request.name for story in SAMPLE)
    choice = slot_choice(GRAMMAR, GRAMMAR.plots[0], "hero", {})
    for name, cost in zip(choice.options, choice.bits, strict=True):
        p = 2**-cost
        assert abs(heroes[name] - n * p) < 5 * math.sqrt(n * p) + 1
        assert p > 0.004


def test_the_empirical_information_is_the_entropy_of_the_choices():
    """Mean bits of two disjoint samples agree within their standard error."""
    a, b = [s.bits for s in SAMPLE[:750]], [s.bits for s in SAMPLE[750:]]
    spread = math.sqrt(sum((x - sum(a) / 750) ** 2 for x in a) / 750 / 750)
    assert abs(sum(a) / 750 - sum(b) / 750) < 5 * spread


def test_a_story_is_a_pure_function_of_seed_and_index():
    assert generate(1, 2) == generate(1, 2)
    assert generate(1, 2).text != generate(1, 3).text
    assert generate(1, 2).text != generate(2, 2).text
    assert len(GRAMMAR_VERSION) == 64


def test_stories_do_not_repeat():
    texts = [story.text for story in documents(9, 0, 10_000)]
    assert len(set(texts)) == len(texts)


def test_stories_have_60_to_200_words():
    lengths = [len(story.text.split()) for story in SAMPLE]
    assert min(lengths) >= 60
    assert max(lengths) <= 200


def test_the_words_are_many_and_no_list_repeats_itself():
    words = set()
    for options in (*LISTS.values(), *([f[""] for f in forms] for forms in KINDS.values())):
        assert len(set(options)) == len(options)
        words |= set(options)
    assert len(words) >= 300
    assert len(KINDS["child"]) == 40
    assert len(GRAMMAR.plots) >= 8


@pytest.mark.parametrize("story", SAMPLE[:300], ids=lambda s: s.request.plot)
def test_english_is_clean(story):
    text = story.text
    assert text == text.strip()
    assert "  " not in text
    assert not re.search(r"[{}\[\]|]", text)
    assert text.count('"') % 2 == 0
    assert not re.search(r"\ba (?!unicycle)[aeiou]", text), "a before a vowel"
    assert not re.search(r"\ban (?!hour)[^aeiou]", text), "an before a consonant"
    assert not re.search(r"\b(\w+) \1\b", text, re.IGNORECASE), "a word twice in a row"
    assert re.search(r'[.!?]"?$', text)
    for paragraph in text.split("\n\n"):
        assert re.match(r'["A-Z]', paragraph)
        for sentence in re.split(r"(?<=[.!?]) (?=[^a-z])", paragraph):
            assert re.match(r'["A-Z]', sentence), sentence


def test_agreement_over_distance():
    forms = {f[""]: f for f in KINDS["child"]}
    for story in SAMPLE:
        request = story.request
        assert request.name in story.text
        assert request.object in story.text
        assert request.place in story.text
        slots = dict(choice for choice in story.choices if choice[0] in ("hero", "friend"))
        people = {slots["hero"], slots.get("friend", slots["hero"])}
        assert len(people) == len(slots)
        boys = [name for name in people if forms[name]["boy"] == "boy"]
        if len(people) == 1 and not boys and "grown" not in dict(story.choices):
            assert not re.search(r"\b[Hh]is\b", story.text)


@given(st.integers(0, 10**6))
@settings(max_examples=100, deadline=None)
def test_a_request_is_followed_and_its_bits_are_what_is_left(index):
    request = requests(5, index)
    story = generate(5, index, request)
    assert follows(story.text, request)
    plot = GRAMMAR.plot(request.plot)
    given_bits = dict(zip(GRAMMAR.plot_choice.options, GRAMMAR.plot_choice.bits, strict=True))[request.plot]
    (read,) = parse(story.text)
    for slot in ("hero", "thing", "place"):
        # a friend may be drawn first only in a request's story, never in a parsed one
        choice = slot_choice(GRAMMAR, plot, slot, {})
        value = {"hero": request.name, "thing": request.object, "place": request.place}[slot]
        given_bits += dict(zip(choice.options, choice.bits, strict=True))[value]
    assert story.bits == pytest.approx(read.bits - given_bits, abs=1e-9)
    question = ask(request, 5, index)
    for word in (request.name, request.object, request.place):
        assert word in question
    assert not re.search(r"[{}\[\]|]|  |\ba (?!unicycle)[aeiou]", question)


def test_other_requests_are_not_followed():
    request = requests(5, 1)
    text = generate(5, 1, request).text
    for change in ({"name": "Nobody"}, {"object": "sword"}, {"place": "the moon"}, {"plot": "other"}):
        fields = {"name": request.name, "object": request.object, "place": request.place, "plot": request.plot}
        assert not follows(text, Request(**{**fields, **change}))


@pytest.mark.parametrize("i", range(12))
def test_what_is_not_a_story_is_not_accepted(i):
    text = SAMPLE[i].text
    words = text.split(" ")
    middle = len(words) // 2
    wrong = [
        text[:-1],
        " ".join(words[:middle]),
        " ".join([*words[:middle], "zebra", *words[middle:]]),
        text + " " + SAMPLE[i + 1].text,
        text.replace(SAMPLE[i].request.name, "Nobody", 1),
        "",
    ]
    for candidate in wrong:
        assert parse(candidate) == []
        with pytest.raises(ValueError, match="not a story"):
            bits(candidate)


def test_every_plot_names_all_that_a_reader_can_ask_for():
    """Whatever variants a story takes, hero, thing and place are drawn."""
    for plot in GRAMMAR.plots:
        for slot in ("hero", "thing", "place"):
            mentions = [
                [any(p.kind == "slot" and p.name == slot for p in variant) for variant in beat]
                for beat in GRAMMAR.beats[plot.name]
            ]
            assert any(all(beat) for beat in mentions), f"{plot.name} may never mention its {slot}"
    assert all(itertools.chain([plot.asks for plot in GRAMMAR.plots]))
