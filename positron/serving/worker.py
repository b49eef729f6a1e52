"""Generate the texts of one model in a thread. Texts that do not fit the batch wait in a queue of limited length."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence

from positron.inference.sessions import Piece, Request, Session, Sessions

MAX_UNREAD = 64  # with this number of unread pieces, a text waits for its reader


class QueueFull(Exception):
    """Report that a worker accepts no further request now, because its queue is full or the worker was closed."""


class Job:
    """Hold a request for one text, from its submission until the text has ended.

    `deliver`: a function that the worker's thread calls with each piece of the text or, if the text fails, with the error.
    """

    def __init__(self, request: Request, deliver: Callable[[Piece | Exception], None]) -> None:
        self.request, self.deliver = request, deliver
        self.session: Session | None = None  # None while the request waits
        self.unread = 0  # number of pieces that were delivered and not yet taken
        self.is_cancelled = False


class Worker:
    """Generate the texts of one model in a thread of its own. At most `max_waiting` texts wait for a free row of the cache.

    A job is a request for one text. The thread calls the job's function `deliver` with each piece of the text or, if the text
    fails, with the error. The code that receives the pieces must call the method `taken` once for each piece. A text is paused
    while MAX_UNREAD of its pieces were delivered and not yet taken.
    """

    def __init__(self, sessions: Sessions, max_waiting: int) -> None:
        self.sessions, self.max_waiting = sessions, max_waiting
        self._waiting: deque[Job] = deque()
        self._running: dict[Session, Job] = {}
        self._changed = threading.Condition()  # guards the fields above, and the jobs' `unread` and `is_cancelled`
        self._is_closed = False
        self._reservations = 0  # number of requests that will submit jobs soon
        self._thread = threading.Thread(target=self._run, daemon=True, name="positron-worker")
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Tell whether the worker's thread runs."""
        return self._thread.is_alive()

    @property
    def load(self) -> tuple[int, int]:
        """Return the number of texts that are being generated, and the number of waiting texts."""
        with self._changed:
            return len(self._running), len(self._waiting)

    def reserve(self) -> None:
        """Keep `close_if_idle` from stopping the worker, until `release` has been called as often as this method."""
        with self._changed:
            self._reservations += 1

    def release(self) -> None:
        """End one reservation."""
        with self._changed:
            self._reservations -= 1

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue all jobs. If there is no space for all of them, or the worker is closed, queue none and raise QueueFull.

        Raises RuntimeError if the thread has ended although the worker was not closed.
        """
        with self._changed:
            if not self._is_closed and not self.is_alive:
                raise RuntimeError("the thread that generates texts has ended: restart the server")
            if self._is_closed or len(self._waiting) + len(jobs) > self.max_waiting:
                raise QueueFull
            self._waiting.extend(jobs)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """End a job, and free its row of the cache before the next step. Do nothing if the job has ended."""
        with self._changed:
            job.is_cancelled = True
            if job in self._waiting:
                self._waiting.remove(job)
            self._changed.notify()

    def taken(self, job: Job) -> None:
        """Record that the caller has taken one more of the pieces of text that were delivered for the job.

        The generation of a text pauses while 64 of its pieces (MAX_UNREAD) are delivered but not taken yet. If the generation
        had paused, this call lets it continue.
        """
        with self._changed:
            job.unread -= 1
            if job.unread == MAX_UNREAD - 1:
                self._changed.notify()

    def close(self) -> None:
        """Stop the thread after its current step, and wait until it has ended."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()

    def close_if_idle(self) -> bool:
        """Stop the worker if no text is being generated or waiting and it is not reserved, and tell whether it was stopped.

        The function does not wait until the thread has ended.
        """
        with self._changed:
            if self._running or self._waiting or self._reservations:
                return False
            self._is_closed = True
            self._changed.notify()
        return True

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(self._has_work)
                if self._is_closed:
                    return
                for job in [job for job in self._running.values() if job.is_cancelled]:
                    assert job.session is not None
                    del self._running[job.session]
                    self.sessions.leave(job.session)
                while self._can_join():
                    job = self._waiting.popleft()
                    job.session = self.sessions.join(job.request)
                    self._running[job.session] = job
                able = [session for session, job in self._running.items() if job.unread < MAX_UNREAD]
            reading = next((session for session in able if not self.sessions.is_ready(session)), None)
            if reading:  # one piece of one prompt between two steps, so that the other texts do not wait long
                self._read_piece(reading)
            self._step([session for session in able if self.sessions.is_ready(session)])

    def _has_work(self) -> bool:
        jobs = self._running.values()
        return self._is_closed or self._can_join() or any(job.is_cancelled or job.unread < MAX_UNREAD for job in jobs)

    def _can_join(self) -> bool:
        return bool(self._waiting) and self.sessions.has_free_row

    def _read_piece(self, session: Session) -> None:
        try:
            self.sessions.read_piece(session)
        except Exception as error:
            self._fail(session, error)

    def _step(self, ready: list[Session]) -> None:
        for session, piece in self.sessions.choose(ready):
            job = self._running[session]
            if isinstance(piece, Exception) or piece.finish:
                with self._changed:
                    del self._running[session]
            self._deliver(job, piece)
        remaining = [session for session in ready if session in self._running]
        try:
            self.sessions.read(remaining)
        except Exception as error:
            for session in remaining:
                self._fail(session, error)

    def _fail(self, session: Session, error: Exception) -> None:
        self.sessions.leave(session)
        with self._changed:
            job = self._running.pop(session)
        self._deliver(job, error)

    def _deliver(self, job: Job, piece: Piece | Exception) -> None:
        with self._changed:
            job.unread += 1
        job.deliver(piece)
