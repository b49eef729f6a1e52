"""One of two processes that share a model by FSDP on the CPU: prints the weight decay of each parameter as JSON."""

import json
import sys

import torch
from test_groups import ADAMW, small_model, values_of
from torch import distributed
from torch.distributed.fsdp import FullyShardedDataParallel

from positron.model.gpt import GPT
from positron.training.optim.groups import build_optimizer, roles_of


class Wrapper(torch.nn.Module):
    """Hold the model as TrainingModule does: the strategy wraps this one."""

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model = model


def main(meeting: str, rank: int) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    model = small_model()
    roles = roles_of(model.named_parameters(), ADAMW)
    FullyShardedDataParallel(Wrapper(model), use_orig_params=True, device_id=torch.device("cpu"))
    pieces = dict(model.named_parameters())
    optimizer = build_optimizer(pieces.items(), ADAMW, fused=False, roles=roles)
    decay = values_of(optimizer, "weight_decay", pieces)
    print(json.dumps({"decay": decay, "largest_ndim": max(p.ndim for p in pieces.values())}))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
