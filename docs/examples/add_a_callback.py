"""Add a callback: log the norm of the embeddings with every row of metrics.jsonl.

From Python, as below; or from the command line, in the folder of this file:

    positron train model=debug callbacks.norm._target_=add_a_callback.EmbeddingNorm callbacks.norm.every=5
"""

import lightning as L

import positron


class EmbeddingNorm(L.Callback):
    """Callbacks see the step just done; what they put into `module.metrics` is logged with it."""

    def __init__(self, every: int = 10) -> None:
        self.every = every

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        if trainer.global_step % self.every == 0:
            module.metrics["norm/embeddings"] = module.model.wte.weight.norm().item()


if __name__ == "__main__":
    SMALL = {"model": "debug", "tokenizer": "char", "size_mb": 0.5, "batch_tokens": 2048}  # a few seconds on a CPU
    run = positron.train(**SMALL, max_steps=20, log_every=5, name="with_a_callback", callbacks=[EmbeddingNorm(5)])
    print(run.metrics()["norm/embeddings"])
