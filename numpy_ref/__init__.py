"""A complete GPT in NumPy, from text to a trained model, with every derivative by hand.

Read the chapters in this order; each file begins with its mathematics and ends with nothing left out.

     1  linear.py        y = x W^T + b, and the two products of its backward
     2  activation.py    ReLU, squared ReLU, swish, GELU; erf
     3  norm.py          LayerNorm and RMSNorm
     4  embedding.py     tokens and positions as vectors
     5  loss.py          softmax, cross-entropy, and their famous gradient
     6  rope.py          positions as angles
     7  dropout.py       forgetting on purpose
     8  attention.py     softmax(q k^T / sqrt(D)) v, causal, with shared keys
     9  multihead.py     H attentions side by side; keys and values kept for generation
    10  mlp.py           up, activation, down; and SwiGLU
    11  block.py         the pre-norm residual block
    12  gpt.py           the model: init_params, forward, loss_and_grads
    13  optimizers.py    AdamW, SGD, RMSprop, clipping, learning rates
    14  tokenizers.py    characters and words; bpe.py byte pairs; spm.py SentencePiece's files
    15  sampling.py      from logits to a token
    16  checkpoint.py    npz, JSON and safetensors, whole or not at all
    17  generate.py      writing, with a cache of keys and values
    18  training.py      a thousand steps; train.py, its command
    19  explain.py       looking inside
    20  benchmark.py     where the time goes

    config.py is the menu of architectures, plots.py draws, door.py words the errors.

Notation. Shapes: B batch, T time (tokens), C = d_model channels, H heads, K key/value heads, G = H / K, D head
dimension, F width of the MLP, V vocabulary, L layers, N = B T rows, S keys that can be seen. `dx` is dLoss/dx and has
x's shape. Every `f_forward(...)` returns (out, cache), and the `f_backward(dout, cache)` that follows it returns the
gradients in the order of forward's arguments, None for what has none. A cache is a dictionary of what backward needs.

Any float dtype goes in, and the same comes out: float64 to prove things, float32 to train.

Two judges keep this honest: tests/numpy_ref/test_numpy_gradcheck.py compares every backward with finite differences, and
tests/numpy_ref/test_parity.py the whole model with the torch model, over every combination of options.
"""

import os

# Before NumPy is loaded. OpenBLAS cuts even a small product into parts for its threads, which then wait for each other in
# a loop that keeps the cores; next to another program a step of this size took 2 to 20 times as long with two threads as
# with one, which on its own is as fast (scripts/bench/contention.py). A larger model on idle cores: OPENBLAS_NUM_THREADS=2.
if not {"OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"} & set(os.environ):
    os.environ["OPENBLAS_NUM_THREADS"] = "1"

from numpy_ref.checkpoint import from_torch_run, load, save, to_safetensors
from numpy_ref.config import GPTConfig, InputError
from numpy_ref.gpt import forward, init_params, loss_and_grads

__all__ = [
    "GPTConfig",
    "InputError",
    "forward",
    "from_torch_run",
    "init_params",
    "load",
    "loss_and_grads",
    "save",
    "to_safetensors",
]
