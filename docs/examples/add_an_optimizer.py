"""Add an optimizer: sign descent with momentum (Lion without its second average), in 20 lines.

From Python, as below; or from the command line, in the folder of this file:

    positron train model=debug optimizer=custom optimizer._target_=add_an_optimizer.SignDescent optimizer.lr=1e-4
"""

import torch

import positron


class SignDescent(torch.optim.Optimizer):
    """Positron sets group["lr"] before each step; a group of matrices and one of vectors differ in weight decay."""

    def __init__(self, params, lr: float, momentum: float = 0.9, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    average = self.state[p].setdefault("average", torch.zeros_like(p))
                    average.lerp_(p.grad, 1 - group["momentum"])
                    p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(average.sign(), alpha=group["lr"])


if __name__ == "__main__":
    SMALL = {"model": "debug", "tokenizer": "char", "size_mb": 0.5, "batch_tokens": 2048}  # a few seconds on a CPU
    target = "add_an_optimizer.SignDescent"
    run = positron.train(**SMALL, optimizer="custom", _target_=target, lr=1e-4, max_steps=20, name="sign_descent")
    print(run.facts())
