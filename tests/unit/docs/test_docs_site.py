"""The documentation: every page is in the navigation and short, and every command in it exists."""

from __future__ import annotations

import ast
import importlib
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from doratune.cli.help import flag_name, is_positional
from doratune.cli.main import VERBS, module_of

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs"
HOOKS = DOCS / "hooks"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
REFERENCE = ("reference/", "results/studies/")
OLD_REPORTS = "results/first-run/"  # written by a command of an older version, and not on the site
LONGEST = 1500
WORD = re.compile(r"\w*[^\W\d_]\w*(?:['’-]\w+)*")
FENCE = re.compile(r"^( *)```.*?^\1```$", re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def hooks() -> Any:
    sys.path.insert(0, str(HOOKS))
    yield tuple(map(importlib.import_module, ("command_line", "record_schema", "servers")))
    sys.path.remove(str(HOOKS))


def _navigation() -> list[str]:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages: list[str] = []

    def collect(entry: Any) -> None:
        if isinstance(entry, str):
            pages.append(entry)
        for part in entry if isinstance(entry, list) else entry.values() if isinstance(entry, dict) else ():
            collect(part)

    collect(yaml.safe_load(text)["nav"])
    return pages


def test_every_page_is_in_the_navigation_once(hooks: Any) -> None:
    generated = [name for hook in hooks for name in hook.PAGES]
    written = [page for page in PAGES if not page.startswith(OLD_REPORTS)]
    assert sorted(_navigation()) == sorted([*written, *generated])


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_short(page: str) -> None:
    if page.startswith(REFERENCE):
        return
    text = (DOCS / page).read_text(encoding="utf-8")
    for included in re.findall(r'--8<-- "(.*)"', text):
        text += (ROOT / included).read_text(encoding="utf-8")
    assert len(WORD.findall(FENCE.sub("", text))) <= LONGEST


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", *(f"docs/{page}" for page in PAGES)])
def test_what_is_named_exists(page: str, hooks: Any) -> None:
    """Verbs and flags in running text, files of the repository, and links to them."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for code in re.findall(r"`(doratune [^`\n]+)`", FENCE.sub("", text)):
        words = code.split()
        if words[1] not in VERBS:
            assert words[1].isupper() or words[1].startswith("-"), code
            continue
        known = hooks[0].help_of(*_verb(words[1:]))
        unknown = [word for word in words if re.fullmatch(r"--[a-z][a-z-]*", word) and word not in known]
        assert not unknown or words[1] == "run", code
    for path in re.findall(r"`((?:benchmarks|src|docs|tests|examples)/[\w./-]+)`", text):
        assert (ROOT / path).exists(), path
    for target in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", FENCE.sub("", text)):
        generated = [f"docs/{name}" for hook in hooks for name in hook.PAGES]
        found = ((ROOT / page).parent / target).resolve()
        assert found.exists() or found.relative_to(ROOT).as_posix() in generated, target


def _verb(words: list[str]) -> list[str]:
    """A verb, with its kind if it has kinds."""
    kinds = getattr(module_of(words[0]), "KINDS", {})
    return words[: 1 + (len(words) > 1 and words[1] in kinds)]


@pytest.mark.parametrize("verb", VERBS)
def test_the_page_of_the_command_line_has_every_flag(verb: str, hooks: Any) -> None:
    command_line, *_ = hooks
    about, groups = command_line.parse_help(command_line.help_of(verb))
    assert f"doratune {verb}" in about
    spellings = " ".join(entry.spelling for group in groups for entry in group.entries)
    kind = getattr(module_of(verb), f"{verb.title().replace('-', '')}Command", None)
    for name, field in kind.model_fields.items() if kind else ():
        assert f"--{flag_name(name, field)}" in spellings or is_positional(field), name
    assert all(entry.help for group in groups for entry in group.entries)


def test_the_page_of_the_schema_has_every_field_with_its_meaning(hooks: Any) -> None:
    from doratune.records.run import Evaluation

    _, record_schema, _ = hooks
    fields = record_schema.fields_of(Evaluation)
    assert [key for key, _, _ in fields] == list(Evaluation.model_fields)
    assert ("task", "str", "name of the task") in fields
    page = record_schema.schema_page()
    assert page.count("\n### ") > 20
    assert " |  |\n" not in page, "a field without a comment"


def test_a_page_loads_nothing_from_elsewhere() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    settings = yaml.safe_load(text)
    assert settings["theme"]["font"] is False
    assert not {"extra_javascript", "repo_url"} & settings.keys()
    assert "http" not in text


def test_the_api_has_every_public_name() -> None:
    import doratune
    from doratune import functional

    pages = [path.read_text(encoding="utf-8") for path in (DOCS / "reference/api").glob("*.md")]
    named = [line.split()[1] for page in pages for line in page.splitlines() if line.startswith(":::")]
    shown = {name.rpartition(".")[2] for name in named} | {"__version__"}
    assert {*doratune.__all__, *functional.__all__} <= shown
    modules = {"doratune.functional", "doratune.reference", "doratune.testing.everywhere"}
    for name in set(named) - modules:  # a function must not be taken for the module that it is named after
        module, _, last = name.rpartition(".")
        assert not isinstance(getattr(importlib.import_module(module), last), ModuleType)
        assert f"{module}.{last}" not in sys.modules


@pytest.mark.parametrize("page", PAGES)
def test_python_on_a_page_parses_and_imports_what_exists(page: str) -> None:
    for block in _blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Import):
                for name in node.names:
                    importlib.import_module(name.name)
            elif isinstance(node, ast.ImportFrom) and node.module:
                module = importlib.import_module(node.module)
                for name in node.names:
                    assert hasattr(module, name.name), f"{node.module}.{name.name}"


def test_the_plan_in_the_guide_is_one(tmp_path: Path) -> None:
    from doratune.study.plan_file import load_plan

    text, *more = _blocks("guides/study.md", "yaml")
    (tmp_path / "plan.yaml").write_text(text + "".join(more), encoding="utf-8")
    plan = load_plan(str(tmp_path / "plan.yaml"))
    assert plan.seeds == [0, 1, 2] and plan.resources.of_a_run == 4 and plan.choose.per == "seed"


def _blocks(page: str, language: str) -> list[str]:
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
