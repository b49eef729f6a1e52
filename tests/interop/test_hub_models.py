"""Models are downloaded from a hub on this machine: once, whole, and nothing that an import does not read."""

from __future__ import annotations

import hashlib
import http.server
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import FakeClock, Loopback
from saved_runs import SHAPES, char, corpus, gpt_config, random_model, save_run

from positron.config import DataConfig
from positron.data import hub_download
from positron.data.hub import Repository
from positron.interop.formats import export
from positron.interop.hub_models import fetch_model
from positron.interop.importing import read_model
from positron.interop.names import needs_import
from positron.interop.source import open_source
from positron.system.errors import Unreachable, UserError

COMMIT = "c0ffee" * 6 + "beef"
REPO = "some/model"


class ModelHub(Loopback):
    """The part of the hub's interface that the client asks for: what a model holds, and its files."""

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__()
        self.lies: set[str] = set()
        for name, content in files.items():
            self.files[f"/{REPO}/resolve/{COMMIT}/{name}"] = content

    def sha256(self, path: str) -> str:
        return hashlib.sha256(self.files[path] + (b"!" if path in self.lies else b"")).hexdigest()

    def headers(self, path: str) -> dict[str, str]:
        if path not in self.files:
            return {"X-Error-Code": "EntryNotFound" if "/resolve/" in path else "RepoNotFound"}
        return {"ETag": f'"{self.sha256(path)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}

    def answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        path = request.path.partition("?")[0]
        if path.startswith(f"/api/models/{REPO}"):
            siblings = [
                {
                    "rfilename": name.partition(f"{COMMIT}/")[2],
                    "size": len(content),
                    "lfs": {"sha256": self.sha256(name), "size": len(content), "pointerSize": 1},
                }
                for name, content in self.files.items()
                if "/resolve/" in name
            ]
            facts = {"id": REPO, "_id": "1", "sha": COMMIT, "private": False, "disabled": False, "downloads": 0}
            self.files[path] = json.dumps({**facts, "likes": 0, "tags": [], "siblings": siblings}).encode()
        super().answer(request)

    def downloads(self) -> list[str]:
        return [path.partition(f"{COMMIT}/")[2] for path in self.requests if "/resolve/" in path]


@pytest.fixture
def model_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelHub]:
    model = random_model(gpt_config(char().vocab_size, **SHAPES["llama"]))
    export(open_source(save_run(tmp_path / "run", model, char())), "hf", tmp_path / "hf")
    files = {path.name: path.read_bytes() for path in (tmp_path / "hf").iterdir()}
    server = ModelHub({**files, "flax_model.msgpack": b"not read", "pytorch_model.bin": b"not read"})
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("POSITRON_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 1)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", 1)
    monkeypatch.setattr(hub_download, "SPARE_BYTES", 0)
    monkeypatch.setattr(hub_download, "time", FakeClock())
    yield server
    server.close()


def seen_by_processes(model_hub: ModelHub, folder: Path) -> dict[str, str]:
    """The environment of a command: its process was forked before the test began."""
    return {"HF_ENDPOINT": model_hub.url, "POSITRON_CACHE": str(folder / "cache"), "POSITRON_PATIENCE_S": "20"}


def test_a_model_is_downloaded_once_and_only_what_is_read(model_hub):
    folder = fetch_model(REPO)
    assert sorted(set(model_hub.downloads())) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert read_model(folder).config.d_model == 32
    model_hub.requests.clear()
    assert fetch_model(REPO) == folder
    assert model_hub.downloads() == []


def test_an_index_beside_model_safetensors_is_not_read(model_hub):
    """Repositories of mlx-lm have an index that maps each tensor to the single file."""
    index = json.dumps({"weight_map": {"model.norm.weight": "model.safetensors"}}).encode()
    model_hub.files[f"/{REPO}/resolve/{COMMIT}/model.safetensors.index.json"] = index
    assert read_model(fetch_model(REPO)).config.d_model == 32
    assert "model.safetensors.index.json" not in model_hub.downloads()


def test_a_download_that_breaks_off_is_tried_again(model_hub):
    model_hub.faults[f"/{REPO}/resolve/{COMMIT}/model.safetensors"] = ["reset", "503"]
    assert read_model(fetch_model(REPO)).config.d_model == 32


def test_a_file_that_is_not_what_the_repository_states_is_not_kept(model_hub, tmp_path):
    model_hub.lies.add(f"/{REPO}/resolve/{COMMIT}/model.safetensors")
    with pytest.raises(Unreachable, match="checksum"):
        fetch_model(REPO)
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_a_repository_that_does_not_exist_is_one_line(model_hub):
    with pytest.raises(UserError, match="the model no/body does not exist"):
        fetch_model("no/body")


@pytest.mark.parametrize(
    "content",
    [
        b"<html>Log in to the network</html>",
        b"\xff",
        b"[]",
        b"{}",
        b'{"id": "some/model", "siblings": []}',
        b'{"id": "some/model", "sha": "c0ffee", "siblings": [3]}',
    ],
)
def test_an_answer_that_is_not_that_of_a_hub_names_the_server(content, model_hub, monkeypatch, tmp_path):
    monkeypatch.setattr(model_hub, "answer", lambda request: model_hub._send(request, 200, content))
    says = f"cannot be downloaded: {model_hub.url} does not answer as the Hugging Face hub: log in to the network, or check"
    with pytest.raises(Unreachable, match=f"^the model some/model {says} HF_ENDPOINT$"):
        fetch_model(REPO)
    with pytest.raises(Unreachable, match=f"^the dataset some/data {says} HF_ENDPOINT$"):
        Repository(DataConfig("hub", repo="some/data", dir=str(tmp_path / "data")))


def test_a_name_that_no_repository_can_have_is_one_line(model_hub):
    with pytest.raises(UserError, match=r"^the model a--b/c cannot exist: .*repo_id: 'a--b/c': correct the name$"):
        fetch_model("a--b/c")


def test_a_mistyped_path_without_a_network_is_named_at_once(model_hub, monkeypatch, logged):
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")  # a name that no server resolves (RFC 6761)
    with pytest.raises(
        Unreachable, match=r"nodir/model cannot be downloaded: .*; if you meant a folder, correct the path$"
    ):
        fetch_model("nodir/model")
    assert logged == ["there is no folder nodir/model here: looking for the model nodir/model on the hub"]


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_a_variable_that_forbids_requests_is_named_at_once(variable, model_hub, monkeypatch, logged):
    monkeypatch.setenv(variable, "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # the library reads the variables once
    with pytest.raises(
        UserError, match=f"the model some/model cannot be downloaded, .* {variable} forbids .*: unset it$"
    ):
        fetch_model(REPO)
    assert len(logged) == 1
    assert model_hub.requests == []


def test_a_repository_without_weights_is_refused(model_hub):
    for name in ("model.safetensors", "pytorch_model.bin"):
        del model_hub.files[f"/{REPO}/resolve/{COMMIT}/{name}"]
    with pytest.raises(UserError, match=r"has neither model\.safetensors nor pytorch_model\.bin"):
        fetch_model(REPO)


def test_a_full_disk_is_told_before_the_download(model_hub, monkeypatch):
    monkeypatch.setattr(hub_download, "SPARE_BYTES", 10**15)
    with pytest.raises(UserError, match="POSITRON_CACHE"):
        fetch_model(REPO)


def test_the_command_imports_from_the_hub(model_hub, run_command, tmp_path):
    result = run_command("import_", REPO, "--name", "fetched", **seen_by_processes(model_hub, tmp_path))
    assert result.code == 0, result.err
    assert "downloading model.safetensors" in result.err


def test_a_path_that_is_no_repository_either_is_one_line(run_command):
    result = run_command("import_", "no such/thing here")
    assert result.code == 2
    assert "there is no folder or file" in result.err


@pytest.mark.slow
def test_training_begins_with_a_model_of_the_hub_in_one_argument(model_hub, run_command, tmp_path):
    (tmp_path / "my.txt").write_text("\n\n".join(corpus()), encoding="utf-8")
    settings = ("device=cpu", "train.batch_tokens=256", "schedule.warmup_steps=1", "name=more", "train.max_steps=3")
    train = ("train", f"init_from={REPO}", "data=text", "data.path=my.txt", *settings)
    first = run_command(*train, "train.stop_at=2", **seen_by_processes(model_hub, tmp_path))
    assert first.code == 0, first.err
    assert "importing it as outputs/model" in first.err
    model_hub.requests.clear()
    again = run_command(*train, **seen_by_processes(model_hub, tmp_path))
    assert again.code == 0, again.err
    assert model_hub.requests == []


@pytest.mark.parametrize("name", ["outputs/typo", "a b/c", "nowhere", "x/y/z", "../x"])
def test_a_mistyped_run_is_not_looked_for_on_the_hub(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs").mkdir()
    assert not needs_import(name)
