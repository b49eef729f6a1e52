"""Every command in the README and the guides runs, shortened to seconds by options that a user could give too."""

import importlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import FAST, PATIENCE, PROJECT

import positron.cli
from positron.cli.command_line import read_command_line
from positron.cli.request import compose
from positron.settings import NOT_READ_BY
from positron.system.commands import module_of

GUIDES = (
    *("training", "resuming", "data", "tokenizers", "fine-tuning", "preference", "reinforcement-learning"),
    *("distillation", "chat-and-generation", "evaluation"),
    *("experiments", "serve", "monitoring", "import", "export", "devices", "python", "numpy", "windows"),
)
PAGES = [
    PROJECT / "README.md",
    *(PROJECT / "docs" / "guides" / f"{name}.md" for name in GUIDES),
    PROJECT / "docs" / "troubleshooting.md",
    PROJECT / "docs" / "faq.md",
]


def printed_commands(page: Path, kinds: str = "bash") -> list[str]:
    """The lines of a page's shell blocks, without comments; blocks of the kind `sh` cannot run in seconds."""
    blocks = re.findall(rf"```(?:{kinds})\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]
    return [" ".join(line.split(" # ")[0].split()) for line in lines]


def quoted_commands(page: Path) -> list[str]:
    """The commands in a page's sentences and tables; those with a placeholder, such as NAME or ..., are left out."""
    quoted = re.findall(r"`((?:positron |python -m positron\.)[^`]*)`", page.read_text(encoding="utf-8"))
    return [command for command in quoted if not re.search(r"[A-Z]{2}|\.\.\.|…", command.replace("OMP", ""))]


COMMANDS = [command for page in PAGES for command in printed_commands(page)]
SHORT = ("device=cpu", *FAST, "train.log_every=1")
# What a test only parses: it needs a network or seconds of processes, or its own test runs it.
PARSED_ONLY = re.compile(
    r"positron export|positron import|smollm|pip install|data=hub|"
    r"experiment=fineweb|hydra/|devices=2|logger=wandb|cache --clean|"
    r"^positron train experiment=quickstart$|^torchrun "
)


def words_of(command: str) -> tuple[str, list[str]]:
    """The name of a command of Positron and its arguments, however it is started."""
    command = re.sub(r"^torchrun .* -m positron\.", "positron ", command)
    name, *arguments = shlex.split(command.replace("python -m positron.", "positron "))[1:]
    return name, arguments


def test_the_readme_has_its_first_commands_and_make_knows_them():
    assert printed_commands(PROJECT / "README.md")[:2] == ["make train", "make chat"]
    assert "positron train model=auto budget=5min data=text data.path=my.txt" in (PROJECT / "README.md").read_text()
    for line in (*COMMANDS[:2], "make sft", "make generate", "make test", "make docs"):
        subprocess.run([*shlex.split(line), "--dry-run"], cwd=PROJECT, check=True, capture_output=True)


def test_the_readme_lists_every_command():
    text = (PROJECT / "README.md").read_text(encoding="utf-8")
    assert not [command for command in positron.cli.COMMANDS if f"`positron {command}`" not in text]


def test_the_readme_is_short_enough_to_be_read():
    assert len((PROJECT / "README.md").read_text(encoding="utf-8").splitlines()) <= 130


def test_the_documents_have_the_words_that_people_search_for_and_count_the_plots():
    from positron.stories.plots import PLOTS

    text = " ".join(" ".join(page.read_text(encoding="utf-8").split()) for page in PAGES)
    assert len(PLOTS) == 11
    assert "eleven plots" in text
    for words in (
        "gradient accumulation",
        "gradient checkpointing",
        "speculative decoding",
        "sliding window",
        "early stopping",
        "overfitting",
        "perplexity",
        "checkpoint",
        "smear",
        "device.share",
        "auto_size",
        "above the floor",
        "make chat",
        "out of memory",
        "fine-tun",
        "LoRA",
        "learning rate",
        "bits per byte",
        "scaling law",
        "TensorBoard",
        "NaN",
    ):
        assert words.lower() in text.lower(), words


LEARN = sorted((PROJECT / "docs" / "learn").glob("*.md"))
OTHERS = [
    PROJECT / "docs" / f"{name}.md" for name in ("SCALE", "migration", "speed", "guides/index", "guides/look-inside")
]
PARSED = [command for page in [*PAGES, *OTHERS] for command in printed_commands(page, "bash|sh")]
PARSED += [command for page in [*PAGES, *LEARN, *OTHERS] for command in quoted_commands(page)]


@pytest.mark.parametrize(
    "command", sorted({c for c in PARSED if c.startswith(("positron", "python -m positron", "torchrun"))})
)
def test_the_command_line_of_every_printed_command_is_accepted(command, tmp_path, monkeypatch, kept_run):
    """By the reader of settings and by Hydra's composition, or by the command's own parser."""
    monkeypatch.chdir(tmp_path)
    name, arguments = words_of(command)
    if not arguments:  # in a sentence, its name stands for the command
        assert name.removesuffix("_") in positron.cli.COMMANDS  # the module of `import` is import_
        return
    if name not in NOT_READ_BY:
        importlib.import_module(f"positron.{module_of(name)}").arguments().parse_args(arguments)
        return
    if arguments == ["--help"]:
        return
    for teacher in re.findall(r"[\w-]+", command.partition("teachers=")[2].split()[0] if name == "distill" else ""):
        shutil.copytree(kept_run.folder, tmp_path / "outputs" / teacher)
    line = read_command_line(arguments, name, PROJECT / "conf")
    words = [word.split(",")[0] if line.is_sweep and "(" not in word else word for word in line.words]
    words = [word for word in words if "=" in word and not word.startswith("hydra") and "interval" not in word]
    values = compose(name, ["name=named", *words])  # Hydra makes the usual name from its choices
    warmup, steps = values["schedule"]["warmup_steps"], values["train"]["max_steps"]
    assert "auto" in (warmup, steps) or warmup < steps, "the learning rate would never fall"


@pytest.mark.slow
def test_the_python_programs_of_the_guides_run(tmp_path):
    programs = [re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL) for page in PAGES]
    loading, program = (text for texts in programs for text in texts)
    (tmp_path / "my.txt").write_text("The cat sat on the mat and looked at the moon.\n" * 200)
    tiny = 'max_steps=4, tokenizer="char", d_model=32, val_every=2, warmup_steps=1, **{"train.batch_tokens": 512}, '
    program = program.replace("max_steps=300, ", tiny).replace("max_steps=30, ", "max_steps=2, ")
    program += loading.replace("outputs/quickstart", "outputs/from_python")
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
    of_stories = not {"data=text", "experiment=addition"} & set(arguments)
    corpus = [a for a in SHORT if of_stories or not a.startswith("data.")]
    if any(a.startswith("tokenizer") for a in arguments):
        corpus.remove("tokenizer=char")
    if any(a.startswith("model.window") for a in arguments):
        kept = ["model.window=8" if a.startswith("model.window") else a for a in kept]
    if "experiment=size_sweep" in arguments and "-m" in arguments:
        corpus = [a.replace("d_model=32", "d_model=8,16,32") for a in corpus]
    if "experiment=lr_sweep" in arguments:
        corpus.append("optimizer.lr=1e-3,1e-2")
    return [*kept, *corpus, *(f"{key}={value}" for key, value in steps.items())]


SHORTENED = {
    "train": shortened,
    "distill": lambda arguments: [
        *(a for a in arguments if not a.startswith("train.max_steps")),
        *(a for a in SHORT if a != "tokenizer=char"),
        "train.max_steps=3",
    ],
    "sft": lambda arguments: [
        *arguments,
        "train.max_steps=2",
        *([] if "data=instruct" in arguments else ["data.examples=60"]),
        "precision=fp32",
        "data.val_fraction=0.5",
    ],
    "reinforce": lambda arguments: [
        *arguments,
        "train.max_steps=2",
        *(f"reinforce.{key}=2" for key in ("prompts", "samples", "val_prompts", "val_samples", "max_tokens")),
        *([] if "experiment=addition_reward" in arguments else ["data.examples=60"]),
        "precision=fp32",
        "data.val_fraction=0.5",
    ],
    "prefer": lambda arguments: [
        *arguments,
        "train.max_steps=2",
        *([] if "data=preferences" in arguments else ["data.examples=60"]),
        "precision=fp32",
        "data.val_fraction=0.5",
    ],
    "evaluate": lambda arguments: [*arguments, "--count", "2", "--limit", "3000"],
    "compare": lambda arguments: [*arguments, "--limit", "3000"],
    "research": lambda arguments: [arguments[0], "budget=1s"],  # ends after the first run
    "floor": lambda arguments: [
        *(a.replace("docs/", f"{PROJECT}/docs/").replace("{out}", "{out} --steps 5") for a in arguments),
        *("--documents", "5"),
    ],
    "chat": lambda arguments: [*arguments, "--max-tokens", "5"],
}


def plain(words: list[str], folder: Path) -> None:
    """A script, or a command of numpy_ref, as a process of its own."""
    if words[1].startswith("scripts/"):
        words = [words[0], str(PROJECT / words[1]), *words[2:]]
    if "numpy_ref.train" in words:
        words += ["--epochs", "1", "--context", "16", "--batch", "500"]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    done = subprocess.run([sys.executable, *words[1:]], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{words}\n{done.stderr}"
    assert done.stdout.strip(), words


@pytest.mark.parametrize(
    "pages",
    [PAGES[:1], *(pytest.param(pages, marks=pytest.mark.slow) for pages in (PAGES[1:5], PAGES[5:12], PAGES[12:]))],
    ids=lambda pages: pages[0].stem,
)
def test_every_command_of_the_readme_and_the_guides_runs(pages, run_command, start, tmp_path):
    """In order, in one folder, as a reader would: later ones use what earlier ones made."""
    (tmp_path / "my.txt").write_text("The cat sat on the mat and looked at the moon.\n" * 200)
    talks = [{"instruction": f"Who is {n}?", "output": f"Tom {n}."} for n in range(30)]
    (tmp_path / "my.jsonl").write_text("".join(json.dumps(talk) + "\n" for talk in talks))
    pairs = [{"prompt": f"Who is {n}?", "chosen": f"Tom {n}.", "rejected": "No."} for n in range(30)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    recipe = [*SHORT, "train.max_steps=2"]
    (tmp_path / "candidates.yaml").write_text(
        json.dumps({"base": recipe, "candidates": {"high": ["optimizer.lr=1e-2"]}})
    )
    long = ("model.context_length=1024", "train.batch_tokens=2048")  # letters of a story, with the request for it
    quickstart = run_command("train", "experiment=quickstart", *SHORT, *long, "train.max_steps=5", whole=True)
    assert quickstart.code == 0, quickstart.err
    for command in dict.fromkeys(command for page in pages for command in printed_commands(page)):
        if command.startswith(("make ", "source ")) or PARSED_ONLY.search(command):
            continue
        if command.startswith(("python scripts/", "python -m numpy_ref.")):
            plain(shlex.split(command), tmp_path)
            continue
        name, arguments = words_of(command)
        if name in ("dashboard", "serve"):  # they stay until Ctrl-C: their own tests send requests
            page = start(name, *arguments, "--port", "0")
            while "press Ctrl-C to stop" not in page.said():
                assert page.process.is_alive(), command
            os.kill(page.process.pid, signal.SIGINT)
            assert page.wait().code == 0
            continue
        stdin = "Tell me a story.\n" if name == "chat" and arguments[0].startswith("--") else ""
        result = run_command(name, *SHORTENED.get(name, list)(arguments), stdin=stdin, whole=True)
        assert result.code == 0, f"{command}\n{result.err}"
        assert result.out.strip(), command


def test_generate_writes_reads_stdin_and_refuses_nonsense(run_command, tmp_path):
    made = run_command("train", "experiment=quickstart", *SHORT, "train.max_steps=3")
    assert made.code == 0, made.err
    first = run_command("generate", "It's fine (é😀), a=b, null", "--max-tokens", "5", "--seed", "4")
    assert first.out.startswith("It's fine (é😀), a=b, null")
    assert first.out == run_command("generate", "It's fine (é😀), a=b, null", "--max-tokens", "5", "--seed", "4").out
    assert run_command("generate", "-", "--max-tokens", "3", stdin="Tom\n").out.startswith("Tom")
    greedy = {run_command("generate", "Tom", "--temperature", "0", "--max-tokens", "9", "--seed", s).out for s in "12"}
    assert len(greedy) == 1
    for wrong in (
        ["--temperature", "-1"],
        ["--top-p", "0"],
        ["--top-k", "0"],
        ["--run", "nobody"],
        ["--max-tokens", "0"],
    ):
        result = run_command("generate", "x", *wrong)
        assert (result.code, result.err.count("\n")) == (2, 1), result.err


def test_the_doctor_finds_this_machine_fit(run_command):
    result = run_command("doctor")
    assert result.code == 0, result.out + result.err
    assert "FAIL" not in result.out
    for what in ("torch", "disk", "cpu matmul", "bfloat16 causality", "float32 attention", "wandb key", "ready"):
        assert what in result.out


@pytest.mark.parametrize("group", [2, 4, 8, 32, 160])
@pytest.mark.parametrize("widths", [{32, 64, 128}, {64}])
def test_the_doctor_calls_a_leak_a_leak(group, widths, monkeypatch):
    """Also one within groups of tokens, in the kernel of a single head width."""
    import torch

    from positron import doctor
    from positron.model import gpt

    def leaks(q, k, v, dropout, mask, window):
        place = torch.arange(q.shape[2])
        size = group if q.shape[3] in widths else 1
        future = place[None] // size > place[:, None] // size
        return torch.softmax((q @ k.mT).masked_fill(future, float("-inf")), -1) @ v

    monkeypatch.setattr(gpt, "causal_attention", leaks)
    finding = doctor.causality(torch.device("cpu"), torch.float32)
    assert not finding.good
    assert "influenced by later tokens" in finding.says


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
