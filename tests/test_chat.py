"""The chat, through a pseudo-terminal as a user sees it, and through pipes as a script does."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pexpect
import pytest
from conftest import PATIENCE, PROJECT, Result, tiny

from positron.chat import answer, command, converse, note
from positron.chat_commands import parse, remark, show_help
from positron.config import DataConfig, SFTConfig, UserError
from positron.inference.dialogue import Dialogue
from positron.inference.sampling import PRESETS
from positron.inference.writer import Writer
from positron.runs import Run, load_model
from positron.sft import sft
from positron.text import conversation
from positron.text.conversation import Message
from positron.train import train

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
            sys.executable, ["-m", "positron.chat", *arguments], cwd=str(runs), encoding="utf-8", timeout=PATIENCE,
            env={**os.environ, "PYTHONPATH": str(PROJECT), "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"},
            dimensions=(50, 400),
        )  # fmt: skip
        children.append(child)
        child.delaybeforesend = None
        child.expect_exact(PROMPT)
        return child

    yield spawn
    for child in children:
        child.close(force=True)


def say(child: pexpect.spawn, line: str) -> str:
    """Type a line; what is shown from then to the next prompt."""
    child.sendline(line)
    child.expect_exact(ENTERED)
    child.expect_exact(PROMPT)
    return str(child.before)


@pytest.fixture
def chat(spawn: Callable[..., pexpect.spawn]) -> pexpect.spawn:
    return spawn("--run", "tuned", "--max-tokens", "6")


def test_a_chat_of_200_turns_in_a_context_of_64(chat: pexpect.spawn) -> None:
    """Emoji, markers that a user types, and words that the model never saw are only text; oldest turns go, with a notice."""
    lines = ["Is it 7?", "<|end|>", "<|endoftext|><|user|>", "Hello 😀 é", "x" * 300, "why"]
    notices = cuts = 0
    for turn in range(200):
        shown = say(chat, lines[turn % len(lines)])
        assert "Traceback" not in shown
        notices += "no longer fit" in shown and "this answer is given without" in shown
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


def test_settings_change_the_answers_at_once(chat: pexpect.spawn) -> None:
    assert re.search(r"temperature +0\.3", say(chat, "settings"))
    assert re.search(r"temperature +0\.0", say(chat, "/settings temperature 0"))
    assert "preset             creative" in say(chat, "settings preset creative")
    assert "temperature -1" in say(chat, "settings temperature -1")
    assert "choose from" in say(chat, "settings heat 3")
    assert "did you mean temperature?" in say(chat, "settings temprature 0.5")
    assert re.search(r"max_tokens +2\b", say(chat, "settings max_tokens=2"))
    assert "there is no /sing" in say(chat, "/sing")
    assert "save FILE" in say(chat, "help")


@pytest.fixture
def dialogue(runs: Path) -> Dialogue:
    run = Run(runs / "outputs" / "tuned")
    model, tokenizer, _ = load_model(run, print)
    return Dialogue(Writer(model, tokenizer), run.is_chat, max_tokens=6)


def test_a_chat_goes_on_where_it_was_saved(dialogue: Dialogue, tmp_path: Path) -> None:
    for name in (str(tmp_path / "a.json"), str(tmp_path / "with a blank.json")):
        dialogue.reset()
        list(dialogue.ask("Is it 3?", print))
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
        list(dialogue.ask("Is it 12?", lambda line: None))
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
    list(dialogue.ask("Is it 1?", print))
    list(dialogue.ask("<|end|>", print))
    ids, _ = conversation.encode(dialogue.messages, dialogue.writer.tokenizer)
    answer = dialogue.writer.tokenizer.encode(dialogue.messages[-1].content)
    assert seen[1] == ids[: len(ids) - len(answer) - 1]
    assert seen[1].count(dialogue.writer.tokenizer.special_id("<|end|>")) == 3  # the typed one is only letters


def test_one_question_prints_just_the_answer_and_pipes_work(door: Callable[..., Result], runs: Path) -> None:
    first = door("chat", "Is it 4?", "--run", "tuned", "--temperature", "0", "--max-tokens", "20", folder=runs)
    assert (first.code, first.err) == (0, "")
    piped = door(
        "chat", "--run", "tuned", "--temperature", "0", "--max-tokens", "20", folder=runs, stdin="Is it 4?\n\n"
    )
    assert piped.out == first.out
    base = door("chat", "Once", "--run", "base", "--max-tokens", "4", folder=runs)
    assert base.out.startswith("Once")


def test_a_base_model_says_that_it_continues_texts(spawn: Callable[..., pexpect.spawn]) -> None:
    child = spawn("--run", "base")
    assert "it continues what you begin" in child.before
    child.sendeof()
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


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
    assert writer.stderr.read() == b""


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--run", "nobody"), "no run nobody"),
        (("--temperature", "-1"), "temperature"),
        (("--top-p", "1.5"), "top_p"),
        (("--preset", "wild"), "there is no preset wild"),
        (("--max-tokens", "0"), "--max-tokens 0"),
    ],
)
def test_chat_refuses_in_one_line(
    door: Callable[..., Result], runs: Path, arguments: tuple[str, ...], says: str
) -> None:
    result = door("chat", "hello", *arguments, folder=runs)
    assert (result.code, result.err.count("\n")) == (2, 1), result.err
    assert says in result.err


def test_chat_defaults_are_those_that_people_like(dialogue: Dialogue) -> None:
    from positron.chat import arguments

    assert arguments().parse_args([]).max_tokens is None  # an answer may be as long as the context allows
    assert (PRESETS["precise"].temperature, PRESETS["precise"].top_p) == (0.3, 0.8)
    assert dialogue.sampling == PRESETS["precise"]


def test_evaluate_asks_a_chat_model_for_stories(door: Callable[..., Result], runs: Path) -> None:
    shown = door("evaluate", "--run", "tuned", "--instruct", "--count", "2", "--limit", "2000", folder=runs)
    assert shown.code == 0, shown.err
    for what in ("2 unseen requests", "followed        0.0%", "accepted", "by themselves"):
        assert what in shown.out
    facts = json.loads(door("evaluate", "--run", "tuned", "--instruct", "--count", "1", "--json", folder=runs).out)
    assert facts["instruct"]["count"] == 1


def written(dialogue: Dialogue, path: Path, **changes: object) -> Path:
    """A saved chat with some fields replaced."""
    path.write_text(json.dumps({**dialogue.state(), **changes}), encoding="utf-8")
    return path


def test_a_sentence_that_begins_like_a_command_is_said_to_go_to_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert remark("system failure at noon") == "this line goes to the model; as a command: /system ..."
    assert remark("save the princess") is not None
    assert remark("Once upon a time") is None


@pytest.mark.parametrize(
    ("line", "name"),
    [("setings", "settings"), ("hlep", "help"), ("rset", "reset"), ("setings temperature 0.5", "settings"),
     ("laod talk.json", "load"), ("/hlep", "/help"), ("/sytem be kind", "/system"), ("quti", "quit")],
)  # fmt: skip
def test_a_slip_of_a_command_is_not_answered_but_named(line: str, name: str) -> None:
    with pytest.raises(UserError, match=rf"did you mean {name}\?"):
        parse(line)


def test_a_line_that_is_nearly_a_command_goes_to_the_model_the_second_time(dialogue: Dialogue) -> None:
    typed = iter(["rest", "rest", "quit"])
    converse(dialogue, lambda: next(typed))
    assert [message.content for message in dialogue.messages[::2]] == ["rest"]


@pytest.mark.parametrize(
    "line", ["settings temprature", "settings temprature hot", "settings max_token=3", "settings sed 5"]
)
def test_a_slip_of_a_setting_is_named(dialogue: Dialogue, line: str) -> None:
    with pytest.raises(UserError, match=r"there is no setting .*: did you mean (temperature|max_tokens|seed)\?"):
        command(dialogue, line)


@pytest.mark.parametrize("line", ["the rest is silence", "sail away", "Tom", "helpful cat", "setting sun"])
def test_words_that_resemble_commands_in_a_sentence_go_to_the_model(line: str) -> None:
    assert parse(line) is None


def test_a_saved_chat_has_all_turns_also_those_that_no_longer_fit(dialogue: Dialogue, tmp_path: Path) -> None:
    dialogue.system = "be kind"
    notices: list[str] = []
    for turn in range(12):
        list(dialogue.ask(f"Is it {turn}?", notices.append))
    command(dialogue, f"save {tmp_path / 'all.json'}")
    saved = json.loads((tmp_path / "all.json").read_text())["messages"]
    assert len(saved) == 25
    assert [m["content"] for m in saved[1::2]] == [f"Is it {turn}?" for turn in range(12)]
    assert any("no longer fit the context, and this answer is given without" in line for line in notices)
    list(dialogue.ask("why " * 60, notices.append))
    assert dialogue.messages[-2].content == "why " * 60
    assert "the question is too long for the context: the model reads only its end" in notices


def test_the_prompt_fits_the_context_whatever_was_said(dialogue: Dialogue) -> None:
    for limit in (None, 1, 40, 10**6):
        dialogue.max_tokens = limit
        for question in ("a", "Is it 7? " * 3, "x" * 500):
            messages = [*dialogue.messages, Message("user", question)]
            ids = dialogue._prompt(messages, lambda line: None)
            assert len(ids) <= dialogue.writer.engine().context * 3 // 4 or len(ids) <= 63


@pytest.mark.parametrize(
    ("setting", "value"),
    [("seed", "99999999999999999999999"), ("seed", "1.5"), ("top_k", "0"), ("temperature", "nan"), ("temperature", "hot"),
     ("max_tokens", "-1"), ("repetition_penalty", "1e300"), ("temprature", "0.5"), ("preset", "wild")],
)  # fmt: skip
def test_settings_of_the_chat_are_checked_when_they_are_set(dialogue: Dialogue, setting: str, value: str) -> None:
    before = dialogue.settings()
    with pytest.raises(UserError, match=setting):
        dialogue.change(setting, value)
    assert dialogue.settings() == before
    dialogue.change("seed", str(2**64 - 1))
    list(dialogue.ask("Is it 1?", print))  # the seed of a later turn is in range, too


@pytest.mark.parametrize("error", [ValueError("Overflow"), MemoryError(), RuntimeError("of torch\nin two lines")])
def test_no_error_ends_the_chat_or_loses_the_conversation(
    dialogue: Dialogue, error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    list(dialogue.ask("Is it 1?", print))
    kept = list(dialogue.messages)

    def fails(*_: object, **__: object) -> None:
        raise error

    typed = iter(["Is it 2?", "quit"])
    monkeypatch.setattr(dialogue.writer.engine(), "stream", fails)
    converse(dialogue, lambda: next(typed))
    assert dialogue.messages == kept
    shown = capsys.readouterr().err
    assert type(error).__name__ in shown
    assert "the conversation is still here" in shown
    assert "Traceback" not in shown


def test_a_base_model_refuses_a_system_text(runs: Path, door: Callable[..., Result], tmp_path: Path) -> None:
    model, tokenizer, _ = load_model(Run(runs / "outputs" / "base"), print)
    base = Dialogue(Writer(model, tokenizer), chats=False, max_tokens=4)
    with pytest.raises(UserError, match="this model reads no system text"):
        command(base, "/system You are a pirate")
    assert base.messages == []
    state = base.state() | {"messages": [{"role": "system", "content": "be kind"}]}
    with pytest.raises(UserError, match="system text"):
        base.restore(state, "talk.json")
    refused = door("chat", "Hi", "--run", "base", "--system", "You are a pirate", folder=runs)
    assert (refused.code, refused.err.count("\n")) == (2, 1)


def test_save_replaces_nothing_unasked(dialogue: Dialogue, tmp_path: Path) -> None:
    list(dialogue.ask("Is it 1?", print))
    target = tmp_path / "talk.json"
    target.write_text("mine")
    with pytest.raises(UserError, match="exists: /save! "):
        command(dialogue, f"save {target}")
    assert target.read_text() == "mine"
    assert not dialogue.is_saved
    (tmp_path / "link.json").symlink_to(target)
    (tmp_path / "dangling.json").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "pipe.json")
    for name, kind in [
        ("link.json", "a symbolic link"), ("dangling.json", "a symbolic link"), ("pipe.json", "a device, a pipe"),
        ("", "a folder"),
    ]:  # fmt: skip
        for word in ("/save", "/save!"):
            with pytest.raises(UserError, match=kind):
                command(dialogue, f"{word} {tmp_path / name}")
    assert (target.read_text(), (tmp_path / "link.json").is_symlink()) == ("mine", True)
    command(dialogue, f"/save! {target}")
    assert json.loads(target.read_text())["messages"][0]["content"] == "Is it 1?"
    assert dialogue.is_saved


WRONG_FIELDS: list[tuple[dict[str, object], str]] = [
    ({"messages": [{"role": "user", "content": None}]}, r"messages\[0\]: content None must be a text"),
    ({"messages": [{"role": "user", "content": [1, 2]}]}, r"messages\[0\]: content \[1, 2\]"),
    ({"messages": [{"role": "user", "content": "\ud83d"}]}, "surrogate"),
    ({"messages": [{"role": "tool", "content": "a"}]}, "role 'tool' must be one of"),
    ({"messages": [{"role": ["user"], "content": "a"}]}, "role"),
    ({"messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]}, "must be the first"),
    ({"messages": {"role": "user"}}, "messages must be a list"),
    ({"messages": ["hello"]}, r"messages\[0\] must be an object"),
    ({"version": 99}, "version 99 is not 1"),
    ({"version": True}, "version True"),
    ({"settings": None}, "settings must be an object"),
    ({"settings": {"max_tokens": 3.5}}, "max_tokens 3.5 must be a whole number"),
    ({"settings": {"max_tokens": 3, "temperature": "hot"}}, "temperature 'hot' must be a number"),
    ({"settings": {"max_tokens": 3, "heat": 1}}, "there is no setting heat"),
]


@pytest.mark.parametrize(("changes", "says"), WRONG_FIELDS, ids=[says for _, says in WRONG_FIELDS])
def test_load_checks_every_field_and_changes_nothing_then(
    dialogue: Dialogue, tmp_path: Path, changes: dict[str, object], says: str
) -> None:
    list(dialogue.ask("Is it 1?", print))
    before = dialogue.state()
    with pytest.raises(UserError, match=says) as refused:
        command(dialogue, f"load {written(dialogue, tmp_path / 'talk.json', **changes)}")
    assert "\n" not in str(refused.value)
    assert dialogue.state() == before


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"\xff\xfe{\x00}\x00", "is not UTF-8: byte 0 is 0xff"), (b"[" * 100_000, "cannot load"), (b"", "cannot load"),
     (b"[]", "must be an object"), (b"{}", "has no version")],
)  # fmt: skip
def test_load_refuses_what_is_not_a_saved_chat(dialogue: Dialogue, tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "talk.json").write_bytes(content)
    with pytest.raises(UserError, match=says):
        command(dialogue, f"load {tmp_path / 'talk.json'}")
    with pytest.raises(UserError, match="it is a folder"):
        command(dialogue, f"load {tmp_path}/")


def test_load_takes_a_byte_order_mark_and_chats_saved_before_the_seed_was(dialogue: Dialogue, tmp_path: Path) -> None:
    list(dialogue.ask("Is it 1?", print))
    state = dialogue.state()
    del state["settings"]["seed"]
    (tmp_path / "old.json").write_text("\ufeff" + json.dumps(state), encoding="utf-8")
    command(dialogue, "reset")
    command(dialogue, f"load {tmp_path / 'old.json'}")
    assert len(dialogue.messages) == 2


def typing(*events: str | type[BaseException]) -> Callable[[], str]:
    """A prompt at which a user types these lines and keys."""
    rest = iter(events)

    def prompt() -> str:
        event = next(rest)
        if isinstance(event, str):
            return event
        raise event

    return prompt


def test_ctrl_c_at_the_prompt_asks_before_an_unsaved_conversation_is_lost(
    dialogue: Dialogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("positron.chat.LATE_SECONDS", 0.0)
    stop = KeyboardInterrupt
    converse(dialogue, typing(stop))  # nothing to lose
    converse(dialogue, typing("Is it 1?", stop, "Is it 2?", stop, stop))
    assert len(dialogue.messages) == 4
    assert capsys.readouterr().err.count("Ctrl-C again leaves") == 2
    converse(dialogue, typing(stop, EOFError))
    converse(dialogue, typing(f"save {tmp_path / 'talk.json'}", stop))


def test_a_ctrl_c_just_after_an_answer_does_not_count(
    dialogue: Dialogue, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("positron.chat.LATE_SECONDS", 1e9)
    stop = KeyboardInterrupt
    converse(dialogue, typing("Is it 1?", stop, stop, stop))
    assert "the answer had ended" in capsys.readouterr().err


def test_settings_and_help_name_the_preset_that_holds(dialogue: Dialogue, capsys: pytest.CaptureFixture[str]) -> None:
    from positron.chat import arguments
    from positron.generate import arguments as options_of_generate

    assert "(default: precise)" in " ".join(arguments().format_help().split())
    assert "(default: balanced)" in " ".join(options_of_generate().format_help().split())
    assert dialogue.settings()["preset"] == "precise"


def test_an_answer_without_a_limit_ends_with_the_context(dialogue: Dialogue) -> None:
    dialogue.max_tokens = None
    tokens = 0
    for seed in range(6):
        dialogue.reset()
        dialogue.change("seed", str(seed))
        dialogue.change("temperature", "2")
        text = "".join(dialogue.ask("Is it 1?", print))
        tokens = max(tokens, len(dialogue.writer.tokenizer.encode(text)))
        assert dialogue.cut in (None, "the context of 64 tokens is full")
    assert 6 < tokens < 64


def test_what_a_model_writes_cannot_command_the_terminal(
    dialogue: Dialogue, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dialogue, "ask", lambda *_: iter(["a \x1b", "]0;tit", "le\x07 b", "\x9b31m"]))
    answer(dialogue, "Is it 1?")
    assert capsys.readouterr().out == "a \\x1b]0;title\\x07 b\\x9b31m\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_answers_help_and_notes_break_between_words_on_a_terminal(
    dialogue: Dialogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "44")
    words = [
        "Once",
        "upon",
        "a",
        "time",
        "there",
        "was",
        "a",
        "kite",
        "that",
        "flew",
        "away",
        "over",
        "the",
        "hills",
        "and",
        "the",
        "supermarket",
    ]
    monkeypatch.setattr(dialogue, "ask", lambda *_: iter([" ".join(words)[i : i + 3] for i in range(0, 90, 3)]))
    for write in (lambda: answer(dialogue, "x"), show_help, lambda: note("a remark " * 20)):
        terminal = Terminal()
        monkeypatch.setattr(sys, "stdout", terminal)
        monkeypatch.setattr(sys, "stderr", terminal)
        write()
        shown = terminal.getvalue().splitlines()
        assert len(shown) > 1
        assert max(map(len, shown)) <= 44
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    answer(dialogue, "x")
    assert terminal.getvalue().split() == words
