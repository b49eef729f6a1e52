"""Write a run for Ollama: a GGUF file and the Modelfile that `ollama create` reads (docs/modelfile.md of Ollama)."""

from __future__ import annotations

from pathlib import Path

from positron.interop import gguf_file
from positron.interop.source import Source
from positron.system.disk import write_text

# Without TEMPLATE, Ollama replaces the template in the GGUF file by the most similar one that it knows. <|endoftext|> is not
# in the template, because the GGUF file requests it at the beginning of each text.
_CHAT = "{{ range .Messages }}<|{{ .Role }}|>{{ .Content }}<|end|>{{ end }}<|assistant|>"
_TEXT = "{{ .Prompt }}"


def write(source: Source, folder: Path, precision: gguf_file.Precision = "f32") -> float:
    """Write `model.gguf` and `Modelfile` into a folder, and read the weights back.

    Returns the largest absolute difference between the logits of the run's model and those of the same model with the weights
    that were read back. Raises the errors of `gguf_file.write`.
    """
    difference = gguf_file.write(source, folder, precision)
    write_text(folder / "Modelfile", modelfile(source))
    return difference


def modelfile(source: Source) -> str:
    """Return the text of the Modelfile for a run.

    The Modelfile sets the prompt template, the context length of the model, a temperature of 0.8, no repetition penalty and,
    for a chat model, the stop string. Ollama's defaults are a context of 2,048 tokens and a repetition penalty.
    """
    lines = [f"FROM ./{gguf_file.FILE}", f'TEMPLATE """{_CHAT if source.is_chat else _TEXT}"""']
    lines += [f"PARAMETER num_ctx {source.config.context_length}", "PARAMETER repeat_penalty 1.0"]
    lines += ["PARAMETER temperature 0.8"]
    if source.is_chat:
        lines.append('PARAMETER stop "<|end|>"')
    return "\n".join(lines) + "\n"
