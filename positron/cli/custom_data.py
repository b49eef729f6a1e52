"""Read data from a function of the user: `data=custom data._target_=my_module.texts`.

The function is called when the command line is read. The texts, conversations or pairs that it returns are written to a file
that is named by a hash of its content. The run reads this file like any other file of data. So the run can be continued,
evaluated and shared without the function. The configuration of a run does not contain the function; therefore a run folder that
another person made cannot cause this program to import code.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, assert_never

from positron.config import DataConfig
from positron.settings import recipe_of
from positron.system.console import one_line, say
from positron.system.errors import UserError
from positron.system.imports import load_object

KEY = "data._target_"


def write_custom_data(values: dict[str, Any]) -> None:
    """Replace `data=custom` in a composed configuration by a file with the data that the user's function returns.

    The function takes `data.options` as keyword arguments and returns an iterable: of texts for `train` and `distill`, of
    conversations for `sft` and `reinforce`, or of pairs for `prefer`. Raises UserError if the function cannot be imported,
    raises an error, or returns something else.
    """
    data = values["data"]
    target, options = data.pop("_target_", None), data.pop("options", None)
    if data["source"] != "custom":
        if target is not None or options is not None:
            key = KEY if target is not None else "data.options"
            raise UserError(f"{key}= is read by data=custom only: add data=custom, or leave {key}= out")
        return
    if not isinstance(target, str):
        raise UserError(
            f"data=custom needs {KEY}=my_module.my_function, your Python function, which returns texts (train, distill), "
            "conversations (sft, reinforce) or pairs of answers (prefer)"
        )
    function = load_object(target, KEY)
    if not callable(function):
        raise UserError(
            f"{KEY}={target} is of type {type(function).__name__}, not a function: name a function of a module"
        )
    with _naming(target):
        rows = function(**(options or {}))
    if not isinstance(rows, Iterable) or isinstance(rows, str | bytes | Mapping):
        raise UserError(
            f"{KEY}={target} returns the type {type(rows).__name__}, not a list or generator: correct the function"
        )
    from positron.data.memory import write_conversations, write_pairs, write_texts

    with _naming(target):  # a generator runs while its rows are written
        match recipe_of(values):
            case "train" | "distill":
                data |= {
                    "source": "text",
                    "path": str(write_texts(rows, data["dir"], data.get("field", DataConfig.field))),
                }
            case "sft" | "reinforce":
                data |= {"source": "instruct", "path": str(write_conversations(rows, data["dir"]))}
            case "prefer":
                data |= {"source": "preferences", "path": str(write_pairs(rows, data["dir"]))}
            case other:
                assert_never(other)
    say(f"the data that {KEY}={target} returned was written to {data['path']}")


@contextlib.contextmanager
def _naming(target: str) -> Iterator[None]:
    """Turn an error of the user's function into a UserError that names the function."""
    try:
        yield
    except (UserError, OSError):  # OSError: the rows could not be written
        raise
    except Exception as error:  # a function of the user may fail in any way
        reason = one_line(str(error), 300)
        raise UserError(
            f"{KEY}={target} raised {type(error).__name__}{reason and ': '}{reason}; correct the function, or its arguments in "
            "data.options= (POSITRON_DEBUG=1 shows the traceback)"
        ) from error
