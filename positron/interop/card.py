"""Write the model card (README.md) of an exported folder: how the model was trained, how to use it, and its limits."""

from __future__ import annotations

from positron.interop.source import Source
from positron.interop.tokenizer_json import spelled
from positron.run.provenance import read_provenance, start_of
from positron.system.formatting import above_floor, amount, representative_bpb
from positron.text.conversation import stop_ids
from positron.text.tokenizer import END_OF_TEXT
from positron.version import __version__

_TEXT = """---
library_name: {library}
pipeline_tag: text-generation
tags:
- positron
- small-language-model
---

# {name}

A GPT with {parameters} parameters ({architecture}), {task} with Positron {version}.

| | |
|---|---|
{table}

## Use

{use}

## Limits

{limits}
"""

_ONNX_USE = """```python
import numpy as np
import onnxruntime
from tokenizers import Tokenizer

tokenizer = Tokenizer.from_file("tokenizer.json")
session = onnxruntime.InferenceSession("model_cached.onnx")
ids = tokenizer.encode({prompt!r}).ids  # begins with {begin}
new = np.array([ids])
keys = values = np.zeros({shape}, np.float32)
{first}while len(ids) < {context}:
    inputs = {{"ids": new, "past_keys": keys, "past_values": values}}
{feed}    logits, keys, values = session.run(None, inputs)
    ids.append(int(logits[0].argmax()))
    if ids[-1] in {stops}:
        break
{shift}    new = np.array([ids[-1:]])
print(tokenizer.decode(ids))
```

`model.onnx` has the input `ids` (batch, length) and the output `logits` (batch, length, {vocabulary}). The matrices of both
files are in {precision}."""

_USE_BASE = """```python
from transformers import pipeline

write = pipeline("text-generation", model="PATH_TO_THIS_FOLDER")
print(write("Once upon a time", max_new_tokens=100)[0]["generated_text"])
```"""

_USE_CHAT = """```python
from transformers import pipeline

chat = pipeline("text-generation", model="PATH_TO_THIS_FOLDER")
messages = [{"role": "user", "content": "Tell me a story about a dog."}]
print(chat(messages, max_new_tokens=100)[0]["generated_text"][-1]["content"])
```"""

_LIMITS = """- A small model: it has the style of its training text, and no knowledge of the world to rely on.
- It reads at most {context} tokens at once. It was not trained on longer texts.
- transformers reads a special token that is written in a text, such as `<|end|>`, as the special token. Positron reads such
  characters as ordinary text, as `tokenizer(text, split_special_tokens=True)` does in transformers.
- If the vocabulary is SentencePiece's, the character U+2581 is read as a space."""


def model_card(source: Source, architecture: str) -> str:
    """Return the text of README.md for a run that is exported for transformers.

    `architecture`: the name of the model's class in transformers.
    """
    return _card(source, "transformers", architecture, _USE_CHAT if source.is_chat else _USE_BASE)


def onnx_card(source: Source, precision: str) -> str:
    """Return the text of README.md for a run that is exported as ONNX graphs.

    The text contains an example program, which always takes the likeliest next token. `precision`: the precision of the
    matrices, f32 or int8.
    """
    config, tokenizer = source.config, source.tokenizer
    stops = stop_ids(tokenizer) if source.is_chat else list(tokenizer.end_ids)
    use = _ONNX_USE.format(
        prompt="<|user|>Tell me a story about a dog.<|end|><|assistant|>" if source.is_chat else "Once upon a time",
        begin=spelled(tokenizer, tokenizer.special_id(END_OF_TEXT)),
        shape=(config.n_layer, 1, config.kv_heads, 0, config.d_head),
        context=config.context_length,
        stops=tuple(stops) if len(stops) > 1 else stops,
        vocabulary=config.vocab_size,
        precision=precision,
        # smear adds a share of the previous token's embedding
        first="previous = new[:, :1]  # has no effect before the first token\n" if config.smear else "",
        feed='    inputs["previous_ids"] = previous\n' if config.smear else "",
        shift="    previous = new[:, -1:]\n" if config.smear else "",
    )
    return _card(source, "onnxruntime", "two ONNX graphs", use)


def _card(source: Source, library: str, architecture: str, use: str) -> str:
    run, facts = source.run, source.run.facts()
    settings = run.config()
    rows = {
        "training text": str(settings["data"].get("source", "unknown")),
        "training tokens": "unknown" if facts.tokens is None else f"{facts.tokens:,}",
        "architecture": f"{source.config.n_layer} layers of width {source.config.d_model}, "
        f"{source.config.n_head} heads, context {source.config.context_length} tokens",
        "vocabulary": f"{source.tokenizer.vocab_size:,} tokens ({source.tokenizer.kind})",
    }
    if facts.val_bpb is not None and facts.best_bpb is not None:
        bpb = representative_bpb(facts.val_bpb, facts.best_bpb, source.run.is_measured_on_answers)
        rows["validation"] = f"{bpb:.4f} bits per byte"
        if facts.floor_bpb:
            rows["validation"] += f", {above_floor(bpb, facts.floor_bpb)} (the entropy of the text, which is known)"
    command = start_of(read_provenance(run.folder), facts.step or 0).get("command")
    if command:
        rows["command"] = f"`{command}`"
    return _TEXT.format(
        library=library,
        name=source.name,
        parameters=amount(source.config.n_params()),
        architecture=architecture,
        task="fine-tuned on conversations" if source.is_chat else "trained",
        version=__version__,
        table="\n".join(f"| {key} | {_cell(value)} |" for key, value in rows.items()),
        use=use,
        limits=_LIMITS.format(context=source.config.context_length),
    )


def _cell(text: str) -> str:
    """Escape `|` and join lines, so that the text fits one cell of a Markdown table."""
    return " ".join(text.replace("|", "\\|").split())
