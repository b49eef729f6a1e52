"""Write a run in a format that other programs read.

positron export quickstart --to onnx
positron export my_run --to gguf --precision q8_0
positron export my_run --to ollama --out ~/my-model

Some formats do not support all options of a model; an error message then names the option. A run of experiment=quickstart has
the option model.smear=true, which only onnx and safetensors support.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from positron.system.callable_module import make_callable
from positron.system.command_parser import CommandParser
from positron.system.console import one_line, say_loading
from positron.system.errors import UserError
from positron.system.exits import errors_as_one_line
from positron.system.log import screen_log

if TYPE_CHECKING:
    from positron.interop.formats import Format

logger = logging.getLogger("positron.export")  # under `python -m` the module is called __main__

FORMATS = {
    "hf": "Hugging Face (transformers, lm-evaluation-harness, vLLM)",
    "gguf": "llama.cpp, LM Studio",
    "ollama": "Ollama (a GGUF file with its Modelfile)",
    "onnx": "onnxruntime (any system, without PyTorch)",
    "llama2c": "llama2.c (run.c, and its ports to other languages and to the browser)",
    "safetensors": "the weights under Positron's own names, with the architecture",
}


def arguments() -> argparse.ArgumentParser:
    """Return the parser of the command's options."""
    formats = "; ".join(f"{name} = {programs}" for name, programs in FORMATS.items())
    parser = CommandParser("export", __doc__)
    parser.add_argument("run", nargs="?", help="run folder, or name below outputs/ (default: the one trained last)")
    parser.add_argument("--to", required=True, choices=FORMATS, help=formats)
    parser.add_argument(
        "--out", metavar="FOLDER", help="new or empty folder to write (default: export/FORMAT in the run folder)"
    )
    parser.add_argument(
        "--precision",
        choices=("f32", "f16", "q8_0", "int8"),
        default="f32",
        help="number format of the matrices: f32 (default); also f16 or q8_0 for gguf and ollama, int8 for onnx",
    )
    return parser


def main() -> None:
    """Run `positron export` with the options in `sys.argv`."""
    with errors_as_one_line(), screen_log():
        options = arguments().parse_args()
        export(options.run, options.to, options.out, options.precision)


def export(run: str | None, to: Format, out: str | Path | None, precision: Any = "f32") -> Path:
    """Write a run (None: the run trained last) in the format `to` into the new folder `out`, and return this folder.

    If `out` is None, the folder is `export/FORMAT` in the run's folder. `precision` is the number format of the weight matrices
    (see `arguments`). The files and their sizes are logged. Raises UserError if the folder has files, if there is no such
    format, or if the format cannot express the model or `precision`.
    """
    from positron.run.find import announce, find_run, progress_of
    from positron.system.disk import expanded

    if to not in FORMATS:  # from Python; the command line has checked it
        raise UserError(f"there is no format {one_line(str(to), 60)}: choose from {', '.join(FORMATS)}")

    source_run = find_run(run)
    announce(source_run, run)
    say_loading(run or str(source_run.folder))  # the import of torch below takes seconds
    from positron.interop.formats import export as write
    from positron.interop.source import open_source

    source = open_source(source_run)
    folder = source_run.folder / "export" / to if out is None else expanded(out)
    difference = write(source, to, folder, precision)
    if source_run.facts().status != "finished":
        logger.info(
            f"{source_run.folder} is not finished ({progress_of(source_run)}): the export has its weights so far"
        )
    checkpoint = source.checkpoint.name
    same = f"it computes exactly the same logits as {checkpoint}"
    differs = f"its logits differ by at most {difference:.2g} from those of {checkpoint}"
    logger.info(f"the export was read back: {differs if difference else same}")
    logger.info(f"{FORMATS[to]}: {folder}")
    for path in sorted(folder.iterdir()):
        logger.info(f"  {path.stat().st_size:>13,} bytes  {path.name}")
    return folder


if __name__ == "__main__":
    main()
else:
    make_callable(__name__)
