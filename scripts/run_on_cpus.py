"""Run the tests as if on other processors, and show how many pass.

    python -m scripts.run_on_cpus
    python -m scripts.run_on_cpus --only avx2 --only native-busy tests/model

Each configuration limits the vector instructions that oneDNN, ATen, MKL and OpenBLAS use, and sets the number of threads:

    native-1, native-2   this processor
    native-busy          this processor, two threads, while two other processes keep the cores busy
    avx2-1, avx2-2       Intel Haswell (2013): AVX2, no AVX-512, no AMX
    sse4-1, sse4-2       Intel Nehalem (2008): SSE4, no AVX

It takes as long as seven runs of the suite. The exit code is 1 if a test failed or a run did not finish.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

PROJECT = Path(__file__).resolve().parent.parent
LIMITS = {
    "native": {},
    "avx2": {
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "OPENBLAS_CORETYPE": "Haswell",
    },
    "sse4": {
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "ATEN_CPU_CAPABILITY": "default",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        "OPENBLAS_CORETYPE": "Nehalem",
    },
}
CONFIGURATIONS = ("native-1", "native-2", "native-busy", "avx2-1", "avx2-2", "sse4-1", "sse4-2")
FINISHED = (0, 1)  # exit codes of pytest after it ran all tests


class Parser(argparse.ArgumentParser):
    """Report an error in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"run_on_cpus: {message}: see --help\n")


def configurations(name: str) -> list[str]:
    """Return the configurations that are called `name`, or begin with it and a dash."""
    matches = [each for each in CONFIGURATIONS if each == name or each.startswith(f"{name}-")]
    if not matches:
        raise argparse.ArgumentTypeError(f"no configuration is called {name} (--list prints them)")
    return matches


def test(name: str) -> str:
    """Return the absolute path of a test file or test id whose path is relative to the current folder or the repository."""
    path, colons, item = name.partition("::")
    for folder in (Path.cwd(), PROJECT):
        if (folder / path).exists():
            return f"{folder / path}{colons}{item}"
    raise argparse.ArgumentTypeError(f"the test file {path} does not exist")


def arguments() -> argparse.ArgumentParser:
    parser = Parser("run_on_cpus", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tests", nargs="*", type=test, help="files or test ids (default: the whole suite)")
    parser.add_argument(
        "--only",
        action="extend",
        type=configurations,
        default=[],
        metavar="NAME",
        help="run the configuration NAME, or all that begin with NAME, such as avx2; may be repeated",
    )
    parser.add_argument("--list", action="store_true", help="print the names of the configurations")
    parser.add_argument("--slow", action="store_true", help="include the slow tests")
    return parser


@contextlib.contextmanager
def busy_cores(count: int) -> Iterator[None]:
    """Keep `count` cores busy during the `with` block."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def environment(configuration: str) -> dict[str, str]:
    """Return the environment of a configuration, without limits that the user's shell may have set."""
    processor, kind = configuration.split("-")
    threads = "1" if kind == "1" else "2"
    variables = {key: value for key, value in os.environ.items() if key not in LIMITS["avx2"]}
    paths = [str(PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])]
    settings = {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads, "PYTHONPATH": os.pathsep.join(paths)}
    return variables | settings | LIMITS[processor]


def run(configuration: str, words: list[str], log: Path) -> int:
    """Run pytest in a configuration, with its output in `log`; return its exit code."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--color=no", *words]
    with busy_cores(2 if configuration == "native-busy" else 0), log.open("wb") as file:
        process = subprocess.run(
            command, cwd=PROJECT, env=environment(configuration), stdout=file, stderr=subprocess.STDOUT
        )
    return process.returncode


def main() -> int:
    options = arguments().parse_args()
    if options.list:
        print("\n".join(CONFIGURATIONS))
        return 0
    words = [*(["-m", "slow or not slow"] if options.slow else []), *options.tests]
    logs, is_whole = Path(tempfile.mkdtemp(prefix="run_on_cpus.")), True
    failures: Counter[str] = Counter()
    print(f"{'configuration':<13} {'passed':>8} {'failed':>8} {'seconds':>9}")
    for configuration in options.only or CONFIGURATIONS:
        log, began = logs / f"{configuration}.log", time.monotonic()
        code = run(configuration, words, log)
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
        # the last line of pytest: "2 failed, 951 passed, 12 deselected, 1 error in 300.12s"
        counts = {kind: int(number) for number, kind in re.findall(r"(\d+) (passed|failed|error)", lines[-1])}
        wrong = str(counts.get("failed", 0) + counts.get("error", 0)) if code in FINISHED else f"exit {code}"
        if code not in FINISHED:
            print("\n".join(lines[-5:]), file=sys.stderr)
        print(
            f"{configuration:<13} {counts.get('passed', 0):>8} {wrong:>8} {time.monotonic() - began:>9.0f}", flush=True
        )
        failures.update(line for line in lines if line.startswith(("FAILED ", "ERROR ")))
        is_whole = is_whole and code == 0
    print(f"output of each run: {logs}")
    for line, count in sorted(failures.items()):
        print(f"{count:>7} {line}", file=sys.stderr)
    return 0 if is_whole else 1


if __name__ == "__main__":
    sys.exit(main())
