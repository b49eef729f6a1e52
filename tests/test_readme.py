"""Every command in the README runs, shortened to seconds by options that a user could give too."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import FAST, PATIENCE, PROJECT

BLOCKS = re.findall(r"```bash\n(.*?)```", (PROJECT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
COMMANDS = [line.split("#")[0].strip() for block in BLOCKS for line in block.splitlines() if line.strip()]
SHORT = ("device=cpu", *FAST, "train.log_every=1")


def test_the_readme_has_its_two_first_commands_and_make_knows_them():
    assert COMMANDS[:2] == ["make train", "make chat"]
    for line in (*COMMANDS[:2], "make sft", "make generate", "make test"):
        subprocess.run([*shlex.split(line), "--dry-run"], cwd=PROJECT, check=True, capture_output=True)


def test_the_readme_counts_the_plots_and_has_the_words_that_people_search_for():
    from positron.stories.plots import PLOTS

    text = " ".join((PROJECT / "README.md").read_text(encoding="utf-8").split())
    assert len(PLOTS) == 11
    assert "eleven plot skeletons" in text
    for words in (
        "gradient accumulation", "speculative decoding", "sliding window", "early stopping", "overfitting", "perplexity",
        "checkpoint", "smear", "device.share", "auto_size", "above the floor", "make chat",
    ):  # fmt: skip
        assert words in text, words


@pytest.mark.slow
def test_the_python_program_of_the_readme_runs(tmp_path):
    (program,) = re.findall(
        r"```python\n(import positron\n.*?)```", (PROJECT / "README.md").read_text("utf-8"), re.DOTALL
    )
    (tmp_path / "my.txt").write_text("The cat sat on the mat and looked at the moon.\n" * 200)
    tiny = 'max_steps=4, tokenizer="char", d_model=32, val_every=2, warmup_steps=1, **{"train.batch_tokens": 512}, '
    program = program.replace("max_steps=300, ", tiny).replace("max_steps=30, ", "max_steps=2, ")
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "Say 3." in done.stdout


def shortened(arguments: list[str]) -> list[str]:
    """The same command on a tiny model and corpus, for as many steps as its own horizon has hundreds."""
    steps = {
        a.partition("=")[0]: int(a.partition("=")[2]) for a in arguments if re.match(r"train\.(max_steps|stop_at)=", a)
    }
    steps = {key: -(-value // 100) for key, value in steps.items()} or {"train.max_steps": 3}
    kept = [a for a in arguments if not a.startswith((*steps, "device=", "budget="))]
    if kept != arguments and any(a.startswith("budget=") for a in arguments):
        kept, steps = [*kept, "budget=4s"], {}
    corpus = [a for a in SHORT if not (a.startswith("data.") and "data=text" in arguments)]
    if "experiment=size_sweep" in arguments and "-m" in arguments:
        corpus = [a.replace("d_model=32", "d_model=8,16,32") for a in corpus]
    if "experiment=lr_sweep" in arguments:
        corpus.append("optimizer.lr=1e-3,1e-2")
    return [*kept, *corpus, *(f"{key}={value}" for key, value in steps.items())]


SHORTENED = {
    "train": shortened,
    "sft": lambda arguments: [
        *arguments,
        "train.max_steps=2",
        *([] if "data=instruct" in arguments else ["data.examples=60"]),
        "precision=fp32",
        "data.val_fraction=0.5",
    ],
    "evaluate": lambda arguments: [*arguments, "--count", "2", "--limit", "3000"],
    "compare": lambda arguments: [*arguments, "--limit", "3000"],
    "chat": lambda arguments: [*arguments, "--max-tokens", "5"],
}


def plain(words: list[str], folder: Path) -> None:
    """A script, or a command of numpy_ref, as a process of its own."""
    if words[1].startswith("scripts/"):
        words = [words[0], str(PROJECT / words[1]), *words[2:]]
    if words[2] == "numpy_ref.train":
        words += ["--epochs", "1", "--context", "16", "--batch", "500"]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    done = subprocess.run([sys.executable, *words[1:]], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{words}\n{done.stderr}"
    assert done.stdout.strip(), words


def test_every_command_of_the_readme_runs(door, start, tmp_path):
    """In order, in one folder, as a reader would: later ones use what earlier ones made."""
    (tmp_path / "my.txt").write_text("The cat sat on the mat and looked at the moon.\n" * 200)
    talks = [{"instruction": f"Who is {n}?", "output": f"Tom {n}."} for n in range(30)]
    (tmp_path / "my.jsonl").write_text("".join(json.dumps(talk) + "\n" for talk in talks))
    long = ("model.context_length=1024", "train.batch_tokens=2048")  # letters of a story, with the request for it
    quickstart = door("train", "experiment=quickstart", *SHORT, *long, "train.max_steps=5")
    assert quickstart.code == 0, quickstart.err
    assert len(COMMANDS) > 8
    for command in COMMANDS[2:]:
        words = shlex.split(command)
        if words[1].startswith("scripts/") or words[2].startswith("numpy_ref."):
            plain(words, tmp_path)
            continue
        assert words[:2] == ["python", "-m"], command
        if words[2] == "positron.dashboard":  # it stays until Ctrl-C: its own test asks for its pages
            page = start("dashboard", "--port", "0")
            while "Ctrl-C ends it" not in page.said():
                assert page.process.is_alive(), command
            os.kill(page.process.pid, signal.SIGINT)
            assert page.wait().code == 0
            continue
        name, arguments = words[2].removeprefix("positron."), words[3:]
        stdin = "Tell me a story.\n" if name == "chat" and arguments[0].startswith("--") else ""
        result = door(name, *SHORTENED.get(name, list)(arguments), stdin=stdin)
        assert result.code == 0, f"{command}\n{result.err}"
        assert result.out.strip(), command


def test_generate_writes_reads_stdin_and_refuses_nonsense(door, tmp_path):
    made = door("train", "experiment=quickstart", *SHORT, "train.max_steps=3")
    assert made.code == 0, made.err
    first = door("generate", "It's fine (é😀), a=b, null", "--max-tokens", "5", "--seed", "4")
    assert first.out.startswith("It's fine (é😀), a=b, null")
    assert first.out == door("generate", "It's fine (é😀), a=b, null", "--max-tokens", "5", "--seed", "4").out
    assert door("generate", "-", "--max-tokens", "3", stdin="Tom\n").out.startswith("Tom")
    greedy = {door("generate", "Tom", "--temperature", "0", "--max-tokens", "9", "--seed", s).out for s in "12"}
    assert len(greedy) == 1
    for wrong in (
        ["--temperature", "-1"],
        ["--top-p", "0"],
        ["--top-k", "0"],
        ["--run", "nobody"],
        ["--max-tokens", "0"],
    ):
        result = door("generate", "x", *wrong)
        assert (result.code, result.err.count("\n")) == (2, 1), result.err


def test_the_doctor_finds_this_machine_fit(door):
    result = door("doctor")
    assert result.code == 0, result.out + result.err
    assert "FAIL" not in result.out
    for what in ("torch", "disk", "cpu matmul", "bfloat16 causality", "float32 attention", "wandb key", "ready"):
        assert what in result.out


def test_the_doctor_calls_a_leak_a_leak(monkeypatch):
    import torch

    from positron import doctor
    from positron.model import gpt

    monkeypatch.setattr(gpt, "causal_attention", lambda q, k, v, dropout, mask, window: torch.softmax(q @ k.mT, -1) @ v)
    finding = doctor.causality(torch.device("cpu"), torch.float32)
    assert not finding.good
    assert "see the future" in finding.says


@pytest.mark.parametrize("option", ["--cfg job", "--help"])
def test_a_wheel_carries_conf_and_works_anywhere(tmp_path, option):
    """Built without a network by the build backend itself; conf/ is package data."""
    from hatchling.builders.wheel import WheelBuilder

    (wheel,) = WheelBuilder(str(PROJECT)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    assert (tmp_path / "site" / "positron" / "conf" / "model" / "tinygpt.yaml").exists()
    assert (tmp_path / "site" / "positron" / "evaluation" / "report.html.jinja").exists()
    code = f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); sys.argv = ['train', *{option.split()!r}]\n"
    code += "import positron.train as t; assert t.__file__.startswith(sys.path[0]), t.__file__; t.main()"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE
    )
    assert result.returncode == 0, result.stderr
    assert "optimizer" in result.stdout
