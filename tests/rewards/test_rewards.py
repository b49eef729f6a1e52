"""The built-in rewards against the grammar, arithmetic and Python's own regular expressions, and what is refused about them."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from typing import get_args, get_type_hints

import pytest
import yaml
from conftest import PATIENCE, PROJECT
from hypothesis import given, settings
from hypothesis import strategies as st

from positron import stories
from positron.config import REWARD_READS, RewardConfig, RewardTerm
from positron.rewards import open_reward
from positron.rewards.addition import addends, addition
from positron.rewards.story_request import story_error, story_request
from positron.settings import from_dict
from positron.system.errors import UserError

INDEX = st.integers(0, 10**6)
DIGITS = "0123456789"


def prompt_and_request(index: int) -> tuple[str, stories.Request]:
    request = stories.requests(0, index)
    return stories.ask(request, 0, index), request


# Stories on request


@given(INDEX, INDEX)
@settings(max_examples=40, deadline=None)
def test_a_story_of_the_grammar_for_the_request_is_rewarded(index, seed):
    prompt, request = prompt_and_request(index)
    assert story_request(prompt, stories.generate(seed, index, request).text) == 1


@given(INDEX, INDEX, st.data())
@settings(max_examples=40, deadline=None)
def test_the_first_error_of_a_story_decides_its_reward(index, seed, data):
    prompt, request = prompt_and_request(index)
    text = stories.generate(seed, index, request).text
    at = data.draw(st.integers(0, len(text)))
    assert story_error(prompt, text[:at]) is None  # it may still become the story
    for changed in (text[:at] + "#" + text[at + 1 :], text[:at] + "#"):
        assert story_error(prompt, changed) == at + 1
    assert story_error(prompt, text + " Then") == len(text) + 1
    other = stories.generate(seed, index + 1).text
    error = story_error(prompt, other)
    assert (error is None) == (story_request(prompt, other) == 1)
    if error is not None:
        assert story_error(prompt, other[: error - 1]) is None
        assert story_error(prompt, other[:error]) == error


def test_a_sum_is_decided_when_all_its_rewards_are():
    prompt, request = prompt_and_request(3)
    text = "#" + stories.generate(0, 3, request).text
    story = RewardTerm("story_request")
    alone, twice = RewardConfig("story_request"), RewardConfig("sum", terms=(story, story))
    for config in (alone, twice):
        assert open_reward(config, [prompt]).decided(prompt, text) == 1
        assert open_reward(config, [prompt]).decided(prompt, text[1:]) is None
    with_length = RewardConfig("sum", terms=(story, RewardTerm("length", target=10)))
    assert open_reward(with_length, [prompt]).decided(prompt, text) is None


@given(INDEX)
@settings(max_examples=10, deadline=None)
def test_a_story_that_differs_from_the_request_in_one_respect_is_not(index):
    prompt, request = prompt_and_request(index)
    plot = stories.GRAMMAR.plots[request.plot]
    for field, slot in (("name", "hero"), ("object", "thing"), ("place", "place")):
        other = next(value for value in stories.GRAMMAR.kinds[plot.slots[slot]] if value != getattr(request, field))
        changed = dataclasses.replace(request, **{field: other})
        assert story_request(prompt, stories.generate(1, index, changed).text) == 0, field
    # the plots `lost` and `quarrel` have the same things and places
    twin = {"lost": "quarrel", "quarrel": "lost"}.get(request.plot)
    if twin is not None:
        changed = dataclasses.replace(request, plot=twin)
        assert story_request(prompt, stories.generate(1, index, changed).text) == 0


@given(INDEX, st.data())
@settings(max_examples=25, deadline=None)
def test_no_part_of_a_story_is_rewarded_nor_a_story_with_more_after_it(index, data):
    prompt, request = prompt_and_request(index)
    story = stories.generate(2, index, request).text
    cut = data.draw(st.integers(0, len(story) - 1))
    assert story_request(prompt, story[:cut]) == 0
    assert story_request(prompt, story + " The end.") == 0
    assert story_request(prompt, story + "\n") == 0


def test_a_story_that_only_the_forgiving_parser_accepts_is_not_rewarded():
    forgiven = 0
    for index in range(40):
        prompt, request = prompt_and_request(index)
        story = stories.generate(3, index, request).text
        changed = re.sub(r"\b(red|blue|green|yellow|purple|orange)\b", "pink", story, count=1)
        if changed != story and stories.follows(changed, request) and not stories.parse(changed):
            forgiven += 1
            assert story_request(prompt, changed) == 0
    assert forgiven > 0


@given(INDEX)
@settings(max_examples=200, deadline=None)
def test_a_request_is_read_from_its_words(index):
    prompt, request = prompt_and_request(index)
    assert stories.read_request(prompt) == request


def test_every_wording_of_every_plot_has_one_meaning():
    from positron.stories.requests import _meanings

    count = 0
    for plot in stories.GRAMMAR.plots.values():
        things, places = (stories.GRAMMAR.kinds[plot.slots[slot]] for slot in ("thing", "place"))
        count += len(plot.asks) * len(things) * len(places)
    assert len(_meanings()) == count  # equal words of two requests would be one key


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Tell me a joke.",
        "Tell me a story about Tom, who loses a kite in the park. ",
        "Tell me a story about Rumpelstiltskin, who loses a kite in the park.",
        "Tell me a story about Tom, who eats a kite in the park.",
        "tell me a story about Tom, who loses a kite in the park.",
    ],
)
def test_other_texts_are_no_requests(text):
    assert stories.read_request("Tell me a story about Tom, who loses a kite in the park.") is not None
    assert stories.read_request(text) is None


# Length, regular expression, sum of two numbers


@given(st.integers(1, 10**4), st.text(max_size=500))
def test_the_length_is_rewarded_in_proportion(target, completion):
    value = open_reward(RewardConfig("length", target=target), [])("p", completion)
    assert 0 <= value <= 1
    assert value == pytest.approx(max(0, 1 - abs(len(completion) - target) / target))
    assert (value == 1) == (len(completion) == target)


def test_a_regular_expression_may_match_anywhere_in_the_completion_but_not_in_the_prompt():
    reward = open_reward(RewardConfig("regex", pattern=r"\bdragons?\b"), [])
    assert reward("", "two dragons fly") == 1
    assert reward("a dragon", "a dragonfly") == 0


@given(st.integers(0, 10**18 - 1), st.integers(0, 10**18 - 1), st.integers(-3, 3))
def test_the_right_sum_is_rewarded_and_no_other(a, b, error):
    for prompt in (f"{a}+{b}=", f"{a} + {b} =", f"What is {a} + {b}?"):
        assert addends(prompt) == (a, b)
        assert addition(prompt, f"{a + b + error}\n") == (error == 0)


@pytest.mark.parametrize(
    ("completion", "value"),
    [
        ("46", 1),
        (" 46\n", 1),
        ("046", 1),
        ("46.", 0),
        ("+46", 0),
        ("46.0", 0),
        ("4 6", 0),
        ("46 46", 0),
        ("0x2e", 0),
        ("12+34", 0),
        ("9**9**9", 0),
        ("\u0664\u0666", 0),  # Arabic digits, which int() would read
        ("4" * 10**5, 0),  # more digits than int() reads
        ("", 0),
    ],
)
def test_an_answer_is_compared_as_digits(completion, value):
    assert addition("12+34=", completion) == value


@given(st.text(alphabet=DIGITS + "+=? Whatis-", max_size=12))
def test_only_sums_of_two_numbers_are_read(prompt):
    numbers = addends(prompt)
    if numbers is not None:
        assert re.sub(r"What is|[ =?]", "", prompt).split("+") != [prompt]
        assert numbers == tuple(int(part) for part in re.findall("[0-9]+", prompt))


# Sums, and the prompts of a run


def test_a_sum_weighs_its_terms():
    terms = (
        RewardTerm("regex", 2.0, pattern="a"),
        RewardTerm("regex", -0.5, pattern="b"),
        RewardTerm("length", target=4),
    )
    reward = open_reward(RewardConfig("sum", terms=terms), [])
    assert reward("", "abcd") == pytest.approx(2 - 0.5 + 1)
    assert reward("", "bb") == pytest.approx(-0.5 + 0.5)
    assert [(term.name, term.weight) for term in reward.terms] == [("regex", 2.0), ("regex", -0.5), ("length", 1.0)]
    assert [term.reward("", "bb") for term in reward.terms] == [0, 1, 0.5]


def test_one_reward_is_a_sum_of_one_term_with_weight_1():
    reward = open_reward(RewardConfig("length", target=2), [])
    assert reward("", "ab") == reward.terms[0].reward("", "ab") == 1
    assert reward.terms[0].weight == 1


@pytest.mark.parametrize(
    ("config", "good", "said"),
    [
        (
            RewardConfig("story_request"),
            "Tell me a story about Tom, who loses a kite in the park.",
            "data=story_instruct",
        ),
        (RewardConfig("addition"), "1+1=", "12+34="),
        (
            RewardConfig("sum", terms=(RewardTerm("length", target=3), RewardTerm("addition"))),
            "1+1=",
            "reward=addition",
        ),
    ],
)
def test_a_prompt_that_a_reward_cannot_read_is_refused_before_the_start(config, good, said):
    open_reward(config, [good])
    with pytest.raises(UserError, match=re.escape(said)) as error:
        open_reward(config, [good, "Write about\nwhales"])
    assert r'"Write about\nwhales"' in str(error.value)
    assert "\n" not in str(error.value)


def test_other_rewards_read_any_prompt():
    open_reward(RewardConfig("length", target=3), ["whales"])


# Settings


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"kind": "length"}, "reward=length needs reward.target=, such as reward.target=400"),
        ({"kind": "length", "target": 0}, "reward.target=0 must be at least 1"),
        ({"kind": "regex"}, "reward=regex needs reward.pattern=, such as reward.pattern='[0-9]+'"),
        ({"kind": "regex", "pattern": "("}, "reward.pattern=( is not a regular expression"),
        ({"kind": "custom"}, "reward.function=, such as reward.function=my_module.my_reward"),
        ({"kind": "custom", "function": ""}, "reward.function=, such as reward.function=my_module.my_reward"),
        ({"kind": "sum"}, "such as 'reward.terms=[{kind:story_request},{kind:length,target:400}]'"),
        ({"kind": "length", "target": 3, "max_seconds": 0.0}, "reward.max_seconds=0.0 must be positive"),
        ({"kind": "sum", "terms": [{"kind": "addition", "weight": float("nan")}]}, "must be a finite number"),
        ({"kind": "sum", "terms": [{"kind": "length"}]}, "reward.terms[0] has kind:length without target"),
        ({"kind": "sum", "terms": [{"kind": "regex"}]}, 'without pattern: add pattern, such as pattern:"[0-9]+"'),
        ({"kind": "sum", "terms": [{"kind": "length", "target": 0}]}, "reward.terms[0].target=0 must be at least 1"),
        (
            {"kind": "sum", "terms": [{"kind": "addition"}, {"kind": "regex", "pattern": "["}]},
            "reward.terms[1].pattern=[",
        ),
        ({"kind": "sum", "terms": [{"kind": "addition", "target": 4}]}, "leave target out, or give kind:length"),
        ({"kind": "sum", "terms": [{"kind": "sum"}]}, "reward.terms[0].kind='sum' is not a possible value"),
        ({"kind": "sum", "terms": [{"target": 4}]}, "reward.terms[0].kind is missing"),
        ({"kind": "sum", "terms": ["length"]}, "reward.terms[0]='length'"),
        ({"kind": "sum", "terms": "length"}, "give a list"),
        ({"kind": "storyrequest"}, "did you mean story_request?"),
    ],
)
def test_wrong_settings_are_refused_with_their_key(values, said):
    with pytest.raises(UserError, match=re.escape(said)) as error:
        from_dict(RewardConfig, values, "reward")
    assert "\n" not in str(error.value)


def test_conf_has_a_file_for_every_kind_of_reward():
    files = {
        path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in (PROJECT / "conf/reward").glob("*.yaml")
    }
    assert files == {kind: {"kind": kind} for kind in REWARD_READS}
    assert set(REWARD_READS) == set(get_args(get_type_hints(RewardConfig)["kind"]))


def test_a_sum_is_read_from_plain_values():
    values = {"kind": "sum", "terms": [{"kind": "story_request"}, {"kind": "length", "target": 400, "weight": 0.2}]}
    assert from_dict(RewardConfig, values).summands == (
        RewardTerm("story_request"),
        RewardTerm("length", 0.2, target=400),
    )


def test_the_table_of_keys_names_fields():
    fields = {field.name for field in dataclasses.fields(RewardConfig)}
    assert {name for names in REWARD_READS.values() for name in names} == fields - {"kind", "max_seconds"}


@pytest.mark.parametrize("kind", [kind for kind in REWARD_READS if kind != "sum"])
def test_a_term_reads_exactly_the_keys_of_the_table(kind):
    values = {"function": "math.pow", "pattern": "a", "target": 3}
    term = RewardTerm(kind, **{name: value for name, value in values.items() if name in REWARD_READS[kind]})
    RewardConfig("sum", terms=(term,))
    for name in set(values) - set(REWARD_READS[kind]):
        with pytest.raises(UserError, match=re.escape(f"reward.terms[0].{name} is read by")):
            RewardConfig("sum", terms=(dataclasses.replace(term, **{name: values[name]}),))


def test_rewards_import_no_torch_and_no_numpy():
    code = "import sys, positron.rewards; print({'torch', 'numpy'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE)
    assert result.stdout == "set()\n", result.stderr
