"""Texts and conversations from Python objects become files that are read like a user's files."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from text_files import DOCUMENTS, as_jsonl, source

from positron.api import _data_settings
from positron.config import DataConfig
from positron.data.conversations import read_conversations
from positron.data.memory import write_conversations, write_pairs, write_texts
from positron.data.preferences import read_pairs
from positron.system.errors import UserError

CONVERSATIONS = [{"prompt": f"What is {i}?", "completion": f"It is {i}."} for i in range(6)]


def as_dataset(rows: list[Any]) -> Any:
    import datasets

    return datasets.Dataset.from_list(rows)


ROWS = [{"id": i, "text": text} for i, text in enumerate(DOCUMENTS)]
GIVEN = {
    "list": lambda: list(DOCUMENTS),
    "generator": lambda: (text for text in DOCUMENTS),
    "rows": lambda: ROWS,
    "datasets.Dataset": lambda: as_dataset(ROWS),
    "datasets.IterableDataset": lambda: as_dataset(ROWS).to_iterable_dataset(),
}


@pytest.mark.parametrize("given", GIVEN)
def test_documents_and_their_split_are_those_of_a_file_and_equal_content_is_one_file(
    tmp_path: Path, given: str
) -> None:
    path = write_texts(GIVEN[given](), tmp_path / "data")
    (tmp_path / "own.jsonl").write_bytes(as_jsonl(DOCUMENTS))
    ours, own = source(path), source(tmp_path / "own.jsonl")
    assert [d for task in ours.tasks() for d in task] == [d for task in own.tasks() for d in task]
    assert write_texts(list(DOCUMENTS), tmp_path / "data") == path
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    assert write_texts(DOCUMENTS[1:], tmp_path / "data") != path


@pytest.mark.parametrize("kind", [list, as_dataset])
def test_conversations_are_those_of_a_file(tmp_path: Path, kind: Any) -> None:
    path = write_conversations(kind(CONVERSATIONS), tmp_path)
    conversations = read_conversations(DataConfig("instruct", str(path)))
    assert [[m.content for m in conversation.messages] for conversation in conversations] == [
        list(row.values()) for row in CONVERSATIONS
    ]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("a text", "takes a list of texts: put a single text into a list, as in data="),
        ({"train": [], "test": []}, "not a dict with the keys train, test: give one of its values"),
        (b"a text", "put a single text into a list, as in data="),
        ({"a text", "another"}, r"a list, not a set, whose order differs .*: give data=sorted\(texts\)"),
        (
            io.StringIO("a text"),
            "takes the path of a file, not an open file: give the path, or put the text into a list",
        ),
        ([], "contains no text"),
        ([None, float("nan")], "contains no text"),
        (["a", 3], r"item 1 \(counted from 0\) must be a text, .* but it is of type int"),
        ([{"story": None}], r"item 0 .*must be .* a text in the field `text`, but it has the fields story"),
        ([{"story": "x"}], r"item 0 .*must be .* a text in the field `text`, but it has the fields story"),
    ],
)
def test_an_item_that_is_not_text_is_named(tmp_path: Path, given: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        write_texts(given, tmp_path)
    assert not list(tmp_path.rglob("*.*"))


@pytest.mark.parametrize("kind", [str, Path])
def test_the_names_of_files_are_no_texts(tmp_path: Path, kind: Any) -> None:
    for number in range(2):
        (tmp_path / f"{number}.txt").write_text("a text")
    names = [kind(tmp_path / f"{number}.txt") for number in range(2)]
    with pytest.raises(
        UserError, match=r"item 0 .* is the path of a file, .*0\.txt, not a text: give a folder or a pattern"
    ):
        write_texts(names, tmp_path / "data")
    assert not list(tmp_path.glob("data/memory/*"))
    assert write_texts([f"A sentence about {name}" for name in names], tmp_path / "data").exists()


@pytest.mark.parametrize("key", ["field", "data.field"])
def test_rows_are_read_from_the_field_that_is_named(tmp_path: Path, key: str) -> None:
    rows = [{"text": f"title {i}", "body": f"the long article {i}"} for i in range(30)]
    settings = _data_settings(rows, "text", {key: "body", "data.dir": str(tmp_path)})
    content = settings["data.path"].read_text()
    assert "the long article 7" in content
    assert "title" not in content


@pytest.mark.parametrize("write", [write_texts, write_conversations])
def test_a_table_is_refused_with_the_way_to_give_its_column_or_rows(tmp_path: Path, write: Any) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"id": [1, 2, 3], "text": DOCUMENTS[:3]})
    with pytest.raises(UserError, match=r"not a DataFrame, .*data=frame\['text'\], .*data=frame.to_dict\('records'\)"):
        write(frame, tmp_path)
    assert write_texts(frame["text"], tmp_path) == write_texts(frame.to_dict("records"), tmp_path)


def test_missing_values_of_a_table_are_left_out_as_in_its_file(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    texts = [*DOCUMENTS[:20], None, *DOCUMENTS[20:]]
    frame = pandas.DataFrame({"text": texts, "n": 1})
    frame.to_parquet(tmp_path / "own.parquet")
    own = [d for task in source(tmp_path / "own.parquet").tasks() for d in task]
    with_nan = frame.where(frame.notna(), float("nan"))
    tables = [
        given
        for table in (frame, with_nan, frame.convert_dtypes())
        for given in (table["text"], table.to_dict("records"))
    ]
    for given in (*tables, as_dataset([{"text": text} for text in texts])):
        path = write_texts(given, tmp_path / "data")
        assert [d for task in source(path).tasks() for d in task] == own


def test_an_item_that_is_not_a_conversation_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"item 0 .*must be a conversation, .* but it is of type str"):
        write_conversations(["hello"], tmp_path)


def test_the_rows_of_a_table_are_those_of_its_file(tmp_path: Path) -> None:
    """pandas reads a list in a Parquet file as an array, and an empty cell as NaN."""
    pandas = pytest.importorskip("pandas")
    alpaca = [
        {"instruction": f"What is {i}?", "input": "" if i % 3 else "Briefly.", "output": "It is."} for i in range(9)
    ]
    turns = [
        {"messages": [{"role": "user", "content": f"Hi {i}"}, {"role": "assistant", "content": "Ho"}], "n": i}
        for i in range(9)
    ]
    pandas.DataFrame(alpaca).to_csv(tmp_path / "alpaca.csv", index=False)
    pandas.DataFrame(turns).to_parquet(tmp_path / "turns.parquet")
    tables = {"alpaca.csv": pandas.read_csv, "turns.parquet": pandas.read_parquet}
    for name, read in tables.items():
        frame = read(tmp_path / name)
        from_file = read_conversations(DataConfig("instruct", str(tmp_path / name)))
        for table in (frame, frame.convert_dtypes()):
            path = write_conversations(table.to_dict("records"), tmp_path / "data")
            assert read_conversations(DataConfig("instruct", str(path))) == from_file
    pairs = [{"prompt": f"{i}?", "input": float("nan"), "chosen": "a", "rejected": "b"} for i in range(9)]
    known = read_pairs(DataConfig("preferences", str(write_pairs(pairs, tmp_path))))
    assert [[message.content for message in pair.prompt] for pair in known] == [[f"{i}?"] for i in range(9)]


def test_an_object_that_is_not_text_is_refused_where_text_is_needed_and_else_ignored(tmp_path: Path) -> None:
    path = write_conversations([{**row, "image": b"PNG"} for row in CONVERSATIONS], tmp_path)
    assert len(read_conversations(DataConfig("instruct", str(path)))) == len(CONVERSATIONS)
    path = write_conversations([{"prompt": b"Hi", "completion": "Ho"}], tmp_path)
    with pytest.raises(UserError, match=r"line 1 has an object \(\{'type': 'bytes'\}\) in `prompt`, not text"):
        read_conversations(DataConfig("instruct", str(path)))
