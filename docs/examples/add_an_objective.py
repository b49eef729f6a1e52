"""Add an objective: pretraining with label smoothing, by changing the loss and nothing else.

Every member of an objective is described in positron/training/objective/base.py. The validation stays the plain loss, so
that runs compare.
"""

import torch.nn.functional as F

import positron
from positron.training.objective.pretrain import PretrainObjective


class LabelSmoothing(PretrainObjective):
    kind = "label_smoothing"

    def loss(self, model, part):
        x, y = part
        logits = model(x, documents=self.documents(x))
        return F.cross_entropy(logits.flatten(0, 1), y.flatten(), label_smoothing=0.1, reduction="sum")


if __name__ == "__main__":
    SMALL = {"model": "debug", "tokenizer": "char", "size_mb": 0.5, "batch_tokens": 2048}  # a few seconds on a CPU
    run = positron.train(**SMALL, max_steps=20, name="label_smoothing", objective=LabelSmoothing)
    print(run.facts())
