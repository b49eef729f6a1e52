"""Write one HTML file that holds a run's model, its tokenizer, the inspector, and JavaScript code that runs the model.

The inspector is the page *Look inside*. The file works offline. It contains all scripts, styles and data. Its content security
policy allows only the scripts in the file, and forbids network requests and `eval`. The content of the run is stored as
compressed data and never as HTML.
"""

from __future__ import annotations

import base64
import dataclasses
import gzip
import hashlib
import html
import json
import logging
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch

from positron.inspection.look import MAX_TOKENS, shape_of
from positron.inspection.lookdata import Continuation, HistoryPoint, Shape
from positron.inspection.packed_weights import PackedWeights, engine_config, pack, restored
from positron.inspection.page_tokenizer import page_tokenizer
from positron.inspection.subject import Subject
from positron.inspection.tokens import Vocabulary
from positron.model.gpt import GPT
from positron.run.folder import Run
from positron.system.commands import command
from positron.system.disk import whole_file
from positron.system.errors import UserError
from positron.text.conversation import ANSWER_TOKENS
from positron.text.tokenizer import Tokenizer
from positron.version import __version__

logger = logging.getLogger(__name__)

MAX_BYTES = (
    8_000_000  # limit for sending the file by e-mail; exceeded only if the model is larger with 8 bits per weight
)
MAX_PARAMETERS = 60_000_000  # with 8 bits per weight, the file has 70 MB and a browser unpacks it in seconds
MAX_PROOF = 1 << 16  # maximum number of PyTorch's logits in a file, with which the page compares its own
ENOUGH_BITS = 14  # bits per weight with which the logits of the quickstart differ by less than 0.004
MAX_HISTORY = 12  # maximum number of kept steps in a file; each takes 10 to 50 kB
# The same settings as in static/inspector.js
CONTINUATION: Continuation = {"max_tokens": 40, "temperature": 0, "seed": 0}
ANSWER: Continuation = {**CONTINUATION, "max_tokens": ANSWER_TOKENS}
# Each module comes after those that it imports. The file joins them to one script without `import` and `export`; a test checks
# that no two modules define the same name.
SCRIPTS = (
    "heat.js",
    "engine.js",
    "weights.js",
    "sampling.js",
    "tokenizer.js",
    "look.js",
    "sources.js",
    "panels.js",
    "inspector.js",
    "file_page.js",
)
# Files of the web application that the inspector uses: the colours, and the functions that all pages share
DESIGN, SHARED_SCRIPT = "serving/static/design.css", "serving/static/dom.js"
STYLES = ("inspector.css", "file.css")
# The digits of base 85: characters without a meaning in HTML. static/weights.js has the same list.
DIGITS = "!#$%()*+,-./0123456789:;=?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[]^_abcdefghijklmnopqrstuvwxyz{|"
_IMPORT = re.compile(r"^import [^;]*;\n", re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(async function|function|class|const))", re.MULTILINE)


@dataclass(frozen=True)
class Written:
    """Describe an HTML file that `write_file` wrote."""

    path: Path
    size: int  # bytes
    bits: int  # bits per weight of a matrix
    difference: float  # largest difference between the logits of the file's model and the run's model on the prompt


@dataclass(frozen=True)
class Stored:
    """Hold the results that the HTML file of a model contains besides the model itself.

    A kept step is a step of training whose weights were kept (train.keep_history).
    """

    run: str
    step: int
    prompt: str
    chats: bool = False  # whether the prompt is a message to a chat model
    scores: Any = None  # lookdata.Scores
    truth: Any = None  # lookdata.TruthData of the prompt
    regrets: Any = None  # lookdata.RegretHistory
    history: list[Any] = dataclasses.field(default_factory=list)  # results of `kept_look`, one for each kept step


def write_file(model: GPT, tokenizer: Tokenizer, stored: Stored, path: Path) -> Written:
    """Write the HTML file of a model to `path`; return facts about the file, such as its size.

    `stored` holds what the file contains besides the model, such as the prompt and the name of the run. The matrices of the
    model are rounded to as many bits, 8 to 16, as the limit MAX_BYTES of the file allows (see `attempts`). The file of a large
    model exceeds this limit even with 8 bits. Raises UserError if the JavaScript code in the file does not support the
    tokenizer, or if the prompt or the model is too large.
    """
    shape = shape_of(model)
    vocabulary = page_tokenizer(tokenizer)
    prompts = Vocabulary(tokenizer, stored.chats)
    ids = prompts.ids(stored.prompt, min(MAX_TOKENS, model.config.context_length))
    proof = ids[: max(1, MAX_PROOF // model.config.vocab_size)]
    logits = _logits(model, proof)
    _refuse_large(stored.run, shape)
    for bits, steps in attempts(shape, len(stored.history)):
        weights = pack(model, bits)
        facts = {
            **dataclasses.asdict(stored),
            "history": spread(stored.history, steps),
            "shape": shape,
            "config": engine_config(model.config),
            "tensors": weights.tensors,
            "tokenizer": vocabulary,
            "ends": prompts.ends,
            "proof": proof,
            "bits": bits,
        }
        content = page(stored.run, facts, weights, logits)
        if len(content) <= MAX_BYTES:
            break
    with whole_file(path) as file:
        file.write(content)
    difference = float(np.abs(_logits(_rounded(model, bits), proof) - logits).max())
    return Written(path, len(content), bits, difference)


def _refuse_large(run: str, shape: Shape) -> None:
    if shape["parameters"] > MAX_PARAMETERS:
        raise UserError(
            f"the run {run} has {shape['parameters']:,} parameters, but an HTML file (--html) can contain at most "
            f"{MAX_PARAMETERS:,}: use {command('serve')} instead"
        )


def attempts(shape: Shape, steps: int) -> Iterator[tuple[int, int]]:
    """Yield pairs (bits per weight, number of training steps) in the order in which `write_file` tries them.

    The HTML file contains the weights of the model, and results for several steps of training. `steps` is the number of
    available steps. `write_file` stops at the first pair whose file has at most 8 MB (MAX_BYTES).

    The number of bits begins with an estimate of what fits, at most 16 and at least 8, and decreases by 1 down to 8. Each
    number of bits is tried with all `steps`. Two numbers of bits are also tried with a half and a quarter of the `steps`. The
    first is 14 (ENOUGH_BITS), because fewer bits would change the logits visibly. The second is 8, the smallest number of bits,
    but only if the weights with 8 bits fit into the file according to the estimate.
    """
    fitting = math.ceil(MAX_BYTES / 1.25 * 8 / shape["parameters"])  # compression saves about one bit of each weight
    for bits in range(max(8, min(16, fitting)), 7, -1):
        yield bits, steps
        if bits == ENOUGH_BITS or bits == 8 <= fitting:
            yield from ((bits, fewer) for fewer in (steps // 2, steps // 4) if fewer > 1)


@torch.no_grad()
def _logits(model: GPT, ids: list[int]) -> np.ndarray:
    """Return the logits (T, V) after each of the T ids, in float32."""
    logits: np.ndarray = model(torch.tensor([ids], device=model.wte.weight.device))[0].float().cpu().numpy()
    return logits


def _rounded(model: GPT, bits: int) -> GPT:
    """Return a copy of the model on the CPU with the rounded matrices that the HTML file contains: `bits` bits per weight."""
    copy = GPT(model.config).eval()
    copy.load_state_dict(
        {
            name: torch.from_numpy(restored(value.numpy(), bits)) if value.ndim == 2 else value
            for name, value in ((name, value.float().cpu()) for name, value in model.state_dict().items())
        }
    )
    return copy


def page(title: str, facts: dict[str, Any], weights: PackedWeights, logits: np.ndarray) -> bytes:
    """Return the content of the HTML file.

    `title` is the name of the run. `facts` are all data for the page except weights and logits. `logits` (T, V) were computed
    by PyTorch for the T ids in `facts["proof"]`, the first tokens of the prompt. The page compares them with the logits that
    its JavaScript code computes, to check this code.
    """
    script, style = joined_scripts(), "\n".join([_package_file(DESIGN).decode(), *map(_text, STYLES)])
    kernels = base64.b64encode(_static("engine.wasm")).decode()
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}' 'wasm-unsafe-eval'; style-src '{_hash(style)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    blocks = {
        "facts": base85(gzip.compress(json.dumps(facts, ensure_ascii=False).encode(), 9, mtime=0)),
        "logits": base85(gzip.compress(logits.astype("<f4").tobytes(), 9, mtime=0)),
        "weights": base85(weights.content),
        "kernels": kernels,
    }
    name = html.escape(title)
    parts = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n',
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n',
        f'<meta name="generator" content="Positron {html.escape(__version__)}">\n',
        f"<title>Look inside {name}</title>\n<style>{style}</style>\n</head>\n<body>\n",
        f'<header class="top"><h1>Look inside {name}</h1></header>\n',
        '<main id="inspector"><p class="faint">Unpacking the model …</p>',
        "<noscript>This page computes the model with JavaScript, which is switched off.</noscript></main>\n",
        *(f'<script type="text/plain" id="{block}">{text}</script>\n' for block, text in blocks.items()),
        f'<script type="module">{script}</script>\n</body>\n</html>\n',
    ]
    return "".join(parts).encode("utf-8")


def joined_scripts() -> str:
    """Return all JavaScript modules as one script, because browsers forbid imports in a page that is opened from a disk."""
    modules = [_package_file(SHARED_SCRIPT).decode(), *map(_text, SCRIPTS)]
    text = "".join(_EXPORT.sub("", _IMPORT.sub("", module)) for module in modules)
    assert "</script" not in text
    assert "<!--" not in text
    return text


def base85(content: bytes) -> str:
    """Encode bytes in base 85: 5 characters of DIGITS for each 4 bytes, big-endian.

    The length of `content` is put before `content`, as 4 bytes. Zeros after `content` complete the last group of 4 bytes.
    """
    padded = len(content).to_bytes(4, "big") + content + bytes(-len(content) % 4)
    words = np.frombuffer(padded, dtype=">u4").astype(np.uint64)
    powers = 85 ** np.arange(4, -1, -1, dtype=np.uint64)
    digits = (words[:, None] // powers) % 85
    characters: bytes = np.frombuffer(DIGITS.encode(), dtype=np.uint8)[digits].tobytes()
    return characters.decode("ascii")


def _hash(text: str) -> str:
    """Return the source expression of a content security policy that allows exactly this inline script or style."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode()


def _text(name: str) -> str:
    return _static(name).decode("utf-8")


def _static(name: str) -> bytes:
    return _package_file(f"inspection/static/{name}")


def _package_file(name: str) -> bytes:
    return (resources.files("positron") / name).read_bytes()


def write_html(run: Run, prompt: str, path: Path) -> Written:
    """Write the HTML file of a run to `path`.

    The file contains the model with the best weights, and the scores of its attention heads (see `lookdata.HeadScore`). It also
    contains results on the prompt for at most 12 earlier steps of training (MAX_HISTORY) whose weights were kept
    (train.keep_history).

    The built-in stories are generated by a grammar, which gives their exact probabilities. If the run was trained on them, the
    file also contains the regret of the model for each grammar rule (see `lookdata.RuleRegret`) and, unless the model is a chat
    model, the exact probability of each token of the prompt.

    Measuring the heads takes seconds to minutes. Raises the errors of `write_file`, and UserError if the run cannot be loaded.
    """
    subject = Subject(run)
    page_tokenizer(subject.tokenizer)  # raises its error before anything is measured
    shape = shape_of(subject.best)
    _refuse_large(subject.name, shape)
    logger.info("measuring the heads")
    stored = Stored(subject.name, subject.best_step, prompt, subject.chats, scores=subject.scores())
    if subject.knows_truth:
        logger.info("comparing with the grammar")
        truth = None if subject.chats else subject.truth(prompt, top=20)
        stored = dataclasses.replace(stored, truth=truth, regrets=subject.regrets())
    history = [kept_look(subject, prompt, point) for point in spread(subject.history()["points"], MAX_HISTORY)]
    return write_file(subject.best, subject.tokenizer, dataclasses.replace(stored, history=history), path)


def kept_look(subject: Subject, prompt: str, point: HistoryPoint) -> dict[str, Any]:
    """Return the data that `Subject.look` computes for the prompt with the weights that were kept at `point`.

    The result also contains `point`. The logits are rounded to three decimals, which halves their size.
    """
    data = subject.look(prompt, step=point["step"], continuation=ANSWER if subject.chats else CONTINUATION)
    data["focus"]["logits"] = [round(value, 3) for value in data["focus"]["logits"]]
    return {**data, "point": point}


def spread(points: Sequence[Any], count: int) -> list[Any]:
    """Return at most `count` (2 or more) of the points, evenly spaced, including the first and the last."""
    if len(points) <= count:
        return list(points)
    return [points[round(i * (len(points) - 1) / (count - 1))] for i in range(count)]
