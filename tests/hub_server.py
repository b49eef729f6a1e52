"""A dataset of the hub, served from this machine."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from conftest import FakeClock, Loopback

from positron.config import DataConfig, TokenizerConfig
from positron.data import hub

COMMIT = "c0ffee" * 6 + "beef"

CHAR = TokenizerConfig("char")

STORIES = [[f"File {f}, story {i}: {'once upon a time ' * (i % 5 + 1)}é😀" for i in range(40)] for f in range(7)]


class Hub(Loopback):
    """The part of the hub's interface that the client asks for: what a dataset holds, and its files."""

    def __init__(self) -> None:
        super().__init__()
        self.lies: set[str] = set()  # files whose content is not what the repository says

    def add(self, name: str, documents: list[str], row_group_size: int = 10) -> None:
        sink = io.BytesIO()
        pyarrow.parquet.write_table(pa.table({"text": documents}), sink, row_group_size=row_group_size)
        self.files[f"/datasets/some/stories/resolve/{COMMIT}/{name}"] = sink.getvalue()

    def path(self, name: str) -> str:
        return f"/datasets/some/stories/resolve/{COMMIT}/{name}"

    def headers(self, path: str) -> dict[str, str]:
        if path not in self.files:
            return {"X-Error-Code": "RepoNotFound"} if path.startswith("/api/datasets/") else {}
        return {"ETag": f'"{self.sha256(path)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}

    def sha256(self, path: str) -> str:
        return hashlib.sha256(self.files[path] + (b"!" if path in self.lies else b"")).hexdigest()

    def answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        path = request.path.partition("?")[0]
        if path.startswith("/api/datasets/some/stories"):
            siblings = [
                {
                    "rfilename": name.split(f"{COMMIT}/")[1],
                    "size": len(content),
                    "lfs": {"sha256": self.sha256(name), "size": len(content), "pointerSize": 1},
                }
                for name, content in self.files.items()
                if COMMIT in name
            ]
            facts = {"id": "some/stories", "_id": "1", "sha": COMMIT, "private": False, "disabled": False}
            facts |= {"downloads": 0, "likes": 0, "tags": [], "siblings": [*siblings, {"rfilename": "README.md"}]}
            self.files[path] = json.dumps(facts).encode()
        super().answer(request)


@pytest.fixture
def stories_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub()
    for f, documents in enumerate(STORIES):
        server.add(f"data/train-{f:05d}.parquet", documents)
    server.add("data/validation-00000.parquet", ["never read"])
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 1)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", 1)
    monkeypatch.setattr(hub, "SPARE_BYTES", 0)
    monkeypatch.setattr(hub, "time", FakeClock())
    yield server
    server.close()


def config(folder: Path, **options: Any) -> DataConfig:
    chosen = {"repo": "some/stories", "files": "data/train-*", "packing": "windows", "val_fraction": 0.1, **options}
    return DataConfig("hub", dir=str(folder / "data"), **chosen)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
