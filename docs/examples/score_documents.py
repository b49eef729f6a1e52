"""Score documents for `positron floor` with a model in the style of nanoGPT: letters, a fixed block size, and no framework.

    positron floor --command "python docs/examples/score_documents.py {text} {out}"

`log_probability` is the part to copy. Replace `train` by the code that loads your own model: any module that maps ids (B, T)
to logits (B, T, V).
"""

import argparse
import json

import torch
from torch import nn
from torch.nn import functional as F

from positron import stories

BLOCK_SIZE = 64
SEPARATOR = "\x00"  # stands before the first and after the last letter of each document


class GPT(nn.Module):
    """Map ids (B, T) to logits (B, T, V) with two blocks of causal attention."""

    def __init__(self, vocab_size: int, width: int = 64) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocab_size, width), nn.Embedding(BLOCK_SIZE, width)
        block = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
        self.lm_head = nn.Linear(width, vocab_size, bias=False)

    def forward(self, idx: torch.Tensor) -> torch.Tensor:
        T = idx.shape[1]
        x = self.wte(idx) + self.wpe(torch.arange(T))
        return self.lm_head(self.blocks(x, mask=nn.Transformer.generate_square_subsequent_mask(T), is_causal=True))


def train(steps: int) -> tuple[GPT, dict[str, int]]:
    """Train a model on built-in stories (other stories than those that are scored) and return it with its vocabulary."""
    torch.manual_seed(0)
    text = SEPARATOR + SEPARATOR.join(story.text for story in stories.documents(0, 0, 2000)) + SEPARATOR
    stoi = {letter: i for i, letter in enumerate(sorted(set(text)))}
    data = torch.tensor([stoi[letter] for letter in text])
    model = GPT(len(stoi))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        starts = torch.randint(len(data) - BLOCK_SIZE, (32,))
        batch = torch.stack([data[i : i + BLOCK_SIZE + 1] for i in starts])
        loss = F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval(), stoi


@torch.no_grad()
def log_probability(model: nn.Module, ids: list[int]) -> float:
    """Return log p(ids[1:] | ids[0]) in nats: each id except the first is predicted exactly once, from ids before it.

    A window reads at most BLOCK_SIZE ids. The next window begins half a block later and scores only the new ids, so that these
    are predicted from at least half a block.
    """
    total, scored = 0.0, 1  # ids[:scored] have been scored, or given
    while scored < len(ids):
        start = max(0, scored - BLOCK_SIZE // 2)
        window = torch.tensor(ids[start : start + BLOCK_SIZE + 1])
        log_probs = model(window[None, :-1])[0].log_softmax(dim=-1)
        new = torch.arange(scored - start - 1, len(window) - 1)
        total += float(log_probs[new, window[new + 1]].double().sum())
        scored = start + len(window)
    return total


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("text")
    parser.add_argument("out")
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()
    model, stoi = train(options.steps)
    with open(options.text, encoding="utf-8") as file, open(options.out, "w", encoding="utf-8", newline="\n") as out:
        for line in file:
            document = json.loads(line)
            ids = [stoi[letter] for letter in SEPARATOR + document["text"] + SEPARATOR]
            logprob, size = log_probability(model, ids), len(document["text"].encode("utf-8"))
            out.write(json.dumps({"id": document["id"], "logprob": logprob, "bytes": size}) + "\n")
