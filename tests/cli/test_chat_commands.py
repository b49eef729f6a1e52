"""What a user can do in the chat, by calling it directly: commands, slips, saved files, Ctrl-C and errors.

The model is random: what it answers does not matter here. tests/cli/test_chat.py talks to trained ones in a terminal.
"""

from __future__ import annotations

import io
import json
import os
import string
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from positron.chat import answer, command, converse, note
from positron.cli.chat_commands import parse, remark, show_help
from positron.config import GPTConfig
from positron.inference.dialogue import Dialogue
from positron.inference.text_model import Writer
from positron.model.gpt import GPT
from positron.system.errors import UserError
from positron.text.char_word import CharTokenizer
from positron.text.conversation import Message


def dialogue_of(chats: bool) -> Dialogue:
    tokenizer = CharTokenizer(string.printable)
    sizes = {"context_length": 64, "d_model": 16, "n_layer": 1, "n_head": 2}
    model = GPT(GPTConfig(vocab_size=tokenizer.vocab_size, **sizes), seed=1).eval()
    return Dialogue(Writer(model, tokenizer), chats, max_tokens=6)


@pytest.fixture
def dialogue() -> Dialogue:
    return dialogue_of(chats=True)


def written(dialogue: Dialogue, path: Path, **changes: object) -> Path:
    """A saved chat with some fields replaced."""
    path.write_text(json.dumps({**dialogue.state(), **changes}), encoding="utf-8")
    return path


def test_a_model_of_short_answers_remembers_many_turns_and_one_of_long_answers_has_room_for_another(
    logged: list[str],
) -> None:
    dialogue = dialogue_of(chats=True)
    dialogue.max_tokens = None
    turns = [Message("user", "a?"), Message("assistant", "b.")]
    prompt = dialogue._prompt([*turns * 4, Message("user", "c?")])  # 4 x 8 tokens of a context of 64
    assert logged == []
    assert dialogue.writer.tokenizer.decode(prompt).count("a?") == 4
    long = [Message("user", "a?"), Message("assistant", "b" * 30)]
    assert len(dialogue._prompt([*long, Message("user", "c?")])) + 31 <= 64
    assert len(logged) == 1


def test_a_sentence_that_begins_like_a_command_is_said_to_go_to_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert remark("system failure at noon") == "this line goes to the model; the command is /system ..."
    assert remark("save the princess") is not None
    assert "there is no system prompt" in str(remark("system You are a pirate", reads_system=False))
    assert remark("Once upon a time") is None


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("setings", "settings"),
        ("hlep", "help"),
        ("rset", "reset"),
        ("setings temperature 0.5", "settings"),
        ("laod talk.json", "load"),
        ("/hlep", "/help"),
        ("/sytem be kind", "/system"),
        ("quti", "quit"),
    ],
)
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


@pytest.mark.parametrize(
    "line", ["the rest is silence", "sail away", "Tom", "helpful cat", "setting sun", "settings =", "setings ="]
)
def test_words_that_resemble_commands_in_a_sentence_go_to_the_model(line: str) -> None:
    assert parse(line) is None


def test_a_saved_chat_has_all_turns_also_those_that_no_longer_fit(
    dialogue: Dialogue, tmp_path: Path, logged: list[str]
) -> None:
    dialogue.system = "be kind"
    for turn in range(12):
        list(dialogue.ask(f"Is it {turn}?"))
    command(dialogue, f"save {tmp_path / 'all.json'}")
    saved = json.loads((tmp_path / "all.json").read_text())["messages"]
    assert len(saved) == 25
    assert [m["content"] for m in saved[1::2]] == [f"Is it {turn}?" for turn in range(12)]
    assert any("no longer fit the context: the model does not read them" in line for line in logged)
    list(dialogue.ask("why " * 60))
    assert dialogue.messages[-2].content == "why " * 60
    assert "the question is too long for the context: the model reads only its end" in logged


def test_the_prompt_fits_the_context_whatever_was_said(dialogue: Dialogue) -> None:
    for limit in (None, 1, 40, 10**6):
        dialogue.max_tokens = limit
        for question in ("a", "Is it 7? " * 3, "x" * 500):
            messages = [*dialogue.messages, Message("user", question)]
            ids = dialogue._prompt(messages)
            assert len(ids) <= dialogue.writer.engine().context * 3 // 4 or len(ids) <= 63


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("seed", "99999999999999999999999"),
        ("seed", "1.5"),
        ("top_k", "0"),
        ("temperature", "nan"),
        ("temperature", "hot"),
        ("max_tokens", "-1"),
        ("repetition_penalty", "1e300"),
        ("temprature", "0.5"),
        ("preset", "wild"),
    ],
)
def test_settings_of_the_chat_are_checked_when_they_are_set(dialogue: Dialogue, setting: str, value: str) -> None:
    before = dialogue.settings()
    with pytest.raises(UserError, match=setting):
        dialogue.change(setting, value)
    assert dialogue.settings() == before
    dialogue.change("seed", str(2**64 - 1))
    list(dialogue.ask("Is it 1?"))  # the seed of a later turn is in range, too


@pytest.mark.parametrize("error", [ValueError("Overflow"), MemoryError(), RuntimeError("of torch\nin two lines")])
def test_no_error_ends_the_chat_or_loses_the_conversation(
    dialogue: Dialogue, error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    list(dialogue.ask("Is it 1?"))
    kept = list(dialogue.messages)

    def fails(*_: object, **__: object) -> None:
        raise error

    typed = iter(["Is it 2?", "quit"])
    monkeypatch.setattr(dialogue.writer.engine(), "stream", fails)
    converse(dialogue, lambda: next(typed))
    assert dialogue.messages == kept
    shown = capsys.readouterr().err
    assert type(error).__name__ in shown
    assert "the conversation is not lost" in shown
    assert "Traceback" not in shown


def test_a_base_model_refuses_a_system_text() -> None:
    base = dialogue_of(chats=False)
    with pytest.raises(UserError, match="a system prompt needs a run that was fine-tuned on conversations"):
        command(base, "/system You are a pirate")
    assert base.messages == []
    state = base.state() | {"messages": [{"role": "system", "content": "be kind"}]}
    with pytest.raises(UserError, match=r"^cannot load talk\.json: the file has a system prompt"):
        base.restore(state, "talk.json")


def test_save_replaces_nothing_unasked(dialogue: Dialogue, tmp_path: Path) -> None:
    if sys.platform == "win32":
        pytest.skip("Windows has no named pipes among its files")
    list(dialogue.ask("Is it 1?"))
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
        ("link.json", "a symbolic link"),
        ("dangling.json", "a symbolic link"),
        ("pipe.json", "a device, a pipe"),
        ("", "a folder"),
    ]:
        for word in ("/save", "/save!"):
            with pytest.raises(UserError, match=kind):
                command(dialogue, f"{word} {tmp_path / name}")
    assert (target.read_text(), (tmp_path / "link.json").is_symlink()) == ("mine", True)
    command(dialogue, f"/save! {target}")
    assert json.loads(target.read_text())["messages"][0]["content"] == "Is it 1?"
    assert dialogue.is_saved


WRONG_FIELDS: list[tuple[dict[str, object], str]] = [
    ({"messages": [{"role": "user", "content": None}]}, r"messages\[0\]: content must be a text"),
    (
        {"messages": [{"role": "user", "content": [1, 2]}]},
        r"messages\[0\]: content must be a text \(str\), not \[1, 2\]",
    ),
    ({"messages": [{"role": "user", "content": "\ud83d"}]}, "surrogate"),
    ({"messages": [{"role": "tool", "content": "a"}]}, "role must be one of .*, not 'tool'"),
    ({"messages": [{"role": ["user"], "content": "a"}]}, "role"),
    ({"messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]}, "must be the first"),
    ({"messages": {"role": "user"}}, "messages must be a list"),
    ({"messages": ["hello"]}, r"messages\[0\] must be a JSON object"),
    ({"version": 99}, r"a newer Positron saved it \(its version is 99, .*\); update Positron$"),
    ({"version": 0}, "version is 0"),
    ({"version": True}, "version is True"),
    ({"settings": None}, "settings must be a JSON object"),
    ({"settings": {"max_tokens": 3.5}}, "max_tokens must be a whole number, not 3.5"),
    ({"settings": {"max_tokens": 3, "temperature": "hot"}}, "temperature must be a number, not 'hot'"),
    (
        {"settings": {"max_tokens": 3, "heat": 1}},
        r"cannot load .*: settings has the unknown key 'heat' \(known: temperature, .*\); correct the file",
    ),
]


@pytest.mark.parametrize(("changes", "says"), WRONG_FIELDS, ids=[says for _, says in WRONG_FIELDS])
def test_load_checks_every_field_and_changes_nothing_then(
    dialogue: Dialogue, tmp_path: Path, changes: dict[str, object], says: str
) -> None:
    list(dialogue.ask("Is it 1?"))
    before = dialogue.state()
    with pytest.raises(UserError, match=says) as refused:
        command(dialogue, f"load {written(dialogue, tmp_path / 'talk.json', **changes)}")
    assert "\n" not in str(refused.value)
    assert dialogue.state() == before


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"\xff\xfe{\x00}\x00", "is not UTF-8: byte 0 is 0xff"),
        (b"[" * 100_000, "it is not JSON; give a file that /save wrote"),
        (b"", "it is not JSON"),
        (b"[]", "the file must be a JSON object"),
        (b"{}", "has no version"),
    ],
)
def test_load_refuses_what_is_not_a_saved_chat(dialogue: Dialogue, tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "talk.json").write_bytes(content)
    with pytest.raises(UserError, match=says):
        command(dialogue, f"load {tmp_path / 'talk.json'}")
    with pytest.raises(UserError, match="it is a folder"):
        command(dialogue, f"load {tmp_path}/")
    with pytest.raises(UserError, match=r"there is no file .*/tlak\.json: did you mean .*/talk\.json\?"):
        command(dialogue, f"load {tmp_path / 'tlak.json'}")


def test_load_takes_a_byte_order_mark_and_chats_saved_before_the_seed_was(dialogue: Dialogue, tmp_path: Path) -> None:
    list(dialogue.ask("Is it 1?"))
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
    monkeypatch.setattr("positron.chat.STOP_GRACE_SECONDS", 0.0)
    stop = KeyboardInterrupt
    converse(dialogue, typing(stop))  # nothing to lose
    converse(dialogue, typing("Is it 1?", stop, "Is it 2?", stop, stop))
    assert len(dialogue.messages) == 4
    assert capsys.readouterr().err.count("Ctrl-C again ends the chat") == 2
    converse(dialogue, typing(stop, EOFError))
    converse(dialogue, typing(f"save {tmp_path / 'talk.json'}", stop))


def test_a_ctrl_c_just_after_an_answer_does_not_count(
    dialogue: Dialogue, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("positron.chat.STOP_GRACE_SECONDS", 1e9)
    stop = KeyboardInterrupt
    converse(dialogue, typing("Is it 1?", stop, stop, stop))
    assert "the answer was already complete" in capsys.readouterr().err


def test_a_setting_that_is_off_is_shown_as_it_is_typed(dialogue: Dialogue) -> None:
    shown = dialogue.settings()
    assert shown["top_k"] == "none"
    dialogue.change("top_k", shown["top_k"])
    assert dialogue.settings() == shown


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
        text = "".join(dialogue.ask("Is it 1?"))
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
