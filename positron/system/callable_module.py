"""Make the module of a command callable like the function of the same name.

`positron.train` is the module of the command `python -m positron.train` and, in `positron.train(model="nano")`, a function:
Python binds the name to the module as soon as anything imports it, so the module itself has to answer the call.
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
    """Make a call of the module `positron.NAME` call `positron.api.NAME`."""
    sys.modules[module].__class__ = _Command
