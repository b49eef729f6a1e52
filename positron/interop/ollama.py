"""Write a run for Ollama: a GGUF file and the Modelfile that `ollama create` reads (docs/modelfile.md of Ollama)."""

from __future__ import annotations

from pathlib import Path

from positron.interop import gguf_file
from positron.interop.source import Source
from positron.system.disk import write_text

# Ollama derives a template of its own from the one in the file, by likeness; this one is exact. Each text begins with
# <|endoftext|> because the GGUF file asks for it.
_CHAT = "{{ range .Messages }}<|{{ .Role }}|>{{ .Content }}<|end|>{{ end }}<|assistant|>"
_TEXT = "{{ .Prompt }}"


def write(source: Source, folder: Path, precision: gguf_file.Precision = "f32") -> float:
    """Write `model.gguf` and `Modelfile`, and return the largest difference of the logits, as `gguf_file.write` does."""
    difference = gguf_file.write(source, folder, precision)
    write_text(folder / "Modelfile", modelfile(source))
    return difference


def modelfile(source: Source) -> str:
    """Return the Modelfile. It overrides Ollama's defaults: a context of 2,048 tokens and a penalty on repetition."""
    lines = [f"FROM ./{gguf_file.FILE}", f'TEMPLATE """{_CHAT if source.is_chat else _TEXT}"""']
    lines += [f"PARAMETER num_ctx {source.config.context_length}", "PARAMETER repeat_penalty 1.0"]
    lines += ["PARAMETER temperature 0.8"]
    if source.is_chat:
        lines.append('PARAMETER stop "<|end|>"')
    return "\n".join(lines) + "\n"
