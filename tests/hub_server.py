"""A dataset of the hub, served from this machine."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pyarrow as pa
import pyarrow.parquet
import pytest
from conftest import FakeClock, Loopback

from positron.config import DataConfig, TokenizerConfig
from positron.data import hub_download

COMMIT = "c0ffee" * 6 + "beef"

CHAR = TokenizerConfig("char")

STORIES = [[f"File {f}, story {i}: {'once upon a time ' * (i % 5 + 1)}é😀" for i in range(40)] for f in range(7)]


class Hub(Loopback):
    """The part of the hub's interface that the client asks for: what a dataset holds, and its files."""

    def __init__(self) -> None:
        super().__init__()
        self.lies: set[str] = set()  # files whose content is not what the repository says

    def add(self, name: str, documents: list[str], row_group_size: int = 10) -> None:
        self.add_table(name, pa.table({"text": documents}), row_group_size)

    def add_table(self, name: str, table: pa.Table, row_group_size: int = 10) -> None:
        sink = io.BytesIO()
        pyarrow.parquet.write_table(table, sink, row_group_size=row_group_size)
        self.files[f"/datasets/some/stories/resolve/{COMMIT}/{name}"] = sink.getvalue()

    def add_lines(self, name: str, rows: list[Any]) -> None:
        self.files[self.path(name)] = "".join(json.dumps(row) + "\n" for row in rows).encode()

    def path(self, name: str) -> str:
        return f"/datasets/some/stories/resolve/{COMMIT}/{name}"

    def headers(self, path: str) -> dict[str, str]:
        if path not in self.files:
            is_entry = "/resolve/" in path or "/tree/" in path
            return {"X-Error-Code": "EntryNotFound" if is_entry else "RepoNotFound"}
        return {"ETag": f'"{self.sha256(path)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}

    def sha256(self, path: str) -> str:
        return hashlib.sha256(self.files[path] + (b"!" if path in self.lies else b"")).hexdigest()

    def entries(self) -> dict[str, dict[str, Any]]:
        """Return what the hub says of each file and folder, by its path in the repository."""
        found: dict[str, dict[str, Any]] = {}
        for served, content in self.files.items():
            name = served.partition(f"/resolve/{COMMIT}/")[2]
            if name:
                facts = {"type": "file", "path": name, "size": len(content), "oid": self.sha256(served)[:40]}
                found[name] = {**facts, "lfs": {"oid": self.sha256(served), "size": len(content), "pointerSize": 1}}
                for folder in map(str, Path(name).parents[:-1]):
                    found[folder] = {"type": "directory", "path": folder, "oid": "0" * 40, "size": 0}
        return found

    def answer_api(self, request: http.server.BaseHTTPRequestHandler, path: str) -> bytes | None:
        """Return the answer about files and folders, None where there is no such folder."""
        kind, _, rest = path.removeprefix("/api/datasets/some/stories/").partition("/")
        inside = rest.partition("/")[2]
        if kind == "paths-info":
            body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
            asked = json.loads(body)["paths"] if body.startswith(b"{") else parse_qs(body.decode())["paths"]
            return json.dumps([self.entries()[name] for name in asked if name in self.entries()]).encode()
        below = [facts for name, facts in self.entries().items() if str(Path(name).parent) == (inside or ".")]
        if "recursive=true" in request.path.lower():
            below = [facts for name, facts in self.entries().items() if not inside or name.startswith(f"{inside}/")]
        return json.dumps(below).encode() if below or not inside else None

    def answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        path = request.path.partition("?")[0]
        if path.startswith(("/api/datasets/some/stories/tree/", "/api/datasets/some/stories/paths-info/")):
            content = self.answer_api(request, path)
            self.files.pop(path, None)
            if content is not None:
                self.files[path] = content
        elif path.startswith("/api/datasets/some/stories"):
            siblings = [
                {
                    "rfilename": name.split(f"{COMMIT}/")[1],
                    "size": len(content),
                    "lfs": {"sha256": self.sha256(name), "size": len(content), "pointerSize": 1},
                }
                for name, content in self.files.items()
                if f"/resolve/{COMMIT}/" in name
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
    monkeypatch.setattr(hub_download, "SPARE_BYTES", 0)
    for module in ("positron.data.hub_download", "huggingface_hub.file_download", "huggingface_hub.utils._http"):
        monkeypatch.setattr(f"{module}.time", FakeClock())
    yield server
    server.close()


def config(folder: Path, **options: Any) -> DataConfig:
    chosen = {"repo": "some/stories", "files": "data/train-*", "packing": "windows", "val_fraction": 0.1, **options}
    return DataConfig("hub", dir=str(folder / "data"), **chosen)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
