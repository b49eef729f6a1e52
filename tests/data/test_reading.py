"""Text files of every kind are read correctly, or refused with a remedy."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import os
import sys
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from test_files import texts
from text_files import DOCUMENTS, as_jsonl, as_parquet, as_text, source, zst

from positron.data import decoding
from positron.data.decoding import Reading
from positron.data.files import SEPARATOR
from positron.data.listing import by_name, list_files
from positron.data.rows import parquet_texts
from positron.evaluation.eval_texts import texts_of_file
from positron.system.errors import UserError
from positron.system.paths import fault_of_name

BOM = codecs.BOM_UTF8
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 4096\n"


def with_line_ends(content: bytes, end: bytes) -> bytes:
    return content.replace(b"\n", end)


def as_array(documents: list[str], indent: int | None = None) -> bytes:
    return json.dumps([{"text": d, "id": i} for i, d in enumerate(documents)], indent=indent).encode()


def as_csv(documents: list[str], delimiter: str = ",") -> bytes:
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=delimiter)
    writer.writerows([["id", "text"], *enumerate(documents)])
    return out.getvalue().encode()


SHAPES = {
    "crlf.txt": with_line_ends(as_text(DOCUMENTS), b"\r\n"),
    "cr.txt": with_line_ends(as_text(DOCUMENTS), b"\r"),
    "bom.txt": BOM + as_text(DOCUMENTS),
    "bom_separator.txt": BOM + f"{SEPARATOR}\n".encode() + as_text(DOCUMENTS),
    "blanks.txt": as_text(DOCUMENTS).replace(f"{SEPARATOR}\n".encode(), f"{SEPARATOR} \t \n".encode()),
    "blanks_crlf.txt": as_text(DOCUMENTS).replace(f"{SEPARATOR}\n".encode(), f"{SEPARATOR} \r\n".encode()),
    "last_separator.txt": as_text(DOCUMENTS) + f"\n{SEPARATOR}  ".encode(),
    "UPPER.TXT": as_text(DOCUMENTS),
    "UPPER.TXT.GZ": gzip.compress(as_text(DOCUMENTS)),
    "unknown.story": as_text(DOCUMENTS),
    "no_suffix": as_text(DOCUMENTS),
    "bom.jsonl": BOM + as_jsonl(DOCUMENTS),
    "crlf_bom.jsonl": BOM + with_line_ends(as_jsonl(DOCUMENTS), b"\r\n"),
    "UP.JSONL": as_jsonl(DOCUMENTS),
    "lines.ndjson": as_jsonl(DOCUMENTS),
    "lines.json": as_jsonl(DOCUMENTS),
    "array.json": as_array(DOCUMENTS),
    "pretty.json": as_array(DOCUMENTS, indent=2),
    "array.jsonl": as_array(DOCUMENTS),
    "Pretty.JSON.zst": zst(as_array(DOCUMENTS, indent=2)),
    "objects.json": "\n".join(json.dumps({"text": d}, indent=1) for d in DOCUMENTS).encode(),
    "rows.csv": as_csv(DOCUMENTS),
    "semicolons.csv": as_csv(DOCUMENTS, ";"),
    "semicolons_in_a_name.csv": as_csv(DOCUMENTS).replace(b"id,", b'"a;b;c",'),
    "blank_lines.csv": b"\r\n\n" + as_csv(DOCUMENTS),
    "excel.csv": BOM + b"sep=;\r\n" + as_csv(DOCUMENTS, ";").replace(b"id;", b'"a,b,c,d";'),
    "bars.csv": b'"sep=|"\n' + as_csv(DOCUMENTS, "|"),
    "rows.tsv": as_csv(DOCUMENTS, "\t"),
    "bom.csv.gz": gzip.compress(BOM + as_csv(DOCUMENTS)),
    "[1].txt": as_text(DOCUMENTS),
    "a*b?.txt": as_text(DOCUMENTS),
    "-leading.txt": as_text(DOCUMENTS),
}


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_of_a_text_file_gives_the_same_documents(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(SHAPES[name])
    assert texts(source(tmp_path / name)) == DOCUMENTS
    assert texts_of_file(str(tmp_path / name)) == DOCUMENTS


def test_line_ends_at_the_ends_of_blocks_are_one_line_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_bytes(SHAPES["blanks_crlf.txt"] + b"\r\nx\ry\r")
    wanted = [*DOCUMENTS[:-1], DOCUMENTS[-1] + "\nx\ny"]
    for size in (1, 2, 7, 1 << 20):
        monkeypatch.setattr("positron.data.decoding.BLOCK_BYTES", size)
        assert texts(source(tmp_path / "a.txt")) == wanted


@pytest.mark.parametrize("size", [3, 50, 1 << 20])
def test_json_values_may_lie_across_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr("positron.data.decoding.BLOCK_BYTES", size)
    (tmp_path / "a.json").write_bytes(as_array(DOCUMENTS, indent=1))
    assert texts(source(tmp_path / "a.json")) == DOCUMENTS


def test_separators_of_unicode_and_line_ends_in_cells_are_part_of_a_text(tmp_path: Path) -> None:
    hard = ["one\u2028two\u0085three\x0bfour", 'a\n\n"b";c,d\te', *DOCUMENTS]
    for name, content in (
        ("a.jsonl", "".join(json.dumps({"text": d}, ensure_ascii=False) + "\n" for d in hard).encode()),
        ("a.csv", as_csv(hard)),
        ("a.parquet", as_parquet(hard)),
    ):
        (tmp_path / name).write_bytes(content)
        assert texts(source(tmp_path / name)) == hard


TYPES = {
    "large_string": pa.array(DOCUMENTS, pa.large_string()),
    "string_view": pa.array(DOCUMENTS).cast(pa.string_view()),
    "dictionary": pa.array(DOCUMENTS).dictionary_encode(),
    "binary": pa.array([d.encode() for d in DOCUMENTS]),
    "large_binary": pa.array([d.encode() for d in DOCUMENTS], pa.large_binary()),
}


def write_parquet(path: Path, **columns: Any) -> Path:
    pyarrow.parquet.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize("kind", TYPES)
def test_every_type_of_a_parquet_column_that_holds_text_is_read(tmp_path: Path, kind: str) -> None:
    path = write_parquet(tmp_path / "a.parquet", text=TYPES[kind])
    assert texts(source(path)) == texts_of_file(str(path)) == DOCUMENTS


@pytest.mark.parametrize(
    ("column", "said"),
    [
        ([["a", "b"]] * 60, r"list<.*string>, not text: (give data\.field=other|rename .* \(the file has: other\))$"),
        (list(range(60)), "int64, not text"),
        ([{"a": "x"}] * 60, "struct<a: string>, not text"),
        ([1.5] * 60, "double, not text"),
        ([True] * 60, "bool, not text"),
    ],
)
def test_a_parquet_column_without_text_is_refused_by_its_type(tmp_path: Path, column: list[Any], said: str) -> None:
    path = write_parquet(tmp_path / "a.parquet", text=column, other=["x"] * 60)
    for read in (source, lambda path: texts_of_file(str(path))):
        with pytest.raises(UserError, match=said):
            read(path)


def test_only_columns_of_text_are_offered_instead_of_a_missing_one(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", id=[1] * 60)
    with pytest.raises(
        UserError, match=r'no column "text" \(data\.field\): no other field contains text; give another'
    ):
        source(path)
    with pytest.raises(UserError, match=r'"id" \(data\.field\) holds int64, not text: no other field contains text'):
        source(path, field="id")
    write_parquet(path, id=[1] * 60, body=["x"] * 60, title=["y"] * 60)
    with pytest.raises(UserError, match=r'"text" \(data\.field\): give data\.field= with one of: body, title$'):
        source(path)


@pytest.mark.parametrize("kind", [pa.string(), pa.binary(), pa.large_string()])
def test_bytes_of_a_parquet_column_that_are_not_utf8_are_named_by_row(tmp_path: Path, kind: pa.DataType) -> None:
    rows = pa.array([b"good " * 40, b"bad \xff", *[b"more " * 40] * 40], pa.large_binary())
    wide = rows if kind == pa.large_string() else rows.cast(pa.binary())
    bad = wide if kind == pa.binary() else wide.view(kind)
    path = write_parquet(tmp_path / "a.parquet", text=bad)
    with pytest.raises(
        UserError,
        match=r"row 2 is not UTF-8 \(byte 4 is 0xff\): convert the text to UTF-8, or give data\.on_invalid=replace",
    ):
        source(path)
    assert texts(source(path, on_invalid="replace"))[1] == "bad �"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", "plain text\n".encode("utf-16"), r"is UTF-16, not UTF-8: convert it by iconv -f UTF-16 -t UTF-8"),
        ("a.txt", ("\ufeff" + "你好世界" * 100).encode("utf-16-le"), "is UTF-16.*iconv"),
        ("a.jsonl", codecs.BOM_UTF16_BE + as_jsonl(DOCUMENTS).decode().encode("utf-16-be"), "is UTF-16.*iconv"),
        ("a.txt", "plain text\n".encode("utf-32"), "is UTF-32.*iconv"),
        ("a.txt", ("plain text\n" * 9).encode("utf-16-le"), "looks like UTF-16LE.*iconv -f UTF-16LE"),
        ("a.txt", ("plain text\n" * 9).encode("utf-16-be"), "looks like UTF-16BE"),
        ("a.txt", "naïve café\n".encode("latin-1"), r"byte 2 is 0xef.*iconv -f WINDOWS-1252 -t UTF-8 .*a\.txt"),
        ("a.pdf", b"%PDF-1.4 and so on", "is a PDF"),
        ("a.docx", b"PK\x03\x04rest", r"is a document of a word processor: save it as plain text \(\.txt\)"),
        ("a.ODT", b"PK\x03\x04rest", "is a document of a word processor"),
        ("a.epub", b"PK\x03\x04rest", "is an e-book: save it as plain text"),
        ("a.zip", b"PK\x03\x04rest", "is a zip archive: unpack it"),
        ("a.txt", b" \n\t\n", "contains no text, only blanks: give a file with text$"),
        ("a.json", b'["one", "two"]', r'a string, not an object with fields; write each text as \{"text": "\.\.\."\}$'),
        ("a.json", b"[[1]]", "a list, not an object with fields; correct or remove this row$"),
        (
            "a.txt",
            LFS_POINTER,
            "is a git-lfs pointer instead of the file itself: install git-lfs, then run git lfs pull",
        ),
        ("a.parquet", LFS_POINTER, "git-lfs pointer"),
        ("a.jsonl", LFS_POINTER, "git-lfs pointer"),
        ("a.txt", gzip.compress(b"x" * 100, mtime=0), "gzip: let its name end in .gz"),
        (
            "a.csv",
            b"id,body\n1,x\n",
            r'no column "text" \(data\.field\) in its first line: give data\.field= with one of: id, body',
        ),
        ("a.csv", b"id,text\n1,a,b\n", "line 2 has 3 cells, but the first line has 2: quote cells"),
        ("a.csv", b"id,text\n1,two\nlines\n", "line 3 has 1 cell, but the first line has 2: add the missing cells"),
        ("a.csv", b'id,text\n\n1,"a\nb",c\n', "line 3 has 3 cells"),
        ("a.csv", b"\n\nid,text\n1,a,b\n", "line 4 has 3 cells"),
        ("a.csv", b"sep=,\nid,text\n1,a,b\n", "line 3 has 3 cells"),
        ("a.csv", b"sep=,\n", "no text"),
        ("a.csv", b"sep=,\nsep=,\n1,2\n", "has no column .*sep="),
        ("a.csv", b'id,text\n1,"a"b\n', "line 2 is not CSV: .*; check its quotes"),
        (
            "a.csv",
            b'id,text\n1,"a\n2,b\n3,"c"\n',
            "line 4, in the row that begins at line 2, is not CSV: .*; check its",
        ),
        ("a.csv", b'id,text\n1,"never closed\n2,b\n', "line 2 begins a row with a quoted cell that does not end: add"),
        ("a.json", as_array(DOCUMENTS)[:-1], r"ends after entry 60, without the \] of its array: add"),
        ("a.json", as_array(DOCUMENTS)[:-5], "entry 60 is not JSON"),
        ("a.json", b'{"a": "b", "c": []}', r'entry 1 has no field "text" \(data\.field\): give data\.field=a$'),
        ("a.json", b'{"a": [1]}', r'"text" \(data\.field\): no other field contains text; give another file$'),
        (
            "a.jsonl",
            b'{"text": "x"}\n{"body": "y"}\n',
            r'line 2 has no field "text" \(data\.field\): add it, or remove this row$',
        ),
        ("a.json", b"plain words", "entry 1 is not JSON: Expecting value; correct or remove it$"),
        ("a.json", b'[{"text": "never closed\n"}]', "entry 1 is not JSON: Invalid control character; correct"),
        ("a.jsonl", b'{"text": "never closed}\n', r"line 1 is not JSON: Unterminated string, column 10; correct"),
        ("a.jsonl", b'{"text": ["a"]}\n', r'line 1 has a list in the field "text" \(data\.field\), not text'),
        ("a.jsonl", b'{"text": ["a"], "t": "b"}\n', r"not text: give data\.field=t, or correct this row$"),
        ("a.jsonl", b'{"text": null, "t": "b"}\n', "line 1 has null.*, not text: correct or remove this row$"),
        (
            "a.jsonl",
            b'{\n  "text": "a"\n}\n',
            r"line 1 is only the beginning of a JSON object: write .* end in \.json$",
        ),
        ("a.jsonl", b'{"text": 42}\n', "line 1 has a number"),
        ("a.json", b'[{"text": 42}]', "entry 1 has a number"),
        ("a.json", b'[{"text": "x"}, {"text": ' + b"9" * 5000 + b"}]", "entry 2 has a number"),
        ("a.jsonl", b'{"text": "x", "t": NaN}\n[1]\n', "line 2 has no field.*a list"),
        ("a.jsonl", b'{"text": "ok"}\n{"text": "bad \\ud83d here"}\n', r"line 2 has half of a surrogate pair, \\ud83d"),
        ("a.json", b'[{"text": "bad \\udc00"}]', "entry 1 has half of a surrogate pair"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes, said: str
) -> None:
    monkeypatch.setattr(decoding, "sys", SimpleNamespace(platform="linux"))  # which has iconv
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=said) as error:
        source(tmp_path / name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", "plain text\n".encode("utf-16"), "is UTF-16, not UTF-8: open it in a text editor"),
        (
            "a.txt.gz",
            gzip.compress("plain text\n".encode("utf-16")),
            "is UTF-16, not UTF-8: unpack it, open it in a text",
        ),
        ("a.txt", "naïve café\n".encode("latin-1"), "if its encoding is WINDOWS-1252, open it in a text editor"),
    ],
)
def test_on_windows_no_program_that_it_lacks_is_advised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes, said: str
) -> None:
    (tmp_path / name).write_bytes(content)
    monkeypatch.setattr(decoding, "sys", SimpleNamespace(platform="win32"))
    with pytest.raises(UserError, match=said) as error:
        source(tmp_path / name)
    assert "iconv" not in str(error.value)


def test_an_error_in_a_later_row_group_names_the_row_of_the_file(tmp_path: Path) -> None:
    rows = pa.array([b"good", b"good", b"bad \xff"], pa.binary())
    pyarrow.parquet.write_table(pa.table({"text": rows}), tmp_path / "a.parquet", row_group_size=2)
    with pytest.raises(UserError, match=r"a\.parquet, row 3 is not UTF-8"):
        list(parquet_texts(tmp_path / "a.parquet", Reading("text"), 1))


def test_the_field_of_one_file_is_not_advised_for_several(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n' * 9)
    (tmp_path / "b.jsonl").write_text('{"body": "y"}\n')
    with pytest.raises(
        UserError, match=r"give data\.field=body, if all files have this field; otherwise leave this file out$"
    ):
        texts(source(tmp_path))


@pytest.mark.parametrize(
    "content",
    ["naïve café à la crème\n".encode("latin-1") * 50, "Привет мир\n".encode("cp1251") * 50, b"abc\xff\xfe" * 20],
)
def test_replacing_much_of_a_text_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(
        UserError, match=r"is not UTF-8 text: \d+ of its first .* are invalid, too many.*if its encoding is"
    ):
        source(tmp_path / "a.txt", on_invalid="replace")


def test_utf16_is_never_read_with_replacements(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(("\ufeff" + "你好世界" * 1000).encode("utf-16-le"))
    with pytest.raises(UserError, match="is UTF-16"):
        source(tmp_path / "a.txt", on_invalid="replace")


def test_replaced_characters_are_counted_and_real_replacement_characters_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_bytes(("�" * 7 + "x" * 1000).encode() + b"\xff\xf0\x9f" + b"y" * 500)
    for size in (1, 5, 1 << 20):
        monkeypatch.setattr("positron.data.decoding.BLOCK_BYTES", size)
        # the first of three invalid bytes comes after a thousand good characters: never too many
        text_source = source(tmp_path / "a.txt", on_invalid="replace")
        assert "".join(texts(text_source)) == "�" * 7 + "x" * 1000 + "��" + "y" * 500
        assert "WARNING: 2 invalid characters were replaced" in text_source.summary()


@pytest.mark.parametrize("escape", ["\\ud83d", "\\udc00 and", "\\ud83d\\ud83d"])
def test_half_a_surrogate_pair_is_replaced_on_request(tmp_path: Path, escape: str) -> None:
    rows = as_jsonl(DOCUMENTS) + f'{{"text": "a {escape} b \\ud83d\\ude00"}}\n'.encode()
    (tmp_path / "a.jsonl").write_bytes(rows)
    last = texts(source(tmp_path / "a.jsonl", on_invalid="replace"))[-1]
    assert last.startswith("a �")
    assert last.endswith(" b 😀")


@pytest.mark.parametrize(
    "other",
    [
        pytest.param("[" * 100_000 + "]" * 100_000, id="deep", marks=pytest.mark.slow),
        pytest.param("9" * 5000, id="long"),
        pytest.param('{"a": "]\\"["}', id="nested"),
        pytest.param("-" + "7" * 9000, id="negative"),
    ],
)
def test_other_fields_may_hold_anything(tmp_path: Path, other: str) -> None:
    lines = "".join(f'{{"x": {other}, "text": {json.dumps(d)}, "y": [1, {{}}]}}\n' for d in DOCUMENTS[:25])
    (tmp_path / "a.jsonl").write_text(lines, encoding="utf-8")
    assert texts(source(tmp_path / "a.jsonl")) == DOCUMENTS[:25]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff\xfe", "UTF-16"),
        (b"caf\xe9", "0xe9"),
        (b'{"body": "x"}', r"rename .* to \"text\" \(the file has: body\)$"),
    ],
)
def test_messages_to_evaluate_name_no_settings_of_training(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / ("a.jsonl" if content.startswith(b"{") else "a.txt")
    path.write_bytes(content)
    with pytest.raises(UserError, match=said) as error:
        texts_of_file(str(path))
    assert "data." not in str(error.value)
    with pytest.raises(UserError, match="No such file") as error:
        texts_of_file(str(tmp_path / "missing.txt"))
    assert "data." not in str(error.value)


@pytest.mark.parametrize(("exponent", "is_read"), [(10, True), (18, False), (21, False)])
def test_zstd_with_a_long_window_says_how_to_unpack_it(tmp_path: Path, exponent: int, is_read: bool) -> None:
    """A frame of one raw block; its window is 2 ** (10 + exponent) bytes (RFC 8878, 3.1.1)."""
    content = as_text(DOCUMENTS)
    block = (len(content) << 3 | 1).to_bytes(3, "little") + content
    (tmp_path / "a.txt.zst").write_bytes(b"\x28\xb5\x2f\xfd\x00" + bytes([exponent << 3]) + block)
    if is_read:
        assert texts(source(tmp_path / "a.txt.zst")) == DOCUMENTS
    else:
        with pytest.raises(UserError, match=r"unpack it with zstd -d --long=31 .*a\.txt\.zst"):
            source(tmp_path / "a.txt.zst")


# folders and patterns


def listed(path: Path) -> tuple[list[str], str]:
    listing = list_files(str(path))
    return [str(file.relative_to(path)) for file in listing.files], listing.describe_skipped()


def write(path: Path, content: str = "text\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def test_on_windows_every_folder_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There, `os.DirEntry.stat` sets the device and the inode of what is not a link to 0, as its documentation says."""

    class Entry:
        def __init__(self, entry: os.DirEntry[str]) -> None:
            self.name, self.path, self.is_symlink, self._entry = entry.name, entry.path, entry.is_symlink, entry

        def stat(self) -> os.stat_result:
            mode, _, _, _, *others = self._entry.stat()
            return os.stat_result((mode, 0, 0, 0, *others))

    original = os.scandir
    monkeypatch.setattr(os, "scandir", lambda folder: map(Entry, original(folder)))
    for name in ("a/one.txt", "a/deep/two.txt", "b/three.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    listing = list_files(str(tmp_path))
    assert {path.name for path in listing.files} == {"one.txt", "two.txt", "three.txt"}
    assert not listing.skipped


def test_linked_folders_are_followed_once_and_broken_links_are_named(tmp_path: Path) -> None:
    root, other = tmp_path / "root", tmp_path / "other"
    write(root / "a.txt")
    write(root / "deep/b.txt")
    write(other / "c.txt")
    (root / "sub").symlink_to(other)
    (root / "again").symlink_to(root / "deep")
    (root / "loop").symlink_to(root)
    (root / "deep/up").symlink_to(tmp_path)
    (other / "back").symlink_to(root)
    (root / "broken.txt").symlink_to(root / "nothing.txt")
    (root / "same.txt").symlink_to(root / "a.txt")
    files, skipped = listed(root)
    assert files == ["a.txt", "deep/b.txt", "sub/c.txt"]
    assert "broken.txt (a link to a missing file)" in skipped
    assert "same.txt (a link to a file that is read already)" in skipped
    known = list_files(str(root)).skipped["a link to a folder that is read already"]
    assert sorted(known) == ["again", "back", "loop", "up"]


def test_hidden_files_empty_archives_and_other_formats_are_skipped_and_named(tmp_path: Path) -> None:
    for name in ("a.txt", "._a.txt", ".git/b.txt", "c.png", "d.pdf", "e.py", "f.rs", "empty.txt"):
        write(tmp_path / name)
    for name in ("empty.parquet", "empty.txt.gz"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "UP.TXT.GZ").write_bytes(gzip.compress(b"upper"))
    files, skipped = listed(tmp_path)
    assert files == ["UP.TXT.GZ", "a.txt", "empty.txt"]
    assert "._a.txt, .git (hidden)" in skipped
    assert "c.png, d.pdf, e.py and 1 more (another format)" in skipped
    assert "empty.parquet, empty.txt.gz (empty)" in skipped


def test_a_folder_may_hold_json_and_csv_of_other_things(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(as_text(DOCUMENTS[:30]))
    (tmp_path / "b.json").write_bytes(as_array(DOCUMENTS[30:]))
    write(tmp_path / "metadata.json", '{"title": "a book"}')
    write(tmp_path / "table.csv", "id,number\n1,2\n")
    write(tmp_path / "empty.json", "")
    write(tmp_path / "empty.csv", "\n")
    text_source = source(tmp_path)
    assert texts(text_source) == texts_of_file(str(tmp_path)) == DOCUMENTS
    assert 'metadata.json, table.csv (no field "text")' in text_source.summary()
    (tmp_path / "a.txt").unlink()
    (tmp_path / "b.json").unlink()
    (tmp_path / "empty.json").unlink()
    (tmp_path / "empty.csv").unlink()
    with pytest.raises(UserError, match=r"no file that can be used: metadata\.json, table\.csv"):
        source(tmp_path)
    write(tmp_path / "broken.json", '[{"text": "a"')
    with pytest.raises(UserError, match=r"broken\.json, entry 1 is not JSON"):
        source(tmp_path)


def test_run_folders_are_skipped_wherever_they_are(tmp_path: Path) -> None:
    write(tmp_path / "a.txt")
    write(tmp_path / "outputs/run/run.json", "{}")
    write(tmp_path / "outputs/run/samples.md")
    write(tmp_path / "shared/moved/config.json", "{}")
    write(tmp_path / "shared/moved/metrics.jsonl", "{}")
    write(tmp_path / "book/outputs/chapter.txt")
    files, skipped = listed(tmp_path)
    assert files == ["a.txt", "book/outputs/chapter.txt"]
    assert "moved, outputs (run folders)" in skipped
    assert [file.name for file in list_files(f"{tmp_path}/**/*.*").files] == ["a.txt", "chapter.txt"]


def test_files_have_the_same_order_on_windows_which_ignores_case() -> None:
    names = ["a.txt", "B.txt", "a/z.txt", "A/y.txt", "a-b/c.txt", "ä.txt"]
    on_windows = sorted(map(PureWindowsPath, names), key=by_name)
    assert on_windows != sorted(map(PureWindowsPath, names))
    assert [path.as_posix() for path in on_windows] == [str(path) for path in sorted(map(PurePosixPath, names))]


def test_a_corpus_of_a_pattern_has_a_name_that_every_system_can_have(tmp_path: Path) -> None:
    write(tmp_path / "part-1-of-2.txt")
    name = source(f"{tmp_path}/part-?-*f-2.txt").name
    assert name.startswith("text-part-_-_f-2-")
    assert fault_of_name(name) is None


def test_a_pattern_takes_what_looks_like_text(tmp_path: Path) -> None:
    for name in ("a.log", "b.txt", "c.jsonl"):
        write(tmp_path / name, '{"text": "x"}\n')
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\0\0")
    (tmp_path / "paper.pdf").write_bytes(b"%PDF-1.5 text")
    listing = list_files(f"{tmp_path}/*")
    assert [file.name for file in listing.files] == ["a.log", "b.txt", "c.jsonl"]
    assert listing.describe_skipped() == "paper.pdf, picture.png (not text)"


def test_a_path_that_is_not_a_regular_file_is_refused(tmp_path: Path) -> None:
    if sys.platform == "win32":
        pytest.skip("Windows has no devices among its files")
    (tmp_path / "broken.txt").symlink_to(tmp_path / "nothing")
    for path, said in (
        ("/dev/null", "not a regular file"),
        (str(tmp_path / "broken.txt"), "a link to a missing file"),
        (str(tmp_path / ("x" * 300)), "is a text, not the path of a file"),
        (str(tmp_path), "contains no file.*broken.txt"),
    ):
        with pytest.raises(UserError, match=said):
            list_files(path)
