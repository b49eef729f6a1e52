"""Files of conversations in all usual formats are read with their messages, or refused with the reason."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from positron.cli.preflight import check_files
from positron.config import DataConfig
from positron.data import records
from positron.data.conversations import Conversation, read_conversations
from positron.data.sources import is_validation
from positron.system.errors import UserError
from positron.system.log import screen_log
from positron.text.char_word import CharTokenizer
from positron.text.conversation import Message
from positron.training.objective.sft import SFTObjective

PAIRS = [(f"What is {n} and {n}?", f"It is {2 * n}.") for n in range(1, 5)]
TOKENIZER = CharTokenizer("".join(sorted({c for pair in PAIRS for c in "".join(pair)})) + "abcdefghijklmnopqrstuvwxyz")


def lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def turns(
    question: str,
    answer: str,
    role: str = "role",
    text: str = "content",
    names: tuple[str, str] = ("user", "assistant"),
) -> list[Any]:
    return [{role: names[0], text: question}, {role: names[1], text: answer}]


def fields(question: str, answer: str, **more: Any) -> list[dict[str, Any]]:
    return [{question: q, answer: a, **more} for q, a in PAIRS]


def csv_of(separator: str) -> bytes:
    return "".join(f'"{q}"{separator}"{a}"\n' for q, a in [("Question", "Answer"), *PAIRS]).encode()


def parquet(folder: Path) -> bytes:
    pq.write_table(pa.Table.from_pylist([{"messages": turns(q, a)} for q, a in PAIRS]), folder / "t")
    return (folder / "t").read_bytes()


def zstd(content: bytes) -> bytes:
    packed: bytes = pa.compress(content, codec="zstd", asbytes=True)
    return packed


def for_each_pair(row: Callable[[str, str], Any]) -> list[Any]:
    return [row(question, answer) for question, answer in PAIRS]


def firefly(q: str, a: str) -> dict[str, Any]:
    return {"conversation": [{"human": q, "assistant": a}]}


def gemini(q: str, a: str) -> dict[str, Any]:
    return {"contents": [{"role": "user", "parts": [{"text": q}]}, {"role": "model", "parts": [{"text": a}]}]}


def in_parts(q: str, a: str) -> dict[str, Any]:
    question = [{"type": "text", "text": text} for text in (q[:5], q[5:])]
    return {"messages": [{"role": "User", "content": question}, {"role": "assistant", "content": a}]}


def json_in_cells(_: Path) -> bytes:
    cells = ['"' + json.dumps(conversation).replace('"', '""') + '"\n' for conversation in for_each_pair(turns)]
    return "".join(["messages\n", *cells]).encode()


def columns(question: str, answer: str, *, as_pandas_writes: bool) -> bytes:
    values = {question: [q for q, _ in PAIRS], answer: [a for _, a in PAIRS]}
    by_index = {name: {str(i): text for i, text in enumerate(column)} for name, column in values.items()}
    return json.dumps(by_index if as_pandas_writes else values).encode()


SHAREGPT = for_each_pair(lambda q, a: {"id": q, "conversations": turns(q, a, "from", "value", ("human", "gpt"))})
BY_NAME = {row["query"]: row for row in fields("query", "response")}
COMPLETION, QUESTION = "prompt and completion", "question and answer"
# name of the file, its content, and the format that is reported
SHAPES: list[tuple[str, bytes | Callable[[Path], bytes], str]] = [
    ("alpaca.json", json.dumps(fields("instruction", "output", input="")).encode(), "Alpaca"),
    ("alpaca.jsonl", lines(fields("instruction", "output")), "Alpaca"),
    ("messages.jsonl", lines(for_each_pair(lambda q, a: {"messages": turns(q, a)})), "messages"),
    ("sharegpt.json", json.dumps(SHAREGPT, indent=2).encode(), "ShareGPT"),
    ("sharegpt_roles.jsonl", lines(for_each_pair(lambda q, a: {"conversations": turns(q, a)})), "ShareGPT"),
    ("nanochat.jsonl", lines(for_each_pair(turns)), "list of messages"),
    ("lists.json", json.dumps(for_each_pair(turns)).encode(), "list of messages"),
    ("completion.jsonl", lines(fields("prompt", "completion")), COMPLETION),
    (
        "trl.jsonl",
        lines(for_each_pair(lambda q, a: {"prompt": turns(q, a)[:1], "completion": turns(q, a)[1:]})),
        COMPLETION,
    ),
    ("response.ndjson", lines(fields("prompt", "response")), "prompt and response"),
    ("questions.jsonl", lines(fields("question", "answer")), QUESTION),
    ("inputs.jsonl", lines(fields("input", "output")), "input and output"),
    ("dolly.jsonl", lines(fields("instruction", "response", context="", category="open_qa")), "Dolly"),
    ("ultrachat.jsonl", lines(for_each_pair(lambda q, a: {"id": "0", "data": [q, a]})), "UltraChat"),
    ("firefly.jsonl", lines(for_each_pair(firefly)), "conversation"),
    ("gemini.jsonl", lines(for_each_pair(gemini)), "contents"),
    ("parts.jsonl", lines(for_each_pair(in_parts)), "messages"),
    ("inside.json", json.dumps({"version": 2, "data": fields("question", "answer")}, indent=1).encode(), QUESTION),
    ("columns.json", columns("prompt", "completion", as_pandas_writes=False), COMPLETION),
    ("pandas.json", columns("instruction", "output", as_pandas_writes=True), "Alpaca"),
    ("by_name.json", json.dumps(BY_NAME).encode(), "query and response"),
    ("pretty.jsonl", "\n".join(json.dumps(row, indent=4) for row in SHAREGPT).encode(), "ShareGPT"),
    ("crlf.jsonl", lines(fields("instruction", "output")).replace(b"\n", b"\r\n"), "Alpaca"),
    ("bom.jsonl", b"\xef\xbb\xbf" + lines(fields("instruction", "output")), "Alpaca"),
    ("table.csv", csv_of(","), QUESTION),
    ("semicolons.csv", b"\xef\xbb\xbf" + csv_of(";"), QUESTION),
    ("table.tsv", csv_of("\t"), QUESTION),
    ("commas_in_a_name.csv", csv_of(";").replace(b'"Answer"', b'"Answer";"more, or less, or nothing"'), QUESTION),
    ("blank_lines.csv", b"\n\r\n" + csv_of(","), QUESTION),
    ("excel.csv", b"\xef\xbb\xbfsep=;\r\n" + csv_of(";"), QUESTION),
    ("json_in_cells.csv", json_in_cells, "messages"),
    ("table.parquet", parquet, "messages"),
    ("packed.jsonl.gz", gzip.compress(lines(fields("prompt", "completion"))), COMPLETION),
    ("packed.json.zst", zstd(json.dumps(SHAREGPT).encode()), "ShareGPT"),
]


def read(path: Path | str, **options: Any) -> tuple[list[Conversation], list[str]]:
    said: list[str] = []
    with screen_log(said.append):
        return read_conversations(DataConfig("instruct", str(path), **options)), said


def rows(folder: Path, *examples: Any, name: str = "x.jsonl", **options: Any) -> tuple[list[Conversation], list[str]]:
    (folder / name).write_bytes(lines(list(examples)))
    return read(folder / name, **options)


def texts(conversation: Conversation) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in conversation.messages]


@pytest.mark.parametrize(("name", "content", "format_name"), SHAPES, ids=[name for name, _, _ in SHAPES])
def test_every_shape_gives_the_same_conversations_and_is_named(
    tmp_path: Path, name: str, content: bytes | Callable[[Path], bytes], format_name: str
) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content(tmp_path))
    conversations, said = read(tmp_path / name)
    assert [texts(conversation) for conversation in conversations] == [
        [("user", q), ("assistant", a)] for q, a in PAIRS
    ]
    assert len(said) == 1
    assert said[0].startswith(f"{format_name} format: 4 conversations")
    assert "skipped" not in said[0]


def test_a_folder_and_a_glob_give_the_rows_of_all_files_and_leave_notes_alone(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(fields("instruction", "output")[:2]))
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b.csv").write_bytes(csv_of(","))
    (tmp_path / "README.md").write_text("Two files of questions.\n")
    conversations, said = read(tmp_path)
    assert [texts(conversation)[0][1] for conversation in conversations] == [q for q, _ in PAIRS[:2] + PAIRS]
    assert said[0] == "skipped files: README.md (another format)"
    assert said[1].startswith("Alpaca and question and answer format: 6 conversations")
    assert len(read(tmp_path / "*.jsonl")[0]) == 2
    for path in (tmp_path, tmp_path / "*.jsonl", tmp_path / "**" / "*.csv"):
        check_files(DataConfig("instruct", str(path)), {})  # what a command refuses before it loads anything
    for path in (tmp_path / "*.parquet", tmp_path / "nowhere.jsonl"):
        with pytest.raises(UserError, match=r"data.path="):
            check_files(DataConfig("instruct", str(path)), {})


def test_a_folder_of_save_to_disk_is_read(tmp_path: Path) -> None:
    import datasets

    datasets.Dataset.from_list(for_each_pair(lambda q, a: {"messages": turns(q, a)})).save_to_disk(tmp_path)
    conversations, said = read(tmp_path)
    assert [texts(conversation) for conversation in conversations] == [
        [("user", q), ("assistant", a)] for q, a in PAIRS
    ]
    assert said == ["messages format: 4 conversations"]
    (tmp_path / "cache-1.arrow").write_bytes((tmp_path / "data-00000-of-00001.arrow").read_bytes())
    conversations, said = read(tmp_path)
    assert len(conversations) == len(PAIRS)
    assert said[0] == "skipped files: cache-1.arrow (not part of the dataset that state.json describes)"


@pytest.mark.parametrize("extra", ["\u2028", "\x85", "\u2029\u000b\u001c"])
def test_only_a_newline_ends_a_line_of_json(tmp_path: Path, extra: str) -> None:
    conversations, _ = rows(tmp_path, *[{"instruction": f"a{extra}b {n}", "output": f"c{extra}d"} for n in range(3)])
    assert texts(conversations[2]) == [("user", f"a{extra}b 2"), ("assistant", f"c{extra}d")]


@pytest.mark.parametrize(
    "spelling", ['"output": "broken \\ud83d half"', '"output": "\\udc00"', '"instruction": "\\ud800", "output": "a"']
)
def test_half_a_character_is_named_by_its_line_and_replaced_if_asked(tmp_path: Path, spelling: str) -> None:
    path = tmp_path / "x.jsonl"
    row = f'{{"instruction": "Q", {spelling}}}\n'
    path.write_text(row + "".join(json.dumps(r) + "\n" for r in fields("instruction", "output")))
    conversations, said = read(path)
    assert len(conversations) == 4
    assert "1 with half a surrogate pair (line 1)" in said[0]
    conversations, said = read(path, on_invalid="replace")
    assert len(conversations) == 5
    assert "\ufffd" in "".join(m.content for m in conversations[0].messages)
    path.write_text(row)
    with pytest.raises(UserError, match=r"line 1 has half of a surrogate pair .* data.on_invalid=replace"):
        read(path)
    path.write_text('{"instruction": "Q", "output": "whole \\ud83d\\ude00"}\n')
    assert texts(read(path)[0][0])[1] == ("assistant", "whole \U0001f600")


GOOD = [{"messages": turns(q, a)} for q, a in PAIRS * 5]
BAD: list[tuple[Any, str]] = [
    ({"messages": turns("q", "a", names=("tool", "assistant"))}, "with role tool"),
    ({"messages": turns("q", "a", names=("developer", "assistant"))}, "with role developer"),
    ({"conversations": turns("q", "a", "from", "value", ("human", "function"))}, "with role function"),
    ({"messages": [{"role": "assistant", "content": None, "tool_calls": [{"id": 1}]}]}, "with tool calls"),
    ({"messages": turns("q", None)}, "with null in `content`"),
    ({"messages": [{"role": "user"}]}, "with a message without `content`"),
    ({"messages": [{"content": "q"}]}, "with a message without `role`"),
    ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "with a part of image in `content`"),
    ({"messages": [{"role": "assistant", "content": "a", "weight": 0.5}]}, "with weight 0.5"),
    ({"messages": []}, "without messages in `messages`"),
    ({"messages": "hello"}, "without messages in `messages`"),
    ({"instruction": "q"}, "without `output`"),
    ({"instruction": "q", "output": None}, "with null in `output`"),
    ({"instruction": "q", "output": 42}, "with a number in `output`"),
    ({"instruction": "q", "output": True}, "with true or false in `output`"),
    ({"instruction": "q", "output": {"a": 1}}, "with an object in `output`"),
    ({"instruction": "q", "output": ["a", "b"]}, "with several texts in `output`"),
    ({"instruction": "q", "context": ["a", "b"], "response": "c"}, "with several texts in `context`"),
    ({"messages": turns("q", ["a", "b"])}, "with several texts in `content`"),
    ({"instruction": " ", "input": "", "output": "a"}, "without a question"),
    ({"instruction": "q", "output": "a", "history": [["only one"]]}, "with an unknown `history`"),
    ({"text": "### Human: q ### Assistant: a"}, "with `text`"),
    ({"prompt": "q", "chosen": "a", "rejected": "b"}, "with pairs of preferences"),
    ({"role": "user", "content": "q"}, "with a single message"),
    ({"a": 1}, "with unknown fields"),
    (3, "that are not an object"),
    ({"messages": turns("q", " ")}, "without an answer"),
    ({"instruction": "q", "output": ""}, "without an answer"),
]


@pytest.mark.parametrize(("row", "label"), BAD, ids=[f"{i} {label}" for i, (_, label) in enumerate(BAD)])
def test_a_few_bad_rows_are_skipped_counted_and_named_by_their_lines(tmp_path: Path, row: Any, label: str) -> None:
    conversations, said = rows(tmp_path, *GOOD[:3], row, *GOOD[3:], row)
    assert len(conversations) == len(GOOD)
    assert f"22 conversations, 2 skipped: 2 {label} (line 4, line 22)" in said[0]
    with pytest.raises(UserError, match=r"x\.jsonl") as refused:
        rows(tmp_path, row)
    assert "\n" not in str(refused.value)


def test_kinds_of_bad_rows_are_counted_apart_with_three_places_each(tmp_path: Path) -> None:
    empty = {"conversations": turns("q", "", "from", "value", ("human", "gpt"))}
    _, said = rows(tmp_path, *SHAREGPT * 70, *[empty] * 10, BAD[2][0], BAD[2][0])
    assert said == [
        "ShareGPT format: 292 conversations, 12 skipped: 10 without an answer (line 281, line 282, line 283, ...), "
        "2 with role function (line 291, line 292); fields not used: id"
    ]


def test_more_than_half_bad_rows_are_an_error_that_names_the_first(tmp_path: Path) -> None:
    rows(tmp_path, GOOD[0], {"a": 1})
    with pytest.raises(
        UserError, match=r"x.jsonl, line 2 has the fields a, .*; 2 of the 3 rows cannot be used: 2 with unknown fields"
    ):
        rows(tmp_path, GOOD[0], {"a": 1}, {"b": 1})


def test_broken_json_is_named_by_its_line_in_every_layout(tmp_path: Path) -> None:
    good = lines(GOOD)
    for name, content, place in (
        ("lines.jsonl", good + b'{"messages": [\n', "line 21"),
        (
            "pretty.jsonl",
            b"\n".join(json.dumps(row, indent=1).encode() for row in GOOD) + b'\n{"messages": [\n',
            "line 241",
        ),
        ("deep.jsonl", good + b"[" * 100_000, "line 21"),
        ("digits.jsonl", good + b"1" * 10_000, "line 21"),
    ):
        (tmp_path / name).write_bytes(content)
        conversations, said = read(tmp_path / name)
        assert len(conversations) == 20, name
        assert f"1 not JSON ({place})" in said[0]
    (tmp_path / "cut.json").write_bytes(json.dumps(GOOD, indent=1).encode()[:500])
    with pytest.raises(UserError, match=r"cut.json is not JSON: .*, line \d\d, column "):
        read(tmp_path / "cut.json")
    (tmp_path / "my.txt").write_text("Once upon a time.\nThe end.\n")
    with pytest.raises(UserError, match=r"my.txt contains plain text, .*; to train on plain text, run .*data=text"):
        read(tmp_path / "my.txt")
    (tmp_path / "my.json").write_text("Once upon a time.\nThe end.\n")  # which data=text would refuse, too
    with pytest.raises(UserError, match=r"my.json contains plain text, not conversations or pairs: .* per line$"):
        read(tmp_path / "my.json")
    (tmp_path / "two.json").write_text(json.dumps({"train": GOOD, "test": GOOD}))
    with pytest.raises(UserError, match=r"several lists \(train, test\)"):
        read(tmp_path / "two.json")
    (tmp_path / "cells.csv").write_text("question,answer\na,b\nc,d,e\n")
    assert "1 with too many cells (line 3)" in read(tmp_path / "cells.csv")[1][0]


@pytest.mark.parametrize(
    ("end", "message"),
    [
        ("", "line 3 begins a row with a quoted cell that does not end"),
        ('"x","y"\n', "line 6, in the row that begins at line 3, is not CSV"),
    ],
)
def test_a_quote_that_is_missing_in_a_table_is_refused_with_the_line_where_its_row_begins(
    tmp_path: Path, end: str, message: str
) -> None:
    table = "question,answer\n" + "".join(f"{q},{a}\n" for q, a in PAIRS) + end
    (tmp_path / "cells.csv").write_text(table.replace(PAIRS[1][1], f'"{PAIRS[1][1]}'))
    with pytest.raises(UserError, match=f"cells.csv, {message}"):
        read(tmp_path / "cells.csv")


def test_text_with_a_template_is_refused_with_the_reason_and_two_ways_out(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"does not separate questions from answers: give messages .* data=text"):
        rows(tmp_path, *[{"text": f"<|user|>{q}<|assistant|>{a}"} for q, a in PAIRS])


def test_system_history_context_and_input_are_used_and_other_fields_named(tmp_path: Path) -> None:
    alpaca = {
        "instruction": "q",
        "input": "x",
        "output": "a",
        "system": "be brief",
        "history": [["h", "i"]],
        "source": "web",
    }
    conversations, said = rows(tmp_path, alpaca, {"instruction": "", "input": "Q 0", "output": "a"})
    wanted = [("system", "be brief"), ("user", "h"), ("assistant", "i"), ("user", "q\n\nx"), ("assistant", "a")]
    assert texts(conversations[0]) == wanted
    assert texts(conversations[1])[0] == ("user", "Q 0")  # not after an empty line
    assert said[0].endswith("; fields not used: source")
    conversations, _ = rows(
        tmp_path,
        {"instruction": "q", "context": "c", "response": "a"},
        {"system_prompt": "s", "question": "q", "response": "a"},
    )
    assert texts(conversations[0])[0] == ("user", "q\n\nc")
    assert texts(conversations[1]) == [("system", "s"), ("user", "q"), ("assistant", "a")]
    conversations, _ = rows(tmp_path, {"system": "s", "conversations": turns("q", "a")})
    assert texts(conversations[0])[0] == ("system", "s")


@pytest.mark.parametrize("field", ["items", "contents", "dialog", "data", "turns"])
def test_a_list_that_holds_no_messages_does_not_replace_the_question_and_the_answer(tmp_path: Path, field: str) -> None:
    examples = [{"instruction": q, "output": a, field: ["one", "two"]} for q, a in PAIRS]
    read_rows, said = rows(tmp_path, *examples, {"instruction": "Why?", "output": "So.", field: [{"id": 1}]})
    assert [texts(row) for row in read_rows] == [[("user", q), ("assistant", a)] for q, a in [*PAIRS, ("Why?", "So.")]]
    assert f"fields not used: {field}" in " ".join(said)


def test_messages_come_before_a_question_and_an_answer(tmp_path: Path) -> None:
    (read_row,), _ = rows(tmp_path, {"prompt": "shortened", "completion": "shortened", "messages": turns(*PAIRS[0])})
    assert texts(read_row) == [("user", PAIRS[0][0]), ("assistant", PAIRS[0][1])]


def test_a_list_of_alternative_answers_is_no_text_but_a_list_of_one_text_and_of_parts_is(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="line 1 has 3 texts in `answer`: keep one"):
        rows(tmp_path, {"question": "Where?", "answer": ["Paris", "paris", "City of Paris"]})
    one = {"question": ["Where?"], "answer": ["Paris"]}
    in_texts = [
        {"role": "user", "parts": ["Whe", "re?"]},
        {"role": "model", "parts": [{"text": "Par"}, {"text": "is"}]},
    ]
    for conversation in rows(tmp_path, one, {"contents": in_texts})[0]:
        assert texts(conversation) == [("user", "Where?"), ("assistant", "Paris")]


def test_turns_of_weight_0_and_answers_in_prompts_are_not_learned_from(tmp_path: Path) -> None:
    weighted = [*turns("a?", "no."), *turns("b?", "yes.")]
    weighted[1]["weight"], weighted[3]["weight"] = 0, 1
    prompt = {"prompt": [*turns("a?", "no."), {"role": "user", "content": "b?"}], "completion": "yes."}
    conversations, _ = rows(tmp_path, {"messages": weighted}, prompt)
    for conversation in conversations:
        data = instruct_data([conversation])
        ((_, y),) = data.val_parts
        answer = TOKENIZER.decode([token for token in y[0].tolist() if token > 4])
        assert answer == "yes."
    with pytest.raises(
        UserError, match="has no answer to learn from in 1 conversation: give messages with the role assistant"
    ):
        rows(tmp_path, {"messages": weighted[:2]})


def instruct_data(conversations: list[Conversation], **options: Any) -> SFTObjective:
    chosen = {"context": 64, "batch_size": 4, "micro_batch_size": 4, "seed": 0, "packing": False, "val_tokens": 1000}
    return SFTObjective(conversations, TOKENIZER, **{"replay": None, **chosen, **options})


def test_an_empty_answer_teaches_nothing_even_among_others() -> None:
    conversation = Conversation(
        (Message("user", "a"), Message("assistant", "  "), Message("user", "b"), Message("assistant", "c")), False
    )
    data = instruct_data([conversation])
    ((_, y),) = data.val_parts
    learned = y[y != -100].tolist()
    assert learned == [*TOKENIZER.encode("c"), TOKENIZER.special_id("<|end|>")]


@pytest.mark.parametrize(
    ("questions", "val_fraction"),
    [(["a"], 0.1), (["a", "b"], 0.1), (["a"] * 30, 0.5), (["a"] * 30, 0.99), (list("abcdefgh"), 0.0)],
)
def test_small_sets_validate_on_the_training_rows_and_say_so(
    tmp_path: Path, questions: list[str], val_fraction: float, logged: list[str]
) -> None:
    examples = [{"instruction": q, "output": f"{n}."} for n, q in enumerate(questions)]
    conversations, _ = rows(tmp_path, *examples, val_fraction=val_fraction)
    data = instruct_data(conversations)
    assert len(data.train.rows) == len(questions)
    assert sum(len(x) for x, _ in data.val_parts) == len(questions)
    assert any(
        re.search(
            r"the conversations for \w+ are used for training and validation: the validation loss shows how well they are "
            "memorised",
            line,
        )
        for line in logged
    )
    assert sum(len(x) for x, _ in data.train.batch(1)) == 4
    assert np.isfinite(data.bytes_per_token)


def greeted(n: int) -> list[dict[str, Any]]:
    """Nine of ten conversations begin with the same greeting."""
    return [{"messages": turns("Hello!" if i % 10 else f"{i}?", "Hi.") + turns(f"{i}?", f"{i}.")} for i in range(n)]


@pytest.mark.parametrize("seed", [0, 1, 2, 10, 11])  # in some, the greeting is drawn for validation
def test_a_common_first_question_leaves_validation_its_share(tmp_path: Path, seed: int) -> None:
    conversations, said = rows(tmp_path, *greeted(500), seed=seed, val_fraction=0.1)
    n_val = sum(conversation.is_val for conversation in conversations)
    assert 25 < n_val < 90
    assert said[1].startswith(
        "WARNING: 450 of 500 conversations have the same first question ('Hello!'), so a hash of the whole"
    )
    assert f"validation: {n_val} conversations instead of " in said[1]


def test_a_run_that_began_with_the_questions_as_division_keeps_it(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(lines(greeted(500)))
    config = DataConfig("instruct", str(tmp_path / "x.jsonl"), val_fraction=0.1)
    conversations = read_conversations(config, lambda former: len(former) == 500)
    assert [c.is_val for c in conversations] == [is_validation(c.messages[0].content, 0, 0.1) for c in conversations]


@pytest.mark.parametrize("val_fraction", [-0.1, 1.0, 2.0])
def test_a_validation_fraction_outside_of_its_range_is_refused(val_fraction: float) -> None:
    with pytest.raises(UserError, match=r"data.val_fraction"):
        DataConfig("instruct", val_fraction=val_fraction)
    with pytest.raises(UserError, match=r"data.val_fraction=0"):
        DataConfig("stories", val_fraction=0.0)


def test_the_rest_of_a_long_file_that_is_not_json_is_parsed_by_line_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parsing the rest of the text again after each bad value would take a time that grows with the square of its length."""
    path, parse, n_calls = tmp_path / "my.jsonl", records._parsed, [0]

    def counted(*arguments: Any) -> Any:
        n_calls[0] += 1
        return parse(*arguments)

    monkeypatch.setattr(records, "_parsed", counted)
    path.write_text("".join(f"{{'prompt': '{n}', 'answer': 'yes'}}\n" for n in range(3_000)))
    rows = list(records.read_records(str(path), "error", lambda value: isinstance(value, dict)))
    assert [row.place for row in rows] == [f"line {n}" for n in range(1, 3_001)]
    assert n_calls[0] <= 3_000 + records.MAX_BROKEN + 2
