"""``doratune run``.

Nothing but the standard library is imported until the script itself imports PEFT: scripts set environment
variables before they import torch or huggingface_hub, and may rely on what is imported first.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from doratune.errors import InputError
from doratune.launch import launched

ABOUT = """usage: doratune run SCRIPT [ARGS...]

Run a Python script as `python SCRIPT ARGS...` does, and put every PEFT model that it builds on the engine.
The script needs no change, and its checkpoints stay plain PEFT checkpoints. Arguments after SCRIPT are the
script's. For each model one line on stderr says how many layers are on the engine, and why others are
not. After its first forward pass another one says how many ran on the engine in it. A third one warns of a
model in training whose adapter no optimizer step changes. Processes that the script starts by itself are not
covered; let accelerate or torchrun start them.

Examples:
  doratune run train.py --learning_rate 2e-4 --output_dir out
  doratune run train.py --help
  accelerate launch --num_processes 8 -m doratune.run train.py --output_dir out
  torchrun --nproc-per-node 8 -m doratune.run train.py --output_dir out
"""


def main(argv: list[str]) -> int | Callable[[], int]:
    """Run the verb.

    Args:
        argv: The script and its arguments.

    Returns:
        The exit code, or the call that runs the script: its exceptions are not doratune's to handle.

    Raises:
        InputError: There is no script, or it cannot be read.
    """
    if argv and argv[0] in ("-h", "--help"):
        print(ABOUT, end="")
        return 0
    if not argv:
        raise InputError("no script to run", expected="doratune run SCRIPT [ARGS...]")
    try:
        source = Path(argv[0]).read_bytes()
    except OSError as error:
        raise InputError(
            "the script cannot be read",
            where=argv[0],
            got=error.strerror,
            fix="name a Python file first; its own arguments follow it",
        ) from error
    return functools.partial(_run, source, argv)


def _run(source: bytes, argv: list[str]) -> int:
    """Execute ``source`` as the main module, the way the interpreter does.

    Unlike ``runpy.run_path`` this leaves the script in ``sys.modules["__main__"]`` after its last line:
    its threads, exit handlers and pickled classes look for it there.
    """
    models: list[str] = []
    _after_import("peft", functools.partial(_enable_automatically, models))
    path = os.path.abspath(argv[0])  # noqa: PTH100 - like the interpreter, keeps symbolic links
    loader = SourceFileLoader("__main__", path)
    script: Any = ModuleType("__main__")
    script.__file__, script.__loader__ = path, loader
    sys.modules["__main__"] = script
    sys.argv[:] = argv
    if not sys.flags.safe_path:
        sys.path[0] = str(Path(path).resolve().parent)
    exec(loader.source_to_code(source, path), vars(script))
    if not models:
        _say("the script built no PEFT model with LoRA or DoRA layers")
    return 0


def _enable_automatically(models: list[str]) -> None:
    import logging

    from doratune.peft import EnableReport, LayerCalls, enable_automatically

    if not launched().speaks:
        logging.getLogger("doratune").setLevel(logging.ERROR)

    def tell(report: EnableReport) -> None:
        models.append("; ".join(str(report).splitlines()))
        _say(models[-1])

    def tell_calls(calls: LayerCalls) -> None:
        _say(str(calls))

    enable_automatically(tell, tell_calls)


def _say(line: str) -> None:
    if launched().speaks:
        print(f"doratune: {line}", file=sys.stderr)


def _after_import(name: str, then: Callable[[], None]) -> None:
    """Call ``then`` as soon as the package ``name`` has been imported."""
    if name in sys.modules:
        then()
    else:
        sys.meta_path.insert(0, _AfterImport(name, then))


class _AfterImport(MetaPathFinder):
    """Leaves finding ``name`` to the other finders, and adds a step to its execution."""

    def __init__(self, name: str, then: Callable[[], None]) -> None:
        self._name = name
        self._then = then

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self._name:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        specs = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None and spec.loader is not None:
            self._extend(spec.loader)
        return spec

    def _extend(self, loader: Any) -> None:
        exec_module = loader.exec_module

        def exec_module_and_more(module: ModuleType) -> None:
            exec_module(module)
            sys.meta_path.remove(self)
            self._then()

        # Only here, not in find_spec: libraries also look for a package without importing it.
        loader.exec_module = exec_module_and_more
