"""Documents, and the bytes of the files that hold them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from positron.config import DataConfig
from positron.data.files import SEPARATOR, FileSource

DOCUMENTS = [f"Story {i}.\nThe {['cat', 'dog', 'bird'][i % 3]} said “hello” {'x' * (i % 7)} 😀." for i in range(60)]


def zst(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.output_stream(sink, compression="zstd") as out:
        out.write(content)
    return sink.getvalue().to_pybytes()


def as_text(documents: list[str]) -> bytes:
    return f"\n{SEPARATOR}\n".join(documents).encode()


def as_jsonl(documents: list[str]) -> bytes:
    return "".join(json.dumps({"id": i, "text": d}) + "\n" for i, d in enumerate(documents)).encode()


def as_parquet(documents: list[str]) -> bytes:
    sink = pa.BufferOutputStream()
    pyarrow.parquet.write_table(pa.table({"id": range(len(documents)), "text": documents}), sink, row_group_size=7)
    return sink.getvalue().to_pybytes()


def as_arrow(documents: list[str], new_file: Any = pa.ipc.new_stream) -> bytes:
    table = pa.table({"id": range(len(documents)), "text": documents})
    sink = pa.BufferOutputStream()
    with new_file(sink, table.schema) as out:
        out.write_table(table, max_chunksize=7)
    return sink.getvalue().to_pybytes()


def source(path: Path | str, **options: Any) -> FileSource:
    return FileSource(DataConfig("text", str(path), **{"val_fraction": 0.2, **options}))
