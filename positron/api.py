"""Train, fine-tune, evaluate, load, export and import from Python, with the settings of the command line.

    import positron
    run = positron.train(model="debug", data="my.txt", max_steps=300)
    print(run.facts(), run.metrics()["val/bpb"])
    print(positron.load(run).generate("Once upon a time"))

A setting is given by its full name, `**{"optimizer.lr": 1e-3}`. If no other setting ends in the same word, the last word of the
name is enough: `lr=1e-3`. A group of settings is given by the name of a preset: `model="nano"` takes the settings in
conf/model/nano.yaml. A run is a folder below outputs/; to continue a run, make the same call again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, assert_never

from positron.system.caller import unchanged_state
from positron.system.errors import UserError
from positron.system.threads import SPIN_WRITING, spin

if TYPE_CHECKING:
    from lightning import Callback

    from positron.inference.text_model import Writer
    from positron.interop.formats import Format, Precision
    from positron.run.folder import Run
    from positron.settings import Recipe
    from positron.training.objective.pretrain import PretrainObjective


def train(
    model: str | None = None,
    data: Any = None,
    *,
    name: str | None = None,
    callbacks: Sequence[Callback] = (),
    objective: type[PretrainObjective] | None = None,
    **settings: Any,
) -> Run:
    """Train a new run, or continue the run `name` if it exists, and return the run.

    `model` is the name of a preset in conf/model. `data` is the name of a preset in conf/data, a file or folder of text, a list
    of texts or a `datasets.Dataset`. If one of them is None, it is that of the setting `experiment` or, without this setting,
    tinygpt or stories. If `name` is None, the name is that of the experiment or else MODEL-DATA, such as tinygpt-stories; for a
    text that is not a preset, DATA is `text`. `callbacks` are Lightning callbacks. `objective` is a subclass of
    PretrainObjective that changes what is learned (docs/examples/add_an_objective.py). `settings` are further settings of
    `positron train`. If Ctrl-C ends the training, the run is saved and returned with the status "stopped".

    Raises UserError for an error that the caller can correct, and Diverged if the loss diverges.
    """
    from positron.cli.sweeps import run_config
    from positron.train import configure
    from positron.train import train as recipe

    own_callbacks = _checked(callbacks)
    _refuse_other_objective(objective)
    return run_config(
        *_composed("train", name, {**_given("model", model), **_data_settings(data, "text", settings)}, settings),
        configure,
        lambda config, folder, config_callbacks, asked: recipe(
            config, folder, [*config_callbacks, *own_callbacks], asked, objective
        ),
    )


def distill(
    teachers: str | Path | Run | Sequence[str | Path | Run],
    model: str | None = None,
    data: Any = None,
    *,
    name: str | None = None,
    callbacks: Sequence[Callback] = (),
    **settings: Any,
) -> Run:
    """Train a new model on a text and on the predictions of the teachers for this text, and return the new run.

    `teachers` is one trained run or a list of trained runs, each given as a `Run`, its folder or its name. `model` is the name
    of a preset in conf/model, and `data` is the text, as for `train`. If `model` is None, the new model has the architecture of
    the first teacher. If `data` is None, the text is the training text of the first teacher. The setting `experiment` replaces
    these defaults. If `name` is None, the new run is named after the experiment or, without one, distill. `callbacks` are
    Lightning callbacks, and `settings` are further settings of `positron distill`. Raises the errors of `train`, and UserError
    if a teacher cannot be used or has changed since the run began.
    """
    from positron.cli.sweeps import run_config
    from positron.distill import configure
    from positron.distill import distill as recipe

    own_callbacks = _checked(callbacks)
    chosen = {"teachers": _names_of(teachers), **_given("model", model), **_data_settings(data, "text", settings)}
    return run_config(
        *_composed("distill", name, chosen, settings),
        configure,
        lambda config, folder, config_callbacks, asked: recipe(
            config, folder, [*config_callbacks, *own_callbacks], asked
        ),
    )


def finetune(
    base: str | Path | Run | None = None,
    data: Any = None,
    *,
    name: str | None = None,
    callbacks: Sequence[Callback] = (),
    **settings: Any,
) -> Run:
    """Fine-tune the run `base` (None: the run pretrained last) on conversations, and return the new run.

    `base` is a `Run`, its folder or its name. `data` is the name of a preset in conf/data, a file of conversations, or a list
    of conversations. An item of this list is a list of messages (dicts with `role` and `content`), or a dict with the same
    fields as a line of a file of conversations, such as `instruction` and `output`. If `data` is None, the data is that of the
    setting `experiment` or, without this setting, story_instruct. If `name` is None, the new run is named after the experiment
    or, if this gives no name, sft-DATA, such as sft-story_instruct. `callbacks` are Lightning callbacks, and `settings` are
    further settings of `positron sft`. Raises the errors of `train`.
    """
    from positron.cli.sweeps import run_config
    from positron.sft import configure, sft

    own_callbacks = _checked(callbacks)
    origin = {} if base is None else {"init_from": _name_of(base)}
    return run_config(
        *_composed("sft", name, {**origin, **_data_settings(data, "instruct", settings)}, settings),
        configure,
        lambda config, folder, config_callbacks, _: sft(config, folder, [*config_callbacks, *own_callbacks]),
    )


def prefer(
    base: str | Path | Run | None = None,
    data: Any = None,
    *,
    name: str | None = None,
    callbacks: Sequence[Callback] = (),
    **settings: Any,
) -> Run:
    """Train a run to prefer the better of two answers, and return the new run.

    `base` is the run to start from: a `Run`, its folder or its name. If `base` is None, the training starts from the run that
    was trained last; runs that `prefer` made are not considered. `data` is the name of a preset in conf/data, a file of pairs
    of answers, or a list of pairs. An item of this list is a dict with the same fields as a line of a file of pairs, such as
    `prompt`, `chosen` and `rejected`. If `data` is None, the data is that of the setting `experiment` or, without this setting,
    story_preference. If `name` is None, the new run is named after the experiment or, if this gives no name, prefer-DATA.
    `callbacks` are Lightning callbacks, and `settings` are further settings of `positron prefer`. Raises the errors of `train`.
    """
    from positron.cli.sweeps import run_config
    from positron.prefer import configure
    from positron.prefer import prefer as recipe

    own_callbacks = _checked(callbacks)
    origin = {} if base is None else {"init_from": _name_of(base)}
    return run_config(
        *_composed("prefer", name, {**origin, **_data_settings(data, "preferences", settings)}, settings),
        configure,
        lambda config, folder, config_callbacks, _: recipe(config, folder, [*config_callbacks, *own_callbacks]),
    )


def reinforce(
    base: str | Path | Run | None = None,
    data: Any = None,
    reward: str | None = None,
    *,
    name: str | None = None,
    callbacks: Sequence[Callback] = (),
    **settings: Any,
) -> Run:
    """Train the model of `base` on its own answers, weighted by a reward, and return the result as a new run.

    `base` is the run to start from, which is not changed: a `Run`, its folder or its name (None: the run trained last among
    those with a chat template). `data` is the name of a preset in conf/data, a file of conversations, or a list of
    conversations. The prompts are the messages before the first answer of each conversation. `reward` is the name of a preset
    in conf/reward, or the name of a function, such as `"my_module.my_reward"`, that takes a prompt and an answer and returns a
    number. If `data` or `reward` is None, it is that of the setting `experiment` or, without this setting, story_instruct or
    story_request. If `name` is None, the new run is named after the experiment or, if this gives no name, reinforce-DATA.
    `callbacks` are Lightning callbacks, and `settings` are further settings of `positron reinforce`. Raises the errors of
    `train`, and UserError if the reward cannot be computed.
    """
    from positron.cli.sweeps import run_config
    from positron.reinforce import configure
    from positron.reinforce import reinforce as recipe

    own_callbacks = _checked(callbacks)
    origin = {} if base is None else {"init_from": _name_of(base)}
    chosen = {**origin, **_data_settings(data, "instruct", settings), **_reward_settings(reward)}
    return run_config(
        *_composed("reinforce", name, chosen, settings),
        configure,
        lambda config, folder, config_callbacks, _: recipe(config, folder, [*config_callbacks, *own_callbacks]),
    )


def evaluate(
    run: str | Path | Run | Sequence[str | Path | Run] | None = None,
    text: str | Path | None = None,
    *,
    split: str = "val",
    limit: int = 1_000_000,
    stories: bool = False,
    instruct: bool = False,
    count: int = 200,
) -> dict[str, Any]:
    """Measure a run (None: the run trained last) and return the results, as `positron evaluate --json` prints them.

    A run is given as a `Run`, its folder or its name. Several runs are measured as one model, an ensemble, which predicts each
    token with the mean of their probabilities.

    The loss is measured on the file `text`. If `text` is None, the loss is measured on the text with which the run was trained:
    on the validation part or, with `split="train"`, on the training part. The documents are scored from the first one on, up to
    `limit` bytes in total (0: all documents). With `stories`, the model also writes `count` stories; with `instruct`, it also
    answers `count` requests for a story. The stories and answers are checked with the grammar that generates the built-in
    stories (data=stories).

    Raises UserError if a run does not exist or if a measurement is impossible.
    """
    from positron.evaluate import arguments, figures

    if not isinstance(text, str | Path | None):
        raise UserError(f"text= takes the path of a file or folder, not an object of type {type(text).__name__}")
    # in one word, because a value may begin with a hyphen
    words = [] if run is None else [f"--run={','.join(_names_of(run))}"]
    words += [f"--split={split}"] if text is None else [f"--text={text}"]
    words += [f"--limit={limit}", f"--count={count}"]
    words += ["--stories"] * stories + ["--instruct"] * instruct
    with unchanged_state():
        return figures(arguments().parse_args(words))


def load(run: str | Path | Run | Sequence[str | Path | Run] | None = None, weights: str = "fp32") -> Writer:
    """Load the model of a run, to generate text with it.

    `run` is a run, its folder, or its name below outputs/ (None: the run trained last). Several runs with the same tokenizer
    are loaded as one model, an ensemble, which predicts each token with the mean of their probabilities. `weights="bf16"` or
    `"int8"` is faster on a CPU and less exact. Raises UserError if a run does not exist or is damaged, or if the tokenizers
    differ.
    """
    spin(SPIN_WRITING)
    from positron.inference.arguments import weights_of
    from positron.inference.text_model import Writer
    from positron.run.ensemble import find_runs, load_models

    names = None if run is None else ",".join(_names_of(run))
    weights_of(weights)
    with unchanged_state():
        model, tokenizer, _ = load_models(find_runs(names))
    return Writer(model, tokenizer, weights=weights)


def _name_of(run: str | Path | Run) -> str:
    """Return the folder of a `Run`, or the given name or path, as a string.

    A folder below the current folder is returned relative to it, as a run records it, so that both can be moved. Raises
    UserError for any other type.
    """
    from positron.inference.arguments import shown
    from positron.run.folder import Run

    match run:
        case Run():
            here = Path.cwd()
            return str(run.folder.relative_to(here) if run.folder.is_relative_to(here) else run.folder)
        case str() | Path():
            return str(run)
    raise UserError(f"{shown(run)} is of type {type(run).__name__}, not a run: give the name or the folder of one run")


def _names_of(runs: str | Path | Run | Sequence[str | Path | Run]) -> list[str]:
    """Return the folders or names of one or several runs as a list of strings.

    Raises UserError for an empty list, or for a run that is neither a str nor a Path nor a `Run`.
    """
    each = [runs] if isinstance(runs, str) or not isinstance(runs, Sequence) else runs
    if not each:
        raise UserError("the list of runs is empty: name at least one run")
    return [_name_of(run) for run in each]


def export(
    run: str | Path | Run | None,
    to: Format,
    folder: str | Path | None = None,
    precision: Precision = "f32",
) -> Path:
    """Write a run (None: the run trained last) in a format that other programs read, and return the new folder.

    `to` is hf, gguf, ollama, onnx, llama2c or safetensors. If `folder` is None, the new folder is `export/FORMAT` in the run
    folder. `precision` is the number type of the weight matrices: f32 for each of these formats, f16 or q8_0 for gguf and
    ollama, and int8 for onnx. Raises UserError if the folder exists, or if the format cannot express the model.
    """
    from positron.export import export as write

    with unchanged_state():
        return write(None if run is None else _name_of(run), to, folder, precision)


def import_model(
    path: str | Path, name: str | None = None, tokenizer: str | Path | None = None, revision: str | None = None
) -> Run:
    """Turn a model that was trained elsewhere into a run, and return it; see `positron import --help`.

    `path` is a folder that transformers saved, a .bin file of llama2.c, or the OWNER/NAME of a model on the Hugging Face hub.
    `name` is the name of the new run; if it is None, the run is named after the folder, file or model. `tokenizer` is the
    vocabulary file that belongs to a .bin file (None: tokenizer.bin beside the .bin file). `revision` is a branch, tag or
    commit on the hub. Raises UserError if a file is missing, damaged or not supported, or if a run with this name exists.
    Raises Unreachable if the network fails.
    """
    from positron.import_ import import_model as read
    from positron.run.folder import Run

    with unchanged_state():
        return Run(read(path, name, tokenizer, revision).absolute())


def _checked(callbacks: Iterable[Any]) -> list[Callback]:
    """Return the user's callbacks as a list.

    Raises UserError for anything but objects of lightning.Callback, and for callbacks that do not work (see `refuse_unusable`
    and `refuse_equal_keys`).
    """
    from lightning import Callback

    from positron.cli.user_callbacks import refuse_equal_keys, refuse_unusable

    if isinstance(callbacks, Callback) or not isinstance(callbacks, Iterable):
        raise UserError(
            f"callbacks= takes a list of callbacks, not an object of type {type(callbacks).__name__}: give "
            "callbacks=[MyCallback()], or leave callbacks= out"
        )
    listed = list(callbacks)
    for callback in listed:
        if isinstance(callback, type):
            raise UserError(
                f"callbacks= takes objects, not the class {callback.__name__}: give callbacks=[{callback.__name__}()]"
            )
        if not isinstance(callback, Callback):
            raise UserError(
                f"callbacks= takes objects of lightning.Callback, not of type {type(callback).__name__}: derive the class "
                "from lightning.Callback"
            )
        refuse_unusable(type(callback), f"callbacks=: {type(callback).__name__}")
    refuse_equal_keys(listed)
    return listed


def _refuse_other_objective(objective: Any) -> None:
    """Raise UserError if `objective` is neither None nor a class derived from PretrainObjective, with its own `kind`."""
    if objective is None:
        return
    from positron.run.folder import FROM_TEXT, TUNED
    from positron.training.objective.pretrain import PretrainObjective

    if not (isinstance(objective, type) and issubclass(objective, PretrainObjective)):
        given = f"the class {objective.__name__}" if isinstance(objective, type) else f"type {type(objective).__name__}"
        raise UserError(
            f"objective= takes a subclass of PretrainObjective (positron.training.objective.pretrain), not {given}: see "
            "docs/examples/add_an_objective.py"
        )
    if objective is not PretrainObjective and objective.kind in (*FROM_TEXT, *TUNED):
        raise UserError(
            f"objective=: the class {objective.__name__} has the kind {objective.kind}, so that a command of Positron could "
            'continue the run with another loss: give the class a kind of its own, such as kind = "my_loss"'
        )


def _composed(
    recipe: Recipe, name: str | None, chosen: Mapping[str, Any], settings: Mapping[str, Any]
) -> tuple[Recipe, list[str]]:
    """Return `recipe` (the name of a command), and the settings as words of its command line, such as `optimizer.lr=0.001`.

    `chosen` are the settings that arguments such as `model` and `data` stand for, and `settings` the further ones. Raises
    UserError for a setting that is given twice.
    """
    from positron.cli.python_arguments import as_word, full_name

    words: dict[str, str] = {}
    for key, value in [*chosen.items(), *settings.items(), *_given("name", name).items()]:
        full = full_name(key, recipe)
        if full in words:
            raise UserError(f"{key}= sets {full}, which another argument of this call also sets: give one of them")
        words[full] = f"{full}={as_word(full, value)}"
    return recipe, list(words.values())


def _given(key: str, value: str | None) -> dict[str, Any]:
    """Return the setting `key`, or no setting if `value` is None.

    A default that the user did not type must not replace the choice of an experiment.
    """
    return {} if value is None else {key: value}


def _data_settings(
    data: Any, kind: Literal["text", "instruct", "preferences"], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the settings that express the argument `data`, which is a preset in conf/data, a path, or Python objects.

    If `data` is None, there are none. `kind` is the kind of data that the training reads. Python objects, such as a list of
    texts or conversations, are first written to a file, in the folder data.dir of `settings` or in the default folder. Raises
    UserError for objects of another type.
    """
    from positron.cli.hydra_app import conf_folder
    from positron.cli.overrides import groups_of
    from positron.cli.python_arguments import full_name
    from positron.config import DataConfig
    from positron.data.listing import is_text
    from positron.data.memory import write_conversations, write_pairs, write_texts

    if data is None:
        return {}
    if isinstance(data, str) and data in groups_of(conf_folder())["data"]:
        return {"data": data}
    items = {"text": "texts", "instruct": "conversations", "preferences": "pairs"}[kind]
    if isinstance(data, str) and is_text(data):
        example = ", as in data=[text]" if kind == "text" else ""
        raise UserError(f"data= takes the path of a file, not a text: give a list of {items}{example}")
    if isinstance(data, (str, Path)):
        return {"data": kind, "data.path": data}
    if not isinstance(data, Iterable):
        raise UserError(
            f"data= takes a path, a list of {items}, a Dataset, or the name of a preset, not {type(data).__name__}"
        )
    readers: dict[str, Recipe] = {"text": "train", "instruct": "sft", "preferences": "prefer"}
    given = {full_name(key, readers[kind]): value for key, value in settings.items()}
    folder = given.get("data.dir", DataConfig.dir)
    match kind:
        case "text":
            path = write_texts(data, folder, given.get("data.field", DataConfig.field))
            return {"data": kind, "data.path": path}
        case "instruct":
            return {"data": kind, "data.path": write_conversations(data, folder)}
        case "preferences":
            return {"data": kind, "data.path": write_pairs(data, folder)}
        case _:
            assert_never(kind)


def _reward_settings(reward: str | None) -> dict[str, Any]:
    """Return the settings that express the argument `reward`: a preset in conf/reward, or the name of a function."""
    from positron.cli.hydra_app import conf_folder
    from positron.cli.overrides import groups_of

    if isinstance(reward, str) and "." in reward and reward not in groups_of(conf_folder())["reward"]:
        return {"reward": "custom", "reward.function": reward}
    return _given("reward", reward)
