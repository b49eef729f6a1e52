"""The grammar's distribution of the next token, beside the model's: exact, whatever the tokenizer."""

import math
import re
from collections import defaultdict
from typing import Any

import pytest
import torch

from positron.config import GPTConfig
from positron.inspection.story_tokens import StoryTokens, refuse_joining, refuse_unknown
from positron.inspection.truth import compare_with_truth, story_truth
from positron.model.gpt import GPT
from positron.stories import Grammar, generate, parse
from positron.stories.beats import Plot
from positron.system.errors import UserError
from positron.text.char_word import CharTokenizer, WordTokenizer
from positron.text.sentencepiece_bpe import SentencePieceTokenizer
from positron.text.tokenizer import END_OF_TEXT

TEXTS = [generate(1, i).text for i in range(150)]
TOKENIZERS: dict[str, Any] = {
    "char": CharTokenizer.train(TEXTS),
    "word": WordTokenizer.train(TEXTS, 5000),
    "word with unknown words": WordTokenizer.train(TEXTS, 200),
    "sentencepiece": SentencePieceTokenizer.train(TEXTS, 700),
}
STORY = generate(5, 2).text
SMALL = Grammar.of(
    (
        Plot(
            "one",
            2.0,
            {"hero": "child", "thing": "toy", "place": "spot"},
            (),
            (
                ("{hero} saw {thing.a} {place}.", "Then {hero} [ran] {place} with {thing.a}."),
                ("", "¶But {hero.he} had the {thing}!"),
            ),
        ),
    ),
    {
        "child": [{"": "Ann", "he": "she"}, {"": "Anna", "he": "she"}, {"": "Bo", "he": "he"}],
        "toy": [{"": "ball", "a": "a ball"}, {"": "balloon", "a": "a balloon"}, {"": "bat", "a": "a bat"}],
        "spot": [{"": "here"}],
    },
    {"ran": ("ran", "ran off", "rang")},
)


def whole(tokenizer, text):
    end = tokenizer.special_id(END_OF_TEXT)
    return [end, *tokenizer.encode(text), end]


@pytest.mark.parametrize("name", ["char", "word", "sentencepiece"])
def test_the_tokens_of_a_story_have_exactly_the_storys_probability(name):
    tokenizer = TOKENIZERS[name]
    for index in range(8):
        story = generate(2, index)
        if name == "word" and 0 in tokenizer.encode(story.text):
            continue
        truth = story_truth(tokenizer, whole(tokenizer, story.text))
        assert len(truth.tokens) == len(whole(tokenizer, story.text)) - 1
        assert -math.fsum(math.log2(token.p) for token in truth.tokens) == pytest.approx(story.bits, abs=1e-8)
        assert all(math.fsum(shares.values()) == pytest.approx(1, abs=1e-12) for shares in truth.expected[:-1])
        assert truth.expected[-1] == {}


@pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=list(TOKENIZERS))
def test_a_small_grammar_has_the_distributions_of_all_its_stories(tokenizer):
    """The independent oracle: the tokens of all stories, counted by their beginnings."""
    texts = {generate(0, i, grammar=SMALL).text for i in range(5_000)}
    probability = {text: parse(text, grammar=SMALL)[0].bits for text in texts}
    assert math.fsum(2**-bits for bits in probability.values()) == pytest.approx(1, abs=1e-12)
    beginnings = defaultdict(lambda: defaultdict(float))
    for text, bits in probability.items():
        ids = whole(tokenizer, text)
        for i in range(1, len(ids)):
            beginnings[tuple(ids[:i])][ids[i]] += 2**-bits
    for text in texts:
        ids, story = whole(tokenizer, text), StoryTokens(tokenizer, SMALL)
        for i in range(1, len(ids)):
            expected = beginnings[tuple(ids[:i])]
            total = math.fsum(expected.values())
            assert story.expected() == pytest.approx({token: p / total for token, p in expected.items()}, abs=1e-12)
            assert story.read(ids[i]) is not None


class JoiningTokenizer:
    """Has white space at the end of its tokens, as if punctuation took the newlines after it."""

    kind = "tiktoken"

    def encode(self, text: str) -> list[int]:
        return [sum(map(ord, part)) for part in re.findall(r"\S+\s*|\s+", text)]


def test_a_tokenizer_that_joins_words_is_refused():
    with pytest.raises(UserError, match="cannot be computed for this tokenizer"):
        refuse_joining(JoiningTokenizer())
    for tokenizer in TOKENIZERS.values():
        refuse_joining(tokenizer)


def test_a_tokenizer_that_does_not_know_all_words_of_the_stories_is_refused():
    with pytest.raises(UserError, match="does not know all words of the stories: name a run"):
        refuse_unknown(TOKENIZERS["word with unknown words"])
    for name in ("char", "sentencepiece"):
        refuse_unknown(TOKENIZERS[name])


@pytest.fixture(scope="module")
def model():
    config = GPTConfig(
        vocab_size=TOKENIZERS["sentencepiece"].vocab_size, context_length=400, d_model=16, n_layer=1, n_head=2
    )
    return GPT(config, seed=3).eval()


def test_the_comparison_adds_up(model):
    tokenizer = TOKENIZERS["sentencepiece"]
    data = compare_with_truth(model, tokenizer, STORY, top=50)
    ids = [tokenizer.special_id(END_OF_TEXT), *tokenizer.encode(STORY)]
    logp = model(torch.tensor([ids])).detach()[0].double().log_softmax(dim=-1)
    truth = story_truth(tokenizer, ids)
    assert data["departure"] is None
    assert [token["id"] for token in data["tokens"]] == ids
    for t, token in enumerate(data["tokens"][1:]):
        assert token["true"] == pytest.approx(truth.tokens[t].p, rel=1e-5)
        assert token["model"] == pytest.approx(float(logp[t, ids[t + 1]].exp()), rel=1e-4)
        assert token["regret"] == pytest.approx(math.log2(token["true"] / token["model"]), abs=1e-3)
    regret = sum(token["regret"] for token in data["tokens"][1:])
    assert sum(rule["regret"] for rule in data["rules"]) == pytest.approx(regret, abs=1e-2)
    assert sum(rule["true_bits"] for rule in data["rules"]) == pytest.approx(generate(5, 2).bits, abs=1e-2)
    for rule in data["rules"]:
        assert rule["regret"] == pytest.approx(rule["model_bits"] - rule["true_bits"], abs=1e-2)
    for t, prediction in enumerate(data["next"]):
        shares = torch.zeros(tokenizer.vocab_size, dtype=torch.float64)
        for token, p in truth.expected[t].items():
            shares[token] = p
        divergence = torch.nn.functional.kl_div(logp[t], shares, reduction="sum") / math.log(2)
        assert prediction["regret"] == pytest.approx(float(divergence), abs=1e-4)
        assert prediction["regret"] >= 0
        assert prediction["allowed"] == int((shares > 0).sum())
        assert prediction["outside"] == pytest.approx(float(logp[t].exp()[shares == 0].sum()), abs=1e-5)


def test_a_model_with_the_grammars_probabilities_has_no_regret(model, monkeypatch):
    tokenizer = TOKENIZERS["sentencepiece"]
    ids = [tokenizer.special_id(END_OF_TEXT), *tokenizer.encode(STORY)]
    logp = torch.full((len(ids), tokenizer.vocab_size), -60.0, dtype=torch.float64)
    for t, shares in enumerate(story_truth(tokenizer, ids).expected):
        for token, p in shares.items():
            logp[t, token] = math.log(p)
    monkeypatch.setattr("positron.inspection.truth.model_log_probabilities", lambda model, ids: logp)
    data = compare_with_truth(model, tokenizer, STORY)
    assert max(abs(token["regret"]) for token in data["tokens"][1:]) < 1e-5
    assert max(prediction["regret"] for prediction in data["next"]) < 1e-9


@pytest.mark.parametrize(
    ("prompt", "reason", "character", "message"),
    [
        ("Once upon a time, the dog", "text", 17, 'no story continues with "the" here; possible words: "there"'),
        ("Once upon a time, there w", "tokens", 23, "the prompt ends within a word or with a space"),
        ("Once upon a time, there was ", "tokens", 27, "the prompt ends within a word or with a space"),
        (f"{STORY} The end", "text", len(STORY), "the story has ended here"),
        ("Zzz", "text", 0, "possible words"),
    ],
)
def test_a_prompt_that_leaves_the_grammar_says_where(model, prompt, reason, character, message):
    data = compare_with_truth(model, TOKENIZERS["sentencepiece"], prompt)
    place = data["departure"]
    assert (place["reason"], place["character"]) == (reason, character)
    assert message in place["message"]
    assert all(token["true"] is not None for token in data["tokens"][1 : place["token"]])
    assert all(token["true"] is None for token in data["tokens"][place["token"] :])
    assert all(one is None for one in data["next"][place["token"] :])
    assert all(one is not None for one in data["next"][: place["token"]])


def test_a_token_is_counted_for_the_rule_that_wrote_it():
    size = TOKENIZERS["word"].vocab_size
    model = GPT(GPTConfig(vocab_size=size, context_length=64, d_model=16, n_layer=1, n_head=2)).eval()
    text = "Once upon a time, there was a brave girl named Lily with long hair and green boots. One sunny Monday, Lily walked"
    data = compare_with_truth(model, TOKENIZERS["word"], text)
    rules = {token["text"]: (token["group"], token["rule"]) for token in data["tokens"]}
    assert rules["brave"] == ("list word", "trait")
    assert rules["girl"] == ("pronoun", "hero")
    assert rules["named"] == ("alternative", "alternative")
    assert rules["with"] == ("sentence", "sentence")
    assert rules["sunny"] == ("list word", "weather")
    assert [token["group"] for token in data["tokens"] if token["text"] == "Lily"] == ["first mention", "later mention"]
