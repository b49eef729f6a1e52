"""What the page asks the server: answers as the Python functions give them, and every wrong request refused."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from positron.inspection.routes import MAX_BODY, MAX_PROMPT, routes
from positron.inspection.subject import Subject
from positron.inspection.subjects import Subjects
from positron.run.folder import Run

PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def subject(kept_run):
    return Subject(kept_run)


@pytest.fixture(scope="module")
def client(subject):
    with TestClient(Starlette(routes=routes({"tiny": subject}))) as client:
        yield client


def strict(text: str):
    """Parse JSON that holds neither NaN nor infinity."""

    def refuse(name: str):
        raise AssertionError(name)

    return json.loads(text, parse_constant=refuse)


def test_look_answers_what_the_subject_says(client, subject):
    body = {
        "run": "tiny",
        "prompt": PROMPT,
        "step": 6,
        "ablations": [{"layer": 1, "part": 2}, {"layer": 0, "part": "mlp"}],
        "top": 3,
        "focus": 2,
        "attention": [1],
        "continuation": {"max_tokens": 5, "temperature": 0, "top_k": None},
    }
    answer = client.post("/api/look", json=body)
    assert answer.status_code == 200
    asked = {key: body[key] for key in ("step", "ablations", "top", "focus", "attention")}
    expected = subject.look(PROMPT, continuation={"max_tokens": 5, "temperature": 0}, **asked)
    assert strict(answer.text) == expected
    assert len(strict(answer.text)["continuation"]) > 0


@pytest.mark.slow
def test_the_other_routes_answer_what_the_subject_says(client, subject):
    assert strict(client.post("/api/look", json={"prompt": "", "scores": True}).text)["scores"] == subject.scores()
    assert strict(client.post("/api/truth", json={"prompt": PROMPT, "top": 4}).text) == subject.truth(PROMPT, top=4)
    assert strict(client.get("/api/truth?run=tiny").text) == subject.regrets()
    assert strict(client.get("/api/history").text) == subject.history()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": None}, "prompt is missing or is not a text"),
        ({"prompt": "a" * 64}, "the prompt has 64 tokens and may have at most 63"),
        ({"prompt": "a" * (MAX_PROMPT + 1)}, "characters and may have at most"),
        ({"prompt": "\ud800"}, "half of a surrogate pair"),
        ({"step": 3}, "not of step 3: choose one of them"),
        ({"step": True}, "step must be a whole number of at most 12 digits, not true"),
        ({"step": 1.5}, "step must be a whole number"),
        ({"top": 51}, "top must be between 1 and 50, not 51"),
        ({"top": 0}, "top must be between"),
        ({"focus": 10**30}, "focus must be a whole number"),
        ({"focus": 999}, "focus=999 is not a position of the prompt"),
        ({"attention": "all"}, 'attention must be a list of layer numbers, such as [0, 1], not "all"'),
        ({"attention": [7]}, "attention names layer 7, but the model has only the layers 0 to"),
        ({"scores": 1}, "scores must be true or false, not 1"),
        ({"ablations": {}}, 'ablations must be a list, such as [{"layer": 0, "part": 3}], not {}'),
        ({"ablations": [{"layer": 0}]}, '"attn" or "mlp", not {"layer": 0}'),
        ({"ablations": [{"layer": 0, "part": "x"}]}, "part of ablations[0] must be the number of a head"),
        ({"ablations": [{"layer": 0, "part": 9}]}, "head 9 does not exist"),
        ({"ablations": [{"layer": 0, "part": 0}] * 1001}, "ablations has 1,001 entries and may have at most 1,000"),
        ({"continuation": []}, "continuation must be an object"),
        ({"continuation": {"stop": "x"}}, 'continuation has the unknown field "stop": choose from'),
        ({"continuation": {"temperature": -1}}, "temperature"),
        ({"continuation": {"max_tokens": 0}}, "max_tokens must be at least 1, not 0"),
        ({"continuation": {"seed": "x"}}, "seed"),
        ({"colour": 1}, 'the request has the unknown field "colour": choose from'),
    ],
    ids=lambda value: json.dumps(value)[:40] if isinstance(value, dict) else "",
)
def test_a_wrong_request_is_refused_with_its_reason(client, changes, message):
    answer = client.post("/api/look", content=json.dumps({"prompt": PROMPT, **changes}))
    assert answer.status_code == 400
    assert message in strict(answer.text)["error"]["message"]


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b'{"prompt": "' + b"a" * MAX_BODY])
def test_a_body_that_is_no_object_is_refused(client, content):
    answer = client.post("/api/look", content=content)
    assert answer.status_code == 400
    assert strict(answer.text)["error"]["message"]


def test_an_unknown_run_is_not_found(client):
    for answer in (
        client.get("/api/history?run=../x"),
        client.get("/api/truth?run=x"),
        client.post("/api/look", json={"run": ["tiny"], "prompt": ""}),
        client.post("/api/truth", json={"run": "x", "prompt": ""}),
    ):
        assert answer.status_code == 404
        assert "run must be one of tiny" in strict(answer.text)["error"]["message"]


def test_runs_are_loaded_at_the_first_question_and_the_ones_used_last_stay(monkeypatch, tmp_path):
    loaded = []

    def subject_of(run: Run) -> Any:
        loaded.append(run.folder.name)
        return SimpleNamespace(name=run.folder.name)

    monkeypatch.setattr("positron.inspection.subjects.Subject", subject_of)
    runs = {name: Run(tmp_path / name) for name in "abc"}
    subjects = Subjects(runs, keep=2)
    assert (list(subjects), len(subjects), "a" in subjects, "x" in subjects) == (["a", "b", "c"], 3, True, False)
    assert loaded == []
    for name in "aababcab":
        assert subjects[name].name == name
    assert "".join(loaded) == "abcab"
    runs["b"] = Run(tmp_path / "new")  # another run under the same name
    assert subjects["b"].name == "new"
    with pytest.raises(KeyError):
        subjects["x"]


def test_a_server_of_several_runs_must_be_told_which(subject):
    with TestClient(Starlette(routes=routes({"a": subject, "b": subject}))) as client:
        assert client.get("/api/history").status_code == 404
        assert client.get("/api/history?run=b").status_code == 200
