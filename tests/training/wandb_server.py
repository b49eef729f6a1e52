"""wandb's own files read back, and a server on 127.0.0.1 that keeps what wandb uploads, as wandb.ai would."""

from __future__ import annotations

import gzip
import http.server
import json
import struct
import threading
import time
import zlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BLOCK = 32_768


def records(path: Path) -> Iterator[Any]:
    """The records of a run-ID.wandb file: LevelDB's log format after wandb's own seven bytes, with wandb's messages."""
    from wandb.proto import wandb_internal_pb2

    messages: Any = wandb_internal_pb2

    data = path.read_bytes()
    if not data:
        return
    assert struct.unpack("<4sH", data[:6]) == (b":W&B", 0xBEE1)
    place, parts = 7, b""
    while place < len(data):
        if BLOCK - place % BLOCK < 7:  # no header fits: zeros
            place += BLOCK - place % BLOCK
            continue
        if len(data) - place < 7:
            return
        checksum, length, kind = struct.unpack("<IHB", data[place : place + 7])
        part = data[place + 7 : place + 7 + length]
        if len(part) < length:  # it is still being written
            return
        assert zlib.crc32(bytes([kind]) + part) == checksum
        place += 7 + length
        parts = part if kind in (1, 2) else parts + part  # full, first, middle, last
        if kind in (1, 4):
            record = messages.Record()
            record.ParseFromString(parts)
            yield record


@dataclass
class Logged:
    """What one folder of wandb holds."""

    id: str = ""
    name: str = ""
    group: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)  # nested keys joined by dots
    exit_code: int | None = None
    folder: Path = Path()

    def table(self) -> dict[str, Any]:
        """The newest one of the samples, as the file that it is: columns and data."""
        path = [row["samples.path"] for row in self.history if "samples.path" in row][-1]
        table: dict[str, Any] = json.loads((self.folder / "files" / path).read_text(encoding="utf-8"))
        return table


def logged(folder: Path, seconds: float = 10) -> Logged:
    """The folder of a run that has ended: wandb's service may write the last of it after the run's own end."""
    until = time.monotonic() + seconds
    while (run := _read(folder)).exit_code is None and time.monotonic() < until:
        time.sleep(0.02)
    return run


def _read(folder: Path) -> Logged:
    (path,) = folder.glob("*.wandb")
    run = Logged(folder=folder)
    for record in records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run.id, run.name, run.group = record.run.run_id, record.run.display_name, record.run.run_group
            run.config = {item.key: json.loads(item.value_json) for item in record.run.config.update}
        elif kind == "history":
            items = {".".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
            run.history.append({key: json.loads(value) for key, value in items.items()})
        elif kind == "exit":
            run.exit_code = record.exit.exit_code
    return run


class WandbServer:
    """As much of wandb's server as a run needs: what is uploaded at an offset takes the place of what was there."""

    def __init__(self) -> None:
        self.history: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)  # run id -> line -> row
        self.exit_codes: dict[str, int] = {}
        self.runs: dict[str, dict[str, Any]] = {}  # run id -> what was said of it last
        self.silent = threading.Event()  # rows are not answered any more
        self.closing = threading.Event()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                outer._receive(self)

            do_PUT = do_GET = do_POST

            def log_message(self, *_: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        self.environment = {
            "WANDB_BASE_URL": f"http://127.0.0.1:{self.server.server_port}",
            "WANDB_API_KEY": "0123456789" * 4,
        }

    def steps(self, run_id: str) -> list[int]:
        return [row["_step"] for _, row in sorted(self.history[run_id].items())]

    def close(self) -> None:
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()

    def _receive(self, request: http.server.BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        if request.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        if request.path == "/graphql":
            asked = json.loads(body)
            answer = self._answer(asked.get("operationName", ""), asked.get("variables") or {})
        elif request.path.endswith("/file_stream"):
            if self.silent.is_set():
                self.closing.wait(60)
                return
            answer = self._keep(request.path.split("/")[-2], json.loads(body))
        else:
            answer = {}
        text = json.dumps(answer).encode()
        request.send_response(200)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(text)))
        request.end_headers()
        request.wfile.write(text)

    def _keep(self, run_id: str, sent: dict[str, Any]) -> dict[str, Any]:
        lines = (sent.get("files") or {}).get("wandb-history.jsonl")
        if lines:
            for place, line in enumerate(lines["content"], lines["offset"]):
                self.history[run_id][place] = json.loads(line)
        if sent.get("complete"):
            self.exit_codes[run_id] = sent["exitcode"]
        return {}

    def _answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        if operation == "UpsertBucket":
            name = variables["name"]
            is_new = name not in self.runs
            self.runs[name] = {**self.runs.get(name, {}), **{k: v for k, v in variables.items() if v is not None}}
            entity = {"id": "E", "name": "me"}
            project = {"id": "P", "name": variables["project"], "entity": entity}
            bucket = {"id": name, "name": name, "displayName": name, "config": "{}", "project": project}
            return {"data": {"upsertBucket": {"bucket": {**bucket, "historyLineCount": 0}, "inserted": is_new}}}
        if operation == "RunResumeStatus":
            return {
                "data": {
                    "model": {
                        "id": "P",
                        "name": "p",
                        "entity": {"id": "E", "name": "me"},
                        "bucket": self._resumed(variables["name"]),
                    }
                }
            }
        if operation == "ServerFeaturesQuery":
            return {"data": {"serverInfo": {"features": []}}}
        if operation == "Viewer":
            return {"data": {"viewer": {"id": "V", "entity": "me", "username": "me", "flags": "{}"}}}
        return {"errors": [{"message": f"{operation} is not known here"}]}

    def _resumed(self, run_id: str) -> dict[str, Any] | None:
        if run_id not in self.runs:
            return None
        rows = [row for _, row in sorted(self.history[run_id].items())]
        return {
            "id": run_id,
            "name": run_id,
            "displayName": run_id,
            "config": self.runs[run_id]["config"],
            "tags": [],
            "summaryMetrics": json.dumps(rows[-1] if rows else {}),
            "logLineCount": 0,
            "historyLineCount": len(rows),
            "eventsLineCount": 0,
            "historyTail": json.dumps([json.dumps(row) for row in rows[-1:]]),
            "eventsTail": "[]",
            "wandbConfig": '{"t": 1}',
        }
