"""Make the module of a command callable like the function of the same name.

`positron.train` is the module of the command `python -m positron.train`, and `positron.train(model="nano")` calls a function of
the same name. After the module was imported, the name `positron.train` means the module, so the module itself must be callable.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any


class _Command(ModuleType):
    def __call__(self, *arguments: Any, **settings: Any) -> Any:
        function = getattr(importlib.import_module("positron.api"), self.__name__.rpartition(".")[2])
        return function(*arguments, **settings)


def make_callable(module: str) -> None:
    """Make a module callable. `module` is its full name, such as "positron.train".

    A call `positron.train(...)` then calls the function `train` of `positron.api`.
    """
    sys.modules[module].__class__ = _Command
