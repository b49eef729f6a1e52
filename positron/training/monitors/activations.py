"""Measure the size of the residual stream, and the share of MLP units that have no effect or are nearly linear."""

from __future__ import annotations

import contextlib

from torch import Tensor

from positron.model.gpt import GPT, Block
from positron.training.monitors.probe import Probe, ProbeMonitor, to_floats

# A unit is dead if its absolute output never exceeds this limit; gelu, swish and swiglu do not reach exactly 0.
DEAD = {"relu": 0.0, "relu2": 0.0, "gelu": 1e-2, "swish": 1e-2, "swiglu": 1e-2}


class Activations(ProbeMonitor):
    """Measure three values per block, over all tokens of the probe (a few fixed validation windows).

    activation_rms/blocks.0: root mean square of the residual stream after block 0 (activation_rms/embedding: before block 0);
    dead_units/blocks.0: share of the MLP's units whose absolute output never exceeds a limit, which is 0 for relu and relu2 and
    0.01 for the other activation functions (DEAD);
    always_on_units/blocks.0: share of the MLP's units for which the input of the activation function (with swiglu, the gate)
    is positive at every token, so that the function is nearly linear.
    """

    def measure(self, model: GPT, probe: Probe, documents: Tensor | None) -> dict[str, float]:
        """Return a dict from metric name to measured value."""
        real, values = probe.real, {}
        dead = DEAD[model.config.activation]

        def note_rms(name: str, x: Tensor) -> None:
            values[f"activation_rms/{name}"] = x[real].float().square().mean().sqrt()

        def note_dead(name: str, h: Tensor) -> None:
            values[f"dead_units/{name}"] = (h[real].abs().amax(dim=0) <= dead).float().mean()

        def note_always_on(name: str, h: Tensor) -> None:
            values[f"always_on_units/{name}"] = (h[real].amin(dim=0) > 0).float().mean()

        with contextlib.ExitStack() as hooks:
            for i, block in enumerate(model.blocks):
                assert isinstance(block, Block)
                name, mlp = f"blocks.{i}", block.mlp
                if i == 0:
                    hooks.enter_context(block.register_forward_pre_hook(lambda _, x: note_rms("embedding", x[0])))
                bent = mlp.gate if model.config.is_gated else mlp.up
                hooks.enter_context(bent.register_forward_hook(lambda _, x, h, n=name: note_always_on(n, h)))
                hooks.enter_context(mlp.down.register_forward_pre_hook(lambda _, h, n=name: note_dead(n, h[0])))
                hooks.enter_context(block.register_forward_hook(lambda _, x, y, n=name: note_rms(n, y)))
            model.hidden(probe.x, documents)
        return to_floats(values)
