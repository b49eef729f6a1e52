"""The thread that writes: jobs that are cancelled, whose readers are slow, or that fail."""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import PATIENCE
from serving_models import DECODER, TOKENIZER, engine_of

from positron.inference.decoder import Decoder
from positron.inference.sampling import Sampling
from positron.inference.sessions import Piece, Request, Sessions
from positron.serving.worker import MAX_UNREAD, Job, QueueFull, Worker


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker(Sessions(engine_of(), 2), 3)
    yield worker
    worker.close()


def request(text: str = "a", max_tokens: int = 20, **changes: Any) -> Request:
    ids = [TOKENIZER.special_id("<|endoftext|>"), *TOKENIZER.encode(text)]
    return Request(ids, Sampling(temperature=0.9), max_tokens, seed=1, stop_ids=frozenset(), **changes)


class Reader:
    """Submits a request and reads its pieces."""

    def __init__(self, worker: Worker, request: Request) -> None:
        self.arrived: queue.Queue[Piece | Exception] = queue.Queue()
        self.worker, self.job = worker, Job(request, self.arrived.put)
        worker.submit([self.job])

    def next(self) -> Piece | Exception:
        piece = self.arrived.get(timeout=PATIENCE)
        self.worker.taken(self.job)
        return piece

    def rest(self) -> str:
        text = ""
        while not isinstance(piece := self.next(), Exception):
            text += piece.text
            if piece.finish:
                return text
        raise piece


class Steps:
    """Counts the steps of a worker, and stops it before each that a test does not allow.

    `trace`: ("step", its rows) and ("piece", the row whose prompt was read), in their order.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.allowed, self.rows = threading.Semaphore(0), queue.Queue[list[int]]()
        self.trace: list[tuple[str, list[int]]] = []
        step, piece = DECODER.step_some, DECODER.read_piece

        def counted(decoder: Decoder, ids: Any, rows: list[int]) -> Any:
            self.rows.put(rows)
            assert self.allowed.acquire(timeout=PATIENCE)
            self.trace.append(("step", rows))
            return step(decoder, ids, rows)

        def recorded(decoder: Decoder, prompt: list[int], row: int) -> Any:
            self.trace.append(("piece", [row]))
            return piece(decoder, prompt, row)

        monkeypatch.setattr(DECODER, "step_some", counted)
        monkeypatch.setattr(DECODER, "read_piece", recorded)


def test_a_cancelled_job_is_in_no_later_step(worker, monkeypatch):
    steps = Steps(monkeypatch)
    gone, other = Reader(worker, request(max_tokens=50)), Reader(worker, request("b", max_tokens=5))
    steps.allowed.release(2)
    while len(rows := steps.rows.get(timeout=PATIENCE)) < 2:
        steps.allowed.release()
    row = gone.job.session.row
    assert row in rows
    worker.cancel(gone.job)  # while a step is computed
    waiting = Reader(worker, request("c", max_tokens=5))
    for _ in range(40):
        steps.allowed.release()
    assert other.rest()
    assert waiting.rest()
    assert waiting.job.session.row == row
    assert worker.load == (0, 0)


@pytest.mark.parametrize(
    ("letters", "new", "count"), [(79, 1, 5), (94, 10, 6 + 3)], ids=["a prompt", "the last half of a full context"]
)
def test_a_running_text_gets_a_token_between_two_pieces_of_another(worker, monkeypatch, letters, new, count):
    monkeypatch.setattr("positron.inference.decoder.PIECE", 16)
    long, short = request("ab" * (letters // 2) + "c" * (letters % 2), new), request(max_tokens=50)
    alone = [
        "".join(engine_of().stream(r.ids, r.sampling, max_tokens=r.max_tokens, seed=1, stop_ids=()))
        for r in (short, long)
    ]
    steps = Steps(monkeypatch)
    running = Reader(worker, short)
    steps.rows.get(timeout=PATIENCE)  # its first step waits
    joining = Reader(worker, long)
    steps.allowed.release(100)
    assert [running.rest(), joining.rest()] == alone
    row = joining.job.session.row
    places = [i for i, event in enumerate(steps.trace) if event == ("piece", [row])]
    assert len(places) == count
    for i, j in itertools.pairwise(places):
        assert any(kind == "step" and running.job.session.row in rows for kind, rows in steps.trace[i:j])


def test_a_job_cancelled_while_its_prompt_is_read_frees_its_row_before_the_next_piece(worker, monkeypatch):
    monkeypatch.setattr("positron.inference.decoder.PIECE", 16)
    steps = Steps(monkeypatch)
    running = Reader(worker, request(max_tokens=20))
    steps.rows.get(timeout=PATIENCE)
    gone = Reader(worker, request("ab" * 40))
    steps.allowed.release()
    steps.rows.get(timeout=PATIENCE)  # the first piece has been read
    worker.cancel(gone.job)
    following = Reader(worker, request("c", max_tokens=5))
    steps.allowed.release(100)
    assert running.rest()
    assert following.rest()
    row = gone.job.session.row
    assert following.job.session.row == row
    assert steps.trace.count(("piece", [row])) == 2  # one of each of the two prompts
    assert worker.load == (0, 0)


def test_a_waiting_job_can_be_cancelled(worker):
    running = [Reader(worker, request(max_tokens=10_000)) for _ in range(2)]
    for reader in running:
        reader.next()
    waiting = Reader(worker, request("b"))
    worker.cancel(waiting.job)
    assert worker.load == (2, 0)
    for reader in running:
        worker.cancel(reader.job)
    assert Reader(worker, request("c")).rest()
    assert waiting.job.session is None


def test_a_slow_reader_delays_nobody_and_loses_nothing(worker):
    alone = engine_of().stream(request().ids, Sampling(temperature=0.9), max_tokens=300, seed=1, stop_ids=())
    slow = Reader(worker, request(max_tokens=300))
    for _ in range(3):
        assert Reader(worker, request("b", max_tokens=2 * MAX_UNREAD)).rest()
    assert slow.arrived.qsize() <= MAX_UNREAD
    assert slow.job.session.count <= MAX_UNREAD
    assert slow.rest() == "".join(alone)


def test_a_full_queue_takes_no_part_of_a_request(worker):
    running = [Reader(worker, request(max_tokens=10_000)) for _ in range(2)]
    for reader in running:
        reader.next()
    worker.submit([Job(request(), lambda _: None), Job(request(), lambda _: None)])
    with pytest.raises(QueueFull):
        worker.submit([Job(request(), lambda _: None), Job(request(), lambda _: None)])
    assert worker.load == (2, 2)
    worker.submit([Job(request(), lambda _: None)])
    for reader in running:
        worker.cancel(reader.job)


@pytest.mark.parametrize("where", ["read_piece", "step_some"])
def test_an_error_of_the_model_ends_its_texts_and_not_the_worker(worker, monkeypatch, where):
    with monkeypatch.context() as patch:
        patch.setattr(DECODER, where, lambda *_: 1 / 0)
        for _ in range(3):  # more than there are rows: none is lost
            with pytest.raises(ZeroDivisionError):
                Reader(worker, request()).rest()
    for _ in range(3):
        assert Reader(worker, request()).rest()
    assert worker.is_alive


def test_a_worker_that_reads_a_prompt_is_not_idle_and_a_closed_one_takes_no_job(worker, monkeypatch):
    begun, allowed, original = threading.Event(), threading.Event(), DECODER.read_piece

    def waiting(*arguments: Any) -> Any:
        begun.set()
        assert allowed.wait(PATIENCE)
        return original(*arguments)

    monkeypatch.setattr(DECODER, "read_piece", waiting)
    reader = Reader(worker, request())
    assert begun.wait(PATIENCE)
    assert (worker.load, worker.close_if_idle()) == ((1, 0), False)
    allowed.set()
    assert reader.rest()
    while worker.load != (0, 0):
        time.sleep(0.001)
    assert worker.close_if_idle()
    with pytest.raises(QueueFull):
        Reader(worker, request())
