"""Write a run as ONNX graphs, which onnxruntime runs on any system and in browsers, without PyTorch.

`model.onnx` computes the logits of all tokens of a text. `model_cached.onnx` computes only the logits of the next token; it
takes the keys and values of the earlier tokens as inputs. Both accept any batch size and any length.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from positron.config import GPTConfig
from positron.interop.card import onnx_card
from positron.interop.onnx_graph import CachedGraph, PlainGraph
from positron.interop.source import Source, probe
from positron.interop.tokenizer_json import tokenizer_json
from positron.system.disk import write_json, write_text
from positron.system.errors import UserError

Precision = Literal["f32", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
PLAIN, CACHED = "model.onnx", "model_cached.onnx"
OPSET = 18  # the version that torch's exporter writes without conversion; onnxruntime reads it since 1.14
MAX_FILE_BYTES = 2**31  # the limit of protobuf, the format of ONNX files


def write(source: Source, folder: Path, precision: Precision = "f32") -> float:
    """Write `model.onnx`, `model_cached.onnx`, the tokenizer and a model card, and run the two graphs.

    Returns the largest absolute difference between the logits of the graphs and those of the run's model. The precision int8
    rounds the matrices to 8 bits; at run time, the inputs of the matrix products are also rounded to 8 bits. Raises UserError,
    before anything is written, if the tokenizer cannot be written as tokenizer.json, if the model needs 2 GB or more, or if a
    package is missing.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError("an ONNX file needs onnx, onnxscript and onnxruntime: pip install 'positron[onnx]'") from error

    config = source.config
    size = 4 * config.n_params()
    if size >= MAX_FILE_BYTES:
        raise UserError(
            f"an ONNX file must be smaller than 2 GB, and this model has {size / 1e9:.1f} GB: use --to gguf, which has no limit"
        )
    tokenizer = tokenizer_json(source.tokenizer, is_chat=source.is_chat)
    with _quiet():
        _trace(PlainGraph(source.model), _plain_inputs(), ["logits"], folder / PLAIN)
        _trace(CachedGraph(source.model), _cached_inputs(config), ["logits", "keys", "values"], folder / CACHED)
        if precision == "int8":
            for name in (PLAIN, CACHED):
                _round(folder / name)
    write_json(folder / "tokenizer.json", tokenizer)
    write_text(folder / "README.md", onnx_card(source, precision))
    return max(_plain_difference(source, folder / PLAIN), _cached_difference(source, folder / CACHED))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide the output of torch's exporter: progress on stdout and stderr, warnings, and log lines."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _plain_inputs() -> dict[str, Tensor]:
    """Return example inputs of `model.onnx`, from which torch traces the graph.

    All sizes are above 1, because torch.export treats a dimension of size 1 as a constant.
    """
    return {"ids": torch.zeros(2, 3, dtype=torch.int64)}


def _cached_inputs(config: GPTConfig) -> dict[str, Tensor]:
    past = torch.zeros(config.n_layer, 2, config.kv_heads, 2, config.d_head)
    inputs = {**_plain_inputs(), "past_keys": past, "past_values": past.clone()}
    if config.smear:
        inputs["previous_ids"] = torch.zeros(2, 1, dtype=torch.int64)
    return inputs


def _trace(graph: nn.Module, inputs: dict[str, Tensor], outputs: list[str], path: Path) -> None:
    """Write `graph` as an ONNX file that accepts any batch size, any length, and any number of earlier tokens."""
    from torch.export import Dim

    batch, length = Dim("batch", min=1), Dim("length", min=1)
    past = Dim("past", min=0)
    axes: dict[str, dict[int, Any]] = {
        "ids": {0: batch, 1: length},
        "past_keys": {1: batch, 3: past},
        "past_values": {1: batch, 3: past},
        "previous_ids": {0: batch},
    }
    program = torch.onnx.export(
        graph.eval(),
        tuple(inputs.values()),
        dynamo=True,
        dynamic_shapes=tuple(axes[name] for name in inputs),
        input_names=list(inputs),
        output_names=outputs,
        opset_version=OPSET,
    )
    assert program is not None
    for node in program.model.graph:
        node.metadata_props.clear()  # traces of the source code, which take a quarter of a megabyte
    program.save(path, external_data=False)


def _round(path: Path) -> None:
    """Replace the ONNX file `path` by an ONNX file whose matrices are rounded to 8 bits."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    rounded = path.with_suffix(".int8")
    quantize_dynamic(path, rounded, weight_type=QuantType.QInt8)
    rounded.replace(path)


def _session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # only errors
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _lengths(config: GPTConfig, longest: int) -> list[int]:
    """Return the two text lengths, in tokens, at which graph and model are compared.

    The first is half of the sliding window or, without a window, half of the second. The second is `longest`.
    """
    return [max(1, min(config.window or longest, longest) // 2), longest]


@torch.no_grad()
def _plain_difference(source: Source, path: Path) -> float:
    """Return the largest difference between the logits of `model.onnx` and of the model, for texts of two lengths."""
    session, differences, texts = _session(path), [], probe(source.config)
    for length in _lengths(source.config, texts.shape[1]):
        ids = texts[:, :length]
        (logits,) = session.run(None, {"ids": ids.numpy()})
        differences.append(float(np.abs(logits - source.model(ids).numpy()).max()))
    return max(differences)


@torch.no_grad()
def _cached_difference(source: Source, path: Path) -> float:
    """Return the largest difference between the logits of `model_cached.onnx` and of the model.

    The graph reads the texts of `probe` in two parts. Only the logits after the last token of each part are compared.
    """
    config, session, differences = source.config, _session(path), []
    ids = probe(config)
    expected = source.model(ids).numpy()
    keys = values = np.zeros((config.n_layer, 2, config.kv_heads, 0, config.d_head), np.float32)
    start, previous = 0, ids[:, :1]
    for stop in sorted(set(_lengths(config, ids.shape[1]))):
        piece = ids[:, start:stop]
        inputs = {"ids": piece.numpy(), "past_keys": keys, "past_values": values}
        if config.smear:
            inputs["previous_ids"] = previous.numpy()
        logits, keys, values = session.run(None, inputs)
        differences.append(float(np.abs(logits - expected[:, stop - 1]).max()))
        start, previous = stop, piece[:, -1:]
    return max(differences)
