"""Texts and conversations from Python objects become files that are read like a user's files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from text_files import DOCUMENTS, as_jsonl, source

from positron.api import _data_settings
from positron.config import DataConfig
from positron.data.conversations import read_conversations
from positron.data.memory import write_conversations, write_texts
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
        ([], "contains no text"),
        (["a", 3], r"item 1 \(counted from 0\) must be a text, .* but it is of type int"),
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


def test_an_item_that_is_not_a_conversation_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"item 0 .*must be a conversation, .* but it is of type str"):
        write_conversations(["hello"], tmp_path)
