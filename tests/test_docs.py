"""The documentation site: every setting is described, every page is in the navigation, every link leads somewhere."""

import dataclasses
import functools
import http.server
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import yaml
from browser import has_sideways_scroll, opened
from conftest import PROJECT

from positron.cli import COMMANDS
from positron.cli.help_text import field_comments
from positron.cli.other_tools import same_option
from positron.cli.overrides import groups_of
from positron.config import GPTConfig, ModelConfig
from positron.run.facts import Facts
from positron.settings import OWN_GROUPS, all_keys, is_group
from scripts import docs_pages, format_table

DOCS = PROJECT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if path.name != "README.md")
LINKING = [*PAGES, *sorted(PROJECT.glob("*.md"))]


def test_the_configuration_reference_has_every_key_with_a_meaning_and_every_number_with_a_unit():
    page = docs_pages.configuration_page()
    rows = {
        row[0]: row[1:]
        for row in re.findall(r"^\| `([\w.]+)`\{#.*?\} \| (.*?) \| (.*?) \| (.*?) \| (.*?) \|$", page, re.M)
    }
    keys = {key for key in all_keys() if not is_group(key)} - {"given"}
    assert set(rows) == keys
    for key, (kind, default, unit, meaning) in rows.items():
        assert kind, key
        assert default, key
        assert len(meaning) > 3, key
        assert unit or key not in docs_pages.UNITS or not docs_pages.UNITS[key], key
    assert set(docs_pages.UNITS) == {key for key in keys if docs_pages.is_number(key)}
    assert not [key for key in keys if not field_comments()[key]]


@pytest.mark.slow
def test_the_configuration_reference_has_every_choice_of_conf():
    page = docs_pages.configuration_page()
    for group, choices in groups_of(PROJECT / "conf").items():
        for choice in choices:
            assert group.startswith("hydra") or re.search(rf"^\| `{choice}` \| .", page, re.M), f"{group}={choice}"


@pytest.mark.slow
def test_the_command_reference_has_the_help_of_every_command():
    page = docs_pages.commands_page()
    for command in COMMANDS:
        assert f"\n## {command}\n" in page
        assert f"usage: positron {command} " in page


def test_every_page_is_in_the_navigation():
    def pages(entry):
        match entry:
            case str():
                yield entry
            case dict() | list():
                for inner in entry.values() if isinstance(entry, dict) else entry:
                    yield from pages(inner)

    navigation = yaml.safe_load(re.split(r"^nav:", (PROJECT / "mkdocs.yml").read_text(), flags=re.M)[1])
    assert {path.relative_to(DOCS).as_posix() for path in PAGES} <= set(pages(navigation))


def anchors(path: Path) -> set[str]:
    """The fragments that a link to a page may have: slugs of its headings as GitHub and MkDocs make them, and ids."""
    text = docs_pages.without_code(path.read_text(encoding="utf-8"))
    slugs = {slug(heading) for heading in re.findall(r"^#+ +(.*?)(?: *\{#.*\})?$", text, re.M)}
    return slugs | set(re.findall(r"\{#([\w.-]+)\}", text)) | set(re.findall(r"id=\"([\w.-]+)\"", text))


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub and pymdownx.slugs make it."""
    plain = re.sub(r"[`*]|\]\(.*?\)|\[", "", heading)
    return re.sub(r"[^\w\- ]", "", plain).strip().lower().replace(" ", "-")


@pytest.mark.parametrize("page", LINKING, ids=lambda path: path.relative_to(PROJECT).as_posix())
def test_every_relative_link_leads_to_a_file_and_every_anchor_to_a_heading(page):
    for link, fragment in docs_pages.prose_links(page.read_text(encoding="utf-8")):
        target = (page.parent / link).resolve() if link else page
        generated = docs_pages.generated_page(target.relative_to(PROJECT).as_posix())
        assert generated is not None or target.exists(), f"{page.name}: {link}"
        if fragment and target.suffix == ".md" and generated is None:
            assert fragment[1:] in anchors(target), f"{page.name}: {link}{fragment}"
        if fragment and generated is not None:
            text = generated()
            assert f"{{{fragment}}}" in text or fragment[1:] in {slug(line.lstrip("# ")) for line in text.splitlines()}
        if fragment and target.suffix == ".py":
            assert int(fragment.removeprefix("#L")) <= len(target.read_text(encoding="utf-8").splitlines())


def test_the_migration_tables_agree_with_the_advice_of_the_command_line():
    """A row is | `theirs` | `ours` | remark |; the advice knows theirs as ours."""
    page = (DOCS / "migration.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`[^|]*`) \| `([\w.]+)` \| [^|]*\|$", page, re.M)
    assert len(rows) > 60
    known = {*all_keys(), *groups_of(PROJECT / "conf")}
    for theirs, ours in rows:
        assert ours in known, ours
        readers = [recipe for recipe, groups in OWN_GROUPS.items() if ours.split(".")[0] in groups]
        for name in re.findall(r"`([^`]*)`", theirs):
            if name.strip("-") not in {ours, ours.rpartition(".")[2]}:
                assert same_option(name, readers[0] if readers else "train") == ours, name


def test_the_sizes_of_models_in_the_help_and_in_the_guide_are_those_of_the_models():
    files = {path.stem: path.read_text(encoding="utf-8") for path in (PROJECT / "conf" / "model").glob("*.yaml")}
    claims = []  # the name of a model, its number of parameters in millions, and the size of the vocabulary
    for name, text in files.items():
        claims += [(name, *claim) for claim in re.findall(r"([\d.]+)M parameters with .*?vocabulary of ([\d,]+)", text)]
        claims += [(name, claim, "1") for claim in re.findall(r"([\d.]+)M parameters plus the embedding", text)]
    guide = (DOCS / "guides" / "training.md").read_text(encoding="utf-8")
    sizes = re.search(r"with `tokenizer=spm_4k` the models have these numbers of parameters: (.*?)\. A larger", guide)[
        1
    ]
    claims += [(name, millions, "4,000") for name, millions in re.findall(r"`(\w+)` ([\d.]+)M", sizes)]
    assert len(claims) > 14
    for name, millions, vocabulary in claims:
        model = GPTConfig(**yaml.safe_load(files[name]), vocab_size=int(vocabulary.replace(",", "")))
        assert f"{model.n_params() / 1e6:.{len(millions.partition('.')[2])}f}" == millions, name


def test_the_python_reference_names_facts_that_a_run_has():
    rows = re.findall(
        r"^\| (`[^|]*`) \| [^|]*\|$", (DOCS / "reference" / "python.md").read_text(encoding="utf-8"), re.M
    )
    names = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert len(names) > 10
    assert names <= {field.name for field in dataclasses.fields(Facts)}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the documentation site, built without a warning."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_the_site_asks_for_nothing_from_the_network(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        loaded = re.findall(
            r'<(?:script|img|link rel="(?:stylesheet|preconnect)")[^>]*(?:src|href)="(https?:[^"]*)"', page.read_text()
        )
        assert not loaded, page


SIDEWAYS = """[...document.querySelectorAll(
  '.md-content div.arithmatex, .md-typeset__scrollwrap, .highlight:not(.columns) pre > code')]
  .filter((element) => element.scrollWidth > element.clientWidth + 1).map((element) => element.innerText.slice(0, 60))"""


def test_on_a_phone_only_text_in_columns_scrolls_sideways(site, browser):
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=site)
    pages = ("index", "guides/python", "learn/02_linear", "reference/configuration", "reference/python")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            for page in pages:
                with opened(browser, f"http://127.0.0.1:{server.server_port}/{page}.html", phone=True) as shown:
                    assert not has_sideways_scroll(shown), page
                    assert shown.evaluate(SIDEWAYS) == [], page
        finally:
            server.shutdown()


def test_only_text_in_columns_is_kept_from_wrapping():
    help_of_an_option = (
        "options:\n  --step STEP    look at the weights\n" + 17 * " " + "of a step\n" + 17 * " " + "that was kept\n"
    )
    assert docs_pages.has_columns("part      previous induction     cost\n0.0          0.045     0.014     0.058\n")
    assert docs_pages.has_columns(help_of_an_option)
    assert not docs_pages.has_columns(
        "finished at step 1120\nthe run: outputs/quickstart/  (report.html)\nnext:    make chat\n"
    )


@pytest.mark.slow
def test_a_key_with_underscores_keeps_them_in_the_configuration_reference():
    outside_code = re.sub(r"`[^`]*`", "", docs_pages.configuration_page())
    assert "data.\\_target\\_=my" in outside_code
    assert not re.search(r"(?<!\\)_", re.sub(r"\{[^}]*\}|\]\([^)]*\)", "", outside_code))


def test_the_table_of_formats_has_every_option_and_what_is_known_of_some():
    names = {field.name for field in dataclasses.fields(ModelConfig)}
    assert set(format_table.OPTIONS) | {"context_length", "d_model", "n_layer", "n_head"} == names
    page = format_table.formats_page()
    assert "| `smear=true` | no | no | no | yes |" in page
    assert "| `activation=swiglu` | Llama | Llama | Llama | yes |" in page
    assert "| `n_kv_head=2` | yes | yes | Llama | yes |" in page


def test_every_value_of_a_choice_is_in_the_table_of_formats():
    hints = get_type_hints(ModelConfig)
    for name in ("norm", "position", "activation"):
        assert format_table.OPTIONS[name] == get_args(hints[name])


@pytest.mark.parametrize("name", ["hf", "gguf, ollama", "llama2c"])
def test_the_portable_quickstart_can_be_exported_to(name):
    settings = yaml.safe_load((PROJECT / "conf" / "model" / "quickstart_portable.yaml").read_text(encoding="utf-8"))
    assert format_table.expresses(name, GPTConfig(vocab_size=4000, **settings))
    quick = yaml.safe_load((PROJECT / "conf" / "model" / "quickstart.yaml").read_text(encoding="utf-8"))
    quick["tie_embeddings"] = settings["tie_embeddings"]  # apart from its own output matrix, it is as large
    sizes = [GPTConfig(vocab_size=4000, **values).n_params() for values in (settings, quick)]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.01)
