"""The scripts are thin, run from any directory, and make what the commands make."""

import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pexpect
import pytest
import torch
from conftest import FAST, PATIENCE, PROJECT

from positron.cli.unused_settings import TUNING_EXPERIMENTS
from scripts.clean import clean
from scripts.mutate_numpy_ref import MUTANTS

SCRIPTS = [*sorted(path.name for path in (PROJECT / "scripts").glob("*.sh")), "run_on_cpus.py"]
TINY = (*FAST, "data=stories", "device=cpu", "train.val_every=4", "schedule.warmup_steps=2")
TALKS = (*(o for o in TINY if not o.startswith("model.context_length")), "model.context_length=1024")


def script(name: str, *arguments: str, folder: Path, **environment: str) -> subprocess.CompletedProcess:
    (folder / "outputs").mkdir(exist_ok=True)
    program = [sys.executable] if name.endswith(".py") else []
    command = [*program, str(PROJECT / "scripts" / name), *arguments]
    return subprocess.run(command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True)


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / f"step-{step:06d}.ckpt", weights_only=True)["state_dict"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_says_what_it_does(name, tmp_path):
    told = script(name, "--help", folder=tmp_path)
    assert told.returncode == 0, told.stderr
    assert len(told.stdout.splitlines()) >= 2
    assert not told.stdout.startswith("#")


@pytest.mark.slow
def test_chunks_are_one_run(run_command, tmp_path):
    settings = (*TINY, "train.max_steps=7")
    whole = run_command("train", "experiment=quickstart", "name=whole", *settings)
    assert whole.code == 0, whole.err
    chunks = script("train_incremental.sh", "4", "--yes", "name=chunks", *settings, folder=tmp_path)
    assert chunks.returncode == 0, chunks.stderr
    assert chunks.stdout.count("validation bits per byte") == 2
    a, b = (weights(tmp_path / "outputs" / name, 7) for name in ("whole", "chunks"))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.slow
def test_chunks_are_asked_for_and_may_be_declined(run_command, tmp_path):
    (tmp_path / "outputs").mkdir()
    settings = [*TINY, "train.max_steps=9", "name=asked"]
    command = str(PROJECT / "scripts" / "train_incremental.sh")
    child = pexpect.spawn(command, ["3", *settings], cwd=str(tmp_path), encoding="utf-8", timeout=PATIENCE)
    for answer in ("", "n"):
        child.expect_exact("Continue for another 3 steps? [Y/n] ")
        child.sendline(answer)
    child.expect_exact("give the same command again to continue later")
    child.expect(pexpect.EOF)
    assert json.loads((tmp_path / "outputs/asked/run.json").read_text())["step"] == 6
    child = pexpect.spawn(command, ["3", *settings], cwd=str(tmp_path), encoding="utf-8", timeout=PATIENCE)
    child.expect_exact("finished at step 9")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_no_number_of_steps_is_refused(tmp_path):
    wrong = script("train_incremental.sh", "many", folder=tmp_path)
    assert wrong.returncode == 2
    assert wrong.stderr == "positron: many is not a number of steps and not a setting (KEY=VALUE): see --help\n"


@pytest.mark.slow
@pytest.mark.skipif(
    not (PROJECT / ".venv" / "installed").exists(), reason="the script would install a second environment"
)
def test_bootstrap_without_a_network_trains_on_the_built_in_stories_at_once(tmp_path):
    ended = threading.Event()

    class Silent(http.server.BaseHTTPRequestHandler):
        """Answers so late that a script which waits for it would train on the hub's text."""

        def do_GET(self) -> None:
            ended.wait(PATIENCE)
            self.send_response(200)
            self.end_headers()

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Silent)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for address in ("http://127.0.0.1:9", f"http://127.0.0.1:{server.server_port}"):
        folder = tmp_path / address[-4:].strip(":/")
        folder.mkdir()
        made = script("bootstrap_tiny_llm.sh", *TINY, "train.max_steps=2", folder=folder, HF_ENDPOINT=address)
        assert made.returncode == 0, made.stderr
        assert "does not answer: training on the built-in stories instead of TinyStories" in made.stderr
        assert made.stdout.count("Once upon a time") >= 3
        log = (folder / "outputs/tiny_llm/train.log").stat()
        assert log.st_size > 0
    ended.set()
    server.shutdown()


@pytest.mark.skipif(sys.platform == "win32", reason="a script of bash")
def test_bootstrap_writes_samples_with_the_run_that_it_has_trained_under_another_name(tmp_path):
    python = tmp_path / ".venv" / "bin" / "python"
    for folder in (python.parent, tmp_path / "scripts"):
        folder.mkdir(parents=True)
    (tmp_path / "Makefile").write_text("install:\n")
    python.write_text('#!/bin/sh\necho "$@"\n')
    python.chmod(0o755)
    copy = shutil.copy(PROJECT / "scripts" / "bootstrap_tiny_llm.sh", tmp_path / "scripts")
    made = subprocess.run(
        ["bash", copy, "name=mine", "seed=1"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    trained, generated = made.stdout.splitlines()[-2:]
    assert trained.endswith("name=mine seed=1")
    assert "--run mine " in generated


@pytest.mark.slow
def test_the_tests_run_as_on_other_processors_and_a_table_tells_where_they_fail(tmp_path):
    (tmp_path / "test_processor.py").write_text(
        "import os\n"
        "def test_native(): assert 'OPENBLAS_CORETYPE' not in os.environ\n"
        "def test_one_thread(): assert os.environ['OMP_NUM_THREADS'] == '1'\n"
    )
    environment = {
        "OPENBLAS_CORETYPE": "Haswell",  # set in the shell: a native run does not have it
        "TMPDIR": str(tmp_path),
    }
    chosen = ("--only", "native-1", "--only", "sse4-1", "test_processor.py")
    told = script("run_on_cpus.py", *chosen, folder=tmp_path, **environment)
    assert told.returncode == 1
    title, *rows, logs = told.stdout.splitlines()
    assert title.split() == ["configuration", "passed", "failed", "seconds"]
    assert [row.split()[:3] for row in rows] == [["native-1", "2", "0"], ["sse4-1", "1", "1"]]
    assert "test_native" in (Path(logs.split(": ")[1]) / "sse4-1.log").read_text()
    assert "FAILED" in told.stderr


@pytest.mark.parametrize("wrong", [("--only", "amiga"), ("--only",), ("--fast",), ("no/such/test.py",)])
def test_a_configuration_option_or_test_that_does_not_exist_is_refused(tmp_path, wrong):
    told = script("run_on_cpus.py", *wrong, folder=tmp_path)
    assert (told.returncode, told.stdout, told.stderr.count("\n")) == (2, "", 1)


def test_cleaning_keeps_runs_and_deletes_what_can_be_made_again(tmp_path):
    made = [
        ".venv/bin/python",
        "build/site/a",
        "positron/__pycache__/a.pyc",
        "outputs/x/__pycache__/b",
        ".mypy_cache/c",
    ]
    kept = ["outputs/x/run.json", "positron/a.py", "docs/build/a.md"]
    for name in (*made, *kept):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    clean(tmp_path)
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()) == sorted(
        kept
    )
    clean(tmp_path)


@pytest.mark.slow
def test_from_nothing_to_an_answer(tmp_path, run_command):
    made = run_command(
        "train", "experiment=quickstart", *TALKS, "train.max_steps=2", "train.batch_tokens=2048", "name=base"
    )
    assert made.code == 0, made.err
    short = ("train.max_steps=2", "data.examples=60", "data.val_fraction=0.5", "train.sample_tokens=8")
    first = script("sft_quickstart.sh", "base", *short, folder=tmp_path)
    assert first.returncode == 0, first.stderr
    assert first.stdout.strip()
    answer = script("ask_model.sh", "Who is Tom?", "--max-tokens", "5", folder=tmp_path)
    assert answer.returncode == 0, answer.stderr


RECIPES = sorted(
    {path.stem for path in (PROJECT / "conf" / "experiment").glob("*.yaml")}
    - {name for names in TUNING_EXPERIMENTS.values() for name in names}
)
# each other recipe differs from these by values alone; that it is valid is a test of tests/cli/test_config.py
REPRESENTATIVE = ("quickstart", "addition")


@pytest.mark.parametrize(
    "recipe", [pytest.param(r, marks=[] if r in REPRESENTATIVE else pytest.mark.slow) for r in RECIPES]
)
def test_every_recipe_trains(recipe, run_command, tmp_path):
    fast = (o for o in TINY if not o.startswith("train.batch_tokens"))
    short = ("train.max_steps=2", "train.batch_tokens=128", "data.tokens_per_epoch=null", "train.sample_prompt=Tom")
    result = run_command("train", f"experiment={recipe}", *fast, *short, "schedule.warmup_steps=1")
    assert result.code == 0, result.err
    facts = json.loads(next((tmp_path / "outputs").glob("*/run.json")).read_text())
    assert (facts["status"], facts["step"]) == ("finished", 2)


def test_the_guide_gives_the_number_of_mistakes_that_are_made_in_numpy_ref():
    guide = (PROJECT / "docs" / "guides" / "numpy.md").read_text(encoding="utf-8")
    assert f"inserts {len(MUTANTS)} small mistakes" in guide
