"""The inspector's page and the server understand each other."""

import json
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from positron.inference.engine import Engine
from positron.inference.sampling import Sampling
from positron.inspection.routes import routes
from positron.inspection.subject import Subject
from positron.inspection.tokens import Vocabulary
from positron.serving.app import create_app
from positron.serving.connection import Server, listen, url_of
from positron.serving.models import Models, serve_run

STATIC = Path(__file__).parents[2] / "positron" / "inspection" / "static"
NODE = shutil.which("node")
PROMPT, KEY = "Once upon", "sesame"


@pytest.mark.slow
@pytest.mark.skipif(NODE is None, reason="node is not installed")
@pytest.mark.parametrize("chats", [False, True])
def test_the_page_gets_from_a_server_what_the_subject_says(kept_run, chat_run, chats):
    run = chat_run if chats else kept_run
    subject, served = Subject(run), serve_run(run)
    listener = listen("127.0.0.1", 0)
    server = Server(create_app(Models([served]), KEY, routes({served.name: subject})), listener)
    thread = threading.Thread(target=server.run_until_stopped)
    thread.start()
    try:
        script = Path(__file__).with_name("server_source.mjs")
        command = [NODE, script, STATIC, url_of(listener).rstrip("/"), served.name, KEY, "chats" if chats else ""]
        done = subprocess.run(list(map(str, command)), check=True, timeout=300, capture_output=True, text=True)
    finally:
        server.should_exit = True
        thread.join()
        served.worker.close()
    answers = json.loads(done.stdout)
    same = {
        "look": subject.look(PROMPT, step=0, focus=1, top=5),
        "history": subject.history(),
        "truth": None if chats else subject.truth(PROMPT, top=20),
        "regrets": subject.regrets(),
    }
    for name, expected in same.items():
        assert answers[name] == json.loads(json.dumps(expected)), name
    vocabulary = Vocabulary(subject.tokenizer, chats)
    ids = vocabulary.ids(PROMPT, 50)
    (text,) = Engine(subject.best, subject.tokenizer).texts(
        [ids], Sampling(temperature=0.9, top_p=0.9), max_tokens=12, seed=3, stop_ids=vocabulary.ends
    )
    assert answers["written"] == {"text": text, "tokens": 12}
    settings = {"max_tokens": 12, "seed": 3, "temperature": 0.9, "top_p": 0.9}
    ablated = subject.look(PROMPT, ablations=[{"layer": 0, "part": 1}], continuation=settings)
    assert answers["ablated"] == {"text": ablated["continuation"], "tokens": None}
    assert answers["nothing"] is None
    assert answers["error"]["status"] == 400
    assert "tokens" in answers["error"]["message"]
    assert answers["refused"] == 401
