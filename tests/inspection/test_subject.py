"""A run that is looked at: weights of every kept step, scores, the regret over the training."""

import dataclasses
import math
import re
import shutil
from pathlib import Path
from types import UnionType
from typing import Union, get_args, get_origin, get_type_hints, is_typeddict

import pytest
import torch

from positron import inspection
from positron.inference.engine import Engine
from positron.inference.sampling import Sampling
from positron.inspection import subject as subject_module
from positron.inspection.inside import log_probabilities, look_inside
from positron.inspection.look import look
from positron.inspection.lookdata import HistoryData, LookData, RegretHistory, TruthData
from positron.inspection.subject import KEPT_MODELS, MAX_CONTINUATION, Subject
from positron.inspection.truth import story_truth
from positron.look import history_table
from positron.model.gpt import GPT
from positron.run.facts import write_record
from positron.run.folder import Run
from positron.run.load import load_kept_model, load_model
from positron.stories import bits
from positron.system.errors import UserError
from positron.text.char_word import WordTokenizer
from positron.text.conversation import Message, encode, prompt_ids, stop_ids
from positron.text.tokenizer import END_OF_TEXT

PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def subject(kept_run):
    return Subject(kept_run)


def test_without_a_step_the_best_checkpoint_is_looked_at(kept_run, subject):
    model, tokenizer, _ = load_model(kept_run)
    assert subject.look(PROMPT) == look(model, tokenizer, PROMPT, run="tiny", step=kept_run.facts().best_step)


def test_each_kept_step_is_looked_at_with_its_own_weights(kept_run, subject):
    for kept in [*kept_run.history, *kept_run.history]:  # again, when some have left the memory
        own = look(load_kept_model(kept_run, kept), subject.tokenizer, PROMPT, run="tiny", step=kept.step)
        assert subject.look(PROMPT, step=kept.step)["tokens"] == own["tokens"]
    assert len(subject._earlier) <= KEPT_MODELS
    with pytest.raises(
        UserError, match=r"has only the weights of the steps 0, 1, 6, 40, not of step 7: choose one of them"
    ):
        subject.look(PROMPT, step=7)


def test_the_history_has_tokens_and_the_last_validation(kept_run, subject):
    data = subject.history()
    assert data["best"] == kept_run.facts().best_step
    assert [(point["step"], point["tokens"]) for point in data["points"]] == [
        (0, 0),
        (1, 512),
        (6, 6 * 512),
        (40, 40 * 512),
    ]
    assert [point["val_bpb"] for point in data["points"]] == [None, None, None, kept_run.facts().val_bpb]


def test_a_text_is_continued_by_the_weights_of_the_step_and_without_the_ablated_parts(subject):
    settings = {"max_tokens": 30, "temperature": 1.0}
    texts = {
        subject.look(PROMPT, step=step, ablations=ablations, continuation=settings)["continuation"]
        for step in (0, 40)
        for ablations in ([], [{"layer": 0, "part": "mlp"}])
    }
    assert len(texts) == 4
    with pytest.raises(UserError, match=r"max_tokens must be at most .*, not 5000"):
        subject.look(PROMPT, continuation={"max_tokens": 5000})


def test_the_page_asks_for_no_longer_text_than_the_server_writes():
    page = Path(inspection.__file__).parent / "static" / "inspector.js"
    (most,) = re.findall(r"MOST_TOKENS = (\d+);", page.read_text(encoding="utf-8"))
    assert int(most) == MAX_CONTINUATION


def test_a_run_that_chats_reads_the_tokens_of_its_template(chat_run):
    subject, question = Subject(chat_run), "Tell me?"
    data = subject.look(question)
    ids, _ = encode([Message("user", question), Message("assistant", "")], subject.tokenizer)
    assert [token["id"] for token in data["tokens"]] == ids[:-1]  # without the end of the answer
    names = [token["text"] for token in data["tokens"] if token["special"]]
    assert names == [END_OF_TEXT, "<|user|>", "<|end|>", "<|assistant|>"]
    model = subject.best(torch.tensor([ids[:-1]]))[0, -1].softmax(-1)
    assert [candidate["p"] for candidate in data["next"][-1]["top"]] == pytest.approx(
        model.topk(10).values.tolist(), 1e-4
    )
    with pytest.raises(UserError, match="the prompt has 61 tokens and may have at most 60"):
        subject.look("a" * 61)


def test_an_answer_ends_at_any_token_that_ends_a_message(chat_run):
    subject, question = Subject(chat_run), "Tell me?"
    settings = {"max_tokens": 400, "temperature": 4.0, "top_p": 1.0}
    answer = subject.look(question, continuation={**settings, "seed": 1})["continuation"]
    ids = prompt_ids([Message("user", question)], subject.tokenizer)
    engine, sampling = Engine(subject.best, subject.tokenizer), Sampling(temperature=4.0, top_p=1.0)
    ended, endless = (
        engine.texts([ids], sampling, max_tokens=400, seed=1, stop_ids=stops)[0]
        for stops in (stop_ids(subject.tokenizer), [])
    )
    assert answer == ended
    assert len(ended) < len(endless)


@pytest.mark.slow
def test_the_grammar_knows_no_probabilities_of_messages(chat_run):
    subject = Subject(chat_run)
    with pytest.raises(UserError, match="answers messages"):
        subject.truth("Tell me?")
    assert subject.regrets()["points"]


def test_scores_are_measured_once_and_on_validation_text(subject, monkeypatch):
    scores = subject.look(PROMPT, scores=True)["scores"]
    assert scores["validation"] > 500
    assert len(scores["heads"]) == 2
    assert all(len(layer) == 4 for layer in scores["heads"])
    monkeypatch.setattr("positron.inspection.subject.measure_scores", None)
    assert subject.scores() is scores


def test_validation_texts_are_stories_that_the_training_left_out(kept_run, subject):
    from positron.evaluation.eval_texts import texts_of_run

    ours = subject.validation_texts
    assert len(ours) == 10
    assert all(bits(text) > 50 for text in ours)
    assert set(ours) <= set(texts_of_run(kept_run, "val", 0)) | set(ours[-9:])
    assert not set(ours) & set(texts_of_run(kept_run, "train", 0))


@pytest.mark.slow
def test_the_regret_over_the_training_is_that_of_the_models(subject):
    data = subject.regrets()
    assert [point["step"] for point in data["points"]] == [0, 1, 6, 40]
    totals = [sum(rule["regret"] for rule in point["rules"]) for point in data["points"]]
    assert totals == sorted(totals, reverse=True)
    assert totals[-1] > 0
    names = [
        [(rule["group"], rule["rule"], rule["tokens"], rule["true_bits"]) for rule in point["rules"]]
        for point in data["points"]
    ]
    assert all(name == names[0] for name in names)
    end = subject.tokenizer.special_id(END_OF_TEXT)
    total = 0.0
    for text in subject._validation_stories(data["stories"]):
        ids = [end, *subject.tokenizer.encode(text), end][:64]
        truth = story_truth(subject.tokenizer, ids)
        model = subject.model(6)[0]
        logp = log_probabilities(model, look_inside(model, torch.tensor([ids]), ()).stream[-1][0])
        for t, token in enumerate(truth.tokens):
            total += math.log2(token.p) - float(logp[t, ids[t + 1]]) / math.log(2)
    assert totals[2] == pytest.approx(total, rel=1e-4)


def test_the_history_says_how_many_tokens_of_each_story_are_read(kept_run, monkeypatch):
    monkeypatch.setattr(subject_module, "REGRET_STORIES", 2)
    cut = Subject(kept_run)
    assert cut.regrets()["tokens"] == cut.best.config.context_length - 1 == 63
    assert (
        "bits per story that the model loses, on the first 63 tokens of 2 validation"
        in history_table(cut, PROMPT, True)[-1]
    )
    monkeypatch.setattr(subject_module, "MAX_TOKENS", 5000)
    whole = Subject(kept_run)
    whole.best = GPT(dataclasses.replace(whole.best.config, context_length=5000)).eval()
    monkeypatch.setattr(whole, "model", lambda step=None: (whole.best, step))
    assert whole.regrets()["tokens"] is None
    monkeypatch.setattr(whole, "look", cut.look)
    assert "bits per story that the model loses, on 2 validation stories" in history_table(whole, PROMPT, True)[-1]


def test_a_run_on_another_grammar_has_no_truth(kept_run, tmp_path):
    folder = tmp_path / "other"
    shutil.copytree(kept_run.folder, folder)
    Run(folder).update(data_fingerprint="of an earlier grammar")
    other = Subject(Run(folder))
    for ask in (lambda: other.truth(PROMPT), other.regrets):
        with pytest.raises(UserError, match="was trained on the stories of another version of Positron"):
            ask()
    assert other.look(PROMPT)["tokens"]


def test_a_run_on_another_text_has_no_truth(kept_run, tmp_path):
    folder = tmp_path / "other"
    shutil.copytree(kept_run.folder, folder)
    write_record(Run(folder).config_path, {**Run(folder).config(), "data": {"source": "text", "path": "my.txt"}})
    other = Subject(Run(folder))
    with pytest.raises(
        UserError, match=r"only known for the built-in stories, and .*other was trained on another text"
    ):
        other.truth(PROMPT)
    assert not other.knows_truth


def test_a_run_whose_tokenizer_does_not_know_all_words_has_no_truth(kept_run, subject):
    other = Subject(kept_run, subject.best, WordTokenizer(["the", " "]))
    with pytest.raises(UserError, match="does not know all words of the stories"):
        other.truth(PROMPT)
    assert not other.knows_truth
    assert subject.knows_truth


def keys_of(kind, value, path="look"):
    """Yield, for each typed dict in a value, its place, the keys that it has, and those of its type."""
    if get_origin(kind) in (Union, UnionType):
        kinds = [inner for inner in get_args(kind) if inner is not type(None)]
        if value is not None:
            yield from keys_of(kinds[0], value, path)
    elif get_origin(kind) is list:
        for i, inner in enumerate(value):
            yield from keys_of(get_args(kind)[0], inner, f"{path}.{i}")
    elif is_typeddict(kind):
        hints = get_type_hints(kind)
        yield path, set(value), set(hints)
        for key, hint in hints.items():
            yield from keys_of(hint, value[key], f"{path}.{key}")


@pytest.mark.slow
def test_every_answer_has_exactly_the_fields_that_lookdata_describes(subject):
    ablations = [{"layer": 0, "part": 1}]
    answers = {
        LookData: subject.look(PROMPT, scores=True, ablations=ablations, continuation={"max_tokens": 3}),
        TruthData: subject.truth(f"{PROMPT} the"),
        HistoryData: subject.history(),
        RegretHistory: subject.regrets(),
    }
    for kind, answer in answers.items():
        seen = list(keys_of(kind, answer))
        assert len(seen) > 4
        for path, has, should in seen:
            assert has == should, path
