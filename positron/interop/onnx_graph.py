"""Define the model so that it can be traced as an ONNX graph, with keys and values of earlier tokens as inputs and outputs.

`GPT` chooses among kernels by the length of its input and by whether gradients are needed. A trace would record only the
choice for its example input; a sliding window longer than the example would be lost, for instance. This module uses the same
operations for all lengths. It shares the layers of `GPT`: `Norm`, `Attention.heads` and `MLP`.
"""

from __future__ import annotations

from typing import assert_never

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from positron.model.gpt import GPT, Block
from positron.model.kernels.norms_and_heads import Rope


class CachedGraph(nn.Module):
    """Compute the logits of the next token from new tokens and the keys and values of the earlier tokens.

    The keys and values of the new tokens are returned, too, because the next call takes them as inputs.
    """

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, ids: Tensor, past_keys: Tensor, past_values: Tensor, previous_ids: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Read T new tokens after P earlier tokens and return the logits (B, V) of the next token.

        Also returns the keys and values of all P + T tokens, (L, B, K, P + T, D) each. Inputs: ids (B, T), past_keys and
        past_values (L, B, K, P, D). L is the number of layers, and K the number of key/value heads. Models with `smear`, which
        adds a multiple of the previous token's embedding, need `previous_ids` (B, 1), the ids of the tokens before `ids`; if
        P = 0, `previous_ids` has no effect.
        """
        x, keys, values = hidden(self.model, ids, past_keys, past_values, previous_ids)
        return self.model.logits(x[:, -1]), keys, values


class PlainGraph(nn.Module):
    """Compute for every token of a text the logits of the token after it.

    Unlike `CachedGraph`, it gets the whole text at once, and no keys and values of earlier tokens.
    """

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        """Return the logits (B, T, V) for ids (B, T)."""
        config = self.model.config
        nothing = self.model.wte.weight.new_zeros(config.n_layer, ids.shape[0], config.kv_heads, 0, config.d_head)
        x, _, _ = hidden(self.model, ids, nothing, nothing, ids[:, :1])
        return self.model.logits(x)


def hidden(
    model: GPT, ids: Tensor, past_keys: Tensor, past_values: Tensor, previous_ids: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the output of the final norm, (B, T, C), and the keys and values of all P + T tokens, (L, B, K, P + T, D) each.

    `ids` (B, T) are the new tokens after P earlier tokens. `past_keys` and `past_values`, (L, B, K, P, D) each, are the keys
    and values of the earlier tokens. L is the number of layers, and K the number of key/value heads. `previous_ids` (B, 1) are
    the tokens directly before `ids`. They may be None, except for models with `smear`, which adds a multiple of the previous
    token's embedding.
    """
    past = past_keys.shape[3]
    keys_at = torch.arange(past + ids.shape[1])
    positions = keys_at[past:]
    x = model.wte(ids)  # (B, T, C)
    if model.config.smear:
        assert previous_ids is not None
        first = model.wte(previous_ids) * (positions[:1] > 0)  # 0 for the first token of a text
        x = x + model.smear * torch.cat((first, x[:, :-1]), dim=1)
    rope: Rope | None = None
    match model.config.position:
        case "learned":
            x = x + model.wpe(positions)
        case "sinusoidal":
            x = x + model.positions[positions]
        case "rope":
            rope = (model.cos[positions], model.sin[positions])
        case _:
            assert_never(model.config.position)
    distance = positions[:, None] - keys_at  # (T, P + T)
    mask = distance >= 0
    if model.config.window is not None:
        mask = mask & (distance < model.config.window)
    all_keys, all_values = [], []
    for layer, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        q, k, v = block.attn.heads(block.norm1(x), rope)
        k, v = torch.cat((past_keys[layer], k), dim=2), torch.cat((past_values[layer], v), dim=2)
        grouped = k.shape[1] != q.shape[1]
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)  # (B, H, T, D)
        x = x + block.attn.out(y.transpose(1, 2).flatten(2))
        x = x + block.mlp(block.norm2(x))
        all_keys.append(k)
        all_values.append(v)
    return model.norm_f(x), torch.stack(all_keys), torch.stack(all_values)
