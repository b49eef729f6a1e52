"""Download from the Hugging Face hub those files of a model that are needed to turn the model into a run."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from positron.data.hub_download import ask_hub, download
from positron.interop.names import ORIGINAL
from positron.system.download import cache_folder
from positron.system.errors import UserError

logger = logging.getLogger(__name__)

_DESCRIPTION = ("config.json", "tokenizer.json", "generation_config.json", "chat_template.jinja")
_INDEX = "model.safetensors.index.json"


def fetch_model(name: str, revision: str | None = None) -> Path:
    """Download the files of a model into the cache, except those that are already there, and return their folder.

    `name` is OWNER/NAME, or gpt2 for openai-community/gpt2. `revision` is a branch, tag or commit (None: the default branch).
    Raises UserError if the repository does not exist or lacks a file that an import needs, and Unreachable if the network
    fails.
    """
    from huggingface_hub import HfApi

    repo = ORIGINAL.get(name, name)
    logger.info(f"there is no folder {name} here: looking for the model {repo} on the hub")
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    info = ask_hub(
        lambda: api.model_info(repo, revision=revision, files_metadata=True, timeout=10),
        f"the model {repo}",
        remedy="Run the same command again when the network is back; if you meant a folder, correct the path",
        waits_for_name=False,
    )
    files = {
        file.rfilename: {"name": file.rfilename, "size": file.size, "sha256": file.lfs.sha256 if file.lfs else None}
        for file in info.siblings or []
    }
    commit = str(info.sha)
    folder = cache_folder("models") / f"{repo.replace('/', '--')}-{commit[:12]}"
    for file in _wanted(files, repo):
        if not _is_here(folder / file["name"], file):
            size = "" if file["size"] is None else f" ({file['size'] / 1e6:,.1f} MB)"
            logger.info(f"downloading {file['name']} of {repo}{size}")
            download(repo, "model", commit, file, folder)
    return folder


def _wanted(files: dict[str, dict[str, Any]], repo: str) -> list[dict[str, Any]]:
    """Return those of a repository's files that an import reads.

    `files`: maps the name of each file to a dict with the keys `name`, `size` and `sha256`. `repo`: the name of the repository,
    for the message. An import reads the first of these that exists, as transformers does: model.safetensors, the files of the
    index, pytorch_model.bin. Raises UserError if a file that every import needs is missing.
    """
    if "model.safetensors" not in files and _INDEX in files:
        weights = [name for name in files if name.startswith("model-") and name.endswith(".safetensors")] + [_INDEX]
    else:
        weights = next(([name] for name in ("model.safetensors", "pytorch_model.bin") if name in files), [])
    missing = [name for name in _DESCRIPTION[:2] if name not in files]
    if missing or not weights:
        lacking = f"no {missing[0]}" if missing else "neither model.safetensors nor pytorch_model.bin"
        raise UserError(f"the model {repo} on the hub has {lacking}, so it cannot be imported: choose another model")
    return [files[name] for name in (*_DESCRIPTION, *sorted(weights)) if name in files]


def _is_here(path: Path, file: dict[str, Any]) -> bool:
    """Tell whether the file `path` exists and, if the hub states a size, has this size.

    `file`: a dict with the keys `name`, `size` and `sha256`, as the hub states them. A stated checksum is not
    tested again: `download` has tested it, and would have deleted a file with a wrong checksum.
    """
    return path.is_file() and file["size"] in (None, path.stat().st_size)
