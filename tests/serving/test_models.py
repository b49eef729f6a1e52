"""Models that are loaded on demand: which are closed for others, and who waits."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving_models import TOKENIZER, engine_of, served_of

from positron.run.folder import Run
from positron.serving import app, models
from positron.serving.models import MAX_ON_DEMAND, Models, Served, refuse_same_names
from positron.system.errors import UserError

NAMES = "abcd"
BODY = {"model": "d", "prompt": "a", "max_tokens": 3, "seed": 1}


@pytest.fixture
def on_demand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Models]:
    """Four runs, of which three can be in memory at the same time."""
    assert len(NAMES) == MAX_ON_DEMAND + 1
    monkeypatch.setattr(models, "serve_run", lambda _, name: served_of(name, False))
    monkeypatch.setattr(app, "ROOM_SECONDS", 0.01)
    runs = {name: Run(tmp_path / name) for name in NAMES}
    on_demand = Models(runs=lambda: runs)
    yield on_demand
    on_demand.close()


def reserve(on_demand: Models, names: str) -> list[Served]:
    reserved = [model for name in names if (model := on_demand.get(name)) is not None]
    assert [model.name for model in reserved] == list(names)
    return reserved


def client_of(on_demand: Models) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app.create_app(on_demand))
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1")


def ask(on_demand: Models, body: dict[str, Any]) -> httpx.Response:
    async def ask() -> httpx.Response:
        async with client_of(on_demand) as client:
            return await client.post("/v1/completions", json=body)

    return asyncio.run(ask())


def loaded(on_demand: Models) -> list[str]:
    return [model.name for model in on_demand.loaded]


def test_a_model_is_not_closed_for_another_before_its_request_has_submitted_its_texts(on_demand: Models) -> None:
    _, b, _ = reserve(on_demand, "abc")
    reserve(on_demand, "b")
    b.worker.release()
    assert on_demand.get("d") is None
    assert loaded(on_demand) == ["a", "c", "b"]
    b.worker.release()
    assert on_demand.get("d") is not None
    assert loaded(on_demand) == ["a", "c", "d"]


def test_a_model_whose_name_is_not_utf_8_is_listed_and_answers() -> None:
    latin = Models([served_of("caf\udce9", False)])

    async def answers() -> tuple[httpx.Response, httpx.Response]:
        async with client_of(latin) as client:
            body = json.dumps({**BODY, "model": "caf\udce9"})
            return await client.get("/v1/models"), await client.post("/v1/completions", content=body)

    models, answer = asyncio.run(answers())
    assert [model["id"] for model in models.json()["data"]] == ["caf\udce9"]
    assert answer.json()["model"] == "caf\udce9"
    latin.close()


def test_a_run_is_served_under_a_name_that_every_client_can_send(tmp_path: Path) -> None:
    runs = [Run(tmp_path / name) for name in ("caf\udce8", "caf\udce9")]
    with pytest.raises(UserError, match="both be served as caf\N{REPLACEMENT CHARACTER}: rename one"):
        refuse_same_names(runs)


@pytest.mark.parametrize("body", [BODY, {**BODY, "max_tokens": -1}], ids=["answered", "refused"])
def test_a_request_reserves_its_model_no_longer_than_until_its_texts_are_submitted(
    on_demand: Models, body: dict[str, Any]
) -> None:
    assert ask(on_demand, body).status_code == (200 if body is BODY else 400)
    (model,) = on_demand.loaded
    while sum(model.worker.load):
        time.sleep(0.001)
    assert model.worker.close_if_idle()


def test_a_request_waits_until_another_model_is_idle(on_demand: Models) -> None:
    busy = reserve(on_demand, "abc")

    async def ask_both() -> tuple[httpx.Response, httpx.Response]:
        async with client_of(on_demand) as client:
            waiting = asyncio.ensure_future(client.post("/v1/completions", json=BODY))
            other = await client.post("/v1/completions", json={**BODY, "model": "c"})
            await asyncio.sleep(0.05)
            assert not waiting.done()
            busy[0].worker.release()
            return other, await waiting

    assert [answer.status_code for answer in asyncio.run(ask_both())] == [200, 200]
    assert loaded(on_demand) == ["b", "c", "d"]


def test_a_request_that_has_waited_too_long_for_another_model_is_told_to_try_again(
    on_demand: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "MAX_ROOM_SECONDS", 0.02)
    reserve(on_demand, "abc")

    answer = ask(on_demand, BODY)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    assert "while 3 models are answering" in answer.json()["error"]["message"]


def test_a_client_that_leaves_while_its_request_waits_is_forgotten(on_demand: Models) -> None:
    reserve(on_demand, "abc")
    content = json.dumps(BODY).encode()
    headers = [(b"host", b"127.0.0.1"), (b"content-length", str(len(content)).encode())]
    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": headers, "query_string": b""}
    arriving = iter([{"type": "http.request", "body": content}])

    async def receive() -> dict[str, Any]:
        return next(arriving, {"type": "http.disconnect"})

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    sent = list[dict[str, Any]]()
    asyncio.run(app.create_app(on_demand)(scope, receive, send))
    assert sent[0]["status"] == 499
    assert loaded(on_demand) == ["a", "b", "c"]


@pytest.mark.parametrize("damage", ["the chat template", "the checkpoint"])
def test_a_run_that_cannot_be_served_is_named_and_leaves_no_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    run, checkpoint = Run(tmp_path), tmp_path / "last.ckpt"
    if damage == "the chat template":
        run.chat_path.write_text('{"version": 2}')
        checkpoint.touch()
    monkeypatch.setattr(models, "load_model", lambda _: (engine_of().decoder.model, TOKENIZER, checkpoint))
    before = set(threading.enumerate())
    answer = ask(Models(runs=lambda: {"d": run}), BODY)
    workers = [thread for thread in set(threading.enumerate()) - before if thread.name == "positron-worker"]
    assert (answer.status_code, workers) == (500, [])
    faulty = run.chat_path if damage == "the chat template" else checkpoint
    assert "the model d cannot be loaded" in answer.json()["error"]["message"]
    assert str(faulty) in answer.json()["error"]["message"]
