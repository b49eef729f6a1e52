"""The chat, through a pseudo-terminal as a user sees it, and through pipes as a script does."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pexpect
import pytest
from conftest import PATIENCE, PROJECT, Result, tiny

from positron.chat import command
from positron.config import DataConfig, SFTConfig
from positron.inference.dialogue import Dialogue
from positron.inference.sampling import PRESETS
from positron.inference.text_model import Writer
from positron.run.folder import Run
from positron.run.load import load_model
from positron.sft import sft
from positron.system.errors import UserError
from positron.text import conversation
from positron.text.conversation import Message
from positron.train import train

if sys.platform == "win32":
    pytest.skip("Windows has no pseudo-terminal", allow_module_level=True)

# the prompt begins and ends with the terminal's bracketed paste: what lies between an end and a beginning is the answer
PROMPT, ENTERED = "\x1b[?2004h", "\x1b[?2004l"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model with a context of 64, and what a few conversations made of it."""
    folder = tmp_path_factory.mktemp("runs")
    config = tiny(folder, train__max_steps=20, model__context_length=64, train__batch_tokens=1024)
    train(config, folder / "outputs" / "base")
    records = [{"instruction": f"Is it {n}?", "output": f"It is {n}."} for n in range(30)]
    (folder / "talks.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    tuned = dataclasses.replace(
        config,
        data=DataConfig("instruct", str(folder / "talks.jsonl"), val_fraction=0.2, dir=str(folder / "data")),
        init_from=str(folder / "outputs" / "base"),
        sft=SFTConfig(replay_ratio=0.0, patience=0),
        train=dataclasses.replace(config.train, max_steps=10, micro_batch_size=4, sample_prompt=None),
    )
    sft(tuned, folder / "outputs" / "tuned")
    return folder


@pytest.fixture
def spawn(runs: Path) -> Iterator[Callable[..., pexpect.spawn]]:
    """Chats in terminals of their own, which end with the test whatever becomes of it."""
    children = []

    def spawn(*arguments: str) -> pexpect.spawn:
        child = pexpect.spawn(
            sys.executable,
            ["-m", "positron.chat", *arguments],
            cwd=str(runs),
            encoding="utf-8",
            timeout=PATIENCE,
            env={**os.environ, "PYTHONPATH": str(PROJECT), "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"},
            dimensions=(50, 400),
        )
        children.append(child)
        child.delaybeforesend = None
        child.expect_exact(PROMPT)
        return child

    yield spawn
    for child in children:
        if child.isalive():  # close(force=True) waits a tenth of a second only for the end of the process
            child.kill(signal.SIGKILL)
            child.wait()
        child.close()


def say(child: pexpect.spawn, line: str) -> str:
    """Type a line; what is shown from then to the next prompt."""
    child.sendline(line)
    child.expect_exact(ENTERED)
    child.expect_exact(PROMPT)
    return str(child.before)


@pytest.fixture
def chat(spawn: Callable[..., pexpect.spawn]) -> pexpect.spawn:
    return spawn("--run", "tuned", "--max-tokens", "6")


@pytest.mark.slow
def test_a_chat_of_200_turns_in_a_context_of_64(chat: pexpect.spawn) -> None:
    """Emoji, markers that a user types, and words that the model never saw are only text; oldest turns go, with a notice."""
    lines = ["Is it 7?", "<|end|>", "<|endoftext|><|user|>", "Hello 😀 é", "x" * 300, "why"]
    notices = cuts = 0
    for turn in range(200):
        shown = " ".join(say(chat, lines[turn % len(lines)]).split())  # the terminal's width may break a notice
        assert "Traceback" not in shown
        notices += "no longer fit" in shown and "the model does not read" in shown
        cuts += "cut after 6 tokens" in shown
    assert notices > 100
    assert cuts > 100
    assert chat.isalive()
    say(chat, "settings max_tokens 3")
    chat.sendline("quit")
    chat.expect(pexpect.EOF)
    chat.close()
    assert chat.exitstatus == 0


def test_ctrl_c_stops_an_answer_and_keeps_it_and_leaves_at_the_prompt(
    spawn: Callable[..., pexpect.spawn], tmp_path: Path
) -> None:
    child = spawn("--run", "base", "--max-tokens", "1000000")  # goes on until it is stopped
    child.sendline("Once")
    child.expect_exact(ENTERED)
    child.expect(r"(?s)Once.{20,}")  # the answer has begun
    child.sendintr()
    child.expect_exact(" ...")
    child.expect_exact(PROMPT)
    child.sendintr()  # pressed twice: the second one must not end the chat
    child.expect_exact(PROMPT)
    say(child, f"save {tmp_path / 'chat.json'}")
    saved = json.loads((tmp_path / "chat.json").read_text())["messages"]
    assert [message["role"] for message in saved] == ["user", "assistant"]
    assert saved[1]["content"]
    child.sendintr()
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


@pytest.mark.slow
def test_settings_change_the_answers_at_once(chat: pexpect.spawn) -> None:
    assert re.search(r"temperature +0\.3", say(chat, "settings"))
    assert re.search(r"temperature +0\.0", say(chat, "/settings temperature 0"))
    assert "preset             creative" in say(chat, "settings preset creative")
    assert "temperature must be a finite number" in say(chat, "settings temperature -1")
    assert "choose from" in say(chat, "settings heat 3")
    assert "did you mean temperature?" in say(chat, "settings temprature 0.5")
    assert re.search(r"max_tokens +2\b", say(chat, "settings max_tokens=2"))
    assert "there is no command /sing" in say(chat, "/sing")
    assert "save FILE" in say(chat, "help")


@pytest.fixture
def dialogue(runs: Path) -> Dialogue:
    run = Run(runs / "outputs" / "tuned")
    model, tokenizer, _ = load_model(run)
    return Dialogue(Writer(model, tokenizer), run.is_chat, max_tokens=6)


def test_a_chat_goes_on_where_it_was_saved(dialogue: Dialogue, tmp_path: Path) -> None:
    for name in (str(tmp_path / "a.json"), str(tmp_path / "with a blank.json")):
        dialogue.reset()
        list(dialogue.ask("Is it 3?"))
        dialogue.change("temperature", "0.7")
        command(dialogue, f"/save {name}")
        messages, sampling = list(dialogue.messages), dialogue.sampling
        command(dialogue, "reset")
        dialogue.change("preset", "creative")
        assert dialogue.messages == []
        command(dialogue, f"/load {name}")
        assert (dialogue.messages, dialogue.sampling) == (messages, sampling)
    (tmp_path / "broken.json").write_text('{"settings": {"heat": 3, "max_tokens": 4}, "messages": []}')
    for wrong in (tmp_path / "broken.json", tmp_path / "none.json"):
        with pytest.raises(UserError):
            command(dialogue, f"load {wrong}")
    assert (dialogue.messages, dialogue.sampling) == (messages, sampling)


def test_a_sentence_that_begins_like_a_command_goes_to_the_model(dialogue: Dialogue) -> None:
    for text in (
        "save me from the rain",
        "load the cart",
        "quit it now",
        "help me with this",
        "reset your mind please",
        "settings of the story",
        "load shedding",
        "system failure at noon",
        "save the princess",
    ):
        assert command(dialogue, text) is None, text


def test_the_system_message_stays_when_turns_go(dialogue: Dialogue) -> None:
    dialogue.system = "be kind"
    for _ in range(12):
        list(dialogue.ask("Is it 12?"))
        assert dialogue.messages[0] == Message("system", "be kind")
    dialogue.reset()
    assert dialogue.messages == [Message("system", "be kind")]
    dialogue.system = None
    assert dialogue.messages == []


def test_the_model_sees_the_same_template_as_in_training(dialogue: Dialogue, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    engine = dialogue.writer.engine()
    stream = engine.stream
    monkeypatch.setattr(engine, "stream", lambda ids, *a, **k: seen.append(ids) or stream(ids, *a, **k))
    list(dialogue.ask("Is it 1?"))
    list(dialogue.ask("<|end|>"))
    ids, _ = conversation.encode(dialogue.messages, dialogue.writer.tokenizer)
    answer = dialogue.writer.tokenizer.encode(dialogue.messages[-1].content)
    assert seen[1] == ids[: len(ids) - len(answer) - 1]
    assert seen[1].count(dialogue.writer.tokenizer.special_id("<|end|>")) == 3  # the typed one is only letters


def test_one_question_prints_just_the_answer_and_pipes_work(run_command: Callable[..., Result], runs: Path) -> None:
    first = run_command("chat", "Is it 4?", "--run", "tuned", "--temperature", "0", "--max-tokens", "20", folder=runs)
    assert (first.code, first.err) == (0, "")
    piped = run_command(
        "chat", "--run", "tuned", "--temperature", "0", "--max-tokens", "20", folder=runs, stdin="Is it 4?\n\n"
    )
    assert piped.out == first.out
    named = run_command("chat", "--run", "tuned", "--max-tokens", "4", folder=runs, stdin="/quit\nhello\n")
    assert named.err == "(/quit goes to the model, because commands work only in a terminal)\n"
    base = run_command("chat", "Once", "--run", "base", "--max-tokens", "4", folder=runs)
    assert base.out.startswith("Once")


@pytest.mark.slow
def test_a_base_model_says_that_it_continues_texts(spawn: Callable[..., pexpect.spawn]) -> None:
    child = spawn("--run", "base")
    assert "it continues what you begin" in child.before
    child.sendeof()
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


@pytest.mark.slow
def test_a_reader_that_leaves_early_is_no_error(runs: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(PROJECT)!r}); sys.argv = ['chat', 'Once', '--run', 'base', '--max-tokens'"
    )
    code += ", '400']; import positron.chat; positron.chat.main()"
    writer = subprocess.Popen([sys.executable, "-c", code], cwd=runs, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert writer.stdout is not None
    writer.stdout.read(1)
    writer.stdout.close()
    assert writer.wait(PATIENCE) == 0
    assert writer.stderr is not None
    assert writer.stderr.read() == b"loading base\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--run", "nobody"), "no run nobody"),
        (("--temperature", "-1"), "temperature"),
        (("--top-p", "1.5"), "--top-p must be above 0 and at most 1, not 1.5"),
        (("--preset", "wild"), "there is no preset wild"),
        (("--max-tokens", "0"), "--max-tokens must be at least 1, not 0"),
        (
            ("--run", "base", "--system", "You are a pirate"),
            "a system prompt needs a run that was fine-tuned on conversations",
        ),
    ],
)
def test_chat_refuses_in_one_line(
    run_command: Callable[..., Result], runs: Path, arguments: tuple[str, ...], says: str
) -> None:
    result = run_command("chat", "hello", *arguments, folder=runs)
    assert (result.code, result.err.count("\n")) == (2, 1), result.err
    assert says in result.err


def test_chat_defaults_are_those_that_people_like(dialogue: Dialogue) -> None:
    from positron.chat import arguments

    assert arguments().parse_args([]).max_tokens is None  # an answer may be as long as the context allows
    assert (PRESETS["precise"].temperature, PRESETS["precise"].top_p) == (0.3, 0.8)
    assert dialogue.sampling == PRESETS["precise"]


def test_evaluate_asks_a_chat_model_for_stories(run_command: Callable[..., Result], runs: Path) -> None:
    shown = run_command("evaluate", "--run", "tuned", "--instruct", "--count", "2", "--limit", "2000", folder=runs)
    assert shown.code == 0, shown.err
    for what in ("2 unseen requests", "followed        0.0%", "accepted", "by themselves"):
        assert what in shown.out
    facts = json.loads(
        run_command("evaluate", "--run", "tuned", "--instruct", "--count", "1", "--json", folder=runs).out
    )
    assert facts["instruct"]["count"] == 1
