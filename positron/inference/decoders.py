"""Choose a decoder: one that Numba compiles, if Numba and the model permit it, otherwise one that consists of torch operators.

`make_decoder` lists the conditions. Numba is an optional dependency of Positron, in the extra `fast`. An ensemble gets an
`EnsembleDecoder`, which has one of these decoders for each member.
"""

from __future__ import annotations

import importlib.util
import logging
import os

import torch

from positron.inference.decoder import Decoder
from positron.inference.ensemble import EnsembleDecoder
from positron.model.ensemble import Ensemble
from positron.model.gpt import GPT

logger = logging.getLogger(__name__)

AnyDecoder = Decoder | EnsembleDecoder


def make_decoder(model: GPT, batch: int = 1, dtype: torch.dtype | None = None) -> Decoder:
    """Create the fastest decoder for this model; the arguments are those of `Decoder`.

    The result is a `CompiledDecoder` if the model is in fp32 on a CPU, `dtype` is None, fp32, bf16 or int8, Numba can be
    imported, and NUMBA_DISABLE_JIT is unset or 0. Otherwise the result is a `Decoder`.
    """
    weight = model.wte.weight
    fits = weight.device.type == "cpu" and weight.dtype == torch.float32
    fits &= dtype in (None, torch.float32, torch.bfloat16, torch.int8)
    if not fits or importlib.util.find_spec("numba") is None or os.environ.get("NUMBA_DISABLE_JIT", "0") != "0":
        return Decoder(model, batch, dtype)
    try:
        from positron.inference.compiled import CompiledDecoder
    except ImportError as error:  # this version of Numba does not know the installed version of NumPy
        logger.warning(
            f"text generation is slower than usual, because Numba cannot be imported ({error}): install a version of Numba "
            "that supports the installed version of NumPy"
        )
        return Decoder(model, batch, dtype)
    return CompiledDecoder(model, batch, dtype)


def decoder_of(model: GPT | Ensemble, batch: int = 1, dtype: torch.dtype | None = None) -> AnyDecoder:
    """Create the fastest decoder for a model or an ensemble; the arguments are those of `Decoder`."""
    if isinstance(model, Ensemble):
        return EnsembleDecoder([make_decoder(member, batch, dtype) for member in model.members])
    return make_decoder(model, batch, dtype)
