"""A complete GPT in NumPy, from text to a trained model, with every derivative by hand.

Read the files in this order. Each begins with its mathematics; the code below it is complete.

     1  linear.py        y = x W^T + b, and the two products of its backward pass
     2  activation.py    ReLU, squared ReLU, swish, GELU, erf
     3  norm.py          LayerNorm and RMSNorm
     4  embedding.py     tokens and positions as vectors
     5  loss.py          softmax, cross-entropy and their gradient
     6  rope.py          rotary positions: a position is an angle
     7  dropout.py       random zeros while training
     8  attention.py     softmax(q k^T / sqrt(D)) v, causal, with grouped heads
     9  multihead.py     H attentions in parallel, and the key/value cache for generation
    10  mlp.py           up, activation, down; and SwiGLU
    11  block.py         the pre-norm residual block
    12  gpt.py           the model: init_params, forward, loss_and_grads
    13  optimizers.py    AdamW, Muon, SGD, RMSprop, gradient clipping, learning-rate schedules
    14  tokenizers.py    characters and words; bpe.py: byte pairs; spm.py: SentencePiece's files
    15  sampling.py      from logits to a token
    16  checkpoint.py    npz, JSON and safetensors, written atomically
    17  generate.py      text generation with a key/value cache
    18  training.py      the training loop; train.py: its command
    19  explain.py       attention maps, residual stream, logit lens
    20  benchmark.py     the time of each layer, compared with torch
    21  preference.py    learning from pairs: DPO, IPO, SimPO, ORPO
    22  policy_gradient.py   learning from rewards: RLOO, Dr. GRPO, GRPO, and the KL divergence
    23  enumeration.py   exact expectations over all answers of a tiny policy
    24  distillation.py  learning from the probabilities of a teacher

    config.py defines the options of the architecture, plots.py draws figures, command_line.py reports errors.

Notation. Shapes: B batch, T time (tokens), C = d_model channels, H heads, K key/value heads, G = H / K, D head dimension, F
width of the MLP, V vocabulary, L layers, N = B T rows, S keys. I and O are the input and output channels of a linear layer.
`dx` is dLoss/dx and has x's shape. Every `f_forward(...)` returns (out, cache), where `cache` is a dictionary of the values
that backward needs. The matching `f_backward(dout, cache)` returns a tuple with the gradient of each argument of `f_forward`,
in the same order, and None for an argument without a gradient. At the end of the tuple, such Nones may be left out.

The result has the dtype of the input: float64 for tests against finite differences, float32 for training.

Tests verify this package: tests/numpy_ref/test_numpy_gradcheck.py compares every backward with finite differences,
tests/numpy_ref/test_parity.py compares the whole model with the torch model over every combination of options, and
tests/numpy_ref/test_numpy_preference.py, test_numpy_policy_gradient.py and test_numpy_distillation.py make both comparisons for
the losses of preference.py, policy_gradient.py and distillation.py.
"""

import os

# Must run before NumPy is loaded. OpenBLAS splits even a small product among its threads, which then wait for each other
# in a busy loop. While another program ran, a training step took 2 to 20 times as long with two threads as with one; alone,
# both were equally fast (scripts/bench/contention.py). For a larger model on idle cores set OPENBLAS_NUM_THREADS=2.
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
