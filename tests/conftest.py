"""Shared by the tests: a tiny run, and commands run as real processes that inherit the imports of one server process."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import gc
import http.server
import io
import json
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from positron.cli import MODULES
from positron.config import (
    DataConfig,
    DeviceConfig,
    ModelConfig,
    OptimizerConfig,
    PrecisionConfig,
    RunConfig,
    ScheduleConfig,
    TokenizerConfig,
    TrainConfig,
)
from positron.run.folder import Run
from positron.system.log import screen_log
from tests import warm

if TYPE_CHECKING:
    from playwright.sync_api import Browser


PROJECT = Path(__file__).parent.parent
# Seconds until a test gives up waiting for a process: on a crowded machine imports alone take half a minute.
PATIENCE = 300

# One thread per process, here and in all that tests start: workers with several threads each, on as many cores, wait for
# each other ten times longer than they work. Nothing has imported torch yet.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What a killed process has written, the next one reads with or without fsync, for which a tiny run would wait a quarter of
# its time; no test cuts the power.
os.fsync = lambda descriptor: None
# Messages name commands in the form that the user's shell finds: the tests expect those of an activated environment, also
# where `make test` or an editor starts them without one.
os.environ["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
os.environ.pop("MAKELEVEL", None)  # `next:` names make's targets to who was started by make, as `make test` is

# Child processes are forked from a server that has imported all this once: 0.1 s each instead of 5.
if sys.platform == "win32":
    _SERVER = multiprocessing.get_context("spawn")  # imports everything again, because Windows cannot fork
else:
    _SERVER = multiprocessing.get_context("forkserver")
_IMPORTED_LATE = (  # what commands import inside functions, and what test modules import: half of a short run's time
    "positron.cli.command_line",
    "positron.training.loop",
    "positron.training.from_text",
    "positron.training.budget.choose",
    "positron.training.objective.pretrain",
    "positron.inference.compiled",
    "numba.typed.typedlist",
    "numba.np.arraymath",
    "positron.stories",
    "positron.data.hub",
    "positron.data.stream_windows",
    "positron.evaluation.comparison",
    "positron.evaluation.report",
    "positron.serving.app",
    "positron.serving.connection",
    "hydra.main",
    "hydra._internal.hydra",
    "hydra._internal.core_plugins.basic_launcher",
    "hydra._internal.core_plugins.basic_sweeper",
    "hydra._internal.core_plugins.file_config_source",
    "hydra.core.override_parser.overrides_parser",
    "omegaconf.grammar_parser",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "safetensors.torch",
    "pyarrow.parquet",
    "scipy.special",
    "jinja2",
    "hypothesis.strategies",
    "pytest",
)
if sys.platform != "win32":
    _SERVER.set_forkserver_preload([*(f"positron.{name}" for name in MODULES), *_IMPORTED_LATE, "tests.fork_server"])


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device", choices=("cpu", "cuda", "mps"), help="the device that tests/slow/test_device.py compares"
    )


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """A worker for each core, but four at most, since each imports torch twice; none for files that are asked for by name."""
    if any(argument.partition("::")[0].endswith(".py") for argument in config.args):
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 4) if cores > 1 else 0


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name bytes after their argument, because packed bytes may hold the time, and all workers must collect the same names."""
    return argname if isinstance(val, bytes) else None


@pytest.hookimpl(tryfirst=True)  # before pytest leaves out what `-m` does not name
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that open a page in a browser: each takes seconds, and together they take two minutes."""
    for item in items:
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.browser)
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    gc.freeze()  # a million objects of imported modules, which each search for garbage would go through


def tiny(folder: Path, **changes: Any) -> RunConfig:
    """A run that takes a second: 40 steps of 512 tokens of a two-layer model on 200 kB of stories.

    `changes` are dotted keys with `__` for the dot: `train__max_steps=10`.
    """
    config = RunConfig(
        name="tiny",
        seed=1,
        model=ModelConfig(context_length=32, d_model=32, n_layer=2, n_head=4),
        tokenizer=TokenizerConfig(kind="char"),
        data=DataConfig(source="stories", size_mb=0.2, dir=str(folder / "data")),
        device=DeviceConfig(accelerator="cpu"),
        precision=PrecisionConfig("fp32"),
        optimizer=OptimizerConfig(lr=3e-3),
        schedule=ScheduleConfig(warmup_steps=5),
        train=TrainConfig(
            max_steps=40,
            batch_tokens=512,
            micro_batch_size=16,
            log_every=1,
            val_every=20,
            val_tokens=2000,
            save_every=10,
            sample_every=20,
            sample_tokens=8,
        ),
    )
    for key, value in changes.items():
        group, _, name = key.partition("__")
        if name:
            config = dataclasses.replace(
                config, **{group: dataclasses.replace(getattr(config, group), **{name: value})}
            )
        else:
            config = dataclasses.replace(config, **{group: value})
    return config


ONE_PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
MATMUL_RATE = 1e11  # FLOP/s


def shorten_runs(patch: pytest.MonkeyPatch) -> None:
    """Leave out what takes most of the time of a tiny run, and what few tests look at.

    The curves of the report are replaced by a picture of one pixel or left out, and the measured rate of matrix products by a
    constant. A story is written once, and a configuration composed once: Hydra composes it a first time to find `hydra.mode`,
    which no test sets.
    """
    for curve in ("loss_curve", "learning_rate_curve"):
        patch.setattr(f"positron.evaluation.report.{curve}", lambda *_, **__: ONE_PIXEL)
    patch.setattr("positron.evaluation.report.tuning_pictures", lambda _: [])
    patch.setattr("positron.training.timing.matmul_flops", lambda *_, **__: MATMUL_RATE)
    patch.setattr("positron.stories.generate", warm.generate)
    patch.setattr("hydra._internal.hydra.Hydra.get_mode", lambda *_, **__: None)


@pytest.fixture(scope="module", autouse=True)
def quick_runs() -> Iterator[None]:
    """Draw and measure nothing in runs of this process."""
    if not {"positron.train", "positron.sft", "positron.training.loop"} & sys.modules.keys():
        yield  # a module without trainings need not import what they import
        return
    with pytest.MonkeyPatch.context() as patch:
        shorten_runs(patch)
        yield


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Keep Chromium for a module, not longer: Playwright leaves an event loop in this thread, in which others run theirs."""
    from browser import chromium

    with chromium() as browser:
        yield browser


@pytest.fixture(scope="session")
def kept_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of 40 steps on built-in stories that kept the weights of 4 steps."""
    from positron.train import train

    folder = tmp_path_factory.mktemp("kept") / "outputs" / "tiny"
    folder.parent.mkdir()
    train(tiny(folder.parents[1], train__keep_history=4, model__context_length=64), folder)
    return Run(folder)


@pytest.fixture(scope="session")
def chat_run(kept_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A copy of `kept_run` that says that it was fine-tuned on conversations."""
    import shutil

    from positron.text.conversation import TEMPLATE

    run = Run(tmp_path_factory.mktemp("chat") / "outputs" / "talker")
    shutil.copytree(kept_run.folder, run.folder)
    run.chat_path.write_text(json.dumps(TEMPLATE))
    return run


def apart(target: Callable[..., None], *arguments: str | int) -> None:
    """Call `target` in a process of its own, so that changes of modules and of the environment end with it."""
    side_by_side(target, [arguments])


def side_by_side(target: Callable[..., None], calls: Sequence[tuple[str | int, ...]]) -> None:
    """Call `target` once with each of the arguments in `calls`, in processes of their own that run at the same time."""
    processes = [_SERVER.Process(target=_call, args=(target, *arguments)) for arguments in calls]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE)
    assert [process.exitcode for process in processes] == [0] * len(calls)


def _call(target: Callable[..., None], *arguments: str | int) -> None:
    gc.freeze()
    target(*arguments)


class FakeClock:
    """Stands in for the module `time`: its time passes only where a test or a pause says so, and pauses take none."""

    def __init__(self) -> None:
        self.now = 0.0
        self._lock = threading.Lock()

    def monotonic(self) -> float:
        return self.now

    perf_counter = monotonic

    def sleep(self, seconds: float) -> None:
        with self._lock:
            self.now += seconds


@dataclass
class Result:
    code: int
    out: str
    err: str


class CommandProcess:
    """`python -m positron.<name> arguments` in a folder, as a process of its own, which draws and measures only if `whole`."""

    def __init__(
        self, name: str, arguments: tuple[str, ...], folder: Path, stdin: str, environment: dict, whole: bool = False
    ) -> None:
        self.folder = folder
        self._streams = [folder / f".{name}-{os.urandom(4).hex()}.{kind}" for kind in ("out", "err")]
        self.process = _SERVER.Process(
            target=_run_command,
            args=(name, arguments, str(folder), list(map(str, self._streams)), stdin, environment, whole),
        )
        self.process.start()

    def said(self) -> str:
        """Return what the command has printed so far."""
        return self._streams[0].read_text(encoding="utf-8") if self._streams[0].exists() else ""

    def wait(self, timeout: float = PATIENCE) -> Result:
        self.process.join(timeout)
        assert self.process.exitcode is not None, f"the command is still running after {timeout} s"
        texts = [path.read_text(encoding="utf-8") if path.exists() else "" for path in self._streams]
        code = self.process.exitcode
        return Result(code, *texts)


def _run_command(
    name: str, arguments: tuple[str, ...], folder: str, streams: list[str], stdin: str, environment: dict, whole: bool
) -> None:
    gc.freeze()  # what the server has imported: to search it takes longer than many a command
    os.chdir(folder)
    os.environ.update(environment)
    if sys.platform != "win32":
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored where the tests were started with nohup
    for number, path in zip((1, 2), streams, strict=True):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
    sys.stdin = io.StringIO(stdin)
    sys.argv = [f"positron/{name}.py", *arguments]
    import importlib

    if not whole:
        shorten_runs(pytest.MonkeyPatch())
    code = 0
    try:
        importlib.import_module(f"positron.{name}").main()
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
    os._exit(code)


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """Collect the lines that the screen would show of what the test itself logs; a run that it trains has its own log."""
    lines: list[str] = []
    with screen_log(lines.append):
        yield lines


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., CommandProcess]:
    def start(
        name: str,
        *arguments: str,
        folder: Path | None = None,
        stdin: str = "",
        whole: bool = False,
        **environment: str,
    ) -> CommandProcess:
        return CommandProcess(name, arguments, folder or tmp_path, stdin, environment, whole)

    return start


@pytest.fixture
def run_command(start: Callable[..., CommandProcess]) -> Callable[..., Result]:
    def run_command(name: str, *arguments: str, **options: Any) -> Result:
        return start(name, *arguments, **options).wait()

    return run_command


# Settings with which `positron.train` takes a second.
FAST = (
    "data.size_mb=0.2",
    "tokenizer=char",
    "train.batch_tokens=512",
    "train.val_tokens=1000",
    "train.sample_tokens=8",
    "model.context_length=32",
    "model.d_model=32",
    "model.n_layer=2",
    "model.n_head=4",
    "precision=fp32",
)


class Loopback:
    """A small web server on this machine whose files and faults a test decides.

    `files`: path -> content. `faults`: path -> what goes wrong at its next requests, one after the other: "silent" (no
    answer), "cut off" (half of the body), "reset" (half, and the connection torn), or a status such as "503".
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[str]] = {}
        self.requests: list[str] = []
        self.closing = threading.Event()
        self.hold_after: int | None = None  # requests; those that follow are answered after `release`
        self.holding, self.released = threading.Event(), threading.Event()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.answer(self)

            do_HEAD = do_POST = do_GET

            def log_message(self, *_: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        path = request.path.partition("?")[0]
        fault = None
        if request.command == "GET":
            self.requests.append(path)
            fault = self.faults[path].pop(0) if self.faults.get(path) else None
            if self.hold_after is not None and len(self.requests) > self.hold_after:
                self.holding.set()
                self.released.wait(PATIENCE)
        if fault == "silent":
            self.closing.wait(PATIENCE)
            return
        if fault is not None and fault.isdigit():
            self._send(request, int(fault), b"")
            return
        content = self.files.get(path)
        if content is None:
            self._send(request, 404, b"")
            return
        if fault in ("cut off", "reset"):
            request.send_response(200)
            request.send_header("Content-Length", str(len(content)))
            request.end_headers()
            request.wfile.write(content[: len(content) // 2])
            request.close_connection = True
            return
        self._send(request, 200, content)

    def headers(self, path: str) -> dict[str, str]:
        return {}

    def _send(self, request: http.server.BaseHTTPRequestHandler, status: int, content: bytes) -> None:
        path = request.path.partition("?")[0]
        extra = self.headers(path)
        start, end = 0, len(content)
        asked = request.headers.get("Range")
        if status == 200 and asked:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last) + 1 if last else end, end)
            status, extra = 206, {**extra, "Content-Range": f"bytes {start}-{end - 1}/{len(content)}"}
        request.send_response(status)
        for key, value in extra.items():
            request.send_header(key, value)
        request.send_header("Content-Length", str(end - start))
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(content[start:end])

    def hold(self, requests: int) -> None:
        """Answer this many more requests, and later ones only after `release`; `holding` is set when one waits."""
        self.holding.clear()
        self.released.clear()
        self.hold_after = len(self.requests) + requests

    def release(self) -> None:
        self.hold_after = None
        self.released.set()

    def close(self) -> None:
        self.release()
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def loopback() -> Iterator[Loopback]:
    server = Loopback()
    yield server
    server.close()
