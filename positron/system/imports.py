"""Import a class or function by a dotted name from the user's command line or configuration.

Never import a name from a run folder in this way: that would execute a stranger's code.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from typing import Any

from positron.system.errors import UserError


def load_object(name: str, key: str) -> Any:
    """Import the object `name`, such as `module.attribute`. The module may be a file in the current folder.

    Raises UserError, which names the setting `key`, if `name` contains no dot, if the module cannot be imported, or if it has
    no such attribute.
    """
    module_name, _, attribute = name.rpartition(".")
    if not module_name:
        raise UserError(
            f"{key}={name} must name a module and a class or function in it, such as {key}=my_module.{name}"
        )
    folder = os.getcwd()
    if folder not in sys.path and "" not in sys.path:  # python -m does the same
        sys.path.insert(0, folder)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a module may fail in any way while it is imported
        is_missing = isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}.")
        remedy = (
            "correct the name, or start this command in the folder that contains the module"
            if is_missing
            else "correct the module"
            if not isinstance(error, ModuleNotFoundError)
            else "install the missing module, or correct the one that imports it"
        )
        reason = " ".join(str(error).split())
        raise UserError(
            f"cannot import {module_name} for {key}={name} ({type(error).__name__}: {reason}): {remedy}"
        ) from error
    if not hasattr(module, attribute):
        folded_names = difflib.get_close_matches(attribute.casefold(), [known.casefold() for known in vars(module)], 1)
        similar = [known for known in vars(module) if known.casefold() in folded_names]
        file = getattr(module, "__file__", None)  # a module that is part of the interpreter has none
        place = f" ({file})" if file else ""
        hint = f"did you mean {module_name}.{similar[0]}?" if similar else "correct the name"
        raise UserError(f"{key}={name}: the module {module_name}{place} has no attribute {attribute}: {hint}")
    return getattr(module, attribute)
