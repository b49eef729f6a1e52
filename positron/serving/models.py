"""Load the models that a server serves, and keep them in memory."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from positron.inference.sessions import Sessions
from positron.inference.text_model import Writer
from positron.run.folder import Run
from positron.run.load import load_model, model_files
from positron.serving.errors import ApiError
from positron.serving.worker import Worker
from positron.system.disk import readable_name, refuse_links_in
from positron.system.errors import UserError
from positron.system.file_cache import FileCache, Identity, identities
from positron.text.tokenizer import Tokenizer

MAX_SLOTS = 32  # number of texts that a model generates at the same time
MAX_CACHE_BYTES = 2**30  # memory for the caches of all slots of a model; an unused slot takes no memory
MAX_WAITING = 128  # number of texts that wait for a slot
MAX_DESCRIBED = 4096  # number of runs whose description is kept in memory, about 1 kB each
MAX_ON_DEMAND = 3  # number of models that are loaded on demand and in memory at the same time


@dataclass(frozen=True)
class Served:
    """Hold a model that the server has loaded, with the worker that generates its texts.

    `chats`: true if the model was fine-tuned on conversations. `context`: the context length in tokens. `created`: the Unix
    time of the checkpoint.
    """

    name: str
    chats: bool
    context: int
    created: int  # Unix time of the checkpoint
    tokenizer: Tokenizer
    worker: Worker


def slots_of(writer: Writer) -> int:
    """Return how many texts a model may generate at once, so that their key/value caches need at most 1 GiB (MAX_CACHE_BYTES).

    The number is at most 32 (MAX_SLOTS), and at least 1, even if a single cache does not fit.
    """
    return max(1, min(MAX_SLOTS, MAX_CACHE_BYTES // writer.engine().decoder.row_bytes))


def serve_run(run: Run, weights: str = "fp32", name: str | None = None) -> Served:
    """Load the model of a run, and start the worker that generates its texts. Raises UserError if it cannot be loaded.

    A run is the folder of one trained model. `weights`: the number format of the weights, fp32, bf16 or int8. `name`: the model
    name that clients use; if it is None, the name of the run's folder.
    """
    name, chats = name or readable_name(run.folder.resolve().name), run.is_chat
    model, tokenizer, path = load_model(run)
    created = int(path.stat().st_mtime)
    writer = Writer(model, tokenizer, weights=weights)
    # last, because after an error nobody would close the worker, whose thread keeps the model in memory
    worker = Worker(Sessions(writer.engine(), slots_of(writer)), MAX_WAITING)
    return Served(name, chats, model.config.context_length, created, tokenizer, worker)


class Models:
    """Hold the models of a server: those loaded at the start, and those of other runs, which are loaded when first used.

    A run is the folder of one trained model. Several threads may use an object at the same time.
    """

    def __init__(self, loaded: Sequence[Served] = (), runs: Callable[[], dict[str, Run]] = dict) -> None:
        """Store the loaded models, and `runs`, a function that returns all available runs by name.

        The first loaded model answers requests that name no model. `runs` may also return the runs of the loaded models.
        """
        self._fixed = {model.name: model for model in loaded}
        self.runs = runs
        self._on_demand: dict[str, tuple[list[Identity], Served]] = {}  # with its files, in the order of their last use
        self._guard = threading.Lock()
        self._described: FileCache[dict[str, Any]] = FileCache(MAX_DESCRIBED)

    @property
    def loaded(self) -> list[Served]:
        """Return the models that are loaded now."""
        return [*self._fixed.values(), *(model for _, model in list(self._on_demand.values()))]

    def describe(self) -> list[dict[str, Any]]:
        """Return the description of each model: OpenAI's fields, `max_model_len` as in vLLM, and Positron's field `chats`.

        `max_model_len` is the context length in tokens. `chats` is true if the model was fine-tuned on conversations. Runs that
        cannot be read are left out.
        """
        described = {
            name: _object(name, model.created, model.context, model.chats) for name, model in self._fixed.items()
        }
        for name, run in self.runs().items():
            if name not in described:
                files = (run.config_path, run.chat_path)
                with contextlib.suppress(UserError, OSError, KeyError):  # a run that cannot be read is left out
                    described[name] = self._described.get(files, functools.partial(_run_object, name, run))
        return list(described.values())

    def get(self, name: Any) -> Served | None:
        """Return the model `name`, and load it if it was not loaded at the start or by an earlier request.

        The model's worker is reserved, so that no other request closes the model before the caller has submitted its texts.
        The caller must then call `worker.release()`. The function returns None if the model must be loaded and there is no
        room for it at this moment, because 3 other models (MAX_ON_DEMAND) are busy.

        If a request has loaded the model, and the run was trained further since then, the model is loaded again. But if the old
        model is reserved or generating texts at this moment, the old model is returned. If `name` is None, the first model that
        was loaded at the start is returned. Raises ApiError if there is no such model, or if it cannot be loaded.
        """
        if name is None and self._fixed:
            name = next(iter(self._fixed))
        if isinstance(name, str) and name in self._fixed:
            return _reserved(self._fixed[name])
        runs = self.runs()
        if not isinstance(name, str) or name not in runs:
            known = ", ".join(list(dict.fromkeys([*self._fixed, *runs]))[:20])
            wrong = "the request names no model" if name is None else f"there is no model {str(name)[:60]}"
            choices = f"choose from {known}" if known else "this server has no models"
            raise ApiError(404, f"{wrong}: {choices}", "model", "model_not_found")
        files = identities(model_files(runs[name]))
        with self._guard:
            if name in self._on_demand:
                read, model = self._on_demand.pop(name)
                if read == files or not model.worker.close_if_idle():
                    self._on_demand[name] = read, model
                    return _reserved(model)
            if not self._make_room():
                return None
            try:
                refuse_links_in(runs[name].folder)
                model = serve_run(runs[name], name=name)
            except UserError as error:
                raise ApiError(500, f"the model {name} cannot be loaded: {error}", "model") from error
            except OSError as error:  # a training replaced a file, or the run was deleted
                cause = f"{error.filename} cannot be read ({error.strerror or error})"
                raise ApiError(
                    500, f"the model {name} cannot be loaded, because {cause}: try again", "model"
                ) from error
            self._on_demand[name] = files, model
            return _reserved(model)

    def _make_room(self) -> bool:
        """Make room for another model: close an idle model if 3 models (MAX_ON_DEMAND) are loaded on demand already.

        Among the idle models that were loaded on demand, the least recently used model is closed. Returns False if there is no
        room because none of them is idle.
        """
        if len(self._on_demand) < MAX_ON_DEMAND:
            return True
        idle = next((name for name, (_, model) in self._on_demand.items() if model.worker.close_if_idle()), None)
        if idle is None:
            return False
        del self._on_demand[idle]
        return True

    def close(self) -> None:
        """Stop all workers."""
        for model in self.loaded:
            model.worker.close()


def _reserved(model: Served) -> Served:
    model.worker.reserve()
    return model


def _run_object(name: str, run: Run) -> dict[str, Any]:
    created = int(run.config_path.stat().st_mtime)
    return _object(name, created, run.config()["model"]["context_length"], run.is_chat)


def _object(name: str, created: int, context: int, chats: bool) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "positron",
        "max_model_len": context,
        "chats": chats,
    }


def refuse_same_names(runs: list[Run]) -> None:
    """Raise UserError if two runs would be served under the same name, or if a run is given twice."""
    names: dict[str, Run] = {}
    for run in runs:
        name = readable_name(run.folder.resolve().name)
        other = names.setdefault(name, run)
        if other is not run:
            if other.folder.resolve() == run.folder.resolve():
                raise UserError(f"the run {run.folder} is given twice: give it once")
            raise UserError(
                f"{other.folder} and {run.folder} would both be served as {name}: rename one of the folders"
            )
