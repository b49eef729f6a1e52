"""Generate pages of the documentation site while MkDocs builds it (`hooks` of mkdocs.yml).

The generated pages are the front page (README.md), the configuration reference (from positron/config.py and conf/), the
command reference (from the --help of each command), a page for each notebook of docs/examples, and a page for each other
file of the repository that a page links to. In the files, links are relative to the file, as GitHub expects; this module
changes them to links between pages of the site.
"""

from __future__ import annotations

import importlib
import json
import os
import posixpath
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from positron.cli import COMMANDS, summary  # noqa: E402
from positron.cli.help_text import (  # noqa: E402
    default_choices,
    default_values,
    field_comments,
    first_comment,
    help_text,
    shown,
    type_in_words,
)
from positron.cli.overrides import groups_of  # noqa: E402
from positron.settings import MISSING, NOT_READ_BY, Recipe, all_keys, is_group, keys_read_by, type_of  # noqa: E402
from positron.system.commands import SCRIPT, module_of  # noqa: E402
from scripts.format_table import formats_page  # noqa: E402

CONF = ROOT / "conf"
TOP_LEVEL = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
_LINK = re.compile(r"(?<=\]\()([^)\s#]*)(#[^)\s]*)?(?=\))")
_FENCE = re.compile(r"^(?P<fence>```+|~~~+).*?^(?P=fence)\s*?$", re.DOTALL | re.MULTILINE)
_LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".sh": "bash", ".toml": "toml", ".json": "json"}
_TEXT_BLOCK = re.compile(r'<div class="highlight"><pre>((?:(?!</pre>|<span class=).)*)</pre>', re.DOTALL)
_PAGES_AS_THEY_ARE = {".md", ".png", ".svg", ".jpg", ".html"}

# Unit of each key whose value is a number. A test checks that the table has all these keys and no others.
UNITS = {
    "seed": "",
    "budget": "time: 90s, 10m, 2h",
    "model.context_length": "tokens",
    "model.d_model": "numbers per token",
    "model.n_layer": "blocks",
    "model.n_head": "heads",
    "model.n_kv_head": "heads",
    "model.head_dim": "numbers per head",
    "model.d_ff": "numbers per token",
    "model.rope_base": "",
    "model.norm_eps": "",
    "model.window": "tokens",
    "model.dropout": "share, 0 to 1",
    "tokenizer.vocab_size": "tokens",
    "data.max_mb": "MB (10⁶ bytes)",
    "data.tokens_per_epoch": "tokens: 10000000 or 10M",
    "data.size_mb": "MB (10⁶ bytes)",
    "data.examples": "requests, or pairs",
    "data.window_tokens": "tokens",
    "data.seed": "",
    "data.val_fraction": "share, 0 to 1",
    "device.devices": "devices",
    "device.num_nodes": "machines",
    "device.batch_tokens": "tokens per step",
    "device.micro_batch_size": "sequences",
    "device.threads": "threads",
    "device.share": "share, 0 to 1",
    "optimizer.lr": "",
    "optimizer.betas": "two shares, 0 to 1",
    "optimizer.eps": "",
    "optimizer.weight_decay": "",
    "optimizer.momentum": "share, 0 to 1",
    "optimizer.embedding_ratio": "multiple of lr",
    "schedule.warmup_steps": "steps",
    "schedule.decay_share": "share of the steps",
    "schedule.final_ratio": "multiple of lr",
    "schedule.average_share": "share of the steps",
    "train.max_steps": "steps",
    "train.stop_at": "step",
    "train.max_time": "time: seconds, 90s, 10m, 2h",
    "train.batch_tokens": "tokens per step",
    "train.micro_batch_size": "sequences",
    "train.grad_clip": "norm",
    "train.log_every": "steps",
    "train.val_every": "steps",
    "train.val_tokens": "tokens",
    "train.save_every": "steps",
    "train.keep_last": "checkpoints",
    "train.keep_history": "weights",
    "train.sample_every": "steps",
    "train.sample_tokens": "tokens",
    "train.max_bad_steps": "steps",
    "sweep.startup_jobs": "jobs",
    "monitor.every": "steps",
    "sft.epochs": "passes",
    "sft.replay_ratio": "share, 0 to 1",
    "sft.patience": "validations",
    "sft.lora.rank": "columns",
    "preference.beta": "",
    "preference.label_smoothing": "share of the pairs, 0 to 0.5",
    "preference.gamma": "nats per token, times beta",
    "preference.weight": "",
    "preference.epochs": "passes",
    "preference.lora.rank": "columns",
    "reinforce.prompts": "prompts per step",
    "reinforce.hard_share": "share, 0 to 1",
    "reinforce.samples": "answers per prompt",
    "reinforce.temperature": "",
    "reinforce.max_tokens": "tokens",
    "reinforce.kl": "",
    "reinforce.replay": "",
    "reinforce.max_ratio": "",
    "reinforce.val_prompts": "prompts",
    "reinforce.val_samples": "answers per prompt",
    "reinforce.lora.rank": "columns",
    "reward.target": "characters",
    "reward.max_seconds": "seconds",
    "distill.alpha": "share, 0 to 1",
    "distill.temperature": "",
}


def is_number(key: str) -> bool:
    """Tell whether a key takes a number."""
    return bool({"int", "float"} & set(type_in_words(type_of(key)).split("|"))) or key == "optimizer.betas"


def reference_keys() -> list[str]:
    """Return every key that a command reads, in the order of positron/config.py."""
    read = {key for recipe in NOT_READ_BY for key in keys_read_by(recipe)}
    return [key for key in all_keys() if key in read and not is_group(key)]


def configuration_page() -> str:
    """Return the configuration reference: the choices of each group in conf/, and all keys."""
    *others, last = (f"`{recipe}`" for recipe in NOT_READ_BY)
    lines = [
        "# Configuration",
        "",
        f"This page lists all settings of the commands {', '.join(others)} and {last}.",
        "For a group, choose a file of `conf/`: `model=nano`. For a key, give a value: `model.n_layer=4`. A key that the",
        "choice does not set has the default below.",
        "This page is generated from `positron/config.py` and `conf/`. `positron train --help` prints the same settings, and",
        "`positron train --cfg job` prints the values that a command would use.",
        "",
        "The defaults are those of `train`; where another command has a different default, it follows. A value for `auto`",
        "is chosen when a run starts, and recorded in its `run.json`. `null` means not set. A *step* is an optimizer step.",
    ]
    comments, defaults = field_comments(), {recipe: default_values(recipe, CONF) for recipe in NOT_READ_BY}
    choices = groups_of(CONF)
    chosen = {recipe: default_choices(CONF / f"{recipe}.yaml") for recipe in NOT_READ_BY}
    keys = reference_keys()
    sections = list(dict.fromkeys(key.partition(".")[0] if "." in key else "" for key in keys))
    sections += [group for group in choices if group not in sections and not group.startswith("hydra")]
    for section in sections:
        lines += ["", f"## {section or 'The run'}" + (f" {{#{section}}}" if section else ""), ""]
        if section in choices:
            default = " and ".join(
                f"`{choice}` for `{recipe}`" for recipe in chosen if (choice := chosen[recipe].get(section))
            )
            lines += [f"Default choice: {default}." if default else "No choice is made by default.", ""]
            lines += [f"| `{section}=` | |", "|---|---|"]
            lines += [
                f"| `{name}` | {_cell(first_comment(CONF / section / f'{name}.yaml'))} |" for name in choices[section]
            ]
            lines.append("")
        section_keys = [key for key in keys if (key.partition(".")[0] if "." in key else "") == section]
        if section_keys:
            lines += ['<div class="settings" markdown>', ""]
            lines += ["| key | type | default | unit | meaning |", "|---|---|---|---|---|"]
        for key in section_keys:
            default = _default(key, defaults)
            row = (
                f"`{key}`{{#{key}}}",
                _cell(type_in_words(type_of(key)).replace("|", " or ")),
                default,
                UNITS.get(key, ""),
                _cell(comments[key]),
            )
            lines.append(f"| {' | '.join(row)} |")
        if section_keys:
            lines += ["", "</div>"]
    return "\n".join(lines) + "\n"


def _default(key: str, defaults: dict[Recipe, dict[str, Any]]) -> str:
    """Describe the default of a key for the first command that reads it, then the defaults of other commands that differ."""
    known = {
        recipe: values[key]
        for recipe, values in defaults.items()
        if values.get(key, MISSING) != MISSING and key.partition(".")[0] not in NOT_READ_BY[recipe]
    }
    if not known:
        return "needed"
    first = next(iter(known.values()))
    text = f"`{shown(first)}`" if "train" in known or not _is_read_by_train(key) else "needed"
    others = [f", {recipe}: `{shown(value)}`" for recipe, value in known.items() if value != first or text == "needed"]
    return text + "".join(others)


def _is_read_by_train(key: str) -> bool:
    return key.partition(".")[0] not in NOT_READ_BY["train"]


def commands_page() -> str:
    """Return the command reference: the --help of each command."""
    lines = [
        "# Commands",
        "",
        "`positron COMMAND` and `python -m positron.COMMAND` are the same (for import, the module is `positron.import_`).",
        "Each section shows the `--help` of a command. The [FAQ](../faq.md#exit-codes) explains the exit codes.",
    ]
    width = mock.patch.dict(
        os.environ, COLUMNS="80", UV_RUN_RECURSION_DEPTH=""
    )  # argparse wraps at the terminal's width
    form = mock.patch.object(sys, "orig_argv", ["python", SCRIPT])  # the help says `positron COMMAND`
    with width, form:
        return "\n".join([*lines, *_helps()]) + "\n"


def _helps() -> list[str]:
    lines: list[str] = []
    for command in COMMANDS:
        lines += ["", f"## {command}", "", f"{summary(command)}.", ""]
        if recipe := next((recipe for recipe in NOT_READ_BY if recipe == command), None):
            text = help_text(recipe, CONF).partition("\ngroups, one choice each:")[0].rstrip()
            lines += ["```text", text, "```", "", "Groups and keys: [Configuration](configuration.md)."]
        else:
            parser = importlib.import_module(f"positron.{module_of(command)}").arguments()
            lines += ["```text", parser.format_help().rstrip(), "```"]
    return lines


GENERATED: dict[str, Callable[[], str]] = {
    "reference/configuration.md": configuration_page,
    "reference/commands.md": commands_page,
    "reference/formats.md": formats_page,
}


def notebook_page(path: Path) -> str:
    """Return a page with the cells of a notebook: text as Markdown, code in code blocks."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    texts = [
        "".join(cell["source"]) if cell["cell_type"] == "markdown" else f"```python\n{''.join(cell['source'])}\n```"
        for cell in cells
    ]
    return "\n\n".join([*texts, f"*The notebook: `{path.relative_to(ROOT).as_posix()}`.*"]) + "\n"


def source_page(path: Path) -> str:
    """Return a page that shows a file of the repository, with line numbers that links can point to."""
    language = _LANGUAGES.get(path.suffix, "text")
    title = path.relative_to(ROOT).as_posix()
    text = path.read_text(encoding="utf-8").rstrip("\n")
    header = "---\nsearch:\n  exclude: true\nhide:\n  - toc\n---\n"
    return f'{header}# {title}\n\n~~~~~~ {{ .{language} linenums="1" }}\n{text}\n~~~~~~\n'


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_")


def without_code(markdown: str) -> str:
    """Return a page without its code blocks."""
    return _FENCE.sub("", markdown)


def prose_links(markdown: str) -> Iterator[tuple[str, str]]:
    """Yield (path, #fragment) for each link within the repository, outside code blocks; path or fragment may be empty."""
    for match in _LINK.finditer(without_code(markdown)):
        if not re.match(r"[a-z]+:", match[1]):
            yield match[1], match[2] or ""


def page_of(target: str) -> str | None:
    """Return the path of the page that shows the file `target` of the repository, or None if the file does not exist."""
    path = ROOT / target
    if target in TOP_LEVEL:
        return TOP_LEVEL[target] if path.is_file() else None
    if target.startswith("docs/") and path.suffix == ".ipynb" and path.is_file():
        return target.removeprefix("docs/").removesuffix(".ipynb") + ".md"
    if target.startswith("docs/") and (path.suffix in _PAGES_AS_THEY_ARE or generated_page(target)):
        return target.removeprefix("docs/")
    return f"source/{target}.md" if path.is_file() else None


def generated_page(target: str) -> Callable[[], str] | None:
    """Return the function that returns the content of the generated page `target`, or None if this page is not generated."""
    return GENERATED.get(target.removeprefix("docs/")) if target.startswith("docs/") else None


def _origin(src_uri: str) -> str:
    """Return the path, relative to the repository, of the file from which a page of the site is made."""
    return next((name for name, page in TOP_LEVEL.items() if page == src_uri), f"docs/{src_uri}")


def _resolved(link: str, origin: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(origin), link))


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages to the site (a hook of MkDocs)."""
    from mkdocs.structure.files import File

    pages = {
        **{page: write() for page, write in GENERATED.items()},
        **{
            page: (ROOT / name).read_text(encoding="utf-8")
            for name, page in TOP_LEVEL.items()
            if (ROOT / name).is_file()
        },
    }
    for path in sorted((ROOT / "docs" / "examples").glob("*.ipynb")):
        pages[f"examples/{path.stem}.md"] = notebook_page(path)
        files.remove(files.get_file_from_path(f"examples/{path.name}"))
    texts = {file.src_uri: file.content_string for file in files.documentation_pages()} | pages
    for uri, text in texts.items():
        for link in {link for link, _ in prose_links(text)} - {""}:
            target = _resolved(link, _origin(uri))
            page = page_of(target)
            if page is not None and page.startswith("source/") and page not in pages:
                pages = pages | {page: source_page(ROOT / target)}
    for uri, text in pages.items():
        files.append(File.generated(config, uri, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Change links between files of the repository to links between pages of the site (a hook of MkDocs)."""
    uri = page.file.src_uri
    if uri.startswith("source/"):
        return markdown

    def renewed(match: re.Match[str]) -> str:
        link, fragment = match[1], match[2] or ""
        if not link or re.match(r"[a-z]+:", link):
            return match[0]
        target = page_of(_resolved(link, _origin(uri)))
        if target is None:
            return match[0]  # MkDocs reports the broken link
        if target.startswith("source/"):
            fragment = re.sub(r"^#L(\d+).*", r"#L-0-\1", fragment)
        return posixpath.relpath(target, posixpath.dirname(uri) or ".") + fragment

    parts, end = [], 0
    for fence in _FENCE.finditer(markdown):
        parts += [_LINK.sub(renewed, markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, _LINK.sub(renewed, markdown[end:])])


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Mark the blocks of text that are arranged in columns, for the style sheet (a hook of MkDocs).

    Also tell MkDocs which line numbers a source page has; without this, it would report links to them as broken.
    """
    if page.file.src_uri.startswith("source/"):
        page.present_anchor_ids |= set(re.findall(r'id="(L-0-\d+)"', html))
        return html
    return _TEXT_BLOCK.sub(
        lambda block: block[0].replace("highlight", "highlight columns", 1) if has_columns(block[1]) else block[0], html
    )


def has_columns(text: str) -> bool:
    """Tell whether the text is arranged in columns, so that its lines must not wrap.

    This is so if at least two lines have two gaps of two or more spaces, or an indentation of 12 or more spaces.
    """
    lines = [re.sub(r"<[^>]*>", "", line) for line in text.splitlines()]
    return sum(bool(re.search(r"\S {2,}\S.*\S {2,}\S|^ {12,}\S", line)) for line in lines) >= 2
