"""Positron: train, understand, fine-tune and talk to a small GPT on a machine you own.

`train`, `distill`, `finetune`, `prefer`, `reinforce`, `evaluate`, `export`, `import_model`, `load` and `Run` are the Python
interface, which positron/api.py describes.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

from positron.system.exits import import_errors_in_one_line
from positron.system.log import take_over
from positron.system.threads import SPIN_TRAINING, spin
from positron.version import __version__

take_over()
spin(SPIN_TRAINING)
if sys.argv[:1] == ["-m"]:  # python -m positron.COMMAND is finding its module
    import_errors_in_one_line()

if TYPE_CHECKING:
    from positron.api import distill, evaluate, export, finetune, import_model, load, prefer, reinforce, train
    from positron.run.folder import Run


__all__ = [
    "Run",
    "__version__",
    "distill",
    "evaluate",
    "export",
    "finetune",
    "import_model",
    "load",
    "prefer",
    "reinforce",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import an object of the Python interface when it is first used; the command line does not need these imports."""
    match name:
        # commands as well: modules that can be called (positron/system/callable_module.py)
        case "train" | "distill" | "prefer" | "reinforce" | "evaluate" | "export":
            return importlib.import_module(f"positron.{name}")
        case "finetune" | "import_model" | "load":
            return getattr(importlib.import_module("positron.api"), name)
        case "Run":
            return importlib.import_module("positron.run.folder").Run
    raise AttributeError(f"module 'positron' has no attribute {name!r}")
