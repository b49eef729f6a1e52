"""Token by token: the loop that turns a prompt into text."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from positron.inference.sampling import sample
from positron.model.gpt import GPT
from positron.text.tokenizer import END_OF_TEXT, Tokenizer


@torch.inference_mode()
def generate_ids(
    model: GPT,
    ids: list[int],
    *,
    max_tokens: int,
    stop_id: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    seed: int,
) -> Iterator[int]:
    """New token ids until `stop_id` or `max_tokens`. Beyond the context length the model sees the latest window."""
    generator = torch.Generator().manual_seed(seed)
    device = model.wte.weight.device
    context = torch.tensor([ids], device=device)
    for _ in range(max_tokens):
        hidden = model.hidden(context[:, -model.config.context_length :])[:, -1]  # (1, C)
        logits = torch.nn.functional.linear(hidden, model.head_weight)  # (1, V): of the last place only
        chosen = sample(logits, temperature=temperature, top_k=top_k, top_p=top_p, generator=generator)
        if int(chosen) == stop_id:
            return
        yield int(chosen)
        context = torch.cat((context, chosen.to(device)[:, None]), dim=1)


def complete(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    max_tokens: int,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = 0.95,
    seed: int = 0,
) -> str:
    """`prompt` and its continuation, up to the end of the document."""
    end = tokenizer.special_id(END_OF_TEXT)
    ids = [end, *tokenizer.encode(prompt)]
    new = generate_ids(
        model, ids, max_tokens=max_tokens, stop_id=end, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed
    )
    return prompt + tokenizer.decode(list(new))
