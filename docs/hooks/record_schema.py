"""The page of the records' fields, out of the pydantic models and the comments behind their fields."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from types import ModuleType

from doratune.records.base import Record

FILES = {
    "doratune.records.run": "`record.json` of a run",
    "doratune.records.study": "`study.json`",
    "doratune.records.analysis": "`analysis.json`",
    "doratune.records.serving": "`convert.json` and `merge.json`",
    "doratune.records.bench": "the file of `doratune bench`",
}
COMMENT = re.compile(r"^\s*#: ?(.*)$|\s#: ?(.*)$")
ABOUT = """# Record schema

This page is made from the models in `doratune.records` when the site is built. Every file is JSON in UTF-8.
Its `schema` and `schema_version` say what it is; a reader of another version refuses it. An unknown key is
refused, and no number is NaN or infinite. Models are listed from the parts to the whole: the last one of a
section is the file.
"""


def schema_page() -> str:
    """The whole page, in Markdown."""
    lines = [ABOUT]
    for name, title in FILES.items():
        module = importlib.import_module(name)
        lines += [f"## {title}", ""]
        for kind in _models(module):
            lines += _model(kind)
    return "\n".join(lines)


def fields_of(kind: type[Record]) -> list[tuple[str, str, str]]:
    """Every field a model adds to its base: key in the file, type as written, and what it means."""
    source = inspect.getsource(kind)
    lines = source.splitlines()
    body = ast.parse(source).body[0]
    assert isinstance(body, ast.ClassDef)
    found = []
    for node in body.body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        name = node.target.id
        if name not in kind.model_fields:
            continue
        info = kind.model_fields[name]
        key = info.serialization_alias or info.alias or name
        found.append((key, ast.unparse(node.annotation), _comment(lines, node)))
    return found


def _comment(lines: list[str], node: ast.AnnAssign) -> str:
    """The ``#:`` comment within a field's lines or on those that follow."""
    end = node.end_lineno or node.lineno
    following = end
    while following < len(lines) and lines[following].lstrip().startswith("#:"):
        following += 1
    found = (COMMENT.search(line) for line in lines[node.lineno - 1 : following])
    return " ".join((match[1] or match[2] or "").strip() for match in found if match)


def _models(module: ModuleType) -> Iterator[type[Record]]:
    for kind in vars(module).values():
        if inspect.isclass(kind) and issubclass(kind, Record) and kind.__module__ == module.__name__:
            yield kind


def _model(kind: type[Record]) -> list[str]:
    base = kind.__bases__[0]
    more = f" Has the fields of `{base.__name__}` too." if base is not Record else ""
    about = " ".join(inspect.cleandoc(kind.__doc__ or "").split())
    lines = [f"### {kind.__name__}", "", f"{about}{more}", ""]
    fields = fields_of(kind)
    if fields:
        lines += ["| key | type | meaning |", "| :-- | :-- | :-- |"]
        lines += [f"| `{key}` | {_code(annotation)} | {_cell(told)} |" for key, annotation, told in fields]
        lines.append("")
    return lines


def _code(annotation: str) -> str:
    escaped = annotation.replace("&", "&amp;").replace("<", "&lt;").replace("|", "&#124;")
    return f"<code>{escaped}</code>"


def _cell(text: str) -> str:
    return text.replace("``", "`").replace("|", r"\|").replace("<", "&lt;")


PAGES = {"reference/record-schema.md": schema_page}
